"""
What the tests of L{fcmxmpp.downstream} stand on: a sender, its links, and a
connection server that does as it is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any
from weakref import ref

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from fcmxmpp.client import FCMClientProtocol
from fcmxmpp.connection import Credentials, Link
from fcmxmpp.downstream import MAX_QUEUE, DownstreamSender
from fcmxmpp.errors import MalformedPayload
from fcmxmpp.interfaces import IResponsible, Refused
from fcmxmpp.messages import (
    Ack,
    Control,
    DownstreamMessage,
    FromAppServer,
    Nack,
    Receipt,
    UpstreamMessage,
)
from fcmxmpp.server.stream import ServerStream
from fcmxmpp.stanza import serverStanza
from fcmxmpp.testing import SENDER_ID, SERVER_KEY, MemoryNetwork, RecordingObserver, ScriptedConnectionServer


__all__ = ["DownstreamCase", "Harness", "to"]


@implementer(IResponsible)
class _TakesNothing:
    """
    There is no upstream here.
    """

    def take(self, message: UpstreamMessage | Receipt) -> Deferred[None]:
        """
        See L{IResponsible.take}.
        """
        return succeed(None)

    def takeMalformed(self, error: MalformedPayload, text: str) -> Deferred[None]:
        """
        See L{IResponsible.takeMalformed}.
        """
        return succeed(None)

    def discard(self, error: MalformedPayload) -> None:
        """
        See L{IResponsible.discard}.
        """


def to(message_id: str | None = None, target: str = "tok-A", **fields: Any) -> DownstreamMessage:
    """
    A message for a device.
    """
    return DownstreamMessage(to=target, message_id=message_id, **fields)


class Harness:
    """
    A sender, its links and the connection server that they lead to.

    @ivar sender: the sender.
    @ivar script: the connection server.
    @ivar clock: their time.
    @ivar network: what joins them.
    @ivar observer: what the sender told.
    @ivar jitter: what the sender takes for chance; without it delays are at
        their longest.
    @ivar protocols: the protocol object of each stream, as far as there is one
        still.
    @ivar results: the Deferred of each message that was sent by L{send}, the
        last one with its C{message_id}.
    @ivar outcomes: the outcomes of each message, by its C{message_id} and in
        the order in which they came: each an L{Ack} or an error.
    @ivar reactions: what the application does once it has the outcome of the
        message with this C{message_id}.
    """

    def __init__(self, limit: int = MAX_QUEUE) -> None:
        self.clock = Clock()
        self.script = ScriptedConnectionServer()
        self.script.onMessage = self._came
        self.network = MemoryNetwork(self.clock, self.script.factory(self.clock))
        numbers = count(1)
        self.observer = RecordingObserver()
        self.jitter = 0.0
        self.sender = DownstreamSender(
            lambda: f"made-{next(numbers)}", self.clock, lambda: self.jitter, self.observer.observed, limit
        )
        self.links: list[Link] = []
        self.protocols: list[ref[FCMClientProtocol]] = []
        self.results: dict[str, Deferred[None]] = {}
        self.noted: Counter[str] = Counter()
        self.outcomes: dict[str, list[Any]] = {}
        self.reactions: dict[str, Callable[[], object]] = {}
        self._carriers: dict[str, ServerStream] = {}

    def connect(self) -> ServerStream:
        """
        Make a link.

        @return: the connection server's end of it.
        """
        link = Link(
            self.network,
            Credentials(SENDER_ID, SERVER_KEY),
            partial(self._makeProtocol, len(self.links) + 1),
            self.clock,
            lambda: 0.0,
        )
        self.links.append(link)
        link.start()
        self.network.pump()
        return self.script.stream

    def _makeProtocol(self, number: int, drained: Callable[[], None]) -> FCMClientProtocol:
        """
        Make the protocol object of one stream.
        """
        protocol = FCMClientProtocol(_TakesNothing(), self.sender, self.clock, drained=drained, number=number)
        self.protocols.append(ref(protocol))
        return protocol

    def _came(self, stream: ServerStream, message: FromAppServer) -> None:
        """
        A message came to the connection server.
        """
        self._carriers[message.message_id or ""] = stream

    def stop(self, grace: float = 0.0) -> Deferred[None]:
        """
        Stop the sender.
        """
        return Deferred.fromCoroutine(self.sender.stop(grace))

    def send(self, *messages: DownstreamMessage | str) -> None:
        """
        Send messages, or small ones with these C{message_id}s, and note what
        becomes of them.
        """
        for message in messages:
            message = to(message) if isinstance(message, str) else message
            self.note(message.message_id or "", self.sender.send(message))
        self.network.pump()

    def note(self, message_id: str, result: Deferred[Ack]) -> None:
        """
        Note what becomes of a message.
        """

        def outcome(result: Ack | Failure) -> None:
            value = result.value if isinstance(result, Failure) else result
            self.outcomes.setdefault(message_id, []).append(value)
            reaction = self.reactions.pop(message_id, None)
            if reaction is not None:
                reaction()

        self.noted[message_id] += 1
        self.results[message_id] = result.addBoth(outcome)

    def cancel(self, *ids: str) -> None:
        """
        Cancel messages.
        """
        for message_id in ids:
            self.results[message_id].cancel()
        self.network.pump()

    def sent(self, stream: ServerStream | None = None) -> list[str]:
        """
        What has come to the connection server since the last look, by its
        C{message_id}s.

        @param stream: only on this one.
        """
        return [message.message_id or "" for message in self.messages(stream)]

    def messages(self, stream: ServerStream | None = None) -> list[DownstreamMessage]:
        """
        The same, as messages.
        """
        self.network.pump()
        received = self.script.received
        looked = [pair for pair in received if stream is None or pair[0] is stream]
        received[:] = [pair for pair in received if pair not in looked]
        return [message for _, message in looked if isinstance(message, DownstreamMessage)]

    def advance(self, seconds: float) -> None:
        """
        Let time pass.
        """
        self.network.advance(seconds)

    def answer(self, *answers: Ack | Nack | Control, stream: ServerStream | None = None) -> None:
        """
        Have the connection server answer.

        @param stream: on this one, or else on the one that the message came
            on, or else on the newest.
        """
        for answer in answers:
            carrier = None if isinstance(answer, Control) else self._carriers.get(answer.message_id)
            if carrier not in self.script.streams:
                carrier = self.script.stream
            (stream or carrier).transport.write(serverStanza(answer))
        self.network.pump()

    def ackTogether(self, *ids: str) -> None:
        """
        Have the connection server accept messages in one write.
        """
        acks = [Ack(from_="tok-A", message_id=message_id) for message_id in ids]
        self.script.stream.transport.write(b"".join(map(serverStanza, acks)))
        self.network.pump()

    def ack(self, *ids: str, stream: ServerStream | None = None) -> None:
        """
        Have the connection server accept messages.
        """
        self.answer(*[Ack(from_="tok-A", message_id=message_id) for message_id in ids], stream=stream)

    def nack(self, error: str, *ids: str, registration_id: str | None = None) -> None:
        """
        Have the connection server refuse messages.
        """
        self.answer(*[Nack(message_id=i, error=error, registration_id=registration_id) for i in ids])

    def drain(self, stream: ServerStream | None = None) -> None:
        """
        Have the connection server announce that it will close a stream.
        """
        self.answer(Control(control_type="CONNECTION_DRAINING"), stream=stream)

    def outcome(self, message_id: str) -> Any:
        """
        The one outcome of a message, without its text.
        """
        (outcome,) = self.outcomes[message_id]
        return type(outcome)

    @property
    def delays(self) -> list[float]:
        """
        The delays that the refusals so far have brought.
        """
        return [event.retryIn for event in self.observer.of(Refused)]

    @property
    def leftovers(self) -> tuple[int, ...]:
        """
        What the sender holds on to: messages that are not settled, that wait
        to be sent, or to be sent again, lanes, and places on links.
        """
        sender = self.sender
        return (
            len(sender._unsettled),
            len(sender._queue),
            len(sender._again),
            len(sender._lanes),
            sender._inFlight,
        )


class DownstreamCase(SynchronousTestCase):
    """
    What the test cases of the sender share.
    """

    def makeSender(self, limit: int = MAX_QUEUE, links: int = 1) -> Harness:
        """
        Make a sender; when the test is over it has to stop without a trace.
        """
        harness = Harness(limit)
        self.addCleanup(self.assertStops, harness)
        for _ in range(links):
            harness.connect()
        return harness

    def assertStops(self, harness: Harness) -> None:
        """
        Assert that a sender and its links stop and leave nothing behind, and
        that every Deferred has fired once.
        """
        harness.stop()
        for link in harness.links:
            stopped = link.stop()
            harness.network.pump()
            self.successResultOf(stopped)
        self.assertEqual([], harness.clock.getDelayedCalls())
        self.assertEqual((0, 0, 0, 0, 0), harness.leftovers)
        self.assertEqual(dict(harness.noted), {key: len(value) for key, value in harness.outcomes.items()})

    def failureOf(self, result: Deferred[Ack], *errors: type[Exception]) -> Any:
        """
        The error that a Deferred has failed with.
        """
        return self.failureResultOf(result, *errors).value
