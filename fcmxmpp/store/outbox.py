"""
The outbox in an SQLite file.

Each operation is a function of the connection and of the arguments of all who
want it done in this transaction: see L{fcmxmpp.store.groupcommit}.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from zope.interface import implementer

from fcmxmpp.entries import (
    OutboxEntry,
    Outcome,
    SettledEntry,
    UnreadableEntry,
    decodeOutcome,
    describe,
    encodeOutcome,
)
from fcmxmpp.errors import FCMError, MalformedPayload, StillUnanswered, Unreadable
from fcmxmpp.interfaces import IOutbox
from fcmxmpp.messages import DownstreamMessage
from fcmxmpp.store.bodies import encodeBody, readDownstream
from fcmxmpp.store.database import Connection, delete, inChunks, insert, lastNumber, marks
from fcmxmpp.store.groupcommit import GroupCommit


__all__ = ["SQLiteOutbox", "add", "count", "load", "noteReported", "settle", "unreported", "withdraw"]


def add(
    connection: Connection, messages: Sequence[tuple[DownstreamMessage, bytes, float]]
) -> list[OutboxEntry | FCMError]:
    """
    See L{IOutbox.add}.
    """
    taken: set[str] = set()
    for chunk in inChunks([message.message_id for message, _, _ in messages]):
        taken.update(
            message_id
            for (message_id,) in connection.execute(
                f"SELECT message_id FROM outbox WHERE outcome IS NULL AND message_id IN ({marks(chunk)})",
                chunk,
            ).fetchall()
        )
    number = lastNumber(connection, "outbox")
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
        rows.append((number, message_id, message.to or message.condition or "", since, body))
    insert(connection, "outbox (number, message_id, target, since, body)", rows)
    return entries


def load(
    connection: Connection, pages: Sequence[tuple[int, int]]
) -> list[list[OutboxEntry | UnreadableEntry]]:
    """
    See L{IOutbox.load}.
    """
    return [
        [
            _entry(*row)
            for row in connection.execute(
                "SELECT number, message_id, target, since, CAST(body AS BLOB) FROM outbox "
                "WHERE outcome IS NULL AND number > ? ORDER BY number LIMIT ?",
                page,
            ).fetchall()
        ]
        for page in pages
    ]


def _entry(
    number: int, message_id: str, target: str, since: float, body: bytes
) -> OutboxEntry | UnreadableEntry:
    """
    What a row without outcome is.
    """
    try:
        message = readDownstream(body)
    except MalformedPayload as error:
        return UnreadableEntry(
            number=number, message_id=message_id, peer=target, body=body, reason=error.reason
        )
    return OutboxEntry(number=number, message=message, since=since)


def count(connection: Connection, asked: Sequence[None]) -> list[int]:
    """
    See L{IOutbox.count}.
    """
    (count,) = connection.execute("SELECT count(*) FROM outbox WHERE outcome IS NULL").fetchone()
    return [count] * len(asked)


def withdraw(connection: Connection, numbers: Sequence[int]) -> list[None]:
    """
    See L{IOutbox.withdraw}.
    """
    return delete(connection, "outbox WHERE outcome IS NULL AND", numbers)


def settle(connection: Connection, outcomes: Sequence[tuple[int, Outcome, bytes, bool]]) -> list[None]:
    """
    See L{IOutbox.settle}.
    """
    # The first outcome of a message stands.
    first = {number: (outcome, body, report) for number, outcome, body, report in reversed(outcomes)}
    done = [number for number, (outcome, _, report) in first.items() if outcome.error is None and not report]
    delete(connection, "outbox WHERE outcome IS NULL AND", done)
    for number, (outcome, body, report) in first.items():
        error = outcome.error
        if error is None and not report:
            continue
        connection.execute(
            "UPDATE outbox SET outcome = ?, tries = ?, settled = ?, reported = ?, reason = ? "
            "WHERE number = ? AND outcome IS NULL",
            (
                body,
                outcome.tries,
                outcome.at,
                None if report else outcome.at,
                error and describe(error),
                number,
            ),
        )
    return [None] * len(outcomes)


def unreported(connection: Connection, pages: Sequence[tuple[int, int]]) -> list[list[SettledEntry]]:
    """
    See L{IOutbox.unreported}.
    """
    return [
        [
            _settled(*row)
            for row in connection.execute(
                "SELECT number, message_id, target, tries, settled, "
                "CAST(outcome AS BLOB), CAST(body AS BLOB) FROM outbox "
                "WHERE outcome IS NOT NULL AND reported IS NULL AND number > ? ORDER BY number LIMIT ?",
                page,
            ).fetchall()
        ]
        for page in pages
    ]


def _settled(
    number: int, message_id: str, target: str, tries: int, at: float, stored: bytes, body: bytes
) -> SettledEntry:
    """
    What a row with an outcome is.
    """
    try:
        message = readDownstream(body)
    except MalformedPayload:
        message = DownstreamMessage(to=target, message_id=message_id)
    try:
        outcome = decodeOutcome(message, stored)
    except Unreadable as error:
        outcome = Outcome(message=message, error=error, tries=tries, at=at)
    return SettledEntry(number=number, outcome=outcome)


def noteReported(connection: Connection, reports: Sequence[tuple[int, float]]) -> list[None]:
    """
    See L{IOutbox.reported}.
    """
    now = reports[-1][1]
    for chunk in inChunks([number for number, _ in reports]):
        these = f"number IN ({marks(chunk)}) AND outcome IS NOT NULL"
        connection.execute(f"DELETE FROM outbox WHERE {these} AND reason IS NULL", chunk)
        connection.execute(
            f"UPDATE outbox SET reported = ? WHERE {these} AND reported IS NULL", [now, *chunk]
        )
    return [None] * len(reports)


@implementer(IOutbox)
class SQLiteOutbox:
    """
    The outbox of a store.
    """

    def __init__(self, commits: GroupCommit, seconds: Callable[[], float]) -> None:
        """
        @param seconds: the time, in seconds since 1970.
        """
        self._do = commits.do
        self._seconds = seconds

    def add(self, message: DownstreamMessage) -> Deferred[OutboxEntry]:
        """
        See L{IOutbox.add}.
        """
        return self._do(add, (message, encodeBody(message), self._seconds()))

    def load(self, after: int, limit: int) -> Deferred[list[OutboxEntry | UnreadableEntry]]:
        """
        See L{IOutbox.load}.
        """
        return self._do(load, (after, limit))

    def count(self) -> Deferred[int]:
        """
        See L{IOutbox.count}.
        """
        return self._do(count, None)

    def withdraw(self, number: int) -> Deferred[None]:
        """
        See L{IOutbox.withdraw}.
        """
        return self._do(withdraw, number)

    def settle(self, number: int, outcome: Outcome, report: bool) -> Deferred[None]:
        """
        See L{IOutbox.settle}.
        """
        return self._do(settle, (number, outcome, encodeOutcome(outcome), report))

    def unreported(self, after: int, limit: int) -> Deferred[list[SettledEntry]]:
        """
        See L{IOutbox.unreported}.
        """
        return self._do(unreported, (after, limit))

    def reported(self, number: int) -> Deferred[None]:
        """
        See L{IOutbox.reported}.
        """
        return self._do(noteReported, (number, self._seconds()), urgent=False)
