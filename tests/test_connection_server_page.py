"""
docs/connection-server.md tells the truth.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import fcmxmpp
from fcmxmpp.server.registry import Registry
from fcmxmpp.server.senders import MIN_KEY, readSenders
from tests.checkout import CHECKOUT, childEnvironment, script
from tests.children import PATIENCE


PAGE = (CHECKOUT / "docs" / "connection-server.md").read_text(encoding="utf-8")


class PageTests(SynchronousTestCase):
    """
    The page for people who run a connection server.
    """

    def test_senders(self) -> None:
        """
        Its commands do what it says, in their order.
        """
        directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, directory)
        path = directory / "senders.toml"
        blocks = re.findall(r"^```sh\n((?:.*\n)*?)```", PAGE, re.MULTILINE)
        commands = [line for block in blocks for line in block.splitlines() if "fcmxmpp senders" in line]
        self.assertEqual(
            ["add", "list", "add", "remove", "remove"], [shlex.split(line)[2] for line in commands]
        )
        self.assertIn("export FCM_SENDERS=senders.toml\n", PAGE)
        environment = childEnvironment(FCM_SENDERS="senders.toml")
        environment["PATH"] = os.pathsep.join([str(Path(script("fcmxmpp")).parent), environment["PATH"]])
        senders = []
        for command in commands:
            done = subprocess.run(
                command, shell=True, cwd=directory, env=environment, capture_output=True, timeout=PATIENCE
            )
            self.assertEqual(0, done.returncode, done.stderr)
            senders.append(readSenders(path.read_text()))
        old, new = ((directory / name).read_text().strip() for name in ("key.txt", "new-key.txt"))
        self.assertEqual(
            [(True, False), (True, False), (True, True), (False, True), (False, False)],
            [tuple(Registry(each).mayLogIn("123456789", key) for key in (old, new)) for each in senders],
        )
        self.assertIn(f"has at least {MIN_KEY} characters", " ".join(PAGE.split()))

    def test_log(self) -> None:
        """
        Every line that it explains is one that the log may have.
        """
        sources = [path.read_text(encoding="utf-8") for path in Path(fcmxmpp.__file__).parent.rglob("*.py")]
        # What is written in parts is one string, and what is filled in may be anything.
        said = re.sub(r"\{[^{}]*\}", "\u2026", re.sub(r'" *\n *f?"', "", "\n".join(sources)))
        lines = re.findall("^\\| `([^`]+)`", PAGE, re.MULTILINE)
        self.assertGreater(len(lines), 20)
        for line in lines:
            for part in line.split("\u2026"):
                # Reasons are those of the system.
                for words in part.removesuffix("Address already in use").split("Permission denied"):
                    self.assertIn(words, said, line)
