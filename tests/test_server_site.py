"""
Tests for L{fcmxmpp.server.site} and the rooms that answer: check-in,
registration, installations, topics and device groups.
"""

from __future__ import annotations

import gzip
import json
import zlib
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, eventAsText
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.errors import StoreUnavailable
from fcmxmpp.mcs import wire
from fcmxmpp.messages import DownstreamMessage
from fcmxmpp.registrations import TOPIC_LIMIT, Application, Identity, looksLikeToken
from fcmxmpp.server.http import MAX_BATCH, MAX_BODY
from fcmxmpp.server.ratelimit import RateLimit, networkOf
from fcmxmpp.server.registry import LoginGuard, Registry
from fcmxmpp.server.site import site
from fcmxmpp.store.memory import MemoryStore
from tests.appservers import SENDERS
from tests.mcsclients import fired


CORPUS = Path(__file__).parent / "corpus" / "http"
APP = "org.example.app"
#: The sender that Web Push clients of all sorts use.
VAPID = "BDOU99-h67HcA6JeFXHbSNMu7e2yNNu3RzoMj8TM4W88jITfq7ZmPvIM1Iv-4_l2LxQcYwhqby2xGpWwzjfAnG4"
WEB_APP = "1:111:web:0123456789abcdef"


class Server:
    """
    The HTTP side of a connection server, and what it changes.
    """

    def __init__(
        self, rate: float = 10.0, burst: float = 10_000.0, senders: Mapping[str, str] = SENDERS
    ) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.store = MemoryStore(self.clock.seconds)
        self.changes = 0
        self.site = site(
            self.store.registrations, Registry(senders), self.clock, self._changed, rate=rate, burst=burst
        )

    def _changed(self) -> None:
        """
        Count the changes.
        """
        self.changes += 1

    def open(self, request: bytes, host: str = "192.0.2.1") -> tuple[Any, StringTransport]:
        """
        Send bytes.

        @return: the server's end, and what it writes to.
        """
        protocol: Any = self.site.buildProtocol(IPv4Address("TCP", host, 1))
        transport = StringTransport(peerAddress=IPv4Address("TCP", host, 1))
        protocol.makeConnection(transport)
        protocol.dataReceived(request)
        return protocol, transport

    def raw(self, request: bytes, host: str = "192.0.2.1") -> bytes:
        """
        Send bytes, and be patient.

        @return: what comes back.
        """
        protocol, transport = self.open(request, host)
        if not transport.value():
            self.clock.advance(LoginGuard.MOST)
        answer = transport.value()
        if not transport.disconnecting:
            protocol.loseConnection()
        for call in self.clock.getDelayedCalls():
            call.cancel()
        return answer

    def ask(
        self, method: str, path: str, body: bytes = b"", host: str = "192.0.2.1", **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        """
        Send a request.

        @return: status, body and headers of the answer.
        """
        lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
        lines += [
            f"{name if name == 'project_id' else name.replace('_', '-')}: {value}"
            for name, value in headers.items()
        ]
        answer = self.raw("\r\n".join(lines).encode() + b"\r\n\r\n" + body, host)
        head, _, rest = answer.partition(b"\r\n\r\n")
        first, *others = head.decode("latin-1").split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in others)
        if fields.get("content-encoding") == "gzip":
            rest = gzip.decompress(rest)
        return int(first.split()[1]), rest, fields

    def json(self, method: str, path: str, value: Any = None, **headers: str) -> tuple[int, Any]:
        """
        Send JSON, and get some.
        """
        body = b"" if value is None else json.dumps(value).encode()
        status, answer, _ = self.ask(method, path, body, **headers)
        return status, json.loads(answer)

    def checkIn(self) -> Identity:
        """
        Check in as Chrome does.
        """
        status, body, _ = self.ask("POST", "/checkin", checkinRequest())
        assert status == 200, body
        response = wire.CheckinResponse.FromString(body)
        return Identity(response.android_id, response.security_token)

    def register3(self, identity: Identity, **form: str) -> str:
        """
        Ask for a token.

        @return: the answer.
        """
        fields = {name.replace("__", ".").replace("_", "-"): value for name, value in form.items()}
        status, body, _ = self.ask(
            "POST",
            "/c2dm/register3",
            urlencode(fields).encode(),
            Authorization=f"AidLogin {identity.android_id}:{identity.security_token}",
        )
        assert status == 200, body
        return body.decode()

    def token(self, identity: Identity, **form: str) -> str:
        """
        Get a token.
        """
        answer = self.register3(identity, **({"app": APP, "sender": "111"} | form))
        assert answer.startswith("token="), answer
        return answer.removeprefix("token=")


def checkinRequest(identity: Identity | None = None) -> bytes:
    """
    A check-in.
    """
    request = wire.CheckinRequest(version=3)
    request.checkin.type = wire.Checkin.CHROME_BROWSER
    if identity is not None:
        request.id, request.security_token = identity
    body: bytes = request.SerializeToString()
    return body


class SiteCase(SynchronousTestCase):
    """
    Has a server.
    """

    def setUp(self) -> None:
        """
        Have one.
        """
        self.server = Server()


class CheckinTests(SiteCase):
    """
    The check-in.
    """

    def test_protobuf(self) -> None:
        """
        A device gets an identity, and the same again when it shows it; with a
        wrong one it gets another.
        """
        identity = self.server.checkIn()
        self.assertTrue(all(0 < number < 1 << 63 for number in identity))
        for said, isSame in (
            (identity, True),
            (identity._replace(security_token=5), False),
            (Identity(5, 5), False),
        ):
            status, body, _ = self.server.ask("POST", "/checkin", checkinRequest(said))
            response = wire.CheckinResponse.FromString(body)
            self.assertEqual(isSame, (response.android_id, response.security_token) == identity)
            self.assertEqual((200, True, False), (status, response.stats_ok, response.settings_diff))
            self.assertEqual(1_700_000_000_000, response.time_msec)

    def test_microG(self) -> None:
        """
        microG sends gzip and reads nothing else.
        """
        status, body, headers = self.server.ask(
            "POST",
            "/checkin",
            gzip.compress(checkinRequest()),
            Content_Encoding="gzip",
            Accept_Encoding="gzip",
            Content_Type="application/x-protobuffer",
        )
        self.assertEqual((200, "gzip"), (status, headers["content-encoding"]))
        self.assertTrue(wire.CheckinResponse.FromString(body).android_id)

    def test_iOS(self) -> None:
        """
        iOS speaks JSON, with numbers or digits.
        """
        request = {"checkin": {"type": 2}, "id": 0, "security_token": 0, "version": 2, "digest": ""}
        status, answer = self.server.json("POST", "/checkin", request)
        self.assertEqual(200, status)
        identity = (answer["android_id"], answer["security_token"])
        for kind in (int, str):
            again = request | {"id": kind(identity[0]), "security_token": kind(identity[1])}
            _, answer = self.server.json("POST", "/checkin", again)
            self.assertEqual(identity, (answer["android_id"], answer["security_token"]))

    def test_refused(self) -> None:
        """
        What is no check-in is refused.
        """
        for body in (b"", b"\xff\xff", b"{", b'{"a":' * 12_000, b"[]", b"\x10\x01"):
            status, _, _ = self.server.ask("POST", "/checkin", body)
            self.assertEqual(400, status, body)


class RegisterTests(SiteCase):
    """
    C{register3}.
    """

    def test_token(self) -> None:
        """
        An app gets a token, without an end of line behind it, and the same
        again; another app, sender or instance gets another.
        """
        identity = self.server.checkIn()
        tokens = [
            self.server.token(identity, **form)
            for form in ({}, {}, {"app": "b"}, {"sender": "222"}, {"X_subtype": "s"}, {"sender": VAPID})
        ]
        self.assertTrue(all(looksLikeToken(token) for token in tokens))
        self.assertEqual(tokens[0], tokens[1])
        self.assertEqual(5, len(set(tokens)))
        self.assertEqual(6, self.server.changes)
        # Newer Android libraries say the sender once more.
        self.assertEqual(tokens[0], self.server.token(identity, X_subtype="111"))

    def test_refused(self) -> None:
        """
        Errors are texts that the clients know.
        """
        identity = self.server.checkIn()
        for form, expected in (
            ({"app": APP}, "INVALID_PARAMETERS"),
            ({"sender": "111"}, "INVALID_PARAMETERS"),
            ({"app": "x" * 600, "sender": "111"}, "INVALID_PARAMETERS"),
            ({"app": APP, "sender": "745476177629"}, "INVALID_SENDER"),
            ({"app": APP, "sender": "nobody"}, "INVALID_SENDER"),
            ({"app": APP, "sender": "\u00e9"}, "INVALID_SENDER"),
            ({"app": APP, "sender": "111", "device": "5"}, "AUTHENTICATION_FAILED"),
        ):
            self.assertEqual(f"Error={expected}", self.server.register3(identity, **form))
        for wrong in (Identity(identity.android_id, 7), Identity(1 << 63, 1)):
            answer = self.server.register3(wrong, app=APP, sender="111")
            self.assertEqual("Error=AUTHENTICATION_FAILED", answer)
        _, body, _ = self.server.ask("POST", "/c2dm/register3", b"app=a&sender=111")
        self.assertEqual(b"Error=AUTHENTICATION_FAILED", body)

    def test_tooMany(self) -> None:
        """
        A device has not more registrations than it may.
        """
        identity = self.server.checkIn()
        for number in range(1000):
            application = Application(category=f"app-{number}", senderID="111")
            fired(self.server.store.registrations.register(identity, application))
        answer = self.server.register3(identity, app=APP, sender="111")
        self.assertEqual("Error=TOO_MANY_REGISTRATIONS", answer)

    def test_deleted(self) -> None:
        """
        A deletion is answered with the app, and the token is gone.
        """
        identity = self.server.checkIn()
        token = self.server.token(identity)
        answer = self.server.register3(identity, app=APP, sender="111", delete="true")
        self.assertEqual(f"deleted={APP}", answer)
        self.assertIsNone(fired(self.server.store.registrations.lookUp(token)))
        self.server.token(identity)
        self.server.token(identity, sender="222")
        self.server.register3(identity, app=APP, sender="*", delete="1")
        for sender in ("111", "222"):
            found = self.server.store.registrations.tokenOf(identity.android_id, APP, sender)
            self.assertIsNone(fired(found))
        wrong = identity._replace(security_token=9)
        answer = self.server.register3(wrong, app=APP, sender="111", delete="1")
        self.assertEqual("Error=AUTHENTICATION_FAILED", answer)

    def test_topic(self) -> None:
        """
        An app subscribes to a topic, and unsubscribes.
        """
        identity = self.server.checkIn()
        token = self.server.token(identity)
        topic = {"app": APP, "sender": token, "X_gcm__topic": "/topics/News"}
        self.assertEqual(f"token={token}", self.server.register3(identity, **topic))
        topics = self.server.store.registrations.topicsOf(token)
        self.assertEqual({"News": 1_700_000_000.0}, fired(topics))
        # iOS takes everything but "token=" for a failure.
        self.assertEqual(f"token={APP}", self.server.register3(identity, **topic, delete="1"))
        self.assertEqual({}, fired(self.server.store.registrations.topicsOf(token)))
        stranger = self.server.checkIn()
        for who, changed in (
            (stranger, {}),
            (identity, {"sender": "x"}),
            (identity, {"X_gcm__topic": "/topics/ /"}),
        ):
            answer = self.server.register3(who, **(topic | changed))
            self.assertEqual("Error=INVALID_PARAMETERS", answer)
        answer = self.server.register3(identity._replace(security_token=1), **topic)
        self.assertEqual("Error=AUTHENTICATION_FAILED", answer)

    def test_chromeDeletes(self) -> None:
        """
        Chrome unregisters an extension without saying with which sender, and
        wants C{deleted=}; of an instance it says that, and wants C{token=}.
        """
        identity = self.server.checkIn()
        for sender in ("111", "222"):
            self.server.token(identity, sender=sender)
        subtype = self.server.token(identity, X_subtype="wp:x", sender=VAPID)
        form = {"app": APP, "device": str(identity.android_id), "delete": "true"}
        self.assertEqual(f"deleted={APP}", self.server.register3(identity, **form, gcm_unreg_caller="false"))
        registrations = self.server.store.registrations
        for sender in ("111", "222"):
            self.assertIsNone(fired(registrations.tokenOf(identity.android_id, APP, sender)))
        self.assertIsNotNone(fired(registrations.lookUp(subtype)))
        instance = {"X_subtype": "wp:x", "appid": "x", "sender": VAPID, "scope": "GCM", "X_scope": "GCM"}
        self.assertEqual(f"token={APP}", self.server.register3(identity, **form, **instance))
        self.assertIsNone(fired(registrations.lookUp(subtype)))

    def test_iOS(self) -> None:
        """
        iOS asks for tokens and topics at paths of its own.
        """
        identity = self.server.checkIn()
        head = {"Authorization": f"AidLogin {identity.android_id}:{identity.security_token}"}
        form = f"X-osv=13.3&device={identity.android_id}&X-scope=*&plat=2&app={APP}&sender=111&X-subtype=111"
        _, body, _ = self.server.ask("POST", "/register", form.encode(), **head)
        token = body.decode().removeprefix("token=")
        self.assertTrue(looksLikeToken(token))
        form = f"sender={token}&app={APP}&device={identity.android_id}&app_ver=1&X-gcm.topic=/topics/a"
        for action, topics in (("", {"a"}), ("&delete=true", set())):
            _, body, _ = self.server.ask("POST", "/iid/register", (form + action).encode(), **head)
            self.assertTrue(body.startswith(b"token="), body)
            self.assertEqual(topics, set(fired(self.server.store.registrations.topicsOf(token))))

    def test_changedThough(self) -> None:
        """
        Whoever hangs up while it is registered is registered all the same, and
        that is told.
        """
        waiting: Deferred[str] = Deferred()
        self.server.store.registrations.register = lambda *_: waiting  # type: ignore[method-assign]
        body = b"app=a&sender=111"
        head = b"Content-Length: %d\r\nAuthorization: AidLogin 5:5\r\n\r\n" % len(body)
        channel, _ = self.server.open(b"POST /c2dm/register3 HTTP/1.1\r\n" + head + body)
        channel.connectionLost()
        self.assertEqual(0, self.server.changes)
        waiting.callback("a token")
        self.assertEqual(1, self.server.changes)

    def test_storeUnavailable(self) -> None:
        """
        While the store does not work clients are sent away for a while.
        """
        self.server.store.registrations.register = (  # type: ignore[method-assign]
            lambda *_: fail(StoreUnavailable("the disk is full"))
        )
        self.server.store.registrations.checkIn = (  # type: ignore[method-assign]
            lambda *_: fail(StoreUnavailable("the disk is full"))
        )
        status, body, headers = self.server.ask(
            "POST", "/c2dm/register3", b"app=a&sender=111", Authorization="AidLogin 5:5"
        )
        self.assertEqual((503, b"Error=InternalServerError", "30"), (status, body, headers["retry-after"]))
        status, body, headers = self.server.ask("POST", "/checkin", checkinRequest())
        self.assertEqual((503, "30"), (status, headers["retry-after"]))
        self.assertNotIn(b"disk", body)


class InstallationTests(SiteCase):
    """
    Installations, and Web Push registrations.
    """

    def setUp(self) -> None:
        """
        Have a Web Push subscription.
        """
        super().setUp()
        self.identity = self.server.checkIn()
        form = {"app": "org.chromium.linux", "X_subtype": "wp:x#1", "sender": VAPID}
        self.below = self.server.token(self.identity, **form)
        private = ec.generate_private_key(ec.SECP256R1())
        point = private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        self.web = {
            "endpoint": f"https://fcm.googleapis.com/fcm/send/{self.below}",
            "p256dh": urlsafe_b64encode(point).decode(),
            "auth": urlsafe_b64encode(bytes(16)).decode(),
            "applicationPubKey": None,
        }

    def install(self) -> Any:
        """
        Install.
        """
        status, answer = self.server.json(
            "POST",
            "/v1/projects/p/installations",
            {"appId": WEB_APP, "fid": "abc+/", "authVersion": "FIS_v2"},
        )
        self.assertEqual(200, status)
        return answer

    def register(self, auth: str, web: Any = None) -> tuple[int, Any]:
        """
        Register a subscription.
        """
        return self.server.json(
            "POST",
            "/v1/projects/p/registrations",
            {"web": self.web if web is None else web},
            X_Goog_Firebase_Installations_Auth=auth,
        )

    def test_whole(self) -> None:
        """
        An installation gets its token, with which a subscription is registered;
        new keys keep the token; it can be removed.
        """
        answer = self.install()
        self.assertEqual(("abc+/", "604800s"), (answer["fid"], answer["authToken"]["expiresIn"]))
        auth = answer["authToken"]["token"]
        self.assertEqual(3, len(auth.split(".")))
        status, registered = self.register(auth)
        self.assertEqual((200, self.web), (status, registered["web"]))
        token = registered["token"]
        registration = fired(self.server.store.registrations.lookUp(token))
        self.assertEqual(
            ("111", "org.chromium.linux", "wp:x#1"),
            (
                registration.application.senderID,
                registration.application.category,
                registration.application.subtype,
            ),
        )
        self.assertEqual(self.web["auth"].rstrip("="), registration.keys.auth)
        self.web["auth"] = urlsafe_b64encode(bytes(range(16))).decode()
        status, again = self.server.json(
            "PATCH",
            f"/v1/projects/p/registrations/{token}",
            {"web": self.web},
            X_Goog_Firebase_Installations_Auth=auth,
        )
        self.assertEqual((200, token), (status, again["token"]))
        for expected in (200, 404):
            status, _ = self.server.json(
                "DELETE", f"/v1/projects/p/registrations/{token}", X_Goog_Firebase_Installations_Auth=auth
            )
            self.assertEqual(expected, status)

    def test_refresh(self) -> None:
        """
        A token is good for a week, and made anew with the other one; an
        installation can be deleted.
        """
        answer = self.install()
        self.server.clock.advance(604_801)
        self.assertEqual(401, self.register(answer["authToken"]["token"])[0])
        authorization = f"FIS_v2 {answer['refreshToken']}"
        status, refreshed = self.server.json(
            "POST",
            "/v1/projects/p/installations/%7Bfid%7D/authTokens:generate",
            {},
            Authorization=authorization,
        )
        self.assertEqual((200, "604800s"), (status, refreshed["expiresIn"]))
        self.assertEqual(200, self.register(refreshed["token"])[0])
        status, _ = self.server.json("DELETE", "/v1/projects/p/installations/x", Authorization=authorization)
        self.assertEqual(200, status)

    def test_newIdentifier(self) -> None:
        """
        Who brings no identifier gets one.
        """
        _, answer = self.server.json("POST", "/v1/projects/p/installations", {"appId": WEB_APP})
        self.assertRegex(answer["fid"], "^[c-f][A-Za-z0-9_-]{21}$")

    def test_refused(self) -> None:
        """
        What is wrong is said.
        """
        for request in ({}, {"appId": 5}, {"appId": "x"}, {"appId": WEB_APP, "fid": 5}):
            self.assertEqual(400, self.server.json("POST", "/v1/projects/p/installations", request)[0])
        answer = self.install()
        auth, refresh = answer["authToken"]["token"], answer["refreshToken"]
        for token in ("", "a.b.c", auth[:-1], refresh, "\u00e9".encode().decode("latin-1")):
            self.assertEqual(401, self.register(token)[0], token)
        for changed, expected in (
            ({"endpoint": "https://x/y"}, 400),
            ({"endpoint": None}, 400),
            ({"p256dh": "AAAA"}, 400),
            ({"auth": 5}, 400),
        ):
            self.assertEqual(expected, self.register(auth, self.web | changed)[0])
        self.assertEqual(400, self.register(auth, 5)[0])
        unknown = {"appId": "1:999:web:0123456789abcdef"}
        _, answer = self.server.json("POST", "/v1/projects/p/installations", unknown)
        self.assertEqual(403, self.register(answer["authToken"]["token"])[0])

    def test_notTheirs(self) -> None:
        """
        What C{register3} has registered is not to be removed here.
        """
        auth = self.install()["authToken"]["token"]
        token = self.server.token(self.identity)
        status, _ = self.server.json(
            "DELETE", f"/v1/projects/p/registrations/{token}", X_Goog_Firebase_Installations_Auth=auth
        )
        self.assertEqual(404, status)
        self.assertIsNotNone(fired(self.server.store.registrations.lookUp(token)))

    def test_tooMany(self) -> None:
        """
        A device has not more subscriptions than it may.
        """
        for number in range(999):
            application = Application(category=f"app-{number}", senderID="111")
            fired(self.server.store.registrations.register(self.identity, application))
        status, answer = self.register(self.install()["authToken"]["token"])
        self.assertEqual((429, "RESOURCE_EXHAUSTED"), (status, answer["error"]["status"]))

    def test_legacy(self) -> None:
        """
        The older way to register a subscription.
        """
        form = {
            "authorized_entity": "111",
            "endpoint": self.web["endpoint"],
            "encryption_key": self.web["p256dh"],
            "encryption_auth": self.web["auth"],
        }
        status, body, _ = self.server.ask("POST", "/fcm/connect/subscribe", urlencode(form).encode())
        self.assertEqual(200, status)
        self.assertTrue(looksLikeToken(json.loads(body)["token"]))


class TopicTests(SiteCase):
    """
    Topics, as app servers manage them.
    """

    KEY = "key=key-1"

    def setUp(self) -> None:
        """
        Have two registrations of a sender, and one of another.
        """
        super().setUp()
        self.tokens = [self.server.token(self.server.checkIn()) for _ in range(2)]
        self.foreign = self.server.token(self.server.checkIn(), sender="222")

    def topics(self, token: str) -> set[str]:
        """
        What a registration is subscribed to.
        """
        return set(fired(self.server.store.registrations.topicsOf(token)))

    def test_one(self) -> None:
        """
        One registration is subscribed, and unsubscribed.
        """
        path = f"/iid/v1/{quote(self.tokens[0])}/rel/topics/News"
        self.assertEqual((200, {}), self.server.json("POST", path, Authorization=self.KEY))
        self.assertEqual({"News"}, self.topics(self.tokens[0]))
        self.assertEqual((200, {}), self.server.json("DELETE", path, Authorization=self.KEY))
        self.assertEqual(set(), self.topics(self.tokens[0]))
        for wrong, status in (
            (f"/iid/v1/{quote(self.tokens[0])}/rel/topics/a%20b", 400),
            ("/iid/v1/nobody/rel/topics/x", 404),
            (f"/iid/v1/{quote(self.foreign)}/rel/topics/x", 403),
        ):
            self.assertEqual(status, self.server.json("POST", wrong, Authorization=self.KEY)[0])

    def test_batch(self) -> None:
        """
        Many are subscribed in one go; what is wrong with each is said.
        """
        request = {"to": "/topics/x", "registration_tokens": [*self.tokens, self.foreign, "nonsense"]}
        status, answer = self.server.json("POST", "/iid/v1:batchAdd", request, Authorization=self.KEY)
        self.assertEqual(200, status)
        self.assertEqual(
            [{}, {}, {"error": "PERMISSION_DENIED"}, {"error": "INVALID_ARGUMENT"}], answer["results"]
        )
        gone = f"{'a' * 22}:APA91b{'a' * 134}"
        many = {"to": "/topics/x", "registration_tokens": [gone] * 1000}
        status, answer = self.server.json("POST", "/iid/v1:batchAdd", many, Authorization=self.KEY)
        self.assertEqual((200, [{"error": "NOT_FOUND"}] * 1000), (status, answer["results"]))
        self.assertEqual([{"x"}, {"x"}, set()], [self.topics(t) for t in (*self.tokens, self.foreign)])
        self.server.json("POST", "/iid/v1:batchRemove", request, Authorization=self.KEY)
        self.assertEqual(set(), self.topics(self.tokens[0]))
        for changed, expected in (
            ({"to": "x"}, 400),
            ({"registration_tokens": []}, 400),
            ({"registration_tokens": [5]}, 400),
            ({"registration_tokens": ["x"] * 1001}, 400),
        ):
            status, _ = self.server.json(
                "POST", "/iid/v1:batchAdd", request | changed, Authorization=self.KEY
            )
            self.assertEqual(expected, status)

    def test_tooManyTopics(self) -> None:
        """
        A registration is not subscribed to more topics than it may be, whoever
        asks for it.
        """
        identity = self.server.checkIn()
        token = self.server.token(identity)
        for number in range(TOPIC_LIMIT):
            fired(self.server.store.registrations.subscribe([token], f"/topics/{number}"))
        path = f"/iid/v1/{quote(token)}/rel/topics/more"
        status, answer = self.server.json("POST", path, Authorization=self.KEY)
        self.assertEqual((400, "TOO_MANY_TOPICS"), (status, answer["error"]["message"]))
        answer = self.server.register3(identity, app=APP, sender=token, X_gcm__topic="/topics/more")
        self.assertEqual("Error=TOO_MANY_SUBSCRIBERS", answer)
        self.assertNotIn("more", self.topics(token))

    def test_oneKey(self) -> None:
        """
        Senders with the same key may change their own registrations only, but
        each of them.
        """
        self.server = server = Server(senders={"111": "k", "222": "k", "333": "other"})
        tokens = {sender: server.token(server.checkIn(), sender=sender) for sender in ("111", "222", "333")}
        request = {"to": "/topics/x", "registration_tokens": [tokens["333"], tokens["222"]]}
        status, answer = server.json("POST", "/iid/v1:batchAdd", request, Authorization="key=k")
        self.assertEqual((200, [{"error": "PERMISSION_DENIED"}, {}]), (status, answer["results"]))
        self.assertEqual({"x"}, self.topics(tokens["222"]))
        request["registration_tokens"] = ["nonsense"]
        status, answer = server.json("POST", "/iid/v1:batchAdd", request, Authorization="key=k")
        self.assertEqual((200, [{"error": "INVALID_ARGUMENT"}]), (status, answer["results"]))

    def test_noKey(self) -> None:
        """
        Without a key nobody learns which tokens there are.
        """
        self.server.store.registrations.lookUp = lambda *_: 1 // 0  # type: ignore[method-assign]
        for path in ("/iid/info/x", f"/iid/info/{quote(self.tokens[0])}"):
            for key in ({}, {"Authorization": "Bearer x"}, {"Authorization": "key="}):
                self.assertEqual(401, self.server.json("GET", path, **key)[0])

    def test_info(self) -> None:
        """
        What there is to know of a registration.
        """
        fired(self.server.store.registrations.subscribe([self.tokens[0]], "/topics/News"))
        path = f"/iid/info/{quote(self.tokens[0])}"
        status, answer = self.server.json("GET", path, Authorization=self.KEY)
        self.assertEqual(
            (200, {"application": APP, "authorizedEntity": "111", "platform": "ANDROID"}), (status, answer)
        )
        status, answer = self.server.json("GET", f"{path}?details=true", Authorization=self.KEY)
        self.assertEqual({"topics": {"News": {"addDate": "2023-11-14"}}}, answer["rel"])
        _, answer = self.server.json(
            "GET", f"/iid/info/{quote(self.tokens[1])}?details=true", Authorization=self.KEY
        )
        self.assertNotIn("rel", answer)

    def test_wrongKeys(self) -> None:
        """
        A wrong key is told later each time, and while many are to be told no
        other is looked at, wherever in a network it comes from.
        """
        path = f"/iid/info/{quote(self.tokens[0])}"
        request = f"GET {path} HTTP/1.1\r\nAuthorization: key=no\r\n\r\n".encode()
        transports = [self.server.open(request, f"2001:db8::{n:x}")[1] for n in range(20)]
        self.assertEqual([b""] * 16, [transport.value() for transport in transports[:16]])
        self.assertEqual({b"429"}, {transport.value()[9:12] for transport in transports[16:]})
        self.assertEqual(429, self.server.json("GET", path, Authorization=self.KEY, host="2001:db8::ff")[0])
        self.assertEqual(200, self.server.json("GET", path, Authorization=self.KEY, host="192.0.2.9")[0])

    def test_slower(self) -> None:
        """
        Each refusal of a key comes later; who hangs up is not waited for.
        """
        request = b"GET /iid/info/x HTTP/1.1\r\nAuthorization: key=no\r\n\r\n"
        for delay in (0.25, 0.5, 1.0):
            _, transport = self.server.open(request)
            self.server.clock.advance(delay - 0.01)
            self.assertEqual(b"", transport.value())
            self.server.clock.advance(0.01)
            self.assertEqual(b"401", transport.value()[9:12])
        before = len(self.server.clock.getDelayedCalls())
        channel, transport = self.server.open(request)
        channel.connectionLost()
        self.assertEqual(before, len(self.server.clock.getDelayedCalls()))
        self.assertEqual(b"", transport.value())


class GroupTests(SiteCase):
    """
    Device groups.
    """

    def ask(self, operation: str, status: int = 200, senderID: str = "111", **fields: Any) -> Any:
        """
        Change a group.
        """
        got, answer = self.server.json(
            "POST",
            "/fcm/notification",
            {"operation": operation, **fields},
            Authorization=f"key={SENDERS.get(senderID, 'x')}",
            project_id=senderID,
        )
        self.assertEqual(status, got, answer)
        return answer

    def test_whole(self) -> None:
        """
        A group is made, found, changed, sent to, and gone with its last member.
        """
        tokens = [self.server.token(self.server.checkIn()) for _ in range(3)]
        name = {"notification_key_name": "ann"}
        key = self.ask("create", **name, registration_ids=tokens[:2])["notification_key"]
        self.assertEqual(
            {"error": "notification_key already exists"},
            self.ask("create", 400, **name, registration_ids=tokens),
        )
        status, found = self.server.json(
            "GET", "/gcm/notification?notification_key_name=ann", Authorization="key=key-1", project_id="111"
        )
        self.assertEqual((200, {"notification_key": key}), (status, found))
        group = {**name, "notification_key": key}
        self.ask("add", **group, registration_ids=tokens[2:])
        posted = fired(self.server.store.mailboxes.post("111", DownstreamMessage(to=key, message_id="m")))
        self.assertEqual((3, 3), (posted.success, len(posted.mails)))
        self.ask("remove", **group, registration_ids=tokens)
        self.assertEqual(
            {"error": "notification_key not found"}, self.ask("add", 400, **group, registration_ids=tokens)
        )
        status, _ = self.server.json(
            "GET", "/fcm/notification?notification_key_name=ann", Authorization="key=key-1", project_id="111"
        )
        self.assertEqual(400, status)

    def test_refused(self) -> None:
        """
        What is wrong is said.
        """
        token = self.server.token(self.server.checkIn())
        key = self.ask("create", notification_key_name="a", registration_ids=[token])["notification_key"]
        many = [self.server.token(self.server.checkIn()) for _ in range(20)]
        for status, operation, fields in (
            (400, "create", {"notification_key_name": "b", "registration_ids": ["x"]}),
            (400, "create", {"registration_ids": [token]}),
            (400, "explode", {"notification_key_name": "a", "registration_ids": [token]}),
            (400, "create", {"notification_key_name": 5, "registration_ids": [token]}),
            (400, "create", {"notification_key_name": "b", "registration_ids": "x"}),
            (400, "create", {"notification_key_name": "b", "registration_ids": ["x"] * 21}),
            (
                400,
                "add",
                {"notification_key": key, "notification_key_name": "b", "registration_ids": [token]},
            ),
            (400, "remove", {"notification_key": "x", "registration_ids": [token]}),
            (400, "add", {"notification_key": key, "registration_ids": many}),
        ):
            self.ask(operation, status, **fields)
        self.ask("create", 401, senderID="999", notification_key_name="c", registration_ids=[token])
        self.assertEqual(400, self.server.json("POST", "/fcm/notification", {})[0])


class HostileTests(SiteCase):
    """
    Whoever is at the other end.
    """

    def test_paths(self) -> None:
        """
        Other paths and methods are refused; there is a word for people.
        """
        self.assertEqual(200, self.server.ask("GET", "/")[0])
        status, body, _ = self.server.ask("HEAD", "/")
        self.assertEqual((200, b""), (status, body))
        self.assertEqual(404, self.server.json("GET", "/nothing")[0])
        status, _, headers = self.server.ask("GET", "/checkin")
        self.assertEqual((405, "post"), (status, headers["allow"]))

    def test_tooLong(self) -> None:
        """
        A body that is too long is refused, be it small before it is inflated.
        """
        for path, most in (
            ("/c2dm/register3", MAX_BODY),
            ("/checkin", 65_536),
            ("/iid/v1:batchAdd", MAX_BATCH),
        ):
            for size, expected in ((most, {200, 400}), (most + 1, {413}), (2_000_000, {413})):
                status, _, _ = self.server.ask("POST", path, b"\xff" * size, Authorization="key=key-1")
                self.assertIn(status, expected, (path, size))
        bomb = gzip.compress(bytes(50_000_000))
        self.assertEqual(413, self.server.ask("POST", "/checkin", bomb, Content_Encoding="gzip")[0])

    def test_otherEncoding(self) -> None:
        """
        What is compressed in another way is not taken for what it is not.
        """
        for encoding, expected in (("br", 415), ("gzip, gzip", 415), ("identity", 200)):
            status, _, _ = self.server.ask("POST", "/checkin", checkinRequest(), Content_Encoding=encoding)
            self.assertEqual(expected, status)

    def test_brokenGzip(self) -> None:
        """
        What is no gzip, or ends early, is refused.
        """
        for body in (b"x", gzip.compress(checkinRequest())[:-4], zlib.compress(b"x")):
            self.assertEqual(400, self.server.ask("POST", "/checkin", body, Content_Encoding="gzip")[0])

    def test_rate(self) -> None:
        """
        Who asks too often is told when to come again; others are not.
        """
        server = Server(rate=1.0, burst=3.0)
        self.assertEqual([200] * 3, [server.ask("GET", "/")[0] for _ in range(3)])
        status, _, headers = server.ask("GET", "/")
        self.assertEqual((429, "2"), (status, headers["retry-after"]))
        self.assertEqual(200, server.ask("GET", "/", host="192.0.2.2")[0])
        server.clock.advance(1)
        self.assertEqual(200, server.ask("GET", "/")[0])

    def test_bug(self) -> None:
        """
        A fault of ours is logged and told without details.
        """
        self.server.store.registrations.checkIn = lambda *_: 1 // 0  # type: ignore[method-assign]
        status, body, _ = self.server.ask("POST", "/checkin", checkinRequest())
        self.assertEqual(500, status)
        self.assertNotIn(b"ZeroDivision", body)
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))

    def test_silentLog(self) -> None:
        """
        No token is in the log of a fault.
        """
        token = self.server.token(self.server.checkIn())
        self.server.store.registrations.lookUp = lambda *_: 1 // 0  # type: ignore[method-assign]
        with capturedLogs() as events:
            status, _ = self.server.json("GET", f"/iid/info/{quote(token)}", Authorization="key=key-1")
        self.assertEqual((500, 1), (status, len(events)))
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
        text = eventAsText(events[0])
        self.assertIn("/iid/info/", text)
        self.assertNotIn(token[:8], text)

    def test_hungUp(self) -> None:
        """
        Whoever hangs up is not waited for, and that is no fault.
        """
        waiting: Deferred[Identity] = Deferred()
        self.server.store.registrations.checkIn = lambda *_: waiting  # type: ignore[method-assign]
        body = checkinRequest()
        self.server.raw(b"POST /checkin HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        for channel in list(self.server.site.channels):
            channel.connectionLost()
        self.assertEqual(set(), self.server.site.channels)

    def test_corpus(self) -> None:
        """
        Whatever is in the corpus gets an answer that is not a fault of ours,
        and the next request is answered as ever.
        """
        files = sorted(CORPUS.glob("*"))
        self.assertGreater(len(files), 20)
        for file in files:
            answer = self.server.raw(file.read_bytes())
            self.assertRegex(answer, rb"\A(HTTP/1\.[01] [24]\d\d |\Z)", file.name)
            self.server.checkIn()

    def test_corpusInPieces(self) -> None:
        """
        It is the same whether it comes in one piece or byte by byte.
        """
        for file in sorted(CORPUS.glob("*")):
            whole = Server().raw(file.read_bytes())
            server = Server()
            channel, transport = server.open(b"")
            for byte in file.read_bytes():
                if transport.disconnecting:
                    break
                channel.dataReceived(bytes([byte]))
            server.clock.advance(LoginGuard.MOST)
            self.assertEqual(whole[:12], transport.value()[:12], file.name)

    @given(
        st.sampled_from(
            [
                "/checkin",
                "/c2dm/register3",
                "/v1/projects/p/installations",
                "/v1/projects/p/registrations",
                "/fcm/connect/subscribe",
                "/iid/v1:batchAdd",
                "/fcm/notification",
            ]
        ),
        st.one_of(
            st.binary(max_size=200),
            st.dictionaries(
                st.sampled_from(
                    ["app", "sender", "device", "to", "registration_tokens", "web", "appId", "operation"]
                ),
                st.one_of(st.none(), st.integers(), st.text(), st.lists(st.text(), max_size=3)),
            ).map(lambda value: json.dumps(value).encode()),
            st.dictionaries(st.text(), st.text(), max_size=4).map(
                lambda value: urlencode(value, errors="replace").encode()
            ),
        ),
    )
    def test_anything(self, path: str, body: bytes) -> None:
        """
        Whatever the body, the answer is none of a fault of ours.
        """
        status, _, _ = self.server.ask("POST", path, body, Authorization="AidLogin 5:5", project_id="111")
        self.assertIn(status, (200, 400, 401, 403, 404, 429))


class RateLimitTests(SynchronousTestCase):
    """
    L{RateLimit}.
    """

    def test_bucket(self) -> None:
        """
        So many at once, and then as many as come back.
        """
        limit = RateLimit(2.0, 3.0)
        self.assertEqual([0.0, 0.0, 0.0, 0.5], [limit.take("a", 10.0) for _ in range(4)])
        self.assertEqual([0.0, 0.5], [limit.take("a", 10.5) for _ in range(2)])
        self.assertEqual([0.0] * 3, [limit.take("a", 99.0) for _ in range(3)])
        # A clock that was set back gives nothing, and takes nothing.
        self.assertEqual(0.5, limit.take("a", 98.0))

    def test_bounded(self) -> None:
        """
        Not more addresses are remembered than may be.
        """
        limit = RateLimit(1.0, 1.0)
        limit.ADDRESSES = 10  # type: ignore[misc]  # smaller than it is
        for number in range(50):
            limit.take(str(number), 0.0)
        self.assertEqual(10, len(limit._buckets))

    def test_networks(self) -> None:
        """
        A household has 64 bits of IPv6 addresses, and counts once.
        """
        self.assertEqual(networkOf("2001:db8::1"), networkOf("2001:db8::ffff:2%eth0"))
        self.assertNotEqual(networkOf("2001:db8::1"), networkOf("2001:db8:0:1::1"))
        self.assertEqual("192.0.2.1", networkOf("::ffff:192.0.2.1"))
        self.assertEqual(["192.0.2.1", "a socket"], [networkOf(each) for each in ("192.0.2.1", "a socket")])
