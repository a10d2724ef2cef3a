"""
Tests for L{fcmxmpp.server.script}: the rules by themselves, and what a
connection server makes of them.
"""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.messages import DownstreamMessage
from fcmxmpp.server.script import Rule, Script
from tests.test_server_service import INSTANT, ServiceCase


def message(to: str | None = "tok-A", condition: str | None = None) -> DownstreamMessage:
    """
    A message for a device, a topic, or a condition.
    """
    return DownstreamMessage(message_id="m-1", to=to, condition=condition)


class RuleTests(SynchronousTestCase):
    """
    Which rule decides about a message.
    """

    def test_none(self) -> None:
        """
        Without rules none does.
        """
        self.assertIsNone(Script().ruleFor(message()))

    def test_first(self) -> None:
        """
        The first that fits does, whatever else would.
        """
        script = Script()
        script.nack("INTERNAL_SERVER_ERROR", to="tok-B")
        script.nack("SERVICE_UNAVAILABLE", to="tok-A")
        script.ignore()
        found = [script.ruleFor(message(to)) for to in ("tok-A", "tok-B", "tok-C")]
        self.assertEqual([script.rules[1], script.rules[0], script.rules[2]], found)

    def test_times(self) -> None:
        """
        A rule for so many times counts those that it has decided about, and
        then gives way to the next.
        """
        script = Script()
        script.nack("SERVICE_UNAVAILABLE", to="tok-A", times=2)
        script.delay(1.0)
        first, second = script.rules
        decided = [script.ruleFor(message(to)) for to in ("tok-B", "tok-A", "tok-A", "tok-A")]
        self.assertEqual([second, first, first, second], decided)
        self.assertEqual(0, first.times)

    def test_to(self) -> None:
        """
        A rule for somebody is for that token, topic or condition, and for
        nobody else; a rule for nobody in particular is for all.
        """
        for to, fitting in (
            ("tok-A", [message("tok-A")]),
            ("/topics/t", [message("/topics/t")]),
            ("'a' in topics", [message(None, "'a' in topics")]),
        ):
            rule = Rule(to=to)
            for each in (
                message("tok-A"),
                message("/topics/t"),
                message(None, "'a' in topics"),
                message(None),
            ):
                self.assertEqual(each in fitting, rule.fits(each), (to, each))
                self.assertTrue(Rule().fits(each))

    def test_clear(self) -> None:
        """
        Rules can be done away with.
        """
        script = Script()
        script.ignore()
        script.clear()
        self.assertIsNone(script.ruleFor(message()))


class ScriptedTests(ServiceCase):
    """
    What a connection server does by its script.
    """

    def answer(self, client: Any, message_id: str = "m-1", to: str = "tok-A") -> tuple[str | None, ...]:
        """
        Send a message, and see what the answer is about.
        """
        answer = client.downstream(message_id=message_id, to=to)
        self.assertEqual((message_id, to), (answer["message_id"], answer["from"]))
        return answer["message_type"], answer.get("error"), answer.get("registration_id")

    def test_nack(self) -> None:
        """
        It refuses messages with any code, with a newer token if there is one,
        and no device gets them.
        """
        harness = self.makeServer()
        client = harness.client()
        script = harness.server.script
        script.nack("DEVICE_UNREGISTERED", to="tok-B")
        script.nack("SERVICE_UNAVAILABLE", times=2)
        script.nack("NEVER_HEARD_OF", times=1, registration_id="tok-A2")
        self.assertEqual(("nack", "DEVICE_UNREGISTERED", None), self.answer(client, to="tok-B"))
        for _ in range(2):
            self.assertEqual(("nack", "SERVICE_UNAVAILABLE", None), self.answer(client))
        self.assertEqual(("nack", "NEVER_HEARD_OF", "tok-A2"), self.answer(client))
        self.assertEqual([], harness.app.received)
        self.assertEqual(("ack", None, None), self.answer(client))
        self.assertEqual(1, len(harness.app.received))

    def test_renew(self) -> None:
        """
        It accepts messages, which the device gets, and tells a newer token,
        every time, until it is told otherwise.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.server.script.renew("tok-A", "tok-A2")
        for _ in range(2):
            self.assertEqual(("ack", None, "tok-A2"), self.answer(client))
        harness.makeDevice("tok-B")
        self.assertEqual(("ack", None, None), self.answer(client, to="tok-B"))
        harness.server.script.clear()
        self.assertEqual(("ack", None, None), self.answer(client))
        self.assertEqual(4, len(harness.app.received))

    def test_renewWhatIsRefused(self) -> None:
        """
        A message that would be refused without a script is refused all the
        same.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.server.script.renew("tok-X", "tok-X2")
        self.assertEqual(("nack", "BAD_REGISTRATION", "tok-X2"), self.answer(client, to="tok-X"))

    def test_delay(self) -> None:
        """
        It answers late; the device has the message at once, and others are
        answered meanwhile.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.server.script.delay(1.5, times=2)
        for number in (1, 2, 3):
            client.sendDownstream(message_id=f"m-{number}", to="tok-A")
            self.assertEqual(number, len(harness.app.received))
            harness.clock.advance(0.5)
        harness.clock.advance(0.5)
        self.assertEqual(["m-3", "m-1", "m-2"], [answer["message_id"] for answer in client.answers()])

    def test_delayToTheMoment(self) -> None:
        """
        Not before the time, and not after it.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.server.script.delay(1.5)
        client.sendDownstream(message_id="m-1", to="tok-A")
        harness.clock.advance(1.5 - INSTANT)
        self.assertEqual([], client.answers())
        harness.clock.advance(INSTANT)
        self.assertEqual(["ack"], [answer["message_type"] for answer in client.answers()])

    def test_delayedAndLost(self) -> None:
        """
        A late answer to a stream that is gone is none, and certainly none to
        the next stream.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.server.script.delay(1.5)
        client.sendDownstream(message_id="m-1", to="tok-A")
        client.lose()
        other = harness.client()
        other.said()
        harness.clock.advance(2)
        self.assertEqual(([], []), (client.answers(), other.answers()))

    def test_ignore(self) -> None:
        """
        It never answers some messages, which no device gets; others are
        answered.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.makeDevice("tok-B")
        harness.server.script.ignore(to="tok-A", times=1)
        client.sendDownstream(message_id="m-1", to="tok-A")
        harness.clock.advance(50)
        self.assertEqual(([], []), (client.answers(), harness.app.received))
        self.assertEqual(("ack", None, None), self.answer(client, to="tok-B"))
        self.assertEqual(("ack", None, None), self.answer(client))

    def test_drain(self) -> None:
        """
        It drains the connection that brings a message: the announcement, the
        refusal of that message and of what follows, the end.  That happens to
        one connection, unless it is told otherwise.
        """
        harness = self.makeServer()
        one, other = harness.client(), harness.client()
        harness.server.script.drain(grace=5)
        one.sendDownstream(message_id="m-1", to="tok-A")
        one.sendDownstream(message_id="m-2", to="tok-A")
        self.assertEqual(
            [
                ("control", None, None),
                ("nack", "m-1", "CONNECTION_DRAINING"),
                ("nack", "m-2", "CONNECTION_DRAINING"),
            ],
            [(a["message_type"], a.get("message_id"), a.get("error")) for a in one.answers()],
        )
        self.assertEqual(("ack", None, None), self.answer(other))
        harness.clock.advance(5 - INSTANT)
        self.assertFalse(one.transport.disconnecting)
        harness.clock.advance(INSTANT)
        self.assertEqual((True, False), (one.transport.disconnecting, other.transport.disconnecting))

    def test_drainEach(self) -> None:
        """
        It may drain every connection that sends to somebody.
        """
        harness = self.makeServer()
        harness.server.script.drain(to="tok-A", times=None)
        for _ in range(3):
            client = harness.client()
            self.assertEqual("BAD_REGISTRATION", self.answer(client, to="tok-X")[1])
            client.sendDownstream(message_id="m-1", to="tok-A")
            self.assertEqual(["control", "nack"], [a["message_type"] for a in client.answers()])

    def test_stopped(self) -> None:
        """
        A server that is stopped does not answer what it would have answered
        late, and no timer is left; when it is started again it answers what
        comes then.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.server.script.delay(100)
        for number in range(3):
            client.sendDownstream(message_id=f"m-{number}", to="tok-A")
        client.said()
        stopped = harness.server.stopService()
        client.lose()
        self.successResultOf(stopped)
        self.assertEqual([], harness.clock.getDelayedCalls())
        harness.server.startService()
        client = harness.client()
        client.said()
        client.sendDownstream(message_id="m-9", to="tok-A")
        harness.clock.advance(100)
        self.assertEqual(["m-9"], [answer["message_id"] for answer in client.answers()])
