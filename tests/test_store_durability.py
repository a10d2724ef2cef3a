"""
What L{fcmxmpp.store.sqlite} has said to be committed outlasts power cuts, and
disks that are full or broken.
"""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from fcmxmpp.entries import Outcome
from fcmxmpp.errors import FCMError, StoreUnavailable
from fcmxmpp.messages import Ack, DownstreamMessage, UpstreamMessage
from fcmxmpp.payload import decodeDownstream, decodeFromConnectionServer
from fcmxmpp.store import sqlite
from fcmxmpp.store.database import connect
from fcmxmpp.store.inbox import digest
from fcmxmpp.store.sqlite import SQLiteStore
from tests import faultyvfs
from tests.faultyvfs import FaultyVFS, PowerCut


#: How many messages were remembered long ago, and at how many of all that are
#: remembered one step of the sweep looks.
OLD, STEP = 400, 25


def upstream(message_id: str) -> UpstreamMessage:
    """
    A message of a device; larger ones take several pages.
    """
    size = random.Random(message_id).choice((10, 500, 6000))
    return UpstreamMessage(from_="tok-A", message_id=message_id, data={"a": "x" * size})


def downstream(message_id: str) -> DownstreamMessage:
    """
    A message for a device.
    """
    return DownstreamMessage(to="tok-B", message_id=message_id, data={"a": "x" * 300})


class Case(TestCase):
    """
    A store in a file on a faulty disk.
    """

    skip = faultyvfs.unavailable()

    def setUp(self) -> None:
        """
        A store that is closed.
        """
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = os.path.realpath(directory.name)
        self.path = os.path.join(self.directory, "store")
        # The tests sweep when they want to.
        self.patch(sqlite, "STRIDE", 86400.0)
        self.vfs = FaultyVFS()

    def openStore(self, *pragmas: str) -> SQLiteStore:
        """
        Open the store on the faulty disk.

        @param pragmas: how it is to differ from what it usually is.
        """
        from twisted.internet import reactor  # noqa: TID251

        def connectAndTune(path: str) -> sqlite3.Connection:
            connection = connect(path)
            for pragma in pragmas:
                connection.execute(f"PRAGMA {pragma}")
            return connection

        self.patch(sqlite, "connect", connectAndTune)
        self.vfs.install()
        self.addCleanup(self.vfs.uninstall)
        store = SQLiteStore(self.path, reactor)
        store.startService()
        self.addCleanup(store.stopService)
        return store


class History:
    """
    What was done with one message: one stage after the other.

    @ivar begun: where the record was when each stage was asked for.
    @ivar ended: where it was when that was said to be done.
    """

    def __init__(self, vfs: FaultyVFS) -> None:
        self._vfs = vfs
        self.begun: list[int] = []
        self.ended: list[int] = []

    async def stage(self, doing: Callable[[], Deferred[Any]]) -> Any:
        """
        Do what comes next.
        """
        self.begun.append(len(self._vfs.operations))
        result = await doing()
        self.ended.append(len(self._vfs.operations))
        return result

    def possible(self, at: int) -> range:
        """
        How many of the stages may be found done after a power cut.
        """
        return range(sum(end <= at for end in self.ended), sum(begin < at for begin in self.begun) + 1)


class PowerCutTests(Case):
    """
    Power cuts, at any time.
    """

    async def use(self, store: SQLiteStore, rounds: int) -> None:
        """
        Use a store for all that it can do, by several who do not wait for each
        other.
        """
        self.inbox: dict[str, History] = {}
        self.outbox: dict[str, History] = {}
        self.entrusted: dict[str, History] = {}
        self.swept = History(self.vfs)
        # What remains of the old ones: at first, and after each step.
        self.left = [{digest(("old", f"{number}")) for number in range(OLD)}]

        async def receive(message_id: str) -> None:
            history = self.inbox[message_id] = History(self.vfs)
            entry = await history.stage(lambda: store.inbox.add(upstream(message_id)))
            if not message_id.endswith("0"):
                await history.stage(lambda: store.inbox.handled(entry.number))

        async def send(message_id: str) -> None:
            history = self.outbox[message_id] = History(self.vfs)
            message = downstream(message_id)
            entry = await history.stage(lambda: store.outbox.add(message))
            if not message_id.endswith("0"):
                outcome = Outcome(message=message, ack=Ack(message_id=message_id), tries=1, at=entry.since)
                await history.stage(lambda: store.outbox.settle(entry.number, outcome, True))
            if not message_id.endswith("1"):
                await history.stage(lambda: store.outbox.reported(entry.number))

        async def entrust(message_id: str) -> None:
            history = self.entrusted[message_id] = History(self.vfs)
            entry = await history.stage(lambda: store.entrusted.add("1", upstream(message_id), 9.0))
            if not message_id.endswith("0"):
                await history.stage(lambda: store.entrusted.remove(entry.number))

        async def sweep(after: bytes) -> bytes | None:
            to, _ = await self.swept.stage(lambda: store.commits.do(sqlite.sweep, (1.0, after, STEP)))
            self.left.append({each for each in self.left[-1] if each <= after or (to and each > to)})
            return to

        async def work(name: str) -> None:
            after: bytes | None = b""
            for number in range(rounds):
                await receive(f"{name}-{number}")
                await gatherResults(
                    [
                        Deferred.fromCoroutine(each(f"{name}-{number}.{place}"))
                        for place, each in enumerate((receive, send, send, entrust))
                    ]
                )
                if name == "sweeping" and after is not None:
                    after = await sweep(after)

        await gatherResults([Deferred.fromCoroutine(work(name)) for name in ("sweeping", "a", "b")])

    async def problems(self, rounds: int, cuts: int, *pragmas: str) -> list[str]:
        """
        What is found to be wrong after power cuts.

        @param cuts: how many of them, at random.
        """
        with closing(connect(self.path)) as connection:
            rows = [(digest(("old", f"{number}")), 0.0) for number in range(OLD)]
            connection.executemany("INSERT INTO known (digest, at) VALUES (?, ?)", rows)
        before = {self.path: Path(self.path).read_bytes()}
        # Several checkpoints, and in the midst of other things.
        store = self.openStore("wal_autocheckpoint = 60", *pragmas)
        await self.use(store, rounds)
        self.commits = store.commits.commits
        operations = list(self.vfs.operations)
        self.checkpoints = sum(each.path == self.path and each.kind == "sync" for each in operations)
        await store.stopService()
        self.vfs.uninstall()
        chance = random.Random(20160524)
        power = PowerCut(operations, before, chance)
        found: list[str] = []
        points = sorted(chance.sample(range(len(operations) + 1), min(cuts, len(operations) + 1)))
        for point in [*points, len(operations)]:
            power.advance(point)
            with TemporaryDirectory() as directory:
                power.leave(directory)
                found += [f"{point}: {each}" for each in self.check(os.path.join(directory, "store"), point)]
        return found

    def check(self, path: str, at: int) -> list[str]:
        """
        What is wrong with a store after a power cut.
        """
        try:
            with closing(connect(path)) as connection:
                ((integrity,),) = connection.execute("PRAGMA integrity_check").fetchmany(1)
                if integrity != "ok":
                    return [integrity]
                return self.compare(connection, at)
        except (FCMError, ValueError, sqlite3.Error) as error:
            return [f"unusable: {error}"]

    def compare(self, connection: sqlite3.Connection, at: int) -> list[str]:
        """
        What is in a store that ought not to be there, and the other way round.
        """
        found = []
        inbox, outbox, unreported, entrusted = (
            {
                message.message_id: message
                for (body,) in connection.execute(f"SELECT body FROM {rows}").fetchall()
                for message in [decode(body.decode())]
            }
            for rows, decode in (
                ("inbox", decodeFromConnectionServer),
                ("outbox WHERE outcome IS NULL", decodeDownstream),
                ("outbox WHERE outcome IS NOT NULL", decodeDownstream),
                ("entrusted", decodeFromConnectionServer),
            )
        )
        known = {each for (each,) in connection.execute("SELECT digest FROM known").fetchall()}
        for sort, histories, states in (
            ("inbox", self.inbox, (inbox,)),
            ("entrusted", self.entrusted, (entrusted,)),
            ("outbox", self.outbox, (outbox, unreported)),
        ):
            for message_id, history in histories.items():
                stages = [stage for stage, state in enumerate(states, 1) if message_id in state]
                if not stages:
                    # Not there yet, or not any more.
                    stages = [0, len(states) + 1]
                if not set(stages) & set(history.possible(at)):
                    found.append(f"{sort} {message_id}: {stages}, not {history.possible(at)}")
        for sort, state, make in (
            ("inbox", inbox, upstream),
            ("entrusted", entrusted, upstream),
            ("outbox", {**outbox, **unreported}, downstream),
        ):
            found += [f"{sort} {each}: changed" for each in state if state[each] != make(each)]
        for message_id, history in self.inbox.items():
            isKnown = digest(("tok-A", message_id)) in known
            if isKnown != (message_id in inbox) and not (isKnown and 2 in history.possible(at)):
                found.append(f"inbox {message_id}: known is {isKnown}")
        old = known & self.left[0]
        if old not in [self.left[steps] for steps in self.swept.possible(at)]:
            found.append(f"{OLD - len(old)} swept")
        return found

    async def test_nothingIsLost(self) -> None:
        """
        What has fired before a power cut is there after it, and what was
        removed before it is gone; everything else is there or not, and never
        in part.
        """
        found = await self.problems(45, 400)
        self.assertEqual([], found)
        self.assertGreater(self.commits, 200)
        self.assertGreater(self.checkpoints, 5)
        # To the end, in steps of which none could look at more than that.
        self.assertEqual(set(), self.left[-1])
        self.assertGreater(len(self.left), OLD // STEP)

    async def test_lossIsFound(self) -> None:
        """
        This test is able to fail: where commits are not synchronised it finds
        losses.
        """
        found = await self.problems(8, 40, "synchronous = NORMAL")
        self.assertTrue(found)

    async def test_damageIsFound(self) -> None:
        """
        The same where nothing at all is synchronised.
        """
        found = await self.problems(8, 40, "synchronous = OFF")
        self.assertTrue(found)
        self.assertFalse([each for each in self.vfs.operations if each.kind == "sync"])


class FaultTests(Case):
    """
    Disks that are full, broken or read-only for a while.
    """

    FAULTS = (
        (faultyvfs.FULL, "write", "the disk is full: make room"),
        (
            faultyvfs.IOERR_WRITE,
            "write",
            "the disk fails to read or write, or is full: check the disk and the kernel's log",
        ),
        (
            faultyvfs.IOERR_FSYNC,
            "sync",
            "the disk fails to read or write, or is full: check the disk and the kernel's log",
        ),
        (
            faultyvfs.READONLY,
            "write",
            "it is read-only: check the permissions of the file and of its directory",
        ),
    )

    async def loaded(self, store: SQLiteStore) -> list[str]:
        """
        What is in the inbox.
        """
        return [entry.message.message_id for entry in await store.inbox.load(0, 1000)]

    async def test_commit(self) -> None:
        """
        A commit that the disk refuses fails, in one line that says what to do;
        what was committed before is there, and as soon as the disk works again
        so does the store, as if the failed one had never been.
        """
        store = self.openStore()
        expected = []
        for number, (code, kind, text) in enumerate(self.FAULTS):
            await store.inbox.add(upstream(f"before-{number}"))
            expected.append(f"before-{number}")
            self.vfs.fail(code, kind, suffix="-wal")
            for _ in range(2):
                failing = [store.inbox.add(upstream(f"m-{number}")), store.outbox.add(downstream("m"))]
                for each in failing:
                    error = await self.assertFailure(each, StoreUnavailable)
                    self.assertEqual(text, str(error))
            self.vfs.heal()
            self.assertEqual(expected, await self.loaded(store))
            self.assertFalse(await store.inbox.isKnown(("tok-A", f"m-{number}")))
            self.assertIsNotNone(await store.inbox.add(upstream(f"m-{number}")))
            expected.append(f"m-{number}")
            self.assertEqual(0, await store.outbox.count())
        self.assertGreaterEqual(self.vfs.failures, 2 * len(self.FAULTS))
        await store.stopService()
        self.assertEqual(expected, await self.loaded(self.openStore()))

    async def test_failedCommitStaysUndone(self) -> None:
        """
        A commit of which only the synchronisation failed stands in the log as
        a whole.  It must not come back: its message was refused, and when it
        is sent again it is to become an entry that is handled.
        """
        store = self.openStore()
        await store.inbox.add(upstream("m-1"))
        # Of all files, so that the log is still there if somebody closes it.
        self.vfs.fail(faultyvfs.IOERR_FSYNC, "sync")
        await self.assertFailure(store.inbox.add(upstream("m-2")), StoreUnavailable)
        self.vfs.heal()
        self.assertIsNotNone(await store.inbox.add(upstream("m-2")))
        self.assertEqual(["m-1", "m-2"], await self.loaded(store))

    async def test_checkpoint(self) -> None:
        """
        While only the log can be written to, commits succeed; nothing of them
        is lost when the rest works again, or when it never does.
        """
        store = self.openStore("wal_autocheckpoint = 10")
        self.vfs.fail(faultyvfs.FULL, "write", suffix="store")
        for number in range(30):
            await store.inbox.add(upstream(f"m-{number}"))
        self.assertGreater(self.vfs.failures, 5)
        await store.stopService()
        self.vfs.heal()
        self.assertEqual([f"m-{number}" for number in range(30)], await self.loaded(self.openStore()))

    async def test_nowAndThen(self) -> None:
        """
        With a disk that fails now and then, in any way and anywhere, exactly
        those messages are there that were said to be.
        """
        store = self.openStore("wal_autocheckpoint = 20")
        chance = random.Random(20160524)
        expected = []
        for number in range(150):
            if chance.random() < 0.4:
                code, kind, _ = chance.choice(self.FAULTS)
                self.vfs.fail(
                    code, kind, suffix=chance.choice(("-wal", "store", "")), times=chance.randint(1, 3)
                )
            try:
                await store.inbox.add(upstream(f"m-{number}"))
            except StoreUnavailable:
                continue
            expected.append(f"m-{number}")
        self.assertGreater(len(expected), 50)
        self.assertLess(len(expected), 140)
        self.vfs.heal()
        self.assertEqual(expected, await self.loaded(store))
        await store.stopService()
        self.assertEqual(expected, await self.loaded(self.openStore()))

    async def test_start(self) -> None:
        """
        A store that cannot be made says so when it is started, and can be
        started once the disk works.
        """
        self.vfs.fail(faultyvfs.FULL, "write")
        with self.assertRaisesRegex(StoreUnavailable, "^the disk is full: make room$"):
            self.openStore()
        self.vfs.heal()
        self.assertEqual([], await self.loaded(self.openStore()))

    async def test_stop(self) -> None:
        """
        A store can be stopped while the disk does not work: what is under way
        fails, and nothing is lost.
        """
        store = self.openStore()
        await store.inbox.add(upstream("m-1"))
        self.vfs.fail(faultyvfs.IOERR_WRITE, "write", "sync")
        failing = self.assertFailure(store.inbox.add(upstream("m-2")), StoreUnavailable)
        await store.stopService()
        await failing
        self.vfs.heal()
        self.assertEqual(["m-1"], await self.loaded(self.openStore()))
