"""
docs/connection-server.md tells the truth.
"""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import fcmxmpp
from tests.checkout import CHECKOUT


PAGE = (CHECKOUT / "docs" / "connection-server.md").read_text(encoding="utf-8")


class PageTests(SynchronousTestCase):
    """
    The page for people who run a connection server.
    """

    def test_log(self) -> None:
        """
        Every line that it explains is one that the log may have.
        """
        sources = [path.read_text(encoding="utf-8") for path in Path(fcmxmpp.__file__).parent.rglob("*.py")]
        # What is written in parts is one string, and what is filled in may be anything.
        said = re.sub(r"\{[^{}]*\}", "\u2026", re.sub(r'" *\n *f?"', "", "\n".join(sources)))
        lines = re.findall("^\\| `([^`]+)`", PAGE.partition("## What the log says")[2], re.MULTILINE)
        self.assertGreater(len(lines), 20)
        for line in lines:
            for part in line.split("\u2026"):
                # Reasons are those of the system.
                for words in part.removesuffix("Address already in use").split("Permission denied"):
                    self.assertIn(words, said, line)
