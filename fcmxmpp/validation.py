"""
What a downstream message must be like, or FCM rejects it.

The app server asks before it sends, so that the caller is told at once; the
connection server asks again, because others speak to it than our app server.

Where it is not known what Google's server did, the message is good.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from fcmxmpp.condition import TOPIC_NAME, parse
from fcmxmpp.errors import NotSendable
from fcmxmpp.messages import (
    MAX_DATA_BYTES,
    MAX_DOWNSTREAM_TTL,
    MAX_ID_BYTES,
    MAX_TOPIC_DATA_BYTES,
    DownstreamMessage,
    Notification,
)


__all__ = ["checkSendable", "isReserved"]

#: Characters of a registration token or notification key.  Real tokens have
#: 140 to 200, but they are Google's affair and have grown before.
_MAX_TOKEN = 4096
_TOPIC = re.compile(f"/topics/{TOPIC_NAME}")
_FLAGS = (
    "content_available",
    "mutable_content",
    "delay_while_idle",
    "delivery_receipt_requested",
    "dry_run",
)
#: How no key of data may begin.
_PREFIXES = ("google", "gcm")
#: The first character of such a key, so that others need no closer look.
_FIRSTS = "fg"
#: The keys of a notification, and what errors call them.
_PARTS = tuple((name, f"notification.{name}") for name in Notification.__struct_fields__)
_COLOR = re.compile("#[0-9a-fA-F]{6}")

_Plain = str | bool | int | float
_encode = msgspec.json.Encoder().encode
_decodePlainObject = msgspec.json.Decoder(dict[str, _Plain]).decode
_decodePlainArray = msgspec.json.Decoder(list[_Plain]).decode


def isReserved(key: str) -> bool:
    """
    Whether no message's data may have this key, because FCM uses it.
    """
    return key == "from" or key.startswith(_PREFIXES)


def checkSendable(message: DownstreamMessage) -> None:
    """
    Check a message that is complete, its C{message_id} included.

    Types are checked as well, because nothing does when a message is made.
    Values must be of the very types and of no subclass, except for
    dictionaries: that is what has a JSON form.  What passes can be encoded,
    and, if it is not too large for a stanza, reads the same at the other end.

    The payload is the keys and values of C{data}, and those keys and values
    of C{notification} that are set, in bytes of UTF-8 (a C{sound} that is a
    dictionary counts as its JSON); quotes, commas and the like do not count.
    It may have L{MAX_DATA_BYTES<fcmxmpp.messages.MAX_DATA_BYTES>}, or
    L{MAX_TOPIC_DATA_BYTES<fcmxmpp.messages.MAX_TOPIC_DATA_BYTES>} if it is for
    topics.

    @raise NotSendable: if FCM would reject it.  The reason is fit to follow
        the field's name in a sentence, begins with "must", and quotes nothing
        of the message.
    """
    if not isinstance(message, DownstreamMessage):
        raise NotSendable("message", "must be a DownstreamMessage")
    limit = _checkTarget(message.to, message.condition)
    message_id = message.message_id
    if not (type(message_id) is str and message_id.isascii() and 0 < len(message_id) <= MAX_ID_BYTES):
        _checkID(message_id)
    if message.collapse_key is not None and _size("collapse_key", message.collapse_key) > MAX_ID_BYTES:
        raise NotSendable("collapse_key", f"must not have more than {MAX_ID_BYTES} bytes")
    priority = message.priority
    if priority is not None and (type(priority) is not str or priority not in ("normal", "high")):
        raise NotSendable("priority", "must be normal or high")
    if not (
        message.content_available
        is message.mutable_content
        is message.delay_while_idle
        is message.delivery_receipt_requested
        is message.dry_run
        is False
    ):
        for name in _FLAGS:
            if type(getattr(message, name)) is not bool:
                raise NotSendable(name, "must be a boolean")
    ttl = message.time_to_live
    if ttl is not None and (type(ttl) is not int or not 0 <= ttl <= MAX_DOWNSTREAM_TTL):
        raise NotSendable("time_to_live", f"must be an integer from 0 to {MAX_DOWNSTREAM_TTL}")
    dataSize = _dataSize(message.data)
    notificationSize = 0 if message.notification is None else _notificationSize(message.notification)
    if dataSize + notificationSize > limit:
        field = "data" if dataSize >= notificationSize else "notification"
        raise NotSendable(field, f"must not make the payload larger than {limit} bytes")


def _checkID(message_id: object) -> None:
    """
    Check a C{message_id} that may be good nevertheless.
    """
    if message_id is None:
        raise NotSendable("message_id", "must be given")
    if not 0 < _size("message_id", message_id) <= MAX_ID_BYTES:
        raise NotSendable("message_id", f"must have 1 to {MAX_ID_BYTES} bytes")


def _checkTarget(to: object, condition: object) -> int:
    """
    Check whom a message is for.

    @return: how many bytes its payload may have.
    """
    if type(to) is not str or condition is not None:
        return _checkCondition(to, condition)
    if to.startswith("/"):
        if _TOPIC.fullmatch(to) is None:
            raise NotSendable("to", "must be a token, or /topics/ and 1 to 900 of a-z A-Z 0-9 - _ . ~ %")
        return MAX_TOPIC_DATA_BYTES
    if not 0 < len(to) <= _MAX_TOKEN:
        raise NotSendable("to", f"must have 1 to {_MAX_TOKEN} characters")
    # Of all white space only the blank itself is printable.
    if not to.isprintable() or " " in to:
        raise NotSendable("to", "must have neither white space nor control characters")
    return MAX_DATA_BYTES


def _checkCondition(to: object, condition: object) -> int:
    """
    Check whom a message is for that is not for one device, group or topic.

    @return: how many bytes its payload may have.
    """
    if to is None:
        if condition is None:
            raise NotSendable("to", "must be given, unless there is a condition")
        if type(condition) is not str:
            raise NotSendable("condition", "must be a string")
        parse(condition)
        return MAX_TOPIC_DATA_BYTES
    if condition is not None:
        raise NotSendable("condition", "must not be given together with to")
    raise NotSendable("to", "must be a string")


def _size(field: str, text: object) -> int:
    """
    Bytes of a string's UTF-8.
    """
    if type(text) is not str:
        raise NotSendable(field, "must be a string")
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise NotSendable(field, "must not hold half of a surrogate pair") from None


def _dataSize(data: object) -> int:
    """
    Check a message's data.

    @return: bytes of their keys and values.
    """
    if not isinstance(data, dict):
        raise NotSendable("data", "must be a dictionary of strings")
    size = 0
    for key, value in data.items():
        if type(key) is not str or type(value) is not str:
            raise NotSendable("data", "must have strings only, as keys and as values")
        # As isReserved and _size do: it is asked for each key of each message.
        if key[:1] in _FIRSTS and isReserved(key):
            raise NotSendable("data", "must not have the key from, nor one that begins with google or gcm")
        size += len(key) + len(value) if key.isascii() and value.isascii() else _size("data", key + value)
    return size


def _notificationSize(notification: object) -> int:
    """
    Check a message's notification.

    @return: bytes of those keys and values that are set.
    """
    if not isinstance(notification, Notification):
        raise NotSendable("notification", "must be a Notification")
    size = 0
    for name, field in _PARTS:
        value = getattr(notification, name)
        if value is not None:
            size += len(name)
            if name == "sound" and isinstance(value, dict):
                size += _soundSize(value)
            else:
                size += _size(field, value)
    badge, color = notification.badge, notification.color
    if badge is not None and not (badge.isascii() and badge.isdigit()):
        raise NotSendable("notification.badge", "must be a string of digits")
    if color is not None and _COLOR.fullmatch(color) is None:
        raise NotSendable("notification.color", "must have the form #rrggbb")
    for name in ("body_loc_args", "title_loc_args"):
        args = getattr(notification, name)
        if args is not None:
            try:
                _decodePlainArray(args)
            except (msgspec.DecodeError, ValueError, RecursionError):
                reason = "must be a JSON array of strings and numbers, encoded as a string"
                raise NotSendable(f"notification.{name}", reason) from None
    return size


def _soundSize(sound: dict[Any, Any]) -> int:
    """
    Check a notification's sound that is a dictionary.

    @return: bytes of its JSON.
    """
    try:
        text = _encode(sound)
        # Much has a JSON form that reads as something else: NaN, bytes, dates.
        if _decodePlainObject(text) == sound:
            return len(text)
    except (msgspec.DecodeError, TypeError, ValueError, OverflowError, RecursionError):
        pass
    raise NotSendable("notification.sound", "must be a string, or a dictionary of strings and numbers")
