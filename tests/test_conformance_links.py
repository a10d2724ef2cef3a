"""
Conformance cases of the app server's links: connections that are lost or
silent, and logins that are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from twisted.logger import LogLevel, eventAsText

from fcmxmpp.interfaces import LinkLost, LinkReady
from fcmxmpp.messages import DownstreamMessage
from fcmxmpp.testing import SERVER_KEY, RecordingHandler, ScriptedConnectionServer
from tests.conformance import (
    HOUR,
    NS_STREAM_ERRORS,
    RAW_BIND,
    RAW_HEADER,
    RAW_LOGIN,
    RAW_MECHANISMS,
    AppServerCase,
    LogText,
    RawConnectionServer,
    RawEnd,
    Step,
    envelope,
    rawBound,
    upstream,
    upstreamJSON,
)


class ReconnectTests(AppServerCase):
    """
    Connections that come to an end, or never come about.
    """

    def works(self, pair: Any, handler: RecordingHandler, message_id: str) -> None:
        """
        There is one connection, and it carries messages.
        """
        self.assertEqual(1, pair.network.connections)
        pair.device.send(message_id, {})
        pair.pump()
        self.assertEqual(message_id, handler.ids[-1])
        self.assertEqual(message_id, pair.device.delivered[-1])

    def test_A05_dropsTwice(self) -> None:
        """
        A connection that drops twice in a row is made anew both times: at once
        the first time, and after a short while the second.
        """
        handler = RecordingHandler()
        pair = self.pair(handler)
        self.works(pair, handler, "m-1")
        pair.cut()
        pair.pump()
        self.works(pair, handler, "m-2")
        pair.cut()
        pair.advance(2)
        self.works(pair, handler, "m-3")
        self.handled(handler, ["m-1", "m-2", "m-3"])
        self.assertEqual(3, pair.appServer.links[0].generation)

    def test_A05_dropsTwiceAfterHours(self) -> None:
        """
        Connections that held for long are made anew at once, each time.
        """
        handler = RecordingHandler()
        pair = self.pair(handler)
        for generation in (2, 3, 4):
            pair.advance(2 * HOUR, 30)
            pair.cut()
            pair.pump()
            self.assertEqual(generation, pair.appServer.links[0].generation)
            self.works(pair, handler, f"m-{generation}")

    def test_A05_closedTwice(self) -> None:
        """
        The same holds for connections that the connection server closes in
        order.
        """
        handler = RecordingHandler()
        pair = self.pair(handler)
        for generation in (2, 3):
            pair.connectionServer.stopService()
            pair.advance(2)
            self.assertEqual(generation, pair.appServer.links[0].generation)
            self.works(pair, handler, f"m-{generation}")

    def test_A05_dropsTenTimes(self) -> None:
        """
        Nor does it give up after more drops than that; the pauses grow to a
        minute and no further.
        """
        handler = RecordingHandler()
        pair = self.pair(handler)
        for generation in range(2, 12):
            pair.cut()
            pair.advance(61)
            self.assertEqual(generation, pair.appServer.links[0].generation)
            self.works(pair, handler, f"m-{generation}")

    def test_A05_dropsThenIsRefused(self) -> None:
        """
        A drop followed by refused connections: it is made anew as soon as that
        is possible, and nothing is lost.
        """
        handler = RecordingHandler()
        pair = self.pair(handler)
        pair.network.refuse = True
        pair.cut()
        pair.device.send("m-1", {})
        pair.advance(10 * 60)
        self.assertEqual(0, pair.network.connections)
        pair.network.refuse = False
        pair.advance(61)
        self.assertEqual(["m-1"], pair.device.delivered)
        self.works(pair, handler, "m-2")

    def test_A05_messagesWaitAtTheLogin(self) -> None:
        """
        Messages that come right behind the bind, before the answer to the
        session request that was offered, are no reason to give the new
        connection up.
        """
        handler = RecordingHandler()
        script = RawConnectionServer()

        def boundAndBusy(end: RawEnd, request: bytes) -> None:
            rawBound(end, request)
            end.transport.write(envelope(upstreamJSON("m-1")))

        session = b'<session xmlns="urn:ietf:params:xml:ns:xmpp-session"/></stream:features>'
        offered = RAW_BIND.replace(b"</stream:features>", session)
        script.login = [*RAW_LOGIN[:2], (b"<stream:stream", RAW_HEADER + offered), (b"</iq>", boundAndBusy)]
        joined = self.joined(script, handler)
        self.assertEqual((1, 1), (joined.network.attempts, joined.network.connections))
        self.handled(handler, ["m-1"])
        self.assertIn(b'"message_id":"m-1","message_type":"ack"', script.end.received)

    def test_A17_hungServer(self) -> None:
        """
        A connection server that hangs, with its connection still there: it is
        asked for a sign of life after 60 seconds of silence, and replaced 30
        seconds after that, when what it had not answered goes out again.
        """
        script = RawConnectionServer()
        joined = self.joined(script)
        hung = script.end
        self.assertEqual(1, joined.appServer.links[0].generation)
        result = joined.appServer.send(DownstreamMessage(to="tok-A", message_id="m-1"))
        joined.advance(59)
        self.assertNotIn(b"urn:xmpp:ping", hung.received)
        joined.advance(1)
        self.assertIn(b'<ping xmlns="urn:xmpp:ping"/>', hung.received)
        joined.advance(29)
        self.assertFalse(hung.lost)
        joined.advance(1)
        self.assertTrue(hung.lost)
        self.assertEqual((2, 1), (joined.appServer.links[0].generation, joined.network.connections))
        self.assertIn(b'"message_id":"m-1"', script.end.received)
        script.write(envelope('{"message_type":"ack","from":"tok-A","message_id":"m-1"}'))
        joined.pump()
        self.assertEqual("m-1", self.successResultOf(result).message_id)

    def test_A17_lostRoute(self) -> None:
        """
        A network that swallows everything, in both directions and without a
        FIN: the app server gives the connection up by itself, and has a new
        one soon after the network is back.
        """
        handler = RecordingHandler()
        pair = self.pair(handler)
        pair.network.silent = True
        pair.device.send("m-1", {})
        pair.advance(89)
        self.assertEqual(([], 1), (pair.observer.of(LinkLost), pair.network.attempts))
        pair.advance(1)
        self.assertEqual((1, 2), (len(pair.observer.of(LinkLost)), pair.network.attempts))
        pair.advance(10 * 60)
        pair.network.silent = False
        pair.advance(100)
        self.assertEqual((2, 1), (pair.appServer.links[0].generation, pair.network.connections))
        self.assertEqual(["m-1"], pair.device.delivered)
        self.works(pair, handler, "m-2")

    def test_A17_anyByteIsLife(self) -> None:
        """
        A connection server that says nothing but a space now and then is
        alive, for hours.
        """
        script = RawConnectionServer()
        joined = self.joined(script)
        for _ in range(200):
            joined.advance(59)
            script.write(b" ")
            joined.pump()
        self.assertEqual((1, 1), (joined.network.attempts, joined.network.connections))
        self.assertNotIn(b"urn:xmpp:ping", script.end.received)

    def test_A17_answeredPing(self) -> None:
        """
        A ping that is answered keeps the connection for as long as that goes
        on.
        """

        def pong(end: RawEnd, request: bytes) -> None:
            end.transport.write(b'<iq type="result" id="ping"/>')

        script = RawConnectionServer()
        script.login = [*RAW_LOGIN, *[(b"<ping", pong)] * 100]
        joined = self.joined(script)
        joined.advance(100 * 60)
        self.assertEqual((1, 1), (joined.network.attempts, joined.network.connections))
        self.assertEqual(100, script.end.received.count(b"urn:xmpp:ping"))
        joined.advance(91)
        self.assertEqual(2, joined.appServer.links[0].generation)


def closes(end: RawEnd, request: bytes) -> None:
    """
    Close the connection without a word.
    """
    end.transport.loseConnection()


def says(answer: bytes) -> Callable[[RawEnd, bytes], None]:
    """
    Say something, and close.
    """

    def step(end: RawEnd, request: bytes) -> None:
        end.transport.write(answer)
        end.transport.loseConnection()

    return step


def failure(condition: str) -> bytes:
    """
    A SASL failure.
    """
    return f'<failure xmlns="urn:ietf:params:xml:ns:xmpp-sasl"><{condition}/></failure>'.encode()


def bindRefused(end: RawEnd, request: bytes) -> None:
    """
    Refuse to bind, as Google's server may have with too many connections.
    """
    requested = re.search(rb"\bid=['\"]([^'\"]*)['\"]", request[request.rindex(b"<iq") :])
    assert requested is not None
    end.transport.write(
        b'<iq type="error" id="%b"><error type="wait">'
        b'<resource-constraint xmlns="urn:ietf:params:xml:ns:xmpp-stanzas"/></error></iq>' % requested[1]
    )


#: Logins that a connection server refuses for good: the key is wrong.
REFUSALS: dict[str, list[Step]] = {
    "failure, then closed": [
        RAW_LOGIN[0],
        (b"</auth>", says(failure("not-authorized") + b"</stream:stream>")),
    ],
    "failure, left open": [RAW_LOGIN[0], (b"</auth>", failure("not-authorized"))],
    "temporary failure": [RAW_LOGIN[0], (b"</auth>", failure("temporary-auth-failure"))],
    "failure without a condition": [
        RAW_LOGIN[0],
        (b"</auth>", b'<failure xmlns="urn:ietf:params:xml:ns:xmpp-sasl"/>'),
    ],
    "no PLAIN": [(b"<stream:stream", RAW_HEADER + RAW_MECHANISMS.replace(b"PLAIN", b"X-GOOGLE-TOKEN"))],
    "no mechanisms": [(b"<stream:stream", RAW_HEADER + b"<stream:features/>")],
}
#: Logins that come to nothing otherwise.
FAILURES: dict[str, list[Step]] = {
    "closed at once": [(b"<stream:stream", closes)],
    "closed at the key": [RAW_LOGIN[0], (b"</auth>", closes)],
    "closed after the login": [*RAW_LOGIN[:2], (b"<stream:stream", closes)],
    "stream error": [
        (
            b"<stream:stream",
            RAW_HEADER
            + f'<stream:error><policy-violation xmlns="{NS_STREAM_ERRORS}"/></stream:error>'.encode(),
        )
    ],
    "no XML": [(b"<stream:stream", b"220 mail.example.org ESMTP\r\n")],
    "no bind": [*RAW_LOGIN[:3], (b"</iq>", bindRefused)],
    "silent from the start": [],
    "silent at the key": [RAW_LOGIN[0]],
    "silent at the bind": RAW_LOGIN[:3],
}


class LoginTests(AppServerCase):
    """
    Logins that are refused.
    """

    def watch(self, joined: Any, seconds: int) -> list[float]:
        """
        Let time pass, and look every second: no socket may be open while
        waiting for the next try, and never more than one.

        @return: when the tries were made.
        """
        tries: list[float] = []
        for _ in range(seconds):
            before = joined.network.attempts
            joined.advance(1)
            self.assertLessEqual(joined.network.attempts - before, 1, "more than one try in a second")
            if joined.network.attempts != before:
                tries.append(joined.clock.seconds())
            self.assertLessEqual(joined.network.connections, 1, "more than one connection")
            waiting = isinstance(joined.observer.events[-1], LinkLost) if joined.observer.events else False
            if (
                waiting
                and joined.observer.events[-1].retryIn
                and joined.network.attempts == len(joined.observer.of(LinkLost))
            ):
                self.assertEqual(0, joined.network.connections, "a connection is open between two tries")
        return tries

    def test_A18_wrongKey(self) -> None:
        """
        A login that is refused is tried again three times with pauses, then
        every five minutes: a dozen tries an hour, each with one line of error,
        and no socket open in between.  When the key is good at last, it logs
        in by itself.
        """
        log = LogText(self)
        script = ScriptedConnectionServer()
        script.registry.letIn = False
        handler = RecordingHandler()
        joined = self.joined(script, handler)
        hours = 6
        tries = self.watch(joined, hours * HOUR)
        gaps = [after - before for before, after in pairwise(tries)]
        self.assertGreaterEqual(min(gaps), 5, "it spins")
        # Five minutes, and the ten seconds by which the server delays its answer.
        self.assertLessEqual(max(gaps), 312, "it gives up")
        self.assertLessEqual(hours * 11, joined.network.attempts)
        self.assertLessEqual(joined.network.attempts, hours * 12 + 3)
        self.assertEqual(0, joined.network.connections)
        errors = [event for event in log.events if event["log_level"] is LogLevel.error]
        refused = [eventAsText(event) for event in errors if "login refused" in eventAsText(event)]
        self.assertEqual(joined.network.attempts, len(refused))
        self.assertEqual({1}, {len(line.splitlines()) for line in refused})
        self.assertNotIn(SERVER_KEY, log.everything)
        script.registry.letIn = True
        joined.advance(312)
        self.assertEqual(1, joined.appServer.links[0].generation)
        script.deliver(upstream("m-1"))
        joined.pump()
        self.handled(handler, ["m-1"])
        self.assertEqual(["m-1"], script.acks)

    def test_A18_anyRefusal(self) -> None:
        """
        However the refusal looks, and whether or not the connection server
        closes the connection after it, the same holds.
        """
        for what, login in REFUSALS.items():
            script = RawConnectionServer()
            script.login = login
            joined = script.joined(RecordingHandler())
            self.watch(joined, 2 * HOUR)
            self.assertLessEqual(2 * 11, joined.network.attempts, f"{what}: it gives up")
            self.assertLessEqual(joined.network.attempts, 2 * 12 + 3, f"{what}: it spins")
            self.assertEqual(0, joined.network.connections, f"{what}: a socket is left")
            script.login = RAW_LOGIN
            joined.advance(302)
            self.assertTrue(joined.observer.of(LinkReady), f"{what}: it does not log in at last")
            self.finish(joined, 10)

    def test_A18_anyFailure(self) -> None:
        """
        A login that fails in any other way is tried again with pauses of up to
        a minute, and leaves no socket either.
        """
        for what, login in FAILURES.items():
            script = RawConnectionServer()
            script.login = login
            joined = script.joined(RecordingHandler())
            self.watch(joined, HOUR)
            self.assertLessEqual(60 * 60 // 91, joined.network.attempts, f"{what}: it gives up")
            self.assertLessEqual(joined.network.attempts, 60 + 7, f"{what}: it spins")
            script.login = RAW_LOGIN
            joined.advance(100)
            self.assertTrue(joined.observer.of(LinkReady), f"{what}: it does not log in at last")
            self.assertEqual(1, joined.network.connections, f"{what}: a socket is left")
            self.finish(joined, 10)

    def test_A18_stopWhileRefused(self) -> None:
        """
        It can be stopped in the midst of that, at once.
        """
        for seconds in (0, 1, 5, 11, 400):
            script = ScriptedConnectionServer()
            script.registry.letIn = False
            joined = script.joined(RecordingHandler())
            joined.advance(seconds)
            self.successResultOf(joined.stop())
            self.finish(joined, 10)
