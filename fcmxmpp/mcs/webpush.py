"""
Messages for Web Push subscriptions: what Google's server makes of a message that
is sent to one, encrypted for the browser.

The encryption is that of draft-ietf-webpush-encryption-04 (C{aesgcm}), which all
receivers of these messages read; http_ece does it.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from os import urandom
from typing import Any, NamedTuple

import http_ece
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec import structs

from fcmxmpp.registrations import Mail, WebPushKeys


__all__ = ["Encrypted", "checkKeys", "encrypted"]


class Encrypted(NamedTuple):
    """
    An encrypted message.

    @ivar cryptoKey: what the header C{Crypto-Key} of Web Push says.
    @ivar encryption: what the header C{Encryption} says.
    @ivar body: what is encrypted.
    """

    cryptoKey: str
    encryption: str
    body: bytes


def _decoded(text: str) -> bytes:
    """
    Base64url, with or without its padding.
    """
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def checkKeys(keys: WebPushKeys) -> None:
    """
    See to it that messages can be encrypted for these keys.

    @raise ValueError: if they cannot; the text says why.
    """
    try:
        point, auth = _decoded(keys.p256dh), _decoded(keys.auth)
    except ValueError:
        raise ValueError("a key that is no base64url") from None
    if len(auth) != 16:
        raise ValueError("an authentication secret that has not 16 bytes")
    if len(point) != 65 or point[0] != 4:
        raise ValueError("a public key that is no uncompressed point")
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError:
        raise ValueError("a public key that is no point of P-256") from None


def encrypted(mail: Mail, keys: WebPushKeys) -> Encrypted:
    """
    Encrypt a message.

    @param keys: that L{checkKeys} has nothing against.
    """
    message = mail.message
    payload: dict[str, Any] = {
        "data": message.data,
        "from": mail.topic or mail.senderID,
        "priority": message.priority or "normal",
        "fcmMessageId": mail.persistent_id,
    }
    if message.notification is not None:
        payload["notification"] = {
            name: value for name, value in structs.asdict(message.notification).items() if value is not None
        }
    if message.collapse_key is not None:
        payload["collapse_key"] = message.collapse_key
    private = ec.generate_private_key(ec.SECP256R1())
    salt = urandom(16)
    body = http_ece.encrypt(
        msgspec.json.encode(payload),
        salt=salt,
        private_key=private,
        dh=_decoded(keys.p256dh),
        auth_secret=_decoded(keys.auth),
        version="aesgcm",
    )
    point = private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    # Padded, because firebase-messaging does not read it otherwise.
    return Encrypted(
        f"dh={urlsafe_b64encode(point).decode()}", f"salt={urlsafe_b64encode(salt).decode()}", body
    )
