"""
JSON text to messages and back.

Decoding is strict and total: it returns one whole message, or it raises
L{MalformedPayload} with a reason that never quotes the payload.  Where the
C{message_id} and C{from} of a malformed payload are beyond doubt the error
names them, so that the message can be put aside and acknowledged.

What counts as malformed beyond the JSON grammar: wrong types, duplicate keys
(readers disagree which one holds), lone surrogates and bytes that are not
UTF-8.
"""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

import msgspec

from fcmxmpp.errors import MalformedAck, MalformedPayload, NotSendable
from fcmxmpp.messages import (
    Ack,
    Control,
    DownstreamMessage,
    FromAppServer,
    FromConnectionServer,
    Nack,
    Receipt,
    Unrecognized,
    UpstreamAck,
    UpstreamMessage,
)


__all__ = [
    "MAX_TEXT",
    "decodeDownstream",
    "decodeFromAppServer",
    "decodeFromConnectionServer",
    "encode",
    "unknownFields",
]

#: Characters of JSON that are looked at; a longer text is malformed.
MAX_TEXT = 65_536

_QUOTED = re.compile(r"['\"].*['\"]", re.DOTALL)
_Message = FromConnectionServer | FromAppServer
_T = TypeVar("_T")


class _Head(msgspec.Struct):
    """
    Just enough of a message to tell what it is.
    """

    message_type: str | None = None


_encode = msgspec.json.Encoder().encode
_decodeHead = msgspec.json.Decoder(_Head).decode
_decodeUpstream = msgspec.json.Decoder(UpstreamMessage).decode
_typed: dict[str, Any] = {"receipt": Receipt, "ack": Ack, "nack": Nack, "control": Control}
_decoders: dict[str, Any] = {name: msgspec.json.Decoder(type).decode for name, type in _typed.items()}
_decodeAck = _decoders["ack"]
#: How an ACK ends, if the connection server writes its fields in our order.
_ACK_END = '"message_type":"ack"}'
_decodeUpstreamAck = msgspec.json.Decoder(UpstreamAck).decode
_decodeDownstream = msgspec.json.Decoder(DownstreamMessage).decode


def encode(message: _Message) -> bytes:
    """
    The JSON of a message, fit to stand in XML as it is.

    C{&}, C{<} and C{>} are written as JSON escapes: that way the text reads
    the same for clients that unescape XML and for those that do not, and
    C{"} stays raw, which the latter need (docs/protocol.md 2.3).

    @return: UTF-8, compact, on one line.
    @raise NotSendable: if a text holds a lone surrogate, which has no UTF-8.
    """
    try:
        text = _encode(message)
    except UnicodeEncodeError:
        raise NotSendable("message", "holds half of a surrogate pair, which has no UTF-8 form") from None
    except (TypeError, RecursionError):
        raise NotSendable("message", "holds what has no JSON form") from None
    # Inside JSON these can only stand in strings, so a blind replace is right.
    # Asked by find, because "in" would first try to take b"&" for a number, and
    # that takes four times as long.
    if text.find(b"&") >= 0:
        text = text.replace(b"&", b"\\u0026")
    if text.find(b"<") >= 0:
        text = text.replace(b"<", b"\\u003c")
    if text.find(b">") >= 0:
        text = text.replace(b">", b"\\u003e")
    # U+FFFE and U+FFFF are no XML characters; a parser would refuse the stanza.
    if not text.isascii():
        text = text.replace(b"\xef\xbf\xbe", b"\\ufffe").replace(b"\xef\xbf\xbf", b"\\uffff")
    return text


def decodeFromConnectionServer(text: str) -> FromConnectionServer:
    """
    Read what a connection server sent to an app server.

    @raise MalformedPayload: if it is not a message of the protocol.
    """
    try:
        # Nearly always it is a message or an ACK, and there is nothing else in the
        # text if, written anew, that has its length (see _unambiguous): no other
        # message_type, either.  Any other text takes the careful way.
        decode = _decodeAck if text.endswith(_ACK_END) else _decodeUpstream
        try:
            likely: UpstreamMessage | Ack = decode(text)
        except msgspec.ValidationError:
            pass
        else:
            size = len(text) if text.isascii() else len(text.encode())
            if len(_encode(likely)) == size <= MAX_TEXT:
                return likely
        messageType = _decodeHead(text).message_type
        if messageType is None:
            return _unambiguous(text, _decodeUpstream(text))
        decode = _decoders.get(messageType)
        if decode is None:
            return _unambiguous(text, Unrecognized(message_type=messageType))
        message: FromConnectionServer = decode(text)
        return _unambiguous(text, message)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise _malformed(text, error, "from") from None


def decodeFromAppServer(text: str) -> FromAppServer:
    """
    Read what an app server sent to a connection server: with C{message_type}
    C{"ack"} an ACK, with any other or none a downstream message.

    @raise MalformedPayload: if it is neither (L{MalformedAck}, if it was meant
        as an ACK); without a C{message_id} it cannot be NACKed and wants a
        stanza error.
    """
    isAck = False
    try:
        isAck = _decodeHead(text).message_type == "ack"
        if isAck:
            return _unambiguous(text, _decodeUpstreamAck(text))
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise _malformed(text, error, "to", MalformedAck if isAck else MalformedPayload) from None
    message = decodeDownstream(text)
    if message.message_id is None:
        raise MalformedPayload("Missing Required Field: message_id", None, message.to or None)
    return message


def decodeDownstream(text: str) -> DownstreamMessage:
    """
    Read a downstream message, be it on the wire or as somebody wrote it who
    wants it sent; a C{message_id} may be missing.

    @raise MalformedPayload: if it is none.
    """
    try:
        return _unambiguous(text, _decodeDownstream(text))
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        return _withNumericTTL(text, error)


def unknownFields(text: str) -> list[str]:
    """
    The fields of a downstream message that mean nothing.  On the wire they are
    ignored; whoever writes one by hand may want to know.

    @param text: what L{decodeDownstream} has read.
    """
    known = DownstreamMessage.__struct_encode_fields__
    return [field for field in msgspec.json.decode(text) if field not in known]


def _withNumericTTL(text: str, error: Exception) -> DownstreamMessage:
    """
    Read a downstream message once more, this time with C{time_to_live} as a
    string of digits, which Google's documentation has in a sample.
    """
    try:
        value = msgspec.json.decode(text)
        ttl = value.get("time_to_live")
        if isinstance(ttl, str) and ttl.isascii() and ttl.isdigit() and len(ttl) < 10:
            value["time_to_live"] = int(ttl)
            return _unambiguous(text, msgspec.convert(value, DownstreamMessage))
    except (msgspec.DecodeError, ValueError, AttributeError, RecursionError):
        # It is malformed in some other way, too; the first error tells enough.
        raise _malformed(text, error, "to") from None
    raise _malformed(text, error, "to") from None


def _unambiguous(text: str, message: _T) -> _T:
    """
    Pass on a decoded message, unless one of the text's objects has a key
    twice.

    Written anew, no value is longer than it was in the text, so if the whole
    has the length of the text there was nothing in it but this message.  That
    is cheap and holds for what real servers send; any other text is read again
    with an eye on the keys.  So is one with a notification, because of the
    floats in an iOS sound's dictionary (1e9 becomes 1000000000.0).
    """
    size = len(text) if text.isascii() else len(text.encode())
    if size > MAX_TEXT:
        raise msgspec.DecodeError("Too long")
    hasNotification = isinstance(message, DownstreamMessage) and message.notification is not None
    if size != len(_encode(message)) or hasNotification:
        json.loads(text, object_pairs_hook=_uniqueKeys)
    return message


class _DuplicateKey(msgspec.DecodeError):
    """
    An object has the same key twice.
    """


def _uniqueKeys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _DuplicateKey("Duplicate key")
    return value


def _malformed(
    text: str, error: Exception, senderField: str, kind: type[MalformedPayload] = MalformedPayload
) -> MalformedPayload:
    """
    The L{MalformedPayload} for a text that did not decode.
    """
    if isinstance(error, RecursionError):
        reason = "Nested too deeply"
    elif isinstance(error, UnicodeError):
        reason = "Not Unicode"
    else:
        # msgspec's texts name types, positions and the fields of our own
        # structs; of a value that is none of a closed set they quote it.
        reason = _QUOTED.sub("...", str(error))
    messageID, sender = _names(text, senderField)
    return kind(reason, messageID, sender)


def _names(text: str, senderField: str) -> tuple[str | None, str | None]:
    """
    The C{message_id} and sender of a text that is malformed otherwise, each
    None where it is missing, doubled or no proper string.
    """
    pairs: list[tuple[str, Any]] = []

    def outermost(found: list[tuple[str, Any]]) -> None:
        # The objects end inside out, so the last one told is the outermost.
        pairs[:] = found

    try:
        # Python's reader takes NaN and lone surrogates, which is what is
        # wanted here: the names may be good though the rest is not.
        if len(text) > MAX_TEXT or not text.lstrip(" \t\r\n").startswith("{"):
            return None, None
        json.loads(text, object_pairs_hook=outermost)
    except (ValueError, RecursionError):
        return None, None

    def name(key: str) -> str | None:
        values = [value for found, value in pairs if found == key]
        if len(values) != 1 or not isinstance(values[0], str) or not values[0]:
            return None
        try:
            values[0].encode()
        except UnicodeEncodeError:
            return None
        return values[0]

    types = [value for key, value in pairs if key == "message_type"]
    if senderField == "from" and len(types) == 1 and types[0] in ("ack", "nack", "control"):
        # No message and no receipt: it is not to be acknowledged.
        return None, None
    return name("message_id"), name(senderField)
