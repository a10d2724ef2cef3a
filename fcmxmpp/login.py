"""
How one stream logs in: SASL PLAIN, bind, session if offered.

Each stream has its own factory, authenticator, stream manager and protocol
object, made together and dropped together, because those of twisted.words and
wokkel share state when they are shared.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Factory
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.words.protocols.jabber import client as jabberclient
from twisted.words.protocols.jabber import sasl, sasl_mechanisms, xmlstream
from twisted.words.protocols.jabber.error import StanzaError
from twisted.words.protocols.jabber.jid import JID
from twisted.words.xish import domish
from twisted.words.xish.xmlstream import BootstrapMixin

from fcmxmpp.errors import FCMError, LoginRefused, StreamLost
from fcmxmpp.loopback import isLoopback
from fcmxmpp.stanza import conditionName
from fcmxmpp.xmppstream import GCMStream


__all__ = ["Credentials", "StreamFactory", "loginError"]

#: What the stream header asks for.  Google's servers never looked at it, and
#: this is what its documentation has.
_DOMAIN = "gcm.googleapis.com"


class Credentials:
    """
    Who an app server is.

    @ivar senderID: decimal digits.
    @ivar serverKey: the secret; it is in no text that this class makes.
    """

    __slots__ = ("senderID", "serverKey")

    def __init__(self, senderID: str, serverKey: str) -> None:
        self.senderID = senderID
        self.serverKey = serverKey

    def __repr__(self) -> str:
        """
        Without the key.
        """
        return f"Credentials({self.senderID!r}, <server key>)"


class _Exposed(Exception):
    """
    The connection goes to another machine, and is not encrypted.
    """


def _isExposed(transport: Any) -> bool:
    """
    Whether others can read what is written to a transport.  One that ends on
    this machine may lead into a tunnel.
    """
    # Asked in this order, because TLS has the attributes of what it is over.
    if isinstance(transport, TLSMemoryBIOProtocol) or getattr(transport, "TLS", True):
        return False
    host = getattr(transport.getPeer(), "host", None)
    return host is not None and not isLoopback(host)


class _PlainInitializer(sasl.SASLInitiatingInitializer):
    """
    SASL PLAIN, and no other mechanism: a server key is a password.
    """

    def setMechanism(self) -> None:
        """
        Choose PLAIN.

        @raise sasl.SASLNoAcceptableMechanism: if it is not offered.
        @raise _Exposed: if the key would be seen on the way.
        """
        if _isExposed(self.xmlstream.transport):
            raise _Exposed
        if "PLAIN" not in sasl.get_mechanisms(self.xmlstream):
            raise sasl.SASLNoAcceptableMechanism
        authenticator = self.xmlstream.authenticator
        self.mechanism = sasl_mechanisms.Plain(  # type: ignore[assignment]  # untyped
            None, authenticator.jid.full(), authenticator.password
        )

    def onChallenge(self, element: domish.Element) -> None:
        """
        PLAIN has no challenge that it could answer.
        """
        self.onFailure(domish.Element((sasl.NS_XMPP_SASL, "failure")))


class _SessionInitializer(xmlstream.BaseFeatureInitiatingInitializer):
    """
    A session, if it is offered.

    The answer is not waited for: RFC 6121 made it mean nothing, and the
    connection server delivers as soon as the resource is bound.
    """

    feature = (jabberclient.NS_XMPP_SESSION, "session")

    def start(self) -> None:
        """
        Ask for the session.
        """
        self.xmlstream.write(
            f'<iq type="set" id="session"><session xmlns="{jabberclient.NS_XMPP_SESSION}"/></iq>'.encode()
        )


class _Authenticator(xmlstream.ConnectAuthenticator):
    """
    Logs one stream in: SASL PLAIN, bind, session if offered.

    TLS is below the stream, as it is from the first byte, so there is no
    STARTTLS.
    """

    namespace = "jabber:client"

    def __init__(self, credentials: Credentials) -> None:
        super().__init__(_DOMAIN)
        self.jid = JID(tuple=(credentials.senderID, _DOMAIN, None))
        self.password = credentials.serverKey

    def streamStarted(self, rootElement: domish.Element) -> None:
        """
        The server's stream header came.
        """
        # It may name itself by what is no JID, and we need not know.
        rootElement.attributes.pop("from", None)
        super().streamStarted(rootElement)

    def associateWithStream(self, xs: GCMStream) -> None:
        """
        Say how to log in.
        """
        super().associateWithStream(xs)
        xs.initializers = [
            jabberclient.CheckVersionInitializer(xs),
            _PlainInitializer(xs, required=True),
            jabberclient.BindInitializer(xs, required=True),
            _SessionInitializer(xs),
        ]


class StreamFactory(BootstrapMixin, Factory):
    """
    Builds the one stream of one generation.
    """

    noisy = False

    def __init__(self, credentials: Credentials, clock: IReactorTime) -> None:
        super().__init__()
        self._credentials = credentials
        self._clock = clock
        self.stream: GCMStream | None = None

    def buildProtocol(self, addr: object) -> GCMStream:
        """
        Build the stream, when the connection has been made.
        """
        stream = GCMStream(_Authenticator(self._credentials), self._clock)
        stream.factory = self
        self.installBootstraps(stream)
        self.stream = stream
        return stream


def loginError(error: BaseException | None) -> FCMError:
    """
    What a failed step of the login means.
    """
    if isinstance(error, sasl.SASLAuthError):
        return LoginRefused(conditionName(error.condition) if error.condition else "no reason given")
    if isinstance(error, sasl.SASLNoAcceptableMechanism):
        return LoginRefused("the server does not offer SASL PLAIN")
    if isinstance(error, _Exposed):
        return StreamLost("the connection is not encrypted, and the key would go over it: use tls:")
    if isinstance(error, xmlstream.FeatureNotAdvertized):
        return LoginRefused("the server offers no login")
    if isinstance(error, StanzaError):
        return StreamLost(f"the server refused to bind a resource: {conditionName(error.condition)}")
    return StreamLost(f"the login failed: {type(error).__name__}")
