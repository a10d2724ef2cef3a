"""
Tests of how a connection server drains its streams (conformance S11): it
announces their end, takes ACKs and refuses what is new until then, and closes
them.
"""

from __future__ import annotations

from typing import Any

from twisted.logger import capturedLogs, eventAsText

from fcmxmpp.messages import WINDOW
from fcmxmpp.session import OVERRUN
from tests.test_server_service import INSTANT, OPEN, ServiceCase


CONTROL = (
    b'<message><data:gcm xmlns:data="google:mobile:data">'
    b'{"message_type":"control","control_type":"CONNECTION_DRAINING"}</data:gcm></message>'
)
END = b"</stream:stream>"


class DrainTests(ServiceCase):
    """
    One stream, from the announcement to its end.
    """

    def drained(self, grace: float = 10.0, *ids: str) -> tuple[Any, Any]:
        """
        Start a server, have it deliver messages to an app server, and drain
        the stream of that.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.submit(*ids)
        client.said()
        harness.server.drain(grace)
        self.assertEqual(CONTROL, client.said())
        return harness, client

    def test_S11_order(self) -> None:
        """
        The announcement, a refusal for each new message while ACKs are taken,
        and the end of the stream, in that order; no device gets what was
        refused.
        """
        harness, client = self.drained(10, "u-1", "u-2")
        answer = client.downstream(message_id="m-1", to="tok-A", data={"k": "v"})
        self.assertEqual(
            ("nack", "tok-A", "m-1", "CONNECTION_DRAINING"),
            (answer["message_type"], answer["from"], answer["message_id"], answer["error"]),
        )
        client.ack("u-1")
        self.assertEqual((["u-1"], []), (harness.app.delivered, harness.app.received))
        harness.clock.advance(10 - INSTANT)
        client.ack("u-2")
        self.assertEqual((b"", ["u-1", "u-2"]), (client.said(), harness.app.delivered))
        self.assertFalse(client.transport.disconnecting)
        harness.clock.advance(INSTANT)
        self.assertEqual((END, True), (client.said(), client.transport.disconnecting))

    def test_noLimitOnRefusals(self) -> None:
        """
        However many messages come, they are refused for that reason, because
        it sends them elsewhere.
        """
        _, client = self.drained()
        for number in range(WINDOW + OVERRUN + 5):
            answer = client.downstream(message_id=f"m-{number}", to="tok-A")
            self.assertEqual("CONNECTION_DRAINING", answer["error"])

    def test_lateAnswers(self) -> None:
        """
        What was taken before is answered.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.server.script.delay(5)
        client.sendDownstream(message_id="m-1", to="tok-A")
        harness.server.drain(10)
        self.assertEqual(CONTROL, client.said()[-len(CONTROL) :])
        harness.clock.advance(5)
        self.assertEqual(["ack"], [answer["message_type"] for answer in client.answers()])

    def test_pings(self) -> None:
        """
        Its pings are answered.
        """
        _, client = self.drained()
        answer = client.send(b'<iq type="get" id="p"><ping xmlns="urn:xmpp:ping"/></iq>')
        self.assertEqual(b'<iq type="result" id="p"/>', answer)

    def test_foreignAck(self) -> None:
        """
        An ACK of what was never delivered there is refused as ever.
        """
        _, client = self.drained()
        client.ack("u-9")
        self.assertIn(b'code="406"', client.said())

    def test_twice(self) -> None:
        """
        A second drain says nothing, and does not put the end off or forward.
        """
        harness, client = self.drained(10)
        harness.clock.advance(4)
        for grace in (1, 100):
            harness.server.drain(grace)
        self.assertEqual(b"", client.said())
        harness.clock.advance(6 - INSTANT)
        self.assertFalse(client.transport.disconnecting)
        harness.clock.advance(INSTANT)
        self.assertTrue(client.transport.disconnecting)

    def test_clientCloses(self) -> None:
        """
        An app server that does not wait for the end may close it; no timer is
        left then.
        """
        harness, client = self.drained()
        self.assertEqual(END, client.send(END))
        client.lose()
        self.assertEqual([], harness.clock.getDelayedCalls())

    def test_lost(self) -> None:
        """
        So it is when the connection breaks.
        """
        harness, client = self.drained()
        client.lose()
        self.assertEqual([], harness.clock.getDelayedCalls())

    def test_dropped(self) -> None:
        """
        Or is broken from here.
        """
        harness, client = self.drained()
        harness.server.dropConnections()
        self.assertTrue(client.transport.disconnected)
        client.lose()
        self.assertEqual([], harness.clock.getDelayedCalls())

    def test_stop(self) -> None:
        """
        A server that stops meanwhile says so, and does not wait for the grace.
        """
        harness, client = self.drained(1000, "u-1")
        stopped = harness.server.stopService()
        self.assertTrue(client.said().endswith(b"</stream:error></stream:stream>"))
        self.assertTrue(client.transport.disconnecting)
        client.lose()
        self.successResultOf(stopped)
        self.assertEqual([], harness.clock.getDelayedCalls())

    def test_stopWhileClosing(self) -> None:
        """
        Nor is a timer left of a stream that is being closed already.
        """
        harness, client = self.drained(1)
        harness.clock.advance(1)
        self.assertTrue(client.transport.disconnecting)
        stopped = harness.server.stopService()
        client.lose()
        self.successResultOf(stopped)
        self.assertEqual([], harness.clock.getDelayedCalls())

    def test_doesNotClose(self) -> None:
        """
        An app server that reads no more is left in the end.
        """
        harness, client = self.drained(5)
        client.stream.pauseProducing()
        harness.clock.advance(5)
        self.assertEqual((True, False), (client.transport.disconnecting, client.transport.disconnected))
        harness.clock.advance(10)
        self.assertTrue(client.transport.disconnected)

    def test_log(self) -> None:
        """
        The log says whose stream is drained, and until when.
        """
        harness = self.makeServer()
        harness.client()
        with capturedLogs() as events:
            harness.server.drain(7.5)
            harness.server.drain(7.5)
        self.assertEqual(
            ["draining an app server of sender 111 at 192.0.2.1:1; closed in 7.5 s"],
            [eventAsText(e, includeTimestamp=False, includeSystem=False) for e in events],
        )


class NotLoggedInTests(ServiceCase):
    """
    Streams that are drained before they are bound.
    """

    def test_notMeant(self) -> None:
        """
        Those that have not logged in are not drained with the others: a login
        goes on.
        """
        harness = self.makeServer()
        client = harness.connect()
        harness.server.drain(0)
        self.assertEqual((b"", False), (client.said(), client.transport.disconnecting))
        self.assertIn(b"<jid>", client.login())

    def test_closed(self) -> None:
        """
        If one is meant it is closed at once, at whichever step, and what it
        says after that is not listened to.
        """
        for said in (b"", OPEN):
            harness = self.makeServer()
            client = harness.connect()
            client.send(said)
            harness.server.drain(10, [client.stream])
            self.assertEqual(END if said else b"", client.said())
            self.assertTrue(client.transport.disconnecting)
            client.login()
            self.assertEqual([], harness.server.streams())
            # One is left, which aborts.
            self.assertEqual(1, len(harness.clock.getDelayedCalls()))
            harness.clock.advance(10)
            self.assertTrue(client.transport.disconnected)


class RoutingTests(ServiceCase):
    """
    What becomes of what devices send, while streams are drained.
    """

    def test_never(self) -> None:
        """
        Nothing new goes to a stream that is being drained, however busy the
        other one is.
        """
        harness = self.makeServer()
        old = harness.client()
        old.said()
        harness.server.drain(10)
        old.said()
        harness.submit("u-0")
        new = harness.client()
        ids = [f"u-{number}" for number in range(1, WINDOW + 1)]
        harness.submit(*ids)
        self.assertEqual((b"", ["u-0", *ids[:-1]]), (old.said(), new.ids()))
        new.ack("u-0")
        self.assertEqual((b"", ids[-1:]), (old.said(), new.ids()))

    def test_acksMakeNoRoom(self) -> None:
        """
        ACKs on it do not make room there.
        """
        harness = self.makeServer()
        old = harness.client()
        ids = [f"u-{number}" for number in range(WINDOW + 3)]
        harness.submit(*ids)
        old.said()
        harness.server.drain(10)
        self.assertEqual(CONTROL, old.said())
        old.ack(*ids[:5])
        self.assertEqual((b"", ids[:5]), (old.said(), harness.app.delivered))
        self.assertEqual(ids[WINDOW:], harness.client().ids())

    def test_nowOrNever(self) -> None:
        """
        To a message that is for now or never it is no stream.
        """
        harness = self.makeServer()
        harness.client()
        harness.server.drain(10)
        harness.submit("u-1", time_to_live=0)
        self.assertEqual([("u-1", "TTL_EXCEEDED")], harness.app.failed)

    def test_redelivered(self) -> None:
        """
        What was not acknowledged on it goes out on another stream when it is
        gone, in order, and not before.
        """
        harness = self.makeServer()
        old = harness.client()
        harness.submit("u-1", "u-2", "u-3")
        harness.server.drain(10)
        new = harness.client()
        new.said()
        old.ack("u-2")
        harness.clock.advance(10)
        self.assertTrue(old.transport.disconnecting)
        self.assertEqual(b"", new.said())
        # On the way when the stream was closed: taken all the same.
        old.ack("u-3")
        self.assertEqual(["u-2", "u-3"], harness.app.delivered)
        old.lose()
        self.assertEqual(["u-1"], new.ids())
        self.assertEqual(1, harness.server.statistics.redelivered)

    def test_some(self) -> None:
        """
        Some streams can be drained and the others left alone; those of one
        sender can be asked for.
        """
        harness = self.makeServer()
        first, second, other = harness.client(), harness.client(), harness.client("222")
        for client in (first, second, other):
            client.said()
        streams = harness.server.streams("111")
        self.assertEqual({first.stream, second.stream}, set(streams))
        self.assertEqual(3, len(harness.server.streams()))
        self.assertEqual([], harness.server.streams("333"))
        harness.server.drain(10, [first.stream])
        self.assertEqual((CONTROL, b"", b""), (first.said(), second.said(), other.said()))
        harness.server.drain(10, harness.server.streams("111"))
        self.assertEqual((b"", CONTROL, b""), (first.said(), second.said(), other.said()))
        # They are there until they are gone.
        self.assertEqual(3, len(harness.server.streams()))
        first.lose()
        self.assertEqual({second.stream, other.stream}, set(harness.server.streams()))

    def test_atOnce(self) -> None:
        """
        Without any grace the announcement comes, and then the end.
        """
        harness = self.makeServer()
        client = harness.client()
        client.said()
        harness.server.drain(0)
        self.assertEqual(CONTROL, client.said())
        harness.clock.advance(0)
        self.assertEqual(END, client.said())
