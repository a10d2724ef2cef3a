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
from fcmxmpp.handlers import JSONLines
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
        self.script = list(script)

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int | None:
        whole = bytes(data)  # type: ignore[call-overload]
        step = self.script.pop(0) if self.script else len(whole)
        if isinstance(step, OSError):
            raise step
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

    def test_torn(self) -> None:
        """
        A line that was begun and could not be ended stands on a line of its
        own; the message's whole line follows.
        """
        output = Output(5, OSError(errno.ENOSPC, "No space left"))
        handler = JSONLines(output)
        self.assertRaises(HandlerUnavailable, handler.messageReceived, message())
        handler.messageReceived(message())
        handler.messageReceived(message("m-2"))
        torn, *lines, end = output.taken.split(b"\n")
        self.assertEqual((b'{"mes', b""), (torn, end))
        self.assertEqual(["m-1", "m-2"], [json.loads(line)["message_id"] for line in lines])
