"""
Why there is no connection, in one line that says what to look at.
"""

from __future__ import annotations

from OpenSSL import SSL, crypto
from service_identity import VerificationError
from twisted.internet.error import (
    ConnectionClosed,
    ConnectionDone,
    ConnectionRefusedError,
    DNSLookupError,
    TimeoutError,
)
from twisted.words.protocols.jabber.error import StreamError
from twisted.words.xish import domish

from fcmxmpp.errors import FCMError
from fcmxmpp.stanza import conditionName
from fcmxmpp.xmppstream import GCMStream


__all__ = ["describe"]

#: What OpenSSL calls it when what answers does not speak TLS.
_NO_TLS = {
    "wrong version number",
    "packet length too long",
    "unknown protocol",
    "http request",
    "record layer failure",
}


def describe(error: BaseException | None, stream: GCMStream | None = None) -> str:
    """
    Say why a connection could not be made, or was lost.

    @param stream: the stream, if it came to that; it knows the certificate
        that the server showed, and whether the server said anything.
    """
    if isinstance(error, FCMError):
        return str(error)
    if isinstance(error, VerificationError):
        return "the server's certificate is for another host name: check the host in the endpoint"
    if isinstance(error, SSL.Error):
        return _describeTLS(error, stream)
    if isinstance(error, StreamError):
        return f"the server ended the stream with an error: {conditionName(error.condition)}"
    if isinstance(error, domish.ParserError):
        what = "sent what is not allowed in an XMPP stream" if _hasBegun(stream) else "does not speak XMPP"
        return f"the server {what}: {error}"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused: nothing listens there"
    if isinstance(error, DNSLookupError):
        return "no such host: check the host in the endpoint"
    if isinstance(error, TimeoutError):
        return "the server did not answer in time"
    if isinstance(error, ConnectionClosed):
        if stream is not None and not _hasBegun(stream):
            return "the server hung up without a word: is this an XMPP port, and does it want TLS?"
        return "closed by the server" if isinstance(error, ConnectionDone) else "the connection broke"
    return " ".join(str(error).split()) or type(error).__name__


def _hasBegun(stream: GCMStream | None) -> bool:
    """
    Whether the server's stream header has come.
    """
    return stream is not None and stream.sid is not None


def _describeTLS(error: SSL.Error, stream: GCMStream | None) -> str:
    """
    Say why TLS failed.
    """
    details = error.args[0] if error.args and isinstance(error.args[0], list) else ()
    reasons = [detail[-1] for detail in details if isinstance(detail, tuple) and detail]
    if any(reason in _NO_TLS for reason in reasons):
        return "the server does not speak TLS on this port"
    if "certificate verify failed" in reasons:
        if any(certificate.has_expired() for certificate in _chain(stream)):
            return "the server's certificate has expired"
        return "the server's certificate is not trusted: trustRoots has to name the directory of its CA"
    return f"TLS failed: {', '.join(reasons) or 'no reason given'}"


def _chain(stream: GCMStream | None) -> list[crypto.X509]:
    """
    The certificates that the server showed.
    """
    # Only a TLS transport has a handle that knows certificates.
    getHandle = getattr(getattr(stream, "transport", None), "getHandle", None)
    handle = getHandle() if getHandle is not None else None
    return (handle.get_peer_cert_chain() or []) if isinstance(handle, SSL.Connection) else []
