"""
Between app servers and the devices that connect to this connection server.

Downstream, what an app server sends is put into a mailbox first, and then
delivered if the device is connected; it leaves the mailbox when the device has
acknowledged it.  Upstream, a device's message gets the registration token that
it is from, and goes to L{ConnectionServer<fcmxmpp.server.service.ConnectionServer>}.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from msgspec import Struct
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from fcmxmpp.errors import Stopped, StoreUnavailable
from fcmxmpp.interfaces import IMailboxes, IRegistrations
from fcmxmpp.mcs.stanzas import Upload
from fcmxmpp.messages import Ack, DownstreamMessage, Nack, UpstreamMessage
from fcmxmpp.registrations import Application, Identity, Mail, Posted, Registration
from fcmxmpp.retry import backoff
from fcmxmpp.server.registry import Device, IDeviceCallbacks
from fcmxmpp.server.service import ConnectionServer, objection


__all__ = ["DeviceCounts", "IDeviceConnection", "PostOffice", "noteFailure"]

_log = Logger()

#: How many mails are loaded at once for a device, and made at once of a message to
#: a topic.
PAGE, SPREAD = 50, 500
#: Seconds that a device has to fetch the news of a failed message.
NEWS_TTL = 86_400
#: What Google's client libraries call what L{IDeviceCallbacks.messageFailed} says.
_ERRORS = {
    "INVALID_PARAMETERS": "invalid_parameters",
    "SIZE": "messagetoobig",
    "TTL_EXCEEDED": "service_not_available",
    "TOO_MANY_MESSAGES": "toomanymessages",
    "SERVICE_NOT_AVAILABLE": "service_not_available",
}


class IDeviceConnection(Protocol):
    """
    The connection of a device that has logged in.
    """

    @property
    def android_id(self) -> int:
        """
        Which device it is.
        """

    @property
    def mayTake(self) -> bool:
        """
        Whether it takes a mail now.  When it does again after it did not, it
        calls L{PostOffice.deliver}.
        """

    def take(self, mail: Mail) -> None:
        """
        Send a mail; what becomes of it is told by L{PostOffice.delivered} or
        L{PostOffice.givenUp}, or never, if the connection is lost first.
        """

    def stored(self, streamID: int) -> None:
        """
        What the device has sent is in safe hands, or cannot be helped.
        """

    def end(self, reason: str) -> None:
        """
        Close the connection.
        """


class DeviceCounts(Struct):
    """
    What was counted since the start.

    @ivar logins: of devices.
    @ivar uploads: messages that devices have sent, duplicates included.
    @ivar delivered: mails that devices have acknowledged.
    @ivar unacknowledged: mails that were given up, because their devices live
        and do not acknowledge.
    """

    logins: int = 0
    uploads: int = 0
    delivered: int = 0
    unacknowledged: int = 0


class _Box:
    """
    What a connected device gets next.

    @ivar last: the number of the last mail that it was sent.
    @ivar isMore: whether there may be more in the store.
    @ivar isLoading: whether that is being looked up.
    """

    __slots__ = ("asOf", "connection", "isLoading", "isMore", "last", "tokens", "uploads")

    def __init__(self, connection: IDeviceConnection) -> None:
        self.connection = connection
        self.last = 0
        self.isMore = True
        self.isLoading = False
        #: What has come and waits until it is known whom it is from, in order.
        self.uploads: list[tuple[int, Upload]] | None = None
        #: Whom the messages of an app to a sender are from, and as of which change.
        self.tokens: dict[tuple[str, str], str] = {}
        self.asOf = 0


@implementer(IDeviceCallbacks)
class _Sent:
    """
    A device's message on its way: what becomes of it.
    """

    __slots__ = ("_box", "_isKept", "_office", "_streamID", "_upload")

    def __init__(self, office: PostOffice, box: _Box, streamID: int, upload: Upload) -> None:
        self._office = office
        self._box = box
        self._streamID = streamID
        self._upload = upload
        # A time_to_live of 0 is now or never, and never in the store.
        self._isKept = upload.time_to_live > 0

    def messageStored(self, message_id: str) -> None:
        """
        See L{IDeviceCallbacks.messageStored}.
        """
        self._box.connection.stored(self._streamID)

    def messageDelivered(self, message_id: str) -> None:
        """
        See L{IDeviceCallbacks.messageDelivered}.  Devices are not told.
        """

    def messageFailed(self, message_id: str, error: str) -> None:
        """
        See L{IDeviceCallbacks.messageFailed}.
        """
        if error == "SERVICE_NOT_AVAILABLE" and self._isKept:
            # The device has it still, and will send it again.
            self._box.connection.end("its messages cannot be stored")
            return
        self._office.tellFailure(self._box, self._upload, error)
        self._box.connection.stored(self._streamID)

    def messageReceived(self, message: DownstreamMessage) -> None:
        """
        See L{IDeviceCallbacks.messageReceived}.  That way goes through the
        mailboxes.
        """
        raise AssertionError("a device that connects gets its messages from its mailbox")


@implementer(IDeviceCallbacks)
class _Absent:
    """
    The sender of a message that an earlier process took over.
    """

    def __init__(self, office: PostOffice, senderID: str, token: str) -> None:
        self._office = office
        self._senderID = senderID
        self._token = token

    def messageStored(self, message_id: str) -> None:
        """
        See L{IDeviceCallbacks.messageStored}.  That was told long ago.
        """

    def messageDelivered(self, message_id: str) -> None:
        """
        See L{IDeviceCallbacks.messageDelivered}.  Devices are not told.
        """

    def messageFailed(self, message_id: str, error: str) -> None:
        """
        See L{IDeviceCallbacks.messageFailed}.
        """
        self._office.tellAbsent(self._senderID, self._token, message_id, error)

    def messageReceived(self, message: DownstreamMessage) -> None:
        """
        See L{IDeviceCallbacks.messageReceived}.
        """
        raise AssertionError("a device that connects gets its messages from its mailbox")


class PostOffice:
    """
    What serves the devices that connect.

    @ivar registrations: who they are.
    @ivar mailboxes: what waits for them.
    @ivar counts: what was counted.
    """

    def __init__(
        self,
        registrations: IRegistrations,
        mailboxes: IMailboxes,
        clock: IReactorTime,
    ) -> None:
        self.registrations = registrations
        self.mailboxes = mailboxes
        self.counts = DeviceCounts()
        self._clock = clock
        self._boxes: dict[int, _Box] = {}
        # Counts what may have changed whom messages are from.
        self._changes = 0
        self._server: ConnectionServer | None = None
        self._isSpreading = False
        self._failures = 0
        self._later: IDelayedCall | None = None

    @property
    def server(self) -> ConnectionServer:
        """
        Where messages of devices go to: set once, before the start.
        """
        assert self._server is not None
        return self._server

    @server.setter
    def server(self, server: ConnectionServer) -> None:
        self._server = server

    def start(self) -> None:
        """
        Go on with what an earlier process has left.
        """
        self._spread()

    def stop(self) -> None:
        """
        Take nothing new.
        """
        if self._later is not None:
            self._later.cancel()
            self._later = None
        for box in list(self._boxes.values()):
            box.connection.end("this server stops")

    # Downstream.

    def post(self, senderID: str, message: DownstreamMessage, answer: Callable[[Ack | Nack], None]) -> None:
        """
        See L{IPostOffice.post<fcmxmpp.server.service.IPostOffice.post>}.
        """

        def posted(result: Posted) -> None:
            if result.error is None:
                answer(
                    Ack(
                        from_=message.to or message.condition,
                        message_id=message.message_id or "",
                        success=result.success,
                        failure=None if result.success is None else len(result.failed),
                        failed_registration_ids=result.failed or None,
                    )
                )
            else:
                answer(_refusal(message, result.error, result.description))
            for mail in result.mails:
                self._offer(mail)
            if message.condition is not None or (message.to or "").startswith("/topics/"):
                self._spread()

        def failed(failure: Failure) -> None:
            noteFailure("taking over a message for devices failed", failure)
            answer(_refusal(message, "SERVICE_UNAVAILABLE", "The message cannot be stored"))

        self.mailboxes.post(senderID, message).addCallbacks(posted, failed).addErrback(_bug)

    def _spread(self) -> None:
        """
        Make mails of messages to topics, as long as there are any.
        """
        if self._isSpreading or self._later is not None:
            return
        self._isSpreading = True

        def spread(result: tuple[list[Mail], bool]) -> None:
            self._isSpreading = False
            self._failures = 0
            mails, isMore = result
            for mail in mails:
                self._offer(mail)
            if isMore:
                self._spread()

        def failed(failure: Failure) -> None:
            self._isSpreading = False
            noteFailure("sending a message to a topic failed", failure)
            if failure.check(Stopped) is None:
                self._failures += 1
                # No jitter: nobody else waits for this store.
                self._later = self._clock.callLater(backoff(self._failures, 0.0), again)

        def again() -> None:
            self._later = None
            self._spread()

        self.mailboxes.spread(SPREAD).addCallbacks(spread, failed).addErrback(_bug)

    def _offer(self, mail: Mail) -> None:
        """
        Deliver a mail now, if its device is there and has got all before it.
        """
        box = self._boxes.get(mail.registration.android_id)
        if box is None:
            return
        if not mail.number:
            # Now or never; at least it does not overtake itself.
            if box.connection.mayTake:
                box.connection.take(mail)
        elif mail.number > box.last:
            if box.isMore or box.isLoading or not box.connection.mayTake:
                box.isMore = True
            else:
                box.last = mail.number
                box.connection.take(mail)

    def deliver(self, connection: IDeviceConnection) -> None:
        """
        Send a device what waits for it, as far as it takes that now.
        """
        box = self._boxes.get(connection.android_id)
        if box is None or box.connection is not connection:
            return
        if box.isLoading or not box.isMore or not connection.mayTake:
            return
        box.isLoading, box.isMore = True, False

        def loaded(mails: list[Mail]) -> None:
            box.isLoading = False
            if len(mails) == PAGE:
                box.isMore = True
            for mail in mails:
                if self._boxes.get(connection.android_id) is not box or not connection.mayTake:
                    box.isMore = True
                    break
                box.last = mail.number
                connection.take(mail)
            self.deliver(connection)

        def failed(failure: Failure) -> None:
            box.isLoading = False
            noteFailure("looking for what waits for a device failed", failure)
            # It comes again, and then the store may work.
            connection.end("what waits for it cannot be looked up")

        self.mailboxes.load(connection.android_id, box.last, PAGE).addCallbacks(loaded, failed).addErrback(
            _bug
        )

    def delivered(self, mails: list[Mail | int]) -> None:
        """
        A device has acknowledged mails.

        @param mails: by their numbers, but for those whose app server wants a
            receipt.
        """
        self.counts.delivered += len(mails)
        self._forget(mails)
        for mail in mails:
            if isinstance(mail, Mail):
                self._receipt(mail)

    def givenUp(self, mails: list[Mail | int]) -> None:
        """
        A device that lives has not acknowledged mails for too long, so that it
        is taken for granted that it got them.

        @param mails: as of L{delivered}.
        """
        self.counts.unacknowledged += len(mails)
        self._forget(mails)

    def _forget(self, mails: list[Mail | int]) -> None:
        """
        Take mails out of their mailbox.
        """
        numbers = [mail.number if isinstance(mail, Mail) else mail for mail in mails]
        numbers = [number for number in numbers if number]
        if numbers:
            # If that fails they are sent once more, and the device knows them.
            self.mailboxes.delivered(numbers).addErrback(
                lambda failure: noteFailure("forgetting what a device has got failed", failure)
            )

    def confirmed(self, connection: IDeviceConnection, persistent_ids: list[str]) -> Deferred[None]:
        """
        A device says which mails it has got, by their names.

        @return: fires when that is in the store; fails if it is not.
        """

        def done(mails: list[Mail]) -> None:
            self.counts.delivered += len(mails)
            for mail in mails:
                self._receipt(mail)

        return self.mailboxes.confirm(connection.android_id, persistent_ids).addCallback(done)

    def _receipt(self, mail: Mail) -> None:
        """
        Tell the app server that a device has its message, if it wants that.
        """
        message = mail.message
        if message.delivery_receipt_requested and message.message_id is not None:
            self.server.receipt(
                mail.senderID,
                mail.registration.token,
                mail.registration.application.category,
                message.message_id,
            )

    # Devices.

    def isKnown(self, identity: Identity) -> Deferred[bool]:
        """
        Whether a device is who it says.
        """
        return self.registrations.isKnown(identity)

    def opened(self, connection: IDeviceConnection) -> None:
        """
        A device has logged in.  An older connection of the same device is
        closed.
        """
        self.counts.logins += 1
        older = self._boxes.get(connection.android_id)
        self._boxes[connection.android_id] = _Box(connection)
        self.mailboxes.connected.add(connection.android_id)
        if older is not None:
            older.connection.end("it has connected anew")
        self.deliver(connection)

    def closed(self, connection: IDeviceConnection) -> None:
        """
        The connection of a device that had logged in is gone.
        """
        box = self._boxes.get(connection.android_id)
        if box is not None and box.connection is connection:
            del self._boxes[connection.android_id]
            self.mailboxes.connected.discard(connection.android_id)

    @property
    def connections(self) -> int:
        """
        How many devices are connected.
        """
        return len(self._boxes)

    # Upstream.

    def changed(self) -> None:
        """
        An app was registered or unregistered: whom messages are from has to be
        looked up anew.
        """
        self._changes += 1

    def upload(self, connection: IDeviceConnection, streamID: int, upload: Upload) -> None:
        """
        A device has sent a message; what becomes of it is told by
        L{IDeviceConnection.stored}, once.
        """
        self.counts.uploads += 1
        box = self._boxes.get(connection.android_id)
        if box is None or box.connection is not connection:
            # Another connection has taken its place, and will bring it again.
            return
        if box.uploads is not None:
            # What came before it is still being looked up.
            box.uploads.append((streamID, upload))
            return
        self._take(box, streamID, upload)

    def _take(self, box: _Box, streamID: int, upload: Upload) -> None:
        """
        Pass on a message, in its turn.
        """
        if upload.to_sender is None:
            box.connection.stored(streamID)
            return
        error = objection(upload.message_id, upload.data)
        if error is not None or not upload.to_sender:
            self.tellFailure(box, upload, error or "INVALID_PARAMETERS")
            box.connection.stored(streamID)
            return
        changes = self._changes
        if box.asOf != changes:
            box.tokens.clear()
            box.asOf = changes
        key = (upload.category, upload.to_sender)
        token = box.tokens.get(key)
        if token is not None:
            self._pass(box, streamID, upload, token)
            return
        box.uploads = []

        def found(token: str | None) -> None:
            if token is not None and changes == self._changes:
                box.tokens[key] = token
            waiting, box.uploads = box.uploads or [], None
            if token is None:
                self.tellFailure(box, upload, "INVALID_PARAMETERS")
                box.connection.stored(streamID)
            else:
                self._pass(box, streamID, upload, token)
            while waiting and box.uploads is None:
                self._take(box, *waiting.pop(0))
            if box.uploads is not None:
                # One of these is being looked up in turn.
                box.uploads += waiting

        def failed(failure: Failure) -> None:
            box.uploads = None
            noteFailure("looking for whom a message is from failed", failure)
            # The device has it still, and will send it again.
            box.connection.end("its messages cannot be stored")

        self.registrations.tokenOf(box.connection.android_id, *key).addCallbacks(found, failed).addErrback(
            _bug
        )

    def _pass(self, box: _Box, streamID: int, upload: Upload, token: str) -> None:
        """
        Pass on a message whose sender is known.
        """
        assert upload.to_sender is not None
        device = Device(token, upload.to_sender, upload.category, _Sent(self, box, streamID, upload))
        message = UpstreamMessage(
            data=upload.data,
            time_to_live=upload.time_to_live,
            from_=token,
            message_id=upload.message_id,
            category=upload.category,
        )
        if upload.time_to_live:
            self.server.take(device, message, upload.expires, upload.key)
        else:
            self.server.take(device, message)
            box.connection.stored(streamID)

    def tellFailure(self, box: _Box, upload: Upload, error: str) -> None:
        """
        Tell an app that its message will not be delivered.
        """
        self._tellApp(
            box.connection.android_id, upload.category, upload.to_sender or "", upload.message_id, error
        )

    def tellAbsent(self, senderID: str, token: str, message_id: str, error: str) -> None:
        """
        Tell an app that a message will not be delivered that an earlier
        process took over.
        """

        def found(registration: Registration | None) -> None:
            if registration is not None:
                self._tellApp(
                    registration.android_id, registration.application.category, senderID, message_id, error
                )

        self.registrations.lookUp(token).addCallbacks(found, _notTold).addErrback(_bug)

    def _tellApp(self, android_id: int, category: str, senderID: str, message_id: str, error: str) -> None:
        """
        Have an app told what became of its message.
        """

        def kept(mail: Mail | None) -> None:
            box = self._boxes.get(android_id)
            if mail is not None:
                self._offer(mail)
            elif box is not None and box.connection.mayTake:
                # The app is not registered, so nothing is kept for it.
                box.connection.take(_passing(android_id, category, senderID, message_id, data))

        data = {"message_type": "send_error", "error": _ERRORS[error]}
        self.mailboxes.notify(android_id, category, senderID, message_id, data, NEWS_TTL).addCallbacks(
            kept, _notTold
        ).addErrback(_bug)

    def absent(self, senderID: str, token: str) -> Device:
        """
        See L{IPostOffice.absent<fcmxmpp.server.service.IPostOffice.absent>}.
        """
        return Device(token, senderID, "", _Absent(self, senderID, token))


def _refusal(message: DownstreamMessage, error: str, description: str) -> Nack:
    """
    The refusal of a message.
    """
    return Nack(
        from_=message.to or message.condition or "",
        message_id=message.message_id or "",
        error=error,
        error_description=description,
    )


def _passing(android_id: int, category: str, senderID: str, message_id: str, data: dict[str, str]) -> Mail:
    """
    A mail that is in no mailbox.
    """
    application = Application(category=category, senderID=senderID)
    return Mail(
        number=0,
        persistent_id=message_id,
        registration=Registration(token="", android_id=android_id, application=application),
        senderID=senderID,
        message=DownstreamMessage(data=data),
        posted=0.0,
        expires=0.0,
    )


def noteFailure(what: str, failure: Failure) -> None:
    """
    A store does not work, and says so itself; anything else is a bug.
    """
    if failure.check(StoreUnavailable, Stopped) is None:
        _log.failure(what, failure)


def _notTold(failure: Failure) -> None:
    """
    An app is not told what became of its message: the protocol does not promise
    that.
    """
    noteFailure("telling an app what became of its message failed", failure)


def _bug(failure: Failure) -> None:
    """
    Something of ours failed.
    """
    _log.failure("serving a device failed", failure)
