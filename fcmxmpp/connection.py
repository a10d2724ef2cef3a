"""
Links: one stream to the connection server after the other.

Each stream has its own factory, authenticator, stream manager and protocol
object, made together and dropped together, because those of twisted.words and
wokkel share state when they are shared.  A L{Link} is a coroutine over such
generations: connect, log in within a deadline, hold until the stream is lost,
wait, and again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.words.protocols.jabber import client as jabberclient
from twisted.words.protocols.jabber import sasl, sasl_mechanisms, xmlstream
from twisted.words.protocols.jabber.error import StanzaError
from twisted.words.protocols.jabber.jid import JID
from twisted.words.xish import domish
from twisted.words.xish.xmlstream import BootstrapMixin
from wokkel.subprotocols import StreamManager, XMPPHandler

from fcmxmpp.errors import FCMError, LoginRefused, LoginTimedOut, Stopped, StreamLost
from fcmxmpp.interfaces import AppServerEvent, LinkLost, LinkReady
from fcmxmpp.retry import backoff, failuresAfter, loginDelay
from fcmxmpp.stanza import GCMStream


__all__ = ["Credentials", "Link", "describe"]

_log = Logger()

#: What the stream header asks for.  Google's servers never looked at it, and
#: this is what its documentation has.
_DOMAIN = "gcm.googleapis.com"
#: From connecting to being logged in, in seconds.
LOGIN_DEADLINE = 30.0


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


class _PlainInitializer(sasl.SASLInitiatingInitializer):
    """
    SASL PLAIN, and no other mechanism: a server key is a password.
    """

    def setMechanism(self) -> None:
        """
        Choose PLAIN.

        @raise sasl.SASLNoAcceptableMechanism: if it is not offered.
        """
        if "PLAIN" not in sasl.get_mechanisms(self.xmlstream):
            raise sasl.SASLNoAcceptableMechanism
        authenticator = self.xmlstream.authenticator
        self.mechanism = sasl_mechanisms.Plain(  # type: ignore[assignment]  # untyped
            None, authenticator.jid.full(), authenticator.password
        )


class _LenientSessionInitializer(jabberclient.SessionInitializer):
    """
    A session, if it is offered; RFC 6121 made it mean nothing, so an error is
    no reason to give the stream up.
    """

    def start(self) -> Deferred[Any]:
        """
        Ask for the session.
        """
        started: Deferred[Any] = super().start()
        return started.addErrback(lambda failure: failure.trap(StanzaError) and None)


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
            _LenientSessionInitializer(xs, required=False),
        ]


class _StreamFactory(BootstrapMixin, Factory):
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


class _Generation:
    """
    One stream, from connecting to its end, as two Deferreds' worth of facts:
    it became ready or not, and it is gone.
    """

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        credentials: Credentials,
        handler: XMPPHandler,
        clock: IReactorTime,
    ) -> None:
        self._endpoint = endpoint
        self._clock = clock
        self._factory = _StreamFactory(credentials, clock)
        self._ready: Deferred[None] = Deferred()
        self._gone: Deferred[None] = Deferred()
        self._error: BaseException | None = None
        self.isReady = False
        self._connecting: Deferred[Any] = Deferred()
        # The manager first: by the time that we know that the stream is gone,
        # its handler has put its affairs in order.
        self._manager = StreamManager(self._factory, clock)
        self._manager.addHandler(handler)
        self._factory.addBootstrap(xmlstream.STREAM_AUTHD_EVENT, self._authenticated)
        self._factory.addBootstrap(xmlstream.INIT_FAILED_EVENT, self._initializationFailed)
        self._factory.addBootstrap(xmlstream.STREAM_ERROR_EVENT, self._failed)
        self._factory.addBootstrap(xmlstream.STREAM_END_EVENT, self._ended)

    async def login(self) -> None:
        """
        Connect and log in.

        @raise Exception: whatever kept it from being logged in; by then no
            socket is left.
        """
        deadline = self._clock.callLater(
            LOGIN_DEADLINE, self.cancel, LoginTimedOut(f"no login within {LOGIN_DEADLINE:.0f} seconds")
        )
        self._connecting = self._endpoint.connect(self._factory)
        try:
            await self._connecting
            await self._ready
        except BaseException:
            await self.abandon()
            if self._error is not None:
                raise self._error from None
            raise
        finally:
            if deadline.active():
                deadline.cancel()

    def cancel(self, error: FCMError) -> None:
        """
        Make L{login} fail with this error, wherever it is.
        """
        self._error = error
        self._connecting.cancel()
        self._fail(error)

    async def lost(self) -> BaseException:
        """
        Wait for the end of the stream.

        @return: why it ended.
        """
        await self._gone
        return self._error or StreamLost("closed by the connection server")

    async def abandon(self) -> None:
        """
        Drop the connection, if there is one, and wait until it is gone.
        """
        stream = self._factory.stream
        if stream is not None and not self._gone.called:
            stream.abort()
            await self._gone

    async def close(self) -> None:
        """
        End the stream in order, and wait until it is gone.
        """
        stream = self._factory.stream
        if stream is not None and not self._gone.called:
            stream.close()
            await self._gone

    def _fail(self, error: BaseException) -> None:
        """
        It did not become ready.
        """
        if not self._ready.called:
            self._ready.errback(error)

    def _authenticated(self, stream: GCMStream) -> None:
        """
        The stream is logged in.
        """
        self.isReady = True
        if not self._ready.called:
            self._ready.callback(None)

    def _initializationFailed(self, failure: Failure) -> None:
        """
        The connection server refused a step of the login.
        """
        self._error = _loginError(failure.value)
        self._fail(self._error)

    def _failed(self, failure: Failure) -> None:
        """
        A stream error, theirs or ours; the end of the stream follows.
        """
        self._error = self._error or failure.value

    def _ended(self, reason: Failure) -> None:
        """
        The connection is gone.
        """
        error = self._error = self._error or reason.value or StreamLost("closed")
        if not self._gone.called:
            self._gone.callback(None)
        self._fail(error)


def _loginError(error: BaseException | None) -> BaseException:
    """
    What a failed step of the login means.
    """
    if isinstance(error, sasl.SASLAuthError):
        return LoginRefused(error.condition or "no reason given")
    if isinstance(error, sasl.SASLNoAcceptableMechanism):
        return LoginRefused("the server does not offer SASL PLAIN")
    if isinstance(error, xmlstream.FeatureNotAdvertized):
        return LoginRefused("the server offers no login")
    if isinstance(error, StanzaError):
        return StreamLost(f"the server refused to bind a resource: {error.condition}")
    return error or StreamLost("the login failed")


class Link:
    """
    One link, kept open: as soon as a stream is lost the next is made.

    @ivar generation: how many streams have been logged in.
    """

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        credentials: Credentials,
        makeHandler: Callable[[], XMPPHandler],
        clock: IReactorTime,
        random: Callable[[], float],
        observe: Callable[[AppServerEvent], None] | None = None,
    ) -> None:
        """
        @param endpoint: where the connection server is, TLS included.
        @param makeHandler: makes the handler of each stream.
        @param random: gives a number from 0 to 1, for jitter.
        @param observe: is told of L{LinkReady} and L{LinkLost}.
        """
        self._endpoint = endpoint
        self._credentials = credentials
        self._makeHandler = makeHandler
        self._clock = clock
        self._random = random
        self._observe = observe
        self.generation = 0
        self._current: _Generation | None = None
        self._pause: Deferred[None] | None = None
        self._running: Deferred[None] | None = None
        self._stopping = False

    def start(self) -> None:
        """
        Begin to keep a stream open.
        """
        assert self._running is None
        self._running = Deferred.fromCoroutine(self._run())
        self._running.addErrback(lambda f: _log.failure("a link stopped working", f))

    def stop(self) -> Deferred[None]:
        """
        End the stream in order.

        @return: fires when no socket and no timer is left.
        """
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        """
        See L{stop}.
        """
        self._stopping = True
        if self._pause is not None:
            self._pause.cancel()
        if self._current is not None:
            if self._current.isReady:
                await self._current.close()
            else:
                self._current.cancel(Stopped("the link was stopped"))
        if self._running is not None:
            await self._running

    async def _run(self) -> None:
        """
        Generation after generation, until stopped.
        """
        failures = refusals = 0
        while not self._stopping:
            generation = _Generation(self._endpoint, self._credentials, self._makeHandler(), self._clock)
            self._current = generation
            try:
                await generation.login()
            except Exception as error:
                self._current = None
                if self._stopping:
                    break
                if isinstance(error, LoginRefused):
                    refusals += 1
                    delay = loginDelay(refusals, self._random())
                    _log.error("{reason}; next try in {delay:.0f} s", reason=str(error), delay=delay)
                else:
                    failures += 1
                    delay = backoff(failures, self._random())
                    _log.warn(
                        "cannot connect: {reason}; next try in {delay:.1f} s",
                        reason=describe(error),
                        delay=delay,
                    )
                await self._wait(error, delay)
                continue
            refusals = 0
            self.generation += 1
            since = self._clock.seconds()
            _log.info("logged in")
            self._tell(LinkReady(self.generation))
            reason = await generation.lost()
            self._current = None
            if self._stopping:
                break
            failures = failuresAfter(failures, self._clock.seconds() - since)
            delay = backoff(failures - 1, self._random()) if failures > 1 else 0.0
            _log.warn(
                "connection lost: {reason}; next try in {delay:.1f} s",
                reason=describe(reason),
                delay=delay,
            )
            await self._wait(reason, delay)

    def _tell(self, event: AppServerEvent) -> None:
        """
        Tell the observer, if there is one.
        """
        if self._observe is not None:
            self._observe(event)

    async def _wait(self, error: BaseException, delay: float) -> None:
        """
        Pass the time until the next try.
        """
        self._tell(LinkLost(describe(error), delay))
        if delay <= 0 or self._stopping:
            return
        self._pause = Deferred()
        call = self._clock.callLater(delay, self._pause.callback, None)
        try:
            await self._pause
        except CancelledError:
            pass
        finally:
            self._pause = None
            if call.active():
                call.cancel()


def describe(error: BaseException) -> str:
    """
    Say in one readable line why there is no connection, and what to look at.
    """
    if isinstance(error, FCMError):
        return str(error)
    return str(error) or type(error).__name__
