"""
Tests for L{fcmxmpp.device}, with the connection server's own other end, in
memory.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from typing import Any

from treq.testing import RequestTraversalAgent
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from zope.interface import implementer
from zope.interface.verify import verifyObject

from fcmxmpp.device import BATCH, CLOSING, STABLE, UNSENT, Device, IDeviceApp, NotSent
from fcmxmpp.devicecache import CacheUnusable, DeviceCache
from fcmxmpp.devicehttp import DeviceHTTP
from fcmxmpp.mcs import wire
from fcmxmpp.mcs.conversation import UNAUTHORIZED
from fcmxmpp.mcs.devicesession import LOGIN_DEADLINE
from fcmxmpp.mcs.frames import FrameDecoder, Tag, encodeFrame
from fcmxmpp.mcs.stanzas import ReceivedMessage
from fcmxmpp.server.site import site
from fcmxmpp.testing import MemoryNetwork
from tests.mcsclients import APP, World


TO = "111@gcm.googleapis.com"


@implementer(IDeviceApp)
class App:
    """
    Notes what it is told.
    """

    def __init__(self) -> None:
        self.sent: list[list[str]] = []
        self.failed: list[list[tuple[str, str]]] = []
        self.received: list[ReceivedMessage] = []
        self.deleted: list[int] = []
        self.answer: Any = None

    def messagesSent(self, message_ids: list[str]) -> None:
        """
        See L{IDeviceApp.messagesSent}.
        """
        self.sent.append(message_ids)

    def messagesFailed(self, failed: list[tuple[str, str]]) -> None:
        """
        See L{IDeviceApp.messagesFailed}.
        """
        self.failed.append(failed)

    def messageReceived(self, message: ReceivedMessage) -> Any:
        """
        See L{IDeviceApp.messageReceived}.
        """
        self.received.append(message)
        return self.answer() if self.answer is not None else None

    def messagesDeleted(self, total: int) -> None:
        """
        See L{IDeviceApp.messagesDeleted}.
        """
        self.deleted.append(total)


class Refusing(Protocol):
    """
    A connection server that lets nobody in.
    """

    def __init__(self, logins: list[str], code: int) -> None:
        """
        @param logins: gets who wants in.
        @param code: why not.
        """
        self._logins = logins
        self._code = code
        self._decoder = FrameDecoder()

    def dataReceived(self, data: bytes) -> None:
        """
        Some bytes came.
        """
        assert self.transport is not None
        for _tag, body in self._decoder.feed(data):
            self._logins.append(wire.LoginRequest.FromString(body).user)
            answer = wire.LoginResponse(id="", error=wire.ErrorInfo(code=self._code))
            self.transport.write(b"\x29" + encodeFrame(Tag.LOGIN_RESPONSE, answer.SerializeToString()))
            self.transport.loseConnection()


class DeviceTests(SynchronousTestCase):
    """
    L{Device}.
    """

    def setUp(self) -> None:
        """
        A world with an app server, and a network that leads there.
        """
        self.clock = Clock()
        self.world = World(clock=self.clock)
        self.appServer = self.world.appServer()
        self.network = MemoryNetwork(self.clock, self.world.devices)
        self.directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.directory)
        self.path = os.path.join(self.directory, "device.db")
        resource = site(self.world.store.registrations, self.world.server.registry, self.clock).resource
        self.agent = RequestTraversalAgent(resource)
        self.app = App()

    def device(self, path: str | None = None, **how: Any) -> Device:
        """
        A device, started; at the end of the test it leaves nothing behind.
        """
        device = Device(
            self.clock,
            self.network,
            DeviceHTTP(self.agent, "http://server.example", self.clock),
            "111",
            APP,
            self.app,
            DeviceCache(path or self.path),
            chance=lambda: 0.5,
            **how,
        )
        device.startService()
        self.addCleanup(self.assertStops, device)
        self.pump()
        return device

    def pump(self) -> None:
        """
        Carry everything to and fro.
        """
        for _ in range(6):
            self.agent.flush()
            self.network.pump()
            self.clock.advance(0)

    def assertStops(self, device: Device) -> None:
        """
        Stop a device, and assert that nothing is left of it.
        """
        if device.running:
            stopped = device.stopService()
            self.pump()
            self.successResultOf(stopped)
            self.pump()
        mine = [call for call in self.clock.getDelayedCalls() if "fcmxmpp.device" in str(call.func)]
        self.assertEqual([], mine)

    def stop(self, device: Device) -> None:
        """
        Stop a device.
        """
        stopped = device.stopService()
        self.pump()
        self.successResultOf(stopped)

    def test_interface(self) -> None:
        """
        The app of these tests is one.
        """
        self.assertTrue(verifyObject(IDeviceApp, self.app))

    def test_whole(self) -> None:
        """
        It checks in, registers, connects, sends and receives; the app is told
        in one go of what was sent within a second.
        """
        device = self.device()
        results = [device.sendMessage({"op": "x"}, TO, f"u-{n}", 60) for n in range(3)]
        self.pump()
        for result in results:
            self.successResultOf(result)
        messages = self.appServer.delivered()
        self.assertEqual(["u-0", "u-1", "u-2"], [message["message_id"] for message in messages])
        self.assertEqual({device.token}, {message["from"] for message in messages})
        self.assertEqual([], self.app.sent)
        self.clock.advance(BATCH)
        self.assertEqual([["u-0", "u-1", "u-2"]], self.app.sent)
        self.appServer.downstream(to=device.token, message_id="d-1", data={"a": "b"}, collapse_key="c")
        self.pump()
        (received,) = self.app.received
        self.assertEqual(({"a": "b"}, "111", "c"), (received.data, received.from_, received.collapse_key))

    def test_offline(self) -> None:
        """
        What is sent without a connection waits, and goes out in order when
        there is one; the time that it waited is told.
        """
        self.network.refuse = True
        device = self.device()
        results = [device.sendMessage({}, TO, f"u-{n}", 3600) for n in range(3)]
        self.pump()
        self.assertEqual(3, device.unsent)
        self.network.refuse = False
        self.clock.advance(31)
        self.pump()
        self.assertEqual(["u-0", "u-1", "u-2"], self.appServer.ids())
        for result in results:
            self.successResultOf(result)

    def test_killed(self) -> None:
        """
        With a file, what was not acknowledged is sent by the next process, as
        the same device, and what was received is not told again.
        """
        first = self.device()
        token = first.token
        self.appServer.downstream(to=token, message_id="d-1")
        self.pump()
        self.network.refuse = True
        self.network.cut()
        self.pump()
        first.sendMessage({"op": "kept"}, TO, "u-1", 3600)
        self.stop(first)
        self.network.refuse = False
        second = self.device()
        self.assertEqual(token, second.token)
        self.assertEqual(["u-1"], self.appServer.ids())
        self.assertEqual(1, len(self.app.received))
        self.assertEqual(0, second.unsent)

    def test_cut(self) -> None:
        """
        What was not acknowledged when the connection broke is sent again, under
        the same name, and arrives once.
        """
        device = self.device()
        self.clock.advance(STABLE)
        result = device.sendMessage({"op": "x"}, TO, "u-1", 3600)
        # It gets there, and the acknowledgement does not get back.
        (pump,) = self.network._pumps
        for data in (pump.clientIO.getOutBuffer(),):
            pump.server.dataReceived(data)
        self.assertEqual(["u-1"], self.appServer.ids())
        self.network.cut()
        self.assertNoResult(result)
        self.pump()
        self.successResultOf(result)
        self.assertEqual([], self.appServer.ids())
        self.assertEqual(2, self.world.office.counts.uploads)

    def test_strangeNumbers(self) -> None:
        """
        A server may name what it has twice, and what cannot be a number of
        ours; and a number of dropped messages that is none is 0.
        """
        device = self.device()
        result = device.sendMessage({}, TO, "u-1", 3600)
        (pump,) = self.network._pumps
        names = wire.SelectiveAck(id=["1", "1", "9" * 5000, "\u00b9", "x"]).SerializeToString()
        iq = wire.IqStanza(type=wire.IqStanza.SET, id="", extension=wire.Extension(id=12, data=names))
        pump.client.dataReceived(encodeFrame(Tag.IQ_STANZA, iq.SerializeToString()))
        self.successResultOf(result)
        for number, total in enumerate(("7", "9" * 5000, "\u00b9", "")):
            stanza = wire.DataMessageStanza(category=APP, persistent_id=f"p-{number}")
            setattr(stanza, "from", "111")
            stanza.app_data.add(key="message_type", value="deleted_messages")
            stanza.app_data.add(key="total_deleted", value=total)
            pump.client.dataReceived(encodeFrame(Tag.DATA_MESSAGE_STANZA, stanza.SerializeToString()))
        self.assertEqual([7, 0, 0, 0], self.app.deleted)
        self.network.cut()

    def test_nowOrNever(self) -> None:
        """
        A C{timeToLive} of 0 needs a connection; if that breaks, the message has
        failed.
        """
        self.network.refuse = True
        device = self.device()
        failure = self.failureResultOf(device.sendMessage({}, TO, "u-1", 0), NotSent)
        self.assertEqual("service_not_available", failure.value.error)
        self.network.refuse = False
        self.clock.advance(31)
        self.pump()
        result = device.sendMessage({}, TO, "u-2", 0)
        self.network.cut()
        self.failureResultOf(result, NotSent)

    def test_refused(self) -> None:
        """
        What cannot be sent is refused at once.
        """
        device = self.device()
        for arguments, error in (
            (({}, TO, "", 9), "invalid_parameters"),
            (({}, "", "u", 9), "invalid_parameters"),
            (({"a": 1}, TO, "u", 9), "invalid_parameters"),
            (({"a": "\ud800"}, TO, "u", 9), "invalid_parameters"),
            (({}, "\ud800", "u", 9), "invalid_parameters"),
            (({"a": "x" * 4096}, TO, "u", 9), "messagetoobig"),
        ):
            failure = self.failureResultOf(device.sendMessage(*arguments), NotSent)  # type: ignore[arg-type]
            self.assertEqual(error, failure.value.error)
        self.assertEqual(0, device.unsent)

    def test_tooMany(self) -> None:
        """
        No more wait than may.
        """
        self.network.refuse = True
        device = self.device()
        results = [device.sendMessage({}, TO, f"u-{n}", 9) for n in range(UNSENT + 1)]
        failure = self.failureResultOf(results[-1], NotSent)
        self.assertEqual("toomanymessages", failure.value.error)

    def test_expired(self) -> None:
        """
        What has waited for too long fails when it would be sent.
        """
        self.network.refuse = True
        device = self.device()
        result = device.sendMessage({}, TO, "u-1", 20)
        self.network.refuse = False
        self.clock.advance(31)
        self.pump()
        self.failureResultOf(result, NotSent)
        self.assertEqual([], self.appServer.ids())
        self.clock.advance(BATCH)
        self.assertEqual([[("u-1", "service_not_available")]], self.app.failed)

    def test_sendError(self) -> None:
        """
        What fails at the connection server is told.
        """
        self.appServer.lose()
        device = self.device()
        result = device.sendMessage({}, TO, "u-1", 5)
        self.pump()
        self.successResultOf(result)
        self.clock.advance(6)
        self.pump()
        self.clock.advance(BATCH)
        self.assertEqual([[("u-1", "service_not_available")]], self.app.failed)

    def test_deleted(self) -> None:
        """
        The app is told how many messages were dropped for it.
        """
        device = self.device()
        token = device.token
        self.stop(device)
        for number in range(101):
            self.appServer.downstream(to=token, message_id=f"d-{number}")
        self.device()
        self.assertEqual([100], self.app.deleted)
        self.assertEqual(1, len(self.app.received))

    def test_noApp(self) -> None:
        """
        What comes while there is no app stays at the connection server for a
        later one.
        """
        app, self.app = self.app, None  # type: ignore[assignment]  # as fcmxmpp device send
        first = self.device()
        self.appServer.downstream(to=first.token, message_id="d-1")
        self.pump()
        self.stop(first)
        self.app = app
        self.device()
        self.assertEqual(1, len(app.received))

    def test_appFails(self) -> None:
        """
        A message on which the app fails comes again after the next login, and
        until then it has not been received.
        """

        def failing() -> None:
            raise ValueError("no")

        self.app.answer = failing
        device = self.device()
        self.appServer.downstream(to=device.token, message_id="d-1")
        self.pump()
        self.assertEqual(1, len(self.flushLoggedErrors(ValueError)))
        self.app.answer = None
        for _ in range(2):
            self.clock.advance(STABLE)
            self.network.cut()
            self.pump()
            self.assertEqual(2, len(self.app.received))

    def reconnect(self) -> None:
        """
        Have the connection lost, and made again.
        """
        self.clock.advance(STABLE)
        self.network.cut()
        self.pump()

    def test_inTheAppsHands(self) -> None:
        """
        A message whose Deferred has not fired is not given to the app again, on
        whichever connection it comes again; when it fires, it is that one on
        which it is acknowledged.
        """
        waiting: Deferred[None] = Deferred()
        self.app.answer = lambda: waiting
        device = self.device()
        self.appServer.downstream(to=device.token, message_id="d-1", delivery_receipt_requested=True)
        self.pump()
        for _ in range(2):
            self.reconnect()
            self.assertEqual(1, len(self.app.received))
        registration = self.successResultOf(self.world.store.registrations.lookUp(device.token))
        left = self.world.store.mailboxes.waiting
        self.assertEqual(1, self.successResultOf(left(registration.android_id)))
        waiting.callback(None)
        self.pump()
        self.assertEqual(0, self.successResultOf(left(registration.android_id)))
        self.reconnect()
        self.assertEqual(1, len(self.app.received))

    def test_failsInTheAppsHands(self) -> None:
        """
        If the app fails on it after all, it is given to the app again at the
        next login, and not before.
        """
        waiting: Deferred[None] = Deferred()
        self.app.answer = lambda: waiting
        device = self.device()
        self.appServer.downstream(to=device.token, message_id="d-1")
        self.pump()
        self.reconnect()
        waiting.errback(ValueError("no"))
        self.pump()
        self.assertEqual(1, len(self.flushLoggedErrors(ValueError)))
        self.assertEqual(1, len(self.app.received))
        self.app.answer = None
        self.reconnect()
        self.assertEqual(2, len(self.app.received))

    def test_twiceInTheAppsHands(self) -> None:
        """
        A server may send it twice on one connection, too, and has both
        acknowledged.
        """
        waiting: Deferred[None] = Deferred()
        self.app.answer = lambda: waiting
        self.device()
        (pump,) = self.network._pumps
        stanza = wire.DataMessageStanza(category=APP, persistent_id="p-1", immediate_ack=True)
        setattr(stanza, "from", "111")
        for _ in range(2):
            pump.client.dataReceived(encodeFrame(Tag.DATA_MESSAGE_STANZA, stanza.SerializeToString()))
        self.assertEqual(1, len(self.app.received))
        pump.clientIO.getOutBuffer()
        waiting.callback(None)
        *_, (_tag, body) = FrameDecoder().feed(b"\x29" + pump.clientIO.getOutBuffer())
        self.assertEqual(4, wire.IqStanza.FromString(body).last_stream_id_received)
        self.network.cut()

    def test_nameless(self) -> None:
        """
        Messages without a name, as a server may send those that are now or
        never, are all given to the app.
        """
        waiting: Deferred[None] = Deferred()
        self.app.answer = lambda: waiting
        self.device()
        (pump,) = self.network._pumps
        stanza = wire.DataMessageStanza(category=APP)
        setattr(stanza, "from", "111")
        for _ in range(2):
            pump.client.dataReceived(encodeFrame(Tag.DATA_MESSAGE_STANZA, stanza.SerializeToString()))
        self.assertEqual(2, len(self.app.received))
        waiting.callback(None)
        pump.client.dataReceived(encodeFrame(Tag.DATA_MESSAGE_STANZA, stanza.SerializeToString()))
        self.assertEqual(3, len(self.app.received))
        self.network.cut()

    def test_stopWithTheApp(self) -> None:
        """
        What an app does with a message after the device was stopped is too late:
        it comes again at the next start.
        """
        waiting: Deferred[None] = Deferred()
        self.app.answer = lambda: waiting
        device = self.device()
        self.appServer.downstream(to=device.token, message_id="d-1")
        self.pump()
        self.stop(device)
        waiting.callback(None)
        self.app.answer = None
        self.device()
        self.assertEqual(2, len(self.app.received))

    def test_backOff(self) -> None:
        """
        It connects again after 30 s, 60 s and so on up to 10 minutes, and at
        once if the connection had lasted.
        """
        self.network.refuse = True
        device = self.device()
        times = []
        for _ in range(8):
            attempts, began = self.network.attempts, self.clock.seconds()
            while self.network.attempts == attempts:
                self.clock.advance(5)
            times.append(self.clock.seconds() - began)
        self.assertEqual([30, 60, 120, 240, 480, 600, 600, 600], times)
        self.network.refuse = False
        self.clock.advance(600)
        self.pump()
        self.clock.advance(STABLE)
        self.network.cut()
        self.pump()
        self.successResultOf(device.whenReady())

    def test_unknown(self) -> None:
        """
        If the server does not know it any more, it checks in anew, and sends
        what it had kept.
        """
        first = self.device()
        token = first.token
        self.network.refuse = True
        self.network.cut()
        first.sendMessage({}, TO, "u-1", 3600)
        self.stop(first)
        cache = DeviceCache(self.path)
        identity = cache.identity
        assert identity is not None
        cache.identity = identity._replace(security_token=1)
        cache.close()
        self.network.refuse = False
        second = self.device()
        for _ in range(40):
            self.clock.advance(1)
            self.pump()
        self.assertNotEqual(token, second.token)
        self.assertEqual(["u-1"], self.appServer.ids())

    def test_loginRefused(self) -> None:
        """
        A server that refuses a login for another reason than that it does not
        know the device, such as that it is overloaded, is asked again, later
        each time, by the same device.
        """
        logins: list[str] = []
        codes = iter((503, 500, UNAUTHORIZED, 503))
        factory = Factory.forProtocol(lambda: Refusing(logins, next(codes)))
        factory.noisy = False
        self.network = MemoryNetwork(self.clock, factory)
        with capturedLogs() as events:
            device = self.device()
            tokens = [device.token]
            for delay in (30, 60, 120):
                self.clock.advance(delay - 1)
                self.pump()
                self.assertEqual(len(tokens), len(logins))
                self.clock.advance(1)
                self.pump()
                tokens.append(device.token)
        known, *others, new = logins
        self.assertEqual([known, known], others)
        self.assertNotEqual(known, new)
        first, second, forgotten, fourth = tokens
        self.assertEqual((first, None), (second, forgotten))
        self.assertNotIn(fourth, (first, None))
        reasons = [event["reason"] for event in events if "reason" in event]
        self.assertEqual([f"the login is refused with code {code}" for code in (503, 500, 401, 503)], reasons)

    def test_silence(self) -> None:
        """
        A silent server gets a heartbeat, and is given up if it stays silent.
        """
        device = self.device(heartbeat=100.0)
        self.clock.advance(100)
        self.pump()
        self.successResultOf(device.whenReady())
        self.network.silent = True
        self.clock.advance(100)
        self.clock.advance(60)
        self.network.silent = False
        self.pump()
        self.successResultOf(device.whenReady())
        self.assertEqual(2, self.network.attempts)

    def refusing(self, answers: dict[str, tuple[int, bytes]]) -> None:
        """
        Have the HTTP side answer otherwise.
        """

        class Answering(Resource):
            isLeaf = True

            def render_POST(self, request: Any) -> bytes:
                status, body = answers[request.path.decode()]
                request.setResponseCode(status)
                return body

        self.agent = RequestTraversalAgent(Answering())

    def test_registrationFails(self) -> None:
        """
        Whatever the HTTP side answers, the device says what is wrong, and tries
        again later; as a new one if it is not known.
        """
        identity = wire.CheckinResponse(stats_ok=True, android_id=5, security_token=6).SerializeToString()
        good = (200, identity)
        for answers, expected in (
            ({"/checkin": (500, b"")}, "HTTP 500"),
            ({"/checkin": (200, b"\xff")}, "no answer to a check-in"),
            ({"/checkin": (200, b"")}, "without an identity"),
            (
                {"/checkin": (200, wire.CheckinResponse(stats_ok=True).SerializeToString())},
                "without an identity",
            ),
            ({"/checkin": (200, bytes(70_000))}, "more than"),
            ({"/checkin": good, "/c2dm/register3": (200, b"Error=INVALID_SENDER")}, "INVALID_SENDER"),
            (
                {"/checkin": good, "/c2dm/register3": (503, b"Error=InternalServerError")},
                "InternalServerError",
            ),
            ({"/checkin": good, "/c2dm/register3": (200, b"hello")}, "no token"),
            (
                {"/checkin": good, "/c2dm/register3": (200, b"Error=AUTHENTICATION_FAILED")},
                "AUTHENTICATION_FAILED",
            ),
        ):
            self.refusing(answers)
            path = os.path.join(self.directory, expected.replace(" ", "-"))
            with capturedLogs() as events:
                device = self.device(path)
            (reason,) = [event["reason"] for event in events if "reason" in event]
            self.assertIn(expected, reason)
            self.assertEqual(0, self.network.attempts)
            self.stop(device)
            cache = DeviceCache(path)
            isNew = expected == "AUTHENTICATION_FAILED" or "/c2dm/register3" not in answers
            self.assertEqual(isNew, cache.identity is None)
            cache.close()

    def test_bug(self) -> None:
        """
        A fault of ours is logged as one, and does not end it.
        """
        self.patch(self.network, "connect", lambda factory: 1 // 0)
        device = self.device()
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
        self.assertTrue(device.running)

    def test_slowRefusal(self) -> None:
        """
        A check-in that takes long and fails is no connection that has lasted.
        """
        self.refusing({"/checkin": (500, b"")})
        self.agent.request = lambda *_: Deferred()  # type: ignore[method-assign]
        with capturedLogs() as events:
            self.device()
            self.clock.advance(31)
        (delay,) = [event["delay"] for event in events if "delay" in event]
        self.assertEqual(30, delay)

    def test_slowLogin(self) -> None:
        """
        Nor is a connection on which the login is not answered.
        """
        self.network.silent = True
        with capturedLogs() as events:
            self.device()
            for _ in range(2):
                self.clock.advance(LOGIN_DEADLINE)
                self.pump()
                self.clock.advance(30)
                self.pump()
        self.assertEqual([30, 60], [event["delay"] for event in events if "delay" in event])
        self.network.silent = False

    def test_topics(self) -> None:
        """
        An app subscribes to a topic, unsubscribes, and unregisters.
        """
        device = self.device()
        http = DeviceHTTP(self.agent, "http://server.example", self.clock)
        cache = DeviceCache(self.path)
        self.addCleanup(cache.close)
        identity = cache.identity
        assert identity is not None and device.token is not None
        registrations = self.world.store.registrations
        for isSubscribed, expected in ((True, ["x"]), (False, [])):
            changed = Deferred.fromCoroutine(
                http.changeTopic(identity, device.token, APP, "/topics/x", isSubscribed)
            )
            self.pump()
            self.successResultOf(changed)
            self.assertEqual(expected, list(self.successResultOf(registrations.topicsOf(device.token))))
        gone = Deferred.fromCoroutine(http.unregister(identity, "111", APP))
        self.pump()
        self.successResultOf(gone)
        self.assertIsNone(self.successResultOf(registrations.lookUp(device.token)))

    def test_stopWhileConnecting(self) -> None:
        """
        It may be stopped at any moment, and whoever waits for it is told.
        """
        self.network.hold = True
        device = self.device()
        ready = device.whenReady()
        self.stop(device)
        self.failureResultOf(ready, CancelledError)
        idle = Device(
            self.clock,
            self.network,
            None,
            "111",
            APP,  # type: ignore[arg-type]  # never asked
        )
        self.successResultOf(idle.stopService())

    def deaf(self) -> None:
        """
        Have no end of the connection follow when the device closes its own.
        """
        (pump,) = self.network._pumps
        self.patch(pump.clientIO, "loseConnection", lambda: None)

    def test_serverStaysOn(self) -> None:
        """
        A server that does not close its end of the connection is not waited for
        any longer than L{CLOSING}.
        """
        device = self.device()
        self.deaf()
        stopped = device.stopService()
        self.pump()
        self.clock.advance(CLOSING - 0.1)
        self.pump()
        self.assertNoResult(stopped)
        self.clock.advance(0.1)
        self.pump()
        self.successResultOf(stopped)

    def test_closesOnce(self) -> None:
        """
        What is closed already, because of something that the server has said,
        is gone as soon if the device is stopped meanwhile; and the device has
        nothing sent there.
        """
        device = self.device()
        self.deaf()
        (pump,) = self.network._pumps
        pump.server.transport.write(encodeFrame(Tag.CLOSE, b""))
        self.pump()
        self.failureResultOf(device.sendMessage({}, TO, "u-1", 0), NotSent)
        kept = device.sendMessage({}, TO, "u-2", 60)
        self.clock.advance(CLOSING / 2)
        stopped = device.stopService()
        self.clock.advance(CLOSING / 2)
        self.pump()
        self.successResultOf(stopped)
        self.assertNoResult(kept)
        self.assertEqual([], self.appServer.ids())

    def test_goodbyeAtOnce(self) -> None:
        """
        A server may let a device in and say goodbye in one breath: what the
        device has kept is for the next connection.
        """
        self.network.refuse = True
        device = self.device()
        kept = device.sendMessage({}, TO, "u-1", 3600)
        self.network.refuse = False
        self.network.silent = True
        self.clock.advance(30)
        (pump,) = self.network._pumps
        answer = wire.LoginResponse(id="").SerializeToString()
        pump.client.dataReceived(
            b"\x29" + encodeFrame(Tag.LOGIN_RESPONSE, answer) + encodeFrame(Tag.CLOSE, b"")
        )
        self.assertNoResult(kept)
        self.network.silent = False
        self.pump()
        self.clock.advance(60)
        self.pump()
        self.successResultOf(kept)
        self.assertEqual(["u-1"], self.appServer.ids())

    def test_stopInAnAnswer(self) -> None:
        """
        Whoever is told at the login that a message has waited for too long may
        stop the device: what else waits is not sent any more.
        """
        self.network.refuse = True
        device = self.device()
        stopped: list[Deferred[None]] = []
        device.sendMessage({}, TO, "u-1", 20).addErrback(lambda _: stopped.append(device.stopService()))
        kept = device.sendMessage({}, TO, "u-2", 60)
        self.network.refuse = False
        self.clock.advance(30)
        self.pump()
        self.successResultOf(stopped[0])
        self.assertNoResult(kept)
        self.assertEqual([], self.appServer.ids())

    def test_stopInALoss(self) -> None:
        """
        So may whoever is told that a message will never be sent, because the
        connection is lost: the device does not connect again.
        """
        device = self.device()
        stopped: list[Deferred[None]] = []
        device.sendMessage({}, TO, "u-1", 0).addErrback(lambda _: stopped.append(device.stopService()))
        self.network.cut()
        self.successResultOf(stopped[0])
        self.clock.advance(60)
        self.pump()
        self.assertEqual(1, self.network.attempts)

    def test_afterTheEnd(self) -> None:
        """
        What comes when the device has closed its end is not for the app, and
        sets nothing going: it comes again at the next start.
        """
        device = self.device()
        self.deaf()
        stopped = device.stopService()
        self.appServer.downstream(to=device.token, message_id="d-1")
        self.pump()
        self.assertEqual([], self.app.received)
        mine = [call for call in self.clock.getDelayedCalls() if "fcmxmpp.device" in str(call.func)]
        self.assertEqual(["_abort"], [call.func.__name__ for call in mine])
        self.clock.advance(CLOSING)
        self.pump()
        self.successResultOf(stopped)
        self.device()
        self.assertEqual(1, len(self.app.received))

    def test_stopInTheApp(self) -> None:
        """
        An app may stop the device over a message: what came along with that is
        not for it any more.
        """
        device = self.device()
        stopped: list[Deferred[None]] = []
        self.app.answer = lambda: stopped.append(device.stopService())
        self.network.silent = True
        for number in range(2):
            self.appServer.downstream(to=device.token, message_id=f"d-{number}")
        self.network.silent = False
        self.pump()
        self.assertEqual(1, len(self.app.received))
        self.successResultOf(stopped[0])

    def test_otherApps(self) -> None:
        """
        What is for another app on the same device is none of this one's.
        """
        device = self.device()
        cache = DeviceCache(self.path)
        self.addCleanup(cache.close)
        assert cache.identity is not None
        other = self.world.register(cache.identity, category="org.example.other")
        self.appServer.downstream(to=other, message_id="d-1")
        self.pump()
        self.assertEqual([], self.app.received)
        self.successResultOf(device.whenReady())

    def test_coroutine(self) -> None:
        """
        An app's method may be C{async}.
        """

        async def answer() -> None:
            waiting.append(None)

        waiting: list[None] = []
        self.app.answer = answer
        device = self.device()
        self.appServer.downstream(to=device.token, message_id="d-1")
        self.pump()
        self.assertEqual([None], waiting)

    def test_lockedFile(self) -> None:
        """
        A file that does not work any more is said, as whatever else there is
        against a message, and nothing is taken over.
        """
        device = self.device()
        with closing(sqlite3.connect(self.path)) as other:
            other.execute("DROP TABLE unsent")
        self.failureResultOf(device.sendMessage({}, TO, "u-1", 60), CacheUnusable)
        self.assertEqual(0, device.unsent)

    def test_file(self) -> None:
        """
        A file that cannot be used is said in one line; what is in a good one
        nobody else can read.
        """
        error = self.assertRaises(CacheUnusable, DeviceCache, os.path.join(self.directory, "no", "file"))
        self.assertIn("No such file or directory", str(error))
        self.device()
        self.assertEqual(0o600, os.stat(self.path).st_mode & 0o777)
