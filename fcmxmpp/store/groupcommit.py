"""
Group commit: one thread that owns the database, and puts all that has come
while its last commit ran into the next one.

A commit costs one C{fsync}, about a millisecond on a good disk and ten on a bad
one, whether it is for one message or for a hundred.  So nobody waits for more
than two commits, and the busier it gets, the less each message costs.

The thread and the reactor share one interpreter: each SQL statement lets go of
it, and getting it back from a busy reactor takes up to the interpreter's switch
interval.  So what is done is done for all arguments at once, in as few
statements as possible, and not in one for each.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from fcmxmpp.errors import FCMError, Stopped, StoreUnavailable
from fcmxmpp.store.database import explain


__all__ = ["GroupCommit", "Work"]

_log = Logger()

_A = TypeVar("_A")
_R = TypeVar("_R")

#: Does something for each of several arguments, in one transaction, and returns
#: a result for each.  One that is an L{FCMError} fails that one alone.
Work = Callable[[sqlite3.Connection, Sequence[_A]], Sequence[_R | FCMError]]

#: How many things are done in one transaction; more would keep all waiting.
MOST = 1000
#: Seconds that what is not urgent waits for what is, to go with it.
LINGER = 0.005
#: Seconds between reminders that the store does not work.
REMIND = 60.0


class _Job:
    """
    One thing to be done.
    """

    __slots__ = ("argument", "result", "work")

    def __init__(self, work: Work[Any, Any], argument: object) -> None:
        self.work = work
        self.argument = argument
        self.result: Deferred[Any] = Deferred()


class GroupCommit:
    """
    A database, and the thread that owns it.

    @ivar commits: how many transactions there were.
    """

    def __init__(
        self, connect: Callable[[], sqlite3.Connection], reactor: Any, name: str, most: int = MOST
    ) -> None:
        """
        @param connect: opens the database; called in the thread, and again
            after each failure.
        @param reactor: where results are told.
        @param name: what the log calls the database.
        @param most: how many things are done in one transaction.
        """
        self._connect = connect
        self._reactor = reactor
        self._name = name
        self._most = most
        self._batches: SimpleQueue[list[_Job] | None] = SimpleQueue()
        self._gathered: list[_Job] = []
        # What hands it over; and whether that is about to happen.
        self._flushing: IDelayedCall | None = None
        self._isUrgent = False
        self._thread: Thread | None = None
        self._isStopping = False
        self._waiters: list[Deferred[None]] = []
        self._told: float | None = None
        self.commits = 0

    def start(self) -> None:
        """
        Start the thread.
        """
        self._isStopping = False
        self._thread = Thread(target=self._run, name=f"store {self._name}", daemon=True)
        self._thread.start()

    def do(self, work: Work[_A, _R], argument: _A, urgent: bool = True) -> Deferred[_R]:
        """
        Have something done in the next transaction.

        @param urgent: whether somebody waits for it; otherwise it may wait for
            something else to go with, so that it costs no transaction of its
            own, but for no longer than C{LINGER} seconds.
        @return: fires with the result once that is committed; fails with
            L{StoreUnavailable}, or with L{Stopped} if the thread does not run.
        """
        if self._thread is None or self._isStopping:
            return fail(Stopped("the store is not open"))
        if urgent and not self._isUrgent:
            # What comes in one turn of the reactor goes into one transaction.
            self._isUrgent = True
            self._flushAfter(0)
        elif self._flushing is None:
            self._flushAfter(LINGER)
        job = _Job(work, argument)
        self._gathered.append(job)
        return job.result

    def _flushAfter(self, delay: float) -> None:
        """
        Hand over what has been gathered, after so many seconds.
        """
        if self._flushing is not None:
            self._flushing.cancel()
        self._flushing = self._reactor.callLater(delay, self._flush)

    def _flush(self) -> None:
        """
        Hand over what has been gathered.
        """
        if self._flushing is not None and self._flushing.active():
            self._flushing.cancel()
        self._flushing, self._isUrgent = None, False
        gathered, self._gathered = self._gathered, []
        if gathered:
            self._batches.put(gathered)

    def stop(self) -> Deferred[None]:
        """
        Do what is still to be done, and end the thread.

        @return: fires when it has ended and every result has been told.
        """
        if self._thread is None:
            return succeed(None)
        if not self._isStopping:
            self._isStopping = True
            self._flush()
            self._batches.put(None)
        ended: Deferred[None] = Deferred()
        self._waiters.append(ended)
        return ended

    # In the thread.

    def _run(self) -> None:
        """
        Do what comes, until the end comes.
        """
        connection: sqlite3.Connection | None = None
        jobs: list[_Job] = []
        # How many of them go into the next transactions.
        parts: list[int] = []
        ended = False
        while not ended or jobs:
            ended = self._collect(jobs, ended)
            count = parts.pop(0) if parts else self._most
            batch, jobs = jobs[:count], jobs[count:]
            if not batch:
                continue
            try:
                if connection is None:
                    connection = self._connect()
                before = connection.total_changes
                results = _transact(connection, batch)
            except Exception:
                # Whatever it is, a bug of ours included: those who wait have to
                # be told, and a thread that has ended does nothing for anybody.
                failure = Failure()
                if connection is not None and not _undo(connection):
                    # What is broken is opened anew.
                    connection.close()
                    connection = None
                if len(batch) > 1 and not _isTheStores(failure):
                    # One of them cannot be done at all, which is no reason not
                    # to do the others: it is looked for by halves.
                    half = len(batch) // 2
                    jobs, parts = batch + jobs, [half, len(batch) - half, *parts]
                else:
                    self._reactor.callFromThread(self._failed, batch, failure)
            else:
                hasWritten = connection.total_changes > before
                self._reactor.callFromThread(self._done, batch, results, hasWritten)
        if connection is not None:
            connection.close()
        self._reactor.callFromThread(self._hasEnded)

    def _collect(self, jobs: list[_Job], ended: bool) -> bool:
        """
        Take all that is there; wait only if that is nothing.

        @return: whether the end has come.
        """
        while not ended:
            try:
                more = self._batches.get(block=not jobs)
            except Empty:
                break
            if more is None:
                return True
            jobs += more
        return ended

    # In the reactor's thread.

    def _done(self, batch: list[_Job], results: list[Any], hasWritten: bool) -> None:
        """
        A transaction has been committed.
        """
        self.commits += 1
        # One on a full disk can be read, and does not work for that.
        if self._told is not None and hasWritten:
            self._told = None
            _log.info("the store {name} works again", name=self._name)
        for job, result in zip(batch, results, strict=True):
            if isinstance(result, FCMError):
                job.result.errback(result)
            else:
                job.result.callback(result)

    def _failed(self, batch: list[_Job], failure: Failure) -> None:
        """
        A transaction has failed, as a whole.
        """
        assert failure.value is not None
        if not _isTheStores(failure):
            # Ours, not the store's.
            _log.failure("using the store {name} failed", failure, name=self._name)
            error = StoreUnavailable(f"a bug: {type(failure.value).__name__}")
        else:
            error = StoreUnavailable(explain(failure.value))
            now = self._reactor.seconds()
            if self._told is None or now - self._told >= REMIND:
                self._told = now
                _log.error(
                    "the store {name} does not work: {error}; nothing is taken over or acknowledged",
                    name=self._name,
                    error=error,
                )
        for job in batch:
            job.result.errback(error)

    def _hasEnded(self) -> None:
        """
        The thread is at its end.
        """
        assert self._thread is not None
        self._thread.join()
        self._thread = None
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(None)


def _isTheStores(failure: Failure) -> bool:
    """
    Whether the store failed, and not what it was asked for.
    """
    if failure.check(sqlite3.IntegrityError, sqlite3.DataError) is not None:
        return False
    return failure.check(sqlite3.Error, OSError, StoreUnavailable) is not None


def _transact(connection: sqlite3.Connection, batch: list[_Job]) -> list[Any]:
    """
    Do several things in one transaction, those of one sort together.

    @return: a result for each.
    """
    sorts: dict[Work[Any, Any], list[int]] = {}
    for place, job in enumerate(batch):
        sorts.setdefault(job.work, []).append(place)
    results: list[Any] = [None] * len(batch)
    connection.execute("BEGIN IMMEDIATE")
    for work, places in sorts.items():
        for place, result in zip(
            places, work(connection, [batch[place].argument for place in places]), strict=True
        ):
            results[place] = result
    connection.execute("COMMIT")
    return results


def _undo(connection: sqlite3.Connection) -> bool:
    """
    Undo what a transaction did that has failed.

    The connection is kept for that.  A commit that failed while it was being
    synchronised stands in the log as a whole, and whoever opens the file next
    takes it for one that did not fail.  This connection knows better: it
    writes its next commit over it.

    @return: whether that was possible.
    """
    try:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        # Whether it can be read at all.
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error:
        return False
    return True
