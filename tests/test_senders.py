"""
Tests for L{fcmxmpp.server.senders} and the command C{fcmxmpp senders}.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from shutil import rmtree
from typing import Any

from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.senderscommand import senders
from fcmxmpp.server.registry import Registry
from fcmxmpp.server.senders import MIN_KEY, HashedKey, hashKey, readSenders


KEY = "a-key-that-nobody-guesses"


class ReadTests(SynchronousTestCase):
    """
    L{readSenders} and L{hashKey}.
    """

    def test_roundTrip(self) -> None:
        """
        What is written is read, and lets in who has the key.
        """
        hashed = [hashKey(KEY, os.urandom) for _ in range(2)]
        text = f'[senders.1]\nname = "x"\nkeys = ["{hashed[0]}", "{hashed[1]}"]\n'
        text += f'[senders.2]\nkeys = ["{hashed[0]}"]\n'
        read = readSenders(text)
        self.assertEqual({"1": tuple(hashed), "2": (hashed[0],)}, read)
        self.assertNotIn(KEY, text)
        registry = Registry(read)
        self.assertEqual(
            [True, True, False, False],
            [registry.mayLogIn(*each) for each in (("1", KEY), ("2", KEY), ("2", "x"), ("3", KEY))],
        )
        self.assertEqual((True, False), (registry.knows("1"), registry.knows("3")))
        self.assertEqual(["1"], registry.replace({"2": read["2"]}))
        self.assertFalse(registry.mayLogIn("1", KEY))

    def test_noKey(self) -> None:
        """
        What stands in for a key that is not there lets nobody in.
        """
        registry = Registry({})
        for key in ("", "\0" * 32):
            self.assertFalse(registry.mayLogIn("1", key))
        self.assertFalse(Registry({"1": []}).mayLogIn("1", ""))

    def test_short(self) -> None:
        """
        A key that could be guessed is refused.
        """
        self.assertRaises(ValueError, hashKey, "x" * (MIN_KEY - 1), os.urandom)
        self.assertIsInstance(hashKey("x" * MIN_KEY, os.urandom), HashedKey)

    def test_wrong(self) -> None:
        """
        What is wrong is said in one line, which names the sender and no key.
        """
        good = str(hashKey(KEY, os.urandom))
        for text, expected in (
            ("x", "it is not TOML"),
            ("x = 1", "unknown setting 'x'"),
            ("senders = 1", "senders has to be a table"),
            ("[senders.abc]\nkeys = []", "decimal digits"),
            ("[senders]\n1 = 2", r"[senders.1] has to be a table"),
            (f'[senders.1]\nkeys = ["{good}"]\nkye = 1', "[senders.1] has an unknown setting 'kye'"),
            ("[senders.1]", "fcmxmpp senders add 1"),
            ("[senders.1]\nkeys = []", "fcmxmpp senders add 1"),
            (f'[senders.1]\nkeys = ["{good}", "{KEY}"]', "[senders.1]: key 2 is none"),
            ("[senders.1]\nkeys = [5]", "[senders.1]: key 1 is none"),
        ):
            said = str(self.assertRaises(ValueError, readSenders, text))
            self.assertIn(expected, said)
            self.assertNotIn(KEY, said)
            self.assertNotIn("\n", said)
        self.assertEqual({}, readSenders(""))


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
