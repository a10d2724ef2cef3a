"""
A store in one SQLite file, which may be used for as long as the process has the
disk to itself: see L{SQLiteStore}.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from zope.interface import implementer

from fcmxmpp.interfaces import IStore
from fcmxmpp.store.database import Connection, connect, lock
from fcmxmpp.store.entrusted import SQLiteEntrusted
from fcmxmpp.store.groupcommit import MOST, GroupCommit
from fcmxmpp.store.inbox import SQLiteInbox
from fcmxmpp.store.mailboxes import SQLMailboxes, forgetExpired
from fcmxmpp.store.outbox import SQLiteOutbox
from fcmxmpp.store.registrations import SQLRegistrations, forgetDevices


__all__ = ["KEEP", "SQLiteStore", "sweep", "sweepDevices"]

#: Seconds for which it is remembered which messages have been taken over: twice
#: the longest time that a connection server delivers one.
KEEP = 48 * 3600.0
#: Seconds between two steps of the sweep, and at least between its end and the
#: next; and how many times it begins in the time that things are kept.  The
#: more there is to take away from a page, the fewer pages are written for it.
STRIDE, REST, TIMES = 0.05, 60.0, 16
#: How many rows a step of the sweep looks at, at least and at most, and the
#: seconds that it may take.
FEW, MANY, BRIEF = 100, 2000, 0.005
#: How many failed downstream messages a step takes away, or mails of devices, which
#: are large; and how many devices, which have much hanging on them.
LARGE, HEAVY = 100, 10
#: Seconds after which a device that has not been seen is forgotten, as Google does
#: it: 270 days.
STALE = 270 * 86_400.0

#: Behind every digest.
_BEHIND = b"\xff" * 17


def sweep(
    connection: Connection, steps: Sequence[tuple[float, bytes, int]]
) -> list[tuple[bytes | None, float]]:
    """
    Take away what is remembered for too long, from some of the rows.

    @param steps: before when it must have come; after which row to begin, and
        how many to look at.
    @return: for each, the row to go on after, None at the end; and the seconds
        that it took.
    """
    results = []
    for before, after, limit in steps:
        began = time.perf_counter()
        # In the order of the pages; by age, each row would be on another page.
        last = connection.execute(
            "SELECT digest FROM known WHERE digest > ? ORDER BY digest LIMIT 1 OFFSET ?", (after, limit - 1)
        ).fetchone()
        to: bytes | None = last and last[0]
        connection.execute(
            "DELETE FROM known WHERE digest > ? AND digest <= ? AND at < ?", (after, to or _BEHIND, before)
        )
        failed = connection.execute(
            "DELETE FROM outbox WHERE number IN (SELECT number FROM outbox "
            "WHERE reported IS NOT NULL AND reported < ? ORDER BY reported LIMIT ?)",
            (before, LARGE),
        ).rowcount
        if to is None and failed == LARGE:
            # There are more of these.
            to = after
        results.append((to, time.perf_counter() - began))
    return results


def sweepDevices(connection: Connection, times: Sequence[float]) -> list[bool]:
    """
    Take away some of what waits for devices and is of no use any more, and of
    the devices that are gone.

    @param times: now, in seconds since 1970.
    @return: whether there may be more.
    """
    return [
        forgetExpired(connection, now, LARGE) + HEAVY * forgetDevices(connection, now - STALE, HEAVY) >= LARGE
        for now in times
    ]


@implementer(IStore)
class SQLiteStore(Service):
    """
    A store in one SQLite file (and the C{-wal}, C{-shm} and C{.lock} beside
    it), on a local disk.  One service uses it at a time; the command
    C{fcmxmpp} may look into it meanwhile.

    What fires has been synchronised to the disk.

    @ivar inbox: an L{IInbox}.
    @ivar outbox: an L{IOutbox}.
    @ivar entrusted: an L{IEntrusted}.
    @ivar registrations: an L{IRegistrations<fcmxmpp.interfaces.IRegistrations>}.
    @ivar mailboxes: an L{IMailboxes<fcmxmpp.interfaces.IMailboxes>}.
    @ivar commits: what does the work.
    """

    def __init__(self, path: str, reactor: Any, keep: float = KEEP, most: int = MOST) -> None:
        """
        @param path: of the file; it is made, and its directory is not.
        @param keep: for how many seconds messages are known that have been
            taken over, and failed downstream messages are kept.
        @param most: how many things may go into one transaction.
        """
        self._path = os.path.abspath(path)
        self._reactor = reactor
        self._keep = keep
        self._lock: int | None = None
        self._next: IDelayedCall | None = None
        # Whether there may be more to take away of what devices have left.
        self._isMoreOfDevices = False
        self._step = FEW
        self._rest = max(REST, keep / TIMES)
        self._sweptTo = b""
        self.seconds = reactor.seconds
        self.commits = GroupCommit(partial(connect, self._path), reactor, path, most)
        self.inbox = SQLiteInbox(self.commits, self.seconds)
        self.outbox = SQLiteOutbox(self.commits, self.seconds)
        self.entrusted = SQLiteEntrusted(self.commits, self.seconds)
        self.registrations = SQLRegistrations(self.commits, self.seconds)
        self.mailboxes = SQLMailboxes(self.commits, self.seconds)

    def claim(self) -> None:
        """
        Make sure that this store can be used, and have it for ourselves.  Done
        by L{startService} if it was not done before.

        @raise fcmxmpp.errors.StoreUnavailable: if it cannot; the text says why.
        """
        if self._lock is None:
            descriptor = lock(self._path)
            try:
                connect(self._path).close()
            except BaseException:
                os.close(descriptor)
                raise
            self._lock = descriptor

    def startService(self) -> None:
        """
        Open the store.

        @raise fcmxmpp.errors.StoreUnavailable: see L{claim}.
        """
        self.claim()
        super().startService()
        self.commits.start()
        self._next = self._reactor.callLater(STRIDE, self._sweepSome)

    def _sweepSome(self) -> None:
        """
        Take away a little of what is no longer of use.
        """
        self._next = None
        before = self.seconds() - self._keep
        # Both are one transaction: if one fails, so does the other.
        devices = self.commits.do(sweepDevices, self.seconds())
        devices.addCallbacks(self._devicesSwept, lambda _: None)
        swept = self.commits.do(sweep, (before, self._sweptTo, self._step))
        swept.addCallbacks(self._swept, self._notSwept)

    def _devicesSwept(self, isMore: bool) -> None:
        """
        That was done.
        """
        self._isMoreOfDevices = isMore

    def _swept(self, result: tuple[bytes | None, float]) -> None:
        """
        That was done: look at as much as can be done in a short time.
        """
        to, seconds = result
        if seconds > BRIEF:
            self._step = max(FEW, self._step // 2)
        elif seconds < BRIEF / 2:
            self._step = min(MANY, self._step * 2)
        self._sweptTo = to or b""
        self._sweepLater(self._rest if to is None and not self._isMoreOfDevices else STRIDE)

    def _notSwept(self, _: object) -> None:
        """
        The store does not work; it says so itself.
        """
        self._sweepLater(REST)

    def _sweepLater(self, delay: float) -> None:
        """
        Go on after a while.
        """
        if self.running:
            self._next = self._reactor.callLater(delay, self._sweepSome)

    def stopService(self) -> Deferred[None]:
        """
        Do what is still to be done, and close the store.
        """
        super().stopService()
        if self._next is not None:
            self._next.cancel()
            self._next = None
        return self.commits.stop().addCallback(self._closed)

    def _closed(self, _: object) -> None:
        """
        Nobody uses the file any more.
        """
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
