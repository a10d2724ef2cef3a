"""
Bytes to stanzas and back: the element stream, the C{<message><gcm>} envelope,
and the stream that both ends of a connection share.

A message costs an app server little more than its JSON, because this room goes
around the general machinery where it can:

  - the element stream recognizes C{<message><gcm>TEXT</gcm></message>} while
    it parses, by namespace, and builds no element for it.  Every other stanza
    becomes a L{domish.Element<twisted.words.xish.domish.Element>};
  - outgoing messages are formatted text;
  - what is written while one piece of input is being handled goes out in one
    write.

The element stream is strict, too: stanzas are bounded in bytes, depth and
number of elements, and it accepts no DTD, no entity declaration, no comment
and no processing instruction, which RFC 6120 forbids and which are how XML is
abused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from xml.sax.saxutils import escape

from msgspec import Struct
from twisted.internet.interfaces import IDelayedCall, IReactorTime, ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.words.protocols.jabber import xmlstream
from twisted.words.protocols.jabber.error import StreamError, exceptionFromStreamError
from twisted.words.xish import domish

from fcmxmpp.messages import FromAppServer, FromConnectionServer, Receipt, UpstreamMessage
from fcmxmpp.payload import encode


__all__ = [
    "MAX_STANZA_BYTES",
    "NS_GCM",
    "NS_PING",
    "NS_STANZAS",
    "GCMStanza",
    "GCMStream",
    "StanzaElementStream",
    "StanzaError",
    "StreamRefused",
    "answerIQ",
    "attribute",
    "clientStanza",
    "parseStanzaError",
    "payloadOf",
    "serverStanza",
    "stanzaError",
]

#: The namespace of C{<gcm>}.
NS_GCM = "google:mobile:data"
#: The namespace of XEP-0199 pings.
NS_PING = "urn:xmpp:ping"
#: The namespace of the conditions in a stanza error.
NS_STANZAS = "urn:ietf:params:xml:ns:xmpp-stanzas"
#: The largest stanza that is read, in bytes.
MAX_STANZA_BYTES = 65_536
#: The deepest nesting of elements in a stanza.
MAX_DEPTH = 32
#: The most elements in a stanza.
MAX_ELEMENTS = 256
#: How long a stream that is being closed may take for it, in seconds.
CLOSE_PATIENCE = 10.0

_GCM = f"{NS_GCM} gcm"
_MESSAGE = "jabber:client message"


class StreamRefused(domish.ParserError):
    """
    The peer sent what must not stand in an XMPP stream.

    @ivar condition: the RFC 6120 stream error to answer with.
    """

    def __init__(self, condition: str, reason: str) -> None:
        super().__init__(reason)
        self.condition = condition


class GCMStanza(Struct):
    """
    One C{<message>} with a C{<gcm>} and nothing else in it.

    @ivar text: the JSON text, unescaped.
    @ivar attributes: of the C{<message>}; C{type} is missing as often as not.
    """

    text: str
    attributes: dict[str, str]


class StanzaElementStream(domish.ExpatElementStream):
    """
    An element stream that gives L{GCMStanza}s to L{GCMEvent}, and every other
    stanza as an element to C{ElementEvent}.

    The superclass keeps its element building in private callbacks, which this
    one calls for what it does not handle itself; test_stanza.py pins them.
    """

    maxStanzaSize = MAX_STANZA_BYTES

    GCMEvent: Callable[[GCMStanza], None]

    def __init__(self) -> None:
        super().__init__()
        parser = self.parser
        # One piece of text per element: unbuffered, every &quot; is a piece of
        # its own, and joining them is quadratic.
        parser.buffer_text = True
        parser.buffer_size = MAX_STANZA_BYTES
        # From expat 2.6 on a token that came in pieces may be held back until
        # more bytes come; a stanza's end would wait for the next stanza.  The
        # size limit bounds what the deferral protects from.
        if hasattr(parser, "SetReparseDeferralEnabled"):
            parser.SetReparseDeferralEnabled(False)
        parser.StartElementHandler = self._startElement
        parser.EndElementHandler = self._endElement
        parser.CharacterDataHandler = self._text
        parser.StartDoctypeDeclHandler = self._refuseDoctype
        parser.EntityDeclHandler = self._refuseDoctype
        parser.CommentHandler = self._refuseComment
        parser.ProcessingInstructionHandler = self._refuseInstruction
        self._depth = 0
        self._elements = 0
        self._bytes = 0
        self._stanzaFrom = 0
        # While a <message> may still turn out to be a GCM stanza: its
        # attributes, and the text of its <gcm> once that has ended.
        self._attributes: dict[str, str] | None = None
        self._gcmText: str | None = None

    def parse(self, buffer: bytes) -> None:
        """
        Take the next bytes of the stream.

        @raise domish.ParserError: if they are not XML, or are refused.
        """
        self._bytes += len(buffer)
        try:
            self.parser.Parse(buffer)
        except self.error as error:
            # Only expat's own words, which are fixed; never the bytes.
            raise domish.ParserError(str(error)) from None
        self._limit(self._bytes)

    def _limit(self, end: int) -> None:
        """
        Refuse a stanza that is too large by this byte of the stream.
        """
        if end - self._stanzaFrom > self.maxStanzaSize:
            raise StreamRefused("policy-violation", "the stanza is too large")

    def _startElement(self, name: str, attributes: dict[str, str]) -> None:
        """
        Expat: an element starts.
        """
        self._depth += 1
        if self._depth == 2:
            self._stanzaFrom = self.parser.CurrentByteIndex
            if name == _MESSAGE:
                self._attributes = attributes
                self._gcmText = None
                return
        if self._attributes is not None:
            if self._depth == 3 and name == _GCM and self._gcmText is None:
                self._gcmText = ""
                return
            self._build()
        self._elements += 1
        if self._depth > MAX_DEPTH or self._elements > MAX_ELEMENTS:
            raise StreamRefused("policy-violation", "the stanza has too many elements")
        self._onStartElement(name, attributes)

    def _build(self) -> None:
        """
        The C{<message>} is no GCM stanza after all: build the elements that
        were left out up to here.
        """
        attributes, self._attributes = self._attributes, None
        text, self._gcmText = self._gcmText, None
        # The prefixes that the newest element declares are its own.
        prefixes, self.localPrefixes = self.localPrefixes, {}
        self._onStartElement(_MESSAGE, attributes)
        if text is not None:
            self._onStartElement(_GCM, {})
            if text:
                self._onCdata(text)
            if self._depth == 3:
                self._onEndElement(_GCM)
        self.localPrefixes = prefixes

    def _endElement(self, name: str) -> None:
        """
        Expat: an element ends.
        """
        depth = self._depth
        self._depth = depth - 1
        if depth == 2:
            # It may have come in one read, which is not looked at before.
            self._limit(self.parser.CurrentByteIndex)
        if self._attributes is None:
            self._onEndElement(name)
        elif depth == 2:
            attributes, text = self._attributes, self._gcmText
            self._attributes = None
            if text is None:
                self._onStartElement(_MESSAGE, attributes)
                self._onEndElement(_MESSAGE)
            else:
                self.localPrefixes = {}
                self.GCMEvent(GCMStanza(text, attributes))
        if depth == 2:
            self._elements = 0
            self._stanzaFrom = self._bytes

    def _text(self, text: str) -> None:
        """
        Expat: text, whole.
        """
        if self._attributes is None:
            self._onCdata(text)
            if self._depth < 2:
                # A keep-alive between stanzas.
                self._stanzaFrom = self._bytes
        elif self._depth == 3:
            # Appended, because text is cut where a read ended.
            self._gcmText = (self._gcmText or "") + text
        # Text beside the <gcm> means nothing.

    def _refuseDoctype(self, *_: object) -> None:
        """
        Expat: a DTD, or an entity declaration.
        """
        raise StreamRefused("restricted-xml", "DTDs and entities are not accepted")

    def _refuseComment(self, _: str) -> None:
        """
        Expat: a comment.
        """
        raise StreamRefused("restricted-xml", "comments are not accepted")

    def _refuseInstruction(self, *_: str) -> None:
        """
        Expat: a processing instruction.
        """
        raise StreamRefused("restricted-xml", "processing instructions are not accepted")


class GCMStream(xmlstream.XmlStream):
    """
    One XMPP stream, at either end.

    @ivar onGCM: is called with every L{GCMStanza}; none is expected before the
        login is complete.
    @ivar onBytes: is called when any bytes came.
    @ivar clock: for the timers of twisted.words, which would take the global
        reactor.
    @ivar malformedCondition: the stream error for what is not well-formed.
    """

    malformedCondition = "not-well-formed"

    #: The parser; None once the stream is listened to no more.
    stream: StanzaElementStream | None
    #: What a stream runs on; TLS over TCP, or what a test puts in its place.
    transport: ITCPTransport

    def __init__(self, authenticator: xmlstream.Authenticator, clock: IReactorTime) -> None:
        super().__init__(authenticator)
        self.clock = clock
        self.onGCM: Callable[[GCMStanza], None] = self._unauthorized
        self.onBytes: Callable[[], None] = lambda: None
        self._gathered: list[bytes] | None = None
        self._closing: IDelayedCall | None = None

    def _initializeStream(self) -> None:
        """
        Set up the parser: for the connection, and again after SASL.
        """
        self.stream = StanzaElementStream()
        self.stream.DocumentStartEvent = self.onDocumentStart
        self.stream.ElementEvent = self.onElement
        self.stream.DocumentEndEvent = self.onDocumentEnd
        self.stream.GCMEvent = lambda stanza: self.onGCM(stanza)

    def _callLater(self, *args: Any, **kwargs: Any) -> Any:
        """
        For the IQ timers of twisted.words.
        """
        return self.clock.callLater(*args, **kwargs)

    def _unauthorized(self, stanza: GCMStanza) -> None:
        """
        A message came before its sender had logged in, or had let us in.
        """
        raise StreamRefused("not-authorized", "a message before the login was complete")

    def dataReceived(self, data: bytes) -> None:
        """
        Take bytes from the peer, and send the answers to them in one write.
        """
        self.onBytes()
        self._gathered = []
        try:
            if self.stream is not None:
                self.stream.parse(data)
        except domish.ParserError as error:
            self._refuse(error)
        finally:
            gathered, self._gathered = self._gathered, None
            if gathered:
                self.transport.write(b"".join(gathered))

    def _refuse(self, error: domish.ParserError) -> None:
        """
        Answer what cannot be accepted with a stream error, and close.
        """
        condition = error.condition if isinstance(error, StreamRefused) else self.malformedCondition
        self.dispatch(Failure(error), xmlstream.STREAM_ERROR_EVENT)
        self.sendStreamError(StreamError(condition))

    def sendStreamError(self, streamError: StreamError) -> None:
        """
        End the stream with an error.

        We are deaf from here on, though more may come before the connection
        is closed, and though more may stand in what is being parsed.
        """
        self.stream = None
        self.onGCM = lambda stanza: None
        super().sendStreamError(streamError)
        self.limitClose()

    def onElement(self, element: domish.Element) -> None:
        """
        A stanza came that is no message with a payload.
        """
        if self.stream is not None:
            self.elementReceived(element)

    def elementReceived(self, element: domish.Element) -> None:
        """
        The same, while we listen: it goes to whoever has asked for it.
        """
        super().onElement(element)

    def onStreamError(self, errelem: domish.Element) -> None:
        """
        The peer ended the stream with an error: end ours.
        """
        self.dispatch(Failure(exceptionFromStreamError(errelem)), xmlstream.STREAM_ERROR_EVENT)
        self.close()

    def onDocumentEnd(self) -> None:
        """
        The peer ended its half of the stream: end ours.
        """
        self.close()

    def close(self) -> None:
        """
        End the stream in order, and by force if the peer does not let us.
        """
        if self._closing is None:
            if self._headerSent:
                self.sendFooter()
            self.transport.loseConnection()
            self.limitClose()

    @property
    def closing(self) -> bool:
        """
        Whether this end of the stream has been ended.
        """
        return self._closing is not None

    def limitClose(self) -> None:
        """
        Do not wait for ever for a peer that reads no more.
        """
        if self._closing is None:
            self._closing = self.clock.callLater(CLOSE_PATIENCE, self.abort)

    def abort(self) -> None:
        """
        Drop the connection, whatever is still to be sent.
        """
        self.stream = None
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        The connection is gone.
        """
        if self._closing is not None and self._closing.active():
            self._closing.cancel()
        super().connectionLost(reason)

    def send(self, obj: Any) -> None:
        """
        Send an element, text, or bytes of UTF-8.
        """
        if isinstance(obj, bytes):
            self.write(obj)
        else:
            self.flush()
            super().send(obj)

    def write(self, stanza: bytes) -> None:
        """
        Send one stanza as it is.
        """
        if self._gathered is None:
            self.transport.write(stanza)
        else:
            self._gathered.append(stanza)

    def flush(self) -> None:
        """
        Send what was gathered, so that what follows stays behind it.
        """
        if self._gathered:
            self.transport.write(b"".join(self._gathered))
            self._gathered.clear()

    def sendFooter(self) -> None:
        """
        Send C{</stream:stream>}.
        """
        self.send(b"</stream:stream>")
        self.flush()


def attribute(value: str) -> str:
    """
    A text as the value of an XML attribute, between double quotes.
    """
    # Tabs and line breaks would be read as blanks.
    return escape(value, {'"': "&quot;", "\t": "&#9;", "\n": "&#10;", "\r": "&#13;"})


def clientStanza(message: FromAppServer) -> bytes:
    """
    A message of the app server, as the stanza to send.

    The stanza's C{id} repeats the C{message_id} where that needs no care,
    because a stanza error may echo nothing else.
    """
    stanzaID = message.message_id or ""
    if not (stanzaID.isascii() and stanzaID.replace("-", "").replace("_", "").isalnum()):
        stanzaID = ""
    return b'<message id="%b"><gcm xmlns="google:mobile:data">%b</gcm></message>' % (
        stanzaID.encode("ascii"),
        encode(message),
    )


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
                    condition = detail.name
    return StanzaError(code, condition, element.getAttribute("id"), text)
