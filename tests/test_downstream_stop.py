"""
Tests for L{fcmxmpp.downstream}: how messages are cancelled, and how it stops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import capturedLogs

from fcmxmpp.errors import AckTimedOut, Expired, Nacked, NotSendable, Stopped
from fcmxmpp.interfaces import AppServerEvent, Refused, Sent, Settled
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


class CancelElsewhereTests(DownstreamCase):
    """
    A message may be cancelled wherever it is: it goes out no more, nothing of
    it is left, and the others go on.
    """

    def test_delayed(self) -> None:
        """
        During its delay.
        """
        harness = self.makeSender()
        harness.send("m-1", "m-2")
        harness.nack("SERVICE_UNAVAILABLE", "m-1")
        harness.cancel("m-1")
        self.assertEqual((1, 0, 0, 0, 1), harness.leftovers)
        harness.advance(10)
        self.assertEqual(["m-1", "m-2"], harness.sent())
        self.assertIs(CancelledError, harness.outcome("m-1"))
        harness.send("m-1")
        self.assertEqual(["m-1"], harness.sent())

    def test_toBeSentAgain(self) -> None:
        """
        When it waits for a link to be sent again on.
        """
        harness = self.makeSender()
        harness.send("m-1", "m-2", "m-3")
        harness.sent()
        harness.network.refuse = True
        harness.network.cut()
        harness.cancel("m-2")
        self.assertEqual((2, 0, 2, 0, 0), harness.leftovers)
        harness.network.refuse = False
        harness.advance(5)
        self.assertEqual(["m-1", "m-3"], harness.sent())

    def test_toBeSentAgainByACallback(self) -> None:
        """
        The same when it is the outcome of another message that makes the
        application cancel it, and makes room for it.
        """
        harness = self.makeSender()
        harness.send(*[f"m-{n}" for n in range(101)])
        harness.nack("SERVICE_UNAVAILABLE", "m-0")
        harness.advance(2)
        harness.sent()
        harness.reactions["m-1"] = lambda: harness.cancel("m-0")
        harness.ack("m-1")
        self.assertEqual([], harness.sent())
        self.assertEqual((99, 0, 0, 0, 99), harness.leftovers)
        harness.send("m-0")
        self.assertEqual(["m-0"], harness.sent())

    def slowLane(self) -> Harness:
        """
        Have three messages wait in a slow lane.
        """
        harness = self.makeSender()
        harness.send("m-1", "m-2", "m-3")
        harness.sent()
        harness.nack("QUOTA_EXCEEDED", "m-1", "m-2", "m-3")
        return harness

    def test_inSlowLane(self) -> None:
        """
        In a slow lane, the first and others.
        """
        for cancelled, left in (("m-1", "m-2"), ("m-2", "m-1")):
            harness = self.slowLane()
            harness.cancel(cancelled)
            self.assertEqual([], harness.sent())
            harness.advance(20)
            self.assertEqual([left], harness.sent())
            harness.ack(left)
            self.assertEqual(["m-3"], harness.sent())

    def test_wholeSlowLane(self) -> None:
        """
        When all in a slow lane are cancelled its delay holds nevertheless.
        """
        harness = self.slowLane()
        harness.cancel("m-1", "m-2", "m-3")
        harness.send("m-4")
        self.assertEqual([], harness.sent())
        harness.cancel("m-4")
        harness.advance(20)
        self.assertEqual((0, 0, 0, 0, 0), harness.leftovers)
        harness.send("m-5", "m-6")
        self.assertEqual(["m-5", "m-6"], harness.sent())

    def test_onTrialInFlight(self) -> None:
        """
        On trial and sent: the next waits for its answer, whatever that is.
        """
        for code in ("", "INVALID_JSON", "QUOTA_EXCEEDED"):
            harness = self.slowLane()
            harness.advance(20)
            harness.cancel("m-1")
            self.assertEqual(["m-1"], harness.sent())
            if code:
                harness.nack(code, "m-1")
            else:
                harness.ack("m-1")
            self.assertEqual(["m-2"], harness.sent(), code)

    def test_onTrialDelayed(self) -> None:
        """
        On trial and delayed: the next is on trial at once.
        """
        harness = self.slowLane()
        harness.advance(20)
        harness.nack("SERVICE_UNAVAILABLE", "m-1")
        harness.sent()
        harness.cancel("m-1")
        self.assertEqual(["m-2"], harness.sent())

    def test_onTrialWithoutLink(self) -> None:
        """
        On trial and without a link, before it went out again and after it did.
        """
        harness = self.slowLane()
        harness.network.refuse = True
        harness.network.cut()
        harness.advance(20)
        harness.send("m-4")
        harness.cancel("m-1")
        harness.network.refuse = False
        harness.connect()
        self.assertEqual(["m-2"], harness.sent())
        harness.ack("m-2")
        self.assertEqual(["m-3"], harness.sent())

    def test_onTrialNeverSent(self) -> None:
        """
        On trial for the first time, when no link has room.
        """
        harness = self.makeSender()
        harness.send("m-1")
        harness.nack("QUOTA_EXCEEDED", "m-1")
        harness.send("m-2", "m-3", *[to(f"b-{n}", "tok-B") for n in range(99)])
        harness.advance(20)
        self.assertEqual("m-1", harness.sent()[-1])
        harness.send(to("b-99", "tok-B"), to("b-100", "tok-B"))
        self.assertEqual([], harness.sent())
        harness.reactions["m-1"] = lambda: harness.cancel("m-2")
        harness.ack("m-1")
        self.assertEqual(["m-3"], harness.sent())

    def test_inFlightOverdue(self) -> None:
        """
        Sent, and never answered: its place is free in the end.
        """
        harness = self.makeSender()
        harness.send("m-1")
        harness.cancel("m-1")
        self.assertEqual((1, 0, 0, 0, 1), harness.leftovers)
        harness.advance(120)
        self.assertEqual((0, 0, 0, 0, 0), harness.leftovers)

    def test_twice(self) -> None:
        """
        To cancel twice is to cancel, also from within what the first has
        brought about, and it does not hit another message that has the same
        C{message_id} by then.
        """
        harness = self.makeSender()
        harness.send("m-1")
        harness.nack("QUOTA_EXCEEDED", "m-1")
        harness.advance(20)
        harness.nack("SERVICE_UNAVAILABLE", "m-1")
        harness.send(to("m-2", time_to_live=0))
        harness.clock.advance(0.5)
        harness.send(to("m-3", time_to_live=0))
        harness.clock.advance(0.5)
        # Now m-2 has expired, and when m-3 expires nobody looks.
        harness.clock.advance(0.75)
        harness.sent()
        first = harness.results["m-1"]
        told: list[str] = []

        def again() -> None:
            harness.send("m-1")
            first.cancel()
            told.extend(harness.outcomes)

        harness.reactions["m-3"] = again
        harness.cancel("m-1")
        self.assertEqual((["m-2", "m-3", "m-1"], ["m-1"]), (told, harness.sent()))
        harness.ack("m-1")
        cancelled, accepted = harness.outcomes["m-1"]
        self.assertEqual((CancelledError, Ack), (type(cancelled), type(accepted)))


class GraceTests(DownstreamCase):
    """
    At a stop with a grace period what is on its way may come to its end.
    """

    def test_answers(self) -> None:
        """
        It waits for the answers, and not longer.
        """
        harness = self.makeSender()
        harness.send("m-1", "m-2")
        stopped = harness.stop(10)
        harness.ack("m-1")
        self.assertNoResult(stopped)
        harness.nack("INVALID_JSON", "m-2")
        self.successResultOf(stopped)
        self.assertEqual((Ack, Nacked), (harness.outcome("m-1"), harness.outcome("m-2")))
        self.assertEqual((0, 0, 0, 0, 0), harness.leftovers)

    def test_over(self) -> None:
        """
        When the grace period is over what is still open fails, in order.
        """
        harness = self.makeSender()
        harness.send("m-1", "m-2", "m-3")
        stopped = harness.stop(10)
        harness.ack("m-2")
        harness.clock.advance(9.9)
        self.assertNoResult(stopped)
        harness.clock.advance(0.1)
        self.successResultOf(stopped)
        self.assertEqual(["m-2", "m-1", "m-3"], list(harness.outcomes))
        self.assertEqual((Stopped, Stopped), (harness.outcome("m-1"), harness.outcome("m-3")))

    def test_nothingNew(self) -> None:
        """
        Nothing is taken any more, from the first moment on.
        """
        harness = self.makeSender()
        harness.send("m-1")
        harness.stop(10)
        self.failureOf(harness.sender.send(to("m-2")), Stopped)
        harness.reactions["m-1"] = lambda: harness.send("m-3")
        harness.ack("m-1")
        self.assertIs(Stopped, harness.outcome("m-3"))

    def test_nothingOpen(self) -> None:
        """
        Where nothing is open it does not wait.
        """
        harness = self.makeSender()
        self.successResultOf(harness.stop(10))

    def test_queued(self) -> None:
        """
        What is queued is sent.
        """
        harness = self.makeSender()
        ids = [f"m-{n}" for n in range(150)]
        harness.send(*ids)
        stopped = harness.stop(10)
        harness.ack(*ids[:100])
        self.assertEqual(ids, harness.sent())
        self.assertNoResult(stopped)
        harness.ack(*ids[100:])
        self.successResultOf(stopped)
        self.assertEqual({Ack}, {harness.outcome(message_id) for message_id in ids})

    def test_retried(self) -> None:
        """
        What is refused for now is sent again if its delay ends within the
        grace period.
        """
        harness = self.makeSender()
        harness.send("m-1", "m-2")
        harness.nack("SERVICE_UNAVAILABLE", "m-1")
        stopped = harness.stop(10)
        harness.nack("SERVICE_UNAVAILABLE", "m-2")
        harness.clock.advance(2)
        self.assertEqual(["m-1", "m-2"] * 2, harness.sent())
        harness.ack("m-1", "m-2")
        self.successResultOf(stopped)

    def test_delayedBeyond(self) -> None:
        """
        What is delayed for longer than the grace period is given up at once,
        and so is what is refused for so long meanwhile; of that nobody is told
        that it will be sent again.
        """
        harness = self.makeSender()
        harness.send("m-1", "m-2", to("b-1", "tok-B"), to("b-2", "tok-B"), to("c-1", "tok-C"))
        harness.nack("SERVICE_UNAVAILABLE", "m-1")
        harness.nack("QUOTA_EXCEEDED", "b-1", "b-2")
        self.assertEqual(3, len(harness.observer.of(Refused)))
        stopped = harness.stop(1)
        self.assertEqual(["m-1", "b-1", "b-2"], list(harness.outcomes))
        harness.nack("SERVICE_UNAVAILABLE", "m-2")
        self.assertIs(Stopped, harness.outcome("m-2"))
        self.assertNoResult(stopped)
        harness.nack("QUOTA_EXCEEDED", "c-1")
        self.successResultOf(stopped)
        self.assertEqual(3, len(harness.observer.of(Refused)))

    def test_slowLane(self) -> None:
        """
        All that wait in a lane whose delay is too long are given up with it,
        also what is queued behind a full window; but not what is in flight.
        """
        harness = self.makeSender()
        harness.send("m-1", "m-2", "m-3", to("b-1", "tok-B"))
        harness.nack("QUOTA_EXCEEDED", "m-1")
        harness.advance(20)
        harness.nack("QUOTA_EXCEEDED", "m-2")
        harness.sent()
        harness.send("m-4", *[to(f"c-{n}", "tok-C") for n in range(97)], "m-5")
        stopped = harness.stop(10)
        self.assertEqual(["m-2", "m-4"], list(harness.outcomes))
        harness.ack("b-1")
        self.assertIs(Stopped, harness.outcome("m-5"))
        harness.ack("m-1", "m-3", *[f"c-{n}" for n in range(97)])
        self.successResultOf(stopped)
        self.assertEqual((Ack, Ack), (harness.outcome("m-1"), harness.outcome("m-3")))

    def test_behindGivenUp(self) -> None:
        """
        What waits only for a message that is given up is sent.
        """
        harness = self.makeSender()
        harness.send("m-1", "m-2")
        harness.nack("QUOTA_EXCEEDED", "m-1", "m-2")
        harness.advance(20)
        harness.nack("SERVICE_UNAVAILABLE", "m-1")
        harness.sent()
        stopped = harness.stop(1)
        self.assertEqual((Stopped, ["m-2"]), (harness.outcome("m-1"), harness.sent()))
        harness.ack("m-2")
        self.successResultOf(stopped)

    def test_noLinks(self) -> None:
        """
        Without ever having had a link it does not wait.
        """
        harness = self.makeSender(links=0)
        harness.send("m-1")
        self.successResultOf(harness.stop(10))
        self.assertIs(Stopped, harness.outcome("m-1"))

    def test_drainingLink(self) -> None:
        """
        Answers may still come on a link that is being drained, so it waits for
        those.
        """
        harness = self.makeSender()
        harness.network.refuse = True
        harness.send("m-1")
        harness.drain()
        stopped = harness.stop(10)
        self.assertNoResult(stopped)
        harness.ack("m-1")
        self.successResultOf(stopped)
        self.assertIs(Ack, harness.outcome("m-1"))

    def test_lostLink(self) -> None:
        """
        What a lost link leaves is sent again on the next within the grace
        period.
        """
        harness = self.makeSender()
        harness.send("m-1")
        stopped = harness.stop(10)
        harness.network.cut()
        self.assertEqual(["m-1"] * 2, harness.sent())
        harness.ack("m-1")
        self.successResultOf(stopped)

    def test_betweenLinks(self) -> None:
        """
        The same where the stop comes while there is no link: after a loss, and
        in the overlap of a drain with nothing unanswered.
        """
        for lose in (Harness.drain, lambda harness: harness.network.cut()):
            harness = self.makeSender()
            harness.network.hold = True
            lose(harness)
            harness.send("m-1")
            stopped = harness.stop(10)
            self.assertNoResult(stopped)
            harness.network.release()
            self.assertEqual(["m-1"], harness.sent())
            harness.ack("m-1")
            self.successResultOf(stopped)
            self.assertIs(Ack, harness.outcome("m-1"))

    def test_expires(self) -> None:
        """
        A time to live may end within the grace period, and so end the wait.
        """
        harness = self.makeSender()
        harness.send(to("m-1", time_to_live=3), to("m-2", time_to_live=2))
        harness.nack("SERVICE_UNAVAILABLE", "m-2")
        harness.network.refuse = True
        stopped = harness.stop(10)
        harness.network.cut()
        harness.advance(3)
        self.successResultOf(stopped)
        self.assertEqual((Expired, Expired), (harness.outcome("m-1"), harness.outcome("m-2")))

    def test_cancelled(self) -> None:
        """
        Cancelling the last one that waits ends it.
        """
        harness = self.makeSender()
        harness.send("m-1")
        harness.nack("SERVICE_UNAVAILABLE", "m-1")
        stopped = harness.stop(10)
        harness.cancel("m-1")
        self.successResultOf(stopped)

    def test_cancelledInFlight(self) -> None:
        """
        One that was cancelled on its way is waited for, but told nothing.
        """
        for answered in (True, False):
            harness = self.makeSender()
            harness.send("m-1")
            harness.cancel("m-1")
            stopped = harness.stop(10)
            if answered:
                harness.ack("m-1")
            else:
                harness.clock.advance(10)
            self.successResultOf(stopped)
            self.assertIs(CancelledError, harness.outcome("m-1"))

    def test_twice(self) -> None:
        """
        A second stop changes nothing about the first.
        """
        harness = self.makeSender()
        harness.send("m-1")
        stopped = harness.stop(10)
        self.successResultOf(harness.stop(0))
        self.assertNoResult(stopped)
        harness.ack("m-1")
        self.assertEqual((None, Ack), (self.successResultOf(stopped), harness.outcome("m-1")))

    def test_observed(self) -> None:
        """
        The observer is told of every end.
        """
        harness = self.makeSender()
        harness.send("m-1")
        harness.stop()
        (error,) = harness.outcomes["m-1"]
        self.assertEqual([Sent(to("m-1"), 1, 1), Settled(to("m-1"), error, 1, 0.0)], harness.observer.events)

    def test_nothingSentAfterwards(self) -> None:
        """
        When the grace period is over nothing goes out any more, though what is
        given up leaves its place to others.
        """
        harness = self.makeSender()
        harness.send("m-1", "m-2", "m-3")
        harness.nack("QUOTA_EXCEEDED", "m-1", "m-2", "m-3")
        harness.advance(20)
        harness.sent()
        harness.reactions["m-1"] = lambda: harness.cancel("m-3")
        harness.stop()
        self.assertEqual([], harness.sent())
        self.assertEqual((Stopped, CancelledError), (harness.outcome("m-2"), harness.outcome("m-3")))

    def test_draining(self) -> None:
        """
        A stream may be drained, or lost, after the stop.
        """
        harness = self.makeSender()
        harness.stop()
        harness.network.refuse = True
        with capturedLogs() as events:
            harness.drain()
            harness.network.cut()
        self.assertEqual([], [event for event in events if "log_failure" in event])


class ReentrancyTests(DownstreamCase):
    """
    What an application does when it is told of an outcome happens in the midst
    of it all, and does no harm.
    """

    def ways(self) -> list[tuple[str, Callable[[Harness], object]]]:
        """
        The ways in which the message x may come to its end, on a link with
        others that wait for room.
        """

        def expires(harness: Harness) -> object:
            harness.nack("SERVICE_UNAVAILABLE", "x")
            return harness.clock.advance(7)

        return [
            ("accepted", lambda harness: harness.ack("x")),
            ("refused", lambda harness: harness.nack("INVALID_JSON", "x")),
            ("expired", expires),
            ("cancelled", lambda harness: harness.cancel("x")),
            ("overdue", lambda harness: harness.advance(120)),
            ("stopped", lambda harness: harness.stop()),
            ("stopped with grace", lambda harness: (harness.stop(10), harness.clock.advance(10))),
        ]

    def full(self) -> Harness:
        """
        A link that is full with x and 99 others, and two that wait.
        """
        harness = self.makeSender()
        harness.send(to("x", time_to_live=6), *[f"m-{n}" for n in range(101)])
        self.assertEqual(100, len(harness.sent()))
        return harness

    def test_send(self) -> None:
        """
        To send, even the same message, works, and it goes out behind the
        others; after a stop nothing is taken.
        """
        for way, end in self.ways():
            harness = self.full()
            harness.reactions["x"] = lambda harness=harness: harness.send("new", "x")
            end(harness)
            harness.advance(1)
            harness.ack(*[f"m-{n}" for n in range(101)])
            if way.startswith("stopped"):
                self.assertEqual([], harness.sent(), way)
                self.assertIs(Stopped, harness.outcome("new"))
            elif way == "cancelled":
                # Its place on the link is taken until it is answered.
                self.assertEqual(["m-99", "m-100", "new"], harness.sent(), way)
                self.assertIsInstance(harness.outcomes["x"][1], NotSendable)
            else:
                self.assertEqual(["m-99", "m-100", "new", "x"], harness.sent(), way)

    def test_cancel(self) -> None:
        """
        To cancel others works, be they in flight, waiting or delayed.
        """
        for way, end in self.ways():
            harness = self.full()
            harness.nack("SERVICE_UNAVAILABLE", "m-2")
            self.assertEqual(["m-99"], harness.sent())
            harness.reactions["x"] = lambda harness=harness: (
                harness.script.received.clear(),
                harness.cancel("m-100", "m-99", "m-2", "m-1"),
            )
            end(harness)
            harness.advance(3)
            self.assertEqual([], harness.sent(), way)
            for message_id in ("m-1", "m-2", "m-99", "m-100"):
                # What was overdue or stopped together with x may have been told before.
                self.assertIn(harness.outcome(message_id), (CancelledError, AckTimedOut, Stopped), way)

    def test_stop(self) -> None:
        """
        To stop works; everything that is open fails, nothing goes out and no
        timer is left.
        """
        for way, end in self.ways():
            harness = self.full()
            harness.nack("SERVICE_UNAVAILABLE", "m-2")
            harness.nack("QUOTA_EXCEEDED", "m-3")
            harness.sent()
            harness.reactions["x"] = lambda harness=harness: (
                harness.script.received.clear(),
                harness.stop(),
            )
            end(harness)
            self.assertEqual([], harness.sent(), way)
            self.assertEqual(102, len(harness.outcomes), way)
            self.assertEqual((0, 0, 0, 0, 0), harness.leftovers, way)

    def test_stopWithGrace(self) -> None:
        """
        To stop with a grace period works as well.
        """
        harness = self.full()
        stopped: list[Deferred[None]] = []
        harness.reactions["x"] = lambda: stopped.append(harness.stop(10))
        harness.ack("x")
        harness.ack(*[f"m-{n}" for n in range(100)])
        harness.ack("m-100")
        self.successResultOf(stopped[0])
        self.assertEqual({Ack}, {harness.outcome(f"m-{n}") for n in range(101)})

    def test_stopWithinSend(self) -> None:
        """
        C{send} may find that another message has expired, and the application
        may stop for that: then this one fails, and no timer is left.
        """
        harness = self.makeSender(links=0)
        harness.send(to("m-1", time_to_live=0))
        harness.clock.advance(0.5)
        harness.send(to("x", time_to_live=0))
        harness.clock.advance(0.5)
        harness.clock.advance(0.75)
        harness.reactions["x"] = harness.stop
        # A link that is there already, and has room, and was not used yet.
        self.patch(harness.sender, "linkReady", harness.sender._links.append)
        harness.connect()
        harness.sender._isHeld = False
        self.assertEqual(["m-1"], list(harness.outcomes))
        harness.send("m-2")
        self.assertEqual((Expired, Stopped), (harness.outcome("x"), harness.outcome("m-2")))
        self.assertIsNone(harness.sender._sweep)

    def test_whileSweeping(self) -> None:
        """
        When several expire at once and the first makes the application cancel
        the second, each is told once.
        """
        harness = self.makeSender(links=0)
        harness.send(*[to(f"m-{n}", time_to_live=1) for n in range(3)], "m-3")
        harness.reactions["m-0"] = lambda: harness.cancel("m-1", "m-3")
        harness.clock.advance(1)
        self.assertEqual(
            [Expired, CancelledError, CancelledError, Expired],
            [harness.outcome(f"m-{n}") for n in (0, 1, 3, 2)],
        )

    def test_whileGivingUp(self) -> None:
        """
        The same when several are given up at a stop, before the grace period
        and after it.
        """
        for grace in (0, 1):
            harness = self.makeSender()
            harness.send("m-0", "m-1", "m-2")
            harness.nack("SERVICE_UNAVAILABLE", "m-0", "m-1", "m-2")
            harness.reactions["m-0"] = lambda harness=harness: harness.cancel("m-1")
            self.successResultOf(harness.stop(grace))
            self.assertEqual(
                [Stopped, CancelledError, Stopped], [harness.outcome(f"m-{n}") for n in range(3)]
            )

    def test_observer(self) -> None:
        """
        An observer may send, cancel and stop, too, though it had better not.
        """
        harness = self.makeSender()
        reactions: dict[type, Callable[[], object]] = {}
        observed = harness.observer.observed

        def react(event: AppServerEvent) -> None:
            observed(event)
            reactions.pop(type(event), lambda: None)()

        self.patch(harness.sender, "_observe", react)
        reactions[Sent] = lambda: harness.send("m-2")
        reactions[Refused] = lambda: harness.cancel("m-1")
        harness.send("m-1")
        self.assertEqual(["m-1", "m-2"], harness.sent())
        harness.nack("SERVICE_UNAVAILABLE", "m-1")
        self.assertIs(CancelledError, harness.outcome("m-1"))
        reactions[Refused] = harness.stop
        harness.nack("CONNECTION_DRAINING", "m-2")
        self.assertIs(Stopped, harness.outcome("m-2"))
        self.assertEqual((0, 0, 0, 0, 0), harness.leftovers)

    def test_observerCancelsSettled(self) -> None:
        """
        It may cancel even the message that it is being told the outcome of,
        however that came: the sender goes on to settle the others.
        """
        for way, end in self.ways():
            harness = self.full()
            observed = harness.observer.observed

            def react(event: AppServerEvent, harness: Harness = harness, observed: Any = observed) -> None:
                observed(event)
                if isinstance(event, Settled) and event.message.message_id == "x":
                    harness.results["x"].cancel()

            self.patch(harness.sender, "_observe", react)
            end(harness)
            self.assertIs(CancelledError, harness.outcome("x"), way)
            self.successResultOf(harness.stop())
            self.assertEqual((0, 0, 0, 0, 0), harness.leftovers, way)
