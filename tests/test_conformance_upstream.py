"""
Conformance cases of upstream messages, from the stanza to the ACK.
"""

from __future__ import annotations

from collections.abc import Iterator

from twisted.internet.defer import Deferred, fail
from zope.interface import implementer

from fcmxmpp.delivery import Policy
from fcmxmpp.errors import HandlerFailed
from fcmxmpp.interfaces import Acknowledged, DeadLettered, IUpstreamHandler
from fcmxmpp.messages import Ack, DownstreamMessage, Receipt, ReceiptData, UpstreamMessage
from fcmxmpp.testing import RecordingHandler, ScriptedConnectionServer
from tests.conformance import (
    AppServerCase,
    upstream,
)


class UpstreamTests(AppServerCase):
    """
    What is handled, what is acknowledged, and where.
    """

    def test_A08_receipt(self) -> None:
        """
        A receipt is handed to the receipt handler, and acknowledged with its
        own C{message_id} to C{gcm.googleapis.com}.
        """
        handler = RecordingHandler()
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler)
        receipt = Receipt(
            category="org.example.app",
            data=ReceiptData(
                message_status="MESSAGE_SENT_TO_DEVICE",
                original_message_id="m-1",
                device_registration_id="tok-A",
                message_sent_timestamp="1498801519251",
            ),
            message_id="dr2:m-1",
            time_to_live=0,
            from_="gcm.googleapis.com",
        )
        script.deliver(receipt)
        joined.pump()
        self.assertEqual(([receipt], []), (handler.receipts, handler.messages))
        self.assertEqual(
            ['{"to":"gcm.googleapis.com","message_id":"dr2:m-1","message_type":"ack"}'],
            [stanza.text for stanza in script.stanzas],
        )

    def test_A08_nobodyCares(self) -> None:
        """
        It is acknowledged, too, if the application has no receipt handler.
        """

        @implementer(IUpstreamHandler)
        class MessagesOnly:
            def messageReceived(self, message: UpstreamMessage) -> None:
                raise AssertionError("a receipt is no message")

        script = ScriptedConnectionServer()
        joined = self.joined(script, MessagesOnly())
        data = ReceiptData(message_status="MESSAGE_SENT_TO_DEVICE", original_message_id="m-1")
        script.deliver(Receipt(data=data, message_id="dr2:m-1", from_="gcm.googleapis.com"))
        joined.pump()
        self.assertEqual(["dr2:m-1"], script.acks)

    def test_A08_handlerFails(self) -> None:
        """
        The receipt handler decides like that of messages: no ACK as long as it
        fails.
        """
        handler = RecordingHandler(lambda receipt: fail(RuntimeError()))
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler)
        data = ReceiptData(message_status="MESSAGE_SENT_TO_DEVICE", original_message_id="m-1")
        script.deliver(Receipt(data=data, message_id="dr2:m-1", from_="gcm.googleapis.com"))
        joined.pump()
        self.assertEqual([], script.acks)
        handler.answer = lambda receipt: None
        joined.advance(5)
        self.assertEqual((["dr2:m-1"], 2), (script.acks, len(handler.receipts)))
        self.flushLoggedErrors(HandlerFailed)

    def test_A10_acksAtTheLimit(self) -> None:
        """
        While 100 downstream messages are unanswered, upstream messages are
        acknowledged all the same, and those ACKs take no place: each answer
        lets one more message out, no more and no fewer.
        """
        handler = RecordingHandler()
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler)
        for number in range(110):
            joined.appServer.send(DownstreamMessage(to="tok-A", message_id=f"d-{number}")).addErrback(
                lambda failure: None
            )
        joined.pump()
        self.assertEqual(100, len(script.downstream))
        for number in range(150):
            script.deliver(upstream(f"u-{number}"))
        joined.pump()
        self.handled(handler, [f"u-{number}" for number in range(150)])
        self.assertEqual(handler.ids, script.acks)
        self.assertEqual(100, len(script.downstream), "an upstream message or its ACK freed a place")
        for number in range(10):
            script.deliver(Ack(from_="tok-A", message_id=f"d-{number}"))
            joined.pump()
            self.assertEqual(101 + number, len(script.downstream), "an ACK took a place")
        self.assertEqual([f"d-{number}" for number in range(110)], [m.message_id for m in script.downstream])

    def test_A12_afterReconnect(self) -> None:
        """
        A message that comes again after a reconnect is not handled again, but
        acknowledged again, on the connection that brought it; so it is if it
        comes yet again on the same one.
        """
        for ack in ("handled", "received"):
            handler = RecordingHandler()
            script = ScriptedConnectionServer()
            joined = self.joined(script, handler, Policy(ack=ack))
            first = script.stream
            script.deliver(upstream("m-1"))
            joined.advance(0.1, 0.1)
            joined.cut()
            joined.pump()
            self.assertIsNot(first, script.stream)
            for _ in range(2):
                script.deliver(upstream("m-1"))
                joined.advance(0.1, 0.1)
            self.handled(handler, ["m-1"], ack)
            self.assertEqual(["m-1"] * 3, script.acks, ack)
            self.assertEqual(
                [first, script.stream, script.stream], [stream for stream, _ in script.received], ack
            )

    def test_A12_whileHandled(self) -> None:
        """
        A message that comes again while it is being handled is handled once,
        and acknowledged each time when that is done.
        """
        result: Deferred[None] = Deferred()
        handler = RecordingHandler(lambda message: result)
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler)
        for _ in range(3):
            script.deliver(upstream("m-1"))
            joined.pump()
        self.handled(handler, ["m-1"])
        self.assertEqual([], script.acks)
        result.callback(None)
        joined.pump()
        self.handled(handler, ["m-1"])
        self.assertEqual(["m-1"] * 3, script.acks)

    def test_A12_whileHandledAfterReconnect(self) -> None:
        """
        A message that comes again after a reconnect while it is still being
        handled is acknowledged on the new connection only.
        """
        result: Deferred[None] = Deferred()
        handler = RecordingHandler(lambda message: result)
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler)
        script.deliver(upstream("m-1"))
        joined.pump()
        joined.cut()
        joined.pump()
        script.deliver(upstream("m-1"))
        joined.pump()
        result.callback(None)
        joined.pump()
        self.handled(handler, ["m-1"])
        self.assertEqual([script.stream], [stream for stream, _ in script.received])

    def test_A12_fromCounts(self) -> None:
        """
        The same C{message_id} from another device is another message.
        """
        handler = RecordingHandler()
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler)
        for token in ("tok-A", "tok-B", "tok-A"):
            script.deliver(upstream("m-1", token))
        joined.pump()
        self.assertEqual(["tok-A", "tok-B"], [message.from_ for message in handler.messages])
        self.assertEqual(["tok-A", "tok-B", "tok-A"], [message.to for _, message in script.received])

    def test_A12_endToEnd(self) -> None:
        """
        With a real connection server, too: what a lost connection brought is
        delivered again, handled once, and its device told once.
        """
        results: list[Deferred[None]] = []

        def answer(message: UpstreamMessage) -> Deferred[None]:
            results.append(Deferred())
            return results[-1]

        handler = RecordingHandler(answer)
        pair = self.pair(handler)
        sent = [pair.device.send(f"m-{number}", {}) for number in range(50)]
        pair.pump()
        pair.cut()
        pair.pump()
        self.assertEqual(50, pair.connectionServer.statistics.redelivered)
        for result in results:
            result.callback(None)
        pair.pump()
        self.handled(handler, [f"m-{number}" for number in range(50)])
        self.assertEqual(handler.ids, pair.device.delivered)
        for each in sent:
            self.successResultOf(each)

    def test_A13_raises(self) -> None:
        """
        A handler that fails, in whatever way, is not acknowledged for, until
        it succeeds at a later try.
        """

        def raises(message: UpstreamMessage) -> None:
            raise RuntimeError

        async def raisesLater(message: UpstreamMessage) -> None:
            raise RuntimeError

        def forgetsItself(message: UpstreamMessage) -> Iterator[None]:
            yield None

        def failsLater(message: UpstreamMessage) -> Deferred[None]:
            late.append(Deferred())
            return late[-1]

        late: list[Deferred[None]] = []
        for answer in (raises, raisesLater, forgetsItself, lambda message: fail(RuntimeError()), failsLater):
            late.clear()
            handler = RecordingHandler(answer)
            script = ScriptedConnectionServer()
            joined = self.joined(script, handler)
            script.deliver(upstream("m-1"))
            joined.pump()
            for each in late:
                each.errback(RuntimeError())
            joined.pump()
            self.assertEqual([], script.acks, answer)
            handler.answer = lambda message: None
            joined.advance(5)
            self.assertEqual((["m-1"], ["m-1"] * 2), (script.acks, handler.ids), answer)
            self.assertEqual(1, len(self.flushLoggedErrors(HandlerFailed)), answer)

    def test_A13_hangs(self) -> None:
        """
        A handler that hangs is timed out: no ACK, and another try.  Whatever
        it says after that changes nothing.
        """
        hung: list[Deferred[None]] = []

        def answer(message: UpstreamMessage) -> Deferred[None]:
            hung.append(Deferred())
            return hung[-1]

        handler = RecordingHandler(answer)
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler, Policy(handlerTimeout=20.0))
        script.deliver(upstream("m-1"))
        joined.pump()
        joined.advance(19)
        self.assertEqual(["m-1"], handler.ids)
        joined.advance(2)
        self.assertEqual((["m-1"] * 2, []), (handler.ids, script.acks))
        # Cancelling has ended the first with CancelledError by now.
        self.assertTrue(hung[0].called)
        handler.answer = lambda message: None
        joined.advance(25)
        self.assertEqual((["m-1"] * 3, ["m-1"]), (handler.ids, script.acks))
        self.flushLoggedErrors(HandlerFailed)

    def test_A13_answersAfterTheTimeOut(self) -> None:
        """
        A handler that will not be cancelled, and answers when it has been
        timed out: that answer is not taken for the one of the next try.
        """
        sources: list[Deferred[None]] = []

        async def answer(message: UpstreamMessage) -> None:
            sources.append(Deferred())
            try:
                await sources[-1]
            except BaseException:
                # It swallows the cancellation, and goes on to succeed.
                return

        handler = RecordingHandler(answer)
        script = ScriptedConnectionServer()
        joined = self.joined(script, handler, Policy(handlerTimeout=20.0))
        script.deliver(upstream("m-1"))
        joined.pump()
        joined.advance(22)
        self.assertEqual((["m-1"] * 2, []), (handler.ids, script.acks))
        sources[1].callback(None)
        joined.pump()
        self.assertEqual(["m-1"], script.acks)
        self.flushLoggedErrors(HandlerFailed)

    def test_A13_answersAfterItsStreamDied(self) -> None:
        """
        The answer of a handler whose stream has died meanwhile is acknowledged
        nowhere; when the message is delivered again, it is acknowledged
        without being handled again.
        """
        for again in (upstream("m-1"), upstream("m-1", op="the same, whatever it holds")):
            result: Deferred[None] = Deferred()
            handler = RecordingHandler(lambda message, result=result: result)
            script = ScriptedConnectionServer()
            joined = self.joined(script, handler)
            script.deliver(upstream("m-1"))
            joined.pump()
            joined.network.refuse = True
            joined.cut()
            result.callback(None)
            joined.network.refuse = False
            joined.advance(10)
            self.assertEqual((2, []), (joined.appServer.links[0].generation, script.acks))
            self.assertEqual([], joined.observer.of(Acknowledged))
            script.deliver(again)
            joined.pump()
            self.assertEqual((["m-1"], ["m-1"]), (handler.ids, script.acks))

    def test_A14_poisonAmongAThousand(self) -> None:
        """
        A message on which the handler fails for ever, or hangs, becomes a dead
        letter after the configured tries; the thousand around it have all been
        handled long before, each once.
        """
        for answer, tracebacks in ((lambda: fail(RuntimeError()), 1), (Deferred, 0)):
            handler = RecordingHandler(
                lambda message, answer=answer: answer() if "poison" in message.data else None
            )
            pair = self.pair(handler, Policy(handlerTries=4))
            good = [f"m-{number}" for number in range(1000)]
            for number, message_id in enumerate(good):
                if number == 500:
                    pair.device.send("poison", {"poison": ""})
                pair.device.send(message_id, {})
            pair.pump()
            self.assertEqual(good, [message_id for message_id in handler.ids if message_id != "poison"])
            self.assertEqual(good, pair.device.delivered)
            self.assertEqual(0, pair.appServer.delivery.deadLetters)
            pair.advance(300)
            self.assertEqual(4, handler.ids.count("poison"))
            self.assertEqual(1004, len(handler.ids))
            self.assertEqual(
                [("poison", "tok-A")], [(e.message_id, e.from_) for e in pair.observer.of(DeadLettered)]
            )
            self.assertEqual(1, pair.appServer.delivery.deadLetters)
            # It is acknowledged then, so that it stands in nobody's way.
            self.assertEqual([*good, "poison"], pair.device.delivered)
            self.assertEqual(tracebacks, len(self.flushLoggedErrors(HandlerFailed)))

    def test_A14_manyPoisons(self) -> None:
        """
        Not even a hundred of them at once keep the others waiting for longer
        than the tries take.
        """
        handler = RecordingHandler(lambda message: fail(RuntimeError()) if "poison" in message.data else None)
        pair = self.pair(handler)
        for number in range(1100):
            pair.device.send(f"m-{number}", {"poison": ""} if number < 100 else {})
        pair.pump()
        self.assertEqual([], pair.device.delivered)
        pair.advance(10)
        self.assertEqual(100, pair.appServer.delivery.deadLetters)
        self.assertEqual(1100, len(pair.device.delivered))
        self.assertEqual(300 + 1000, len(handler.ids))
        self.assertEqual(100, len(self.flushLoggedErrors(HandlerFailed)))
