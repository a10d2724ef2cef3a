"""
Tests for L{fcmxmpp.servertap}, L{fcmxmpp.serveroptions} and
L{fcmxmpp.certificates}; the whole as processes in test_device_peers.py.
"""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path
from shutil import rmtree
from typing import Any

from cryptography import x509
from twisted.internet.error import CannotListenError
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.certificates import GOOGLES, LocalCertificates
from fcmxmpp.server.senders import hashKey
from fcmxmpp.serveroptions import ServerOptions
from fcmxmpp.servertap import makeService
from tests.certificates import expectDeprecated
from tests.checkout import childEnvironment, script
from tests.children import Child


KEY = "a-key-that-nobody-guesses"


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
        self.senders.write_text(f'[senders.1]\nkeys = ["{hashKey(KEY, os.urandom)}"]\n')
        self.trial = str(self.directory / "trial")

    def options(self, *arguments: str, **environment: str) -> Any:
        """
        The options that these arguments are.
        """
        options = ServerOptions()
        options.environ = environment
        options.parseOptions(list(arguments))
        return options

    def wrong(self, *arguments: str, **environment: str) -> str:
        """
        What is said of wrong arguments.
        """
        error = self.assertRaises(SystemExit, self.options, *arguments, **environment)
        said = str(error)
        self.assertTrue(said.startswith("twistd fcm-connection-server: "), said)
        self.assertNotIn("\n", said)
        return said


class OptionTests(ServerCase):
    """
    L{ServerOptions}.
    """

    def test_selfSigned(self) -> None:
        """
        With a directory alone everything is made: certificates, a first sender,
        and ports on this machine only.
        """
        settings = self.options("--self-signed", self.trial).settings
        for port, endpoint in ((5235, settings.xmpp), (5228, settings.devices), (8443, settings.http)):
            self.assertTrue(endpoint.startswith(f"ssl:{port}:interface=127.0.0.1:privateKey="), endpoint)
        key = Path(self.trial, "server-key.txt")
        self.assertEqual(0o600, key.stat().st_mode & 0o777)
        self.assertEqual(0o700, Path(self.trial).stat().st_mode & 0o777)
        before = key.read_text()
        self.options("--self-signed", self.trial)
        self.assertEqual(before, key.read_text())

    def test_sources(self) -> None:
        """
        A setting comes from its option, the environment or the file.
        """
        config = self.directory / "config.toml"
        config.write_text(
            f'xmpp = "tcp:1:interface=127.0.0.1"\nreceipts = true\nsenders = "{self.senders}"\ngrace = 3\n'
        )
        settings = self.options("--config", str(config), FCM_STORE="sqlite:x.db").settings
        self.assertEqual(
            ("tcp:1:interface=127.0.0.1", None, True, str(self.senders), 3.0, os.path.abspath("x.db")),
            (
                settings.xmpp,
                settings.devices,
                settings.receipts,
                settings.senders,
                settings.grace,
                settings.store,
            ),
        )
        settings = self.options("--xmpp", "tcp:2:interface=127.0.0.1", FCM_SENDERS="s.toml").settings
        self.assertEqual(os.path.abspath("s.toml"), settings.senders)

    def test_wrong(self) -> None:
        """
        What is wrong or missing is said in one line that says what to do.
        """
        here = ["--senders", str(self.senders)]
        for arguments, expected in (
            ([], "--self-signed DIR alone does everything"),
            (["--http", "tcp:1", *here], "nothing to listen on"),
            (["--xmpp", "tcp:1:interface=127.0.0.1"], "fcmxmpp senders add"),
            (["--xmpp", "tls:1", *here], "needs --self-signed"),
            (["--xmpp", "tcp:1", *here], "server keys unencrypted"),
            (["--devices", "tcp:1:interface=192.0.2.1", *here], "secrets of devices unencrypted"),
            (["--xmpp", "tls:1", "--grace", "-1", *here], "--grace"),
            (["--xmpp", "tls:1", "--store", "x", *here], "--store: a store has to be"),
            (["--self-signed", str(self.senders)], "--self-signed"),
            (["more"], "unexpected argument"),
            (["--nonsense"], "nonsense"),
        ):
            self.assertIn(expected, self.wrong(*arguments))
        # Behind a proxy, HTTP may be plain.
        self.options("--devices", "tls:0", "--http", "tcp:1", "--self-signed", self.trial, *here)

    def test_ownSenders(self) -> None:
        """
        Who has senders gets none made.
        """
        settings = self.options("--self-signed", self.trial, "--senders", str(self.senders)).settings
        self.assertIsNone(settings.trial.keyFile)
        self.assertFalse(Path(self.trial, "server-key.txt").exists())


class CertificateTests(ServerCase):
    """
    L{LocalCertificates}.
    """

    def test_reused(self) -> None:
        """
        They are made once, renewed before their end, and made anew with the
        authority; the names are this machine's and those that devices look for.
        """
        certificates = LocalCertificates(self.trial)
        certificates.prepare()
        before = certificates.certificate.read_bytes()
        certificate = x509.load_pem_x509_certificate(before)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertLessEqual({"localhost", *GOOGLES}, set(names.get_values_for_type(x509.DNSName)))
        certificates.prepare()
        self.assertEqual(before, certificates.certificate.read_bytes())
        self.patch(certificates, "_isGood", lambda: False)
        certificates.prepare()
        self.assertNotEqual(before, certificates.certificate.read_bytes())
        (Path(self.trial) / "ca-key.pem").unlink()
        authority = certificates.authority.read_bytes()
        LocalCertificates(self.trial).prepare()
        self.assertNotEqual(authority, certificates.authority.read_bytes())
        for name in ("ca-key.pem", "server-key.pem"):
            self.assertEqual(0o600, Path(self.trial, name).stat().st_mode & 0o777)


class ServiceTests(ServerCase):
    """
    L{makeService}.
    """

    def service(self, *arguments: str) -> tuple[Any, MemoryReactorClock]:
        """
        The service for these arguments, and its reactor.
        """
        reactor = MemoryReactorClock()
        reactor.advance(1_700_000_000)
        return makeService(self.options(*arguments, "--senders", str(self.senders)), reactor), reactor

    def test_ports(self) -> None:
        """
        It listens where it was told, and stops without a trace.
        """
        expectDeprecated(self)
        for name, count in (("--xmpp", 1), ("--devices", 1)):
            service, reactor = self.service("--self-signed", self.trial, name, "tls:1")
            service.privilegedStartService()
            service.startService()
            self.assertEqual(count, len(reactor.sslServers))
            stopped = service.stopService()
            reactor.advance(1)
            self.successResultOf(stopped)

    def test_cannotListen(self) -> None:
        """
        A port that cannot be had ends the start, with one line.
        """
        expectDeprecated(self)
        service, reactor = self.service("--xmpp", "tcp:1:interface=127.0.0.1")

        def listenTCP(*_: object, **__: object) -> None:
            raise CannotListenError("127.0.0.1", 1, OSError(98, "Address already in use"))

        self.patch(reactor, "listenTCP", listenTCP)
        error = self.assertRaises(SystemExit, service.privilegedStartService)
        self.assertEqual(1, error.code)

    def test_wrongFiles(self) -> None:
        """
        A senders file or an endpoint that is none ends it with one line.
        """
        here = "tcp:1:interface=127.0.0.1"
        self.senders.write_text("x")
        said = str(self.assertRaises(SystemExit, self.service, "--xmpp", here))
        self.assertIn("it is not TOML", said)
        self.senders.unlink()
        said = str(self.assertRaises(SystemExit, self.service, "--xmpp", here))
        self.assertIn("cannot be read", said)
        self.senders.write_text("")
        said = str(self.assertRaises(SystemExit, self.service, "--xmpp", "ssl:1:privateKey=nowhere.pem"))
        self.assertIn("--xmpp has to look like ssl:PORT", said)
        self.assertIn("No such file", said)


class ProcessTests(ServerCase):
    """
    C{twistd fcm-connection-server} as a process.
    """

    def start(self, *arguments: str) -> Child:
        """
        Start it.
        """
        child = Child(
            [script("twistd"), "-n", "--pidfile=", "fcm-connection-server", *arguments],
            self.directory,
            childEnvironment(),
        )
        self.addCleanup(child.cleanUp)
        return child

    def test_SIGHUP(self) -> None:
        """
        At SIGHUP the senders file is read again; a broken one changes nothing;
        it ends at SIGTERM with the exit status 0.
        """
        child = self.start("--xmpp", "tcp:0:interface=127.0.0.1", "--senders", str(self.senders))
        child.until("app servers connect to port [0-9]+ of 127.0.0.1\n")
        child.until("there is no --store")
        good = self.senders.read_text()
        self.senders.write_text("broken")
        child.process.send_signal(signal.SIGHUP)
        child.until("it is not TOML.*those that were there stay\n")
        self.senders.write_text(good.replace("[senders.1]", "[senders.2]"))
        child.process.send_signal(signal.SIGHUP)
        child.until("was read again: 1 senders, 1 are gone\n")
        self.assertEqual(0, child.stop())
        self.assertIn("stopped; upstream: 0 from devices", child.err)

    def test_portTaken(self) -> None:
        """
        A port that is taken is said in one line, with the exit status 1.
        """
        first = self.start("--xmpp", "tcp:0:interface=127.0.0.1", "--senders", str(self.senders))
        port = first.until("app servers connect to port ([0-9]+) ")[1]
        second = self.start("--xmpp", f"tcp:{port}:interface=127.0.0.1", "--senders", str(self.senders))
        self.assertEqual(1, second.end())
        self.assertIn(
            f"--xmpp tcp:{port}:interface=127.0.0.1: cannot listen: Address already in use", second.err
        )
        self.assertNotIn("Traceback", second.err)
        self.assertEqual(0, first.stop())
