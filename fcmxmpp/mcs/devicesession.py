"""
The device's side of one MCS connection: bytes and decisions in, what is to be
done out.  No I/O and no clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from msgspec import Struct

from fcmxmpp.errors import MalformedFrame
from fcmxmpp.mcs import wire
from fcmxmpp.mcs.conversation import SELECTIVE_ACK, Conversation, Hangup, Write, selectedIDs
from fcmxmpp.mcs.frames import Tag
from fcmxmpp.registrations import Identity


__all__ = [
    "DeviceSession",
    "Hangup",
    "LoggedIn",
    "LoginRefused",
    "Output",
    "Received",
    "ServerHas",
    "UploadsAcknowledged",
    "Write",
]

#: How long a frame may be, in bytes, as iOS has it.
MAX_FRAME = 1 << 20
#: The version of the protocol that is spoken.
VERSION = 41
#: From the connection to the answer to the login, in seconds.
LOGIN_DEADLINE = 30.0
#: Seconds after a heartbeat in which something has to be heard.
PATIENCE = 60.0
#: How many messages may have been processed and not been acknowledged.
_LATE = 10


class LoggedIn(Struct, frozen=True):
    """
    The server knows who this is.

    @ivar confirmed: whether it has taken note of what had been received.
    """

    confirmed: bool


class LoginRefused(Struct, frozen=True):
    """
    The server does not let this device in.

    @ivar code: L{UNAUTHORIZED<fcmxmpp.mcs.conversation.UNAUTHORIZED>} if it does
        not know it.
    """

    code: int


class Received(Struct, frozen=True):
    """
    A message came: it is acknowledged when L{DeviceSession.processed} is called.

    @ivar streamID: the number of its frame.
    """

    streamID: int
    stanza: wire.DataMessageStanza


class UploadsAcknowledged(Struct, frozen=True):
    """
    The server has stored messages.

    @ivar handles: what L{DeviceSession.upload} was given.
    """

    handles: list[Any]


class ServerHas(Struct, frozen=True):
    """
    The server says which messages it has, by their names.
    """

    persistent_ids: list[str]


Output = Write | LoggedIn | LoginRefused | Received | UploadsAcknowledged | ServerHas | Hangup


class DeviceSession(Conversation):
    """
    The device's side of a connection.
    """

    __slots__ = ("_interval", "_isLoggedIn", "_isPinging", "_late", "_request")

    def __init__(
        self, identity: Identity, loginID: str, received: Iterable[str], now: float, interval: float
    ) -> None:
        """
        @param loginID: what software this is.
        @param received: the names of what was received and has not been
            confirmed.
        @param interval: seconds of silence before a heartbeat.
        """
        super().__init__(MAX_FRAME)
        self._request = wire.LoginRequest(
            id=loginID,
            domain="mcs.android.com",
            user=str(identity.android_id),
            resource=str(identity.android_id),
            auth_token=str(identity.security_token),
            device_id=f"android-{identity.android_id:x}",
            auth_service=wire.LoginRequest.ANDROID_ID,
            use_rmq2=True,
            adaptive_heartbeat=False,
            network_type=1,
            received_persistent_id=received,
        )
        self._request.setting.add(name="new_vc", value="1")
        self._interval = interval
        self._isLoggedIn = False
        self._isPinging = False
        self._late = 0
        self.wakeAt = now + LOGIN_DEADLINE

    def start(self) -> list[Any]:
        """
        Say who this is.
        """
        login = self._write(Tag.LOGIN_REQUEST, self._request.SerializeToString())
        return [Write(bytes((VERSION,)) + login.data)]

    def receive(self, data: bytes, now: float) -> list[Any]:
        """
        Some bytes came.
        """
        outputs = super().receive(data, now)
        if self._isLoggedIn and not self.isOver:
            self._isPinging = False
            self.wakeAt = now + self._interval
        return outputs

    def _frame(self, tag: int, body: bytes, now: float) -> list[Any]:
        """
        A frame came.
        """
        if self._isLoggedIn or tag == Tag.LOGIN_RESPONSE:
            return super()._frame(tag, body, now)
        return self._hangUp("something comes before the answer to the login")

    def _answered(self, message: Any, now: float) -> list[Any]:
        """
        The answer to the login.
        """
        if self._isLoggedIn:
            return self._hangUp("a second answer to the login")
        if self._decoder.version != VERSION:
            return self._hangUp(f"the server speaks version {self._decoder.version}")
        if message.HasField("error") and message.error.code:
            code = message.error.code
            return [LoginRefused(code), *self._hangUp(f"the login is refused with code {code}")]
        self._isLoggedIn = True
        if message.heartbeat_config.interval_ms > 0:
            self._interval = message.heartbeat_config.interval_ms / 1000
        return [LoggedIn(message.last_stream_id_received >= 1)]

    def _lastReceived(self, message: Any, now: float) -> list[Any]:
        """
        A frame came that may say what the server has stored.
        """
        if not message.last_stream_id_received:
            return []
        handles = self._acknowledged(message.last_stream_id_received)
        return [UploadsAcknowledged(handles)] if handles else []

    def _pinged(self, message: Any, now: float) -> list[Any]:
        """
        A heartbeat came.
        """
        return [*self._lastReceived(message, now), self._heartbeat(Tag.HEARTBEAT_ACK)]

    def _iq(self, message: Any, now: float) -> list[Any]:
        """
        An IQ came: an acknowledgement, or nothing that matters.
        """
        outputs = self._lastReceived(message, now)
        if message.extension.id == SELECTIVE_ACK:
            persistent_ids = selectedIDs(message)
            if persistent_ids:
                outputs.append(ServerHas(persistent_ids))
        return outputs

    def _messageCame(self, message: Any, now: float) -> list[Any]:
        """
        A message came.
        """
        self._unsafe[self._got] = None
        return [*self._lastReceived(message, now), Received(self._got, message)]

    def _closed(self, message: Any, now: float) -> list[Any]:
        """
        The server says goodbye.
        """
        return self._hangUp("the server says goodbye")

    _steps: ClassVar = {
        Tag.HEARTBEAT_PING: _pinged,
        Tag.HEARTBEAT_ACK: _lastReceived,
        Tag.LOGIN_RESPONSE: _answered,
        Tag.CLOSE: _closed,
        Tag.IQ_STANZA: _iq,
        Tag.DATA_MESSAGE_STANZA: _messageCame,
    }

    def processed(self, streamID: int, atOnce: bool, now: float) -> list[Any]:
        """
        The app has got a message, or it is kept for it.

        @param atOnce: whether to say so at once; otherwise that goes with
            something else, or when there are more of them.
        """
        self._unsafe.pop(streamID, None)
        self._late += 1
        if self.isOver or not (atOnce or self._late >= _LATE):
            return []
        self._late = 0
        return self._streamAck()

    def upload(self, handle: object, stanza: bytes, now: float) -> list[Any]:
        """
        Send a message.

        @param handle: comes back in an L{UploadsAcknowledged}, or never if the
            connection ends first.
        """
        if self.isOver or not self._isLoggedIn:
            raise MalformedFrame("nothing is sent before the login, or after the end")
        return [self._data(stanza, handle)]

    def wake(self, now: float) -> list[Any]:
        """
        The time L{wakeAt} has come.
        """
        if self.wakeAt is None or now < self.wakeAt:
            return []
        if not self._isLoggedIn:
            return self._hangUp("no answer to the login", True)
        if self._isPinging:
            return self._hangUp("the server is silent", True)
        self._isPinging = True
        self.wakeAt = now + PATIENCE
        return [self._heartbeat(Tag.HEARTBEAT_PING)]
