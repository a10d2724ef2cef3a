"""
The benchmarks run, and what they check holds.

Nothing here is timed; the figures are for people.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.trial.unittest import SynchronousTestCase


# The wheel is tested with a copy of the tests; benchmarks are only in the checkout.
CHECKOUT = Path(os.environ.get("FCMXMPP_CHECKOUT", Path(__file__).resolve().parent.parent))


class ProgramTests(SynchronousTestCase):
    """
    How they are run.
    """

    program: str

    def run_(self, *arguments: str) -> tuple[int, str, str]:
        """
        Run the program.

        @return: exit status, standard output, standard error.
        """
        program = CHECKOUT / "benchmarks" / self.program
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
        self.assertEqual((0, ""), (status, errors), output)
        self.assertEqual(1, output.count("\n"))
        figures: dict[str, Any] = json.loads(output)
        return figures


class UpstreamTests(ProgramTests):
    """
    Tests for C{benchmarks/upstream.py}.
    """

    program = "upstream.py"

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
            "left_in_inbox": 0,
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

    def test_store(self) -> None:
        """
        With a store, one that commits each message by itself, and another
        policy, nothing is lost, doubled or out of order either.
        """
        for arguments in (["--store"], ["--commit-per-message"], ["--store", "--ack=handled", "--cuts=1"]):
            figures = self.figures("--messages=300", *arguments)
            wrong = ("lost", "handled_twice", "out_of_order", "stray_acks")
            self.assertEqual([0] * 4, [figures[name] for name in wrong], arguments)


class StoreTests(ProgramTests):
    """
    Tests for C{benchmarks/store.py}.
    """

    program = "store.py"

    #: What there is of every operation that is measured.
    COSTS = frozenset({"wall_us", "thread_cpu_us", "process_cpu_us", "p50_ms", "p99_ms", "max_ms"})

    def times(self, *names: str) -> set[str]:
        """
        The names of what there is of times.
        """
        return {f"{name}_{place}_ms" for name in names for place in ("p50", "p99", "max")}

    def test_known(self) -> None:
        """
        It compares stores of the sizes that it was told, and has all figures.
        """
        figures = self.figures("known", "--rows=20,200", "--messages=10", "--rounds=1", "--in-flight=5")
        expected = {
            "in_flight",
            "messages",
            "rounds",
            "fill_seconds",
            "sizes",
            "file_mb",
            "ratios",
            "holds",
            "load",
        }
        self.assertEqual(expected, set(figures))
        self.assertEqual(["20", "200"], list(figures["sizes"]))
        self.assertEqual(["20", "200"], list(figures["file_mb"]))
        for operations in (*figures["sizes"].values(), figures["ratios"]):
            self.assertEqual({"add", "known", "unknown"}, set(operations))
            for costs in operations.values():
                self.assertEqual(self.COSTS, set(costs))

    def test_sweep(self) -> None:
        """
        Everything that is too old is taken away while it measures with the
        sweep, and nothing without.
        """
        figures = self.figures("sweep", "--rows=300", "--seconds=1", "--in-flight=5")
        self.assertEqual({"rows", "in_flight", "seconds", "without", "with", "load"}, set(figures))
        times = self.times("step", "commit_with_step", "commit", "transaction_with_step", "transaction")
        for part in ("with", "without"):
            self.assertEqual({*self.COSTS, *times, "rows_swept", "steps"}, set(figures[part]))
        self.assertEqual((0, 0), (figures["without"]["rows_swept"], figures["without"]["steps"]))
        self.assertEqual(300, figures["with"]["rows_swept"])

    def test_commit(self) -> None:
        """
        With one in flight each has a commit of its own, with more only if
        they have to; all figures are there.
        """
        figures = self.figures("commit", "--messages=40", "--in-flight=1,20")
        self.assertEqual({"messages", "group", "each", "ratios", "load", *self.times("fsync")}, set(figures))
        self.assertEqual({"1", "20"}, set(figures["ratios"]))
        for way in ("group", "each"):
            self.assertEqual({"1", "20"}, set(figures[way]))
            for costs in figures[way].values():
                rates = {"adds_per_s", "commits_per_s", "adds_per_commit"}
                self.assertEqual({*self.COSTS, *rates, *self.times("commit")}, set(costs))
        for alone in (figures["group"]["1"], figures["each"]["1"], figures["each"]["20"]):
            self.assertEqual(1, alone["adds_per_commit"])
        self.assertGreater(figures["group"]["20"]["adds_per_commit"], 1)

    def test_upstream(self) -> None:
        """
        It runs the app server in each way, so many times, and compares the
        medians.
        """
        figures = self.figures("upstream", "--messages=100", "--rounds=1")
        ways = {"no_store", "no_store_received", "store", "store_handled", "commit_per_message"}
        others = {"messages", "rounds", "all_messages_per_s", "ratios", "holds", "load"}
        self.assertEqual(ways | others, set(figures))
        self.assertEqual(ways, set(figures["ratios"]))
        self.assertEqual(1, figures["ratios"]["no_store"])
        for way in ways:
            self.assertEqual({"messages_per_s", "cpu_us_per_message", "p50_ms", "p99_ms"}, set(figures[way]))
            self.assertEqual(1, len(figures["all_messages_per_s"][way]))


class SoakTests(ProgramTests):
    """
    Tests for C{benchmarks/soak.py}.
    """

    program = "soak.py"

    def test_drainsAndCuts(self) -> None:
        """
        With links drained and cut in the midst of messages in both directions,
        nothing is lost, doubled, unsettled or left open, and all figures are
        there.  So short a time says nothing about memory.
        """
        figures = self.figures("--seconds=3", "--drain-every=0.5", "--cut-every=1", "--growth=1000000")
        expected = {
            "links": 4,
            "lost": 0,
            "handled_twice": 0,
            "not_told_delivered": 0,
            "told_twice": 0,
            "unsettled": 0,
            "settled_twice": 0,
            "not_accepted": 0,
            "never_received": 0,
            "stanza_errors": 0,
            "failures_logged": 0,
            "sockets_left": 0,
            "timers_left": 0,
            "clean_exit": True,
        }
        self.assertEqual(expected, {name: figures.get(name) for name in expected})
        measured = {
            "seconds",
            "drains",
            "cuts",
            "cuts_while_draining",
            "upstream",
            "upstream_per_s",
            "redelivered",
            "redelivered_while_or_after_handling",
            "handlers_failed",
            "downstream",
            "downstream_per_s",
            "resent",
            "received_again",
            "most_unanswered",
            "rss_kb",
            "longest_pause_upstream_ms",
            "longest_pause_downstream_ms",
        }
        self.assertEqual(measured, set(figures) - set(expected))
        happened = ("drains", "cuts", "upstream", "downstream", "handlers_failed")
        self.assertEqual([], [name for name in happened if not figures[name]])
        self.assertEqual(3, len(figures["rss_kb"]))
        self.assertEqual({"cut", "drain", "neither"}, set(figures["longest_pause_upstream_ms"]))

    def test_tooLateIsTold(self) -> None:
        """
        When the run does not come to its end it says so, shows the app
        server's log, and fails: here the app server gets no time to log in.
        """
        status, output, errors = self.run_("--seconds=0.01", "--deadline=0")
        self.assertEqual((1, ""), (status, output))
        self.assertIn("the app server did not log in, or did not last", errors)


class DevicesTests(ProgramTests):
    """
    Tests for C{benchmarks/devices.py}.
    """

    program = "devices.py"

    def test_figures(self) -> None:
        """
        With each number of devices, messages go through in both directions, none is
        lost or comes twice, and all figures are there.
        """
        status, output, errors = self.run_(
            "--json", "--connections=3", "--connections=1", "--messages=150", "--rounds=2"
        )
        self.assertEqual(0, status, errors)
        self.assertEqual(["1/2 1", "1/2 3", "2/2 1", "2/2 3"], [line[:5] for line in errors.splitlines()])
        figures = json.loads(output)
        self.assertEqual({"date", "commit", "machine", "connections"}, set(figures))
        self.assertEqual(["1", "3"], list(figures["connections"]))
        connections = {
            "logins_per_s",
            "cpu_us_per_login",
            "kib_per_idle_device",
            "kib_per_device_at_the_end",
        }
        messages = {"cpu_us", "store_us", "at_once", "rate", "p50_ms", "p99_ms", "load_busy"}
        for found in figures["connections"].values():
            self.assertEqual({*connections, "upstream", "downstream"}, set(found))
            for name in ("upstream", "downstream"):
                self.assertEqual(messages, set(found[name]))
                self.assertTrue(0 < found[name]["store_us"]["middle"] < found[name]["cpu_us"]["middle"])
                self.assertTrue(0 < found[name]["p50_ms"] <= found[name]["p99_ms"])

    def test_results(self) -> None:
        """
        It writes a table, which it prints, too, and a picture, of what was wanted.
        """
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        results = Path(directory.name)
        status, output, errors = self.run_(
            "--connections=2", "--messages=100", "--rounds=1", "--only=downstream", f"--results={results}"
        )
        self.assertEqual(0, status, errors)
        self.assertEqual(output, (results / "devices.md").read_text() + "\n")
        self.assertNotIn("Upstream", output)
        for wanted in ("\n## Downstream\n", "\n## Connections\n"):
            self.assertIn(wanted, output)
        self.assertEqual(2, output.count("\n| 2 |"))
        self.assertIn("downstream, by connections", (results / "devices.svg").read_text())

    def test_tooLateIsTold(self) -> None:
        """
        When messages do not come to their end it says so, shows the log of the
        connection server, and fails: here there is no time to log in.
        """
        status, output, errors = self.run_("--devices=1", "--deadline=0")
        self.assertEqual((1, ""), (status, output))
        self.assertIn("not done in time: the app server logs in", errors)
        self.assertIn("connect to port", errors)
