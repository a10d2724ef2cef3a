"""
What a device asks over HTTP: who it is, and registration tokens.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.web.iweb import IAgent

from fcmxmpp.errors import FCMError
from fcmxmpp.httpclient import WholeBody, kindOf, readBody
from fcmxmpp.mcs import wire
from fcmxmpp.mcs.frames import UNREADABLE
from fcmxmpp.registrations import Identity


__all__ = ["DeviceHTTP", "RegistrationRefused"]

#: Seconds that an answer may take, and bytes that it may have.
_TIMEOUT, _LONGEST = 30.0, 65_536


class RegistrationRefused(FCMError):
    """
    A check-in or a registration did not succeed.

    @ivar error: the server's code, such as C{"INVALID_SENDER"}, or what else was
        wrong.
    """

    def __init__(self, error: str) -> None:
        super().__init__(f"the registration failed: {error}")
        self.error = error


class DeviceHTTP:
    """
    Asks a server.
    """

    def __init__(self, agent: IAgent, url: str, clock: IReactorTime) -> None:
        """
        @param url: where the server is, without a path.
        """
        self._client = HTTPClient(agent, data_to_body_producer=WholeBody)
        self._url = url.rstrip("/")
        self._clock = clock

    async def _post(self, path: str, body: bytes, headers: dict[bytes | str, bytes | str]) -> bytes:
        """
        Send something.

        @return: the body of the answer.
        """
        asked: Deferred[Any] = self._client.post(self._url + path, data=body, headers=headers)
        try:
            response = await asked.addTimeout(_TIMEOUT, self._clock)
            answer = await readBody(response, _LONGEST).addTimeout(_TIMEOUT, self._clock)
        except CancelledError:
            raise
        except Exception as error:
            raise RegistrationRefused(kindOf(error)) from None
        if response.code != 200 and not answer.startswith(b"Error="):
            raise RegistrationRefused(f"HTTP {response.code}")
        return answer

    async def checkIn(self, identity: Identity | None) -> Identity:
        """
        Ask who this is.

        @param identity: who it was.
        """
        request = wire.CheckinRequest(version=3, fragment=0)
        request.checkin.type = wire.Checkin.CHROME_BROWSER
        if identity is not None:
            request.id, request.security_token = identity
        answer = await self._post(
            "/checkin", request.SerializeToString(), {"Content-Type": "application/x-protobuf"}
        )
        response = wire.CheckinResponse()
        try:
            response.ParseFromString(answer)
        except UNREADABLE:
            raise RegistrationRefused("something that is no answer to a check-in") from None
        if not (response.android_id and response.security_token):
            raise RegistrationRefused("an answer to the check-in without an identity")
        return Identity(response.android_id, response.security_token)

    async def _form(self, identity: Identity, **fields: str) -> tuple[str, str]:
        """
        Send a form to C{register3}.

        @return: what stands before and after the C{=} of the answer.
        """
        form = urlencode({**fields, "device": str(identity.android_id)})
        answer = await self._post(
            "/c2dm/register3",
            form.encode(),
            {
                "Authorization": f"AidLogin {identity.android_id}:{identity.security_token}",
                "Content-Type": "application/x-www-form-urlencoded",
            },
        )
        name, _, value = answer.decode("utf-8", "replace").strip().partition("=")
        if name == "Error":
            raise RegistrationRefused(value)
        return name, value

    async def register(self, identity: Identity, senderID: str, category: str) -> str:
        """
        Register an app.

        @return: its token.
        """
        name, token = await self._form(identity, app=category, sender=senderID)
        if name != "token" or not token:
            raise RegistrationRefused("something that is no token")
        return token

    async def unregister(self, identity: Identity, senderID: str, category: str) -> None:
        """
        Unregister an app.
        """
        await self._form(identity, app=category, sender=senderID, delete="1")

    async def changeTopic(
        self, identity: Identity, token: str, category: str, topic: str, isSubscribed: bool
    ) -> None:
        """
        Subscribe an app to a topic, or unsubscribe it.

        @param topic: C{"/topics/NAME"}.
        """
        fields = {"app": category, "sender": token, "X-gcm.topic": topic, "X-scope": topic}
        if not isSubscribed:
            fields["delete"] = "1"
        await self._form(identity, **fields)
