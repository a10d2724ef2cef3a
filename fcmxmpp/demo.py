"""
The demonstration: messages on their way from a device to a handler and back,
told line by line, over the same three TLS sockets as in earnest: the device asks
who it is and connects, as the app server does.
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

from fcmxmpp.device import Device, IDeviceApp
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
from fcmxmpp.mcs.stanzas import ReceivedMessage
from fcmxmpp.messages import MAX_DATA_BYTES, DownstreamMessage, UpstreamMessage


__all__ = ["Demo"]

_log = Logger()

#: Seconds that one message may take before it counts as lost.
PATIENCE = 8.0

_TEXT = "Grüße, Ωμέγα, 你好, 🚀"
_MARKUP = "\"quoted\" <b>bold</b> & 'so on' &amp; ]]>"
_LARGEST = "x" * (MAX_DATA_BYTES - len("blob"))


@implementer(IUpstreamHandler, ISessionObserver, IDeviceApp)
class Demo(Service):
    """
    The narrator.  It is the handler of the app server as well as its observer,
    and the app on the device.

    @ivar sender: what to send to the device by, to be set before the start.
    """

    sender: IDownstreamSender
    _device: Device

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
        self._sent: dict[str, dict[str, str]] = {}
        self._arrived: list[tuple[str, Mapping[str, str]]] = []
        self._accepted: set[str] = set()
        self._stored: set[str] = set()
        # Who waits for the end of a message's way.
        self._waiting: dict[str, Deferred[None]] = {}
        self._acknowledged: set[str] = set()
        self._toFail: set[str] = set()
        self._toBreak: set[str] = set()
        self._ready: Deferred[None] = Deferred()
        self._drained: Deferred[None] = Deferred()
        self._running: Deferred[None] | None = None
        # What goes to the device, and where the device's messages go.
        self._toDevice: set[str] = set()
        self._to = f"{embedded.credentials.senderID}@gcm.googleapis.com"

    def _say(self, who: str, what: str) -> None:
        """
        Print what one of the parties does.
        """
        self._write(f"   {who:<18} {what}")

    # The application.

    def _arrivedAtHandler(self, message: UpstreamMessage) -> Deferred[None] | None:
        """
        The handler is called.
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

    # The app on the device: see IDeviceApp.

    def messageReceived(self, message: UpstreamMessage | ReceivedMessage) -> Deferred[None] | None:
        """
        See L{IUpstreamHandler.messageReceived} and L{IDeviceApp.messageReceived}.
        """
        if isinstance(message, UpstreamMessage):
            return self._arrivedAtHandler(message)
        # The device does not see the app server's own name for it.
        message_id = next((known for known in self._sent if known in self._toDevice), "")
        came = self._compare(message_id, message.data)
        self._say("device", f"has got {message_id}, its data came {came}")
        self._seen(message_id)
        return None

    def _seen(self, message_id: str) -> None:
        """
        Go on: a message is where it was meant to be.
        """
        waiting = self._waiting.pop(message_id, None)
        if waiting is not None:
            waiting.callback(None)

    def messagesSent(self, message_ids: list[str]) -> None:
        """
        See L{IDeviceApp.messagesSent}.  It is told at once, not after a second.
        """

    def messagesFailed(self, failed: list[tuple[str, str]]) -> None:
        """
        See L{IDeviceApp.messagesFailed}.
        """
        for message_id, error in failed:
            self._say("device", f"is told that {message_id} FAILED: {error}")

    def messagesDeleted(self, total: int) -> None:
        """
        See L{IDeviceApp.messagesDeleted}.
        """
        self._say("device", f"is told that {total} messages were DROPPED")

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
            self._seen(event.message_id)
        elif isinstance(event, DeadLettered):
            self._say("app server", f"puts {event.message_id} aside: {event.reason}")

    # The show.

    def startService(self) -> None:
        """
        Begin.
        """
        super().startService()
        # Only now the connection server has its ports.
        self._device = self._embedded.device("org.example.demo", self)
        self._device.startService()
        self._running = Deferred.fromCoroutine(self._run())
        self._running.addErrback(self._broken)

    def stopService(self) -> Deferred[None]:
        """
        Close the device's connection.
        """
        super().stopService()
        return self._device.stopService()

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
        self._write(f"The connection server listens on tls:localhost:{self._embedded.port} for app servers,")
        ports = f"{self._embedded.devicePort} (MCS) and {self._embedded.httpPort} (HTTPS)"
        self._write(f"and for devices on ports {ports};")
        self._write(f"its certificate is in {self._embedded.directory / 'certs'}.\n")
        try:
            await self._ready.addTimeout(PATIENCE, self._clock)
        except Exception as error:
            self._say("app server", f"could NOT log in: {type(error).__name__}")
        try:
            await self._device.whenReady().addTimeout(PATIENCE, self._clock)
            self._say("device", "has checked in, has registered, and is connected")
        except Exception as error:
            self._say("device", f"could NOT connect: {type(error).__name__}")
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
        acknowledged: Deferred[None] = Deferred()
        self._waiting[message_id] = acknowledged
        sent = self._device.sendMessage(self._sent[message_id], self._to, message_id, 60)
        try:
            await sent.addTimeout(PATIENCE, self._clock)
            self._stored.add(message_id)
            self._say("device", f"is told that {message_id} is stored, and forgets it")
            await acknowledged.addTimeout(PATIENCE, self._clock)
        except Exception as error:
            self._say("narrator", f"has NOT seen the end of {message_id}: {type(error).__name__}")
        if title is not None:
            self._write("")

    async def _answer(self, title: str, message_id: str, data: dict[str, str]) -> None:
        """
        Send a message to the device, and wait for what the app server is told.
        """
        self._write(f"{title}")
        self._sent[message_id] = data
        self._say("handler", f"sends {message_id}")
        self._toDevice.add(message_id)
        got: Deferred[None] = Deferred()
        self._waiting[message_id] = got
        message = DownstreamMessage(to=self._device.token or "", message_id=message_id, data=data)
        try:
            await settled(self.sender.send(message)).addTimeout(PATIENCE, self._clock)
            self._acknowledged.add(message_id)
            self._accepted.add(message_id)
            self._say("app server", f"has got the ACK for {message_id}")
            await got.addTimeout(PATIENCE, self._clock)
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
        told = self._stored | self._accepted
        lost = len(self._sent) - len(handled & self._acknowledged & told)
        twice = len(self._arrived) - len({message_id for message_id, _ in self._arrived})
        self._write(
            f"{len(self._sent)} sent, {len(handled)} handled, "
            f"{len(self._acknowledged)} acknowledged, {lost} lost"
        )
        if twice:
            self._write(f"{twice} handled twice")
        return 1 if lost or twice else 0
