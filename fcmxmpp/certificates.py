"""
Certificates for trying things out: an authority of one's own, and a server
certificate by it.
"""

from __future__ import annotations

import datetime
import socket
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from twisted.internet.ssl import PrivateCertificate

from fcmxmpp.files import replaceFile


__all__ = ["LocalCertificates", "selfSigned"]

#: The names by which devices look for Google's servers: who sends these to this
#: machine needs a certificate for them.
GOOGLES = (
    "mtalk.google.com",
    "android.clients.google.com",
    "device-provisioning.googleapis.com",
    "fcm.googleapis.com",
    "fcmregistrations.googleapis.com",
    "fcmtoken.googleapis.com",
    "firebaseinstallations.googleapis.com",
    "iid.googleapis.com",
)
#: Days for which an authority and a server certificate are good; browsers take no
#: longer ones.
_AUTHORITY_DAYS, _SERVER_DAYS = 3650, 390
#: Days before its end at which a server certificate is made anew.
_RENEWED = 7

_Key = ec.EllipticCurvePrivateKey


def _called(name: str) -> x509.Name:
    """
    A name, as certificates have it.
    """
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    name: str, issuer: x509.Name, key: _Key, now: datetime.datetime, days: int
) -> x509.CertificateBuilder:
    """
    What every certificate has.
    """
    return (
        x509.CertificateBuilder()
        .subject_name(_called(name))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _names(*names: str) -> x509.SubjectAlternativeName:
    """
    This machine, and more host names.
    """
    local = [x509.IPAddress(IPv4Address("127.0.0.1")), x509.IPAddress(IPv6Address("::1"))]
    return x509.SubjectAlternativeName([*(x509.DNSName(name) for name in names), *local])


def _pem(key: _Key) -> bytes:
    """
    A private key.
    """
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def selfSigned() -> PrivateCertificate:
    """
    A certificate for localhost, signed by itself, and its private key.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = "fcmxmpp embedded connection server"
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        _builder(name, _called(name), key, now, _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_names("localhost"), critical=False)
        .sign(key, SHA256())
    )
    both: PrivateCertificate = PrivateCertificate.loadPEM(_pem(key) + certificate.public_bytes(Encoding.PEM))
    return both


class LocalCertificates:
    """
    A directory with an authority and a server certificate, which are made if
    need be.

    @ivar trust: the directory for who is to trust the authority: it has its
        certificate alone.
    @ivar authority: the file of that.
    @ivar key: the file of the server's private key.
    @ivar certificate: the file of its certificate.
    """

    def __init__(self, directory: str, hostName: Callable[[], str] = socket.gethostname) -> None:
        """
        @param hostName: what this machine is called.
        """
        self.directory = Path(directory).absolute()
        self._hostName = hostName
        self._authorityKey = self.directory / "ca-key.pem"
        self.trust = self.directory / "certs"
        self.authority = self.trust / "ca.pem"
        self.key = self.directory / "server-key.pem"
        self.certificate = self.directory / "server.pem"

    def prepare(self, now: datetime.datetime | None = None) -> bool:
        """
        Make what is not there, or not good for long.

        @param now: the time, if it is not that of this machine.
        @return: whether the authority is a new one, which nobody trusts yet.
        @raise OSError: if that is impossible.
        @raise ValueError: if a file is there and is none of ours; the text
            names it.
        """
        now = now or datetime.datetime.now(datetime.timezone.utc)
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self.trust.mkdir(exist_ok=True)
        isNew = not (self._isThere(self._authorityKey, self.authority) and self._isAuthorityGood(now))
        if isNew:
            self._makeAuthority(now)
        if isNew or not (self._isThere(self.key, self.certificate) and self._isServerGood(now)):
            self._issue(now)
        return isNew

    def _isThere(self, key: Path, certificate: Path) -> bool:
        """
        Whether there are a key and its certificate.
        """
        return (
            key.exists()
            and certificate.exists()
            and _readCertificate(certificate).public_key() == _readKey(key).public_key()
        )

    def _isAuthorityGood(self, now: datetime.datetime) -> bool:
        """
        Whether the authority outlasts a server certificate that is issued now.
        """
        lasts = now + datetime.timedelta(days=_SERVER_DAYS)
        return _readCertificate(self.authority).not_valid_after_utc > lasts

    def _isServerGood(self, now: datetime.datetime) -> bool:
        """
        Whether the server certificate is good for a while, for the names that
        it is to have, and by this authority.
        """
        certificate = _readCertificate(self.certificate)
        try:
            certificate.verify_directly_issued_by(_readCertificate(self.authority))
            found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (InvalidSignature, x509.ExtensionNotFound, ValueError, TypeError):
            return False
        soon = now + datetime.timedelta(days=_RENEWED)
        return found == self._identities() and certificate.not_valid_after_utc > soon

    def _identities(self) -> x509.SubjectAlternativeName:
        """
        What the server certificate is for.
        """
        names = dict.fromkeys(["localhost", self._hostName(), *GOOGLES])
        return _names(*(name for name in names if name and name.isascii()))

    def _makeAuthority(self, now: datetime.datetime) -> None:
        """
        Make an authority.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        name = f"fcmxmpp local authority on {self._hostName()}"[:64]
        certificate = (
            _builder(name, _called(name), key, now, _AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_signsOnly(), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, SHA256())
        )
        replaceFile(self._authorityKey, _pem(key))
        replaceFile(self.authority, certificate.public_bytes(Encoding.PEM), 0o644)

    def _issue(self, now: datetime.datetime) -> None:
        """
        Make a server certificate.
        """
        authority = _readCertificate(self.authority)
        signing = _readKey(self._authorityKey)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder("localhost", authority.subject, key, now, _SERVER_DAYS)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(self._identities(), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False
            )
            .sign(signing, SHA256())
        )
        replaceFile(self.key, _pem(key))
        replaceFile(self.certificate, certificate.public_bytes(Encoding.PEM), 0o644)


def _readCertificate(path: Path) -> x509.Certificate:
    """
    The certificate in a file.

    @raise ValueError: if there is none.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError:
        raise ValueError(f"{path} is no certificate; move it away, and another one is made") from None


def _readKey(path: Path) -> _Key:
    """
    The private key in a file.

    @raise ValueError: if there is none such as we make.
    """
    with suppress(ValueError, TypeError, UnsupportedAlgorithm):
        key = load_pem_private_key(path.read_bytes(), None)
        if isinstance(key, _Key):
            return key
    raise ValueError(f"{path} is no private key of ours; move it away, and another one is made")


def _signsOnly() -> x509.KeyUsage:
    """
    What an authority's key is for.
    """
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
