"""
What C{twistd fcm-xmpp} runs: the services, the log, and the end of the
process.
"""

from __future__ import annotations

import os
import re
import select
import stat
import sys
import traceback
from importlib.util import find_spec
from io import FileIO
from pathlib import Path
from typing import Any
from uuid import uuid4

from twisted.application.service import IService, MultiService, Service
from twisted.internet.endpoints import clientFromString
from twisted.internet.interfaces import IStreamClientEndpoint, IStreamServerEndpoint
from twisted.logger import (
    FilteringLogObserver,
    ILogFilterPredicate,
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    PredicateResult,
    textFileLogObserver,
)
from twisted.python.reflect import namedAny
from zope.interface import Invalid, provider
from zope.interface.exceptions import DoesNotImplement

from fcmxmpp.appserver import AppServer
from fcmxmpp.demo import Demo
from fcmxmpp.embedded import DeviceThatTalks, EmbeddedConnectionServer
from fcmxmpp.errors import HandlerFailed
from fcmxmpp.handlers import AppendedFile, Echo, JSONLines
from fcmxmpp.interfaces import IDownstreamSender, IUpstreamHandler
from fcmxmpp.options import Options, Settings, die
from fcmxmpp.running import (
    ExitStatus,
    Interpreter,
    ProcessStore,
    printError,
    printLine,
    standard,
    tellNoStart,
)
from fcmxmpp.sendapi import SendAPI, isLocal, listener
from fcmxmpp.services import InOrder
from fcmxmpp.webhook import TIMEOUT, Webhook, WebhookConnections


__all__ = ["Options", "makeService", "quietLog", "stderrLog"]

_log = Logger()


def stderrLog() -> ILogObserver:
    """
    A log observer for C{twistd --logger}: everything, on standard error.
    """
    return textFileLogObserver(standard("stderr"))


def quietLog() -> ILogObserver:
    """
    A log observer for C{twistd --logger}: nothing but critical errors, on
    standard error.  For the demonstration, which tells the rest itself.
    """
    return FilteringLogObserver(
        stderrLog(), [_notTheHandlers, LogLevelFilterPredicate(defaultLogLevel=LogLevel.critical)]
    )


@provider(ILogFilterPredicate)
def _notTheHandlers(event: LogEvent) -> Any:
    """
    Leave out the failure that the demonstration's handler is asked for.
    """
    failure = event.get("log_failure")
    ours = failure is not None and failure.check(HandlerFailed) is not None
    return PredicateResult.no if ours else PredicateResult.maybe


def _makeHandler(settings: Settings, reactor: Any, services: MultiService) -> Any:
    """
    Find the handler, or what makes it.

    @param services: where to add what it needs.
    """
    name = settings.handler
    if name == "jsonlines":
        if sys.__stdout__ is None:
            die("the default handler writes to standard output, which is closed: name a --handler")
        # Unbuffered, and not sys.stdout, which twistd replaces by its log.
        output = FileIO(sys.__stdout__.fileno(), "wb", closefd=False)
        if stat.S_ISREG(os.fstat(output.fileno()).st_mode):
            # A file has no reader that could stall.
            return JSONLines(output)
        return JSONLines(output, lambda patience: bool(select.select([], [output], [], patience)[1]))
    if name.startswith("jsonlines:"):
        path = os.path.abspath(name.removeprefix("jsonlines:"))
        try:
            return JSONLines(AppendedFile(path))
        except (OSError, ValueError) as error:
            die(f"--handler: cannot write to {path}: {getattr(error, 'strerror', None) or error}")
    if name == "echo":
        return Echo
    if name.startswith("webhook:"):
        return _makeWebhook(settings, reactor, services)
    try:
        found = namedAny(name)
    except Exception as error:
        known = _isFound(name.partition(".")[0])
        hint = "" if known else " (twistd does not look in the current directory: set PYTHONPATH)"
        die(f"--handler {name} cannot be imported: {type(error).__name__}: {error}{hint}")
    if IUpstreamHandler.providedBy(found) or not callable(found):
        return found

    def make(sender: IDownstreamSender) -> Any:
        try:
            return found(sender)
        except Exception as error:
            die(f"--handler {name} raised {type(error).__name__}: {error}{_whereRaised(error)}")

    return make


def _isFound(module: str) -> bool:
    """
    Whether there is a module or package of that name, be it a broken one.

    @param module: without a dot in it.
    """
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        # Nobody can tell where it is from, such as __main__.
        return module in sys.modules


def _whereRaised(error: Exception) -> str:
    """
    Where in the application what we called has raised this: the last line in
    the file that it is in, not in a library that it uses.

    @return: nothing if we got no further than the call.
    """
    frames = traceback.extract_tb(error.__traceback__)[1:]
    lines = [frame.lineno for frame in frames if frame.filename == frames[0].filename]
    return f" ({os.path.basename(frames[0].filename)}, line {lines[-1]})" if lines else ""


def _makeEndpoint(reactor: Any, description: str) -> IStreamClientEndpoint:
    """
    The endpoint that C{--endpoint} describes.
    """
    # Twisted takes a directory without certificates, and then trusts nobody.
    trustRoots = re.search(r"(?:^|:)trustRoots=([^:]*)", description)
    if trustRoots and not any(Path(trustRoots[1]).glob("*.pem")):
        die(f"--endpoint: there are no certificates (*.pem) in the trustRoots directory {trustRoots[1]!r}")
    try:
        endpoint: IStreamClientEndpoint = clientFromString(reactor, description)
        return endpoint
    except Exception:
        die(f"--endpoint has to look like tls:HOST:PORT or tls:HOST:PORT:trustRoots=DIR, not {description!r}")


def _hostAndPort(description: str | None) -> str:
    """
    What the log calls the connection server.
    """
    return "the embedded server" if description is None else ":".join(description.split(":")[1:3])


def _makeWebhook(settings: Settings, reactor: Any, services: MultiService) -> Any:
    """
    What makes the handler that POSTs to a URL.
    """
    connections = WebhookConnections(reactor)
    connections.setServiceParent(services)

    def make(sender: IDownstreamSender) -> IUpstreamHandler:
        return Webhook(
            settings.handler.removeprefix("webhook:"),
            sender,
            connections.agent,
            reactor,
            token=settings.webhookToken,
            timeout=min(TIMEOUT, settings.policy.handlerTimeout / 2),
        )

    return make


def _makeListener(reactor: Any, description: str, token: str | None) -> IStreamServerEndpoint:
    """
    The endpoint that C{--send-api} describes.
    """
    try:
        endpoint = listener(reactor, description)
    except Exception as error:
        die(
            f"--send-api has to look like unix:PATH or tcp:PORT:interface=127.0.0.1, not {description!r} "
            f"({type(error).__name__}: {error})"
        )
    if token is None and not isLocal(description):
        die(
            f"--send-api {description} can be reached from other machines: it needs --send-api-token-file, "
            "or interface=127.0.0.1, or use unix:PATH"
        )
    return endpoint


def makeService(options: Options, reactor: Any = None) -> IService:
    """
    Make the service that C{twistd fcm-xmpp} runs.
    """
    if reactor is None:
        from twisted.internet import reactor
    settings = options.settings
    services = InOrder()
    status = ExitStatus(reactor, settings.grace)
    status.setServiceParent(services)
    # First, because whoever has used it is to be gone when it is closed.
    store = None
    if settings.store is not None:
        store = ProcessStore(
            settings.store,
            reactor,
            settings.remember,
            "fcm-xmpp",
            settings.announce,
            settings.daemon,
            look="fcmxmpp inbox list",
        )
        store.setServiceParent(services)
    Interpreter().setServiceParent(services)
    endpoint: IStreamClientEndpoint
    handler: Any
    observer = None
    if settings.credentials is None:
        embedded = EmbeddedConnectionServer(reactor, settings.senderID, store)
        embedded.setServiceParent(services)
        endpoint, credentials = embedded, embedded.credentials
        if settings.demo:
            handler = observer = Demo(embedded, reactor, printLine, status.end)
            observer.setServiceParent(services)
        else:
            handler = _makeHandler(settings, reactor, services)
            _Announcement(embedded, settings.announce).setServiceParent(services)
            DeviceThatTalks(embedded, reactor, lambda: str(uuid4())).setServiceParent(services)
    else:
        handler = _makeHandler(settings, reactor, services)
        credentials = settings.credentials
        endpoint = _makeEndpoint(reactor, settings.endpoint or "")
    try:
        server = AppServer(
            endpoint,
            credentials,
            handler,
            clock=reactor,
            connections=settings.connections,
            policy=settings.policy,
            store=store,
            grace=settings.grace,
            observer=observer,
            server=_hostAndPort(settings.endpoint),
        )
    except Invalid as error:
        found = [error, *getattr(error, "exceptions", ())]
        undeclared = any(isinstance(each, DoesNotImplement) for each in found)
        hint = " (is @implementer(IUpstreamHandler) missing?)" if undeclared else ""
        die(
            f"--handler {settings.handler} is neither an IUpstreamHandler nor a callable that takes the "
            f"IDownstreamSender and returns one: {error}{hint}"
        )
    if isinstance(observer, Demo):
        observer.sender = server
    if settings.sendAPI is None:
        server.setServiceParent(services)
    else:
        # Both stop at the same time, this one first: it takes no more requests,
        # and waits for the app server to settle those that there are.
        both = MultiService()
        both.setServiceParent(services)
        server.setServiceParent(both)
        _SendAPI(settings, server, reactor).setServiceParent(both)
    service: IService = services
    return service


class _SendAPI(SendAPI):
    """
    The send API, for a process that is to end if it cannot listen.
    """

    def __init__(self, settings: Settings, sender: IDownstreamSender, reactor: Any) -> None:
        self._description = settings.sendAPI or ""
        self._alsoPrint = settings.announce
        self._daemon = settings.daemon
        endpoint = _makeListener(reactor, self._description, settings.sendAPIToken)
        super().__init__(endpoint, sender, reactor, lambda: str(uuid4()), settings.sendAPIToken)

    def privilegedStartService(self) -> None:
        """
        Listen.

        @raise SystemExit: if that is impossible.  Nothing has been started yet,
            so nothing is left behind.
        @raise CannotListenError: the same for a daemon: who has started it
            waits until its twistd has told how that went, and so would for
            ever.
        """
        try:
            super().privilegedStartService()
        except Exception as error:
            cause = getattr(error, "socketError", error)
            why = getattr(cause, "strerror", None) or str(cause)
            tellNoStart(f"--send-api {self._description}: cannot listen: {why}", "fcm-xmpp", self._alsoPrint)
            if self._daemon:
                raise
            raise SystemExit(1) from None


class _Announcement(Service):
    """
    Says where the embedded connection server listens.
    """

    def __init__(self, embedded: EmbeddedConnectionServer, alsoPrint: bool) -> None:
        self._embedded = embedded
        self._alsoPrint = alsoPrint

    def startService(self) -> None:
        """
        Say it, now that it listens.
        """
        super().startService()
        description = self._embedded.description
        _log.info("embedded connection server: connect to it with {options}", options=description)
        if self._alsoPrint:
            printError(f"embedded connection server: connect to it with {description}")
