"""
A simulated device, for tests and for C{--embedded}.

It lives in the connection server's process and calls it directly; what it may
do and what it is told is what Google's client libraries offered.  A device that
connects to a server is L{fcmxmpp.device}.
"""

from __future__ import annotations

from collections.abc import Mapping

from twisted.internet.defer import Deferred
from zope.interface import implementer

from fcmxmpp.errors import FCMError
from fcmxmpp.messages import DownstreamMessage
from fcmxmpp.server.registry import Device, IDeviceCallbacks
from fcmxmpp.server.service import ConnectionServer


__all__ = ["DeliveryFailed", "SimulatedDevice"]


class DeliveryFailed(FCMError):
    """
    A device's message will not be delivered.

    @ivar error: the code, such as C{"TTL_EXCEEDED"}.
    """

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error


@implementer(IDeviceCallbacks)
class SimulatedDevice:
    """
    An app on a device.

    @ivar token: its registration token.
    @ivar stored: the C{message_id} of each message that the connection server
        has taken over.
    @ivar delivered: of each that the app server has acknowledged.
    @ivar failed: of each that will not be delivered, with the error code.
    @ivar received: what the app server has sent.
    """

    def __init__(
        self, server: ConnectionServer, senderID: str, token: str, category: str = "org.example.app"
    ) -> None:
        """
        Register with the connection server.

        @param senderID: whose app server to talk to.
        @param token: the registration token to be known by.
        @param category: the app's package name.
        """
        self._server = server
        self.token = token
        self._device = Device(token, senderID, category, self)
        self._waiting: dict[str, list[Deferred[None]]] = {}
        self._sending: str | None = None
        self.stored: list[str] = []
        self.delivered: list[str] = []
        self.failed: list[tuple[str, str]] = []
        self.received: list[DownstreamMessage] = []
        server.registry.add(self._device)

    def send(
        self, message_id: str, data: Mapping[str, object], time_to_live: int | None = None
    ) -> Deferred[None]:
        """
        Send a message to the app server.

        @param data: strings.
        @param time_to_live: seconds, up to 24 hours; 0 is now or never.
        @return: fires when the app server has acknowledged the message; fails
            with L{DeliveryFailed}, after C{"TOO_MANY_MESSAGES"} and
            C{"SERVICE_NOT_AVAILABLE"} of which it may be sent again.
        """
        result: Deferred[None] = Deferred()
        self._waiting.setdefault(message_id, []).append(result)
        self._sending = message_id
        self._server.submit(self._device, message_id, data, time_to_live)
        self._sending = None
        return result

    def messageStored(self, message_id: str) -> None:
        """
        See L{IDeviceCallbacks.messageStored}.
        """
        self._sending = None
        self.stored.append(message_id)

    def messageDelivered(self, message_id: str) -> None:
        """
        See L{IDeviceCallbacks.messageDelivered}.
        """
        self.delivered.append(message_id)
        sent = self._next(message_id)
        if sent is not None:
            sent.callback(None)

    def messageFailed(self, message_id: str, error: str) -> None:
        """
        See L{IDeviceCallbacks.messageFailed}.
        """
        self.failed.append((message_id, error))
        # What is refused at once is the one that is just being sent.
        newest = self._sending == message_id
        self._sending = None
        sent = self._next(message_id, -1 if newest else 0)
        if sent is not None:
            sent.errback(DeliveryFailed(error))

    def _next(self, message_id: str, which: int = 0) -> Deferred[None] | None:
        """
        The oldest, or the newest, send of a message that has no outcome yet.

        @return: None if the message was sent in an earlier life of the device.
        """
        waiting = self._waiting.get(message_id)
        if waiting is None:
            return None
        result = waiting.pop(which)
        if not waiting:
            del self._waiting[message_id]
        return result

    def messageReceived(self, message: DownstreamMessage) -> None:
        """
        See L{IDeviceCallbacks.messageReceived}.
        """
        self.received.append(message)
