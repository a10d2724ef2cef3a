"""
Tests for L{fcmxmpp.downstream}.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import count
from typing import Any
from weakref import ref

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, eventAsJSON, eventAsText
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from fcmxmpp.client import FCMClientProtocol
from fcmxmpp.connection import Credentials, Link
from fcmxmpp.downstream import MAX_QUEUE, DownstreamSender
from fcmxmpp.elementstream import GCMStanza
from fcmxmpp.errors import MalformedPayload, Nacked, NotSendable, QueueFull, Stopped
from fcmxmpp.interfaces import IResponsible
from fcmxmpp.messages import Ack, Control, DownstreamMessage, Nack, Notification, Receipt, UpstreamMessage
from fcmxmpp.server.stream import ServerStream
from fcmxmpp.stanza import serverStanza, stanzaError
from fcmxmpp.testing import SENDER_ID, SERVER_KEY, MemoryNetwork, RecordingObserver, ScriptedConnectionServer


@implementer(IResponsible)
class _TakesNothing:
    """
    There is no upstream here.
    """

    def take(self, message: UpstreamMessage | Receipt) -> Deferred[None]:
        """
        See L{IResponsible.take}.
        """
        return succeed(None)

    def takeMalformed(self, error: MalformedPayload) -> Deferred[None]:
        """
        See L{IResponsible.takeMalformed}.
        """
        return succeed(None)

    def discard(self, error: MalformedPayload) -> None:
        """
        See L{IResponsible.discard}.
        """


def to(message_id: str | None = None, **fields: Any) -> DownstreamMessage:
    """
    A message for a device.
    """
    return DownstreamMessage(to="tok-A", message_id=message_id, **fields)


class Harness:
    """
    A sender, its links and the connection server that they lead to.

    @ivar sender: the sender.
    @ivar script: the connection server.
    @ivar clock: their time.
    @ivar network: what joins them.
    @ivar protocols: the protocol object of each stream, as far as there is one
        still.
    @ivar outcomes: the outcome of each message, by its C{message_id}: an
        L{Ack} or an error.
    """

    def __init__(self, limit: int) -> None:
        self.clock = Clock()
        self.script = ScriptedConnectionServer()
        self.network = MemoryNetwork(self.clock, self.script.factory(self.clock))
        numbers = count(1)
        self.observer = RecordingObserver()
        self.sender = DownstreamSender(
            lambda: f"made-{next(numbers)}", self.clock, lambda: 0.0, self.observer.observed, limit
        )
        self.links: list[Link] = []
        self.protocols: list[ref[FCMClientProtocol]] = []
        self.outcomes: dict[str, list[Any]] = {}

    def connect(self) -> ServerStream:
        """
        Make a link.

        @return: the connection server's end of it.
        """
        link = Link(
            self.network,
            Credentials(SENDER_ID, SERVER_KEY),
            self._makeProtocol,
            self.clock,
            lambda: 0.0,
        )
        self.links.append(link)
        link.start()
        self.network.pump()
        return self.script.stream

    def _makeProtocol(self, drained: Callable[[], None]) -> FCMClientProtocol:
        """
        Make the protocol object of one stream.
        """
        protocol = FCMClientProtocol(
            _TakesNothing(), self.sender, self.clock, drained=drained, number=len(self.links)
        )
        self.protocols.append(ref(protocol))
        return protocol

    def stop(self, grace: float = 0.0) -> Deferred[None]:
        """
        Stop the sender.
        """
        return Deferred.fromCoroutine(self.sender.stop(grace))

    def send(self, *messages: DownstreamMessage | str) -> None:
        """
        Send messages, or small ones with these C{message_id}s, and note what
        becomes of them.
        """
        for message in messages:
            message = to(message) if isinstance(message, str) else message
            self.note(message.message_id or "", self.sender.send(message))
        self.network.pump()

    def note(self, message_id: str, result: Deferred[Ack]) -> None:
        """
        Note what becomes of a message.
        """

        def outcome(result: Ack | Failure) -> None:
            value = result.value if isinstance(result, Failure) else result
            self.outcomes.setdefault(message_id, []).append(value)

        result.addBoth(outcome)

    def sent(self, stream: ServerStream | None = None) -> list[str]:
        """
        What has come to the connection server since the last look, by its
        C{message_id}s.

        @param stream: only on this one.
        """
        self.network.pump()
        received = self.script.received
        looked = [pair for pair in received if stream is None or pair[0] is stream]
        received[:] = [pair for pair in received if pair not in looked]
        return [message.message_id or "" for _, message in looked]

    def answer(self, *answers: Ack | Nack | Control, stream: ServerStream | None = None) -> None:
        """
        Have the connection server answer.
        """
        for answer in answers:
            (stream or self.script.stream).transport.write(serverStanza(answer))
        self.network.pump()

    def ack(self, *ids: str, stream: ServerStream | None = None) -> None:
        """
        Have the connection server accept messages.
        """
        self.answer(*[Ack(from_="tok-A", message_id=message_id) for message_id in ids], stream=stream)


class DownstreamCase(SynchronousTestCase):
    """
    What the test cases of this module share.
    """

    def makeSender(self, limit: int = MAX_QUEUE, links: int = 1) -> Harness:
        """
        Make a sender; when the test is over it has to stop without a trace.
        """
        harness = Harness(limit)
        self.addCleanup(self.assertStops, harness)
        for _ in range(links):
            harness.connect()
        return harness

    def assertStops(self, harness: Harness) -> None:
        """
        Assert that a sender and its links stop and leave nothing behind, and
        that every Deferred has fired once.
        """
        harness.stop()
        for link in harness.links:
            stopped = link.stop()
            harness.network.pump()
            self.successResultOf(stopped)
        self.assertEqual([], harness.clock.getDelayedCalls())
        for message_id, outcomes in harness.outcomes.items():
            self.assertTrue(outcomes, message_id)

    def failureOf(self, result: Deferred[Ack], *errors: type[Exception]) -> Any:
        """
        The error that a Deferred has failed with.
        """
        return self.failureResultOf(result, *errors).value


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
        for code in ("BAD_REGISTRATION", "tok-A"):
            error = self.refused(
                Nack(from_="tok-A", message_id="m-1", error=code, error_description="Invalid token: tok-A")
            )
            self.assertNotIn("tok-A", str(error))

    def test_passing(self) -> None:
        """
        Trouble that passes is not permanent, and an unknown code counts as
        that.
        """
        for code in ("SERVICE_UNAVAILABLE", "INTERNAL_SERVER_ERROR", "NEVER_HEARD_OF"):
            error = self.refused(Nack(message_id="m-1", error=code))
            self.assertEqual((code, False, False), (error.error, error.permanent, error.tokenGone))

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
        sender = DownstreamSender(lambda: "made", Clock(), lambda: 0.0)
        results = [sender.send(to(f"m-{n}")) for n in range(10_000)]
        self.failureOf(sender.send(to("one-more")), QueueFull)
        self.successResultOf(Deferred.fromCoroutine(sender.stop(0.0)))
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
        On a link that is being drained nothing new goes out, and the answers
        to what is on it still count; what is left goes out again.
        """
        harness = self.makeSender()
        harness.send("m-1", "m-2")
        harness.answer(Control(control_type="CONNECTION_DRAINING"))
        harness.send("m-3")
        self.assertEqual(["m-1", "m-2"], harness.sent())
        harness.ack("m-1")
        self.assertEqual((["m-1"], []), (list(harness.outcomes), harness.sent()))
        harness.script.stream.transport.loseConnection()
        self.assertEqual(["m-2", "m-3"], harness.sent())


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
        self.assertNotSendable(to("m-1", condition="'a' in topics"), "to")

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
        self.assertNotSendable(to("m-1", data={"k": "\ud83d"}), "message")

    def test_notJSON(self) -> None:
        """
        Nor can what has no JSON form; the Deferred fails, C{send} does not
        raise.
        """
        harness = self.makeSender()
        self.failureOf(harness.sender.send(to("m-1", data={"k": object()})), NotSendable)

    def test_tooLarge(self) -> None:
        """
        Nor can what is larger than any stanza may be: the connection server
        would end the stream for it, and it would go out again on the next.
        """
        harness = self.makeSender()
        self.failureOf(harness.sender.send(to("m-1", data={"k": "x" * 70_000})), NotSendable)

    def test_noTrace(self) -> None:
        """
        A message that was refused here may be put right and sent under the
        same C{message_id}.
        """
        harness = self.makeSender()
        self.failureOf(harness.sender.send(to("m-1", condition="'a' in topics")), NotSendable)
        harness.send("m-1")
        self.assertEqual(["m-1"], harness.sent())


class CancelTests(DownstreamCase):
    """
    An application may cancel the Deferred of a message.
    """

    def test_waiting(self) -> None:
        """
        A message that waits is withdrawn: it never goes out, its place in the
        queue is free, and so is its C{message_id}.
        """
        harness = self.makeSender(limit=2, links=0)
        result = harness.sender.send(to("m-1"))
        harness.send("m-2")
        result.cancel()
        self.failureOf(result, CancelledError)
        harness.send("m-3")
        harness.connect()
        self.assertEqual(["m-2", "m-3"], harness.sent())
        harness.send("m-1")
        self.assertEqual(["m-1"], harness.sent())

    def cancelSent(self) -> Harness:
        """
        Cancel a message that has been sent.
        """
        harness = self.makeSender()
        result = harness.sender.send(to("m-1"))
        self.assertEqual(["m-1"], harness.sent())
        result.cancel()
        self.failureOf(result, CancelledError)
        return harness

    def test_sentAndAccepted(self) -> None:
        """
        A message that has been sent keeps its place until it is answered;
        nobody is told the answer, and the stream does not suffer from it.
        """
        harness = self.cancelSent()
        self.assertEqual("message_id", self.failureOf(harness.sender.send(to("m-1")), NotSendable).field)
        harness.ack("m-1")
        self.assertEqual(1, len(harness.script.streams))
        self.assertEqual(1, harness.links[0].generation)
        harness.send("m-1")
        self.assertEqual(["m-1"], harness.sent())

    def test_sentAndRefused(self) -> None:
        """
        The same holds if it is refused.
        """
        harness = self.cancelSent()
        harness.answer(Nack(message_id="m-1", error="BAD_REGISTRATION"))
        self.assertEqual(1, harness.links[0].generation)
        harness.send("m-1")
        self.assertEqual(["m-1"], harness.sent())

    def test_sentAndAnsweredMakesRoom(self) -> None:
        """
        Its answer makes room for the next message.
        """
        harness = self.makeSender()
        results = [harness.sender.send(to(f"m-{n}")) for n in range(101)]
        for result in results:
            result.addErrback(lambda _: None)
        results[0].cancel()
        self.assertEqual(100, len(harness.sent()))
        harness.ack("m-0")
        self.assertEqual(["m-100"], harness.sent())

    def test_sentAndLost(self) -> None:
        """
        If the link is lost it does not go out again, and its C{message_id} is
        free.
        """
        harness = self.cancelSent()
        harness.send("m-2")
        harness.sent()
        harness.network.cut()
        self.assertEqual(["m-2"], harness.sent())
        harness.send("m-1")
        self.assertEqual(["m-1"], harness.sent())

    def test_sentAndStopped(self) -> None:
        """
        It does not keep the others from being told of the stop.
        """
        harness = self.cancelSent()
        harness.send("m-2", "m-3")
        harness.stop()
        self.assertEqual(["m-2", "m-3"], list(harness.outcomes))

    def test_timeout(self) -> None:
        """
        An application may have its own time-out.
        """
        harness = self.makeSender(links=0)
        result = harness.sender.send(to("m-1")).addTimeout(5, harness.clock)
        harness.clock.advance(5)
        self.assertEqual("TimeoutError", self.failureResultOf(result).type.__name__)
        harness.connect()
        self.assertEqual([], harness.sent())


class StopTests(DownstreamCase):
    """
    At a stop every Deferred that is open fails.
    """

    def test_open(self) -> None:
        """
        What waits and what is unanswered fails with L{Stopped}, in order.
        """
        harness = self.makeSender()
        ids = [f"m-{n}" for n in range(102)]
        harness.send(*ids)
        harness.ack("m-0")
        harness.stop()
        self.assertEqual(ids, list(harness.outcomes))
        self.assertEqual({Stopped}, {type(harness.outcomes[message_id][0]) for message_id in ids[1:]})

    def test_afterwards(self) -> None:
        """
        Nothing is taken afterwards.
        """
        harness = self.makeSender()
        harness.stop()
        self.failureOf(harness.sender.send(to("m-1")), Stopped)
        self.failureOf(harness.sender.send(DownstreamMessage()), Stopped)
        self.assertEqual([], harness.sent())

    def test_whenTold(self) -> None:
        """
        Nor is it taken from an application that sends again when it is told of
        the stop.
        """
        harness = self.makeSender()
        again: list[Deferred[Ack]] = []
        result = harness.sender.send(to("m-1"))
        result.addErrback(lambda _: again.append(harness.sender.send(to("m-1"))))
        harness.stop()
        self.failureOf(again[0], Stopped)

    def test_lateAnswer(self) -> None:
        """
        An answer that comes after the stop changes nothing, and neither does
        the loss of the link.
        """
        harness = self.makeSender()
        harness.send("m-1", "m-2")
        harness.stop()
        harness.ack("m-1")
        harness.answer(Nack(message_id="m-2", error="BAD_REGISTRATION"))
        harness.network.cut()
        self.assertEqual([1, 1], [len(outcomes) for outcomes in harness.outcomes.values()])

    def test_connectedAfterwards(self) -> None:
        """
        What waited at the stop does not go out on a link that is made later.
        """
        harness = self.makeSender(links=0)
        harness.send("m-1", "m-2")
        harness.stop()
        harness.connect()
        self.assertEqual([], harness.sent())

    def test_lostAfterwards(self) -> None:
        """
        What is unanswered when the link is lost after the stop does not go out
        again.
        """
        harness = self.makeSender()
        harness.send("m-1")
        harness.sent()
        harness.stop()
        harness.network.cut()
        self.assertEqual([], harness.sent())

    def test_twice(self) -> None:
        """
        To stop twice is to stop.
        """
        harness = self.makeSender()
        harness.send("m-1")
        harness.stop()
        harness.stop()
        self.assertEqual(1, len(harness.outcomes["m-1"]))


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
            harness.send(to("m-1", data={"k": "the data"}), to("m-2", data={"k": "the data"}))
            harness.ack("m-1", "m-9")
            harness.answer(
                Nack(from_="tok-A", message_id="m-2", error="tok-A", error_description="tok-A the data")
            )
            harness.send("m-3")
            harness.network.cut()
        everything = "".join(eventAsText(event) + eventAsJSON(event) for event in events)
        for secret in ("tok-A", "the data"):
            self.assertNotIn(secret, everything)
