"""
The app server's end of one stream: a wokkel subprotocol handler, and the
observer that acknowledges.

L{FCMClientProtocol} is the shell around a
L{Session<fcmxmpp.session.Session>}: it turns stanzas into the session's inputs
and carries out its outputs.  It belongs to one stream for life, and never uses
C{XMPPHandler.send}, whose queue would replay ACKs on the next stream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.words.xish import domish
from wokkel.subprotocols import XMPPHandler
from zope.interface import Interface

from fcmxmpp.elementstream import GCMStanza
from fcmxmpp.errors import FCMError, MalformedPayload, Nacked, NotSendable
from fcmxmpp.interfaces import Acknowledged, AppServerEvent, IResponsible
from fcmxmpp.messages import Ack, DownstreamMessage, Nack, UpstreamAck, UpstreamMessage
from fcmxmpp.payload import decodeFromAppServer, decodeFromConnectionServer
from fcmxmpp.session import (
    Answered,
    Dead,
    Draining,
    Foreign,
    Ignored,
    Lost,
    Output,
    Overdue,
    Probe,
    Received,
    Role,
    Session,
)
from fcmxmpp.stanza import ackStanza, answerIQ, clientStanza, parseStanzaError, payloadOf
from fcmxmpp.xmppstream import GCMStream


__all__ = ["AckObserver", "FCMClientProtocol", "ISettles"]

_log = Logger()

#: How many oddities of one stream are logged.
MAX_ODDITIES = 20

_PING = b'<iq type="get" id="ping"><ping xmlns="urn:xmpp:ping"/></iq>'


class ISettles(Interface):
    """
    Whoever sends downstream messages through L{FCMClientProtocol}s, and is
    told what became of them.
    """

    def linkReady(protocol: FCMClientProtocol) -> None:
        """
        This stream is logged in and can be sent on.
        """

    def linkDraining(protocol: FCMClientProtocol) -> None:
        """
        Nothing new may be sent on this stream.
        """

    def linkHasRoom(protocol: FCMClientProtocol) -> None:
        """
        This stream has L{room<FCMClientProtocol.room>} again: messages were
        accepted, or the connection server reads or answers again.
        """

    def linkLost(protocol: FCMClientProtocol, unanswered: list[DownstreamMessage]) -> None:
        """
        This stream is gone.

        @param unanswered: what was sent on it without an answer, in the order
            it was sent.
        """

    def accepted(protocol: FCMClientProtocol, message: DownstreamMessage, ack: Ack) -> None:
        """
        The connection server accepted a message.  When all has been read that
        came with this, L{linkHasRoom} follows.
        """

    def refused(protocol: FCMClientProtocol, message: DownstreamMessage, error: Nacked) -> None:
        """
        The connection server refused a message; there is room for another.
        """

    def overdue(protocol: FCMClientProtocol, message: DownstreamMessage) -> None:
        """
        The answer to a message did not come in time.
        """


class AckObserver:
    """
    The end of every incoming message's Deferred chain, and the only code that
    acknowledges.

    It is a transparent observer: it writes the ACK to the stream that brought
    the message (or drops it, if that stream is gone; the connection server
    will deliver the message again) and passes its input through.  Each stream
    has one, which is chained onto every message together with its ACK.
    """

    __slots__ = ("_protocol",)

    def __init__(self, protocol: FCMClientProtocol) -> None:
        self._protocol = protocol

    def __call__(self, result: object, ack: UpstreamAck) -> object:
        """
        Somebody has taken responsibility for a message.
        """
        self._protocol.acknowledge(ack)
        return result


class FCMClientProtocol(XMPPHandler):  # type: ignore[misc]
    """
    The conversation with a connection server on one stream.

    @ivar session: what has been said on this stream; None before the login.
    @ivar number: which link this stream is of, from 1.
    """

    session: Session | None = None

    def __init__(
        self,
        responsible: IResponsible,
        settles: ISettles,
        clock: IReactorTime,
        observe: Callable[[AppServerEvent], None] | None = None,
        drained: Callable[[], None] = lambda: None,
        number: int = 1,
    ) -> None:
        """
        @param responsible: takes over what comes in.
        @param settles: is told what became of what was sent.
        @param observe: is told of every ACK.
        @param drained: is called when the connection server is about to close
            this stream, so that another one is needed.
        @param number: which link this stream is of, from 1.
        """
        super().__init__()
        self.number = number
        self._responsible = responsible
        self._settles = settles
        self._clock = clock
        self._observe = observe
        self._drained = drained
        self._oddities = 0
        self._stream: GCMStream | None = None
        self._timer: IDelayedCall | None = None
        self._ackObserver = AckObserver(self)
        # Whether there is more room since L{ISettles.linkHasRoom} was told.
        self._wasAcked = False

    def connectionInitialized(self) -> None:
        """
        The stream is logged in.
        """
        stream: GCMStream = self.xmlstream
        self._stream = stream
        self.session = Session(Role.APP_SERVER, self._clock.seconds())
        stream.onGCM = self._stanzaReceived
        stream.onBytes = self._bytesReceived
        stream.onRead = self._read
        stream.onRoom = lambda: self._settles.linkHasRoom(self)
        stream.addObserver("/message", self._otherMessageReceived)
        stream.addObserver("/iq", self._iqReceived)
        self._setTimer()
        stream.noteFull()
        self._settles.linkReady(self)

    def connectionLost(self, reason: Failure) -> None:
        """
        The stream is gone.
        """
        super().connectionLost(reason)
        self._stream = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.session is not None:
            self._carryOut(self.session.lost())

    # What comes in.

    def _bytesReceived(self) -> None:
        """
        Any byte is a sign of life.
        """
        assert self.session is not None
        if self.session.heard(self._clock.seconds()):
            self._settles.linkHasRoom(self)

    def _read(self) -> None:
        """
        All that came has been read.
        """
        if self._wasAcked:
            self._wasAcked = False
            self._settles.linkHasRoom(self)

    def _stanzaReceived(self, stanza: GCMStanza) -> None:
        """
        A C{<message>} with a payload came.
        """
        assert self.session is not None
        if self._stream is None:
            # It was lost over a stanza that came with this one.
            return
        if stanza.attributes.get("type") == "error":
            # Without its <error> it says neither what nor why.
            self._tellOddity("ignored a stanza error without a condition")
            return
        try:
            message = decodeFromConnectionServer(stanza.text)
        except MalformedPayload as error:
            self._malformed(error, stanza.text)
            return
        # What there is most of is done at once; the session says the same of it,
        # in a microsecond more.
        if type(message) is UpstreamMessage:
            self._chain(self._responsible.take(message), message.ack())
        elif type(message) is Ack:
            sent = self.session.take(message.message_id)
            if sent is None:
                self._foreign(Foreign(message))
            else:
                assert isinstance(sent, DownstreamMessage)
                # Of a hundred ACKs that come at once, the last is soon enough.
                self._wasAcked = True
                self._settles.accepted(self, sent, message)
        else:
            self._carryOut(self.session.receive(message))

    def _malformed(self, error: MalformedPayload, text: str) -> None:
        """
        A payload came that is no message; put it aside if it has a name.
        """
        if error.message_id is None or error.from_ is None:
            self._responsible.discard(error)
            return
        ack = UpstreamAck(to=error.from_, message_id=error.message_id)
        self._chain(self._responsible.takeMalformed(error, text), ack)

    def _otherMessageReceived(self, element: domish.Element) -> None:
        """
        A C{<message>} that is more, or less, than a payload.
        """
        error = parseStanzaError(element)
        if error is None:
            stanza = payloadOf(element)
            if stanza is None:
                self._tellOddity("ignored a message stanza without a payload of this protocol")
            else:
                self._stanzaReceived(stanza)
            return
        self._tellOddity(
            f"the connection server answered with a stanza error: {error.code} {error.condition}"
        )
        if error.code != 400 and error.condition != "bad-request":
            # 406: an ACK of ours that came too late; it will be redelivered.
            return
        message_id = error.stanzaID
        if error.text is not None:
            try:
                echoed = decodeFromAppServer(error.text)
                message_id = echoed.message_id if isinstance(echoed, DownstreamMessage) else None
            except MalformedPayload as malformed:
                message_id = malformed.message_id or message_id
        assert self.session is not None
        message = self.session.take(message_id) if message_id else None
        if isinstance(message, DownstreamMessage) and message_id is not None:
            self._settles.refused(self, message, Nacked("BAD_REQUEST", message_id))

    def _iqReceived(self, element: domish.Element) -> None:
        """
        An IQ came: the answer to our ping, or a request.
        """
        answer = answerIQ(element)
        if answer is not None:
            self._write(answer)

    # What is to be done.

    def _carryOut(self, outputs: list[Output]) -> None:
        """
        Do what the session wants done.
        """
        for output in outputs:
            _ACTIONS[type(output)](self, output)

    def _received(self, output: Received) -> None:
        """
        Have a message taken over.
        """
        message = output.message
        assert not isinstance(message, DownstreamMessage)
        self._chain(self._responsible.take(message), message.ack())

    def _draining(self, _: Draining) -> None:
        """
        This stream is about to be closed.
        """
        self._settles.linkDraining(self)
        self._drained()

    def _lost(self, output: Lost) -> None:
        """
        The stream is gone.
        """
        unanswered = [m for m in output.unanswered if isinstance(m, DownstreamMessage)]
        self._settles.linkLost(self, unanswered)

    def _overdue(self, output: Overdue) -> None:
        """
        The answer to a message did not come in time.
        """
        assert isinstance(output.message, DownstreamMessage)
        self._settles.overdue(self, output.message)

    def _probe(self, _: Probe) -> None:
        """
        Ask for a sign of life.
        """
        self._write(_PING)

    def _dead(self, _: Dead) -> None:
        """
        There was none.
        """
        _log.warn("link {link}: the connection server is silent; giving the stream up", link=self.number)
        assert self._stream is not None
        self._stream.abort()

    def _foreign(self, _: Foreign) -> None:
        """
        An answer to nothing.
        """
        self._tellOddity("ignored an answer to no message of this stream")

    def _ignored(self, _: Ignored) -> None:
        """
        Something of a later version.
        """
        self._tellOddity("ignored a message of a type that this version does not know")

    def _tellOddity(self, what: str) -> None:
        """
        Say what the connection server does that it should not; but do not fill
        the disk with it.
        """
        self._oddities += 1
        if self._oddities <= MAX_ODDITIES:
            _log.warn("link {link}: {what}", link=self.number, what=what)
        if self._oddities == MAX_ODDITIES:
            _log.warn("link {link}: nothing more of this sort is told about this stream", link=self.number)

    def _write(self, stanza: bytes) -> None:
        """
        Write a stanza; there is none to write once the stream is gone.
        """
        assert self._stream is not None
        self._stream.write(stanza)

    def _chain(self, taken: Deferred[None], ack: UpstreamAck) -> None:
        """
        Chain the ACK onto whatever takes responsibility.
        """
        if taken.called and taken.result is None:
            # It has fired: addCallbacks would do just this, in four times the time.
            self._ackObserver(None, ack)
        else:
            taken.addCallbacks(self._ackObserver, _notTaken, (ack,))

    def _answered(self, output: Answered) -> None:
        """
        The connection server refused a message.
        """
        message, nack = output.message, output.answer
        # An ACK does not come here.
        assert isinstance(message, DownstreamMessage) and isinstance(nack, Nack)
        error = Nacked(nack.error, nack.message_id, nack.registration_id)
        self._settles.refused(self, message, error)

    def acknowledge(self, ack: UpstreamAck) -> None:
        """
        Write an ACK to this stream, if it still exists.  For L{AckObserver}.
        """
        stream = self._stream
        if stream is None or stream.closing:
            return
        try:
            stanza = ackStanza(ack)
        except NotSendable:
            self._tellOddity("cannot acknowledge a message: its ACK would be larger than a stanza may be")
            return
        # The session of this end does not count what it owes.
        stream.write(stanza)
        if self._observe is not None:
            self._observe(Acknowledged(ack.message_id, ack.to))

    # What the application sends.

    @property
    def room(self) -> int:
        """
        How many downstream messages may be sent on this stream now.
        """
        return 0 if self.session is None or not self.takesMore else self.session.room

    @property
    def takesMore(self) -> bool:
        """
        Whether the stream is there and takes what is written, be there room or
        not.
        """
        stream = self._stream
        return not (stream is None or stream.full or stream.closing)

    def sendDownstream(self, message: DownstreamMessage) -> None:
        """
        Send a message, for which there has to be L{room}.

        @raise NotSendable: if it has been changed to what cannot be sent.
        """
        assert self.session is not None and self._stream is not None
        stanza = clientStanza(message)
        self.session.sending(message, self._clock.seconds())
        self._stream.write(stanza)

    def close(self) -> None:
        """
        End the stream.
        """
        if self._stream is not None:
            self._stream.close()

    # Liveness.

    def _setTimer(self) -> None:
        """
        Wake the session when it wants it.  One timer a stream: it is not moved
        when bytes come, it finds out when it goes off.
        """
        assert self.session is not None
        delay = max(0.0, self.session.wakeAt - self._clock.seconds())
        self._timer = self._clock.callLater(delay, self._wake)

    def _wake(self) -> None:
        """
        The session's time has come.
        """
        assert self.session is not None
        self._timer = None
        outputs = self.session.wake(self._clock.seconds())
        self._setTimer()
        self._carryOut(outputs)


#: What is done for each output of a session at this end.
_ACTIONS: dict[type, Callable[[FCMClientProtocol, Any], None]] = {
    Received: FCMClientProtocol._received,
    Answered: FCMClientProtocol._answered,
    Draining: FCMClientProtocol._draining,
    Lost: FCMClientProtocol._lost,
    Overdue: FCMClientProtocol._overdue,
    Probe: FCMClientProtocol._probe,
    Dead: FCMClientProtocol._dead,
    Foreign: FCMClientProtocol._foreign,
    Ignored: FCMClientProtocol._ignored,
}


def _notTaken(failure: Failure) -> None:
    """
    The end of a chain that did not come to an ACK.
    """
    # What takes responsibility has logged an error of its own already;
    # anything else is a bug here.
    if failure.check(FCMError) is None:
        _log.failure("taking a message over failed", failure)
