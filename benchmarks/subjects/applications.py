"""
Applications for our app server, for its option C{--handler}.
"""

from __future__ import annotations

from typing import cast

from common import Tally, orders
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from zope.interface import implementer

from fcmxmpp.interfaces import IDownstreamSender, IUpstreamHandler, Stored, settled
from fcmxmpp.messages import Ack, DownstreamMessage, UpstreamMessage


#: How many messages wait for room in the windows.
QUEUED = 50


@implementer(IUpstreamHandler)
class Nothing:
    """
    Handles a message at once, by doing nothing.
    """

    def messageReceived(self, message: UpstreamMessage) -> None:
        """
        Do nothing.
        """


nothing = Nothing()


@implementer(IUpstreamHandler)
class Coroutine:
    """
    The same as a coroutine.
    """

    async def messageReceived(self, message: UpstreamMessage) -> None:
        """
        Do nothing.
        """


coroutine = Coroutine()


@implementer(IUpstreamHandler)
class Waiting:
    """
    Keeps so many messages waiting as it is told, and handles the oldest
    whenever one more comes; after the last all of them.
    """

    def __init__(self, sender: IDownstreamSender) -> None:
        wanted = orders()
        self._most = wanted["waiting"]
        self._total = wanted["up"]
        self._waiting: dict[int, Deferred[None]] = {}
        self._first = self._last = 0

    def messageReceived(self, message: UpstreamMessage) -> Deferred[None]:
        """
        Take one more.
        """
        result: Deferred[None] = Deferred()
        self._waiting[self._last] = result
        self._last += 1
        if self._last == self._total:
            self._most = 0
        while self._last - self._first > self._most:
            self._waiting.pop(self._first).callback(None)
            self._first += 1
        return result


class Sending(Nothing):
    """
    Sends as fast as the windows let it, each time that one is answered, and
    handles what comes by doing nothing.
    """

    def __init__(self, sender: IDownstreamSender) -> None:
        self._sender = sender
        wanted = orders()
        self._tally = Tally(wanted)
        self._data = {"text": wanted["text"]}
        self._count = min(self._tally.left, wanted["links"] * 100 + QUEUED)
        self._begin()

    def _begin(self) -> None:
        """
        Send the first.
        """
        for _ in range(self._count):
            self._send()

    def _outcome(self, sent: Deferred[Ack | Stored]) -> Deferred[Ack]:
        """
        What tells what became of a message: without a store that is what was
        returned.
        """
        return cast("Deferred[Ack]", sent)

    def _send(self) -> None:
        """
        Send one.
        """
        number = self._tally.next()
        message = DownstreamMessage(
            to=f"device-{number % 100:02d}", message_id=f"{number:08d}", data=self._data
        )
        self._outcome(self._sender.send(message)).addCallbacks(
            self._accepted, self._failed, callbackArgs=(number,), errbackArgs=(number,)
        )

    def _accepted(self, ack: Ack, number: int) -> None:
        """
        One was accepted.
        """
        self._tally.answered(number)
        if self._tally.left:
            self._send()

    def _failed(self, failure: object, number: int) -> None:
        """
        One was not.
        """
        self._tally.answered(number, failed=True)
        if self._tally.left:
            self._send()


class SendingStored(Sending):
    """
    The same where there is a store, which takes nothing before it is started.
    """

    def _begin(self) -> None:
        """
        Send the first, once everything is started.
        """
        reactor.callWhenRunning(super()._begin)  # type: ignore[attr-defined]

    def _outcome(self, sent: Deferred[Ack | Stored]) -> Deferred[Ack]:
        """
        What tells what became of a message that has been stored.
        """
        return settled(sent)
