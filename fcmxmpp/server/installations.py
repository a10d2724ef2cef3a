"""
Firebase Installations, and what Web Push subscriptions are registered with.

An installation is not kept: what it is given is signed, and says itself whose it
is.
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256
from typing import Any

import msgspec
from msgspec import Struct

from fcmxmpp.errors import TooManyRegistrations, UnknownToken
from fcmxmpp.mcs.webpush import checkKeys
from fcmxmpp.registrations import WebPushKeys
from fcmxmpp.server.http import Answer, Asked, Desk, Refused, Route, jsonAnswer


__all__ = ["routes"]

#: Seconds for which the token of an installation is good, as Google's.
LIFETIME = 604_800
_APP = re.compile(r"1:([0-9]{1,20}):[a-z]+:[0-9A-Za-z]{1,64}")
_HEADER = urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=").decode()
_SHORTEST = 4


class _Claim(Struct, kw_only=True, omit_defaults=True):
    """
    What a token says.

    @ivar use: C{"auth"} or C{"refresh"}.
    @ivar exp: until when it is good, in seconds since 1970; 0 is for ever.
    """

    use: str
    fid: str
    appId: str
    exp: int = 0


class _Seal:
    """
    Signs claims, and reads them.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def _signature(self, text: str) -> str:
        """
        The signature of a text.
        """
        digest = hmac.digest(self._secret, text.encode(), sha256)
        return urlsafe_b64encode(digest).rstrip(b"=").decode()

    def token(self, claim: _Claim) -> str:
        """
        A signed claim, in the shape of a JSON Web Token.
        """
        text = f"{_HEADER}.{urlsafe_b64encode(msgspec.json.encode(claim)).rstrip(b'=').decode()}"
        return f"{text}.{self._signature(text)}"

    def claim(self, token: str, use: str, now: float) -> _Claim:
        """
        What a token says.

        @raise Refused: if that is not signed, or too old, or for something else.
        """
        text, _, signature = token.rpartition(".")
        if token.isascii() and hmac.compare_digest(signature, self._signature(text)):
            body = text.partition(".")[2]
            claim = msgspec.json.decode(urlsafe_b64decode(body + "=" * (-len(body) % 4)), type=_Claim)
            if claim.use == use and (not claim.exp or claim.exp > now):
                return claim
        raise Refused(401, "The installation's token is not valid (any more)")


def routes(desk: Desk) -> list[Route]:
    """
    What is answered here.
    """

    async def seal() -> _Seal:
        return _Seal(await desk.registrations.secret())

    def authToken(sealed: _Seal, fid: str, appId: str) -> dict[str, str]:
        claim = _Claim(use="auth", fid=fid, appId=appId, exp=int(desk.seconds()) + LIFETIME)
        return {"token": sealed.token(claim), "expiresIn": f"{LIFETIME}s"}

    async def install(asked: Asked, project: str) -> Answer:
        request = asked.json()
        appId, fid = request.get("appId"), request.get("fid") or _newFID(desk)
        if not isinstance(appId, str) or _APP.fullmatch(appId) is None:
            raise Refused(400, "appId has to look like 1:SENDER_ID:web:0123456789abcdef")
        if not isinstance(fid, str) or not _SHORTEST <= len(fid) <= 64:
            raise Refused(400, "fid is not that of an installation")
        sealed = await seal()
        return jsonAnswer(
            {
                "name": f"projects/{project}/installations/{fid}",
                "fid": fid,
                "refreshToken": sealed.token(_Claim(use="refresh", fid=fid, appId=appId)),
                "authToken": authToken(sealed, fid, appId),
            }
        )

    async def refresh(asked: Asked, project: str, fid: str) -> Answer:
        sealed = await seal()
        # The path names the installation, too, but not all clients get that right.
        claim = sealed.claim(asked.header("authorization").rpartition(" ")[2], "refresh", desk.seconds())
        return jsonAnswer(authToken(sealed, claim.fid, claim.appId))

    async def uninstall(asked: Asked, project: str, fid: str) -> Answer:
        sealed = await seal()
        sealed.claim(asked.header("authorization").rpartition(" ")[2], "refresh", desk.seconds())
        return jsonAnswer({})

    async def register(asked: Asked, project: str) -> Answer:
        sealed = await seal()
        claim = sealed.claim(asked.header("x-goog-firebase-installations-auth"), "auth", desk.seconds())
        web = asked.json().get("web")
        if not isinstance(web, dict):
            raise Refused(400, "web is missing: it has endpoint, p256dh and auth")
        match = _APP.fullmatch(claim.appId)
        assert match is not None
        token = await _registered(desk, web, match[1])
        name = f"projects/{project}/registrations/{token}"
        return jsonAnswer({"name": name, "token": token, "web": web})

    async def unregister(asked: Asked, project: str, token: str) -> Answer:
        sealed = await seal()
        claim = sealed.claim(asked.header("x-goog-firebase-installations-auth"), "auth", desk.seconds())
        registration = await desk.registrations.lookUp(token)
        # An app that is registered by register3 is unregistered there.
        if (
            registration is None
            or registration.keys is None
            or registration.application.senderID != claim.appId.split(":")[1]
        ):
            raise Refused(404, "There is no such registration")
        await desk.registrations.remove(token)
        desk.changed()
        return jsonAnswer({})

    async def subscribe(asked: Asked) -> Answer:
        form = asked.form()
        web = {
            "endpoint": form.get("endpoint"),
            "p256dh": form.get("encryption_key"),
            "auth": form.get("encryption_auth"),
        }
        token = await _registered(desk, web, form.get("authorized_entity", ""))
        return jsonAnswer({"token": token, "pushSet": _newFID(desk)})

    projects = "/v1/projects/([^/]{1,100})/"
    return [
        ("POST", re.compile(projects + "installations"), install),
        ("POST", re.compile(projects + r"installations/(.{1,100})/authTokens:generate"), refresh),
        ("DELETE", re.compile(projects + "installations/(.{1,100})"), uninstall),
        ("POST", re.compile(projects + "registrations"), register),
        ("DELETE", re.compile(projects + "registrations/([^/]{1,400})"), unregister),
        # An update is a registration with other keys.
        ("PATCH", re.compile(projects + "registrations/[^/]{1,400}"), register),
        ("POST", re.compile("/fcm/connect/subscribe"), subscribe),
    ]


def _newFID(desk: Desk) -> str:
    """
    An identifier of an installation.
    """
    random = bytearray(desk.randomBytes(17))
    random[0] = 0b0111_0000 | random[0] & 0b1111
    return urlsafe_b64encode(random).decode()[:22]


async def _registered(desk: Desk, web: dict[str, Any], senderID: str) -> str:
    """
    Register a Web Push subscription of this connection server.

    @param web: C{endpoint}, C{p256dh} and C{auth}.
    @return: its token.
    """
    endpoint, p256dh, auth = web.get("endpoint"), web.get("p256dh"), web.get("auth")
    if not (isinstance(endpoint, str) and isinstance(p256dh, str) and isinstance(auth, str)):
        raise Refused(400, "endpoint, p256dh and auth have to be texts")
    if not desk.registry.knows(senderID):
        raise Refused(403, "There is no such sender")
    keys = WebPushKeys(p256dh=p256dh.rstrip("="), auth=auth.rstrip("="))
    try:
        checkKeys(keys)
    except ValueError as error:
        raise Refused(400, f"The keys of the subscription are not good: {error}") from None
    try:
        token = await desk.registrations.registerWebPush(endpoint.rpartition("/")[2], senderID, keys)
    except UnknownToken:
        raise Refused(400, "The endpoint is none of this server") from None
    except TooManyRegistrations as error:
        raise Refused(429, str(error)) from None
    desk.changed()
    return token
