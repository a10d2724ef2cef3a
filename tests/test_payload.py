"""
Tests for L{fcmxmpp.payload}.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from typing import Any, get_args
from xml.parsers import expat

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.errors import MalformedPayload, NotSendable
from fcmxmpp.messages import (
    MAX_DOWNSTREAM_TTL,
    Ack,
    Control,
    DownstreamMessage,
    FromAppServer,
    FromConnectionServer,
    Nack,
    Notification,
    Receipt,
    ReceiptData,
    Unrecognized,
    UpstreamAck,
    UpstreamMessage,
)
from fcmxmpp.payload import (
    MAX_TEXT,
    decodeDownstream,
    decodeFromAppServer,
    decodeFromConnectionServer,
    encode,
    unknownFields,
)


# What is drawn.

#: Characters that one of JSON, XML, UTF-8 or a regular expression has an eye on.
_HARD = (
    "\"'<>&\\/ {}[]:,\n\r\t\0\x01\x1f\x7f\x80\x85\x9f\u2028\u2029\ufdd0\ufeff\ufffd\ufffe\uffff😀\U0010ffff"
)
_characters = st.one_of(st.sampled_from(_HARD), st.characters(exclude_categories=["Cs"]))
#: All that has a UTF-8 form.
texts = st.one_of(st.text(_characters), st.sampled_from(["]]>", "<!--", "&amp;", "\\u0026", '","', "ack"]))
names = st.one_of(st.text(_characters, min_size=1), st.sampled_from(["tok-A", "m-1"]))
data = st.dictionaries(texts, texts, max_size=4)
counts = st.integers(0, 2**63)


def orNone(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """
    What may also be missing.
    """
    return st.one_of(st.none(), strategy)


_plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    texts,
)
_json = st.recursive(
    _plain,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=5,
)

upstreamMessages = st.builds(
    UpstreamMessage,
    data=data,
    time_to_live=orNone(counts),
    from_=names,
    message_id=names,
    category=orNone(texts),
)
receipts = st.builds(
    Receipt,
    category=orNone(texts),
    data=st.builds(
        ReceiptData,
        message_status=texts,
        original_message_id=names,
        device_registration_id=orNone(texts),
        message_sent_timestamp=orNone(texts),
    ),
    message_id=names,
    time_to_live=orNone(counts),
    from_=names,
)
acks = st.builds(
    Ack,
    from_=orNone(texts),
    message_id=names,
    registration_id=orNone(texts),
    success=orNone(counts),
    failure=orNone(counts),
    failed_registration_ids=orNone(st.lists(texts, max_size=3)),
)
nacks = st.builds(
    Nack,
    from_=orNone(texts),
    message_id=names,
    error=texts,
    error_description=orNone(texts),
    registration_id=orNone(texts),
)
controls = st.builds(Control, control_type=texts)
unrecognized = st.builds(
    Unrecognized, message_type=texts.filter(lambda name: name not in ("ack", "nack", "receipt", "control"))
)
upstreamAcks = st.builds(UpstreamAck, to=names, message_id=names)
notifications = st.builds(
    Notification,
    **{
        name: orNone(
            st.one_of(texts, st.dictionaries(texts, _json, max_size=3)) if name == "sound" else texts
        )
        for name in Notification.__struct_fields__
    },
)
downstreamMessages = st.builds(
    DownstreamMessage,
    to=orNone(texts),
    condition=orNone(texts),
    message_id=names,
    collapse_key=orNone(texts),
    priority=st.sampled_from([None, "normal", "high"]),
    content_available=st.booleans(),
    mutable_content=st.booleans(),
    delay_while_idle=st.booleans(),
    time_to_live=orNone(st.integers(0, MAX_DOWNSTREAM_TTL)),
    delivery_receipt_requested=st.booleans(),
    dry_run=st.booleans(),
    data=data,
    notification=orNone(notifications),
)
fromConnectionServer = st.one_of(upstreamMessages, receipts, acks, nacks, controls, unrecognized)
fromAppServer = st.one_of(upstreamAcks, downstreamMessages)

#: Text that no reason may ever hold.
SECRET = "c0ffee-5ecret"
_NAMES = ["message_id", "message_type", "from", "to", "data", "category", "time_to_live", "priority"]
_MORE_NAMES = ["notification", "sound", "control_type", "error", "success", "dry_run", SECRET, ""]
_ODD_NAMES = ["message\\u005fid", "message\\u005ftype", "fr\\u006fm", "t\\u006f", "\ud800", "\\ud800"]
_keys = st.sampled_from(_NAMES + _MORE_NAMES + _ODD_NAMES)

_STRINGS = ['"ack"', '"nack"', '"receipt"', '"control"', '"600"', '"00600"', '"\u0663"', '"tok-A"', '""']
_NUMBERS = ["0", "-0", "-1", "1.0", "1e5", "1e999", "-1e-999", "NaN", "Infinity", "-Infinity", "01", ".5"]
_LONG = ["9" * 30, "9" * 5000, '"' + "9" * 5000 + '"', "0" * 5000, "x" * 5000, '"' + "x" * 5000 + '"']
_DEEP = ["[" * 3000, '{"a":' * 3000, "[" * 1500 + "]" * 1500, '{"a":' * 400 + "1" + "}" * 400]
_BROKEN = ['"\ud800"', '"\\ud800"', '"\\udc00\\ud800"', '"\\q"', '"\\u12"', '"\0"', '"\n"', '"', "\ufeff"]
_OTHER = ["null", "nul", "true", "[]", "{}", "[1,]", "{,}", "//", "/**/1", "'x'", "\xa0", ""]
_SECRETS = [SECRET, f'"{SECRET}"', f"\"'{SECRET}\\n'{SECRET}'\"", f'"\'{SECRET}"', f'["{SECRET}"]']
#: The text of one value, good and bad.
_fragments = st.one_of(
    st.sampled_from(_STRINGS + _NUMBERS + _LONG + _DEEP + _BROKEN + _OTHER + _SECRETS),
    _plain.map(json.dumps),
    texts.map(lambda text: json.dumps(text, ensure_ascii=False)),
)


def _objectText(members: list[tuple[str, str]]) -> str:
    return "{" + ",".join(f'"{key}":{value}' for key, value in members) + "}"


_values = st.recursive(
    _fragments,
    lambda inner: st.one_of(
        st.lists(st.tuples(_keys, inner), max_size=4).map(_objectText),
        st.lists(inner, max_size=3).map(lambda items: "[" + ",".join(items) + "]"),
    ),
    max_leaves=4,
)
#: Objects that nearly are messages: keys of the protocol, doubled or not, with anything for values.
nearMessages = st.lists(st.tuples(_keys, _values), max_size=8).map(_objectText)


@st.composite
def mutated(draw: st.DrawFn, messages: st.SearchStrategy[Any]) -> str:
    """
    The text of a good message with some pieces cut out, doubled or put in.
    """
    text = encode(draw(messages)).decode()
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.one_of(st.just(start), st.integers(start, min(len(text), start + 8))))
        member = st.tuples(_keys, _fragments).map(lambda pair: f'"{pair[0]}":{pair[1]},')
        new = draw(
            st.one_of(st.just(text[start:end] * 2), st.just(""), _fragments, member, st.text(max_size=2))
        )
        text = text[:start] + new + text[end:]
    return text


Decode = Callable[[str], Any]


class Decoding(SynchronousTestCase):
    """
    What tests of the decoders share.
    """

    def malformed(self, text: str, decode: Decode = decodeFromConnectionServer) -> MalformedPayload:
        """
        Decode a text that is malformed.
        """
        error: MalformedPayload = self.assertRaises(MalformedPayload, decode, text)
        return error

    def assertNames(
        self, text: str, *expected: str | None, decode: Decode = decodeFromConnectionServer
    ) -> None:
        """
        Fail unless the text is malformed and these are its C{message_id} and
        sender.
        """
        error = self.malformed(text, decode)
        self.assertEqual((error.message_id, error.from_), expected, text[:200])

    def assertSecretive(self, error: Exception) -> None:
        """
        Fail if a secret of the payload can be read from an error, be it from
        the traceback that a log would show.
        """
        # What led to it may quote the payload, so it must never be shown along.
        self.assertTrue(error.__suppress_context__ or error.__context__ is None)
        shown = "".join(traceback.format_exception(error))
        self.assertNotIn(SECRET, shown)
        self.assertNotIn(SECRET, repr(error.args))


# Good messages.


class RoundTripTests(SynchronousTestCase):
    """
    What one end encodes is what the other end decodes.
    """

    @given(fromConnectionServer)
    def test_fromConnectionServer(self, message: FromConnectionServer) -> None:
        """
        Every message that a connection server sends arrives unchanged.
        """
        self.assertEqual(decodeFromConnectionServer(encode(message).decode()), message)

    @given(fromAppServer)
    def test_fromAppServer(self, message: FromAppServer) -> None:
        """
        Every message that an app server sends arrives unchanged.
        """
        self.assertEqual(decodeFromAppServer(encode(message).decode()), message)

    def test_longValues(self) -> None:
        """
        A value of 4096 bytes arrives unchanged, and however many bytes JSON
        takes for it, the whole is not too long.
        """
        for value in ("x" * 4096, '"' * 4096, "\0" * 4096, "&" * 4096, "\uffff" * 1365, "😀" * 1024):
            up = UpstreamMessage(from_="tok-A", message_id="u-17", data={"k": value})
            down = DownstreamMessage(to="tok-A", message_id="m-1", data={"k": value})
            self.assertEqual(decodeFromConnectionServer(encode(up).decode()), up)
            self.assertEqual(decodeFromAppServer(encode(down).decode()), down)

    @given(st.one_of(fromConnectionServer, fromAppServer))
    def test_anyReader(self, message: FromConnectionServer | FromAppServer) -> None:
        """
        A reader that knows JSON but not us, and one that writes it anew with
        other escapes and spaces, mean the same.
        """
        decode = (
            decodeFromAppServer
            if isinstance(message, get_args(FromAppServer))
            else decodeFromConnectionServer
        )
        value = json.loads(encode(message))
        for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
            self.assertEqual(decode(text), message)


class EncodeTests(SynchronousTestCase):
    """
    L{encode} makes text that brittle readers can read.
    """

    @given(st.one_of(fromConnectionServer, fromAppServer))
    def test_fitForXML(self, message: FromConnectionServer | FromAppServer) -> None:
        """
        Put into an XML element as it is, the text comes out of an XML parser
        unchanged; so it means the same to a reader that cuts it out of the
        stream and to one that parses the stream.
        """
        payload = encode(message)
        found: list[str] = []
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.CharacterDataHandler = found.append
        parser.Parse(b'<message><gcm xmlns="google:mobile:data">' + payload + b"</gcm></message>", True)
        self.assertEqual("".join(found), payload.decode())

    @given(st.one_of(fromConnectionServer, fromAppServer))
    def test_noSpecials(self, message: FromConnectionServer | FromAppServer) -> None:
        """
        There is no C{&}, C{<} or C{>} in the text, and nothing that ends a
        line.
        """
        payload = encode(message)
        self.assertEqual([byte for byte in b"&<>\r\n" if byte in payload], [])

    def test_escapes(self) -> None:
        """
        Specials are written as JSON escapes; the quotes that JSON itself
        needs stay quotes.
        """
        message = DownstreamMessage(to="a", message_id="m", data={"<&>": "\ufffe\uffff\n"})
        self.assertEqual(
            encode(message),
            b'{"to":"a","message_id":"m","data":{"\\u003c\\u0026\\u003e":"\\ufffe\\uffff\\n"}}',
        )

    def test_surrogate(self) -> None:
        """
        Half of a surrogate pair in a key or a value is the caller's mistake,
        of which the error says nothing but that.
        """
        for wrong in ({"k": f"{SECRET}\ud800"}, {f"{SECRET}\udc00": "v"}):
            error = self.assertRaises(
                NotSendable, encode, DownstreamMessage(to="a", message_id="m", data=wrong)
            )
            self.assertEqual(error.field, "message")
            self.assertNotIn(SECRET, "".join(traceback.format_exception(error)))

    def test_noJSONForm(self) -> None:
        """
        A value that JSON has no form for is the caller's mistake, of which
        the error says nothing but that.
        """
        for wrong in (object(), SynchronousTestCase, {SECRET: object()}, {object(): SECRET}, 1j):
            message = DownstreamMessage(to="a", message_id="m", notification=Notification(sound={"k": wrong}))
            error = self.assertRaises(NotSendable, encode, message)
            self.assertEqual(error.field, "message")
            self.assertNotIn(SECRET, "".join(traceback.format_exception(error)))


class WireTests(SynchronousTestCase):
    """
    The samples of docs/protocol.md, to the byte and in both directions.
    """

    def assertWire(self, decode: Decode, message: FromConnectionServer | FromAppServer, text: str) -> None:
        """
        Fail unless this is the message's text.
        """
        self.assertEqual(encode(message).decode(), text)
        self.assertEqual(decode(text), message)

    def test_upstreamMessage(self) -> None:
        """
        An upstream message has its keys in Google's order and no
        C{message_type} (3.1).
        """
        self.assertWire(
            decodeFromConnectionServer,
            UpstreamMessage(
                data={"op": "ECHO"},
                time_to_live=86400,
                from_="tok-A",
                message_id="u-17",
                category="org.example.app",
            ),
            '{"data":{"op":"ECHO"},"time_to_live":86400,"from":"tok-A","message_id":"u-17",'
            '"category":"org.example.app"}',
        )

    def test_upstreamAck(self) -> None:
        """
        The app server's ACK has three keys (3.2).
        """
        self.assertWire(
            decodeFromAppServer,
            UpstreamAck(to="tok-A", message_id="u-17"),
            '{"to":"tok-A","message_id":"u-17","message_type":"ack"}',
        )

    def test_receiptAck(self) -> None:
        """
        The ACK of a receipt goes to Google under the receipt's own id (5).
        """
        self.assertWire(
            decodeFromAppServer,
            UpstreamAck(to="gcm.googleapis.com", message_id="dr2:m-1"),
            '{"to":"gcm.googleapis.com","message_id":"dr2:m-1","message_type":"ack"}',
        )

    def test_downstreamMessage(self) -> None:
        """
        A downstream message has what its maker set and nothing more (2.1).
        """
        self.assertWire(
            decodeFromAppServer,
            DownstreamMessage(to="tok-A", message_id="m-1", data={"k": "v"}),
            '{"to":"tok-A","message_id":"m-1","data":{"k":"v"}}',
        )

    def test_fullDownstreamMessage(self) -> None:
        """
        All the fields of a downstream message go by their wire names, with
        JSON's own booleans and numbers (4.1).
        """
        self.assertWire(
            decodeFromAppServer,
            DownstreamMessage(
                to="tok-A",
                condition="'a' in topics",
                message_id="m-1",
                collapse_key="c",
                priority="high",
                content_available=True,
                mutable_content=True,
                delay_while_idle=True,
                time_to_live=0,
                delivery_receipt_requested=True,
                dry_run=True,
                data={"k": "v"},
                notification=Notification(title="t", body="b", sound="s", badge="1", body_loc_args='["x"]'),
            ),
            '{"to":"tok-A","condition":"\'a\' in topics","message_id":"m-1","collapse_key":"c",'
            '"priority":"high","content_available":true,"mutable_content":true,"delay_while_idle":true,'
            '"time_to_live":0,"delivery_receipt_requested":true,"dry_run":true,"data":{"k":"v"},'
            '"notification":{"title":"t","body":"b","sound":"s","badge":"1","body_loc_args":"[\\"x\\"]"}}',
        )

    def test_ack(self) -> None:
        """
        The connection server's ACK has three keys (4.2).
        """
        self.assertWire(
            decodeFromConnectionServer,
            Ack(from_="tok-A", message_id="m-1"),
            '{"from":"tok-A","message_id":"m-1","message_type":"ack"}',
        )

    def test_ackWithNewerToken(self) -> None:
        """
        A newer token follows the three keys (4.2).
        """
        self.assertWire(
            decodeFromConnectionServer,
            Ack(from_="tok-A", message_id="m-1", registration_id="tok-A2"),
            '{"from":"tok-A","message_id":"m-1","message_type":"ack","registration_id":"tok-A2"}',
        )

    def test_ackOfGroup(self) -> None:
        """
        The ACK for a device group counts its members, none included (4.2).
        """
        self.assertWire(
            decodeFromConnectionServer,
            Ack(from_="key", message_id="m-1", success=0, failure=1, failed_registration_ids=["tok-A"]),
            '{"from":"key","message_id":"m-1","message_type":"ack","success":0,"failure":1,'
            '"failed_registration_ids":["tok-A"]}',
        )

    def test_nack(self) -> None:
        """
        A NACK begins with its C{message_type}; an empty description stays
        (4.3).
        """
        self.assertWire(
            decodeFromConnectionServer,
            Nack(from_="tok-X", message_id="m-1", error="BAD_REGISTRATION", error_description=""),
            '{"message_type":"nack","from":"tok-X","message_id":"m-1","error":"BAD_REGISTRATION",'
            '"error_description":""}',
        )

    def test_nackInDocumentedOrder(self) -> None:
        """
        The order of keys means nothing to the reader: the documentation's
        sample of a NACK is read as well (4.3).
        """
        self.assertEqual(
            decodeFromConnectionServer(
                '{"message_type":"nack","message_id":"m-1","from":"tok-X","error":"BAD_REGISTRATION",'
                '"error_description":"Invalid token on \'to\' field: tok-X","registration_id":"tok-Y"}'
            ),
            Nack(
                from_="tok-X",
                message_id="m-1",
                error="BAD_REGISTRATION",
                error_description="Invalid token on 'to' field: tok-X",
                registration_id="tok-Y",
            ),
        )

    def test_control(self) -> None:
        """
        The control message has two keys, and no C{message_id} (6; A1).
        """
        self.assertWire(
            decodeFromConnectionServer,
            Control(control_type="CONNECTION_DRAINING"),
            '{"message_type":"control","control_type":"CONNECTION_DRAINING"}',
        )

    def test_receipt(self) -> None:
        """
        A receipt has its keys in the order of the sample (5; A8).
        """
        self.assertWire(
            decodeFromConnectionServer,
            Receipt(
                category="org.example.app",
                data=ReceiptData(
                    message_status="MESSAGE_SENT_TO_DEVICE",
                    original_message_id="m-1",
                    device_registration_id="tok-A",
                    message_sent_timestamp="1498801519251",
                ),
                message_id="dr2:m-1",
                time_to_live=0,
                from_="gcm.googleapis.com",
            ),
            '{"category":"org.example.app","data":{"message_status":"MESSAGE_SENT_TO_DEVICE",'
            '"original_message_id":"m-1","device_registration_id":"tok-A",'
            '"message_sent_timestamp":"1498801519251"},"message_id":"dr2:m-1","message_type":"receipt",'
            '"time_to_live":0,"from":"gcm.googleapis.com"}',
        )

    def test_shortestUpstreamMessage(self) -> None:
        """
        Sender and id make an upstream message; all else may be missing (3.1).
        """
        self.assertWire(
            decodeFromConnectionServer,
            UpstreamMessage(from_="tok-A", message_id="u-17"),
            '{"from":"tok-A","message_id":"u-17"}',
        )


class MessageTypeTests(Decoding):
    """
    C{message_type} alone decides what a payload is.
    """

    def test_unknownType(self) -> None:
        """
        An app server sees a type that it does not know as such, whatever else
        the payload has (2.3).
        """
        for name in ("", "Ack", "ACK", "receipts", "message", SECRET):
            text = json.dumps({"message_type": name, "from": 1, "message_id": "m-1", "x": [None]})
            self.assertEqual(decodeFromConnectionServer(text), Unrecognized(message_type=name))

    def test_noType(self) -> None:
        """
        Without a type, or with C{null}, it is data for the app server and a
        downstream message for the connection server.
        """
        for head in ("", '"message_type":null,'):
            self.assertEqual(
                decodeFromConnectionServer("{" + head + '"from":"tok-A","message_id":"u-17"}'),
                UpstreamMessage(from_="tok-A", message_id="u-17"),
            )
            self.assertEqual(
                decodeFromAppServer("{" + head + '"to":"tok-A","message_id":"m-1"}'),
                DownstreamMessage(to="tok-A", message_id="m-1"),
            )

    def test_typeInData(self) -> None:
        """
        A C{message_type} among the app's own keys or values is the app's.
        """
        for data in ({"message_type": "ack"}, {"k": '"message_type":"ack"'}, {"k": "message_type"}):
            up = {"data": data, "from": "tok-A", "message_id": "u-17"}
            down = {"data": data, "to": "tok-A", "message_id": "m-1"}
            for separators in ((",", ":"), (", ", ": ")):
                self.assertEqual(
                    decodeFromConnectionServer(json.dumps(up, separators=separators)),
                    UpstreamMessage(data=data, from_="tok-A", message_id="u-17"),
                )
                self.assertEqual(
                    decodeFromAppServer(json.dumps(down, separators=separators)),
                    DownstreamMessage(data=data, to="tok-A", message_id="m-1"),
                )

    def test_typeElsewhere(self) -> None:
        """
        Nor is one an ACK that has such a key somewhere within.
        """
        text = '{"from":"tok-A","message_id":"u-17","x":{"message_type":"ack"}}'
        self.assertEqual(decodeFromConnectionServer(text), UpstreamMessage(from_="tok-A", message_id="u-17"))
        text = (
            '{"data":{"message_status":"SENT","original_message_id":"m-1","message_type":"ack"},'
            '"message_id":"dr2:m-1","message_type":"receipt","from":"gcm.googleapis.com"}'
        )
        self.assertIsInstance(decodeFromConnectionServer(text), Receipt)
        text = '{"message_type":"nack","from":"t","message_id":"m-1","error":"X","x":{"message_type":"ack"}}'
        self.assertIsInstance(decodeFromConnectionServer(text), Nack)

    def test_escapedKey(self) -> None:
        """
        A key that is spelled with escapes is the same key.
        """
        text = '{"message\\u005ftype":"ack","%s":"tok-A","message\\u005fid":"m-1"}'
        self.assertEqual(decodeFromConnectionServer(text % "from"), Ack(from_="tok-A", message_id="m-1"))
        self.assertEqual(decodeFromAppServer(text % "to"), UpstreamAck(to="tok-A", message_id="m-1"))

    def test_mistypedAck(self) -> None:
        """
        With C{message_type} "ack" it is an ACK, with anything near to that it
        is a message for a device (S5).
        """
        for name in ("akc", "Ack", "ack ", "", "nack", "receipt", "control"):
            text = json.dumps({"to": "tok-A", "message_id": "u-17", "message_type": name})
            self.assertEqual(decodeFromAppServer(text), DownstreamMessage(to="tok-A", message_id="u-17"))

    def test_brokenAck(self) -> None:
        """
        An ACK that is malformed stays an ACK and is never sent to a device,
        not even if it has a C{time_to_live} of digits (S5).
        """
        for members in ('"message_id":"u-17"', '"message_id":"u-17","time_to_live":"60"', '"to":"tok-A"'):
            self.malformed('{"message_type":"ack",' + members + "}", decodeFromAppServer)

    def test_wrongTypeOfType(self) -> None:
        """
        A C{message_type} that is no string is malformed in both directions.
        """
        for value in ("1", "[]", "{}", "true", '["ack"]'):
            text = '{"message_type":%s,"from":"tok-A","to":"tok-B","message_id":"m-1"}' % value  # noqa: UP031
            self.assertNames(text, "m-1", "tok-A")
            self.assertNames(text, "m-1", "tok-B", decode=decodeFromAppServer)

    def test_unknownFields(self) -> None:
        """
        Fields that we do not know are nobody's mistake, in any message and of
        any type.
        """
        more = '"restricted_package_name":"x","new":[{"a":1.5e3,"b":null}],'
        for text in (
            '{%s"from":"tok-A","message_id":"u-17"}',
            '{%s"from":"tok-A","message_id":"m-1","message_type":"ack"}',
            '{%s"message_type":"nack","message_id":"m-1","error":"X"}',
            '{%s"message_type":"control","control_type":"X"}',
            '{%s"message_type":"receipt","from":"g","message_id":"dr2:m","data":{"message_status":"S",'
            '"original_message_id":"m"}}',
        ):
            self.assertEqual(decodeFromConnectionServer(text % more), decodeFromConnectionServer(text % ""))
        for text in (
            '{%s"to":"tok-A","message_id":"m-1"}',
            '{%s"to":"t","message_id":"u","message_type":"ack"}',
        ):
            self.assertEqual(decodeFromAppServer(text % more), decodeFromAppServer(text % ""))


class DownstreamTests(Decoding):
    """
    What a connection server has to make of what app servers send.
    """

    def test_noMessageID(self) -> None:
        """
        Without a C{message_id} there is nothing to NACK, and the error says
        so in Google's words (S7).
        """
        for text in ('{"to":"tok-A","data":{}}', '{"to":"tok-A","message_id":null}'):
            error = self.malformed(text, decodeFromAppServer)
            self.assertEqual(
                (error.reason, error.message_id, error.from_),
                ("Missing Required Field: message_id", None, "tok-A"),
            )

    def test_noMessageIDWithNumericTTL(self) -> None:
        """
        That holds for a message with a C{time_to_live} of digits as well.
        """
        error = self.malformed('{"to":"tok-A","time_to_live":"60"}', decodeFromAppServer)
        self.assertEqual(error.reason, "Missing Required Field: message_id")

    @given(st.integers(0, MAX_DOWNSTREAM_TTL))
    def test_numericTTL(self, ttl: int) -> None:
        """
        A C{time_to_live} in range may be a string of digits.
        """
        self.assertEqual(
            decodeFromAppServer(f'{{"to":"tok-A","message_id":"m-1","time_to_live":"{ttl}"}}'),
            DownstreamMessage(to="tok-A", message_id="m-1", time_to_live=ttl),
        )

    def test_numericTTLKeepsTheRest(self) -> None:
        """
        A string of digits changes nothing about the other fields.
        """
        text = encode(
            DownstreamMessage(
                to="tok-A",
                message_id="m-1",
                priority="high",
                time_to_live=600,
                dry_run=True,
                data={"k": "\uffff&"},
                notification=Notification(sound={"critical": 1, "volume": 0.5}),
            )
        ).decode()
        quoted = text.replace(":600,", ':"600",')
        self.assertNotEqual(quoted, text)
        self.assertEqual(decodeFromAppServer(quoted), decodeFromAppServer(text))

    @given(
        st.one_of(
            st.integers(max_value=-1),
            st.integers(min_value=MAX_DOWNSTREAM_TTL + 1),
            st.integers().map(str).filter(lambda text: not 0 <= int(text) <= MAX_DOWNSTREAM_TTL),
            texts.filter(lambda text: not text.isdecimal()),
            st.floats(allow_nan=False, allow_infinity=False),
            st.booleans(),
        )
    )
    @example("\u0666\u0660\u0660")
    @example("\u00b2")
    @example("+600")
    @example(" 600")
    @example("6_0")
    @example("0x10")
    @example("")
    @example("9" * 5000)
    @example("9" * 20)
    @example(600.0)
    @example([600])
    def test_wrongTTL(self, ttl: Any) -> None:
        """
        Any other C{time_to_live} is malformed, and the message is named, so
        that it can be NACKed.
        """
        text = json.dumps({"to": "tok-A", "message_id": "m-1", "time_to_live": ttl})
        self.assertNames(text, "m-1", "tok-A", decode=decodeFromAppServer)

    def test_strictWithNumericTTL(self) -> None:
        """
        A string of digits for C{time_to_live} excuses nothing else: the text
        is as strictly read as any other.
        """
        for member in (
            '"x":NaN',
            '"notification":{"sound":{"volume":NaN}}',
            '"x":"\\ud800"',
            '"data":{"k":"\\ud800"}',
            '"data":{"k":1}',
            '"data":{"k":"v","k":"v"}',
            '"x":{"k":1,"k":1}',
            '"time_to_live":"60"',
            '"priority":"low"',
            '"dry_run":"true"',
            '"condition":1',
        ):
            text = '{"to":"tok-A","message_id":"m-1","time_to_live":"600",' + member + "}"
            self.assertNames(text, "m-1", "tok-A", decode=decodeFromAppServer)

    def test_wrongTypes(self) -> None:
        """
        A field of the wrong type is malformed, and the message is named (S8).
        """
        for member in (
            '"condition":1',
            '"collapse_key":{}',
            '"priority":"urgent"',
            '"priority":10',
            '"content_available":"true"',
            '"mutable_content":1',
            '"delay_while_idle":"true"',
            '"delivery_receipt_requested":null',
            '"dry_run":0',
            '"data":[]',
            '"data":{"k":1}',
            '"data":{"k":null}',
            '"data":{"k":{}}',
            '"notification":"hi"',
            '"notification":{"badge":1}',
            '"notification":{"sound":[]}',
        ):
            text = '{"to":"tok-A","message_id":"m-1",' + member + "}"
            self.assertNames(text, "m-1", "tok-A", decode=decodeFromAppServer)


# Malformed ones.


class NamingTests(Decoding):
    """
    A malformed payload is named where that is beyond doubt, and only there
    (A27).
    """

    def test_noJSON(self) -> None:
        """
        What is no JSON has no names.
        """
        for text in (
            "",
            " ",
            "hello",
            "{",
            '{"from":"tok-A","message_id":"u-17"',
            '{"from":"tok-A","message_id":"u-17",}',
            '{"from":"tok-A" "message_id":"u-17"}',
            "{'from':'tok-A','message_id':'u-17'}",
            '{"from":"tok-A","message_id":"u-17"}{}',
            '{"from":"tok-A","message_id":"u-17"} x',
            '\ufeff{"from":"tok-A","message_id":"u-17"}',
            '{"from":"tok-A","message_id":"u-17","x":01}',
            '{"from":"tok-A","message_id":"u-17","x":"\n"}',
            '{"from":"tok-A","message_id":"u-17","x":"\\q"}',
            "<gcm/>",
        ):
            for decode in (decodeFromConnectionServer, decodeFromAppServer):
                self.assertNames(text, None, None, decode=decode)

    def test_noObject(self) -> None:
        """
        What is no object has no names, be there one inside.
        """
        for text in ("[]", "1", "null", "true", '"x"', '[{"from":"tok-A","to":"tok-A","message_id":"u-17"}]'):
            for decode in (decodeFromConnectionServer, decodeFromAppServer):
                self.assertNames(text, None, None, decode=decode)

    def test_spaceAround(self) -> None:
        """
        White space around a malformed object does not hide its names.
        """
        self.assertNames(' \t\r\n{"from":"tok-A","message_id":"u-17","data":1} \r\n', "u-17", "tok-A")

    def test_wrongTypes(self) -> None:
        """
        A number where a string belongs leaves the names alone.
        """
        for member in (
            '"data":{"k":1}',
            '"data":{"k":null}',
            '"data":[]',
            '"time_to_live":1.5',
            '"category":0',
        ):
            self.assertNames('{"from":"tok-A","message_id":"u-17",' + member + "}", "u-17", "tok-A")

    def test_wrongTypesOfNames(self) -> None:
        """
        A name that is no string, or an empty one, is not named; the other one
        is.
        """
        for value in ("1", "null", "[]", '{"message_id":"x","from":"x","to":"x"}', '""', "true"):
            self.assertNames('{"from":"tok-A","message_id":' + value + "}", None, "tok-A")
            self.assertNames('{"message_id":"u-17","from":' + value + "}", "u-17", None)
            ack = '{"message_type":"ack","to":"t","message_id":' + value + "}"
            self.assertNames(ack, None, "t", decode=decodeFromAppServer)
            ack = '{"message_type":"ack","message_id":"m","to":' + value + "}"
            self.assertNames(ack, "m", None, decode=decodeFromAppServer)

    def test_missingNames(self) -> None:
        """
        A name that is missing is not named; the other one is.
        """
        self.assertNames("{}", None, None)
        self.assertNames('{"from":"tok-A"}', None, "tok-A")
        self.assertNames('{"message_id":"u-17"}', "u-17", None)
        self.assertNames('{"message_id":"u-17","to":"tok-A"}', "u-17", None)

    def test_notANumber(self) -> None:
        """
        C{NaN} and the infinities are no JSON, but do not hide the names.
        """
        for value in ("NaN", "Infinity", "-Infinity"):
            for member in (f'"x":{value}', f'"data":{{"k":{value}}}', f'"time_to_live":{value}'):
                self.assertNames('{"from":"tok-A","message_id":"u-17",' + member + "}", "u-17", "tok-A")

    def test_duplicateKeys(self) -> None:
        """
        A key that an object has twice, at the top or below, with the same or
        another value, is malformed and leaves the names alone.
        """
        for member in (
            '"category":"a","category":"a"',
            '"category":"a","category":"b"',
            '"data":{"k":"v","k":"v"}',
            '"data":{},"data":{}',
            '"data":{"a":"1","k":"v","b":"2","k":"w"}',
            '"data":{"k":"v","\\u006b":"v"}',
            '"x":{"y":[{"k":1,"k":1}]}',
            '"x":1,"x":1',
        ):
            text = '{"from":"tok-A","message_id":"u-17",' + member + "}"
            self.assertNames(text, "u-17", "tok-A")
            self.assertEqual(self.malformed(text).reason, "Duplicate key")

    def test_duplicateNames(self) -> None:
        """
        A name that is given twice is not named, even if it is the same name
        or spelled in another way; the other one is.
        """
        for member in (
            '"message_id":"u-17"',
            '"message_id":"u-18"',
            '"message\\u005fid":"u-17"',
            '"message_id":1',
        ):
            self.assertNames('{"from":"tok-A","message_id":"u-17",' + member + "}", None, "tok-A")
        for member in ('"from":"tok-A"', '"from":"tok-B"', '"fr\\u006fm":"tok-A"', '"from":null'):
            self.assertNames('{"from":"tok-A","message_id":"u-17",' + member + "}", "u-17", None)

    def test_duplicateKeysToConnectionServer(self) -> None:
        """
        The connection server does not take them either, in ACK or message.
        """
        for text in (
            '{"to":"a","message_id":"m","message_type":"ack","message_type":"ack"}',
            '{"to":"a","message_id":"m","data":{"k":"v","k":"v"}}',
            '{"to":"a","message_id":"m","notification":{"sound":{"name":"x","name":"x"}}}',
        ):
            self.assertNames(text, "m", "a", decode=decodeFromAppServer)
        self.assertNames('{"to":"a","message_id":"m","to":"b"}', "m", None, decode=decodeFromAppServer)

    def test_duplicateKeyBehindGrowth(self) -> None:
        """
        A duplicate key cannot hide behind a number that is longer when it is
        written anew, as C{1e15} is.
        """
        sound = '"notification":{"sound":{"volume":1e15}}'
        growth = len(msgspec.json.encode(1e15)) - len("1e15")
        extra = '"to":"' + "x" * (growth - len('"to":"",')) + '",'
        text = '{"message_id":"m",' + extra + '"to":"a",' + sound + "}"
        self.assertNames(text, "m", None, decode=decodeFromAppServer)

    def test_duplicateType(self) -> None:
        """
        A payload of two types is of none, whichever comes last.
        """
        for one, other in (
            ("ack", "new"),
            ("new", "ack"),
            ("control", "new"),
            ("new", "newer"),
            ("new", "new"),
        ):
            text = '{"message_type":"%s","from":"a","message_id":"m","message_type":"%s"}'
            self.assertNames(text % (one, other), "m", "a")

    def test_loneSurrogates(self) -> None:
        """
        Half of a surrogate pair in the data, escaped or not, leaves the names
        alone.
        """
        for half in ("\\ud800", "\\udfff", "\\udc00\\ud800", "\ud800", "\udfff"):
            for member in (
                '"data":{"k":"' + half + '"}',
                '"data":{"' + half + '":"v"}',
                '"x":"' + half + '"',
            ):
                self.assertNames('{"from":"tok-A","message_id":"u-17",' + member + "}", "u-17", "tok-A")

    def test_loneSurrogatesInNames(self) -> None:
        """
        A name with half of a surrogate pair could not be written to anybody,
        so it is not named; the other one is.
        """
        for half in ("\\ud800", "\\udfff", "\ud800"):
            self.assertNames('{"from":"tok-A","message_id":"u-' + half + '"}', None, "tok-A")
            self.assertNames('{"from":"tok-' + half + '","message_id":"u-17"}', "u-17", None)

    def test_wholeSurrogatePairInNames(self) -> None:
        """
        A whole pair, escaped, is one character like any other.
        """
        self.assertNames('{"from":"tok-A","message_id":"\\ud83d\\ude00","data":1}', "😀", "tok-A")

    def test_hugeNumbers(self) -> None:
        """
        A number of so many digits that Python refuses it is malformed,
        wherever it stands.
        """
        for text in ('{"from":"a","to":"a","message_id":"m","x":%s}', '{"x":%s}', "%s", "[%s]"):
            for decode in (decodeFromConnectionServer, decodeFromAppServer):
                self.assertNames(text % ("9" * 5000), None, None, decode=decode)

    def test_deepNesting(self) -> None:
        """
        What is nested more deeply than anybody can follow is malformed and
        has no names.
        """
        for value in ("[" * 500_000, '{"x":' * 500_000, "[" * 30_000 + "]" * 30_000):
            for member in ('"x":', '"data":', '"notification":{"sound":{"x":'):
                text = '{"from":"a","to":"a","message_id":"m",' + member + value + "}"
                for decode in (decodeFromConnectionServer, decodeFromAppServer):
                    error = self.malformed(text, decode)
                    self.assertEqual((error.message_id, error.from_), (None, None))

    def test_deepNestingReason(self) -> None:
        """
        The reason says that it is the nesting.
        """
        error = self.malformed('{"from":"a","message_id":"m","x":' + "[" * 500_000)
        self.assertEqual(error.reason, "Nested too deeply")

    def test_notUnicodeReason(self) -> None:
        """
        The reason says that it is the encoding.
        """
        self.assertEqual(self.malformed('{"from":"a","message_id":"\ud800"}').reason, "Not Unicode")

    def test_receipt(self) -> None:
        """
        A malformed receipt is named by its own id, not by the original's, so
        that it can be put aside and acknowledged.
        """
        self.assertNames(
            '{"message_type":"receipt","from":"gcm.googleapis.com","message_id":"dr2:m-1",'
            '"data":{"original_message_id":"m-1","message_id":"x","from":"y"}}',
            "dr2:m-1",
            "gcm.googleapis.com",
        )

    def test_innerNames(self) -> None:
        """
        Names inside the data, before or after the real ones, are not taken
        for them.
        """
        inner = '"data":{"message_id":"x","from":"y","k":1}'
        self.assertNames('{"message_id":"u-17","from":"tok-A",' + inner + "}", "u-17", "tok-A")
        self.assertNames("{" + inner + ',"message_id":"u-17","from":"tok-A"}', "u-17", "tok-A")
        self.assertNames("{" + inner + "}", None, None)

    def test_escapedNames(self) -> None:
        """
        A name is found though its key is spelled with escapes.
        """
        self.assertNames('{"\\u0066rom":"tok-A","message\\u005fid":"u-17","data":1}', "u-17", "tok-A")


class LengthTests(Decoding):
    """
    Texts longer than L{MAX_TEXT} are malformed.
    """

    def padded(self, head: str, length: int) -> str:
        """
        An object of this length with these members.
        """
        text = "{" + head + ',"x":"'
        return text + "x" * (length - len(text) - 2) + '"}'

    def test_longest(self) -> None:
        """
        A text of just that length is read.
        """
        self.assertEqual(
            decodeFromConnectionServer(self.padded('"from":"tok-A","message_id":"u-17"', MAX_TEXT)),
            UpstreamMessage(from_="tok-A", message_id="u-17"),
        )
        self.assertEqual(
            decodeFromAppServer(self.padded('"to":"tok-A","message_id":"m-1"', MAX_TEXT)),
            DownstreamMessage(to="tok-A", message_id="m-1"),
        )

    def test_longestIsNamed(self) -> None:
        """
        If it is malformed otherwise, it is named.
        """
        self.assertNames(
            self.padded('"from":"tok-A","message_id":"u-17","data":1', MAX_TEXT), "u-17", "tok-A"
        )

    def test_tooLong(self) -> None:
        """
        One character more is too long, whatever the type of the message, and
        nobody looks for names in it.
        """
        for head in (
            '"from":"tok-A","message_id":"u-17"',
            '"message_type":"ack","message_id":"m-1"',
            '"message_type":"control","control_type":"X"',
            '"message_type":"new"',
        ):
            text = self.padded(head, MAX_TEXT + 1)
            self.assertNames(text, None, None)
            self.assertEqual(self.malformed(text).reason, "Too long")

    def test_tooLongForConnectionServer(self) -> None:
        """
        That holds in the other direction, too.
        """
        for head in ('"to":"a","message_id":"m"', '"to":"a","message_id":"m","message_type":"ack"'):
            text = self.padded(head, MAX_TEXT + 1)
            self.assertNames(text, None, None, decode=decodeFromAppServer)
            self.assertEqual(self.malformed(text, decodeFromAppServer).reason, "Too long")

    def test_tooLongWithNumericTTL(self) -> None:
        """
        A C{time_to_live} of digits does not excuse from it.
        """
        text = self.padded('"to":"a","message_id":"m","time_to_live":"60"', MAX_TEXT + 1)
        self.assertNames(text, None, None, decode=decodeFromAppServer)

    def test_tooLongWithoutAnyEffort(self) -> None:
        """
        Padding with white space counts as well.
        """
        self.assertEqual(
            self.malformed('{"from":"tok-A","message_id":"u-17"}' + " " * MAX_TEXT).reason, "Too long"
        )


class TotalityTests(Decoding):
    """
    Whatever comes, the decoders return a message or raise
    L{MalformedPayload}, which gives nothing away.
    """

    def assertTotal(self, text: str) -> None:
        """
        Fail if one of the decoders does anything else.
        """
        for decode, union, sender in (
            (decodeFromConnectionServer, FromConnectionServer, "from"),
            (decodeFromAppServer, FromAppServer, "to"),
        ):
            try:
                message = decode(text)
            except MalformedPayload as error:
                self.assertSecretive(error)
                for key, name in (("message_id", error.message_id), (sender, error.from_)):
                    if name is not None:
                        # It must really be there, and fit to be answered to.
                        self.assertEqual(json.loads(text)[key], name)
                        self.assertTrue(name.encode())
            else:
                self.assertIsInstance(message, get_args(union))
                # It is what it says: fit to be sent, and read the same again.
                self.assertEqual(decode(encode(message).decode()), message)

    @given(st.text())
    @example("\ud800")
    @example("{" * 100)
    def test_anyText(self, text: str) -> None:
        """
        Any text at all.
        """
        self.assertTotal(text)

    @given(st.text(st.sampled_from('{}[]":,\\u0ack NaN1e-.tfmessage_id\ud800')))
    def test_scraps(self, text: str) -> None:
        """
        Any text made of what JSON and the protocol are made of.
        """
        self.assertTotal(text)

    @given(_json)
    def test_anyJSON(self, value: Any) -> None:
        """
        Any JSON at all.
        """
        self.assertTotal(json.dumps(value))

    @example('{"to":""}')
    @given(nearMessages)
    def test_nearMessages(self, text: str) -> None:
        """
        Objects with the protocol's keys, some of them twice, and anything for
        values.
        """
        self.assertTotal(text)

    @given(mutated(fromConnectionServer))
    def test_mutatedFromConnectionServer(self, text: str) -> None:
        """
        What was a good message of a connection server.
        """
        self.assertTotal(text)

    @given(mutated(fromAppServer))
    def test_mutatedFromAppServer(self, text: str) -> None:
        """
        What was a good message of an app server.
        """
        self.assertTotal(text)

    @given(st.lists(st.tuples(_keys, _values), min_size=1, max_size=4))
    def test_noAmbiguity(self, members: list[tuple[str, str]]) -> None:
        """
        Whatever is taken for a message has no object with a key twice.
        """
        text = _objectText([("from", '"a"'), ("to", '"a"'), ("message_id", '"m"'), *members])

        def unique(pairs: list[tuple[str, Any]]) -> None:
            self.assertEqual(len(dict(pairs)), len(pairs))

        for decode in (decodeFromConnectionServer, decodeFromAppServer):
            try:
                decode(text)
            except MalformedPayload:
                continue
            json.loads(text, object_pairs_hook=unique)


class SecrecyTests(Decoding):
    """
    No error says what was in the payload.
    """

    def test_values(self) -> None:
        """
        A secret value in any place and of any wrong kind is not told.
        """
        secret = json.dumps(SECRET)
        quoted = json.dumps(f"'{SECRET}\n' {SECRET} '")
        for value in (secret, quoted, f"[{secret}]", f"{{{secret}:{secret}}}", SECRET, secret + " x"):
            for key in (
                *("message_id", "message_type", "from", "to", "data", "time_to_live", "category", "priority"),
                *(
                    "dry_run",
                    "notification",
                    "success",
                    "error",
                    "control_type",
                    "failed_registration_ids",
                    "x",
                ),
            ):
                for kind in (
                    "",
                    '"message_type":"ack",',
                    '"message_type":"receipt",',
                    '"time_to_live":"60",',
                ):
                    text = "{" + kind + f'"{key}":{value},"{key}":{value}}}'
                    for decode in (decodeFromConnectionServer, decodeFromAppServer):
                        self.assertSecretive(self.malformed(text, decode))

    def test_priority(self) -> None:
        """
        Of a value that is none of a few, which the reader would quote, only
        the place is told.
        """
        for value in (SECRET, f"'{SECRET}'", f"{SECRET}\n{SECRET}", f"' - at `{SECRET}`"):
            for more in ({}, {"time_to_live": "60"}):
                text = json.dumps({"to": "tok-A", "message_id": "m-1", **more, "priority": value})
                error = self.malformed(text, decodeFromAppServer)
                self.assertSecretive(error)
        self.assertEqual(
            self.malformed('{"to":"a","priority":"x"}', decodeFromAppServer).reason,
            "Invalid enum value ... - at `$.priority`",
        )

    def test_place(self) -> None:
        """
        The reason names types and our own fields, which is what an operator
        needs.
        """
        self.assertEqual(
            self.malformed('{"from":"a","message_id":"m","data":{"k":1}}').reason,
            "Expected `str`, got `int` - at `$.data[...]`",
        )
        self.assertEqual(self.malformed('{"message_id":"m"}').reason, "Object missing required field `from`")


class UnknownFieldsTests(SynchronousTestCase):
    """
    L{unknownFields} says what the reader has passed over.
    """

    def test_names(self) -> None:
        """
        Every field that a downstream message has not, in the order they came,
        and none that it has.
        """
        text = json.dumps({"to": "tok-A", "message_type": "x", "data": {"bogus": "v"}, "timeToLive": 5})
        self.assertEqual(["message_type", "timeToLive"], unknownFields(text))
        known = {"to": "t", "condition": None, "message_id": "m", "time_to_live": 1, "notification": {}}
        decodeDownstream(json.dumps(known))
        self.assertEqual([], unknownFields(json.dumps(known)))
