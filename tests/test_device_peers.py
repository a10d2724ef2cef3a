"""
Our connection server with devices' clients that nobody here wrote: the whole
path, through three processes.
"""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from tests.devicepeers import CHROMIUM, Chromium, Relay, Servers, skipUnless


class ChromiumTests(SynchronousTestCase):
    """
    Google's own device code, in Debian's Chromium.
    """

    timeout = 120

    def setUp(self) -> None:
        """
        Start everything, and register.
        """
        skipUnless(self, os.path.exists(CHROMIUM), "Debian's chromium")
        self.servers = Servers(self)
        self.relay = Relay(self, self.servers.ports["devices"])
        self.chromium = Chromium(self, self.servers.http, self.relay.port)
        self.chromium.order(register=[self.servers.senderID])
        registered = self.chromium.until("registered")
        self.assertNotIn("error", registered)
        self.token = registered["value"]

    def send(self, message_id: str, ttl: int, **data: str) -> None:
        """
        Have the extension send a message.
        """
        self.chromium.order(
            send={
                "destinationId": f"{self.servers.senderID}@gcm.googleapis.com",
                "messageId": message_id,
                "timeToLive": ttl,
                "data": data,
            }
        )
        sent = self.chromium.until("sent")
        self.assertEqual(message_id, sent.get("value"), sent)

    def assertReceived(self, message_id: str, ttl: int, **data: str) -> None:
        """
        Assert that the handler gets a message next.
        """
        message = self.servers.received()
        self.assertEqual(
            (message_id, self.token, data, ttl),
            (message["message_id"], message["from"], message["data"], message["time_to_live"]),
        )

    def test_wholePath(self) -> None:
        """
        It registers, sends with a C{time_to_live} of 0 and of more, gets what
        the handler answers, acknowledges at once where a receipt was asked for,
        is told of a message that has expired, and sends again after a cut
        without a duplicate at the handler.
        """
        text = "Gr\u00fc\u00dfe, \u4f60\u597d \U0001f680 <&>\"'"
        self.send("u-1", 3600, text=text, question="why")
        self.assertReceived("u-1", 3600, text=text, question="why")
        message = self.chromium.until("message")["message"]
        self.assertEqual(self.servers.senderID, message["from"])
        self.assertEqual("why", message["data"]["answer"])
        self.send("u-2", 0, op="now or never")
        self.assertReceived("u-2", 0, op="now or never")

        status, answer = self.servers.send(
            to=self.token,
            message_id="d-1",
            data={"n": "1"},
            collapse_key="c",
            delivery_receipt_requested=True,
        )
        self.assertEqual(200, status)
        self.assertEqual({"from": self.token, "message_id": "d-1", "message_type": "ack"}, answer["ack"])
        message = self.chromium.until("message")["message"]
        self.assertEqual(("c", "1"), (message["collapseKey"], message["data"]["n"]))
        self.assertEqual({"receipt": "d-1", "device": self.token}, self.servers.received())

        # Long enough for Chromium to connect again at once after a cut.
        self.assertEqual(0, self.servers.appServer.stop(), self.servers.appServer.tail())
        self.send("u-3", 11, op="too late")
        self.assertEqual("u-3", self.chromium.until("sendError")["error"]["messageId"])

        self.servers.startAppServer()
        self.relay.mute()
        self.send("u-4", 3600, op="again")
        self.assertReceived("u-4", 3600, op="again")
        self.relay.cut()
        self.send("u-5", 3600, op="last")
        self.assertReceived("u-5", 3600, op="last")
        self.servers.stop()
        # Five messages and a receipt; what came more often was known.
        stopped = self.servers.connectionServer.until(
            "stopped; upstream: ([0-9]+) from devices, 5 acknowledged, 1 expired;"
        )
        self.assertGreater(int(stopped[1]), 5)
