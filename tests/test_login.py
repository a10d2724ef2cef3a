"""
Tests for L{fcmxmpp.login}: its parts; the whole login is in test_connection.py.
"""

from __future__ import annotations

import re
from base64 import b64decode
from typing import Any

from twisted.internet import tcp, unix
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.internet.ssl import optionsForClientTLS
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.words.protocols.jabber import sasl, xmlstream
from twisted.words.protocols.jabber.error import StanzaError

from fcmxmpp.errors import LoginRefused, StreamLost
from fcmxmpp.login import Credentials, StreamFactory, loginError
from fcmxmpp.xmppstream import GCMStream


KEY = "EXAMPLE-SERVER-KEY"
NAMESPACES = b'xmlns:stream="http://etherx.jabber.org/streams" xmlns="jabber:client"'
HEADER = b'<stream:stream from="gcm.googleapis.com" id="1" version="1.0" %b>' % NAMESPACES


def offer(*mechanisms: bytes, more: bytes = b"") -> bytes:
    """
    The features of a server that offers these mechanisms.
    """
    offered = b"".join(b"<mechanism>%b</mechanism>" % mechanism for mechanism in mechanisms)
    return (
        b'<stream:features>%b<mechanisms xmlns="urn:ietf:params:xml:ns:xmpp-sasl">%b</mechanisms>'
        b"</stream:features>" % (more, offered)
    )


class Unencrypted(StringTransport):
    """
    A connection as a reactor makes it: it can be encrypted, and is not.
    """

    TLS = False
    noDelay = False

    def __init__(self, peer: IAddress) -> None:
        super().__init__(peerAddress=peer)

    def setTcpNoDelay(self, enabled: bool) -> None:
        """
        See L{ITCPTransport.setTcpNoDelay}.
        """
        self.noDelay = enabled


class CredentialsTests(SynchronousTestCase):
    """
    L{Credentials} keep their secret.
    """

    def test_texts(self) -> None:
        """
        No text that is made of them has the key in it.
        """
        credentials = Credentials("123", KEY)
        for text in (repr(credentials), str(credentials), f"{credentials}", f"{[credentials]}"):
            self.assertIn("123", text)
            self.assertNotIn(KEY, text)
        self.assertFalse(hasattr(credentials, "__dict__"))


class LoginTests(SynchronousTestCase):
    """
    What a stream says while it logs in, and what it makes of the answers.
    """

    def setUp(self) -> None:
        """
        Have a factory, and note what becomes of the login.
        """
        self.clock = Clock()
        self.factory = StreamFactory(Credentials("123", KEY), self.clock)
        self.failures: list[Failure] = []
        self.ready: list[Any] = []
        self.factory.addBootstrap(xmlstream.INIT_FAILED_EVENT, self.failures.append)
        self.factory.addBootstrap(xmlstream.STREAM_AUTHD_EVENT, self.ready.append)

    def connected(self, transport: Any = None) -> GCMStream:
        """
        A stream that has just been connected.
        """
        stream = self.factory.buildProtocol(None)
        stream.makeConnection(transport or StringTransport())
        return stream

    def said(self, stream: GCMStream, answer: bytes) -> bytes:
        """
        What the stream says to this.
        """
        transport: Any = stream.transport
        transport.clear()
        stream.dataReceived(answer)
        value: bytes = transport.value()
        return value

    def test_eachItsOwn(self) -> None:
        """
        Each stream has an authenticator of its own, and the factory knows the
        newest stream.
        """
        first, second = self.connected(), self.connected()
        self.assertIsNot(first.authenticator, second.authenticator)
        self.assertIs(first, first.authenticator.xmlstream)
        self.assertIs(second, self.factory.stream)
        self.assertIs(self.clock, second.clock)

    def test_PLAIN(self) -> None:
        """
        The header names Google's domain, and SASL PLAIN the sender ID in it
        and the key; nothing is said before the server has spoken.
        """
        stream = self.connected()
        transport: Any = stream.transport
        self.assertRegex(transport.value(), rb"^<stream:stream [^>]*to='gcm\.googleapis\.com'[^>]*>$")
        self.assertEqual(b"", self.said(stream, HEADER))
        auth = re.fullmatch(rb"<auth ([^>]*)>(.*)</auth>", self.said(stream, offer(b"PLAIN")))
        assert auth is not None
        self.assertIn(b"mechanism='PLAIN'", auth[1])
        self.assertEqual(b"\0" + b"123@gcm.googleapis.com\0" + KEY.encode(), b64decode(auth[2]))

    def test_onlyPLAIN(self) -> None:
        """
        To a server without PLAIN nothing is said at all, whatever else it
        offers; STARTTLS is not taken up, as TLS is there from the first byte.
        """
        startTLS = b'<starttls xmlns="urn:ietf:params:xml:ns:xmpp-tls"/>'
        for mechanisms in ((b"X-OAUTH2",), (b"DIGEST-MD5", b"ANONYMOUS"), (b"plain",), ()):
            self.failures.clear()
            stream = self.connected()
            self.assertEqual(b"", self.said(stream, HEADER + offer(*mechanisms, more=startTLS)), mechanisms)
            (failure,) = self.failures
            self.assertIsInstance(loginError(failure.value), LoginRefused)

    def test_exposed(self) -> None:
        """
        Over an unencrypted connection to another machine nothing is said
        after the header, whatever the server offers; the error says what to
        do, and it is not the server that has refused.
        """
        for peer in (
            IPv4Address("TCP", "192.0.2.1", 5235),
            IPv4Address("TCP", "0.0.0.0", 5235),
            IPv6Address("TCP", "2001:db8::1", 5235),
            IPv6Address("TCP", "fe80::1%eth0", 5235),
        ):
            for mechanisms in ((b"PLAIN",), (b"X-OAUTH2",)):
                self.failures.clear()
                stream = self.connected(Unencrypted(peer))
                self.assertEqual(b"", self.said(stream, HEADER + offer(*mechanisms)), peer)
                (failure,) = self.failures
                error = loginError(failure.value)
                self.assertIsInstance(error, StreamLost)
                self.assertEqual(
                    "the connection is not encrypted, and the key would go over it: use tls:", str(error)
                )

    def test_tunnel(self) -> None:
        """
        One that ends on this machine may be unencrypted: a tunnel begins there.
        """
        for peer in (
            IPv4Address("TCP", "127.0.0.1", 5235),
            IPv4Address("TCP", "127.1.2.3", 5235),
            IPv6Address("TCP", "::1", 5235),
            UNIXAddress("/run/stunnel"),
        ):
            said = self.said(self.connected(Unencrypted(peer)), HEADER + offer(b"PLAIN"))
            self.assertIn(b"<auth ", said, peer)

    def test_TLS(self) -> None:
        """
        TLS has the attributes of the connection that it is over, and is seen
        to be TLS all the same.
        """
        plain = Unencrypted(IPv4Address("TCP", "192.0.2.1", 5235))
        tls = TLSMemoryBIOFactory(optionsForClientTLS("push.example.org"), True, self.factory)
        tls.buildProtocol(None).makeConnection(plain)
        stream = self.factory.stream
        assert stream is not None
        self.assertFalse(stream.transport.TLS)
        self.assertTrue(plain.noDelay)
        written: list[bytes] = []
        self.patch(stream.transport, "write", written.append)
        stream.dataReceived(HEADER + offer(b"PLAIN"))
        self.assertEqual([], self.failures)
        self.assertTrue(written[-1].startswith(b"<auth "))

    def test_transports(self) -> None:
        """
        Twisted's own transports say of themselves that they are not encrypted,
        by the attribute that is looked at.
        """
        for kind in (tcp.Client, unix.Client):
            self.assertIs(False, kind.TLS)

    def test_from(self) -> None:
        """
        The server may name itself as it likes, by what is no JID, or not.
        """
        for name in (b"", b'from=""', b'from="a@b@c/d"', b'from="@"', b'from="gcm&#10;x"'):
            header = b'<stream:stream %b id="1" version="1.0" %b>' % (name, NAMESPACES)
            self.assertIn(b"<auth ", self.said(self.connected(), header + offer(b"PLAIN")), name)

    def test_session(self) -> None:
        """
        A session is asked for if it is offered, and the stream is ready without
        the answer; an error in answer changes nothing.
        """
        session = b'<session xmlns="urn:ietf:params:xml:ns:xmpp-session"/>'
        bind = b'<bind xmlns="urn:ietf:params:xml:ns:xmpp-bind"/>'
        for offered in (b"", session):
            self.ready.clear()
            stream = self.connected()
            self.said(stream, HEADER + offer(b"PLAIN"))
            self.said(stream, b'<success xmlns="urn:ietf:params:xml:ns:xmpp-sasl"/>')
            asked = self.said(stream, HEADER + b"<stream:features>%b%b</stream:features>" % (bind, offered))
            stanzaID = re.search(rb"id='([^']*)'", asked)
            assert stanzaID is not None
            self.assertEqual([], self.ready)
            said = self.said(
                stream,
                b"<iq type='result' id='%b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>"
                b"<jid>123@gcm.googleapis.com/1</jid></bind></iq>" % stanzaID[1],
            )
            self.assertEqual([stream], self.ready)
            self.assertEqual(session in said, offered == session)
            answer = b"<iq type='error' id='session'><error type='cancel'/></iq>"
            self.assertEqual(b"", self.said(stream, answer))
            self.assertEqual([], self.failures)
            self.assertFalse(stream.transport.disconnecting)


class LoginErrorTests(SynchronousTestCase):
    """
    L{loginError} says what a failed step means.
    """

    def test_refused(self) -> None:
        """
        What has to do with who we are is a L{LoginRefused}, so that it is
        tried again at long intervals.
        """
        for error, condition in (
            (sasl.SASLAuthError("not-authorized"), "not-authorized"),
            (sasl.SASLAuthError(), "no reason given"),
            (sasl.SASLNoAcceptableMechanism(), "the server does not offer SASL PLAIN"),
            (xmlstream.FeatureNotAdvertized(), "the server offers no login"),
        ):
            refused = loginError(error)
            assert isinstance(refused, LoginRefused)
            self.assertEqual(condition, refused.condition)

    def test_lost(self) -> None:
        """
        Everything else is a L{StreamLost}, told in one line without the text
        of an error that is not ours.
        """
        for error, said in (
            (StanzaError("conflict", text=KEY), "the server refused to bind a resource: conflict"),
            (ValueError(f"quotes {KEY}\nand more"), "the login failed: ValueError"),
            (sasl.SASLIncorrectEncodingError(), "the login failed: SASLIncorrectEncodingError"),
            (None, "the login failed: NoneType"),
        ):
            lost = loginError(error)
            self.assertIsInstance(lost, StreamLost)
            self.assertEqual(said, str(lost))
