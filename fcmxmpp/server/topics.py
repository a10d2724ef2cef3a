"""
The Instance ID service: which topics registrations are subscribed to, as app
servers ask for it.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import Any, TypeGuard
from urllib.parse import unquote

from twisted.internet.defer import gatherResults

from fcmxmpp.condition import TOPIC_NAME
from fcmxmpp.registrations import Registration
from fcmxmpp.server.http import MAX_BATCH, Answer, Asked, Desk, Refused, Route, jsonAnswer


__all__ = ["routes"]

#: How many tokens one request may name.
BATCH = 1000
_TOPIC = re.compile(f"/topics/{TOPIC_NAME}")


def routes(desk: Desk) -> list[Route]:
    """
    What is answered here.
    """

    async def registrationOf(asked: Asked, token: str) -> Registration:
        senders = await desk.sendersOf(asked)
        registration = await desk.registrations.lookUp(unquote(token))
        if registration is None:
            raise Refused(404, "No information found about this instance id")
        if registration.application.senderID not in senders:
            raise Refused(403, "This instance id is another sender's")
        return registration

    async def change(asked: Asked, token: str, name: str, isAdded: bool) -> Answer:
        registration = await registrationOf(asked, token)
        topic = f"/topics/{unquote(name)}"
        if _TOPIC.fullmatch(topic) is None:
            raise Refused(400, "InvalidTopicName")
        change = desk.registrations.subscribe if isAdded else desk.registrations.unsubscribe
        (error,) = await change([registration.token], topic)
        if error is not None:
            raise Refused(400, error)
        return jsonAnswer({})

    async def add(asked: Asked, token: str, name: str) -> Answer:
        return await change(asked, token, name, True)

    async def remove(asked: Asked, token: str, name: str) -> Answer:
        return await change(asked, token, name, False)

    async def batch(asked: Asked, verb: str) -> Answer:
        senders = await desk.sendersOf(asked)
        request = asked.json(MAX_BATCH)
        topic, tokens = request.get("to"), request.get("registration_tokens")
        if not isinstance(topic, str) or _TOPIC.fullmatch(topic) is None:
            raise Refused(400, "to has to be /topics/NAME")
        if not _areTexts(tokens) or not 0 < len(tokens) <= BATCH:
            raise Refused(400, f"registration_tokens has to be a list of 1 to {BATCH} tokens")
        senderID = await _senderOf(desk, senders, tokens)
        change = desk.registrations.subscribe if verb == "Add" else desk.registrations.unsubscribe
        errors = await change(tokens, topic, senderID)
        return jsonAnswer({"results": [{} if error is None else {"error": error} for error in errors]})

    async def info(asked: Asked, token: str) -> Answer:
        registration = await registrationOf(asked, token)
        application = registration.application
        result: dict[str, Any] = {
            "application": application.category,
            "authorizedEntity": application.senderID,
            "platform": "WEBPUSH" if registration.keys is not None else "ANDROID",
        }
        if asked.query("details") == "true":
            topics = await desk.registrations.topicsOf(registration.token)
            if topics:
                result["rel"] = {
                    "topics": {name: {"addDate": _date(since)} for name, since in topics.items()}
                }
        return jsonAnswer(result)

    relation = "/iid/v1/([^/]{1,600})/rel/topics/([^/]{1,2700})"
    return [
        ("POST", re.compile(relation), add),
        ("DELETE", re.compile(relation), remove),
        ("POST", re.compile("/iid/v1:batch(Add|Remove)"), batch),
        ("GET", re.compile("/iid/info/([^/]{1,600})"), info),
    ]


def _areTexts(value: Any) -> TypeGuard[list[str]]:
    """
    Whether this is a list of texts.
    """
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


async def _senderOf(desk: Desk, senders: list[str], tokens: list[str]) -> str:
    """
    Which of several senders with the same key a batch is from: the one that the
    first token that has one of them is registered with.
    """
    if len(senders) > 1:
        for registration in await gatherResults(map(desk.registrations.lookUp, tokens)):
            if registration is not None and registration.application.senderID in senders:
                return registration.application.senderID
    return senders[0]


def _date(seconds: float) -> str:
    """
    A day, as the service says it.
    """
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d")
