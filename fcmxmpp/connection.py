"""
Links: one stream to the connection server after the other.

A L{Link} is a coroutine over generations of streams: connect, log in within a
deadline, hold until the stream is lost, wait, and again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.words.protocols.jabber import xmlstream
from wokkel.subprotocols import XMPPHandler

from fcmxmpp.diagnosis import describe
from fcmxmpp.errors import FCMError, LoginRefused, LoginTimedOut, Stopped, StreamLost
from fcmxmpp.interfaces import AppServerEvent, LinkLost, LinkReady
from fcmxmpp.login import Credentials, StreamFactory, loginError
from fcmxmpp.retry import backoff, failuresAfter, loginDelay
from fcmxmpp.xmppstream import GCMStream


__all__ = ["Credentials", "Link"]

_log = Logger()

#: From connecting to being logged in, in seconds.
LOGIN_DEADLINE = 30.0


class _Generation:
    """
    One stream, from connecting to its end.

    @ivar isReady: whether it has been logged in.
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
        self._factory = StreamFactory(credentials, clock)
        self._connecting: Deferred[Any] = Deferred()
        # These two only ever succeed: the login's with what kept it from
        # being made, or None.
        self._settled: Deferred[FCMError | None] = Deferred()
        self._gone: Deferred[None] = Deferred()
        self._cause: FCMError | None = None
        self.isReady = False
        # The manager first: by the time that we know that the stream is gone,
        # its handler has put its affairs in order.  Twisted's manager and not
        # wokkel's, which uses what Twisted has deprecated.
        self._manager = xmlstream.StreamManager(self._factory)
        self._manager.addHandler(handler)
        self._factory.addBootstrap(xmlstream.STREAM_AUTHD_EVENT, self._authenticated)
        self._factory.addBootstrap(xmlstream.INIT_FAILED_EVENT, self._initializationFailed)
        self._factory.addBootstrap(xmlstream.STREAM_ERROR_EVENT, self._failed)
        self._factory.addBootstrap(xmlstream.STREAM_END_EVENT, self._ended)

    async def login(self) -> None:
        """
        Connect and log in.

        @raise FCMError: L{LoginRefused}, L{LoginTimedOut} or L{StreamLost};
            by then no socket is left.
        """
        deadline = self._clock.callLater(
            LOGIN_DEADLINE, self.cancel, LoginTimedOut(f"no login within {LOGIN_DEADLINE:.0f} seconds")
        )
        self._connecting = maybeDeferred(self._endpoint.connect, self._factory)
        try:
            await self._connecting
            cause = await self._settled
        except Exception as error:
            cause = self._cause or StreamLost(describe(error))
        finally:
            if deadline.active():
                deadline.cancel()
        if cause is not None:
            await self._end(GCMStream.abort)
            raise cause

    def cancel(self, cause: FCMError) -> None:
        """
        Make L{login} fail for this reason, wherever it is.
        """
        self._settle(cause)
        self._connecting.cancel()

    async def lost(self) -> FCMError:
        """
        Wait for the end of the stream.

        @return: why it ended.
        """
        await self._gone
        assert self._cause is not None
        return self._cause

    async def close(self) -> None:
        """
        End the stream in order, and wait until it is gone.
        """
        await self._end(GCMStream.close)

    async def _end(self, how: Callable[[GCMStream], None]) -> None:
        """
        End the stream, if there is one, and wait until it is gone.
        """
        stream = self._factory.stream
        if stream is not None and not self._gone.called:
            how(stream)
            await self._gone

    def _settle(self, cause: FCMError | None) -> None:
        """
        The login has succeeded or failed.
        """
        self._cause = self._cause or cause
        if not self._settled.called:
            self._settled.callback(cause)

    def _authenticated(self, stream: GCMStream) -> None:
        """
        The stream is logged in.
        """
        self.isReady = True
        self._settle(None)

    def _initializationFailed(self, failure: Failure) -> None:
        """
        The connection server refused a step of the login.
        """
        self._settle(loginError(failure.value))

    def _failed(self, failure: Failure) -> None:
        """
        A stream error, theirs or ours; the end of the stream follows.
        """
        self._cause = self._cause or StreamLost(describe(failure.value, self._factory.stream))

    def _ended(self, reason: Failure) -> None:
        """
        The connection is gone.
        """
        self._cause = self._cause or StreamLost(describe(reason.value, self._factory.stream))
        self._gone.callback(None)
        self._settle(self._cause)


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
            except FCMError as cause:
                self._current = None
                if self._stopping:
                    break
                if isinstance(cause, LoginRefused):
                    refusals += 1
                    delay = loginDelay(refusals, self._random())
                    log = _log.error
                else:
                    failures += 1
                    delay = backoff(failures, self._random())
                    log = _log.warn
                log("cannot log in: {cause}; next try in {delay:.1f} s", cause=str(cause), delay=delay)
                self._tell(LinkLost(str(cause), delay))
                await self._wait(delay)
                continue
            refusals = 0
            self.generation += 1
            since = self._clock.seconds()
            _log.info("logged in")
            self._tell(LinkReady(self.generation))
            lost = await generation.lost()
            self._current = None
            if self._stopping:
                break
            failures = failuresAfter(failures, self._clock.seconds() - since)
            delay = backoff(failures - 1, self._random()) if failures > 1 else 0.0
            _log.warn("connection lost: {cause}; next try in {delay:.1f} s", cause=str(lost), delay=delay)
            self._tell(LinkLost(str(lost), delay))
            await self._wait(delay)

    def _tell(self, event: AppServerEvent) -> None:
        """
        Tell the observer, if there is one.
        """
        if self._observe is not None:
            self._observe(event)

    async def _wait(self, delay: float) -> None:
        """
        Pass the time until the next try, or until stopped.
        """
        if delay <= 0 or self._stopping:
            return
        self._pause = Deferred()
        call = self._clock.callLater(delay, self._pause.callback, None)
        try:
            await self._pause
        except CancelledError:
            call.cancel()
        finally:
            self._pause = None
