"""
The connection server's end of one stream: header, SASL PLAIN, bind, and then
the conversation.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.words.protocols.jabber import xmlstream
from twisted.words.protocols.jabber.error import StreamError
from twisted.words.xish import domish

from fcmxmpp.elementstream import MAX_STANZA_BYTES, GCMStanza
from fcmxmpp.errors import MalformedAck, MalformedPayload
from fcmxmpp.messages import Ack, DownstreamMessage, Nack, Receipt, UpstreamMessage
from fcmxmpp.payload import decodeFromAppServer
from fcmxmpp.server.registry import LoginGuard, Registry
from fcmxmpp.session import Answered, Foreign, KeepAlive, Lost, Output, Received, Role, Send, Session
from fcmxmpp.stanza import answerIQ, attribute, payloadOf, serverStanza, stanzaError
from fcmxmpp.xmppstream import GCMStream


__all__ = ["IRoutes", "ServerStream"]

_log = Logger()

_NS_SASL = "urn:ietf:params:xml:ns:xmpp-sasl"
_NS_BIND = "urn:ietf:params:xml:ns:xmpp-bind"
_NS_SESSION = "urn:ietf:params:xml:ns:xmpp-session"

#: The largest stanza before the bind, in bytes: a tag that comes byte by byte
#: is looked at from its start each time.
MAX_LOGIN_BYTES = 8192
#: From the connection to the end of the bind, in seconds.
LOGIN_DEADLINE = 30.0
_FOREIGN = "Received acks for messages not sent over this connection\n"

# No white space between elements, and bind first: clients in the field read
# this by regular expression.
_MECHANISMS = (
    f'<stream:features><mechanisms xmlns="{_NS_SASL}"><mechanism>PLAIN</mechanism></mechanisms>'
    "</stream:features>"
)
_FEATURES = f'<stream:features><bind xmlns="{_NS_BIND}"/><session xmlns="{_NS_SESSION}"/></stream:features>'


class IRoutes(Protocol):
    """
    What a stream needs of the service that it belongs to.
    """

    @property
    def registry(self) -> Registry:
        """
        Who may log in.
        """

    @property
    def guard(self) -> LoginGuard:
        """
        What slows down those who may not.
        """

    def newStreamID(self) -> str:
        """
        An identifier for a stream, hard to guess.
        """

    def bound(self, stream: ServerStream, resource: str | None) -> str:
        """
        A stream wants to be known by this resource.

        @return: the resource it gets, unique among its sender's.
        """

    def ready(self, stream: ServerStream) -> None:
        """
        A stream is logged in.
        """

    def hasRoom(self, stream: ServerStream) -> None:
        """
        A stream that took too little takes more again.
        """

    def acknowledged(self, stream: ServerStream, message: UpstreamMessage | Receipt) -> None:
        """
        The app server acknowledged a message that was sent on this stream.
        """

    def accept(self, stream: ServerStream, message: DownstreamMessage) -> None:
        """
        The app server sent a message, and is owed an L{ServerStream.answer},
        now or later.
        """

    def lost(self, stream: ServerStream, unanswered: list[UpstreamMessage | Receipt]) -> None:
        """
        A stream is gone.

        @param unanswered: what was sent on it and not acknowledged, in order.
        """


class _Passive(xmlstream.Authenticator):
    """
    An authenticator that leaves the login to the stream.
    """

    xmlstream: ServerStream

    def streamStarted(self, rootElement: domish.Element) -> None:
        """
        The client's header came.
        """
        self.xmlstream.headerReceived(rootElement)


class ServerStream(GCMStream):
    """
    A stream from an app server.

    @ivar senderID: who logged in; None before that.
    @ivar resource: what this stream is known by; None before the bind.
    @ivar session: the conversation; None before the bind.
    """

    initiating = False
    # What Google's server says to XML that is not well-formed.
    malformedCondition = "invalid-xml"

    senderID: str | None = None
    resource: str | None = None
    session: Session | None = None

    _challenged = False

    def __init__(self, routes: IRoutes, clock: IReactorTime) -> None:
        super().__init__(_Passive(), clock)
        self._routes = routes
        self._await: Callable[[domish.Element], None] = self._auth
        self._timer: IDelayedCall | None = None
        self._draining: IDelayedCall | None = None
        self._domain = "gcm.googleapis.com"
        # Who the client says that it is, as far as that may be logged.
        self._claimed = "an unknown sender"

    @property
    def address(self) -> str:
        """
        Where the client is, with its port.
        """
        port = getattr(self.transport.getPeer(), "port", None)
        host = f"[{self.host}]" if ":" in self.host and port is not None else self.host
        return host if port is None else f"{host}:{port}"

    @property
    def host(self) -> str:
        """
        Which machine the client is on.
        """
        peer = self.transport.getPeer()
        return getattr(peer, "host", None) or str(peer)

    # Logging in.

    def _initializeStream(self) -> None:
        """
        Set up the parser, which takes little from those who have not logged in.
        """
        super()._initializeStream()
        assert self.stream is not None
        self.stream.maxStanzaSize = MAX_LOGIN_BYTES

    def connectionMade(self) -> None:
        """
        A client has connected.
        """
        self._timer = self.clock.callLater(LOGIN_DEADLINE, self._tooSlow)
        super().connectionMade()

    def _tooSlow(self) -> None:
        """
        The login takes too long.
        """
        self._timer = None
        _log.info("closed a stream from {address} that did not log in", address=self.address)
        self.sendStreamError(StreamError("connection-timeout"))

    def headerReceived(self, header: domish.Element) -> None:
        """
        The client's stream header came: the first, or the one after SASL.

        Its C{to} is echoed, whatever it is; real clients put all sorts of
        things there.
        """
        if header.name != "stream" or header.uri != xmlstream.NS_STREAMS:
            self.sendStreamError(StreamError("invalid-namespace"))
            return
        self._domain = header.getAttribute("to", self._domain)
        self.sendHeader()
        self.write((_MECHANISMS if self.senderID is None else _FEATURES).encode())

    def sendHeader(self) -> None:
        """
        Send our stream header.
        """
        self.sid = self._routes.newStreamID()  # type: ignore[assignment]  # untyped, None in the class
        self.write(
            (
                f'<stream:stream from="{attribute(self._domain)}" id="{self.sid}" version="1.0" '
                f'xmlns:stream="{xmlstream.NS_STREAMS}" xmlns="jabber:client">'
            ).encode()
        )
        self._headerSent = True

    def elementReceived(self, element: domish.Element) -> None:
        """
        Anything but a message with a payload came.
        """
        if element.uri == xmlstream.NS_STREAMS and element.name == "error":
            self.close()
            return
        self._await(element)

    def _auth(self, element: domish.Element) -> None:
        """
        Before the login: SASL PLAIN.
        """
        if element.uri != _NS_SASL or element.name not in ("auth", "response"):
            self.sendStreamError(StreamError("not-authorized"))
            return
        if element.name == "auth" and element.getAttribute("mechanism") != "PLAIN":
            self._saslFailure("invalid-mechanism")
            return
        # Line breaks are in the documentation's own sample.
        encoded = "".join(str(element).split())
        if element.name == "auth" and not encoded and not self._challenged:
            # Once: what those write who have not logged in is not to pile up.
            self._challenged = True
            self.write(f'<challenge xmlns="{_NS_SASL}"/>'.encode())
            return
        try:
            authzid, authcid, key = b64decode(encoded, validate=True).decode().split("\0")
        except (binascii.Error, ValueError):
            self._saslFailure("malformed-request")
            return
        if self._routes.guard.isBusy(self.host, self.clock.seconds()):
            _log.info("too many logins from {address} are being refused", address=self.address)
            self.sendStreamError(StreamError("policy-violation"))
            return
        senderID = authcid.partition("@")[0]
        actsFor = authzid.partition("@")[0]
        if senderID.isascii() and senderID.isdigit() and len(senderID) <= 20:
            self._claimed = f"sender {senderID}"
        allowed = self._routes.registry.mayLogIn(senderID, key)
        if not allowed or actsFor not in ("", senderID):
            self._refuseLogin()
            return
        self.senderID = senderID
        self.write(f'<success xmlns="{_NS_SASL}"/>'.encode())
        self.flush()
        self._await = self._bind
        self.reset()

    def _refuseLogin(self) -> None:
        """
        Say no, always in the same words, and later each time.
        """
        delay = self._routes.guard.refuse(self.host, self.clock.seconds())
        self._await = _ignore
        self._cancelTimer()
        self._timer = self.clock.callLater(delay, self._saslFailure, "not-authorized")

    def _saslFailure(self, condition: str) -> None:
        """
        End the login.
        """
        self._await = _ignore
        _log.info(
            "refused a login of {claimed} from {address}: {condition}",
            claimed=self._claimed,
            address=self.address,
            condition=condition,
        )
        self.write(f'<failure xmlns="{_NS_SASL}"><{condition}/></failure>'.encode())
        self.close()

    def _bind(self, element: domish.Element) -> None:
        """
        After SASL: the bind.
        """
        request = next((c for c in element.elements() if c.name == "bind" and c.uri == _NS_BIND), None)
        if element.name != "iq" or element.getAttribute("type") != "set" or request is None:
            self._other(element)
            return
        wanted = next((str(c) for c in request.elements() if c.name == "resource"), None)
        self.resource = self._routes.bound(self, wanted or None)
        stanzaID = element.getAttribute("id")
        idAttribute = "" if stanzaID is None else f' id="{attribute(stanzaID)}"'
        self.write(
            f'<iq type="result"{idAttribute}><bind xmlns="{_NS_BIND}">'
            f"<jid>{attribute(self.fullJID)}</jid></bind></iq>".encode()
        )
        self._await = self._other
        self._begin()

    # Logged in.

    @property
    def bareJID(self) -> str:
        """
        The address of the app server.
        """
        return f"{self.senderID}@gcm.googleapis.com"

    @property
    def fullJID(self) -> str:
        """
        The address of this stream.
        """
        return f"{self.bareJID}/{self.resource}"

    def _begin(self) -> None:
        """
        The conversation begins.
        """
        self.session = Session(Role.CONNECTION_SERVER, self.clock.seconds())
        assert self.stream is not None
        self.stream.maxStanzaSize = MAX_STANZA_BYTES
        self.onGCM = self._stanzaReceived
        self._cancelTimer()
        self._setTimer()
        self.onRoom = lambda: self._routes.hasRoom(self)
        self.noteFull()
        self._routes.ready(self)

    def _other(self, element: domish.Element) -> None:
        """
        Presence, IQs, messages that are more than a payload.
        """
        if element.name == "iq":
            if element.getAttribute("type") == "set" and any(
                child.uri == _NS_SESSION for child in element.elements()
            ):
                stanzaID = element.getAttribute("id")
                idAttribute = "" if stanzaID is None else f' id="{attribute(stanzaID)}"'
                self.write(f'<iq type="result"{idAttribute}/>'.encode())
                return
            answer = answerIQ(element)
            if answer is not None:
                self.write(answer)
        elif element.name == "message" and self.session is not None:
            stanza = payloadOf(element)
            if stanza is not None:
                self._stanzaReceived(stanza)

    def _stanzaReceived(self, stanza: GCMStanza) -> None:
        """
        A message with a payload came.
        """
        assert self.session is not None
        if stanza.attributes.get("type") == "error":
            return
        try:
            message = decodeFromAppServer(stanza.text)
        except MalformedPayload as error:
            self._malformed(stanza, error)
            return
        for output in self.session.receive(message):
            if isinstance(output, Foreign):
                self.write(stanzaError(406, _FOREIGN, self.fullJID, stanza))
            else:
                self._carryOut(output)

    def _malformed(self, stanza: GCMStanza, error: MalformedPayload) -> None:
        """
        A payload came that is no message: NACK it, if it has a name.
        """
        _log.info("a malformed payload from an app server: {reason}", reason=error.reason)
        if error.message_id is None:
            text = f"InvalidJson: JSON_PARSING_ERROR : {error.reason}\n"
            self.write(stanzaError(400, text, self.fullJID, stanza))
            return
        nack = Nack(
            from_=error.from_ or "",
            message_id=error.message_id,
            error="BAD_ACK" if isinstance(error, MalformedAck) else "INVALID_JSON",
            error_description=f"InvalidJson: JSON_TYPE_ERROR : {error.reason}",
        )
        self.write(serverStanza(nack))

    def _carryOut(self, output: Output) -> None:
        """
        Do what the session wants done.
        """
        if isinstance(output, Send):
            assert not isinstance(output.message, DownstreamMessage)
            self.write(serverStanza(output.message, self.bareJID))  # type: ignore[arg-type]
        elif isinstance(output, Answered):
            assert isinstance(output.message, (UpstreamMessage, Receipt))
            self._routes.acknowledged(self, output.message)
        elif isinstance(output, Received):
            assert isinstance(output.message, DownstreamMessage)
            self._routes.accept(self, output.message)
        elif isinstance(output, KeepAlive):
            self.write(b" ")
        else:
            assert isinstance(output, Lost)
            self._routes.lost(
                self, [m for m in output.unanswered if isinstance(m, (UpstreamMessage, Receipt))]
            )

    @property
    def room(self) -> int:
        """
        How many messages may be delivered on this stream now.
        """
        return 0 if self.session is None or self.closing or self.full else self.session.room

    @property
    def unanswered(self) -> int:
        """
        How many messages this app server owes an ACK for.
        """
        return 0 if self.session is None else self.session.unanswered

    def deliver(self, message: UpstreamMessage | Receipt) -> None:
        """
        Send a message, for which there has to be L{room}.
        """
        assert self.session is not None
        for output in self.session.send(message, self.clock.seconds()):
            self._carryOut(output)

    def answer(self, answer: Ack | Nack) -> None:
        """
        Answer a downstream message that came in on this stream, if the stream
        still exists.
        """
        assert self.session is not None
        for output in self.session.answer(answer):
            self._carryOut(output)

    def drain(self, grace: float) -> None:
        """
        Announce the end of this stream, and end it later.  Until then what the
        app server sends is refused, and its ACKs are taken.  A stream that is
        not logged in is closed at once; one that is being drained already ends
        when that was to be.

        @param grace: seconds until the end.
        """
        if self.session is None:
            self._await = _ignore
            self._cancelTimer()
            self.close()
            return
        outputs = self.session.drain()
        if outputs:
            _log.info(
                "draining an app server of sender {senderID} at {address}; closed in {grace:.1f} s",
                senderID=self.senderID,
                address=self.address,
                grace=grace,
            )
            self._draining = self.clock.callLater(grace, self.close)
        for output in outputs:
            self._carryOut(output)

    def _setTimer(self) -> None:
        """
        Wake the session when it wants it.
        """
        assert self.session is not None
        self._timer = self.clock.callLater(max(0.0, self.session.wakeAt - self.clock.seconds()), self._wake)

    def _wake(self) -> None:
        """
        The session's time has come.
        """
        assert self.session is not None
        for output in self.session.wake(self.clock.seconds()):
            self._carryOut(output)
        self._setTimer()

    def _cancelTimer(self) -> None:
        """
        Have nothing happen by itself any more.
        """
        for call in (self._timer, self._draining):
            if call is not None and call.active():
                call.cancel()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        The connection is gone.
        """
        self.onGCM = _ignore
        self._cancelTimer()
        super().connectionLost(reason)
        if self.session is not None:
            for output in self.session.lost():
                self._carryOut(output)


def _ignore(_: object) -> None:
    """
    Nothing more is expected.
    """
