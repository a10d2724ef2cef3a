"""
Downstream with a store: from the application's C{send} to the outbox, from
there to the links, and from the answer to who wants to know of it.

A message belongs to the outbox from its commit on; that is when C{send} fires.
What the outbox holds goes to the L{DownstreamSender}, which knows links,
windows and retries, in the order of its numbers.  In memory are only so many
messages: what there is no room for is read from the outbox when there is.  A
new message takes the short way, without being read, if nothing comes before it
that is only on the disk; whatever is not clear is settled by reading.

An outcome is committed before anybody is told of it, and then reported until
the application has taken it or has failed on it too often.  What dies with the
process is done again by the next one: a message without outcome is sent, an
outcome that is not known to be reported is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from msgspec import structs
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from fcmxmpp.attempts import Attempts, Task, cancel
from fcmxmpp.downstream import DownstreamSender
from fcmxmpp.entries import OutboxEntry, Outcome, SettledEntry, UnreadableEntry
from fcmxmpp.errors import FCMError, QueueFull, StillUnanswered, Stopped, StoreUnavailable, Unreadable
from fcmxmpp.interfaces import IDownstreamSender, IOutbox, IOutcomeHandler, Stored
from fcmxmpp.messages import Ack, DownstreamMessage
from fcmxmpp.retry import backoff


__all__ = ["AT_ONCE", "LIMIT", "MAX_COMMITS", "StoredSender"]

_log = Logger()
_T = TypeVar("_T")

#: How many messages without outcome the outbox may hold.
LIMIT = 1_000_000
#: How many of them are in memory, and how many outcomes that are to be reported.
AT_ONCE = 5_000
#: How many commits of new messages may be under way.
MAX_COMMITS = 10_000
#: Seconds between looks for what others have put into the outbox.
POLL = 5.0
#: Seconds after which what was left in the outbox, because too much waits for
#: its device or topic, is tried again.
RESCAN = 30.0
#: The longest pause before something is tried again that the store could not do.
STORE_DELAY = 10.0
#: Seconds that the store gets at the stop, at least, to note what is known.
PATIENCE = 3.0


class _Work:
    """
    What is under way with the outbox, and is tried until it is done.
    """

    def __init__(self, clock: IReactorTime, random: Callable[[], float]) -> None:
        self._clock = clock
        self._random = random
        self._jobs: set[Deferred[None]] = set()
        self._idle: Deferred[None] | None = None
        self._isOver = False

    def begin(self, coroutine: Coroutine[Deferred[Any], Any, None]) -> None:
        """
        Do something; whatever fails there is logged.
        """
        job = Deferred.fromCoroutine(coroutine)
        self._jobs.add(job)
        job.addErrback(_ended)
        job.addCallback(self._done, job)

    def _done(self, _: None, job: Deferred[None]) -> None:
        """
        Something is done.
        """
        self._jobs.discard(job)
        if self._idle is not None and not self._jobs:
            idle, self._idle = self._idle, None
            idle.callback(None)

    async def insist(self, do: Callable[..., Deferred[_T]], *arguments: object) -> _T:
        """
        Use the store until it works; it says itself that it does not.
        """
        failures = 0
        while True:
            try:
                return await do(*arguments)
            except StoreUnavailable:
                if self._isOver:
                    raise
                failures += 1
                delay = backoff(failures, self._random(), most=STORE_DELAY)
                await deferLater(self._clock, delay)

    async def wait(self, seconds: float) -> None:
        """
        Wait until nothing is under way; but not for longer than this.
        """
        if self._jobs:
            self._idle = Deferred()
            await _inTime(self._idle, seconds, self._clock)
            self._idle = None

    def end(self) -> None:
        """
        Give up what is under way, and try nothing again any more.
        """
        self._isOver = True
        for job in list(self._jobs):
            job.cancel()


async def _inTime(waiting: Deferred[None], seconds: float, clock: IReactorTime) -> None:
    """
    Wait for something; but not for longer than so many seconds.
    """
    with suppress(DeferredTimeoutError):
        await waiting.addTimeout(max(0.0, seconds), clock)


def _ended(failure: Failure) -> None:
    """
    Something was not done to its end.
    """
    # What the stop has ended is found by the next start.
    if failure.check(CancelledError, Stopped, StoreUnavailable) is None:
        _log.failure("using the outbox failed", failure)


class _Ticket:
    """
    What a L{Stored} asks for its outcome.

    @ivar awaited: keeps the tickets that somebody waits for.
    """

    __slots__ = ("__weakref__", "_awaited", "_number", "_result", "_waiters")

    def __init__(self, number: int, awaited: dict[int, _Ticket]) -> None:
        self._number = number
        self._awaited = awaited
        self._result: Ack | FCMError | None = None
        self._waiters: list[Deferred[Ack]] = []

    def whenSettled(self, stored: Stored) -> Deferred[Ack]:
        """
        See L{Stored.whenSettled}.
        """
        if isinstance(self._result, FCMError):
            return fail(self._result)
        if self._result is not None:
            return succeed(self._result)
        waiter: Deferred[Ack] = Deferred(self._leave)
        self._waiters.append(waiter)
        self._awaited[self._number] = self
        return waiter

    def _leave(self, waiter: Deferred[Ack]) -> None:
        """
        Somebody does not want to know any more.
        """
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            if not self._waiters:
                del self._awaited[self._number]

    def tell(self, result: Ack | FCMError) -> None:
        """
        This is the outcome.
        """
        self._result = result
        self._awaited.pop(self._number, None)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            # Whoever was told before may have cancelled it.
            if waiter.called:
                continue
            if isinstance(result, FCMError):
                waiter.errback(result)
            else:
                waiter.callback(result)


class _Report(Task):
    """
    An outcome that is to be reported.
    """

    def __init__(self, number: int, outcome: Outcome) -> None:
        super().__init__(outcome.message.message_id or "")
        self.number = number
        self.outcome = outcome


class _Reports:
    """
    Reports outcomes to the application.
    """

    def __init__(
        self,
        outbox: IOutbox,
        handler: IOutcomeHandler,
        work: _Work,
        clock: IReactorTime,
        random: Callable[[], float],
        timeout: float,
        tries: int,
        atOnce: int,
        isOpen: Callable[[int], bool],
    ) -> None:
        """
        @param isOpen: whether the outcome of the message with this number is
            still being committed, as far as it is known here.
        """
        self._outbox = outbox
        self._work = work
        self._clock = clock
        self._atOnce = atOnce
        self._isOpen = isOpen
        self._attempts: Attempts[_Report] = Attempts(
            lambda report: handler.messageSettled(report.outcome),
            succeeded=self._succeeded,
            failed=lambda report, delay: None,
            givenUp=self._givenUp,
            abandoned=self._forget,
            underWay=lambda: len(self._reports),
            timeout=timeout,
            tries=tries,
            clock=clock,
            random=random,
            what="outcome handler",
        )
        # By their numbers, until it is committed that they are reported.
        self._reports: dict[int, _Report] = {}
        # Whether there may be others in the outbox; the reading of them; and
        # which ones have been reported since that began.
        self._behind = True
        self._loading = False
        self._reading: Deferred[list[SettledEntry]] | None = None
        self._gone: set[int] = set()
        self._running = False
        self._isOver = False
        self._idle: Deferred[None] | None = None

    def start(self) -> None:
        """
        Report what an earlier process has left.
        """
        self._running = True
        self._loadIfRoom()

    def add(self, number: int, outcome: Outcome) -> None:
        """
        An outcome has been committed: report it, now or when there is room.
        """
        if self._isOver:
            return
        if len(self._reports) >= self._atOnce:
            self._behind = True
        else:
            self._begin(number, outcome)

    def _begin(self, number: int, outcome: Outcome) -> None:
        """
        Report an outcome.
        """
        report = self._reports[number] = _Report(number, outcome)
        self._attempts.begin(report)

    def _loadIfRoom(self) -> None:
        """
        Read on when half of what was in memory is reported.
        """
        if self._behind and self._running and not self._loading and self._hasRoom:
            self._loading = True
            self._work.begin(self._load())

    @property
    def _hasRoom(self) -> bool:
        """
        Whether it is time to read on.
        """
        return len(self._reports) <= self._atOnce // 2

    async def _load(self) -> None:
        """
        Read what is to be reported, from the beginning: outcomes do not come in
        the order of numbers.
        """
        try:
            while self._behind and self._running and self._hasRoom:
                self._behind = False
                await self._loadAll()
        finally:
            self._loading = False
            self._gone.clear()

    async def _loadAll(self) -> None:
        """
        Read page after page, until all is read or there is no more room.
        """
        last = 0
        while True:
            insisting = self._work.insist(self._outbox.unreported, last, self._atOnce)
            # Of its own, so that the stop can end it, and nothing else.
            self._reading = Deferred.fromCoroutine(insisting)
            page = await self._reading
            for settled in page:
                if not self._running or len(self._reports) >= self._atOnce:
                    self._behind = True
                    return
                if self._isNew(settled):
                    self._begin(settled.number, settled.outcome)
            if len(page) < self._atOnce:
                return
            last = page[-1].number

    def _isNew(self, settled: SettledEntry) -> bool:
        """
        Whether an outcome that was read is nowhere else.
        """
        number = settled.number
        return not (number in self._reports or number in self._gone or self._isOpen(number))

    def _givenUp(self, report: _Report, reason: str) -> None:
        """
        The application does not take an outcome.
        """
        _log.error(
            "the outcome of {message_id!r} will not be reported again: {reason}",
            message_id=report.name[:100],
            reason=reason,
        )
        self._succeeded(report)

    def _succeeded(self, report: _Report) -> None:
        """
        An outcome is reported: note that.
        """
        self._work.begin(self._record(report))

    async def _record(self, report: _Report) -> None:
        """
        See L{_succeeded}.
        """
        await self._work.insist(self._outbox.reported, report.number)
        if self._loading:
            self._gone.add(report.number)
        self._forget(report)
        self._loadIfRoom()

    def _forget(self, report: _Report) -> None:
        """
        Have nothing more to do with an outcome.
        """
        del self._reports[report.number]
        if self._idle is not None and not self._reports:
            idle, self._idle = self._idle, None
            idle.callback(None)

    # The end.

    def stopping(self) -> None:
        """
        Read nothing more, and try nothing again.
        """
        self._running = False
        if self._reading is not None:
            self._reading.cancel()
        self._attempts.retryNoMore()
        for report in list(self._reports.values()):
            if report.retry is not None:
                self._attempts.withdraw(report)
                self._forget(report)

    async def stop(self, seconds: float) -> None:
        """
        Wait for reports that are under way; but not for longer than this.
        """
        if self._reports:
            self._idle = Deferred()
            await _inTime(self._idle, seconds, self._clock)
            self._idle = None
        self._isOver = True
        attempts = [self._attempts.withdraw(report) for report in self._reports.values()]
        for attempt in attempts:
            if attempt is not None:
                cancel(attempt)
        self._attempts.stop()


class _Open:
    """
    A message of the outbox that is in memory.

    @ivar tries: how often it was written to a stream.
    """

    __slots__ = ("message", "number", "tries")

    def __init__(self, number: int, message: DownstreamMessage) -> None:
        self.number = number
        self.message = message
        self.tries = 0

    def noteTries(self, tries: int) -> None:
        """
        See L{DownstreamSender.send}.
        """
        self.tries = tries


@implementer(IDownstreamSender)
class StoredSender:
    """
    Sends downstream messages by way of an outbox.

    @ivar successes: how many messages were accepted.
    @ivar failures: how many have another outcome.
    """

    def __init__(
        self,
        outbox: IOutbox,
        sender: DownstreamSender,
        outcomes: IOutcomeHandler | None,
        clock: IReactorTime,
        random: Callable[[], float],
        timeout: float,
        tries: int,
        limit: int = LIMIT,
        atOnce: int = AT_ONCE,
    ) -> None:
        """
        @param sender: what sends; nobody else sends by it.
        @param outcomes: whom outcomes are reported to.
        @param clock: the reactor; it has the time of the outbox.
        @param random: gives a number from 0 to 1, for jitter.
        @param timeout: seconds that a report may take.
        @param tries: how often an outcome is reported, if that fails.
        @param limit: how many messages without outcome the outbox may hold.
        @param atOnce: how many of them are in memory, and not more than may
            wait in the sender.  Those that it holds back, because their device
            or topic got too much, are not counted.
        """
        self._outbox = outbox
        self._sender = sender
        self._clock = clock
        self._limit = limit
        self._atOnce = atOnce
        self._work = _Work(clock, random)
        self._reports = None
        if outcomes is not None:
            self._reports = _Reports(
                outbox,
                outcomes,
                self._work,
                clock,
                random,
                timeout,
                tries,
                atOnce,
                lambda number: number in self._open,
            )
        self.successes = 0
        self.failures = 0
        self._running = False
        self._stopping = False
        # The message_ids of what is being committed, and how many messages in
        # the outbox have no outcome.
        self._commits: set[str] = set()
        self._unsettled = 0
        self._recount = False
        # What is in memory, until its outcome is committed; what is cancelled,
        # until it is out of the outbox; and what of both has come to its end
        # since the reading began.
        self._open: dict[int, _Open] = {}
        self._withdrawn: set[int] = set()
        self._gone: set[int] = set()
        # The greatest number that there is, as far as it is known; up to where
        # the outbox has been read; whether there may be something behind that;
        # and the reading of it.
        self._newest = 0
        self._last = 0
        self._behind = True
        self._loading = False
        self._reading: Deferred[list[OutboxEntry | UnreadableEntry]] | None = None
        self._poll: IDelayedCall | None = None
        # The devices and topics for which too much waits in the sender; the
        # first message that was left in the outbox for that; and the call that
        # will have it read again.
        self._full: set[str | None] = set()
        self._firstLeft: int | None = None
        self._rescan: IDelayedCall | None = None
        # Whoever has a Stored may ask, and whoever has asked is told.
        self._awaited: dict[int, _Ticket] = {}
        self._tickets: WeakValueDictionary[int, _Ticket] = WeakValueDictionary()

    def start(self) -> None:
        """
        Go on with what is in the outbox.  The store has been started.
        """
        self._running = True
        self._work.begin(self._count())
        self._loadIfRoom()
        if self._reports is not None:
            self._reports.start()
        self._poll = self._clock.callLater(POLL, self._look)

    async def _count(self) -> None:
        """
        Count what is in the outbox.
        """
        self._unsettled = await self._work.insist(self._outbox.count)

    # From the application to the outbox.

    def send(self, message: DownstreamMessage) -> Deferred[Ack | Stored]:
        """
        See L{IDownstreamSender.send}.
        """
        if self._stopping:
            return fail(Stopped("the app server has stopped"))
        try:
            message = self._sender.prepare(message)
            message_id = message.message_id
            assert message_id is not None
            if message_id in self._commits:
                raise StillUnanswered
            if len(self._commits) >= MAX_COMMITS:
                raise QueueFull("too many messages wait for the store")
            if self._unsettled + len(self._commits) >= self._limit:
                raise QueueFull(f"the outbox holds {self._limit} messages already")
        except FCMError:
            return fail(Failure())
        self._commits.add(message_id)
        result: Deferred[Ack | Stored] = Deferred()
        self._outbox.add(_ownCopy(message)).addCallbacks(
            self._committed,
            self._notCommitted,
            callbackArgs=(message_id, result),
            errbackArgs=(message_id, result),
        ).addErrback(_ended)
        return result

    def _notCommitted(self, failure: Failure, message_id: str, result: Deferred[Ack | Stored]) -> None:
        """
        A message is not in the outbox.
        """
        self._commits.remove(message_id)
        # There may be an older one with this message_id, which had to wait.
        self._behind = True
        if not result.called:
            result.errback(failure)
        self._loadIfRoom()

    def _committed(self, entry: OutboxEntry, message_id: str, result: Deferred[Ack | Stored]) -> None:
        """
        A message is in the outbox.
        """
        self._commits.remove(message_id)
        self._unsettled += 1
        # Otherwise somebody else has put something into the outbox.
        if entry.number != self._newest + 1:
            self._recount = True
        self._newest = max(self._newest, entry.number)
        if result.called:
            # Cancelled meanwhile.
            self._withdrawn.add(entry.number)
            self._give(entry)
            self._work.begin(self._withdraw(entry.number))
        else:
            ticket = self._tickets[entry.number] = _Ticket(entry.number, self._awaited)
            if self._stopping:
                ticket.tell(_stopped())
            self._give(entry)
            result.callback(Stored(message_id, ticket.whenSettled))
        self._loadIfRoom()

    async def _withdraw(self, number: int) -> None:
        """
        Take a message out of the outbox that was never handed over.
        """
        await self._work.insist(self._outbox.withdraw, number)
        self._withdrawn.remove(number)
        self._isGone(number)

    def _isGone(self, number: int) -> None:
        """
        A message is in the outbox no more.
        """
        if self._loading:
            self._gone.add(number)
        self._unsettled = max(0, self._unsettled - 1)

    # From the outbox to the sender.

    @property
    def _room(self) -> int:
        """
        How many messages there is room for in memory.
        """
        return self._atOnce - (len(self._open) - self._sender.slowed)

    def _give(self, entry: OutboxEntry) -> None:
        """
        Hand a new message over, unless others come first that are only on the
        disk.
        """
        if self._loading:
            # Once that is done it is seen whether this was with it.
            return
        if self._behind or not self._running or entry.number != self._last + 1 or self._room <= 0:
            self._behind = True
            return
        self._last = entry.number
        self._hand(entry)

    def _look(self) -> None:
        """
        Look for what others have put into the outbox.
        """
        self._poll = self._clock.callLater(POLL, self._look)
        if self._hasRoom:
            self._behind = True
            self._loadIfRoom()

    @property
    def _hasRoom(self) -> bool:
        """
        Whether it is time to read on: when half of what was in memory is
        settled.
        """
        return self._room > self._atOnce // 2

    def _loadIfRoom(self) -> None:
        """
        Read on, if there may be something to read, and room for it.
        """
        if self._behind and self._running and not self._loading and self._hasRoom:
            self._loading = True
            self._work.begin(self._load())

    async def _load(self) -> None:
        """
        Read page after page, until all is read or there is no more room.
        """
        try:
            while self._behind and self._running and self._hasRoom:
                if self._firstLeft is not None and self._rescan is None:
                    self._last = min(self._last, self._firstLeft - 1)
                    self._firstLeft = None
                    self._full.clear()
                self._behind = False
                room, newest = self._room, self._newest
                # Of its own, so that the stop can end it, and nothing else.
                self._reading = Deferred.fromCoroutine(self._work.insist(self._outbox.load, self._last, room))
                page = await self._reading
                isFull, isWhole = len(page) == room, self._handAll(page)
                if isWhole and not isFull:
                    # What is not there any more need not be looked for again.
                    self._last = max(self._last, newest)
                self._behind = self._behind or isFull or self._newest > self._last
                if not isWhole:
                    # Goes on when that commit is told.
                    return
            if self._recount and not self._behind:
                self._recount = False
                self._work.begin(self._count())
        finally:
            self._loading = False
            self._gone.clear()

    def _handAll(self, page: list[OutboxEntry | UnreadableEntry]) -> bool:
        """
        Hand over what was read.

        @return: whether that was possible; not so if there is one whose commit
            is done, but not told yet: it may have been cancelled.
        """
        for entry in page:
            number = entry.number
            message_id = entry.message_id if isinstance(entry, UnreadableEntry) else entry.message.message_id
            if message_id in self._commits or not self._running:
                return False
            self._last = number
            if number > self._newest:
                self._newest = number
                self._recount = True
            if number in self._open or number in self._gone:
                continue
            if isinstance(entry, UnreadableEntry):
                self._giveUp(entry)
            else:
                self._hand(entry)
        return True

    def _giveUp(self, entry: UnreadableEntry) -> None:
        """
        Settle what cannot be read any more.
        """
        if entry.number in self._withdrawn:
            return
        _log.error(
            "message {message_id!r} cannot be sent: it is unreadable in the store: {reason}",
            message_id=entry.message_id[:100],
            reason=entry.reason,
        )
        message = DownstreamMessage(to=entry.peer, message_id=entry.message_id)
        opened = self._open[entry.number] = _Open(entry.number, message)
        self._settle(opened, None, Unreadable(entry.reason))

    def _hand(self, entry: OutboxEntry) -> None:
        """
        Hand a message over to the sender.
        """
        message = entry.message
        if entry.number in self._withdrawn:
            return
        if (message.to or message.condition) in self._full:
            # Not before the others that were left.
            self._leave(entry.number, message)
            return
        opened = self._open[entry.number] = _Open(entry.number, message)
        self._sender.send(message, entry.since, opened.noteTries).addCallbacks(
            self._accepted, self._failed, callbackArgs=(opened,), errbackArgs=(opened,)
        ).addErrback(_ended)

    def _leave(self, number: int, message: DownstreamMessage) -> None:
        """
        Leave a message in the outbox for now, and all others for the same
        device or topic.
        """
        self._full.add(message.to or message.condition)
        self._firstLeft = number if self._firstLeft is None else min(number, self._firstLeft)
        if self._rescan is None:
            self._rescan = self._clock.callLater(RESCAN, self._readAgain)

    def _readAgain(self) -> None:
        """
        Read again what was left.
        """
        self._rescan = None
        self._behind = True
        self._loadIfRoom()

    # From the sender to the outbox, and to who wants to know.

    def _accepted(self, ack: Ack, opened: _Open) -> None:
        """
        A message was accepted.
        """
        self._settle(opened, ack, None)

    def _failed(self, failure: Failure, opened: _Open) -> None:
        """
        A message was not accepted.
        """
        error = failure.value
        if isinstance(error, (QueueFull, StillUnanswered)):
            del self._open[opened.number]
            self._leave(opened.number, opened.message)
        elif isinstance(error, Stopped):
            del self._open[opened.number]
            self._tell(opened.number, _stopped())
        else:
            assert isinstance(error, FCMError)
            self._settle(opened, None, error)

    def _settle(self, opened: _Open, ack: Ack | None, error: FCMError | None) -> None:
        """
        Note an outcome.
        """
        outcome = Outcome(
            message=opened.message, ack=ack, error=error, tries=opened.tries, at=self._clock.seconds()
        )
        self._work.begin(self._record(opened.number, outcome))

    async def _record(self, number: int, outcome: Outcome) -> None:
        """
        Commit an outcome, and tell it.
        """
        await self._work.insist(self._outbox.settle, number, outcome, self._reports is not None)
        del self._open[number]
        self._isGone(number)
        result = outcome.ack or outcome.error
        assert result is not None
        if outcome.ack is not None:
            self.successes += 1
        else:
            self.failures += 1
        # First, because whoever is told may have reports end, and others read.
        if self._reports is not None:
            self._reports.add(number, outcome)
        self._noteFailure(number, outcome)
        self._tell(number, result)
        self._loadIfRoom()

    def _tell(self, number: int, result: Ack | FCMError) -> None:
        """
        Tell who waits for the outcome of a message, or may ask for it.
        """
        ticket = self._tickets.pop(number, None)
        if ticket is not None:
            ticket.tell(result)

    def _noteFailure(self, number: int, outcome: Outcome) -> None:
        """
        Say that a message failed, where nobody else is told.
        """
        error = outcome.error
        if error is None or self._reports is not None or number in self._awaited:
            return
        _log.warn(
            "message {message_id!r} was not accepted: {reason}; kept: see fcmxmpp outbox list",
            message_id=(outcome.message.message_id or "")[:100],
            # Not its code, which may be anything, if it is an unknown one.
            reason=f"{type(error).__name__}: {error}",
        )

    # The end.

    async def stop(self, grace: float) -> None:
        """
        Take nothing more, and let what is on its way come to its end; what does
        not is in the outbox.

        @param grace: seconds that answers and reports get.
        """
        if self._stopping:
            return
        self._stopping = True
        self._running = False
        deadline = self._clock.seconds() + grace
        for call in (self._poll, self._rescan):
            if call is not None:
                call.cancel()
        self._poll = self._rescan = None
        if self._reading is not None:
            self._reading.cancel()
        if self._reports is not None:
            self._reports.stopping()
        await self._sender.stop(grace)
        latest = max(deadline, self._clock.seconds() + PATIENCE)
        await self._work.wait(latest - self._clock.seconds())
        if self._reports is not None:
            await self._reports.stop(deadline - self._clock.seconds())
            await self._work.wait(latest - self._clock.seconds())
        self._work.end()
        for number in list(self._tickets):
            self._tell(number, _stopped())


def _ownCopy(message: DownstreamMessage) -> DownstreamMessage:
    """
    A message whose dictionaries are nobody else's: it waits here long after
    C{send} has fired, and the application may use its own again then.
    """
    notification = message.notification
    if notification is not None and isinstance(notification.sound, dict):
        notification = structs.replace(notification, sound=dict(notification.sound))
    return structs.replace(message, data=dict(message.data), notification=notification)


def _stopped() -> Stopped:
    """
    What those are told who wait for what is not known.
    """
    return Stopped("the app server stopped first; the message is in the outbox")
