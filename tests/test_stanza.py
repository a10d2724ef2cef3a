"""
Tests of L{fcmxmpp.stanza}.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from xml.sax.saxutils import escape

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.words.protocols.jabber import xmlstream
from twisted.words.protocols.jabber.error import StreamError
from twisted.words.xish import domish

from fcmxmpp import stanza as stanzas
from fcmxmpp.elementstream import (
    MAX_DEPTH,
    MAX_ELEMENTS,
    MAX_STANZA_BYTES,
    NS_GCM,
    GCMStanza,
    StanzaElementStream,
    StreamRefused,
)
from fcmxmpp.messages import (
    Ack,
    Control,
    DownstreamMessage,
    FromConnectionServer,
    Nack,
    Receipt,
    ReceiptData,
    UpstreamAck,
    UpstreamMessage,
)
from fcmxmpp.stanza import (
    NS_STANZAS,
    StanzaError,
    answerIQ,
    attribute,
    clientStanza,
    parseStanzaError,
    payloadOf,
    serverStanza,
    stanzaError,
)
from fcmxmpp.xmppstream import GCMStream
from tests.cutting import pieces


HEADER = (
    b'<stream:stream xmlns="jabber:client" xmlns:stream="http://etherx.jabber.org/streams" version="1.0">'
)
GCM_START = b'<message><gcm xmlns="google:mobile:data">'
GCM_END = b"</gcm></message>"


class Reader:
    """
    An element stream with its events noted.

    @ivar stream: the element stream.
    @ivar got: the GCM stanzas and elements, in the order they came.
    """

    def __init__(self, stream: Any = None, header: bytes = HEADER) -> None:
        self.stream: Any = StanzaElementStream() if stream is None else stream
        self.got: list[Any] = []
        self.root: domish.Element | None = None
        self.ended = 0
        self.stream.DocumentStartEvent = self._started
        self.stream.ElementEvent = self.got.append
        self.stream.DocumentEndEvent = self._ended
        self.stream.GCMEvent = self.got.append
        self.feed(header)

    def _started(self, root: domish.Element) -> None:
        """
        The root element has started.
        """
        self.root = root

    def _ended(self) -> None:
        """
        The root element has ended.
        """
        self.ended += 1

    def feed(self, data: bytes, cuts: Iterable[int] = ()) -> list[Any]:
        """
        Give it bytes, in pieces.

        @return: what came of them.
        """
        before = len(self.got)
        for piece in pieces(data, cuts):
            self.stream.parse(piece)
        return self.got[before:]


def element(data: str) -> domish.Element:
    """
    XML in the namespace of stanzas, as an element that twisted.words built.
    """
    (built,) = Reader(domish.ExpatElementStream()).feed(data.encode())
    assert isinstance(built, domish.Element)
    return built


class PinTests(SynchronousTestCase):
    """
    What L{StanzaElementStream} and L{GCMStream} rely on that twisted.words
    does not promise.  If one of these fails with a new Twisted, then
    C{fcmxmpp.stanza} has to be looked at before anything else.
    """

    def stream(self) -> Any:
        """
        An element stream of twisted.words, of which the root has started.
        """
        return Reader(domish.ExpatElementStream()).stream

    def test_handlers(self) -> None:
        """
        It sets exactly these handlers on its parser, and calls these of its
        methods by them.
        """
        stream: Any = domish.ExpatElementStream()
        for handler, method in (
            ("StartElementHandler", "_onStartElement"),
            ("EndElementHandler", "_onEndElement"),
            ("CharacterDataHandler", "_onCdata"),
            ("StartNamespaceDeclHandler", "_onStartNamespace"),
            ("EndNamespaceDeclHandler", "_onEndNamespace"),
        ):
            self.assertEqual(
                getattr(stream, method),
                getattr(stream.parser, handler),
                f"{handler} is not {method} any more",
            )
        for handler in (
            "StartDoctypeDeclHandler",
            "EntityDeclHandler",
            "CommentHandler",
            "ProcessingInstructionHandler",
        ):
            self.assertIsNone(getattr(stream.parser, handler), f"{handler} is set by twisted.words now")

    def test_names(self) -> None:
        """
        Expat gives names as namespace, blank, local name.
        """
        stream: Any = domish.ExpatElementStream()
        names: list[str] = []
        stream.parser.StartElementHandler = lambda name, attributes: names.append(name)
        stream.parser.EndElementHandler = names.append
        stream.parser.Parse(b'<a xmlns="n:s"><p:b xmlns:p="o:s"/></a>')
        self.assertEqual(["n:s a", "o:s b", "o:s b", "n:s a"], names)

    def test_onStartElement(self) -> None:
        """
        C{_onStartElement} takes such a name and the attributes, and makes an
        element of them below C{currElem}, which it then is; the first goes to
        C{DocumentStartEvent} instead.
        """
        stream: Any = domish.ExpatElementStream()
        roots: list[domish.Element] = []
        stream.DocumentStartEvent = roots.append
        stream._onStartElement("n:s root", {})
        self.assertEqual([("n:s", "root")], [(root.uri, root.name) for root in roots])
        self.assertIsNone(stream.currElem, "the root is taken for a stanza")
        stream._onStartElement("n:s a", {"k": "v", "o:s l": "w"})
        first = stream.currElem
        self.assertEqual(("n:s", "a", None), (first.uri, first.name, first.parent))
        self.assertEqual({"k": "v", ("o:s", "l"): "w"}, first.attributes)
        stream._onStartElement("b", {})
        self.assertEqual(("", "b"), (stream.currElem.uri, stream.currElem.name))
        self.assertIs(first, stream.currElem.parent)
        self.assertEqual([stream.currElem], first.children)

    def test_onEndElement(self) -> None:
        """
        C{_onEndElement} goes up to the parent, gives a stanza that has ended
        to C{ElementEvent}, and calls C{DocumentEndEvent} where there is none.
        """
        stream = self.stream()
        said: list[Any] = []
        stream.ElementEvent = said.append
        stream.DocumentEndEvent = lambda: said.append("end")
        stream._onStartElement("n:s a", {})
        stanza = stream.currElem
        stream._onStartElement("n:s b", {})
        stream._onEndElement("whatever")
        self.assertIs(stanza, stream.currElem)
        self.assertEqual([], said)
        stream._onEndElement("whatever")
        self.assertEqual([stanza], said)
        self.assertIsNone(stream.currElem)
        stream._onEndElement("whatever")
        self.assertEqual([stanza, "end"], said)

    def test_onCdata(self) -> None:
        """
        C{_onCdata} adds text to C{currElem}, and drops it where there is none.
        """
        stream = self.stream()
        stream._onCdata("between stanzas")
        stream._onStartElement("n:s a", {})
        stream._onCdata("te")
        stream._onCdata("xt")
        self.assertEqual("text", str(stream.currElem))

    def test_localPrefixes(self) -> None:
        """
        C{localPrefixes} collects the prefixes that the element which starts
        next declares; that takes them over.
        """
        stream = self.stream()
        self.assertEqual({}, stream.localPrefixes, "the root has left its prefixes")
        stream._onStartNamespace("p", "n:s")
        self.assertEqual({"p": "n:s"}, stream.localPrefixes)
        stream._onStartElement("n:s a", {})
        self.assertEqual({}, stream.localPrefixes)
        self.assertEqual({"p": "n:s"}, stream.currElem.localPrefixes)

    def test_defaultNsStack(self) -> None:
        """
        C{defaultNsStack} has the default namespaces in force, and an element
        gets the newest.
        """
        stream = self.stream()
        self.assertEqual(["", "jabber:client"], stream.defaultNsStack)
        stream._onStartNamespace(None, "n:s")
        stream._onStartElement("n:s a", {})
        self.assertEqual(["", "jabber:client", "n:s"], stream.defaultNsStack)
        self.assertEqual("n:s", stream.currElem.defaultUri)
        stream._onEndElement("n:s a")
        stream._onEndNamespace(None)
        self.assertEqual(["", "jabber:client"], stream.defaultNsStack)

    def test_errors(self) -> None:
        """
        C{error} is what the parser raises, and L{domish.ParserError} what
        C{XmlStream} expects.
        """
        stream = self.stream()
        self.assertRaises(stream.error, stream.parser.Parse, b"<a></b>")
        self.assertRaises(domish.ParserError, self.stream().parse, b"<a></b>")

    def test_xmlStream(self) -> None:
        """
        C{XmlStream} makes its parser in C{_initializeStream}, anew after
        C{reset}; has its timers by C{_callLater}; and knows by C{_headerSent}
        whether it has begun.
        """
        made: list[int] = []
        later: list[tuple[Any, ...]] = []

        class Pinned(xmlstream.XmlStream):
            def _initializeStream(self) -> None:
                made.append(1)
                super()._initializeStream()

            def _callLater(self, *args: Any, **kwargs: Any) -> Any:
                later.append(args)
                return Clock().callLater(*args, **kwargs)

        stream = Pinned(xmlstream.Authenticator())
        stream.makeConnection(StringTransport())
        self.assertEqual(1, len(made))
        self.assertFalse(stream._headerSent)
        stream.sendHeader()
        self.assertTrue(stream._headerSent)
        stream.reset()
        self.assertEqual(2, len(made))
        self.assertFalse(stream._headerSent)
        request = xmlstream.IQ(stream)
        request.timeout = 10
        request.send()
        self.assertEqual([10], [args[0] for args in later], "IQ timers are not set by _callLater")


#: Text that XML can hold, without the carriage return, which it changes.
TEXTS = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters="\ufffe\uffff")
    | st.sampled_from("\t\n\"'<>&]\u0080 {}")
)
STYLES: dict[str, Callable[[str], str]] = {
    "raw": escape,
    "quotes": lambda text: escape(text, {'"': "&quot;", "'": "&apos;"}),
    "hexadecimal": lambda text: "".join(f"&#x{ord(c):X};" for c in text),
    "decimal": lambda text: "".join(f"&#{ord(c)};" for c in f"\r{text}"),
    "CDATA": lambda text: "<![CDATA[" + text.replace("]]>", "]]]]><![CDATA[>") + "]]>",
}
#: Text, as it may be written.
WRITTEN = st.lists(st.tuples(st.sampled_from(sorted(STYLES)), TEXTS), max_size=6).map(
    lambda pieces: "".join(STYLES[style](text) for style, text in pieces)
)
ATTRIBUTES = st.dictionaries(st.sampled_from(["id", "type", "to", "from", "a.b-c"]), TEXTS, max_size=3)
CUTS = st.lists(st.integers(0, 5000), max_size=8)
NAMESPACES = ["jabber:client", NS_GCM, "urn:other", ""]


def start(name: str, attributes: dict[str, str]) -> str:
    """
    A start tag, all but its end.
    """
    return f"<{name}" + "".join(f' {key}="{attribute(value)}"' for key, value in attributes.items())


def trees() -> st.SearchStrategy[str]:
    """
    Stanzas of all kinds, most of them nearly like ours.
    """
    names = st.sampled_from(["message", "gcm", "iq", "x"])

    def build(
        name: str, namespace: str, attributes: dict[str, str], content: list[str], prefix: str = ""
    ) -> str:
        # A prefix cannot be declared for no namespace.
        prefix = prefix if namespace else ""
        full = f"{prefix}:{name}" if prefix else name
        declared = "xmlns" + (f":{prefix}" if prefix else "")
        return f'{start(full, attributes)} {declared}="{namespace}">{"".join(content)}</{full}>'

    def inside(content: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.builds(
            build,
            names,
            st.sampled_from(NAMESPACES),
            ATTRIBUTES,
            st.lists(content, max_size=4),
            st.sampled_from(["", "", "data", "p"]),
        )

    gcm = st.builds(build, st.just("gcm"), st.just(NS_GCM), st.just({}), st.lists(WRITTEN, max_size=2))
    content = st.recursive(WRITTEN | gcm, inside, max_leaves=8)
    message = st.builds(
        build, st.just("message"), st.just("jabber:client"), ATTRIBUTES, st.lists(content, max_size=4)
    )
    return message | inside(content)


def structure(node: domish.Element) -> Any:
    """
    What counts of an element: not the text beside elements in a message, nor
    the attributes of a C{<gcm>}.
    """
    isMessage = (node.uri, node.name) == ("jabber:client", "message")
    isGCM = (node.uri, node.name) == (NS_GCM, "gcm")
    children = [
        structure(child) if isinstance(child, domish.Element) else child
        for child in node.children
        if isinstance(child, domish.Element) or not (isMessage and node.parent is None)
    ]
    attributes = {} if isGCM else dict(node.attributes)
    return (node.uri, node.name, node.defaultUri, node.localPrefixes, attributes, children)


class ElementStreamTests(SynchronousTestCase):
    """
    L{StanzaElementStream}: what it makes of what is allowed.
    """

    def test_gcm(self) -> None:
        """
        A message with a payload and nothing else is given as its text and its
        attributes, and no element is built for it.
        """
        (got,) = Reader().feed(b'<message id="1" type="normal">' + GCM_START[9:] + b'{"a":"&lt;"}' + GCM_END)
        self.assertEqual(GCMStanza('{"a":"<"}', {"id": "1", "type": "normal"}), got)

    def test_otherStanzas(self) -> None:
        """
        Every other stanza is given as an element.
        """
        reader = Reader()
        for data in (
            '<iq type="get" id="1"><ping xmlns="urn:xmpp:ping"/></iq>',
            "<presence/>",
            "<message/>",
            '<message id="1"/>',
            "<message>text</message>",
            "<message><body>text</body></message>",
            f'<message><x/><gcm xmlns="{NS_GCM}">text</gcm></message>',
            f'<message><gcm xmlns="{NS_GCM}">text</gcm><error/></message>',
            f'<message><gcm xmlns="{NS_GCM}">text<x/></gcm></message>',
            f'<message><gcm xmlns="{NS_GCM}">1</gcm><gcm xmlns="{NS_GCM}">2</gcm></message>',
            "<message><gcm>text</gcm></message>",
            f'<message xmlns="urn:other"><gcm xmlns="{NS_GCM}">text</gcm></message>',
            f'<gcm xmlns="{NS_GCM}">text</gcm>',
            f'<x><message><gcm xmlns="{NS_GCM}">text</gcm></message></x>',
        ):
            (got,) = reader.feed(data.encode())
            self.assertIsInstance(got, domish.Element, data)
            self.assertEqual(structure(element(data)), structure(got), data)

    def test_root(self) -> None:
        """
        The stream's own start and end are told.
        """
        reader = Reader()
        assert reader.root is not None
        self.assertEqual(("stream", "1.0"), (reader.root.name, reader.root["version"]))
        reader.feed(GCM_START + GCM_END + b"</stream:stream>")
        self.assertEqual(1, reader.ended)

    @given(WRITTEN, ATTRIBUTES, TEXTS, CUTS)
    def test_bothPathsAgree(
        self, text: str, attributes: dict[str, str], beside: str, cuts: list[int]
    ) -> None:
        """
        The payload of a message is the same whether or not elements were built
        for it, whatever is in it, and wherever the reads ended; and the same
        as twisted.words alone makes of it.
        """
        message, between = start("message", attributes), escape(beside)
        gcm = f'<gcm xmlns="{NS_GCM}">{text}</gcm>'
        (fast,) = Reader().feed(f"{message}>{between}{gcm}{between}</message>".encode(), cuts)
        self.assertIsInstance(fast, GCMStanza)
        (reference,) = Reader(domish.ExpatElementStream()).feed(f"{message}>{gcm}</message>".encode())
        self.assertEqual(str(reference.gcm), fast.text)
        self.assertEqual(reference.attributes, fast.attributes)
        for slow in (
            f"{message}>{between}<x/>{gcm}</message>",
            f"{message}>{gcm}{between}<x/></message>",
            f"{message}>{gcm}{gcm}</message>",
            f'{message} xmlns="urn:other">{between}{gcm}</message>',
        ):
            (built,) = Reader().feed(slow.encode(), cuts)
            self.assertIsInstance(built, domish.Element)
            self.assertEqual(fast, payloadOf(built), slow)

    @settings(max_examples=50)
    @given(st.lists(trees(), max_size=3), CUTS)
    def test_elementsAgree(self, data: list[str], cuts: list[int]) -> None:
        """
        Elements are those that twisted.words alone would have built, but for
        the text beside the elements of a message.
        """
        everything = " ".join(data).encode()
        got = Reader().feed(everything, cuts)
        expected = Reader(domish.ExpatElementStream()).feed(everything)
        self.assertEqual(len(expected), len(got))
        for reference, each in zip(expected, got, strict=True):
            if isinstance(each, GCMStanza):
                children = list(reference.elements())
                self.assertEqual([(NS_GCM, "gcm")], [(child.uri, child.name) for child in children])
                self.assertEqual(str(children[0]), each.text)
            else:
                self.assertEqual(structure(reference), structure(each))

    def test_anyCut(self) -> None:
        """
        A stanza is the same wherever it was cut in two.
        """
        data = (
            '<message id="\u00e5"><gcm xmlns="google:mobile:data">'
            '{"\u00e5\U0001f600":"&quot;&#x41;"}</gcm></message>'
        )
        expected = GCMStanza('{"\u00e5\U0001f600":""A"}', {"id": "\u00e5"})
        for cut in range(1, len(data.encode())):
            self.assertEqual([expected], Reader().feed(data.encode(), [cut]), cut)

    def test_whole(self) -> None:
        """
        Text is given whole, however many entities are in it: in pieces its
        joining would take time that grows with their number's square.
        """
        pieces: list[str] = []

        class Counting(StanzaElementStream):
            def _text(self, text: str) -> None:
                pieces.append(text)
                super()._text(text)

        text = "&quot;" * 10_000 + "\n\u00e5&amp;" * 100
        for stanza in (GCM_START + text.encode() + GCM_END, f"<x>{text}</x>".encode()):
            del pieces[:]
            Reader(Counting()).feed(stanza)
            self.assertEqual(['"' * 10_000 + "\n\u00e5&" * 100], pieces)

    def test_nothingHeldBack(self) -> None:
        """
        A stanza is given as soon as its last byte has come, in however small
        pieces it came: expat may hold back such tokens otherwise.
        """
        for stanza in (GCM_START + b"x" * 5000 + GCM_END, b'<iq id="' + b"x" * 5000 + b'"/>'):
            reader = Reader()
            for byte in stanza[:-1]:
                reader.feed(bytes([byte]))
            self.assertEqual([], reader.got)
            self.assertEqual(1, len(reader.feed(stanza[-1:])))

    def test_prefixesDoNotLeak(self) -> None:
        """
        What a payload's envelope declares is not taken for the next stanza's.
        """
        reader = Reader()
        reader.feed(
            b'<message xmlns:a="urn:a"><b:gcm xmlns:b="google:mobile:data" xmlns:c="urn:c"/></message>'
        )
        (got,) = reader.feed(b'<iq xmlns:d="urn:d"/>')
        self.assertEqual({"d": "urn:d"}, got.localPrefixes)
        self.assertEqual("jabber:client", got.defaultUri)
        (got,) = reader.feed(b'<message xmlns:e="urn:e"><f:x xmlns:f="urn:f"/></message>')
        self.assertEqual("urn:f", next(got.elements()).localPrefixes["f"])


class LimitTests(SynchronousTestCase):
    """
    L{StanzaElementStream}: how much is allowed.
    """

    def reader(self) -> Reader:
        """
        A reader that has read a stanza, so that the stream's header does not
        count.
        """
        reader = Reader()
        reader.feed(b"<presence/>")
        return reader

    def refused(self, condition: str, reader: Reader, data: bytes) -> None:
        """
        These bytes are refused.
        """
        error = self.assertRaises(StreamRefused, reader.feed, data)
        self.assertEqual(condition, error.condition, data[:100])
        self.assertIsInstance(error, domish.ParserError)

    def test_size(self) -> None:
        """
        A stanza may take 64 KiB, and not one byte more; each counts anew.
        """
        self.assertEqual(65_536, MAX_STANZA_BYTES)
        for head, tail in ((GCM_START, GCM_END), (b"<iq>", b"</iq>"), (b'<iq id="', b'"/>')):
            reader = self.reader()
            filler = b"x" * (MAX_STANZA_BYTES - len(head) - len(tail))
            for _ in range(3):
                self.assertEqual([], reader.feed(head + filler), head)
                self.assertEqual(1, len(reader.feed(tail)), head)
            reader.feed(head + filler)
            for _ in tail:
                reader.feed(b"x")
            self.refused("policy-violation", reader, b"x")

    def test_sizeInOneRead(self) -> None:
        """
        A stanza that comes in one read is measured as well, and by itself:
        what was read with it does not count.
        """
        for head, tail in ((GCM_START, GCM_END), (b"<iq>", b"</iq>"), (b'<iq id="', b'"/>')):
            largest = head + b"x" * (MAX_STANZA_BYTES - len(head) - len(tail)) + tail
            reader = self.reader()
            self.assertEqual(5, len(reader.feed(b"<presence/> " + largest * 3 + b" <presence/> ")), head)
            self.assertEqual([], reader.feed(largest[:-1]), head)
            self.assertEqual(2, len(reader.feed(largest[-1:] + largest)), head)
            # Give or take the tag that ends it.
            larger = head + b"x" * MAX_STANZA_BYTES + tail
            before = len(reader.got)
            self.refused("policy-violation", reader, b"<presence/>" + larger + b"<presence/>")
            self.assertEqual(before + 1, len(reader.got), head)

    def test_sizeInBytes(self) -> None:
        """
        It is bytes that count, not characters.
        """
        reader = self.reader()
        reader.feed(GCM_START + "\U0001f600".encode() * 16_000)
        self.refused("policy-violation", reader, "\U0001f600".encode() * 400)

    def test_manyStanzas(self) -> None:
        """
        There is no limit to what a stream carries in all.
        """
        reader = self.reader()
        for stanza in (GCM_START + b"x" * 1000 + GCM_END, b"<iq>" + b"<a/>" * 200 + b"</iq>"):
            for _ in range(200):
                self.assertEqual(1, len(reader.feed(stanza)))

    def test_endlessStartTag(self) -> None:
        """
        A start tag that does not end is refused, though nothing has come of it
        yet.
        """
        for head in (b'<message id="', b"<message ", b"<m", b"<message><gcm "):
            reader = self.reader()
            reader.feed(head)
            for _ in range(15):
                reader.feed(b"x" * 4096)
            reader.feed(b"x" * (4096 - len(head)))
            self.assertEqual(1, len(reader.got))
            self.refused("policy-violation", reader, b"x")

    def test_keepAlives(self) -> None:
        """
        Spaces between stanzas may come for ever, one by one or in heaps, and
        leave the next stanza all its room.
        """
        reader = Reader()
        for _ in range(100_000):
            reader.feed(b" ")
        for _ in range(10):
            reader.feed(b" \n" * MAX_STANZA_BYTES)
        filler = MAX_STANZA_BYTES - len(GCM_START) - len(GCM_END)
        reader.feed(GCM_START + b"x" * filler)
        (got,) = reader.feed(GCM_END)
        self.assertEqual(filler, len(got.text))
        self.assertEqual(1, len(reader.got))

    def test_spacesWithin(self) -> None:
        """
        Within a stanza they count like anything else.
        """
        for head in (GCM_START, b"<message>", b"<message", b"<iq>", b"<iq"):
            reader = self.reader()
            reader.feed(head)
            for _ in range(15):
                reader.feed(b" " * 4096)
            self.refused("policy-violation", reader, b" " * 4096)

    def test_headerForEver(self) -> None:
        """
        The limit holds before the stream's header has come, as well.
        """
        for data in (b" ", b"<stream:stream ", b"<a b='"):
            reader = Reader(header=b"")
            reader.feed(data + b" " * (MAX_STANZA_BYTES - len(data)))
            self.refused("policy-violation", reader, b" ")

    def test_depth(self) -> None:
        """
        Elements may be nested 32 deep, the stream's own included, and no
        deeper, in whatever stanza.
        """
        self.assertEqual(32, MAX_DEPTH)
        for head, depth in ((b"<iq>", 2), (b"<message>", 2), (GCM_START, 3), (b"", 1)):
            more = MAX_DEPTH - depth
            reader = self.reader()
            reader.feed(head + b"<a>" * more)
            self.refused("policy-violation", reader, b"<a>")
            reader = self.reader()
            tail = {b"": b"", b"<iq>": b"</iq>", b"<message>": b"</message>", GCM_START: GCM_END}[head]
            self.assertEqual(1, len(reader.feed(head + b"<a>" * more + b"</a>" * more + tail)), head)

    def test_elements(self) -> None:
        """
        A stanza may hold 256 elements, and no more.
        """
        self.assertEqual(256, MAX_ELEMENTS)
        for name in (b"<iq>", b"<x>"):
            reader = self.reader()
            reader.feed(name + b"<a/>" * (MAX_ELEMENTS - 1))
            self.refused("policy-violation", reader, b"<a/>")
            reader = self.reader()
            stanza = name + b"<a/>" * (MAX_ELEMENTS - 1) + name.replace(b"<", b"</")
            self.assertEqual(2, len(reader.feed(stanza) + reader.feed(stanza)))

    def test_elementsOfAMessage(self) -> None:
        """
        The same holds for a message, give or take its envelope.
        """
        for head in (b"<message>", GCM_START, GCM_START + b"</gcm>"):
            reader = self.reader()
            reader.feed(head + b"<a/>" * (MAX_ELEMENTS - 3))
            self.refused("policy-violation", reader, b"<a/>" * 4)

    def test_forbidden(self) -> None:
        """
        Comments and processing instructions are refused wherever they stand,
        DTDs and entities where XML would allow them.
        """
        for data in (b"<!---->", b"<!-- x -->", b"<?x?>", b"<?x y?>"):
            for head in (b"", b"<iq>", b"<message>", GCM_START, GCM_START + b"</gcm>"):
                self.refused("restricted-xml", self.reader(), head + data)
            self.refused("restricted-xml", Reader(header=b""), data)
        for data in (
            b"<!DOCTYPE a>",
            b"<!DOCTYPE a []>",
            b'<!DOCTYPE a [<!ENTITY b "c">]>',
            b'<!DOCTYPE a [<!ENTITY % b "c">]>',
            b'<!DOCTYPE a SYSTEM "x">',
        ):
            self.refused("restricted-xml", Reader(header=b""), data)

    def test_xmlDeclaration(self) -> None:
        """
        An XML declaration is allowed at the very start.
        """
        reader = Reader(header=b'<?xml version="1.0" encoding="UTF-8"?>\n' + HEADER)
        self.assertEqual(1, len(reader.feed(b"<presence/>")))

    def test_malformed(self) -> None:
        """
        What is not well-formed is a plain L{domish.ParserError}, of which the
        text has nothing of the bytes.
        """
        for data in (
            b"<Rhabarber></x>",
            b"&Rhabarber;",
            b'<x Rhabarber="1" Rhabarber="2"/>',
            b"<Rhabarber:x/>",
            b"Rhabarber\xff",
            b"Rhabarber\0",
            b"<!DOCTYPE Rhabarber>",
            b'<?xml version="1.0"?>',
            b"</Rhabarber>",
        ):
            error = self.assertRaises(domish.ParserError, self.reader().feed, data)
            self.assertNotIsInstance(error, StreamRefused)
            self.assertNotIn("Rhabarber", str(error))
            self.assertTrue(error.__suppress_context__, "the traceback shows expat's error as well")


class FormatTests(SynchronousTestCase):
    """
    What is written, and the reading of what is not a plain message.
    """

    @given(TEXTS | st.text("\r\n\t \"'<>&"))
    def test_attribute(self, value: str) -> None:
        """
        Any text comes through as the value of an attribute, white space
        included.
        """
        (got,) = Reader().feed(f'<iq id="{attribute(value)}"/>'.encode())
        self.assertEqual(value, got["id"])

    def test_attributeKeepsWhatItCan(self) -> None:
        """
        What needs no escape has none.
        """
        self.assertEqual("m-1 'a' \u00e5", attribute("m-1 'a' \u00e5"))
        self.assertEqual("&lt;&amp;&gt;&quot;&#9;&#10;&#13;", attribute('<&>"\t\n\r'))

    def test_clientStanza(self) -> None:
        """
        An app server's message has its C{message_id} for C{id}.
        """
        self.assertEqual(
            b'<message id="m_1-A"><gcm xmlns="google:mobile:data">'
            b'{"to":"tok-A","message_id":"m_1-A"}</gcm></message>',
            clientStanza(DownstreamMessage(to="tok-A", message_id="m_1-A")),
        )
        self.assertEqual(
            b'<message id="u-1"><gcm xmlns="google:mobile:data">'
            b'{"to":"tok-A","message_id":"u-1","message_type":"ack"}</gcm></message>',
            clientStanza(UpstreamAck(to="tok-A", message_id="u-1")),
        )

    def test_clientStanzaID(self) -> None:
        """
        Where the C{message_id} would need an escape the C{id} is empty.
        """
        for message_id in (
            "x" * 257,
            'a"b',
            "a&b",
            "<",
            "a b",
            "dr2:m-1",
            "\u00e5",
            "\u0663",
            "\0",
            "a'b",
        ):
            stanza = clientStanza(UpstreamAck(to="tok-A", message_id=message_id))
            self.assertTrue(stanza.startswith(b'<message id=""><gcm '), stanza)
            (got,) = Reader().feed(stanza)
            self.assertEqual({"id": ""}, got.attributes)

    def test_serverStanza(self) -> None:
        """
        A connection server's message has addresses and a type if it is from a
        device, and otherwise no attribute at all.
        """
        text = (
            ' to="1@gcm.googleapis.com" from="devices@gcm.googleapis.com" type="normal">'
            '<gcm xmlns="google:mobile:data">'
        )
        data = ReceiptData(message_status="MESSAGE_SENT_TO_DEVICE", original_message_id="m-1")
        fromDevices: list[FromConnectionServer] = [
            UpstreamMessage(from_="tok-A", message_id="u-1"),
            Receipt(from_="gcm.googleapis.com", message_id="dr2:m-1", data=data),
        ]
        for message in fromDevices:
            stanza = serverStanza(message, "1@gcm.googleapis.com").decode()
            self.assertTrue(stanza.startswith("<message" + text), stanza)
            self.assertTrue(stanza.endswith("}</gcm></message>"), stanza)
        others: list[FromConnectionServer] = [
            Ack(from_="tok-A", message_id="m-1"),
            Nack(from_="tok-A", message_id="m-1", error="BAD_REGISTRATION"),
            Control(control_type="CONNECTION_DRAINING"),
        ]
        for message in others:
            stanza = serverStanza(message).decode()
            self.assertTrue(
                stanza.startswith('<message><data:gcm xmlns:data="google:mobile:data">{"'), stanza
            )
            self.assertTrue(stanza.endswith("}</data:gcm></message>"), stanza)

    def test_serverStanzaTo(self) -> None:
        """
        The address is escaped.
        """
        (got,) = Reader().feed(serverStanza(UpstreamMessage(from_="t", message_id="m"), "a\"<&>'b"))
        self.assertEqual("a\"<&>'b", got.attributes["to"])

    @given(
        st.sampled_from([(400, "bad-request"), (406, "not-acceptable")]),
        TEXTS,
        TEXTS,
        TEXTS,
        st.none() | TEXTS,
    )
    def test_stanzaError(
        self, kind: tuple[int, str], text: str, to: str, payload: str, stanzaID: str | None
    ) -> None:
        """
        A stanza error is read as it was written: with the code, its condition,
        the stanza's C{id} if it had one, and the payload.
        """
        code, condition = kind
        attributes = {} if stanzaID is None else {"id": stanzaID}
        (got,) = Reader().feed(stanzaError(code, text, to, GCMStanza(payload, attributes)))
        self.assertEqual(StanzaError(code, condition, stanzaID, payload), parseStanzaError(got))
        self.assertEqual(("error", to), (got["type"], got["to"]))
        (details,) = [child for child in got.elements() if child.name == "error"]
        self.assertEqual([text], [str(each) for each in details.elements() if each.name == "text"])

    def test_parseStanzaError(self) -> None:
        """
        Whatever is missing from a stanza error, it is read as far as that
        goes.
        """
        gcm = f'<gcm xmlns="{NS_GCM}">x</gcm>'
        condition = f'<bad-request xmlns="{NS_STANZAS}"/>'
        for data, expected in (
            ("", StanzaError(0, "undefined-condition", None, None)),
            (gcm, StanzaError(0, "undefined-condition", None, "x")),
            (f"{gcm}<error/>", StanzaError(0, "undefined-condition", None, "x")),
            ('<error code="400"/>', StanzaError(400, "undefined-condition", None, None)),
            ('<x/><error code="400"/><x/>', StanzaError(400, "undefined-condition", None, None)),
            (f"<error>{condition}</error>{gcm}", StanzaError(0, "bad-request", None, "x")),
            (f'<error code="503">{condition}</error>', StanzaError(503, "bad-request", None, None)),
            ('<error code=""/>', StanzaError(0, "undefined-condition", None, None)),
            ('<error code="-1"/>', StanzaError(0, "undefined-condition", None, None)),
            ('<error code="4e2"/>', StanzaError(0, "undefined-condition", None, None)),
            ('<error code="\u0664\u0660\u0660"/>', StanzaError(0, "undefined-condition", None, None)),
            (f'<error code="{"9" * 5000}"/>', StanzaError(0, "undefined-condition", None, None)),
            ("<error><bad-request/></error>", StanzaError(0, "undefined-condition", None, None)),
            (
                f'<error><text xmlns="{NS_STANZAS}">x</text>{condition}<x xmlns="y"/></error>',
                StanzaError(0, "bad-request", None, None),
            ),
        ):
            built = element(f'<message type="error">{data}</message>')
            self.assertEqual(expected, parseStanzaError(built), data)

    def test_noStanzaError(self) -> None:
        """
        Nothing else is a stanza error.
        """
        for data in (
            "<message/>",
            '<message type="normal"><error code="400"/></message>',
            '<iq type="error"/>',
        ):
            self.assertIsNone(parseStanzaError(element(data)), data)

    def test_answerIQ(self) -> None:
        """
        A ping is answered with a result, every other request with
        C{service-unavailable}, and what is no request not at all.
        """
        unavailable = f'<error type="cancel"><service-unavailable xmlns="{NS_STANZAS}"/></error></iq>'
        ping = '<ping xmlns="urn:xmpp:ping"/>'
        for data, expected in (
            (f'<iq type="get" id="1">{ping}</iq>', '<iq type="result" id="1"/>'),
            (f'<iq type="get" id="">{ping}</iq>', '<iq type="result" id=""/>'),
            (f'<iq type="get">{ping}</iq>', '<iq type="result"/>'),
            (f'<iq type="get" id="&quot;&lt;">{ping}</iq>', '<iq type="result" id="&quot;&lt;"/>'),
            (
                '<iq type="get" id="1"><ping xmlns="urn:other"/></iq>',
                f'<iq type="error" id="1">{unavailable}',
            ),
            ('<iq type="get" id="1"/>', f'<iq type="error" id="1">{unavailable}'),
            ('<iq type="set"><query xmlns="jabber:iq:roster"/></iq>', f'<iq type="error">{unavailable}'),
            (f'<iq type="result" id="1">{ping}</iq>', None),
            ('<iq type="error" id="1"/>', None),
            (f"<iq>{ping}</iq>", None),
            (f'<message type="get">{ping}</message>', None),
            ('<presence type="get"/>', None),
        ):
            self.assertEqual(None if expected is None else expected.encode(), answerIQ(element(data)), data)

    def test_payloadOf(self) -> None:
        """
        The payload is found by its namespace, whatever else is in the message.
        """
        for data, expected in (
            (f'<message id="1"><x/><gcm xmlns="{NS_GCM}">t</gcm></message>', GCMStanza("t", {"id": "1"})),
            (f'<message><g:gcm xmlns:g="{NS_GCM}">t</g:gcm><x/></message>', GCMStanza("t", {})),
            (f'<message><gcm>1</gcm><gcm xmlns="{NS_GCM}">2</gcm></message>', GCMStanza("2", {})),
            (f'<message xml:lang="en"><gcm xmlns="{NS_GCM}"/></message>', GCMStanza("", {})),
            ("<message/>", None),
            ("<message>text</message>", None),
            ("<message><gcm>t</gcm></message>", None),
            (f'<message><x><gcm xmlns="{NS_GCM}">t</gcm></x></message>', None),
            (f'<message><other xmlns="{NS_GCM}">t</other></message>', None),
        ):
            self.assertEqual(expected, payloadOf(element(data)), data)


class NotingTransport(StringTransport):
    """
    A transport that notes each write, and like a real one drops what is
    written after it has been told to close.

    @ivar writes: what was written.
    """

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:
        """
        Note a write.
        """
        if not self.disconnecting:
            self.writes.append(data)
            super().write(data)


class StreamTests(SynchronousTestCase):
    """
    L{GCMStream}.

    @ivar stream: a stream that has begun at both ends.
    @ivar got: the payloads that it gave.
    """

    def setUp(self) -> None:
        """
        Begin a stream.
        """
        self.clock = Clock()
        self.transport = NotingTransport()
        self.stream = self.connected()
        self.stream.sendHeader()
        self.got: list[str] = []
        self.stream.onGCM = lambda stanza: self.got.append(stanza.text)
        self.stream.dataReceived(HEADER)
        self.transport.writes.clear()

    def connected(self) -> GCMStream:
        """
        A stream that has not begun.
        """
        stream = GCMStream(xmlstream.Authenticator(), self.clock)
        stream.namespace = "jabber:client"
        stream.makeConnection(self.transport)
        return stream

    def lose(self) -> None:
        """
        The connection is gone.
        """
        self.stream.connectionLost(Failure(ConnectionDone()))

    def gcm(self, *texts: str) -> bytes:
        """
        Payloads.
        """
        return b"".join(GCM_START + text.encode() + GCM_END for text in texts)

    def ended(self, condition: str) -> None:
        """
        The stream was ended with this error.
        """
        said = b"".join(self.transport.writes).decode()
        error = f"<stream:error><{condition} xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>"
        self.assertTrue(said.endswith(f"{error}</stream:stream>"), said)
        self.assertEqual(1, said.count("</stream:stream>"))
        self.assertTrue(self.transport.disconnecting)

    def test_oneWrite(self) -> None:
        """
        What is written while one piece of input is being handled goes out in
        one write, in its order.
        """
        self.stream.onGCM = lambda stanza: self.stream.write(f"<{stanza.text}/>".encode())
        self.stream.dataReceived(self.gcm("a", "b", "c"))
        self.stream.dataReceived(self.gcm("d"))
        self.assertEqual([b"<a/><b/><c/>", b"<d/>"], self.transport.writes)

    def test_noWrite(self) -> None:
        """
        Where there is nothing to say nothing is written.
        """
        self.stream.dataReceived(self.gcm("a"))
        self.stream.dataReceived(b" ")
        self.assertEqual([], self.transport.writes)

    def test_writeByItself(self) -> None:
        """
        What is written at any other time goes out at once.
        """
        self.stream.write(b"<a/>")
        self.stream.send(b"<b/>")
        self.stream.send("<c>\u00e5</c>")
        self.stream.send(domish.Element(("jabber:client", "d")))
        self.assertEqual([b"<a/>", b"<b/>", "<c>\u00e5</c>".encode(), b"<d/>"], self.transport.writes)

    def test_order(self) -> None:
        """
        Everything goes out in the order it was said, by whatever method.
        """

        def answer(stanza: GCMStanza) -> None:
            self.stream.write(b"<a/>")
            self.stream.send(domish.Element(("jabber:client", "b")))
            self.stream.write(b"<c/>")
            self.stream.send("<d/>")
            self.stream.send(b"<e/>")
            self.stream.flush()
            self.stream.write(b"<f/>")

        self.stream.onGCM = answer
        self.stream.dataReceived(self.gcm("x", "y"))
        self.assertEqual(b"<a/><b/><c/><d/><e/><f/>" * 2, b"".join(self.transport.writes))

    def test_flushNothing(self) -> None:
        """
        A flush where there is nothing writes nothing.
        """
        self.stream.flush()
        self.stream.onGCM = lambda stanza: self.stream.flush()
        self.stream.dataReceived(self.gcm("a"))
        self.assertEqual([], self.transport.writes)

    def test_exception(self) -> None:
        """
        If handling a stanza raises, the answers to those before it go out all
        the same, and what is written after that is not held back.
        """

        def answer(stanza: GCMStanza) -> None:
            if stanza.text == "b":
                raise RuntimeError
            self.stream.write(f"<{stanza.text}/>".encode())

        self.stream.onGCM = answer
        self.assertRaises(RuntimeError, self.stream.dataReceived, self.gcm("a", "b"))
        self.stream.write(b"<c/>")
        self.assertEqual([b"<a/>", b"<c/>"], self.transport.writes)

    def test_elements(self) -> None:
        """
        Stanzas that are no payloads go to their observers.
        """
        seen: list[domish.Element] = []
        self.stream.addObserver("/iq", seen.append)
        self.stream.addObserver("/message", seen.append)
        self.stream.dataReceived(b'<iq id="1"/><message id="2"><x/></message>' + self.gcm("a"))
        self.assertEqual(["1", "2"], [each["id"] for each in seen])
        self.assertEqual(["a"], self.got)

    def test_onBytes(self) -> None:
        """
        C{onBytes} is called for whatever comes, be it a space, before it is
        looked at, and C{onRead} after that.
        """
        said: list[str] = []
        self.stream.onBytes = lambda: said.append("bytes")
        self.stream.onRead = lambda: said.append("read")
        self.stream.onGCM = lambda stanza: said.append(stanza.text)
        self.stream.dataReceived(self.gcm("a", "b"))
        self.stream.dataReceived(b" ")
        self.stream.dataReceived(b"<mess")
        self.assertEqual(["bytes", "a", "b", "read", "bytes", "read", "bytes", "read"], said)

    def test_replacedWhileReading(self) -> None:
        """
        C{onGCM} may be replaced between two stanzas of one piece of input.
        """

        def first(stanza: GCMStanza) -> None:
            self.stream.onGCM = lambda stanza: self.got.append(f"second {stanza.text}")
            self.got.append(f"first {stanza.text}")

        self.stream.onGCM = first
        self.stream.dataReceived(self.gcm("a", "b"))
        self.assertEqual(["first a", "second b"], self.got)

    def test_notYet(self) -> None:
        """
        Before the login is complete no message is accepted.
        """
        self.stream = self.connected()
        self.stream.sendHeader()
        self.stream.dataReceived(HEADER + self.gcm("a"))
        self.ended("not-authorized")
        self.lose()

    def test_refused(self) -> None:
        """
        What is refused ends the stream with its condition, behind the answers
        to what came before.  That is an event, for which the error has the
        reason.
        """
        errors: list[Failure] = []
        self.stream.addObserver(xmlstream.STREAM_ERROR_EVENT, errors.append)
        self.stream.onGCM = lambda stanza: self.stream.write(b"<answer/>")
        self.stream.dataReceived(self.gcm("a") + b"<!-- -->")
        self.ended("restricted-xml")
        self.assertTrue(self.stream.closing)
        self.assertTrue(b"".join(self.transport.writes).startswith(b"<answer/><stream:error>"))
        self.assertEqual(["comments are not accepted"], [error.getErrorMessage() for error in errors])
        self.lose()

    def test_malformed(self) -> None:
        """
        What is not well-formed ends it with a condition that each end chooses.
        """
        self.stream.dataReceived(b"<a></b>")
        self.ended("not-well-formed")
        self.lose()
        self.setUp()
        self.stream.malformedCondition = "invalid-xml"
        self.stream.dataReceived(b"<a></b>")
        self.ended("invalid-xml")
        self.lose()

    def test_deafAfterRefusal(self) -> None:
        """
        After a refusal nothing is read any more, and nothing else is said.
        """
        seen: list[domish.Element] = []
        self.stream.addObserver("/*", seen.append)
        self.stream.dataReceived(b"<a></b>")
        for data in (b"<iq/>", self.gcm("a"), b"<!-- -->", b"<", b"</stream:stream>", b"\xff" * 100_000):
            self.stream.dataReceived(data)
        self.ended("not-well-formed")
        self.assertEqual(([], []), (seen, self.got))
        self.lose()

    def test_deafAfterStreamError(self) -> None:
        """
        The same holds once a stream error has been sent for any other reason,
        even for what had come with its cause.
        """
        seen: list[domish.Element] = []
        self.stream.addObserver("/iq", lambda iq: self.stream.sendStreamError(StreamError("bad-format")))
        self.stream.addObserver("/presence", seen.append)
        self.stream.dataReceived(b"<iq/><presence/>" + self.gcm("a"))
        self.stream.dataReceived(b"<presence/>" + self.gcm("b"))
        self.ended("bad-format")
        self.assertEqual(([], []), (seen, self.got))
        self.lose()

    def test_refusedPeerStays(self) -> None:
        """
        A peer that does not close its end after a refusal is cut off after
        ten seconds.
        """
        self.stream.dataReceived(b"<a></b>")
        self.clock.advance(9)
        self.assertFalse(self.transport.disconnected)
        self.clock.advance(1)
        self.assertTrue(self.transport.disconnected)
        self.lose()
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_close(self) -> None:
        """
        Closing sends the end of the stream, once; a peer that does not close
        its end is cut off after ten seconds.
        """
        self.assertFalse(self.stream.closing)
        for _ in range(3):
            self.stream.close()
            self.assertTrue(self.stream.closing)
        self.assertEqual([b"</stream:stream>"], self.transport.writes)
        self.assertTrue(self.transport.disconnecting)
        self.clock.advance(9)
        self.stream.close()
        self.assertFalse(self.transport.disconnected)
        self.clock.advance(1)
        self.assertTrue(self.transport.disconnected)
        self.lose()
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_closed(self) -> None:
        """
        If it does close it no timer is left.
        """
        self.stream.close()
        self.lose()
        self.assertEqual([], self.clock.getDelayedCalls())
        self.clock.advance(10)
        self.assertFalse(self.transport.disconnected)

    def test_closeWhileReading(self) -> None:
        """
        A close in the midst of input comes after the answers that were given
        before.
        """

        def answer(stanza: GCMStanza) -> None:
            self.stream.write(b"<answer/>")
            self.stream.close()

        self.stream.onGCM = answer
        self.stream.dataReceived(self.gcm("a"))
        self.assertEqual(b"<answer/></stream:stream>", b"".join(self.transport.writes))
        self.lose()

    def test_closeBeforeTheHeader(self) -> None:
        """
        A stream that has not begun is just dropped.
        """
        self.stream = self.connected()
        self.stream.close()
        self.assertEqual([], self.transport.writes)
        self.assertTrue(self.transport.disconnecting)
        self.lose()

    def test_peerCloses(self) -> None:
        """
        When the peer ends its half ours is ended too.
        """
        self.stream.onGCM = lambda stanza: self.stream.write(b"<answer/>")
        self.stream.dataReceived(self.gcm("a") + b"</stream:stream>")
        self.assertEqual(b"<answer/></stream:stream>", b"".join(self.transport.writes))
        self.assertTrue(self.transport.disconnecting)
        self.lose()

    def test_peersError(self) -> None:
        """
        When the peer ends the stream with an error that is an event, and the
        stream is closed like any other: a peer that does not close its end is
        cut off after ten seconds.
        """
        errors: list[Failure] = []
        self.stream.addObserver(xmlstream.STREAM_ERROR_EVENT, errors.append)
        condition = b'<policy-violation xmlns="urn:ietf:params:xml:ns:xmpp-streams"/>'
        self.stream.dataReceived(b"<stream:error>" + condition + b"</stream:error>")
        self.assertEqual(["policy-violation"], [error.value.condition for error in errors])
        self.assertTrue(self.transport.disconnecting)
        self.assertTrue(self.stream.closing, "nothing limits how long the close may take")
        self.clock.advance(10)
        self.assertTrue(self.transport.disconnected)
        self.lose()

    def test_bothClose(self) -> None:
        """
        When both do, each end is sent once.
        """
        self.stream.close()
        self.stream.dataReceived(b"</stream:stream>")
        self.assertEqual([b"</stream:stream>"], self.transport.writes)
        self.lose()

    def test_abort(self) -> None:
        """
        An abort drops the connection at once and reads no more.
        """
        self.stream.onBytes = lambda: None
        self.stream.abort()
        self.assertTrue(self.transport.disconnected)
        self.stream.dataReceived(self.gcm("a"))
        self.assertEqual(([], []), (self.got, self.transport.writes))
        self.lose()
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_abortWhileReading(self) -> None:
        """
        An abort in the midst of input keeps the stanzas behind it from being
        dispatched as elements.
        """
        seen: list[domish.Element] = []
        self.stream.addObserver("/presence", seen.append)
        self.stream.onGCM = lambda stanza: self.stream.abort()
        self.stream.dataReceived(self.gcm("a") + b"<presence/>")
        self.assertEqual([], seen)
        self.lose()

    def test_afterTheEnd(self) -> None:
        """
        What comes when the connection is gone is dropped.
        """
        ends: list[Failure] = []
        self.stream.addObserver(xmlstream.STREAM_END_EVENT, ends.append)
        self.lose()
        self.stream.dataReceived(self.gcm("a"))
        self.assertEqual((1, []), (len(ends), self.got))

    def test_reset(self) -> None:
        """
        After a reset a new document begins, for the same observers.
        """
        self.stream.reset()
        self.stream.dataReceived(b"<?xml version='1.0'?>" + HEADER + self.gcm("a"))
        self.assertEqual(["a"], self.got)

    def test_iqTimers(self) -> None:
        """
        IQ requests of twisted.words are timed by the stream's clock.
        """
        request = xmlstream.IQ(self.stream)
        request.timeout = 30
        answer = request.send()
        self.clock.advance(30)
        self.failureResultOf(answer, xmlstream.TimeoutError)
        self.assertEqual([], self.clock.getDelayedCalls())


class ModuleTests(SynchronousTestCase):
    """
    The module as such.
    """

    def test_all(self) -> None:
        """
        Everything that it offers is there.
        """
        for name in stanzas.__all__:
            self.assertTrue(hasattr(stanzas, name), name)
