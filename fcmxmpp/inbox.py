"""
From the inbox to the application, and from the links to the inbox.

Under the policy C{stored} a message is acknowledged when its commit is done,
and handled after that, from the inbox; so an application that is slow, or down,
does not hold up the connection server.  What waits is on the disk; in memory
are only so many.

Under every policy what the inbox holds is handled: what a process left that
died, and what C{fcmxmpp inbox retry} put back.
"""

from __future__ import annotations

from collections import deque
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from fcmxmpp.delivery import STORE_DELAY, UpstreamDelivery
from fcmxmpp.entries import InboxEntry, UnreadableEntry
from fcmxmpp.errors import FCMError, MalformedPayload, QueueFull, Stopped, StoreUnavailable
from fcmxmpp.interfaces import IInbox, IResponsible
from fcmxmpp.lanes import Lanes
from fcmxmpp.messages import Receipt, UpstreamMessage


__all__ = ["InboxDelivery"]

_log = Logger()
_T = TypeVar("_T")

#: How many messages of the inbox are in memory, and may be handled at once.
AT_ONCE = 1000
#: How many commits may be under way.  A connection server that keeps to its
#: windows never gets there.
MAX_COMMITS = 10_000
#: Seconds between looks for what others have put into the inbox.
POLL = 5.0


@implementer(IResponsible)
class InboxDelivery:
    """
    Takes responsibility for what the links bring by committing it to an inbox,
    and has handled what is there, in its order.
    """

    def __init__(
        self, inbox: IInbox, delivery: UpstreamDelivery, clock: IReactorTime, atOnce: int = AT_ONCE
    ) -> None:
        """
        @param delivery: what has messages handled.
        @param atOnce: how many messages are in memory.
        """
        self._inbox = inbox
        self._delivery = delivery
        self._clock = clock
        self._atOnce = atOnce
        # How many commits are under way; and those that wait for the store to
        # work again, each with what will try it again.
        self._commits = 0
        self._waiting: dict[Deferred[None], IDelayedCall] = {}
        # Where devices have an order: what is committed one at a time, and
        # whether somebody is already giving those their turn for whom it has
        # come.
        self._lanes: Lanes[Deferred[None]] = Lanes()
        self._advancing = False
        self._toldTooMany: float | None = None
        self._toldNotOpen = False
        # What has been committed and is about to be handled: its ACK first.
        self._fresh: deque[InboxEntry | UnreadableEntry] = deque()
        self._turn: IDelayedCall | None = None
        # Up to where the inbox has been given to the delivery; whether there
        # may be something behind that is only on the disk; and whether that is
        # being read.
        self._last = 0
        self._behind = True
        self._loading = False
        self._inHand = 0
        self._poll: IDelayedCall | None = None
        self._running = False

    def start(self) -> None:
        """
        Handle what is in the inbox, and what comes.
        """
        self._running = True
        self._load()

    # From the links to the inbox.

    def take(self, message: UpstreamMessage | Receipt) -> Deferred[None]:
        """
        See L{IResponsible.take}.

        @return: fires when the message is in the inbox, or has been there.
        """
        if not self._running:
            return fail(Stopped("stopping"))
        if self._commits >= MAX_COMMITS:
            self._logTooMany()
            return fail(QueueFull("too many messages wait for the store"))
        self._commits += 1
        lane = self._delivery.laneOf(message)
        return self._commit(message) if lane is None else self._commitInTurn(message, lane)

    def _logTooMany(self) -> None:
        """
        Say that too much waits for the store: once a minute.
        """
        now = self._clock.seconds()
        if self._toldTooMany is None or now - self._toldTooMany >= 60:
            self._toldTooMany = now
            _log.error(
                "{count} messages wait for the store; no more are taken over, and they are not acknowledged",
                count=self._commits,
            )

    def _commitInTurn(self, message: UpstreamMessage | Receipt, lane: str) -> Deferred[None]:
        """
        Have a message committed once those that came before it, of the same
        device, are: a commit that fails must not let the next one overtake it.
        """
        turn: Deferred[None] = Deferred()
        turn.addCallback(lambda _: self._commit(message))
        turn.addBoth(self._leaveLane, lane, turn)
        self._lanes.enter(lane, turn)
        self._advance()
        return turn

    def _leaveLane(self, result: _T, lane: str, turn: Deferred[None]) -> _T:
        """
        A message is out of the way of those behind it.
        """
        self._lanes.leave(lane, turn)
        self._advance()
        return result

    def _advance(self) -> None:
        """
        Have those committed whose turn has come.
        """
        if self._advancing:
            # A loop, and not a call within the other: there may be thousands.
            return
        self._advancing = True
        try:
            while (turn := self._lanes.next()) is not None:
                turn.callback(None)
        finally:
            self._advancing = False

    def _commit(self, message: UpstreamMessage | Receipt) -> Deferred[None]:
        """
        Have a message committed.
        """
        if not self._running:
            self._commits -= 1
            return fail(_notStored())
        added: Deferred[Any] = self._inbox.add(message)
        return added.addCallbacks(
            self._added, self._notAdded, callbackArgs=(message,), errbackArgs=(message,)
        )

    def _added(self, entry: InboxEntry | None, message: UpstreamMessage | Receipt) -> None:
        """
        A message is in the inbox, or was there before.
        """
        self._commits -= 1
        self._delivery.noteArrived(message, entry is not None)
        if entry is not None:
            self._give(entry)

    def _notAdded(self, failure: Failure, message: UpstreamMessage | Receipt) -> Deferred[None]:
        """
        The store does not work, and has said so: the message stays
        unacknowledged, and it is tried again for as long as it takes.
        """
        if failure.check(FCMError) is None:
            _log.failure("using the store failed", failure)
        if not self._running or failure.check(StoreUnavailable) is None:
            self._commits -= 1
            return fail(_notStored())
        waiting: Deferred[None] = Deferred()
        self._waiting[waiting] = self._clock.callLater(STORE_DELAY, self._tryAgain, waiting)
        return waiting.addCallback(lambda _: self._commit(message))

    def _tryAgain(self, waiting: Deferred[None]) -> None:
        """
        Perhaps the store works again.
        """
        del self._waiting[waiting]
        waiting.callback(None)

    def takeMalformed(self, error: MalformedPayload, text: str) -> Deferred[None]:
        """
        See L{IResponsible.takeMalformed}.
        """
        return self._delivery.takeMalformed(error, text)

    def discard(self, error: MalformedPayload) -> None:
        """
        See L{IResponsible.discard}.
        """
        self._delivery.discard(error)

    # From the inbox to the application.

    def _give(self, entry: InboxEntry) -> None:
        """
        Have a new entry handled, unless others come first that are only on the
        disk.
        """
        if self._loading:
            # It is read, or else the next look finds it.
            return
        if self._behind or entry.number != self._last + 1 or self._inHand >= self._atOnce:
            # A gap means that somebody else has put something into the inbox.
            self._behind = True
            self._loadIfRoom()
        else:
            self._hand(entry)

    def _hand(self, entry: InboxEntry | UnreadableEntry) -> None:
        """
        Have an entry handled: not at once, so that its ACK goes out first.
        """
        self._last = entry.number
        self._inHand += 1
        if self._turn is None:
            self._turn = self._clock.callLater(0, self._handle)
        self._fresh.append(entry)

    def _handle(self) -> None:
        """
        Have handled what has come since this was called last.
        """
        self._turn = None
        while self._fresh:
            entry = self._fresh.popleft()
            if isinstance(entry, InboxEntry):
                self._delivery.handle(entry, self._isDone)
            else:
                self._delivery.putAside(entry, self._isDone)

    def _isDone(self) -> None:
        """
        There is room for another message.
        """
        self._inHand -= 1
        if self._behind:
            self._loadIfRoom()

    def _loadIfRoom(self) -> None:
        """
        Read on when half of what was in memory is done.
        """
        if not self._loading and self._running and self._inHand <= self._atOnce // 2:
            self._load()

    def _load(self) -> None:
        """
        Read what comes next.
        """
        if self._poll is not None:
            if self._poll.active():
                self._poll.cancel()
            self._poll = None
        self._loading = True
        limit = self._atOnce - self._inHand
        loaded = self._inbox.load(self._last, limit)
        loaded.addCallbacks(self._loaded, self._notLoaded, callbackArgs=(limit,))

    def _loaded(self, entries: list[InboxEntry | UnreadableEntry], limit: int) -> None:
        """
        Have handled what was read.
        """
        self._loading = False
        if not self._running:
            return
        for entry in entries:
            self._hand(entry)
        self._behind = len(entries) >= limit
        if self._behind:
            self._loadIfRoom()
        else:
            self._poll = self._clock.callLater(POLL, self._load)

    def _notLoaded(self, failure: Failure) -> None:
        """
        The store does not work, and has said so: try again.
        """
        self._loading = False
        self._behind = True
        if failure.check(FCMError) is None:
            _log.failure("reading the inbox failed", failure)
        if self._running:
            if failure.check(Stopped) is not None and not self._toldNotOpen:
                # A mistake of whoever put the services together, and then the
                # store says nothing.
                self._toldNotOpen = True
                _log.error("the inbox cannot be read: {reason}", reason=str(failure.value))
            self._poll = self._clock.callLater(STORE_DELAY, self._load)

    def stop(self) -> None:
        """
        Take nothing more, and begin nothing more: it is in the inbox.
        """
        self._running = False
        for call in (self._turn, self._poll):
            if call is not None and call.active():
                call.cancel()
        self._turn = self._poll = None
        self._fresh.clear()
        waiting, self._waiting = self._waiting, {}
        for each, again in waiting.items():
            again.cancel()
            self._commits -= 1
            each.errback(_notStored())


def _notStored() -> Stopped:
    """
    Why a message is not acknowledged.
    """
    return Stopped("stopped before the message was stored")
