"""
The frames of MCS: in each direction one byte, the version, and then frames of a
tag (one byte), a length (a varint of at most 32 bits) and that many bytes.
"""

from __future__ import annotations

from enum import IntEnum

from google.protobuf.message import DecodeError

from fcmxmpp.errors import MalformedFrame


__all__ = ["UNREADABLE", "FrameDecoder", "Tag", "encodeFrame", "varint"]

#: What protobuf raises for a body that is no message.  Text that is not UTF-8 it hands
#: on as bytes if it is compiled, and is as here if it is written in Python.
UNREADABLE = (DecodeError, UnicodeDecodeError)

#: The bytes that a length may take.
_MOST_DIGITS = 5


class Tag(IntEnum):
    """
    What a frame is.  Only 0 to 4, 7, 8 and 10 are in use today.
    """

    HEARTBEAT_PING = 0
    HEARTBEAT_ACK = 1
    LOGIN_REQUEST = 2
    LOGIN_RESPONSE = 3
    CLOSE = 4
    MESSAGE_STANZA = 5
    PRESENCE_STANZA = 6
    IQ_STANZA = 7
    DATA_MESSAGE_STANZA = 8
    BATCH_PRESENCE_STANZA = 9
    STREAM_ERROR_STANZA = 10
    HTTP_REQUEST = 11
    HTTP_RESPONSE = 12
    BIND_ACCOUNT_REQUEST = 13
    BIND_ACCOUNT_RESPONSE = 14
    TALK_METADATA = 15


def varint(number: int) -> bytes:
    """
    A number that is not negative, as protobuf writes it.
    """
    if number < 0x80:
        return bytes((number,))
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def encodeFrame(tag: int, body: bytes) -> bytes:
    """
    A frame.
    """
    size = len(body)
    if size < 0x80:
        return bytes((tag, size)) + body
    return bytes((tag,)) + varint(size) + body


class FrameDecoder:
    """
    Takes apart what a peer sends.

    @ivar version: the peer's first byte; None until it has come.
    @ivar maxFrame: how long a frame may be, in bytes; one that says that it is
        longer is refused before any of it is kept.
    """

    __slots__ = ("_buffer", "_needed", "maxFrame", "version")

    def __init__(self, maxFrame: int = 1 << 20) -> None:
        self.version: int | None = None
        self.maxFrame = maxFrame
        self._buffer: bytes | bytearray = b""
        # How long the buffer has to be for anything new to be in it, so that a
        # frame in many pieces is put together once.
        self._needed = 0

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """
        Some bytes came.

        @return: the frames that are complete now: tag and body of each.
        @raise MalformedFrame: if something is no frame, or is too long; what
            came before it is lost, as is the connection.
        """
        if self.version is None:
            if not data:
                return []
            self.version = data[0]
            data = data[1:]
        if not self._buffer:
            buffer: bytes | bytearray = data
        elif isinstance(self._buffer, bytearray):
            buffer = self._buffer
            buffer += data
        else:
            buffer = bytearray(self._buffer) + data
        if len(buffer) < self._needed:
            self._buffer = buffer
            return []
        frames: list[tuple[int, bytes]] = []
        place, end = 0, len(buffer)
        self._needed = 0
        while end - place >= 2:
            tag = buffer[place]
            if tag > Tag.TALK_METADATA:
                raise MalformedFrame(f"there is no tag {tag}")
            size = buffer[place + 1]
            start = place + 2
            if size > 0x7F:
                size, start = self._longSize(buffer, place + 1)
                if not start:
                    break
            if size > self.maxFrame:
                raise MalformedFrame(f"a frame of {size} bytes is too long")
            if end - start < size:
                self._needed = start + size - place
                break
            frames.append((tag, bytes(buffer[start : start + size])))
            place = start + size
        self._buffer = b"" if place == end else buffer[place:]
        return frames

    def _longSize(self, buffer: bytes | bytearray, place: int) -> tuple[int, int]:
        """
        A length of more than one byte.

        @return: it, and where the body starts: 0 if the length is not complete.
        """
        size = 0
        for digit in range(_MOST_DIGITS):
            if place + digit >= len(buffer):
                return 0, 0
            byte = buffer[place + digit]
            size |= (byte & 0x7F) << 7 * digit
            if byte < 0x80:
                return size, place + digit + 1
        raise MalformedFrame("a length of more than five bytes")
