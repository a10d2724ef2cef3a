"""
What the tests of L{fcmxmpp.outbox} stand on: one life of a process after the
other on one outbox, which can be slow or out of order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.logger import LogEvent, capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from fcmxmpp.downstream import MAX_QUEUE
from fcmxmpp.entries import OutboxEntry, Outcome, SettledEntry, UnreadableEntry
from fcmxmpp.errors import HandlerFailed, StoreUnavailable
from fcmxmpp.interfaces import IOutbox, IOutcomeHandler, Stored
from fcmxmpp.messages import DownstreamMessage
from fcmxmpp.outbox import AT_ONCE, LIMIT, StoredSender
from fcmxmpp.store.memory import MemoryStore
from tests.downstream import Harness


__all__ = ["GatedOutbox", "Life", "OutboxCase", "Outcomes"]


@implementer(IOutbox)
class GatedOutbox:
    """
    An outbox between which and its user there is a gate.

    @ivar broken: the methods that fail; C{"*"} for all.
    @ivar error: what they fail with.
    @ivar slow: the methods that are not done before they are released.
    @ivar mute: the methods that are done at once, and tell that only when
        they are released.
    @ivar damaged: the numbers of what cannot be read.
    @ivar calls: how often each method was called.
    """

    def __init__(self, outbox: IOutbox) -> None:
        self._outbox = outbox
        self.broken: set[str] = set()
        self.error: type[Exception] = StoreUnavailable
        self.slow: set[str] = set()
        self.mute: set[str] = set()
        self.damaged: set[int] = set()
        self.calls: Counter[str] = Counter()
        self._held: list[tuple[str, Callable[[], None]]] = []

    def _through(self, name: str, do: Callable[[], Deferred[Any]]) -> Deferred[Any]:
        """
        Do something, or let it wait.
        """
        self.calls[name] += 1
        result: Deferred[Any] = Deferred()
        if name in self.mute:
            # Kept apart from Deferreds: what is never released is no unhandled error.
            done: list[Any] = []
            self._try(name, do).addBoth(done.append)
            self._held.append((name, lambda: result.callback(done[0])))
        elif name in self.slow:
            self._held.append((name, lambda: self._try(name, do).chainDeferred(result)))
        else:
            self._try(name, do).chainDeferred(result)
        return result

    def _try(self, name: str, do: Callable[[], Deferred[Any]]) -> Deferred[Any]:
        """
        Do something, if that works.
        """
        return fail(self.error("the disk is full")) if self.broken & {name, "*"} else do()

    def release(self, name: str = "", many: int = 1_000_000) -> None:
        """
        Go on with what waits.

        @param name: of one method; otherwise all.
        """
        going = [one for one in self._held if name in ("", one[0])][:many]
        self._held = [one for one in self._held if one not in going]
        for _, go in going:
            go()

    def add(self, message: DownstreamMessage) -> Deferred[OutboxEntry]:
        """
        See L{IOutbox.add}.
        """
        return self._through("add", lambda: self._outbox.add(message))

    def load(self, after: int, limit: int) -> Deferred[list[OutboxEntry | UnreadableEntry]]:
        """
        See L{IOutbox.load}.
        """
        return self._through("load", lambda: self._outbox.load(after, limit).addCallback(self._damage))

    def _damage(self, entries: list[OutboxEntry]) -> list[OutboxEntry | UnreadableEntry]:
        """
        What can be read of some entries.
        """
        return [
            UnreadableEntry(
                number=entry.number,
                message_id=entry.message.message_id or "",
                peer=entry.message.to or "",
                body=b"SECRET",
                reason="Invalid JSON",
            )
            if entry.number in self.damaged
            else entry
            for entry in entries
        ]

    def count(self) -> Deferred[int]:
        """
        See L{IOutbox.count}.
        """
        return self._through("count", self._outbox.count)

    def withdraw(self, number: int) -> Deferred[None]:
        """
        See L{IOutbox.withdraw}.
        """
        return self._through("withdraw", lambda: self._outbox.withdraw(number))

    def settle(self, number: int, outcome: Outcome, report: bool) -> Deferred[None]:
        """
        See L{IOutbox.settle}.
        """
        return self._through("settle", lambda: self._outbox.settle(number, outcome, report))

    def unreported(self, after: int, limit: int) -> Deferred[list[SettledEntry]]:
        """
        See L{IOutbox.unreported}.
        """
        return self._through("unreported", lambda: self._outbox.unreported(after, limit))

    def reported(self, number: int) -> Deferred[None]:
        """
        See L{IOutbox.reported}.
        """
        return self._through("reported", lambda: self._outbox.reported(number))


@implementer(IOutcomeHandler)
class Outcomes:
    """
    The application's outcome handler.

    @ivar reported: what it was told, in order.
    @ivar answer: what it does then.
    """

    def __init__(self) -> None:
        self.reported: list[Outcome] = []
        self.answer: Callable[[Outcome], Any] = lambda outcome: None

    def messageSettled(self, outcome: Outcome) -> Awaitable[object] | None:
        """
        See L{IOutcomeHandler.messageSettled}.
        """
        self.reported.append(outcome)
        answer: Awaitable[object] | None = self.answer(outcome)
        return answer

    @property
    def told(self) -> list[tuple[str | None, str]]:
        """
        What it was told, in short.
        """
        return [(o.message.message_id, type(o.ack or o.error).__name__) for o in self.reported]


class Life(Harness):
    """
    One life of a process: a L{StoredSender} on top of what the tests of the
    sender have.

    @ivar gate: its way to the outbox.
    @ivar stored: the sender.
    @ivar taken: what came of each C{send}.
    """

    def __init__(
        self,
        outbox: IOutbox,
        outcomes: IOutcomeHandler | None,
        now: float,
        *,
        limit: int = LIMIT,
        atOnce: int = AT_ONCE,
        queue: int = MAX_QUEUE,
    ) -> None:
        super().__init__(queue)
        self.clock.advance(now)
        self.gate = GatedOutbox(outbox)
        self.stored = StoredSender(
            self.gate, self.sender, outcomes, self.clock, lambda: self.jitter, 60.0, 3, limit, atOnce
        )
        self.taken: dict[str, Any] = {}
        self.sending: dict[str, Deferred[Any]] = {}

    def entrust(self, *messages: DownstreamMessage) -> None:
        """
        Send messages, and note whether they were taken over.
        """
        for message in messages:
            result = self.stored.send(message)
            self.sending[message.message_id or ""] = result
            result.addBoth(self._note, message.message_id)
        self.network.pump()

    def _note(self, result: Any, message_id: str) -> None:
        """
        Note what C{send} came to.
        """
        self.taken[message_id] = result.value if isinstance(result, Failure) else result

    def wait(self, message_id: str) -> None:
        """
        Wait for the outcome of a message that was taken over: it is in
        C{outcomes} then.
        """
        stored = self.taken[message_id]
        assert isinstance(stored, Stored)
        self.note(message_id, stored.whenSettled())

    def end(self, grace: float = 0.0) -> Deferred[None]:
        """
        Begin to stop.
        """
        return Deferred.fromCoroutine(self.stored.stop(grace))


class OutboxCase(SynchronousTestCase):
    """
    What the test cases of the outbox share.
    """

    def setUp(self) -> None:
        """
        There is a store, and a time.
        """
        self.life: Life | None = None
        self.store = MemoryStore(lambda: 0.0 if self.life is None else self.life.clock.seconds())
        self.outcomes = Outcomes()

    def makeLife(
        self,
        links: int = 1,
        start: bool = True,
        outcomes: bool = True,
        prepare: Callable[[GatedOutbox], object] = lambda gate: None,
        **limits: int,
    ) -> Life:
        """
        Begin the next life, at the time at which the last one ended.

        @param prepare: is given the gate before the start.
        """
        now = 1000.0 if self.life is None else self.life.clock.seconds()
        life = Life(self.store.outbox, self.outcomes if outcomes else None, now, **limits)
        self.life = life
        prepare(life.gate)
        if start:
            life.stored.start()
        for _ in range(links):
            life.connect()
        return life

    def assertEnds(self, life: Life, grace: float = 0.0) -> None:
        """
        Assert that a life ends, at once or in its time, and leaves nothing
        behind.
        """
        ended = life.end(grace)
        life.network.advance(grace + 4.0, 0.5)
        self.successResultOf(ended)
        for link in life.links:
            stopped = link.stop()
            life.network.pump()
            self.successResultOf(stopped)
        self.assertEqual([], life.clock.getDelayedCalls())
        self.assertEqual((0, 0, 0, 0, 0), life.leftovers)
        self.assertEqual({}, life.stored._awaited)

    def open(self) -> list[str | None]:
        """
        What the outbox holds without outcome, by its C{message_id}s.
        """
        return [entry.message.message_id for entry in self.successResultOf(self.store.outbox.load(0, 9999))]

    def unreported(self) -> list[str | None]:
        """
        What the outbox holds with an outcome that is to be reported.
        """
        entries = self.successResultOf(self.store.outbox.unreported(0, 9999))
        return [entry.outcome.message.message_id for entry in entries]

    def logged(self, do: Callable[[], object]) -> list[LogEvent]:
        """
        Do something.

        @return: what was logged.
        """
        with capturedLogs() as events:
            do()
        self.flushLoggedErrors(HandlerFailed)
        return events
