"""
Tests for L{fcmxmpp.store.memory}, beyond what every store has to do: see
L{tests.test_contracts}.
"""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.entries import DeadLetter
from fcmxmpp.messages import UpstreamMessage
from fcmxmpp.store.memory import MemoryStore


class MemoryStoreTests(SynchronousTestCase):
    """
    L{MemoryStore}.
    """

    def setUp(self) -> None:
        """
        A store that keeps things for ten seconds.
        """
        self.clock = Clock()
        self.inbox = MemoryStore(self.clock.seconds, keep=10.0).inbox

    def test_keep(self) -> None:
        """
        Messages are known for as long as was said, and then are new again.
        """
        self.successResultOf(self.inbox.remember(("t", "old")))
        self.clock.advance(6)
        self.successResultOf(self.inbox.remember(("t", "new")))
        self.clock.advance(5)
        self.assertFalse(self.successResultOf(self.inbox.isKnown(("t", "old"))))
        self.assertTrue(self.successResultOf(self.inbox.isKnown(("t", "new"))))
        again = self.successResultOf(self.inbox.add(UpstreamMessage(from_="t", message_id="old")))
        self.assertEqual(11, again.arrived)
        self.assertIsNone(self.successResultOf(self.inbox.add(UpstreamMessage(from_="t", message_id="new"))))

    def test_retry(self) -> None:
        """
        A dead letter that is to be tried again is an entry again, behind the
        others; other letters stay.
        """
        for message_id in ("m-1", "m-2"):
            letter = DeadLetter(from_="t", message_id=message_id, body=b"{}", reason="r")
            self.assertTrue(self.successResultOf(self.inbox.putAside(letter)))
        message = UpstreamMessage(from_="t", message_id="m-1")
        self.inbox.retry(message)
        (entry,) = self.successResultOf(self.inbox.load(0, 10))
        self.assertEqual((message, 0), (entry.message, entry.tries))
        self.assertEqual(["m-2"], [letter.message_id for letter in self.inbox.deadLetters])
