"""
How many messages may be unanswered at once, and what waits behind them.

A L{Window} belongs to one stream: at most so many messages sent and not yet
answered, and who they are when the stream is lost.  A L{Queue} stands in front
of the windows of one sender's streams: bounded, in order, and what a lost
stream gives back goes to its front.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar


__all__ = ["Queue", "Window"]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Window(Generic[K, T]):
    """
    The unanswered messages of one stream, in the order they were sent.

      1. L{add} takes a message if there is room for it.
      2. L{answer} gives it back, and frees its place.
      3. L{clear} gives back all that are left, in the order they were sent.

    @ivar size: how many may be unanswered at once.
    @ivar unanswered: those that are, in the order they were sent.
    """

    __slots__ = ("size", "unanswered")

    def __init__(self, size: int) -> None:
        self.size = size
        self.unanswered: dict[K, T] = {}

    @property
    def room(self) -> int:
        """
        How many more may be sent now.
        """
        return self.size - len(self.unanswered)

    def add(self, key: K, item: T) -> None:
        """
        Note a message as sent.

        @raise ValueError: if the window is full, or the key is unanswered
            already: a bug of the caller.
        """
        if len(self.unanswered) >= self.size:
            raise ValueError("the window is full")
        if key in self.unanswered:
            raise ValueError("this key is unanswered already")
        self.unanswered[key] = item

    def answer(self, key: K) -> T | None:
        """
        Note an answer.

        @return: the message that it answers, or None if it answers none.
        """
        return self.unanswered.pop(key, None)

    def clear(self) -> list[T]:
        """
        Give up: the stream is gone.

        @return: all the unanswered messages, in the order they were sent.
        """
        items = list(self.unanswered.values())
        self.unanswered.clear()
        return items


class Queue(Generic[K, T]):
    """
    Messages that wait, first in first out, each known by its key.

    @ivar limit: how many may wait; what a lost stream gives back is taken
        regardless, because it was accepted before.
    """

    __slots__ = ("_waiting", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        # Not a plain dict: taking the first of one is slow after many deletions.
        self._waiting: OrderedDict[K, T] = OrderedDict()

    def __len__(self) -> int:
        """
        How many wait.
        """
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """
        Whether no more is taken.
        """
        return len(self._waiting) >= self.limit

    def append(self, key: K, item: T) -> None:
        """
        Take a message, behind all the others.

        @raise ValueError: if the queue is full, or the key waits already.
        """
        if self.full:
            raise ValueError("the queue is full")
        if key in self._waiting:
            raise ValueError("this key waits already")
        self._waiting[key] = item

    def giveBack(self, items: Iterable[tuple[K, T]]) -> None:
        """
        Take messages back, in their order and before all the others.
        """
        for key, item in reversed(list(items)):
            self._waiting[key] = item
            self._waiting.move_to_end(key, last=False)

    def take(self) -> T | None:
        """
        Take out the message that has waited longest.
        """
        return self._waiting.popitem(last=False)[1] if self._waiting else None

    def clear(self) -> list[T]:
        """
        Take out everything, in order.
        """
        items = list(self._waiting.values())
        self._waiting.clear()
        return items
