"""
What the parts of the app server expect of each other and of the application.

For the application to provide: L{IUpstreamHandler}, and where it is of use
L{IReceiptHandler} and L{ISessionObserver}.  For the application to call:
L{IDownstreamSender}.  Between the parts: L{IResponsible}.

Methods with an underscore for C{self} left out are as zope.interface wants
them.  A method that returns C{Awaitable[object] | None} may be plain, return a
L{Deferred<twisted.internet.defer.Deferred>} or be C{async def}.
"""

from __future__ import annotations

from collections.abc import Awaitable

from msgspec import Struct
from twisted.internet.defer import Deferred
from zope.interface import Interface

from fcmxmpp.errors import FCMError, MalformedPayload
from fcmxmpp.messages import Ack, DownstreamMessage, Receipt, UpstreamMessage


__all__ = [
    "Acknowledged",
    "AppServerEvent",
    "Arrived",
    "DeadLettered",
    "Handled",
    "HandlingFailed",
    "IDownstreamSender",
    "IReceiptHandler",
    "IResponsible",
    "ISessionObserver",
    "IUpstreamHandler",
    "LinkDrained",
    "LinkDraining",
    "LinkLost",
    "LinkReady",
    "Refused",
    "Repeated",
    "Sent",
    "Settled",
    "Undecodable",
]


class IUpstreamHandler(Interface):
    """
    The application's side of upstream messages.
    """

    def messageReceived(message: UpstreamMessage) -> Awaitable[object] | None:
        """
        A device sent a message.

        It is acknowledged once this returns, or once what it returns fires;
        the value does not matter.  If it raises (or fails, or takes longer
        than the handler time-out) the message is not acknowledged; it is given
        to this method again after a delay, and put aside as a dead letter
        after the configured number of tries.

        At-least-once: after a crash or a time-out the same message may come
        again.  It is known by C{message.key}.

        @raise fcmxmpp.errors.HandlerUnavailable: to say that the message is
            not at fault; it is tried again until it succeeds.
        """


class IReceiptHandler(Interface):
    """
    The application's side of delivery receipts.  Where the application's
    handler does not provide this, receipts are just acknowledged.
    """

    def receiptReceived(receipt: Receipt) -> Awaitable[object] | None:
        """
        A device has got a downstream message for which a receipt had been
        requested.  The same rules as for
        L{messageReceived<IUpstreamHandler.messageReceived>} hold.
        """


class IDownstreamSender(Interface):
    """
    What an application sends by.
    """

    def send(message: DownstreamMessage) -> Deferred[Ack]:
        """
        Send a message to a device, a device group, a topic or a condition.

        A message without C{message_id} is given one.  What is refused for
        reasons that pass, or left unanswered by a lost connection, is sent
        again with the same C{message_id} for as long as its C{time_to_live}
        allows (4 weeks, unless it says otherwise; of 0 seconds it gets
        one).

        @return: fires exactly once, with the connection server's L{Ack}, which
            means accepted and not yet delivered; store its C{registration_id},
            if it has one, in place of the old token.  Fails with
            L{NotSendable<fcmxmpp.errors.NotSendable>},
            L{Nacked<fcmxmpp.errors.Nacked>},
            L{Expired<fcmxmpp.errors.Expired>},
            L{AckTimedOut<fcmxmpp.errors.AckTimedOut>},
            L{QueueFull<fcmxmpp.errors.QueueFull>} or
            L{Stopped<fcmxmpp.errors.Stopped>}.  Cancelling it withdraws the
            message, unless it has just been sent and not been answered.
        """


class IResponsible(Interface):
    """
    What takes responsibility for what a stream brings.
    """

    def take(message: UpstreamMessage | Receipt) -> Deferred[None]:
        """
        Take over a message.

        @return: fires as soon as the message may be acknowledged; never fails
            for what the application does.  Fails with
            L{Stopped<fcmxmpp.errors.Stopped>} or
            L{QueueFull<fcmxmpp.errors.QueueFull>} if the message will not be
            taken over, and so must not be acknowledged.
        """

    def takeMalformed(error: MalformedPayload) -> Deferred[None]:
        """
        Take over what could not be decoded but names a C{message_id} and a
        C{from}: put it aside.  The result is that of L{take}.
        """

    def discard(error: MalformedPayload) -> None:
        """
        Count what could not be decoded and cannot be named.
        """


class Arrived(Struct, frozen=True):
    """
    A message came in and is not known yet.
    """

    message: UpstreamMessage | Receipt


class Repeated(Struct, frozen=True):
    """
    A message came in that has been handled, or is being handled, already.
    """

    message: UpstreamMessage | Receipt


class Handled(Struct, frozen=True):
    """
    The application took a message over.

    @ivar tries: how often the handler was called for it.
    @ivar seconds: from its arrival to now.
    """

    message: UpstreamMessage | Receipt
    tries: int
    seconds: float


class HandlingFailed(Struct, frozen=True):
    """
    The application's handler failed once.

    @ivar retryIn: seconds until the next try, or None if there is none.
    """

    message: UpstreamMessage | Receipt
    tries: int
    retryIn: float | None


class DeadLettered(Struct, frozen=True):
    """
    A message was put aside.

    @ivar reason: why, without any of its contents.
    """

    message_id: str
    from_: str
    reason: str


class Undecodable(Struct, frozen=True):
    """
    Something came in that is no message of the protocol.

    @ivar reason: what is wrong, without any of its contents.
    """

    reason: str


class Acknowledged(Struct, frozen=True):
    """
    The ACK for a message was written to the stream that brought it.
    """

    message_id: str
    from_: str


class Sent(Struct, frozen=True):
    """
    A downstream message was written to a stream.

    @ivar link: which link's, from 1.
    @ivar tries: how often it has been written by now, to whichever stream.
    """

    message: DownstreamMessage
    link: int
    tries: int


class Refused(Struct, frozen=True):
    """
    A downstream message was NACKed and will be sent again.

    @ivar error: the code, such as C{"SERVICE_UNAVAILABLE"}.
    @ivar retryIn: seconds until it may be sent again; 0 for as soon as there
        is room on another link.
    """

    message: DownstreamMessage
    error: str
    retryIn: float


class Settled(Struct, frozen=True):
    """
    The Deferred of a downstream message is about to fire.

    @ivar error: what it fails with; None if the message was accepted.
    @ivar tries: how often it was written to a stream.
    @ivar seconds: since it was given to C{send}.
    """

    message: DownstreamMessage
    error: FCMError | None
    tries: int
    seconds: float


class LinkReady(Struct, frozen=True):
    """
    A link is logged in.

    @ivar link: which one, from 1.
    @ivar generation: counts the streams of this link, from 1.
    """

    link: int
    generation: int


class LinkDraining(Struct, frozen=True):
    """
    The connection server is about to close a link's stream.  Nothing new is
    sent on it; what comes in is still handled and acknowledged.
    """

    link: int
    generation: int


class LinkDrained(Struct, frozen=True):
    """
    A stream that was being drained is gone.
    """

    link: int
    generation: int


class LinkLost(Struct, frozen=True):
    """
    A link's stream is gone without having been drained, or could not be made.

    @ivar reason: why, in one readable line.
    @ivar retryIn: seconds until the next try.
    """

    link: int
    reason: str
    retryIn: float


#: Everything that an L{ISessionObserver} is told.
AppServerEvent = (
    Arrived
    | Repeated
    | Handled
    | HandlingFailed
    | DeadLettered
    | Undecodable
    | Acknowledged
    | Sent
    | Refused
    | Settled
    | LinkReady
    | LinkDraining
    | LinkDrained
    | LinkLost
)


class ISessionObserver(Interface):
    """
    Somebody who watches: a test, a metric, a status page.
    """

    def observed(event: AppServerEvent) -> None:
        """
        Something happened.  This is called in the midst of it, so it has to be
        quick; it must not raise.
        """
