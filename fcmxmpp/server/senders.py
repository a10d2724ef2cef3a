"""
The senders file: who may log in as an app server.

It is TOML::

    [senders.123456789]
    name = "for people"
    keys = ["sha256:SALT:DIGEST"]

A key is kept as a salted digest.  One round of SHA-256 is enough for keys that
nobody can guess, such as those that C{fcmxmpp senders add} makes and Google's
own were; that is why short ones are refused.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

from msgspec import Struct


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


__all__ = ["MIN_KEY", "HashedKey", "hashKey", "readSenders"]

#: How many characters a key has at least.
MIN_KEY = 20
_KEY = re.compile(r"sha256:([0-9a-f]{32}):([0-9a-f]{64})")


class HashedKey(Struct, frozen=True):
    """
    A server key, as far as it is known.
    """

    salt: bytes
    digest: bytes

    def __str__(self) -> str:
        """
        As it stands in the file.
        """
        return f"sha256:{self.salt.hex()}:{self.digest.hex()}"

    def digestOf(self, key: bytes) -> bytes:
        """
        What another key comes to with this salt.
        """
        return sha256(self.salt + key).digest()


def hashKey(key: str, randomBytes: Callable[[int], bytes]) -> HashedKey:
    """
    What to keep of a key.

    @raise ValueError: if it could be guessed.
    """
    if len(key) < MIN_KEY:
        raise ValueError(f"a server key has at least {MIN_KEY} characters, so that nobody can guess it")
    salt = randomBytes(16)
    return HashedKey(salt, sha256(salt + key.encode("utf-8", "surrogatepass")).digest())


def readSenders(text: str) -> dict[str, tuple[HashedKey, ...]]:
    """
    Read a senders file.

    @return: the keys of each sender.
    @raise ValueError: if something is wrong; the text says what, in one line,
        without any key.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"it is not TOML: {error}") from None
    for name in content:
        if name != "senders":
            raise ValueError(f"unknown setting {name!r}: there are only tables such as [senders.123456789]")
    senders = content.get("senders", {})
    if not isinstance(senders, dict):
        raise ValueError("senders has to be a table")
    return {senderID: _keysOf(senderID, sender) for senderID, sender in senders.items()}


def _keysOf(senderID: str, sender: Any) -> tuple[HashedKey, ...]:
    """
    The keys of one sender.
    """
    if re.fullmatch("[0-9]{1,20}", senderID) is None:
        raise ValueError(f"[senders.{senderID}]: a sender ID has 1 to 20 decimal digits")
    if not isinstance(sender, Mapping):
        raise ValueError(f"[senders.{senderID}] has to be a table")
    for name in sender:
        if name not in ("name", "keys", "added"):
            raise ValueError(f"[senders.{senderID}] has an unknown setting {name!r}")
    keys = sender.get("keys")
    if not isinstance(keys, list) or not keys:
        raise ValueError(f"[senders.{senderID}] needs keys: make one with fcmxmpp senders add {senderID}")
    result = []
    for number, key in enumerate(keys, 1):
        match = _KEY.fullmatch(key) if isinstance(key, str) else None
        if match is None:
            raise ValueError(
                f"[senders.{senderID}]: key {number} is none that fcmxmpp senders add {senderID} has made"
            )
        result.append(HashedKey(bytes.fromhex(match[1]), bytes.fromhex(match[2])))
    return tuple(result)
