"""
Which devices there are, which apps on them are registered, their topics and
their groups, in an SQLite database.

Each operation is a function of the connection and of the arguments of all who
want it done in this transaction: see L{fcmxmpp.store.groupcommit}.  What is
refused is a result, too: an exception, which is not raised.
"""

from __future__ import annotations

import os
from base64 import urlsafe_b64encode
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from zope.interface import implementer

from fcmxmpp.errors import TooManyRegistrations, UnknownDevice, UnknownToken
from fcmxmpp.interfaces import IRegistrations
from fcmxmpp.registrations import (
    REGISTRATION_LIMIT,
    TOPIC_LIMIT,
    Application,
    Group,
    Identity,
    Registration,
    WebPushKeys,
    looksLikeToken,
)
from fcmxmpp.store import groups
from fcmxmpp.store.database import Connection, inChunks, marks


__all__ = ["Commits", "SQLRegistrations", "findRegistration", "findRegistrations", "forgetDevices"]

#: Seconds between two notes of when a device was seen last: a login is not to cost a
#: page of the database.
SEEN = 86_400.0
#: What identities are made of: 62 bits, because some clients take them for signed.
_BITS = (1 << 62) - 1

_COLUMNS = "token, android_id, category, sender_id, subtype, p256dh, auth"


class Commits(Protocol):
    """
    What does the work: a thread for a file, or nothing for a database in
    memory.
    """

    def do(self, work: Any, argument: Any, urgent: bool = True) -> Deferred[Any]:
        """
        See L{GroupCommit.do<fcmxmpp.store.groupcommit.GroupCommit.do>}.
        """


def registrationOf(row: Sequence[Any]) -> Registration:
    """
    What C{_COLUMNS} of a row are.
    """
    token, android_id, category, senderID, subtype, p256dh, auth = row
    return Registration(
        token=token,
        android_id=android_id,
        application=Application(category=category, senderID=senderID, subtype=subtype),
        keys=None if p256dh is None else WebPushKeys(p256dh=p256dh, auth=auth),
    )


def findRegistration(connection: Connection, token: str) -> tuple[int, Registration] | None:
    """
    A registration and its number: one look into an index, one into the table.
    """
    return findRegistrations(connection, [token]).get(token)


def findRegistrations(connection: Connection, tokens: Sequence[str]) -> dict[str, tuple[int, Registration]]:
    """
    Registrations and their numbers, by their tokens; those that there are.
    """
    found = {}
    for chunk in inChunks(tokens):
        for number, *row in connection.execute(
            f"SELECT number, {_COLUMNS} FROM registrations WHERE token IN ({marks(chunk)})", chunk
        ):
            found[row[0]] = number, registrationOf(row)
    return found


def _isKnown(connection: Connection, identity: Identity, now: float) -> bool:
    """
    Whether a device is who it says; if so, it has been seen.
    """
    row = connection.execute(
        "SELECT security_token, seen FROM devices WHERE android_id = ?", (identity.android_id,)
    ).fetchone()
    if row is None or row[0] != identity.security_token:
        return False
    if now - row[1] > SEEN:
        connection.execute("UPDATE devices SET seen = ? WHERE android_id = ?", (now, identity.android_id))
    return True


def checkIn(
    connection: Connection, requests: Sequence[tuple[Identity | None, Identity, float]]
) -> list[Identity]:
    """
    See L{IRegistrations.checkIn}.

    @param requests: who they say that they are, who they are otherwise, and the
        time.
    """
    results = []
    for said, new, now in requests:
        if said is not None and _isKnown(connection, said, now):
            results.append(said)
        else:
            connection.execute("INSERT INTO devices VALUES (?, ?, ?)", (*new, now))
            results.append(new)
    return results


def isKnown(connection: Connection, requests: Sequence[tuple[Identity, float]]) -> list[bool]:
    """
    See L{IRegistrations.isKnown}.
    """
    return [_isKnown(connection, identity, now) for identity, now in requests]


def secret(connection: Connection, new: Sequence[bytes]) -> list[bytes]:
    """
    See L{IRegistrations.secret}.

    @param new: what to take if there is none yet.
    """
    connection.execute("INSERT OR IGNORE INTO secrets VALUES ('signing', ?)", (new[0],))
    value = connection.execute("SELECT value FROM secrets WHERE name = 'signing'").fetchone()[0]
    return [value] * len(new)


def register(
    connection: Connection, requests: Sequence[tuple[Identity, Application, str, float]]
) -> list[str | UnknownDevice | TooManyRegistrations]:
    """
    See L{IRegistrations.register}.

    @param requests: with the token to take if there is none yet, and the time.
    """
    results: list[str | UnknownDevice | TooManyRegistrations] = []
    for identity, application, token, now in requests:
        if not _isKnown(connection, identity, now):
            results.append(UnknownDevice("no device has checked in with this identity"))
            continue
        app = (identity.android_id, application.category, application.senderID, application.subtype)
        row = connection.execute(
            "SELECT token FROM registrations WHERE android_id = ? AND category = ? AND sender_id = ? "
            "AND subtype = ? AND stands_on IS NULL",
            app,
        ).fetchone()
        if row is not None:
            results.append(row[0])
            continue
        (count,) = connection.execute(
            "SELECT count(*) FROM registrations WHERE android_id = ?", (identity.android_id,)
        ).fetchone()
        if count >= REGISTRATION_LIMIT:
            results.append(TooManyRegistrations(f"a device may have {REGISTRATION_LIMIT} registrations"))
            continue
        connection.execute(
            "INSERT INTO registrations (token, android_id, category, sender_id, subtype) "
            "VALUES (?, ?, ?, ?, ?)",
            (token, *app),
        )
        results.append(token)
    return results


def registerWebPush(
    connection: Connection, requests: Sequence[tuple[str, str, WebPushKeys, str]]
) -> list[str | UnknownToken | TooManyRegistrations]:
    """
    See L{IRegistrations.registerWebPush}.

    @param requests: with the token to take if there is none yet.
    """
    results: list[str | UnknownToken | TooManyRegistrations] = []
    for below, senderID, keys, token in requests:
        found = findRegistration(connection, below)
        if found is None or found[1].keys is not None:
            results.append(UnknownToken("there is no such registration"))
            continue
        number, registration = found
        row = connection.execute(
            "SELECT number, token FROM registrations WHERE stands_on = ? AND sender_id = ?",
            (number, senderID),
        ).fetchone()
        if row is not None:
            connection.execute(
                "UPDATE registrations SET p256dh = ?, auth = ? WHERE number = ?",
                (keys.p256dh, keys.auth, row[0]),
            )
            results.append(row[1])
            continue
        (count,) = connection.execute(
            "SELECT count(*) FROM registrations WHERE android_id = ?", (registration.android_id,)
        ).fetchone()
        if count >= REGISTRATION_LIMIT:
            results.append(TooManyRegistrations(f"a device may have {REGISTRATION_LIMIT} registrations"))
            continue
        connection.execute(
            f"INSERT INTO registrations ({_COLUMNS}, stands_on) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                token,
                registration.android_id,
                registration.application.category,
                senderID,
                registration.application.subtype,
                keys.p256dh,
                keys.auth,
                number,
            ),
        )
        results.append(token)
    return results


def _removeAll(connection: Connection, numbers: Sequence[int]) -> None:
    """
    Remove registrations, and all that hangs on them.
    """
    for number in numbers:
        # An index finds the mails of an app; there is none of registrations, which
        # would be one more to keep up to date for each message.
        connection.execute(
            "DELETE FROM mail WHERE (android_id, category) = "
            "(SELECT android_id, category FROM registrations WHERE number = ?) AND registration = ?",
            (number, number),
        )
        standing = connection.execute(
            "SELECT number FROM registrations WHERE stands_on = ?", (number,)
        ).fetchall()
        _removeAll(connection, [each for (each,) in standing])
        connection.execute("DELETE FROM subscriptions WHERE registration = ?", (number,))
        groups.leaveAll(connection, number)
        connection.execute("DELETE FROM registrations WHERE number = ?", (number,))


def unregister(
    connection: Connection, requests: Sequence[tuple[Identity, str, str | None, str, float]]
) -> list[int | UnknownDevice]:
    """
    See L{IRegistrations.unregister}.
    """
    results: list[int | UnknownDevice] = []
    for identity, category, senderID, subtype, now in requests:
        if not _isKnown(connection, identity, now):
            results.append(UnknownDevice("no device has checked in with this identity"))
            continue
        rows = connection.execute(
            "SELECT number FROM registrations WHERE android_id = ? AND category = ? AND subtype = ? "
            "AND stands_on IS NULL AND (? IS NULL OR sender_id = ?)",
            (identity.android_id, category, subtype, senderID, senderID),
        ).fetchall()
        _removeAll(connection, [number for (number,) in rows])
        results.append(len(rows))
    return results


def remove(connection: Connection, tokens: Sequence[str]) -> list[bool]:
    """
    See L{IRegistrations.remove}.
    """
    results = []
    for token in tokens:
        found = findRegistration(connection, token)
        if found is not None:
            _removeAll(connection, [found[0]])
        results.append(found is not None)
    return results


def lookUp(connection: Connection, tokens: Sequence[str]) -> list[Registration | None]:
    """
    See L{IRegistrations.lookUp}.
    """
    found = [findRegistration(connection, token) for token in tokens]
    return [None if each is None else each[1] for each in found]


def tokenOf(connection: Connection, apps: Sequence[tuple[int, str, str]]) -> list[str | None]:
    """
    See L{IRegistrations.tokenOf}.
    """
    results = []
    for app in apps:
        row = connection.execute(
            "SELECT token FROM registrations WHERE android_id = ? AND category = ? AND sender_id = ? "
            "ORDER BY number DESC LIMIT 1",
            app,
        ).fetchone()
        results.append(None if row is None else row[0])
    return results


def _mayChange(connection: Connection, token: str, senderID: str | None) -> tuple[int | None, str | None]:
    """
    The number of a registration whose topics somebody wants to change.

    @return: that, or what is wrong.
    """
    if not looksLikeToken(token):
        return None, "INVALID_ARGUMENT"
    found = findRegistration(connection, token)
    if found is None:
        return None, "NOT_FOUND"
    if senderID not in (None, found[1].application.senderID):
        return None, "PERMISSION_DENIED"
    return found[0], None


def _isSubscribed(connection: Connection, number: int | None, name: str) -> bool:
    """
    Whether a registration is subscribed to a topic.
    """
    row = connection.execute(
        "SELECT 1 FROM subscriptions WHERE topic = ? AND registration = ?", (name.lower(), number)
    ).fetchone()
    return row is not None


def subscribe(
    connection: Connection, requests: Sequence[tuple[list[str], str, str | None, float]]
) -> list[list[str | None]]:
    """
    See L{IRegistrations.subscribe}.
    """
    results = []
    for tokens, topic, senderID, now in requests:
        name = topic.removeprefix("/topics/")
        result = []
        for token in tokens:
            number, error = _mayChange(connection, token, senderID)
            if error is None:
                (count,) = connection.execute(
                    "SELECT count(*) FROM subscriptions WHERE registration = ?", (number,)
                ).fetchone()
                if count >= TOPIC_LIMIT and not _isSubscribed(connection, number, name):
                    error = "TOO_MANY_TOPICS"
                else:
                    # Letters of either case are the same, as in a condition.
                    connection.execute(
                        "INSERT OR IGNORE INTO subscriptions VALUES (?, ?, ?, ?)",
                        (name.lower(), number, name, now),
                    )
            result.append(error)
        results.append(result)
    return results


def unsubscribe(
    connection: Connection, requests: Sequence[tuple[list[str], str, str | None]]
) -> list[list[str | None]]:
    """
    See L{IRegistrations.unsubscribe}.
    """
    results = []
    for tokens, topic, senderID in requests:
        result = []
        for token in tokens:
            number, error = _mayChange(connection, token, senderID)
            if error is None:
                connection.execute(
                    "DELETE FROM subscriptions WHERE topic = ? AND registration = ?",
                    (topic.removeprefix("/topics/").lower(), number),
                )
            result.append(error)
        results.append(result)
    return results


def topicsOf(connection: Connection, tokens: Sequence[str]) -> list[dict[str, float]]:
    """
    See L{IRegistrations.topicsOf}.
    """
    return [
        dict(
            connection.execute(
                "SELECT name, since FROM subscriptions WHERE registration = "
                "(SELECT number FROM registrations WHERE token = ?) ORDER BY name",
                (token,),
            ).fetchall()
        )
        for token in tokens
    ]


def forgetDevices(connection: Connection, before: float, limit: int) -> int:
    """
    Forget devices that have not been seen for long, and what is registered on
    them.

    @return: how many.
    """
    rows = connection.execute(
        "SELECT android_id FROM devices WHERE seen < ? ORDER BY seen LIMIT ?", (before, limit)
    ).fetchall()
    for row in rows:
        numbers = connection.execute(
            "SELECT number FROM registrations WHERE android_id = ? AND stands_on IS NULL", row
        ).fetchall()
        _removeAll(connection, [number for (number,) in numbers])
        connection.execute("DELETE FROM devices WHERE android_id = ?", row)
    return len(rows)


@implementer(IRegistrations)
class SQLRegistrations:
    """
    The registrations of a store.
    """

    def __init__(
        self, commits: Commits, seconds: Callable[[], float], randomBytes: Callable[[int], bytes] = os.urandom
    ) -> None:
        self._do = commits.do
        self._seconds = seconds
        self._randomBytes = randomBytes

    def _newToken(self) -> str:
        """
        A token: see L{looksLikeToken}.
        """

        def characters(count: int) -> str:
            return urlsafe_b64encode(self._randomBytes(count * 3 // 4 + 1)).decode()[:count]

        return f"{characters(22)}:APA91b{characters(134)}"

    def _number(self) -> int:
        """
        A part of an identity.
        """
        return int.from_bytes(self._randomBytes(8), "big") % _BITS + 1

    def checkIn(self, identity: Identity | None) -> Deferred[Identity]:
        """
        See L{IRegistrations.checkIn}.
        """
        return self._do(checkIn, (identity, Identity(self._number(), self._number()), self._seconds()))

    def isKnown(self, identity: Identity) -> Deferred[bool]:
        """
        See L{IRegistrations.isKnown}.
        """
        return self._do(isKnown, (identity, self._seconds()))

    def secret(self) -> Deferred[bytes]:
        """
        See L{IRegistrations.secret}.
        """
        return self._do(secret, self._randomBytes(32))

    def register(self, identity: Identity, application: Application) -> Deferred[str]:
        """
        See L{IRegistrations.register}.
        """
        return self._do(register, (identity, application, self._newToken(), self._seconds()))

    def registerWebPush(self, token: str, senderID: str, keys: WebPushKeys) -> Deferred[str]:
        """
        See L{IRegistrations.registerWebPush}.
        """
        return self._do(registerWebPush, (token, senderID, keys, self._newToken()))

    def unregister(
        self, identity: Identity, category: str, senderID: str | None, subtype: str
    ) -> Deferred[int]:
        """
        See L{IRegistrations.unregister}.
        """
        return self._do(unregister, (identity, category, senderID, subtype, self._seconds()))

    def remove(self, token: str) -> Deferred[bool]:
        """
        See L{IRegistrations.remove}.
        """
        return self._do(remove, token)

    def lookUp(self, token: str) -> Deferred[Registration | None]:
        """
        See L{IRegistrations.lookUp}.
        """
        return self._do(lookUp, token)

    def tokenOf(self, android_id: int, category: str, senderID: str) -> Deferred[str | None]:
        """
        See L{IRegistrations.tokenOf}.
        """
        return self._do(tokenOf, (android_id, category, senderID))

    def subscribe(
        self, tokens: list[str], topic: str, senderID: str | None = None
    ) -> Deferred[list[str | None]]:
        """
        See L{IRegistrations.subscribe}.
        """
        return self._do(subscribe, (tokens, topic, senderID, self._seconds()))

    def unsubscribe(
        self, tokens: list[str], topic: str, senderID: str | None = None
    ) -> Deferred[list[str | None]]:
        """
        See L{IRegistrations.unsubscribe}.
        """
        return self._do(unsubscribe, (tokens, topic, senderID))

    def topicsOf(self, token: str) -> Deferred[dict[str, float]]:
        """
        See L{IRegistrations.topicsOf}.
        """
        return self._do(topicsOf, token)

    def createGroup(self, senderID: str, name: str, tokens: list[str]) -> Deferred[Group]:
        """
        See L{IRegistrations.createGroup}.
        """
        key = urlsafe_b64encode(self._randomBytes(96)).decode()
        return self._do(groups.create, (senderID, f"APA91b{key}", name, tokens))

    def addToGroup(
        self, senderID: str, notification_key: str, name: str, tokens: list[str]
    ) -> Deferred[Group]:
        """
        See L{IRegistrations.addToGroup}.
        """
        return self._do(groups.add, (senderID, notification_key, name, tokens))

    def removeFromGroup(
        self, senderID: str, notification_key: str, name: str, tokens: list[str]
    ) -> Deferred[Group]:
        """
        See L{IRegistrations.removeFromGroup}.
        """
        return self._do(groups.remove, (senderID, notification_key, name, tokens))

    def findGroup(self, senderID: str, name: str) -> Deferred[Group | None]:
        """
        See L{IRegistrations.findGroup}.
        """
        return self._do(groups.find, (senderID, name))
