"""
The element stream: bytes to stanzas.

It recognizes C{<message><gcm>TEXT</gcm></message>} while it parses, by
namespace, and builds no element for it, which makes the difference between
some and many microseconds a message.  Every other stanza becomes a
L{domish.Element<twisted.words.xish.domish.Element>}.

Nearly all stanzas of a stream have the same envelope.  Once it is known
(L{fcmxmpp.envelopes}), a stanza is read without the parser, which is another
three microseconds for a short one and ten for 4 KB; the parser reads what is
different in any way.  It does not miss what it has not read: between two stanzas
all that it has to remember is that the stream is open.

It is strict, too: stanzas are bounded in bytes, depth and number of elements,
and it accepts no DTD, no entity declaration, no comment and no processing
instruction, which RFC 6120 forbids and which are how XML is abused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec import Struct
from twisted.words.xish import domish

from fcmxmpp.envelopes import STANZA_END, Envelope, envelopeOf, textOf


__all__ = [
    "MAX_DEPTH",
    "MAX_ELEMENTS",
    "MAX_NAMES",
    "MAX_STANZA_BYTES",
    "NS_GCM",
    "GCMStanza",
    "StanzaElementStream",
    "StreamRefused",
]

#: The namespace of C{<gcm>}.
NS_GCM = "google:mobile:data"
#: The largest stanza that is read, in bytes.
MAX_STANZA_BYTES = 65_536
#: The deepest nesting of elements in a stanza.
MAX_DEPTH = 32
#: The most elements in a stanza.
MAX_ELEMENTS = 256
#: The most different names of elements and attributes in a stream.
MAX_NAMES = 1000

#: How many envelopes are known; each costs a look.  A peer has two, one for
#: messages and one for answers.
MAX_ENVELOPES = 4
#: How many stanzas with others are looked at for that.
LESSONS = 100
#: The most bytes of a stanza, begun and not ended, that are kept from the parser
#: until the rest comes: they are copied when more comes.
MAX_KEPT = 8192

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
        # The namespaces that the next element declares, by prefix (None for the
        # default).  A C function notes them, and nothing their end: a GCM stanza
        # has one, and two calls of Python for it are a tenth of its parsing.
        self._declared: dict[str | None, str] = {}
        parser.StartNamespaceDeclHandler = self._declared.__setitem__
        parser.EndNamespaceDeclHandler = None
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
        # attributes, the text of its <gcm> once that has started, and the
        # namespace that this declares, with its prefix.
        self._attributes: dict[str, str] | None = None
        self._gcmText: str | None = None
        self._gcmDeclares: tuple[str | None, str] | None = None
        # Whether the parser is between two stanzas, and has read all that it
        # was given; where the end tag of the last GCM stanza begins, and what its
        # C{<message>} had.
        self._isBetween = False
        self._messageEnd = -len(STANZA_END)
        self._messageAttributes: dict[str, str] | None = None
        self._envelopes: list[Envelope] = []
        self._lessons = LESSONS
        # What begins like a stanza with one of them.
        self._kept = b""

    def parse(self, buffer: bytes) -> None:
        """
        Take the next bytes of the stream.

        @raise domish.ParserError: if they are not XML, or are refused.
        """
        if self._kept:
            buffer, self._kept = self._kept + buffer, b""
        start, size = 0, len(buffer)
        while True:
            if self._isBetween and self._envelopes:
                start = self._recognize(buffer, start)
            if start == size:
                return
            end = -1
            if self._envelopes or self._lessons:
                # The parser gets the one stanza, and not those behind it.
                end = buffer.find(STANZA_END, start)
            end = size if end < 0 else end + len(STANZA_END)
            self._read(buffer[start:end])
            start = end

    def _recognize(self, buffer: bytes, start: int) -> int:
        """
        Take stanzas with a known envelope.

        @param start: where in the buffer the first stanza begins.
        @return: where what is left begins.
        """
        size, startswith = len(buffer), buffer.startswith
        # The same comes many times in a row.
        opening, closing, attributes = self._envelopes[0]
        while start < size:
            if not startswith(opening, start):
                for envelope in self._envelopes:
                    if startswith(envelope.opening, start):
                        opening, closing, attributes = envelope
                        break
                else:
                    return self._keep(buffer, start, [envelope.opening for envelope in self._envelopes])
            textAt = start + len(opening)
            end = buffer.find(b"<", textAt)
            if end < 0:
                return self._keep(buffer, start)
            if not startswith(closing, end):
                return self._keep(buffer, start, [buffer[start:end] + closing])
            text = textOf(buffer[textAt:end])
            end += len(closing)
            if text is None or end - start > self.maxStanzaSize:
                return start
            start = end
            # Looked up each time: whoever gets one may want no more.
            self.GCMEvent(GCMStanza(text, attributes))
        return start

    def _keep(self, buffer: bytes, start: int, whole: Iterable[bytes] | None = None) -> int:
        """
        Keep the end of the buffer from the parser, if what comes next may make
        it a stanza that needs none.

        @param whole: of what it has to be the beginning; None if that is clear.
        @return: where what is left begins.
        """
        rest = buffer[start:]
        if len(rest) > MAX_KEPT or not (whole is None or any(one.startswith(rest) for one in whole)):
            return start
        self._kept = rest
        return len(buffer)

    def _read(self, data: bytes) -> None:
        """
        Have the parser read the next bytes.
        """
        wasBetween, self._messageAttributes = self._isBetween, None
        self._parse(data)
        # It may hold the beginning of something back.  There is nothing only if it
        # has seen the end tag of a GCM stanza last, and that is as long as all are.
        self._isBetween = self._depth == 1 and self._messageEnd + len(STANZA_END) == self._bytes
        if wasBetween and self._isBetween and self._lessons and self._messageAttributes is not None:
            self._lessons -= 1
            envelope = envelopeOf(data, self._messageAttributes)
            if envelope is not None and envelope not in self._envelopes:
                self._envelopes.append(envelope)
                if len(self._envelopes) == MAX_ENVELOPES:
                    self._lessons = 0

    def _parse(self, buffer: bytes) -> None:
        """
        See L{_read}.
        """
        self._bytes += len(buffer)
        parser = self.parser
        try:
            parser.Parse(buffer)
        except self.error as error:
            # Only expat's own words, which are fixed; never the bytes.
            raise domish.ParserError(str(error)) from None
        self._limit(self._bytes)
        # The parser keeps every name that it has ever seen.
        if len(parser.intern) > MAX_NAMES:
            raise StreamRefused("policy-violation", "too many different names")

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
        depth = self._depth = self._depth + 1
        if depth == 2:
            self._stanzaFrom = self.parser.CurrentByteIndex
            if name == _MESSAGE and not self._declared:
                self._attributes = attributes
                self._gcmText = None
                return
        elif self._attributes is not None:
            if depth == 3 and name == _GCM and self._gcmText is None and len(self._declared) < 2:
                self._gcmText = ""
                self._gcmDeclares = self._declared.popitem() if self._declared else None
                return
            self._build()
        self._elements += 1
        if depth > MAX_DEPTH or self._elements > MAX_ELEMENTS:
            raise StreamRefused("policy-violation", "the stanza has too many elements")
        declared = self._declared.copy()
        self._declared.clear()
        self._open(name, attributes, declared)

    def _open(self, name: str, attributes: dict[str, str], declared: dict[str | None, str]) -> None:
        """
        Start building an element.
        """
        self.defaultNsStack.append(declared.pop(None, self.defaultNsStack[-1]))
        self.localPrefixes = declared
        self._onStartElement(name, attributes)

    def _close(self, name: str) -> None:
        """
        An element is built.
        """
        self._onEndElement(name)
        self.defaultNsStack.pop()

    def _build(self) -> None:
        """
        The C{<message>} is no GCM stanza after all: build the elements that
        were left out up to here.
        """
        attributes, self._attributes = self._attributes, None
        text, self._gcmText = self._gcmText, None
        assert attributes is not None
        self._open(_MESSAGE, attributes, {})
        if text is not None:
            self._open(_GCM, {}, dict([self._gcmDeclares] if self._gcmDeclares else []))
            if text:
                self._onCdata(text)
            if self._depth == 3:
                self._close(_GCM)

    def _endElement(self, name: str) -> None:
        """
        Expat: an element ends.
        """
        depth = self._depth
        self._depth = depth - 1
        if depth > 2:
            if self._attributes is None:
                self._close(name)
            return
        if depth == 2:
            # It may have come in one read, which is not looked at before; but
            # only a large one is worth asking where exactly it ends.
            if self._bytes - self._stanzaFrom > self.maxStanzaSize:
                self._limit(self.parser.CurrentByteIndex)
            attributes, text = self._attributes, self._gcmText
            self._stanzaFrom = self._bytes
            if attributes is not None:
                self._attributes = None
                if text is not None:
                    # Not that of a <message/>, which is just as long, and for which
                    # the parser says where it ends.
                    self._messageEnd = self.parser.CurrentByteIndex
                    self._messageAttributes = attributes
                    self.GCMEvent(GCMStanza(text, attributes))
                    return
                self._open(_MESSAGE, attributes, {})
            self._elements = 0
        self._close(name)

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
