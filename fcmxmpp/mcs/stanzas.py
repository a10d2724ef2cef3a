"""
What is in the data messages of MCS: a device's message to an app server, and an
app server's to a device.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Any

from msgspec import Struct, structs

from fcmxmpp.errors import MalformedFrame
from fcmxmpp.mcs import wire
from fcmxmpp.mcs.session import Platform
from fcmxmpp.mcs.webpush import encrypted
from fcmxmpp.messages import MAX_UPSTREAM_TTL, Notification
from fcmxmpp.registrations import Mail


__all__ = ["ReceivedMessage", "Upload", "mailStanza", "readMail", "readUpload", "uploadStanza"]

#: What the platforms say to themselves; not for any app server.
_PLATFORMS_OWN = frozenset({"com.google.android.gsf.gtalkservice", "com.google.android.gms"})
_SENDER = re.compile(r"([0-9]{1,20})(?:@(?:gcm|fcm)\.googleapis\.com)?")
#: What a priority is in a stanza.
_PRIORITIES = {"normal": 5, "high": 10}
#: The names of Google's own for what differs from the key of the notification.
_NOTIFICATION_KEYS = {name: name for name in Notification.__struct_fields__} | {"sound": "sound2"}


class Upload(Struct, frozen=True, kw_only=True):
    """
    A device's message to an app server.

    @ivar to_sender: whose app server: a sender ID; empty if it cannot be told,
        None if it is for the platform itself.
    @ivar category: the app.
    @ivar time_to_live: seconds, 0 to L{MAX_UPSTREAM_TTL}; 0 is now or never.
    @ivar expires: until when it is of use, in seconds since 1970.
    @ivar key: what the device's sending of it is known by, 16 bytes.
    """

    message_id: str
    to_sender: str | None
    category: str
    data: dict[str, str]
    time_to_live: int
    expires: float
    key: bytes


def readUpload(stanza: Any, platform: Platform, android_id: int, now: float) -> Upload:
    """
    Read a device's message.

    @param stanza: a C{DataMessageStanza}.
    @param android_id: of the device that has sent it.
    @param now: seconds since 1970.
    @raise MalformedFrame: if there is something in it that is no text.
    """
    category, message_id, persistent_id, to = stanza.category, stanza.id, stanza.persistent_id, stanza.to
    data = {each.key: each.value for each in stanza.app_data}
    # What is no UTF-8, protobuf gives as bytes.
    if not all(
        isinstance(each, str) for each in (category, message_id, persistent_id, to, *data, *data.values())
    ):
        raise MalformedFrame("a message that is not Unicode")
    digest = blake2b(digest_size=16)
    for each in (str(android_id), category, persistent_id, message_id):
        # The length in front, so that no two different ones become one.
        text = each.encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(text) + text)
    if platform is Platform.ANDROID and persistent_id:
        message_id = persistent_id
    ttl = stanza.ttl if stanza.HasField("ttl") else MAX_UPSTREAM_TTL
    if not 0 <= ttl <= MAX_UPSTREAM_TTL:
        ttl = MAX_UPSTREAM_TTL
    sender = _SENDER.fullmatch(to)
    return Upload(
        message_id=message_id,
        to_sender=None if category in _PLATFORMS_OWN else sender[1] if sender else "",
        category=category,
        data=data,
        time_to_live=ttl,
        # The device's own idea of when it was sent is not to be trusted.
        expires=now - max(0, stanza.queued) + ttl,
        key=digest.digest(),
    )


def uploadStanza(
    message_id: str,
    to: str,
    category: str,
    data: dict[str, str],
    time_to_live: int,
    persistent_id: str | None,
    sent: float,
    queued: int = 0,
    token: str = "",
) -> Any:
    """
    A device's message to an app server, as the device sends it.

    @param persistent_id: None for what is not sent again.
    @param sent: when it was sent first, in seconds since 1970.
    @param queued: how long it has waited, in seconds.
    @param token: the app's registration token, if it is known.
    """
    stanza = wire.DataMessageStanza(id=message_id, to=to, category=category, ttl=time_to_live, sent=int(sent))
    setattr(stanza, "from", token)
    if persistent_id is not None:
        stanza.persistent_id = persistent_id
    if queued:
        stanza.queued = queued
    for key, value in data.items():
        stanza.app_data.add(key=key, value=value)
    return stanza


def mailStanza(mail: Mail, now: float) -> bytes:
    """
    A message for a device, as the connection server sends it.

    What the app server has asked to be shown comes under the keys of two
    generations of Google's libraries.  A Web Push subscription gets its message
    encrypted.

    @param now: seconds since 1970.
    @return: a serialised C{DataMessageStanza}.
    """
    message = mail.message
    application = mail.registration.application
    stanza = wire.DataMessageStanza(
        category=application.category,
        persistent_id=mail.persistent_id,
        from_trusted_server=False,
        sent=int(mail.posted * 1000),
        ttl=max(0, int(mail.expires - now)),
    )
    setattr(stanza, "from", mail.topic or mail.senderID)
    add = stanza.app_data.add
    if message.collapse_key is not None:
        stanza.token = message.collapse_key
    if message.priority is not None:
        stanza.priority = _PRIORITIES[message.priority]
    if message.delivery_receipt_requested:
        # Otherwise a device may take half an hour to say so.
        stanza.immediate_ack = True
    if application.subtype:
        add(key="subtype", value=application.subtype)
    if mail.registration.keys is not None:
        encryption = encrypted(mail, mail.registration.keys)
        add(key="crypto-key", value=encryption.cryptoKey)
        add(key="encryption", value=encryption.encryption)
        stanza.raw_data = encryption.body
        return stanza.SerializeToString()
    for key, value in message.data.items():
        add(key=key, value=value)
    if message.notification is not None:
        for key, value in notificationData(message.notification, mail.senderID).items():
            add(key=key, value=value)
    return stanza.SerializeToString()


def notificationData(notification: Notification, senderID: str) -> dict[str, str]:
    """
    What a device shows, as data.
    """
    data = {"gcm.n.e": "1", "gcm.notification.e": "1", "google.c.sender.id": senderID}
    for name, value in structs.asdict(notification).items():
        if value is None:
            continue
        if name == "sound" and not isinstance(value, str):
            # The dictionary of iOS; what it names is all that can be said here.
            value = value.get("name")
            if not isinstance(value, str):
                continue
        data[f"gcm.n.{_NOTIFICATION_KEYS[name]}"] = value
        data[f"gcm.notification.{_NOTIFICATION_KEYS[name]}"] = value
        if name == "sound":
            data["gcm.n.sound"] = data["gcm.notification.sound"] = value
    return data


class ReceivedMessage(Struct, frozen=True, kw_only=True):
    """
    A message as an app on a device gets it.

    @ivar message_id: what the connection server knows it by.
    @ivar from_: the sender ID, or C{"/topics/NAME"}.
    @ivar message_type: None for a message of the app server;
        C{"deleted_messages"} or C{"send_error"} from the connection server.
    @ivar data: what the app server has sent.
    @ivar notification: what is to be shown, by the keys that the app server
        used.
    @ivar raw_data: what is encrypted.
    """

    message_id: str
    from_: str
    category: str
    message_type: str | None = None
    collapse_key: str | None = None
    data: dict[str, str] = {}
    notification: dict[str, str] = {}
    raw_data: bytes = b""
    ttl: int = 0
    sent: float = 0.0

    def __repr__(self) -> str:
        """
        Without its contents.
        """
        return f"ReceivedMessage(message_id={self.message_id!r})"


def readMail(stanza: Any) -> ReceivedMessage:
    """
    Read a message for a device.

    @raise MalformedFrame: if there is something in it that is no text.
    """
    everything = {each.key: each.value for each in stanza.app_data}
    named = (stanza.category, stanza.persistent_id, stanza.token, getattr(stanza, "from"))
    if not all(isinstance(each, str) for each in (*named, *everything, *everything.values())):
        raise MalformedFrame("a message that is not Unicode")
    message_type = everything.pop("message_type", None)
    data = {key: value for key, value in everything.items() if not key.startswith(("gcm.", "google."))}
    prefix = "gcm.n."
    notification = {
        key.removeprefix(prefix): value
        for key, value in everything.items()
        if key.startswith(prefix) and key not in ("gcm.n.e", "gcm.n.sound2")
    }
    return ReceivedMessage(
        message_id=stanza.persistent_id or stanza.id,
        from_=getattr(stanza, "from"),
        category=stanza.category,
        message_type=None if message_type in (None, "gcm") else message_type,
        collapse_key=stanza.token or None,
        data=data,
        notification=notification,
        raw_data=stanza.raw_data,
        ttl=stanza.ttl,
        sent=stanza.sent / 1000,
    )
