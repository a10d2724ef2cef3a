"""
The two ends of the core against each other, with nothing but text in between.
"""

from __future__ import annotations

from collections import Counter, deque

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.messages import (
    RECEIPT_SENDER,
    Ack,
    Control,
    DownstreamMessage,
    FromAppServer,
    FromConnectionServer,
    Nack,
    Receipt,
    ReceiptData,
    UpstreamMessage,
)
from fcmxmpp.payload import decodeFromAppServer, decodeFromConnectionServer, encode
from fcmxmpp.session import (
    OVERRUN,
    Answer,
    Answered,
    Dead,
    Draining,
    Foreign,
    KeepAlive,
    Lost,
    Output,
    Overdue,
    Phase,
    Probe,
    Received,
    Role,
    Send,
    Sendable,
    Session,
)
from fcmxmpp.window import Queue


#: Small, so that it is full most of the time.
WINDOW = 3

#: What stands for a sign of life, the question for one, and its answer.
SPACE, PING, PONG = " ", "ping", "pong"


def keyOf(message: Sendable) -> str:
    """
    What a message is known by in its sender's queue.
    """
    return message.message_id or ""


def nackOf(message: DownstreamMessage, error: str) -> Nack:
    """
    The refusal of a message.
    """
    return Nack(from_=message.to, message_id=keyOf(message), error=error, error_description="")


class End:
    """
    One end: what waits to be sent, the session of its present stream, and what
    has become of everything.

    @ivar accepted: all that was ever to be sent, in order.
    @ivar settled: what was answered for good, and how often.
    @ivar failed: what was not answered in time, or was beyond the overrun, and
        how often: it is not sent again here.
    @ivar firsts: what was received, in the order it was received first.
    @ivar toAnswer: what was received and is still to be answered, with the
        session that it was received on.
    @ivar line: the text on its way to the peer.
    """

    def __init__(self, role: Role, answerWithin: float = 120.0) -> None:
        self.role = role
        self.answerWithin = answerWithin
        self.queue: Queue[str, Sendable] = Queue(1000)
        self.accepted: list[str] = []
        self.settled: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.now = 0.0
        self.firsts: list[str] = []
        self.toAnswer: list[tuple[Session, Sendable]] = []
        self.connect()

    def connect(self) -> None:
        """
        A new stream has been logged in.
        """
        self.session = Session(self.role, self.now, window=WINDOW, answerWithin=self.answerWithin)
        self.line: deque[str] = deque()
        #: The numbers of what was sent on this stream, in the order it was.
        self.sent: list[int] = []
        #: What was refused on this stream, to be sent on another.
        self.refused: list[Sendable] = []
        self.drains = 0
        self.dead = False

    def accept(self, message: Sendable) -> None:
        """
        The application wants a message sent.
        """
        self.accepted.append(keyOf(message))
        self.queue.append(keyOf(message), message)

    def fill(self) -> None:
        """
        Send for as long as there is room.
        """
        while self.session.room and (message := self.queue.take()) is not None:
            self.carryOut(self.session.send(message, self.now))

    def receive(self, text: str) -> None:
        """
        A line of text has come.
        """
        self.session.heard(self.now)
        if text == PING:
            self.line.append(PONG)
        if text in (SPACE, PING, PONG):
            return
        message: FromAppServer | FromConnectionServer
        if self.role is Role.APP_SERVER:
            message = decodeFromConnectionServer(text)
        else:
            message = decodeFromAppServer(text)
        self.carryOut(self.session.receive(message))

    def answer(self, which: int, answer: Answer) -> None:
        """
        Answer one of those received, on the stream that it came on.
        """
        session, _ = self.toAnswer.pop(which)
        outputs = session.answer(answer)
        assert bool(outputs) is (session is self.session)
        self.carryOut(outputs)

    def wake(self, passed: float) -> None:
        """
        Time has passed.
        """
        self.now += passed
        self.carryOut(self.session.wake(self.now))

    def carryOut(self, outputs: list[Output]) -> None:
        """
        Do what the session says.
        """
        for output in outputs:
            if isinstance(output, Send):
                if isinstance(output.message, Sendable):
                    self.sent.append(self.accepted.index(keyOf(output.message)))
                self.line.append(encode(output.message).decode())
            elif isinstance(output, Received):
                self.toAnswer.append((self.session, output.message))
                if keyOf(output.message) not in self.firsts:
                    self.firsts.append(keyOf(output.message))
            elif isinstance(output, Answered):
                if isinstance(output.answer, Nack) and output.answer.error == "CONNECTION_DRAINING":
                    self.refused.append(output.message)
                elif isinstance(output.answer, Nack) and output.answer.error == "SERVICE_UNAVAILABLE":
                    self.failed[keyOf(output.message)] += 1
                else:
                    self.settled[keyOf(output.message)] += 1
            elif isinstance(output, Overdue):
                self.failed[keyOf(output.message)] += 1
            elif isinstance(output, Foreign):
                # An answer that comes after all.
                assert output.answer.message_id in self.failed
            elif isinstance(output, Probe):
                self.line.append(PING)
            elif isinstance(output, KeepAlive):
                self.line.append(SPACE)
            elif isinstance(output, Dead):
                self.dead = True
            elif isinstance(output, Draining):
                self.drains += 1
            elif isinstance(output, Lost):
                # The refused were sent in between.
                again = sorted(
                    [*self.refused, *output.unanswered], key=lambda m: self.accepted.index(keyOf(m))
                )
                assert [m for m in again if m not in self.refused] == list(output.unanswered)
                self.queue.giveBack((keyOf(message), message) for message in again)
            else:
                # Neither end ever answers what it did not receive, nor sends what the other does not know.
                raise AssertionError(output)


class ConversationMachine(RuleBasedStateMachine):
    """
    An app server and a connection server talk over streams that are cut.
    """

    @initialize(answerWithin=st.sampled_from([40.0, 120.0]))
    def start(self, answerWithin: float) -> None:
        """
        The first stream is there.
        """
        self.app = End(Role.APP_SERVER, answerWithin)
        self.server = End(Role.CONNECTION_SERVER)
        self.count = 0

    def number(self) -> int:
        """
        The next number for a message.
        """
        self.count += 1
        return self.count

    @rule(text=st.text(max_size=5), many=st.integers(1, 4))
    def sendDown(self, text: str, many: int) -> None:
        """
        The app server has messages for devices.
        """
        for _ in range(many):
            self.app.accept(DownstreamMessage(to="tok-A", message_id=f"m{self.number()}", data={"k": text}))
        self.app.fill()

    @rule(text=st.text(max_size=5), many=st.integers(1, 4))
    def sendUp(self, text: str, many: int) -> None:
        """
        A device has messages for the app server.
        """
        for _ in range(many):
            self.server.accept(
                UpstreamMessage(from_="tok-A", message_id=f"u{self.number()}", data={"k": text})
            )
        self.server.fill()

    @rule()
    def sendReceipt(self) -> None:
        """
        A device has received something.
        """
        number = self.number()
        receipt = ReceiptData(message_status="MESSAGE_SENT_TO_DEVICE", original_message_id=f"m{number}")
        self.server.accept(Receipt(data=receipt, message_id=f"dr2:m{number}", from_=RECEIPT_SENDER))
        self.server.fill()

    @precondition(lambda self: self.app.line)
    @rule(many=st.integers(1, 5))
    def deliverDown(self, many: int) -> None:
        """
        The connection server gets some of what the app server wrote.
        """
        for _ in range(min(many, len(self.app.line))):
            self.server.receive(self.app.line.popleft())
        self.server.fill()

    @precondition(lambda self: self.server.line)
    @rule(many=st.integers(1, 5))
    def deliverUp(self, many: int) -> None:
        """
        The app server gets some of what the connection server wrote.
        """
        for _ in range(min(many, len(self.server.line))):
            self.app.receive(self.server.line.popleft())
        self.app.fill()

    @precondition(lambda self: self.app.toAnswer)
    @rule(which=st.integers(0, 11))
    def appAnswers(self, which: int) -> None:
        """
        The app server has handled any of its messages, perhaps one of a
        stream that is gone.
        """
        which %= len(self.app.toAnswer)
        _, message = self.app.toAnswer[which]
        assert isinstance(message, UpstreamMessage | Receipt)
        self.app.answer(which, message.ack())

    @precondition(lambda self: self.server.toAnswer)
    @rule(which=st.integers(0, 11), good=st.booleans())
    def serverAnswers(self, which: int, good: bool) -> None:
        """
        The connection server has made up its mind about any of its messages.
        """
        which %= len(self.server.toAnswer)
        _, message = self.server.toAnswer[which]
        assert isinstance(message, DownstreamMessage)
        answer = Ack(from_=message.to, message_id=keyOf(message)) if good else nackOf(message, "INVALID_JSON")
        self.server.answer(which, answer)

    @rule(passed=st.integers(1, 70))
    def timePasses(self, passed: int) -> None:
        """
        Time passes; perhaps too much for an answer, or a sign of life.
        """
        for end in (self.app, self.server):
            end.wake(passed)
        if self.app.dead:
            self.cut()
        self.app.fill()

    @precondition(lambda self: self.count > 3)
    @rule()
    def drain(self) -> None:
        """
        The connection server is about to close the stream.
        """
        self.server.carryOut(self.server.session.drain())

    @precondition(lambda self: self.count > 3)
    @rule()
    def cut(self) -> None:
        """
        The stream is cut, whatever is on its way, and another one made.
        """
        for end in (self.app, self.server):
            old = end.session
            end.carryOut(old.lost())
            assert old.phase is Phase.CLOSED and old.lost() == []
            end.connect()
        for end in (self.app, self.server):
            end.fill()

    @invariant()
    def promises(self) -> None:
        """
        What holds all the time.
        """
        for end, peer in ((self.app, self.server), (self.server, self.app)):
            # The window, as both ends see it.
            assert end.session.unanswered <= WINDOW
            toAnswer = sum(session is peer.session for session, _ in peer.toAnswer)
            assert toAnswer <= (WINDOW + OVERRUN if peer is self.server else WINDOW)
            assert peer.session.owed == (toAnswer if peer is self.server else 0)
            # No message is ever overtaken, neither on a stream nor from one stream to the next;
            # only what has failed may not come at all.
            assert end.sent == sorted(set(end.sent))
            received = set(peer.firsts)
            came = [key for key in end.accepted if key in received or key not in end.failed]
            assert peer.firsts == came[: len(peer.firsts)]
            # Nothing is answered that the peer did not receive, and nothing ends twice.
            assert set(end.settled) <= received
            assert set((end.settled + end.failed).values()) <= {1}
            # Nothing is lost: it waits, is unanswered, was refused, is settled, or has failed.
            kept = len(end.queue) + end.session.unanswered + len(end.refused)
            assert kept + len(end.settled) + len(end.failed) == len(end.accepted)
            assert end.drains <= 1
        # A connection server waits for as long as it takes.
        assert not self.server.failed

    def teardown(self) -> None:
        """
        On a last stream that is left alone, everything is received and
        answered.
        """
        if not hasattr(self, "server"):
            return
        self.cut()
        while any(end.line or end.toAnswer for end in (self.app, self.server)):
            if self.app.line:
                self.deliverDown(1)
            if self.server.line:
                self.deliverUp(1)
            if self.app.toAnswer:
                self.appAnswers(0)
            if self.server.toAnswer:
                self.serverAnswers(0, True)
        self.promises()
        for end, peer in ((self.app, self.server), (self.server, self.app)):
            assert set(end.accepted) - set(peer.firsts) <= set(end.failed)
            assert end.settled + end.failed == Counter(end.accepted)
            assert (len(end.queue), end.session.unanswered, end.refused) == (0, 0, [])


class ConversationTests(SynchronousTestCase):
    """
    Two sessions that understand each other.
    """

    def test_anyOrder(self) -> None:
        """
        However streams are drained and cut, and however slow either end is,
        every message is received in order and answered exactly once, as its
        sender sees it, or else was not answered in time.
        """
        run_state_machine_as_test(ConversationMachine)

    def test_oneOfEach(self) -> None:
        """
        A message, a receipt and a refusal find their way there and back.
        """
        app, server = End(Role.APP_SERVER), End(Role.CONNECTION_SERVER)
        down = DownstreamMessage(to="tok-A", message_id="m-1", data={"k": "<v>"})
        up = UpstreamMessage(from_="tok-A", message_id="u-1", data={"k": "😀"})
        server.accept(up)
        server.fill()
        app.receive(server.line.popleft())
        app.answer(0, up.ack())
        server.receive(app.line.popleft())
        app.accept(down)
        app.fill()
        server.receive(app.line.popleft())
        self.assertEqual(server.toAnswer, [(server.session, down)])
        server.answer(0, nackOf(down, "INVALID_JSON"))
        app.receive(server.line.popleft())
        self.assertEqual((app.settled, server.settled), ({"m-1": 1}, {"u-1": 1}))
        self.assertEqual((app.line, server.line), (deque(), deque()))

    def test_answerToOldStream(self) -> None:
        """
        What was received on a stream that is gone is not answered on the
        next; it is delivered again there, and answered (A13, S10).
        """
        app, server = End(Role.APP_SERVER), End(Role.CONNECTION_SERVER)
        up = UpstreamMessage(from_="tok-A", message_id="u-1")
        server.accept(up)
        server.fill()
        app.receive(server.line.popleft())
        for end in (app, server):
            end.carryOut(end.session.lost())
            end.connect()
        app.answer(0, up.ack())
        self.assertEqual(app.line, deque())
        server.fill()
        app.receive(server.line.popleft())
        app.answer(0, up.ack())
        server.receive(app.line.popleft())
        self.assertEqual((app.firsts, server.settled), (["u-1"], {"u-1": 1}))

    def test_drainCrossesMessage(self) -> None:
        """
        A message that meets the announcement on its way is refused, and so
        sent again on the next stream, before those that waited (S11, A15).
        """
        app, server = End(Role.APP_SERVER), End(Role.CONNECTION_SERVER)
        for number in range(WINDOW + 1):
            app.accept(DownstreamMessage(to="tok-A", message_id=f"m-{number}"))
        app.fill()
        server.carryOut(server.session.drain())
        self.assertEqual(
            decodeFromConnectionServer(server.line[0]), Control(control_type="CONNECTION_DRAINING")
        )
        while app.line:
            server.receive(app.line.popleft())
        while server.line:
            app.receive(server.line.popleft())
        self.assertEqual((app.drains, len(app.refused), app.session.room), (1, WINDOW, 0))
        for end in (app, server):
            end.carryOut(end.session.lost())
            end.connect()
        app.fill()
        self.assertEqual(app.sent, [0, 1, 2])
        self.assertEqual(len(app.queue), 1)

    def test_slowServer(self) -> None:
        """
        A connection server that answers pings and no message gets a window of
        them every two minutes, until it has to refuse what is beyond the
        overrun; what it answers late is of no use, but lets it take more
        (A11, S12).
        """
        app, server = End(Role.APP_SERVER), End(Role.CONNECTION_SERVER)
        names = [f"m-{number}" for number in range(25)]
        for name in names:
            app.accept(DownstreamMessage(to="tok-A", message_id=name))

        def exchange() -> None:
            while app.line or server.line:
                if app.line:
                    server.receive(app.line.popleft())
                if server.line:
                    app.receive(server.line.popleft())

        for _ in range(7):
            app.fill()
            exchange()
            for _ in range(2):
                self.assertEqual((app.session.room, app.session.unanswered), (0, WINDOW))
                app.wake(60.0)
                server.wake(60.0)
                exchange()
            self.assertEqual((app.session.room, app.session.unanswered), (WINDOW, 0))
        self.assertEqual((app.failed, server.firsts), (Counter(names[:21]), names[:21]))
        app.fill()
        exchange()
        self.assertEqual(server.firsts, names[: WINDOW + OVERRUN])
        self.assertEqual((app.failed["m-23"], app.session.unanswered), (1, 2))
        server.answer(0, Ack(from_="tok-A", message_id="m-0"))
        exchange()
        app.fill()
        exchange()
        self.assertEqual((server.firsts[-1], app.settled), ("m-24", {}))
