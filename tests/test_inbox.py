"""
Tests for L{fcmxmpp.inbox}, and for what L{fcmxmpp.delivery} does with an inbox.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, eventAsText
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from fcmxmpp import inbox as inboxModule
from fcmxmpp.appserver import AppServer
from fcmxmpp.connection import Credentials
from fcmxmpp.delivery import MAX_HANDLED, STORE_DELAY, Policy, UpstreamDelivery
from fcmxmpp.errors import HandlerFailed, HandlerUnavailable, MalformedPayload, QueueFull, Stopped
from fcmxmpp.inbox import POLL, InboxDelivery
from fcmxmpp.interfaces import (
    Arrived,
    DeadLettered,
    Handled,
    HandlingFailed,
    IResponsible,
    Repeated,
)
from fcmxmpp.messages import UpstreamMessage
from fcmxmpp.payload import decodeFromConnectionServer
from fcmxmpp.store.memory import MemoryStore
from fcmxmpp.testing import MemoryNetwork, RecordingHandler, RecordingObserver, connectedPair
from tests.delivering import receipt, upstream
from tests.storing import Unruly


class Process:
    """
    A process with a delivery and an inbox, that can die.

    @ivar inbox: as this process sees it.
    @ivar acks: the C{message_id} of each message that may be acknowledged.
    @ivar refused: those that may not, with the name of the error.
    """

    def __init__(
        self,
        clock: Clock,
        store: MemoryStore,
        answer: Callable[[Any], Any],
        atOnce: int = 1000,
        limit: int = MAX_HANDLED,
        **policy: Any,
    ) -> None:
        self.clock = Clock() if clock is None else clock
        self.inbox = Unruly(store.inbox)
        self.handler = RecordingHandler(answer)
        self.observer = RecordingObserver()
        policy.setdefault("ack", "stored")
        self.delivery = UpstreamDelivery(
            self.handler, Policy(**policy), clock, lambda: 0.0, self.observer.observed, limit, self.inbox
        )
        self.fromInbox = InboxDelivery(self.inbox, self.delivery, clock, atOnce)
        self.responsible: Any = self.fromInbox if policy["ack"] == "stored" else self.delivery
        self.acks: list[str] = []
        self.refused: list[tuple[str, str]] = []

    def start(self) -> None:
        """
        Handle what is in the inbox.
        """
        self.fromInbox.start()
        self.clock.advance(0)

    def take(self, *messages: Any) -> None:
        """
        Have messages taken over.
        """
        for message in messages:
            self.note(message.message_id, self.responsible.take(message))
        self.clock.advance(0)

    def note(self, message_id: str, taken: Deferred[None]) -> None:
        """
        Note what becomes of a message.
        """
        taken.addCallbacks(
            lambda _: self.acks.append(message_id),
            lambda failure: self.refused.append((message_id, failure.type.__name__)),
        )

    def takeMalformed(self, message_id: str, text: str) -> None:
        """
        Have something taken over that could not be decoded.
        """
        error = MalformedPayload("no sense", message_id, "tok-A")
        self.note(message_id, self.responsible.takeMalformed(error, text))

    def stop(self, grace: float = 10.0) -> Deferred[None]:
        """
        Begin to stop.
        """
        self.fromInbox.stop()
        return Deferred.fromCoroutine(self.delivery.stop(grace))


class InboxCase(SynchronousTestCase):
    """
    What the test cases share: a clock, a store, and processes.
    """

    def setUp(self) -> None:
        """
        A store that is empty.
        """
        self.clock = Clock()
        self.store = MemoryStore(self.clock.seconds)

    def make(self, answer: Callable[[Any], Any] = lambda message: None, **options: Any) -> Process:
        """
        A process that has started; when the test is over it has to stop
        without a trace.
        """
        process = Process(self.clock, self.store, answer, **options)
        process.start()
        self.addCleanup(self.assertStops, process)
        return process

    def assertStops(self, process: Process) -> None:
        """
        Assert that a process stops and leaves nothing behind.
        """
        process.inbox.release()
        stopped = process.stop(0)
        self.clock.advance(0)
        self.successResultOf(stopped)
        self.assertEqual([], self.clock.getDelayedCalls())
        self.flushLoggedErrors(HandlerFailed)

    def dead(self, answer: Callable[[Any], Any], *messages: Any, **options: Any) -> Process:
        """
        A process that has taken messages over and died; it had a clock of its
        own, so nothing of it happens any more.
        """
        process = Process(Clock(), self.store, answer, **options)
        process.start()
        process.take(*messages)
        process.inbox.held = True
        process.inbox.drop()
        return process

    @contextmanager
    def instead(self, name: str, method: Callable[..., Any]) -> Iterator[None]:
        """
        Have the store do something else.
        """
        patch = self.patch(self.store.inbox, name, method)
        yield
        patch.restore()

    @property
    def waiting(self) -> list[str]:
        """
        The C{message_id} of what is in the inbox and yet to be handled.
        """
        entries = self.successResultOf(self.store.inbox.load(0, 10_000))
        return [entry.message.message_id for entry in entries]


def never(message: object) -> Deferred[None]:
    """
    What a handler that never answers returns.
    """
    return Deferred()


class StoredTests(InboxCase):
    """
    With the policy C{stored} a message may be acknowledged when it is in the
    inbox, and is handled after that.
    """

    def test_interface(self) -> None:
        """
        It is what links give messages to.
        """
        self.assertTrue(verifyObject(IResponsible, self.make().fromInbox))

    def test_commitFirst(self) -> None:
        """
        Nothing is acknowledged or handled before its commit.
        """
        process = self.make()
        process.inbox.held = True
        process.take(upstream("m-1"))
        self.assertEqual(([], []), (process.acks, process.handler.ids))
        process.inbox.release()
        self.assertEqual(["m-1"], process.acks)
        self.clock.advance(0)
        self.assertEqual(["m-1"], process.handler.ids)
        self.assertEqual([], self.waiting)

    def test_ackBeforeHandling(self) -> None:
        """
        The ACK is out before the handler is called.
        """
        seen: list[list[str]] = []
        process = self.make(lambda message: seen.append(list(process.acks)))
        process.take(upstream("m-1"), upstream("m-2"))
        self.assertEqual([["m-1", "m-2"]] * 2, seen)

    def test_slowHandler(self) -> None:
        """
        A handler that does not answer holds up no ACK.
        """
        process = self.make(never)
        process.take(*(upstream(f"m-{n}") for n in range(3000)))
        self.assertEqual(3000, len(process.acks))
        self.assertEqual(1000, len(process.handler.ids))

    def test_receipt(self) -> None:
        """
        Receipts are taken over in the same way.
        """
        process = self.make()
        process.take(receipt("d-1"))
        self.assertEqual(["dr2:d-1"], process.acks)
        self.assertEqual(1, len(process.handler.receipts))

    def test_duplicates(self) -> None:
        """
        What comes again is acknowledged again and handled once: while its
        commit is under way, while it is handled, after that, and after a
        restart.
        """
        answer: Deferred[None] = Deferred()
        process = self.make(lambda message: answer)
        process.inbox.held = True
        process.take(upstream("m-1"), upstream("m-1"))
        process.inbox.release()
        process.take(upstream("m-1"))
        answer.callback(None)
        process.take(upstream("m-1"))
        self.assertStops(process)
        again = self.make()
        again.take(upstream("m-1"))
        self.assertEqual((["m-1"] * 4, ["m-1"]), (process.acks, process.handler.ids))
        self.assertEqual((["m-1"], []), (again.acks, again.handler.ids))

    def test_events(self) -> None:
        """
        The observer is told of arrivals, repetitions and the end.
        """
        process = self.make()
        process.take(upstream("m-1"), upstream("m-1"))
        kinds = [type(event) for event in process.observer.events]
        self.assertEqual([Arrived, Repeated, Handled], kinds)

    def test_failing(self) -> None:
        """
        A handler that fails is tried again with back-off; its last failure
        makes a dead letter that has the message, the reason and the tries.
        """
        process = self.make(lambda message: 1 / 0)
        process.take(upstream("m-1", text="hello"))
        self.assertEqual(["m-1"], process.acks)
        for _ in range(10):
            self.clock.advance(1)
        self.assertEqual(["m-1"] * 3, process.handler.ids)
        (letter,) = self.store.inbox.deadLetters
        self.assertEqual(upstream("m-1", text="hello"), decodeFromConnectionServer(letter.body.decode()))
        self.assertEqual(3, letter.tries)
        self.assertIn("ZeroDivisionError", letter.reason)
        self.assertEqual([], self.waiting)
        self.assertEqual(3, len(process.observer.of(HandlingFailed)))
        self.assertEqual(1, len(process.observer.of(DeadLettered)))

    def test_unavailable(self) -> None:
        """
        A handler that cannot work is tried for as long as it takes.
        """
        working: list[bool] = []

        def answer(message: object) -> None:
            if not working:
                raise HandlerUnavailable("down")

        process = self.make(answer)
        process.take(upstream("m-1"))
        for _ in range(600):
            self.clock.advance(1)
        self.assertEqual(["m-1"], self.waiting)
        working.append(True)
        for _ in range(60):
            self.clock.advance(1)
        self.assertEqual([], self.waiting)
        self.assertEqual([], self.store.inbox.deadLetters)

    def test_malformed(self) -> None:
        """
        What cannot be decoded is kept as it came, and then acknowledged; once.
        """
        process = self.make()
        process.inbox.held = True
        process.takeMalformed("m-1", '{"a": \ud800}')
        process.takeMalformed("m-1", "again")
        self.assertEqual([], process.acks)
        process.inbox.release()
        process.takeMalformed("m-1", "and again")
        self.assertEqual(["m-1"] * 3, process.acks)
        (letter,) = self.store.inbox.deadLetters
        self.assertEqual(
            (b'{"a": \\ud800}', "malformed: no sense", 0), (letter.body, letter.reason, letter.tries)
        )
        self.assertEqual((3, 1), (process.delivery.malformed, process.delivery.deadLetters))

    def test_malformedAfterGood(self) -> None:
        """
        Where a good message of that name was taken over there is no dead
        letter, be it by this process or by one before.
        """
        self.dead(lambda message: None, upstream("m-1"))
        process = self.make()
        process.takeMalformed("m-1", "x")
        self.assertEqual((["m-1"], []), (process.acks, self.store.inbox.deadLetters))

    def test_discard(self) -> None:
        """
        What has no name is counted.
        """
        process = self.make()
        process.responsible.discard(MalformedPayload("no sense"))
        self.assertEqual(1, process.delivery.malformed)


class ResumeTests(InboxCase):
    """
    What a process left that died is handled by the next, in order.
    """

    def test_resume(self) -> None:
        """
        What was not handled is, in the order of arrival; what was, is not.
        """
        self.dead(
            lambda message: None if message.message_id == "m-1" else Deferred(),
            *(upstream(f"m-{n}") for n in range(5)),
        )
        process = self.make()
        self.assertEqual(["m-0", "m-2", "m-3", "m-4"], process.handler.ids)
        self.assertEqual([], self.waiting)

    def test_manyInPages(self) -> None:
        """
        Only so many are in memory; the others are read as these are handled,
        and what comes meanwhile keeps its place behind them.
        """
        self.dead(never, *(upstream(f"m-{n}") for n in range(25)))
        open_: list[Deferred[None]] = []

        def answer(message: object) -> Deferred[None]:
            open_.append(Deferred())
            return open_[-1]

        process = self.make(answer, atOnce=10)
        process.take(*(upstream(f"m-{n}") for n in range(25, 40)))
        most = 0
        while open_:
            most = max(most, len(open_))
            open_.pop(0).callback(None)
            self.clock.advance(0)
        self.assertEqual(10, most)
        self.assertEqual([f"m-{n}" for n in range(40)], process.handler.ids)
        self.assertEqual([], self.waiting)

    def test_comesWhileReading(self) -> None:
        """
        What is committed while the inbox is being read is handled, once,
        whether the reading has seen it or not.
        """
        process = Process(self.clock, self.store, lambda message: None)
        process.inbox.held = True
        process.start()
        process.take(upstream("m-1"), upstream("m-2"))
        # The reading is the first that waits; have it see only one of the two.
        reading = process.inbox._waiting.pop(0)
        process.inbox.release(1)
        reading()
        process.inbox.release()
        self.clock.advance(0)
        self.assertEqual(["m-1", "m-2"], process.handler.ids)
        self.assertStops(process)

    def test_triesSurvive(self) -> None:
        """
        The tries of a process that died count.
        """
        self.dead(lambda message: 1 / 0, upstream("m-1"))
        process = self.make(lambda message: 1 / 0)
        self.clock.advance(5)
        self.assertEqual(2, len(process.handler.ids))
        self.assertEqual(3, self.store.inbox.deadLetters[0].tries)
        self.flushLoggedErrors(HandlerFailed)

    def test_retried(self) -> None:
        """
        A dead letter that somebody puts back is handled soon, also if others
        have come in behind it.
        """
        bad = [True]

        def answer(message: UpstreamMessage) -> None:
            if bad and message.message_id == "bad":
                raise ValueError

        process = self.make(answer, handlerTries=1)
        process.take(upstream("bad"))
        bad.clear()
        self.store.inbox.retry(upstream("bad"))
        process.take(upstream("m-1"))
        self.assertEqual(["bad", "bad", "m-1"], process.handler.ids)
        bad.append(True)
        process.take(upstream("bad", "tok-B"))
        bad.clear()
        self.store.inbox.retry(upstream("bad", "tok-B"))
        self.clock.advance(POLL)
        self.clock.advance(0)
        self.assertEqual(["bad", "bad", "m-1", "bad", "bad"], process.handler.ids)
        self.assertEqual([], self.store.inbox.deadLetters)

    def test_ordered(self) -> None:
        """
        With C{ordered} the messages of one device are handled one at a time
        after a restart, too, and the next only when the one before is on
        record.
        """
        self.dead(never, *(upstream(f"{d}-{n}", f"tok-{d}") for n in range(3) for d in "ab"))
        process = self.make(ordered=True)
        self.assertEqual(
            ["a-0", "b-0", "a-1", "b-1", "a-2", "b-2"], sorted(process.handler.ids, key=lambda i: i[2])
        )
        process.inbox.held = True
        process.inbox.held = False
        process.take(upstream("a-3", "tok-a"))
        process.inbox.held = True
        process.take(upstream("a-4", "tok-a"), upstream("a-5", "tok-a"))
        process.inbox.release(2)
        self.clock.advance(0)
        self.assertEqual("a-4", process.handler.ids[-1])
        process.inbox.release()
        self.clock.advance(0)
        self.assertEqual("a-5", process.handler.ids[-1])

    def test_otherPolicies(self) -> None:
        """
        What is in the inbox is handled under the other policies as well.
        """
        for ack in ("handled", "received"):
            self.dead(never, upstream(f"m-{ack}"))
            process = self.make(ack=ack)
            self.assertEqual([f"m-{ack}"], process.handler.ids)
            self.assertStops(process)


class OutageTests(InboxCase):
    """
    While the store does not work, nothing is acknowledged and nothing is lost.
    """

    def test_notAcknowledged(self) -> None:
        """
        A message that cannot be committed is neither acknowledged nor handled
        until it can; then it is, without having to come again.
        """
        process = self.make()
        process.inbox.broken = True
        process.take(upstream("m-1"))
        self.clock.advance(100 * STORE_DELAY)
        self.assertEqual(([], [], []), (process.acks, process.refused, process.handler.ids))
        process.inbox.broken = False
        self.clock.advance(STORE_DELAY)
        self.clock.advance(0)
        self.assertEqual((["m-1"], ["m-1"]), (process.acks, process.handler.ids))

    def test_keepsOrder(self) -> None:
        """
        With C{ordered} no message overtakes one of the same device whose
        commit has failed: neither one that was waiting to be committed, nor
        one that comes when the store works again.  Other devices do not wait.
        """
        process = self.make(ordered=True)
        process.inbox.held = True
        process.take(upstream("a-1"), upstream("a-2"), upstream("b-1", "tok-B"))
        process.inbox.broken = True
        process.inbox.release(1)
        process.inbox.broken = False
        process.inbox.release()
        self.clock.advance(0)
        process.take(upstream("a-3"))
        self.assertEqual((["b-1"], ["b-1"]), (process.acks, process.handler.ids))
        self.clock.advance(STORE_DELAY)
        self.clock.advance(0)
        self.assertEqual(["b-1", "a-1", "a-2", "a-3"], process.handler.ids)
        self.assertCountEqual(process.handler.ids, process.acks)

    def test_manyInOrder(self) -> None:
        """
        However many of one device wait for the store, they are committed when
        it works again.
        """
        process = self.make(ordered=True)
        process.inbox.broken = True
        ids = [f"m-{n}" for n in range(1100)]
        process.take(*(upstream(message_id) for message_id in ids))
        process.inbox.broken = False
        self.clock.advance(STORE_DELAY)
        for _ in range(10):
            self.clock.advance(0)
        self.assertEqual((ids, 0), (process.handler.ids, len(process.fromInbox._lanes)))

    def test_notRecorded(self) -> None:
        """
        What was handled and cannot be recorded is recorded later, and not
        handled again.
        """
        process = self.make(lambda message: setattr(process.inbox, "broken", True))
        process.take(upstream("m-1"))
        self.clock.advance(10)
        self.assertEqual((["m-1"], ["m-1"]), (self.waiting, process.handler.ids))
        process.inbox.broken = False
        self.clock.advance(STORE_DELAY)
        self.assertEqual(([], ["m-1"]), (self.waiting, process.handler.ids))

    def test_notPutAside(self) -> None:
        """
        A dead letter that cannot be kept is kept later.
        """

        def answer(message: object) -> None:
            process.inbox.broken = True
            raise ValueError

        process = self.make(answer, handlerTries=2)
        process.take(upstream("m-1"))
        for _ in range(20):
            self.clock.advance(1)
        process.takeMalformed("m-2", "x")
        self.assertEqual((["m-1"], []), (process.acks, self.store.inbox.deadLetters))
        process.inbox.broken = False
        self.clock.advance(STORE_DELAY)
        letters = [letter.message_id for letter in self.store.inbox.deadLetters]
        self.assertEqual((["m-1", "m-2"], ["m-1", "m-2"]), (process.acks, letters))
        self.assertEqual(["m-1"] * 2, process.handler.ids)

    def test_notRead(self) -> None:
        """
        An inbox that cannot be read at the start is read later.
        """
        self.dead(never, upstream("m-1"))
        process = Process(self.clock, self.store, lambda message: None)
        process.inbox.broken = True
        process.start()
        self.clock.advance(10)
        process.inbox.broken = False
        self.clock.advance(STORE_DELAY)
        self.clock.advance(0)
        self.assertEqual(["m-1"], process.handler.ids)
        self.assertStops(process)

    def test_notOpen(self) -> None:
        """
        That nobody has started the store is said, once.
        """
        with self.instead("load", lambda *a: _failed(Stopped("the store is not open"))):
            with capturedLogs() as events:
                self.make()
                self.clock.pump([STORE_DELAY] * 5)
            self.assertEqual(
                [(LogLevel.error, "the inbox cannot be read: the store is not open")],
                [(event["log_level"], event["log_format"].format(**event)) for event in events],
            )

    def test_tooMuch(self) -> None:
        """
        What a connection server sends beyond all windows while nothing can be
        committed is refused, and that is said once a minute.
        """
        self.patch(inboxModule, "MAX_COMMITS", 2)
        process = self.make()
        process.inbox.broken = True
        process.take(*(upstream(f"m-{n}") for n in range(4)))
        self.assertEqual([("m-2", "QueueFull"), ("m-3", "QueueFull")], process.refused)
        self.failureResultOf(process.fromInbox.take(upstream("m-9")), QueueFull)
        process.inbox.broken = False
        self.clock.advance(STORE_DELAY)
        self.assertEqual(["m-0", "m-1"], process.acks)

    def test_bug(self) -> None:
        """
        Any other failure of a store is logged and does not stop the others.
        """

        class Odd(Exception):
            pass

        process = self.make()
        with self.instead("add", lambda m: _failed(Odd())):
            process.take(upstream("m-1"))
        with self.instead("load", lambda *a: _failed(Odd())):
            self.clock.advance(POLL)
        with self.instead("handled", lambda *a: _failed(Odd())):
            process.take(upstream("m-2"))
        self.assertEqual(3, len(self.flushLoggedErrors(Odd)))
        self.assertEqual([("m-1", "Stopped")], process.refused)
        self.assertEqual(["m-2"], self.waiting)
        self.clock.advance(STORE_DELAY)
        process.take(upstream("m-3"))
        self.clock.advance(POLL)
        self.clock.advance(0)
        self.assertIn("m-3", process.acks)


def _failed(error: Exception) -> Deferred[Any]:
    """
    A Deferred that has failed.
    """
    result: Deferred[Any] = Deferred()
    result.errback(error)
    return result


class StopTests(InboxCase):
    """
    The stop takes nothing more, and leaves the rest in the inbox.
    """

    def test_running(self) -> None:
        """
        Handlers that run get their grace; what has not begun stays, as does
        what does not end in time.
        """
        answers: dict[str, Deferred[None]] = {"m-1": Deferred(), "m-2": Deferred()}
        process = self.make(lambda message: answers[message.message_id])
        process.take(upstream("m-1"), upstream("m-2"))
        process.note("m-3", process.fromInbox.take(upstream("m-3")))
        stopped = process.stop(5)
        answers["m-1"].callback(None)
        self.clock.advance(5)
        self.successResultOf(stopped)
        self.assertEqual(["m-2", "m-3"], self.waiting)
        self.assertEqual(["m-1", "m-2"], process.handler.ids)
        self.assertEqual([], self.store.inbox.deadLetters)

    def test_failing(self) -> None:
        """
        A try that fails during the stop counts, and is not said to be followed
        by another one.
        """
        answer: Deferred[None] = Deferred()
        process = self.make(lambda message: answer)
        process.take(upstream("m-1"))
        stopped = process.stop(5)
        with capturedLogs() as events:
            answer.errback(HandlerFailed("no"))
        self.successResultOf(stopped)
        self.assertEqual(
            ["the handler failed on 'm-1': no; no more tries before the stop"],
            [
                event["log_format"].format(**event)
                for event in events
                if event["log_namespace"] == "fcmxmpp.attempts"
            ],
        )
        self.assertEqual([None], [event.retryIn for event in process.observer.of(HandlingFailed)])
        (entry,) = self.successResultOf(self.store.inbox.load(0, 10))
        self.assertEqual(1, entry.tries)

    def test_afterIt(self) -> None:
        """
        Nothing is taken any more; and nothing before the start.
        """
        process = Process(self.clock, self.store, lambda message: None)
        self.failureResultOf(process.fromInbox.take(upstream("m-1")), Stopped)
        process.start()
        self.successResultOf(process.stop())
        self.failureResultOf(process.fromInbox.take(upstream("m-1")), Stopped)
        process.takeMalformed("m-2", "x")
        self.assertEqual([("m-2", "Stopped")], process.refused)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_outage(self) -> None:
        """
        What waits for a broken store is not acknowledged; what was handled and
        cannot be recorded keeps the process from stopping for its grace, and no
        longer.
        """
        process = self.make(lambda message: setattr(process.inbox, "broken", True))
        process.take(upstream("m-1"))
        process.take(upstream("m-2"))
        stopped = process.stop(10)
        self.assertEqual([("m-2", "Stopped")], process.refused)
        self.clock.pump([1] * 9)
        self.assertNoResult(stopped)
        self.clock.advance(1)
        self.successResultOf(stopped)
        self.assertEqual(["m-1"], self.waiting)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_recovery(self) -> None:
        """
        What was handled, or put aside, and could not be recorded is recorded
        if the store works again in time: the next process does not handle it
        again.
        """

        def answer(message: UpstreamMessage) -> None:
            process.inbox.broken = True
            if message.message_id == "m-2":
                raise ValueError

        for ack in ("stored", "handled"):
            process = self.make(answer, ack=ack, handlerTries=1)
            process.take(upstream("m-1", f"tok-{ack}"))
            process.inbox.broken = False
            process.take(upstream("m-2", f"tok-{ack}"))
            stopped = process.stop(10)
            self.clock.advance(STORE_DELAY)
            self.assertNoResult(stopped)
            process.inbox.broken = False
            self.clock.advance(STORE_DELAY)
            self.clock.advance(0)
            self.successResultOf(stopped)
            self.assertEqual((["m-1", "m-2"], [], []), (process.acks, process.refused, self.waiting))
            letters = [(letter.message_id, letter.from_) for letter in self.store.inbox.deadLetters]
            self.assertEqual([("m-2", f"tok-{ack}")], letters[-1:])

    def test_inOrder(self) -> None:
        """
        With C{ordered} what waits for a commit that is under way is not
        committed after the stop.
        """
        process = self.make(ordered=True)
        process.inbox.held = True
        process.take(upstream("m-1"), upstream("m-2"))
        self.successResultOf(process.stop(10))
        process.inbox.release()
        self.clock.advance(0)
        self.assertEqual((["m-1"], [("m-2", "Stopped")]), (process.acks, process.refused))
        self.assertEqual((["m-1"], 0), (self.waiting, process.fromInbox._commits))

    def test_commitUnderWay(self) -> None:
        """
        A commit or a reading that ends after the stop begins nothing.
        """
        process = self.make()
        process.inbox.held = True
        process.take(upstream("m-1"))
        self.clock.advance(POLL)
        self.successResultOf(process.stop(10))
        process.inbox.release()
        self.clock.advance(0)
        self.assertEqual((["m-1"], []), (process.acks, process.handler.ids))
        self.assertEqual([], self.clock.getDelayedCalls())
        process.inbox.broken = True
        self.assertEqual(["m-1"], self.waiting)

    def test_loadFailsAfterIt(self) -> None:
        """
        A reading that fails after the stop is not tried again.
        """
        process = self.make()
        process.inbox.held = True
        self.clock.advance(POLL)
        self.successResultOf(process.stop(10))
        process.inbox.broken = True
        process.inbox.release()
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_lookUpUnderWay(self) -> None:
        """
        Under C{handled}: a look-up that ends after the stop has begun begins
        nothing; one that ends after the stop does nothing at all.
        """
        process = self.make(ack="handled")
        process.inbox.held = True
        process.take(upstream("m-1"), upstream("m-2"))
        stopped = process.stop(5)
        process.inbox.release(1)
        self.assertEqual([("m-1", "Stopped")], process.refused)
        self.clock.advance(5)
        self.successResultOf(stopped)
        process.inbox.release()
        self.assertEqual([("m-1", "Stopped"), ("m-2", "Stopped")], process.refused)
        self.assertEqual([], process.handler.ids)

    def test_triedAgain(self) -> None:
        """
        What had failed and is just being tried again, be it a look-up, a
        record or a dead letter, does not keep the process from stopping in
        order.
        """
        for calls in (1, 2):
            for answer in (lambda message: None, lambda message: 1 / 0):
                process = self.make(answer, ack="handled", handlerTries=1)
                process.inbox.held = True
                process.take(upstream("m-1"))
                process.inbox.release(calls - 1)
                process.inbox.broken = True
                process.inbox.release(1)
                process.inbox.broken = False
                self.clock.advance(STORE_DELAY)
                stopped = process.stop(5)
                self.clock.advance(5)
                self.successResultOf(stopped)
                self.assertEqual([("m-1", "Stopped")], process.refused)
                process.inbox.drop()
                self.assertEqual([], self.clock.getDelayedCalls())

    def test_recordUnderWay(self) -> None:
        """
        A record that ends after the stop does nothing but last.
        """
        process = self.make(ack="handled")
        process.inbox.held = True
        process.take(upstream("m-1"))
        process.inbox.release(1)
        process.takeMalformed("m-2", "x")
        stopped = process.stop(5)
        self.clock.advance(5)
        self.successResultOf(stopped)
        process.inbox.release()
        self.assertEqual([("m-1", "Stopped"), ("m-2", "Stopped")], process.refused)
        self.assertEqual(["m-1"], process.handler.ids)
        again = self.make(ack="handled")
        again.take(upstream("m-1"), upstream("m-2"))
        self.assertEqual((["m-1", "m-2"], []), (again.acks, again.handler.ids))

    def test_brokenAfterIt(self) -> None:
        """
        A call that fails after the stop is of no interest any more.
        """
        process = self.make(ack="handled")
        process.inbox.held = True
        process.take(upstream("m-1"))
        stopped = process.stop(0)
        self.clock.advance(0)
        self.successResultOf(stopped)
        process.inbox.broken = True
        process.inbox.release()
        self.assertEqual([], self.clock.getDelayedCalls())


class HandledTests(InboxCase):
    """
    With the policy C{handled} and a store, the record of what was handled
    outlasts the process.
    """

    def test_order(self) -> None:
        """
        Look-up, handler, record, and only then the ACK.
        """
        process = self.make(ack="handled")
        process.inbox.held = True
        process.take(upstream("m-1"))
        self.assertEqual(([], []), (process.handler.ids, process.acks))
        process.inbox.release(1)
        self.assertEqual((["m-1"], []), (process.handler.ids, process.acks))
        process.inbox.release()
        self.assertEqual(["m-1"], process.acks)
        self.assertEqual(["load", "isKnown", "remember"], process.inbox.calls)

    def test_redelivered(self) -> None:
        """
        A redelivery after the death of the process is acknowledged and not
        handled, if the handling was recorded; otherwise it is handled.
        """
        recorded = Process(Clock(), self.store, lambda message: None, ack="handled")
        recorded.start()
        recorded.take(upstream("m-1"))
        unrecorded = Process(
            Clock(), self.store, lambda message: setattr(unrecorded.inbox, "held", True), ack="handled"
        )
        unrecorded.start()
        unrecorded.take(upstream("m-2"))
        self.assertEqual((["m-2"], []), (unrecorded.handler.ids, unrecorded.acks))
        process = self.make(ack="handled")
        process.take(upstream("m-1"), upstream("m-2"), upstream("m-1"))
        self.assertEqual((["m-1", "m-2", "m-1"], ["m-2"]), (process.acks, process.handler.ids))

    def test_deadLetters(self) -> None:
        """
        What fails for good, and what cannot be decoded, is kept with its
        contents; a redelivery is acknowledged.
        """
        process = self.make(lambda message: 1 / 0, ack="handled", handlerTries=1)
        process.take(upstream("m-1", text="hello"))
        process.takeMalformed("m-2", "{")
        self.assertEqual(["m-1", "m-2"], process.acks)
        self.assertEqual(
            [("m-1", 1), ("m-2", 0)], [(each.message_id, each.tries) for each in self.store.inbox.deadLetters]
        )
        self.assertIn(b"hello", self.store.inbox.deadLetters[0].body)
        self.assertStops(process)
        again = self.make(ack="handled")
        again.take(upstream("m-1"), upstream("m-2"))
        self.assertEqual((["m-1", "m-2"], []), (again.acks, again.handler.ids))

    def test_outage(self) -> None:
        """
        While the store cannot be asked nothing is handled; while it cannot
        record nothing is acknowledged, nor handled twice.
        """
        process = self.make(ack="handled")
        process.inbox.broken = True
        process.take(upstream("m-1"))
        self.clock.advance(10)
        self.assertEqual([], process.handler.ids)
        process.handler.answer = lambda message: setattr(process.inbox, "broken", True)
        process.inbox.broken = False
        self.clock.advance(STORE_DELAY)
        self.clock.advance(10)
        process.take(upstream("m-1"))
        self.assertEqual((["m-1"], []), (process.handler.ids, process.acks))
        process.inbox.broken = False
        self.clock.advance(STORE_DELAY)
        self.assertEqual((["m-1"], ["m-1"] * 2), (process.handler.ids, process.acks))

    def test_received(self) -> None:
        """
        Under C{received} the ACK comes first; what the stop cuts short is a
        dead letter in the store.
        """
        process = self.make(never, ack="received")
        process.take(upstream("m-1"))
        self.assertEqual(["m-1"], process.acks)
        stopped = process.stop(1)
        self.clock.advance(1)
        self.successResultOf(stopped)
        (letter,) = self.store.inbox.deadLetters
        self.assertEqual(
            ("m-1", "stopped before the message was handled"), (letter.message_id, letter.reason)
        )

    def stopAt(self, process: Process) -> list[str]:
        """
        Stop a process without grace, and then have the store do what waits.

        @return: what it said.
        """
        with capturedLogs() as events:
            stopped = process.stop(0)
            self.clock.advance(0)
            process.inbox.release()
            self.successResultOf(stopped)
        return [event["log_format"].format(**event) for event in events if "kept" in event]

    def test_receivedAndRecorded(self) -> None:
        """
        Under C{received} the stop makes no dead letter of what was handled and
        is not on record yet.
        """
        process = self.make(ack="received")
        process.inbox.held = True
        process.take(upstream("m-1"))
        process.inbox.release(1)
        self.assertEqual(["m-1"], process.handler.ids)
        self.assertEqual([], self.stopAt(process))
        self.assertEqual(([], 0), (self.store.inbox.deadLetters, process.delivery.deadLetters))

    def test_receivedAndPutAside(self) -> None:
        """
        Under C{received} what is being put aside at the stop is one dead
        letter, with the reason that it has.
        """
        process = self.make(lambda message: 1 / 0, ack="received", handlerTries=1)
        process.inbox.held = True
        process.take(upstream("m-1"))
        process.inbox.release(1)
        reason = "the handler failed 1 times, last: builtins.ZeroDivisionError"
        self.assertEqual([f"dead letter 'm-1': {reason}; kept: see fcmxmpp inbox list"], self.stopAt(process))
        (letter,) = self.store.inbox.deadLetters
        self.assertEqual((reason, 1), (letter.reason, process.delivery.deadLetters))

    def test_receivedAndLost(self) -> None:
        """
        Under C{received} nothing says that the store has what it could not
        take.
        """
        process = self.make(never, ack="received")
        process.take(upstream("m-1"))
        process.inbox.broken = True
        reason = "stopped before the message was handled"
        self.assertEqual([f"dead letter 'm-1': {reason}"], self.stopAt(process))
        self.assertEqual(([], 1), (self.store.inbox.deadLetters, process.delivery.deadLetters))

    def test_notPutAsideYet(self) -> None:
        """
        What failed for good is not acknowledged before it is a dead letter in
        the store, though it comes again after the end of its tries.
        """
        process = self.make(lambda message: 1 / 0, ack="handled", handlerTries=1)
        with self.instead("putAside", lambda letter: _failed(Stopped("the store is not open"))):
            process.take(upstream("m-1"))
        process.inbox.broken = True
        process.take(upstream("m-1"))
        self.assertEqual(([], [("m-1", "Stopped")]), (process.acks, process.refused))
        process.inbox.broken = False
        self.clock.advance(STORE_DELAY)
        self.assertEqual(
            (["m-1"], ["m-1"]), (process.acks, [each.message_id for each in self.store.inbox.deadLetters])
        )

    def test_malformedLimit(self) -> None:
        """
        What cannot be decoded takes up places, too, while it waits for the
        store.
        """
        process = self.make(ack="handled", limit=2)
        process.inbox.broken = True
        for message_id in ("m-1", "m-2", "m-3"):
            process.takeMalformed(message_id, "x")
        self.assertEqual(([], [("m-3", "QueueFull")]), (process.acks, process.refused))
        process.inbox.broken = False
        self.clock.advance(STORE_DELAY)
        self.assertEqual(["m-1", "m-2"], process.acks)


class AppServerTests(SynchronousTestCase):
    """
    An L{AppServer} with a store.
    """

    def test_default(self) -> None:
        """
        With a store messages are acknowledged when they are stored, unless the
        policy says otherwise, and without one there is no such policy.
        """
        clock = Clock()
        store = MemoryStore(clock.seconds)
        pair = connectedPair(RecordingHandler(never), store=store, clock=clock)
        pair.device.send("m-1", {})
        pair.advance(1)
        self.assertEqual(["m-1"], pair.device.delivered)
        pair = connectedPair(RecordingHandler(never), Policy(handlerTries=5), store=store, clock=clock)
        pair.device.send("m-3", {})
        pair.advance(1)
        self.assertEqual(["m-3"], pair.device.delivered)
        handled = connectedPair(RecordingHandler(never), Policy(ack="handled"), store=store, clock=clock)
        handled.device.send("m-2", {})
        handled.advance(1)
        self.assertEqual([], handled.device.delivered)
        self.assertRaises(
            ValueError,
            AppServer,
            pair.network,
            Credentials("1", "k"),
            RecordingHandler(),
            clock=clock,
            policy=Policy(ack="stored"),
        )

    def test_restart(self) -> None:
        """
        What one app server left unhandled the next one handles, before
        anything new.
        """
        clock = Clock()
        store = MemoryStore(clock.seconds)
        first = connectedPair(RecordingHandler(never), store=store, clock=clock, grace=0)
        first.device.send("m-1", {})
        first.advance(1)
        stopped = first.stop()
        first.advance(1)
        self.successResultOf(stopped)
        handler = RecordingHandler()
        second = connectedPair(handler, store=store, clock=clock)
        second.device.send("m-2", {})
        second.advance(2)
        self.assertEqual(["m-1", "m-2"], handler.ids)

    def test_storeNotStarted(self) -> None:
        """
        An app server does not start before its store, which would be to
        acknowledge nothing and not to say why.
        """
        clock = Clock()
        network = MemoryNetwork(clock, Factory())
        server = AppServer(
            network,
            Credentials("1", "k"),
            RecordingHandler(),
            clock=clock,
            store=MemoryStore(clock.seconds),
        )
        error = self.assertRaises(RuntimeError, server.startService)
        self.assertIn("InOrder", str(error))
        self.assertEqual((0, []), (network.attempts, clock.getDelayedCalls()))

    def test_storeStoppedFirst(self) -> None:
        """
        A store that was stopped before its app server is told of, because
        messages are handled twice then; one that was not is not.
        """
        for early in (True, False):
            clock = Clock()
            store = MemoryStore(clock.seconds)
            pair = connectedPair(RecordingHandler(), store=store, clock=clock)
            if early:
                store.stopService()
            with capturedLogs() as events:
                stopped = pair.stop()
                pair.advance(1)
                self.successResultOf(stopped)
            told = [event for event in events if event["log_level"] is LogLevel.error]
            self.assertEqual([early] if early else [], ["InOrder" in eventAsText(each) for each in told])


class _Machine(RuleBasedStateMachine):
    """
    One process after the other on one store, each killed at any moment; the
    connection server sends again what was not acknowledged.
    """

    def __init__(self, ack: str, ordered: bool) -> None:
        super().__init__()
        self._options: dict[str, Any] = {"ack": ack, "ordered": ordered, "atOnce": 3}
        self._everything = Clock()
        self.store = MemoryStore(self._everything.seconds)
        self.sent: dict[str, UpstreamMessage] = {}
        self.acked: set[str] = set()
        # By the handler, in this process; and in those before, recorded or not.
        self.handled: list[str] = []
        self.before: list[str] = []
        # What was handled when the process died before the record of it.
        self.unrecorded: list[str] = []
        self._count = 0
        self._begin()

    def _begin(self) -> None:
        """
        A new process.
        """
        self.open: list[tuple[str, Deferred[None]]] = []
        self.process = Process(Clock(), self.store, self._answer, **self._options)
        self.process.start()
        self.seen = 0

    def _answer(self, message: UpstreamMessage) -> Deferred[None]:
        """
        The handler is called.
        """
        answer: Deferred[None] = Deferred()
        self.open.append((message.message_id, answer))
        return answer

    def _isDone(self, message_id: str) -> bool:
        """
        Whether the store knows that a message was handled or put aside.
        """
        key = self.sent[message_id].key
        known: list[bool] = []
        self.store.inbox.isKnown(key).addCallback(known.append)
        entries: list[Any] = []
        self.store.inbox.load(0, 10_000).addCallback(entries.extend)
        return known[0] and key not in [entry.message.key for entry in entries]

    @rule(device=st.sampled_from("ab"))
    def send(self, device: str) -> None:
        """
        A device sends a message.
        """
        self._count += 1
        message_id = f"{device}-{self._count}"
        self.sent[message_id] = upstream(message_id, f"tok-{device}")
        self.process.take(self.sent[message_id])

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def again(self, data: st.DataObject) -> None:
        """
        A message comes again, acknowledged or not.
        """
        self.process.take(self.sent[data.draw(st.sampled_from(sorted(self.sent)))])

    @rule(held=st.booleans())
    def hold(self, held: bool) -> None:
        """
        The store takes its time, or no longer does.
        """
        self.process.inbox.held = held
        if not held:
            self.process.inbox.release()

    @rule(most=st.integers(1, 3))
    def commit(self, most: int) -> None:
        """
        The store does some of what waits.
        """
        self.process.inbox.release(most)
        self.process.clock.advance(0)

    @rule(broken=st.booleans())
    def breakDown(self, broken: bool) -> None:
        """
        The disk is full, or no longer is.
        """
        self.process.inbox.broken = broken

    @rule(seconds=st.sampled_from([0.0, 1.0, 5.0]))
    def wait(self, seconds: float) -> None:
        """
        Time passes.
        """
        self.process.clock.advance(seconds)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), well=st.sampled_from([True, True, False]))
    def answer(self, data: st.DataObject, well: bool) -> None:
        """
        The handler answers.
        """
        message_id, answer = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        if well:
            self.handled.append(message_id)
            answer.callback(None)
        else:
            answer.errback(HandlerFailed("no"))
        self.process.clock.advance(0)

    @rule()
    def kill(self) -> None:
        """
        The process dies, and another one begins.
        """
        self.process.inbox.held = True
        self.process.inbox.drop()
        self.unrecorded += [each for each in self.handled if not self._isDone(each)]
        self.before += self.handled
        self.handled = []
        self._begin()

    @invariant()
    def promises(self) -> None:
        """
        What is acknowledged is in the store; what one process handled it does
        not handle again; and over all processes once more only for each death
        before the record.
        """
        for message_id in self.process.acks[self.seen :]:
            self.acked.add(message_id)
            known: list[bool] = []
            self.store.inbox.isKnown(self.sent[message_id].key).addCallback(known.append)
            assert known == [True]
        self.seen = len(self.process.acks)
        assert len(self.handled) == len(set(self.handled))
        for message_id in self.handled:
            assert self.before.count(message_id) <= self.unrecorded.count(message_id)
        assert self.process.fromInbox._inHand <= 3
        if self._options["ordered"]:
            for device in "ab":
                assert len([each for each, _ in self.open if each[0] == device]) <= 1

    def teardown(self) -> None:
        """
        When all goes well again, all that was sent comes to its end.
        """
        self.breakDown(False)
        self.hold(False)
        for _ in range(500):
            self.process.clock.advance(1)
            for message_id, answer in self.open:
                self.handled.append(message_id)
                answer.callback(None)
            self.open = []
            if not [each for each in self.acked if not self._isDone(each)]:
                break
        for message_id in self.acked:
            assert self._isDone(message_id)
        dead = [letter.message_id for letter in self.store.inbox.deadLetters]
        assert self.acked <= {*self.before, *self.handled, *dead}


class MachineTests(SynchronousTestCase):
    """
    Nothing is lost, whatever happens in whatever order.
    """

    def test_machine(self) -> None:
        """
        For each policy that promises something, with and without order.
        """
        for ack in ("stored", "handled"):
            for ordered in (False, True):
                with capturedLogs():
                    run_state_machine_as_test(
                        lambda: _Machine(ack, ordered),  # noqa: B023
                        settings=settings(max_examples=60, stateful_step_count=40, deadline=None),
                    )
        self.flushLoggedErrors(HandlerFailed)
