"""
The load of C{devices.py}: devices and an app server, on plain sockets and in one
loop, without Twisted, so that it takes much less time than the connection server.

What is sent is made before it is measured.  What comes is only looked at for what is
needed to answer it, and to tell whether every message came, and once.
"""

from __future__ import annotations

import re
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from ssl import MemoryBIO, SSLContext, SSLWantReadError

from running import Failed
from subjects.common import LOGIN

from fcmxmpp.mcs import wire
from fcmxmpp.mcs.conversation import STREAM_ACK
from fcmxmpp.mcs.devicesession import DeviceSession, Write
from fcmxmpp.mcs.frames import FrameDecoder, Tag, encodeFrame, varint
from fcmxmpp.registrations import Identity


#: How many devices log in at once.
AT_ONCE = 50
_READ = 65_536

# An acknowledgement of what the server has sent, without its last field: the number.
_ACK = wire.IqStanza(type=wire.IqStanza.SET, id="", extension=wire.Extension(id=STREAM_ACK, data=b""))
_ACK_UP_TO = _ACK.SerializeToString() + b"\x50"
_NUMBER = re.compile(rb"#(\d{8})")
_UPLOADS = re.compile(rb'"from":"([^"]+)","message_id":"u-(\d{8})"')
_ANSWERS = re.compile(rb'"message_id":"d-(\d{8})","message_type":"ack"')
_STANZA_ACK = (
    b'<message><gcm xmlns="google:mobile:data">{"to":"%b","message_id":"u-%b","message_type":"ack"}</gcm>'
    b"</message>"
)


class Loop:
    """
    Waits for what comes on any connection, and writes what there is to write on each
    in one piece.

    @ivar writing: those that have something to write.
    @ivar fromDevices: how many pieces devices have written.
    """

    def __init__(self, deadline: float) -> None:
        """
        @param deadline: seconds that anything may take.
        """
        self._deadline = deadline
        self._epoll = select.epoll()
        self._peers: dict[int, Peer] = {}
        self.writing: list[Peer] = []
        self.fromDevices = 0

    def add(self, peer: Peer, descriptor: int) -> None:
        """
        Listen to a connection.
        """
        self._peers[descriptor] = peer
        self._epoll.register(descriptor, select.EPOLLIN)

    def run(self, isDone: Callable[[], bool], what: object) -> None:
        """
        Go on until something is done.

        @param what: says what that is.
        @raise Failed: if it takes too long.
        """
        until = time.monotonic() + self._deadline
        while True:
            writing, self.writing = self.writing, []
            for peer in writing:
                peer.flush()
            if isDone():
                return
            if time.monotonic() > until:
                raise Failed(f"not done in time: {what}")
            for descriptor, _ in self._epoll.poll(0.05):
                self._peers[descriptor].ready()

    def close(self) -> None:
        """
        Close all connections, without a word.
        """
        for peer in self._peers.values():
            peer.close()
        self._epoll.close()


class Peer:
    """
    One connection to the connection server, over TLS.

    @ivar isReady: whether it is logged in.
    """

    isReady = False

    def __init__(self, loop: Loop, port: int, context: SSLContext) -> None:
        self._loop = loop
        # It blocks, and never does: it is read when there is something, and what is
        # written at once is little.
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._incoming, self._outgoing = MemoryBIO(), MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self._isSecure = False
        self._toWrite: list[bytes] = []
        loop.add(self, self._socket.fileno())
        self._shake()

    def _shake(self) -> None:
        """
        Go on with the TLS handshake.
        """
        with suppress(SSLWantReadError):
            self._tls.do_handshake()
            self._isSecure = True
        if self._outgoing.pending:
            self._socket.sendall(self._outgoing.read())
        if self._isSecure:
            self.secured()

    def ready(self) -> None:
        """
        There is something to read.

        @raise Failed: if it is the end.
        """
        data = self._socket.recv(_READ)
        if not data:
            raise Failed(f"the connection server has closed the connection of {self!r}")
        self._incoming.write(data)
        if not self._isSecure:
            self._shake()
            return
        pieces = []
        with suppress(SSLWantReadError):
            while True:
                pieces.append(self._tls.read(_READ))
        if pieces:
            self.received(b"".join(pieces))

    def write(self, data: bytes) -> None:
        """
        Write this at the end of this turn of the loop.
        """
        if not self._toWrite:
            self._loop.writing.append(self)
        self._toWrite.append(data)

    def flush(self) -> None:
        """
        Write it now.
        """
        toWrite, self._toWrite = self._toWrite, []
        self._tls.write(b"".join(toWrite))
        self._socket.sendall(self._outgoing.read())

    def secured(self) -> None:
        """
        There is a connection.
        """
        raise NotImplementedError

    def received(self, data: bytes) -> None:
        """
        Something came.
        """
        raise NotImplementedError

    def close(self) -> None:
        """
        Close the connection.
        """
        self._socket.close()


@dataclass(frozen=True)
class Told:
    """
    Whom L{Peer}s tell what they hear, by the numbers of messages.
    """

    uploadStored: Callable[[int], None]
    uploadReceived: Callable[[int], None]
    mailAccepted: Callable[[int], None]
    mailReceived: Callable[[int], None]


class Device(Peer):
    """
    A device.
    """

    def __init__(self, loop: Loop, port: int, context: SSLContext, identity: Identity, told: Told) -> None:
        session = DeviceSession(identity, "bench-1", [], time.time(), 3600.0)
        self._login = b"".join(each.data for each in session.start() if isinstance(each, Write))
        self._told = told
        self._decoder = FrameDecoder()
        # How many frames it has sent and got, and what it has sent that the server
        # has not acknowledged.
        self._sent = self._got = 0
        self._unacknowledged: deque[tuple[int, int]] = deque()
        super().__init__(loop, port, context)

    def secured(self) -> None:
        """
        Log in.
        """
        self._sent += 1
        self.write(self._login)

    def flush(self) -> None:
        """
        Write it now, and count that.
        """
        self._loop.fromDevices += 1
        super().flush()

    def upload(self, number: int, frame: bytes) -> None:
        """
        Send a message.
        """
        self._sent += 1
        self._unacknowledged.append((self._sent, number))
        self.write(frame)

    def received(self, data: bytes) -> None:
        """
        Look at frames, and acknowledge the messages among them at once.
        """
        hasMail = False
        for tag, body in self._decoder.feed(data):
            self._got += 1
            if tag == Tag.DATA_MESSAGE_STANZA:
                found = _NUMBER.search(body)
                if found is None:
                    raise Failed(f"a device got what nobody has sent: {body!r}")
                hasMail = True
                self._told.mailReceived(int(found[1]))
            elif tag == Tag.IQ_STANZA:
                self._acknowledged(wire.IqStanza.FromString(body).last_stream_id_received)
            elif tag == Tag.LOGIN_RESPONSE and not wire.LoginResponse.FromString(body).HasField("error"):
                self.isReady = True
            else:
                raise Failed(f"a device got a frame of tag {tag}")
        if hasMail:
            self._sent += 1
            self.write(encodeFrame(Tag.IQ_STANZA, _ACK_UP_TO + varint(self._got)))

    def _acknowledged(self, upTo: int) -> None:
        """
        So many frames are stored.
        """
        unacknowledged = self._unacknowledged
        while unacknowledged and unacknowledged[0][0] <= upTo:
            self._told.uploadStored(unacknowledged.popleft()[1])

    def __repr__(self) -> str:
        """
        For a failure.
        """
        return "a device"


class AppServer(Peer):
    """
    An app server that acknowledges everything at once.
    """

    def __init__(self, loop: Loop, port: int, context: SSLContext, login: bytes, told: Told) -> None:
        """
        @param login: in base64.
        """
        self._steps: Iterator[tuple[bytes, bytes]] = iter(
            [(said.replace(b"AGEAYg==", login), awaited) for said, awaited in LOGIN]
        )
        self._awaited = b""
        self._rest = b""
        self._told = told
        super().__init__(loop, port, context)

    def secured(self) -> None:
        """
        Say the next thing of the login.
        """
        said, self._awaited = next(self._steps, (b"", b""))
        if said:
            self.write(said)
        else:
            self.isReady = True

    def received(self, data: bytes) -> None:
        """
        Look at stanzas, and acknowledge the messages among them.
        """
        data = self._rest + data
        if self._awaited:
            _, found, self._rest = data.partition(self._awaited)
            if found:
                self.secured()
            else:
                self._rest = data
            return
        stanzas, end, self._rest = data.rpartition(b"</message>")
        if (not end and len(self._rest) > _READ) or b"</stream:stream>" in self._rest:
            raise Failed(f"an app server got {self._rest!r}")
        known = 0
        for token, number in _UPLOADS.findall(stanzas):
            known += 1
            self.write(_STANZA_ACK % (token, number))
            self._told.uploadReceived(int(number))
        for number in _ANSWERS.findall(stanzas):
            known += 1
            self._told.mailAccepted(int(number))
        if stanzas.count(b"</message>") + bool(end) != known:
            raise Failed(f"an app server got more than messages and ACKs: {stanzas[:500]!r}")

    def __repr__(self) -> str:
        """
        For a failure.
        """
        return "an app server"


class Traffic:
    """
    Messages in one direction: the next is sent when one has come to its end.  That is
    when the sender knows that it is stored, and the other end has it.

    The devices take turns; none has more than so many that have not come to their end.

    @ivar done: how many have come to their end.
    @ivar waits: seconds that each has taken, of those that count.
    @ivar twice: how often something came that had come before.
    """

    def __init__(
        self, total: int, warm: int, devices: int, each: int, window: int, send: Callable[[int, int], None]
    ) -> None:
        """
        @param total: how many there are.
        @param warm: how many of them come before those that count.
        @param devices: how many devices there are.
        @param each: how many of one device may be under way.
        @param window: how many of all.
        @param send: is called with the place of a device and the number of a message.
        """
        self._total = total
        self._warm = warm
        self._turns = deque(list(range(devices)) * each)
        self._window = window
        self._send = send
        self._next = 0
        self._state = bytearray(total)
        self._since = [0.0] * total
        self._of = [0] * total
        self.done = 0
        self.waits: list[float] = []
        self.twice = 0

    def begin(self) -> None:
        """
        Send as much as may be under way.
        """
        for _ in range(min(self._window, len(self._turns), self._total)):
            self._sendNext()

    @property
    def isWarm(self) -> bool:
        """
        Whether those that count have begun.
        """
        return self.done >= self._warm

    @property
    def isOver(self) -> bool:
        """
        Whether all have come to their end.
        """
        return self.done == self._total

    def __str__(self) -> str:
        """
        For a failure.
        """
        return f"of {self._total} messages {self.done} are stored and received"

    def _sendNext(self) -> None:
        """
        Send the next.
        """
        number, self._next = self._next, self._next + 1
        device = self._of[number] = self._turns.popleft()
        self._since[number] = time.monotonic()
        self._send(device, number)

    def stored(self, number: int) -> None:
        """
        Its sender knows that it is stored.
        """
        self._note(number, 1)

    def received(self, number: int) -> None:
        """
        The other end has it.
        """
        self._note(number, 2)

    def _note(self, number: int, half: int) -> None:
        """
        One half of what has to become of a message has.
        """
        was = self._state[number]
        if was & half:
            self.twice += 1
            return
        self._state[number] = was | half
        if was | half != 3:
            return
        if self.done >= self._warm:
            self.waits.append(time.monotonic() - self._since[number])
        self.done += 1
        self._turns.append(self._of[number])
        if self._next < self._total:
            self._sendNext()


def logIn(loop: Loop, makers: Iterable[Callable[[], Device]]) -> list[Device]:
    """
    Have devices log in, not too many at once.
    """
    left = iter(makers)
    devices: list[Device] = []
    waiting: deque[Device] = deque()

    def isDone() -> bool:
        while waiting and waiting[0].isReady:
            waiting.popleft()
        for maker in islice(left, AT_ONCE - len(waiting)):
            waiting.append(maker())
            devices.append(waiting[-1])
        return not waiting

    loop.run(isDone, "the devices log in")
    return devices
