"""
What HTTP clients of this package have in common: bodies of both directions, and
what went wrong, in words.
"""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.ssl import optionsForClientTLS
from twisted.python.failure import Failure
from twisted.web.client import BrowserLikePolicyForHTTPS, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import IBodyProducer, IResponse
from zope.interface import implementer

from fcmxmpp.errors import FCMError


__all__ = ["AnswerTooLong", "TrustingPolicy", "WholeBody", "kindOf", "readBody"]


class AnswerTooLong(FCMError):
    """
    The answer has more bytes than it may have.
    """


class TrustingPolicy(BrowserLikePolicyForHTTPS):
    """
    For HTTPS: whom to trust.
    """

    def __init__(self, trustRoot: Any) -> None:
        super().__init__()
        self._trust = trustRoot

    def creatorForNetloc(self, hostname: bytes, port: int) -> Any:
        """
        See L{twisted.web.iweb.IPolicyForHTTPS}.
        """
        return optionsForClientTLS(hostname.decode("ascii"), trustRoot=self._trust)


@implementer(IBodyProducer)
class WholeBody:
    """
    A request's body that is there as a whole.
    """

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """
        Write it.
        """
        consumer.write(self._body)
        return succeed(None)

    def stopProducing(self) -> None:
        """
        It has been written.
        """

    # What is written at once can neither be paused nor resumed.
    pauseProducing = resumeProducing = stopProducing


def readBody(response: IResponse, most: int) -> Deferred[bytes]:
    """
    Read an answer's body.

    @param most: how many bytes it may have.
    @return: fails with L{AnswerTooLong}, or with what the connection ended
        with; cancelling it closes the connection.
    """
    reader = _Reader(most)
    response.deliverBody(reader)
    return reader.finished


class _Reader(Protocol):
    """
    Collects an answer's body.
    """

    def __init__(self, most: int) -> None:
        self.finished: Deferred[bytes] = Deferred(lambda _: self._hangUp())
        self._most = most
        self._pieces: list[bytes] = []
        self._size = 0

    def _hangUp(self) -> None:
        """
        Wait for no more.
        """
        assert self.transport is not None
        self.transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        """
        Some of it came.
        """
        self._size += len(data)
        if self._size <= self._most:
            self._pieces.append(data)
        elif not self.finished.called:
            self._pieces.clear()
            self.finished.errback(AnswerTooLong(f"it has more than {self._most} bytes"))
            self._hangUp()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        That was all.
        """
        if self.finished.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.finished.callback(b"".join(self._pieces))
        else:
            self.finished.errback(reason)


def kindOf(error: BaseException) -> str:
    """
    What went wrong with a request, in words that do not quote its URL.
    """
    # Twisted wraps what happened when a request was under way.
    reasons = getattr(error, "reasons", None)
    if reasons and isinstance(reasons[0], Failure) and reasons[0].value is not None:
        return kindOf(reasons[0].value)
    if isinstance(error, FCMError):
        return str(error)
    if isinstance(error, VerificationError):
        return "its certificate is for another host name"
    if isinstance(error, SSL.Error):
        details = error.args[0] if error.args and isinstance(error.args[0], list) else ()
        return "TLS failed: " + (", ".join(str(detail[-1]) for detail in details) or "no reason given")
    return type(error).__name__
