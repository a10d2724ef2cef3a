"""
Tests for L{fcmxmpp.server.service} and L{fcmxmpp.server.custody} with a store:
what is told when, and what comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, eventAsText
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from fcmxmpp.entries import EntrustedEntry
from fcmxmpp.errors import Stopped, StoreUnavailable
from fcmxmpp.interfaces import IEntrusted
from fcmxmpp.messages import MAX_UPSTREAM_TTL, Receipt, UpstreamMessage
from fcmxmpp.server import custody, service
from fcmxmpp.server.registry import Device, Registry
from fcmxmpp.server.service import ConnectionServer
from fcmxmpp.server.simulated import DeliveryFailed, SimulatedDevice
from fcmxmpp.store.memory import MemoryEntrusted
from tests.test_server_service import SENDERS, Callbacks, Client


@implementer(IEntrusted)
class SlowEntrusted:
    """
    A store that does what it is asked for when it is told to, or fails.

    @ivar slow: whether calls wait.
    @ivar error: what they fail with, if it is set when their turn comes.
    @ivar waiting: those that wait, by their method and first argument.
    @ivar calls: all that there were.
    """

    def __init__(self, memory: MemoryEntrusted) -> None:
        self._memory = memory
        self.slow = False
        self.error: Exception | None = None
        self.waiting: list[tuple[str, Deferred[Any], Callable[[], Deferred[Any]]]] = []
        self.calls: list[str] = []

    def _do(self, name: str, action: Callable[[], Deferred[Any]]) -> Deferred[Any]:
        """
        Do something, now or later.
        """
        self.calls.append(name)
        if self.slow:
            result: Deferred[Any] = Deferred()
            self.waiting.append((name, result, action))
            return result
        return action() if self.error is None else fail(self.error)

    def go(self, which: int = 0) -> None:
        """
        Do one of what waits.
        """
        _, result, action = self.waiting.pop(which)
        (action() if self.error is None else fail(self.error)).chainDeferred(result)

    def goAll(self) -> None:
        """
        Do all that waits, in order, and what comes of it.
        """
        while self.waiting:
            self.go()

    def add(
        self, senderID: str, message: UpstreamMessage | Receipt, expires: float, upload: bytes | None = None
    ) -> Deferred[EntrustedEntry | None]:
        """
        See L{IEntrusted.add}.
        """
        return self._do(
            f"add {message.message_id}", lambda: self._memory.add(senderID, message, expires, upload)
        )

    def load(self, after: int, limit: int) -> Deferred[list[EntrustedEntry]]:
        """
        See L{IEntrusted.load}.
        """
        return self._do(f"load {after}", lambda: self._memory.load(after, limit))

    def remove(self, number: int) -> Deferred[None]:
        """
        See L{IEntrusted.remove}.
        """
        return self._do(f"remove {number}", lambda: self._memory.remove(number))


FULL = StoreUnavailable("the disk is full: make room")


class Harness:
    """
    A connection server with a store, which can die and come back.

    @ivar clock: the time.
    @ivar memory: what is stored.
    @ivar store: what stands before it.
    @ivar server: the server.
    @ivar app: the app on the device.
    @ivar device: the device.
    """

    server: ConnectionServer
    app: Callbacks
    device: Device

    def __init__(self) -> None:
        self.clock = Clock()
        self.memory = MemoryEntrusted(self.clock.seconds, 9999.0)
        self.make()

    def make(self, receipts: bool = True) -> None:
        """
        Make a server, as a new process would; the one before it is dead.
        """
        for call in list(self.clock.getDelayedCalls()):
            call.cancel()
        self.store = SlowEntrusted(self.memory)
        numbers = count(0xABCDEF)
        self.server = ConnectionServer(
            Registry(SENDERS),
            self.clock,
            lambda size: next(numbers).to_bytes(size, "big"),
            receipts,
            self.store,
        )
        self.clients: list[Client] = []
        self.app = Callbacks()
        self.device = self.makeDevice("tok-A")

    def makeDevice(self, token: str) -> Device:
        """
        Register a device with the same app.
        """
        device = Device(token, "111", "org.example.app", self.app)
        self.server.registry.add(device)
        return device

    def client(self, senderID: str = "111") -> Client:
        """
        Log an app server in.
        """
        client = Client(self.server)
        self.clients.append(client)
        answer = client.login(senderID)
        client.transport.write(answer[answer.index(b"</iq>") + 5 :])
        return client

    def submit(self, *ids: str, time_to_live: int | None = None, device: Device | None = None) -> None:
        """
        Have the device send messages.
        """
        for message_id in ids:
            self.server.submit(device or self.device, message_id, {}, time_to_live)

    @property
    def stored(self) -> list[str]:
        """
        The C{message_id} of all that is in the store.
        """
        entries: list[EntrustedEntry] = []
        self.memory.load(0, 1000).addCallback(entries.extend)
        return [entry.message.message_id for entry in entries]


class StoreCase(SynchronousTestCase):
    """
    What the test cases of this module share.
    """

    def makeServer(self) -> Harness:
        """
        Start a connection server; when the test is over it has to stop without
        a trace.
        """
        harness = Harness()
        harness.server.startService()
        self.addCleanup(self.assertStops, harness)
        return harness

    def assertStops(self, harness: Harness) -> None:
        """
        Assert that a connection server stops and leaves nothing behind.
        """
        stopped = harness.server.stopService()
        for client in harness.clients:
            client.lose()
        harness.store.goAll()
        self.successResultOf(stopped)
        self.assertEqual([], harness.clock.getDelayedCalls())

    def restart(self, harness: Harness) -> None:
        """
        Have the process die, and another one start.
        """
        harness.make()
        harness.server.startService()


class CommitTests(StoreCase):
    """
    What a device sends is committed before anything else happens to it.
    """

    def test_interface(self) -> None:
        """
        The store of these tests is one.
        """
        verifyObject(IEntrusted, SlowEntrusted(MemoryEntrusted(Clock().seconds, 9999.0)))

    def test_committedFirst(self) -> None:
        """
        Nothing is told, and nothing delivered, before the commit; then the
        device is told first.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.store.slow = True
        harness.submit("u-1")
        self.assertEqual(([], []), (harness.app.told, client.ids()))
        told: list[list[str]] = []
        self.patch(harness.app, "messageStored", lambda message_id: told.append(client.ids()))
        harness.store.go()
        self.assertEqual([[]], told)
        self.assertEqual(["u-1"], client.ids())

    def test_expires(self) -> None:
        """
        The store is given the sender, the message as it will go out, and when
        it expires.
        """
        harness = self.makeServer()
        harness.clock.advance(5)
        harness.submit("u-1", time_to_live=60)
        harness.submit("u-2")
        first, second = self.successResultOf(harness.memory.load(0, 10))
        self.assertEqual(
            (
                "111",
                UpstreamMessage(
                    data={},
                    time_to_live=60,
                    from_="tok-A",
                    message_id="u-1",
                    category="org.example.app",
                ),
                65.0,
            ),
            (first.senderID, first.message, first.expires),
        )
        self.assertEqual(5.0 + MAX_UPSTREAM_TTL, second.expires)

    def test_order(self) -> None:
        """
        Messages keep the order in which they were sent, even if the store is
        done with them in another; each device is told as soon as its own is
        committed.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.store.slow = True
        harness.submit("u-1", "u-2", "u-3")
        harness.store.go(1)
        self.assertEqual(([("stored", "u-2")], []), (harness.app.told, client.ids()))
        harness.store.go(0)
        self.assertEqual(["u-1", "u-2"], client.ids())
        harness.store.go()
        self.assertEqual(["u-3"], client.ids())

    def test_orderAfterFailure(self) -> None:
        """
        What is behind a message that could not be committed does not wait for
        it any longer.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.store.slow = True
        harness.submit("u-1", "u-2")
        harness.store.go(1)
        harness.store.error = FULL
        harness.store.go()
        self.assertEqual(["u-2"], client.ids())
        self.assertEqual([("u-1", "SERVICE_NOT_AVAILABLE")], harness.app.failed)

    def test_againWhileCommitting(self) -> None:
        """
        The same message once more, while it is being committed or on its way:
        one entry, one delivery; the device is told each time, after the
        commit.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.store.slow = True
        harness.submit("u-1", "u-1")
        self.assertEqual([], harness.app.told)
        harness.store.go()
        self.assertEqual([("stored", "u-1")] * 2, harness.app.told)
        harness.submit("u-1")
        self.assertEqual([("stored", "u-1")] * 3, harness.app.told)
        self.assertEqual((["u-1"], ["u-1"]), (harness.stored, client.ids()))
        client.ack("u-1")
        self.assertEqual(["u-1"] * 3, harness.app.delivered)
        self.assertEqual(["load 0", "add u-1", "remove 1"], harness.store.calls)

    def test_acknowledged(self) -> None:
        """
        An ACK takes effect at once, and removes the entry; the same message
        sent again after that is a new one.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.submit("u-1")
        harness.store.slow = True
        client.ack("u-1")
        self.assertEqual((["u-1"], ["u-1"]), (harness.app.delivered, harness.stored))
        harness.submit("u-1")
        harness.store.go()
        self.assertEqual([], harness.stored)
        harness.store.go()
        self.assertEqual((["u-1", "u-1"], ["u-1"]), (client.ids(), harness.stored))

    def test_expired(self) -> None:
        """
        So does the end of its time.
        """
        harness = self.makeServer()
        harness.submit("u-1", time_to_live=60)
        harness.clock.pump([61, 60])
        self.assertEqual(([("u-1", "TTL_EXCEEDED")], []), (harness.app.failed, harness.stored))

    def test_expiredWhileCommitting(self) -> None:
        """
        A message whose time runs out during its commit is not delivered.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.store.slow = True
        harness.submit("u-1", time_to_live=1)
        harness.clock.advance(2)
        harness.store.goAll()
        self.assertEqual([("stored", "u-1"), ("failed", "u-1", "TTL_EXCEEDED")], harness.app.told)
        self.assertEqual(([], []), (client.ids(), harness.stored))

    def test_storeUnavailable(self) -> None:
        """
        If the commit fails the device is told so, each time it has sent the
        message, and that it may send it again; nothing is kept of it.
        """
        for error in (FULL, Stopped("the store is not open")):
            harness = self.makeServer()
            client = harness.client()
            harness.store.slow = True
            harness.submit("u-1", "u-1")
            harness.store.error = error
            harness.store.go()
            self.assertEqual([("failed", "u-1", "SERVICE_NOT_AVAILABLE")] * 2, harness.app.told)
            harness.store.error = None
            harness.submit("u-1")
            harness.store.go()
            self.assertEqual(("stored", "u-1"), harness.app.told[-1])
            self.assertEqual((["u-1"], ["u-1"]), (client.ids(), harness.stored))

    def test_bugInTheStore(self) -> None:
        """
        What a store must not fail with is logged, and no reason to leave the
        device without an answer.
        """
        harness = self.makeServer()
        harness.store.error = ValueError("a bug")
        with capturedLogs() as events:
            harness.submit("u-1")
        self.assertEqual([("u-1", "SERVICE_NOT_AVAILABLE")], harness.app.failed)
        self.assertEqual(1, len(events))
        self.assertEqual(1, len(self.flushLoggedErrors(ValueError)))

    def test_bugInTheApp(self) -> None:
        """
        What an app fails with is logged, and stops neither the delivery nor
        the end of the server.
        """
        harness = self.makeServer()

        def bug(message_id: str) -> None:
            raise ValueError("a bug")

        self.patch(harness.app, "messageStored", bug)
        harness.submit("u-1")
        self.assertEqual(1, len(self.flushLoggedErrors(ValueError)))
        self.assertEqual(["u-1"], harness.client().ids())

    def test_limit(self) -> None:
        """
        What is being committed counts as waiting.
        """
        self.patch(service, "MAX_QUEUE", 2)
        harness = self.makeServer()
        harness.submit("u-1")
        harness.store.slow = True
        harness.submit("u-2", "u-3")
        self.assertEqual([("u-3", "TOO_MANY_MESSAGES")], harness.app.failed)
        harness.store.goAll()
        self.assertEqual(["u-1", "u-2"], harness.client().ids())

    def test_committedIsTaken(self) -> None:
        """
        What has been committed is taken even if a lost stream has filled the
        queue meanwhile.
        """
        self.patch(service, "MAX_QUEUE", 2)
        harness = self.makeServer()
        client = harness.client()
        harness.submit("u-1", "u-2")
        harness.store.slow = True
        harness.submit("u-3", "u-4")
        client.lose()
        harness.store.goAll()
        self.assertEqual(["u-1", "u-2", "u-3", "u-4"], harness.client().ids())

    def test_receipt(self) -> None:
        """
        A receipt is committed before it goes out, and removed by its ACK; the
        ACK of the message does not wait for that.
        """
        harness = Harness()
        harness.server.startService()
        self.addCleanup(self.assertStops, harness)
        client = harness.client()
        harness.store.slow = True
        answer = client.downstream(
            to="tok-A", message_id="d-1", data={"k": "v"}, delivery_receipt_requested=True
        )
        self.assertEqual("ack", answer["message_type"])
        self.assertEqual([], client.ids())
        harness.store.go()
        self.assertEqual((["dr2:d-1"], ["dr2:d-1"]), (client.ids(), harness.stored))
        client.ack("dr2:d-1", to="gcm.googleapis.com")
        harness.store.go()
        self.assertEqual([], harness.stored)

    def test_receiptNotCommitted(self) -> None:
        """
        A receipt that cannot be committed is given up.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.store.error = FULL
        answer = client.downstream(to="tok-A", message_id="d-1", delivery_receipt_requested=True)
        self.assertEqual("ack", answer["message_type"])
        self.assertEqual(([], []), (client.ids(), harness.app.failed))


class NowOrNeverTests(StoreCase):
    """
    A message with a time to live of 0.
    """

    def test_neverStored(self) -> None:
        """
        It goes out at once, its device is not told that it is stored, because
        it is not, and is told of its delivery.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.submit("u-1", "u-1", time_to_live=0)
        self.assertEqual((["u-1"], [], []), (client.ids(), harness.app.told, harness.stored))
        client.ack("u-1")
        self.assertEqual([("delivered", "u-1")] * 2, harness.app.told)
        self.assertEqual(["load 0"], harness.store.calls)

    def test_never(self) -> None:
        """
        If that is impossible it fails: nobody is there, or an earlier message
        of the device is still being committed.  That of another device does
        not matter.
        """
        harness = self.makeServer()
        harness.submit("u-1", time_to_live=0)
        client = harness.client()
        harness.store.slow = True
        harness.submit("u-2")
        harness.submit("u-3", time_to_live=0)
        self.assertEqual([("u-1", "TTL_EXCEEDED"), ("u-3", "TTL_EXCEEDED")], harness.app.failed)
        harness.submit("u-4", time_to_live=0, device=harness.makeDevice("tok-B"))
        self.assertEqual(["u-4"], client.ids())
        harness.store.go()
        self.assertEqual(["u-2"], client.ids())

    def test_lost(self) -> None:
        """
        If its stream is lost it does not come again.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.submit("u-1", time_to_live=0)
        harness.clock.advance(1.001)
        client.lose()
        self.assertEqual([], harness.client().ids())
        self.assertEqual([("failed", "u-1", "TTL_EXCEEDED")], harness.app.told)

    def test_ofWhatIsStored(self) -> None:
        """
        One that is stored already is stored.
        """
        harness = self.makeServer()
        harness.submit("u-1")
        harness.submit("u-1", time_to_live=0)
        self.assertEqual([("stored", "u-1")] * 2, harness.app.told)


class StartTests(StoreCase):
    """
    What an earlier process has left comes back.
    """

    def test_comesBack(self) -> None:
        """
        All that was not acknowledged comes back, in its order and with its
        time to live, be it queued or out on a stream at the end; receipts,
        too.  What an app server acknowledges then is gone for good.
        """
        self.patch(custody, "PAGE", 2)
        harness = self.makeServer()
        client = harness.client()
        harness.submit("u-1", "u-2", "u-3", time_to_live=60)
        client.sendDownstream(to="tok-A", message_id="d-1", delivery_receipt_requested=True)
        client.ack("u-2")
        client.lose()
        harness.submit("u-4")
        self.restart(harness)
        client = harness.client()
        messages = client.delivered()
        self.assertEqual(["u-1", "u-3", "dr2:d-1", "u-4"], [m["message_id"] for m in messages])
        self.assertEqual([60, 60, 0, MAX_UPSTREAM_TTL], [m["time_to_live"] for m in messages])
        self.assertEqual(["load 0", "load 3", "load 5"], harness.store.calls)
        client.ack("u-1", "u-3", "u-4")
        client.ack("dr2:d-1", to="gcm.googleapis.com")
        self.restart(harness)
        self.assertEqual(([], []), (harness.client().ids(), harness.stored))

    def test_senders(self) -> None:
        """
        Each message goes to the app server of its sender.
        """
        harness = self.makeServer()
        harness.submit("u-1")
        self.restart(harness)
        self.assertEqual([], harness.client("222").ids())
        self.assertEqual(["u-1"], harness.client().ids())

    def test_expired(self) -> None:
        """
        What has expired meanwhile is removed and not delivered; its device is
        told, if it is there.
        """
        harness = self.makeServer()
        harness.submit("u-1", time_to_live=60)
        harness.submit("u-2")
        harness.submit("u-3", time_to_live=60, device=harness.makeDevice("tok-B"))
        harness.make()
        harness.clock.advance(61)
        harness.server.startService()
        self.assertEqual((["u-2"], ["u-2"]), (harness.stored, harness.client().ids()))
        self.assertEqual([("failed", "u-1", "TTL_EXCEEDED")], harness.app.told)

    def test_sentAgainWhenTold(self) -> None:
        """
        What a device sends because it is told of that comes after all that was
        there.
        """
        harness = self.makeServer()
        harness.submit("u-1", time_to_live=60)
        harness.submit("u-2")
        harness.make()
        harness.clock.advance(61)
        self.patch(harness.app, "messageFailed", lambda message_id, error: harness.submit(message_id))
        harness.server.startService()
        self.assertEqual(["u-2", "u-1"], harness.client().ids())

    def test_expiresLater(self) -> None:
        """
        Its time goes on to count from when it was sent first.
        """
        harness = self.makeServer()
        harness.submit("u-1", time_to_live=60)
        harness.clock.advance(50)
        self.restart(harness)
        harness.clock.pump([11, 60])
        self.assertEqual(([], [("u-1", "TTL_EXCEEDED")]), (harness.stored, harness.app.failed))

    def test_deviceIsTold(self) -> None:
        """
        A device that has come back is told of the delivery of what it had
        sent before; once only, if it has sent it again as well.
        """
        harness = self.makeServer()
        harness.submit("u-1", "u-2")
        self.restart(harness)
        client = harness.client()
        harness.submit("u-2")
        client.ack("u-1", "u-2")
        self.assertEqual([("stored", "u-2"), ("delivered", "u-1"), ("delivered", "u-2")], harness.app.told)
        self.assertEqual([], harness.stored)

    def test_deviceIsGone(self) -> None:
        """
        The delivery of what a device has sent that is not there any more is
        nobody's business.
        """
        harness = self.makeServer()
        harness.submit("u-1")
        self.restart(harness)
        harness.server.registry.remove("tok-A")
        harness.client().ack("u-1")
        self.assertEqual(([], []), (harness.stored, harness.app.told))

    def test_whileLoading(self) -> None:
        """
        What is sent and who logs in while the store is read: nothing goes out
        until all is there, and what is new comes after it, in its order.  The
        same message once more is stored already.
        """
        self.patch(custody, "PAGE", 1)
        harness = self.makeServer()
        harness.submit("u-1", "u-2")
        harness.make()
        harness.store.slow = True
        harness.server.startService()
        client = harness.client()
        harness.submit("u-3", "u-2", "u-4")
        harness.store.go()
        self.assertEqual(([], []), (client.ids(), harness.app.told))
        harness.submit("u-0", time_to_live=0)
        self.assertEqual([("failed", "u-0", "TTL_EXCEEDED")], harness.app.told)
        client.sendDownstream(to="tok-A", message_id="d-1", delivery_receipt_requested=True)
        self.assertEqual(["d-1"], [answer["message_id"] for answer in client.answers()])
        harness.store.go()
        self.assertEqual([], client.ids())
        harness.store.go()
        self.assertEqual(["u-1", "u-2"], client.ids())
        self.assertEqual([("stored", "u-2")], harness.app.told[1:])
        harness.store.goAll()
        self.assertEqual(["u-3", "u-4"], client.ids())
        self.assertEqual(["u-1", "u-2", "u-3", "u-4"], harness.stored)

    def test_limitWhileLoading(self) -> None:
        """
        What is sent meanwhile is limited, too.
        """
        self.patch(service, "MAX_QUEUE", 2)
        harness = Harness()
        harness.store.slow = True
        harness.server.startService()
        self.addCleanup(self.assertStops, harness)
        harness.submit("u-1", "u-2", "u-3")
        self.assertEqual([("failed", "u-3", "TOO_MANY_MESSAGES")], harness.app.told)

    def test_cannotBeLoaded(self) -> None:
        """
        If the store cannot be read that is said, and tried again with back-off
        until it can; meanwhile nothing is taken over.
        """
        harness = self.makeServer()
        harness.submit("u-1")
        harness.make()
        harness.store.error = FULL
        with capturedLogs() as events:
            harness.server.startService()
        (text,) = [eventAsText(event) for event in events]
        self.assertIn(
            "what devices have entrusted cannot be loaded: the disk is full: make room; it is tried again",
            text,
        )
        client = harness.client()
        harness.submit("u-2")
        self.assertEqual([], harness.app.told)
        harness.clock.advance(1)
        self.assertEqual([("failed", "u-2", "SERVICE_NOT_AVAILABLE")], harness.app.told)
        harness.clock.advance(1)
        self.assertEqual(["load 0"] * 2, harness.store.calls)
        harness.store.error = None
        harness.submit("u-3")
        harness.clock.advance(1)
        self.assertEqual((["u-1", "u-3"], ["u-1", "u-3"]), (client.ids(), harness.stored))

    def test_twice(self) -> None:
        """
        Of two entries of the same message, left where an ACK did not get into
        the store and the message was sent again, the newer is delivered, for
        it has been promised, and the older removed.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.submit("u-1", time_to_live=60)
        harness.store.error = FULL
        client.ack("u-1")
        harness.store.error = None
        harness.submit("u-2", "u-1")
        self.assertEqual(["u-1", "u-2", "u-1"], harness.stored)
        harness.make()
        harness.clock.advance(61)
        harness.server.startService()
        client = harness.client()
        self.assertEqual((["u-2", "u-1"], ["u-2", "u-1"]), (harness.stored, client.ids()))
        client.ack("u-1", "u-2")
        self.assertEqual(([], []), (harness.stored, harness.app.failed))

    def test_beforeTheStart(self) -> None:
        """
        Nothing is taken over before the start.
        """
        harness = Harness()
        harness.submit("u-1")
        self.assertEqual([("failed", "u-1", "SERVICE_NOT_AVAILABLE")], harness.app.told)

    def test_startedAgain(self) -> None:
        """
        A server that is stopped and started again has everything once.
        """
        harness = self.makeServer()
        harness.submit("u-1")
        self.successResultOf(harness.server.stopService())
        harness.server.startService()
        client = harness.client()
        self.assertEqual((["u-1"], ["u-1"]), (client.ids(), harness.stored))
        client.ack("u-1")
        self.assertEqual([], harness.stored)


class RemoveTests(StoreCase):
    """
    A removal that fails is done later.
    """

    def test_again(self) -> None:
        """
        It is tried again with back-off, together with others that failed
        meanwhile, until it is done; the next failure starts anew.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.submit("u-1", "u-2", "u-3")
        harness.store.error = FULL
        client.ack("u-1")
        client.ack("u-2")
        self.assertEqual(["u-1", "u-2"], harness.app.delivered)
        harness.store.calls.clear()
        for seconds, calls in ((0.5, 0), (0.5, 2), (1.5, 2), (0.5, 4)):
            harness.clock.advance(seconds)
            self.assertEqual(calls, len(harness.store.calls))
        harness.store.error = None
        harness.clock.advance(4)
        self.assertEqual(["u-3"], harness.stored)
        self.assertEqual(["remove 1", "remove 2"], sorted(harness.store.calls[-2:]))
        harness.clock.advance(1000)
        self.assertEqual(6, len(harness.store.calls))
        harness.store.error = FULL
        client.ack("u-3")
        harness.store.error = None
        harness.clock.advance(1)
        self.assertEqual([], harness.stored)


class StopTests(StoreCase):
    """
    The end waits for the store.
    """

    def test_waits(self) -> None:
        """
        It waits for what is being committed, and its devices are told.
        """
        harness = self.makeServer()
        harness.store.slow = True
        harness.submit("u-1", "u-2")
        stopped = harness.server.stopService()
        harness.store.go()
        self.assertNoResult(stopped)
        told: list[object] = []
        stopped.addCallback(lambda _: told.extend(harness.app.told))
        harness.store.go()
        self.successResultOf(stopped)
        self.assertEqual([("stored", "u-1"), ("stored", "u-2")], told)
        harness.server.startService()

    def test_lateACK(self) -> None:
        """
        An ACK on a stream that is being closed is taken, and waited for.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.submit("u-1")
        harness.store.slow = True
        harness.submit("u-2")
        stopped = harness.server.stopService()
        client.lose()
        self.assertNoResult(stopped)
        harness.store.goAll()
        self.successResultOf(stopped)
        self.assertEqual(["u-1", "u-2"], harness.stored)
        harness.server.startService()

    def test_whileLoading(self) -> None:
        """
        What is sent before everything is loaded is not taken over, if it comes
        to that; a server that is stopped so early still has everything.
        """
        harness = self.makeServer()
        harness.submit("u-1")
        harness.make()
        harness.store.slow = True
        harness.server.startService()
        harness.submit("u-2")
        stopped = harness.server.stopService()
        self.assertEqual([("failed", "u-2", "SERVICE_NOT_AVAILABLE")], harness.app.told)
        self.assertNoResult(stopped)
        harness.store.goAll()
        self.successResultOf(stopped)
        self.assertEqual(["u-1"], harness.stored)
        harness.server.startService()
        self.assertEqual(["u-1"], harness.client().ids())

    def test_notLoaded(self) -> None:
        """
        A store that cannot be read does not keep the server from stopping,
        and is not tried any more.
        """
        harness = Harness()
        harness.store.error = FULL
        with capturedLogs():
            harness.server.startService()
        self.assertEqual(1, len(harness.clock.getDelayedCalls()))
        self.successResultOf(harness.server.stopService())
        self.assertEqual([], harness.clock.getDelayedCalls())

    def test_notRemoved(self) -> None:
        """
        What could not be removed is tried once more; if that fails as well it
        will be delivered again.
        """
        for works in (True, False):
            harness = self.makeServer()
            client = harness.client()
            harness.submit("u-1")
            harness.store.error = FULL
            client.ack("u-1")
            if works:
                harness.store.error = None
            stopped = harness.server.stopService()
            client.lose()
            self.successResultOf(stopped)
            self.assertEqual([], harness.clock.getDelayedCalls())
            self.assertEqual([] if works else ["u-1"], harness.stored)
            harness.store.error = None
            harness.server.startService()
            self.assertEqual([], harness.stored)


class SimulatedDeviceTests(StoreCase):
    """
    L{SimulatedDevice} with a connection server that has a store.
    """

    def test_committedLater(self) -> None:
        """
        Its C{send} is done when the app server has the message, and fails if
        the store does.
        """
        harness = self.makeServer()
        client = harness.client()
        simulated = SimulatedDevice(harness.server, "111", "tok-A")
        harness.store.slow = True
        first = simulated.send("u-1", {})
        second = simulated.send("u-2", {})
        harness.store.go()
        self.assertEqual(["u-1"], simulated.stored)
        harness.store.error = FULL
        harness.store.go()
        error = self.failureResultOf(second, DeliveryFailed).value
        self.assertEqual("SERVICE_NOT_AVAILABLE", error.error)
        client.ack("u-1")
        self.assertIsNone(self.successResultOf(first))
        harness.store.error = None

    def test_earlierLife(self) -> None:
        """
        It may be told of what it has sent in an earlier life.
        """
        harness = self.makeServer()
        harness.submit("u-1")
        harness.submit("u-2", time_to_live=60)
        self.restart(harness)
        simulated = SimulatedDevice(harness.server, "111", "tok-A")
        client = harness.client()
        client.ack("u-1")
        client.lose()
        harness.clock.advance(61)
        harness.client()
        self.assertEqual(["u-1"], simulated.delivered)
        self.assertEqual([("u-2", "TTL_EXCEEDED")], simulated.failed)
