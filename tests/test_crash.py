"""
Nothing that was promised is lost when processes are killed (conformance S14,
and the same for the app server): C{benchmarks/crash.py}, run short, and what it
checks by.
"""

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.store.database import connect


# The wheel is tested with a copy of the tests; benchmarks are only in the checkout.
BENCHMARKS = Path(os.environ.get("FCMXMPP_CHECKOUT", Path(__file__).resolve().parent.parent), "benchmarks")


class CrashTests(SynchronousTestCase):
    """
    Real processes, real deaths.
    """

    def run_(self, *arguments: str) -> tuple[int, str, str]:
        """
        Run the program.

        @return: exit status, standard output, standard error.
        """
        done = subprocess.run(
            [sys.executable, str(BENCHMARKS / "crash.py"), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        return done.returncode, done.stdout, done.stderr

    def test_S14_kills(self) -> None:
        """
        With both sides killed in the midst of messages in both directions,
        nothing that was promised is lost, nothing is handled twice in one
        life, and nothing is left.
        """
        status, output, errors = self.run_("--kills=6")
        self.assertEqual((0, ""), (status, errors), output)
        self.assertEqual(1, output.count("\n"))
        figures: dict[str, Any] = json.loads(output)
        self.assertEqual({"server": 3, "app": 2, "both": 1, "early": 1}, figures.pop("kills"))
        expected = {
            "seed": 1,
            "upstream_failed": 0,
            "upstream_lost": 0,
            "upstream_handled_twice_in_one_life": 0,
            "downstream_not_sent": 0,
            "downstream_lost": 0,
            "downstream_reported_twice_in_one_life": 0,
            "downstream_outcomes_differ": 0,
            "downstream_never_received": 0,
            "left_in_stores": 0,
            "failures_logged": 0,
        }
        self.assertEqual(expected, {name: figures.get(name) for name in expected})
        happened = {
            "upstream_stored",
            "upstream_handled",
            "downstream_stored",
            "downstream_outcomes",
            "downstream_refused",
        }
        self.assertEqual([], [name for name in happened if not figures[name]])
        measured = {
            "upstream_handled_twice",
            "upstream_sent_again",
            "downstream_reported_twice",
            "downstream_received_again",
            "killing_seconds",
            "seconds",
        }
        self.assertEqual(happened | measured, set(figures) - set(expected))

    def test_keep(self) -> None:
        """
        Where files are to be kept there must be none, so that two runs cannot
        be mixed up.
        """
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        Path(directory.name, "stored").touch()
        status, output, errors = self.run_(f"--keep={directory.name}")
        self.assertEqual((1, "", f"{directory.name} is not empty\n"), (status, output, errors))

    def test_tooLateIsTold(self) -> None:
        """
        When the run does not come to its end it says so, shows the logs, and
        fails: here the processes get no time to start.
        """
        status, output, errors = self.run_("--kills=1", "--deadline=0")
        self.assertEqual((1, ""), (status, output))
        self.assertIn("the app server does not log in", errors)


def load() -> ModuleType:
    """
    The checks of the program.
    """
    spec = importlib.util.spec_from_file_location("crash_checks", BENCHMARKS / "crash_checks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class CheckTests(SynchronousTestCase):
    """
    The checks find what they are for.
    """

    def setUp(self) -> None:
        """
        Make the files of a run in which all is well, although both were killed
        and things happened twice.
        """
        self.checks = load()
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        for name in ("app", "server"):
            connect(str(self.directory / f"{name}.sqlite")).close()
        self.note("stored", "server-1 tok-A u-1", "server-1 tok-A u-2", "server-2 tok-B u-1")
        self.note("handled", "app-1 tok-A u-1", "app-1 tok-A u-2", "app-2 tok-A u-2", "app-2 tok-B u-1")
        # Neither of these was promised.
        self.note("handled", "app-2 tok-B u-9")
        self.note("outcomes", "app-2 d-9 accepted")
        self.note("sent", "app-1 d-1", "app-1 d-2")
        self.note("outcomes", "app-1 d-1 accepted", "app-2 d-1 accepted", "app-2 d-2 Nacked:BAD_REGISTRATION")
        self.note("received", "server-1 tok-A d-1", "server-2 tok-A d-1", "server-2 tok-A d-9")
        self.note("again", "server-2 tok-B u-1")

    def note(self, name: str, *lines: str) -> None:
        """
        Append to a file.
        """
        with (self.directory / name).open("a") as file:
            file.writelines(f"{line}\n" for line in lines)

    def figures(self) -> dict[str, Any]:
        """
        What comes of it.
        """
        figures: dict[str, Any] = self.checks.compare(self.directory)
        figures["left_in_stores"] = self.checks.left(self.directory)
        figures["failures_logged"] = self.checks.failures(self.directory)
        return figures

    def assertFound(self, name: str) -> None:
        """
        This, and nothing else, is wrong.
        """
        figures = self.figures()
        self.assertEqual({name: 1}, {each: figures[each] for each in self.checks.WRONG if figures[each]})
        self.assertFalse(self.checks.holds(figures))

    def test_well(self) -> None:
        """
        What happened twice across a death is counted, and is not wrong.
        """
        figures = self.figures()
        self.assertTrue(self.checks.holds(figures), figures)
        self.assertEqual(
            {
                "upstream_stored": 3,
                "upstream_handled": 4,
                "upstream_handled_twice": 1,
                "upstream_sent_again": 1,
                "downstream_stored": 2,
                "downstream_outcomes": 3,
                "downstream_refused": 1,
                "downstream_reported_twice": 1,
                "downstream_received_again": 1,
            },
            {name: figure for name, figure in figures.items() if figure},
        )

    def test_lostUpstream(self) -> None:
        """
        A message that was stored and never handled is lost, even if another
        device's of the same C{message_id} was.
        """
        self.note("stored", "server-2 tok-B u-2")
        self.assertFound("upstream_lost")

    def test_handledTwice(self) -> None:
        """
        A message must not be handled twice in one life.
        """
        self.note("handled", "app-2 tok-B u-1")
        self.assertFound("upstream_handled_twice_in_one_life")

    def test_lostDownstream(self) -> None:
        """
        A message whose C{send} fired and that has no outcome is lost.
        """
        self.note("sent", "app-2 d-3")
        self.assertFound("downstream_lost")

    def test_reportedTwice(self) -> None:
        """
        An outcome must not be reported twice in one life.
        """
        self.note("outcomes", "app-2 d-2 Nacked:BAD_REGISTRATION")
        self.assertFound("downstream_reported_twice_in_one_life")

    def test_outcomesDiffer(self) -> None:
        """
        An outcome does not change.
        """
        self.note("outcomes", "app-3 d-1 Expired")
        self.assertFound("downstream_outcomes_differ")

    def test_neverReceived(self) -> None:
        """
        What was accepted has reached its device.
        """
        self.note("outcomes", "app-2 d-8 accepted")
        self.assertFound("downstream_never_received")

    def test_failuresLogged(self) -> None:
        """
        There is no traceback in the logs.
        """
        self.note("app.log", "all is well", "Traceback (most recent call last):", '  File "x.py"')
        self.assertFound("failures_logged")

    def test_left(self) -> None:
        """
        Nothing is left in the stores that is to be done: no message, no
        outcome.  A failed downstream message is kept, and a dead letter is
        wrong.
        """
        insert = "INSERT INTO outbox (message_id, target, body, since, outcome, settled, reported) VALUES "
        for name, statement, found in (
            ("app", insert + "('d-2', 'tok-A', '{}', 1.0, '{}', 2.0, 3.0)", 0),
            ("app", insert + "('d-3', 'tok-A', '{}', 1.0, '{}', 2.0, NULL)", 1),
            ("app", insert + "('d-4', 'tok-A', '{}', 1.0, NULL, NULL, NULL)", 2),
            ("app", "INSERT INTO inbox (from_, message_id, body, arrived) VALUES ('t', 'u', '{}', 1.0)", 3),
            (
                "app",
                "INSERT INTO inbox (from_, message_id, body, arrived, reason) VALUES (1, 1, 1, 1, 'x')",
                4,
            ),
            ("server", "INSERT INTO entrusted (sender_id, body, expires) VALUES ('1', '{}', 1.0)", 5),
        ):
            with closing(sqlite3.connect(self.directory / f"{name}.sqlite", isolation_level=None)) as store:
                store.execute(statement)
            self.assertEqual(found, self.figures()["left_in_stores"])
            self.assertEqual(not found, self.checks.holds(self.figures()))
