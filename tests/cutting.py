"""
Bytes that come in several reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise


def pieces(data: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    """
    Cut bytes at these places, each counted from the beginning again if it is
    beyond the end; no piece is empty.
    """
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for begin, end in pairwise(edges):
        if begin != end:
            yield data[begin:end]
