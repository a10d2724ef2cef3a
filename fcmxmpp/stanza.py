"""
Messages to stanzas and back: the C{<message><gcm>} envelope in both
directions, stanza errors, and the answers to IQs.

What is sent is formatted text; no elements are built for it.
"""

from __future__ import annotations

import re
from string import ascii_letters, digits
from xml.sax.saxutils import escape

from msgspec import Struct
from twisted.words.xish import domish

from fcmxmpp.elementstream import MAX_STANZA_BYTES, NS_GCM, GCMStanza
from fcmxmpp.errors import NotSendable
from fcmxmpp.messages import FromAppServer, FromConnectionServer, Receipt, UpstreamAck, UpstreamMessage
from fcmxmpp.payload import encode


__all__ = [
    "NS_PING",
    "NS_STANZAS",
    "StanzaError",
    "ackStanza",
    "answerIQ",
    "attribute",
    "clientStanza",
    "conditionName",
    "parseStanzaError",
    "payloadOf",
    "serverStanza",
    "stanzaError",
]

#: The longest C{message_id} that is repeated as the C{id} of its stanza; a
#: long one twice would make the stanza too large.
MAX_ID = 256
#: What needs no care as part of an C{id}.
_PLAIN = (ascii_letters + digits + "-_").encode()
#: The namespace of XEP-0199 pings.
NS_PING = "urn:xmpp:ping"
#: The namespace of the conditions in a stanza error.
NS_STANZAS = "urn:ietf:params:xml:ns:xmpp-stanzas"


def attribute(value: str) -> str:
    """
    A text as the value of an XML attribute, between double quotes.
    """
    # Tabs and line breaks would be read as blanks.
    return escape(value, {'"': "&quot;", "\t": "&#9;", "\n": "&#10;", "\r": "&#13;"})


def clientStanza(message: FromAppServer) -> bytes:
    """
    A message of the app server, as the stanza to send.

    The stanza's C{id} repeats the C{message_id} where that is short and needs
    no care, because a stanza error may echo nothing else.

    @raise NotSendable: if it has become what cannot be sent since it was
        checked.
    """
    payload = encode(message)
    stanzaID = (message.message_id or "").encode()
    # isalnum asks for letters and digits of ASCII.
    if (not stanzaID.isalnum() and stanzaID.translate(None, _PLAIN)) or len(stanzaID) > MAX_ID:
        stanzaID = b""
    stanza = b'<message id="%b"><gcm xmlns="google:mobile:data">%b</gcm></message>' % (stanzaID, payload)
    if len(stanza) > MAX_STANZA_BYTES:
        # It would end the stream, and each that it is sent on again.
        raise NotSendable("message", "must not be larger than a stanza may be")
    return stanza


def ackStanza(ack: UpstreamAck) -> bytes:
    """
    An ACK of the app server, as the stanza to send.

    @raise NotSendable: if it is too large for one.
    """
    stanza = b'<message id=""><gcm xmlns="google:mobile:data">%b</gcm></message>' % encode(ack)
    if len(stanza) > MAX_STANZA_BYTES:
        raise NotSendable("message_id", "must not be larger than a stanza may be")
    return stanza


def serverStanza(message: FromConnectionServer, to: str = "") -> bytes:
    """
    A message of the connection server, as the stanza to send, in the shapes
    that clients in the field depend on to the byte (docs/protocol.md 2.2).

    @param to: the bare JID of the app server, for upstream messages and
        receipts.
    """
    if isinstance(message, (UpstreamMessage, Receipt)):
        return (
            b'<message to="%b" from="devices@gcm.googleapis.com" type="normal">'
            b'<gcm xmlns="google:mobile:data">%b</gcm></message>'
        ) % (attribute(to).encode(), encode(message))
    return b'<message><data:gcm xmlns:data="google:mobile:data">%b</data:gcm></message>' % encode(message)


def conditionName(name: str | None) -> str:
    """
    The name of an error condition, fit for a log: the peer might have put
    anything in its place.
    """
    return name if name and re.fullmatch("[a-z-]{1,40}", name) else "unknown condition"


_ERRORS = {400: "bad-request", 406: "not-acceptable"}


def stanzaError(code: int, text: str, to: str, stanza: GCMStanza) -> bytes:
    """
    The stanza error for a message that cannot be answered otherwise.

    @param code: 400 or 406.
    @param text: for people.
    @param to: the full JID of the client.
    @param stanza: what it sent; its C{id}, where it has one, and its payload
        are echoed.
    """
    stanzaID = stanza.attributes.get("id")
    idAttribute = "" if stanzaID is None else f' id="{attribute(stanzaID)}"'
    return (
        f'<message{idAttribute} type="error" to="{attribute(to)}">'
        f'<gcm xmlns="{NS_GCM}">{escape(stanza.text)}</gcm>'
        f'<error code="{code}" type="modify"><{_ERRORS[code]} xmlns="{NS_STANZAS}"/>'
        f'<text xmlns="{NS_STANZAS}">{escape(text)}</text></error></message>'
    ).encode()


def answerIQ(element: domish.Element) -> bytes | None:
    """
    The answer to an IQ request that nobody else understands: a result for an
    XEP-0199 ping, C{service-unavailable} for everything else.

    @return: None for what is no request, and so wants no answer.
    """
    if element.name != "iq" or element.getAttribute("type") not in ("get", "set"):
        return None
    # Answered without addresses: there are only two parties on this stream.
    stanzaID = element.getAttribute("id")
    idAttribute = "" if stanzaID is None else f' id="{attribute(stanzaID)}"'
    if any(child.name == "ping" and child.uri == NS_PING for child in element.elements()):
        return f'<iq type="result"{idAttribute}/>'.encode()
    return (
        f'<iq type="error"{idAttribute}><error type="cancel">'
        f'<service-unavailable xmlns="{NS_STANZAS}"/></error></iq>'
    ).encode()


def payloadOf(element: domish.Element) -> GCMStanza | None:
    """
    The payload of a C{<message>} that the element stream did not recognize as
    a L{GCMStanza}, because there is more in it or because it is in a namespace
    of its own.

    @return: None if it has no payload.
    """
    for child in element.elements():
        if child.name == "gcm" and child.uri == NS_GCM:
            attributes = {name: value for name, value in element.attributes.items() if isinstance(name, str)}
            return GCMStanza(str(child), attributes)
    return None


class StanzaError(Struct, frozen=True):
    """
    A stanza error, as the app server reads it.

    @ivar code: 400, 406, or another; 0 if it is missing.
    @ivar condition: the XMPP condition, such as C{"bad-request"}.
    @ivar stanzaID: the C{id} of the stanza at fault, if it was echoed.
    @ivar text: the payload that was echoed, or None.
    """

    code: int
    condition: str
    stanzaID: str | None
    text: str | None


def parseStanzaError(element: domish.Element) -> StanzaError | None:
    """
    Read a C{<message>} as a stanza error.

    @return: None if it is not one.
    """
    if element.name != "message" or element.getAttribute("type") != "error":
        return None
    code, condition, text = 0, "undefined-condition", None
    for child in element.elements():
        if child.name == "gcm" and child.uri == NS_GCM:
            text = str(child)
        elif child.name == "error":
            value = child.getAttribute("code", "")
            code = int(value) if value.isascii() and value.isdigit() and len(value) < 4 else 0
            for detail in child.elements():
                if detail.uri == NS_STANZAS and detail.name != "text":
                    condition = conditionName(detail.name)
    return StanzaError(code, condition, element.getAttribute("id"), text)
