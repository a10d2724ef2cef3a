"""
Device groups, in an SQLite database: see L{fcmxmpp.store.registrations}.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fcmxmpp.errors import GroupRefused
from fcmxmpp.registrations import GROUP_LIMIT, Group
from fcmxmpp.store.database import Connection


__all__ = ["add", "create", "find", "leaveAll", "membersOf", "remove"]


def _group(connection: Connection, row: Sequence[Any]) -> tuple[int, Group]:
    """
    A group and its number.

    @param row: number, key, sender ID, name.
    """
    number, key, senderID, name = row
    members = connection.execute(
        "SELECT token FROM members JOIN registrations ON registrations.number = members.registration "
        "WHERE members.device_group = ? ORDER BY members.registration",
        (number,),
    ).fetchall()
    return number, Group(
        notification_key=key, senderID=senderID, name=name, members=[token for (token,) in members]
    )


def membersOf(connection: Connection, key: str) -> tuple[str, list[str]] | None:
    """
    The members of a group.

    @return: whose group it is, and their tokens; None if there is no such group.
    """
    row = connection.execute(
        "SELECT number, notification_key, sender_id, name FROM device_groups WHERE notification_key = ?",
        (key,),
    ).fetchone()
    if row is None:
        return None
    _, group = _group(connection, row)
    return group.senderID, group.members


def _numbers(connection: Connection, senderID: str, tokens: Sequence[str]) -> list[int]:
    """
    The numbers of those registrations that are this sender's.
    """
    numbers = []
    for token in tokens:
        row = connection.execute(
            "SELECT number FROM registrations WHERE token = ? AND sender_id = ?", (token, senderID)
        ).fetchone()
        if row is not None and row[0] not in numbers:
            numbers.append(row[0])
    return numbers


def _join(connection: Connection, group: int, senderID: str, tokens: Sequence[str]) -> GroupRefused | None:
    """
    Add members to a group.

    @return: what is wrong, if something is; then nothing was done.
    """
    numbers = _numbers(connection, senderID, tokens)
    if not numbers:
        return GroupRefused("no valid registration ids")
    there = {
        number
        for (number,) in connection.execute(
            "SELECT registration FROM members WHERE device_group = ?", (group,)
        )
    }
    if len(there | set(numbers)) > GROUP_LIMIT:
        return GroupRefused(f"a group has at most {GROUP_LIMIT} registration ids")
    connection.executemany(
        "INSERT OR IGNORE INTO members VALUES (?, ?)", [(group, number) for number in numbers]
    )
    return None


def create(
    connection: Connection, requests: Sequence[tuple[str, str, str, list[str]]]
) -> list[Group | GroupRefused]:
    """
    See L{IRegistrations.createGroup<fcmxmpp.interfaces.IRegistrations.createGroup>}.

    @param requests: sender ID, the new key, name, tokens.
    """
    results: list[Group | GroupRefused] = []
    for senderID, key, name, tokens in requests:
        row = connection.execute(
            "SELECT 1 FROM device_groups WHERE sender_id = ? AND name = ?", (senderID, name)
        ).fetchone()
        if row is not None:
            results.append(GroupRefused("notification_key already exists"))
            continue
        number = connection.execute(
            "INSERT INTO device_groups (notification_key, sender_id, name) VALUES (?, ?, ?)",
            (key, senderID, name),
        ).lastrowid
        assert number is not None
        refused = _join(connection, number, senderID, tokens)
        if refused is None:
            results.append(_group(connection, (number, key, senderID, name))[1])
        else:
            connection.execute("DELETE FROM device_groups WHERE number = ?", (number,))
            results.append(refused)
    return results


def _find(connection: Connection, senderID: str, key: str, name: str) -> tuple[int, str] | GroupRefused:
    """
    The group of a key and a name.
    """
    row = connection.execute(
        "SELECT number, name FROM device_groups WHERE notification_key = ? AND sender_id = ?", (key, senderID)
    ).fetchone()
    if row is None:
        return GroupRefused("notification_key not found")
    if name and row[1] != name:
        return GroupRefused("notification_key_name doesn't match the group name of the notification_key")
    return row[0], row[1]


def add(
    connection: Connection, requests: Sequence[tuple[str, str, str, list[str]]]
) -> list[Group | GroupRefused]:
    """
    See L{IRegistrations.addToGroup<fcmxmpp.interfaces.IRegistrations.addToGroup>}.
    """
    results: list[Group | GroupRefused] = []
    for senderID, key, name, tokens in requests:
        found = _find(connection, senderID, key, name)
        if isinstance(found, GroupRefused):
            results.append(found)
            continue
        refused = _join(connection, found[0], senderID, tokens)
        results.append(refused or _group(connection, (found[0], key, senderID, found[1]))[1])
    return results


def remove(
    connection: Connection, requests: Sequence[tuple[str, str, str, list[str]]]
) -> list[Group | GroupRefused]:
    """
    See L{IRegistrations.removeFromGroup<fcmxmpp.interfaces.IRegistrations.removeFromGroup>}.
    """
    results: list[Group | GroupRefused] = []
    for senderID, key, name, tokens in requests:
        found = _find(connection, senderID, key, name)
        if isinstance(found, GroupRefused):
            results.append(found)
            continue
        group, known = found
        for number in _numbers(connection, senderID, tokens):
            connection.execute(
                "DELETE FROM members WHERE device_group = ? AND registration = ?", (group, number)
            )
        _, left = _group(connection, (group, key, senderID, known))
        if not left.members:
            connection.execute("DELETE FROM device_groups WHERE number = ?", (group,))
        results.append(left)
    return results


def find(connection: Connection, requests: Sequence[tuple[str, str]]) -> list[Group | None]:
    """
    See L{IRegistrations.findGroup<fcmxmpp.interfaces.IRegistrations.findGroup>}.
    """
    results = []
    for request in requests:
        row = connection.execute(
            "SELECT number, notification_key, sender_id, name FROM device_groups "
            "WHERE sender_id = ? AND name = ?",
            request,
        ).fetchone()
        results.append(None if row is None else _group(connection, row)[1])
    return results


def leaveAll(connection: Connection, registration: int) -> None:
    """
    Take a registration out of its groups.
    """
    left = connection.execute(
        "SELECT device_group FROM members WHERE registration = ?", (registration,)
    ).fetchall()
    connection.execute("DELETE FROM members WHERE registration = ?", (registration,))
    connection.executemany(
        "DELETE FROM device_groups WHERE number = ? "
        "AND NOT EXISTS (SELECT 1 FROM members WHERE device_group = number)",
        left,
    )
