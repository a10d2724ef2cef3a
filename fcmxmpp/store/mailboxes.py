"""
What waits for devices, in an SQLite database.

Each operation is a function of the connection and of the arguments of all who
want it done in this transaction: see L{fcmxmpp.store.groupcommit}.  To take a
message over for one device costs three looks into indexes and an insert into
five trees; to forget it the same again.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from itertools import chain
from typing import Any

from msgspec import Struct
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer

from fcmxmpp import condition
from fcmxmpp.errors import MalformedPayload, NotSendable
from fcmxmpp.interfaces import IMailboxes
from fcmxmpp.messages import MAX_DOWNSTREAM_TTL, DownstreamMessage
from fcmxmpp.registrations import (
    APP_LIMIT,
    COLLAPSE_KEYS,
    CONNECTED_LIMIT,
    Application,
    Mail,
    Posted,
    Registration,
    WebPushKeys,
    looksLikeToken,
)
from fcmxmpp.store import groups
from fcmxmpp.store.bodies import encodeBody, readDownstream
from fcmxmpp.store.database import Connection, delete, inChunks, insert, lastNumber, marks
from fcmxmpp.store.registrations import Commits, findRegistration, findRegistrations, registrationOf


__all__ = ["SQLMailboxes", "forgetExpired"]

_log = Logger()

#: What a mail is: of an app server, the news that others were dropped, or other news
#: of the connection server.
_MESSAGE, _DELETED, _NEWS = 0, 1, 2
#: Seconds that a device has to fetch the news that messages were dropped.
_NEWS_TTL = MAX_DOWNSTREAM_TTL
#: Seconds in which a message to a topic that is for now or never is made mails of.
_NOW = 60.0
#: From how many messages on statements for all of them are fewer.
FEW = 3
_MAILS = (
    "SELECT mail.number, persistent_id, mail.sender_id, topic, posted, expires, CAST(body AS BLOB), "
    "token, registrations.android_id, registrations.category, registrations.sender_id, subtype, "
    "p256dh, auth "
    "FROM mail JOIN registrations ON registrations.number = mail.registration"
)
_COLUMNS = (
    "android_id, registration, category, kind, sender_id, topic, message_id, collapse_key, persistent_id, "
    "posted, expires, body"
)


class _Request(Struct, frozen=True):
    """
    What is to be posted.

    @ivar body: the message, encoded.
    @ivar now: the time, in seconds since 1970.
    @ivar nonce: random, for the names of mails.
    @ivar connected: see L{IMailboxes.connected}.
    """

    senderID: str
    message: DownstreamMessage
    body: bytes
    now: float
    nonce: str
    connected: set[int]
    topic: str | None = None

    @property
    def expires(self) -> float:
        """
        Until when the message is of use.
        """
        ttl = self.message.time_to_live
        return self.now + (MAX_DOWNSTREAM_TTL if ttl is None else ttl)


def post(connection: Connection, requests: Sequence[_Request]) -> list[Posted]:
    """
    See L{IMailboxes.post}.
    """
    found = findRegistrations(connection, [request.message.to for request in requests if request.message.to])
    results: list[Posted] = []
    plain: list[tuple[_Request, int, Registration]] = []
    for request in requests:
        registered = found.get(request.message.to or "")
        if registered is not None and _isPlain(request, registered[1]):
            plain.append((request, *registered))
            continue
        # In the order they came: a device that gets a later one gets no earlier one.
        results += _postPlain(connection, plain)
        plain = []
        results.append(_post(connection, request, registered))
    return results + _postPlain(connection, plain)


def _isPlain(request: _Request, registration: Registration) -> bool:
    """
    Whether a message is for a mailbox, and takes nobody's place.
    """
    message = request.message
    return (
        message.time_to_live != 0
        and not message.dry_run
        and message.collapse_key is None
        and registration.application.senderID == request.senderID
    )


def _postPlain(connection: Connection, plain: Sequence[tuple[_Request, int, Registration]]) -> list[Posted]:
    """
    Take over messages that are L{_isPlain}: in few statements, if there is room for
    all of them and none is there already.
    """
    apps = Counter((each.android_id, each.application.category) for _, _, each in plain)
    names = {
        (each.android_id, each.application.category, request.message.message_id) for request, _, each in plain
    }
    if len(plain) < FEW or len(names) < len(plain) or not _isRoom(connection, names, max(apps.values())):
        return [_postTo(connection, *each) for each in plain]
    last = lastNumber(connection, "mail")
    rows, results = [], []
    for number, (request, registrationNumber, registration) in enumerate(plain, last + 1):
        name = _name(request.now, request.nonce, registrationNumber)
        rows.append((number, *_row(request, registrationNumber, name, registration)))
        results.append(Posted(mails=[_mail(request, number, name, registration)]))
    insert(connection, f"mail (number, {_COLUMNS})", rows)
    return results


def _isRoom(connection: Connection, names: Collection[tuple[int, str, str | None]], more: int) -> bool:
    """
    Whether each app has room for so many more messages, and has none of these.

    @param names: devices, apps on them, and message_ids.
    """
    for chunk in inChunks(list(names)):
        most, isThere = connection.execute(
            f"WITH wanted (device, app, name) AS (VALUES {','.join(['(?, ?, ?)'] * len(chunk))}) SELECT "
            "max((SELECT count(*) FROM mail WHERE android_id = device AND category = app AND kind = 0)), "
            "max(EXISTS (SELECT 1 FROM mail WHERE android_id = device AND category = app AND kind = 0 "
            "AND message_id = name)) FROM wanted",
            list(chain.from_iterable(chunk)),
        ).fetchone()
        if isThere or most + more > min(APP_LIMIT, CONNECTED_LIMIT):
            return False
    return True


def _post(connection: Connection, request: _Request, found: tuple[int, Registration] | None) -> Posted:
    """
    Take one message over.

    @param found: the registration that it is for, if it is for one, and its number.
    """
    message = request.message
    to = message.to or ""
    if message.condition is not None or to.startswith("/topics/"):
        if not message.dry_run:
            # It is spread a little later than now.
            expires = request.now + _NOW if message.time_to_live == 0 else request.expires
            connection.execute(
                "INSERT INTO broadcasts (sender_id, topic, condition, posted, expires, nonce, body) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    request.senderID,
                    to or None,
                    message.condition,
                    request.now,
                    expires,
                    request.nonce,
                    request.body,
                ),
            )
        return Posted()
    if found is not None:
        return _postTo(connection, request, *found)
    group = groups.membersOf(connection, to)
    if group is not None:
        return _postToGroup(connection, request, *group)
    if looksLikeToken(to):
        return Posted(error="DEVICE_UNREGISTERED", description="The app is gone from the device")
    return Posted(error="BAD_REGISTRATION", description=f"Invalid token on 'to' field: {to}")


def _postToGroup(connection: Connection, request: _Request, senderID: str, tokens: list[str]) -> Posted:
    """
    Take a message over for each member of a device group.
    """
    if senderID != request.senderID:
        return Posted(error="SENDER_ID_MISMATCH", description="The device group belongs to another sender")
    mails: list[Mail] = []
    failed = []
    for token in tokens:
        found = findRegistration(connection, token)
        assert found is not None
        posted = _postTo(connection, request, *found)
        mails += posted.mails
        if posted.error is not None:
            failed.append(token)
    return Posted(mails=mails, success=len(tokens) - len(failed), failed=failed)


def _postTo(connection: Connection, request: _Request, number: int, registration: Registration) -> Posted:
    """
    Take a message over for one registration.
    """
    message = request.message
    application = registration.application
    if application.senderID != request.senderID:
        return Posted(error="SENDER_ID_MISMATCH", description="The token belongs to another sender")
    app = (registration.android_id, application.category)
    isConnected = registration.android_id in request.connected
    if message.time_to_live == 0:
        if message.dry_run or not isConnected:
            return Posted()
        name = _name(request.now, request.nonce, number)
        return Posted(mails=[_mail(request, 0, name, registration)])
    (count,) = connection.execute(
        "SELECT count(*) FROM mail WHERE android_id = ? AND category = ? AND kind = 0", app
    ).fetchone()
    if count >= (CONNECTED_LIMIT if isConnected else APP_LIMIT):
        # What is of no use any more is there until it is swept, and nobody is to
        # be refused or dropped for it.
        count -= connection.execute(
            "DELETE FROM mail WHERE android_id = ? AND category = ? AND kind = 0 AND expires <= ?",
            (*app, request.now),
        ).rowcount
    if isConnected and count >= CONNECTED_LIMIT:
        return Posted(
            error="DEVICE_MESSAGE_RATE_EXCEEDED", description=f"{count} messages wait for the app already"
        )
    if message.dry_run:
        return Posted()
    if count:
        same = connection.execute(
            "SELECT number FROM mail WHERE android_id = ? AND category = ? AND kind = 0 AND message_id = ? "
            "AND registration = ? AND sender_id = ? AND expires > ?",
            (*app, message.message_id, number, request.senderID, request.now),
        ).fetchone()
        if same is not None:
            # Its ACK was lost, and it is sent again.
            return Posted()
        if message.collapse_key is not None:
            count -= _collapse(connection, app, message.collapse_key, request.now)
    mails = []
    if not isConnected and count >= APP_LIMIT:
        mails.append(_dropAll(connection, request, number, registration))
    mails.append(_insert(connection, request, number, registration))
    return Posted(mails=mails)


def _collapse(connection: Connection, app: tuple[int, str], key: str, now: float) -> int:
    """
    Make room for a message with a collapse key.

    @return: how many others are gone.
    """
    # There is one for each of a few keys.
    expired = connection.execute(
        "DELETE FROM mail WHERE android_id = ? AND category = ? AND collapse_key IS NOT NULL "
        "AND expires <= ?",
        (*app, now),
    ).rowcount
    rows = connection.execute(
        "SELECT collapse_key, min(number) FROM mail WHERE android_id = ? AND category = ? "
        "AND collapse_key IS NOT NULL GROUP BY collapse_key ORDER BY min(number)",
        app,
    ).fetchall()
    keys = [each for each, _ in rows]
    if key not in keys:
        if len(keys) < COLLAPSE_KEYS:
            return expired
        key = keys[0]
    dropped = connection.execute(
        "DELETE FROM mail WHERE android_id = ? AND category = ? AND collapse_key = ?", (*app, key)
    ).rowcount
    return expired + dropped


def _dropAll(connection: Connection, request: _Request, number: int, registration: Registration) -> Mail:
    """
    Drop what waits for an app, and have it told how many that were.
    """
    app = (registration.android_id, registration.application.category)
    total = 0
    for each, kind, body in connection.execute(
        "SELECT number, kind, CASE WHEN kind = 1 THEN CAST(body AS BLOB) END FROM mail "
        "WHERE android_id = ? AND category = ? AND kind < 2",
        app,
    ).fetchall():
        total += 1 if kind == _MESSAGE else _dropped(each, body)
    connection.execute("DELETE FROM mail WHERE android_id = ? AND category = ? AND kind < 2", app)
    data = {"message_type": "deleted_messages", "total_deleted": str(total)}
    return _news(
        connection, request.now, number, registration, request.senderID, None, data, _NEWS_TTL, _DELETED
    )


def _dropped(number: int, body: bytes) -> int:
    """
    How many messages the news of that is about.
    """
    try:
        return int(readDownstream(body).data["total_deleted"])
    except (MalformedPayload, KeyError, ValueError) as error:
        # The app is told of too few then, which is better than that nothing can be
        # sent to it any more.
        _log.error(
            "how many messages were dropped cannot be read: number {number}: {reason}",
            number=number,
            reason=getattr(error, "reason", "no number"),
        )
        return 0


def _name(now: float, nonce: str, number: int) -> str:
    """
    What a device knows a mail by, in the shape of Google's.

    @param number: of the registration, because two apps of one device may be in one
        group, or subscribed to one topic.
    """
    return f"0:{int(now * 1_000_000)}%{nonce}{number:08x}"


def _mail(request: _Request, number: int, name: str, registration: Registration) -> Mail:
    """
    A message on its way.

    @param number: of the mail; 0 for what is in no mailbox.
    """
    return Mail(
        number=number,
        persistent_id=name,
        registration=registration,
        senderID=request.senderID,
        topic=request.topic,
        message=request.message,
        posted=request.now,
        expires=request.expires,
    )


def _insert(connection: Connection, request: _Request, number: int, registration: Registration) -> Mail:
    """
    Put a message into a mailbox.
    """
    name = _name(request.now, request.nonce, number)
    row = _row(request, number, name, registration)
    cursor = connection.execute(f"INSERT INTO mail ({_COLUMNS}) VALUES ({marks(row)})", row)
    assert cursor.lastrowid is not None
    return _mail(request, cursor.lastrowid, name, registration)


def _row(request: _Request, number: int, name: str, registration: Registration) -> tuple[object, ...]:
    """
    A message as it stands in a mailbox.
    """
    return (
        registration.android_id,
        number,
        registration.application.category,
        _MESSAGE,
        request.senderID,
        request.topic,
        request.message.message_id,
        request.message.collapse_key,
        name,
        request.now,
        request.expires,
        request.body,
    )


def _news(
    connection: Connection,
    now: float,
    number: int,
    registration: Registration,
    senderID: str,
    persistent_id: str | None,
    data: dict[str, str],
    ttl: float,
    kind: int,
) -> Mail:
    """
    Put what the connection server itself says into a mailbox.
    """
    message = DownstreamMessage(data=data)
    if persistent_id is None:
        persistent_id = _name(now, data["message_type"][:1], number)
    cursor = connection.execute(
        f"INSERT INTO mail ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, NULL, NULL, NULL, ?, ?, ?, ?)",
        (
            registration.android_id,
            number,
            registration.application.category,
            kind,
            senderID,
            persistent_id,
            now,
            now + ttl,
            encodeBody(message),
        ),
    )
    assert cursor.lastrowid is not None
    return Mail(
        number=cursor.lastrowid,
        persistent_id=persistent_id,
        registration=registration,
        senderID=senderID,
        message=message,
        posted=now,
        expires=now + ttl,
    )


def spread(
    connection: Connection, requests: Sequence[tuple[int, float, set[int]]]
) -> list[tuple[list[Mail], bool]]:
    """
    See L{IMailboxes.spread}.

    @param requests: how many mails, the time, and who is connected.
    """
    return [_spread(connection, *request) for request in requests]


def _spread(connection: Connection, limit: int, now: float, connected: set[int]) -> tuple[list[Mail], bool]:
    """
    Go on with the oldest message to a topic or condition.
    """
    row = connection.execute(
        "SELECT number, sender_id, topic, condition, posted, expires, nonce, last, CAST(body AS BLOB) "
        "FROM broadcasts ORDER BY number LIMIT 1"
    ).fetchone()
    if row is None:
        return [], False
    number, senderID, topic, wanted, posted, expires, nonce, last, body = row
    try:
        message = readDownstream(body)
        parsed = None if wanted is None else condition.parse(wanted)
    except (MalformedPayload, NotSendable) as error:
        _log.error(
            "a message to a topic cannot be read: number {number}: {reason}",
            number=number,
            reason=error.reason,
        )
        connection.execute("DELETE FROM broadcasts WHERE number = ?", (number,))
        return [], True
    topics = (topic.removeprefix("/topics/").lower(),) if parsed is None else parsed.topics
    request = _Request(senderID, message, body, posted, nonce, connected, topic)
    # The next of each topic, where its tree has them in order: all topics in one, all
    # that is left of them would be sorted for each step.
    of = (
        "SELECT registration FROM subscriptions WHERE topic = ? AND registration > ? "
        "ORDER BY registration LIMIT ?"
    )
    candidates = connection.execute(
        " UNION ".join([f"SELECT * FROM ({of})"] * len(topics)) + " ORDER BY registration LIMIT ?",
        (*chain.from_iterable((each, last, limit) for each in topics), limit),
    ).fetchall()
    mails: list[Mail] = []
    # One that says "not" is for those, too, who are in no topic of it: nobody can
    # mean all devices of the world, so it is for those who are in one of them.
    for (each,) in candidates if expires > now else ():
        found = connection.execute(
            "SELECT token, android_id, category, sender_id, subtype, p256dh, auth FROM registrations "
            "WHERE number = ?",
            (each,),
        ).fetchone()
        registration = registrationOf(found)
        if registration.application.senderID != senderID:
            continue
        if parsed is not None:
            has = {
                name
                for (name,) in connection.execute(
                    f"SELECT topic FROM subscriptions WHERE registration = ? AND topic IN ({marks(topics)})",
                    (each, *topics),
                )
            }
            if not parsed.matches(has):
                continue
        mails += _postTo(connection, request, each, registration).mails
    if len(candidates) < limit or expires <= now:
        connection.execute("DELETE FROM broadcasts WHERE number = ?", (number,))
        isMore = connection.execute("SELECT 1 FROM broadcasts LIMIT 1").fetchone() is not None
        return mails, isMore
    connection.execute("UPDATE broadcasts SET last = ? WHERE number = ?", (candidates[-1][0], number))
    return mails, True


def notify(
    connection: Connection, requests: Sequence[tuple[int, str, str, str, dict[str, str], int, float]]
) -> list[Mail | None]:
    """
    See L{IMailboxes.notify}.
    """
    results: list[Mail | None] = []
    for android_id, category, senderID, persistent_id, data, ttl, now in requests:
        row = connection.execute(
            "SELECT number, token, android_id, category, sender_id, subtype, p256dh, auth FROM registrations "
            "WHERE android_id = ? AND category = ? AND stands_on IS NULL "
            "ORDER BY sender_id = ? DESC, number DESC LIMIT 1",
            (android_id, category, senderID),
        ).fetchone()
        if row is None:
            results.append(None)
        else:
            results.append(
                _news(
                    connection,
                    now,
                    row[0],
                    registrationOf(row[1:]),
                    senderID,
                    persistent_id,
                    data,
                    ttl,
                    _NEWS,
                )
            )
    return results


def load(connection: Connection, requests: Sequence[tuple[int, int, int, float]]) -> list[list[Mail]]:
    """
    See L{IMailboxes.load}.
    """
    return [_load(connection, *request) for request in requests]


def _load(connection: Connection, android_id: int, after: int, limit: int, now: float) -> list[Mail]:
    """
    What waits for one device.
    """
    rows = connection.execute(
        f"{_MAILS} WHERE mail.android_id = ? AND mail.number > ? AND expires > ? "
        "ORDER BY mail.number LIMIT ?",
        (android_id, after, now, limit),
    ).fetchall()
    return [_read(row) for row in rows]


def _read(row: Sequence[Any]) -> Mail:
    """
    What a row is.
    """
    number, persistent_id, senderID, topic, posted, expires, body, token, *app, p256dh, auth = row
    android_id, category, registered, subtype = app
    try:
        message = readDownstream(body)
    except MalformedPayload as error:
        # Its app is better told of nothing than not told of all that comes after.
        _log.error(
            "what waits for a device cannot be read: number {number}: {reason}",
            number=number,
            reason=error.reason,
        )
        message = DownstreamMessage()
    return Mail(
        number=number,
        persistent_id=persistent_id,
        registration=Registration(
            token=token,
            android_id=android_id,
            application=Application(category=category, senderID=registered, subtype=subtype),
            keys=None if p256dh is None else WebPushKeys(p256dh=p256dh, auth=auth),
        ),
        senderID=senderID,
        topic=topic,
        message=message,
        posted=posted,
        expires=expires,
    )


def forget(connection: Connection, mails: Sequence[list[int]]) -> list[None]:
    """
    See L{IMailboxes.delivered}.
    """
    delete(connection, "mail WHERE", [number for numbers in mails for number in numbers])
    return [None] * len(mails)


def confirm(connection: Connection, requests: Sequence[tuple[int, list[str]]]) -> list[list[Mail]]:
    """
    See L{IMailboxes.confirm}.

    What has expired since it was delivered was delivered all the same.
    """
    results = []
    for android_id, persistent_ids in requests:
        named = set(persistent_ids)
        there = [
            number
            for number, name in connection.execute(
                "SELECT number, persistent_id FROM mail WHERE android_id = ? ORDER BY number", (android_id,)
            ).fetchall()
            if name in named
        ]
        mails = []
        for chunk in inChunks(there):
            rows = connection.execute(
                f"{_MAILS} WHERE mail.number IN ({marks(chunk)}) ORDER BY mail.number", chunk
            ).fetchall()
            mails += [_read(row) for row in rows]
        delete(connection, "mail WHERE", there)
        results.append(mails)
    return results


def waiting(connection: Connection, devices: Sequence[int]) -> list[int]:
    """
    See L{IMailboxes.waiting}.
    """
    return [
        connection.execute("SELECT count(*) FROM mail WHERE android_id = ?", (android_id,)).fetchone()[0]
        for android_id in devices
    ]


def forgetExpired(connection: Connection, now: float, limit: int) -> int:
    """
    Take away what is of no use any more.

    @return: how many mails.
    """
    return connection.execute(
        "DELETE FROM mail WHERE number IN "
        "(SELECT number FROM mail WHERE expires < ? ORDER BY expires LIMIT ?)",
        (now, limit),
    ).rowcount


@implementer(IMailboxes)
class SQLMailboxes:
    """
    The mailboxes of a store.
    """

    def __init__(
        self, commits: Commits, seconds: Callable[[], float], randomBytes: Callable[[int], bytes] = os.urandom
    ) -> None:
        self._do = commits.do
        self._seconds = seconds
        self._randomBytes = randomBytes
        # Looked at by the store's thread as well: a set's "in" is one step for it.
        self.connected: set[int] = set()

    def post(self, senderID: str, message: DownstreamMessage) -> Deferred[Posted]:
        """
        See L{IMailboxes.post}.
        """
        nonce = self._randomBytes(4).hex()
        return self._do(
            post, _Request(senderID, message, encodeBody(message), self._seconds(), nonce, self.connected)
        )

    def spread(self, limit: int) -> Deferred[tuple[list[Mail], bool]]:
        """
        See L{IMailboxes.spread}.
        """
        return self._do(spread, (limit, self._seconds(), self.connected))

    def notify(
        self,
        android_id: int,
        category: str,
        senderID: str,
        persistent_id: str,
        data: dict[str, str],
        ttl: int,
    ) -> Deferred[Mail | None]:
        """
        See L{IMailboxes.notify}.
        """
        return self._do(notify, (android_id, category, senderID, persistent_id, data, ttl, self._seconds()))

    def load(self, android_id: int, after: int, limit: int) -> Deferred[list[Mail]]:
        """
        See L{IMailboxes.load}.
        """
        return self._do(load, (android_id, after, limit, self._seconds()))

    def delivered(self, numbers: list[int]) -> Deferred[None]:
        """
        See L{IMailboxes.delivered}.
        """
        return self._do(forget, numbers, urgent=False)

    def confirm(self, android_id: int, persistent_ids: list[str]) -> Deferred[list[Mail]]:
        """
        See L{IMailboxes.confirm}.
        """
        return self._do(confirm, (android_id, persistent_ids))

    def waiting(self, android_id: int) -> Deferred[int]:
        """
        See L{IMailboxes.waiting}.
        """
        return self._do(waiting, android_id)
