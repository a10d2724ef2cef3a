"""
Tests for L{fcmxmpp.handlers}.
"""

from __future__ import annotations

import errno
import io
import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from fcmxmpp.errors import HandlerUnavailable
from fcmxmpp.handlers import PATIENCE, JSONLines
from fcmxmpp.interfaces import IUpstreamHandler
from fcmxmpp.messages import UpstreamMessage


text = st.text(st.characters(exclude_categories=["Cs"]))
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


class Output(io.RawIOBase):
    """
    An output that does as it is told.

    @ivar taken: what it took.
    @ivar script: for each write, how many bytes to take, or what to raise;
        after that it takes everything.
    """

    def __init__(self, *script: int | OSError | None) -> None:
        super().__init__()
        self.taken = b""
        self.writes = 0
        self.script = list(script)

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int | None:
        self.writes += 1
        whole = bytes(data)  # type: ignore[call-overload]
        step = self.script.pop(0) if self.script else len(whole)
        if isinstance(step, OSError):
            raise step
        if step is not None:
            step = min(step, len(whole))
        if step is not None:
            self.taken += whole[:step]
        return step


def message(message_id: str = "m-1", **more: object) -> UpstreamMessage:
    """
    A message.
    """
    return UpstreamMessage(message_id=message_id, from_="tok-A", **more)  # type: ignore[arg-type]


class JSONLinesTests(SynchronousTestCase):
    """
    L{JSONLines} writes a line for each message.
    """

    def test_interface(self) -> None:
        """
        It is an L{IUpstreamHandler}.
        """
        verifyObject(IUpstreamHandler, JSONLines(Output()))

    def test_line(self) -> None:
        """
        The line has these keys, in this order, compact.
        """
        output = Output()
        JSONLines(output).messageReceived(
            message(data={"k": "v\n\u00e5"}, category="org.example.app", time_to_live=60)
        )
        self.assertEqual(
            '{"message_id":"m-1","from":"tok-A","category":"org.example.app",'
            '"data":{"k":"v\\n\u00e5"},"time_to_live":60}\n'.encode(),
            output.taken,
        )

    def test_absent(self) -> None:
        """
        What a message does not have is there as null, or empty.
        """
        output = Output()
        JSONLines(output).messageReceived(message())
        self.assertEqual(
            {"message_id": "m-1", "from": "tok-A", "category": None, "data": {}, "time_to_live": None},
            json.loads(output.taken),
        )

    @given(st.lists(st.tuples(names, st.dictionaries(text, text))))
    def test_roundTrip(self, messages: list[tuple[str, dict[str, str]]]) -> None:
        """
        Whatever the messages hold, there is one line for each, and it reads
        back as what was sent.
        """
        output = Output()
        handler = JSONLines(output)
        for message_id, data in messages:
            handler.messageReceived(message(message_id, data=data))
        lines = output.taken.split(b"\n")
        self.assertEqual(b"", lines.pop())
        read = [json.loads(line) for line in lines]
        self.assertEqual(messages, [(line["message_id"], line["data"]) for line in read])

    def test_inPieces(self) -> None:
        """
        An output that takes a line in pieces gets all of it.
        """
        output = Output(1, 2, 3)
        JSONLines(output).messageReceived(message())
        self.assertEqual("m-1", json.loads(output.taken)["message_id"])

    def test_cannotWrite(self) -> None:
        """
        While the output cannot be written the message is not handled, and it
        is not at fault; afterwards all is as if nothing had been.
        """
        output = Output(OSError(errno.EPIPE, "Broken pipe"), OSError(errno.ENOSPC, "No space left"), None)
        handler = JSONLines(output)
        for reason in ("Broken pipe", "No space left", "takes no more"):
            error = self.assertRaises(HandlerUnavailable, handler.messageReceived, message())
            self.assertIn(reason, str(error))
        self.assertEqual(b"", output.taken)
        handler.messageReceived(message())
        self.assertEqual("m-1", json.loads(output.taken)["message_id"])

    def test_begun(self) -> None:
        """
        A line that was begun is ended before any other, and its message is
        not written a second time when it is tried again.
        """
        output = Output(5, OSError(errno.ENOSPC, "No space left"), OSError(errno.ENOSPC, "No space left"))
        handler = JSONLines(output)
        self.assertRaises(HandlerUnavailable, handler.messageReceived, message())
        self.assertRaises(HandlerUnavailable, handler.messageReceived, message("m-2"))
        handler.messageReceived(message("m-2"))
        handler.messageReceived(message())
        handler.messageReceived(message("m-3"))
        handler.messageReceived(message())
        ids = [json.loads(line)["message_id"] for line in output.taken.splitlines()]
        self.assertEqual(["m-1", "m-2", "m-3", "m-1"], ids)

    def test_begunOneAfterTheOther(self) -> None:
        """
        So it is for several lines that are begun before the first message is
        tried again.
        """
        full = OSError(errno.ENOSPC, "No space left")
        output = Output(5, full, 1000, 5, full)
        handler = JSONLines(output)
        self.assertRaises(HandlerUnavailable, handler.messageReceived, message("m-1"))
        self.assertRaises(HandlerUnavailable, handler.messageReceived, message("m-2"))
        for message_id in ("m-3", "m-1", "m-2"):
            handler.messageReceived(message(message_id))
        ids = [json.loads(line)["message_id"] for line in output.taken.splitlines()]
        self.assertEqual(["m-1", "m-2", "m-3"], ids)

    def test_begunAndTriedAgain(self) -> None:
        """
        So it is when that message is the next one to be tried.
        """
        output = Output(5, None)
        handler = JSONLines(output)
        self.assertRaises(HandlerUnavailable, handler.messageReceived, message())
        handler.messageReceived(message())
        self.assertEqual("m-1", json.loads(output.taken)["message_id"])

    def test_readerStalls(self) -> None:
        """
        A reader that reads no more is waited for once and for a short time,
        not for each message; when it reads on, so do we.
        """
        reads: list[bool] = [False, False, False, True, True]
        waited: list[float] = []

        def ready(patience: float) -> bool:
            waited.append(patience)
            return reads.pop(0)

        output = Output()
        handler = JSONLines(output, ready)
        for _ in range(3):
            self.assertRaises(HandlerUnavailable, handler.messageReceived, message())
        handler.messageReceived(message())
        handler.messageReceived(message("m-2"))
        self.assertEqual([PATIENCE, 0.0, 0.0, 0.0, PATIENCE], waited)
        self.assertEqual(2, len(output.taken.splitlines()))

    def test_longLines(self) -> None:
        """
        A long line goes out in pieces that a pipe takes without blocking.
        """
        output = Output()
        handler = JSONLines(output)
        handler.messageReceived(message(data={"k": "x" * 10_000}))
        self.assertGreater(output.writes, 2)
        self.assertEqual(10_000, len(json.loads(output.taken)["data"]["k"]))
