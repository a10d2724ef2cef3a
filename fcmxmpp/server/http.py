"""
What devices and app servers ask a connection server for over HTTP: who a device
is, registration tokens, topics and device groups.

This is what the rooms that answer have in common; L{fcmxmpp.server.site} finds
which one answers a request.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from msgspec import Struct
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.web.server import Request

from fcmxmpp.interfaces import IRegistrations
from fcmxmpp.server.registry import LoginGuard, Registry


__all__ = [
    "LATER",
    "MAX_BATCH",
    "MAX_BODY",
    "Answer",
    "Asked",
    "Desk",
    "Refused",
    "Route",
    "jsonAnswer",
    "textAnswer",
]

#: Bytes that a request's body may have, inflated if it is compressed; and a batch of
#: a thousand tokens.
MAX_BODY, MAX_BATCH = 16 * 1024, 256 * 1024
#: Seconds after which to come again when the store does not work.
LATER = 30

_JSON = "application/json; charset=utf-8"
_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    413: "INVALID_ARGUMENT",
    415: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}


class Answer(Struct, frozen=True, kw_only=True):
    """
    What a client gets.
    """

    status: int = 200
    body: bytes = b""
    contentType: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = {}


def jsonAnswer(value: object, status: int = 200) -> Answer:
    """
    JSON.
    """
    return Answer(status=status, body=msgspec.json.encode(value), contentType=_JSON)


def textAnswer(text: str, status: int = 200) -> Answer:
    """
    A text, without an end of line: some clients would take it for a part of it.
    """
    return Answer(status=status, body=text.encode())


class Refused(Exception):
    """
    A request is refused.

    @ivar answer: what the client gets.
    """

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        error = {"code": status, "message": message, "status": _STATUS[status]}
        self.answer = Answer(
            status=status,
            body=msgspec.json.encode({"error": error}),
            contentType=_JSON,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )


class Asked:
    """
    A request.

    @ivar host: which machine it is from.
    @ivar isGone: whether the client has hung up.
    @ivar route: which path it is for, as far as everybody may know it.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        peer = request.getClientAddress()
        self.host: str = getattr(peer, "host", None) or str(peer)
        self.isGone = False
        self.route = "none"
        self._waiting: Deferred[None] | None = None
        request.notifyFinish().addErrback(self._hungUp)

    def _hungUp(self, _: object) -> None:
        """
        Who has hung up gets no answer, and need not be made to wait.  What was
        asked for is done all the same: half of it may be done already.
        """
        self.isGone = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def wait(self, clock: IReactorTime, seconds: float) -> None:
        """
        Let the client wait, as long as it is there.
        """
        self._waiting = deferLater(clock, seconds)
        await self._waiting
        self._waiting = None

    def query(self, name: str) -> str:
        """
        What is behind the path; empty if this is not.
        """
        return _pairs(self._request.uri.partition(b"?")[2]).get(name, "")

    def header(self, name: str) -> str:
        """
        A header; empty if there is none.
        """
        values = self._request.requestHeaders.getRawHeaders(name.encode())
        # Twisted's own way to a text fails for what is no UTF-8.
        return values[-1].decode("utf-8", "replace") if values else ""

    def body(self, most: int = MAX_BODY) -> bytes:
        """
        The body, inflated.

        @param most: how many bytes it may have.
        """
        content: Any = self._request.content
        return _inflated(content.getvalue(), self.header("content-encoding"), most)

    def form(self) -> dict[str, str]:
        """
        The body, if it is a form: each name's first value.
        """
        return _pairs(self.body())

    def json(self, most: int = MAX_BODY) -> dict[str, Any]:
        """
        The body, if it is a JSON object.
        """
        try:
            value = msgspec.json.decode(self.body(most))
        except (msgspec.DecodeError, RecursionError):
            raise Refused(400, "The body is not JSON") from None
        if not isinstance(value, dict):
            raise Refused(400, "The body is not a JSON object")
        return value


def _pairs(encoded: bytes) -> dict[str, str]:
    """
    What stands in a form, or behind the path of a URL.
    """
    try:
        pairs = parse_qsl(
            encoded.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=200
        )
    except ValueError:
        raise Refused(400, "The form cannot be read") from None
    result: dict[str, str] = {}
    for name, value in pairs:
        result.setdefault(name, value)
    return result


def _inflated(body: bytes, encoding: str, most: int) -> bytes:
    """
    The body of a request, inflated.

    @param encoding: how it is compressed; empty if it is not.
    @param most: how many bytes it may have.
    """
    tooLong = Refused(413, f"This body has at most {most} bytes")
    if len(body) > most:
        raise tooLong
    kind = encoding.strip().lower()
    if kind in ("", "identity"):
        return body
    if kind != "gzip":
        raise Refused(415, "A body may be compressed with gzip only")
    inflater = zlib.decompressobj(wbits=31)
    try:
        inflated = inflater.decompress(body, most + 1)
    except zlib.error:
        raise Refused(400, "The body is not gzip") from None
    if len(inflated) > most:
        raise tooLong
    if not inflater.eof:
        raise Refused(400, "The body ends early")
    return inflated


class Desk(Struct, frozen=True):
    """
    What the routes need.

    @ivar registry: who the senders are.
    @ivar changed: is called when an app was registered or unregistered.
    @ivar clock: its time is in seconds since 1970.
    """

    registrations: IRegistrations
    registry: Registry
    guard: LoginGuard
    clock: IReactorTime
    randomBytes: Callable[[int], bytes] = os.urandom
    changed: Callable[[], None] = lambda: None

    def seconds(self) -> float:
        """
        The time.
        """
        return self.clock.seconds()

    def _key(self, asked: Asked) -> str:
        """
        The key that a request comes with; empty if there is none.

        @raise Refused: if so many wrong ones come from there that none is
            looked at.
        """
        if self.guard.isBusy(asked.host, self.seconds()):
            raise Refused(429, "Too many wrong keys came from there", Retry_After="10")
        kind, _, key = asked.header("authorization").partition("=")
        return key.strip() if kind.strip() == "key" else ""

    async def _refuse(self, asked: Asked) -> None:
        """
        Say that a key is wrong, and later each time.
        """
        await asked.wait(self.clock, self.guard.refuse(asked.host, self.seconds()))
        raise Refused(401, "The key in the header Authorization: key=KEY is not that of the sender")

    async def authorize(self, asked: Asked, senderID: str) -> None:
        """
        See to it that a request comes from a sender's app server.

        @raise Refused: if it does not.
        """
        if not self.registry.mayLogIn(senderID, self._key(asked)):
            await self._refuse(asked)

    async def sendersOf(self, asked: Asked) -> list[str]:
        """
        Whose app server a request comes from.

        @return: one sender, unless several have the same key.
        @raise Refused: if it comes from none.
        """
        senders = self.registry.sendersWith(self._key(asked))
        if not senders:
            await self._refuse(asked)
        return senders


Route = tuple[str, re.Pattern[str], Callable[..., Awaitable[Answer]]]
