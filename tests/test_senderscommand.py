"""
Tests for the command C{fcmxmpp senders}.
"""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from shutil import rmtree
from typing import Any

import tomlkit
from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.senderscommand import senders
from fcmxmpp.server.registry import Registry
from fcmxmpp.server.senders import hashKey, readSenders
from tests.checkout import childEnvironment, script
from tests.children import PATIENCE


KEY = "a-key-that-nobody-guesses"


class CommandTests(SynchronousTestCase):
    """
    C{fcmxmpp senders}.
    """

    def setUp(self) -> None:
        """
        Have a directory.
        """
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(rmtree, self.directory)
        self.path = self.directory / "senders.toml"

    def run_(self, *arguments: str, status: int = 0) -> Any:
        """
        Run a subcommand.
        """
        result = CliRunner().invoke(senders, [*arguments, "--senders", str(self.path)])
        self.assertEqual(status, result.exit_code, result.output)
        return result

    def read(self) -> Any:
        """
        What is in the file.
        """
        return readSenders(self.path.read_text())

    def test_add(self) -> None:
        """
        The new key is printed once, alone on standard output, and lets in; the
        file is for its owner only.
        """
        result = self.run_("add", "1", "--name", "ann")
        key = result.stdout.strip()
        self.assertTrue(Registry(self.read()).mayLogIn("1", key))
        self.assertNotIn(key, self.path.read_text())
        self.assertEqual(0o600, self.path.stat().st_mode & 0o777)
        self.assertIn("SIGHUP", result.stderr)
        second = self.run_("add", "1").stdout.strip()
        registry = Registry(self.read())
        self.assertTrue(registry.mayLogIn("1", key) and registry.mayLogIn("1", second))

    def test_keyFile(self) -> None:
        """
        A key may be given in a file; it is not printed.
        """
        keyFile = self.directory / "key"
        keyFile.write_text(KEY + "\nmore\n")
        result = self.run_("add", "1", "--key-file", str(keyFile))
        self.assertEqual("", result.stdout)
        self.assertTrue(Registry(self.read()).mayLogIn("1", KEY))
        keyFile.write_text("short\n")
        self.assertIn("20 characters", self.run_("add", "1", "--key-file", str(keyFile), status=1).stderr)
        self.assertIn("No such file", self.run_("add", "1", "--key-file", "nowhere", status=1).stderr)

    def test_list(self) -> None:
        """
        Senders are listed, for people and for programs.
        """
        self.run_("add", "1", "--name", "ann")
        self.run_("add", "22")
        self.run_("add", "22")
        lines = self.run_("list").stdout.splitlines()
        self.assertRegex(lines[0], "^1  1 key  20[0-9T:+-]+  ann$")
        self.assertRegex(lines[1], "^22  2 keys  20")
        (first, second) = [json.loads(line) for line in self.run_("list", "--json").stdout.splitlines()]
        self.assertEqual(("1", "ann", 1), (first["sender_id"], first["name"], first["keys"]))
        self.assertEqual(("22", None, 2), (second["sender_id"], second["name"], second["keys"]))

    def test_remove(self) -> None:
        """
        A key is removed, or a whole sender.
        """
        first = self.run_("add", "1").stdout.strip()
        second = self.run_("add", "1").stdout.strip()
        self.run_("remove", "1", "--key", "1")
        registry = Registry(self.read())
        self.assertEqual((False, True), (registry.mayLogIn("1", first), registry.mayLogIn("1", second)))
        self.assertIn("the only key", self.run_("remove", "1", "--key", "1", status=1).stderr)
        self.assertIn("has 1 keys", self.run_("remove", "1", "--key", "2", status=1).stderr)
        self.run_("remove", "1")
        self.assertEqual({}, self.read())
        self.assertIn("no sender 1", self.run_("remove", "1", status=1).stderr)

    def test_keepsComments(self) -> None:
        """
        What people wrote into the file stays, and so do its permissions.
        """
        self.run_("add", "1")
        self.path.write_text("# ours\n" + self.path.read_text() + "# the end\n")
        self.path.chmod(0o640)
        self.run_("add", "2")
        self.assertIn("# ours", self.path.read_text())
        self.assertIn("# the end", self.path.read_text())
        self.assertEqual(0o640, self.path.stat().st_mode & 0o777)

    def test_broken(self) -> None:
        """
        A file that cannot be read is left as it is.
        """
        self.path.write_text("[senders.x]\n")
        for command in (("add", "1"), ("list",), ("remove", "1")):
            self.assertIn("decimal digits", self.run_(*command, status=1).stderr)
        self.assertEqual("[senders.x]\n", self.path.read_text())
        self.run_("add", "abc", status=2)
        self.path = self.directory / "none" / "senders.toml"
        self.assertIn("No such file", self.run_("add", "1", status=1).stderr)

    def test_written(self) -> None:
        """
        However the file is written, what was in it stays, and what was added is
        read; or nothing is changed.
        """
        kept = hashKey(KEY, os.urandom)
        for text, isChanged in (
            (f'senders.1.keys = ["{kept}"]\n', True),
            (f'[senders."1"]\nkeys = [\n  "{kept}",  # since May\n]\n# end\n', True),
            (f'[senders]\n1 = {{ keys = ["{kept}"] }}\n', True),
            (f'# ours\r\n[senders.1]\r\nkeys = ["{kept}"]\r\n', True),
            (f'senders = {{ 1 = {{ keys = ["{kept}"] }} }}\n', False),
        ):
            self.path.write_bytes(text.encode())
            result = CliRunner().invoke(senders, ["add", "2", "--senders", str(self.path)])
            self.assertEqual(0 if isChanged else 1, result.exit_code, text)
            read = self.read()
            self.assertEqual((kept,), read.pop("1"))
            self.assertEqual(["2"] if isChanged else [], list(read))
            if not isChanged:
                self.assertEqual(text.encode(), self.path.read_bytes())
                continue
            for comment in re.findall("#.*", text):
                self.assertIn(comment.rstrip("\r"), self.path.read_text())
            self.run_("remove", "2")
            self.run_("add", "1")
            self.assertEqual(kept, self.read()["1"][0])
            self.assertEqual(2, len(self.read()["1"]))

    def test_losesSomething(self) -> None:
        """
        Should the library that writes TOML ever lose a sender, nothing is
        written.
        """
        self.run_("add", "1")
        before = self.path.read_text()
        real = tomlkit.dumps

        def dumps(document: Any) -> str:
            # Only of what it has read: not of plain values.
            return "" if isinstance(document, tomlkit.TOMLDocument) else real(document)

        self.patch(tomlkit, "dumps", dumps)
        self.assertIn("cannot change: use tables", self.run_("add", "2", status=1).stderr)
        self.assertEqual(before, self.path.read_text())

    def test_link(self) -> None:
        """
        A link to the file stays one.
        """
        real = self.directory / "real.toml"
        self.path.symlink_to(real)
        self.run_("add", "1")
        self.assertTrue(self.path.is_symlink())
        self.assertEqual(["1"], list(readSenders(real.read_text())))

    def test_atOnce(self) -> None:
        """
        Of several that change the file at once, no change is lost.
        """
        environment = childEnvironment(FCM_SENDERS=str(self.path))
        command = [sys.executable, script("fcmxmpp"), "senders", "add"]
        children = [
            subprocess.Popen(
                [*command, str(number)],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for number in range(6)
        ]
        self.assertEqual([0] * 6, [child.wait(PATIENCE) for child in children])
        self.assertEqual(set("012345"), set(self.read()))

    def test_fullDisk(self) -> None:
        """
        A file that cannot be written is told in one line, and stays.
        """
        self.run_("add", "1")
        before = self.path.read_text()

        def fsync(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        self.patch(os, "fsync", fsync)
        result = self.run_("add", "2", status=1)
        self.assertEqual(f"Error: {self.path}: No space left on device\n", result.stderr)
        self.assertEqual("", result.stdout)
        self.assertEqual(before, self.path.read_text())
        self.assertEqual({"senders.toml", "senders.toml.lock"}, set(os.listdir(self.directory)))
