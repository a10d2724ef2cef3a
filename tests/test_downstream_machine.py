"""
Tests for L{fcmxmpp.downstream}: whatever happens, in any order.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.errors import AckTimedOut, Expired, Nacked, QueueFull, Stopped
from fcmxmpp.interfaces import Sent
from fcmxmpp.messages import WINDOW, Ack, Nack
from fcmxmpp.server.stream import ServerStream
from tests.downstream import Harness, to


#: What may be wrong, for a while and for good.
CODES = (
    "SERVICE_UNAVAILABLE",
    "NEVER_HEARD_OF",
    "QUOTA_EXCEEDED",
    "DEVICE_MESSAGE_RATE_EXCEEDED",
    "CONNECTION_DRAINING",
    "INVALID_JSON",
)


class SenderMachine(RuleBasedStateMachine):
    """
    A sender, up to three links that come and go, and a connection server that
    answers as it likes.

    @ivar unanswered: what has come to the connection server on each of its
        streams and was not answered, by C{message_id}.
    @ivar draining: the streams that it is about to close.
    @ivar disturbed: the messages that were refused; their order is not promised.
    """

    def __init__(self) -> None:
        super().__init__()
        self.harness = Harness(limit=260)
        self.harness.script.onMessage = self.came
        self.count = 0
        self.unanswered: dict[ServerStream, list[str]] = {}
        self.draining: list[ServerStream] = []
        self.disturbed: set[str] = set()
        self.stopped: Deferred[None] | None = None

    def came(self, stream: ServerStream, message: object) -> None:
        """
        A message came to the connection server.
        """
        assert isinstance(message, type(to("")))
        assert stream not in self.draining
        assert message.message_id is not None
        self.unanswered.setdefault(stream, []).append(message.message_id)

    def settle(self) -> None:
        """
        Carry what is under way, and forget the streams that are gone.
        """
        self.harness.network.pump()
        streams = self.harness.script.streams
        self.unanswered = {s: ids for s, ids in self.unanswered.items() if s in streams}
        self.draining = [stream for stream in self.draining if stream in streams]

    @initialize(links=st.integers(0, 3))
    def start(self, links: int) -> None:
        """
        There are some links, or none.
        """
        for _ in range(links):
            self.harness.connect()

    @rule(
        device=st.sampled_from(("tok-A", "tok-B", "/topics/c")),
        ttl=st.sampled_from((None, None, None, 0, 3, 40)),
        many=st.sampled_from((1, 2, 5, 70)),
    )
    def send(self, device: str, ttl: int | None, many: int) -> None:
        """
        The application sends some messages.
        """
        for _ in range(many):
            self.count += 1
            self.harness.send(to(str(self.count), device, time_to_live=ttl))

    def answerWith(self, which: int, many: int, code: str | None) -> None:
        """
        Answer some of what is unanswered.
        """
        streams = [stream for stream, ids in self.unanswered.items() if ids]
        if not streams:
            return
        stream = streams[which % len(streams)]
        ids = self.unanswered[stream]
        for _ in range(min(many, len(ids))):
            message_id = ids.pop(which % len(ids))
            if code is None:
                self.harness.answer(Ack(message_id=message_id), stream=stream)
            else:
                self.disturbed.add(message_id)
                # As an answer to what is overdue it says nothing.
                outgoing = self.harness.sender._unsettled.get(message_id)
                if code == "CONNECTION_DRAINING" and outgoing is not None and outgoing.inFlight:
                    self.draining.append(stream)
                self.harness.answer(Nack(message_id=message_id, error=code), stream=stream)

    @rule(which=st.integers(0, 300), many=st.sampled_from((1, 3, 100)))
    def accept(self, which: int, many: int) -> None:
        """
        The connection server accepts some messages.
        """
        self.answerWith(which, many, None)

    @rule(which=st.integers(0, 300), many=st.sampled_from((1, 3, 100)), code=st.sampled_from(CODES))
    def refuse(self, which: int, many: int, code: str) -> None:
        """
        The connection server refuses some messages.
        """
        self.answerWith(which, many, code)

    @rule(which=st.integers(0, 300), many=st.sampled_from((1, 1, 4)))
    def cancel(self, which: int, many: int) -> None:
        """
        The application cancels some messages, wherever they are.
        """
        ids = [message_id for message_id in self.harness.results if message_id not in self.harness.outcomes]
        for message_id in ids[which % (len(ids) or 1) :][:many]:
            self.harness.cancel(message_id)

    @rule(which=st.integers(0, 300), victim=st.integers(1, 300), code=st.sampled_from((None, *CODES)))
    def react(self, which: int, victim: int, code: str | None) -> None:
        """
        The application will cancel one message when it is told of another,
        and send one more.
        """
        ids = [message_id for message_id in self.harness.results if message_id not in self.harness.outcomes]
        if ids:

            def reaction() -> None:
                self.harness.results[str(min(victim, self.count))].cancel()
                self.count += 1
                self.harness.note(str(self.count), self.harness.sender.send(to(str(self.count))))

            self.harness.reactions[ids[which % len(ids)]] = reaction

    @rule(seconds=st.sampled_from((0.3, 1.0, 3.0, 25.0, 130.0)))
    def wait(self, seconds: float) -> None:
        """
        Time passes.
        """
        self.harness.network.advance(seconds, max(1.0, seconds / 10))

    @precondition(lambda self: self.harness.script.streams)
    @rule(which=st.integers(0, 2), again=st.booleans())
    def lose(self, which: int, again: bool) -> None:
        """
        A stream is lost; perhaps there is no other for a while.
        """
        streams = self.harness.script.streams
        self.harness.network.refuse = not again
        streams[which % len(streams)].transport.loseConnection()

    @precondition(lambda self: self.harness.script.streams)
    @rule(which=st.integers(0, 2), again=st.booleans())
    def drain(self, which: int, again: bool) -> None:
        """
        The connection server is about to close a stream.
        """
        streams = self.harness.script.streams
        stream = streams[which % len(streams)]
        self.harness.network.refuse = not again
        self.draining.append(stream)
        self.harness.drain(stream)

    @rule()
    def connect(self) -> None:
        """
        Connections can be made again; there is another link if there are few.
        """
        self.harness.network.refuse = False
        if len(self.harness.links) < 3:
            self.harness.connect()

    @precondition(lambda self: self.count > 5)
    @rule(grace=st.sampled_from((0.0, 5.0, 30.0)))
    def stop(self, grace: float) -> None:
        """
        The application stops.
        """
        stopped = self.harness.stop(grace)
        self.stopped = self.stopped or stopped

    @invariant()
    def promises(self) -> None:
        """
        What holds all the time.
        """
        self.settle()
        harness = self.harness
        sender = harness.sender
        assert all(len(outcomes) == 1 for outcomes in harness.outcomes.values())
        # What is in flight is what the streams wait for, until all is given up at the stop.
        protocols = [p for r in harness.protocols if (p := r()) is not None and p.session is not None]
        assert all(protocol.session.unanswered <= WINDOW for protocol in protocols)
        if self.stopped is None or not self.stopped.called:
            assert sender._inFlight == sum(protocol.session.unanswered for protocol in protocols)
        # Everything that is not settled is in one place.
        waiting = [*sender._queue.values(), *sender._again]
        waiting += [outgoing for lane in sender._lanes.values() for outgoing in lane.waiting]
        delayed = [outgoing for outgoing in sender._unsettled.values() if outgoing.delayed]
        inFlight = [outgoing for outgoing in sender._unsettled.values() if outgoing.inFlight]
        assert len(waiting) + len(delayed) + len(inFlight) == len(sender._unsettled)
        assert {*waiting, *delayed, *inFlight} == {*sender._unsettled.values()}
        assert len(inFlight) == sender._inFlight
        for line in (sender._again, *[lane.waiting for lane in sender._lanes.values()]):
            assert line == sorted(line)
        # A lane that has nothing to wait for is none.
        assert all(lane.pause is not None or lane.busy is not None for lane in sender._lanes.values())
        # What waits to go does so for want of room.
        if sender._again or sender._queue:
            assert all(link.room == 0 for link in sender._links)
        # Nothing that was never refused is overtaken by another for the same device.
        # As they are written: of two that are, on two streams, either may arrive first.
        firsts: dict[str | None, list[int]] = {}
        for event in harness.observer.of(Sent):
            if event.tries == 1 and event.message.message_id not in self.disturbed:
                firsts.setdefault(event.message.to, []).append(int(event.message.message_id))
        for numbers in firsts.values():
            assert numbers == sorted(numbers)

    def teardown(self) -> None:
        """
        After the stop every Deferred has fired once, for a good reason, and
        nothing is left.
        """
        harness = self.harness
        harness.stop()
        harness.network.advance(31, 10)
        ended = [link.stop() for link in harness.links]
        harness.network.pump()
        # A stream that is being drained may have its end still to be closed by force.
        harness.network.advance(60, 10)
        assert all(one.called for one in ended)
        assert harness.clock.getDelayedCalls() == []
        assert harness.leftovers == (0, 0, 0, 0, 0)
        assert dict(harness.noted) == {key: len(outcomes) for key, outcomes in harness.outcomes.items()}
        good = (Ack, Nacked, Expired, AckTimedOut, QueueFull, Stopped, CancelledError)
        for message_id, (outcome,) in harness.outcomes.items():
            assert isinstance(outcome, good), (message_id, outcome)
        # The tries of each message are counted one by one.
        tries: Counter[str] = Counter()
        for event in harness.observer.of(Sent):
            tries[event.message.message_id] += 1
            assert event.tries == tries[event.message.message_id]


class AnyOrderTests(SynchronousTestCase):
    """
    The sender's promises.
    """

    def test_anyOrder(self) -> None:
        """
        However messages, answers, losses, drains, cancels, time and the stop
        follow each other, each message is settled once, in order where that is
        promised, and nothing is left.
        """
        run_state_machine_as_test(
            SenderMachine, settings=settings(max_examples=30, stateful_step_count=25, deadline=None)
        )

    def test_twoStreamsAtOnce(self) -> None:
        """
        Of two messages that are sent in one go, on two streams, the second may
        arrive first: no message was overtaken by that.
        """
        machine = SenderMachine()
        machine.start(3)
        machine.promises()
        machine.drain(1, False)
        machine.promises()
        machine.send("tok-A", None, 2)
        machine.drain(0, True)
        machine.promises()
        machine.react(1, 1, None)
        machine.react(0, 2, None)
        machine.accept(0, 1)
        machine.promises()
        machine.teardown()
