"""
Tests of L{fcmxmpp.envelopes}, and of what the element stream makes of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from xml.parsers import expat
from xml.sax.saxutils import escape

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from twisted.words.xish import domish

from fcmxmpp.elementstream import (
    LESSONS,
    MAX_ENVELOPES,
    MAX_KEPT,
    MAX_STANZA_BYTES,
    GCMStanza,
    StanzaElementStream,
    StreamRefused,
)
from fcmxmpp.envelopes import STANZA_END, Envelope, envelopeOf, textOf
from tests.cutting import pieces


HEADER = b'<stream:stream xmlns="jabber:client" xmlns:stream="http://etherx.jabber.org/streams">'
UP = (
    b'<message to="1@gcm.googleapis.com" from="devices@gcm.googleapis.com" type="normal">'
    b'<gcm xmlns="google:mobile:data">'
)
ACK = b'<message><data:gcm xmlns:data="google:mobile:data">'
UP_END, ACK_END = b"</gcm></message>", b"</data:gcm></message>"
ATTRIBUTES = {"to": "1@gcm.googleapis.com", "from": "devices@gcm.googleapis.com", "type": "normal"}


def up(raw: bytes) -> bytes:
    """
    A stanza with a message.
    """
    return UP + raw + UP_END


def ack(raw: bytes) -> bytes:
    """
    A stanza with an answer.
    """
    return ACK + raw + ACK_END


class EnvelopeTests(SynchronousTestCase):
    """
    L{envelopeOf}: which envelopes are worth knowing.
    """

    def test_known(self) -> None:
        """
        What a connection server puts around its messages and answers, and what
        others may.
        """
        for opening, closing in (
            (UP, UP_END),
            (ACK, ACK_END),
            (b"<message><gcm xmlns='google:mobile:data'>", UP_END),
            (b"<message><gcm>", UP_END),
            (b'<message id=""><gcm xmlns="google:mobile:data">', UP_END),
            (b'<message xml:lang="en" to=\'a"b\'><a:gcm>', b"</a:gcm></message>"),
        ):
            for text in (b"", b'{"a":"&quot;"}', b"a > b"):
                found = envelopeOf(opening + text + closing, ATTRIBUTES)
                self.assertEqual(Envelope(opening, closing, ATTRIBUTES), found, opening)

    def test_unknown(self) -> None:
        """
        What is of one stanza only, or has to be looked at more closely.
        """
        for stanza in (
            b'<message id="7"><gcm xmlns="google:mobile:data">{}</gcm></message>',
            b'<message to="a" id="7"><gcm xmlns="google:mobile:data">{}</gcm></message>',
            b'<message to="a&amp;b"><gcm>{}</gcm></message>',
            b"<message ><gcm>{}</gcm></message>",
            b"<message><gcm>{}</gcm ></message>",
            b"<message> <gcm>{}</gcm></message>",
            b"<message><gcm><![CDATA[{}]]></gcm></message>",
            b"<message><gcm/></message>",
            b"<message><gcm>{}</gcm></message> ",
        ):
            self.assertIsNone(envelopeOf(stanza, {}), stanza)


def parsed(raw: bytes) -> str | None:
    """
    What the parser makes of a text; None if it is not well-formed.
    """
    texts: list[str] = []
    parser = expat.ParserCreate("UTF-8")
    parser.CharacterDataHandler = texts.append
    try:
        parser.Parse(b"<a>" + raw + b"</a>", True)
    except expat.ExpatError:
        return None
    return "".join(texts)


class TextTests(SynchronousTestCase):
    """
    L{textOf}: a text without a parser.
    """

    def test_read(self) -> None:
        """
        Text as it comes from connection servers.
        """
        for raw, text in (
            (b"", ""),
            (b'{"a":"b"}\n\t', '{"a":"b"}\n\t'),
            (b"{&quot;a&quot;:1}", '{"a":1}'),
            ("{&quot;\u00e4\u20ac\U0001f600&quot;}".encode(), '{"\u00e4\u20ac\U0001f600"}'),
            ("\U0001ffff\u0085".encode(), "\U0001ffff\u0085"),
        ):
            self.assertEqual(text, textOf(raw))
            self.assertEqual(text, parsed(raw))

    def test_left(self) -> None:
        """
        What the parser has to see: other references, what it changes, and what
        it refuses.
        """
        for raw in (
            b"&amp;",
            b"&quot;&amp;",
            b"&#34;",
            b"&quot",
            b"&",
            b"]]>",
            b"a\r\nb",
            b"\x00",
            b"\x1f",
            b"\x7f",
            b"\xff",
            b"\xc3",
            b"\xed\xa0\x80",
            b"\xc0\x80",
            "\ufffe".encode(),
            "\uffff".encode(),
        ):
            self.assertIsNone(textOf(raw), raw)

    @given(st.one_of(st.binary(), st.text().map(lambda text: escape(text, {'"': "&quot;"}).encode())))
    def test_agrees(self, raw: bytes) -> None:
        """
        What is read is what the parser would have said.
        """
        text = textOf(raw.replace(b"<", b""))
        if text is not None:
            self.assertEqual(parsed(raw.replace(b"<", b"")), text)


class Watched(StanzaElementStream):
    """
    An element stream that notes its events, and what its parser gets.
    """

    def __init__(self, lessons: int = LESSONS, header: bytes = HEADER) -> None:
        super().__init__()
        self._lessons = lessons
        self.got: list[Any] = []
        self.parsed: list[bytes] = []
        self.DocumentStartEvent = lambda root: None
        self.DocumentEndEvent = lambda: self.got.append("end")
        self.ElementEvent = lambda element: self.got.append(element.toXml())
        self.GCMEvent = self.got.append
        self.parse(header)

    def _parse(self, buffer: bytes) -> None:
        """
        The parser gets bytes.
        """
        self.parsed.append(buffer)
        super()._parse(buffer)

    def feed(self, data: bytes, cuts: Iterable[int] = ()) -> list[Any]:
        """
        Give it bytes, in pieces.

        @return: what came of them.
        """
        before = len(self.got)
        for piece in pieces(data, cuts):
            self.parse(piece)
        return self.got[before:]


def taught() -> Watched:
    """
    An element stream that knows both envelopes, and has been read nothing
    since.
    """
    stream = Watched()
    stream.feed(up(b"1") * 2 + ack(b"2"))
    assert len(stream.got) == 3
    del stream.got[:], stream.parsed[:]
    return stream


_TEXTS = st.sampled_from(
    [
        b"",
        b'{"a":"b"}',
        b"{&quot;a&quot;:1}",
        b"{&quot;&amp;&quot;}",
        "\u00e4\u20ac".encode(),
        b"]]>",
        b"\x00",
        b"\xc3",
        b"a\r\nb",
        b"<x/>",
        b"<![CDATA[</gcm></message>]]>",
        b"&lt;/gcm>&lt;/message>",
        b"\xef\xbf\xbf",
    ]
)
_STANZAS = st.one_of(
    st.builds(up, _TEXTS),
    st.builds(ack, _TEXTS),
    st.sampled_from(
        [
            b"<message/>",
            b"<message></message>",
            b"<message/><![CDATA[x",
            b"<message/><abcdefghi",
            b"]]>",
            b"<iq/>",
            b"<iq></iq>",
            b"</message>",
            b"<message>",
            b" ",
            b"     ",
            b"\n",
            b"<!-- c -->",
            b"<!-- ",
            b"-->",
            b"</stream:stream>",
            UP,
            ACK,
            UP_END,
            UP[:20],
            UP[20:],
            UP.replace(b">", b" >") + UP_END,
            b'<message id="1"><gcm xmlns="google:mobile:data">{}</gcm></message>',
            b"<x><message><gcm xmlns='google:mobile:data'>{}</gcm></message></x>",
            b'<iq a="</message>"/>',
        ]
    ),
)


class StreamTests(SynchronousTestCase):
    """
    L{StanzaElementStream}: known envelopes.
    """

    def test_withoutParser(self) -> None:
        """
        Once both envelopes have come the parser sees no such stanza any more,
        wherever the reads end.
        """
        data = up(b'{"a":1}') + ack(b"{&quot;b&quot;}") + up(b"")
        expected = [
            GCMStanza('{"a":1}', ATTRIBUTES),
            GCMStanza('{"b"}', {}),
            GCMStanza("", ATTRIBUTES),
        ]
        for cut in range(len(data)):
            stream = taught()
            self.assertEqual(expected, stream.feed(data, [cut]), cut)
            self.assertEqual([], stream.parsed, cut)
        stream = taught()
        self.assertEqual(expected, stream.feed(data, range(len(data))))
        self.assertEqual([], stream.parsed)

    def test_emptyMessage(self) -> None:
        """
        Of an empty C{<message/>} the parser does not say where it begins: what
        follows it in the same read is for the parser, too.
        """
        stream = taught()
        self.assertEqual(1, len(stream.feed(b"<message/><![CDATA[x")))
        self.assertEqual([], stream.feed(up(b"{}")))
        self.assertEqual([], stream.feed(b"]]>"))
        stream = taught()
        stream.feed(b"<message/><abcdefghi")
        self.assertRaises(domish.ParserError, stream.feed, up(b"{}"))

    def test_learnedOnce(self) -> None:
        """
        A known envelope is not learned again with a text that takes the parser.
        """
        stream = Watched()
        stream.feed(up(b"&amp;") * 10 + ack(b"{}"))
        del stream.parsed[:]
        self.assertEqual(2, len(stream.feed(up(b"{}") + ack(b"{}"))))
        self.assertEqual([], stream.parsed)

    def test_encoding(self) -> None:
        """
        It is UTF-8, with the parser and without, whatever the stream declares.
        """
        for lessons in (0, LESSONS):
            stream = Watched(lessons, b'<?xml version="1.0" encoding="ISO-8859-1"?>' + HEADER)
            texts = [got.text for got in stream.feed(up("\u00e4".encode()) * 5)]
            self.assertEqual(["\u00e4"] * 5, texts)

    def test_backAgain(self) -> None:
        """
        Whatever is different goes to the parser, by itself, and those behind it
        are read without again.
        """
        good = up(b"{}")
        for other, count in (
            (up(b"&amp;"), 1),
            (b" " + up(b"{}"), 1),
            (b'<message id="1"><gcm xmlns="google:mobile:data">{}</gcm></message>', 1),
            (b"<message/>" + up(b"{}"), 2),
            (b'<iq type="get"/>' + up(b"{}"), 2),
        ):
            stream = taught()
            self.assertEqual(1 + count + 3, len(stream.feed(good + other + good * 3)), other)
            self.assertEqual(other, b"".join(stream.parsed), other)

    def test_large(self) -> None:
        """
        A large stanza that comes in several reads goes to the parser, and
        nothing behind it.
        """
        stream = taught()
        large = up(b"x" * MAX_KEPT)
        self.assertEqual(4, len(stream.feed(large + up(b"{}") * 3, [MAX_KEPT + 10])))
        self.assertEqual(large, b"".join(stream.parsed))

    def test_wantsNoMore(self) -> None:
        """
        Who gets a stanza may say that no more is wanted.
        """
        stream = taught()

        def once(stanza: GCMStanza) -> None:
            stream.got.append(stanza)
            stream.GCMEvent = lambda stanza: None

        stream.GCMEvent = once
        self.assertEqual(1, len(stream.feed(up(b"1") + up(b"2"))))

    def test_refusedByWhoGetsIt(self) -> None:
        """
        Who gets a stanza may refuse it.
        """
        stream = taught()

        def refuse(stanza: GCMStanza) -> None:
            raise StreamRefused("not-authorized", "no")

        stream.GCMEvent = refuse
        self.assertRaises(StreamRefused, stream.feed, up(b"1"))

    def test_size(self) -> None:
        """
        A stanza with a known envelope may take 64 KiB, and not one byte more,
        in one read or in many.
        """
        most = MAX_STANZA_BYTES - len(up(b""))
        for cuts in ([], range(0, MAX_STANZA_BYTES, 1000)):
            stream = taught()
            (got,) = stream.feed(up(b"x" * most), cuts)
            self.assertEqual(most, len(got.text))
            # Give or take the tag that ends it.
            larger = up(b"x" * (most + 1 + len(STANZA_END)))
            error = self.assertRaises(StreamRefused, stream.feed, larger, cuts)
            self.assertEqual("policy-violation", error.condition)

    def test_kept(self) -> None:
        """
        Little of a stanza is kept from the parser: what does not end is
        measured, and refused.
        """
        stream = taught()
        stream.feed(UP)
        error = self.assertRaises(StreamRefused, stream.feed, b"x" * MAX_STANZA_BYTES, range(0, 65_536, 500))
        self.assertEqual("policy-violation", error.condition)
        self.assertLess(len(stream.parsed[0]), MAX_KEPT + 1000)

    def test_lessons(self) -> None:
        """
        A stream whose envelopes are all different is not looked at for ever;
        from then on the parser gets it as it comes.
        """
        stream = Watched()
        count = LESSONS + 1
        stanzas = b"".join(b'<message id="%d"><gcm>{}</gcm></message>' % n for n in range(count))
        stanzas = stanzas.replace(b"<gcm>", b'<gcm xmlns="google:mobile:data">')
        self.assertEqual(count, len(stream.feed(stanzas)))
        del stream.parsed[:]
        self.assertEqual(count, len(stream.feed(stanzas)))
        self.assertEqual([stanzas], stream.parsed)

    def test_envelopes(self) -> None:
        """
        Nor are ever more of them known.
        """
        stream = Watched()
        stanzas = [
            b'<message to="%d"><gcm xmlns="google:mobile:data">{}</gcm></message>' % n
            for n in range(MAX_ENVELOPES + 1)
        ]
        stream.feed(b"".join([stanzas[0], *stanzas]))
        del stream.parsed[:]
        self.assertEqual(len(stanzas), len(stream.feed(b"".join(stanzas))))
        self.assertEqual(stanzas[-1:], stream.parsed)

    @given(st.lists(_STANZAS, max_size=8), st.lists(st.integers(0, 2000), max_size=6))
    def test_agrees(self, stanzas: list[bytes], cuts: list[int]) -> None:
        """
        Whatever comes, and wherever it is cut: the events are those that there
        would be without known envelopes, and so is what is refused.
        """
        data = b"".join(stanzas) + b"<x/>"
        results = []
        for stream in (taught(), Watched(0)):
            if not stream.parsed:
                stream.feed(b"")
            del stream.got[:]
            try:
                stream.feed(data, cuts)
                refusal = None
            except domish.ParserError as error:
                refusal = getattr(error, "condition", "not-well-formed")
            results.append((stream.got, refusal))
        self.assertEqual(results[1], results[0])
