"""
Conformance cases of draining: a connection server that is about to close a
connection says so, and nothing gets lost.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from fcmxmpp.interfaces import LinkDrained, LinkDraining, LinkReady
from fcmxmpp.messages import Ack, DownstreamMessage, Nack, UpstreamAck
from fcmxmpp.testing import RecordingHandler, ScriptedConnectionServer
from tests.conformance import AppServerCase, upstream


#: As Google sent it: without a C{message_id}.
DRAINING = (
    '<message><data:gcm xmlns:data="google:mobile:data">'
    '{"message_type":"control","control_type":"CONNECTION_DRAINING"}</data:gcm></message>'
)


class DrainingTests(AppServerCase):
    """
    An app server whose connection is being drained.
    """

    def send(self, joined: Any, *ids: str) -> list[Deferred[Ack]]:
        """
        Send downstream messages.
        """
        results = [joined.appServer.send(DownstreamMessage(to="tok-A", message_id=name)) for name in ids]
        joined.pump()
        return results

    def on(self, script: ScriptedConnectionServer, stream: Any) -> list[str]:
        """
        The C{message_id}s of what came on a stream, ACKs marked as such.
        """
        return [
            f"ack {message.message_id}" if isinstance(message, UpstreamAck) else message.message_id or ""
            for found, message in script.received
            if found is stream
        ]

    def test_A01_noMessageID(self) -> None:
        """
        A control message has no message_id; it is seen all the same: another
        connection is made at once, and nothing new goes out on the old one.
        """
        script = ScriptedConnectionServer()
        joined = self.joined(script)
        joined.advance(5)
        old = script.stream
        script.write(DRAINING.encode())
        joined.pump()
        self.assertEqual(2, joined.network.attempts)
        self.assertEqual(2, len(script.streams))
        self.assertIsNot(old, script.stream)
        (result,) = self.send(joined, "d-1")
        self.assertEqual(([], ["d-1"]), (self.on(script, old), self.on(script, script.stream)))
        script.deliver(Ack(from_="tok-A", message_id="d-1"))
        joined.pump()
        self.assertEqual("d-1", self.successResultOf(result).message_id)
        self.assertEqual([LinkDraining(1, 1)], joined.observer.of(LinkDraining))

    def test_A01_unknownControl(self) -> None:
        """
        Any other control message changes nothing.
        """
        script = ScriptedConnectionServer()
        joined = self.joined(script)
        script.write(DRAINING.replace("CONNECTION_DRAINING", "CONNECTION_FLOURISHING").encode())
        joined.pump()
        self.stays(script, joined)

    def test_A02_asNack(self) -> None:
        """
        A NACK that says that the connection is being drained has that message
        sent at once on another connection, with the same message_id and with
        no back-off; and nothing else goes out on the old one.
        """
        script = ScriptedConnectionServer()
        joined = self.joined(script)
        joined.advance(5)
        old = script.stream
        results = self.send(joined, "d-1", "d-2", "d-3")
        for name in ("d-1", "d-2", "d-3"):
            script.deliver(Nack(from_="tok-A", message_id=name, error="CONNECTION_DRAINING"))
        now = joined.clock.seconds()
        joined.pump()
        self.assertEqual(now, joined.clock.seconds())
        new = script.stream
        self.assertIsNot(old, new)
        self.assertEqual(["d-1", "d-2", "d-3"], self.on(script, old))
        self.assertEqual(["d-1", "d-2", "d-3"], self.on(script, new))
        for name in ("d-1", "d-2", "d-3"):
            script.deliver(Ack(from_="tok-A", message_id=name))
        joined.pump()
        self.assertEqual(["d-1", "d-2", "d-3"], [self.successResultOf(r).message_id for r in results])

    def test_A02_anotherLink(self) -> None:
        """
        With several links, a message that was refused by a draining one goes
        out on another in the same instant, before any new login.
        """
        script = ScriptedConnectionServer()
        joined = self.joined(script, connections=2)
        first, second = script.streams
        (result,) = self.send(joined, "d-1")
        drained, other = (first, second) if self.on(script, first) else (second, first)
        joined.network.refuse = True
        drained.transport.write(
            b'<message><data:gcm xmlns:data="google:mobile:data">{"message_type":"nack","message_id":"d-1",'
            b'"from":"tok-A","error":"CONNECTION_DRAINING"}</data:gcm></message>'
        )
        joined.pump()
        self.assertEqual(["d-1"], self.on(script, other))
        other.transport.write(
            b'<message><data:gcm xmlns:data="google:mobile:data">'
            b'{"from":"tok-A","message_id":"d-1","message_type":"ack"}</data:gcm></message>'
        )
        joined.pump()
        self.successResultOf(result)
        joined.network.refuse = False
        joined.advance(2)

    def test_A03_upstreamWhileDraining(self) -> None:
        """
        For 30 seconds more messages come in on the old connection: all are
        handled, and all are acknowledged there; what the app server sends goes
        elsewhere; and the old connection is not closed before the connection
        server closes it.
        """
        script = ScriptedConnectionServer()
        handler = RecordingHandler()
        joined = self.joined(script, handler)
        joined.advance(5)
        old = script.stream
        script.write(DRAINING.encode())
        joined.pump()
        new = script.stream
        names = []
        for second in range(30):
            names.append(f"m-{second}")
            old.transport.write(
                (
                    '<message><gcm xmlns="google:mobile:data">'
                    f'{{"from":"tok-A","message_id":"{names[-1]}"}}</gcm></message>'
                ).encode()
            )
            self.send(joined, f"d-{second}")[0].addErrback(lambda failure: None)
            joined.advance(1)
        self.handled(handler, names)
        self.assertEqual([f"ack {name}" for name in names], self.on(script, old))
        self.assertEqual([f"d-{second}" for second in range(30)], self.on(script, new))
        self.assertEqual(2, joined.network.connections)
        old.close()
        joined.pump()
        self.assertEqual(1, joined.network.connections)
        self.assertEqual([LinkDrained(1, 1)], joined.observer.of(LinkDrained))
        self.assertEqual(2, joined.network.attempts)

    def test_A03_answersWhileDraining(self) -> None:
        """
        Answers to what was sent before are taken from the old connection, and
        what is unanswered when it is closed is sent again on the new one.
        """
        script = ScriptedConnectionServer()
        joined = self.joined(script)
        joined.advance(5)
        old = script.stream
        results = self.send(joined, "d-1", "d-2", "d-3")
        script.write(DRAINING.encode())
        joined.pump()
        new = script.stream
        old.transport.write(
            b'<message><data:gcm xmlns:data="google:mobile:data">'
            b'{"from":"tok-A","message_id":"d-2","message_type":"ack"}</data:gcm></message>'
        )
        joined.pump()
        self.assertEqual("d-2", self.successResultOf(results[1]).message_id)
        self.assertEqual([], self.on(script, new))
        old.close()
        joined.pump()
        self.assertEqual(["d-1", "d-3"], self.on(script, new))
        for name in ("d-1", "d-3"):
            script.deliver(Ack(from_="tok-A", message_id=name))
        joined.pump()
        for result in (results[0], results[2]):
            self.successResultOf(result)

    def test_A04_twoBackToBack(self) -> None:
        """
        The successor is drained as soon as it is logged in: in the end there
        is exactly one connection that is not being drained, and after the
        others are closed exactly one.
        """
        script = ScriptedConnectionServer()
        handler = RecordingHandler()
        joined = self.joined(script, handler)
        joined.advance(5)
        for _ in range(2):
            script.write(DRAINING.encode())
            joined.pump()
        self.assertEqual(3, len(script.streams))
        (result,) = self.send(joined, "d-1")
        self.assertEqual(["d-1"], self.on(script, script.stream))
        for old in script.streams[:-1]:
            old.close()
        joined.pump()
        self.assertEqual((1, 3), (joined.network.connections, joined.network.attempts))
        script.deliver(Ack(from_="tok-A", message_id="d-1"))
        script.deliver(upstream("m-1"))
        joined.pump()
        self.successResultOf(result)
        self.handled(handler, ["m-1"])
        self.assertEqual(["m-1"], script.acks)

    def test_A04_dropWhileTheSuccessorLogsIn(self) -> None:
        """
        The old connection drops before the new one is logged in: one
        connection in the end, and nothing lost.
        """
        script = ScriptedConnectionServer()
        joined = self.joined(script)
        joined.advance(5)
        old = script.stream
        results = self.send(joined, "d-1", "d-2")
        joined.network.hold = True
        script.write(DRAINING.encode())
        joined.pump()
        self.assertEqual((2, 1), (joined.network.attempts, len(script.streams)))
        old.abort()
        results += self.send(joined, "d-3")
        self.assertEqual((2, []), (joined.network.attempts, script.streams))
        joined.network.release()
        joined.pump()
        self.assertEqual((2, 1), (joined.network.attempts, joined.network.connections))
        self.assertEqual(["d-1", "d-2", "d-3"], self.on(script, script.stream))
        for name in ("d-1", "d-2", "d-3"):
            script.deliver(Ack(from_="tok-A", message_id=name))
        joined.pump()
        for result in results:
            self.successResultOf(result)
        self.assertEqual(2, joined.observer.of(LinkReady)[-1].generation)

    def test_A04_fiftyDrains(self) -> None:
        """
        A connection server that drains each of four links every few seconds
        costs no message, and there is no moment without a link to send on.
        """
        handler = RecordingHandler()
        pair = self.pair(handler, connections=4)
        sent: list[str] = []
        accepted: list[Any] = []
        for turn in range(50):
            pair.advance(3)
            streams = [s for s in pair.connectionServer.streams() if s.room]
            self.assertEqual(4, len(streams), turn)
            pair.connectionServer.drain(2.5, [streams[turn % 4]])
            for number in range(5):
                sent.append(f"m-{turn}-{number}")
                pair.device.send(sent[-1], {})
                message = DownstreamMessage(to="tok-A", message_id=f"d-{turn}-{number}")
                pair.appServer.send(message).addBoth(accepted.append)
            pair.pump()
            self.assertEqual(5 * (turn + 1), len(accepted), turn)
            self.assertEqual(5 * (turn + 1), len(pair.device.received), turn)
        pair.advance(10)
        self.assertEqual([], [outcome for outcome in accepted if not isinstance(outcome, Ack)])
        self.assertEqual(sorted(sent), sorted(handler.ids))
        self.assertEqual(sorted(sent), sorted(pair.device.delivered))
        self.assertEqual(4, pair.network.connections)
