"""
Tests for L{fcmxmpp.store.groupcommit}.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.errors import FCMError, NotSendable, Stopped, StoreUnavailable
from fcmxmpp.store.groupcommit import LINGER, REMIND, GroupCommit
from tests.handreactor import HandReactor


class GroupCommitTests(SynchronousTestCase):
    """
    L{GroupCommit}, with a real thread and a reactor that is turned by hand.
    """

    def setUp(self) -> None:
        """
        A database with one table, that nobody uses yet.
        """
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = os.path.join(directory.name, "database")
        self.broken = False
        self.opened = 0
        self.calls: list[list[Any]] = []
        self.reactor = HandReactor()
        self.commits = GroupCommit(self.connect, self.reactor, "NAME")

    def connect(self) -> sqlite3.Connection:
        """
        Open the database.
        """
        if self.broken:
            raise StoreUnavailable("it is broken")
        self.opened += 1
        connection = sqlite3.connect(self.path, isolation_level=None)
        connection.execute("CREATE TABLE IF NOT EXISTS t (value)")
        return connection

    def start(self) -> None:
        """
        Start the thread, and see to its end.
        """
        self.commits.start()
        self.addCleanup(self.stop)

    def stop(self) -> None:
        """
        Wait for the thread's end.
        """
        if self.commits._thread is not None:
            self.reactor.turnUntil(self.commits.stop())

    def insert(self, connection: sqlite3.Connection, values: Sequence[Any]) -> list[Any]:
        """
        Work that inserts values, and returns them doubled; strings are refused
        one by one.
        """
        self.calls.append(list(values))
        results: list[Any] = []
        for value in values:
            if isinstance(value, str):
                results.append(NotSendable("value", value))
                continue
            connection.execute("INSERT INTO t VALUES (?)", (value,))
            results.append(value * 2)
        return results

    def select(self, connection: sqlite3.Connection, asked: Sequence[Any]) -> list[Any]:
        """
        Work that reads all values.
        """
        self.calls.append(list(asked))
        rows = connection.execute("SELECT value FROM t ORDER BY value").fetchall()
        return [[value for (value,) in rows] for _ in asked]

    def blocker(self) -> tuple[Any, Event, Event]:
        """
        Work that keeps the thread busy.

        @return: it, what is set once it runs, and what lets it end.
        """
        entered, leave = Event(), Event()
        self.addCleanup(leave.set)

        def block(connection: sqlite3.Connection, asked: Sequence[Any]) -> list[Any]:
            entered.set()
            self.assertTrue(leave.wait(60))
            return list(asked)

        return block, entered, leave

    def rows(self) -> list[Any]:
        """
        What is committed.
        """
        connection = sqlite3.connect(self.path)
        self.addCleanup(connection.close)
        return [value for (value,) in connection.execute("SELECT value FROM t ORDER BY value")]

    def test_oneTurn(self) -> None:
        """
        What comes in one turn of the reactor goes into one commit, in order
        and in one call; nothing fires before it is committed.
        """
        self.start()
        results = [self.commits.do(self.insert, value) for value in (3, 1, 2)]
        for each in results:
            self.assertNoResult(each)
        self.reactor.turn()
        self.assertEqual([6, 2, 4], [self.successResultOf(each) for each in results])
        self.assertEqual([[3, 1, 2]], self.calls)
        self.assertEqual(1, self.commits.commits)
        self.assertEqual([1, 2, 3], self.rows())

    def test_whileCommitting(self) -> None:
        """
        All that comes while a commit runs goes into the next one, in whatever
        turns it came.
        """
        self.start()
        block, entered, leave = self.blocker()
        first = self.commits.do(block, "blocked")
        self.reactor.advance(0)
        self.assertTrue(entered.wait(60))
        later = []
        for value in (1, 2, 3):
            later.append(self.commits.do(self.insert, value))
            self.reactor.advance(0)
        leave.set()
        self.reactor.turn()
        self.assertEqual("blocked", self.successResultOf(first))
        self.assertNoResult(later[0])
        self.reactor.turn()
        self.assertEqual([2, 4, 6], [self.successResultOf(each) for each in later])
        self.assertEqual([[1, 2, 3]], self.calls)
        self.assertEqual(2, self.commits.commits)

    def due(self) -> list[float]:
        """
        In how many seconds the reactor has something to do.
        """
        return [call.getTime() - self.reactor.seconds() for call in self.reactor.getDelayedCalls()]

    def test_notUrgent(self) -> None:
        """
        What is not urgent waits for company, and for no longer than was said,
        however much of it comes; then all of it goes into one commit.
        """
        self.start()
        results = [self.commits.do(self.insert, 1, urgent=False)]
        self.assertEqual([LINGER], self.due())
        self.reactor.advance(LINGER / 2)
        results.append(self.commits.do(self.insert, 2, urgent=False))
        self.assertEqual([LINGER / 2], self.due())
        self.reactor.advance(LINGER / 2)
        self.assertEqual([], self.due())
        self.reactor.turn()
        self.assertEqual([2, 4], [self.successResultOf(each) for each in results])
        self.assertEqual([[1, 2]], self.calls)
        self.assertEqual(1, self.commits.commits)
        # The next one waits again.
        self.commits.do(self.insert, 3, urgent=False)
        self.assertEqual([LINGER], self.due())

    def test_company(self) -> None:
        """
        What is not urgent goes at once with what is, into one commit and in
        order, whichever came first; and afterwards nothing more is to come.
        """
        self.start()
        for number, urgent in enumerate(((False, True), (True, False), (False, True, True, False)), 1):
            results = [self.commits.do(self.insert, place, each) for place, each in enumerate(urgent)]
            self.assertEqual([0], self.due())
            self.reactor.turn()
            expected = list(range(len(urgent)))
            self.assertEqual(
                [each * 2 for each in expected], [self.successResultOf(each) for each in results]
            )
            self.assertEqual(expected, self.calls[-1])
            self.assertEqual(number, self.commits.commits)
            self.assertEqual([], self.due())

    def test_lateCompany(self) -> None:
        """
        What is urgent and comes while something waits takes that along at
        once.
        """
        self.start()
        waiting = self.commits.do(self.insert, 1, urgent=False)
        self.reactor.advance(LINGER / 2)
        urgent = self.commits.do(self.insert, 2)
        self.assertEqual([0], self.due())
        self.reactor.turn()
        self.assertEqual([2, 4], [self.successResultOf(each) for each in (waiting, urgent)])
        self.assertEqual(([[1, 2]], 1), (self.calls, self.commits.commits))
        self.assertEqual([], self.due())

    def test_stopNotUrgent(self) -> None:
        """
        To stop means not to wait for company any more: what is not urgent is
        done at once, and nothing is left for the reactor to do later.
        """
        self.start()
        result = self.commits.do(self.insert, 1, urgent=False)
        ended = self.commits.stop()
        self.assertEqual([], self.due())
        self.reactor.turn()
        self.assertEqual(2, self.successResultOf(result))
        self.reactor.turn()
        self.assertIsNone(self.successResultOf(ended))
        self.assertEqual(([1], 1), (self.rows(), self.commits.commits))
        self.assertEqual([], self.due())

    def test_most(self) -> None:
        """
        No more is done in one commit than was said, and the rest in the next
        ones, in order.
        """
        self.commits = GroupCommit(self.connect, self.reactor, "NAME", most=2)
        self.start()
        results = [self.commits.do(self.insert, value) for value in range(5)]
        self.reactor.turn(3)
        self.assertEqual([0, 2, 4, 6, 8], [self.successResultOf(each) for each in results])
        self.assertEqual([[0, 1], [2, 3], [4]], self.calls)
        self.assertEqual(3, self.commits.commits)

    def test_sorts(self) -> None:
        """
        In one commit each sort of work is called once, and everybody is told
        the result of his own.
        """
        self.start()
        results = [
            self.commits.do(work, argument)
            for work, argument in (
                (self.insert, 1),
                (self.select, None),
                (self.insert, 2),
                (self.select, None),
            )
        ]
        self.reactor.turn()
        self.assertEqual([2, [1, 2], 4, [1, 2]], [self.successResultOf(each) for each in results])
        self.assertEqual([[1, 2], [None, None]], self.calls)
        self.assertEqual(1, self.commits.commits)

    def test_oneRefused(self) -> None:
        """
        A result that is an error fails that one alone.
        """
        self.start()
        results = [self.commits.do(self.insert, value) for value in (1, "refused", 2)]
        self.reactor.turn()
        self.assertEqual("value: refused", str(self.failureResultOf(results[1], FCMError).value))
        self.assertEqual([2, 4], [self.successResultOf(results[place]) for place in (0, 2)])
        self.assertEqual([1, 2], self.rows())

    def test_failing(self) -> None:
        """
        A transaction that fails does so for all that are in it, in whatever
        order, and nothing of it is kept; the next one is not affected.
        """

        def fail(connection: sqlite3.Connection, asked: Sequence[Any]) -> list[Any]:
            connection.execute("INSERT INTO t VALUES (99)")
            raise sqlite3.OperationalError("database or disk is full")

        self.start()
        results = [self.commits.do(work, 1) for work in (self.insert, fail, self.select)]
        self.reactor.turn()
        for each in results:
            failure = self.failureResultOf(each, StoreUnavailable)
            self.assertEqual("the disk is full: make room", str(failure.value))
        again = self.commits.do(self.insert, 2)
        self.reactor.turn()
        self.assertEqual(4, self.successResultOf(again))
        self.assertEqual([2], self.rows())
        # A connection that still works is kept: see _undo.
        self.assertEqual((1, 1), (self.opened, self.commits.commits))

    def test_bug(self) -> None:
        """
        What fails for a reason that is no store's is logged with a traceback;
        whoever waits is told no more than its type.
        """

        def bug(connection: sqlite3.Connection, asked: Sequence[Any]) -> list[Any]:
            raise ValueError("secret")

        self.start()
        result = self.commits.do(bug, 1)
        self.reactor.turn()
        self.assertEqual("a bug: ValueError", str(self.failureResultOf(result, StoreUnavailable).value))
        self.assertEqual(1, len(self.flushLoggedErrors(ValueError)))
        again = self.commits.do(self.insert, 2)
        self.reactor.turn()
        self.assertEqual(4, self.successResultOf(again))
        self.assertEqual([2], self.rows())

    def test_bugAmongOthers(self) -> None:
        """
        It does not keep what came with it from being done, nor in its order.
        """

        def odd(connection: sqlite3.Connection, values: Sequence[Any]) -> list[Any]:
            if 3 in values:
                raise OverflowError("secret")
            if 8 in values:
                raise sqlite3.IntegrityError("UNIQUE constraint failed")
            return self.insert(connection, values)

        self.start()
        results = [self.commits.do(odd, value) for value in range(1, 6)]
        self.reactor.turnUntil(results[-1])
        failure = self.failureResultOf(results.pop(2), StoreUnavailable)
        self.assertEqual("a bug: OverflowError", str(failure.value))
        self.assertEqual(1, len(self.flushLoggedErrors(OverflowError)))
        self.assertEqual([2, 4, 8, 10], [self.successResultOf(each) for each in results])
        self.assertEqual([1, 2, 4, 5], self.rows())
        # It is looked for by halves, because each transaction takes its time.
        self.assertEqual([[1, 2], [4, 5]], self.calls)
        # And then many go together again.
        del self.calls[:]
        more = [self.commits.do(odd, value) for value in (6, 7)]
        self.reactor.turnUntil(more[-1])
        self.assertEqual([[6, 7]], self.calls)
        results = [self.commits.do(odd, value) for value in (8, *range(10, 1000))]
        self.reactor.turnUntil(results[-1])
        failure = self.failureResultOf(results[0], StoreUnavailable)
        self.assertEqual("a bug: IntegrityError", str(failure.value))
        self.assertEqual(1, len(self.flushLoggedErrors(sqlite3.IntegrityError)))
        self.assertEqual(list(range(10, 1000)), self.rows()[6:])
        self.assertLess(len(self.calls), 15)

    def test_brokenConnection(self) -> None:
        """
        A connection that is of no more use is opened anew.
        """

        def close(connection: sqlite3.Connection, asked: Sequence[Any]) -> list[Any]:
            connection.close()
            connection.execute("SELECT 1")
            raise AssertionError

        self.start()
        first = self.commits.do(close, None)
        self.reactor.turn()
        self.failureResultOf(first, StoreUnavailable)
        again = self.commits.do(self.insert, 1)
        self.reactor.turn()
        self.assertEqual(2, self.successResultOf(again))
        self.assertEqual(2, self.opened)

    def test_outage(self) -> None:
        """
        That the store does not work is said at once, and then once in a while
        for as long as somebody wants to use it; that it works again is said
        once; and the next time it is said at once again.
        """
        self.start()

        def said(after: float = 0.0) -> list[tuple[LogLevel, str]]:
            self.reactor.advance(after)
            with capturedLogs() as events:
                result = self.commits.do(self.insert, 1)
                self.reactor.turn()
                result.addErrback(lambda failure: failure.trap(StoreUnavailable))
            return [
                (event["log_level"], event["log_format"].format(**event))
                for event in events
                if event["log_namespace"] == "fcmxmpp.store.groupcommit"
            ]

        down = [
            (
                LogLevel.error,
                "the store NAME does not work: it is broken; nothing is taken over or acknowledged",
            )
        ]
        up = [(LogLevel.info, "the store NAME works again")]
        self.broken = True
        self.assertEqual(down, said())
        self.assertEqual([], said())
        self.assertEqual([], said(REMIND - 1))
        self.assertEqual(down, said(1))
        self.assertEqual([], said())
        self.broken = False
        self.assertEqual(up, said())
        self.assertEqual([], said())
        # The connection is broken as well now.
        closing = self.commits.do(lambda connection, asked: [connection.close() for _ in asked], None)
        self.reactor.turn()
        self.failureResultOf(closing, StoreUnavailable)
        self.broken = True
        self.assertEqual([], said())
        self.broken = False
        self.assertEqual(up, said())
        self.assertEqual([], said(REMIND))

    def test_readsWhileFull(self) -> None:
        """
        A store that can be read and not be written to does not work: that is
        said once, whatever is read meanwhile, until something is written.
        """

        def full(connection: sqlite3.Connection, asked: Sequence[Any]) -> list[Any]:
            raise sqlite3.OperationalError("database or disk is full")

        self.start()
        self.commits.do(self.insert, 1)
        self.reactor.turn()
        with capturedLogs() as events:
            for work in (full, self.select, full, self.select):
                result = self.commits.do(work, None)
                self.reactor.turn()
                result.addErrback(lambda failure: failure.trap(StoreUnavailable))
            self.assertEqual([LogLevel.error], [event["log_level"] for event in events])
            self.commits.do(self.insert, 2)
            self.reactor.turn()
        self.assertEqual([LogLevel.error, LogLevel.info], [event["log_level"] for event in events])

    def test_cancel(self) -> None:
        """
        Whoever does not want to know the result any more does not keep the
        others from theirs.
        """
        self.start()
        results = [self.commits.do(self.insert, value) for value in (1, 2)]
        results[0].cancel()
        self.reactor.turn()
        self.failureResultOf(results[0], CancelledError)
        self.assertEqual(4, self.successResultOf(results[1]))
        self.assertEqual([1, 2], self.rows())

    def test_stop(self) -> None:
        """
        To stop means to do all that was asked for, to tell the results, and
        only then to end; nothing new is taken.
        """
        self.commits = GroupCommit(self.connect, self.reactor, "NAME", most=2)
        self.start()
        block, entered, leave = self.blocker()
        blocked = self.commits.do(block, 0)
        self.reactor.advance(0)
        self.assertTrue(entered.wait(60))
        waiting = [self.commits.do(self.insert, value) for value in (1, 2, 3)]
        self.reactor.advance(0)
        gathered = self.commits.do(self.insert, 4)
        ended = self.commits.stop()
        late = self.commits.do(self.insert, 5)
        self.assertEqual("the store is not open", str(self.failureResultOf(late, Stopped).value))
        leave.set()
        self.reactor.turn(3)
        self.assertNoResult(ended)
        self.assertEqual(0, self.successResultOf(blocked))
        self.assertEqual([2, 4, 6, 8], [self.successResultOf(each) for each in (*waiting, gathered)])
        self.reactor.turn()
        self.assertIsNone(self.successResultOf(ended))
        self.assertEqual([1, 2, 3, 4], self.rows())
        self.failureResultOf(self.commits.do(self.insert, 5), Stopped)
        # What was to be handed over has been, so there is nothing to flush.
        self.reactor.advance(1)
        self.assertEqual([], self.reactor.getDelayedCalls())

    def test_stopUnused(self) -> None:
        """
        A database that nobody has used is not even opened.
        """
        self.start()
        ended = self.commits.stop()
        self.reactor.turn()
        self.assertIsNone(self.successResultOf(ended))
        self.assertEqual(0, self.opened)

    def test_stopTwice(self) -> None:
        """
        Whoever has it stopped is told at the end, once for each call; then it
        can be started again.
        """
        self.start()
        first, second = self.commits.stop(), self.commits.stop()
        self.assertNoResult(first)
        self.reactor.turn()
        self.assertEqual([None, None], [self.successResultOf(each) for each in (first, second)])
        self.commits.start()
        self.addCleanup(self.stop)
        added = self.commits.do(self.insert, 1)
        self.reactor.turnUntil(added)
        self.assertEqual(2, self.successResultOf(added))

    def test_notStarted(self) -> None:
        """
        Without its thread nothing can be done, and there is nothing to stop.
        """
        self.failureResultOf(self.commits.do(self.insert, 1), Stopped)
        self.assertIsNone(self.successResultOf(self.commits.stop()))

    def test_again(self) -> None:
        """
        What was stopped can be started again.
        """
        for value in (1, 2):
            self.commits.start()
            result = self.commits.do(self.insert, value)
            ended = self.commits.stop()
            self.reactor.turnUntil(ended)
            self.assertEqual(value * 2, self.successResultOf(result))
        self.assertEqual([1, 2], self.rows())
