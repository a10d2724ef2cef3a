"""
The demonstration: messages on their way from a device to a handler and back,
told line by line, over the same TLS sockets as in earnest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from zope.interface import implementer

from fcmxmpp.embedded import EmbeddedConnectionServer
from fcmxmpp.interfaces import (
    Acknowledged,
    AppServerEvent,
    Arrived,
    DeadLettered,
    HandlingFailed,
    IDownstreamSender,
    ISessionObserver,
    IUpstreamHandler,
    LinkDrained,
    LinkDraining,
    LinkLost,
    LinkReady,
    Repeated,
    settled,
)
from fcmxmpp.messages import MAX_DATA_BYTES, DownstreamMessage, UpstreamMessage
from fcmxmpp.server.simulated import SimulatedDevice


__all__ = ["Demo"]

_log = Logger()

#: Seconds that one message may take before it counts as lost.
PATIENCE = 8.0

_TEXT = "Grüße, Ωμέγα, 你好, 🚀"
_MARKUP = "\"quoted\" <b>bold</b> & 'so on' &amp; ]]>"
_LARGEST = "x" * (MAX_DATA_BYTES - len("blob"))


class _NarratedDevice(SimulatedDevice):
    """
    A device that says what it is told.
    """

    say: Callable[[str, str], None]
    got: Callable[[str, Mapping[str, str]], None]

    def messageReceived(self, message: DownstreamMessage) -> None:
        """
        Say so.
        """
        self.got(message.message_id or "", message.data)
        super().messageReceived(message)

    def messageStored(self, message_id: str) -> None:
        """
        Say so.
        """
        self.say("connection server", f"has stored {message_id} and passes it on")
        super().messageStored(message_id)

    def messageDelivered(self, message_id: str) -> None:
        """
        Say so.
        """
        self.say("device", f"is told that {message_id} was delivered")
        super().messageDelivered(message_id)

    def messageFailed(self, message_id: str, error: str) -> None:
        """
        Say so.
        """
        self.say("device", f"is told that {message_id} FAILED: {error}")
        super().messageFailed(message_id, error)


@implementer(IUpstreamHandler, ISessionObserver)
class Demo(Service):
    """
    The narrator.  It is the handler of the app server as well as its observer.

    @ivar sender: what to send to the device by, to be set before the start.
    """

    sender: IDownstreamSender

    def __init__(
        self,
        embedded: EmbeddedConnectionServer,
        clock: IReactorTime,
        write: Callable[[str], object],
        end: Callable[[int], None],
    ) -> None:
        """
        @param write: prints a line.
        @param end: is called at the end with the exit status.
        """
        self._embedded = embedded
        self._clock = clock
        self._write = write
        self._end = end
        self._device = _NarratedDevice(
            embedded.server, embedded.credentials.senderID, "demo-device-token", "org.example.demo"
        )
        self._device.say = self._say
        self._device.got = self._deviceGot
        self._sent: dict[str, dict[str, str]] = {}
        self._arrived: list[tuple[str, Mapping[str, str]]] = []
        self._accepted: set[str] = set()
        self._acknowledged: set[str] = set()
        self._toFail: set[str] = set()
        self._toBreak: set[str] = set()
        self._ready: Deferred[None] = Deferred()
        self._drained: Deferred[None] = Deferred()
        self._running: Deferred[None] | None = None

    def _say(self, who: str, what: str) -> None:
        """
        Print what one of the parties does.
        """
        self._write(f"   {who:<18} {what}")

    # The application.

    def messageReceived(self, message: UpstreamMessage) -> Deferred[None] | None:
        """
        See L{IUpstreamHandler.messageReceived}.
        """
        message_id = message.message_id
        if message_id in self._toFail:
            self._toFail.remove(message_id)
            raise RuntimeError("this one was asked to fail")
        if message_id in self._toBreak:
            self._toBreak.remove(message_id)
            self._say("handler", f"begins with {message_id}; the connection breaks meanwhile")
            self._embedded.server.dropConnections()
            return deferLater(self._clock, 0.3, self._handle, message)
        self._handle(message)
        return None

    def _handle(self, message: UpstreamMessage) -> None:
        """
        Handle a message: compare it with what was sent.
        """
        came = self._compare(message.message_id, message.data)
        self._say("handler", f"has handled {message.message_id}, its data came {came}")

    def _deviceGot(self, message_id: str, data: Mapping[str, str]) -> None:
        """
        The device has got a message: compare it with what was sent.
        """
        self._say("device", f"has got {message_id}, its data came {self._compare(message_id, data)}")

    def _compare(self, message_id: str, data: Mapping[str, str]) -> str:
        """
        A message has arrived.

        @return: how it came.
        """
        self._arrived.append((message_id, data))
        return "unchanged" if data == self._sent.get(message_id) else "CHANGED"

    def observed(self, event: AppServerEvent) -> None:
        """
        See L{ISessionObserver.observed}.
        """
        if isinstance(event, LinkReady):
            self._say("app server", f"is logged in (connection {event.generation})")
            if not self._ready.called:
                self._ready.callback(None)
        elif isinstance(event, LinkDraining):
            self._say("app server", "hears that; it makes another connection, and goes on on both")
        elif isinstance(event, LinkDrained):
            self._say("app server", f"sees connection {event.generation} closed, which costs nothing now")
            self._drained.callback(None)
        elif isinstance(event, LinkLost):
            self._say("app server", f"has no connection: {event.reason}")
        elif isinstance(event, Arrived):
            self._say("app server", f"has got {event.message.message_id}, and calls the handler")
        elif isinstance(event, Repeated):
            self._say("app server", f"has got {event.message.message_id} again, which it knows")
        elif isinstance(event, HandlingFailed):
            again = "no more tries" if event.retryIn is None else f"again in {event.retryIn:.1f} s"
            self._say("handler", f"FAILS on {event.message.message_id}; no ACK, {again}")
        elif isinstance(event, Acknowledged):
            self._acknowledged.add(event.message_id)
            self._say("app server", f"has sent the ACK for {event.message_id}")
        elif isinstance(event, DeadLettered):
            self._say("app server", f"puts {event.message_id} aside: {event.reason}")

    # The show.

    def startService(self) -> None:
        """
        Begin.
        """
        super().startService()
        self._running = Deferred.fromCoroutine(self._run())
        self._running.addErrback(self._broken)

    def _broken(self, failure: Any) -> None:
        """
        The demonstration itself has a bug.
        """
        _log.failure("the demonstration broke", failure)
        self._write("The demonstration broke; see the log.")
        self._end(1)

    async def _run(self) -> None:
        """
        Message after message, and the summary.
        """
        self._write("A device, a connection server and an app server, over TLS on this machine.")
        self._write(f"The connection server listens on tls:localhost:{self._embedded.port},")
        self._write(f"with the certificate in {self._embedded.directory / 'certs'}.\n")
        try:
            await self._ready.addTimeout(PATIENCE, self._clock)
        except Exception as error:
            self._say("app server", f"could NOT log in: {type(error).__name__}")
        await self._message("A plain message", "demo-1", {"greeting": "hello"})
        await self._message("Letters of the whole world", "demo-2", {"text": _TEXT})
        await self._message("Quotes and markup", "demo-3", {"text": _MARKUP})
        await self._message("The largest payload, 4096 bytes", "demo-4", {"blob": _LARGEST})
        await self._message("The same message once more: handled once, ACKed again", "demo-1", None)
        self._toFail.add("demo-5")
        await self._message("A handler that fails and then succeeds", "demo-5", {"op": "fail once"})
        self._toBreak.add("demo-6")
        await self._message("A connection that breaks before the ACK", "demo-6", {"op": "break"})
        await self._answer("The other way: a message to the device", "demo-7", {"text": _TEXT})
        await self._drain("A connection that the connection server wants to close", "demo-8")
        self._end(self._summary())

    async def _message(self, title: str | None, message_id: str, data: Mapping[str, str] | None) -> None:
        """
        Send a message, and wait for what the device is told.

        @param title: none if there is more to it.
        @param data: none to send a message again as it was.
        """
        if title is not None:
            self._write(f"{title}")
        if data is not None:
            self._sent[message_id] = dict(data)
        self._say("device", f"sends {message_id}")
        sent = self._device.send(message_id, self._sent[message_id], time_to_live=60)
        try:
            await sent.addTimeout(PATIENCE, self._clock)
        except Exception as error:
            self._say("device", f"has NOT heard of {message_id}: {type(error).__name__}")
        if title is not None:
            self._write("")

    async def _answer(self, title: str, message_id: str, data: dict[str, str]) -> None:
        """
        Send a message to the device, and wait for what the app server is told.
        """
        self._write(f"{title}")
        self._sent[message_id] = data
        self._say("handler", f"sends {message_id}")
        message = DownstreamMessage(to=self._device.token, message_id=message_id, data=data)
        try:
            await settled(self.sender.send(message)).addTimeout(PATIENCE, self._clock)
            self._acknowledged.add(message_id)
            self._accepted.add(message_id)
            self._say("app server", f"has got the ACK for {message_id}")
        except Exception as error:
            self._say("app server", f"has NOT got the ACK for {message_id}: {type(error).__name__}")
        self._write("")

    async def _drain(self, title: str, message_id: str) -> None:
        """
        Drain the connection, and send a message meanwhile.
        """
        self._write(f"{title}")
        self._say("connection server", "drains the connection: it says that it will close it")
        self._embedded.server.drain(1.5)
        await self._message(None, message_id, {"op": "drain"})
        try:
            await self._drained.addTimeout(PATIENCE, self._clock)
        except Exception as error:
            self._say("app server", f"has NOT seen it closed: {type(error).__name__}")
        self._write("")

    def _summary(self) -> int:
        """
        Print what came of it.

        @return: the exit status.
        """
        handled = {message_id for message_id, data in self._arrived if data == self._sent.get(message_id)}
        told = set(self._device.delivered) | self._accepted
        lost = len(self._sent) - len(handled & self._acknowledged & told)
        twice = len(self._arrived) - len({message_id for message_id, _ in self._arrived})
        self._write(
            f"{len(self._sent)} sent, {len(handled)} handled, "
            f"{len(self._acknowledged)} acknowledged, {lost} lost"
        )
        if twice:
            self._write(f"{twice} handled twice")
        return 1 if lost or twice else 0
