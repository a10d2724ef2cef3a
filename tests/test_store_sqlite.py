"""
Tests for L{fcmxmpp.store.sqlite}, beyond what every store has to do: see
L{tests.test_contracts}.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.entries import DeadLetter, Outcome
from fcmxmpp.errors import AckTimedOut, Stopped, StoreUnavailable
from fcmxmpp.messages import DownstreamMessage, UpstreamMessage
from fcmxmpp.store import sqlite
from fcmxmpp.store.sqlite import FEW, KEEP, REST, STRIDE, TIMES, SQLiteStore
from tests.handreactor import HandReactor


class SQLiteStoreTests(SynchronousTestCase):
    """
    L{SQLiteStore} as a service.
    """

    def setUp(self) -> None:
        """
        A place for a store.
        """
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = os.path.join(directory.name, "store")
        self.reactor = HandReactor()
        self.store = self.make()

    def make(self, **options: Any) -> SQLiteStore:
        """
        A store that is not open yet.
        """
        store = SQLiteStore(self.path, self.reactor, **options)
        self.addCleanup(self.stop, store)
        return store

    def stop(self, store: SQLiteStore) -> None:
        """
        Stop a store, if it runs.
        """
        if store.running:
            self.reactor.turnUntil(store.stopService())

    def result(self, deferred: Deferred[Any]) -> Any:
        """
        What a Deferred fires with.
        """
        return self.successResultOf(self.reactor.turnUntil(deferred))

    def count(self, rows: str) -> int:
        """
        How many rows there are.
        """
        with closing(sqlite3.connect(self.path)) as connection:
            count: int = connection.execute(f"SELECT count(*) FROM {rows}").fetchone()[0]
            return count

    def remember(self, count: int) -> None:
        """
        Have some messages known, of which one was a dead letter.
        """
        results = [self.store.inbox.remember(("tok", f"m-{each}")) for each in range(count)]
        self.result(results[-1])

    def test_another(self) -> None:
        """
        A store that is in use cannot be opened by a second service; it can as
        soon as the first one is stopped.
        """
        self.store.startService()
        other = self.make()
        with self.assertRaisesRegex(
            StoreUnavailable, "^another process is using it: each service needs a store of its own$"
        ):
            other.startService()
        self.assertFalse(other.running)
        self.stop(self.store)
        other.startService()

    def test_claim(self) -> None:
        """
        To claim a store shows what is wrong before anything is started; a
        failed claim does not keep others from it, and a claimed one is free
        again when it is stopped, whether or not it was started.
        """
        with open(self.path, "w") as file:
            file.write("This is no database. " * 100)
        with self.assertRaisesRegex(StoreUnavailable, "the file is no database"):
            self.store.claim()
        os.unlink(self.path)
        self.store.claim()
        self.store.claim()
        other = self.make()
        with self.assertRaises(StoreUnavailable):
            other.claim()
        self.successResultOf(self.store.stopService())
        other.startService()

    def test_notOpen(self) -> None:
        """
        A store that is not open, or not any more, says so.
        """
        self.failureResultOf(self.store.inbox.load(0, 1), Stopped)
        self.store.startService()
        self.stop(self.store)
        self.failureResultOf(self.store.outbox.count(), Stopped)
        self.assertEqual([], self.reactor.getDelayedCalls())

    def test_again(self) -> None:
        """
        A store that was stopped can be started again.
        """
        for number in range(2):
            self.store.startService()
            entry = self.result(self.store.inbox.add(UpstreamMessage(from_="t", message_id=f"m-{number}")))
            self.assertEqual(number + 1, entry.number)
            self.stop(self.store)

    def test_arrived(self) -> None:
        """
        Entries bear the time when they were given to the store.
        """
        self.store.startService()
        self.reactor.advance(5)
        arriving = self.store.inbox.add(UpstreamMessage(from_="t", message_id="m"))
        sending = self.store.outbox.add(DownstreamMessage(to="t", message_id="m"))
        self.reactor.advance(1)
        self.assertEqual(5, self.result(arriving).arrived)
        self.assertEqual(5, self.result(sending).since)

    def sweep(self, delay: float) -> None:
        """
        Let the store sweep.
        """
        self.reactor.advance(delay)
        self.reactor.turn()

    def test_sweep(self) -> None:
        """
        What has been known for long enough is forgotten, and so are failures
        that were reported; everything else stays: what is to be done, dead
        letters, what is yet to be reported.
        """
        self.store = self.make(keep=TIMES * REST)
        self.store.startService()
        add, outbox = self.store.inbox.add, self.store.outbox
        entry = self.result(add(UpstreamMessage(from_="t", message_id="handled")))
        # Not urgent: it goes with the next.
        handled = self.store.inbox.handled(entry.number)
        self.result(add(UpstreamMessage(from_="t", message_id="waiting")))
        self.result(handled)
        letter = DeadLetter(from_="t", message_id="aside", body=b"{", reason="r")
        self.result(self.store.inbox.putAside(letter))
        for message_id, report in (("reported", False), ("unreported", True)):
            message = DownstreamMessage(to="t", message_id=message_id)
            sent = self.result(outbox.add(message))
            outcome = Outcome(message=message, error=AckTimedOut("no answer"), at=0.0)
            self.result(outbox.settle(sent.number, outcome, report))
        self.result(outbox.add(DownstreamMessage(to="t", message_id="unsettled")))
        self.reactor.advance(900)
        self.reactor.turn()
        self.result(self.store.inbox.remember(("t", "recent")))
        self.assertEqual((4, 3), (self.count("known"), self.count("outbox")))
        # Now what came at the beginning is too old.
        for _ in range(5):
            self.sweep(REST)
        self.assertEqual((1, 2), (self.count("known"), self.count("outbox")))
        self.assertEqual((1, 1), (self.count("inbox WHERE reason IS NULL"), self.count("inbox") - 1))
        self.assertFalse(self.result(self.store.inbox.isKnown(("t", "handled"))))
        self.assertTrue(self.result(self.store.inbox.isKnown(("t", "recent"))))

    def stepSizes(self, brief: float, count: int, steps: int) -> list[int]:
        """
        How many rows each step of the sweep takes away.

        @param brief: how many seconds a step may take.
        """
        self.patch(sqlite, "BRIEF", brief)
        self.store.startService()
        self.remember(count)
        self.reactor.advance(0)
        self.store._keep = -1.0
        sizes = []
        for _ in range(steps):
            before = self.count("known")
            self.sweep(STRIDE)
            sizes.append(before - self.count("known"))
        return sizes

    def test_faster(self) -> None:
        """
        A step that takes little time is followed by a larger one, up to a
        limit; after the last row there is a rest, a small part of the time
        that rows are kept.
        """
        self.patch(sqlite, "MANY", 3 * FEW)
        self.assertEqual([FEW, 2 * FEW, 3 * FEW, 3 * FEW, 5], self.stepSizes(1e9, 9 * FEW + 5, 5))
        (rest,) = self.reactor.getDelayedCalls()
        self.assertEqual(KEEP / TIMES, rest.getTime() - self.reactor.seconds())

    def test_beginsAgain(self) -> None:
        """
        After its rest the sweep begins anew: what was not too old then is
        taken away in its time.
        """
        self.store = self.make(keep=100.0)
        self.store.startService()
        self.remember(3)
        self.sweep(STRIDE)
        self.assertEqual(3, self.count("known"))
        self.sweep(REST)
        self.sweep(REST)
        self.assertEqual(0, self.count("known"))

    def test_manyFailures(self) -> None:
        """
        Failed messages that were reported are large, so a step takes only so
        many; those behind them need not wait for the end of the rest.
        """
        self.patch(sqlite, "LARGE", 2)
        self.store = self.make(keep=1000.0)
        self.store.startService()
        for number in range(5):
            message = DownstreamMessage(to="t", message_id=str(number))
            sent = self.result(self.store.outbox.add(message))
            outcome = Outcome(message=message, error=AckTimedOut("no answer"), at=0.0)
            self.result(self.store.outbox.settle(sent.number, outcome, False))
        self.store._keep = -1.0
        left = []
        for _ in range(3):
            self.sweep(STRIDE)
            left.append(self.count("outbox"))
        self.assertEqual([3, 1, 0], left)

    def test_slower(self) -> None:
        """
        A step that takes too much time is followed by a smaller one, down to
        a limit.
        """
        self.store._step = 5 * FEW
        self.assertEqual([5 * FEW, 5 * FEW // 2, 5 * FEW // 4, FEW, FEW], self.stepSizes(-1.0, 20 * FEW, 5))

    def test_sweepFailing(self) -> None:
        """
        Where the store does not work the sweep is tried again later, and
        nobody is told of it but the log.
        """
        self.store.startService()

        def fail(connection: sqlite3.Connection, asked: Any) -> Any:
            raise sqlite3.OperationalError("disk I/O error")

        self.patch(sqlite, "_sweep", fail)
        self.sweep(STRIDE)
        self.assertEqual([REST], [call.getTime() - STRIDE for call in self.reactor.getDelayedCalls()])

    def test_stopWhileSweeping(self) -> None:
        """
        A step that is under way when the store is stopped is the last one.
        """
        self.store.startService()
        self.reactor.advance(STRIDE)
        self.stop(self.store)
        self.assertEqual([], self.reactor.getDelayedCalls())
