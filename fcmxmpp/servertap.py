"""
What C{twistd fcm-connection-server} runs: the services, and the end of the
process.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.task import deferLater
from twisted.logger import Logger

from fcmxmpp.running import ExitStatus, Interpreter, Listener, ProcessStore, printError
from fcmxmpp.server.devices import DeviceFactory
from fcmxmpp.server.postoffice import PostOffice
from fcmxmpp.server.registry import Registry
from fcmxmpp.server.senders import HashedKey, readSenders
from fcmxmpp.server.service import ConnectionServer
from fcmxmpp.server.site import site
from fcmxmpp.serveroptions import ServerOptions, ServerSettings, Trial
from fcmxmpp.services import InOrder
from fcmxmpp.settings import die, why
from fcmxmpp.store.memory import MemoryStore
from fcmxmpp.store.sqlite import KEEP


__all__ = ["Options", "makeService"]

_log = Logger()

#: The class that twistd looks for.
Options = ServerOptions
_PROGRAM = ServerOptions.program
#: Seconds between looks at the stop whether all ACKs have come.
_LOOK = 0.1


def makeService(options: ServerOptions, reactor: Any = None) -> IService:
    """
    Make the service that C{twistd fcm-connection-server} runs.
    """
    if reactor is None:
        from twisted.internet import reactor
    settings = options.settings
    services = InOrder()
    ExitStatus(reactor, settings.grace).setServiceParent(services)
    store: Any
    if settings.store is None:
        store = MemoryStore(reactor.seconds)
    else:
        store = ProcessStore(settings.store, reactor, KEEP, _PROGRAM, settings.announce, settings.daemon)
    store.setServiceParent(services)
    Interpreter().setServiceParent(services)
    try:
        registry = Registry(_readSenders(settings.senders))
    except ValueError as error:
        die(f"--senders {settings.senders}: {error}", _PROGRAM)
    office = PostOffice(store.registrations, store.mailboxes, reactor)
    server = ConnectionServer(
        registry, reactor, receipts=settings.receipts, entrusted=store.entrusted, office=office
    )
    office.server = server
    devices = DeviceFactory(office, reactor)
    factories: dict[str, tuple[str | None, IProtocolFactory]] = {
        "xmpp": (settings.xmpp, server.factory),
        "devices": (settings.devices, devices),
        "http": (settings.http, site(store.registrations, registry, reactor, office.changed)),
    }
    listeners = {
        name: _listener(name, description, factory, settings, reactor)
        for name, (description, factory) in factories.items()
        if description is not None
    }
    # First, so that no signal is too early.
    _Reload(settings.senders, registry, server, reactor).setServiceParent(services)
    running = _Running(server, office, devices, listeners, settings, reactor)
    running.setServiceParent(services)
    service: IService = services
    return service


def _readSenders(path: str) -> dict[str, tuple[HashedKey, ...]]:
    """
    Read the senders file.

    @raise ValueError: if that is impossible; the text says why.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot be read: {why(error)}") from None
    return readSenders(text)


def _listener(
    name: str, description: str, factory: IProtocolFactory, settings: ServerSettings, reactor: Any
) -> Listener:
    """
    A port.
    """
    try:
        endpoint = serverFromString(reactor, description)
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        die(
            f"--{name} has to look like ssl:PORT:privateKey=key.pem:certKey=cert.pem, not {description!r} "
            f"({reason})",
            _PROGRAM,
        )
    return Listener(
        endpoint, factory, f"--{name} {description}", _PROGRAM, settings.announce, settings.daemon
    )


class _Running(Service):
    """
    The connection server and its ports.
    """

    def __init__(
        self,
        server: ConnectionServer,
        office: PostOffice,
        devices: DeviceFactory,
        listeners: dict[str, Listener],
        settings: ServerSettings,
        reactor: Any,
    ) -> None:
        self._server = server
        self._office = office
        self._devices = devices
        self._listeners = listeners
        self._settings = settings
        self._reactor = reactor

    def privilegedStartService(self) -> None:
        """
        Listen, while ports below 1024 can be had.
        """
        super().privilegedStartService()
        for listener in self._listeners.values():
            listener.privilegedStartService()

    def startService(self) -> None:
        """
        Start.
        """
        super().startService()
        self._server.startService()
        self._office.start()
        for name, listener in self._listeners.items():
            listener.startService()
            _log.info(
                "{what} connect to port {port} of {host}",
                what=_WHO[name],
                port=listener.address.port,
                host=listener.address.host or "every address",
            )
        if self._settings.store is None:
            _log.warn("there is no --store: what devices have entrusted to this server ends with it")
        if self._settings.trial is not None:
            ports = {name: listener.address.port for name, listener in self._listeners.items()}
            for line in _howToConnect(self._settings.trial, ports):
                _log.info("{line}", line=line)
                if self._settings.announce:
                    printError(line)

    def stopService(self) -> Deferred[None]:
        """
        Listen no more, let app servers send their ACKs, and close everything.
        """
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        """
        See L{stopService}.
        """
        await gatherResults([listener.stopService() for listener in self._listeners.values()])
        self._office.stop()
        await self._devices.stop()
        self._server.drain(self._settings.grace)
        until = self._reactor.seconds() + self._settings.grace
        while any(stream.unanswered for stream in self._server.streams()) and self._reactor.seconds() < until:
            await deferLater(self._reactor, _LOOK)
        await self._server.stopService()
        counts, statistics = self._office.counts, self._server.statistics
        _log.info(
            "stopped; upstream: {uploads} from devices, {acknowledged} acknowledged, {expired} expired; "
            "downstream: {accepted} accepted, {refused} refused, {delivered} acknowledged by devices",
            uploads=counts.uploads,
            acknowledged=statistics.acknowledged,
            expired=statistics.expired,
            accepted=statistics.accepted,
            refused=statistics.refused,
            delivered=counts.delivered,
        )


_WHO = {"xmpp": "app servers", "devices": "devices", "http": "check-ins and registrations"}


def _howToConnect(trial: Trial, ports: dict[str, int]) -> list[str]:
    """
    What each kind of client needs to connect for a first try.
    """
    trust = trial.certificates.trust
    lines = []
    if "xmpp" in ports:
        key = "THE_KEY" if trial.keyFile is None else trial.keyFile
        lines.append(
            f"an app server: twistd -n fcm-xmpp --endpoint tls:localhost:{ports['xmpp']}:trustRoots={trust} "
            f"--sender-id {trial.senderID} --server-key-file {key}"
        )
    if "devices" in ports and "http" in ports:
        lines.append(
            f"a device: fcmxmpp device listen --server localhost:{ports['devices']} "
            f"--http https://localhost:{ports['http']} --sender-id {trial.senderID} --app org.example.app "
            f"--trust {trust} --file device.db"
        )
        lines.append(
            f"Chromium: --gcm-checkin-url=https://localhost:{ports['http']}/checkin "
            f"--gcm-registration-url=https://localhost:{ports['http']}/c2dm/register3 "
            f"--gcm-mcs-endpoint=https://localhost:{ports['devices']}, "
            "and to trust it: certutil -d sql:$HOME/.pki/nssdb -A -t C,, -n fcmxmpp "
            f"-i {trial.certificates.authority}"
        )
    lines.append(
        f"other clients trust it by SSL_CERT_FILE={trial.certificates.authority} (Python), "
        f"NODE_EXTRA_CA_CERTS={trial.certificates.authority} (Node.js)"
    )
    return lines


class _Reload(Service):
    """
    Reads the senders file again at SIGHUP.
    """

    def __init__(self, path: str, registry: Registry, server: ConnectionServer, reactor: Any) -> None:
        self._path = path
        self._registry = registry
        self._server = server
        self._reactor = reactor
        self._before: Callable[[int, Any], Any] | int | None = None

    def startService(self) -> None:
        """
        Read the file at SIGHUP, which Twisted leaves alone.
        """
        super().startService()
        try:
            self._before = signal.signal(
                signal.SIGHUP, lambda number, frame: self._reactor.callFromThread(self.reload)
            )
        except (AttributeError, ValueError):
            _log.warn("the senders file is not read again: there is no SIGHUP here, or not in this thread")

    def reload(self) -> None:
        """
        Read the file; if that is impossible, all stays as it is.
        """
        try:
            senders = _readSenders(self._path)
        except ValueError as error:
            _log.error(
                "the senders file {path}: {error}; those that were there stay", path=self._path, error=error
            )
            return
        gone = self._registry.replace(senders)
        for senderID in gone:
            self._server.closeSender(senderID)
        _log.info(
            "the senders file {path} was read again: {count} senders, {gone} are gone",
            path=self._path,
            count=len(senders),
            gone=len(gone),
        )

    def stopService(self) -> None:
        """
        Give the signal back.
        """
        super().stopService()
        if self._before is not None:
            signal.signal(signal.SIGHUP, self._before)
            self._before = None
