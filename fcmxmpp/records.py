"""
What the command C{fcmxmpp} writes of a message: a record for programs, a row of
a table for people.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

from fcmxmpp.store import browse
from fcmxmpp.store.browse import INBOX, Box, Entry


__all__ = ["TEXTS", "heads", "record", "row"]

#: The columns that may be cut.
TEXTS = ("MESSAGE_ID", "FROM", "TO", "REASON")
#: 9999-12-31 00:00 UTC: a day before the last, for all time zones.
_LAST = 253_402_214_400.0


def _when(seconds: float, zone: timezone | None = None) -> datetime:
    """
    A time that a store has.  A damaged one may have what no calendar has.
    """
    return datetime.fromtimestamp(min(max(seconds, 0.0), _LAST), zone)


def _iso(seconds: float | None) -> str | None:
    """
    A time for programs.
    """
    if seconds is None:
        return None
    return _when(seconds, timezone.utc).isoformat(timespec="milliseconds")[:-6] + "Z"


def _local(seconds: float | None, now: float) -> str:
    """
    A time for people: this year's without the year.
    """
    if seconds is None:
        return ""
    when = _when(seconds)
    return when.strftime("%m-%d %H:%M" if when.year == _when(now).year else "%Y-%m-%d")


def _outcome(stored: bytes) -> dict[str, Any]:
    """
    An outcome for programs, without the time, which C{settled} has.
    """
    try:
        found = json.loads(stored)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        return {"error": "unreadable outcome"}
    found.pop("at", None)
    return found


def record(box: Box, entry: Entry, withBody: bool) -> dict[str, Any]:
    """
    A message for programs.

    @param withBody: whether to tell what is in it, too.
    """
    isInbox = box is INBOX
    result: dict[str, Any] = {
        "number": entry.number,
        "state": entry.state,
        "message_id": entry.message_id,
        "from" if isInbox else "to": entry.peer,
        "arrived" if isInbox else "since": _iso(entry.since),
        "tries": entry.tries,
        "put_aside" if isInbox else "settled": _iso(entry.ended),
    }
    if not isInbox:
        result["reported"] = _iso(entry.reported)
    result["reason"] = entry.reason
    if not withBody:
        return result
    if entry.outcome is not None:
        result["outcome"] = _outcome(entry.outcome)
    wrong = browse.malformed(box, entry.body)
    if wrong is None:
        result["message"] = json.loads(entry.body)
    else:
        result["malformed"] = wrong
        result["text"] = entry.body.decode(errors="backslashreplace")
    return result


def heads(box: Box) -> list[str]:
    """
    What the columns of a table are called.
    """
    if box is INBOX:
        return ["NUMBER", "STATE", "MESSAGE_ID", "FROM", "ARRIVED", "TRIES", "PUT ASIDE", "REASON"]
    return ["NUMBER", "STATE", "MESSAGE_ID", "TO", "SINCE", "TRIES", "SETTLED", "REASON"]


def row(entry: Entry, now: float) -> list[str]:
    """
    A message for people, under L{heads}.
    """
    peer = entry.peer
    if len(peer) > 20:
        peer = f"{peer[:8]}…{peer[-8:]}"
    tries = "" if entry.tries is None else str(entry.tries)
    ended = _local(entry.ended, now)
    since = _local(entry.since, now)
    return [str(entry.number), entry.state, entry.message_id, peer, since, tries, ended, entry.reason or ""]
