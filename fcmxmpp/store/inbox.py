"""
The inbox in an SQLite file.

Each operation is a function of the connection and of the arguments of all who
want it done in this transaction: see L{fcmxmpp.store.groupcommit}.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b

from twisted.internet.defer import Deferred
from zope.interface import implementer

from fcmxmpp.entries import DeadLetter, InboxEntry, UnreadableEntry
from fcmxmpp.errors import MalformedPayload
from fcmxmpp.interfaces import IInbox
from fcmxmpp.store.bodies import Upstream, encodeBody, readUpstream
from fcmxmpp.store.database import Connection, delete, inChunks, insert, lastNumber, marks
from fcmxmpp.store.groupcommit import GroupCommit


__all__ = [
    "SQLiteInbox",
    "add",
    "areKnown",
    "digest",
    "load",
    "noteHandled",
    "noteTries",
    "putAside",
    "remember",
]


def digest(key: tuple[str, str]) -> bytes:
    """
    What a message is known by.

    @param key: its C{from} and its C{message_id}.
    @return: 16 bytes: two of a billion messages have the same in one case of
        10**20.
    """
    from_, message_id = key[0].encode(), key[1].encode()
    return blake2b(b"%d:%b%b" % (len(from_), from_, message_id), digest_size=16).digest()


def _known(connection: Connection, digests: Sequence[bytes]) -> set[bytes]:
    """
    Which of these are known.
    """
    found: set[bytes] = set()
    for chunk in inChunks(digests):
        # One row, however many there are: see groupcommit.
        (joined,) = connection.execute(
            f"SELECT group_concat(hex(digest), '') FROM known WHERE digest IN ({marks(chunk)})", chunk
        ).fetchone()
        everything = bytes.fromhex(joined or "")
        found.update(everything[start : start + 16] for start in range(0, len(everything), 16))
    return found


def _learn(connection: Connection, digests: Sequence[bytes], now: float) -> list[bool]:
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


def add(connection: Connection, messages: Sequence[tuple[Upstream, bytes, float]]) -> list[InboxEntry | None]:
    """
    See L{IInbox.add}.
    """
    now = messages[-1][2]
    new = _learn(connection, [digest(message.key) for message, _, _ in messages], now)
    number = lastNumber(connection, "inbox")
    entries: list[InboxEntry | None] = []
    rows = []
    for (message, body, arrived), isNew in zip(messages, new, strict=True):
        if not isNew:
            entries.append(None)
            continue
        number += 1
        entries.append(InboxEntry(number=number, message=message, arrived=arrived))
        rows.append((number, message.from_, message.message_id, arrived, body))
    insert(connection, "inbox (number, from_, message_id, arrived, body)", rows)
    return entries


def load(
    connection: Connection, pages: Sequence[tuple[int, int]]
) -> list[list[InboxEntry | UnreadableEntry]]:
    """
    See L{IInbox.load}.
    """
    return [
        [
            _entry(*row)
            for row in connection.execute(
                "SELECT number, from_, message_id, arrived, tries, CAST(body AS BLOB) FROM inbox "
                "WHERE reason IS NULL AND number > ? ORDER BY number LIMIT ?",
                page,
            ).fetchall()
        ]
        for page in pages
    ]


def _entry(
    number: int, from_: str, message_id: str, arrived: float, tries: int, body: bytes
) -> InboxEntry | UnreadableEntry:
    """
    What a row is.
    """
    try:
        message = readUpstream(body)
    except MalformedPayload as error:
        return UnreadableEntry(
            number=number, message_id=message_id, peer=from_, body=body, reason=error.reason
        )
    return InboxEntry(number=number, message=message, arrived=arrived, tries=tries)


def noteTries(connection: Connection, tries: Sequence[tuple[int, int]]) -> list[None]:
    """
    See L{IInbox.tried}.
    """
    for number, count in tries:
        connection.execute("UPDATE inbox SET tries = ? WHERE number = ? AND reason IS NULL", (count, number))
    return [None] * len(tries)


def noteHandled(connection: Connection, numbers: Sequence[int]) -> list[None]:
    """
    See L{IInbox.handled}.
    """
    return delete(connection, "inbox WHERE reason IS NULL AND", numbers)


def areKnown(connection: Connection, digests: Sequence[bytes]) -> list[bool]:
    """
    See L{IInbox.isKnown}.
    """
    known = _known(connection, digests)
    return [each in known for each in digests]


def remember(connection: Connection, keys: Sequence[tuple[bytes, float]]) -> list[None]:
    """
    See L{IInbox.remember}.
    """
    _learn(connection, [each for each, _ in keys], keys[-1][1])
    return [None] * len(keys)


def putAside(connection: Connection, letters: Sequence[tuple[DeadLetter, float]]) -> list[bool]:
    """
    See L{IInbox.putAside}.
    """
    return [_putOneAside(connection, letter, now) for letter, now in letters]


def _putOneAside(connection: Connection, letter: DeadLetter, now: float) -> bool:
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
class SQLiteInbox:
    """
    The inbox of a store.
    """

    def __init__(self, commits: GroupCommit, seconds: Callable[[], float]) -> None:
        """
        @param seconds: the time, in seconds since 1970.
        """
        self._do = commits.do
        self._seconds = seconds

    def add(self, message: Upstream) -> Deferred[InboxEntry | None]:
        """
        See L{IInbox.add}.
        """
        return self._do(add, (message, encodeBody(message), self._seconds()))

    def load(self, after: int, limit: int) -> Deferred[list[InboxEntry | UnreadableEntry]]:
        """
        See L{IInbox.load}.
        """
        return self._do(load, (after, limit))

    def tried(self, number: int, tries: int) -> Deferred[None]:
        """
        See L{IInbox.tried}.
        """
        return self._do(noteTries, (number, tries), urgent=False)

    def handled(self, number: int) -> Deferred[None]:
        """
        See L{IInbox.handled}.
        """
        return self._do(noteHandled, number, urgent=False)

    def isKnown(self, key: tuple[str, str]) -> Deferred[bool]:
        """
        See L{IInbox.isKnown}.
        """
        return self._do(areKnown, digest(key))

    def remember(self, key: tuple[str, str]) -> Deferred[None]:
        """
        See L{IInbox.remember}.
        """
        return self._do(remember, (digest(key), self._seconds()))

    def putAside(self, letter: DeadLetter) -> Deferred[bool]:
        """
        See L{IInbox.putAside}.
        """
        return self._do(putAside, (letter, self._seconds()))
