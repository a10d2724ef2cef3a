"""
What stands between the links and the application, upstream: de-duplication,
order, dead letters, the record of what was handled, and the end.

A message is taken over once, however often and on whichever stream it comes
in.  L{UpstreamDelivery.take} gives each coming a Deferred of its own; all of
them fire when the one handling of the message is done, and recorded where
there is an inbox.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Any

from msgspec import Struct
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from fcmxmpp.attempts import Attempts, Task, cancel
from fcmxmpp.entries import DeadLetter, InboxEntry, UnreadableEntry
from fcmxmpp.errors import FCMError, MalformedPayload, QueueFull, Stopped, StoreUnavailable, StreamLost
from fcmxmpp.interfaces import (
    AppServerEvent,
    Arrived,
    DeadLettered,
    Handled,
    HandlingFailed,
    IInbox,
    IReceiptHandler,
    IResponsible,
    IUpstreamHandler,
    Repeated,
    Undecodable,
)
from fcmxmpp.lanes import Lanes
from fcmxmpp.messages import Receipt, UpstreamMessage
from fcmxmpp.payload import encode


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
#: Seconds until a store is tried again that does not work.
STORE_DELAY = 1.0
#: When a message is acknowledged: once it has been handled, once it is in the
#: inbox of a store, or at once.
POLICIES = ("handled", "stored", "received")

#: Why a message is left to others.
_TOO_LATE = "stopped before the message was handled"


class Policy(Struct, frozen=True, kw_only=True):
    """
    How messages are handled.

    @ivar ack: one of L{POLICIES}; None for C{"stored"} where there is a store,
        and C{"handled"} otherwise.
    @ivar ordered: whether the messages of one device, its receipts included,
        are handled one at a time, in the order they came.  One that fails
        keeps those behind it waiting until it is handled or put aside, and
        under C{"handled"} all of them take up the connection server's window.
    @ivar handlerTimeout: seconds that a handler may take.
    @ivar handlerTries: how often a message is tried before it is put aside.
    @ivar remembered: how many handled messages are remembered in memory, so
        that they are not handled again; about 300 bytes each, and more where
        tokens and identifiers are long.
    """

    ack: str | None = None
    ordered: bool = False
    handlerTimeout: float = 60.0
    handlerTries: int = 3
    remembered: int = 50_000

    def __post_init__(self) -> None:
        """
        @raise ValueError: if a value makes no sense.
        """
        if self.ack not in (None, *POLICIES):
            raise ValueError(f"ack must be one of: {', '.join(POLICIES)}")
        if self.handlerTimeout <= 0 or self.handlerTries < 1 or self.remembered < 1:
            raise ValueError("the time-out, the tries and the memory must be positive")


class _Handling(Task):
    """
    One message on its way through the handler, and to the record of that.
    """

    #: Where it waits for its turn; None if it need not.
    lane: str | None = None
    #: When it came; only where somebody watches.
    since = 0.0
    #: Of the inbox's entry, if it is one, and who waits for its end.
    number: int | None = None
    ended: Callable[[], None] | None = None
    #: Whether it has just come in, and its Deferred is yet to be made.
    isComing = False
    #: Whether the application has handled it; and what is kept of it, once
    #: it is to be put aside.
    isHandled = False
    letter: DeadLetter | None = None
    #: Whether somebody has taken responsibility for it.
    isTaken = False
    #: One Deferred for each time that the message came in.
    waiters: list[Deferred[None]] | None = None

    def __init__(self, key: Hashable, message: UpstreamMessage | Receipt | None, name: str) -> None:
        """
        @param key: what it is known by here.
        @param message: None for what could not be decoded.
        """
        self.name = name
        self.key = key
        self.message = message

    @property
    def isDecided(self) -> bool:
        """
        Whether only the record of what became of it is to be made.
        """
        return self.isHandled or self.letter is not None


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
        inbox: IInbox | None = None,
    ) -> None:
        """
        @param handler: the application's; it may provide
            L{IReceiptHandler} as well.
        @param random: gives a number from 0 to 1, for jitter.
        @param observe: is told what happens.
        @param limit: how many messages may be handled at once.
        @param inbox: where what was handled is recorded, and what was not is
            put aside.
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
        self._observe = observe
        self._inbox = inbox
        # By the message's own key, or by the number of the inbox's entry.
        self._running: dict[Hashable, _Handling] = {}
        self._done: OrderedDict[Hashable, None] = OrderedDict()
        # Where messages are acknowledged at once: what is about to be handled,
        # in order.
        self._arrived: deque[_Handling] = deque()
        self._turn: IDelayedCall | None = None
        self._attempts: Attempts[_Handling] = Attempts(
            self._call,
            succeeded=self._handled,
            failed=self._failedOnce,
            givenUp=self._givenUp,
            abandoned=self._abandon,
            underWay=lambda: len(self._running),
            timeout=policy.handlerTimeout,
            tries=policy.handlerTries,
            clock=clock,
            random=random,
        )
        self._stopping = False
        self._graceOver = False
        self._idle: list[Deferred[None]] = []
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
        self._running[key] = handling = self._handling(key, message)
        if self._ackFirst:
            # The ACK is chained onto what this returns, so the handler's turn
            # comes after that; one call for all that came together.
            if self._turn is None:
                self._turn = self._clock.callLater(0, self._beginArrived)
            self._arrived.append(handling)
            return succeed(None) if len(self._running) <= MAX_ACKED else self._await(handling)
        handling.isComing = True
        self._begin(handling)
        handling.isComing = False
        if handling.isTaken:
            # By a handler that is done when it returns, as most are.
            return succeed(None)
        return self._await(handling) if key in self._running else fail(Stopped(_TOO_LATE))

    def _handling(self, key: Hashable, message: UpstreamMessage | Receipt) -> _Handling:
        """
        A message to be handled.
        """
        handling = _Handling(key, message, message.message_id)
        if self._policy.ordered:
            handling.lane = self.laneOf(message)
        if self._observe is not None:
            handling.since = self._clock.seconds()
        return handling

    def handle(self, entry: InboxEntry, ended: Callable[[], None]) -> None:
        """
        Handle what is in the inbox.

        @param ended: is called when it is not there any more, because it was
            handled or put aside; or when it is left there because of the stop.
        """
        number = entry.number
        self._running[number] = handling = self._handling(number, entry.message)
        handling.number, handling.ended, handling.tries = number, ended, entry.tries
        self._begin(handling)

    def putAside(self, entry: UnreadableEntry, ended: Callable[[], None]) -> None:
        """
        Put aside what is in the inbox and cannot be read any more.

        @param ended: as for L{handle}.
        """
        handling = _Handling(entry.number, None, entry.message_id)
        handling.number, handling.ended = entry.number, ended
        handling.letter = DeadLetter(
            number=entry.number,
            from_=entry.peer,
            message_id=entry.message_id,
            body=entry.body,
            reason=f"unreadable in the store: {entry.reason}",
        )
        self._running[entry.number] = handling
        self._putAside(handling)

    def noteArrived(self, message: UpstreamMessage | Receipt, isNew: bool) -> None:
        """
        A message is in the inbox.

        @param isNew: whether it was not before.
        """
        if self._observe is not None:
            self._observe(Arrived(message) if isNew else Repeated(message))

    def laneOf(self, message: UpstreamMessage | Receipt) -> str | None:
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
        if handling.waiters is None:
            handling.waiters = []
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
        if handling is not None:
            if handling.waiters or not self._ackFirst:
                # An ACK would do for the good message of that name as well.
                return self._await(handling)
            return succeed(None)
        if key in self._done:
            return succeed(None)
        if self._stopping and self._inbox is not None:
            return fail(Stopped("stopping"))
        if len(self._running) >= self._limit:
            self._logTooMany()
            return fail(QueueFull("too many messages are being handled"))
        handling = self._running[key] = _Handling(key, None, error.message_id)
        handling.letter = DeadLetter(
            from_=error.from_,
            message_id=error.message_id,
            # Halves of surrogate pairs have no UTF-8 of their own.
            body=text.encode("utf-8", "backslashreplace"),
            reason=f"malformed: {error.reason}",
        )
        waiter = self._await(handling)
        self._putAside(handling)
        return waiter

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

    def _comesAgain(self, handling: _Handling) -> bool:
        """
        Whether a message that is not handled now will be later, because it has
        not been acknowledged or is in the inbox.
        """
        return handling.isComing or bool(handling.waiters) or handling.number is not None

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
        if self._graceOver or (self._stopping and self._comesAgain(handling)):
            self._abandon(handling)
        elif self._inbox is None or handling.number is not None:
            self._attempts.begin(handling)
        else:
            self._lookUp(handling)

    # With an inbox: what was handled before this process was there.

    def _lookUp(self, handling: _Handling) -> None:
        """
        Ask the inbox whether a message has been handled before.
        """
        assert self._inbox is not None and handling.message is not None
        known = self._inbox.isKnown(handling.message.key)
        known.addCallbacks(
            self._lookedUp, self._storeFailed, callbackArgs=(handling,), errbackArgs=(handling, self._lookUp)
        )

    def _lookedUp(self, known: bool, handling: _Handling) -> None:
        """
        Handle a message if it has not been handled before.
        """
        assert handling.message is not None
        if handling.key not in self._running:
            # The stop came first.
            return
        if known:
            self._remember(handling.message.key)
            self._finish(handling)
        elif self._graceOver or (self._stopping and self._comesAgain(handling)):
            self._abandon(handling)
        else:
            self._attempts.begin(handling)

    def _storeFailed(self, failure: Failure, handling: _Handling, again: Callable[[_Handling], None]) -> None:
        """
        The store does not work, and has said so: the message stays
        unacknowledged, and it is tried again for as long as it takes.
        """
        if handling.key not in self._running:
            return
        if failure.check(FCMError) is None:
            _log.failure("using the store failed", failure)
        isTooLate = self._graceOver or (self._stopping and not handling.isDecided)
        if isTooLate or failure.check(StoreUnavailable) is None:
            self._abandon(handling)
            return
        handling.retry = self._clock.callLater(STORE_DELAY, self._useAgain, again, handling)

    def _useAgain(self, again: Callable[[_Handling], None], handling: _Handling) -> None:
        """
        Perhaps the store works again.
        """
        handling.retry = None
        again(handling)

    # What comes of the tries.

    def _call(self, handling: _Handling) -> Awaitable[object] | None:
        """
        Give the message to the application.
        """
        message = handling.message
        if isinstance(message, Receipt):
            return self._handleReceipt(message)
        return self._handle(message)

    def _handled(self, handling: _Handling) -> None:
        """
        The application has handled the message.
        """
        message = handling.message
        assert message is not None
        self.handled += 1
        handling.isHandled = True
        self._remember(message.key if handling.number is not None else handling.key)
        if self._observe is not None:
            seconds = self._clock.seconds() - handling.since
            self._observe(Handled(message, handling.tries, seconds))
        if self._inbox is None:
            self._finish(handling)
        else:
            self._record(handling)

    def _record(self, handling: _Handling) -> None:
        """
        Have it recorded that a message was handled; only then it is
        acknowledged, and the next of its device has its turn.
        """
        assert self._inbox is not None and handling.message is not None
        if handling.number is not None:
            recorded = self._inbox.handled(handling.number)
        else:
            recorded = self._inbox.remember(handling.message.key)
        recorded.addCallbacks(
            lambda _: self._recorded(handling), self._storeFailed, errbackArgs=(handling, self._record)
        )

    def _recorded(self, handling: _Handling) -> None:
        """
        It is on record what became of a message.
        """
        if handling.key in self._running:
            self._finish(handling)

    def _failedOnce(self, handling: _Handling, delay: float | None) -> None:
        """
        A try has failed.
        """
        assert handling.message is not None
        isLast = handling.tries >= self._policy.handlerTries
        if handling.number is not None and not (isLast or handling.unavailable):
            assert self._inbox is not None
            # Without it a message gets more tries than it should; no more.
            self._inbox.tried(handling.number, handling.tries).addErrback(_ignoreStore)
        if self._observe is not None:
            self._observe(HandlingFailed(handling.message, handling.tries, delay))

    def _givenUp(self, handling: _Handling, reason: str) -> None:
        """
        There are no more tries.
        """
        handling.letter = self._letterFor(handling, reason)
        self._putAside(handling)

    def _letterFor(self, handling: _Handling, reason: str) -> DeadLetter:
        """
        What is kept of a message that is put aside.
        """
        message = handling.message
        assert message is not None
        return DeadLetter(
            number=handling.number,
            from_=message.from_,
            message_id=message.message_id,
            body=b"" if self._inbox is None else encode(message),
            reason=reason,
            tries=handling.tries,
        )

    def _putAside(self, handling: _Handling) -> None:
        """
        Keep a message as a dead letter.
        """
        assert handling.letter is not None
        if self._inbox is None:
            self._isAside(True, handling)
            return
        kept = self._inbox.putAside(handling.letter)
        kept.addCallbacks(
            self._isAside, self._storeFailed, callbackArgs=(handling,), errbackArgs=(handling, self._putAside)
        )

    def _isAside(self, isNew: bool, handling: _Handling) -> None:
        """
        A message has been put aside, unless it had been handled before.
        """
        letter = handling.letter
        assert letter is not None
        self._remember((letter.from_, letter.message_id))
        if isNew:
            self._deadLetter(letter)
        if handling.key in self._running:
            self._finish(handling)

    def _leaveTrace(self, handling: _Handling) -> None:
        """
        A message is abandoned that will not be delivered again: keep it as a
        dead letter if the store can do that just now, and say so.
        """
        letter = handling.letter
        assert letter is not None
        if self._inbox is None:
            self._deadLetter(letter)
            return
        self._inbox.putAside(letter).addCallbacks(
            self._isAside, self._notKept, callbackArgs=(handling,), errbackArgs=(letter,)
        )

    def _notKept(self, failure: Failure, letter: DeadLetter) -> None:
        """
        The store does not work, and has said so: all that is left of a message
        is what is said here.
        """
        failure.trap(FCMError)
        self._deadLetter(letter, isKept=False)

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

    # The end of a message.

    def _remember(self, key: Hashable) -> None:
        """
        Note that a message is done with.
        """
        self._done[key] = None
        if len(self._done) > self._policy.remembered:
            self._done.popitem(last=False)

    def _deadLetter(self, letter: DeadLetter, isKept: bool = True) -> None:
        """
        A message was put aside: say so, by its C{message_id} and without its
        contents.

        @param isKept: whether the store has it, if there is one.
        """
        self.deadLetters += 1
        _log.error(
            "dead letter {message_id!r}: {reason}{kept}",
            message_id=letter.message_id[:100],
            reason=letter.reason,
            kept="; kept: see fcmxmpp inbox list" if isKept and self._inbox is not None else "",
        )
        if self._observe is not None:
            self._observe(DeadLettered(letter.message_id, letter.from_, letter.reason))

    def _leave(self, handling: _Handling) -> list[Deferred[None]]:
        """
        The message is no longer being handled.

        @return: those who wait for it.
        """
        del self._running[handling.key]
        if handling.ended is not None:
            handling.ended()
        waiters, handling.waiters = handling.waiters, None
        return waiters or []

    def _finish(self, handling: _Handling) -> None:
        """
        The message may be acknowledged, as often as it came in.
        """
        handling.isTaken = True
        for waiter in self._leave(handling):
            waiter.callback(None)
        # Not before, so that its ACK goes out first.
        if handling.lane is not None:
            self._leaveLane(handling)
            self._advance()
        if self._idle:
            self._noteIdle()

    def _abandon(self, handling: _Handling) -> None:
        """
        The message will not be handled by this process.
        """
        if handling.key not in self._running:
            # Its end has come while another one was abandoned.
            return
        self._attempts.withdraw(handling)
        isLost = not (self._comesAgain(handling) or handling.isHandled)
        self._leaveLane(handling)
        for waiter in self._leave(handling):
            waiter.errback(Stopped(_TOO_LATE))
        if isLost:
            if handling.letter is None:
                handling.letter = self._letterFor(handling, _TOO_LATE)
            self._leaveTrace(handling)
        self._advance()
        self._noteIdle()

    def _noteIdle(self) -> None:
        """
        Tell those who wait for the end that nothing is being handled any more.
        """
        if self._idle and not self._running:
            if self._attempts.calling:
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
        self._attempts.retryNoMore()
        if self._turn is not None:
            self._turn.cancel()
            self._beginArrived()
        for handling in self._lanes.waiting():
            if self._comesAgain(handling):
                self._abandon(handling)
        for handling in list(self._running.values()):
            # What is decided has the grace period to get on record.
            if handling.retry is not None and not handling.isDecided:
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
            attempt = self._attempts.withdraw(handling)
            self._abandon(handling)
            if attempt is not None:
                cancel(attempt)
        self._attempts.stop()


def _ignoreStore(failure: Failure) -> None:
    """
    The store does not work, and has said so; this can be done without.
    """
    failure.trap(FCMError)


def _ignoreReceipt(receipt: Receipt) -> None:
    """
    The application does not care for receipts.
    """
