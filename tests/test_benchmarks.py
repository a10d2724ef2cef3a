"""
The benchmarks run, and what they check holds.

Nothing here is timed; the figures are for people.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase


# The wheel is tested with a copy of the tests; benchmarks are only in the checkout.
CHECKOUT = Path(os.environ.get("FCMXMPP_CHECKOUT", Path(__file__).resolve().parent.parent))


class UpstreamTests(SynchronousTestCase):
    """
    Tests for C{benchmarks/upstream.py}.
    """

    def run_(self, *arguments: str) -> tuple[int, str, str]:
        """
        Run it.

        @return: exit status, standard output, standard error.
        """
        program = CHECKOUT / "benchmarks" / "upstream.py"
        done = subprocess.run(
            [sys.executable, str(program), "--deadline=60", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        return done.returncode, done.stdout, done.stderr

    def figures(self, *arguments: str) -> dict[str, Any]:
        """
        Run it, and read the one line that it prints.
        """
        status, output, errors = self.run_(*arguments)
        self.assertEqual((0, ""), (status, errors))
        self.assertEqual(1, output.count("\n"))
        figures: dict[str, Any] = json.loads(output)
        return figures

    def test_cuts(self) -> None:
        """
        With the connection cut twice, every message is handled once and in
        order, what was not acknowledged is delivered again, and all figures
        are there.
        """
        figures = self.figures("--messages=500", "--cuts=2")
        expected = {
            "messages": 500,
            "size": 300,
            "window": 100,
            "lost": 0,
            "handled_twice": 0,
            "out_of_order": 0,
            "stray_acks": 0,
            "cuts": 2,
            "clean_exit": True,
        }
        self.assertEqual(expected, {name: figures.get(name) for name in expected})
        measured = {
            "seconds",
            "messages_per_s",
            "cpu_us_per_message",
            "cpu_share",
            "generator_cpu_us_per_message",
            "p50_ms",
            "p99_ms",
            "peak_rss_kb",
            "rss_kb",
            "redelivered",
            "redelivered_after_handling",
        }
        self.assertEqual(measured, set(figures) - set(expected))
        self.assertEqual(3, len(figures["rss_kb"]))
        self.assertLessEqual(figures["redelivered_after_handling"], figures["redelivered"])

    def test_lostIsTold(self) -> None:
        """
        When not every message is acknowledged it says so, shows the app
        server's log, and fails: here the app server gets no time.
        """
        status, output, errors = self.run_("--messages=10", "--deadline=0")
        self.assertEqual((1, ""), (status, output))
        self.assertIn("TimeoutError: not every message was acknowledged", errors)
