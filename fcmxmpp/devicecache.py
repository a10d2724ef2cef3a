"""
What a device keeps: who it is, what it has not sent yet, and what it has
received.

In a file, if it has one; then nothing is lost of what an app was told is kept,
however the process ends.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from msgspec import Struct

from fcmxmpp.errors import FCMError
from fcmxmpp.registrations import Identity


__all__ = ["CacheUnusable", "DeviceCache", "Unsent"]

_SCHEMA = """
    CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS unsent (number INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS received (
        number INTEGER PRIMARY KEY AUTOINCREMENT, persistent_id TEXT UNIQUE NOT NULL
    );
"""
#: How many names of messages are remembered, so that none is told twice.
REMEMBERED = 1000


class CacheUnusable(FCMError):
    """
    A device's file cannot be used; the text says why, in one line.
    """


class Unsent(Struct, frozen=True, kw_only=True):
    """
    A message that the connection server has not stored yet.

    @ivar since: when it was given to the device, in seconds since 1970.
    """

    message_id: str
    to: str
    data: dict[str, str]
    time_to_live: int
    since: float


class DeviceCache:
    """
    Keeps things, in a file or in memory.

    Each method is a transaction, done at once: a device sends little, and what
    it says is kept has to be kept.
    """

    def __init__(self, path: str | None = None) -> None:
        """
        @param path: of the file, which is made if need be.
        @raise CacheUnusable: if that is impossible.
        """
        self._path = path
        try:
            if path is not None and not os.path.exists(path):
                # There is a secret in it.
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._connection = sqlite3.connect(path or ":memory:", isolation_level=None, timeout=5.0)
            if path is not None:
                self._connection.execute("PRAGMA journal_mode = WAL")
                self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            reason = getattr(error, "strerror", None) or error
            raise CacheUnusable(f"the device's file {path} cannot be used: {reason}") from None

    def close(self) -> None:
        """
        Use it no more.
        """
        self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """
        Change something, or nothing.
        """
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise CacheUnusable(f"the device's file {self._path} cannot be used: {error}") from None

    # Who this is.

    def _setting(self, name: str) -> str | None:
        """
        A setting.
        """
        row = self._connection.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return None if row is None else row[0]

    def _set(self, name: str, value: str | None) -> None:
        """
        Change a setting; None removes it.
        """
        with self._transaction() as connection:
            connection.execute("DELETE FROM settings WHERE name = ?", (name,))
            if value is not None:
                connection.execute("INSERT INTO settings VALUES (?, ?)", (name, value))

    @property
    def identity(self) -> Identity | None:
        """
        Who this is, as the check-in said.
        """
        value = self._setting("identity")
        return None if value is None else Identity(*map(int, value.split(":")))

    @identity.setter
    def identity(self, identity: Identity | None) -> None:
        self._set(
            "identity", None if identity is None else f"{identity.android_id}:{identity.security_token}"
        )

    def token(self, senderID: str, category: str) -> str | None:
        """
        The registration token of an app.
        """
        return self._setting(f"token {senderID} {category}")

    def setToken(self, senderID: str, category: str, token: str | None) -> None:
        """
        Keep the registration token of an app; None forgets it.
        """
        self._set(f"token {senderID} {category}", token)

    def forget(self) -> None:
        """
        The connection server does not know this device any more: it is a new
        one, with what it has not sent.
        """
        with self._transaction() as connection:
            connection.execute("DELETE FROM settings")
            connection.execute("DELETE FROM received")

    # What is to be sent.

    def keep(self, message: Unsent) -> int:
        """
        Keep a message until it is acknowledged.

        @return: its number.
        """
        with self._transaction() as connection:
            number = connection.execute(
                "INSERT INTO unsent (body) VALUES (?)", (msgspec.json.encode(message),)
            ).lastrowid
        assert number is not None
        return number

    def unsent(self) -> list[tuple[int, Unsent]]:
        """
        What has not been acknowledged, in order, with its numbers.
        """
        return [
            (number, msgspec.json.decode(body, type=Unsent))
            for number, body in self._connection.execute("SELECT number, body FROM unsent ORDER BY number")
        ]

    def sent(self, numbers: list[int]) -> None:
        """
        Messages are acknowledged, or of no more use.
        """
        with self._transaction() as connection:
            connection.executemany("DELETE FROM unsent WHERE number = ?", [(number,) for number in numbers])

    # What was received.

    def isNew(self, persistent_id: str) -> bool:
        """
        Whether a message has not been received yet.
        """
        row = self._connection.execute(
            "SELECT 1 FROM received WHERE persistent_id = ?", (persistent_id,)
        ).fetchone()
        return row is None

    def remember(self, persistent_id: str) -> None:
        """
        A message was received.
        """
        with self._transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO received (persistent_id) VALUES (?)", (persistent_id,))
            connection.execute(
                "DELETE FROM received WHERE number <= (SELECT max(number) FROM received) - ?", (REMEMBERED,)
            )

    def received(self, limit: int) -> list[str]:
        """
        The names of the newest messages that were received.
        """
        return [
            name
            for (name,) in self._connection.execute(
                "SELECT persistent_id FROM received ORDER BY number DESC LIMIT ?", (limit,)
            )
        ]
