"""
Downstream: from the application's C{send} to the connection server's answer.

What is sent waits in one bounded L{Queue<fcmxmpp.window.Queue>} until a stream
has room for it.  What a lost stream leaves unanswered goes back to the front
of the queue, in its order, and out on the next stream with the same
C{message_id}.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import structs
from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure
from zope.interface import implementer

from fcmxmpp.client import FCMClientProtocol, ISettles
from fcmxmpp.errors import FCMError, Nacked, NotSendable, QueueFull, Stopped
from fcmxmpp.interfaces import IDownstreamSender
from fcmxmpp.messages import Ack, DownstreamMessage
from fcmxmpp.payload import MAX_TEXT, encode
from fcmxmpp.window import Queue


__all__ = ["MAX_QUEUE", "DownstreamSender"]

#: How many messages may wait behind the window.
MAX_QUEUE = 10_000


@implementer(IDownstreamSender, ISettles)
class DownstreamSender:
    """
    Sends downstream messages over whichever stream has room.
    """

    def __init__(self, newID: Callable[[], str], limit: int = MAX_QUEUE) -> None:
        """
        @param newID: makes a C{message_id} that was never used before.
        @param limit: how many messages may wait.
        """
        self._newID = newID
        self._queue: Queue[str, DownstreamMessage] = Queue(limit)
        self._results: dict[str, Deferred[Ack]] = {}
        self._streams: list[FCMClientProtocol] = []
        self._stopped = False

    def send(self, message: DownstreamMessage) -> Deferred[Ack]:
        """
        See L{IDownstreamSender.send}.
        """
        if self._stopped:
            return fail(Stopped("the app server has stopped"))
        if message.message_id is None:
            message = structs.replace(message, message_id=self._newID())
        message_id = message.message_id
        assert message_id is not None
        try:
            if (message.to is None) == (message.condition is None):
                raise NotSendable("to", "exactly one of to and condition must be given")
            if message_id in self._results:
                raise NotSendable("message_id", "a message with this message_id is still unanswered")
            if not message_id:
                raise NotSendable("message_id", "must not be empty")
            if len(encode(message)) > MAX_TEXT // 2:
                raise NotSendable("data", "the message is larger than a stanza may be")
            if self._queue.full:
                raise QueueFull(f"{self._queue.limit} messages wait already")
        except FCMError:
            return fail(Failure())
        result: Deferred[Ack] = Deferred(lambda _: self._withdraw(message_id))
        self._results[message_id] = result
        self._queue.append(message_id, message)
        self._fill()
        return result

    def _withdraw(self, message_id: str) -> None:
        """
        The application cancelled the Deferred of a message.
        """
        # One that has been sent keeps its place until it is answered, or its
        # message_id could be used twice; nobody is told the answer.
        if self._queue.remove(message_id) is not None:
            del self._results[message_id]

    def _fill(self) -> None:
        """
        Send what waits, as far as there is room.
        """
        while self._queue:
            stream = max(self._streams, key=lambda s: s.room, default=None)
            if stream is None or not stream.room:
                return
            message = self._queue.take()
            assert message is not None
            try:
                stream.sendDownstream(message)
            except NotSendable as error:
                # Its data were changed after send().
                result = self._settle(message)
                if result is not None:
                    result.errback(error)

    def _settle(self, message: DownstreamMessage) -> Deferred[Ack] | None:
        """
        The Deferred of a message that has its final answer; None if the
        application has cancelled it, or if it was stopped.
        """
        result = self._results.pop(message.message_id or "", None)
        return None if result is None or result.called else result

    def linkReady(self, protocol: FCMClientProtocol) -> None:
        """
        See L{ISettles.linkReady}.
        """
        self._streams.append(protocol)
        self._fill()

    def linkDraining(self, protocol: FCMClientProtocol) -> None:
        """
        See L{ISettles.linkDraining}.
        """
        # Its session has no room from now on, so nothing goes out on it.

    def linkLost(self, protocol: FCMClientProtocol, unanswered: list[DownstreamMessage]) -> None:
        """
        See L{ISettles.linkLost}.
        """
        if protocol in self._streams:
            self._streams.remove(protocol)
        if self._stopped:
            return
        again = []
        for message in unanswered:
            message_id = message.message_id or ""
            if self._results[message_id].called:
                # Cancelled, so it does not go out a second time.
                del self._results[message_id]
            else:
                again.append((message_id, message))
        self._queue.giveBack(again)
        self._fill()

    def accepted(self, protocol: FCMClientProtocol, message: DownstreamMessage, ack: Ack) -> None:
        """
        See L{ISettles.accepted}.
        """
        result = self._settle(message)
        if result is not None:
            result.callback(ack)
        self._fill()

    def refused(self, protocol: FCMClientProtocol, message: DownstreamMessage, error: Nacked) -> None:
        """
        See L{ISettles.refused}.
        """
        result = self._settle(message)
        if result is not None:
            result.errback(error)
        self._fill()

    def stop(self) -> None:
        """
        Take nothing more; every Deferred that is open fails with
        L{Stopped<fcmxmpp.errors.Stopped>}.
        """
        self._stopped = True
        self._streams.clear()
        self._queue.clear()
        results, self._results = self._results, {}
        for result in [result for result in results.values() if not result.called]:
            result.errback(Stopped("the app server stopped before the message was answered"))
