"""
A handler that is a web server: each message is POSTed to a URL.

The body is the JSON object of L{fcmxmpp.handlers.asJSON}.  A 2xx answer means
that the message is handled.  Its body may say what to send in return::

    {"send": [{"to": "TOKEN", "data": {"op": "thanks"}}]}

What the answers mean otherwise:

  - None at all, 408, 429, 502, 503 and 504: the message is not at fault, and is
    tried again for as long as it takes.
  - The same for redirects, 401, 403, 404 and 405, which say that the URL or the
    token is wrong: somebody has to put that right.
  - Any other, such as 400 or 500: a failed try.

HTTPS is verified against the authorities of the system, or those in the file
that the environment variable C{SSL_CERT_FILE} names.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec
from hyperlink import EncodedURL
from treq.client import HTTPClient
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.internet.interfaces import (
    IDelayedCall,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, _HTTP11ClientFactory
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent
from zope.interface import implementer

from fcmxmpp import __version__
from fcmxmpp.errors import FCMError, HandlerFailed, HandlerUnavailable, MalformedPayload
from fcmxmpp.handlers import asJSON, sendAndForget
from fcmxmpp.httpclient import WholeBody, kindOf, readBody
from fcmxmpp.interfaces import IDownstreamSender, IUpstreamHandler
from fcmxmpp.loopback import isLoopback
from fcmxmpp.messages import WINDOW, UpstreamMessage
from fcmxmpp.payload import decodeDownstream


__all__ = ["Webhook", "WebhookConnections", "WebhookRefused", "checkURL"]

_log = Logger()
_T = TypeVar("_T")

#: Bytes of an answer that are read.
MAX_ANSWER = 1024 * 1024
#: Seconds that a request may take, with waiting for its turn.
TIMEOUT = 30.0
#: Seconds that a connection may take to be closed: over TLS its peer has to
#: agree, and Twisted waits for that for ever.
CLOSE_PATIENCE = 3.0
#: Statuses that say nothing about the message: it waits.
_LATER = frozenset({401, 403, 404, 405, 408, 429, 502, 503, 504, *range(300, 400)})


class WebhookRefused(HandlerFailed):
    """
    The webhook answered with a status that means neither "handled" nor
    "later".
    """


class _TooLate(FCMError):
    """
    There was no answer in time.
    """


class _Answer(msgspec.Struct):
    """
    What the body of an answer may hold.
    """

    send: list[msgspec.Raw] = []


# Any JSON will do for an answer; only of an object the contents matter.
_decodeAnswer = msgspec.json.Decoder(_Answer | list[msgspec.Raw] | str | int | float | bool | None).decode


def checkURL(url: str, withToken: bool = False) -> str:
    """
    See to it that messages can be POSTed to a URL.

    @param withToken: whether a token is to be sent there, too.
    @return: the URL, with what is not ASCII encoded.
    @raise ValueError: if not; the text does not quote the URL.
    """
    # Twisted would refuse these at every request; urlsplit drops some of them.
    if re.search(r"[\s\x00-\x1f\x7f]", url):
        raise ValueError("must not have a blank in it")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("is no URL") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("has to begin with https://HOST or http://HOST")
    if "@" in parts.netloc:
        raise ValueError("must not have a name or a password in it: use --webhook-token-file")
    if ":" in host:
        # treq has its URLs from hyperlink, which takes the address for a name.
        raise ValueError("has to name its host, because an IPv6 address does not work here")
    if withToken and parts.scheme == "http" and not isLoopback(host):
        raise ValueError("has to begin with https://, because the token goes over it")
    try:
        return str(EncodedURL.from_text(url).to_uri().to_text())
    except ValueError:
        raise ValueError("is no URL") from None


class _Quiet(_HTTP11ClientFactory):
    """
    Connections that are not logged one by one.
    """

    noisy = False


class _Connection(ProtocolWrapper):
    """
    A connection that ends when it is to end, whatever its peer does.
    """

    _closing: IDelayedCall | None = None

    def loseConnection(self) -> None:
        """
        Close it, by force if its peer does not agree.
        """
        super().loseConnection()
        if self._closing is None and self.wrappedProtocol is not None:
            transport: Any = self.transport
            self._closing = self.factory.clock.callLater(CLOSE_PATIENCE, transport.abortConnection)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        It is gone.
        """
        if self._closing is not None and self._closing.active():
            self._closing.cancel()
        super().connectionLost(reason)


class _Connecting(WrappingFactory):
    """
    Builds the one connection of an attempt to connect.
    """

    noisy = False
    protocol = _Connection

    def __init__(self, wrapped: IProtocolFactory, clock: IReactorTime) -> None:
        super().__init__(wrapped)
        self.clock = clock


@implementer(IStreamClientEndpoint)
class _Endpoint:
    """
    An endpoint whose connections end when they are to end.
    """

    def __init__(self, endpoint: IStreamClientEndpoint, clock: IReactorTime) -> None:
        self._endpoint = endpoint
        self._clock = clock

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """
        Connect.
        """
        connecting: Deferred[Any] = self._endpoint.connect(_Connecting(protocolFactory, self._clock))
        return connecting.addCallback(lambda connection: connection.wrappedProtocol)


class _Pool(HTTPConnectionPool):
    """
    The connections that are open.
    """

    def getConnection(self, key: object, endpoint: IStreamClientEndpoint) -> Deferred[Any]:
        """
        One that is free, or a new one.
        """
        connection: Deferred[Any] = super().getConnection(key, _Endpoint(endpoint, self._reactor))
        return connection


class WebhookConnections(Service):
    """
    Persistent connections to web servers, which are closed when this stops.

    @ivar agent: makes requests over them.
    """

    def __init__(self, reactor: Any) -> None:
        self._pool = _Pool(reactor)
        self._pool.maxPersistentPerHost = WINDOW
        # The only way to have it quiet; without it there is a line more.
        self._pool._factory = _Quiet
        # Common servers close theirs after 5 seconds, and a request that
        # crosses that is lost.
        self._pool.cachedConnectionTimeout = 4
        self.agent: IAgent = Agent(reactor, pool=self._pool)

    def stopService(self) -> Deferred[None]:
        """
        Close what is not in use.
        """
        super().stopService()
        closed: Deferred[None] = self._pool.closeCachedConnections()
        return closed


@implementer(IUpstreamHandler)
class Webhook:
    """
    POSTs each message to a URL; see this module.
    """

    def __init__(
        self,
        url: str,
        sender: IDownstreamSender,
        agent: IAgent,
        clock: Any,
        *,
        token: str | None = None,
        timeout: float = TIMEOUT,
        concurrency: int = WINDOW,
    ) -> None:
        """
        @param agent: makes the requests, such as that of a
            L{WebhookConnections}.
        @param clock: the reactor.
        @param token: is sent as C{Authorization: Bearer}.
        @param timeout: seconds that a request may take, with waiting for its
            turn; to be less than the handler time-out, because what that ends
            counts as failed.
        @param concurrency: how many requests there may be at once.
        @raise ValueError: if the URL is none for this.
        """
        self._url = checkURL(url, token is not None)
        self._sender = sender
        self._clock = clock
        self._timeout = timeout
        self._turns = DeferredSemaphore(concurrency)
        self._client = HTTPClient(agent, data_to_body_producer=WholeBody)
        self._headers = Headers(
            {"Content-Type": ["application/json"], "User-Agent": [f"fcmxmpp/{__version__}"]}
        )
        if token is not None:
            self._headers.setRawHeaders("Authorization", [f"Bearer {token}"])
        parts = urlsplit(url)
        if parts.scheme == "http" and not isLoopback(parts.hostname or ""):
            _log.warn("the webhook is not https: anybody on the way can read and change the messages")

    def messageReceived(self, message: UpstreamMessage) -> Deferred[None]:
        """
        POST the message.

        @return: fires when it is handled; fails with L{WebhookRefused} or
            L{HandlerUnavailable}.
        """
        return Deferred.fromCoroutine(self._handle(message))

    async def _handle(self, message: UpstreamMessage) -> None:
        """
        See L{messageReceived}.
        """
        deadline = self._clock.seconds() + self._timeout
        try:
            await self._inTime(self._turns.acquire(), deadline)
        except _TooLate as error:
            raise HandlerUnavailable(f"the webhook still has others to answer: {error}") from None
        try:
            status, answer = await self._post(asJSON(message), message.message_id, deadline)
        finally:
            self._turns.release()
        if status in _LATER:
            redirect = ", a redirect, which is not followed" if 300 <= status < 400 else ""
            raise HandlerUnavailable(f"the webhook answered {status}{redirect}")
        if not 200 <= status < 300:
            raise WebhookRefused(f"the webhook answered {status}")
        if answer:
            self._sendAnswer(answer, message)

    async def _post(self, body: bytes, message_id: str, deadline: float) -> tuple[int, bytes]:
        """
        Make the request.

        @return: the status, and the answer's body if that is JSON and could be
            read.
        @raise HandlerUnavailable: if there is no status.
        """
        try:
            response: Any = await self._inTime(
                self._client.post(
                    self._url,
                    data=body,
                    headers=self._headers.copy(),
                    allow_redirects=False,
                    unbuffered=True,
                    reactor=self._clock,
                ),
                deadline,
            )
        except Exception as error:
            raise HandlerUnavailable(f"no answer from the webhook: {kindOf(error)}") from None
        try:
            # To its end in any case, so that the connection can be used again.
            answer = await self._inTime(readBody(response, MAX_ANSWER), deadline)
        except CancelledError:
            raise
        except Exception as error:
            # The status tells whether the message has been handled.
            _log.warn(
                "the webhook's answer {status} to {message_id!r} cannot be read to its end: {reason}",
                status=response.code,
                message_id=message_id[:100],
                reason=kindOf(error),
            )
            return response.code, b""
        (kind,) = response.headers.getRawHeaders("Content-Type", [""])[-1:]
        if kind.partition(";")[0].strip().lower() != "application/json":
            if answer.strip() and 200 <= response.code < 300:
                _log.warn(
                    "the webhook's answer to {message_id!r} is ignored: "
                    "its Content-Type is not application/json",
                    message_id=message_id[:100],
                )
            return response.code, b""
        return response.code, answer

    async def _inTime(self, result: Deferred[_T], deadline: float) -> _T:
        """
        Wait for a result until the deadline.

        @raise _TooLate: if it is not there by then.
        """

        def tooLate(*_: object) -> _T:
            # Not left to Twisted, because a request that is cancelled may wrap
            # that in an error of its own.
            raise _TooLate(f"it took more than {self._timeout:g} s")

        remaining = max(0.0, deadline - self._clock.seconds())
        return await result.addTimeout(remaining, self._clock, tooLate)

    def _sendAnswer(self, text: bytes, message: UpstreamMessage) -> None:
        """
        Send what an answer says.
        """
        try:
            answer = _decodeAnswer(text.decode())
        except (ValueError, RecursionError):
            _log.warn(
                'the webhook\'s answer to {message_id!r} is ignored: it is not {{"send": [...]}}',
                message_id=message.message_id[:100],
            )
            return
        for item in answer.send if isinstance(answer, _Answer) else []:
            try:
                downstream = decodeDownstream(bytes(item).decode())
            except MalformedPayload as error:
                _log.warn(
                    "the answer {sent!r} to {message_id!r} was not sent: {reason}",
                    sent=(error.message_id or "")[:100],
                    message_id=message.message_id[:100],
                    reason=error.reason,
                )
            else:
                sendAndForget(self._sender, downstream, message)
