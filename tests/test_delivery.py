"""
Tests for L{fcmxmpp.delivery}.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import types
from collections.abc import Awaitable, Callable, Generator, Iterator
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
from twisted.internet.defer import CancelledError, Deferred, DeferredLock, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, capturedLogs, eventAsText, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from fcmxmpp.delivery import MAX_ACKED, MAX_TOLD, MAX_WAITERS, POLICIES, Policy, UpstreamDelivery
from fcmxmpp.errors import HandlerFailed, HandlerUnavailable, MalformedPayload, Stopped, StreamLost
from fcmxmpp.interfaces import (
    Arrived,
    DeadLettered,
    Handled,
    HandlingFailed,
    IUpstreamHandler,
    Repeated,
    Undecodable,
)
from fcmxmpp.messages import RECEIPT_SENDER, UpstreamMessage
from fcmxmpp.testing import RecordingHandler
from tests.delivering import DeliveryCase, Harness, receipt, rendered, upstream


#: What must not get into any log: a handler's exception quotes the message.
SECRET = "the-password-of-the-user"


class _Awaitable:
    """
    Something that can be awaited, and is neither a coroutine nor a future.
    """

    def __init__(self, deferred: Deferred[Any]) -> None:
        self._deferred = deferred

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._deferred.__await__()


class KindsOfHandlerTests(DeliveryCase):
    """
    A handler may be written in any of Python's and Twisted's ways.
    """

    def test_plain(self) -> None:
        """
        A message whose handler returns nothing may be acknowledged at once.
        """
        harness = self.makeDelivery()
        message = upstream("m-1", op="ping")
        harness.take(message)
        self.assertEqual([message], harness.handler.messages)
        self.assertEqual([("m-1", "acknowledge")], harness.outcomes)
        self.assertEqual([Arrived(message), Handled(message, 1, 0.0)], harness.observer.events)

    def test_plainValue(self) -> None:
        """
        What a plain handler returns does not matter.
        """
        for value in (0, False, "", "no", [], object()):
            harness = self.makeDelivery(lambda _, value=value: value)
            harness.take(upstream("m-1"))
            self.assertEqual(["m-1"], harness.acknowledged)

    def test_deferred(self) -> None:
        """
        A message whose handler returns a Deferred may be acknowledged when
        that fires, and not before.
        """
        result: Deferred[object] = Deferred()
        harness = self.makeDelivery(lambda _: result)
        harness.take(upstream("m-1"))
        self.assertEqual([], harness.outcomes)
        result.callback("whatever")
        self.assertEqual(["m-1"], harness.acknowledged)

    def test_deferredThatHasFired(self) -> None:
        """
        A Deferred that has fired already is as good as none.
        """
        harness = self.makeDelivery(lambda _: succeed(None))
        harness.take(upstream("m-1"))
        self.assertEqual(["m-1"], harness.acknowledged)

    def test_deferredThatHasFailed(self) -> None:
        """
        A Deferred that has failed already is a failed try.
        """
        harness = self.makeDelivery(lambda _: fail(ValueError()))
        with self.logs():
            harness.take(upstream("m-1"))
        self.assertEqual([], harness.outcomes)
        self.assertEqual([HandlingFailed(upstream("m-1"), 1, 1.0)], harness.events(HandlingFailed))

    def test_chainedDeferred(self) -> None:
        """
        A Deferred that waits for another is waited for to its end.
        """
        inner: Deferred[None] = Deferred()
        outer: Deferred[None] = Deferred()
        outer.addCallback(lambda _: inner)
        harness = self.makeDelivery(lambda _: outer)
        harness.take(upstream("m-1"))
        outer.callback(None)
        self.assertEqual([], harness.outcomes)
        inner.callback(None)
        self.assertEqual(["m-1"], harness.acknowledged)

    def test_coroutine(self) -> None:
        """
        An C{async def} handler runs to its end before the message may be
        acknowledged.
        """
        result: Deferred[None] = Deferred()
        steps: list[str] = []

        async def answer(message: UpstreamMessage) -> None:
            steps.append("begun")
            await result
            steps.append("ended")

        harness = self.makeDelivery(answer)
        harness.take(upstream("m-1"))
        self.assertEqual((["begun"], []), (steps, harness.outcomes))
        result.callback(None)
        self.assertEqual((["begun", "ended"], ["m-1"]), (steps, harness.acknowledged))

    def test_coroutineFails(self) -> None:
        """
        An exception in an C{async def} handler is a failed try.
        """

        async def answer(message: UpstreamMessage) -> None:
            raise ValueError

        harness = self.makeDelivery(answer)
        with self.logs():
            harness.take(upstream("m-1"))
        self.assertEqual([1.0], [event.retryIn for event in harness.events(HandlingFailed)])

    def test_awaitable(self) -> None:
        """
        Anything that can be awaited is.
        """
        result: Deferred[None] = Deferred()
        harness = self.makeDelivery(lambda _: _Awaitable(result))
        harness.take(upstream("m-1"))
        self.assertEqual([], harness.outcomes)
        result.callback(None)
        self.assertEqual(["m-1"], harness.acknowledged)

    def test_awaitableFails(self) -> None:
        """
        An awaitable that raises is a failed try.
        """
        harness = self.makeDelivery(lambda _: _Awaitable(fail(ValueError())))
        with self.logs():
            harness.take(upstream("m-1"))
        self.assertEqual(([], 1), (harness.outcomes, len(harness.events(HandlingFailed))))

    def loop(self) -> asyncio.AbstractEventLoop:
        """
        An event loop of our own, which runs only when it is told to.
        """
        loop = asyncio.new_event_loop()
        self.addCleanup(loop.close)
        return loop

    def turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """
        Have an event loop do what is due.
        """
        loop.call_soon(loop.stop)
        loop.run_forever()

    def test_future(self) -> None:
        """
        An asyncio future is waited for.
        """
        loop = self.loop()
        future = loop.create_future()
        harness = self.makeDelivery(lambda _: future)
        harness.take(upstream("m-1"))
        self.turn(loop)
        self.assertEqual([], harness.outcomes)
        future.set_result(None)
        self.turn(loop)
        self.assertEqual(["m-1"], harness.acknowledged)

    def test_futureFails(self) -> None:
        """
        An asyncio future with an exception is a failed try.
        """
        loop = self.loop()
        future = loop.create_future()
        harness = self.makeDelivery(lambda _: future)
        harness.take(upstream("m-1"))
        future.set_exception(ValueError())
        with self.logs():
            self.turn(loop)
        self.assertEqual(([], 1), (harness.outcomes, len(harness.events(HandlingFailed))))

    def test_futureTimesOut(self) -> None:
        """
        An asyncio future that takes too long is cancelled.
        """
        loop = self.loop()
        future = loop.create_future()
        harness = self.makeDelivery(lambda _: future, handlerTimeout=5, handlerTries=1)
        harness.take(upstream("m-1"))
        with self.logs():
            harness.clock.advance(5)
            self.turn(loop)
        self.assertTrue(future.cancelled())
        self.assertEqual(["m-1"], [event.message_id for event in harness.events(DeadLettered)])

    def test_raises(self) -> None:
        """
        A plain handler that raises is a failed try, and C{take} itself does
        not raise.
        """

        def answer(message: UpstreamMessage) -> None:
            raise ValueError

        harness = self.makeDelivery(answer)
        with self.logs():
            harness.take(upstream("m-1"))
        self.assertEqual([HandlingFailed(upstream("m-1"), 1, 1.0)], harness.events(HandlingFailed))

    def assertNotBegun(self, answer: Callable[[UpstreamMessage], object]) -> None:
        """
        Assert that this handler's tries fail with a C{TypeError}.
        """
        harness = self.makeDelivery(answer, handlerTries=1)
        with self.logs():
            harness.take(upstream("m-1"))
        self.assertEqual([HandlingFailed(upstream("m-1"), 1, None)], harness.events(HandlingFailed))
        (letter,) = harness.events(DeadLettered)
        self.assertIn("builtins.TypeError", letter.reason)

    def test_generator(self) -> None:
        """
        A handler with a forgotten C{yield} has not handled anything: its
        message is not silently acknowledged, it fails with a C{TypeError}.
        """

        def answer(message: UpstreamMessage) -> Iterator[None]:
            yield

        self.assertNotBegun(answer)

    def test_asyncGenerator(self) -> None:
        """
        Nor has an C{async def} handler with a C{yield}.
        """

        async def answer(message: UpstreamMessage) -> Any:
            yield

        self.assertNotBegun(answer)

    def test_cancelledErrorOfAsyncio(self) -> None:
        """
        C{asyncio.CancelledError}, which is no C{Exception}, is a failed try
        like any other; the message is neither lost nor stuck.
        """

        def answer(message: UpstreamMessage) -> None:
            raise asyncio.CancelledError

        for policy in POLICIES:
            harness = self.makeDelivery(answer, ack=policy, handlerTries=1)
            with self.logs():
                harness.take(upstream("m-1"))
                harness.clock.advance(0)
            self.assertEqual(
                (policy, ["m-1"]), (policy, [event.message_id for event in harness.events(DeadLettered)])
            )

    def test_generatorBasedCoroutine(self) -> None:
        """
        A coroutine of the old kind, made by C{types.coroutine}, is awaited.
        """
        result: Deferred[None] = Deferred()

        @types.coroutine
        def answer(message: UpstreamMessage) -> Generator[Any, Any, None]:
            yield result

        harness = self.makeDelivery(answer)
        harness.take(upstream("m-1"))
        self.assertEqual([], harness.outcomes)
        result.callback(None)
        self.assertEqual(["m-1"], harness.acknowledged)


class PolicyTests(DeliveryCase):
    """
    L{Policy} says how messages are handled.
    """

    def test_defaults(self) -> None:
        """
        Without a word from anybody, messages are acknowledged as fits (see
        L{AppServer}), handled within a minute, and given up after three tries.
        """
        policy = Policy()
        self.assertEqual((None, 60.0, 3), (policy.ack, policy.handlerTimeout, policy.handlerTries))

    def test_unknownAck(self) -> None:
        """
        An unknown policy is refused, and the error names the known ones.
        """
        error = self.assertRaises(ValueError, Policy, ack="maybe")
        self.assertIn("handled, stored, received", str(error))

    def test_senseless(self) -> None:
        """
        Numbers that make no sense are refused.
        """
        for senseless in (
            {"handlerTimeout": 0},
            {"handlerTimeout": -1.0},
            {"handlerTries": 0},
            {"remembered": 0},
        ):
            self.assertRaises(ValueError, Policy, **senseless)

    def test_small(self) -> None:
        """
        Small numbers that make sense are taken.
        """
        policy = Policy(handlerTimeout=0.1, handlerTries=1, remembered=1)
        self.assertEqual((0.1, 1, 1), (policy.handlerTimeout, policy.handlerTries, policy.remembered))

    def test_observerIsOptional(self) -> None:
        """
        Whoever wants to be told nothing passes no observer.
        """
        clock = Clock()
        outcomes: list[object] = []

        def answer(message: UpstreamMessage) -> None:
            if message.message_id == "bad":
                raise ValueError

        for policy in POLICIES:
            delivery = UpstreamDelivery(
                RecordingHandler(answer), Policy(ack=policy, handlerTries=1), clock, lambda: 0.0
            )
            with self.logs():
                for message_id in ("m-1", "m-1", "bad"):
                    delivery.take(upstream(message_id)).addBoth(outcomes.append)
                clock.advance(0)
                delivery.takeMalformed(MalformedPayload("bad", "m-9", "tok-A"), "{}").addBoth(outcomes.append)
            self.assertEqual((2, 1), (delivery.deadLetters, delivery.malformed))
        self.assertEqual([None] * 4 * len(POLICIES), outcomes)
        self.assertEqual([], clock.getDelayedCalls())


class HandledPolicyTests(DeliveryCase):
    """
    With the policy C{handled}, a message may be acknowledged when the
    application has handled it.
    """

    def test_handledAtTheSameTime(self) -> None:
        """
        Messages are handled at the same time, and each is acknowledged when
        its own handling is done.
        """
        results: dict[str, Deferred[None]] = {}
        harness = self.makeDelivery(lambda m: results.setdefault(m.message_id, Deferred()))
        harness.take(upstream("m-1"), upstream("m-2"), upstream("m-3"))
        self.assertEqual(["m-1", "m-2", "m-3"], harness.handler.ids)
        for message_id in ("m-2", "m-3", "m-1"):
            results[message_id].callback(None)
        self.assertEqual(["m-2", "m-3", "m-1"], harness.acknowledged)

    def test_seconds(self) -> None:
        """
        The observer is told how long a message took from its first coming on,
        its tries and what lay between them included.
        """
        results: list[Deferred[None]] = [Deferred(), Deferred()]
        harness = self.makeDelivery(lambda m: results[int(m.message_id)])
        harness.clock.advance(100)
        harness.take(upstream("0"))
        harness.clock.advance(2)
        harness.take(upstream("0"), upstream("1"))
        harness.clock.advance(5)
        for result in results:
            result.callback(None)
        self.assertEqual([7.0, 5.0], [event.seconds for event in harness.events(Handled)])

    def test_poison(self) -> None:
        """
        A message that always fails becomes a dead letter after the tries and
        may be acknowledged then, so that it does not fill the window.
        """
        harness = self.makeDelivery(lambda _: fail(ValueError(SECRET)))
        with self.logs():
            harness.take(upstream("m-1"))
            harness.clock.advance(1)
            self.assertEqual(([], 0), (harness.outcomes, harness.delivery.deadLetters))
            harness.clock.advance(2)
        self.assertEqual(3, len(harness.handler.messages))
        self.assertEqual((["m-1"], 1), (harness.acknowledged, harness.delivery.deadLetters))
        self.assertEqual(
            [DeadLettered("m-1", "tok-A", "the handler failed 3 times, last: builtins.ValueError")],
            harness.events(DeadLettered),
        )
        self.assertEqual([], harness.events(Handled))

    def test_counted(self) -> None:
        """
        What the handler has handled is counted, receipts included, each
        message once, by either policy; what fails or is malformed is not.
        """
        for policy in POLICIES:
            results = [None, fail(ValueError()), fail(HandlerUnavailable()), None, None]
            harness = self.makeDelivery(lambda _, results=results: results.pop(0), ack=policy, handlerTries=2)
            self.assertEqual(0, harness.delivery.handled)
            with self.logs():
                harness.take(upstream("m-1"), upstream("m-1"), upstream("m-2"))
                harness.clock.advance(0)
                self.assertEqual(1, harness.delivery.handled)
                harness.clock.pump([1, 1])
                self.assertEqual(2, harness.delivery.handled)
                harness.take(upstream("m-1"), upstream("m-2"), receipt("d-1"))
                harness.clock.advance(0)
                harness.delivery.takeMalformed(MalformedPayload("No", "m-3", "tok-A"), "{}")
            counts = (harness.delivery.handled, harness.delivery.deadLetters, harness.delivery.malformed)
            self.assertEqual((3, 1, 1), counts)

    def test_poisonAmongGood(self) -> None:
        """
        A poison message does not hold up the others.
        """
        harness = self.makeDelivery(lambda m: fail(ValueError()) if m.message_id == "bad" else None)
        good = [f"m-{n}" for n in range(1000)]
        with self.logs():
            harness.take(*[upstream(m) for m in good[:500]], upstream("bad"))
            harness.take(*[upstream(m) for m in good[500:]])
            self.assertEqual(good, harness.acknowledged)
            harness.clock.pump([1, 2])
        self.assertEqual([*good, "bad"], harness.acknowledged)

    def test_dataIsHandedOverWhole(self) -> None:
        """
        The handler is given the very message that came.
        """
        message = UpstreamMessage(
            from_="tok-A", message_id="m-1", data={"k": "v"}, time_to_live=60, category="org.example.app"
        )
        harness = self.makeDelivery()
        harness.take(message)
        self.assertIs(message, harness.handler.messages[0])


class ReceivedPolicyTests(DeliveryCase):
    """
    With the policy C{received}, a message may be acknowledged at once.
    """

    def test_acknowledgedFirst(self) -> None:
        """
        The message may be acknowledged before the handler is called.
        """
        order: list[str] = []
        harness = self.makeDelivery(lambda _: order.append("handled"), ack="received")
        harness.delivery.take(upstream("m-1")).addCallback(lambda _: order.append("acknowledged"))
        self.assertEqual(["acknowledged"], order)
        harness.clock.advance(0)
        self.assertEqual(["acknowledged", "handled"], order)

    def test_order(self) -> None:
        """
        Messages are handled in the order in which they came, and all that
        came together by one call of the clock.
        """
        harness = self.makeDelivery(ack="received")
        ids = [f"m-{n}" for n in range(50)]
        harness.take(*map(upstream, ids))
        self.assertEqual((ids, []), (harness.acknowledged, harness.handler.ids))
        self.assertEqual(1, len(harness.clock.getDelayedCalls()))
        harness.clock.advance(0)
        self.assertEqual(ids, harness.handler.ids)
        self.assertEqual(50, len(harness.events(Handled)))

    def test_takenWhileHandling(self) -> None:
        """
        What comes in while the handler is being called has its turn after
        what is there already.
        """
        harness = self.makeDelivery(ack="received")

        def answer(message: UpstreamMessage) -> None:
            if message.message_id == "m-1":
                harness.take(upstream("m-3"))

        harness.handler.answer = answer
        harness.take(upstream("m-1"), upstream("m-2"))
        harness.clock.advance(0)
        self.assertEqual(["m-1", "m-2", "m-3"], harness.handler.ids)

    def test_duplicate(self) -> None:
        """
        A duplicate may be acknowledged at once, too, whether the first is
        waiting, being handled or done, and is not handled.
        """
        result: Deferred[None] = Deferred()
        harness = self.makeDelivery(lambda _: result, ack="received")
        harness.take(upstream("m-1"), upstream("m-1"))
        harness.clock.advance(0)
        harness.take(upstream("m-1"))
        result.callback(None)
        harness.take(upstream("m-1"))
        self.assertEqual((["m-1"] * 4, ["m-1"]), (harness.acknowledged, harness.handler.ids))

    def test_failures(self) -> None:
        """
        A message whose handler fails is tried again, and is a dead letter
        after the tries; its ACK is long gone.
        """
        harness = self.makeDelivery(lambda _: fail(ValueError()), ack="received")
        with self.logs():
            harness.take(upstream("m-1"))
            harness.clock.pump([0, 1, 2])
        self.assertEqual((["m-1"], ["m-1"] * 3), (harness.acknowledged, harness.handler.ids))
        self.assertEqual(["m-1"], [event.message_id for event in harness.events(DeadLettered)])

    def test_stopWithWorkPending(self) -> None:
        """
        At a stop, what was acknowledged and is not handled becomes a dead
        letter, because nobody will deliver it again: what waits for its next
        try, what still runs when the grace is over; what has not been begun
        gets its turn.
        """
        running: Deferred[None] = Deferred()
        results = {"failing": fail(ValueError()), "running": running, "late": None}
        harness = self.makeDelivery(lambda m: results[m.message_id], ack="received")
        with self.logs():
            harness.take(upstream("failing"), upstream("running"))
            harness.clock.advance(0)
            harness.take(upstream("late"))
            stopped = harness.stop(10)
            self.assertEqual(["late"], [event.message.message_id for event in harness.events(Handled)])
            self.assertNoResult(stopped)
            harness.clock.advance(10)
        self.successResultOf(stopped)
        self.assertEqual(
            [("failing", "tok-A"), ("running", "tok-A")],
            [(event.message_id, event.from_) for event in harness.events(DeadLettered)],
        )
        self.assertEqual(2, harness.delivery.deadLetters)
        self.assertEqual(["failing", "running", "late"], harness.acknowledged)

    def test_stopWithFailure(self) -> None:
        """
        What fails during the stop is not tried again, and so is a dead
        letter, too; be it only that the handler is unavailable.
        """
        for error in (ValueError(), HandlerUnavailable()):
            harness = self.makeDelivery(lambda _, error=error: fail(error), ack="received")
            harness.take(upstream("m-1"))
            with self.logs():
                self.successResultOf(harness.stop(10))
            self.assertEqual(["m-1"], [event.message_id for event in harness.events(DeadLettered)])

    def test_stopLeavesNoCall(self) -> None:
        """
        A stop in the same turn in which messages came leaves no call behind.
        """
        harness = self.makeDelivery(ack="received")
        harness.take(upstream("m-1"))
        self.successResultOf(harness.stop(10))
        self.assertEqual(["m-1"], harness.handler.ids)
        self.assertEqual([], harness.clock.getDelayedCalls())


class DuplicateTests(DeliveryCase):
    """
    A message is handled once, however often it comes in.
    """

    def test_running(self) -> None:
        """
        A duplicate of what is being handled joins that: both may be
        acknowledged when it is done, the first first.
        """
        result: Deferred[None] = Deferred()
        harness = self.makeDelivery(lambda _: result)
        first, second = upstream("m-1", n="1"), upstream("m-1", n="2")
        harness.take(first, second)
        self.assertEqual(([first], []), (harness.handler.messages, harness.outcomes))
        self.assertEqual([Arrived(first), Repeated(second)], harness.observer.events)
        result.callback(None)
        self.assertEqual(["m-1", "m-1"], harness.acknowledged)
        self.assertEqual([Handled(first, 1, 0.0)], harness.events(Handled))

    def test_betweenTries(self) -> None:
        """
        A duplicate of what waits for its next try neither hastens that try
        nor is acknowledged before it.
        """
        results = [fail(ValueError()), succeed(None)]
        harness = self.makeDelivery(lambda _: results.pop(0))
        with self.logs():
            harness.take(upstream("m-1"), upstream("m-1"))
        self.assertEqual((["m-1"], []), (harness.handler.ids, harness.outcomes))
        harness.clock.advance(1)
        self.assertEqual((["m-1"] * 2, ["m-1"] * 2), (harness.handler.ids, harness.acknowledged))

    def test_done(self) -> None:
        """
        A duplicate of what has been handled may be acknowledged at once.
        """
        harness = self.makeDelivery()
        harness.take(upstream("m-1"), upstream("m-1"))
        self.assertEqual((["m-1"], ["m-1"] * 2), (harness.handler.ids, harness.acknowledged))
        self.assertEqual([Repeated(upstream("m-1"))], harness.events(Repeated))

    def test_deadLetter(self) -> None:
        """
        A duplicate of a dead letter may be acknowledged, and is not tried.
        """
        harness = self.makeDelivery(lambda _: fail(ValueError()), handlerTries=1)
        with self.logs():
            harness.take(upstream("m-1"), upstream("m-1"))
        self.assertEqual((["m-1"], ["m-1"] * 2), (harness.handler.ids, harness.acknowledged))
        self.assertEqual(1, harness.delivery.deadLetters)

    def test_otherDevice(self) -> None:
        """
        The C{message_id} of two devices may be the same: those are two
        messages.
        """
        harness = self.makeDelivery()
        messages = [upstream("m-1", from_="tok-A"), upstream("m-1", from_="tok-B")]
        harness.take(*messages)
        self.assertEqual(messages, harness.handler.messages)

    def test_boundedMemory(self) -> None:
        """
        As many messages are remembered as the policy says, the newest; older
        ones are handled again when they come again.
        """
        harness = self.makeDelivery(remembered=2)
        harness.take(upstream("m-1"), upstream("m-2"), upstream("m-3"))
        harness.take(upstream("m-3"), upstream("m-2"))
        self.assertEqual(["m-1", "m-2", "m-3"], harness.handler.ids)
        harness.take(upstream("m-1"))
        self.assertEqual(["m-1", "m-2", "m-3", "m-1"], harness.handler.ids)
        harness.take(upstream("m-3"), upstream("m-2"))
        self.assertEqual(["m-1", "m-2", "m-3", "m-1", "m-2"], harness.handler.ids)

    def test_runningIsNeverForgotten(self) -> None:
        """
        The bound is for what is done: what is being handled is known, however
        much that is.
        """
        harness = self.makeDelivery(lambda _: Deferred(), remembered=1)
        ids = [f"m-{n}" for n in range(10)]
        harness.take(*map(upstream, ids))
        harness.take(*map(upstream, ids))
        self.assertEqual(ids, harness.handler.ids)


class RetryTests(DeliveryCase):
    """
    A message whose handler failed is tried again, with back-off.
    """

    def test_times(self) -> None:
        """
        Without jitter the tries come 1, 2, 4, ... and at most 60 seconds after
        each other.
        """
        harness = self.makeDelivery(lambda _: fail(ValueError()), handlerTries=9)
        delays = [1, 2, 4, 8, 16, 32, 60, 60]
        with self.logs():
            harness.take(upstream("m-1"))
            for tries, delay in enumerate(delays, 1):
                harness.clock.advance(delay - 0.001)
                self.assertEqual(tries, len(harness.handler.ids))
                harness.clock.advance(0.001)
                self.assertEqual(tries + 1, len(harness.handler.ids))
        self.assertEqual(
            [HandlingFailed(upstream("m-1"), n, d) for n, d in enumerate([*delays, None], 1)],
            harness.events(HandlingFailed),
        )

    def test_jitter(self) -> None:
        """
        The jitter takes off up to half of each delay.
        """
        harness = self.makeDelivery(lambda _: fail(ValueError()), random=lambda: 1.0)
        with self.logs():
            harness.take(upstream("m-1"))
            harness.clock.advance(0.5)
        self.assertEqual([0.5, 1.0], [event.retryIn for event in harness.events(HandlingFailed)])

    def test_success(self) -> None:
        """
        A try that succeeds is the last, and it is told which one it was.
        """
        results = [fail(ValueError()), fail(ValueError()), None]
        harness = self.makeDelivery(lambda _: results.pop(0))
        with self.logs():
            harness.take(upstream("m-1"))
            harness.clock.pump([1, 2, 100])
        self.assertEqual(["m-1"], harness.acknowledged)
        self.assertEqual([Handled(upstream("m-1"), 3, 3.0)], harness.events(Handled))
        self.assertEqual(0, harness.delivery.deadLetters)

    def test_unavailable(self) -> None:
        """
        A handler that cannot work at all just now is asked again with
        back-off, for as long as it takes, and none of that counts as a try.
        """
        harness = self.makeDelivery(lambda _: fail(HandlerUnavailable()), handlerTries=1)
        with self.logs():
            harness.take(upstream("m-1"))
            for delay in (1, 2, 4, 8, 16, 32, *[60] * 100):
                harness.clock.advance(delay)
            self.assertEqual(107, len(harness.handler.ids))
            self.assertEqual(([], 0), (harness.outcomes, harness.delivery.deadLetters))
            self.assertEqual({0}, {event.tries for event in harness.events(HandlingFailed)})
            harness.handler.answer = lambda _: None
            harness.clock.advance(60)
        self.assertEqual(["m-1"], harness.acknowledged)
        self.assertEqual([Handled(upstream("m-1"), 1, 6123.0)], harness.events(Handled))

    def test_unavailableRaised(self) -> None:
        """
        It makes no difference whether the handler raises that it cannot work
        or returns it.
        """

        def answer(message: UpstreamMessage) -> None:
            raise HandlerUnavailable

        for policy in POLICIES:
            harness = self.makeDelivery(answer, handlerTries=1, ack=policy)
            with self.logs():
                harness.take(upstream("m-1"))
                harness.clock.pump([0, 1, 2, 4])
            self.assertEqual((4, 0), (len(harness.handler.ids), harness.delivery.deadLetters))

    def test_unavailableInBetween(self) -> None:
        """
        Tries that count are counted over those that do not, and each kind has
        a back-off of its own, of which the second starts afresh.
        """
        results: list[Exception] = [
            ValueError(),
            HandlerUnavailable(),
            HandlerUnavailable(),
            ValueError(),
            HandlerUnavailable(),
            ValueError(),
        ]
        harness = self.makeDelivery(lambda _: fail(results.pop(0)))
        with self.logs():
            harness.take(upstream("m-1"))
            harness.clock.pump([1, 1, 2, 2, 1])
        self.assertEqual(
            [(1, 1.0), (1, 1.0), (1, 2.0), (2, 2.0), (2, 1.0), (3, None)],
            [(event.tries, event.retryIn) for event in harness.events(HandlingFailed)],
        )
        self.assertEqual(["m-1"], harness.acknowledged)


class TimeoutTests(DeliveryCase):
    """
    A handler that does not answer in time is given up.
    """

    def test_timesOut(self) -> None:
        """
        At the time-out, and not before, what the handler returned is
        cancelled and the try has failed.
        """
        cancelled: list[object] = []
        harness = self.makeDelivery(lambda _: Deferred(cancelled.append), handlerTimeout=5)
        with self.logs():
            harness.take(upstream("m-1"))
            harness.clock.advance(4.999)
            self.assertEqual(([], []), (cancelled, harness.events(HandlingFailed)))
            harness.clock.advance(0.001)
        self.assertEqual(1, len(cancelled))
        self.assertEqual([HandlingFailed(upstream("m-1"), 1, 1.0)], harness.events(HandlingFailed))

    def test_deadLetter(self) -> None:
        """
        A handler that never answers makes a dead letter after the tries.
        """
        harness = self.makeDelivery(lambda _: Deferred(), handlerTimeout=5, handlerTries=2)
        with self.logs():
            harness.take(upstream("m-1"))
            harness.clock.pump([5, 1, 5])
        self.assertEqual((["m-1"] * 2, ["m-1"]), (harness.handler.ids, harness.acknowledged))
        (letter,) = harness.events(DeadLettered)
        self.assertEqual("the handler failed 2 times, last: it took more than 5 s", letter.reason)

    def test_oneTimer(self) -> None:
        """
        One timer serves all messages, and each times out at its own time.
        """
        harness = self.makeDelivery(lambda _: Deferred(), handlerTimeout=10, handlerTries=1)
        timedOut: list[tuple[float, str]] = []
        harness.onEvent = lambda event: (
            timedOut.append((harness.clock.seconds(), event.message_id))
            if isinstance(event, DeadLettered)
            else None
        )
        with self.logs():
            for second in range(5):
                harness.take(upstream(f"m-{second}a"), upstream(f"m-{second}b"))
                self.assertEqual(1, len(harness.clock.getDelayedCalls()))
                harness.clock.advance(1)
            while timedOut[9:] == []:
                self.assertEqual(1, len(harness.clock.getDelayedCalls()))
                harness.clock.advance(0.5)
        self.assertEqual([(10.0 + n, f"m-{n}{ab}") for n in range(5) for ab in "ab"], timedOut)
        self.assertEqual([], harness.clock.getDelayedCalls())

    def test_clockSetBack(self) -> None:
        """
        When the clock is set back, the handlers that are called after that
        time out as they should, and those that were called before no later.
        """
        harness = self.makeDelivery(lambda _: Deferred(), handlerTimeout=5, handlerTries=1)
        harness.clock.advance(10_000)
        harness.take(upstream("m-1"))
        harness.clock.rightNow -= 3600
        harness.take(upstream("m-2"))
        harness.clock.advance(4)
        harness.take(upstream("m-3"))
        harness.clock.advance(1)
        self.assertEqual(["m-1", "m-2"], harness.acknowledged)
        harness.clock.advance(4)
        self.assertEqual(["m-1", "m-2", "m-3"], harness.acknowledged)
        self.flushLoggedErrors(HandlerFailed)

    def test_answeredInTime(self) -> None:
        """
        A handler that has answered is not given up later, and its neighbour
        is, at its own time.
        """
        first: Deferred[None] = Deferred()
        results = [first, Deferred()]
        harness = self.makeDelivery(lambda _: results.pop(0), handlerTimeout=5, handlerTries=1)
        with self.logs():
            harness.take(upstream("m-1"))
            harness.clock.advance(2)
            harness.take(upstream("m-2"))
            first.callback(None)
            harness.clock.advance(4.999)
            self.assertEqual(["m-1"], harness.acknowledged)
            harness.clock.advance(0.001)
        self.assertEqual(["m-1", "m-2"], harness.acknowledged)
        self.assertEqual(["m-2"], [event.message_id for event in harness.events(DeadLettered)])

    def lateAnswer(self, answer: Callable[[Any], Any], late: Callable[[], None]) -> Harness:
        """
        Have the first try time out, the second run, and then the first answer;
        assert that this changes nothing.
        """
        second: Deferred[None] = Deferred()
        results = [answer, lambda _: second]
        harness = self.makeDelivery(lambda m: results.pop(0)(m), handlerTimeout=5)
        with self.logs():
            harness.take(upstream("m-1"))
            harness.clock.pump([5, 1])
            self.assertEqual(["m-1"] * 2, harness.handler.ids)
            before = list(harness.observer.events)
        with capturedLogs() as events:
            late()
        self.assertEqual(([], []), (events, harness.outcomes))
        self.assertEqual(before, harness.observer.events)
        second.callback(None)
        self.assertEqual([Handled(upstream("m-1"), 2, 6.0)], harness.events(Handled))
        return harness

    def test_lateSuccess(self) -> None:
        """
        A handler that answers after it has been given up has not handled the
        message.
        """
        first: Deferred[None] = Deferred()
        self.lateAnswer(lambda _: first, lambda: first.callback(None))

    def test_lateFailure(self) -> None:
        """
        A handler that fails after it has been given up has not failed twice.
        """
        first: Deferred[None] = Deferred()
        self.lateAnswer(lambda _: first, lambda: first.errback(ValueError()))

    def test_lateCoroutine(self) -> None:
        """
        A coroutine that does not let itself be cancelled may run on to its
        end; nobody hears of it.
        """
        never: Deferred[None] = Deferred()
        later: Deferred[None] = Deferred()
        ended: list[bool] = []

        async def stubborn(message: UpstreamMessage) -> None:
            try:
                await never
            except CancelledError:
                await later
            ended.append(True)

        self.lateAnswer(stubborn, lambda: later.callback(None))
        self.assertEqual([True], ended)

    def test_answersWhenCancelled(self) -> None:
        """
        A handler that answers because it is cancelled comes too late as well.
        """
        results: list[Any] = [Deferred(lambda d: d.callback(None)), None]
        harness = self.makeDelivery(lambda _: results.pop(0), handlerTimeout=5)
        with self.logs():
            harness.take(upstream("m-1"))
            harness.clock.advance(5)
        self.assertEqual([], harness.outcomes)
        harness.clock.advance(1)
        self.assertEqual([Handled(upstream("m-1"), 2, 6.0)], harness.events(Handled))

    def test_cancellingEndsAnother(self) -> None:
        """
        If cancelling one handler makes another one answer, that one has
        answered: it is not given up in the same breath.
        """
        second: Deferred[None] = Deferred()
        results: list[Any] = [Deferred(lambda _: second.callback(None)), second]
        harness = self.makeDelivery(lambda _: results.pop(0), handlerTimeout=5, handlerTries=1)
        with self.logs():
            harness.take(upstream("m-1"), upstream("m-2"))
            harness.clock.advance(5)
        self.assertEqual(["m-1"], [event.message_id for event in harness.events(DeadLettered)])
        self.assertEqual(["m-2"], [event.message.message_id for event in harness.events(Handled)])

    def test_cancellerRaises(self) -> None:
        """
        A handler whose canceller is broken is given up like any other, and so
        is its neighbour.
        """

        def broken(_: object) -> None:
            raise ZeroDivisionError

        harness = self.makeDelivery(lambda _: Deferred(broken), handlerTimeout=5, handlerTries=1)
        with self.logs():
            harness.take(upstream("m-1"), upstream("m-2"))
            harness.clock.advance(5)
        self.assertEqual(["m-1", "m-2"], [event.message_id for event in harness.events(DeadLettered)])


class LogTests(DeliveryCase):
    """
    What failing handlers leave in the log.
    """

    def assertOneFailure(self, events: list[LogEvent], name: str) -> None:
        """
        Assert that there is one logged failure, with a traceback that leads
        to the handler, and nowhere the text of its exception.
        """
        (event,) = [event for event in events if event["log_level"] is LogLevel.critical]
        self.assertIn(name, rendered(event))
        self.assertIn("Traceback", eventAsText(event))
        self.assertIn("theHandler", eventAsText(event))
        for event in events:
            self.assertNotIn(SECRET, rendered(event))

    def test_plain(self) -> None:
        """
        The first failure of a message is logged once with its traceback, each
        further one is a line, and so is the dead letter; none has the
        exception's text.
        """

        def theHandler(message: UpstreamMessage) -> None:
            raise ValueError(f"cannot handle {message.data}")

        harness = self.makeDelivery(theHandler)
        with self.logs() as events:
            harness.take(upstream("m-1", password=SECRET))
            harness.clock.pump([1, 2])
        self.assertOneFailure(events, "builtins.ValueError")
        self.assertEqual(
            [LogLevel.critical, LogLevel.warn, LogLevel.warn, LogLevel.error],
            [event["log_level"] for event in events],
        )
        self.assertEqual(
            [
                "the handler failed again on 'm-1': builtins.ValueError; next try in 2.0 s",
                "the handler failed again on 'm-1': builtins.ValueError; no more tries",
                "dead letter 'm-1': the handler failed 3 times, last: builtins.ValueError",
            ],
            [eventAsText(e, includeTimestamp=False, includeSystem=False) for e in events[1:]],
        )

    def test_deferred(self) -> None:
        """
        The same holds for a handler that fails later.
        """
        result: Deferred[None] = Deferred()

        def theHandler(_: None) -> None:
            raise ValueError(SECRET)

        result.addCallback(theHandler)
        harness = self.makeDelivery(lambda _: result, handlerTries=1)
        with self.logs() as events:
            harness.take(upstream("m-1", password=SECRET))
            result.callback(None)
        self.assertOneFailure(events, "builtins.ValueError")

    def test_coroutine(self) -> None:
        """
        The same holds for an C{async def} handler, whatever its exception
        came from.
        """

        async def theHandler(message: UpstreamMessage) -> None:
            try:
                await fail(KeyError(SECRET))
            except KeyError as error:
                raise ValueError(SECRET) from error

        harness = self.makeDelivery(theHandler, handlerTries=1)
        with self.logs() as events:
            harness.take(upstream("m-1", password=SECRET))
        self.assertOneFailure(events, "builtins.ValueError")

    def test_failureWithoutTraceback(self) -> None:
        """
        A handler may return a failure that was never raised.
        """
        harness = self.makeDelivery(lambda _: fail(Failure(ValueError(SECRET))), handlerTries=1)
        with self.logs() as events:
            harness.take(upstream("m-1"))
        self.assertEqual([LogLevel.critical, LogLevel.error], [event["log_level"] for event in events])
        self.assertNotIn(SECRET, "".join(map(rendered, events)))

    def test_eachMessage(self) -> None:
        """
        Each message has its own first failure.
        """
        harness = self.makeDelivery(lambda _: fail(ValueError()))
        with self.logs() as events:
            harness.take(upstream("m-1"), upstream("m-2"), upstream("m-1"))
            harness.clock.pump([1, 2])
        self.assertEqual(2, len([event for event in events if event["log_level"] is LogLevel.critical]))

    def test_timeout(self) -> None:
        """
        A time-out is told by its own words, and without a traceback: that
        would not lead to the handler.
        """
        harness = self.makeDelivery(lambda _: Deferred(), handlerTimeout=5)
        with self.logs() as events:
            harness.take(upstream("m-1", password=SECRET))
            harness.clock.pump([5, 1, 5])
        self.assertLines(
            events,
            "the handler failed on 'm-1': it took more than 5 s; next try in 1.0 s",
            "the handler failed again on 'm-1': it took more than 5 s; next try in 2.0 s",
        )
        self.assertNotIn(SECRET, "".join(map(rendered, events)))

    def assertLines(self, events: list[LogEvent], *lines: str) -> None:
        """
        Assert that these are warnings of one line each, without a failure.
        """
        told = [eventAsText(event, includeTimestamp=False, includeSystem=False) for event in events]
        self.assertEqual(list(lines), told)
        self.assertEqual({LogLevel.warn}, {event["log_level"] for event in events})
        self.assertEqual([], [event for event in events if "log_failure" in event])

    def test_ownWords(self) -> None:
        """
        A handler that raises L{HandlerFailed} itself, or a kind of it, chooses
        the words for the log, and gets no traceback; without any words the
        error's name has to do.
        """

        class Refused(HandlerFailed):
            pass

        def theHandler(message: UpstreamMessage) -> None:
            try:
                raise ValueError(SECRET)
            except ValueError as error:
                raise errors.pop(0) from error

        errors = [HandlerFailed("no such account"), Refused("the account is locked"), Refused()]
        harness = self.makeDelivery(theHandler)
        with capturedLogs() as events:
            harness.take(upstream("m-1"))
            harness.clock.pump([1, 2])
        # Trial has nothing to complain about: it is no logged error any more.
        self.assertEqual([], self.flushLoggedErrors())
        letter = events.pop()
        self.assertLines(
            events,
            "the handler failed on 'm-1': no such account; next try in 1.0 s",
            "the handler failed again on 'm-1': the account is locked; next try in 2.0 s",
            "the handler failed again on 'm-1': Refused; no more tries",
        )
        self.assertEqual(LogLevel.error, letter["log_level"])
        self.assertIn("the handler failed 3 times, last: Refused", rendered(letter))
        self.assertNotIn(SECRET, "".join(map(rendered, [*events, letter])))

    def test_ownWordsAfterAnother(self) -> None:
        """
        The words are the log's, too, where the first failure was another, and
        the other way round nothing of the other's text gets there.
        """
        for first, second, lines in (
            (
                ValueError(SECRET),
                HandlerFailed("no such account"),
                ["builtins.ValueError; next try in 1.0 s", "no such account; next try in 2.0 s"],
            ),
            (
                HandlerFailed("no such account"),
                ValueError(SECRET),
                ["no such account; next try in 1.0 s", "builtins.ValueError; next try in 2.0 s"],
            ),
        ):
            results = [fail(first), fail(second)]
            harness = self.makeDelivery(lambda _, results=results: results.pop(0))
            with self.logs() as events:
                harness.take(upstream("m-1"))
                harness.clock.advance(1)
            told = [str(formatEvent(event)) for event in events]
            self.assertEqual(lines, [line.partition(": ")[2] for line in told])
            self.assertNotIn(SECRET, "".join(map(rendered, events)))

    def test_failedDeferred(self) -> None:
        """
        That a handler returned a Deferred that has failed before is told in
        these words.
        """
        shared: Deferred[None] = Deferred()
        harness = self.makeDelivery(lambda _: shared)
        harness.take(upstream("m-1"))
        with self.logs() as events:
            shared.errback(ValueError())
            harness.clock.advance(1)
        self.assertLines(
            events[1:],
            "the handler failed again on 'm-1': the handler returned a Deferred that has failed before; "
            "next try in 2.0 s",
        )

    def test_unavailable(self) -> None:
        """
        A handler that says that it cannot work is no failure with a
        traceback.  What it says is told, once a minute and not for each
        message and try; and that it works again.
        """
        down = [True]

        def answer(message: UpstreamMessage) -> None:
            if down[0]:
                raise HandlerUnavailable("the database is down")

        harness = self.makeDelivery(answer)
        with self.logs() as events:
            harness.take(*(upstream(f"m-{n}", password=SECRET) for n in range(5)))
            harness.clock.pump([1] * 100)
            down[0] = False
            harness.clock.pump([1] * 100)
        told = [eventAsText(event, includeTimestamp=False, includeSystem=False) for event in events]
        self.assertEqual(
            [
                "the handler cannot work now: the database is down; messages that wait for it: 1",
                "the handler cannot work now: the database is down; messages that wait for it: 5",
                "the handler works again",
            ],
            told,
        )
        self.assertEqual(5, len(harness.acknowledged))
        self.assertNotIn(SECRET, "".join(map(rendered, events)))

    def test_unavailableAndFailing(self) -> None:
        """
        Neither before nor after such a try does a real failure go unlogged.
        """
        results: list[Exception] = [HandlerUnavailable("x"), ValueError(), HandlerUnavailable("x")]
        harness = self.makeDelivery(lambda _: fail(results.pop(0)))
        with self.logs() as events:
            harness.take(upstream("m-1"))
            harness.clock.pump([1, 1])
        self.assertEqual([LogLevel.warn, LogLevel.critical], [event["log_level"] for event in events])

    def test_success(self) -> None:
        """
        What is handled leaves nothing in the log.
        """
        harness = self.makeDelivery()
        with self.logs() as events:
            harness.take(upstream("m-1"), upstream("m-1"))
        self.assertEqual([], events)

    def test_brokenObserver(self) -> None:
        """
        An observer that raises, which it must not, when a handler's Deferred
        fires does not go unnoticed.
        """
        result: Deferred[None] = Deferred()
        harness = self.makeDelivery(lambda _: result)
        harness.take(upstream("m-1"))
        harness.onEvent = lambda event: 1 // 0
        with capturedLogs() as events:
            result.callback(None)
        harness.onEvent = lambda event: None
        self.assertEqual(["ending a try failed"], [event["log_format"] for event in events])
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))

    def test_deadLetterAtStop(self) -> None:
        """
        A dead letter made by the stop is logged without its contents, too.
        """
        harness = self.makeDelivery(lambda _: Deferred(), ack="received")
        harness.take(upstream("m-1", password=SECRET))
        with self.logs() as events:
            stopped = harness.stop(1)
            harness.clock.advance(1)
        self.successResultOf(stopped)
        self.assertIn(
            "dead letter 'm-1': stopped before the message was handled",
            [eventAsText(e, includeTimestamp=False, includeSystem=False) for e in events],
        )
        self.assertNotIn(SECRET, "".join(map(rendered, events)))


class StopTests(DeliveryCase):
    """
    At a stop nothing new is taken, and what runs may come to its end.
    """

    def test_idle(self) -> None:
        """
        Where nothing runs, the stop is done at once.
        """
        harness = self.makeDelivery()
        harness.take(upstream("m-1"))
        self.successResultOf(harness.stop(10))
        self.assertEqual([], harness.clock.getDelayedCalls())

    def test_grace(self) -> None:
        """
        Handlers that come to their end during the grace have handled their
        messages; the stop is done with the last of them.
        """
        results: dict[str, Deferred[None]] = {"m-1": Deferred(), "m-2": Deferred()}
        harness = self.makeDelivery(lambda m: results[m.message_id])
        harness.take(upstream("m-1"), upstream("m-2"))
        stopped = harness.stop(10)
        harness.clock.advance(9)
        results["m-2"].callback(None)
        self.assertNoResult(stopped)
        results["m-1"].callback(None)
        self.successResultOf(stopped)
        self.assertEqual(["m-2", "m-1"], harness.acknowledged)
        self.assertEqual([], harness.clock.getDelayedCalls())

    def test_cancel(self) -> None:
        """
        Handlers that still run when the grace is over are cancelled, and their
        messages must not be acknowledged.
        """
        cancelled: list[object] = []
        harness = self.makeDelivery(lambda _: Deferred(cancelled.append))
        harness.take(upstream("m-1"), upstream("m-2"), upstream("m-1"))
        stopped = harness.stop(10)
        harness.clock.advance(9.999)
        self.assertEqual(([], []), (cancelled, harness.outcomes))
        with self.logs() as events:
            harness.clock.advance(0.001)
        self.successResultOf(stopped)
        self.assertEqual(2, len(cancelled))
        self.assertEqual([("m-1", "Stopped"), ("m-1", "Stopped"), ("m-2", "Stopped")], harness.outcomes)
        self.assertEqual(([], []), (harness.events(DeadLettered), harness.events(HandlingFailed)))
        self.assertEqual([LogLevel.warn], [event["log_level"] for event in events])
        self.assertEqual([], harness.clock.getDelayedCalls())

    def test_lateAnswer(self) -> None:
        """
        What a handler answers after the stop changes nothing.
        """
        result: Deferred[None] = Deferred()
        harness = self.makeDelivery(lambda _: result)
        harness.take(upstream("m-1"))
        stopped = harness.stop(10)
        harness.clock.advance(10)
        self.successResultOf(stopped)
        before = list(harness.observer.events)
        result.callback(None)
        self.assertEqual(([("m-1", "Stopped")], before), (harness.outcomes, harness.observer.events))

    def test_betweenTries(self) -> None:
        """
        What waits for its next try is not waited for.
        """
        harness = self.makeDelivery(lambda _: fail(ValueError()))
        with self.logs():
            harness.take(upstream("m-1"))
        self.successResultOf(harness.stop(10))
        self.assertEqual(([("m-1", "Stopped")], ["m-1"]), (harness.outcomes, harness.handler.ids))
        self.assertEqual([], harness.clock.getDelayedCalls())

    def test_secondTry(self) -> None:
        """
        What is in its second try gets the grace like what is in its first.
        """
        result: Deferred[None] = Deferred()
        results = [fail(ValueError()), result]
        harness = self.makeDelivery(lambda _: results.pop(0))
        with self.logs():
            harness.take(upstream("m-1"))
            harness.clock.advance(1)
        stopped = harness.stop(10)
        self.assertNoResult(stopped)
        result.callback(None)
        self.successResultOf(stopped)
        self.assertEqual(["m-1"], harness.acknowledged)

    def test_failureDuringGrace(self) -> None:
        """
        What fails during the grace is not tried again, and ends the stop if it
        was the last.
        """
        for error in (ValueError(), HandlerUnavailable()):
            result: Deferred[None] = Deferred()
            harness = self.makeDelivery(lambda _, result=result: result)
            harness.take(upstream("m-1"))
            stopped = harness.stop(10)
            with self.logs():
                result.errback(error)
            self.successResultOf(stopped)
            self.assertEqual([("m-1", "Stopped")], harness.outcomes)
            self.assertEqual([], harness.events(DeadLettered))
            self.assertEqual([], harness.clock.getDelayedCalls())

    def test_lastTryFailsDuringGrace(self) -> None:
        """
        What fails for the last time during the grace is a dead letter as ever.
        """
        result: Deferred[None] = Deferred()
        harness = self.makeDelivery(lambda _: result, handlerTries=1)
        harness.take(upstream("m-1"))
        stopped = harness.stop(10)
        with self.logs():
            result.errback(ValueError())
        self.successResultOf(stopped)
        self.assertEqual((["m-1"], 1), (harness.acknowledged, harness.delivery.deadLetters))

    def test_timeoutDuringGrace(self) -> None:
        """
        The handler time-out goes on during the grace.
        """
        harness = self.makeDelivery(lambda _: Deferred(), handlerTimeout=5)
        harness.take(upstream("m-1"))
        stopped = harness.stop(10)
        with self.logs():
            harness.clock.advance(5)
        self.successResultOf(stopped)
        self.assertEqual([("m-1", "Stopped")], harness.outcomes)
        self.assertEqual([], harness.clock.getDelayedCalls())

    def test_nothingNew(self) -> None:
        """
        From the beginning of the stop on, no new message is taken.
        """
        result: Deferred[None] = Deferred()
        for policy in POLICIES:
            harness = self.makeDelivery(lambda _: result, ack=policy)
            harness.take(upstream("m-1"))
            stopped = harness.stop(10)
            del harness.outcomes[:]
            harness.take(upstream("m-2"))
            self.assertEqual([("m-2", "Stopped")], harness.outcomes)
            harness.clock.advance(10)
            self.successResultOf(stopped)
            harness.take(upstream("m-3"))
            self.assertEqual((["m-1"], ("m-3", "Stopped")), (harness.handler.ids, harness.outcomes[-1]))
            self.assertEqual(["m-1"], [event.message.message_id for event in harness.events(Arrived)])

    def test_duplicatesDuringGrace(self) -> None:
        """
        During the grace a duplicate still joins what runs, and what is done is
        acknowledged again.
        """
        result: Deferred[None] = Deferred()
        results = {"done": None, "runs": result}
        harness = self.makeDelivery(lambda m: results[m.message_id])
        harness.take(upstream("done"), upstream("runs"))
        stopped = harness.stop(10)
        harness.take(upstream("done"), upstream("runs"))
        self.assertEqual(["done", "done"], harness.acknowledged)
        result.callback(None)
        self.successResultOf(stopped)
        self.assertEqual(["done", "done", "runs", "runs"], harness.acknowledged)

    def test_stoppedByTheHandler(self) -> None:
        """
        A handler may itself begin the stop; its own message is handled first.
        """
        stopped: list[Deferred[None]] = []
        harness = self.makeDelivery(lambda _: stopped.append(harness.stop(10)))
        harness.take(upstream("m-1"))
        # Not yet: the ACK is chained onto what take() returns.
        self.assertNoResult(stopped[0])
        self.assertEqual(["m-1"], harness.acknowledged)
        harness.clock.advance(0)
        self.successResultOf(stopped[0])
        self.assertEqual([], harness.clock.getDelayedCalls())

    def test_stoppedByTheAcknowledger(self) -> None:
        """
        Whoever waits for a message may begin the stop when that is handled.
        """
        harness = self.makeDelivery()
        stopped: list[Deferred[None]] = []
        taken = harness.delivery.take(upstream("m-1"))
        taken.addCallback(lambda _: stopped.append(harness.stop(10)))
        self.successResultOf(stopped[0])

    def test_twice(self) -> None:
        """
        It may be stopped twice, and both are told the end when it has come.
        """
        result: Deferred[None] = Deferred()
        harness = self.makeDelivery(lambda _: result)
        harness.take(upstream("m-1"))
        stops = [harness.stop(10), harness.stop(10)]
        result.callback(None)
        for stopped in stops:
            self.successResultOf(stopped)
        self.assertEqual([], harness.clock.getDelayedCalls())

    def test_stoppedAgainByTheStop(self) -> None:
        """
        Whoever hears from the stop that a message is not handled may stop
        again: both stops come to their end, and each message to one.
        """
        harness = self.makeDelivery(lambda _: fail(ValueError()))
        again: list[Deferred[None]] = []
        with self.logs():
            taken = harness.delivery.take(upstream("m-1"))
            harness.take(upstream("m-2"))
        taken.addErrback(lambda _: again.append(harness.stop(10)))
        self.successResultOf(harness.stop(10))
        self.successResultOf(again[0])
        self.assertEqual([("m-2", "Stopped")], harness.outcomes)
        self.assertEqual([], harness.clock.getDelayedCalls())

    def test_stoppedByTheObserver(self) -> None:
        """
        A message that has hardly arrived when the stop begins is not handled.
        """
        harness = self.makeDelivery()
        harness.onEvent = lambda event: harness.stop(10)
        harness.take(upstream("m-1"))
        self.assertEqual(([], [("m-1", "Stopped")]), (harness.handler.ids, harness.outcomes))

    def test_cancellerRaises(self) -> None:
        """
        A handler whose canceller is broken does not keep the others, nor the
        stop itself, from their end.
        """

        def broken(_: object) -> None:
            raise ZeroDivisionError(SECRET)

        harness = self.makeDelivery(lambda _: Deferred(broken))
        harness.take(upstream("m-1"), upstream("m-2"))
        stopped = harness.stop(10)
        with self.logs() as events:
            harness.clock.advance(10)
        self.successResultOf(stopped)
        self.assertEqual([("m-1", "Stopped"), ("m-2", "Stopped")], harness.outcomes)
        self.assertEqual([], harness.clock.getDelayedCalls())
        logged = "".join(map(rendered, events))
        self.assertIn("ZeroDivisionError", logged)
        self.assertNotIn(SECRET, logged)


class MalformedTests(DeliveryCase):
    """
    What cannot be decoded is counted, and put aside where it has a name.
    """

    def test_named(self) -> None:
        """
        A malformed payload with a name becomes a dead letter and may be
        acknowledged; the handler does not see it.
        """
        harness = self.makeDelivery()
        harness.note(
            "m-1", harness.delivery.takeMalformed(MalformedPayload("No sense", "m-1", "tok-A"), "{}")
        )
        self.assertEqual((["m-1"], []), (harness.acknowledged, harness.handler.messages))
        self.assertEqual((1, 1), (harness.delivery.malformed, harness.delivery.deadLetters))
        self.assertEqual(
            [Undecodable("No sense"), DeadLettered("m-1", "tok-A", "malformed: No sense")],
            harness.observer.events,
        )

    def test_repeated(self) -> None:
        """
        When it comes again it may be acknowledged again, and is counted again,
        but it is one dead letter.
        """
        harness = self.makeDelivery()
        for _ in range(3):
            harness.note("m-1", harness.delivery.takeMalformed(MalformedPayload("No", "m-1", "tok-A"), "{}"))
        self.assertEqual(["m-1"] * 3, harness.acknowledged)
        self.assertEqual((3, 1), (harness.delivery.malformed, harness.delivery.deadLetters))

    def test_goodLater(self) -> None:
        """
        A good message by the name of a dead letter is a duplicate.
        """
        harness = self.makeDelivery()
        harness.note("m-1", harness.delivery.takeMalformed(MalformedPayload("No", "m-1", "tok-A"), "{}"))
        harness.take(upstream("m-1"))
        self.assertEqual((["m-1"] * 2, []), (harness.acknowledged, harness.handler.messages))

    def test_goodEarlier(self) -> None:
        """
        A malformed payload by the name of a message that has been handled may
        be acknowledged, and is no dead letter.
        """
        harness = self.makeDelivery()
        harness.take(upstream("m-1"))
        harness.note("m-1", harness.delivery.takeMalformed(MalformedPayload("No", "m-1", "tok-A"), "{}"))
        self.assertEqual((["m-1"] * 2, 0), (harness.acknowledged, harness.delivery.deadLetters))

    def test_goodRunning(self) -> None:
        """
        A malformed payload by the name of a message that is being handled must
        not have that message acknowledged before it is handled.
        """
        result: Deferred[None] = Deferred()
        harness = self.makeDelivery(lambda _: result)
        harness.take(upstream("m-1"))
        harness.note("m-1", harness.delivery.takeMalformed(MalformedPayload("No", "m-1", "tok-A"), "{}"))
        self.assertEqual(([], 0), (harness.outcomes, harness.delivery.deadLetters))
        result.callback(None)
        self.assertEqual(["m-1", "m-1"], harness.acknowledged)

    def test_nameless(self) -> None:
        """
        A malformed payload without a name is counted, and that is all.
        """
        harness = self.makeDelivery()
        harness.delivery.discard(MalformedPayload("No sense"))
        self.assertEqual((1, 0), (harness.delivery.malformed, harness.delivery.deadLetters))
        self.assertEqual([Undecodable("No sense")], harness.observer.events)

    def test_flood(self) -> None:
        """
        Of very many only some are told, with their number; all are counted.
        """
        harness = self.makeDelivery()
        with capturedLogs() as events:
            for _ in range(10 * MAX_TOLD):
                harness.delivery.discard(MalformedPayload("No sense"))
        self.assertEqual(10 * MAX_TOLD, harness.delivery.malformed)
        told = [event["count"] for event in events]
        self.assertEqual([*range(1, MAX_TOLD + 1), *range(2 * MAX_TOLD, 10 * MAX_TOLD + 1, MAX_TOLD)], told)

    def test_log(self) -> None:
        """
        The log says what was wrong, and how often that happened.
        """
        harness = self.makeDelivery()
        with capturedLogs() as events:
            harness.delivery.discard(MalformedPayload("No sense"))
            harness.delivery.takeMalformed(MalformedPayload("No sense", "m-1", "tok-A"), "{}")
        self.assertEqual(
            [
                (LogLevel.warn, "a malformed payload from the connection server: No sense (1 so far)"),
                (LogLevel.warn, "a malformed payload from the connection server: No sense (2 so far)"),
                (LogLevel.error, "dead letter 'm-1': malformed: No sense"),
            ],
            [(e["log_level"], eventAsText(e, includeTimestamp=False, includeSystem=False)) for e in events],
        )
        self.assertNotIn("tok-A", "".join(eventAsText(event) for event in events))


class LimitTests(DeliveryCase):
    """
    A connection server that does not keep to its windows is not given memory
    without end.
    """

    def test_refused(self) -> None:
        """
        What comes while as many messages are being handled as may be is not
        taken over and must not be acknowledged; the application and the
        observer do not see it.  It is taken when it comes again later.
        """
        results: dict[str, Deferred[None]] = {}
        harness = self.makeDelivery(lambda m: results.setdefault(m.message_id, Deferred()), limit=2)
        with self.logs():
            harness.take(upstream("m-1"), upstream("m-2"), upstream("m-3"))
        self.assertEqual([("m-3", "QueueFull")], harness.outcomes)
        self.assertEqual(["m-1", "m-2"], harness.handler.ids)
        self.assertEqual([Arrived(upstream("m-1")), Arrived(upstream("m-2"))], harness.observer.events)
        results["m-1"].callback(None)
        harness.take(upstream("m-3"))
        self.assertEqual(["m-1", "m-2", "m-3"], harness.handler.ids)

    def test_received(self) -> None:
        """
        The same holds where messages are acknowledged first, and for those
        whose turn has not come.
        """
        harness = self.makeDelivery(ack="received", limit=2)
        with self.logs():
            harness.take(upstream("m-1"), upstream("m-2"), upstream("m-3"))
        harness.clock.advance(0)
        self.assertEqual((["m-1", "m-2"], ("m-3", "QueueFull")), (harness.acknowledged, harness.outcomes[-1]))
        self.assertEqual(["m-1", "m-2"], harness.handler.ids)

    def test_known(self) -> None:
        """
        What is known needs no room: a duplicate joins what is being handled,
        and what has been handled is acknowledged again.
        """
        result: Deferred[None] = Deferred()
        results = {"done": None, "runs": result}
        harness = self.makeDelivery(lambda m: results[m.message_id], limit=1)
        harness.take(upstream("done"), upstream("runs"), upstream("done"), upstream("runs"))
        self.assertEqual(["done", "done"], harness.acknowledged)
        result.callback(None)
        self.assertEqual(["done", "done", "runs", "runs"], harness.acknowledged)

    def test_betweenTries(self) -> None:
        """
        A message that waits for its next try takes up room.
        """
        harness = self.makeDelivery(lambda _: fail(HandlerUnavailable()), limit=1)
        with self.logs():
            harness.take(upstream("m-1"), upstream("m-2"))
        self.assertEqual([("m-2", "QueueFull")], harness.outcomes)

    def test_log(self) -> None:
        """
        The log has it once a minute, however much is refused.
        """
        harness = self.makeDelivery(lambda _: Deferred(), limit=1, handlerTimeout=1000)
        harness.take(upstream("m-1"))
        with capturedLogs() as events:
            for seconds in (0, 0, 59.9, 0.1, 1, 60):
                harness.clock.advance(seconds)
                harness.take(upstream("m-2", password=SECRET))
        told = "1 messages are being handled; no more are taken over, and they are not acknowledged"
        self.assertEqual(
            [(LogLevel.error, told)] * 3,
            [(e["log_level"], eventAsText(e, includeTimestamp=False, includeSystem=False)) for e in events],
        )


@implementer(IUpstreamHandler)
class _MessagesOnly:
    """
    A handler that does not care for receipts.
    """

    def __init__(self) -> None:
        self.messages: list[UpstreamMessage] = []

    def messageReceived(self, message: UpstreamMessage) -> Awaitable[object] | None:
        """
        Note a message.
        """
        self.messages.append(message)
        return None


class ReceiptTests(DeliveryCase):
    """
    Receipts go the way of messages, to a method of their own.
    """

    def test_handler(self) -> None:
        """
        A handler that provides L{IReceiptHandler} is given receipts, by the
        rules that hold for messages.
        """
        result: Deferred[None] = Deferred()
        harness = self.makeDelivery(lambda _: result)
        harness.take(receipt("m-1"), receipt("m-1"))
        self.assertEqual(
            ([receipt("m-1")], [], []),
            (harness.handler.receipts, harness.handler.messages, harness.outcomes),
        )
        result.callback(None)
        self.assertEqual(["dr2:m-1"] * 2, harness.acknowledged)

    def test_handlerFails(self) -> None:
        """
        A receipt whose handler fails is tried again, and is a dead letter in
        the end.
        """
        harness = self.makeDelivery(lambda _: fail(ValueError()))
        with self.logs():
            harness.take(receipt("m-1"))
            harness.clock.pump([1, 2])
        self.assertEqual((3, ["dr2:m-1"]), (len(harness.handler.receipts), harness.acknowledged))
        self.assertEqual(
            [("dr2:m-1", RECEIPT_SENDER)],
            [(event.message_id, event.from_) for event in harness.events(DeadLettered)],
        )

    def test_noHandler(self) -> None:
        """
        For a handler that does not provide it, receipts may be acknowledged
        and that is all.
        """
        handler = _MessagesOnly()
        for policy in POLICIES:
            harness = self.makeDelivery(handler=handler, ack=policy)
            harness.take(receipt("m-1"))
            harness.clock.advance(0)
            self.assertEqual((["dr2:m-1"], []), (harness.acknowledged, handler.messages))
            self.assertEqual([Handled(receipt("m-1"), 1, 0.0)], harness.events(Handled))


#: What the application does when it is called.
ANSWERS = ("defer", "succeed", "raise", "unavailable")


class DeliveryMachine(RuleBasedStateMachine):
    """
    An L{UpstreamDelivery} between a connection server that repeats itself and
    an application that does as it likes.
    """

    IDS = ("m-1", "m-2", "m-3", "m-4", "m-5")
    TIMEOUT = 7.0
    TRIES = 3

    @initialize(policy=st.sampled_from(POLICIES))
    def begin(self, policy: str) -> None:
        """
        The delivery is made.
        """
        self.policy = policy
        #: What the handler has returned, and nobody here has fired.
        self.pending: list[tuple[str, Deferred[None]]] = []
        #: What the handler does when it is called next.
        self.answers = "defer"
        #: How often each message was handled, failed and was put aside.
        self.successes = dict.fromkeys(self.IDS, 0)
        self.failures = dict.fromkeys(self.IDS, 0)
        self.letters = dict.fromkeys(self.IDS, 0)
        #: Each coming of a message, and what became of it.
        self.comings: list[tuple[str, list[object]]] = []
        #: What must not have happened, but in a place where nobody would see
        #: an exception.
        self.violations: list[str] = []
        self.stopping: Deferred[None] | None = None
        self.stopped = False
        self.harness = Harness(
            RecordingHandler(self.answer),
            Policy(ack=policy, handlerTimeout=self.TIMEOUT, handlerTries=self.TRIES),
            lambda: 0.0,
        )
        self.harness.onEvent = self.observed

    def observed(self, event: Any) -> None:
        """
        The delivery tells.
        """
        if isinstance(event, Handled):
            self.successes[event.message.message_id] += 1
        elif isinstance(event, DeadLettered):
            self.letters[event.message_id] += 1
        elif isinstance(event, HandlingFailed):
            self.failures[event.message.message_id] = event.tries
        if self.stopped and not isinstance(event, Repeated):
            self.violations.append(f"after the stop: {event}")

    def answer(self, message: Any) -> Any:
        """
        The application is called.
        """
        message_id = message.message_id
        if self.successes[message_id] or self.letters[message_id]:
            self.violations.append(f"{message_id} is done, and handled again")
        if any(message_id == other and not result.called for other, result in self.pending):
            self.violations.append(f"{message_id} is handled twice at once")
        if self.stopped:
            self.violations.append(f"{message_id} is handled after the stop")
        if self.answers == "succeed":
            return None
        if self.answers == "raise":
            raise ValueError
        if self.answers == "unavailable":
            raise HandlerUnavailable
        result: Deferred[None] = Deferred()
        self.pending.append((message_id, result))
        return result

    @rule(message_id=st.sampled_from(IDS), answers=st.sampled_from(ANSWERS))
    def take(self, message_id: str, answers: str) -> None:
        """
        A message comes in, for the first time or not.
        """
        self.answers = answers
        new = message_id not in [other for other, _ in self.comings]
        outcome: list[object] = []
        self.comings.append((message_id, outcome))
        self.harness.delivery.take(upstream(message_id)).addCallbacks(
            lambda _: outcome.append("acknowledge"), lambda failure: outcome.append(failure.type)
        )
        if self.stopping is not None and new:
            assert outcome == [Stopped], "taken after the stop"
        if self.stopping is None and self.policy == "received":
            assert outcome == ["acknowledge"], "not acknowledged at once"

    @precondition(lambda self: self.pending)
    @rule(
        which=st.integers(0, 100),
        error=st.sampled_from((None, None, ValueError(), HandlerUnavailable())),
        answers=st.sampled_from(ANSWERS),
    )
    def fire(self, which: int, error: Exception | None, answers: str) -> None:
        """
        What the handler returned fires, be it that it was given up long ago.
        """
        self.answers = answers
        _, result = self.pending.pop(which % len(self.pending))
        if error is None:
            result.callback(None)
        else:
            result.errback(error)

    @rule(seconds=st.sampled_from((0, 0.5, 1, 2, 4, TIMEOUT)), answers=st.sampled_from(ANSWERS))
    def wait(self, seconds: float, answers: str) -> None:
        """
        Time passes.
        """
        self.answers = answers
        self.harness.clock.advance(seconds)

    @precondition(lambda self: self.stopping is None)
    @rule(grace=st.sampled_from((0.0, 1.0, 10.0)), answers=st.sampled_from(ANSWERS))
    def stop(self, grace: float, answers: str) -> None:
        """
        The delivery is stopped.
        """
        self.answers = answers
        self.stopping = self.harness.stop(grace).addCallback(self.hasStopped)

    def hasStopped(self, result: None) -> None:
        """
        The delivery says that it has stopped.
        """
        self.stopped = True
        for message_id, outcome in self.comings:
            if not outcome:
                self.violations.append(f"stopped, but {message_id} waits")

    @invariant()
    def nothingUnseen(self) -> None:
        """
        Nothing went wrong where exceptions are swallowed.
        """
        assert self.violations == []

    @invariant()
    def oneEnd(self) -> None:
        """
        Each message comes to at most one end, and is put aside only after its
        tries, or at the stop if it had been acknowledged.
        """
        for message_id in self.IDS:
            assert self.successes[message_id] + self.letters[message_id] <= 1
            if self.letters[message_id] and not (self.stopping and self.policy == "received"):
                assert self.failures[message_id] == self.TRIES

    @invariant()
    def oneAnswer(self) -> None:
        """
        Each coming of a message is answered at most once, and with the policy
        C{handled} not with an ACK before the message has come to its end.  Of a
        message that comes very often the oldest comings are forgotten.
        """
        for message_id, outcome in self.comings:
            if outcome == [StreamLost]:
                assert len([name for name, _ in self.comings if name == message_id]) > MAX_WAITERS
                continue
            assert outcome in ([], ["acknowledge"], [Stopped])
            done = self.successes[message_id] + self.letters[message_id]
            if self.policy == "handled":
                assert bool(done) == (outcome == ["acknowledge"])

    @invariant()
    def fewTimers(self) -> None:
        """
        There is one timer for all time-outs, one for each message that waits
        for its next try, one for all that came just now, and one for the
        grace.
        """
        assert len(self.harness.clock.getDelayedCalls()) <= len(self.IDS) + 3

    def teardown(self) -> None:
        """
        In the end each coming has been answered, each message that was
        acknowledged is handled or put aside, and no timer is left.
        """
        if not hasattr(self, "harness"):
            return
        if self.stopping is None:
            self.stop(1.0, "defer")
        self.harness.clock.pump([0, 10])
        assert self.stopped
        assert self.harness.clock.getDelayedCalls() == []
        for message_id, outcome in self.comings:
            assert len(outcome) == 1
            if outcome == ["acknowledge"]:
                assert self.successes[message_id] + self.letters[message_id] == 1
        assert self.violations == []


class DeliveryMachineTests(SynchronousTestCase):
    """
    L{UpstreamDelivery} keeps its promises whatever happens in whatever order.
    """

    def test_anyOrder(self) -> None:
        """
        A message is handled at most once with success, every Deferred fires
        exactly once, and no timer outlives the stop.
        """
        self.addCleanup(self.flushLoggedErrors, HandlerFailed)
        run_state_machine_as_test(
            DeliveryMachine, settings=settings(max_examples=150, stateful_step_count=40)
        )


class BatchTests(DeliveryCase):
    """
    A handler may answer for several messages at once.
    """

    def test_sharedSucceeds(self) -> None:
        """
        One Deferred for several messages: when it fires, all are handled.
        """
        shared: Deferred[None] = Deferred()
        harness = self.makeDelivery(lambda _: shared)
        harness.take(upstream("m-1"), upstream("m-2"), upstream("m-3"))
        self.assertEqual([], harness.outcomes)
        shared.callback(None)
        self.assertEqual(["m-1", "m-2", "m-3"], harness.acknowledged)

    def test_sharedFails(self) -> None:
        """
        When it fails, none is: all are tried again.
        """
        shared: list[Deferred[None]] = [Deferred()]
        harness = self.makeDelivery(lambda _: shared[0])
        harness.take(upstream("m-1"), upstream("m-2"), upstream("m-3"))
        failing, shared[0] = shared[0], succeed(None)
        with self.logs():
            failing.errback(ValueError())
        self.assertEqual([], harness.outcomes)
        harness.clock.advance(1)
        self.assertEqual(["m-1", "m-2", "m-3"], sorted(harness.acknowledged))

    def test_cancellingOneEndsAnother(self) -> None:
        """
        At the end of the grace, cancelling one handler may end another: the
        stop goes on.
        """
        lock = DeferredLock()
        never: Deferred[None] = Deferred()

        async def answer(message: UpstreamMessage) -> None:
            async with lock:
                if message.message_id == "m-1":
                    await never

        harness = self.makeDelivery(answer)
        harness.take(upstream("m-1"), upstream("m-2"))
        stopped = harness.stop(1)
        harness.clock.advance(1)
        self.successResultOf(stopped)
        self.assertEqual({"m-1", "m-2"}, {message_id for message_id, _ in harness.outcomes})

    def test_concurrentFuture(self) -> None:
        """
        A concurrent future, which nobody here can wait for, is a failure and
        not a success.
        """
        harness = self.makeDelivery(lambda _: concurrent.futures.Future(), handlerTries=1)
        with self.logs():
            harness.take(upstream("m-1"))
        self.assertEqual(1, harness.delivery.deadLetters)

    def test_exits(self) -> None:
        """
        A handler that raises C{SystemExit} or C{KeyboardInterrupt} has failed
        like any other.
        """
        for kind in (SystemExit, KeyboardInterrupt):

            def answer(message: UpstreamMessage, kind: type[BaseException] = kind) -> None:
                raise kind

            harness = self.makeDelivery(answer, handlerTries=1)
            with self.logs():
                harness.take(upstream("m-1"))
            self.assertEqual(["m-1"], harness.acknowledged)
            self.assertEqual(1, harness.delivery.deadLetters)

    def test_manyComings(self) -> None:
        """
        A message that comes again and again while it is being handled takes a
        bounded amount of memory; the latest comings are acknowledged.
        """
        result: Deferred[None] = Deferred()
        harness = self.makeDelivery(lambda _: result)
        taken = [harness.delivery.take(upstream("m-1")) for _ in range(100)]
        forgotten = [deferred for deferred in taken if deferred.called]
        self.assertEqual(taken[: 100 - MAX_WAITERS], forgotten)
        for deferred in forgotten:
            self.failureResultOf(deferred, StreamLost)
        result.callback(None)
        for deferred in taken[-MAX_WAITERS:]:
            self.successResultOf(deferred)

    def test_ackedFirstIsBounded(self) -> None:
        """
        With the policy C{received} the ACK waits once very many messages are
        being handled, so that the connection server waits as well.
        """
        results: list[Deferred[None]] = []

        def answer(message: UpstreamMessage) -> Deferred[None]:
            results.append(Deferred())
            return results[-1]

        harness = self.makeDelivery(answer, ack="received")
        taken = [harness.delivery.take(upstream(f"m-{n}")) for n in range(MAX_ACKED + 2)]
        harness.clock.advance(0)
        self.assertEqual([True, True, False, False], [deferred.called for deferred in taken[-4:]])
        for result in results:
            result.callback(None)
        for deferred in taken:
            self.successResultOf(deferred)

    def test_ackedLaterIsHandledLater(self) -> None:
        """
        What comes beyond that bound is not handled before what has come
        earlier.
        """
        harness = self.makeDelivery(ack="received")
        ids = [f"m-{n}" for n in range(MAX_ACKED + 2)]
        harness.take(*map(upstream, ids))
        self.assertEqual((ids[:MAX_ACKED], []), (harness.acknowledged, harness.handler.ids))
        harness.clock.advance(0)
        self.assertEqual((ids, ids), (harness.acknowledged, harness.handler.ids))

    def test_stopBeyondTheBound(self) -> None:
        """
        What has come just before a stop is handled if it has been acknowledged
        and not begun if it has not: it will come again.
        """
        harness = self.makeDelivery(ack="received")
        ids = [f"m-{n}" for n in range(MAX_ACKED + 1)]
        harness.take(*map(upstream, ids))
        self.successResultOf(harness.stop(10))
        self.assertEqual((ids[:-1], ("m-1000", "Stopped")), (harness.handler.ids, harness.outcomes[-1]))

    def test_failedBefore(self) -> None:
        """
        A Deferred that has failed is no success when it is returned again.
        """
        shared: Deferred[None] = Deferred()
        harness = self.makeDelivery(lambda _: shared, handlerTries=2)
        harness.take(upstream("m-1"), upstream("m-2"))
        with self.logs():
            shared.errback(ValueError())
            harness.clock.advance(1)
        self.assertEqual(2, harness.delivery.deadLetters)
        self.assertEqual([], harness.events(Handled))

    def test_repeatedBeyondTheBound(self) -> None:
        """
        Beyond the bound of C{received}, a message that comes again waits as
        the first coming of it does.
        """
        harness = self.makeDelivery(lambda _: Deferred(), ack="received")
        for number in range(MAX_ACKED):
            harness.delivery.take(upstream(f"m-{number}"))
        waiting = [harness.delivery.take(upstream("last")) for _ in range(2)]
        waiting.append(harness.delivery.takeMalformed(MalformedPayload("No", "last", "tok-A"), "{}"))
        for deferred in waiting:
            self.assertNoResult(deferred)
        with self.logs():
            stopped = harness.stop(0)
            harness.clock.advance(0)
        self.successResultOf(stopped)
        for deferred in waiting:
            self.failureResultOf(deferred, Stopped)
        self.assertEqual(MAX_ACKED, harness.delivery.deadLetters)
