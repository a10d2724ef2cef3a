"""
Tests for L{fcmxmpp.outbox}: outcomes, from their commit to the application,
and the stop.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.logger import LogLevel

from fcmxmpp.entries import Outcome
from fcmxmpp.errors import HandlerUnavailable, Stopped
from fcmxmpp.interfaces import Stored
from fcmxmpp.messages import Ack
from fcmxmpp.outbox import PATIENCE
from tests.downstream import to
from tests.outbox import OutboxCase


class ReportTests(OutboxCase):
    """
    What the application's outcome handler is told.
    """

    def test_reported(self) -> None:
        """
        Each outcome is reported once, with the message as it was sent, how
        often it was written, and when it was settled; and is then done with.
        """
        life = self.makeLife()
        life.entrust(to("m", time_to_live=100), to("n"))
        life.nack("SERVICE_UNAVAILABLE", "m")
        life.advance(5)
        life.ack("m")
        life.nack("INVALID_JSON", "n")
        accepted, refused = self.outcomes.reported
        self.assertEqual(to("m", time_to_live=100), accepted.message)
        self.assertEqual((None, 2, life.clock.seconds()), (accepted.error, accepted.tries, accepted.at))
        self.assertEqual(("m", "tok-A"), (accepted.ack and accepted.ack.message_id, "tok-A"))
        self.assertEqual(("n", 1, None), (refused.message.message_id, refused.tries, refused.ack))
        self.assertEqual([], self.unreported())
        self.assertEqual([refused], self.store.outbox.failed)
        self.assertEnds(life)

    def test_onlyAfterTheCommit(self) -> None:
        """
        Nothing is reported before its commit.
        """
        life = self.makeLife(prepare=lambda gate: gate.slow.add("settle"))
        life.entrust(to("m"))
        life.ack("m")
        self.assertEqual([], self.outcomes.told)
        life.gate.release()
        self.assertEqual([("m", "Ack")], self.outcomes.told)
        self.assertEnds(life)

    def test_nobodyToTell(self) -> None:
        """
        Without an outcome handler an outcome is done with when it is committed.
        """
        life = self.makeLife(outcomes=False)
        life.entrust(to("m"), to("n"))
        life.ack("m")
        life.nack("INVALID_JSON", "n")
        self.assertEqual(([], []), (self.open(), self.unreported()))
        self.assertEqual(1, len(self.store.outbox.failed))
        self.assertEnds(life)

    def test_fails(self) -> None:
        """
        A report that fails is made again; one that fails too often is recorded
        as made, and logged.
        """
        answers: list[Exception | None] = [ValueError("secret"), None, *[ValueError("secret")] * 3]

        def answer(outcome: Outcome) -> None:
            error = answers.pop(0)
            if error is not None:
                raise error

        self.outcomes.answer = answer
        life = self.makeLife()
        life.entrust(to("m"), to("n"))
        self.logged(lambda: (life.ack("m"), life.advance(10)))
        self.assertEqual([("m", "Ack")] * 2, self.outcomes.told)
        events = self.logged(lambda: (life.nack("INVALID_JSON", "n"), life.advance(30)))
        self.assertEqual([("n", "Nacked")] * 3, self.outcomes.told[2:])
        self.assertEqual([], self.unreported())
        self.assertEqual(["n"], [outcome.message.message_id for outcome in self.store.outbox.failed])
        (error,) = [event for event in events if event["log_level"] == LogLevel.error]
        self.assertEqual("n", error["message_id"])
        self.assertNotIn("secret", str(error))
        self.assertEnds(life)

    def test_unavailable(self) -> None:
        """
        A handler that cannot work is asked for as long as it takes.
        """

        def answer(outcome: Outcome) -> None:
            if len(self.outcomes.reported) < 10:
                raise HandlerUnavailable("no database")

        self.outcomes.answer = answer
        life = self.makeLife()
        life.entrust(to("m"))
        self.logged(lambda: (life.ack("m"), life.advance(1000)))
        self.assertEqual(10, len(self.outcomes.reported))
        self.assertEqual([], self.unreported())
        self.assertEnds(life)

    def test_hangs(self) -> None:
        """
        A report that takes too long counts as failed, and is cancelled.
        """
        hanging: list[Deferred[None]] = []

        def answer(outcome: Outcome) -> Deferred[None] | None:
            if hanging:
                return None
            hanging.append(Deferred())
            return hanging[0]

        self.outcomes.answer = answer
        life = self.makeLife()
        life.entrust(to("m"))
        self.logged(lambda: (life.ack("m"), life.advance(62)))
        self.assertTrue(hanging[0].called)
        self.assertEqual(2, len(self.outcomes.reported))
        self.assertEqual([], self.unreported())
        self.assertEnds(life)

    def test_recordIsTriedAgain(self) -> None:
        """
        That an outcome was reported is recorded as soon as the store works; it
        is not reported again for that.
        """
        life = self.makeLife(prepare=lambda gate: gate.broken.add("reported"))
        life.entrust(to("m"))
        life.ack("m")
        life.advance(20)
        self.assertEqual(["m"], self.unreported())
        life.gate.broken.clear()
        life.advance(10)
        self.assertEqual([], self.unreported())
        self.assertEqual([("m", "Ack")], self.outcomes.told)
        self.assertEnds(life)

    def test_restart(self) -> None:
        """
        What was settled and is not known to be reported is reported by the
        next process, page by page, and what comes meanwhile as well.
        """
        waiting: list[Deferred[None]] = []

        def answer(outcome: Outcome) -> Deferred[None]:
            waiting.append(Deferred())
            return waiting[-1]

        self.outcomes.answer = answer
        life = self.makeLife()
        ids = [str(number) for number in range(1, 9)]
        life.entrust(*map(to, ids))
        life.ack(*reversed(ids[:7]))
        self.outcomes.reported.clear()
        waiting.clear()
        life = self.makeLife(atOnce=3)
        self.assertEqual(ids[:3], [name for name, _ in self.outcomes.told])
        life.ack("8")
        for _ in range(8):
            waiting.pop(0).callback(None)
        self.assertEqual([(name, "Ack") for name in ids], self.outcomes.told)
        self.assertEqual([], self.unreported())
        self.assertEnds(life)

    def test_manyAtOnce(self) -> None:
        """
        In memory only so many outcomes wait to be reported, and each is
        reported once, although outcomes do not come in the order of messages.
        """
        waiting: list[Deferred[None]] = []

        def answer(outcome: Outcome) -> Deferred[None]:
            waiting.append(Deferred())
            return waiting[-1]

        self.outcomes.answer = answer
        life = self.makeLife(atOnce=4)
        ids = [str(number) for number in range(1, 13)]
        life.entrust(*map(to, ids))
        for _ in range(4):
            life.ack(*reversed(life.sent()))
        self.assertEqual([], self.open())
        self.assertEqual(4, len(self.outcomes.reported))
        while waiting:
            waiting.pop().callback(None)
        self.assertEqual(sorted(ids), sorted(name or "" for name, _ in self.outcomes.told))
        self.assertEqual([], self.unreported())
        self.assertEnds(life)

    def test_reportedWhileRead(self) -> None:
        """
        What is settled or reported while the outbox is read for reports is
        not reported twice.
        """
        life = self.makeLife(links=0)
        life.entrust(to("1"), to("2"), to("3"))
        life = self.makeLife(prepare=lambda gate: gate.slow.add("unreported"))
        life.gate.mute.add("settle")
        life.ack("1", "2", "3")
        life.gate.mute.discard("settle")
        life.gate.release("settle", 1)
        life.gate.release("unreported")
        life.gate.release()
        self.assertEqual([("1", "Ack"), ("2", "Ack"), ("3", "Ack")], self.outcomes.told)
        self.assertEqual([], self.unreported())
        self.assertEnds(life)

    def test_readAndReported(self) -> None:
        """
        Nor is what was read, reported, and recorded before the reading was
        told.
        """
        life = self.makeLife(prepare=lambda gate: gate.broken.add("unreported"))
        life.entrust(to("1"))
        life.gate.broken.clear()
        life.gate.mute.add("unreported")
        life.gate.slow.add("reported")
        life.ack("1")
        life.advance(1)
        life.gate.release("reported")
        life.gate.release("unreported")
        self.assertEqual([("1", "Ack")], self.outcomes.told)
        self.assertEqual([], self.unreported())
        self.assertEnds(life)

    def test_answeredMeanwhile(self) -> None:
        """
        Whoever is told of an outcome may answer a report that hangs, so that
        the outbox is read: no outcome is reported twice for that.
        """
        life = self.makeLife(atOnce=2)
        hanging = [Deferred[None](), Deferred[None]()]
        answers = iter([*hanging, None, None])
        self.outcomes.answer = lambda outcome: next(answers)
        life.entrust(to("m-1"), to("m-2"))
        life.ack("m-1", "m-2")
        life.entrust(to("m-3"), to("m-4"))
        stored = life.taken["m-4"]
        assert isinstance(stored, Stored)
        stored.whenSettled().addCallback(lambda _: [each.callback(None) for each in hanging])
        life.ack("m-3", "m-4")
        self.assertEqual(
            ["m-1", "m-2", "m-3", "m-4"], sorted(message_id for message_id, _ in self.outcomes.told)
        )
        self.assertEqual([], self.unreported())

    def test_bug(self) -> None:
        """
        An outbox that breaks its promises is logged, and what it was to do is
        done by the next process.
        """
        life = self.makeLife(prepare=lambda gate: gate.slow.add("settle"))
        life.entrust(to("m"))
        life.ack("m")
        life.gate.broken.add("settle")
        life.gate.error = ZeroDivisionError
        life.gate.release()
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
        self.assertEnds(life)
        self.assertEqual(["m"], self.makeLife().sent())

    def test_sendsInReturn(self) -> None:
        """
        The handler may send.
        """
        self.outcomes.answer = lambda outcome: outcome.error and life.entrust(to("again"))
        life = self.makeLife()
        life.entrust(to("m"))
        life.nack("INVALID_JSON", "m")
        self.assertEqual(["m", "again"], life.sent())
        self.assertEnds(life)


class StopTests(OutboxCase):
    """
    The stop.
    """

    def test_nothingNew(self) -> None:
        """
        After the stop nothing is taken over, and a second stop is none.
        """
        life = self.makeLife()
        self.assertEnds(life)
        life.entrust(to("m"))
        self.assertIsInstance(life.taken["m"], Stopped)
        self.successResultOf(life.end())
        self.assertEqual([], self.open())

    def test_open(self) -> None:
        """
        What is not answered within the grace period is in the outbox; those
        who wait for it are told, then and afterwards.
        """
        life = self.makeLife(atOnce=1)
        life.entrust(to("1"), to("2"))
        life.wait("1")
        life.wait("2")
        ended = life.end(5)
        life.clock.advance(4.9)
        self.assertEqual(({}, False), (life.outcomes, ended.called))
        life.clock.advance(0.1)
        self.assertEqual((Stopped, Stopped), (life.outcome("1"), life.outcome("2")))
        self.failureResultOf(life.taken["1"].whenSettled(), Stopped)
        self.successResultOf(ended)
        self.assertEqual(["1", "2"], self.open())
        self.assertEqual([], self.outcomes.told)
        self.assertEqual((0, 0), (life.stored.successes, life.stored.failures))
        self.assertEnds(life)

    def test_answeredInTime(self) -> None:
        """
        What is answered in time is settled and reported, and then it is over;
        what is only on the disk is not begun.
        """
        life = self.makeLife(atOnce=1)
        life.entrust(to("1"), to("2"))
        life.wait("1")
        ended = life.end(5)
        life.ack("1")
        self.successResultOf(ended)
        self.assertIs(Ack, life.outcome("1"))
        self.assertEqual([("1", "Ack")], self.outcomes.told)
        self.assertEqual((["2"], []), (self.open(), self.unreported()))
        self.assertEqual(["1"], life.sent())
        self.assertEnds(life)

    def test_committing(self) -> None:
        """
        A message whose commit comes after the stop is in the outbox, which is
        told; one that was cancelled is withdrawn if that works at once.
        """
        life = self.makeLife(prepare=lambda gate: gate.slow.add("add"))
        life.entrust(to("1"), to("2"), to("3"))
        life.sending["2"].cancel()
        life.sending["3"].cancel()
        self.assertEnds(life)
        life.gate.release("add", 2)
        life.gate.broken.add("withdraw")
        life.gate.release()
        self.assertIsInstance(life.taken["1"], Stored)
        self.failureResultOf(life.taken["1"].whenSettled(), Stopped)
        self.assertEqual(["1", "3"], self.open())
        self.assertEqual([], life.clock.getDelayedCalls())

    def test_settling(self) -> None:
        """
        The store gets some time to note what is known, even without grace.
        """
        life = self.makeLife(prepare=lambda gate: gate.slow.update({"settle", "reported"}))
        life.entrust(to("m"))
        life.wait("m")
        life.ack("m")
        ended = life.end()
        self.assertFalse(ended.called)
        life.gate.release()
        self.assertFalse(ended.called)
        life.gate.release()
        self.successResultOf(ended)
        self.assertIs(Ack, life.outcome("m"))
        self.assertEqual([], self.unreported())
        self.assertEnds(life)

    def test_settledTooLate(self) -> None:
        """
        What is settled when reports get no more time is reported by the next
        process.
        """
        life = self.makeLife(prepare=lambda gate: gate.slow.add("settle"))
        self.outcomes.answer = lambda outcome: Deferred(lambda _: life.gate.release())
        life.entrust(to("1"), to("2"))
        life.ack("1", "2")
        life.gate.release("settle", 1)
        ended = life.end()
        life.clock.advance(PATIENCE)
        self.successResultOf(ended)
        self.assertEqual([], self.open())
        self.assertEqual(["1", "2"], self.unreported())
        self.assertEqual([("1", "Ack")], self.outcomes.told)
        self.assertEnds(life)

    def test_storeIsBroken(self) -> None:
        """
        But not for ever: the next process sends the message again then.
        """
        life = self.makeLife()
        life.entrust(to("m"))
        life.wait("m")
        life.gate.broken.add("settle")
        life.ack("m")
        ended = life.end()
        life.clock.advance(PATIENCE)
        self.successResultOf(ended)
        self.assertIs(Stopped, life.outcome("m"))
        self.assertEnds(life)
        self.assertEqual(["m"], self.makeLife().sent())

    def test_reading(self) -> None:
        """
        Nobody waits for what is being read.
        """
        for names in ({"load", "unreported"}, {"count"}):
            for gate in ("slow", "broken"):
                with self.subTest(names=names, gate=gate):
                    life = self.makeLife(
                        prepare=lambda g, gate=gate, names=names: getattr(g, gate).update(names)
                    )
                    ended = life.end()
                    life.clock.advance(0 if "load" in names else PATIENCE)
                    self.successResultOf(ended)
                    life.gate.release()
                    self.assertEnds(life)

    def test_reporting(self) -> None:
        """
        Reports that are under way get the grace period; those that wait to be
        made again are made by the next process.
        """
        waiting: list[Deferred[None]] = []

        def answer(outcome: Outcome) -> Deferred[None]:
            if outcome.message.message_id == "1":
                raise ValueError
            waiting.append(Deferred())
            return waiting[-1]

        self.outcomes.answer = answer
        life = self.makeLife()
        life.entrust(to("1"), to("2"), to("3"), to("4"))
        self.logged(lambda: life.ack("1", "2", "3", "4"))
        ended = life.end(5)
        waiting[0].callback(None)
        self.logged(lambda: waiting[1].errback(ValueError()))
        life.clock.advance(4.9)
        self.assertEqual((False, False), (waiting[2].called, ended.called))
        life.clock.advance(0.1)
        self.successResultOf(ended)
        self.assertTrue(waiting[2].called)
        self.assertEqual(["1", "3", "4"], self.unreported())
        self.assertEnds(life)

    def test_reportedInTime(self) -> None:
        """
        Once every report is answered nobody waits any longer.
        """
        waiting: Deferred[None] = Deferred()
        self.outcomes.answer = lambda outcome: waiting
        life = self.makeLife()
        life.entrust(to("1"), to("2"))
        life.ack("1", "2")
        ended = life.end(5)
        self.assertFalse(ended.called)
        waiting.callback(None)
        self.successResultOf(ended)
        self.assertEqual([], self.unreported())
        self.assertEnds(life)

    def test_whileHandedOver(self) -> None:
        """
        An application that stops when it is told of a message, while others
        are handed over, has those stay in the outbox.
        """
        self.makeLife(links=0).entrust(to("1"), to("2"), to("3"))
        life = self.makeLife(start=False)
        life.sender._observe = lambda event: life.end()
        life.gate.slow.add("load")
        life.stored.start()
        life.gate.release()
        self.assertEqual(["1", "2", "3"], self.open())
        life.network.pump()
        self.assertEnds(life)

    def test_whileReported(self) -> None:
        """
        So has one that stops when an outcome is reported, for what is to be
        reported.
        """
        life = self.makeLife(outcomes=True)
        self.outcomes.answer = lambda outcome: Deferred()
        life.entrust(to("1"), to("2"))
        life.ack("1", "2")
        self.outcomes.reported.clear()
        life = self.makeLife(start=False)
        ended: list[Deferred[None]] = []
        self.outcomes.answer = lambda outcome: ended.append(life.end())
        life.gate.slow.add("unreported")
        life.stored.start()
        life.gate.release()
        life.advance(PATIENCE)
        self.successResultOf(ended[0])
        self.assertEqual([("1", "Ack")], self.outcomes.told)
        self.assertEqual(["2"], self.unreported())
        self.assertEnds(life)
