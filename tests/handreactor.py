"""
A reactor that is turned by hand, for what has a thread of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import Queue
from typing import Any

from twisted.internet.task import Clock


__all__ = ["HandReactor"]


class HandReactor(Clock):
    """
    A clock, to which threads may tell things; these happen when the test says.
    """

    def __init__(self) -> None:
        super().__init__()
        self._told: Queue[tuple[Callable[..., object], tuple[object, ...]]] = Queue()

    def callFromThread(self, callable: Callable[..., object], *args: object) -> None:
        """
        See L{twisted.internet.interfaces.IReactorFromThreads}.
        """
        self._told.put((callable, args))

    def turn(self, times: int = 1) -> None:
        """
        Do what is due, then wait until a thread tells something, and do that.
        """
        for _ in range(times):
            self.advance(0)
            # Long enough never to matter, unless the thread is dead.
            callable, args = self._told.get(timeout=60)
            callable(*args)

    def turnUntil(self, fired: Any) -> Any:
        """
        The same, until a Deferred has fired.

        @return: it.
        """
        while not fired.called:
            self.turn()
        return fired
