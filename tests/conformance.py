"""
What the tests of the conformance cases have in common: peers that say what no
peer of ours would, and what an app server and a connection server are tested
with.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from typing import Any
from xml.sax.saxutils import escape

from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import eventAsText, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.delivery import Policy
from fcmxmpp.messages import UpstreamMessage
from fcmxmpp.server.registry import Registry
from fcmxmpp.server.service import ConnectionServer
from fcmxmpp.server.simulated import DeliveryFailed, SimulatedDevice
from fcmxmpp.testing import SENDER_ID, SERVER_KEY, RecordingHandler, ScriptedConnectionServer, connectedPair


__all__ = [
    "BARE_JID",
    "BIND",
    "GOOD_KEY",
    "HEADER",
    "HOUR",
    "NOT_AUTHORIZED",
    "NS_STREAM_ERRORS",
    "RAW_BIND",
    "RAW_HEADER",
    "RAW_LOGIN",
    "RAW_MECHANISMS",
    "SUCCESS",
    "TEXTS",
    "AppServerCase",
    "LogText",
    "RawClient",
    "RawConnectionServer",
    "RawEnd",
    "ServerCase",
    "Step",
    "auth",
    "envelope",
    "idsIn",
    "plain",
    "rawBound",
    "upstream",
    "upstreamJSON",
]


HOUR = 3600
BARE_JID = f"{SENDER_ID}@gcm.googleapis.com"
NS_STREAM_ERRORS = "urn:ietf:params:xml:ns:xmpp-streams"
#: Every text that has a UTF-8 form.
TEXTS = st.text(st.characters(codec="utf-8"))


def upstream(message_id: str, from_: str = "tok-A", **data: str) -> UpstreamMessage:
    """
    What a device sends.
    """
    return UpstreamMessage(data=data, time_to_live=60, from_=from_, message_id=message_id)


def upstreamJSON(message_id: str, from_: str = "tok-A", data: dict[str, str] | None = None) -> str:
    """
    The same as JSON text.
    """
    return json.dumps(
        {"data": data or {}, "from": from_, "message_id": message_id, "category": "org.example"}
    )


def envelope(text: str) -> bytes:
    """
    A JSON text as a stanza of the connection server, escaped as XML wants it.
    """
    return f'<message><gcm xmlns="google:mobile:data">{escape(text)}</gcm></message>'.encode()


class LogText:
    """
    All that is logged during a test.

    @ivar events: the events.
    """

    def __init__(self, case: SynchronousTestCase) -> None:
        self.events: list[dict[str, Any]] = []
        observer = self.events.append
        globalLogPublisher.addObserver(observer)
        case.addCleanup(globalLogPublisher.removeObserver, observer)

    @property
    def lines(self) -> list[str]:
        """
        Each event as it would be written, with its traceback.
        """
        return [eventAsText(event, includeTimestamp=False, includeSystem=False) for event in self.events]

    @property
    def everything(self) -> str:
        """
        Everything that a log observer could write: the text, the traceback,
        the fields, the exception.
        """
        parts = self.lines
        for event in self.events:
            parts += [repr(value) for key, value in event.items() if not key.startswith("log_")]
            failure = event.get("log_failure")
            if failure is not None:
                parts += [failure.getTraceback(), repr(failure.value), str(failure.value)]
        return "\n".join(parts)


class RawEnd(Protocol):
    """
    The connection server's end of one connection, as raw as it gets.

    @ivar received: all bytes that came.
    @ivar lost: whether the connection is gone.
    """

    def __init__(self, owner: RawConnectionServer) -> None:
        self._owner = owner
        self._steps = list(owner.login)
        self._unread = b""
        self.received = b""
        self.lost = False

    def connectionMade(self) -> None:
        """
        Note it.
        """
        self._owner.ends.append(self)

    def dataReceived(self, data: bytes) -> None:
        """
        Note what comes, and answer it as far as the login goes.
        """
        self.received += data
        self._unread += data
        while self._steps and self._steps[0][0] in self._unread:
            (trigger, answer), *self._steps = self._steps
            before, _, self._unread = self._unread.partition(trigger)
            if callable(answer):
                answer(self, before + trigger)
            else:
                self.transport.write(answer)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Note it.
        """
        self.lost = True


RAW_HEADER = (
    b'<stream:stream from="gcm.googleapis.com" id="7C01D2A9E4B35F68" version="1.0"'
    b' xmlns:stream="http://etherx.jabber.org/streams" xmlns="jabber:client">'
)
RAW_MECHANISMS = (
    b'<stream:features><mechanisms xmlns="urn:ietf:params:xml:ns:xmpp-sasl"><mechanism>X-OAUTH2</mechanism>'
    b"<mechanism>PLAIN</mechanism></mechanisms></stream:features>"
)
RAW_SUCCESS = b'<success xmlns="urn:ietf:params:xml:ns:xmpp-sasl"/>'
RAW_BIND = b'<stream:features><bind xmlns="urn:ietf:params:xml:ns:xmpp-bind"/></stream:features>'


def rawBound(end: RawEnd, request: bytes) -> None:
    """
    Answer a bind request.
    """
    requested = re.search(rb"\bid=['\"]([^'\"]*)['\"]", request[request.rindex(b"<iq") :])
    assert requested is not None
    end.transport.write(
        b'<iq type="result" id="%b"><bind xmlns="urn:ietf:params:xml:ns:xmpp-bind">'
        b"<jid>%b/raw</jid></bind></iq>" % (requested[1], BARE_JID.encode())
    )


#: What is waited for, and what is answered: bytes, or something to call.
Step = tuple[bytes, Any]
RAW_LOGIN: list[Step] = [
    (b"<stream:stream", RAW_HEADER + RAW_MECHANISMS),
    (b"</auth>", RAW_SUCCESS),
    (b"<stream:stream", RAW_HEADER + RAW_BIND),
    (b"</iq>", rawBound),
]


class RawConnectionServer(ScriptedConnectionServer):
    """
    A connection server that logs everybody in by rote, and then says nothing
    at all, not even that it hears.

    @ivar login: the steps of the login of the connections to come.
    @ivar ends: its end of each connection, the newest last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.login = RAW_LOGIN
        self.ends: list[RawEnd] = []

    def factory(self, clock: Any) -> ServerFactory:
        """
        See L{ScriptedConnectionServer.factory}.
        """
        raw = self

        class Factory(ServerFactory):
            noisy = False

            def buildProtocol(self, addr: object) -> RawEnd:
                return RawEnd(raw)

        return Factory()

    @property
    def end(self) -> RawEnd:
        """
        Its end of the newest connection.
        """
        return self.ends[-1]

    def write(self, data: bytes) -> None:
        """
        See L{ScriptedConnectionServer.write}.
        """
        self.end.transport.write(data)


class AppServerCase(SynchronousTestCase):
    """
    Tests of an app server in memory.
    """

    def joined(
        self,
        script: ScriptedConnectionServer,
        handler: Any = None,
        policy: Policy | None = None,
        grace: float = 10.0,
        connections: int = 1,
    ) -> Any:
        """
        An app server joined to a scripted connection server.
        """
        handler = RecordingHandler() if handler is None else handler
        joined = script.joined(handler, policy, grace, connections)
        self.addCleanup(self.finish, joined, grace)
        return joined

    def pair(
        self,
        handler: Any = None,
        policy: Policy | None = None,
        grace: float = 10.0,
        connections: int = 1,
    ) -> Any:
        """
        An app server joined to a connection server.
        """
        handler = RecordingHandler() if handler is None else handler
        pair = connectedPair(handler, policy, grace, connections)
        self.addCleanup(self.finish, pair, grace)
        return pair

    def finish(self, joined: Any, grace: float) -> None:
        """
        Stop the app server: then nothing may be left of it.
        """
        stopped = joined.stop()
        joined.advance(grace + 10.0)
        self.successResultOf(stopped)
        self.assertEqual([], joined.clock.getDelayedCalls(), "calls are left on the clock")
        self.assertEqual(0, joined.network.connections, "connections are left")

    def handled(self, handler: RecordingHandler, ids: list[str], what: str = "") -> None:
        """
        Exactly these messages were given to the handler, in this order.
        """
        self.assertEqual(ids, handler.ids, what)

    def stays(self, script: ScriptedConnectionServer, joined: Any, what: str = "") -> None:
        """
        The first stream is still there, and works.
        """
        self.assertEqual(1, joined.network.attempts, what)
        before = len(script.acks)
        script.deliver(upstream("still-there", "tok-still-there"))
        joined.pump()
        self.assertEqual(["still-there"], script.acks[before:], what)


class Wire(StringTransport):
    """
    The transport of a connection to a server, of which the other end is the
    test.

    Like a real one, it drops what is written after it has been told to close.
    """

    def write(self, data: bytes) -> None:
        """
        Note what the server says.
        """
        if not self.disconnecting:
            super().write(data)


HEADER = (
    '<stream:stream to="gcm.googleapis.com" version="1.0" xmlns="jabber:client" '
    'xmlns:stream="http://etherx.jabber.org/streams">'
)


def plain(authzid: str, authcid: str, key: str) -> str:
    """
    The message of SASL PLAIN.
    """
    return b64encode(f"{authzid}\0{authcid}\0{key}".encode()).decode()


def auth(blob: str) -> str:
    """
    The request to log in with that.
    """
    return f'<auth mechanism="PLAIN" xmlns="urn:ietf:params:xml:ns:xmpp-sasl">{blob}</auth>'


GOOD_KEY = plain("", BARE_JID, SERVER_KEY)
BIND = (
    '<iq type="set" id="b1"><bind xmlns="urn:ietf:params:xml:ns:xmpp-bind">'
    "<resource>node7</resource></bind></iq>"
)
SUCCESS = '<success xmlns="urn:ietf:params:xml:ns:xmpp-sasl"/>'
NOT_AUTHORIZED = (
    '<failure xmlns="urn:ietf:params:xml:ns:xmpp-sasl"><not-authorized/></failure></stream:stream>'
)


class RawClient:
    """
    A client of a connection server: raw bytes in, raw bytes out.

    @ivar stream: the server's end.
    @ivar transport: what the server writes to.
    """

    def __init__(self, factory: ServerFactory, host: str = "192.0.2.7") -> None:
        address = IPv4Address("TCP", host, 40_000)
        self.transport = Wire(peerAddress=address)
        stream = factory.buildProtocol(address)
        assert stream is not None
        self.stream = stream
        self.stream.makeConnection(self.transport)

    def take(self) -> str:
        """
        What the server has said since the last time.
        """
        said: bytes = self.transport.value()
        self.transport.clear()
        return said.decode()

    def send(self, text: str | bytes) -> str:
        """
        Say something.

        @return: what the server says to that at once.
        """
        self.stream.dataReceived(text if isinstance(text, bytes) else text.encode())
        return self.take()

    def login(self, blob: str = GOOD_KEY, bind: str = BIND) -> str:
        """
        Log in.

        @return: what the server says to the bind.
        """
        self.send(HEADER)
        self.send(auth(blob))
        self.send(HEADER)
        return self.send(bind)

    def say(self, text: str) -> str:
        """
        Send a payload.
        """
        return self.send(f'<message id=""><gcm xmlns="google:mobile:data">{escape(text)}</gcm></message>')

    def ack(self, message_id: str, to: str = "tok-A") -> str:
        """
        Acknowledge an upstream message.
        """
        return self.say(f'{{"to":"{to}","message_id":"{message_id}","message_type":"ack"}}')

    @property
    def closing(self) -> bool:
        """
        Whether the server closes the connection.
        """
        return self.transport.disconnecting

    def lose(self) -> None:
        """
        The connection is gone.
        """
        self.stream.connectionLost(Failure(ConnectionLost()))


def idsIn(said: str) -> list[str]:
    """
    The C{message_id} of each payload.
    """
    return re.findall(r'"message_id":"([^"]*)"', said)


class ServerCase(SynchronousTestCase):
    """
    Tests of a connection server, with clients that say what no client of ours
    would.

    @ivar server: the connection server, started.
    @ivar device: a device of the sender.
    """

    def setUp(self) -> None:
        """
        Start a connection server, and see to it that it leaves nothing.
        """
        self.clock = Clock()
        self.serial = 0
        self.server = self.start({SENDER_ID: SERVER_KEY, "111": "ANOTHER-KEY"})
        self.device = SimulatedDevice(self.server, SENDER_ID, "tok-A")

    def start(self, senders: dict[str, str]) -> ConnectionServer:
        """
        Start a connection server.
        """
        server = ConnectionServer(Registry(senders), self.clock, self.randomBytes)
        server.startService()
        self.clients: list[RawClient] = []
        self.addCleanup(self.finish, server, self.clients)
        return server

    def randomBytes(self, size: int) -> bytes:
        """
        Bytes that are not random, but not the same either.
        """
        self.serial += 1
        return self.serial.to_bytes(size, "big")

    def finish(self, server: ConnectionServer, clients: list[RawClient]) -> None:
        """
        Stop the connection server: then nothing may be left of it.
        """
        stopped = server.stopService()
        for client in clients:
            if client.transport.connected:
                self.assertTrue(client.closing, "a connection is left open")
                self.lose(client)
        self.successResultOf(stopped)
        self.assertEqual([], self.clock.getDelayedCalls(), "calls are left on the clock")

    def client(self, host: str = "192.0.2.7") -> RawClient:
        """
        A new connection.
        """
        client = RawClient(self.server.factory, host)
        self.clients.append(client)
        return client

    def loggedIn(self, resource: str = "node7") -> RawClient:
        """
        A new connection that is logged in.
        """
        client = self.client()
        _, _, more = client.login(bind=BIND.replace("node7", resource)).partition("</iq>")
        # What waited comes with the answer to the bind.
        client.transport.write(more.encode())
        return client

    def lose(self, client: RawClient) -> None:
        """
        A connection is gone.
        """
        client.transport.connected = False
        client.lose()

    def send(self, *ids: str, time_to_live: int | None = None) -> None:
        """
        Messages of the device.
        """
        for message_id in ids:
            result = self.device.send(message_id, {"op": "ECHO"}, time_to_live)
            result.addErrback(lambda failure: failure.trap(DeliveryFailed) and None)

    def alive(self, client: RawClient, what: str = "") -> None:
        """
        The stream is still there.
        """
        self.assertFalse(client.closing, what)
        self.assertEqual(
            '<iq type="result" id="alive"/>',
            client.send('<iq type="get" id="alive"><ping xmlns="urn:xmpp:ping"/></iq>'),
            what,
        )
