"""
An app server's end of a stream, byte by byte.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from fcmxmpp.server.service import ConnectionServer


__all__ = ["OPEN", "SENDERS", "Client"]

#: The server key of each sender.
SENDERS = {"111": "key-1", "222": "key-2"}
OPEN = b'<stream:stream xmlns="jabber:client" xmlns:stream="http://etherx.jabber.org/streams" version="1.0">'


class Client:
    """
    An app server's end of a connection.
    """

    def __init__(self, server: ConnectionServer) -> None:
        self.stream: Any = server.factory.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1))
        self.transport = StringTransport(peerAddress=IPv4Address("TCP", "192.0.2.1", 1))
        self.stream.makeConnection(self.transport)
        self.connected = True

    def send(self, data: bytes) -> bytes:
        """
        Send something.

        @return: the answer.
        """
        self.stream.dataReceived(data)
        return self.said()

    def said(self) -> bytes:
        """
        What the server has said since the last look.
        """
        value: bytes = self.transport.value()
        self.transport.clear()
        return value

    def login(self, senderID: str = "111", resource: str | None = None) -> bytes:
        """
        Log in.

        @return: the answer to the bind, and what follows it.
        """
        plain = b64encode(f"\0{senderID}\0{SENDERS[senderID]}".encode())
        self.send(OPEN)
        self.send(b'<auth xmlns="urn:ietf:params:xml:ns:xmpp-sasl" mechanism="PLAIN">%b</auth>' % plain)
        wanted = b"" if resource is None else b"<resource>%b</resource>" % resource.encode()
        return self.send(
            OPEN
            + b'<iq type="set" id="1"><bind xmlns="urn:ietf:params:xml:ns:xmpp-bind">%b</bind></iq>' % wanted
        )

    def delivered(self) -> list[dict[str, Any]]:
        """
        The messages that have come since the last look.
        """
        return [
            json.loads(text)
            for text in re.findall(rb'<gcm xmlns="google:mobile:data">(\{.*?\})</gcm>', self.said())
        ]

    def ids(self) -> list[str]:
        """
        Their C{message_id}s.
        """
        return [message["message_id"] for message in self.delivered()]

    def ack(self, *ids: str, to: str = "tok-A") -> None:
        """
        Acknowledge messages.
        """
        for message_id in ids:
            payload = json.dumps({"to": to, "message_id": message_id, "message_type": "ack"})
            self.stream.dataReceived(
                b'<message><gcm xmlns="google:mobile:data">%b</gcm></message>' % payload.encode()
            )

    def downstream(self, **fields: Any) -> dict[str, Any]:
        """
        Send a message for a device.

        @return: the answer.
        """
        self.sendDownstream(**fields)
        (answer,) = self.answers()
        return answer

    def sendDownstream(self, **fields: Any) -> None:
        """
        Send a message for a device, and do not look at the answer.
        """
        payload = json.dumps(fields).encode().replace(b"&", b"\\u0026")
        self.stream.dataReceived(b'<message><gcm xmlns="google:mobile:data">%b</gcm></message>' % payload)

    def answers(self) -> list[dict[str, Any]]:
        """
        The answers, and the control messages, that have come since the last
        look.
        """
        texts = re.findall(rb'xmlns:data="google:mobile:data">(\{.*?\})</data:gcm>', self.said())
        return [json.loads(text) for text in texts]

    def lose(self) -> None:
        """
        Have the connection end.
        """
        if self.connected:
            self.connected = False
            self.stream.connectionLost(Failure(ConnectionDone()))
