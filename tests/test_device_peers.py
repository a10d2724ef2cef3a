"""
Our connection server with devices' clients that nobody here wrote: the whole
path, through three processes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import ssl
import sys
import tempfile
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.mcs import wire
from fcmxmpp.mcs.frames import FrameDecoder, Tag, encodeFrame
from fcmxmpp.registrations import APP_LIMIT
from tests.checkout import CHECKOUT, childEnvironment, script
from tests.children import PATIENCE, Child
from tests.devicepeers import CHROMIUM, PEERS, Chromium, Relay, Servers, skipUnless


#: Where .ci/run has npm put what is in tests/peers/package.json.
NODE_MODULES = CHECKOUT / "build" / "peers" / "node_modules"


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
        self.assertEqual([], self.chromium.unexpected())

    def test_away(self) -> None:
        """
        What comes while it does not run is there when it runs again, and
        nothing comes twice: of messages that collapse the last, none that was
        for at once; and in place of more than may be kept the news that they
        were deleted.  What it has sent without a connection outlasts its own end,
        too.
        """
        self.assertEqual(200, self.servers.send(to=self.token, message_id="d-0", data={"n": "0"})[0])
        self.assertEqual("0", self.chromium.until("message")["message"]["data"]["n"])
        self.chromium.quit()
        for message_id, more in (
            ("d-1", {"collapse_key": "c"}),
            ("d-2", {"collapse_key": "c"}),
            ("d-3", {"time_to_live": 0}),
        ):
            status, answer = self.servers.send(
                to=self.token, message_id=message_id, data={"n": message_id}, **more
            )
            self.assertEqual((200, "ack"), (status, answer["ack"]["message_type"]))
        self.chromium.start()
        message = self.chromium.until("message")["message"]
        self.assertEqual(("c", "d-2"), (message["collapseKey"], message["data"]["n"]))
        # Its receipt says that it has acknowledged all before, too.
        self.servers.send(to=self.token, message_id="d-4", data={"n": "4"}, delivery_receipt_requested=True)
        self.assertEqual("4", self.chromium.until("message")["message"]["data"]["n"])
        self.assertEqual({"receipt": "d-4", "device": self.token}, self.servers.received())

        self.chromium.kill()
        for number in range(APP_LIMIT + 1):
            self.servers.send(to=self.token, message_id=f"e-{number}", data={"n": str(number)})
        self.chromium.start()
        self.chromium.until("messagesDeleted")
        message = self.chromium.until("message")["message"]
        self.assertEqual(str(APP_LIMIT), message["data"]["n"])

        self.relay.shut()
        self.send("u-1", 3600, op="later")
        self.chromium.quit()
        self.relay.open()
        self.chromium.start()
        self.assertReceived("u-1", 3600, op="later")
        self.send("u-2", 3600, op="last")
        self.assertReceived("u-2", 3600, op="last")
        self.assertEqual([], self.chromium.unexpected())
        self.servers.stop()


class ReadmeTests(SynchronousTestCase):
    """
    The README's first try of a connection server.
    """

    timeout = 120

    def test_firstTry(self) -> None:
        """
        Its commands do what it says, one after the other, on other ports.
        """
        readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
        blocks = re.findall(r"^```sh\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
        server, app, device = (
            next(block for block in blocks if what in block)
            for what in ("--self-signed trial", "trial/server-key.txt", "$DEVICE")
        )
        directory = Path(tempfile.mkdtemp()).resolve()
        self.addCleanup(shutil.rmtree, directory)
        path = os.pathsep.join([os.path.dirname(script("twistd")), os.environ["PATH"]])

        def run(command: str) -> Child:
            # So that a signal to the shell gets to what it runs.
            lines = command.strip().splitlines()
            child = Child(
                ["sh", "-ec", "exec " + command if lines[0].startswith("twistd") else command],
                directory,
                childEnvironment(PATH=path),
            )
            self.addCleanup(child.cleanUp)
            return child

        ports = " ".join(f"--{name} tls:0:interface=127.0.0.1" for name in ("xmpp", "devices", "http"))
        running = run(
            server.replace("--self-signed", f"{ports} --self-signed").replace("-n ", "-n --pidfile= ")
        )
        said = {
            port: running.until(f"{who} connect to port ([0-9]+)")[1]
            for port, who in (
                ("5235", "app servers"),
                ("5228", "devices"),
                ("8443", "check-ins and registrations"),
            )
        }

        def here(command: str) -> str:
            return re.sub("5235|5228|8443", lambda match: said[match[0]], command)

        answering = run(here(app))
        answering.until("is logged in\n")
        talking = run(here(device))
        self.assertEqual(0, talking.end(), talking.tail())
        sent, received = talking.out.splitlines()
        self.assertEqual({"greeting": "hello"}, json.loads(received)["data"])
        self.assertTrue(sent)
        for child in (answering, running):
            self.assertEqual(0, child.stop(), child.tail())


class _Process:
    """
    A device's client in a process, which prints lines of JSON.
    """

    def __init__(
        self, case: SynchronousTestCase, servers: Servers, *command: str, **environment: str
    ) -> None:
        self.child = Child(list(command), servers.directory, os.environ | environment)
        case.addCleanup(self.child.cleanUp)
        self._seen = 0

    def said(self) -> dict[str, Any]:
        """
        The next line.
        """
        self.child.until(rf"(?:[^\n]*\n){{{self._seen + 1}}}", "out")
        line = self.child.out.splitlines()[self._seen]
        self._seen += 1
        what: dict[str, Any] = json.loads(line)
        return what


class FirebaseMessagingTests(SynchronousTestCase):
    """
    PyPI's firebase-messaging.
    """

    timeout = 120

    def test_webPush(self) -> None:
        """
        It registers as a Web Push subscription, logs in, and can decrypt what
        the app server sends to its token: data and a notification.  It
        acknowledges each by its persistent id, which makes a receipt.
        """
        skipUnless(self, find_spec("firebase_messaging") is not None, "PyPI's firebase-messaging")
        servers = Servers(self)
        device = _Process(
            self,
            servers,
            sys.executable,
            str(PEERS / "firebase_device.py"),
            servers.http,
            str(servers.ports["devices"]),
            servers.senderID,
            SSL_CERT_FILE=str(servers.directory / "trial" / "certs" / "ca.pem"),
        )
        token = device.said()["token"]
        for number in range(3):
            status, answer = servers.send(
                to=token,
                message_id=f"d-{number}",
                data={"n": str(number), "text": "\u4f60\u597d \U0001f680"},
                notification={"title": "Hi", "body": "there"},
                delivery_receipt_requested=True,
            )
            self.assertEqual((200, f"d-{number}"), (status, answer["ack"]["message_id"]))
            received = device.said()["received"]
            self.assertEqual({"n": str(number), "text": "\u4f60\u597d \U0001f680"}, received["data"])
            self.assertEqual({"title": "Hi", "body": "there"}, received["notification"])
            self.assertEqual(servers.senderID, received["from"])
            self.assertEqual({"receipt": f"d-{number}", "device": token}, servers.received())
        servers.stop()


class EufyTests(SynchronousTestCase):
    """
    npm's eufy-security-client.
    """

    timeout = 120

    def test_plainData(self) -> None:
        """
        It logs in, and gets data, what waited for it included.  It never
        acknowledges; when it connects again it names what it has, and only what
        has come since is sent; when it has forgotten, it gets all again.
        """
        node = shutil.which("node")
        skipUnless(
            self, node is not None and NODE_MODULES.is_dir(), "npm's eufy-security-client (make peers)"
        )
        assert node is not None
        servers = Servers(self)
        identity = _checkIn(servers)
        token = _register(servers, identity, "org.example.app")
        command = (
            node,
            str(PEERS / "eufy_device.js"),
            str(NODE_MODULES),
            str(servers.ports["devices"]),
            str(identity.android_id),
            str(identity.security_token),
        )

        def send(n: str) -> None:
            """
            Have the app server send a message.
            """
            self.assertEqual(200, servers.send(to=token, message_id=f"d-{n}", data={"n": n})[0])

        def assertReceived(n: str) -> None:
            """
            Assert that the device gets this message next.
            """
            received = device.said()["received"]
            self.assertEqual(
                (servers.senderID, "org.example.app", {"n": n}),
                (received["from"], received["category"], received["payload"]),
            )

        send("1")
        device = _Process(self, servers, *command)
        self.assertEqual({"connected": True}, device.said())
        assertReceived("1")
        send("2")
        assertReceived("2")

        self.assertEqual(0, servers.connectionServer.stop())
        servers.startConnectionServer()
        self.assertEqual({"connected": True}, device.said())
        servers.appServer.until("(?s)is logged in\n.*is logged in\n")
        send("3")
        assertReceived("3")

        device.child.stop(signal.SIGKILL)
        device = _Process(self, servers, *command)
        self.assertEqual({"connected": True}, device.said())
        assertReceived("3")
        servers.stop()


def _checkIn(servers: Servers) -> Any:
    """
    Check a device in.

    @return: the answer.
    """
    request = wire.CheckinRequest()
    request.checkin.type = wire.Checkin.IOS_OS
    with urllib.request.urlopen(
        urllib.request.Request(f"{servers.http}/checkin", request.SerializeToString()), timeout=PATIENCE
    ) as answer:
        response = wire.CheckinResponse()
        response.ParseFromString(answer.read())
        return response


def _register(servers: Servers, identity: Any, category: str) -> str:
    """
    Register an app.

    @return: its token.
    """
    with urllib.request.urlopen(
        urllib.request.Request(
            f"{servers.http}/c2dm/register3",
            f"app={category}&sender={servers.senderID}&device={identity.android_id}".encode(),
            {"Authorization": f"AidLogin {identity.android_id}:{identity.security_token}"},
        ),
        timeout=PATIENCE,
    ) as answer:
        name, _, token = answer.read().decode().partition("=")
        assert name == "token", token
        return str(token)


class _Scripted:
    """
    A device that does what it is told, over a real socket.

    @ivar first: what the server wrote first, as one TLS record.
    @ivar count: how many of its frames were looked at.
    """

    first = b""
    count = 0

    def __init__(self, case: SynchronousTestCase, servers: Servers, version: int) -> None:
        context = ssl.create_default_context(cafile=str(servers.directory / "trial" / "certs" / "ca.pem"))
        plain = socket.create_connection(("localhost", servers.ports["devices"]), PATIENCE)
        self._socket = context.wrap_socket(plain, server_hostname="localhost")
        case.addCleanup(self._socket.close)
        self._socket.sendall(bytes([version]))
        self._decoder = FrameDecoder()
        self._frames: list[tuple[int, bytes]] = []

    def send(self, tag: int, message: Any) -> None:
        """
        Send a frame.
        """
        self._socket.sendall(encodeFrame(tag, message.SerializeToString()))

    def _read(self) -> bool:
        """
        Read what comes next.

        @return: whether anything came, rather than the end.
        """
        data = self._socket.recv(65536)
        self.first = self.first or data
        self._frames += self._decoder.feed(data)
        return bool(data)

    def next(self, tag: int, kind: Any) -> Any:
        """
        The next frame, which has to be of this kind.
        """
        while not self._frames:
            assert self._read(), "the server has closed the connection"
        got, body = self._frames.pop(0)
        assert got == tag, f"a frame of tag {got} came instead of {tag}"
        self.count += 1
        message = kind()
        message.ParseFromString(body)
        return message

    def rest(self) -> list[int]:
        """
        Wait for the server to end the connection.

        @return: the tags of the frames before the end.
        """
        while self._read():
            pass
        return [tag for tag, _ in self._frames]

    def login(self, identity: Any, loginID: str) -> None:
        """
        Log in, as iOS does, and wait for the empty selective ack.
        """
        number = str(identity.android_id)
        self.send(
            Tag.LOGIN_REQUEST,
            wire.LoginRequest(
                id=loginID,
                domain="mcs.android.com",
                user=number,
                resource=number,
                auth_token=str(identity.security_token),
                account_id=1000000,
                last_rmq_id=1,
                use_rmq2=True,
                auth_service=2,
            ),
        )
        response = self.next(Tag.LOGIN_RESPONSE, wire.LoginResponse)
        assert response.error.code == 0, response
        iq = self.next(Tag.IQ_STANZA, wire.IqStanza)
        assert (iq.type, iq.extension.id, iq.extension.data) == (wire.IqStanza.SET, 12, b""), iq

    def upload(self, message_id: str, persistent_id: str, to: str) -> None:
        """
        Send a message, as iOS does.
        """
        stanza = wire.DataMessageStanza(
            **{"from": ""},
            id=message_id,
            to=to,
            category="org.example.ios",
            ttl=3600,
            persistent_id=persistent_id,
        )
        stanza.app_data.add(key="op", value=message_id)
        self.send(Tag.DATA_MESSAGE_STANZA, stanza)

    def close(self) -> None:
        """
        End without a word.
        """
        self._socket.close()


class ScriptedTests(SynchronousTestCase):
    """
    What cannot run here, over real sockets.
    """

    timeout = 120

    def test_iOS(self) -> None:
        """
        iOS speaks version 40 and takes no other; it sends what it has kept only
        after the empty selective ack behind the answer to its login; its
        messages have no C{from}, and come again after a connection that ended
        before they were acknowledged, which nobody behind the server sees; it
        acknowledges at once where it is told to; and the server drops it without
        a word.
        """
        servers = Servers(self)
        identity = _checkIn(servers)
        token = _register(servers, identity, "org.example.ios")
        to = f"{servers.senderID}@gcm.googleapis.com"
        device = _Scripted(self, servers, 40)
        device.login(identity, "ios-4.1.8")
        # Google's comes on its own, too.
        self.assertEqual(bytes([40]), device.first)
        for number in range(3):
            device.upload(f"u-{number}", str(number), to)
        for number in range(3):
            message = servers.received()
            self.assertEqual(
                (f"u-{number}", token, "org.example.ios", {"op": f"u-{number}"}, 3600),
                tuple(message[name] for name in ("message_id", "from", "category", "data", "time_to_live")),
            )
        device.close()

        device = _Scripted(self, servers, 40)
        device.login(identity, "ios-4.1.8")
        # At once, as it does; acknowledges nothing but what came before.
        device.send(Tag.HEARTBEAT_PING, wire.HeartbeatPing())
        self.assertEqual(2, device.next(Tag.HEARTBEAT_ACK, wire.HeartbeatAck).last_stream_id_received)
        for number in range(4):
            device.upload(f"u-{number}", str(number), to)
        self.assertEqual("u-3", servers.received()["message_id"])
        acknowledged = 0
        while acknowledged < 6:
            ack = device.next(Tag.IQ_STANZA, wire.IqStanza)
            self.assertEqual(13, ack.extension.id)
            self.assertGreater(ack.last_stream_id_received, acknowledged)
            acknowledged = ack.last_stream_id_received
        self.assertEqual(6, acknowledged)

        servers.send(to=token, message_id="d-1", data={"a": "b"}, delivery_receipt_requested=True)
        stanza = device.next(Tag.DATA_MESSAGE_STANZA, wire.DataMessageStanza)
        self.assertTrue(stanza.immediate_ack)
        self.assertEqual([("a", "b")], [(each.key, each.value) for each in stanza.app_data])
        ack = wire.IqStanza(type=wire.IqStanza.SET, id="", last_stream_id_received=device.count)
        ack.extension.id = 13
        ack.extension.data = b""
        device.send(Tag.IQ_STANZA, ack)
        self.assertEqual({"receipt": "d-1", "device": token}, servers.received())

        self.assertEqual(0, servers.appServer.stop(), servers.appServer.tail())
        servers.connectionServer.process.send_signal(signal.SIGTERM)
        self.assertEqual([], device.rest())
        device.close()
        self.assertEqual(0, servers.connectionServer.end(), servers.connectionServer.tail())
        # Four messages and a receipt: not even the app server got one twice.
        servers.connectionServer.until("stopped; upstream: 7 from devices, 5 acknowledged, 0 expired;")

    def test_S14_killed(self) -> None:
        """
        Killed at any moment, the connection server loses nothing that a device
        was told is stored, and what waits for a device is still there.
        """
        servers = Servers(self)
        identity = _checkIn(servers)
        token = _register(servers, identity, "org.example.ios")
        self.assertEqual(0, servers.appServer.stop())
        told = set()
        for life in range(4):
            device = _Scripted(self, servers, 41)
            device.login(identity, "chrome-99")
            for number in range(50):
                device.upload(f"u-{life}-{number}", f"{life}.{number}", servers.senderID)
            # Whatever is stored by the moment in which the news comes.
            acknowledged = 0
            while acknowledged < 10 * (life + 1):
                acknowledged = device.next(Tag.IQ_STANZA, wire.IqStanza).last_stream_id_received
            servers.connectionServer.stop(signal.SIGKILL)
            told |= {f"u-{life}-{number}" for number in range(acknowledged - 1)}
            device.close()
            servers.startConnectionServer()
        servers.startAppServer()
        received = []
        while not told <= set(received):
            received.append(servers.received()["message_id"])
        self.assertEqual(len(set(received)), len(received))
        self.assertEqual(200, servers.send(to=token, message_id="d-1", data={"a": "b"})[0])
        servers.connectionServer.stop(signal.SIGKILL)
        servers.startConnectionServer()
        device = _Scripted(self, servers, 41)
        device.login(identity, "chrome-99")
        stanza = device.next(Tag.DATA_MESSAGE_STANZA, wire.DataMessageStanza)
        self.assertEqual(["a"], [each.key for each in stanza.app_data])
