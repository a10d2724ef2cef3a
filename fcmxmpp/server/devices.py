"""
The connection server's end of a device's connection, which speaks MCS.

The conversation is L{fcmxmpp.mcs.session.ServerSession}, what is said in it the
affair of L{PostOffice}; here is what is between these two and the socket.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime, ITCPTransport
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from fcmxmpp.errors import MalformedFrame
from fcmxmpp.mcs.conversation import UNAUTHORIZED
from fcmxmpp.mcs.session import (
    Confirmed,
    Delivered,
    Hangup,
    LoginAsked,
    Output,
    Overrun,
    Platform,
    ServerSession,
    Uploaded,
    Write,
)
from fcmxmpp.mcs.stanzas import mailStanza, readUpload
from fcmxmpp.registrations import Identity, Mail
from fcmxmpp.server.postoffice import PostOffice, noteFailure
from fcmxmpp.server.registry import LoginGuard


__all__ = ["DeviceFactory", "DeviceStream"]

_log = Logger()

#: How many connections there may be on which nobody has logged in; beyond that the
#: oldest makes room.
STRANGERS = 2000
#: How many connections there may be in all.
CONNECTIONS = 100_000
#: Seconds of silence before TCP looks whether the other machine is still there, and
#: between its looks, and how many looks in vain it makes.  Devices that move along
#: are silent for up to half an hour; a look wakes their radio.
KEEPALIVE = (1200, 60, 5)
#: Seconds that a device has to close its end, too.
CLOSING = 2.0
#: What both numbers of an identity are less than.
_LARGEST = 1 << 63


@implementer(IPushProducer)
class DeviceStream(Protocol):
    """
    A connection from a device.

    @ivar android_id: which device it is; 0 before the login.
    @ivar session: the conversation.
    @ivar reason: why the connection server has closed it; empty if it has not.
    """

    android_id = 0
    reason = ""

    def __init__(self, factory: DeviceFactory) -> None:
        self.factory: DeviceFactory = factory
        self._clock = factory.clock
        self._office = factory.office
        self.session = ServerSession(factory.clock.seconds())
        self._timer: IDelayedCall | None = None
        # Whether the transport has more to write than it likes.
        self._isFull = False
        # Whether the transport has been told to read nothing.
        self._isDeaf = False
        # Whether something waits until the device acknowledges, or lives at least.
        self._isStarved = False
        self._isOver = False
        # Which of the device's messages are stored, and are to be acknowledged
        # together.
        self._stored: list[int] | None = None

    @property
    def host(self) -> str:
        """
        Which machine the device is on.
        """
        assert self.transport is not None
        peer = self.transport.getPeer()
        return getattr(peer, "host", None) or str(peer)

    def connectionMade(self) -> None:
        """
        A device has connected.
        """
        transport: Any = self.transport
        transport.registerProducer(self, True)
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
            transport.setTcpKeepAlive(True)
            _setKeepAlive(transport)
        self._setTimer()
        self.factory.connected(self)

    def dataReceived(self, data: bytes) -> None:
        """
        Some bytes came.
        """
        if self._isOver:
            return
        self._carryOut(self.session.receive(data, self._clock.seconds()))
        self._listenOrNot()
        if self._isStarved and self.mayTake:
            self._isStarved = False
            self._office.deliver(self)

    def _listenOrNot(self) -> None:
        """
        Read nothing while too much has come that is not stored, or while the
        device does not read what it is answered.
        """
        isDeaf = (self.session.pausing or self._isFull) and not self._isOver
        if isDeaf != self._isDeaf:
            self._isDeaf = isDeaf
            transport: Any = self.transport
            if isDeaf:
                transport.pauseProducing()
            else:
                transport.resumeProducing()

    def _carryOut(self, outputs: list[Output]) -> None:
        """
        Do what the session wants done, in its order; writes that follow one
        another are one.
        """
        writes: list[bytes] = []
        for output in outputs:
            if isinstance(output, Write):
                writes.append(output.data)
                continue
            if writes:
                self._write(writes)
                writes = []
            if isinstance(output, Uploaded):
                self._upload(output)
            elif isinstance(output, Delivered):
                self._office.delivered(output.handles)
            elif isinstance(output, Overrun):
                self._office.givenUp(output.handles)
            elif isinstance(output, Confirmed):
                self._confirm(output.persistent_ids)
            elif isinstance(output, LoginAsked):
                self._logIn(output)
            else:
                assert isinstance(output, Hangup)
                if output.isFault:
                    _log.info(
                        "closed the connection of a device from {host}: {reason}",
                        host=self.host,
                        reason=output.reason,
                    )
                self._hangUp(output.abort)
        if writes:
            self._write(writes)

    def _write(self, writes: list[bytes]) -> None:
        """
        Write.
        """
        if not self._isOver:
            assert self.transport is not None
            self.transport.write(b"".join(writes))

    # The login.

    def _logIn(self, asked: LoginAsked) -> None:
        """
        A device says who it is.
        """
        request = asked.request
        if self.factory.guard.isBusy(self.host, self._clock.seconds()):
            self.end("too many logins from there are being refused")
            return
        identity = _identity(request.user, request.auth_token)
        if identity is None:
            self._refuse()
            return
        received = [one for each in request.received_persistent_id for one in each.split("|") if one]
        Deferred.fromCoroutine(self._check(identity, received)).addErrback(self._notChecked)

    async def _check(self, identity: Identity, received: list[str]) -> None:
        """
        See whether a device is who it says.
        """
        if not await self._office.isKnown(identity):
            if not self._isOver:
                self._refuse()
            return
        if self._isOver:
            return
        self.android_id = identity.android_id
        if received:
            await self._office.confirmed(self, received)
            if self._isOver:
                return
        self._carryOut(self.session.accept(self._clock.seconds()))
        self._setTimer()
        self.factory.loggedIn(self)
        self._office.opened(self)
        # What has come already, now that there is somebody to take it.
        self.dataReceived(b"")

    def _notChecked(self, failure: Failure) -> None:
        """
        It cannot be told who this is.
        """
        noteFailure("checking the login of a device failed", failure)
        self.end("its login cannot be checked")

    def _refuse(self) -> None:
        """
        Say no, and later each time.
        """
        self._cancelTimer()
        delay = self.factory.guard.refuse(self.host, self._clock.seconds())
        self._timer = self._clock.callLater(delay, self._refuseNow)

    def _refuseNow(self) -> None:
        """
        Say no.
        """
        self._timer = None
        _log.info("refused the login of a device from {host}", host=self.host)
        self._carryOut(self.session.refuse(UNAUTHORIZED, self._clock.seconds()))

    # What the post office wants: see IDeviceConnection.

    @property
    def mayTake(self) -> bool:
        """
        Whether this takes a mail now.
        """
        if self._isFull or self._isOver:
            return False
        if not self.session.room:
            self._isStarved = True
            return False
        return True

    def take(self, mail: Mail) -> None:
        """
        Send a mail.
        """
        message = mail.message
        handle: Mail | int = mail if message.delivery_receipt_requested else mail.number
        if self.session.platform is Platform.IOS and message.data.get("message_type") == "send_error":
            # It would be handed to the app as if the app server had sent it.
            self._office.givenUp([handle])
            return
        now = self._clock.seconds()
        self._carryOut(self.session.deliver(handle, mailStanza(mail, now), now))

    def stored(self, streamID: int) -> None:
        """
        What the device has sent is in safe hands, or cannot be helped.
        """
        if self._stored is not None:
            self._stored.append(streamID)
        elif not self._isOver:
            self._stored = [streamID]
            self._clock.callLater(0, self._acknowledge)

    def _acknowledge(self) -> None:
        """
        Acknowledge what is stored.
        """
        stored, self._stored = self._stored, None
        if not self._isOver:
            assert stored is not None
            self._carryOut(self.session.stored(stored, self._clock.seconds()))
            self._listenOrNot()

    def end(self, reason: str) -> None:
        """
        Close the connection.
        """
        self.reason = reason
        self._hangUp(False)

    def _upload(self, uploaded: Uploaded) -> None:
        """
        The device has sent a message.
        """
        try:
            upload = readUpload(
                uploaded.stanza, self.session.platform, self.android_id, self._clock.seconds()
            )
        except MalformedFrame as error:
            self.end(str(error))
            return
        self._office.upload(self, uploaded.streamID, upload)

    def _confirm(self, persistent_ids: list[str]) -> None:
        """
        The device says by their names which mails it has.
        """
        named = set(persistent_ids)
        # It may say so by their numbers, too; one receipt is enough.
        self.session.withdraw(lambda handle: isinstance(handle, Mail) and handle.persistent_id in named)
        self._office.confirmed(self, persistent_ids).addErrback(self._notConfirmed)

    def _notConfirmed(self, failure: Failure) -> None:
        """
        It cannot be stored what the device has: it gets it again.
        """
        noteFailure("forgetting what a device has got failed", failure)

    # The transport: see IPushProducer.

    def pauseProducing(self) -> None:
        """
        The transport has more to write than it likes.
        """
        self._isFull = True
        self._listenOrNot()

    def resumeProducing(self) -> None:
        """
        The transport takes more again.
        """
        self._isFull = False
        self._listenOrNot()
        self._office.deliver(self)

    def stopProducing(self) -> None:
        """
        The transport will never take any more; L{connectionLost} comes.
        """
        self._isFull = True

    # The end.

    def _setTimer(self) -> None:
        """
        Wake the session when it wants it.
        """
        self._cancelTimer()
        if self.session.wakeAt is not None and not self._isOver:
            delay = max(0.0, self.session.wakeAt - self._clock.seconds())
            self._timer = self._clock.callLater(delay, self._wake)

    def _wake(self) -> None:
        """
        The session's time has come.
        """
        self._timer = None
        self._carryOut(self.session.wake(self._clock.seconds()))
        if self._timer is None:
            self._setTimer()

    def _cancelTimer(self) -> None:
        """
        Have nothing happen by itself any more.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _hangUp(self, abort: bool) -> None:
        """
        Close the connection.
        """
        if self._isOver:
            return
        self._isOver = True
        self._cancelTimer()
        transport: Any = self.transport
        transport.unregisterProducer()
        if abort or self._isFull:
            # What does not read does not read the end either.
            transport.abortConnection()
        else:
            transport.loseConnection()
            self._timer = self._clock.callLater(CLOSING, self._abort)

    def _abort(self) -> None:
        """
        The device has not closed its end.
        """
        self._timer = None
        transport: Any = self.transport
        transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        The connection is gone.
        """
        self._isOver = True
        self._cancelTimer()
        self._office.closed(self)
        self.factory.lost(self)


class DeviceFactory(ServerFactory):
    """
    Builds a stream for each connection from a device.

    @ivar office: what serves the devices.
    @ivar guard: what slows down who tries identities.
    """

    noisy = False

    def __init__(
        self,
        office: PostOffice,
        clock: IReactorTime,
        connections: int = CONNECTIONS,
        strangers: int = STRANGERS,
    ) -> None:
        """
        @param connections: how many connections there may be in all.
        @param strangers: on how many of them nobody may have logged in.
        """
        self.office = office
        self.clock = clock
        self.guard = LoginGuard()
        self._most = connections
        self._mostStrangers = strangers
        self._connections: set[DeviceStream] = set()
        # Where nobody has logged in, the oldest first.
        self._strangers: OrderedDict[DeviceStream, None] = OrderedDict()
        self._idle: list[Deferred[None]] = []

    def buildProtocol(self, addr: object) -> DeviceStream | None:  # type: ignore[override]  # has a factory of its own
        """
        Build a stream, unless there are too many.
        """
        if len(self._connections) >= self._most:
            return None
        return DeviceStream(self)

    def connected(self, stream: DeviceStream) -> None:
        """
        A connection was made.
        """
        self._connections.add(stream)
        self._strangers[stream] = None
        if len(self._strangers) > self._mostStrangers:
            oldest, _ = self._strangers.popitem(last=False)
            oldest.end("too many have connected and not logged in")

    def loggedIn(self, stream: DeviceStream) -> None:
        """
        Somebody has logged in.
        """
        self._strangers.pop(stream, None)

    def lost(self, stream: DeviceStream) -> None:
        """
        A connection is gone.
        """
        self._connections.discard(stream)
        self._strangers.pop(stream, None)
        if not self._connections:
            idle, self._idle = self._idle, []
            for waiter in idle:
                waiter.callback(None)

    def stop(self) -> Deferred[None]:
        """
        Close every connection, and wait until all are closed.  Stop listening
        first.
        """
        stopped: Deferred[None] = Deferred()
        if not self._connections:
            stopped.callback(None)
            return stopped
        self._idle.append(stopped)
        for stream in list(self._connections):
            stream.end("this server stops")
        return stopped


def _identity(user: str, token: str) -> Identity | None:
    """
    Who a device says it is: two decimal numbers.
    """
    if not all(each.isascii() and each.isdigit() and len(each) < 20 for each in (user, token)):
        return None
    identity = Identity(int(user), int(token))
    # Nobody has a larger one, and no store could look for it.
    return identity if max(identity) < _LARGEST else None


def _setKeepAlive(transport: Any) -> None:
    """
    Have TCP look after a connection that is silent.
    """
    # Over TLS, too, this is the socket beneath.
    sock = getattr(transport, "socket", None)
    if isinstance(sock, socket.socket) and hasattr(socket, "TCP_KEEPIDLE"):
        for name, value in zip(("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"), KEEPALIVE, strict=True):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
