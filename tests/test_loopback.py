"""
The app server over real sockets and real TLS, on 127.0.0.1.

Nothing sleeps: each test waits for what it is about, and trial's time-out is
the safety net.  Where time has to pass, it is a Clock's.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor as _reactor  # noqa: TID251  # the one module that tests real sockets
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, clientFromString
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.tcp import Client, Connection, Server
from twisted.internet.testing import EventLoggingObserver
from twisted.logger import LogLevel, eventAsText, globalLogPublisher
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from fcmxmpp.appserver import AppServer
from fcmxmpp.connection import LOGIN_DEADLINE, Credentials
from fcmxmpp.embedded import EmbeddedConnectionServer
from fcmxmpp.errors import Stopped
from fcmxmpp.interfaces import (
    Acknowledged,
    Arrived,
    Handled,
    LinkDrained,
    LinkLost,
    LinkReady,
    Repeated,
    Sent,
)
from fcmxmpp.messages import WINDOW, Ack, DownstreamMessage
from fcmxmpp.server.registry import Registry
from fcmxmpp.server.service import ConnectionServer
from fcmxmpp.server.simulated import SimulatedDevice
from fcmxmpp.testing import SENDER_ID, SERVER_KEY, RecordingHandler, RecordingObserver
from fcmxmpp.xmppstream import CLOSE_PATIENCE
from tests.certificates import expectDeprecated, expired, issued, trustRoots


# Typed as an interface that lacks half of what it can do.
reactor: Any = _reactor

TOKEN = "device-token"


class Waiting:
    """
    Lets tests wait until something holds.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[Callable[[], object], Deferred[None]]] = []

    def until(self, holds: Callable[[], object]) -> Deferred[None]:
        """
        Wait until this holds.
        """
        reached: Deferred[None] = Deferred()
        self._waiting.append((holds, reached))
        self.look()
        return reached

    def look(self) -> None:
        """
        See what holds by now.
        """
        waiting, self._waiting = self._waiting, []
        for holds, reached in waiting:
            if holds():
                # Not in the midst of what has just happened.
                reactor.callLater(0, reached.callback, None)
            else:
                self._waiting.append((holds, reached))


class WaitingObserver(RecordingObserver):
    """
    An observer that lets tests wait for events.
    """

    def __init__(self) -> None:
        super().__init__()
        self._waiting = Waiting()

    def observed(self, event: Any) -> None:
        """
        Note the event.
        """
        super().observed(event)
        self._waiting.look()

    async def nth(self, kind: type, count: int) -> Any:
        """
        Wait for the nth event of a kind.
        """
        await self._waiting.until(lambda: len(self.of(kind)) >= count)
        return self.of(kind)[count - 1]


class WatchedEnd(ProtocolWrapper):
    """
    The server's end of a connection.

    @ivar received: all that came in on it.
    @ivar lost: why it ended, once it has.
    """

    received = b""
    lost: Failure | None = None

    def makeConnection(self, transport: Any) -> None:
        """
        Note it.
        """
        self.factory.ends.append(self)
        super().makeConnection(transport)

    def dataReceived(self, data: bytes) -> None:
        """
        Note what comes in.
        """
        self.received += data
        super().dataReceived(data)
        self.factory.waiting.look()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """
        Note the end.
        """
        self.lost = reason
        super().connectionLost(reason)
        self.factory.waiting.look()


class Watched(WrappingFactory):
    """
    Notes the server's ends of all connections.

    @ivar ends: each of them, the newest last.
    @ivar listening: what listens.
    @ivar port: where.
    """

    noisy = False
    protocol = WatchedEnd
    listening: Any
    port: int

    def __init__(self, factory: Any) -> None:
        super().__init__(factory)
        self.ends: list[WatchedEnd] = []
        self.waiting = Waiting()

    @property
    def open(self) -> list[WatchedEnd]:
        """
        The connections that there are.
        """
        return [end for end in self.ends if end.lost is None]

    def idle(self) -> Deferred[None]:
        """
        Wait until there is no connection.
        """
        return self.waiting.until(lambda: not self.open)


class WebServer(Protocol):
    """
    Says what a web server says to what is no HTTP.
    """

    def dataReceived(self, data: bytes) -> None:
        """
        Answer at once, as the common ones do.
        """
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n"
            b"<html>\r\n<head><title>400 Bad Request</title></head>\r\n</html>\r\n"
        )
        self.transport.loseConnection()


class Mute(Protocol):
    """
    Takes what comes, and says nothing.
    """


def reactorSockets() -> set[str]:
    """
    The connections that the reactor looks after.
    """
    return {
        repr(each) for each in reactor.getReaders() + reactor.getWriters() if isinstance(each, Connection)
    }


def sockets() -> set[str]:
    """
    The connections that the reactor looks after, and where the operating
    system tells, all sockets that are open.
    """
    found = reactorSockets()
    if os.path.isdir("/proc/self/fd"):
        for number in os.listdir("/proc/self/fd"):
            # The one that lists them is among them, and gone.
            with contextlib.suppress(OSError):
                link = os.readlink(f"/proc/self/fd/{number}")
                if link.startswith("socket:"):
                    found.add(link)
    return found


class LoopbackCase(TestCase):
    """
    Tests with sockets.

    @ivar observer: of the app server.
    @ivar log: all that is logged.
    """

    timeout = 20.0

    def setUp(self) -> None:
        """
        Note what there is before the test: after it, nothing else may be left.
        """
        before = sockets()
        self.addCleanup(lambda: self.assertEqual(set(), sockets() - before, "sockets are left"))
        self.log = EventLoggingObserver.createWithCleanup(self, globalLogPublisher)
        self.observer = WaitingObserver()
        self.appServers: list[AppServer] = []

    def listen(self, factory: Any, certificate: Any = None, port: int = 0) -> Watched:
        """
        Listen on a port of loopback.

        @param certificate: none for a port without TLS.
        """
        watched = Watched(factory)
        if certificate is None:
            watched.listening = reactor.listenTCP(port, watched, interface="127.0.0.1")
        else:
            watched.listening = reactor.listenSSL(port, watched, certificate, interface="127.0.0.1")
        watched.port = watched.listening.getHost().port
        self.addCleanup(self._close, watched)
        return watched

    async def _close(self, watched: Watched) -> None:
        """
        Stop listening, and see to it that every connection has ended, of which
        the app servers are to make the end.
        """
        for appServer in self.appServers:
            await self._stop(appServer)
        await maybeDeferred(watched.listening.stopListening)
        await watched.idle().addTimeout(5, reactor)

    def endpoint(self, port: int, *names: str, host: str = "127.0.0.1") -> IStreamClientEndpoint:
        """
        The endpoint that C{--endpoint} would name.

        @param names: the authorities to trust.
        """
        directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, directory)
        roots = trustRoots(directory, *(names or ["ours"]))
        description = f"tls:{host}:{port}:trustRoots={roots}"
        endpoint: IStreamClientEndpoint = clientFromString(reactor, description)
        return endpoint

    def appServer(
        self,
        endpoint: IStreamClientEndpoint,
        handler: Any = None,
        clock: Any = reactor,
        key: str = SERVER_KEY,
        grace: float = 10.0,
        connections: int = 1,
    ) -> AppServer:
        """
        An app server, started; it is stopped at the end of the test.
        """
        appServer = AppServer(
            endpoint,
            Credentials(SENDER_ID, key),
            RecordingHandler() if handler is None else handler,
            clock=clock,
            connections=connections,
            grace=grace,
            random=lambda: 0.0,
            observer=self.observer,
        )
        appServer.startService()
        self.appServers.append(appServer)
        if isinstance(clock, Clock):
            self.addCleanup(lambda: self.assertEqual([], clock.getDelayedCalls()))
            # Run first, as cleanups are: stop, and then look at the clock.
            self.addCleanup(self._stop, appServer)
        return appServer

    async def _stop(self, appServer: AppServer) -> None:
        """
        Stop an app server, if the test has not.
        """
        if appServer.running:
            await appServer.stopService().addTimeout(5, reactor)

    def connectionServer(self, clock: Any = reactor) -> ConnectionServer:
        """
        A connection server, not yet listening.
        """
        return ConnectionServer(Registry({SENDER_ID: SERVER_KEY}), clock)

    def logged(self, namespace: str) -> list[str]:
        """
        What one module of the app server has logged as worth a warning.
        """
        return [
            str(eventAsText(event, includeTimestamp=False, includeSystem=False))
            for event in self.log
            if event["log_namespace"] == namespace and event["log_level"] >= LogLevel.warn
        ]


class NoConnectionTests(LoopbackCase):
    """
    Connections that cannot be made.
    """

    async def cannot(
        self,
        reason: str,
        endpoint: IStreamClientEndpoint,
        watched: Watched | None = None,
        key: str = SERVER_KEY,
    ) -> None:
        """
        Each try fails for this reason, which is told in one line; it leaves no
        socket at either end, and another try follows.

        @param reason: a regular expression.
        """
        before = sockets()
        clock = Clock()
        appServer = self.appServer(endpoint, clock=clock, key=key)
        delays = []
        for count in range(1, 4):
            lost = await self.observer.nth(LinkLost, count)
            self.assertRegex(lost.reason, f"^{reason}$")
            self.assertNotIn("\n", lost.reason)
            if watched is not None:
                await watched.idle()
                self.assertEqual(count, len(watched.ends))
            self.assertEqual(set(), sockets() - before, "sockets are left between the tries")
            delays.append(lost.retryIn)
            clock.advance(lost.retryIn - 0.01)
            self.assertEqual(count, len(self.observer.of(LinkLost)))
            clock.advance(0.01)
        self.assertEqual(sorted(set(delays)), delays, "the pauses grow")
        self.assertEqual(
            [
                f"link 1 to the connection server cannot log in: {lost.reason}; "
                f"next try in {lost.retryIn:.1f} s"
                for lost in self.observer.of(LinkLost)
            ],
            self.logged("fcmxmpp.connection"),
        )
        self.assertEqual([], self.observer.of(LinkReady))
        self.assertEqual(0, appServer.links[0].generation)
        await appServer.stopService()
        if watched is not None:
            await watched.idle()
        self.assertEqual(set(), sockets() - before)
        self.assertEqual([], self.flushLoggedErrors())

    async def test_A19_plainXMLToTLSPort(self) -> None:
        """
        An endpoint without TLS at a port with TLS: one readable line for each
        try, and no socket is left.
        """
        watched = self.listen(self.connectionServer().factory, issued("127.0.0.1"))
        await self.cannot(
            r"the server (does not speak XMPP: .+|hung up without a word: .+)",
            TCP4ClientEndpoint(reactor, "127.0.0.1", watched.port),
            watched,
        )

    async def test_A19_TLSToPlainPort(self) -> None:
        """
        An endpoint with TLS at a connection server's port without: one
        readable line for each try, and no socket is left.
        """
        watched = self.listen(self.connectionServer().factory)
        await self.cannot("the server does not speak TLS on this port", self.endpoint(watched.port), watched)

    async def test_A19_anotherName(self) -> None:
        """
        A certificate for another host name: it is told that it is for another.
        """
        watched = self.listen(self.connectionServer().factory, issued("push.example.org"))
        await self.cannot(
            "the server's certificate is for another host name: check the host in the endpoint",
            self.endpoint(watched.port),
            watched,
        )

    async def test_A19_expired(self) -> None:
        """
        An expired certificate: it is told that it has expired.
        """
        watched = self.listen(self.connectionServer().factory, expired("127.0.0.1"))
        await self.cannot("the server's certificate has expired", self.endpoint(watched.port), watched)

    async def test_A19_unknownAuthority(self) -> None:
        """
        A certificate of a CA that is not trusted: it is told where the CA has
        to be named.
        """
        watched = self.listen(self.connectionServer().factory, issued("127.0.0.1", by="theirs"))
        await self.cannot(
            "the server's certificate is not trusted: trustRoots has to name the directory of its CA",
            self.endpoint(watched.port),
            watched,
        )

    async def test_A19_nothingListens(self) -> None:
        """
        A port where nothing listens: it is told so.
        """
        port = reactor.listenTCP(0, Factory.forProtocol(Mute), interface="127.0.0.1")
        number = port.getHost().port
        await maybeDeferred(port.stopListening)
        await self.cannot("connection refused: nothing listens there", self.endpoint(number))

    async def test_A19_HTTPS(self) -> None:
        """
        A web server with TLS: it is told that it does not speak XMPP.
        """
        watched = self.listen(Factory.forProtocol(WebServer), issued("127.0.0.1"))
        await self.cannot("the server does not speak XMPP: .+", self.endpoint(watched.port), watched)

    async def test_A19_HTTP(self) -> None:
        """
        A web server without TLS: it is told that it does not speak TLS.
        """
        watched = self.listen(Factory.forProtocol(WebServer))
        await self.cannot("the server does not speak TLS on this port", self.endpoint(watched.port), watched)

    async def test_A19_hangsUp(self) -> None:
        """
        A server that hangs up at once, after the TLS handshake: it is told
        what to look at.
        """

        class HangsUp(Protocol):
            def dataReceived(self, data: bytes) -> None:
                self.transport.loseConnection()

        watched = self.listen(Factory.forProtocol(HangsUp), issued("127.0.0.1"))
        await self.cannot("the server hung up without a word: .+", self.endpoint(watched.port), watched)

    async def silent(self, watched: Watched) -> None:
        """
        A server that does not answer is given up after the deadline.
        """
        before = sockets()
        clock = Clock()
        self.appServer(self.endpoint(watched.port), clock=clock)
        for count in (1, 2):
            await watched.waiting.until(lambda count=count: len(watched.ends) == count)
            clock.advance(LOGIN_DEADLINE - 0.1)
            self.assertEqual(count - 1, len(self.observer.of(LinkLost)))
            clock.advance(0.1)
            lost = await self.observer.nth(LinkLost, count)
            self.assertEqual("no login within 30 seconds", lost.reason)
            await watched.idle()
            self.assertEqual(set(), sockets() - before)
            clock.advance(lost.retryIn)

    async def test_A19_silentPlainPort(self) -> None:
        """
        A port without TLS that takes everything and says nothing is given up
        after 30 seconds, without a socket left, and tried again.
        """
        await self.silent(self.listen(Factory.forProtocol(Mute)))

    async def test_A19_silentTLSPort(self) -> None:
        """
        The same holds for a port that speaks TLS and nothing more.
        """
        await self.silent(self.listen(Factory.forProtocol(Mute), issued("127.0.0.1")))

    async def test_A18_refusedLogin(self) -> None:
        """
        A refused login is told in one line without the key, leaves no socket
        at either end, and is tried again at growing intervals.
        """
        server = self.connectionServer()
        server.guard.FIRST = 0.0
        watched = self.listen(server.factory, issued("127.0.0.1"))
        key = "not-the-key"
        await self.cannot(
            r"login refused \(not-authorized\): check the sender ID and the server key",
            self.endpoint(watched.port),
            watched,
            key,
        )
        self.assertEqual([10.0, 20.0, 300.0], [lost.retryIn for lost in self.observer.of(LinkLost)][:3])
        everything = "\n".join(f"{eventAsText(event)} {event!r}" for event in self.log)
        self.assertNotIn(key, everything)
        self.assertNotIn(SERVER_KEY, everything)

    async def test_stopWhileConnecting(self) -> None:
        """
        A stop in the midst of the login ends the connection, and fires.
        """
        before = sockets()
        watched = self.listen(Factory.forProtocol(Mute), issued("127.0.0.1"))
        appServer = self.appServer(self.endpoint(watched.port))
        await watched.waiting.until(lambda: watched.ends)
        await appServer.stopService()
        await watched.idle()
        self.assertEqual(1, len(sockets() - before), "only the port is left")


class ConversationTests(LoopbackCase):
    """
    A connection server and an app server.
    """

    def setUp(self) -> None:
        """
        Have a connection server listen.
        """
        super().setUp()
        self.server = self.connectionServer()
        self.watched = self.listen(self.server.factory, issued("127.0.0.1", "localhost"))
        self.device = SimulatedDevice(self.server, SENDER_ID, TOKEN)
        self.handler = RecordingHandler()

    def start(self, clock: Any = reactor) -> AppServer:
        """
        Start an app server.
        """
        return self.appServer(self.endpoint(self.watched.port), self.handler, clock)

    def pending(self) -> list[Deferred[None]]:
        """
        Have the handler return Deferreds.

        @return: those that it has returned.
        """
        deferreds: list[Deferred[None]] = []

        def answer(message: object) -> Deferred[None]:
            deferreds.append(Deferred())
            return deferreds[-1]

        self.handler.answer = answer
        return deferreds

    def once(self, ids: list[str]) -> None:
        """
        Each of these was handled once, in this order, and acknowledged once;
        nobody complained.
        """
        self.assertEqual(ids, self.handler.ids)
        self.assertEqual(Counter(ids), Counter(e.message.message_id for e in self.observer.of(Handled)))
        self.assertEqual(Counter(ids), Counter(e.message_id for e in self.observer.of(Acknowledged)))
        self.assertEqual(Counter(ids), Counter(self.device.delivered))
        self.assertEqual(len(ids), self.server.statistics.acknowledged)
        self.assertEqual([], self.logged("fcmxmpp.client"))

    async def test_threeHundredMessages(self) -> None:
        """
        Three hundred messages by a window of a hundred: no more than that are
        under way at a time, and all are handled once, in order, and
        acknowledged once.
        """
        pending = self.pending()
        self.start()
        await self.observer.nth(LinkReady, 1)
        ids = [f"m-{number}" for number in range(300)]
        sent = gatherResults([self.device.send(each, {"text": f'Grüße {each} <&>"'}) for each in ids])
        await self.observer.nth(Arrived, 100)
        self.assertEqual(300, len(self.device.stored))
        self.assertEqual((100, []), (self.server.statistics.delivered, self.device.delivered))
        for last in (200, 300):
            for deferred in pending[last - 200 : last - 100]:
                deferred.callback(None)
            await self.observer.nth(Arrived, last)
            self.assertEqual(ids[:last], self.handler.ids)
        for deferred in pending[200:]:
            deferred.callback(None)
        await sent
        self.once(ids)
        self.assertEqual({"text": 'Grüße m-299 <&>"'}, self.handler.messages[-1].data)
        self.assertEqual((1, 1), (len(self.watched.ends), len(self.observer.of(LinkReady))))

    async def test_downstream(self) -> None:
        """
        What the application sends arrives at the device, and its Deferred
        fires with the ACK.
        """
        appServer = self.start()
        acks = await gatherResults(
            [
                appServer.send(DownstreamMessage(to=TOKEN, message_id=f"d-{number}", data={"n": str(number)}))
                for number in range(150)
            ]
        )
        self.assertEqual([f"d-{number}" for number in range(150)], [ack.message_id for ack in acks])
        self.assertEqual([str(number) for number in range(150)], [m.data["n"] for m in self.device.received])

    async def test_noDelay(self) -> None:
        """
        TCP holds nothing back at either end: an ACK behind another would wait
        for up to 40 ms.
        """
        before = reactor.getReaders()
        self.start()
        await self.observer.nth(LinkReady, 1)
        ends = [e for e in reactor.getReaders() if isinstance(e, Connection) and e not in before]
        self.assertEqual([True, True], [bool(end.getTcpNoDelay()) for end in ends])

    async def test_directlyBehindTheBindResult(self) -> None:
        """
        Messages that wait at the connection server come directly behind the
        bind result, before the session is answered: they are handled, on that
        first stream.
        """
        ids = [f"m-{number}" for number in range(120)]
        sent = gatherResults([self.device.send(each, {}) for each in ids])
        self.start()
        await sent
        self.once(ids)
        self.assertEqual(1, len(self.watched.ends))
        self.assertEqual([], self.observer.of(LinkLost))

    async def test_cutInTheMiddle(self) -> None:
        """
        A connection that breaks while messages are being handled: they come
        again on the next stream, are handled once, and are acknowledged once
        and there.
        """
        pending = self.pending()
        self.start()
        await self.observer.nth(LinkReady, 1)
        ids = [f"m-{number}" for number in range(10)]
        sent = gatherResults([self.device.send(each, {}) for each in ids])
        await self.observer.nth(Arrived, 10)
        self.server.dropConnections()
        await self.observer.nth(LinkLost, 1)
        await self.observer.nth(LinkReady, 2)
        await self.observer.nth(Repeated, 10)
        self.assertEqual([], self.device.delivered)
        for deferred in pending:
            deferred.callback(None)
        await sent
        self.once(ids)
        self.assertEqual(10, self.server.statistics.redelivered)
        first, second = self.watched.ends
        self.assertNotIn(b'"ack"', first.received)
        self.assertEqual(10, second.received.count(b'"ack"'))
        self.assertEqual([second], self.watched.open)

    async def test_A03_drained(self) -> None:
        """
        A stream that is drained while messages that it brought are being
        handled: their ACKs go out on it, what is new goes out on the next one,
        and it stays open until the connection server closes it.
        """
        pending = self.pending()
        appServer = self.start()
        await self.observer.nth(LinkReady, 1)
        ids = [f"m-{number}" for number in range(10)]
        sent = gatherResults([self.device.send(each, {}) for each in ids])
        await self.observer.nth(Arrived, 10)
        (old,) = self.server.streams()
        self.server.drain(3600)
        await self.observer.nth(LinkReady, 2)
        await gatherResults(
            [appServer.send(DownstreamMessage(to=TOKEN, message_id=f"d-{number}")) for number in range(150)]
        )
        for deferred in pending:
            deferred.callback(None)
        await sent
        self.once(ids)
        first, second = self.watched.ends
        self.assertEqual([10, 0], [end.received.count(b'"ack"') for end in (first, second)])
        self.assertEqual([0, 150], [end.received.count(b'"message_id":"d-') for end in (first, second)])
        self.assertEqual([first, second], self.watched.open)
        old.close()
        await self.observer.nth(LinkDrained, 1)
        self.assertEqual([], self.observer.of(LinkLost))

    async def test_A15_cutWithDownstream(self) -> None:
        """
        What a broken connection leaves without an answer goes out on the next
        one, all of it and in its order.
        """
        appServer = self.start()
        await self.observer.nth(LinkReady, 1)
        ids = [f"d-{number}" for number in range(120)]
        self.server.script.ignore()
        results = gatherResults(
            [appServer.send(DownstreamMessage(to=TOKEN, message_id=each)) for each in ids]
        )
        await self.observer.nth(Sent, 100)
        self.server.script.clear()
        self.server.dropConnections()
        self.assertEqual(ids, [ack.message_id for ack in await results])
        self.assertEqual(ids, [message.message_id for message in self.device.received])

    async def test_cutAndHandledMeanwhile(self) -> None:
        """
        Messages that are handled while there is no connection are not handled
        again when they come again, and are acknowledged then.
        """
        pending = self.pending()
        clock = Clock()
        self.start(clock)
        await self.observer.nth(LinkReady, 1)
        # The first loss is followed by a try at once, the second by a pause.
        self.server.dropConnections()
        await self.observer.nth(LinkReady, 2)
        ids = [f"m-{number}" for number in range(10)]
        sent = gatherResults([self.device.send(each, {}) for each in ids])
        await self.observer.nth(Arrived, 10)
        self.server.dropConnections()
        lost = await self.observer.nth(LinkLost, 2)
        for deferred in pending:
            deferred.callback(None)
        self.assertEqual(([], 10), (self.device.delivered, len(self.observer.of(Handled))))
        clock.advance(lost.retryIn)
        await sent
        self.once(ids)
        self.assertEqual(10, len(self.observer.of(Repeated)))
        self.assertEqual(10, self.watched.ends[-1].received.count(b'"ack"'))

    async def test_A17_silentServer(self) -> None:
        """
        A connection server that has logged the app server in, and then neither
        reads nor writes: it is asked after 60 seconds, given up 30 seconds
        later, and replaced; its messages come again on the new stream.
        """
        before = sockets()
        clock = Clock()
        appServer = self.start(clock)
        await self.device.send("m-1", {})
        # What answers this is the last that comes on this stream.
        await appServer.send(DownstreamMessage(to=TOKEN, message_id="d-1"))
        # The ping is still to be seen, so only writing has ended up to then.
        silent = self.watched.ends[0]
        silent.wrappedProtocol.write = lambda data: None
        clock.advance(59)
        self.assertNotIn(b"urn:xmpp:ping", silent.received)
        clock.advance(1)
        await self.watched.waiting.until(lambda: b"urn:xmpp:ping" in silent.received)
        silent.pauseProducing()
        again = self.device.send("m-2", {})
        clock.advance(29)
        self.assertEqual([], self.observer.of(LinkLost))
        clock.advance(1)
        await self.observer.nth(LinkLost, 1)
        await self.observer.nth(LinkReady, 2)
        fresh = self.watched.ends[1]
        self.assertEqual(1, len(self.clientSockets(before)))
        self.assertEqual(["m-1"], self.device.delivered)
        # The server wakes up, and finds the connection gone.
        silent.resumeProducing()
        await again
        self.assertEqual(["m-1", "m-2"], self.handler.ids)
        self.assertEqual([fresh], self.watched.open)
        self.assertEqual(1, fresh.received.count(b'"ack"'))
        self.assertIn(
            "link 1: the connection server is silent; giving the stream up", self.logged("fcmxmpp.client")
        )

    async def test_serverStops(self) -> None:
        """
        A connection server that stops in order, and comes back: the app server
        sees why, keeps trying, and is there again; none of it is a traceback.
        """
        clock = Clock()
        self.start(clock)
        await self.observer.nth(LinkReady, 1)
        await maybeDeferred(self.watched.listening.stopListening)
        await self.server.stopService()
        lost = await self.observer.nth(LinkLost, 2)
        self.assertEqual(
            [
                "the server ended the stream with an error: system-shutdown",
                "connection refused: nothing listens there",
            ],
            [each.reason for each in self.observer.of(LinkLost)],
        )
        self.listen(self.server.factory, issued("127.0.0.1"), self.watched.port)
        sent = self.device.send("m-1", {})
        clock.advance(lost.retryIn)
        await sent
        self.once(["m-1"])
        self.assertEqual([], self.flushLoggedErrors())

    async def test_stopInOrder(self) -> None:
        """
        At the stop the handlers that run come to their end, their ACKs go out,
        then the end of the stream, and then nothing is open.
        """
        before = sockets()
        pending = self.pending()
        appServer = self.start()
        sent = gatherResults([self.device.send(each, {}) for each in ("m-1", "m-2")])
        await self.observer.nth(Arrived, 2)
        stopped = appServer.stopService()
        self.assertNoResult(stopped)
        for deferred in pending:
            deferred.callback(None)
        await sent
        await stopped
        self.assertEqual(set(), self.clientSockets(before))
        await self.watched.idle()
        self.once(["m-1", "m-2"])
        (end,) = self.watched.ends
        self.assertRegex(end.received, re.compile(rb'"m-2".*</message></stream:stream>$', re.DOTALL))
        assert end.lost is not None
        self.assertIsInstance(end.lost.value, ConnectionDone)
        self.assertEqual([], self.observer.of(LinkLost))

    def clientSockets(self, before: set[str]) -> set[str]:
        """
        The sockets that are new, and are none of the server's.
        """
        servers = {repr(each) for each in reactor.getReaders() if isinstance(each, Server)}
        return {each for each in reactorSockets() - servers if each not in before}

    async def test_slowLink(self) -> None:
        """
        A link whose peer does not read takes nothing new once its buffers are
        full, though its window has room; the other link gets it.  The full one
        can be stopped all the same, without a socket left.
        """
        clock = Clock()
        smallest = (socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.watched.listening.socket.setsockopt(*smallest)
        appServer = self.appServer(
            self.endpoint(self.watched.port), self.handler, clock, grace=0.0, connections=2
        )
        await self.observer.nth(LinkReady, 2)
        for each in reactor.getReaders():
            if isinstance(each, Client) and each.getPeer().port == self.watched.port:
                each.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        slow = self.watched.ends[0]
        slow.pauseProducing()

        sent: dict[str, Deferred[Ack]] = {}

        async def send(count: int) -> dict[str, Deferred[Ack]]:
            """
            Send messages, and wait for the answers to those that do not go out
            by the slow link.

            @return: those that do.
            """
            for _ in range(count):
                message_id = f"d-{len(sent)}"
                message = DownstreamMessage(to=TOKEN, message_id=message_id, data={"k": "x" * 4000})
                sent[message_id] = appServer.send(message)
            await self.observer.nth(Sent, len(sent))
            by = {event.message.message_id: event.link for event in self.observer.of(Sent)}
            self.assertEqual((len(sent), {1, 2}), (len(by), set(by.values())))
            await gatherResults([sent[message_id] for message_id, link in by.items() if link == 2])
            return {message_id: sent[message_id] for message_id, link in by.items() if link == 1}

        stuck = await send(200)
        self.assertLess(len(stuck), WINDOW)
        self.assertEqual(stuck, await send(50))
        self.assertEqual([], [message_id for message_id, one in stuck.items() if one.called])
        stopped = appServer.stopService()
        for one in stuck.values():
            self.failureResultOf(one, Stopped)
        await self.watched.waiting.until(lambda: self.watched.ends[1].lost)
        self.assertNoResult(stopped)
        clock.advance(CLOSE_PATIENCE)
        await stopped
        slow.resumeProducing()
        await self.watched.idle()

    async def test_hostName(self) -> None:
        """
        An endpoint with a host name connects to a certificate for that name.
        """
        self.appServer(self.endpoint(self.watched.port, host="localhost"), self.handler)
        await self.device.send("m-1", {})
        self.once(["m-1"])

    async def test_twoAppServers(self) -> None:
        """
        Two app servers of one sender share the messages; what the one that
        goes away has not acknowledged comes to the other.
        """
        pending = self.pending()
        first = self.appServer(self.endpoint(self.watched.port), self.handler, grace=0.0)
        await self.observer.nth(LinkReady, 1)
        other = RecordingHandler()
        self.appServer(self.endpoint(self.watched.port), other)
        await self.observer.nth(LinkReady, 2)
        ids = [f"m-{number}" for number in range(10)]
        sent = [self.device.send(each, {}) for each in ids]
        await self.observer.nth(Arrived, 10)
        # To the one with more room each, and to the older one if that is equal.
        self.assertEqual(5, len(other.ids))
        self.assertEqual(5, len(pending))
        pending[0].callback(None)
        await self.observer.nth(Acknowledged, 6)
        await first.stopService()
        await gatherResults(sent)
        self.assertEqual(5, len(self.handler.ids))
        self.assertEqual(9, len(other.ids))
        self.assertEqual(set(ids), {self.handler.ids[0], *other.ids})
        self.assertEqual(4, self.server.statistics.redelivered)


class EmbeddedTests(LoopbackCase):
    """
    The connection server that comes with the command line.
    """

    def setUp(self) -> None:
        """
        Start one.
        """
        super().setUp()
        expectDeprecated(self)
        self.before = sockets()
        self.embedded = EmbeddedConnectionServer(reactor, SENDER_ID)
        self.embedded.startService()
        self.device = SimulatedDevice(self.embedded.server, SENDER_ID, TOKEN)
        self.addCleanup(self.stopEmbedded)

    async def stopEmbedded(self) -> None:
        """
        Stop it, and what is connected to it; nothing is left of it.
        """
        for appServer in self.appServers:
            await self._stop(appServer)
        if self.embedded.running:
            await self.embedded.stopService().addTimeout(5, reactor)
        self.assertFalse(self.embedded.directory.exists())
        self.assertEqual(set(), sockets() - self.before)

    async def test_itsOwnEndpoint(self) -> None:
        """
        It connects to itself over TLS, with the certificate verified.
        """
        handler = RecordingHandler()
        self.appServer(self.embedded, handler, key=self.embedded.credentials.serverKey)
        await self.device.send("m-1", {})
        self.assertEqual(["m-1"], handler.ids)

    async def test_asAnyOther(self) -> None:
        """
        Another program connects by what the description says: the certificate
        verifies for localhost and for 127.0.0.1, and for nobody who trusts
        another.
        """
        description = self.embedded.description.split()[1]
        key = self.embedded.credentials.serverKey
        for count, host in enumerate(("localhost", "127.0.0.1"), 1):
            endpoint = clientFromString(reactor, description.replace("localhost", host))
            appServer = self.appServer(endpoint, key=key)
            await self.observer.nth(LinkReady, count)
            await appServer.stopService()
        stranger = self.endpoint(self.embedded.port, host="127.0.0.1")
        self.appServer(stranger, key=key, clock=Clock())
        lost = await self.observer.nth(LinkLost, 1)
        self.assertRegex(lost.reason, "is not trusted")

    async def test_stopsFirst(self) -> None:
        """
        It can stop before what is connected to it: that is told why, and keeps
        trying.
        """
        self.appServer(self.embedded, key=self.embedded.credentials.serverKey, clock=Clock())
        await self.observer.nth(LinkReady, 1)
        await self.embedded.stopService()
        lost = await self.observer.nth(LinkLost, 2)
        self.assertEqual("connection refused: nothing listens there", lost.reason)
