"""
Tests for L{fcmxmpp.embedded}; over real sockets in test_loopback.py and
test_commandline.py.
"""

from __future__ import annotations

import stat
from pathlib import Path

from cryptography import x509
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from fcmxmpp.embedded import DeviceThatTalks, EmbeddedConnectionServer
from fcmxmpp.tap import Options


class EmbeddedConnectionServerTests(SynchronousTestCase):
    """
    L{EmbeddedConnectionServer} is a connection server with all that it takes.
    """

    def setUp(self) -> None:
        """
        Start one.
        """
        self.reactor = MemoryReactorClock()
        self.embedded = EmbeddedConnectionServer(self.reactor, "123456789")
        self.embedded.startService()
        self.directory = self.embedded.directory
        self.stopped = False
        self.addCleanup(self.stop)

    def stop(self) -> None:
        """
        Stop it, once.
        """
        if not self.stopped:
            self.stopped = True
            self.successResultOf(self.embedded.stopService())

    def test_interface(self) -> None:
        """
        It is the endpoint that connects to it.
        """
        verifyObject(IStreamClientEndpoint, self.embedded)

    def test_loopback(self) -> None:
        """
        It listens on loopback only.
        """
        self.assertEqual(["127.0.0.1"] * 3, [server[4] for server in self.reactor.sslServers])

    def test_files(self) -> None:
        """
        Nobody else may read the key or enter the directory.
        """
        key = self.directory / "server-key.txt"
        self.assertEqual(0o600, stat.S_IMODE(key.stat().st_mode))
        self.assertEqual(0o700, stat.S_IMODE(self.directory.stat().st_mode))
        self.assertEqual(self.embedded.credentials.serverKey + "\n", key.read_text())

    def test_certificate(self) -> None:
        """
        The certificate is for localhost, and its private key is in no file.
        """
        (path,) = (self.directory / "certs").iterdir()
        pem = path.read_bytes()
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertEqual(["localhost"], names.get_values_for_type(x509.DNSName))
        for file in self.directory.rglob("*"):
            if file.is_file():
                self.assertNotIn(b"PRIVATE KEY", file.read_bytes())

    def test_description(self) -> None:
        """
        What it tells others to use are options that work, and no secret.
        """
        description = self.embedded.description
        self.assertNotIn(self.embedded.credentials.serverKey, description)
        options = Options()
        options.environ = {}
        options.parseOptions(description.split())
        credentials = options.settings.credentials
        assert credentials is not None
        self.assertEqual(
            ("123456789", self.embedded.credentials.serverKey), (credentials.senderID, credentials.serverKey)
        )

    def test_keysDiffer(self) -> None:
        """
        Each has a key of its own, that nobody guesses.
        """
        other = EmbeddedConnectionServer(self.reactor, "123456789")
        self.assertNotEqual(self.embedded.credentials.serverKey, other.credentials.serverKey)
        self.assertGreater(len(other.credentials.serverKey), 20)

    def test_cannotListen(self) -> None:
        """
        When there is no port to be had, that is logged, and the files are gone
        at the stop all the same.
        """

        def listenSSL(*_: object, **__: object) -> None:
            raise CannotListenError("127.0.0.1", 0, OSError("too many open files"))

        self.patch(self.reactor, "listenSSL", listenSSL)
        other = EmbeddedConnectionServer(self.reactor, "123456789")
        other.startService()
        self.assertEqual(3, len(self.flushLoggedErrors(CannotListenError)))
        self.successResultOf(other.stopService())
        self.assertFalse(other.directory.exists())

    def test_stop(self) -> None:
        """
        When it has stopped, its files are gone.
        """
        self.stop()
        self.assertFalse(Path(self.directory).exists())


class DeviceThatTalksTests(SynchronousTestCase):
    """
    L{DeviceThatTalks} sends now and then.
    """

    def test_talks(self) -> None:
        """
        It sends at once, then every ten seconds, until it is stopped.
        """
        clock = Clock()
        embedded = EmbeddedConnectionServer(clock, "123456789")
        device = DeviceThatTalks(embedded, clock, iter("abcdef").__next__)
        device.startService()
        clock.pump([5] * 4)
        simulated = device._device
        self.assertEqual(["a", "b", "c"], simulated.stored)
        device.stopService()
        self.assertEqual([], clock.getDelayedCalls())
