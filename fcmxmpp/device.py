"""
A device: one app on it, which talks to its app server by way of a connection
server, as an app on a phone does.

It checks in, registers, and stays connected; what its app sends while there is no
connection is kept and sent later.  It is for tests, for load, and for devices
that have no screen::

    device = Device(reactor, endpoint, DeviceHTTP(agent, url, reactor), "123456789", "org.example.app", app)
    device.startService()
    device.sendMessage({"op": "hello"}, "123456789@gcm.googleapis.com", "m-1", 3600)
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint, ITCPTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import Interface

from fcmxmpp import __version__
from fcmxmpp.devicecache import CacheUnusable, DeviceCache, Unsent
from fcmxmpp.devicehttp import DeviceHTTP, RegistrationRefused
from fcmxmpp.diagnosis import describe
from fcmxmpp.errors import FCMError, MalformedFrame
from fcmxmpp.mcs.conversation import UNAUTHORIZED
from fcmxmpp.mcs.devicesession import (
    DeviceSession,
    Hangup,
    LoggedIn,
    LoginRefused,
    Output,
    Received,
    ServerHas,
    UploadsAcknowledged,
    Write,
)
from fcmxmpp.mcs.stanzas import ReceivedMessage, readMail, uploadStanza
from fcmxmpp.messages import MAX_DATA_BYTES, MAX_UPSTREAM_TTL
from fcmxmpp.registrations import Identity


__all__ = ["Device", "IDeviceApp", "NotSent"]

_log = Logger()

#: How many messages may wait to be stored by the connection server, as on Android.
UNSENT = 20
#: Seconds of silence before a heartbeat, as Chrome's.
HEARTBEAT = 900.0
#: Seconds for which news is gathered, so that an app is not woken up for each.
BATCH = 1.0
#: Seconds to wait before the second try to connect, by how much that may differ, and
#: how long it gets; what has lasted for so long is made again at once.  As Chrome's.
FIRST, JITTER, MOST, STABLE = 30.0, 0.33, 600.0, 10.0
#: Seconds that the server has to close its end, too.
CLOSING = 2.0
#: How many names of received messages a login tells.
_NAMES = 100


class NotSent(FCMError):
    """
    A message of an app will not be sent.

    @ivar error: what Google's client libraries call it: C{"invalid_parameters"},
        C{"messagetoobig"}, C{"toomanymessages"}, or C{"service_not_available"}:
        its time has run out.
    """

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error


class IDeviceApp(Interface):
    """
    An app on a device, as far as it is told things.
    """

    def messagesSent(message_ids: list[str]) -> None:
        """
        The connection server has stored messages.
        """

    def messagesFailed(failed: list[tuple[str, str]]) -> None:
        """
        Messages will not be delivered.

        @param failed: the C{message_id} and the error of each: see L{NotSent}.
        """

    def messageReceived(message: ReceivedMessage) -> Awaitable[object] | None:
        """
        The app server has sent a message.  If this fails, it comes again after
        the next login; until this has fired it does not, however often the
        connection is lost.
        """

    def messagesDeleted(total: int) -> None:
        """
        So many messages were dropped, because too many waited for the app.
        """


def _number(text: str) -> int:
    """
    A number that the server says; 0 if it is none, or larger than any can be.
    """
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


class _Stream(Protocol):
    """
    The device's end of a connection.

    @ivar isReady: whether it is logged in.
    @ivar readySince: when that was; None if it never was.
    """

    isReady = False
    readySince: float | None = None

    def __init__(self, device: Device, session: DeviceSession, clock: Any) -> None:
        self._device = device
        self._session = session
        self._clock = clock
        self._timer: IDelayedCall | None = None
        #: Why the connection is gone.
        self.reason = ""
        #: Fires when the connection is gone.
        self._waiters: list[Deferred[None]] = []
        # Whether it is closed at this end, and whether it is at both.
        self._isClosing = False
        self._isGone = False

    def connectionMade(self) -> None:
        """
        There is a connection.
        """
        transport: Any = self.transport
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
        self._device.connected(self)
        self.carryOut(self._session.start())
        self._setTimer()

    def dataReceived(self, data: bytes) -> None:
        """
        Some bytes came.
        """
        if not self._isClosing:
            self.carryOut(self._session.receive(data, self._clock.seconds()))
            self._setTimer()

    def carryOut(self, outputs: list[Output]) -> None:
        """
        Do what the session wants done, until the connection is closed.
        """
        transport: Any = self.transport
        for output in outputs:
            if self._isClosing or self._isGone:
                # The app may have stopped the device over the output before.
                return
            if isinstance(output, Write):
                transport.write(output.data)
            elif isinstance(output, Hangup):
                self.close(output.reason, output.abort)
            else:
                self._device.happened(self, output)

    def upload(self, handle: object, stanza: bytes) -> None:
        """
        Send a message, or leave it for the next connection if this one ends.
        """
        if not self._session.isOver:
            self.carryOut(self._session.upload(handle, stanza, self._clock.seconds()))

    def processed(self, streamID: int, atOnce: bool) -> None:
        """
        A message is in safe hands.
        """
        self.carryOut(self._session.processed(streamID, atOnce, self._clock.seconds()))

    def close(self, reason: str, abort: bool = False) -> None:
        """
        Close the connection: from now on nothing that comes matters.

        @param abort: without waiting for the server to close its end.
        """
        if self._isGone or (self._isClosing and not abort):
            return
        self.reason = self.reason or reason
        self._isClosing = True
        self.isReady = False
        self._cancelTimer()
        transport: Any = self.transport
        if abort:
            transport.abortConnection()
        else:
            self._timer = self._clock.callLater(CLOSING, self._abort)
            transport.loseConnection()

    def _abort(self) -> None:
        """
        The server has not closed its end.
        """
        self._timer = None
        self.close("", True)

    def whenGone(self) -> Deferred[None]:
        """
        Fires when the connection is gone.
        """
        gone: Deferred[None] = Deferred()
        if self._isGone:
            gone.callback(None)
        else:
            self._waiters.append(gone)
        return gone

    def _setTimer(self) -> None:
        """
        Wake the session when it wants it.
        """
        if self._isClosing or self._isGone:
            return
        self._cancelTimer()
        if self._session.wakeAt is not None:
            self._timer = self._clock.callLater(
                max(0.0, self._session.wakeAt - self._clock.seconds()), self._wake
            )

    def _wake(self) -> None:
        """
        The session's time has come.
        """
        self._timer = None
        self.carryOut(self._session.wake(self._clock.seconds()))
        self._setTimer()

    def _cancelTimer(self) -> None:
        """
        Have nothing happen by itself any more.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        The connection is gone.
        """
        self.reason = self.reason or describe(reason.value)
        self._isGone = True
        self.isReady = False
        self._cancelTimer()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(None)


class _Sending:
    """
    A message that is to be acknowledged.

    @ivar number: in the cache; None for what is not kept.
    """

    __slots__ = ("message", "number", "result")

    def __init__(self, message: Unsent, number: int | None) -> None:
        self.message = message
        self.number = number
        self.result: Deferred[None] | None = None


class Device(Service):
    """
    A device with one app.

    @ivar token: the app's registration token; None before the first
        registration.
    """

    def __init__(
        self,
        reactor: Any,
        endpoint: IStreamClientEndpoint,
        http: DeviceHTTP,
        senderID: str,
        category: str,
        app: Any = None,
        cache: DeviceCache | None = None,
        chance: Callable[[], float] = random.random,
        heartbeat: float = HEARTBEAT,
        unsent: int = UNSENT,
    ) -> None:
        """
        @param endpoint: leads to the connection server, over TLS.
        @param senderID: whose app server to talk to.
        @param category: the app: a package name.
        @param app: an L{IDeviceApp}; if there is none, messages for it stay at
            the connection server.
        @param cache: what is kept; in memory, if not given.
        @param chance: gives a number from 0 to 1, for the back-off.
        @param heartbeat: seconds of silence before a heartbeat.
        @param unsent: how many messages may wait.
        """
        self._clock = reactor
        self._endpoint = endpoint
        self._http = http
        self.senderID = senderID
        self.category = category
        self._app = app
        self._cache = cache or DeviceCache()
        self._chance = chance
        self._heartbeat = heartbeat
        self._most = unsent
        self._living: Deferred[None] | None = None
        self._stream: _Stream | None = None
        self._readers: list[Deferred[None]] = []
        # What waits for its acknowledgement, in order.
        self._sending: dict[object, _Sending] = {}
        for number, message in self._cache.unsent():
            self._sending[number] = _Sending(message, number)
        # What the app has been given and has not done with, by its name: the
        # connection that it came on last, and the numbers of its frames there.
        self._given: dict[object, tuple[_Stream, list[int]]] = {}
        # The news for the app.
        self._sentIDs: list[str] = []
        self._failedIDs: list[tuple[str, str]] = []
        self._news: IDelayedCall | None = None
        self.token = self._cache.token(senderID, category)

    # For the app.

    def sendMessage(
        self, message: Mapping[str, str], to: str, messageID: str, timeToLive: int
    ) -> Deferred[None]:
        """
        Send a message to an app server.

        @param message: key-value pairs.
        @param to: C{SENDER_ID@gcm.googleapis.com}.
        @param messageID: what the message is known by; unique.
        @param timeToLive: seconds, 0 to 24 hours, to which all else comes down;
            0 is now or never.
        @return: fires when the connection server has stored the message; fails
            with L{NotSent}, or with L{CacheUnusable} if it cannot be kept.
            Unless C{timeToLive} is 0 it is kept until then, and sent again after
            a lost connection.
        """
        if not 0 <= timeToLive <= MAX_UPSTREAM_TTL:
            timeToLive = MAX_UPSTREAM_TTL
        data = dict(message)
        if (
            not messageID
            or not to
            or not all(isinstance(each, str) for pair in data.items() for each in pair)
        ):
            return fail(NotSent("invalid_parameters"))
        try:
            size = sum(len(key.encode()) + len(value.encode()) for key, value in data.items())
            messageID.encode()
            to.encode()
        except UnicodeEncodeError:
            return fail(NotSent("invalid_parameters"))
        if size > MAX_DATA_BYTES:
            return fail(NotSent("messagetoobig"))
        if len(self._sending) >= self._most:
            return fail(NotSent("toomanymessages"))
        isReady = self._stream is not None and self._stream.isReady
        if not timeToLive and not isReady:
            return fail(NotSent("service_not_available"))
        unsent = Unsent(
            message_id=messageID, to=to, data=data, time_to_live=timeToLive, since=self._clock.seconds()
        )
        try:
            number = self._cache.keep(unsent) if timeToLive else None
        except CacheUnusable:
            return fail()
        sending = _Sending(unsent, number)
        key: object = sending if number is None else number
        self._sending[key] = sending
        result: Deferred[None] = Deferred()
        sending.result = result
        if isReady:
            self._upload(key, sending)
        return result

    @property
    def unsent(self) -> int:
        """
        How many messages wait to be acknowledged.
        """
        return len(self._sending)

    def whenReady(self) -> Deferred[None]:
        """
        Fires when the device is logged in.
        """
        ready: Deferred[None] = Deferred()
        if self._stream is not None and self._stream.isReady:
            ready.callback(None)
        else:
            self._readers.append(ready)
        return ready

    # The life of a device.

    def startService(self) -> None:
        """
        Connect, and stay connected.
        """
        super().startService()
        self._living = Deferred.fromCoroutine(self._live())
        self._living.addErrback(self._died)

    def _died(self, failure: Failure) -> None:
        """
        The device is stopped, or has a bug.
        """
        if failure.check(CancelledError) is None:
            _log.failure("a device broke", failure)

    def stopService(self) -> Deferred[None]:
        """
        Close the connection.  What is kept will be sent at the next start, if
        the cache is a file.
        """
        super().stopService()
        living, self._living = self._living, None
        stopped: Deferred[None] = Deferred()
        stream = self._stream
        if living is not None:
            living.cancel()
        if self._news is not None:
            self._news.cancel()
            self._tellNews()
        readers, self._readers = self._readers, []
        for reader in readers:
            reader.cancel()
        if stream is None:
            stopped.callback(None)
        else:
            stream.whenGone().chainDeferred(stopped)
            stream.close("the device stops")
        stopped.addCallback(lambda _: self._close())
        return stopped

    def _close(self) -> None:
        """
        Keep nothing more: what the app has not done with comes again at the
        next start.
        """
        self._given.clear()
        self._cache.close()

    async def _live(self) -> None:
        """
        One connection after the other.
        """
        failures = 0
        while True:
            lasted = 0.0
            try:
                identity = await self._identify()
                reason, lasted = await self._converse(identity)
            except CancelledError:
                raise
            except (FCMError, ConnectError, OSError) as error:
                reason = describe(error)
            except Exception:
                # Ours or the application's, and no reason to be off for ever.
                _log.failure("a device failed to connect")
                reason = "a bug"
            if not self.running:
                # Stopped by somebody who was told, here, what will not be sent: that
                # cannot be cancelled.
                return
            if lasted >= STABLE:
                failures = 0
                delay = 0.0
            else:
                spread = 1 + JITTER * (2 * self._chance() - 1)
                delay = min(MOST, FIRST * 2**failures * spread)
                failures = min(failures + 1, 10)
            _log.warn(
                "the device is not connected: {reason}; again in {delay:.0f} s", reason=reason, delay=delay
            )
            await deferLater(self._clock, delay)

    async def _identify(self) -> Identity:
        """
        Know who this is, and the app's token.
        """
        identity = self._cache.identity
        if identity is None:
            identity = await self._http.checkIn(None)
            self._cache.identity = identity
        if self.token is None:
            try:
                self.token = await self._http.register(identity, self.senderID, self.category)
            except RegistrationRefused as error:
                if error.error == "AUTHENTICATION_FAILED":
                    self._forget()
                raise
            self._cache.setToken(self.senderID, self.category, self.token)
        return identity

    def _forget(self) -> None:
        """
        The server does not know this device: it is a new one.
        """
        _log.warn("the server does not know this device any more: it checks in anew")
        self._cache.forget()
        self.token = None

    async def _converse(self, identity: Identity) -> tuple[str, float]:
        """
        Connect, and stay connected.

        @return: why that ended, and how many seconds after the login.
        """
        session = DeviceSession(
            identity,
            f"fcmxmpp-{__version__}",
            self._cache.received(_NAMES),
            self._clock.seconds(),
            self._heartbeat,
        )
        stream = _Stream(self, session, self._clock)
        factory = Factory.forProtocol(lambda: stream)
        factory.noisy = False
        try:
            await self._endpoint.connect(factory)
            await stream.whenGone()
        finally:
            self._stream = None
            self._lost()
        lasted = 0.0 if stream.readySince is None else self._clock.seconds() - stream.readySince
        return stream.reason, lasted

    def _lost(self) -> None:
        """
        The connection is gone: what is now or never is never.
        """
        for key, sending in list(self._sending.items()):
            if sending.number is None:
                self._failed(key, "service_not_available")

    def connected(self, stream: _Stream) -> None:
        """
        There is a connection.
        """
        self._stream = stream

    def happened(self, stream: _Stream, output: Output) -> None:
        """
        Something happened on a connection.
        """
        if isinstance(output, LoggedIn):
            self._loggedIn(stream)
        elif isinstance(output, LoginRefused):
            # With another code it is the server that has a problem.
            if output.code == UNAUTHORIZED:
                self._forget()
        elif isinstance(output, UploadsAcknowledged):
            self._acknowledged(output.handles)
        elif isinstance(output, ServerHas):
            self._acknowledged([_number(each) for each in output.persistent_ids])
        else:
            assert isinstance(output, Received)
            self._received(stream, output)

    def _loggedIn(self, stream: _Stream) -> None:
        """
        The device is logged in: what waits is sent, in order.
        """
        stream.isReady = True
        stream.readySince = self._clock.seconds()
        _log.info("the device is connected")
        for key, sending in list(self._sending.items()):
            if not stream.isReady:
                # Somebody who was told that a message has failed has stopped the device.
                return
            self._upload(key, sending)
        readers, self._readers = self._readers, []
        for reader in readers:
            reader.callback(None)

    # Upstream.

    def _upload(self, key: object, sending: _Sending) -> None:
        """
        Send a message, if it is still of use.
        """
        assert self._stream is not None
        message = sending.message
        now = self._clock.seconds()
        waited = max(0.0, now - message.since)
        if message.time_to_live and waited > message.time_to_live:
            self._failed(key, "service_not_available")
            return
        stanza = uploadStanza(
            message.message_id,
            message.to,
            self.category,
            message.data,
            message.time_to_live,
            None if sending.number is None else str(sending.number),
            message.since,
            int(waited),
            self.token or "",
        )
        self._stream.upload(key, stanza.SerializeToString())

    def _acknowledged(self, keys: list[Any]) -> None:
        """
        The connection server has stored messages.
        """
        there = {key: self._sending[key] for key in keys if key in self._sending}
        self._cache.sent([sending.number for sending in there.values() if sending.number is not None])
        for key, sending in there.items():
            del self._sending[key]
            self._sentIDs.append(sending.message.message_id)
        self._tellLater()
        for sending in there.values():
            if sending.result is not None:
                sending.result.callback(None)

    def _failed(self, key: object, error: str) -> None:
        """
        A message will not be sent.
        """
        sending = self._sending.pop(key)
        if sending.number is not None:
            self._cache.sent([sending.number])
        self._failedIDs.append((sending.message.message_id, error))
        self._tellLater()
        if sending.result is not None:
            sending.result.errback(NotSent(error))

    def _tellLater(self) -> None:
        """
        Have the app told the news.
        """
        if self._news is None and (self._sentIDs or self._failedIDs):
            self._news = self._clock.callLater(BATCH, self._tellNews)

    def _tellNews(self) -> None:
        """
        Tell the app the news.
        """
        self._news = None
        sent, self._sentIDs = self._sentIDs, []
        failed, self._failedIDs = self._failedIDs, []
        if self._app is None:
            return
        if sent:
            self._app.messagesSent(sent)
        if failed:
            self._app.messagesFailed(failed)

    # Downstream.

    def _received(self, stream: _Stream, received: Received) -> None:
        """
        A message came.
        """
        try:
            message = readMail(received.stanza)
        except MalformedFrame as error:
            stream.close(str(error))
            return
        atOnce = received.stanza.immediate_ack
        if message.message_type == "send_error":
            self._failedIDs.append((message.message_id, message.data.get("error", "")))
            self._tellLater()
            stream.processed(received.streamID, atOnce)
            return
        if self._app is None:
            # Nobody to give it to: it stays where it is, for who comes later.
            return
        name = message.message_id
        if message.category != self.category or (name and not self._cache.isNew(name)):
            stream.processed(received.streamID, atOnce)
            return
        # What has no name is never one that has come before.
        key: object = name or object()
        if key in self._given:
            # Again, after a lost connection: it is this one that is to be told.
            last, numbers = self._given[key]
            self._given[key] = (stream, [*(numbers if last is stream else []), received.streamID])
            return
        self._given[key] = (stream, [received.streamID])

        def done(_: object) -> None:
            if key not in self._given:
                # The device has been stopped.
                return
            if name:
                self._cache.remember(name)
            last, numbers = self._given[key]
            for number in numbers:
                last.processed(number, atOnce)

        def over(result: object) -> object:
            self._given.pop(key, None)
            return result

        maybeDeferred(self._give, message).addCallback(done).addBoth(over).addErrback(
            lambda failure: _log.failure("the app failed on a message", failure)
        )

    def _give(self, message: ReceivedMessage) -> Any:
        """
        Give a message to the app.
        """
        if message.message_type == "deleted_messages":
            return self._app.messagesDeleted(_number(message.data.get("total_deleted", "")))
        given = self._app.messageReceived(message)
        return Deferred.fromCoroutine(given) if hasattr(given, "send") else given
