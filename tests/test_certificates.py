"""
Tests for L{fcmxmpp.certificates}; clients that trust them are in
test_servercommandline.py.
"""

from __future__ import annotations

import datetime
import shutil
import stat
import tempfile
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.certificates import GOOGLES, LocalCertificates, selfSigned


NOW = datetime.datetime(2031, 5, 6, tzinfo=datetime.timezone.utc)
DAY = datetime.timedelta(days=1)


class CertificatesCase(SynchronousTestCase):
    """
    Tests with a directory of their own.
    """

    def setUp(self) -> None:
        """
        Have a directory.
        """
        self.parent = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.parent)
        self.directory = self.parent / "trial"

    def prepare(self, now: datetime.datetime = NOW, host: str = "host.example") -> bool:
        """
        Make the certificates of the directory, as a process does at its start.
        """
        self.certificates = LocalCertificates(str(self.directory), lambda: host)
        return self.certificates.prepare(now)

    def mode(self, name: str) -> int:
        """
        The permissions of a file.
        """
        return stat.S_IMODE((self.directory / name).stat().st_mode)

    def contents(self) -> dict[str, bytes]:
        """
        What is in the directory.
        """
        return {
            str(path.relative_to(self.directory)): path.read_bytes()
            for path in self.directory.rglob("*")
            if path.is_file()
        }

    def server(self) -> x509.Certificate:
        """
        The server certificate.
        """
        return x509.load_pem_x509_certificate(self.certificates.certificate.read_bytes())

    def authority(self) -> x509.Certificate:
        """
        The authority's.
        """
        return x509.load_pem_x509_certificate(self.certificates.authority.read_bytes())


class MakingTests(CertificatesCase):
    """
    L{LocalCertificates.prepare} makes an authority and a server certificate.
    """

    def test_files(self) -> None:
        """
        Nobody else may enter the directory or read a private key, and who is
        given the directory to trust finds the authority's certificate alone.
        """
        self.assertTrue(self.prepare())
        self.assertEqual({"ca-key.pem", "certs/ca.pem", "server-key.pem", "server.pem"}, set(self.contents()))
        self.assertEqual(0o700, stat.S_IMODE(self.directory.stat().st_mode))
        self.assertEqual((0o600, 0o600), (self.mode("ca-key.pem"), self.mode("server-key.pem")))
        self.assertNotIn(b"PRIVATE", self.certificates.authority.read_bytes())
        self.assertNotIn(b"PRIVATE", self.certificates.certificate.read_bytes())

    def test_names(self) -> None:
        """
        The server certificate is for this machine by all its names, and for
        those by which devices look for Google's servers.
        """
        self.prepare()
        names = self.server().extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertEqual(
            ["localhost", "host.example", *GOOGLES],
            names.get_values_for_type(x509.DNSName),
        )
        self.assertIn("mtalk.google.com", GOOGLES)
        self.assertEqual(
            [ip_address("127.0.0.1"), ip_address("::1")], names.get_values_for_type(x509.IPAddress)
        )

    def test_oddHostNames(self) -> None:
        """
        A machine without a name, or with one that cannot stand in a
        certificate, gets one for the other names.
        """
        for host in ("", "localhost", "d\u00f6ner"):
            self.prepare(host=host)
            names = self.server().extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            self.assertEqual(["localhost", *GOOGLES], names.get_values_for_type(x509.DNSName), host)

    def test_chain(self) -> None:
        """
        The authority signs certificates and is no server; the server
        certificate is signed by it, is no authority, and has its key beside it.
        """
        self.prepare()
        authority, server = self.authority(), self.server()
        server.verify_directly_issued_by(authority)
        constraints = [
            each.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
            for each in (authority, server)
        ]
        self.assertEqual([True, False], constraints)
        usage = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        self.assertEqual([ExtendedKeyUsageOID.SERVER_AUTH], list(usage))
        key = load_pem_private_key(self.certificates.key.read_bytes(), None)
        self.assertEqual(server.public_key(), key.public_key())

    def test_noDirectory(self) -> None:
        """
        Only the last part of the path is made.
        """
        self.directory = self.parent / "no" / "such"
        self.assertRaises(FileNotFoundError, self.prepare)


class NextStartTests(CertificatesCase):
    """
    What is there is used again while it is good.
    """

    def test_reused(self) -> None:
        """
        At the next start everything is as it was.
        """
        self.prepare()
        before = self.contents()
        self.assertFalse(self.prepare(NOW + 100 * DAY))
        self.assertEqual(before, self.contents())

    def test_renewed(self) -> None:
        """
        A server certificate that has less than a week left is replaced, by one
        of the same authority, which clients trust already.
        """
        self.prepare()
        before = self.contents()
        end = self.server().not_valid_after_utc
        self.assertFalse(self.prepare(end - 7 * DAY - datetime.timedelta(hours=1)))
        self.assertEqual(before, self.contents())
        self.assertFalse(self.prepare(end - 6 * DAY))
        changed = {name for name, content in self.contents().items() if content != before[name]}
        self.assertEqual({"server-key.pem", "server.pem"}, changed)
        self.assertGreater(self.server().not_valid_after_utc, end)
        self.server().verify_directly_issued_by(self.authority())

    def test_authorityRenewed(self) -> None:
        """
        An authority that would end before its server certificate is replaced,
        and that is told, because clients have to trust the new one.
        """
        self.prepare()
        end = self.authority().not_valid_after_utc
        self.assertTrue(self.prepare(end - 300 * DAY))
        self.assertGreater(self.authority().not_valid_after_utc, end)
        self.server().verify_directly_issued_by(self.authority())

    def test_otherHost(self) -> None:
        """
        A machine that is called otherwise now gets a certificate for that.
        """
        self.prepare()
        self.assertFalse(self.prepare(host="other.example"))
        names = self.server().extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertIn("other.example", names.get_values_for_type(x509.DNSName))

    def test_halfWritten(self) -> None:
        """
        What does not belong together, as after a crash between two files, is
        made anew: of the server alone if the authority is whole.
        """
        self.prepare()
        first = self.contents()
        self.directory = self.parent / "other"
        self.prepare()
        for name, isNew in (("server-key.pem", False), ("server.pem", False), ("ca-key.pem", True)):
            (self.directory / name).write_bytes(first[name])
            self.assertEqual(isNew, self.prepare(), name)
            self.server().verify_directly_issued_by(self.authority())
            key = load_pem_private_key(self.certificates.key.read_bytes(), None)
            self.assertEqual(self.server().public_key(), key.public_key())

    def test_strangersPair(self) -> None:
        """
        A server certificate that belongs to its key, but is by another
        authority, is replaced.
        """
        self.prepare()
        first = self.contents()
        self.directory = self.parent / "other"
        self.prepare()
        for name in ("server-key.pem", "server.pem"):
            (self.directory / name).write_bytes(first[name])
        self.assertFalse(self.prepare())
        self.server().verify_directly_issued_by(self.authority())

    def test_missing(self) -> None:
        """
        A file that is gone is made anew, with what depends on it.
        """
        for name in ("ca-key.pem", "certs/ca.pem", "server-key.pem", "server.pem"):
            self.prepare()
            (self.directory / name).unlink()
            self.assertEqual("ca" in name, self.prepare(), name)
            self.server().verify_directly_issued_by(self.authority())

    def test_notOurs(self) -> None:
        """
        A file that is something else is named, and not overwritten.
        """
        for name, what in (
            ("ca-key.pem", "private key"),
            ("certs/ca.pem", "certificate"),
            ("server-key.pem", "private key"),
            ("server.pem", "certificate"),
        ):
            self.prepare()
            path = self.directory / name
            path.write_bytes(b"not what it is called\n")
            error = self.assertRaises(ValueError, self.prepare)
            self.assertIn(f"{path} is no {what}", str(error))
            self.assertEqual(b"not what it is called\n", path.read_bytes())
            path.unlink()


class SelfSignedTests(SynchronousTestCase):
    """
    L{selfSigned} makes what C{--embedded} listens with.
    """

    def test_selfSigned(self) -> None:
        """
        It is for localhost, is its own authority, and no two have one key.
        """
        one, other = (selfSigned().original.to_cryptography() for _ in range(2))
        one.verify_directly_issued_by(one)
        names = one.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertEqual(["localhost"], names.get_values_for_type(x509.DNSName))
        self.assertNotEqual(one.public_key(), other.public_key())
