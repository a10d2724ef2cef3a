"""
The two processes of C{crash.py}: run by it, as C{crash_processes.py app} and
C{crash_processes.py server}, and killed by it.

What either does that must not be lost is a line of a file, written by one
C{write()} before anybody is told, so that it is there even if the process is
killed right after that.  Each line begins with the name of the life in which it
was written: each process that is started gets another.
"""

from __future__ import annotations

import json
import os
import sys
from itertools import count
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import SSL4ServerEndpoint, clientFromString
from twisted.internet.ssl import PrivateCertificate
from twisted.internet.task import LoopingCall
from twisted.logger import globalLogBeginner, textFileLogObserver
from twisted.python.failure import Failure
from zope.interface import implementer

from fcmxmpp.appserver import AppServer
from fcmxmpp.connection import Credentials
from fcmxmpp.entries import Outcome
from fcmxmpp.errors import Nacked
from fcmxmpp.interfaces import IDownstreamSender, IOutcomeHandler, IUpstreamHandler, Stored
from fcmxmpp.messages import DownstreamMessage, UpstreamMessage
from fcmxmpp.server.registry import Device, IDeviceCallbacks, Registry
from fcmxmpp.server.service import ConnectionServer
from fcmxmpp.server.stream import ServerStream
from fcmxmpp.store.sqlite import SQLiteStore


DEVICES = [f"device-{number}" for number in range(5)]
#: A device that is not there: what is sent to it is refused for good.
STRANGER = "nobody"
#: Seconds between times to speak, and how many messages are sent then, by all
#: devices together and to them.
EVERY, BURST = 0.01, 3
#: Seconds that the connection server takes for an answer, so that processes are
#: killed with answers under way.
ANSWER_AFTER = 0.02
TEXT = "x" * 200


class Files:
    """
    What happened, in one file for each sort of event.
    """

    def __init__(self, directory: Path, life: str) -> None:
        self._directory = directory
        self._life = life
        self._open: dict[str, int] = {}

    def note(self, name: str, *fields: str) -> None:
        """
        Append a line; it is in the kernel's hands when this returns.
        """
        if name not in self._open:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self._open[name] = os.open(self._directory / name, flags, 0o600)
        line = " ".join((self._life, *fields)).encode() + b"\n"
        written = os.write(self._open[name], line)
        assert written == len(line), "the disk is full"

    def lines(self, name: str) -> list[list[str]]:
        """
        What has been noted, in this life and before it.
        """
        path = self._directory / name
        return [line.split()[1:] for line in path.read_text().splitlines()] if path.exists() else []


class Talk(Service):
    """
    Says something again and again until it is told to be quiet; then it notes
    when all that it has said is stored, or refused.
    """

    def __init__(self, speaker: Any, files: Files, quiet: Path) -> None:
        """
        @param speaker: has C{say}, and C{open}: how much of it is neither
            stored nor refused.
        @param quiet: a file; when it is there, it is quiet.
        """
        self._speaker = speaker
        self._files = files
        self._quiet = quiet
        self._loop = LoopingCall(self._next)
        self._loop.clock = reactor

    def _next(self) -> None:
        """
        Say something.
        """
        if not self._quiet.exists():
            for _ in range(BURST):
                self._speaker.say()
        elif not self._speaker.open:
            self._files.note("silent")
            self._loop.stop()

    def startService(self) -> None:
        """
        Begin.
        """
        super().startService()
        self._loop.start(EVERY)

    def stopService(self) -> None:
        """
        End.
        """
        super().stopService()
        if self._loop.running:
            self._loop.stop()


@implementer(IUpstreamHandler, IOutcomeHandler)
class Application:
    """
    Notes what devices have sent, and what became of what it sends.

    @ivar open: how many messages it has sent that are not stored yet.
    """

    def __init__(self, files: Files, life: str, sender: IDownstreamSender) -> None:
        self._files = files
        self._life = life
        self._sender = sender
        self._numbers = count()
        self.open = 0

    def messageReceived(self, message: UpstreamMessage) -> None:
        """
        See L{IUpstreamHandler.messageReceived}.
        """
        self._files.note("handled", message.from_, message.message_id)

    def messageSettled(self, outcome: Outcome) -> None:
        """
        See L{IOutcomeHandler.messageSettled}.
        """
        error = outcome.error
        result = "accepted" if error is None else type(error).__name__
        if isinstance(error, Nacked):
            result += f":{error.error}"
        self._files.note("outcomes", outcome.message.message_id or "", result)

    def say(self) -> None:
        """
        Send a message to the next device, and now and then to nobody.
        """
        number = next(self._numbers)
        name = f"{self._life}-{number}"
        to = STRANGER if number % 10 == 9 else DEVICES[number % len(DEVICES)]
        message = DownstreamMessage(to=to, message_id=name, data={"text": TEXT})

        def stored(result: object) -> None:
            self.open -= 1
            assert isinstance(result, Stored)
            self._files.note("sent", result.message_id)

        def failed(failure: Failure) -> None:
            # Nothing was promised.
            self.open -= 1
            self._files.note("unsent", name, failure.type.__name__)

        self.open += 1
        self._sender.send(message).addCallbacks(stored, failed)


def appServer(settings: dict[str, Any], files: Files, store: SQLiteStore) -> list[Service]:
    """
    The app server.
    """
    applications: list[Application] = []

    def makeHandler(sender: IDownstreamSender) -> Application:
        applications.append(Application(files, settings["life"], sender))
        return applications[0]

    server = AppServer(
        clientFromString(reactor, settings["endpoint"]),
        Credentials(settings["senderID"], settings["serverKey"]),
        makeHandler,
        clock=reactor,
        store=store,
    )
    return [server, Talk(applications[0], files, Path(settings["directory"], "quiet"))]


@implementer(IDeviceCallbacks)
class Phone:
    """
    A device.

    @ivar open: how many messages it has sent that are neither stored nor
        refused.
    """

    def __init__(self, files: Files, server: ConnectionServer, senderID: str, token: str) -> None:
        self._files = files
        self._server = server
        self.token = token
        self._device = Device(token, senderID, "org.example.crash", self)
        self.open = 0
        server.registry.add(self._device)

    def send(self, message_id: str) -> None:
        """
        Send a message.
        """
        self.open += 1
        self._server.submit(self._device, message_id, {"text": TEXT})

    def messageStored(self, message_id: str) -> None:
        """
        See L{IDeviceCallbacks.messageStored}.
        """
        self.open -= 1
        self._files.note("stored", self.token, message_id)

    def messageDelivered(self, message_id: str) -> None:
        """
        See L{IDeviceCallbacks.messageDelivered}.
        """

    def messageFailed(self, message_id: str, error: str) -> None:
        """
        See L{IDeviceCallbacks.messageFailed}.
        """
        self.open -= 1
        self._files.note("failed", self.token, message_id, error)

    def messageReceived(self, message: DownstreamMessage) -> None:
        """
        See L{IDeviceCallbacks.messageReceived}.
        """
        self._files.note("received", self.token, message.message_id or "")


class Phones(Service):
    """
    All devices.  Like real ones they remember, whatever happens to the
    connection server, what they have not been told is stored, and send that
    again.
    """

    def __init__(self, files: Files, server: ConnectionServer, settings: dict[str, Any]) -> None:
        self._files = files
        self._life = settings["life"]
        self._phones = {token: Phone(files, server, settings["senderID"], token) for token in DEVICES}
        self._numbers = count()

    def startService(self) -> None:
        """
        Send again what is to be sent again.
        """
        super().startService()
        stored = {tuple(line) for line in self._files.lines("stored")}
        for token, message_id in self._files.lines("submitted"):
            if (token, message_id) not in stored:
                self._files.note("again", token, message_id)
                self._phones[token].send(message_id)

    @property
    def open(self) -> int:
        """
        How many messages are neither stored nor refused.
        """
        return sum(phone.open for phone in self._phones.values())

    def say(self) -> None:
        """
        Have the next device send a message.
        """
        number = next(self._numbers)
        token, name = DEVICES[number % len(DEVICES)], f"{self._life}-{number}"
        self._files.note("submitted", token, name)
        self._phones[token].send(name)


class Server(ConnectionServer):
    """
    The connection server; it notes who logs in.

    @ivar files: where to.
    """

    files: Files

    def ready(self, stream: ServerStream) -> None:
        """
        An app server is logged in.
        """
        self.files.note("logins")
        super().ready(stream)


class Port(Service):
    """
    Where the connection server listens.
    """

    def __init__(self, settings: dict[str, Any], server: ConnectionServer) -> None:
        certificate = PrivateCertificate.loadPEM(Path(settings["certificate"]).read_bytes())
        self._endpoint = SSL4ServerEndpoint(
            reactor, settings["port"], certificate.options(), interface="127.0.0.1"
        )
        self._server = server
        self._port: Any = None

    def startService(self) -> None:
        """
        Listen.
        """
        super().startService()
        # A TCP port is opened at once, or not at all.
        self._endpoint.listen(self._server.factory).addCallbacks(self._listens, _end)

    def _listens(self, port: Any) -> None:
        """
        The port is open.
        """
        self._port = port

    def stopService(self) -> Any:
        """
        Do not listen any more.
        """
        super().stopService()
        return self._port.stopListening()


def connectionServer(settings: dict[str, Any], files: Files, store: SQLiteStore) -> list[Service]:
    """
    The connection server and its devices.
    """
    senderID = settings["senderID"]
    server = Server(Registry({senderID: settings["serverKey"]}), reactor, entrusted=store.entrusted)
    server.files = files
    server.script.delay(ANSWER_AFTER)
    phones = Phones(files, server, settings)
    talk = Talk(phones, files, Path(settings["directory"], "quiet"))
    return [server, phones, Port(settings, server), talk]


def _end(failure: Failure) -> None:
    """
    It cannot be started; that must not look like being killed.
    """
    failure.printTraceback()
    os._exit(2)


def run(services: list[Service]) -> None:
    """
    Start services, and stop them one after the other, the last one first, when
    a signal says so.
    """

    async def stop() -> None:
        for service in reversed(services):
            await maybeDeferred(service.stopService)

    def start() -> None:
        try:
            for service in services:
                service.startService()
        except Exception:
            _end(Failure())

    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    reactor.callWhenRunning(start)
    reactor.addSystemEventTrigger("before", "shutdown", lambda: Deferred.fromCoroutine(stop()))
    reactor.run()


def main(role: str) -> None:
    """
    Be one of the two.
    """
    settings = json.loads(os.environ["CRASH"])
    directory = Path(settings["directory"])
    files = Files(directory, settings["life"])
    store = SQLiteStore(str(directory / f"{role}.sqlite"), reactor)
    services = {"app": appServer, "server": connectionServer}[role](settings, files, store)
    run([store, *services])


if __name__ == "__main__":
    main(sys.argv[1])
