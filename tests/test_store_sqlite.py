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
from fcmxmpp.store import entrusted, inbox, outbox, sqlite
from fcmxmpp.store.database import connect
from fcmxmpp.store.groupcommit import LINGER
from fcmxmpp.store.sqlite import BRIEF, FEW, KEEP, LARGE, REST, STRIDE, TIMES, SQLiteStore, sweep
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

    def test_urgent(self) -> None:
        """
        What only notes that something is done with waits for company; all that
        somebody waits for is done at once.
        """
        self.patch(sqlite, "STRIDE", 86400.0)
        self.store.startService()
        inbox, outbox, entrusted = self.store.inbox, self.store.outbox, self.store.entrusted
        upstream = UpstreamMessage(from_="t", message_id="m")
        downstream = DownstreamMessage(to="t", message_id="m")
        letter = DeadLetter(from_="t", message_id="l", body=b"{", reason="r")
        outcome = Outcome(message=downstream, error=AckTimedOut("no answer"), at=0.0)
        for expected, doing in (
            (0, lambda: inbox.add(upstream)),
            (0, lambda: inbox.load(0, 1)),
            (0, lambda: inbox.isKnown(("t", "m"))),
            (0, lambda: inbox.remember(("t", "n"))),
            (0, lambda: inbox.putAside(letter)),
            (LINGER, lambda: inbox.tried(1, 1)),
            (LINGER, lambda: inbox.handled(1)),
            (0, lambda: outbox.add(downstream)),
            (0, lambda: outbox.load(0, 1)),
            (0, lambda: outbox.count()),
            (0, lambda: outbox.settle(1, outcome, True)),
            (0, lambda: outbox.unreported(0, 1)),
            (LINGER, lambda: outbox.reported(1)),
            (0, lambda: outbox.withdraw(1)),
            (0, lambda: entrusted.add("1", upstream, 9.0)),
            (0, lambda: entrusted.load(0, 1)),
            (LINGER, lambda: entrusted.remove(1)),
        ):
            now = self.reactor.seconds()
            result = doing()
            due = min(call.getTime() for call in self.reactor.getDelayedCalls())
            self.assertEqual(now + expected, due)
            self.reactor.advance(expected)
            self.result(result)

    def test_plans(self) -> None:
        """
        What is asked for in pages is found by its number and comes in that
        order, and what is counted has an index: neither reads through all that
        is kept, nor sorts it.
        """
        with closing(connect(self.path)) as connection:
            for work, argument, plan in (
                (inbox.load, (5, 9), "SEARCH inbox USING INTEGER PRIMARY KEY (rowid>?)"),
                (outbox.load, (5, 9), "SEARCH outbox USING INTEGER PRIMARY KEY (rowid>?)"),
                (outbox.unreported, (5, 9), "SEARCH outbox USING INDEX outbox_unreported (number>?)"),
                (entrusted.load, (5, 9), "SEARCH entrusted USING INTEGER PRIMARY KEY (rowid>?)"),
                (outbox.count, None, "SCAN outbox USING INDEX outbox_unsettled"),
            ):
                said: list[str] = []
                connection.set_trace_callback(said.append)
                work(connection, [argument])
                connection.set_trace_callback(None)
                (statement,) = said
                steps = connection.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
                # Older versions of SQLite say "TABLE", newer ones "COVERING".
                found = [step[3].replace(" TABLE ", " ").replace(" COVERING ", " ") for step in steps]
                self.assertEqual([plan], found)

    def sweep(self, delay: float) -> None:
        """
        Let the store sweep.
        """
        self.reactor.advance(delay)
        self.reactor.turn()

    def rests(self) -> list[float]:
        """
        In how many seconds it sweeps again.
        """
        return [call.getTime() - self.reactor.seconds() for call in self.reactor.getDelayedCalls()]

    def test_sweep(self) -> None:
        """
        What has been known for long enough is forgotten, and so are failures
        that were reported; everything else stays: what is to be done, dead
        letters, what is yet to be reported.
        """
        self.store = self.make(keep=1000.0)
        self.store.startService()
        add, outbox = self.store.inbox.add, self.store.outbox
        entry = self.result(add(UpstreamMessage(from_="t", message_id="handled")))
        handled = self.store.inbox.handled(entry.number)
        self.reactor.advance(LINGER)
        self.result(handled)
        self.result(add(UpstreamMessage(from_="t", message_id="waiting")))
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
        for _ in range(2):
            self.sweep(1000.0 / TIMES)
        self.assertEqual((1, 2), (self.count("known"), self.count("outbox")))
        self.assertEqual((1, 1), (self.count("inbox WHERE reason IS NULL"), self.count("inbox") - 1))
        self.assertFalse(self.result(self.store.inbox.isKnown(("t", "handled"))))
        self.assertTrue(self.result(self.store.inbox.isKnown(("t", "recent"))))

    def steps(
        self, connection: sqlite3.Connection, limit: int, most: int
    ) -> list[tuple[bytes | None, set[bytes]]]:
        """
        Sweep away what came before 10.0, until the end.

        @param most: how many steps that may take.
        @return: for each, where it went on after, and what it took away.
        """
        steps: list[tuple[bytes | None, set[bytes]]] = []
        after: bytes | None = b""
        known = self.known(connection)
        while after is not None:
            self.assertLess(len(steps), most)
            ((after, seconds),) = sweep(connection, [(10.0, after, limit)])
            self.assertGreaterEqual(seconds, 0.0)
            left = self.known(connection)
            steps.append((after, known - left))
            known = left
        return steps

    def known(self, connection: sqlite3.Connection) -> set[bytes]:
        """
        The digests that are known.
        """
        return {each for (each,) in connection.execute("SELECT digest FROM known").fetchall()}

    def test_step(self) -> None:
        """
        A step looks at so many rows, in the order of their digests, takes away
        the old ones of these and no others, and the next one goes on behind
        them, up to the last digest that is possible; whether or not the rows
        are a multiple of what a step looks at.
        """
        digests = [bytes([each]) * 16 for each in (*range(0, 22, 2), 255)]
        for limit, ends in (
            (5, [digests[4], digests[9], None]),
            (4, [digests[3], digests[7], digests[11], None]),
            (12, [digests[11], None]),
            (13, [None]),
        ):
            with closing(connect(self.path)) as connection:
                # Two of three are old.
                rows = [(each, 10.0 if place % 3 == 1 else 9.9) for place, each in enumerate(digests)]
                connection.executemany("INSERT OR REPLACE INTO known (digest, at) VALUES (?, ?)", rows)
                old = [
                    {each for each, at in rows[start : start + limit] if at < 10}
                    for start in range(0, 12, limit)
                ]
                old += [set()] * (len(ends) - len(old))
                self.assertEqual(list(zip(ends, old, strict=True)), self.steps(connection, limit, 4))
                self.assertEqual({each for each, at in rows if at == 10}, self.known(connection))

    def test_manySteps(self) -> None:
        """
        Steps of several who ask in one transaction are done in their order.
        """
        with closing(connect(self.path)) as connection:
            rows = [(bytes([each]) * 16, 0.0) for each in range(5)]
            connection.executemany("INSERT INTO known (digest, at) VALUES (?, ?)", rows)
            results = sweep(connection, [(10.0, b"", 2), (10.0, rows[1][0], 1), (10.0, rows[3][0], 9)])
            self.assertEqual([rows[1][0], rows[2][0], None], [to for to, _ in results])
            self.assertEqual({rows[3][0]}, self.known(connection))

    def test_sweepFailed(self) -> None:
        """
        Of the failures that were reported long ago, which are large, each step
        takes no more than so many, the oldest first; and the end has come only
        when there are no more of them.
        """
        self.patch(sqlite, "LARGE", 3)
        with closing(connect(self.path)) as connection:
            rows = [(f"m-{each}", 8.0 - each) for each in range(7)]
            rows.append(("recent", 10.0))
            connection.executemany(
                "INSERT INTO outbox (message_id, target, body, since, outcome, settled, reported) "
                "VALUES (?, 't', x'7b7d', 0.0, x'7b7d', 0.0, ?)",
                rows,
            )
            connection.execute("INSERT INTO known (digest, at) VALUES (x'11', 0.0)")
            for after, left in ((b"", 4), (b"\x22", 1)):
                ((to, _),) = sweep(connection, [(10.0, after, 5)])
                # Nothing more is known, but there are more of these.
                self.assertEqual(after, to)
                found = connection.execute("SELECT message_id FROM outbox ORDER BY number").fetchall()
                self.assertEqual([(f"m-{each}",) for each in range(left)] + [("recent",)], found)
            ((to, _),) = sweep(connection, [(10.0, b"", 5)])
            self.assertIsNone(to)
            self.assertEqual([("recent",)], connection.execute("SELECT message_id FROM outbox").fetchall())
            self.assertEqual(set(), self.known(connection))

    def test_manyFailed(self) -> None:
        """
        While there are more failures than a step takes away there is no rest.
        """
        self.store.startService()
        message = DownstreamMessage(to="t", message_id="m")
        outcome = Outcome(message=message, error=AckTimedOut("no answer"), at=-KEEP - 1)
        adding = [
            self.store.outbox.add(DownstreamMessage(to="t", message_id=f"m-{each}"))
            for each in range(LARGE + 1)
        ]
        self.result(adding[-1])
        settling = [self.store.outbox.settle(each + 1, outcome, False) for each in range(LARGE + 1)]
        self.result(settling[-1])
        for left, rest in ((1, STRIDE), (0, KEEP / TIMES)):
            self.sweep(STRIDE)
            self.assertEqual(left, self.count("outbox"))
            self.assertEqual(1, len(self.rests()))
            self.assertAlmostEqual(rest, self.rests()[0])

    def test_rest(self) -> None:
        """
        When all has been looked at there is a rest, which is a part of the
        time that things are kept, and not too short; then it begins again, at
        the beginning.
        """
        for keep, rest in ((KEEP, KEEP / TIMES), (TIMES * REST + TIMES, REST + 1), (REST, REST)):
            store = self.make(keep=keep)
            store.startService()
            self.sweep(STRIDE)
            for _ in range(3):
                self.assertEqual(1, len(self.rests()))
                self.assertAlmostEqual(rest, self.rests()[0])
                self.result(store.inbox.remember(("t", "m")))
                # It is old by then.
                store._keep = -1.0
                self.sweep(rest)
                self.assertEqual(0, self.count("known"))
            self.stop(store)

    def test_goesOn(self) -> None:
        """
        Each step of the store goes on behind the one before, even behind what
        stays and after a failure; after the last one it begins again at the
        beginning.
        """
        self.patch(sqlite, "FEW", 2)
        self.patch(sqlite, "BRIEF", -1.0)
        self.store = self.make()

        def insert(number: int, at: float) -> None:
            with closing(connect(self.path)) as connection:
                row = (bytes([number]) * 16, at)
                connection.execute("INSERT INTO known (digest, at) VALUES (?, ?)", row)

        for number in (1, 2, 3, 4):
            insert(number, 0.0)
        old = -KEEP - 1
        insert(5, old)
        self.store.startService()
        for delay, count in ((STRIDE, 5), (STRIDE, 5), (STRIDE, 4)):
            self.sweep(delay)
            self.assertEqual(count, self.count("known"))
        insert(0, old)
        self.sweep(KEEP / TIMES)
        self.assertEqual(4, self.count("known"))
        # Behind what was looked at, and before it.
        insert(6, old)
        insert(0, old)

        def fail(connection: sqlite3.Connection, asked: Any) -> Any:
            raise sqlite3.OperationalError("disk I/O error")

        failing = self.patch(sqlite, "sweep", fail)
        self.sweep(STRIDE)
        failing.restore()
        for delay, count in ((REST, 6), (STRIDE, 5), (STRIDE, 5), (KEEP / TIMES, 4)):
            self.sweep(delay)
            self.assertEqual(count, self.count("known"))

    def stepSizes(self, brief: float, count: int, steps: int) -> list[int]:
        """
        How many rows each step of the sweep looks at, and takes away because
        all are old.

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
        limit, and when all has been looked at there is a rest.
        """
        self.patch(sqlite, "MANY", 3 * FEW)
        self.assertEqual([FEW, 2 * FEW, 3 * FEW, 3 * FEW, 5], self.stepSizes(1e9, 9 * FEW + 5, 5))
        (rest,) = self.rests()
        self.assertAlmostEqual(KEEP / TIMES, rest)

    def test_slower(self) -> None:
        """
        A step that takes too much time is followed by a smaller one, down to
        a limit.
        """
        self.store._step = 5 * FEW
        self.assertEqual([5 * FEW, 5 * FEW // 2, 5 * FEW // 4, FEW, FEW], self.stepSizes(-1.0, 20 * FEW, 5))
        self.assertEqual(1, len(self.rests()))
        self.assertAlmostEqual(STRIDE, self.rests()[0])

    def test_steady(self) -> None:
        """
        A step that takes about as long as it may is followed by one of the
        same size.
        """
        took = iter((BRIEF / 2, BRIEF * 0.75, BRIEF, BRIEF * 1.01, BRIEF * 0.49))

        def measured(connection: sqlite3.Connection, asked: Any) -> Any:
            return [(to, next(took)) for to, _ in sweep(connection, asked)]

        self.patch(sqlite, "sweep", measured)
        self.store._step = size = 4 * FEW
        expected = [size, size, size, size, size // 2, size]
        self.assertEqual(expected[:5], self.stepSizes(BRIEF, 5 * size, 5))
        self.assertEqual(expected[5], self.store._step)

    def test_sweepFailing(self) -> None:
        """
        Where the store does not work the sweep is tried again later, and
        nobody is told of it but the log.
        """
        self.store.startService()

        def fail(connection: sqlite3.Connection, asked: Any) -> Any:
            raise sqlite3.OperationalError("disk I/O error")

        self.patch(sqlite, "sweep", fail)
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
