"""
Conformance cases of hostile and broken peers of the app server.
"""

from __future__ import annotations

import re
from typing import Any

from twisted.internet.defer import Deferred

from fcmxmpp.elementstream import MAX_STANZA_BYTES
from fcmxmpp.interfaces import DeadLettered, Undecodable
from fcmxmpp.messages import DownstreamMessage
from fcmxmpp.testing import RecordingHandler, ScriptedConnectionServer
from tests.conformance import (
    NS_STREAM_ERRORS,
    RAW_HEADER,
    RAW_LOGIN,
    RAW_MECHANISMS,
    AppServerCase,
    LogText,
    RawConnectionServer,
    RawEnd,
    envelope,
    upstreamJSON,
)


def billionLaughs() -> bytes:
    """
    A document type definition whose entities unfold to a billion words.
    """
    entities = ['<!ENTITY lol0 "lol">']
    entities += [f'<!ENTITY lol{n} "{f"&lol{n - 1};" * 10}">' for n in range(1, 10)]
    return f"<!DOCTYPE lolz [{''.join(entities)}]>".encode()


GCM_START = b'<message><gcm xmlns="google:mobile:data">'
#: What must not stand in a stream, and the stream error to answer it with.
FORBIDDEN: dict[str, tuple[bytes, str]] = {
    "a comment": (b"<!-- x -->", "restricted-xml"),
    "a comment in a stanza": (b"<message><!-- x --></message>", "restricted-xml"),
    "a comment in a payload": (GCM_START + b"{<!-- x -->}</gcm></message>", "restricted-xml"),
    "a processing instruction": (b"<?php echo 1 ?>", "restricted-xml"),
    "a processing instruction in a payload": (GCM_START + b"{}<?x y?></gcm></message>", "restricted-xml"),
    "a DTD": (b"<!DOCTYPE x>", "not-well-formed"),
    "billion laughs": (billionLaughs() + GCM_START + b"&lol9;</gcm></message>", "not-well-formed"),
    "an XML declaration": (b'<?xml version="1.0"?>', "not-well-formed"),
    "an unknown entity": (GCM_START + b'{"a":"&lol9;"}</gcm></message>', "not-well-formed"),
    "an element that does not end": (GCM_START + b"{}</message>", "not-well-formed"),
    "no UTF-8": (GCM_START + b'{"a":"\xff"}</gcm></message>', "not-well-formed"),
    "half of a surrogate pair": (GCM_START + b'{"a":"&#xD800;"}</gcm></message>', "not-well-formed"),
    "a zero byte": (GCM_START + b'{"a":"\0"}</gcm></message>', "not-well-formed"),
    "a payload of a megabyte": (GCM_START + b"x" * 1_000_000 + b"</gcm></message>", "policy-violation"),
    "an attribute of a megabyte": (b'<iq id="' + b"x" * 1_000_000 + b'"/>', "policy-violation"),
    "10,000 nested elements": (b"<iq>" + b"<a>" * 10_000, "policy-violation"),
    "10,000 nested in a message": (b"<message>" + b"<a>" * 10_000, "policy-violation"),
    "10,000 nested in a payload": (GCM_START + b"<a>" * 10_000, "policy-violation"),
    "10,000 elements in a stanza": (b"<iq>" + b"<a/>" * 10_000, "policy-violation"),
    "10,000 payloads in a message": (
        b"<message>" + b'<gcm xmlns="google:mobile:data">{}</gcm>' * 10_000,
        "policy-violation",
    ),
}
#: The same before the stream's header.
FORBIDDEN_AT_FIRST: dict[str, tuple[bytes, str]] = {
    "a comment": (b"<!-- x -->", "restricted-xml"),
    "a processing instruction": (b'<?xml-stylesheet href="x"?>', "restricted-xml"),
    "a DTD": (b"<!DOCTYPE x>", "restricted-xml"),
    "an external DTD": (b'<!DOCTYPE x SYSTEM "file:///etc/passwd">', "restricted-xml"),
    "billion laughs": (b'<?xml version="1.0"?>' + billionLaughs(), "restricted-xml"),
    "a parameter entity": (b'<!DOCTYPE x [<!ENTITY % a SYSTEM "http://192.0.2.1/">%a;]>', "restricted-xml"),
}
TEN_MEGABYTES = 10 * 1024 * 1024
#: Stanzas without an end: what they begin with, and what goes on and on.
ENDLESS: dict[str, tuple[bytes, bytes]] = {
    "a payload": (GCM_START, b"x"),
    "a payload of quotes": (GCM_START, b"&quot;"),
    "a payload of line breaks": (GCM_START, b"\n"),
    "a payload of CDATA": (GCM_START, b"<![CDATA[x]]>"),
    "text beside the payload": (b"<message>", b"x"),
    "text of another stanza": (b"<iq>", b"x"),
    "an attribute": (b'<message id="', b"x"),
    "attributes": (b"<message", b' a%d="x"'),
    "a name": (b"<", b"x"),
    "a start tag": (b"<message", b" "),
    "an end tag": (b"<message></message", b" "),
    "namespaces": (b"<message", b' xmlns:a%d="x"'),
    "a comment": (b"<!--", b"x"),
    "an entity": (GCM_START + b"&", b"x"),
}


#: What must be in no log.
MARKER = "Rhabarber"


#: Payloads that are no messages and cannot be named.
UNNAMED = {
    "empty": "",
    "white space": " \n ",
    "no JSON": "Rhabarber is not JSON",
    "half": '{"message_id":"m-1","from":"Rhabarber"',
    "two": '{"message_id":"m-1","from":"Rhabarber"} {}',
    "a list": '["Rhabarber"]',
    "a list of messages": '[{"message_id":"m-1","from":"Rhabarber"}]',
    "a string": '"Rhabarber"',
    "a number": "17",
    "null": "null",
    "NaN": "NaN",
    "nothing in it": "{}",
    "no message_id": '{"from":"Rhabarber","data":{}}',
    "no from": '{"message_id":"m-1","data":{"Rhabarber":""}}',
    "message_id is a number": '{"message_id":1,"from":"Rhabarber"}',
    "message_id is null": '{"message_id":null,"from":"Rhabarber"}',
    "message_id is empty": '{"message_id":"","from":"Rhabarber"}',
    "message_id twice": '{"message_id":"m-1","message_id":"m-2","from":"Rhabarber"}',
    "message_id is half of a pair": '{"message_id":"\\ud800","from":"Rhabarber"}',
    "message_id below": '{"data":{"message_id":"m-1","from":"Rhabarber"}}',
    "from is a number": '{"message_id":"m-1","from":17,"data":{"Rhabarber":""}}',
    "from is a list": '{"message_id":"m-1","from":["Rhabarber"]}',
    "from twice": '{"message_id":"m-1","from":"tok-A","from":"Rhabarber"}',
    "nested deeply": '{"Rhabarber":' + "[" * 5000,
    "single quotes": "{'message_id':'m-1','from':'Rhabarber'}",
    "a control message without its type": '{"message_type":"control","control":"Rhabarber"}',
}


#: Payloads that are no messages, of C{"m-1"} and the marker's device.
NAMED = {
    "data is a list": '{"message_id":"m-1","from":"Rhabarber","data":[]}',
    "data is a string": '{"message_id":"m-1","from":"Rhabarber","data":"Rhabarber"}',
    "data is null": '{"message_id":"m-1","from":"Rhabarber","data":null}',
    "a number for a string": '{"message_id":"m-1","from":"Rhabarber","data":{"Rhabarber":1}}',
    "an object for a string": '{"message_id":"m-1","from":"Rhabarber","data":{"k":{"k":"Rhabarber"}}}',
    "null for a string": '{"message_id":"m-1","from":"Rhabarber","data":{"Rhabarber":null}}',
    "category is a number": '{"message_id":"m-1","from":"Rhabarber","category":1}',
    "time_to_live is a string": '{"message_id":"m-1","from":"Rhabarber","time_to_live":"Rhabarber"}',
    "time_to_live is a fraction": '{"message_id":"m-1","from":"Rhabarber","time_to_live":1.5}',
    "message_type is a number": '{"message_id":"m-1","from":"Rhabarber","message_type":1}',
    "NaN": '{"message_id":"m-1","from":"Rhabarber","time_to_live":NaN}',
    "Infinity": '{"message_id":"m-1","from":"Rhabarber","data":{"k":-Infinity}}',
    "a key twice": '{"message_id":"m-1","from":"Rhabarber","data":{"k":"Rhabarber","k":"2"}}',
    "another key twice": '{"message_id":"m-1","from":"Rhabarber","Rhabarber":"1","Rhabarber":"2"}',
    "data twice": '{"message_id":"m-1","from":"Rhabarber","data":{},"data":{"k":"Rhabarber"}}',
    "half of a pair": '{"message_id":"m-1","from":"Rhabarber","data":{"k":"Rhabarber\\ud83d"}}',
    "the other half": '{"message_id":"m-1","from":"Rhabarber","data":{"\\ude00Rhabarber":"v"}}',
    "a pair the wrong way round": '{"message_id":"m-1","from":"Rhabarber","data":{"k":"\\ude00\\ud83d"}}',
    "a receipt of nothing": '{"message_type":"receipt","message_id":"m-1","from":"Rhabarber"}',
}


class HostilePeerTests(AppServerCase):
    """
    A connection server that is broken, or means harm.
    """

    def refused(
        self, script: RawConnectionServer, joined: Any, end: RawEnd, condition: str, what: str
    ) -> None:
        """
        The connection was ended with this stream error.
        """
        error = f"<stream:error><{condition} xmlns='{NS_STREAM_ERRORS}'/></stream:error></stream:stream>"
        self.assertTrue(end.received.endswith(error.encode()), f"{what}: {end.received[-200:]!r}")
        self.assertTrue(end.lost, what)

    def works(self, script: RawConnectionServer, joined: Any, handler: RecordingHandler, what: str) -> None:
        """
        There is a new connection, and it works.
        """
        self.assertEqual(1, joined.network.connections, what)
        self.assertFalse(script.end.lost, what)
        script.write(envelope(upstreamJSON(f"after {what}")))
        joined.pump()
        self.assertEqual(f"after {what}", handler.ids[-1])
        self.assertTrue(script.end.received.endswith(b'"message_type":"ack"}</gcm></message>'), what)

    def test_A26_forbidden(self) -> None:
        """
        A DTD, an entity, a comment, a processing instruction, too many or too
        deeply nested elements and broken XML end the connection with a stream
        error.  What came before that has been handled, and the next connection
        works.
        """
        handler = RecordingHandler()
        script = RawConnectionServer()
        joined = self.joined(script, handler)
        for generation, (what, (data, condition)) in enumerate(FORBIDDEN.items(), 2):
            end = script.end
            script.write(envelope(upstreamJSON(f"before {what}")) + data)
            joined.pump()
            self.assertEqual(f"before {what}", handler.ids[-1])
            self.refused(script, joined, end, condition, what)
            self.assertEqual([f"before {what}"], re.findall(f"before {what}", end.received.decode()))
            joined.advance(61)
            self.assertEqual(generation, joined.appServer.links[0].generation, what)
            self.works(script, joined, handler, what)

    def test_A26_forbiddenByteByByte(self) -> None:
        """
        It makes no difference if it comes byte by byte.
        """
        for what in ("a comment in a payload", "billion laughs", "10,000 nested elements"):
            data, condition = FORBIDDEN[what]
            handler = RecordingHandler()
            script = RawConnectionServer()
            joined = self.joined(script, handler)
            end = script.end
            for byte in data:
                end.transport.write(bytes([byte]))
                joined.pump()
                if end.lost:
                    break
            self.refused(script, joined, end, condition, what)
            self.works(script, joined, handler, what)

    def test_A26_forbiddenAtFirst(self) -> None:
        """
        Before the stream's header a DTD is well-formed XML; it is refused all
        the same, and nothing in it is looked at.
        """
        for what, (data, condition) in FORBIDDEN_AT_FIRST.items():
            handler = RecordingHandler()
            script = RawConnectionServer()
            script.login = [(b"<stream:stream", data + RAW_HEADER + RAW_MECHANISMS.replace(b"x", b"&lol9;"))]
            joined = self.joined(script, handler)
            self.refused(script, joined, script.ends[0], condition, what)
            self.assertNotIn(b"<auth", script.ends[0].received)
            self.assertEqual(0, joined.network.connections)
            script.login = [
                # An XML declaration is fine there.
                (RAW_LOGIN[0][0], b'<?xml version="1.0" encoding="UTF-8"?>\n' + RAW_LOGIN[0][1]),
                *RAW_LOGIN[1:],
            ]
            joined.advance(2)
            self.works(script, joined, handler, what)

    def test_A26_tenMegabytes(self) -> None:
        """
        A stanza of ten megabytes, whatever it is made of, ends the connection
        long before it has all been read.
        """
        for what, (start, more) in ENDLESS.items():
            handler = RecordingHandler()
            script = RawConnectionServer()
            joined = self.joined(script, handler)
            end = script.end
            script.write(start)
            fed, number = len(start), 0
            while fed < TEN_MEGABYTES and not end.lost:
                piece = b""
                while len(piece) < 16_384:
                    number += 1
                    piece += more % number if b"%d" in more else more * 64
                end.transport.write(piece)
                joined.pump()
                fed += len(piece)
            self.assertLessEqual(fed, 2 * MAX_STANZA_BYTES, f"{what}: {fed} bytes were taken")
            self.refused(script, joined, end, "policy-violation", what)
            self.assertEqual([], handler.messages, what)
            self.works(script, joined, handler, what)

    def test_A26_nothingElseBreaks(self) -> None:
        """
        What is on its way in both directions when a hostile stanza ends the
        connection survives it.
        """
        handling: Deferred[None] = Deferred()
        handler = RecordingHandler(lambda message: handling)
        script = RawConnectionServer()
        joined = self.joined(script, handler)
        sent = joined.appServer.send(DownstreamMessage(to="tok-A", message_id="d-1"))
        script.write(envelope(upstreamJSON("u-1")))
        joined.pump()
        script.write(b"<!-- -->")
        joined.pump()
        self.assertEqual(2, joined.appServer.links[0].generation)
        self.assertIn(b'"message_id":"d-1"', script.end.received)
        script.write(envelope('{"message_type":"ack","from":"tok-A","message_id":"d-1"}'))
        script.write(envelope(upstreamJSON("u-1")))
        joined.pump()
        handling.callback(None)
        joined.pump()
        self.successResultOf(sent)
        self.handled(handler, ["u-1"])
        self.assertIn(b'{"to":"tok-A","message_id":"u-1","message_type":"ack"}', script.end.received)
        self.assertNotIn(b'"message_type":"ack"', script.ends[0].received)

    def test_A27_unnamed(self) -> None:
        """
        A payload that is no message, and does not say which one it would be,
        is counted; the stream lives, and the next message is handled.
        """
        log = LogText(self)
        handler = RecordingHandler()
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler)
        for number, (what, text) in enumerate(UNNAMED.items(), 1):
            script.write(envelope(text) + envelope(upstreamJSON(f"after {what}")))
            joined.pump()
            self.assertEqual(f"after {what}", handler.ids[-1])
            self.assertEqual(number, joined.appServer.delivery.malformed, what)
            self.assertEqual(number, len(joined.observer.of(Undecodable)), what)
            self.assertEqual(f"after {what}", script.acks[-1], what)
        self.assertEqual(handler.ids, script.acks)
        self.assertEqual((len(UNNAMED), 1), (len(handler.ids), joined.network.attempts))
        self.assertEqual((0, []), (joined.appServer.delivery.deadLetters, joined.observer.of(DeadLettered)))
        self.assertEqual(len(UNNAMED), len([line for line in log.lines if "malformed payload" in line]))
        self.assertNotIn(MARKER, log.everything)

    def test_A27_named(self) -> None:
        """
        One that does say so becomes a dead letter as well, and is
        acknowledged, so that it does not come again for ever.
        """
        log = LogText(self)
        for what, text in NAMED.items():
            handler = RecordingHandler()
            script = ScriptedConnectionServer()
            joined = self.joined(script, handler)
            script.write(envelope(text) + envelope(upstreamJSON(f"after {what}")))
            joined.pump()
            self.handled(handler, [f"after {what}"])
            delivery = joined.appServer.delivery
            self.assertEqual((1, 1), (delivery.malformed, delivery.deadLetters), what)
            self.assertEqual(
                [("m-1", MARKER)],
                [(event.message_id, event.from_) for event in joined.observer.of(DeadLettered)],
                what,
            )
            self.assertEqual(
                [(MARKER, "m-1"), ("tok-A", f"after {what}")],
                [(message.to, message.message_id) for _, message in script.received],
                what,
            )
            # Again: acknowledged again, and still one dead letter.
            script.write(envelope(text))
            joined.pump()
            self.assertEqual((2, 1), (delivery.malformed, delivery.deadLetters), what)
            self.assertEqual("m-1", script.acks[-1], what)
            self.assertEqual(1, joined.network.attempts, what)
        self.assertEqual(len(NAMED), len([line for line in log.lines if "dead letter" in line]))
        self.assertNotIn(MARKER, log.everything)

    def test_A27_answers(self) -> None:
        """
        An answer that cannot be decoded is counted, and not acknowledged: it
        is no message.
        """
        handler = RecordingHandler()
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler)
        for kind in ("ack", "nack", "control"):
            script.write(
                envelope(f'{{"message_type":"{kind}","message_id":"m-1","from":"t","error":1,"x":NaN}}')
            )
        joined.pump()
        delivery = joined.appServer.delivery
        self.assertEqual((3, 0), (delivery.malformed, delivery.deadLetters))
        self.assertEqual([], script.received)
        self.assertEqual(1, joined.network.attempts)

    def test_A27_unknownTypes(self) -> None:
        """
        A message of a type that nobody knows is no error: it is ignored, and
        not logged either.
        """
        log = LogText(self)
        handler = RecordingHandler()
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler)
        for text in (
            '{"message_type":"Rhabarber"}',
            '{"message_type":"Rhabarber","message_id":"m-1","from":"tok-A","data":{"k":1}}',
            '{"message_type":"control","control_type":"Rhabarber"}',
            '{"message_type":"nack","message_id":"m-1","error":"Rhabarber"}',
            '{"message_type":"ack","message_id":"Rhabarber"}',
        ):
            script.write(envelope(text))
        joined.pump()
        self.assertEqual(([], []), (handler.messages, script.acks))
        self.assertEqual(0, joined.appServer.delivery.malformed)
        self.stays(script, joined)
        self.assertNotIn(MARKER, log.everything)
