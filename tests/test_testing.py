"""
Tests for L{fcmxmpp.testing}, the test kit.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from fcmxmpp import testing
from fcmxmpp.delivery import Policy
from fcmxmpp.errors import MalformedPayload
from fcmxmpp.interfaces import (
    Acknowledged,
    Arrived,
    Handled,
    IReceiptHandler,
    ISessionObserver,
    IUpstreamHandler,
    LinkLost,
    LinkReady,
)
from fcmxmpp.messages import (
    RECEIPT_SENDER,
    Ack,
    DownstreamMessage,
    Receipt,
    ReceiptData,
    UpstreamAck,
    UpstreamMessage,
)
from fcmxmpp.testing import (
    MemoryNetwork,
    RecordingHandler,
    RecordingObserver,
    ScriptedConnectionServer,
    connectedPair,
)


def upstream(message_id: str) -> UpstreamMessage:
    """
    A message of a device.
    """
    return UpstreamMessage(from_="tok-A", message_id=message_id)


RECEIPT = Receipt(
    from_=RECEIPT_SENDER,
    message_id="dr2:m-1",
    data=ReceiptData(message_status="MESSAGE_SENT_TO_DEVICE", original_message_id="m-1"),
)


class End(Protocol):
    """
    One end of a connection.

    @ivar received: what has come.
    @ivar lost: why the connection ended.
    """

    def __init__(self) -> None:
        self.received = b""
        self.lost: list[Failure] = []

    def dataReceived(self, data: bytes) -> None:
        """
        Note what comes.
        """
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Note the end.
        """
        self.lost.append(reason)


class Ends(Factory):
    """
    Makes L{End}s.
    """

    noisy = False

    def __init__(self) -> None:
        self.made: list[End] = []

    def buildProtocol(self, addr: object) -> End:
        """
        Make one.
        """
        self.made.append(End())
        return self.made[-1]


class MemoryNetworkTests(SynchronousTestCase):
    """
    L{MemoryNetwork} makes connections without sockets.
    """

    def setUp(self) -> None:
        """
        A network, and a connection on it.
        """
        self.clock = Clock()
        self.servers, self.clients = Ends(), Ends()
        self.network = MemoryNetwork(self.clock, self.servers)
        self.client = self.successResultOf(self.network.connect(self.clients))
        (self.server,) = self.servers.made

    def test_endpoint(self) -> None:
        """
        It is an endpoint.
        """
        verifyObject(IStreamClientEndpoint, self.network)

    def test_bytes(self) -> None:
        """
        Bytes are carried to and fro when it is told so, and in no other way.
        """
        self.assertIs(self.clients.made[0], self.client)
        self.client.transport.write(b"one")
        self.server.transport.write(b"two")
        self.assertEqual((b"", b""), (self.server.received, self.client.received))
        self.network.pump()
        self.assertEqual((b"one", b"two"), (self.server.received, self.client.received))

    def test_untilThereAreNone(self) -> None:
        """
        They are carried until nobody has anything more to say.
        """

        def count(data: bytes, end: End) -> None:
            end.received += data
            if len(data) < 10:
                end.transport.write(data + b"x")

        for end in (self.client, self.server):
            end.dataReceived = lambda data, end=end: count(data, end)
        self.client.transport.write(b"x")
        self.network.pump()
        self.assertEqual(55, len(self.client.received) + len(self.server.received))

    def test_inTheMiddle(self) -> None:
        """
        Whoever is given bytes may have more carried: nobody is given any before
        having done with the last ones, which no parser would take well.
        """
        calls: list[str] = []

        def taken(data: bytes) -> None:
            calls.append(f"begin {data.decode()}")
            self.client.transport.write(b"x" * (len(data) - 1))
            self.network.pump()
            self.network.advance(1)
            calls.append(f"end {data.decode()}")

        self.server.dataReceived = taken
        self.client.transport.write(b"xx")
        self.network.pump()
        self.assertEqual(["begin xx", "end xx", "begin x", "end x"], calls)
        self.network.pump()

    def test_close(self) -> None:
        """
        What was written before the close arrives before it; both ends are told
        of it once.
        """
        self.client.transport.write(b"bye")
        self.client.transport.loseConnection()
        self.assertEqual(1, self.network.connections)
        self.network.pump()
        self.assertEqual(b"bye", self.server.received)
        self.assertEqual((1, 1), (len(self.client.lost), len(self.server.lost)))
        self.assertEqual(0, self.network.connections)

    def test_abort(self) -> None:
        """
        So they are of an abort.
        """
        self.server.transport.abortConnection()
        self.network.pump()
        self.assertEqual((1, 1), (len(self.client.lost), len(self.server.lost)))

    def test_connections(self) -> None:
        """
        There may be many connections, and each has two ends of its own.
        """
        other = self.successResultOf(self.network.connect(self.clients))
        self.assertEqual((2, 2), (self.network.attempts, self.network.connections))
        other.transport.write(b"other")
        self.network.pump()
        self.assertEqual([b"", b"other"], [server.received for server in self.servers.made])
        self.client.transport.loseConnection()
        self.network.pump()
        self.assertEqual((1, []), (self.network.connections, other.lost))

    def test_refuse(self) -> None:
        """
        While it is told to, it refuses, and counts that; connections that
        there are stay.
        """
        self.network.refuse = True
        self.failureResultOf(self.network.connect(self.clients), ConnectionRefusedError)
        self.assertEqual((2, 1), (self.network.attempts, self.network.connections))
        self.assertEqual((1, 1), (len(self.clients.made), len(self.servers.made)))
        self.network.refuse = False
        self.successResultOf(self.network.connect(self.clients))

    def test_cut(self) -> None:
        """
        All connections break: what is under way is lost, and both ends of each
        are told at once, and once.
        """
        other = self.successResultOf(self.network.connect(self.clients))
        self.client.transport.write(b"lost")
        self.server.transport.write(b"lost")
        self.network.cut()
        self.network.pump()
        for end in (self.client, self.server, other, self.servers.made[1]):
            self.assertEqual(b"", end.received)
            (reason,) = end.lost
            self.assertTrue(reason.check(ConnectionLost))
        self.assertEqual(0, self.network.connections)

    def test_cutWhileClosing(self) -> None:
        """
        A connection that is being closed is cut like any other.
        """
        self.client.transport.loseConnection()
        self.network.cut()
        self.assertEqual((1, 1), (len(self.client.lost), len(self.server.lost)))

    def test_cutWhenTold(self) -> None:
        """
        If one end cuts the connection when it is told of its end, each is
        still told once.
        """
        lost: list[str] = []

        def serverLost(reason: object) -> None:
            lost.append("server")
            self.network.cut()

        self.server.connectionLost = serverLost
        self.client.connectionLost = lambda reason: lost.append("client")
        self.client.transport.loseConnection()
        self.network.pump()
        self.assertEqual(["client", "server"], sorted(lost))

    def test_connectWhenCut(self) -> None:
        """
        A connection that is made because another was cut is not cut with it.
        """
        made: list[Any] = []
        self.client.connectionLost = lambda reason: made.append(
            self.successResultOf(self.network.connect(self.clients))
        )
        self.network.cut()
        self.assertEqual((1, []), (self.network.connections, made[0].lost))

    def test_silent(self) -> None:
        """
        While it is silent it carries nothing, and nobody hears of an end; what
        was written is carried later.
        """
        self.network.silent = True
        self.client.transport.write(b"late")
        self.network.pump()
        self.network.advance(100)
        self.assertEqual((b"", []), (self.server.received, self.server.lost))
        self.server.transport.loseConnection()
        self.network.pump()
        self.assertEqual([], self.client.lost)
        self.network.silent = False
        self.network.pump()
        self.assertEqual((b"late", 1), (self.server.received, len(self.client.lost)))

    def test_silentConnect(self) -> None:
        """
        Connections that are made meanwhile are as silent.
        """
        self.network.silent = True
        other = self.successResultOf(self.network.connect(self.clients))
        other.transport.write(b"x")
        self.network.pump()
        self.assertEqual((b"", 2), (self.servers.made[1].received, self.network.connections))

    def test_silentAbort(self) -> None:
        """
        Whoever aborts a connection is told of its end, be the network silent,
        as a socket would tell him; the other end is not.
        """
        self.network.silent = True
        self.client.transport.abortConnection()
        self.network.pump()
        self.assertEqual((1, 0), (len(self.client.lost), len(self.server.lost)))

    def test_advance(self) -> None:
        """
        Time passes in steps, and bytes are carried after each.
        """
        seen: list[tuple[float, bytes]] = []
        for second in (0.5, 1.0, 1.5, 2.0, 2.25):
            self.clock.callLater(second, self.client.transport.write, b"x")
        self.server.dataReceived = lambda data: seen.append((self.clock.seconds(), data))
        self.network.advance(2.25)
        self.assertEqual([(1.0, b"xx"), (2.0, b"xx"), (2.25, b"x")], seen)
        self.network.advance(1, step=0.25)
        self.assertEqual(3.25, self.clock.seconds())


class RecordingHandlerTests(SynchronousTestCase):
    """
    L{RecordingHandler} notes what it is given.
    """

    def test_interfaces(self) -> None:
        """
        It is a handler for messages and for receipts.
        """
        for interface in (IUpstreamHandler, IReceiptHandler):
            verifyObject(interface, RecordingHandler())

    def test_notes(self) -> None:
        """
        It notes messages and receipts, in order, and returns nothing.
        """
        handler = RecordingHandler()
        for message_id in ("m-1", "m-2"):
            self.assertIsNone(handler.messageReceived(upstream(message_id)))
        self.assertIsNone(handler.receiptReceived(RECEIPT))
        self.assertEqual([upstream("m-1"), upstream("m-2")], handler.messages)
        self.assertEqual((["m-1", "m-2"], [RECEIPT]), (handler.ids, handler.receipts))

    def test_answer(self) -> None:
        """
        It answers as it is told, and notes also what it fails on.
        """
        result = succeed(None)
        handler = RecordingHandler(lambda message: result)
        self.assertIs(result, handler.messageReceived(upstream("m-1")))
        self.assertIs(result, handler.receiptReceived(RECEIPT))

        def answer(message: object) -> None:
            raise ValueError

        handler.answer = answer
        self.assertRaises(ValueError, handler.messageReceived, upstream("m-2"))
        self.assertEqual(["m-1", "m-2"], handler.ids)


class RecordingObserverTests(SynchronousTestCase):
    """
    L{RecordingObserver} notes what happens.
    """

    def test_notes(self) -> None:
        """
        It is an observer, and notes events in order.
        """
        observer = RecordingObserver()
        verifyObject(ISessionObserver, observer)
        events = [LinkReady(1, 1), Arrived(upstream("m-1")), LinkReady(1, 2)]
        for event in events:
            observer.observed(event)
        self.assertEqual(
            (events, [LinkReady(1, 1), LinkReady(1, 2)]), (observer.events, observer.of(LinkReady))
        )


class ConnectedPairTests(SynchronousTestCase):
    """
    L{connectedPair} joins an app server and a connection server.
    """

    def makePair(self, handler: Any, *arguments: Any) -> testing.ConnectedPair:
        """
        Join them; when the test is over both have to stop without a trace.
        """
        pair = connectedPair(handler, *arguments)
        self.addCleanup(self.assertStops, pair)
        return pair

    def assertStops(self, pair: testing.ConnectedPair) -> None:
        """
        Assert that both ends stop and leave nothing behind.
        """
        stopped = pair.stop()
        pair.advance(11)
        self.successResultOf(stopped)
        self.successResultOf(pair.connectionServer.stopService())
        self.assertEqual([], pair.clock.getDelayedCalls())

    def test_example(self) -> None:
        """
        The example of the module's documentation is true.
        """
        handler = RecordingHandler()
        pair = self.makePair(handler)
        pair.device.send("m-1", {"op": "ping"})
        pair.pump()
        self.assertEqual(["m-1"], pair.device.delivered)
        self.assertEqual({"op": "ping"}, handler.messages[0].data)

    def test_loggedIn(self) -> None:
        """
        The app server is logged in from the beginning, and what it tells is
        noted.
        """
        pair = self.makePair(RecordingHandler())
        self.assertEqual((True, 1), (bool(pair.appServer.running), pair.network.connections))
        pair.device.send("m-1", {})
        pair.pump()
        self.assertEqual(
            [LinkReady, Arrived, Handled, Acknowledged], [type(event) for event in pair.observer.events]
        )

    def test_factory(self) -> None:
        """
        The handler may be made by a callable, which is given what to send by.
        """

        def make(sender: Any) -> RecordingHandler:
            return RecordingHandler(lambda m: sender.send(DownstreamMessage(to=m.from_, data={"re": "m"})))

        pair = self.makePair(make)
        pair.device.send("m-1", {})
        pair.pump()
        self.assertEqual((["m-1"], 1), (pair.device.delivered, len(pair.device.received)))

    def test_policy(self) -> None:
        """
        The policy is the app server's.
        """
        pair = self.makePair(RecordingHandler(lambda _: Deferred()), Policy(ack="received"))
        pair.device.send("m-1", {})
        pair.pump()
        self.assertEqual(["m-1"], pair.device.delivered)

    def test_grace(self) -> None:
        """
        So is the grace.
        """
        pair = self.makePair(RecordingHandler(lambda _: Deferred()), None, 2.0)
        pair.device.send("m-1", {}).addErrback(lambda _: None)
        pair.pump()
        stopped = pair.stop()
        pair.advance(1)
        self.assertNoResult(stopped)
        pair.advance(1)
        self.successResultOf(stopped)

    def test_cut(self) -> None:
        """
        A connection that is cut is made again, and nothing is lost with it.
        """
        handler = RecordingHandler()
        pair = self.makePair(handler)
        pair.device.send("m-1", {})
        pair.cut()
        pair.pump()
        self.assertEqual(["m-1"], pair.device.delivered)
        self.assertEqual(2, len(pair.observer.of(LinkReady)))

    def test_silence(self) -> None:
        """
        A network that has lost its route is found out, and done without.
        """
        pair = self.makePair(RecordingHandler())
        pair.network.silent = True
        pair.advance(91)
        pair.network.silent = False
        pair.advance(31)
        self.assertEqual(2, len(pair.observer.of(LinkReady)))
        pair.device.send("m-1", {})
        pair.pump()
        self.assertEqual(["m-1"], pair.device.delivered)

    def test_stopInSilence(self) -> None:
        """
        An app server can be stopped in a silent network: the connection is
        aborted when the peer does not answer the end of the stream.
        """
        pair = self.makePair(RecordingHandler())
        pair.network.silent = True
        stopped = pair.stop()
        pair.advance(11)
        self.addCleanup(setattr, pair.network, "silent", False)
        self.successResultOf(stopped)

    def test_backoffWithoutJitter(self) -> None:
        """
        There is no chance in it: delays are exact.
        """
        pair = self.makePair(RecordingHandler())
        pair.network.refuse = True
        pair.cut()
        self.assertEqual([0.0, 2.0], [event.retryIn for event in pair.observer.of(LinkLost)])


class ScriptedConnectionServerTests(SynchronousTestCase):
    """
    L{ScriptedConnectionServer} does what it is told.
    """

    def joined(self, handler: Any = None) -> tuple[ScriptedConnectionServer, Any]:
        """
        Join an app server to one; when the test is over it has to stop without
        a trace.
        """
        script = ScriptedConnectionServer()
        joined = script.joined(handler or RecordingHandler())
        self.addCleanup(self.assertStops, joined)
        return script, joined

    def assertStops(self, joined: Any) -> None:
        """
        Assert that the app server stops and leaves nothing behind.
        """
        self.successResultOf(joined.stop())
        self.assertEqual([], joined.clock.getDelayedCalls())

    def test_deliver(self) -> None:
        """
        It delivers messages and receipts, and notes the ACKs.
        """
        handler = RecordingHandler()
        script, joined = self.joined(handler)
        script.deliver(upstream("m-1"))
        script.deliver(RECEIPT)
        joined.pump()
        self.assertEqual(([upstream("m-1")], [RECEIPT]), (handler.messages, handler.receipts))
        self.assertEqual(["m-1", "dr2:m-1"], script.acks)
        self.assertEqual(
            [
                (script.stream, UpstreamAck(to="tok-A", message_id="m-1")),
                (script.stream, UpstreamAck(to=RECEIPT_SENDER, message_id="dr2:m-1")),
            ],
            script.received,
        )

    def test_write(self) -> None:
        """
        It sends any bytes.
        """
        handler = RecordingHandler()
        script, joined = self.joined(handler)
        script.write(
            b"<message><d:gcm xmlns:d='google:mobile:data'>"
            b'{"from":"tok-A","message_id":"m-1"}</d:gcm></message>'
        )
        joined.pump()
        self.assertEqual(["m-1"], handler.ids)

    def test_downstream(self) -> None:
        """
        It notes what the app server sends, with the stanza that it came in,
        and answers nothing.
        """
        script, joined = self.joined()
        message = DownstreamMessage(to="tok-A", message_id="m-1")
        result = joined.appServer.send(message)
        joined.pump()
        self.assertEqual([message], script.downstream)
        self.assertEqual("m-1", script.stanzas[0].attributes["id"])
        self.assertEqual('{"to":"tok-A","message_id":"m-1"}', script.stanzas[0].text)
        self.assertNoResult(result)
        script.deliver(Ack(message_id="m-1"))
        joined.pump()
        self.successResultOf(result)

    def test_onMessage(self) -> None:
        """
        It may be told what to do with each message, on the stream that it came
        on.
        """
        script, joined = self.joined()
        script.onMessage = lambda stream, message: stream.answer(Ack(message_id=message.message_id or ""))
        results = [joined.appServer.send(DownstreamMessage(to="tok-A")) for _ in range(3)]
        joined.pump()
        for result in results:
            self.successResultOf(result)

    def test_streams(self) -> None:
        """
        It knows the streams that are logged in, the newest last.
        """
        script, joined = self.joined()
        first = script.stream
        joined.cut()
        self.assertEqual([], script.streams)
        joined.pump()
        self.assertEqual((1, True), (len(script.streams), script.stream is not first))

    def test_names(self) -> None:
        """
        Each stream has an identifier of its own, and the resource that the app
        server wants, or else a fixed one.
        """
        script, joined = self.joined()
        first = script.stream.sid
        self.assertEqual("scripted", script.stream.resource)
        self.assertEqual("mine", script.bound(script.stream, "mine"))
        joined.cut()
        joined.pump()
        self.assertRegex(first, r"^[0-9A-F]{16}$")
        self.assertNotEqual(first, script.stream.sid)

    def test_refuse(self) -> None:
        """
        It lets in nobody if it is told so.
        """
        script, joined = self.joined()
        script.registry.letIn = False
        joined.cut()
        joined.pump()
        joined.advance(1)
        self.assertEqual([], script.streams)
        self.assertIn("login refused", joined.observer.of(LinkLost)[-1].reason)

    def test_malformed(self) -> None:
        """
        A message of the app server that is none fails the test at once.
        """
        script, _ = self.joined()
        stanza = b'<message><gcm xmlns="google:mobile:data">{</gcm></message>'
        self.assertRaises(MalformedPayload, script.stream.dataReceived, stanza)

    def test_notByTheSession(self) -> None:
        """
        What a real one does by its session this one does not.
        """
        script, _ = self.joined()
        self.assertIsNone(script.acknowledged(script.stream, upstream("m-1")))
        self.assertRaises(NotImplementedError, script.accept, script.stream, DownstreamMessage())


class ExportTests(SynchronousTestCase):
    """
    The kit is part of the package's public face.
    """

    def test_all(self) -> None:
        """
        Everything that it says it exports is there and documented.
        """
        for name in testing.__all__:
            value = getattr(testing, name)
            if not isinstance(value, str):
                self.assertTrue(value.__doc__, name)
