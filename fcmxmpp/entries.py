"""
What stores hold: messages that somebody has taken responsibility for, and what
became of them.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from fcmxmpp.errors import AckTimedOut, Expired, FCMError, Nacked, NotSendable, StillUnanswered, Unreadable
from fcmxmpp.messages import Ack, DownstreamMessage, Receipt, UpstreamMessage


__all__ = [
    "DeadLetter",
    "EntrustedEntry",
    "InboxEntry",
    "OutboxEntry",
    "Outcome",
    "SettledEntry",
    "UnreadableEntry",
    "decodeOutcome",
    "describe",
    "encodeOutcome",
]


class InboxEntry(Struct, frozen=True, kw_only=True):
    """
    An upstream message that has been taken over and not been handled yet.

    @ivar number: counts what comes into an inbox; no number is given twice.
    @ivar arrived: when it was taken over, in seconds since 1970.
    @ivar tries: how often the handler has failed on it.
    """

    number: int
    message: UpstreamMessage | Receipt
    arrived: float
    tries: int = 0


class DeadLetter(Struct, frozen=True, kw_only=True):
    """
    An upstream message that was put aside.

    @ivar number: of the inbox's entry; None if it was not one.
    @ivar body: the message as the connection server sent it, JSON if it is
        well-formed; UTF-8.
    @ivar reason: why, without any of its contents.
    @ivar tries: how often the handler failed on it; 0 for what could not be
        decoded.
    """

    number: int | None = None
    from_: str
    message_id: str
    body: bytes
    reason: str
    tries: int = 0

    def __repr__(self) -> str:
        """
        Without token and contents.
        """
        return f"DeadLetter(number={self.number!r}, message_id={self.message_id!r}, reason={self.reason!r})"


class UnreadableEntry(Struct, frozen=True, kw_only=True):
    """
    What a store has taken over and cannot give back: its file was damaged, or
    written by a version with other rules.

    @ivar number: as of any other entry.
    @ivar peer: the C{from} of an upstream message, the C{to} or C{condition}
        of a downstream message, the sender ID of what a device has entrusted.
    @ivar body: what the store has of the message.
    @ivar reason: what is wrong, without any of its contents.
    """

    number: int
    message_id: str
    peer: str
    body: bytes
    reason: str

    def __repr__(self) -> str:
        """
        Without token and contents.
        """
        return (
            f"UnreadableEntry(number={self.number!r}, message_id={self.message_id!r}, reason={self.reason!r})"
        )


class OutboxEntry(Struct, frozen=True, kw_only=True):
    """
    A downstream message that has been taken over and has no outcome yet.

    @ivar number: counts what comes into an outbox; no number is given twice.
    @ivar since: when it was sent first, in seconds since 1970: its
        C{time_to_live} counts from then.
    """

    number: int
    message: DownstreamMessage
    since: float


class Outcome(Struct, frozen=True, kw_only=True):
    """
    What became of a downstream message.

    @ivar ack: the connection server's answer, if it accepted the message.
    @ivar error: why not, otherwise: L{Nacked}, L{Expired}, L{AckTimedOut},
        L{NotSendable}, or L{Unreadable}: then the message has its
        C{message_id} and its target, as C{to}, and nothing else.
    @ivar tries: how often it was written to a stream.
    @ivar at: when this was settled, in seconds since 1970.
    """

    message: DownstreamMessage
    ack: Ack | None = None
    error: FCMError | None = None
    tries: int = 0
    at: float


class SettledEntry(Struct, frozen=True, kw_only=True):
    """
    A message of the outbox whose outcome has not been reported yet.
    """

    number: int
    outcome: Outcome


class EntrustedEntry(Struct, frozen=True, kw_only=True):
    """
    What a device has entrusted to a connection server, and no app server has
    acknowledged yet.

    @ivar number: counts what comes in; no number is given twice.
    @ivar senderID: whose app server it is for.
    @ivar expires: until when it is of use, in seconds since 1970.
    """

    number: int
    senderID: str
    message: UpstreamMessage | Receipt
    expires: float


class _StoredOutcome(Struct, omit_defaults=True):
    """
    An L{Outcome} without its message, as JSON.
    """

    at: float
    tries: int = 0
    ack: Ack | None = None
    error: str | None = None
    #: The code of a C{Nacked}, the field of a C{NotSendable}.
    code: str = ""
    text: str = ""
    registration_id: str | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_StoredOutcome).decode


def encodeOutcome(outcome: Outcome) -> bytes:
    """
    An outcome for a store, without its message.

    @return: JSON.
    """
    stored = _StoredOutcome(at=outcome.at, tries=outcome.tries, ack=outcome.ack)
    error = outcome.error
    if error is not None:
        stored.error, stored.text = type(error).__name__, str(error)
    if isinstance(error, Nacked):
        stored.code, stored.registration_id = error.error, error.registration_id
    elif isinstance(error, Expired):
        stored.registration_id = error.registration_id
    elif isinstance(error, NotSendable):
        stored.code, stored.text = error.field, error.reason
    return _encode(stored)


def describe(error: FCMError) -> str:
    """
    What a message came to, for people: the type of the error and what it says.
    """
    # A code that is not known is not in its text.
    says = error.error if isinstance(error, Nacked) else str(error)
    name = type(error).__name__
    return f"{name}: {says}" if says else name


def decodeOutcome(message: DownstreamMessage, stored: bytes) -> Outcome:
    """
    An outcome from a store.

    @param message: the message that it is of.
    @raise Unreadable: if that is no outcome.
    """
    try:
        value = _decode(stored)
    except msgspec.DecodeError:
        raise Unreadable("the store's outcome is damaged") from None
    error: FCMError | None = None
    if value.error == "Nacked":
        error = Nacked(value.code, message.message_id or "", value.registration_id)
    elif value.error == "Expired":
        error = Expired(value.text, value.registration_id)
    elif value.error == "StillUnanswered":
        error = StillUnanswered()
    elif value.error == "NotSendable":
        error = NotSendable(value.code, value.text)
    elif value.error == "AckTimedOut":
        error = AckTimedOut(value.text)
    elif value.error == "Unreadable":
        error = Unreadable(value.text)
    elif value.error is not None:
        # Of a later version, perhaps.
        error = FCMError(value.text)
    return Outcome(message=message, ack=value.ack, error=error, tries=value.tries, at=value.at)
