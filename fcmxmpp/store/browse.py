"""
Looking into a store, and putting things right in it, from outside of the
service that may be using it.

Reading never keeps the service waiting: the log that SQLite writes ahead shows
each transaction the file as it was when that began.  What changes something
does it to a few hundred messages a transaction, because the service's commits
wait for it.
"""

from __future__ import annotations

import os
import pwd
import sqlite3
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager

from msgspec import Struct

from fcmxmpp.errors import MalformedPayload, StoreUnavailable
from fcmxmpp.store.bodies import readDownstream, readUpstream
from fcmxmpp.store.database import VERSION, connect, explain, lock, transaction


__all__ = [
    "AT_ONCE",
    "INBOX",
    "OUTBOX",
    "Box",
    "Done",
    "Entry",
    "Which",
    "counts",
    "drop",
    "entries",
    "find",
    "malformed",
    "numbers",
    "openStore",
    "retry",
    "snapshot",
    "unused",
]

#: How many messages are changed in one transaction.
AT_ONCE = 500

_Connection = sqlite3.Connection


class Box(Struct, frozen=True):
    """
    The inbox or the outbox, as seen from outside.

    @ivar table: its table's name, which is its own, too.
    @ivar states: what state a message can be in, L{failed} included.
    @ivar failed: the state of what can be retried and dropped.
    @ivar view: a query that gives the columns of an L{Entry}.
    @ivar again: a statement that adds a copy of a message at the end, to be
        handled or sent as if it were new; with C{:number} and C{:now}.
    @ivar check: reads a body.
    @ivar isUnique: whether of several messages with one C{message_id} only one
        may be waiting.
    """

    table: str
    states: tuple[str, ...]
    failed: str
    view: str
    again: str
    check: Callable[[bytes], object]
    isUnique: bool


INBOX = Box(
    table="inbox",
    states=("waiting", "dead"),
    failed="dead",
    # A column takes a value of any type, and somebody may have mended a row by hand: hence the CASTs.
    view="""
        SELECT number, CASE WHEN reason IS NULL THEN 'waiting' ELSE 'dead' END AS state,
            CAST(message_id AS TEXT) AS message_id, CAST(from_ AS TEXT) AS peer,
            CAST(arrived AS REAL) AS since, CAST(tries AS INTEGER) AS tries,
            CAST(put_aside AS REAL) AS ended, NULL AS reported,
            CAST(reason AS TEXT) AS reason, NULL AS outcome, CAST(body AS BLOB) AS body
        FROM inbox
    """,
    # AUTOINCREMENT: the number is greater than all that were ever given, so a service that goes on from
    # the last one that it knows finds it.
    again="""
        INSERT INTO inbox (from_, message_id, body, arrived)
        SELECT from_, message_id, CAST(body AS BLOB), arrived FROM inbox WHERE number = :number
    """,
    check=readUpstream,
    isUnique=False,
)

OUTBOX = Box(
    table="outbox",
    states=("waiting", "unreported", "failed"),
    failed="failed",
    view="""
        SELECT number, CASE WHEN outcome IS NULL THEN 'waiting'
                WHEN reported IS NULL THEN 'unreported' ELSE 'failed' END AS state,
            CAST(message_id AS TEXT) AS message_id, CAST(target AS TEXT) AS peer,
            CAST(since AS REAL) AS since, CAST(tries AS INTEGER) AS tries, CAST(settled AS REAL) AS ended,
            CAST(reported AS REAL) AS reported, CAST(reason AS TEXT) AS reason,
            CAST(outcome AS BLOB) AS outcome, CAST(body AS BLOB) AS body
        FROM outbox
    """,
    again="""
        INSERT INTO outbox (message_id, target, body, since)
        SELECT message_id, target, CAST(body AS BLOB), :now FROM outbox WHERE number = :number
    """,
    check=readDownstream,
    isUnique=True,
)


class Entry(Struct, frozen=True):
    """
    A message of an inbox or outbox.

    @ivar peer: the C{from}, or the C{to} or C{condition}.
    @ivar since: when it arrived, or was sent first, in seconds since 1970.
    @ivar tries: how often it was tried, where that is known.
    @ivar ended: when it was put aside, or settled.
    @ivar reported: when its outcome was reported.
    @ivar reason: why it was put aside, or failed.
    @ivar outcome: of the outbox: JSON in UTF-8.
    @ivar body: the message; empty where it was not asked for.
    """

    number: int
    state: str
    message_id: str
    peer: str
    since: float
    tries: int | None
    ended: float | None
    reported: float | None
    reason: str | None
    outcome: bytes | None
    body: bytes = b""

    def __repr__(self) -> str:
        """
        Without token and contents.
        """
        return f"Entry(number={self.number!r}, state={self.state!r}, message_id={self.message_id!r})"


class Which(Struct, frozen=True, kw_only=True):
    """
    Which messages are meant: those for which all of this holds.

    @ivar states: in one of these.
    @ivar reason: a part of the reason, whatever the case of its letters.
    @ivar before: put aside or settled (if it was; else arrived or sent) before
        this.
    @ivar after: the same, at this or later.
    """

    states: tuple[str, ...]
    reason: str | None = None
    before: float | None = None
    after: float | None = None

    def condition(self) -> tuple[str, list[object]]:
        """
        The same in SQL.

        @return: a condition on the columns of a box's view, and its arguments.
        """
        parts = [f"state IN ({_marks(self.states)})"]
        arguments: list[object] = list(self.states)
        if self.reason is not None:
            parts.append("instr(lower(reason), lower(?)) > 0")
            arguments.append(self.reason)
        if self.before is not None:
            parts.append("coalesce(ended, since) < ?")
            arguments.append(self.before)
        if self.after is not None:
            parts.append("coalesce(ended, since) >= ?")
            arguments.append(self.after)
        return " AND ".join(parts), arguments


class Done(Struct):
    """
    What came of a change.

    @ivar count: how many messages were changed.
    @ivar refused: number and C{message_id} of those that were not, and why
        not.
    """

    count: int
    refused: list[tuple[int, str, str]]


def _marks(values: Sequence[object]) -> str:
    """
    As many question marks as there are values.
    """
    return ",".join("?" * len(values))


def openStore(path: str) -> _Connection:
    """
    Open a store that is there.

    One of an earlier version is brought up to date, but only if no service is
    using it: an older service that is running does not know what it would
    find then.

    @raise StoreUnavailable: if that is impossible; the text says why.
    """
    size = _checkFile(path)
    try:
        with closing(sqlite3.connect(path)) as connection:
            version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.Error as error:
        raise StoreUnavailable(explain(error)) from None
    if size == 0:
        raise StoreUnavailable("the file is empty: the service makes a store of it when it starts")
    # 0 is another program's, or a store that was about to be made.
    if version == 0 or version >= VERSION:
        return connect(path, create=False)
    with unused(path) as isUnused:
        if not isUnused:
            raise StoreUnavailable(
                f"it is of version {version}, and a service of that version is using it: stop that first"
            )
        return connect(path, create=False)


def _checkFile(path: str) -> int:
    """
    See to it that there is a file that is ours to use.

    @return: its size.
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise StoreUnavailable("there is no such file") from None
    except PermissionError as error:
        raise StoreUnavailable(f"{explain(error)}: run this as the user that the service runs as") from None
    except OSError as error:
        raise StoreUnavailable(explain(error)) from None
    if not stat.S_ISREG(status.st_mode):
        raise StoreUnavailable("that is no file: name another one")
    # Who may only read it would make files beside it that keep the service out.
    if os.access(path, os.R_OK | os.W_OK):
        return status.st_size
    if status.st_uid == os.geteuid():
        raise StoreUnavailable("it is read-only: check the permissions of the file and of its directory")
    try:
        owner = pwd.getpwuid(status.st_uid).pw_name
    except KeyError:
        owner = f"user {status.st_uid}"
    raise StoreUnavailable(f"it belongs to {owner}: run this as that user")


@contextmanager
def unused(path: str) -> Iterator[bool]:
    """
    Keep services from starting to use a store.

    @return: whether none is using it.
    """
    isNew = not os.path.exists(path + ".lock")
    try:
        descriptor = lock(path)
    except StoreUnavailable:
        yield False
        return
    try:
        if isNew and os.geteuid() == 0:
            # Root's own would keep the service out.
            owner = os.stat(path)
            os.chown(descriptor, owner.st_uid, owner.st_gid)
        yield True
    finally:
        os.close(descriptor)


@contextmanager
def snapshot(connection: _Connection) -> Iterator[None]:
    """
    See everything as it is now, until this is left.
    """
    connection.execute("BEGIN")
    try:
        yield
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def counts(connection: _Connection, box: Box, which: Which) -> dict[str, int]:
    """
    How many messages there are in each state.
    """
    condition, arguments = which.condition()
    return dict(
        connection.execute(
            f"SELECT state, count(*) FROM ({box.view}) WHERE {condition} GROUP BY state", arguments
        )
    )


def entries(
    connection: _Connection,
    box: Box,
    which: Which,
    *,
    limit: int | None = None,
    newestFirst: bool = False,
    withBody: bool = False,
) -> Iterator[Entry]:
    """
    Messages, in the order of their numbers.

    @param limit: no more than so many.
    @param newestFirst: in the opposite order.
    """
    condition, arguments = which.condition()
    order = "DESC" if newestFirst else "ASC"
    clause = f"WHERE {condition} ORDER BY number {order} LIMIT ?"
    # SQLite takes less than 0 for no limit.
    return _query(
        connection, box, clause, [*arguments, -1 if limit is None else min(limit, sys.maxsize)], withBody
    )


def _query(
    connection: _Connection, box: Box, clause: str, arguments: Sequence[object], withBody: bool
) -> Iterator[Entry]:
    """
    The entries that a clause selects.
    """
    columns = [name for name in Entry.__struct_fields__ if withBody or name != "body"]
    rows = connection.execute(f"SELECT {', '.join(columns)} FROM ({box.view}) {clause}", arguments)
    return (Entry(*row) for row in rows)


def numbers(connection: _Connection, box: Box, which: Which) -> list[int]:
    """
    The numbers of some messages, the oldest first.
    """
    condition, arguments = which.condition()
    found = connection.execute(
        f"SELECT number FROM ({box.view}) WHERE {condition} ORDER BY number", arguments
    )
    return [number for (number,) in found]


def find(
    connection: _Connection, box: Box, names: Iterable[str], by: str | None = None
) -> dict[str, list[Entry]]:
    """
    The messages that somebody means.

    @param names: numbers and C{message_id}s.
    @param by: C{"number"} or C{"message_id"} if they can only be that.
    @return: for each name all that it fits, in the order of their numbers, with
        their bodies.  Digits can be both.
    """
    found: dict[str, list[Entry]] = {name: [] for name in names}
    left = list(found)
    while left:
        # Many in one query: no index knows the message_ids, so each goes through the whole table.
        some, left = left[: AT_ONCE // 2], left[AT_ONCE // 2 :]
        meant: dict[int | str, list[str]] = {}
        for name in some:
            # No number is longer, and SQLite knows no longer ones.
            if by != "message_id" and name.isascii() and name.isdigit() and len(name) < 19:
                meant.setdefault(int(name), []).append(name)
            if by != "number":
                meant.setdefault(name, []).append(name)
        numbers = [each for each in meant if isinstance(each, int)]
        message_ids = [each for each in meant if isinstance(each, str)]
        clause = f"number IN ({_marks(numbers)})"
        if message_ids:
            clause += f" OR message_id IN ({_marks(message_ids)})"
        arguments = [*numbers, *message_ids]
        for entry in _query(connection, box, f"WHERE {clause} ORDER BY number", arguments, withBody=True):
            for name in {*meant.get(entry.number, ()), *meant.get(entry.message_id, ())}:
                found[name].append(entry)
    return found


def malformed(box: Box, body: bytes) -> str | None:
    """
    What is wrong with a message that cannot be decoded.

    @return: without any of its contents; None if nothing is.
    """
    try:
        box.check(body)
    except MalformedPayload as error:
        return error.reason
    return None


def retry(connection: _Connection, box: Box, chosen: Sequence[int], now: float) -> Done:
    """
    Have failed messages handled or sent again, as if they were new.

    @param chosen: their numbers, L{AT_ONCE} at most.  They get new ones, at
        the end.
    @param now: when that is: the C{time_to_live} of a downstream message
        counts from then.
    """
    done = Done(0, [])
    accepted: list[int] = []
    with transaction(connection):
        found = list(_chosen(connection, box, chosen, withBody=True))
        taken = _waitingAmong(connection, box, [entry.message_id for entry in found])
        for entry in found:
            why = _whyNotAgain(box, entry, taken)
            if why is not None:
                done.refused.append((entry.number, entry.message_id, why))
                continue
            if box.isUnique:
                taken.add(entry.message_id)
            connection.execute(box.again, {"now": now, "number": entry.number})
            accepted.append(entry.number)
        done.count = _delete(connection, box, accepted)
    return done


def _chosen(connection: _Connection, box: Box, chosen: Sequence[int], withBody: bool) -> Iterator[Entry]:
    """
    Those of some entries that are still there.
    """
    return _query(
        connection, box, f"WHERE number IN ({_marks(chosen)}) ORDER BY number", chosen, withBody=withBody
    )


def _waitingAmong(connection: _Connection, box: Box, message_ids: Iterable[str]) -> set[str]:
    """
    Of which of these C{message_id}s no other message may be waiting.
    """
    if not box.isUnique:
        return set()
    return {
        message_id
        for message_id in message_ids
        # In the words of the index that holds just these.
        if connection.execute(
            "SELECT 1 FROM outbox WHERE outcome IS NULL AND message_id = ?", (message_id,)
        ).fetchone()
    }


def _whyNotAgain(box: Box, entry: Entry, taken: set[str]) -> str | None:
    """
    What keeps a message from being retried, if anything does.
    """
    if entry.state == "waiting":
        return "it is waiting already"
    if entry.state == "unreported":
        # A service may be reporting just this outcome.
        return "its outcome has not been reported yet"
    if entry.message_id in taken:
        return "another message with its message_id is waiting"
    reason = malformed(box, entry.body)
    return None if reason is None else f"it can never be decoded ({reason})"


def drop(connection: _Connection, box: Box, chosen: Sequence[int], states: Sequence[str]) -> Done:
    """
    Delete messages.

    That an upstream message is known is kept: it will not be handled if it
    comes again.

    @param chosen: their numbers, L{AT_ONCE} at most.
    @param states: those that may be deleted.  What is waiting may be in the
        hands of a service, unless it is L{unused}.
    """
    done = Done(0, [])
    accepted: list[int] = []
    with transaction(connection):
        for entry in _chosen(connection, box, chosen, withBody=False):
            if entry.state in states:
                accepted.append(entry.number)
            elif entry.state == "waiting":
                why = "it is waiting, and a service that uses this store may have it: stop that first"
                done.refused.append((entry.number, entry.message_id, why))
            else:
                why = "its outcome has not been reported yet: let it be, or say --force"
                done.refused.append((entry.number, entry.message_id, why))
        done.count = _delete(connection, box, accepted)
    return done


def _delete(connection: _Connection, box: Box, chosen: Sequence[int]) -> int:
    """
    Delete rows.

    @return: how many.
    """
    return connection.execute(f"DELETE FROM {box.table} WHERE number IN ({_marks(chosen)})", chosen).rowcount
