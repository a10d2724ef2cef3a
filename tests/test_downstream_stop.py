"""
Tests for L{fcmxmpp.downstream}: how messages are cancelled, and how it stops.
"""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred

from fcmxmpp.errors import AckTimedOut, Expired, Nacked, NotSendable, Stopped
from fcmxmpp.interfaces import Refused, Sent, Settled
from fcmxmpp.messages import Ack, DownstreamMessage, Nack
from tests.downstream import DownstreamCase, Harness, to


class CancelTests(DownstreamCase):
    """
    An application may cancel the Deferred of a message.
    """

    def test_waiting(self) -> None:
        """
        A message that waits is withdrawn: it never goes out, its place in the
        queue is free, and so is its C{message_id}.
        """
        harness = self.makeSender(limit=2, links=0)
        result = harness.sender.send(to("m-1"))
        harness.send("m-2")
        result.cancel()
        self.failureOf(result, CancelledError)
        harness.send("m-3")
        harness.connect()
        self.assertEqual(["m-2", "m-3"], harness.sent())
        harness.send("m-1")
        self.assertEqual(["m-1"], harness.sent())

    def cancelSent(self) -> Harness:
        """
        Cancel a message that has been sent.
        """
        harness = self.makeSender()
        result = harness.sender.send(to("m-1"))
        self.assertEqual(["m-1"], harness.sent())
        result.cancel()
        self.failureOf(result, CancelledError)
        return harness

    def test_sentAndAccepted(self) -> None:
        """
        A message that has been sent keeps its place until it is answered;
        nobody is told the answer, and the stream does not suffer from it.
        """
        harness = self.cancelSent()
        self.assertEqual("message_id", self.failureOf(harness.sender.send(to("m-1")), NotSendable).field)
        harness.ack("m-1")
        self.assertEqual(1, len(harness.script.streams))
        self.assertEqual(1, harness.links[0].generation)
        harness.send("m-1")
        self.assertEqual(["m-1"], harness.sent())

    def test_sentAndRefused(self) -> None:
        """
        The same holds if it is refused.
        """
        harness = self.cancelSent()
        harness.answer(Nack(message_id="m-1", error="BAD_REGISTRATION"))
        self.assertEqual(1, harness.links[0].generation)
        harness.send("m-1")
        self.assertEqual(["m-1"], harness.sent())

    def test_sentAndAnsweredMakesRoom(self) -> None:
        """
        Its answer makes room for the next message.
        """
        harness = self.makeSender()
        results = [harness.sender.send(to(f"m-{n}")) for n in range(101)]
        for result in results:
            result.addErrback(lambda _: None)
        results[0].cancel()
        self.assertEqual(100, len(harness.sent()))
        harness.ack("m-0")
        self.assertEqual(["m-100"], harness.sent())

    def test_sentAndLost(self) -> None:
        """
        If the link is lost it does not go out again, and its C{message_id} is
        free.
        """
        harness = self.cancelSent()
        harness.send("m-2")
        harness.sent()
        harness.network.cut()
        self.assertEqual(["m-2"], harness.sent())
        harness.send("m-1")
        self.assertEqual(["m-1"], harness.sent())

    def test_sentAndStopped(self) -> None:
        """
        It does not keep the others from being told of the stop.
        """
        harness = self.cancelSent()
        harness.send("m-2", "m-3")
        harness.stop()
        self.assertEqual(["m-2", "m-3"], list(harness.outcomes))

    def test_timeout(self) -> None:
        """
        An application may have its own time-out.
        """
        harness = self.makeSender(links=0)
        result = harness.sender.send(to("m-1")).addTimeout(5, harness.clock)
        harness.clock.advance(5)
        self.assertEqual("TimeoutError", self.failureResultOf(result).type.__name__)
        harness.connect()
        self.assertEqual([], harness.sent())


class StopTests(DownstreamCase):
    """
    At a stop every Deferred that is open fails.
    """

    def test_open(self) -> None:
        """
        What waits and what is unanswered fails with L{Stopped}, in order.
        """
        harness = self.makeSender()
        ids = [f"m-{n}" for n in range(102)]
        harness.send(*ids)
        harness.ack("m-0")
        harness.stop()
        self.assertEqual(ids, list(harness.outcomes))
        self.assertEqual({Stopped}, {type(harness.outcomes[message_id][0]) for message_id in ids[1:]})

    def test_afterwards(self) -> None:
        """
        Nothing is taken afterwards.
        """
        harness = self.makeSender()
        harness.stop()
        self.failureOf(harness.sender.send(to("m-1")), Stopped)
        self.failureOf(harness.sender.send(DownstreamMessage()), Stopped)
        self.assertEqual([], harness.sent())

    def test_whenTold(self) -> None:
        """
        Nor is it taken from an application that sends again when it is told of
        the stop.
        """
        harness = self.makeSender()
        again: list[Deferred[Ack]] = []
        result = harness.sender.send(to("m-1"))
        result.addErrback(lambda _: again.append(harness.sender.send(to("m-1"))))
        harness.stop()
        self.failureOf(again[0], Stopped)

    def test_lateAnswer(self) -> None:
        """
        An answer that comes after the stop changes nothing, and neither does
        the loss of the link.
        """
        harness = self.makeSender()
        harness.send("m-1", "m-2")
        harness.stop()
        harness.ack("m-1")
        harness.answer(Nack(message_id="m-2", error="BAD_REGISTRATION"))
        harness.network.cut()
        self.assertEqual([1, 1], [len(outcomes) for outcomes in harness.outcomes.values()])

    def test_connectedAfterwards(self) -> None:
        """
        What waited at the stop does not go out on a link that is made later.
        """
        harness = self.makeSender(links=0)
        harness.send("m-1", "m-2")
        harness.stop()
        harness.connect()
        self.assertEqual([], harness.sent())

    def test_lostAfterwards(self) -> None:
        """
        What is unanswered when the link is lost after the stop does not go out
        again.
        """
        harness = self.makeSender()
        harness.send("m-1")
        harness.sent()
        harness.stop()
        harness.network.cut()
        self.assertEqual([], harness.sent())

    def test_twice(self) -> None:
        """
        To stop twice is to stop.
        """
        harness = self.makeSender()
        harness.send("m-1")
        harness.stop()
        harness.stop()
        self.assertEqual(1, len(harness.outcomes["m-1"]))
