"""
Tests for L{fcmxmpp.interfaces}, and for everything that claims to provide one
of this package's interfaces.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any, get_args

from msgspec import Struct
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from twisted.words.protocols.jabber.ijabber import IXMPPHandler
from zope.interface import Interface, implementedBy
from zope.interface.interface import InterfaceClass, Method
from zope.interface.verify import verifyClass, verifyObject

import fcmxmpp
from fcmxmpp import interfaces
from fcmxmpp.appserver import AppServer
from fcmxmpp.client import FCMClientProtocol, ISettles
from fcmxmpp.delivery import Policy, UpstreamDelivery
from fcmxmpp.downstream import DownstreamSender
from fcmxmpp.inbox import InboxDelivery
from fcmxmpp.interfaces import (
    AppServerEvent,
    IDownstreamSender,
    IEntrusted,
    IInbox,
    IOutbox,
    IReceiptHandler,
    IResponsible,
    ISessionObserver,
    IStore,
    IUpstreamHandler,
)
from fcmxmpp.outbox import StoredSender
from fcmxmpp.server.registry import IDeviceCallbacks
from fcmxmpp.store.memory import MemoryEntrusted, MemoryInbox, MemoryOutbox, MemoryStore
from fcmxmpp.store.sqlite import SQLiteStore
from fcmxmpp.testing import MemoryNetwork, RecordingHandler, RecordingObserver, connectedPair


def modules() -> Iterator[ModuleType]:
    """
    All modules of the package that may be imported without a reactor.
    """
    for info in pkgutil.walk_packages(fcmxmpp.__path__, "fcmxmpp."):
        if info.name != "fcmxmpp.tap":
            yield import_module(info.name)


def claims() -> Iterator[tuple[type, InterfaceClass]]:
    """
    All classes of the package, each with the interfaces that it claims to
    implement.
    """
    for module in modules():
        for _, found in inspect.getmembers(module, inspect.isclass):
            if found.__module__ == module.__name__ and not isinstance(found, InterfaceClass):
                for interface in implementedBy(found).flattened():
                    if interface is not Interface:
                        yield found, interface


def ours() -> Iterator[InterfaceClass]:
    """
    All interfaces of the package.
    """
    for module in modules():
        for found in vars(module).values():
            if isinstance(found, InterfaceClass) and found.__module__ == module.__name__:
                yield found


class ClaimsTests(SynchronousTestCase):
    """
    Whatever claims to implement an interface does.
    """

    def test_classes(self) -> None:
        """
        Every class has the methods, with the right parameters, of every
        interface of ours that it claims to implement.
        """
        claimed = [(one, interface) for one, interface in claims() if interface in set(ours())]
        for one, interface in claimed:
            self.assertTrue(verifyClass(interface, one), (one, interface))
        self.assertLessEqual(
            {
                (UpstreamDelivery, IResponsible),
                (DownstreamSender, ISettles),
                (AppServer, IDownstreamSender),
                (StoredSender, IDownstreamSender),
                (InboxDelivery, IResponsible),
                (MemoryStore, IStore),
                (MemoryInbox, IInbox),
                (MemoryOutbox, IOutbox),
                (MemoryEntrusted, IEntrusted),
                (SQLiteStore, IStore),
                (RecordingHandler, IUpstreamHandler),
                (RecordingHandler, IReceiptHandler),
                (RecordingObserver, ISessionObserver),
            },
            set(claimed),
        )

    def test_endpoints(self) -> None:
        """
        The same holds for what claims to be an endpoint.
        """
        endpoints = {one for one, interface in claims() if interface is IStreamClientEndpoint}
        self.assertIn(MemoryNetwork, endpoints)
        for one in endpoints:
            self.assertTrue(verifyClass(IStreamClientEndpoint, one), one)

    def test_objects(self) -> None:
        """
        So have the objects, made and connected.
        """
        pair = connectedPair(RecordingHandler())
        delivery = UpstreamDelivery(RecordingHandler(), Policy(), Clock(), lambda: 0.0)
        sender = DownstreamSender(lambda: "made", Clock(), lambda: 0.0)
        protocol = FCMClientProtocol(delivery, sender, Clock())
        for interface, provider in (
            (IDownstreamSender, pair.appServer),
            (ISettles, sender),
            (IResponsible, delivery),
            (IResponsible, pair.appServer.delivery),
            (IUpstreamHandler, RecordingHandler()),
            (IReceiptHandler, RecordingHandler()),
            (ISessionObserver, pair.observer),
            (IDeviceCallbacks, pair.device),
            (IStreamClientEndpoint, pair.network),
            (IXMPPHandler, protocol),
        ):
            self.assertTrue(verifyObject(interface, provider), (interface, provider))
        self.successResultOf(pair.stop())


class DeclarationTests(SynchronousTestCase):
    """
    The interfaces are complete in themselves.
    """

    def test_documented(self) -> None:
        """
        Every interface and every method of one says what it is for, and no
        method has a C{self}.
        """
        found = list(ours())
        self.assertIn(IUpstreamHandler, found)
        for interface in found:
            self.assertTrue(interface.__doc__.strip(), interface)
            for name, member in interface.namesAndDescriptions():
                self.assertTrue(member.__doc__.strip(), (interface, name))
                if isinstance(member, Method):
                    self.assertNotIn("self", member.positional, (interface, name))

    def test_all(self) -> None:
        """
        What the module says that it exports, it has; and it exports every
        interface and every event.
        """
        public: dict[str, Any] = {name: getattr(interfaces, name) for name in interfaces.__all__}
        made = {
            name
            for name, value in vars(interfaces).items()
            if not name.startswith("_")
            and getattr(value, "__module__", None) == interfaces.__name__
            and (isinstance(value, InterfaceClass) or inspect.isclass(value))
        }
        self.assertEqual(made | {"AppServerEvent", "settled"}, set(public))

    def test_events(self) -> None:
        """
        L{AppServerEvent} has every event, and none of them can be changed by
        one observer under the eyes of the next.
        """
        events = {
            value
            for value in vars(interfaces).values()
            if inspect.isclass(value)
            and issubclass(value, Struct)
            and value.__module__ == interfaces.__name__
        }
        self.assertEqual(events, set(get_args(AppServerEvent)))
        for event in events:
            self.assertTrue(event.__struct_config__.frozen, event)
