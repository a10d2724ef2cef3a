"""
How a connection server uses the store of what devices have entrusted to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from fcmxmpp.entries import EntrustedEntry, UnreadableEntry
from fcmxmpp.errors import Stopped, StoreUnavailable
from fcmxmpp.interfaces import IEntrusted
from fcmxmpp.messages import Receipt, UpstreamMessage
from fcmxmpp.retry import backoff


__all__ = ["Custody"]

_log = Logger()

_T = TypeVar("_T")

#: How many entries are loaded at once.
PAGE = 1000


class Custody:
    """
    What devices have entrusted to a connection server, as the store has it.

      1. L{start} loads what is there, and tries until that succeeds.
      2. L{add} takes something over; it fails if the store does.
      3. L{remove} forgets something, and tries until that succeeds.
      4. L{stop} waits for all that is under way.

    @ivar isLoaded: whether what was there at the start has been loaded; until
        then nothing must be added.
    """

    def __init__(
        self,
        store: IEntrusted,
        clock: IReactorTime,
        loaded: Callable[[list[EntrustedEntry]], None],
        notLoaded: Callable[[], None],
    ) -> None:
        """
        @param loaded: is called once, with all that was there at the start.
        @param notLoaded: is called each time that could not be loaded.
        """
        self._store = store
        self._clock = clock
        self._tellLoaded = loaded
        self._tellNotLoaded = notLoaded
        self.isLoaded = False
        self._running = False
        self._underWay = 0
        self._idle: list[Deferred[None]] = []
        # What could not be removed.
        self._left: set[int] = set()
        self._failures = 0
        self._next: IDelayedCall | None = None

    def start(self) -> None:
        """
        Load what is there.  That is done once: after that, all that is there
        is known.
        """
        self._running = True
        self._goOn()

    def _goOn(self) -> None:
        """
        Do what is to be done, or could not be.
        """
        self._next = None
        if not self.isLoaded:
            self._do(Deferred.fromCoroutine(self._pages()), self._loaded, self._notLoaded)
        left, self._left = self._left, set()
        for number in left:
            self.remove(number)

    def _later(self) -> None:
        """
        Try again what has failed, after a while.
        """
        if self._next is None and self._running:
            self._failures += 1
            # No jitter: nobody else waits for this store.
            self._next = self._clock.callLater(backoff(self._failures, 0.0), self._goOn)

    async def _pages(self) -> list[EntrustedEntry]:
        """
        All that is there.
        """
        entries: list[EntrustedEntry] = []
        last = 0
        while page := await self._store.load(last, PAGE):
            last = page[-1].number
            for entry in page:
                if isinstance(entry, UnreadableEntry):
                    # It stays where it is, for people.
                    _log.error(
                        "what a device has entrusted cannot be read: number {number}: {reason}",
                        number=entry.number,
                        reason=entry.reason,
                    )
                else:
                    entries.append(entry)
        return entries

    def _loaded(self, entries: list[EntrustedEntry]) -> None:
        """
        All that was there is known.
        """
        self._failures = 0
        self.isLoaded = True
        if entries:
            _log.info("{count} messages that devices have entrusted were loaded", count=len(entries))
        self._tellLoaded(entries)

    def _notLoaded(self, error: Exception) -> None:
        """
        It is not known what is there, so nothing can be delivered in order.
        """
        _log.error("what devices have entrusted cannot be loaded: {error}; it is tried again", error=error)
        self._tellNotLoaded()
        self._later()

    def add(
        self,
        senderID: str,
        message: UpstreamMessage | Receipt,
        expires: float,
        added: Callable[[EntrustedEntry | None], None],
        refused: Callable[[Exception], None],
        upload: bytes | None = None,
    ) -> None:
        """
        Take something over.

        @param added: is called when that is committed; with None if the upload
            is known.
        @param refused: is called if it is not.
        @param upload: see L{IEntrusted.add}.
        """
        self._do(self._store.add(senderID, message, expires, upload), added, refused)

    def remove(self, number: int) -> None:
        """
        Forget something, sooner or later.
        """

        def removed(_: None) -> None:
            self._failures = 0

        def notRemoved(_: Exception) -> None:
            # The store says so itself.
            self._left.add(number)
            self._later()

        self._do(self._store.remove(number), removed, notRemoved)

    def _do(
        self, doing: Deferred[_T], done: Callable[[_T], None], notDone: Callable[[Exception], None]
    ) -> None:
        """
        Wait for something; L{stop} waits until what it leads to is done, too.
        """

        def failed(failure: Failure) -> None:
            if failure.check(StoreUnavailable, Stopped) is None:
                _log.failure("using the store of a connection server failed", failure)
            error = failure.value
            assert isinstance(error, Exception)
            notDone(error)

        def ended(_: object) -> None:
            self._underWay -= 1
            if not self._underWay:
                idle, self._idle = self._idle, []
                for waiter in idle:
                    waiter.callback(None)

        self._underWay += 1
        doing.addCallbacks(done, failed)
        doing.addErrback(lambda failure: _log.failure("telling what became of a message failed", failure))
        doing.addCallback(ended)

    def stop(self) -> Deferred[None]:
        """
        Wait for what is under way.  What could not be removed gets one more
        try; if that fails it will be delivered again.
        """
        self._running = False
        if self._next is not None:
            self._next.cancel()
            self._next = None
        left, self._left = self._left, set()
        for number in left:
            self.remove(number)
        if not self._underWay:
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._idle.append(waiter)
        return waiter
