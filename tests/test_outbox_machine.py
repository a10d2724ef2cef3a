"""
Tests for L{fcmxmpp.outbox}: whatever happens, in any order, and however often
the process dies.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.entries import Outcome
from fcmxmpp.errors import HandlerFailed, HandlerUnavailable
from fcmxmpp.interfaces import Stored
from fcmxmpp.messages import Ack, DownstreamMessage, Nack
from fcmxmpp.server.stream import ServerStream
from fcmxmpp.store.memory import MemoryOutbox
from tests.downstream import to
from tests.outbox import Life, Outcomes


#: How many messages are in memory, and may wait in the sender.
AT_ONCE, QUEUE = 6, 30
GATES = ("add", "load", "settle", "withdraw", "unreported", "reported")


class CountedOutbox(MemoryOutbox):
    """
    An outbox that counts how often each message was settled.
    """

    def __init__(self, machine: OutboxMachine) -> None:
        super().__init__(lambda: machine.life.clock.seconds())
        self.decided: Counter[str | None] = Counter()

    def settle(self, number: int, outcome: Outcome, report: bool) -> Deferred[None]:
        """
        See L{IOutbox.settle}.
        """
        self.decided[outcome.message.message_id] += 1
        return super().settle(number, outcome, report)


class OutboxMachine(RuleBasedStateMachine):
    """
    Lives of a process on one outbox.

    @ivar taken: what C{send} has fired for, or somebody else has put in.
    @ivar disturbed: the messages that were refused, or were given up by their
        sender; their order is not promised.
    @ivar firsts: the messages of each device in the order in which they came to
        the connection server for the first time.
    @ivar ok: how often the report of each was answered well, and C{bad} not.
    @ivar again: how often it may be made once more, because the process died
        before it was recorded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.now = 1000.0
        self.taken: set[str] = set()
        self.disturbed: set[str] = set()
        self.firsts: dict[str, list[int]] = {}
        self.ok: Counter[str | None] = Counter()
        self.bad: Counter[str | None] = Counter()
        self.again: Counter[str | None] = Counter()
        self.mode = "ok"
        self.hanging: list[tuple[str | None, Deferred[None]]] = []
        self.unanswered: dict[ServerStream, list[str]] = {}
        self.outcomes = Outcomes()
        self.outcomes.answer = self.reported
        self.life: Life = None  # type: ignore[assignment]
        self.outbox = CountedOutbox(self)

    @initialize()
    def begin(self) -> None:
        """
        A process begins.
        """
        self.unanswered = {}
        self.hanging = []
        self.life = Life(self.outbox, self.outcomes, self.now, atOnce=AT_ONCE, queue=QUEUE)
        self.life.script.onMessage = self.came
        self.life.stored.start()
        self.life.connect()

    def came(self, stream: ServerStream, message: Any) -> None:
        """
        A message came to the connection server.
        """
        self.unanswered.setdefault(stream, []).append(message.message_id)
        number = int(message.message_id)
        firsts = self.firsts.setdefault(message.to, [])
        if message.message_id not in self.disturbed and number not in firsts:
            firsts.append(number)

    def reported(self, outcome: Outcome) -> Deferred[None] | None:
        """
        The application is told of an outcome.
        """
        message_id = outcome.message.message_id
        if self.mode == "unavailable":
            raise HandlerUnavailable("not now")
        if self.mode == "fail":
            self.bad[message_id] += 1
            raise HandlerFailed("no")
        if self.mode == "hang":
            hanging: Deferred[None] = Deferred(lambda _: self.bad.update([message_id]))
            self.hanging.append((message_id, hanging))
            return hanging
        self.ok[message_id] += 1
        return None

    @rule(
        device=st.sampled_from(("tok-A", "tok-B")),
        ttl=st.sampled_from((None, None, None, 3, 40)),
        many=st.sampled_from((1, 2, 5, 14)),
    )
    def send(self, device: str, ttl: int | None, many: int) -> None:
        """
        The application sends some messages.
        """
        for _ in range(many):
            self.count += 1
            message = to(str(self.count), device, time_to_live=ttl)
            self.life.sending[str(self.count)] = sent = self.life.stored.send(message)
            sent.addCallbacks(self.wasTaken, self.wasNot, errbackArgs=(str(self.count),))

    def wasTaken(self, stored: object) -> None:
        """
        A message was taken over; every other one is waited for.
        """
        assert isinstance(stored, Stored)
        self.taken.add(stored.message_id)
        if int(stored.message_id) % 2:
            self.life.note(stored.message_id, stored.whenSettled())

    def wasNot(self, failure: Any, message_id: str) -> None:
        """
        A message was not taken over, or not wanted.
        """
        self.disturbed.add(message_id)

    @rule(device=st.sampled_from(("tok-A", "tok-B")))
    def putIn(self, device: str) -> None:
        """
        Somebody else puts a message into the outbox.
        """
        self.count += 1
        # It has no place among those whose commits are under way.
        self.disturbed.add(str(self.count))
        self.outbox.add(to(str(self.count), device))
        self.taken.add(str(self.count))

    @rule(which=st.integers(0, 50))
    def cancel(self, which: int) -> None:
        """
        The application cancels a message that is not committed.
        """
        waiting = [sent for sent in self.life.sending.values() if not sent.called]
        if waiting:
            waiting[which % len(waiting)].cancel()

    @rule(which=st.integers(0, 50), many=st.sampled_from((1, 3, 50)))
    def accept(self, which: int, many: int) -> None:
        """
        The connection server accepts some messages.
        """
        self.answer(which, many, None)

    @rule(
        which=st.integers(0, 50),
        many=st.sampled_from((1, 3, 50)),
        code=st.sampled_from(("SERVICE_UNAVAILABLE", "INVALID_JSON", "QUOTA_EXCEEDED")),
    )
    def refuse(self, which: int, many: int, code: str) -> None:
        """
        The connection server refuses some messages.
        """
        self.answer(which, many, code)

    def answer(self, which: int, many: int, code: str | None) -> None:
        """
        The connection server answers.
        """
        streams = [stream for stream in self.life.script.streams if self.unanswered.get(stream)]
        for stream in streams[-1:]:
            ids = self.unanswered[stream]
            for _ in range(min(many, len(ids))):
                message_id = ids.pop(which % len(ids))
                if code is None:
                    self.life.answer(Ack(message_id=message_id), stream=stream)
                else:
                    self.disturbed.add(message_id)
                    self.life.answer(Nack(message_id=message_id, error=code), stream=stream)

    @rule(again=st.booleans())
    def lose(self, again: bool) -> None:
        """
        The stream is lost; perhaps there is no other for a while.
        """
        self.life.network.refuse = not again
        for stream in self.life.script.streams:
            stream.transport.loseConnection()

    @rule(seconds=st.sampled_from((0.3, 1.0, 5.0, 31.0, 70.0)))
    def wait(self, seconds: float) -> None:
        """
        Time passes.
        """
        self.life.network.advance(seconds, max(0.5, seconds / 10))

    @rule(names=st.sets(st.sampled_from(GATES)), mute=st.booleans())
    def slow(self, names: set[str], mute: bool) -> None:
        """
        The store is slow with some things, from now on.
        """
        gate = self.life.gate
        gate.slow, gate.mute = (set(), names) if mute else (names, set())

    @rule(name=st.sampled_from(("", *GATES)), many=st.sampled_from((1, 3, 1000)))
    def release(self, name: str, many: int) -> None:
        """
        The store does something.
        """
        self.life.gate.release(name, many)

    @rule(names=st.sets(st.sampled_from((*GATES, "*"))))
    def damage(self, names: set[str]) -> None:
        """
        The store cannot do some things, from now on.
        """
        self.life.gate.broken = names

    @rule(mode=st.sampled_from(("ok", "ok", "fail", "unavailable", "hang")))
    def behave(self, mode: str) -> None:
        """
        The application's outcome handler does something else from now on.
        """
        self.mode = mode

    @rule(well=st.booleans())
    def answerReport(self, well: bool) -> None:
        """
        It answers what it has kept waiting.
        """
        for message_id, hanging in self.hanging[:2]:
            if not hanging.called:
                (self.ok if well else self.bad)[message_id] += 1
                hanging.callback(None) if well else hanging.errback(HandlerFailed("no"))
        del self.hanging[:2]

    def end(self) -> None:
        """
        The process is no more.
        """
        self.now = self.life.clock.seconds()
        for message_id in self.unreported():
            self.again[message_id] = self.ok[message_id]

    @rule()
    def kill(self) -> None:
        """
        The process is killed, and another one begins.
        """
        self.end()
        self.begin()

    @rule(grace=st.sampled_from((0.0, 3.0)))
    def restart(self, grace: float) -> None:
        """
        The process stops in order, and another one begins.
        """
        ended = self.life.end(grace)
        self.life.network.advance(grace + 4, 0.5)
        assert ended.called
        assert not self.life.stored._awaited
        for link in self.life.links:
            link.stop()
            self.life.network.advance(60, 10)
        assert self.life.clock.getDelayedCalls() == []
        assert all(len(outcomes) == 1 for outcomes in self.life.outcomes.values())
        assert set(self.life.noted) == set(self.life.outcomes)
        self.end()
        self.begin()

    def unreported(self) -> list[str | None]:
        """
        What is to be reported, as the outbox knows it.
        """
        return [entry.outcome.message.message_id for entry in self.outbox._settled.values()]

    @invariant()
    def promises(self) -> None:
        """
        What holds all the time.
        """
        if self.life is None:
            return
        self.life.network.pump()
        stored = self.life.stored
        # One that has waited in its lane, where it took no place, still takes none
        # when its turn comes: somebody else may have the place by then.
        sender = self.life.sender
        going = sum(lane.busy is not None for lane in sender._lanes.values())
        assert len(stored._open) - sender.slowed - going <= AT_ONCE
        assert len(stored._reports._reports) <= AT_ONCE
        assert all(count == 1 for count in self.outbox.decided.values())
        for message_id, count in self.ok.items():
            assert count <= 1 + self.again[message_id], message_id
        for numbers in self.firsts.values():
            undisturbed = [number for number in numbers if str(number) not in self.disturbed]
            assert undisturbed == sorted(undisturbed)

    def teardown(self) -> None:
        """
        Once all works again each message is settled, and each outcome has been
        reported.
        """
        if self.life is None:
            return
        gate, life = self.life.gate, self.life
        self.mode = "ok"
        gate.broken, gate.slow, gate.mute = set(), set(), set()
        life.network.refuse = False
        life.script.onMessage = lambda stream, message: life.answer(
            *[Ack(message_id=message.message_id)] if isinstance(message, DownstreamMessage) else (),
            stream=stream,
        )
        gate.release()
        for stream in list(life.script.streams):
            stream.transport.loseConnection()
        for _ in range(200):
            life.network.advance(20, 5)
            gate.release()
            if not self.outbox._entries and not self.outbox._settled:
                break
        for message_id in self.taken:
            assert self.outbox.decided[message_id] == 1, message_id
            assert self.ok[message_id] or self.bad[message_id] >= 3, message_id
        assert not self.outbox._entries and not self.outbox._settled
        assert isEmpty(life)


def isEmpty(life: Life) -> bool:
    """
    Whether nothing is left in memory of what is settled and reported.
    """
    stored = life.stored
    return not (stored._open or stored._withdrawn or stored._commits or stored._awaited or stored._unsettled)


class AnyOrderTests(SynchronousTestCase):
    """
    The promises of the outbox.
    """

    def test_anyOrder(self) -> None:
        """
        However messages, commits, answers, failures of the store and of the
        handler, and ends of the process follow each other: each message whose
        C{send} fired gets one outcome, which is reported once, or again only
        if the process died before that was recorded; and the order is kept.
        """
        run_state_machine_as_test(
            OutboxMachine, settings=settings(max_examples=40, stateful_step_count=30, deadline=None)
        )
        self.flushLoggedErrors(HandlerFailed)

    def test_slowedAgain(self) -> None:
        """
        A message whose device got too much takes no place while it waits; it
        goes on when its time has come, although another one has that place.
        """
        machine = OutboxMachine()
        machine.begin()
        machine.putIn("tok-A")
        machine.promises()
        machine.send("tok-A", None, 5)
        machine.promises()
        machine.refuse(0, 1, "QUOTA_EXCEEDED")
        machine.promises()
        machine.send("tok-B", None, 1)
        machine.wait(31.0)
        machine.promises()
        machine.teardown()
