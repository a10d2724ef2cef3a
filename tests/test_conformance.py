"""
The cases that real implementations of this protocol got wrong.

One test method a case or more, each with the case's number in its name; the
cases are numbered as in the project's table of conformance cases.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Callable, Iterator
from itertools import islice, pairwise, permutations, product
from typing import Any
from xml.sax.saxutils import escape

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogLevel, eventAsText, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from fcmxmpp.delivery import Policy
from fcmxmpp.device import DeliveryFailed, SimulatedDevice
from fcmxmpp.elementstream import MAX_STANZA_BYTES, GCMStanza
from fcmxmpp.errors import HandlerFailed, Nacked
from fcmxmpp.interfaces import Acknowledged, DeadLettered, IUpstreamHandler, LinkLost, LinkReady, Undecodable
from fcmxmpp.messages import Ack, Control, DownstreamMessage, Receipt, ReceiptData, UpstreamMessage
from fcmxmpp.server.registry import Registry
from fcmxmpp.server.service import ConnectionServer
from fcmxmpp.stanza import attribute, serverStanza, stanzaError
from fcmxmpp.testing import SENDER_ID, SERVER_KEY, RecordingHandler, ScriptedConnectionServer, connectedPair


HOUR = 3600
BARE_JID = f"{SENDER_ID}@gcm.googleapis.com"
NS_STREAM_ERRORS = "urn:ietf:params:xml:ns:xmpp-streams"
#: Every text that has a UTF-8 form.
TEXTS = st.text(st.characters(codec="utf-8"))


def upstream(message_id: str, from_: str = "tok-A", **data: str) -> UpstreamMessage:
    """
    What a device sends.
    """
    return UpstreamMessage(data=data, time_to_live=60, from_=from_, message_id=message_id)


def upstreamJSON(message_id: str, from_: str = "tok-A", data: dict[str, str] | None = None) -> str:
    """
    The same as JSON text.
    """
    return json.dumps(
        {"data": data or {}, "from": from_, "message_id": message_id, "category": "org.example"}
    )


def envelope(text: str) -> bytes:
    """
    A JSON text as a stanza of the connection server, escaped as XML wants it.
    """
    return f'<message><gcm xmlns="google:mobile:data">{escape(text)}</gcm></message>'.encode()


class LogText:
    """
    All that is logged during a test.

    @ivar events: the events.
    """

    def __init__(self, case: SynchronousTestCase) -> None:
        self.events: list[dict[str, Any]] = []
        observer = self.events.append
        globalLogPublisher.addObserver(observer)
        case.addCleanup(globalLogPublisher.removeObserver, observer)

    @property
    def lines(self) -> list[str]:
        """
        Each event as it would be written, with its traceback.
        """
        return [eventAsText(event, includeTimestamp=False, includeSystem=False) for event in self.events]

    @property
    def everything(self) -> str:
        """
        Everything that a log observer could write: the text, the traceback,
        the fields, the exception.
        """
        parts = self.lines
        for event in self.events:
            parts += [repr(value) for key, value in event.items() if not key.startswith("log_")]
            failure = event.get("log_failure")
            if failure is not None:
                parts += [failure.getTraceback(), repr(failure.value), str(failure.value)]
        return "\n".join(parts)


class RawEnd(Protocol):
    """
    The connection server's end of one connection, as raw as it gets.

    @ivar received: all bytes that came.
    @ivar lost: whether the connection is gone.
    """

    def __init__(self, owner: RawConnectionServer) -> None:
        self._owner = owner
        self._steps = list(owner.login)
        self._unread = b""
        self.received = b""
        self.lost = False

    def connectionMade(self) -> None:
        """
        Note it.
        """
        self._owner.ends.append(self)

    def dataReceived(self, data: bytes) -> None:
        """
        Note what comes, and answer it as far as the login goes.
        """
        self.received += data
        self._unread += data
        while self._steps and self._steps[0][0] in self._unread:
            (trigger, answer), *self._steps = self._steps
            before, _, self._unread = self._unread.partition(trigger)
            if callable(answer):
                answer(self, before + trigger)
            else:
                self.transport.write(answer)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Note it.
        """
        self.lost = True


RAW_HEADER = (
    b'<stream:stream from="gcm.googleapis.com" id="7C01D2A9E4B35F68" version="1.0"'
    b' xmlns:stream="http://etherx.jabber.org/streams" xmlns="jabber:client">'
)
RAW_MECHANISMS = (
    b'<stream:features><mechanisms xmlns="urn:ietf:params:xml:ns:xmpp-sasl"><mechanism>X-OAUTH2</mechanism>'
    b"<mechanism>PLAIN</mechanism></mechanisms></stream:features>"
)
RAW_SUCCESS = b'<success xmlns="urn:ietf:params:xml:ns:xmpp-sasl"/>'
RAW_BIND = b'<stream:features><bind xmlns="urn:ietf:params:xml:ns:xmpp-bind"/></stream:features>'


def rawBound(end: RawEnd, request: bytes) -> None:
    """
    Answer a bind request.
    """
    requested = re.search(rb"\bid=['\"]([^'\"]*)['\"]", request[request.rindex(b"<iq") :])
    assert requested is not None
    end.transport.write(
        b'<iq type="result" id="%b"><bind xmlns="urn:ietf:params:xml:ns:xmpp-bind">'
        b"<jid>%b/raw</jid></bind></iq>" % (requested[1], BARE_JID.encode())
    )


#: What is waited for, and what is answered: bytes, or something to call.
Step = tuple[bytes, Any]
RAW_LOGIN: list[Step] = [
    (b"<stream:stream", RAW_HEADER + RAW_MECHANISMS),
    (b"</auth>", RAW_SUCCESS),
    (b"<stream:stream", RAW_HEADER + RAW_BIND),
    (b"</iq>", rawBound),
]


class RawConnectionServer(ScriptedConnectionServer):
    """
    A connection server that logs everybody in by rote, and then says nothing
    at all, not even that it hears.

    @ivar login: the steps of the login of the connections to come.
    @ivar ends: its end of each connection, the newest last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.login = RAW_LOGIN
        self.ends: list[RawEnd] = []

    def factory(self, clock: Any) -> ServerFactory:
        """
        See L{ScriptedConnectionServer.factory}.
        """
        raw = self

        class Factory(ServerFactory):
            noisy = False

            def buildProtocol(self, addr: object) -> RawEnd:
                return RawEnd(raw)

        return Factory()

    @property
    def end(self) -> RawEnd:
        """
        Its end of the newest connection.
        """
        return self.ends[-1]

    def write(self, data: bytes) -> None:
        """
        See L{ScriptedConnectionServer.write}.
        """
        self.end.transport.write(data)


class AppServerCase(SynchronousTestCase):
    """
    Tests of an app server in memory.
    """

    def joined(
        self,
        script: ScriptedConnectionServer,
        handler: Any = None,
        policy: Policy | None = None,
        grace: float = 10.0,
    ) -> Any:
        """
        An app server joined to a scripted connection server.
        """
        joined = script.joined(RecordingHandler() if handler is None else handler, policy, grace)
        self.addCleanup(self.finish, joined, grace)
        return joined

    def pair(self, handler: Any = None, policy: Policy | None = None, grace: float = 10.0) -> Any:
        """
        An app server joined to a connection server.
        """
        pair = connectedPair(RecordingHandler() if handler is None else handler, policy, grace)
        self.addCleanup(self.finish, pair, grace)
        return pair

    def finish(self, joined: Any, grace: float) -> None:
        """
        Stop the app server: then nothing may be left of it.
        """
        stopped = joined.stop()
        joined.advance(grace + 10.0)
        self.successResultOf(stopped)
        self.assertEqual([], joined.clock.getDelayedCalls(), "calls are left on the clock")
        self.assertEqual(0, joined.network.connections, "connections are left")

    def handled(self, handler: RecordingHandler, ids: list[str], what: str = "") -> None:
        """
        Exactly these messages were given to the handler, in this order.
        """
        self.assertEqual(ids, handler.ids, what)

    def stays(self, script: ScriptedConnectionServer, joined: Any, what: str = "") -> None:
        """
        The first stream is still there, and works.
        """
        self.assertEqual(1, joined.network.attempts, what)
        before = len(script.acks)
        script.deliver(upstream("still-there", "tok-still-there"))
        joined.pump()
        self.assertEqual(["still-there"], script.acks[before:], what)


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


#: Ways to write an envelope; %(a)s is where the attributes go, %(t)s the text.
ENVELOPES = {
    "live": '<message%(a)s><gcm xmlns="google:mobile:data">%(t)s</gcm></message>',
    "prefix": '<message%(a)s><data:gcm xmlns:data="google:mobile:data">%(t)s</data:gcm></message>',
    "other prefix": "<message%(a)s><x:gcm xmlns:x='google:mobile:data'>%(t)s</x:gcm></message>",
    "prefix from above": '<message xmlns:data="google:mobile:data"%(a)s><data:gcm>%(t)s</data:gcm></message>',
    "namespaces": '<message xmlns="jabber:client"%(a)s><gcm xmlns="google:mobile:data">%(t)s</gcm></message>',
    "white space": '<message%(a)s>\n <gcm xmlns="google:mobile:data">\n  %(t)s\n </gcm>\n</message>\n',
    "attribute": '<message%(a)s><gcm xml:lang="en" xmlns="google:mobile:data">%(t)s</gcm></message >',
    "more before": '<message%(a)s><thread>1</thread><gcm xmlns="google:mobile:data">%(t)s</gcm></message>',
    "more before, prefix": '<message%(a)s><x/><d:gcm xmlns:d="google:mobile:data">%(t)s</d:gcm></message>',
    "more behind": '<message%(a)s><gcm xmlns="google:mobile:data">%(t)s</gcm><x xmlns="y"/></message>',
    "no namespace": '<message xmlns=""%(a)s><gcm xmlns="google:mobile:data">%(t)s</gcm></message>',
}
#: Every type but C{error}, and none.
TYPES = [None, "normal", "chat", "headline", "groupchat", "", "no-such-type"]


def attributeOrders(type_: str | None) -> Iterator[str]:
    """
    The attributes that a message may have, in any order and any quotes.
    """
    attributes = [f'to="{BARE_JID}"', "from='devices@gcm.googleapis.com'", 'id="3"']
    if type_ is not None:
        attributes.append(f'type="{type_}"')
    for order in permutations(attributes):
        yield "".join(f" {each}" for each in order)
    yield "" if type_ is None else f'\n\ttype = "{type_}"\n'


#: What has gone wrong in one client or another.
DIFFICULT = {
    "quotes": '"\'`\u201c\u201d\\"',
    "markup": '<a href="x">&amp;</a>',
    "ampersands": "&&amp;&#38;&quot;&lol;",
    "the end of CDATA": "]]>",
    "CDATA": "<![CDATA[x]]>",
    "the end of it all": "</gcm></message></stream:stream>",
    "a comment": "<!-- x --><?x y?><!DOCTYPE x>",
    "JSON": '{"message_type":"ack","message_id":"x"}',
    "backslashes": "\\ \\\\ \\n \\u0041 \\",
    "emoji": "\U0001f600\U0001f469\u200d\U0001f680\U0001f1f8\U0001f1ea",
    "other planes": "\U00010000\U000e0001\U0010fffd",
    "combining": "e\u0301\u0323 \u202eabc\u202c \u2028\u2029",
    "control characters": "".join(map(chr, range(0x20))),
    "more control characters": "".join(map(chr, range(0x7F, 0xA0))),
    "no XML characters": "\ufffe\uffff\ufeff\ufffd\ufdd0",
    "white space": " \t\r\n \r \n\u00a0\u3000 ",
    "nothing": "",
    "4095 letters": "x" * 4095,
    "4095 quotes": '"' * 4095,
    "4095 less-thans": "<" * 4095,
    "4095 zeros": "\0" * 4095,
    "1023 emoji": "\U0001f600" * 1023,
}


class WireTests(AppServerCase):
    """
    The same meaning, however it is written and whatever the network makes of
    it.
    """

    def test_A06_upstream(self) -> None:
        """
        A message means the same with any prefix for its namespace, with any
        C{type} or none, and with its attributes in any order.
        """
        handler = RecordingHandler()
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler)
        variants = [
            (name, form % {"a": attributes, "t": "%s"})
            for (name, form), type_ in product(ENVELOPES.items(), TYPES)
            for attributes in attributeOrders(type_)
        ]
        for number, (name, variant) in enumerate(variants):
            text = escape(upstreamJSON(f"m-{number}", data={"op": "<ECHO>"}))
            script.write((variant % text).encode())
            joined.pump()
            self.assertEqual(number + 1, len(handler.messages), f"{name} is not understood: {variant}")
            self.assertEqual(f"m-{number}", script.acks[-1], f"{name} is not acknowledged: {variant}")
        self.assertEqual({(("op", "<ECHO>"),)}, {tuple(m.data.items()) for m in handler.messages})
        self.assertEqual((len(variants), 1), (len(script.acks), joined.network.attempts))

    def test_A06_receipts(self) -> None:
        """
        So does a receipt.
        """
        handler = RecordingHandler()
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler)
        for number, ((name, form), type_) in enumerate(product(ENVELOPES.items(), TYPES)):
            text = (
                f'{{"message_type":"receipt","from":"gcm.googleapis.com","message_id":"dr2:{number}","data":'
                f'{{"message_status":"MESSAGE_SENT_TO_DEVICE","original_message_id":"{number}"}}}}'
            )
            attributes = "" if type_ is None else f' type="{type_}"'
            script.write((form % {"a": attributes, "t": text}).encode())
            joined.pump()
            self.assertEqual(f"dr2:{number}", script.acks[-1], (name, type_))
            self.assertEqual(number + 1, len(handler.receipts), (name, type_))
        self.assertEqual([], handler.messages)

    def test_A06_answers(self) -> None:
        """
        So do an ACK and a NACK.
        """
        script = ScriptedConnectionServer()
        joined = self.joined(script)
        for number, ((name, form), type_) in enumerate(product(ENVELOPES.items(), TYPES)):
            attributes = "" if type_ is None else f' type="{type_}"'
            results = []
            for kind in ("ack", "nack"):
                message_id = f"{kind}-{number}"
                results.append(joined.appServer.send(DownstreamMessage(to="tok-A", message_id=message_id)))
                text = json.dumps(
                    {
                        "message_type": kind,
                        "message_id": message_id,
                        "from": "tok-A",
                        "error": "BAD_REGISTRATION",
                    }
                )
                script.write((form % {"a": attributes, "t": text}).encode())
            joined.pump()
            self.assertEqual(f"ack-{number}", self.successResultOf(results[0]).message_id, (name, type_))
            error = self.failureResultOf(results[1], Nacked).value
            self.assertEqual(("BAD_REGISTRATION", f"nack-{number}"), (error.error, error.message_id))

    def test_A06_anotherNamespace(self) -> None:
        """
        It is the namespace that counts, never the prefix: a C{gcm} of another
        namespace is no payload.
        """
        handler = RecordingHandler()
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler)
        for number, name in enumerate(["gcm", "data:gcm"]):
            prefix = name.rpartition("gcm")[0].rstrip(":")
            declared = f'xmlns:{prefix}="google:mobile"' if prefix else 'xmlns="google:mobile"'
            text = upstreamJSON(f"m-{number}")
            script.write(f"<message><{name} {declared}>{text}</{name}></message>".encode())
            script.write(f"<message><gcm>{text}</gcm></message>".encode())
        joined.pump()
        self.handled(handler, [])
        self.stays(script, joined)

    def test_A07_splitAtEveryByte(self) -> None:
        """
        A stanza that comes in two pieces means the same wherever it was cut:
        within a name, a character, an escape, a tag.
        """
        data = {"text": 'a "quoted" <tag> & \u00e5\u4e2d\U0001f600', "b\\": "\n"}
        for name, form in ENVELOPES.items():
            handler = RecordingHandler()
            script = ScriptedConnectionServer()
            joined = self.joined(script, handler)
            # JSON with its characters as they are, quotes escaped as some do.
            text = json.dumps(
                {"data": data, "from": "tok-A", "message_id": "m-%05d", "category": "c"}, ensure_ascii=False
            )
            text = escape(text, {'"': "&quot;"}).replace("\U0001f600", "&#x1F600;")
            stanza = form % {"a": ' type="normal"', "t": text}
            size = len((stanza % 0).encode())
            for cut in range(1, size):
                sent = (stanza % cut).encode()
                script.write(sent[:cut])
                joined.pump()
                script.write(sent[cut:])
                joined.pump()
                self.assertEqual(cut, len(handler.messages), f"{name}: lost when cut before byte {cut}")
            self.handled(handler, [f"m-{cut:05}" for cut in range(1, size)], name)
            self.assertEqual(handler.ids, script.acks, name)
            self.assertEqual([data] * (size - 1), [message.data for message in handler.messages], name)

    def test_A07_byteByByte(self) -> None:
        """
        So do stanzas of which every byte comes by itself.
        """
        handler = RecordingHandler()
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler)
        for number, form in enumerate(ENVELOPES.values()):
            stanza = form % {"a": "", "t": upstreamJSON(f"m-{number}", data={"k": "\u00e5&lt;"})}
            for byte in stanza.encode():
                script.write(bytes([byte]))
                joined.pump()
        self.handled(handler, [f"m-{number}" for number in range(len(ENVELOPES))])
        self.assertEqual(handler.ids, script.acks)

    def test_A07_fiftyInOneSegment(self) -> None:
        """
        Fifty stanzas in one segment are fifty messages, in order, each
        acknowledged; so they are if the segment ends within one of them.
        """
        for cut in (0, 1, 100, 5000):
            handler = RecordingHandler()
            script = ScriptedConnectionServer()
            joined = self.joined(script, handler)
            forms = islice(product(ENVELOPES.values(), TYPES), 50)
            segment = "".join(
                form % {"a": "" if type_ is None else f' type="{type_}"', "t": upstreamJSON(f"m-{number}")}
                for number, (form, type_) in enumerate(forms)
            ).encode()
            script.write(segment[: len(segment) - cut])
            joined.pump()
            script.write(segment[len(segment) - cut :])
            joined.pump()
            self.handled(handler, [f"m-{number}" for number in range(50)], f"cut {cut} bytes before the end")
            self.assertEqual(handler.ids, script.acks)

    def test_A07_loneSpaces(self) -> None:
        """
        A lone space before, between and after stanzas, in a segment of its own
        or not, means nothing.
        """
        for apart in (True, False):
            handler = RecordingHandler()
            script = ScriptedConnectionServer()
            joined = self.joined(script, handler)
            for number in range(20):
                for piece in (b" ", envelope(upstreamJSON(f"m-{number}")), b" " * number):
                    script.write(piece)
                    if apart:
                        joined.pump()
            joined.pump()
            self.handled(handler, [f"m-{number}" for number in range(20)])
            self.stays(script, joined)

    def test_A25_bothDirections(self) -> None:
        """
        Whatever text stands in the data arrives unchanged: from the device at
        the handler, and from the application at the device.
        """
        handler = RecordingHandler()
        pair = self.pair(handler)
        for name, value in DIFFICULT.items():
            pair.device.send(name, {"k": value})
            result = pair.appServer.send(DownstreamMessage(to="tok-A", message_id=name, data={"k": value}))
            pair.pump()
            self.assertEqual({"k": value}, handler.messages[-1].data, name)
            self.assertEqual(name, pair.device.delivered[-1], name)
            self.assertEqual({"k": value}, pair.device.received[-1].data, name)
            self.assertEqual(name, self.successResultOf(result).message_id)
        self.assertEqual(1, pair.network.attempts)

    def test_A25_keysAndIDs(self) -> None:
        """
        The same holds for the keys, and for the C{message_id}, with which the
        ACK has to name the message.
        """
        handler = RecordingHandler()
        pair = self.pair(handler)
        for name, text in DIFFICULT.items():
            if not text or len(text) > 1000:
                continue
            pair.device.send(text, {text: name})
            result = pair.appServer.send(DownstreamMessage(to="tok-A", message_id=text, data={text: name}))
            pair.pump()
            self.assertEqual({text: name}, handler.messages[-1].data, name)
            self.assertEqual([text], pair.device.delivered[-1:], name)
            self.assertEqual({text: name}, pair.device.received[-1].data, name)
            self.assertEqual(text, self.successResultOf(result).message_id, name)
        self.assertEqual(1, pair.network.attempts)

    @settings(max_examples=50)
    @given(st.dictionaries(TEXTS, TEXTS, max_size=4), TEXTS.filter(bool))
    def test_A25_anyText(self, data: dict[str, str], message_id: str) -> None:
        """
        There is no text for which that does not hold.
        """
        handler = RecordingHandler()
        pair = connectedPair(handler)
        pair.device.send(message_id, data)
        pair.appServer.send(DownstreamMessage(to="tok-A", message_id=message_id, data=data))
        pair.pump()
        self.assertEqual([data], [message.data for message in handler.messages])
        self.assertEqual([data], [message.data for message in pair.device.received])
        self.assertEqual([message_id], pair.device.delivered)
        self.finish(pair, 10)

    def test_A25_4096Bytes(self) -> None:
        """
        Values of 4096 bytes arrive unchanged, too, however large they become
        on the wire.
        """
        handler = RecordingHandler()
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler)
        for number, value in enumerate(
            ["x" * 4096, '"' * 4096, "&" * 4096, "\n" * 4096, "\U0001f600" * 1024]
        ):
            message = upstream(f"m-{number}", k=value)
            quoted = serverStanza(message, BARE_JID).decode()
            # As careful servers write it: 24 kB of &quot; for 4096 quotes.
            head, text, tail = re.fullmatch(r"(.*?<gcm [^>]*>)(.*)(</gcm>.*)", quoted, re.DOTALL).groups()
            script.write((head + text.replace('"', "&quot;") + tail).encode())
            joined.pump()
            self.assertEqual(message, handler.messages[-1])
        self.assertEqual(1, joined.network.attempts)

    def test_A25_escapes(self) -> None:
        """
        All the ways of XML and JSON to write a character mean the same.
        """
        handler = RecordingHandler()
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler)
        ways = [
            ("&lt;", "<"),
            ("&#60;", "<"),
            ("&#x3C;", "<"),
            ("<![CDATA[<]]>", "<"),
            ("a<![CDATA[&]]>b", "a&b"),
            ("\\u003c", "<"),
            ("&#x5C;u003c", "<"),
            ("&gt;", ">"),
            (">", ">"),
            ("&amp;", "&"),
            ("&amp;amp;", "&amp;"),
            ("&apos;", "'"),
            ("\\&quot;", '"'),
            ("\\/", "/"),
            ("\\ud83d\\ude00", "\U0001f600"),
            ("&#x1F600;", "\U0001f600"),
            ("\U0001f600", "\U0001f600"),
            ("\\u0000\\u001F\\b", "\0\x1f\b"),
        ]
        for number, (written, meant) in enumerate(ways):
            for quote in ('"', "&quot;"):
                text = upstreamJSON(f"m-{number}-{len(quote)}").replace('"data": {}', '"data": {"k": "%s"}')
                stanza = ENVELOPES["live"] % {"a": "", "t": text.replace('"', quote) % written}
                script.write(stanza.encode())
                joined.pump()
                self.assertEqual({"k": meant}, handler.messages[-1].data, f"{written!r} in {quote}")
        self.assertEqual(2 * len(ways), len(handler.messages))


class UpstreamTests(AppServerCase):
    """
    What is handled, what is acknowledged, and where.
    """

    def test_A08_receipt(self) -> None:
        """
        A receipt is handed to the receipt handler, and acknowledged with its
        own C{message_id} to C{gcm.googleapis.com}.
        """
        handler = RecordingHandler()
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler)
        receipt = Receipt(
            category="org.example.app",
            data=ReceiptData(
                message_status="MESSAGE_SENT_TO_DEVICE",
                original_message_id="m-1",
                device_registration_id="tok-A",
                message_sent_timestamp="1498801519251",
            ),
            message_id="dr2:m-1",
            time_to_live=0,
            from_="gcm.googleapis.com",
        )
        script.deliver(receipt)
        joined.pump()
        self.assertEqual(([receipt], []), (handler.receipts, handler.messages))
        self.assertEqual(
            ['{"to":"gcm.googleapis.com","message_id":"dr2:m-1","message_type":"ack"}'],
            [stanza.text for stanza in script.stanzas],
        )

    def test_A08_nobodyCares(self) -> None:
        """
        It is acknowledged, too, if the application has no receipt handler.
        """

        @implementer(IUpstreamHandler)
        class MessagesOnly:
            def messageReceived(self, message: UpstreamMessage) -> None:
                raise AssertionError("a receipt is no message")

        script = ScriptedConnectionServer()
        joined = self.joined(script, MessagesOnly())
        data = ReceiptData(message_status="MESSAGE_SENT_TO_DEVICE", original_message_id="m-1")
        script.deliver(Receipt(data=data, message_id="dr2:m-1", from_="gcm.googleapis.com"))
        joined.pump()
        self.assertEqual(["dr2:m-1"], script.acks)

    def test_A08_handlerFails(self) -> None:
        """
        The receipt handler decides like that of messages: no ACK as long as it
        fails.
        """
        handler = RecordingHandler(lambda receipt: fail(RuntimeError()))
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler)
        data = ReceiptData(message_status="MESSAGE_SENT_TO_DEVICE", original_message_id="m-1")
        script.deliver(Receipt(data=data, message_id="dr2:m-1", from_="gcm.googleapis.com"))
        joined.pump()
        self.assertEqual([], script.acks)
        handler.answer = lambda receipt: None
        joined.advance(5)
        self.assertEqual((["dr2:m-1"], 2), (script.acks, len(handler.receipts)))
        self.flushLoggedErrors(HandlerFailed)

    def test_A10_acksAtTheLimit(self) -> None:
        """
        While 100 downstream messages are unanswered, upstream messages are
        acknowledged all the same, and those ACKs take no place: each answer
        lets one more message out, no more and no fewer.
        """
        handler = RecordingHandler()
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler)
        for number in range(110):
            joined.appServer.send(DownstreamMessage(to="tok-A", message_id=f"d-{number}")).addErrback(
                lambda failure: None
            )
        joined.pump()
        self.assertEqual(100, len(script.downstream))
        for number in range(150):
            script.deliver(upstream(f"u-{number}"))
        joined.pump()
        self.handled(handler, [f"u-{number}" for number in range(150)])
        self.assertEqual(handler.ids, script.acks)
        self.assertEqual(100, len(script.downstream), "an upstream message or its ACK freed a place")
        for number in range(10):
            script.deliver(Ack(from_="tok-A", message_id=f"d-{number}"))
            joined.pump()
            self.assertEqual(101 + number, len(script.downstream), "an ACK took a place")
        self.assertEqual([f"d-{number}" for number in range(110)], [m.message_id for m in script.downstream])

    def test_A12_afterReconnect(self) -> None:
        """
        A message that comes again after a reconnect is not handled again, but
        acknowledged again, on the connection that brought it; so it is if it
        comes yet again on the same one.
        """
        for ack in ("handled", "received"):
            handler = RecordingHandler()
            script = ScriptedConnectionServer()
            joined = self.joined(script, handler, Policy(ack=ack))
            first = script.stream
            script.deliver(upstream("m-1"))
            joined.advance(0.1, 0.1)
            joined.cut()
            joined.pump()
            self.assertIsNot(first, script.stream)
            for _ in range(2):
                script.deliver(upstream("m-1"))
                joined.advance(0.1, 0.1)
            self.handled(handler, ["m-1"], ack)
            self.assertEqual(["m-1"] * 3, script.acks, ack)
            self.assertEqual(
                [first, script.stream, script.stream], [stream for stream, _ in script.received], ack
            )

    def test_A12_whileHandled(self) -> None:
        """
        A message that comes again while it is being handled is handled once,
        and acknowledged each time when that is done.
        """
        result: Deferred[None] = Deferred()
        handler = RecordingHandler(lambda message: result)
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler)
        for _ in range(3):
            script.deliver(upstream("m-1"))
            joined.pump()
        self.handled(handler, ["m-1"])
        self.assertEqual([], script.acks)
        result.callback(None)
        joined.pump()
        self.handled(handler, ["m-1"])
        self.assertEqual(["m-1"] * 3, script.acks)

    def test_A12_whileHandledAfterReconnect(self) -> None:
        """
        A message that comes again after a reconnect while it is still being
        handled is acknowledged on the new connection only.
        """
        result: Deferred[None] = Deferred()
        handler = RecordingHandler(lambda message: result)
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler)
        script.deliver(upstream("m-1"))
        joined.pump()
        joined.cut()
        joined.pump()
        script.deliver(upstream("m-1"))
        joined.pump()
        result.callback(None)
        joined.pump()
        self.handled(handler, ["m-1"])
        self.assertEqual([script.stream], [stream for stream, _ in script.received])

    def test_A12_fromCounts(self) -> None:
        """
        The same C{message_id} from another device is another message.
        """
        handler = RecordingHandler()
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler)
        for token in ("tok-A", "tok-B", "tok-A"):
            script.deliver(upstream("m-1", token))
        joined.pump()
        self.assertEqual(["tok-A", "tok-B"], [message.from_ for message in handler.messages])
        self.assertEqual(["tok-A", "tok-B", "tok-A"], [message.to for _, message in script.received])

    def test_A12_endToEnd(self) -> None:
        """
        With a real connection server, too: what a lost connection brought is
        delivered again, handled once, and its device told once.
        """
        results: list[Deferred[None]] = []

        def answer(message: UpstreamMessage) -> Deferred[None]:
            results.append(Deferred())
            return results[-1]

        handler = RecordingHandler(answer)
        pair = self.pair(handler)
        sent = [pair.device.send(f"m-{number}", {}) for number in range(50)]
        pair.pump()
        pair.cut()
        pair.pump()
        self.assertEqual(50, pair.connectionServer.statistics.redelivered)
        for result in results:
            result.callback(None)
        pair.pump()
        self.handled(handler, [f"m-{number}" for number in range(50)])
        self.assertEqual(handler.ids, pair.device.delivered)
        for each in sent:
            self.successResultOf(each)

    def test_A13_raises(self) -> None:
        """
        A handler that fails, in whatever way, is not acknowledged for, until
        it succeeds at a later try.
        """

        def raises(message: UpstreamMessage) -> None:
            raise RuntimeError

        async def raisesLater(message: UpstreamMessage) -> None:
            raise RuntimeError

        def forgetsItself(message: UpstreamMessage) -> Iterator[None]:
            yield None

        def failsLater(message: UpstreamMessage) -> Deferred[None]:
            late.append(Deferred())
            return late[-1]

        late: list[Deferred[None]] = []
        for answer in (raises, raisesLater, forgetsItself, lambda message: fail(RuntimeError()), failsLater):
            late.clear()
            handler = RecordingHandler(answer)
            script = ScriptedConnectionServer()
            joined = self.joined(script, handler)
            script.deliver(upstream("m-1"))
            joined.pump()
            for each in late:
                each.errback(RuntimeError())
            joined.pump()
            self.assertEqual([], script.acks, answer)
            handler.answer = lambda message: None
            joined.advance(5)
            self.assertEqual((["m-1"], ["m-1"] * 2), (script.acks, handler.ids), answer)
            self.assertEqual(1, len(self.flushLoggedErrors(HandlerFailed)), answer)

    def test_A13_hangs(self) -> None:
        """
        A handler that hangs is timed out: no ACK, and another try.  Whatever
        it says after that changes nothing.
        """
        hung: list[Deferred[None]] = []

        def answer(message: UpstreamMessage) -> Deferred[None]:
            hung.append(Deferred())
            return hung[-1]

        handler = RecordingHandler(answer)
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler, Policy(handlerTimeout=20.0))
        script.deliver(upstream("m-1"))
        joined.pump()
        joined.advance(19)
        self.assertEqual(["m-1"], handler.ids)
        joined.advance(2)
        self.assertEqual((["m-1"] * 2, []), (handler.ids, script.acks))
        # Cancelling has ended the first with CancelledError by now.
        self.assertTrue(hung[0].called)
        handler.answer = lambda message: None
        joined.advance(25)
        self.assertEqual((["m-1"] * 3, ["m-1"]), (handler.ids, script.acks))
        self.flushLoggedErrors(HandlerFailed)

    def test_A13_answersAfterTheTimeOut(self) -> None:
        """
        A handler that will not be cancelled, and answers when it has been
        timed out: that answer is not taken for the one of the next try.
        """
        sources: list[Deferred[None]] = []

        async def answer(message: UpstreamMessage) -> None:
            sources.append(Deferred())
            try:
                await sources[-1]
            except BaseException:
                # It swallows the cancellation, and goes on to succeed.
                return

        handler = RecordingHandler(answer)
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler, Policy(handlerTimeout=20.0))
        script.deliver(upstream("m-1"))
        joined.pump()
        joined.advance(22)
        self.assertEqual((["m-1"] * 2, []), (handler.ids, script.acks))
        sources[1].callback(None)
        joined.pump()
        self.assertEqual(["m-1"], script.acks)
        self.flushLoggedErrors(HandlerFailed)

    def test_A13_answersAfterItsStreamDied(self) -> None:
        """
        The answer of a handler whose stream has died meanwhile is acknowledged
        nowhere; when the message is delivered again, it is acknowledged
        without being handled again.
        """
        for again in (upstream("m-1"), upstream("m-1", op="the same, whatever it holds")):
            result: Deferred[None] = Deferred()
            handler = RecordingHandler(lambda message, result=result: result)
            script = ScriptedConnectionServer()
            joined = self.joined(script, handler)
            script.deliver(upstream("m-1"))
            joined.pump()
            joined.network.refuse = True
            joined.cut()
            result.callback(None)
            joined.network.refuse = False
            joined.advance(10)
            self.assertEqual((2, []), (joined.appServer.links[0].generation, script.acks))
            self.assertEqual([], joined.observer.of(Acknowledged))
            script.deliver(again)
            joined.pump()
            self.assertEqual((["m-1"], ["m-1"]), (handler.ids, script.acks))

    def test_A14_poisonAmongAThousand(self) -> None:
        """
        A message on which the handler fails for ever, or hangs, becomes a dead
        letter after the configured tries; the thousand around it have all been
        handled long before, each once.
        """
        for answer in (lambda: fail(RuntimeError()), Deferred):
            handler = RecordingHandler(
                lambda message, answer=answer: answer() if "poison" in message.data else None
            )
            pair = self.pair(handler, Policy(handlerTries=4))
            good = [f"m-{number}" for number in range(1000)]
            for number, message_id in enumerate(good):
                if number == 500:
                    pair.device.send("poison", {"poison": ""})
                pair.device.send(message_id, {})
            pair.pump()
            self.assertEqual(good, [message_id for message_id in handler.ids if message_id != "poison"])
            self.assertEqual(good, pair.device.delivered)
            self.assertEqual(0, pair.appServer.delivery.deadLetters)
            pair.advance(300)
            self.assertEqual(4, handler.ids.count("poison"))
            self.assertEqual(1004, len(handler.ids))
            self.assertEqual(
                [("poison", "tok-A")], [(e.message_id, e.from_) for e in pair.observer.of(DeadLettered)]
            )
            self.assertEqual(1, pair.appServer.delivery.deadLetters)
            # It is acknowledged then, so that it stands in nobody's way.
            self.assertEqual([*good, "poison"], pair.device.delivered)
            self.assertEqual(1, len(self.flushLoggedErrors(HandlerFailed)))

    def test_A14_manyPoisons(self) -> None:
        """
        Not even a hundred of them at once keep the others waiting for longer
        than the tries take.
        """
        handler = RecordingHandler(lambda message: fail(RuntimeError()) if "poison" in message.data else None)
        pair = self.pair(handler)
        for number in range(1100):
            pair.device.send(f"m-{number}", {"poison": ""} if number < 100 else {})
        pair.pump()
        self.assertEqual([], pair.device.delivered)
        pair.advance(10)
        self.assertEqual(100, pair.appServer.delivery.deadLetters)
        self.assertEqual(1100, len(pair.device.delivered))
        self.assertEqual(300 + 1000, len(handler.ids))
        self.assertEqual(100, len(self.flushLoggedErrors(HandlerFailed)))


#: Ways to say 400 of the message "d-0".
BAD_REQUESTS = {
    "ours": stanzaError(
        400,
        "InvalidJson: JSON_PARSING_ERROR : Missing Required Field: message_id\n",
        f"{BARE_JID}/node7",
        GCMStanza('{"to":"tok-A","message_id":"d-0"}', {"id": "d-0"}),
    ).decode(),
    "documented": (
        f'<message id="d-0" type="error" to="{BARE_JID}/node7"><gcm xmlns="google:mobile:data">'
        '{"to":"tok-A","data":{}}</gcm><error code="400" type="modify"><bad-request '
        'xmlns="urn:ietf:params:xml:ns:xmpp-stanzas"/><text xmlns="urn:ietf:params:xml:ns:xmpp-stanzas">'
        "InvalidJson</text></error></message>"
    ),
    "without id": (
        f'<message type="error" to="{BARE_JID}/node7"><gcm xmlns="google:mobile:data">'
        '{"to":"tok-A","message_id":"d-0"}</gcm><error code="400" type="modify"/></message>'
    ),
    "empty id": (
        '<message id="" type="error"><data:gcm xmlns:data="google:mobile:data">'
        '{"to":"tok-A","message_id":"d-0"}</data:gcm><error code="400"/></message>'
    ),
    "broken payload": (
        '<message id="d-0" type="error"><gcm xmlns="google:mobile:data">{"to":"tok-A",</gcm>'
        '<error code="400"/></message>'
    ),
    "no payload": '<message id="d-0" type="error"><error code="400" type="modify"/></message>',
    "no code": (
        '<message id="d-0" type="error"><error type="modify"><bad-request '
        'xmlns="urn:ietf:params:xml:ns:xmpp-stanzas"/></error></message>'
    ),
}


class StanzaErrorTests(AppServerCase):
    """
    Stanza errors, which stand for answers that could not be given.
    """

    def test_A22_badRequest(self) -> None:
        """
        A stanza error 400 fails the message that it is about, frees that
        message's place for the next one, and leaves the stream as it is.
        """
        for name, error in BAD_REQUESTS.items():
            script = ScriptedConnectionServer()
            joined = self.joined(script)
            results = [
                joined.appServer.send(DownstreamMessage(to="tok-A", message_id=f"d-{number}"))
                for number in range(102)
            ]
            joined.pump()
            self.assertEqual(100, len(script.downstream))
            script.write(error.encode())
            joined.pump()
            failed = self.failureResultOf(results[0], Nacked).value
            self.assertEqual(
                ("BAD_REQUEST", "d-0", True), (failed.error, failed.message_id, failed.permanent), name
            )
            self.assertEqual(
                [f"d-{number}" for number in range(101)], [m.message_id for m in script.downstream]
            )
            for result in results[1:]:
                self.assertNoResult(result)
                result.addErrback(lambda failure: None)
            self.stays(script, joined, name)

    def test_A22_notAcceptable(self) -> None:
        """
        A stanza error 406 is logged; no message fails, no place is freed, and
        the stream stays.
        """
        log = LogText(self)
        script = ScriptedConnectionServer()
        joined = self.joined(script)
        results = [
            joined.appServer.send(DownstreamMessage(to="tok-A", message_id=f"d-{number}"))
            for number in range(102)
        ]
        joined.pump()
        for stanzaID in ("", "d-0"):
            echoed = GCMStanza('{"to":"tok-A","message_id":"d-0","message_type":"ack"}', {"id": stanzaID})
            text = "Received acks for messages not sent over this connection\n"
            script.write(stanzaError(406, text, f"{BARE_JID}/node7", echoed))
        joined.pump()
        self.assertEqual(2, len([line for line in log.lines if "406" in line]))
        self.assertEqual(100, len(script.downstream))
        for result in results:
            self.assertNoResult(result)
            result.addErrback(lambda failure: None)
        self.stays(script, joined)
        script.deliver(Ack(from_="tok-A", message_id="d-0"))
        joined.pump()
        self.assertEqual("d-0", self.successResultOf(results[0]).message_id)

    def test_A22_ofAnotherMessage(self) -> None:
        """
        A stanza error about a message that is not waiting, or about nothing
        that can be told, is no harm.
        """
        script = ScriptedConnectionServer()
        joined = self.joined(script)
        result = joined.appServer.send(DownstreamMessage(to="tok-A", message_id="d-1"))
        joined.pump()
        for error in BAD_REQUESTS.values():
            script.write(error.encode())
        script.write(b'<message type="error"/><message type="error"><error code="x"/></message>')
        script.write(b'<message type="error"><gcm xmlns="google:mobile:data">{}</gcm></message>')
        joined.pump()
        self.assertNoResult(result)
        result.addErrback(lambda failure: None)
        self.stays(script, joined)


def billionLaughs() -> bytes:
    """
    A document type definition whose entities unfold to a billion words.
    """
    entities = ['<!ENTITY lol0 "lol">']
    entities += [f'<!ENTITY lol{n} "{f"&lol{n - 1};" * 10}">' for n in range(1, 10)]
    return f"<!DOCTYPE lolz [{''.join(entities)}]>".encode()


GCM_START = b'<message><gcm xmlns="google:mobile:data">'
#: What must not stand in a stream, and the stream error to answer it with.
FORBIDDEN: dict[str, tuple[bytes, str]] = {
    "a comment": (b"<!-- x -->", "restricted-xml"),
    "a comment in a stanza": (b"<message><!-- x --></message>", "restricted-xml"),
    "a comment in a payload": (GCM_START + b"{<!-- x -->}</gcm></message>", "restricted-xml"),
    "a processing instruction": (b"<?php echo 1 ?>", "restricted-xml"),
    "a processing instruction in a payload": (GCM_START + b"{}<?x y?></gcm></message>", "restricted-xml"),
    "a DTD": (b"<!DOCTYPE x>", "not-well-formed"),
    "billion laughs": (billionLaughs() + GCM_START + b"&lol9;</gcm></message>", "not-well-formed"),
    "an XML declaration": (b'<?xml version="1.0"?>', "not-well-formed"),
    "an unknown entity": (GCM_START + b'{"a":"&lol9;"}</gcm></message>', "not-well-formed"),
    "an element that does not end": (GCM_START + b"{}</message>", "not-well-formed"),
    "no UTF-8": (GCM_START + b'{"a":"\xff"}</gcm></message>', "not-well-formed"),
    "half of a surrogate pair": (GCM_START + b'{"a":"&#xD800;"}</gcm></message>', "not-well-formed"),
    "a zero byte": (GCM_START + b'{"a":"\0"}</gcm></message>', "not-well-formed"),
    "a payload of a megabyte": (GCM_START + b"x" * 1_000_000 + b"</gcm></message>", "policy-violation"),
    "an attribute of a megabyte": (b'<iq id="' + b"x" * 1_000_000 + b'"/>', "policy-violation"),
    "10,000 nested elements": (b"<iq>" + b"<a>" * 10_000, "policy-violation"),
    "10,000 nested in a message": (b"<message>" + b"<a>" * 10_000, "policy-violation"),
    "10,000 nested in a payload": (GCM_START + b"<a>" * 10_000, "policy-violation"),
    "10,000 elements in a stanza": (b"<iq>" + b"<a/>" * 10_000, "policy-violation"),
    "10,000 payloads in a message": (
        b"<message>" + b'<gcm xmlns="google:mobile:data">{}</gcm>' * 10_000,
        "policy-violation",
    ),
}
#: The same before the stream's header.
FORBIDDEN_AT_FIRST: dict[str, tuple[bytes, str]] = {
    "a comment": (b"<!-- x -->", "restricted-xml"),
    "a processing instruction": (b'<?xml-stylesheet href="x"?>', "restricted-xml"),
    "a DTD": (b"<!DOCTYPE x>", "restricted-xml"),
    "an external DTD": (b'<!DOCTYPE x SYSTEM "file:///etc/passwd">', "restricted-xml"),
    "billion laughs": (b'<?xml version="1.0"?>' + billionLaughs(), "restricted-xml"),
    "a parameter entity": (b'<!DOCTYPE x [<!ENTITY % a SYSTEM "http://192.0.2.1/">%a;]>', "restricted-xml"),
}
TEN_MEGABYTES = 10 * 1024 * 1024
#: Stanzas without an end: what they begin with, and what goes on and on.
ENDLESS: dict[str, tuple[bytes, bytes]] = {
    "a payload": (GCM_START, b"x"),
    "a payload of quotes": (GCM_START, b"&quot;"),
    "a payload of line breaks": (GCM_START, b"\n"),
    "a payload of CDATA": (GCM_START, b"<![CDATA[x]]>"),
    "text beside the payload": (b"<message>", b"x"),
    "text of another stanza": (b"<iq>", b"x"),
    "an attribute": (b'<message id="', b"x"),
    "attributes": (b"<message", b' a%d="x"'),
    "a name": (b"<", b"x"),
    "a start tag": (b"<message", b" "),
    "an end tag": (b"<message></message", b" "),
    "namespaces": (b"<message", b' xmlns:a%d="x"'),
    "a comment": (b"<!--", b"x"),
    "an entity": (GCM_START + b"&", b"x"),
}


#: What must be in no log.
MARKER = "Rhabarber"


#: Payloads that are no messages and cannot be named.
UNNAMED = {
    "empty": "",
    "white space": " \n ",
    "no JSON": "Rhabarber is not JSON",
    "half": '{"message_id":"m-1","from":"Rhabarber"',
    "two": '{"message_id":"m-1","from":"Rhabarber"} {}',
    "a list": '["Rhabarber"]',
    "a list of messages": '[{"message_id":"m-1","from":"Rhabarber"}]',
    "a string": '"Rhabarber"',
    "a number": "17",
    "null": "null",
    "NaN": "NaN",
    "nothing in it": "{}",
    "no message_id": '{"from":"Rhabarber","data":{}}',
    "no from": '{"message_id":"m-1","data":{"Rhabarber":""}}',
    "message_id is a number": '{"message_id":1,"from":"Rhabarber"}',
    "message_id is null": '{"message_id":null,"from":"Rhabarber"}',
    "message_id is empty": '{"message_id":"","from":"Rhabarber"}',
    "message_id twice": '{"message_id":"m-1","message_id":"m-2","from":"Rhabarber"}',
    "message_id is half of a pair": '{"message_id":"\\ud800","from":"Rhabarber"}',
    "message_id below": '{"data":{"message_id":"m-1","from":"Rhabarber"}}',
    "from is a number": '{"message_id":"m-1","from":17,"data":{"Rhabarber":""}}',
    "from is a list": '{"message_id":"m-1","from":["Rhabarber"]}',
    "from twice": '{"message_id":"m-1","from":"tok-A","from":"Rhabarber"}',
    "nested deeply": '{"Rhabarber":' + "[" * 5000,
    "single quotes": "{'message_id':'m-1','from':'Rhabarber'}",
    "a control message without its type": '{"message_type":"control","control":"Rhabarber"}',
}


#: Payloads that are no messages, of C{"m-1"} and the marker's device.
NAMED = {
    "data is a list": '{"message_id":"m-1","from":"Rhabarber","data":[]}',
    "data is a string": '{"message_id":"m-1","from":"Rhabarber","data":"Rhabarber"}',
    "data is null": '{"message_id":"m-1","from":"Rhabarber","data":null}',
    "a number for a string": '{"message_id":"m-1","from":"Rhabarber","data":{"Rhabarber":1}}',
    "an object for a string": '{"message_id":"m-1","from":"Rhabarber","data":{"k":{"k":"Rhabarber"}}}',
    "null for a string": '{"message_id":"m-1","from":"Rhabarber","data":{"Rhabarber":null}}',
    "category is a number": '{"message_id":"m-1","from":"Rhabarber","category":1}',
    "time_to_live is a string": '{"message_id":"m-1","from":"Rhabarber","time_to_live":"Rhabarber"}',
    "time_to_live is a fraction": '{"message_id":"m-1","from":"Rhabarber","time_to_live":1.5}',
    "message_type is a number": '{"message_id":"m-1","from":"Rhabarber","message_type":1}',
    "NaN": '{"message_id":"m-1","from":"Rhabarber","time_to_live":NaN}',
    "Infinity": '{"message_id":"m-1","from":"Rhabarber","data":{"k":-Infinity}}',
    "a key twice": '{"message_id":"m-1","from":"Rhabarber","data":{"k":"Rhabarber","k":"2"}}',
    "another key twice": '{"message_id":"m-1","from":"Rhabarber","Rhabarber":"1","Rhabarber":"2"}',
    "data twice": '{"message_id":"m-1","from":"Rhabarber","data":{},"data":{"k":"Rhabarber"}}',
    "half of a pair": '{"message_id":"m-1","from":"Rhabarber","data":{"k":"Rhabarber\\ud83d"}}',
    "the other half": '{"message_id":"m-1","from":"Rhabarber","data":{"\\ude00Rhabarber":"v"}}',
    "a pair the wrong way round": '{"message_id":"m-1","from":"Rhabarber","data":{"k":"\\ude00\\ud83d"}}',
    "a receipt of nothing": '{"message_type":"receipt","message_id":"m-1","from":"Rhabarber"}',
}


class HostilePeerTests(AppServerCase):
    """
    A connection server that is broken, or means harm.
    """

    def refused(
        self, script: RawConnectionServer, joined: Any, end: RawEnd, condition: str, what: str
    ) -> None:
        """
        The connection was ended with this stream error.
        """
        error = f"<stream:error><{condition} xmlns='{NS_STREAM_ERRORS}'/></stream:error></stream:stream>"
        self.assertTrue(end.received.endswith(error.encode()), f"{what}: {end.received[-200:]!r}")
        self.assertTrue(end.lost, what)

    def works(self, script: RawConnectionServer, joined: Any, handler: RecordingHandler, what: str) -> None:
        """
        There is a new connection, and it works.
        """
        self.assertEqual(1, joined.network.connections, what)
        self.assertFalse(script.end.lost, what)
        script.write(envelope(upstreamJSON(f"after {what}")))
        joined.pump()
        self.assertEqual(f"after {what}", handler.ids[-1])
        self.assertTrue(script.end.received.endswith(b'"message_type":"ack"}</gcm></message>'), what)

    def test_A26_forbidden(self) -> None:
        """
        A DTD, an entity, a comment, a processing instruction, too many or too
        deeply nested elements and broken XML end the connection with a stream
        error.  What came before that has been handled, and the next connection
        works.
        """
        handler = RecordingHandler()
        script = RawConnectionServer()
        joined = self.joined(script, handler)
        for generation, (what, (data, condition)) in enumerate(FORBIDDEN.items(), 2):
            end = script.end
            script.write(envelope(upstreamJSON(f"before {what}")) + data)
            joined.pump()
            self.assertEqual(f"before {what}", handler.ids[-1])
            self.refused(script, joined, end, condition, what)
            self.assertEqual([f"before {what}"], re.findall(f"before {what}", end.received.decode()))
            joined.advance(61)
            self.assertEqual(generation, joined.appServer.links[0].generation, what)
            self.works(script, joined, handler, what)

    def test_A26_forbiddenByteByByte(self) -> None:
        """
        It makes no difference if it comes byte by byte.
        """
        for what in ("a comment in a payload", "billion laughs", "10,000 nested elements"):
            data, condition = FORBIDDEN[what]
            handler = RecordingHandler()
            script = RawConnectionServer()
            joined = self.joined(script, handler)
            end = script.end
            for byte in data:
                end.transport.write(bytes([byte]))
                joined.pump()
                if end.lost:
                    break
            self.refused(script, joined, end, condition, what)
            self.works(script, joined, handler, what)

    def test_A26_forbiddenAtFirst(self) -> None:
        """
        Before the stream's header a DTD is well-formed XML; it is refused all
        the same, and nothing in it is looked at.
        """
        for what, (data, condition) in FORBIDDEN_AT_FIRST.items():
            handler = RecordingHandler()
            script = RawConnectionServer()
            script.login = [(b"<stream:stream", data + RAW_HEADER + RAW_MECHANISMS.replace(b"x", b"&lol9;"))]
            joined = self.joined(script, handler)
            self.refused(script, joined, script.ends[0], condition, what)
            self.assertNotIn(b"<auth", script.ends[0].received)
            self.assertEqual(0, joined.network.connections)
            script.login = [
                # An XML declaration is fine there.
                (RAW_LOGIN[0][0], b'<?xml version="1.0" encoding="UTF-8"?>\n' + RAW_LOGIN[0][1]),
                *RAW_LOGIN[1:],
            ]
            joined.advance(2)
            self.works(script, joined, handler, what)

    def test_A26_tenMegabytes(self) -> None:
        """
        A stanza of ten megabytes, whatever it is made of, ends the connection
        long before it has all been read.
        """
        for what, (start, more) in ENDLESS.items():
            handler = RecordingHandler()
            script = RawConnectionServer()
            joined = self.joined(script, handler)
            end = script.end
            script.write(start)
            fed, number = len(start), 0
            while fed < TEN_MEGABYTES and not end.lost:
                piece = b""
                while len(piece) < 16_384:
                    number += 1
                    piece += more % number if b"%d" in more else more * 64
                end.transport.write(piece)
                joined.pump()
                fed += len(piece)
            self.assertLessEqual(fed, 2 * MAX_STANZA_BYTES, f"{what}: {fed} bytes were taken")
            self.refused(script, joined, end, "policy-violation", what)
            self.assertEqual([], handler.messages, what)
            self.works(script, joined, handler, what)

    def test_A26_nothingElseBreaks(self) -> None:
        """
        What is on its way in both directions when a hostile stanza ends the
        connection survives it.
        """
        handling: Deferred[None] = Deferred()
        handler = RecordingHandler(lambda message: handling)
        script = RawConnectionServer()
        joined = self.joined(script, handler)
        sent = joined.appServer.send(DownstreamMessage(to="tok-A", message_id="d-1"))
        script.write(envelope(upstreamJSON("u-1")))
        joined.pump()
        script.write(b"<!-- -->")
        joined.pump()
        self.assertEqual(2, joined.appServer.links[0].generation)
        self.assertIn(b'"message_id":"d-1"', script.end.received)
        script.write(envelope('{"message_type":"ack","from":"tok-A","message_id":"d-1"}'))
        script.write(envelope(upstreamJSON("u-1")))
        joined.pump()
        handling.callback(None)
        joined.pump()
        self.successResultOf(sent)
        self.handled(handler, ["u-1"])
        self.assertIn(b'{"to":"tok-A","message_id":"u-1","message_type":"ack"}', script.end.received)
        self.assertNotIn(b'"message_type":"ack"', script.ends[0].received)

    def test_A27_unnamed(self) -> None:
        """
        A payload that is no message, and does not say which one it would be,
        is counted; the stream lives, and the next message is handled.
        """
        log = LogText(self)
        handler = RecordingHandler()
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler)
        for number, (what, text) in enumerate(UNNAMED.items(), 1):
            script.write(envelope(text) + envelope(upstreamJSON(f"after {what}")))
            joined.pump()
            self.assertEqual(f"after {what}", handler.ids[-1])
            self.assertEqual(number, joined.appServer.delivery.malformed, what)
            self.assertEqual(number, len(joined.observer.of(Undecodable)), what)
            self.assertEqual(f"after {what}", script.acks[-1], what)
        self.assertEqual(handler.ids, script.acks)
        self.assertEqual((len(UNNAMED), 1), (len(handler.ids), joined.network.attempts))
        self.assertEqual((0, []), (joined.appServer.delivery.deadLetters, joined.observer.of(DeadLettered)))
        self.assertEqual(len(UNNAMED), len([line for line in log.lines if "malformed payload" in line]))
        self.assertNotIn(MARKER, log.everything)

    def test_A27_named(self) -> None:
        """
        One that does say so becomes a dead letter as well, and is
        acknowledged, so that it does not come again for ever.
        """
        log = LogText(self)
        for what, text in NAMED.items():
            handler = RecordingHandler()
            script = ScriptedConnectionServer()
            joined = self.joined(script, handler)
            script.write(envelope(text) + envelope(upstreamJSON(f"after {what}")))
            joined.pump()
            self.handled(handler, [f"after {what}"])
            delivery = joined.appServer.delivery
            self.assertEqual((1, 1), (delivery.malformed, delivery.deadLetters), what)
            self.assertEqual(
                [("m-1", MARKER)],
                [(event.message_id, event.from_) for event in joined.observer.of(DeadLettered)],
                what,
            )
            self.assertEqual(
                [(MARKER, "m-1"), ("tok-A", f"after {what}")],
                [(message.to, message.message_id) for _, message in script.received],
                what,
            )
            # Again: acknowledged again, and still one dead letter.
            script.write(envelope(text))
            joined.pump()
            self.assertEqual((2, 1), (delivery.malformed, delivery.deadLetters), what)
            self.assertEqual("m-1", script.acks[-1], what)
            self.assertEqual(1, joined.network.attempts, what)
        self.assertEqual(len(NAMED), len([line for line in log.lines if "dead letter" in line]))
        self.assertNotIn(MARKER, log.everything)

    def test_A27_answers(self) -> None:
        """
        An answer that cannot be decoded is counted, and not acknowledged: it
        is no message.
        """
        handler = RecordingHandler()
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler)
        for kind in ("ack", "nack", "control"):
            script.write(
                envelope(f'{{"message_type":"{kind}","message_id":"m-1","from":"t","error":1,"x":NaN}}')
            )
        joined.pump()
        delivery = joined.appServer.delivery
        self.assertEqual((3, 0), (delivery.malformed, delivery.deadLetters))
        self.assertEqual([], script.received)
        self.assertEqual(1, joined.network.attempts)

    def test_A27_unknownTypes(self) -> None:
        """
        A message of a type that nobody knows is no error: it is ignored, and
        not logged either.
        """
        log = LogText(self)
        handler = RecordingHandler()
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler)
        for text in (
            '{"message_type":"Rhabarber"}',
            '{"message_type":"Rhabarber","message_id":"m-1","from":"tok-A","data":{"k":1}}',
            '{"message_type":"control","control_type":"Rhabarber"}',
            '{"message_type":"nack","message_id":"m-1","error":"Rhabarber"}',
            '{"message_type":"ack","message_id":"Rhabarber"}',
        ):
            script.write(envelope(text))
        joined.pump()
        self.assertEqual(([], []), (handler.messages, script.acks))
        self.assertEqual(0, joined.appServer.delivery.malformed)
        self.stays(script, joined)
        self.assertNotIn(MARKER, log.everything)


class Wire(StringTransport):
    """
    The transport of a connection to a server, of which the other end is the
    test.

    Like a real one, it drops what is written after it has been told to close.
    """

    def write(self, data: bytes) -> None:
        """
        Note what the server says.
        """
        if not self.disconnecting:
            super().write(data)


HEADER = (
    '<stream:stream to="gcm.googleapis.com" version="1.0" xmlns="jabber:client" '
    'xmlns:stream="http://etherx.jabber.org/streams">'
)


def plain(authzid: str, authcid: str, key: str) -> str:
    """
    The message of SASL PLAIN.
    """
    return b64encode(f"{authzid}\0{authcid}\0{key}".encode()).decode()


def auth(blob: str) -> str:
    """
    The request to log in with that.
    """
    return f'<auth mechanism="PLAIN" xmlns="urn:ietf:params:xml:ns:xmpp-sasl">{blob}</auth>'


GOOD_KEY = plain("", BARE_JID, SERVER_KEY)
BIND = (
    '<iq type="set" id="b1"><bind xmlns="urn:ietf:params:xml:ns:xmpp-bind">'
    "<resource>node7</resource></bind></iq>"
)
SUCCESS = '<success xmlns="urn:ietf:params:xml:ns:xmpp-sasl"/>'
NOT_AUTHORIZED = (
    '<failure xmlns="urn:ietf:params:xml:ns:xmpp-sasl"><not-authorized/></failure></stream:stream>'
)


class RawClient:
    """
    A client of a connection server: raw bytes in, raw bytes out.

    @ivar stream: the server's end.
    @ivar transport: what the server writes to.
    """

    def __init__(self, factory: ServerFactory, host: str = "192.0.2.7") -> None:
        address = IPv4Address("TCP", host, 40_000)
        self.transport = Wire(peerAddress=address)
        stream = factory.buildProtocol(address)
        assert stream is not None
        self.stream = stream
        self.stream.makeConnection(self.transport)

    def take(self) -> str:
        """
        What the server has said since the last time.
        """
        said: bytes = self.transport.value()
        self.transport.clear()
        return said.decode()

    def send(self, text: str | bytes) -> str:
        """
        Say something.

        @return: what the server says to that at once.
        """
        self.stream.dataReceived(text if isinstance(text, bytes) else text.encode())
        return self.take()

    def login(self, blob: str = GOOD_KEY, bind: str = BIND) -> str:
        """
        Log in.

        @return: what the server says to the bind.
        """
        self.send(HEADER)
        self.send(auth(blob))
        self.send(HEADER)
        return self.send(bind)

    def say(self, text: str) -> str:
        """
        Send a payload.
        """
        return self.send(f'<message id=""><gcm xmlns="google:mobile:data">{escape(text)}</gcm></message>')

    def ack(self, message_id: str, to: str = "tok-A") -> str:
        """
        Acknowledge an upstream message.
        """
        return self.say(f'{{"to":"{to}","message_id":"{message_id}","message_type":"ack"}}')

    @property
    def closing(self) -> bool:
        """
        Whether the server closes the connection.
        """
        return self.transport.disconnecting

    def lose(self) -> None:
        """
        The connection is gone.
        """
        self.stream.connectionLost(Failure(ConnectionLost()))


def idsIn(said: str) -> list[str]:
    """
    The C{message_id} of each payload.
    """
    return re.findall(r'"message_id":"([^"]*)"', said)


class ServerCase(SynchronousTestCase):
    """
    Tests of a connection server, with clients that say what no client of ours
    would.

    @ivar server: the connection server, started.
    @ivar device: a device of the sender.
    """

    def setUp(self) -> None:
        """
        Start a connection server, and see to it that it leaves nothing.
        """
        self.clock = Clock()
        self.serial = 0
        self.server = self.start({SENDER_ID: SERVER_KEY, "111": "ANOTHER-KEY"})
        self.device = SimulatedDevice(self.server, SENDER_ID, "tok-A")

    def start(self, senders: dict[str, str]) -> ConnectionServer:
        """
        Start a connection server.
        """
        server = ConnectionServer(Registry(senders), self.clock, self.randomBytes)
        server.startService()
        self.clients: list[RawClient] = []
        self.addCleanup(self.finish, server, self.clients)
        return server

    def randomBytes(self, size: int) -> bytes:
        """
        Bytes that are not random, but not the same either.
        """
        self.serial += 1
        return self.serial.to_bytes(size, "big")

    def finish(self, server: ConnectionServer, clients: list[RawClient]) -> None:
        """
        Stop the connection server: then nothing may be left of it.
        """
        stopped = server.stopService()
        for client in clients:
            if client.transport.connected:
                self.assertTrue(client.closing, "a connection is left open")
                self.lose(client)
        self.successResultOf(stopped)
        self.assertEqual([], self.clock.getDelayedCalls(), "calls are left on the clock")

    def client(self, host: str = "192.0.2.7") -> RawClient:
        """
        A new connection.
        """
        client = RawClient(self.server.factory, host)
        self.clients.append(client)
        return client

    def loggedIn(self, resource: str = "node7") -> RawClient:
        """
        A new connection that is logged in.
        """
        client = self.client()
        _, _, more = client.login(bind=BIND.replace("node7", resource)).partition("</iq>")
        # What waited comes with the answer to the bind.
        client.transport.write(more.encode())
        return client

    def lose(self, client: RawClient) -> None:
        """
        A connection is gone.
        """
        client.transport.connected = False
        client.lose()

    def send(self, *ids: str, time_to_live: int | None = None) -> None:
        """
        Messages of the device.
        """
        for message_id in ids:
            result = self.device.send(message_id, {"op": "ECHO"}, time_to_live)
            result.addErrback(lambda failure: failure.trap(DeliveryFailed) and None)

    def alive(self, client: RawClient, what: str = "") -> None:
        """
        The stream is still there.
        """
        self.assertFalse(client.closing, what)
        self.assertEqual(
            '<iq type="result" id="alive"/>',
            client.send('<iq type="get" id="alive"><ping xmlns="urn:xmpp:ping"/></iq>'),
            what,
        )


#: What clients in the field put there, and what none should.
STREAM_TOS = [
    "gcm.googleapis.com",
    "gcm-xmpp.googleapis.com",
    "fcm-xmpp.googleapis.com",
    "fcm.googleapis.com",
    "FCM XMPP Client Connection Server",
    "localhost",
    "",
    "@/",
    "a\"b'c<d>&amp;e",
    "\U0001f600 \u00e5",
    "x" * 1000,
]
#: Who logs in as what; each with success, so far as is known.
IDENTITIES = {
    "gcm": ("", f"{SENDER_ID}@gcm.googleapis.com"),
    "fcm": ("", f"{SENDER_ID}@fcm.googleapis.com"),
    "bare": ("", SENDER_ID),
    "any domain": ("", f"{SENDER_ID}@example.org"),
    "full JID": ("", f"{SENDER_ID}@gcm.googleapis.com/node7"),
    "authzid of the documentation": (
        f"{SENDER_ID}@projects.gcm.android.com",
        f"{SENDER_ID}@projects.gcm.android.com",
    ),
    "authzid of another domain": (f"{SENDER_ID}@projects.gcm.android.com", f"{SENDER_ID}@gcm.googleapis.com"),
    "authzid, bare": (SENDER_ID, SENDER_ID),
}


class LoginVariantTests(ServerCase):
    """
    The many ways in which clients log in.
    """

    def test_S01_transcript(self) -> None:
        """
        The documented way, step by step and to the byte.
        """
        client = self.client()
        started = (
            '<stream:stream from="gcm.googleapis.com" id="%s" version="1.0" '
            'xmlns:stream="http://etherx.jabber.org/streams" xmlns="jabber:client">'
        )
        self.assertEqual(
            started
            % "0000000000000001"
            + '<stream:features><mechanisms xmlns="urn:ietf:params:xml:ns:xmpp-sasl">'
            "<mechanism>PLAIN</mechanism></mechanisms></stream:features>",
            client.send(HEADER),
        )
        self.assertEqual(SUCCESS, client.send(auth(GOOD_KEY)))
        self.assertEqual(
            started % "0000000000000002" + '<stream:features><bind xmlns="urn:ietf:params:xml:ns:xmpp-bind"/>'
            '<session xmlns="urn:ietf:params:xml:ns:xmpp-session"/></stream:features>',
            client.send(HEADER),
        )
        self.assertEqual(
            '<iq type="result" id="b1"><bind xmlns="urn:ietf:params:xml:ns:xmpp-bind">'
            "<jid>987654321098@gcm.googleapis.com/node7</jid></bind></iq>",
            client.send(BIND),
        )
        self.assertEqual(
            '<iq type="result" id="s1"/>',
            client.send('<iq type="set" id="s1"><session xmlns="urn:ietf:params:xml:ns:xmpp-session"/></iq>'),
        )

    def test_S01_anyTo(self) -> None:
        """
        The stream header's C{to} may be anything, and is echoed.
        """
        for to in STREAM_TOS:
            client = self.client()
            header = HEADER.replace('to="gcm.googleapis.com"', f'to="{attribute(to)}"')
            for step in (auth(GOOD_KEY), BIND):
                self.assertTrue(
                    client.send(header).startswith(f'<stream:stream from="{attribute(to)}" id="'), to
                )
                said = client.send(step)
            self.assertIn("<jid>", said, to)
            self.alive(client, to)

    def test_S01_anyHeader(self) -> None:
        """
        The header may lack its C{to}, be quoted in either way, follow an XML
        declaration, and come with a line break or byte by byte.
        """
        for header in (
            HEADER.replace(' to="gcm.googleapis.com"', ""),
            HEADER.replace('"', "'"),
            f"<?xml version='1.0'?>{HEADER}",
            f'<?xml version="1.0" encoding="UTF-8" ?>\n{HEADER}\n',
            HEADER.replace(' version="1.0"', ""),
            HEADER.replace(">", f' xml:lang="en" from="{BARE_JID}">'),
            HEADER.replace("stream:", "s:").replace(":stream=", ":s="),
            HEADER.replace(" ", "\n  "),
        ):
            client = self.client()
            for step in (auth(GOOD_KEY), BIND):
                for byte in header.encode():
                    client.stream.dataReceived(bytes([byte]))
                self.assertIn("<stream:features>", client.take(), header)
                said = client.send(step)
            self.assertIn("<jid>", said, header)

    def test_S01_anyIdentity(self) -> None:
        """
        SASL PLAIN may name the sender in any of the ways that are in use.
        """
        for name, (authzid, authcid) in IDENTITIES.items():
            client = self.client()
            said = client.login(plain(authzid, authcid, SERVER_KEY))
            self.assertIn(f"<jid>{BARE_JID}/", said, name)
            self.alive(client, name)

    def test_S01_lineBreaks(self) -> None:
        """
        The base64 may be broken into lines, at any place.
        """
        blob = GOOD_KEY
        broken = [blob[:cut] + "\n" + blob[cut:] for cut in range(len(blob) + 1)]
        broken += [
            "\r\n".join(re.findall(".{1,20}", blob)) + "\r\n",
            "\n".join(blob),
            f"\n\t  {blob}  \n",
            " ".join(re.findall(".{1,3}", blob)),
        ]
        for each in broken:
            client = self.client()
            client.send(HEADER)
            self.assertEqual(SUCCESS, client.send(auth(each)), repr(each))

    def test_S01_anyAuth(self) -> None:
        """
        The rest of the request may be written in any way, too, and may come in
        two steps.
        """
        for request in (
            auth(GOOD_KEY).replace('"', "'") + "\n",
            f'<a:auth xmlns:a="urn:ietf:params:xml:ns:xmpp-sasl" mechanism="PLAIN">{GOOD_KEY}</a:auth>',
            auth(GOOD_KEY).replace("<auth ", '<auth xmlns:ga="http://www.google.com/talk/protocol/auth" '),
            auth(GOOD_KEY).replace(">", ' ga:x="1" xmlns:ga="urn:x">', 1),
            auth(f"<![CDATA[{GOOD_KEY}]]>"),
        ):
            client = self.client()
            client.send(HEADER)
            self.assertEqual(SUCCESS, client.send(request), request)
        client = self.client()
        client.send(HEADER)
        self.assertEqual('<challenge xmlns="urn:ietf:params:xml:ns:xmpp-sasl"/>', client.send(auth("")))
        response = f'<response xmlns="urn:ietf:params:xml:ns:xmpp-sasl">{GOOD_KEY}</response>'
        self.assertEqual(SUCCESS, client.send(response))

    def test_S01_anotherAuthzid(self) -> None:
        """
        Only an authzid that names another sender is not accepted.
        """
        client = self.client()
        client.send(HEADER)
        client.send(auth(plain("111@gcm.googleapis.com", BARE_JID, SERVER_KEY)))
        self.clock.advance(1)
        self.assertEqual(NOT_AUTHORIZED, client.take())

    def test_S02_incompleteBind(self) -> None:
        """
        A bind without C{id}, without a resource, or with an empty one is
        accepted; the answer has the C{id} if the request had one, and a
        resource in any case.
        """
        namespace = "urn:ietf:params:xml:ns:xmpp-bind"
        jids = set()
        for bind, stanzaID in (
            (f'<iq type="set"><bind xmlns="{namespace}"/></iq>', ""),
            (f'<iq type="set" id=""><bind xmlns="{namespace}"/></iq>', ' id=""'),
            (f'<iq type="set" id="b1"><bind xmlns="{namespace}"/></iq>', ' id="b1"'),
            (f'<iq type="set" id="b2"><bind xmlns="{namespace}"><resource/></bind></iq>', ' id="b2"'),
            (f'<iq type="set"><bind xmlns="{namespace}"><resource>r</resource></bind></iq>', ""),
            (
                f'<iq id="1" to="fcm-xmpp.googleapis.com" type="set"><bind xmlns="{namespace}"/></iq>',
                ' id="1"',
            ),
            (f'<iq id="a&amp;&quot;" type="set"><bind xmlns="{namespace}"/></iq>', ' id="a&amp;&quot;"'),
        ):
            client = self.client()
            said = client.login(bind=bind)
            answer = re.fullmatch(
                f'<iq type="result"{re.escape(stanzaID)}><bind xmlns="{namespace}">'
                f"<jid>{BARE_JID}/([^<]+)</jid></bind></iq>",
                said,
            )
            assert answer is not None, (bind, said)
            jids.add(answer[1])
            self.alive(client, bind)
        self.assertEqual(7, len(jids), "two streams have one resource")
        self.assertIn("r", jids)

    def test_S02_sameResource(self) -> None:
        """
        When several streams ask for the same resource each gets one of its
        own, none is closed, and all of them work.
        """
        clients = []
        resources = []
        for _ in range(5):
            client = self.client()
            said = client.login()
            resources += re.findall(f"<jid>{BARE_JID}/(.*)</jid>", said)
            clients.append(client)
        self.assertEqual("node7", resources[0])
        self.assertEqual(5, len(set(resources)))
        for client in clients:
            self.alive(client)
        self.send("m-1", "m-2", "m-3", "m-4", "m-5")
        self.assertEqual(5, len({tuple(idsIn(client.take())) for client in clients}))
        # A resource that has become free may be had again.
        self.lose(clients[0])
        self.assertIn(f"{BARE_JID}/node7<", self.client().login())

    def test_S03_otherStanzas(self) -> None:
        """
        Presence and whatever else clients send out of habit is tolerated; IQ
        requests that it does not know are answered with
        C{service-unavailable}, and pings with a result.
        """
        condition = '<service-unavailable xmlns="urn:ietf:params:xml:ns:xmpp-stanzas"/>'
        unavailable = f'<error type="cancel">{condition}</error></iq>'
        for stanza, answer in (
            ("<presence/>", ""),
            ("<presence xml:lang='en'><show>chat</show><priority>1</priority></presence>", ""),
            ('<presence type="unavailable"/>', ""),
            (
                '<iq type="get" id="r1"><query xmlns="jabber:iq:roster"/></iq>',
                f'<iq type="error" id="r1">{unavailable}',
            ),
            ('<iq type="get"><query xmlns="jabber:iq:roster"/></iq>', f'<iq type="error">{unavailable}'),
            (
                '<iq type="get" id="d1" to="gcm.googleapis.com"><query '
                'xmlns="http://jabber.org/protocol/disco#info"/></iq>',
                f'<iq type="error" id="d1">{unavailable}',
            ),
            ('<iq type="set" id="x"/>', f'<iq type="error" id="x">{unavailable}'),
            (
                '<iq type="get" id="&lt;&amp;&quot;\'"><x xmlns="y"/></iq>',
                f'<iq type="error" id="&lt;&amp;&quot;\'">{unavailable}',
            ),
            (
                f"<iq from='{BARE_JID}/node7' to='fcm-xmpp.googleapis.com' id='c2s1' type='get'>"
                "<ping xmlns='urn:xmpp:ping'/></iq>",
                '<iq type="result" id="c2s1"/>',
            ),
            ('<iq type="get"><ping xmlns="urn:xmpp:ping"/></iq>', '<iq type="result"/>'),
            ('<iq type="result" id="c2s1"/>', ""),
            ('<iq type="error" id="c2s1"><error type="cancel"/></iq>', ""),
            ('<iq id="no type"/>', ""),
            (
                '<iq type="set" id="s1"><session xmlns="urn:ietf:params:xml:ns:xmpp-session"/></iq>',
                '<iq type="result" id="s1"/>',
            ),
            (
                '<iq type="set"><session xmlns="urn:ietf:params:xml:ns:xmpp-session"/></iq>',
                '<iq type="result"/>',
            ),
            ("<message/>", ""),
            ('<message to="devices@gcm.googleapis.com"><body>hello</body></message>', ""),
            ('<message><gcm xmlns="google:mobile">{}</gcm></message>', ""),
            ('<message type="error"><gcm xmlns="google:mobile:data">{}</gcm></message>', ""),
            ('<r xmlns="urn:xmpp:sm:3"/>', ""),
            (" ", ""),
            ("\n", ""),
        ):
            for behind in ("", "\n", "\r\n", " "):
                client = self.loggedIn()
                self.assertEqual(answer, client.send(stanza + behind), stanza)
                self.alive(client, stanza)

    def test_S03_beforeTheBind(self) -> None:
        """
        So it is between the login and the bind.
        """
        client = self.client()
        client.send(HEADER)
        client.send(auth(GOOD_KEY))
        client.send(HEADER)
        self.assertEqual("", client.send("<presence/>\n"))
        self.assertIn(
            "service-unavailable", client.send('<iq type="get"><query xmlns="jabber:iq:roster"/></iq>\n')
        )
        self.alive(client)
        self.assertIn(f"{BARE_JID}/node7", client.send(BIND))

    def test_S03_messagesWithoutID(self) -> None:
        """
        Messages without an C{id}, or with an empty one, to whomever they are
        addressed and with a line break after each, are accepted.
        """
        client = self.loggedIn()
        for number, attributes in enumerate(
            (
                "",
                ' id=""',
                ' id="1"',
                ' type="normal"',
                ' to="devices@gcm.googleapis.com"',
                ' to="fcm-xmpp.googleapis.com" xml:lang="en"',
                ' xmlns="jabber:client"',
            )
        ):
            text = f'{{"to":"tok-A","message_id":"d-{number}","data":{{"k":"v"}}}}'
            said = client.send(
                f'<message{attributes}><gcm xmlns="google:mobile:data">{text}</gcm></message>\n'
            )
            self.assertEqual([f"d-{number}"], idsIn(said), attributes)
            self.assertIn('"message_type":"ack"', said, attributes)
        self.assertEqual(7, len(self.device.received))


#: The samples of docs/protocol.md, sections 3.1, 4.2, 4.3, 5 and 6.
UPSTREAM = (
    '<message to="987654321098@gcm.googleapis.com" from="devices@gcm.googleapis.com" type="normal">'
    '<gcm xmlns="google:mobile:data">{"data":{"op":"ECHO"},"time_to_live":86400,"from":"tok-A",'
    '"message_id":"u-17","category":"org.example.app"}</gcm></message>'
)
ACK = (
    '<message><data:gcm xmlns:data="google:mobile:data">'
    '{"from":"tok-A","message_id":"m-1","message_type":"ack"}</data:gcm></message>'
)
NACK = (
    '<message><data:gcm xmlns:data="google:mobile:data">'
    # In the order that was seen live (docs/protocol.md 4.3), not the documentation's.
    '{"message_type":"nack","from":"tok-X","message_id":"m-1","error":"BAD_REGISTRATION",'
    '"error_description":"Invalid token on \'to\' field: tok-X"}</data:gcm></message>'
)
RECEIPT = (
    '<message to="987654321098@gcm.googleapis.com" from="devices@gcm.googleapis.com" type="normal">'
    '<gcm xmlns="google:mobile:data">{"category":"org.example.app","data":'
    '{"message_status":"MESSAGE_SENT_TO_DEVICE","original_message_id":"m-1",'
    '"device_registration_id":"tok-A","message_sent_timestamp":"1498801519251"},'
    '"message_id":"dr2:m-1","message_type":"receipt","time_to_live":0,"from":"gcm.googleapis.com"}</gcm></message>'
)
CONTROL = (
    '<message><data:gcm xmlns:data="google:mobile:data">'
    '{"message_type":"control","control_type":"CONNECTION_DRAINING"}</data:gcm></message>'
)


class ShapeTests(ServerCase):
    """
    What it says, to the byte: clients in the field read it by regular
    expression.
    """

    def test_S04_upstream(self) -> None:
        """
        A message of a device has the shape of the sample.
        """
        client = self.loggedIn()
        self.send("u-17")
        self.assertEqual(UPSTREAM, client.take())

    def test_S04_ack(self) -> None:
        """
        So has an ACK.
        """
        client = self.loggedIn()
        self.assertEqual(ACK, client.say('{"to":"tok-A","message_id":"m-1","data":{"k":"v"}}'))

    def test_S04_ackWithNewToken(self) -> None:
        """
        An ACK that tells a newer token has it at the end.
        """
        ack = Ack(from_="tok-A", message_id="m-1", registration_id="tok-A2")
        expected = ACK.replace('"ack"}', '"ack","registration_id":"tok-A2"}')
        self.assertEqual(expected, serverStanza(ack).decode())

    def test_S04_nack(self) -> None:
        """
        So has a NACK.
        """
        client = self.loggedIn()
        self.assertEqual(NACK, client.say('{"to":"tok-X","message_id":"m-1","data":{"k":"v"}}'))

    def test_S04_receipt(self) -> None:
        """
        So has a receipt.
        """
        data = ReceiptData(
            message_status="MESSAGE_SENT_TO_DEVICE",
            original_message_id="m-1",
            device_registration_id="tok-A",
            message_sent_timestamp="1498801519251",
        )
        receipt = Receipt(
            category="org.example.app",
            data=data,
            message_id="dr2:m-1",
            time_to_live=0,
            from_="gcm.googleapis.com",
        )
        self.assertEqual(RECEIPT, serverStanza(receipt, BARE_JID).decode())

    def test_S04_control(self) -> None:
        """
        So has the announcement that a stream will be closed.
        """
        self.assertEqual(CONTROL, serverStanza(Control(control_type="CONNECTION_DRAINING")).decode())

    def test_S04_keepAlive(self) -> None:
        """
        A keep-alive is one space, once a minute, and nothing else.
        """
        client = self.loggedIn()
        for _ in range(10):
            self.clock.advance(59.0)
            self.assertEqual("", client.take())
            self.clock.advance(1.0)
            self.assertEqual(" ", client.take())

    def test_S04_oneLine(self) -> None:
        """
        Whatever the data is, the JSON is on one line, with its quotes raw and
        nothing in it that XML would have escaped, so that those can read it
        who never unescape; and nothing follows the stanza.
        """
        client = self.loggedIn()
        data = {"k": '<a href="x">\n&amp;\t\'\r\u2028</a>'}
        self.device.send("u-1", data)
        said = client.take()
        text = re.fullmatch('<message [^>]*><gcm xmlns="google:mobile:data">(.*)</gcm></message>', said)
        assert text is not None, said
        self.assertEqual(data, json.loads(text[1])["data"])
        self.assertNotIn("&", text[1])


class AnswerTests(ServerCase):
    """
    What it makes of what app servers send.
    """

    def test_S05_ack(self) -> None:
        """
        C{message_type} C{"ack"} is an ACK, however it is spelled: the device
        is told, and nobody gets a message.
        """
        client = self.loggedIn()
        for number, text in enumerate(
            (
                '{"to":"tok-A","message_id":"u-0","message_type":"ack"}',
                '{"message_type":"ack","message_id":"u-1","to":"tok-A"}',
                '{"to":"tok-A","message_id":"u-2","message_type":"\\u0061ck","data":{"k":"v"}}',
                ' { "to" : "tok-A" ,\n"message_id" : "u-3", "message_type" : "ack", "x" : [ 1 ] } ',
                '{"to":"tok-A","message_id":"u-4","\\u006dessage_type":"ack"}',
            )
        ):
            self.send(f"u-{number}")
            client.take()
            self.assertEqual("", client.say(text), text)
            self.assertEqual(f"u-{number}", self.device.delivered[-1], text)
        self.assertEqual([], self.device.received)

    def test_S05_anythingElse(self) -> None:
        """
        Anything else is a message for a device, be it meant as an ACK: the
        device gets it, and the upstream message stays unacknowledged.
        """
        client = self.loggedIn()
        self.send("u-1")
        client.take()
        types = "ACK", "Ack", "ack ", " ack", "acknowledge", "nack", "receipt", "control", "", None
        for number, messageType in enumerate(types):
            text = json.dumps({"to": "tok-A", "message_id": "u-1", "message_type": messageType})
            said = client.say(text)
            self.assertIn('"from":"tok-A","message_id":"u-1","message_type":"ack"', said, text)
            self.assertEqual(number + 1, len(self.device.received), text)
        # Neither does it count where it is not the message's own.
        said = client.say('{"to":"tok-A","message_id":"u-1","data":{"message_type":"ack"}}')
        self.assertEqual(["u-1"], idsIn(said))
        self.assertEqual({"message_type": "ack"}, self.device.received[-1].data)
        self.assertEqual([], self.device.delivered)

    def test_S05_noString(self) -> None:
        """
        What is no string is not C{"ack"} either.
        """
        client = self.loggedIn()
        self.send("u-1")
        client.take()
        for messageType in (1, True, ["ack"], {"ack": "ack"}):
            text = json.dumps({"to": "tok-A", "message_id": "u-1", "message_type": messageType})
            self.assertIn('"error":"INVALID_JSON"', client.say(text), text)
        self.assertEqual([], self.device.delivered)

    def notAcceptable(self, client: RawClient, text: str, what: str) -> None:
        """
        This ACK is answered with a stanza error 406.
        """
        self.assertEqual(
            f'<message id="" type="error" to="{client.stream.fullJID}">'
            f'<gcm xmlns="google:mobile:data">{text}</gcm>'
            '<error code="406" type="modify"><not-acceptable xmlns="urn:ietf:params:xml:ns:xmpp-stanzas"/>'
            '<text xmlns="urn:ietf:params:xml:ns:xmpp-stanzas">'
            "Received acks for messages not sent over this connection\n</text></error></message>",
            client.say(text),
            what,
        )
        self.alive(client, what)

    def test_S06_foreignAck(self) -> None:
        """
        An ACK for what was not delivered on this connection, or is not
        unacknowledged any more, is answered with a stanza error 406; the
        stream stays, and nothing is taken for acknowledged.
        """
        first = self.loggedIn("node1")
        self.send("u-1")
        first.take()
        second = self.loggedIn("node2")
        ack = '{"to":"tok-A","message_id":"%s","message_type":"ack"}'
        self.notAcceptable(second, ack % "u-1", "delivered on another connection")
        self.notAcceptable(second, ack % "never", "never sent")
        self.notAcceptable(first, ack % "u-2", "never sent")
        self.notAcceptable(first, ack.replace("tok-A", "tok-B") % "u-1", "of another device")
        self.notAcceptable(first, ack.replace("tok-A", "gcm.googleapis.com") % "dr2:u-1", "a receipt")
        self.assertEqual([], self.device.delivered)
        self.assertEqual("", first.ack("u-1"))
        self.assertEqual(["u-1"], self.device.delivered)
        self.notAcceptable(first, ack % "u-1", "acknowledged before")
        self.assertEqual(["u-1"], self.device.delivered)

    def test_S06_afterReconnect(self) -> None:
        """
        The ACK of a message that a lost connection brought is not accepted on
        the next before it has been delivered there, and is then.
        """
        first = self.loggedIn()
        self.send(*[f"u-{number}" for number in range(101)])
        self.lose(first)
        second = self.loggedIn()
        second.take()
        self.notAcceptable(second, '{"to":"tok-A","message_id":"u-100","message_type":"ack"}', "waits")
        self.assertEqual(["u-100"], idsIn(second.ack("u-0")))
        self.assertEqual("", second.ack("u-100"))
        self.assertEqual(["u-0", "u-100"], self.device.delivered)

    def test_S06_echo(self) -> None:
        """
        The stanza error has the C{id} that the ACK had, or none.
        """
        client = self.loggedIn()
        text = '{"to":"tok-A","message_id":"u-1","message_type":"ack"}'
        for stanzaID in ("", ' id="3"', ' id="&lt;&amp;&quot;"'):
            said = client.send(f'<message{stanzaID}><gcm xmlns="google:mobile:data">{text}</gcm></message>')
            self.assertTrue(said.startswith(f'<message{stanzaID} type="error" to="'), said)

    def test_S07_badRequest(self) -> None:
        """
        JSON that is broken, or without a C{message_id}, cannot be NACKed: it
        is answered with a stanza error 400 that echoes it, and the stream
        stays.
        """
        client = self.loggedIn()
        for text in (
            '{"to":"tok-A","data":{}}',
            '{"to":"tok-A","message_id":"","data":{}}',
            '{"to":"tok-A","message_id":null}',
            '{"to":"tok-A","message_id":7}',
            '{"to":"tok-A","message_type":"ack"}',
            '{"to":"tok-A","message_id":"d-1"',
            '{"to":"tok-A" "message_id":"d-1"}',
            "{'to':'tok-A','message_id':'d-1'}",
            '["d-1"]',
            "nothing",
            "",
            "<&>",
        ):
            said = client.send(
                f'<message id="3"><gcm xmlns="google:mobile:data">{escape(text)}</gcm></message>'
            )
            head = (
                f'<message id="3" type="error" to="{BARE_JID}/node7"><gcm xmlns="google:mobile:data">'
                f'{escape(text)}</gcm><error code="400" type="modify">'
                '<bad-request xmlns="urn:ietf:params:xml:ns:xmpp-stanzas"/>'
                '<text xmlns="urn:ietf:params:xml:ns:xmpp-stanzas">InvalidJson: JSON_PARSING_ERROR : '
            )
            self.assertTrue(said.startswith(head), f"{text!r}: {said}")
            self.assertTrue(said.endswith("\n</text></error></message>"), said)
            self.alive(client, text)
        self.assertEqual([], self.device.received)

    def test_S07_missingMessageID(self) -> None:
        """
        The error says what is missing, in the words of the sample.
        """
        client = self.loggedIn()
        said = client.say('{"to":"tok-A","data":{}}')
        self.assertIn(">InvalidJson: JSON_PARSING_ERROR : Missing Required Field: message_id\n</text>", said)

    def test_S07_brokenXML(self) -> None:
        """
        Broken XML is answered with the stream error C{invalid-xml}, and the
        connection closed: that one, and no other.  What it had not
        acknowledged goes out on another.
        """
        other = self.loggedIn("other")
        for number, broken in enumerate(
            (
                '<message><gcm xmlns="google:mobile:data">{"data":{"k":"a & b"}}</gcm></message>',
                '<message><gcm xmlns="google:mobile:data">{"to":"<tok>"}</gcm></message>',
                "<message></gcm>",
                "<message/<",
                "<message id=3/>",
                '<message a="1" a="2"/>',
                "<x:message/>",
                "</iq>",
                '<message><gcm xmlns="google:mobile:data">&nbsp;</gcm></message>',
                b"<message>\xff\xfe</message>",
                b"<message>\0</message>",
            )
        ):
            client = self.loggedIn("broken")
            self.send(f"u-{number}")
            delivered = client if client.transport.value() else other
            delivered.take()
            said = client.send(broken)
            self.assertEqual(
                f"<stream:error><invalid-xml xmlns='{NS_STREAM_ERRORS}'/></stream:error></stream:stream>",
                said,
                broken,
            )
            self.assertTrue(client.closing, broken)
            self.lose(client)
            if delivered is client:
                self.assertEqual([f"u-{number}"], idsIn(other.take()))
            self.assertEqual("", other.ack(f"u-{number}"))
            self.alive(other, str(broken))
        self.assertEqual(11, len(self.device.delivered))

    def test_S07_brokenLogin(self) -> None:
        """
        So is broken XML at the login, if it comes to a stream at all.
        """
        for steps in ([""], [HEADER], [HEADER, auth(GOOD_KEY)], [HEADER, auth(GOOD_KEY), HEADER]):
            client = self.client()
            for step in steps:
                client.send(step)
            said = client.send("<<")
            self.assertTrue(
                said.endswith(
                    f"<stream:error><invalid-xml xmlns='{NS_STREAM_ERRORS}'/></stream:error></stream:stream>"
                ),
                said,
            )
            self.assertTrue(client.closing)

    def test_S07_deafAfterwards(self) -> None:
        """
        What the client says after that is not heard, and a client that does
        not close its end is cut off.
        """
        client = self.loggedIn()
        client.send("<a></b>")
        client.send(
            '</a><message><gcm xmlns="google:mobile:data">{"to":"tok-A","message_id":"d-1"}</gcm></message>'
        )
        self.assertEqual([], self.device.received)
        self.assertFalse(client.transport.disconnected)
        self.clock.advance(10)
        self.assertTrue(client.transport.disconnected)


class FlowTests(ServerCase):
    """
    What is delivered when, and where.
    """

    def test_S09_windowOfOneHundred(self) -> None:
        """
        A connection gets 100 messages, and each further one for an ACK.
        """
        client = self.loggedIn()
        ids = [f"u-{number}" for number in range(250)]
        self.send(*ids)
        self.assertEqual(ids[:100], idsIn(client.take()))
        self.clock.advance(30)
        self.assertEqual([], idsIn(client.take()))
        for number in range(150):
            self.assertEqual([ids[100 + number]], idsIn(client.ack(ids[number])))
        for number in range(150, 250):
            self.assertEqual("", client.ack(ids[number]))
        self.assertEqual(ids, self.device.delivered)

    def test_S09_eachConnection(self) -> None:
        """
        The window is each connection's own: a second one gets the next
        hundred, and an ACK on one frees no place on the other.
        """
        first, second = self.loggedIn("node1"), self.loggedIn("node2")
        ids = [f"u-{number}" for number in range(300)]
        self.send(*ids)
        atFirst, atSecond = idsIn(first.take()), idsIn(second.take())
        self.assertEqual((100, 100), (len(atFirst), len(atSecond)))
        self.assertEqual(ids[:200], sorted(atFirst + atSecond, key=ids.index))
        for message_id in atFirst:
            self.assertEqual(1, len(idsIn(first.ack(message_id))))
        self.assertEqual("", second.take())
        self.assertEqual(100, len(self.device.delivered))

    def test_S09_ackedInAnyOrder(self) -> None:
        """
        ACKs may come in any order; foreign ones and those of downstream
        messages free no place.
        """
        client = self.loggedIn()
        self.send(*[f"u-{number}" for number in range(110)])
        client.take()
        self.assertNotIn("u-100", client.ack("u-105"))
        self.assertNotIn("u-100", client.say('{"to":"tok-A","message_id":"d-1","data":{}}'))
        for number in range(10):
            self.assertEqual([f"u-{100 + number}"], idsIn(client.ack(f"u-{99 - number}")))

    def test_S10_onTheNext(self) -> None:
        """
        What a lost connection did not acknowledge is delivered on the next, in
        its order and before anything newer; what it did acknowledge is not.
        """
        for end in (lambda c: None, lambda c: c.send("</stream:stream>"), lambda c: c.send("<a></b>")):
            device = self.device = SimulatedDevice(self.server, SENDER_ID, "tok-A")
            first = self.loggedIn()
            self.send("u-1", "u-2", "u-3", "u-4")
            first.take()
            first.ack("u-2")
            end(first)
            self.lose(first)
            self.send("u-5")
            self.clock.advance(600)
            second = self.loggedIn()
            self.assertEqual(["u-1", "u-3", "u-4", "u-5"], idsIn(second.take()))
            for message_id in ("u-4", "u-3", "u-1", "u-5"):
                self.assertEqual("", second.ack(message_id))
            self.assertEqual(["u-2", "u-4", "u-3", "u-1", "u-5"], device.delivered)
            self.lose(second)

    def test_S10_onAnother(self) -> None:
        """
        If there is another connection already, it is delivered there at once,
        as far as there is room.
        """
        first = self.loggedIn("node1")
        ids = [f"u-{number}" for number in range(60)]
        self.send(*ids)
        first.take()
        second = self.loggedIn("node2")
        for number in range(60, 120):
            self.send(f"u-{number}")
        busy = idsIn(second.take())
        atFirst = [*ids, *idsIn(first.take())]
        self.assertEqual(120, len(set(busy) | set(atFirst)))
        self.lose(first)
        again = idsIn(second.take())
        self.assertEqual(atFirst[: 100 - len(busy)], again)
        for message_id in busy:
            again += idsIn(second.ack(message_id))
        self.assertEqual(atFirst, again)

    def test_S10_again(self) -> None:
        """
        It is delivered as often as that takes.
        """
        self.send("u-1", "u-2")
        for _ in range(20):
            client = self.loggedIn()
            self.assertEqual(["u-1", "u-2"], idsIn(client.take()))
            self.lose(client)
        client = self.loggedIn()
        client.ack("u-1")
        client.ack("u-2")
        self.assertEqual((["u-1", "u-2"], []), (self.device.delivered, self.device.failed))

    def test_S10_expired(self) -> None:
        """
        What has outlived its time to live is not delivered again, and its
        device is told so.
        """
        first = self.loggedIn()
        self.send("u-1", time_to_live=60)
        self.send("u-2", time_to_live=3600)
        self.send("u-3", time_to_live=60)
        first.take()
        first.ack("u-3")
        self.lose(first)
        self.clock.advance(61)
        second = self.loggedIn()
        self.assertEqual(["u-2"], idsIn(second.take()))
        self.assertEqual([("u-1", "TTL_EXCEEDED")], self.device.failed)
        self.assertEqual(["u-3"], self.device.delivered)

    def test_S10_toldWhileWaiting(self) -> None:
        """
        The device is told soon, not only when a connection comes.
        """
        first = self.loggedIn()
        self.send("u-1", time_to_live=60)
        self.lose(first)
        self.clock.pump([30] * 5)
        self.assertEqual([("u-1", "TTL_EXCEEDED")], self.device.failed)
        self.assertEqual("", self.loggedIn().take())

    def test_S10_24hours(self) -> None:
        """
        No message lives for longer than 24 hours, whatever the device asked
        for; each lives that long, if the device did not ask for less.
        """
        for time_to_live in (None, 86_400, 86_401, 2_419_200, -1):
            device = self.device = SimulatedDevice(self.server, SENDER_ID, "tok-A")
            first = self.loggedIn()
            self.send("u-1", "u-2", time_to_live=time_to_live)
            self.assertEqual(
                [86_400] * 2, [int(n) for n in re.findall('"time_to_live":([0-9]+)', first.take())]
            )
            self.lose(first)
            self.clock.advance(24 * HOUR - 1)
            second = self.loggedIn()
            self.assertEqual(["u-1", "u-2"], idsIn(second.take()), time_to_live)
            second.ack("u-1")
            self.lose(second)
            self.clock.advance(2)
            third = self.loggedIn()
            self.assertEqual("", third.take(), time_to_live)
            self.assertEqual((["u-1"], [("u-2", "TTL_EXCEEDED")]), (device.delivered, device.failed))
            self.lose(third)

    def test_S10_hungClient(self) -> None:
        """
        A message on a connection that is still there is on no other: without
        a loss nothing is delivered twice.
        """
        self.loggedIn("node1")
        self.send("u-1")
        self.clock.pump([60] * 100)
        second = self.loggedIn("node2")
        self.clock.pump([60] * 100)
        self.assertEqual([], idsIn(second.take()))


#: Logins that must not succeed.
BAD_LOGINS = {
    "wrong key": plain("", BARE_JID, "WRONG-KEY"),
    "unknown sender": plain("", "222@gcm.googleapis.com", SERVER_KEY),
    "key of another sender": plain("", BARE_JID, "ANOTHER-KEY"),
    "another sender with this key": plain("", "111@gcm.googleapis.com", SERVER_KEY),
    "no key": plain("", BARE_JID, ""),
    "unknown sender, no key": plain("", "222", ""),
    "no sender": plain("", "", SERVER_KEY),
    "no sender, no key": plain("", "", ""),
    "begins like the key": plain("", BARE_JID, SERVER_KEY[:-1]),
    "longer than the key": plain("", BARE_JID, SERVER_KEY + "x"),
    "on behalf of another": plain("111", BARE_JID, SERVER_KEY),
    "very long": plain("", BARE_JID, "x" * 5_000),
    "not ASCII": plain("", "\u0669\u0668\u0667@gcm.googleapis.com", "\u00e5"),
}


class GuessingTests(ServerCase):
    """
    Those who try keys.
    """

    def refusal(self, blob: str, host: str) -> tuple[str, float]:
        """
        Try to log in.

        @return: the answer, and after how many seconds it came.
        """
        client = self.client(host)
        client.send(HEADER)
        before = self.clock.seconds()
        client.stream.dataReceived(auth(blob).encode())
        while not client.transport.value():
            self.clock.advance(0.125)
            self.assertLess(self.clock.seconds() - before, 60, "there is no answer")
        self.assertTrue(client.closing)
        return client.take(), self.clock.seconds() - before

    def test_S13_sameAnswer(self) -> None:
        """
        Whatever is wrong with a login, the answer is the same to the byte.
        """
        for number, (name, blob) in enumerate(BAD_LOGINS.items()):
            answer, _ = self.refusal(blob, f"192.0.2.{number}")
            self.assertEqual(NOT_AUTHORIZED, answer, name)

    def test_S13_sameTime(self) -> None:
        """
        It comes after the same time, too: that grows with each attempt, up to
        a limit, and does not depend on what was wrong.
        """
        schedules = {}
        for number, (name, blob) in enumerate(BAD_LOGINS.items()):
            schedules[name] = tuple(self.refusal(blob, f"192.0.2.{number}")[1] for _ in range(12))
        mixed = list(BAD_LOGINS.values())[:12]
        schedules["a mixture"] = tuple(self.refusal(blob, "192.0.2.200")[1] for blob in mixed)
        self.assertEqual(1, len(set(schedules.values())), schedules)
        (delays,) = set(schedules.values())
        self.assertEqual(sorted(delays), list(delays))
        self.assertGreater(delays[0], 0)
        self.assertGreaterEqual(delays[4], 8 * delays[0])
        self.assertEqual(delays[-1], delays[-2])
        self.assertGreaterEqual(delays[-1], 5)

    def test_S13_nothingBeforeTheAnswer(self) -> None:
        """
        While the answer is being kept back nothing else is answered, and a
        good key on the same connection is not looked at.
        """
        client = self.client()
        client.send(HEADER)
        self.assertEqual("", client.send(auth(BAD_LOGINS["wrong key"])))
        self.assertEqual(
            "", client.send(auth(GOOD_KEY) + '<iq type="get" id="1"><ping xmlns="urn:xmpp:ping"/></iq>')
        )
        self.clock.advance(60)
        self.assertEqual(NOT_AUTHORIZED, client.take())

    def test_S13_goodLogin(self) -> None:
        """
        A good login is not slowed down, not even from an address that has
        tried many keys.
        """
        for _ in range(10):
            self.refusal(BAD_LOGINS["wrong key"], "192.0.2.7")
        self.assertIn("<jid>", self.client("192.0.2.7").login())

    def test_S13_tenThousandAttempts(self) -> None:
        """
        Ten thousand attempts take more than a day, leave nothing behind, and
        do not keep anybody else from logging in.
        """
        started = self.clock.seconds()
        kinds = list(BAD_LOGINS.values())[:3]
        request = [auth(blob).encode() for blob in kinds]
        header = HEADER.encode()
        answers = set()
        for number in range(10_000):
            client = RawClient(self.server.factory)
            client.stream.dataReceived(header)
            client.transport.clear()
            client.stream.dataReceived(request[number % 3])
            while not client.closing:
                self.assertEqual(b"", client.transport.value())
                self.clock.advance(10)
            answers.add(client.take())
            client.lose()
        self.assertEqual({NOT_AUTHORIZED}, answers)
        self.assertGreaterEqual(self.clock.seconds() - started, 24 * HOUR)
        self.assertEqual([], self.clock.getDelayedCalls())
        self.assertIn("<jid>", self.client("192.0.2.8").login())
