"""
Tests for L{fcmxmpp.files}.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.files import replaceFile


class ReplaceFileTests(SynchronousTestCase):
    """
    L{replaceFile} writes a file as a whole, or not at all.
    """

    def setUp(self) -> None:
        """
        Have a directory.
        """
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        self.path = self.directory / "file"

    def mode(self) -> int:
        """
        The permissions of the file.
        """
        return stat.S_IMODE(self.path.stat().st_mode)

    def test_new(self) -> None:
        """
        A new file is for its owner only, unless told otherwise.
        """
        replaceFile(self.path, b"first")
        self.assertEqual((b"first", 0o600), (self.path.read_bytes(), self.mode()))
        replaceFile(self.path, b"second", 0o644)
        self.assertEqual((b"second", 0o644), (self.path.read_bytes(), self.mode()))
        self.assertEqual([self.path], list(self.directory.iterdir()))

    def test_replaced(self) -> None:
        """
        Who has the old file open still reads all of it, and the permissions
        are those that were asked for, whatever they were before.
        """
        self.path.write_bytes(b"before")
        self.path.chmod(0o666)
        with self.path.open("rb") as old:
            replaceFile(self.path, b"after")
            self.assertEqual(b"before", old.read())
        self.assertEqual((b"after", 0o600), (self.path.read_bytes(), self.mode()))

    def test_failure(self) -> None:
        """
        What cannot be written leaves all as it was.
        """
        self.path.mkdir()
        self.assertRaises(OSError, replaceFile, self.path, b"after")
        self.assertEqual([self.path], list(self.directory.iterdir()))

    def test_owner(self) -> None:
        """
        A file may be given to somebody else, by who may do that.
        """
        wanted = []
        real = os.fchown

        def fchown(descriptor: int, *owner: int) -> None:
            wanted.append(owner)
            real(descriptor, -1, -1)

        self.patch(os, "fchown", fchown)
        replaceFile(self.path, b"ours", owner=(os.geteuid(), os.getegid()))
        self.assertEqual([], wanted)
        replaceFile(self.path, b"theirs", owner=(4711, 4712))
        self.assertEqual([(4711, 4712)], wanted)
