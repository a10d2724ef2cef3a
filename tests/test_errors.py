"""
Tests for L{fcmxmpp.errors}.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp import errors
from fcmxmpp.errors import FCMError, HandlerFailed, LoginRefused, MalformedPayload, Nacked, NotSendable


#: The codes of docs/protocol.md 4.3: whether the same message may be sent again,
#: and whether the token is of further use.
CODES = {
    "SERVICE_UNAVAILABLE": (True, True),
    "INTERNAL_SERVER_ERROR": (True, True),
    "CONNECTION_DRAINING": (True, True),
    "DEVICE_MESSAGE_RATE_EXCEEDED": (True, True),
    "TOPICS_MESSAGE_RATE_EXCEEDED": (True, True),
    "QUOTA_EXCEEDED": (True, True),
    "INVALID_JSON": (False, True),
    "BAD_REGISTRATION": (False, False),
    "SENDER_ID_MISMATCH": (False, False),
    "DEVICE_UNREGISTERED": (False, False),
    "BAD_ACK": (False, True),
    "INVALID_APNS_CREDENTIAL": (False, True),
    "AUTHENTICATION_FAILED": (False, True),
    "INVALID_TTL": (False, True),
    "JSON_TYPE_ERROR": (False, True),
    "BAD_REQUEST": (False, True),
}


class HierarchyTests(SynchronousTestCase):
    """
    Whoever catches one class catches all that belongs under it.
    """

    def test_oneRoot(self) -> None:
        """
        Every public name of the module is an error below L{FCMError}.
        """
        for name in errors.__all__:
            self.assertTrue(issubclass(getattr(errors, name), FCMError), name)

    def test_allPublic(self) -> None:
        """
        Every error class of the module is in its C{__all__}.
        """
        defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
        self.assertEqual(defined, set(errors.__all__))

    def test_rootIsNoBuiltInKind(self) -> None:
        """
        L{FCMError} is a plain C{Exception}, so that no C{except ValueError}
        meant for a bug swallows it.
        """
        self.assertEqual(FCMError.__bases__, (Exception,))

    def test_timedOutHandlerHasFailed(self) -> None:
        """
        A handler that did not answer in time counts as one that failed.
        """
        self.assertTrue(issubclass(errors.HandlerTimedOut, HandlerFailed))

    def test_unavailableHandlerHasNotFailed(self) -> None:
        """
        A handler that cannot work just now is not taken for one that failed.
        """
        self.assertFalse(issubclass(errors.HandlerUnavailable, HandlerFailed))

    def test_timedOutLoginIsNoRefusal(self) -> None:
        """
        A login that took too long is not taken for a wrong key.
        """
        self.assertFalse(issubclass(errors.LoginTimedOut, LoginRefused))


class MalformedPayloadTests(SynchronousTestCase):
    """
    L{MalformedPayload} names the message where it can.
    """

    def test_named(self) -> None:
        """
        It carries the reason and the names that could be read.
        """
        error = MalformedPayload("Duplicate key", "m-1", "tok-A")
        self.assertEqual((error.reason, error.message_id, error.from_), ("Duplicate key", "m-1", "tok-A"))

    def test_nameless(self) -> None:
        """
        Without names it says so with None.
        """
        error = MalformedPayload("Too long")
        self.assertEqual((error.reason, error.message_id, error.from_), ("Too long", None, None))

    def test_text(self) -> None:
        """
        Its text is the reason and holds neither C{message_id} nor token.
        """
        self.assertEqual(str(MalformedPayload("Duplicate key", "m-1", "tok-A")), "Duplicate key")


class NotSendableTests(SynchronousTestCase):
    """
    L{NotSendable} says which field to mend and how.
    """

    def test_field(self) -> None:
        """
        It carries the field and the reason, and its text holds both.
        """
        error = NotSendable("time_to_live", "is over four weeks")
        self.assertEqual((error.field, error.reason), ("time_to_live", "is over four weeks"))
        self.assertEqual(str(error), "time_to_live: is over four weeks")


class NackedTests(SynchronousTestCase):
    """
    L{Nacked} knows what to do about each code.
    """

    def test_attributes(self) -> None:
        """
        It carries the code, the message's id and the newer token.
        """
        error = Nacked("DEVICE_UNREGISTERED", "m-1", "tok-B")
        self.assertEqual(
            (error.error, error.message_id, error.registration_id), ("DEVICE_UNREGISTERED", "m-1", "tok-B")
        )

    def test_noNewerToken(self) -> None:
        """
        Without a newer token C{registration_id} is None.
        """
        self.assertIsNone(Nacked("INVALID_JSON", "m-1").registration_id)

    def test_permanent(self) -> None:
        """
        For each code of the protocol it knows whether sending again can help.
        """
        self.assertEqual(
            {code: not Nacked(code, "m-1").permanent for code in CODES},
            {code: again for code, (again, _) in CODES.items()},
        )

    def test_tokenGone(self) -> None:
        """
        For each code of the protocol it knows whether the token is still good.
        """
        self.assertEqual(
            {code: not Nacked(code, "m-1").tokenGone for code in CODES},
            {code: good for code, (_, good) in CODES.items()},
        )

    def test_text(self) -> None:
        """
        Its text is the code, if that is one of the protocol's, and nothing of
        the message.
        """
        for code in CODES:
            self.assertEqual(str(Nacked(code, "m-1", "tok-B")), code)

    @given(st.text().filter(lambda code: code not in CODES))
    def test_unknownCode(self, code: str) -> None:
        """
        A code that is not known is kept as it is, may be tried again, says
        nothing about the token, and is not repeated in the text, where the
        peer could smuggle in what it likes.
        """
        error = Nacked(code, "m-1", "tok-B")
        self.assertEqual(error.error, code)
        self.assertFalse(error.permanent)
        self.assertFalse(error.tokenGone)
        self.assertEqual(str(error), "unknown error code")


class LoginRefusedTests(SynchronousTestCase):
    """
    L{LoginRefused} tells an operator where to look.
    """

    def test_condition(self) -> None:
        """
        It carries the SASL condition and names in its text what to check.
        """
        error = LoginRefused("not-authorized")
        self.assertEqual(error.condition, "not-authorized")
        self.assertEqual(str(error), "login refused (not-authorized): check the sender ID and the server key")
