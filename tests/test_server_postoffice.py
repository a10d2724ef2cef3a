"""
Tests for what L{fcmxmpp.server.postoffice} and L{fcmxmpp.server.devices} do when
something is wrong: the store, the order of things, and whoever is at the other
end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.errors import StoreUnavailable
from fcmxmpp.mcs import wire
from fcmxmpp.mcs.frames import Tag, encodeFrame
from fcmxmpp.mcs.session import UNSTORED
from fcmxmpp.server.devices import CLOSING
from tests.mcsclients import APP, DeviceClient, World


CORPUS = Path(__file__).parent / "corpus" / "frames"


class OfficeCase(SynchronousTestCase):
    """
    A world with a device, of which everything can be broken.
    """

    def setUp(self) -> None:
        """
        Have it.
        """
        self.world = World()
        self.identity = self.world.checkIn()
        self.token = self.world.register(self.identity)

    def device(self, **how: Any) -> DeviceClient:
        """
        The device, connected.
        """
        return self.world.device(self.identity, **how)

    def waiting(self) -> int:
        """
        How much waits for the device.
        """
        count: int = self.successResultOf(self.world.store.mailboxes.waiting(self.identity.android_id))
        return count

    def nextProcess(self) -> World:
        """
        Another process with the same store; this one is dead.
        """
        for call in self.world.clock.getDelayedCalls():
            call.cancel()
        return World(self.world.store, clock=self.world.clock)

    def breaks(self, part: str, method: str) -> None:
        """
        Have something of the store not work, until L{works}.
        """
        target = getattr(self.world.store, part)
        setattr(target, method, lambda *_, **__: fail(StoreUnavailable("the disk is full")))

    def works(self, part: str, method: str) -> None:
        """
        Have it work again.
        """
        delattr(getattr(self.world.store, part), method)

    def holds(self, part: str, method: str) -> list[Any]:
        """
        Have something of the store take its time.

        @return: what lets each call go on.
        """
        target = getattr(self.world.store, part)
        real = getattr(target, method)
        held: list[Any] = []

        def later(*arguments: Any, **more: Any) -> Deferred[Any]:
            result: Deferred[Any] = Deferred()
            held.append(lambda: real(*arguments, **more).chainDeferred(result))
            return result

        setattr(target, method, later)
        return held


class StoreTests(OfficeCase):
    """
    A store that does not work loses nothing, and whoever waits hears of it.
    """

    def test_post(self) -> None:
        """
        The app server is asked to try again.
        """
        self.breaks("mailboxes", "post")
        answer = self.world.appServer().downstream(to=self.token, message_id="m-1")
        self.assertEqual("SERVICE_UNAVAILABLE", answer["error"])

    def test_upload(self) -> None:
        """
        A message that cannot be stored is not acknowledged; the device is
        disconnected, and brings it again.
        """
        for part, method in (("entrusted", "add"), ("registrations", "tokenOf")):
            self.breaks(part, method)
            self.world.office.changed()
            client = self.device()
            client.upload("u-1")
            self.world.settle()
            self.assertEqual(1, client.acknowledged())
            self.assertTrue(client.transport.disconnecting)
            client.lose()
            self.works(part, method)
        client = self.device()
        client.upload("u-1")
        self.world.settle()
        self.assertEqual(2, client.acknowledged())

    def test_login(self) -> None:
        """
        Who cannot be told apart is disconnected without an answer, and not
        refused.
        """
        for part, method, received in (
            ("registrations", "isKnown", None),
            ("mailboxes", "confirm", ["x"]),
        ):
            self.breaks(part, method)
            client = self.world.connect()
            self.assertEqual([], client.login(self.identity, received))
            self.assertTrue(client.transport.disconnecting)
            client.lose()
            self.works(part, method)

    def test_load(self) -> None:
        """
        A device whose mailbox cannot be looked into comes again.
        """
        self.world.appServer().downstream(to=self.token, message_id="m-1")
        self.breaks("mailboxes", "load")
        client = self.device()
        self.assertTrue(client.transport.disconnecting)
        client.lose()
        self.works("mailboxes", "load")
        again = self.world.connect()
        self.assertIn(Tag.DATA_MESSAGE_STANZA, [tag for tag, _ in again.login(self.identity)])

    def test_delivered(self) -> None:
        """
        What cannot be forgotten comes again.
        """
        self.breaks("mailboxes", "delivered")
        client = self.device()
        self.world.appServer().downstream(to=self.token, message_id="m-1")
        client.heartbeat(3)
        client.lose()
        self.works("mailboxes", "delivered")
        again = self.world.connect()
        self.assertIn(Tag.DATA_MESSAGE_STANZA, [tag for tag, _ in again.login(self.identity)])

    def test_confirmedInBand(self) -> None:
        """
        What a device names while it is connected is forgotten, or comes again
        if that is impossible.
        """
        client = self.device()
        client.look()
        app = self.world.appServer()
        for isBroken in (True, False):
            app.downstream(to=self.token, message_id="m-1")
            (stanza,) = client.stanzas()
            if isBroken:
                self.breaks("mailboxes", "confirm")
            iq = wire.IqStanza(type=wire.IqStanza.SET, id="")
            iq.extension.id = 12
            iq.extension.data = wire.SelectiveAck(id=[stanza.persistent_id]).SerializeToString()
            client.send(Tag.IQ_STANZA, iq)
            if isBroken:
                self.works("mailboxes", "confirm")
                self.assertEqual(
                    1, self.successResultOf(self.world.store.mailboxes.waiting(self.identity.android_id))
                )
                self.successResultOf(
                    self.world.store.mailboxes.confirm(self.identity.android_id, [stanza.persistent_id])
                )
        self.assertEqual(
            0, self.successResultOf(self.world.store.mailboxes.waiting(self.identity.android_id))
        )

    def test_topic(self) -> None:
        """
        A message to a topic goes on when the store works again, also if that
        is another process.
        """
        self.successResultOf(self.world.store.registrations.subscribe([self.token], "/topics/x"))
        client = self.device()
        client.look()
        self.breaks("mailboxes", "spread")
        app = self.world.appServer()
        answer = app.downstream(to="/topics/x", message_id="m-1")
        self.assertEqual("ack", answer["message_type"])
        self.assertEqual([], client.stanzas())
        self.works("mailboxes", "spread")
        self.world.clock.advance(2)
        (stanza,) = client.stanzas()
        self.assertEqual("/topics/x", getattr(stanza, "from"))
        self.breaks("mailboxes", "spread")
        app.downstream(to="/topics/x", message_id="m-2")
        self.world.office.stop()
        self.works("mailboxes", "spread")
        client.lose()
        next_ = self.nextProcess()
        again = next_.connect()
        self.assertIn(
            "/topics/x",
            [getattr(m, "from") for t, m in again.login(self.identity) if t == Tag.DATA_MESSAGE_STANZA],
        )

    def test_notTold(self) -> None:
        """
        If an app cannot be told of a failure, that is all.
        """
        self.breaks("mailboxes", "notify")
        client = self.device()
        client.look()
        client.upload("u-1", ttl=0)
        self.world.settle()
        self.assertEqual([], client.stanzas())
        self.assertEqual(2, client.acknowledged())


class OrderTests(OfficeCase):
    """
    Whatever comes first.
    """

    def test_postedWhileLoading(self) -> None:
        """
        What is posted while a device logs in comes once, and in order.
        """
        app = self.world.appServer()
        app.downstream(to=self.token, message_id="m-0", data={"n": "0"})
        held = self.holds("mailboxes", "load")
        client = self.device()
        app.downstream(to=self.token, message_id="m-1", data={"n": "1"})
        self.assertEqual([], client.stanzas())
        app.downstream(to=self.token, message_id="m-2", data={"n": "2"})
        while held:
            held.pop(0)()
        numbers = [each.app_data[0].value for each in client.stanzas()]
        self.assertEqual(["0", "1", "2"], numbers)

    def test_goneWhileLoading(self) -> None:
        """
        A device that is gone before its mail was looked up gets it at its next
        login.
        """
        self.world.appServer().downstream(to=self.token, message_id="m-0")
        held = self.holds("mailboxes", "load")
        first = self.device()
        first.lose()
        held.pop(0)()
        second = self.device()
        held.pop(0)()
        self.assertEqual(1, len(second.stanzas()))

    def test_goneWhileChecking(self) -> None:
        """
        A device that is gone before it was told apart is not logged in; nor is
        one that goes while what it has is noted, or that is wrong.
        """
        held = self.holds("registrations", "isKnown")
        for identity in (self.identity, self.identity._replace(security_token=1)):
            client = self.world.connect()
            client.login(identity)
            client.lose()
            held.pop(0)()
        self.works("registrations", "isKnown")
        held = self.holds("mailboxes", "confirm")
        client = self.world.connect()
        client.login(self.identity, ["x"])
        client.lose()
        held.pop(0)()
        self.assertEqual(0, self.world.office.connections)
        self.assertEqual([], self.world.clock.getDelayedCalls())

    def test_uploadOrder(self) -> None:
        """
        Messages of several apps stay in order, however long it takes to find
        out whom each is from.
        """
        app = self.world.appServer()
        self.world.register(self.identity, category="b")
        held = self.holds("registrations", "tokenOf")
        client = self.device()
        for number in range(9):
            client.upload(f"u-{number}", category="b" if number % 3 == 1 else APP)
        self.assertEqual([], app.ids())
        while held:
            held.pop(0)()
        self.assertEqual([f"u-{number}" for number in range(9)], app.ids())

    def test_replacedWhileUploading(self) -> None:
        """
        What comes on a connection that another has replaced is left to that.
        """
        app = self.world.appServer()
        first = self.device()
        second = self.device()
        first.stream._isOver = False
        first.upload("u-1")
        self.assertEqual([], app.ids())
        second.upload("u-1")
        self.assertEqual(["u-1"], app.ids())

    def test_registeredAnew(self) -> None:
        """
        After an app was registered anew its messages are from its new token.
        """
        app = self.world.appServer()
        client = self.device()
        client.upload("u-1")
        self.successResultOf(self.world.store.registrations.remove(self.token))
        token = self.world.register(self.identity)
        self.world.office.changed()
        client.upload("u-2")
        self.assertEqual([self.token, token], [message["from"] for message in app.delivered()])

    def test_lookedUpOnce(self) -> None:
        """
        Whom messages of an app are from is looked up for the first on each
        connection, and again when an app somewhere was registered or unregistered;
        what was being looked up just then is not remembered.
        """
        self.world.appServer()
        held = self.holds("registrations", "tokenOf")

        def lookups(client: DeviceClient, *messages: str) -> int:
            for message in messages:
                client.upload(message)
            count = 0
            while held:
                held.pop(0)()
                count += 1
            return count

        client = self.device()
        self.assertEqual([1, 0], [lookups(client, "u-1", "u-2"), lookups(client, "u-3")])
        self.world.office.changed()
        client.upload("u-4")
        self.world.office.changed()
        self.assertEqual([1, 1, 0], [lookups(client, *messages) for messages in ((), ("u-5",), ("u-6",))])
        client.lose()
        self.assertEqual(1, lookups(self.device(), "u-7"))

    def test_unregisteredMeanwhile(self) -> None:
        """
        What an earlier process took over from an app that is gone expires, and
        nobody is told.
        """
        client = self.device()
        client.upload("u-1", ttl=5)
        client.lose()
        self.world.settle()
        self.successResultOf(self.world.store.registrations.remove(self.token))
        next_ = self.nextProcess()
        next_.clock.advance(6)
        self.assertEqual(1, next_.server.statistics.expired)
        self.assertEqual(0, self.waiting())

    def test_earlierProcess(self) -> None:
        """
        The app is told of the expiry of what an earlier process took over; of
        what is acknowledged it is not.
        """
        client = self.device()
        client.upload("u-1", ttl=5)
        client.upload("u-2", ttl=500)
        client.lose()
        self.world.settle()
        next_ = self.nextProcess()
        next_.clock.advance(6)
        app = next_.appServer()
        self.assertEqual(["u-2"], app.ids())
        app.ack("u-2", to=self.token)
        again = next_.connect()
        names = [m.persistent_id for t, m in again.login(self.identity) if t == Tag.DATA_MESSAGE_STANZA]
        self.assertEqual(["u-1"], names)


class HostileTests(OfficeCase):
    """
    Whoever is at the other end.
    """

    def test_pausing(self) -> None:
        """
        While much is not stored nothing more is read, and afterwards it goes on.
        """
        held = self.holds("entrusted", "add")
        client = self.device()
        for number in range(UNSTORED):
            client.upload(f"u-{number}")
        self.assertEqual("paused", client.transport.producerState)
        while held:
            held.pop(0)()
        self.world.settle()
        self.assertEqual("producing", client.transport.producerState)
        self.assertEqual(UNSTORED + 1, client.acknowledged())

    def test_notUnicode(self) -> None:
        """
        A message that is no Unicode ends the connection, and is no fault of
        ours.
        """
        client = self.device()
        body = wire.DataMessageStanza(**{"from": ""}, category="cat", id="u").SerializeToString()
        client.stream.dataReceived(encodeFrame(8, body.replace(b"cat", b"c\xfft")))
        self.assertTrue(client.transport.disconnecting)

    def test_silentEnd(self) -> None:
        """
        A device that does not close its end is cut off, and one that does not
        read at once.
        """
        client = self.device()
        client.stream.end("for a test")
        self.assertFalse(client.transport.disconnected)
        self.world.clock.advance(CLOSING)
        self.assertTrue(client.transport.disconnected)
        other = self.device()
        other.stream.pauseProducing()
        other.stream.end("for a test")
        self.assertTrue(other.transport.disconnected)

    def test_stop(self) -> None:
        """
        The stop waits for all connections to be closed.
        """
        self.successResultOf(self.world.devices.stop())
        clients = [self.device(), self.world.connect()]
        stopped = self.world.devices.stop()
        self.assertNoResult(stopped)
        for client in clients:
            client.lose()
        self.successResultOf(stopped)

    def test_tooMany(self) -> None:
        """
        More connections than may be are not taken.
        """
        self.world.devices._most = 1
        self.device()
        self.assertIsNone(self.world.devices.buildProtocol(None))

    def test_guesses(self) -> None:
        """
        Who guesses is slowed down, and then not looked at; others are served
        meanwhile.
        """
        wrong = self.identity._replace(security_token=1)
        clients = [self.world.device(wrong) for _ in range(40)]
        self.assertIn("too many logins", clients[-1].stream.reason)
        self.assertEqual([], clients[0].frames)

    def test_corpus(self) -> None:
        """
        Whatever is in the corpus, before the login and after it: no fault of
        ours, and the others are served as ever.
        """
        good = self.device()
        good.look()
        app = self.world.appServer()
        for number, file in enumerate(sorted(CORPUS.glob("*.bin"))):
            data = file.read_bytes()
            stranger = self.world.connect()
            stranger.stream.dataReceived(data)
            other = self.world.device(self.world.checkIn())
            other.stream.dataReceived(data[1:])
            self.world.settle()
            app.downstream(to=self.token, message_id=f"m-{number}")
            self.assertEqual(1, len(good.stanzas()), file.name)
            good.heartbeat(len(good.frames))
            for client in (stranger, other):
                client.lose()
        self.world.clock.advance(60)

    def test_logsNoSecrets(self) -> None:
        """
        No token, secret or payload gets into the log, whatever happens.
        """
        with capturedLogs() as events:
            client = self.device()
            client.upload("u-1", {"secret": "payload"})
            client.stream.dataReceived(b"\x08\x05secre")
            self.world.device(self.identity._replace(security_token=1))
            self.world.clock.advance(1)
        text = repr(events)
        for secret in (self.token, "payload", str(self.identity.security_token)):
            self.assertNotIn(secret, text)

    @given(st.lists(st.one_of(st.binary(max_size=60), st.tuples(st.integers(0, 15), st.binary(max_size=60)))))
    def test_anything(self, pieces: list[Any]) -> None:
        """
        Whatever a device sends after its login: no fault of ours.
        """
        world = World()
        client = world.device(world.checkIn())
        for piece in pieces:
            client.stream.dataReceived(piece if isinstance(piece, bytes) else encodeFrame(*piece))
            world.settle()
        client.lose()
        self.assertEqual([], self.flushLoggedErrors())
