"""
What becomes of messages that a store holds and that cannot be read any more,
because its file was damaged or written by a version with other rules: they are
put aside, and hold up none of the others.
"""

from __future__ import annotations

from typing import Any

from twisted.logger import capturedLogs, eventAsText
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.entries import DeadLetter, Outcome, UnreadableEntry, describe
from fcmxmpp.errors import Expired, Nacked, NotSendable, StoreUnavailable, Unreadable
from fcmxmpp.messages import DownstreamMessage, UpstreamMessage
from fcmxmpp.store import browse
from fcmxmpp.store.database import transaction
from fcmxmpp.store.groupcommit import LINGER
from fcmxmpp.store.sqlite import SQLiteStore
from tests.delivering import upstream
from tests.downstream import to
from tests.handreactor import HandReactor
from tests.outbox import OutboxCase
from tests.stores import newStore
from tests.test_inbox import InboxCase
from tests.test_server_store import StoreCase


def unreadable(number: int, message_id: str = "bad", peer: str = "TOKEN") -> UnreadableEntry:
    """
    What can be said of a message that cannot be read.
    """
    return UnreadableEntry(
        number=number, message_id=message_id, peer=peer, body=b"SECRET", reason="Invalid JSON"
    )


class FileTests(SynchronousTestCase):
    """
    A file of which some rows are damaged.
    """

    def setUp(self) -> None:
        """
        A store with two messages in each of its parts.
        """
        self.filler = newStore(self)
        self.reactor = HandReactor()
        self.store = SQLiteStore(self.filler.path, self.reactor)
        self.store.startService()
        self.addCleanup(lambda: self.reactor.turnUntil(self.store.stopService()))
        for message_id in ("1", "2"):
            message = UpstreamMessage(from_="tok", message_id=message_id, data={})
            self.result(self.store.inbox.add(message))
            self.result(self.store.outbox.add(DownstreamMessage(to="tok", message_id=message_id)))
            self.result(self.store.entrusted.add("111", message, 9e9))
        self.other = self.filler.connect()
        self.addCleanup(self.other.close)

    def result(self, deferred: Any) -> Any:
        """
        What a Deferred fires with.
        """
        # Some of it nobody waits for.
        self.reactor.advance(LINGER)
        return self.successResultOf(self.reactor.turnUntil(deferred))

    def damage(self, statement: str) -> None:
        """
        Change what the file holds.
        """
        with transaction(self.other):
            self.other.execute(statement)

    def test_inbox(self) -> None:
        """
        A message with a damaged body is named, with what there is of it, in
        its place among the others; it can be put aside, and keeps its body.
        """
        for body, reason in (
            (b"\xff{}", "Not Unicode"),
            (b'{"message_type":"ack","from":"tok","message_id":"1"}', "Neither a message nor a receipt"),
            (b"nonsense", None),
        ):
            self.damage(f"UPDATE inbox SET body = x'{body.hex()}' WHERE number = 1")
            bad, good = self.result(self.store.inbox.load(0, 10))
            self.assertEqual((1, "1", "tok", body), (bad.number, bad.message_id, bad.peer, bad.body))
            self.assertIn(reason or "JSON", bad.reason)
            self.assertEqual((2, "2"), (good.number, good.message.message_id))
        letter = DeadLetter(number=1, from_="tok", message_id="1", body=b"", reason=bad.reason)
        self.assertTrue(self.result(self.store.inbox.putAside(letter)))
        self.assertEqual([2], [entry.number for entry in self.result(self.store.inbox.load(0, 10))])
        (kept,) = browse.find(self.other, browse.INBOX, ["1"], "number")["1"]
        self.assertEqual(("dead", b"nonsense", bad.reason), (kept.state, kept.body, kept.reason))

    def test_outbox(self) -> None:
        """
        So it is with a message to be sent; it can be settled and reported like
        any other.
        """
        self.damage("UPDATE outbox SET body = x'00' WHERE number = 1")
        bad, good = self.result(self.store.outbox.load(0, 10))
        self.assertEqual((1, "1", "tok", b"\0"), (bad.number, bad.message_id, bad.peer, bad.body))
        self.assertEqual("2", good.message.message_id)
        message = DownstreamMessage(to="tok", message_id="1")
        outcome = Outcome(message=message, error=Unreadable(bad.reason), at=5.0)
        self.result(self.store.outbox.settle(1, outcome, True))
        (settled,) = self.result(self.store.outbox.unreported(0, 10))
        self.assertEqual((message, 5.0), (settled.outcome.message, settled.outcome.at))
        self.assertIsInstance(settled.outcome.error, Unreadable)
        self.result(self.store.outbox.reported(1))
        self.assertEqual([], self.result(self.store.outbox.unreported(0, 10)))
        (kept,) = browse.find(self.other, browse.OUTBOX, ["1"], "number")["1"]
        self.assertEqual(("failed", f"Unreadable: {bad.reason}"), (kept.state, kept.reason))

    def test_outcome(self) -> None:
        """
        An outcome that is damaged is reported as one that cannot be read, with
        the time and the tries that the file has; then it is done with.
        """
        outcome = Outcome(message=to("1"), error=Expired("over"), tries=3, at=5.0)
        self.result(self.store.outbox.settle(1, outcome, True))
        self.damage("UPDATE outbox SET outcome = x'ff' WHERE number = 1")
        (settled,) = self.result(self.store.outbox.unreported(0, 10))
        self.assertIsInstance(settled.outcome.error, Unreadable)
        self.assertEqual((3, 5.0), (settled.outcome.tries, settled.outcome.at))
        self.result(self.store.outbox.reported(1))
        self.assertEqual([], self.result(self.store.outbox.unreported(0, 10)))

    def test_entrusted(self) -> None:
        """
        What a device has entrusted is named, too.
        """
        self.damage("UPDATE entrusted SET body = x'7b' WHERE number = 1")
        bad, good = self.result(self.store.entrusted.load(0, 10))
        self.assertEqual((1, "111", b"{"), (bad.number, bad.peer, bad.body))
        self.assertEqual("2", good.message.message_id)

    def test_text(self) -> None:
        """
        A text that is not UTF-8 any more can be read nevertheless.
        """
        self.damage("UPDATE inbox SET message_id = CAST(x'ff31' AS TEXT), body = x'' WHERE number = 1")
        bad, _ = self.result(self.store.inbox.load(0, 10))
        self.assertEqual("\N{REPLACEMENT CHARACTER}1", bad.message_id)

    def test_page(self) -> None:
        """
        They count as any other for how many are loaded, so that nobody takes a
        page for the last one.
        """
        self.damage("UPDATE inbox SET body = x''")
        (first,) = self.result(self.store.inbox.load(0, 1))
        (second,) = self.result(self.store.inbox.load(first.number, 1))
        self.assertEqual([1, 2], [first.number, second.number])


class InboxTests(InboxCase):
    """
    In the inbox.
    """

    def test_putAside(self) -> None:
        """
        It becomes a dead letter, told without its contents, once; those around
        it are handled.
        """
        for number, message_id in ((1, "m-1"), (2, "bad"), (3, "m-3")):
            self.store.inbox.add(upstream(message_id))
            if message_id == "bad":
                self.store.inbox._entries[number] = unreadable(number)
        with capturedLogs() as events:
            process = self.make()
            self.clock.advance(0)
        self.assertEqual(["m-1", "m-3"], process.handler.ids)
        (letter,) = self.store.inbox.deadLetters
        reason = "unreadable in the store: Invalid JSON"
        self.assertEqual(
            (2, "bad", b"SECRET", reason), (letter.number, letter.message_id, letter.body, letter.reason)
        )
        (text,) = [eventAsText(event) for event in events if "dead letter" in eventAsText(event)]
        self.assertIn(f"'bad': {reason}", text)
        self.assertNotIn("SECRET", text)
        self.assertEqual([], self.waiting)

    def test_storeFails(self) -> None:
        """
        If the store does not work just then it is tried again; a stop in the
        meantime leaves it where it is.
        """
        self.store.inbox.add(upstream("bad"))
        self.store.inbox._entries[1] = unreadable(1)
        process = self.make()
        # The first has been put aside; now one that cannot be.
        self.assertEqual(1, len(self.store.inbox.deadLetters))
        self.store.inbox.add(upstream("worse"))
        self.store.inbox._entries[2] = unreadable(2, "worse")
        process.inbox.held = True
        self.clock.advance(10)
        process.inbox.release(1)
        process.inbox.broken = True
        self.clock.advance(0)
        self.assertEqual(1, len(self.store.inbox.deadLetters))
        process.inbox.broken = False
        process.inbox.release()
        self.clock.advance(10)
        self.assertEqual(["bad", "worse"], [letter.message_id for letter in self.store.inbox.deadLetters])


class OutboxTests(OutboxCase):
    """
    In the outbox.
    """

    def test_settled(self) -> None:
        """
        It gets an outcome, committed and reported once; those around it are
        sent.
        """
        for message_id in ("m-1", "bad", "m-3"):
            self.store.outbox.add(to(message_id))
        events = self.logged(lambda: self.makeLife(prepare=lambda gate: gate.damaged.add(2)))
        life = self.life
        assert life is not None
        self.assertEqual(["m-1", "m-3"], life.sent())
        (outcome,) = self.outcomes.reported
        self.assertEqual(to("bad"), outcome.message)
        self.assertIsInstance(outcome.error, Unreadable)
        texts = [eventAsText(event) for event in events]
        self.assertEqual(1, sum("message 'bad' cannot be sent" in text for text in texts))
        self.assertFalse([text for text in texts if "SECRET" in text])
        self.assertEqual([], self.unreported())
        self.assertEqual(["m-1", "m-3"], self.open())
        self.assertEnds(life)

    def test_storeFails(self) -> None:
        """
        If that cannot be committed it is tried again, and reported after that.
        """
        self.store.outbox.add(to("bad"))
        life = self.makeLife(start=False)
        life.gate.damaged.add(1)
        life.gate.broken.add("settle")
        life.stored.start()
        self.assertEqual([], self.outcomes.reported)
        life.gate.broken.clear()
        life.network.advance(30.0, 1.0)
        self.assertEqual([("bad", "Unreadable")], self.outcomes.told)
        self.assertEnds(life)


class CustodyTests(StoreCase):
    """
    In the store of a connection server.
    """

    def test_left(self) -> None:
        """
        It is told and left where it is; those around it are delivered.
        """
        harness = self.makeServer()
        harness.submit("u-1", "u-2", "u-3")
        harness.memory._entries[2] = unreadable(2, "u-2", "111")
        with capturedLogs() as events:
            self.restart(harness)
        self.assertEqual(["u-1", "u-3"], harness.client().ids())
        (text,) = [eventAsText(event) for event in events if "cannot be read" in eventAsText(event)]
        self.assertIn("number 2: Invalid JSON", text)
        self.assertNotIn("SECRET", text)
        self.assertIn(2, harness.memory._entries)


class ValueTests(SynchronousTestCase):
    """
    The values.
    """

    def test_repr(self) -> None:
        """
        Neither token nor contents are in the representation.
        """
        self.assertEqual(
            "UnreadableEntry(number=7, message_id='bad', reason='Invalid JSON')", repr(unreadable(7))
        )

    def test_describe(self) -> None:
        """
        An error in short: its type, and its code, field or text.
        """
        for error, text in (
            (Nacked("DEVICE_UNREGISTERED", "m"), "Nacked: DEVICE_UNREGISTERED"),
            (Nacked("NEW_CODE", "m"), "Nacked: NEW_CODE"),
            (NotSendable("data", "must be smaller"), "NotSendable: data: must be smaller"),
            (Expired("over"), "Expired: over"),
            (StoreUnavailable(), "StoreUnavailable"),
        ):
            self.assertEqual(text, describe(error))
