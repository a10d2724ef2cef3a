"""
Tests of L{fcmxmpp.client}: one stream, without a link around it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, get_args

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogLevel, eventAsText, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.words.protocols.jabber import xmlstream
from twisted.words.xish.xmlstream import BootstrapMixin
from zope.interface import implementer
from zope.interface.verify import verifyObject

from fcmxmpp import client
from fcmxmpp.client import MAX_ODDITIES, AckObserver, FCMClientProtocol, ISettles
from fcmxmpp.elementstream import GCMStanza
from fcmxmpp.errors import MalformedPayload, Nacked, Stopped, StreamLost
from fcmxmpp.interfaces import Acknowledged, AppServerEvent, IResponsible
from fcmxmpp.messages import (
    WINDOW,
    Ack,
    Control,
    DownstreamMessage,
    Nack,
    Receipt,
    ReceiptData,
    UpstreamAck,
    UpstreamMessage,
)
from fcmxmpp.session import KeepAlive, Output, Send, Session
from fcmxmpp.stanza import serverStanza, stanzaError
from fcmxmpp.xmppstream import GCMStream


HEADER = (
    b'<stream:stream xmlns="jabber:client" xmlns:stream="http://etherx.jabber.org/streams" version="1.0">'
)
JID = "987654321098@gcm.googleapis.com/node7"


@implementer(IResponsible)
class Taker:
    """
    Takes responsibility as it is told.

    @ivar taken: the messages that it was given, and the malformed ones.
    @ivar discarded: what could not be named.
    @ivar answer: makes what it answers with, for each.
    """

    def __init__(self) -> None:
        self.taken: list[Any] = []
        self.discarded: list[MalformedPayload] = []
        self.answer: Callable[[], Deferred[None]] = lambda: succeed(None)

    def take(self, message: UpstreamMessage | Receipt) -> Deferred[None]:
        """
        See L{IResponsible.take}.
        """
        self.taken.append(message)
        return self.answer()

    def takeMalformed(self, error: MalformedPayload, text: str) -> Deferred[None]:
        """
        See L{IResponsible.takeMalformed}.
        """
        self.taken.append(error)
        return self.answer()

    def discard(self, error: MalformedPayload) -> None:
        """
        See L{IResponsible.discard}.
        """
        self.discarded.append(error)


@implementer(ISettles)
class Settler:
    """
    Notes what becomes of what was sent.

    @ivar told: what it was told: the name of the method, and its arguments.
    """

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def linkReady(self, protocol: FCMClientProtocol) -> None:
        """
        See L{ISettles.linkReady}.
        """
        self.told.append(("ready", protocol))

    def linkDraining(self, protocol: FCMClientProtocol) -> None:
        """
        See L{ISettles.linkDraining}.
        """
        self.told.append(("draining", protocol))

    def linkLost(self, protocol: FCMClientProtocol, unanswered: list[DownstreamMessage]) -> None:
        """
        See L{ISettles.linkLost}.
        """
        self.told.append(("lost", protocol, [message.message_id for message in unanswered]))

    def linkHasRoom(self, protocol: FCMClientProtocol) -> None:
        """
        See L{ISettles.linkHasRoom}.
        """
        self.told.append(("room", protocol))

    def overdue(self, protocol: FCMClientProtocol, message: DownstreamMessage) -> None:
        """
        See L{ISettles.overdue}.
        """
        self.told.append(("overdue", protocol, message))

    def accepted(self, protocol: FCMClientProtocol, message: DownstreamMessage, ack: Ack) -> None:
        """
        See L{ISettles.accepted}.
        """
        self.told.append(("accepted", protocol, message, ack))

    def refused(self, protocol: FCMClientProtocol, message: DownstreamMessage, error: Nacked) -> None:
        """
        See L{ISettles.refused}.
        """
        self.told.append(("refused", protocol, message, error))


class ManagerFactory(BootstrapMixin, Factory):
    """
    For a stream manager that never gets a stream.
    """


class Connection:
    """
    A stream to nowhere that is logged in, and the protocol on it.

    @ivar stream: the stream.
    @ivar transport: what it writes to.
    @ivar protocol: the protocol.
    @ivar manager: its parent, which has no stream: what the protocol sends by
        C{XMPPHandler.send} is left in its queue.
    """

    def __init__(
        self,
        taker: Taker,
        settler: Settler,
        clock: Clock,
        observe: Callable[[AppServerEvent], None] | None,
    ) -> None:
        self.transport = StringTransport()
        self.stream = GCMStream(xmlstream.Authenticator(), clock)
        self.stream.namespace = "jabber:client"
        self.protocol = FCMClientProtocol(taker, settler, clock, observe)
        self.manager = xmlstream.StreamManager(ManagerFactory())
        self.protocol.setHandlerParent(self.manager)
        self.stream.addObserver(xmlstream.STREAM_END_EVENT, self.protocol.connectionLost)
        self.stream.makeConnection(self.transport)
        self.protocol.makeConnection(self.stream)
        self.stream.sendHeader()
        self.stream.dataReceived(HEADER)
        self.transport.clear()
        self.lost = False

    def logIn(self) -> None:
        """
        The login is complete.
        """
        self.protocol.connectionInitialized()

    def receive(self, *stanzas: Any) -> None:
        """
        The connection server says something: messages, JSON, or XML.
        """
        self.stream.dataReceived(b"".join(self._xml(stanza) for stanza in stanzas))

    def _xml(self, stanza: Any) -> bytes:
        """
        One of these as XML.
        """
        if isinstance(stanza, bytes):
            return stanza
        if isinstance(stanza, dict):
            return f'<message><gcm xmlns="google:mobile:data">{json.dumps(stanza)}</gcm></message>'.encode()
        return serverStanza(stanza, JID.partition("/")[0])

    def said(self) -> str:
        """
        What the protocol has said since the last time.
        """
        said: bytes = self.transport.value()
        self.transport.clear()
        return said.decode()

    def lose(self) -> None:
        """
        The connection is gone.
        """
        if not self.lost:
            self.lost = True
            self.stream.connectionLost(Failure(ConnectionLost()))


def upstream(message_id: str) -> UpstreamMessage:
    """
    A message of a device.
    """
    return UpstreamMessage(from_="tok-A", message_id=message_id, data={"k": "v"})


def downstream(message_id: str) -> DownstreamMessage:
    """
    A message for a device.
    """
    return DownstreamMessage(to="tok-A", message_id=message_id)


def ackOf(message_id: str, to: str = "tok-A") -> str:
    """
    The stanza that acknowledges a message.
    """
    return (
        '<message id=""><gcm xmlns="google:mobile:data">'
        f'{{"to":"{to}","message_id":"{message_id}","message_type":"ack"}}</gcm></message>'
    )


class ClientCase(SynchronousTestCase):
    """
    Tests of the protocol on one or more streams.
    """

    def setUp(self) -> None:
        """
        Prepare what the protocols need.
        """
        self.clock = Clock()
        self.taker = Taker()
        self.settler = Settler()
        self.connections: list[Connection] = []
        self.observed: list[AppServerEvent] = []
        self.events: list[dict[str, Any]] = []
        observer = self.events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def connection(self, loggedIn: bool = True) -> Connection:
        """
        A new stream.
        """
        connection = Connection(self.taker, self.settler, self.clock, self.observed.append)
        self.connections.append(connection)
        self.addCleanup(self.finish, connection)
        if loggedIn:
            connection.logIn()
            self.settler.told.clear()
        return connection

    def finish(self, connection: Connection) -> None:
        """
        The stream ends: its protocol leaves nothing behind, and has sent
        nothing by way of its parent.
        """
        connection.lose()
        self.assertEqual(
            [], connection.manager._packetQueue, "XMPPHandler.send was used, which replays on the next stream"
        )
        connection.protocol.disownHandlerParent(connection.manager)
        if all(each.lost for each in self.connections):
            self.assertEqual([], self.clock.getDelayedCalls(), "calls are left on the clock")

    def logged(self, level: Any) -> list[str]:
        """
        What was logged at this level.
        """
        return [
            eventAsText(event, includeTimestamp=False, includeSystem=False)
            for event in self.events
            if event["log_level"] is level
        ]


class FakesTests(ClientCase):
    """
    The fakes of these tests.
    """

    def test_interfaces(self) -> None:
        """
        They provide what they stand for.
        """
        verifyObject(IResponsible, self.taker)
        verifyObject(ISettles, self.settler)

    def test_queue(self) -> None:
        """
        The parent would show it if C{XMPPHandler.send} were used.
        """
        connection = self.connection()
        connection.protocol.send("<x/>")
        self.assertEqual(["<x/>"], connection.manager._packetQueue)
        connection.manager._packetQueue.clear()


class ActionTests(SynchronousTestCase):
    """
    What is done for the outputs of a session.
    """

    def test_all(self) -> None:
        """
        There is something for each that can come without being asked for.
        """
        self.assertEqual(set(get_args(Output)) - {KeepAlive, Send}, set(client._ACTIONS))


class AckObserverTests(ClientCase):
    """
    L{AckObserver}.
    """

    def test_transparent(self) -> None:
        """
        It passes on what it is given, whatever that is, and acknowledges.
        """
        connection = self.connection()
        for value in (None, 0, "text", [], object()):
            observer = AckObserver(connection.protocol)
            self.assertIs(value, observer(value, upstream("u-1").ack()))
            self.assertEqual(ackOf("u-1"), connection.said())

    def test_inAChain(self) -> None:
        """
        In the midst of a chain it is not noticed: neither results nor failures
        change, and only results are acknowledged.
        """
        connection = self.connection()
        observer, ack = AckObserver(connection.protocol), upstream("u-1").ack()
        chain: Deferred[Any] = succeed("result")
        self.assertEqual("result", self.successResultOf(chain.addCallback(observer, ack)))
        self.assertEqual(ackOf("u-1"), connection.said())
        failing: Deferred[Any] = fail(RuntimeError("reason"))
        self.failureResultOf(failing.addCallback(observer, ack), RuntimeError)
        self.assertEqual("", connection.said())

    def test_waits(self) -> None:
        """
        Nothing is acknowledged before somebody has taken responsibility.
        """
        connection = self.connection()
        results: list[Deferred[None]] = [Deferred(), Deferred(), Deferred()]
        answers = iter(results)
        self.taker.answer = lambda: next(answers)
        connection.receive(upstream("u-0"), upstream("u-1"), upstream("u-2"))
        self.assertEqual(["u-0", "u-1", "u-2"], [message.message_id for message in self.taker.taken])
        self.assertEqual(("", []), (connection.said(), self.observed))
        for number in (1, 0, 2):
            results[number].callback(None)
            self.assertEqual(ackOf(f"u-{number}"), connection.said())
        self.assertEqual([Acknowledged(f"u-{number}", "tok-A") for number in (1, 0, 2)], self.observed)

    def test_overlappingStreams(self) -> None:
        """
        With two streams at a time, each message is acknowledged on the one
        that brought it: the older one's not on the newer, nor the other way
        round.
        """
        results: dict[str, Deferred[None]] = {name: Deferred() for name in ("old", "new")}
        self.taker.answer = lambda: results[self.taker.taken[-1].message_id]
        old = self.connection()
        old.receive(upstream("old"))
        new = self.connection()
        new.receive(upstream("new"))
        results["old"].callback(None)
        self.assertEqual((ackOf("old"), ""), (old.said(), new.said()))
        results["new"].callback(None)
        self.assertEqual(("", ackOf("new")), (old.said(), new.said()))

    def test_sameMessageOnBoth(self) -> None:
        """
        A message that both brought is acknowledged on both.
        """
        old, new = self.connection(), self.connection()
        for connection in (old, new):
            connection.receive(upstream("u-1"))
        self.assertEqual((ackOf("u-1"), ackOf("u-1")), (old.said(), new.said()))

    def test_tooLarge(self) -> None:
        """
        An ACK that fits into no stanza, because of what its escapes take, is
        not sent and told, and the stream goes on.
        """
        connection = self.connection()
        text = '{"from":"tok-A","message_id":"%s"}' % ("&lt;" * 12_000)
        connection.receive(
            f'<message><gcm xmlns="google:mobile:data">{text}</gcm></message>'.encode(), upstream("u-2")
        )
        self.assertEqual(ackOf("u-2"), connection.said())
        self.assertEqual([Acknowledged("u-2", "tok-A")], self.observed)
        (said,) = self.logged(LogLevel.warn)
        self.assertIn("its ACK would be larger than a stanza may be", said)

    def test_streamGone(self) -> None:
        """
        If its stream is gone the ACK is dropped, and goes nowhere else; nobody
        is told that it went out.
        """
        result: Deferred[None] = Deferred()
        self.taker.answer = lambda: result
        old = self.connection()
        old.receive(upstream("u-1"))
        new = self.connection()
        old.lose()
        old.said()
        result.callback(None)
        self.assertEqual(("", "", []), (old.said(), new.said(), self.observed))

    def test_beforeTheLogin(self) -> None:
        """
        Nor does it go out on a stream that has not been logged in.
        """
        connection = self.connection(loggedIn=False)
        connection.protocol.acknowledge(UpstreamAck(to="tok-A", message_id="u-1"))
        self.assertEqual(("", []), (connection.said(), self.observed))

    def test_whileDraining(self) -> None:
        """
        ACKs go out while the stream is being drained, and while its window is
        full.
        """
        connection = self.connection()
        for number in range(WINDOW):
            connection.protocol.sendDownstream(downstream(f"d-{number}"))
        connection.receive(Control(control_type="CONNECTION_DRAINING"))
        connection.said()
        connection.receive(upstream("u-1"))
        self.assertEqual(ackOf("u-1"), connection.said())

    def test_nobodyWatches(self) -> None:
        """
        It works without anybody to tell.
        """
        connection = Connection(self.taker, self.settler, self.clock, None)
        self.connections.append(connection)
        self.addCleanup(self.finish, connection)
        connection.logIn()
        connection.receive(upstream("u-1"))
        self.assertEqual(ackOf("u-1"), connection.said())


class ChainTests(ClientCase):
    """
    The Deferred chain of each incoming message.
    """

    def test_messages(self) -> None:
        """
        Messages and receipts are given to what takes responsibility, in their
        order, and acknowledged in one write if that is done at once.
        """
        connection = self.connection()
        receipt = Receipt(
            from_="gcm.googleapis.com",
            message_id="dr2:d-1",
            data=ReceiptData(message_status="MESSAGE_SENT_TO_DEVICE", original_message_id="d-1"),
        )
        messages = [upstream("u-1"), receipt, upstream("u-2")]
        connection.receive(*messages)
        self.assertEqual(messages, self.taker.taken)
        self.assertEqual(
            ackOf("u-1") + ackOf("dr2:d-1", "gcm.googleapis.com") + ackOf("u-2"), connection.said()
        )

    def test_stopped(self) -> None:
        """
        What is not taken over because of the stop is not acknowledged, which
        is no failure to be logged; so it is with every error of ours.
        """
        connection = self.connection()
        for error in (Stopped("stopping"), StreamLost("lost")):
            self.taker.answer = lambda error=error: fail(error)  # type: ignore[misc]
            connection.receive(upstream("u-1"))
            self.assertEqual("", connection.said())
        self.assertEqual([], self.flushLoggedErrors())
        self.assertEqual(([], []), (self.logged(LogLevel.critical), self.logged(LogLevel.error)))

    def test_stoppedLater(self) -> None:
        """
        The same holds if that turns out later.
        """
        connection = self.connection()
        result: Deferred[None] = Deferred()
        self.taker.answer = lambda: result
        connection.receive(upstream("u-1"))
        result.errback(Stopped("stopping"))
        self.assertEqual(("", []), (connection.said(), self.flushLoggedErrors()))

    def test_bug(self) -> None:
        """
        Any other failure is a bug: it is logged as one, and there is no ACK;
        the messages behind it are not affected.
        """
        connection = self.connection()
        answers = iter([fail(RuntimeError("a bug")), succeed(None)])
        self.taker.answer = lambda: next(answers)
        connection.receive(upstream("u-1"), upstream("u-2"))
        self.assertEqual(ackOf("u-2"), connection.said())
        self.assertEqual(1, len(self.flushLoggedErrors(RuntimeError)))

    def test_malformed(self) -> None:
        """
        What is malformed but has a name is taken over as that, and
        acknowledged like a message.
        """
        connection = self.connection()
        result: Deferred[None] = Deferred()
        self.taker.answer = lambda: result
        connection.receive({"message_id": "u-1", "from": "tok-A", "data": {"k": 1}})
        (error,) = self.taker.taken
        self.assertIsInstance(error, MalformedPayload)
        self.assertEqual(("u-1", "tok-A"), (error.message_id, error.from_))
        self.assertEqual("", connection.said())
        result.callback(None)
        self.assertEqual(ackOf("u-1"), connection.said())

    def test_nameless(self) -> None:
        """
        What has none is discarded, and not acknowledged.
        """
        connection = self.connection()
        for payload in ({}, {"message_id": "u-1"}, {"from": "tok-A"}, {"message_id": 1, "from": "tok-A"}):
            connection.receive(payload)
        connection.receive(b'<message><gcm xmlns="google:mobile:data"/></message>')
        self.assertEqual((5, []), (len(self.taker.discarded), self.taker.taken))
        self.assertEqual("", connection.said())

    def test_moreInTheStanza(self) -> None:
        """
        A message in a stanza that holds more than the payload is taken over
        all the same.
        """
        connection = self.connection()
        payload = json.dumps({"message_id": "u-1", "from": "tok-A"})
        connection.receive(
            f'<message type="chat"><x/><gcm xmlns="google:mobile:data">{payload}</gcm></message>'.encode()
        )
        self.assertEqual(["u-1"], [message.message_id for message in self.taker.taken])
        self.assertEqual(ackOf("u-1"), connection.said())

    def test_notOurs(self) -> None:
        """
        Stanzas without a payload, stanza errors that say nothing, and messages
        of unknown types are ignored: nothing is said, and their contents are
        not logged.
        """
        connection = self.connection()
        connection.receive(
            b"<message><body>Rhabarber</body></message>",
            b"<message/>",
            b"<presence><show>Rhabarber</show></presence>",
            b'<message type="error"><gcm xmlns="google:mobile:data">{"Rhabarber":1}</gcm></message>',
            {"message_type": "Rhabarber", "message_id": "u-1", "from": "tok-A"},
            {"message_type": "control", "control_type": "Rhabarber"},
        )
        self.assertEqual(("", [], []), (connection.said(), self.taker.taken, self.settler.told))
        self.assertEqual(5, len(self.logged(LogLevel.warn)))
        self.assertNotIn("Rhabarber", repr(self.events))


class DownstreamTests(ClientCase):
    """
    What is sent, and what becomes of it.
    """

    def test_ready(self) -> None:
        """
        Before the login there is no room; after it there is room for a
        windowful, and that is told.
        """
        connection = self.connection(loggedIn=False)
        self.assertEqual(
            (0, None, []), (connection.protocol.room, connection.protocol.session, self.settler.told)
        )
        connection.logIn()
        self.assertEqual(WINDOW, connection.protocol.room)
        self.assertIsInstance(connection.protocol.session, Session)
        self.assertEqual([("ready", connection.protocol)], self.settler.told)

    def test_send(self) -> None:
        """
        A message is written at once, and takes one place.
        """
        connection = self.connection()
        connection.protocol.sendDownstream(downstream("d-1"))
        self.assertEqual(
            '<message id="d-1"><gcm xmlns="google:mobile:data">'
            '{"to":"tok-A","message_id":"d-1"}</gcm></message>',
            connection.said(),
        )
        self.assertEqual(WINDOW - 1, connection.protocol.room)

    def test_answers(self) -> None:
        """
        An ACK and a NACK settle the message that they name, with all that they
        tell, and free its place.
        """
        connection = self.connection()
        for number in range(3):
            connection.protocol.sendDownstream(downstream(f"d-{number}"))
        ack = Ack(from_="tok-A", message_id="d-1", registration_id="tok-A2")
        connection.receive(ack)
        self.assertEqual(
            [("accepted", connection.protocol, downstream("d-1"), ack), ("room", connection.protocol)],
            self.settler.told,
        )
        connection.receive(
            Nack(
                from_="tok-A",
                message_id="d-0",
                error="DEVICE_UNREGISTERED",
                error_description="secret",
                registration_id="tok-A2",
            )
        )
        told, protocol, message, error = self.settler.told[-1]
        self.assertEqual(("refused", connection.protocol, downstream("d-0")), (told, protocol, message))
        self.assertEqual(
            ("DEVICE_UNREGISTERED", "d-0", "tok-A2"), (error.error, error.message_id, error.registration_id)
        )
        self.assertNotIn("secret", str(error))
        self.assertEqual(WINDOW - 1, connection.protocol.room)

    def test_room(self) -> None:
        """
        That there is room is told once for all ACKs that came together, and
        also if what came with them was refused: others may have room as well.
        """
        connection = self.connection()
        for number in range(5):
            connection.protocol.sendDownstream(downstream(f"d-{number}"))
        acks = [Ack(from_="tok-A", message_id=f"d-{number}") for number in range(5)]
        connection.receive(*acks[:3])
        connection.receive(b" ")
        self.assertEqual(["accepted"] * 3 + ["room"], [each[0] for each in self.settler.told])
        connection.receive(*acks[3:], b"<!-- -->")
        self.assertEqual(["accepted"] * 2 + ["room"], [each[0] for each in self.settler.told[4:]])
        self.assertEqual(0, connection.protocol.room)

    def test_foreignAnswers(self) -> None:
        """
        Answers to what is not waiting here are ignored, be it unanswered on
        another stream.
        """
        old, new = self.connection(), self.connection()
        old.protocol.sendDownstream(downstream("d-1"))
        for _ in range(2):
            new.receive(Ack(from_="tok-A", message_id="d-1"))
            new.receive(Nack(from_="tok-A", message_id="d-1", error="BAD_REGISTRATION"))
        self.assertEqual([], self.settler.told)
        self.assertEqual((WINDOW - 1, WINDOW), (old.protocol.room, new.protocol.room))
        self.assertEqual("", new.said())

    def test_manyOddities(self) -> None:
        """
        What a connection server should not do is told a number of times for
        each stream, and then no more.
        """
        for _ in range(2):
            connection = self.connection()
            self.events.clear()
            for number in range(10 * MAX_ODDITIES):
                connection.receive(Ack(from_="tok-A", message_id=f"d-{number}"))
            told = self.logged(LogLevel.warn)
            self.assertEqual(
                {"link 1: ignored an answer to no message of this stream"}, set(told[:MAX_ODDITIES])
            )
            self.assertEqual(
                ["link 1: nothing more of this sort is told about this stream"], told[MAX_ODDITIES:]
            )

    def test_badRequest(self) -> None:
        """
        A stanza error 400 fails the message that it is about and frees its
        place; again, it is about nothing.
        """
        connection = self.connection()
        connection.protocol.sendDownstream(downstream("d-0"))
        connection.protocol.sendDownstream(downstream("d-1"))
        connection.said()
        echo = GCMStanza('{"to":"tok-A","message_id":"d-0"}', {"id": ""})
        for _ in range(2):
            connection.receive(stanzaError(400, "text", JID, echo))
        ((told, protocol, message, error),) = self.settler.told
        self.assertEqual(("refused", connection.protocol, downstream("d-0")), (told, protocol, message))
        self.assertEqual(("BAD_REQUEST", "d-0", True), (error.error, error.message_id, error.permanent))
        self.assertEqual(WINDOW - 1, connection.protocol.room)
        self.assertEqual(("", False), (connection.said(), connection.transport.disconnecting))

    def test_badRequestByID(self) -> None:
        """
        If its payload does not tell which one it is about, then the stanza's
        C{id} does.
        """
        connection = self.connection()
        for number, payload in enumerate(("{", "", '{"message_id":""}', '{"to":"tok-A"}')):
            connection.protocol.sendDownstream(downstream(f"d-{number}"))
            echo = GCMStanza(payload, {"id": f"d-{number}"})
            connection.receive(stanzaError(400, "text", JID, echo))
            self.assertEqual("refused", self.settler.told[-1][0], payload)
            self.assertEqual(f"d-{number}", self.settler.told[-1][3].message_id)
        connection.protocol.sendDownstream(downstream("d-9"))
        connection.receive(b'<message type="error" id="d-9"><error code="400"/></message>')
        self.assertEqual("d-9", self.settler.told[-1][3].message_id)
        self.assertEqual(WINDOW, connection.protocol.room)

    def test_notAcceptable(self) -> None:
        """
        A stanza error 406, or any other, is logged and changes nothing.
        """
        connection = self.connection()
        connection.protocol.sendDownstream(downstream("d-0"))
        connection.said()
        echo = GCMStanza('{"to":"tok-A","message_id":"d-0","message_type":"ack"}', {"id": "d-0"})
        connection.receive(stanzaError(406, "text", JID, echo))
        connection.receive(b'<message type="error" id="d-0"><error code="503"/></message>')
        self.assertEqual(([], WINDOW - 1), (self.settler.told, connection.protocol.room))
        self.assertEqual(
            ["406 not-acceptable", "503 undefined-condition"],
            [line.rpartition(": ")[2] for line in self.logged(LogLevel.warn)],
        )
        self.assertEqual([], self.flushLoggedErrors())
        self.assertEqual(("", False), (connection.said(), connection.transport.disconnecting))

    def test_draining(self) -> None:
        """
        When the connection server drains the stream that is told, once, and
        there is no more room; answers are still taken.
        """
        connection = self.connection()
        connection.protocol.sendDownstream(downstream("d-0"))
        for _ in range(2):
            connection.receive(Control(control_type="CONNECTION_DRAINING"))
        self.assertEqual([("draining", connection.protocol)], self.settler.told)
        self.assertEqual(0, connection.protocol.room)
        connection.receive(Ack(from_="tok-A", message_id="d-0"))
        self.assertEqual(["accepted", "room"], [each[0] for each in self.settler.told[1:]])
        self.assertEqual((0, False), (connection.protocol.room, connection.transport.disconnecting))

    def test_drainingAsNack(self) -> None:
        """
        If it tells so by a NACK, that is told before the message is given
        back: it must not go out here again.
        """
        connection = self.connection()
        connection.protocol.sendDownstream(downstream("d-0"))
        connection.receive(Nack(from_="tok-A", message_id="d-0", error="CONNECTION_DRAINING"))
        self.assertEqual(["draining", "refused"], [each[0] for each in self.settler.told])
        self.assertEqual(0, connection.protocol.room)

    def test_lost(self) -> None:
        """
        When the stream is lost, what is unanswered is given back in the order
        it was sent, once; there is no room any more.
        """
        connection = self.connection()
        for number in range(5):
            connection.protocol.sendDownstream(downstream(f"d-{number}"))
        connection.receive(Ack(from_="tok-A", message_id="d-2"))
        self.settler.told.clear()
        connection.lose()
        self.assertEqual([("lost", connection.protocol, ["d-0", "d-1", "d-3", "d-4"])], self.settler.told)
        self.assertEqual(0, connection.protocol.room)

    def test_lostWhileReading(self) -> None:
        """
        What came with the stanza over which the stream is lost is not taken,
        and no oddity.
        """
        connection = self.connection()
        connection.protocol.sendDownstream(downstream("d-1"))
        take = self.taker.take

        def loseIt(message: UpstreamMessage | Receipt) -> Deferred[None]:
            connection.lose()
            return take(message)

        self.taker.take = loseIt  # type: ignore[method-assign]
        connection.receive(upstream("u-1"), upstream("u-2"), Ack(from_="tok-A", message_id="d-1"))
        self.assertEqual(["u-1"], [message.message_id for message in self.taker.taken])
        self.assertEqual([("lost", connection.protocol, ["d-1"])], self.settler.told)
        self.assertEqual([], self.logged(LogLevel.warn))

    def test_lostBeforeTheLogin(self) -> None:
        """
        Of a stream that has never been logged in nothing is told.
        """
        connection = self.connection(loggedIn=False)
        connection.lose()
        self.assertEqual([], self.settler.told)

    def test_sendFromTheAnswer(self) -> None:
        """
        A message may be sent while another one is being answered: they go out
        in one write, behind what was said before.
        """
        connection = self.connection()
        connection.protocol.sendDownstream(downstream("d-0"))
        connection.said()
        accepted = self.settler.accepted

        def sendNext(protocol: FCMClientProtocol, message: DownstreamMessage, ack: Ack) -> None:
            accepted(protocol, message, ack)
            protocol.sendDownstream(downstream("d-1"))

        self.settler.accepted = sendNext  # type: ignore[method-assign]
        connection.receive(upstream("u-1"), Ack(from_="tok-A", message_id="d-0"))
        said = connection.said()
        self.assertTrue(said.startswith(ackOf("u-1") + '<message id="d-1">'), said)

    def test_close(self) -> None:
        """
        Closing ends the stream in order; without one there is nothing to
        close.
        """
        connection = self.connection()
        connection.protocol.close()
        self.assertEqual(("</stream:stream>", True), (connection.said(), connection.transport.disconnecting))
        self.assertEqual(0, connection.protocol.room)
        connection.lose()
        connection.protocol.close()
        early = self.connection(loggedIn=False)
        early.protocol.close()
        self.assertEqual(("", ""), (connection.said(), early.said()))


class FullTests(ClientCase):
    """
    A stream whose peer reads too slowly takes nothing that can wait.
    """

    def test_noRoom(self) -> None:
        """
        While what was written piles up there is no room; when it is out there
        is, and that is told.
        """
        connection = self.connection()
        self.assertIs(connection.stream, connection.transport.producer)
        connection.stream.pauseProducing()
        self.assertEqual(([], 0), (self.settler.told, connection.protocol.room))
        connection.stream.resumeProducing()
        self.assertEqual([("room", connection.protocol)], self.settler.told)
        self.assertEqual(WINDOW, connection.protocol.room)

    def test_acknowledges(self) -> None:
        """
        ACKs do not wait for it.
        """
        connection = self.connection()
        connection.stream.pauseProducing()
        connection.receive(upstream("u-1"))
        self.assertEqual(ackOf("u-1"), connection.said())

    def test_readyBefore(self) -> None:
        """
        The stream cares from before it is offered to senders, so that none of
        them can fill it unnoticed; before the login it does not.
        """
        connection = self.connection(loggedIn=False)
        self.assertIsNone(connection.transport.producer)
        seen: list[object] = []
        self.settler.linkReady = lambda protocol: seen.append(  # type: ignore[method-assign]
            connection.transport.producer
        )
        connection.logIn()
        self.assertEqual([connection.stream], seen)

    def test_closeWhileFull(self) -> None:
        """
        A full stream can be closed, and has no room from then on, whatever the
        transport says.
        """
        connection = self.connection()
        connection.stream.pauseProducing()
        connection.protocol.close()
        self.assertEqual(("</stream:stream>", None), (connection.said(), connection.transport.producer))
        connection.stream.resumeProducing()
        self.assertEqual(0, connection.protocol.room)

    def test_lostWhileFull(self) -> None:
        """
        What was unanswered on a full stream that is lost is given back.
        """
        connection = self.connection()
        connection.protocol.sendDownstream(downstream("d-0"))
        connection.stream.pauseProducing()
        connection.lose()
        self.assertEqual([("lost", connection.protocol, ["d-0"])], self.settler.told)


class OverdueTests(ClientCase):
    """
    An answer that does not come.
    """

    def test_overdue(self) -> None:
        """
        After two minutes the message is given up and its place is free, but
        nothing more is sent before the peer has answered a ping: anything it
        says will do, and that there is room is told.
        """
        connection = self.connection()
        connection.protocol.sendDownstream(downstream("d-0"))
        self.clock.advance(1)
        connection.protocol.sendDownstream(downstream("d-1"))
        for _ in range(3):
            self.clock.advance(39)
            connection.receive(b" ")
        connection.said()
        self.clock.advance(2 - 2**-10)
        self.assertEqual(([], ""), (self.settler.told, connection.said()))
        self.clock.advance(2**-10)
        self.assertEqual([("overdue", connection.protocol, downstream("d-0"))], self.settler.told)
        self.assertEqual((PING, 0), (connection.said(), connection.protocol.room))
        self.settler.told.clear()
        connection.receive(PONG)
        self.assertEqual([("room", connection.protocol)], self.settler.told)
        self.assertEqual(WINDOW - 1, connection.protocol.room)

    def test_lateAnswer(self) -> None:
        """
        An answer that comes after that is an answer to nothing.
        """
        connection = self.connection()
        connection.protocol.sendDownstream(downstream("d-0"))
        self.clock.pump([59, 0])
        connection.receive(b" ")
        self.clock.advance(59)
        connection.receive(b" ")
        self.clock.advance(2)
        self.settler.told.clear()
        connection.receive(Ack(from_="tok-A", message_id="d-0"))
        self.assertEqual([("room", connection.protocol)], self.settler.told)
        self.assertEqual(
            ["link 1: ignored an answer to no message of this stream"], self.logged(LogLevel.warn)
        )

    def test_noSignOfLife(self) -> None:
        """
        A peer that answers neither the message nor the ping is given up.
        """
        connection = self.connection()
        connection.protocol.sendDownstream(downstream("d-0"))
        for _ in range(2):
            self.clock.advance(59)
            connection.receive(b" ")
        self.clock.advance(2)
        self.assertEqual("overdue", self.settler.told[-1][0])
        self.clock.advance(30)
        self.assertTrue(connection.transport.disconnected)
        self.assertEqual(
            ["link 1: the connection server is silent; giving the stream up"], self.logged(LogLevel.warn)
        )


PING = '<iq type="get" id="ping"><ping xmlns="urn:xmpp:ping"/></iq>'
PONG = b'<iq type="result" id="ping"/>'


class LivenessTests(ClientCase):
    """
    Pings, ours and theirs.
    """

    def test_ping(self) -> None:
        """
        After 60 seconds of silence a ping goes out, one only; 30 seconds after
        that the stream is given up.
        """
        connection = self.connection()
        self.clock.advance(59.9)
        self.assertEqual("", connection.said())
        self.clock.advance(0.1)
        self.assertEqual(PING, connection.said())
        self.clock.advance(29.9)
        self.assertEqual(("", False), (connection.said(), connection.transport.disconnected))
        self.clock.advance(0.1)
        self.assertEqual(("", True), (connection.said(), connection.transport.disconnected))
        self.assertEqual(1, len([line for line in self.logged(LogLevel.warn) if "silent" in line]))

    def test_deadIsLost(self) -> None:
        """
        What was unanswered on a stream that was given up is given back when
        the connection is gone.
        """
        connection = self.connection()
        connection.protocol.sendDownstream(downstream("d-0"))
        self.clock.pump([60, 30])
        self.assertEqual([], self.settler.told)
        connection.lose()
        self.assertEqual([("lost", connection.protocol, ["d-0"])], self.settler.told)

    def test_anyByte(self) -> None:
        """
        Any byte is a sign of life, be it a space, a part of a stanza, or
        something that is ignored: the 60 seconds begin anew.
        """
        connection = self.connection()
        for data in (b" ", b"\n", b"<mess", b"age", b"/>", PONG, b"<presence/>", b'<iq id="'):
            self.clock.advance(59)
            self.assertEqual("", connection.said(), data)
            connection.receive(data)
        self.clock.advance(59)
        self.assertEqual("", connection.said())
        self.clock.advance(1)
        self.assertEqual(PING, connection.said())

    def test_pong(self) -> None:
        """
        Whatever comes after a ping, the answer to it or a space, keeps the
        stream: the next ping goes out 60 seconds after that.
        """
        for data in (PONG, b" ", b'<iq type="error" id="ping"><error/></iq>', b"<"):
            connection = self.connection()
            self.clock.advance(60)
            self.assertEqual(PING, connection.said())
            self.clock.advance(29)
            connection.receive(data)
            self.clock.advance(59)
            self.assertEqual(("", False), (connection.said(), connection.transport.disconnected), data)
            self.clock.advance(1)
            self.assertEqual(PING, connection.said(), data)
            connection.lose()

    def test_oneTimer(self) -> None:
        """
        All this takes one timer, however much comes; and none before the login
        or after the end.
        """
        connection = self.connection(loggedIn=False)
        self.assertEqual(0, len(self.clock.getDelayedCalls()))
        connection.logIn()
        for _ in range(100):
            connection.receive(b" ")
            self.clock.advance(7)
            self.assertEqual(1, len(self.clock.getDelayedCalls()))
        connection.lose()
        self.assertEqual(0, len(self.clock.getDelayedCalls()))

    def test_pingWhileDraining(self) -> None:
        """
        A stream that is being drained is watched, too.
        """
        connection = self.connection()
        connection.receive(Control(control_type="CONNECTION_DRAINING"))
        self.clock.advance(60)
        self.assertEqual(PING, connection.said())
        self.clock.advance(30)
        self.assertTrue(connection.transport.disconnected)

    def test_requests(self) -> None:
        """
        The connection server's IQ requests are answered on the same stream:
        its pings with a result, all others with C{service-unavailable}.
        """
        old, new = self.connection(), self.connection()
        old.receive(b'<iq type="get" id="a"><ping xmlns="urn:xmpp:ping"/></iq>')
        self.assertEqual(('<iq type="result" id="a"/>', ""), (old.said(), new.said()))
        new.receive(b'<iq type="get" id="b"><query xmlns="jabber:iq:version"/></iq>')
        said = new.said()
        self.assertTrue(said.startswith('<iq type="error" id="b">'), said)
        self.assertIn("<service-unavailable ", said)
        self.assertEqual("", old.said())

    def test_noAnswerToAnswers(self) -> None:
        """
        Its answers are not answered.
        """
        connection = self.connection()
        connection.receive(PONG, b'<iq type="error" id="ping"><error type="cancel"/></iq>', b"<iq/>")
        self.assertEqual("", connection.said())


class XMPPHandlerSendTests(ClientCase):
    """
    C{XMPPHandler.send}, which queues what it cannot send, and sends it on the
    next stream.
    """

    def test_never(self) -> None:
        """
        It is used for nothing: the parent's queue stays empty whatever
        happens.  (Every other test looks at the queue at its end, too.)
        """
        connection = self.connection()
        result: Deferred[None] = Deferred()
        self.taker.answer = lambda: result
        connection.receive(
            upstream("u-1"),
            {"message_id": "u-2", "from": "tok-A", "data": 1},
            b'<iq type="get" id="a"><ping xmlns="urn:xmpp:ping"/></iq>',
            b'<iq type="set" id="b"/>',
        )
        connection.protocol.sendDownstream(downstream("d-0"))
        self.clock.advance(60)
        connection.receive(PONG)
        result.callback(None)
        connection.protocol.close()
        connection.lose()
        connection.protocol.acknowledge(UpstreamAck(to="tok-A", message_id="u-1"))
        connection.protocol.close()
        self.assertEqual([], connection.manager._packetQueue)
        said = connection.said()
        self.assertEqual((3, 3), (said.count("<message "), said.count("<iq ")), said)
