"""
What C{twistd fcm-connection-server} runs: the services, and the end of the
process.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Callable, Mapping
from typing import Any

from twisted.application.service import IService, Service
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import quoteStringArgument, serverFromString
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.task import deferLater
from twisted.logger import Logger

from fcmxmpp import __version__
from fcmxmpp.files import why
from fcmxmpp.running import ExitStatus, Interpreter, Listener, OpenFiles, ProcessStore, printError
from fcmxmpp.server.devices import DeviceFactory
from fcmxmpp.server.postoffice import PostOffice
from fcmxmpp.server.registry import Registry
from fcmxmpp.server.senders import HashedKey, readSenders
from fcmxmpp.server.service import ConnectionServer
from fcmxmpp.server.site import site
from fcmxmpp.serveroptions import ServerOptions, ServerSettings, Trial
from fcmxmpp.services import InOrder
from fcmxmpp.settings import die
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
    OpenFiles().setServiceParent(services)
    try:
        senders = _readSenders(settings.senders)
    except ValueError as error:
        die(f"--senders {settings.senders}: {error}", _PROGRAM)
    registry = Registry(senders)
    _Greeting(settings, len(senders)).setServiceParent(services)
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
    # Before the others, so that no signal is too early, and none too late: it would
    # end the process while that drains.
    _Reload(settings.senders, registry, server, reactor).setServiceParent(services)
    _Running(server, office, devices, listeners, settings, reactor).setServiceParent(services)
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
        if isinstance(error, OSError) and error.filename is not None:
            die(f"--{name}: cannot read {error.filename}: {why(error)}", _PROGRAM)
        die(
            f"--{name} has to look like ssl:PORT:privateKey=key.pem:certKey=cert.pem, not {description!r} "
            f"({type(error).__name__}: {error})",
            _PROGRAM,
        )
    _checkChain(name, description)
    # Without the files, of which --self-signed has added some.
    shown = description.partition(":privateKey=")[0]
    return Listener(endpoint, factory, f"--{name} {shown}", _PROGRAM, settings.announce, settings.daemon)


def _checkChain(name: str, description: str) -> None:
    """
    See to it that clients are sent all of a chain of certificates: Twisted takes
    the first one of a file, and many a client does not look for the others.
    """
    if not description.startswith("ssl:") or "extraCertChain=" in description:
        return
    files = {
        which: re.sub(r"\\(.)", r"\1", path)
        for which, path in re.findall(r":(certKey|privateKey)=((?:\\.|[^:\\])*)", description)
    }
    path = files.get("certKey") or files.get("privateKey")
    if path is None:
        return
    with open(path, "rb") as file:
        count = file.read().count(b"-----BEGIN CERTIFICATE-----")
    if count > 1:
        die(
            f"--{name}: {path} has {count} certificates, and clients would be sent the first alone: put the "
            "others into a file, and say :extraCertChain=FILE",
            _PROGRAM,
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
            _log.info("{what} connect to {where}", what=_WHO[name], where=_where(listener.address))
        if self._settings.trial is not None:
            settings = self._settings
            # Where TLS is somebody else's affair, so is what clients need.
            ports = {
                name: listener.address.port
                for name, listener in self._listeners.items()
                if isinstance(listener.address, (IPv4Address, IPv6Address))
                and (name == "http" or str(getattr(settings, name)).startswith("ssl:"))
            }
            http = "https" if str(settings.http).startswith("ssl:") else "http"
            for line in _howToConnect(self._settings.trial, ports, http):
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


def _where(address: Any) -> str:
    """
    Where something listens, for people.
    """
    if isinstance(address, (IPv4Address, IPv6Address)):
        isAnywhere = address.host in ("", "0.0.0.0", "::")
        return f"port {address.port} of {'every address' if isAnywhere else address.host}"
    name = getattr(address, "name", None)
    return f"the socket {os.fsdecode(name)}" if name else str(address)


def _howToConnect(trial: Trial, ports: Mapping[str, int], http: str) -> list[str]:
    """
    What each kind of client needs to connect for a first try.

    @param http: the scheme of URLs.
    """
    authority = shlex.quote(str(trial.certificates.authority))
    trust = str(trial.certificates.trust)
    senderID, keyFile = trial.senderID, shlex.quote(str(trial.keyFile))
    if senderID is None:
        senderID, keyFile = "SENDER_ID", "FILE"
    lines = []
    if trial.isNew:
        lines.append(f"there is a new local authority; clients have to trust {authority}")
    if "xmpp" in ports:
        endpoint = f"tls:localhost:{ports['xmpp']}:trustRoots={quoteStringArgument(trust)}"
        lines.append(
            f"an app server: twistd -n fcm-xmpp --endpoint {shlex.quote(endpoint)} --sender-id {senderID} "
            f"--server-key-file {keyFile}"
        )
    if "devices" in ports and "http" in ports:
        lines.append(
            f"a device: fcmxmpp device listen --server localhost:{ports['devices']} "
            f"--http {http}://localhost:{ports['http']} --sender-id {senderID} "
            f"--app org.example.app --trust {shlex.quote(trust)} --file device.db"
        )
        lines.append(
            f"Chromium: --gcm-checkin-url={http}://localhost:{ports['http']}/checkin "
            f"--gcm-registration-url={http}://localhost:{ports['http']}/c2dm/register3 "
            f"--gcm-mcs-endpoint=https://localhost:{ports['devices']}, "
            "and to trust it: certutil -d sql:$HOME/.pki/nssdb -A -t C,, -n fcmxmpp "
            f"-i {authority}"
        )
    if ports:
        lines.append(
            f"other clients trust it by SSL_CERT_FILE={authority} (Python), "
            f"NODE_EXTRA_CA_CERTS={authority} (Node.js)"
        )
    return lines


class _Greeting(Service):
    """
    Says at the start what this is, and what about it may be a surprise.
    """

    def __init__(self, settings: ServerSettings, senders: int) -> None:
        """
        @param senders: how many may log in.
        """
        self._settings = settings
        self._senders = senders

    def startService(self) -> None:
        """
        Say it.
        """
        super().startService()
        settings = self._settings
        _log.info(
            "fcmxmpp {version}: connection server; {path} has {count}",
            version=__version__,
            path=settings.senders,
            count=_counted(self._senders),
        )
        if not self._senders:
            _log.warn("no app server can log in: fcmxmpp senders add makes a sender")
        if settings.store is None:
            _log.warn("there is no --store: registrations, and messages under way, end with this process")
        if settings.isOpen:
            _log.warn(
                "--http {description} is unencrypted, and other machines can reach it: server keys and "
                "registrations are for a proxy's ears only, which does TLS",
                description=settings.http,
            )


def _counted(senders: int) -> str:
    """
    How many senders there are.
    """
    return f"{senders} sender{'' if senders == 1 else 's'}"


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
        Take over the signal, which would end the process.
        """
        super().startService()
        try:
            self._before = signal.signal(
                signal.SIGHUP, lambda number, frame: self._reactor.callFromThread(self._reload)
            )
        except (AttributeError, ValueError):
            _log.warn("the senders file is not read again: there is no SIGHUP here, or not in this thread")

    def _reload(self) -> None:
        """
        Read the file; if that is impossible, all stays as it is.
        """
        try:
            senders = _readSenders(self._path)
        except ValueError as error:
            _log.error(
                "got SIGHUP: {path}: {error}; the senders stay as they were", path=self._path, error=error
            )
            return
        gone = self._registry.replace(senders)
        _log.info(
            "got SIGHUP: {path} has {count}{gone}",
            path=self._path,
            count=_counted(len(senders)),
            gone=f"; closing the connections of {', '.join(gone)}, who lost a key" if gone else "",
        )
        for senderID in gone:
            self._server.closeSender(senderID)

    def stopService(self) -> None:
        """
        Give the signal back.
        """
        super().stopService()
        if self._before is not None:
            signal.signal(signal.SIGHUP, self._before)
            self._before = None
