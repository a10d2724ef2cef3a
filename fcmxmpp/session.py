"""
One stream's conversation, for both of its ends.

A L{Session} begins when a stream is logged in and ends with it.  It is a pure
object: what happens is told to it by method calls (with the time, where time
matters), and what is to be done is what these return, a list of frozen
outputs.  It never calls back, sleeps, logs or raises for what the peer did.

Both ends do the same arithmetic.  Each sends messages and waits for the answer
to each, at most L{WINDOW<fcmxmpp.messages.WINDOW>} of them at a time; each
answers what it receives, and answers take no place in the window::

                      sends                 waits for     receives and answers
  APP_SERVER          DownstreamMessage     Ack, Nack     UpstreamMessage, Receipt
  CONNECTION_SERVER   UpstreamMessage,      UpstreamAck   DownstreamMessage
                      Receipt

What may happen in which phase (every pair is tested)::

                      OPEN                  DRAINING              CLOSED
  send                Send                  ValueError            ValueError
  answer              Send                  Send                  nothing
  receive a message   Received              Received; as server:  nothing
                                            NACKed
  receive an answer   Answered or Foreign   Answered or Foreign   nothing
  receive draining    DRAINING, Draining    nothing               nothing
  drain (server)      DRAINING, Send        nothing               nothing
  no answer in time   Overdue, Probe        Overdue, Probe        nothing
  lost                CLOSED, Lost          CLOSED, Lost          nothing

Limits that a peer may run into:

  - An app server that has sent a window and L{OVERRUN} of messages which we have
    not answered yet gets C{SERVICE_UNAVAILABLE} for what is beyond.
  - An answer that does not come in time is waited for no longer, and the peer
    is probed; while a probe is unanswered there is no room on the stream.
"""

from __future__ import annotations

from enum import Enum

from msgspec import Struct

from fcmxmpp.messages import (
    WINDOW,
    Ack,
    Control,
    DownstreamMessage,
    FromAppServer,
    FromConnectionServer,
    Nack,
    Receipt,
    Unrecognized,
    UpstreamAck,
    UpstreamMessage,
)
from fcmxmpp.window import Window


__all__ = [
    "OVERRUN",
    "Answered",
    "Dead",
    "Draining",
    "Foreign",
    "Ignored",
    "KeepAlive",
    "Lost",
    "Output",
    "Overdue",
    "Phase",
    "Probe",
    "Received",
    "Role",
    "Send",
    "Session",
]


#: How many messages beyond the window a connection server lets pass: clients in
#: the field count differently.
OVERRUN = 20


class Role(Enum):
    """
    Which end of the stream a session speaks for.
    """

    APP_SERVER = "app server"
    CONNECTION_SERVER = "connection server"


class Phase(Enum):
    """
    How far the conversation is.
    """

    OPEN = "open"
    DRAINING = "draining"
    CLOSED = "closed"


# Read for each message, where the class would have to be asked for it.
_OPEN = Phase.OPEN

Sendable = DownstreamMessage | UpstreamMessage | Receipt
Answer = UpstreamAck | Ack | Nack
_Key = str | tuple[str, str] | None


class Send(Struct, frozen=True):
    """
    Write this to the stream.
    """

    message: Sendable | Answer | Control


class Received(Struct, frozen=True):
    """
    The peer wants this message taken over, and then answered on this stream.
    """

    message: Sendable


class Answered(Struct, frozen=True):
    """
    The peer answered a message of ours.
    """

    message: Sendable
    answer: Answer


class Foreign(Struct, frozen=True):
    """
    The peer answered something that is not unanswered on this stream.
    """

    answer: Answer


class Draining(Struct, frozen=True):
    """
    The peer will close this stream; nothing new may be sent on it.
    """


class Ignored(Struct, frozen=True):
    """
    The peer sent something that this version does not know.
    """

    message: Unrecognized | Control


class Probe(Struct, frozen=True):
    """
    The peer has been silent for long: ask it for a sign of life.
    """


class Overdue(Struct, frozen=True):
    """
    A message of ours was not answered in time; it is waited for no longer.
    """

    message: Sendable


class Dead(Struct, frozen=True):
    """
    The peer did not answer the probe: give the stream up.
    """


class KeepAlive(Struct, frozen=True):
    """
    Write something that means nothing, so that the peer hears us.
    """


class Lost(Struct, frozen=True):
    """
    The stream is gone.

    @ivar unanswered: what was sent and not answered, in the order it was sent.
    """

    unanswered: tuple[Sendable, ...]


Output = Send | Received | Answered | Foreign | Draining | Ignored | Overdue | Probe | Dead | KeepAlive | Lost


def _keyOf(message: Sendable) -> _Key:
    """
    What the answer to a message will be matched by.
    """
    return message.message_id if isinstance(message, DownstreamMessage) else message.key


class Session:
    """
    The conversation on one stream.

    @ivar role: which end this is.
    @ivar phase: how far it is.
    """

    def __init__(
        self,
        role: Role,
        now: float,
        *,
        window: int = WINDOW,
        quiet: float = 60.0,
        patience: float = 30.0,
        answerWithin: float = 120.0,
    ) -> None:
        """
        @param now: the time, in seconds on any clock that does not go back;
            the same clock tells it ever after.
        @param window: how many messages may be unanswered.
        @param quiet: seconds of silence after which the app server's end
            probes its peer; the connection server's end writes a keep-alive
            as often.
        @param patience: seconds that a probe may stay without an answer, no
            more than C{quiet}.
        @param answerWithin: seconds that the app server's end waits for the
            answer to a message.  It is longer than it takes to find a dead
            peer, so that what was sent to one goes to the next instead of
            being given up.  The connection server's end waits for ever,
            because handlers may take long.
        """
        self.role = role
        self.phase = Phase.OPEN
        # Each with the time when it was sent.
        self._window: Window[_Key, tuple[Sendable, float]] = Window(window)
        # How many messages an app server waits for our answers to.
        self._owed = 0
        self._quiet = quiet
        self._patience = patience
        self._answerWithin = answerWithin
        self._lastHeard = now
        # The latest time that is known: nothing will be sent before it.
        self._latest = now
        self._probed: float | None = None
        self._lastKeepAlive = now

    @property
    def room(self) -> int:
        """
        How many messages may be sent now.
        """
        if self.phase is not _OPEN or self._probed is not None:
            return 0
        window = self._window
        return window.size - len(window.unanswered)

    @property
    def unanswered(self) -> int:
        """
        How many messages have been sent and not answered.
        """
        return len(self._window.unanswered)

    @property
    def owed(self) -> int:
        """
        As connection server: how many messages have been received and not
        answered.
        """
        return self._owed

    def isUnanswered(self, message: Sendable) -> bool:
        """
        Whether this message was sent here and its answer is still to come.
        """
        return _keyOf(message) in self._window.unanswered

    def send(self, message: Sendable, now: float) -> list[Output]:
        """
        Send a message that wants an answer.

        @raise ValueError: without L{room}, or while a message with the same
            key is unanswered: a bug of the caller.
        """
        self.sending(message, now)
        return [Send(message)]

    def sending(self, message: Sendable, now: float) -> None:
        """
        The same for whoever writes it in any case, and needs not be told.

        @raise ValueError: see L{send}.
        """
        if self.phase is not _OPEN:
            raise ValueError(f"nothing may be sent on a stream that is {self.phase.value}")
        if self._probed is not None:
            raise ValueError("nothing may be sent while a probe is unanswered")
        key = message.message_id if type(message) is DownstreamMessage else _keyOf(message)
        self._window.add(key, (message, now))
        self._latest = now

    def answer(self, answer: Answer) -> list[Output]:
        """
        Answer a message that was received on this stream.

        @return: nothing to do, if the stream is gone; the peer will deliver
            the message again.
        """
        if self.phase is Phase.CLOSED:
            return []
        if self.role is Role.CONNECTION_SERVER:
            self._owed -= 1
        return [Send(answer)]

    def take(self, key: _Key) -> Sendable | None:
        """
        Take a message out of the window: it has been answered, or the peer said
        by other means that it will not be.

        @param key: a downstream message's C{message_id}.
        @return: the message, or None if no such message is unanswered.
        """
        sent = self._window.answer(key)
        return None if sent is None else sent[0]

    def receive(self, message: FromConnectionServer | FromAppServer) -> list[Output]:
        """
        The peer sent a message.
        """
        if self.phase is Phase.CLOSED:
            return []
        if isinstance(message, (UpstreamMessage, Receipt)):
            return [Received(message)]
        if isinstance(message, (Ack, UpstreamAck, Nack)):
            return self._answered(message)
        if isinstance(message, DownstreamMessage):
            if self.phase is Phase.DRAINING:
                return [Send(_nack(message, "CONNECTION_DRAINING", "Send on another connection"))]
            if self._owed >= self._window.size + OVERRUN:
                return [Send(_nack(message, "SERVICE_UNAVAILABLE", "Too many messages without an answer"))]
            self._owed += 1
            return [Received(message)]
        if isinstance(message, Control) and message.draining:
            return self._peerDrains()
        return [Ignored(message)]

    def _answered(self, answer: Answer) -> list[Output]:
        """
        The peer sent an answer.
        """
        key: _Key = answer.key if isinstance(answer, UpstreamAck) else answer.message_id
        message = self.take(key)
        if message is None:
            return [Foreign(answer)]
        outputs: list[Output] = [Answered(message, answer)]
        if isinstance(answer, Nack) and answer.error == "CONNECTION_DRAINING":
            # The control message may have been missed, or may come later.
            outputs = self._peerDrains() + outputs
        return outputs

    def _peerDrains(self) -> list[Output]:
        """
        The peer is about to close the stream.
        """
        if self.phase is Phase.DRAINING:
            return []
        self.phase = Phase.DRAINING
        return [Draining()]

    def drain(self) -> list[Output]:
        """
        As connection server: announce that this stream will be closed.  From
        now on new messages are refused; answers are still taken.
        """
        if self.phase is not Phase.OPEN:
            return []
        self.phase = Phase.DRAINING
        return [Send(Control(control_type="CONNECTION_DRAINING"))]

    def lost(self) -> list[Output]:
        """
        The stream is gone.
        """
        if self.phase is Phase.CLOSED:
            return []
        self.phase = Phase.CLOSED
        return [Lost(tuple(message for message, _ in self._window.clear()))]

    def heard(self, now: float) -> bool:
        """
        Bytes came from the peer, be it a single space.

        @return: whether a probe was unanswered, so that there may be room now
            where there was none.
        """
        self._lastHeard = now
        if self._probed is None:
            return False
        self._probed = None
        return True

    @property
    def wakeAt(self) -> float:
        """
        When to call L{wake} next.  It only ever moves later, so a timer that
        goes off too early may simply be set again.
        """
        if self.role is Role.CONNECTION_SERVER:
            return self._lastKeepAlive + self._quiet
        # With nothing unanswered, soon enough for whatever is sent next.
        _, oldest = next(iter(self._window.unanswered.values()), (None, self._latest))
        return min(self._silentAt, oldest + self._answerWithin)

    @property
    def _silentAt(self) -> float:
        """
        When the peer will have been silent for too long.
        """
        if self._probed is not None:
            return self._probed + self._patience
        return self._lastHeard + self._quiet

    def wake(self, now: float) -> list[Output]:
        """
        Time has passed.
        """
        if self.phase is Phase.CLOSED:
            return []
        if self.role is Role.CONNECTION_SERVER:
            if now < self.wakeAt:
                return []
            self._lastKeepAlive = now
            return [KeepAlive()]
        if now - self.wakeAt > self._patience:
            return self._wokenLate(now)
        self._latest = now
        outputs = self._overdue(now)
        if self._probed is None:
            if outputs or now >= self._silentAt:
                self._probed = now
                outputs.append(Probe())
        elif now >= self._silentAt:
            # No second Dead: give the shell the same patience to act on this one.
            self._probed = now
            outputs.append(Dead())
        return outputs

    def _wokenLate(self, now: float) -> list[Output]:
        """
        The machine slept, or its clock was set: nobody can be blamed for what
        did not come meanwhile, and it may be there to be read.
        """
        shift = now - self.wakeAt + self._patience
        unanswered = self._window.unanswered
        for key, (message, since) in unanswered.items():
            # Its place in the order is kept.
            unanswered[key] = message, min(now, since + shift)
        self._latest = self._probed = now
        return [Probe()]

    def _overdue(self, now: float) -> list[Output]:
        """
        Wait no longer for the answers that should have come by now.
        """
        unanswered = self._window.unanswered
        late = [key for key, (_, since) in unanswered.items() if since + self._answerWithin <= now]
        return [Overdue(unanswered.pop(key)[0]) for key in late]


def _nack(message: DownstreamMessage, error: str, description: str) -> Nack:
    """
    The answer to a message that this stream does not take, or not now.
    """
    return Nack(
        from_=message.to or message.condition,
        message_id=message.message_id or "",
        error=error,
        error_description=description,
    )
