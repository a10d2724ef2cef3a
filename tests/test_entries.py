"""
Tests for L{fcmxmpp.entries}.
"""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.entries import DeadLetter, Outcome, decodeOutcome, encodeOutcome
from fcmxmpp.errors import AckTimedOut, Expired, FCMError, Nacked, NotSendable, StillUnanswered
from fcmxmpp.messages import Ack, DownstreamMessage


MESSAGE = DownstreamMessage(to="TOKEN", message_id="m-1", data={"key": "SECRET"})


class OutcomeTests(SynchronousTestCase):
    """
    L{encodeOutcome} and L{decodeOutcome}.
    """

    def test_accepted(self) -> None:
        """
        What the connection server has answered is the same afterwards.
        """
        ack = Ack(message_id="m-1", from_="TOKEN", registration_id="NEWER", success=1, failure=0)
        outcome = Outcome(message=MESSAGE, ack=ack, tries=2, at=1.5)
        self.assertEqual(outcome, decodeOutcome(MESSAGE, encodeOutcome(outcome)))

    def test_failed(self) -> None:
        """
        Errors of all sorts are the same afterwards, with all that they tell.
        """
        errors: list[FCMError] = [
            Nacked("DEVICE_UNREGISTERED", "m-1"),
            Nacked("NEW_CODE", "m-1", "NEWER"),
            Expired("the time_to_live ran out"),
            Expired("the time_to_live ran out", "NEWER"),
            AckTimedOut("no answer"),
            NotSendable("data", "must be smaller: much"),
            StillUnanswered(),
        ]
        for error in errors:
            outcome = Outcome(message=MESSAGE, error=error, tries=3, at=1.5)
            decoded = decodeOutcome(MESSAGE, encodeOutcome(outcome))
            self.assertEqual(
                (MESSAGE, None, 3, 1.5), (decoded.message, decoded.ack, decoded.tries, decoded.at)
            )
            self.assertIs(type(error), type(decoded.error))
            self.assertEqual((str(error), vars(error)), (str(decoded.error), vars(decoded.error)))

    def test_noMessageID(self) -> None:
        """
        A NACK of a message without a C{message_id} can be read.
        """
        message = DownstreamMessage(to="TOKEN")
        outcome = Outcome(message=message, error=Nacked("BAD_REQUEST", ""), at=1.5)
        error = decodeOutcome(message, encodeOutcome(outcome)).error
        assert isinstance(error, Nacked)
        self.assertEqual(("BAD_REQUEST", ""), (error.error, error.message_id))

    def test_later(self) -> None:
        """
        An error that this version does not know is an error nevertheless, and
        so is a field that it does not know no obstacle.
        """

        class Later(FCMError):
            """
            Of a later version.
            """

        stored = json.loads(encodeOutcome(Outcome(message=MESSAGE, error=Later("a reason"), at=1.5)))
        stored["more"] = [1]
        error = decodeOutcome(MESSAGE, json.dumps(stored).encode()).error
        self.assertIs(FCMError, type(error))
        self.assertEqual("a reason", str(error))

    def test_withoutMessage(self) -> None:
        """
        The message is not stored twice, nor what is in it.
        """
        stored = encodeOutcome(Outcome(message=MESSAGE, error=AckTimedOut("no answer"), at=1.5))
        self.assertNotIn(b"TOKEN", stored)
        self.assertNotIn(b"SECRET", stored)


class DeadLetterTests(SynchronousTestCase):
    """
    L{DeadLetter}.
    """

    def test_repr(self) -> None:
        """
        Neither token nor contents are in it.
        """
        letter = DeadLetter(number=7, from_="TOKEN", message_id="m-1", body=b"SECRET", reason="it failed")
        self.assertEqual("DeadLetter(number=7, message_id='m-1', reason='it failed')", repr(letter))
