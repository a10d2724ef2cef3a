"""
Tests for L{fcmxmpp.handlers}.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import stat
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from fcmxmpp.errors import HandlerUnavailable, Nacked, NotSendable, QueueFull, Stopped
from fcmxmpp.handlers import PATIENCE, AppendedFile, Echo, JSONLines
from fcmxmpp.interfaces import IUpstreamHandler
from fcmxmpp.messages import DownstreamMessage, UpstreamMessage
from fcmxmpp.testing import connectedPair
from tests.sending import Sender, stored


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
            self.assertTrue(str(error).startswith("the output "), error)
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


class AppendedFileTests(SynchronousTestCase):
    """
    L{AppendedFile} takes lines, and may be rotated.
    """

    def setUp(self) -> None:
        """
        Have a directory.
        """
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        self.path = self.directory / "messages.jsonl"

    def file(self) -> AppendedFile:
        """
        The file, open until the test ends.
        """
        file = AppendedFile(str(self.path))
        self.addCleanup(file.close)
        return file

    def ids(self, path: Path | None = None) -> list[str]:
        """
        The C{message_id} of each line in a file.
        """
        return [json.loads(line)["message_id"] for line in (path or self.path).read_text().splitlines()]

    def test_made(self) -> None:
        """
        A file that was not there is there at once, for its owner alone.
        """
        self.file()
        self.assertEqual(0o600, stat.S_IMODE(self.path.stat().st_mode))

    def test_appended(self) -> None:
        """
        Lines are added to what is there, also by two at once, and the mode
        that somebody chose for the file stays.
        """
        self.path.write_text('{"message_id":"m-0"}\n')
        self.path.chmod(0o640)
        first, second = JSONLines(self.file()), JSONLines(self.file())
        first.messageReceived(message("m-1"))
        second.messageReceived(message("m-2"))
        first.messageReceived(message("m-3"))
        self.assertEqual(["m-0", "m-1", "m-2", "m-3"], self.ids())
        self.assertEqual(0o640, stat.S_IMODE(self.path.stat().st_mode))

    def test_rotated(self) -> None:
        """
        When the file has been moved away, replaced, or removed, the next line
        goes into the one that the path names now.
        """
        handler = JSONLines(self.file())
        handler.messageReceived(message("m-1"))
        self.path.rename(self.directory / "1")
        handler.messageReceived(message("m-2"))
        self.assertEqual((["m-1"], ["m-2"]), (self.ids(self.directory / "1"), self.ids()))
        other = self.directory / "other"
        other.touch()
        other.replace(self.path)
        handler.messageReceived(message("m-3"))
        self.assertEqual(["m-3"], self.ids())
        self.path.unlink()
        handler.messageReceived(message("m-4"))
        self.assertEqual(["m-4"], self.ids())

    def test_rotatedMidLine(self) -> None:
        """
        A line that was begun is ended in the file that it was begun in.
        """
        file = self.file()
        self.assertEqual(5, file.write(b"begun"))
        self.path.rename(self.directory / "1")
        file.write(b" and ended\n")
        file.write(b"next\n")
        self.assertEqual("begun and ended\n", (self.directory / "1").read_text())
        self.assertEqual("next\n", self.path.read_text())

    def test_torn(self) -> None:
        """
        A line that a process before us did not end stands for itself, and does
        not spoil the next.
        """
        self.path.write_text('{"message_id":"m-1"}\n{"messa')
        JSONLines(self.file()).messageReceived(message("m-1"))
        lines = self.path.read_text().splitlines()
        self.assertEqual(['{"message_id":"m-1"}', '{"messa'], lines[:2])
        self.assertEqual("m-1", json.loads(lines[2])["message_id"])

    def test_directoryIsGone(self) -> None:
        """
        While there is no place for a new file the messages wait.
        """
        handler = JSONLines(self.file())
        moved = self.directory.with_name(self.directory.name + "-moved")
        self.directory.rename(moved)
        self.addCleanup(shutil.rmtree, moved, ignore_errors=True)
        error = self.assertRaises(HandlerUnavailable, handler.messageReceived, message())
        self.assertEqual(f"{self.path} cannot be written: No such file or directory", str(error))
        moved.rename(self.directory)
        handler.messageReceived(message())
        self.assertEqual(["m-1"], self.ids())

    def test_notRegular(self) -> None:
        """
        What is no file is refused, without waiting for anybody, and nothing
        stays open.
        """
        pipe = self.directory / "pipe"
        os.mkfifo(pipe)
        before = os.listdir("/dev/fd")
        for path in (pipe, self.directory, "/dev/null", self.directory / "none" / "file"):
            self.assertRaises(OSError, AppendedFile, str(path))
        self.assertEqual(before, os.listdir("/dev/fd"))


class EchoTests(SynchronousTestCase):
    """
    L{Echo} answers.
    """

    def test_interface(self) -> None:
        """
        It is an L{IUpstreamHandler}.
        """
        verifyObject(IUpstreamHandler, Echo(Sender()))

    def test_answers(self) -> None:
        """
        The device gets its data back, and its message is acknowledged.
        """
        pair = connectedPair(Echo)
        self.addCleanup(pair.stop)
        pair.device.send("m-1", {"op": "ping", "\u00e5": "<&>"})
        pair.pump()
        self.assertEqual([{"op": "ping", "\u00e5": "<&>"}], [m.data for m in pair.device.received])
        self.assertEqual(["m-1"], pair.device.delivered)

    def test_doesNotWait(self) -> None:
        """
        The message is handled while the answer is still unanswered.
        """
        sender = Sender()
        self.assertIsNone(Echo(sender).messageReceived(message(data={"k": "v"})))
        ((sent, result),) = sender.sent
        self.assertEqual(DownstreamMessage(to="tok-A", data={"k": "v"}), sent)
        self.assertFalse(result.called)

    def test_reservedKeys(self) -> None:
        """
        Keys that FCM reserves are left out, those that only look like it stay.
        """
        sender = Sender()
        reserved = ["from", "google", "google.ttl", "googlex", "gcm", "gcm.n", "gcmx"]
        good = ["From", "sender_from", "my.google", "googly", "collapse_key"]
        Echo(sender).messageReceived(message(data=dict.fromkeys(reserved + good, "v")))
        self.assertEqual(good, list(sender.sent[0][0].data))

    def test_refused(self) -> None:
        """
        That an answer was not accepted is one line in the log, which has the
        reason and no token, no payload, and no text of an error of others.
        """
        for error, reason in (
            (Nacked("DEVICE_UNREGISTERED", "d-1", "tok-B"), "DEVICE_UNREGISTERED"),
            (QueueFull("10000 messages wait already"), "10000 messages wait already"),
            (NotSendable("data", "is too large"), "data: is too large"),
            (ValueError("tok-A secret"), "ValueError"),
        ):
            sender = Sender()
            with capturedLogs() as events:
                Echo(sender).messageReceived(message(data={"k": "secret"}))
                sender.sent[0][1].errback(error)
            ((line, level),) = [(formatEvent(event), event["log_level"]) for event in events]
            sent = "d-1" if isinstance(error, Nacked) else ""
            self.assertEqual(f"the answer {sent!r} to 'm-1' was not sent: {reason}", line)
            self.assertEqual(LogLevel.warn, level)

    def test_stored(self) -> None:
        """
        With a store an answer that was taken over and not accepted later is
        the same line; one that the stop left in the outbox is none.
        """
        for error, expected in ((Nacked("DEVICE_UNREGISTERED", "d-1"), 1), (Stopped("stopped"), 0)):
            sender = Sender()
            taken, waiting = stored()
            with capturedLogs() as events:
                Echo(sender).messageReceived(message(data={"k": "v"}))
                sender.sent[0][1].callback(taken)
                self.assertEqual([], events)
                waiting[0].errback(error)
            lines = [formatEvent(event) for event in events]
            self.assertEqual(
                ["the answer 'd-1' to 'm-1' was not sent: DEVICE_UNREGISTERED"][:expected], lines
            )
