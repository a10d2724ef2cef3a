"""
Tests for L{fcmxmpp.downstream}: what happens to a device or topic that got too
much.
"""

from __future__ import annotations

from fcmxmpp.messages import Ack, DownstreamMessage
from tests.downstream import DownstreamCase, Harness, to


#: The codes that say that a device or topic got too much.
TOO_MUCH = ("DEVICE_MESSAGE_RATE_EXCEEDED", "TOPICS_MESSAGE_RATE_EXCEEDED", "QUOTA_EXCEEDED")


class SlowLaneTests(DownstreamCase):
    """
    A device or topic that got too much gets less, and all others what they
    got.
    """

    def slowDown(self, code: str = "QUOTA_EXCEEDED") -> Harness:
        """
        Have the connection server find that tok-A gets too much, with three
        messages for it, of which the first was refused, and one for tok-B.
        """
        harness = self.makeSender()
        harness.send("m-1")
        self.assertEqual(["m-1"], harness.sent())
        harness.nack(code, "m-1")
        harness.send("m-2", to("b-1", "tok-B"), "m-3")
        return harness

    def test_oneAtATime(self) -> None:
        """
        After the delay one message goes out, and when it is accepted the next;
        other devices do not wait.
        """
        for code in TOO_MUCH:
            harness = self.slowDown(code)
            self.assertEqual((["b-1"], [20]), (harness.sent(), harness.delays))
            harness.clock.advance(19)
            self.assertEqual([], harness.sent())
            harness.clock.advance(1)
            self.assertEqual(["m-1"], harness.sent())
            harness.send(to("b-2", "tok-B"), "m-4")
            self.assertEqual(["b-2"], harness.sent())
            for message_id in ("m-2", "m-3", "m-4"):
                harness.ack(f"m-{int(message_id[2:]) - 1}")
                self.assertEqual([message_id], harness.sent())

    def test_over(self) -> None:
        """
        Once nothing is left to be sent slowly the device is like any other.
        """
        harness = self.slowDown()
        harness.advance(20)
        harness.ack("m-1", "b-1")
        harness.ack("m-2")
        harness.ack("m-3")
        self.assertEqual((0, 0, 0, 0, 0), harness.leftovers)
        harness.sent()
        harness.send("m-5", "m-6")
        self.assertEqual(["m-5", "m-6"], harness.sent())

    def test_topics(self) -> None:
        """
        Topics and conditions are slowed down, too, each by itself.
        """
        harness = self.makeSender()
        condition = "'a' in topics || 'b' in topics"
        for n in (1, 2):
            harness.send(
                to(f"a-{n}", "/topics/a"),
                to(f"b-{n}", "/topics/b"),
                DownstreamMessage(condition=condition, message_id=f"c-{n}"),
            )
            if n == 1:
                harness.nack("TOPICS_MESSAGE_RATE_EXCEEDED", "a-1", "c-1")
        self.assertEqual(["a-1", "b-1", "c-1", "b-2"], harness.sent())
        harness.advance(20)
        self.assertEqual(["a-1", "c-1"], harness.sent())

    def test_grows(self) -> None:
        """
        The delay doubles with each refusal in a row, up to ten minutes,
        whichever message it is that is refused.
        """
        harness = self.slowDown()
        harness.ack("b-1")
        for delay in (20, 40, 80, 160, 320, 600, 600):
            harness.advance(delay)
            self.assertEqual("m-1", harness.sent()[-1])
            harness.nack("QUOTA_EXCEEDED", "m-1")
        self.assertEqual([20, 40, 80, 160, 320, 600, 600, 600], harness.delays)

    def test_jitter(self) -> None:
        """
        Chance takes off up to half of the delay.
        """
        harness = self.makeSender()
        harness.jitter = 1.0
        harness.send("m-1")
        harness.nack("QUOTA_EXCEEDED", "m-1")
        self.assertEqual([10], harness.delays)

    def test_reset(self) -> None:
        """
        An acceptance ends the row.
        """
        harness = self.slowDown()
        harness.ack("b-1")
        harness.advance(20)
        harness.nack("QUOTA_EXCEEDED", "m-1")
        harness.advance(40)
        harness.ack("m-1")
        harness.nack("QUOTA_EXCEEDED", "m-2")
        self.assertEqual([20, 40, 20], harness.delays)

    def test_hundred(self) -> None:
        """
        The refusals of a hundred messages that were sent together count as
        one, and the messages then go out in their order.
        """
        harness = self.makeSender()
        ids = [f"m-{n}" for n in range(100)]
        harness.send(*ids)
        harness.sent()
        harness.nack("QUOTA_EXCEEDED", *ids[:50])
        harness.clock.advance(5)
        harness.nack("QUOTA_EXCEEDED", *ids[50:])
        self.assertEqual([20] * 50 + [15] * 50, harness.delays)
        harness.clock.advance(15)
        for message_id in ids:
            self.assertEqual([message_id], harness.sent())
            harness.ack(message_id)
        self.assertEqual({Ack}, {harness.outcome(message_id) for message_id in ids})

    def test_order(self) -> None:
        """
        What is refused later than others, or is refused though it was sent
        earlier, takes its place between them.
        """
        harness = self.makeSender()
        harness.send("m-1", "m-2", "m-3")
        harness.nack("QUOTA_EXCEEDED", "m-2")
        harness.send("m-4")
        harness.nack("QUOTA_EXCEEDED", "m-3", "m-1")
        harness.send("m-5")
        harness.sent()
        harness.advance(20)
        for number in range(1, 6):
            self.assertEqual([f"m-{number}"], harness.sent())
            harness.ack(f"m-{number}")

    def test_lateRefusal(self) -> None:
        """
        A refusal that comes when another message is on trial already is one
        more in the row; the acceptance of that other does not end the delay.
        """
        harness = self.makeSender()
        harness.send("m-1", "m-2", "m-3")
        harness.nack("QUOTA_EXCEEDED", "m-1", "m-3")
        harness.sent()
        harness.clock.advance(20)
        self.assertEqual(["m-1"], harness.sent())
        harness.nack("QUOTA_EXCEEDED", "m-2")
        self.assertEqual([20, 20, 40], harness.delays)
        harness.ack("m-1")
        self.assertEqual([], harness.sent())
        harness.clock.advance(40)
        self.assertEqual(["m-2"], harness.sent())

    def test_delayOverWhileOnTrial(self) -> None:
        """
        Nor does the end of that delay send a second message while the first
        is on trial.
        """
        harness = self.makeSender()
        harness.send("m-1", "m-2")
        harness.nack("QUOTA_EXCEEDED", "m-1")
        harness.sent()
        harness.clock.advance(20)
        harness.nack("QUOTA_EXCEEDED", "m-2")
        self.assertEqual(["m-1"], harness.sent())
        harness.clock.advance(40)
        self.assertEqual([], harness.sent())
        harness.ack("m-1")
        self.assertEqual(["m-2"], harness.sent())

    def test_otherTrouble(self) -> None:
        """
        If the message on trial meets trouble that passes, its device's others
        wait for it.
        """
        harness = self.slowDown()
        harness.advance(20)
        harness.nack("SERVICE_UNAVAILABLE", "m-1")
        harness.sent()
        harness.advance(1)
        self.assertEqual([], harness.sent())
        harness.advance(1)
        self.assertEqual(["m-1"], harness.sent())
        harness.ack("m-1")
        self.assertEqual(["m-2"], harness.sent())

    def test_refusedForGood(self) -> None:
        """
        If the message on trial is refused for good, the next is on trial.
        """
        harness = self.slowDown()
        harness.advance(20)
        harness.sent()
        harness.nack("INVALID_JSON", "m-1")
        self.assertEqual(["m-2"], harness.sent())

    def test_lost(self) -> None:
        """
        If its link is lost the message on trial goes out again, still alone.
        """
        harness = self.slowDown()
        harness.ack("b-1")
        harness.advance(20)
        harness.sent()
        harness.network.cut()
        self.assertEqual(["m-1"], harness.sent())

    def test_joinsFromElsewhere(self) -> None:
        """
        What was delayed for a reason of its own, or comes back from a lost
        link, joins the device's others in its place.
        """
        harness = self.makeSender()
        harness.send("m-1", "m-2", "m-3")
        harness.nack("SERVICE_UNAVAILABLE", "m-1")
        harness.nack("QUOTA_EXCEEDED", "m-3")
        harness.sent()
        harness.network.cut()
        harness.advance(2)
        self.assertEqual([], harness.sent())
        harness.advance(18)
        for number in (1, 2, 3):
            self.assertEqual([f"m-{number}"], harness.sent())
            harness.ack(f"m-{number}")

    def test_manyWait(self) -> None:
        """
        However many wait for one device, other devices find room.
        """
        harness = self.slowDown()
        harness.send(*[f"n-{n}" for n in range(500)], to("b-2", "tok-B"))
        self.assertEqual(["b-1", "b-2"], harness.sent())
