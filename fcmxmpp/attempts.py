"""
Calling the application: tries with back-off, time-outs, and what is logged of
it.

The application may answer at once, by a Deferred, a coroutine or another
awaitable; it may answer several calls by one Deferred; it may raise, hang, or
say that it cannot work at all just now.  L{Attempts} makes one of three things
of that: succeeded, given up, or abandoned because of the stop.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from fcmxmpp.errors import HandlerFailed, HandlerTimedOut, HandlerUnavailable
from fcmxmpp.retry import backoff


__all__ = ["Attempts", "Task", "cancel"]

_log = Logger()


class Task:
    """
    One thing that the application is called for.

    Nearly all are done at once, so what they begin with stands in the class.

    @ivar name: what the log calls it: a C{message_id}.
    @ivar tries: tries that count.
    """

    tries = 0
    #: Tries in a row at which the application said that it cannot work.
    unavailable = 0
    #: What the application returned and has not fired yet, and until when
    #: it may.
    attempt: Deferred[Any] | None = None
    deadline = 0.0
    #: The call that will make the next try.
    retry: IDelayedCall | None = None

    def __init__(self, name: str) -> None:
        self.name = name


_T = TypeVar("_T", bound=Task)


class Attempts(Generic[_T]):
    """
    Calls the application for each task until it is done with it.

    @ivar calling: how many calls are on the stack just now: more than one if
        the application, while it is called, has the next task begun.
    """

    def __init__(
        self,
        call: Callable[[_T], Awaitable[object] | None],
        *,
        succeeded: Callable[[_T], None],
        failed: Callable[[_T, float | None], None],
        givenUp: Callable[[_T, str], None],
        abandoned: Callable[[_T], None],
        underWay: Callable[[], int],
        timeout: float,
        tries: int,
        clock: IReactorTime,
        random: Callable[[], float],
        what: str = "handler",
    ) -> None:
        """
        @param call: calls the application.
        @param succeeded: is called when it is done with a task; C{tries}
            counts the last one.
        @param failed: is called for each try that failed, with the seconds to
            the next one or None if there is none.
        @param givenUp: is called when there are no more tries, with the reason,
            which has nothing of the contents.
        @param abandoned: is called instead of another try after
            L{retryNoMore}.
        @param underWay: how many tasks there are, for the log.
        @param timeout: seconds that a call may take.
        @param tries: how often a task is tried.
        @param random: gives a number from 0 to 1, for jitter.
        @param what: what the log calls the application's object.
        """
        self._callFor = call
        self._succeeded = succeeded
        self._failedOnce = failed
        self._givenUp = givenUp
        self._abandoned = abandoned
        self._underWay = underWay
        self._timeout = timeout
        self._tries = tries
        self._clock = clock
        self._random = random
        self._what = what
        # Those that have not fired, in the order they time out: one timer
        # serves them all, as the time-out is the same for all.
        self._attempts: dict[_T, None] = {}
        # Whose attempt a Deferred is; an application that works in batches may
        # return one and the same for several tasks.
        self._batches: dict[Deferred[Any], list[_T]] = {}
        # Those that have failed: they hold no failure any more, and would look
        # like a success if they were returned again.
        self._failed: WeakSet[Deferred[Any]] = WeakSet()
        self._sweep: IDelayedCall | None = None
        self._toldUnavailable: float | None = None
        self._stopping = False
        self.calling = 0

    def begin(self, task: _T) -> None:
        """
        Call the application for a task, now.
        """
        self.calling += 1
        try:
            result = self._callFor(task)
            attempt = None if result is None else _asDeferred(result)
        except BaseException:
            # All that there is, SystemExit and asyncio's CancelledError, too: one
            # message must not end the process, nor stay here for ever.
            self._tryFailed(task, Failure())
        else:
            if attempt is None:
                self._done(task)
            else:
                self._wait(task, attempt)
        finally:
            self.calling -= 1

    def _again(self, task: _T) -> None:
        """
        Make the next try.
        """
        task.retry = None
        self.begin(task)

    def _wait(self, task: _T, attempt: Deferred[Any]) -> None:
        """
        The application is at work.
        """
        if attempt in self._failed:
            error = HandlerFailed("the handler returned a Deferred that has failed before")
            self._tryFailed(task, Failure(error))
            return
        task.attempt = attempt
        task.deadline = self._clock.seconds() + self._timeout
        self._attempts[task] = None
        if self._sweep is not None and self._sweep.getTime() > task.deadline:
            self._clockSetBack(task.deadline)
        batch = self._batches.get(attempt)
        if batch is not None:
            batch.append(task)
        else:
            self._batches[attempt] = [task]
            attempt.addCallbacks(
                self._attemptSucceeded, self._attemptFailed, callbackArgs=(attempt,), errbackArgs=(attempt,)
            )
            attempt.addErrback(_bug)
        self._setSweep()

    def _end(self, task: _T) -> None:
        """
        What the application returned does not matter any more.
        """
        task.attempt = None
        self._attempts.pop(task, None)

    def _attemptSucceeded(self, _: object, attempt: Deferred[Any]) -> None:
        """
        What the application returned has fired.
        """
        for task in self._batches.pop(attempt):
            if task.attempt is attempt:
                self._end(task)
                self._done(task)

    def _attemptFailed(self, failure: Failure, attempt: Deferred[Any]) -> None:
        """
        What the application returned has failed.  If it had been given up,
        that has been told already.
        """
        self._failed.add(attempt)
        for task in self._batches.pop(attempt):
            if task.attempt is attempt:
                self._end(task)
                self._tryFailed(task, failure)

    def _done(self, task: _T) -> None:
        """
        The application is done with a task.
        """
        task.tries += 1
        if self._toldUnavailable is not None:
            self._toldUnavailable = None
            _log.info("the {what} works again", what=self._what)
        self._succeeded(task)

    def _tryFailed(self, task: _T, failure: Failure) -> None:
        """
        A try has failed.
        """
        delay: float | None = None
        isLast = False
        if failure.check(HandlerUnavailable) is not None:
            task.unavailable += 1
            delay = backoff(task.unavailable, self._random())
        else:
            task.unavailable = 0
            task.tries += 1
            isLast = task.tries >= self._tries
            delay = backoff(task.tries, self._random())
        if isLast or self._stopping:
            delay = None
        self._logFailed(task, failure, isLast, delay)
        self._failedOnce(task, delay)
        if isLast:
            self._givenUp(task, f"the {self._what} failed {task.tries} times, last: {_nameOf(failure)}")
        elif delay is None:
            self._abandoned(task)
        else:
            task.retry = self._clock.callLater(delay, self._again, task)

    def _logFailed(self, task: _T, failure: Failure, isLast: bool, delay: float | None) -> None:
        """
        One failure with its traceback for a task, one line for each more; and
        no traceback where it would show nothing but ourselves.
        """
        if task.unavailable:
            self._logUnavailable(failure)
            return
        name = _nameOf(failure)
        then = "no more tries" if isLast else "no more tries before the stop"
        if delay is not None:
            then = f"next try in {delay:.1f} s"
        if task.tries == 1 and failure.check(HandlerFailed) is None:
            _log.failure(
                "the {what} failed on {message_id!r}: {name}; {then}",
                _withoutText(failure),
                what=self._what,
                message_id=task.name[:100],
                name=name,
                then=then,
            )
        else:
            _log.warn(
                "the {what} failed {again}on {message_id!r}: {name}; {then}",
                what=self._what,
                again="again " if task.tries > 1 else "",
                message_id=task.name[:100],
                name=name,
                then=then,
            )

    def _logUnavailable(self, failure: Failure) -> None:
        """
        Say that the application cannot work: once a minute, not for each task.
        """
        now = self._clock.seconds()
        if self._toldUnavailable is None or now - self._toldUnavailable >= 60:
            self._toldUnavailable = now
            _log.warn(
                "the {what} cannot work now: {reason}; messages that wait for it: {count}",
                what=self._what,
                reason=str(failure.value),
                count=self._underWay(),
            )

    # Time-outs.

    def _setSweep(self) -> None:
        """
        Have the oldest attempt looked at when its time is up.
        """
        if self._sweep is None and self._attempts:
            oldest = next(iter(self._attempts))
            delay = max(0.0, oldest.deadline - self._clock.seconds())
            self._sweep = self._clock.callLater(delay, self._timeOut)

    def _clockSetBack(self, latest: float) -> None:
        """
        The clock has been set back: nobody gets more time for that.

        @param latest: the deadline of whoever is called just now.
        """
        for task in self._attempts:
            task.deadline = min(task.deadline, latest)
        assert self._sweep is not None
        self._sweep.cancel()
        self._sweep = None

    def _timeOut(self) -> None:
        """
        Give up the attempts whose time is up.
        """
        self._sweep = None
        now = self._clock.seconds()
        late = []
        for task in self._attempts:
            if task.deadline > now:
                break
            late.append((task, task.attempt))
        for task, attempt in late:
            # Cancelling one may have ended another.
            if attempt is not None and task.attempt is attempt:
                self._end(task)
                cancel(attempt)
                self._tryFailed(task, Failure(HandlerTimedOut(f"it took more than {self._timeout:g} s")))
        self._setSweep()

    # The end.

    def retryNoMore(self) -> None:
        """
        From now on a try that fails is the last one.
        """
        self._stopping = True

    def withdraw(self, task: _T) -> Deferred[Any] | None:
        """
        Have nothing more to do with a task; nothing is called for it any more.

        @return: what the application returned and has not fired yet, to be
            given to L{cancel} once everything is in order.
        """
        attempt = task.attempt
        self._end(task)
        if task.retry is not None:
            task.retry.cancel()
            task.retry = None
        return attempt

    def stop(self) -> None:
        """
        Leave no timer behind; all tasks are done or withdrawn.
        """
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


def cancel(attempt: Deferred[Any]) -> None:
    """
    Tell the application that its answer is not waited for any more.
    """
    try:
        attempt.cancel()
    except Exception:
        # Its own canceller raised, whatever it pleased; that must not keep us
        # from going on.
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


def _withoutText(failure: Failure) -> Failure:
    """
    The same failure, with its type and its traceback, but without its text:
    that often quotes the message.
    """
    return Failure(HandlerFailed(_nameOf(failure)), HandlerFailed, failure.getTracebackObject())
