"""
Conformance cases of the wire: the same meaning in any spelling and in any
pieces, and texts that arrive as they were.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice, permutations, product
from xml.sax.saxutils import escape

from hypothesis import given, settings
from hypothesis import strategies as st

from fcmxmpp.errors import Nacked
from fcmxmpp.messages import DownstreamMessage
from fcmxmpp.stanza import serverStanza
from fcmxmpp.testing import RecordingHandler, ScriptedConnectionServer, connectedPair
from fcmxmpp.validation import isReserved
from tests.conformance import (
    BARE_JID,
    TEXTS,
    AppServerCase,
    envelope,
    upstream,
    upstreamJSON,
)


#: Ways to write an envelope; %(a)s is where the attributes go, %(t)s the text.
ENVELOPES = {
    "live": '<message%(a)s><gcm xmlns="google:mobile:data">%(t)s</gcm></message>',
    "prefix": '<message%(a)s><data:gcm xmlns:data="google:mobile:data">%(t)s</data:gcm></message>',
    "other prefix": "<message%(a)s><x:gcm xmlns:x='google:mobile:data'>%(t)s</x:gcm></message>",
    "prefix from above": '<message xmlns:data="google:mobile:data"%(a)s><data:gcm>%(t)s</data:gcm></message>',
    "namespaces": '<message xmlns="jabber:client"%(a)s><gcm xmlns="google:mobile:data">%(t)s</gcm></message>',
    "white space": '<message%(a)s>\n <gcm xmlns="google:mobile:data">\n  %(t)s\n </gcm>\n</message>\n',
    "attribute": '<message%(a)s><gcm xml:lang="en" xmlns="google:mobile:data">%(t)s</gcm></message >',
    "more before": '<message%(a)s><thread>1</thread><gcm xmlns="google:mobile:data">%(t)s</gcm></message>',
    "more before, prefix": '<message%(a)s><x/><d:gcm xmlns:d="google:mobile:data">%(t)s</d:gcm></message>',
    "more behind": '<message%(a)s><gcm xmlns="google:mobile:data">%(t)s</gcm><x xmlns="y"/></message>',
    "no namespace": '<message xmlns=""%(a)s><gcm xmlns="google:mobile:data">%(t)s</gcm></message>',
}
#: Every type but C{error}, and none.
TYPES = [None, "normal", "chat", "headline", "groupchat", "", "no-such-type"]


def attributeOrders(type_: str | None) -> Iterator[str]:
    """
    The attributes that a message may have, in any order and any quotes.
    """
    attributes = [f'to="{BARE_JID}"', "from='devices@gcm.googleapis.com'", 'id="3"']
    if type_ is not None:
        attributes.append(f'type="{type_}"')
    for order in permutations(attributes):
        yield "".join(f" {each}" for each in order)
    yield "" if type_ is None else f'\n\ttype = "{type_}"\n'


#: What has gone wrong in one client or another.
DIFFICULT = {
    "quotes": '"\'`\u201c\u201d\\"',
    "markup": '<a href="x">&amp;</a>',
    "ampersands": "&&amp;&#38;&quot;&lol;",
    "the end of CDATA": "]]>",
    "CDATA": "<![CDATA[x]]>",
    "the end of it all": "</gcm></message></stream:stream>",
    "a comment": "<!-- x --><?x y?><!DOCTYPE x>",
    "JSON": '{"message_type":"ack","message_id":"x"}',
    "backslashes": "\\ \\\\ \\n \\u0041 \\",
    "emoji": "\U0001f600\U0001f469\u200d\U0001f680\U0001f1f8\U0001f1ea",
    "other planes": "\U00010000\U000e0001\U0010fffd",
    "combining": "e\u0301\u0323 \u202eabc\u202c \u2028\u2029",
    "control characters": "".join(map(chr, range(0x20))),
    "more control characters": "".join(map(chr, range(0x7F, 0xA0))),
    "no XML characters": "\ufffe\uffff\ufeff\ufffd\ufdd0",
    "white space": " \t\r\n \r \n\u00a0\u3000 ",
    "nothing": "",
    "4095 letters": "x" * 4095,
    "4095 quotes": '"' * 4095,
    "4095 less-thans": "<" * 4095,
    "4095 zeros": "\0" * 4095,
    "1023 emoji": "\U0001f600" * 1023,
}


class WireTests(AppServerCase):
    """
    The same meaning, however it is written and whatever the network makes of
    it.
    """

    def test_A06_upstream(self) -> None:
        """
        A message means the same with any prefix for its namespace, with any
        C{type} or none, and with its attributes in any order.
        """
        handler = RecordingHandler()
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler)
        variants = [
            (name, form % {"a": attributes, "t": "%s"})
            for (name, form), type_ in product(ENVELOPES.items(), TYPES)
            for attributes in attributeOrders(type_)
        ]
        for number, (name, variant) in enumerate(variants):
            text = escape(upstreamJSON(f"m-{number}", data={"op": "<ECHO>"}))
            script.write((variant % text).encode())
            joined.pump()
            self.assertEqual(number + 1, len(handler.messages), f"{name} is not understood: {variant}")
            self.assertEqual(f"m-{number}", script.acks[-1], f"{name} is not acknowledged: {variant}")
        self.assertEqual({(("op", "<ECHO>"),)}, {tuple(m.data.items()) for m in handler.messages})
        self.assertEqual((len(variants), 1), (len(script.acks), joined.network.attempts))

    def test_A06_receipts(self) -> None:
        """
        So does a receipt.
        """
        handler = RecordingHandler()
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler)
        for number, ((name, form), type_) in enumerate(product(ENVELOPES.items(), TYPES)):
            text = (
                f'{{"message_type":"receipt","from":"gcm.googleapis.com","message_id":"dr2:{number}","data":'
                f'{{"message_status":"MESSAGE_SENT_TO_DEVICE","original_message_id":"{number}"}}}}'
            )
            attributes = "" if type_ is None else f' type="{type_}"'
            script.write((form % {"a": attributes, "t": text}).encode())
            joined.pump()
            self.assertEqual(f"dr2:{number}", script.acks[-1], (name, type_))
            self.assertEqual(number + 1, len(handler.receipts), (name, type_))
        self.assertEqual([], handler.messages)

    def test_A06_answers(self) -> None:
        """
        So do an ACK and a NACK.
        """
        script = ScriptedConnectionServer()
        joined = self.joined(script)
        for number, ((name, form), type_) in enumerate(product(ENVELOPES.items(), TYPES)):
            attributes = "" if type_ is None else f' type="{type_}"'
            results = []
            for kind in ("ack", "nack"):
                message_id = f"{kind}-{number}"
                results.append(joined.appServer.send(DownstreamMessage(to="tok-A", message_id=message_id)))
                text = json.dumps(
                    {
                        "message_type": kind,
                        "message_id": message_id,
                        "from": "tok-A",
                        "error": "BAD_REGISTRATION",
                    }
                )
                script.write((form % {"a": attributes, "t": text}).encode())
            joined.pump()
            self.assertEqual(f"ack-{number}", self.successResultOf(results[0]).message_id, (name, type_))
            error = self.failureResultOf(results[1], Nacked).value
            self.assertEqual(("BAD_REGISTRATION", f"nack-{number}"), (error.error, error.message_id))

    def test_A06_anotherNamespace(self) -> None:
        """
        It is the namespace that counts, never the prefix: a C{gcm} of another
        namespace is no payload.
        """
        handler = RecordingHandler()
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler)
        for number, name in enumerate(["gcm", "data:gcm"]):
            prefix = name.rpartition("gcm")[0].rstrip(":")
            declared = f'xmlns:{prefix}="google:mobile"' if prefix else 'xmlns="google:mobile"'
            text = upstreamJSON(f"m-{number}")
            script.write(f"<message><{name} {declared}>{text}</{name}></message>".encode())
            script.write(f"<message><gcm>{text}</gcm></message>".encode())
        joined.pump()
        self.handled(handler, [])
        self.stays(script, joined)

    def test_A07_splitAtEveryByte(self) -> None:
        """
        A stanza that comes in two pieces means the same wherever it was cut:
        within a name, a character, an escape, a tag.
        """
        data = {"text": 'a "quoted" <tag> & \u00e5\u4e2d\U0001f600', "b\\": "\n"}
        for name, form in ENVELOPES.items():
            handler = RecordingHandler()
            script = ScriptedConnectionServer()
            joined = self.joined(script, handler)
            # JSON with its characters as they are, quotes escaped as some do.
            text = json.dumps(
                {"data": data, "from": "tok-A", "message_id": "m-%05d", "category": "c"}, ensure_ascii=False
            )
            text = escape(text, {'"': "&quot;"}).replace("\U0001f600", "&#x1F600;")
            stanza = form % {"a": ' type="normal"', "t": text}
            size = len((stanza % 0).encode())
            for cut in range(1, size):
                sent = (stanza % cut).encode()
                script.write(sent[:cut])
                joined.pump()
                script.write(sent[cut:])
                joined.pump()
                self.assertEqual(cut, len(handler.messages), f"{name}: lost when cut before byte {cut}")
            self.handled(handler, [f"m-{cut:05}" for cut in range(1, size)], name)
            self.assertEqual(handler.ids, script.acks, name)
            self.assertEqual([data] * (size - 1), [message.data for message in handler.messages], name)

    def test_A07_byteByByte(self) -> None:
        """
        So do stanzas of which every byte comes by itself.
        """
        handler = RecordingHandler()
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler)
        for number, form in enumerate(ENVELOPES.values()):
            stanza = form % {"a": "", "t": upstreamJSON(f"m-{number}", data={"k": "\u00e5&lt;"})}
            for byte in stanza.encode():
                script.write(bytes([byte]))
                joined.pump()
        self.handled(handler, [f"m-{number}" for number in range(len(ENVELOPES))])
        self.assertEqual(handler.ids, script.acks)

    def test_A07_fiftyInOneSegment(self) -> None:
        """
        Fifty stanzas in one segment are fifty messages, in order, each
        acknowledged; so they are if the segment ends within one of them.
        """
        for cut in (0, 1, 100, 5000):
            handler = RecordingHandler()
            script = ScriptedConnectionServer()
            joined = self.joined(script, handler)
            forms = islice(product(ENVELOPES.values(), TYPES), 50)
            segment = "".join(
                form % {"a": "" if type_ is None else f' type="{type_}"', "t": upstreamJSON(f"m-{number}")}
                for number, (form, type_) in enumerate(forms)
            ).encode()
            script.write(segment[: len(segment) - cut])
            joined.pump()
            script.write(segment[len(segment) - cut :])
            joined.pump()
            self.handled(handler, [f"m-{number}" for number in range(50)], f"cut {cut} bytes before the end")
            self.assertEqual(handler.ids, script.acks)

    def test_A07_loneSpaces(self) -> None:
        """
        A lone space before, between and after stanzas, in a segment of its own
        or not, means nothing.
        """
        for apart in (True, False):
            handler = RecordingHandler()
            script = ScriptedConnectionServer()
            joined = self.joined(script, handler)
            for number in range(20):
                for piece in (b" ", envelope(upstreamJSON(f"m-{number}")), b" " * number):
                    script.write(piece)
                    if apart:
                        joined.pump()
            joined.pump()
            self.handled(handler, [f"m-{number}" for number in range(20)])
            self.stays(script, joined)

    def test_A25_bothDirections(self) -> None:
        """
        Whatever text stands in the data arrives unchanged: from the device at
        the handler, and from the application at the device.
        """
        handler = RecordingHandler()
        pair = self.pair(handler)
        for name, value in DIFFICULT.items():
            pair.device.send(name, {"k": value})
            result = pair.appServer.send(DownstreamMessage(to="tok-A", message_id=name, data={"k": value}))
            pair.pump()
            self.assertEqual({"k": value}, handler.messages[-1].data, name)
            self.assertEqual(name, pair.device.delivered[-1], name)
            self.assertEqual({"k": value}, pair.device.received[-1].data, name)
            self.assertEqual(name, self.successResultOf(result).message_id)
        self.assertEqual(1, pair.network.attempts)

    def test_A25_keysAndIDs(self) -> None:
        """
        The same holds for the keys, and for the C{message_id}, with which the
        ACK has to name the message.
        """
        handler = RecordingHandler()
        pair = self.pair(handler)
        for name, text in DIFFICULT.items():
            if not text or len(text) > 1000:
                continue
            pair.device.send(text, {text: name})
            result = pair.appServer.send(DownstreamMessage(to="tok-A", message_id=text, data={text: name}))
            pair.pump()
            self.assertEqual({text: name}, handler.messages[-1].data, name)
            self.assertEqual([text], pair.device.delivered[-1:], name)
            self.assertEqual({text: name}, pair.device.received[-1].data, name)
            self.assertEqual(text, self.successResultOf(result).message_id, name)
        self.assertEqual(1, pair.network.attempts)

    @settings(max_examples=50)
    @given(
        st.dictionaries(TEXTS.filter(lambda key: not isReserved(key)), TEXTS, max_size=4), TEXTS.filter(bool)
    )
    def test_A25_anyText(self, data: dict[str, str], message_id: str) -> None:
        """
        There is no text for which that does not hold, but for the keys that
        nobody may use.
        """
        handler = RecordingHandler()
        pair = connectedPair(handler)
        pair.device.send(message_id, data)
        pair.appServer.send(DownstreamMessage(to="tok-A", message_id=message_id, data=data))
        pair.pump()
        self.assertEqual([data], [message.data for message in handler.messages])
        self.assertEqual([data], [message.data for message in pair.device.received])
        self.assertEqual([message_id], pair.device.delivered)
        self.finish(pair, 10)

    def test_A25_4096Bytes(self) -> None:
        """
        Values of 4096 bytes arrive unchanged, too, however large they become
        on the wire.
        """
        handler = RecordingHandler()
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler)
        for number, value in enumerate(
            ["x" * 4096, '"' * 4096, "&" * 4096, "\n" * 4096, "\U0001f600" * 1024]
        ):
            message = upstream(f"m-{number}", k=value)
            quoted = serverStanza(message, BARE_JID).decode()
            # As careful servers write it: 24 kB of &quot; for 4096 quotes.
            head, text, tail = re.fullmatch(r"(.*?<gcm [^>]*>)(.*)(</gcm>.*)", quoted, re.DOTALL).groups()
            script.write((head + text.replace('"', "&quot;") + tail).encode())
            joined.pump()
            self.assertEqual(message, handler.messages[-1])
        self.assertEqual(1, joined.network.attempts)

    def test_A25_escapes(self) -> None:
        """
        All the ways of XML and JSON to write a character mean the same.
        """
        handler = RecordingHandler()
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler)
        ways = [
            ("&lt;", "<"),
            ("&#60;", "<"),
            ("&#x3C;", "<"),
            ("<![CDATA[<]]>", "<"),
            ("a<![CDATA[&]]>b", "a&b"),
            ("\\u003c", "<"),
            ("&#x5C;u003c", "<"),
            ("&gt;", ">"),
            (">", ">"),
            ("&amp;", "&"),
            ("&amp;amp;", "&amp;"),
            ("&apos;", "'"),
            ("\\&quot;", '"'),
            ("\\/", "/"),
            ("\\ud83d\\ude00", "\U0001f600"),
            ("&#x1F600;", "\U0001f600"),
            ("\U0001f600", "\U0001f600"),
            ("\\u0000\\u001F\\b", "\0\x1f\b"),
        ]
        for number, (written, meant) in enumerate(ways):
            for quote in ('"', "&quot;"):
                text = upstreamJSON(f"m-{number}-{len(quote)}").replace('"data": {}', '"data": {"k": "%s"}')
                stanza = ENVELOPES["live"] % {"a": "", "t": text.replace('"', quote) % written}
                script.write(stanza.encode())
                joined.pump()
                self.assertEqual({"k": meant}, handler.messages[-1].data, f"{written!r} in {quote}")
        self.assertEqual(2 * len(ways), len(handler.messages))
