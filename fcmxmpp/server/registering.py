"""
C{register3}: an app on a device gets its registration token, and subscribes to
topics.
"""

from __future__ import annotations

import re

from fcmxmpp.condition import TOPIC_NAME
from fcmxmpp.errors import Stopped, StoreUnavailable, TooManyRegistrations, UnknownDevice
from fcmxmpp.registrations import Application, Identity
from fcmxmpp.server.http import LATER, Answer, Asked, Desk, Route, textAnswer


__all__ = ["routes"]

_AUTHORIZATION = re.compile(r"AidLogin ([0-9]{1,19}):([0-9]{1,19})")
_TOPIC = re.compile(f"/topics/{TOPIC_NAME}")
#: The base64url of 65 bytes of which the first is 4: an uncompressed point.
_PUBLIC_KEY = re.compile("B[A-P][A-Za-z0-9_-]{85}=?")
#: What requests of Instance ID libraries have; they want C{token=} for an answer.
_INSTANCE_ID = {"appid", "X-appid", "scope", "X-scope"}
#: How long what an app says of itself may be, in characters.
_LONGEST = 512


class _Error(Exception):
    """
    What is answered as C{Error=CODE}, with the status 200 as Google does.
    """


def routes(desk: Desk) -> list[Route]:
    """
    What is answered here.
    """

    async def register(asked: Asked) -> Answer:
        try:
            return textAnswer(await _answer(desk, asked))
        except _Error as error:
            return textAnswer(f"Error={error}")
        except UnknownDevice:
            # Chrome tries again with that, and then checks in anew.
            return textAnswer("Error=AUTHENTICATION_FAILED")
        except TooManyRegistrations:
            return textAnswer("Error=TOO_MANY_REGISTRATIONS")
        except (StoreUnavailable, Stopped):
            # Clients that do not know the status know the text, and come again.
            return Answer(status=503, body=b"Error=InternalServerError", headers={"Retry-After": str(LATER)})

    # The others are where iOS asks for tokens, and for topics.
    return [("POST", re.compile("/c2dm/register3?|/register|/iid/register"), register)]


async def _answer(desk: Desk, asked: Asked) -> str:
    """
    The answer, if there is nothing wrong.

    No client wants an end of line behind it, some split it at C{=} and look for
    "Error" in it.
    """
    form = asked.form()
    identity = _identity(asked, form)
    category, sender = form.get("app", ""), form.get("sender", "")
    subtype = form.get("X-subtype") or form.get("subtype") or ""
    isDeletion = form.get("delete") in ("1", "true") or form.get("X-delete") in ("1", "true")
    if isDeletion and not sender:
        # Chrome unregisters an extension with that, whoever the senders were.
        sender = "*"
    if not category or not sender or max(map(len, (category, sender, subtype))) > _LONGEST:
        raise _Error("INVALID_PARAMETERS")
    topic = form.get("X-gcm.topic") or form.get("gcm.topic")
    if topic is not None:
        return await _topic(desk, identity, category, sender, topic, isDeletion)
    if subtype == sender:
        # What newer Android libraries say of the app itself.
        subtype = ""
    if isDeletion:
        everySender = sender == "*"
        await desk.registrations.unregister(identity, category, None if everySender else sender, subtype)
        desk.changed()
        return f"{'token' if _INSTANCE_ID & form.keys() else 'deleted'}={category}"
    if not _isSender(desk, sender):
        raise _Error("INVALID_SENDER")
    application = Application(category=category, senderID=sender, subtype=subtype)
    token = await desk.registrations.register(identity, application)
    desk.changed()
    return f"token={token}"


def _identity(asked: Asked, form: dict[str, str]) -> Identity:
    """
    Who the device says that it is.
    """
    match = _AUTHORIZATION.fullmatch(asked.header("authorization"))
    if match is None:
        raise _Error("AUTHENTICATION_FAILED")
    identity = Identity(int(match[1]), int(match[2]))
    if form.get("device", match[1]) != match[1] or not max(identity) < 1 << 63:
        raise _Error("AUTHENTICATION_FAILED")
    return identity


def _isSender(desk: Desk, sender: str) -> bool:
    """
    Whether an app may register with a sender: one that there is, or the public
    key of one for Web Push.
    """
    return desk.registry.knows(sender) or _PUBLIC_KEY.fullmatch(sender) is not None


async def _topic(
    desk: Desk, identity: Identity, category: str, token: str, topic: str, isDeletion: bool
) -> str:
    """
    Subscribe an app to a topic, or unsubscribe it: C{sender} is its token then.
    """
    if _TOPIC.fullmatch(topic) is None:
        raise _Error("INVALID_PARAMETERS")
    if not await desk.registrations.isKnown(identity):
        raise _Error("AUTHENTICATION_FAILED")
    registration = await desk.registrations.lookUp(token)
    if registration is None or registration.android_id != identity.android_id:
        raise _Error("INVALID_PARAMETERS")
    change = desk.registrations.unsubscribe if isDeletion else desk.registrations.subscribe
    (error,) = await change([token], topic)
    if error is not None:
        raise _Error("TOO_MANY_SUBSCRIBERS" if error == "TOO_MANY_TOPICS" else "INVALID_PARAMETERS")
    # For a deletion, too: iOS takes everything else for a failure.
    return f"token={category if isDeletion else token}"
