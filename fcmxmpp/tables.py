"""
Tables for people at a terminal.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Collection, Iterator, Sequence


__all__ = ["printable", "table"]

#: Columns that a text keeps however narrow the terminal is.
NARROW = 7
#: More characters than this, for each column of a terminal, are no text.
PILE = 4


def printable(text: str, keep: str = "") -> str:
    """
    A text that does nothing to a terminal, with JSON's escapes for what would:
    a C{message_id} is whatever a device says it is.

    @param keep: the one character that may stay.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each == keep else json.dumps(each)[1:-1] for each in text)


def _width(text: str) -> int:
    """
    How many columns of a terminal a text takes.
    """
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1
        for each in text
    )


def _cut(text: str, width: int) -> str:
    """
    A text in just so many columns.
    """
    # No language has more than a few characters to a column, but some pile them up to bury a line.
    if _width(text) > width or len(text) > PILE * width:
        # A character takes two columns at most.
        text = text[: 2 * width]
        while _width(text) > width - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (width - _width(text))


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], texts: Collection[str], room: int
) -> Iterator[str]:
    """
    Lines of aligned columns; those in which there is nothing are left out.

    @param texts: the heads of those that may be cut; those that are the widest
        are cut first.
    @param room: columns of the terminal.  No line is longer, unless the texts
        would become too short.
    """
    places = [place for place in range(len(heads)) if any(row[place] for row in rows)]
    lines = [[printable(row[place]) for place in places] for row in [heads, *rows]]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    flexible = [index for index, place in enumerate(places) if heads[place] in texts]
    excess = sum(widths) + 2 * (len(widths) - 1) - room
    while excess > 0 and flexible:
        widest = max(flexible, key=widths.__getitem__)
        if widths[widest] <= NARROW:
            break
        widths[widest] -= 1
        excess -= 1
    for row in lines:
        yield "  ".join(map(_cut, row, widths)).rstrip()
