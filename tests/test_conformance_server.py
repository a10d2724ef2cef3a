"""
Conformance cases of the connection server once an app server is logged in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from xml.sax.saxutils import escape

from fcmxmpp.messages import Ack, Control, Receipt, ReceiptData
from fcmxmpp.server.registry import Registry
from fcmxmpp.server.service import ConnectionServer
from fcmxmpp.server.simulated import SimulatedDevice
from fcmxmpp.stanza import serverStanza
from fcmxmpp.store.memory import MemoryStore
from fcmxmpp.testing import SENDER_ID, SERVER_KEY
from tests.conformance import (
    BARE_JID,
    GOOD_KEY,
    HEADER,
    HOUR,
    NS_STREAM_ERRORS,
    RawClient,
    ServerCase,
    auth,
    idsIn,
)


#: The samples of docs/protocol.md, sections 3.1, 4.2, 4.3, 5 and 6.
UPSTREAM = (
    '<message to="987654321098@gcm.googleapis.com" from="devices@gcm.googleapis.com" type="normal">'
    '<gcm xmlns="google:mobile:data">{"data":{"op":"ECHO"},"time_to_live":86400,"from":"tok-A",'
    '"message_id":"u-17","category":"org.example.app"}</gcm></message>'
)
ACK = (
    '<message><data:gcm xmlns:data="google:mobile:data">'
    '{"from":"tok-A","message_id":"m-1","message_type":"ack"}</data:gcm></message>'
)
NACK = (
    '<message><data:gcm xmlns:data="google:mobile:data">'
    # In the order that was seen live (docs/protocol.md 4.3), not the documentation's.
    '{"message_type":"nack","from":"tok-X","message_id":"m-1","error":"BAD_REGISTRATION",'
    '"error_description":"Invalid token on \'to\' field: tok-X"}</data:gcm></message>'
)
RECEIPT = (
    '<message to="987654321098@gcm.googleapis.com" from="devices@gcm.googleapis.com" type="normal">'
    '<gcm xmlns="google:mobile:data">{"category":"org.example.app","data":'
    '{"message_status":"MESSAGE_SENT_TO_DEVICE","original_message_id":"m-1",'
    '"device_registration_id":"tok-A","message_sent_timestamp":"1498801519251"},'
    '"message_id":"dr2:m-1","message_type":"receipt","time_to_live":0,"from":"gcm.googleapis.com"}</gcm></message>'
)
CONTROL = (
    '<message><data:gcm xmlns:data="google:mobile:data">'
    '{"message_type":"control","control_type":"CONNECTION_DRAINING"}</data:gcm></message>'
)


class ShapeTests(ServerCase):
    """
    What it says, to the byte: clients in the field read it by regular
    expression.
    """

    def test_S04_upstream(self) -> None:
        """
        A message of a device has the shape of the sample.
        """
        client = self.loggedIn()
        self.send("u-17")
        self.assertEqual(UPSTREAM, client.take())

    def test_S04_ack(self) -> None:
        """
        So has an ACK.
        """
        client = self.loggedIn()
        self.assertEqual(ACK, client.say('{"to":"tok-A","message_id":"m-1","data":{"k":"v"}}'))

    def test_S04_ackWithNewToken(self) -> None:
        """
        An ACK that tells a newer token has it at the end.
        """
        ack = Ack(from_="tok-A", message_id="m-1", registration_id="tok-A2")
        expected = ACK.replace('"ack"}', '"ack","registration_id":"tok-A2"}')
        self.assertEqual(expected, serverStanza(ack).decode())

    def test_S04_nack(self) -> None:
        """
        So has a NACK.
        """
        client = self.loggedIn()
        self.assertEqual(NACK, client.say('{"to":"tok-X","message_id":"m-1","data":{"k":"v"}}'))

    def test_S04_receipt(self) -> None:
        """
        So has a receipt.
        """
        data = ReceiptData(
            message_status="MESSAGE_SENT_TO_DEVICE",
            original_message_id="m-1",
            device_registration_id="tok-A",
            message_sent_timestamp="1498801519251",
        )
        receipt = Receipt(
            category="org.example.app",
            data=data,
            message_id="dr2:m-1",
            time_to_live=0,
            from_="gcm.googleapis.com",
        )
        self.assertEqual(RECEIPT, serverStanza(receipt, BARE_JID).decode())

    def test_S04_control(self) -> None:
        """
        So has the announcement that a stream will be closed.
        """
        self.assertEqual(CONTROL, serverStanza(Control(control_type="CONNECTION_DRAINING")).decode())

    def test_S04_keepAlive(self) -> None:
        """
        A keep-alive is one space, once a minute, and nothing else.
        """
        client = self.loggedIn()
        for _ in range(10):
            self.clock.advance(59.0)
            self.assertEqual("", client.take())
            self.clock.advance(1.0)
            self.assertEqual(" ", client.take())

    def test_S04_oneLine(self) -> None:
        """
        Whatever the data is, the JSON is on one line, with its quotes raw and
        nothing in it that XML would have escaped, so that those can read it
        who never unescape; and nothing follows the stanza.
        """
        client = self.loggedIn()
        data = {"k": '<a href="x">\n&amp;\t\'\r\u2028</a>'}
        self.device.send("u-1", data)
        said = client.take()
        text = re.fullmatch('<message [^>]*><gcm xmlns="google:mobile:data">(.*)</gcm></message>', said)
        assert text is not None, said
        self.assertEqual(data, json.loads(text[1])["data"])
        self.assertNotIn("&", text[1])


class AnswerTests(ServerCase):
    """
    What it makes of what app servers send.
    """

    def test_S05_ack(self) -> None:
        """
        C{message_type} C{"ack"} is an ACK, however it is spelled: the device
        is told, and nobody gets a message.
        """
        client = self.loggedIn()
        for number, text in enumerate(
            (
                '{"to":"tok-A","message_id":"u-0","message_type":"ack"}',
                '{"message_type":"ack","message_id":"u-1","to":"tok-A"}',
                '{"to":"tok-A","message_id":"u-2","message_type":"\\u0061ck","data":{"k":"v"}}',
                ' { "to" : "tok-A" ,\n"message_id" : "u-3", "message_type" : "ack", "x" : [ 1 ] } ',
                '{"to":"tok-A","message_id":"u-4","\\u006dessage_type":"ack"}',
            )
        ):
            self.send(f"u-{number}")
            client.take()
            self.assertEqual("", client.say(text), text)
            self.assertEqual(f"u-{number}", self.device.delivered[-1], text)
        self.assertEqual([], self.device.received)

    def test_S05_anythingElse(self) -> None:
        """
        Anything else is a message for a device, be it meant as an ACK: the
        device gets it, and the upstream message stays unacknowledged.
        """
        client = self.loggedIn()
        self.send("u-1")
        client.take()
        types = "ACK", "Ack", "ack ", " ack", "acknowledge", "nack", "receipt", "control", "", None
        for number, messageType in enumerate(types):
            text = json.dumps({"to": "tok-A", "message_id": "u-1", "message_type": messageType})
            said = client.say(text)
            self.assertIn('"from":"tok-A","message_id":"u-1","message_type":"ack"', said, text)
            self.assertEqual(number + 1, len(self.device.received), text)
        # Neither does it count where it is not the message's own.
        said = client.say('{"to":"tok-A","message_id":"u-1","data":{"message_type":"ack"}}')
        self.assertEqual(["u-1"], idsIn(said))
        self.assertEqual({"message_type": "ack"}, self.device.received[-1].data)
        self.assertEqual([], self.device.delivered)

    def test_S05_noString(self) -> None:
        """
        What is no string is not C{"ack"} either.
        """
        client = self.loggedIn()
        self.send("u-1")
        client.take()
        for messageType in (1, True, ["ack"], {"ack": "ack"}):
            text = json.dumps({"to": "tok-A", "message_id": "u-1", "message_type": messageType})
            self.assertIn('"error":"INVALID_JSON"', client.say(text), text)
        self.assertEqual([], self.device.delivered)

    def notAcceptable(self, client: RawClient, text: str, what: str) -> None:
        """
        This ACK is answered with a stanza error 406.
        """
        self.assertEqual(
            f'<message id="" type="error" to="{client.stream.fullJID}">'
            f'<gcm xmlns="google:mobile:data">{text}</gcm>'
            '<error code="406" type="modify"><not-acceptable xmlns="urn:ietf:params:xml:ns:xmpp-stanzas"/>'
            '<text xmlns="urn:ietf:params:xml:ns:xmpp-stanzas">'
            "Received acks for messages not sent over this connection\n</text></error></message>",
            client.say(text),
            what,
        )
        self.alive(client, what)

    def test_S06_foreignAck(self) -> None:
        """
        An ACK for what was not delivered on this connection, or is not
        unacknowledged any more, is answered with a stanza error 406; the
        stream stays, and nothing is taken for acknowledged.
        """
        first = self.loggedIn("node1")
        self.send("u-1")
        first.take()
        second = self.loggedIn("node2")
        ack = '{"to":"tok-A","message_id":"%s","message_type":"ack"}'
        self.notAcceptable(second, ack % "u-1", "delivered on another connection")
        self.notAcceptable(second, ack % "never", "never sent")
        self.notAcceptable(first, ack % "u-2", "never sent")
        self.notAcceptable(first, ack.replace("tok-A", "tok-B") % "u-1", "of another device")
        self.notAcceptable(first, ack.replace("tok-A", "gcm.googleapis.com") % "dr2:u-1", "a receipt")
        self.assertEqual([], self.device.delivered)
        self.assertEqual("", first.ack("u-1"))
        self.assertEqual(["u-1"], self.device.delivered)
        self.notAcceptable(first, ack % "u-1", "acknowledged before")
        self.assertEqual(["u-1"], self.device.delivered)

    def test_S06_afterReconnect(self) -> None:
        """
        The ACK of a message that a lost connection brought is not accepted on
        the next before it has been delivered there, and is then.
        """
        first = self.loggedIn()
        self.send(*[f"u-{number}" for number in range(101)])
        self.lose(first)
        second = self.loggedIn()
        second.take()
        self.notAcceptable(second, '{"to":"tok-A","message_id":"u-100","message_type":"ack"}', "waits")
        self.assertEqual(["u-100"], idsIn(second.ack("u-0")))
        self.assertEqual("", second.ack("u-100"))
        self.assertEqual(["u-0", "u-100"], self.device.delivered)

    def test_S06_echo(self) -> None:
        """
        The stanza error has the C{id} that the ACK had, or none.
        """
        client = self.loggedIn()
        text = '{"to":"tok-A","message_id":"u-1","message_type":"ack"}'
        for stanzaID in ("", ' id="3"', ' id="&lt;&amp;&quot;"'):
            said = client.send(f'<message{stanzaID}><gcm xmlns="google:mobile:data">{text}</gcm></message>')
            self.assertTrue(said.startswith(f'<message{stanzaID} type="error" to="'), said)

    def test_S07_badRequest(self) -> None:
        """
        JSON that is broken, or without a C{message_id}, cannot be NACKed: it
        is answered with a stanza error 400 that echoes it, and the stream
        stays.
        """
        client = self.loggedIn()
        for text in (
            '{"to":"tok-A","data":{}}',
            '{"to":"tok-A","message_id":"","data":{}}',
            '{"to":"tok-A","message_id":null}',
            '{"to":"tok-A","message_id":7}',
            '{"to":"tok-A","message_type":"ack"}',
            '{"to":"tok-A","message_id":"d-1"',
            '{"to":"tok-A" "message_id":"d-1"}',
            "{'to':'tok-A','message_id':'d-1'}",
            '["d-1"]',
            "nothing",
            "",
            "<&>",
        ):
            said = client.send(
                f'<message id="3"><gcm xmlns="google:mobile:data">{escape(text)}</gcm></message>'
            )
            head = (
                f'<message id="3" type="error" to="{BARE_JID}/node7"><gcm xmlns="google:mobile:data">'
                f'{escape(text)}</gcm><error code="400" type="modify">'
                '<bad-request xmlns="urn:ietf:params:xml:ns:xmpp-stanzas"/>'
                '<text xmlns="urn:ietf:params:xml:ns:xmpp-stanzas">InvalidJson: JSON_PARSING_ERROR : '
            )
            self.assertTrue(said.startswith(head), f"{text!r}: {said}")
            self.assertTrue(said.endswith("\n</text></error></message>"), said)
            self.alive(client, text)
        self.assertEqual([], self.device.received)

    def test_S07_missingMessageID(self) -> None:
        """
        The error says what is missing, in the words of the sample.
        """
        client = self.loggedIn()
        said = client.say('{"to":"tok-A","data":{}}')
        self.assertIn(">InvalidJson: JSON_PARSING_ERROR : Missing Required Field: message_id\n</text>", said)

    def test_S07_brokenXML(self) -> None:
        """
        Broken XML is answered with the stream error C{invalid-xml}, and the
        connection closed: that one, and no other.  What it had not
        acknowledged goes out on another.
        """
        other = self.loggedIn("other")
        for number, broken in enumerate(
            (
                '<message><gcm xmlns="google:mobile:data">{"data":{"k":"a & b"}}</gcm></message>',
                '<message><gcm xmlns="google:mobile:data">{"to":"<tok>"}</gcm></message>',
                "<message></gcm>",
                "<message/<",
                "<message id=3/>",
                '<message a="1" a="2"/>',
                "<x:message/>",
                "</iq>",
                '<message><gcm xmlns="google:mobile:data">&nbsp;</gcm></message>',
                b"<message>\xff\xfe</message>",
                b"<message>\0</message>",
            )
        ):
            client = self.loggedIn("broken")
            self.send(f"u-{number}")
            delivered = client if client.transport.value() else other
            delivered.take()
            said = client.send(broken)
            self.assertEqual(
                f"<stream:error><invalid-xml xmlns='{NS_STREAM_ERRORS}'/></stream:error></stream:stream>",
                said,
                broken,
            )
            self.assertTrue(client.closing, broken)
            self.lose(client)
            if delivered is client:
                self.assertEqual([f"u-{number}"], idsIn(other.take()))
            self.assertEqual("", other.ack(f"u-{number}"))
            self.alive(other, str(broken))
        self.assertEqual(11, len(self.device.delivered))

    def test_S07_brokenLogin(self) -> None:
        """
        So is broken XML at the login, if it comes to a stream at all.
        """
        for steps in ([""], [HEADER], [HEADER, auth(GOOD_KEY)], [HEADER, auth(GOOD_KEY), HEADER]):
            client = self.client()
            for step in steps:
                client.send(step)
            said = client.send("<<")
            self.assertTrue(
                said.endswith(
                    f"<stream:error><invalid-xml xmlns='{NS_STREAM_ERRORS}'/></stream:error></stream:stream>"
                ),
                said,
            )
            self.assertTrue(client.closing)

    def test_S07_deafAfterwards(self) -> None:
        """
        What the client says after that is not heard, and a client that does
        not close its end is cut off.
        """
        client = self.loggedIn()
        client.send("<a></b>")
        client.send(
            '</a><message><gcm xmlns="google:mobile:data">{"to":"tok-A","message_id":"d-1"}</gcm></message>'
        )
        self.assertEqual([], self.device.received)
        self.assertFalse(client.transport.disconnected)
        self.clock.advance(10)
        self.assertTrue(client.transport.disconnected)


class FlowTests(ServerCase):
    """
    What is delivered when, and where.
    """

    def test_S09_windowOfOneHundred(self) -> None:
        """
        A connection gets 100 messages, and each further one for an ACK.
        """
        client = self.loggedIn()
        ids = [f"u-{number}" for number in range(250)]
        self.send(*ids)
        self.assertEqual(ids[:100], idsIn(client.take()))
        self.clock.advance(30)
        self.assertEqual([], idsIn(client.take()))
        for number in range(150):
            self.assertEqual([ids[100 + number]], idsIn(client.ack(ids[number])))
        for number in range(150, 250):
            self.assertEqual("", client.ack(ids[number]))
        self.assertEqual(ids, self.device.delivered)

    def test_S09_eachConnection(self) -> None:
        """
        The window is each connection's own: a second one gets the next
        hundred, and an ACK on one frees no place on the other.
        """
        first, second = self.loggedIn("node1"), self.loggedIn("node2")
        ids = [f"u-{number}" for number in range(300)]
        self.send(*ids)
        atFirst, atSecond = idsIn(first.take()), idsIn(second.take())
        self.assertEqual((100, 100), (len(atFirst), len(atSecond)))
        self.assertEqual(ids[:200], sorted(atFirst + atSecond, key=ids.index))
        for message_id in atFirst:
            self.assertEqual(1, len(idsIn(first.ack(message_id))))
        self.assertEqual("", second.take())
        self.assertEqual(100, len(self.device.delivered))

    def test_S09_ackedInAnyOrder(self) -> None:
        """
        ACKs may come in any order; foreign ones and those of downstream
        messages free no place.
        """
        client = self.loggedIn()
        self.send(*[f"u-{number}" for number in range(110)])
        client.take()
        self.assertNotIn("u-100", client.ack("u-105"))
        self.assertNotIn("u-100", client.say('{"to":"tok-A","message_id":"d-1","data":{}}'))
        for number in range(10):
            self.assertEqual([f"u-{100 + number}"], idsIn(client.ack(f"u-{99 - number}")))

    def test_S10_onTheNext(self) -> None:
        """
        What a lost connection did not acknowledge is delivered on the next, in
        its order and before anything newer; what it did acknowledge is not.
        """
        for end in (lambda c: None, lambda c: c.send("</stream:stream>"), lambda c: c.send("<a></b>")):
            device = self.device = SimulatedDevice(self.server, SENDER_ID, "tok-A")
            first = self.loggedIn()
            self.send("u-1", "u-2", "u-3", "u-4")
            first.take()
            first.ack("u-2")
            end(first)
            self.lose(first)
            self.send("u-5")
            self.clock.advance(600)
            second = self.loggedIn()
            self.assertEqual(["u-1", "u-3", "u-4", "u-5"], idsIn(second.take()))
            for message_id in ("u-4", "u-3", "u-1", "u-5"):
                self.assertEqual("", second.ack(message_id))
            self.assertEqual(["u-2", "u-4", "u-3", "u-1", "u-5"], device.delivered)
            self.lose(second)

    def test_S10_onAnother(self) -> None:
        """
        If there is another connection already, it is delivered there at once,
        as far as there is room.
        """
        first = self.loggedIn("node1")
        ids = [f"u-{number}" for number in range(60)]
        self.send(*ids)
        first.take()
        second = self.loggedIn("node2")
        for number in range(60, 120):
            self.send(f"u-{number}")
        busy = idsIn(second.take())
        atFirst = [*ids, *idsIn(first.take())]
        self.assertEqual(120, len(set(busy) | set(atFirst)))
        self.lose(first)
        again = idsIn(second.take())
        self.assertEqual(atFirst[: 100 - len(busy)], again)
        for message_id in busy:
            again += idsIn(second.ack(message_id))
        self.assertEqual(atFirst, again)

    def test_S10_again(self) -> None:
        """
        It is delivered as often as that takes.
        """
        self.send("u-1", "u-2")
        for _ in range(20):
            client = self.loggedIn()
            self.assertEqual(["u-1", "u-2"], idsIn(client.take()))
            self.lose(client)
        client = self.loggedIn()
        client.ack("u-1")
        client.ack("u-2")
        self.assertEqual((["u-1", "u-2"], []), (self.device.delivered, self.device.failed))

    def test_S10_expired(self) -> None:
        """
        What has outlived its time to live is not delivered again, and its
        device is told so.
        """
        first = self.loggedIn()
        self.send("u-1", time_to_live=60)
        self.send("u-2", time_to_live=3600)
        self.send("u-3", time_to_live=60)
        first.take()
        first.ack("u-3")
        self.lose(first)
        self.clock.advance(61)
        second = self.loggedIn()
        self.assertEqual(["u-2"], idsIn(second.take()))
        self.assertEqual([("u-1", "TTL_EXCEEDED")], self.device.failed)
        self.assertEqual(["u-3"], self.device.delivered)

    def test_S10_toldWhileWaiting(self) -> None:
        """
        The device is told soon, not only when a connection comes.
        """
        first = self.loggedIn()
        self.send("u-1", time_to_live=60)
        self.lose(first)
        self.clock.pump([30] * 5)
        self.assertEqual([("u-1", "TTL_EXCEEDED")], self.device.failed)
        self.assertEqual("", self.loggedIn().take())

    def test_S10_24hours(self) -> None:
        """
        No message lives for longer than 24 hours, whatever the device asked
        for; each lives that long, if the device did not ask for less.
        """
        for time_to_live in (None, 86_400, 86_401, 2_419_200, -1):
            device = self.device = SimulatedDevice(self.server, SENDER_ID, "tok-A")
            first = self.loggedIn()
            self.send("u-1", "u-2", time_to_live=time_to_live)
            self.assertEqual(
                [86_400] * 2, [int(n) for n in re.findall('"time_to_live":([0-9]+)', first.take())]
            )
            self.lose(first)
            self.clock.advance(24 * HOUR - 1)
            second = self.loggedIn()
            self.assertEqual(["u-1", "u-2"], idsIn(second.take()), time_to_live)
            second.ack("u-1")
            self.lose(second)
            self.clock.advance(2)
            third = self.loggedIn()
            self.assertEqual("", third.take(), time_to_live)
            self.assertEqual((["u-1"], [("u-2", "TTL_EXCEEDED")]), (device.delivered, device.failed))
            self.lose(third)

    def test_S10_hungClient(self) -> None:
        """
        A message on a connection that is still there is on no other: without
        a loss nothing is delivered twice.
        """
        self.loggedIn("node1")
        self.send("u-1")
        self.clock.pump([60] * 100)
        second = self.loggedIn("node2")
        self.clock.pump([60] * 100)
        self.assertEqual([], idsIn(second.take()))


class DeathTests(ServerCase):
    """
    What outlasts the death of the process.  With a file, real processes and
    real deaths: C{tests/test_crash.py}.
    """

    def setUp(self) -> None:
        """
        Put a store beneath the connection server.
        """
        self.store = MemoryStore(lambda: self.clock.seconds())
        super().setUp()

    def start(self, senders: dict[str, str]) -> ConnectionServer:
        """
        Start a connection server on the store.
        """
        server = ConnectionServer(
            Registry(senders), self.clock, self.randomBytes, entrusted=self.store.entrusted
        )
        server.startService()
        self.clients = []
        self.addCleanup(lambda: self.finish(self.server, self.clients))
        return server

    def die(self) -> SimulatedDevice:
        """
        The process dies, and another one is started on the same store; nothing
        is left of the first but that.

        @return: the device as it was.
        """
        for call in list(self.clock.getDelayedCalls()):
            call.cancel()
        died = self.device
        self.server = ConnectionServer(
            Registry({SENDER_ID: SERVER_KEY}),
            self.clock,
            self.randomBytes,
            entrusted=self.store.entrusted,
        )
        self.server.startService()
        self.clients = []
        self.device = SimulatedDevice(self.server, SENDER_ID, "tok-A")
        return died

    def test_S14_killedAtAnyMoment(self) -> None:
        """
        Killed after any step, the server loses nothing that a device was told
        is stored: all of it that was not acknowledged is delivered by the
        next, in its order; what was acknowledged is not.
        """
        steps: list[Callable[[], object]] = [
            lambda: self.send("u-1"),
            lambda: self.send("u-2"),
            self.loggedIn,
            lambda: self.clients[0].ack("u-2"),
            lambda: self.send("u-3"),
            lambda: self.lose(self.clients[0]),
            lambda: self.send("u-4"),
            self.loggedIn,
            lambda: self.clients[1].ack("u-4"),
            lambda: self.clients[1].ack("u-1"),
            lambda: self.clients[1].ack("u-3"),
        ]
        for number in range(len(steps) + 1):
            for step in steps[:number]:
                step()
            died = self.die()
            left = [message_id for message_id in died.stored if message_id not in died.delivered]
            client = self.loggedIn()
            self.assertEqual(left, idsIn(client.take()), f"killed after {number} steps")
            for message_id in left:
                self.assertEqual("", client.ack(message_id))
            self.assertEqual(left, self.device.delivered)
            self.die()
            client = self.loggedIn()
            self.assertEqual("", client.take(), f"killed after {number} steps")
            self.die()
        self.assertEqual((4, 4), (len(died.stored), len(died.delivered)))

    def test_S14_killedAgainAndAgain(self) -> None:
        """
        What no app server acknowledges outlasts any number of deaths, and not
        its time to live.
        """
        self.send("u-1", "u-2")
        self.send("u-3", time_to_live=60)
        for _ in range(10):
            self.die()
            self.assertEqual(["u-1", "u-2", "u-3"], idsIn(self.loggedIn().take()))
            self.clock.advance(6)
        self.clock.advance(1)
        self.die()
        self.assertEqual(["u-1", "u-2"], idsIn(self.loggedIn().take()))
