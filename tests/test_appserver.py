"""
Tests for L{fcmxmpp.appserver}.
"""

from __future__ import annotations

from random import Random
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.task import Clock, deferLater
from twisted.logger import LogEvent, capturedLogs, eventAsJSON, eventAsText
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import Invalid, implementer

from fcmxmpp import __version__
from fcmxmpp.appserver import AppServer
from fcmxmpp.connection import Credentials
from fcmxmpp.delivery import Policy
from fcmxmpp.elementstream import MAX_NAMES
from fcmxmpp.errors import HandlerFailed, Nacked, NotSendable, Stopped
from fcmxmpp.interfaces import (
    Acknowledged,
    Handled,
    IDownstreamSender,
    ISessionObserver,
    IUpstreamHandler,
    LinkDrained,
    LinkDraining,
    LinkLost,
    LinkReady,
    Repeated,
)
from fcmxmpp.messages import Ack, Control, DownstreamMessage, Nack, UpstreamMessage
from fcmxmpp.stanza import serverStanza
from fcmxmpp.testing import (
    SENDER_ID,
    SERVER_KEY,
    ConnectedPair,
    MemoryNetwork,
    RecordingHandler,
    RecordingObserver,
    ScriptedConnectionServer,
    connectedPair,
)
from tests.conformance import RAW_LOGIN, RawConnectionServer, RawEnd, rawBound


def upstream(message_id: str) -> UpstreamMessage:
    """
    A message of a device.
    """
    return UpstreamMessage(from_="tok-A", message_id=message_id)


class Harness:
    """
    An app server, and the connection server that it is connected to.

    @ivar clock: their time.
    @ivar script: the connection server.
    @ivar network: what joins them.
    @ivar observer: what the app server told.
    @ivar appServer: the app server.
    @ivar bytes: what it has sent since it is ready, piece by piece.
    """

    def __init__(self, handler: Any, **options: Any) -> None:
        self.clock = Clock()
        self.script = ScriptedConnectionServer()
        self.network = MemoryNetwork(self.clock, self.script.factory(self.clock))
        self.observer = RecordingObserver()
        self.appServer = AppServer(
            self.network,
            Credentials(SENDER_ID, SERVER_KEY),
            handler,
            clock=self.clock,
            random=lambda: 0.0,
            observer=self.observer,
            **options,
        )
        self.bytes: list[bytes] = []

    def start(self) -> None:
        """
        Start the app server, and see it logged in.
        """
        self.appServer.startService()
        self.network.pump()
        stream = self.script.stream
        dataReceived = stream.dataReceived

        def listen(data: bytes) -> None:
            self.bytes.append(data)
            dataReceived(data)

        stream.dataReceived = listen  # type: ignore[method-assign]

    def deliver(self, *ids: str) -> None:
        """
        Have the connection server deliver messages.
        """
        for message_id in ids:
            self.script.deliver(upstream(message_id))
        self.network.pump()


class AppServerCase(SynchronousTestCase):
    """
    What the test cases of this module share.
    """

    def makeAppServer(self, handler: Any, *, start: bool = True, **options: Any) -> Harness:
        """
        Make an app server; when the test is over it has to stop without a
        trace.
        """
        harness = Harness(handler, **options)
        self.addCleanup(self.assertStops, harness)
        if start:
            harness.start()
        return harness

    def assertStops(self, harness: Harness) -> None:
        """
        Assert that an app server stops and leaves nothing behind.
        """
        stopped = harness.appServer.stopService()
        harness.network.advance(11)
        self.successResultOf(stopped)
        self.assertEqual(0, harness.network.connections)
        self.assertEqual([], harness.clock.getDelayedCalls())


class HandlerTests(AppServerCase):
    """
    The application's handler is given as an object or as what makes one.
    """

    def test_object(self) -> None:
        """
        An object that provides L{IUpstreamHandler} is the handler.
        """
        handler = RecordingHandler()
        harness = self.makeAppServer(handler)
        harness.deliver("m-1", "m-2")
        self.assertEqual((["m-1", "m-2"], ["m-1", "m-2"]), (handler.ids, harness.script.acks))

    def test_factory(self) -> None:
        """
        A callable is given what to send by, once, and returns the handler.
        """
        senders: list[IDownstreamSender] = []
        handler = RecordingHandler()

        def make(sender: IDownstreamSender) -> RecordingHandler:
            senders.append(sender)
            return handler

        harness = self.makeAppServer(make)
        harness.deliver("m-1")
        self.assertEqual((["m-1"], 1), (handler.ids, len(senders)))
        self.assertTrue(IDownstreamSender.providedBy(senders[0]))

    def test_class(self) -> None:
        """
        A class that implements it is such a callable, too: it is not taken
        for a handler.
        """

        @implementer(IUpstreamHandler)
        class Echo:
            def __init__(self, sender: Any) -> None:
                self.sender = sender

            async def messageReceived(self, message: UpstreamMessage) -> None:
                await self.sender.send(DownstreamMessage(to=message.from_, message_id="m-2"))

        harness = self.makeAppServer(Echo)
        harness.deliver("m-1")
        self.assertEqual([DownstreamMessage(to="tok-A", message_id="m-2")], harness.script.downstream)
        self.assertEqual([], harness.script.acks)
        harness.script.deliver(Ack(message_id="m-2"))
        harness.network.pump()
        self.assertEqual(["m-1"], harness.script.acks)

    def test_callableHandler(self) -> None:
        """
        A handler that can be called is a handler all the same.
        """

        class Callable(RecordingHandler):
            def __call__(self, sender: object) -> None:
                raise AssertionError

        handler = Callable()
        self.makeAppServer(handler).deliver("m-1")
        self.assertEqual(["m-1"], handler.ids)

    def test_sendWhileBeingMade(self) -> None:
        """
        A handler may send as soon as it is made; the message waits for the
        link.
        """
        results: list[Deferred[Ack]] = []

        def make(sender: Any) -> RecordingHandler:
            results.append(sender.send(DownstreamMessage(to="tok-A", message_id="m-1")))
            return RecordingHandler()

        harness = self.makeAppServer(make)
        self.assertEqual(["m-1"], [message.message_id for message in harness.script.downstream])
        harness.script.deliver(Ack(message_id="m-1"))
        harness.network.pump()
        self.assertEqual(Ack(message_id="m-1"), self.successResultOf(results[0]))

    def assertRefused(self, handler: object, *words: str) -> None:
        """
        Assert that this is not taken for a handler, and that the error says
        why.
        """
        error = self.assertRaises(Invalid, Harness, handler)
        for word in ("IUpstreamHandler", *words):
            self.assertIn(word, str(error))

    def test_notAHandler(self) -> None:
        """
        An object that does not say that it is a handler is refused when the
        app server is made, not when the first message comes.
        """

        class NoHandler:
            def messageReceived(self, message: UpstreamMessage) -> None:
                """
                It has the method, but does not say so.
                """

        self.assertRefused(NoHandler(), "NoHandler")
        self.assertRefused(None, "None")
        self.assertRefused(lambda sender: "not a handler", "not a handler")

    def test_noMethod(self) -> None:
        """
        So is one that says so and has no such method.
        """

        @implementer(IUpstreamHandler)
        class Unfinished:
            pass

        self.assertRefused(Unfinished(), "Unfinished", "messageReceived")

    def test_wrongMethod(self) -> None:
        """
        So is one whose method cannot be called with a message.
        """

        @implementer(IUpstreamHandler)
        class Wrong:
            def messageReceived(self) -> None:
                """
                It takes nothing.
                """

        self.assertRefused(Wrong(), "Wrong", "messageReceived")
        self.assertRefused(lambda sender: Wrong(), "Wrong", "messageReceived")


class ServiceTests(AppServerCase):
    """
    An L{AppServer} is a service.
    """

    def test_start(self) -> None:
        """
        It connects when it is started, not when it is made.
        """
        harness = self.makeAppServer(RecordingHandler(), start=False)
        self.assertEqual((0, []), (harness.network.attempts, harness.clock.getDelayedCalls()))
        harness.start()
        self.assertEqual((1, [LinkReady(1, 1)]), (harness.network.attempts, harness.observer.events))
        self.assertTrue(harness.appServer.running)

    def test_parent(self) -> None:
        """
        It starts and stops with the service that it belongs to.
        """
        harness = self.makeAppServer(RecordingHandler(), start=False)
        parent = MultiService()
        harness.appServer.setServiceParent(parent)
        parent.startService()
        harness.network.pump()
        self.assertEqual(1, harness.appServer.links[0].generation)
        stopped = parent.stopService()
        self.assertNoResult(stopped)
        harness.network.pump()
        self.successResultOf(stopped)
        self.assertEqual((0, []), (harness.network.connections, harness.clock.getDelayedCalls()))

    def test_neverStarted(self) -> None:
        """
        One that was never started can be stopped.
        """
        harness = self.makeAppServer(RecordingHandler(), start=False)
        self.successResultOf(harness.appServer.stopService())

    def test_defaults(self) -> None:
        """
        All but the endpoint, the credentials, the handler and the clock has a
        default.
        """
        clock = Clock()
        script = ScriptedConnectionServer()
        network = MemoryNetwork(clock, script.factory(clock))
        handler = RecordingHandler()
        appServer = AppServer(network, Credentials(SENDER_ID, SERVER_KEY), handler, clock=clock)
        appServer.startService()
        network.pump()
        script.deliver(upstream("m-1"))
        network.pump()
        self.assertEqual((["m-1"], ["m-1"]), (handler.ids, script.acks))
        stopped = appServer.stopService()
        network.pump()
        self.successResultOf(stopped)

    def test_jitterByDefault(self) -> None:
        """
        By default the delays are jittered, so that a thousand app servers do
        not come back in the same instant.
        """
        delays = set()
        for _ in range(20):
            clock = Clock()
            network = MemoryNetwork(clock, ScriptedConnectionServer().factory(clock))
            network.refuse = True
            appServer = AppServer(
                network, Credentials(SENDER_ID, SERVER_KEY), RecordingHandler(), clock=clock
            )
            appServer.startService()
            (call,) = clock.getDelayedCalls()
            delays.add(call.getTime())
            self.successResultOf(appServer.stopService())
        self.assertTrue(len(delays) > 1 and min(delays) >= 0.5 and max(delays) <= 1.0, delays)

    def test_policy(self) -> None:
        """
        Messages are handled by the policy that was given.
        """
        result: Deferred[None] = Deferred()
        harness = self.makeAppServer(RecordingHandler(lambda _: result), policy=Policy(ack="received"))
        harness.deliver("m-1")
        self.assertEqual(["m-1"], harness.script.acks)
        result.callback(None)

    def test_madeIDs(self) -> None:
        """
        Messages that are sent without a C{message_id} are given ones that were
        never used before.
        """
        ids: set[str | None] = set()
        # Not even by another app server for the same sender.
        for _ in range(2):
            harness = self.makeAppServer(RecordingHandler())
            for _ in range(20):
                harness.appServer.send(DownstreamMessage(to="tok-A")).addErrback(lambda _: None)
            harness.network.pump()
            ids |= {message.message_id for message in harness.script.downstream}
        self.assertEqual(40, len(ids))
        self.assertNotIn(None, ids)

    def test_observer(self) -> None:
        """
        The observer is told of the link, of messages and of ACKs, in the order
        in which it happens.
        """
        harness = self.makeAppServer(RecordingHandler())
        harness.deliver("m-1")
        self.assertEqual(
            ["LinkReady", "Arrived", "Handled", "Acknowledged"],
            [type(event).__name__ for event in harness.observer.events],
        )

    def test_oneHandlerForAllStreams(self) -> None:
        """
        What one stream brought and the next brings again is one message, and
        is acknowledged on the stream that is there.
        """
        result: Deferred[None] = Deferred()
        handler = RecordingHandler(lambda _: result)
        harness = self.makeAppServer(handler)
        harness.deliver("m-1")
        harness.network.cut()
        harness.network.pump()
        harness.deliver("m-1")
        result.callback(None)
        harness.network.pump()
        self.assertEqual((["m-1"], ["m-1"]), (handler.ids, harness.script.acks))
        self.assertEqual(1, len(harness.observer.of(Handled)))
        self.assertEqual(1, len(harness.observer.of(Acknowledged)))


class StopTests(AppServerCase):
    """
    The stop is in order: nothing new, the grace, the ACKs, the end of the
    stream.
    """

    def test_idle(self) -> None:
        """
        Where nothing runs, the stream is ended at once.
        """
        harness = self.makeAppServer(RecordingHandler())
        stopped = harness.appServer.stopService()
        self.assertFalse(harness.appServer.running)
        harness.network.pump()
        self.successResultOf(stopped)
        self.assertEqual([b"</stream:stream>"], harness.bytes)
        self.assertEqual((0, []), (harness.network.connections, harness.clock.getDelayedCalls()))

    def test_order(self) -> None:
        """
        While handlers run the stream stays open; when the last of them is done
        its ACK goes out, then the end of the stream, and then the connection
        is closed.
        """
        results = {"m-1": Deferred(), "m-2": Deferred()}
        harness = self.makeAppServer(RecordingHandler(lambda m: results[m.message_id]), grace=10)
        harness.deliver("m-1", "m-2")
        stopped = harness.appServer.stopService()
        harness.network.advance(5)
        self.assertEqual(([], 1), (harness.bytes, harness.network.connections))
        results["m-2"].callback(None)
        harness.network.pump()
        self.assertEqual(["m-2"], harness.script.acks)
        self.assertNoResult(stopped)
        results["m-1"].callback(None)
        harness.network.pump()
        self.successResultOf(stopped)
        self.assertEqual(["m-2", "m-1"], harness.script.acks)
        said = b"".join(harness.bytes)
        self.assertTrue(said.endswith(b"</message></stream:stream>"), said)
        self.assertEqual(0, harness.network.connections)

    def test_nothingNew(self) -> None:
        """
        What comes in during the stop is neither handled nor acknowledged.
        """
        result: Deferred[None] = Deferred()
        handler = RecordingHandler(lambda _: result)
        harness = self.makeAppServer(handler)
        harness.deliver("m-1")
        stopped = harness.appServer.stopService()
        harness.deliver("m-2")
        result.callback(None)
        harness.network.pump()
        self.successResultOf(stopped)
        self.assertEqual((["m-1"], ["m-1"]), (handler.ids, harness.script.acks))

    def test_graceIsOver(self) -> None:
        """
        What is not handled when the grace is over is not acknowledged; the
        stream is ended all the same.
        """
        cancelled: list[object] = []
        harness = self.makeAppServer(RecordingHandler(lambda _: Deferred(cancelled.append)), grace=3)
        harness.deliver("m-1")
        stopped = harness.appServer.stopService()
        harness.clock.advance(3 - 2**-10)
        harness.network.pump()
        self.assertEqual(([], []), (cancelled, harness.bytes))
        harness.clock.advance(2**-10)
        harness.network.pump()
        self.successResultOf(stopped)
        self.assertEqual((1, [b"</stream:stream>"]), (len(cancelled), harness.bytes))
        self.assertEqual([], harness.clock.getDelayedCalls())

    def test_sendDuringGrace(self) -> None:
        """
        A handler that waits for the answer to a message of its own gets it
        during the grace.
        """

        def make(sender: Any) -> RecordingHandler:
            return RecordingHandler(lambda _: sender.send(DownstreamMessage(to="tok-A", message_id="m-2")))

        harness = self.makeAppServer(make)
        harness.deliver("m-1")
        stopped = harness.appServer.stopService()
        harness.script.deliver(Ack(message_id="m-2"))
        harness.network.pump()
        self.successResultOf(stopped)
        self.assertEqual(["m-1"], harness.script.acks)

    def test_openSends(self) -> None:
        """
        What was sent is waited for as long as the handlers are: one grace for
        both.  What is not answered by then fails, and nothing more is sent.
        """
        result: Deferred[None] = Deferred()
        harness = self.makeAppServer(RecordingHandler(lambda _: result), grace=10)
        harness.deliver("m-1")
        sent = harness.appServer.send(DownstreamMessage(to="tok-A", message_id="m-2"))
        late = harness.appServer.send(DownstreamMessage(to="tok-A", message_id="m-3"))
        stopped = harness.appServer.stopService()
        harness.network.advance(4)
        result.callback(None)
        self.failureResultOf(harness.appServer.send(DownstreamMessage(to="tok-A")), Stopped)
        self.assertNoResult(sent)
        harness.script.deliver(Ack(message_id="m-2"))
        harness.network.pump()
        self.assertEqual("m-2", self.successResultOf(sent).message_id)
        harness.network.advance(6 - 2**-10)
        self.assertNoResult(late)
        self.assertNoResult(stopped)
        harness.network.advance(2**-10)
        self.failureResultOf(late, Stopped)
        self.successResultOf(stopped)

    def test_twice(self) -> None:
        """
        One that is stopped again while it stops goes on as it was, and both
        wait for its end; so does the stop if somebody no longer waits for it.
        """
        harness = self.makeAppServer(RecordingHandler(), grace=10)
        sent = harness.appServer.send(DownstreamMessage(to="tok-A", message_id="m-1"))
        cancelled, *others = [harness.appServer.stopService() for _ in range(3)]
        cancelled.cancel()
        self.failureResultOf(cancelled, CancelledError)
        harness.network.advance(9)
        for stopped in others:
            self.assertNoResult(stopped)
        harness.script.deliver(Ack(message_id="m-1"))
        harness.network.pump()
        self.assertEqual("m-1", self.successResultOf(sent).message_id)
        for stopped in [*others, harness.appServer.stopService()]:
            self.assertIsNone(self.successResultOf(stopped))
        self.assertEqual((0, []), (harness.network.connections, harness.clock.getDelayedCalls()))

    def test_waitsForItself(self) -> None:
        """
        A handler that waits for the end of the service that waits for it gets
        its grace, and does not keep the service from ending.
        """
        pair = connectedPair(RecordingHandler(lambda _: pair.appServer.stopService()), grace=3)
        pair.device.send("m-1", {})
        pair.advance(1)
        stopped = pair.appServer.stopService()
        self.assertNoResult(stopped)
        pair.advance(5)
        self.successResultOf(stopped)
        self.assertEqual((0, []), (pair.network.connections, pair.clock.getDelayedCalls()))

    def test_withoutAConnection(self) -> None:
        """
        An app server that waits for its next try to connect stops at once, and
        so does one that is connecting.
        """

        class NeverConnects:
            def connect(self, factory: IProtocolFactory) -> Deferred[Any]:
                return Deferred()

        harness = self.makeAppServer(RecordingHandler(), start=False)
        harness.network.refuse = True
        harness.appServer.startService()
        self.assertEqual(1, len(harness.clock.getDelayedCalls()))
        self.successResultOf(harness.appServer.stopService())
        self.assertEqual([], harness.clock.getDelayedCalls())
        clock = Clock()
        connecting = AppServer(
            NeverConnects(), Credentials(SENDER_ID, SERVER_KEY), RecordingHandler(), clock=clock
        )
        connecting.startService()
        self.successResultOf(connecting.stopService())
        self.assertEqual([], clock.getDelayedCalls())

    def test_connectionLostDuringGrace(self) -> None:
        """
        If the connection is lost during the grace, the handlers get their
        grace all the same; what a new stream brings again is acknowledged on
        that.
        """
        result: Deferred[None] = Deferred()
        harness = self.makeAppServer(RecordingHandler(lambda _: result))
        harness.deliver("m-1")
        stopped = harness.appServer.stopService()
        harness.network.cut()
        harness.network.pump()
        self.assertEqual(2, harness.appServer.links[0].generation)
        harness.deliver("m-1")
        result.callback(None)
        harness.network.pump()
        self.successResultOf(stopped)
        self.assertEqual(["m-1"], harness.script.acks)

    def test_failingHandlers(self) -> None:
        """
        Messages that wait for their next try do not hold up the stop, and stay
        unacknowledged.
        """

        def answer(message: UpstreamMessage) -> None:
            raise ValueError

        harness = self.makeAppServer(RecordingHandler(answer))
        with capturedLogs():
            harness.deliver("m-1")
        self.assertEqual(1, len(self.flushLoggedErrors(HandlerFailed)))
        stopped = harness.appServer.stopService()
        harness.network.pump()
        self.successResultOf(stopped)
        self.assertEqual([b"</stream:stream>"], harness.bytes)


class CutTests(SynchronousTestCase):
    """
    A run with many cuts.
    """

    def test_twentyCuts(self) -> None:
        """
        The connection is cut twenty times at random moments, with messages on
        their way, in the handler and about to be acknowledged: nothing is
        lost, and nothing is handled twice.
        """
        harness: list[ConnectedPair] = []
        for seed in range(5):
            chance = Random(seed)
            handled: list[str] = []

            def handle(
                message: UpstreamMessage, chance: Random = chance, handled: list[str] = handled
            ) -> Any:
                delay = chance.choice([0, 0, 0.1, 0.5, 3])
                if not delay:
                    handled.append(message.message_id)
                    return None
                return deferLater(harness[0].clock, delay, handled.append, message.message_id)

            pair = connectedPair(RecordingHandler(handle))
            harness[:] = [pair]
            sent = 0
            for _ in range(20):
                for _ in range(chance.randrange(1, 8)):
                    for _ in range(chance.randrange(40)):
                        pair.device.send(f"m-{sent}", {"n": str(sent)})
                        sent += 1
                    pair.advance(chance.random(), 0.1)
                # Not pumped: these are lost on the wire.
                for _ in range(chance.randrange(5)):
                    pair.device.send(f"m-{sent}", {"n": str(sent)})
                    sent += 1
                pair.cut()
            pair.advance(1000, 5)
            everything = [f"m-{n}" for n in range(sent)]
            self.assertEqual(sorted(everything), sorted(handled), seed)
            self.assertEqual(sorted(everything), sorted(pair.device.delivered), seed)
            self.assertGreater(pair.connectionServer.statistics.redelivered, 0)
            self.assertGreater(len(pair.observer.of(Repeated)), 0)
            self.successResultOf(pair.stop())


class ReviewTests(SynchronousTestCase):
    """
    What a review found.
    """

    def test_stoppedByTheHandler(self) -> None:
        """
        A handler that stops the service has its own message acknowledged
        before the end of the stream.
        """
        pair = connectedPair(RecordingHandler(lambda _: (pair.appServer.stopService(), None)[1]))
        pair.device.send("m-1", {})
        pair.pump()
        pair.advance(1)
        self.assertEqual(["m-1"], pair.device.delivered)
        self.assertEqual((0, []), (pair.network.connections, pair.clock.getDelayedCalls()))

    def test_notAcknowledgedWhenClosing(self) -> None:
        """
        Nothing is said to be acknowledged on a stream that has been ended.
        """
        result: Deferred[None] = Deferred()
        script = ScriptedConnectionServer()
        joined = script.joined(RecordingHandler(lambda _: result))
        script.deliver(upstream("m-1"))
        joined.pump()
        joined.network.silent = True
        assert joined.appServer.links[0]._current is not None
        stream = joined.appServer.links[0]._current._factory.stream
        assert stream is not None
        stream.close()
        result.callback(None)
        self.assertEqual([], joined.observer.of(Acknowledged))
        joined.network.silent = False
        joined.stop()

    def test_observerRaises(self) -> None:
        """
        An observer that raises is logged, and changes nothing.
        """

        @implementer(ISessionObserver)
        class Broken:
            def observed(self, event: object) -> None:
                raise ZeroDivisionError

        clock = Clock()
        script = ScriptedConnectionServer()
        network = MemoryNetwork(clock, script.factory(clock))
        server = AppServer(
            network, Credentials(SENDER_ID, SERVER_KEY), RecordingHandler(), clock=clock, observer=Broken()
        )
        server.startService()
        network.pump()
        network.cut()
        network.pump()
        script.deliver(upstream("m-1"))
        network.pump()
        self.assertEqual((["m-1"], 2), (script.acks, server.links[0].generation))
        stopped = server.stopService()
        network.pump()
        self.successResultOf(stopped)
        self.assertGreater(len(self.flushLoggedErrors(ZeroDivisionError)), 3)

    def test_changedAfterSend(self) -> None:
        """
        Data that are changed after the send to what cannot be sent fail that
        message, and none behind it.
        """
        pair = connectedPair(RecordingHandler())
        pair.network.refuse = True
        pair.cut()
        data: dict[str, Any] = {"k": "v"}
        first = pair.appServer.send(DownstreamMessage(to="tok-A", data=data))
        second = pair.appServer.send(DownstreamMessage(to="tok-A"))
        data["k"] = object()
        pair.network.refuse = False
        pair.advance(5)
        self.failureResultOf(first, NotSendable)
        self.successResultOf(second)
        self.successResultOf(pair.stop())

    def test_startedOnce(self) -> None:
        """
        It is started once; a second start says so.
        """
        pair = connectedPair(RecordingHandler())
        self.assertRaises(RuntimeError, pair.appServer.startService)
        self.successResultOf(pair.stop())
        self.assertRaises(RuntimeError, pair.appServer.startService)

    def test_hugeID(self) -> None:
        """
        A message with a very long C{message_id} is acknowledged: the ACK is
        no larger than the message was.
        """
        pair = connectedPair(RecordingHandler())
        script = ScriptedConnectionServer()
        joined = script.joined(RecordingHandler())
        script.deliver(upstream("x" * 60_000))
        joined.pump()
        self.assertEqual(["x" * 60_000], script.acks)
        self.assertEqual(1, joined.appServer.links[0].generation)
        self.successResultOf(pair.stop())
        self.successResultOf(joined.stop())

    def test_manyNames(self) -> None:
        """
        A peer that makes up ever new names, which the parser would keep for
        ever, loses its stream.
        """
        script = ScriptedConnectionServer()
        joined = script.joined(RecordingHandler())
        for number in range(MAX_NAMES + 1):
            script.write(b"<x%d/>" % number)
        joined.pump()
        self.assertEqual(2, joined.appServer.links[0].generation)
        joined.stop()
        joined.pump()


class LinksTests(SynchronousTestCase):
    """
    Several links, and links that are drained.
    """

    def pair(self, handler: Any = None, **options: Any) -> ConnectedPair:
        """
        An app server and a connection server; when the test is over both have
        to stop without a trace.
        """
        pair = connectedPair(handler or RecordingHandler(), **options)
        pair.connectionServer.startService()
        self.addCleanup(self.assertEnds, pair)
        return pair

    def assertEnds(self, pair: Any) -> None:
        """
        Assert that both ends stop and leave nothing behind.
        """
        stopped = pair.stop()
        pair.advance(21)
        self.successResultOf(stopped)
        if isinstance(pair, ConnectedPair):
            self.successResultOf(pair.connectionServer.stopService())
        self.assertEqual((0, []), (pair.network.connections, pair.clock.getDelayedCalls()))

    def loggedIn(self, pair: ConnectedPair) -> list[tuple[int, int]]:
        """
        Which streams have been logged in: link and generation.
        """
        return [(event.link, event.generation) for event in pair.observer.of(LinkReady)]

    def test_drained(self) -> None:
        """
        While a stream is being drained, what comes in on it is handled and
        acknowledged there, and what is sent goes out on its successor.  When
        it is closed nothing is handled twice.
        """
        results: dict[str, Deferred[None]] = {"u-1": Deferred(), "u-2": Deferred()}
        handler = RecordingHandler(lambda message: results[message.message_id])
        pair = self.pair(handler)
        pair.advance(5)
        pair.device.send("u-1", {})
        pair.pump()
        (old,) = pair.connectionServer.streams()
        pair.connectionServer.drain(30)
        # Delivered behind the announcement, as Google's server did.
        old.transport.write(serverStanza(UpstreamMessage(from_="tok-A", message_id="u-2"), old.bareJID))
        pair.pump()
        new = pair.connectionServer.streams()[1]
        self.assertEqual(([(1, 1), (1, 2)], ["u-1", "u-2"]), (self.loggedIn(pair), handler.ids))
        sent = pair.appServer.send(DownstreamMessage(to="tok-A", message_id="d-1"))
        pair.pump()
        self.assertEqual("d-1", self.successResultOf(sent).message_id)
        self.assertEqual(["d-1"], [message.message_id for message in pair.device.received])
        pair.advance(20)
        self.assertEqual((1, 0), (old.unanswered, new.unanswered))
        results["u-1"].callback(None)
        pair.pump()
        self.assertEqual((0, ["u-1"]), (old.unanswered, pair.device.delivered))
        pair.advance(10)
        self.assertEqual([new], pair.connectionServer.streams())
        self.assertEqual((["u-1", "u-2"], 2), (handler.ids, pair.network.attempts))
        self.assertEqual([LinkDrained(1, 1)], pair.observer.of(LinkDrained))
        self.assertEqual([], pair.observer.of(LinkLost))
        results["u-2"].callback(None)

    def test_drainedAsNack(self) -> None:
        """
        A connection server that says so only by a NACK is understood: that
        message, and all others, go out on the successor.
        """
        script = ScriptedConnectionServer()
        joined = script.joined(RecordingHandler())
        self.addCleanup(self.assertEnds, joined)
        joined.advance(5)
        (old,) = script.streams
        sent = [joined.appServer.send(DownstreamMessage(to="tok-A", message_id=f"d-{n}")) for n in (1, 2)]
        joined.pump()
        script.deliver(Nack(from_="tok-A", message_id="d-1", error="CONNECTION_DRAINING"))
        joined.pump()
        self.assertEqual([LinkDraining(1, 1)], joined.observer.of(LinkDraining))
        new = script.stream
        self.assertIsNot(old, new)
        self.assertEqual(
            [(old, "d-1"), (old, "d-2"), (new, "d-1")],
            [(stream, message.message_id) for stream, message in script.received],
        )
        script.deliver(Ack(from_="tok-A", message_id="d-1"))
        joined.pump()
        self.successResultOf(sent[0])
        # What was sent before is still answered on the old one, or by its end.
        self.assertNoResult(sent[1])
        old.close()
        joined.pump()
        self.assertEqual((new, "d-2"), (script.received[-1][0], script.received[-1][1].message_id))
        script.deliver(Ack(from_="tok-A", message_id="d-2"))
        joined.pump()
        self.successResultOf(sent[1])

    def test_drainedByScript(self) -> None:
        """
        Both at once, as the connection server of this package says it, come to
        the same.
        """
        pair = self.pair()
        pair.advance(5)
        pair.connectionServer.script.drain(grace=5)
        sent = [pair.appServer.send(DownstreamMessage(to="tok-A", message_id=f"d-{n}")) for n in range(3)]
        pair.pump()
        self.assertEqual(["d-0", "d-1", "d-2"], [self.successResultOf(each).message_id for each in sent])
        self.assertEqual(["d-0", "d-1", "d-2"], sorted(m.message_id or "" for m in pair.device.received))
        self.assertEqual([(1, 1), (1, 2)], self.loggedIn(pair))
        self.assertEqual(2, pair.network.connections)
        pair.advance(5)
        self.assertEqual(1, pair.network.connections)

    def test_drainedAtTheLogin(self) -> None:
        """
        A drain that is announced in the same read as the end of the login is
        told behind it, and makes a successor.
        """
        script = RawConnectionServer()

        def boundAndDrained(end: RawEnd, request: bytes) -> None:
            rawBound(end, request)
            end.transport.write(serverStanza(Control(control_type="CONNECTION_DRAINING")))
            script.login = RAW_LOGIN

        script.login = [*RAW_LOGIN[:3], (b"</iq>", boundAndDrained)]
        joined = script.joined(RecordingHandler())
        self.addCleanup(self.assertEnds, joined)
        self.assertEqual([LinkReady(1, 1), LinkDraining(1, 1), LinkReady(1, 2)], joined.observer.events)
        self.assertEqual((2, 2), (joined.network.attempts, joined.network.connections))
        joined.appServer.send(DownstreamMessage(to="tok-A", message_id="d-1")).addErrback(lambda _: None)
        joined.pump()
        self.assertEqual([False, True], [b'"d-1"' in end.received for end in script.ends])

    def test_oneOfSeveral(self) -> None:
        """
        Of several links only the one that is drained gets a successor.
        """
        pair = self.pair(connections=3)
        pair.advance(5)
        pair.connectionServer.drain(5, pair.connectionServer.streams()[1:2])
        pair.pump()
        self.assertEqual((4, 4), (pair.network.attempts, pair.network.connections))
        (drained,) = pair.observer.of(LinkDraining)
        self.assertEqual((drained.link, 2), (self.loggedIn(pair)[-1]))
        pair.advance(5)
        self.assertEqual(
            (3, [LinkDrained(drained.link, 1)]), (pair.network.connections, pair.observer.of(LinkDrained))
        )

    def test_all(self) -> None:
        """
        When all streams are drained at once, all links have successors, and
        nothing that was sent or submitted meanwhile is lost.
        """
        handler = RecordingHandler()
        pair = self.pair(handler, connections=3)
        pair.advance(5)
        sent = [pair.appServer.send(DownstreamMessage(to="tok-A", message_id=f"d-{n}")) for n in range(50)]
        pair.connectionServer.drain(5)
        for number in range(50):
            pair.device.send(f"u-{number}", {})
        pair.pump()
        self.assertEqual(50, len([self.successResultOf(each) for each in sent]))
        self.assertEqual({f"u-{n}" for n in range(50)}, set(handler.ids))
        self.assertEqual(50, len(handler.ids))
        pair.advance(5)
        self.assertEqual((6, 3), (pair.network.attempts, pair.network.connections))

    def test_firstAlone(self) -> None:
        """
        The first link logs in before the others try.
        """
        harness = Harness(RecordingHandler(), connections=3)
        harness.appServer.startService()
        self.addCleanup(self.finish, harness)
        self.assertEqual(1, harness.network.attempts)
        harness.network.pump()
        self.assertEqual((3, 3), (harness.network.attempts, len(harness.script.streams)))
        self.assertEqual([1, 2, 3], [link.number for link in harness.appServer.links])
        self.assertEqual(LinkReady(1, 1), harness.observer.events[0])
        self.assertEqual({LinkReady(2, 1), LinkReady(3, 1)}, set(harness.observer.events[1:]))

    def finish(self, harness: Harness) -> None:
        """
        The app server stops without a trace.
        """
        stopped = harness.appServer.stopService()
        harness.network.advance(11)
        self.successResultOf(stopped)
        self.assertEqual((0, []), (harness.network.connections, harness.clock.getDelayedCalls()))

    def test_refused(self) -> None:
        """
        While the first link is refused the others do not try; they do as soon
        as it is let in, and only the first time.
        """
        harness = Harness(RecordingHandler(), connections=3)
        harness.script.registry.letIn = False
        harness.appServer.startService()
        self.addCleanup(self.finish, harness)
        harness.network.advance(400)
        self.assertEqual(4, harness.network.attempts)
        self.assertEqual({1}, {event.link for event in harness.observer.of(LinkLost)})
        harness.script.registry.letIn = True
        harness.network.advance(300)
        self.assertEqual((7, 3), (harness.network.attempts, len(harness.script.streams)))

    def test_allLostAtOnce(self) -> None:
        """
        When all links break at once each is made again, once, without waiting
        for another.
        """
        harness = Harness(RecordingHandler(), connections=3)
        harness.appServer.startService()
        self.addCleanup(self.finish, harness)
        harness.network.advance(60)
        harness.network.cut()
        harness.network.pump()
        self.assertEqual((6, 3), (harness.network.attempts, harness.network.connections))
        self.assertEqual({1, 2, 3}, {event.link for event in harness.observer.of(LinkLost)})
        self.assertEqual([2, 2, 2], [link.generation for link in harness.appServer.links])

    def test_lostWhileOthersStart(self) -> None:
        """
        The first link need not live on for the others to start.
        """
        harness = Harness(RecordingHandler(), connections=2)
        harness.appServer.startService()
        self.addCleanup(self.finish, harness)
        while not harness.script.streams:
            for pump in list(harness.network._pumps):
                pump.pump()
        harness.network.cut()
        harness.network.advance(2)
        self.assertEqual((2, 2), (harness.network.connections, len(harness.script.streams)))

    def test_stoppedBefore(self) -> None:
        """
        An app server that is stopped before the others have started does not
        start them, even if the first logs in during the grace.
        """
        result: Deferred[None] = Deferred()
        for grace in (False, True):
            harness = Harness(RecordingHandler(lambda _: result), connections=3)
            harness.appServer.startService()
            if grace:
                taken = harness.appServer.delivery.take(upstream("u-1"))
            stopped = harness.appServer.stopService()
            harness.network.pump()
            if grace:
                self.assertEqual([LinkReady(1, 1)], harness.observer.of(LinkReady))
                result.callback(None)
                self.successResultOf(taken)
                harness.network.pump()
            self.successResultOf(stopped)
            self.assertEqual((1, 0), (harness.network.attempts, harness.network.connections))
            self.assertEqual([], harness.clock.getDelayedCalls())

    def test_noLink(self) -> None:
        """
        An app server without any link would never do anything: it cannot be
        made.
        """
        self.assertRaises(ValueError, Harness, RecordingHandler(), connections=0)

    def test_log(self) -> None:
        """
        The log says which link it is about, and to which server.
        """
        with capturedLogs() as events:
            harness = Harness(RecordingHandler(), connections=2, server="push.example.org:5235")
            harness.appServer.startService()
            harness.network.pump()
            self.finish(harness)
        lines = [eventAsText(e, includeTimestamp=False, includeSystem=False) for e in events]
        self.assertEqual(
            [f"link {number} to push.example.org:5235 is logged in" for number in (1, 2)], lines[1:-1]
        )


class SummaryTests(SynchronousTestCase):
    """
    What an app server says of itself at its start and at its end.
    """

    def lines(self, events: list[LogEvent]) -> list[str]:
        """
        What is in the log; it has no secret.
        """
        for event in events:
            everything = eventAsText(event) + eventAsJSON(event)
            for secret in (SERVER_KEY, "tok-A", "the data"):
                self.assertNotIn(secret, everything)
        return [eventAsText(e, includeTimestamp=False, includeSystem=False) for e in events]

    def test_start(self) -> None:
        """
        At the start: which version it is, for whom, to where, and when
        messages are acknowledged.
        """
        for options, said in (
            ({}, "1 link to the connection server, messages are acknowledged when handled"),
            (
                {"policy": Policy(handlerTries=5)},
                "1 link to the connection server, messages are acknowledged when handled",
            ),
            (
                {"connections": 2, "policy": Policy(ack="received"), "server": "push.example.org:5235"},
                "2 links to push.example.org:5235, messages are acknowledged when received",
            ),
        ):
            harness = Harness(RecordingHandler(), **options)
            with capturedLogs() as events:
                harness.appServer.startService()
            self.assertEqual([f"fcmxmpp {__version__}: sender {SENDER_ID}, {said}"], self.lines(events))
            stopped = harness.appServer.stopService()
            harness.network.pump()
            self.successResultOf(stopped)

    def test_end(self) -> None:
        """
        At the end: what came of it, counted when nothing can be added any more.
        """
        result: Deferred[None] = Deferred()
        results = [None, None, result, fail(HandlerFailed("no such account"))]
        handler = RecordingHandler(lambda _: results.pop(0))
        harness = Harness(handler, policy=Policy(handlerTries=1))
        harness.start()
        with capturedLogs() as events:
            harness.deliver("m-1", "m-2", "m-3", "m-4")
            for _ in range(2):
                harness.script.write(
                    b"<message><gcm xmlns='google:mobile:data'>"
                    b'{"message_id":"m-5","from":"tok-A","data":{"k":"the data"</gcm></message>'
                )
            sent = [
                harness.appServer.send(
                    DownstreamMessage(to="tok-A", message_id=f"d-{n}", data={"k": "the data"})
                )
                for n in range(6)
            ]
            for message_id in ("d-0", "d-1", "d-2", "d-3"):
                harness.script.deliver(Ack(message_id=message_id))
            harness.script.deliver(Nack(message_id="d-4", error="BAD_REGISTRATION"))
            harness.network.pump()
            stopped = harness.appServer.stopService()
            before = len(events)
            result.callback(None)
            harness.network.pump()
            self.assertNoResult(stopped)
            harness.network.advance(10)
        self.successResultOf(stopped)
        for each in sent[:4]:
            self.successResultOf(each)
        self.failureResultOf(sent[4], Nacked)
        self.failureResultOf(sent[5], Stopped)
        self.assertEqual(
            ["stopped; upstream: 3 handled, 1 dead letters, 2 malformed; downstream: 4 accepted, 2 not"],
            self.lines(events)[before:],
        )

    def test_counters(self) -> None:
        """
        A message counts once, when its Deferred fires: as accepted after a
        NACK that was only for a while, and not at all if C{send} refused it,
        or if it was cancelled.
        """
        harness = Harness(RecordingHandler())
        sender = harness.appServer._sender
        self.assertEqual((0, 0), (sender.successes, sender.failures))
        cancelled = harness.appServer.send(DownstreamMessage(to="tok-A", message_id="d-0"))
        cancelled.addErrback(lambda _: None).cancel()
        self.failureResultOf(harness.appServer.send(DownstreamMessage(to="", message_id="d-1")), NotSendable)
        harness.start()
        harness.appServer.send(DownstreamMessage(to="tok-A", message_id="d-2"))
        harness.script.deliver(Nack(message_id="d-2", error="SERVICE_UNAVAILABLE"))
        harness.network.pump()
        self.assertEqual((0, 0), (sender.successes, sender.failures))
        harness.network.advance(60)
        harness.script.deliver(Ack(message_id="d-2"))
        harness.network.pump()
        harness.script.deliver(Ack(message_id="d-2"))
        harness.network.pump()
        self.assertEqual((1, 0), (sender.successes, sender.failures))
        stopped = harness.appServer.stopService()
        harness.network.pump()
        self.successResultOf(stopped)
        self.assertEqual((1, 0), (sender.successes, sender.failures))
