"""
Certificates for trying things out: an authority of one's own, and a server
certificate by it.
"""

from __future__ import annotations

import datetime
import os
import socket
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from cryptography import x509
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


def _builder(name: str, issuer: x509.Name, key: _Key, days: int) -> x509.CertificateBuilder:
    """
    What every certificate has.
    """
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
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
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        _builder(name, issuer, key, _AUTHORITY_DAYS)
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

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory).absolute()
        self.trust = self._directory / "certs"
        self.authority = self.trust / "ca.pem"
        self.key = self._directory / "server-key.pem"
        self.certificate = self._directory / "server.pem"

    def prepare(self) -> None:
        """
        Make what is not there, or not good for long.

        @raise OSError: if that is impossible.
        @raise ValueError: if a file is there and is none of ours.
        """
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self.trust.mkdir(exist_ok=True)
        authorityKey = self._directory / "ca-key.pem"
        if not (authorityKey.exists() and self.authority.exists()):
            key = ec.generate_private_key(ec.SECP256R1())
            name = f"fcmxmpp local authority on {socket.gethostname()}"[:64]
            issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
            certificate = (
                _builder(name, issuer, key, _AUTHORITY_DAYS)
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .add_extension(_signsOnly(), critical=True)
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
                .sign(key, SHA256())
            )
            _write(authorityKey, _pem(key))
            _write(self.authority, certificate.public_bytes(Encoding.PEM), 0o644)
            self.certificate.unlink(missing_ok=True)
        if not self._isGood():
            self._issue(authorityKey)

    def _isGood(self) -> bool:
        """
        Whether there is a server certificate that is good for a while.
        """
        if not (self.certificate.exists() and self.key.exists()):
            return False
        certificate = x509.load_pem_x509_certificate(self.certificate.read_bytes())
        soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=_RENEWED)
        return certificate.not_valid_after_utc > soon

    def _issue(self, authorityKey: Path) -> None:
        """
        Make a server certificate.
        """
        authority = x509.load_pem_x509_certificate(self.authority.read_bytes())
        signing: Any = load_pem_private_key(authorityKey.read_bytes(), None)
        key = ec.generate_private_key(ec.SECP256R1())
        names = dict.fromkeys(["localhost", socket.gethostname(), *GOOGLES])
        certificate = (
            _builder("localhost", authority.subject, key, _SERVER_DAYS)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_names(*(name for name in names if name.isascii() and name)), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()),  # type: ignore[arg-type]
                critical=False,
            )
            .sign(signing, SHA256())
        )
        _write(self.key, _pem(key))
        _write(self.certificate, certificate.public_bytes(Encoding.PEM), 0o644)


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


def _write(path: Path, content: bytes, mode: int = 0o600) -> None:
    """
    Write a file that nobody else can read before it has its permissions.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
