"""
What devices have entrusted to a connection server, in an SQLite file.

Each operation is a function of the connection and of the arguments of all who
want it done in this transaction: see L{fcmxmpp.store.groupcommit}.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred
from zope.interface import implementer

from fcmxmpp.entries import EntrustedEntry, UnreadableEntry
from fcmxmpp.errors import MalformedPayload
from fcmxmpp.interfaces import IEntrusted
from fcmxmpp.store.bodies import Upstream, encodeBody, readUpstream
from fcmxmpp.store.database import Connection, delete, insert, lastNumber
from fcmxmpp.store.groupcommit import GroupCommit


__all__ = ["SQLiteEntrusted", "add", "load", "remove"]


def add(
    connection: Connection, messages: Sequence[tuple[str, Upstream, bytes, float]]
) -> list[EntrustedEntry]:
    """
    See L{IEntrusted.add}.
    """
    first = lastNumber(connection, "entrusted") + 1
    rows = [
        (number, senderID, expires, body)
        for number, (senderID, _, body, expires) in enumerate(messages, first)
    ]
    insert(connection, "entrusted (number, sender_id, expires, body)", rows)
    return [
        EntrustedEntry(number=number, senderID=senderID, message=message, expires=expires)
        for number, (senderID, message, _, expires) in enumerate(messages, first)
    ]


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

    def __init__(self, commits: GroupCommit) -> None:
        self._do = commits.do

    def add(self, senderID: str, message: Upstream, expires: float) -> Deferred[EntrustedEntry]:
        """
        See L{IEntrusted.add}.
        """
        return self._do(add, (senderID, message, encodeBody(message), expires))

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
