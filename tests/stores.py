"""
Stores for tests, filled by what fills real ones.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from contextlib import closing

from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.entries import DeadLetter, InboxEntry, OutboxEntry, Outcome, encodeOutcome
from fcmxmpp.errors import FCMError
from fcmxmpp.messages import Ack, DownstreamMessage, UpstreamMessage
from fcmxmpp.payload import encode
from fcmxmpp.store import inbox, outbox
from fcmxmpp.store.database import connect, lastNumber, transaction


__all__ = ["Filler", "newStore"]


class Filler:
    """
    Fills a store, without a service.

    @ivar path: of the store.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        connect(path).close()

    def connect(self) -> sqlite3.Connection:
        """
        Open it as a service does.
        """
        return connect(self.path)

    def arrived(self, message_id: str, from_: str = "tok-A", at: float = 1000.0) -> int:
        """
        Take over an upstream message.

        @return: its number.
        """
        message = UpstreamMessage(from_=from_, message_id=message_id, data={"op": "ping"})
        with closing(self.connect()) as connection, transaction(connection):
            (entry,) = inbox.add(connection, [(message, encode(message), at)])
        assert isinstance(entry, InboxEntry)
        return entry.number

    def dead(
        self,
        message_id: str,
        reason: str = "ValueError",
        from_: str = "tok-A",
        at: float = 1000.0,
        body: bytes | None = None,
    ) -> int:
        """
        Take over an upstream message and put it aside.

        @param body: what cannot be decoded and so is only put aside.
        @return: its number.
        """
        number = self.arrived(message_id, from_, at) if body is None else None
        letter = DeadLetter(
            number=number,
            from_=from_,
            message_id=message_id,
            body=body or b"",
            reason=reason,
            tries=3 if body is None else 0,
        )
        with closing(self.connect()) as connection, transaction(connection):
            assert inbox.putAside(connection, [(letter, at + 1)]) == [True]
            return lastNumber(connection, "inbox")

    def sent(self, message_id: str, to: str = "tok-A", at: float = 1000.0) -> int:
        """
        Take over a downstream message.

        @return: its number.
        """
        message = DownstreamMessage(to=to, message_id=message_id, data={"op": "pong"})
        with closing(self.connect()) as connection, transaction(connection):
            (entry,) = outbox.add(connection, [(message, encode(message), at)])
        assert isinstance(entry, OutboxEntry), entry
        return entry.number

    def settled(
        self, message_id: str, error: FCMError | None, at: float = 1000.0, report: bool = False
    ) -> int:
        """
        Take over a downstream message and settle it.

        @param report: whether its outcome is yet to be reported.
        @return: its number.
        """
        number = self.sent(message_id, at=at)
        message = DownstreamMessage(to="tok-A", message_id=message_id)
        ack = Ack(message_id=message_id) if error is None else None
        outcome = Outcome(message=message, ack=ack, error=error, tries=2, at=at + 1)
        with closing(self.connect()) as connection, transaction(connection):
            outbox.settle(connection, [(number, outcome, encodeOutcome(outcome), report)])
        return number


def newStore(case: SynchronousTestCase) -> Filler:
    """
    An empty store, in a directory of its own, until the end of a test.
    """
    directory = os.path.realpath(tempfile.mkdtemp())
    case.addCleanup(shutil.rmtree, directory)
    return Filler(os.path.join(directory, "store.db"))
