"""
Tests for L{fcmxmpp.store.mailboxes} and L{fcmxmpp.store.registrations}, beyond
what every store has to do: time, damage, versions, and a model.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import closing
from hashlib import shake_128
from itertools import count
from shutil import rmtree
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from msgspec import structs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.messages import MAX_DOWNSTREAM_TTL, DownstreamMessage
from fcmxmpp.registrations import APP_LIMIT, COLLAPSE_KEYS, CONNECTED_LIMIT, Application, Mail
from fcmxmpp.store import database
from fcmxmpp.store.atonce import OFTEN, AtOnce
from fcmxmpp.store.database import connect
from fcmxmpp.store.mailboxes import SQLMailboxes, forgetExpired
from fcmxmpp.store.memory import MemoryStore
from fcmxmpp.store.registrations import SEEN, SQLRegistrations, forgetDevices
from fcmxmpp.store.sqlite import STALE, sweepDevices


def fired(result: Deferred[Any]) -> Any:
    """
    What a Deferred has fired with.
    """
    got: list[Any] = []
    result.addCallback(got.append)
    (value,) = got
    return value


class Kept:
    """
    Registrations and mailboxes in memory, and a device.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.commits = AtOnce()
        self.registrations = SQLRegistrations(self.commits, self.clock.seconds)
        self.mailboxes = SQLMailboxes(self.commits, self.clock.seconds)
        self.identity = fired(self.registrations.checkIn(None))
        self.token = fired(
            self.registrations.register(self.identity, Application(category="app", senderID="1"))
        )

    def post(self, message_id: str, **fields: Any) -> Any:
        """
        Post a message to the device.
        """
        message = DownstreamMessage(to=fields.pop("to", self.token), message_id=message_id, **fields)
        return fired(self.mailboxes.post("1", message))

    def load(self) -> list[Mail]:
        """
        What waits for the device.
        """
        mails: list[Mail] = fired(self.mailboxes.load(self.identity.android_id, 0, 5000))
        return mails

    def do(self, work: Any) -> Any:
        """
        Do something with the database.
        """
        return fired(self.commits.do(lambda connection, arguments: [work(connection)], None))


class KeptCase(SynchronousTestCase):
    """
    Has such things.
    """

    def setUp(self) -> None:
        """
        Have them.
        """
        self.kept = Kept()
        self.addCleanup(self.kept.commits.close)


class TimeTests(KeptCase):
    """
    What time does.
    """

    def test_expires(self) -> None:
        """
        What has expired is not delivered, and is taken away by the sweep, a few
        at a time; without a time to live it is four weeks.
        """
        for number in range(5):
            self.kept.post(f"m-{number}", time_to_live=60)
        self.kept.post("m-9")
        self.kept.clock.advance(60)
        self.assertEqual(["m-9"], [mail.message.message_id for mail in self.kept.load()])
        self.assertEqual(6, fired(self.kept.mailboxes.waiting(self.kept.identity.android_id)))
        now = self.kept.clock.seconds() + 1
        self.assertEqual(3, self.kept.do(lambda connection: forgetExpired(connection, now, 3)))
        self.assertEqual([False], self.kept.do(lambda connection: sweepDevices(connection, [now])))
        self.assertEqual(1, fired(self.kept.mailboxes.waiting(self.kept.identity.android_id)))
        self.kept.clock.advance(MAX_DOWNSTREAM_TTL)
        self.assertEqual([], self.kept.load())

    def test_expiredIsSentAgain(self) -> None:
        """
        A message whose C{message_id} is that of one that has expired, but has
        not been swept, is a new one.
        """
        self.kept.post("m-1", time_to_live=60)
        self.kept.clock.advance(60)
        (mail,) = self.kept.post("m-1", time_to_live=60).mails
        self.assertEqual([mail], self.kept.load())

    def test_expiredIsNotTooMany(self) -> None:
        """
        What has expired, but has not been swept, does not count: nothing is
        dropped for it, and nobody has to wait.
        """
        for isConnected, limit in ((False, APP_LIMIT), (True, CONNECTED_LIMIT)):
            kept = Kept()
            self.addCleanup(kept.commits.close)
            if isConnected:
                kept.mailboxes.connected.add(kept.identity.android_id)
            kept.post("kept")
            for number in range(limit - 1):
                kept.post(f"m-{number}", time_to_live=60)
            kept.clock.advance(60)
            posted = kept.post("new", dry_run=True)
            self.assertIsNone(posted.error)
            posted = kept.post("new")
            self.assertEqual(["new"], [mail.message.message_id for mail in posted.mails])
            self.assertEqual(["kept", "new"], [mail.message.message_id for mail in kept.load()])

    def test_expiredKeys(self) -> None:
        """
        The collapse keys of what has expired do not count either.
        """
        self.kept.post("kept", collapse_key="a")
        for key in "bcd":
            self.kept.post(key, collapse_key=key, time_to_live=60)
        self.kept.clock.advance(60)
        self.kept.post("new", collapse_key="e")
        self.assertEqual(["kept", "new"], [mail.message.message_id for mail in self.kept.load()])

    def test_expiredIsConfirmed(self) -> None:
        """
        What a device says that it has is told once, although it has expired
        since.
        """
        mails = [self.kept.post(f"m-{ttl}", time_to_live=ttl).mails[0] for ttl in (60, 600, 6000)]
        self.kept.clock.advance(60)
        names = [mail.persistent_id for mail in mails[:2]]
        confirm = self.kept.mailboxes.confirm
        self.assertEqual(mails[:2], fired(confirm(self.kept.identity.android_id, names)))
        self.assertEqual([], fired(confirm(self.kept.identity.android_id, names)))
        self.assertEqual(mails[2:], self.kept.load())

    def test_nowOrNeverToTopic(self) -> None:
        """
        A message to a topic that is for now or never is not for much later.
        """
        fired(self.kept.registrations.subscribe([self.kept.token], "/topics/x"))
        self.kept.mailboxes.connected.add(self.kept.identity.android_id)
        for seconds, expected in ((59, 1), (60, 0)):
            self.kept.post("m", to="/topics/x", time_to_live=0)
            self.kept.clock.advance(seconds)
            mails, _ = fired(self.kept.mailboxes.spread(10))
            self.assertEqual(expected, len(mails))

    def test_memorySweeps(self) -> None:
        """
        A store in memory sweeps, too, while it is used: what has expired, and
        devices that are gone.
        """
        store = MemoryStore(self.kept.clock.seconds)
        identity = fired(store.registrations.checkIn(None))
        application = Application(category="app", senderID="1")
        token = fired(store.registrations.register(identity, application))
        for number in range(3):
            message = DownstreamMessage(to=token, message_id=f"m-{number}", time_to_live=60)
            fired(store.mailboxes.post("1", message))
        self.kept.clock.advance(61)
        waiting = [fired(store.mailboxes.waiting(identity.android_id)) for _ in range(OFTEN)]
        self.assertEqual((3, 0), (waiting[0], waiting[-1]))
        self.kept.clock.advance(STALE)
        found = [fired(store.registrations.lookUp(token)) for _ in range(OFTEN)]
        self.assertEqual((token, None), (found[0].token, found[-1]))

    def test_manyExpired(self) -> None:
        """
        The sweep says that there is more.
        """
        for number in range(100):
            self.kept.post(f"m-{number}", time_to_live=1)
        now = self.kept.clock.seconds() + 2
        self.assertEqual([True, False], self.kept.do(lambda connection: sweepDevices(connection, [now, now])))

    def test_topicExpires(self) -> None:
        """
        A message to a topic whose time has run out goes to nobody any more.
        """
        fired(self.kept.registrations.subscribe([self.kept.token], "/topics/x"))
        self.kept.post("m-1", to="/topics/x", time_to_live=5)
        self.kept.clock.advance(5)
        self.assertEqual(([], False), fired(self.kept.mailboxes.spread(10)))

    def test_staleDevices(self) -> None:
        """
        A device that was not seen for long is forgotten, with all that is its;
        a login counts as seen, and is noted once a day.
        """
        seen = fired(self.kept.registrations.checkIn(None))
        self.kept.post("m-1")
        self.kept.clock.advance(SEEN - 1)
        self.assertTrue(fired(self.kept.registrations.isKnown(seen)))
        before = self.kept.clock.seconds() - 1
        self.assertEqual(
            2,
            self.kept.do(
                lambda c: c.execute("SELECT count(*) FROM devices WHERE seen < ?", (before,)).fetchone()[0]
            ),
        )
        self.kept.clock.advance(2)
        self.assertTrue(fired(self.kept.registrations.isKnown(seen)))
        self.kept.clock.advance(STALE)
        stale = self.kept.clock.seconds() - STALE - 1
        self.assertEqual(1, self.kept.do(lambda connection: forgetDevices(connection, stale, 10)))
        self.assertFalse(fired(self.kept.registrations.isKnown(self.kept.identity)))
        self.assertIsNone(fired(self.kept.registrations.lookUp(self.kept.token)))
        self.assertEqual([], self.kept.load())
        self.assertTrue(fired(self.kept.registrations.isKnown(seen)))


class DamageTests(KeptCase):
    """
    What cannot be read any more keeps nothing else from its way.
    """

    #: How many messages there were.
    count = 0

    def test_mail(self) -> None:
        """
        A mail that is damaged comes empty, and that is logged.
        """
        for number in range(3):
            self.kept.post(f"m-{number}", data={"n": str(number)})
        self.kept.do(lambda c: c.execute("UPDATE mail SET body = x'ff' WHERE message_id = 'm-1'"))
        with capturedLogs() as events:
            mails = self.kept.load()
        self.assertEqual([{"n": "0"}, {}, {"n": "2"}], [dict(mail.message.data) for mail in mails])
        self.assertEqual(1, len([event for event in events if "cannot be read" in event["log_format"]]))

    def test_topic(self) -> None:
        """
        A message to a topic that is damaged is given up, and the next one goes
        out.
        """
        fired(self.kept.registrations.subscribe([self.kept.token], "/topics/x"))
        for number in range(2):
            self.kept.post(f"m-{number}", to="/topics/x")
        self.kept.do(lambda c: c.execute("UPDATE broadcasts SET body = x'ff' WHERE number = 1"))
        with capturedLogs() as events:
            self.assertEqual(([], True), fired(self.kept.mailboxes.spread(10)))
        self.assertEqual(1, len(events))
        mails, isMore = fired(self.kept.mailboxes.spread(10))
        self.assertEqual((["m-1"], False), ([mail.message.message_id for mail in mails], isMore))

    def test_condition(self) -> None:
        """
        The same if it is its condition that is damaged.
        """
        fired(self.kept.registrations.subscribe([self.kept.token], "/topics/x"))
        for number in range(2):
            message = DownstreamMessage(condition="'x' in topics", message_id=f"m-{number}")
            fired(self.kept.mailboxes.post("1", message))
        self.kept.do(lambda c: c.execute("UPDATE broadcasts SET condition = '(' WHERE number = 1"))
        with capturedLogs() as events:
            self.assertEqual(([], True), fired(self.kept.mailboxes.spread(10)))
        self.assertEqual(1, len(events))
        mails, isMore = fired(self.kept.mailboxes.spread(10))
        self.assertEqual((["m-1"], False), ([mail.message.message_id for mail in mails], isMore))

    def test_deleted(self) -> None:
        """
        If it is the news of how many were dropped, those are not counted, and
        messages come as before.
        """
        bodies = (b"\xff", b"{}", b'{"data":{"total_deleted":"x"}}')
        self._drop()
        for body in bodies:
            self.kept.do(lambda c, body=body: c.execute("UPDATE mail SET body = ? WHERE kind = 1", (body,)))
            with capturedLogs() as events:
                self._drop()
            self.assertEqual(["cannot be read"], ["cannot be read" for _ in events])
            totals = [mail.message.data.get("total_deleted") for mail in self.kept.load()]
            self.assertEqual([f"{APP_LIMIT}"], [total for total in totals if total is not None])

    def _drop(self) -> None:
        """
        Post one message more than may wait.
        """
        while not any(len(self._post().mails) == 2 for _ in range(APP_LIMIT + 1)):
            pass

    def _post(self) -> Any:
        """
        Post another message.
        """
        self.count += 1
        return self.kept.post(f"m-{self.count}")


class CostTests(KeptCase):
    """
    What a statement looks at.
    """

    def test_noScan(self) -> None:
        """
        Nothing that is done for one message or one app looks at all there is of
        others, or sorts what is left of a topic.
        """
        statements: list[str] = []
        self.kept.do(lambda c: c.set_trace_callback(statements.append))
        fired(self.kept.registrations.subscribe([self.kept.token], "/topics/x"))
        mail = self.kept.post("m-1", collapse_key="a").mails[0]
        self.kept.post("m-2", collapse_key="b")
        message = DownstreamMessage(condition="'x' in topics || 'y' in topics", message_id="m-3")
        fired(self.kept.mailboxes.post("1", message))
        fired(self.kept.mailboxes.spread(10))
        self.kept.load()
        fired(self.kept.mailboxes.confirm(self.kept.identity.android_id, [mail.persistent_id]))
        fired(self.kept.registrations.remove(self.kept.token))
        self.kept.do(lambda c: c.set_trace_callback(None))
        looked = [each for each in statements if each.startswith(("SELECT", "DELETE", "UPDATE"))]
        self.assertTrue(any(each.startswith("DELETE FROM mail") for each in looked))
        for each in looked:
            plan = self.kept.do(lambda c, each=each: c.execute(f"EXPLAIN QUERY PLAN {each}").fetchall())
            for *_, step in plan:
                self.assertNotRegex(step, "SCAN (mail|subscriptions|registrations|devices|members)\\b", each)
                self.assertNotIn("FOR DISTINCT", step, each)


class Commits:
    """
    Does so many things in one transaction, with a database in memory.
    """

    def __init__(self, most: int) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        database.makeTables(self.connection)
        self.most = most
        self._jobs: list[tuple[Any, Any, Deferred[Any]]] = []

    def do(self, work: Any, argument: Any, urgent: bool = True) -> Deferred[Any]:
        """
        Do something, together with what else there is.
        """
        result: Deferred[Any] = Deferred()
        self._jobs.append((work, argument, result))
        if len(self._jobs) >= self.most:
            self.flush()
        return result

    def flush(self) -> None:
        """
        Do what is left; it is of one sort.
        """
        jobs, self._jobs = self._jobs, []
        with database.transaction(self.connection):
            results = jobs[0][0](self.connection, [argument for _, argument, _ in jobs]) if jobs else []
        for (_, _, deferred), result in zip(jobs, results, strict=True):
            deferred.callback(result)


def posted(
    most: int, messages: list[DownstreamMessage], before: int
) -> tuple[list[Any], list[Any], list[str]]:
    """
    Post messages, so many in one transaction.

    @param messages: to C{"0"} to C{"4"}, which are apps on two devices and a group,
        or to anything else.
    @param before: how many wait for C{"2"}, whose device is not connected; half of them
        have expired.
    @return: the results, what is in the store then, and the statements.
    """
    clock, commits, places = Clock(), Commits(1), count()
    clock.advance(1_000_000)

    def randomBytes(size: int) -> bytes:
        return shake_128(str(next(places)).encode()).digest(size)

    registrations = SQLRegistrations(commits, clock.seconds, randomBytes)
    mailboxes = SQLMailboxes(commits, clock.seconds, randomBytes)
    devices = [fired(registrations.checkIn(None)) for _ in range(2)]
    apps = [(0, "a", "1"), (0, "b", "1"), (1, "a", "1"), (1, "a", "2")]
    tokens = [
        fired(registrations.register(devices[device], Application(category=category, senderID=senderID)))
        for device, category, senderID in apps
    ]
    tokens.append(fired(registrations.createGroup("1", "group", tokens[:3])).notification_key)
    mailboxes.connected.add(devices[0].android_id)
    for number in range(before):
        message = DownstreamMessage(to=tokens[2], message_id=f"b-{number}", time_to_live=50 + number % 2)
        fired(mailboxes.post("1", message))
    clock.advance(50)
    statements: list[str] = []
    commits.connection.set_trace_callback(statements.append)
    commits.most = most
    results: list[Any] = []
    for message in messages:
        to = tokens[int(message.to)] if (message.to or "").isdigit() else message.to
        mailboxes.post("1", structs.replace(message, to=to)).addCallback(results.append)
    commits.flush()
    commits.connection.set_trace_callback(None)
    rows = [
        commits.connection.execute(f"SELECT * FROM {table} ORDER BY number").fetchall()
        for table in ("mail", "broadcasts")
    ]
    commits.connection.close()
    return results, rows, statements


class TogetherTests(SynchronousTestCase):
    """
    Messages that are posted in one transaction.
    """

    @settings(deadline=None, max_examples=300)
    @given(
        st.lists(
            st.one_of(
                # Most are as most are in life.
                *[
                    st.builds(
                        DownstreamMessage,
                        to=st.sampled_from(["0", "1", "2"]),
                        message_id=st.integers(0, 60).map("m-{}".format),
                    )
                ]
                * 4,
                st.builds(
                    DownstreamMessage,
                    to=st.sampled_from(["0", "1", "2", "2", "2", "3", "4", "/topics/x", "nobody"]),
                    message_id=st.sampled_from(["m-1", "m-2", "b-0", "b-1"]),
                    time_to_live=st.sampled_from([None, None, 0, 10]),
                    collapse_key=st.sampled_from([None, None, "x"]),
                    dry_run=st.sampled_from([None, None, True]),
                ),
            ),
            max_size=20,
        ),
        st.sampled_from([0, 2, APP_LIMIT - 3, APP_LIMIT]),
    )
    @example(
        [
            DownstreamMessage(to="1", message_id=f"m-{number}", collapse_key="x" if number % 2 else None)
            for number in range(6)
        ],
        0,
    )
    def test_sameAsAlone(self, messages: list[DownstreamMessage], before: int) -> None:
        """
        Whatever they are, it comes to the same as if each had one of its own.
        """
        self.assertEqual(posted(1, messages, before)[:2], posted(len(messages) + 1, messages, before)[:2])

    def test_fewStatements(self) -> None:
        """
        If they are for several apps and there is room, they are as many statements
        for 64 as for 16.
        """
        counts = []
        for many in (16, 64):
            messages = [
                DownstreamMessage(to=str(number % 3), message_id=f"m-{number}", data={})
                for number in range(many)
            ]
            results, _, statements = posted(many, messages, 0)
            self.assertEqual(
                list(range(1, many + 1)), [mail.number for each in results for mail in each.mails]
            )
            counts.append(len(statements))
        self.assertEqual(counts[0], counts[1])
        self.assertLess(counts[0], 9)


class VersionTests(SynchronousTestCase):
    """
    A store of the version before this one.
    """

    def test_migrated(self) -> None:
        """
        It is brought up to date, and what is in it stays.
        """
        directory = tempfile.mkdtemp()
        self.addCleanup(rmtree, directory)
        path = os.path.join(directory, "store.db")
        with closing(sqlite3.connect(path, isolation_level=None)) as old:
            for statement in database._STEPS[0].split(";"):
                old.execute(statement)
            old.execute("INSERT INTO entrusted (sender_id, expires, body) VALUES ('1', 2.0, x'7b7d')")
            old.execute(f"PRAGMA application_id = {database._APPLICATION}")
            old.execute("PRAGMA user_version = 1")
        with closing(connect(path)) as connection:
            self.assertEqual(2, connection.execute("PRAGMA user_version").fetchone()[0])
            rows = connection.execute("SELECT sender_id, expires FROM entrusted").fetchall()
            self.assertEqual([("1", 2.0)], rows)
            for table in ("devices", "registrations", "mail", "broadcasts", "device_groups"):
                self.assertEqual(0, connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


class Mailbox(RuleBasedStateMachine):
    """
    One app's mailbox, and a list that says what has to be in it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kept = Kept()
        #: What waits: message_id, collapse key, and until when.
        self.model: list[tuple[str | None, str | None, float]] = []
        self.dropped = 0
        self.count = 0

    @rule(
        key=st.sampled_from([None, None, "a", "b", "c", "d", "e", "f"]),
        ttl=st.sampled_from([None, 10, 1000]),
        times=st.sampled_from([1, 1, 3, 60]),
    )
    def post(self, key: str | None, ttl: int | None, times: int) -> None:
        """
        Messages come.
        """
        for _ in range(times):
            self.count += 1
            now = self.kept.clock.seconds()
            self.kept.post(f"m-{self.count}", collapse_key=key, time_to_live=ttl)
            # What has expired may be there until the sweep, but does not count.
            self.model = [each for each in self.model if each[2] > now]
            if key is not None:
                keys = list(dict.fromkeys(each for _, each, _ in self.model if each is not None))
                gone = key if key in keys else keys[0] if len(keys) >= COLLAPSE_KEYS else None
                if gone is not None:
                    self.model = [each for each in self.model if each[1] != gone]
            messages = [each for each in self.model if each[0] is not None]
            if len(messages) >= APP_LIMIT:
                self.dropped += len(messages)
                self.model = [(None, None, now + MAX_DOWNSTREAM_TTL)]
            self.model.append((f"m-{self.count}", key, now + (MAX_DOWNSTREAM_TTL if ttl is None else ttl)))

    @rule(which=st.integers(0, 100))
    def again(self, which: int) -> None:
        """
        A message is sent again: nothing if it waits, otherwise as a new one.
        """
        if not self.count:
            return
        name = f"m-{self.count - which % self.count}"
        now = self.kept.clock.seconds()
        live = [each for each in self.model if each[2] > now]
        if any(each[0] == name for each in live):
            assert self.kept.post(name, time_to_live=10).mails == []
        elif sum(each[0] is not None for each in live) < APP_LIMIT:
            assert len(self.kept.post(name, time_to_live=10).mails) == 1
            self.model = [*live, (name, None, now + 10)]

    @rule(which=st.lists(st.integers(0, 200), max_size=5))
    def deliver(self, which: list[int]) -> None:
        """
        The device has got some, by their numbers.
        """
        mails = self.kept.load()
        chosen = [mails[number] for number in which if number < len(mails)]
        fired(self.kept.mailboxes.delivered([mail.number for mail in chosen]))
        self._gone(chosen)

    @rule(which=st.lists(st.integers(0, 200), max_size=5, unique=True))
    def confirm(self, which: list[int]) -> None:
        """
        The device has got some, by their names.
        """
        mails = self.kept.load()
        chosen = [mails[number] for number in sorted(which) if number < len(mails)]
        names = [mail.persistent_id for mail in chosen]
        got = fired(self.kept.mailboxes.confirm(self.kept.identity.android_id, [*names, "x"]))
        assert got == chosen
        self._gone(chosen)

    def _gone(self, mails: list[Mail]) -> None:
        """
        Mails have left.
        """
        names = {mail.message.message_id for mail in mails}
        self.model = [each for each in self.model if each[0] not in names]
        if None in names:
            self.dropped = 0

    @rule(seconds=st.sampled_from([1, 10, 500]), isSwept=st.booleans())
    def wait(self, seconds: int, isSwept: bool) -> None:
        """
        Time goes by, and the sweep may take away what is of no use.
        """
        self.kept.clock.advance(seconds)
        now = self.kept.clock.seconds()
        if isSwept:
            self.kept.do(lambda connection: forgetExpired(connection, now, 10_000))
        self.model = [each for each in self.model if each[2] > now]

    @invariant()
    def same(self) -> None:
        """
        What waits is what has to, in order; and it is never too much.
        """
        now = self.kept.clock.seconds()
        mails = self.kept.load()
        expected = [each[0] for each in self.model if each[2] > now]
        assert [mail.message.message_id for mail in mails] == expected
        assert len(mails) <= APP_LIMIT + 1
        totals = [mail.message.data["total_deleted"] for mail in mails if mail.message.message_id is None]
        assert totals == ([str(self.dropped)] if None in expected else [])

    def teardown(self) -> None:
        """
        Forget it.
        """
        self.kept.commits.close()


class MailboxTests(SynchronousTestCase):
    """
    A mailbox against its model.
    """

    def test_model(self) -> None:
        """
        Whatever comes, in whatever order.
        """
        run_state_machine_as_test(
            Mailbox, settings=settings(deadline=None, stateful_step_count=25, max_examples=100)
        )
