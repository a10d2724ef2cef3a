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
from twisted.web.server import Request

from fcmxmpp.interfaces import IRegistrations
from fcmxmpp.server.registry import LoginGuard, Registry


__all__ = ["LATER", "MAX_BODY", "Answer", "Asked", "Desk", "Refused", "Route", "jsonAnswer", "textAnswer"]

#: Bytes that a request's body may have, inflated if it is compressed; a batch of a
#: thousand tokens is the longest.
MAX_BODY = 256 * 1024
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
    @ivar body: of the request, inflated.
    @ivar query: what is behind the path, each name's first value.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        peer = request.getClientAddress()
        self.host: str = getattr(peer, "host", None) or str(peer)
        self.body = _inflated(request)
        self.query = _pairs(request.uri.partition(b"?")[2])

    def header(self, name: str) -> str:
        """
        A header; empty if there is none.
        """
        value = self._request.getHeader(name)
        return "" if value is None else value

    def form(self) -> dict[str, str]:
        """
        The body, if it is a form: each name's first value.
        """
        return _pairs(self.body)

    def json(self) -> dict[str, Any]:
        """
        The body, if it is a JSON object.
        """
        try:
            value = msgspec.json.decode(self.body)
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


def _inflated(request: Request) -> bytes:
    """
    The body of a request.
    """
    content: Any = request.content
    body: bytes = content.getvalue()
    if len(body) > MAX_BODY:
        raise Refused(413, f"A body has at most {MAX_BODY} bytes")
    if (request.getHeader("content-encoding") or "").strip().lower() != "gzip":
        return body
    inflater = zlib.decompressobj(wbits=31)
    try:
        inflated = inflater.decompress(body, MAX_BODY + 1)
    except zlib.error:
        raise Refused(400, "The body is not gzip") from None
    if len(inflated) > MAX_BODY:
        raise Refused(413, f"A body has at most {MAX_BODY} bytes")
    if not inflater.eof:
        raise Refused(400, "The body ends early")
    return inflated


class Desk(Struct, frozen=True):
    """
    What the routes need.

    @ivar registry: who the senders are.
    @ivar changed: is called when an app was registered or unregistered.
    @ivar seconds: the time, in seconds since 1970.
    """

    registrations: IRegistrations
    registry: Registry
    guard: LoginGuard
    seconds: Callable[[], float]
    randomBytes: Callable[[int], bytes] = os.urandom
    changed: Callable[[], None] = lambda: None

    def authorize(self, asked: Asked, senderID: str) -> None:
        """
        See to it that a request comes from a sender's app server.

        @raise Refused: if it does not; later each time would cost connections,
            so after some tries an address is not looked at for a while.
        """
        kind, _, key = asked.header("authorization").partition("=")
        now = self.seconds()
        if self.guard.isBusy(asked.host, now):
            raise Refused(429, "Too many wrong keys came from there", Retry_After="10")
        if kind.strip() != "key" or not self.registry.mayLogIn(senderID, key.strip()):
            self.guard.refuse(asked.host, now)
            raise Refused(401, "The key in the header Authorization: key=KEY is not that of the sender")


Route = tuple[str, re.Pattern[str], Callable[..., Awaitable[Answer]]]
