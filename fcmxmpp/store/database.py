"""
The file of a store: opening it, its schema and its versions, and what its
errors mean.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import TypeVar

from fcmxmpp.errors import StoreUnavailable


__all__ = [
    "VERSION",
    "Connection",
    "connect",
    "delete",
    "explain",
    "inChunks",
    "insert",
    "lastNumber",
    "lock",
    "makeTables",
    "marks",
    "parseStore",
    "transaction",
]

Connection = sqlite3.Connection

_Row = TypeVar("_Row")

#: Marks the file as ours: "fcmx".
_APPLICATION = 0x66636D78
#: Seconds that a transaction waits for another process, such as C{fcmxmpp}.
_BUSY = 5.0

#: What makes each version of the schema of the one before, starting from an
#: empty file.  What has been released is never changed: add a step.
_STEPS = (
    """
    -- Which upstream messages have been taken over: 16 bytes of BLAKE2b of the
    -- C{from} and the message_id, because these are long and there are many.
    -- One tree, in the order of the digests: a new row changes one page of it,
    -- and the sweep finds a hundred rows on each.
    CREATE TABLE known (
        digest BLOB PRIMARY KEY NOT NULL,
        at REAL NOT NULL
    ) WITHOUT ROWID;

    -- Upstream messages: to be handled, or (with a reason) dead letters.  A body
    -- comes last: it may fill pages of its own, which who reads what stands
    -- before it does not read.
    CREATE TABLE inbox (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        from_ TEXT NOT NULL,
        message_id TEXT NOT NULL,
        arrived REAL NOT NULL,
        tries INTEGER NOT NULL DEFAULT 0,
        reason TEXT,
        put_aside REAL,
        body BLOB NOT NULL
    );

    -- Downstream messages: to be sent, then (with an outcome) to be reported,
    -- then, if they failed and so have a reason, kept for a while to be looked
    -- at.
    CREATE TABLE outbox (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        message_id TEXT NOT NULL,
        target TEXT NOT NULL,
        since REAL NOT NULL,
        tries INTEGER,
        settled REAL,
        reported REAL,
        reason TEXT,
        outcome BLOB,
        body BLOB NOT NULL
    );
    CREATE UNIQUE INDEX outbox_unsettled ON outbox (message_id) WHERE outcome IS NULL;
    CREATE INDEX outbox_unreported ON outbox (number) WHERE outcome IS NOT NULL AND reported IS NULL;
    CREATE INDEX outbox_reported ON outbox (reported) WHERE reported IS NOT NULL;

    -- What devices have entrusted to a connection server.
    CREATE TABLE entrusted (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        sender_id TEXT NOT NULL,
        expires REAL NOT NULL,
        body BLOB NOT NULL
    );
    """,
    """
    -- Devices that have checked in.
    CREATE TABLE devices (
        android_id INTEGER PRIMARY KEY,
        security_token INTEGER NOT NULL,
        seen REAL NOT NULL
    );
    CREATE INDEX devices_seen ON devices (seen);

    -- Apps on them. A Web Push registration stands on another one, and has keys.
    CREATE TABLE registrations (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        token TEXT NOT NULL UNIQUE,
        android_id INTEGER NOT NULL,
        category TEXT NOT NULL,
        sender_id TEXT NOT NULL,
        subtype TEXT NOT NULL,
        p256dh TEXT,
        auth TEXT,
        stands_on INTEGER
    );
    CREATE INDEX registrations_app ON registrations (android_id, category, sender_id, subtype);
    CREATE INDEX registrations_standing ON registrations (stands_on) WHERE stands_on IS NOT NULL;

    -- Topics in lower case, and as they were written first.
    CREATE TABLE subscriptions (
        topic TEXT NOT NULL,
        registration INTEGER NOT NULL,
        name TEXT NOT NULL,
        since REAL NOT NULL,
        PRIMARY KEY (topic, registration)
    ) WITHOUT ROWID;
    CREATE INDEX subscriptions_registration ON subscriptions (registration);

    CREATE TABLE device_groups (
        number INTEGER PRIMARY KEY,
        notification_key TEXT NOT NULL UNIQUE,
        sender_id TEXT NOT NULL,
        name TEXT NOT NULL,
        UNIQUE (sender_id, name)
    );
    CREATE TABLE members (
        device_group INTEGER NOT NULL,
        registration INTEGER NOT NULL,
        PRIMARY KEY (device_group, registration)
    ) WITHOUT ROWID;
    CREATE INDEX members_registration ON members (registration);

    -- What waits for devices, or is on its way to them.
    CREATE TABLE mail (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        android_id INTEGER NOT NULL,
        registration INTEGER NOT NULL,
        category TEXT NOT NULL,
        kind INTEGER NOT NULL,
        sender_id TEXT NOT NULL,
        topic TEXT,
        message_id TEXT,
        collapse_key TEXT,
        persistent_id TEXT NOT NULL,
        posted REAL NOT NULL,
        expires REAL NOT NULL,
        body BLOB NOT NULL
    );
    CREATE INDEX mail_device ON mail (android_id, number);
    CREATE INDEX mail_app ON mail (android_id, category, kind, message_id);
    CREATE INDEX mail_collapse ON mail (android_id, category, collapse_key) WHERE collapse_key IS NOT NULL;
    CREATE INDEX mail_expires ON mail (expires);

    -- Messages to topics and conditions, and the last registration that they came to.
    CREATE TABLE broadcasts (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        sender_id TEXT NOT NULL,
        topic TEXT,
        condition TEXT,
        posted REAL NOT NULL,
        expires REAL NOT NULL,
        nonce TEXT NOT NULL,
        last INTEGER NOT NULL DEFAULT 0,
        body BLOB NOT NULL
    );

    CREATE TABLE secrets (
        name TEXT PRIMARY KEY NOT NULL,
        value BLOB NOT NULL
    );
    """,
)
#: The version that this code reads and writes.
VERSION = len(_STEPS)


def parseStore(description: str) -> str:
    """
    Read what people say for a store: C{sqlite:PATH}.

    @return: the absolute path of its file.
    @raise ValueError: if it is nothing of that kind; the text says what it has
        to look like, in one line.
    """
    kind, _, path = description.partition(":")
    if kind != "sqlite" or not path:
        raise ValueError("a store has to be sqlite:PATH")
    return os.path.abspath(path)


def connect(path: str, create: bool = True) -> Connection:
    """
    Open a store, and bring an older one up to date.

    Commits are durable: write-ahead log, C{synchronous} FULL.

    @param create: whether to make it if it is not there.
    @raise StoreUnavailable: if that is impossible; the text says why.
    """
    if not create and not os.path.exists(path):
        raise StoreUnavailable(f"there is no such file: {path}")
    connection = None
    try:
        if create and not os.path.exists(path):
            # Messages are nobody else's business.  One that is there must not
            # be opened: to close it would end the locks that this process has
            # on it, those of another connection included.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlite3.connect(path, timeout=_BUSY, isolation_level=None, cached_statements=256)
        # A damaged text must not keep the others from being read.
        connection.text_factory = partial(str, encoding="utf-8", errors="replace")
        _prepare(connection)
        if create:
            # Whether it can be written to.
            with transaction(connection):
                pass
    except (sqlite3.Error, OSError, StoreUnavailable) as error:
        if connection is not None:
            connection.close()
        raise StoreUnavailable(explain(error)) from None
    return connection


def _prepare(connection: Connection) -> None:
    """
    Check what there is, and bring it up to date.
    """
    # In one view of the file: another process may be making it right now.
    connection.execute("BEGIN")
    _checkVersion(connection)
    connection.execute("COMMIT")
    _useLog(connection)
    connection.execute("PRAGMA synchronous = FULL")
    # 16 MiB of pages in memory: enough for the upper part of a large index.
    connection.execute("PRAGMA cache_size = -16384")
    # Whoever commits then waits until so many pages are in their places: 10 ms
    # on a disk that does 40,000 in a second.  The usual 1000 is no faster.
    connection.execute("PRAGMA wal_autocheckpoint = 400")
    if _versionOf(connection) < VERSION:
        with transaction(connection):
            # Another process may have been faster.
            makeTables(connection, _checkVersion(connection))
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
    # Not only the header: a file cut short is noticed now.
    for table, column in (
        ("known", "digest"),
        ("inbox", "number"),
        ("outbox", "number"),
        ("entrusted", "number"),
        ("mail", "number"),
        ("registrations", "number"),
    ):
        connection.execute(f"SELECT {column} FROM {table} ORDER BY {column} DESC LIMIT 1").fetchone()


def makeTables(connection: Connection, version: int = 0) -> None:
    """
    Bring a database up to date.

    @param version: what it is now; 0 for an empty one.
    """
    for step in _STEPS[version:]:
        for statement in step.split(";"):
            connection.execute(statement)


def _useLog(connection: Connection) -> None:
    """
    Turn write-ahead logging on, if it is not.
    """
    until = time.monotonic() + _BUSY
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            # This is the one statement for which SQLite does not wait by itself
            # while another process makes the same file.
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)


def _versionOf(connection: Connection) -> int:
    """
    The version of the schema; 0 for an empty file.
    """
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def _checkVersion(connection: Connection) -> int:
    """
    See to it that this is a store, of a version that is known.

    @return: the version.
    """
    version = _versionOf(connection)
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    isEmpty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    if application != _APPLICATION and not (isEmpty and application == 0 and version == 0):
        raise StoreUnavailable("it is a database of another program: name another file")
    if version > VERSION:
        raise StoreUnavailable(
            f"it is of version {version}, and this program knows versions up to {VERSION}: "
            "use the newer program again, or another file"
        )
    return version


#: What SQLite says, and what is to be done.
_ADVICE = (
    ("disk is full", "the disk is full: make room"),
    ("readonly", "it is read-only: check the permissions of the file and of its directory"),
    ("malformed", "the file is damaged: stop the service, and restore the file or move it away"),
    ("not a database", "the file is no database, or damaged: name another file"),
    ("locked", "another program keeps it locked: end that program"),
    ("unable to open", "it cannot be opened: check that the directory is there, and the permissions"),
    ("disk I/O error", "the disk fails to read or write, or is full: check the disk and the kernel's log"),
)


def explain(error: BaseException) -> str:
    """
    What is wrong with a store, in one line, and what to do about it.
    """
    if isinstance(error, OSError):
        if error.errno == errno.ENOSPC:
            return _ADVICE[0][1]
        return f"it cannot be opened: {error.strerror or error}"
    text = str(error)
    if isinstance(error, sqlite3.Error):
        for said, advice in _ADVICE:
            if said in text:
                return advice
    return text


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """
    A transaction that writes.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def lock(path: str) -> int:
    """
    Claim a store for this process and its children, until the file is closed
    or the last of them dies.

    @return: the descriptor of the file beside it that is locked.
    @raise StoreUnavailable: if another process has it.
    """
    try:
        descriptor = os.open(path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreUnavailable(explain(error)) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise StoreUnavailable("another process is using it: each service needs a store of its own") from None
    return descriptor


def inChunks(rows: Sequence[_Row]) -> Iterator[Sequence[_Row]]:
    """
    Parts of some rows for statements of their own, of few different lengths, so
    that the statements are prepared once.
    """
    start = 0
    while start < len(rows):
        size = 128
        while size > len(rows) - start:
            size //= 2
        yield rows[start : start + size]
        start += size


def insert(connection: Connection, into: str, rows: Sequence[tuple[object, ...]]) -> None:
    """
    Insert rows, many in one statement, into a transaction that is undone if
    that is impossible.

    @param into: the table and its columns.
    """
    for chunk in inChunks(rows):
        values = ",".join(["(" + ",".join("?" * len(chunk[0])) + ")"] * len(chunk))
        # To be able to undo the statement alone, SQLite would copy each page that
        # it changes, more than a few of them into a temporary file.
        connection.execute(
            f"INSERT OR ROLLBACK INTO {into} VALUES {values}", list(chain.from_iterable(chunk))
        )


def delete(connection: Connection, rows: str, numbers: Sequence[int]) -> list[None]:
    """
    Delete rows.

    @param rows: the table, C{WHERE}, and what else holds for them.
    @return: a None for each, as a result.
    """
    for chunk in inChunks(numbers):
        connection.execute(f"DELETE FROM {rows} number IN ({marks(chunk)})", chunk)
    return [None] * len(numbers)


def lastNumber(connection: Connection, table: str) -> int:
    """
    The greatest number that a table has ever given.
    """
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
    return 0 if row is None else int(row[0])


def marks(values: Sequence[object]) -> str:
    """
    As many question marks as there are values.
    """
    return ",".join("?" * len(values))
