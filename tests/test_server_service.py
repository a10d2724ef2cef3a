"""
Tests for L{fcmxmpp.server.service}.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator
from itertools import count
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import capturedLogs, eventAsJSON, eventAsText
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from fcmxmpp.messages import WINDOW, DownstreamMessage
from fcmxmpp.server import service
from fcmxmpp.server.registry import Device, IDeviceCallbacks, Registry
from fcmxmpp.server.service import ConnectionServer
from fcmxmpp.session import OVERRUN
from tests.appservers import OPEN, SENDERS, Client


INSTANT = 2.0**-10


@implementer(IDeviceCallbacks)
class Callbacks:
    """
    An app on a device, which notes what it is told.

    @ivar told: what that was.
    @ivar received: what the app server has sent.
    """

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []
        self.received: list[DownstreamMessage] = []

    def messageStored(self, message_id: str) -> None:
        """
        See L{IDeviceCallbacks.messageStored}.
        """
        self.told.append(("stored", message_id))

    def messageDelivered(self, message_id: str) -> None:
        """
        See L{IDeviceCallbacks.messageDelivered}.
        """
        self.told.append(("delivered", message_id))

    def messageFailed(self, message_id: str, error: str) -> None:
        """
        See L{IDeviceCallbacks.messageFailed}.
        """
        self.told.append(("failed", message_id, error))

    def messageReceived(self, message: DownstreamMessage) -> None:
        """
        See L{IDeviceCallbacks.messageReceived}.
        """
        self.received.append(message)

    @property
    def failed(self) -> list[tuple[str, ...]]:
        """
        What failed, and why.
        """
        return [what[1:] for what in self.told if what[0] == "failed"]

    @property
    def delivered(self) -> list[str]:
        """
        What the app server has acknowledged.
        """
        return [what[1] for what in self.told if what[0] == "delivered"]


class Harness:
    """
    A connection server and everything around it.

    @ivar clock: its time.
    @ivar server: the server, started.
    @ivar app: the app on the device.
    @ivar device: the device, of sender 111.
    @ivar clients: all that have connected.
    """

    def __init__(self, receipts: bool = False) -> None:
        self.clock = Clock()
        numbers: Iterator[int] = count(0xABCDEF)
        self.server = ConnectionServer(
            Registry(SENDERS), self.clock, lambda size: next(numbers).to_bytes(size, "big"), receipts
        )
        self.server.startService()
        self.app = Callbacks()
        self.device = self.makeDevice("tok-A")
        self.clients: list[Client] = []

    def makeDevice(self, token: str, senderID: str = "111") -> Device:
        """
        Make a device on which the same app runs, and register it.
        """
        device = Device(token, senderID, "org.example.app", self.app)
        self.server.registry.add(device)
        return device

    def connect(self) -> Client:
        """
        Connect an app server, without logging in.
        """
        self.clients.append(Client(self.server))
        return self.clients[-1]

    def client(self, senderID: str = "111") -> Client:
        """
        Connect an app server, and log in; what it was told up to the end of
        the bind is not looked at.
        """
        client = self.connect()
        answer = client.login(senderID)
        client.transport.write(answer[answer.index(b"</iq>") + 5 :])
        return client

    def submit(self, *ids: str, time_to_live: int | None = None, **data: object) -> None:
        """
        Have the device send messages.
        """
        for message_id in ids:
            self.server.submit(self.device, message_id, data, time_to_live)


class ServiceCase(SynchronousTestCase):
    """
    What the test cases of this module share.
    """

    def makeServer(self, receipts: bool = False) -> Harness:
        """
        Start a connection server; when the test is over it has to stop without
        a trace.
        """
        harness = Harness(receipts)
        self.addCleanup(self.assertStops, harness)
        return harness

    def assertStops(self, harness: Harness) -> None:
        """
        Assert that a connection server stops and leaves nothing behind.
        """
        stopped = harness.server.stopService()
        for client in harness.clients:
            client.lose()
        self.successResultOf(stopped)
        self.assertEqual([], harness.clock.getDelayedCalls())


class SubmitTests(ServiceCase):
    """
    What a device may send.
    """

    def submitted(self, **arguments: Any) -> dict[str, Any]:
        """
        Submit a message and see what the app server gets.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.submit("u-1", **arguments)
        (message,) = client.delivered()
        self.assertEqual([("stored", "u-1")], harness.app.told)
        return message

    def test_delivered(self) -> None:
        """
        The app server gets the message with the C{from} and the category of
        the device, and when it has acknowledged that, the device is told.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.submit("u-1", time_to_live=60, op="ping")
        self.assertEqual(
            [
                {
                    "data": {"op": "ping"},
                    "time_to_live": 60,
                    "from": "tok-A",
                    "message_id": "u-1",
                    "category": "org.example.app",
                }
            ],
            client.delivered(),
        )
        self.assertEqual([("stored", "u-1")], harness.app.told)
        client.ack("u-1")
        self.assertEqual([("stored", "u-1"), ("delivered", "u-1")], harness.app.told)

    def test_strings(self) -> None:
        """
        Values that are no strings are left out, as Google's client libraries
        did.
        """
        message = self.submitted(a="1", b=2, c=None, d=True, e=["x"], f={"g": "h"}, i=b"j", k="")
        self.assertEqual({"a": "1", "k": ""}, message["data"])

    def test_noData(self) -> None:
        """
        A message may be without data.
        """
        self.assertNotIn("data", self.submitted())

    def test_anyText(self) -> None:
        """
        Keys and values may be of any characters, and arrive as they were.
        """
        data = {"<k&>": "\"'\u20ac\U0001f600\0\x1f\ufffe ]]>", "\u00fc": "\r\n\t"}
        harness = self.makeServer()
        client = harness.client()
        harness.server.submit(harness.device, '<u&">', data)
        (message,) = client.delivered()
        self.assertEqual(('<u&">', data), (message["message_id"], message["data"]))

    def test_size(self) -> None:
        """
        The keys and values may take 4096 bytes of UTF-8, and not one more.
        """
        harness = self.makeServer()
        for data in (
            {"k": "x" * 4095},
            {"k" * 4096: ""},
            {"k\u20ac": "\u20ac" * 1364},
            {"kkkk": "\U0001f600" * 1023},
        ):
            harness.server.submit(harness.device, "good", data)
        self.assertEqual([], harness.app.failed)
        del harness.app.told[:]
        for data in (
            {"k": "x" * 4096},
            {"k" * 4096: "", "b": ""},
            {"kk\u20ac": "\u20ac" * 1364},
            {"kkkkk": "\U0001f600" * 1023},
        ):
            harness.server.submit(harness.device, "bad", data)
        self.assertEqual([("failed", "bad", "SIZE")] * 4, harness.app.told)

    def test_sizeOfWhatIsLeftOut(self) -> None:
        """
        Values that are left out take no place.
        """
        self.assertEqual({"k": "v"}, self.submitted(k="v", **{"x" * 5000: 1})["data"])

    def test_timeToLive(self) -> None:
        """
        The time to live is from zero to 24 hours; none, a negative one and a
        longer one count as 24 hours.
        """
        for asked, given in (
            (None, 86400),
            (-1, 86400),
            (86401, 86400),
            (86400, 86400),
            (86399, 86399),
            (1, 1),
            (0, 0),
        ):
            self.assertEqual(given, self.submitted(time_to_live=asked)["time_to_live"])

    def test_emptyID(self) -> None:
        """
        A message has to have a C{message_id}.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.submit("")
        self.assertEqual([("failed", "", "INVALID_PARAMETERS")], harness.app.told)
        self.assertEqual([], client.delivered())

    def test_notUnicode(self) -> None:
        """
        Half of a surrogate pair, which has no UTF-8, is refused wherever it
        stands, before the message is taken over.
        """
        harness = self.makeServer()
        for message_id, data in (("\ud83d", {}), ("u-1", {"\ud83d": ""}), ("u-1", {"k": "\ude00"})):
            harness.server.submit(harness.device, message_id, data)
        self.assertEqual(["INVALID_PARAMETERS"] * 3, [error for _, error in harness.app.failed])
        self.assertEqual([], harness.client().delivered())

    def test_hugeID(self) -> None:
        """
        A C{message_id} that would make the stanza larger than an app server
        takes is refused; it would break each stream that it is delivered on,
        and come again for a day.
        """
        harness = self.makeServer()
        harness.submit("u" * 70_000)
        self.assertEqual([("failed", "u" * 70_000, "INVALID_PARAMETERS")], harness.app.told)
        self.assertEqual([], harness.client().delivered())

    def test_longID(self) -> None:
        """
        A C{message_id} may take 1024 bytes of UTF-8, and not one more.
        """
        harness = self.makeServer()
        for longest in ("u" * 1024, "\u20ac" * 341 + "u"):
            harness.submit(longest)
            harness.submit(longest + "u")
            self.assertEqual([("stored", longest)], harness.app.told[:1])
            self.assertEqual([(longest + "u", "INVALID_PARAMETERS")], harness.app.failed)
            del harness.app.told[:]

    def test_queueFull(self) -> None:
        """
        A sender's queue is bounded; what does not fit is refused, and other
        senders do not notice.
        """
        self.patch(service, "MAX_QUEUE", 3)
        harness = self.makeServer()
        harness.submit("u-1", "u-2", "u-3", "u-4")
        self.assertEqual([("u-4", "TOO_MANY_MESSAGES")], harness.app.failed)
        harness.server.submit(harness.makeDevice("tok-B", "222"), "u-5", {})
        self.assertEqual(1, len(harness.app.failed))
        self.assertEqual(["u-1", "u-2", "u-3"], harness.client().ids())
        harness.submit("u-6")
        self.assertEqual(1, len(harness.app.failed))


class NowOrNeverTests(ServiceCase):
    """
    A time to live of zero means now or never.
    """

    def test_now(self) -> None:
        """
        Where a stream has room, the message is delivered.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.submit("u-1", time_to_live=0)
        self.assertEqual(["u-1"], client.ids())
        client.ack("u-1")
        self.assertEqual([("stored", "u-1"), ("delivered", "u-1")], harness.app.told)

    def test_nobodyThere(self) -> None:
        """
        Where there is no app server, the message fails, and is not stored.
        """
        harness = self.makeServer()
        harness.client("222")
        harness.submit("u-1", time_to_live=0)
        self.assertEqual([("failed", "u-1", "TTL_EXCEEDED")], harness.app.told)
        self.assertEqual([], harness.client().ids())

    def test_noRoom(self) -> None:
        """
        Nor is it where every window is full.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.submit(*[f"u-{n}" for n in range(100)])
        harness.submit("now", time_to_live=0)
        self.assertEqual([("now", "TTL_EXCEEDED")], harness.app.failed)
        client.ack("u-0")
        harness.submit("now", time_to_live=0)
        self.assertEqual([*[f"u-{n}" for n in range(100)], "now"], client.ids())

    def test_lostBeforeTheAck(self) -> None:
        """
        If the stream is lost before the ACK, the message goes out again only
        if that is in the same second.
        """
        for wait, redelivered in ((0, ["u-1"]), (1, ["u-1"]), (1 + INSTANT, [])):
            harness = self.makeServer()
            first = harness.client()
            harness.submit("u-1", time_to_live=0)
            first.lose()
            harness.clock.advance(wait)
            self.assertEqual(redelivered, harness.client().ids())
            self.assertEqual([] if redelivered else [("u-1", "TTL_EXCEEDED")], harness.app.failed)


class RepeatTests(ServiceCase):
    """
    A message that a device sends again while it is on its way is one message.
    """

    def test_waiting(self) -> None:
        """
        It is delivered once, and the device is told of both sends; what the
        first had in it holds.
        """
        harness = self.makeServer()
        harness.submit("u-1", n="1")
        harness.submit("u-1", n="2")
        client = harness.client()
        self.assertEqual([{"n": "1"}], [message["data"] for message in client.delivered()])
        client.ack("u-1")
        self.assertEqual([("stored", "u-1")] * 2 + [("delivered", "u-1")] * 2, harness.app.told)

    def test_onTheStream(self) -> None:
        """
        So it is when the first has gone out and is not acknowledged.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.submit("u-1", "u-1")
        harness.submit("u-1", time_to_live=0)
        self.assertEqual(["u-1"], client.ids())
        client.ack("u-1")
        self.assertEqual((["u-1"] * 3, []), (harness.app.delivered, harness.app.failed))

    def test_acknowledged(self) -> None:
        """
        After the ACK it is a new message.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.submit("u-1")
        client.ack("u-1")
        harness.submit("u-1")
        self.assertEqual(["u-1", "u-1"], client.ids())

    def test_otherDevice(self) -> None:
        """
        The same C{message_id} of another device is another message.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.submit("u-1")
        harness.server.submit(harness.makeDevice("tok-B"), "u-1", {})
        self.assertEqual(["tok-A", "tok-B"], [message["from"] for message in client.delivered()])
        client.ack("u-1", to="tok-B")
        self.assertEqual(1, len(harness.app.delivered))

    def test_registeredAgain(self) -> None:
        """
        A device that has registered again under its token is told for itself.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.submit("u-1")
        again = Callbacks()
        harness.server.submit(Device("tok-A", "111", "org.example.app", again), "u-1", {})
        client.ack("u-1")
        self.assertEqual(["u-1"], client.ids())
        self.assertEqual((["u-1"], ["u-1"]), (harness.app.delivered, again.delivered))

    def test_expired(self) -> None:
        """
        If the one message expires, each send has failed.
        """
        harness = self.makeServer()
        harness.submit("u-1", "u-1", time_to_live=5)
        harness.clock.advance(6)
        harness.client()
        self.assertEqual([("u-1", "TTL_EXCEEDED")] * 2, harness.app.failed)


class RoutingTests(ServiceCase):
    """
    Messages go to the stream of their app server that is least busy.
    """

    def test_waitForTheAppServer(self) -> None:
        """
        What was sent while there was no app server is delivered, in order, to
        the first that logs in.
        """
        harness = self.makeServer()
        ids = [f"u-{n}" for n in range(10)]
        harness.submit(*ids)
        self.assertEqual(ids, harness.client().ids())
        self.assertEqual([("stored", message_id) for message_id in ids], harness.app.told)

    def test_window(self) -> None:
        """
        A stream is sent a hundred messages and no more, until it acknowledges.
        """
        harness = self.makeServer()
        client = harness.client()
        ids = [f"u-{n}" for n in range(150)]
        harness.submit(*ids)
        self.assertEqual(ids[:100], client.ids())
        client.ack("u-7")
        self.assertEqual(["u-100"], client.ids())
        client.ack(*ids[:7], *ids[8:100])
        self.assertEqual(ids[101:], client.ids())

    def test_leastBusy(self) -> None:
        """
        Of two streams the one with fewer unacknowledged messages gets the
        next.
        """
        harness = self.makeServer()
        one, two = harness.client(), harness.client()
        harness.submit("u-1", "u-2", "u-3", "u-4")
        self.assertEqual((["u-1", "u-3"], ["u-2", "u-4"]), (one.ids(), two.ids()))
        two.ack("u-2", "u-4")
        harness.submit("u-5", "u-6")
        self.assertEqual(([], ["u-5", "u-6"]), (one.ids(), two.ids()))

    def test_bothFull(self) -> None:
        """
        Two streams have two windows; what exceeds both waits for whichever
        acknowledges first.
        """
        harness = self.makeServer()
        one, two = harness.client(), harness.client()
        harness.submit(*[f"u-{n}" for n in range(205)])
        self.assertEqual((100, 100), (len(one.ids()), len(two.ids())))
        two.ack("u-1")
        self.assertEqual(([], ["u-200"]), (one.ids(), two.ids()))
        one.ack("u-0", "u-2")
        self.assertEqual((["u-201", "u-202"], []), (one.ids(), two.ids()))

    def test_ackOnTheOtherStream(self) -> None:
        """
        An ACK counts only on the stream that the message went out on.
        """
        harness = self.makeServer()
        one, two = harness.client(), harness.client()
        harness.submit("u-1")
        two.ack("u-1")
        self.assertIn(b'code="406"', two.said())
        self.assertEqual([], harness.app.delivered)
        one.ack("u-1")
        self.assertEqual(["u-1"], harness.app.delivered)

    def test_ownSender(self) -> None:
        """
        No sender's messages go to another.
        """
        harness = self.makeServer()
        mine, other = harness.client("111"), harness.client("222")
        harness.submit("u-1")
        harness.server.submit(harness.makeDevice("tok-B", "222"), "u-2", {})
        self.assertEqual((["u-1"], ["u-2"]), (mine.ids(), other.ids()))

    def test_notLoggedIn(self) -> None:
        """
        A stream that is not logged in gets nothing.
        """
        harness = self.makeServer()
        client = harness.connect()
        client.send(OPEN)
        harness.submit("u-1")
        self.assertEqual(b"", client.said())

    def test_closing(self) -> None:
        """
        Nor does a stream that is being closed, though its connection is not
        gone yet; another one gets it at once.
        """
        for end in (b"</stream:stream>", b"<message><</message>"):
            harness = self.makeServer()
            closing, other = harness.client(), harness.client()
            closing.send(end)
            self.assertTrue(closing.transport.disconnecting)
            harness.submit("u-1")
            self.assertEqual(([], ["u-1"]), (closing.ids(), other.ids()))

    def test_submittedByCallbacks(self) -> None:
        """
        An app may send the next message when it is told of the last.
        """
        harness = self.makeServer()
        client = harness.client()
        for told in ("messageStored", "messageDelivered", "messageFailed"):
            app = Callbacks()
            device = Device(f"tok-{told}", "111", "org.example.app", app)

            def more(*_: str, told: str = told, app: Callbacks = app, device: Device = device) -> None:
                delattr(app, told)
                harness.server.submit(device, "u-2", {})

            setattr(app, told, more)
            harness.server.submit(device, "" if told == "messageFailed" else "u-1", {})
            client.ack("u-1", to=device.token)
            self.assertIn(("stored", "u-2"), app.told)
            self.assertIn("u-2", client.ids())


class RedeliveryTests(ServiceCase):
    """
    What a lost stream did not acknowledge goes out again.
    """

    def test_nextStream(self) -> None:
        """
        It goes out on the next stream, in its order, and before what waited
        behind it.
        """
        harness = self.makeServer()
        first = harness.client()
        ids = [f"u-{n}" for n in range(105)]
        harness.submit(*ids)
        first.ack("u-0", "u-2")
        first.lose()
        again = ["u-1", *ids[3:]]
        second = harness.client()
        self.assertEqual(again[:100], second.ids())
        second.ack(*again[:100])
        self.assertEqual(again[100:], second.ids())
        second.ack(*again[100:])
        self.assertEqual(sorted(ids), sorted(harness.app.delivered))

    def test_otherStream(self) -> None:
        """
        It goes out at once on another stream that is there.
        """
        harness = self.makeServer()
        one, two = harness.client(), harness.client()
        harness.submit("u-1", "u-2", "u-3", "u-4")
        self.assertEqual(["u-2", "u-4"], two.ids())
        one.lose()
        self.assertEqual(["u-1", "u-3"], two.ids())
        two.ack("u-1", "u-2", "u-3", "u-4")
        self.assertEqual(["u-1", "u-2", "u-3", "u-4"], harness.app.delivered)

    def test_otherStreamFull(self) -> None:
        """
        Where that has no room, it waits at the front.
        """
        harness = self.makeServer()
        one, two = harness.client(), harness.client()
        harness.submit(*[f"u-{n}" for n in range(201)])
        self.assertEqual(100, len(two.ids()))
        one.lose()
        self.assertEqual([], two.ids())
        two.ack("u-1", "u-3")
        self.assertEqual(["u-0", "u-2"], two.ids())

    def test_twice(self) -> None:
        """
        Streams may be lost again and again; nothing is lost with them, and the
        order stays.
        """
        harness = self.makeServer()
        harness.submit("u-1", "u-2", "u-3")
        for _ in range(5):
            client = harness.client()
            self.assertEqual(["u-1", "u-2", "u-3"], client.ids())
            client.lose()
        self.assertEqual([], harness.app.delivered)

    def test_ackAfterTheLoss(self) -> None:
        """
        An ACK for what was delivered on a lost stream counts on the next one
        after the redelivery.
        """
        harness = self.makeServer()
        first = harness.client()
        harness.submit("u-1")
        first.lose()
        harness.client().ack("u-1")
        self.assertEqual(["u-1"], harness.app.delivered)


class ExpiryTests(ServiceCase):
    """
    A message whose time to live has run out is not delivered.
    """

    def test_sweep(self) -> None:
        """
        The devices are told of what waits in vain when its time has run out,
        whatever came before and after it.
        """
        harness = self.makeServer()
        harness.submit("u-2", time_to_live=90)
        harness.submit("u-1", time_to_live=30)
        harness.submit("u-3")
        harness.clock.advance(30 - INSTANT)
        self.assertEqual([], harness.app.failed)
        harness.clock.advance(2 * INSTANT)
        self.assertEqual([("u-1", "TTL_EXCEEDED")], harness.app.failed)
        harness.clock.advance(60)
        self.assertEqual([("u-1", "TTL_EXCEEDED"), ("u-2", "TTL_EXCEEDED")], harness.app.failed)
        self.assertEqual(2, harness.server.statistics.expired)
        self.assertEqual(["u-3"], harness.client().ids())

    def test_lastMoment(self) -> None:
        """
        A message may still be delivered in the last moment of its time.
        """
        harness = self.makeServer()
        harness.submit("u-1", time_to_live=60)
        harness.clock.advance(60)
        self.assertEqual(([], ["u-1"]), (harness.app.failed, harness.client().ids()))

    def test_sweepKeepsOrder(self) -> None:
        """
        What does not expire keeps its order.
        """
        harness = self.makeServer()
        for n in range(10):
            harness.submit(f"u-{n}", time_to_live=30 if n % 3 == 0 else 300)
        harness.clock.advance(60)
        self.assertEqual(["u-1", "u-2", "u-4", "u-5", "u-7", "u-8"], harness.client().ids())

    def test_sentAgainWhenTold(self) -> None:
        """
        What an app sends when it is told that a message expired goes behind
        what waits already.
        """
        harness = self.makeServer()
        harness.app.messageFailed = (  # type: ignore[method-assign]
            lambda message_id, error: harness.submit("u-3")
        )
        harness.submit("u-1", time_to_live=30)
        harness.submit("u-2")
        harness.clock.advance(60)
        self.assertEqual(["u-2", "u-3"], harness.client().ids())

    def test_sentToAnotherWhenTold(self) -> None:
        """
        It may be for another sender, of whom nothing was known until then; the
        sweep goes on.
        """
        harness = self.makeServer()
        other = harness.makeDevice("tok-X", senderID="222")
        harness.app.messageFailed = (  # type: ignore[method-assign]
            lambda message_id, error: harness.server.submit(other, "u-9", {})
        )
        harness.submit("u-1", time_to_live=30)
        harness.submit("u-2", time_to_live=90)
        harness.clock.advance(60)
        self.assertEqual(["u-9"], harness.client("222").ids())
        harness.clock.advance(60)
        self.assertEqual(2, harness.server.statistics.expired)

    def test_sentAgainWhenFull(self) -> None:
        """
        Nor does a full queue lose what waits in it, if an app does that.
        """
        self.patch(service, "MAX_QUEUE", 2)
        harness = self.makeServer()
        harness.app.messageFailed = (  # type: ignore[method-assign]
            lambda message_id, error: harness.submit("u-3", "u-4") if message_id == "u-1" else None
        )
        harness.submit("u-1", time_to_live=30)
        harness.submit("u-2")
        harness.clock.advance(60)
        self.assertIn("u-2", harness.client().ids())

    def test_sweepEnds(self) -> None:
        """
        While nothing waits there is no timer; when something waits again there
        is one again.
        """
        harness = self.makeServer()
        self.assertEqual([], harness.clock.getDelayedCalls())
        harness.submit("u-1", "u-2", time_to_live=30)
        self.assertEqual(1, len(harness.clock.getDelayedCalls()))
        harness.clock.advance(60)
        self.assertEqual([], harness.clock.getDelayedCalls())
        harness.submit("u-3")
        self.assertEqual(1, len(harness.clock.getDelayedCalls()))

    def test_atRouting(self) -> None:
        """
        What has expired since the last look is found out when it would go out.
        """
        harness = self.makeServer()
        harness.submit("u-1", time_to_live=30)
        harness.submit("u-2", time_to_live=40)
        harness.clock.advance(40)
        self.assertEqual(["u-2"], harness.client().ids())
        self.assertEqual([("u-1", "TTL_EXCEEDED")], harness.app.failed)

    def test_onTheStream(self) -> None:
        """
        What has gone out in time does not expire while the app server works on
        it.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.submit("u-1", time_to_live=30)
        harness.clock.pump([30] * 10)
        client.ack("u-1")
        self.assertEqual(([], ["u-1"]), (harness.app.failed, harness.app.delivered))

    def test_redelivery(self) -> None:
        """
        What comes back from a lost stream after its time is not redelivered.
        """
        harness = self.makeServer()
        first = harness.client()
        harness.submit("u-1", time_to_live=30)
        harness.clock.advance(31)
        first.lose()
        self.assertEqual([], harness.client().ids())
        self.assertEqual([("u-1", "TTL_EXCEEDED")], harness.app.failed)

    def test_afterExpiry(self) -> None:
        """
        A message that has expired may be sent again.
        """
        harness = self.makeServer()
        harness.submit("u-1", time_to_live=30)
        harness.clock.advance(60)
        harness.submit("u-1")
        self.assertEqual(["u-1"], harness.client().ids())

    def test_manySenders(self) -> None:
        """
        One look is for the queues of all senders.
        """
        harness = self.makeServer()
        harness.submit("u-1", time_to_live=30)
        harness.server.submit(harness.makeDevice("tok-B", "222"), "u-2", {}, 30)
        self.assertEqual(1, len(harness.clock.getDelayedCalls()))
        harness.clock.advance(60)
        self.assertEqual(2, len(harness.app.failed))

    def test_notStarted(self) -> None:
        """
        A server that is not started looks for nothing, so that it need not be
        stopped.
        """
        clock = Clock()
        server = ConnectionServer(Registry(SENDERS), clock)
        server.submit(Device("tok-A", "111", "org.example.app", Callbacks()), "u-1", {})
        self.assertEqual([], clock.getDelayedCalls())


class StatisticsTests(ServiceCase):
    """
    L{ConnectionServer.statistics} counts.
    """

    def test_counts(self) -> None:
        """
        It counts what was delivered, delivered again, acknowledged and
        expired.
        """
        harness = self.makeServer()
        first = harness.client()
        harness.submit("u-1", "u-2", "u-3")
        harness.submit("u-4", time_to_live=30)
        first.ack("u-1")
        first.lose()
        harness.clock.advance(31)
        second = harness.client()
        second.ack("u-2", "u-3", "u-3")
        statistics = harness.server.statistics
        self.assertEqual(
            (6, 3, 3, 1),
            (statistics.delivered, statistics.redelivered, statistics.acknowledged, statistics.expired),
        )


class LoginTests(ServiceCase):
    """
    Who may log in is the registry's affair.
    """

    def test_wrongKey(self) -> None:
        """
        Whoever tries keys is refused later each time, over all connections.
        """
        harness = self.makeServer()
        wrong = b64encode(b"\x00111\0wrong")
        for delay in (0.25, 0.5, 1.0):
            client = harness.connect()
            client.send(OPEN)
            client.send(b'<auth xmlns="urn:ietf:params:xml:ns:xmpp-sasl" mechanism="PLAIN">%b</auth>' % wrong)
            harness.clock.advance(delay - INSTANT)
            self.assertEqual(b"", client.said())
            harness.clock.advance(INSTANT)
            self.assertIn(b"<not-authorized/>", client.said())


class AcceptTests(ServiceCase):
    """
    What an app server sends to devices.
    """

    def test_device(self) -> None:
        """
        A message goes to the device, and is acknowledged.
        """
        harness = self.makeServer()
        client = harness.client()
        answer = client.downstream(to="tok-A", message_id="m-1", data={"k": "v"}, priority="high")
        self.assertEqual({"from": "tok-A", "message_id": "m-1", "message_type": "ack"}, answer)
        self.assertEqual(
            [DownstreamMessage(to="tok-A", message_id="m-1", data={"k": "v"}, priority="high")],
            harness.app.received,
        )

    def refused(self, **fields: Any) -> tuple[str, str]:
        """
        Send a message that is refused.

        @return: the error, and the C{from}.
        """
        harness = self.makeServer()
        harness.makeDevice("tok-B", "222")
        answer = harness.client().downstream(message_id="m-1", **fields)
        self.assertEqual(("nack", "m-1"), (answer["message_type"], answer["message_id"]))
        self.assertTrue(answer["error_description"])
        self.assertEqual([], harness.app.received)
        return answer["error"], answer["from"]

    def test_unknownDevice(self) -> None:
        """
        To an unknown registration token nothing can be sent.
        """
        self.assertEqual(("BAD_REGISTRATION", "tok-X"), self.refused(to="tok-X"))

    def test_unregisteredDevice(self) -> None:
        """
        Nor to one that is known no more.
        """
        harness = self.makeServer()
        harness.server.registry.remove("tok-A")
        answer = harness.client().downstream(to="tok-A", message_id="m-1")
        self.assertEqual("BAD_REGISTRATION", answer["error"])

    def test_othersDevice(self) -> None:
        """
        Nor to a device of another sender.
        """
        self.assertEqual(("SENDER_ID_MISMATCH", "tok-B"), self.refused(to="tok-B"))

    def test_noTarget(self) -> None:
        """
        A message has to have a C{to} or a C{condition}, and not both.
        """
        self.assertEqual(("INVALID_JSON", ""), self.refused())
        self.assertEqual(("INVALID_JSON", "tok-A"), self.refused(to="tok-A", condition="'a' in topics"))

    def test_topics(self) -> None:
        """
        Messages to topics and conditions are accepted, and that is all that
        happens to them.
        """
        harness = self.makeServer()
        client = harness.client()
        for fields, from_ in (
            ({"to": "/topics/news"}, "/topics/news"),
            ({"condition": "'a' in topics && 'b' in topics"}, "'a' in topics && 'b' in topics"),
        ):
            answer = client.downstream(message_id="m-1", **fields)
            self.assertEqual({"from": from_, "message_id": "m-1", "message_type": "ack"}, answer)
        self.assertEqual([], harness.app.received)

    def test_dryRun(self) -> None:
        """
        A dry run is answered as the real thing would be, but not delivered.
        """
        harness = self.makeServer()
        client = harness.client()
        answer = client.downstream(to="tok-A", message_id="m-1", dry_run=True)
        self.assertEqual("ack", answer["message_type"])
        self.assertEqual([], harness.app.received)
        self.assertEqual(("BAD_REGISTRATION", "tok-X"), self.refused(to="tok-X", dry_run=True))


class InvalidTests(ServiceCase):
    """
    What FCM would reject is refused with a description, and no device gets it
    (conformance S8).
    """

    def test_S08_invalid(self) -> None:
        """
        Reserved keys, payloads that are too large, times to live that are out
        of range: C{INVALID_JSON}, which says which field; the stream goes on.
        """
        harness = self.makeServer()
        client = harness.client()
        for field, wrong in (
            ("data", {"to": "tok-A", "data": {"from": "x"}}),
            ("data", {"to": "tok-A", "data": {"google.x": "x"}}),
            ("data", {"to": "tok-A", "data": {"gcm": "x"}}),
            ("data", {"to": "tok-A", "data": {"k": "x" * 4096}}),
            ("data", {"to": "/topics/t", "data": {"k": "x" * 2048}}),
            ("time_to_live", {"to": "tok-A", "time_to_live": -1}),
            ("time_to_live", {"to": "tok-A", "time_to_live": 2_419_201}),
        ):
            answer = client.downstream(message_id="m-1", **wrong)
            self.assertEqual(("nack", "INVALID_JSON"), (answer["message_type"], answer["error"]), wrong)
            self.assertEqual(("m-1", wrong["to"]), (answer["message_id"], answer["from"]))
            self.assertIn(field, answer["error_description"])
            self.assertNotIn("xx", answer["error_description"], "the payload is told")
        self.assertEqual([], harness.app.received)
        self.assertEqual("ack", client.downstream(message_id="m-1", to="tok-A")["message_type"])

    def test_S08_wrongTypes(self) -> None:
        """
        So are fields of the wrong type.
        """
        harness = self.makeServer()
        client = harness.client()
        for wrong in (
            {"data": "x"},
            {"data": {"k": 1}},
            {"time_to_live": "abc"},
            {"time_to_live": 1.5},
            {"dry_run": "true"},
            {"delivery_receipt_requested": 1},
            {"notification": []},
            {"priority": 5},
        ):
            answer = client.downstream(message_id="m-1", **{"to": "tok-A", **wrong})
            self.assertEqual(("nack", "INVALID_JSON"), (answer["message_type"], answer["error"]), wrong)
            self.assertTrue(answer["error_description"])
        self.assertEqual([], harness.app.received)

    def test_largest(self) -> None:
        """
        What is just allowed is delivered.
        """
        harness = self.makeServer()
        client = harness.client()
        for allowed in (
            {"to": "tok-A", "data": {"k": "x" * 4095}},
            {"to": "/topics/t", "data": {"k": "x" * 2047}},
            {"to": "tok-A", "time_to_live": 0},
            {"to": "tok-A", "time_to_live": 2_419_200},
        ):
            answer = client.downstream(message_id="m-1", **allowed)
            self.assertEqual("ack", answer["message_type"], answer)
        self.assertEqual(3, len(harness.app.received))


class WindowTests(ServiceCase):
    """
    An app server that does not wait for answers (conformance S12).
    """

    def test_S12_overrun(self) -> None:
        """
        A small overrun of the window is let pass; beyond it each message is
        refused with C{SERVICE_UNAVAILABLE}, and reaches no device.  The stream
        stays, its ACKs are taken, and there is room again as answers go out.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.server.script.delay(5)
        taken = WINDOW + OVERRUN
        for number in range(taken + 3):
            client.sendDownstream(message_id=f"m-{number}", to="tok-A")
        self.assertEqual(
            [("nack", f"m-{number}", "SERVICE_UNAVAILABLE") for number in range(taken, taken + 3)],
            [(a["message_type"], a["message_id"], a["error"]) for a in client.answers()],
        )
        self.assertEqual(taken, len(harness.app.received))
        harness.submit("u-1")
        self.assertEqual(["u-1"], client.ids())
        client.ack("u-1")
        self.assertEqual(["u-1"], harness.app.delivered)
        self.assertFalse(client.transport.disconnecting)
        harness.clock.advance(5)
        self.assertEqual(
            [("ack", f"m-{number}") for number in range(taken)],
            [(a["message_type"], a["message_id"]) for a in client.answers()],
        )
        harness.server.script.clear()
        self.assertEqual("ack", client.downstream(message_id="m-1", to="tok-A")["message_type"])

    def test_perStream(self) -> None:
        """
        Each stream has a window of its own.
        """
        harness = self.makeServer()
        one, other = harness.client(), harness.client()
        harness.server.script.ignore(times=WINDOW + OVERRUN)
        for number in range(WINDOW + OVERRUN):
            one.sendDownstream(message_id=f"m-{number}", to="tok-A")
        self.assertEqual([], one.answers())
        self.assertEqual("ack", other.downstream(message_id="m-1", to="tok-A")["message_type"])
        self.assertEqual("nack", one.downstream(message_id="m-1", to="tok-A")["message_type"])


class FullTests(ServiceCase):
    """
    App servers that read too slowly.
    """

    def test_otherStream(self) -> None:
        """
        A stream whose transport is full gets nothing new: the other one does,
        though it has more to acknowledge; and what waits goes out as soon as
        there is room again.
        """
        harness = self.makeServer()
        slow, quick = harness.client(), harness.client()
        slow.stream.pauseProducing()
        ids = [f"u-{number}" for number in range(WINDOW + 2)]
        harness.submit(*ids)
        self.assertEqual(([], ids[:WINDOW]), (slow.ids(), quick.ids()))
        slow.stream.resumeProducing()
        self.assertEqual((ids[WINDOW:], []), (slow.ids(), quick.ids()))

    def test_answers(self) -> None:
        """
        Answers do not wait.
        """
        harness = self.makeServer()
        client = harness.client()
        client.stream.pauseProducing()
        self.assertEqual("ack", client.downstream(message_id="m-1", to="tok-A")["message_type"])

    def test_nowOrNever(self) -> None:
        """
        To a message that is for now or never a full stream is none.
        """
        harness = self.makeServer()
        client = harness.client()
        client.stream.pauseProducing()
        harness.submit("u-1", time_to_live=0)
        self.assertEqual([("u-1", "TTL_EXCEEDED")], harness.app.failed)

    def test_lost(self) -> None:
        """
        What a full stream has not acknowledged when it is lost goes out again.
        """
        harness = self.makeServer()
        slow = harness.client()
        harness.submit("u-1")
        slow.stream.pauseProducing()
        harness.submit("u-2")
        slow.lose()
        self.assertEqual(["u-1", "u-2"], harness.client().ids())


class ReceiptTests(ServiceCase):
    """
    Delivery receipts, which Google's server no longer sent in its last years.
    """

    def test_off(self) -> None:
        """
        By default there are none.
        """
        harness = self.makeServer()
        client = harness.client()
        client.sendDownstream(message_id="m-1", to="tok-A", delivery_receipt_requested=True)
        self.assertEqual([{"from": "tok-A", "message_id": "m-1", "message_type": "ack"}], client.answers())
        self.assertEqual(1, len(harness.app.received))
        self.assertEqual(0, client.stream.unanswered)

    def test_shape(self) -> None:
        """
        A receipt has the shape that Google's had, to the byte, and comes
        behind the ACK of its message.
        """
        harness = self.makeServer(receipts=True)
        client = harness.client()
        client.said()
        harness.clock.advance(1498801519.251)
        client.said()
        client.sendDownstream(message_id="m-1", to="tok-A", delivery_receipt_requested=True)
        self.assertEqual(
            b'<message><data:gcm xmlns:data="google:mobile:data">'
            b'{"from":"tok-A","message_id":"m-1","message_type":"ack"}</data:gcm></message>'
            b'<message to="111@gcm.googleapis.com" from="devices@gcm.googleapis.com" type="normal">'
            b'<gcm xmlns="google:mobile:data">{"category":"org.example.app","data":'
            b'{"message_status":"MESSAGE_SENT_TO_DEVICE","original_message_id":"m-1",'
            b'"device_registration_id":"tok-A","message_sent_timestamp":"1498801519251"},'
            b'"message_id":"dr2:m-1","message_type":"receipt","time_to_live":0,"from":"gcm.googleapis.com"}'
            b"</gcm></message>",
            client.said(),
        )

    def test_notAsked(self) -> None:
        """
        There is one only for what asked for it, and reached a device: none for
        a trial, a topic, or what was refused.
        """
        harness = self.makeServer(receipts=True)
        client = harness.client()
        harness.makeDevice("tok-B", "222")
        harness.server.script.nack("DEVICE_UNREGISTERED", to="tok-A", times=1)
        harness.server.script.ignore(to="tok-A", times=1)
        asked = {"delivery_receipt_requested": True}
        for fields in (
            {"to": "tok-A", **asked},
            {"to": "tok-A", **asked},
            {"to": "tok-A"},
            {"to": "tok-A", "delivery_receipt_requested": False},
            {"to": "tok-A", "dry_run": True, **asked},
            {"to": "tok-B", **asked},
            {"to": "tok-X", **asked},
            {"to": "/topics/t", **asked},
            {"condition": "'a' in topics", **asked},
            {"to": "tok-A", "time_to_live": -1, **asked},
        ):
            client.sendDownstream(message_id="m-1", **fields)
        self.assertEqual(0, client.stream.unanswered)
        self.assertNotIn(b"dr2", client.said())

    def test_acknowledged(self) -> None:
        """
        It takes a place in the window until it is acknowledged, under its own
        id; no device is told of that.
        """
        harness = self.makeServer(receipts=True)
        client = harness.client()
        harness.submit(*[f"u-{number}" for number in range(WINDOW - 1)])
        for number in (1, 2):
            client.sendDownstream(message_id=f"m-{number}", to="tok-A", delivery_receipt_requested=True)
        self.assertEqual("dr2:m-1", client.ids()[-1])
        self.assertEqual(WINDOW, client.stream.unanswered)
        client.ack("m-1", to="gcm.googleapis.com")
        self.assertIn(b'code="406"', client.said())
        client.ack("dr2:m-1", to="gcm.googleapis.com")
        self.assertEqual(["dr2:m-2"], client.ids())
        client.ack("dr2:m-2", to="gcm.googleapis.com")
        self.assertEqual(WINDOW - 1, client.stream.unanswered)
        self.assertEqual([], harness.app.delivered)

    def test_twice(self) -> None:
        """
        The same message twice has one receipt while that is on its way, and
        another one afterwards.
        """
        harness = self.makeServer(receipts=True)
        client = harness.client()
        for acknowledged in (False, False, True):
            client.sendDownstream(message_id="m-1", to="tok-A", delivery_receipt_requested=True)
            if acknowledged:
                client.ack("dr2:m-1", to="gcm.googleapis.com")
        self.assertEqual(["dr2:m-1"], client.ids())
        client.sendDownstream(message_id="m-1", to="tok-A", delivery_receipt_requested=True)
        self.assertEqual(["dr2:m-1"], client.ids())
        self.assertEqual(4, len(harness.app.received))

    def test_redelivered(self) -> None:
        """
        A receipt that was not acknowledged comes again, on the next stream,
        though its time to live is 0; after a day it does not.
        """
        harness = self.makeServer(receipts=True)
        client = harness.client()
        client.sendDownstream(message_id="m-1", to="tok-A", delivery_receipt_requested=True)
        client.lose()
        harness.clock.advance(600)
        client = harness.client()
        self.assertEqual(["dr2:m-1"], client.ids())
        client.lose()
        harness.clock.advance(86_400)
        self.assertEqual([], harness.client().ids())
        self.assertEqual([], harness.app.failed)

    def test_queueFull(self) -> None:
        """
        Where too much waits for the app server already, there is none.
        """
        self.patch(service, "MAX_QUEUE", 1)
        harness = self.makeServer(receipts=True)
        client = harness.client()
        client.stream.pauseProducing()
        harness.submit("u-1")
        client.sendDownstream(message_id="m-1", to="tok-A", delivery_receipt_requested=True)
        client.stream.resumeProducing()
        self.assertEqual(["u-1"], client.ids())

    def test_late(self) -> None:
        """
        The device has a message before a late answer is out, and so has the
        app server its receipt.
        """
        harness = self.makeServer(receipts=True)
        client = harness.client()
        harness.server.script.delay(2)
        client.sendDownstream(message_id="m-1", to="tok-A", delivery_receipt_requested=True)
        self.assertEqual(["dr2:m-1"], client.ids())
        harness.clock.advance(2)
        self.assertEqual(["ack"], [answer["message_type"] for answer in client.answers()])


class ResourceTests(ServiceCase):
    """
    Each stream of a sender has a resource of its own.
    """

    def resource(self, harness: Harness, wanted: str | None, senderID: str = "111") -> str:
        """
        Log in.

        @return: the resource that was given.
        """
        answer = harness.connect().login(senderID, wanted)
        match = re.search(rb"<jid>%b@gcm\.googleapis\.com/(.*)</jid>" % senderID.encode(), answer)
        assert match is not None, answer
        return match[1].decode()

    def test_wanted(self) -> None:
        """
        A client gets what it wants.
        """
        self.assertEqual("node7", self.resource(self.makeServer(), "node7"))

    def test_taken(self) -> None:
        """
        If another has that, it gets something like it, and the other is left
        alone.
        """
        harness = self.makeServer()
        given = [self.resource(harness, "TEST") for _ in range(3)]
        self.assertEqual(("TEST", 3), (given[0], len(set(given))))
        for resource in given[1:]:
            self.assertRegex(resource, r"^TEST-[0-9A-F]{16}$")
        self.assertEqual([True] * 3, [not client.transport.disconnecting for client in harness.clients])

    def test_freeAgain(self) -> None:
        """
        A resource whose stream is gone is free.
        """
        harness = self.makeServer()
        self.resource(harness, "TEST")
        harness.clients[0].lose()
        self.assertEqual("TEST", self.resource(harness, "TEST"))

    def test_ofOneSender(self) -> None:
        """
        What another sender has does not matter.
        """
        harness = self.makeServer()
        self.assertEqual(
            ("TEST", "TEST"), (self.resource(harness, "TEST"), self.resource(harness, "TEST", "222"))
        )

    def test_none(self) -> None:
        """
        A client that wants none is given one that is its own.
        """
        harness = self.makeServer()
        given = [self.resource(harness, None) for _ in range(3)]
        self.assertEqual(3, len(set(given)))
        for resource in given:
            self.assertRegex(resource, r"^[0-9A-F]{16}$")

    def test_streamID(self) -> None:
        """
        A stream's identifier is 16 upper-case hexadecimal digits, as Google's
        were, from the source of randomness that was given.
        """
        answer = self.makeServer().connect().send(OPEN)
        self.assertIn(b' id="0000000000ABCDEF" ', answer)

    def test_streamIDByDefault(self) -> None:
        """
        By default that is the system's.
        """
        server = ConnectionServer(Registry(SENDERS), Clock())
        ids = {server.newStreamID() for _ in range(100)}
        self.assertEqual(100, len(ids))
        for streamID in ids:
            self.assertRegex(streamID, r"^[0-9A-F]{16}$")


class DropTests(ServiceCase):
    """
    All connections may be broken on purpose, to see what app servers do.
    """

    def test_drop(self) -> None:
        """
        Every connection, logged in or not, is aborted without a word; what was
        not acknowledged goes out again to whoever comes next.
        """
        harness = self.makeServer()
        client, early = harness.client(), harness.connect()
        harness.submit("u-1")
        self.assertEqual(["u-1"], client.ids())
        harness.server.dropConnections()
        for dropped in (client, early):
            self.assertEqual((b"", True), (dropped.said(), dropped.transport.disconnected))
            dropped.lose()
        self.assertEqual(["u-1"], harness.client().ids())

    def test_nobodyThere(self) -> None:
        """
        Where there is none nothing happens.
        """
        self.makeServer().server.dropConnections()


class StopTests(ServiceCase):
    """
    A connection server that stops tells its app servers.
    """

    SHUTDOWN = (
        b"<stream:error><system-shutdown xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>"
        b"</stream:stream>"
    )

    def test_nobodyThere(self) -> None:
        """
        With nobody connected it stops at once.
        """
        harness = self.makeServer()
        self.successResultOf(harness.server.stopService())
        self.assertFalse(harness.server.running)

    def test_streams(self) -> None:
        """
        Every stream, logged in or not, ends with C{system-shutdown}, and the
        stop is done when the last of them is gone.
        """
        harness = self.makeServer()
        one, two, early = harness.client(), harness.client("222"), harness.connect()
        one.said()
        two.said()
        stopped = harness.server.stopService()
        self.assertEqual((self.SHUTDOWN, self.SHUTDOWN), (one.said(), two.said()))
        answer = early.said()
        self.assertTrue(answer.startswith(b"<stream:stream ") and answer.endswith(self.SHUTDOWN), answer)
        for client in (one, two, early):
            self.assertTrue(client.transport.disconnecting)
            self.assertNoResult(stopped)
            client.lose()
        self.successResultOf(stopped)
        self.assertEqual([], harness.clock.getDelayedCalls())

    def test_noTimerWhenItIsDone(self) -> None:
        """
        When the stop is done there is no timer, not even for a moment.
        """
        harness = self.makeServer()
        client = harness.client()
        left: list[object] = []
        stopped = harness.server.stopService()
        stopped.addCallback(lambda _: left.extend(harness.clock.getDelayedCalls()))
        client.lose()
        self.successResultOf(stopped)
        self.assertEqual([], left)

    def test_abort(self) -> None:
        """
        A client that does not let itself be closed is cut off after ten
        seconds.
        """
        harness = self.makeServer()
        client = harness.client()
        stopped = harness.server.stopService()
        harness.clock.advance(10 - INSTANT)
        self.assertFalse(client.transport.disconnected)
        harness.clock.advance(INSTANT)
        self.assertTrue(client.transport.disconnected)
        client.lose()
        self.successResultOf(stopped)

    def test_gone(self) -> None:
        """
        Streams that are gone are not waited for.
        """
        harness = self.makeServer()
        harness.client().lose()
        harness.connect().lose()
        self.successResultOf(harness.server.stopService())

    def test_lateAck(self) -> None:
        """
        An ACK that was under way when the stream was ended does not count any
        more; the message goes out again if the server is started again.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.submit("u-1")
        stopped = harness.server.stopService()
        client.ack("u-1")
        client.lose()
        self.successResultOf(stopped)
        self.assertEqual([], harness.app.delivered)
        harness.server.startService()
        self.assertEqual(["u-1"], harness.client().ids())

    def test_sweep(self) -> None:
        """
        There is no look at the queues after the stop, whatever waits.
        """
        harness = self.makeServer()
        client = harness.client()
        harness.submit("u-1")
        stopped = harness.server.stopService()
        client.lose()
        self.successResultOf(stopped)
        harness.submit("u-2")
        self.assertEqual([], harness.clock.getDelayedCalls())

    def test_twice(self) -> None:
        """
        It may be stopped twice, and both are told the end.
        """
        harness = self.makeServer()
        client = harness.client()
        first, second = harness.server.stopService(), harness.server.stopService()
        self.assertNoResult(first)
        client.lose()
        self.successResultOf(first)
        self.successResultOf(second)

    def test_startedAgain(self) -> None:
        """
        A server that is started again has kept what it was entrusted with.
        """
        harness = self.makeServer()
        harness.submit("u-1", time_to_live=600)
        harness.submit("u-2", time_to_live=30)
        self.successResultOf(harness.server.stopService())
        harness.server.startService()
        self.assertEqual(["u-1", "u-2"], harness.client().ids())


class LogTests(ServiceCase):
    """
    What a connection server leaves in the log.
    """

    def test_comingAndGoing(self) -> None:
        """
        App servers that come and go are logged by their sender, without a key,
        a token or any data.
        """
        with capturedLogs() as events:
            harness = self.makeServer()
            client = harness.client()
            harness.submit("u-1", k="the data")
            client.downstream(to="tok-A", message_id="m-1", data={"k": "the data"})
            client.downstream(to="tok-X", message_id="m-2")
            client.lose()
        lines = [eventAsText(e, includeTimestamp=False, includeSystem=False) for e in events]
        self.assertEqual(
            [
                "an app server of sender 111 logged in from 192.0.2.1:1",
                "an app server of sender 111 at 192.0.2.1:1 is gone; unacknowledged, and to go out again: 1",
            ],
            lines,
        )
        everything = "".join(eventAsText(event) + eventAsJSON(event) for event in events)
        for secret in ("key-1", "tok-A", "tok-X", "the data"):
            self.assertNotIn(secret, everything)
