"""
What the tests of L{fcmxmpp.delivery} share: messages, and a delivery with all
that it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs, eventAsJSON, eventAsText
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.delivery import MAX_HANDLED, Policy, UpstreamDelivery
from fcmxmpp.errors import HandlerFailed
from fcmxmpp.interfaces import AppServerEvent
from fcmxmpp.messages import RECEIPT_SENDER, Receipt, ReceiptData, UpstreamMessage
from fcmxmpp.testing import RecordingHandler, RecordingObserver


def upstream(message_id: str, from_: str = "tok-A", **data: str) -> UpstreamMessage:
    """
    A message of a device.
    """
    return UpstreamMessage(from_=from_, message_id=message_id, data=data)


def receipt(original: str, device: str | None = None) -> Receipt:
    """
    A receipt for a downstream message.

    @param device: the registration token of who got it.
    """
    return Receipt(
        from_=RECEIPT_SENDER,
        message_id=f"dr2:{original}",
        data=ReceiptData(
            message_status="MESSAGE_SENT_TO_DEVICE",
            original_message_id=original,
            device_registration_id=device,
        ),
    )


def rendered(event: LogEvent) -> str:
    """
    All that a log event can be made to say, its traceback included.
    """
    return eventAsText(event) + eventAsJSON(event)


class Harness:
    """
    An L{UpstreamDelivery} and everything around it.

    @ivar clock: its time.
    @ivar handler: the application's handler.
    @ivar observer: what it told.
    @ivar onEvent: is told the same.
    @ivar outcomes: in the order in which they came: the C{message_id} of each
        message taken, with C{"acknowledge"} or the name of the error.
    """

    def __init__(
        self, handler: Any, policy: Policy, random: Callable[[], float], limit: int = MAX_HANDLED
    ) -> None:
        self.clock = Clock()
        self.handler = handler
        self.observer = RecordingObserver()
        self.onEvent: Callable[[Any], object] = lambda event: None
        self.outcomes: list[tuple[str, str]] = []
        self.delivery = UpstreamDelivery(handler, policy, self.clock, random, self._observed, limit)

    def _observed(self, event: AppServerEvent) -> None:
        """
        The delivery tells.
        """
        self.observer.observed(event)
        self.onEvent(event)

    def take(self, *messages: UpstreamMessage | Receipt) -> None:
        """
        Have messages taken over.
        """
        for message in messages:
            self.note(message.message_id, self.delivery.take(message))

    def note(self, message_id: str, taken: Deferred[None]) -> None:
        """
        Note what becomes of a message.
        """
        taken.addCallbacks(
            lambda result: self.outcomes.append((message_id, "acknowledge" if result is None else "?")),
            lambda failure: self.outcomes.append((message_id, failure.type.__name__)),
        )

    @property
    def acknowledged(self) -> list[str]:
        """
        The C{message_id} of each message that may be acknowledged.
        """
        return [message_id for message_id, outcome in self.outcomes if outcome == "acknowledge"]

    def events(self, kind: type) -> list[Any]:
        """
        What the observer was told, of one kind.
        """
        return self.observer.of(kind)

    def stop(self, grace: float) -> Deferred[None]:
        """
        Begin to stop.
        """
        return Deferred.fromCoroutine(self.delivery.stop(grace))


class DeliveryCase(SynchronousTestCase):
    """
    What the test cases of a delivery share.
    """

    def makeDelivery(
        self,
        answer: Callable[[Any], Any] = lambda message: None,
        *,
        handler: Any = None,
        random: Callable[[], float] = lambda: 0.0,
        limit: int = MAX_HANDLED,
        **policy: Any,
    ) -> Harness:
        """
        Make a delivery; when the test is over it has to stop without a trace.

        @param answer: what a L{RecordingHandler} does with each message.
        @param handler: in its place.
        @param limit: how many messages may be handled at once.
        """
        harness = Harness(handler or RecordingHandler(answer), Policy(**policy), random, limit)
        self.addCleanup(self.assertStops, harness)
        return harness

    def assertStops(self, harness: Harness) -> None:
        """
        Assert that a delivery stops and leaves nothing behind.
        """
        stopped = harness.stop(0)
        harness.clock.advance(0)
        self.successResultOf(stopped)
        self.assertEqual([], harness.clock.getDelayedCalls())

    @contextmanager
    def logs(self) -> Iterator[list[LogEvent]]:
        """
        Capture the log, and take its failures off trial's list.
        """
        with capturedLogs() as events:
            yield events
        self.flushLoggedErrors(HandlerFailed)
