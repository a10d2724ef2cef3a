"""
An app server on slixmpp, as somebody might write it who knows the protocol and
slixmpp, but not fcmxmpp.

C{tests/test_peers.py} runs it.  It says what happens in one JSON object a line
on standard output, and takes commands, one JSON object a line, on standard
input; at the end of that it disconnects.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from slixmpp import ClientXMPP, Message
from slixmpp.exceptions import IqError
from slixmpp.xmlstream import ElementBase, register_stanza_plugin
from slixmpp.xmlstream.handler import Callback
from slixmpp.xmlstream.matcher import StanzaPath


def say(event: str, **fields: Any) -> None:
    """
    Tell whoever runs this.
    """
    print(json.dumps({"event": event, **fields}), flush=True)


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
        # Not only ASCII, so that the stream's UTF-8 has something to do.
        self.xml.text = json.dumps(payload, ensure_ascii=False)


register_stanza_plugin(Message, GCM)


class AppServer(ClientXMPP):
    """
    Acknowledges what comes, and sends what it is told to.
    """

    def __init__(self, senderID: str, serverKey: str, host: str, authorities: Path, acks: int | None) -> None:
        """
        @param host: the name in the certificate, which is not that in the JID.
        @param acks: how many messages to acknowledge; None for all.
        """
        super().__init__(f"{senderID}@gcm.googleapis.com/slixmpp", serverKey)
        self.default_domain = host
        self.ca_certs = authorities
        self.enable_starttls = False
        self.acks = acks
        self.gone = asyncio.Event()
        self.register_plugin("xep_0199")
        self.register_handler(Callback("GCM", StanzaPath("message/gcm"), self.received))
        self.add_event_handler("session_start", self.started)
        for event in ("failed_auth", "stream_error"):
            self.add_event_handler(event, lambda error, event=event: say(event, condition=error["condition"]))
        self.add_event_handler("disconnected", self.ended)

    def started(self, _: object) -> None:
        """
        Logged in: say so, also to the server, as every example of slixmpp does.
        """
        self.send_presence()
        say("ready", jid=self.boundjid.full)

    def ended(self, reason: object) -> None:
        """
        The stream is gone, of which slixmpp may tell twice.
        """
        if not self.gone.is_set():
            say("disconnected", reason=None if reason is None else str(reason))
            self.gone.set()

    def received(self, message: Message) -> None:
        """
        A message with a payload, or an error that sends one back.
        """
        payload = message["gcm"]["payload"]
        if message["type"] == "error":
            error = message["error"]
            say(
                "error",
                id=message["id"],
                code=error["code"],
                condition=error["condition"],
                text=error["text"],
                payload=payload,
            )
        elif "message_type" in payload:
            say("answer", payload=payload)
        else:
            say("upstream", payload=payload)
            if self.acks != 0:
                self.acks = None if self.acks is None else self.acks - 1
                self.sendPayload(
                    {"to": payload["from"], "message_id": payload["message_id"], "message_type": "ack"}
                )

    def sendPayload(self, payload: Any, stanzaID: str | None = None) -> None:
        """
        Send a payload.
        """
        message = self.Message()
        if stanzaID is not None:
            message["id"] = stanzaID
        message["gcm"]["payload"] = payload
        message.send()

    async def obey(self, command: dict[str, Any]) -> None:
        """
        Do what whoever runs this wants done.
        """
        if command["do"] == "send":
            self.sendPayload(command["payload"], command.get("id"))
        elif command["do"] == "ping":
            # The plugin's own ping() takes an error for an answer, too.
            answer = await self.plugin["xep_0199"].send_ping(self.boundjid.host)
            say("pong", type=answer["type"])
        elif command["do"] == "roster":
            try:
                await self.get_roster()
            except IqError as error:
                say("iq error", condition=error.condition)
            else:
                say("roster")
        else:
            raise ValueError(command)


async def commands(appServer: AppServer) -> None:
    """
    Read standard input, and obey.
    """
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    try:
        async for line in reader:
            await appServer.obey(json.loads(line))
    finally:
        appServer.disconnect()


async def main() -> None:
    """
    Connect, and go on until the stream is gone.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--authorities", type=Path, required=True)
    parser.add_argument("--sender-id", required=True)
    parser.add_argument("--server-key-file", type=Path, required=True)
    parser.add_argument("--acks", type=int)
    options = parser.parse_args()
    appServer = AppServer(
        options.sender_id,
        options.server_key_file.read_text().strip(),
        "localhost",
        options.authorities,
        options.acks,
    )
    appServer.connect("localhost", options.port)
    reading = asyncio.create_task(commands(appServer))
    await appServer.gone.wait()
    if reading.done():
        # If a command went wrong, that is to be seen.
        await reading


if __name__ == "__main__":
    asyncio.run(main())
