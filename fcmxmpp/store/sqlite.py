"""
A store in one SQLite file, which may be used for as long as the process has the
disk to itself: see L{SQLiteStore}.

Each operation is a function of the connection and of the arguments of all who
want it done in this transaction: see L{fcmxmpp.store.groupcommit}.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence
from functools import partial
from hashlib import blake2b
from typing import Any

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from zope.interface import implementer

from fcmxmpp.entries import (
    DeadLetter,
    EntrustedEntry,
    InboxEntry,
    OutboxEntry,
    Outcome,
    SettledEntry,
    decodeOutcome,
    encodeOutcome,
)
from fcmxmpp.errors import FCMError, StillUnanswered
from fcmxmpp.interfaces import IEntrusted, IInbox, IOutbox, IStore
from fcmxmpp.messages import DownstreamMessage, Receipt, UpstreamMessage
from fcmxmpp.payload import decodeDownstream, decodeFromConnectionServer
from fcmxmpp.store.database import connect, inChunks, insert, lock
from fcmxmpp.store.groupcommit import MOST, GroupCommit


__all__ = ["KEEP", "SQLiteStore", "digest"]

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
#: How many failed downstream messages a step takes away, which are large.
LARGE = 100

#: Behind every digest.
_BEHIND = b"\xff" * 17

# Not that of fcmxmpp.payload: its escapes for XML may make six bytes of one, and
# what comes out may then be too long to be read again.
_encode = msgspec.json.Encoder().encode

_Connection = sqlite3.Connection
_Upstream = UpstreamMessage | Receipt


def digest(key: tuple[str, str]) -> bytes:
    """
    What a message is known by.

    @param key: its C{from} and its C{message_id}.
    @return: 16 bytes: two of a billion messages have the same in one case of
        10**20.
    """
    from_, message_id = key[0].encode(), key[1].encode()
    return blake2b(b"%d:%b%b" % (len(from_), from_, message_id), digest_size=16).digest()


def _lastNumber(connection: _Connection, table: str) -> int:
    """
    The greatest number that a table has ever given.
    """
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
    return 0 if row is None else int(row[0])


def _marks(values: Sequence[object]) -> str:
    """
    As many question marks as there are values.
    """
    return ",".join("?" * len(values))


# The inbox.


def _known(connection: _Connection, digests: Sequence[bytes]) -> set[bytes]:
    """
    Which of these are known.
    """
    found: set[bytes] = set()
    for chunk in inChunks(digests):
        # One row, however many there are: see groupcommit.
        (joined,) = connection.execute(
            f"SELECT group_concat(hex(digest), '') FROM known WHERE digest IN ({_marks(chunk)})", chunk
        ).fetchone()
        everything = bytes.fromhex(joined or "")
        found.update(everything[start : start + 16] for start in range(0, len(everything), 16))
    return found


def _learn(connection: _Connection, digests: Sequence[bytes], now: float) -> list[bool]:
    """
    Know some messages from now on.

    @return: for each, whether it was not known.
    """
    known = _known(connection, digests)
    new = []
    for each in digests:
        new.append(each not in known)
        known.add(each)
    rows = [(each, now) for each, isNew in zip(digests, new, strict=True) if isNew]
    insert(connection, "known (digest, at)", rows)
    return new


def _addToInbox(
    connection: _Connection, messages: Sequence[tuple[_Upstream, bytes, float]]
) -> list[InboxEntry | None]:
    """
    See L{IInbox.add}.
    """
    now = messages[-1][2]
    new = _learn(connection, [digest(message.key) for message, _, _ in messages], now)
    number = _lastNumber(connection, "inbox")
    entries: list[InboxEntry | None] = []
    rows = []
    for (message, body, arrived), isNew in zip(messages, new, strict=True):
        if not isNew:
            entries.append(None)
            continue
        number += 1
        entries.append(InboxEntry(number=number, message=message, arrived=arrived))
        rows.append((number, message.from_, message.message_id, body, arrived))
    insert(connection, "inbox (number, from_, message_id, body, arrived)", rows)
    return entries


def _loadInbox(connection: _Connection, pages: Sequence[tuple[int, int]]) -> list[list[InboxEntry]]:
    """
    See L{IInbox.load}.
    """
    return [
        [
            InboxEntry(number=number, message=_upstream(body), arrived=arrived, tries=tries)
            for number, body, arrived, tries in connection.execute(
                "SELECT number, body, arrived, tries FROM inbox "
                "WHERE reason IS NULL AND number > ? ORDER BY number LIMIT ?",
                page,
            ).fetchall()
        ]
        for page in pages
    ]


def _upstream(body: bytes) -> _Upstream:
    """
    An upstream message that was stored.
    """
    message = decodeFromConnectionServer(body.decode())
    assert isinstance(message, (UpstreamMessage, Receipt))
    return message


def _noteTries(connection: _Connection, tries: Sequence[tuple[int, int]]) -> list[None]:
    """
    See L{IInbox.tried}.
    """
    for number, count in tries:
        connection.execute("UPDATE inbox SET tries = ? WHERE number = ? AND reason IS NULL", (count, number))
    return [None] * len(tries)


def _delete(connection: _Connection, rows: str, numbers: Sequence[int]) -> list[None]:
    """
    Delete rows.

    @param rows: the table, C{WHERE}, and what else holds for them.
    """
    for chunk in inChunks(numbers):
        connection.execute(f"DELETE FROM {rows} number IN ({_marks(chunk)})", chunk)
    return [None] * len(numbers)


def _noteHandled(connection: _Connection, numbers: Sequence[int]) -> list[None]:
    """
    See L{IInbox.handled}.
    """
    return _delete(connection, "inbox WHERE reason IS NULL AND", numbers)


def _areKnown(connection: _Connection, digests: Sequence[bytes]) -> list[bool]:
    """
    See L{IInbox.isKnown}.
    """
    known = _known(connection, digests)
    return [each in known for each in digests]


def _remember(connection: _Connection, keys: Sequence[tuple[bytes, float]]) -> list[None]:
    """
    See L{IInbox.remember}.
    """
    _learn(connection, [each for each, _ in keys], keys[-1][1])
    return [None] * len(keys)


def _putAside(connection: _Connection, letters: Sequence[tuple[DeadLetter, float]]) -> list[bool]:
    """
    See L{IInbox.putAside}.
    """
    return [_putOneAside(connection, letter, now) for letter, now in letters]


def _putOneAside(connection: _Connection, letter: DeadLetter, now: float) -> bool:
    """
    The same for one: there are few.
    """
    (isNew,) = _learn(connection, [digest((letter.from_, letter.message_id))], now)
    if letter.number is not None:
        changed = connection.execute(
            "UPDATE inbox SET reason = ?, tries = ?, put_aside = ? WHERE number = ? AND reason IS NULL",
            (letter.reason, letter.tries, now, letter.number),
        ).rowcount
        if changed:
            return True
    if isNew:
        row = (letter.from_, letter.message_id, letter.body, now, letter.tries, letter.reason, now)
        insert(connection, "inbox (from_, message_id, body, arrived, tries, reason, put_aside)", [row])
    return isNew


@implementer(IInbox)
class _Inbox:
    """
    The inbox of a store.
    """

    def __init__(self, store: SQLiteStore) -> None:
        self._do = store.commits.do
        self._seconds = store.seconds

    def add(self, message: _Upstream) -> Deferred[InboxEntry | None]:
        """
        See L{IInbox.add}.
        """
        return self._do(_addToInbox, (message, _encode(message), self._seconds()))

    def load(self, after: int, limit: int) -> Deferred[list[InboxEntry]]:
        """
        See L{IInbox.load}.
        """
        return self._do(_loadInbox, (after, limit))

    def tried(self, number: int, tries: int) -> Deferred[None]:
        """
        See L{IInbox.tried}.
        """
        return self._do(_noteTries, (number, tries), urgent=False)

    def handled(self, number: int) -> Deferred[None]:
        """
        See L{IInbox.handled}.
        """
        return self._do(_noteHandled, number, urgent=False)

    def isKnown(self, key: tuple[str, str]) -> Deferred[bool]:
        """
        See L{IInbox.isKnown}.
        """
        return self._do(_areKnown, digest(key))

    def remember(self, key: tuple[str, str]) -> Deferred[None]:
        """
        See L{IInbox.remember}.
        """
        return self._do(_remember, (digest(key), self._seconds()))

    def putAside(self, letter: DeadLetter) -> Deferred[bool]:
        """
        See L{IInbox.putAside}.
        """
        return self._do(_putAside, (letter, self._seconds()))


# The outbox.


def _addToOutbox(
    connection: _Connection, messages: Sequence[tuple[DownstreamMessage, bytes, float]]
) -> list[OutboxEntry | FCMError]:
    """
    See L{IOutbox.add}.
    """
    taken: set[str] = set()
    for chunk in inChunks([message.message_id for message, _, _ in messages]):
        taken.update(
            message_id
            for (message_id,) in connection.execute(
                f"SELECT message_id FROM outbox WHERE outcome IS NULL AND message_id IN ({_marks(chunk)})",
                chunk,
            ).fetchall()
        )
    number = _lastNumber(connection, "outbox")
    entries: list[OutboxEntry | FCMError] = []
    rows = []
    for message, body, since in messages:
        message_id = message.message_id or ""
        if message_id in taken:
            entries.append(StillUnanswered())
            continue
        taken.add(message_id)
        number += 1
        entries.append(OutboxEntry(number=number, message=message, since=since))
        rows.append((number, message_id, message.to or message.condition or "", body, since))
    insert(connection, "outbox (number, message_id, target, body, since)", rows)
    return entries


def _loadOutbox(connection: _Connection, pages: Sequence[tuple[int, int]]) -> list[list[OutboxEntry]]:
    """
    See L{IOutbox.load}.
    """
    return [
        [
            OutboxEntry(number=number, message=decodeDownstream(body.decode()), since=since)
            for number, body, since in connection.execute(
                "SELECT number, body, since FROM outbox "
                "WHERE outcome IS NULL AND number > ? ORDER BY number LIMIT ?",
                page,
            ).fetchall()
        ]
        for page in pages
    ]


def _countOutbox(connection: _Connection, asked: Sequence[None]) -> list[int]:
    """
    See L{IOutbox.count}.
    """
    (count,) = connection.execute("SELECT count(*) FROM outbox WHERE outcome IS NULL").fetchone()
    return [count] * len(asked)


def _withdraw(connection: _Connection, numbers: Sequence[int]) -> list[None]:
    """
    See L{IOutbox.withdraw}.
    """
    return _delete(connection, "outbox WHERE outcome IS NULL AND", numbers)


def _settle(connection: _Connection, outcomes: Sequence[tuple[int, Outcome, bytes, bool]]) -> list[None]:
    """
    See L{IOutbox.settle}.
    """
    # The first outcome of a message stands.
    first = {number: (outcome, body, report) for number, outcome, body, report in reversed(outcomes)}
    done = [number for number, (outcome, _, report) in first.items() if outcome.error is None and not report]
    _delete(connection, "outbox WHERE outcome IS NULL AND", done)
    for number, (outcome, body, report) in first.items():
        if outcome.error is not None or report:
            connection.execute(
                "UPDATE outbox SET outcome = ?, settled = ?, reported = ? "
                "WHERE number = ? AND outcome IS NULL",
                (body, outcome.at, None if report else outcome.at, number),
            )
    return [None] * len(outcomes)


def _unreported(connection: _Connection, pages: Sequence[tuple[int, int]]) -> list[list[SettledEntry]]:
    """
    See L{IOutbox.unreported}.
    """
    return [
        [
            SettledEntry(number=number, outcome=decodeOutcome(decodeDownstream(body.decode()), outcome))
            for number, body, outcome in connection.execute(
                "SELECT number, body, outcome FROM outbox "
                "WHERE outcome IS NOT NULL AND reported IS NULL AND number > ? ORDER BY number LIMIT ?",
                page,
            ).fetchall()
        ]
        for page in pages
    ]


def _noteReported(connection: _Connection, reports: Sequence[tuple[int, float]]) -> list[None]:
    """
    See L{IOutbox.reported}.
    """
    now = reports[-1][1]
    for chunk in inChunks([number for number, _ in reports]):
        marks = _marks(chunk)
        connection.execute(
            f"DELETE FROM outbox WHERE number IN ({marks}) AND outcome IS NOT NULL "
            # SQLite's newer versions take a BLOB for JSON of their own format.
            "AND json_extract(CAST(outcome AS TEXT), '$.error') IS NULL",
            chunk,
        )
        connection.execute(
            f"UPDATE outbox SET reported = ? WHERE number IN ({marks}) "
            "AND outcome IS NOT NULL AND reported IS NULL",
            [now, *chunk],
        )
    return [None] * len(reports)


@implementer(IOutbox)
class _Outbox:
    """
    The outbox of a store.
    """

    def __init__(self, store: SQLiteStore) -> None:
        self._do = store.commits.do
        self._seconds = store.seconds

    def add(self, message: DownstreamMessage) -> Deferred[OutboxEntry]:
        """
        See L{IOutbox.add}.
        """
        return self._do(_addToOutbox, (message, _encode(message), self._seconds()))

    def load(self, after: int, limit: int) -> Deferred[list[OutboxEntry]]:
        """
        See L{IOutbox.load}.
        """
        return self._do(_loadOutbox, (after, limit))

    def count(self) -> Deferred[int]:
        """
        See L{IOutbox.count}.
        """
        return self._do(_countOutbox, None)

    def withdraw(self, number: int) -> Deferred[None]:
        """
        See L{IOutbox.withdraw}.
        """
        return self._do(_withdraw, number)

    def settle(self, number: int, outcome: Outcome, report: bool) -> Deferred[None]:
        """
        See L{IOutbox.settle}.
        """
        return self._do(_settle, (number, outcome, encodeOutcome(outcome), report))

    def unreported(self, after: int, limit: int) -> Deferred[list[SettledEntry]]:
        """
        See L{IOutbox.unreported}.
        """
        return self._do(_unreported, (after, limit))

    def reported(self, number: int) -> Deferred[None]:
        """
        See L{IOutbox.reported}.
        """
        return self._do(_noteReported, (number, self._seconds()), urgent=False)


# What devices have entrusted to a connection server.


def _entrust(
    connection: _Connection, messages: Sequence[tuple[str, _Upstream, bytes, float]]
) -> list[EntrustedEntry]:
    """
    See L{IEntrusted.add}.
    """
    first = _lastNumber(connection, "entrusted") + 1
    rows = [
        (number, senderID, body, expires)
        for number, (senderID, _, body, expires) in enumerate(messages, first)
    ]
    insert(connection, "entrusted (number, sender_id, body, expires)", rows)
    return [
        EntrustedEntry(number=number, senderID=senderID, message=message, expires=expires)
        for number, (senderID, message, _, expires) in enumerate(messages, first)
    ]


def _loadEntrusted(connection: _Connection, pages: Sequence[tuple[int, int]]) -> list[list[EntrustedEntry]]:
    """
    See L{IEntrusted.load}.
    """
    return [
        [
            EntrustedEntry(number=number, senderID=senderID, message=_upstream(body), expires=expires)
            for number, senderID, body, expires in connection.execute(
                "SELECT number, sender_id, body, expires FROM entrusted "
                "WHERE number > ? ORDER BY number LIMIT ?",
                page,
            ).fetchall()
        ]
        for page in pages
    ]


def _removeEntrusted(connection: _Connection, numbers: Sequence[int]) -> list[None]:
    """
    See L{IEntrusted.remove}.
    """
    return _delete(connection, "entrusted WHERE", numbers)


@implementer(IEntrusted)
class _Entrusted:
    """
    What devices have entrusted to a connection server.
    """

    def __init__(self, store: SQLiteStore) -> None:
        self._do = store.commits.do

    def add(self, senderID: str, message: _Upstream, expires: float) -> Deferred[EntrustedEntry]:
        """
        See L{IEntrusted.add}.
        """
        return self._do(_entrust, (senderID, message, _encode(message), expires))

    def load(self, after: int, limit: int) -> Deferred[list[EntrustedEntry]]:
        """
        See L{IEntrusted.load}.
        """
        return self._do(_loadEntrusted, (after, limit))

    def remove(self, number: int) -> Deferred[None]:
        """
        See L{IEntrusted.remove}.
        """
        return self._do(_removeEntrusted, number, urgent=False)


# What is no longer of use.


def _sweep(
    connection: _Connection, steps: Sequence[tuple[float, bytes, int]]
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
        self._step = FEW
        self._rest = max(REST, keep / TIMES)
        self._sweptTo = b""
        self.seconds = reactor.seconds
        self.commits = GroupCommit(partial(connect, self._path), reactor, path, most)
        self.inbox = _Inbox(self)
        self.outbox = _Outbox(self)
        self.entrusted = _Entrusted(self)

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
        swept = self.commits.do(_sweep, (before, self._sweptTo, self._step))
        swept.addCallbacks(self._swept, self._notSwept)

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
        self._sweepLater(self._rest if to is None else STRIDE)

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
