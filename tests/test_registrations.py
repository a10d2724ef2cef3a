"""
Tests for L{fcmxmpp.registrations}.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.messages import DownstreamMessage
from fcmxmpp.registrations import Application, Mail, Registration, looksLikeToken


class ReprTests(SynchronousTestCase):
    """
    What gets into logs.
    """

    def test_discreet(self) -> None:
        """
        Neither token nor contents are shown.
        """
        registration = Registration(
            token="secret-token", android_id=5, application=Application(category="app", senderID="1")
        )
        mail = Mail(
            number=7,
            persistent_id="p",
            registration=registration,
            senderID="1",
            message=DownstreamMessage(to="secret-token", message_id="m-1", data={"k": "secret"}),
            posted=0.0,
            expires=0.0,
        )
        self.assertEqual("Registration(android_id=5, category='app')", repr(registration))
        self.assertEqual("Mail(number=7, message_id='m-1')", repr(mail))


class TokenTests(SynchronousTestCase):
    """
    L{looksLikeToken}.
    """

    def test_shape(self) -> None:
        """
        A token has a shape, and what has not is none.
        """
        good = "A" * 22 + ":APA91b" + "b" * 134
        self.assertTrue(looksLikeToken(good))
        for bad in ("", good + "\n", good[:-1], good.replace(":", ";"), good.replace("b", "+")):
            self.assertFalse(looksLikeToken(bad), bad)
