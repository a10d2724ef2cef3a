"""
Our connection server with a client that is not ours, nor Twisted's: an app
server on slixmpp, in a process of its own, over real TLS on loopback.

Nothing sleeps: each test reads what the program says, line by line, and
trial's time-out is the safety net.
"""

from __future__ import annotations

import json
import platform
import signal
import sys
import tempfile
from configparser import RawConfigParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from twisted.internet import reactor as _reactor  # noqa: TID251  # the program connects to a real port
from twisted.internet.defer import Deferred, DeferredQueue, gatherResults
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from fcmxmpp.embedded import EmbeddedConnectionServer
from fcmxmpp.messages import DownstreamMessage
from fcmxmpp.server.simulated import SimulatedDevice
from fcmxmpp.testing import SENDER_ID
from tests.certificates import expectDeprecated
from tests.checkout import CHECKOUT, childEnvironment


# Typed as an interface that lacks half of what it can do.
reactor: Any = _reactor

PROGRAM = Path(__file__).parent / "peers" / "slixmpp_app_server.py"
TOKEN = "device-token"
#: Texts that XML or JSON might not survive.
DIFFICULT = {
    "quotes": '"\'`\\"',
    "markup": '<a href="x">&amp;</a>',
    "ampersands": "&&amp;&#38;&quot;&lol;",
    "the end of it all": "]]></gcm></message></stream:stream>",
    "emoji": "\U0001f600\U0001f469\u200d\U0001f680\U0001f1f8\U0001f1ea",
    "control characters": "".join(map(chr, range(0x20))),
    "white space": " \t\r\n \r \n\u00a0\u2028 ",
    "nothing": "",
}
#: The most that a message may carry, the key's one byte included.
LARGEST = ["x" * 4095, '"' * 4095, "<" * 4095, "&" * 4095, "\0" * 4095, "\U0001f600" * 1023 + "abc"]
DATA = [DIFFICULT, *({"k": text} for text in LARGEST)]


def expected() -> bool:
    """
    Whether setup.cfg asks for slixmpp on this Python and this platform.
    """
    config = RawConfigParser()
    config.read(CHECKOUT / "setup.cfg", encoding="utf-8")
    lines = config["options.extras_require"]["test"].splitlines()
    (line,) = [line for line in lines if line.startswith("slixmpp")]
    marker = Requirement(line).marker
    return marker is None or marker.evaluate()


class Peer(ProcessProtocol):
    """
    The program, running.

    @ivar status: its exit status, or minus the signal that it died of; None
        while it runs.
    """

    def __init__(self, embedded: EmbeddedConnectionServer, *options: str) -> None:
        self._events: DeferredQueue[dict[str, Any]] = DeferredQueue()
        # On their own, because those that wait may come before it is ready.
        self._messages: DeferredQueue[dict[str, Any]] = DeferredQueue()
        self._unread = b""
        self._ended: Deferred[None] = Deferred()
        self.status: int | None = None
        self._complaints = b""
        command = [
            sys.executable,
            str(PROGRAM),
            f"--port={embedded.port}",
            f"--authorities={embedded.directory / 'certs' / 'connection-server.pem'}",
            f"--sender-id={embedded.credentials.senderID}",
            f"--server-key-file={embedded.directory / 'server-key.txt'}",
            *options,
        ]
        reactor.spawnProcess(self, command[0], command, childEnvironment())

    def outReceived(self, data: bytes) -> None:
        """
        Note what it says.
        """
        *lines, self._unread = (self._unread + data).split(b"\n")
        for event in map(json.loads, lines):
            (self._messages if event["event"] == "upstream" else self._events).put(event)

    def errReceived(self, data: bytes) -> None:
        """
        Note what goes wrong.
        """
        self._complaints += data

    def processEnded(self, reason: Failure) -> None:
        """
        Note the end.
        """
        status = reason.value
        self.status = -status.signal if status.signal else status.exitCode
        for queue in (self._events, self._messages):
            queue.put({"event": "end", "status": self.status, "errors": self._complaints.decode()})
        self._ended.callback(None)

    async def next(self, event: str) -> dict[str, Any]:
        """
        Wait for the next that it says, which has to be this; messages are
        apart from all else.
        """
        said = await (self._messages if event == "upstream" else self._events).get()
        assert said["event"] == event, f"not {event}: {said}"
        return said

    async def upstream(self, count: int) -> list[dict[str, Any]]:
        """
        Wait for messages.
        """
        return [(await self.next("upstream"))["payload"] for _ in range(count)]

    def do(self, what: str, **fields: Any) -> None:
        """
        Have it do something.
        """
        self.transport.write(json.dumps({"do": what, **fields}).encode() + b"\n")

    async def finish(self) -> None:
        """
        Have it disconnect, and end.  It must not have complained of anything,
        nor have got a message that nobody has asked for.
        """
        self.transport.closeStdin()
        said = await self.next("disconnected")
        # slixmpp's word for an answer to its </stream:stream>.
        assert said["reason"] == "End of stream", said
        end = await self.next("end")
        assert (end["status"], end["errors"]) == (0, ""), end
        more = await self._messages.get()
        assert more == end, more

    async def kill(self) -> None:
        """
        End it at once.
        """
        try:
            self.transport.signalProcess("KILL")
        except ProcessExitedAlready:
            return
        await self._ended


class SlixmppTests(TestCase):
    """
    L{fcmxmpp.server} and an app server on slixmpp.

    @ivar embedded: the connection server.
    @ivar device: a device.
    """

    timeout = 60.0
    if not expected() and find_spec("slixmpp") is None:
        skip = f"slixmpp has no wheel for Python {platform.python_version()} on {platform.platform()}"

    def setUp(self) -> None:
        """
        Start a connection server.
        """
        expectDeprecated(self)
        self.embedded = EmbeddedConnectionServer(reactor, SENDER_ID)
        self.embedded.startService()
        self.addCleanup(self.embedded.stopService)
        self.device = SimulatedDevice(self.embedded.server, SENDER_ID, TOKEN)

    def start(self, *options: str) -> Peer:
        """
        Start the program.
        """
        peer = Peer(self.embedded, *options)
        self.addCleanup(peer.kill)
        return peer

    async def loggedIn(self, *options: str) -> Peer:
        """
        The program, logged in.
        """
        peer = self.start(*options)
        await peer.next("ready")
        return peer

    def payload(self, message_id: str, data: dict[str, str]) -> dict[str, Any]:
        """
        What the program has to get when the device sends this.
        """
        payload = {
            "data": data,
            "time_to_live": 86400,
            "from": TOKEN,
            "message_id": message_id,
            "category": "org.example.app",
        }
        if not data:
            del payload["data"]
        return payload

    async def works(self, peer: Peer) -> None:
        """
        The stream that it is logged in on works, in both directions.
        """
        sent = self.device.send("works", {})
        self.assertEqual([self.payload("works", {})], await peer.upstream(1))
        await sent
        peer.do("send", payload={"to": TOKEN, "message_id": "works"})
        answer = await peer.next("answer")
        self.assertEqual({"from": TOKEN, "message_id": "works", "message_type": "ack"}, answer["payload"])

    async def test_login(self) -> None:
        """
        It logs in: TLS from the start and a certificate that it verifies, SASL
        PLAIN, a bind, the resource that it wants.  Its end is answered.
        """
        peer = self.start()
        ready = await peer.next("ready")
        self.assertEqual(f"{SENDER_ID}@gcm.googleapis.com/slixmpp", ready["jid"])
        await self.works(peer)
        await peer.finish()

    async def test_upstream(self) -> None:
        """
        Messages arrive unchanged and in order, whatever is in them, more than
        there may be unacknowledged at a time; its ACKs reach the device.
        """
        peer = await self.loggedIn()
        data = [*DATA, *({"n": str(number)} for number in range(250))]
        sent = [self.device.send(f"u-{n} \"'<&>", each) for n, each in enumerate(data)]
        received = await peer.upstream(len(data))
        self.assertEqual([self.payload(f"u-{n} \"'<&>", each) for n, each in enumerate(data)], received)
        await gatherResults(sent)
        self.assertEqual(len(data), self.embedded.server.statistics.acknowledged)
        self.assertEqual(0, self.embedded.server.statistics.redelivered)
        await peer.finish()

    async def test_downstream(self) -> None:
        """
        What it sends reaches the device unchanged, and it gets the ACK.
        """
        peer = await self.loggedIn()
        for number, data in enumerate(DATA):
            message_id = f"d-{number} \"'<&>"
            peer.do("send", payload={"to": TOKEN, "message_id": message_id, "data": data, "time_to_live": 60})
            answer = await peer.next("answer")
            self.assertEqual(
                {"from": TOKEN, "message_id": message_id, "message_type": "ack"}, answer["payload"]
            )
            self.assertEqual(
                DownstreamMessage(to=TOKEN, message_id=message_id, data=data, time_to_live=60),
                self.device.received[-1],
            )
        self.assertEqual(len(DATA), len(self.device.received))
        await peer.finish()

    async def test_unknownToken(self) -> None:
        """
        For a token that nobody has, it gets a NACK that says so.
        """
        peer = await self.loggedIn()
        peer.do("send", payload={"to": "nobody", "message_id": "d-1", "data": {}})
        nack = (await peer.next("answer"))["payload"]
        self.assertEqual(
            ("nack", "nobody", "d-1", "BAD_REGISTRATION"),
            (nack["message_type"], nack["from"], nack["message_id"], nack["error"]),
        )
        await self.works(peer)
        await peer.finish()

    async def test_missingMessageID(self) -> None:
        """
        A message without C{message_id} brings it a stanza error that it can
        tell the code, the condition and the stanza from; the stream lives.
        """
        peer = await self.loggedIn()
        payload = {"to": TOKEN, "data": DIFFICULT}
        peer.do("send", payload=payload, id="stanza-1")
        error = await peer.next("error")
        self.assertEqual(
            ("stanza-1", "400", "bad-request", payload),
            (error["id"], error["code"], error["condition"], error["payload"]),
        )
        self.assertIn("message_id", error["text"])
        self.assertEqual([], self.device.received)
        await self.works(peer)
        await peer.finish()

    async def test_otherStanzas(self) -> None:
        """
        Its XEP-0199 ping is answered with a result, which it takes for the
        answer; its wish for a roster with C{service-unavailable}.
        """
        peer = await self.loggedIn()
        peer.do("ping")
        self.assertEqual("result", (await peer.next("pong"))["type"])
        peer.do("roster")
        self.assertEqual("service-unavailable", (await peer.next("iq error"))["condition"])
        await self.works(peer)
        await peer.finish()

    async def test_killed(self) -> None:
        """
        What it had not acknowledged when it was killed goes to the next one,
        in order; what it had is not sent again.
        """
        peer = await self.loggedIn("--acks=3")
        sent = [self.device.send(f"u-{n}", {"n": str(n)}) for n in range(8)]
        payloads = [self.payload(f"u-{n}", {"n": str(n)}) for n in range(8)]
        self.assertEqual(payloads, await peer.upstream(8))
        await gatherResults(sent[:3])
        await peer.kill()
        self.assertEqual(-signal.SIGKILL, peer.status)
        self.assertEqual(["u-0", "u-1", "u-2"], self.device.delivered)
        peer = await self.loggedIn()
        self.assertEqual(payloads[3:], await peer.upstream(5))
        await gatherResults(sent[3:])
        self.assertEqual([f"u-{n}" for n in range(8)], self.device.delivered)
        self.assertEqual(5, self.embedded.server.statistics.redelivered)
        await peer.finish()

    async def test_wrongKey(self) -> None:
        """
        With a wrong key it is told that this is so, and never gets a message.
        """
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as keyFile:
            keyFile.write("WRONG-KEY\n")
            keyFile.flush()
            sent = self.device.send("u-1", {})
            peer = self.start(f"--server-key-file={keyFile.name}")
            self.assertEqual("not-authorized", (await peer.next("failed_auth"))["condition"])
            await peer.next("disconnected")
            end = await peer.next("end")
        # It has no other way to log in, and says that itself.
        self.assertEqual((0, "No appropriate login method.\n"), (end["status"], end["errors"]))
        peer = await self.loggedIn()
        self.assertEqual([self.payload("u-1", {})], await peer.upstream(1))
        await sent
        await peer.finish()

    async def test_shutdown(self) -> None:
        """
        When the connection server stops, it is told why.
        """
        peer = await self.loggedIn()
        await self.embedded.server.stopService()
        self.assertEqual("system-shutdown", (await peer.next("stream_error"))["condition"])
        await peer.next("disconnected")
        self.assertEqual(0, (await peer.next("end"))["status"])
