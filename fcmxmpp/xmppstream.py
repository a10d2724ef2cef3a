"""
The XMPP stream that both ends of a connection share: what twisted.words has,
with our element stream, with bounded endings, and with one write for all the
answers to one piece of input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IConsumer, IDelayedCall, IPushProducer, IReactorTime, ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.words.protocols.jabber import xmlstream
from twisted.words.protocols.jabber.error import StreamError, exceptionFromStreamError
from twisted.words.xish import domish
from zope.interface import implementer

from fcmxmpp.elementstream import GCMStanza, StanzaElementStream, StreamRefused


__all__ = ["CLOSE_PATIENCE", "GCMStream"]

#: How long a stream that is being closed may take for it, in seconds.
CLOSE_PATIENCE = 10.0
#: How many bytes of answers may pile up for a peer that sends and does not read
#: them; beyond that the connection is dropped.
MAX_PILED_UP = 4 * 1024 * 1024


class IStreamTransport(ITCPTransport, IConsumer):
    """
    What a stream runs on; TLS over TCP, or what a test puts in its place.
    """


@implementer(IPushProducer)
class GCMStream(xmlstream.XmlStream):
    """
    One XMPP stream, at either end.

    @ivar onBytes: is called when any bytes came.
    @ivar onRead: is called when they have been read; what it writes goes out
        with the answers to them.
    @ivar onRoom: is called when L{full} ends.
    @ivar closing: whether this end of the stream has been ended.
    @ivar full: whether the peer reads so slowly that nothing more should be
        written that can wait or go another way.
    @ivar clock: for the timers of twisted.words, which would take the global
        reactor.
    @ivar malformedCondition: the stream error for what is not well-formed.
    """

    malformedCondition = "not-well-formed"

    #: The parser; None once the stream is listened to no more.
    stream: StanzaElementStream | None
    transport: IStreamTransport

    def __init__(self, authenticator: xmlstream.Authenticator, clock: IReactorTime) -> None:
        super().__init__(authenticator)
        self.clock = clock
        self._onGCM: Callable[[GCMStanza], None] = self._unauthorized
        self.onBytes: Callable[[], None] = lambda: None
        self.onRead: Callable[[], None] = lambda: None
        self.onRoom: Callable[[], None] = lambda: None
        self.full = False
        self._notesFull = False
        # Bytes written while it was full.
        self._piledUp = 0
        self._gathered: list[bytes] | None = None
        self.closing = False
        self._closing: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """
        There is a connection.
        """
        if ITCPTransport.providedBy(self.transport):
            # Otherwise TCP keeps a small write back until the peer's system has
            # confirmed the one before, which that may put off for 40 ms.
            self.transport.setTcpNoDelay(True)
        super().connectionMade()

    def _initializeStream(self) -> None:
        """
        Set up the parser: for the connection, and again after SASL.
        """
        self.stream = StanzaElementStream()
        self.stream.DocumentStartEvent = self.onDocumentStart
        self.stream.ElementEvent = self.onElement
        self.stream.DocumentEndEvent = self.onDocumentEnd
        self.stream.GCMEvent = self._onGCM

    @property
    def onGCM(self) -> Callable[[GCMStanza], None]:
        """
        What is called with every L{GCMStanza}; none is expected before the
        login is complete.
        """
        return self._onGCM

    @onGCM.setter
    def onGCM(self, called: Callable[[GCMStanza], None]) -> None:
        """
        The parser calls it, so that it costs one call a message and not two.
        """
        self._onGCM = called
        if self.stream is not None:
            self.stream.GCMEvent = called

    def _callLater(self, *args: Any, **kwargs: Any) -> Any:
        """
        For the IQ timers of twisted.words.
        """
        return self.clock.callLater(*args, **kwargs)

    def _unauthorized(self, stanza: GCMStanza) -> None:
        """
        A message came before its sender had logged in, or had let us in.
        """
        raise StreamRefused("not-authorized", "a message before the login was complete")

    def dataReceived(self, data: bytes) -> None:
        """
        Take bytes from the peer, and send the answers to them in one write.
        """
        self.onBytes()
        self._gathered = []
        try:
            try:
                if self.stream is not None:
                    self.stream.parse(data)
            except domish.ParserError as error:
                self._refuse(error)
            self.onRead()
        finally:
            gathered, self._gathered = self._gathered, None
            if gathered:
                self._writeOut(b"".join(gathered))

    def _refuse(self, error: domish.ParserError) -> None:
        """
        Answer what cannot be accepted with a stream error, and close.
        """
        condition = error.condition if isinstance(error, StreamRefused) else self.malformedCondition
        self.dispatch(Failure(error), xmlstream.STREAM_ERROR_EVENT)
        self.sendStreamError(StreamError(condition))

    def noteFull(self) -> None:
        """
        From now on know when the peer reads too slowly.
        """
        self._notesFull = True
        self.transport.registerProducer(self, True)

    def _ignoreFull(self) -> None:
        """
        Do not care any more: a transport with a producer does not close.
        """
        if self._notesFull:
            self._notesFull = False
            self.transport.unregisterProducer()

    def pauseProducing(self) -> None:
        """
        What is written piles up.
        """
        self.full = True
        self._piledUp = 0

    def resumeProducing(self) -> None:
        """
        What was written is out.
        """
        self.full = False
        self.onRoom()

    def stopProducing(self) -> None:
        """
        The connection is gone, which we are told by other means, too.
        """

    def sendStreamError(self, streamError: StreamError) -> None:
        """
        End the stream with an error.

        We are deaf from here on, though more may come before the connection
        is closed, and though more may stand in what is being parsed.
        """
        self.onGCM = lambda stanza: None
        self.stream = None
        self._ignoreFull()
        super().sendStreamError(streamError)
        self.limitClose()

    def onElement(self, element: domish.Element) -> None:
        """
        A stanza came that is no message with a payload.
        """
        if self.stream is not None:
            self.elementReceived(element)

    def elementReceived(self, element: domish.Element) -> None:
        """
        The same, while we listen: it goes to whoever has asked for it.
        """
        super().onElement(element)

    def onStreamError(self, errelem: domish.Element) -> None:
        """
        The peer ended the stream with an error: end ours.
        """
        self.dispatch(Failure(exceptionFromStreamError(errelem)), xmlstream.STREAM_ERROR_EVENT)
        self.close()

    def onDocumentEnd(self) -> None:
        """
        The peer ended its half of the stream: end ours.
        """
        self.close()

    def close(self) -> None:
        """
        End the stream in order, and by force if the peer does not let us.
        """
        if self._closing is None:
            if self._headerSent:
                self.sendFooter()
            self._ignoreFull()
            self.transport.loseConnection()
            self.limitClose()

    def limitClose(self) -> None:
        """
        Do not wait for ever for a peer that reads no more.
        """
        if self._closing is None:
            self.closing = True
            self._closing = self.clock.callLater(CLOSE_PATIENCE, self.abort)

    def abort(self) -> None:
        """
        Drop the connection, whatever is still to be sent.
        """
        self.stream = None
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        The connection is gone.
        """
        if self._closing is not None and self._closing.active():
            self._closing.cancel()
        super().connectionLost(reason)

    def send(self, obj: Any) -> None:
        """
        Send an element, text, or bytes of UTF-8.
        """
        if isinstance(obj, bytes):
            self.write(obj)
        else:
            self.flush()
            super().send(obj)

    def write(self, stanza: bytes) -> None:
        """
        Send one stanza as it is.
        """
        if self._gathered is None:
            self._writeOut(stanza)
        else:
            self._gathered.append(stanza)

    def flush(self) -> None:
        """
        Send what was gathered, so that what follows stays behind it.
        """
        if self._gathered:
            self._writeOut(b"".join(self._gathered))
            self._gathered.clear()

    def _writeOut(self, data: bytes) -> None:
        """
        Give bytes to the transport, unless its peer lets them pile up.
        """
        if self.full:
            self._piledUp += len(data)
            if self._piledUp > MAX_PILED_UP:
                self.abort()
                return
        self.transport.write(data)

    def sendFooter(self) -> None:
        """
        Send C{</stream:stream>}.
        """
        self.send(b"</stream:stream>")
        self.flush()
