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
    OVERRUN,
    Answer,
    Answered,
    Dead,
    Draining,
    Foreign,
    Ignored,
    KeepAlive,
    Lost,
    Output,
    Overdue,
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
    begun.send(message("a"), 0.0)
    begun.send(message("b"), 0.0)
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
        lambda session: session.send(message, 0.0),
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
        error_description="Send on another connection",
    )


def _overrunNack(name: str) -> Nack:
    return Nack(
        from_=f"tok-{name}",
        message_id=f"m-{name}",
        error="SERVICE_UNAVAILABLE",
        error_description="Too many messages without an answer",
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
    (APP, "no answer in time"): (
        lambda session: [session.heard(110.0), session.wake(120.0)][1],
        unmoved([Overdue(down("a")), Overdue(down("b")), Probe()]),
    ),
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
            begun.send(message("c"), 0.0)
            self.assertEqual((begun.room, begun.unanswered), (0, 3))
            self.assertRaises(ValueError, begun.send, message("d"), 0.0)
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
        begun.send(down("a"), 0.0)
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
        self.assertRaises(ValueError, begun.send, down("a"), 0.0)
        begun.receive(nackOf(down("a"), "SERVICE_UNAVAILABLE"))
        self.assertEqual(begun.send(down("a"), 0.0), [Send(down("a"))])

    def test_sameIDFromTwoDevices(self) -> None:
        """
        Two devices may choose the same id; each message has its own answer.
        """
        begun = Session(SERVER, 0.0)
        one, other = (UpstreamMessage(from_=token, message_id="1") for token in ("tok-A", "tok-B"))
        begun.send(one, 0.0)
        begun.send(other, 0.0)
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
        error = self.assertRaises(ValueError, begin(APP, DRAINING).send, down("c"), 0.0)
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

    def test_take(self) -> None:
        """
        It is given back, its place is free, it is not among the lost (A22).
        """
        begun = begin(APP, OPEN)
        self.assertEqual(begun.take("m-a"), down("a"))
        self.assertEqual((begun.room, begun.isUnanswered(down("a"))), (2, False))
        self.assertEqual(begun.lost(), [Lost((down("b"),))])

    def test_twice(self) -> None:
        """
        What is not unanswered cannot be given up.
        """
        begun = begin(APP, OPEN)
        begun.take("m-a")
        self.assertIsNone(begun.take("m-a"))
        self.assertIsNone(begun.take("m-z"))
        self.assertEqual(begun.unanswered, 1)

    def test_lateAnswer(self) -> None:
        """
        An answer that comes after all is a foreign one.
        """
        begun = begin(APP, OPEN)
        begun.take("m-a")
        self.assertEqual(begun.receive(ackOf(down("a"))), [Foreign(ackOf(down("a")))])

    def test_whileDraining(self) -> None:
        """
        On a draining stream it works as well; on a lost one nothing is left.
        """
        self.assertEqual(begin(APP, DRAINING).take("m-a"), down("a"))
        self.assertIsNone(begin(APP, CLOSED).take("m-a"))


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
        app.send(down("c"), 0.0)
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
        self.assertIs(begun.heard(1030.0), False)
        self.assertEqual(begun.wakeAt, 1090.0)
        self.assertEqual(begun.wake(1089.9), [])
        self.assertEqual(begun.wake(1090.0), [Probe()])

    def test_heardAfterProbe(self) -> None:
        """
        Any byte after the probe is an answer to it.
        """
        begun = Session(APP, 1000.0)
        begun.wake(1060.0)
        self.assertIs(begun.heard(1089.0), True)
        self.assertIs(begun.heard(1089.0), False)
        self.assertEqual(begun.wake(1090.0), [])
        self.assertEqual(begun.wakeAt, 1149.0)
        self.assertEqual(begun.wake(1149.0), [Probe()])

    def test_noRoomWhileProbed(self) -> None:
        """
        Until the probe is answered there is no room, and sending is the
        caller's bug; then there is as much as there was.
        """
        begun = begin(APP, OPEN)
        begun.wake(60.0)
        self.assertEqual((begun.room, begun.unanswered), (0, 2))
        error = self.assertRaises(ValueError, begun.send, down("c"), 60.0)
        self.assertEqual(str(error), "nothing may be sent while a probe is unanswered")
        self.assertFalse(begun.isUnanswered(down("c")))
        begun.wake(90.0)
        self.assertEqual(begun.room, 0)
        begun.heard(91.0)
        self.assertEqual(begun.room, 1)
        self.assertEqual(begun.send(down("c"), 91.0), [Send(down("c"))])

    def test_probedGoesOn(self) -> None:
        """
        What crosses the probe is received, answered and taken as an answer.
        """
        begun = begin(APP, OPEN)
        begun.wake(60.0)
        self.assertEqual(begun.receive(up("x")), [Received(up("x"))])
        self.assertEqual(begun.answer(up("x").ack()), [Send(up("x").ack())])
        self.assertEqual(begun.receive(ackOf(down("a"))), [Answered(down("a"), ackOf(down("a")))])
        self.assertEqual(begun.lost(), [Lost((down("b"),))])

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


class AnswerWithinTests(SynchronousTestCase):
    """
    No message of an app server is waited for longer than it has to be.
    """

    def session(self, answerWithin: float = 50.0) -> Session:
        """
        A session that waits less long for an answer than for a sign of life,
        with C{"a"} sent at 1000, C{"b"} at 1010 and C{"c"} at 1020.
        """
        begun = Session(APP, 1000.0, answerWithin=answerWithin)
        for name, now in (("a", 1000.0), ("b", 1010.0), ("c", 1020.0)):
            begun.send(down(name), now)
        begun.heard(1020.0)
        return begun

    def test_overdue(self) -> None:
        """
        A message without an answer comes out when its time is up, not
        earlier; the peer is probed, though it has been heard (A11).
        """
        begun = self.session()
        self.assertEqual(begun.wakeAt, 1050.0)
        self.assertEqual(begun.wake(1049.9), [])
        self.assertEqual(begun.wake(1050.0), [Overdue(down("a")), Probe()])
        self.assertEqual(begun.wake(1050.0), [])

    def test_each(self) -> None:
        """
        Each message has a time of its own; those whose time is up come out in
        the order they were sent.
        """
        begun = self.session()
        self.assertEqual(begun.wake(1060.0), [Overdue(down("a")), Overdue(down("b")), Probe()])
        self.assertEqual(begun.wakeAt, 1070.0)
        self.assertEqual((begun.unanswered, begun.isUnanswered(down("c"))), (1, True))

    def test_sleep(self) -> None:
        """
        After the machine slept, or its clock was set forward, nothing is given
        up at once, because the answers may be there to be read: the peer is
        probed, and everything has some time more; after that it goes on as
        ever.
        """
        begun = self.session()
        self.assertEqual(begun.wake(1050.0 + 30.1 + 3600.0), [Probe()])
        now = 1050.0 + 30.1 + 3600.0
        self.assertEqual((begun.unanswered, begun.wakeAt), (3, now + 30.0))
        self.assertEqual(begun.receive(ackOf(down("b"))), [Answered(down("b"), ackOf(down("b")))])
        begun.heard(now + 1.0)
        self.assertEqual(begun.wakeAt, now + 30.0)
        self.assertEqual(begun.wake(now + 30.0), [Overdue(down("a")), Probe()])
        self.assertEqual(begun.wake(now + 50.0), [Overdue(down("c"))])
        # And if nobody answers any more, that is found out as well.
        self.assertEqual(begun.wake(now + 60.0), [Dead()])

    def test_forgotten(self) -> None:
        """
        It has left its place, is not among the lost, its answer is a foreign
        one, and one with its key may be sent.
        """
        begun = self.session()
        begun.wake(1060.0)
        begun.heard(1061.0)
        self.assertEqual(begun.room, WINDOW - 1)
        self.assertEqual(begun.receive(ackOf(down("a"))), [Foreign(ackOf(down("a")))])
        self.assertEqual(begun.send(down("b"), 1061.0), [Send(down("b"))])
        self.assertEqual(begun.lost(), [Lost((down("c"), down("b")))])

    def test_ended(self) -> None:
        """
        What was answered or given up is never overdue, wherever it stood; nor
        is anything once the stream is lost.
        """
        begun = self.session()
        begun.receive(ackOf(down("a")))
        self.assertEqual(begun.wakeAt, 1060.0)
        begun.take("m-c")
        self.assertEqual(begun.wake(1080.0), [Overdue(down("b")), Probe()])
        begun = self.session()
        begun.lost()
        self.assertEqual(begun.wake(1200.0), [])

    def test_sentAgain(self) -> None:
        """
        The time of a message that is sent again begins with that, and those
        that were sent before it come first.
        """
        begun = self.session()
        begun.receive(nackOf(down("a"), "SERVICE_UNAVAILABLE"))
        begun.send(down("a"), 1030.0)
        self.assertEqual(begun.wake(1060.0), [Overdue(down("b")), Probe()])
        self.assertEqual(begun.wake(1080.0), [Overdue(down("c")), Overdue(down("a"))])

    def test_oneProbe(self) -> None:
        """
        While a probe is unanswered there is no second one, and the patience
        for it is not renewed; a later one has its own.
        """
        begun = self.session()
        begun.wake(1050.0)
        self.assertEqual(begun.wake(1060.0), [Overdue(down("b"))])
        self.assertEqual(begun.wake(1080.0), [Overdue(down("c")), Dead()])
        begun = self.session()
        begun.wake(1050.0)
        begun.heard(1055.0)
        self.assertEqual(begun.wake(1060.0), [Overdue(down("b")), Probe()])
        self.assertEqual(begun.wakeAt, 1070.0)
        self.assertEqual(begun.wake(1070.0), [Overdue(down("c"))])
        self.assertEqual((begun.wakeAt, begun.wake(1090.0)), (1090.0, [Dead()]))

    def test_heardDoesNotHelp(self) -> None:
        """
        A peer that says all sorts of things but answers not is still probed.
        """
        begun = self.session()
        begun.receive(up("x"))
        begun.heard(1050.0)
        self.assertEqual(begun.wake(1050.0), [Overdue(down("a")), Probe()])

    def test_deadPeerFirst(self) -> None:
        """
        As the defaults are, a peer that died before a message was sent is
        found before that is overdue, so that it goes to the next stream (A17).
        """
        begun = Session(APP, 1000.0)
        begun.send(down("a"), 1000.0)
        outputs = []
        while Dead() not in outputs:
            outputs += begun.wake(begun.wakeAt)
        self.assertEqual(outputs + begun.lost(), [Probe(), Dead(), Lost((down("a"),))])

    def test_default(self) -> None:
        """
        By default a message is waited for two minutes.
        """
        begun = Session(APP, 1000.0)
        begun.send(down("a"), 1000.0)
        begun.heard(1100.0)
        self.assertEqual(begun.wake(1119.9), [])
        self.assertEqual(begun.wake(1120.0), [Overdue(down("a")), Probe()])

    def test_idle(self) -> None:
        """
        With nothing unanswered the session wants to be woken as often as
        would do for a message that is sent next, and then does nothing.
        """
        begun = Session(APP, 1000.0, answerWithin=10.0)
        self.assertEqual(begun.wakeAt, 1010.0)
        begun.send(down("a"), 1001.0)
        begun.receive(ackOf(down("a")))
        self.assertEqual((begun.wakeAt, begun.wake(1011.0), begun.wakeAt), (1011.0, [], 1021.0))

    def test_serverWaits(self) -> None:
        """
        A connection server waits for an ACK for as long as it takes: the
        handler may be at it.
        """
        begun = Session(SERVER, 1000.0, answerWithin=10.0)
        begun.send(up("a"), 1000.0)
        self.assertEqual((begun.wakeAt, begun.wake(1e6)), (1060.0, [KeepAlive()]))
        self.assertEqual(begun.lost(), [Lost((up("a"),))])


class OverrunTests(SynchronousTestCase):
    """
    An app server that does not wait for our answers is stopped, gently.
    """

    def receive(self, begun: Session, names: range) -> list[Output]:
        """
        What comes out when the peer sends all of these.
        """
        return [output for name in names for output in begun.receive(down(str(name)))]

    def test_tolerated(self) -> None:
        """
        A window and some more are taken; what is beyond is NACKed, each by
        its own name, and the stream stays (S12).
        """
        begun = Session(SERVER, 0.0)
        most = WINDOW + OVERRUN
        self.assertEqual(
            self.receive(begun, range(most + 2)),
            [Received(down(str(name))) for name in range(most)]
            + [Send(_overrunNack(str(name))) for name in range(most, most + 2)],
        )
        self.assertIs(begun.phase, OPEN)

    def test_answerMakesRoom(self) -> None:
        """
        Each answer, good or bad, lets one more pass; a NACK for the overrun
        does not, because what it answers was never taken.
        """
        begun = Session(SERVER, 0.0, window=1)
        self.receive(begun, range(OVERRUN + 3))
        for answer in (ackOf(down("0")), nackOf(down("1"), "INVALID_JSON")):
            begun.answer(answer)
            self.assertEqual(
                begun.receive(down("x")) + begun.receive(down("y")),
                [Received(down("x")), Send(_overrunNack("y"))],
            )

    def test_whoeverItIsTo(self) -> None:
        """
        The NACK names whatever the message was for, and has a C{message_id}
        even if the message has none.
        """
        begun = Session(SERVER, 0.0, window=1)
        self.receive(begun, range(OVERRUN + 1))
        for message, from_, message_id in (
            (DownstreamMessage(condition="'a' in topics", message_id="m-x"), "'a' in topics", "m-x"),
            (DownstreamMessage(to="tok-x"), "tok-x", ""),
            (DownstreamMessage(message_id="m-x"), None, "m-x"),
        ):
            [refusal] = begun.receive(message)
            assert isinstance(refusal, Send) and isinstance(refusal.message, Nack)
            self.assertEqual((refusal.message.from_, refusal.message.message_id), (from_, message_id))

    def test_drainingFirst(self) -> None:
        """
        While the stream is drained it says so, for then another stream helps;
        what it took before is still answered.
        """
        begun = Session(SERVER, 0.0, window=1)
        self.receive(begun, range(OVERRUN + 1))
        begun.drain()
        self.assertEqual(begun.receive(down("x")), [Send(_drainingNack("x"))])
        self.assertEqual(begun.answer(ackOf(down("0"))), [Send(ackOf(down("0")))])

    def test_otherDirection(self) -> None:
        """
        What a connection server itself sends has nothing to do with it, and
        an app server's end takes whatever comes: it is the server's part to
        keep its window.
        """
        begun = Session(SERVER, 0.0, window=1)
        begun.send(up("a"), 0.0)
        self.assertEqual(len(self.receive(begun, range(OVERRUN + 1))), OVERRUN + 1)
        self.assertEqual(begun.receive(up("a").ack()), [Answered(up("a"), up("a").ack())])
        self.assertEqual(begun.receive(down("x")), [Send(_overrunNack("x"))])
        begun = Session(APP, 0.0, window=1)
        for name in map(str, range(OVERRUN + 2)):
            self.assertEqual(begun.receive(up(name)), [Received(up(name))])


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
        Overdue(down("a")),
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
    A session next to a list of what is unanswered, and one timer, as its shell
    has it: set when it has gone off, and not moved in between.
    """

    @initialize(
        role=st.sampled_from(Role),
        size=st.integers(1, 4),
        patience=st.sampled_from([30.0, 60.0]),
        answerWithin=st.sampled_from([20.0, 60.0, 150.0]),
    )
    def start(self, role: Role, size: int, patience: float, answerWithin: float) -> None:
        """
        Either role, a window that fills up soon, and an answer awaited for
        less, as much and more time than a sign of life.
        """
        self.session = Session(
            role, 0.0, window=size, quiet=60.0, patience=patience, answerWithin=answerWithin
        )
        self.size = size
        self.patience = patience
        self.answerWithin = answerWithin
        self.phase = OPEN
        self.now = 0.0
        self.timer = self.wakeAt = self.session.wakeAt
        self.heardAt = 0.0
        #: When the last probe went out, or the peer was said to be dead.
        self.probedAt: float | None = None
        #: How many of the peer's messages wait for an answer.
        self.owed = 0
        #: When each message was sent last.
        self.sentAt: dict[str | None, float] = {}
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
                assert self.phase is OPEN and self.probedAt is None
                self.sent.append(output.message)
                self.sentAt[output.message.message_id] = self.now
                self.unanswered.append(output.message)
            elif isinstance(output, Answered | Overdue):
                self.unanswered.remove(output.message)
                self.ended.append(output.message)
            elif isinstance(output, Probe | Dead):
                self.probedAt = self.now
            elif isinstance(output, Received):
                self.owed += 1
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
        allowed = self.phase is OPEN and self.probedAt is None and len(self.unanswered) < self.size
        assert (self.session.room > 0) is allowed
        try:
            outputs = self.session.send(message, self.now)
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
            self.session.send(self.pick(which), self.now)
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
            self.check(self.session.send(message, self.now), [Send(message)])

    @precondition(lambda self: self.unanswered and self.session.role is APP)
    @rule(which=picks)
    def take(self, which: int) -> None:
        """
        The caller gives up one of them.
        """
        message = self.pick(which)
        assert isinstance(message, DownstreamMessage) and message.message_id is not None
        assert self.session.take(message.message_id) == message
        self.unanswered.remove(message)
        self.ended.append(message)

    @rule(many=st.integers(1, 15))
    def peerSends(self, many: int) -> None:
        """
        The peer sends what wants answers, perhaps without waiting for any.
        """
        for _ in range(many):
            if self.phase is CLOSED:
                expected: list[Output] = []
            elif self.session.role is APP:
                expected = [Received(up("x"))]
            elif self.phase is DRAINING:
                expected = [Send(_drainingNack("x"))]
            elif self.owed == self.size + OVERRUN:
                expected = [Send(_overrunNack("x"))]
            else:
                expected = [Received(down("x"))]
            self.check(self.session.receive(up("x") if self.session.role is APP else down("x")), expected)

    @precondition(lambda self: self.owed)
    @rule(many=st.integers(1, 15))
    def answer(self, many: int) -> None:
        """
        Some of the peer's messages get their answers.
        """
        answer: Answer = up("x").ack() if self.session.role is APP else ackOf(down("x"))
        for _ in range(min(many, self.owed)):
            self.owed -= 1
            self.check(self.session.answer(answer), [] if self.phase is CLOSED else [Send(answer)])

    @rule()
    def hear(self) -> None:
        """
        Bytes come; a probe, if there is one, is answered.
        """
        assert self.session.heard(self.now) is (self.probedAt is not None)
        self.heardAt = self.now
        self.probedAt = None

    @rule(passed=st.integers(0, 100), busy=st.booleans())
    def timePasses(self, passed: int, busy: bool) -> None:
        """
        Time passes, and the timer goes off whenever it is due; or only later,
        because the shell is busy.
        """
        until = self.now + passed
        while not busy and self.timer <= until:
            self.now = max(self.now, self.timer)
            self.wake(self.now == self.timer)
            self.same()
            self.timer = self.session.wakeAt
            assert self.timer > self.now or self.phase is CLOSED
            if self.phase is CLOSED:
                break
        self.now = until

    @rule()
    def wakeEarly(self) -> None:
        """
        The session is woken at any time, be it too early.
        """
        self.wake(self.now <= self.timer)

    def due(self, message: Sendable) -> float:
        """
        When a message that is unanswered will be overdue.
        """
        return self.sentAt[message.message_id] + self.answerWithin

    def wake(self, inTime: bool) -> None:
        """
        Wake the session.

        @param inTime: whether the shell did not miss the time to do so.
        """
        expected: list[Output] = []
        if self.phase is CLOSED:
            pass
        elif self.session.role is SERVER:
            expected = [KeepAlive()] if self.now >= self.wakeAt else []
        elif self.now - self.wakeAt > self.patience:
            # Nobody is to blame; all that is unanswered gets time anew.
            assert not inTime
            shift = self.now - self.wakeAt + self.patience
            self.sentAt = {name: min(self.now, since + shift) for name, since in self.sentAt.items()}
            expected = [Probe()]
        else:
            late = [message for message in self.unanswered if self.due(message) <= self.now]
            assert not inTime or all(self.due(message) == self.now for message in late)
            expected += [Overdue(message) for message in late]
            if self.probedAt is None:
                expected += [Probe()] if late or self.now >= self.heardAt + 60.0 else []
            elif self.now >= self.probedAt + self.patience:
                expected.append(Dead())
            assert not expected or self.now >= self.wakeAt
        self.check(self.session.wake(self.now), expected)

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
        Both agree; never is there more unanswered than the window holds; and
        the time to wake neither moves back nor is too late for any message.
        """
        assert self.session.phase is self.phase
        assert self.session.unanswered == len(self.unanswered) <= self.size
        if self.phase is not CLOSED:
            # An app server's end need not count.
            assert self.session.owed == (self.owed if self.session.role is SERVER else 0)
        open_ = self.phase is OPEN and self.probedAt is None
        assert self.session.room == (self.size - len(self.unanswered) if open_ else 0)
        assert all(self.session.isUnanswered(message) for message in self.unanswered)
        assert self.session.wakeAt >= self.wakeAt
        self.wakeAt = self.session.wakeAt
        if self.session.role is APP and self.unanswered:
            assert self.wakeAt <= min(map(self.due, self.unanswered))

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
        message that it sent ends exactly once, be it answered, overdue, given
        up or lost; what is lost keeps its order; nothing is sent once it
        drains, or while a probe is unanswered.  One timer is enough for it,
        and with that each message is overdue at the very moment.
        """
        run_state_machine_as_test(SessionMachine)
