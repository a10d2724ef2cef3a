"""
Tests for C{fcmxmpp device}: its wrong uses; what it does is in
test_device_peers.py.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from shutil import rmtree

from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.devicecommand import device
from tests.checkout import childEnvironment, script


class WrongUseTests(SynchronousTestCase):
    """
    What is wrong is said in one line.
    """

    def setUp(self) -> None:
        """
        Have a directory.
        """
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(rmtree, self.directory)
        self.options = {
            "--server": "localhost:1",
            "--http": "https://localhost:1",
            "--sender-id": "1",
            "--app": "x",
            "--file": str(self.directory / "device.db"),
        }

    def arguments(self, changed: dict[str, str]) -> list[str]:
        """
        Arguments, with some changed.
        """
        return [word for pair in (self.options | changed).items() for word in pair]

    def test_options(self) -> None:
        """
        Wrong options are refused before anything is done.
        """
        for command, changed, expected in (
            ("register", {"--server": "localhost"}, "HOST:PORT"),
            ("register", {"--server": "localhost:x"}, "HOST:PORT"),
            ("send", {"--data": "a"}, "KEY=VALUE"),
            ("send", {"--data": "=a"}, "KEY=VALUE"),
            ("send", {"--ttl": "100000"}, "0<=x<=86400"),
            ("listen", {"--count": "0"}, "x>=1"),
        ):
            result = CliRunner().invoke(device, [command, *self.arguments(changed)])
            self.assertEqual(2, result.exit_code)
            self.assertIn(expected, result.output)
        for command in ("register", "send", "listen"):
            result = CliRunner().invoke(device, [command])
            self.assertEqual(2, result.exit_code)

    def fails(self, *arguments: str) -> str:
        """
        Run it as a process that fails.

        @return: what it says.
        """
        done = subprocess.run(
            [script("fcmxmpp"), "device", *arguments],
            env=childEnvironment(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.assertEqual((1, ""), (done.returncode, done.stdout))
        self.assertNotIn("Traceback", done.stderr)
        return done.stderr

    def test_failures(self) -> None:
        """
        What fails is said, with the exit status 1.
        """
        said = self.fails("register", *self.arguments({}))
        self.assertEqual("Error: the registration failed: ConnectionRefusedError\n", said)
        said = self.fails("register", *self.arguments({"--file": str(self.directory / "no" / "file")}))
        self.assertIn("cannot be used: No such file or directory", said)
        said = self.fails("listen", *self.arguments({"--trust": str(self.directory)}))
        self.assertIn("there are no certificates (*.pem) in it", said)
        (self.directory / "x.pem").write_text("x")
        said = self.fails("listen", *self.arguments({"--trust": str(self.directory)}))
        self.assertIn("Error: --trust", said)
