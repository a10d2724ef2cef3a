"""
Tests for L{fcmxmpp.session}.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp import session
from fcmxmpp.messages import (
    WINDOW,
    Ack,
    Control,
    DownstreamMessage,
    FromAppServer,
    FromConnectionServer,
    Nack,
    Receipt,
    ReceiptData,
    Unrecognized,
    UpstreamAck,
    UpstreamMessage,
)
from fcmxmpp.session import (
    Answer,
    Answered,
    Dead,
    Draining,
    Foreign,
    Ignored,
    KeepAlive,
    Lost,
    Output,
    Phase,
    Probe,
    Received,
    Role,
    Send,
    Sendable,
    Session,
)
from tests.test_payload import fromAppServer, fromConnectionServer


APP, SERVER = Role.APP_SERVER, Role.CONNECTION_SERVER
OPEN, DRAINING, CLOSED = Phase.OPEN, Phase.DRAINING, Phase.CLOSED

DRAIN = Control(control_type="CONNECTION_DRAINING")


def down(name: str) -> DownstreamMessage:
    """
    What an app server sends.
    """
    return DownstreamMessage(to=f"tok-{name}", message_id=f"m-{name}", data={"k": name})


def up(name: str) -> UpstreamMessage:
    """
    What a connection server sends.
    """
    return UpstreamMessage(from_=f"tok-{name}", message_id=f"u-{name}", data={"k": name})


def receipt(name: str) -> Receipt:
    """
    What a connection server sends, too.
    """
    data = ReceiptData(message_status="MESSAGE_SENT_TO_DEVICE", original_message_id=f"m-{name}")
    return Receipt(data=data, message_id=f"dr2:m-{name}", from_="gcm.googleapis.com")


def ackOf(message: Sendable) -> Ack | UpstreamAck:
    """
    The peer's good answer.
    """
    if isinstance(message, DownstreamMessage):
        return Ack(from_=message.to, message_id=message.message_id or "")
    return message.ack()


def nackOf(message: DownstreamMessage, error: str) -> Nack:
    """
    The peer's bad answer.
    """
    return Nack(from_=message.to, message_id=message.message_id or "", error=error)


def begin(role: Role, phase: Phase) -> Session:
    """
    A session that has come to a phase with C{"a"} and then C{"b"} unanswered,
    unless that is the phase in which nothing is.
    """
    begun = Session(role, 0.0, window=3)
    message = down if role is APP else up
    begun.send(message("a"))
    begun.send(message("b"))
    if phase is DRAINING:
        begun.receive(DRAIN) if role is APP else begun.drain()
    elif phase is CLOSED:
        begun.lost()
    return begun


# The table: for each role and input what comes out, in each phase, and which phase follows.

Input = Callable[[Session], list[Output]]
#: Outputs, or ValueError, and the phase after it.
Outcome = tuple["list[Output] | type[ValueError]", Phase]


def receives(message: FromConnectionServer | FromAppServer) -> Input:
    """
    The input that the peer sent a message.
    """
    return lambda session: session.receive(message)


def unmoved(outputs: list[Output]) -> tuple[Outcome, Outcome, Outcome]:
    """
    The same in both phases of a living stream, nothing on a dead one.
    """
    return (outputs, OPEN), (outputs, DRAINING), ([], CLOSED)


def sends(message: Sendable) -> tuple[Input, tuple[Outcome, Outcome, Outcome]]:
    """
    The row for sending.
    """
    return (
        lambda session: session.send(message),
        (([Send(message)], OPEN), (ValueError, DRAINING), (ValueError, CLOSED)),
    )


def answers(answer: Answer) -> tuple[Input, tuple[Outcome, Outcome, Outcome]]:
    """
    The row for answering.
    """
    return lambda session: session.answer(answer), unmoved([Send(answer)])


def _drainingNack(name: str) -> Nack:
    return Nack(
        from_=f"tok-{name}",
        message_id=f"m-{name}",
        error="CONNECTION_DRAINING",
        error_description="Connection is draining; send on another one",
    )


_new = Control(control_type="NEW")
_unknown = Unrecognized(message_type="new")
_refused = nackOf(down("b"), "CONNECTION_DRAINING")

TABLE: dict[tuple[Role, str], tuple[Input, tuple[Outcome, Outcome, Outcome]]] = {
    (APP, "send"): sends(down("c")),
    (APP, "answer a message"): answers(up("x").ack()),
    (APP, "answer a receipt"): answers(receipt("x").ack()),
    (APP, "receive a message"): (receives(up("x")), unmoved([Received(up("x"))])),
    (APP, "receive a receipt"): (receives(receipt("x")), unmoved([Received(receipt("x"))])),
    (APP, "receive an ACK"): (
        receives(ackOf(down("b"))),
        unmoved([Answered(down("b"), ackOf(down("b")))]),
    ),
    (APP, "receive a NACK"): (
        receives(nackOf(down("a"), "INVALID_JSON")),
        unmoved([Answered(down("a"), nackOf(down("a"), "INVALID_JSON"))]),
    ),
    (APP, "receive a foreign ACK"): (receives(ackOf(down("z"))), unmoved([Foreign(ackOf(down("z")))])),
    (APP, "receive a foreign NACK"): (
        receives(nackOf(down("z"), "CONNECTION_DRAINING")),
        unmoved([Foreign(nackOf(down("z"), "CONNECTION_DRAINING"))]),
    ),
    (APP, "receive draining"): (receives(DRAIN), (([Draining()], DRAINING), ([], DRAINING), ([], CLOSED))),
    (APP, "receive draining as a NACK"): (
        receives(_refused),
        (
            ([Draining(), Answered(down("b"), _refused)], DRAINING),
            ([Answered(down("b"), _refused)], DRAINING),
            ([], CLOSED),
        ),
    ),
    (APP, "receive other control"): (receives(_new), unmoved([Ignored(_new)])),
    (APP, "receive the unknown"): (receives(_unknown), unmoved([Ignored(_unknown)])),
    (APP, "lost"): (
        Session.lost,
        (([Lost((down("a"), down("b")))], CLOSED), ([Lost((down("a"), down("b")))], CLOSED), ([], CLOSED)),
    ),
    (SERVER, "send a message"): sends(up("c")),
    (SERVER, "send a receipt"): sends(receipt("c")),
    (SERVER, "answer with an ACK"): answers(ackOf(down("x"))),
    (SERVER, "answer with a NACK"): answers(nackOf(down("x"), "INVALID_JSON")),
    (SERVER, "receive a message"): (
        receives(down("x")),
        (([Received(down("x"))], OPEN), ([Send(_drainingNack("x"))], DRAINING), ([], CLOSED)),
    ),
    (SERVER, "receive an ACK"): (
        receives(up("b").ack()),
        unmoved([Answered(up("b"), up("b").ack())]),
    ),
    (SERVER, "receive a foreign ACK"): (receives(up("z").ack()), unmoved([Foreign(up("z").ack())])),
    (SERVER, "receive an ACK to another device"): (
        receives(UpstreamAck(to="tok-b", message_id="u-a")),
        unmoved([Foreign(UpstreamAck(to="tok-b", message_id="u-a"))]),
    ),
    (SERVER, "drain"): (Session.drain, (([Send(DRAIN)], DRAINING), ([], DRAINING), ([], CLOSED))),
    (SERVER, "lost"): (
        Session.lost,
        (([Lost((up("a"), up("b")))], CLOSED), ([Lost((up("a"), up("b")))], CLOSED), ([], CLOSED)),
    ),
}


class TableTests(SynchronousTestCase):
    """
    Every input in every phase of either role, as the table in the module's
    docstring has it.
    """

    def assertColumn(self, phase: Phase) -> None:
        """
        Fail unless every input has the right outcome in this phase.
        """
        for (role, name), (happen, outcomes) in TABLE.items():
            expected, after = outcomes[[OPEN, DRAINING, CLOSED].index(phase)]
            begun = begin(role, phase)
            outcome: list[Output] | type[ValueError]
            try:
                outcome = happen(begun)
            except ValueError:
                outcome = ValueError
            self.assertEqual((outcome, begun.phase), (expected, after), f"{role}: {name} while {phase}")

    def test_open(self) -> None:
        """
        While the stream is open, all is possible.
        """
        self.assertColumn(OPEN)

    def test_draining(self) -> None:
        """
        While it is draining nothing new is sent or taken, but all that has
        begun goes on.
        """
        self.assertColumn(DRAINING)

    def test_closed(self) -> None:
        """
        Once it is closed nothing comes out any more.
        """
        self.assertColumn(CLOSED)

    @given(st.sampled_from(Role), st.sampled_from(Phase), st.one_of(fromConnectionServer, fromAppServer))
    def test_anyMessage(
        self, role: Role, phase: Phase, message: FromConnectionServer | FromAppServer
    ) -> None:
        """
        Nothing that the peer may send, be it of the wrong role, makes a
        session raise, and all that comes out are outputs.
        """
        begun = begin(role, phase)
        outputs = begun.receive(message)
        self.assertEqual([output for output in outputs if not isinstance(output, get_args(Output))], [])
        self.assertEqual(outputs == [], phase is CLOSED or (phase is DRAINING and message == DRAIN))


class SendTests(SynchronousTestCase):
    """
    What a session sends, it keeps an eye on.
    """

    def test_begin(self) -> None:
        """
        A new session is open, has its role, and room for a hundred.
        """
        begun = Session(SERVER, 0.0)
        self.assertEqual((begun.role, begun.phase, begun.room, begun.unanswered), (SERVER, OPEN, WINDOW, 0))

    def test_window(self) -> None:
        """
        With as many unanswered as the window holds there is no room, and
        sending more is the caller's bug, which changes nothing (A9, S9).
        """
        for role, message in ((APP, down), (SERVER, up)):
            begun = begin(role, OPEN)
            begun.send(message("c"))
            self.assertEqual((begun.room, begun.unanswered), (0, 3))
            self.assertRaises(ValueError, begun.send, message("d"))
            self.assertFalse(begun.isUnanswered(message("d")))
            self.assertEqual(begun.lost(), [Lost((message("a"), message("b"), message("c")))])

    def test_answerMakesRoom(self) -> None:
        """
        Every answer, good or bad, makes room for one message.
        """
        begun = begin(APP, OPEN)
        begun.receive(ackOf(down("a")))
        self.assertEqual((begun.room, begun.unanswered), (2, 1))
        begun.receive(nackOf(down("b"), "INVALID_JSON"))
        self.assertEqual((begun.room, begun.unanswered), (3, 0))

    def test_answersTakeNoRoom(self) -> None:
        """
        Answers are sent with no room left, and take none (A10).
        """
        begun = Session(APP, 0.0, window=1)
        begun.send(down("a"))
        for name in "wxyz":
            begun.receive(up(name))
            self.assertEqual(begun.answer(up(name).ack()), [Send(up(name).ack())])
        self.assertEqual((begun.room, begun.unanswered), (0, 1))

    def test_foreignAnswerMakesNoRoom(self) -> None:
        """
        An answer to something else, or a second one, changes nothing.
        """
        begun = begin(APP, OPEN)
        begun.receive(ackOf(down("a")))
        self.assertEqual(begun.receive(ackOf(down("a"))), [Foreign(ackOf(down("a")))])
        self.assertEqual(begun.receive(ackOf(down("z"))), [Foreign(ackOf(down("z")))])
        self.assertEqual((begun.room, begun.unanswered), (2, 1))

    def test_sameKeyTwice(self) -> None:
        """
        While a message is unanswered, sending one with its key is the
        caller's bug; afterwards it is not.
        """
        begun = begin(APP, OPEN)
        self.assertRaises(ValueError, begun.send, down("a"))
        begun.receive(nackOf(down("a"), "SERVICE_UNAVAILABLE"))
        self.assertEqual(begun.send(down("a")), [Send(down("a"))])

    def test_sameIDFromTwoDevices(self) -> None:
        """
        Two devices may choose the same id; each message has its own answer.
        """
        begun = Session(SERVER, 0.0)
        one, other = (UpstreamMessage(from_=token, message_id="1") for token in ("tok-A", "tok-B"))
        begun.send(one)
        begun.send(other)
        self.assertEqual(begun.receive(other.ack()), [Answered(other, other.ack())])
        self.assertEqual(begun.lost(), [Lost((one,))])

    def test_noRoomWhenDrainingOrClosed(self) -> None:
        """
        Where nothing may be sent there is no room, though the window has
        some; what is unanswered stays so until the stream is lost.
        """
        for role in Role:
            self.assertEqual((begin(role, DRAINING).room, begin(role, DRAINING).unanswered), (0, 2))
            self.assertEqual((begin(role, CLOSED).room, begin(role, CLOSED).unanswered), (0, 0))

    def test_refusalSaysPhase(self) -> None:
        """
        The error for sending too late says why.
        """
        error = self.assertRaises(ValueError, begin(APP, DRAINING).send, down("c"))
        self.assertEqual(str(error), "nothing may be sent on a stream that is draining")

    def test_isUnanswered(self) -> None:
        """
        It knows what was sent on it and what was answered.
        """
        for role, message in ((APP, down), (SERVER, up)):
            begun = begin(role, OPEN)
            begun.receive(ackOf(message("a")))
            self.assertEqual([begun.isUnanswered(message(name)) for name in "abc"], [False, True, False])

    def test_newerToken(self) -> None:
        """
        The answer comes out whole, with the newer token it may carry (A20).
        """
        for answer in (
            Ack(message_id="m-a", registration_id="tok-new"),
            Nack(message_id="m-a", error="DEVICE_UNREGISTERED", registration_id="tok-new"),
        ):
            self.assertEqual(begin(APP, OPEN).receive(answer), [Answered(down("a"), answer)])


class GiveUpTests(SynchronousTestCase):
    """
    A session forgets a message that will not be answered.
    """

    def test_giveUp(self) -> None:
        """
        It is given back, its place is free, it is not among the lost (A22).
        """
        begun = begin(APP, OPEN)
        self.assertEqual(begun.giveUp("m-a"), down("a"))
        self.assertEqual((begun.room, begun.isUnanswered(down("a"))), (2, False))
        self.assertEqual(begun.lost(), [Lost((down("b"),))])

    def test_twice(self) -> None:
        """
        What is not unanswered cannot be given up.
        """
        begun = begin(APP, OPEN)
        begun.giveUp("m-a")
        self.assertIsNone(begun.giveUp("m-a"))
        self.assertIsNone(begun.giveUp("m-z"))
        self.assertEqual(begun.unanswered, 1)

    def test_lateAnswer(self) -> None:
        """
        An answer that comes after all is a foreign one.
        """
        begun = begin(APP, OPEN)
        begun.giveUp("m-a")
        self.assertEqual(begun.receive(ackOf(down("a"))), [Foreign(ackOf(down("a")))])

    def test_whileDraining(self) -> None:
        """
        On a draining stream it works as well; on a lost one nothing is left.
        """
        self.assertEqual(begin(APP, DRAINING).giveUp("m-a"), down("a"))
        self.assertIsNone(begin(APP, CLOSED).giveUp("m-a"))


class DrainTests(SynchronousTestCase):
    """
    Draining begins once and ends with the stream.
    """

    def test_onceOnly(self) -> None:
        """
        However often and in whatever way the peer says it, it is told once
        (A2, A4).
        """
        begun = begin(APP, OPEN)
        outputs = begun.receive(_refused) + begun.receive(DRAIN) + begun.receive(DRAIN)
        self.assertEqual(outputs, [Draining(), Answered(down("b"), _refused)])

    def test_otherNackDoesNotDrain(self) -> None:
        """
        No other NACK is taken for the beginning of the end.
        """
        begun = begin(APP, OPEN)
        begun.receive(nackOf(down("a"), "SERVICE_UNAVAILABLE"))
        self.assertIs(begun.phase, OPEN)

    def test_allGoesOn(self) -> None:
        """
        While it drains, messages are received and answered on the stream and
        answers are taken (A3).
        """
        begun = begin(APP, DRAINING)
        self.assertEqual(begun.receive(up("x")), [Received(up("x"))])
        self.assertEqual(begun.answer(up("x").ack()), [Send(up("x").ack())])
        self.assertEqual(begun.receive(ackOf(down("a"))), [Answered(down("a"), ackOf(down("a")))])
        self.assertEqual(begun.lost(), [Lost((down("b"),))])

    def test_refusedWhileDrained(self) -> None:
        """
        A connection server that drains refuses what is new, and the refusal
        drains the app server's end as well, if that missed the announcement
        (S11).
        """
        server = begin(SERVER, DRAINING)
        app = begin(APP, OPEN)
        app.send(down("c"))
        [refusal] = server.receive(down("c"))
        assert isinstance(refusal, Send) and isinstance(refusal.message, Nack)
        self.assertEqual(app.receive(refusal.message), [Draining(), Answered(down("c"), refusal.message)])
        self.assertIs(app.phase, DRAINING)


class LivenessTests(SynchronousTestCase):
    """
    Who is silent for too long is asked, and then given up.
    """

    def test_probe(self) -> None:
        """
        The app server's end probes after a minute of silence, not earlier and
        once (A17).
        """
        begun = Session(APP, 1000.0)
        self.assertEqual(begun.wakeAt, 1060.0)
        self.assertEqual(begun.wake(1059.9), [])
        self.assertEqual(begun.wake(1060.0), [Probe()])
        self.assertEqual(begun.wakeAt, 1090.0)
        self.assertEqual(begun.wake(1060.0), [])

    def test_dead(self) -> None:
        """
        Half a minute after the probe the peer is dead; it is told again only
        after as long, in case nobody did anything about it.
        """
        begun = Session(APP, 1000.0)
        begun.wake(1060.0)
        self.assertEqual(begun.wake(1089.9), [])
        self.assertEqual(begun.wake(1090.0), [Dead()])
        self.assertEqual(begun.wake(1119.9), [])
        self.assertEqual(begun.wake(1120.0), [Dead()])

    def test_heard(self) -> None:
        """
        Any byte begins the minute anew.
        """
        begun = Session(APP, 1000.0)
        begun.heard(1030.0)
        self.assertEqual(begun.wakeAt, 1090.0)
        self.assertEqual(begun.wake(1089.9), [])
        self.assertEqual(begun.wake(1090.0), [Probe()])

    def test_heardAfterProbe(self) -> None:
        """
        Any byte after the probe is an answer to it.
        """
        begun = Session(APP, 1000.0)
        begun.wake(1060.0)
        begun.heard(1089.0)
        self.assertEqual(begun.wake(1090.0), [])
        self.assertEqual(begun.wakeAt, 1149.0)
        self.assertEqual(begun.wake(1149.0), [Probe()])

    def test_messagesAreNoSignOfLifeByThemselves(self) -> None:
        """
        Time is told by L{Session.heard} alone: a message that is received
        has no time, so it moves nothing.
        """
        begun = Session(APP, 1000.0)
        begun.receive(up("x"))
        self.assertEqual(begun.wakeAt, 1060.0)

    def test_wokenLate(self) -> None:
        """
        Patience begins with the probe, however late that goes out.
        """
        begun = Session(APP, 1000.0)
        self.assertEqual(begun.wake(1500.0), [Probe()])
        self.assertEqual(begun.wake(1529.9), [])
        self.assertEqual(begun.wake(1530.0), [Dead()])

    def test_times(self) -> None:
        """
        The caller sets both times.
        """
        begun = Session(APP, 0.0, quiet=7.0, patience=5.0)
        self.assertEqual([begun.wakeAt, begun.wake(7.0), begun.wakeAt], [7.0, [Probe()], 12.0])
        self.assertEqual(begun.wake(12.0), [Dead()])

    def test_keepAlive(self) -> None:
        """
        The connection server's end writes a sign of life every minute, heard
        or unheard, and never probes.
        """
        begun = Session(SERVER, 1000.0)
        self.assertEqual(begun.wake(1059.9), [])
        self.assertEqual(begun.wake(1060.0), [KeepAlive()])
        begun.heard(1100.0)
        self.assertEqual((begun.wakeAt, begun.wake(1119.9)), (1120.0, []))
        self.assertEqual(begun.wake(1120.0), [KeepAlive()])
        self.assertEqual(begun.wake(1300.0), [KeepAlive()])
        self.assertEqual(begun.wakeAt, 1360.0)

    def test_keepAliveInterval(self) -> None:
        """
        The caller sets how often.
        """
        self.assertEqual(Session(SERVER, 0.0, quiet=7.0).wakeAt, 7.0)

    def test_draining(self) -> None:
        """
        A draining stream is watched like any other: it is still needed.
        """
        self.assertEqual(begin(APP, DRAINING).wake(60.0), [Probe()])
        self.assertEqual(begin(SERVER, DRAINING).wake(60.0), [KeepAlive()])

    def test_closed(self) -> None:
        """
        A lost stream needs no sign of life.
        """
        for role in Role:
            self.assertEqual(begin(role, CLOSED).wake(1e9), [])

    @given(
        st.sampled_from(Role),
        st.floats(1, 100),
        st.floats(0.01, 1),
        st.lists(st.tuples(st.floats(0, 200), st.booleans())),
    )
    def test_wakeAtNeverMovesBack(
        self, role: Role, quiet: float, share: float, events: list[tuple[float, bool]]
    ) -> None:
        """
        With no more patience than quiet, as the defaults are, the time to
        wake never moves back; waking before it does nothing, waking at it one
        thing, after which it has moved on.
        """
        now = 0.0
        begun = Session(role, now, quiet=quiet, patience=quiet * share)
        for passed, heard in events:
            now += passed
            before = begun.wakeAt
            if heard:
                begun.heard(now)
            else:
                outputs = begun.wake(now)
                self.assertEqual(len(outputs), 1 if now >= before else 0)
                self.assertTrue(begun.wakeAt > now or not outputs)
            self.assertGreaterEqual(begun.wakeAt, before)


class OutputTests(SynchronousTestCase):
    """
    Outputs are values.
    """

    examples: tuple[Output, ...] = (
        Send(down("a")),
        Received(up("a")),
        Answered(down("a"), ackOf(down("a"))),
        Foreign(ackOf(down("a"))),
        Draining(),
        Ignored(_unknown),
        Probe(),
        Dead(),
        KeepAlive(),
        Lost((down("a"),)),
    )

    def test_complete(self) -> None:
        """
        The union has just these classes, and the module exports them all.
        """
        self.assertEqual({type(output) for output in self.examples}, set(get_args(Output)))
        self.assertLessEqual({kind.__name__ for kind in get_args(Output)}, set(session.__all__))

    def test_frozen(self) -> None:
        """
        No field of an output can be changed, and Lost's list is a tuple.
        """
        for output in self.examples:
            self.assertTrue(output.__struct_config__.frozen, output)
            for name in output.__struct_fields__:
                self.assertRaises(AttributeError, setattr, output, name, None)
        [lost] = begin(APP, OPEN).lost()
        assert isinstance(lost, Lost)
        self.assertIs(type(lost.unanswered), tuple)


#: Which of several.
picks = st.integers(0, 11)


class SessionMachine(RuleBasedStateMachine):
    """
    A session next to a list of what is unanswered.
    """

    @initialize(role=st.sampled_from(Role), size=st.integers(1, 4))
    def start(self, role: Role, size: int) -> None:
        """
        Either role, and a window that fills up soon.
        """
        self.session = Session(role, 0.0, window=size)
        self.size = size
        self.phase = OPEN
        self.now = 0.0
        self.sent: list[Sendable] = []
        self.unanswered: list[Sendable] = []
        #: How each message that was sent ended.
        self.ended: list[Sendable] = []

    def check(self, outputs: list[Output], expected: list[Output]) -> None:
        """
        Note what came out, and see that it is right and cannot be changed.
        """
        assert outputs == expected
        for output in outputs:
            assert output.__struct_config__.frozen
            if isinstance(output, Send) and isinstance(output.message, Sendable):
                assert self.phase is OPEN
                self.sent.append(output.message)
                self.unanswered.append(output.message)
            elif isinstance(output, Answered):
                self.unanswered.remove(output.message)
                self.ended.append(output.message)
            elif isinstance(output, Draining) or output == Send(DRAIN):
                assert self.phase is OPEN
                self.phase = DRAINING
            elif isinstance(output, Lost):
                assert list(output.unanswered) == self.unanswered
                self.phase = CLOSED
                self.unanswered.clear()
                self.ended += output.unanswered

    def message(self, name: str) -> Sendable:
        """
        Something that this role sends.
        """
        if self.session.role is APP:
            return down(name)
        return receipt(name) if len(name) % 2 else up(name)

    @rule()
    def send(self) -> None:
        """
        Something new is to be sent.
        """
        message = self.message(str(len(self.sent)))
        allowed = self.phase is OPEN and len(self.unanswered) < self.size
        assert (self.session.room > 0) is allowed
        try:
            outputs = self.session.send(message)
        except ValueError:
            assert not allowed
        else:
            assert allowed
            self.check(outputs, [Send(message)])

    @precondition(lambda self: self.unanswered)
    @rule(which=picks)
    def sendAgain(self, which: int) -> None:
        """
        Something is to be sent though it is unanswered.
        """
        try:
            self.session.send(self.pick(which))
        except ValueError:
            return
        raise AssertionError("sent twice")

    def pick(self, which: int) -> Sendable:
        """
        One of those that are unanswered.
        """
        return self.unanswered[which % len(self.unanswered)]

    @precondition(lambda self: self.unanswered)
    @rule(which=picks)
    def peerAcks(self, which: int) -> None:
        """
        The peer accepts any of them.
        """
        message = self.pick(which)
        self.check(self.session.receive(ackOf(message)), [Answered(message, ackOf(message))])

    @precondition(lambda self: self.unanswered and self.session.role is APP)
    @rule(which=picks, error=st.sampled_from(["INVALID_JSON", "SERVICE_UNAVAILABLE", "CONNECTION_DRAINING"]))
    def peerNacks(self, which: int, error: str) -> None:
        """
        The peer refuses any of them.
        """
        message = self.pick(which)
        assert isinstance(message, DownstreamMessage)
        nack = nackOf(message, error)
        drains: list[Output] = [Draining()] if error == "CONNECTION_DRAINING" and self.phase is OPEN else []
        self.check(self.session.receive(nack), [*drains, Answered(message, nack)])

    @rule(which=picks)
    def peerAnswersSomethingElse(self, which: int) -> None:
        """
        The peer answers what was never sent, or has ended.
        """
        message = self.ended[which % len(self.ended)] if self.ended else self.message("never")
        if message not in self.unanswered:
            expected: list[Output] = [] if self.phase is CLOSED else [Foreign(ackOf(message))]
            self.check(self.session.receive(ackOf(message)), expected)

    @precondition(lambda self: self.ended)
    @rule(which=picks)
    def retry(self, which: int) -> None:
        """
        What has ended is sent once more, for as long as that is possible.
        """
        message = self.ended[which % len(self.ended)]
        if self.session.room and message not in self.unanswered:
            self.check(self.session.send(message), [Send(message)])

    @precondition(lambda self: self.unanswered and self.session.role is APP)
    @rule(which=picks)
    def giveUp(self, which: int) -> None:
        """
        The caller gives up one of them.
        """
        message = self.pick(which)
        assert isinstance(message, DownstreamMessage) and message.message_id is not None
        assert self.session.giveUp(message.message_id) == message
        self.unanswered.remove(message)
        self.ended.append(message)

    @rule()
    def peerSends(self) -> None:
        """
        The peer sends something that wants an answer, which goes out at once.
        """
        if self.session.role is APP:
            self.check(self.session.receive(up("x")), [] if self.phase is CLOSED else [Received(up("x"))])
            answer: Answer = up("x").ack()
        else:
            outcomes: dict[Phase, list[Output]] = {
                OPEN: [Received(down("x"))],
                DRAINING: [Send(_drainingNack("x"))],
                CLOSED: [],
            }
            self.check(self.session.receive(down("x")), outcomes[self.phase])
            answer = ackOf(down("x"))
        self.check(self.session.answer(answer), [] if self.phase is CLOSED else [Send(answer)])

    @rule(passed=st.floats(0, 50), heard=st.booleans())
    def timePasses(self, passed: float, heard: bool) -> None:
        """
        Time passes, which is nothing to the messages.
        """
        self.now += passed
        if heard:
            self.session.heard(self.now)
        outputs = self.session.wake(self.now)
        assert len(outputs) <= (self.phase is not CLOSED)
        self.check(outputs, outputs)

    @precondition(lambda self: len(self.sent) > 3)
    @rule()
    def drain(self) -> None:
        """
        The connection server's end begins to drain the stream.
        """
        if self.session.role is APP:
            self.check(self.session.receive(DRAIN), [Draining()] if self.phase is OPEN else [])
        else:
            self.check(self.session.drain(), [Send(DRAIN)] if self.phase is OPEN else [])

    @precondition(lambda self: len(self.sent) > 3)
    @rule()
    def lost(self) -> None:
        """
        The stream is lost.
        """
        expected: list[Output] = [] if self.phase is CLOSED else [Lost(tuple(self.unanswered))]
        self.check(self.session.lost(), expected)

    @invariant()
    def same(self) -> None:
        """
        Both agree, and never is there more unanswered than the window holds.
        """
        assert self.session.phase is self.phase
        assert self.session.unanswered == len(self.unanswered) <= self.size
        assert self.session.room == (self.size - len(self.unanswered) if self.phase is OPEN else 0)
        assert all(self.session.isUnanswered(message) for message in self.unanswered)

    def teardown(self) -> None:
        """
        In the end, everything that was sent has ended, each just once.
        """
        if hasattr(self, "session"):
            self.lost()
            assert sorted(map(repr, self.ended)) == sorted(map(repr, self.sent))


class MachineTests(SynchronousTestCase):
    """
    Whatever happens, in whatever order, the promises hold.
    """

    def test_session(self) -> None:
        """
        A session never has more unanswered than its window holds; each
        message that it sent ends exactly once; what is lost keeps its order;
        nothing is sent once it drains.
        """
        run_state_machine_as_test(SessionMachine)
