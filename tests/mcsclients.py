"""
A device's end of a connection that speaks MCS, frame by frame, and everything
that it needs to have somebody to talk to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from fcmxmpp.interfaces import IStore
from fcmxmpp.mcs import wire
from fcmxmpp.mcs.frames import FrameDecoder, Tag, encodeFrame
from fcmxmpp.registrations import Application, Identity
from fcmxmpp.server.devices import DeviceFactory
from fcmxmpp.server.postoffice import PostOffice
from fcmxmpp.server.registry import Registry
from fcmxmpp.server.service import ConnectionServer
from fcmxmpp.store.memory import MemoryStore
from tests.appservers import SENDERS, Client


__all__ = ["APP", "DeviceClient", "World", "fired"]

#: The app that the devices of these tests have.
APP = "org.example.app"

_MESSAGES: dict[int, Any] = {
    Tag.HEARTBEAT_PING: wire.HeartbeatPing,
    Tag.HEARTBEAT_ACK: wire.HeartbeatAck,
    Tag.LOGIN_REQUEST: wire.LoginRequest,
    Tag.LOGIN_RESPONSE: wire.LoginResponse,
    Tag.CLOSE: wire.Close,
    Tag.IQ_STANZA: wire.IqStanza,
    Tag.DATA_MESSAGE_STANZA: wire.DataMessageStanza,
}


def fired(deferred: Deferred[Any]) -> Any:
    """
    What a Deferred has fired with.
    """
    results: list[Any] = []
    deferred.addCallback(results.append)
    (result,) = results
    return result


class DeviceClient:
    """
    A device's end of a connection.

    @ivar stream: the server's end.
    @ivar version: what the server said first.
    @ivar frames: what it has said since, as tags and messages.
    """

    def __init__(self, factory: DeviceFactory, version: int = 41) -> None:
        self.stream: Any = factory.buildProtocol(None)
        self.transport = StringTransport()
        self.connected = True
        self._decoder = FrameDecoder()
        self.frames: list[tuple[int, Any]] = []
        self._pieces: list[bytes] | None = None
        self.stream.makeConnection(self.transport)
        self.stream.dataReceived(bytes([version]))

    @property
    def version(self) -> int | None:
        """
        What the server said first.
        """
        self.look()
        return self._decoder.version

    def look(self) -> list[tuple[int, Any]]:
        """
        What the server has said since the last look.
        """
        new = []
        for tag, body in self._decoder.feed(self.transport.value()):
            message = _MESSAGES[tag]()
            message.ParseFromString(body)
            new.append((tag, message))
        self.transport.clear()
        self.frames += new
        return new

    def send(self, tag: int, message: Any) -> None:
        """
        Send a frame.
        """
        frame = encodeFrame(tag, message.SerializeToString())
        if self._pieces is None:
            self.stream.dataReceived(frame)
        else:
            self._pieces.append(frame)

    @contextmanager
    def together(self) -> Iterator[None]:
        """
        Send all that is sent meanwhile in one piece.
        """
        self._pieces = []
        yield
        pieces, self._pieces = self._pieces, None
        self.stream.dataReceived(b"".join(pieces))

    def login(
        self, identity: Identity, received: list[str] | None = None, loginID: str = "chrome-99"
    ) -> list[tuple[int, Any]]:
        """
        Log in.

        @return: the answer.
        """
        self.send(
            Tag.LOGIN_REQUEST,
            wire.LoginRequest(
                id=loginID,
                domain="mcs.android.com",
                user=str(identity.android_id),
                resource=str(identity.android_id),
                auth_token=str(identity.security_token),
                auth_service=2,
                use_rmq2=True,
                received_persistent_id=received or [],
            ),
        )
        return self.look()

    def upload(
        self,
        message_id: str,
        data: dict[str, str] | None = None,
        to: str = "111@gcm.googleapis.com",
        category: str = APP,
        ttl: int = 3600,
        persistent_id: str | None = None,
        **fields: Any,
    ) -> None:
        """
        Send a message for an app server, as Chrome does.
        """
        stanza = wire.DataMessageStanza(
            **{"from": "gcm@chrome.com"}, id=message_id, to=to, category=category, ttl=ttl, **fields
        )
        if ttl or persistent_id:
            stanza.persistent_id = persistent_id or f"p-{message_id}"
        for key, value in (data or {}).items():
            stanza.app_data.add(key=key, value=value)
        self.send(Tag.DATA_MESSAGE_STANZA, stanza)

    def heartbeat(self, upTo: int | None = None) -> None:
        """
        Send a heartbeat.

        @param upTo: how many of the server's frames it acknowledges.
        """
        ping = wire.HeartbeatPing()
        if upTo is not None:
            ping.last_stream_id_received = upTo
        self.send(Tag.HEARTBEAT_PING, ping)

    def stanzas(self) -> list[Any]:
        """
        The data messages that have come since the last look.
        """
        return [message for tag, message in self.look() if tag == Tag.DATA_MESSAGE_STANZA]

    def acknowledged(self) -> int:
        """
        How many of our frames the server has acknowledged, by all that it has
        ever said.
        """
        self.look()
        return max(
            [getattr(message, "last_stream_id_received", 0) for tag, message in self.frames], default=0
        )

    def lose(self) -> None:
        """
        Have the connection end.
        """
        if self.connected:
            self.connected = False
            self.stream.connectionLost(Failure(ConnectionDone()))


class World:
    """
    A connection server with its post office, app servers and devices.

    @ivar clock: the time.
    @ivar store: what it keeps.
    @ivar server: the connection server, started.
    @ivar office: its post office.
    @ivar devices: for connections of devices.
    """

    def __init__(
        self, store: IStore | None = None, receipts: bool = True, clock: Clock | None = None
    ) -> None:
        self.clock = clock or Clock()
        if not self.clock.seconds():
            self.clock.advance(1_700_000_000)
        numbers = count(1)

        def randomBytes(size: int) -> bytes:
            return next(numbers).to_bytes(size, "big")

        self.store: Any = store or MemoryStore(self.clock.seconds)
        self.office = PostOffice(self.store.registrations, self.store.mailboxes, self.clock)
        self.server = ConnectionServer(
            Registry(SENDERS), self.clock, randomBytes, receipts, self.store.entrusted, self.office
        )
        self.office.server = self.server
        self.devices = DeviceFactory(self.office, self.clock)
        self.server.startService()
        self.office.start()

    def checkIn(self) -> Identity:
        """
        A new device.
        """
        identity: Identity = fired(self.store.registrations.checkIn(None))
        return identity

    def register(self, identity: Identity, senderID: str = "111", category: str = APP) -> str:
        """
        Register an app on a device.

        @return: its token.
        """
        application = Application(category=category, senderID=senderID)
        token: str = fired(self.store.registrations.register(identity, application))
        return token

    def connect(self, version: int = 41) -> DeviceClient:
        """
        Connect a device, without logging in.
        """
        return DeviceClient(self.devices, version)

    def device(
        self,
        identity: Identity,
        received: list[str] | None = None,
        loginID: str = "chrome-99",
        version: int = 41,
    ) -> DeviceClient:
        """
        Connect a device, and log in.
        """
        client = self.connect(version)
        client.login(identity, received, loginID)
        return client

    def appServer(self, senderID: str = "111") -> Client:
        """
        Connect an app server, and log in.
        """
        client = Client(self.server)
        answer = client.login(senderID)
        client.transport.write(answer[answer.index(b"</iq>") + 5 :])
        return client

    def settle(self) -> None:
        """
        Let be done what is to be done at once.
        """
        self.clock.advance(0)
