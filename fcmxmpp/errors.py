"""
What can go wrong, sorted by whose fault it is and by what to do about it.

Everything this package raises on purpose is an L{FCMError}.  No text of these
errors ever carries a server key, a registration token or message data, so
that any of them may be logged.
"""

from __future__ import annotations


__all__ = [
    "AckTimedOut",
    "Expired",
    "FCMError",
    "GroupRefused",
    "HandlerFailed",
    "HandlerTimedOut",
    "HandlerUnavailable",
    "LoginRefused",
    "LoginTimedOut",
    "MalformedAck",
    "MalformedFrame",
    "MalformedPayload",
    "Nacked",
    "NotSendable",
    "QueueFull",
    "StillUnanswered",
    "Stopped",
    "StoreUnavailable",
    "StreamLost",
    "TooManyRegistrations",
    "UnknownDevice",
    "UnknownToken",
    "Unreadable",
]


class FCMError(Exception):
    """
    The root of all errors of this package.
    """


class MalformedPayload(FCMError):
    """
    The peer sent a payload that is not a message of the protocol.

    @ivar reason: what is wrong, without any of the payload's contents.
    @ivar message_id: the C{message_id}, where one could be read without doubt.
    @ivar from_: the C{from} (or, of an ACK, the C{to}), likewise.
    """

    def __init__(self, reason: str, message_id: str | None = None, from_: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.message_id = message_id
        self.from_ = from_


class MalformedAck(MalformedPayload):
    """
    The same, where the peer meant to acknowledge something.
    """


class MalformedFrame(FCMError):
    """
    What a peer sends is not MCS.  Nothing that comes after it can be read.
    """


class NotSendable(FCMError):
    """
    The caller's message is one that FCM would reject; it was not sent.

    @ivar field: the name of the field at fault, in its wire spelling.
    @ivar reason: what the field has to look like.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class StillUnanswered(NotSendable):
    """
    A message with this C{message_id} has been sent and not been answered yet.
    """

    def __init__(self) -> None:
        super().__init__("message_id", "must not be that of a message that is still unanswered")


#: The codes after which the same message may be sent again (docs/protocol.md 4.3).
_RETRYABLE = frozenset(
    {
        "SERVICE_UNAVAILABLE",
        "INTERNAL_SERVER_ERROR",
        "CONNECTION_DRAINING",
        "DEVICE_MESSAGE_RATE_EXCEEDED",
        "TOPICS_MESSAGE_RATE_EXCEEDED",
        "QUOTA_EXCEEDED",
    }
)
#: The codes after which the same message never succeeds.
_PERMANENT = frozenset(
    {
        "INVALID_JSON",
        "BAD_REGISTRATION",
        "SENDER_ID_MISMATCH",
        "DEVICE_UNREGISTERED",
        "BAD_ACK",
        "INVALID_APNS_CREDENTIAL",
        "AUTHENTICATION_FAILED",
        "INVALID_TTL",
        "JSON_TYPE_ERROR",
        "BAD_REQUEST",
    }
)
#: The codes that say that the device or topic got too much.
_TOO_MUCH = frozenset({"DEVICE_MESSAGE_RATE_EXCEEDED", "TOPICS_MESSAGE_RATE_EXCEEDED", "QUOTA_EXCEEDED"})
#: The codes that say that the registration token is of no further use.
_TOKEN_GONE = frozenset({"BAD_REGISTRATION", "DEVICE_UNREGISTERED", "SENDER_ID_MISMATCH"})


class Nacked(FCMError):
    """
    The connection server refused a downstream message.

    @ivar error: the code, such as C{"DEVICE_UNREGISTERED"}; a stanza error
        400 is given as C{"BAD_REQUEST"}.
    @ivar message_id: of the message that was refused.
    @ivar registration_id: a newer token for the same device, if one was told.
    """

    def __init__(self, error: str, message_id: str, registration_id: str | None = None) -> None:
        # The description that the server sent is left out on purpose: it
        # often quotes the registration token.
        super().__init__(error if error in _PERMANENT | _RETRYABLE else "unknown error code")
        self.error = error
        self.message_id = message_id
        self.registration_id = registration_id

    @property
    def permanent(self) -> bool:
        """
        Whether sending the same message again is pointless.  A code that is
        not known counts as C{INTERNAL_SERVER_ERROR}, so it is not permanent.
        """
        return self.error in _PERMANENT

    @property
    def tooMuch(self) -> bool:
        """
        Whether the device or topic gets messages faster than it may.
        """
        return self.error in _TOO_MUCH

    @property
    def tokenGone(self) -> bool:
        """
        Whether the registration token is to be deleted.
        """
        return self.error in _TOKEN_GONE


class StreamLost(FCMError):
    """
    The stream ended before the answer came.
    """


class LoginRefused(FCMError):
    """
    The connection server does not accept the sender ID or the server key.

    @ivar condition: the SASL condition, such as C{"not-authorized"}.
    """

    def __init__(self, condition: str) -> None:
        super().__init__(f"login refused ({condition}): check the sender ID and the server key")
        self.condition = condition


class LoginTimedOut(FCMError):
    """
    Connecting and logging in took too long.
    """


class Expired(FCMError):
    """
    The message's C{time_to_live} ran out before it was accepted.

    @ivar registration_id: a newer token for the same device, if a NACK told
        one.
    """

    def __init__(self, reason: str, registration_id: str | None = None) -> None:
        super().__init__(reason)
        self.registration_id = registration_id


class AckTimedOut(FCMError):
    """
    The connection server did not answer in time.  It may or may not have got
    the message.
    """


class QueueFull(FCMError):
    """
    Too many messages are under way already; try again when some are settled.
    """


class Stopped(FCMError):
    """
    The service stopped first.
    """


class StoreUnavailable(FCMError):
    """
    The store cannot be read or written: its disk is full, its file is locked,
    damaged or of a newer version.  What was to be done has not been done.

    Its text says in one line what is wrong and what to do about it.
    """


class UnknownDevice(FCMError):
    """
    No device has checked in with this identity.
    """


class UnknownToken(FCMError):
    """
    There is no such registration.
    """


class TooManyRegistrations(FCMError):
    """
    A device has as many registrations as it may have.
    """


class GroupRefused(FCMError):
    """
    Something about a device group cannot be done.  The text says why, as FCM
    does, such as C{"notification_key not found"}.
    """


class Unreadable(FCMError):
    """
    What a store has of a message cannot be read: its file was damaged, or
    written by a version with other rules.
    """


class HandlerFailed(FCMError):
    """
    The application's handler failed on a message.

    It names the type of the handler's exception and carries its traceback,
    but not its text, because that often quotes the message.

    Handlers may raise it, too.  Then its text is logged, without a traceback,
    so it must not quote the message.
    """


class HandlerTimedOut(HandlerFailed):
    """
    The application's handler did not answer in time.
    """


class HandlerUnavailable(FCMError):
    """
    For handlers to raise: "I cannot work at all just now".

    The message is not at fault (the handler's database is down, its disk is
    full), so the try does not count: the message stays unacknowledged and is
    tried again with back-off for as long as it takes.  The text is logged, so
    it must not quote the message.
    """
