"""
What stands between the links and the application, upstream: de-duplication,
order, tries, time-outs, dead letters, and the end.

A message is taken over once, however often and on whichever stream it comes
in.  L{UpstreamDelivery.take} gives each coming a Deferred of its own; all of
them fire when the one handling of the message is done.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakSet

from msgspec import Struct
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from fcmxmpp.errors import (
    HandlerFailed,
    HandlerTimedOut,
    HandlerUnavailable,
    MalformedPayload,
    QueueFull,
    Stopped,
    StreamLost,
)
from fcmxmpp.interfaces import (
    AppServerEvent,
    Arrived,
    DeadLettered,
    Handled,
    HandlingFailed,
    IReceiptHandler,
    IResponsible,
    IUpstreamHandler,
    Repeated,
    Undecodable,
)
from fcmxmpp.lanes import Lanes
from fcmxmpp.messages import Receipt, UpstreamMessage
from fcmxmpp.retry import backoff


__all__ = ["POLICIES", "Policy", "UpstreamDelivery"]

_log = Logger()

#: Of how many comings of a message that is being handled the stream is known.
MAX_WAITERS = 16
#: How many messages may be handled at once where they are acknowledged first;
#: beyond that the ACK waits, and so the connection server does.
MAX_ACKED = 1000
#: How many messages may be handled at once in all.  A connection server that
#: keeps to its windows never gets there.
MAX_HANDLED = 10_000
#: How many malformed payloads are logged one by one; after that, one in so many.
MAX_TOLD = 100
#: When a message is acknowledged: once it has been handled, or at once.
POLICIES = ("handled", "received")


class Policy(Struct, frozen=True, kw_only=True):
    """
    How messages are handled.

    @ivar ack: one of L{POLICIES}.
    @ivar ordered: whether the messages of one device, its receipts included,
        are handled one at a time, in the order they came.  One that fails
        keeps those behind it waiting until it is handled or put aside, and
        under C{"handled"} all of them take up the connection server's window.
    @ivar handlerTimeout: seconds that a handler may take.
    @ivar handlerTries: how often a message is tried before it is put aside.
    @ivar remembered: how many handled messages are remembered, so that they
        are not handled again; about 300 bytes each, and more where tokens and
        identifiers are long.
    """

    ack: str = "handled"
    ordered: bool = False
    handlerTimeout: float = 60.0
    handlerTries: int = 3
    remembered: int = 50_000

    def __post_init__(self) -> None:
        """
        @raise ValueError: if a value makes no sense.
        """
        if self.ack not in POLICIES:
            raise ValueError(f"ack must be one of: {', '.join(POLICIES)}")
        if self.handlerTimeout <= 0 or self.handlerTries < 1 or self.remembered < 1:
            raise ValueError("the time-out, the tries and the memory must be positive")


class _Handling:
    """
    One message on its way through the handler.
    """

    __slots__ = (
        "attempt",
        "deadline",
        "lane",
        "message",
        "retry",
        "since",
        "tries",
        "unavailable",
        "waiters",
    )

    def __init__(self, message: UpstreamMessage | Receipt, lane: str | None, now: float) -> None:
        self.message = message
        #: Where it waits for its turn; None if it need not.
        self.lane = lane
        self.since = now
        #: Tries that count.
        self.tries = 0
        #: Tries in a row at which the handler said that it cannot work.
        self.unavailable = 0
        #: One Deferred for each time that the message came in.
        self.waiters: list[Deferred[None]] = []
        #: What the handler returned and has not fired yet, and until when it may.
        self.attempt: Deferred[Any] | None = None
        self.deadline = 0.0
        #: The call that will make the next try.
        self.retry: IDelayedCall | None = None


@implementer(IResponsible)
class UpstreamDelivery:
    """
    Takes responsibility for what the links bring, by having the application
    handle it.

    @ivar handled: how many messages were handled.
    @ivar malformed: how many payloads could not be decoded.
    @ivar deadLetters: how many messages were put aside.
    """

    def __init__(
        self,
        handler: IUpstreamHandler,
        policy: Policy,
        clock: IReactorTime,
        random: Callable[[], float],
        observe: Callable[[AppServerEvent], None] | None = None,
        limit: int = MAX_HANDLED,
    ) -> None:
        """
        @param handler: the application's; it may provide
            L{IReceiptHandler} as well.
        @param random: gives a number from 0 to 1, for jitter.
        @param observe: is told what happens.
        @param limit: how many messages may be handled at once.
        """
        self._limit = limit
        self._toldTooMany: float | None = None
        # Where devices have an order, and whether somebody is already giving
        # those their turn for whom it has come.
        self._lanes: Lanes[_Handling] = Lanes()
        self._advancing = False
        self._handle: Callable[[Any], Awaitable[object] | None] = handler.messageReceived
        self._handleReceipt: Callable[[Any], Awaitable[object] | None] = _ignoreReceipt
        if IReceiptHandler.providedBy(handler):
            self._handleReceipt = IReceiptHandler(handler).receiptReceived
        self._policy = policy
        self._ackFirst = policy.ack == "received"
        self._clock = clock
        self._random = random
        self._observe = observe
        self._running: dict[tuple[str, str], _Handling] = {}
        self._done: OrderedDict[tuple[str, str], None] = OrderedDict()
        # Where messages are acknowledged at once: what is about to be handled,
        # in order.
        self._arrived: deque[_Handling] = deque()
        self._turn: IDelayedCall | None = None
        # The attempts that have not fired, in the order they time out: one
        # timer serves them all, as the time-out is the same for all.
        self._attempts: dict[tuple[str, str], _Handling] = {}
        # Whose attempt a Deferred is; a handler that works in batches may
        # return one and the same for several messages.
        self._batches: dict[Deferred[Any], list[_Handling]] = {}
        # Those that have failed: they hold no failure any more, and would look
        # like a success if they were returned again.
        self._failed: WeakSet[Deferred[Any]] = WeakSet()
        self._sweep: IDelayedCall | None = None
        self._toldUnavailable: float | None = None
        self._stopping = False
        self._graceOver = False
        self._idle: list[Deferred[None]] = []
        # How many handlers are being called just now: more than one if one
        # has the next message delivered.
        self._calling = 0
        self.handled = 0
        self.malformed = 0
        self.deadLetters = 0

    def take(self, message: UpstreamMessage | Receipt) -> Deferred[None]:
        """
        See L{IResponsible.take}.
        """
        key = message.key
        handling = self._running.get(key)
        if handling is not None or key in self._done:
            if self._observe is not None:
                self._observe(Repeated(message))
            if handling is None or (self._ackFirst and not handling.waiters):
                return succeed(None)
            return self._await(handling)
        if self._stopping:
            return fail(Stopped("stopping"))
        if len(self._running) >= self._limit:
            self._logTooMany()
            return fail(QueueFull("too many messages are being handled"))
        if self._observe is not None:
            self._observe(Arrived(message))
        handling = self._running[key] = _Handling(message, self._laneOf(message), self._clock.seconds())
        if self._ackFirst:
            # The ACK is chained onto what this returns, so the handler's turn
            # comes after that; one call for all that came together.
            if self._turn is None:
                self._turn = self._clock.callLater(0, self._beginArrived)
            self._arrived.append(handling)
            return succeed(None) if len(self._running) <= MAX_ACKED else self._await(handling)
        waiter = self._await(handling)
        self._begin(handling)
        return waiter

    def _laneOf(self, message: UpstreamMessage | Receipt) -> str | None:
        """
        Where a message waits for its turn; None if it need not.
        """
        if not self._policy.ordered:
            return None
        if not isinstance(message, Receipt):
            return message.from_
        # All receipts are from the same sender; what they tell is of a device.
        # For who ignores them they need not wait at all.
        ignored = self._handleReceipt is _ignoreReceipt
        return None if ignored else message.data.device_registration_id

    def _await(self, handling: _Handling) -> Deferred[None]:
        """
        A Deferred for one more coming of a message that is being handled.

        @return: fires when it may be acknowledged.  If it comes very often,
            because its streams break one after the other, the oldest comings
            are forgotten: their streams are gone.
        """
        waiter: Deferred[None] = Deferred()
        handling.waiters.append(waiter)
        if len(handling.waiters) > MAX_WAITERS:
            handling.waiters.pop(0).errback(StreamLost("the message came again many times since"))
        return waiter

    def takeMalformed(self, error: MalformedPayload, text: str) -> Deferred[None]:
        """
        See L{IResponsible.takeMalformed}.
        """
        assert error.message_id is not None and error.from_ is not None
        self.discard(error)
        key = (error.from_, error.message_id)
        handling = self._running.get(key)
        if handling is not None and (handling.waiters or not self._ackFirst):
            # An ACK would do for the good message of that name as well.
            return self._await(handling)
        if handling is None and key not in self._done:
            self._remember(key)
            self._deadLetter(error.message_id, error.from_, f"malformed: {error.reason}")
        return succeed(None)

    def discard(self, error: MalformedPayload) -> None:
        """
        See L{IResponsible.discard}.
        """
        self.malformed += 1
        # Beyond a few they are all alike, and would fill the disk.
        if self.malformed <= MAX_TOLD or self.malformed % MAX_TOLD == 0:
            _log.warn(
                "a malformed payload from the connection server: {reason} ({count} so far)",
                reason=error.reason,
                count=self.malformed,
            )
        if self._observe is not None:
            self._observe(Undecodable(error.reason))

    # Whose turn it is.

    def _beginArrived(self) -> None:
        """
        Handle what has come since this was called last.
        """
        self._turn = None
        while self._arrived:
            self._begin(self._arrived.popleft())

    def _begin(self, handling: _Handling) -> None:
        """
        Handle a message when its turn has come.
        """
        if handling.lane is None:
            self._turnOf(handling)
        else:
            self._lanes.enter(handling.lane, handling)
            self._advance()

    def _leaveLane(self, handling: _Handling) -> None:
        """
        A message is out of the way of those behind it.
        """
        if handling.lane is not None:
            self._lanes.leave(handling.lane, handling)

    def _advance(self) -> None:
        """
        Handle those in the lanes whose turn has come.
        """
        if self._advancing:
            # A loop, and not a call within the other: there may be hundreds.
            return
        self._advancing = True
        try:
            while (handling := self._lanes.next()) is not None:
                self._turnOf(handling)
        finally:
            self._advancing = False

    def _turnOf(self, handling: _Handling) -> None:
        """
        Handle a message, unless it is too late to begin.
        """
        if self._graceOver or (self._stopping and handling.waiters):
            self._abandon(handling)
        else:
            self._try(handling)

    # One try.

    def _try(self, handling: _Handling) -> None:
        """
        Give the message to the application.
        """
        self._calling += 1
        try:
            self._call(handling)
        finally:
            self._calling -= 1

    def _call(self, handling: _Handling) -> None:
        """
        The same, inside of it.
        """
        handling.retry = None
        message = handling.message
        handle = self._handleReceipt if isinstance(message, Receipt) else self._handle
        try:
            attempt = _asDeferred(handle(message))
        except BaseException:
            # SystemExit, too: one message must not end the process, nor stay
            # here for ever.
            self._retryOrPutAside(handling, Failure())
            return
        if attempt is None:
            self._handled(handling)
            return
        if attempt in self._failed:
            error = HandlerFailed("the handler returned a Deferred that has failed before")
            self._retryOrPutAside(handling, Failure(error))
            return
        handling.attempt = attempt
        handling.deadline = self._clock.seconds() + self._policy.handlerTimeout
        self._attempts[message.key] = handling
        batch = self._batches.get(attempt)
        if batch is not None:
            batch.append(handling)
        else:
            self._batches[attempt] = [handling]
            attempt.addCallbacks(
                self._attemptSucceeded, self._attemptFailed, callbackArgs=(attempt,), errbackArgs=(attempt,)
            )
            attempt.addErrback(_bug)
        self._setSweep()

    def _endAttempt(self, handling: _Handling) -> None:
        """
        What the handler returned does not matter any more.
        """
        handling.attempt = None
        self._attempts.pop(handling.message.key, None)

    def _attemptSucceeded(self, _: object, attempt: Deferred[Any]) -> None:
        """
        What the handler returned has fired.
        """
        for handling in self._batches.pop(attempt):
            if handling.attempt is attempt:
                self._endAttempt(handling)
                self._handled(handling)

    def _attemptFailed(self, failure: Failure, attempt: Deferred[Any]) -> None:
        """
        What the handler returned has failed.  If it had been given up, that
        has been told already.
        """
        self._failed.add(attempt)
        for handling in self._batches.pop(attempt):
            if handling.attempt is attempt:
                self._endAttempt(handling)
                self._retryOrPutAside(handling, failure)

    def _handled(self, handling: _Handling) -> None:
        """
        The application has handled the message.
        """
        handling.tries += 1
        self.handled += 1
        if self._toldUnavailable is not None:
            self._toldUnavailable = None
            _log.info("the handler works again")
        self._remember(handling.message.key)
        if self._observe is not None:
            seconds = self._clock.seconds() - handling.since
            self._observe(Handled(handling.message, handling.tries, seconds))
        self._finish(handling)

    def _retryOrPutAside(self, handling: _Handling, failure: Failure) -> None:
        """
        A try has failed.
        """
        message = handling.message
        delay: float | None = None
        if failure.check(HandlerUnavailable) is not None:
            handling.unavailable += 1
            delay = backoff(handling.unavailable, self._random())
        else:
            handling.unavailable = 0
            handling.tries += 1
            if handling.tries < self._policy.handlerTries:
                delay = backoff(handling.tries, self._random())
        self._logFailed(handling, failure, delay)
        if self._observe is not None:
            self._observe(HandlingFailed(message, handling.tries, delay))
        if delay is None:
            self._remember(message.key)
            reason = f"the handler failed {handling.tries} times, last: {_nameOf(failure)}"
            self._deadLetter(message.message_id, message.from_, reason)
            self._finish(handling)
        elif self._stopping:
            self._abandon(handling)
        else:
            handling.retry = self._clock.callLater(delay, self._try, handling)

    def _logFailed(self, handling: _Handling, failure: Failure, delay: float | None) -> None:
        """
        One failure with its traceback for a message, one line for each more;
        and no traceback where it would show nothing but ourselves.
        """
        if handling.unavailable:
            self._logUnavailable(failure)
            return
        name = _nameOf(failure)
        then = "no more tries" if delay is None else f"next try in {delay:.1f} s"
        if handling.tries == 1 and failure.check(HandlerFailed) is None:
            _log.failure(
                "the handler failed on {message_id!r}: {name}; {then}",
                _withoutText(failure),
                message_id=handling.message.message_id[:100],
                name=name,
                then=then,
            )
        else:
            _log.warn(
                "the handler failed {again}on {message_id!r}: {name}; {then}",
                again="again " if handling.tries > 1 else "",
                message_id=handling.message.message_id[:100],
                name=name,
                then=then,
            )

    def _logUnavailable(self, failure: Failure) -> None:
        """
        Say that the handler cannot work: once a minute, not for each message.
        """
        now = self._clock.seconds()
        if self._toldUnavailable is None or now - self._toldUnavailable >= 60:
            self._toldUnavailable = now
            _log.warn(
                "the handler cannot work now: {reason}; messages that wait for it: {count}",
                reason=str(failure.value),
                count=len(self._running),
            )

    def _logTooMany(self) -> None:
        """
        Say that a connection server sends more than it may: once a minute.
        """
        now = self._clock.seconds()
        if self._toldTooMany is None or now - self._toldTooMany >= 60:
            self._toldTooMany = now
            _log.error(
                "{count} messages are being handled; no more are taken over, and they are not acknowledged",
                count=len(self._running),
            )

    # Time-outs.

    def _setSweep(self) -> None:
        """
        Have the oldest attempt looked at when its time is up.
        """
        if self._sweep is None and self._attempts:
            oldest = next(iter(self._attempts.values()))
            delay = max(0.0, oldest.deadline - self._clock.seconds())
            self._sweep = self._clock.callLater(delay, self._timeOut)

    def _timeOut(self) -> None:
        """
        Give up the attempts whose time is up.
        """
        self._sweep = None
        now = self._clock.seconds()
        late = []
        for handling in self._attempts.values():
            if handling.deadline > now:
                break
            late.append((handling, handling.attempt))
        for handling, attempt in late:
            # Cancelling one may have ended another.
            if attempt is not None and handling.attempt is attempt:
                self._endAttempt(handling)
                _cancel(attempt)
                self._retryOrPutAside(
                    handling, Failure(HandlerTimedOut(f"it took more than {self._policy.handlerTimeout:g} s"))
                )
        self._setSweep()

    # The end of a message.

    def _remember(self, key: tuple[str, str]) -> None:
        """
        Note that a message is done with.
        """
        self._done[key] = None
        if len(self._done) > self._policy.remembered:
            self._done.popitem(last=False)

    def _deadLetter(self, message_id: str, from_: str, reason: str) -> None:
        """
        Put a message aside: there is no store yet, so in the log, by its
        C{message_id} and without its contents.
        """
        self.deadLetters += 1
        _log.error("dead letter {message_id!r}: {reason}", message_id=message_id[:100], reason=reason)
        if self._observe is not None:
            self._observe(DeadLettered(message_id, from_, reason))

    def _leave(self, handling: _Handling) -> list[Deferred[None]]:
        """
        The message is no longer being handled.

        @return: those who wait for it.
        """
        del self._running[handling.message.key]
        waiters, handling.waiters = handling.waiters, []
        return waiters

    def _finish(self, handling: _Handling) -> None:
        """
        The message may be acknowledged, as often as it came in.
        """
        for waiter in self._leave(handling):
            waiter.callback(None)
        # Not before, so that its ACK goes out first.
        self._leaveLane(handling)
        self._advance()
        self._noteIdle()

    def _abandon(self, handling: _Handling) -> None:
        """
        The message will not be handled by this process.
        """
        if handling.message.key not in self._running:
            # Its end has come while another one was abandoned.
            return
        if handling.retry is not None:
            handling.retry.cancel()
        reason = "stopped before the message was handled"
        if self._ackFirst and not handling.waiters:
            # It will not be delivered again, so this is the last trace of it.
            self._deadLetter(handling.message.message_id, handling.message.from_, reason)
        self._leaveLane(handling)
        for waiter in self._leave(handling):
            waiter.errback(Stopped(reason))
        self._advance()
        self._noteIdle()

    def _noteIdle(self) -> None:
        """
        Tell those who wait for the end that nothing is being handled any more.
        """
        if self._idle and not self._running:
            if self._calling:
                # A handler had us stopped: its ACK is chained when it returns.
                self._clock.callLater(0, self._noteIdle)
                return
            idle, self._idle = self._idle, []
            for waiter in idle:
                waiter.callback(None)

    async def stop(self, grace: float) -> None:
        """
        Take nothing new, and let the handlers that run come to their end.

        What has not begun is left alone, if it comes again because it has not
        been acknowledged.

        @param grace: seconds that they get; after that they are cancelled, and
            their messages stay unacknowledged.
        """
        self._stopping = True
        if self._turn is not None:
            self._turn.cancel()
            self._beginArrived()
        for handling in self._lanes.waiting():
            if handling.waiters:
                self._abandon(handling)
        for handling in list(self._running.values()):
            if handling.retry is not None:
                self._abandon(handling)
        if self._running:
            _log.info("waiting for {count} handlers", count=len(self._running))
            idle: Deferred[None] = Deferred()
            self._idle.append(idle)
            try:
                await idle.addTimeout(grace, self._clock)
            except DeferredTimeoutError:
                self._idle.remove(idle)
                _log.warn("{count} handlers did not end in time", count=len(self._running))
        self._graceOver = True
        for handling in list(self._running.values()):
            attempt = handling.attempt
            self._endAttempt(handling)
            self._abandon(handling)
            if attempt is not None:
                _cancel(attempt)
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None


def _asDeferred(result: Any) -> Deferred[Any] | None:
    """
    What a handler returned, as a Deferred; None if it is done already.

    @raise TypeError: for a generator, which has not even begun to handle
        anything.
    """
    if result is None:
        return None
    if isinstance(result, Deferred):
        return result
    if inspect.iscoroutine(result):
        return Deferred.fromCoroutine(result)
    if asyncio.isfuture(result):
        return Deferred.fromFuture(result)
    if isinstance(result, concurrent.futures.Future):
        raise TypeError("the handler returned a concurrent future: use deferToThread")
    if inspect.isawaitable(result):
        return Deferred.fromCoroutine(_awaited(result))
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        raise TypeError("the handler is a generator: it must not yield")
    return None


async def _awaited(awaitable: Awaitable[object]) -> object:
    """
    Any awaitable, as a coroutine.
    """
    return await awaitable


def _cancel(attempt: Deferred[Any]) -> None:
    """
    Tell the application that its answer is not waited for any more.
    """
    try:
        attempt.cancel()
    except Exception:
        # Its own canceller raised; that must not keep us from going on.
        _log.failure("cancelling the handler failed", _withoutText(Failure()))


def _bug(failure: Failure) -> None:
    """
    The end of a handler's Deferred: only our own callbacks can have failed.
    """
    _log.failure("ending a try failed", failure)


def _nameOf(failure: Failure) -> str:
    """
    What kind of error it was; or what it says, if that is meant for the log.
    """
    kind = type(failure.value)
    if failure.check(HandlerFailed) is not None:
        return str(failure.value) or kind.__name__
    return f"{kind.__module__}.{kind.__qualname__}"


def _ignoreReceipt(receipt: Receipt) -> None:
    """
    The application does not care for receipts.
    """


def _withoutText(failure: Failure) -> Failure:
    """
    The same failure, with its type and its traceback, but without its text:
    that often quotes the message.
    """
    return Failure(HandlerFailed(_nameOf(failure)), HandlerFailed, failure.getTracebackObject())
