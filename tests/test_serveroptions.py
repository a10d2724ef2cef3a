"""
Tests for L{fcmxmpp.serveroptions}.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.endpoints import serverFromString
from twisted.internet.testing import MemoryReactor
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.server.registry import Registry
from fcmxmpp.server.senders import readSenders
from fcmxmpp.serveroptions import ServerOptions, ServerSettings
from tests.certificates import expectDeprecated


XMPP = "ssl:5235:privateKey=key.pem:certKey=cert.pem"
PLAIN = ("tcp:5235", "tcp:5235:interface=192.0.2.1", "tcp:5235:192.0.2.1", "haproxy:tcp:5235")
LOCAL = (
    "tcp:5235:interface=127.0.0.1",
    "tcp:5235:127.0.0.1",
    r"tcp:5235:interface=\:\:1",
    "unix:/run/socket",
)


class ServerOptionsCase(SynchronousTestCase):
    """
    Tests that read options.
    """

    def setUp(self) -> None:
        """
        Have a directory.
        """
        self.directory = Path(tempfile.mkdtemp()).resolve()
        self.addCleanup(shutil.rmtree, self.directory)
        self.trial = self.directory / "trial"
        self.senders = ("--senders", "/etc/senders.toml")

    def write(self, name: str, text: str) -> str:
        """
        Write a file.
        """
        path = self.directory / name
        path.write_text(text)
        return str(path)

    def settings(self, *arguments: str, parent: Any = None, **environ: str) -> ServerSettings:
        """
        Read options, for what they come to.
        """
        options = ServerOptions()
        options.environ = environ
        options.parent = parent
        options.parseOptions(list(arguments))
        return options.settings

    def refused(self, *arguments: str, **environ: str) -> str:
        """
        These options are refused, with one line.
        """
        error = self.assertRaises(SystemExit, self.settings, *arguments, **environ)
        line = str(error.code)
        self.assertTrue(line.startswith("twistd fcm-connection-server: "), line)
        self.assertEqual(1, len(line.splitlines()))
        return line


class PrecedenceTests(ServerOptionsCase):
    """
    Option, environment, file, default.
    """

    def test_defaults(self) -> None:
        """
        What nobody says has a default.
        """
        settings = self.settings("--xmpp", XMPP, *self.senders)
        self.assertEqual((XMPP, None, None), (settings.xmpp, settings.devices, settings.http))
        self.assertEqual((None, 10.0, False), (settings.store, settings.grace, settings.receipts))
        self.assertEqual((None, False, False), (settings.trial, settings.isOpen, settings.daemon))

    def test_file(self) -> None:
        """
        Every setting may stand in the file.
        """
        config = self.write(
            "config.toml",
            f'xmpp = "{XMPP}"\ndevices = "ssl:5228:privateKey=k:certKey=c"\nreceipts = true\ngrace = 2.5\n'
            'http = "tcp:8080:interface=127.0.0.1"\nsenders = "/in/file"\nstore = "sqlite:/in/file.db"\n',
        )
        settings = self.settings("--config", config)
        self.assertEqual(
            (XMPP, "ssl:5228:privateKey=k:certKey=c", "tcp:8080:interface=127.0.0.1"),
            (settings.xmpp, settings.devices, settings.http),
        )
        self.assertEqual(
            ("/in/file", "/in/file.db", True, 2.5),
            (settings.senders, settings.store, settings.receipts, settings.grace),
        )

    def test_precedence(self) -> None:
        """
        An option comes before a variable, and that before the file.
        """
        config = self.write(
            "config.toml", f'xmpp = "{XMPP}"\nsenders = "/in/file"\nstore = "sqlite:/in/file.db"'
        )
        variables = {"FCM_SENDERS": "/in/variable", "FCM_STORE": "sqlite:/in/variable.db"}
        settings = self.settings("--config", config, **variables)
        self.assertEqual(("/in/variable", "/in/variable.db"), (settings.senders, settings.store))
        given = ("--senders", "/in/option", "--store", "sqlite:/in/option.db", "--xmpp", "unix:/socket")
        settings = self.settings("--config", config, *given, **variables)
        self.assertEqual(
            ("unix:/socket", "/in/option", "/in/option.db"), (settings.xmpp, settings.senders, settings.store)
        )

    def test_selfSignedInFile(self) -> None:
        """
        So may what is for a first try.
        """
        config = self.write("config.toml", f'self-signed = "{self.trial}"\n')
        self.assertIsNotNone(self.settings("--config", config).trial)

    def test_relativeSenders(self) -> None:
        """
        The senders file is meant from where the program is started, wherever
        twistd goes to afterwards.
        """
        settings = self.settings("--xmpp", XMPP, "--senders", "senders.toml")
        self.assertEqual(os.path.abspath("senders.toml"), settings.senders)

    def test_log(self) -> None:
        """
        The log goes to standard error unless it is said where; then what has
        to be seen at the start is printed, too.  A daemon prints nothing.
        """
        for parent, announce, logger in (
            ({"nodaemon": True}, False, "fcmxmpp.tap.stderrLog"),
            ({"nodaemon": True, "logfile": "x"}, True, None),
            ({"nodaemon": True, "logger": "y"}, True, "y"),
            ({"nodaemon": False}, False, None),
        ):
            settings = self.settings("--xmpp", XMPP, *self.senders, parent=parent)
            self.assertEqual((announce, logger), (settings.announce, parent.get("logger")))
            self.assertEqual(not parent["nodaemon"], settings.daemon)


class RefusedTests(ServerOptionsCase):
    """
    What makes no sense is told in one line.
    """

    def test_nothing(self) -> None:
        """
        Who gives nothing to listen on, or HTTP alone, is told what to do.
        """
        for arguments in ((), ("--http", "tcp:8080:interface=127.0.0.1"), self.senders):
            line = self.refused(*arguments)
            self.assertIn("--xmpp", line)
            self.assertIn("--self-signed DIR", line)

    def test_noSenders(self) -> None:
        """
        Who gives no senders is told how to make the file.
        """
        self.assertIn("fcmxmpp senders add", self.refused("--xmpp", XMPP))
        self.assertIn("fcmxmpp senders add", self.refused("--xmpp", XMPP, FCM_SENDERS=""))

    def test_wrong(self) -> None:
        """
        One of each other sort.
        """
        for arguments, expected in (
            (("--no-such-option",), "option --no-such-option not recognized"),
            (("word",), "unexpected argument 'word'"),
            (("--xmpp", XMPP, *self.senders, "--grace", "-1"), "--grace has to be 0 or more"),
            (("--xmpp", XMPP, *self.senders, "--grace", "soon"), "--grace has to be a number"),
            (("--xmpp", XMPP, *self.senders, "--store", "file.db"), "--store: a store has to be sqlite:PATH"),
            (("--config", self.write("c.toml", "port = 1")), "unknown setting 'port' in"),
            (("--config", self.write("d.toml", "receipts = 1")), "receipts has to be true or false in"),
            (("--config", "/no/such/file"), "cannot read --config: No such file or directory: /no/such/file"),
        ):
            self.assertIn(expected, self.refused(*arguments))

    def test_plain(self) -> None:
        """
        What other machines could overhear is refused where server keys and
        devices' secrets go over it, and allowed within this machine.
        """
        for description in PLAIN:
            self.assertIn("would send server keys unenc", self.refused("--xmpp", description, *self.senders))
            self.assertIn("secrets of devices", self.refused("--devices", description, *self.senders))
        for description in LOCAL:
            settings = self.settings("--xmpp", description, "--devices", description, *self.senders)
            self.assertEqual((description, description), (settings.xmpp, settings.devices))

    def test_plainHTTP(self) -> None:
        """
        HTTP may be plain, for a proxy; if other machines can reach it, that is
        to be told.
        """
        for descriptions, isOpen in ((PLAIN, True), (LOCAL, False), ((XMPP,), False)):
            for description in descriptions:
                settings = self.settings("--xmpp", XMPP, "--http", description, *self.senders)
                self.assertEqual((description, isOpen), (settings.http, settings.isOpen))

    def test_tls(self) -> None:
        """
        C{tls:} is for C{--self-signed}; with files of one's own it is called
        C{ssl:}.
        """
        for description in ("tls:5235", "5235"):
            self.assertIn("needs --self-signed", self.refused("--xmpp", description, *self.senders))
        for trial in ((), ("--self-signed", str(self.trial))):
            line = self.refused("--xmpp", "tls:1:privateKey=k:certKey=c", *self.senders, *trial)
            self.assertIn("it is ssl:1:privateKey=k:certKey=c", line)


class SelfSignedTests(ServerOptionsCase):
    """
    C{--self-signed} makes everything for a first try.
    """

    def key(self) -> str:
        """
        The first sender's key.
        """
        return (self.trial / "server-key.txt").read_text().rstrip("\n")

    def test_alone(self) -> None:
        """
        Alone it is enough: three ports for programs on this machine, with
        certificates, and a sender whose key is in a file that nobody else can
        read.
        """
        settings = self.settings("--self-signed", str(self.trial))
        files = f"privateKey={self.trial}/server-key.pem:certKey={self.trial}/server.pem"
        self.assertEqual(
            tuple(f"ssl:{port}:interface=127.0.0.1:{files}" for port in (5235, 5228, 8443)),
            (settings.xmpp, settings.devices, settings.http),
        )
        self.assertEqual(str(self.trial / "senders.toml"), settings.senders)
        registry = Registry(readSenders(Path(settings.senders).read_text()))
        self.assertTrue(registry.mayLogIn("123456789", self.key()))
        for name in ("senders.toml", "server-key.txt", "server-key.pem", "ca-key.pem"):
            self.assertEqual(0o600, stat.S_IMODE((self.trial / name).stat().st_mode), name)
        self.assertEqual(0o700, stat.S_IMODE(self.trial.stat().st_mode))
        assert settings.trial is not None
        self.assertEqual(
            (True, "123456789", self.trial / "server-key.txt"),
            (settings.trial.isNew, settings.trial.senderID, settings.trial.keyFile),
        )

    def test_again(self) -> None:
        """
        At the next start all is as it was, and senders that were added stay.
        """
        self.settings("--self-signed", str(self.trial))
        with (self.trial / "senders.toml").open("a") as file:
            file.write("# mine\n")
        before = {path: path.read_bytes() for path in self.trial.rglob("*") if path.is_file()}
        settings = self.settings("--self-signed", str(self.trial))
        self.assertEqual(before, {path: path.read_bytes() for path in before})
        assert settings.trial is not None
        self.assertFalse(settings.trial.isNew)

    def test_ownSenders(self) -> None:
        """
        With a senders file of one's own no sender is made.
        """
        settings = self.settings("--self-signed", str(self.trial), *self.senders)
        self.assertEqual("/etc/senders.toml", settings.senders)
        assert settings.trial is not None
        self.assertIsNone(settings.trial.senderID)
        self.assertFalse((self.trial / "senders.toml").exists())
        self.assertFalse((self.trial / "server-key.txt").exists())

    def test_endpoints(self) -> None:
        """
        An endpoint may leave its certificate out, or be a port; one that has a
        certificate keeps it; and what is not asked for is not there.
        """
        files = f"privateKey={self.trial}/server-key.pem:certKey={self.trial}/server.pem"
        for given, expected in (
            ("5235", f"ssl:5235:{files}"),
            ("tls:0", f"ssl:0:{files}"),
            ("ssl:1:interface=192.0.2.1", f"ssl:1:interface=192.0.2.1:{files}"),
            (XMPP, XMPP),
            ("tcp:1:interface=127.0.0.1", "tcp:1:interface=127.0.0.1"),
        ):
            settings = self.settings("--self-signed", str(self.trial), "--xmpp", given)
            self.assertEqual((expected, None, None), (settings.xmpp, settings.devices, settings.http))

    def test_oddPath(self) -> None:
        """
        The directory may be called anything.
        """
        expectDeprecated(self)
        self.trial = self.directory / "a:b=c\\d e"
        settings = self.settings("--self-signed", str(self.trial), "--xmpp", "0")
        # Reads both files.
        serverFromString(MemoryReactor(), str(settings.xmpp))

    def test_impossible(self) -> None:
        """
        A directory that cannot be made, or has something else in it, is told
        with the reason.
        """
        self.assertIn(
            "--self-signed /no/such/place: No such file or directory",
            self.refused("--self-signed", "/no/such/place"),
        )
        self.trial.mkdir()
        (self.trial / "certs").write_text("")
        self.assertIn(f"--self-signed {self.trial}: ", self.refused("--self-signed", str(self.trial)))
        (self.trial / "certs").unlink()
        self.settings("--self-signed", str(self.trial))
        (self.trial / "server.pem").write_text("no certificate")
        self.assertIn("server.pem is no certificate", self.refused("--self-signed", str(self.trial)))

    def test_refusedBefore(self) -> None:
        """
        What is refused for another reason leaves nothing behind.
        """
        for wrong in (("--grace", "x"), ("--store", "x")):
            self.refused("--self-signed", str(self.trial), *wrong)
            self.assertFalse(self.trial.exists())
