"""
Tests for L{fcmxmpp.store.database}.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Barrier, Thread

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from fcmxmpp.errors import StoreUnavailable
from fcmxmpp.store import database
from fcmxmpp.store.database import VERSION, connect, explain, inChunks, insert, lock, parseStore, transaction
from tests import faultyvfs
from tests.checkout import childEnvironment
from tests.faultyvfs import FaultyVFS


class Case(SynchronousTestCase):
    """
    A place for a store.
    """

    def setUp(self) -> None:
        """
        An empty directory.
        """
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name
        self.path = os.path.join(self.directory, "store")

    def make(self) -> None:
        """
        A store with something in it.
        """
        with closing(connect(self.path)) as connection:
            rows = [(f"tok-{n}", f"m-{n}", b"x" * 3000, 1.0) for n in range(20)]
            insert(connection, "inbox (from_, message_id, body, arrived)", rows)

    def rows(self) -> list[str]:
        """
        What L{make} has put into it.
        """
        with closing(connect(self.path)) as connection:
            return [each for (each,) in connection.execute("SELECT message_id FROM inbox ORDER BY number")]

    def refused(self, expected: str, create: bool = True) -> None:
        """
        The store cannot be opened: the text is this line, and tells nothing
        that is in the store.
        """
        error = self.assertRaises(StoreUnavailable, connect, self.path, create)
        self.assertEqual(expected, str(error))
        self.assertIsNone(error.__cause__)

    def other(self, code: str) -> subprocess.Popen[str]:
        """
        Another process, that runs this with C{path}; it waits for a line
        first.
        """
        imports = "import sqlite3, sys\nfrom fcmxmpp.store.database import connect, lock\n"
        program = f"{imports}path = sys.argv[1]\n{code}"
        process = subprocess.Popen(
            [sys.executable, "-c", program, self.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=childEnvironment(),
        )
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process


class ParseTests(SynchronousTestCase):
    """
    L{parseStore}.
    """

    def test_path(self) -> None:
        """
        The path is whatever stands behind the first colon, and is made
        absolute, so that it stays the same when the process goes elsewhere.
        """
        self.assertEqual("/var/lib/a:b", parseStore("sqlite:/var/lib/a:b"))
        self.assertEqual(os.path.join(os.getcwd(), "store"), parseStore("sqlite:store"))

    def test_refused(self) -> None:
        """
        Anything else is refused in one line: no kind, another one, no path.
        """
        for description in ("", "store", "/var/lib/store", "memory:", "SQLite:store", "sqlite", "sqlite:"):
            with self.assertRaisesRegex(ValueError, "^a store has to be sqlite:PATH$"):
                parseStore(description)


class ConnectTests(Case):
    """
    L{connect}.
    """

    def test_new(self) -> None:
        """
        A store that is not there is made, for nobody else to read; commits to
        it are durable.
        """
        with closing(connect(self.path)) as connection:

            def pragma(name: str) -> object:
                return connection.execute(f"PRAGMA {name}").fetchone()[0]

            self.assertEqual(("wal", 2), (pragma("journal_mode"), pragma("synchronous")))
            self.assertEqual((VERSION, 0x66636D78), (pragma("user_version"), pragma("application_id")))
            connection.execute("INSERT INTO known (digest, at) VALUES (x'00', 1.0)")
            for name in os.listdir(self.directory):
                self.assertEqual(0o600, os.stat(os.path.join(self.directory, name)).st_mode & 0o777)

    def test_empty(self) -> None:
        """
        An empty file becomes a store.
        """
        Path(self.path).touch()
        self.assertEqual([], self.rows())

    def test_notCreated(self) -> None:
        """
        Whoever only wants to look does not make a store.
        """
        self.refused(f"there is no such file: {self.path}", create=False)
        self.assertEqual([], os.listdir(self.directory))
        self.make()
        connect(self.path, create=False).close()

    def test_newer(self) -> None:
        """
        A store of a newer version is left alone.
        """
        self.make()
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute(f"PRAGMA user_version = {VERSION + 1}")
        self.refused(
            f"it is of version {VERSION + 1}, and this program knows versions up to {VERSION}: "
            "use the newer program again, or another file"
        )

    def test_otherProgram(self) -> None:
        """
        A database of another program is left alone, byte for byte; whether it
        bears a mark, a version, or nothing but a table.
        """
        for statement in ("PRAGMA application_id = 7", "PRAGMA user_version = 1", "CREATE TABLE inbox (a)"):
            with closing(sqlite3.connect(self.path)) as connection:
                connection.execute(statement)
            before = Path(self.path).read_bytes()
            self.refused("it is a database of another program: name another file")
            self.assertEqual(before, Path(self.path).read_bytes())
            os.unlink(self.path)

    def test_noDatabase(self) -> None:
        """
        A file that is no database is left alone.
        """
        text = b"Dear diary, this is my SECRET.\n" * 500
        Path(self.path).write_bytes(text)
        self.refused("the file is no database, or damaged: name another file")
        self.assertEqual(text, Path(self.path).read_bytes())

    def test_truncated(self) -> None:
        """
        A file that was cut short is noticed when it is opened.
        """
        self.make()
        os.truncate(self.path, os.path.getsize(self.path) // 8192 * 4096)
        self.refused("the file is damaged: stop the service, and restore the file or move it away")

    def test_corrupt(self) -> None:
        """
        A file of which every page but the first is rubbish is noticed when it
        is opened.
        """
        self.make()
        size = os.path.getsize(self.path)
        with open(self.path, "r+b") as file:
            file.seek(4096)
            file.write(b"SECRET" * ((size - 4096) // 6))
        self.refused("the file is damaged: stop the service, and restore the file or move it away")

    def test_noDirectory(self) -> None:
        """
        The directory is not made: more often than not its name is a mistake.
        """
        self.path = os.path.join(self.directory, "missing", "store")
        self.refused("it cannot be opened: No such file or directory")
        self.assertEqual([], os.listdir(self.directory))

    def test_isDirectory(self) -> None:
        """
        A directory is no store.
        """
        os.mkdir(self.path)
        self.refused("it cannot be opened: check that the directory is there, and the permissions")

    def test_directoryInTheWay(self) -> None:
        """
        Where the log cannot be made there is no store, even if the file could
        be opened.
        """
        self.make()
        os.mkdir(self.path + "-wal")
        self.refused("it cannot be opened: check that the directory is there, and the permissions")

    def test_readOnly(self) -> None:
        """
        A file that may not be written to is noticed when it is opened, and not
        when the first message comes; whoever only wants to look can.
        """
        if os.geteuid() == 0:
            raise SkipTest("root may write to everything")
        self.make()
        os.chmod(self.path, 0o400)
        self.refused("it is read-only: check the permissions of the file and of its directory")
        connect(self.path, create=False).close()

    def test_locked(self) -> None:
        """
        A store that another program keeps locked cannot be used; whoever only
        wants to look can.
        """
        self.patch(database, "_BUSY", 0.01)
        self.make()
        with closing(connect(self.path)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            self.refused("another program keeps it locked: end that program")
            with closing(connect(self.path, create=False)) as looking:
                self.assertEqual(20, looking.execute("SELECT count(*) FROM inbox").fetchone()[0])
        self.assertEqual(20, len(self.rows()))

    def test_lockedWhileNew(self) -> None:
        """
        The same for a file that is no store yet.
        """
        self.patch(database, "_BUSY", 0.05)
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            self.refused("another program keeps it locked: end that program")
        self.assertEqual([], self.rows())

    def test_otherConnection(self) -> None:
        """
        To open a store once more does not take the locks from a connection
        that this process has already: another process could then do away with
        the log that is in use.
        """
        self.make()
        with closing(connect(self.path)) as connection:
            connection.execute("SELECT count(*) FROM inbox").fetchone()
            connect(self.path).close()
            process = self.other(
                "connection = sqlite3.connect(path, timeout=0)\n"
                "try: print(connection.execute('PRAGMA journal_mode = DELETE').fetchone()[0])\n"
                "except sqlite3.OperationalError as error: print(error)"
            )
            self.assertEqual("database is locked\n", process.communicate()[0])


class DiskTests(Case):
    """
    L{connect}, on a disk that does not work.
    """

    skip = faultyvfs.unavailable()

    def test_faults(self) -> None:
        """
        What the disk refuses is told, in one line, and nothing is left that
        would be in the way later.
        """
        vfs = FaultyVFS()
        vfs.install()
        self.addCleanup(vfs.uninstall)
        for code, kind, text in (
            (faultyvfs.FULL, "write", "the disk is full: make room"),
            (
                faultyvfs.READONLY,
                "write",
                "it is read-only: check the permissions of the file and of its directory",
            ),
            (
                faultyvfs.IOERR_FSYNC,
                "sync",
                "the disk fails to read or write, or is full: check the disk and the kernel's log",
            ),
        ):
            # The first and the last step of making a store, and one in between.
            for suffix in ("", "-journal", "-wal"):
                self.path = os.path.join(self.directory, f"store-{code}{suffix}")
                vfs.fail(code, kind, suffix=suffix)
                self.refused(text)
                vfs.heal()
                self.assertEqual([], self.rows())

    def test_transaction(self) -> None:
        """
        A transaction that cannot be committed is undone, and the connection is
        fit for the next one.
        """
        vfs = FaultyVFS()
        vfs.install()
        self.addCleanup(vfs.uninstall)
        with closing(connect(self.path)) as connection:
            row = ("tok", "m", b"", 1.0)
            vfs.fail(faultyvfs.FULL, "write")
            with self.assertRaises(sqlite3.OperationalError), transaction(connection):
                insert(connection, "inbox (from_, message_id, body, arrived)", [row])
            self.assertFalse(connection.in_transaction)
            vfs.heal()
            with transaction(connection):
                insert(connection, "inbox (from_, message_id, body, arrived)", [row])
        self.assertEqual(["m"], self.rows())


class MigrationTests(Case):
    """
    Stores of older versions.
    """

    STEP = """
    -- A step that is to come.
    ALTER TABLE inbox ADD COLUMN colour TEXT NOT NULL DEFAULT 'blue';
    CREATE INDEX inbox_colour ON inbox (colour);
    """

    def later(self, *steps: str) -> None:
        """
        Be a later version.
        """
        self.patch(database, "_STEPS", (*database._STEPS, *steps))
        self.patch(database, "VERSION", len(database._STEPS))

    def version(self) -> int:
        """
        The version of the store.
        """
        with closing(sqlite3.connect(self.path)) as connection:
            version: int = connection.execute("PRAGMA user_version").fetchone()[0]
            return version

    def test_forward(self) -> None:
        """
        A store of an older version is brought up to date with all that is in
        it, once.
        """
        self.make()
        before = self.rows()
        self.later(self.STEP, "CREATE TABLE more (number)")
        for _ in range(2):
            self.assertEqual(before, self.rows())
            self.assertEqual(VERSION + 2, self.version())
        with closing(connect(self.path)) as connection:
            self.assertEqual(
                [("blue", 20)],
                connection.execute("SELECT colour, count(*) FROM inbox GROUP BY colour").fetchall(),
            )
            connection.execute("SELECT number FROM more").fetchall()

    def test_failing(self) -> None:
        """
        A step that fails leaves the store as it was: the older version can
        still use it.
        """
        self.make()
        self.later(self.STEP, "ALTER TABLE inbox ADD COLUMN more TEXT; SELECT nonsense")
        self.refused("no such column: nonsense")
        self.assertEqual(VERSION, self.version())
        with closing(sqlite3.connect(self.path)) as connection:
            names = [row[1] for row in connection.execute("PRAGMA table_info(inbox)")]
        self.assertNotIn("colour", names)

    def atOnce(self) -> None:
        """
        Open the store several times at once.
        """
        barrier = Barrier(4)
        errors: list[Exception] = []

        def run() -> None:
            barrier.wait()
            try:
                connect(self.path).close()
            except StoreUnavailable as error:
                errors.append(error)

        threads = [Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual([], errors)

    def test_atOnce(self) -> None:
        """
        Several may open a store at once that has to be made, or brought up to
        date: one of them does it, and the others wait.
        """
        paths = [os.path.join(self.directory, f"store-{number}") for number in range(15)]
        for self.path in paths:
            self.atOnce()
        self.later(self.STEP)
        for self.path in paths:
            self.atOnce()
            self.assertEqual(VERSION + 1, self.version())

    def test_processesAtOnce(self) -> None:
        """
        The same for processes.
        """
        processes = [
            self.other("print('ready', flush=True); input(); connect(path).close(); print('done')")
            for _ in range(3)
        ]
        for process in processes:
            assert process.stdout is not None
            self.assertEqual("ready\n", process.stdout.readline())
        self.assertEqual(["done\n"] * 3, self.answers(processes))
        self.assertEqual(VERSION, self.version())

    def answers(self, processes: list[subprocess.Popen[str]]) -> list[str]:
        """
        Let them all go, and see what they say.
        """
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return [process.communicate()[0] for process in processes]


class LockTests(Case):
    """
    L{lock}.
    """

    def test_once(self) -> None:
        """
        Only one has it, until it is closed.
        """
        descriptor = lock(self.path)
        with self.assertRaisesRegex(StoreUnavailable, "^another process is using it: each service needs"):
            lock(self.path)
        os.close(descriptor)
        os.close(lock(self.path))

    def test_otherProcess(self) -> None:
        """
        Another process has it for as long as it lives, however it dies.
        """
        process = self.other("descriptor = lock(path); print('locked', flush=True); input()")
        assert process.stdout is not None
        self.assertEqual("locked\n", process.stdout.readline())
        with self.assertRaises(StoreUnavailable):
            lock(self.path)
        process.kill()
        process.wait()
        os.close(lock(self.path))

    def test_impossible(self) -> None:
        """
        Where the file beside it cannot be made, it says so.
        """
        self.path = os.path.join(self.directory, "missing", "store")
        with self.assertRaisesRegex(StoreUnavailable, "^it cannot be opened: No such file or directory$"):
            lock(self.path)


class ExplainTests(SynchronousTestCase):
    """
    L{explain}.
    """

    def test_advice(self) -> None:
        """
        For whatever SQLite and the system say there is one line, which says
        what to do where that is known.
        """
        for error, expected in (
            (sqlite3.OperationalError("database or disk is full"), "the disk is full: make room"),
            (OSError(errno.ENOSPC, "No space left on device", "/a/path"), "the disk is full: make room"),
            (
                sqlite3.OperationalError("attempt to write a readonly database"),
                "it is read-only: check the permissions of the file and of its directory",
            ),
            (
                sqlite3.DatabaseError("database disk image is malformed"),
                "the file is damaged: stop the service, and restore the file or move it away",
            ),
            (
                sqlite3.DatabaseError("malformed database schema (SECRET)"),
                "the file is damaged: stop the service, and restore the file or move it away",
            ),
            (
                sqlite3.DatabaseError("file is not a database"),
                "the file is no database, or damaged: name another file",
            ),
            (
                sqlite3.OperationalError("database is locked"),
                "another program keeps it locked: end that program",
            ),
            (
                sqlite3.OperationalError("unable to open database file"),
                "it cannot be opened: check that the directory is there, and the permissions",
            ),
            (
                sqlite3.OperationalError("disk I/O error"),
                "the disk fails to read or write, or is full: check the disk and the kernel's log",
            ),
            (sqlite3.OperationalError("something new"), "something new"),
            (OSError(errno.EACCES, "Permission denied", "/a/path"), "it cannot be opened: Permission denied"),
            (OSError("of no number"), "it cannot be opened: of no number"),
            (StoreUnavailable("as it was said before"), "as it was said before"),
        ):
            self.assertEqual(expected, explain(error))


class ChunkTests(SynchronousTestCase):
    """
    L{inChunks}.
    """

    def test_all(self) -> None:
        """
        However many rows there are, each is in one chunk, in order, and there
        are few different lengths of chunks.
        """
        lengths = set()
        for count in range(700):
            chunks = list(inChunks(range(count)))
            self.assertEqual(list(range(count)), [row for chunk in chunks for row in chunk])
            lengths.update(len(chunk) for chunk in chunks)
        self.assertEqual({1, 2, 4, 8, 16, 32, 64, 128}, lengths)
