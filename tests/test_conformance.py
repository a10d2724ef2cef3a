"""
Which conformance cases have their tests.

The cases are what real implementations of this protocol got wrong, A of the
app server and S of the connection server.  Each has one test method or more,
with the case's number in its name: most in C{test_conformance_*.py}, those
that need sockets in C{test_loopback.py}.
"""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase


ROWS = {f"A{number:02}" for number in range(1, 28)} | {f"S{number:02}" for number in range(1, 15)}
#: The cases that have no test yet, which is to become none.
NOT_YET: set[str] = set()


class RowTests(SynchronousTestCase):
    """
    The cases, and the tests' names.
    """

    def test_everyRow(self) -> None:
        """
        Every case has a test that bears its number, except for those that are
        known to have none, and those have none; no test bears the number of a
        case that there is not.
        """
        tested = set()
        for path in Path(__file__).parent.glob("test_*.py"):
            tested |= set(re.findall(r"def test_([AS]\d+)_\w", path.read_text(encoding="utf-8")))
        self.assertEqual(sorted(NOT_YET), sorted(ROWS - tested), "cases without a test")
        self.assertEqual([], sorted(tested - ROWS), "cases that there are not")
