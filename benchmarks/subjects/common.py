"""
What the subjects in Python have in common: their orders, and the log-in as
plain bytes of those that have no XMPP library.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


SENDER = "123456789"
JID = f"{SENDER}@gcm.googleapis.com/benchmark"
#: One in so many downstream messages is timed.
SAMPLE = 16

_HEADER = (
    b'<stream:stream to="gcm.googleapis.com" version="1.0" xmlns="jabber:client" '
    b'xmlns:stream="http://etherx.jabber.org/streams">'
)
#: What is said in turn, and how the answer to it ends.
LOGIN = [
    (_HEADER, b"</stream:features>"),
    (
        b'<auth mechanism="PLAIN" xmlns="urn:ietf:params:xml:ns:xmpp-sasl">AGEAYg==</auth>',
        b'<success xmlns="urn:ietf:params:xml:ns:xmpp-sasl"/>',
    ),
    (_HEADER, b"</stream:features>"),
    (b'<iq type="set" id="1"><bind xmlns="urn:ietf:params:xml:ns:xmpp-bind"/></iq>', b"</iq>"),
]


def orders() -> dict[str, Any]:
    """
    What C{running.py} wants: C{port}; C{authorities}, the directory of the
    certificate; C{up}, how many messages will come; C{down}, how many to send; C{text}, what is in each;
    C{report}, the file to write when all are answered.
    """
    found: dict[str, Any] = json.loads(os.environ["BENCHMARK"])
    return found


class Tally:
    """
    Counts what was sent and answered, and reports when that is all.

    @ivar left: how many are still to be sent.
    """

    def __init__(self, wanted: dict[str, Any]) -> None:
        self.left = self._total = wanted["down"]
        self._report = wanted["report"]
        self._answered = 0
        self._failed = 0
        self._since: dict[int, float] = {}
        self._waits: list[float] = []

    def next(self) -> int:
        """
        The number of the message that is sent now.
        """
        number: int = self._total - self.left
        self.left -= 1
        if number % SAMPLE == 0:
            self._since[number] = time.monotonic()
        return number

    def answered(self, number: int, failed: bool = False) -> None:
        """
        A message was answered.
        """
        if number % SAMPLE == 0:
            self._waits.append(time.monotonic() - self._since.pop(number))
        self._answered += 1
        self._failed += failed
        if self._answered == self._total:
            found = {"answered": self._answered, "failed": self._failed, "waits": self._waits}
            unfinished = Path(self._report + ".part")
            unfinished.write_text(json.dumps(found))
            unfinished.rename(self._report)
