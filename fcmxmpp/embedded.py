"""
A connection server for C{--embedded}: in this process, on loopback, over real
TLS, with a certificate and a server key of its own making.

Both are written to a directory while it runs, so that other programs can
connect to it, too.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from OpenSSL.crypto import FILETYPE_PEM
from twisted.application.service import Service
from twisted.internet.address import IPv4Address as AddressOfPort
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import SSL4ServerEndpoint, TCP4ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.ssl import Certificate, optionsForClientTLS
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.web.client import Agent, HTTPConnectionPool
from zope.interface import implementer

from fcmxmpp.certificates import selfSigned
from fcmxmpp.connection import Credentials
from fcmxmpp.device import Device
from fcmxmpp.devicehttp import DeviceHTTP
from fcmxmpp.httpclient import TrustingPolicy
from fcmxmpp.interfaces import IStore
from fcmxmpp.server.devices import DeviceFactory
from fcmxmpp.server.postoffice import PostOffice
from fcmxmpp.server.registry import Registry
from fcmxmpp.server.service import ConnectionServer
from fcmxmpp.server.simulated import SimulatedDevice
from fcmxmpp.server.site import site
from fcmxmpp.store.memory import MemoryStore


__all__ = ["DeviceThatTalks", "EmbeddedConnectionServer"]

_log = Logger()


@implementer(IStreamClientEndpoint)
class EmbeddedConnectionServer(Service):
    """
    A connection server on a loopback port, and the endpoint that connects to
    it.

    @ivar server: the connection server.
    @ivar credentials: of its one sender.
    @ivar directory: where C{certs/} and C{server-key.txt} are, while it runs.
    @ivar port: where it listens for app servers, while it runs.
    @ivar devicePort: where it listens for devices.
    @ivar httpPort: where devices check in and register.
    """

    directory: Path
    port: int
    devicePort: int
    httpPort: int

    def __init__(self, reactor: Any, senderID: str, store: IStore | None = None) -> None:
        """
        @param senderID: of its one sender.
        @param store: what outlasts it; started before it, and stopped after it.
        """
        self._reactor = reactor
        self.credentials = Credentials(senderID, secrets.token_urlsafe(24))
        registry = Registry({senderID: self.credentials.serverKey})
        kept: Any = MemoryStore(reactor.seconds) if store is None else store
        self._office = PostOffice(kept.registrations, kept.mailboxes, reactor)
        self.server = ConnectionServer(
            registry, reactor, entrusted=None if store is None else store.entrusted, office=self._office
        )
        self._office.server = self.server
        self._devices = DeviceFactory(self._office, reactor)
        self._site = site(kept.registrations, registry, reactor, self._office.changed)
        self._listening: list[IListeningPort] = []
        self._certificate = selfSigned()

    def startService(self) -> None:
        """
        Listen.
        """
        super().startService()
        self.server.startService()
        self.directory = Path(tempfile.mkdtemp(prefix="fcmxmpp-"))
        (self.directory / "certs").mkdir()
        pem = self._certificate.dump(FILETYPE_PEM)
        (self.directory / "certs" / "connection-server.pem").write_bytes(pem)
        keyFile = self.directory / "server-key.txt"
        keyFile.touch(mode=0o600)
        keyFile.write_text(self.credentials.serverKey + "\n")
        self._office.start()
        for factory in (self.server.factory, self._devices, self._site):
            endpoint = SSL4ServerEndpoint(
                self._reactor, 0, self._certificate.options(), interface="127.0.0.1"
            )
            # A TCP port on loopback is opened at once, so this has fired.
            endpoint.listen(factory).addCallbacks(self._listening.append, _cannotListen)
        if len(self._listening) == 3:
            self.port, self.devicePort, self.httpPort = map(_portOf, self._listening)

    @property
    def description(self) -> str:
        """
        How another program connects to this: the options of
        C{twistd fcm-xmpp}.
        """
        return (
            f"--endpoint tls:localhost:{self.port}:trustRoots={self.directory / 'certs'} "
            f"--sender-id {self.credentials.senderID} --server-key-file {self.directory / 'server-key.txt'}"
        )

    def device(self, category: str, app: Any) -> Device:
        """
        A device that connects to this server as any other would.

        @param category: the app on it.
        @param app: an L{IDeviceApp<fcmxmpp.device.IDeviceApp>}.
        """
        trustRoot = Certificate.loadPEM(self._certificate.dump(FILETYPE_PEM))
        endpoint = wrapClientTLS(
            optionsForClientTLS("localhost", trustRoot=trustRoot),
            TCP4ClientEndpoint(self._reactor, "127.0.0.1", self.devicePort),
        )
        agent = Agent(
            self._reactor, TrustingPolicy(trustRoot), pool=HTTPConnectionPool(self._reactor, persistent=False)
        )
        http = DeviceHTTP(agent, f"https://localhost:{self.httpPort}", self._reactor)
        return Device(self._reactor, endpoint, http, self.credentials.senderID, category, app)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """
        Connect to this server as any other program would.
        """
        trustRoot = Certificate.loadPEM(self._certificate.dump(FILETYPE_PEM))
        return wrapClientTLS(
            optionsForClientTLS("localhost", trustRoot=trustRoot),
            TCP4ClientEndpoint(self._reactor, "127.0.0.1", self.port),
        ).connect(protocolFactory)

    def stopService(self) -> Deferred[None]:
        """
        Close the port and every connection, and remove the files.
        """
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        """
        See L{stopService}.
        """
        try:
            for port in self._listening:
                await maybeDeferred(port.stopListening)
            self._office.stop()
            await self._devices.stop()
            await self.server.stopService()
        finally:
            shutil.rmtree(self.directory)


def _portOf(listening: IListeningPort) -> int:
    """
    The number of a port.
    """
    address = listening.getHost()
    assert isinstance(address, AddressOfPort)
    return address.port


def _cannotListen(failure: Any) -> None:
    """
    There is no port to be had.
    """
    _log.failure("the embedded connection server cannot listen", failure)


class DeviceThatTalks(Service):
    """
    A simulated device that sends a message every few seconds, so that there is
    something to see.
    """

    #: Seconds between messages.
    INTERVAL = 10.0

    def __init__(self, embedded: EmbeddedConnectionServer, reactor: Any, newID: Callable[[], str]) -> None:
        """
        @param newID: makes a C{message_id}.
        """
        self._device = SimulatedDevice(
            embedded.server, embedded.credentials.senderID, "embedded-device", "org.example.embedded"
        )
        self._newID = newID
        self._count = 0
        self._loop = LoopingCall(self._talk)
        self._loop.clock = reactor

    def _talk(self) -> None:
        """
        Send a message.
        """
        self._count += 1
        sent = self._device.send(self._newID(), {"greeting": "hello", "count": str(self._count)})
        # What becomes of it is seen at the app server; this is only a device.
        sent.addErrback(lambda failure: _log.warn("the device was told: {error}", error=failure.value))

    def startService(self) -> None:
        """
        Begin to talk.
        """
        super().startService()
        self._loop.start(self.INTERVAL)

    def stopService(self) -> None:
        """
        Fall silent.
        """
        super().stopService()
        self._loop.stop()
