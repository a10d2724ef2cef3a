"""
The launchers of tap/ run.
"""

from __future__ import annotations

import configparser
import re
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
from contextlib import closing
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.serveroptions import ServerOptions
from fcmxmpp.store.browse import openStore
from fcmxmpp.tap import Options
from tests.checkout import CHECKOUT, childEnvironment, script
from tests.children import PATIENCE, Child


class TacTests(SynchronousTestCase):
    """
    C{twistd -n -y tap/fcm-xmpp.tac}.
    """

    def run_(self, directory: Path, **environ: str) -> str:
        """
        Run the application until it has handled the message of its simulated
        device, and then stop it.

        @return: its log.
        """
        process = subprocess.Popen(
            [script("twistd"), "-n", "--pidfile=", "-y", str(CHECKOUT / "tap" / "fcm-xmpp.tac")],
            cwd=directory,
            env=childEnvironment(**environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "Journal#info] handled" in line:
                process.send_signal(signal.SIGTERM)
        log = "".join(lines)
        self.assertIn("Journal#info] handled", log)
        # twistd without our plugin ends by the signal that it was stopped by.
        self.assertEqual(-signal.SIGTERM, process.wait(timeout=20))
        # The connection server was there to the end: nothing was lost.
        self.assertIn("stopped; upstream: 1 handled", log)
        self.assertNotIn("#warn]", log)
        self.assertNotIn("#error]", log)
        return log

    def directory(self) -> Path:
        """
        A directory of its own.
        """
        directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, directory)
        return directory

    def test_runs(self) -> None:
        """
        The application handles the message of its simulated device, and stops
        in order when it is told to.
        """
        self.assertIn("acknowledged when handled", self.run_(self.directory()))

    def test_store(self) -> None:
        """
        With FCM_STORE it keeps what comes in there, and has recorded all of it
        when it has stopped.
        """
        directory = self.directory()
        log = self.run_(directory, FCM_STORE="sqlite:fcm.db")
        self.assertIn("acknowledged when stored", log)
        with closing(openStore(str(directory / "fcm.db"))) as connection:
            for table, rows in (("inbox", 0), ("entrusted", 0), ("known", 1)):
                (found,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
                self.assertEqual(rows, found, table)

    def test_wrongStore(self) -> None:
        """
        What is no store is told in one line.
        """
        done = subprocess.run(
            [script("twistd"), "-n", "--pidfile=", "-y", str(CHECKOUT / "tap" / "fcm-xmpp.tac")],
            cwd=self.directory(),
            env=childEnvironment(FCM_STORE="fcm.db"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=20,
        )
        self.assertEqual(1, done.returncode)
        self.assertEqual("FCM_STORE: a store has to be sqlite:PATH", done.stdout.splitlines()[-1])
        self.assertNotIn("Traceback", done.stdout)


class ConnectionServerTests(SynchronousTestCase):
    """
    What there is for a connection server.
    """

    def setUp(self) -> None:
        """
        Have a directory, and the files of tap/ at hand.
        """
        self.directory = Path(tempfile.mkdtemp()).resolve()
        self.addCleanup(shutil.rmtree, self.directory)
        self.files = CHECKOUT / "tap"
        self.sample = self.files / "fcm-connection-server.toml"

    def options(self, *arguments: str) -> ServerOptions:
        """
        Read options.
        """
        options = ServerOptions()
        options.environ = {}
        options.parseOptions(arguments)
        return options

    def test_sampleConfiguration(self) -> None:
        """
        The sample configuration is one that the command line takes, and names
        every setting.
        """
        settings = self.options("--config", str(self.sample)).settings
        for port, endpoint in ((5235, settings.xmpp), (5228, settings.devices), (443, settings.http)):
            self.assertRegex(
                str(endpoint), f"^ssl:{port}:privateKey=/run/credentials/.*key.pem:certKey=.*cert"
            )
        self.assertIsNone(settings.trial)
        text = self.sample.read_text(encoding="utf-8")
        for name, *_ in [*ServerOptions.optParameters, *ServerOptions.optFlags]:
            if name != "config":
                self.assertRegex(text, f"(?m)^#?{name} = ")

    def test_unit(self) -> None:
        """
        The unit starts the program with the sample configuration, hands over
        the files that this names, gives app servers the time that they are
        promised, and has the senders read again.
        """
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.optionxform = str  # type: ignore[assignment, method-assign]
        text = (self.files / "fcm-connection-server.service").read_text(encoding="utf-8")
        unit.read_string(text)
        service = unit["Service"]
        words = service["ExecStart"].split()
        self.assertEqual(["-n", "--pidfile=", "fcm-connection-server", "--config"], words[1:5])
        self.assertEqual(f"/etc/fcm-connection-server/{self.sample.name}", words[5])
        settings = self.options("--config", str(self.sample)).settings
        self.assertGreater(int(service["TimeoutStopSec"]), settings.grace + 10)
        self.assertEqual("/bin/kill -HUP $MAINPID", service["ExecReload"])
        for name in re.findall("credentials/fcm-connection-server.service/([a-z.]+)", str(settings.xmpp)):
            self.assertIn(f"LoadCredential={name}:/etc/fcm-connection-server/{name}\n", text)
        self.assertEqual(f"sqlite:/var/lib/{service['StateDirectory']}/store.db", f"sqlite:{settings.store}")

    def test_tac(self) -> None:
        """
        The application runs, with a service of one's own, and ends in order.
        """
        config = self.directory / "config.toml"
        config.write_text('self-signed = "trial"\nxmpp = "tls:0:interface=127.0.0.1"\n')
        child = Child(
            [script("twistd"), "-n", "--pidfile=", "-y", str(self.files / "fcm-connection-server.tac")],
            self.directory,
            childEnvironment(FCM_CONFIG=str(config)),
        )
        self.addCleanup(child.cleanUp)
        port = child.until("app servers connect to port ([0-9]+) of 127.0.0.1", "out")[1]
        child.until("Hello#info] the connection server has started", "out")
        context = ssl.create_default_context(cafile=str(self.directory / "trial" / "certs" / "ca.pem"))
        with (
            socket.create_connection(("127.0.0.1", int(port)), PATIENCE) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            self.assertIsNotNone(secure.version())
        self.assertEqual(0, child.stop(), child.tail())
        self.assertIn("stopped; upstream: 0 from devices", child.out)
        self.assertNotIn("Traceback", child.out + child.err)


class ConfigurationTests(SynchronousTestCase):
    """
    The sample configuration and the unit.
    """

    def options(self, arguments: list[str]) -> Options:
        """
        Read options as they would be under systemd.
        """
        credentials = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, credentials)
        (credentials / "fcm-server-key").write_text("EXAMPLE-SERVER-KEY\n")
        options = Options()
        options.environ = {"CREDENTIALS_DIRECTORY": str(credentials)}
        options.parseOptions(arguments)
        return options

    def test_sampleConfiguration(self) -> None:
        """
        The sample configuration is one that the command line takes.
        """
        settings = self.options(["--config", str(CHECKOUT / "tap" / "fcm-xmpp.toml")]).settings
        self.assertEqual("tls:push.example.org:5235", settings.endpoint)
        self.assertEqual(60.0, settings.policy.handlerTimeout)

    def test_everythingIsInTheSample(self) -> None:
        """
        The sample names every setting, but those for trying things out.
        """
        text = (CHECKOUT / "tap" / "fcm-xmpp.toml").read_text(encoding="utf-8")
        for name, *_ in Options.optParameters:
            if name != "config":
                self.assertIn(f"{name} = ", text)

    def test_unit(self) -> None:
        """
        The unit starts the program with options that exist, hands the key over
        as a credential by the name that is looked for, and gives handlers the
        time that they are promised.
        """
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.optionxform = str  # type: ignore[assignment, method-assign]
        unit.read(CHECKOUT / "tap" / "fcm-xmpp.service", encoding="utf-8")
        service = unit["Service"]
        words = service["ExecStart"].split()
        self.assertEqual(["-n", "--pidfile=", "fcm-xmpp"], words[1:4])
        config = str(CHECKOUT / "tap" / "fcm-xmpp.toml")
        settings = self.options([config if w.endswith(".toml") else w for w in words[4:]]).settings
        assert settings.credentials is not None
        self.assertEqual("EXAMPLE-SERVER-KEY", settings.credentials.serverKey)
        self.assertEqual("fcm-server-key:/etc/fcm-xmpp/server-key", service["LoadCredential"])
        self.assertGreater(int(service["TimeoutStopSec"]), settings.grace + 10)
