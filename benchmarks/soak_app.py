"""
The application of C{soak.py}: run by it, as C{twistd -n -y soak_app.py}.

It handles what devices send, and sends to them at the same time.  Most handlers
are done at once, some take a while, some fail once; each message that has been
handled is a line of the file C{handled}, and each downstream message that has
been settled a line of C{outcomes}.  When it is told to, by a message, it sends
nothing more, waits for what is open, and ends; what it counted is then in
C{counts}.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from contextlib import suppress
from io import FileIO
from pathlib import Path
from random import Random
from typing import Any

from twisted.application.service import Application
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import clientFromString
from twisted.internet.error import ReactorNotRunning
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, globalLogPublisher
from zope.interface import implementer

from fcmxmpp.appserver import AppServer
from fcmxmpp.connection import Credentials
from fcmxmpp.delivery import Policy
from fcmxmpp.errors import FCMError, HandlerFailed
from fcmxmpp.interfaces import AppServerEvent, IDownstreamSender, ISessionObserver, IUpstreamHandler, Sent
from fcmxmpp.messages import DownstreamMessage, UpstreamMessage


#: One handler in so many fails once, takes a moment, or takes seconds.
FAILS, TAKES_A_MOMENT, TAKES_SECONDS = 50, 10, 500
#: How long that is, in seconds, at most.
MOMENT, SECONDS = 0.05, 3.0


class FailsOnce(Exception):
    """
    What a handler fails with that is to fail once.
    """


@implementer(ISessionObserver)
class Counts:
    """
    What happened, in numbers.

    @ivar counter: they.
    """

    def __init__(self, file: Path) -> None:
        """
        @param file: where to write them in the end.
        """
        self._file = file
        self.counter: Counter[str] = Counter()
        self._socketsBefore = _sockets()

    def observed(self, event: AppServerEvent) -> None:
        """
        See L{ISessionObserver.observed}.
        """
        self.counter[type(event).__name__] += 1
        if isinstance(event, Sent) and event.tries > 1:
            self.counter["resent"] += 1

    def logged(self, event: LogEvent) -> None:
        """
        Count what must not be in the log: any failure but those of our
        handler, and any stanza error.
        """
        failure = event.get("log_failure")
        if failure is not None and not failure.check(HandlerFailed):
            self.counter["failuresLogged"] += 1
        if "condition" in event and "code" in event:
            self.counter["stanzaErrors"] += 1

    def write(self) -> None:
        """
        All is over; nothing may be left.
        """
        self.counter["socketsLeft"] = _sockets() - self._socketsBefore
        self.counter["timersLeft"] = len(reactor.getDelayedCalls())
        self._file.write_text(json.dumps(self.counter))


def _sockets() -> int:
    """
    How many sockets this process has open.
    """
    return sum(file.is_socket() for file in Path("/proc/self/fd").iterdir())


@implementer(IUpstreamHandler)
class Conversation:
    """
    Takes and sends messages.
    """

    def __init__(self, sender: IDownstreamSender, counter: Counter[str], settings: dict[str, Any]) -> None:
        self._sender = sender
        self._counter = counter
        self._devices = settings["devices"]
        self._outstanding = settings["outstanding"]
        self._random = Random(settings["seed"])
        self._text = settings["text"]
        self._stop = settings["stop"]
        self._sending = True
        self._failed: set[tuple[str, str]] = set()
        directory = Path(settings["directory"])
        # Unbuffered: what has been written is out.
        self._handled = FileIO(directory / "handled", "wb")
        self._outcomes = FileIO(directory / "outcomes", "wb")

    def messageReceived(self, message: UpstreamMessage) -> Deferred[None] | None:
        """
        See L{IUpstreamHandler.messageReceived}.
        """
        if message.key in self._failed:
            self._failed.remove(message.key)
        elif not self._random.randrange(FAILS):
            self._failed.add(message.key)
            raise FailsOnce()
        if not self._random.randrange(TAKES_SECONDS):
            return deferLater(reactor, self._random.uniform(0, SECONDS), self._note, message)
        if not self._random.randrange(TAKES_A_MOMENT):
            return deferLater(reactor, self._random.uniform(0, MOMENT), self._note, message)
        self._note(message)
        return None

    def _note(self, message: UpstreamMessage) -> None:
        """
        A message has been handled.
        """
        self._handled.write(f"{message.from_} {message.message_id}\n".encode())
        if message.data["text"] == self._stop:
            self._sending = False

    async def send(self) -> None:
        """
        Send to one device after the other until told to stop, so many messages
        at a time; then end the process.
        """
        await gatherResults([Deferred.fromCoroutine(self._sendOneByOne()) for _ in range(self._outstanding)])
        with suppress(ReactorNotRunning):
            reactor.stop()

    async def _sendOneByOne(self) -> None:
        """
        Send a message, wait for its end, send the next.
        """
        while self._sending:
            self._counter["sends"] += 1
            number = self._counter["sends"]
            name = str(number)
            to = self._devices[number % len(self._devices)]
            message = DownstreamMessage(to=to, message_id=name, data={"text": self._text})
            try:
                await self._sender.send(message)
            except FCMError as error:
                # Told in the end; to go on might be to go on for ever.
                self._outcomes.write(f"{name} {type(error).__name__}\n".encode())
                return
            self._outcomes.write(f"{name} accepted\n".encode())


settings = json.loads(os.environ["SOAK"])
counts = Counts(Path(settings["directory"]) / "counts")
globalLogPublisher.addObserver(counts.logged)


def makeHandler(sender: IDownstreamSender) -> Conversation:
    """
    Make the handler, and have it send as soon as that is possible.
    """
    conversation = Conversation(sender, counts.counter, settings)
    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(conversation.send()))
    return conversation


application = Application("fcmxmpp soak")
AppServer(
    clientFromString(reactor, settings["endpoint"]),
    Credentials(settings["senderID"], settings["serverKey"]),
    makeHandler,
    clock=reactor,
    connections=settings["links"],
    policy=Policy(remembered=settings["remembered"]),
    observer=counts,
).setServiceParent(application)
reactor.addSystemEventTrigger("after", "shutdown", counts.write)
