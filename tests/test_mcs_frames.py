"""
Tests for L{fcmxmpp.mcs.frames} and L{fcmxmpp.mcs.wire}.
"""

from __future__ import annotations

import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

from google.protobuf import descriptor_pb2
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.errors import MalformedFrame
from fcmxmpp.mcs import wire
from fcmxmpp.mcs.frames import FrameDecoder, Tag, encodeFrame, varint
from tests.checkout import CHECKOUT


CORPUS = Path(__file__).parent / "corpus" / "frames"
_FRAME = st.tuples(st.sampled_from(sorted(Tag)), st.binary(max_size=300))


class WireTests(SynchronousTestCase):
    """
    The messages.
    """

    def test_compiled(self) -> None:
        """
        What is committed is what the source compiles to.
        """
        if find_spec("grpc_tools") is None:
            raise self.skipTest("protoc is not there")  # type: ignore[misc]  # raises itself
        from grpc_tools import protoc

        source = CHECKOUT / "fcmxmpp" / "mcs"
        directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, directory)
        result = Path(directory, "wire.binpb")
        command = ["protoc", f"-I{source}", f"--descriptor_set_out={result}", str(source / "wire.proto")]
        self.assertEqual(0, protoc.main(command))
        expected = descriptor_pb2.FileDescriptorSet.FromString(result.read_bytes())
        committed = descriptor_pb2.FileDescriptorSet.FromString((source / "wire.binpb").read_bytes())
        self.assertEqual(expected, committed)

    def test_ownPool(self) -> None:
        """
        Another library's messages of these names do not disturb.
        """
        from google.protobuf import descriptor_pool

        self.assertRaises(
            KeyError, descriptor_pool.Default().FindMessageTypeByName, "fcmxmpp.mcs.LoginRequest"
        )

    def test_captured(self) -> None:
        """
        Frames are what real clients and servers were seen to send.
        """
        login = wire.LoginResponse(id="c", last_stream_id_received=1, server_timestamp=1700000000000)
        refused = wire.LoginResponse(id="c")
        refused.error.code = 401
        selective = wire.SelectiveAck(id=["7", "8"])
        iq = wire.IqStanza(type=wire.IqStanza.SET, id="")
        iq.extension.id, iq.extension.data = 12, selective.SerializeToString()
        for expected, tag, message in (
            ("03 0c 0a 01 63 30 01 40 80 d0 95 ff bc 31", Tag.LOGIN_RESPONSE, login),
            ("03 08 0a 01 63 1a 03 08 91 03", Tag.LOGIN_RESPONSE, refused),
            ("00 00", Tag.HEARTBEAT_PING, wire.HeartbeatPing()),
            ("00 02 10 04", Tag.HEARTBEAT_PING, wire.HeartbeatPing(last_stream_id_received=4)),
            ("01 02 10 02", Tag.HEARTBEAT_ACK, wire.HeartbeatAck(last_stream_id_received=2)),
            ("04 00", Tag.CLOSE, wire.Close()),
            ("07 10 10 01 1a 00 3a 0a 08 0c 12 06 0a 01 37 0a 01 38", Tag.IQ_STANZA, iq),
        ):
            self.assertEqual(bytes.fromhex(expected), encodeFrame(tag, message.SerializeToString()))


class FrameTests(SynchronousTestCase):
    """
    L{FrameDecoder} and L{encodeFrame}.
    """

    @given(st.integers(0, 255), st.lists(_FRAME, max_size=6), st.lists(st.integers(1, 40)))
    def test_roundTrip(self, version: int, frames: list[tuple[int, bytes]], cuts: list[int]) -> None:
        """
        What was put in comes out, however it was cut.
        """
        stream = bytes([version]) + b"".join(encodeFrame(*frame) for frame in frames)
        decoder = FrameDecoder()
        got = []
        for cut in cuts:
            got += decoder.feed(stream[:cut])
            stream = stream[cut:]
        got += decoder.feed(stream)
        self.assertEqual((version, frames), (decoder.version, got))

    def test_byteByByte(self) -> None:
        """
        A frame that comes byte by byte is put together once.
        """
        decoder = FrameDecoder(1 << 20)
        body = bytes(300_000)
        stream = b"\x29" + encodeFrame(8, body)
        got = []
        for place in range(len(stream)):
            got += decoder.feed(stream[place : place + 1])
        self.assertEqual([(8, body)], got)

    def test_nothing(self) -> None:
        """
        Nothing is no version.
        """
        decoder = FrameDecoder()
        self.assertEqual([], decoder.feed(b""))
        self.assertIsNone(decoder.version)

    def test_varint(self) -> None:
        """
        Numbers are written as protobuf does.
        """
        for number, expected in (
            (0, "00"),
            (127, "7f"),
            (128, "8001"),
            (300, "ac02"),
            (1 << 31, "8080808008"),
        ):
            self.assertEqual(bytes.fromhex(expected), varint(number))

    def test_refused(self) -> None:
        """
        A frame that is too long is refused when its length is known, a length
        of more than five bytes and an unknown tag at once.
        """
        for stream, reason in (
            (b"\x29\x08\xff\xff\x03", "a frame of 65535 bytes is too long"),
            (b"\x29\x08\xff\xff\xff\xff\xff", "a length of more than five bytes"),
            (b"\x29\x10\x00", "there is no tag 16"),
        ):
            decoder = FrameDecoder(1000)
            error = self.assertRaises(MalformedFrame, decoder.feed, stream)
            self.assertEqual(reason, str(error))

    @given(st.lists(st.binary(max_size=200), max_size=10))
    def test_rubbish(self, pieces: list[bytes]) -> None:
        """
        Whatever comes, there are frames or a L{MalformedFrame}, and never more
        is kept than a frame.
        """
        decoder = FrameDecoder(100)
        try:
            for piece in pieces:
                for tag, body in decoder.feed(piece):
                    self.assertTrue(0 <= tag <= 15 and len(body) <= 100)
                self.assertLessEqual(len(decoder._buffer), 106)
        except MalformedFrame:
            pass

    def test_corpus(self) -> None:
        """
        What is in the corpus is decoded as its name says.
        """
        files = sorted(CORPUS.glob("*.bin"))
        self.assertGreater(len(files), 20)
        for file in files:
            for size in (1, 7, 1 << 20):
                stream = file.read_bytes()
                decoder = FrameDecoder(32_768)
                result = "good"
                try:
                    for place in range(0, len(stream), size):
                        decoder.feed(stream[place : place + size])
                except MalformedFrame:
                    result = "bad"
                self.assertEqual(file.name.partition("-")[0], result, file.name)
