"""
Tests for L{fcmxmpp.running}, as far as they are not in test_tap.py.
"""

from __future__ import annotations

import resource

from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.running import OpenFiles


class OpenFilesTests(SynchronousTestCase):
    """
    L{OpenFiles} lets a process have as many connections as it may.
    """

    def setUp(self) -> None:
        """
        Have a process with these limits.
        """
        self.limits = (1024, 524_288)
        self.patch(resource, "getrlimit", lambda _: self.limits)
        self.patch(resource, "setrlimit", self.set)

    def set(self, number: int, limits: tuple[int, int]) -> None:
        """
        Set them.
        """
        self.assertEqual(resource.RLIMIT_NOFILE, number)
        self.limits = limits

    def started(self, soft: int, hard: int) -> tuple[tuple[int, int], list[str]]:
        """
        Start and stop the service with these limits; they are the same again
        after that.

        @return: what they are in between, and what is logged.
        """
        self.limits = (soft, hard)
        files = OpenFiles()
        with capturedLogs() as events:
            files.startService()
        between = self.limits
        files.stopService()
        self.assertEqual((soft, hard), self.limits)
        return between, [str(formatEvent(event)) for event in events]

    def test_raised(self) -> None:
        """
        The limit is raised as far as that is possible and of use, and never
        lowered.
        """
        unlimited = resource.RLIM_INFINITY
        for before, after in (
            ((1024, 4096), (4096, 4096)),
            ((1024, 1_048_576), (OpenFiles.MOST, 1_048_576)),
            ((1024, unlimited), (OpenFiles.MOST, unlimited)),
            ((300_000, 1_048_576), (300_000, 1_048_576)),
            ((unlimited, unlimited), (unlimited, unlimited)),
        ):
            self.assertEqual((after, []), self.started(*before))

    def test_few(self) -> None:
        """
        Where few are possible, it is told what to change.
        """
        limits, (line,) = self.started(256, 1024)
        self.assertEqual((1024, 1024), limits)
        self.assertIn("no more than 1024 connections: LimitNOFILE=", line)
