"""
Tests for L{fcmxmpp.servertap}; with device clients as processes in
test_device_peers.py.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from typing import Any

from twisted.application.service import IServiceMaker
from twisted.internet.endpoints import quoteStringArgument
from twisted.internet.error import CannotListenError
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs, formatEvent
from twisted.plugin import getPlugins
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.certificates import LocalCertificates
from fcmxmpp.server.senders import HashedKey
from fcmxmpp.server.service import ConnectionServer
from fcmxmpp.server.simulated import SimulatedDevice
from fcmxmpp.serveroptions import ServerOptions
from fcmxmpp.servertap import Options, makeService
from fcmxmpp.store.sqlite import SQLiteStore
from tests.appservers import Client
from tests.certificates import expectDeprecated
from tests.checkout import childEnvironment, script
from tests.children import PATIENCE, Child


KEY = "a-key-that-nobody-guesses"
OTHER = "another-key-that-nobody-guesses"
PLAIN = "tcp:1:interface=127.0.0.1"


def senderTable(senderID: str, *keys: str) -> str:
    """
    A sender, as it stands in the file.
    """
    salt = os.urandom(16)
    # Not by hashKey: the keys of tests may be short.
    hashed = ", ".join(f'"{HashedKey(salt, sha256(salt + key.encode()).digest())}"' for key in keys)
    return f"[senders.{senderID}]\nkeys = [{hashed}]\n"


class ServerCase(SynchronousTestCase):
    """
    Has a directory with a senders file.
    """

    def setUp(self) -> None:
        """
        Have it.
        """
        self.directory = Path(tempfile.mkdtemp()).resolve()
        self.addCleanup(rmtree, self.directory)
        self.senders = self.directory / "senders.toml"
        self.senders.write_text(senderTable("1", KEY))
        self.trial = str(self.directory / "trial")

    def options(self, *arguments: str, parent: Any = None, **environment: str) -> Any:
        """
        The options that these arguments are.
        """
        options = ServerOptions()
        options.environ = environment
        options.parent = parent
        options.parseOptions(list(arguments))
        return options


def connectionServerOf(service: Any) -> ConnectionServer:
    """
    The connection server in what L{makeService} has made.
    """
    server = list(service)[-1]._server
    assert isinstance(server, ConnectionServer)
    return server


class ServiceCase(ServerCase):
    """
    Tests that make services, and run them on a reactor in memory.
    """

    def service(self, *arguments: str, parent: Any = None) -> tuple[Any, MemoryReactorClock]:
        """
        The service for these arguments, and its reactor.
        """
        reactor = MemoryReactorClock()
        reactor.advance(1_700_000_000)
        options = self.options(*arguments, "--senders", str(self.senders), parent=parent)
        return makeService(options, reactor), reactor

    def started(self, *arguments: str) -> tuple[Any, MemoryReactorClock, list[str]]:
        """
        Start a service as twistd does.

        @return: it, its reactor, and what it has logged.
        """
        service, reactor = self.service(*arguments)
        with capturedLogs() as events:
            service.privilegedStartService()
            service.startService()
        self.addCleanup(lambda: service.running and self.stop(service, reactor))
        return service, reactor, [str(formatEvent(event)) for event in events]

    def stop(self, service: Any, reactor: MemoryReactorClock) -> list[str]:
        """
        Stop a service, which leaves nothing to be done.

        @return: what it has logged.
        """
        with capturedLogs() as events:
            stopped = service.stopService()
            reactor.advance(1)
            self.successResultOf(stopped)
        self.assertEqual([], reactor.getDelayedCalls())
        return [str(formatEvent(event)) for event in events]


class ServiceTests(ServiceCase):
    """
    L{makeService}.
    """

    def test_ports(self) -> None:
        """
        It listens where it was told before twistd becomes another user, says
        so, and stops without a trace.
        """
        expectDeprecated(self)
        for name, who in (("--xmpp", "app servers"), ("--devices", "devices")):
            service, reactor = self.service("--self-signed", self.trial, name, "tls:1:interface=127.0.0.1")
            service.privilegedStartService()
            self.assertEqual([(1, "127.0.0.1")], [(port[0], port[4]) for port in reactor.sslServers])
            with capturedLogs() as events:
                service.startService()
            self.assertEqual(1, len(reactor.sslServers))
            said = [str(formatEvent(event)) for event in events]
            self.assertTrue(any(line.startswith(f"{who} connect to port ") for line in said), said)
            self.stop(service, reactor)

    def test_unix(self) -> None:
        """
        A socket has no port, and is told by its name; nobody is told to connect
        to it by TLS.
        """
        _, _, said = self.started("--xmpp", f"unix:{self.directory / 'sock'}", "--self-signed", self.trial)
        self.assertIn(f"app servers connect to the socket {self.directory / 'sock'}", said)
        self.assertFalse(any("--endpoint" in line for line in said))

    def test_says(self) -> None:
        """
        What may be a surprise is told at the start: no store, nobody who may
        log in, HTTP that everybody can overhear.
        """
        _, _, said = self.started("--xmpp", PLAIN)
        self.assertRegex(said[0], f"^fcmxmpp .*: connection server; {self.senders} has 1 sender$")
        self.assertTrue(any(line.startswith("there is no --store: registrations, and") for line in said))
        self.assertFalse(any("unencrypted" in line or "fcmxmpp senders add" in line for line in said))
        self.senders.write_text("")
        _, _, said = self.started("--xmpp", PLAIN, "--http", "tcp:8080")
        self.assertIn("no app server can log in: fcmxmpp senders add makes a sender", said)
        self.assertTrue(any(line.startswith("--http tcp:8080 is unencrypted, and") for line in said))

    def test_howToConnect(self) -> None:
        """
        For a first try it says how clients connect and what they trust, with
        paths as a shell takes them, in the log and, if that is elsewhere, on
        standard error.
        """
        expectDeprecated(self)
        self.trial = str(self.directory / "a: first try")
        options = self.options("--self-signed", self.trial, parent={"nodaemon": 1, "logfile": "x"})
        service = makeService(options, MemoryReactorClock())
        output = io.StringIO()
        self.patch(sys, "__stderr__", output)
        service.privilegedStartService()
        with capturedLogs() as events:
            service.startService()
        self.addCleanup(self.stop, service, service.services[0]._reactor)
        printed = output.getvalue().splitlines()
        said = [str(formatEvent(event)) for event in events]
        self.assertEqual(printed, said[-len(printed) :])
        words = {line.partition(": ")[0]: shlex.split(line.partition(": ")[2]) for line in printed[1:-1]}
        self.assertTrue(printed[0].startswith("there is a new local authority; clients have to trust "))
        appServer = words["an app server"]
        self.assertEqual(["twistd", "-n", "fcm-xmpp", "--endpoint"], appServer[:4])
        trust = self.trial.replace(":", "\\:") + "/certs"
        self.assertRegex(appServer[4], rf"^tls:localhost:[0-9]+:trustRoots={re.escape(trust)}$")
        self.assertEqual(
            ["--sender-id", "123456789", "--server-key-file", f"{self.trial}/server-key.txt"], appServer[5:]
        )
        device = words["a device"]
        self.assertEqual(["fcmxmpp", "device", "listen", "--server"], device[:4])
        self.assertIn(f"{self.trial}/certs", device)
        self.assertIn("--gcm-mcs-endpoint=https://localhost", " ".join(words["Chromium"]))
        for name in ("SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"):
            self.assertIn(f"{name}='{self.trial}/certs/ca.pem'", printed[-1])
        self.assertNotIn(Path(self.trial, "server-key.txt").read_text().strip(), output.getvalue())

    def test_ownSenders(self) -> None:
        """
        Where the senders are somebody's own, it does not pretend to know them.
        """
        expectDeprecated(self)
        _, _, said = self.started("--self-signed", self.trial, "--xmpp", "0")
        self.assertTrue(any("--sender-id SENDER_ID --server-key-file FILE" in line for line in said), said)

    def test_store(self) -> None:
        """
        A store is opened before the ports are used, and closed last.
        """
        service, _ = self.service("--xmpp", PLAIN, "--store", f"sqlite:{self.directory / 'store'}")
        kinds = [type(each) for each in service]
        (store,) = [kind for kind in kinds if issubclass(kind, SQLiteStore)]
        self.assertLess(kinds.index(store), len(kinds) - 2)
        self.assertEqual("_Running", kinds[-1].__name__)

    def test_noStore(self) -> None:
        """
        A store that cannot be used ends the start, with one line.
        """
        wrong = self.directory / "wrong"
        wrong.write_text("This is no database, but it is long enough to be taken for one." * 9)
        service, _ = self.service("--xmpp", PLAIN, "--store", f"sqlite:{wrong}")
        service.privilegedStartService()
        with capturedLogs() as events:
            error = self.assertRaises(SystemExit, service.startService)
        self.assertEqual(1, error.code)
        self.assertEqual(
            [f"--store sqlite:{wrong}: the file is no database, or damaged: name another file"],
            [formatEvent(event) for event in events],
        )

    def test_cannotListen(self) -> None:
        """
        A port that cannot be had ends the start with one line, in the log and,
        if that is elsewhere, on standard error; a daemon tells it to who has
        started it.
        """
        for parent, raised, printed in (
            ({"nodaemon": 1}, SystemExit, 0),
            ({"nodaemon": 1, "logfile": "x"}, SystemExit, 1),
            ({"nodaemon": 0}, CannotListenError, 0),
        ):
            service, reactor = self.service("--xmpp", PLAIN, parent=parent)

            def listenTCP(*_: object, **__: object) -> None:
                raise CannotListenError("127.0.0.1", 1, OSError(98, "Address already in use"))

            self.patch(reactor, "listenTCP", listenTCP)
            output = io.StringIO()
            self.patch(sys, "__stderr__", output)
            with capturedLogs() as events:
                self.assertRaises(raised, service.privilegedStartService)
            said = f"--xmpp {PLAIN}: cannot listen: Address already in use"
            self.assertEqual([said], [formatEvent(event) for event in events])
            self.assertEqual(f"twistd fcm-connection-server: {said}\n" * printed, output.getvalue())

    def test_wrongFiles(self) -> None:
        """
        A senders file or an endpoint that is none ends it with one line.
        """
        for description, text, expected in (
            (PLAIN, "x", f"--senders {self.senders}: it is not TOML"),
            (PLAIN, None, f"--senders {self.senders}: cannot be read: No such file or directory"),
            ("ssl:1:privateKey=nowhere.pem", "", "--xmpp: cannot read .*nowhere.pem: No such file"),
            (f"ssl:1:privateKey={self.senders}", "", "--xmpp has to look like ssl:PORT:privateKey="),
            ("tcp:x:interface=127.0.0.1", "", "--xmpp has to look like ssl:PORT:.*invalid literal"),
            ("nonsense:1", "", "--xmpp has to look like ssl:PORT:.*Unknown endpoint type"),
        ):
            self.senders.unlink(missing_ok=True)
            if text is not None:
                self.senders.write_text(text)
            error = self.assertRaises(SystemExit, self.service, "--xmpp", description)
            self.assertRegex(str(error.code), f"^twistd fcm-connection-server: {expected}")
            self.assertEqual(1, len(str(error.code).splitlines()))

    def test_chain(self) -> None:
        """
        Where a file has the authorities' certificates behind the server's,
        Twisted would send that alone: it is told how to have all sent.
        """
        expectDeprecated(self)
        certificates = LocalCertificates(str(self.directory / "a:b"))
        certificates.prepare()
        chain = self.directory / "a:b" / "chain.pem"
        one, other = certificates.certificate.read_bytes(), certificates.authority.read_bytes()
        key = f"ssl:0:privateKey={quoteStringArgument(str(certificates.key))}"
        certKey = f"certKey={quoteStringArgument(str(chain))}"
        authority = quoteStringArgument(str(certificates.authority))
        chain.write_bytes(one)
        self.service("--xmpp", f"{key}:{certKey}")
        self.service("--xmpp", f"ssl:0:{key.partition('=')[2]}:{certKey.partition('=')[2]}")
        chain.write_bytes(one + other)
        error = self.assertRaises(SystemExit, self.service, "--xmpp", f"{key}:{certKey}")
        self.assertIn(f"--xmpp: {chain} has 2 certificates, and", str(error.code))
        self.service("--xmpp", f"{key}:{certKey}:extraCertChain={authority}")
        chain.write_bytes(certificates.key.read_bytes() + one + other)
        alone = f"ssl:0:privateKey={quoteStringArgument(str(chain))}"
        error = self.assertRaises(SystemExit, self.service, "--xmpp", alone)
        self.assertIn("say :extraCertChain=FILE", str(error.code))

    def test_plugin(self) -> None:
        """
        twistd finds the plugin, which leads here.
        """
        (plugin,) = [
            plugin for plugin in getPlugins(IServiceMaker) if plugin.tapname == "fcm-connection-server"
        ]
        self.assertEqual("fcmxmpp.servertap", plugin.module)
        self.assertIs(Options, plugin.options)


class StopTests(ServiceCase):
    """
    How it stops.
    """

    def setUp(self) -> None:
        """
        Start one, with an app server that owes an ACK.
        """
        super().setUp()
        self.senders.write_text(senderTable("111", "key-1"))
        self.service_, self.reactor, _ = self.started("--xmpp", PLAIN, "--grace", "5")
        self.client = Client(connectionServerOf(self.service_))
        self.client.login()
        self.device = SimulatedDevice(self.client.stream._routes, "111", "tok-A", "org.example.app")
        self.sent = self.device.send("m-1", {"n": "1"})
        self.assertEqual(["m-1"], self.client.ids())
        self.stopped: Any = None
        with capturedLogs() as self.events:
            self.stopped = self.service_.stopService()

    def test_draining(self) -> None:
        """
        App servers are told that the connection ends, and are not cut off
        before their ACKs have come; there are no new ones meanwhile.
        """
        self.assertEqual(
            [{"message_type": "control", "control_type": "CONNECTION_DRAINING"}], self.client.answers()
        )
        self.reactor.advance(1)
        self.assertFalse(self.client.transport.disconnecting)
        answer = self.client.downstream(to="tok-A", message_id="d-1", data={"n": "2"})
        self.assertEqual(("nack", "CONNECTION_DRAINING"), (answer["message_type"], answer["error"]))
        self.client.ack("m-1")
        self.successResultOf(self.sent)
        with capturedLogs() as events:
            self.reactor.advance(1)
            self.assertTrue(self.client.transport.disconnecting)
            self.assertNoResult(self.stopped)
            self.client.lose()
            self.reactor.advance(0)
            self.successResultOf(self.stopped)
        self.assertTrue(any("1 acknowledged, 0 expired" in str(formatEvent(event)) for event in events))
        self.assertEqual([], self.reactor.getDelayedCalls())

    def test_grace(self) -> None:
        """
        Who does not acknowledge is not waited for longer than C{--grace}.
        """
        self.reactor.pump([1] * 4)
        self.assertFalse(self.client.transport.disconnecting)
        self.reactor.pump([0.5] * 3)
        self.assertTrue(self.client.transport.disconnecting)
        self.client.lose()
        self.reactor.advance(0)
        self.successResultOf(self.stopped)
        self.assertEqual([], self.reactor.getDelayedCalls())


class ReloadTests(ServiceCase):
    """
    What SIGHUP does, within the process; from outside in L{ProcessTests}.
    """

    def hangUp(self) -> list[str]:
        """
        Send this process the signal.

        @return: what the service has logged.
        """
        told: list[Any] = []
        self.reactor.callFromThread = lambda *call: told.append(call)
        os.kill(os.getpid(), signal.SIGHUP)
        ((function, *arguments),) = told
        with capturedLogs() as events:
            function(*arguments)
        return [str(formatEvent(event)) for event in events]

    def start(self) -> None:
        """
        Start the service.
        """
        self.service_, self.reactor, _ = self.started("--xmpp", PLAIN)
        self.registry = connectionServerOf(self.service_).registry

    def test_reload(self) -> None:
        """
        The file is read again in the reactor's own thread; the streams of who
        has lost a key are closed, and no others.
        """
        self.senders.write_text(senderTable("111", "key-1") + senderTable("222", "key-2"))
        self.start()
        gone, other = (Client(connectionServerOf(self.service_)) for _ in range(2))
        gone.login("111")
        other.login("222")
        kept = self.senders.read_text().partition("[senders.222]")
        self.senders.write_text(senderTable("333", KEY) + kept[1] + kept[2])
        self.assertEqual(
            f"got SIGHUP: {self.senders} has 2 senders; closing the connections of 111, who lost a key",
            self.hangUp()[0],
        )
        self.assertEqual((True, False), (gone.transport.disconnecting, other.transport.disconnecting))
        self.assertEqual((True, False), (self.registry.mayLogIn("333", KEY), self.registry.knows("111")))
        self.assertEqual([f"got SIGHUP: {self.senders} has 2 senders"], self.hangUp())
        for client in (gone, other):
            client.lose()

    def test_broken(self) -> None:
        """
        A file that cannot be read changes nothing; one line says why.
        """
        self.start()
        for spoil, why in (
            (lambda: self.senders.write_text("[senders.1]"), r"\[senders.1\] needs keys: .*"),
            (lambda: self.senders.write_bytes(b"\xff"), "cannot be read: .*codec.*"),
            (self.senders.unlink, "cannot be read: No such file or directory"),
        ):
            spoil()
            (line,) = self.hangUp()
            self.assertRegex(line, f"^got SIGHUP: {self.senders}: {why}; the senders stay as they were$")
            self.assertTrue(self.registry.mayLogIn("1", KEY))

    def test_restored(self) -> None:
        """
        The signal is as before once everything has stopped, and not earlier:
        it would end the process while that is stopping.
        """
        before = signal.getsignal(signal.SIGHUP)
        self.start()
        self.assertNotEqual(before, signal.getsignal(signal.SIGHUP))
        client = Client(connectionServerOf(self.service_))
        stopped = self.service_.stopService()
        self.assertNotEqual(before, signal.getsignal(signal.SIGHUP))
        client.lose()
        self.reactor.advance(1)
        self.successResultOf(stopped)
        self.assertEqual(before, signal.getsignal(signal.SIGHUP))

    def test_otherThread(self) -> None:
        """
        Where no signal can be had, as in another thread than the main one,
        that is told, and all else works.
        """
        before = signal.getsignal(signal.SIGHUP)
        said: list[str] = []

        def run() -> None:
            service, reactor, lines = self.started("--xmpp", PLAIN)
            said.extend([*lines, *self.stop(service, reactor)])

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        self.assertIn(
            "the senders file is not read again: there is no SIGHUP here, or not in this thread", said
        )
        self.assertTrue(any(line.startswith("app servers connect to port ") for line in said), said)
        self.assertTrue(said[-1].startswith("stopped; "), said)
        self.assertEqual(before, signal.getsignal(signal.SIGHUP))


class ProcessTests(ServerCase):
    """
    C{twistd fcm-connection-server} as a process, and app servers as others.
    """

    def start(self, program: str, *arguments: str, options: tuple[str, ...] = ("-n",), **more: str) -> Child:
        """
        Start one of ours.

        @param options: twistd's own.
        @param more: environment variables.
        """
        child = Child(
            [sys.executable, script("twistd"), *options, "--pidfile=", program, *arguments],
            self.directory,
            childEnvironment(**more),
        )
        self.addCleanup(child.cleanUp)
        return child

    def command(self, *arguments: str) -> str:
        """
        Run C{fcmxmpp senders}.

        @return: its standard output.
        """
        done = subprocess.run(
            [sys.executable, script("fcmxmpp"), "senders", *arguments],
            cwd=self.directory,
            env=childEnvironment(FCM_SENDERS=str(self.senders)),
            stdout=subprocess.PIPE,
            timeout=PATIENCE,
            check=True,
        )
        return done.stdout.decode()

    def ended(self, child: Child, number: int = signal.SIGTERM) -> None:
        """
        At the signal the process ends in order.
        """
        self.assertTrue(child.running(), child.err)
        self.assertEqual(0, child.stop(number), child.err)
        self.assertNotIn("Traceback", child.err)
        self.assertNotIn("#critical]", child.err)

    def port(self, child: Child, who: str = "app servers") -> int:
        """
        Where it listens.
        """
        return int(child.until(f"{who} connect to port ([0-9]+) of ")[1])

    def login(self, port: int, *, senderID: str = "123456789", key: str = "trial/server-key.txt") -> Child:
        """
        Start an app server, and wait until it knows whether it is let in.
        """
        child = self.start(
            "fcm-xmpp",
            "--endpoint",
            f"tls:localhost:{port}:trustRoots=trial/certs",
            "--sender-id",
            senderID,
            "--server-key-file",
            key,
        )
        child.until("is logged in\n|not-authorized")
        return child

    def test_firstTry(self) -> None:
        """
        C{--self-signed} is enough: an app server logs in with the very line
        that was told, and a client that trusts the file is answered over
        HTTP, by each name that devices look for.
        """
        child = self.start(
            "fcm-connection-server",
            *("--self-signed", "trial"),
            *("--xmpp", "tls:0:interface=127.0.0.1", "--devices", "tls:0:interface=127.0.0.1"),
            *("--http", "tls:0:interface=127.0.0.1"),
        )
        line = child.until("an app server: twistd -n (fcm-xmpp .*)\n")[1]
        child.until("NODE_EXTRA_CA_CERTS")
        appServer = self.start(*shlex.split(line))
        appServer.until("is logged in\n")
        child.until("an app server of sender 123456789 logged in from 127.0.0.1")
        context = ssl.create_default_context(cafile=str(self.directory / "trial" / "certs" / "ca.pem"))
        for who, names in (
            ("devices", ("mtalk.google.com", "localhost")),
            ("check-ins and registrations", ("fcmregistrations.googleapis.com", "127.0.0.1")),
        ):
            for name in names:
                with (
                    socket.create_connection(("127.0.0.1", self.port(child, who)), PATIENCE) as plain,
                    context.wrap_socket(plain, server_hostname=name) as secure,
                ):
                    self.assertIsNotNone(secure.version())
        self.ended(child)
        self.assertIn("draining an app server of sender 123456789", child.err)
        self.ended(appServer)
        key = (self.directory / "trial" / "server-key.txt").read_text().strip()
        for each in (child, appServer):
            self.assertNotIn(key, each.err + each.out)

    def test_senders(self) -> None:
        """
        A sender that is added is let in from SIGHUP on, with either of its
        keys; one whose key was removed is put out, and logs in with the other;
        a broken file changes nothing.
        """
        child = self.start(
            "fcm-connection-server",
            *("--self-signed", "trial", "--xmpp", "tls:0:interface=127.0.0.1"),
            *("--senders", str(self.senders)),
        )
        port = self.port(child)
        old = self.directory / "old.txt"
        old.write_text(self.command("add", "77"))
        refused = self.login(port, senderID="77", key="old.txt")
        self.assertIn("not-authorized", refused.err)
        self.ended(refused)
        child.process.send_signal(signal.SIGHUP)
        child.until(f"got SIGHUP: {self.senders} has 2 senders\n")
        appServer = self.login(port, senderID="77", key="old.txt")
        self.assertIn("is logged in\n", appServer.err)

        new = self.directory / "new.txt"
        new.write_text(self.command("add", "77"))
        self.command("remove", "77", "--key", "1")
        self.senders.rename(self.directory / "aside")
        child.process.send_signal(signal.SIGHUP)
        child.until("cannot be read: No such file or directory; the senders stay as they were\n")
        self.assertTrue(appServer.running())
        (self.directory / "aside").rename(self.senders)
        child.process.send_signal(signal.SIGHUP)
        child.until("has 2 senders; closing the connections of 77, who lost a key\n")
        appServer.until("not-authorized")
        self.ended(appServer)
        again = self.login(port, senderID="77", key="new.txt")
        self.assertIn("is logged in\n", again.err)
        self.ended(child, signal.SIGINT)
        self.ended(again)

    def test_portTaken(self) -> None:
        """
        A port that is taken is said in one line, with the exit status 1; a
        daemon has it in its log, and who starts it is told.
        """
        taken = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(taken.close)
        where = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
        given = ("fcm-connection-server", "--xmpp", where, "--senders", str(self.senders))
        child = self.start(*given)
        self.assertEqual(1, child.end())
        self.assertEqual(1, child.err.count(f"--xmpp {where}: cannot listen: Address already in use\n"))
        self.assertNotIn("Traceback", child.err)
        daemon = self.start(*given, options=("--logfile=the.log",))
        self.assertEqual(1, daemon.end())
        self.assertIn("CannotListenError", daemon.err)
        self.assertIn("cannot listen: Address already in use\n", (self.directory / "the.log").read_text())

    def test_wrongUses(self) -> None:
        """
        Whatever is wrong with the command line: one line, and the exit status
        1.
        """
        wrong = self.directory / "wrong.toml"
        wrong.write_text("[senders.1]\n")
        children = [
            (self.start("fcm-connection-server", *arguments), expected)
            for arguments, expected in (
                ((), "nothing to listen on: .*--self-signed DIR alone does everything"),
                (("--xmpp", PLAIN, "--senders", str(wrong)), r"--senders .*: \[senders.1\] needs keys: .*"),
                (("--xmpp", "tcp:1", "--senders", "x"), "--xmpp tcp:1 would send server keys unencrypted .*"),
            )
        ]
        for child, expected in children:
            self.assertEqual(1, child.end(), child.err)
            self.assertRegex(child.err, f"^twistd fcm-connection-server: {expected}\n$")
            self.assertEqual("", child.out)

    def test_twist(self) -> None:
        """
        It runs under C{twist}, too.
        """
        given = ("fcm-connection-server", "--xmpp", "unix:sock", "--senders", str(self.senders))
        child = Child([sys.executable, script("twist"), *given], self.directory, childEnvironment())
        self.addCleanup(child.cleanUp)
        # Its log is on standard output, in JSON.
        child.until("Starting reactor", "out")
        child.process.send_signal(signal.SIGHUP)
        child.until("got SIGHUP", "out")
        self.assertEqual(0, child.stop(), child.tail())

    def test_help(self) -> None:
        """
        The help names every option and where a setting comes from.
        """
        child = self.start("fcm-connection-server", "--help")
        self.assertEqual(0, child.end(), child.err)
        for name, *_ in [*ServerOptions.optParameters, *ServerOptions.optFlags]:
            self.assertIn(f"--{name}", child.out)
        for variable in ("FCM_SENDERS", "FCM_STORE"):
            self.assertIn(variable, child.out)
