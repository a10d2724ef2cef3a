"""
Tests for L{fcmxmpp.sendapi}: real HTTP, in memory.

Real sockets are in test_commandline.py.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.error import CannotListenError, ConnectionDone
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactor, StringTransportWithDisconnection
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from fcmxmpp.errors import (
    AckTimedOut,
    Expired,
    Nacked,
    NotSendable,
    QueueFull,
    StillUnanswered,
    Stopped,
    StoreUnavailable,
    StreamLost,
)
from fcmxmpp.interfaces import IDownstreamSender
from fcmxmpp.messages import Ack, DownstreamMessage
from fcmxmpp.sendapi import IDLE, MAX_BODY, MAX_CLIENTS, PATIENCE, SendAPI, isLocal, listener
from fcmxmpp.testing import RecordingHandler, connectedPair
from tests.sending import Sender, stored


LOOPBACK = IPv4Address("TCP", "127.0.0.1", 8080)


class Port:
    """
    A port that is open until it is told to close.
    """

    def __init__(self, address: Any = LOOPBACK, problem: Exception | None = None) -> None:
        self.address = address
        self.problem = problem
        self.stopping = False

    def getHost(self) -> Any:
        return self.address

    def stopListening(self) -> Deferred[None]:
        self.stopping = True
        return fail(self.problem) if self.problem else succeed(None)


@implementer(IStreamServerEndpoint)
class Endpoint:
    """
    An endpoint that does as it is told.
    """

    def __init__(self) -> None:
        self.port = Port()
        self.result: Deferred[Any] | None = None
        self.calls = 0

    def listen(self, protocolFactory: Any) -> Deferred[Any]:
        self.calls += 1
        return succeed(self.port) if self.result is None else self.result


class Response:
    """
    What came back for one request.
    """

    def __init__(self, text: bytes) -> None:
        head, _, body = text.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        length = int(self.headers["content-length"])
        self.body, self.rest = body[:length], body[length:]
        assert self.body.endswith(b"\n") and self.headers["content-type"] == "application/json", text
        self.value = json.loads(self.body)


class Client:
    """
    A connection to the send API.
    """

    def __init__(self, api: SendAPI, address: Any = LOOPBACK) -> None:
        self.transport = StringTransportWithDisconnection(hostAddress=address)
        self.protocol = api.site.buildProtocol(address)
        self.transport.protocol = self.protocol
        self.protocol.makeConnection(self.transport)

    def write(self, data: bytes) -> None:
        self.protocol.dataReceived(data)

    def ask(
        self,
        body: bytes = b'{"to": "tok-A", "data": {"k": "v"}}',
        method: str = "POST",
        path: str = "/send",
        **headers: str | None,
    ) -> None:
        """
        Make a request.
        """
        given: dict[str, str | None] = {
            "Host": "localhost:8080",
            "Content_Type": "application/json",
            "Content_Length": str(len(body)),
        }
        lines = [f"{method} {path} HTTP/1.1"]
        for name, value in (given | headers).items():
            if value is not None:
                lines.append(f"{name.replace('_', '-')}: {value}")
        self.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    @property
    def response(self) -> Response | None:
        """
        What has come back and was not looked at yet.
        """
        text = self.transport.value()
        self.transport.clear()
        return Response(text) if text else None

    def asked(self, *arguments: Any, **keywords: Any) -> Response:
        """
        What comes back for a request at once.
        """
        self.ask(*arguments, **keywords)
        response = self.response
        assert response is not None
        return response


class APICase(SynchronousTestCase):
    """
    Tests with a send API.
    """

    def setUp(self) -> None:
        """
        Have one that listens.
        """
        self.sender = Sender()
        self.clock = Clock()
        self.endpoint = Endpoint()
        self.api = self.made()
        self.api.startService()

    def made(self, token: str | None = None, sender: Any = None) -> SendAPI:
        """
        A send API.
        """
        ids = iter(range(1, 1000))
        return SendAPI(self.endpoint, sender or self.sender, self.clock, lambda: f"new-{next(ids)}", token)


class AnswerTests(APICase):
    """
    What becomes of a message is what is answered.
    """

    def test_ack(self) -> None:
        """
        The answer comes when the message is settled, with what the ACK has on
        the wire.
        """
        client = Client(self.api)
        client.ask()
        self.assertIsNone(client.response)
        ((message, result),) = self.sender.sent
        self.assertEqual(DownstreamMessage(to="tok-A", data={"k": "v"}, message_id="new-1"), message)
        result.callback(Ack(message_id="new-1", from_="tok-A", registration_id="tok-B"))
        response = client.response
        assert response is not None
        self.assertEqual(200, response.status)
        self.assertEqual(
            {
                "ack": {
                    "from": "tok-A",
                    "message_id": "new-1",
                    "message_type": "ack",
                    "registration_id": "tok-B",
                }
            },
            response.value,
        )

    def test_messageID(self) -> None:
        """
        A C{message_id} that the client chose is kept.
        """
        Client(self.api).ask(b'{"to": "tok-A", "message_id": "mine"}')
        self.assertEqual("mine", self.sender.sent[0][0].message_id)

    def test_failures(self) -> None:
        """
        Each end has its status, and all of them name the message.
        """
        for error, status, value in (
            (
                Nacked("DEVICE_UNREGISTERED", "m"),
                410,
                {
                    "nack": {
                        "error": "DEVICE_UNREGISTERED",
                        "message_id": "m",
                        "permanent": True,
                        "token_gone": True,
                    }
                },
            ),
            (
                Nacked("INVALID_TTL", "m", "tok-B"),
                422,
                {
                    "nack": {
                        "error": "INVALID_TTL",
                        "message_id": "m",
                        "registration_id": "tok-B",
                        "permanent": True,
                        "token_gone": False,
                    }
                },
            ),
            (
                Nacked("SERVICE_UNAVAILABLE", "m"),
                503,
                {
                    "nack": {
                        "error": "SERVICE_UNAVAILABLE",
                        "message_id": "m",
                        "permanent": False,
                        "token_gone": False,
                    }
                },
            ),
            (
                NotSendable("to", "exactly one"),
                400,
                {"error": {"reason": "exactly one", "field": "to", "message_id": "m"}},
            ),
            (
                StillUnanswered(),
                409,
                {
                    "error": {
                        "reason": "must not be that of a message that is still unanswered",
                        "field": "message_id",
                        "message_id": "m",
                    }
                },
            ),
            (Expired("over"), 504, {"error": {"reason": "over", "message_id": "m"}}),
            (AckTimedOut("none"), 504, {"error": {"reason": "none", "message_id": "m"}}),
            (QueueFull("full"), 503, {"error": {"reason": "full", "message_id": "m"}}),
            (Stopped("stopped"), 503, {"error": {"reason": "stopped", "message_id": "m"}}),
            (StreamLost("lost"), 503, {"error": {"reason": "lost", "message_id": "m"}}),
            (StoreUnavailable("disk full"), 503, {"error": {"reason": "disk full", "message_id": "m"}}),
        ):
            client = Client(self.api)
            client.ask(b'{"to": "tok-A", "message_id": "m"}')
            self.sender.sent[-1][1].errback(error)
            response = client.response
            assert response is not None
            self.assertEqual((status, value), (response.status, response.value))
            self.assertEqual(isinstance(error, QueueFull), "retry-after" in response.headers)

    def test_storedWaits(self) -> None:
        """
        With a store, too, the answer is the outcome, unless the client prefers
        otherwise.
        """
        for prefer in (None, "return=minimal", "wait=x", "wait="):
            client = Client(self.api)
            client.ask(Prefer=prefer)
            taken, waiting = stored()
            self.sender.sent[-1][1].callback(taken)
            self.clock.advance(3600)
            self.assertIsNone(client.response)
            waiting[0].callback(Ack(message_id="m"))
            response = client.response
            assert response is not None
            self.assertEqual((200, "m"), (response.status, response.value["ack"]["message_id"]))
            self.assertNotIn("preference-applied", response.headers)

    def test_storedAsynchronous(self) -> None:
        """
        A client that prefers so is told that the message is stored as soon as
        it is, and not before.
        """
        for prefer in ("respond-async", "return=minimal, Respond-Async; x=y"):
            client = Client(self.api)
            client.ask(Prefer=prefer)
            self.assertIsNone(client.response)
            taken, waiting = stored()
            self.sender.sent[-1][1].callback(taken)
            response = client.response
            assert response is not None
            self.assertEqual((202, {"stored": {"message_id": "m"}}), (response.status, response.value))
            self.assertEqual("respond-async", response.headers["preference-applied"])
            self.assertEqual([], waiting)

    def test_storedDeadline(self) -> None:
        """
        A client may say how many seconds it waits for the outcome.
        """
        for prefer, applied in (
            ("wait=10", "wait=10"),
            ("wait = 10, respond-async", "respond-async"),
            ("respond-async, wait=10", "respond-async"),
        ):
            client = Client(self.api)
            client.ask(Prefer=prefer)
            taken, waiting = stored()
            self.sender.sent[-1][1].callback(taken)
            self.clock.advance(9.9)
            self.assertIsNone(client.response)
            self.clock.advance(0.2)
            response = client.response
            assert response is not None
            self.assertEqual((202, {"stored": {"message_id": "m"}}), (response.status, response.value))
            self.assertEqual(applied, response.headers["preference-applied"])
            self.assertTrue(waiting[0].called)

    def test_storedFails(self) -> None:
        """
        An outcome that is a failure is answered as without a store; but at the
        stop the message is stored, and is going to be sent.
        """
        for error, status in ((Nacked("DEVICE_UNREGISTERED", "m"), 410), (Stopped("stopped"), 202)):
            client = Client(self.api)
            client.ask()
            taken, waiting = stored()
            self.sender.sent[-1][1].callback(taken)
            waiting[0].errback(error)
            response = client.response
            assert response is not None
            self.assertEqual(status, response.status)
            self.assertNotIn("preference-applied", response.headers)

    def test_withoutStore(self) -> None:
        """
        Without a store a preference is ignored.
        """
        client = Client(self.api)
        client.ask(Prefer="respond-async")
        self.assertIsNone(client.response)
        self.sender.sent[-1][1].callback(Ack(message_id="m"))
        response = client.response
        assert response is not None
        self.assertEqual(200, response.status)
        self.assertNotIn("preference-applied", response.headers)

    def test_unexpected(self) -> None:
        """
        An error that is none of ours is logged by its type, and answered
        without it; so is a sender's that cancels by itself.
        """
        for error in (ValueError("tok-A secret"), CancelledError("secret")):
            client = Client(self.api)
            with capturedLogs() as events:
                client.ask()
                self.sender.sent[-1][1].errback(error)
            response = client.response
            assert response is not None
            self.assertEqual(
                (500, {"error": {"reason": "a fault of the app server; see its log"}}),
                (response.status, response.value),
            )
            (event,) = events
            self.assertIn(type(error).__name__, str(event["log_failure"]))
            self.assertNotIn("secret", str(event["log_failure"]) + formatEvent(event))
        self.assertEqual(2, len(self.flushLoggedErrors()))

    def test_severalInTurn(self) -> None:
        """
        One connection does for several requests.
        """
        client = Client(self.api)
        for number in range(3):
            client.ask()
            self.sender.sent[number][1].callback(Ack(message_id=f"new-{number + 1}"))
            response = client.response
            assert response is not None
            self.assertEqual(f"new-{number + 1}", response.value["ack"]["message_id"])
        self.assertTrue(client.transport.connected)

    def test_hungUp(self) -> None:
        """
        A client that hangs up has its message withdrawn, and there is nothing
        to be logged.
        """
        client = Client(self.api)
        client.ask()
        with capturedLogs() as events:
            client.protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(["new-1"], self.sender.cancelled)
        self.assertEqual([], events)

    def test_hungUpAndAnswered(self) -> None:
        """
        So it is if the sender answers even then.
        """

        @implementer(IDownstreamSender)
        class Answers:
            def send(self, message: DownstreamMessage) -> Deferred[Ack]:
                return Deferred(lambda result: result.errback(Stopped("withdrawn")))

        client = Client(self.made(sender=Answers()))
        client.ask()
        with capturedLogs() as events:
            client.protocol.connectionLost(Failure(ConnectionDone()))
            gc.collect()
        self.assertEqual(([], None), (events, client.response))

    def test_realSender(self) -> None:
        """
        With a real app server the device gets the message.
        """
        pair = connectedPair(RecordingHandler())
        self.addCleanup(pair.stop)
        api = self.made(sender=pair.appServer)
        client = Client(api)
        client.ask(b'{"to": "tok-A", "data": {"k": "v"}}')
        pair.pump()
        response = client.response
        assert response is not None
        self.assertEqual(200, response.status)
        self.assertEqual([{"k": "v"}], [message.data for message in pair.device.received])


class RequestTests(APICase):
    """
    What is asked for has to be in order.
    """

    def refused(self, response: Response, status: int) -> str:
        """
        This is a refusal, and nothing was sent.

        @return: the reason.
        """
        self.assertEqual(status, response.status)
        self.assertEqual([], self.sender.sent)
        reason: str = response.value["error"]["reason"]
        return reason

    def test_malformed(self) -> None:
        """
        What is no downstream message says why, without quoting it, and with
        its C{message_id} where there is one.
        """
        for body, reason, message_id in (
            (b"", "truncated", None),
            (b"secret", "malformed", None),
            (b"[]", "Expected", None),
            (b'{"to": "tok-A", "data": {"k": "\xff"}}', "Not UTF-8", None),
            (b'{"to": "tok-A", "message_id": "m", "data": {"secret": 1}}', "Expected", "m"),
            (b'{"to": "tok-A", "to": "tok-B"}', "Duplicate key", None),
        ):
            response = Client(self.api).asked(body)
            self.assertIn(reason, self.refused(response, 400), body)
            self.assertEqual(message_id, response.value["error"].get("message_id"))
            self.assertNotIn(b"secret", response.body)

    def test_paths(self) -> None:
        """
        There is one path.
        """
        for path in ("/", "/send/", "/sendx", "/x/send", "//send", "/send/..", "http://localhost/send"):
            self.refused(Client(self.api).asked(path=path), 404)

    def test_query(self) -> None:
        """
        A query makes no difference.
        """
        Client(self.api).ask(path="/send?x=y")
        self.assertEqual(1, len(self.sender.sent))

    def test_methods(self) -> None:
        """
        There is one method, and a refusal names it.
        """
        for method in ("GET", "PUT", "DELETE", "OPTIONS", "PATCH", "post"):
            response = Client(self.api).asked(method=method)
            self.refused(response, 405)
            self.assertEqual("POST", response.headers["allow"])
            self.assertNotIn("access-control-allow-origin", response.headers)

    def test_contentTypes(self) -> None:
        """
        The body has to say that it is JSON: what a page in a browser sends to
        any place without being allowed to is something else.
        """
        for kind in (
            None,
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
        ):
            self.refused(Client(self.api).asked(Content_Type=kind), 415)
        for kind in ("application/json", "Application/JSON", "application/json; charset=utf-8"):
            Client(self.api).ask(Content_Type=kind)
        self.assertEqual(3, len(self.sender.sent))

    def test_bodySize(self) -> None:
        """
        A body of the greatest length is read, a longer one refused once it has
        come; the connection stays.
        """
        start = b'{"to": "tok-A", "data": {"k": "'
        longest = start + b"x" * (MAX_BODY - len(start) - 3) + b'"}}'
        client = Client(self.api)
        client.ask(longest)
        ((_, result),) = self.sender.sent
        result.callback(Ack(message_id="m"))
        response = client.response
        assert response is not None
        self.assertEqual(200, response.status)
        self.sender.sent.clear()
        self.refused(client.asked(longest + b" "), 413)
        self.refused(client.asked(longest * 10), 413)
        self.refused(client.asked(b"1"), 400)

    def test_chunkedBodySize(self) -> None:
        """
        So it is with a body that does not tell its length, of which no more is
        kept than can be a message.
        """
        client = Client(self.api)
        client.ask(b"", Content_Length=None, Transfer_Encoding="chunked")
        for _ in range(10):
            client.write(b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
        self.assertEqual(MAX_BODY + 1, client.protocol.requests[0].content.tell())
        self.assertIsNone(client.response)
        client.write(b"0\r\n\r\n")
        response = client.response
        assert response is not None
        self.refused(response, 413)

    def test_hugeBody(self) -> None:
        """
        One that is announced as much longer is refused at once, and not waited
        for.
        """
        client = Client(self.api)
        client.ask(b"x", Content_Length="1048577")
        response = client.response
        assert response is not None
        self.refused(response, 413)
        self.assertEqual("close", response.headers["connection"])
        self.assertFalse(client.transport.connected)

    def test_endlessBody(self) -> None:
        """
        One that does not end is cut off, with one answer even if its end comes
        then.
        """
        client = Client(self.api)
        client.transport.loseConnection = lambda: None  # type: ignore[method-assign]
        client.ask(b"", Content_Length=None, Transfer_Encoding="chunked")
        for _ in range(17):
            client.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        client.write(b"1\r\nx\r\n0\r\n\r\n")
        response = client.response
        assert response is not None
        self.refused(response, 413)
        self.assertEqual(b"", response.rest)

    def test_silent(self) -> None:
        """
        A connection that is silent is closed, but not one that waits for us.
        """
        silent, begun, waits = Client(self.api), Client(self.api), Client(self.api)
        begun.ask(b"", Content_Length="5")
        waits.ask()
        self.clock.advance(IDLE)
        self.assertEqual(
            [False, False, True], [client.transport.connected for client in (silent, begun, waits)]
        )

    def test_slow(self) -> None:
        """
        A client gets no more time by sending its request byte by byte; one
        that waits for our answer has all the time, and as much again for the
        next request.
        """
        slow, good = Client(self.api), Client(self.api)
        good.ask()
        for _ in range(59):
            slow.write(b"P")
            self.clock.advance(IDLE / 60)
        self.assertTrue(slow.transport.connected)
        slow.write(b"P")
        self.clock.advance(IDLE / 60)
        self.assertFalse(slow.transport.connected)
        self.clock.advance(IDLE)
        self.sender.sent[-1][1].callback(Ack(message_id="new-1"))
        self.assertIsNotNone(good.response)
        self.clock.advance(IDLE - 1)
        self.assertTrue(good.transport.connected)
        self.clock.advance(1)
        self.assertFalse(good.transport.connected)

    def test_tooManyClients(self) -> None:
        """
        No more clients are let in than there may be; when one leaves, another
        one is.
        """
        clients = [Client(self.api) for _ in range(MAX_CLIENTS)]
        self.assertIsNone(self.api.site.buildProtocol(LOOPBACK))
        clients[0].transport.loseConnection()
        self.assertIsNotNone(self.api.site.buildProtocol(LOOPBACK))

    def test_unknownField(self) -> None:
        """
        A field that there is not is refused by its name, because it may be one
        that was mistyped; nothing is sent.
        """
        for field in ("time_to_liv", "message_type", "bogus" * 100):
            body = json.dumps({"to": "tok-A", "message_id": "m", field: 5}).encode()
            response = Client(self.api).asked(body)
            expected = {"error": {"reason": f"there is no field {field[:100]!r}", "message_id": "m"}}
            self.assertEqual((400, expected), (response.status, response.value))
        self.assertEqual([], self.sender.sent)

    def test_noLog(self) -> None:
        """
        A request is not logged: there may be secrets in it.
        """
        self.api.site.doStart()
        self.addCleanup(self.api.site.doStop)
        with capturedLogs() as events:
            Client(self.api).ask(path="/send?secret")
            Client(self.api).ask(path="/secret", method="GET")
        self.assertEqual([], events)
        self.assertEqual([b"http/1.1"], self.api.site.acceptableProtocols())


class AdmissionTests(APICase):
    """
    Who may send.
    """

    def statuses(self, api: SendAPI, address: Any, *headers: dict[str, str | None]) -> list[int]:
        """
        What requests with these headers are answered with; 200 if the message
        was sent.
        """
        statuses = []
        for each in headers:
            self.sender.sent.clear()
            client = Client(api, address)
            client.ask(**each)
            response = client.response
            statuses.append(response.status if response is not None else 200)
            self.assertEqual(response is None, bool(self.sender.sent))
        return statuses

    def test_unix(self) -> None:
        """
        Over a unix socket the permissions of its file decide.
        """
        unix = UNIXAddress(b"/run/socket")
        self.assertEqual([200, 200], self.statuses(self.api, unix, {}, {"Host": "anything"}))

    def test_loopback(self) -> None:
        """
        Over TCP without a token it has to be this machine, by one of its own
        names: a page in a browser can have another name lead here.
        """
        names: list[dict[str, str | None]] = [
            {"Host": host}
            for host in ("localhost", "LOCALHOST:80", "127.0.0.1", "127.0.0.1:8080", "[::1]", "[::1]:8080")
        ]
        for address in (LOOPBACK, IPv6Address("TCP", "::1", 8080)):
            self.assertEqual([200] * 6, self.statuses(self.api, address, *names))
        wrong: list[dict[str, str | None]] = [
            {"Host": host}
            for host in (None, "", "evil.example.org", "localhost.evil.example.org:8080", "[fe80::1]", "\xff")
        ]
        self.assertEqual([403] * 6, self.statuses(self.api, LOOPBACK, *wrong))

    def test_network(self) -> None:
        """
        Without a token nobody from elsewhere is let in, wherever this listens.
        """
        for address in (IPv4Address("TCP", "192.0.2.1", 8080), IPv6Address("TCP", "2001:db8::1", 8080), None):
            self.assertEqual([403], self.statuses(self.api, address, {}))

    def test_token(self) -> None:
        """
        With a token everybody has to show it, on whatever way, and nobody else
        learns what there is.
        """
        api = self.made("EXAMPLE-TOKEN")
        for address in (LOOPBACK, IPv4Address("TCP", "192.0.2.1", 80), UNIXAddress(b"/run/socket")):
            good: list[dict[str, str | None]] = [
                {"Authorization": value, "Host": "api.example.org"}
                for value in ("Bearer EXAMPLE-TOKEN", "bearer  EXAMPLE-TOKEN")
            ]
            self.assertEqual([200, 200], self.statuses(api, address, *good))
            wrong: list[dict[str, str | None]] = [
                {"Authorization": value}
                for value in (
                    None,
                    "",
                    "EXAMPLE-TOKEN",
                    "Basic EXAMPLE-TOKEN",
                    "Bearer",
                    "Bearer EXAMPLE",
                    "\xff",
                )
            ]
            self.assertEqual([401] * 7, self.statuses(api, address, *wrong))
        response = Client(api).asked(method="GET", path="/secret")
        self.assertEqual((401, "Bearer"), (response.status, response.headers["www-authenticate"]))
        self.assertNotIn(b"EXAMPLE-TOKEN", response.body)


class ServiceTests(APICase):
    """
    Listening, and its end.
    """

    def test_listensOnce(self) -> None:
        """
        It listens when the privileged start comes, else at the start.
        """
        self.assertEqual(1, self.endpoint.calls)
        api = self.made()
        api.privilegedStartService()
        api.startService()
        self.assertEqual(2, self.endpoint.calls)

    def test_told(self) -> None:
        """
        Where it listens is logged.
        """
        for address, where in (
            (LOOPBACK, "127.0.0.1:8080"),
            (IPv6Address("TCP", "::1", 8080), "[::1]:8080"),
            (UNIXAddress(b"/run/socket"), "/run/socket"),
            (UNIXAddress(b""), "a unix socket"),
            ("elsewhere", "elsewhere"),
        ):
            self.endpoint.port.address = address
            with capturedLogs() as events:
                self.made().startService()
            self.assertEqual([f"the send API listens on {where}"], [formatEvent(event) for event in events])

    def test_cannotListen(self) -> None:
        """
        A port that cannot be had is raised; if that is known later only, it is
        logged.
        """
        error = CannotListenError(None, 80, OSError(98, "Address already in use"))
        self.endpoint.result = fail(error)
        self.assertRaises(CannotListenError, self.made().privilegedStartService)
        self.endpoint.result = later = Deferred()
        api = self.made()
        api.startService()
        later.errback(error)
        self.assertEqual(1, len(self.flushLoggedErrors(CannotListenError)))
        self.successResultOf(api.stopService())

    def test_stop(self) -> None:
        """
        At the stop nothing new is let in, those who wait get their answers, and
        then all connections are closed.
        """
        idle, begun, waits = Client(self.api), Client(self.api), Client(self.api)
        begun.ask(b"", Content_Length="5")
        waits.ask()
        waits.ask()
        stopped = self.api.stopService()
        self.assertTrue(self.endpoint.port.stopping)
        self.assertEqual(
            [False, False, True], [client.transport.connected for client in (idle, begun, waits)]
        )
        self.assertNoResult(stopped)
        self.sender.sent[0][1].errback(Stopped("the app server has stopped"))
        response = waits.response
        assert response is not None
        self.assertEqual(503, response.status)
        second = Response(response.rest)
        self.assertEqual(
            (503, "the app server is stopping"), (second.status, second.value["error"]["reason"])
        )
        self.assertEqual(1, len(self.sender.sent))
        self.assertFalse(waits.transport.connected)
        self.successResultOf(stopped)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_stopWithHungUp(self) -> None:
        """
        A client that hangs up meanwhile is not waited for.
        """
        client = Client(self.api)
        client.ask()
        stopped = self.api.stopService()
        client.protocol.connectionLost(Failure(ConnectionDone()))
        self.successResultOf(stopped)

    def test_stopWithStalled(self) -> None:
        """
        A client that does not read is not waited for very long.
        """
        client, other = Client(self.api), Client(self.api)
        aborted = []
        for each in (client, other):
            each.transport.loseConnection = lambda: None  # type: ignore[method-assign]
            each.transport.abortConnection = lambda each=each: aborted.append(each)  # type: ignore[method-assign]
        stopped = self.api.stopService()
        other.protocol.connectionLost(Failure(ConnectionDone()))
        self.clock.advance(PATIENCE - 0.1)
        self.assertEqual([], aborted)
        self.clock.advance(0.1)
        self.assertEqual([client], aborted)
        self.assertNoResult(stopped)
        client.protocol.connectionLost(Failure(ConnectionDone()))
        self.successResultOf(stopped)

    def test_stopWithoutFile(self) -> None:
        """
        That somebody has removed the socket's file is a warning.
        """
        self.endpoint.port.problem = FileNotFoundError(2, "No such file or directory")
        with capturedLogs() as events:
            self.successResultOf(self.api.stopService())
        self.assertIn(
            "closing the send API's port failed: No such file or directory",
            [formatEvent(event) for event in events],
        )


class DescriptionTests(SynchronousTestCase):
    """
    Endpoint descriptions.
    """

    def test_local(self) -> None:
        """
        What nobody from elsewhere can reach, and what cannot be told apart from
        that which they can.
        """
        for description in (
            "unix:/run/socket",
            "unix:address=/run/socket",
            "tcp:8080:interface=127.0.0.1",
            "tcp:8080:127.0.0.1",
            "tcp:interface=localhost:port=8080",
            r"tcp:8080:interface=\:\:1",
            r"tcp6:8080:interface=\:\:1",
            "ssl:8443:privateKey=k:interface=127.0.0.1",
            "systemd:domain=UNIX:index=0",
        ):
            self.assertTrue(isLocal(description), description)
        for description in (
            "",
            "tcp",
            "tcp:8080",
            "tcp:8080:interface=",
            "tcp:8080:interface=0.0.0.0",
            "tcp:8080:192.0.2.1",
            "tcp:8080:interface=192.0.2.1",
            r"tcp:8080\:interface=127.0.0.1",
            r"tcp:8080:interface=\:\:",
            "tcp6:8080",
            "ssl:8443",
            "systemd:domain=INET:index=0",
            "onion:80:interface=127.0.0.1",
            "interface=127.0.0.1",
        ):
            self.assertFalse(isLocal(description), description)

    def test_wrong(self) -> None:
        """
        What is no description raises.
        """
        for description in (
            "",
            "unix",
            "unix:",
            "unix:a\0b",
            "nonsense:1",
            "tcp:x",
            "tcp:1:2:3:4:5",
            "a=b",
            "unix:/a:mode=9",
        ):
            with self.assertRaises((ValueError, TypeError, LookupError), msg=description):
                listener(MemoryReactor(), description)

    def mode(self, description: str) -> tuple[Any, ...]:
        """
        How this has the reactor listen.
        """
        reactor = MemoryReactor()
        self.successResultOf(listener(reactor, description).listen(None))  # type: ignore[arg-type]
        ((address, _, _, mode, lock),) = reactor.unixServers
        return address, oct(mode), lock

    def test_mode(self) -> None:
        """
        A unix socket is for its owner alone and has no lock file, unless the
        description says otherwise.
        """
        for description, expected in (
            ("unix:/none/s", ("/none/s", "0o600", False)),
            ("unix:address=/none/s", ("/none/s", "0o600", False)),
            (r"unix:/none/s\:t", ("/none/s:t", "0o600", False)),
            (r"unix:/none/s\=t", ("/none/s=t", "0o600", False)),
            ("unix:/none/s:mode=660", ("/none/s", "0o660", False)),
            ("unix:/none/s:666", ("/none/s", "0o666", False)),
            ("unix:/none/s:lockfile=1", ("/none/s", "0o600", True)),
            ("unix:/none/s:666:5:1", ("/none/s", "0o666", True)),
        ):
            self.assertEqual(expected, self.mode(description))

    def test_tcp(self) -> None:
        """
        Other descriptions are Twisted's affair.
        """
        reactor = MemoryReactor()
        self.successResultOf(listener(reactor, "tcp:8080:interface=127.0.0.1").listen(None))  # type: ignore[arg-type]
        self.assertEqual((8080, "127.0.0.1"), (reactor.tcpServers[0][0], reactor.tcpServers[0][3]))


class StaleTests(SynchronousTestCase):
    """
    A unix socket's file that is there already.
    """

    def setUp(self) -> None:
        """
        Have a place for it.
        """
        directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, directory)
        self.path = Path(directory, "socket")

    def listen(self) -> Deferred[Any]:
        """
        Listen there, but for the last step.
        """
        return listener(MemoryReactor(), f"unix:{self.path}").listen(None)  # type: ignore[arg-type]

    def bound(self) -> socket.socket:
        """
        A socket of that name.
        """
        bound = socket.socket(socket.AF_UNIX)
        self.addCleanup(bound.close)
        bound.bind(str(self.path))
        return bound

    def refused(self) -> str:
        """
        It cannot be listened there.

        @return: the reason.
        """
        failure = self.failureResultOf(self.listen(), CannotListenError)
        return str(failure.value.socketError.strerror)

    def test_stale(self) -> None:
        """
        One that a crash has left is removed.
        """
        self.bound().close()
        self.assertTrue(stat.S_ISSOCK(self.path.stat().st_mode))
        self.successResultOf(self.listen())
        self.assertFalse(self.path.exists())

    def test_alive(self) -> None:
        """
        One that somebody listens on stays, be he busy or not.
        """
        self.bound().listen(0)
        for _ in range(3):
            self.assertEqual("somebody listens on it already", self.refused())
            client = socket.socket(socket.AF_UNIX)
            self.addCleanup(client.close)
            client.setblocking(False)
            client.connect_ex(str(self.path))
        self.assertTrue(self.path.exists())

    def test_file(self) -> None:
        """
        A file that is no socket stays.
        """
        self.path.write_text("precious")
        self.assertIn("no socket", self.refused())
        self.assertEqual("precious", self.path.read_text())
        self.path.unlink()
        os.symlink("/nowhere", self.path)
        self.assertIn("no socket", self.refused())
