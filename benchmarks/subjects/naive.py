"""
A wokkel handler as one would write it without a thought to speed: elements
both ways, json, and an XPath observer.
"""

from __future__ import annotations

import json
from typing import Any

from common import JID, Tally, orders
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString
from twisted.internet.task import react
from twisted.python.failure import Failure
from twisted.words.protocols.jabber.client import XMPPAuthenticator
from twisted.words.protocols.jabber.jid import JID as ParsedJID
from twisted.words.protocols.jabber.xmlstream import TLSInitiatingInitializer, XmlStream, XmlStreamFactory
from twisted.words.xish import domish
from wokkel.subprotocols import StreamManager, XMPPHandler


NS_GCM = "google:mobile:data"


class AppServer(XMPPHandler):  # type: ignore[misc]
    """
    Acknowledges what comes; sends, and looks up what was answered.
    """

    def __init__(self, wanted: dict[str, Any]) -> None:
        super().__init__()
        self._tally = Tally(wanted)
        self._text = wanted["text"]
        self._unanswered: dict[str, int] = {}
        self.over: Deferred[None] = Deferred()

    def connectionInitialized(self) -> None:
        """
        The stream is logged in.
        """
        self.xmlstream.addObserver(f'/message/gcm[@xmlns="{NS_GCM}"]', self._received)
        for _ in range(min(100, self._tally.left)):
            self._sendNext()

    def connectionLost(self, reason: Failure) -> None:
        """
        The run is over.
        """
        super().connectionLost(reason)
        self.over.callback(None)

    def _received(self, element: domish.Element) -> None:
        """
        A message came, or an answer.
        """
        payload = json.loads(str(element.gcm))
        if payload.get("message_type") == "ack":
            self._tally.answered(self._unanswered.pop(payload["message_id"]))
            if self._tally.left:
                self._sendNext()
            return
        self._sendPayload({"to": payload["from"], "message_id": payload["message_id"], "message_type": "ack"})

    def _sendNext(self) -> None:
        """
        Send a message.
        """
        number = self._tally.next()
        message_id = f"{number:08d}"
        self._unanswered[message_id] = number
        self._sendPayload(
            {"to": f"device-{number % 100:02d}", "message_id": message_id, "data": {"text": self._text}}
        )

    def _sendPayload(self, payload: dict[str, Any]) -> None:
        """
        Send a payload.
        """
        message = domish.Element((None, "message"))
        message.addElement((NS_GCM, "gcm"), content=json.dumps(payload))
        self.send(message)


class Authenticator(XMPPAuthenticator):
    """
    Logs in on a connection that has TLS already.
    """

    def associateWithStream(self, stream: XmlStream) -> None:
        """
        Leave out STARTTLS.
        """
        super().associateWithStream(stream)
        stream.initializers = [i for i in stream.initializers if not isinstance(i, TLSInitiatingInitializer)]


async def main() -> None:
    """
    Connect, and go on until the connection is gone.
    """
    wanted = orders()
    factory = XmlStreamFactory(Authenticator(ParsedJID(JID), "benchmark-server-key"))
    manager = StreamManager(factory)
    appServer = AppServer(wanted)
    appServer.setHandlerParent(manager)
    endpoint = clientFromString(reactor, f"tls:localhost:{wanted['port']}:trustRoots={wanted['authorities']}")
    await endpoint.connect(factory)
    await appServer.over


if __name__ == "__main__":
    react(lambda _: Deferred.fromCoroutine(main()))
