"""
Device groups, as app servers manage them.
"""

from __future__ import annotations

import re

from fcmxmpp.errors import GroupRefused
from fcmxmpp.registrations import GROUP_LIMIT
from fcmxmpp.server.http import Answer, Asked, Desk, Refused, Route, jsonAnswer


__all__ = ["routes"]

_LONGEST = 512


def routes(desk: Desk) -> list[Route]:
    """
    What is answered here.
    """

    async def sender(asked: Asked) -> str:
        senderID = asked.header("project_id")
        if not senderID:
            raise Refused(400, "The header project_id is missing: it has the sender ID")
        await desk.authorize(asked, senderID)
        return senderID

    async def change(asked: Asked) -> Answer:
        senderID = await sender(asked)
        request = asked.json()
        operation, name = request.get("operation"), request.get("notification_key_name", "")
        key, tokens = request.get("notification_key", ""), request.get("registration_ids")
        if not isinstance(name, str) or not isinstance(key, str) or len(name) > _LONGEST:
            raise Refused(400, "notification_key_name and notification_key have to be texts")
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise Refused(400, "registration_ids has to be a list of tokens")
        if len(tokens) > GROUP_LIMIT:
            raise Refused(400, f"a group has at most {GROUP_LIMIT} registration ids")
        registrations = desk.registrations
        try:
            if operation == "create" and name:
                group = await registrations.createGroup(senderID, name, tokens)
            elif operation == "add":
                group = await registrations.addToGroup(senderID, key, name, tokens)
            elif operation == "remove":
                group = await registrations.removeFromGroup(senderID, key, name, tokens)
            else:
                raise Refused(400, "operation has to be create (with a notification_key_name), add or remove")
        except GroupRefused as error:
            # As the legacy service did: no object.
            return jsonAnswer({"error": str(error)}, 400)
        return jsonAnswer({"notification_key": group.notification_key})

    async def find(asked: Asked) -> Answer:
        group = await desk.registrations.findGroup(await sender(asked), asked.query("notification_key_name"))
        if group is None:
            return jsonAnswer({"error": "notification_key not found"}, 400)
        return jsonAnswer({"notification_key": group.notification_key})

    path = re.compile("/(?:fcm|gcm)/notification")
    return [("POST", path, change), ("GET", path, find)]
