"""
A store with a will of its own, for the tests of those that use one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail

from fcmxmpp.errors import StoreUnavailable


class Unruly:
    """
    Part of a store (an inbox, an outbox) that can be held up or broken.

    What is called while it is held up is done on L{release}, in order, as by a
    thread that takes its time; while it is broken everything fails and nothing
    is done.

    @ivar broken: whether it is.
    @ivar held: whether it is held up.
    @ivar calls: the names of the methods that were called.
    """

    def __init__(self, part: Any) -> None:
        self._part = part
        self._waiting: list[Callable[[], None]] = []
        self.broken = False
        self.held = False
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        """
        A method of the part, if it is one.
        """
        method = getattr(self._part, name)
        if not callable(method):
            return method

        def call(*arguments: Any) -> Deferred[Any]:
            self.calls.append(name)
            if not self.held:
                return self._try(method, arguments)
            result: Deferred[Any] = Deferred()
            self._waiting.append(lambda: self._try(method, arguments).addBoth(result.callback))
            return result

        return call

    def _try(self, method: Callable[..., Deferred[Any]], arguments: tuple[Any, ...]) -> Deferred[Any]:
        """
        Do something, if that works.
        """
        return fail(StoreUnavailable("the disk is full: make room")) if self.broken else method(*arguments)

    def release(self, most: int | None = None) -> None:
        """
        Do what waits, and hold nothing up any more; or do only so much of it.
        """
        if most is None:
            self.held = False
            most = len(self._waiting)
        now, self._waiting = self._waiting[:most], self._waiting[most:]
        for do in now:
            do()

    def drop(self) -> None:
        """
        The process is dead: what waits is never done.
        """
        self._waiting.clear()
