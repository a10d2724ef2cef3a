"""
Downstream: from the application's C{send} to the connection server's answer.

What is sent waits in one bounded queue until the link with the fewest
unanswered messages has room for it.  What has been sent without success, and
may be sent again, waits for that in the order in which it was first sent,
ahead of the queue, with the same C{message_id}:

  - what a lost stream left unanswered, and what was NACKed because its stream
    was being drained: until there is room on another link;
  - what was NACKed for a reason that passes, and what seems to break the
    streams that it is sent on: for a delay of its own;
  - what was NACKed because its device or topic got too much: in a
    L{_SlowLane}, with everything else for that target and one at a time, so
    that the others do not wait behind it.

An application that is told of an outcome may send, cancel or stop there and
then, so the books are in order before anybody is told anything.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from math import inf

from msgspec import structs
from twisted.internet.defer import Deferred, fail
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from fcmxmpp.client import FCMClientProtocol, ISettles
from fcmxmpp.errors import (
    AckTimedOut,
    Expired,
    FCMError,
    Nacked,
    NotSendable,
    QueueFull,
    StillUnanswered,
    Stopped,
)
from fcmxmpp.interfaces import AppServerEvent, Refused, Sent, Settled
from fcmxmpp.messages import MAX_DOWNSTREAM_TTL, Ack, DownstreamMessage
from fcmxmpp.payload import MAX_TEXT, encode
from fcmxmpp.retry import nackDelay, rateDelay
from fcmxmpp.validation import checkSendable


__all__ = ["MAX_QUEUE", "DownstreamSender"]

_log = Logger()

#: How many messages may wait, in all.
MAX_QUEUE = 10_000
#: Seconds that "now or never" gets, because a full window may take a moment.
NOW = 1.0
#: Seconds between looks for messages whose time has run out, at least.
SWEEP = 1.0
#: How many streams a message may be the first on without an answer, when they
#: break, before it is kept apart.
SUSPECT = 5
#: The part of the limit, one in so many, that may wait for one slow target.
LANE_SHARE = 10
#: Up to how many characters of C{to} or C{condition} a message that is good
#: fits into a stanza for sure, so that it need not be measured.
_SHORT_TARGET = 1024


class _Outgoing:
    """
    One message on its way.

    Nearly all are accepted at once, so what they begin with stands in the class.
    """

    #: How often it has been written to a stream.
    tries = 0
    inFlight = False
    #: Whether it has been refused, held back, or lost with its stream; if not,
    #: nothing that follows here is of any interest.
    isTroubled = False
    #: How often it was NACKed for a reason that passes; and the last such reason.
    refusals = 0
    lastError = ""
    #: How many streams broke when it was the first without an answer.
    losses = 0
    #: A newer registration token that came with a NACK.
    newToken: str | None = None
    #: The call that will have it sent again.
    delayed: IDelayedCall | None = None
    #: The lane that it waits in, or whose turn it has.
    lane: _SlowLane | None = None

    def __init__(
        self,
        number: int,
        message: DownstreamMessage,
        message_id: str,
        since: float,
        result: Deferred[Ack],
        noteTries: Callable[[int], object] | None,
    ) -> None:
        #: Counts the messages; what is sent again goes by it.
        self.number = number
        self.message = message
        self.message_id = message_id
        self.result = result
        self.noteTries = noteTries
        self.since = since
        ttl = message.time_to_live
        self.expires = since + (MAX_DOWNSTREAM_TTL if ttl is None else max(ttl, NOW))

    def __lt__(self, other: _Outgoing) -> bool:
        """
        Whether it was sent first.
        """
        return self.number < other.number

    @property
    def target(self) -> str | None:
        """
        Whom it is for.
        """
        return self.message.to or self.message.condition


def _takeOut(waiting: list[_Outgoing], outgoing: _Outgoing) -> bool:
    """
    Take a message out of a list that is in the order of sending.

    @return: whether it was there.
    """
    place = bisect_left(waiting, outgoing)
    found = place < len(waiting) and waiting[place] is outgoing
    if found:
        del waiting[place]
    return found


class _SlowLane:
    """
    The messages for a device or topic that got too much: after a delay they go
    one at a time, and as soon as one is accepted the next.

    @ivar refusals: how often in a row it was too much.
    @ivar pause: the call that ends the delay.
    @ivar busy: the message that has been let go and is not settled yet.
    @ivar waiting: the others, in the order they were sent.
    """

    __slots__ = ("busy", "pause", "refusals", "waiting")

    def __init__(self) -> None:
        self.refusals = 0
        self.pause: IDelayedCall | None = None
        self.busy: _Outgoing | None = None
        self.waiting: list[_Outgoing] = []


def _checkSize(message: DownstreamMessage) -> None:
    """
    Check that a message that is good otherwise fits into a stanza: the
    connection server would end the stream for it, and each that it is sent on
    again.

    @raise NotSendable: if it does not.
    """
    if len(encode(message)) > MAX_TEXT // 2:
        field = "condition" if message.to is None else "to"
        raise NotSendable(field, "must not make the message larger than a stanza may be")


@implementer(ISettles)
class DownstreamSender:
    """
    Sends downstream messages over whichever link is the least busy.

    @ivar successes: how many messages were accepted.
    @ivar failures: how many were not; those that C{send} refused are not counted.
    """

    def __init__(
        self,
        newID: Callable[[], str],
        clock: IReactorTime,
        random: Callable[[], float],
        observe: Callable[[AppServerEvent], None] | None = None,
        limit: int = MAX_QUEUE,
    ) -> None:
        """
        @param newID: makes a C{message_id} that was never used before.
        @param random: gives a number from 0 to 1, for jitter.
        @param observe: is told what happens.
        @param limit: how many messages may wait.
        """
        self._newID = newID
        self._clock = clock
        self._seconds = clock.seconds
        self._random = random
        self._observe = observe
        self._limit = limit
        self._count = 0
        self.successes = 0
        self.failures = 0
        # All that is not settled, wherever it is.
        self._unsettled: dict[str, _Outgoing] = {}
        self._inFlight = 0
        # What is sent for the first time, and what is sent again; both in the
        # order of sending.  Not a plain dict: taking the first of one is slow
        # after many deletions.
        self._queue: OrderedDict[str, _Outgoing] = OrderedDict()
        self._again: list[_Outgoing] = []
        # What seems to break streams, while there is none.
        self._suspects: list[_Outgoing] = []
        self._lanes: dict[str | None, _SlowLane] = {}
        # How many wait in them.
        self._slowed = 0
        self._links: list[FCMClientProtocol] = []
        # Whether there has ever been one.
        self._wasReady = False
        self._filling = False
        # Whether it is of no use to look for room before a link tells that there
        # is some: there was none when it was looked for last, or a link will have
        # told in a moment what else has been accepted.
        self._isHeld = False
        # When it is looked for messages whose time has run out.
        self._sweep: IDelayedCall | None = None
        self._sweepAt = inf
        # The end of the grace period, once there is one.
        self._deadline: float | None = None
        self._idle: Deferred[None] | None = None

    # What the application does.

    def prepare(self, message: DownstreamMessage) -> DownstreamMessage:
        """
        See whether a message could be sent now.

        @return: the message, with a C{message_id}.
        @raise FCMError: if not: what L{send} would fail with at once.
        """
        if self._deadline is not None:
            raise Stopped("the app server has stopped")
        if isinstance(message, DownstreamMessage) and message.message_id is None:
            message = structs.replace(message, message_id=self._newID())
        checkSendable(message)
        if message.message_id in self._unsettled:
            raise StillUnanswered
        target = message.to or message.condition
        assert target is not None
        if len(target) > _SHORT_TARGET:
            _checkSize(message)
        if self._isFull:
            if self._isHeld:
                # What has been accepted, and not all read yet, may have made room;
                # and whoever is told of something when that is used may change all.
                self._linkTold()
                if not self._isFull:
                    return self.prepare(message)
            raise QueueFull(f"{self._limit} messages wait already")
        if self._lanes:
            self._checkLane(target)
        return message

    def send(
        self,
        message: DownstreamMessage,
        since: float | None = None,
        noteTries: Callable[[int], object] | None = None,
    ) -> Deferred[Ack]:
        """
        See L{IDownstreamSender.send<fcmxmpp.interfaces.IDownstreamSender.send>},
        without a store.

        @param since: when it was sent first, in the seconds of the clock: its
            C{time_to_live} counts from then.  None for now.
        @param noteTries: is called just before the message is settled, with
            how often it was written to a stream.
        """
        try:
            message = self.prepare(message)
        except FCMError:
            return fail(Failure())
        message_id = message.message_id
        assert message_id is not None
        now = self._seconds()
        result: Deferred[Ack] = Deferred(partial(self._withdraw, message_id))
        self._count += 1
        # Clocks are set back now and then; nothing was sent in the future.
        first = now if since is None else min(since, now)
        outgoing = _Outgoing(self._count, message, message_id, first, result, noteTries)
        self._unsettled[message_id] = self._queue[message_id] = outgoing
        if not self._isHeld:
            self._fill()
        if not outgoing.inFlight and outgoing.expires < self._sweepAt and not result.called:
            self._noteWaiting(outgoing)
        return result

    @property
    def slowed(self) -> int:
        """
        How many messages wait because their device or topic got too much.
        """
        return self._slowed

    @property
    def _isFull(self) -> bool:
        """
        Whether no more may wait.  What waits for slow targets takes no place
        from the others.
        """
        return len(self._unsettled) - self._inFlight - self._slowed >= self._limit

    def _checkLane(self, target: str) -> None:
        """
        Check that one more message may wait for this target, if it is slow.

        @raise QueueFull: if it may not.
        """
        lane = self._lanes.get(target)
        if lane is not None and (
            len(lane.waiting) >= self._limit // LANE_SHARE or self._slowed >= self._limit
        ):
            raise QueueFull("this device or topic gets more than it may, and too much waits for it already")

    def _withdraw(self, message_id: str, result: Deferred[Ack]) -> None:
        """
        The application cancelled the Deferred of a message.
        """
        outgoing = self._unsettled.get(message_id)
        if outgoing is None or outgoing.result is not result:
            # It is being cancelled already, and here somebody cancels it who
            # was told of what came of that.
            return
        # One that has been sent keeps its place until it is answered, or its
        # message_id could be used twice; nobody is told the answer.
        if not outgoing.inFlight:
            self._forget(outgoing)
            self._noteIdle()
            self._fill()

    # On its way.

    def _fill(self) -> None:
        """
        Send what waits, as far as there is room, each on the link that is the
        least busy.
        """
        if self._filling or self._isHeld:
            # Whoever is told of something sends again; the loop below goes on.
            return
        self._filling = True
        try:
            while self._again or self._queue:
                link, room = self._leastBusy()
                if link is None:
                    self._isHeld = True
                    return
                # Whoever is told of something may also close the link.
                while room and link.takesMore and (self._again or self._queue):
                    outgoing = self._again.pop(0) if self._again else self._queue.popitem(last=False)[1]
                    self._sendOn(link, outgoing)
                    room -= 1
        finally:
            self._filling = False

    def _leastBusy(self) -> tuple[FCMClientProtocol | None, int]:
        """
        The link with the most room.

        @return: the link, if there is one with room, and how many messages may
            be sent on it before the links are to be compared again.
        """
        best, most, next_ = None, 0, 0
        for link in self._links:
            room = link.room
            if room > most:
                best, most, next_ = link, room, most
            elif room > next_:
                next_ = room
        return best, max(1, most - next_)

    def _sendOn(self, link: FCMClientProtocol, outgoing: _Outgoing) -> None:
        """
        Send a message whose turn has come, if there is time for it and nothing
        else before it.
        """
        now = self._seconds()
        if now >= outgoing.expires:
            self._expire(outgoing)
            return
        if self._lanes and outgoing.lane is None:
            lane = self._lanes.get(outgoing.target)
            if lane is not None:
                self._slow(lane, outgoing)
                self._stopLate([outgoing])
                return
        message = outgoing.message
        if message.time_to_live and now - outgoing.since >= 1:
            # It is counted from the first send, and here as well as there.
            left = max(1, int(outgoing.expires - now))
            message = structs.replace(message, time_to_live=left)
        outgoing.inFlight = True
        self._inFlight += 1
        try:
            link.sendDownstream(message)
        except NotSendable as error:
            # Its data were changed after send().
            self._settle(outgoing, error)
            return
        outgoing.tries += 1
        if self._observe is not None:
            self._observe(Sent(message, link.number, outgoing.tries))

    def _landed(self, message: DownstreamMessage) -> _Outgoing | None:
        """
        A message is no longer on a stream.

        @return: what there is of it; None if the application cancelled it or
            was told that all is over.
        """
        outgoing = self._unsettled.get(message.message_id or "")
        if outgoing is None:
            return None
        outgoing.inFlight = False
        self._inFlight -= 1
        if outgoing.result.called:
            self._forget(outgoing)
            self._noteIdle()
            return None
        return outgoing

    def _refused(self, outgoing: _Outgoing, error: Nacked) -> None:
        """
        A message was NACKed: see what is to be done.
        """
        outgoing.isTroubled = True
        # Told once is enough, be it by an earlier NACK.
        error.registration_id = outgoing.newToken = error.registration_id or outgoing.newToken
        if error.permanent:
            self._settle(outgoing, error)
            return
        outgoing.lastError = str(error)
        delay = 0.0
        if error.error == "CONNECTION_DRAINING":
            insort(self._again, outgoing)
        elif error.tooMuch:
            delay = self._slowDown(outgoing)
        else:
            outgoing.refusals += 1
            delay = nackDelay(outgoing.refusals, self._random())
            outgoing.delayed = self._clock.callLater(delay, self._retry, outgoing)
        # Its lane may have got a pause that is longer than the grace.
        self._stopLate([outgoing] if outgoing.lane is None else [outgoing, *outgoing.lane.waiting])
        if not outgoing.result.called:
            self._noteWaiting(outgoing)
            if self._observe is not None:
                self._observe(Refused(outgoing.message, outgoing.lastError, delay))

    def _retry(self, outgoing: _Outgoing) -> None:
        """
        The delay of a message is over.
        """
        outgoing.delayed = None
        insort(self._again, outgoing)
        self._fill()

    # Targets that got too much.

    def _slow(self, lane: _SlowLane, outgoing: _Outgoing) -> None:
        """
        Have a message wait in its place.
        """
        insort(lane.waiting, outgoing)
        outgoing.lane, outgoing.isTroubled = lane, True
        self._slowed += 1

    def _slowDown(self, outgoing: _Outgoing) -> float:
        """
        A device or topic got too much.

        @return: seconds until it gets something again.
        """
        target = outgoing.target
        lane = self._lanes.setdefault(target, _SlowLane())
        if lane.busy is outgoing:
            lane.busy = None
        self._slow(lane, outgoing)
        if lane.pause is None:
            # Of a hundred in flight, the first says it all.
            lane.refusals += 1
            delay = rateDelay(lane.refusals, self._random())
            lane.pause = self._clock.callLater(delay, self._resume, lane, target)
        return max(0.0, lane.pause.getTime() - self._clock.seconds())

    def _resume(self, lane: _SlowLane, target: str | None) -> None:
        """
        The delay of a target is over.
        """
        lane.pause = None
        self._advance(lane, target)
        self._fill()

    def _advance(self, lane: _SlowLane, target: str | None) -> None:
        """
        Let the next message of a lane go, if it is time.
        """
        if lane.pause is not None or lane.busy is not None:
            return
        if lane.waiting:
            lane.busy = lane.waiting.pop(0)
            self._slowed -= 1
            insort(self._again, lane.busy)
        else:
            del self._lanes[target]

    # The end of a message.

    def _forget(self, outgoing: _Outgoing) -> None:
        """
        Have nothing more to do with a message.
        """
        del self._unsettled[outgoing.message_id]
        if outgoing.inFlight:
            outgoing.inFlight = False
            self._inFlight -= 1
        elif outgoing.tries == 0:
            self._queue.pop(outgoing.message_id, None)
        if outgoing.isTroubled:
            self._forgetTrouble(outgoing)

    def _forgetTrouble(self, outgoing: _Outgoing) -> None:
        """
        See L{_forget}, for a message that may wait anywhere.
        """
        if outgoing.delayed is not None:
            outgoing.delayed.cancel()
            outgoing.delayed = None
        _takeOut(self._again, outgoing)
        _takeOut(self._suspects, outgoing)
        lane = outgoing.lane
        if lane is not None:
            self._slowed -= _takeOut(lane.waiting, outgoing)
            if lane.busy is outgoing:
                lane.busy = None
                self._advance(lane, outgoing.target)

    def _settle(self, outgoing: _Outgoing, outcome: Ack | FCMError) -> None:
        """
        Tell the application what became of a message.
        """
        self._forget(outgoing)
        if type(outcome) is Ack:
            error = None
            self.successes += 1
        else:
            assert isinstance(outcome, FCMError)
            error = outcome
            self.failures += 1
        if self._observe is not None:
            seconds = self._clock.seconds() - outgoing.since
            self._observe(Settled(outgoing.message, error, outgoing.tries, seconds))
        # Whoever was told may have cancelled it.
        result = outgoing.result
        if not result.called:
            if outgoing.noteTries is not None:
                outgoing.noteTries(outgoing.tries)
            if error is None:
                assert type(outcome) is Ack
                result.callback(outcome)
            else:
                result.errback(error)
        if self._idle is not None:
            self._noteIdle()

    def _expire(self, outgoing: _Outgoing) -> None:
        """
        A message's time has run out.
        """
        why = f"; the last answer was {outgoing.lastError}" if outgoing.lastError else ""
        self._settle(outgoing, Expired(f"not accepted within its time_to_live{why}", outgoing.newToken))

    def _noteWaiting(self, outgoing: _Outgoing) -> None:
        """
        A message begins to wait: have it looked at when its time runs out.
        """
        now = self._clock.seconds()
        at = max(outgoing.expires, now + SWEEP)
        if at >= self._sweepAt:
            return
        self._sweepAt = at
        if self._sweep is None:
            self._sweep = self._clock.callLater(at - now, self._sweepWaiting)
        else:
            self._sweep.reset(at - now)

    def _sweepWaiting(self) -> None:
        """
        Give up the messages that wait in vain.
        """
        self._sweep, self._sweepAt = None, inf
        now = self._clock.seconds()
        for outgoing in list(self._unsettled.values()):
            if outgoing.inFlight or outgoing.result.called:
                continue
            if now >= outgoing.expires:
                self._expire(outgoing)
            else:
                self._noteWaiting(outgoing)
        self._fill()

    # The end of everything.

    def _noteIdle(self) -> None:
        """
        Tell who waits for the end that nothing is unsettled any more.
        """
        if self._idle is not None and not self._unsettled:
            idle, self._idle = self._idle, None
            idle.callback(None)

    def _comesTooLate(self, outgoing: _Outgoing) -> bool:
        """
        Whether a message can be sent only when the grace period is over.
        """
        if self._deadline is None or outgoing.inFlight:
            return False
        pause = outgoing.delayed
        lane = outgoing.lane
        if lane is not None and lane.busy is not outgoing:
            pause = lane.pause
        return pause is not None and pause.getTime() > self._deadline

    def _stopLate(self, outgoings: Iterable[_Outgoing]) -> None:
        """
        If there is a grace period, give up those of some messages that can be
        sent only when it is over, so that nobody waits for that.
        """
        if self._deadline is not None:
            for outgoing in list(outgoings):
                if self._comesTooLate(outgoing) and not outgoing.result.called:
                    self._stopOne(outgoing)

    def _stopOne(self, outgoing: _Outgoing) -> None:
        """
        Give a message up because of the stop.
        """
        self._settle(outgoing, Stopped("the app server stopped before the message was answered"))

    async def stop(self, grace: float) -> None:
        """
        Take nothing more, and let what is on its way come to its end.

        @param grace: seconds that it gets; then every Deferred that is open
            fails with L{Stopped<fcmxmpp.errors.Stopped>}.
        """
        if self._deadline is not None:
            return
        self._deadline = self._clock.seconds() + grace
        self._stopLate(self._unsettled.values())
        # Whoever these were in the way of may go now.
        self._fill()
        # Between two links as well: the next one may be logging in.
        if self._unsettled and self._wasReady and grace > 0:
            self._idle = Deferred()
            try:
                await self._idle.addTimeout(grace, self._clock)
            except DeferredTimeoutError:
                self._idle = None
        # Nothing goes out from here on, whatever those do who are told.
        self._links.clear()
        for outgoing in list(self._unsettled.values()):
            if not outgoing.result.called:
                self._stopOne(outgoing)
        # What is left was cancelled when it was on its way.
        self._unsettled.clear()
        self._inFlight = 0
        for call in [self._sweep, *[lane.pause for lane in self._lanes.values()]]:
            if call is not None:
                call.cancel()
        self._sweep, self._sweepAt = None, inf
        self._lanes.clear()
        self._slowed = 0

    # What the links tell: see ISettles.

    def _linkTold(self) -> None:
        """
        There may be room where there was none: send what waits.
        """
        self._isHeld = False
        self._fill()

    def linkReady(self, protocol: FCMClientProtocol) -> None:
        """
        See L{ISettles.linkReady}.
        """
        self._wasReady = True
        self._links.append(protocol)
        if self._suspects:
            self._delaySuspects()
        self._linkTold()

    def linkHasRoom(self, protocol: FCMClientProtocol) -> None:
        """
        See L{ISettles.linkHasRoom}.
        """
        self._linkTold()

    def linkDraining(self, protocol: FCMClientProtocol) -> None:
        """
        See L{ISettles.linkDraining}.
        """
        # It still tells of answers.
        self._dropLink(protocol)

    def _dropLink(self, protocol: FCMClientProtocol) -> None:
        """
        Send nothing more on a link.
        """
        if protocol in self._links:
            self._links.remove(protocol)

    def linkLost(self, protocol: FCMClientProtocol, unanswered: list[DownstreamMessage]) -> None:
        """
        See L{ISettles.linkLost}.
        """
        wasDrained = protocol not in self._links
        self._dropLink(protocol)
        for place, message in enumerate(unanswered):
            outgoing = self._landed(message)
            if outgoing is None:
                continue
            outgoing.isTroubled = True
            if place == 0 and not wasDrained and self._suspect(outgoing):
                continue
            insort(self._again, outgoing)
            self._noteWaiting(outgoing)
        self._linkTold()

    def _suspect(self, outgoing: _Outgoing) -> bool:
        """
        A stream was lost when this message was the first without an answer.
        Now and then that happens to every message; if it happens to one again
        and again, the connection server may well break because of it, and then
        it must not take all streams down with it, one after the other.

        @return: whether it has to wait, while the others go on.
        """
        outgoing.losses += 1
        if outgoing.losses < SUSPECT:
            return False
        _log.warn(
            "{losses} connections broke when {message_id!r} was the first without an answer; "
            "it waits for a while, so that the others get through",
            losses=outgoing.losses,
            message_id=outgoing.message_id[:100],
        )
        insort(self._suspects, outgoing)
        self._noteWaiting(outgoing)
        if self._links:
            self._delaySuspects()
        return True

    def _delaySuspects(self) -> None:
        """
        There is a link for the others: let the time of those begin that are
        kept apart.
        """
        suspects, self._suspects = self._suspects, []
        for outgoing in suspects:
            delay = rateDelay(outgoing.losses - SUSPECT + 1, self._random())
            outgoing.delayed = self._clock.callLater(delay, self._retry, outgoing)
        self._stopLate(suspects)

    def accepted(self, protocol: FCMClientProtocol, message: DownstreamMessage, ack: Ack) -> None:
        """
        See L{ISettles.accepted}.
        """
        # Whoever is told of it and sends the next does so many times in a row.
        self._isHeld = True
        outgoing = self._landed(message)
        if outgoing is not None:
            if outgoing.isTroubled:
                ack = self._despiteTrouble(outgoing, ack)
            self._settle(outgoing, ack)

    def _despiteTrouble(self, outgoing: _Outgoing, ack: Ack) -> Ack:
        """
        A message has been accepted that was not at first.

        @return: the ACK, with what is known of the device.
        """
        if outgoing.lane is not None:
            outgoing.lane.refusals = 0
        if outgoing.newToken is not None and ack.registration_id is None:
            # It was told with a NACK, before the message was sent again.
            return structs.replace(ack, registration_id=outgoing.newToken)
        return ack

    def refused(self, protocol: FCMClientProtocol, message: DownstreamMessage, error: Nacked) -> None:
        """
        See L{ISettles.refused}.
        """
        self._isHeld = False
        outgoing = self._landed(message)
        if outgoing is not None:
            self._refused(outgoing, error)
        self._fill()

    def overdue(self, protocol: FCMClientProtocol, message: DownstreamMessage) -> None:
        """
        See L{ISettles.overdue}.
        """
        self._isHeld = False
        outgoing = self._landed(message)
        if outgoing is not None:
            self._settle(outgoing, AckTimedOut("the connection server did not answer in time"))
        self._fill()
