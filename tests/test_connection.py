"""
Tests for L{fcmxmpp.connection}, and for the login and the diagnosis that it
is made of.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable
from typing import Any

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.defer import Deferred
from twisted.internet.error import (
    ConnectBindError,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
    DNSLookupError,
    TimeoutError,
)
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, capturedLogs, eventAsJSON, eventAsText
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.words.protocols.jabber.error import StreamError
from twisted.words.protocols.jabber.xmlstream import StreamManager
from twisted.words.xish import domish
from wokkel.subprotocols import XMPPHandler
from zope.interface import implementer

from fcmxmpp.connection import HASTY, MAX_DRAINING, Credentials, Link
from fcmxmpp.diagnosis import describe
from fcmxmpp.errors import LoginRefused, LoginTimedOut, StreamLost
from fcmxmpp.interfaces import LinkDrained, LinkDraining, LinkLost, LinkReady
from fcmxmpp.testing import (
    SENDER_ID,
    SERVER_KEY,
    MemoryNetwork,
    RecordingObserver,
    ScriptedConnectionServer,
)
from fcmxmpp.xmppstream import CLOSE_PATIENCE


HEADER = (
    b'<stream:stream from="gcm.googleapis.com" id="7C01D2A9E4B35F68" version="1.0" '
    b'xmlns:stream="http://etherx.jabber.org/streams" xmlns="jabber:client">'
)
NS_SASL = b"urn:ietf:params:xml:ns:xmpp-sasl"
SUCCESS = b'<success xmlns="%b"/>' % NS_SASL
REFUSED = b'<failure xmlns="%b"><not-authorized/></failure>' % NS_SASL
BIND = b'<bind xmlns="urn:ietf:params:xml:ns:xmpp-bind"/>'
SESSION = b'<session xmlns="urn:ietf:params:xml:ns:xmpp-session"/>'


def features(*inner: bytes) -> bytes:
    """
    A server's stream features.
    """
    return b"<stream:features>%b</stream:features>" % b"".join(inner)


def mechanisms(*names: bytes) -> bytes:
    """
    What a server offers to log in with.
    """
    offered = b"".join(b"<mechanism>%b</mechanism>" % name for name in names)
    return features(b'<mechanisms xmlns="%b">%b</mechanisms>' % (NS_SASL, offered))


PLAIN = mechanisms(b"PLAIN")

#: A moment that adds up without rounding.
INSTANT = 2.0**-10


class RawServer(Protocol):
    """
    The far end of one connection, which says what the test has it say.

    @ivar received: what the app server has sent and nobody has looked at.
    @ivar closed: whether the connection is gone.
    """

    def __init__(self) -> None:
        self.received = b""
        self.closed = False

    def dataReceived(self, data: bytes) -> None:
        """
        Note what comes.
        """
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Note the end.
        """
        self.closed = True


class RawServerFactory(Factory):
    """
    Makes L{RawServer}s.

    @ivar onConnect: is called with each, if a test wants it.
    """

    noisy = False

    def __init__(self) -> None:
        self.servers: list[RawServer] = []
        self.onConnect: Callable[[RawServer], None] = lambda server: None

    def buildProtocol(self, addr: object) -> RawServer:
        """
        Make one.
        """
        server = RawServer()
        self.servers.append(server)
        server.makeConnection = self._madeBy(server)  # type: ignore[method-assign]
        return server

    def _madeBy(self, server: RawServer) -> Callable[[Any], None]:
        def makeConnection(transport: Any) -> None:
            Protocol.makeConnection(server, transport)
            self.onConnect(server)

        return makeConnection


class TimedNetwork(MemoryNetwork):
    """
    Connections in memory.

    @ivar times: when each was asked for.
    """

    def __init__(self, clock: Clock, serverFactory: IProtocolFactory) -> None:
        super().__init__(clock, serverFactory)
        self.times: list[float] = []

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """
        Make a connection.
        """
        self.times.append(self.clock.seconds())
        return super().connect(protocolFactory)


@implementer(IStreamClientEndpoint)
class NeverConnects:
    """
    An endpoint at whose other end nobody answers.

    @ivar cancelled: what was given up.
    """

    def __init__(self) -> None:
        self.cancelled: list[Deferred[Any]] = []

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """
        Try, and go on trying.
        """
        return Deferred(self.cancelled.append)


class NotingHandler(XMPPHandler):
    """
    A subprotocol handler that notes its life.

    @ivar drained: what to call to have its stream drained.
    """

    def __init__(self, drained: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.drained = drained
        self.life: list[str] = []
        self.stream: Any = None

    def connectionMade(self) -> None:
        """
        The stream exists.
        """
        self.life.append("made")
        self.stream = self.xmlstream

    def connectionInitialized(self) -> None:
        """
        The stream is logged in.
        """
        self.life.append("initialized")

    def connectionLost(self, reason: Failure) -> None:
        """
        The stream is gone.
        """
        super().connectionLost(reason)
        self.life.append("lost")


class Harness:
    """
    A link and everything around it.

    @ivar clock: its time.
    @ivar network: what it connects by.
    @ivar observer: what it told.
    @ivar handlers: the handler of each generation.
    """

    def __init__(self, network: Any, clock: Clock, random: Callable[[], float]) -> None:
        self.clock = clock
        self.network = network
        self.observer = RecordingObserver()
        self.handlers: list[NotingHandler] = []
        self.link = Link(
            network,
            Credentials(SENDER_ID, SERVER_KEY),
            self.makeHandler,
            clock,
            random,
            self.observer.observed,
        )

    def makeHandler(self, drained: Callable[[], None]) -> NotingHandler:
        """
        Make the handler of one generation.
        """
        self.handlers.append(NotingHandler(drained))
        return self.handlers[-1]

    @property
    def lost(self) -> list[tuple[str, float | None]]:
        """
        Why there was no stream, and how long that was to be.
        """
        return [(event.reason, event.retryIn) for event in self.observer.of(LinkLost)]

    @property
    def delays(self) -> list[float | None]:
        """
        How long there was to be no stream.
        """
        return [delay for _, delay in self.lost]

    def drain(self, generation: int = 0) -> None:
        """
        Have a stream drained.

        @param generation: which one, from 1; the newest by default.
        """
        self.handlers[generation - 1].drained()


class LinkCase(SynchronousTestCase):
    """
    What the test cases of this module share.
    """

    def makeLink(
        self,
        factory: IProtocolFactory | None = None,
        *,
        endpoint: Any = None,
        random: Callable[[], float] = lambda: 0.0,
    ) -> Harness:
        """
        Start a link; when the test is over it has to stop without a trace.

        @param factory: the server's; by default one that logs everybody in.
        @param endpoint: to connect by, in place of a network in memory.
        """
        clock = Clock()
        factory = factory or ScriptedConnectionServer().factory(clock)
        harness = Harness(endpoint or TimedNetwork(clock, factory), clock, random)
        self.addCleanup(self.assertStops, harness)
        harness.link.start()
        if endpoint is None:
            harness.network.pump()
        return harness

    def assertStops(self, harness: Harness) -> None:
        """
        Assert that a link stops and leaves nothing behind.
        """
        stopped = harness.link.stop()
        if isinstance(harness.network, MemoryNetwork):
            harness.network.pump()
            self.assertEqual(0, harness.network.connections)
        self.successResultOf(stopped)
        self.assertEqual([], harness.clock.getDelayedCalls())

    def makeRaw(self) -> tuple[Harness, RawServerFactory]:
        """
        Start a link to a server that says what it is told.
        """
        factory = RawServerFactory()
        return self.makeLink(factory), factory

    def say(self, harness: Harness, server: RawServer, data: bytes) -> bytes:
        """
        Have a server say something.

        @return: what the app server answers.
        """
        server.received = b""
        server.transport.write(data)
        harness.network.pump()
        return server.received

    def iqID(self, data: bytes) -> bytes:
        """
        The C{id} of the IQ that was sent.
        """
        match = re.search(rb"<iq\b[^>]*\bid=['\"]([^'\"]+)", data)
        assert match is not None, data
        return match[1]

    def bound(self, harness: Harness, server: RawServer, *offered: bytes) -> bytes:
        """
        Have a server do what a good one does up to the bind.

        @param offered: beside the bind.
        @return: what the app server says after that.
        """
        self.assertIn(b"<auth ", self.say(harness, server, HEADER + PLAIN))
        self.assertIn(b"<stream:stream ", self.say(harness, server, SUCCESS))
        iq = self.say(harness, server, HEADER + features(BIND, *offered))
        self.assertIn(b"urn:ietf:params:xml:ns:xmpp-bind", iq)
        return self.say(
            harness,
            server,
            b'<iq type="result" id="%b"><bind xmlns="urn:ietf:params:xml:ns:xmpp-bind">'
            b"<jid>987654321098@gcm.googleapis.com/1</jid></bind></iq>" % self.iqID(iq),
        )


def text(event: LogEvent) -> str:
    """
    The one line of a log event.
    """
    return eventAsText(event, includeTimestamp=False, includeSystem=False)


class CredentialsTests(SynchronousTestCase):
    """
    L{Credentials} keep the key to themselves.
    """

    def test_noKey(self) -> None:
        """
        No way to make text of them has the key in it.
        """
        credentials = Credentials(SENDER_ID, SERVER_KEY)
        self.assertEqual((SENDER_ID, SERVER_KEY), (credentials.senderID, credentials.serverKey))
        for made in (repr(credentials), str(credentials), f"{credentials}", f"{[credentials]!r}"):
            self.assertIn(SENDER_ID, made)
            self.assertNotIn(SERVER_KEY, made)


class LoginTests(LinkCase):
    """
    A link logs in by SASL PLAIN, binds, and opens a session if one is offered.
    """

    def test_transcript(self) -> None:
        """
        It says what Google's documentation wants said, in that order, and no
        more than that.
        """
        harness, factory = self.makeRaw()
        (server,) = factory.servers
        header = server.received
        self.assertTrue(header.startswith(b"<stream:stream "), header)
        for attribute in (
            rb"\bto=.gcm\.googleapis\.com.",
            rb"\bversion=.1\.0.",
            rb"\bxmlns=.jabber:client.",
            rb"\bxmlns:stream=.http://etherx\.jabber\.org/streams.",
        ):
            self.assertRegex(header, attribute)
        auth = self.say(harness, server, HEADER + PLAIN)
        secret = b64encode(b"\0987654321098@gcm.googleapis.com\0EXAMPLE-SERVER-KEY")
        self.assertRegex(auth, rb"^<auth [^>]*mechanism=.PLAIN.[^>]*>%b</auth>$" % re.escape(secret))
        self.assertRegex(self.say(harness, server, SUCCESS), rb"^<stream:stream [^>]*>$")
        iq = self.say(harness, server, HEADER + features(BIND))
        self.assertRegex(iq, rb"^<iq [^>]*type=.set.[^>]*><bind xmlns=[^>]*/></iq>$")
        self.assertEqual(([], 0), (harness.observer.events, harness.link.generation))
        rest = self.say(harness, server, b'<iq type="result" id="%b"/>' % self.iqID(iq))
        self.assertEqual(b"", rest)
        self.assertEqual(([LinkReady(1, 1)], 1), (harness.observer.events, harness.link.generation))
        self.assertEqual(["made", "initialized"], harness.handlers[0].life)

    def test_manyMechanisms(self) -> None:
        """
        Of the mechanisms that Google's server had, and of better ones, PLAIN
        is taken, because a server key works with no other.
        """
        harness, factory = self.makeRaw()
        offer = mechanisms(b"X-OAUTH2", b"X-GOOGLE-TOKEN", b"DIGEST-MD5", b"PLAIN", b"ANONYMOUS")
        auth = self.say(harness, factory.servers[0], HEADER + offer)
        self.assertRegex(auth, rb"mechanism=.PLAIN.")

    def test_noPlain(self) -> None:
        """
        To a server that does not offer PLAIN the key is not told by any other
        means, and that counts as a refusal.
        """
        harness, factory = self.makeRaw()
        offer = mechanisms(b"X-OAUTH2", b"DIGEST-MD5", b"ANONYMOUS")
        self.assertEqual(b"", self.say(harness, factory.servers[0], HEADER + offer))
        ((reason, delay),) = harness.lost
        self.assertIn("the server does not offer SASL PLAIN", reason)
        self.assertEqual((10.0, 0), (delay, harness.network.connections))

    def test_noLogin(self) -> None:
        """
        Nor is it to a server that offers no login at all, or is too old for
        one.
        """
        for offer in (HEADER + features(), HEADER + features(BIND)):
            harness, factory = self.makeRaw()
            self.assertEqual(b"", self.say(harness, factory.servers[0], offer))
            ((reason, delay),) = harness.lost
            self.assertIn("the server offers no login", reason)
            self.assertEqual((10.0, 0), (delay, harness.network.connections))

    def test_oldServer(self) -> None:
        """
        A server of before XMPP 1.0 is left alone.
        """
        harness, factory = self.makeRaw()
        answer = self.say(harness, factory.servers[0], HEADER.replace(b' version="1.0"', b""))
        self.assertNotIn(b"<auth", answer)
        self.assertEqual(([1.0], 0), (harness.delays, harness.network.connections))

    def test_strangeFrom(self) -> None:
        """
        A server may call itself by what is no JID, or not at all.
        """
        for name in (b"@", b"a@b@c", b"", b"FCM XMPP Client Connection Server", b"/", None):
            harness, factory = self.makeRaw()
            header = HEADER.replace(
                b'from="gcm.googleapis.com"', b"" if name is None else b'from="%b"' % name
            )
            self.assertIn(b"<auth ", self.say(harness, factory.servers[0], header + PLAIN))
            self.assertIn(b"<stream:stream", self.say(harness, factory.servers[0], SUCCESS))
            self.assertIn(b"<iq ", self.say(harness, factory.servers[0], header + features(BIND)))

    def test_strangeJID(self) -> None:
        """
        A server that binds us to what is no JID costs a try, not the link.
        """
        harness, factory = self.makeRaw()
        server = factory.servers[0]
        self.say(harness, server, HEADER + PLAIN)
        self.say(harness, server, SUCCESS)
        iq = self.say(harness, server, HEADER + features(BIND))
        bind = b'<bind xmlns="urn:ietf:params:xml:ns:xmpp-bind"><jid>@</jid></bind>'
        self.say(harness, server, b'<iq type="result" id="%b">%b</iq>' % (self.iqID(iq), bind))
        self.assertEqual(([1.0], 0), (harness.delays, harness.network.connections))

    def test_sessionNotOffered(self) -> None:
        """
        Where no session is offered none is asked for.
        """
        harness, factory = self.makeRaw()
        self.assertEqual(b"", self.bound(harness, factory.servers[0]))
        self.assertEqual([LinkReady(1, 1)], harness.observer.events)

    def test_sessionOffered(self) -> None:
        """
        Where one is offered it is asked for, and the link is ready without
        waiting for the answer, which means nothing whatever it is.
        """
        for answer in (
            b'<iq type="result" id="%b"/>',
            b'<iq type="error" id="%b"><error type="cancel"><internal-server-error '
            b'xmlns="urn:ietf:params:xml:ns:xmpp-stanzas"/></error></iq>',
        ):
            harness, factory = self.makeRaw()
            iq = self.bound(harness, factory.servers[0], SESSION)
            self.assertRegex(iq, rb"^<iq type=.set.[^>]*><session xmlns=[^>]*:xmpp-session./></iq>$")
            self.assertEqual([LinkReady(1, 1)], harness.observer.events)
            self.assertEqual(b"", self.say(harness, factory.servers[0], answer % self.iqID(iq)))
            self.assertEqual([LinkReady(1, 1)], harness.observer.events)

    def test_bindNotOffered(self) -> None:
        """
        A server that lets us in and offers no bind is no use.
        """
        harness, factory = self.makeRaw()
        self.say(harness, factory.servers[0], HEADER + PLAIN)
        self.say(harness, factory.servers[0], SUCCESS)
        self.assertEqual(b"", self.say(harness, factory.servers[0], HEADER + features()))
        self.assertEqual((1, 0), (len(harness.lost), harness.network.connections))

    def test_bindRefused(self) -> None:
        """
        A refused bind, as for too many connections, is tried again with
        back-off; it has nothing to do with the key.
        """
        harness, factory = self.makeRaw()
        server = factory.servers[0]
        self.say(harness, server, HEADER + PLAIN)
        self.say(harness, server, SUCCESS)
        iq = self.say(harness, server, HEADER + features(BIND))
        self.say(
            harness,
            server,
            b'<iq type="error" id="%b"><error type="wait"><resource-constraint '
            b'xmlns="urn:ietf:params:xml:ns:xmpp-stanzas"/></error></iq>' % self.iqID(iq),
        )
        self.assertEqual([("the server refused to bind a resource: resource-constraint", 1.0)], harness.lost)
        self.assertEqual((True, 0), (server.closed, harness.network.connections))
        self.assertEqual(["made", "lost"], harness.handlers[0].life)

    def test_lostInTheBind(self) -> None:
        """
        A connection that is lost in place of the answer to the bind is said to
        have been, and tried again with back-off.
        """
        harness, factory = self.makeRaw()
        for said in (HEADER + PLAIN, SUCCESS, HEADER + features(BIND)):
            self.say(harness, factory.servers[0], said)
        factory.servers[0].transport.loseConnection()
        harness.network.pump()
        self.assertEqual([("closed by the server", 1.0)], harness.lost)

    def test_pieces(self) -> None:
        """
        What the server says may come in pieces of any size.
        """
        harness, factory = self.makeRaw()
        (server,) = factory.servers
        server.received = b""
        for byte in HEADER + PLAIN:
            server.transport.write(bytes([byte]))
            harness.network.pump()
        self.assertEqual(1, server.received.count(b"<auth "))

    def test_keyInNoLog(self) -> None:
        """
        Nothing that is logged about a login, good or refused, has the key in
        it, plain or encoded.
        """
        with capturedLogs() as events:
            harness, factory = self.makeRaw()
            self.bound(harness, factory.servers[0])
            harness.network.cut()
            self.say(harness, factory.servers[1], HEADER + PLAIN)
            self.say(harness, factory.servers[1], REFUSED)
        self.assertEqual(2, len(harness.lost))
        secret = b64encode(f"\0{SENDER_ID}@gcm.googleapis.com\0{SERVER_KEY}".encode()).decode()
        for event in events:
            for key in (SERVER_KEY, secret):
                self.assertNotIn(key, eventAsText(event) + eventAsJSON(event))


class ReconnectTests(LinkCase):
    """
    A link that is lost is made again.
    """

    def test_atOnce(self) -> None:
        """
        A stream that is lost is followed by another one at once.
        """
        harness = self.makeLink()
        harness.network.cut()
        harness.network.pump()
        self.assertEqual([0.0, 0.0], harness.network.times)
        self.assertEqual([LinkReady, LinkLost, LinkReady], [type(event) for event in harness.observer.events])
        self.assertEqual(([0.0], 2), (harness.delays, harness.link.generation))
        self.assertEqual(
            [["made", "initialized", "lost"], ["made", "initialized"]], [h.life for h in harness.handlers]
        )

    def test_backoff(self) -> None:
        """
        Streams that are lost as soon as they are made are made again at once
        only the first time, and then with back-off, up to a minute; each try
        comes exactly when it was told.
        """
        harness = self.makeLink()
        delays = [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
        for tries, delay in enumerate(delays, 1):
            lostAt = harness.clock.seconds()
            harness.network.cut()
            if delay:
                harness.clock.advance(delay - INSTANT)
                self.assertEqual(tries, len(harness.network.times))
                harness.clock.advance(INSTANT)
            self.assertEqual(
                [tries + 1, lostAt + delay], [len(harness.network.times), harness.clock.seconds()]
            )
            harness.network.pump()
        self.assertEqual((delays, 10), (harness.delays, harness.link.generation))

    def test_stable(self) -> None:
        """
        A stream that held for a minute wipes the slate clean; one that held
        for less does not.
        """
        harness = self.makeLink()
        for held in (0, 0, 60 - INSTANT, 60, 0, 0):
            harness.network.advance(held)
            harness.network.cut()
            harness.clock.advance(harness.delays[-1])
            harness.network.pump()
        self.assertEqual([0.0, 1.0, 2.0, 0.0, 0.0, 1.0], harness.delays)

    def test_jitter(self) -> None:
        """
        The jitter takes off up to half of each delay.
        """
        clock = Clock()
        network = TimedNetwork(clock, RawServerFactory())
        network.refuse = True
        harness = self.makeLink(endpoint=network, random=lambda: 1.0)
        harness.clock.pump([0.5, 1.0])
        self.assertEqual([0.5, 1.0], harness.delays[:2])

    def test_refusedConnects(self) -> None:
        """
        A server that cannot be reached is tried with back-off, for ever.
        """
        harness = self.makeLink()
        harness.network.advance(60)
        harness.network.refuse = True
        harness.network.cut()
        delays = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
        harness.clock.pump(delays[:-1])
        self.assertEqual([0.0, *delays], harness.delays)
        self.assertEqual(
            {"connection refused: nothing listens there"}, {reason for reason, _ in harness.lost[1:]}
        )
        harness.network.refuse = False
        harness.clock.advance(60)
        harness.network.pump()
        self.assertEqual((2, 1), (harness.link.generation, harness.network.connections))

    def test_log(self) -> None:
        """
        Every loss and every failed try is one line in the log that says why,
        and what happens next.
        """
        harness = self.makeLink()
        harness.network.refuse = True
        with capturedLogs() as events:
            harness.network.cut()
        self.assertEqual([LogLevel.warn] * 2, [event["log_level"] for event in events])
        for event, (reason, delay) in zip(events, harness.lost, strict=True):
            self.assertIn(f"{reason}; next try in {delay:.1f} s", text(event))
            self.assertNotIn("\n", text(event))

    def test_closedInOrder(self) -> None:
        """
        A server that ends the stream in order is answered in kind, and said to
        have closed it.
        """
        harness, factory = self.makeRaw()
        self.bound(harness, factory.servers[0])
        self.assertEqual(b"</stream:stream>", self.say(harness, factory.servers[0], b"</stream:stream>"))
        self.assertTrue(factory.servers[0].closed)
        self.assertEqual([("closed by the server", 0.0)], harness.lost)

    def test_closed(self) -> None:
        """
        So is one that just closes the connection.
        """
        harness, factory = self.makeRaw()
        self.bound(harness, factory.servers[0])
        factory.servers[0].transport.loseConnection()
        harness.network.pump()
        self.assertEqual([("closed by the server", 0.0)], harness.lost)

    def test_broken(self) -> None:
        """
        A connection that breaks is said to have broken.
        """
        harness, factory = self.makeRaw()
        self.bound(harness, factory.servers[0])
        factory.servers[0].transport.disconnectReason = CONNECTION_LOST
        harness.handlers[0].stream.transport.disconnectReason = CONNECTION_LOST
        factory.servers[0].transport.loseConnection()
        harness.network.pump()
        self.assertEqual([("the connection broke", 0.0)], harness.lost)

    def test_streamError(self) -> None:
        """
        A stream error ends that stream, and is said to have; the next one is
        made.
        """
        harness, factory = self.makeRaw()
        self.bound(harness, factory.servers[0])
        self.say(
            harness,
            factory.servers[0],
            b'<stream:error><system-shutdown xmlns="urn:ietf:params:xml:ns:xmpp-streams"/></stream:error>',
        )
        self.assertEqual([("the server ended the stream with an error: system-shutdown", 0.0)], harness.lost)
        self.assertEqual((True, 2), (factory.servers[0].closed, len(factory.servers)))

    def test_notWellFormed(self) -> None:
        """
        A server that sends what is no XML is told so, and left.
        """
        harness, factory = self.makeRaw()
        self.bound(harness, factory.servers[0])
        answer = self.say(harness, factory.servers[0], b"<message><</message>")
        self.assertIn(b"<not-well-formed ", answer)
        self.assertTrue(answer.endswith(b"</stream:stream>"))
        ((reason, delay),) = harness.lost
        self.assertTrue(reason.startswith("the server sent what is not allowed in an XMPP stream"), reason)
        self.assertEqual(0.0, delay)

    def test_handlersAffairsFirst(self) -> None:
        """
        By the time that the loss is told, the handler of the lost stream has
        been told and that of the next one is not made.
        """
        seen: list[tuple[list[list[str]], type]] = []
        harness = self.makeLink()
        harness.link._observe = lambda event: seen.append(
            ([list(h.life) for h in harness.handlers], type(event))
        )
        harness.network.cut()
        self.assertEqual([([["made", "initialized", "lost"]], LinkLost)], seen)

    def test_withoutObserver(self) -> None:
        """
        Whoever wants to be told nothing passes no observer.
        """
        clock = Clock()
        script = ScriptedConnectionServer()
        network = TimedNetwork(clock, script.factory(clock))
        credentials = Credentials(SENDER_ID, SERVER_KEY)
        link = Link(network, credentials, NotingHandler, clock, lambda: 0.0)
        link.start()
        network.pump()
        network.cut()
        network.pump()
        self.assertEqual((2, 1), (link.generation, len(script.streams)))
        stopped = link.stop()
        network.pump()
        self.successResultOf(stopped)


class DeadlineTests(LinkCase):
    """
    A login has thirty seconds from the connecting to the session.
    """

    REASON = "no login within 30 seconds"

    def test_silentServer(self) -> None:
        """
        A server that takes the connection and says nothing is left after that
        time, without a socket, and tried again.
        """
        harness, factory = self.makeRaw()
        harness.network.advance(30 - INSTANT)
        self.assertEqual(([], 1), (harness.lost, harness.network.connections))
        harness.network.advance(INSTANT)
        self.assertEqual(([(self.REASON, 1.0)], 0), (harness.lost, harness.network.connections))
        harness.network.advance(1)
        self.assertEqual([0.0, 31.0], harness.network.times)
        self.assertEqual([True, False], [server.closed for server in factory.servers])

    def test_connecting(self) -> None:
        """
        Connecting is given up after that time, too.
        """
        endpoint = NeverConnects()
        harness = self.makeLink(endpoint=endpoint)
        harness.clock.advance(30 - INSTANT)
        self.assertEqual([], endpoint.cancelled)
        harness.clock.advance(INSTANT)
        self.assertEqual((1, [(self.REASON, 1.0)]), (len(endpoint.cancelled), harness.lost))

    def test_everyStep(self) -> None:
        """
        It does not matter at which step the server falls silent, nor that it
        had said something shortly before.
        """
        steps = [
            HEADER,
            PLAIN,
            SUCCESS,
            HEADER,
            features(BIND, SESSION),
            b" ",
        ]
        for said in range(len(steps)):
            harness, factory = self.makeRaw()
            for step in steps[:said]:
                harness.network.advance(4)
                self.say(harness, factory.servers[0], step)
            harness.network.advance(30 - 4 * said - INSTANT)
            self.assertEqual([], harness.lost)
            harness.network.advance(INSTANT)
            self.assertEqual(([(self.REASON, 1.0)], 0), (harness.lost, harness.network.connections))

    def test_madeInTime(self) -> None:
        """
        Once the link is ready the deadline means nothing, and no timer of it
        is left.
        """
        harness = self.makeLink()
        self.assertEqual(1, harness.link.generation)
        self.assertEqual([], [call for call in harness.clock.getDelayedCalls() if "cancel" in str(call.func)])
        harness.network.advance(31)
        self.assertEqual([LinkReady(1, 1)], harness.observer.events)

    def test_backoff(self) -> None:
        """
        Servers that say nothing are tried with the same back-off as servers
        that are not there.
        """
        harness, _ = self.makeRaw()
        harness.network.advance(100)
        self.assertEqual([0.0, 31.0, 63.0, 97.0], harness.network.times)
        self.assertEqual(1, harness.network.connections)


class RefusedLoginTests(LinkCase):
    """
    A refused login is tried again: it neither spins nor gives up.
    """

    def refuse(self, condition: bytes = b"<not-authorized/>") -> tuple[Harness, RawServerFactory]:
        """
        Start a link that a server refuses, each time at once.
        """
        factory = RawServerFactory()

        def onConnect(server: RawServer) -> None:
            server.transport.write(
                HEADER + PLAIN + b'<failure xmlns="%b">%b</failure>' % (NS_SASL, condition)
            )

        factory.onConnect = onConnect
        return self.makeLink(factory), factory

    def test_schedule(self) -> None:
        """
        Three spaced tries, then one every five minutes, for ever; no socket
        is open in between.
        """
        with capturedLogs() as events:
            harness, factory = self.refuse()
            for _ in range(4 * 300):
                self.assertEqual(0, harness.network.connections)
                harness.network.advance(1)
        self.assertEqual([0.0, 10.0, 30.0, 330.0, 630.0, 930.0], harness.network.times)
        self.assertEqual([10.0, 20.0, 300.0, 300.0, 300.0, 300.0], harness.delays)
        reason = "login refused (not-authorized): check the sender ID and the server key"
        self.assertEqual({reason}, {said for said, _ in harness.lost})
        errors = [text(event) for event in events if event["log_level"] is LogLevel.error]
        self.assertEqual(6, len(errors))
        self.assertIn(f"{reason}; next try in 10.0 s", errors[0])
        self.assertTrue(all(server.closed for server in factory.servers))

    def test_jitter(self) -> None:
        """
        The spaced tries have jitter; the five minutes have none.
        """
        clock = Clock()
        factory = RawServerFactory()
        factory.onConnect = lambda server: server.transport.write(HEADER + PLAIN + REFUSED)
        harness = self.makeLink(endpoint=TimedNetwork(clock, factory), random=lambda: 1.0)
        harness.clock.advance(0)
        harness.network.clock = harness.clock
        harness.network.pump()
        for delay in (5.0, 10.0):
            harness.clock.advance(delay)
            harness.network.pump()
        self.assertEqual([5.0, 10.0, 300.0], harness.delays)

    def test_conditions(self) -> None:
        """
        The condition is told, whichever it is, and that there was none.
        """
        for condition, told in (
            (b"<temporary-auth-failure/>", "temporary-auth-failure"),
            (b"<account-disabled/><text>no</text>", "account-disabled"),
            (b"", "no reason given"),
        ):
            harness, _ = self.refuse(condition)
            self.assertEqual(
                [(f"login refused ({told}): check the sender ID and the server key", 10.0)], harness.lost
            )

    def test_acceptedLater(self) -> None:
        """
        A login that succeeds wipes the slate clean.
        """
        harness, factory = self.refuse()
        harness.network.advance(10)
        self.assertEqual([10.0, 20.0], harness.delays)
        factory.onConnect = lambda server: None
        harness.network.advance(20)
        self.bound(harness, factory.servers[-1])
        self.assertEqual(1, harness.link.generation)
        factory.onConnect = lambda server: server.transport.write(HEADER + PLAIN + REFUSED)
        harness.network.cut()
        harness.network.pump()
        self.assertEqual([10.0, 20.0, 0.0, 10.0], harness.delays)

    def test_countsApart(self) -> None:
        """
        A server that cannot be reached in between does not hide that the
        login is refused.
        """
        harness, _ = self.refuse()
        harness.network.refuse = True
        harness.network.advance(10)
        harness.network.refuse = False
        harness.network.advance(1)
        harness.network.advance(20)
        self.assertEqual([10.0, 1.0, 20.0, 300.0], harness.delays)

    def test_byTheRealServer(self) -> None:
        """
        The connection server of this package refuses a wrong key in a way that
        the link understands.
        """
        clock = Clock()
        script = ScriptedConnectionServer()
        script.registry.letIn = False
        harness = Harness(TimedNetwork(clock, script.factory(clock)), clock, lambda: 0.0)
        self.addCleanup(self.assertStops, harness)
        harness.link.start()
        harness.network.pump()
        harness.network.advance(1)
        self.assertEqual(
            ["login refused (not-authorized): check the sender ID and the server key"],
            [reason for reason, _ in harness.lost],
        )
        script.registry.letIn = True
        harness.network.advance(10)
        self.assertEqual(1, harness.link.generation)


class TroubleTests(LinkCase):
    """
    Whatever else answers at the server's address costs a line and a delay.
    """

    def trouble(self, said: bytes, close: bool = False) -> str:
        """
        Have a server say something in place of its header.

        @return: what the link says about it.
        """
        harness, factory = self.makeRaw()
        server = factory.servers[0]
        server.transport.write(said)
        if close:
            server.transport.loseConnection()
        harness.network.pump()
        self.assertEqual((True, 0), (server.closed, harness.network.connections))
        ((reason, delay),) = harness.lost
        self.assertEqual(1.0, delay)
        self.assertNotIn("\n", reason)
        return reason

    def test_closesWithoutAWord(self) -> None:
        """
        A server that closes the connection without a word may want TLS, or
        speak no XMPP.
        """
        self.assertIn("without a word", self.trouble(b"", close=True))

    def test_closesAfterTheHeader(self) -> None:
        """
        A server that closes the connection later has closed it.
        """
        self.assertNotIn("without a word", self.trouble(HEADER + PLAIN, close=True))

    def test_http(self) -> None:
        """
        A web server does not speak XMPP.
        """
        self.assertIn("the server does not speak XMPP", self.trouble(b"HTTP/1.1 400 Bad Request\r\n\r\n"))

    def test_streamError(self) -> None:
        """
        A stream error in place of the features is told.
        """
        reason = self.trouble(
            HEADER
            + b'<stream:error><host-unknown xmlns="urn:ietf:params:xml:ns:xmpp-streams"/></stream:error>'
        )
        self.assertEqual("the server ended the stream with an error: host-unknown", reason)

    def test_messageBeforeTheLogin(self) -> None:
        """
        A message before the login is complete is not taken.
        """
        reason = self.trouble(HEADER + b'<message><gcm xmlns="google:mobile:data">{}</gcm></message>')
        self.assertIn("a message before the login was complete", reason)


class StopTests(LinkCase):
    """
    A link may be stopped at any moment, and leaves nothing behind.
    """

    def test_neverStarted(self) -> None:
        """
        A link that was never started is stopped.
        """
        clock = Clock()
        harness = Harness(NeverConnects(), clock, lambda: 0.0)
        self.successResultOf(harness.link.stop())
        self.assertEqual([], clock.getDelayedCalls())

    def assertStopsNow(self, harness: Harness) -> None:
        """
        Assert that a link stops, without any time passing, for good and
        without a word about a loss.
        """
        attempts = len(harness.handlers)
        before = list(harness.observer.events)
        with capturedLogs() as events:
            self.assertStops(harness)
            harness.clock.advance(1000)
        self.assertEqual((attempts, before), (len(harness.handlers), harness.observer.events))
        self.assertEqual([], events)

    def test_connecting(self) -> None:
        """
        Stopped while connecting, it gives that up.
        """
        endpoint = NeverConnects()
        harness = self.makeLink(endpoint=endpoint)
        self.assertStopsNow(harness)
        self.assertEqual(1, len(endpoint.cancelled))

    def test_loggingIn(self) -> None:
        """
        Stopped at any step of the login, it drops the connection.
        """
        steps = [HEADER, PLAIN, SUCCESS, HEADER, features(BIND, SESSION)]
        for said in range(len(steps) + 1):
            harness, factory = self.makeRaw()
            for step in steps[:said]:
                self.say(harness, factory.servers[0], step)
            self.assertStopsNow(harness)
            self.assertTrue(factory.servers[0].closed)

    def test_givingUpALogin(self) -> None:
        """
        Stopped when the login has been refused and the connection is not gone
        yet, it waits for that.
        """
        harness, _ = self.makeRaw()
        # Not pumped, so that the end of the connection is still under way.
        harness.handlers[0].stream.dataReceived(HEADER + PLAIN + REFUSED)
        self.assertEqual(([], 1), (harness.lost, harness.network.connections))
        stopped = harness.link.stop()
        self.assertNoResult(stopped)
        harness.network.pump()
        self.successResultOf(stopped)
        self.assertEqual([], harness.clock.getDelayedCalls())

    def test_waiting(self) -> None:
        """
        Stopped between two tries, it makes no other.
        """
        clock = Clock()
        network = TimedNetwork(clock, RawServerFactory())
        network.refuse = True
        harness = self.makeLink(endpoint=network)
        self.assertEqual(1, len(harness.lost))
        self.assertStopsNow(harness)

    def test_waitingAfterRefusal(self) -> None:
        """
        So it does in the long pauses after refused logins.
        """
        harness, factory = self.makeRaw()
        self.say(harness, factory.servers[0], HEADER + PLAIN + REFUSED)
        self.assertEqual([10.0], harness.delays)
        self.assertStopsNow(harness)

    def test_loggedIn(self) -> None:
        """
        Stopped while logged in, it ends the stream in order.
        """
        harness, factory = self.makeRaw()
        (server,) = factory.servers
        self.bound(harness, server)
        server.received = b""
        self.assertStopsNow(harness)
        self.assertEqual((b"</stream:stream>", True), (server.received, server.closed))
        self.assertEqual(["made", "initialized", "lost"], harness.handlers[0].life)

    def test_afterReconnect(self) -> None:
        """
        So it does with a later stream.
        """
        harness = self.makeLink()
        harness.network.cut()
        harness.network.pump()
        self.assertStopsNow(harness)

    def test_whileTheServerCloses(self) -> None:
        """
        Stopped while the server is ending the stream, it makes no other.
        """
        harness, factory = self.makeRaw()
        self.bound(harness, factory.servers[0])
        factory.servers[0].transport.write(b"</stream:stream>")
        factory.servers[0].transport.loseConnection()
        self.assertStopsNow(harness)
        self.assertEqual(1, len(factory.servers))

    def test_deadlinePassesMeanwhile(self) -> None:
        """
        A login that is over its time while the stop waits for the end of the
        connection changes nothing.
        """
        harness, _ = self.makeRaw()
        stopped = harness.link.stop()
        self.assertNoResult(stopped)
        harness.clock.advance(60)
        harness.network.pump()
        self.successResultOf(stopped)
        self.assertEqual([], harness.observer.events)

    def test_twice(self) -> None:
        """
        It may be stopped twice, and both are told the end.
        """
        harness = self.makeLink()
        first, second = harness.link.stop(), harness.link.stop()
        self.assertNoResult(first)
        self.assertNoResult(second)
        harness.network.pump()
        self.successResultOf(first)
        self.successResultOf(second)
        self.successResultOf(harness.link.stop())

    def test_byTheObserver(self) -> None:
        """
        Whoever is told anything of the link may stop it.
        """
        for kind in (LinkReady, LinkLost, LinkDraining, LinkDrained):
            for refuse in (False, True) if kind is LinkLost else (False,):
                clock = Clock()
                network = TimedNetwork(clock, ScriptedConnectionServer().factory(clock))
                network.refuse = refuse
                harness = Harness(network, clock, lambda: 0.0)
                stopped: list[Deferred[None]] = []

                def observe(
                    event: object,
                    kind: type = kind,
                    harness: Harness = harness,
                    stopped: list[Deferred[None]] = stopped,
                ) -> None:
                    if isinstance(event, kind):
                        stopped.append(harness.link.stop())

                harness.link._observe = observe
                harness.link.start()
                network.pump()
                if kind in (LinkDraining, LinkDrained):
                    harness.drain()
                    network.pump()
                if kind is LinkDrained:
                    harness.handlers[0].stream.close()
                elif kind is not LinkDraining:
                    network.cut()
                network.pump()
                self.successResultOf(stopped[0])
                self.assertEqual([], clock.getDelayedCalls())
                self.assertEqual((1, 0), (len(stopped), network.connections))


class DrainTests(LinkCase):
    """
    A stream that is being drained has a successor at once, and lives on until
    the connection server closes it.
    """

    def test_overlap(self) -> None:
        """
        Both are there side by side; when the connection server closes the old
        one, that is the end of it, and no loss.
        """
        harness = self.makeLink()
        harness.network.advance(HASTY)
        harness.drain()
        harness.network.pump()
        self.assertEqual(([0.0, HASTY], 2), (harness.network.times, harness.network.connections))
        self.assertEqual([["made", "initialized"]] * 2, [handler.life for handler in harness.handlers])
        ready = [LinkReady(1, 1), LinkDraining(1, 1), LinkReady(1, 2)]
        self.assertEqual(ready, harness.observer.events)
        harness.handlers[0].stream.close()
        harness.network.pump()
        harness.network.advance(120)
        self.assertEqual([*ready, LinkDrained(1, 1)], harness.observer.events)
        self.assertEqual((2, 1), (harness.network.attempts, harness.network.connections))
        self.assertEqual(["made", "initialized", "lost"], harness.handlers[0].life)

    def test_noBackoff(self) -> None:
        """
        However often a stream that is older than a second is drained, its
        successor comes at once.
        """
        harness = self.makeLink()
        for _ in range(3 * MAX_DRAINING):
            harness.network.advance(HASTY)
            harness.drain()
            harness.network.pump()
        self.assertEqual([n * HASTY for n in range(3 * MAX_DRAINING + 1)], harness.network.times)
        self.assertEqual(3 * MAX_DRAINING + 1, harness.link.generation)
        self.assertEqual([], harness.observer.of(LinkLost))

    def test_hasty(self) -> None:
        """
        Streams that are drained within a second of their login, again and
        again, have successors at growing distances: the first at once.
        """
        harness = self.makeLink()
        for delay in (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0):
            attempts = harness.network.attempts
            harness.network.advance(HASTY - INSTANT)
            harness.drain()
            harness.network.pump()
            if delay:
                self.assertEqual(attempts, harness.network.attempts)
                harness.network.advance(delay - INSTANT)
                self.assertEqual(attempts, harness.network.attempts, "too soon")
                harness.network.advance(INSTANT)
            self.assertEqual(attempts + 1, harness.network.attempts, "too late")
        self.assertEqual([], harness.observer.of(LinkLost))

    def test_backoffAcrossDrains(self) -> None:
        """
        A drain in good time neither adds to the failures nor wipes them out;
        one of a stream that held for long does.
        """
        harness = self.makeLink()
        for _ in range(2):
            harness.network.cut()
            harness.network.pump()
            harness.network.advance(10)
        harness.drain()
        harness.network.pump()
        harness.network.cut()
        harness.network.pump()
        self.assertEqual([0.0, 1.0, 2.0], harness.delays)
        harness.network.advance(2 + 60)
        harness.drain()
        harness.network.pump()
        harness.network.cut()
        harness.network.pump()
        self.assertEqual([0.0, 1.0, 2.0, 0.0], harness.delays)

    def test_hastyCountsAsFailure(self) -> None:
        """
        To be drained as soon as logged in and to be dropped as soon as logged
        in count together.
        """
        harness = self.makeLink()
        harness.drain()
        harness.network.pump()
        harness.network.cut()
        harness.network.pump()
        self.assertEqual([1.0], harness.delays)

    def test_dropWhileDraining(self) -> None:
        """
        A stream that breaks while it is being drained was about to go anyway.
        """
        harness = self.makeLink()
        harness.network.advance(5)
        harness.drain()
        harness.network.pump()
        harness.handlers[0].stream.abort()
        harness.network.pump()
        self.assertEqual(
            [LinkReady(1, 1), LinkDraining(1, 1), LinkReady(1, 2), LinkDrained(1, 1)], harness.observer.events
        )
        harness.network.advance(100)
        self.assertEqual((2, 1), (harness.network.attempts, harness.network.connections))

    def test_dropWhileTheSuccessorLogsIn(self) -> None:
        """
        When all breaks while the successor is logging in, another is made, and
        only one.
        """
        harness, factory = self.makeRaw()
        self.bound(harness, factory.servers[0])
        harness.network.advance(5)
        harness.drain()
        harness.network.pump()
        self.assertEqual(2, len(factory.servers))
        self.say(harness, factory.servers[1], HEADER + PLAIN)
        harness.network.cut()
        harness.network.pump()
        self.assertEqual([1.0], harness.delays)
        harness.network.advance(1)
        self.assertEqual((3, 1), (len(factory.servers), harness.network.connections))
        self.bound(harness, factory.servers[2])
        self.assertEqual(
            [LinkReady, LinkDraining, LinkDrained, LinkLost, LinkReady],
            [type(event) for event in harness.observer.events],
        )

    def test_successorRefused(self) -> None:
        """
        A successor whose login is refused is tried again as ever, and the old
        stream does not suffer by it.
        """
        harness, factory = self.makeRaw()
        self.bound(harness, factory.servers[0])
        harness.network.advance(5)
        harness.drain()
        harness.network.pump()
        self.say(harness, factory.servers[1], HEADER + PLAIN + REFUSED)
        self.assertEqual(([10.0], 1), (harness.delays, harness.network.connections))
        self.assertFalse(factory.servers[0].closed)
        harness.network.advance(10)
        self.bound(harness, factory.servers[2])
        self.assertEqual((2, 2), (harness.link.generation, harness.network.connections))

    def test_twoDrains(self) -> None:
        """
        Two drains back to back leave exactly one stream that is not drained,
        in whichever order the drained ones are closed.
        """
        for order in ([0, 1], [1, 0]):
            harness = self.makeLink()
            harness.network.advance(5)
            harness.drain()
            harness.network.pump()
            harness.drain()
            harness.network.pump()
            self.assertEqual((3, 3), (harness.network.attempts, harness.network.connections))
            for index in order:
                harness.handlers[index].stream.close()
                harness.network.pump()
            harness.network.advance(100)
            self.assertEqual((3, 1), (harness.network.attempts, harness.network.connections))
            self.assertEqual(["made", "initialized"], harness.handlers[2].life)
            self.assertEqual([LinkDrained(1, index + 1) for index in order], harness.observer.of(LinkDrained))

    def test_drainsWhileLoggingIn(self) -> None:
        """
        What an old stream says about its end a second time makes no second
        successor.
        """
        harness, factory = self.makeRaw()
        self.bound(harness, factory.servers[0])
        harness.network.advance(5)
        for _ in range(3):
            harness.drain(1)
            harness.network.pump()
        self.assertEqual((2, 1), (len(factory.servers), len(harness.observer.of(LinkDraining))))

    def test_neverClosed(self) -> None:
        """
        A connection server that announces the end of streams and never ends
        them is left with a few of them: the oldest are ended from here.
        """
        factory = RawServerFactory()
        harness = self.makeLink(factory)
        for number in range(MAX_DRAINING + 3):
            self.bound(harness, factory.servers[number])
            harness.network.advance(HASTY)
            self.assertEqual([], [server for server in factory.servers[-MAX_DRAINING - 1 :] if server.closed])
            harness.drain()
            harness.network.pump()
        old = factory.servers[:3]
        self.assertEqual([True] * 3, [server.closed for server in old])
        self.assertTrue(all(server.received.endswith(b"</stream:stream>") for server in old))
        self.assertEqual([LinkDrained(1, number) for number in (1, 2, 3)], harness.observer.of(LinkDrained))
        self.assertEqual(MAX_DRAINING + 1, harness.network.connections)

    def test_neverClosedAndDeaf(self) -> None:
        """
        So are they if nothing comes through to it any more.
        """
        harness = self.makeLink()
        for _ in range(MAX_DRAINING):
            harness.network.advance(HASTY)
            harness.drain()
            harness.network.pump()
        harness.network.advance(HASTY)
        harness.network.silent = True
        harness.drain()
        harness.network.pump()
        self.assertEqual([], harness.observer.of(LinkDrained))
        harness.network.advance(CLOSE_PATIENCE)
        self.assertEqual([LinkDrained(1, 1)], harness.observer.of(LinkDrained))
        harness.network.silent = False

    def test_stop(self) -> None:
        """
        A stop ends those that are being drained, too, in order.
        """
        harness, factory = self.makeRaw()
        for number in range(4):
            self.bound(harness, factory.servers[number])
            harness.network.advance(5)
            if number < 3:
                harness.drain()
                harness.network.pump()
        for server in factory.servers:
            server.received = b""
        self.assertStops(harness)
        self.assertEqual([b"</stream:stream>"] * 4, [server.received for server in factory.servers])
        self.assertEqual([True] * 4, [server.closed for server in factory.servers])

    def test_stopAllAtOnce(self) -> None:
        """
        A stop takes no longer for many streams whose peers do not let them go
        than for one.
        """
        harness = self.makeLink()
        for _ in range(3):
            harness.network.advance(5)
            harness.drain()
            harness.network.pump()
        harness.network.silent = True
        stopped = harness.link.stop()
        harness.network.advance(CLOSE_PATIENCE - INSTANT)
        self.assertNoResult(stopped)
        harness.network.advance(INSTANT)
        self.successResultOf(stopped)
        # Now the other ends hear of it.
        harness.network.silent = False
        harness.network.pump()
        self.assertEqual((0, []), (harness.network.connections, harness.clock.getDelayedCalls()))

    def test_stopBetween(self) -> None:
        """
        A stop while the successor of a hasty drain is waited for, or is
        logging in, ends what there is.
        """
        for successor in (False, True):
            harness, factory = self.makeRaw()
            self.bound(harness, factory.servers[0])
            if successor:
                harness.network.advance(5)
            else:
                harness.drain()
                harness.network.pump()
                self.bound(harness, factory.servers[1])
            harness.drain()
            harness.network.pump()
            self.assertEqual(2, len(factory.servers))
            self.assertStops(harness)
            harness.clock.advance(100)
            self.assertEqual([True, True], [server.closed for server in factory.servers])

    def test_log(self) -> None:
        """
        The log says which stream of which link to which server that is.
        """
        clock = Clock()
        network = TimedNetwork(clock, ScriptedConnectionServer().factory(clock))
        handlers: list[NotingHandler] = []

        def makeHandler(drained: Callable[[], None]) -> NotingHandler:
            handlers.append(NotingHandler(drained))
            return handlers[-1]

        credentials = Credentials(SENDER_ID, SERVER_KEY)
        link = Link(network, credentials, makeHandler, clock, lambda: 0.0, None, 7, "push.example.org:5235")
        with capturedLogs() as events:
            link.start()
            network.pump()
            network.advance(5)
            handlers[0].drained()
            network.pump()
            handlers[1].drained()
            network.pump()
            handlers[0].stream.close()
            network.pump()
            network.refuse = True
            network.cut()
            stopped = link.stop()
            network.pump()
        self.successResultOf(stopped)
        about = "link 7 to push.example.org:5235"
        self.assertEqual(
            [
                f"{about} is logged in",
                f"{about}: stream 1 is being drained; the next comes in 0.0 s",
                f"{about} is logged in",
                f"{about}: stream 2 is being drained; the next comes in 0.0 s",
                f"{about} is logged in",
                f"{about}: drained stream 1 is closed",
                f"{about}: drained stream 2 is closed",
                f"{about} is lost: the connection broke; next try in 1.0 s",
            ],
            [text(event) for event in events],
        )


class NothingSharedTests(LinkCase):
    """
    One stream has one factory, one authenticator, one stream manager and one
    handler.
    """

    def parts(self, handler: NotingHandler) -> list[object]:
        """
        What belongs to the stream of this handler.
        """
        stream = handler.stream
        return [handler, self.manager(handler), stream, stream.factory, stream.authenticator]

    def manager(self, handler: NotingHandler) -> StreamManager:
        """
        The stream manager of this handler, which is told of its stream.
        """
        told = {observer.__self__ for _, observer in handler.stream.factory.bootstraps}
        (manager,) = [one for one in told if isinstance(one, StreamManager)]
        return manager

    def test_generations(self) -> None:
        """
        The streams of one link share none of these.
        """
        harness = self.makeLink()
        for _ in range(3):
            harness.network.cut()
            harness.network.pump()
            harness.network.advance(60)
        parts = [part for handler in harness.handlers for part in self.parts(handler)]
        self.assertEqual((4, 20), (len(harness.handlers), len({id(part) for part in parts})))

    def test_links(self) -> None:
        """
        Two links whose logins overlap share none of these, and neither gets
        what is said to the other.
        """
        factory = RawServerFactory()
        first, second = self.makeLink(factory), self.makeLink(factory)
        one, two = factory.servers
        iqs = []
        for harness, server in ((first, one), (second, two)):
            self.say(harness, server, HEADER + PLAIN)
        for harness, server in ((second, two), (first, one)):
            self.say(harness, server, SUCCESS)
        for harness, server in ((first, one), (second, two)):
            iqs.append(self.iqID(self.say(harness, server, HEADER + features(BIND))))
        self.say(second, two, b'<iq type="result" id="%b"/>' % iqs[1])
        self.assertEqual((0, 1), (first.link.generation, second.link.generation))
        self.assertEqual(["made"], first.handlers[0].life)
        self.say(first, one, b'<iq type="result" id="%b"/>' % iqs[0])
        self.assertEqual((1, 1), (first.link.generation, second.link.generation))
        parts = self.parts(first.handlers[0]) + self.parts(second.handlers[0])
        self.assertEqual(10, len({id(part) for part in parts}))
        for harness in (first, second):
            handler = harness.handlers[0]
            self.assertIs(handler.stream, handler.stream.authenticator.xmlstream)
            self.assertIs(handler.stream, self.manager(handler).xmlstream)
            self.assertEqual([handler], list(self.manager(handler)))


class DescribeTests(SynchronousTestCase):
    """
    L{describe} says in one line why there is no connection, and what to look
    at.
    """

    def test_own(self) -> None:
        """
        Errors of this package speak for themselves.
        """
        for error in (
            LoginRefused("not-authorized"),
            LoginTimedOut("no login within 30 seconds"),
            StreamLost("closed"),
        ):
            self.assertEqual(str(error), describe(error))

    def test_table(self) -> None:
        """
        Each kind of trouble has words of its own.
        """
        for error, said in (
            (ConnectionRefusedError("111"), "connection refused: nothing listens there"),
            (DNSLookupError("no results"), "no such host: check the host in the endpoint"),
            (TimeoutError(), "the server did not answer in time"),
            (
                VerificationError(errors=[]),
                "the server's certificate is for another host name: check the host in the endpoint",
            ),
            (
                SSL.Error([("SSL routines", "", "certificate verify failed")]),
                "the server's certificate is not trusted: trustRoots has to name the directory of its CA",
            ),
            (
                SSL.Error([("SSL routines", "", "wrong version number")]),
                "the server does not speak TLS on this port",
            ),
            (
                SSL.Error([("SSL routines", "", "no protocols available")]),
                "TLS failed: no protocols available",
            ),
            (SSL.Error([]), "TLS failed: no reason given"),
            (SSL.Error(), "TLS failed: no reason given"),
            (StreamError("policy-violation"), "the server ended the stream with an error: policy-violation"),
            (
                domish.ParserError("syntax error: line 1"),
                "the server does not speak XMPP: syntax error: line 1",
            ),
            (CONNECTION_DONE, "closed by the server"),
            (ConnectionDone(), "closed by the server"),
            (CONNECTION_LOST, "the connection broke"),
            (ConnectionLost(), "the connection broke"),
            (ValueError("what the library says"), "what the library says"),
            (ValueError(), "ValueError"),
        ):
            self.assertEqual(said, describe(error))

    def test_oneLine(self) -> None:
        """
        What a library says in several lines is said in one.
        """
        self.assertNotIn("\n", describe(ConnectBindError("one\ntwo")))
        self.assertNotIn("\n", describe(ValueError("one\r\ntwo")))
