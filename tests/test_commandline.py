"""
C{twistd fcm-xmpp} as a process of its own.

Nothing sleeps: each test reads what the process writes until it has written
what it is to write, and a deadline is the safety net.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import re
import shlex
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp import __version__
from tests.certificates import authority
from tests.checkout import CHECKOUT, childEnvironment, script
from tests.children import PATIENCE, Child


ANNOUNCED = re.compile(r"embedded connection server: connect to it with (--endpoint .*)\n")

#: A module for --handler.
HANDLERS = """
import os
import signal

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from zope.interface import implementer

from fcmxmpp import embedded
from fcmxmpp.interfaces import IUpstreamHandler

# The device that talks is to talk faster.
embedded.DeviceThatTalks.INTERVAL = 0.02


def say(what, message):
    os.write(1, f"{what} {message.data['count']}\\n".encode())


@implementer(IUpstreamHandler)
class Plain:
    def __init__(self, sender):
        self.sender = sender

    def messageReceived(self, message):
        say("plain", message)


@implementer(IUpstreamHandler)
class _Async:
    async def messageReceived(self, message):
        say("async", message)


coroutine = _Async()


@implementer(IUpstreamHandler)
class _Never:
    def messageReceived(self, message):
        say("never", message)
        return Deferred()


def never(sender):
    return _Never()


@implementer(IUpstreamHandler)
class _UntilSignal:
    def messageReceived(self, message):
        result = Deferred()
        signal.signal(signal.SIGUSR1, lambda *_: reactor.callFromThread(result.callback, None))
        say("waits", message)
        return result


untilSignal = _UntilSignal()


def cannotBeMade(sender):
    raise OSError("no database")


@implementer(IUpstreamHandler)
class _Raises:
    def messageReceived(self, message):
        raise ValueError(f"quoted: {message.data}")


raises = _Raises()


@implementer(IUpstreamHandler)
class _ToPipe:
    def messageReceived(self, message):
        os.write(int(os.environ["TEST_PIPE"]), f"{message.data['count']}\\n".encode())


toPipe = _ToPipe()
"""


class CommandLineCase(SynchronousTestCase):
    """
    Tests that start processes.
    """

    def setUp(self) -> None:
        """
        Have a directory to run in, and another with a module for --handler.
        """
        self.directory = Path(tempfile.mkdtemp()).resolve()
        self.addCleanup(shutil.rmtree, self.directory)
        self.cwd = self.directory / "cwd"
        self.modules = self.directory / "modules"
        self.temporary = self.directory / "tmp"
        for each in (self.cwd, self.modules, self.temporary):
            each.mkdir()
        (self.modules / "commandline_handlers.py").write_text(HANDLERS)

    def twistd(self, *arguments: str, options: tuple[str, ...] = ("-n",), **more: str) -> Child:
        """
        Start C{twistd fcm-xmpp}.

        @param options: twistd's own.
        @param more: environment variables.
        """
        environment = childEnvironment(TMPDIR=str(self.temporary), **more)
        paths = [str(self.modules), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        command = [sys.executable, script("twistd"), *options, "--pidfile=", "fcm-xmpp", *arguments]
        child = Child(command, self.cwd, environment)
        self.addCleanup(child.cleanUp)
        return child

    def write(self, name: str, text: str) -> str:
        """
        Write a file.

        @return: its path.
        """
        path = self.cwd / name
        path.write_text(text)
        return str(path)

    def stopped(self, child: Child, number: int = signal.SIGTERM) -> None:
        """
        At this signal the process ends in order: with the exit status 0, and
        nothing left.
        """
        self.assertTrue(child.running())
        self.assertEqual(0, child.stop(number), child.err)
        self.assertNotIn("Traceback", child.err)
        self.assertNotIn("Exception ignored", child.err)

    def lines(self, child: Child) -> list[dict[str, Any]]:
        """
        The standard output, which consists of JSON lines only.
        """
        self.assertTrue(child.out.endswith("\n"))
        return [json.loads(line) for line in child.out.splitlines()]


class WrongUseTests(CommandLineCase):
    """
    What cannot work is told at the start.
    """

    def test_wrongUses(self) -> None:
        """
        Whatever is wrong with the command line: the exit status is 1, there is
        one line on standard error and nothing else, no daemon, no file.  (All
        that can be wrong is in test_tap.py; here is one of each sort.)
        """
        key = self.write("key", "EXAMPLE-SERVER-KEY\n")
        config = self.write("wrong.toml", "no-such-setting = 1\n")
        (self.modules / "commandline_broken.py").write_text("import no_such_module_at_all\n")
        login = ("--sender-id", "123", "--server-key-file", key)
        endpoint = ("--endpoint", "tls:localhost:5235")
        table = [
            ((), "no connection server to connect to: Google switched its own off in 2024, .*--embedded"),
            (("--no-such-option",), "option --no-such-option not recognized"),
            ((*endpoint, "--sender-id", "123"), "no server key.*"),
            (("--endpoint", "tcp:localhost:5235", *login), "--endpoint has to begin with tls:.*"),
            (("--endpoint", "tls:localhost:5235:trustRoots=.", *login), "--endpoint: there are no certif.*"),
            (
                ("--embedded", "--handler", "no_such_module.x"),
                "--handler no_such_module.x cannot be imported: .*: set PYTHONPATH.*",
            ),
            (("--embedded", "--handler", "commandline_broken.x"), ".* cannot be imported: .*at_all'"),
            (
                ("--embedded", "--handler", "commandline_handlers.cannotBeMade"),
                r".* raised OSError: no database \(commandline_handlers.py, line \d+\)",
            ),
            (("--embedded", "--handler", "os.sep"), "--handler os.sep is neither .*"),
            (("--config", config), "unknown setting 'no-such-setting' in .*"),
        ]
        children = [(self.twistd(*arguments), expected) for arguments, expected in table]
        daemon = self.twistd("--embedded", options=())
        children.append((daemon, "the default handler writes to standard output, .*twistd -n.*"))
        for child, expected in children:
            self.assertEqual(1, child.end(), child.err)
            self.assertEqual("", child.out)
            self.assertRegex(child.err, f"^twistd fcm-xmpp: {expected}\n$")
            self.assertEqual(1, child.err.count("\n"), child.err)
            self.assertNotIn("EXAMPLE-SERVER-KEY", child.err)
        self.assertEqual({"key", "wrong.toml"}, set(os.listdir(self.cwd)))
        self.assertEqual([], os.listdir(self.temporary))

    def test_helpAndVersion(self) -> None:
        """
        The help names every option, and the version is that of the package;
        both end with the exit status 0.
        """
        help, version = self.twistd("--help"), self.twistd("--version")
        self.assertEqual((0, ""), (help.end(), help.err))
        for name in (
            "embedded",
            "demo",
            "sender-id",
            "server-key-file",
            "endpoint",
            "handler",
            "ack",
            "grace",
        ):
            self.assertIn(f"--{name}", help.out)
        for name in ("handler-timeout", "handler-tries", "config", "help", "version", "ordered"):
            self.assertIn(f"--{name}", help.out)
        for name in ("connections", "send-api", "send-api-token-file", "webhook-token-file"):
            self.assertIn(f"--{name}", help.out)
        self.assertIn("FCM_SERVER_KEY_FILE", help.out)
        self.assertIn("Firebase Cloud Messaging XMPP app server", help.out)
        self.assertEqual((0, ""), (version.end(), version.err))
        self.assertEqual(f"fcmxmpp {__version__}\n", version.out)


class EmbeddedTests(CommandLineCase):
    """
    C{--embedded}.
    """

    def runsUntil(self, number: int) -> None:
        """
        It runs until this signal.
        """
        child = self.twistd("--embedded")
        announced = shlex.split(child.until(ANNOUNCED)[1])
        child.until("\n", "out")
        (directory,) = self.temporary.iterdir()
        self.assertEqual(["certs", "server-key.txt"], sorted(os.listdir(directory)))
        key = (directory / "server-key.txt").read_text().strip()
        self.assertRegex(
            announced[1], f"^tls:localhost:[0-9]+:trustRoots={re.escape(str(directory / 'certs'))}$"
        )
        self.assertEqual(
            ["--endpoint", "--sender-id", "--server-key-file"], [announced[0], announced[2], announced[4]]
        )
        self.assertEqual(str(directory / "server-key.txt"), announced[5])
        if os.path.isdir("/proc"):
            commandLine = Path(f"/proc/{child.process.pid}/cmdline").read_bytes()
            self.assertNotIn(key.encode(), commandLine)
        self.stopped(child, number)
        (line,) = self.lines(child)
        self.assertEqual(["message_id", "from", "category", "data", "time_to_live"], list(line))
        self.assertEqual({"greeting": "hello", "count": "1"}, line["data"])
        name = signal.Signals(number).name
        for said in (
            f"appserver#info] fcmxmpp {__version__}: sender {announced[3]}, 1 link to the embedded server, ",
            "connection#info] link 1 to the embedded server is logged in\n",
            f"running#info] got {name}: stopping; what is under way gets up to 10 s\n",
            "appserver#info] stopped; upstream: 1 handled, 0 dead letters, 0 malformed; "
            "downstream: 0 accepted, 0 not\n",
        ):
            self.assertEqual(1, child.err.count(f"[fcmxmpp.{said}"), child.err)
        for secret in (key, "greeting", "hello", "embedded-device"):
            self.assertNotIn(secret, child.err)
        self.assertEqual([], os.listdir(self.temporary))
        self.assertEqual([], os.listdir(self.cwd))

    def test_SIGTERM(self) -> None:
        """
        It runs until SIGTERM and ends with the exit status 0; standard output
        has the messages as JSON lines and nothing else, the log is on standard
        error and has neither key nor payload; no file is left.
        """
        self.runsUntil(signal.SIGTERM)

    def test_SIGINT(self) -> None:
        """
        The same holds for SIGINT.
        """
        self.runsUntil(signal.SIGINT)

    def test_twoSignals(self) -> None:
        """
        A second signal does not cut the stop short.
        """
        child = self.twistd("--embedded", "--handler", "commandline_handlers.untilSignal", "--ordered")
        child.until("waits 1\n", "out")
        child.process.send_signal(signal.SIGTERM)
        child.until("got SIGTERM: stopping; what is under way gets up to 10 s\n")
        child.process.send_signal(signal.SIGINT)
        child.until("got SIGINT: stopping already\n")
        self.stopped(child, signal.SIGUSR1)
        self.assertIn("stopped; upstream: 1 handled, ", child.err)

    def test_demo(self) -> None:
        """
        The demonstration tells what happens, sums it up, and ends with the
        exit status 0; there is nothing on standard error, and no file is left.
        """
        child = self.twistd("--embedded", "--demo")
        self.assertEqual(0, child.end(), child.err)
        self.assertTrue(child.out.endswith("\n8 sent, 8 handled, 8 acknowledged, 0 lost\n"), child.out)
        for line in (
            "device +sends demo-1",
            "device +is told that demo-1 is stored, and forgets it",
            "handler +has handled demo-1, its data came unchanged",
            "app server +has sent the ACK for demo-1",
            "handler +FAILS on demo-5; no ACK, again in .* s",
            r"app server +is logged in \(connection 2\)",
        ):
            self.assertRegex(child.out, f"\n   {line}\n")
        self.assertNotIn("CHANGED", child.out)
        self.assertEqual("", child.err)
        self.assertEqual([], os.listdir(self.temporary))
        self.assertEqual([], os.listdir(self.cwd))

    def test_demoIsInterrupted(self) -> None:
        """
        The demonstration can be ended before its end, and leaves nothing.
        """
        child = self.twistd("--embedded", "--demo")
        child.until("sends demo-1", "out")
        child.stop(signal.SIGINT)
        self.assertEqual(0, child.process.returncode)
        self.assertNotIn("Unhandled", child.err)
        self.assertEqual([], os.listdir(self.temporary))

    def test_logfile(self) -> None:
        """
        With a log file the log is there, and where to connect to is told on
        standard error all the same.
        """
        child = self.twistd("--embedded", options=("-n", "--logfile=the.log"))
        child.until("\n", "out")
        self.stopped(child)
        self.assertRegex(child.err, f"^{ANNOUNCED.pattern}$")
        self.assertEqual(1, len(self.lines(child)))
        self.assertIn("logged in", (self.cwd / "the.log").read_text())

    def test_daemon(self) -> None:
        """
        As a daemon with a handler that needs no standard output it runs until
        SIGTERM, and logs where to connect to.
        """
        ended, passed = os.pipe()
        self.addCleanup(os.close, ended)
        pidfile = self.cwd / "the.pid"
        environment = childEnvironment(TMPDIR=str(self.temporary))
        paths = [str(self.modules), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        command = [sys.executable, script("twistd"), f"--pidfile={pidfile}", "--logfile=the.log", "fcm-xmpp"]
        try:
            launcher = subprocess.run(
                [*command, "--embedded", "--handler", "commandline_handlers.toPipe"],
                cwd=self.cwd,
                env=environment | {"TEST_PIPE": str(passed)},
                pass_fds=[passed],
                capture_output=True,
                timeout=PATIENCE,
            )
        finally:
            os.close(passed)
        self.assertEqual((0, b"", b""), (launcher.returncode, launcher.stdout, launcher.stderr))
        self.assertEqual(b"1\n", os.read(ended, 2))
        os.kill(int(pidfile.read_text()), signal.SIGTERM)
        # It has the only other end, and so has ended when that is closed.
        while os.read(ended, 1000):
            pass
        log = (self.cwd / "the.log").read_text()
        self.assertRegex(log, ANNOUNCED)
        self.assertIn("Server Shut Down", log)
        self.assertNotIn("Traceback", log)
        self.assertEqual([], os.listdir(self.temporary))

    def test_readerGoesAway(self) -> None:
        """
        When the reader of standard output goes away, the process stays: the
        messages are not acknowledged and tried again, which is a warning and
        not a traceback.
        """
        child = self.twistd("--embedded")
        child.closeOutput()
        child.until("#warn\\] the handler cannot work now: the output cannot be written: Broken pipe")
        self.stopped(child)
        self.assertEqual([], os.listdir(self.temporary))

    def test_handlers(self) -> None:
        """
        A handler is given by its dotted name: a class that takes the sender,
        an object with a coroutine function; each gets every message.
        """
        for name, said in (("Plain", "plain"), ("coroutine", "async")):
            child = self.twistd("--embedded", "--handler", f"commandline_handlers.{name}")
            child.until("(?s)(.*\n){3}", "out")
            self.stopped(child)
            numbers = re.findall(f"(?m)^{said} ([0-9]+)$", child.out)
            self.assertEqual([str(number + 1) for number in range(len(numbers))], numbers)

    def test_handlerRaises(self) -> None:
        """
        A handler that raises is logged with its traceback and without its
        text, which quotes the message; the process stays.
        """
        child = self.twistd("--embedded", "--handler", "commandline_handlers.raises", "--handler-tries", "1")
        child.until("(?s)dead letter.*dead letter")
        self.assertEqual(0, child.stop())
        self.assertIn(": builtins.ValueError; no more tries", child.err)
        self.assertNotIn("quoted", child.err.replace('raise ValueError(f"quoted: {message.data}")', ""))
        self.assertNotIn("greeting", child.err)


class OutsideTests(CommandLineCase):
    """
    An app server that connects to the connection server of another process.
    """

    def setUp(self) -> None:
        """
        Start the other process, whose own handler never answers.
        """
        super().setUp()
        self.server = self.twistd("--embedded", "--handler", "commandline_handlers.never", "--grace", "0")
        self.announced = shlex.split(self.server.until(ANNOUNCED)[1])
        self.endpoint, self.senderID, self.keyFile = self.announced[1::2]
        self.server.until("logged in")
        self.key = Path(self.keyFile).read_text().strip()
        self.serverStopped = False
        # Not in tearDown, which comes after what cleans up behind a failed test.
        self.addCleanup(self.stopServer)

    def stopServer(self) -> None:
        """
        Stop it, once.
        """
        if self.serverStopped:
            return
        self.serverStopped = True
        self.stopped(self.server)
        self.assertNotIn(self.key, self.server.err)

    def test_announcedOptions(self) -> None:
        """
        Another process connects with the options that were announced, and gets
        its share of the messages; its command line does not show the key.
        """
        child = self.twistd(*self.announced)
        child.until("(?s)(.*\n){2}", "out")
        if os.path.isdir("/proc"):
            commandLine = Path(f"/proc/{child.process.pid}/cmdline").read_bytes()
            self.assertIn(self.keyFile.encode(), commandLine)
            self.assertNotIn(self.key.encode(), commandLine)
        self.stopped(child)
        lines = self.lines(child)
        counts = [int(line["data"]["count"]) for line in lines]
        self.assertEqual(sorted(set(counts)), counts, "in order, and none twice")
        self.assertNotIn(self.key, child.err)
        self.assertNotIn("greeting", child.err)
        # What the first has got, the other has not.
        firsts = {int(count) for count in re.findall("never ([0-9]+)", self.server.out)}
        self.assertEqual(set(), firsts & set(counts))

    def test_redelivery(self) -> None:
        """
        What a killed process has not acknowledged comes to the next one.
        """
        # The first has taken what it may, so it does not get this one.
        self.server.until("never 100\n", "out")
        child = self.twistd(*self.announced, "--handler", "commandline_handlers.never")
        taken = int(child.until("never ([0-9]+)\n", "out")[1])
        child.process.kill()
        self.assertEqual(-signal.SIGKILL, child.end())
        again = self.twistd(*self.announced)
        again.until(f'"count":"{taken}"', "out")
        self.stopped(again)
        counts = [line["data"]["count"] for line in self.lines(again)]
        self.assertEqual(1, counts.count(str(taken)))

    def test_configurationAndEnvironment(self) -> None:
        """
        A configuration file and the environment do instead of the options.
        """
        config = self.write("the.toml", f'endpoint = "{self.endpoint}"\nack = "received"\ngrace = 1\n')
        child = self.twistd("--config", config, FCM_SENDER_ID=self.senderID, FCM_SERVER_KEY=self.key)
        child.until("\n", "out")
        self.stopped(child)
        self.assertNotIn(self.key, child.err)

    def test_wrongKey(self) -> None:
        """
        A wrong server key is told in one line, without the key, as is the time
        of the next try; the process stays.
        """
        child = self.twistd(
            "--endpoint", self.endpoint, "--sender-id", self.senderID, FCM_SERVER_KEY="wrong-server-key"
        )
        child.until(
            r"#error\] link 1 to localhost:\d+ cannot log in: login refused \(not-authorized\): "
            r"check the sender ID and the server key; "
            r"next try in [0-9.]+ s\n"
        )
        self.stopped(child)
        self.assertEqual("", child.out)
        self.assertNotIn("wrong-server-key", child.err)

    def test_serverGoesAway(self) -> None:
        """
        When the connection server goes away, that is told in one line for each
        try, and the process stays.
        """
        child = self.twistd(*self.announced)
        child.until("logged in")
        self.stopServer()
        child.until(
            r"link 1 to localhost:\d+ is lost: the server ended the stream with an error: system-shutdown"
        )
        child.until("cannot log in: connection refused: nothing listens there; next try in [0-9.]+ s\n")
        self.stopped(child)


class UnixConnection(http.client.HTTPConnection):
    """
    HTTP over a unix socket.
    """

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        """
        Connect.
        """
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(str(self._path))


class SendAPITests(CommandLineCase):
    """
    C{--send-api}.
    """

    def setUp(self) -> None:
        """
        Have a place for a socket, with a short name.
        """
        super().setUp()
        self.socket = self.directory / "s"
        self.message: dict[str, Any] = {"to": "embedded-device", "data": {"op": "wake"}}

    def ask(self, connection: http.client.HTTPConnection, body: Any = None, **headers: str) -> None:
        """
        Ask for a message to be sent.
        """
        self.addCleanup(connection.close)
        given = {"Content-Type": "application/json"} | headers
        connection.request("POST", "/send", json.dumps(body or self.message), given)

    def answer(self, connection: http.client.HTTPConnection) -> tuple[int, Any]:
        """
        The answer.
        """
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    def listening(self, *arguments: str) -> tuple[Child, str]:
        """
        A process whose send API listens, and where.
        """
        child = self.twistd("--embedded", *arguments)
        where = child.until(r"#info\] the send API listens on (.+)\n")[1]
        child.until("logged in")
        return child, where

    def test_unix(self) -> None:
        """
        Over a unix socket, which is for its owner alone, each message is
        answered with what became of it; at the stop the socket's file goes.
        """
        child, where = self.listening("--send-api", f"unix:{self.socket}")
        self.assertEqual(str(self.socket), where)
        self.assertEqual(0o600, stat.S_IMODE(self.socket.stat().st_mode))
        connection = UnixConnection(self.socket)
        self.ask(connection)
        status, value = self.answer(connection)
        self.assertEqual((200, "ack"), (status, value["ack"]["message_type"]))
        self.assertRegex(value["ack"]["message_id"], "^[0-9a-f-]{36}$")
        self.ask(connection, self.message | {"to": "unknown-device", "message_id": "m-1"})
        status, value = self.answer(connection)
        self.assertEqual(410, status)
        self.assertEqual(("m-1", True), (value["nack"]["message_id"], value["nack"]["token_gone"]))
        self.ask(connection, {"to": 1})
        self.assertEqual(400, self.answer(connection)[0])
        self.stopped(child)
        self.assertFalse(self.socket.exists())
        for secret in ("embedded-device", "unknown-device", "wake"):
            self.assertNotIn(secret, child.err)
        self.assertEqual([], os.listdir(self.cwd))

    def test_tcp(self) -> None:
        """
        Over TCP a token can be required.
        """
        token = self.write("token", "EXAMPLE-TOKEN\n")
        child, where = self.listening(
            "--send-api", "tcp:0:interface=127.0.0.1", "--send-api-token-file", token
        )
        for headers, expected in (({}, 401), ({"Authorization": "Bearer EXAMPLE-TOKEN"}, 200)):
            connection = http.client.HTTPConnection(where, timeout=PATIENCE)
            self.ask(connection, **headers)
            self.assertEqual(expected, self.answer(connection)[0])
        self.stopped(child)
        self.assertNotIn("EXAMPLE-TOKEN", child.err)

    def test_stop(self) -> None:
        """
        A client that waits when the process is stopped gets its answer.
        """
        free = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(free.close)
        child = self.twistd(
            "--endpoint",
            f"tls:localhost:{free.getsockname()[1]}",
            "--sender-id",
            "1",
            "--send-api",
            f"unix:{self.socket}",
            FCM_SERVER_KEY="EXAMPLE-SERVER-KEY",
        )
        child.until("the send API listens on")
        connection = UnixConnection(self.socket)
        self.ask(connection)
        # It has come in when a second one with the same name is refused.
        named = UnixConnection(self.socket)
        self.ask(named, self.message | {"message_id": "m-1"})
        again = UnixConnection(self.socket)
        self.ask(again, self.message | {"message_id": "m-1"})
        self.assertEqual((409, "message_id"), self.field(self.answer(again)))
        self.stopped(child)
        for each in (connection, named):
            status, value = self.answer(each)
            self.assertEqual(503, status)
            self.assertIn("stopped", value["error"]["reason"])

    def field(self, answer: tuple[int, Any]) -> tuple[int, str]:
        """
        What an answer says is wrong.
        """
        return answer[0], answer[1]["error"]["field"]

    def test_taken(self) -> None:
        """
        What somebody listens on already ends the process with the exit status
        1, one line that says so, and no file left; the other goes on.
        """
        first, _ = self.listening("--send-api", f"unix:{self.socket}")
        (directory,) = self.temporary.iterdir()
        busy = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(busy.close)
        port = busy.getsockname()[1]
        for description, why in (
            (f"unix:{self.socket}", "somebody listens on it already"),
            (f"tcp:{port}:interface=127.0.0.1", "Address already in use"),
        ):
            child = self.twistd("--embedded", "--send-api", description)
            self.assertEqual(1, child.end(), child.err)
            self.assertIn(f"#critical] --send-api {description}: cannot listen: {why}\n", child.err)
            self.assertNotIn("Traceback", child.err)
            self.assertEqual("", child.out)
        self.assertEqual([directory], list(self.temporary.iterdir()))
        connection = UnixConnection(self.socket)
        self.ask(connection)
        self.assertEqual(200, self.answer(connection)[0])
        self.stopped(first)

    def test_takenDaemon(self) -> None:
        """
        So does a daemon, which has it in its log; who starts it is told.
        """
        busy = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(busy.close)
        where = f"tcp:{busy.getsockname()[1]}:interface=127.0.0.1"
        child = self.twistd(
            "--embedded", "--handler", "echo", "--send-api", where, options=("--logfile=the.log",)
        )
        self.assertEqual(1, child.end(), child.err)
        self.assertIn("CannotListenError", child.err)
        self.assertRegex((self.cwd / "the.log").read_text(), "cannot listen: Address already in use\n")
        self.assertEqual([], os.listdir(self.temporary))

    def test_afterCrash(self) -> None:
        """
        The file that a killed process has left is no obstacle.
        """
        child, _ = self.listening("--send-api", f"unix:{self.socket}")
        child.process.kill()
        child.end()
        self.assertTrue(self.socket.exists())
        again, _ = self.listening("--send-api", f"unix:{self.socket}")
        connection = UnixConnection(self.socket)
        self.ask(connection)
        self.assertEqual(200, self.answer(connection)[0])
        self.stopped(again)

    def test_fileRemoved(self) -> None:
        """
        That somebody has removed the socket's file does not keep the process
        from stopping in order.
        """
        child, _ = self.listening("--send-api", f"unix:{self.socket}")
        self.socket.unlink()
        self.stopped(child)
        self.assertIn("closing the send API's port failed: No such file", child.err)


class WebhookTests(CommandLineCase):
    """
    C{--handler webhook:URL}.
    """

    def served(self, context: ssl.SSLContext | None = None) -> tuple[int, queue.Queue[Any]]:
        """
        A web server.

        @return: its port, and what is POSTed to it.
        """
        posted: queue.Queue[Any] = queue.Queue()

        class Hook(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                posted.put((self.path, self.headers, body))
                answer = json.dumps(
                    {"send": [{"to": body["from"], "data": {"op": "thanks"}}, {"to": "gone"}]}
                )
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer.encode())

            def log_message(self, *arguments: object) -> None:
                """
                Be silent.
                """

        class Server(ThreadingHTTPServer):
            def handle_error(self, *arguments: object) -> None:
                """
                A client that does not trust us hangs up; that is what it should.
                """

        server = Server(("127.0.0.1", 0), Hook)
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        self.addCleanup(server.server_close)
        self.addCleanup(thread.join)
        self.addCleanup(server.shutdown)
        return server.server_port, posted

    def test_handled(self) -> None:
        """
        Each message is POSTed, with the token, and handled; what the answer
        sends is sent, which the one that is refused shows.
        """
        port, posted = self.served()
        token = self.write("token", "EXAMPLE-TOKEN\n")
        url = f"http://127.0.0.1:{port}/hook?key=secret"
        child = self.twistd("--embedded", "--handler", f"webhook:{url}", "--webhook-token-file", token)
        path, headers, body = posted.get(timeout=PATIENCE)
        self.assertEqual("/hook?key=secret", path)
        self.assertEqual("Bearer EXAMPLE-TOKEN", headers["Authorization"])
        self.assertEqual({"greeting": "hello", "count": "1"}, body["data"])
        child.until(
            f"the answer '[0-9a-f-]+' to '{body['message_id']}' was not sent: BAD_REGISTRATION|UNREGISTERED"
        )
        self.stopped(child)
        self.assertEqual(1, child.err.count("was not sent"))
        self.assertEqual("", child.out)
        for secret in ("EXAMPLE-TOKEN", "secret", "thanks", "embedded-device"):
            self.assertNotIn(secret, child.err)

    def test_README(self) -> None:
        """
        The two commands of the README for other languages work together: the
        message of the device is POSTed, and what curl sends is accepted.
        """
        text = (CHECKOUT / "README.md").read_text(encoding="utf-8")
        blocks = [block.replace("\\\n", " ") for block in re.findall(r"(?ms)^```sh\n(.*?)^```", text)]
        (run,) = [shlex.split(block) for block in blocks if "--send-api unix:send.sock" in block]
        (send,) = [shlex.split(block) for block in blocks if "--unix-socket send.sock" in block]
        self.assertEqual(["twistd", "-n", "fcm-xmpp"], run[:3])
        port, posted = self.served()
        child = self.twistd(*[word.replace(":8000/", f":{port}/") for word in run[3:]])
        self.assertEqual("/fcm", posted.get(timeout=PATIENCE)[0])
        child.until("the send API listens on ")
        curl = shutil.which("curl")
        if curl is not None:
            done = subprocess.run(
                [curl, "--silent", *send[1:]], cwd=self.cwd, capture_output=True, check=True, timeout=PATIENCE
            )
            self.assertEqual("ack", json.loads(done.stdout)["ack"]["message_type"])
        self.stopped(child)

    def test_HTTPS(self) -> None:
        """
        A web server whose certificate is from an authority that nobody knows
        gets nothing, and the messages wait; one from an authority that the
        system knows does.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority("hook").issue_cert("localhost").configure_cert(context)
        port, posted = self.served(context)
        hook = ("--embedded", "--handler", f"webhook:https://localhost:{port}/")
        child = self.twistd(*hook)
        child.until(
            "the handler cannot work now: no answer from the webhook: TLS failed: certificate verify failed"
        )
        self.stopped(child)
        self.assertTrue(posted.empty())
        trusted = str(self.directory / "authority.pem")
        authority("hook").cert_pem.write_to_path(trusted)
        child = self.twistd(*hook, SSL_CERT_FILE=trusted)
        self.assertEqual("1", posted.get(timeout=PATIENCE)[2]["data"]["count"])
        self.stopped(child)
        self.assertNotIn("cannot work", child.err)

    def test_unreachable(self) -> None:
        """
        While there is no web server the messages wait, which is told in one
        line.
        """
        free = socket.create_server(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        child = self.twistd("--embedded", "--handler", f"webhook:http://127.0.0.1:{port}/")
        child.until(
            "the handler cannot work now: no answer from the webhook: ConnectionRefusedError; messages"
        )
        self.stopped(child)


class FileTests(CommandLineCase):
    """
    C{--handler jsonlines:PATH}.
    """

    def test_daemon(self) -> None:
        """
        A daemon can write the messages to a file, whose path is meant from
        where it was started.
        """
        pidfile = self.cwd / "the.pid"
        ended, passed = os.pipe()
        self.addCleanup(os.close, ended)
        command = [sys.executable, script("twistd"), f"--pidfile={pidfile}", f"--rundir={self.modules}"]
        try:
            launcher = subprocess.run(
                [*command, "--logfile=the.log", "fcm-xmpp", "--embedded", "--handler", "jsonlines:messages"],
                cwd=self.cwd,
                env=childEnvironment(TMPDIR=str(self.temporary)),
                pass_fds=[passed],
                capture_output=True,
                timeout=PATIENCE,
            )
        finally:
            os.close(passed)
        self.assertEqual((0, b"", b""), (launcher.returncode, launcher.stdout, launcher.stderr))
        pid = int(pidfile.read_text())
        log = self.cwd / "the.log"
        until = time.monotonic() + PATIENCE
        while not (self.cwd / "messages").read_text():
            self.assertLess(time.monotonic(), until, log.read_text())
        os.kill(pid, signal.SIGTERM)
        # It has the only other end, and so has ended when that is closed.
        os.read(ended, 1)
        (line,) = (self.cwd / "messages").read_text().splitlines()
        self.assertEqual({"greeting": "hello", "count": "1"}, json.loads(line)["data"])
        self.assertNotIn("Traceback", log.read_text())


class StoreTests(CommandLineCase):
    """
    C{--store}, and the command that looks into it.
    """

    def test_README(self) -> None:
        """
        The README's commands work as they stand there: the service, and while
        it runs the looks into its store.
        """
        readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
        (service,) = re.findall(r"^twistd -n fcm-xmpp (.*fcm\.db)$", readme, re.MULTILINE)
        commands = re.findall(r"^fcmxmpp (.*fcm\.db)$", readme, re.MULTILINE)
        self.assertEqual(3, len(commands))
        child = self.twistd(*service.split())
        child.until(r"\n", "out")
        environment = childEnvironment()
        ended = [
            subprocess.run(
                [sys.executable, "-m", "fcmxmpp.command", *command.split()],
                cwd=self.cwd,
                env=environment,
                capture_output=True,
                timeout=PATIENCE,
            )
            for command in commands
        ]
        # There is nothing to be retried, which is told by the exit status.
        self.assertEqual([0, 1, 0], [each.returncode for each in ended], ended)
        self.stopped(child)
        self.assertEqual("1", self.lines(child)[0]["data"]["count"])

    def test_logNamesTheCommand(self) -> None:
        """
        The log has the command that looks into the store, for a shell in any
        directory.
        """
        child = self.twistd("--embedded", "--store", "sqlite:the store.db")
        command = shlex.split(child.until("to look into it: (fcmxmpp .*)\n")[1])
        done = subprocess.run(
            [sys.executable, "-m", "fcmxmpp.command", *command[1:]],
            cwd="/",
            env=childEnvironment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        self.assertEqual((0, ""), (done.returncode, done.stderr))
        self.assertIn("0 dead letters", done.stdout)
        self.stopped(child)
