"""
Lanes: one at a time in each, in order, and all lanes at once.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from itertools import islice
from typing import Generic, TypeVar


__all__ = ["Lanes"]

_T = TypeVar("_T")


class Lanes(Generic[_T]):
    """
    Where things wait for those that entered the same lane before them.

    An item has its turn when it is the first of its lane, and keeps it until
    it leaves.  Lanes come and go with what is in them.
    """

    def __init__(self) -> None:
        # The first of each has its turn.
        self._lanes: dict[str, deque[_T]] = {}
        # Those whose first has not been given out yet.
        self._due: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        """
        How many lanes there are with something in them.
        """
        return len(self._lanes)

    def enter(self, lane: str, item: _T) -> None:
        """
        Add an item behind all others of its lane.
        """
        items = self._lanes.get(lane)
        if items is None:
            self._lanes[lane] = deque([item])
            self._due[lane] = None
        else:
            items.append(item)

    def leave(self, lane: str, item: _T) -> None:
        """
        Take an item out, whether it has had its turn or not.

        @raise KeyError: if there is no such lane.
        @raise ValueError: if the item is not in it.
        """
        items = self._lanes[lane]
        first = items[0]
        items.remove(item)
        if not items:
            del self._lanes[lane]
            self._due.pop(lane, None)
        elif items[0] is not first:
            self._due[lane] = None

    def next(self) -> _T | None:
        """
        Give out an item whose turn has come, once; those that have been waiting
        for it longest come first.

        @return: None if there is no such item.
        """
        if not self._due:
            return None
        lane, _ = self._due.popitem(last=False)
        return self._lanes[lane][0]

    def waiting(self) -> list[_T]:
        """
        All items that have not been given out, in no order but that of their
        lanes.
        """
        return [
            item
            for lane, items in self._lanes.items()
            for item in islice(items, 0 if lane in self._due else 1, None)
        ]
