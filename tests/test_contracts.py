"""
Tests for L{fcmxmpp.contracts}: what every store has to do, done by ours.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Awaitable
from contextlib import closing
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase, TestCase

from fcmxmpp.contracts import EntrustedContract, InboxContract, OutboxContract
from fcmxmpp.devicecontracts import MailboxesContract, RegistrationsContract
from fcmxmpp.entries import DeadLetter, Outcome, decodeOutcome
from fcmxmpp.interfaces import IStore
from fcmxmpp.payload import decodeDownstream
from fcmxmpp.store.memory import MemoryStore
from fcmxmpp.store.sqlite import SQLiteStore


class InMemory:
    """
    How to open a store in memory: it is the same one each time.
    """

    store: MemoryStore | None = None

    def openStore(self) -> Awaitable[IStore]:
        """
        See L{InboxContract}.
        """
        if self.store is None:
            self.store = MemoryStore(seconds=lambda: 1700000000.0)
        self.store.startService()
        return succeed(self.store)

    def deadLetters(self, store: Any) -> Awaitable[list[DeadLetter]]:
        """
        See L{InboxContract}.
        """
        return succeed(store.inbox.deadLetters)

    def keptOutcomes(self, store: Any) -> Awaitable[list[Outcome]]:
        """
        See L{OutboxContract}.
        """
        return succeed(store.outbox.failed)


class InFile:
    """
    How to open a store in a file: there is another object each time.
    """

    addCleanup: Any
    path: str | None = None

    def openStore(self) -> Awaitable[IStore]:
        """
        See L{InboxContract}.
        """
        from twisted.internet import reactor  # noqa: TID251

        if self.path is None:
            directory = TemporaryDirectory()
            self.addCleanup(directory.cleanup)
            self.path = os.path.join(directory.name, "store")
        store = SQLiteStore(self.path, reactor)
        store.startService()
        return succeed(store)

    def rows(self, query: str) -> list[Any]:
        """
        Look into the file.
        """
        assert self.path is not None
        with closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(query).fetchall()

    def deadLetters(self, store: Any) -> Awaitable[list[DeadLetter]]:
        """
        See L{InboxContract}.
        """
        names = ("from_", "message_id", "body", "reason", "tries")
        rows = self.rows(f"SELECT {','.join(names)} FROM inbox WHERE reason IS NOT NULL ORDER BY number")
        return succeed([DeadLetter(**dict(zip(names, row, strict=True))) for row in rows])

    def keptOutcomes(self, store: Any) -> Awaitable[list[Outcome]]:
        """
        See L{OutboxContract}.
        """
        rows = self.rows("SELECT body, outcome FROM outbox WHERE reported IS NOT NULL ORDER BY number")
        return succeed([decodeOutcome(decodeDownstream(body.decode()), outcome) for body, outcome in rows])


class MemoryInboxTests(InMemory, InboxContract, TestCase):
    """
    The inbox of L{MemoryStore}.
    """


class MemoryOutboxTests(InMemory, OutboxContract, TestCase):
    """
    The outbox of L{MemoryStore}.
    """


class MemoryEntrustedTests(InMemory, EntrustedContract, TestCase):
    """
    What devices have entrusted to L{MemoryStore}.
    """


class SQLiteInboxTests(InFile, InboxContract, TestCase):
    """
    The inbox of L{SQLiteStore}.
    """


class SQLiteOutboxTests(InFile, OutboxContract, TestCase):
    """
    The outbox of L{SQLiteStore}.
    """


class SQLiteEntrustedTests(InFile, EntrustedContract, TestCase):
    """
    What devices have entrusted to L{SQLiteStore}.
    """


class UnfinishedTests(SynchronousTestCase):
    """
    A test class that leaves out what it has to provide.
    """

    def test_hooks(self) -> None:
        """
        It is told what is missing, by name.
        """

        class Mine(InboxContract, OutboxContract):
            addCleanup: Any

        mine = Mine()
        with self.assertRaisesRegex(NotImplementedError, "Mine has to say how to open its store"):
            mine.openStore()
        with self.assertRaisesRegex(NotImplementedError, "Mine has to say how to read dead letters"):
            mine.deadLetters(None)
        with self.assertRaisesRegex(NotImplementedError, "Mine has to say how to read outcomes"):
            mine.keptOutcomes(None)

    def test_forgetful(self) -> None:
        """
        A store that forgets all when it is closed does not pass.
        """

        class Forgetful(InMemory, InboxContract, TestCase):
            def openStore(self) -> Awaitable[IStore]:
                self.store = None
                return super().openStore()

        result: Deferred[None] = Deferred.fromCoroutine(Forgetful("test_addLasts").test_addLasts())
        self.failureResultOf(result, AssertionError)


class MemoryRegistrationsTests(InMemory, RegistrationsContract, TestCase):
    """
    Registrations in memory.
    """


class MemoryMailboxesTests(InMemory, MailboxesContract, TestCase):
    """
    Mailboxes in memory.
    """


class SQLiteRegistrationsTests(InFile, RegistrationsContract, TestCase):
    """
    Registrations in a file.
    """


class SQLiteMailboxesTests(InFile, MailboxesContract, TestCase):
    """
    Mailboxes in a file.
    """
