"""
Conditions: which subscribers of which topics a downstream message is for.

A condition is made of C{'NAME' in topics}, C{&&}, C{||}, parentheses and
C{!(...)}.  As Google's documentation has it, parentheses come first and all
else goes from left to right: C{&&} does not bind more tightly than C{||}.
Letters of either case are the same.
"""

from __future__ import annotations

import re
from collections.abc import Container

from msgspec import Struct

from fcmxmpp.errors import NotSendable


__all__ = ["MAX_TOPICS", "TOPIC_NAME", "Condition", "parse"]

#: How many different topics one condition may name.
MAX_TOPICS = 5
#: How long a condition may be: it has room for five topics of the longest names.
_MAX_LENGTH = 8192
#: The regular expression of a topic's name.
TOPIC_NAME = r"[a-zA-Z0-9_.~%-]{1,900}"

#: One topic, one operator or one parenthesis, and the white space before it.
_TOKEN = re.compile(
    rf"\s*(?:'(?P<topic>{TOPIC_NAME})'\s*in\s+topics|(?P<sign>&&|\|\||!\s*\(|\(|\)))",
    re.ASCII | re.IGNORECASE,
)
_SPACE = re.compile(r"\s*", re.ASCII)

#: A condition of five topics is a table of 32 rows, one for each set of topics
#: that a device may have, and a table is an integer of 32 bits.  Row n has
#: topic k if bit k of n is set, and these are the tables of each topic alone.
_TABLES = (0xAAAAAAAA, 0xCCCCCCCC, 0xF0F0F0F0, 0xFF00FF00, 0xFFFF0000)
_ALL = 0xFFFFFFFF


class Condition(Struct, frozen=True):
    """
    A condition that was understood.

    @ivar topics: the topics that it names, in lower case, each once, in the
        order in which they appear.
    @ivar table: what it says: bit n is for the devices that have topic k
        exactly where bit k of n is set.
    """

    topics: tuple[str, ...]
    table: int

    def matches(self, topics: Container[str]) -> bool:
        """
        Whether a message with this condition is for a device.

        @param topics: what the device has subscribed to, in lower case.
        """
        row = 0
        for number, topic in enumerate(self.topics):
            if topic in topics:
                row |= 1 << number
        return bool(self.table >> row & 1)


class _Group:
    """
    What stands between two parentheses, read from left to right.

    @ivar inverted: whether a C{!} stands before it.
    """

    __slots__ = ("_isAnd", "_table", "inverted")

    def __init__(self, inverted: bool) -> None:
        self.inverted = inverted
        # Nothing yet, so that the first operand is added to nothing.
        self._table = 0
        self._isAnd = False

    def operator(self, sign: str) -> None:
        """
        Take the operator before the next operand.
        """
        self._isAnd = sign == "&&"

    def operand(self, table: int) -> None:
        """
        Take an operand.
        """
        if self._isAnd:
            self._table &= table
        else:
            self._table |= table

    def close(self) -> int:
        """
        The table of the whole.
        """
        return self._table ^ _ALL if self.inverted else self._table


def parse(text: str) -> Condition:
    """
    Read a condition.

    Time and memory grow with the length of the text, and with nothing else:
    there is no recursion.

    @raise NotSendable: if it is none.  The reason says what must stand at
        which character, counted from 1; it does not quote the text.
    """
    if len(text) > _MAX_LENGTH:
        raise NotSendable("condition", f"must not have more than {_MAX_LENGTH} characters")
    tables: dict[str, int] = {}
    groups = [_Group(False)]
    # Whether an operand has just ended.
    complete = False
    at = 0
    while (match := _TOKEN.match(text, at)) is not None:
        topic, sign = match.group("topic", "sign")
        if complete != (sign in ("&&", "||", ")")) or (sign == ")" and len(groups) == 1):
            break
        if topic is not None:
            table = tables.get(topic.lower())
            if table is None:
                if len(tables) == MAX_TOPICS:
                    raise NotSendable("condition", f"must not name more than {MAX_TOPICS} topics")
                table = tables[topic.lower()] = _TABLES[len(tables)]
            groups[-1].operand(table)
            complete = True
        elif sign == ")":
            table = groups.pop().close()
            groups[-1].operand(table)
        elif complete:
            groups[-1].operator(sign)
            complete = False
        else:
            groups.append(_Group(sign != "("))
        at = match.end()
    space = _SPACE.match(text, at)
    assert space is not None
    if complete and len(groups) == 1 and space.end() == len(text):
        return Condition(tuple(tables), groups[0].close())
    if not complete:
        wanted = "'NAME' in topics or an opening parenthesis"
    elif len(groups) > 1:
        wanted = "&&, || or a closing parenthesis"
    else:
        wanted = "&&, || or the end"
    raise NotSendable("condition", f"must have {wanted} at character {space.end() + 1}")
