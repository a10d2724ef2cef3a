"""
The floor: what Twisted, TLS, expat and msgspec cost by themselves.

A bare C{Protocol} that parses with expat, decodes typed, and answers with a
formatted text; or sends, and looks up what was answered.  It promises nothing:
no de-duplication, no handler, no errors.
"""

from __future__ import annotations

import pyexpat
from typing import Any

import msgspec
from common import LOGIN, Tally, orders
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import react
from twisted.python.failure import Failure


class Upstream(msgspec.Struct):
    """
    What a device sent.
    """

    message_id: str
    from_: str = msgspec.field(name="from")
    category: str
    data: dict[str, str]
    time_to_live: int


class Ack(msgspec.Struct):
    """
    An answer to a downstream message.
    """

    message_id: str
    message_type: str
    from_: str = msgspec.field(name="from")


class Downstream(msgspec.Struct):
    """
    A downstream message.
    """

    to: str
    message_id: str
    data: dict[str, str]


_decodeUpstream = msgspec.json.Decoder(Upstream).decode
_decodeAck = msgspec.json.Decoder(Ack).decode
_encode = msgspec.json.Encoder().encode


class Floor(Protocol):
    """
    The app server's end.
    """

    def __init__(self, wanted: dict[str, Any]) -> None:
        self._down = wanted["down"]
        self._tally = Tally(wanted)
        self._data = {"text": wanted["text"]}
        self._unanswered: dict[str, int] = {}
        self._login = iter(LOGIN)
        self._rest = b""
        self._answers: list[bytes] = []
        self.over: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        """
        Log in.
        """
        self.transport.setTcpNoDelay(True)
        self._say()

    def _say(self) -> None:
        """
        Say the next thing of the log-in.
        """
        text, self._awaited = next(self._login, (b"", b""))
        if text:
            self.transport.write(text)
            return
        parser = pyexpat.ParserCreate()
        parser.buffer_text = True
        parser.buffer_size = 65536
        parser.CharacterDataHandler = self._textReceived
        parser.EndElementHandler = self._upstream if not self._down else self._answer
        parser.Parse(b"<stream>")
        self._parser = parser
        self._text = ""
        for _ in range(min(100, self._tally.left)):
            self._send()
        self._flush()

    def dataReceived(self, data: bytes) -> None:
        """
        Parse, and answer all of it in one write.
        """
        if self._awaited:
            self._rest += data
            before, found, self._rest = self._rest.partition(self._awaited)
            if not found:
                self._rest = before
                return
            self._say()
            if self._awaited or not self._rest:
                return
            data = self._rest
        self._parser.Parse(data)
        self._flush()

    def _flush(self) -> None:
        """
        Write what was gathered.
        """
        if self._answers:
            self.transport.write(b"".join(self._answers))
            self._answers.clear()

    def _textReceived(self, text: str) -> None:
        """
        Expat: some text.
        """
        self._text += text

    def _upstream(self, name: str) -> None:
        """
        Expat: an element ends, which may be that with a message.
        """
        if name == "gcm":
            message = _decodeUpstream(self._text)
            self._text = ""
            self._answers.append(
                b'<message><gcm xmlns="google:mobile:data">{"to":"%b","message_id":"%b","message_type":"ack"}'
                b"</gcm></message>" % (message.from_.encode(), message.message_id.encode())
            )

    def _answer(self, name: str) -> None:
        """
        Expat: an element ends, which may be that with an ACK.
        """
        if name == "data:gcm":
            ack = _decodeAck(self._text)
            self._text = ""
            self._tally.answered(self._unanswered.pop(ack.message_id))
            if self._tally.left:
                self._send()

    def _send(self) -> None:
        """
        Send a message.
        """
        number = self._tally.next()
        message_id = f"{number:08d}"
        self._unanswered[message_id] = number
        payload = _encode(Downstream(f"device-{number % 100:02d}", message_id, self._data))
        self._answers.append(
            b'<message id="%b"><gcm xmlns="google:mobile:data">%b</gcm></message>'
            % (message_id.encode(), payload)
        )

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        The run is over.
        """
        self.over.callback(None)


async def main() -> None:
    """
    Connect, and go on until the connection is gone.
    """
    wanted = orders()
    floor = Floor(wanted)
    endpoint = clientFromString(reactor, f"tls:localhost:{wanted['port']}:trustRoots={wanted['authorities']}")
    await endpoint.connect(Factory.forProtocol(lambda: floor))
    await floor.over


if __name__ == "__main__":
    react(lambda _: Deferred.fromCoroutine(main()))
