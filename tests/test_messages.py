"""
Tests for L{fcmxmpp.messages}.
"""

from __future__ import annotations

from typing import get_args

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp import messages
from fcmxmpp.messages import (
    Ack,
    Control,
    DownstreamMessage,
    FromAppServer,
    FromConnectionServer,
    Nack,
    Notification,
    Receipt,
    ReceiptData,
    Unrecognized,
    UpstreamAck,
    UpstreamMessage,
)


#: One of each, with no more than has to be given.
EXAMPLES: list[msgspec.Struct] = [
    Ack(message_id="m-1"),
    Control(control_type="CONNECTION_DRAINING"),
    DownstreamMessage(),
    Nack(message_id="m-1", error="BAD_ACK"),
    Notification(),
    Receipt(
        data=ReceiptData(message_status="MESSAGE_SENT_TO_DEVICE", original_message_id="m-1"),
        message_id="dr2:m-1",
        from_="gcm.googleapis.com",
    ),
    ReceiptData(message_status="MESSAGE_SENT_TO_DEVICE", original_message_id="m-1"),
    Unrecognized(message_type="new"),
    UpstreamAck(to="tok-A", message_id="u-17"),
    UpstreamMessage(from_="tok-A", message_id="u-17"),
]


class ValueTests(SynchronousTestCase):
    """
    All messages are values.
    """

    def test_complete(self) -> None:
        """
        L{EXAMPLES} has every public struct of the module, so that the other
        tests leave none out.
        """
        structs = {name for name in messages.__all__ if isinstance(getattr(messages, name), type)}
        self.assertEqual(structs, {type(message).__name__ for message in EXAMPLES})

    def test_frozen(self) -> None:
        """
        No field of any message can be changed.
        """
        for message in EXAMPLES:
            for name in message.__struct_fields__:
                self.assertRaises(AttributeError, setattr, message, name, "x")

    def test_keywordOnly(self) -> None:
        """
        No message takes its fields by position, because their order is the
        wire's and may change.
        """
        for message in EXAMPLES:
            self.assertRaises(TypeError, type(message), "x")

    def test_equal(self) -> None:
        """
        Messages with the same fields are equal.
        """
        self.assertEqual(
            UpstreamMessage(from_="tok-A", message_id="u-17", data={"op": "ECHO"}),
            UpstreamMessage(from_="tok-A", message_id="u-17", data={"op": "ECHO"}),
        )

    def test_ownData(self) -> None:
        """
        Two messages made without data do not share the empty dictionary.
        """
        one = DownstreamMessage()
        one.data["k"] = "v"
        self.assertEqual(DownstreamMessage().data, {})

    def test_messageType(self) -> None:
        """
        Whoever makes a message need not give its C{message_type}.
        """
        types = {type(message): getattr(message, "message_type", None) for message in EXAMPLES}
        self.assertEqual(
            {type: name for type, name in types.items() if name not in (None, "new")},
            {Ack: "ack", Control: "control", Nack: "nack", Receipt: "receipt", UpstreamAck: "ack"},
        )


class ReprTests(SynchronousTestCase):
    """
    What is seen of a message that somebody logs.
    """

    def test_nothingSecret(self) -> None:
        """
        A message's repr has no token and nothing of what the application
        sends, and does have what helps to find it.
        """
        secret = "SECRET"
        for message in (
            messages.UpstreamMessage(message_id="m-1", from_=secret, data={secret: secret}),
            messages.UpstreamAck(message_id="m-1", to=secret),
            messages.Ack(
                message_id="m-1", from_=secret, registration_id=secret, failed_registration_ids=[secret]
            ),
            messages.Nack(
                message_id="m-1", error="E", from_=secret, error_description=secret, registration_id=secret
            ),
            messages.DownstreamMessage(
                message_id="m-1",
                to=secret,
                data={"k": secret},
                notification=messages.Notification(title=secret),
            ),
            messages.Receipt(
                message_id="m-1",
                from_=secret,
                data=messages.ReceiptData(
                    message_status="S", original_message_id="o", device_registration_id=secret
                ),
            ),
            messages.Notification(title=secret, sound={"name": secret}),
        ):
            text = repr(message)
            self.assertNotIn(secret, text)
            self.assertTrue(text.startswith(f"{type(message).__name__}("), text)
            if not isinstance(message, messages.Notification):
                self.assertIn("message_id='m-1'", text)


class UnionTests(SynchronousTestCase):
    """
    The two unions are closed and disjoint.
    """

    def test_fromConnectionServer(self) -> None:
        """
        An app server can receive these and nothing else.
        """
        self.assertEqual(
            set(get_args(FromConnectionServer)), {UpstreamMessage, Receipt, Ack, Nack, Control, Unrecognized}
        )

    def test_fromAppServer(self) -> None:
        """
        A connection server can receive these and nothing else.
        """
        self.assertEqual(set(get_args(FromAppServer)), {UpstreamAck, DownstreamMessage})


class UpstreamMessageTests(SynchronousTestCase):
    """
    L{UpstreamMessage} can be told apart and answered.
    """

    message = UpstreamMessage(from_="tok-A", message_id="u-17", data={"op": "ECHO"}, time_to_live=9)

    def test_key(self) -> None:
        """
        It is known by sender and id, because a device chooses its own ids.
        """
        self.assertEqual(self.message.key, ("tok-A", "u-17"))

    def test_ack(self) -> None:
        """
        Its answer goes to its sender, under its id.
        """
        self.assertEqual(self.message.ack(), UpstreamAck(to="tok-A", message_id="u-17"))

    def test_ackMatches(self) -> None:
        """
        The answer is known by the same key as the message.
        """
        self.assertEqual(self.message.ack().key, self.message.key)


class ReceiptTests(SynchronousTestCase):
    """
    L{Receipt} can be told apart and answered.
    """

    receipt = Receipt(
        data=ReceiptData(
            message_status="MESSAGE_SENT_TO_DEVICE",
            original_message_id="m-1",
            device_registration_id="tok-A",
        ),
        message_id="dr2:m-1",
        from_=messages.RECEIPT_SENDER,
    )

    def test_key(self) -> None:
        """
        It is known by its own sender and id, not by the device's.
        """
        self.assertEqual(self.receipt.key, ("gcm.googleapis.com", "dr2:m-1"))

    def test_ack(self) -> None:
        """
        Its answer goes to its sender, with C{"dr2:"}, and not to the device.
        """
        self.assertEqual(self.receipt.ack(), UpstreamAck(to="gcm.googleapis.com", message_id="dr2:m-1"))

    def test_ackMatches(self) -> None:
        """
        The answer is known by the same key as the receipt.
        """
        self.assertEqual(self.receipt.ack().key, self.receipt.key)


class ControlTests(SynchronousTestCase):
    """
    L{Control} knows the one thing that it can mean.
    """

    def test_draining(self) -> None:
        """
        C{CONNECTION_DRAINING} is draining.
        """
        self.assertTrue(Control(control_type="CONNECTION_DRAINING").draining)

    def test_unknown(self) -> None:
        """
        Any other control type is not, be it ever so similar.
        """
        for controlType in ("", "connection_draining", "CONNECTION_DRAINING ", "CONNECTION_RESET"):
            self.assertFalse(Control(control_type=controlType).draining)


class LimitTests(SynchronousTestCase):
    """
    The protocol's numbers.
    """

    def test_numbers(self) -> None:
        """
        The limits are those of docs/protocol.md: 4096 bytes, a day up, four weeks
        down, a hundred unanswered.
        """
        self.assertEqual(messages.MAX_DATA_BYTES, 4096)
        self.assertEqual(messages.MAX_UPSTREAM_TTL, 24 * 60 * 60)
        self.assertEqual(messages.MAX_DOWNSTREAM_TTL, 28 * 24 * 60 * 60)
        self.assertEqual(messages.WINDOW, 100)
