"""
What both ends of an MCS connection do: they count frames, in each direction
from 1, and say how many of the other's they have dealt with.

"I have received your frames up to number N" stands in a field,
C{last_stream_id_received}, of frames of four sorts.  It covers everything up to
that number, so a frame whose contents are not in safe hands yet holds back all
that come after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from msgspec import Struct

from fcmxmpp.errors import MalformedFrame
from fcmxmpp.mcs import wire
from fcmxmpp.mcs.frames import UNREADABLE, FrameDecoder, Tag, encodeFrame, varint


__all__ = [
    "SELECTIVE_ACK",
    "STREAM_ACK",
    "UNAUTHORIZED",
    "Conversation",
    "Hangup",
    "Write",
    "selectedIDs",
]

#: The identifiers of extensions of an IqStanza.
SELECTIVE_ACK, STREAM_ACK = 12, 13
#: The code of a login that is refused because nobody has that identity.
UNAUTHORIZED = 401

# An IqStanza of type SET with the id "" and an extension without data, and the keys
# of last_stream_id_received in the stanzas that we write: fields may stand in any
# order, so it can be put behind what has been serialised long before.
_SELECTIVE_ACK_IQ = bytes.fromhex("1001 1a00 3a04 080c 1200")
_STREAM_ACK_IQ = bytes.fromhex("1001 1a00 3a04 080d 1200")
_IN_HEARTBEAT, _IN_IQ, _IN_DATA = b"\x10", b"\x50", b"\x58"

_KINDS: dict[int, Any] = {
    Tag.HEARTBEAT_PING: wire.HeartbeatPing,
    Tag.HEARTBEAT_ACK: wire.HeartbeatAck,
    Tag.LOGIN_REQUEST: wire.LoginRequest,
    Tag.LOGIN_RESPONSE: wire.LoginResponse,
    Tag.CLOSE: wire.Close,
    Tag.IQ_STANZA: wire.IqStanza,
    Tag.DATA_MESSAGE_STANZA: wire.DataMessageStanza,
    Tag.STREAM_ERROR_STANZA: wire.StreamErrorStanza,
}


class Write(Struct, frozen=True):
    """
    Write this.
    """

    data: bytes


class Hangup(Struct, frozen=True):
    """
    Close the connection.

    @ivar reason: why, for a log.
    @ivar abort: without waiting for what is still to be written.
    @ivar isFault: whether the peer does not keep to the protocol.
    """

    reason: str
    abort: bool = False
    isFault: bool = False


class Conversation:
    """
    One end of a connection: what is the same for both.

    @ivar isOver: whether a L{Hangup} was the last word.
    @ivar wakeAt: when something is to be done although nothing came, in the
        seconds of C{now}; None for never.
    """

    __slots__ = (
        "_decoder",
        "_got",
        "_heardAt",
        "_sent",
        "_told",
        "_unacknowledged",
        "_unsafe",
        "isOver",
        "wakeAt",
    )

    #: What is done with a frame, by its tag.
    _steps: ClassVar[dict[int, Callable[[Any, Any, float], list[Any]]]]

    def __init__(self, maxFrame: int) -> None:
        self._decoder = FrameDecoder(maxFrame)
        self.isOver = False
        self.wakeAt: float | None = None
        #: How many frames were sent, and received.
        self._sent = self._got = 0
        #: How many had been sent when something was heard last.
        self._heardAt = 0
        #: The numbers of received frames that hold back the acknowledgement.
        self._unsafe: dict[int, None] = {}
        #: How many the peer has been told that we have received.
        self._told = 0
        #: What was sent and is to be acknowledged: the numbers, and whose they are.
        self._unacknowledged: list[tuple[int, object]] = []

    @property
    def safe(self) -> int:
        """
        How many frames the peer may be told that we have received.
        """
        return next(iter(self._unsafe)) - 1 if self._unsafe else self._got

    @property
    def unacknowledged(self) -> int:
        """
        How many of the frames that are to be acknowledged have not been.
        """
        return len(self._unacknowledged)

    # What comes.

    def receive(self, data: bytes, now: float) -> list[Any]:
        """
        Some bytes came.

        @return: what is to be done.
        """
        if self.isOver:
            return []
        try:
            frames = self._decoder.feed(data)
        except MalformedFrame as error:
            return self._fault(str(error))
        return self._deal(frames, now)

    def _deal(self, frames: list[tuple[int, bytes]], now: float) -> list[Any]:
        """
        Count frames, and do what is to be done with them.
        """
        outputs: list[Any] = []
        try:
            for tag, body in frames:
                self._got += 1
                self._heardAt = self._sent
                outputs += self._frame(tag, body, now)
                if self.isOver:
                    break
        except MalformedFrame as error:
            outputs += self._fault(str(error))
        return outputs

    def _frame(self, tag: int, body: bytes, now: float) -> list[Any]:
        """
        A frame came.
        """
        step = self._steps.get(tag)
        if step is None:
            # There are such frames, and nobody sends them any more.
            return []
        return step(self, self._parse(tag, body), now)

    def _parse(self, tag: int, body: bytes) -> Any:
        """
        The message in a frame.

        @raise MalformedFrame: if it is none, or lacks what it has to have.
        """
        message = _KINDS[tag]()
        try:
            message.ParseFromString(body)
        except UNREADABLE:
            raise MalformedFrame(f"a message of tag {tag} cannot be read") from None
        if not message.IsInitialized():
            raise MalformedFrame(f"a message of tag {tag} lacks what it has to have")
        return message

    def _acknowledged(self, upTo: int) -> list[object]:
        """
        The peer says how many frames it has received.

        @return: whose those are that it has.
        @raise MalformedFrame: if it cannot have so many.
        """
        if upTo > self._sent:
            raise MalformedFrame(f"frame {upTo} is acknowledged, and {self._sent} were sent")
        waiting = self._unacknowledged
        count = 0
        while count < len(waiting) and waiting[count][0] <= upTo:
            count += 1
        handles = [handle for _, handle in waiting[:count]]
        del waiting[:count]
        return handles

    # What goes out.

    def _write(self, tag: int, body: bytes) -> Write:
        """
        A frame.
        """
        self._sent += 1
        return Write(encodeFrame(tag, body))

    def _data(self, stanza: bytes, handle: object) -> Write:
        """
        A data message, which is to be acknowledged.
        """
        safe = self.safe
        if safe > self._told:
            self._told = safe
            stanza += _IN_DATA + varint(safe)
        write = self._write(Tag.DATA_MESSAGE_STANZA, stanza)
        self._unacknowledged.append((self._sent, handle))
        return write

    def _heartbeat(self, tag: int) -> Write:
        """
        A heartbeat, or the answer to one.
        """
        self._told = self.safe
        return self._write(tag, _IN_HEARTBEAT + varint(self._told))

    def _streamAck(self) -> list[Any]:
        """
        Tell the peer how many frames we have received, if that is news.
        """
        safe = self.safe
        if safe <= self._told:
            return []
        self._told = safe
        return [self._write(Tag.IQ_STANZA, _STREAM_ACK_IQ + _IN_IQ + varint(safe))]

    def _emptySelectiveAck(self) -> Write:
        """
        A selective ack of nothing.
        """
        return self._write(Tag.IQ_STANZA, _SELECTIVE_ACK_IQ)

    def _hangUp(self, reason: str, abort: bool = False) -> list[Any]:
        """
        End the conversation.
        """
        self.isOver = True
        self.wakeAt = None
        return [Hangup(reason, abort)]

    def _fault(self, reason: str) -> list[Any]:
        """
        End the conversation: the peer does not keep to the protocol.
        """
        self._hangUp(reason)
        return [Hangup(reason, isFault=True)]


def selectedIDs(iq: Any) -> list[str]:
    """
    The persistent ids in a selective ack.

    @raise MalformedFrame: if it is none.
    """
    ack = wire.SelectiveAck()
    try:
        ack.ParseFromString(iq.extension.data)
    except UNREADABLE:
        raise MalformedFrame("a selective ack cannot be read") from None
    return [each for each in ack.id if isinstance(each, str)]
