"""
Tests for L{fcmxmpp.diagnosis}: what depends on how far the stream has come.

The table of plain errors is in test_connection.py, real certificates are in
test_loopback.py.
"""

from __future__ import annotations

from OpenSSL import SSL
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost, TCPTimedOutError
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase
from twisted.words.protocols.jabber.error import StreamError
from twisted.words.xish import domish

from fcmxmpp.diagnosis import describe
from fcmxmpp.login import Credentials, StreamFactory
from fcmxmpp.xmppstream import GCMStream


HEADER = (
    b'<stream:stream from="gcm.googleapis.com" id="1" version="1.0"'
    b' xmlns:stream="http://etherx.jabber.org/streams" xmlns="jabber:client">'
)


def connected(said: bytes = b"") -> GCMStream:
    """
    A stream to a server that has said this.
    """
    stream = StreamFactory(Credentials("1", "EXAMPLE-SERVER-KEY"), Clock()).buildProtocol(None)
    stream.makeConnection(StringTransport())
    stream.dataReceived(said)
    return stream


class StreamTests(SynchronousTestCase):
    """
    The same error means another thing before the server has said anything.
    """

    def test_silentServer(self) -> None:
        """
        A connection that ends before the server's header came was hung up
        without a word, however it ended.
        """
        for error in (ConnectionDone(), ConnectionLost(), ConnectionAborted()):
            self.assertEqual(
                "the server hung up without a word: is this an XMPP port, and does it want TLS?",
                describe(error, connected()),
            )

    def test_talkingServer(self) -> None:
        """
        After that it was closed or broke.
        """
        self.assertEqual("closed by the server", describe(ConnectionDone(), connected(HEADER)))
        for error in (ConnectionLost(), ConnectionAborted()):
            self.assertEqual("the connection broke", describe(error, connected(HEADER)))

    def test_notXML(self) -> None:
        """
        What is no XML means at the beginning that the server does not speak
        XMPP, and later that it sent what is not allowed.
        """
        error = domish.ParserError("syntax error")
        self.assertEqual("the server does not speak XMPP: syntax error", describe(error, connected()))
        self.assertEqual(
            "the server sent what is not allowed in an XMPP stream: syntax error",
            describe(error, connected(HEADER)),
        )

    def test_streamError(self) -> None:
        """
        A stream error is told by its condition; its text, which the server
        chose, is not.
        """
        error = StreamError("conflict", text="EXAMPLE-SERVER-KEY\nand more")
        for stream in (None, connected(HEADER)):
            self.assertEqual("the server ended the stream with an error: conflict", describe(error, stream))


class TLSTests(SynchronousTestCase):
    """
    Errors of TLS.
    """

    def test_noTLS(self) -> None:
        """
        Whatever OpenSSL calls it, when what answers speaks no TLS that is said.
        """
        for reason in (
            "wrong version number",
            "packet length too long",
            "unknown protocol",
            "http request",
            "record layer failure",
        ):
            error = SSL.Error([("SSL routines", "", "something before"), ("SSL routines", "", reason)])
            self.assertEqual("the server does not speak TLS on this port", describe(error))

    def test_manyReasons(self) -> None:
        """
        What has no words of its own is told by OpenSSL's, all of them.
        """
        error = SSL.Error([("SSL routines", "", "first"), ("SSL routines", "", "second")])
        self.assertEqual("TLS failed: first, second", describe(error))

    def test_certificateWithoutTLSTransport(self) -> None:
        """
        A refused certificate that cannot be looked at is one that is not
        trusted.
        """
        error = SSL.Error([("SSL routines", "", "certificate verify failed")])
        self.assertIn("trustRoots", describe(error, connected()))

    def test_otherErrors(self) -> None:
        """
        The errors of pyOpenSSL that carry no list of reasons have a line, too.
        """
        for error in (
            SSL.SysCallError(-1, "Unexpected EOF"),
            SSL.SysCallError(104, "ECONNRESET"),
            SSL.ZeroReturnError(),
            SSL.WantReadError(),
        ):
            self.assertRegex(describe(error, connected()), "^TLS failed: .+$")

    def test_connecting(self) -> None:
        """
        An error of the operating system is told in its own words, in one line.
        """
        said = describe(TCPTimedOutError(110, "Connection timed out"))
        self.assertIn("timed out", said)
        self.assertNotIn("\n", said)
