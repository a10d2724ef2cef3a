"""
The senders file: who may log in as an app server.

It is TOML::

    [senders.123456789]
    name = "for people"
    keys = ["sha256:SALT:DIGEST"]

A key is kept as a salted digest: who has read the file cannot log in with what is
in it.  One round of SHA-256 is enough for keys that nobody can guess, such as those
that C{fcmxmpp senders add} makes and Google's own were, but it is so fast that it
would not protect a short one; that is why those are refused.  A slow digest would
protect them, and would make every wrong login as expensive as that.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from datetime import date, datetime
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
            raise ValueError("there may be tables such as [senders.123456789] in it, and nothing else")
    senders = content.get("senders", {})
    if not isinstance(senders, dict):
        raise ValueError("senders has to be a table")
    return {
        senderID: _keysOf(number, senderID, sender)
        for number, (senderID, sender) in enumerate(senders.items(), 1)
    }


def _keysOf(number: int, senderID: str, sender: Any) -> tuple[HashedKey, ...]:
    """
    The keys of one sender.

    @param number: of the sender in the file.
    """
    if re.fullmatch("[0-9]{1,20}", senderID) is None:
        # Not by its name: what stands in the wrong place may be a key.
        raise ValueError(f"sender {number} in it has no ID: that has 1 to 20 decimal digits")
    if not isinstance(sender, Mapping):
        raise ValueError(f"[senders.{senderID}] has to be a table")
    for name, value in sender.items():
        if name not in ("name", "keys", "added"):
            raise ValueError(f"[senders.{senderID}] may have name, keys and added, and nothing else")
        if name == "name" and not isinstance(value, str):
            raise ValueError(f"[senders.{senderID}]: the name has to be a string")
        if name == "added" and not isinstance(value, (date, datetime)):
            raise ValueError(f"[senders.{senderID}]: added has to be a date")
    keys = sender.get("keys")
    if not isinstance(keys, list) or not keys:
        raise ValueError(f"[senders.{senderID}] needs keys: make one with fcmxmpp senders add {senderID}")
    result = []
    for which, key in enumerate(keys, 1):
        match = _KEY.fullmatch(key) if isinstance(key, str) else None
        if match is None:
            raise ValueError(
                f"[senders.{senderID}]: key {which} is none that fcmxmpp senders add {senderID} has made"
            )
        result.append(HashedKey(bytes.fromhex(match[1]), bytes.fromhex(match[2])))
    return tuple(result)
