"""
What the parts of the app server expect of each other and of the application.

For the application to provide: L{IUpstreamHandler}, and where they are of use
L{IReceiptHandler} and L{IOutcomeHandler} on the same object, and
L{ISessionObserver}.  For the application to call: L{IDownstreamSender} and
L{settled}.  Between the parts: L{IResponsible}.  For a store to
provide: L{IStore}, with its L{IInbox}, L{IOutbox} and L{IEntrusted}.

Methods with an underscore for C{self} left out are as zope.interface wants
them.  A method that returns C{Awaitable[object] | None} may be plain, return a
L{Deferred<twisted.internet.defer.Deferred>} or be C{async def}.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from msgspec import Struct
from twisted.application.service import IService
from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from fcmxmpp.entries import (
    DeadLetter,
    EntrustedEntry,
    InboxEntry,
    OutboxEntry,
    Outcome,
    SettledEntry,
    UnreadableEntry,
)
from fcmxmpp.errors import FCMError, MalformedPayload
from fcmxmpp.messages import Ack, DownstreamMessage, Receipt, UpstreamMessage
from fcmxmpp.registrations import (
    Application,
    Group,
    Identity,
    Mail,
    Posted,
    Registration,
    WebPushKeys,
)


__all__ = [
    "Acknowledged",
    "AppServerEvent",
    "Arrived",
    "DeadLettered",
    "Handled",
    "HandlingFailed",
    "IDownstreamSender",
    "IEntrusted",
    "IInbox",
    "IMailboxes",
    "IOutbox",
    "IOutcomeHandler",
    "IReceiptHandler",
    "IRegistrations",
    "IResponsible",
    "ISessionObserver",
    "IStore",
    "IUpstreamHandler",
    "LinkDrained",
    "LinkDraining",
    "LinkLost",
    "LinkReady",
    "Refused",
    "Repeated",
    "Sent",
    "Settled",
    "Stored",
    "Undecodable",
    "settled",
]


class IUpstreamHandler(Interface):
    """
    The application's side of upstream messages.
    """

    def messageReceived(message: UpstreamMessage) -> Awaitable[object] | None:
        """
        A device sent a message.

        It is done with once this returns, or once what it returns fires; the
        value does not matter.  If this raises (or fails, or takes longer than
        the handler time-out) it is called again for the message after a
        delay, and the message is put aside as a dead letter after the
        configured number of tries.

        Under the policy C{"handled"}, the default without a store, the message
        is acknowledged when it is done with or put aside.  Under C{"stored"},
        the default with one, it was acknowledged before.

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


class IOutcomeHandler(Interface):
    """
    The application's side of outcomes, of use where there is a store: there
    L{send<IDownstreamSender.send>} is done before the outcome is known, and
    the process that sent a message may be gone by then.  Without a store this
    is not called.

    Where the application's handler does not provide this, a message that was
    not accepted is only found in the store.
    """

    def messageSettled(outcome: Outcome) -> Awaitable[object] | None:
        """
        A downstream message has been accepted, or will not be sent any more.

        Each message has one outcome, and it is reported once; again only if
        this raises (or fails, or takes longer than the handler time-out), or
        if the process dies between the return of this and the record of it.
        After the configured number of tries it is not reported any more, which
        the log tells; L{HandlerUnavailable<fcmxmpp.errors.HandlerUnavailable>}
        does not count.

        What waits for L{settled} is told as well, before or after this.
        """


class Stored:
    """
    What L{IDownstreamSender.send} fires with where there is a store: the
    message is in the outbox, and will be sent even if this process dies.

    @ivar message_id: of the message.
    """

    def __init__(self, message_id: str, whenSettled: Callable[[Stored], Deferred[Ack]]) -> None:
        """
        @param whenSettled: see L{whenSettled}.
        """
        self.message_id = message_id
        self._whenSettled = whenSettled

    def __repr__(self) -> str:
        """
        Which message it is.
        """
        return f"Stored({self.message_id!r})"

    def whenSettled(self) -> Deferred[Ack]:
        """
        The outcome, as far as this process learns of it.

        @return: fires with the connection server's L{Ack}, or fails as
            L{IDownstreamSender.send} does without a store.  With
            L{Stopped<fcmxmpp.errors.Stopped>} it is still in the outbox.
            Cancelling it only ends the waiting.
        """
        return self._whenSettled(self)


class IDownstreamSender(Interface):
    """
    What an application sends by.
    """

    def send(message: DownstreamMessage) -> Deferred[Ack | Stored]:
        """
        Send a message to a device, a device group, a topic or a condition.

        A message without C{message_id} is given one.  What is refused for
        reasons that pass, or left unanswered by a lost connection, is sent
        again with the same C{message_id} for as long as its C{time_to_live}
        allows (4 weeks, unless it says otherwise; of 0 seconds it gets
        one).

        @return: fires exactly once, as soon as somebody else is responsible
            for the message.  Without a store that is the connection server:
            it fires with its L{Ack}, which means accepted and not yet
            delivered; keep its C{registration_id}, if it has one, in place of
            the old token.  With a store it is the outbox: it fires with a
            L{Stored}, which tells the outcome later.  L{settled} gives the
            outcome in both cases.

            Fails with L{NotSendable<fcmxmpp.errors.NotSendable>},
            L{QueueFull<fcmxmpp.errors.QueueFull>} or
            L{Stopped<fcmxmpp.errors.Stopped>}; without a store also with
            L{Nacked<fcmxmpp.errors.Nacked>},
            L{Expired<fcmxmpp.errors.Expired>} or
            L{AckTimedOut<fcmxmpp.errors.AckTimedOut>}; with one also with
            L{StoreUnavailable<fcmxmpp.errors.StoreUnavailable>}.  Cancelling
            it withdraws the message, unless it has just been sent and not
            been answered; with a store that is possible until it has fired.
        """


def settled(sent: Deferred[Ack | Stored]) -> Deferred[Ack]:
    """
    The outcome of a message, with and without a store::

        ack = await settled(sender.send(message))

    @param sent: what L{IDownstreamSender.send} returned.
    @return: fires with the connection server's L{Ack}, or fails with whatever
        kept the message from being accepted.
    """

    def outcome(result: Ack | Stored) -> Ack | Deferred[Ack]:
        return result.whenSettled() if isinstance(result, Stored) else result

    return sent.addCallback(outcome)


class IInbox(Interface):
    """
    Upstream messages that have been taken over, until they are handled; which
    messages have been, so that none is handled twice; and dead letters.

    What is called while something else is under way may be done before or
    after that; calls of the same method are done in their order.  Each fires
    when what it did will outlast the death of the process, and fails with
    L{StoreUnavailable<fcmxmpp.errors.StoreUnavailable>} if nothing was done.
    """

    def add(message: UpstreamMessage | Receipt) -> Deferred[InboxEntry | None]:
        """
        Take a message over.

        @return: fires with its entry; None if the same message has been added,
            remembered or put aside before.
        """

    def load(after: int, limit: int) -> Deferred[list[InboxEntry | UnreadableEntry]]:
        """
        What is to be handled, in the order of arrival.

        @param after: only entries with greater numbers than this.
        @param limit: no more than so many.
        @return: what cannot be read any more is among it, so that it can be
            put aside.
        """

    def tried(number: int, tries: int) -> Deferred[None]:
        """
        Note how often the handler has failed on an entry.
        """

    def handled(number: int) -> Deferred[None]:
        """
        Note that an entry has been handled; it is gone then.
        """

    def isKnown(key: tuple[str, str]) -> Deferred[bool]:
        """
        Whether a message has been added, remembered or put aside.

        @param key: its C{from} and C{message_id}.
        """

    def remember(key: tuple[str, str]) -> Deferred[None]:
        """
        Note that a message that was never added has been handled.
        """

    def putAside(letter: DeadLetter) -> Deferred[bool]:
        """
        Keep a message as a dead letter, be it an entry or not.

        @return: fires with whether that was done; not so if it is none of the
            inbox's entries, but is known already.
        """


class IOutbox(Interface):
    """
    Downstream messages that have been taken over, until they have an outcome
    and it is reported.  The rules of L{IInbox} hold.
    """

    def add(message: DownstreamMessage) -> Deferred[OutboxEntry]:
        """
        Take a message over.

        @param message: with its C{message_id}.
        @return: fires with its entry.  Fails with
            L{StillUnanswered<fcmxmpp.errors.StillUnanswered>} if a message of
            that C{message_id} has no outcome yet.
        """

    def load(after: int, limit: int) -> Deferred[list[OutboxEntry | UnreadableEntry]]:
        """
        What has no outcome yet, in the order of sending.

        @param after: only entries with greater numbers than this.
        @param limit: no more than so many.
        @return: what cannot be read any more is among it, so that it can be
            given an outcome.
        """

    def count() -> Deferred[int]:
        """
        How many have no outcome yet.
        """

    def withdraw(number: int) -> Deferred[None]:
        """
        Forget an entry that has not been sent.
        """

    def settle(number: int, outcome: Outcome, report: bool) -> Deferred[None]:
        """
        Note what became of an entry.

        @param report: whether it is yet to be reported.
        """

    def unreported(after: int, limit: int) -> Deferred[list[SettledEntry]]:
        """
        What has an outcome that is yet to be reported, in the order of
        sending.  An outcome that cannot be read any more is an
        L{Unreadable<fcmxmpp.errors.Unreadable>}.
        """

    def reported(number: int) -> Deferred[None]:
        """
        Note that an outcome has been reported.  An accepted message is
        forgotten then; another one is kept for a while, to be looked at.
        """


class IEntrusted(Interface):
    """
    What devices have entrusted to a connection server, until an app server
    has acknowledged it.  The rules of L{IInbox} hold.
    """

    def add(
        senderID: str, message: UpstreamMessage | Receipt, expires: float, upload: bytes | None = None
    ) -> Deferred[EntrustedEntry | None]:
        """
        Take a message over.

        @param expires: until when it is of use, in seconds since 1970.
        @param upload: what the device's sending of it is known by, 16 bytes: it
            is remembered for as long as an inbox remembers a message, whether
            this is still there or not.
        @return: None if that is known already.
        """

    def load(after: int, limit: int) -> Deferred[list[EntrustedEntry | UnreadableEntry]]:
        """
        What has not been removed, in the order of arrival.
        """

    def remove(number: int) -> Deferred[None]:
        """
        Forget an entry: it is acknowledged, or of no more use.
        """


class IRegistrations(Interface):
    """
    What a connection server knows of devices and of the apps on them.  The rules
    of L{IInbox} hold.

    A token that this store could have given, and does not know (any more), is
    one of an app that is gone; L{looksLikeToken} tells.
    """

    def checkIn(identity: Identity | None) -> Deferred[Identity]:
        """
        A device asks who it is.

        @param identity: who it says that it is.
        @return: that, if it is right; otherwise a new one, hard to guess.
        """

    def isKnown(identity: Identity) -> Deferred[bool]:
        """
        Whether this is a device that has checked in.
        """

    def secret() -> Deferred[bytes]:
        """
        32 random bytes, the same for as long as the store lasts: what the
        connection server signs things with that it gives to devices.
        """

    def register(identity: Identity, application: Application) -> Deferred[str]:
        """
        Register an app.

        @return: its token: the same as before if it is registered already.
        @raise fcmxmpp.errors.UnknownDevice: if the identity is wrong.
        @raise fcmxmpp.errors.TooManyRegistrations: over C{REGISTRATION_LIMIT}.
        """

    def registerWebPush(token: str, senderID: str, keys: WebPushKeys) -> Deferred[str]:
        """
        Register a Web Push subscription with a sender: what is sent to the new
        token goes, encrypted, to the app that has the given one.

        @param token: what C{c2dm/register3} gave.
        @return: the new token; the one that it has already if only the keys
            are new, which then hold.
        @raise fcmxmpp.errors.UnknownToken: if there is no such token.
        """

    def unregister(identity: Identity, category: str, senderID: str | None, subtype: str) -> Deferred[int]:
        """
        Unregister an app, with what waits for it, its subscriptions to topics
        and its places in device groups.

        @param senderID: only with this sender; with all, if None.
        @return: how many registrations there were.
        @raise fcmxmpp.errors.UnknownDevice: if the identity is wrong.
        """

    def remove(token: str) -> Deferred[bool]:
        """
        Unregister what has this token.

        @return: whether there was such a registration.
        """

    def lookUp(token: str) -> Deferred[Registration | None]:
        """
        The registration with this token.
        """

    def tokenOf(android_id: int, category: str, senderID: str) -> Deferred[str | None]:
        """
        The token that messages of an app to its sender are C{from}; the newest,
        if there are several subtypes.
        """

    def subscribe(tokens: list[str], topic: str, senderID: str | None = None) -> Deferred[list[str | None]]:
        """
        Subscribe registrations to a topic.

        @param topic: C{"/topics/NAME"}.
        @param senderID: who asks for it; None for the device itself.
        @return: for each token None, or what is wrong, as the batch forms of
            the Instance ID service say it: C{"NOT_FOUND"},
            C{"INVALID_ARGUMENT"} (no token), C{"PERMISSION_DENIED"} (of
            another sender), C{"TOO_MANY_TOPICS"}.
        """

    def unsubscribe(tokens: list[str], topic: str, senderID: str | None = None) -> Deferred[list[str | None]]:
        """
        The reverse; it is no error not to have been subscribed.
        """

    def topicsOf(token: str) -> Deferred[dict[str, float]]:
        """
        The names of the topics that a registration is subscribed to (without
        C{"/topics/"}), and since when, in seconds since 1970.
        """

    def createGroup(senderID: str, name: str, tokens: list[str]) -> Deferred[Group]:
        """
        Make a device group.

        @raise fcmxmpp.errors.GroupRefused: if there is one of that name, or a
            token is not one of this sender's, or there are too many or none;
            the text says which, as FCM does.
        """

    def addToGroup(senderID: str, notification_key: str, name: str, tokens: list[str]) -> Deferred[Group]:
        """
        Add registrations to a group.

        @raise fcmxmpp.errors.GroupRefused: as L{createGroup}; or if there is
            no such group.
        """

    def removeFromGroup(
        senderID: str, notification_key: str, name: str, tokens: list[str]
    ) -> Deferred[Group]:
        """
        Remove registrations from a group.  An empty group is gone.

        @raise fcmxmpp.errors.GroupRefused: as L{addToGroup}.
        """

    def findGroup(senderID: str, name: str) -> Deferred[Group | None]:
        """
        The group of that name.
        """


class IMailboxes(Interface):
    """
    The messages that wait for devices, or are on their way and have not been
    acknowledged.  The rules of L{IInbox} hold.
    """

    connected = Attribute(
        "The C{android_id} of each device that is connected, in a set that the connection server "
        "keeps up to date: the limits are others for these."
    )

    def post(senderID: str, message: DownstreamMessage) -> Deferred[Posted]:
        """
        Take a message over that passes L{fcmxmpp.validation.checkSendable}.

        To a token: C{BAD_REGISTRATION} if it is none, C{DEVICE_UNREGISTERED},
        C{SENDER_ID_MISMATCH}, C{DEVICE_MESSAGE_RATE_EXCEEDED} if the device is
        connected and C{CONNECTED_LIMIT} are waiting for the app.  If
        it is not connected and C{APP_LIMIT} are waiting, all of them are
        dropped and one C{deleted_messages} takes their place, before this one.
        A message takes the place of one with the same collapse key; a fifth
        key takes that of the oldest.  The same C{message_id} from the same
        sender to the same token while the first waits: one mail, not two.
        What has expired counts for none of this, swept or not.

        To a device group's C{notification_key}: to each member.  To a topic or
        condition: it is accepted, and L{spread} makes mails of it.

        With C{dry_run} nothing is kept, and the answer is as it would have
        been.  A C{time_to_live} of 0 is not kept either: if the device is
        connected, it is in C{mails} (for a topic, in those of L{spread}, if
        that comes soon) with the number 0.
        """

    def spread(limit: int) -> Deferred[tuple[list[Mail], bool]]:
        """
        Go on with messages to topics and conditions, the oldest first.

        @param limit: how many mails to make at the most.
        @return: mails as of L{post}, and whether there is more to do.
        """

    def notify(
        android_id: int, category: str, senderID: str, persistent_id: str, data: dict[str, str], ttl: int
    ) -> Deferred[Mail | None]:
        """
        Take a message over that the connection server itself has for an app,
        such as C{send_error}.

        @return: None if no such app is registered.
        """

    def load(android_id: int, after: int, limit: int) -> Deferred[list[Mail]]:
        """
        What waits for a device, in the order in which it came.  What has
        expired is not part of it.
        """

    def delivered(numbers: list[int]) -> Deferred[None]:
        """
        Forget mails: their devices have them.
        """

    def confirm(android_id: int, persistent_ids: list[str]) -> Deferred[list[Mail]]:
        """
        Forget mails: their device says at its login that it has them.

        @return: those that were still there, each once, in order; also those
            that have expired since.
        """

    def waiting(android_id: int) -> Deferred[int]:
        """
        How many mails there are for a device.
        """


class IStore(IService, Interface):
    """
    A store, as a service: it can be used from its start to its end.
    """

    inbox = Attribute("An L{IInbox}.")
    outbox = Attribute("An L{IOutbox}.")
    entrusted = Attribute("An L{IEntrusted}.")
    registrations = Attribute("An L{IRegistrations}.")
    mailboxes = Attribute("An L{IMailboxes}.")


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

    def takeMalformed(error: MalformedPayload, text: str) -> Deferred[None]:
        """
        Take over what could not be decoded but names a C{message_id} and a
        C{from}: put it aside.  The result is that of L{take}.

        @param text: what could not be decoded.
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
    What became of a downstream message is known.

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
