"""
Tests for L{fcmxmpp.validation}.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import datetime, timezone
from decimal import Decimal
from enum import Enum
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.errors import NotSendable
from fcmxmpp.messages import (
    MAX_DATA_BYTES,
    MAX_DOWNSTREAM_TTL,
    MAX_ID_BYTES,
    MAX_TOPIC_DATA_BYTES,
    DownstreamMessage,
    Notification,
)
from fcmxmpp.payload import decodeFromAppServer, encode
from fcmxmpp.validation import checkSendable, isReserved


TOKEN = "fTu5Vd9qRk2:APA91bE-x_y" + "z" * 130
#: Text that no error may ever hold.
SECRET = "c0ffee-5ecret"
FLAGS = ("content_available", "mutable_content", "delay_while_idle", "delivery_receipt_requested", "dry_run")
#: The parts of a notification that may be any string, and only a string or,
#: of C{sound}, a dictionary.
STRINGS = [
    name for name in Notification.__struct_fields__ if name not in ("badge", "color") and "args" not in name
]


class Text(str):
    """
    A subclass, which the JSON encoder does not take.
    """

    __slots__ = ()


class Priority(str, Enum):
    """
    Another kind of subclass.
    """

    HIGH = "high"


def sendable(**fields: Any) -> DownstreamMessage:
    """
    A message to a device with these fields, whatever their types.
    """
    return DownstreamMessage(**{"to": TOKEN, "message_id": "m-1", **fields})


class RuleTests(SynchronousTestCase):
    """
    Each rule: what just passes, and what just does not.
    """

    def assertGood(self, message: DownstreamMessage) -> None:
        """
        The message passes, and reads the same at the other end.
        """
        checkSendable(message)
        self.assertEqual(message, decodeFromAppServer(encode(message).decode()))

    def assertBad(self, message: Any, field: str, reason: str) -> None:
        """
        The message is refused for this field and with this reason.
        """
        with self.assertRaises(NotSendable) as caught:
            checkSendable(message)
        self.assertEqual((caught.exception.field, caught.exception.reason), (field, reason), message)

    def assertField(self, name: str, good: list[Any], bad: list[Any], reason: str) -> None:
        """
        A field may have these values and may not have those.
        """
        for value in good:
            self.assertGood(sendable(**{name: value}))
        for value in bad:
            self.assertBad(sendable(**{name: value}), name, reason)

    def assertPart(self, name: str, good: list[Any], bad: list[Any], reason: str) -> None:
        """
        The same of a notification.
        """
        for value in good:
            self.assertGood(sendable(notification=Notification(**{name: value})))
        for value in bad:
            message = sendable(notification=Notification(**{name: value}))
            self.assertBad(message, f"notification.{name}", reason)

    def test_smallest(self) -> None:
        """
        A target and a C{message_id} are all that a message needs.
        """
        self.assertGood(sendable())
        self.assertGood(DownstreamMessage(condition="'a' in topics", message_id="m-1"))

    def test_message(self) -> None:
        """
        What is no message at all is refused as such.
        """
        for value in (None, {"to": TOKEN}, Notification(), DownstreamMessage):
            self.assertBad(value, "message", "must be a DownstreamMessage")

    def test_subclass(self) -> None:
        """
        An application may have a kind of message of its own.
        """

        class Reminder(DownstreamMessage, frozen=True, kw_only=True):
            """
            The application's.
            """

        checkSendable(Reminder(to=TOKEN, message_id="m-1"))

    def test_noTarget(self) -> None:
        """
        A message is for somebody.
        """
        self.assertBad(sendable(to=None), "to", "must be given, unless there is a condition")

    def test_twoTargets(self) -> None:
        """
        C{to} and C{condition} exclude each other, be the condition good or bad.
        """
        for condition in ("'a' in topics", "", 1):
            message = sendable(condition=condition)
            self.assertBad(message, "condition", "must not be given together with to")

    def test_toType(self) -> None:
        """
        C{to} is a string; several tokens cannot be given (there is no
        multicast over XMPP).
        """
        self.assertField("to", [], [b"tok", 1, True, [TOKEN], Text(TOKEN)], "must be a string")

    def test_toLength(self) -> None:
        """
        C{to} has a bound far beyond what tokens have.
        """
        self.assertField("to", ["t", "t" * 4096], ["", "t" * 4097], "must have 1 to 4096 characters")

    def test_toCharacters(self) -> None:
        """
        A token is opaque, but white space, control characters or half of a
        surrogate pair tell that it is broken.
        """
        self.assertField(
            "to",
            ["a:b-_.~%!'\"<&>", "t\xf6ken", "\U0001f600"],
            [
                " tok",
                "tok ",
                "to k",
                "tok\n",
                "tok\0",
                "tok\x7f",
                "tok\x85",
                "tok\xa0",
                "tok\u2028",
                "\ud800",
            ],
            "must have neither white space nor control characters",
        )

    def test_topic(self) -> None:
        """
        What begins with a slash is a topic, and its name is one that topics
        can have.
        """
        self.assertField(
            "to",
            ["/topics/a", "/topics/abcxyzABCXYZ0189-_.~%", "/topics/" + "a" * 900],
            [
                "/",
                "/topic/a",
                "/topics",
                "/topics/",
                "/Topics/a",
                "/topics/a/b",
                "/topics/a b",
                "/topics/\xe9",
                "/topics/a\n",
                "/topics/" + "a" * 901,
                "/topics/\ud800",
            ],
            "must be a token, or /topics/ and 1 to 900 of a-z A-Z 0-9 - _ . ~ %",
        )

    def test_condition(self) -> None:
        """
        A condition follows its grammar, of which L{fcmxmpp.condition} tells.
        """
        good = "'a' in topics && ('b' in topics || !('c' in topics))"
        self.assertGood(sendable(to=None, condition=good))
        for bad in (b"'a' in topics", Text(good), 1, False):
            self.assertBad(sendable(to=None, condition=bad), "condition", "must be a string")
        for bad in ("", "a", "\ud800"):
            reason = "must have 'NAME' in topics or an opening parenthesis at character 1"
            self.assertBad(sendable(to=None, condition=bad), "condition", reason)

    def test_messageID(self) -> None:
        """
        C{message_id} is there, has no more bytes than fit, and any characters.
        """
        self.assertBad(sendable(message_id=None), "message_id", "must be given")
        self.assertField(
            "message_id",
            ["m", "m" * MAX_ID_BYTES, "\xe9" * (MAX_ID_BYTES // 2), "m 1\n\0"],
            ["", "m" * (MAX_ID_BYTES + 1), "\xe9" * (MAX_ID_BYTES // 2) + "m"],
            "must have 1 to 1024 bytes",
        )
        self.assertField("message_id", [], [1, 1.0, b"m", True, Text("m")], "must be a string")

    def test_collapseKey(self) -> None:
        """
        C{collapse_key} is a string with a bound; an empty one is one.
        """
        self.assertField(
            "collapse_key",
            [None, "", "Updates Available", "k" * MAX_ID_BYTES],
            ["k" * (MAX_ID_BYTES + 1), "\xe9" * MAX_ID_BYTES],
            "must not have more than 1024 bytes",
        )
        self.assertField("collapse_key", [], [0, False, b"k", ["k"], Text("k")], "must be a string")

    def test_priority(self) -> None:
        """
        C{priority} is one of two, in lower case.
        """
        self.assertField(
            "priority",
            [None, "normal", "high"],
            ["", "HIGH", "low", 10, True, ["high"], b"high", Priority.HIGH],
            "must be normal or high",
        )

    def test_flags(self) -> None:
        """
        What is true or false is a boolean and nothing like one.
        """
        for name in FLAGS:
            self.assertField(name, [True, False], [0, 1, None, "true", "", 1.0, []], "must be a boolean")

    def test_timeToLive(self) -> None:
        """
        C{time_to_live} is an integer, 0 and four weeks included.
        """
        self.assertField(
            "time_to_live",
            [None, 0, 1, MAX_DOWNSTREAM_TTL],
            [
                -1,
                MAX_DOWNSTREAM_TTL + 1,
                10**30,
                600.0,
                float("nan"),
                "600",
                True,
                False,
                Decimal(600),
                [600],
            ],
            "must be an integer from 0 to 2419200",
        )

    def test_data(self) -> None:
        """
        Data are a dictionary of any kind; it may be empty, and so may a key.
        """
        self.assertField(
            "data",
            [{}, {"k": "v"}, {"": ""}, {"k": "\0\n\ufffe<&>\U0001f600"}, OrderedDict(k="v")],
            [None, [], [("k", "v")], "k", 1, {"k"}],
            "must be a dictionary of strings",
        )

    def test_dataTypes(self) -> None:
        """
        All keys and values are strings, the last of them, too.
        """
        self.assertField(
            "data",
            [],
            [
                {"a": "b", "k": value}
                for value in (1, 1.5, True, None, b"v", [], {"k": "v"}, Text("v"), Priority.HIGH)
            ]
            + [{"a": "b", key: "v"} for key in (1, None, b"k", ("k",), Text("k"))],
            "must have strings only, as keys and as values",
        )

    def test_reservedKeys(self) -> None:
        """
        Keys that mean something to FCM are refused by name; one that only
        begins or ends like them, or is written otherwise, is not.
        """
        good = ("from_", "From", "message_type", "message_id", "Google", "GCM", "a.gcm")
        bad = ("from", "google", "google.sent_time", "googleplex", "gcm", "gcm.n.e", "gcmx")
        self.assertField(
            "data",
            [{key: "v"} for key in good],
            [{"a": "b", key: "v"} for key in bad],
            "must not have the key from, nor one that begins with google or gcm",
        )
        self.assertEqual([], [key for key in good if isReserved(key)])
        self.assertEqual([], [key for key in bad if not isReserved(key)])

    def test_surrogates(self) -> None:
        """
        Half of a surrogate pair has no UTF-8 form, wherever it stands; two
        halves beside each other are no whole.
        """
        reason = "must not hold half of a surrogate pair"
        self.assertField("message_id", [], ["m\ud800"], reason)
        self.assertField("collapse_key", [], ["\udfff"], reason)
        self.assertField(
            "data",
            [],
            [{"k": "\ud800"}, {"\ud800": "v"}, {"\ud83d": "\ude00"}, {"k": "\ud83d\ude00"}],
            reason,
        )
        for name in Notification.__struct_fields__:
            self.assertPart(name, [], ["\udc00"], reason)

    def test_payload(self) -> None:
        """
        The payload of a message to a device has at most 4096 bytes, the keys
        of the data and all of the notification included, counted as UTF-8.
        """
        most = "v" * (MAX_DATA_BYTES - 1)
        twoBytes = "\xe9" * (MAX_DATA_BYTES // 2)
        sound = {"name": "x"}
        self.assertField(
            "data",
            [{"k": most}, {most: "k"}, {"": twoBytes}, {"a": "b" * 2047, "c": "d" * 2047}],
            [{"k": most + "v"}, {"k": twoBytes}, {twoBytes: "v"}, {"a": "b" * 2047, "c": "d" * 2048}],
            "must not make the payload larger than 4096 bytes",
        )
        both = {"body": "b" * 1000, "sound": sound}
        room = MAX_DATA_BYTES - len("body") - 1000 - len("sound") - len('{"name":"x"}') - len("k")
        self.assertGood(sendable(data={"k": "v" * room}, notification=Notification(**both)))
        self.assertBad(
            sendable(data={"k": "v" * (room + 1)}, notification=Notification(**both)),
            "data",
            "must not make the payload larger than 4096 bytes",
        )

    def test_payloadOfNotification(self) -> None:
        """
        If the notification takes the greater part, it is named.
        """
        room = MAX_DATA_BYTES - len("body") - 2
        self.assertGood(sendable(data={"k": "v"}, notification=Notification(body="b" * room)))
        self.assertBad(
            sendable(data={"k": "v"}, notification=Notification(body="b" * (room + 1))),
            "notification",
            "must not make the payload larger than 4096 bytes",
        )

    def test_payloadToTopics(self) -> None:
        """
        To a topic, or by a condition, it is half of that.
        """
        for target in ({"to": "/topics/a"}, {"to": None, "condition": "'a' in topics"}):
            room = MAX_TOPIC_DATA_BYTES - 1
            self.assertGood(sendable(**target, data={"k": "v" * room}))
            self.assertBad(
                sendable(**target, data={"k": "v" * (room + 1)}),
                "data",
                "must not make the payload larger than 2048 bytes",
            )

    def test_notification(self) -> None:
        """
        A notification is a L{Notification}, which may be empty.
        """
        self.assertField(
            "notification",
            [None, Notification()],
            [{}, {"title": "t"}, "t", [], True, sendable()],
            "must be a Notification",
        )

    def test_notificationStrings(self) -> None:
        """
        Its parts are strings.
        """
        for name in STRINGS:
            self.assertPart(name, ["", "x", "\xe9"], [1, True, b"x", ["x"], Text("x")], "must be a string")
        for name in ("badge", "color", "body_loc_args", "title_loc_args"):
            self.assertPart(name, [], [1, True, b"x", ["x"], Text("x")], "must be a string")

    def test_badge(self) -> None:
        """
        C{badge} is a number, as a string.
        """
        self.assertPart(
            "badge",
            ["0", "7", "100"],
            ["", "-1", "+1", "1.5", "x", " 1", "1\n", "\u0663"],
            "must be a string of digits",
        )

    def test_color(self) -> None:
        """
        C{color} is six hexadecimal digits.
        """
        self.assertPart(
            "color",
            ["#000000", "#ffAA09"],
            ["", "red", "#fff", "ff0000", "#ff00000", "#gg0000", "#ff0000\n", "#ff0000\xe9"],
            "must have the form #rrggbb",
        )

    def test_locArgs(self) -> None:
        """
        The arguments of a localised text are a JSON array, encoded as a
        string, and nothing is nested in it.
        """
        for name in ("body_loc_args", "title_loc_args"):
            self.assertPart(
                name,
                ["[]", '["a", "\xe9"]', ' [1, 2.5, true, "x"] '],
                ["", "a", "{}", '"a"', "['a']", "[NaN]", "[null]", '[["a"]]', "[" * 2000, '["\\ud800"]'],
                "must be a JSON array of strings and numbers, encoded as a string",
            )

    def test_sound(self) -> None:
        """
        C{sound} is a string, or a dictionary of what reads the same when it
        has been JSON.
        """
        knot: dict[str, Any] = {}
        knot["knot"] = knot
        self.assertPart(
            "sound",
            [
                "default",
                {},
                {"critical": 1, "name": "x.caf", "volume": 0.5},
                {"k": True},
                OrderedDict(k=1e300),
            ],
            [
                knot,
                *(
                    {"k": value}
                    for value in (
                        None,
                        float("nan"),
                        float("inf"),
                        float("-inf"),
                        [],
                        {},
                        b"x",
                        (1,),
                        object(),
                        Decimal(1),
                        datetime(2020, 1, 1, tzinfo=timezone.utc),
                        "\ud800",
                        Text("x"),
                        10**5000,
                    )
                ),
                {1: "x"},
                {None: "x"},
                {"\ud800": "x"},
            ],
            "must be a string, or a dictionary of strings and numbers",
        )


def ofBytes(most: int) -> st.SearchStrategy[str]:
    """
    Texts that have no more than so many bytes.
    """
    return st.text(st.characters(exclude_categories=["Cs"]), max_size=most // 4)


topicNames = st.text("abcxyzABCXYZ0189-_.~%", min_size=1, max_size=20)
targets: st.SearchStrategy[dict[str, str]] = st.one_of(
    st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="/"), min_size=1).map(
        lambda text: {"to": text}
    ),
    topicNames.map(lambda name: {"to": f"/topics/{name}"}),
    st.lists(topicNames, min_size=1, max_size=5).map(
        lambda names: {"condition": " || ".join(f"'{name}' in topics" for name in names)}
    ),
)
plain = st.one_of(
    ofBytes(40), st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False, allow_infinity=False)
)
_parts: dict[str, st.SearchStrategy[Any]] = {
    **{name: ofBytes(40) for name in STRINGS},
    "sound": ofBytes(40) | st.dictionaries(ofBytes(40), plain, max_size=3),
    "badge": st.integers(0, 10**6).map(str),
    "color": st.from_regex("#[0-9a-fA-F]{6}", fullmatch=True),
    "body_loc_args": st.sampled_from(["[]", '["a"]', '[1, "\\u00e9"]']),
    "title_loc_args": st.sampled_from(["[]", '["b", true]']),
}
notifications = st.fixed_dictionaries({}, optional=_parts).map(lambda parts: Notification(**parts))
_fields: dict[str, st.SearchStrategy[Any]] = {
    "collapse_key": ofBytes(MAX_ID_BYTES),
    "priority": st.sampled_from([None, "normal", "high"]),
    **{name: st.booleans() for name in FLAGS},
    "time_to_live": st.integers(0, MAX_DOWNSTREAM_TTL),
    "data": st.dictionaries(
        ofBytes(80).filter(lambda key: key != "from" and key[:1] != "g"),
        ofBytes(80),
        max_size=5,
    ),
    "notification": notifications,
}
#: Messages that are good by the way they are made.
messages = st.builds(
    lambda target, message_id, fields: DownstreamMessage(message_id=message_id, **target, **fields),
    targets,
    ofBytes(MAX_ID_BYTES).filter(bool),
    st.fixed_dictionaries({}, optional=_fields),
)

_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.decimals(),
    st.text(st.characters()),
    st.text(st.characters()).map(Text),
    st.binary(),
    st.datetimes(),
    st.uuids(),
    st.builds(object),
    st.sampled_from([Priority.HIGH, Priority, len, 2**64, "", "0", "#000000", "[]", "/topics/a"]),
)
garbage = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner),
        st.dictionaries(st.text() | st.none() | st.integers(), inner, max_size=3),
        st.dictionaries(st.text(), st.text(st.characters()), max_size=3),
        st.builds(lambda name, value: Notification(**{name: value}), st.sampled_from(sorted(_parts)), inner),
    ),
    max_leaves=5,
)
NAMES = {"message", *DownstreamMessage.__struct_fields__, *(f"notification.{name}" for name in _parts)}


class PropertyTests(SynchronousTestCase):
    """
    The same of whatever there is.
    """

    @given(messages)
    def test_good(self, message: DownstreamMessage) -> None:
        """
        Whatever keeps the rules passes, can be encoded, and reads the same
        at the other end.
        """
        checkSendable(message)
        self.assertEqual(message, decodeFromAppServer(encode(message).decode()))

    @given(
        messages, st.dictionaries(st.sampled_from(DownstreamMessage.__struct_fields__), garbage, max_size=2)
    )
    def test_total(self, message: DownstreamMessage, fields: dict[str, Any]) -> None:
        """
        Whatever stands in whichever fields, the message either passes and
        reads the same at the other end, or is refused for a field there is.
        """
        message = structs.replace(message, **fields)
        try:
            checkSendable(message)
        except NotSendable as error:
            self.assertIn(error.field, NAMES)
            self.assertTrue(error.reason.startswith("must "), error.reason)
        else:
            self.assertEqual(message, decodeFromAppServer(encode(message).decode()))

    @given(garbage)
    def test_anything(self, value: Any) -> None:
        """
        What is no message is refused, whatever it is.
        """
        self.assertRaises(NotSendable, checkSendable, value)

    def test_quotesNothing(self) -> None:
        """
        No error quotes what is in the message: it may be logged.
        """
        other = f"\n{SECRET}"
        wrong: list[Any] = [other, "/" + SECRET, SECRET.encode(), SECRET * 2000, [SECRET], "\ud800" + SECRET]
        refused = 0
        for message in (
            *(sendable(**{name: value}) for name in DownstreamMessage.__struct_fields__ for value in wrong),
            *(sendable(notification=Notification(**{name: value})) for name in _parts for value in wrong),
            *(sendable(to=None, condition=value) for value in wrong),
            *(sendable(data={key: SECRET}) for key in ("from", "google" + SECRET, 1)),
            *(sendable(data={SECRET: value}) for value in wrong),
            sendable(notification=Notification(sound={SECRET: [SECRET]})),
        ):
            try:
                checkSendable(message)
            except NotSendable as error:
                refused += 1
                self.assertNotIn("5ecret", str(error))
                self.assertIsNone(error.__cause__)
                self.assertTrue(error.__suppress_context__ or error.__context__ is None)
        self.assertGreater(refused, 100)
