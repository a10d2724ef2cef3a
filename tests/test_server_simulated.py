"""
Tests for L{fcmxmpp.server.simulated}.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from fcmxmpp.errors import FCMError
from fcmxmpp.messages import DownstreamMessage
from fcmxmpp.server.registry import IDeviceCallbacks, Registry
from fcmxmpp.server.service import ConnectionServer
from fcmxmpp.server.simulated import DeliveryFailed, SimulatedDevice
from fcmxmpp.testing import SENDER_ID, ConnectedPair, RecordingHandler, connectedPair


class SimulatedDeviceTests(SynchronousTestCase):
    """
    L{SimulatedDevice} sends to its app server and is told what becomes of it.
    """

    def makePair(self, handler: RecordingHandler | None = None) -> ConnectedPair:
        """
        Join an app server and a connection server with a device; when the test
        is over they have to stop without a trace.
        """
        pair = connectedPair(handler or RecordingHandler())
        self.addCleanup(self.assertStops, pair)
        return pair

    def assertStops(self, pair: ConnectedPair) -> None:
        """
        Assert that both ends stop and leave nothing behind.
        """
        stopped = [pair.stop(), pair.connectionServer.stopService()]
        pair.advance(11)
        for one in stopped:
            self.successResultOf(one)
        self.assertEqual([], pair.clock.getDelayedCalls())

    def alone(self) -> SimulatedDevice:
        """
        A device whose app server is not there.
        """
        return SimulatedDevice(ConnectionServer(Registry({}), Clock()), SENDER_ID, "tok-A")

    def failed(self, result: Deferred[None]) -> str:
        """
        The code that a send has failed with.
        """
        error = self.failureResultOf(result, DeliveryFailed).value
        self.assertIsInstance(error, FCMError)
        self.assertEqual(error.error, str(error))
        code: str = error.error
        return code

    def test_interface(self) -> None:
        """
        It is what a connection server tells things to.
        """
        verifyObject(IDeviceCallbacks, self.alone())

    def test_registered(self) -> None:
        """
        It registers itself, with its app and its app server.
        """
        server = ConnectionServer(Registry({}), Clock())
        self.assertIsNone(server.registry.device("tok-B"))
        simulated = SimulatedDevice(server, "111", "tok-B", "org.example.other")
        device = server.registry.device("tok-B")
        assert device is not None
        self.assertEqual(("111", "org.example.other"), (device.senderID, device.category))
        self.assertIs(simulated, device.callbacks)

    def test_delivered(self) -> None:
        """
        A message is stored by the connection server first, and delivered when
        the app server has acknowledged it; then the Deferred fires.
        """
        result: Deferred[None] = Deferred()
        handler = RecordingHandler(lambda _: result)
        pair = self.makePair(handler)
        sent = pair.device.send("m-1", {"op": "ping"}, 60)
        pair.pump()
        self.assertEqual((["m-1"], []), (pair.device.stored, pair.device.delivered))
        self.assertNoResult(sent)
        result.callback(None)
        pair.pump()
        self.assertEqual((["m-1"], []), (pair.device.delivered, pair.device.failed))
        self.assertIsNone(self.successResultOf(sent))
        (message,) = handler.messages
        self.assertEqual(
            ("tok-A", "m-1", {"op": "ping"}, 60, "org.example.app"),
            (message.from_, message.message_id, message.data, message.time_to_live, message.category),
        )

    def test_refused(self) -> None:
        """
        A message that the connection server does not take fails at once.
        """
        for message_id, data, time_to_live, code in (
            ("", {}, None, "INVALID_PARAMETERS"),
            ("m-1", {"k": "x" * 5000}, None, "SIZE"),
            ("m-1", {}, 0, "TTL_EXCEEDED"),
        ):
            device = self.alone()
            self.assertEqual(code, self.failed(device.send(message_id, data, time_to_live)))
            self.assertEqual(([(message_id, code)], []), (device.failed, device.stored))

    def test_expired(self) -> None:
        """
        A message that was stored and not delivered in time fails later.
        """
        pair = self.makePair()
        pair.network.refuse = True
        pair.cut()
        sent = pair.device.send("m-1", {}, 30)
        self.assertEqual(["m-1"], pair.device.stored)
        pair.advance(31)
        pair.network.refuse = False
        pair.advance(60)
        self.assertEqual("TTL_EXCEEDED", self.failed(sent))
        self.assertEqual(([("m-1", "TTL_EXCEEDED")], []), (pair.device.failed, pair.device.delivered))

    def test_sameID(self) -> None:
        """
        Each send of the same message has an outcome of its own, in order.
        """
        pair = self.makePair()
        first, second = pair.device.send("m-1", {}), pair.device.send("m-1", {})
        pair.pump()
        self.successResultOf(first)
        self.successResultOf(second)
        third = pair.device.send("m-1", {})
        pair.pump()
        # A duplicate for the app server, and acknowledged again.
        self.successResultOf(third)
        self.assertEqual(["m-1"] * 3, pair.device.delivered)

    def test_sameIDFails(self) -> None:
        """
        A send that fails at once leaves the earlier one waiting.
        """
        pair = self.makePair(RecordingHandler(lambda _: Deferred()))
        first = pair.device.send("m-1", {})
        second = pair.device.send("m-1", {"k": "x" * 5000})
        self.assertNoResult(first)
        self.assertEqual("SIZE", self.failed(second))

    def test_sendWhenTold(self) -> None:
        """
        An app may send the same message again when it is told of the outcome.
        """
        device = self.alone()
        again: list[Deferred[None]] = []
        sent = device.send("m-1", {}, 0)
        sent.addErrback(lambda _: again.append(device.send("m-1", {}, 0)))
        self.successResultOf(sent)
        self.assertEqual("TTL_EXCEEDED", self.failed(again[0]))

    def test_received(self) -> None:
        """
        It notes what the app server sends.
        """
        pair = self.makePair()
        message = DownstreamMessage(to="tok-A", message_id="m-1", data={"k": "v"})
        result = pair.appServer.send(message)
        pair.pump()
        self.assertEqual([message], pair.device.received)
        self.assertEqual("m-1", self.successResultOf(result).message_id)
