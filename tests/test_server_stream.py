"""
Tests for L{fcmxmpp.server.stream}.
"""

from __future__ import annotations

from base64 import b64encode
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, eventAsJSON, eventAsText, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.messages import WINDOW, Ack, DownstreamMessage, Nack, Receipt, ReceiptData, UpstreamMessage
from fcmxmpp.server.registry import LoginGuard, Registry
from fcmxmpp.server.stream import ServerStream


SENDER = "987654321098"
KEY = "EXAMPLE-SERVER-KEY"
OPEN = (
    b'<stream:stream to="gcm.googleapis.com" version="1.0" xmlns="jabber:client" '
    b'xmlns:stream="http://etherx.jabber.org/streams">'
)
NS_SASL = b"urn:ietf:params:xml:ns:xmpp-sasl"
SUCCESS = b'<success xmlns="urn:ietf:params:xml:ns:xmpp-sasl"/>'
NOT_AUTHORIZED = (
    b'<failure xmlns="urn:ietf:params:xml:ns:xmpp-sasl"><not-authorized/></failure></stream:stream>'
)
BIND = b'<bind xmlns="urn:ietf:params:xml:ns:xmpp-bind"/>'


def plain(authcid: str = SENDER, key: str = KEY, authzid: str = "") -> bytes:
    """
    What SASL PLAIN sends.
    """
    return b64encode(f"{authzid}\0{authcid}\0{key}".encode())


def auth(encoded: bytes, mechanism: bytes = b"PLAIN") -> bytes:
    """
    A client's C{<auth>}.
    """
    return b'<auth xmlns="%b" mechanism="%b">%b</auth>' % (NS_SASL, mechanism, encoded)


def header(streamID: int, from_: bytes = b"gcm.googleapis.com") -> bytes:
    """
    The header that the server answers with.
    """
    return (
        b'<stream:stream from="%b" id="%016X" version="1.0" '
        b'xmlns:stream="http://etherx.jabber.org/streams" xmlns="jabber:client">' % (from_, streamID)
    )


MECHANISMS = (
    b'<stream:features><mechanisms xmlns="urn:ietf:params:xml:ns:xmpp-sasl">'
    b"<mechanism>PLAIN</mechanism></mechanisms></stream:features>"
)
FEATURES = (
    b'<stream:features><bind xmlns="urn:ietf:params:xml:ns:xmpp-bind"/>'
    b'<session xmlns="urn:ietf:params:xml:ns:xmpp-session"/></stream:features>'
)


def streamError(condition: bytes) -> bytes:
    """
    A stream error, and the end of the stream.
    """
    return (
        b"<stream:error><%b xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error></stream:stream>"
        % condition
    )


def gcm(text: bytes, attributes: bytes = b"") -> bytes:
    """
    A message of an app server.
    """
    return b'<message%b><gcm xmlns="google:mobile:data">%b</gcm></message>' % (attributes, text)


def upstream(message_id: str) -> UpstreamMessage:
    """
    A message of a device.
    """
    return UpstreamMessage(from_="tok-A", message_id=message_id)


class Service:
    """
    A service that notes what its streams tell it.

    @ivar told: what that was.
    @ivar answer: to every message of an app server.
    """

    def __init__(self) -> None:
        self.registry = Registry({SENDER: KEY, "111": "other"})
        self.guard = LoginGuard()
        self.told: list[Any] = []
        self.answer: Ack | Nack = Ack(from_="tok-A", message_id="m-1")
        self._streams = 0

    def newStreamID(self) -> str:
        """
        See L{IRoutes.newStreamID<fcmxmpp.server.stream.IRoutes.newStreamID>}.
        """
        self._streams += 1
        return f"{self._streams:016X}"

    def bound(self, stream: ServerStream, resource: str | None) -> str:
        """
        See L{IRoutes.bound<fcmxmpp.server.stream.IRoutes.bound>}.
        """
        self.told.append(("bound", resource))
        return "given & taken" if resource is None else resource

    def ready(self, stream: ServerStream) -> None:
        """
        See L{IRoutes.ready<fcmxmpp.server.stream.IRoutes.ready>}.
        """
        self.told.append("ready")

    def acknowledged(self, stream: ServerStream, message: UpstreamMessage | Receipt) -> None:
        """
        See L{IRoutes.acknowledged<fcmxmpp.server.stream.IRoutes.acknowledged>}.
        """
        self.told.append(("acknowledged", message))

    def hasRoom(self, stream: ServerStream) -> None:
        """
        See L{IRoutes.hasRoom<fcmxmpp.server.stream.IRoutes.hasRoom>}.
        """
        self.told.append("room")

    def accept(self, stream: ServerStream, message: DownstreamMessage) -> None:
        """
        See L{IRoutes.accept<fcmxmpp.server.stream.IRoutes.accept>}.
        """
        self.told.append(("accept", message))
        stream.answer(self.answer)

    def lost(self, stream: ServerStream, unanswered: list[UpstreamMessage | Receipt]) -> None:
        """
        See L{IRoutes.lost<fcmxmpp.server.stream.IRoutes.lost>}.
        """
        self.told.append(("lost", unanswered))


class Harness:
    """
    A stream and everything around it.

    @ivar clock: its time.
    @ivar service: what it belongs to.
    @ivar stream: the stream.
    @ivar transport: what it writes to.
    """

    def __init__(self, service: Service, address: IAddress) -> None:
        self.clock = Clock()
        self.service = service
        self.stream = ServerStream(service, self.clock)
        self.transport = StringTransport(peerAddress=address)
        self.stream.makeConnection(self.transport)

    def send(self, data: bytes) -> bytes:
        """
        Have the client send something.

        @return: the answer.
        """
        self.stream.dataReceived(data)
        return self.said()

    def said(self) -> bytes:
        """
        What the server has said since the last look.
        """
        value: bytes = self.transport.value()
        self.transport.clear()
        return value

    @property
    def closing(self) -> bool:
        """
        Whether the server is closing the connection.
        """
        closing: bool = self.transport.disconnecting
        return closing

    def lose(self) -> None:
        """
        Have the connection end.
        """
        self.stream.connectionLost(Failure(ConnectionDone()))


class StreamCase(SynchronousTestCase):
    """
    What the test cases of this module share.
    """

    def makeStream(
        self,
        service: Service | None = None,
        address: IAddress = IPv4Address("TCP", "192.0.2.1", 1),  # noqa: B008
    ) -> Harness:
        """
        Connect a client; when the test is over the connection ends, and then
        no timer is left.
        """
        harness = Harness(service or Service(), address)
        self.addCleanup(self.assertEnds, harness)
        return harness

    def assertEnds(self, harness: Harness) -> None:
        """
        Assert that the end of the connection leaves nothing behind.
        """
        harness.lose()
        self.assertEqual([], harness.clock.getDelayedCalls())

    def authenticated(self) -> Harness:
        """
        Connect a client that is logged in but not bound.
        """
        harness = self.makeStream()
        harness.send(OPEN)
        self.assertEqual(SUCCESS, harness.send(auth(plain())))
        harness.send(OPEN)
        return harness

    def ready(self) -> Harness:
        """
        Connect a client that is ready for the conversation.
        """
        harness = self.authenticated()
        self.assertIn(b'type="result"', harness.send(b'<iq type="set" id="b1">%b</iq>' % BIND))
        del harness.service.told[:]
        return harness


class HeaderTests(StreamCase):
    """
    The server answers a client's header with its own and with what it offers.
    """

    def test_first(self) -> None:
        """
        To the byte as clients in the field need it: PLAIN is offered, without
        white space between elements.
        """
        harness = self.makeStream()
        self.assertEqual(b"", harness.said())
        self.assertEqual(header(1) + MECHANISMS, harness.send(OPEN))

    def test_second(self) -> None:
        """
        After the login there is a new stream identifier, and bind comes first
        of what is offered.
        """
        harness = self.makeStream()
        harness.send(OPEN)
        harness.send(auth(plain()))
        self.assertEqual(header(2) + FEATURES, harness.send(OPEN))

    def test_declaration(self) -> None:
        """
        An XML declaration and white space before the header are welcome.
        """
        harness = self.makeStream()
        self.assertEqual(header(1) + MECHANISMS, harness.send(b"<?xml version='1.0'?>\n" + OPEN + b"\n"))

    def test_anyTo(self) -> None:
        """
        The C{to} is echoed, whatever it is, and cannot be used to write
        anything else into our header.
        """
        for to, echo in (
            (b"fcm-xmpp.googleapis.com", b"fcm-xmpp.googleapis.com"),
            (b"FCM XMPP Client Connection Server", b"FCM XMPP Client Connection Server"),
            (b"a&quot;b&lt;c&amp;d", b"a&quot;b&lt;c&amp;d"),
            (b"a&#10;b", b"a&#10;b"),
            (b"", b""),
        ):
            harness = self.makeStream()
            answer = harness.send(OPEN.replace(b"gcm.googleapis.com", to))
            self.assertEqual(header(1, echo) + MECHANISMS, answer)

    def test_noTo(self) -> None:
        """
        Without a C{to} we are who we are.
        """
        harness = self.makeStream()
        answer = harness.send(OPEN.replace(b' to="gcm.googleapis.com"', b""))
        self.assertEqual(header(1) + MECHANISMS, answer)

    def test_noStream(self) -> None:
        """
        What is no stream of XMPP is told so and closed.
        """
        for other in (b"<html>", b'<stream:stream xmlns:stream="urn:other">', b"<stream>"):
            harness = self.makeStream()
            self.assertEqual(header(1) + streamError(b"invalid-namespace"), harness.send(other))
            self.assertTrue(harness.closing)

    def test_noXML(self) -> None:
        """
        So is what is no XML.
        """
        harness = self.makeStream()
        self.assertEqual(header(1) + streamError(b"invalid-xml"), harness.send(b"GET / HTTP/1.1\r\n\r\n"))
        self.assertTrue(harness.closing)

    def test_clientCloses(self) -> None:
        """
        A client that ends the stream before the login is answered in kind.
        """
        harness = self.makeStream()
        harness.send(OPEN)
        self.assertEqual(b"</stream:stream>", harness.send(b"</stream:stream>"))
        self.assertTrue(harness.closing)


class SASLTests(StreamCase):
    """
    The login is SASL PLAIN with the sender ID and the server key.
    """

    def attempt(self, data: bytes) -> tuple[Harness, bytes]:
        """
        Send something in place of the login.
        """
        harness = self.makeStream()
        harness.send(OPEN)
        return harness, harness.send(data)

    def test_identities(self) -> None:
        """
        Every way in which clients in the field name themselves is accepted.
        """
        for authcid, authzid in (
            (f"{SENDER}@gcm.googleapis.com", ""),
            (f"{SENDER}@fcm.googleapis.com", ""),
            (SENDER, ""),
            (f"{SENDER}@projects.gcm.android.com", f"{SENDER}@projects.gcm.android.com"),
            (SENDER, f"{SENDER}@gcm.googleapis.com"),
            (SENDER, SENDER),
        ):
            harness, answer = self.attempt(auth(plain(authcid, KEY, authzid)))
            self.assertEqual(SUCCESS, answer, (authcid, authzid))
            self.assertEqual(SENDER, harness.stream.senderID)

    def test_whiteSpace(self) -> None:
        """
        Line breaks and blanks in the base64 are in Google's own sample.
        """
        encoded = plain()
        broken = b"\n " + encoded[:20] + b"\r\n\t" + encoded[20:] + b" \n"
        self.assertEqual(SUCCESS, self.attempt(auth(broken))[1])

    def test_pieces(self) -> None:
        """
        A login may come in pieces, and with everything that follows it in one.
        """
        harness = self.makeStream()
        answers = [harness.send(bytes([byte])) for byte in OPEN + auth(plain())]
        self.assertEqual(header(1) + MECHANISMS + SUCCESS, b"".join(answers))
        harness = self.makeStream()
        answer = harness.send(OPEN + auth(plain()))
        self.assertEqual(header(1) + MECHANISMS + SUCCESS, answer)

    def test_challenge(self) -> None:
        """
        A client may send its response only when it is asked for it.
        """
        harness, answer = self.attempt(auth(b""))
        self.assertEqual(b'<challenge xmlns="urn:ietf:params:xml:ns:xmpp-sasl"/>', answer)
        self.assertEqual(SUCCESS, harness.send(b'<response xmlns="%b">%b</response>' % (NS_SASL, plain())))
        self.assertEqual(header(2) + FEATURES, harness.send(OPEN))

    def test_challengedOnce(self) -> None:
        """
        It is asked once, so that a client that never reads cannot have answers
        pile up before it has logged in.
        """
        harness, _ = self.attempt(auth(b""))
        answer = harness.send(auth(b""))
        self.assertIn(b"<malformed-request/>", answer)
        self.assertTrue(harness.closing)

    def test_badResponse(self) -> None:
        """
        Asked for or not, what is no login is refused as such.
        """
        harness, _ = self.attempt(auth(b""))
        answer = harness.send(b'<response xmlns="%b"/>' % NS_SASL)
        self.assertIn(b"<malformed-request/>", answer)
        self.assertTrue(harness.closing)

    def test_mechanisms(self) -> None:
        """
        Any other mechanism is refused, and so is none.
        """
        for attempt in (
            auth(plain(), b"X-OAUTH2"),
            auth(b"", b"ANONYMOUS"),
            auth(plain(), b"plain"),
            b'<auth xmlns="%b">%b</auth>' % (NS_SASL, plain()),
        ):
            harness, answer = self.attempt(attempt)
            self.assertEqual(
                b'<failure xmlns="urn:ietf:params:xml:ns:xmpp-sasl"><invalid-mechanism/></failure>'
                b"</stream:stream>",
                answer,
            )
            self.assertTrue(harness.closing)
            self.assertEqual(b"", harness.send(auth(plain())))

    def test_malformed(self) -> None:
        """
        What is no base64, no UTF-8 or not three parts is refused at once.
        """
        for encoded in (
            b"!!!!",
            b"=",
            plain()[:-1],
            b"!" + plain(),
            "schl\u00fcssel".encode(),
            b64encode(b"no parts"),
            b64encode(b"\0two"),
            b64encode(b"\0a\0b\0c"),
            b64encode(b"\0\xff\xfe\0key"),
        ):
            harness, answer = self.attempt(auth(encoded))
            self.assertEqual(
                b'<failure xmlns="urn:ietf:params:xml:ns:xmpp-sasl"><malformed-request/></failure>'
                b"</stream:stream>",
                answer,
            )
            self.assertTrue(harness.closing)
            self.assertEqual(b"", harness.send(auth(plain())))
            self.assertIsNone(harness.stream.senderID)

    def test_refused(self) -> None:
        """
        A wrong key, an unknown sender, another's key and to act for another
        are all refused in the same words and after the same time.
        """
        for authcid, key, authzid in (
            (SENDER, "wrong", ""),
            (SENDER, "", ""),
            ("333", KEY, ""),
            ("", KEY, ""),
            ("@gcm.googleapis.com", KEY, ""),
            ("111", KEY, ""),
            (SENDER, KEY, "111"),
            (SENDER, KEY, "111@gcm.googleapis.com"),
        ):
            harness, answer = self.attempt(auth(plain(authcid, key, authzid)))
            self.assertEqual((b"", False), (answer, harness.closing))
            harness.clock.advance(0.25 - 2**-10)
            self.assertEqual((b"", False), (harness.said(), harness.closing))
            harness.clock.advance(2**-10)
            self.assertEqual((NOT_AUTHORIZED, True), (harness.said(), harness.closing))
            self.assertIsNone(harness.stream.senderID)

    def test_slowedDown(self) -> None:
        """
        Each refusal to one machine comes later, whichever connection it is on;
        other machines do not pay for it.
        """
        service = Service()
        for delay, address in (
            (0.25, IPv4Address("TCP", "192.0.2.1", 1)),
            (0.5, IPv4Address("TCP", "192.0.2.1", 2)),
            (1.0, IPv4Address("TCP", "192.0.2.1", 3)),
            (0.25, IPv6Address("TCP", "::1", 1)),
            (0.5, IPv6Address("TCP", "::1", 2)),
        ):
            harness = self.makeStream(service, address)
            harness.send(OPEN + auth(plain(key="wrong")))
            harness.said()
            harness.clock.advance(delay - 2**-10)
            self.assertEqual(b"", harness.said())
            harness.clock.advance(2**-10)
            self.assertEqual(NOT_AUTHORIZED, harness.said())

    def test_addressWithoutHost(self) -> None:
        """
        That holds for whoever connects by other means than IP, too.
        """
        service = Service()
        for delay in (0.25, 0.5):
            harness = self.makeStream(service, UNIXAddress("/run/fcm"))
            harness.send(OPEN + auth(plain(key="wrong")))
            harness.said()
            harness.clock.advance(delay)
            self.assertEqual(NOT_AUTHORIZED, harness.said())

    def test_rightKeyIsNotSlowed(self) -> None:
        """
        The right key is let in at once, even from an address that was refused.
        """
        service = Service()
        for _ in range(5):
            self.makeStream(service).send(OPEN + auth(plain(key="wrong")))
        self.assertIn(SUCCESS, self.makeStream(service).send(OPEN + auth(plain())))

    def test_manyAtOnce(self) -> None:
        """
        While many logins from one address are being refused, the next is
        turned away at once without a look at its key: a right one gets no
        other answer than a wrong one.  Other addresses are let in, and so is
        this one later; to hang up does not make it sooner.
        """
        service = Service()
        refused = [
            self.makeStream(service, IPv4Address("TCP", "192.0.2.1", 1000 + number))
            for number in range(service.guard.PENDING)
        ]
        for harness in refused:
            self.assertNotIn(b"<failure", harness.send(OPEN + auth(plain(key="wrong"))))
        for harness in refused[8:]:
            harness.lose()
        for key in ("wrong", KEY):
            harness = self.makeStream(service)
            said = harness.send(OPEN + auth(plain(key=key)))
            self.assertTrue(said.endswith(MECHANISMS + streamError(b"policy-violation")), said)
            self.assertEqual((True, None), (harness.closing, harness.stream.senderID))
            self.assertEqual(b"", harness.send(auth(plain())))
        elsewhere = self.makeStream(service, IPv4Address("TCP", "192.0.2.2", 1))
        self.assertIn(SUCCESS, elsewhere.send(OPEN + auth(plain())))
        later = self.makeStream(service)
        later.clock.advance(0.25)
        self.assertIn(SUCCESS, later.send(OPEN + auth(plain())))

    def test_deafWhileRefusing(self) -> None:
        """
        While the refusal is delayed, and after it, nothing more is tried, be
        it right.
        """
        harness, _ = self.attempt(auth(plain(key="wrong")))
        for _ in range(3):
            self.assertEqual(b"", harness.send(auth(plain())))
        harness.clock.advance(0.25)
        self.assertEqual(NOT_AUTHORIZED, harness.said())
        self.assertEqual(b"", harness.send(auth(plain())))
        self.assertIsNone(harness.stream.senderID)

    def test_lostWhileRefusing(self) -> None:
        """
        A client that leaves while its refusal is delayed is not answered.
        """
        harness, _ = self.attempt(auth(plain(key="wrong")))
        harness.lose()
        self.assertEqual([], harness.clock.getDelayedCalls())
        harness.clock.advance(1)
        self.assertEqual(b"", harness.said())

    def test_notALogin(self) -> None:
        """
        Whoever sends anything else before the login is closed with a stream
        error.
        """
        for stanza in (
            b"<presence/>",
            b'<iq type="set" id="1">%b</iq>' % BIND,
            b"<message/>",
            gcm(b'{"to":"tok-A","message_id":"m-1"}'),
            b'<abort xmlns="%b"/>' % NS_SASL,
            b"<auth>%b</auth>" % plain(),
        ):
            harness, answer = self.attempt(stanza)
            self.assertEqual(streamError(b"not-authorized"), answer)
            self.assertEqual((True, []), (harness.closing, harness.service.told))

    def test_deafAfterStreamError(self) -> None:
        """
        Nothing that comes after a stream error is listened to: a login in the
        same breath does not succeed.
        """
        harness, answer = self.attempt(b"<presence/>" + auth(plain()))
        self.assertEqual(streamError(b"not-authorized"), answer)
        self.assertEqual(b"", harness.send(auth(plain())))
        self.assertIsNone(harness.stream.senderID)

    def test_clientsStreamError(self) -> None:
        """
        A client that ends the stream with an error is closed, and no error is
        sent back.
        """
        harness, answer = self.attempt(
            b'<stream:error><reset xmlns="urn:ietf:params:xml:ns:xmpp-streams"/></stream:error>'
        )
        self.assertEqual((b"</stream:stream>", True), (answer, harness.closing))

    def test_log(self) -> None:
        """
        A refused login is in the log, with who it was said to be, as far as
        that can be a sender, and without the key that was tried.
        """
        for authcid, claimed in (
            (SENDER, f"sender {SENDER}"),
            (f"{SENDER}@gcm.googleapis.com", f"sender {SENDER}"),
            ("9" * 20, f"sender {'9' * 20}"),
            ("9" * 21, "an unknown sender"),
            ("wrong-key", "an unknown sender"),
            ("12x", "an unknown sender"),
            ("\u0661\u0662", "an unknown sender"),
            ("1\n2", "an unknown sender"),
            ("", "an unknown sender"),
        ):
            said = plain(authcid, key="wrong-key")
            lines = self.refusedIn(self.makeStream(), said)
            self.assertEqual([f"refused a login of {claimed} from 192.0.2.1:1: not-authorized"], lines)

    def refusedIn(self, harness: Harness, said: bytes) -> list[str]:
        """
        What is in the log of a login that is refused.
        """
        with capturedLogs() as events:
            harness.send(OPEN + auth(said))
            harness.clock.advance(1)
        logged = "".join(eventAsText(event) + eventAsJSON(event) for event in events)
        for secret in ("wrong-key", said.decode()):
            self.assertNotIn(secret, logged)
        return [str(formatEvent(event)) for event in events]

    def test_logMalformed(self) -> None:
        """
        So is one that says nobody.
        """
        self.assertEqual(
            ["refused a login of an unknown sender from 192.0.2.1:1: malformed-request"],
            self.refusedIn(self.makeStream(), b"%%"),
        )

    def test_logAddress(self) -> None:
        """
        The log says where the client is, with its port: its administrator can
        look that up.
        """
        for address, said in (
            (IPv4Address("TCP", "192.0.2.1", 40_000), "192.0.2.1:40000"),
            (IPv6Address("TCP", "::1", 40_000), "[::1]:40000"),
            (UNIXAddress("/run/fcm"), str(UNIXAddress("/run/fcm"))),
        ):
            harness = self.makeStream(address=address)
            self.assertEqual(said, harness.stream.address)
            (line,) = self.refusedIn(harness, plain(key="wrong-key"))
            self.assertEqual(f"refused a login of sender {SENDER} from {said}: not-authorized", line)

    def test_logMany(self) -> None:
        """
        That one was turned away because there are too many says from where.
        """
        service = Service()
        for _ in range(service.guard.PENDING):
            service.guard.refuse("192.0.2.1", 0.0)
        self.assertEqual(
            ["too many logins from 192.0.2.1:1 are being refused"],
            self.refusedIn(self.makeStream(service), plain(key="wrong-key")),
        )


class DeadlineTests(StreamCase):
    """
    A client has thirty seconds from the connection to the end of the bind.
    """

    def assertClosesAt(self, harness: Harness, seconds: float, said: bytes) -> None:
        """
        Assert that a stream is closed after so many seconds and no sooner.
        """
        harness.clock.advance(seconds - 2**-10)
        self.assertEqual((b"", False), (harness.said(), harness.closing))
        harness.clock.advance(2**-10)
        self.assertEqual((said, True), (harness.said(), harness.closing))

    def test_silent(self) -> None:
        """
        A client that says nothing is told so, and closed.
        """
        harness = self.makeStream()
        self.assertClosesAt(harness, 30, header(1) + streamError(b"connection-timeout"))

    def test_everyStep(self) -> None:
        """
        It does not matter how far it had come.
        """
        steps = [OPEN, auth(plain()), OPEN, b"<presence/>"]
        for said in range(1, len(steps) + 1):
            harness = self.makeStream()
            for step in steps[:said]:
                harness.clock.advance(5)
                harness.send(step)
            expected = streamError(b"connection-timeout")
            if said == 2:
                # The stream was reset, so that there is no header yet.
                expected = header(2) + expected
            self.assertClosesAt(harness, 30 - 5 * said, expected)

    def test_abort(self) -> None:
        """
        If it does not let itself be closed, the connection is aborted after
        ten more seconds.
        """
        harness = self.makeStream()
        harness.clock.advance(30)
        harness.clock.advance(10 - 2**-10)
        self.assertFalse(harness.transport.disconnected)
        self.assertFalse(getattr(harness.transport, "aborting", False))
        harness.clock.advance(2**-10)
        self.assertTrue(harness.transport.disconnected)

    def test_tooLate(self) -> None:
        """
        A login that comes while it is being closed is too late.
        """
        harness = self.makeStream()
        harness.send(OPEN)
        harness.clock.advance(30)
        harness.said()
        self.assertEqual(b"", harness.send(auth(plain())))
        harness.send(OPEN)
        harness.send(b'<iq type="set" id="b1">%b</iq>' % BIND)
        self.assertEqual([], harness.service.told)

    def test_inTime(self) -> None:
        """
        A client that was in time stays, however silent it is.
        """
        harness = self.makeStream()
        harness.clock.advance(29)
        harness.send(OPEN + auth(plain()))
        harness.send(OPEN + b'<iq type="set" id="b1">%b</iq>' % BIND)
        harness.clock.pump([59] * 10)
        self.assertFalse(harness.closing)

    def test_refusalKeepsItShort(self) -> None:
        """
        A refusal that is delayed past the deadline is said at its own time,
        and then the connection is aborted as ever.
        """
        service = Service()
        for _ in range(10):
            service.guard.refuse("192.0.2.1", 0.0)
        harness = self.makeStream(service)
        harness.clock.advance(29)
        harness.send(OPEN + auth(plain(key="wrong")))
        harness.said()
        self.assertClosesAt(harness, 10, NOT_AUTHORIZED)
        harness.clock.advance(10)
        self.assertTrue(harness.transport.disconnected)


class SizeTests(StreamCase):
    """
    Little is read from whoever has not logged in.
    """

    def padded(self, stanza: bytes, size: int) -> bytes:
        """
        A stanza with so many blanks in its first tag that it has this size.
        """
        tag, rest = stanza.split(b" ", 1)
        return tag + b" " * (size - len(stanza) + 1) + rest

    def test_login(self) -> None:
        """
        A stanza of 8192 bytes is read before the login, and one that is larger
        ends the stream, whole or in pieces.
        """
        harness = self.makeStream()
        harness.send(OPEN)
        self.assertEqual(SUCCESS, harness.send(self.padded(auth(plain()), 8192)))
        for size in (1000, 10_000):
            harness = self.makeStream()
            harness.send(OPEN)
            stanza = self.padded(auth(plain()), 8300)
            answer = b"".join(harness.send(stanza[n : n + size]) for n in range(0, len(stanza), size))
            self.assertEqual(streamError(b"policy-violation"), answer)
            self.assertTrue(harness.closing)

    def test_bind(self) -> None:
        """
        The same holds between the login and the bind.
        """
        bind = b'<iq type="set" id="b1">%b</iq>' % BIND
        self.assertIn(b"<jid>", self.authenticated().send(self.padded(bind, 8192)))
        harness = self.authenticated()
        self.assertEqual(streamError(b"policy-violation"), harness.send(self.padded(bind, 8300)))
        self.assertEqual([], harness.service.told)

    def test_ready(self) -> None:
        """
        After the bind a message may be as large as any stanza.
        """
        message = gcm(b'{"to":"tok-A","message_id":"m-1"}', b' id="1"')
        self.assertIn(b'"ack"', self.ready().send(self.padded(message, 65_536)))
        self.assertEqual(streamError(b"policy-violation"), self.ready().send(self.padded(message, 65_600)))


class BindTests(StreamCase):
    """
    A client that is logged in is given an address.
    """

    def bind(self, iq: bytes) -> tuple[Harness, bytes]:
        """
        Send a bind.
        """
        harness = self.authenticated()
        return harness, harness.send(iq)

    def test_resource(self) -> None:
        """
        The client is told its full address, and then the conversation begins.
        """
        harness, answer = self.bind(
            b'<iq type="set" id="b1"><bind xmlns="urn:ietf:params:xml:ns:xmpp-bind">'
            b"<resource>node7</resource></bind></iq>"
        )
        self.assertEqual(
            b'<iq type="result" id="b1"><bind xmlns="urn:ietf:params:xml:ns:xmpp-bind">'
            b"<jid>987654321098@gcm.googleapis.com/node7</jid></bind></iq>",
            answer,
        )
        self.assertEqual([("bound", "node7"), "ready"], harness.service.told)
        self.assertEqual("node7", harness.stream.resource)
        self.assertEqual("987654321098@gcm.googleapis.com", harness.stream.bareJID)
        self.assertEqual("987654321098@gcm.googleapis.com/node7", harness.stream.fullJID)

    def test_noResource(self) -> None:
        """
        A client that wants no resource, or an empty one, is given one; what it
        is cannot break the XML.
        """
        for bind in (
            BIND,
            b'<bind xmlns="urn:ietf:params:xml:ns:xmpp-bind"><resource/></bind>',
            b'<bind xmlns="urn:ietf:params:xml:ns:xmpp-bind"><other/></bind>',
        ):
            harness, answer = self.bind(b'<iq type="set" id="b1">%b</iq>' % bind)
            self.assertIn(b"<jid>987654321098@gcm.googleapis.com/given &amp; taken</jid>", answer)
            self.assertEqual([("bound", None), "ready"], harness.service.told)

    def test_id(self) -> None:
        """
        The C{id} is echoed if there is one, whatever it is.
        """
        for sent, echoed in (
            (b"", b'<iq type="result"><bind '),
            (b' id=""', b'<iq type="result" id=""><bind '),
            (b' id="&lt;&quot;&amp;"', b'<iq type="result" id="&lt;&quot;&amp;"><bind '),
        ):
            _, answer = self.bind(b'<iq type="set"%b>%b</iq>' % (sent, BIND))
            self.assertTrue(answer.startswith(echoed), answer)

    def test_addressed(self) -> None:
        """
        A bind may be addressed to the server.
        """
        _, answer = self.bind(b'<iq type="set" to="fcm-xmpp.googleapis.com" id="1">%b</iq>' % BIND)
        self.assertIn(b'type="result"', answer)

    def test_notABind(self) -> None:
        """
        What is no bind is answered as ever, and the bind may come later.
        """
        for other in (
            b'<iq type="get" id="1">%b</iq>' % BIND,
            b'<iq type="set" id="1"><bind xmlns="urn:other"/></iq>',
            b'<iq type="set" id="1"/>',
        ):
            harness, answer = self.bind(other)
            self.assertIn(b"<service-unavailable ", answer)
            self.assertEqual([], harness.service.told)
            self.assertIn(b"<jid>", harness.send(b'<iq type="set" id="2">%b</iq>' % BIND))

    def test_twice(self) -> None:
        """
        A client that is bound is not bound again.
        """
        harness, _ = self.bind(b'<iq type="set" id="1">%b</iq>' % BIND)
        self.assertIn(b"<service-unavailable ", harness.send(b'<iq type="set" id="2">%b</iq>' % BIND))
        self.assertEqual(2, len(harness.service.told))

    def test_messageBefore(self) -> None:
        """
        A message before the bind ends the stream.
        """
        harness, answer = self.bind(gcm(b'{"to":"tok-A","message_id":"m-1"}'))
        self.assertEqual(streamError(b"not-authorized"), answer)
        self.assertEqual(([], True), (harness.service.told, harness.closing))

    def test_otherMessageBefore(self) -> None:
        """
        A message in a shape of its own before the bind is not taken either.
        """
        harness, answer = self.bind(
            b'<message><body/><gcm xmlns="google:mobile:data">'
            b'{"to":"tok-A","message_id":"m-1"}</gcm></message>'
        )
        self.assertEqual((b"", []), (answer, harness.service.told))

    def test_nothingBefore(self) -> None:
        """
        Before the bind nothing can be delivered.
        """
        harness = self.authenticated()
        self.assertEqual((0, 0), (harness.stream.room, harness.stream.unanswered))

    def test_lostBefore(self) -> None:
        """
        The service is not told of the end of what was never ready.
        """
        harness = self.authenticated()
        harness.lose()
        self.assertEqual([], harness.service.told)


class OtherStanzaTests(StreamCase):
    """
    Real clients send all sorts of things beside messages.
    """

    def test_ignored(self) -> None:
        """
        Presence, results, foreign elements, white space and messages without
        a payload want no answer.
        """
        harness = self.ready()
        for stanza in (
            b"<presence/>",
            b"<presence xml:lang='en'><show>chat</show></presence>",
            b'<iq type="result" id="1"/>',
            b'<iq type="error" id="1"/>',
            b"<iq/>",
            b" ",
            b"\n",
            b"<message/>",
            b"<message><body>hello</body></message>",
            b'<message><gcm xmlns="urn:other">{}</gcm></message>',
            b'<anything xmlns="urn:other"/>',
            b'<error xmlns="urn:other"/>',
            b"<stream:anything/>",
        ):
            self.assertEqual(b"", harness.send(stanza), stanza)
        self.assertEqual(([], False), (harness.service.told, harness.closing))

    def test_unknownIQ(self) -> None:
        """
        A request that nobody understands is answered, before the bind, too.
        """
        for harness in (self.ready(), self.authenticated()):
            for kind in (b"get", b"set"):
                self.assertEqual(
                    b'<iq type="error" id="r&amp;1"><error type="cancel"><service-unavailable '
                    b'xmlns="urn:ietf:params:xml:ns:xmpp-stanzas"/></error></iq>',
                    harness.send(b'<iq type="%b" id="r&amp;1"><query xmlns="jabber:iq:roster"/></iq>' % kind),
                )

    def test_ping(self) -> None:
        """
        A ping is answered.
        """
        harness = self.ready()
        self.assertEqual(
            b'<iq type="result" id="c2s1"/>',
            harness.send(b'<iq type="get" id="c2s1"><ping xmlns="urn:xmpp:ping"/></iq>'),
        )

    def test_session(self) -> None:
        """
        A session is granted to whoever asks, with an C{id} or without, and
        before the bind, too.
        """
        session = b'<session xmlns="urn:ietf:params:xml:ns:xmpp-session"/>'
        for harness in (self.ready(), self.authenticated()):
            self.assertEqual(
                b'<iq type="result" id="s1"/>', harness.send(b'<iq type="set" id="s1">%b</iq>' % session)
            )
            self.assertEqual(b'<iq type="result"/>', harness.send(b'<iq type="set">%b</iq>' % session))

    def test_sessionOfAnotherKind(self) -> None:
        """
        To ask about a session is not to ask for one.
        """
        harness = self.ready()
        answer = harness.send(
            b'<iq type="get" id="s1"><session xmlns="urn:ietf:params:xml:ns:xmpp-session"/></iq>'
        )
        self.assertIn(b"<service-unavailable ", answer)


class ConversationTests(StreamCase):
    """
    What is said once a client is ready.
    """

    def test_downstream(self) -> None:
        """
        A message is given to the service, and its answer is written in the
        shape that clients in the field need.
        """
        harness = self.ready()
        answer = harness.send(gcm(b'{"to":"tok-A","message_id":"m-1","data":{"k":"v"}}', b' id="m-1"'))
        self.assertEqual(
            b'<message><data:gcm xmlns:data="google:mobile:data">'
            b'{"from":"tok-A","message_id":"m-1","message_type":"ack"}</data:gcm></message>',
            answer,
        )
        message = DownstreamMessage(to="tok-A", message_id="m-1", data={"k": "v"})
        self.assertEqual([("accept", message)], harness.service.told)

    def test_refusedDownstream(self) -> None:
        """
        So is its refusal.
        """
        harness = self.ready()
        harness.service.answer = Nack(from_="tok-A", message_id="m-1", error="BAD_REGISTRATION")
        answer = harness.send(gcm(b'{"to":"tok-A","message_id":"m-1"}'))
        self.assertEqual(
            b'<message><data:gcm xmlns:data="google:mobile:data">'
            b'{"message_type":"nack","from":"tok-A","message_id":"m-1","error":"BAD_REGISTRATION"}'
            b"</data:gcm></message>",
            answer,
        )

    def test_mistypedAck(self) -> None:
        """
        What is not exactly an ACK is a message for a device, as with Google.
        """
        harness = self.ready()
        harness.send(gcm(b'{"to":"tok-A","message_id":"m-1","message_type":"Ack"}'))
        ((kind, message),) = harness.service.told
        self.assertEqual(("accept", "tok-A"), (kind, message.to))

    def test_deliver(self) -> None:
        """
        A message of a device is written in the shape that clients in the field
        need, and takes a place in the window until it is acknowledged.
        """
        harness = self.ready()
        self.assertEqual((100, 0), (harness.stream.room, harness.stream.unanswered))
        harness.stream.deliver(upstream("u-1"))
        self.assertEqual(
            b'<message to="987654321098@gcm.googleapis.com" from="devices@gcm.googleapis.com" '
            b'type="normal"><gcm xmlns="google:mobile:data">'
            b'{"from":"tok-A","message_id":"u-1"}</gcm></message>',
            harness.said(),
        )
        self.assertEqual((99, 1), (harness.stream.room, harness.stream.unanswered))
        answer = harness.send(gcm(b'{"to":"tok-A","message_id":"u-1","message_type":"ack"}'))
        self.assertEqual(b"", answer)
        self.assertEqual([("acknowledged", upstream("u-1"))], harness.service.told)
        self.assertEqual((100, 0), (harness.stream.room, harness.stream.unanswered))

    def test_deliverReceipt(self) -> None:
        """
        A receipt is delivered and acknowledged like a message.
        """
        harness = self.ready()
        receipt = Receipt(
            from_="gcm.googleapis.com",
            message_id="dr2:m-1",
            data=ReceiptData(message_status="MESSAGE_SENT_TO_DEVICE", original_message_id="m-1"),
        )
        harness.stream.deliver(receipt)
        self.assertIn(b'"message_type":"receipt"', harness.said())
        harness.send(gcm(b'{"to":"gcm.googleapis.com","message_id":"dr2:m-1","message_type":"ack"}'))
        self.assertEqual([("acknowledged", receipt)], harness.service.told)

    def test_foreignAck(self) -> None:
        """
        An ACK for what was not delivered on this stream, or was acknowledged
        already, is answered with a stanza error; the stream stays.
        """
        harness = self.ready()
        ack = b'{"to":"tok-A","message_id":"u-1","message_type":"ack"}'
        harness.stream.deliver(upstream("u-1"))
        harness.said()
        self.assertEqual(b"", harness.send(gcm(ack)))
        answer = harness.send(gcm(ack, b' id="&lt;7"'))
        self.assertEqual(
            b'<message id="&lt;7" type="error" to="987654321098@gcm.googleapis.com/given &amp; taken">'
            b'<gcm xmlns="google:mobile:data">%b</gcm><error code="406" type="modify">'
            b'<not-acceptable xmlns="urn:ietf:params:xml:ns:xmpp-stanzas"/>'
            b'<text xmlns="urn:ietf:params:xml:ns:xmpp-stanzas">'
            b"Received acks for messages not sent over this connection\n</text></error></message>" % ack,
            answer,
        )
        self.assertEqual((1, False), (len(harness.service.told), harness.closing))

    def test_malformed(self) -> None:
        """
        A payload that is no message and has no name is answered with a stanza
        error, which echoes what was sent.
        """
        harness = self.ready()
        for text in (b"{", b"[]", b"", b'{"to":"tok-A"}', b'{"to":"tok-A","message_id":""}'):
            answer = harness.send(gcm(text, b' id="3"'))
            self.assertTrue(answer.startswith(b'<message id="3" type="error" '), answer)
            self.assertIn(b'<gcm xmlns="google:mobile:data">%b</gcm><error code="400" ' % text, answer)
            self.assertIn(b"InvalidJson: JSON_PARSING_ERROR : ", answer)
            self.assertEqual(1, answer.count(b"<message"))
        self.assertEqual(([], False), (harness.service.told, harness.closing))

    def test_missingID(self) -> None:
        """
        A message without a C{message_id} is told just that.
        """
        harness = self.ready()
        answer = harness.send(gcm(b'{"to":"tok-A","data":{}}'))
        self.assertIn(b"Missing Required Field: message_id\n</text>", answer)

    def test_malformedWithName(self) -> None:
        """
        A payload that is no message and has a name is NACKed by that.
        """
        harness = self.ready()
        for text, to in (
            (b'{"to":"tok-A","message_id":"m-1","time_to_live":"abc"}', b"tok-A"),
            (b'{"message_id":"m-1","dry_run":"yes"}', b""),
        ):
            answer = harness.send(gcm(text))
            self.assertTrue(
                answer.startswith(
                    b'<message><data:gcm xmlns:data="google:mobile:data">{"message_type":"nack","from":"%b",'
                    b'"message_id":"m-1","error":"INVALID_JSON","error_description":"InvalidJson: ' % to
                ),
                answer,
            )
        self.assertEqual(([], False), (harness.service.told, harness.closing))

    def test_errorStanza(self) -> None:
        """
        A stanza error of a client wants no answer, or two servers would send
        each other errors for ever.
        """
        harness = self.ready()
        for text in (b"{", b'{"to":"tok-A","message_id":"m-1"}'):
            self.assertEqual(b"", harness.send(gcm(text, b' type="error"')))
        self.assertEqual([], harness.service.told)

    def test_otherShape(self) -> None:
        """
        A message with more in it than its payload is taken all the same.
        """
        harness = self.ready()
        answer = harness.send(
            b'<message type="normal"><body/><d:gcm xmlns:d="google:mobile:data">'
            b'{"to":"tok-A","message_id":"m-1"}</d:gcm><x/></message>'
        )
        self.assertIn(b'"message_type":"ack"', answer)

    def test_burst(self) -> None:
        """
        Many messages in one piece are all answered, in order.
        """
        harness = self.ready()
        harness.send(b"\n".join(gcm(b'{"to":"tok-A","message_id":"m-%d"}' % n) for n in range(200)))
        self.assertEqual(
            [f"m-{n}" for n in range(200)], [message.message_id for _, message in harness.service.told]
        )

    def test_lost(self) -> None:
        """
        When the connection ends, the service is told what was not
        acknowledged, in the order in which it was delivered, and only once.
        """
        harness = self.ready()
        for message_id in ("u-1", "u-2", "u-3"):
            harness.stream.deliver(upstream(message_id))
        harness.send(gcm(b'{"to":"tok-A","message_id":"u-2","message_type":"ack"}'))
        harness.lose()
        self.assertEqual(("lost", [upstream("u-1"), upstream("u-3")]), harness.service.told[-1])
        self.assertEqual(0, harness.stream.room)

    def test_answerAfterTheEnd(self) -> None:
        """
        An answer that is ready only when the connection is gone is dropped.
        """
        harness = self.ready()
        harness.lose()
        harness.said()
        harness.stream.answer(Ack(message_id="m-1"))
        self.assertEqual(b"", harness.said())

    def test_clientCloses(self) -> None:
        """
        A client that ends the stream is answered in kind, and cut off if it
        does not close the connection within ten seconds.
        """
        harness = self.ready()
        self.assertEqual(b"</stream:stream>", harness.send(b"</stream:stream>"))
        self.assertTrue(harness.closing)
        self.assertFalse(harness.transport.disconnected)
        harness.clock.advance(10)
        self.assertTrue(harness.transport.disconnected)

    def test_clientsStreamError(self) -> None:
        """
        So is one that ends it with an error.
        """
        harness = self.ready()
        answer = harness.send(
            b'<stream:error><reset xmlns="urn:ietf:params:xml:ns:xmpp-streams"/></stream:error>'
        )
        self.assertEqual((b"</stream:stream>", True), (answer, harness.closing))

    def test_brokenXML(self) -> None:
        """
        XML that is not well-formed ends the stream in Google's way.
        """
        harness = self.ready()
        self.assertEqual(streamError(b"invalid-xml"), harness.send(b"<message><gcm></message>"))
        self.assertTrue(harness.closing)
        self.assertEqual(b"", harness.send(gcm(b'{"to":"tok-A","message_id":"m-1"}')))
        self.assertEqual([], harness.service.told)


class FullTests(StreamCase):
    """
    A client that reads too slowly.
    """

    def test_full(self) -> None:
        """
        From the bind on the stream knows it: there is no room until there is
        again, which the service is told.
        """
        harness = self.authenticated()
        self.assertIsNone(harness.transport.producer)
        harness.send(b'<iq type="set" id="b1">%b</iq>' % BIND)
        self.assertIs(harness.stream, harness.transport.producer)
        self.assertEqual(WINDOW, harness.stream.room)
        del harness.service.told[:]
        harness.stream.pauseProducing()
        self.assertEqual((0, []), (harness.stream.room, harness.service.told))
        harness.stream.resumeProducing()
        self.assertEqual((WINDOW, ["room"]), (harness.stream.room, harness.service.told))

    def test_beforeItIsReady(self) -> None:
        """
        It knows it before it is offered to the service.
        """
        harness = self.authenticated()
        seen: list[object] = []
        harness.service.ready = lambda stream: seen.append(  # type: ignore[method-assign]
            harness.transport.producer
        )
        harness.send(b'<iq type="set" id="b1">%b</iq>' % BIND)
        self.assertEqual([harness.stream], seen)

    def test_close(self) -> None:
        """
        A full stream can be closed.
        """
        harness = self.ready()
        harness.stream.pauseProducing()
        harness.stream.close()
        self.assertEqual((b"</stream:stream>", True), (harness.said(), harness.closing))
        self.assertIsNone(harness.transport.producer)


class KeepAliveTests(StreamCase):
    """
    A client hears from the server once a minute.
    """

    def test_space(self) -> None:
        """
        It is sent a single space, each minute anew, by itself.
        """
        harness = self.ready()
        for _ in range(5):
            harness.clock.advance(60 - 2**-10)
            self.assertEqual(b"", harness.said())
            harness.clock.advance(2**-10)
            self.assertEqual(b" ", harness.said())

    def test_busy(self) -> None:
        """
        Also when there is other traffic, because it costs nothing.
        """
        harness = self.ready()
        for _ in range(4):
            harness.clock.advance(15)
            harness.send(b'<iq type="get" id="1"><ping xmlns="urn:xmpp:ping"/></iq>')
        harness.clock.advance(60)
        self.assertEqual(b" ", harness.said())

    def test_oneTimer(self) -> None:
        """
        One timer suffices for it, and it ends with the connection.
        """
        harness = self.ready()
        harness.clock.advance(90)
        self.assertEqual(1, len(harness.clock.getDelayedCalls()))
        harness.lose()
        self.assertEqual([], harness.clock.getDelayedCalls())
