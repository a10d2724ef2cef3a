"""
Messages as they stand in the database: JSON in UTF-8.
"""

from __future__ import annotations

import msgspec

from fcmxmpp.errors import MalformedPayload
from fcmxmpp.messages import DownstreamMessage, Receipt, UpstreamMessage
from fcmxmpp.payload import decodeDownstream, decodeFromConnectionServer


__all__ = ["Upstream", "encodeBody", "readDownstream", "readUpstream"]

Upstream = UpstreamMessage | Receipt

#: Not that of fcmxmpp.payload: its escapes for XML may make six bytes of one, and
#: what comes out may then be too long to be read again.
encodeBody = msgspec.json.Encoder().encode


def readUpstream(body: bytes) -> Upstream:
    """
    What a device has sent.

    @raise MalformedPayload: if that cannot be read.
    """
    message = decodeFromConnectionServer(_text(body))
    if not isinstance(message, (UpstreamMessage, Receipt)):
        raise MalformedPayload("Neither a message nor a receipt")
    return message


def readDownstream(body: bytes) -> DownstreamMessage:
    """
    What the application sends.

    @raise MalformedPayload: if that cannot be read.
    """
    return decodeDownstream(_text(body))


def _text(body: bytes) -> str:
    """
    The JSON.
    """
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise MalformedPayload("Not Unicode") from None
