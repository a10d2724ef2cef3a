"""
Tests for L{fcmxmpp.services}.
"""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.services import InOrder


class _Part(Service):
    """
    A service that notes its start and its stop.
    """

    def __init__(self, label: str, events: list[str], result: Any = None) -> None:
        self.label, self.events, self.result = label, events, result

    def startService(self) -> None:
        super().startService()
        self.events.append(f"start {self.label}")

    def stopService(self) -> Any:
        super().stopService()
        self.events.append(f"stop {self.label}")
        return self.result


class InOrderTests(SynchronousTestCase):
    """
    L{InOrder}.
    """

    def setUp(self) -> None:
        """
        There is nothing in it.
        """
        self.events: list[str] = []
        self.services = InOrder()

    def add(self, label: str, result: Any = None) -> _Part:
        """
        Add a service.
        """
        part = _Part(label, self.events, result)
        part.setServiceParent(self.services)
        return part

    def test_order(self) -> None:
        """
        The first one starts first; the last one stops first, and each one only
        when the one behind it has stopped.  All of that is waited for.
        """
        closed: Deferred[None] = Deferred()
        handled: Deferred[None] = Deferred()
        self.add("store", closed)
        self.add("embedded")
        self.add("app server", handled)
        self.services.startService()
        self.assertEqual(["start store", "start embedded", "start app server"], self.events)
        self.events.clear()
        stopped = self.services.stopService()
        self.assertFalse(self.services.running)
        self.assertEqual(["stop app server"], self.events)
        handled.callback(None)
        self.assertEqual(["stop app server", "stop embedded", "stop store"], self.events)
        self.assertNoResult(stopped)
        closed.callback(None)
        self.successResultOf(stopped)

    def test_failing(self) -> None:
        """
        One that does not stop as it should does not keep the others from being
        stopped, whether it raises or its Deferred fails; each is in the log.
        """

        class Raising(Service):
            def stopService(self) -> None:
                raise ValueError

        self.add("store")
        Raising().setServiceParent(self.services)
        self.add("app server", fail(ZeroDivisionError()))
        self.services.startService()
        self.successResultOf(self.services.stopService())
        self.assertEqual(["stop app server", "stop store"], self.events[-2:])
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
        self.assertEqual(1, len(self.flushLoggedErrors(ValueError)))

    def test_removedMeanwhile(self) -> None:
        """
        One that is removed while another one stops is stopped all the same,
        and once.
        """
        handled: Deferred[None] = Deferred()
        store = self.add("store")
        self.add("app server", handled)
        self.services.startService()
        stopped = self.services.stopService()
        store.disownServiceParent()
        handled.callback(None)
        self.successResultOf(stopped)
        self.assertEqual(1, self.events.count("stop store"))
