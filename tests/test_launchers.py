"""
The launchers of tap/ run.
"""

from __future__ import annotations

import configparser
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.tap import Options
from tests.checkout import CHECKOUT, childEnvironment, script


class TacTests(SynchronousTestCase):
    """
    C{twistd -n -y tap/fcm-xmpp.tac}.
    """

    def test_runs(self) -> None:
        """
        The application handles the message of its simulated device, and stops
        when it is told to.
        """
        directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, directory)
        process = subprocess.Popen(
            [script("twistd"), "-n", "--pidfile=", "-y", str(CHECKOUT / "tap" / "fcm-xmpp.tac")],
            cwd=directory,
            env=childEnvironment(),
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
        self.assertTrue(any("Journal#info] handled" in line for line in lines), "".join(lines))
        # twistd without our plugin ends by the signal that it was stopped by.
        self.assertEqual(-signal.SIGTERM, process.wait(timeout=20))


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
