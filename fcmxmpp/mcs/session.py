"""
The connection server's side of one MCS connection: bytes and decisions in, what
is to be done out.  No I/O and no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, ClassVar

from msgspec import Struct

from fcmxmpp.errors import MalformedFrame
from fcmxmpp.mcs import wire
from fcmxmpp.mcs.conversation import SELECTIVE_ACK, Conversation, Hangup, Write, selectedIDs
from fcmxmpp.mcs.frames import Tag


__all__ = [
    "LOGIN_DEADLINE",
    "MAX_FRAME",
    "MAX_LOGIN_FRAME",
    "UNACKNOWLEDGED",
    "UNSTORED",
    "Confirmed",
    "Delivered",
    "Hangup",
    "LoginAsked",
    "Output",
    "Overrun",
    "Platform",
    "ServerSession",
    "Uploaded",
    "Write",
]

#: From the connection to the login request, in seconds.
LOGIN_DEADLINE = 30.0
#: How long a login request may be, in bytes.  It has the persistent ids of all that
#: was received since the last one, which clients that acknowledge nothing else send
#: after days on one connection; refused once, they would be refused for ever.
MAX_LOGIN_FRAME = 262_144
#: How long any other frame may be: 4096 characters of data may take three times as
#: many bytes.
MAX_FRAME = 32_768
#: How many data messages may be unacknowledged: see L{ServerSession.room}.
UNACKNOWLEDGED = 100
#: How many of the device's messages may be on their way to the store before nothing
#: more is read.
UNSTORED = 100
#: How many frames may come between the login request and its answer, of L{MAX_FRAME}
#: bytes together: nobody knows yet who this is.
_EARLY = 16
#: The versions of the protocol that are spoken: 41 by all but iOS, which says 40;
#: 38 is what old servers had.
_VERSIONS = (38, 39, 40, 41)


class Platform(Enum):
    """
    What a device runs on, as far as it makes a difference.
    """

    ANDROID = "android"
    CHROME = "chrome"
    IOS = "ios"
    OTHER = "other"


class LoginAsked(Struct, frozen=True):
    """
    The device says who it is: answer with L{ServerSession.accept} or
    L{ServerSession.refuse}.
    """

    request: wire.LoginRequest


class Uploaded(Struct, frozen=True):
    """
    The device has sent a message: it is acknowledged when
    L{ServerSession.stored} is called.

    @ivar streamID: the number of its frame.
    """

    streamID: int
    stanza: wire.DataMessageStanza


class Delivered(Struct, frozen=True):
    """
    The device has received messages.

    @ivar handles: what L{ServerSession.deliver} was given.
    """

    handles: list[Any]


class Overrun(Struct, frozen=True):
    """
    The device lives, and has not acknowledged messages that were sent to it
    long ago.  Some never do.

    @ivar handles: what L{ServerSession.deliver} was given.
    """

    handles: list[Any]


class Confirmed(Struct, frozen=True):
    """
    The device has received messages, and says so by their names.
    """

    persistent_ids: list[str]


Output = Write | LoginAsked | Uploaded | Delivered | Overrun | Confirmed | Hangup


class ServerSession(Conversation):
    """
    The server's side of a connection.

    @ivar platform: what the device runs on, from its login request on.
    """

    __slots__ = ("_early", "_heartbeatInterval", "_isLoggedIn", "_request", "platform")

    def __init__(self, now: float, heartbeatInterval: float | None = None) -> None:
        """
        @param heartbeatInterval: how many seconds a device may be silent before
            it sends a heartbeat, if it lets itself be told; it has an own idea
            otherwise.
        """
        super().__init__(MAX_LOGIN_FRAME)
        self.platform = Platform.OTHER
        self._heartbeatInterval = heartbeatInterval
        self._request: Any = None
        self._isLoggedIn = False
        # What has come before the login was answered; it counts from when it is
        # dealt with.
        self._early: list[tuple[int, bytes]] | None = None
        self.wakeAt = now + LOGIN_DEADLINE

    @property
    def pausing(self) -> bool:
        """
        Whether nothing more should be read, because so much is not stored yet.
        """
        return len(self._unsafe) >= UNSTORED

    @property
    def room(self) -> bool:
        """
        Whether a data message may be sent.

        A device that does not acknowledge is sent L{UNACKNOWLEDGED} messages,
        because nobody can tell whether it is still there.  If anything is
        heard of it after that, it is only one of those that never acknowledge;
        each message then makes the oldest an L{Overrun}.
        """
        if not self._isLoggedIn or self.isOver:
            return False
        waiting = self._unacknowledged
        return len(waiting) < UNACKNOWLEDGED or waiting[0][0] <= self._heardAt

    # The login.

    def receive(self, data: bytes, now: float) -> list[Any]:
        """
        Some bytes came: none, right after L{accept}, so that what came too early
        is dealt with.
        """
        if self._early is None or not self._isLoggedIn:
            return super().receive(data, now)
        early, self._early = self._early, None
        return self._deal(early, now) + super().receive(data, now)

    def _frame(self, tag: int, body: bytes, now: float) -> list[Any]:
        """
        A frame came.
        """
        if self._isLoggedIn:
            return super()._frame(tag, body, now)
        if self._request is None:
            if tag != Tag.LOGIN_REQUEST:
                return self._fault("something comes before the login")
            return self._loginRequested(self._parse(tag, body))
        self._got -= 1
        self._early = early = self._early or []
        early.append((tag, body))
        if len(early) > _EARLY or sum(len(each) for _, each in early) > MAX_FRAME:
            return self._fault("too much comes before the login is answered")
        return []

    def _loginRequested(self, request: Any) -> list[Any]:
        """
        The device says who it is.
        """
        version = self._decoder.version or 0
        if version not in _VERSIONS:
            return self._fault(f"version {version} is not spoken")
        named = (request.id, request.user, request.auth_token, *request.received_persistent_id)
        if not all(isinstance(each, str) for each in named):
            raise MalformedFrame("a login request that is not Unicode")
        self._request = request
        prefix = request.id.partition("-")[0]
        if prefix in ("android", "chrome", "ios"):
            self.platform = Platform(prefix)
        # A server of another version than its own iOS and Chrome do not talk to.
        return [Write(bytes((version,))), LoginAsked(request)]

    def accept(self, now: float) -> list[Any]:
        """
        The device is who it says.  When everything is ready for what it sends,
        have L{receive} deal with what came before this.
        """
        request, self._request = self._request, None
        self._isLoggedIn = True
        user = request.user
        response = wire.LoginResponse(
            id=request.id,
            jid=f"{user}@mcs.android.com/{user}",
            # That of the login request: its received_persistent_id are known now.
            last_stream_id_received=1,
            server_timestamp=int(now * 1000),
        )
        if self._heartbeatInterval is not None:
            response.heartbeat_config.interval_ms = int(self._heartbeatInterval * 1000)
        self._told = 1
        self.wakeAt = None
        self._decoder.maxFrame = MAX_FRAME
        # iOS sends what it has kept only after such a selective ack.
        return [self._write(Tag.LOGIN_RESPONSE, response.SerializeToString()), self._emptySelectiveAck()]

    def refuse(self, code: int, now: float) -> list[Any]:
        """
        The device is not who it says.

        @param code: any but 0; no device cares which.
        """
        response = wire.LoginResponse(id=self._request.id)
        response.error.code = code
        # iOS does not look at the error, but at the end.
        return [
            self._write(Tag.LOGIN_RESPONSE, response.SerializeToString()),
            *self._hangUp("its login is refused"),
        ]

    # The conversation.

    def _pinged(self, message: Any, now: float) -> list[Any]:
        """
        A heartbeat came.
        """
        return [*self._lastReceived(message, now), self._heartbeat(Tag.HEARTBEAT_ACK)]

    def _lastReceived(self, message: Any, now: float) -> list[Any]:
        """
        A frame came that may say what the device has received.
        """
        if not message.last_stream_id_received:
            return []
        handles = self._acknowledged(message.last_stream_id_received)
        return [Delivered(handles)] if handles else []

    def _iq(self, message: Any, now: float) -> list[Any]:
        """
        An IQ came: an acknowledgement, or nothing that matters.
        """
        outputs = self._lastReceived(message, now)
        if message.extension.id == SELECTIVE_ACK:
            persistent_ids = selectedIDs(message)
            if persistent_ids:
                outputs.append(Confirmed(persistent_ids))
        return outputs

    def _uploaded(self, message: Any, now: float) -> list[Any]:
        """
        The device has sent a message.
        """
        outputs = self._lastReceived(message, now)
        self._unsafe[self._got] = None
        outputs.append(Uploaded(self._got, message))
        return outputs

    def _closed(self, message: Any, now: float) -> list[Any]:
        """
        The device says goodbye.
        """
        return self._hangUp("the device says goodbye")

    def _again(self, message: Any, now: float) -> list[Any]:
        """
        The device says once more who it is.
        """
        return self._fault("a second login")

    _steps: ClassVar = {
        Tag.HEARTBEAT_PING: _pinged,
        Tag.HEARTBEAT_ACK: _lastReceived,
        Tag.LOGIN_REQUEST: _again,
        Tag.CLOSE: _closed,
        Tag.IQ_STANZA: _iq,
        Tag.DATA_MESSAGE_STANZA: _uploaded,
    }

    def stored(self, streamIDs: Iterable[int], now: float) -> list[Any]:
        """
        Messages of the device are in safe hands, or cannot be helped: tell it.

        @param streamIDs: of their L{Uploaded}.
        """
        for streamID in streamIDs:
            self._unsafe.pop(streamID, None)
        return [] if self.isOver else self._streamAck()

    def deliver(self, handle: object, stanza: bytes, now: float) -> list[Any]:
        """
        Send a data message, for which there has to be L{room}.

        @param handle: comes back in a L{Delivered} or an L{Overrun}, or never if
            the connection ends first.
        @param stanza: a serialised C{DataMessageStanza}.
        """
        assert self.room
        outputs: list[Any] = []
        if len(self._unacknowledged) >= UNACKNOWLEDGED:
            outputs.append(Overrun([self._unacknowledged.pop(0)[1]]))
        outputs.append(self._data(stanza, handle))
        return outputs

    def withdraw(self, isWithdrawn: Callable[[Any], bool]) -> None:
        """
        Wait no longer for the acknowledgement of messages.

        @param isWithdrawn: whether a handle is that of one of them.
        """
        self._unacknowledged = [each for each in self._unacknowledged if not isWithdrawn(each[1])]

    def wake(self, now: float) -> list[Any]:
        """
        The time L{wakeAt} has come.
        """
        if self.wakeAt is None or now < self.wakeAt:
            return []
        return self._hangUp("nobody logs in", True)
