"""
App server and connection server together, in memory, through whatever may
happen: sends both ways, drains, cuts, NACKs, delays and stops.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.delivery import Policy
from fcmxmpp.errors import HandlerUnavailable, Nacked, Stopped
from fcmxmpp.interfaces import Refused
from fcmxmpp.messages import WINDOW, Ack, DownstreamMessage, UpstreamMessage
from fcmxmpp.server.simulated import SimulatedDevice
from fcmxmpp.testing import SENDER_ID, ConnectedPair, RecordingHandler


TOKENS = ("tok-A", "tok-B", "tok-C")
PASSING = ("SERVICE_UNAVAILABLE", "INTERNAL_SERVER_ERROR", "DEVICE_MESSAGE_RATE_EXCEEDED", "NEWS_TO_US")
FINAL = ("BAD_REGISTRATION", "DEVICE_UNREGISTERED")
#: Longer than any delay that there is.
LONG = 1500.0


class _Application:
    """
    A handler that takes its time and fails now and then.

    @ivar handled: how often each message was handled to the end.
    @ivar order: the messages, in the order in which they were first given.
    @ivar manner: what to do with the next messages.
    """

    def __init__(self, clock: Callable[[], Any]) -> None:
        self._clock = clock
        self._failed: Counter[str] = Counter()
        self._running: Counter[str] = Counter()
        self.overlaps: list[str] = []
        self.handled: Counter[str] = Counter()
        self.order: list[str] = []
        self.manner = "at once"

    def __call__(self, message: Any) -> Deferred[None] | None:
        """
        Handle a message.
        """
        name = message.message_id
        if name not in self.order:
            self.order.append(name)
        if self.manner == "fail once" and not self._failed[name]:
            self._failed[name] += 1
            raise ValueError("asked to fail")
        if self.manner == "unavailable once" and not self._failed[name]:
            self._failed[name] += 1
            raise HandlerUnavailable("asked to")
        if self.manner == "slow":
            self._running[message.from_] += 1
            if self._running[message.from_] > 1:
                self.overlaps.append(name)
            result: Deferred[None] = deferLater(self._clock(), 1.5, self._done, message)
            return result
        self.handled[name] += 1
        return None

    def _done(self, message: UpstreamMessage) -> None:
        """
        A slow message is handled.
        """
        self._running[message.from_] -= 1
        self.handled[message.message_id] += 1


class Together(RuleBasedStateMachine):
    """
    Both servers, and what has been sent.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []
        self.outcomes: dict[str, list[Any]] = {}
        self.permanent: set[str] = set()
        self.excused = 0
        self.stanzaErrors: list[Any] = []
        self.pair: ConnectedPair | None = None
        globalLogPublisher.addObserver(self.logged)

    def logged(self, event: Any) -> None:
        """
        Note the stanza errors that the app server is sent.
        """
        if "stanza error" in (event.get("log_format") or ""):
            self.stanzaErrors.append(event.get("code"))

    @initialize(
        connections=st.integers(1, 4),
        ack=st.sampled_from(["handled", "received"]),
        ordered=st.booleans(),
    )
    def start(self, connections: int, ack: str, ordered: bool) -> None:
        """
        Start both.
        """
        self.connections = connections
        self.ordered = ordered
        self.application = _Application(lambda: self.joined.clock)
        policy = Policy(ack=ack, ordered=ordered, handlerTries=3)
        self.pair = ConnectedPair(RecordingHandler(self.application), policy, connections=connections)
        server = self.joined.connectionServer
        self.devices = {
            token: SimulatedDevice(server, SENDER_ID, token) if token != "tok-A" else self.joined.device
            for token in TOKENS
        }

    @property
    def joined(self) -> ConnectedPair:
        """
        Both, started.
        """
        assert self.pair is not None
        return self.pair

    # What may happen.

    @rule(count=st.integers(1, 30), token=st.sampled_from(TOKENS))
    def upstream(self, count: int, token: str) -> None:
        """
        A device sends messages.
        """
        for _ in range(count):
            name = f"m-{len(self.sent)}"
            self.sent.append(name)
            self.devices[token].send(name, {"op": "test"}).addErrback(lambda failure: None)
        self.joined.pump()

    @rule(count=st.integers(1, 70), token=st.sampled_from(TOKENS))
    def downstream(self, count: int, token: str) -> None:
        """
        The application sends messages.
        """
        self.send(count, token)
        self.joined.pump()

    def send(self, count: int, token: str) -> None:
        """
        The same, with nothing carried yet.
        """
        for _ in range(count):
            name = f"d-{len(self.outcomes)}"
            outcomes = self.outcomes[name] = []
            self.joined.appServer.send(DownstreamMessage(to=token, message_id=name)).addBoth(outcomes.append)

    @rule(seconds=st.sampled_from([0.5, 2.0, 5.0]))
    def answerLate(self, seconds: float) -> None:
        """
        The connection server is slow from now on.
        """
        self.joined.connectionServer.script.clear()
        self.joined.connectionServer.script.delay(seconds)

    @rule(error=st.sampled_from(PASSING + FINAL), times=st.integers(1, 40), token=st.sampled_from(TOKENS))
    def nack(self, error: str, times: int, token: str) -> None:
        """
        The connection server will refuse some messages.
        """
        self.joined.connectionServer.script.clear()
        self.joined.connectionServer.script.nack(error, to=token, times=times)

    @rule()
    def answerWell(self) -> None:
        """
        The connection server is as ever.
        """
        self.joined.connectionServer.script.clear()

    @rule(which=st.integers(0, 7), grace=st.sampled_from([0.0, 0.5, 3.0]))
    def drain(self, which: int, grace: float) -> None:
        """
        A connection is drained.
        """
        streams = self.joined.connectionServer.streams()
        if streams:
            self.joined.connectionServer.drain(grace, [streams[which % len(streams)]])
            self.joined.pump()

    @rule()
    def drainAll(self) -> None:
        """
        All connections are drained.
        """
        self.joined.connectionServer.drain(2.0)
        self.joined.pump()

    @rule(count=st.integers(1, 50), token=st.sampled_from(TOKENS))
    def drainByNack(self, count: int, token: str) -> None:
        """
        A connection is drained while messages come on it: those are refused.
        """
        script = self.joined.connectionServer.script
        script.clear()
        script.drain(to=token, grace=1.0)
        before = self.refusedDraining
        self.send(count, token)
        self.joined.pump()
        script.clear()
        self.excused += self.refusedDraining - before

    @rule(which=st.integers(0, 7))
    def cut(self, which: int) -> None:
        """
        A connection breaks.
        """
        streams = self.joined.connectionServer.streams()
        if streams:
            streams[which % len(streams)].abort()
            self.joined.pump()

    @rule()
    def cutAll(self) -> None:
        """
        All connections break, with what is under way on them.
        """
        self.joined.cut()
        self.joined.pump()

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0, 20.0]))
    def wait(self, seconds: float) -> None:
        """
        Time passes.
        """
        self.joined.advance(seconds, 0.5)

    @rule(manner=st.sampled_from(["at once", "slow", "fail once", "unavailable once"]))
    def handle(self, manner: str) -> None:
        """
        The application handles messages in another manner from now on.
        """
        self.application.manner = manner

    # What has to hold.

    @property
    def refusedDraining(self) -> int:
        """
        How many messages were refused because their stream was being drained.
        """
        return len([e for e in self.joined.observer.of(Refused) if e.error == "CONNECTION_DRAINING"])

    @invariant()
    def settlesAtMostOnce(self) -> None:
        """
        No Deferred fires twice (it could not), and each outcome is an ACK or
        the refusal that was asked for.
        """
        for name, outcomes in self.outcomes.items():
            assert len(outcomes) <= 1, name
            for outcome in outcomes:
                if isinstance(outcome, Failure):
                    assert isinstance(outcome.value, Nacked), outcome
                    assert outcome.value.error in FINAL, outcome
                else:
                    assert isinstance(outcome, Ack), outcome

    @invariant()
    def keepsToTheWindow(self) -> None:
        """
        Never more than 100 messages are unanswered on a stream, in either
        direction.
        """
        if self.pair is not None:
            for stream in self.pair.connectionServer.streams():
                assert stream.session is not None
                assert stream.session.owed <= WINDOW
                assert stream.unanswered <= WINDOW

    @invariant()
    def nothingNewWhileDraining(self) -> None:
        """
        Nothing is sent on a stream once it is known to be drained.
        """
        if self.pair is not None:
            assert self.refusedDraining == self.excused

    @invariant()
    def handlesOnce(self) -> None:
        """
        No message is handled twice; every ACK is for a message that its stream
        brought; where devices have an order, none overtakes another.
        """
        if self.pair is not None:
            assert [name for name, times in self.application.handled.items() if times > 1] == []
            assert self.stanzaErrors == []
            if self.ordered:
                assert self.application.overlaps == []

    def teardown(self) -> None:
        """
        Calm returns: everything that was sent arrives, and is told; after the
        stop nothing is left.
        """
        globalLogPublisher.removeObserver(self.logged)
        if self.pair is None:
            return
        self.pair.connectionServer.script.clear()
        self.pair.advance(LONG, 5.0)
        self.settlesAtMostOnce()
        assert set(self.sent) == set(self.application.handled)
        self.handlesOnce()
        told = [name for device in self.devices.values() for name in device.delivered]
        assert sorted(self.sent) == sorted(told)
        assert [name for name, outcomes in self.outcomes.items() if not outcomes] == []
        assert self.connections == self.pair.network.connections
        self.stop()

    def stop(self) -> None:
        """
        Stop with work in both directions.
        """
        pair = self.joined
        self.application.manner = "slow"
        pair.connectionServer.script.delay(3.0)
        self.upstream(5, "tok-A")
        self.send(150, "tok-B")
        # One that would be there for long.
        pair.connectionServer.drain(60.0, pair.connectionServer.streams()[:1])
        stopped: list[object] = []
        pair.stop().addBoth(stopped.append)
        for _ in range(80):
            if not stopped:
                pair.advance(0.5)
        assert stopped == [None], stopped
        assert pair.network.connections == 0
        pair.advance(10.0)
        for name, outcomes in self.outcomes.items():
            assert len(outcomes) == 1, name
            if isinstance(outcomes[0], Failure):
                assert isinstance(outcomes[0].value, (Nacked, Stopped)), outcomes
        told = [name for device in self.devices.values() for name in device.delivered]
        assert set(told) <= set(self.application.handled)
        self.handlesOnce()
        assert pair.clock.getDelayedCalls() == [], pair.clock.getDelayedCalls()


class TogetherTests(SynchronousTestCase):
    """
    The state machine as a test.
    """

    def test_anything(self) -> None:
        """
        Whatever happens, every send settles exactly once, no link has more
        than its window, every upstream message is handled exactly once and
        acknowledged on the stream that brought it, nothing new goes out on a
        draining link, and in the end no timer and no socket is left.
        """
        run_state_machine_as_test(
            Together,
            settings=settings(
                max_examples=40,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
        # Handlers that were asked to fail.
        self.flushLoggedErrors()
