"""
What tests of handlers and of the send API send by.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from zope.interface import implementer

from fcmxmpp.interfaces import IDownstreamSender
from fcmxmpp.messages import Ack, DownstreamMessage


__all__ = ["Sender"]


@implementer(IDownstreamSender)
class Sender:
    """
    Notes what is sent, and leaves the answer to the test.

    @ivar sent: each message, and what was returned for it.
    @ivar cancelled: the C{message_id} of each message that was withdrawn.
    """

    def __init__(self) -> None:
        self.sent: list[tuple[DownstreamMessage, Deferred[Ack]]] = []
        self.cancelled: list[str | None] = []

    def send(self, message: DownstreamMessage) -> Deferred[Ack]:
        """
        See L{IDownstreamSender.send}.
        """
        result: Deferred[Ack] = Deferred(lambda _: self.cancelled.append(message.message_id))
        self.sent.append((message, result))
        return result
