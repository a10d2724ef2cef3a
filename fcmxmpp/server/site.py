"""
The HTTP server of a connection server: finds who answers a request.

The paths are those of Google's services, whatever the host is called: names of
Google's may lead here.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from fcmxmpp.boundedhttp import BoundedSite
from fcmxmpp.errors import Stopped, StoreUnavailable
from fcmxmpp.interfaces import IRegistrations
from fcmxmpp.server import checkin, groupmanagement, installations, registering, topics
from fcmxmpp.server.http import LATER, MAX_BATCH, Answer, Asked, Desk, Refused, Route, textAnswer
from fcmxmpp.server.ratelimit import RateLimit
from fcmxmpp.server.registry import LoginGuard, Registry


__all__ = ["site"]

_log = Logger()

#: Seconds that a client has for a request, and between two; how many may be there.
IDLE, MAX_CLIENTS = 30.0, 2000
#: Requests a second, and at once, from one address.
RATE, BURST = 10.0, 200.0


class _Routes(Resource):
    """
    Finds who answers a request.
    """

    isLeaf = True

    def __init__(self, routes: list[Route], limit: RateLimit, seconds: Callable[[], float]) -> None:
        super().__init__()
        self._routes = routes
        self._limit = limit
        self._seconds = seconds

    def render(self, request: Request) -> int:
        """
        Answer a request.
        """
        asked = Asked(request)
        answering = Deferred.fromCoroutine(self._answer(request, asked))
        answering.addErrback(_sorry, asked)
        answering.addCallback(_send, request, asked)
        answering.addErrback(lambda failure: _log.failure("answering a request failed", failure))
        return NOT_DONE_YET

    async def _answer(self, request: Request, asked: Asked) -> Answer:
        """
        The answer.
        """
        try:
            wait = self._limit.take(asked.host, self._seconds())
            if wait:
                raise Refused(429, "Too many requests come from there", Retry_After=str(int(wait) + 1))
            try:
                path = request.path.decode("ascii")
            except UnicodeDecodeError:
                raise Refused(404, "There is no such path") from None
            method = request.method.decode("latin-1")
            methods = []
            for allowed, pattern, route in self._routes:
                match = pattern.fullmatch(path)
                if match is None:
                    continue
                if allowed == method or (allowed == "GET" and method == "HEAD"):
                    asked.route = pattern.pattern
                    return await route(asked, *match.groups())
                methods.append(allowed)
            if methods:
                raise Refused(405, "That is not done with this path", Allow=", ".join(methods))
            raise Refused(404, "There is no such path")
        except Refused as refused:
            return refused.answer
        except (StoreUnavailable, Stopped):
            return Refused(503, "Come back later", Retry_After=str(LATER)).answer


def _send(answer: Answer, request: Request, asked: Asked) -> None:
    """
    Send an answer, if there is still somebody to read it.
    """
    if asked.isGone:
        return
    body = answer.body
    request.setResponseCode(answer.status)
    request.setHeader("content-type", answer.contentType)
    for name, value in answer.headers.items():
        request.setHeader(name, value)
    # microG reads nothing else.
    if "gzip" in asked.header("accept-encoding") and body:
        packer = zlib.compressobj(wbits=31)
        body = packer.compress(body) + packer.flush()
        request.setHeader("content-encoding", "gzip")
    request.setHeader("content-length", str(len(body)))
    if request.method != b"HEAD":
        request.write(body)
    request.finish()


def _sorry(failure: Failure, asked: Asked) -> Answer:
    """
    A bug; or a client that has hung up while it was made to wait.
    """
    if not (asked.isGone and failure.check(CancelledError)):
        # Not the path itself: there may be a token in it.
        _log.failure("answering a request for {route} failed", failure, route=asked.route)
    return Refused(500, "Something is wrong here").answer


async def _about(asked: Asked) -> Answer:
    """
    For people.
    """
    return textAnswer("An fcmxmpp connection server: devices check in and register here.\n")


def site(
    registrations: IRegistrations,
    registry: Registry,
    clock: IReactorTime,
    changed: Callable[[], None] = lambda: None,
    randomBytes: Callable[[int], bytes] = os.urandom,
    rate: float = RATE,
    burst: float = BURST,
) -> BoundedSite:
    """
    What to listen with.

    @param changed: is called when an app was registered or unregistered.
    @param rate: requests a second from one address.
    @param burst: how many may come at once.
    """
    desk = Desk(registrations, registry, LoginGuard(), clock, randomBytes, changed)
    routes: list[Route] = [("GET", re.compile("/"), _about)]
    for room in (checkin, registering, installations, topics, groupmanagement):
        routes += room.routes(desk)
    return BoundedSite(
        _Routes(routes, RateLimit(rate, burst), clock.seconds),
        clock,
        MAX_BATCH,
        Refused(413, f"A body has at most {MAX_BATCH} bytes").answer.body,
        MAX_CLIENTS,
        IDLE,
    )
