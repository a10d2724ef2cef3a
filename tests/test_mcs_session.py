"""
Tests for L{fcmxmpp.mcs.session} and L{fcmxmpp.mcs.devicesession}: each end with
values, and both with each other.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.errors import MalformedFrame
from fcmxmpp.mcs import wire
from fcmxmpp.mcs.devicesession import LOGIN_DEADLINE as ANSWER_DEADLINE
from fcmxmpp.mcs.devicesession import (
    PATIENCE,
    DeviceSession,
    LoggedIn,
    LoginRefused,
    Received,
    ServerHas,
    UploadsAcknowledged,
)
from fcmxmpp.mcs.frames import FrameDecoder, Tag, encodeFrame
from fcmxmpp.mcs.session import (
    LOGIN_DEADLINE,
    UNACKNOWLEDGED,
    UNSTORED,
    Confirmed,
    Delivered,
    Hangup,
    LoginAsked,
    Overrun,
    Platform,
    ServerSession,
    Uploaded,
    Write,
)
from fcmxmpp.registrations import Identity
from tests.checkout import childEnvironment


IDENTITY = Identity(8416925632412385, 2326893975609101281)
_KINDS = {
    Tag.HEARTBEAT_PING: wire.HeartbeatPing,
    Tag.HEARTBEAT_ACK: wire.HeartbeatAck,
    Tag.LOGIN_REQUEST: wire.LoginRequest,
    Tag.LOGIN_RESPONSE: wire.LoginResponse,
    Tag.IQ_STANZA: wire.IqStanza,
    Tag.DATA_MESSAGE_STANZA: wire.DataMessageStanza,
}


def login(loginID: str = "chrome-99", **fields: Any) -> bytes:
    """
    A login request, as a frame.
    """
    request = wire.LoginRequest(id=loginID, domain="d", user="1", resource="1", auth_token="2", **fields)
    return encodeFrame(Tag.LOGIN_REQUEST, request.SerializeToString())


def stanza(name: str = "x", **fields: Any) -> bytes:
    """
    A data message.
    """
    message = wire.DataMessageStanza(**{"from": "1"}, category="c", persistent_id=name, **fields)
    serialized: bytes = message.SerializeToString()
    return serialized


def _iq(iq: Any) -> bytes:
    """
    An IQ, as a frame.
    """
    return encodeFrame(Tag.IQ_STANZA, iq.SerializeToString())


def written(outputs: list[Any]) -> bytes:
    """
    What is to be written.
    """
    return b"".join(output.data for output in outputs if isinstance(output, Write))


def frames(data: bytes) -> list[tuple[int, Any]]:
    """
    What frames are, without a version before them.
    """
    result = []
    for tag, body in FrameDecoder().feed(b"\x29" + data):
        message = _KINDS[tag]()  # type: ignore[index]
        message.ParseFromString(body)
        result.append((tag, message))
    return result


class ServerTests(SynchronousTestCase):
    """
    L{ServerSession}.
    """

    def opened(self, loginID: str = "chrome-99", version: int = 41) -> ServerSession:
        """
        One that is logged in.
        """
        session = ServerSession(0.0)
        session.receive(bytes([version]) + login(loginID), 0.0)
        session.accept(0.0)
        return session

    def test_login(self) -> None:
        """
        The login request is asked about; until that is answered nothing but the
        version is said, which is the device's own.
        """
        for version in (38, 40, 41):
            session = ServerSession(0.0)
            version_, asked = session.receive(bytes([version]) + login(), 1.0)
            self.assertEqual(Write(bytes([version])), version_)
            self.assertIsInstance(asked, LoginAsked)
            self.assertFalse(session.room)
            answer = session.accept(1700000000.0)
            (tag, response), (second, iq) = frames(written(answer))
            self.assertEqual((Tag.LOGIN_RESPONSE, Tag.IQ_STANZA), (tag, second))
            self.assertEqual(
                ("chrome-99", "1@mcs.android.com/1", 1, 1700000000000),
                (response.id, response.jid, response.last_stream_id_received, response.server_timestamp),
            )
            self.assertEqual((12, b""), (iq.extension.id, iq.extension.data))
            self.assertEqual(bytes.fromhex("070a10011a003a04080c1200"), answer[1].data)
            self.assertTrue(session.room)
            self.assertIsNone(session.wakeAt)

    def test_heartbeatConfig(self) -> None:
        """
        A device may be told how often to send a heartbeat.
        """
        session = ServerSession(0.0, heartbeatInterval=5.0)
        session.receive(b"\x29" + login(), 0.0)
        ((_, response), _) = frames(written(session.accept(0.0)))
        self.assertEqual(5000, response.heartbeat_config.interval_ms)

    def test_platforms(self) -> None:
        """
        Devices are told apart by what they call themselves.
        """
        for loginID, platform in (
            ("ios-4.1.8", Platform.IOS),
            ("chrome-156", Platform.CHROME),
            ("android-30", Platform.ANDROID),
            ("94.0.4606.51", Platform.OTHER),
        ):
            self.assertIs(platform, self.opened(loginID).platform)

    def test_refuse(self) -> None:
        """
        A refusal is an error, and then the end: iOS looks at that only.
        """
        session = ServerSession(0.0)
        session.receive(b"\x29" + login(), 0.0)
        write, hangup = session.refuse(401, 0.0)
        ((_, response),) = frames(write.data)
        self.assertEqual(401, response.error.code)
        self.assertFalse(hangup.abort)
        self.assertEqual([], session.receive(b"\x00\x00", 0.0))

    def test_deadline(self) -> None:
        """
        Who does not log in in time is hung up on, and not before.
        """
        session = ServerSession(5.0)
        self.assertEqual(5 + LOGIN_DEADLINE, session.wakeAt)
        self.assertEqual([], session.wake(4 + LOGIN_DEADLINE))
        (hangup,) = session.wake(5 + LOGIN_DEADLINE)
        self.assertTrue(hangup.abort)
        self.assertEqual([], self.opened().wake(1e9))

    def test_wrongBeginnings(self) -> None:
        """
        Other versions, other frames first, logins without what they have to
        have or with what is no Unicode: the end.
        """
        request = wire.LoginRequest(id="x", domain="d", user="1", resource="1", auth_token="2")
        notUnicode = request.SerializeToString().replace(b"\x0a\x01x", b"\x0a\x01\xff")
        for data in (
            b"\x2a" + login(),
            b"\x05" + login(),
            b"\x29\x00\x00",
            b"\x29" + encodeFrame(2, b"\x0a\x01x"),
            b"\x29" + encodeFrame(2, b"\xff\xff"),
            b"\x29" + encodeFrame(2, notUnicode),
            b"\x29" + login() + b"\x00\x00" * 17,
            b"GET / HTTP/1.1\r\n",
        ):
            session = ServerSession(0.0)
            self.assertIsInstance(session.receive(data, 0.0)[-1], Hangup, data)
            self.assertTrue(session.isOver)

    def test_notCompiled(self) -> None:
        """
        With a protobuf that is written in Python, which raises something else for
        what is no Unicode, that ends the conversation as well.
        """
        request = wire.LoginRequest(id="x", domain="d", user="1", resource="1", auth_token="2")
        bad = request.SerializeToString().replace(b"\x0a\x01x", b"\x0a\x01\xff")
        ack = wire.IqStanza(type=wire.IqStanza.SET, id="")
        ack.extension.id, ack.extension.data = 12, b"\x0a\x01\xff"
        program = (
            "from google.protobuf.internal.api_implementation import Type\n"
            "from fcmxmpp.mcs.session import Hangup, ServerSession\n"
            "assert Type() == 'python'\n"
            f"for login, then in (({encodeFrame(2, bad)!r}, b''), ({login()!r}, {_iq(ack)!r})):\n"
            "    session = ServerSession(0.0)\n"
            "    outputs = session.receive(b'\\x29' + login, 0.0)\n"
            "    if then:\n"
            "        session.accept(0.0)\n"
            "        outputs = session.receive(then, 0.0)\n"
            "    print(type(outputs[-1]).__name__)\n"
        )
        environment = childEnvironment(PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION="python")
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
        )
        self.assertEqual(("Hangup\nHangup\n", ""), (done.stdout, done.stderr))

    def test_early(self) -> None:
        """
        What comes behind the login request is dealt with when that is answered,
        and counted right.
        """
        session = ServerSession(0.0)
        session.receive(b"\x29" + login() + b"\x00\x00" + encodeFrame(8, stanza()), 0.0)
        self.assertEqual(
            [Tag.LOGIN_RESPONSE, Tag.IQ_STANZA], [tag for tag, _ in frames(written(session.accept(0.0)))]
        )
        # What goes out in between does not say that these have come.
        (delivered,) = frames(written(session.deliver("d", stanza(), 0.0)))
        self.assertEqual(0, delivered[1].last_stream_id_received)
        outputs = session.receive(b"", 0.0)
        (uploaded,) = [output for output in outputs if isinstance(output, Uploaded)]
        self.assertEqual(3, uploaded.streamID)
        self.assertEqual(2, frames(written(outputs))[-1][1].last_stream_id_received)
        self.assertEqual([], session.receive(b"", 0.0))
        (acknowledged,) = frames(written(session.stored([3], 0.0)))
        self.assertEqual(3, acknowledged[1].last_stream_id_received)

    def test_earlyRubbish(self) -> None:
        """
        What comes behind the login request and ends the conversation ends it
        when it is dealt with.
        """
        for rubbish in (b"\x08\x01\xff", b"\x04\x00"):
            session = ServerSession(0.0)
            session.receive(b"\x29" + login() + rubbish + b"\x00\x00", 0.0)
            session.accept(0.0)
            (hangup,) = session.receive(b"\x00\x00", 0.0)
            self.assertIsInstance(hangup, Hangup)

    def test_earlyTooMuch(self) -> None:
        """
        Before it is known who this is, neither many frames are kept nor many
        bytes.
        """
        for many in (b"\x00\x00" * 17, encodeFrame(8, bytes(20_000)) * 2):
            session = ServerSession(0.0)
            session.receive(b"\x29" + login(), 0.0)
            (hangup,) = session.receive(many, 0.0)
            self.assertIsInstance(hangup, Hangup)

    def test_heartbeat(self) -> None:
        """
        A heartbeat is answered with how much has come, byte for byte.
        """
        session = self.opened()
        self.assertEqual(bytes.fromhex("01021002"), written(session.receive(b"\x00\x00", 0.0)))
        self.assertEqual([], session.receive(b"\x01\x00", 0.0))

    def test_ends(self) -> None:
        """
        A goodbye, a second login and what cannot be read end it.
        """
        for data in (b"\x04\x00", login(), b"\x08\x01\xff", encodeFrame(8, b"\x12\x01x"), b"\x63\x00"):
            self.assertIsInstance(self.opened().receive(data, 0.0)[-1], Hangup)

    def test_ignored(self) -> None:
        """
        What is not in use any more is counted, and otherwise nothing.
        """
        session = self.opened()
        self.assertEqual([], session.receive(b"\x05\x00\x06\x00\x09\x00\x0f\x00\x03\x00", 0.0))
        self.assertEqual(bytes.fromhex("01021007"), written(session.receive(b"\x00\x00", 0.0)))

    def test_stored(self) -> None:
        """
        A stream ack goes out when something is stored, and never passes what is
        not, not even with a heartbeat or a message.
        """
        session = self.opened()
        ups = session.receive(encodeFrame(8, stanza("a")) * 3 + b"\x00\x00", 0.0)
        self.assertEqual([2, 3, 4], [output.streamID for output in ups if isinstance(output, Uploaded)])
        # The login request, and no more.
        self.assertEqual(bytes.fromhex("01021001"), written(ups))
        self.assertEqual([], session.stored([3], 0.0))
        (data,) = session.deliver("h", stanza(), 0.0)
        self.assertFalse(frames(data.data)[0][1].HasField("last_stream_id_received"))
        self.assertEqual(bytes.fromhex("070c10011a003a04080d12005003"), written(session.stored([2], 0.0)))
        (data,) = session.deliver("h", stanza(), 0.0)
        self.assertFalse(frames(data.data)[0][1].HasField("last_stream_id_received"))
        ((_, ack),) = frames(written(session.stored([4], 0.0)))
        self.assertEqual(5, ack.last_stream_id_received)
        session.receive(b"\x01\x00", 0.0)
        (data,) = session.deliver("h", stanza(), 0.0)
        self.assertEqual(6, frames(data.data)[0][1].last_stream_id_received)
        self.assertEqual([], session.stored([4, 99], 0.0))
        session.receive(b"\x04\x00", 0.0)
        self.assertEqual([], session.stored([4], 0.0))

    def test_pausing(self) -> None:
        """
        No more is read while much is not stored.
        """
        session = self.opened()
        session.receive(encodeFrame(8, stanza("a")) * UNSTORED, 0.0)
        self.assertTrue(session.pausing)
        session.stored([2], 0.0)
        self.assertFalse(session.pausing)

    def test_delivered(self) -> None:
        """
        What the device has received it may say in heartbeats, their answers,
        IQs and messages; a number covers all before it, one that it has said
        before nothing, and one that was never sent ends it.
        """
        for tag, body in (
            (0, wire.HeartbeatPing(last_stream_id_received=4)),
            (1, wire.HeartbeatAck(last_stream_id_received=4)),
            (7, wire.IqStanza(type=1, id="", last_stream_id_received=4)),
            (8, wire.DataMessageStanza(**{"from": ""}, category="c", last_stream_id_received=4)),
        ):
            session = self.opened()
            for handle in "abc":
                session.deliver(handle, stanza(), 0.0)
            frame = encodeFrame(tag, body.SerializeToString())
            self.assertIn(Delivered(["a", "b"]), session.receive(frame, 0.0))
            self.assertEqual(1, session.unacknowledged)
            self.assertNotIn(Delivered([]), session.receive(frame, 0.0))
            body.last_stream_id_received = 99
            self.assertIsInstance(
                session.receive(encodeFrame(tag, body.SerializeToString()), 0.0)[-1], Hangup
            )

    def test_withdraw(self) -> None:
        """
        What is waited for no longer comes back no more, and the rest is told as
        before.
        """
        session = self.opened()
        for handle in "abc":
            session.deliver(handle, stanza(), 0.0)
        session.withdraw(lambda handle: handle == "b")
        self.assertEqual(2, session.unacknowledged)
        frame = encodeFrame(0, wire.HeartbeatPing(last_stream_id_received=5).SerializeToString())
        self.assertIn(Delivered(["a", "c"]), session.receive(frame, 0.0))

    def test_confirmed(self) -> None:
        """
        Some devices name what they have received; what is none of that does no
        harm, and what cannot be read ends it.
        """
        session = self.opened()
        iq = wire.IqStanza(type=wire.IqStanza.SET, id="")
        iq.extension.id = 12
        iq.extension.data = wire.SelectiveAck(id=["7", "8"]).SerializeToString()
        self.assertEqual(
            [Confirmed(["7", "8"])], session.receive(encodeFrame(7, iq.SerializeToString()), 0.0)
        )
        for number, data, expected in ((12, b"", []), (13, b"", []), (99, b"x", [])):
            iq.extension.id, iq.extension.data = number, data
            self.assertEqual(expected, session.receive(encodeFrame(7, iq.SerializeToString()), 0.0))
        iq.extension.id, iq.extension.data = 12, b"\xff"
        self.assertIsInstance(session.receive(encodeFrame(7, iq.SerializeToString()), 0.0)[-1], Hangup)

    def test_room(self) -> None:
        """
        Who does not acknowledge gets so much, and more only if it lives; then
        the oldest is given up for each.
        """
        session = self.opened()
        for number in range(UNACKNOWLEDGED):
            self.assertTrue(session.room)
            session.deliver(number, stanza(), 0.0)
        self.assertFalse(session.room)
        session.receive(b"\x01\x00", 0.0)
        for number in range(UNACKNOWLEDGED):
            overrun, _ = session.deliver("more", stanza(), 0.0)
            self.assertEqual(Overrun([number]), overrun)
        self.assertFalse(session.room)
        self.assertEqual(UNACKNOWLEDGED, session.unacknowledged)


class DeviceTests(SynchronousTestCase):
    """
    L{DeviceSession}.
    """

    def started(self) -> DeviceSession:
        """
        One that has said who it is.
        """
        session = DeviceSession(IDENTITY, "test-1", ["p-1", "p-2"], 0.0, 900.0)
        session.start()
        return session

    def opened(self) -> DeviceSession:
        """
        One that is logged in.
        """
        session = self.started()
        answer = wire.LoginResponse(id="test-1", last_stream_id_received=1).SerializeToString()
        self.assertEqual([LoggedIn(True)], session.receive(b"\x29" + encodeFrame(3, answer), 0.0))
        return session

    def test_start(self) -> None:
        """
        It begins with its version and what a login has.
        """
        session = DeviceSession(IDENTITY, "test-1", ["p-1", "p-2"], 0.0, 900.0)
        data = written(session.start())
        self.assertEqual(41, data[0])
        ((tag, request),) = frames(data[1:])
        self.assertEqual(Tag.LOGIN_REQUEST, tag)
        self.assertEqual(
            ("8416925632412385", "2326893975609101281", ["p-1", "p-2"], 2, True),
            (
                request.user,
                request.auth_token,
                list(request.received_persistent_id),
                request.auth_service,
                request.use_rmq2,
            ),
        )

    def test_refused(self) -> None:
        """
        A refusal is told, and the end.
        """
        answer = wire.LoginResponse(id="test-1")
        answer.error.code = 401
        refused, hangup = self.started().receive(b"\x29" + encodeFrame(3, answer.SerializeToString()), 0.0)
        self.assertEqual(LoginRefused(401), refused)
        self.assertIsInstance(hangup, Hangup)

    def test_wrongBeginnings(self) -> None:
        """
        Another version, something else before the answer, a second answer: the
        end.
        """
        answer = encodeFrame(3, wire.LoginResponse(id="x").SerializeToString())
        for data in (b"\x28" + answer, b"\x29\x00\x00", b"\x29" + answer + answer, b"\x29\x04\x00"):
            self.assertIsInstance(self.started().receive(data, 0.0)[-1], Hangup)
        self.assertIsInstance(self.opened().receive(b"\x04\x00", 0.0)[-1], Hangup)

    def test_times(self) -> None:
        """
        The answer to the login has a deadline; after it there are heartbeats as
        often as the server wants, and the end if nothing comes back.
        """
        session = self.started()
        self.assertEqual([], session.wake(ANSWER_DEADLINE - 1))
        self.assertIsInstance(session.wake(ANSWER_DEADLINE)[0], Hangup)
        session = self.started()
        answer = wire.LoginResponse(id="x")
        answer.heartbeat_config.interval_ms = 5000
        session.receive(b"\x29" + encodeFrame(3, answer.SerializeToString()), 10.0)
        self.assertEqual(15.0, session.wakeAt)
        self.assertEqual(bytes.fromhex("00021001"), written(session.wake(15.0)))
        session.receive(b"\x01\x00", 16.0)
        self.assertEqual(21.0, session.wakeAt)
        session.wake(21.0)
        self.assertEqual(21.0 + PATIENCE, session.wakeAt)
        (hangup,) = session.wake(21.0 + PATIENCE)
        self.assertTrue(hangup.abort)

    def test_received(self) -> None:
        """
        A message is acknowledged when it has been processed: at once if it has
        to be, or with the tenth.
        """
        session = self.opened()
        outputs = session.receive(encodeFrame(8, stanza("a")) * 12, 0.0)
        numbers = [output.streamID for output in outputs if isinstance(output, Received)]
        self.assertEqual(list(range(2, 14)), numbers)
        self.assertEqual([], session.processed(2, False, 0.0))
        ((_, ack),) = frames(written(session.processed(3, True, 0.0)))
        self.assertEqual(3, ack.last_stream_id_received)
        for number in range(4, 13):
            self.assertEqual([], session.processed(number, False, 0.0))
        ((_, ack),) = frames(written(session.processed(13, False, 0.0)))
        self.assertEqual(13, ack.last_stream_id_received)
        self.assertEqual(bytes.fromhex("0102100e"), written(session.receive(b"\x00\x00", 0.0)))

    def test_uploads(self) -> None:
        """
        Uploads are acknowledged by number, or by name; before the login nothing
        can be sent.
        """
        self.assertRaises(MalformedFrame, self.started().upload, 1, stanza(), 0.0)
        session = self.opened()
        for number in range(3):
            session.upload(number, stanza(), 0.0)
        ping = wire.HeartbeatPing(last_stream_id_received=3).SerializeToString()
        self.assertEqual(UploadsAcknowledged([0, 1]), session.receive(encodeFrame(0, ping), 0.0)[0])
        iq = wire.IqStanza(type=1, id="")
        iq.extension.id = 12
        iq.extension.data = wire.SelectiveAck(id=["2"]).SerializeToString()
        self.assertEqual([ServerHas(["2"])], session.receive(encodeFrame(7, iq.SerializeToString()), 0.0))
        iq.extension.data = b""
        self.assertEqual([], session.receive(encodeFrame(7, iq.SerializeToString()), 0.0))


_STEP = st.one_of(
    st.tuples(st.just("upload"), st.integers(1, 3)),
    st.tuples(st.just("deliver"), st.integers(1, 3)),
    st.tuples(st.just("store"), st.integers(0, 9)),
    st.tuples(st.just("process"), st.integers(0, 9)),
    # So little that it does not lose its patience however often it wakes.
    st.tuples(st.just("device wakes"), st.just(1)),
    st.tuples(st.just("carry to server"), st.integers(1, 60)),
    st.tuples(st.just("carry to device"), st.integers(1, 60)),
)


_CUT_STEP = st.tuples(
    st.sampled_from(
        ["upload", "post", "store", "process", "carry to server", "carry to device", "device wakes", "cut"]
    ),
    st.integers(1, 200),
)


class TogetherTests(SynchronousTestCase):
    """
    Both ends with each other.
    """

    @given(st.lists(_STEP, max_size=60))
    def test_conversation(self, steps: list[tuple[str, int]]) -> None:
        """
        Whatever happens in whatever pieces: no upload is acknowledged before it
        is stored, no message before it was processed, and in the end each is
        acknowledged exactly once, in order.
        """
        server, device = ServerSession(0.0), DeviceSession(IDENTITY, "test-1", [], 0.0, 10.0)
        toServer, toDevice = bytearray(), bytearray()
        uploads, deliveries = 0, 0
        notStored: list[tuple[int, str]] = []
        notProcessed: list[int] = []
        stored: set[str] = set()
        acknowledged: list[object] = []
        delivered: list[object] = []
        processed = 0
        now = 0.0

        def atServer(outputs: list[Any]) -> None:
            for output in outputs:
                if isinstance(output, Write):
                    toDevice.extend(output.data)
                elif isinstance(output, LoginAsked):
                    atServer(server.accept(now))
                    atServer(server.receive(b"", now))
                elif isinstance(output, Uploaded):
                    notStored.append((output.streamID, output.stanza.persistent_id))
                else:
                    self.assertIsInstance(output, Delivered)
                    delivered.extend(output.handles)

        def atDevice(outputs: list[Any]) -> None:
            for output in outputs:
                if isinstance(output, Write):
                    toServer.extend(output.data)
                elif isinstance(output, Received):
                    notProcessed.append(output.streamID)
                elif isinstance(output, UploadsAcknowledged):
                    acknowledged.extend(output.handles)
                else:
                    self.assertIsInstance(output, LoggedIn)

        def carry(count: int, which: bytearray) -> None:
            data = bytes(which[:count])
            del which[:count]
            if which is toServer:
                atServer(server.receive(data, now))
            else:
                atDevice(device.receive(data, now))

        atDevice(device.start())
        carry(1 << 20, toServer)
        carry(1 << 20, toDevice)
        # In the end everything is dealt with, and a heartbeat tells the rest.
        end = [("store", 0)] * 200 + [("process", 0)] * 200 + [("device wakes", 11)]
        for name, count in [*steps, *[("carry to server", 1 << 20), ("carry to device", 1 << 20)], *end]:
            if name == "upload":
                for _ in range(count):
                    atDevice(device.upload(f"u-{uploads}", stanza(f"u-{uploads}"), now))
                    uploads += 1
            elif name == "deliver":
                for _ in range(count):
                    if server.room:
                        atServer(server.deliver(deliveries, stanza(f"d-{deliveries}"), now))
                        deliveries += 1
            elif name == "store" and notStored:
                streamID, persistent_id = notStored.pop(count % len(notStored))
                stored.add(persistent_id)
                atServer(server.stored([streamID], now))
            elif name == "process" and notProcessed:
                processed += 1
                atDevice(device.processed(notProcessed.pop(count % len(notProcessed)), count % 2 == 0, now))
            elif name == "device wakes":
                now += count
                atDevice(device.wake(now))
            elif name == "carry to server":
                carry(count, toServer)
            elif name == "carry to device":
                carry(count, toDevice)
            self.assertLessEqual(set(acknowledged), stored)
            self.assertLessEqual(len(delivered), processed)
        for which in (toServer, toDevice, toServer, toDevice):
            carry(1 << 20, which)
        self.assertEqual([f"u-{number}" for number in range(uploads)], acknowledged)
        self.assertEqual(list(range(deliveries)), delivered)

    @given(st.lists(_CUT_STEP, max_size=80))
    def test_cuts(self, steps: list[tuple[str, int]]) -> None:
        """
        However often the connection is cut, and wherever in the bytes: what is
        acknowledged is in safe hands at that moment, and once all has been
        carried, each upload has been acknowledged once and each message has been
        taken out of its mailbox once.
        """
        world = _Cuts(self)
        for step in [*steps, ("cut", 0)]:
            world.take(*step)
        for _ in range(20):
            world.settle()
        self.assertEqual([], list(world.uploads))
        self.assertEqual([], list(world.mailbox))
        self.assertEqual(world.stored, set(world.acknowledged))
        self.assertEqual({1}, {1, *world.acknowledged.values(), *world.delivered.values()})
        self.assertEqual(world.posted, len(world.delivered))


class _Cuts:
    """
    A device and a server that remember over connections what has to be.

    @ivar uploads: what the device has and the server has not acknowledged.
    @ivar stored: what the server has.
    @ivar acknowledged: how often each upload was acknowledged.
    @ivar mailbox: what the server has and the device has not.
    @ivar posted: how much was ever put in there.
    @ivar delivered: how often each was taken out.
    """

    def __init__(self, case: SynchronousTestCase) -> None:
        self.case = case
        self.now = 0.0
        self.uploads: dict[str, None] = {}
        self.uploaded = 0
        self.stored: set[str] = set()
        self.acknowledged: Counter[str] = Counter()
        self.mailbox: dict[str, None] = {}
        self.posted = 0
        self.delivered: Counter[str] = Counter()
        #: What the device has processed and cannot know to be known.
        self.received: dict[str, None] = {}
        self.connect()

    def connect(self) -> None:
        """
        Begin a connection.
        """
        self.server = ServerSession(self.now)
        self.device = DeviceSession(IDENTITY, "test-1", self.received, self.now, 10.0)
        self.toServer, self.toDevice = bytearray(), bytearray()
        self.isLoggedIn = False
        self.notStored: list[tuple[int, str]] = []
        self.notProcessed: list[tuple[int, str]] = []
        self.atDevice(self.device.start())

    def atServer(self, outputs: list[Any]) -> None:
        """
        Do what the server's session wants done.
        """
        for output in outputs:
            if isinstance(output, Write):
                self.toDevice += output.data
            elif isinstance(output, LoginAsked):
                self.forget(output.request.received_persistent_id)
                self.atServer(self.server.accept(self.now))
                for name in self.mailbox:
                    self.deliver(name)
                self.atServer(self.server.receive(b"", self.now))
            elif isinstance(output, Uploaded):
                self.notStored.append((output.streamID, output.stanza.persistent_id))
            else:
                self.case.assertIsInstance(output, Delivered)
                self.forget(output.handles)

    def deliver(self, name: str) -> None:
        """
        Have a message sent, unless it has to wait.
        """
        if self.server.room:
            self.atServer(self.server.deliver(name, stanza(name), self.now))

    def forget(self, names: Iterable[str]) -> None:
        """
        The device says that it has messages.
        """
        for name in names:
            self.case.assertIn(name, self.received)
            if name in self.mailbox:
                del self.mailbox[name]
                self.delivered[name] += 1

    def atDevice(self, outputs: list[Any]) -> None:
        """
        Do what the device's session wants done.
        """
        for output in outputs:
            if isinstance(output, Write):
                self.toServer += output.data
            elif isinstance(output, Received):
                self.notProcessed.append((output.streamID, output.stanza.persistent_id))
            elif isinstance(output, UploadsAcknowledged):
                for name in output.handles:
                    self.case.assertIn(name, self.stored)
                    del self.uploads[name]
                    self.acknowledged[name] += 1
            elif isinstance(output, Hangup):
                # Nothing was carried for so long that the device thinks it is cut.
                self.case.assertTrue(output.abort)
                self.connect()
            else:
                self.case.assertIsInstance(output, LoggedIn)
                self.isLoggedIn = True
                for name in self.uploads:
                    self.atDevice(self.device.upload(name, stanza(name), self.now))

    def take(self, step: str, count: int) -> None:
        """
        Do one thing.
        """
        if step == "upload":
            self.uploaded += 1
            name = f"u-{self.uploaded}"
            self.uploads[name] = None
            if self.isLoggedIn:
                self.atDevice(self.device.upload(name, stanza(name), self.now))
        elif step == "post":
            self.posted += 1
            name = f"d-{self.posted}"
            self.mailbox[name] = None
            self.deliver(name)
        elif step == "store" and self.notStored:
            streamID, name = self.notStored.pop(count % len(self.notStored))
            self.stored.add(name)
            self.atServer(self.server.stored([streamID], self.now))
        elif step == "process" and self.notProcessed:
            streamID, name = self.notProcessed.pop(count % len(self.notProcessed))
            self.received[name] = None
            self.atDevice(self.device.processed(streamID, count % 2 == 0, self.now))
        elif step == "carry to server":
            data, self.toServer = bytes(self.toServer[:count]), self.toServer[count:]
            self.atServer(self.server.receive(data, self.now))
        elif step == "carry to device":
            data, self.toDevice = bytes(self.toDevice[:count]), self.toDevice[count:]
            self.atDevice(self.device.receive(data, self.now))
        elif step == "device wakes":
            self.now += 11
            self.atDevice(self.device.wake(self.now))
        elif step == "cut":
            self.connect()

    def settle(self) -> None:
        """
        Do everything that is to be done.
        """
        for step in ("carry to server", "carry to device", "device wakes", "carry to server"):
            self.take(step, 1 << 20)
        for step, what in (("store", self.notStored), ("process", self.notProcessed)):
            while what:
                self.take(step, 0)
