"""
Tests for L{fcmxmpp.downstream}: one try of each message.
"""

from __future__ import annotations

import gc
from functools import partial

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, eventAsJSON, eventAsText

from fcmxmpp.downstream import DownstreamSender
from fcmxmpp.elementstream import MAX_STANZA_BYTES, GCMStanza
from fcmxmpp.errors import Expired, Nacked, NotSendable, QueueFull, Stopped
from fcmxmpp.interfaces import Sent, Settled
from fcmxmpp.messages import Ack, DownstreamMessage, Nack, Notification
from fcmxmpp.stanza import stanzaError
from tests.downstream import DownstreamCase, to


class SendTests(DownstreamCase):
    """
    L{DownstreamSender.send} fires when the connection server has answered.
    """

    def test_accepted(self) -> None:
        """
        The Deferred fires with the ACK, as it came.
        """
        harness = self.makeSender()
        message = to("m-1", data={"k": "v"}, notification=Notification(title="t"), time_to_live=0)
        result = harness.sender.send(message)
        harness.network.pump()
        self.assertEqual([message], harness.script.downstream)
        self.assertNoResult(result)
        ack = Ack(from_="tok-A", message_id="m-1", registration_id="tok-A2")
        harness.answer(ack)
        self.assertEqual(ack, self.successResultOf(result))

    def test_group(self) -> None:
        """
        The ACK of a device group says how many got it.
        """
        harness = self.makeSender()
        result = harness.sender.send(to("m-1"))
        ack = Ack(message_id="m-1", success=1, failure=1, failed_registration_ids=["tok-B"])
        harness.network.pump()
        harness.answer(ack)
        self.assertEqual(ack, self.successResultOf(result))

    def test_condition(self) -> None:
        """
        A message may be for a condition in place of a device.
        """
        harness = self.makeSender()
        message = DownstreamMessage(condition="'a' in topics && 'b' in topics", message_id="m-1")
        harness.send(message)
        self.assertEqual([message], harness.script.downstream)

    def test_madeID(self) -> None:
        """
        A message without a C{message_id} is given a new one each time; the
        message itself is not changed.
        """
        harness = self.makeSender()
        message = to()
        results = [harness.sender.send(message) for _ in range(2)]
        self.assertEqual(["made-1", "made-2"], harness.sent())
        self.assertIsNone(message.message_id)
        harness.ack("made-2", "made-1")
        self.assertEqual(["made-1", "made-2"], [self.successResultOf(r).message_id for r in results])

    def test_order(self) -> None:
        """
        Messages go out in the order in which they were sent, also if that was
        before there was a link.
        """
        harness = self.makeSender(links=0)
        ids = [f"m-{n}" for n in range(20)]
        harness.send(*ids[:10])
        self.assertEqual([], harness.sent())
        harness.connect()
        harness.send(*ids[10:])
        self.assertEqual(ids, harness.sent())

    def test_answersInAnyOrder(self) -> None:
        """
        It is the C{message_id} that an answer is matched by.
        """
        harness = self.makeSender()
        harness.send("m-1", "m-2", "m-3")
        harness.ack("m-3", "m-1")
        self.assertEqual(["m-3", "m-1"], list(harness.outcomes))
        harness.ack("m-2")
        self.assertEqual(3, len(harness.outcomes))

    def test_strayAnswers(self) -> None:
        """
        An answer to nothing, or a second one, is ignored.
        """
        harness = self.makeSender()
        harness.send("m-1")
        harness.ack("m-9", "m-1", "m-1")
        harness.answer(Nack(message_id="m-1", error="BAD_REGISTRATION"))
        self.assertEqual({"m-1": [Ack(from_="tok-A", message_id="m-1")]}, harness.outcomes)

    def test_sendWhenAnswered(self) -> None:
        """
        An application may send the next message, even under the same
        C{message_id}, when it has the answer to the last.
        """
        harness = self.makeSender()
        result = harness.sender.send(to("m-1"))
        result.addCallback(lambda _: harness.note("m-1", harness.sender.send(to("m-1"))))
        harness.network.pump()
        harness.ack("m-1")
        harness.ack("m-1")
        self.assertEqual((["m-1"] * 2, 1), (harness.sent(), len(harness.outcomes["m-1"])))


class RefusedTests(DownstreamCase):
    """
    A message that the connection server refuses fails with L{Nacked}.
    """

    def refused(self, nack: Nack) -> Nacked:
        """
        Have a message refused.
        """
        harness = self.makeSender()
        result = harness.sender.send(to("m-1"))
        harness.network.pump()
        harness.answer(nack)
        error: Nacked = self.failureOf(result, Nacked)
        return error

    def test_attributes(self) -> None:
        """
        The error says what was refused and why, and brings a newer
        registration token if there is one.
        """
        error = self.refused(
            Nack(
                from_="tok-A",
                message_id="m-1",
                error="DEVICE_UNREGISTERED",
                error_description="tok-A is gone",
                registration_id="tok-A2",
            )
        )
        self.assertEqual(
            ("DEVICE_UNREGISTERED", "m-1", "tok-A2", True, True),
            (error.error, error.message_id, error.registration_id, error.permanent, error.tokenGone),
        )

    def test_noToken(self) -> None:
        """
        The text of the error has no registration token in it, whatever the
        connection server says.
        """
        error = self.refused(
            Nack(
                from_="tok-A",
                message_id="m-1",
                error="BAD_REGISTRATION",
                error_description="Invalid token: tok-A",
            )
        )
        self.assertNotIn("tok-A", str(error))

    def test_permanent(self) -> None:
        """
        What says that the same message never succeeds is told at once, and
        the message does not go out again, be it much later.
        """
        for code in (
            "INVALID_JSON",
            "BAD_REGISTRATION",
            "SENDER_ID_MISMATCH",
            "DEVICE_UNREGISTERED",
            "BAD_ACK",
            "INVALID_APNS_CREDENTIAL",
            "AUTHENTICATION_FAILED",
            "INVALID_TTL",
            "JSON_TYPE_ERROR",
        ):
            harness = self.makeSender()
            harness.send("m-1")
            harness.nack(code, "m-1")
            self.assertEqual((Nacked, code), (harness.outcome("m-1"), harness.outcomes["m-1"][0].error))
            harness.advance(100)
            self.assertEqual(["m-1"], harness.sent(), code)

    def test_stanzaError(self) -> None:
        """
        A stanza error 400 is a refusal, too, be it matched by the payload that
        it echoes or only by its C{id}.
        """
        for text in ('{"to":"tok-A","message_id":"m-1"}', "{"):
            harness = self.makeSender()
            result = harness.sender.send(to("m-1"))
            harness.network.pump()
            echo = GCMStanza(text, {"id": "m-1"})
            harness.script.write(stanzaError(400, "InvalidJson", harness.script.stream.fullJID, echo))
            harness.network.pump()
            error = self.failureOf(result, Nacked)
            self.assertEqual(("BAD_REQUEST", "m-1", True), (error.error, error.message_id, error.permanent))

    def test_makesRoom(self) -> None:
        """
        A refusal makes room for the next message.
        """
        harness = self.makeSender()
        harness.send(*[f"m-{n}" for n in range(101)])
        self.assertEqual(100, len(harness.sent()))
        harness.answer(Nack(message_id="m-5", error="BAD_REGISTRATION"))
        self.assertEqual(["m-100"], harness.sent())

    def test_notSentAgain(self) -> None:
        """
        What was refused does not go out again with the next stream.
        """
        harness = self.makeSender()
        harness.send("m-1", "m-2")
        harness.answer(Nack(message_id="m-1", error="BAD_REGISTRATION"))
        harness.sent()
        harness.network.cut()
        self.assertEqual(["m-2"], harness.sent())


class WindowTests(DownstreamCase):
    """
    A hundred messages may be unanswered on a link; the rest waits.
    """

    def test_window(self) -> None:
        """
        The 101st message waits until there is room, and each answer makes room
        for one.
        """
        harness = self.makeSender()
        ids = [f"m-{n}" for n in range(205)]
        harness.send(*ids)
        self.assertEqual(ids[:100], harness.sent())
        harness.ack("m-50")
        self.assertEqual(["m-100"], harness.sent())
        harness.ack(*ids[:50], *ids[51:100])
        self.assertEqual(ids[101:200], harness.sent())
        harness.ack(*ids[100:200])
        self.assertEqual(ids[200:], harness.sent())

    def test_queueFull(self) -> None:
        """
        As many messages may wait as were said, and no more; when there is
        room again, more may.
        """
        harness = self.makeSender(limit=2)
        harness.send(*[f"m-{n}" for n in range(102)])
        error = self.failureOf(harness.sender.send(to("m-102")), QueueFull)
        self.assertIn("2 messages wait already", str(error))
        harness.ack("m-0")
        harness.send("m-102")
        self.assertEqual([f"m-{n}" for n in range(101)], harness.sent())
        self.assertNotIn("m-102", harness.outcomes)
        self.failureOf(harness.sender.send(to("m-103")), QueueFull)

    def test_queueFullOfAcks(self) -> None:
        """
        An application that keeps the queue full, and sends the next message
        whenever one is accepted, may do so for each of those that are accepted
        together.
        """
        harness = self.makeSender(limit=10)
        ids = [f"m-{n}" for n in range(210)]
        harness.send(*ids[:109])
        for number in range(100):
            harness.reactions[ids[number]] = partial(harness.send, ids[109 + number])
        self.assertEqual(ids[:100], harness.sent())
        harness.ackTogether(*ids[:100])
        self.assertEqual({Ack}, {harness.outcome(each) for each in harness.outcomes})
        self.assertEqual(ids[100:200], harness.sent())
        harness.send(ids[209])
        self.failureOf(harness.sender.send(to("one-more")), QueueFull)

    def test_kindOfItsOwn(self) -> None:
        """
        An application may have a kind of message of its own.
        """

        class Reminder(DownstreamMessage, frozen=True, kw_only=True):
            """
            Such a kind.
            """

        harness = self.makeSender()
        harness.send(Reminder(to="tok-A", message_id="m-1"))
        harness.ack("m-1")
        self.assertEqual(Ack, harness.outcome("m-1"))

    def test_queueFullCountsAll(self) -> None:
        """
        Whatever waits for room or for the end of its delay counts, and what is
        unanswered does not.
        """
        harness = self.makeSender(limit=3)
        harness.send("m-1", "m-2", "m-3", "m-4")
        harness.nack("SERVICE_UNAVAILABLE", "m-1")
        harness.nack("NEWS_TO_US", "m-2")
        harness.nack("INTERNAL_SERVER_ERROR", "m-3")
        self.failureOf(harness.sender.send(to("m-5")), QueueFull)
        harness.cancel("m-2")
        harness.send("m-5", "m-6")
        self.assertEqual(["m-1", "m-2", "m-3", "m-4", "m-5", "m-6"], harness.sent())

    def test_slowTargetTakesNoPlace(self) -> None:
        """
        What waits for a device that got too much takes no place from the
        others; and of it only a tenth of the limit may wait, for all such
        devices together no more than the limit.
        """
        harness = self.makeSender(limit=20)
        for token in ("tok-B", "tok-C"):
            name = f"{token}-0"
            harness.send(to(name, token))
            harness.nack("DEVICE_MESSAGE_RATE_EXCEEDED", name)
            harness.send(to(f"{token}-1", token))
            error = self.failureOf(harness.sender.send(to("one-more", token)), QueueFull)
            self.assertNotIn("tok", str(error))
        harness.network.refuse = True
        harness.network.cut()
        harness.send(*[f"m-{number}" for number in range(20)])
        self.failureOf(harness.sender.send(to("m-20")), QueueFull)
        harness.cancel("tok-B-1")
        harness.network.refuse = False
        harness.network.advance(1)
        harness.send(to("tok-B-2", "tok-B"))
        self.failureOf(harness.sender.send(to("one-more", "tok-B")), QueueFull)

    def test_manySlowTargets(self) -> None:
        """
        For all slow devices together no more than the limit waits.
        """
        harness = self.makeSender(limit=10)
        for number in range(10):
            harness.send(to(f"b-{number}", f"tok-{number}"))
            harness.nack("DEVICE_MESSAGE_RATE_EXCEEDED", f"b-{number}")
        self.failureOf(harness.sender.send(to("c-1", "tok-3")), QueueFull)
        harness.send("m-1")
        self.assertEqual("m-1", harness.sent()[-1])

    def test_queueFullIsNoTrace(self) -> None:
        """
        A message that found the queue full may be sent again later under the
        same C{message_id}.
        """
        harness = self.makeSender(limit=1, links=0)
        harness.send("m-1")
        self.failureOf(harness.sender.send(to("m-2")), QueueFull)
        harness.connect()
        harness.send("m-2")
        self.assertEqual(["m-1", "m-2"], harness.sent())

    def test_defaultLimit(self) -> None:
        """
        By default ten thousand may wait.
        """
        clock = Clock()
        sender = DownstreamSender(lambda: "made", clock, lambda: 0.0)
        results = [sender.send(to(f"m-{n}")) for n in range(10_000)]
        self.failureOf(sender.send(to("one-more")), QueueFull)
        self.successResultOf(Deferred.fromCoroutine(sender.stop(0.0)))
        self.assertEqual([], clock.getDelayedCalls())
        for result in results:
            self.failureOf(result, Stopped)

    def test_manyLinks(self) -> None:
        """
        Each link has a window of its own, and each message goes out on the
        link with most room.
        """
        harness = self.makeSender(links=2)
        one, two = harness.script.streams
        harness.send("m-1", "m-2", "m-3")
        self.assertEqual((["m-1", "m-3"], ["m-2"]), (harness.sent(one), harness.sent(two)))
        harness.ack("m-1", "m-3", stream=one)
        harness.send("m-4")
        self.assertEqual((["m-4"], []), (harness.sent(one), harness.sent(two)))
        harness.send(*[f"n-{n}" for n in range(250)])
        self.assertEqual(198, len(harness.sent()))

    def test_leastBusy(self) -> None:
        """
        Messages are spread over four links evenly, and go where the fewest are
        unanswered.
        """
        harness = self.makeSender(links=4)
        streams = list(harness.script.streams)
        harness.send(*[f"m-{n}" for n in range(40)])
        carried = [harness.sent(stream) for stream in streams]
        self.assertEqual([10] * 4, [len(ids) for ids in carried])
        harness.ack(*carried[2][:4], *carried[1][:2])
        harness.send(*[f"n-{n}" for n in range(6)])
        self.assertEqual([0, 2, 4, 0], [len(harness.sent(stream)) for stream in streams])

    def test_leastBusyInOneGo(self) -> None:
        """
        So are those that an application sends for ACKs that came together.
        """
        harness = self.makeSender(links=2)
        streams = list(harness.script.streams)
        harness.send("x", "y", "z")
        harness.reactions["x"] = partial(harness.send, *[f"m-{n}" for n in range(9)])
        carried = [harness.sent(stream) for stream in streams]
        self.assertEqual([2, 1], [len(ids) for ids in carried])
        harness.ack("x")
        self.assertEqual([5, 4], sorted((len(harness.sent(each)) for each in streams), reverse=True))

    def test_closedInOneGo(self) -> None:
        """
        A link that is closed by who is told of a message that was sent on it
        gets no more, though there is room; the next one does.
        """
        harness = self.makeSender()
        harness.send("x")
        tries: list[tuple[str | None, int]] = []

        def close(event: object) -> None:
            if isinstance(event, Sent):
                tries.append((event.message.message_id, event.tries))
                protocol = harness.protocols[0]()
                if protocol is not None and tries == [("m-0", 1)]:
                    protocol.close()

        harness.sender._observe = close
        harness.reactions["x"] = partial(harness.send, "m-0", "m-1", "m-2")
        self.assertEqual(["x"], harness.sent())
        one = harness.script.stream
        harness.ack("x")
        self.assertEqual(["m-0"], harness.sent(one))
        harness.advance(60)
        self.assertEqual([("m-0", 1), ("m-0", 2), ("m-1", 1), ("m-2", 1)], tries)
        harness.ack("m-0", "m-1", "m-2")
        self.assertEqual({Ack}, {harness.outcome(each) for each in ("m-0", "m-1", "m-2")})

    def test_expiredTakesNoRoom(self) -> None:
        """
        With one link and a full window an answer makes room for one message:
        for the first that has not expired.
        """
        harness = self.makeSender(links=1)
        harness.send(*[f"m-{n}" for n in range(100)])
        harness.send(to("x-1", time_to_live=0))
        harness.clock.advance(0.5)
        harness.send(to("x-2", time_to_live=0), "next", "last")
        harness.clock.advance(0.5)
        harness.clock.advance(0.75)
        # The second is looked at a second after the first.
        self.assertEqual(["x-1"], list(harness.outcomes))
        harness.sent()
        harness.ack("m-0")
        self.assertEqual((Expired, ["next"]), (harness.outcome("x-2"), harness.sent()))
        harness.ack("m-1", "m-2")
        self.assertEqual(["last"], harness.sent())

    def test_notOnFull(self) -> None:
        """
        Nothing goes out on a link whose peer reads too slowly, and what waited
        goes out when it has caught up.
        """
        harness = self.makeSender(links=2)
        one, two = harness.script.streams
        (slow,) = [p for r in harness.protocols if (p := r()) is not None and p.number == 1]
        slow.xmlstream.pauseProducing()
        harness.send("m-1", "m-2")
        self.assertEqual(([], ["m-1", "m-2"]), (harness.sent(one), harness.sent(two)))
        harness.send(*[f"n-{n}" for n in range(99)])
        self.assertEqual(([], 98), (harness.sent(one), len(harness.sent(two))))
        slow.xmlstream.resumeProducing()
        self.assertEqual((["n-98"], []), (harness.sent(one), harness.sent(two)))

    def test_notOnProbed(self) -> None:
        """
        Nothing goes out on a link whose peer is asked for a sign of life, and
        what waited goes out when it has given it.
        """
        harness = self.makeSender()
        harness.network.silent = True
        harness.clock.advance(60)
        harness.send("m-1")
        self.assertEqual([], harness.observer.of(Sent))
        harness.network.silent = False
        self.assertEqual(["m-1"], harness.sent())
        self.assertEqual(1, harness.links[0].generation)

    def test_notOnDraining(self) -> None:
        """
        Nothing goes out on a link that is being drained.
        """
        harness = self.makeSender(links=2)
        one, two = harness.script.streams
        harness.network.refuse = True
        harness.drain(one)
        harness.send("m-1", "m-2")
        self.assertEqual(([], ["m-1", "m-2"]), (harness.sent(one), harness.sent(two)))


class LostLinkTests(DownstreamCase):
    """
    What a lost link leaves unanswered goes out again.
    """

    def test_again(self) -> None:
        """
        It goes out on the next stream, in its order, as it was, and before
        what waited behind it; what was answered does not.
        """
        harness = self.makeSender()
        ids = [f"m-{n}" for n in range(110)]
        harness.send(to("m-0", data={"k": "v"}), *ids[1:])
        harness.ack("m-3", "m-7")
        harness.sent()
        harness.network.cut()
        again = [message_id for message_id in ids if message_id not in ("m-3", "m-7")]
        self.assertEqual(again[:100], harness.sent())
        harness.ack(*again)
        self.assertEqual(again[100:], harness.sent())
        harness.ack(*again[100:])
        self.assertEqual({1}, {len(outcomes) for outcomes in harness.outcomes.values()})
        self.assertEqual(110, len(harness.outcomes))

    def test_content(self) -> None:
        """
        A message is the same the second time, its C{message_id} included.
        """
        harness = self.makeSender()
        result = harness.sender.send(to(data={"k": "v"}))
        harness.network.pump()
        harness.network.cut()
        harness.network.pump()
        self.assertEqual([to("made-1", data={"k": "v"})] * 2, harness.script.downstream)
        harness.ack("made-1")
        self.successResultOf(result)

    def test_otherLink(self) -> None:
        """
        It goes out at once on another link that is there.
        """
        harness = self.makeSender(links=2)
        one, two = harness.script.streams
        harness.send("m-1", "m-2", "m-3", "m-4")
        harness.sent()
        harness.network.refuse = True
        one.transport.loseConnection()
        self.assertEqual(["m-1", "m-3"], harness.sent(two))

    def test_twice(self) -> None:
        """
        It goes out as often as it takes, and fires once.
        """
        harness = self.makeSender()
        harness.send("m-1", "m-2")
        for _ in range(5):
            self.assertEqual(["m-1", "m-2"], harness.sent())
            harness.network.cut()
            harness.network.advance(60)
        harness.ack("m-1", "m-2")
        self.assertEqual([1, 1], [len(outcomes) for outcomes in harness.outcomes.values()])

    def test_noLinkForLong(self) -> None:
        """
        While there is no link messages wait, and none fails.
        """
        harness = self.makeSender()
        harness.send("m-1")
        harness.sent()
        harness.network.refuse = True
        harness.network.cut()
        harness.send("m-2")
        harness.network.advance(600)
        self.assertEqual({}, harness.outcomes)
        harness.network.refuse = False
        harness.network.advance(60)
        self.assertEqual(["m-1", "m-2"], harness.sent())

    def test_overTheLimit(self) -> None:
        """
        What comes back from a lost link is kept even if more is waiting than
        may; for new messages the queue is full then.
        """
        harness = self.makeSender(limit=1)
        ids = [f"m-{n}" for n in range(101)]
        harness.send(*ids)
        harness.sent()
        harness.network.refuse = True
        harness.network.cut()
        self.failureOf(harness.sender.send(to("m-101")), QueueFull)
        harness.network.refuse = False
        harness.network.advance(60)
        self.assertEqual(ids[:100], harness.sent())
        harness.ack("m-0")
        self.assertEqual(["m-100"], harness.sent())

    def test_forgotten(self) -> None:
        """
        A stream that is lost leaves nothing in memory, however often that
        happens.
        """
        harness = self.makeSender()
        for _ in range(5):
            harness.network.cut()
            harness.network.advance(60)
        gc.collect()
        self.assertEqual(6, len(harness.protocols))
        self.assertEqual(1, len([one for one in harness.protocols if one() is not None]))

    def test_draining(self) -> None:
        """
        On a stream that is being drained nothing new goes out but on its
        successor, and the answers to what is on it still count; what is left
        goes out again.
        """
        harness = self.makeSender()
        old = harness.script.stream
        harness.send("m-1", "m-2")
        harness.drain()
        harness.send("m-3")
        self.assertEqual((["m-1", "m-2"], ["m-3"]), (harness.sent(old), harness.sent()))
        harness.ack("m-1")
        self.assertEqual((["m-1"], []), (list(harness.outcomes), harness.sent()))
        old.transport.loseConnection()
        self.assertEqual(["m-2"], harness.sent())

    def test_drainingAlone(self) -> None:
        """
        While a stream that is being drained is the only one, messages wait.
        """
        harness = self.makeSender()
        harness.send("m-1")
        harness.network.refuse = True
        harness.drain()
        harness.send("m-2")
        harness.ack("m-1")
        self.assertEqual(["m-1"], harness.sent())
        harness.network.refuse = False
        harness.advance(60)
        self.assertEqual(["m-2"], harness.sent())

    def test_merged(self) -> None:
        """
        What two lost links leave goes out in the order in which it was sent,
        not link by link nor in the order of the last try, and before what has
        waited meanwhile.
        """
        harness = self.makeSender(links=2)
        one, two = harness.script.streams
        ids = [f"m-{n}" for n in range(6)]
        harness.send(*ids)
        harness.network.refuse = True
        harness.sent()
        one.transport.loseConnection()
        self.assertEqual(["m-0", "m-2", "m-4"], harness.sent(two))
        two.transport.loseConnection()
        harness.send("m-6")
        harness.network.refuse = False
        harness.connect()
        self.assertEqual([*ids, "m-6"], harness.sent(harness.script.streams[0]))


class NotSendableTests(DownstreamCase):
    """
    What FCM would reject is not sent.
    """

    def assertNotSendable(self, message: DownstreamMessage, field: str) -> None:
        """
        Assert that a message is refused at once, and the field is named.
        """
        harness = self.makeSender()
        error = self.failureOf(harness.sender.send(message), NotSendable)
        self.assertEqual(field, error.field)
        self.assertTrue(str(error).startswith(f"{field}: "), error)
        self.assertEqual([], harness.sent())

    def test_noTarget(self) -> None:
        """
        A message has to have a target.
        """
        self.assertNotSendable(DownstreamMessage(message_id="m-1"), "to")

    def test_twoTargets(self) -> None:
        """
        It must not have two.
        """
        self.assertNotSendable(to("m-1", condition="'a' in topics"), "condition")

    def test_emptyID(self) -> None:
        """
        It must not have an empty C{message_id}, which no answer could be
        matched by.
        """
        self.assertNotSendable(to(""), "message_id")

    def test_pending(self) -> None:
        """
        Its C{message_id} must not be that of another which waits or is
        unanswered; once that is answered it may.
        """
        harness = self.makeSender(links=0)
        harness.send("m-1")
        self.assertEqual("message_id", self.failureOf(harness.sender.send(to("m-1")), NotSendable).field)
        harness.connect()
        self.assertEqual("message_id", self.failureOf(harness.sender.send(to("m-1")), NotSendable).field)
        self.assertEqual(["m-1"], harness.sent())
        harness.ack("m-1")
        harness.send("m-1")
        self.assertEqual(["m-1"], harness.sent())

    def test_notUnicode(self) -> None:
        """
        Half of a surrogate pair cannot be sent.
        """
        self.assertNotSendable(to("m-1", data={"k": "\ud83d"}), "data")

    def test_notJSON(self) -> None:
        """
        Nor can what has no JSON form; the Deferred fails, C{send} does not
        raise.
        """
        self.assertNotSendable(to("m-1", data={"k": object()}), "data")

    def test_noMessage(self) -> None:
        """
        Nor can what is no message.
        """
        self.assertNotSendable({"to": "tok-A"}, "message")  # type: ignore[arg-type]

    def test_tooLarge(self) -> None:
        """
        Nor can what is larger than any stanza may be, though nothing else is
        wrong with it: the connection server would end the stream for it, and
        it would go out again on the next.
        """
        condition = "'a' in topics" + " " * 40_000 + "&& 'b' in topics"
        self.assertNotSendable(DownstreamMessage(condition=condition, message_id="m-1"), "condition")
        self.assertNotSendable(to("m-1", "&" * 4096, data={"k": "\0" * 3000}), "to")

    def test_longTarget(self) -> None:
        """
        A condition may be long, as long as the stanza is not too large.
        """
        harness = self.makeSender()
        condition = "'a' in topics" + " " * 4000 + "&& 'b' in topics"
        harness.send(DownstreamMessage(condition=condition, message_id="m-1"))
        self.assertEqual(["m-1"], harness.sent())

    def test_largest(self) -> None:
        """
        Whatever else is as large as it may be, and grows by its escapes, fits
        into a stanza.
        """
        harness = self.makeSender()
        keys = [chr(a) + chr(b) for a in range(1, 32) for b in range(1, 32)]
        data = dict.fromkeys(keys, "")
        data["k"] = "\1" * (4096 - 2 * len(keys) - 1)
        message = to("\1" * 1024, "&" * 1024, collapse_key="\1" * 1024, data=data, time_to_live=2_419_200)
        harness.send(message)
        self.assertEqual([message], harness.messages())
        self.assertEqual(1, len(harness.script.streams))

    def test_grown(self) -> None:
        """
        One whose data have become larger than a stanza may be fails likewise;
        it would end each stream that it is sent on, and keep back the others.
        """
        harness = self.makeSender(links=0)
        data = {"k": "v"}
        harness.send(to("m-1", data=data), "m-2")
        data["k"] = "x" * MAX_STANZA_BYTES
        harness.connect()
        self.assertEqual(["m-2"], harness.sent())
        self.assertIs(NotSendable, harness.outcome("m-1"))

    def test_changed(self) -> None:
        """
        A message whose data are changed after it was sent, to what cannot go
        out, fails when its turn comes; its place on the link is free, and the
        others go on.
        """
        harness = self.makeSender(links=0)
        data: dict[str, str] = {}
        harness.send(to("m-1", data=data), "m-2")
        data["k"] = "\ud83d"
        harness.connect()
        self.assertEqual((NotSendable, ["m-2"]), (harness.outcome("m-1"), harness.sent()))
        (settled,) = harness.observer.of(Settled)
        self.assertEqual(0, settled.tries)
        harness.send(*[f"n-{n}" for n in range(100)])
        self.assertEqual(99, len(harness.sent()))

    def test_noTrace(self) -> None:
        """
        A message that was refused here may be put right and sent under the
        same C{message_id}.
        """
        harness = self.makeSender()
        self.failureOf(harness.sender.send(to("m-1", condition="'a' in topics")), NotSendable)
        harness.send("m-1")
        self.assertEqual(["m-1"], harness.sent())


class LogTests(DownstreamCase):
    """
    What is sent is not logged.
    """

    def test_nothingSecret(self) -> None:
        """
        No token and no data get into the log, whatever becomes of a message.
        """
        with capturedLogs() as events:
            harness = self.makeSender()
            ids = [f"m-{n}" for n in range(1, 6)]
            harness.send(*[to(message_id, data={"k": "the data"}, time_to_live=100) for message_id in ids])
            harness.ack("m-1", "m-9")
            for number, code in enumerate(("tok-A", "BAD_REGISTRATION", "QUOTA_EXCEEDED"), 2):
                harness.answer(
                    Nack(
                        from_="tok-A",
                        message_id=f"m-{number}",
                        error=code,
                        error_description="tok-A the data",
                        registration_id="tok-A2",
                    )
                )
            harness.network.refuse = True
            harness.network.cut()
            harness.advance(200)
            harness.stop()
        self.assertEqual(5, len(harness.outcomes))
        everything = "".join(eventAsText(event) + eventAsJSON(event) for event in events)
        everything += "".join(str(outcome) for (outcome,) in list(harness.outcomes.values())[1:])
        for secret in ("tok-A", "the data"):
            self.assertNotIn(secret, everything)
