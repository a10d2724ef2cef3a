"""
An HTTP server whose clients can keep neither its memory nor its attention: the
length of a request, the time for it, and the number of connections are limited.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import Request, Site


__all__ = ["BoundedChannel", "BoundedRequest", "BoundedSite"]

#: Bytes of a longer body that are read, so that its sender gets to the answer.
_MAX_READ = 1024 * 1024


class BoundedRequest(Request):
    """
    A request whose body is kept as far as it may go (and one byte more), and
    read a little further, so that a client that sends too much gets to the
    answer.
    """

    channel: BoundedChannel
    content: BytesIO
    _came = 0
    _isCutOff = False

    def gotLength(self, length: int | None) -> None:
        """
        The headers have come.
        """
        self.content = BytesIO()
        if length is not None and length > _MAX_READ:
            self._cutOff()

    def handleContentChunk(self, data: bytes) -> None:
        """
        Some of the body has come.
        """
        if self._isCutOff:
            return
        self._came += len(data)
        self.content.write(data[: self.channel.site.maxBody + 1 - self.content.tell()])
        if self._came > _MAX_READ:
            self._cutOff()

    def _cutOff(self) -> None:
        """
        Answer before the request's end, and hang up.
        """
        self._isCutOff = True
        body = self.channel.site.tooLong
        self.channel.write(
            b"HTTP/1.1 413 Request Entity Too Large\r\nContent-Type: application/json\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        self.channel.loseConnection()

    def process(self) -> None:
        """
        The whole request has come.
        """
        if not self._isCutOff:
            super().process()


class BoundedChannel(HTTPChannel):
    """
    A connection.

    @ivar closed: fires when it is closed.
    """

    site: BoundedSite
    _closing = False

    def __init__(self) -> None:
        super().__init__()
        self.closed: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        """
        A client is there.
        """
        self.site.channels.add(self)
        super().connectionMade()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        It is gone.
        """
        # First, because it ends what its requests wait for.
        self.site.channels.discard(self)
        super().connectionLost(reason)
        self.closed.callback(None)

    def resetTimeout(self) -> None:
        """
        Give a request no more time for each byte of it.
        """

    def loseConnection(self) -> None:
        """
        Close it, once.
        """
        if not self._closing:
            self._closing = True
            super().loseConnection()


class BoundedSite(Site):
    """
    HTTP/1.1, without a log of its own and what that needs.

    @ivar channels: the connections that there are.
    @ivar maxBody: bytes that a request's body may have; a resource finds one
        more if it has more.
    @ivar tooLong: the body of the answer, JSON, if it has very many more.
    """

    # Twisted's own protocol chooses between this and HTTP/2.
    protocol = BoundedChannel  # type: ignore[assignment]
    noisy = False

    def __init__(
        self,
        resource: Resource,
        clock: IReactorTime,
        maxBody: int,
        tooLong: bytes,
        maxClients: int,
        idle: float,
    ) -> None:
        """
        @param maxClients: how many connections there may be.
        @param idle: seconds that a client has for a request, and between two.
        """
        super().__init__(
            resource,
            requestFactory=BoundedRequest,
            parsePOSTFormSubmission=False,
            timeout=idle,
            reactor=clock,
        )
        self.maxBody = maxBody
        self.tooLong = tooLong
        self.channels: set[BoundedChannel] = set()
        self._maxClients = maxClients

    def buildProtocol(self, addr: Any) -> Any:
        """
        A client has connected; one too many is turned away.
        """
        return None if len(self.channels) >= self._maxClients else super().buildProtocol(addr)

    def startFactory(self) -> None:
        """
        Keep no clock for the log.
        """

    def stopFactory(self) -> None:
        """
        There is none.
        """

    def log(self, request: object) -> None:
        """
        Log nothing: there may be secrets in what clients ask for.
        """

    def acceptableProtocols(self) -> list[bytes]:
        """
        What to offer over TLS.
        """
        return [b"http/1.1"]
