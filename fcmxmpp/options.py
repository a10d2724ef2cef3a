"""
The options of C{twistd fcm-xmpp}.

A setting comes from its option, else from the environment, else from the
configuration file, else it has a default.  Whatever is wrong is told in one
line, with the exit status 1.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from msgspec import Struct
from twisted.python import usage

from fcmxmpp import __version__
from fcmxmpp.connection import Credentials
from fcmxmpp.delivery import POLICIES, Policy
from fcmxmpp.store.database import parseStore
from fcmxmpp.store.sqlite import KEEP
from fcmxmpp.webhook import checkURL


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


__all__ = ["Options", "Settings", "die"]

_EMBEDDED_SENDER = "123456789"

_NO_SERVER = (
    "no connection server to connect to: Google switched its own off in 2024, so name another one with "
    "--endpoint tls:HOST:5235, or try this program with --embedded"
)


class Settings(Struct, frozen=True, kw_only=True):
    """
    What to run, complete and checked.

    @ivar endpoint: a Twisted client endpoint description, or None for the
        embedded connection server.
    @ivar connections: how many links to keep open.
    @ivar sendAPI: a Twisted server endpoint description for the send API, or
        None for no such thing; whether it needs a token is yet to be checked.
    @ivar sendAPIToken: what its clients have to show.
    @ivar webhookToken: what a webhook is shown.
    @ivar store: the file of the store, or None for none.
    @ivar remember: seconds for which the store remembers what was taken over.
    @ivar demo: whether to run the demonstration and end.
    @ivar daemon: whether twistd puts the process into the background.
    @ivar announce: whether to print where the embedded server listens, too,
        because the log goes elsewhere.
    """

    credentials: Credentials | None
    senderID: str
    endpoint: str | None
    connections: int
    sendAPI: str | None
    sendAPIToken: str | None
    webhookToken: str | None
    store: str | None
    remember: float
    demo: bool
    handler: str
    policy: Policy
    grace: float
    daemon: bool
    announce: bool


class Options(usage.Options):
    """
    The options of C{twistd fcm-xmpp}.
    """

    synopsis = "[options]"
    longdesc = (
        "Runs a Firebase Cloud Messaging XMPP app server: receives what devices send, "
        "gives it to a handler, and acknowledges it."
    )

    optFlags = [
        ["embedded", None, "Run a connection server inside, with a simulated device, and use it"],
        ["demo", None, "With --embedded: show messages on their way, and end"],
        ["ordered", None, "Handle the messages of each device one at a time, in their order"],
    ]

    optParameters = [
        ["sender-id", None, None, "Who to log in as: digits (or FCM_SENDER_ID)"],
        [
            "server-key-file",
            None,
            None,
            "File whose first line is the server key (or FCM_SERVER_KEY_FILE, or the key in FCM_SERVER_KEY, "
            "or $CREDENTIALS_DIRECTORY/fcm-server-key)",
        ],
        [
            "endpoint",
            None,
            None,
            "The connection server: a Twisted client endpoint, such as "
            "tls:push.example.org:5235 or tls:push.example.org:5235:trustRoots=DIR, with *.pem files in DIR",
        ],
        [
            "handler",
            None,
            None,
            "What handles messages: jsonlines (each as a line on standard output), jsonlines:PATH (in a "
            "file), echo (sends them back), webhook:URL (POSTs them), the dotted name of an "
            "IUpstreamHandler, or that of a callable that takes the IDownstreamSender and returns one "
            "(twistd finds its module on PYTHONPATH)  [default: jsonlines]",
        ],
        [
            "webhook-token-file",
            None,
            None,
            "File whose first line is sent to the webhook as Authorization: Bearer",
        ],
        ["connections", None, None, "Links to the connection server to keep open  [default: 1]"],
        [
            "store",
            None,
            None,
            "Durable inbox and outbox: sqlite:PATH, a file on a local disk that is made if need be; see "
            "fcmxmpp --help for a look into it (or FCM_STORE)",
        ],
        [
            "remember",
            None,
            None,
            "Hours for which the store remembers what was taken over, so that it is not handled twice, and "
            "keeps what could not be sent  [default: 48]",
        ],
        [
            "ack",
            None,
            None,
            f"When to acknowledge: {', '.join(POLICIES[:-1])} or {POLICIES[-1]}  [default: handled, stored "
            "with --store]",
        ],
        ["handler-timeout", None, None, "Seconds that a handler may take  [default: 60]"],
        ["handler-tries", None, None, "Tries before a message becomes a dead letter  [default: 3]"],
        [
            "grace",
            None,
            None,
            "Seconds that handlers, and the answers to what was sent, get at the stop  [default: 10]",
        ],
        [
            "send-api",
            None,
            None,
            "Serve HTTP for local programs, who can POST /send a downstream message: a Twisted server "
            "endpoint, such as unix:PATH, unix:PATH:mode=660 or tcp:PORT:interface=127.0.0.1",
        ],
        [
            "send-api-token-file",
            None,
            None,
            "File whose first line they have to send as Authorization: Bearer; there has to be one if "
            "--send-api can be reached from other machines",
        ],
        ["config", None, None, "TOML file with these options by the same names"],
    ]

    compData = usage.Completions(
        optActions={
            "config": usage.CompleteFiles("*.toml"),
            "server-key-file": usage.CompleteFiles(),
            "send-api-token-file": usage.CompleteFiles(),
            "webhook-token-file": usage.CompleteFiles(),
            "ack": usage.CompleteList(list(POLICIES)),
        }
    )

    settings: Settings

    #: Where to look for what no option says.
    environ: Mapping[str, str] = os.environ

    def parseOptions(self, options: Any = None) -> None:
        """
        Read the options.

        @raise SystemExit: if anything is wrong with them.  A C{UsageError}
            would have twistd print its whole manual.
        """
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            die(str(error))

    def opt_version(self) -> NoReturn:
        """
        Display the version and exit.
        """
        print(f"fcmxmpp {__version__}")  # noqa: T201  # what the option is for
        raise SystemExit(0)

    def parseArgs(self, *arguments: str) -> None:
        """
        There are only options.
        """
        if arguments:
            raise usage.UsageError(
                f"unexpected argument {arguments[0]!r}: there are only options, see --help"
            )

    def postOptions(self) -> None:
        """
        Complete and check what was given.
        """
        self._file = self._readConfig(self["config"])
        embedded = self._flag("embedded")
        demo = self._flag("demo")
        endpoint = self._value("endpoint")
        if demo and not embedded:
            raise usage.UsageError("--demo needs --embedded")
        if embedded and endpoint is not None:
            raise usage.UsageError("--embedded and --endpoint exclude each other")
        if not embedded and endpoint is None:
            raise usage.UsageError(_NO_SERVER)
        if endpoint is not None and not endpoint.startswith("tls:"):
            raise usage.UsageError(
                "--endpoint has to begin with tls: (such as tls:push.example.org:5235), "
                "because the server key goes over it"
            )
        senderID = self._value("sender-id", "FCM_SENDER_ID")
        if senderID is None and embedded:
            senderID = _EMBEDDED_SENDER
        if senderID is None:
            raise usage.UsageError("who to log in as? Give --sender-id, or set FCM_SENDER_ID")
        if not (senderID.isascii() and senderID.isdigit()):
            raise usage.UsageError("--sender-id has to be decimal digits")
        handler = self._value("handler") or "jsonlines"
        webhookToken = self._token("webhook-token-file", "webhook token")
        self._checkHandler(handler, webhookToken)
        # Only twistd itself knows whether there will be a standard output.
        # ("twist" and Windows know no daemon).
        parent: Any = self.parent or {}
        daemon = "nodaemon" in parent and not (parent["nodaemon"] or parent.get("debug"))
        if handler == "jsonlines" and daemon and not demo:
            raise usage.UsageError(
                "the default handler writes to standard output, which a daemon does not have: "
                "use twistd -n, or name a --handler, such as jsonlines:PATH"
            )
        sendAPI = self._value("send-api")
        sendAPIToken = self._token("send-api-token-file", "send API token")
        if sendAPIToken is not None and sendAPI is None:
            raise usage.UsageError("--send-api-token-file needs --send-api")
        store = self._store()
        remember = self._number("remember", KEEP / 3600)
        if remember <= 0:
            raise usage.UsageError("--remember has to be more than 0 hours")
        grace = self._number("grace", 10.0)
        if grace < 0:
            raise usage.UsageError("--grace has to be 0 or more seconds")
        self.settings = Settings(
            credentials=None if embedded else Credentials(senderID, self._serverKey()),
            senderID=senderID,
            endpoint=endpoint,
            connections=self._whole("connections", 1, 1000),
            sendAPI=sendAPI,
            sendAPIToken=sendAPIToken,
            webhookToken=webhookToken,
            demo=demo,
            handler=handler,
            store=store,
            remember=remember * 3600,
            policy=self._policy(store),
            grace=grace,
            daemon=daemon,
            announce=self._chooseLog(daemon, demo),
        )

    def _store(self) -> str | None:
        """
        The file of the store.
        """
        description = self._value("store", "FCM_STORE")
        if description is None:
            if self._value("remember") is not None:
                raise usage.UsageError("--remember needs --store")
            return None
        try:
            return parseStore(description)
        except ValueError as error:
            raise usage.UsageError(f"--store: {error}") from None

    def _policy(self, store: str | None) -> Policy:
        """
        How messages are handled.
        """
        tries = self._whole("handler-tries", 3)
        timeout = self._number("handler-timeout", 60.0)
        if timeout <= 0:
            raise usage.UsageError("--handler-timeout has to be more than 0 seconds")
        ack = self._value("ack") or ("handled" if store is None else "stored")
        if ack not in POLICIES:
            raise usage.UsageError(f"--ack has to be one of: {', '.join(POLICIES)}")
        if ack == "stored" and store is None:
            raise usage.UsageError("--ack stored needs a --store")
        ordered = self._flag("ordered")
        return Policy(ack=ack, ordered=ordered, handlerTimeout=timeout, handlerTries=tries)

    def _checkHandler(self, handler: str, token: str | None) -> None:
        """
        See to it that a handler's name makes sense, as far as that can be told
        from the name.  What is wrong is told without quoting it, because a URL
        may have a secret in it.
        """
        kind, colon, rest = handler.partition(":")
        if token is not None and kind != "webhook":
            raise usage.UsageError("--webhook-token-file needs --handler webhook:URL")
        if kind == "webhook":
            try:
                checkURL(rest, token is not None)
            except ValueError as error:
                raise usage.UsageError(f"--handler webhook:URL: the URL {error}") from None
        elif colon and not (kind == "jsonlines" and rest):
            raise usage.UsageError(
                "--handler has to be jsonlines, jsonlines:PATH, echo, webhook:URL or a dotted name"
            )

    def _serverKey(self) -> str:
        """
        Find the server key.
        """
        path = self["server-key-file"] or self.environ.get("FCM_SERVER_KEY_FILE") or None
        key = self.environ.get("FCM_SERVER_KEY", "").strip()
        if path is None and key:
            return key
        directory = self.environ.get("CREDENTIALS_DIRECTORY")
        if path is None and directory:
            credential = os.path.join(directory, "fcm-server-key")
            path = credential if os.path.exists(credential) else None
        path = path or self._file.get("server-key-file")
        if path is None:
            raise usage.UsageError("no server key: give --server-key-file, or set FCM_SERVER_KEY_FILE")
        return _firstLine(path, "server key")

    def _token(self, name: str, what: str) -> str | None:
        """
        The token in the file that a setting names.
        """
        path = self._value(name)
        if path is None:
            return None
        token = _firstLine(path, what)
        if not re.fullmatch("[!-~]+", token):
            raise usage.UsageError(f"the {what} may only have ASCII letters, digits and signs: {path}")
        return token

    def _readConfig(self, path: str | None) -> dict[str, str]:
        """
        Read the configuration file.
        """
        if path is None:
            return {}
        try:
            with open(path, "rb") as file:
                values = tomllib.load(file)
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise usage.UsageError(f"cannot read --config: {_why(error)}: {path}") from None
        known = {name for name, *_ in self.optParameters if name != "config"}
        flags = {name for name, *_ in self.optFlags}
        settings = {}
        for name, value in values.items():
            if name not in known | flags:
                raise usage.UsageError(f"unknown setting {name!r} in {path}")
            if name in flags and not isinstance(value, bool):
                raise usage.UsageError(f"{name} has to be true or false in {path}")
            if name in known and (isinstance(value, bool) or not isinstance(value, (str, int, float))):
                raise usage.UsageError(f"{name} has to be a string or a number in {path}")
            settings[name] = str(value)
        return settings

    def _value(self, name: str, variable: str | None = None) -> str | None:
        """
        A setting: option, environment, file.
        """
        if self[name] is not None:
            return str(self[name])
        if variable is not None and self.environ.get(variable):
            return self.environ[variable]
        return self._file.get(name)

    def _flag(self, name: str) -> bool:
        """
        A setting that is on or off.
        """
        return bool(self[name]) or self._file.get(name) == "True"

    def _number(self, name: str, default: float) -> float:
        """
        A setting that is a number.
        """
        value = self._value(name)
        if value is None:
            return default
        try:
            number = float(value)
        except ValueError:
            raise usage.UsageError(f"--{name} has to be a number") from None
        if not number < float("inf"):
            raise usage.UsageError(f"--{name} has to be a number")
        return number

    def _whole(self, name: str, default: int, most: int | None = None) -> int:
        """
        A setting that is a whole number, 1 or more.
        """
        number = self._number(name, default)
        if number < 1 or number != int(number) or (most is not None and number > most):
            raise usage.UsageError(
                f"--{name} has to be a whole number, 1 {f'to {most}' if most else 'or more'}"
            )
        return int(number)

    def _chooseLog(self, daemon: bool, demo: bool) -> bool:
        """
        Keep the log off the standard output, which belongs to the handler:
        where twistd would write it there, have it on standard error.

        @return: whether the log goes where nobody looks at it right now.
        """
        parent = self.parent
        if parent is None or daemon:
            return False
        if parent.get("logger") or parent.get("logfile") or parent.get("syslog"):
            return True
        parent["logger"] = "fcmxmpp.tap.quietLog" if demo else "fcmxmpp.tap.stderrLog"
        return False


def die(message: str) -> NoReturn:
    """
    End with one line and the exit status 1.
    """
    raise SystemExit("twistd fcm-xmpp: " + " ".join(message.split()))


def _firstLine(path: str, what: str) -> str:
    """
    What is in the first line of a file.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise usage.UsageError(f"cannot read the {what}: {_why(error)}: {path}") from None
    if not lines or not lines[0].strip():
        raise usage.UsageError(f"the first line of the {what} file is empty: {path}")
    return lines[0].strip()


def _why(error: Exception) -> str:
    """
    What went wrong with a file, in few words.
    """
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
