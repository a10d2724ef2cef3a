"""
Tests for L{fcmxmpp.demo}; as a real process in test_commandline.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec import structs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.appserver import AppServer
from fcmxmpp.connection import Credentials
from fcmxmpp.demo import Demo
from fcmxmpp.device import Device
from fcmxmpp.devicecache import DeviceCache
from fcmxmpp.errors import HandlerFailed
from fcmxmpp.registrations import Application
from fcmxmpp.server.devices import DeviceFactory
from fcmxmpp.server.postoffice import PostOffice
from fcmxmpp.server.registry import Registry
from fcmxmpp.server.service import ConnectionServer
from fcmxmpp.store.memory import MemoryStore
from fcmxmpp.testing import SENDER_ID, SERVER_KEY, MemoryNetwork
from tests.mcsclients import fired


class Embedded:
    """
    An embedded connection server in memory: all that the demonstration wants
    of one.
    """

    port, devicePort, httpPort = 1, 2, 3

    def __init__(self, clock: Clock) -> None:
        self.credentials = Credentials(SENDER_ID, SERVER_KEY)
        store = MemoryStore(clock.seconds)
        office = PostOffice(store.registrations, store.mailboxes, clock)
        self.server = ConnectionServer(Registry({SENDER_ID: SERVER_KEY}), clock, office=office)
        office.server = self.server
        self.directory = Path("directory")
        self._clock = clock
        self._registrations = store.registrations
        self.network = MemoryNetwork(clock, DeviceFactory(office, clock))

    def device(self, category: str, app: Any) -> Device:
        """
        A device that has checked in and is registered, because HTTP is nothing
        of the demonstration's.
        """
        cache = DeviceCache()
        cache.identity = fired(self._registrations.checkIn(None))
        application = Application(category=category, senderID=SENDER_ID)
        token = fired(self._registrations.register(cache.identity, application))
        cache.setToken(SENDER_ID, category, token)
        http: Any = None
        return Device(self._clock, self.network, http, SENDER_ID, category, app, cache)


class DemoTests(SynchronousTestCase):
    """
    L{Demo} tells what happens, and what came of it.
    """

    def run_(self, spoil: Any = lambda demo: None) -> tuple[list[str], list[int]]:
        """
        Run it in memory.

        @param spoil: is called with it before.
        @return: its lines, and its exit status.
        """
        clock = Clock()
        embedded: Any = Embedded(clock)
        lines: list[str] = []
        status: list[int] = []
        demo = Demo(embedded, clock, lines.append, status.append)
        spoil(demo)
        network = MemoryNetwork(clock, embedded.server.factory)
        server = AppServer(network, embedded.credentials, demo, clock=clock, observer=demo, random=lambda: 0)
        demo.sender = server
        demo.startService()
        server.startService()
        for _ in range(480):
            clock.advance(0.25)
            for each in (embedded.network, network, embedded.network):
                each.pump()
        stopped = [server.stopService(), demo.stopService()]
        # The grace period of what is still being handled.
        for _ in range(10):
            for each in (embedded.network, network):
                each.advance(1)
        for one in stopped:
            self.successResultOf(one)
        self.flushLoggedErrors(HandlerFailed)
        return lines, status

    def test_good(self) -> None:
        """
        When all goes well it says so, ends with 0, and has told of each step.
        """
        lines, status = self.run_()
        self.assertEqual("8 sent, 8 handled, 8 acknowledged, 0 lost", lines[-1])
        self.assertEqual([0], status)
        told = "\n".join(lines)
        steps = [
            "device             has checked in, has registered, and is connected",
            "device             sends demo-1",
            "app server         has got demo-1",
            "handler            has handled demo-1",
            "app server         has sent the ACK for demo-1",
        ]
        places = [told.index(step) for step in steps]
        self.assertEqual(sorted(places), places)
        for step in (
            "device             is told that demo-1 is stored, and forgets it",
            "demo-1 again, which it knows",
            "FAILS on demo-5",
            "the connection breaks meanwhile",
            "device             has got demo-7, its data came unchanged",
            "app server         has got the ACK for demo-7",
            "sees connection 2 closed, which costs nothing now",
        ):
            self.assertIn(step, told)

    def test_lost(self) -> None:
        """
        A message that is not acknowledged is lost: the summary says so, and
        the exit status is 1.
        """

        def spoil(demo: Demo) -> None:
            take = demo._embedded.server.take
            demo._embedded.server.take = (  # type: ignore[method-assign]
                lambda device, message, *more: (
                    device.callbacks.messageStored("demo-2")
                    if message.message_id == "demo-2"
                    else take(device, message, *more)
                )
            )

        lines, status = self.run_(spoil)
        self.assertEqual("8 sent, 7 handled, 7 acknowledged, 1 lost", lines[-1])
        self.assertEqual([1], status)
        self.assertIn("has NOT seen the end of demo-2", "\n".join(lines))

    def test_changed(self) -> None:
        """
        A message whose data came changed counts as lost.
        """

        def spoil(demo: Demo) -> None:
            take = demo._embedded.server.take

            def change(device: Any, message: Any, *more: Any) -> None:
                if message.message_id == "demo-3":
                    message = structs.replace(message, data={"text": "else"})
                take(device, message, *more)

            demo._embedded.server.take = change  # type: ignore[method-assign]

        lines, status = self.run_(spoil)
        self.assertEqual("8 sent, 7 handled, 8 acknowledged, 1 lost", lines[-1])
        self.assertEqual([1], status)
        self.assertIn("CHANGED", "\n".join(lines))

    def test_noConnection(self) -> None:
        """
        Where the app server cannot log in everything is lost, and it ends all
        the same.
        """

        def spoil(demo: Demo) -> None:
            demo._embedded.server.registry = Registry({})

        lines, status = self.run_(spoil)
        self.assertEqual("8 sent, 0 handled, 0 acknowledged, 8 lost", lines[-1])
        self.assertEqual([1], status)
        self.assertIn("could NOT log in", "\n".join(lines))

    def test_twice(self) -> None:
        """
        A message that is handled twice is a fault, though none is lost.
        """

        def spoil(demo: Demo) -> None:
            handle = demo.messageReceived

            def handleTwice(message: Any) -> Any:
                if message.message_id == "demo-2":
                    handle(message)
                return handle(message)

            demo.messageReceived = handleTwice  # type: ignore[method-assign]

        lines, status = self.run_(spoil)
        self.assertEqual(
            ["8 sent, 8 handled, 8 acknowledged, 0 lost", "1 handled twice"],
            lines[-2:],
        )
        self.assertEqual([1], status)

    def test_neverHandled(self) -> None:
        """
        A handler that never ends: nothing more is waited for than a message's
        patience, and the message is lost.
        """

        def spoil(demo: Demo) -> None:
            handle = demo.messageReceived
            demo.messageReceived = lambda message: (  # type: ignore[method-assign]
                Deferred() if message.message_id == "demo-4" else handle(message)
            )

        lines, status = self.run_(spoil)
        self.assertIn("8 sent, 7 handled, 7 acknowledged, 1 lost", lines)
        self.assertEqual([1], status)

    def test_brokenDemonstration(self) -> None:
        """
        A fault of the demonstration itself is logged, told, and the exit
        status 1.
        """

        def spoil(demo: Demo) -> None:
            demo._summary = lambda: 1 // 0  # type: ignore[method-assign]

        lines, status = self.run_(spoil)
        self.assertIn("broke", lines[-1])
        self.assertEqual([1], status)
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
