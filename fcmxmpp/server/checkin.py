"""
The check-in: a device asks who it is, and proves itself by the answer from then
on.
"""

from __future__ import annotations

import re
from typing import Any

from fcmxmpp.mcs import wire
from fcmxmpp.mcs.frames import UNREADABLE
from fcmxmpp.registrations import Identity
from fcmxmpp.server.http import Answer, Asked, Desk, Refused, Route, jsonAnswer


__all__ = ["routes"]

_LARGEST = 1 << 63
#: Bytes that a check-in may have: an Android device tells all that it can do.
_MAX_BODY = 64 * 1024
#: What a device tells us that we told it; nothing depends on it.
_VERSION_INFO = "fcmxmpp-1"


def routes(desk: Desk) -> list[Route]:
    """
    What is answered here.
    """

    async def checkIn(asked: Asked) -> Answer:
        # iOS sends JSON, whatever it calls it.
        isJSON = asked.body(_MAX_BODY)[:1] == b"{"
        return await (_json if isJSON else _protobuf)(desk, asked)

    return [("POST", re.compile("/checkin"), checkIn)]


def _identity(android_id: object, security_token: object) -> Identity | None:
    """
    Who a device says that it is, if that can be.
    """
    for number in (android_id, security_token):
        if not isinstance(number, int) or not 0 < number < _LARGEST:
            return None
    return Identity(android_id, security_token)  # type: ignore[arg-type]  # seen just now


async def _protobuf(desk: Desk, asked: Asked) -> Answer:
    """
    The check-in of Chrome, Android and all but iOS.
    """
    request = wire.CheckinRequest()
    try:
        request.ParseFromString(asked.body(_MAX_BODY))
    except UNREADABLE:
        raise Refused(400, "The body is no check-in") from None
    if not request.IsInitialized():
        raise Refused(400, "The body is no check-in")
    identity = await desk.registrations.checkIn(_identity(request.id, request.security_token))
    response = wire.CheckinResponse(
        stats_ok=True,
        time_msec=int(desk.seconds() * 1000),
        android_id=identity.android_id,
        security_token=identity.security_token,
        settings_diff=False,
        version_info=_VERSION_INFO,
    )
    return Answer(body=response.SerializeToString(), contentType="application/x-protobuffer")


async def _json(desk: Desk, asked: Asked) -> Answer:
    """
    The check-in of iOS.
    """
    request: dict[str, Any] = asked.json(_MAX_BODY)
    identity = await desk.registrations.checkIn(
        _identity(_number(request.get("id")), _number(request.get("security_token")))
    )
    return jsonAnswer(
        {
            "android_id": identity.android_id,
            "security_token": identity.security_token,
            "time_msec": int(desk.seconds() * 1000),
            "digest": "",
            "settings": [],
            "version_info": _VERSION_INFO,
            "stats_ok": True,
        }
    )


def _number(value: object) -> object:
    """
    A number that may be in digits.
    """
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return int(value)
    return value
