"""
Tests for L{fcmxmpp.store.browse}.
"""

from __future__ import annotations

import errno
import os
import pwd
import sqlite3
from contextlib import closing

from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.errors import AckTimedOut, Expired, FCMError, Nacked, NotSendable, StoreUnavailable
from fcmxmpp.store import browse, database, inbox, outbox
from fcmxmpp.store.browse import INBOX, OUTBOX, Box, Entry, Which
from fcmxmpp.store.database import lock, parseStore, transaction
from tests.stores import newStore


class ParseStoreTests(SynchronousTestCase):
    """
    L{parseStore}.
    """

    def test_path(self) -> None:
        """
        The path is absolute, whatever is in it.
        """
        self.assertEqual("/var/lib/a:b.db", parseStore("sqlite:/var/lib/a:b.db"))
        self.assertEqual(os.path.join(os.getcwd(), "store.db"), parseStore("sqlite:store.db"))

    def test_wrong(self) -> None:
        """
        Anything else is refused in one line, which does not quote it.
        """
        for wrong in ("", "store.db", "sqlite:", "sqlite", "postgres://secret@host/db"):
            error = self.assertRaises(ValueError, parseStore, wrong)
            self.assertEqual("a store has to be sqlite:PATH", str(error))


class BrowseTests(SynchronousTestCase):
    """
    What browses a store, and changes it.
    """

    def setUp(self) -> None:
        self.store = newStore(self)
        self.connection = browse.openStore(self.store.path)
        self.addCleanup(self.connection.close)

    def entries(self, box: Box, **which: object) -> list[Entry]:
        """
        All entries.
        """
        states = which.pop("states", box.states)
        return list(browse.entries(self.connection, box, Which(states=states, **which)))  # type: ignore[arg-type]

    def states(self, box: Box) -> list[tuple[int, str, str]]:
        """
        All entries, in short.
        """
        return [(entry.number, entry.message_id, entry.state) for entry in self.entries(box)]

    def test_inbox(self) -> None:
        """
        An inbox shows who sent what and when, and why it was put aside.
        """
        self.store.arrived("m-1", from_="tok-B", at=10.0)
        self.store.dead("m-2", reason="KeyError", at=20.0)
        common = {"reported": None, "outcome": None}
        self.assertEqual(
            [
                Entry(1, "waiting", "m-1", "tok-B", 10.0, 0, None, reason=None, **common),  # type: ignore[arg-type]
                Entry(2, "dead", "m-2", "tok-A", 20.0, 3, 21.0, reason="KeyError", **common),  # type: ignore[arg-type]
            ],
            self.entries(INBOX),
        )

    def test_outbox(self) -> None:
        """
        An outbox shows what waits, what is to be reported and what failed, and
        the reason in full for each sort of error.
        """
        self.store.sent("d-0")
        self.store.settled("d-1", None, report=True)
        errors: list[FCMError] = [
            Nacked("DEVICE_UNREGISTERED", "d"),
            Nacked("NEW_CODE", "d"),
            Expired("time is over"),
            AckTimedOut("no answer"),
            NotSendable("data", "is too big"),
            FCMError(""),
        ]
        for number, error in enumerate(errors, 2):
            self.store.settled(f"d-{number}", error, report=number == 2)
        entries = self.entries(OUTBOX)
        self.assertEqual(["waiting", "unreported", "unreported"] + ["failed"] * 5, [e.state for e in entries])
        self.assertEqual([None] + [2] * 7, [e.tries for e in entries])
        self.assertEqual([None] + [1001.0] * 7, [e.ended for e in entries])
        self.assertEqual([None] * 3 + [1001.0] * 5, [e.reported for e in entries])
        self.assertEqual(
            [
                None,
                None,
                "Nacked: DEVICE_UNREGISTERED",
                "Nacked: NEW_CODE",
                "Expired: time is over",
                "AckTimedOut: no answer",
                "NotSendable: data: is too big",
                "FCMError",
            ],
            [e.reason for e in entries],
        )

    def test_discreet(self) -> None:
        """
        An entry can be logged: it has neither token nor contents.
        """
        self.store.dead("m-1", from_="tok-B")
        (entry,) = browse.find(self.connection, INBOX, ["m-1"])["m-1"]
        self.assertEqual("Entry(number=1, state='dead', message_id='m-1')", repr(entry))

    def test_which(self) -> None:
        """
        Entries are chosen by state, by a part of the reason in whatever case,
        and by when they were put aside, or else arrived.
        """
        self.store.arrived("m-1", at=100.0)
        self.store.dead("m-2", reason="KeyError: 'a%b'", at=199.0)
        self.store.dead("m-3", reason="ValueError", at=299.0)

        def chosen(**which: object) -> list[str]:
            return [entry.message_id for entry in self.entries(INBOX, **which)]

        self.assertEqual(["m-2", "m-3"], chosen(states=("dead",)))
        self.assertEqual(["m-2"], chosen(reason="KEYERROR: 'a%"))
        self.assertEqual([], chosen(reason="a%%b"))
        self.assertEqual(["m-1", "m-2"], chosen(before=300.0))
        self.assertEqual(["m-2", "m-3"], chosen(after=200.0))
        self.assertEqual(["m-2"], chosen(after=200.0, before=300.0))
        which = Which(states=INBOX.states, after=200.0)
        self.assertEqual([2, 3], browse.numbers(self.connection, INBOX, which))
        self.assertEqual({"dead": 2}, browse.counts(self.connection, INBOX, which))

    def test_orderAndLimit(self) -> None:
        """
        Entries come in the order of numbers, or the other way round, and no
        more than wanted.
        """
        for message_id in ("m-1", "m-2", "m-3"):
            self.store.arrived(message_id)
        which = Which(states=INBOX.states)
        found = browse.entries(self.connection, INBOX, which, limit=2, newestFirst=True)
        self.assertEqual([3, 2], [entry.number for entry in found])
        found = browse.entries(self.connection, INBOX, which, limit=2)
        self.assertEqual([1, 2], [entry.number for entry in found])

    def test_find(self) -> None:
        """
        A name is a number, a message_id, or both.
        """
        self.store.arrived("2")
        self.store.arrived("m-1")
        self.store.arrived("m-1", from_="tok-B")

        def found(name: str, by: str | None = None) -> list[int]:
            return [entry.number for entry in browse.find(self.connection, INBOX, [name], by)[name]]

        self.assertEqual([1, 2], found("2"))
        self.assertEqual([2], found("2", "number"))
        self.assertEqual([1], found("2", "message_id"))
        self.assertEqual([2, 3], found("m-1"))
        self.assertEqual([], found("m-1", "number"))
        self.assertEqual([], found("9" * 40))
        self.assertEqual([], found("²"))

    def test_findMany(self) -> None:
        """
        Many names are found at once, in few queries; each has what it fits.
        """
        self.patch(browse, "AT_ONCE", 8)
        names = []
        for number in range(1, 6):
            self.store.arrived(f"m-{number}")
            names += [f"m-{number}", f"0{number}"]
        queries: list[str] = []
        self.connection.set_trace_callback(queries.append)
        found = browse.find(self.connection, INBOX, [*names, "nowhere", *names])
        self.assertEqual(3, len(queries))
        self.assertEqual([*names, "nowhere"], list(found))
        self.assertEqual([], found.pop("nowhere"))
        for name, entries in found.items():
            self.assertEqual([int(name.removeprefix("m-"))], [entry.number for entry in entries])

    def test_snapshot(self) -> None:
        """
        Within a snapshot nothing changes, and nobody is kept from writing.
        """
        self.store.arrived("m-1")
        with browse.snapshot(self.connection):
            self.assertEqual(1, len(self.entries(INBOX)))
            self.store.arrived("m-2")
            self.assertEqual(1, len(self.entries(INBOX)))
        self.assertEqual(2, len(self.entries(INBOX)))

    def test_snapshotThatBroke(self) -> None:
        """
        What broke inside a snapshot is what is raised.
        """
        with self.assertRaises(ZeroDivisionError), browse.snapshot(self.connection):
            self.connection.execute("ROLLBACK")
            raise ZeroDivisionError

    def test_retryInbox(self) -> None:
        """
        A dead letter that is retried is a new message at the end: a greater
        number than any that was ever given, no tries, no reason, the same
        message and time of arrival.
        """
        self.store.dead("m-1", at=10.0)
        last = self.store.arrived("m-2")
        with transaction(self.connection):
            inbox.noteHandled(self.connection, [last])
        self.assertEqual(browse.Done(1, []), browse.retry(self.connection, INBOX, [1], 99.0))
        ((entry,),) = inbox.load(self.connection, [(last, 10)])
        self.assertEqual(
            (3, "m-1", 0, 10.0), (entry.number, entry.message.message_id, entry.tries, entry.arrived)
        )
        self.assertEqual([(3, "m-1", "waiting")], self.states(INBOX))

    def test_retryInOrder(self) -> None:
        """
        What is retried together keeps its order, whatever order was asked for.
        """
        for message_id in ("m-1", "m-2", "m-3"):
            self.store.dead(message_id)
        browse.retry(self.connection, INBOX, [3, 1, 2], 99.0)
        self.assertEqual(["m-1", "m-2", "m-3"], [message_id for _, message_id, _ in self.states(INBOX)])

    def test_retryUndecodable(self) -> None:
        """
        What is no message for a handler is refused, and stays.
        """
        bodies = [
            b"{",
            b"\xff",
            b'{"from":"t","message_id":"m","message_type":"new"}',
        ]
        for number, body in enumerate(bodies):
            self.store.dead(f"m-{number}", body=body)
        before = self.states(INBOX)
        done = browse.retry(self.connection, INBOX, [1, 2, 3], 99.0)
        self.assertEqual(0, done.count)
        self.assertEqual(
            [
                (1, "m-0", "it can never be decoded (Input data was truncated)"),
                (2, "m-1", "it can never be decoded (Not Unicode)"),
                (3, "m-2", "it can never be decoded (Neither a message nor a receipt)"),
            ],
            done.refused,
        )
        self.assertEqual(before, self.states(INBOX))

    def test_retryWaiting(self) -> None:
        """
        What waits is refused; what is gone is passed over.
        """
        self.store.arrived("m-1")
        done = browse.retry(self.connection, INBOX, [1, 77], 99.0)
        self.assertEqual(browse.Done(0, [(1, "m-1", "it is waiting already")]), done)

    def test_retryOutbox(self) -> None:
        """
        A failed message that is retried is a new one at the end, sent now.
        """
        self.store.settled("d-1", Expired("over"))
        self.store.sent("d-2")
        self.assertEqual(browse.Done(1, []), browse.retry(self.connection, OUTBOX, [1], 99.0))
        ((entry,),) = outbox.load(self.connection, [(2, 10)])
        self.assertEqual((3, "d-1", 99.0), (entry.number, entry.message.message_id, entry.since))
        self.assertEqual([(2, "d-2", "waiting"), (3, "d-1", "waiting")], self.states(OUTBOX))
        (new,) = browse.find(self.connection, OUTBOX, ["3"])["3"]
        self.assertEqual((None, None, None, "tok-A"), (new.outcome, new.ended, new.reported, new.peer))

    def test_retryOutboxTwice(self) -> None:
        """
        Of several messages with one message_id only one can be waiting.
        """
        self.store.settled("d-1", Expired("over"))
        self.store.settled("d-1", Expired("over"))
        done = browse.retry(self.connection, OUTBOX, [1, 2], 99.0)
        self.assertEqual(1, done.count)
        why = "another message with its message_id is waiting"
        self.assertEqual([(2, "d-1", why)], done.refused)
        self.assertEqual([(2, "d-1", why)], browse.retry(self.connection, OUTBOX, [2], 99.0).refused)

    def test_retryUnreported(self) -> None:
        """
        A message whose outcome is yet to be reported has it reported first.
        """
        self.store.settled("d-1", Expired("over"), report=True)
        done = browse.retry(self.connection, OUTBOX, [1], 99.0)
        self.assertEqual(browse.Done(0, [(1, "d-1", "its outcome has not been reported yet")]), done)

    def test_retryFails(self) -> None:
        """
        A step is done as a whole or not at all.
        """
        self.store.dead("m-1")
        self.connection.execute(
            "CREATE TEMP TRIGGER t BEFORE DELETE ON inbox BEGIN SELECT raise(FAIL, 'no'); END"
        )
        self.assertRaises(sqlite3.Error, browse.retry, self.connection, INBOX, [1], 99.0)
        self.assertEqual([(1, "m-1", "dead")], self.states(INBOX))

    def test_drop(self) -> None:
        """
        What is in a state that may be dropped is deleted, other messages are
        refused, and one that is dropped is known for all that.
        """
        self.store.dead("m-1")
        self.store.arrived("m-2")
        done = browse.drop(self.connection, INBOX, [1, 2, 3], ("dead",))
        self.assertEqual(1, done.count)
        ((number, message_id, why),) = done.refused
        self.assertEqual((2, "m-2"), (number, message_id))
        self.assertIn("it is waiting, and a service", why)
        self.assertEqual([(2, "m-2", "waiting")], self.states(INBOX))
        self.assertEqual([True], inbox.areKnown(self.connection, [inbox.digest(("tok-A", "m-1"))]))
        self.assertEqual(1, browse.drop(self.connection, INBOX, [2], ("dead", "waiting")).count)

    def test_dropUnreported(self) -> None:
        """
        An outcome that is yet to be reported is only dropped if that is said.
        """
        self.store.settled("d-1", None, report=True)
        done = browse.drop(self.connection, OUTBOX, [1], ("failed",))
        self.assertIn("its outcome has not been reported yet", done.refused[0][2])
        self.assertEqual(1, browse.drop(self.connection, OUTBOX, [1], ("failed", "unreported")).count)
        self.assertEqual([], self.states(OUTBOX))


class OpenTests(SynchronousTestCase):
    """
    L{browse.openStore} and L{browse.unused}.
    """

    def setUp(self) -> None:
        self.path = newStore(self).path

    def refused(self, path: str) -> str:
        """
        Why a store is not opened.
        """
        return str(self.assertRaises(StoreUnavailable, browse.openStore, path))

    def test_nothingThere(self) -> None:
        """
        A store that is not there is not made.
        """
        path = self.path + "2"
        self.assertEqual("there is no such file", self.refused(path))
        self.assertFalse(os.path.exists(path))

    def test_empty(self) -> None:
        """
        An empty file is left so.
        """
        path = self.path + "2"
        open(path, "w").close()
        self.assertIn("the file is empty", self.refused(path))
        self.assertEqual(0, os.path.getsize(path))

    def test_noDatabase(self) -> None:
        """
        Something else is refused, and nothing is left beside it.
        """
        path = self.path + "2"
        with open(path, "w") as file:
            file.write("something else" * 100)
        self.assertIn("is no database", self.refused(path))
        for notAFile in (os.path.dirname(path), os.devnull):
            self.assertEqual("that is no file: name another one", self.refused(notAFile))
        os.unlink(path)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE t (a)")
        self.assertIn("of another program", self.refused(path))
        self.assertFalse(os.path.exists(path + ".lock"))

    def test_noWayThere(self) -> None:
        """
        A path that cannot be followed is not said to lead nowhere.
        """
        path = self.path + "2"
        os.symlink(path, path)
        self.assertEqual("it cannot be opened: Too many levels of symbolic links", self.refused(path))
        self.assertEqual("there is no such file", self.refused(os.path.join(self.path, "store.db")))

        def stat(path: str) -> os.stat_result:
            raise PermissionError(errno.EACCES, "Permission denied")

        self.patch(os, "stat", stat)
        self.assertEqual(
            "it cannot be opened: Permission denied: run this as the user that the service runs as",
            self.refused(self.path),
        )

    def test_ofSomebodyElse(self) -> None:
        """
        A store that may only be read is not opened: the files that SQLite makes
        beside it would belong to whoever looks, and keep the service out.
        """
        self.patch(os, "access", lambda path, mode: mode == os.R_OK)
        self.assertEqual(
            "it is read-only: check the permissions of the file and of its directory", self.refused(self.path)
        )
        owner = pwd.getpwuid(os.stat(self.path).st_uid)
        self.patch(os, "geteuid", lambda: owner.pw_uid + 1)
        self.assertEqual(f"it belongs to {owner.pw_name}: run this as that user", self.refused(self.path))

        def getpwuid(uid: int) -> None:
            raise KeyError(uid)

        self.patch(pwd, "getpwuid", getpwuid)
        self.assertEqual(f"it belongs to user {owner.pw_uid}: run this as that user", self.refused(self.path))

    def older(self) -> None:
        """
        Let there be a newer version of stores.
        """
        steps = (*database._STEPS, "ALTER TABLE inbox ADD COLUMN more TEXT")
        self.patch(database, "_STEPS", steps)
        self.patch(database, "VERSION", len(steps))
        self.patch(browse, "VERSION", len(steps))

    def test_older(self) -> None:
        """
        A store of an earlier version is brought up to date when no service
        has it.
        """
        self.older()
        with closing(browse.openStore(self.path)) as connection:
            self.assertEqual(database.VERSION, database._versionOf(connection))
        # It was for that only that it was kept.
        os.close(lock(self.path))

    def test_olderInUse(self) -> None:
        """
        It is left as it is for the older service that has it.
        """
        self.addCleanup(os.close, lock(self.path))
        self.older()
        self.assertEqual(
            f"it is of version {database.VERSION - 1}, and a service of that version is using it: "
            "stop that first",
            self.refused(self.path),
        )
        with closing(sqlite3.connect(self.path)) as connection:
            self.assertEqual(database.VERSION - 1, database._versionOf(connection))

    def test_inUse(self) -> None:
        """
        A store of this version is opened while a service has it.
        """
        self.addCleanup(os.close, lock(self.path))
        browse.openStore(self.path).close()

    def test_unused(self) -> None:
        """
        Whether a service has a store can be told, and no service gets it
        meanwhile.
        """
        with browse.unused(self.path) as isUnused:
            self.assertTrue(isUnused)
            self.assertRaises(StoreUnavailable, lock, self.path)
            with browse.unused(self.path) as again:
                self.assertFalse(again)
        with browse.unused(self.path) as isUnused:
            self.assertTrue(isUnused)

    def test_lockOfRoot(self) -> None:
        """
        The file that is locked belongs to whom the store belongs to, so that
        root's look at it does not keep the service out.
        """
        self.patch(os, "geteuid", lambda: 0)
        chowned: list[tuple[int, int]] = []
        self.patch(os, "chown", lambda descriptor, *owner: chowned.append(owner))
        with browse.unused(self.path):
            pass
        status = os.stat(self.path)
        self.assertEqual([(status.st_uid, status.st_gid)], chowned)
        with browse.unused(self.path):
            pass
        self.assertEqual(1, len(chowned))
