"""
Certificates for the tests, of authorities that exist as long as the tests run.
"""

from __future__ import annotations

import datetime
import inspect
from functools import cache
from pathlib import Path

import trustme
from OpenSSL.SSL import TLS_METHOD, Connection, Context
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.ssl import CertificateOptions
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer


__all__ = ["ServerContext", "authority", "expectDeprecated", "expired", "issued", "trustRoots"]


@implementer(IOpenSSLServerConnectionCreator)
class ServerContext:
    """
    What a server listens with.

    Not Twisted's C{CertificateOptions}, because those give pyOpenSSL what it
    calls deprecated.
    """

    def __init__(self, certificate: trustme.LeafCert) -> None:
        self._context = Context(TLS_METHOD)
        certificate.configure_cert(self._context)

    def serverConnectionForTLS(self, tlsProtocol: object) -> Connection:
        """
        See L{IOpenSSLServerConnectionCreator}.
        """
        return Connection(self._context, None)


@cache
def authority(name: str = "ours") -> trustme.CA:
    """
    The certificate authority of this name.
    """
    return trustme.CA(organization_name=name)


def issued(*identities: str, by: str = "ours") -> ServerContext:
    """
    What a server with a certificate for these host names listens with.

    @param by: the name of the authority.
    """
    return ServerContext(authority(by).issue_cert(*identities))


def expired(*identities: str) -> ServerContext:
    """
    The same with a certificate that was good until yesterday.
    """
    now = datetime.datetime.now(datetime.timezone.utc)
    day = datetime.timedelta(days=1)
    return ServerContext(authority().issue_cert(*identities, not_before=now - 9 * day, not_after=now - day))


def trustRoots(directory: str, *names: str) -> str:
    """
    Fill a directory for C{trustRoots}.

    @param names: the authorities that are to be in it.
    @return: the directory.
    """
    for name in names:
        authority(name).cert_pem.write_to_path(str(Path(directory, f"{name}.pem")))
    return directory


def expectDeprecated(case: SynchronousTestCase) -> None:
    """
    Let a test use Twisted's own certificates, which give pyOpenSSL what it
    calls deprecated.
    """
    # Whom the warning names depends on the version.
    deprecated = [Context.use_certificate, Context.use_privatekey]
    callers = [*map(inspect.unwrap, deprecated), CertificateOptions._makeContext]
    case.addCleanup(case.flushWarnings, deprecated + callers)
