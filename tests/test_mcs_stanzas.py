"""
Tests for L{fcmxmpp.mcs.stanzas} and L{fcmxmpp.mcs.webpush}.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import http_ece
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.errors import MalformedFrame
from fcmxmpp.mcs import wire
from fcmxmpp.mcs.session import Platform
from fcmxmpp.mcs.stanzas import mailStanza, readMail, readUpload, uploadStanza
from fcmxmpp.mcs.webpush import checkKeys
from fcmxmpp.messages import DownstreamMessage, Notification
from fcmxmpp.registrations import Application, Mail, Registration, WebPushKeys


NOW = 1_700_000_000.0


def stanza(**fields: Any) -> Any:
    """
    A message from a device.
    """
    everything = {
        "from": "",
        "id": "u-1",
        "to": "123@gcm.googleapis.com",
        "category": "org.example.app",
        "persistent_id": "7",
        "ttl": 60,
    }
    return wire.DataMessageStanza(**(everything | fields))


def mail(message: DownstreamMessage, keys: WebPushKeys | None = None, **fields: Any) -> Mail:
    """
    A message for a device.
    """
    registration = Registration(
        token="t",
        android_id=1,
        application=Application(
            category="org.example.app", senderID="123", subtype=fields.pop("subtype", "")
        ),
        keys=keys,
    )
    everything: dict[str, Any] = {
        "number": 1,
        "persistent_id": "0:1%1",
        "senderID": "123",
        "posted": NOW,
        "expires": NOW + 60,
    }
    return Mail(message=message, registration=registration, **(everything | fields))


def sent(one: Mail, now: float = NOW) -> Any:
    """
    A message for a device, as it is sent.
    """
    return wire.DataMessageStanza.FromString(mailStanza(one, now))


class UploadTests(SynchronousTestCase):
    """
    L{readUpload}.
    """

    def read(self, platform: Platform = Platform.CHROME, **fields: Any) -> Any:
        """
        Read a message.
        """
        return readUpload(stanza(**fields), platform, 99, NOW)

    def test_whole(self) -> None:
        """
        Everything is where it belongs.
        """
        one = stanza()
        one.app_data.add(key="k", value="v")
        upload = readUpload(one, Platform.CHROME, 99, NOW)
        self.assertEqual(
            ("u-1", "123", "org.example.app", {"k": "v"}, 60, NOW + 60),
            (
                upload.message_id,
                upload.to_sender,
                upload.category,
                upload.data,
                upload.time_to_live,
                upload.expires,
            ),
        )

    def test_to(self) -> None:
        """
        A sender may be written in three ways; what is none is told apart from
        what is for the platform.
        """
        for to, expected in (
            ("123@gcm.googleapis.com", "123"),
            ("123@fcm.googleapis.com", "123"),
            ("123", "123"),
            ("", ""),
            ("/topics/x", ""),
            ("123@example.org", ""),
            ("1" * 21, ""),
        ):
            self.assertEqual(expected, self.read(to=to).to_sender)
        for category in ("com.google.android.gsf.gtalkservice", "com.google.android.gms"):
            self.assertIsNone(self.read(category=category).to_sender)

    def test_microG(self) -> None:
        """
        microG has the app's message id in the persistent id.
        """
        self.assertEqual("7", self.read(Platform.ANDROID).message_id)
        self.assertEqual("u-1", self.read(Platform.ANDROID, persistent_id="").message_id)
        self.assertEqual("u-1", self.read(Platform.IOS).message_id)

    def test_time(self) -> None:
        """
        The time to live is 24 hours at the most, and if it is not said; the
        time on the device counts, its clock does not.
        """
        for ttl, expected in ((0, 0), (60, 60), (-1, 86400), (86401, 86400), (86400, 86400)):
            self.assertEqual(expected, self.read(ttl=ttl).time_to_live)
        one = stanza()
        one.ClearField("ttl")
        self.assertEqual(86400, readUpload(one, Platform.CHROME, 99, NOW).time_to_live)
        self.assertEqual(NOW + 50, self.read(queued=10, sent=1).expires)
        self.assertEqual(NOW + 60, self.read(queued=-10).expires)

    def test_key(self) -> None:
        """
        A sending is known by device, app, persistent id and message id, and by
        nothing else; no two run together.
        """
        key = self.read().key
        self.assertEqual(16, len(key))
        self.assertEqual(key, self.read(queued=9, ttl=1, to="9").key)
        others = [
            self.read(id="u-2").key,
            self.read(persistent_id="8").key,
            self.read(category="x").key,
            readUpload(stanza(), Platform.CHROME, 98, NOW).key,
            self.read(persistent_id="7u", id="-1").key,
        ]
        self.assertEqual(5, len({*others} - {key}))

    def test_notUnicode(self) -> None:
        """
        What is no Unicode is no message.
        """
        for old, new in ((b"u-1", b"u-\xff"), (b"org.", b"org\xff"), (b"123@", b"12\xff@")):
            one = wire.DataMessageStanza.FromString(stanza().SerializeToString().replace(old, new))
            self.assertRaises(MalformedFrame, readUpload, one, Platform.CHROME, 1, NOW)

    @given(st.dictionaries(st.text(), st.text(), max_size=5), st.integers(0, 86400), st.text())
    def test_roundTrip(self, data: dict[str, str], ttl: int, message_id: str) -> None:
        """
        What a device of ours sends is read as it was meant.
        """
        for persistent_id, queued in ((None, 0), ("7", 5)):
            made = uploadStanza(message_id, "123", "app", data, ttl, persistent_id, NOW, queued, "tok")
            one = wire.DataMessageStanza.FromString(made.SerializeToString())
            upload = readUpload(one, Platform.OTHER, 1, NOW)
            self.assertEqual(
                (data, ttl, message_id, NOW - queued + ttl),
                (upload.data, upload.time_to_live, upload.message_id, upload.expires),
            )
            # In seconds, as phones send it.
            self.assertEqual(NOW, one.sent)


class MailTests(SynchronousTestCase):
    """
    L{mailStanza} and L{readMail}.
    """

    def test_whole(self) -> None:
        """
        Everything is where it belongs, the time to live being what is left.
        """
        one = mail(
            DownstreamMessage(
                data={"k": "v"}, collapse_key="c", priority="high", delivery_receipt_requested=True
            )
        )
        result = sent(one, NOW + 15)
        self.assertEqual(
            ("123", "org.example.app", "c", "0:1%1", 45, int(NOW * 1000), True, 10, False),
            (
                getattr(result, "from"),
                result.category,
                result.token,
                result.persistent_id,
                result.ttl,
                result.sent,
                result.immediate_ack,
                result.priority,
                result.from_trusted_server,
            ),
        )
        self.assertEqual([("k", "v")], [(each.key, each.value) for each in result.app_data])
        self.assertEqual(0, sent(one, NOW + 99).ttl)
        received = readMail(result)
        self.assertEqual(
            ("0:1%1", "123", "c", {"k": "v"}),
            (received.message_id, received.from_, received.collapse_key, received.data),
        )
        self.assertEqual("ReceivedMessage(message_id='0:1%1')", repr(received))

    def test_plain(self) -> None:
        """
        What was not said is not there.
        """
        result = sent(mail(DownstreamMessage(data={})))
        for field in ("token", "immediate_ack", "priority", "raw_data"):
            self.assertFalse(result.HasField(field), field)

    def test_topic(self) -> None:
        """
        A message to a topic is from that.
        """
        self.assertEqual("/topics/x", getattr(sent(mail(DownstreamMessage(), topic="/topics/x")), "from"))

    def test_notification(self) -> None:
        """
        What is to be shown stands under the keys of both generations.
        """
        notification = Notification(title="Hi", body="there", sound="ding", badge="3")
        data = {
            each.key: each.value
            for each in sent(mail(DownstreamMessage(data={"n": "1"}, notification=notification))).app_data
        }
        self.assertEqual(
            {
                "n": "1",
                "google.c.sender.id": "123",
                **{
                    f"gcm.{kind}.{key}": value
                    for kind in ("n", "notification")
                    for key, value in {
                        "e": "1",
                        "title": "Hi",
                        "body": "there",
                        "sound2": "ding",
                        "sound": "ding",
                        "badge": "3",
                    }.items()
                },
            },
            data,
        )
        received = readMail(sent(mail(DownstreamMessage(data={"n": "1"}, notification=notification))))
        self.assertEqual({"n": "1"}, received.data)
        self.assertEqual(
            {"title": "Hi", "body": "there", "sound": "ding", "badge": "3"}, received.notification
        )

    def test_soundOfIOS(self) -> None:
        """
        Of the dictionary of iOS the name counts, if there is one.
        """
        for sound, expected in (({"name": "ding", "critical": 1}, "ding"), ({"critical": 1}, None)):
            one = mail(DownstreamMessage(notification=Notification(sound=sound)))
            self.assertEqual(expected, readMail(sent(one)).notification.get("sound"))

    def test_types(self) -> None:
        """
        What the connection server itself says is told apart.
        """
        one = mail(DownstreamMessage(data={"message_type": "deleted_messages", "total_deleted": "7"}))
        received = readMail(sent(one))
        self.assertEqual(("deleted_messages", {"total_deleted": "7"}), (received.message_type, received.data))
        result = sent(mail(DownstreamMessage()))
        result.app_data.add(key="message_type", value="gcm")
        self.assertIsNone(readMail(result).message_type)

    def test_notUnicode(self) -> None:
        """
        What is no Unicode is no message.
        """
        serialized = mailStanza(mail(DownstreamMessage(data={"key": "value"})), NOW)
        for old, new in ((b"value", b"valu\xff"), (b"key", b"ke\xff"), (b"0:1%1", b"0:1%\xff")):
            one = wire.DataMessageStanza.FromString(serialized.replace(old, new))
            self.assertRaises(MalformedFrame, readMail, one)


class WebPushTests(SynchronousTestCase):
    """
    Messages for Web Push subscriptions.
    """

    def setUp(self) -> None:
        """
        Have keys.
        """
        self.private = ec.generate_private_key(ec.SECP256R1())
        point = self.private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        self.auth = b"0123456789abcdef"
        self.keys = WebPushKeys(
            p256dh=urlsafe_b64encode(point).rstrip(b"=").decode(),
            auth=urlsafe_b64encode(self.auth).rstrip(b"=").decode(),
        )

    def test_decrypted(self) -> None:
        """
        Who has the private key reads what Google's server would have sent.
        """
        message = DownstreamMessage(
            data={"k": "\u4f60"}, notification=Notification(title="Hi"), collapse_key="c", priority="high"
        )
        result = sent(mail(message, self.keys, subtype="wp:x#1"))
        data = {each.key: each.value for each in result.app_data}
        self.assertEqual({"subtype", "crypto-key", "encryption"}, set(data))
        self.assertEqual("wp:x#1", data["subtype"])
        self.assertEqual(
            {
                "data": {"k": "\u4f60"},
                "from": "123",
                "priority": "high",
                "fcmMessageId": "0:1%1",
                "notification": {"title": "Hi"},
                "collapse_key": "c",
            },
            self.decrypted(result),
        )

    def decrypted(self, stanza: Any) -> Any:
        """
        What a receiver makes of a message.
        """
        data = {each.key: each.value for each in stanza.app_data}
        return msgspec.json.decode(
            http_ece.decrypt(
                stanza.raw_data,
                salt=urlsafe_b64decode(data["encryption"].removeprefix("salt=")),
                private_key=self.private,
                dh=urlsafe_b64decode(data["crypto-key"].removeprefix("dh=")),
                auth_secret=self.auth,
                version="aesgcm",
            )
        )

    def test_least(self) -> None:
        """
        A message of next to nothing says no more than it has to, and no two are
        encrypted alike.
        """
        message = DownstreamMessage(data={"k": "v"})
        first, second = sent(mail(message, self.keys)), sent(mail(message, self.keys))
        self.assertEqual(
            {"data": {"k": "v"}, "from": "123", "priority": "normal", "fcmMessageId": "0:1%1"},
            self.decrypted(first),
        )
        self.assertEqual(self.decrypted(first), self.decrypted(second))
        self.assertNotEqual(first.raw_data, second.raw_data)

    def test_keys(self) -> None:
        """
        Keys with which nothing could be encrypted are refused, each with its
        reason.
        """
        checkKeys(self.keys)
        good = self.keys
        for p256dh, auth, reason in (
            ("a", good.auth, "no base64url"),
            (good.p256dh, "AAAA", "16 bytes"),
            ("AAAA", good.auth, "no uncompressed point"),
            (urlsafe_b64encode(b"\x04" + bytes(64)).decode(), good.auth, "no point of P-256"),
        ):
            error = self.assertRaises(ValueError, checkKeys, WebPushKeys(p256dh=p256dh, auth=auth))
            self.assertIn(reason, str(error))
