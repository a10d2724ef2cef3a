"""
C{fcmxmpp device}: a device, for people and for scripts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import click
from OpenSSL import crypto
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.logger import FilteringLogObserver, LogLevel, LogLevelFilterPredicate, textFileLogObserver
from twisted.logger import globalLogBeginner as beginner
from twisted.web.client import Agent, HTTPConnectionPool
from zope.interface import implementer

from fcmxmpp.device import Device, IDeviceApp, NotSent
from fcmxmpp.devicecache import DeviceCache
from fcmxmpp.devicehttp import DeviceHTTP
from fcmxmpp.httpclient import TrustingPolicy
from fcmxmpp.mcs.stanzas import ReceivedMessage


__all__ = ["device"]

#: Seconds that the connection server has to store a message.
PATIENCE = 30.0


@implementer(IDeviceApp)
class _Printing:
    """
    An app that prints what it gets, each message as a line of JSON.
    """

    def __init__(self, count: int | None) -> None:
        self._left = count
        self.done: Deferred[None] = Deferred()

    def _print(self, **what: Any) -> None:
        """
        Print a line.
        """
        click.echo(json.dumps({name: value for name, value in what.items() if value}, ensure_ascii=False))
        sys.stdout.flush()

    def messagesSent(self, message_ids: list[str]) -> None:
        """
        See L{IDeviceApp.messagesSent}.
        """

    def messagesFailed(self, failed: list[tuple[str, str]]) -> None:
        """
        See L{IDeviceApp.messagesFailed}.
        """
        for message_id, error in failed:
            self._print(failed=message_id, error=error)

    def messageReceived(self, message: ReceivedMessage) -> None:
        """
        See L{IDeviceApp.messageReceived}.
        """
        self._print(
            **{"from": message.from_},
            message_id=message.message_id,
            collapse_key=message.collapse_key,
            data=message.data,
            notification=message.notification,
        )
        if self._left is not None:
            self._left -= 1
            if not self._left and not self.done.called:
                self.done.callback(None)

    def messagesDeleted(self, total: int) -> None:
        """
        See L{IDeviceApp.messagesDeleted}.
        """
        self._print(deleted=total)


def _trustRoot(directory: str | None) -> Any:
    """
    Whom to trust: the certificates in a directory; the system's, if there is
    none.
    """
    if directory is None:
        return None
    try:
        files = sorted(Path(directory).glob("*.pem"))
        certificates = [Certificate.loadPEM(path.read_bytes()) for path in files]
    except (OSError, crypto.Error) as error:
        raise click.ClickException(f"--trust {directory}: {error or 'not a certificate'}") from None
    if not certificates:
        raise click.ClickException(f"--trust {directory}: there are no certificates (*.pem) in it")
    return trustRootFromCertificates(certificates)


def _server(_: click.Context, option: click.Parameter, value: str) -> tuple[str, int]:
    """
    Host and port.
    """
    host, _colon, port = value.rpartition(":")
    if not host or not port.isdigit():
        raise click.BadParameter("it has to look like HOST:PORT", param=option)
    return host.strip("[]"), int(port)


def _pairs(_: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """
    Key-value pairs.
    """
    result = {}
    for each in values:
        name, sign, value = each.partition("=")
        if not sign or not name:
            raise click.BadParameter("it has to look like KEY=VALUE", param=option)
        result[name] = value
    return result


class _Made:
    """
    What a subcommand works with.
    """

    def __init__(
        self,
        reactor: Any,
        server: tuple[str, int],
        http: str,
        sender_id: str,
        app: str,
        trust: str | None,
        file: str | None,
        printing: _Printing | None = None,
    ) -> None:
        trustRoot = _trustRoot(trust)
        self.cache = DeviceCache(file)
        pool = HTTPConnectionPool(reactor, persistent=False)
        agent = Agent(reactor, TrustingPolicy(trustRoot), connectTimeout=PATIENCE, pool=pool)
        self.http = DeviceHTTP(agent, http, reactor)
        host, port = server
        endpoint = wrapClientTLS(
            optionsForClientTLS(host, trustRoot=trustRoot), HostnameEndpoint(reactor, host, port)
        )
        self.device = Device(reactor, endpoint, self.http, sender_id, app, printing, self.cache)


async def _register(reactor: Any, made: _Made) -> None:
    """
    See C{fcmxmpp device register}.
    """
    device, cache = made.device, made.cache
    if cache.identity is None:
        cache.identity = await made.http.checkIn(None)
    if device.token is None:
        token = await made.http.register(cache.identity, device.senderID, device.category)
        cache.setToken(device.senderID, device.category, token)
        device.token = token
    cache.close()
    click.echo(device.token)


async def _send(reactor: Any, made: _Made, data: dict[str, str], message_id: str, ttl: int, to: str) -> None:
    """
    See C{fcmxmpp device send}.
    """
    made.device.startService()
    try:
        await made.device.whenReady().addTimeout(PATIENCE, reactor)
        await made.device.sendMessage(data, to, message_id, ttl).addTimeout(PATIENCE, reactor)
    finally:
        await made.device.stopService()
    click.echo(message_id)


async def _listen(reactor: Any, made: _Made, printing: _Printing) -> None:
    """
    See C{fcmxmpp device listen}.
    """
    made.device.startService()
    try:
        await printing.done
    finally:
        await made.device.stopService()


def _run(does: Callable[[Any], Awaitable[None]]) -> None:
    """
    Run a reactor until something is done.
    """
    from twisted.internet.task import react

    failures: list[BaseException] = []

    async def run(reactor: Any) -> None:
        try:
            await does(reactor)
        except Exception as error:
            failures.append(error)

    # Standard output is for what was asked for.
    observer = FilteringLogObserver(
        textFileLogObserver(sys.stderr), [LogLevelFilterPredicate(defaultLogLevel=LogLevel.warn)]
    )
    beginner.beginLoggingTo([observer], redirectStandardIO=False)
    try:
        react(lambda reactor: Deferred.fromCoroutine(run(reactor)))
    except SystemExit as error:
        if error.code:
            raise
    if failures:
        raise click.ClickException(_reason(failures[0]))


def _reason(error: BaseException) -> str:
    """
    What went wrong, in one line.
    """
    if isinstance(error, click.ClickException):
        return error.message
    if isinstance(error, NotSent):
        return f"the message was not sent: {error.error}"
    if isinstance(error, TimeoutError):
        return f"no answer within {PATIENCE:.0f} s"
    return str(error) or type(error).__name__


def _options(needsFile: bool) -> list[click.Parameter]:
    """
    What every subcommand needs.
    """
    return [
        click.Option(
            ["--server"],
            required=True,
            callback=_server,
            metavar="HOST:PORT",
            help="Where devices connect (MCS over TLS).",
        ),
        click.Option(["--http"], required=True, metavar="URL", help="Where devices check in and register."),
        click.Option(["--sender-id"], required=True, metavar="DIGITS", help="Whose app server to talk to."),
        click.Option(["--app"], required=True, metavar="NAME", help="The app: org.example.app"),
        click.Option(
            ["--trust"],
            metavar="DIR",
            help="Directory with the certificates (*.pem) to trust.  [default: the system's]",
        ),
        click.Option(
            ["--file"],
            required=needsFile,
            metavar="PATH",
            help="Where the device keeps who it is, its token and what it has not sent; made if need be.",
        ),
    ]


def _registerCommand(**how: Any) -> None:
    _run(lambda reactor: _register(reactor, _Made(reactor, **how)))


def _sendCommand(data: dict[str, str], message_id: str | None, ttl: int, **how: Any) -> None:
    identifier = message_id or str(uuid4())
    to = f"{how['sender_id']}@gcm.googleapis.com"
    _run(lambda reactor: _send(reactor, _Made(reactor, **how), data, identifier, ttl, to))


def _listenCommand(count: int | None, **how: Any) -> None:
    def listen(reactor: Any) -> Awaitable[None]:
        printing = _Printing(count)
        return _listen(reactor, _Made(reactor, **how, printing=printing), printing)

    _run(listen)


device = click.Group(
    "device",
    help="""Be a device: register, send and receive as an app on a phone does.

It works with any connection server that speaks MCS.""",
    commands=[
        click.Command(
            "register",
            callback=_registerCommand,
            params=_options(True),
            help="Check in and register, and print the registration token.",
        ),
        click.Command(
            "send",
            callback=_sendCommand,
            params=[
                click.Option(
                    ["--data"],
                    multiple=True,
                    callback=_pairs,
                    metavar="KEY=VALUE",
                    help="What to send; may be given several times.",
                ),
                click.Option(["--id", "message_id"], metavar="MESSAGE_ID", help="[default: a new one]"),
                click.Option(
                    ["--ttl"],
                    type=click.IntRange(0, 86_400),
                    default=3600,
                    show_default=True,
                    metavar="SECONDS",
                    help="How long the message is of use; 0 is now or never.",
                ),
                *_options(True),
            ],
            help="""Send a message, and print its message_id when the connection server has stored it.

What could not be sent stays in the file, and is sent by the next send or listen.""",
        ),
        click.Command(
            "listen",
            callback=_listenCommand,
            params=[
                click.Option(
                    ["--count"], type=click.IntRange(min=1), metavar="N", help="End after so many messages."
                ),
                *_options(True),
            ],
            help="Stay connected, and print each message as a line of JSON.",
        ),
    ],
)
