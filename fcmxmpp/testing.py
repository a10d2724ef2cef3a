"""
The test kit, for this package's own tests and for those of its users: an app
server and a connection server joined in memory, a handler that records, and a
connection server that does as it is told.  And what every store has to do, as
tests: see L{fcmxmpp.contracts}.

Nothing here is a stand-in for code of the package: the streams, the login and
the conversation are the real ones, only sockets and time are not.  A test of a
handler::

    pair = connectedPair(MyHandler())
    pair.device.send("m-1", {"op": "ping"})
    pair.pump()
    self.assertEqual(["m-1"], pair.device.delivered)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import ServerFactory
from twisted.internet.task import Clock
from twisted.test.iosim import FakeTransport, IOPump, connect
from zope.interface import implementer

from fcmxmpp.appserver import AppServer
from fcmxmpp.connection import Credentials
from fcmxmpp.contracts import EntrustedContract, InboxContract, OutboxContract
from fcmxmpp.delivery import Policy
from fcmxmpp.devicecontracts import MailboxesContract, RegistrationsContract
from fcmxmpp.elementstream import GCMStanza
from fcmxmpp.interfaces import AppServerEvent, IReceiptHandler, ISessionObserver, IStore, IUpstreamHandler
from fcmxmpp.messages import (
    DownstreamMessage,
    FromAppServer,
    Receipt,
    UpstreamAck,
    UpstreamMessage,
)
from fcmxmpp.payload import decodeFromAppServer
from fcmxmpp.server.registry import LoginGuard, Registry
from fcmxmpp.server.service import ConnectionServer
from fcmxmpp.server.simulated import SimulatedDevice
from fcmxmpp.server.stream import ServerStream
from fcmxmpp.stanza import serverStanza


__all__ = [
    "SENDER_ID",
    "SERVER_KEY",
    "ConnectedPair",
    "EntrustedContract",
    "InboxContract",
    "MailboxesContract",
    "MemoryNetwork",
    "OutboxContract",
    "RecordingHandler",
    "RecordingObserver",
    "RegistrationsContract",
    "ScriptedConnectionServer",
    "connectedPair",
]

#: Who the app servers of this kit log in as.
SENDER_ID = "987654321098"
SERVER_KEY = "EXAMPLE-SERVER-KEY"


class _End(FakeTransport):
    """
    One end of a connection in memory.
    """

    aborted = False
    dropped = False
    _told = False

    def abortConnection(self) -> None:
        """
        End the connection without waiting for the other end.
        """
        super().abortConnection()
        self.aborted = True

    def reportDisconnect(self) -> None:
        """
        Tell the protocol of the end, once.
        """
        if not self._told:
            self._told = True
            super().reportDisconnect()

    def drop(self) -> None:
        """
        End the connection at this end alone.
        """
        self.disconnecting = self.disconnected = self.dropped = True
        self.reportDisconnect()


@implementer(IStreamClientEndpoint)
class MemoryNetwork:
    """
    Connections in memory, and the endpoint that makes them.

    @ivar clock: the time.
    @ivar refuse: while true, connecting fails.
    @ivar silent: while true, connections are made but carry no byte, and
        neither end hears of what the other does: a network that lost its
        route.
    @ivar hold: while true, connecting takes until L{release}.
    @ivar attempts: how often a connection was asked for.
    """

    def __init__(self, clock: Clock, serverFactory: IProtocolFactory) -> None:
        self.clock = clock
        self._serverFactory = serverFactory
        self._pumps: list[IOPump] = []
        self.refuse = False
        self.silent = False
        self.hold = False
        self._held: list[tuple[Deferred[Any], IProtocolFactory]] = []
        self._isPumping = False
        self.attempts = 0

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """
        Make a connection.
        """
        self.attempts += 1
        if self.refuse:
            return fail(ConnectionRefusedError())
        if self.hold:
            connecting: Deferred[Any] = Deferred()
            self._held.append((connecting, protocolFactory))
            return connecting
        return succeed(self._connected(protocolFactory))

    def release(self) -> None:
        """
        Make the connections that were held, and hold no more.
        """
        self.hold = False
        held, self._held = self._held, []
        for connecting, protocolFactory in held:
            if not connecting.called:
                connecting.callback(self._connected(protocolFactory))

    def _connected(self, protocolFactory: IProtocolFactory) -> Any:
        """
        The protocol of a new connection.
        """
        address = IPv4Address("TCP", "192.0.2.1", 5235)
        client: Any = protocolFactory.buildProtocol(address)
        server: Any = self._serverFactory.buildProtocol(address)
        self._pumps.append(
            connect(
                server,
                _End(server, isServer=True, peerAddress=address),
                client,
                _End(client, isServer=False),
                greet=False,
                clock=self.clock,
            )
        )
        return client

    @property
    def connections(self) -> int:
        """
        How many connections there are.
        """
        return len([p for p in self._pumps if not (p.clientIO.disconnected and p.serverIO.disconnected)])

    def pump(self) -> None:
        """
        Carry bytes to and fro until there are none.

        Whoever is given some may call this, too: what there is then is carried
        after that, as by a real network, and not in the middle of it.
        """
        if self._isPumping:
            return
        self._isPumping = True
        try:
            self._pump()
        finally:
            self._isPumping = False

    def _pump(self) -> None:
        """
        Carry bytes to and fro until there are none.
        """
        for pump in list(self._pumps):
            for end, other in ((pump.clientIO, pump.serverIO), (pump.serverIO, pump.clientIO)):
                # In silence, whoever aborts is told by its own system, and
                # nothing crosses; the other end hears of it afterwards.
                if (end.aborted and self.silent) or (other.dropped and not self.silent):
                    end.drop()
        busy = not self.silent
        while busy:
            busy = False
            for pump in list(self._pumps):
                busy = pump.pump(advanceClock=False) or busy
            self._pumps = [
                p for p in self._pumps if not (p.clientIO.disconnected and p.serverIO.disconnected)
            ]

    def advance(self, seconds: float, step: float = 1.0) -> None:
        """
        Let time pass, in steps, carrying bytes after each.
        """
        while seconds > 0:
            self.clock.advance(min(step, seconds))
            seconds -= step
            self.pump()

    def cut(self) -> None:
        """
        Break all connections: what is under way is lost, at both ends.
        """
        pumps, self._pumps = self._pumps, []
        for pump in pumps:
            for end in (pump.clientIO, pump.serverIO):
                end.getOutBuffer()
                end.disconnectReason = ConnectionLost()
                end.drop()


@implementer(IUpstreamHandler, IReceiptHandler)
class RecordingHandler:
    """
    Notes what it is given, and answers as it is told.

    @ivar messages: the messages, in the order they came.
    @ivar receipts: the receipts.
    @ivar answer: is called with each, and its result returned; by default that
        is None, so everything is handled at once.
    """

    def __init__(self, answer: Callable[[UpstreamMessage | Receipt], Any] = lambda message: None) -> None:
        self.messages: list[UpstreamMessage] = []
        self.receipts: list[Receipt] = []
        self.answer = answer

    @property
    def ids(self) -> list[str]:
        """
        The C{message_id} of each message.
        """
        return [message.message_id for message in self.messages]

    def messageReceived(self, message: UpstreamMessage) -> Any:
        """
        See L{IUpstreamHandler.messageReceived}.
        """
        self.messages.append(message)
        return self.answer(message)

    def receiptReceived(self, receipt: Receipt) -> Any:
        """
        See L{IReceiptHandler.receiptReceived}.
        """
        self.receipts.append(receipt)
        return self.answer(receipt)


@implementer(ISessionObserver)
class RecordingObserver:
    """
    Notes what happens.

    @ivar events: the events, in order.
    """

    def __init__(self) -> None:
        self.events: list[AppServerEvent] = []

    def observed(self, event: AppServerEvent) -> None:
        """
        See L{ISessionObserver.observed}.
        """
        self.events.append(event)

    def of(self, kind: type) -> list[Any]:
        """
        The events of one kind.
        """
        return [event for event in self.events if isinstance(event, kind)]


class _Joined:
    """
    An app server, and whatever it is connected to in memory.

    @ivar clock: the time of both.
    @ivar network: what joins them.
    @ivar appServer: the app server, started.
    @ivar observer: what the app server told.
    """

    def __init__(
        self,
        factory: IProtocolFactory,
        clock: Clock,
        handler: Any,
        policy: Policy | None,
        grace: float,
        connections: int,
        store: IStore | None = None,
    ) -> None:
        self.clock = clock
        self.network = MemoryNetwork(clock, factory)
        self.observer = RecordingObserver()
        if store is not None and not store.running:
            store.startService()
        self.appServer = AppServer(
            self.network,
            Credentials(SENDER_ID, SERVER_KEY),
            handler,
            clock=clock,
            connections=connections,
            policy=policy,
            store=store,
            grace=grace,
            random=lambda: 0.0,
            observer=self.observer,
        )
        self.appServer.startService()
        self.pump()

    def pump(self) -> None:
        """
        Carry bytes to and fro until there are none.
        """
        self.network.pump()

    def advance(self, seconds: float, step: float = 1.0) -> None:
        """
        Let time pass, carrying bytes.
        """
        self.network.advance(seconds, step)

    def cut(self) -> None:
        """
        Break the connection.
        """
        self.network.cut()

    def stop(self) -> Deferred[Any]:
        """
        Stop the app server.

        @return: fires when it has stopped; L{pump} or L{advance} may be needed
            for that.
        """
        stopped: Deferred[Any] = self.appServer.stopService()
        self.pump()
        return stopped


class ConnectedPair(_Joined):
    """
    An app server and a connection server, joined in memory.

    @ivar connectionServer: the connection server.
    @ivar device: a device of this app server.
    """

    def __init__(
        self,
        handler: Any,
        policy: Policy | None = None,
        grace: float = 10.0,
        connections: int = 1,
        receipts: bool = False,
        store: IStore | None = None,
        clock: Clock | None = None,
    ) -> None:
        clock = clock or Clock()
        registry = Registry({SENDER_ID: SERVER_KEY})
        self.connectionServer = ConnectionServer(registry, clock, receipts=receipts)
        self.device = SimulatedDevice(self.connectionServer, SENDER_ID, "tok-A")
        super().__init__(self.connectionServer.factory, clock, handler, policy, grace, connections, store)


def connectedPair(
    handler: Any,
    policy: Policy | None = None,
    grace: float = 10.0,
    connections: int = 1,
    receipts: bool = False,
    store: IStore | None = None,
    clock: Clock | None = None,
) -> ConnectedPair:
    """
    An app server with this handler, logged in to a connection server, in
    memory.  What goes wrong there is said by
    C{pair.connectionServer.script}.

    @param handler: an L{IUpstreamHandler}, or a callable that is given the
        L{IDownstreamSender<fcmxmpp.interfaces.IDownstreamSender>} and returns
        one.
    @param connections: how many links the app server has.
    @param receipts: whether the connection server sends delivery receipts.
    @param store: the app server's, such as a
        L{MemoryStore<fcmxmpp.store.memory.MemoryStore>} with C{clock.seconds};
        started here, if it does not run, and never stopped: another pair, the
        next life of the app server, may go on with it.
    @param clock: the time; a new one from 0, if not given.
    """
    return ConnectedPair(handler, policy, grace, connections, receipts, store, clock)


class _Anyone(Registry):
    """
    A registry that lets in whoever is meant to be let in.
    """

    def __init__(self) -> None:
        super().__init__({})
        self.letIn = True

    def mayLogIn(self, senderID: str, key: str) -> bool:
        """
        See L{Registry.mayLogIn}.
        """
        return self.letIn


class _ScriptedStream(ServerStream):
    """
    A stream that only notes what the app server sends.
    """

    _script: ScriptedConnectionServer

    def _stanzaReceived(self, stanza: GCMStanza) -> None:
        """
        Note a message, undecoded and decoded.
        """
        self._script.stanzas.append(stanza)
        message = decodeFromAppServer(stanza.text)
        self._script.received.append((self, message))
        if self._script.onMessage is not None:
            self._script.onMessage(self, message)


class ScriptedConnectionServer:
    """
    A connection server that logs everybody in, and otherwise does nothing but
    what it is told: for whatever a well-behaved one does not do.

    @ivar streams: the streams that are logged in, the newest last.
    @ivar received: what came, each with the stream that it came on.
    @ivar stanzas: the same as stanzas.
    @ivar onMessage: is called with each.
    """

    def __init__(self) -> None:
        self.registry = _Anyone()
        self.guard = LoginGuard()
        self.streams: list[ServerStream] = []
        self.received: list[tuple[ServerStream, FromAppServer]] = []
        self.stanzas: list[GCMStanza] = []
        self.onMessage: Callable[[ServerStream, FromAppServer], None] | None = None
        self._count = 0

    def joined(
        self, handler: Any, policy: Policy | None = None, grace: float = 10.0, connections: int = 1
    ) -> _Joined:
        """
        An app server with this handler, joined to this in memory.
        """
        clock = Clock()
        return _Joined(self.factory(clock), clock, handler, policy, grace, connections)

    def factory(self, clock: Any) -> ServerFactory:
        """
        The factory to listen with.
        """
        script = self

        class Factory(ServerFactory):
            noisy = False

            def buildProtocol(self, addr: object) -> ServerStream:
                stream = _ScriptedStream(script, clock)
                stream._script = script
                return stream

        return Factory()

    @property
    def stream(self) -> ServerStream:
        """
        The newest stream.
        """
        return self.streams[-1]

    def write(self, data: bytes) -> None:
        """
        Send bytes, as they are, on the newest stream.
        """
        self.stream.transport.write(data)

    def deliver(self, message: Any) -> None:
        """
        Send a message on the newest stream.
        """
        self.write(serverStanza(message, self.stream.bareJID))

    @property
    def acks(self) -> list[str]:
        """
        The C{message_id} of each ACK that came.
        """
        return [message.message_id for _, message in self.received if isinstance(message, UpstreamAck)]

    @property
    def downstream(self) -> list[DownstreamMessage]:
        """
        The downstream messages that came.
        """
        return [message for _, message in self.received if isinstance(message, DownstreamMessage)]

    # What a stream needs: see fcmxmpp.server.stream.IRoutes.

    def newStreamID(self) -> str:
        """
        A stream identifier.
        """
        self._count += 1
        return f"{self._count:016X}"

    def bound(self, stream: ServerStream, resource: str | None) -> str:
        """
        Any resource will do.
        """
        return resource or "scripted"

    def ready(self, stream: ServerStream) -> None:
        """
        A stream is logged in.
        """
        self.streams.append(stream)

    def hasRoom(self, stream: ServerStream) -> None:
        """
        Nothing waits here.
        """

    def acknowledged(self, stream: ServerStream, message: UpstreamMessage | Receipt) -> None:
        """
        Never called, as nothing is sent by way of the session.
        """

    def accept(self, stream: ServerStream, message: DownstreamMessage) -> None:
        """
        Never called, as what comes is only noted.
        """
        raise NotImplementedError

    def lost(self, stream: ServerStream, unanswered: list[UpstreamMessage | Receipt]) -> None:
        """
        A stream is gone.
        """
        self.streams.remove(stream)
