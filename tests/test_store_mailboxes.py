"""
Tests for L{fcmxmpp.store.mailboxes} and L{fcmxmpp.store.registrations}, beyond
what every store has to do: time, damage, versions, and a model.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import closing
from shutil import rmtree
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.messages import MAX_DOWNSTREAM_TTL, DownstreamMessage
from fcmxmpp.registrations import APP_LIMIT, COLLAPSE_KEYS, Application, Mail
from fcmxmpp.store import database
from fcmxmpp.store.atonce import AtOnce
from fcmxmpp.store.database import connect
from fcmxmpp.store.mailboxes import SQLMailboxes, forgetExpired
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
            # What has expired is there until the sweep, and counts.
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

    @rule(seconds=st.sampled_from([1, 10, 500]))
    def wait(self, seconds: int) -> None:
        """
        Time goes by, and the sweep takes away what is of no use.
        """
        self.kept.clock.advance(seconds)
        now = self.kept.clock.seconds()
        self.kept.do(lambda connection: forgetExpired(connection, now, 10_000))
        self.model = [each for each in self.model if each[2] >= now]

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
            Mailbox, settings=settings(deadline=None, stateful_step_count=25, max_examples=25)
        )
