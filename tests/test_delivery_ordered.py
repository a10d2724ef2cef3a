"""
Tests for L{fcmxmpp.delivery} where the messages of each device are handled in
their order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from fcmxmpp.delivery import MAX_ACKED, MAX_WAITERS, POLICIES, Policy
from fcmxmpp.errors import HandlerFailed, HandlerUnavailable, MalformedPayload, Stopped, StreamLost
from fcmxmpp.interfaces import DeadLettered, Handled, HandlingFailed, IUpstreamHandler
from fcmxmpp.messages import Receipt, UpstreamMessage
from fcmxmpp.testing import RecordingHandler
from tests.delivering import DeliveryCase, Harness, receipt, upstream


def messages(*ids: str) -> list[UpstreamMessage]:
    """
    Messages of the devices that the first letters of their C{message_id}
    name.
    """
    return [upstream(message_id, from_=f"tok-{message_id[0]}") for message_id in ids]


class OrderedCase(DeliveryCase):
    """
    A delivery in order, whose handler leaves each message to the test.
    """

    def setUp(self) -> None:
        """
        No handler has been called.
        """
        #: What the handler has returned for each message, in its last try.
        self.results: dict[str, Deferred[None]] = {}

    def makeOrdered(self, answer: Callable[[Any], Any] | None = None, **options: Any) -> Harness:
        """
        Make a delivery that keeps the order.

        @param answer: what the handler does, in place of returning one of
            L{results}.
        """
        return self.makeDelivery(answer or self.defer, ordered=True, **options)

    def defer(self, message: UpstreamMessage) -> Deferred[None]:
        """
        Handle a message when the test says so.
        """
        result = self.results[message.message_id] = Deferred()
        return result

    def finish(self, message_id: str) -> None:
        """
        A message has been handled.
        """
        self.results[message_id].callback(None)

    def lanes(self, harness: Harness) -> int:
        """
        How many devices a delivery remembers.
        """
        return len(harness.delivery._lanes)


class OrderTests(OrderedCase):
    """
    The messages of a device are handled one at a time, in the order they came.
    """

    def test_notByDefault(self) -> None:
        """
        Who does not ask for it has all messages handled at the same time.
        """
        self.assertFalse(Policy().ordered)

    def test_deferred(self) -> None:
        """
        A message is given to the handler when what it returned for the one
        before has fired, and each may be acknowledged then.
        """
        harness = self.makeOrdered()
        harness.take(*messages("a1", "a2", "a3"))
        self.assertEqual((["a1"], []), (harness.handler.ids, harness.outcomes))
        self.finish("a1")
        self.assertEqual((["a1", "a2"], ["a1"]), (harness.handler.ids, harness.acknowledged))
        self.finish("a2")
        self.finish("a3")
        self.assertEqual((["a1", "a2", "a3"],) * 2, (harness.handler.ids, harness.acknowledged))

    def test_plain(self) -> None:
        """
        The same holds for a plain handler.
        """
        harness = self.makeOrdered(lambda _: None)
        harness.take(*messages("a1", "a2", "b1", "a3"))
        self.assertEqual((["a1", "a2", "b1", "a3"],) * 2, (harness.handler.ids, harness.acknowledged))

    def test_firedAlready(self) -> None:
        """
        And for one whose Deferreds have fired already.
        """
        harness = self.makeOrdered(lambda _: succeed(None))
        harness.take(*messages("a1", "a2"))
        self.assertEqual((["a1", "a2"],) * 2, (harness.handler.ids, harness.acknowledged))

    def test_coroutine(self) -> None:
        """
        And for an C{async def} handler: it has ended before the next begins.
        """
        steps: list[str] = []

        async def answer(message: UpstreamMessage) -> None:
            steps.append(f"{message.message_id} begins")
            await self.defer(message)
            steps.append(f"{message.message_id} ends")

        harness = self.makeOrdered(answer)
        harness.take(*messages("a1", "a2"))
        self.finish("a1")
        self.finish("a2")
        self.assertEqual(["a1 begins", "a1 ends", "a2 begins", "a2 ends"], steps)
        self.assertEqual(["a1", "a2"], harness.acknowledged)

    def test_otherDevices(self) -> None:
        """
        Different devices are handled at the same time, and none waits for
        another.
        """
        harness = self.makeOrdered()
        harness.take(*messages("a1", "a2", "b1", "b2", "c1"))
        self.assertEqual(["a1", "b1", "c1"], harness.handler.ids)
        self.finish("b1")
        self.finish("b2")
        self.assertEqual(["a1", "b1", "c1", "b2"], harness.handler.ids)
        self.assertEqual(["b1", "b2"], harness.acknowledged)

    def test_acknowledgedBeforeTheNext(self) -> None:
        """
        The ACK of a message goes out before the next one is handled.
        """
        order: list[str] = []
        harness = self.makeOrdered()
        first, second = messages("a1", "a2")
        harness.delivery.take(first).addCallback(lambda _: order.append(f"a1, of {harness.handler.ids}"))
        harness.take(second)
        self.finish("a1")
        self.assertEqual((["a1, of ['a1']"], ["a1", "a2"]), (order, harness.handler.ids))

    def test_comesWithTheAcknowledgement(self) -> None:
        """
        What comes in while a message is being acknowledged is handled after
        what has been waiting.
        """
        harness = self.makeOrdered()
        first, second, third = messages("a1", "a2", "a3")
        harness.delivery.take(first).addCallback(lambda _: harness.take(third))
        harness.take(second)
        self.finish("a1")
        self.assertEqual(["a1", "a2"], harness.handler.ids)
        self.finish("a2")
        self.assertEqual(["a1", "a2", "a3"], harness.handler.ids)

    def test_sharedResult(self) -> None:
        """
        A handler may still return one Deferred for messages of several
        devices, and again while that is firing.
        """
        shared: Deferred[None] = Deferred()
        harness = self.makeOrdered(lambda _: shared)
        harness.take(*messages("a1", "a2", "b1", "b2"))
        self.assertEqual(["a1", "b1"], harness.handler.ids)
        shared.callback(None)
        self.assertEqual(["a1", "b1", "a2", "b2"], harness.handler.ids)
        self.assertEqual({"a1", "a2", "b1", "b2"}, set(harness.acknowledged))

    def test_seconds(self) -> None:
        """
        The time that a message waits for its turn counts as part of its
        handling.
        """
        harness = self.makeOrdered()
        harness.take(*messages("a1", "a2"))
        harness.clock.advance(3)
        self.finish("a1")
        harness.clock.advance(4)
        self.finish("a2")
        self.assertEqual([3.0, 7.0], [event.seconds for event in harness.events(Handled)])

    def test_nothingLeft(self) -> None:
        """
        A device that has nothing left to be handled takes up no memory.
        """
        harness = self.makeOrdered()
        harness.take(*messages("a1", "a2", "b1"))
        self.assertEqual(2, self.lanes(harness))
        self.finish("b1")
        self.finish("a1")
        self.assertEqual(1, self.lanes(harness))
        self.finish("a2")
        self.assertEqual(0, self.lanes(harness))


class ManyTests(OrderedCase):
    """
    However many messages wait, they are handled one after the other and not
    one within the other.
    """

    IDS = tuple(f"a{n}" for n in range(1000))

    def assertNoDeeper(self, answer: Callable[[Any], Any], **policy: Any) -> Harness:
        """
        Have a thousand messages wait behind a slow one, and then handled;
        assert that it was by loop and not by recursion.

        @param answer: what the handler does with each of the thousand.
        """
        slow: Deferred[None] = Deferred()
        harness = self.makeOrdered(lambda m: slow if m.message_id == "a-slow" else answer(m), **policy)
        with self.logs():
            harness.take(*messages("a-slow", *self.IDS))
            harness.clock.advance(0)
            self.assertEqual(["a-slow"], harness.handler.ids)
            slow.callback(None)
        self.assertEqual(["a-slow", *self.IDS], harness.handler.ids)
        self.assertEqual({"a-slow", *self.IDS}, set(harness.acknowledged))
        self.assertEqual(0, self.lanes(harness))
        return harness

    def test_plain(self) -> None:
        """
        A plain handler.
        """
        self.assertNoDeeper(lambda _: None)

    def test_received(self) -> None:
        """
        The same, where messages are acknowledged first.
        """
        self.assertNoDeeper(lambda _: None, ack="received")

    def test_fired(self) -> None:
        """
        A handler whose Deferreds have fired already.
        """
        self.assertNoDeeper(lambda _: succeed(None))

    def test_coroutine(self) -> None:
        """
        An C{async def} handler that waits for nothing.
        """

        async def answer(message: UpstreamMessage) -> None:
            pass

        self.assertNoDeeper(answer)

    def test_failing(self) -> None:
        """
        A handler that always fails.
        """

        def answer(message: UpstreamMessage) -> None:
            raise ValueError

        harness = self.assertNoDeeper(answer, handlerTries=1)
        self.assertEqual(1000, harness.delivery.deadLetters)

    def test_stop(self) -> None:
        """
        A stop that finds a thousand waiting.
        """
        for policy in POLICIES:
            harness = self.makeOrdered(ack=policy)
            harness.take(*messages(*self.IDS))
            harness.clock.advance(0)
            with self.logs():
                stopped = harness.stop(1)
                harness.clock.advance(1)
            self.successResultOf(stopped)
            self.assertEqual((["a0"], 1000), (harness.handler.ids, len(harness.outcomes)))
            self.assertEqual(0, self.lanes(harness))

    def assertEachBringsTheNext(self, policy: str) -> None:
        """
        Have a handler called that has the next message delivered, a thousand
        times over; assert that it is called for each when it has returned.
        """
        rest = messages(*self.IDS[1:])[::-1]
        running: list[str] = []
        together: list[str] = []

        def answer(message: UpstreamMessage) -> None:
            together.extend(running)
            running.append(message.message_id)
            if rest:
                harness.take(rest.pop())
            running.pop()

        harness = self.makeOrdered(answer, ack=policy)
        harness.take(*messages(self.IDS[0]))
        harness.clock.advance(0)
        self.assertEqual((list(self.IDS), []), (harness.handler.ids, together))
        self.assertEqual(set(self.IDS), set(harness.acknowledged))
        self.assertEqual(0, self.lanes(harness))

    def test_eachBringsTheNext(self) -> None:
        """
        A handler that has the next message of its device delivered.
        """
        self.assertEachBringsTheNext("handled")

    def test_eachBringsTheNextReceived(self) -> None:
        """
        The same, where messages are acknowledged first.
        """
        self.assertEachBringsTheNext("received")


class ReentrantTests(OrderedCase):
    """
    A handler may cause whatever it likes while it is being called.
    """

    def test_otherDevice(self) -> None:
        """
        If it causes the delivery of another device's message, that is handled
        in its turn, and waits for nobody.
        """

        def answer(message: UpstreamMessage) -> Deferred[None]:
            if message.message_id == "a1":
                harness.take(*messages("b1"))
            return self.defer(message)

        harness = self.makeOrdered(answer)
        harness.take(*messages("a1"))
        self.assertEqual((["a1", "b1"], []), (harness.handler.ids, harness.outcomes))

    def test_finishesAnother(self) -> None:
        """
        If it ends the handling of another device's message, the next of that
        device has its turn.
        """

        def answer(message: UpstreamMessage) -> Deferred[None] | None:
            if message.message_id == "b1":
                self.finish("a1")
                return None
            return self.defer(message)

        harness = self.makeOrdered(answer)
        harness.take(*messages("a1", "a2", "b1"))
        self.assertEqual(["a1", "b1", "a2"], harness.handler.ids)
        self.assertEqual(["a1", "b1"], harness.acknowledged)

    def test_stopsWhileOthersAreDue(self) -> None:
        """
        If it has us stopped, a message whose turn has come in the same breath
        does not begin.
        """
        stopped: list[Deferred[None]] = []

        def answer(message: UpstreamMessage) -> Deferred[None] | None:
            if message.message_id == "b1":
                self.finish("a1")
                stopped.append(harness.stop(10))
                return None
            return self.defer(message)

        harness = self.makeOrdered(answer)
        harness.take(*messages("a1", "a2", "b1", "b2"))
        harness.clock.advance(0)
        self.successResultOf(stopped[0])
        self.assertEqual(["a1", "b1"], harness.handler.ids)
        self.assertEqual(
            [("a1", "acknowledge"), ("a2", "Stopped"), ("b1", "acknowledge"), ("b2", "Stopped")],
            harness.outcomes,
        )


class FailureTests(OrderedCase):
    """
    A message whose handler fails keeps its place.
    """

    def test_betweenTries(self) -> None:
        """
        While it waits for its next try, those behind it wait, and other
        devices do not.
        """
        results: list[Any] = [fail(ValueError()), fail(ValueError()), None]
        harness = self.makeOrdered(lambda m: results.pop(0) if m.message_id == "a1" else None)
        with self.logs():
            harness.take(*messages("a1", "a2", "b1"))
            harness.clock.advance(0.5)
            harness.take(*messages("a3"))
            self.assertEqual((["a1", "b1"], ["b1"]), (harness.handler.ids, harness.acknowledged))
            harness.clock.pump([0.5, 1.5])
            self.assertEqual((["a1", "b1", "a1"], ["b1"]), (harness.handler.ids, harness.acknowledged))
            harness.clock.advance(0.5)
        self.assertEqual(["a1", "b1", "a1", "a1", "a2", "a3"], harness.handler.ids)
        self.assertEqual(["b1", "a1", "a2", "a3"], harness.acknowledged)

    def test_deadLetter(self) -> None:
        """
        When it has been put aside, the next has its turn.
        """
        harness = self.makeOrdered(lambda m: fail(ValueError()) if m.message_id == "a1" else None)
        with self.logs():
            harness.take(*messages("a1", "a2"))
            harness.clock.advance(1)
            self.assertEqual(["a1", "a1"], harness.handler.ids)
            harness.clock.advance(2)
        self.assertEqual(["a1", "a1", "a1", "a2"], harness.handler.ids)
        self.assertEqual((["a1", "a2"], 1), (harness.acknowledged, harness.delivery.deadLetters))

    def test_timeout(self) -> None:
        """
        What takes too long keeps its place for the next try as well, and lets
        the next go when it has been put aside; what it returned has been
        cancelled before.
        """
        cancelled: list[list[str]] = []

        def answer(message: UpstreamMessage) -> Deferred[None] | None:
            if message.message_id == "a1":
                return Deferred(lambda _: cancelled.append(list(harness.handler.ids)))
            return None

        harness = self.makeOrdered(answer, handlerTimeout=5, handlerTries=2)
        with self.logs():
            harness.take(*messages("a1", "a2"))
            harness.clock.pump([5, 1])
            self.assertEqual(["a1", "a1"], harness.handler.ids)
            harness.clock.advance(5)
        self.assertEqual(["a1", "a1", "a2"], harness.handler.ids)
        self.assertEqual([["a1"], ["a1", "a1"]], cancelled)
        self.assertEqual((["a1", "a2"], 1), (harness.acknowledged, harness.delivery.deadLetters))

    def test_waitingIsNotHandling(self) -> None:
        """
        The time-out of a message begins with its turn, not when it comes in.
        """
        harness = self.makeOrdered(handlerTimeout=5, handlerTries=1)
        with self.logs():
            harness.take(*messages("a1", "a2"))
            harness.clock.advance(4)
            self.finish("a1")
            harness.clock.advance(4.5)
            self.assertEqual([], harness.events(HandlingFailed))
            harness.clock.advance(0.5)
        self.assertEqual(["a2"], [event.message_id for event in harness.events(DeadLettered)])

    def test_timeoutsTogether(self) -> None:
        """
        Devices whose handlers time out at the same moment each go on with
        their next message, which has all its time.
        """
        harness = self.makeOrdered(handlerTimeout=5, handlerTries=1)
        with self.logs():
            harness.take(*messages("a1", "a2", "b1", "b2"))
            harness.clock.advance(5)
            self.assertEqual(["a1", "b1", "a2", "b2"], harness.handler.ids)
            harness.clock.advance(4.5)
            self.assertEqual(2, harness.delivery.deadLetters)
            harness.clock.advance(0.5)
        self.assertEqual(4, harness.delivery.deadLetters)
        self.assertEqual([], harness.clock.getDelayedCalls())

    def test_unavailable(self) -> None:
        """
        While the handler cannot work, each device's first message is tried and
        no other; when it can, all come in their order.
        """
        down = [True]

        def answer(message: UpstreamMessage) -> None:
            if down[0]:
                raise HandlerUnavailable

        harness = self.makeOrdered(answer, handlerTries=1)
        with self.logs():
            harness.take(*messages("a1", "a2", "b1", "b2"))
            harness.clock.pump([1, 2, 4])
            self.assertEqual(["a1", "b1"] * 4, harness.handler.ids)
            del harness.handler.messages[:]
            down[0] = False
            harness.clock.advance(8)
        self.assertEqual(["a1", "a2", "b1", "b2"], harness.handler.ids)
        self.assertEqual((["a1", "a2", "b1", "b2"], 0), (harness.acknowledged, harness.delivery.deadLetters))

    def test_allFail(self) -> None:
        """
        Each message has its own tries, counted from its own turn on.
        """
        harness = self.makeOrdered(lambda _: fail(ValueError()), handlerTries=2)
        with self.logs():
            harness.take(*messages("a1", "a2"))
            harness.clock.pump([1, 1])
        self.assertEqual(["a1", "a1", "a2", "a2"], harness.handler.ids)
        self.assertEqual(["a1", "a2"], harness.acknowledged)


class DuplicateTests(OrderedCase):
    """
    A message that comes again has one place, that of its first coming.
    """

    def test_waiting(self) -> None:
        """
        A duplicate of a message that waits for its turn joins it, and all
        comings are acknowledged when it has been handled.
        """
        harness = self.makeOrdered()
        harness.take(*messages("a1", "a2", "a3", "a2", "a2"))
        self.finish("a1")
        self.finish("a2")
        self.assertEqual(
            (["a1", "a2", "a3"], ["a1"] + ["a2"] * 3), (harness.handler.ids, harness.acknowledged)
        )
        harness.take(*messages("a2"))
        self.finish("a3")
        self.assertEqual(["a1", "a2", "a3"], harness.handler.ids)
        self.assertEqual(["a1", "a2", "a2", "a2", "a2", "a3"], harness.acknowledged)

    def test_everythingAgain(self) -> None:
        """
        When a stream broke and all that was unanswered comes again, in order,
        nothing is handled twice and nothing loses its place.
        """
        harness = self.makeOrdered()
        harness.take(*messages("a1", "a2", "a3"))
        self.finish("a1")
        harness.take(*messages("a1", "a2", "a3", "a4"))
        for message_id in ("a2", "a3", "a4"):
            self.finish(message_id)
        self.assertEqual(["a1", "a2", "a3", "a4"], harness.handler.ids)
        self.assertEqual(["a1", "a1", "a2", "a2", "a3", "a3", "a4"], harness.acknowledged)

    def test_malformed(self) -> None:
        """
        A malformed payload by the name of a message that waits does not have
        that acknowledged before its turn.
        """
        harness = self.makeOrdered()
        harness.take(*messages("a1", "a2"))
        harness.note("a2", harness.delivery.takeMalformed(MalformedPayload("No", "a2", "tok-a"), "{}"))
        self.finish("a1")
        self.assertEqual(["a1"], harness.acknowledged)
        self.finish("a2")
        self.assertEqual((["a1", "a2", "a2"], 0), (harness.acknowledged, harness.delivery.deadLetters))

    def test_cancelled(self) -> None:
        """
        Whoever does not wait for a message any more does not take it out of
        its place: it has arrived, and is handled.
        """
        harness = self.makeOrdered()
        first, second, third = messages("a1", "a2", "a3")
        harness.take(first)
        taken = harness.delivery.take(second)
        harness.take(third)
        taken.cancel()
        self.failureResultOf(taken, CancelledError)
        self.finish("a1")
        self.finish("a2")
        self.assertEqual((["a1", "a2", "a3"], ["a1"]), (harness.handler.ids, harness.acknowledged))


class ReceivedTests(OrderedCase):
    """
    With the policy C{received} the ACK goes out at once, and the order holds.
    """

    def test_order(self) -> None:
        """
        Messages are acknowledged when they come, and handled one at a time in
        their order, other devices concurrently.
        """
        harness = self.makeOrdered(ack="received")
        harness.take(*messages("a1", "a2", "b1", "a3"))
        self.assertEqual((["a1", "a2", "b1", "a3"], []), (harness.acknowledged, harness.handler.ids))
        harness.clock.advance(0)
        self.assertEqual(["a1", "b1"], harness.handler.ids)
        self.finish("a1")
        self.assertEqual(["a1", "b1", "a2"], harness.handler.ids)
        self.finish("a2")
        self.assertEqual(["a1", "b1", "a2", "a3"], harness.handler.ids)

    def test_duplicate(self) -> None:
        """
        A duplicate of a message that waits for its turn is acknowledged at
        once.
        """
        harness = self.makeOrdered(ack="received")
        harness.take(*messages("a1", "a2"))
        harness.clock.advance(0)
        harness.take(*messages("a2"))
        self.assertEqual(["a1", "a2", "a2"], harness.acknowledged)
        self.finish("a1")
        self.finish("a2")
        self.assertEqual(["a1", "a2"], harness.handler.ids)

    def test_failures(self) -> None:
        """
        A message that fails keeps its place, though it has been acknowledged.
        """
        harness = self.makeOrdered(
            lambda m: fail(ValueError()) if m.message_id == "a1" else None, ack="received", handlerTries=2
        )
        with self.logs():
            harness.take(*messages("a1", "a2"))
            harness.clock.advance(0)
            self.assertEqual(["a1"], harness.handler.ids)
            harness.clock.advance(1)
        self.assertEqual(["a1", "a1", "a2"], harness.handler.ids)
        self.assertEqual(["a1"], [event.message_id for event in harness.events(DeadLettered)])

    def test_beyondTheBound(self) -> None:
        """
        What comes when so much is being handled that its ACK has to wait
        overtakes nothing, be it that nothing has begun yet.
        """
        harness = self.makeOrdered(lambda _: None, ack="received")
        ids = [f"a{n}" for n in range(MAX_ACKED + 1)]
        harness.take(*messages(*ids))
        harness.clock.advance(0)
        self.assertEqual(ids, harness.handler.ids)


class StopTests(OrderedCase):
    """
    At a stop, what has not begun is left alone if it comes again.
    """

    def test_handled(self) -> None:
        """
        Under C{handled} what waits for its turn fails at once and is not
        handled, while what runs may come to its end.
        """
        harness = self.makeOrdered()
        harness.take(*messages("a1", "a2", "a3", "b1", "a2"))
        stopped = harness.stop(10)
        self.assertEqual([("a2", "Stopped"), ("a2", "Stopped"), ("a3", "Stopped")], harness.outcomes)
        self.finish("a1")
        self.assertNoResult(stopped)
        self.finish("b1")
        self.successResultOf(stopped)
        self.assertEqual((["a1", "b1"],) * 2, (harness.handler.ids, harness.acknowledged))
        self.assertEqual((0, []), (harness.delivery.deadLetters, harness.clock.getDelayedCalls()))
        self.assertEqual(0, self.lanes(harness))

    def test_nothingNew(self) -> None:
        """
        What was left alone is not taken over when it comes again before the
        end.
        """
        harness = self.makeOrdered()
        harness.take(*messages("a1", "a2"))
        stopped = harness.stop(10)
        harness.take(*messages("a2"))
        self.assertEqual([("a2", "Stopped")] * 2, harness.outcomes)
        self.finish("a1")
        self.successResultOf(stopped)
        self.assertEqual(["a1"], harness.handler.ids)

    def test_handledBetweenTries(self) -> None:
        """
        If the first waits for its next try, neither that nor what is behind it
        is waited for.
        """
        harness = self.makeOrdered(lambda _: fail(ValueError()))
        with self.logs():
            harness.take(*messages("a1", "a2"))
        self.successResultOf(harness.stop(10))
        self.assertEqual({("a1", "Stopped"), ("a2", "Stopped")}, set(harness.outcomes))
        self.assertEqual((["a1"], []), (harness.handler.ids, harness.clock.getDelayedCalls()))

    def test_received(self) -> None:
        """
        Under C{received} what waits for its turn has been acknowledged, so it
        is handled in its order during the grace.
        """
        harness = self.makeOrdered(ack="received")
        harness.take(*messages("a1", "a2", "a3"))
        harness.clock.advance(0)
        stopped = harness.stop(10)
        self.finish("a1")
        self.finish("a2")
        self.assertNoResult(stopped)
        self.finish("a3")
        self.successResultOf(stopped)
        self.assertEqual((["a1", "a2", "a3"], 0), (harness.handler.ids, harness.delivery.deadLetters))

    def test_receivedJustNow(self) -> None:
        """
        The same holds for what was acknowledged in the very turn of the stop.
        """
        harness = self.makeOrdered(ack="received")
        harness.take(*messages("a1", "a2"))
        stopped = harness.stop(10)
        self.assertEqual(["a1"], harness.handler.ids)
        self.finish("a1")
        self.finish("a2")
        self.successResultOf(stopped)
        self.assertEqual(["a1", "a2"], harness.handler.ids)
        self.assertEqual([], harness.clock.getDelayedCalls())

    def test_receivedGraceIsOver(self) -> None:
        """
        When the grace is over no handler begins any more: what was
        acknowledged and has not been handled is a dead letter.
        """
        harness = self.makeOrdered(ack="received")
        harness.take(*messages("a1", "a2", "a3", "b1", "b2"))
        harness.clock.advance(0)
        stopped = harness.stop(10)
        self.finish("a1")
        with self.logs():
            harness.clock.advance(10)
        self.successResultOf(stopped)
        self.assertEqual(["a1", "b1", "a2"], harness.handler.ids)
        self.assertEqual(
            {"a2", "a3", "b1", "b2"}, {event.message_id for event in harness.events(DeadLettered)}
        )
        self.assertEqual((4, 0), (harness.delivery.deadLetters, self.lanes(harness)))

    def test_receivedFailures(self) -> None:
        """
        What fails during the grace, or waits for its next try when the stop
        begins, is a dead letter and lets the next go.
        """
        harness = self.makeOrdered(
            lambda m: None if m.message_id == "a3" else fail(ValueError()), ack="received"
        )
        with self.logs():
            harness.take(*messages("a1", "a2", "a3"))
            harness.clock.advance(0)
            self.successResultOf(harness.stop(10))
        self.assertEqual(["a1", "a2", "a3"], harness.handler.ids)
        self.assertEqual(["a1", "a2"], [event.message_id for event in harness.events(DeadLettered)])
        self.assertEqual([], harness.clock.getDelayedCalls())

    def test_receivedTimeout(self) -> None:
        """
        The handler time-out goes on during the grace, and lets the next go.
        """
        harness = self.makeOrdered(ack="received", handlerTimeout=5)
        harness.take(*messages("a1", "a2"))
        harness.clock.advance(0)
        stopped = harness.stop(10)
        with self.logs():
            harness.clock.advance(5)
        self.finish("a2")
        self.successResultOf(stopped)
        self.assertEqual(["a1"], [event.message_id for event in harness.events(DeadLettered)])
        self.assertEqual(["a2"], [event.message.message_id for event in harness.events(Handled)])

    def test_receivedBeyondTheBound(self) -> None:
        """
        What has not been acknowledged under C{received} comes again as well,
        and so does not begin.
        """
        harness = self.makeOrdered(ack="received")
        ids = [f"a{n}" for n in range(MAX_ACKED + 1)]
        harness.take(*messages(*ids))
        harness.clock.advance(0)
        harness.handler.answer = lambda _: None
        stopped = harness.stop(10)
        self.assertEqual((ids[-1], "Stopped"), harness.outcomes[-1])
        self.finish("a0")
        self.successResultOf(stopped)
        self.assertEqual(ids[:-1], harness.handler.ids)

    def test_cancellingStartsNothing(self) -> None:
        """
        A handler that answers because it is cancelled at the end of the grace
        is too late, and does not let the next go.
        """
        harness = self.makeOrdered(lambda _: Deferred(lambda d: d.callback(None)), ack="received")
        harness.take(*messages("a1", "a2"))
        harness.clock.advance(0)
        stopped = harness.stop(10)
        with self.logs():
            harness.clock.advance(10)
        self.successResultOf(stopped)
        self.assertEqual((["a1"], 2), (harness.handler.ids, harness.delivery.deadLetters))

    def test_cancellingEndsAnother(self) -> None:
        """
        Nor does it if cancelling one device's handler ends another's.
        """

        def answer(message: UpstreamMessage) -> Deferred[None]:
            if message.message_id == "a1":
                return Deferred(lambda _: self.finish("b1"))
            return self.defer(message)

        harness = self.makeOrdered(answer, ack="received")
        harness.take(*messages("a1", "b1", "b2"))
        harness.clock.advance(0)
        stopped = harness.stop(10)
        with self.logs():
            harness.clock.advance(10)
        self.successResultOf(stopped)
        self.assertEqual(["a1", "b1"], harness.handler.ids)
        self.assertEqual(["b1"], [event.message.message_id for event in harness.events(Handled)])
        self.assertEqual(["a1", "b2"], [event.message_id for event in harness.events(DeadLettered)])

    def test_endsTheFirst(self) -> None:
        """
        Whoever hears from the stop that a message will not be handled may end
        the one before: those that are left do not begin.
        """
        harness = self.makeOrdered()
        first, second, third = messages("a1", "a2", "a3")
        harness.take(first)
        harness.delivery.take(second).addErrback(lambda _: self.finish("a1"))
        harness.take(third)
        self.successResultOf(harness.stop(10))
        self.assertEqual(["a1"], harness.handler.ids)
        self.assertEqual({("a1", "acknowledge"), ("a3", "Stopped")}, set(harness.outcomes))


class ReceiptTests(OrderedCase):
    """
    Receipts keep the order of the device that they tell of.
    """

    def test_byDevice(self) -> None:
        """
        All receipts are from one sender, and yet those of different devices
        are handled at the same time; those of one are not.
        """
        harness = self.makeOrdered()
        harness.take(receipt("m-1", "tok-a"), receipt("m-2", "tok-b"), receipt("m-3", "tok-a"))
        self.assertEqual(["dr2:m-1", "dr2:m-2"], [receipt.message_id for receipt in harness.handler.receipts])
        self.finish("dr2:m-1")
        self.assertEqual(3, len(harness.handler.receipts))

    def test_withItsMessages(self) -> None:
        """
        A device's receipts and its messages keep their order between them.
        """
        harness = self.makeOrdered()
        harness.take(receipt("m-1", "tok-a"), *messages("a1"), receipt("m-2", "tok-a"))
        self.assertEqual((1, []), (len(harness.handler.receipts), harness.handler.ids))
        self.finish("dr2:m-1")
        self.assertEqual((1, ["a1"]), (len(harness.handler.receipts), harness.handler.ids))
        self.finish("a1")
        self.assertEqual(2, len(harness.handler.receipts))

    def test_ofNobody(self) -> None:
        """
        Receipts that do not name their device have no order, and hold up
        nobody.
        """
        harness = self.makeOrdered()
        harness.take(receipt("m-1"), receipt("m-2"))
        self.assertEqual((2, 0), (len(harness.handler.receipts), self.lanes(harness)))

    def test_ignored(self) -> None:
        """
        Where the handler does not care for receipts they are acknowledged at
        once, whatever their device still waits for.
        """
        handler = _MessagesOnly()
        harness = self.makeDelivery(handler=handler, ordered=True)
        harness.take(*messages("a1"), receipt("m-1", "tok-a"))
        self.assertEqual(["dr2:m-1"], harness.acknowledged)
        handler.result.callback(None)
        self.assertEqual(["dr2:m-1", "a1"], harness.acknowledged)


@implementer(IUpstreamHandler)
class _MessagesOnly:
    """
    A handler that does not care for receipts.
    """

    def __init__(self) -> None:
        self.result: Deferred[None] = Deferred()

    def messageReceived(self, message: UpstreamMessage) -> Deferred[None]:
        """
        Take as long as the test says.
        """
        return self.result


#: What the application does when it is called.
ANSWERS = ("defer", "await", "succeed", "fired", "raise", "unavailable", "deliver")


class OrderedMachine(RuleBasedStateMachine):
    """
    A delivery that keeps the order, between devices that send and an
    application that does as it likes.
    """

    DEVICES = ("a", "b", "c")
    TIMEOUT = 7.0

    @initialize(policy=st.sampled_from(POLICIES))
    def begin(self, policy: str) -> None:
        """
        The delivery is made.
        """
        self.policy = policy
        #: What each device has sent, in order.
        self.sent: dict[str, list[str]] = {device: [] for device in self.DEVICES}
        #: Whose each message is, and the message.
        self.messages: dict[str, tuple[str, UpstreamMessage | Receipt]] = {}
        #: Each coming of a message, and what became of it.
        self.comings: list[tuple[str, Deferred[None], list[object]]] = []
        #: What the handler has been called for, in order of the first calls.
        self.begun: list[str] = []
        #: What the handler waits for, and nobody has fired or cancelled.
        self.pending: list[tuple[str, Deferred[None]]] = []
        #: What the handler does when it is called next.
        self.answers = "defer"
        self.calling: list[str] = []
        self.handled: list[str] = []
        self.letters: list[str] = []
        #: What must not have happened, but in a place where nobody would see
        #: an exception.
        self.violations: list[str] = []
        self.stopping: Deferred[None] | None = None
        self.begunAtStop: list[str] = []
        self.stopped = False
        self.harness = Harness(
            RecordingHandler(self.answer),
            Policy(ack=policy, ordered=True, handlerTimeout=self.TIMEOUT, handlerTries=2),
            lambda: 0.0,
        )
        self.harness.onEvent = self.observed

    def observed(self, event: Any) -> None:
        """
        The delivery tells.
        """
        if isinstance(event, Handled):
            self.handled.append(event.message.message_id)
        elif isinstance(event, DeadLettered):
            self.letters.append(event.message_id)

    def check(self, message_id: str) -> None:
        """
        A message is given to the handler: may it be?
        """
        device, _ = self.messages[message_id]
        done = self.handled + self.letters
        running = [other for other, result in self.pending if not result.called] + self.calling
        if any(self.messages[other][0] == device for other in running):
            self.violations.append(f"{message_id} is handled beside another of its device")
        if message_id in done:
            self.violations.append(f"{message_id} is done, and handled again")
        before = self.sent[device][: self.sent[device].index(message_id)]
        if not set(before) <= set(done):
            self.violations.append(f"{message_id} overtakes one of {before}")
        if self.stopped:
            self.violations.append(f"{message_id} is handled after the stop")
        if self.stopping is not None and self.policy == "handled" and message_id not in self.begunAtStop:
            self.violations.append(f"{message_id} begins during the stop")

    def answer(self, message: Any) -> Any:
        """
        The application is called.
        """
        message_id = message.message_id
        self.check(message_id)
        if message_id not in self.begun:
            self.begun.append(message_id)
        self.calling.append(message_id)
        try:
            return self.react(message_id)
        finally:
            self.calling.remove(message_id)

    def react(self, message_id: str) -> Any:
        """
        The application does something.
        """
        answers = self.answers
        if answers == "raise":
            raise ValueError
        if answers == "unavailable":
            raise HandlerUnavailable
        if answers == "deliver":
            # The next message of its own device, and of another.
            self.answers = "succeed"
            for device in self.DEVICES[:2]:
                self.arrive(device)
        if answers in ("defer", "await"):
            result: Deferred[None] = Deferred()
            self.pending.append((message_id, result))
            return result if answers == "defer" else self.wait(result)
        return succeed(None) if answers == "fired" else None

    async def wait(self, result: Deferred[None]) -> None:
        """
        An C{async def} handler.
        """
        await result

    def arrive(self, device: str, isReceipt: bool = False) -> None:
        """
        A new message comes in.
        """
        name = f"{device}{len(self.sent[device])}"
        message: UpstreamMessage | Receipt
        message = receipt(name, f"tok-{device}") if isReceipt else upstream(name, f"tok-{device}")
        self.messages[message.message_id] = (device, message)
        self.sent[device].append(message.message_id)
        self.come(message)

    def come(self, message: UpstreamMessage | Receipt) -> None:
        """
        A message comes in.
        """
        taken = self.harness.delivery.take(message)
        outcome: list[object] = []
        self.comings.append((message.message_id, taken, outcome))
        taken.addCallbacks(
            lambda _: outcome.append("acknowledge"), lambda failure: outcome.append(failure.type)
        )

    @rule(device=st.sampled_from(DEVICES), isReceipt=st.booleans(), answers=st.sampled_from(ANSWERS))
    def send(self, device: str, isReceipt: bool, answers: str) -> None:
        """
        A device sends something new.
        """
        self.answers = answers
        self.arrive(device, isReceipt)

    @rule(sent=st.lists(st.sampled_from(DEVICES), min_size=5, max_size=15), answers=st.sampled_from(ANSWERS))
    def sendMuch(self, sent: list[str], answers: str) -> None:
        """
        Devices send much at once.
        """
        self.answers = answers
        for device in sent:
            self.arrive(device)

    @precondition(lambda self: self.comings)
    @rule(which=st.integers(0, 1000), answers=st.sampled_from(ANSWERS))
    def comeAgain(self, which: int, answers: str) -> None:
        """
        A message comes in again.
        """
        self.answers = answers
        message_id, _, _ = self.comings[which % len(self.comings)]
        self.come(self.messages[message_id][1])

    @precondition(lambda self: self.comings)
    @rule(which=st.integers(0, 1000), answers=st.sampled_from(ANSWERS))
    def forget(self, which: int, answers: str) -> None:
        """
        Nobody waits for one coming of a message any more.
        """
        self.answers = answers
        self.comings[which % len(self.comings)][1].cancel()

    @precondition(lambda self: self.pending)
    @rule(
        which=st.integers(0, 100),
        how=st.sampled_from(("succeed", "succeed", "succeed", "fail", "unavailable", "cancel")),
        answers=st.sampled_from(ANSWERS),
    )
    def fire(self, which: int, how: str, answers: str) -> None:
        """
        What the handler waits for happens, be it that the handler was given
        up long ago.
        """
        self.answers = answers
        _, result = self.pending.pop(which % len(self.pending))
        if how == "cancel":
            result.cancel()
        elif how == "succeed":
            result.callback(None)
        else:
            result.errback(ValueError() if how == "fail" else HandlerUnavailable())

    @rule(seconds=st.sampled_from((0, 0.5, 1, 2, TIMEOUT)), answers=st.sampled_from(ANSWERS))
    def pass_(self, seconds: float, answers: str) -> None:
        """
        Time passes.
        """
        self.answers = answers
        self.harness.clock.advance(seconds)

    @precondition(lambda self: self.stopping is None and len(self.comings) > 5)
    @rule(grace=st.sampled_from((0.0, 1.0, 10.0)), answers=st.sampled_from(ANSWERS))
    def stop(self, grace: float, answers: str) -> None:
        """
        The delivery is stopped.
        """
        self.answers = answers
        self.begunAtStop = list(self.begun)
        # Beforehand, as handlers may be called before stop() returns.
        self.stopping = Deferred()
        self.harness.stop(grace).addCallback(self.hasStopped)

    def hasStopped(self, result: None) -> None:
        """
        The delivery says that it has stopped.
        """
        self.stopped = True

    @invariant()
    def nothingUnseen(self) -> None:
        """
        Nothing went wrong where exceptions are swallowed.
        """
        assert self.violations == []

    @invariant()
    def inOrder(self) -> None:
        """
        Each device's messages were first handled in the order they came, and
        none came to two ends.
        """
        for device, sent in self.sent.items():
            begun = [message_id for message_id in self.begun if self.messages[message_id][0] == device]
            assert begun == sent[: len(begun)]
        ends = self.handled + self.letters
        assert len(ends) == len(set(ends))

    @invariant()
    def noMemory(self) -> None:
        """
        Only devices with something to be handled are remembered.
        """
        done = set(self.handled + self.letters)
        busy = [device for device, sent in self.sent.items() if not set(sent) <= done]
        assert len(self.harness.delivery._lanes) <= len(busy)

    def teardown(self) -> None:
        """
        If it was never stopped, everything has been handled or put aside once
        the application works.  In the end each coming of a message has been
        answered, and nothing is left.
        """
        if not hasattr(self, "harness"):
            return
        self.answers = "succeed"
        if self.stopping is None:
            self.harness.clock.pump([self.TIMEOUT, 60, self.TIMEOUT, 60])
            assert set(self.handled + self.letters) == set(self.messages)
            assert len(self.harness.delivery._lanes) == 0
            assert self.harness.clock.getDelayedCalls() == []
            self.stop(1.0, "succeed")
        self.harness.clock.pump([0, 10])
        assert self.stopped
        assert self.harness.clock.getDelayedCalls() == []
        assert len(self.harness.delivery._lanes) == 0
        for place, (message_id, _, outcome) in enumerate(self.comings):
            if outcome == [StreamLost]:
                # It came very often after that.
                later = [other for other, _, _ in self.comings[place + 1 :] if other == message_id]
                assert len(later) >= MAX_WAITERS
                continue
            assert outcome in (["acknowledge"], [Stopped], [CancelledError])
            if outcome == ["acknowledge"]:
                assert message_id in self.handled + self.letters
        assert self.violations == []


class OrderedMachineTests(SynchronousTestCase):
    """
    The order holds whatever happens.
    """

    def test_anyOrder(self) -> None:
        """
        Of each device at most one message is being handled, they begin in
        their order, and each comes to one end.
        """
        self.addCleanup(self.flushLoggedErrors, HandlerFailed)
        run_state_machine_as_test(OrderedMachine, settings=settings(max_examples=150, stateful_step_count=40))
