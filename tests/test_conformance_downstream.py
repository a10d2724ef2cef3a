"""
Conformance cases of downstream messages, from sending to the answer.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from fcmxmpp.elementstream import GCMStanza
from fcmxmpp.errors import AckTimedOut, Expired, Nacked, Stopped
from fcmxmpp.interfaces import Settled
from fcmxmpp.messages import Ack, DownstreamMessage, Nack
from fcmxmpp.stanza import stanzaError
from fcmxmpp.testing import RecordingHandler, ScriptedConnectionServer
from tests.conformance import (
    BARE_JID,
    AppServerCase,
    LogText,
    upstream,
)


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


#: The codes after which a message is never sent again.
PERMANENT = (
    "INVALID_JSON",
    "BAD_REGISTRATION",
    "SENDER_ID_MISMATCH",
    "DEVICE_UNREGISTERED",
    "BAD_ACK",
    "INVALID_APNS_CREDENTIAL",
    "AUTHENTICATION_FAILED",
)


class SendingTests(AppServerCase):
    """
    What becomes of the messages that an application sends.

    @ivar outcomes: the outcome of each: an L{Ack} or an error.
    """

    def setUp(self) -> None:
        """
        Nothing has an outcome yet.
        """
        self.outcomes: dict[str, Any] = {}

    def send(self, joined: Any, *ids: str, **fields: Any) -> None:
        """
        Send messages.
        """
        for name in ids:
            message = DownstreamMessage(**{"to": "tok-A", "message_id": name, **fields})
            self.note(name, joined.appServer.send(message))
        joined.pump()

    def note(self, name: str, result: Deferred[Ack]) -> None:
        """
        Note the one outcome of a message.
        """

        def outcome(value: Ack | Failure) -> None:
            self.assertNotIn(name, self.outcomes)
            self.outcomes[name] = value.value if isinstance(value, Failure) else value

        result.addBoth(outcome)

    def sent(self, script: ScriptedConnectionServer) -> list[str | None]:
        """
        What the connection server has got since the last look.
        """
        ids = [message.message_id for message in script.downstream]
        script.received.clear()
        return ids

    def ack(self, script: ScriptedConnectionServer, joined: Any, *ids: str, **fields: Any) -> None:
        """
        Accept messages.
        """
        for name in ids:
            script.deliver(Ack(from_="tok-A", message_id=name, **fields))
        joined.pump()

    def nack(self, script: ScriptedConnectionServer, joined: Any, name: str, error: str, **more: Any) -> None:
        """
        Refuse a message.
        """
        script.deliver(Nack(from_="tok-A", message_id=name, error=error, **more))
        joined.pump()

    def test_A09_theHundredAndFirst(self) -> None:
        """
        The 101st message waits while 100 are unanswered, and goes out when one
        of them is answered, be it accepted or refused.
        """
        script = ScriptedConnectionServer()
        joined = self.joined(script)
        names = [f"d-{number}" for number in range(103)]
        self.send(joined, *names)
        self.assertEqual(names[:100], self.sent(script))
        self.ack(script, joined, "d-50")
        self.assertEqual(["d-100"], self.sent(script))
        self.nack(script, joined, "d-0", "BAD_REGISTRATION")
        self.assertEqual(["d-101"], self.sent(script))
        joined.advance(50)
        self.assertEqual([], self.sent(script))
        self.ack(script, joined, "d-1")
        self.assertEqual(["d-102"], self.sent(script))

    def test_A11_noAnswer(self) -> None:
        """
        A message whose answer never comes fails by time-out, though the
        connection server is alive otherwise, and makes room for the next.
        """
        script = ScriptedConnectionServer()
        joined = self.joined(script)
        names = [f"d-{number}" for number in range(100)]
        self.send(joined, *names, "next")
        self.sent(script)
        for _ in range(4):
            script.write(b" ")
            joined.advance(29.5)
        self.assertEqual(({}, []), (self.outcomes, self.sent(script)))
        joined.advance(2)
        self.assertEqual({AckTimedOut}, {type(self.outcomes[name]) for name in names})
        self.assertEqual(["next"], self.sent(script))
        # It comes after all: too late, and no harm.
        self.ack(script, joined, "d-0", "next")
        self.assertEqual("next", self.outcomes["next"].message_id)
        self.send(joined, *[f"e-{number}" for number in range(101)])
        self.assertEqual(100, len(self.sent(script)))
        self.assertEqual((1, 1), (joined.network.attempts, joined.network.connections))

    def test_A11_linkIsChecked(self) -> None:
        """
        The time-out has the link checked by a ping: if that is not answered
        either, the link is replaced, long before its silence alone would have
        it replaced.
        """
        script = ScriptedConnectionServer()
        joined = self.joined(script)
        self.send(joined, "d-1")
        joined.advance(1)
        self.send(joined, "d-2")
        self.sent(script)
        for _ in range(2):
            joined.advance(59)
            script.write(b" ")
            joined.pump()
        joined.network.silent = True
        joined.advance(1.5, 0.5)
        self.assertEqual({"d-1": AckTimedOut}, {name: type(o) for name, o in self.outcomes.items()})
        self.send(joined, "d-3")
        joined.advance(29)
        joined.network.silent = False
        joined.advance(2)
        self.assertEqual(2, joined.network.attempts)
        self.assertLess(joined.clock.seconds(), 160)
        # The probed link took nothing more; and d-2 had its time, too.
        self.assertEqual(["d-3"], self.sent(script))
        self.ack(script, joined, "d-3")
        self.assertIsInstance(self.outcomes["d-3"], Ack)

    def test_A15_originalOrder(self) -> None:
        """
        What a lost connection left unanswered goes out again in the original
        order, ahead of what has not been sent yet.
        """
        script = ScriptedConnectionServer()
        joined = self.joined(script)
        names = [f"d-{number}" for number in range(120)]
        self.send(joined, *names)
        self.sent(script)
        self.ack(script, joined, "d-3", "d-70")
        self.assertEqual(["d-100", "d-101"], self.sent(script))
        left = [name for name in names[:102] if name not in ("d-3", "d-70")]
        for _ in range(3):
            joined.cut()
            joined.advance(5)
            self.assertEqual(left, self.sent(script))
        self.ack(script, joined, *left)
        self.assertEqual(names[102:], self.sent(script))

    def test_A15_severalLinks(self) -> None:
        """
        What two lost links left goes out on the third in the order in which it
        was first sent.
        """
        script = ScriptedConnectionServer()
        joined = self.joined(script, connections=3)
        names = [f"d-{number}" for number in range(30)]
        self.send(joined, *names)
        first, second, third = script.streams
        on = {stream: [m.message_id for s, m in script.received if s is stream] for stream in script.streams}
        self.assertEqual([10, 10, 10], [len(ids) for ids in on.values()])
        self.sent(script)
        joined.network.refuse = True
        first.close()
        second.close()
        joined.pump()
        moved = [name for name in names if name not in on[third]]
        self.assertEqual(sorted(moved), sorted(self.sent(script)))
        third.close()
        joined.pump()
        joined.network.refuse = False
        joined.advance(2)
        self.assertEqual(names, self.sent(script))

    def test_A16_unavailableForEver(self) -> None:
        """
        A message that meets SERVICE_UNAVAILABLE again and again is sent again
        with growing delays, under the same message_id, until its time to live
        is over, and fails with Expired then.
        """
        script = ScriptedConnectionServer()
        joined = self.joined(script)
        script.onMessage = lambda stream, message: script.deliver(
            Nack(from_="tok-A", message_id="d-1", error="SERVICE_UNAVAILABLE")
        )
        self.send(joined, "d-1", time_to_live=300)
        times = [0.0]
        while "d-1" not in self.outcomes:
            script.received.clear()
            joined.advance(1)
            times += [joined.clock.seconds()] * len(script.received)
        self.assertEqual(300, joined.clock.seconds())
        gaps = [after - before for before, after in pairwise(times)]
        self.assertEqual([2, 4, 8, 16, 32, 60, 60, 60], gaps)
        error = self.outcomes["d-1"]
        self.assertIsInstance(error, Expired)
        self.assertIn("SERVICE_UNAVAILABLE", str(error))

    def test_A20_newToken(self) -> None:
        """
        A newer registration_id on an ACK and on a NACK is handed to the
        application.
        """
        script = ScriptedConnectionServer()
        joined = self.joined(script)
        self.send(joined, "d-1", "d-2", "d-3")
        self.ack(script, joined, "d-1", registration_id="tok-B")
        self.nack(script, joined, "d-2", "DEVICE_UNREGISTERED", registration_id="tok-B")
        self.assertEqual("tok-B", self.outcomes["d-1"].registration_id)
        self.assertEqual("tok-B", self.outcomes["d-2"].registration_id)
        # It comes with a NACK that is not final, and is not lost by that.
        self.nack(script, joined, "d-3", "SERVICE_UNAVAILABLE", registration_id="tok-C")
        joined.advance(3)
        self.ack(script, joined, "d-3")
        self.assertEqual("tok-C", self.outcomes["d-3"].registration_id)

    def test_A21_stop(self) -> None:
        """
        At the stop the handlers get their grace and their ACKs go out, answers
        to what was sent are waited for, what is queued still goes out, and
        every open Deferred fires.
        """
        script = ScriptedConnectionServer()
        working: Deferred[None] = Deferred()
        handler = RecordingHandler(lambda message: working)
        joined = self.joined(script, handler)
        script.deliver(upstream("m-1"))
        joined.pump()
        self.send(joined, *[f"d-{number}" for number in range(102)])
        stopped = joined.stop()
        joined.advance(3)
        working.callback(None)
        joined.pump()
        self.assertEqual(["m-1"], script.acks)
        self.assertNoResult(stopped)
        self.ack(script, joined, "d-0", "d-1")
        self.assertEqual({"d-100", "d-101"}, {m.message_id for m in script.downstream[-2:]})
        self.send(joined, "late")
        self.assertIsInstance(self.outcomes["late"], Stopped)
        self.assertNoResult(stopped)
        joined.advance(8)
        self.successResultOf(stopped)
        self.assertEqual(103, len(self.outcomes))
        self.assertEqual(2, len([o for o in self.outcomes.values() if isinstance(o, Ack)]))
        self.assertEqual(101, len([o for o in self.outcomes.values() if isinstance(o, Stopped)]))

    def test_A21_nothingToWaitFor(self) -> None:
        """
        When everything is answered, the stop does not take its grace.
        """
        script = ScriptedConnectionServer()
        joined = self.joined(script)
        self.send(joined, "d-1")
        stopped = joined.stop()
        self.assertNoResult(stopped)
        self.ack(script, joined, "d-1")
        self.successResultOf(stopped)
        self.assertIsInstance(self.outcomes["d-1"], Ack)

    def test_A23_unknownCode(self) -> None:
        """
        A NACK with a code that nobody knows counts as INTERNAL_SERVER_ERROR:
        the message is sent again, after a delay.
        """
        for code in ("INTERNAL_SERVER_ERROR", "COFFEE_OVERFLOW"):
            script = ScriptedConnectionServer()
            joined = self.joined(script)
            self.send(joined, code)
            self.sent(script)
            self.nack(script, joined, code, code)
            joined.advance(1)
            self.assertEqual([], self.sent(script))
            joined.advance(1)
            self.assertEqual([code], self.sent(script))
            self.ack(script, joined, code)
            self.assertIsInstance(self.outcomes[code], Ack)

    def test_A24_neverAgain(self) -> None:
        """
        A message that was refused for good is never sent again, not after a
        lost connection either.
        """
        for code in PERMANENT:
            script = ScriptedConnectionServer()
            joined = self.joined(script)
            self.send(joined, code)
            self.nack(script, joined, code, code)
            self.assertEqual((code, True), (self.outcomes[code].error, self.outcomes[code].permanent))
            self.sent(script)
            joined.cut()
            joined.advance(700)
            self.assertEqual([], self.sent(script), code)
            self.assertEqual(1, len(joined.observer.of(Settled)))

    def test_A24_whatToDoWithTheToken(self) -> None:
        """
        The error says whether the token is of no further use.
        """
        gone = {"BAD_REGISTRATION", "DEVICE_UNREGISTERED", "SENDER_ID_MISMATCH"}
        for code in PERMANENT:
            self.assertEqual(code in gone, Nacked(code, "d-1").tokenGone, code)
