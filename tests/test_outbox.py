"""
Tests for L{fcmxmpp.outbox}: from C{send} to the outbox, and to the links.
"""

from __future__ import annotations

import gc
from weakref import ref

from twisted.internet.defer import CancelledError
from twisted.logger import eventAsText
from zope.interface.verify import verifyObject

from fcmxmpp.errors import (
    Expired,
    Nacked,
    NotSendable,
    QueueFull,
    StillUnanswered,
    Stopped,
    StoreUnavailable,
)
from fcmxmpp.interfaces import IDownstreamSender, Stored
from fcmxmpp.messages import Ack, Notification
from fcmxmpp.outbox import MAX_COMMITS, POLL, RESCAN
from tests.downstream import to
from tests.outbox import OutboxCase


def many(first: int, last: int) -> list[str]:
    """
    The C{message_id}s of some messages.
    """
    return [str(number) for number in range(first, last + 1)]


class CommitTests(OutboxCase):
    """
    From C{send} to the outbox.
    """

    def test_interface(self) -> None:
        """
        It is what applications send by.
        """
        self.assertTrue(verifyObject(IDownstreamSender, self.makeLife().stored))

    def test_firesOnCommit(self) -> None:
        """
        C{send} fires when the message is committed, not before, and nothing
        goes out before that.
        """
        life = self.makeLife(prepare=lambda gate: gate.slow.add("add"))
        life.entrust(to("m"))
        self.assertEqual(({}, []), (life.taken, life.sent()))
        life.gate.release()
        self.assertIsInstance(life.taken["m"], Stored)
        self.assertEqual("m", life.taken["m"].message_id)
        self.assertEqual(["m"], life.sent())
        self.assertEnds(life)

    def test_givesID(self) -> None:
        """
        A message without C{message_id} is given one, which C{Stored} tells.
        """
        life = self.makeLife()
        stored = self.successResultOf(life.stored.send(to()))
        self.assertEqual(["made-1"], life.sent())
        assert isinstance(stored, Stored)
        self.assertEqual("made-1", stored.message_id)
        self.assertEnds(life)

    def test_checks(self) -> None:
        """
        What FCM would reject is refused at once and does not get into the
        outbox; so is a C{message_id} that is under way, be it in the sender,
        on its way to the outbox, or only there.
        """
        life = self.makeLife(atOnce=1)
        self.failureResultOf(life.stored.send(to("m", data={"from": "x"})), NotSendable)
        life.entrust(to("1"), to("2"))
        self.failureResultOf(life.stored.send(to("1")), StillUnanswered)
        self.failureResultOf(life.stored.send(to("2")), StillUnanswered)
        life.gate.slow.add("add")
        life.entrust(to("3"))
        self.failureResultOf(life.stored.send(to("3")), StillUnanswered)
        self.assertEqual(["1", "2"], self.open())
        life.gate.release()
        self.assertEnds(life)

    def test_storeUnavailable(self) -> None:
        """
        If the store does not work, C{send} says so, nothing was taken over,
        and the same message can be sent once it works.
        """
        life = self.makeLife()
        life.gate.broken.add("add")
        life.entrust(to("m"))
        self.assertIsInstance(life.taken["m"], StoreUnavailable)
        life.gate.broken.clear()
        life.entrust(to("m"))
        self.assertIsInstance(life.taken["m"], Stored)
        self.assertEqual(["m"], life.sent())
        self.assertEnds(life)

    def test_limit(self) -> None:
        """
        More messages without outcome than the limit are refused, those that
        were there at the start and those that are being committed included;
        each that is settled makes room.
        """
        life = self.makeLife(limit=3, links=0)
        life.entrust(to("1"), to("2"))
        life = self.makeLife(limit=3)
        life.gate.slow.add("add")
        life.entrust(to("3"), to("4"))
        self.assertIsInstance(life.taken["4"], QueueFull)
        life.gate.release()
        life.ack("1")
        life.entrust(to("5"), to("6"))
        life.gate.release()
        self.assertIsInstance(life.taken["5"], Stored)
        self.assertIsInstance(life.taken["6"], QueueFull)
        self.assertEnds(life)

    def test_manyCommits(self) -> None:
        """
        So are more than so many commits that are under way.
        """
        life = self.makeLife(prepare=lambda gate: gate.slow.add("add"))
        life.stored._commits |= {f"x{number}" for number in range(MAX_COMMITS)}
        life.entrust(to("m"))
        self.assertIsInstance(life.taken["m"], QueueFull)
        life.stored._commits.clear()
        self.assertEnds(life)

    def test_cancel(self) -> None:
        """
        A message that is cancelled before its commit is withdrawn from the
        outbox when that comes, is not sent, and leaves its place to others.
        """
        life = self.makeLife(limit=1, prepare=lambda gate: gate.slow.add("add"))
        life.entrust(to("m"))
        life.sending["m"].cancel()
        self.assertIsInstance(life.taken["m"], CancelledError)
        life.gate.release()
        self.assertEqual([], self.open())
        life.entrust(to("n"))
        life.gate.release()
        self.assertEqual(["n"], life.sent())
        self.assertEnds(life)

    def test_cancelFails(self) -> None:
        """
        One that is cancelled and then not committed is nobody's affair.
        """
        life = self.makeLife(prepare=lambda gate: gate.slow.add("add"))
        life.entrust(to("m"))
        life.sending["m"].cancel()
        life.gate.broken.add("add")
        life.gate.release()
        self.assertEqual([], life.sent())
        self.assertEnds(life)

    def test_cancelledIsNotRead(self) -> None:
        """
        While a cancelled message cannot be withdrawn it is not sent, even if
        the outbox is read meanwhile; it is withdrawn when the store works.
        """
        life = self.makeLife(prepare=lambda gate: gate.slow.add("add"))
        life.gate.broken.add("withdraw")
        life.entrust(to("m"))
        life.sending["m"].cancel()
        life.gate.mute.add("load")
        life.clock.advance(POLL)
        life.gate.release("add")
        life.gate.broken.clear()
        life.clock.advance(2)
        self.assertEqual([], self.open())
        life.gate.release()
        self.assertEqual([], life.sent())
        self.assertEnds(life)

    def test_cancelledIsReadTooLate(self) -> None:
        """
        Nor is one sent that was withdrawn while the outbox was read.
        """
        life = self.makeLife(prepare=lambda gate: gate.slow.add("withdraw"))
        life.gate.mute |= {"add", "load"}
        life.entrust(to("m"))
        life.clock.advance(POLL)
        life.sending["m"].cancel()
        life.gate.release("add")
        life.gate.release("withdraw")
        life.gate.release("load")
        self.assertEqual([], life.sent())
        self.assertEnds(life)


class OrderTests(OutboxCase):
    """
    From the outbox to the links.
    """

    def test_pages(self) -> None:
        """
        In memory are only so many messages; the others follow in order as
        those are settled.
        """
        life = self.makeLife(atOnce=4)
        life.entrust(*map(to, many(1, 11)))
        self.assertEqual(many(1, 4), life.sent())
        life.ack("1")
        self.assertEqual([], life.sent())
        life.ack("2", "3")
        self.assertEqual(many(5, 7), life.sent())
        life.ack(*many(4, 7))
        self.assertEqual(many(8, 10), life.sent())
        life.ack(*many(8, 10))
        self.assertEqual(["11"], life.sent())
        life.ack("11")
        life.entrust(to("12"))
        self.assertEqual(["12"], life.sent())
        self.assertEqual(["12"], self.open())
        self.assertEnds(life)

    def test_withoutReading(self) -> None:
        """
        Messages that nothing comes before go out without being read.
        """
        life = self.makeLife()
        life.entrust(to("0"))
        loads = life.gate.calls["load"]
        life.entrust(*map(to, many(1, 5)))
        self.assertEqual(["0", *many(1, 5)], life.sent())
        self.assertEqual(loads, life.gate.calls["load"])
        self.assertEnds(life)

    def test_restart(self) -> None:
        """
        What has no outcome is sent again by the next process, in order, with
        the same C{message_id}, and before what that is given.
        """
        life = self.makeLife()
        life.entrust(*map(to, many(1, 6)))
        life.ack("2", "5")
        life = self.makeLife(start=False, atOnce=2)
        life.entrust(to("7"))
        life.stored.start()
        self.assertEqual(["1", "3"], life.sent())
        life.ack("1", "3")
        self.assertEqual(["4", "6"], life.sent())
        life.ack("4", "6")
        self.assertEqual(["7"], life.sent())
        life.ack("7")
        self.assertEqual([], self.open())
        self.assertEnds(life)

    def test_gap(self) -> None:
        """
        What somebody else has put into the outbox goes out before what comes
        after it, and is found even if nothing comes.
        """
        life = self.makeLife()
        life.entrust(to("1"))
        self.store.outbox.add(to("2"))
        life.entrust(to("3"))
        self.assertEqual(many(1, 3), life.sent())
        self.store.outbox.add(to("4"))
        self.assertEqual([], life.sent())
        life.clock.advance(POLL)
        self.assertEqual(["4"], life.sent())
        self.assertEqual(4, life.stored._unsettled)
        self.assertEnds(life)

    def test_gapCounts(self) -> None:
        """
        What somebody else has put into the outbox counts for the limit.
        """
        life = self.makeLife(limit=3)
        self.store.outbox.add(to("1"))
        self.store.outbox.add(to("2"))
        life.entrust(to("3"), to("4"))
        self.assertIsInstance(life.taken["4"], QueueFull)
        self.assertEnds(life)

    def test_committedWhileRead(self) -> None:
        """
        What is committed while the outbox is read goes out once and in order,
        whether it was read or not.
        """
        for gates in ({"load"}, {"load", "add"}):
            with self.subTest(gates=gates):
                life = self.makeLife()
                life.gate.mute |= gates
                life.entrust(to("0"))
                life.clock.advance(POLL)
                life.entrust(*map(to, many(1, 3)))
                life.gate.release("add")
                life.gate.release("load")
                life.gate.mute.clear()
                life.gate.release()
                life.entrust(to("4"))
                self.assertEqual(["0", *many(1, 4)], life.sent())
                life.ack("0", *many(1, 4))
                self.assertEnds(life)

    def test_readBeforeTold(self) -> None:
        """
        What is read before its commit is told waits for that, because it may
        have been cancelled; then it goes out without being read again.
        """
        life = self.makeLife()
        life.gate.mute.add("add")
        life.entrust(to("1"), to("2"))
        life.clock.advance(POLL)
        self.assertEqual([], life.sent())
        loads = life.gate.calls["load"]
        life.sending["1"].cancel()
        life.gate.release()
        self.assertEqual(["2"], life.sent())
        self.assertEqual(["2"], self.open())
        self.assertEqual(loads, life.gate.calls["load"])
        self.assertEnds(life)

    def test_readWhileSentAgain(self) -> None:
        """
        An old message goes out even if somebody tries to send another one
        with its C{message_id} before it is read.
        """
        self.makeLife(links=0).entrust(to("1"), to("2"))
        life = self.makeLife(prepare=lambda gate: gate.slow.update({"add", "load"}))
        life.entrust(to("1"))
        life.gate.release("load")
        self.assertEqual([], life.sent())
        life.gate.slow.clear()
        life.gate.release()
        self.assertIsInstance(life.taken["1"], StillUnanswered)
        self.assertEqual(["1", "2"], life.sent())
        self.assertEnds(life)

    def test_loadFails(self) -> None:
        """
        While the outbox cannot be read that is tried again, less and less
        often.
        """
        self.makeLife(links=0).entrust(to("1"))
        life = self.makeLife(prepare=lambda gate: gate.broken.add("*"))
        for seconds in (1, 2, 4, 8, 10, 10):
            calls = life.gate.calls["load"]
            life.clock.advance(seconds - 0.1)
            self.assertEqual(calls, life.gate.calls["load"])
            life.clock.advance(0.1)
            self.assertEqual(calls + 1, life.gate.calls["load"])
        life.gate.broken.clear()
        life.clock.advance(10)
        self.assertEqual(["1"], life.sent())
        self.assertEnds(life)

    def test_changedAfterwards(self) -> None:
        """
        Once it is in the outbox a message is sent as it is there, whatever its
        application does with the dictionaries that it was made of.
        """
        life = self.makeLife(links=0)
        data, sound = {"op": "ping"}, {"name": "bell"}
        life.entrust(to("m-1", data=data, notification=Notification(sound=sound)))
        data["op"] = sound["name"] = "pong"
        life.connect()
        (message,) = life.messages()
        assert message.notification is not None
        self.assertEqual(({"op": "ping"}, {"name": "bell"}), (message.data, message.notification.sound))

    def test_reentrant(self) -> None:
        """
        An application that sends when it is told something keeps the order.
        """
        life = self.makeLife(atOnce=2)

        def sent(event: object) -> None:
            if len(life.sending) < 5:
                life.entrust(to(str(len(life.sending) + 1)))

        life.observer.observed = sent  # type: ignore[method-assign]
        life.sender._observe = sent
        life.entrust(to("1"))
        for message_id in many(1, 4):
            life.ack(message_id)
        self.assertEqual(many(1, 5), life.sent())
        self.assertEnds(life)


class TimeTests(OutboxCase):
    """
    How long a message is of use.
    """

    def test_timeToLive(self) -> None:
        """
        C{time_to_live} counts from the first send, also in the next process:
        what is left of it goes over the wire.
        """
        self.makeLife(links=0).entrust(to("m", time_to_live=100))
        assert self.life is not None
        self.life.clock.advance(30)
        life = self.makeLife()
        (message,) = life.messages()
        self.assertEqual(70, message.time_to_live)
        self.assertEnds(life)

    def test_expired(self) -> None:
        """
        A message whose time ran out between two processes is expired, and not
        sent, be there a link or not.
        """
        for links in (0, 1):
            with self.subTest(links=links):
                self.outcomes.reported.clear()
                self.makeLife(links=0).entrust(to("m", time_to_live=100), to("n"))
                assert self.life is not None
                self.life.clock.advance(100)
                life = self.makeLife(links=links)
                life.clock.advance(1)
                self.assertEqual([("m", "Expired")], self.outcomes.told)
                self.assertEqual(["n"] * links, life.sent())
                self.assertEqual(["n"], self.open())
                self.assertEnds(life)
                self.store.outbox.withdraw(2)

    def test_clockSetBack(self) -> None:
        """
        A clock that was set back gives a message no more than its time.
        """
        self.makeLife(links=0).entrust(to("m", time_to_live=100))
        assert self.life is not None
        life = self.life
        self.life = None
        late = self.makeLife(links=0)
        self.assertLess(late.clock.seconds(), life.clock.seconds() + 1)
        self.life = None
        early = self.makeLife(start=False)
        early.sender.send(to("x", time_to_live=100), early.clock.seconds() + 500).addErrback(
            lambda failure: failure.trap(Expired, Stopped)
        )
        self.assertLess(early.sender._unsettled["x"].expires, early.clock.seconds() + 101)
        self.assertEnds(early)


class SlowTargetTests(OutboxCase):
    """
    Devices and topics that get too much.
    """

    def test_laneIsFull(self) -> None:
        """
        What one slow device has no more room for stays in the outbox and goes
        out later, in order; the others go on.
        """
        self.makeLife(links=0).entrust(*[to(str(n), "slow") for n in range(1, 9)], to("9", "tok-B"))
        life = self.makeLife(atOnce=2, queue=20)
        self.assertEqual(["1", "2"], life.sent())
        life.nack("QUOTA_EXCEEDED", "1", "2")
        life.clock.advance(POLL)
        self.assertEqual(["9"], life.sent())
        self.assertEqual(8, len(self.open()) - 1)
        life.ack("9")
        seen: list[str] = []
        for _ in range(40):
            life.clock.advance(10)
            life.network.pump()
            new = life.sent()
            seen += new
            life.ack(*new)
        self.assertEqual(many(1, 8), seen)
        self.assertEqual([], self.open())
        self.assertEnds(life)

    def test_refusedAtOnce(self) -> None:
        """
        A message for a device for which too much waits already is refused.
        """
        life = self.makeLife(queue=10)
        life.entrust(to("1"))
        life.nack("QUOTA_EXCEEDED", "1")
        life.entrust(to("2"))
        self.assertIsInstance(life.taken["2"], QueueFull)
        self.assertEnds(life)

    def test_notTwice(self) -> None:
        """
        What is in the sender already is not handed over again when the outbox
        is read again for what was left.
        """
        self.makeLife(links=0).entrust(*[to(str(n), "slow") for n in range(1, 5)])
        life = self.makeLife(atOnce=2, queue=10)
        life.nack("QUOTA_EXCEEDED", "1", "2")
        life.entrust(to("5", "tok-B"))
        life.clock.advance(RESCAN)
        self.assertEqual(["1", "2", "5", "1"], life.sent())
        life.ack("1")
        self.assertEqual(["2"], life.sent())
        self.assertEnds(life)


class OutcomeTests(OutboxCase):
    """
    What C{Stored} tells.
    """

    def test_ack(self) -> None:
        """
        Whoever waits is told the ACK, once it is committed that there is one.
        """
        life = self.makeLife(prepare=lambda gate: gate.slow.add("settle"))
        life.entrust(to("m"))
        life.wait("m")
        life.ack("m")
        self.assertEqual({}, life.outcomes)
        life.gate.release()
        self.assertIs(Ack, life.outcome("m"))
        self.assertEqual((1, 0), (life.stored.successes, life.stored.failures))
        self.assertEqual([], self.open())
        self.assertEnds(life)

    def test_nack(self) -> None:
        """
        Or why there is none.
        """
        life = self.makeLife()
        life.entrust(to("m"))
        life.wait("m")
        life.nack("DEVICE_UNREGISTERED", "m")
        self.assertIs(Nacked, life.outcome("m"))
        self.assertEqual((0, 1), (life.stored.successes, life.stored.failures))
        self.assertEnds(life)

    def test_nobodyIsTold(self) -> None:
        """
        That a message failed is logged where nobody else is told: neither by an
        outcome handler nor by waiting for it.
        """
        for outcomes, waits, said in (
            (
                False,
                False,
                ["message 'm' was not accepted: Nacked: INVALID_JSON; kept: see fcmxmpp outbox list"],
            ),
            (False, True, []),
            (True, False, []),
        ):
            life = self.makeLife(outcomes=outcomes)
            life.entrust(to("m"), to("accepted"))
            if waits:
                life.wait("m")
            events = self.logged(lambda life=life: (life.nack("INVALID_JSON", "m"), life.ack("accepted")))
            self.assertEqual(said, [eventAsText(e, False, False, False) for e in events])
            self.assertEnds(life)

    def test_afterwards(self) -> None:
        """
        Who asks afterwards is told at once, each on its own.
        """
        life = self.makeLife()
        life.entrust(to("m"), to("n"))
        life.ack("m")
        life.nack("INVALID_JSON", "n")
        stored = life.taken["m"]
        self.assertEqual("m", self.successResultOf(stored.whenSettled()).message_id)
        self.assertIsNot(stored.whenSettled(), stored.whenSettled())
        self.failureResultOf(life.taken["n"].whenSettled(), Nacked)
        self.assertEnds(life)

    def test_cancelEndsWaiting(self) -> None:
        """
        Cancelling ends the waiting of one, and nothing else; also for who is
        told next.
        """
        life = self.makeLife()
        life.entrust(to("m"))
        stored = life.taken["m"]
        first, second, third = (stored.whenSettled() for _ in range(3))
        first.addErrback(lambda failure: failure.trap(CancelledError))
        first.cancel()
        third.addErrback(lambda failure: failure.trap(CancelledError))
        got: list[object] = []
        second.addCallback(lambda ack: (third.cancel(), got.append(ack)))
        life.ack("m")
        self.assertEqual(1, len(got))
        self.assertEnds(life)

    def test_nobodyKeepsIt(self) -> None:
        """
        Who waits is told even if nobody keeps what C{send} fired with; and
        where nobody waits, nothing is kept.
        """
        life = self.makeLife()
        life.entrust(to("m"), to("n"), to("o"))
        life.wait("m")
        life.note("o", life.taken["o"].whenSettled())
        life.results["o"].addErrback(lambda failure: None)
        life.cancel("o")
        forgotten = ref(life.taken["n"])
        life.taken.clear()
        life.sending.clear()
        life.results.clear()
        gc.collect()
        self.assertIsNone(forgotten())
        self.assertEqual(["m"], [life.stored._open[n].message.message_id for n in life.stored._tickets])
        life.ack("m", "n", "o")
        self.assertIs(Ack, life.outcome("m"))
        self.assertEqual({}, life.stored._awaited)
        self.assertEnds(life)

    def test_settleIsTriedAgain(self) -> None:
        """
        While an outcome cannot be committed nobody is told, and that is tried
        again until it works; the message keeps its place meanwhile.
        """
        life = self.makeLife(atOnce=2)
        life.entrust(to("1"), to("2"), to("3"))
        life.wait("1")
        life.gate.broken.add("settle")
        life.ack("1", "2")
        life.clock.advance(20)
        self.assertEqual({}, life.outcomes)
        self.assertEqual(["1", "2"], life.sent())
        life.gate.broken.clear()
        life.clock.advance(10)
        self.assertIs(Ack, life.outcome("1"))
        self.assertEqual(["3"], life.sent())
        self.assertEqual([("1", "Ack"), ("2", "Ack")], self.outcomes.told)
        self.assertEnds(life)

    def test_notSendableAnyMore(self) -> None:
        """
        What is in the outbox and cannot be sent has that for its outcome.
        """
        self.store.outbox.add(to("m", data={"from": "x"}))
        life = self.makeLife()
        self.assertEqual([("m", "NotSendable")], self.outcomes.told)
        self.assertEqual([], self.open())
        self.assertEnds(life)
