"""
Tests for L{fcmxmpp.webhook}: real HTTP on both sides, in memory.

HTTPS and real sockets are in test_commandline.py.
"""

from __future__ import annotations

import json
from typing import Any

from OpenSSL import SSL
from service_identity import VerificationError
from treq.testing import RequestTraversalAgent
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionAborted, ConnectionRefusedError, DNSLookupError
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel, capturedLogs, eventAsText, formatEvent
from twisted.python.failure import Failure
from twisted.test.iosim import FakeTransport, connect
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseNeverReceived
from twisted.web.iweb import IAgent
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site
from zope.interface import implementer
from zope.interface.verify import verifyObject

from fcmxmpp import __version__
from fcmxmpp.delivery import Policy, UpstreamDelivery
from fcmxmpp.errors import HandlerUnavailable, Nacked
from fcmxmpp.handlers import asJSON
from fcmxmpp.interfaces import IUpstreamHandler
from fcmxmpp.messages import DownstreamMessage, UpstreamMessage
from fcmxmpp.webhook import (
    CLOSE_PATIENCE,
    MAX_ANSWER,
    TIMEOUT,
    Webhook,
    WebhookConnections,
    WebhookRefused,
    checkURL,
)
from tests.sending import Sender


URL = "http://localhost:8000/in?key=secret-of-url"


def message(message_id: str = "m-1", **more: Any) -> UpstreamMessage:
    """
    A message.
    """
    return UpstreamMessage(message_id=message_id, from_="tok-A", **more)


class Hook(Resource):
    """
    A web server's end of the webhook.

    @ivar requests: what came: each request, with its body.
    @ivar status: to answer with.
    @ivar answer: the answer's body; None to answer later.
    """

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[tuple[Request, bytes]] = []
        self.gone: list[Request] = []
        self.status = 200
        self.headers: dict[bytes, bytes] = {}
        self.answer: bytes | None = b""

    def render(self, request: Request) -> bytes | int:
        self.requests.append((request, request.content.read()))
        request.notifyFinish().addErrback(lambda _: self.gone.append(request))
        request.setResponseCode(self.status)
        for name, value in self.headers.items():
            request.setHeader(name, value)
        return NOT_DONE_YET if self.answer is None else self.answer


@implementer(IAgent)
class Failing:
    """
    An agent whose requests all fail.
    """

    def __init__(self, error: Exception) -> None:
        self._error = error

    def request(self, *_: Any) -> Deferred[Any]:
        return fail(self._error)


class WebhookCase(SynchronousTestCase):
    """
    Tests with a webhook.
    """

    def setUp(self) -> None:
        """
        Have both ends.
        """
        self.hook = Hook()
        self.sender = Sender()
        self.clock = Clock()
        self.agent = RequestTraversalAgent(self.hook)
        self.handler = self.made()

    def made(self, url: str = URL, agent: Any = None, **more: Any) -> Webhook:
        """
        A webhook.
        """
        return Webhook(url, self.sender, agent or self.agent, self.clock, **more)

    def logged(self, function: Any, *arguments: Any) -> list[str]:
        """
        The warnings that this logs; none of them has a secret.
        """
        with capturedLogs() as events:
            function(*arguments)
        lines = [str(formatEvent(event)) for event in events if event["log_level"] >= LogLevel.warn]
        for line in lines:
            for secret in ("tok-", "secret", "payload"):
                self.assertNotIn(secret, line)
        return lines


class RequestTests(WebhookCase):
    """
    What is POSTed.
    """

    def test_interface(self) -> None:
        """
        It is an L{IUpstreamHandler}.
        """
        verifyObject(IUpstreamHandler, self.handler)

    def test_request(self) -> None:
        """
        A message is POSTed as the JSON object that the jsonlines handler
        writes, says what it is and who sends it, and no token is sent.
        """
        each = message(data={"k": "v\n\u00e5"}, category="org.example.app", time_to_live=60)
        self.assertIsNone(self.successResultOf(self.handler.messageReceived(each)))
        ((request, body),) = self.hook.requests
        self.assertEqual(asJSON(each), body)
        self.assertEqual({"message_id", "from", "category", "data", "time_to_live"}, set(json.loads(body)))
        self.assertEqual((b"POST", b"/in?key=secret-of-url"), (request.method, request.uri))
        self.assertEqual("application/json", request.getHeader("content-type"))
        self.assertEqual(f"fcmxmpp/{__version__}", request.getHeader("user-agent"))
        self.assertEqual(str(len(body)), request.getHeader("content-length"))
        self.assertIsNone(request.getHeader("authorization"))

    def test_token(self) -> None:
        """
        A token goes with every request.
        """
        handler = self.made(token="EXAMPLE-TOKEN")
        for message_id in ("m-1", "m-2"):
            self.successResultOf(handler.messageReceived(message(message_id)))
        for request, _ in self.hook.requests:
            self.assertEqual(
                [b"Bearer EXAMPLE-TOKEN"], request.requestHeaders.getRawHeaders(b"authorization")
            )

    def test_atOnce(self) -> None:
        """
        There are at most so many requests at once, the others follow in order;
        a cancelled one makes room as well, and one that is cancelled before its
        turn is never made.
        """
        self.hook.answer = None
        handler = self.made(concurrency=2)
        results = [handler.messageReceived(message(f"m-{number}")) for number in range(5)]

        def ids() -> list[str]:
            self.agent.flush()
            return [json.loads(body)["message_id"] for _, body in self.hook.requests]

        self.assertEqual(["m-0", "m-1"], ids())
        results[2].cancel()
        self.hook.requests[1][0].finish()
        self.assertEqual(["m-0", "m-1", "m-3"], ids())
        results[0].cancel()
        self.assertEqual(["m-0", "m-1", "m-3", "m-4"], ids())
        self.assertEqual([self.hook.requests[0][0]], self.hook.gone)
        for _, request in zip("34", self.hook.requests[2:], strict=True):
            request[0].finish()
        self.agent.flush()
        self.assertEqual([False, True, False, True, True], [self.isSuccess(result) for result in results])

    def isSuccess(self, result: Deferred[None]) -> bool:
        """
        Whether a Deferred has fired well.
        """
        ended: list[bool] = []
        result.addCallbacks(lambda _: ended.append(True), lambda _: ended.append(False))
        return ended == [True]


class StatusTests(WebhookCase):
    """
    What the answer says about the message.
    """

    def test_handled(self) -> None:
        """
        Any 2xx means that it has been handled.
        """
        for self.hook.status in (200, 201, 202, 204, 299):
            self.assertEqual(
                [], self.logged(lambda: self.successResultOf(self.handler.messageReceived(message())))
            )

    def test_later(self) -> None:
        """
        With these the message waits, and the reason is the status: the web
        server has trouble, or its URL or the token is wrong.
        """
        for self.hook.status in (401, 403, 404, 405, 408, 429, 502, 503, 504):
            results = []
            lines = self.logged(lambda r=results: r.append(self.handler.messageReceived(message())))
            failure = self.failureResultOf(results[0], HandlerUnavailable)
            self.assertEqual(f"the webhook answered {self.hook.status}", str(failure.value))
            self.assertEqual([], lines)

    def test_refused(self) -> None:
        """
        With any other the try has failed, and the reason is the status.
        """
        for self.hook.status in (400, 402, 406, 413, 500, 501, 505, 599):
            results = []
            lines = self.logged(lambda r=results: r.append(self.handler.messageReceived(message())))
            failure = self.failureResultOf(results[0], WebhookRefused)
            self.assertEqual(f"the webhook answered {self.hook.status}", str(failure.value))
            self.assertEqual([], lines)

    def test_refusedInTheLog(self) -> None:
        """
        Each refusal is one line without a traceback, and the dead letter has
        its status, too; what waits is told as well.
        """
        self.hook.status = 500
        delivery = UpstreamDelivery(self.handler, Policy(handlerTries=2), self.clock, lambda: 0.0)
        with capturedLogs() as events:
            taken = delivery.take(message(data={"k": "payload"}))
            self.clock.advance(1)
            self.successResultOf(taken)
            self.hook.status = 404
            self.assertNoResult(delivery.take(message("m-2")))
        self.assertEqual(
            [
                "the handler failed on 'm-1': the webhook answered 500; next try in 1.0 s",
                "the handler failed again on 'm-1': the webhook answered 500; no more tries",
                "dead letter 'm-1': the handler failed 2 times, last: the webhook answered 500",
                "the handler cannot work now: the webhook answered 404; messages that wait for it: 1",
            ],
            [eventAsText(event, includeTimestamp=False, includeSystem=False) for event in events],
        )

    def test_redirect(self) -> None:
        """
        A redirect is not followed, and says so; the message waits until the
        URL has been put right.
        """
        self.hook.headers = {b"Location": b"http://localhost/secret"}
        for self.hook.status in (300, 301, 302, 303, 307, 308):
            failure = self.failureResultOf(self.handler.messageReceived(message()), HandlerUnavailable)
            self.assertEqual(
                f"the webhook answered {self.hook.status}, a redirect, which is not followed",
                str(failure.value),
            )
        self.assertEqual(6, len(self.hook.requests))

    def test_errorPage(self) -> None:
        """
        The body of a refusal is not looked at, be it JSON or too long.
        """
        self.hook.status = 500
        self.hook.headers = {b"Content-Type": b"application/json"}
        self.hook.answer = b'{"send": [{"to": "tok-B"}]}'
        self.failureResultOf(self.handler.messageReceived(message()), WebhookRefused)
        self.hook.answer = b"x" * (MAX_ANSWER + 1)
        self.failureResultOf(self.handler.messageReceived(message()), WebhookRefused)
        self.assertEqual([], self.sender.sent)

    def test_unreachable(self) -> None:
        """
        A request that cannot be made leaves the message waiting; the reason
        names the error's kind and nothing of the URL.
        """
        tls = SSL.Error([("SSL routines", "", "certificate verify failed")])
        for error, kind in (
            (ConnectionRefusedError(URL), "ConnectionRefusedError"),
            (DNSLookupError(URL), "DNSLookupError"),
            (ResponseNeverReceived([Failure(tls)]), "TLS failed: certificate verify failed"),
            (ResponseNeverReceived([Failure(SSL.Error())]), "TLS failed: no reason given"),
            (
                ResponseNeverReceived([Failure(VerificationError([]))]),
                "its certificate is for another host name",
            ),
            (ValueError(URL), "ValueError"),
        ):
            handler = self.made(agent=Failing(error))
            failure = self.failureResultOf(handler.messageReceived(message()), HandlerUnavailable)
            self.assertEqual(f"no answer from the webhook: {kind}", str(failure.value))


class TimeTests(WebhookCase):
    """
    A webhook that takes its time.
    """

    def test_noAnswer(self) -> None:
        """
        A request without an answer is given up in time, with its connection,
        and the message waits.
        """
        self.hook.answer = None
        result = self.handler.messageReceived(message())
        self.clock.advance(29)
        self.assertNoResult(result)
        self.clock.advance(1)
        failure = self.failureResultOf(result, HandlerUnavailable)
        self.assertEqual("no answer from the webhook: it took more than 30 s", str(failure.value))
        self.agent.flush()
        self.assertEqual(1, len(self.hook.gone))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_turn(self) -> None:
        """
        Waiting for a turn counts, too: the end of the handler time-out would
        count as a failed try.
        """
        self.hook.answer = None
        handler = self.made(concurrency=1, timeout=10)
        first = handler.messageReceived(message("m-1"))
        self.clock.advance(9)
        second = handler.messageReceived(message("m-2"))
        third = handler.messageReceived(message("m-3"))
        self.clock.advance(1)
        self.failureResultOf(first, HandlerUnavailable)
        self.clock.advance(8)
        self.assertEqual(2, len(self.hook.requests))
        self.clock.advance(1)
        failure = self.failureResultOf(second, HandlerUnavailable)
        self.assertIn("no answer", str(failure.value))
        failure = self.failureResultOf(third, HandlerUnavailable)
        self.assertIn("has others to answer", str(failure.value))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_cancelled(self) -> None:
        """
        Cancelling, which the handler time-out does, ends the request.
        """
        self.hook.answer = None
        result = self.handler.messageReceived(message())
        result.cancel()
        self.agent.flush()
        self.assertEqual(1, len(self.hook.gone))
        self.assertEqual([], self.clock.getDelayedCalls())
        self.failureResultOf(result)

    def test_cancelledReading(self) -> None:
        """
        So does it while the answer is being read.
        """
        self.hook.answer = None
        result = self.handler.messageReceived(message())
        self.hook.requests[0][0].write(b"begun")
        self.agent.flush()
        self.assertEqual([], self.logged(result.cancel))
        self.agent.flush()
        self.assertEqual(1, len(self.hook.gone))
        self.failureResultOf(result)

    def test_bodyStalls(self) -> None:
        """
        When the answer's body does not come to its end, the status counts, as
        it would if the message were POSTed again.
        """
        for status in (200, 503):
            self.hook.status, self.hook.answer = status, None
            result = self.handler.messageReceived(message())
            self.hook.requests[-1][0].write(b"begun")
            self.agent.flush()
            self.clock.advance(29)
            self.assertNoResult(result)
            self.assertEqual(
                [f"the webhook's answer {status} to 'm-1' cannot be read to its end: it took more than 30 s"],
                self.logged(self.clock.advance, 1),
            )
            if status == 200:
                self.successResultOf(result)
            else:
                self.failureResultOf(result, HandlerUnavailable)


class AnswerTests(WebhookCase):
    """
    What the answer says to send.
    """

    def answered(self, answer: bytes | str, kind: bytes = b"application/json") -> list[str]:
        """
        A message is handled, with this answer.

        @return: what is logged.
        """
        self.hook.answer = answer if isinstance(answer, bytes) else answer.encode()
        self.hook.headers = {b"Content-Type": kind}
        return self.logged(lambda: self.successResultOf(self.handler.messageReceived(message())))

    def test_sent(self) -> None:
        """
        Each is sent, and none of them is waited for.
        """
        for kind in (b"application/json", b"Application/JSON; charset=utf-8"):
            lines = self.answered(
                '{"send": [{"to": "tok-B", "data": {"k": "\u00e5"}},'
                ' {"condition": "c", "message_id": "d-1"}], "more": 1}',
                kind,
            )
            sent = [each for each, _ in self.sender.sent]
            self.assertEqual(
                [
                    DownstreamMessage(to="tok-B", data={"k": "\u00e5"}),
                    DownstreamMessage(condition="c", message_id="d-1"),
                ],
                sent,
            )
            self.assertEqual([], lines)
            self.sender.sent.clear()

    def test_nothingToSend(self) -> None:
        """
        Other JSON is all right, and so is an empty answer, of whatever kind.
        """
        for answer in ("{}", '{"send": []}', "[]", '"ok"', "1", "null", "true", ""):
            self.assertEqual([], self.answered(answer), answer)
        for answer in ("", " \r\n"):
            self.assertEqual([], self.answered(answer, b"text/plain"))
        self.assertEqual([], self.sender.sent)

    def test_otherKinds(self) -> None:
        """
        An answer of another kind is a warning for each message that gets one,
        because it may have been meant to be sent; the message has been handled.
        """
        said = "the webhook's answer to 'm-1' is ignored: its Content-Type is not application/json"
        for kind in (b"text/plain", b"text/html; charset=utf-8", b"application/json-seq", b""):
            for _ in range(2):
                self.assertEqual([said], self.answered('{"send": [{"to": "tok-B"}]}', kind))
        self.hook.headers = {}
        self.assertEqual(
            [said], self.logged(lambda: self.successResultOf(self.handler.messageReceived(message())))
        )
        self.assertEqual([], self.sender.sent)

    def test_otherKindOfRefusal(self) -> None:
        """
        The page that comes with an error is not worth a warning.
        """
        self.hook.headers = {b"Content-Type": b"text/html"}
        self.hook.answer = b"<h1>No</h1>"
        for self.hook.status, error in ((500, WebhookRefused), (503, HandlerUnavailable)):
            lines = self.logged(
                lambda e=error: self.failureResultOf(self.handler.messageReceived(message()), e)
            )
            self.assertEqual([], lines)

    def test_malformed(self) -> None:
        """
        What is not JSON, or has something else to send, is a warning, and the
        message has been handled.
        """
        for answer in ("{", '{"send": 1}', '{"send": null}', b'{"send": "\xff"}', "[" * 100_000, "secret"):
            (line,) = self.answered(answer)
            self.assertEqual("the webhook's answer to 'm-1' is ignored: it is not {\"send\": [...]}", line)

    def test_malformedItems(self) -> None:
        """
        One that is no downstream message is a warning that names it, and the
        others are sent.
        """
        lines = self.answered(
            '{"send": [7, {"to": "tok-B", "message_id": "d-1", "data": {"payload": 1}},'
            ' {"to": "tok-B", "to": "tok-C"}, {"to": "tok-D"}]}'
        )
        self.assertEqual(["tok-D"], [each.to for each, _ in self.sender.sent])
        self.assertEqual(3, len(lines))
        self.assertRegex(lines[0], "^the answer '' to 'm-1' was not sent: Expected ")
        self.assertRegex(lines[1], r"^the answer 'd-1' to 'm-1' was not sent: Expected .*\$\.data")
        self.assertRegex(lines[2], "^the answer '' to 'm-1' was not sent: Duplicate key")

    def test_refused(self) -> None:
        """
        One that is refused later is a warning, too.
        """
        self.answered('{"send": [{"to": "tok-B", "message_id": "d-1"}]}')
        ((_, result),) = self.sender.sent
        self.assertEqual(
            ["the answer 'd-1' to 'm-1' was not sent: DEVICE_UNREGISTERED"],
            self.logged(result.errback, Nacked("DEVICE_UNREGISTERED", "d-1", "tok-C")),
        )

    def test_tooLong(self) -> None:
        """
        An answer is read up to a limit; beyond it is a warning, and the message
        has been handled.
        """
        filled = b'{"send": [{"to": "tok-B"}]'
        self.assertEqual([], self.answered(filled + b" " * (MAX_ANSWER - len(filled) - 1) + b"}"))
        self.assertEqual(1, len(self.sender.sent))
        (line,) = self.answered(filled + b" " * (MAX_ANSWER - len(filled)) + b"}")
        self.assertIn("it has more than 1048576 bytes", line)
        self.assertEqual(1, len(self.sender.sent))

    def test_endless(self) -> None:
        """
        One that goes on beyond the limit is not read on, and its connection is
        closed.
        """
        self.hook.answer = None
        result = self.handler.messageReceived(message())
        ((request, _),) = self.hook.requests

        def goOn() -> None:
            for _ in range(3):
                request.write(b"x" * MAX_ANSWER)
            self.agent.flush()

        self.assertEqual(1, len(self.logged(goOn)))
        self.successResultOf(result)
        self.assertEqual([request], self.hook.gone)

    def test_torn(self) -> None:
        """
        An answer that ends before its end is a warning.
        """
        self.hook.headers = {b"Content-Length": b"100", b"Content-Type": b"application/json"}
        self.hook.answer = None
        result = self.handler.messageReceived(message())
        self.hook.requests[0][0].write(b"{}")
        self.hook.requests[0][0].channel.loseConnection()
        (line,) = self.logged(self.agent.flush)
        self.assertIn("cannot be read to its end: ConnectionDone", line)
        self.successResultOf(result)


class URLTests(WebhookCase):
    """
    Which URLs do.
    """

    def test_good(self) -> None:
        """
        Those of web servers; what is not ASCII is encoded.
        """
        for url, encoded in (
            ("https://hook.example.org", "https://hook.example.org"),
            ("https://hook.example.org:8443/a/b?c=d", "https://hook.example.org:8443/a/b?c=d"),
            ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/"),
            ("https://h\u00f6k.example.org/\u00e5", "https://xn--hk-fka.example.org/%C3%A5"),
        ):
            self.assertEqual(encoded, checkURL(url))

    def test_wrong(self) -> None:
        """
        Others are refused with a reason that does not quote them.
        """
        for url, said in (
            ("", "has to begin with"),
            ("hook.example.org/secret", "has to begin with"),
            ("ftp://secret", "has to begin with"),
            ("https:///secret", "has to begin with"),
            ("https://host:secret/", "is no URL"),
            ("https://[secret/", "is no URL"),
            ("https://user:secret@host/", "--webhook-token-file"),
            ("https://secret@host/", "--webhook-token-file"),
            ("https://host/a secret", "must not have a blank"),
            ("https://host/a\nsecret", "must not have a blank"),
            ("https://[::1]/secret", "IPv6"),
            (f"https://{'secret' * 20}.org/", "is no URL"),
        ):
            error = self.assertRaises(ValueError, checkURL, url)
            self.assertIn(said, str(error), url)
            self.assertNotIn("secret", str(error))
            self.assertRaises(ValueError, self.made, url)

    def test_tokenInClear(self) -> None:
        """
        A token goes over https, or to this machine.
        """
        for url in ("https://hook.example.org", "http://127.0.0.1", "http://localhost:1/"):
            self.assertEqual(url, checkURL(url, withToken=True))
        error = self.assertRaises(ValueError, checkURL, "http://hook.example.org", withToken=True)
        self.assertIn("https://", str(error))
        self.assertRaises(ValueError, self.made, "http://hook.example.org", token="t")

    def test_plain(self) -> None:
        """
        That messages go over the network unprotected is a warning.
        """
        (line,) = self.logged(self.made, "http://hook.example.org/?secret")
        self.assertIn("not https", line)
        self.assertEqual([], self.logged(self.made, "http://127.0.0.1/"))
        self.assertEqual([], self.logged(self.made, "https://hook.example.org/"))


class Stubborn(FakeTransport):
    """
    A connection that waits for its peer when it is to be closed, in vain.
    """

    def loseConnection(self) -> None:
        """
        Wait.
        """

    def abortConnection(self) -> None:
        """
        End it.
        """
        super().abortConnection()
        self.disconnected = True
        self.protocol.connectionLost(Failure(ConnectionAborted()))


class ConnectionsTests(SynchronousTestCase):
    """
    L{WebhookConnections} keeps connections.
    """

    def test_stop(self) -> None:
        """
        A connection is used for one request after the other, and closed when
        the service stops, which fires when it is.
        """
        reactor = MemoryReactorClock()
        connections = WebhookConnections(reactor)
        connections.startService()
        handler = Webhook("http://127.0.0.1:8000/", Sender(), connections.agent, reactor)
        self.successResultOf(self.answeredBy(handler, reactor))
        self.successResultOf(self.answeredBy(handler, reactor))
        self.assertEqual(1, len(reactor.tcpClients))
        stopped = connections.stopService()
        self.assertNoResult(stopped)
        self.pump.flush()
        self.successResultOf(stopped)
        self.assertEqual([], reactor.getDelayedCalls())

    def test_quiet(self) -> None:
        """
        Connections come and go without a line in the log.
        """
        reactor = MemoryReactorClock()
        handler = Webhook("http://127.0.0.1:8000/", Sender(), WebhookConnections(reactor).agent, reactor)
        with capturedLogs() as events:
            end = self.hanging(handler, reactor, b"")
            connecting = reactor.tcpClients[0][2]
            # As the reactor does.
            connecting.doStart()
            end.abortConnection()
            connecting.doStop()
        self.assertEqual([], [formatEvent(event) for event in events])

    def test_stopUnanswered(self) -> None:
        """
        One whose peer does not have it closed, as TLS can if the web server
        hangs, is dropped, so that the stop comes to its end.
        """
        reactor = MemoryReactorClock()
        connections = WebhookConnections(reactor)
        connections.startService()
        handler = Webhook("http://127.0.0.1:8000/", Sender(), connections.agent, reactor)
        end = self.hanging(handler, reactor, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        stopped = connections.stopService()
        self.assertNoResult(stopped)
        reactor.advance(CLOSE_PATIENCE)
        self.assertTrue(end.disconnected)
        self.successResultOf(stopped)
        self.assertEqual([], reactor.getDelayedCalls())

    def test_bodyHangs(self) -> None:
        """
        Nor does such a peer keep a connection whose answer was not waited for
        any more, be it the whole answer or its rest.
        """
        for begun in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{"):
            reactor = MemoryReactorClock()
            connections = WebhookConnections(reactor)
            handler = Webhook("http://127.0.0.1:8000/", Sender(), connections.agent, reactor)
            end = self.hanging(handler, reactor, begun)
            reactor.advance(TIMEOUT)
            reactor.advance(CLOSE_PATIENCE)
            self.assertTrue(end.disconnected)
            self.assertEqual([], reactor.getDelayedCalls())

    def hanging(self, handler: Webhook, reactor: MemoryReactorClock, answer: bytes) -> Stubborn:
        """
        Have a message POSTed, and so much answered.

        @return: the end of that connection, which only an abort closes.
        """
        handler.messageReceived(message()).addErrback(lambda f: f.trap(HandlerUnavailable))
        client = reactor.tcpClients[0][2].buildProtocol(None)
        end = Stubborn(client, isServer=False)
        client.makeConnection(end)
        client.dataReceived(answer)
        return end

    def answeredBy(self, handler: Webhook, reactor: MemoryReactorClock) -> Deferred[None]:
        """
        What comes of a message that a web server answers.
        """
        result = handler.messageReceived(message())
        if not hasattr(self, "pump"):
            client = reactor.tcpClients[0][2].buildProtocol(None)
            server = Site(Hook(), reactor=reactor).buildProtocol(None)
            self.pump = connect(
                server, FakeTransport(server, isServer=True), client, FakeTransport(client, isServer=False)
            )
        self.pump.flush()
        return result
