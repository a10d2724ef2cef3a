"""
What tests of handlers and of the send API send by.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from zope.interface import implementer

from fcmxmpp.interfaces import IDownstreamSender, Stored
from fcmxmpp.messages import Ack, DownstreamMessage


__all__ = ["Sender", "stored"]


def stored(message_id: str = "m") -> tuple[Stored, list[Deferred[Ack]]]:
    """
    What a message that was taken over by a store fires with.

    @return: that, and what it has returned to those who wait for the outcome.
    """
    waiting: list[Deferred[Ack]] = []

    def whenSettled(_: Stored) -> Deferred[Ack]:
        waiting.append(Deferred())
        return waiting[-1]

    return Stored(message_id, whenSettled), waiting


@implementer(IDownstreamSender)
class Sender:
    """
    Notes what is sent, and leaves the answer to the test.

    @ivar sent: each message, and what was returned for it.
    @ivar cancelled: the C{message_id} of each message that was withdrawn.
    """

    def __init__(self) -> None:
        self.sent: list[tuple[DownstreamMessage, Deferred[Ack | Stored]]] = []
        self.cancelled: list[str | None] = []

    def send(self, message: DownstreamMessage) -> Deferred[Ack | Stored]:
        """
        See L{IDownstreamSender.send}.
        """
        result: Deferred[Ack | Stored] = Deferred(lambda _: self.cancelled.append(message.message_id))
        self.sent.append((message, result))
        return result
