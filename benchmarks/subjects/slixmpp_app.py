"""
An app server on slixmpp, as somebody might write it who knows slixmpp:
acknowledges what comes, or sends.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from common import JID, Tally, orders
from slixmpp import ClientXMPP, Message
from slixmpp.xmlstream import ElementBase, register_stanza_plugin
from slixmpp.xmlstream.handler import Callback
from slixmpp.xmlstream.matcher import StanzaPath


class GCM(ElementBase):
    """
    The element that carries a JSON payload in a message.
    """

    name = "gcm"
    namespace = "google:mobile:data"
    plugin_attrib = "gcm"
    interfaces = frozenset({"payload"})

    def get_payload(self) -> Any:
        """
        The payload, decoded.
        """
        return json.loads(self.xml.text)

    def set_payload(self, payload: Any) -> None:
        """
        Set the payload.
        """
        self.xml.text = json.dumps(payload)


register_stanza_plugin(Message, GCM)


class AppServer(ClientXMPP):
    """
    Acknowledges what comes; sends, and looks up what was answered.
    """

    def __init__(self, wanted: dict[str, Any]) -> None:
        super().__init__(JID, "benchmark-server-key")
        self._tally = Tally(wanted)
        self._text = wanted["text"]
        self._unanswered: dict[str, int] = {}
        self.gone = asyncio.Event()
        self.default_domain = "localhost"
        self.ca_certs = Path(wanted["authorities"], "generator.pem")
        self.enable_starttls = False
        self.register_handler(Callback("GCM", StanzaPath("message/gcm"), self._received))
        self.add_event_handler("session_start", self._started)
        self.add_event_handler("disconnected", lambda _: self.gone.set())

    def _started(self, _: object) -> None:
        """
        Logged in.
        """
        for _ in range(min(100, self._tally.left)):
            self._sendNext()

    def _received(self, message: Message) -> None:
        """
        A message came, or an answer.
        """
        payload = message["gcm"]["payload"]
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
        message = self.Message()
        message["gcm"]["payload"] = payload
        message.send()


async def main() -> None:
    """
    Connect, and go on until the stream is gone.
    """
    wanted = orders()
    appServer = AppServer(wanted)
    appServer.connect("localhost", wanted["port"])
    await appServer.gone.wait()


if __name__ == "__main__":
    asyncio.run(main())
