"""
Tests of what L{fcmxmpp.xmppstream} does about a peer that reads too slowly.
What it has of twisted.words, and how it ends, is tested in test_stanza.py.
"""

from __future__ import annotations

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.words.protocols.jabber import xmlstream
from twisted.words.protocols.jabber.error import StreamError
from zope.interface.verify import verifyObject

from fcmxmpp.xmppstream import CLOSE_PATIENCE, GCMStream


class Transport(StringTransport):
    """
    A transport that, as the real ones, does not close while it has a producer;
    it says so, where those would hang.
    """

    def loseConnection(self) -> None:
        """
        Close.
        """
        assert self.producer is None, "a transport with a producer does not close"
        super().loseConnection()

    def abortConnection(self) -> None:
        """
        Drop the connection, producer or not.
        """
        self.disconnected = self.disconnecting = True


class FullTests(SynchronousTestCase):
    """
    A stream knows when its peer reads too slowly, if it is asked to.
    """

    def setUp(self) -> None:
        """
        A stream whose header has been sent.
        """
        self.clock = Clock()
        self.transport = Transport()
        self.stream = GCMStream(xmlstream.Authenticator(), self.clock)
        self.stream.namespace = "jabber:client"
        self.stream.makeConnection(self.transport)
        self.stream.sendHeader()
        self.transport.clear()
        self.room: list[bool] = []
        self.stream.onRoom = lambda: self.room.append(self.stream.full)
        self.addCleanup(self.finish)

    def finish(self) -> None:
        """
        The connection ends, and leaves nothing behind.
        """
        self.stream.connectionLost(Failure(ConnectionDone()))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_interface(self) -> None:
        """
        A stream is what transports tell of it.
        """
        verifyObject(IPushProducer, self.stream)

    def test_neverReads(self) -> None:
        """
        A peer that sends on and on, and never reads the answers, is dropped
        before they fill the memory; one that reads now and then is not.
        """
        answer = b"x" * 1024 * 1024
        self.stream.noteFull()
        for _ in range(3):
            self.stream.pauseProducing()
            for _ in range(4):
                self.stream.write(answer)
            self.stream.resumeProducing()
            self.stream.write(answer)
        self.assertFalse(self.transport.disconnecting)
        self.stream.pauseProducing()
        for _ in range(4):
            self.stream.write(answer)
        self.transport.clear()
        self.stream.write(b"x")
        self.assertEqual((True, b""), (self.transport.disconnecting, self.transport.value()))

    def test_full(self) -> None:
        """
        A stream is full from when the transport says that it is until the
        transport says that it is not, and whoever waits for that is told, each
        time.
        """
        self.stream.noteFull()
        self.assertEqual((self.stream, True), (self.transport.producer, self.transport.streaming))
        self.assertFalse(self.stream.full)
        for times in (1, 2):
            self.stream.pauseProducing()
            self.assertTrue(self.stream.full)
            self.stream.resumeProducing()
            self.assertEqual((False, [False] * times), (self.stream.full, self.room))

    def test_writesAllTheSame(self) -> None:
        """
        A full stream still takes what cannot wait.
        """
        self.stream.noteFull()
        self.stream.pauseProducing()
        self.stream.write(b"<ack/>")
        self.assertEqual(b"<ack/>", self.transport.value())

    def test_nobodyWaits(self) -> None:
        """
        Nobody need care.
        """
        stream = GCMStream(xmlstream.Authenticator(), self.clock)
        stream.makeConnection(Transport())
        stream.noteFull()
        stream.pauseProducing()
        stream.resumeProducing()
        self.assertFalse(stream.full)

    def test_close(self) -> None:
        """
        A stream that is closed does not care any more, full or not, so that
        the transport can close; by force, in the end.
        """
        for full in (False, True):
            self.setUp()
            self.stream.noteFull()
            if full:
                self.stream.pauseProducing()
            for _ in range(2):
                self.stream.close()
            self.assertIsNone(self.transport.producer)
            self.assertEqual(
                (b"</stream:stream>", True), (self.transport.value(), self.transport.disconnecting)
            )
            self.assertFalse(self.transport.disconnected)
            self.clock.advance(CLOSE_PATIENCE)
            self.assertTrue(self.transport.disconnected)

    def test_closedWithoutCaring(self) -> None:
        """
        So does one that never cared.
        """
        self.stream.close()
        self.assertTrue(self.transport.disconnecting)

    def test_streamError(self) -> None:
        """
        A stream that ends with an error, which may be in the midst of its end,
        does not care either.
        """
        for closed in (False, True):
            self.setUp()
            self.stream.noteFull()
            self.stream.pauseProducing()
            if closed:
                self.stream.close()
            self.stream.sendStreamError(StreamError("system-shutdown"))
            self.assertIsNone(self.transport.producer)
            self.assertTrue(self.transport.disconnecting)
            self.assertIn(b"<system-shutdown ", self.transport.value())

    def test_lost(self) -> None:
        """
        A connection that is lost while it is full is gone: the transport tells
        so twice, and nobody is told that there is room.
        """
        self.stream.noteFull()
        self.stream.pauseProducing()
        self.stream.stopProducing()
        self.stream.connectionLost(Failure(ConnectionDone()))
        self.assertEqual([], self.room)
