"""
Links: one stream to the connection server after the other.

A L{Link} is a coroutine over generations of streams: connect, log in within a
deadline, hold until the stream is lost or drained, wait, and again.  A stream
that is drained lives on beside its successor until the connection server
closes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, gatherResults, maybeDeferred
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.words.protocols.jabber import xmlstream
from wokkel.subprotocols import XMPPHandler

from fcmxmpp.diagnosis import describe
from fcmxmpp.errors import FCMError, LoginRefused, LoginTimedOut, Stopped, StreamLost
from fcmxmpp.interfaces import AppServerEvent, LinkDrained, LinkDraining, LinkLost, LinkReady
from fcmxmpp.login import Credentials, StreamFactory, loginError
from fcmxmpp.retry import STABLE, backoff, failuresAfter, loginDelay, reconnectDelay
from fcmxmpp.xmppstream import GCMStream


__all__ = ["Credentials", "Link"]

_log = Logger()

#: From connecting to being logged in, in seconds.
LOGIN_DEADLINE = 30.0
#: A stream that is drained sooner after its login, in seconds, is as good as
#: lost: its successor may have to wait.
HASTY = 1.0
#: How many drained streams of a link may wait to be closed; beyond that, the
#: oldest is closed from here.
MAX_DRAINING = 16


class _Generation:
    """
    One stream, from connecting to its end.

    @ivar isReady: whether it has been logged in.
    @ivar draining: whether the connection server is about to close it.
    """

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        credentials: Credentials,
        makeHandler: Callable[[Callable[[], None]], XMPPHandler],
        clock: IReactorTime,
    ) -> None:
        self._endpoint = endpoint
        self._clock = clock
        self._factory = StreamFactory(credentials, clock)
        self._connecting: Deferred[Any] = Deferred()
        # These only ever succeed: the login's with what kept it from being
        # made, or None.
        self._settled: Deferred[FCMError | None] = Deferred()
        self._over: Deferred[None] = Deferred()
        self._gone: Deferred[None] = Deferred()
        self._cause: FCMError | None = None
        self.isReady = False
        self.draining = False
        # The manager first: by the time that we know that the stream is gone,
        # its handler has put its affairs in order.  Twisted's manager and not
        # wokkel's, which uses what Twisted has deprecated.
        self._manager = xmlstream.StreamManager(self._factory)
        self._manager.addHandler(makeHandler(self._drained))
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

    async def over(self) -> None:
        """
        Wait until the stream is drained or lost.
        """
        await self._over

    async def lost(self) -> FCMError:
        """
        Wait for the end of the stream.

        @return: why it ended.
        """
        await self._gone
        assert self._cause is not None
        return self._cause

    def _drained(self) -> None:
        """
        The connection server is about to close the stream.
        """
        self.draining = True
        if not self._over.called:
            self._over.callback(None)

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
        if not self._over.called:
            self._over.callback(None)
        self._settle(self._cause)


class Link:
    """
    One link, kept open: as soon as a stream is lost, or is being drained, the
    next is made.

    @ivar number: which link this is, from 1.
    @ivar generation: how many streams have been logged in.
    """

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        credentials: Credentials,
        makeHandler: Callable[[Callable[[], None]], XMPPHandler],
        clock: IReactorTime,
        random: Callable[[], float],
        observe: Callable[[AppServerEvent], None] | None = None,
        number: int = 1,
        server: str = "the connection server",
    ) -> None:
        """
        @param endpoint: where the connection server is, TLS included.
        @param makeHandler: makes the handler of each stream; it is given what
            to call when that stream is being drained.
        @param random: gives a number from 0 to 1, for jitter.
        @param observe: is told of the link's life.
        @param number: which link this is, from 1.
        @param server: what the log calls the connection server.
        """
        self.number = number
        self._server = server
        self._endpoint = endpoint
        self._credentials = credentials
        self._makeHandler = makeHandler
        self._clock = clock
        self._random = random
        self._observe = observe
        self.generation = 0
        self._current: _Generation | None = None
        self._draining: list[_Generation] = []
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
        # All at once: each may have a peer that keeps it waiting.
        ending = list(self._draining)
        if self._current is not None:
            if self._current.isReady:
                ending.append(self._current)
            else:
                self._current.cancel(Stopped("the link was stopped"))
        await gatherResults([Deferred.fromCoroutine(generation.close()) for generation in ending])
        if self._running is not None:
            await self._running

    async def _run(self) -> None:
        """
        Generation after generation, until stopped.
        """
        failures = refusals = 0
        while not self._stopping:
            generation = _Generation(self._endpoint, self._credentials, self._makeHandler, self._clock)
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
                log(
                    "link {link} to {server} cannot log in: {cause}; next try in {delay:.1f} s",
                    link=self.number,
                    server=self._server,
                    cause=str(cause),
                    delay=delay,
                )
                self._tell(LinkLost(self.number, str(cause), delay))
                await self._wait(delay)
                continue
            refusals = 0
            self.generation += 1
            since = self._clock.seconds()
            _log.info("link {link} to {server} is logged in", link=self.number, server=self._server)
            self._tell(LinkReady(self.number, self.generation))
            await generation.over()
            self._current = None
            if self._stopping:
                break
            held = self._clock.seconds() - since
            if generation.draining and held >= HASTY:
                # Announced, and so no failure.
                failures = 0 if held >= STABLE else failures
                delay = 0.0
            else:
                failures = failuresAfter(failures, held)
                delay = reconnectDelay(failures, self._random())
            if generation.draining:
                self._seeOut(generation, delay)
            else:
                lost = await generation.lost()
                _log.warn(
                    "link {link} to {server} is lost: {cause}; next try in {delay:.1f} s",
                    link=self.number,
                    server=self._server,
                    cause=str(lost),
                    delay=delay,
                )
                self._tell(LinkLost(self.number, str(lost), delay))
            await self._wait(delay)

    def _seeOut(self, generation: _Generation, delay: float) -> None:
        """
        A stream is being drained: let it go on until the connection server
        closes it.

        @param delay: seconds until its successor is made.
        """
        _log.info(
            "link {link} to {server}: stream {generation} is being drained; the next comes in {delay:.1f} s",
            link=self.number,
            server=self._server,
            generation=self.generation,
            delay=delay,
        )
        self._draining.append(generation)
        gone = Deferred.fromCoroutine(self._outlast(generation, self.generation))
        gone.addErrback(lambda f: _log.failure("a drained stream did not end as it should", f))
        for old in self._draining[:-MAX_DRAINING]:
            # The server announces the end of streams and never ends them.
            closing = Deferred.fromCoroutine(old.close())
            closing.addErrback(lambda f: _log.failure("closing a drained stream failed", f))
        self._tell(LinkDraining(self.number, self.generation))

    async def _outlast(self, generation: _Generation, number: int) -> None:
        """
        Wait for the end of a stream that is being drained.
        """
        await generation.lost()
        self._draining.remove(generation)
        _log.info(
            "link {link} to {server}: drained stream {generation} is closed",
            link=self.number,
            server=self._server,
            generation=number,
        )
        self._tell(LinkDrained(self.number, number))

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
