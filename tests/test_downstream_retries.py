"""
Tests for L{fcmxmpp.downstream}: what is sent again, and until when.
"""

from __future__ import annotations

from typing import Any

from twisted.logger import capturedLogs, formatEvent

from fcmxmpp.downstream import SUSPECT
from fcmxmpp.errors import AckTimedOut, Expired, Nacked, QueueFull, Stopped
from fcmxmpp.interfaces import LinkReady, Refused, Sent, Settled
from fcmxmpp.messages import MAX_DOWNSTREAM_TTL, Ack, DownstreamMessage
from fcmxmpp.testing import RecordingHandler, ScriptedConnectionServer
from tests.downstream import DownstreamCase, Harness, to


#: The codes of trouble that passes; the last is none.
PASSING = ("SERVICE_UNAVAILABLE", "INTERNAL_SERVER_ERROR", "NEVER_HEARD_OF")


class BackOffTests(DownstreamCase):
    """
    What was refused for a reason that passes goes out again after a delay.
    """

    def test_again(self) -> None:
        """
        It goes out as it was, C{message_id} and all, when its delay is over
        and not before; then its ACK counts.
        """
        for code in PASSING:
            harness = self.makeSender()
            message = to("m-1", data={"k": "v"})
            harness.send(message)
            harness.nack(code, "m-1")
            self.assertEqual(["m-1"], harness.sent())
            harness.clock.advance(1.9)
            self.assertEqual([], harness.sent())
            harness.clock.advance(0.1)
            self.assertEqual([message], harness.messages())
            harness.ack("m-1")
            self.assertIs(Ack, harness.outcome("m-1"))

    def test_grows(self) -> None:
        """
        The delay doubles with each refusal, up to a minute.
        """
        harness = self.makeSender()
        harness.send("m-1")
        for delay in (2, 4, 8, 16, 32, 60, 60):
            harness.nack("SERVICE_UNAVAILABLE", "m-1")
            harness.advance(delay)
        self.assertEqual([2, 4, 8, 16, 32, 60, 60], harness.delays)
        self.assertEqual(["m-1"] * 8, harness.sent())

    def test_jitter(self) -> None:
        """
        Chance takes off up to half of the delay, and leaves a second at least.
        """
        harness = self.makeSender()
        harness.send("m-1")
        for harness.jitter in (1.0, 0.5, 0.0):
            harness.nack("SERVICE_UNAVAILABLE", "m-1")
            harness.advance(10)
        self.assertEqual([1, 3, 8], harness.delays)

    def test_perMessage(self) -> None:
        """
        Each message has a delay of its own, and the others go on meanwhile,
        also for the same device.
        """
        harness = self.makeSender()
        harness.send("m-1", "m-2")
        harness.nack("SERVICE_UNAVAILABLE", "m-1")
        harness.advance(2)
        harness.nack("SERVICE_UNAVAILABLE", "m-1", "m-2")
        harness.send("m-3")
        self.assertEqual([2, 4, 2], harness.delays)
        self.assertEqual(["m-1", "m-2", "m-1", "m-3"], harness.sent())
        harness.advance(2)
        self.assertEqual(["m-2"], harness.sent())
        harness.advance(2)
        self.assertEqual(["m-1"], harness.sent())

    def test_freesPlace(self) -> None:
        """
        While it is delayed its place on the link is another's; when the delay
        is over it is the next to go.
        """
        harness = self.makeSender()
        harness.send(*[f"m-{n}" for n in range(102)])
        harness.nack("SERVICE_UNAVAILABLE", "m-7")
        self.assertEqual("m-100", harness.sent()[-1])
        harness.advance(2)
        self.assertEqual([], harness.sent())
        harness.ack("m-0", "m-1")
        self.assertEqual(["m-7", "m-101"], harness.sent())

    def test_noLink(self) -> None:
        """
        A delay that is over while there is no link does no harm.
        """
        harness = self.makeSender()
        harness.send("m-1", "m-2")
        harness.nack("SERVICE_UNAVAILABLE", "m-1")
        harness.network.refuse = True
        harness.network.cut()
        harness.sent()
        harness.advance(2)
        self.assertEqual([], harness.sent())
        harness.network.refuse = False
        harness.advance(10)
        self.assertEqual(["m-1", "m-2"], harness.sent())

    def test_otherLink(self) -> None:
        """
        It may go out again on another link.
        """
        harness = self.makeSender(links=2)
        one, two = harness.script.streams
        harness.send("m-1", "m-2")
        harness.nack("SERVICE_UNAVAILABLE", "m-1")
        harness.send("m-3", "m-4")
        self.assertEqual((["m-1", "m-3", "m-4"], ["m-2"]), (harness.sent(one), harness.sent(two)))
        harness.ack("m-2")
        harness.advance(2)
        self.assertEqual(["m-1"], harness.sent(two))

    def test_forEver(self) -> None:
        """
        It goes on until the time to live is over, and not longer.
        """
        harness = self.makeSender()
        harness.script.onMessage = lambda stream, message: harness.nack(
            "SERVICE_UNAVAILABLE", message.message_id or ""
        )
        harness.send(to("m-1", time_to_live=100))
        harness.advance(99)
        self.assertEqual({}, harness.outcomes)
        harness.advance(2)
        self.assertIs(Expired, harness.outcome("m-1"))
        harness.advance(1000)
        self.assertEqual([2, 4, 8, 16, 32, 60], harness.delays)
        self.assertEqual(["m-1"] * 6, harness.sent())


class DrainingTests(DownstreamCase):
    """
    What was refused because its stream is being drained goes out again at once
    on another link.
    """

    def test_atOnce(self) -> None:
        """
        It goes out on the other link at once, and nothing more goes out on the
        one.
        """
        harness = self.makeSender(links=2)
        one, two = harness.script.streams
        harness.network.refuse = True
        harness.send("m-1", "m-2", "m-3")
        harness.nack("CONNECTION_DRAINING", "m-1")
        harness.send("m-4", "m-5")
        self.assertEqual(["m-1", "m-3"], harness.sent(one))
        self.assertEqual(["m-2", "m-1", "m-4", "m-5"], harness.sent(two))
        self.assertEqual([0.0], harness.delays)
        harness.ack("m-1", "m-2", "m-3")
        self.assertEqual({Ack}, {harness.outcome(f"m-{n}") for n in (1, 2, 3)})

    def test_order(self) -> None:
        """
        Several that have to wait for room go out in the order in which they
        were sent, whatever the order in which they were refused, and before
        what has not gone out yet.
        """
        harness = self.makeSender(links=2)
        _, two = harness.script.streams
        harness.network.refuse = True
        harness.send(*[f"m-{n}" for n in range(201)])
        harness.sent()
        harness.nack("CONNECTION_DRAINING", "m-8", "m-4", "m-6")
        self.assertEqual([], harness.sent())
        harness.ack("m-1", "m-3", "m-5", "m-7")
        self.assertEqual(["m-4", "m-6", "m-8", "m-200"], harness.sent(two))

    def test_successor(self) -> None:
        """
        On a single link it goes out on the successor of the stream.
        """
        harness = self.makeSender()
        old = harness.script.stream
        harness.send("m-1", "m-2")
        harness.sent()
        harness.nack("CONNECTION_DRAINING", "m-1", "m-2")
        self.assertEqual(([], ["m-1", "m-2"]), (harness.sent(old), harness.sent()))

    def test_noBackOff(self) -> None:
        """
        Such a refusal does not make later delays longer.
        """
        harness = self.makeSender()
        harness.send("m-1")
        harness.nack("CONNECTION_DRAINING", "m-1")
        harness.nack("SERVICE_UNAVAILABLE", "m-1")
        self.assertEqual([0, 2], harness.delays)


class NewTokenTests(DownstreamCase):
    """
    A newer registration token is handed to the application, whenever it was
    told.
    """

    def refusedOnce(self) -> Harness:
        """
        Have a message refused for now, with a newer token, and sent again.
        """
        harness = self.makeSender()
        harness.send(to("m-1", time_to_live=10))
        harness.nack("SERVICE_UNAVAILABLE", "m-1", registration_id="tok-A2")
        harness.advance(2)
        self.assertEqual(["m-1"] * 2, harness.sent())
        return harness

    def tokenOf(self, harness: Harness) -> str | None:
        """
        The token that came with the outcome.
        """
        token: str | None = harness.outcomes["m-1"][0].registration_id
        return token

    def test_ack(self) -> None:
        """
        It comes with the ACK that says nothing of it.
        """
        harness = self.refusedOnce()
        harness.ack("m-1")
        self.assertEqual("tok-A2", self.tokenOf(harness))

    def test_ackKnowsBetter(self) -> None:
        """
        What the ACK says counts more.
        """
        harness = self.refusedOnce()
        harness.answer(Ack(message_id="m-1", registration_id="tok-A3"))
        self.assertEqual("tok-A3", self.tokenOf(harness))

    def test_expired(self) -> None:
        """
        It comes with the expiry, the last one that was told.
        """
        harness = self.refusedOnce()
        harness.nack("SERVICE_UNAVAILABLE", "m-1", registration_id="tok-A3")
        harness.advance(4)
        harness.nack("SERVICE_UNAVAILABLE", "m-1")
        harness.advance(10)
        self.assertEqual((Expired, "tok-A3"), (harness.outcome("m-1"), self.tokenOf(harness)))

    def test_refused(self) -> None:
        """
        It comes with a final refusal that says nothing of it.
        """
        harness = self.refusedOnce()
        harness.nack("INVALID_JSON", "m-1")
        self.assertEqual((Nacked, "tok-A2"), (harness.outcome("m-1"), self.tokenOf(harness)))

    def test_none(self) -> None:
        """
        Without one there is none.
        """
        harness = self.makeSender()
        harness.send("m-1")
        harness.ack("m-1")
        self.assertIsNone(self.tokenOf(harness))


class ExpiryTests(DownstreamCase):
    """
    A message that was not accepted within its C{time_to_live} fails with
    L{Expired}.
    """

    def assertExpiresAt(self, harness: Harness, message_id: str, seconds: float) -> None:
        """
        Assert that a message expires within a second of its time and not
        before.
        """
        harness.clock.advance(seconds - harness.clock.seconds() - 0.01)
        self.assertNotIn(message_id, harness.outcomes)
        harness.clock.advance(1.01)
        self.assertIs(Expired, harness.outcome(message_id))

    def test_noLink(self) -> None:
        """
        That is so while there is no link, and each message has its own time.
        """
        harness = self.makeSender(links=0)
        harness.send(to("m-1", time_to_live=10), to("m-2", time_to_live=5))
        harness.clock.advance(3)
        harness.send(to("m-3", time_to_live=4))
        self.assertExpiresAt(harness, "m-2", 5)
        self.assertExpiresAt(harness, "m-3", 7)
        self.assertExpiresAt(harness, "m-1", 10)
        harness.connect()
        self.assertEqual([], harness.sent())

    def test_default(self) -> None:
        """
        Without a C{time_to_live} it has four weeks.
        """
        harness = self.makeSender(links=0)
        harness.send("m-1")
        self.assertExpiresAt(harness, "m-1", MAX_DOWNSTREAM_TTL)

    def test_now(self) -> None:
        """
        Now or never means within a second, so that a moment without room does
        not matter.
        """
        harness = self.makeSender(links=0)
        harness.send(to("m-1", time_to_live=0), to("m-2", time_to_live=0))
        harness.clock.advance(0.9)
        harness.connect()
        self.assertEqual(["m-1", "m-2"], harness.sent())
        harness.network.refuse = True
        harness.network.cut()
        self.assertExpiresAt(harness, "m-1", 1)

    def test_whenItsTurnComes(self) -> None:
        """
        What is past its time when its turn comes does not go out, even if
        nobody has looked yet; what is behind it goes out.
        """
        harness = self.makeSender(links=0)
        harness.send(to("m-1", time_to_live=0))
        harness.clock.advance(0.5)
        harness.send(to("m-2", time_to_live=0), "m-3")
        harness.clock.advance(0.5)
        harness.clock.advance(0.6)
        self.assertEqual(["m-1"], list(harness.outcomes))
        harness.connect()
        self.assertEqual((Expired, ["m-3"]), (harness.outcome("m-2"), harness.sent()))

    def test_fullWindow(self) -> None:
        """
        It expires while the window is full, and what is unanswered does not.
        """
        harness = self.makeSender()
        harness.send(*[to(f"m-{n}", time_to_live=5) for n in range(101)])
        self.assertExpiresAt(harness, "m-100", 5)
        self.assertEqual(["m-100"], list(harness.outcomes))
        harness.ack("m-0")
        self.assertIs(Ack, harness.outcome("m-0"))

    def test_delayed(self) -> None:
        """
        It expires during its delay, and is not sent when that is over.
        """
        harness = self.makeSender()
        harness.send(to("m-1", time_to_live=1))
        harness.nack("SERVICE_UNAVAILABLE", "m-1")
        self.assertExpiresAt(harness, "m-1", 1)
        harness.clock.advance(10)
        self.assertEqual(["m-1"], harness.sent())

    def test_slowLane(self) -> None:
        """
        It expires in a slow lane, the one on trial and those behind it.
        """
        harness = self.makeSender()
        harness.send(to("m-1", time_to_live=30), to("m-2", time_to_live=10), "m-3")
        harness.nack("QUOTA_EXCEEDED", "m-1", "m-2", "m-3")
        harness.sent()
        self.assertExpiresAt(harness, "m-2", 10)
        harness.clock.advance(9)
        self.assertEqual(["m-1"], harness.sent())
        harness.nack("QUOTA_EXCEEDED", "m-1")
        self.assertExpiresAt(harness, "m-1", 30)
        harness.clock.advance(29)
        self.assertEqual(["m-3"], harness.sent())

    def test_onTrial(self) -> None:
        """
        When the message on trial expires, because it found no link or was
        delayed, the next is on trial.
        """
        for how in ("lost", "delayed"):
            harness = self.makeSender()
            harness.send(to("m-1", time_to_live=23), "m-2")
            harness.nack("QUOTA_EXCEEDED", "m-1", "m-2")
            harness.clock.advance(20)
            self.assertEqual("m-1", harness.sent()[-1])
            if how == "lost":
                harness.network.refuse = True
                harness.network.cut()
            else:
                harness.clock.advance(2)
                harness.nack("SERVICE_UNAVAILABLE", "m-1")
            self.assertExpiresAt(harness, "m-1", 23)
            harness.network.refuse = False
            harness.advance(30)
            self.assertEqual(["m-2"], harness.sent())

    def test_streamLost(self) -> None:
        """
        What was past its time when its stream was lost does not go out again.
        """
        harness = self.makeSender()
        harness.send(to("m-1", time_to_live=5), "m-2")
        harness.sent()
        harness.clock.advance(6)
        harness.network.cut()
        self.assertEqual(["m-2"], harness.sent())
        self.assertIs(Expired, harness.outcome("m-1"))

    def test_timeLeft(self) -> None:
        """
        What goes out later than it was sent says how much of its time is left,
        in whole seconds, and none that has some says zero; what says nothing,
        or now or never, says the same later.
        """
        harness = self.makeSender(links=0)
        harness.send(
            *[to(f"m-{ttl}", time_to_live=ttl) for ttl in (60, 11, 2_419_200)],
            to("none"),
        )
        harness.clock.advance(10.5)
        harness.send(to("soon", time_to_live=60), to("zero", time_to_live=0))
        harness.clock.advance(0.4)
        harness.connect()
        self.assertEqual(
            {"m-60": 49, "m-11": 1, "m-2419200": 2_419_189, "none": None, "soon": 60, "zero": 0},
            {message.message_id: message.time_to_live for message in harness.messages()},
        )

    def test_timeLeftAgain(self) -> None:
        """
        The same holds for what is sent again.
        """
        harness = self.makeSender()
        harness.send(to("m-1", time_to_live=60))
        harness.clock.advance(20)
        harness.network.cut()
        harness.network.pump()
        harness.nack("SERVICE_UNAVAILABLE", "m-1")
        harness.clock.advance(2)
        self.assertEqual([60, 40, 38], [message.time_to_live for message in harness.messages()])

    def test_lastCode(self) -> None:
        """
        The error says what the last refusal was; of an unknown code it says
        only that, because that might quote anything.
        """
        for code, text in (("QUOTA_EXCEEDED", "QUOTA_EXCEEDED"), ("tok-A", "unknown error code")):
            harness = self.makeSender()
            harness.send(to("m-1", time_to_live=5))
            harness.nack("SERVICE_UNAVAILABLE", "m-1")
            harness.advance(2)
            harness.nack(code, "m-1")
            harness.advance(5)
            self.assertIn(f"the last answer was {text}", str(harness.outcomes["m-1"][0]))

    def test_noCode(self) -> None:
        """
        Without a refusal it names none.
        """
        harness = self.makeSender(links=0)
        harness.send(to("m-1", time_to_live=5))
        harness.advance(6)
        self.assertEqual("not accepted within its time_to_live", str(harness.outcomes["m-1"][0]))

    def test_makesRoomInQueue(self) -> None:
        """
        What has expired leaves room in the queue.
        """
        harness = self.makeSender(limit=1, links=0)
        harness.send(to("m-1", time_to_live=5))
        self.failureOf(harness.sender.send(to("m-2")), QueueFull)
        harness.advance(6)
        harness.send("m-2")
        self.assertNotIn("m-2", harness.outcomes)

    def test_rarely(self) -> None:
        """
        However many times run out close to each other, they are looked at
        once a second at the most.
        """
        harness = self.makeSender(links=0)
        looks: list[float] = []
        for number in range(60):
            if number < 20:
                harness.send(to(f"m-{number}", time_to_live=0))
            before = len(harness.outcomes)
            harness.clock.advance(0.125)
            if len(harness.outcomes) > before:
                looks.append(harness.clock.seconds())
        self.assertEqual(([1.0, 2.0, 3.0, 4.0], 20), (looks, len(harness.outcomes)))


class AckTimeOutTests(DownstreamCase):
    """
    A message whose answer does not come fails with L{AckTimedOut}.
    """

    def overdue(self) -> Harness:
        """
        Have a message not answered in time, by a peer that is alive.
        """
        harness = self.makeSender()
        harness.send("m-1")
        harness.advance(119)
        self.assertEqual(({}, ["m-1"]), (harness.outcomes, harness.sent()))
        harness.advance(1)
        self.assertIs(AckTimedOut, harness.outcome("m-1"))
        return harness

    def test_late(self) -> None:
        """
        It is not sent again, and an answer that comes later is ignored.
        """
        harness = self.overdue()
        harness.advance(100)
        harness.ack("m-1")
        harness.nack("SERVICE_UNAVAILABLE", "m-1")
        harness.advance(100)
        self.assertEqual([], harness.sent())
        self.assertEqual(1, harness.links[0].generation)

    def test_sameID(self) -> None:
        """
        The application may send it again under the same C{message_id}.
        """
        harness = self.overdue()
        harness.send("m-1")
        self.assertEqual(["m-1"], harness.sent())
        harness.ack("m-1")
        self.assertIsInstance(harness.outcomes["m-1"][1], Ack)

    def test_freesPlace(self) -> None:
        """
        Its place on the link is free for those that wait.
        """
        harness = self.makeSender()
        ids = [f"m-{n}" for n in range(150)]
        harness.send(*ids)
        self.assertEqual(ids[:100], harness.sent())
        harness.advance(120)
        self.assertEqual({AckTimedOut}, {harness.outcome(message_id) for message_id in ids[:100]})
        self.assertEqual(ids[100:], harness.sent())

    def test_slowLane(self) -> None:
        """
        If the message on trial is not answered the next is on trial.
        """
        harness = self.makeSender()
        harness.send("m-1", "m-2")
        harness.nack("QUOTA_EXCEEDED", "m-1", "m-2")
        harness.advance(20)
        harness.sent()
        harness.advance(120)
        self.assertEqual((AckTimedOut, ["m-2"]), (harness.outcome("m-1"), harness.sent()))

    def test_deadLink(self) -> None:
        """
        What was sent to a peer that is found dead is sent to the next in time,
        and does not fail.
        """
        harness = self.makeSender()
        harness.send("m-1")
        harness.sent()
        harness.network.silent = True
        harness.clock.advance(60)
        harness.network.pump()
        harness.clock.advance(30)
        harness.network.pump()
        harness.network.silent = False
        self.assertEqual((["m-1"], {}), (harness.sent(), harness.outcomes))


class EventTests(DownstreamCase):
    """
    The observer is told of every try and every end.
    """

    def test_accepted(self) -> None:
        """
        Of a message that is accepted at once it is told that it went out, on
        which link, and that it is settled, just before its Deferred fires.
        """
        harness = self.makeSender(links=2)
        harness.send("m-1", "m-2")
        harness.clock.advance(3)
        seen: list[int] = []
        harness.reactions["m-2"] = lambda: seen.append(len(harness.observer.events))
        harness.ack("m-2")
        self.assertEqual(
            [Sent(to("m-1"), 1, 1), Sent(to("m-2"), 2, 1), Settled(to("m-2"), None, 1, 3.0)],
            harness.observer.events,
        )
        self.assertEqual([3], seen)

    def test_refusals(self) -> None:
        """
        Of one that takes several tries it is told each, in order, with what
        the refusal was and how long the delay; the end counts from the first
        send.
        """
        harness = self.makeSender(links=2)
        message = to("m-1", time_to_live=600)
        harness.send(message)
        harness.nack("SERVICE_UNAVAILABLE", "m-1")
        harness.advance(2)
        harness.nack("CONNECTION_DRAINING", "m-1")
        harness.nack("QUOTA_EXCEEDED", "m-1")
        harness.advance(20)
        harness.nack("DEVICE_UNREGISTERED", "m-1")
        (error,) = harness.outcomes["m-1"]
        self.assertEqual(
            [
                Sent(message, 1, 1),
                Refused(message, "SERVICE_UNAVAILABLE", 2.0),
                Sent(to("m-1", time_to_live=598), 1, 2),
                Refused(message, "CONNECTION_DRAINING", 0.0),
                Sent(to("m-1", time_to_live=598), 2, 3),
                Refused(message, "QUOTA_EXCEEDED", 20.0),
                Sent(to("m-1", time_to_live=578), 2, 4),
                Settled(message, error, 4, 22.0),
            ],
            harness.observer.events,
        )

    def test_unknownCode(self) -> None:
        """
        A code that is not known is not quoted.
        """
        harness = self.makeSender()
        harness.send("m-1")
        harness.nack("tok-A", "m-1")
        self.assertEqual(["unknown error code"], [event.error for event in harness.observer.of(Refused)])

    def test_lost(self) -> None:
        """
        A lost link is no refusal, but the next try is counted.
        """
        harness = self.makeSender()
        harness.send("m-1")
        harness.network.cut()
        harness.network.pump()
        self.assertEqual([Sent(to("m-1"), 1, 1), Sent(to("m-1"), 1, 2)], harness.observer.events)

    def test_expired(self) -> None:
        """
        What never went out had no try.
        """
        harness = self.makeSender(links=0)
        harness.send(to("m-1", time_to_live=5))
        harness.advance(6)
        (error,) = harness.outcomes["m-1"]
        self.assertEqual([Settled(to("m-1", time_to_live=5), error, 0, 5.0)], harness.observer.events)

    def test_notTaken(self) -> None:
        """
        Of what C{send} does not take, and of what the application cancels, it
        is not told.
        """
        harness = self.makeSender(limit=1, links=0)
        harness.send("m-1")
        self.failureOf(harness.sender.send(to("m-2")), QueueFull)
        harness.cancel("m-1")
        self.assertEqual([], harness.observer.events)

    def test_nobody(self) -> None:
        """
        There may be no observer.
        """
        harness = self.makeSender()
        self.patch(harness.sender, "_observe", None)
        harness.send("m-1")
        harness.nack("SERVICE_UNAVAILABLE", "m-1")
        harness.advance(2)
        harness.ack("m-1")
        self.assertEqual((["m-1"] * 2, Ack), (harness.sent(), harness.outcome("m-1")))


class PoisonTests(DownstreamCase):
    """
    A message that the connection server breaks on, each time.
    """

    def broken(self, connections: int = 1) -> tuple[Any, ScriptedConnectionServer]:
        """
        An app server, joined to a connection server that closes the stream at
        the message C{"poison"} and accepts any other.
        """
        script = ScriptedConnectionServer()

        def received(stream: Any, message: Any) -> None:
            if message.message_id == "poison":
                stream.close()
            elif not stream.closing and isinstance(message, DownstreamMessage):
                script.write(
                    b'<message><data:gcm xmlns:data="google:mobile:data">{"message_type":"ack",'
                    b'"message_id":"%b"}</data:gcm></message>' % (message.message_id or "").encode()
                ) if stream is script.stream else stream.abort()

        script.onMessage = received
        joined = script.joined(RecordingHandler(), connections=connections)
        return joined, script

    def test_othersGetThrough(self) -> None:
        """
        After a few streams the message is kept apart for longer and longer, so
        that the others get through, and the streams hold; it is not given up
        before its time.
        """
        joined, _ = self.broken()
        outcomes: dict[str, Any] = {}

        def send(name: str) -> None:
            message = DownstreamMessage(to="tok-A", message_id=name, time_to_live=600)
            joined.appServer.send(message).addBoth(lambda outcome: outcomes.update({name: outcome}))

        with capturedLogs() as events:
            send("poison")
            for number in range(20):
                send(f"m-{number}")
            joined.pump()
            joined.advance(120)
            self.assertEqual({f"m-{number}" for number in range(20)}, set(outcomes))
            joined.advance(481)
        self.assertIsInstance(outcomes["poison"].value, Expired)
        # 600 seconds of breaking at once would be a hundred and more.
        self.assertLess(len(joined.observer.of(LinkReady)), SUSPECT + 20)
        told = [formatEvent(event) for event in events if "losses" in event]
        self.assertIn("5 connections broke when 'poison' was the first without an answer", told[0])
        self.assertNotIn("tok-A", "".join(told))
        joined.stop()
        joined.advance(20)

    def test_drainedStreams(self) -> None:
        """
        Streams that are closed after having been drained say nothing about
        their messages.
        """
        harness = self.makeSender()
        harness.send("m-1")
        for _ in range(2 * SUSPECT):
            old = harness.script.stream
            harness.advance(2)
            harness.drain()
            old.close()
            harness.advance(0)
        self.assertEqual(["m-1"] * (2 * SUSPECT + 1), harness.sent())

    def test_stop(self) -> None:
        """
        At the stop it is given up, if its delay is longer than the grace.
        """
        harness = self.makeSender()
        harness.send("m-1", "m-2")
        for _ in range(SUSPECT - 1):
            harness.network.cut()
            harness.advance(120)
        stopped = harness.stop(10.0)
        harness.network.cut()
        harness.advance(9)
        self.assertIs(Stopped, harness.outcome("m-1"))
        self.assertNoResult(stopped)
        harness.ack("m-2")
        self.successResultOf(stopped)

    def test_cancelled(self) -> None:
        """
        One that was cancelled is not sent again, and waits for nothing.
        """
        harness = self.makeSender()
        harness.send("m-1", "m-2")
        for _ in range(SUSPECT):
            harness.network.cut()
            harness.advance(119)
        self.assertEqual("m-1", harness.sent()[-1])
        harness.cancel("m-1")
        for _ in range(3):
            harness.network.cut()
            harness.advance(119)
        self.assertEqual({"m-2"}, set(harness.sent()))
