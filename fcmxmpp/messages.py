"""
Every message of the protocol, as a frozen value.

Fields keep their wire spelling (C{message_id}, C{time_to_live}); C{from} is a
Python keyword, so it is C{from_} here and C{from} on the wire.  Field order is
the order on the wire, because some clients in the field read it by regular
expression.

Two unions are closed: L{FromConnectionServer} is everything that an app server
can receive, L{FromAppServer} everything that a connection server can receive.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field, structs


__all__ = [
    "MAX_DATA_BYTES",
    "MAX_DOWNSTREAM_TTL",
    "MAX_ID_BYTES",
    "MAX_TOPIC_DATA_BYTES",
    "MAX_UPSTREAM_TTL",
    "RECEIPT_SENDER",
    "WINDOW",
    "Ack",
    "Control",
    "DownstreamMessage",
    "FromAppServer",
    "FromConnectionServer",
    "Nack",
    "Notification",
    "Receipt",
    "ReceiptData",
    "Unrecognized",
    "UpstreamAck",
    "UpstreamMessage",
]

#: Bytes of UTF-8 that the keys and values of one message's data may take.
MAX_DATA_BYTES = 4096
#: The same for a downstream message to a topic or a condition.
MAX_TOPIC_DATA_BYTES = 2048
#: Bytes of UTF-8 that a C{message_id} may take: with the largest data it has
#: to fit into one stanza.
MAX_ID_BYTES = 1024
#: The longest C{time_to_live} of a device's message, in seconds (24 hours).
MAX_UPSTREAM_TTL = 86_400
#: The longest C{time_to_live} of a downstream message, in seconds (4 weeks).
MAX_DOWNSTREAM_TTL = 2_419_200
#: How many messages may be unanswered on one stream, in either direction.
WINDOW = 100
#: The C{from} of every receipt.
RECEIPT_SENDER = "gcm.googleapis.com"

_Name = Annotated[str, Meta(min_length=1)]


class _Discreet(Struct, frozen=True):
    """
    What every message is.  Its C{repr} leaves out what has no place in a log:
    registration tokens and what the application sends.
    """

    def __repr__(self) -> str:
        """
        The name, and the fields that are set.
        """
        fields = []
        for one in structs.fields(self):
            value = getattr(self, one.name)
            default = one.default_factory() if callable(one.default_factory) else one.default
            if value != default:
                fields.append(f"{one.name}={'...' if one.name in _NOT_TO_BE_LOGGED else repr(value)}")
        return f"{type(self).__name__}({', '.join(fields)})"


_NOT_TO_BE_LOGGED = frozenset(
    {
        "to",
        "from_",
        "data",
        "notification",
        "registration_id",
        "failed_registration_ids",
        "device_registration_id",
        # It often quotes the token.
        "error_description",
    }
)


class UpstreamAck(_Discreet, frozen=True, kw_only=True):
    """
    App server to connection server: "I have taken over this message".

    @ivar to: the C{from} of the message.
    @ivar message_id: its C{message_id}.
    """

    to: _Name
    message_id: _Name
    message_type: Literal["ack"] = "ack"

    @property
    def key(self) -> tuple[str, str]:
        """
        What the message is known by that this acknowledges.
        """
        return (self.to, self.message_id)


class UpstreamMessage(_Discreet, frozen=True, kw_only=True, omit_defaults=True):
    """
    A message that an app on a device sent to its app server.

    @ivar data: the app's key-value pairs, strings both.
    @ivar time_to_live: seconds, 0 to L{MAX_UPSTREAM_TTL}, from the device.
    @ivar from_: the registration token of the sending app instance.
    @ivar message_id: chosen by the device.
    @ivar category: the Android package or iOS bundle identifier.
    """

    data: dict[str, str] = {}
    time_to_live: int | None = None
    from_: _Name = field(name="from")
    message_id: _Name
    category: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        """
        What the message is known by: unique, and the same when it is
        delivered again.
        """
        return (self.from_, self.message_id)

    def ack(self) -> UpstreamAck:
        """
        The answer that stops the connection server from sending it again.
        """
        return UpstreamAck(to=self.from_, message_id=self.message_id)


class ReceiptData(_Discreet, frozen=True, kw_only=True, omit_defaults=True):
    """
    What a L{Receipt} tells.

    @ivar message_status: C{"MESSAGE_SENT_TO_DEVICE"}.
    @ivar original_message_id: of the downstream message.
    @ivar device_registration_id: the device's registration token.
    @ivar message_sent_timestamp: milliseconds since 1970, in decimal digits.
    """

    message_status: str
    original_message_id: _Name
    device_registration_id: str | None = None
    message_sent_timestamp: str | None = None


def _receipt() -> Literal["receipt"]:
    return "receipt"


def _ack() -> Literal["ack"]:
    return "ack"


class Receipt(_Discreet, frozen=True, kw_only=True, omit_defaults=True):
    """
    "The device has your downstream message".  It is ACKed like a message.

    @ivar message_id: C{"dr2:"} and the original C{message_id}.
    @ivar from_: L{RECEIPT_SENDER}; the device is named in L{data}.
    """

    category: str | None = None
    data: ReceiptData
    message_id: _Name
    # A factory, because omit_defaults would leave out a plain default.
    message_type: Literal["receipt"] = field(default_factory=_receipt)
    time_to_live: int | None = None
    from_: _Name = field(name="from")

    @property
    def key(self) -> tuple[str, str]:
        """
        What the receipt is known by.
        """
        return (self.from_, self.message_id)

    def ack(self) -> UpstreamAck:
        """
        The answer: its own C{message_id}, C{"dr2:"} included.
        """
        return UpstreamAck(to=self.from_, message_id=self.message_id)


class Ack(_Discreet, frozen=True, kw_only=True, omit_defaults=True):
    """
    Connection server to app server: the downstream message was accepted,
    which does not mean delivered.

    @ivar from_: the C{to} of the message.
    @ivar registration_id: a newer token of the same device, to be stored in
        place of the old one.
    @ivar success: of a device group, to how many members it was sent.
    @ivar failure: of a device group, to how many it was not.
    @ivar failed_registration_ids: of a device group, which these are.
    """

    from_: str | None = field(name="from", default=None)
    message_id: _Name
    message_type: Literal["ack"] = field(default_factory=_ack)
    registration_id: str | None = None
    success: int | None = None
    failure: int | None = None
    failed_registration_ids: list[str] | None = None


class Nack(_Discreet, frozen=True, kw_only=True, omit_defaults=True):
    """
    Connection server to app server: the downstream message was refused.

    @ivar from_: the C{to} of the message.
    @ivar error: the code.
    @ivar error_description: for people; it may quote the registration token.
    @ivar registration_id: a newer token of the same device, if any.
    """

    # Not a plain default, for the same reason as Receipt's; before C{from},
    # as Google's server had it.
    message_type: Literal["nack"] = field(default_factory=lambda: "nack")
    from_: str | None = field(name="from", default=None)
    message_id: _Name
    error: str
    error_description: str | None = None
    registration_id: str | None = None


class Control(Struct, frozen=True, kw_only=True):
    """
    Something about the connection itself.  It has no C{message_id} and is not
    acknowledged.

    @ivar control_type: C{"CONNECTION_DRAINING"} is the only one there is.
    """

    message_type: Literal["control"] = "control"
    control_type: str

    @property
    def draining(self) -> bool:
        """
        Whether the connection server is about to close this stream.
        """
        return self.control_type == "CONNECTION_DRAINING"


class Unrecognized(Struct, frozen=True, kw_only=True):
    """
    A message of a type that this version does not know.  The protocol allows
    to ignore it.

    @ivar message_type: what the peer called it.
    """

    message_type: str


class Notification(_Discreet, frozen=True, kw_only=True, omit_defaults=True):
    """
    What the device shows to its user.  Which platform honours which key is in
    Google's reference; unknown ones are ignored by the device.

    @ivar body_loc_args: a JSON array, encoded as a string.
    @ivar title_loc_args: likewise.
    @ivar badge: a number, as a string.
    @ivar sound: a file's name; on iOS also a dictionary.
    """

    def __repr__(self) -> str:
        """
        Nothing of what it says.
        """
        return "Notification(...)"

    title: str | None = None
    body: str | None = None
    icon: str | None = None
    sound: str | dict[str, Any] | None = None
    badge: str | None = None
    tag: str | None = None
    color: str | None = None
    click_action: str | None = None
    subtitle: str | None = None
    android_channel_id: str | None = None
    body_loc_key: str | None = None
    body_loc_args: str | None = None
    title_loc_key: str | None = None
    title_loc_args: str | None = None
    image: str | None = None


class DownstreamMessage(_Discreet, frozen=True, kw_only=True, omit_defaults=True):
    """
    A message for devices.

    @ivar to: a registration token, a device group's notification key, or
        C{"/topics/NAME"}; exactly one of L{to} and L{condition} is set.
    @ivar condition: such as C{"'a' in topics && 'b' in topics"}.
    @ivar message_id: unique for the sender ID; the one thing that the
        connection server's answer is matched by.
    @ivar collapse_key: of several messages with one key, the last suffices.
    @ivar time_to_live: seconds, 0 to L{MAX_DOWNSTREAM_TTL}; none is 4 weeks.
    @ivar delay_while_idle: accepted and without effect since 2016.
    @ivar dry_run: acknowledge, but do not deliver.
    """

    to: str | None = None
    condition: str | None = None
    message_id: _Name | None = None
    collapse_key: str | None = None
    priority: Literal["normal", "high"] | None = None
    content_available: bool = False
    mutable_content: bool = False
    delay_while_idle: bool = False
    time_to_live: Annotated[int, Meta(ge=0, le=MAX_DOWNSTREAM_TTL)] | None = None
    delivery_receipt_requested: bool = False
    dry_run: bool = False
    data: dict[str, str] = {}
    notification: Notification | None = None


#: Everything that an app server can receive.
FromConnectionServer = UpstreamMessage | Receipt | Ack | Nack | Control | Unrecognized
#: Everything that a connection server can receive.
FromAppServer = UpstreamAck | DownstreamMessage
