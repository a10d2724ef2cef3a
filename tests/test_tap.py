"""
Tests for L{fcmxmpp.tap}; as a real process in test_commandline.py.
"""

from __future__ import annotations

import gc
import io
import json
import re
import shutil
import signal
import sys
import tempfile
from importlib import invalidate_caches
from pathlib import Path
from typing import Any

from twisted.application.service import IServiceMaker, MultiService
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.plugin import getPlugins
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

import fcmxmpp
from fcmxmpp import running, tap
from fcmxmpp.appserver import AppServer
from fcmxmpp.demo import Demo
from fcmxmpp.embedded import DeviceThatTalks, EmbeddedConnectionServer
from fcmxmpp.errors import HandlerFailed, StoreUnavailable
from fcmxmpp.handlers import Echo
from fcmxmpp.interfaces import IUpstreamHandler
from fcmxmpp.messages import UpstreamMessage
from fcmxmpp.options import Options, Settings
from fcmxmpp.store.sqlite import SQLiteStore
from fcmxmpp.tap import makeService
from fcmxmpp.webhook import Webhook, WebhookConnections


KEY = "EXAMPLE-SERVER-KEY"


@implementer(IUpstreamHandler)
class Handler:
    """
    A handler that is a class which takes the sender.
    """

    def __init__(self, sender: object) -> None:
        self.sender = sender

    def messageReceived(self, message: object) -> None:
        """
        Handle nothing.
        """


handler = Handler(None)


def makeHandler(sender: object) -> Handler:
    """
    A factory.
    """
    return Handler(sender)


class Undeclared:
    """
    A handler, but for its declaration.
    """

    def __init__(self, sender: object) -> None:
        """
        The sender is not needed.
        """

    def messageReceived(self, message: object) -> None:
        """
        Handle nothing.
        """


class UndeclaredAndWrong(Undeclared):
    """
    One whose method is wrong, too.
    """

    def messageReceived(self) -> None:  # type: ignore[override]
        """
        Take nothing.
        """


@implementer(IUpstreamHandler)
class Unfinished:
    """
    A handler without a method.
    """

    def __init__(self, sender: object) -> None:
        """
        The sender is not needed.
        """


@implementer(IUpstreamHandler)
class Wrong(UndeclaredAndWrong):
    """
    A handler whose method takes nothing.
    """


undeclared, wrong = Undeclared(None), Wrong(None)


class OptionsCase(SynchronousTestCase):
    """
    Tests that read options.
    """

    def setUp(self) -> None:
        """
        Have a directory with a key in it.
        """
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        self.key = self.write("key", KEY + "\nanything\n")
        self.login = ("--sender-id", "123", "--server-key-file", self.key)
        self.real = (*self.login, "--endpoint", "tls:localhost:5235")

    def write(self, name: str, text: str | bytes) -> str:
        """
        Write a file.
        """
        path = self.directory / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    def options(self, *arguments: str, parent: Any = None, **environ: str) -> Options:
        """
        Read options.
        """
        options = Options()
        options.environ = environ
        options.parent = parent
        options.parseOptions(list(arguments))
        return options

    def settings(self, *arguments: str, **environ: str) -> Settings:
        """
        Read options, for what they come to.
        """
        return self.options(*arguments, **environ).settings

    def refused(self, *arguments: str, parent: Any = None, **environ: str) -> str:
        """
        These options are refused: with one line, without a secret.
        """
        error = self.assertRaises(SystemExit, self.options, *arguments, parent=parent, **environ)
        line = str(error.code)
        self.assertTrue(line.startswith("twistd fcm-xmpp: "), line)
        self.assertNotIn("\n", line)
        self.assertNotIn(KEY, line)
        return line


class PrecedenceTests(OptionsCase):
    """
    Option, environment, file, default.
    """

    def test_defaults(self) -> None:
        """
        What nobody says has a default.
        """
        settings = self.settings(*self.real)
        self.assertEqual(("handled", 60.0, 3), tuple(getattr(settings.policy, name) for name in POLICY))
        self.assertEqual(
            ("jsonlines", 10.0, False, False),
            (settings.handler, settings.grace, settings.demo, settings.announce),
        )
        self.assertEqual((1, False), (settings.connections, settings.policy.ordered))
        self.assertEqual((None, None, None), (settings.sendAPI, settings.sendAPIToken, settings.webhookToken))

    def test_file(self) -> None:
        """
        Every setting may stand in the file, numbers as numbers or strings.
        """
        config = self.write(
            "config.toml",
            f'sender-id = 77\nserver-key-file = "{self.key}"\nendpoint = "tls:h:1"\nhandler = "a.b"\n'
            'ack = "received"\nhandler-timeout = 1.5\nhandler-tries = "4"\ngrace = 0\n',
        )
        settings = self.settings("--config", config)
        self.assertEqual(("received", 1.5, 4), tuple(getattr(settings.policy, name) for name in POLICY))
        self.assertEqual(
            ("77", "tls:h:1", "a.b", 0.0),
            (settings.senderID, settings.endpoint, settings.handler, settings.grace),
        )
        assert settings.credentials is not None
        self.assertEqual(KEY, settings.credentials.serverKey)

    def test_newerInFile(self) -> None:
        """
        So may these.
        """
        token = self.write("token", " EXAMPLE-TOKEN \nanything\n")
        config = self.write(
            "config.toml",
            'connections = 3\nordered = true\nsend-api = "tcp:80"\nhandler = "webhook:https://h/?k"\n'
            f'send-api-token-file = "{token}"\nwebhook-token-file = "{token}"\n',
        )
        settings = self.settings("--config", config, *self.real)
        self.assertEqual((3, True), (settings.connections, settings.policy.ordered))
        self.assertEqual(("tcp:80", "EXAMPLE-TOKEN"), (settings.sendAPI, settings.sendAPIToken))
        self.assertEqual(("webhook:https://h/?k", "EXAMPLE-TOKEN"), (settings.handler, settings.webhookToken))
        settings = self.settings("--config", config, *self.real, "--connections", "1000")
        self.assertEqual(1000, settings.connections)
        self.assertTrue(self.settings("--ordered", *self.real).policy.ordered)

    def test_store(self) -> None:
        """
        The store comes from the option, the environment or the file; with one,
        messages are acknowledged when they are stored, unless that is said.
        """
        self.assertEqual((None, "handled"), _stored(self.settings(*self.real)))
        config = self.write("config.toml", 'store = "sqlite:/in/file"\nremember = 1\n')
        settings = self.settings("--config", config, *self.real)
        self.assertEqual((("/in/file", "stored"), 3600.0), (_stored(settings), settings.remember))
        settings = self.settings("--config", config, *self.real, FCM_STORE="sqlite:/in/variable")
        self.assertEqual(("/in/variable", "stored"), _stored(settings))
        given = ("--store", "sqlite:/in/option", "--ack", "handled")
        settings = self.settings("--config", config, *self.real, *given, FCM_STORE="sqlite:/in/variable")
        self.assertEqual(("/in/option", "handled"), _stored(settings))
        self.assertEqual(48 * 3600.0, self.settings(*self.real, "--store", "sqlite:/x").remember)

    def test_optionBeforeFile(self) -> None:
        """
        An option comes before the same setting in the file.
        """
        config = self.write(
            "config.toml",
            'sender-id = "1"\nendpoint = "tls:h:1"\nhandler = "a.b"\nack = "handled"\n'
            "handler-timeout = 1\nhandler-tries = 1\ngrace = 1\n",
        )
        given = ("--handler", "c.d", "--ack", "received", "--handler-timeout", "2", "--handler-tries", "2")
        settings = self.settings("--config", config, *self.real, *given, "--grace", "2")
        self.assertEqual(("received", 2.0, 2), tuple(getattr(settings.policy, name) for name in POLICY))
        self.assertEqual(
            ("123", "tls:localhost:5235", "c.d", 2.0),
            (settings.senderID, settings.endpoint, settings.handler, settings.grace),
        )

    def test_senderID(self) -> None:
        """
        The environment comes between the two.
        """
        config = self.write(
            "config.toml", f'sender-id = "1"\nendpoint = "tls:h:1"\nserver-key-file="{self.key}"'
        )
        self.assertEqual("1", self.settings("--config", config).senderID)
        self.assertEqual("2", self.settings("--config", config, FCM_SENDER_ID="2").senderID)
        third = self.settings("--config", config, "--sender-id", "3", FCM_SENDER_ID="2")
        self.assertEqual("3", third.senderID)

    def test_serverKey(self) -> None:
        """
        The key comes from the option's file, that of the environment, the
        environment, the credentials directory, the file's file; the first that
        there is.
        """
        files = {name: self.write(name, name) for name in ("option", "variable", "fcm-server-key", "config")}
        config = self.write(
            "c.toml", f'sender-id = "1"\nendpoint = "tls:h:1"\nserver-key-file="{files["config"]}"'
        )
        arguments = ["--config", config]
        environ = {}

        def key() -> str:
            credentials = self.settings(*arguments, **environ).credentials
            assert credentials is not None
            return credentials.serverKey

        self.assertEqual("config", key())
        environ["CREDENTIALS_DIRECTORY"] = str(self.directory / "nowhere")
        self.assertEqual("config", key())
        environ["CREDENTIALS_DIRECTORY"] = str(self.directory)
        self.assertEqual("fcm-server-key", key())
        environ["FCM_SERVER_KEY"] = " direct\n"
        self.assertEqual("direct", key())
        environ["FCM_SERVER_KEY_FILE"] = files["variable"]
        self.assertEqual("variable", key())
        arguments += ["--server-key-file", files["option"]]
        self.assertEqual("option", key())

    def test_emptyVariables(self) -> None:
        """
        A variable that is set to nothing counts as not set.
        """
        endpoint = ("--endpoint", "tls:h:1")
        nothing = {"FCM_SERVER_KEY_FILE": "", "CREDENTIALS_DIRECTORY": ""}
        settings = self.settings(*endpoint, FCM_SENDER_ID="1", FCM_SERVER_KEY=KEY, **nothing)
        assert settings.credentials is not None
        self.assertEqual(KEY, settings.credentials.serverKey)
        credentials = {"FCM_SERVER_KEY_FILE": "", "CREDENTIALS_DIRECTORY": str(self.directory)}
        self.write("fcm-server-key", KEY)
        settings = self.settings(*endpoint, "--sender-id", "1", FCM_SERVER_KEY="", **credentials)
        assert settings.credentials is not None
        self.assertEqual(KEY, settings.credentials.serverKey)
        self.assertIn("--sender-id", self.refused(*endpoint, FCM_SENDER_ID=""))

    def test_embedded(self) -> None:
        """
        With --embedded there is no key to be given, and a sender ID of its own
        unless one is given; it may stand in the file.
        """
        settings = self.settings("--embedded")
        self.assertIsNone(settings.credentials)
        self.assertTrue(settings.senderID.isdigit())
        self.assertEqual("5", self.settings("--embedded", "--sender-id", "5").senderID)
        config = self.write("config.toml", "embedded = true\ndemo = true\n")
        self.assertTrue(self.settings("--config", config).demo)


POLICY = ("ack", "handlerTimeout", "handlerTries")


def _stored(settings: Settings) -> tuple[str | None, str]:
    """
    What settings say about the store.
    """
    return settings.store, settings.policy.ack


class WrongUseTests(OptionsCase):
    """
    Whatever is wrong is told in one line.
    """

    def test_wrong(self) -> None:
        """
        Each wrong use names what is wrong with it.
        """
        table = [
            ((), "Google switched its own off in 2024"),
            (("--endpoint", "tls:h:1"), "--sender-id"),
            (("--endpoint", "tls:h:1", "--sender-id", "12a"), "decimal digits"),
            (("--endpoint", "tls:h:1", "--sender-id", "\u0661"), "decimal digits"),
            (("--endpoint", "tls:h:1", "--sender-id", "1"), "--server-key-file"),
            (("--endpoint", "tcp:h:1", *self.login), "has to begin with tls:"),
            (("--demo", *self.real), "--demo needs --embedded"),
            (("--embedded", *self.real), "exclude each other"),
            (("--embedded", "more"), "unexpected argument 'more'"),
            (("--embedded", "--more"), "--more"),
            (("--embedded", "--ack", "maybe"), "handled, stored, received"),
            (("--embedded", "--ack", "stored"), "--ack stored needs a --store"),
            (("--embedded", "--store", "fcm.db"), "--store: a store has to be sqlite:PATH"),
            (("--embedded", "--remember", "48"), "--remember needs --store"),
            (("--embedded", "--store", "sqlite:x", "--remember", "0"), "--remember has to be more than 0"),
            (("--embedded", "--handler-tries", "0"), "--handler-tries"),
            (("--embedded", "--handler-tries", "1.5"), "--handler-tries"),
            (("--embedded", "--handler-tries", "x"), "--handler-tries has to be a number"),
            (("--embedded", "--handler-timeout", "0"), "--handler-timeout"),
            (("--embedded", "--handler-timeout", "inf"), "--handler-timeout has to be a number"),
            (("--embedded", "--grace", "-1"), "--grace"),
            (("--embedded", "--grace", "nan"), "--grace has to be a number"),
            (("--embedded", "--connections", "0"), "--connections has to be a whole number, 1 to 1000"),
            (("--embedded", "--connections", "1001"), "--connections has to be a whole number, 1 to 1000"),
            (("--embedded", "--connections", "1.5"), "--connections"),
            (("--embedded", "--handler", "jsonlines:"), "jsonlines:PATH"),
            (("--embedded", "--handler", "echo:x"), "--handler has to be"),
            (("--embedded", "--handler", "webhook"), "the URL has to begin with https://"),
            (("--embedded", "--handler", "webhook:"), "the URL has to begin with https://"),
            (("--embedded", "--handler", "webhook:https://u:p@h/"), "--webhook-token-file"),
            (("--embedded", "--webhook-token-file", self.key), "needs --handler webhook:URL"),
            (
                ("--embedded", "--handler", "webhook:http://h/", "--webhook-token-file", self.key),
                "has to begin with https://, because the token goes over it",
            ),
            (("--embedded", "--send-api-token-file", self.key), "needs --send-api"),
            (("--embedded", "--config", str(self.directory / "none")), "No such file"),
            (("--embedded", "--config", str(self.directory)), "directory"),
        ]
        for arguments, said in table:
            self.assertIn(said, self.refused(*arguments), arguments)

    def test_config(self) -> None:
        """
        So is what is wrong in the file.
        """
        table = [
            ("x = 1", "unknown setting 'x'"),
            ('config = "y"', "unknown setting 'config'"),
            ('embedded = "yes"', "embedded has to be true or false"),
            ("handler = true", "handler has to be a string or a number"),
            ("handler = [1]", "handler has to be a string or a number"),
            ("handler = ", "cannot read --config"),
            (b"handler = '\xff'", "cannot read --config"),
        ]
        for text, said in table:
            config = self.write("config.toml", text)
            self.assertIn(said, self.refused("--embedded", "--config", config), text)

    def test_key(self) -> None:
        """
        So is what is wrong with the key's file, without what is in it.
        """
        for text, said in (
            ("", "is empty"),
            ("\n" + KEY, "is empty"),
            (KEY.encode() + b"\xff", "cannot read"),
        ):
            key = self.write("wrong", text)
            arguments = ("--endpoint", "tls:h:1", "--sender-id", "1", "--server-key-file", key)
            self.assertIn(said, self.refused(*arguments))

    def test_tokens(self) -> None:
        """
        So is what is wrong with the file of a token.
        """
        for text, said in (
            ("", "is empty"),
            (KEY.encode() + b"\xff", "cannot read the send API token"),
            (f"{KEY} {KEY}", "may only have ASCII"),
            (f"{KEY}\u00e5", "may only have ASCII"),
        ):
            token = self.write("wrong", text)
            said_ = self.refused("--embedded", "--send-api", "unix:s", "--send-api-token-file", token)
            self.assertIn(said, said_)
        none = str(self.directory / "none")
        said = self.refused("--embedded", "--handler", "webhook:https://h/", "--webhook-token-file", none)
        self.assertIn("cannot read the webhook token: No such file", said)

    def test_secretInHandler(self) -> None:
        """
        A handler that has a URL in it is not quoted.
        """
        for handler in (f"webhok:https://{KEY}@h/", f"https://{KEY}@h/", f"webhook:https://u:{KEY}@h:x/"):
            self.refused("--embedded", "--handler", handler)

    def test_blankKey(self) -> None:
        """
        Blanks are no key, wherever they come from.
        """
        arguments = ("--endpoint", "tls:h:1", "--sender-id", "1")
        self.assertIn("server key", self.refused(*arguments, FCM_SERVER_KEY=" \n"))
        self.assertIn("is empty", self.refused(*arguments, "--server-key-file", self.write("blank", " \t\n")))

    def test_impossiblePaths(self) -> None:
        """
        What cannot be a path is told in one line as well.
        """
        arguments = ("--endpoint", "tls:h:1", "--sender-id", "1")
        config = self.write("config.toml", 'server-key-file = "a\\u0000b"\n')
        self.assertIn("cannot read the server key", self.refused("--config", config, *arguments))
        self.assertIn("server key", self.refused(*arguments, CREDENTIALS_DIRECTORY="x" * 5000))

    def test_daemon(self) -> None:
        """
        A daemon has no standard output, so it cannot have the default handler:
        the messages would be acknowledged and gone.
        """
        for parent in ({"nodaemon": 0, "debug": False}, {"nodaemon": False}):
            said = self.refused(*self.real, parent=parent)
            self.assertIn("twistd -n", said)
            for handler in ("a.b", "jsonlines:messages.jsonl", "echo", "webhook:https://h/"):
                options = self.options(*self.real, "--handler", handler, parent=dict(parent))
                self.assertFalse(options.settings.announce)
        self.options(*self.real, parent={"nodaemon": 0, "debug": True})


class LogTests(OptionsCase):
    """
    Standard output belongs to the handler.
    """

    def test_stderr(self) -> None:
        """
        Where twistd would log to standard output, it logs to standard error.
        """
        parent = {"nodaemon": 1}
        options = self.options("--embedded", parent=parent)
        self.assertEqual("fcmxmpp.tap.stderrLog", parent["logger"])
        self.assertFalse(options.settings.announce)

    def test_demo(self) -> None:
        """
        The demonstration has only the unexpected logged.
        """
        parent = {"nodaemon": 1}
        self.options("--embedded", "--demo", parent=parent)
        self.assertEqual("fcmxmpp.tap.quietLog", parent["logger"])

    def test_chosen(self) -> None:
        """
        A log that was chosen stays, and what is to be seen is printed, too.
        """
        for name in ("logger", "logfile", "syslog"):
            parent = {"nodaemon": 1, name: "chosen"}
            options = self.options("--embedded", parent=parent)
            self.assertEqual({"nodaemon": 1, name: "chosen"}, parent)
            self.assertTrue(options.settings.announce)

    def logged(self, factory: Any, **event: Any) -> str:
        """
        What a log observer writes to standard error.
        """
        error = io.StringIO()
        self.patch(sys, "__stderr__", error)
        observer = factory()
        observer({"log_time": 0.0, "log_format": "it happened", "log_namespace": "n", **event})
        return error.getvalue()

    def test_observers(self) -> None:
        """
        One writes everything; the other what is critical, without the failure
        that the demonstration stages.
        """
        self.assertIn("it happened", self.logged(tap.stderrLog, log_level=LogLevel.info))
        self.assertEqual("", self.logged(tap.quietLog, log_level=LogLevel.error))
        self.assertIn("it happened", self.logged(tap.quietLog, log_level=LogLevel.critical))
        staged = Failure(HandlerFailed("x"))
        self.assertEqual("", self.logged(tap.quietLog, log_level=LogLevel.critical, log_failure=staged))
        other = Failure(ValueError("x"))
        self.assertIn(
            "it happened", self.logged(tap.quietLog, log_level=LogLevel.critical, log_failure=other)
        )

    def test_version(self) -> None:
        """
        --version tells ours.
        """
        output = io.StringIO()
        self.patch(sys, "stdout", output)
        error = self.assertRaises(SystemExit, self.options, "--version")
        self.assertEqual((0, f"fcmxmpp {fcmxmpp.__version__}\n"), (error.code, output.getvalue()))


class MakeServiceTests(OptionsCase):
    """
    L{makeService} puts the services together.
    """

    def made(self, *arguments: str) -> list[Any]:
        """
        The services that these options come to.
        """
        services = makeService(self.options(*arguments), MemoryReactorClock())
        assert isinstance(services, MultiService)
        return list(services)

    def kinds(self, *arguments: str) -> list[type]:
        """
        Which services these are, but for those of the command line itself.
        """
        own = (running.ExitStatus, running.Interpreter)
        made = [type(service) for service in self.made(*arguments)]
        return [each for each in made if each not in own and not each.__name__.startswith("_")]

    def test_real(self) -> None:
        """
        An app server, and nothing else.
        """
        self.assertEqual([AppServer], self.kinds(*self.real))

    def test_embedded(self) -> None:
        """
        The connection server comes first, so that it stops last but one.
        """
        self.assertEqual([EmbeddedConnectionServer, DeviceThatTalks, AppServer], self.kinds("--embedded"))

    def test_demo(self) -> None:
        """
        The demonstration stands in place of the device.
        """
        self.assertEqual([EmbeddedConnectionServer, Demo, AppServer], self.kinds("--embedded", "--demo"))

    def test_handlers(self) -> None:
        """
        A handler is named by a dotted name: the object, a class that takes the
        sender, or a factory.
        """
        for name in ("handler", "Handler", "makeHandler"):
            made = self.made(*self.real, "--handler", f"{__name__}.{name}")
            sender = handler.sender if name == "handler" else made[-1]
            method = made[-1].delivery._handle
            self.assertIs(sender, method.__self__.sender)

    def test_jsonlinesFile(self) -> None:
        """
        A file for JSON lines is made, or told to be impossible, at the start.
        """
        path = self.directory / "messages.jsonl"
        method = self.made(*self.real, "--handler", f"jsonlines:{path}")[-1].delivery._handle
        self.addCleanup(method.__self__._output.close)
        method(UpstreamMessage(message_id="m-1", from_="tok-A"))
        self.assertEqual("m-1", json.loads(path.read_text())["message_id"])
        for wrong, said in (
            (self.directory / "none" / "file", "No such file or directory"),
            (self.directory, "Is a directory"),
            ("/dev/null", "not a regular file"),
            ("a\0b", "null"),
        ):
            error = self.assertRaises(SystemExit, self.made, *self.real, "--handler", f"jsonlines:{wrong}")
            self.assertIn(f"{said}", str(error.code))
            self.assertNotIn("\n", str(error.code))

    def test_echo(self) -> None:
        """
        C{echo} sends by the app server.
        """
        (*_, server) = self.made(*self.real, "--handler", "echo")
        echo = server.delivery._handle.__self__
        self.assertIsInstance(echo, Echo)
        self.assertIs(server, echo._sender)

    def test_webhook(self) -> None:
        """
        C{webhook:URL} sends by the app server, has its token and less time than
        a handler, and its connections are closed after the app server.
        """
        more = ("--webhook-token-file", self.key, "--handler-timeout", "10")
        services = self.made(*self.real, "--handler", "webhook:https://h/?a:b=c", *more)
        self.assertEqual([WebhookConnections, AppServer], [type(s) for s in services][-2:])
        webhook = services[-1].delivery._handle.__self__
        self.assertIsInstance(webhook, Webhook)
        self.assertEqual(("https://h/?a:b=c", 5.0), (webhook._url, webhook._timeout))
        self.assertEqual([f"Bearer {KEY}"], webhook._headers.getRawHeaders("Authorization"))
        self.assertIs(services[-1], webhook._sender)
        services = self.made(*self.real, "--handler", "webhook:https://h/")
        self.assertEqual(30.0, services[-1].delivery._handle.__self__._timeout)

    def test_connections(self) -> None:
        """
        There are as many links as were asked for.
        """
        (*_, server) = self.made(*self.real, "--connections", "3")
        self.assertEqual(3, len(server.links))

    def test_sendAPI(self) -> None:
        """
        The send API and the app server stop at the same time, the send API
        first; it listens before anything is started.
        """
        reactor = MemoryReactorClock()
        options = self.options("--embedded", "--send-api", "tcp:8080:interface=127.0.0.1")
        services: Any = makeService(options, reactor)
        (*others, both) = services
        self.assertIn(running.Interpreter, [type(service) for service in others])
        self.assertIs(MultiService, type(both))
        self.assertEqual([AppServer, tap._SendAPI], [type(service) for service in both])
        services.privilegedStartService()
        self.assertEqual([(8080, "127.0.0.1")], [(port, where) for port, _, _, where in reactor.tcpServers])

    def test_wrongSendAPIs(self) -> None:
        """
        What cannot be listened on, and what is open to others without a token,
        is told in one line.
        """
        for description, said in (
            ("", "has to look like unix:PATH"),
            ("nonsense:1", "Unknown endpoint type"),
            ("tcp:x", "has to look like"),
            ("unix:", "a unix socket needs a path"),
            ("ssl:1:privateKey=none", "No such file"),
            ("tcp:8080", "needs --send-api-token-file"),
            ("tcp:8080:interface=0.0.0.0", "needs --send-api-token-file"),
            (r"tcp:8080:interface=\:\:", "needs --send-api-token-file"),
        ):
            error = self.assertRaises(SystemExit, self.made, "--embedded", "--send-api", description)
            self.assertIn(said, str(error.code))
            self.assertNotIn("\n", str(error.code))
        for description in ("tcp:8080", "tcp:8080:interface=127.0.0.1", "unix:s"):
            self.made("--embedded", "--send-api", description, "--send-api-token-file", self.key)

    def test_cannotListen(self) -> None:
        """
        A port that cannot be had ends the process with the exit status 1, and a
        line in the log and, if that is elsewhere, on standard error.
        """
        busy = self.directory / "file"
        busy.touch()
        for parent, printed in (({"nodaemon": 1}, 0), ({"nodaemon": 1, "logfile": "x"}, 1)):
            options = self.options("--embedded", "--send-api", f"unix:{busy}", parent=parent)
            services: Any = makeService(options, MemoryReactorClock())
            output = io.StringIO()
            self.patch(sys, "__stderr__", output)
            with capturedLogs() as events:
                error = self.assertRaises(SystemExit, services.privilegedStartService)
            self.assertEqual(1, error.code)
            said = f"--send-api unix:{busy}: cannot listen: there is a file of that name, which is no socket"
            self.assertEqual([said], [formatEvent(event) for event in events])
            self.assertEqual(f"twistd fcm-xmpp: {said}\n" * printed, output.getvalue())

    def test_store(self) -> None:
        """
        A store is closed last.
        """
        made = self.made("--embedded", "--store", f"sqlite:{self.directory / 'store'}")
        (place,) = [place for place, service in enumerate(made) if isinstance(service, SQLiteStore)]
        kinds = [type(service) for service in made]
        self.assertLess(place, kinds.index(EmbeddedConnectionServer))
        self.assertLess(place, kinds.index(AppServer))

    def test_noStore(self) -> None:
        """
        A store that cannot be used ends the process with the exit status 1,
        and a line in the log and, if that is elsewhere, on standard error; a
        daemon tells it to who has started it.
        """
        wrong = self.write("wrong", "This is no database, but it is long enough to be taken for one." * 9)
        said = f"--store sqlite:{wrong}: the file is no database, or damaged: name another file"
        for parent, raised, printed in (
            ({"nodaemon": 1}, SystemExit, 0),
            ({"nodaemon": 1, "logfile": "x"}, SystemExit, 1),
            ({"nodaemon": 0}, StoreUnavailable, 0),
        ):
            options = self.options(
                "--embedded", "--handler", "echo", "--store", f"sqlite:{wrong}", parent=parent
            )
            services: Any = makeService(options, MemoryReactorClock())
            output = io.StringIO()
            self.patch(sys, "__stderr__", output)
            with capturedLogs() as events:
                self.assertRaises(raised, services.startService)
            self.assertEqual([said], [formatEvent(event) for event in events])
            self.assertEqual(f"twistd fcm-xmpp: {said}\n" * printed, output.getvalue())

    def test_wrongHandlers(self) -> None:
        """
        What cannot be a handler is told in one line.
        """
        for name, said in (
            ("no.such.module", "cannot be imported"),
            (f"{__name__}.Missing", "cannot be imported"),
            (f"{__name__}.KEY", "is neither an IUpstreamHandler nor a callable"),
            ("builtins.id", "is neither an IUpstreamHandler nor a callable"),
        ):
            self.assertIn(said, self.wrong(name))

    def wrong(self, name: str) -> str:
        """
        The one line that refuses this handler.
        """
        error = self.assertRaises(SystemExit, self.made, *self.real, "--handler", name)
        line = str(error.code)
        self.assertTrue(line.startswith(f"twistd fcm-xmpp: --handler {name} "), line)
        self.assertNotIn("\n", line)
        return line

    def module(self, name: str, text: str) -> None:
        """
        Have a module that can be imported until the test ends.
        """
        self.write(f"{name}.py", text)
        self.patch(sys, "path", [str(self.directory), *sys.path])
        self.addCleanup(sys.modules.pop, name, None)
        invalidate_caches()

    def test_handlerNotFound(self) -> None:
        """
        That twistd does not look in the current directory is told where the
        module cannot be found, and not where it is there: broken, without what
        it imports, without that name, or built in.
        """
        hint = "(twistd does not look in the current directory: set PYTHONPATH)"
        self.module("tap_broken", "def handler(:\n")
        self.module("tap_without", "import no_such_module_at_all\n")
        for name, said, hinted in (
            ("no_such_module_at_all.x", "ObjectNotFound: 'no_such_module_at_all.x' does not name", True),
            ("no_such_module_at_all.x.y", "ObjectNotFound: ", True),
            ("tap_broken.handler", "SyntaxError: invalid syntax (tap_broken.py, line 1)", False),
            ("tap_without.handler", "ModuleNotFoundError: No module named 'no_such_module_at_all'", False),
            (f"{__name__}.Missing", "AttributeError: ", False),
            ("sys.Missing", "AttributeError: ", False),
            ("zipimport.Missing", "AttributeError: ", False),
            ("__main__.Missing", "AttributeError: ", False),
        ):
            line = self.wrong(name)
            self.assertIn(f"--handler {name} cannot be imported: {said}", line)
            self.assertEqual(hinted, line.endswith(f" {hint}"), line)

    def test_handlerRaises(self) -> None:
        """
        What the application's callable raises is told with where that came
        from in its file, be it in a library; a place of ours is not told.
        """
        self.module(
            "tap_raises",
            "import json\n"
            "def connect():\n"
            "    raise ValueError('no\\ndatabase')\n"
            "def direct(sender):\n"
            "    connect()\n"
            "def within(sender):\n"
            "    json.loads('{')\n"
            "def nothing():\n"
            "    pass\n",
        )
        for name, said in (
            ("tap_raises.direct", "raised ValueError: no database (tap_raises.py, line 3)"),
            ("tap_raises.within", "raised JSONDecodeError: .* (tap_raises.py, line 7)"),
            ("tap_raises.nothing", r"raised TypeError: nothing\(\) takes 0 .* but 1 was given"),
            ("builtins.dict", "raised TypeError: 'AppServer' object is not iterable"),
        ):
            pattern = re.sub(r" \((tap_raises.py, line \d)\)$", r" \\(\1\\)", said)
            self.assertRegex(self.wrong(name), f" {pattern}$")

    def test_handlerIsNone(self) -> None:
        """
        What is wrong with an object that is no handler is told, and that it
        may only lack its declaration where it does.
        """
        hint = "(is @implementer(IUpstreamHandler) missing?)"
        for name, said, hinted in (
            ("Undeclared", "Does not declaratively implement the interface", True),
            ("undeclared", "Does not declaratively implement the interface", True),
            ("UndeclaredAndWrong", "doesn't allow enough arguments", True),
            ("Unfinished", "messageReceived(message) attribute was not provided", False),
            ("Wrong", "doesn't allow enough arguments", False),
            ("wrong", "doesn't allow enough arguments", False),
        ):
            line = self.wrong(f"{__name__}.{name}")
            self.assertIn("is neither an IUpstreamHandler nor a callable that takes the", line)
            self.assertIn(said, line)
            self.assertEqual(hinted, line.endswith(f" {hint}"), line)

    def test_wrongEndpoints(self) -> None:
        """
        So is an endpoint that is none.
        """
        empty = self.directory / "empty"
        empty.mkdir()
        for endpoint, said in (
            ("tls:host", "has to look like"),
            ("tls:host:port", "has to look like"),
            ("tls:host:1:nonsense=1", "has to look like"),
            (f"tls:host:1:trustRoots={self.directory}/none", "no certificates"),
            (f"tls:host:1:trustRoots={empty}", "no certificates"),
        ):
            error = self.assertRaises(SystemExit, self.made, *self.login, "--endpoint", endpoint)
            self.assertIn(said, str(error.code))
            self.assertNotIn("\n", str(error.code))

    def test_plugin(self) -> None:
        """
        twistd finds the plugin, which leads here.
        """
        (plugin,) = [plugin for plugin in getPlugins(IServiceMaker) if plugin.tapname == "fcm-xmpp"]
        self.assertEqual("fcmxmpp.tap", plugin.module)
        self.assertIs(Options, plugin.options)


class InterpreterTests(SynchronousTestCase):
    """
    What is set for the whole process.
    """

    def test_setAndReset(self) -> None:
        """
        While the service runs Python's garbage collector and its switching
        between threads suit it; after that they are as they were.
        """
        before = (sys.getswitchinterval(), gc.get_threshold(), gc.get_freeze_count())
        interpreter = running.Interpreter()
        interpreter.startService()
        try:
            self.assertAlmostEqual(running.SWITCH_INTERVAL, sys.getswitchinterval())
            self.assertEqual(running.GC_THRESHOLDS, gc.get_threshold())
            self.assertGreater(gc.get_freeze_count(), before[2])
        finally:
            interpreter.stopService()
        self.assertEqual(before, (sys.getswitchinterval(), gc.get_threshold(), gc.get_freeze_count()))


class ExitStatusTests(SynchronousTestCase):
    """
    How the process ends.
    """

    def test_good(self) -> None:
        """
        A good end stops the reactor, once, and leaves the status alone.
        """
        reactor = MemoryReactorClock()
        registered: list[Any] = []
        self.patch(running.atexit, "register", lambda *call: registered.append(call))
        status = running.ExitStatus(reactor, 10)
        status.end(0)
        self.assertTrue(reactor.hasStopped)
        reactor.hasStopped = False
        status.end(1)
        self.assertEqual((False, []), (reactor.hasStopped, registered))

    def test_signals(self) -> None:
        """
        SIGTERM and SIGINT are taken over once the reactor runs, which is when
        it has set its own handlers, and end it in order from its own thread.
        Which it was is in the log, and what that does.
        """
        taken: dict[int, Any] = {}
        self.patch(running.signal, "signal", taken.__setitem__)
        reactor = MemoryReactorClock()
        later: list[Any] = []
        reactor.callFromThread = lambda *call: later.append(call)
        status = running.ExitStatus(reactor, 2.5)
        status.startService()
        self.assertEqual({}, taken)
        ((call, arguments, keywords),) = reactor.whenRunningHooks
        call(*arguments, **keywords)
        self.assertEqual({signal.SIGTERM, signal.SIGINT}, set(taken))
        for number in (signal.SIGTERM, signal.SIGINT):
            taken[number](number, None)
        self.assertFalse(reactor.hasStopped)
        with capturedLogs() as events:
            for function, *rest in later:
                function(*rest)
        self.assertTrue(reactor.hasStopped)
        self.assertEqual((2, 0), (len(later), status.status))
        self.assertEqual(
            [
                "got SIGTERM: stopping; what is under way gets up to 2.5 s",
                "got SIGINT: stopping already",
            ],
            [formatEvent(event) for event in events],
        )

    def test_grace(self) -> None:
        """
        The time that is told at a signal is that of C{--grace}.
        """
        parser = Options()
        parser.parseOptions(["--embedded", "--grace", "3"])
        (status, *_) = makeService(parser, MemoryReactorClock())
        with capturedLogs() as events:
            status._signalled(signal.SIGINT)
        (event,) = events
        self.assertIn("gets up to 3 s", str(formatEvent(event)))

    def test_bad(self) -> None:
        """
        A bad end has the process leave with its status at the very end, with
        everything written out.
        """
        registered: list[Any] = []
        self.patch(running.atexit, "register", lambda *call: registered.append(call))
        running.ExitStatus(MemoryReactorClock(), 10).end(3)
        ((function, number),) = registered
        left: list[int] = []
        function(number, left.append)
        self.assertEqual([3], left)
