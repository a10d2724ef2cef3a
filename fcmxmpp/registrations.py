"""
What a connection server keeps about devices: who they are, which apps on them
are registered with which sender, and what waits for them.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from msgspec import Struct

from fcmxmpp.messages import DownstreamMessage


__all__ = [
    "APP_LIMIT",
    "COLLAPSE_KEYS",
    "CONNECTED_LIMIT",
    "GROUP_LIMIT",
    "REGISTRATION_LIMIT",
    "TOPIC_LIMIT",
    "Application",
    "Group",
    "Identity",
    "Mail",
    "Posted",
    "Registration",
    "WebPushKeys",
    "looksLikeToken",
]

#: How many messages wait for one app on a device that is not connected; the next
#: one has all of them dropped, and the app is told of that.
APP_LIMIT = 100
#: The same while the device is connected; then the app server is told to slow down.
CONNECTED_LIMIT = 1000
#: How many different collapse keys may wait for one app.
COLLAPSE_KEYS = 4
#: Members of a device group.
GROUP_LIMIT = 20
#: Topics that one registration may be subscribed to.
TOPIC_LIMIT = 2000
#: Registrations that one device may have.
REGISTRATION_LIMIT = 1000


#: 22 characters that tell registrations apart, as an Installations ID does, and
#: 140 that cannot be guessed; the shape is that of Google's tokens.
_TOKEN = re.compile(r"[A-Za-z0-9_-]{22}:APA91b[A-Za-z0-9_-]{134}")


def looksLikeToken(token: str) -> bool:
    """
    Whether this could be a registration token of a connection server of ours.
    """
    return _TOKEN.fullmatch(token) is not None


class Identity(NamedTuple):
    """
    What a device got at its check-in, and proves itself by.  Both are at least 1
    and less than 2**63.
    """

    android_id: int
    security_token: int


class WebPushKeys(Struct, frozen=True, kw_only=True):
    """
    What messages for a Web Push subscription are encrypted with: both base64url
    without padding.

    @ivar p256dh: the public key, an uncompressed point of P-256.
    @ivar auth: the authentication secret, 16 bytes.
    """

    p256dh: str
    auth: str


class Application(Struct, frozen=True, kw_only=True):
    """
    What an app says of itself when it registers.

    @ivar category: the Android package, iOS bundle identifier or Chrome
        extension identifier.
    @ivar senderID: whose messages it wants; for Web Push, the sender's public
        key.
    @ivar subtype: which of several instances within the app; empty if it is the
        only one.
    """

    category: str
    senderID: str
    subtype: str = ""


class Registration(Struct, frozen=True, kw_only=True):
    """
    One app on one device, registered with one sender.

    @ivar token: its registration token.
    @ivar keys: of a Web Push subscription; its messages are encrypted.
    """

    token: str
    android_id: int
    application: Application
    keys: WebPushKeys | None = None

    def __repr__(self) -> str:
        """
        Without the token.
        """
        return f"Registration(android_id={self.android_id}, category={self.application.category!r})"


class Mail(Struct, frozen=True, kw_only=True):
    """
    A message on its way to a device.

    @ivar number: counts what comes into the mailboxes; no number is given
        twice.  0 for what is not kept: a C{time_to_live} of 0 is now or never.
    @ivar persistent_id: what the device knows it by: ASCII, less than 128
        bytes, no C{"|"}.
    @ivar registration: whom it is for.
    @ivar senderID: whose message it is: what C{from} says.
    @ivar topic: C{"/topics/NAME"} if it was sent to that topic.
    @ivar message: as the app server sent it, or as the connection server made
        it (see L{IMailboxes.notify}).
    @ivar posted: when it came, in seconds since 1970.
    @ivar expires: until when it is of use, in seconds since 1970.
    """

    number: int
    persistent_id: str
    registration: Registration
    senderID: str
    topic: str | None = None
    message: DownstreamMessage
    posted: float
    expires: float

    def __repr__(self) -> str:
        """
        Without token and contents.
        """
        return f"Mail(number={self.number}, message_id={self.message.message_id!r})"


class Posted(Struct, frozen=True, kw_only=True):
    """
    What became of a message that was posted.

    @ivar mails: what is now on its way to devices, and can be delivered to
        those that are connected.
    @ivar error: why it was refused, as the code of a NACK; None if it was not.
    @ivar description: for people.
    @ivar success: of a device group, for how many members it was accepted.
    @ivar failed: of a device group, the tokens of the others.
    """

    mails: list[Mail] = []
    error: str | None = None
    description: str = ""
    success: int | None = None
    failed: list[str] = []


class Group(Struct, frozen=True, kw_only=True):
    """
    A device group.

    @ivar notification_key: what messages are sent to.
    @ivar name: its C{notification_key_name}, unique for its sender.
    @ivar members: registration tokens.
    """

    notification_key: str
    senderID: str
    name: str
    members: list[str]
