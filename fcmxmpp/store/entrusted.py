"""
What devices have entrusted to a connection server, in an SQLite file.

Each operation is a function of the connection and of the arguments of all who
want it done in this transaction: see L{fcmxmpp.store.groupcommit}.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from zope.interface import implementer

from fcmxmpp.entries import EntrustedEntry, UnreadableEntry
from fcmxmpp.errors import MalformedPayload
from fcmxmpp.interfaces import IEntrusted
from fcmxmpp.store.bodies import Upstream, encodeBody, readUpstream
from fcmxmpp.store.database import Connection, delete, inChunks, insert, lastNumber, marks
from fcmxmpp.store.groupcommit import GroupCommit


__all__ = ["SQLiteEntrusted", "add", "load", "remove"]


def add(
    connection: Connection, messages: Sequence[tuple[str, Upstream, bytes, float, bytes | None, float]]
) -> list[EntrustedEntry | None]:
    """
    See L{IEntrusted.add}.

    What sendings of devices are known by stands beside what inboxes know of
    messages, and is swept with that: both are digests of 16 bytes.
    """
    uploads = [(upload, now) for _, _, _, _, upload, now in messages if upload is not None]
    known = _known(connection, [upload for upload, _ in uploads])
    number = lastNumber(connection, "entrusted") + 1
    results: list[EntrustedEntry | None] = []
    rows = []
    for senderID, message, body, expires, upload, _ in messages:
        if upload is not None:
            if upload in known:
                results.append(None)
                continue
            known.add(upload)
        results.append(EntrustedEntry(number=number, senderID=senderID, message=message, expires=expires))
        rows.append((number, senderID, expires, body))
        number += 1
    insert(connection, "entrusted (number, sender_id, expires, body)", rows)
    connection.executemany("INSERT OR IGNORE INTO known VALUES (?, ?)", uploads)
    return results


def _known(connection: Connection, uploads: Sequence[bytes]) -> set[bytes]:
    """
    Which of some sendings are known.
    """
    known: set[bytes] = set()
    for chunk in inChunks(uploads):
        known.update(
            bytes(digest)
            for (digest,) in connection.execute(
                f"SELECT digest FROM known WHERE digest IN ({marks(chunk)})", chunk
            )
        )
    return known


def load(
    connection: Connection, pages: Sequence[tuple[int, int]]
) -> list[list[EntrustedEntry | UnreadableEntry]]:
    """
    See L{IEntrusted.load}.
    """
    return [
        [
            _entry(*row)
            for row in connection.execute(
                "SELECT number, sender_id, expires, CAST(body AS BLOB) FROM entrusted "
                "WHERE number > ? ORDER BY number LIMIT ?",
                page,
            ).fetchall()
        ]
        for page in pages
    ]


def _entry(number: int, senderID: str, expires: float, body: bytes) -> EntrustedEntry | UnreadableEntry:
    """
    What a row is.
    """
    try:
        message = readUpstream(body)
    except MalformedPayload as error:
        return UnreadableEntry(
            number=number, message_id=error.message_id or "", peer=senderID, body=body, reason=error.reason
        )
    return EntrustedEntry(number=number, senderID=senderID, message=message, expires=expires)


def remove(connection: Connection, numbers: Sequence[int]) -> list[None]:
    """
    See L{IEntrusted.remove}.
    """
    return delete(connection, "entrusted WHERE", numbers)


@implementer(IEntrusted)
class SQLiteEntrusted:
    """
    What devices have entrusted to a connection server.
    """

    def __init__(self, commits: GroupCommit, seconds: Callable[[], float]) -> None:
        self._do = commits.do
        self._seconds = seconds

    def add(
        self, senderID: str, message: Upstream, expires: float, upload: bytes | None = None
    ) -> Deferred[EntrustedEntry | None]:
        """
        See L{IEntrusted.add}.
        """
        return self._do(add, (senderID, message, encodeBody(message), expires, upload, self._seconds()))

    def load(self, after: int, limit: int) -> Deferred[list[EntrustedEntry | UnreadableEntry]]:
        """
        See L{IEntrusted.load}.
        """
        return self._do(load, (after, limit))

    def remove(self, number: int) -> Deferred[None]:
        """
        See L{IEntrusted.remove}.
        """
        return self._do(remove, number, urgent=False)
