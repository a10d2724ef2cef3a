"""
Routing: from devices to the streams of their app server, and back.

Each sender has one queue of upstream messages, in the order they were
accepted, and any number of streams.  A message leaves the queue for the stream
with the fewest unacknowledged messages, if that has room; it comes back to the
front, in its order, if the stream is lost before the ACK.

With a store, what a device sends is committed first, and only then is the
device told that it is stored, and the message put into the queue.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from msgspec import Struct, structs
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import ServerFactory
from twisted.logger import Logger
from twisted.words.protocols.jabber.error import StreamError

from fcmxmpp.entries import EntrustedEntry
from fcmxmpp.errors import NotSendable
from fcmxmpp.interfaces import IEntrusted
from fcmxmpp.messages import (
    MAX_DATA_BYTES,
    MAX_ID_BYTES,
    MAX_UPSTREAM_TTL,
    RECEIPT_SENDER,
    Ack,
    DownstreamMessage,
    Nack,
    Receipt,
    ReceiptData,
    UpstreamMessage,
)
from fcmxmpp.server.custody import Custody
from fcmxmpp.server.registry import Device, LoginGuard, Registry
from fcmxmpp.server.script import Rule, Script
from fcmxmpp.server.stream import ServerStream
from fcmxmpp.validation import checkSendable
from fcmxmpp.window import Queue


__all__ = ["ConnectionServer", "IPostOffice", "objection"]

_log = Logger()

#: How many messages may wait for one sender's app server, those that are being
#: committed included.
MAX_QUEUE = 100_000
#: Seconds between looks for messages whose time has run out.
SWEEP = 60.0
#: Seconds after which it is certain that something has expired.
_MOMENT = 0.0005
#: How long "now" is, in seconds: time goes on between two looks at the clock.
_NOW = 1.0
#: What holds where the script says nothing.
_NO_RULE = Rule()


class _Entrusted:
    """
    A message that a device has entrusted to us, or a receipt.
    """

    __slots__ = ("devices", "expires", "message", "number")

    def __init__(self, message: UpstreamMessage | Receipt, expires: float, number: int | None = None) -> None:
        self.message = message
        self.expires = expires
        #: In the store; None while it is not there.
        self.number = number
        #: Whom to tell; more than one entry if it was sent more than once.
        self.devices: list[Device] = []


class _Held(Struct, frozen=True):
    """
    A message that came before it was known what is in the store: see
    L{ConnectionServer.take}.
    """

    device: Device
    message: UpstreamMessage
    expires: float | None
    upload: bytes | None

    def fail(self, error: str) -> None:
        """
        Tell the device that the message will not be delivered.
        """
        self.device.callbacks.messageFailed(self.message.message_id, error)


class _Sender:
    """
    What there is of one sender.
    """

    __slots__ = ("commits", "entrusted", "queue", "senderID", "streams")

    def __init__(self, senderID: str) -> None:
        self.senderID = senderID
        # What has been committed is taken regardless; the limit is ours.
        self.queue: Queue[tuple[str, str], _Entrusted] = Queue(sys.maxsize)
        #: What is being committed, in the order it is to get into the queue.
        self.commits: deque[_Entrusted] = deque()
        #: All that is not acknowledged: being committed, queued or on a stream.
        self.entrusted: dict[tuple[str, str], _Entrusted] = {}
        self.streams: list[ServerStream] = []

    @property
    def isFull(self) -> bool:
        """
        Whether no more is taken.
        """
        return len(self.queue) + len(self.commits) >= MAX_QUEUE


class Statistics(Struct):
    """
    What was counted since the start.

    @ivar delivered: upstream messages and receipts, each time they went out.
    @ivar redelivered: those that a lost stream gave back.
    @ivar acknowledged: those that app servers acknowledged.
    @ivar expired: those whose time ran out first.
    @ivar accepted: downstream messages that were ACKed.
    @ivar refused: those that were NACKed.
    """

    delivered: int = 0
    redelivered: int = 0
    acknowledged: int = 0
    expired: int = 0
    accepted: int = 0
    refused: int = 0


class _Factory(ServerFactory):
    """
    Builds a stream for each connection.
    """

    noisy = False

    def __init__(self, server: ConnectionServer, clock: IReactorTime) -> None:
        self._server = server
        self._clock = clock

    def buildProtocol(self, addr: object) -> ServerStream:
        """
        Build a stream.
        """
        stream = ServerStream(self._server, self._clock)
        stream.factory = self
        self._server.connected(stream)
        return stream


class IPostOffice(Protocol):
    """
    What a connection server needs of what serves the devices that connect to
    it: see L{fcmxmpp.server.postoffice}.
    """

    def post(self, senderID: str, message: DownstreamMessage, answer: Callable[[Ack | Nack], None]) -> None:
        """
        An app server sent a message that passes L{checkSendable}.

        @param answer: is called with the answer, now or later.
        """

    def absent(self, senderID: str, token: str) -> Device:
        """
        Whom to tell what became of a message that an earlier process took over.
        """


class ConnectionServer(Service):
    """
    A connection server.

    Without a store, it has everything in memory.  With one, nothing is lost
    that a device was told is stored: what has not been acknowledged when this
    process ends comes back into the queues at the next start.  Streams, and
    devices within this process, are in memory in any case; devices that connect
    are the affair of the post office.

    @ivar registry: who may log in, and the devices.
    @ivar factory: for the endpoint on which app servers connect.
    @ivar statistics: what was counted.
    @ivar script: what it does on request.
    """

    def __init__(
        self,
        registry: Registry,
        clock: IReactorTime,
        randomBytes: Callable[[int], bytes] = os.urandom,
        receipts: bool = False,
        entrusted: IEntrusted | None = None,
        office: IPostOffice | None = None,
    ) -> None:
        """
        @param receipts: whether to send delivery receipts where they are asked
            for; Google's server stopped that in 2019.
        @param entrusted: of a store that is started before this and stopped
            after it, and that nothing else uses.
        @param office: what serves the devices that are not in this process.
        """
        self.registry = registry
        self.script = Script()
        self._receipts = receipts
        self._office = office
        # The answers that the script delays.
        self._late: set[IDelayedCall] = set()
        self.guard = LoginGuard()
        self.factory = _Factory(self, clock)
        self.statistics = Statistics()
        self._clock = clock
        self._randomBytes = randomBytes
        self._senders: dict[str, _Sender] = {}
        self._connections: set[ServerStream] = set()
        self._idle: list[Deferred[None]] = []
        self._sweep: IDelayedCall | None = None
        # When the first of what is in a queue expires, or has expired.
        self._soonest = sys.float_info.max
        self._custody: Custody | None = None
        if entrusted is not None:
            self._custody = Custody(entrusted, clock, self._restore, self._refuseHeld)
        # What devices send while the custody is loaded.
        self._held: list[_Held] = []

    def startService(self) -> None:
        """
        Bring back what is in the store.
        """
        super().startService()
        if self._custody is not None:
            self._custody.start()

    # The device's side.

    def submit(
        self, device: Device, message_id: str, data: Mapping[str, object], time_to_live: int | None = None
    ) -> None:
        """
        A device sends a message to its app server.

        The device is told by its callbacks: stored, and then delivered or
        failed; or failed without having been stored.  If there is a store, it
        is told that something is stored when that is committed.

        The same message once more, while the first is on its way: one
        delivery, with the first one's time to live, and the device is told
        twice.

        @param data: strings; values that are none are left out, as Google's
            client libraries did.
        @param time_to_live: seconds; what is negative or more than 24 hours
            counts as 24 hours.  0 means now or never: with a store, such a
            message is not committed, and its device is never told that it is
            stored, only what became of it.
        """
        strings = {key: value for key, value in data.items() if isinstance(value, str)}
        if time_to_live is None or not 0 <= time_to_live <= MAX_UPSTREAM_TTL:
            time_to_live = MAX_UPSTREAM_TTL
        error = objection(message_id, strings)
        if error is not None:
            device.callbacks.messageFailed(message_id, error)
            return
        message = UpstreamMessage(
            data=strings,
            time_to_live=time_to_live,
            from_=device.token,
            message_id=message_id,
            category=device.category,
        )
        self.take(device, message)

    def take(
        self,
        device: Device,
        message: UpstreamMessage,
        expires: float | None = None,
        upload: bytes | None = None,
    ) -> None:
        """
        A device sends a message: what L{submit} does, for a message that
        L{objection} has nothing against.

        @param expires: until when it is of use, in seconds since 1970, if that
            does not follow from its C{time_to_live}.
        @param upload: see L{IEntrusted.add}.  If it is known, the device is told
            that the message is stored, and never more.
        """
        callbacks = device.callbacks
        custody = self._custody
        sender = self._sender(device.senderID)
        if sender.isFull or len(self._held) >= MAX_QUEUE:
            callbacks.messageFailed(message.message_id, "TOO_MANY_MESSAGES")
            return
        if custody is not None and not custody.isLoaded:
            self._hold(_Held(device, message, expires, upload))
            return
        entrusted = sender.entrusted.get(message.key)
        if entrusted is None:
            time_to_live = message.time_to_live or 0
            now = self._clock.seconds()
            if expires is None:
                expires = now + (time_to_live or _NOW)
            if expires < now or (not time_to_live and not self._mayGoNow(sender, message)):
                callbacks.messageFailed(message.message_id, "TTL_EXCEEDED")
                return
            entrusted = _Entrusted(message, expires)
            sender.entrusted[message.key] = entrusted
            if custody is not None and time_to_live:
                entrusted.devices.append(device)
                self._commit(custody, sender, entrusted, upload)
                return
            self._enqueue(sender, entrusted)
        entrusted.devices.append(device)
        if custody is None or entrusted.number is not None:
            callbacks.messageStored(message.message_id)
        self._route(sender)

    def _mayGoNow(self, sender: _Sender, message: UpstreamMessage) -> bool:
        """
        Whether a message can go out at once, without overtaking another of its
        device.
        """
        return (
            not sender.queue
            and any(stream.room for stream in sender.streams)
            and all(entrusted.message.from_ != message.from_ for entrusted in sender.commits)
        )

    # What is in the store.

    def _hold(self, held: _Held) -> None:
        """
        Keep a message until what was there before it is known.
        """
        if not held.message.time_to_live:
            held.fail("TTL_EXCEEDED")
        elif not self.running:
            held.fail("SERVICE_NOT_AVAILABLE")
        else:
            self._held.append(held)

    def _commit(
        self, custody: Custody, sender: _Sender, entrusted: _Entrusted, upload: bytes | None = None
    ) -> None:
        """
        Commit a message, and only then go on with it.
        """

        def added(entry: EntrustedEntry | None) -> None:
            if entry is None:
                # It came before, and its device was not told, or lost power.
                sender.commits.remove(entrusted)
                del sender.entrusted[entrusted.message.key]
            else:
                entrusted.number = entry.number
            self._queueCommitted(sender)
            for device in entrusted.devices:
                device.callbacks.messageStored(entrusted.message.message_id)
            self._route(sender)

        def refused(_: Exception) -> None:
            sender.commits.remove(entrusted)
            del sender.entrusted[entrusted.message.key]
            self._queueCommitted(sender)
            for device in entrusted.devices:
                device.callbacks.messageFailed(entrusted.message.message_id, "SERVICE_NOT_AVAILABLE")
            self._route(sender)

        sender.commits.append(entrusted)
        custody.add(sender.senderID, entrusted.message, entrusted.expires, added, refused, upload)

    def _queueCommitted(self, sender: _Sender) -> None:
        """
        Queue what is committed, but nothing before what was submitted earlier.
        """
        while sender.commits and sender.commits[0].number is not None:
            entrusted = sender.commits.popleft()
            self._enqueue(sender, entrusted)

    def _restore(self, entries: list[EntrustedEntry]) -> None:
        """
        Bring back what an earlier process has left, in its order; then take
        what devices have sent meanwhile.
        """
        assert self._custody is not None
        for entry in entries:
            known = self._sender(entry.senderID).entrusted
            older = known.pop(entry.message.key, None)
            if older is not None and older.number is not None:
                # It was acknowledged, and sent again before that got into the
                # store.
                self._custody.remove(older.number)
            known[entry.message.key] = _Entrusted(entry.message, entry.expires, entry.number)
        now = self._clock.seconds()
        expired = []
        for sender in self._senders.values():
            for entrusted in sender.entrusted.values():
                if entrusted.expires < now:
                    expired.append((sender, entrusted))
                else:
                    self._enqueue(sender, entrusted)
        # Only then, because a device that is told may send again at once.
        for sender, entrusted in expired:
            self._expire(sender, entrusted)
        for sender in list(self._senders.values()):
            self._route(sender)
        held, self._held = self._held, []
        for each in held:
            self.take(each.device, each.message, each.expires, each.upload)

    def _refuseHeld(self) -> None:
        """
        It is not known what is there: take nothing over, and keep nothing.
        """
        held, self._held = self._held, []
        for each in held:
            each.fail("SERVICE_NOT_AVAILABLE")

    def _remove(self, sender: _Sender, key: tuple[str, str]) -> list[Device]:
        """
        A message is acknowledged, or of no more use.

        @return: whom to tell.
        """
        entrusted = sender.entrusted.pop(key)
        if self._custody is None:
            return entrusted.devices
        if entrusted.number is not None:
            self._custody.remove(entrusted.number)
        if not entrusted.devices:
            # Of an earlier process; its device may have come back.
            device = self.registry.device(key[0])
            if device is None and self._office is not None and isinstance(entrusted.message, UpstreamMessage):
                device = self._office.absent(sender.senderID, key[0])
            return [] if device is None else [device]
        return entrusted.devices

    def _sender(self, senderID: str) -> _Sender:
        """
        What there is of a sender.
        """
        sender = self._senders.get(senderID)
        if sender is None:
            sender = self._senders[senderID] = _Sender(senderID)
        return sender

    def _leastBusy(self, sender: _Sender) -> ServerStream | None:
        """
        The stream that the next message goes to; None if none has room.
        """
        stream = max(sender.streams, key=lambda stream: stream.room, default=None)
        if stream is None or not stream.room:
            return None
        # The next one gets its turn where several are as busy.
        sender.streams.remove(stream)
        sender.streams.append(stream)
        return stream

    def _route(self, sender: _Sender) -> None:
        """
        Deliver what waits, as far as there is room.
        """
        now = self._clock.seconds()
        while sender.queue:
            stream = self._leastBusy(sender)
            if stream is None:
                self._setSweep()
                return
            entrusted = sender.queue.take()
            assert entrusted is not None
            if entrusted.expires < now:
                self._expire(sender, entrusted)
            else:
                self.statistics.delivered += 1
                stream.deliver(entrusted.message)

    def _expire(self, sender: _Sender, entrusted: _Entrusted) -> None:
        """
        A message's time has run out.
        """
        self.statistics.expired += 1
        for device in self._remove(sender, entrusted.message.key):
            device.callbacks.messageFailed(entrusted.message.message_id, "TTL_EXCEEDED")

    def _setSweep(self) -> None:
        """
        Have the queues looked through after a while, and no later than when
        something in them has expired: its app may wait for the news.
        """
        if not self.running:
            return
        now = self._clock.seconds()
        delay = min(SWEEP, max(0.0, self._soonest - now) + _MOMENT)
        if self._sweep is None:
            self._sweep = self._clock.callLater(delay, self._sweepQueues)
        elif now + delay < self._sweep.getTime():
            self._sweep.reset(delay)

    def _enqueue(self, sender: _Sender, entrusted: _Entrusted) -> None:
        """
        Put a message at the end of its queue.
        """
        self._soonest = min(self._soonest, entrusted.expires)
        sender.queue.append(entrusted.message.key, entrusted)

    def _sweepQueues(self) -> None:
        """
        Drop what waits in vain.
        """
        self._sweep = None
        self._soonest = sys.float_info.max
        now = self._clock.seconds()
        for sender in list(self._senders.values()):
            waiting = sender.queue.clear()
            for entrusted in waiting:
                if entrusted.expires >= now:
                    self._enqueue(sender, entrusted)
            # Only then, because a device that is told may send again at once.
            for entrusted in waiting:
                if entrusted.expires < now:
                    self._expire(sender, entrusted)
        if any(sender.queue for sender in self._senders.values()):
            self._setSweep()

    # The app server's side: see IRoutes.

    def newStreamID(self) -> str:
        """
        16 upper-case hexadecimal digits, as Google's had.
        """
        return self._randomBytes(8).hex().upper()

    def connected(self, stream: ServerStream) -> None:
        """
        A connection was made.
        """
        self._connections.add(stream)
        stream.addObserver("//event/stream/end", lambda reason: self._disconnected(stream))

    def _disconnected(self, stream: ServerStream) -> None:
        """
        A connection is gone.
        """
        self._connections.discard(stream)
        if not self._connections:
            idle, self._idle = self._idle, []
            for waiter in idle:
                waiter.callback(None)

    def bound(self, stream: ServerStream, resource: str | None) -> str:
        """
        Give a stream a resource: the one that it wants, made unique.  An older
        stream of that name is left alone, because app servers in the field run
        several under one name.
        """
        assert stream.senderID is not None
        taken = {other.resource for other in self._sender(stream.senderID).streams}
        if resource is None or resource in taken:
            suffix = self._randomBytes(8).hex().upper()
            return suffix if resource is None else f"{resource}-{suffix}"
        return resource

    def ready(self, stream: ServerStream) -> None:
        """
        A stream is logged in: what waits goes out on it.
        """
        assert stream.senderID is not None
        _log.info(
            "an app server of sender {senderID} logged in from {address}",
            senderID=stream.senderID,
            address=stream.address,
        )
        sender = self._sender(stream.senderID)
        sender.streams.append(stream)
        self._route(sender)

    def hasRoom(self, stream: ServerStream) -> None:
        """
        A stream takes more again.
        """
        assert stream.senderID is not None
        self._route(self._sender(stream.senderID))

    def acknowledged(self, stream: ServerStream, message: UpstreamMessage | Receipt) -> None:
        """
        A message has been taken over: tell the device, and send the next.
        """
        assert stream.senderID is not None
        sender = self._sender(stream.senderID)
        self.statistics.acknowledged += 1
        for device in self._remove(sender, message.key):
            device.callbacks.messageDelivered(message.message_id)
        self._route(sender)

    def lost(self, stream: ServerStream, unanswered: list[UpstreamMessage | Receipt]) -> None:
        """
        A stream is gone: what it did not acknowledge goes out again.
        """
        assert stream.senderID is not None
        _log.info(
            "an app server of sender {senderID} at {address} is gone; unacknowledged, and to go out again: "
            "{count}",
            senderID=stream.senderID,
            address=stream.address,
            count=len(unanswered),
        )
        sender = self._sender(stream.senderID)
        sender.streams.remove(stream)
        again = [(message.key, sender.entrusted[message.key]) for message in unanswered]
        self.statistics.redelivered += len(again)
        sender.queue.giveBack(again)
        self._route(sender)

    def accept(self, stream: ServerStream, message: DownstreamMessage) -> None:
        """
        An app server sent a message: answer it as the script says, or else
        give it to the device.
        """
        assert stream.senderID is not None
        rule = self.script.ruleFor(message) or _NO_RULE
        if rule.drain is not None:
            stream.drain(rule.drain)
            self.answer(stream, _nack(message, "CONNECTION_DRAINING", "Send on another connection"))
            return
        if rule.delay is None:
            return
        if rule.error is not None:
            self._answerBy(rule, stream, _nack(message, rule.error, ""))
            return
        try:
            checkSendable(message)
        except NotSendable as error:
            description = f'InvalidParameters : Field "{error.field}" {error.reason}'
            self._answerBy(rule, stream, _nack(message, "INVALID_JSON", description))
            return
        to = message.to or ""
        device = self.registry.device(to)
        if device is None and self._office is not None:
            self._office.post(stream.senderID, message, lambda answer: self._answerBy(rule, stream, answer))
        elif device is None and message.condition is None and not to.startswith("/topics/"):
            description = f"Invalid token on 'to' field: {to}"
            self._answerBy(rule, stream, _nack(message, "BAD_REGISTRATION", description))
        elif device is not None and device.senderID != stream.senderID:
            description = "The token belongs to another sender"
            self._answerBy(rule, stream, _nack(message, "SENDER_ID_MISMATCH", description))
        else:
            if device is not None and not message.dry_run:
                device.callbacks.messageReceived(message)
            self._answerBy(
                rule, stream, Ack(from_=to or message.condition, message_id=message.message_id or "")
            )
            if device is not None and not message.dry_run and message.delivery_receipt_requested:
                self.receipt(device.senderID, device.token, device.category, message.message_id or "")

    def _answerBy(self, rule: Rule, stream: ServerStream, answer: Ack | Nack) -> None:
        """
        Answer a message with what the script has to add.
        """
        if rule.registration_id is not None:
            answer = structs.replace(answer, registration_id=rule.registration_id)
        if rule.delay:
            self._answerLater(rule.delay, stream, answer)
        else:
            self.answer(stream, answer)

    def answer(self, stream: ServerStream, answer: Ack | Nack) -> None:
        """
        Answer a message that came on a stream, if that is still there.
        """
        if isinstance(answer, Ack):
            self.statistics.accepted += 1
        else:
            self.statistics.refused += 1
        stream.answer(answer)

    def _answerLater(self, delay: float, stream: ServerStream, answer: Ack | Nack) -> None:
        """
        Answer a message after some seconds.
        """

        def due() -> None:
            self._late.remove(call)
            self.answer(stream, answer)

        call = self._clock.callLater(delay, due)
        self._late.add(call)

    def receipt(self, senderID: str, token: str, category: str, message_id: str) -> None:
        """
        Tell an app server that a device has its message, if this server does
        that at all.

        @param token: of the device.
        @param category: of the app on it.
        """
        if not self._receipts:
            return
        now = self._clock.seconds()
        receipt = Receipt(
            category=category,
            data=ReceiptData(
                message_status="MESSAGE_SENT_TO_DEVICE",
                original_message_id=message_id,
                device_registration_id=token,
                message_sent_timestamp=str(int(now * 1000)),
            ),
            message_id=f"dr2:{message_id}",
            time_to_live=0,
            from_=RECEIPT_SENDER,
        )
        sender = self._sender(senderID)
        isReady = self._custody is None or self._custody.isLoaded
        if receipt.key in sender.entrusted or sender.isFull or not isReady:
            # The same message again, or an app server that is long gone, or a
            # store that does not work: the protocol does not promise receipts.
            return
        entrusted = _Entrusted(receipt, now + MAX_UPSTREAM_TTL)
        sender.entrusted[receipt.key] = entrusted
        if self._custody is not None:
            self._commit(self._custody, sender, entrusted)
            return
        self._enqueue(sender, entrusted)
        self._route(sender)

    def drain(self, grace: float = 10.0, streams: Iterable[ServerStream] | None = None) -> None:
        """
        Announce the end of connections, and end them later, as if for load
        balancing.  Until then ACKs are taken, and what app servers send is
        refused with C{CONNECTION_DRAINING}.

        @param grace: seconds until the end.
        @param streams: which; all that are logged in, if not given.
        """
        for stream in list(self.streams() if streams is None else streams):
            stream.drain(grace)

    def streams(self, senderID: str | None = None) -> list[ServerStream]:
        """
        The streams that are logged in, those that are being drained included.

        @param senderID: only those of this sender.
        """
        return [
            stream
            for known, sender in self._senders.items()
            if senderID in (None, known)
            for stream in sender.streams
        ]

    def closeSender(self, senderID: str) -> None:
        """
        Close the streams of a sender whose keys are others now.
        """
        # Those that have shown a key and are not quite logged in, too.
        for stream in [each for each in self._connections if each.senderID == senderID]:
            stream.sendStreamError(StreamError("not-authorized"))

    def dropConnections(self) -> None:
        """
        Break every connection, without a word.
        """
        for stream in list(self._connections):
            stream.abort()

    def stopService(self) -> Deferred[None]:
        """
        Close every stream, and wait until all are closed and nothing is being
        committed.  Stop listening first: a stream that is made meanwhile is
        waited for as well.
        """
        super().stopService()
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for call in self._late:
            call.cancel()
        self._late.clear()
        self._refuseHeld()
        closed: Deferred[None] = Deferred()
        custody = self._custody
        if custody is not None:
            # ACKs may come until the last stream is closed.
            closed.addCallback(lambda _: custody.stop())
        if not self._connections:
            closed.callback(None)
            return closed
        self._idle.append(closed)
        for stream in list(self._connections):
            stream.sendStreamError(StreamError("system-shutdown"))
        return closed


def objection(message_id: str, data: Mapping[str, str]) -> str | None:
    """
    What there is against a device's message: C{"INVALID_PARAMETERS"} or
    C{"SIZE"}, or nothing.
    """
    try:
        size = sum(len(key.encode()) + len(value.encode()) for key, value in data.items())
        identifier = message_id.encode()
    except UnicodeEncodeError:
        return "INVALID_PARAMETERS"
    if not 0 < len(identifier) <= MAX_ID_BYTES:
        return "INVALID_PARAMETERS"
    return "SIZE" if size > MAX_DATA_BYTES else None


def _nack(message: DownstreamMessage, error: str, description: str) -> Nack:
    """
    The refusal of a message.
    """
    return Nack(
        from_=message.to or message.condition or "",
        message_id=message.message_id or "",
        error=error,
        error_description=description,
    )
