"""
A small HTTP interface on this machine, by which a program in any language can
send downstream messages::

    curl --unix-socket /run/fcm-xmpp/send -H 'Content-Type: application/json' \\
        -d '{"to": "TOKEN", "data": {"op": "wake"}}' http://localhost/send

The answer comes when that of the connection server has come, or when it is
known that there will be none::

    200 {"ack": {"message_id": "1", "message_type": "ack", "from": "TOKEN"}}
    410 {"nack": {"error": "DEVICE_UNREGISTERED", "message_id": "1",
                  "permanent": true, "token_gone": true}}
    422 {"nack": {"error": "INVALID_TTL", "message_id": "1",
                  "permanent": true, "token_gone": false}}
    409 {"error": {"field": "message_id", "reason": "...", "message_id": "1"}}
    202 {"stored": {"message_id": "1"}}
    503 {"error": {"reason": "10000 messages wait already", "message_id": "1"}}
    504 {"error": {"reason": "the time_to_live is over", "message_id": "1"}}
    400 {"error": {"field": "to", "reason": "must not be empty", "message_id": "1"}}

A C{registration_id} in an C{ack} or a C{nack} is to be stored in place of the
old token.  After 410 the token is to be deleted, and what got a 422 never
succeeds.  409 means that the same message is on its way: ask again when it had
the time to be answered.  After 503 the same message may be sent again; after
504 somebody has to know whether a second one would do harm.
All other statuses come with an C{error}, and mean that the request is wrong.

202 comes only where there is a store, and means that the message is in the
outbox and will be sent, whatever happens to this process.  It comes as soon as
that is so, if the request has C{Prefer: respond-async} (RFC 7240); after so many
seconds without an outcome, if it has C{Prefer: wait=10}; and when the app server
stops.  Without a store both preferences are ignored.

Hanging up withdraws the message, if it has not been sent yet; with a store, if
it is not in the outbox yet.

Over a unix socket, its file's permissions say who may send.  Over TCP without
a token only programs of this machine can; with one, whoever has it, and then
C{ssl:} keeps it from being overheard.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from collections.abc import Callable
from hashlib import sha256
from hmac import compare_digest
from typing import Any

import msgspec
from msgspec import structs
from twisted.application.service import Service
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, DeferredList, fail, maybeDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IReactorTime, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request
from zope.interface import implementer

from fcmxmpp.boundedhttp import BoundedChannel, BoundedSite
from fcmxmpp.errors import (
    AckTimedOut,
    Expired,
    FCMError,
    MalformedPayload,
    Nacked,
    NotSendable,
    QueueFull,
    StillUnanswered,
    Stopped,
)
from fcmxmpp.interfaces import IDownstreamSender, Stored
from fcmxmpp.loopback import isLoopback
from fcmxmpp.messages import Ack, DownstreamMessage
from fcmxmpp.payload import decodeDownstream, unknownFields


__all__ = ["SendAPI", "SendResource", "isLocal", "listener"]

_log = Logger()
_encode = msgspec.json.Encoder().encode

#: Bytes that a request's body may have.
MAX_BODY = 64 * 1024
_TOO_LONG = f"a message has at most {MAX_BODY} bytes"
#: Seconds that a client has for a request, and between two.
IDLE = 60.0
#: How many clients may be connected.
MAX_CLIENTS = 1000
#: Seconds that clients get at the stop to read their answers.
PATIENCE = 3.0


class _Refused(Exception):
    """
    A request is answered without having anything sent.
    """

    def __init__(self, status: int, reason: str, message_id: str | None = None, **headers: str) -> None:
        self.answer = _Answer(status, _error(reason, message_id), headers)


class _Answer(msgspec.Struct, frozen=True):
    """
    What a request is answered with.
    """

    status: int
    value: dict[str, Any]
    headers: dict[str, str] = {}


class _Preference(msgspec.Struct, frozen=True):
    """
    What a client prefers, where there is a store.

    @ivar name: as in C{Preference-Applied}.
    @ivar wait: for how many seconds it waits for the outcome; None for as long
        as it takes.
    """

    name: str = ""
    wait: int | None = None


def _preference(request: Request) -> _Preference:
    """
    What the client of a request prefers (RFC 7240).
    """
    name, wait = "", None
    for line in request.requestHeaders.getRawHeaders("Prefer", []):
        for preference in line.split(","):
            token, _, value = "".join(preference.partition(";")[0].split()).lower().partition("=")
            if token == "respond-async":
                name = token
            elif token == "wait" and re.fullmatch("[0-9]{1,9}", value):
                name, wait = name or f"wait={value}", int(value)
    return _Preference(name, wait if wait is not None or not name else 0)


def _error(reason: str, message_id: str | None = None, field: str | None = None) -> dict[str, Any]:
    """
    What tells of an error.
    """
    error = {"reason": reason, "field": field, "message_id": message_id}
    return {"error": {name: value for name, value in error.items() if value is not None}}


class SendResource(Resource):
    """
    C{POST /send}, and no other.
    """

    isLeaf = True

    def __init__(
        self,
        sender: IDownstreamSender,
        clock: IReactorTime,
        newID: Callable[[], str],
        token: str | None = None,
    ) -> None:
        """
        @param clock: the reactor.
        @param newID: makes a C{message_id} that was never used before, for
            messages that have none.
        @param token: what clients have to show; None for none, and then only
            those on this machine are let in.
        """
        super().__init__()
        self._sender = sender
        self._clock = clock
        self._newID = newID
        self._token = None if token is None else sha256(token.encode()).digest()
        self._stopping = False
        # Those that have no answer yet.
        self._open: set[Request] = set()

    def render(self, request: Request) -> int:
        """
        Answer a request.
        """
        self._open.add(request)
        # Asked for first, because the answer may be out before the next line.
        finished = request.notifyFinish()
        answering = Deferred.fromCoroutine(self._handle(request))

        def hungUp(_: Failure) -> None:
            self._open.discard(request)
            answering.cancel()

        finished.addCallbacks(lambda _: self._open.discard(request), hungUp)
        return NOT_DONE_YET

    async def _handle(self, request: Request) -> None:
        """
        See L{render}.
        """
        try:
            self._admit(request)
            answer = await self._send(self._read(request), _preference(request))
        except _Refused as refused:
            answer = refused.answer
        except Exception as error:
            if request in self._open:
                # Without its text, which may quote the message.
                _log.failure("a request to send failed", Failure(FCMError(type(error).__name__)))
            answer = _Answer(500, _error("a fault of the app server; see its log"))
        if request not in self._open:
            # The client has hung up, and so this has been cancelled.
            return
        body = _encode(answer.value) + b"\n"
        request.setResponseCode(answer.status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **answer.headers}
        for name, value in headers.items():
            request.setHeader(name, value)
        request.write(body)
        request.finish()

    def _admit(self, request: Request) -> None:
        """
        See to it that the client may send.

        @raise _Refused: if not.
        """
        if self._token is not None:
            scheme, _, shown = (request.getHeader(b"Authorization") or b"").partition(b" ")
            # Compared by their digests: that takes the same time whatever they are.
            if scheme.lower() != b"bearer" or not compare_digest(sha256(shown.strip()).digest(), self._token):
                raise _Refused(401, "the token is missing or wrong", **{"WWW-Authenticate": "Bearer"})
            return
        address = request.getHost()
        if isinstance(address, UNIXAddress):
            return
        if not (isinstance(address, (IPv4Address, IPv6Address)) and isLoopback(address.host)):
            raise _Refused(403, "without a token only programs on the same machine may send")
        # A page in a browser on this machine can have its own name lead here;
        # but not to a name of ours.
        host = (request.getHeader(b"Host") or b"").decode("latin-1")
        if not isLoopback(re.sub(r":[0-9]*$", "", host)):
            raise _Refused(403, "Host has to be localhost, 127.0.0.1 or [::1]")

    def _read(self, request: Request) -> DownstreamMessage:
        """
        The message that a request asks to send.

        @raise _Refused: if there is none.
        """
        if request.path != b"/send":
            raise _Refused(404, "there is nothing but /send")
        if request.method != b"POST":
            raise _Refused(405, "messages are sent by POST", Allow="POST")
        if self._stopping:
            raise _Refused(503, "the app server is stopping")
        kind = (request.getHeader(b"Content-Type") or b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            # Anything else a page in a browser may send without asking first.
            raise _Refused(415, "Content-Type has to be application/json")
        assert request.content is not None
        body = request.content.read()
        if len(body) > MAX_BODY:
            raise _Refused(413, _TOO_LONG)
        try:
            message = decodeDownstream(body.decode())
        except UnicodeDecodeError:
            raise _Refused(400, "Not UTF-8") from None
        except MalformedPayload as error:
            raise _Refused(400, error.reason, error.message_id) from None
        unknown = unknownFields(body.decode())
        if unknown:
            raise _Refused(400, f"there is no field {unknown[0][:100]!r}", message.message_id)
        if message.message_id is None:
            message = structs.replace(message, message_id=self._newID())
        return message

    async def _send(self, message: DownstreamMessage, preference: _Preference) -> _Answer:
        """
        Send the message.

        @return: what became of it.
        """
        try:
            sent = await self._sender.send(message)
            if not isinstance(sent, Stored):
                return _Answer(200, {"ack": sent})
            return await self._outcome(sent, preference)
        except Nacked as nacked:
            nack = {
                "error": nacked.error,
                "message_id": nacked.message_id,
                "registration_id": nacked.registration_id,
                "permanent": nacked.permanent,
                "token_gone": nacked.tokenGone,
            }
            if nacked.registration_id is None:
                del nack["registration_id"]
            return _Answer(410 if nacked.tokenGone else 422 if nacked.permanent else 503, {"nack": nack})
        except StillUnanswered as error:
            return _Answer(409, _error(error.reason, message.message_id, error.field))
        except NotSendable as error:
            return _Answer(400, _error(error.reason, message.message_id, error.field))
        except QueueFull as error:
            return _Answer(503, _error(str(error), message.message_id), {"Retry-After": "1"})
        except (Expired, AckTimedOut) as error:
            return _Answer(504, _error(str(error), message.message_id))
        except FCMError as error:
            # Such as Stopped: it has not been refused.
            return _Answer(503, _error(str(error), message.message_id))

    async def _outcome(self, stored: Stored, preference: _Preference) -> _Answer:
        """
        Wait for the outcome of a message that is in the outbox, for as long as
        the client likes.
        """
        answer = _Answer(202, {"stored": {"message_id": stored.message_id}})
        applied = structs.replace(answer, headers={"Preference-Applied": preference.name})
        if preference.wait == 0:
            return applied
        waiting: Deferred[Ack] = stored.whenSettled()
        if preference.wait is not None:
            waiting.addTimeout(preference.wait, self._clock)
        try:
            return _Answer(200, {"ack": await waiting})
        except DeferredTimeoutError:
            return applied
        except Stopped:
            return answer

    def refuseMore(self) -> set[HTTPChannel]:
        """
        Send nothing more.

        @return: the connections whose clients wait for an answer.
        """
        self._stopping = True
        return {request.channel for request in self._open}

    async def answered(self) -> None:
        """
        Wait until every client has its answer, or has hung up.
        """
        await DeferredList([request.notifyFinish() for request in self._open], consumeErrors=True)


class SendAPI(Service):
    """
    Listens, and lets clients send.

    It and the app server are to be stopped at the same time, as by a plain
    C{MultiService}: this waits for the answers of the app server.

    @ivar site: what clients talk to.
    """

    def __init__(
        self,
        endpoint: IStreamServerEndpoint,
        sender: IDownstreamSender,
        clock: IReactorTime,
        newID: Callable[[], str],
        token: str | None = None,
    ) -> None:
        """
        @param endpoint: where to listen, such as a L{listener}.
        @param clock: the reactor.
        @param newID: see L{SendResource}; so for the token.
        """
        self._endpoint = endpoint
        self._clock = clock
        self._resource = SendResource(sender, clock, newID, token)
        self.site = BoundedSite(
            self._resource, clock, MAX_BODY, _encode(_error(_TOO_LONG)) + b"\n", MAX_CLIENTS, IDLE
        )
        self._port: IListeningPort | None = None
        self._listening: Deferred[None] | None = None

    def privilegedStartService(self) -> None:
        """
        Listen, while ports below 1024 can be had.

        @raise CannotListenError: or what else keeps it from listening.
        """
        super().privilegedStartService()
        self._listen()

    def startService(self) -> None:
        """
        Listen, if it does not yet.
        """
        super().startService()
        if self._listening is None:
            self._listen()

    def _listen(self) -> None:
        """
        See L{privilegedStartService}.
        """
        failures: list[Failure] = []

        def failed(failure: Failure) -> None:
            failures.append(failure)
            if self._listening is not None:
                _log.failure("the send API cannot listen", failure)

        listening = self._endpoint.listen(self.site).addCallbacks(self._listens, failed)
        # Ports of this machine are open, or not, at once.
        if failures:
            failures[0].raiseException()
        self._listening = listening

    def _listens(self, port: IListeningPort) -> None:
        """
        The port is open.
        """
        self._port = port
        _log.info("the send API listens on {where}", where=_where(port.getHost()))

    def stopService(self) -> Deferred[None]:
        """
        Send nothing more, let clients have the answers that they wait for, and
        close the connections.
        """
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        """
        See L{stopService}.
        """
        waiting = self._resource.refuseMore()
        for channel in self.site.channels - waiting:
            channel.loseConnection()
        if self._port is not None:
            try:
                await maybeDeferred(self._port.stopListening)
            except OSError as error:
                # Such as: somebody has removed the socket's file.
                _log.warn("closing the send API's port failed: {reason}", reason=error.strerror)
        await self._resource.answered()
        await self._close()

    async def _close(self) -> None:
        """
        Close the connections once the answers are out; but wait for no client.
        """
        channels = list(self.site.channels)
        for channel in channels:
            channel.loseConnection()
        giveUp = self._clock.callLater(PATIENCE, _abort, channels)
        await DeferredList([channel.closed for channel in channels])
        if giveUp.active():
            giveUp.cancel()


def _abort(channels: list[BoundedChannel]) -> None:
    """
    Close connections without waiting for anybody.
    """
    for channel in channels:
        transport: Any = channel.transport
        if not channel.closed.called:
            transport.abortConnection()


def _where(address: object) -> str:
    """
    An address, for people.
    """
    if isinstance(address, UNIXAddress):
        return os.fsdecode(address.name or b"a unix socket")
    if isinstance(address, IPv6Address):
        return f"[{address.host}]:{address.port}"
    return f"{address.host}:{address.port}" if isinstance(address, IPv4Address) else str(address)


def _split(description: str) -> tuple[list[str], dict[str, str]]:
    """
    The parts of an endpoint description, as Twisted reads it.

    @return: those without and those with a name.
    """
    parts = [[""]]
    characters = iter(description)
    for character in characters:
        if character == "\\":
            parts[-1][-1] += next(characters, "")
        elif character == ":":
            parts.append([""])
        elif character == "=" and len(parts[-1]) == 1:
            parts[-1].append("")
        else:
            parts[-1][-1] += character
    return [part[0] for part in parts if len(part) == 1], dict(part for part in parts if len(part) == 2)


def isLocal(description: str) -> bool:
    """
    Whether only programs on this machine can connect to what listens by this
    endpoint description, as far as that can be told.
    """
    positional, named = _split(description)
    kind = positional[0] if positional else ""
    if kind == "systemd":
        return named.get("domain") == "UNIX"
    if kind == "tcp" and len(positional) > 2:
        return isLoopback(positional[2])
    return kind == "unix" or (kind in ("tcp", "tcp6", "ssl") and isLoopback(named.get("interface", "")))


def listener(reactor: Any, description: str) -> IStreamServerEndpoint:
    """
    The endpoint that a description describes.  Unless it says otherwise, a
    unix socket is for its owner alone; one that a crash has left is replaced.

    @raise Exception: if it is none.
    """
    positional, named = _split(description)
    if positional[:1] != ["unix"]:
        return _fromString(reactor, description)
    # Twisted's own are 666, and a lock that a process in a container, which has
    # the same process ID after a crash, takes for its own.
    for place, name, value in ((2, "mode", "600"), (4, "lockfile", "0")):
        if name not in named and len(positional) <= place:
            description += f":{name}={value}"
    path = named["address"] if "address" in named else positional[1]
    if not path or "\0" in path:
        # Linux takes these, too, and lets every user of the machine connect.
        raise ValueError("a unix socket needs a path")
    return _UnixEndpoint(path, _fromString(reactor, description))


def _fromString(reactor: Any, description: str) -> IStreamServerEndpoint:
    """
    Twisted's endpoint of a description.
    """
    endpoint: IStreamServerEndpoint = serverFromString(reactor, description)
    return endpoint


@implementer(IStreamServerEndpoint)
class _UnixEndpoint:
    """
    A unix socket whose file may be there already.
    """

    def __init__(self, path: str, endpoint: IStreamServerEndpoint) -> None:
        self._path = path
        self._endpoint = endpoint

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """
        Listen.
        """
        try:
            _removeStale(self._path)
        except OSError as error:
            return fail(CannotListenError(None, self._path, error))
        return self._endpoint.listen(protocolFactory)


def _removeStale(path: str) -> None:
    """
    Remove the file of a unix socket that nobody listens on.

    @raise OSError: if it is not for us to remove.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "there is a file of that name, which is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            # Somebody listens who is busy.
            pass
    raise OSError(errno.EADDRINUSE, "somebody listens on it already")
