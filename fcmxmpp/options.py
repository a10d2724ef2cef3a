"""
The options of C{twistd fcm-xmpp}.
"""

from __future__ import annotations

import os

from msgspec import Struct
from twisted.python import usage

from fcmxmpp.connection import Credentials
from fcmxmpp.delivery import POLICIES, Policy
from fcmxmpp.settings import SettingsOptions, die, firstLine
from fcmxmpp.store.sqlite import KEEP
from fcmxmpp.webhook import checkURL


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


class Options(SettingsOptions):
    """
    The options of C{twistd fcm-xmpp}.
    """

    program = "fcm-xmpp"

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
        daemon = self._isDaemon()
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
        if store is None and self._value("remember") is not None:
            raise usage.UsageError("--remember needs --store")
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
            announce=self._chooseLog("quietLog" if demo else "stderrLog"),
        )

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
        return firstLine(path, "server key")
