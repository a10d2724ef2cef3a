"""
Conformance cases of the connection server: what it does with the messages that
app servers send, and how it closes connections.
"""

from __future__ import annotations

import json
from typing import Any

from fcmxmpp.messages import MAX_DOWNSTREAM_TTL
from fcmxmpp.server.service import ConnectionServer
from fcmxmpp.testing import SENDER_ID
from tests.conformance import RawClient, ServerCase, idsIn


CONTROL = (
    '<message><data:gcm xmlns:data="google:mobile:data">'
    '{"message_type":"control","control_type":"CONNECTION_DRAINING"}</data:gcm></message>'
)

#: What is wrong with a message, and the field that the description has to name.
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("to", {"to": 17}),
    ("to", {"to": ""}),
    ("to", {"to": "/topics/not a topic"}),
    ("condition", {"condition": "'a' in topics"}),
    ("condition", {"to": None, "condition": "'a' in topics &&"}),
    ("priority", {"priority": "urgent"}),
    ("content_available", {"content_available": "true"}),
    ("delay_while_idle", {"delay_while_idle": 1}),
    ("dry_run", {"dry_run": "yes"}),
    ("time_to_live", {"time_to_live": "abc"}),
    ("time_to_live", {"time_to_live": -1}),
    ("time_to_live", {"time_to_live": 1.5}),
    ("time_to_live", {"time_to_live": MAX_DOWNSTREAM_TTL + 1}),
    ("data", {"data": {"key": 17}}),
    ("data", {"data": ["key"]}),
    ("data", {"data": {"from": "me"}}),
    ("data", {"data": {"google.key": "v"}}),
    ("data", {"data": {"gcm_key": "v"}}),
    ("data", {"data": {"key": "x" * 4094}}),
    ("data", {"to": "/topics/news", "data": {"key": "x" * 2046}}),
    ("notification", {"notification": "hello"}),
    ("notification", {"notification": {"title": 17}}),
]


class DownstreamTests(ServerCase):
    """
    What app servers send.
    """

    def say(self, client: RawClient, message: dict[str, Any]) -> Any:
        """
        Send a message.

        @return: the answer.
        """
        fields = {"to": "tok-A", "message_id": "d-1", **message}
        said = client.say(json.dumps({k: v for k, v in fields.items() if v is not None}))
        start, _, rest = said.partition('<data:gcm xmlns:data="google:mobile:data">')
        self.assertEqual("<message>", start, said)
        return json.loads(rest.partition("</data:gcm>")[0])

    def test_S08_wrong(self) -> None:
        """
        A wrong type, a reserved key, a payload that is too large and a time to
        live out of its range are answered with the NACK INVALID_JSON, whose
        description names the field; the device gets nothing, and the stream
        stays.
        """
        client = self.loggedIn()
        for field, message in WRONG:
            answer = self.say(client, message)
            self.assertEqual(
                ("nack", "d-1", "INVALID_JSON"),
                (answer["message_type"], answer["message_id"], answer["error"]),
                message,
            )
            self.assertIn(field, answer["error_description"], message)
        self.assertEqual([], self.device.received)
        self.alive(client)

    def test_S08_limits(self) -> None:
        """
        What is just within the limits is accepted.
        """
        client = self.loggedIn()
        for message in (
            {"data": {"key": "x" * 4093}},
            {"to": "/topics/news", "data": {"key": "x" * 2045}},
            {"time_to_live": MAX_DOWNSTREAM_TTL},
            {"time_to_live": 0},
            {"time_to_live": "600"},
            {"to": None, "condition": "'a' in topics && ('b' in topics || 'c' in topics)"},
        ):
            self.assertEqual("ack", self.say(client, message)["message_type"], message)

    def test_S11_draining(self) -> None:
        """
        A connection is drained: the control message comes first; then what is
        sent is refused with CONNECTION_DRAINING, and nothing new is
        delivered; ACKs are still taken; at the end the stream is closed.
        """
        client = self.loggedIn()
        self.send("m-1", "m-2")
        self.assertEqual(["m-1", "m-2"], idsIn(client.take()))
        self.server.drain(10.0)
        self.assertEqual(CONTROL, client.take())
        answer = self.say(client, {})
        self.assertEqual(
            ("nack", "d-1", "CONNECTION_DRAINING", "tok-A"),
            (answer["message_type"], answer["message_id"], answer["error"], answer["from"]),
        )
        self.assertEqual([], self.device.received)
        self.send("m-3")
        self.assertEqual("", client.take())
        self.assertEqual("", client.ack("m-1"))
        self.assertEqual(["m-1"], self.device.delivered)
        self.clock.advance(9.9)
        self.alive(client)
        self.clock.advance(0.2)
        self.assertEqual("</stream:stream>", client.take())
        self.assertTrue(client.closing)
        self.lose(client)
        other = self.loggedIn("other")
        self.assertEqual(["m-2", "m-3"], idsIn(other.take()))
        self.assertEqual("", other.ack("m-2"))
        self.assertEqual("", other.ack("m-3"))
        self.assertEqual(["m-1", "m-2", "m-3"], self.device.delivered)

    def test_S11_others(self) -> None:
        """
        While one connection is drained, the sender's others get what is new.
        """
        first = self.loggedIn()
        second = self.loggedIn("second")
        self.server.drain(10.0, self.server.streams(SENDER_ID)[:1])
        self.assertEqual((CONTROL, ""), (first.take(), second.take()))
        self.send("m-1", "m-2")
        self.assertEqual(("", ["m-1", "m-2"]), (first.take(), idsIn(second.take())))
        self.assertEqual("ack", self.say(second, {})["message_type"])
        self.clock.advance(10)
        self.lose(first)
        self.alive(second)

    def test_S12_overrun(self) -> None:
        """
        A client that leaves more than 100 messages without an answer: a small
        overrun is tolerated, what is beyond gets SERVICE_UNAVAILABLE, and the
        stream is never closed for it.
        """
        client = self.loggedIn()
        self.server.script.delay(5.0)
        answers = [self.answers(client, f"d-{number}") for number in range(150)]
        self.assertEqual([[]] * 120, answers[:120])
        self.assertEqual([["SERVICE_UNAVAILABLE"]] * 30, answers[120:])
        self.clock.advance(5)
        said = client.take()
        self.assertEqual([f"d-{number}" for number in range(120)], idsIn(said))
        self.assertNotIn("nack", said)
        self.assertEqual([], self.answers(client, "d-200"))
        self.alive(client)

    def answers(self, client: RawClient, message_id: str) -> list[str]:
        """
        Send a message.

        @return: the errors that it is answered with at once.
        """
        said = client.say(json.dumps({"to": "tok-A", "message_id": message_id}))
        return [part.partition('"')[0] for part in said.split('"error":"')[1:]]


class ServiceTests(ServerCase):
    """
    The same for whoever runs the connection server.
    """

    def test_S11_stopWhileDraining(self) -> None:
        """
        A connection server that stops while connections are being drained
        leaves nothing behind.
        """
        self.assertIsInstance(self.server, ConnectionServer)
        client = self.loggedIn()
        self.server.drain(3600.0)
        self.assertEqual(CONTROL, client.take())
