"""
Tests for L{fcmxmpp.server.devices} and L{fcmxmpp.server.postoffice}, which
together serve the devices that connect.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.mcs import wire
from fcmxmpp.mcs.frames import Tag
from fcmxmpp.registrations import Identity
from fcmxmpp.server.devices import CLOSING
from tests.mcsclients import APP, DeviceClient, World


class DeviceCase(SynchronousTestCase):
    """
    A world with one device on which one app is registered.
    """

    def setUp(self) -> None:
        """
        Have a device.
        """
        self.world = World()
        self.identity = self.world.checkIn()
        self.token = self.world.register(self.identity)

    def device(self, **how: object) -> DeviceClient:
        """
        The device, connected.
        """
        return self.world.device(self.identity, **how)  # type: ignore[arg-type]


class LoginTests(DeviceCase):
    """
    How a device logs in.
    """

    def test_order(self) -> None:
        """
        The server says its version, then who the device is, then asks for what
        it has not sent yet, which iOS waits for.
        """
        client = self.world.connect()
        frames = client.login(self.identity)
        self.assertEqual(41, client.version)
        self.assertEqual([Tag.LOGIN_RESPONSE, Tag.IQ_STANZA], [tag for tag, _ in frames])
        response = frames[0][1]
        self.assertEqual(1, response.last_stream_id_received)
        self.assertEqual(1_700_000_000_000, response.server_timestamp)
        self.assertFalse(response.HasField("error"))
        self.assertEqual((12, b""), (frames[1][1].extension.id, frames[1][1].extension.data))

    def test_version(self) -> None:
        """
        iOS is answered in its own version: it takes no other.
        """
        client = self.device(version=40, loginID="ios-4.1.8")
        self.assertEqual(40, client.version)

    def test_refused(self) -> None:
        """
        A wrong token, an unknown device and what is no number are refused alike,
        later each time, and the connection is closed.
        """
        wrong = self.identity._replace(security_token=self.identity.security_token ^ 1)
        delays = []
        for each in (wrong, Identity(77, 77), wrong):
            client = self.world.connect()
            began = self.world.clock.seconds()
            self.assertEqual([], client.login(each))
            while not client.look():
                self.world.clock.advance(0.25)
            delays.append(self.world.clock.seconds() - began)
            ((tag, response),) = client.frames
            self.assertEqual(Tag.LOGIN_RESPONSE, tag)
            self.assertEqual(401, response.error.code)
            self.assertTrue(client.transport.disconnecting)
        self.assertEqual([0.25, 0.5, 1.0], delays)

    def test_notANumber(self) -> None:
        """
        A device that says that it is no number is refused, and so is one whose
        number is larger than any can be: the store is not asked for it.
        """
        for user, token in (("9" * 30, "\N{SUPERSCRIPT TWO}"), ("9" * 19, "1"), ("1", str(1 << 63))):
            client = self.world.connect()
            client.send(
                Tag.LOGIN_REQUEST,
                wire.LoginRequest(id="x", domain="d", user=user, resource="r", auth_token=token),
            )
            self.world.clock.advance(2)
            ((_, response),) = client.look()
            self.assertEqual(401, response.error.code)

    def test_deadline(self) -> None:
        """
        Who does not log in within half a minute is closed, and nothing is left
        of that.
        """
        client = self.world.connect()
        self.world.clock.advance(31)
        self.assertTrue(client.transport.disconnecting or client.transport.disconnected)
        self.world.clock.advance(CLOSING)
        client.lose()
        self.assertEqual([], self.world.clock.getDelayedCalls())

    def test_second(self) -> None:
        """
        A second login of a device ends the first connection.
        """
        first = self.device()
        second = self.device()
        self.assertTrue(first.transport.disconnecting)
        first.lose()
        self.world.appServer().downstream(to=self.token, message_id="m-1")
        self.assertEqual(1, len(second.stanzas()))

    def test_strangers(self) -> None:
        """
        If too many do not log in, the oldest makes room; who has logged in
        stays.
        """
        logged = self.device()
        self.world.devices._mostStrangers = 3
        clients = [self.world.connect() for _ in range(5)]
        self.assertEqual(
            [True, True, False, False, False], [client.transport.disconnecting for client in clients]
        )
        self.assertFalse(logged.transport.disconnecting)

    def test_idle(self) -> None:
        """
        A device that has logged in and is silent costs no timer.
        """
        self.device()
        self.assertEqual([], self.world.clock.getDelayedCalls())


class DownstreamTests(DeviceCase):
    """
    From an app server to a device.
    """

    def test_connected(self) -> None:
        """
        What an app server sends comes at once, with what the app needs to know.
        """
        client = self.device()
        client.look()
        answer = self.world.appServer().downstream(
            to=self.token, message_id="m-1", data={"op": "x"}, collapse_key="c", time_to_live=60
        )
        self.assertEqual({"from": self.token, "message_id": "m-1", "message_type": "ack"}, answer)
        (stanza,) = client.stanzas()
        self.assertEqual(
            ("111", APP, "c", 60), (getattr(stanza, "from"), stanza.category, stanza.token, stanza.ttl)
        )
        self.assertIn(("op", "x"), [(each.key, each.value) for each in stanza.app_data])

    def test_later(self) -> None:
        """
        What is sent to a device that is not connected waits for it, in order.
        """
        app = self.world.appServer()
        for number in range(70):
            app.downstream(to=self.token, message_id=f"m-{number}", data={"n": str(number)})
        client = self.world.connect()
        stanzas = [message for tag, message in client.login(self.identity) if tag == Tag.DATA_MESSAGE_STANZA]
        self.assertEqual(
            [str(number) for number in range(70)],
            [{each.key: each.value for each in stanza.app_data}["n"] for stanza in stanzas],
        )

    def test_acknowledged(self) -> None:
        """
        What the device has acknowledged does not come again; the rest does.
        """
        app = self.world.appServer()
        client = self.device()
        for number in range(3):
            app.downstream(to=self.token, message_id=f"m-{number}")
        names = [stanza.persistent_id for stanza in client.stanzas()]
        # The login's answer, its IQ, and two messages.
        client.heartbeat(4)
        client.lose()
        again = self.world.connect()
        again.login(self.identity)
        self.assertEqual(
            names[2:], [each.persistent_id for tag, each in again.frames if tag == Tag.DATA_MESSAGE_STANZA]
        )

    def test_received(self) -> None:
        """
        What the device says at its login that it has does not come again.
        """
        app = self.world.appServer()
        for number in range(3):
            app.downstream(to=self.token, message_id=f"m-{number}")
        client = self.device()
        names = [each.persistent_id for tag, each in client.frames if tag == Tag.DATA_MESSAGE_STANZA]
        client.lose()
        again = self.device(received=["|".join(names[:2])])
        self.assertEqual(
            names[2:], [each.persistent_id for tag, each in again.frames if tag == Tag.DATA_MESSAGE_STANZA]
        )

    def test_receivedMuch(self) -> None:
        """
        A device that has acknowledged nothing for days logs in with thousands of
        names.
        """
        names = [f"0:1700000000000000%{number:016x}" for number in range(6000)]
        client = self.device(received=names)
        self.assertEqual([Tag.LOGIN_RESPONSE, Tag.IQ_STANZA], [tag for tag, _ in client.frames])

    def test_receipt(self) -> None:
        """
        A receipt is sent when the device has acknowledged the message, for
        which it is asked to at once.
        """
        app = self.world.appServer()
        client = self.device()
        app.downstream(to=self.token, message_id="m-1", delivery_receipt_requested=True)
        (stanza,) = client.stanzas()
        self.assertTrue(stanza.immediate_ack)
        self.assertEqual([], app.delivered())
        client.heartbeat(3)
        self.world.settle()
        (receipt,) = app.delivered()
        self.assertEqual("dr2:m-1", receipt["message_id"])
        self.assertEqual(self.token, receipt["data"]["device_registration_id"])

    def test_receiptOnce(self) -> None:
        """
        A device that says by its name that it has a message, and then by its
        number, makes one receipt.
        """
        app = self.world.appServer()
        client = self.device()
        app.downstream(to=self.token, message_id="m-1", delivery_receipt_requested=True)
        (stanza,) = client.stanzas()
        iq = wire.IqStanza(type=wire.IqStanza.SET, id="")
        iq.extension.id = 12
        iq.extension.data = wire.SelectiveAck(id=[stanza.persistent_id]).SerializeToString()
        client.send(Tag.IQ_STANZA, iq)
        self.world.settle()
        (receipt,) = app.delivered()
        app.ack(receipt["message_id"], to=receipt["from"])
        client.heartbeat(3)
        self.world.settle()
        self.assertEqual([], app.delivered())

    def test_refused(self) -> None:
        """
        What cannot be delivered is refused.
        """
        app = self.world.appServer()
        other = self.world.appServer("222")
        gone = self.world.register(self.identity, category="org.example.gone")
        self.world.store.registrations.remove(gone)
        self.assertEqual("BAD_REGISTRATION", app.downstream(to="nobody", message_id="m-1")["error"])
        self.assertEqual("DEVICE_UNREGISTERED", app.downstream(to=gone, message_id="m-2")["error"])
        self.assertEqual("SENDER_ID_MISMATCH", other.downstream(to=self.token, message_id="m-3")["error"])

    def test_slow(self) -> None:
        """
        A device that reads slowly gets the rest when it reads again, in order
        and once; meanwhile nothing piles up in its transport.
        """
        app = self.world.appServer()
        client = self.device()
        client.look()
        app.downstream(to=self.token, message_id="m-0", data={"n": "0"})
        client.stream.pauseProducing()
        for number in range(1, 80):
            app.downstream(to=self.token, message_id=f"m-{number}", data={"n": str(number)})
        self.assertEqual(1, len(client.stanzas()))
        client.stream.resumeProducing()
        self.assertEqual(79, len(client.stanzas()))
        app.downstream(to=self.token, message_id="m-80")
        self.assertEqual(1, len(client.stanzas()))

    def test_readsNothing(self) -> None:
        """
        Nothing is read of a device that does not read its answers, so that they
        do not pile up; when it reads again it is heard again.
        """
        client = self.device()
        client.stream.pauseProducing()
        self.assertEqual("paused", client.transport.producerState)
        client.stream.resumeProducing()
        self.assertEqual("producing", client.transport.producerState)

    def test_neverAcknowledges(self) -> None:
        """
        A device that lives and never acknowledges goes on getting messages;
        one of which nothing is heard gets no more than it may have
        unacknowledged, and the rest when it comes back.
        """
        app = self.world.appServer()
        client = self.device()
        client.look()
        for number in range(150):
            app.downstream(to=self.token, message_id=f"m-{number}")
            self.world.clock.advance(1)
        got = len(client.stanzas())
        self.assertLess(got, 150)
        client.heartbeat()
        self.world.settle()
        self.assertEqual(150, got + len(client.stanzas()))


class UpstreamTests(DeviceCase):
    """
    From a device to an app server.
    """

    def test_whole(self) -> None:
        """
        An app server gets a message with C{from} and C{category}, and the
        device is told that it is stored.
        """
        app = self.world.appServer()
        client = self.device()
        client.upload("u-1", {"op": "x"})
        self.world.settle()
        (message,) = app.delivered()
        self.assertEqual(
            {
                "data": {"op": "x"},
                "time_to_live": 3600,
                "from": self.token,
                "message_id": "u-1",
                "category": APP,
            },
            message,
        )
        self.assertEqual(2, client.acknowledged())

    def test_early(self) -> None:
        """
        What a device sends without waiting for the answer to its login is
        passed on and acknowledged, behind that answer.
        """
        app = self.world.appServer()
        client = self.world.connect()
        with client.together():
            client.login(self.identity)
            client.upload("u-1")
        self.world.settle()
        self.assertEqual(["u-1"], [message["message_id"] for message in app.delivered()])
        self.assertEqual(
            [Tag.LOGIN_RESPONSE, Tag.IQ_STANZA, Tag.IQ_STANZA], [tag for tag, _ in client.look()]
        )
        self.assertEqual(2, client.acknowledged())

    def test_noAppServer(self) -> None:
        """
        A message is stored while no app server is there, and delivered later.
        """
        client = self.device()
        client.upload("u-1")
        self.world.settle()
        self.assertEqual(2, client.acknowledged())
        self.assertEqual(["u-1"], self.world.appServer().ids())

    def test_again(self) -> None:
        """
        What a device sends again, because it has not heard that it is stored,
        is acknowledged and not delivered twice, even after the app server has
        acknowledged it.
        """
        app = self.world.appServer()
        client = self.device()
        client.upload("u-1")
        self.assertEqual(["u-1"], app.ids())
        app.ack("u-1", to=self.token)
        client.lose()
        again = self.device()
        again.upload("u-1", queued=10)
        self.world.settle()
        self.assertEqual(2, again.acknowledged())
        self.assertEqual([], app.ids())

    def test_order(self) -> None:
        """
        Messages arrive in the order in which they were sent, also while it is
        being looked up whom they are from.
        """
        app = self.world.appServer()
        self.world.register(self.identity, category="org.example.other")
        client = self.device()
        for number in range(20):
            client.upload(f"u-{number}", category="org.example.other" if number % 3 else APP)
        self.assertEqual([f"u-{number}" for number in range(20)], app.ids())

    def test_nowOrNever(self) -> None:
        """
        With a C{time_to_live} of 0 a message is delivered if an app server is
        there; if not, the app is told.
        """
        client = self.device()
        client.upload("u-1", ttl=0)
        self.world.settle()
        (stanza,) = client.stanzas()
        data = {each.key: each.value for each in stanza.app_data}
        self.assertEqual(("send_error", "service_not_available"), (data["message_type"], data["error"]))
        self.assertEqual("u-1", stanza.persistent_id)
        app = self.world.appServer()
        client.upload("u-2", ttl=0)
        self.assertEqual(["u-2"], app.ids())

    def test_expired(self) -> None:
        """
        If no app server comes in time, the app is told, now or when it comes
        back.
        """
        client = self.device()
        client.upload("u-1", ttl=30)
        client.lose()
        self.world.clock.advance(31)
        self.assertEqual([], self.world.appServer().ids())
        again = self.device()
        (stanza,) = [each for tag, each in again.frames if tag == Tag.DATA_MESSAGE_STANZA]
        self.assertEqual("u-1", stanza.persistent_id)

    def test_queued(self) -> None:
        """
        The time that a message waited on the device counts.
        """
        client = self.device()
        client.upload("u-1", ttl=30, queued=31)
        (stanza,) = client.stanzas()
        self.assertEqual("u-1", stanza.persistent_id)

    def test_tooLarge(self) -> None:
        """
        The app is told that its message is too large, and it is not delivered.
        """
        app = self.world.appServer()
        client = self.device()
        client.upload("u-1", {"k": "x" * 4096})
        self.world.settle()
        (stanza,) = client.stanzas()
        self.assertIn("messagetoobig", [each.value for each in stanza.app_data])
        self.assertEqual(2, client.acknowledged())
        self.assertEqual([], app.ids())

    def test_notRegistered(self) -> None:
        """
        An app that is not registered with a sender cannot send to it, and is
        told; it cannot send as another app.
        """
        app = self.world.appServer()
        client = self.device()
        client.upload("u-1", category="org.example.unknown")
        (stanza,) = client.stanzas()
        self.assertIn("invalid_parameters", [each.value for each in stanza.app_data])
        self.assertEqual([], app.ids())

    def test_othersToken(self) -> None:
        """
        A device that says that it is another one's token is not believed.
        """
        app = self.world.appServer()
        other = self.world.register(self.world.checkIn())
        client = self.device()
        client.send(
            Tag.DATA_MESSAGE_STANZA,
            wire.DataMessageStanza(
                **{"from": other}, id="u-1", to="111", category=APP, ttl=9, persistent_id="p", reg_id=other
            ),
        )
        self.assertEqual([self.token], [message["from"] for message in app.delivered()])

    def test_notForAppServers(self) -> None:
        """
        What the platform says to itself is accepted, and goes nowhere.
        """
        app = self.world.appServer()
        client = self.device()
        client.upload("u-1", category="com.google.android.gsf.gtalkservice", to="gcm@android.com")
        self.world.settle()
        self.assertEqual(2, client.acknowledged())
        self.assertEqual([], client.stanzas())
        self.assertEqual([], app.ids())

    def test_iOS(self) -> None:
        """
        iOS is not told of failures: it would hand that to the app as a message.
        """
        client = self.device(version=40, loginID="ios-4.1.8")
        client.look()
        client.upload("u-1", ttl=0)
        self.world.settle()
        self.assertEqual([], client.stanzas())
        self.assertEqual(2, client.acknowledged())
