"""
Application handlers that are ready to use.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from io import RawIOBase

import msgspec
from msgspec import Struct, field
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from fcmxmpp.errors import FCMError, HandlerUnavailable, Stopped
from fcmxmpp.interfaces import IDownstreamSender, IUpstreamHandler, Stored
from fcmxmpp.messages import Ack, DownstreamMessage, UpstreamMessage
from fcmxmpp.validation import isReserved


__all__ = ["AppendedFile", "Echo", "JSONLines", "asJSON", "sendAndForget"]

_log = Logger()
_encode = msgspec.json.Encoder().encode

#: Seconds that a reader of the output may take to read on.
PATIENCE = 0.5
#: Bytes that go into a pipe at once, or not at all.
_CHUNK = 4096


class _Line(Struct):
    """
    A message as other programs get it.
    """

    message_id: str
    from_: str = field(name="from")
    category: str | None
    data: dict[str, str]
    time_to_live: int | None


def asJSON(message: UpstreamMessage) -> bytes:
    """
    A message as the JSON object that other programs get: C{message_id},
    C{from}, C{category}, C{data} and C{time_to_live}, always all of them.

    @return: UTF-8, compact, on one line, without its end.
    """
    return _encode(
        _Line(message.message_id, message.from_, message.category, message.data, message.time_to_live)
    )


def sendAndForget(sender: IDownstreamSender, message: DownstreamMessage, answered: UpstreamMessage) -> None:
    """
    Send a message that nobody waits for; that it was not accepted is logged,
    by its C{message_id} and without its contents.  With a store that may be
    long after it was taken over.

    @param answered: the upstream message that it is sent for.
    """

    def outcome(result: Ack | Stored) -> Ack | Deferred[Ack | None] | None:
        if not isinstance(result, Stored):
            return result
        # What the stop leaves in the outbox is still going to be sent.
        return result.whenSettled().addErrback(lambda failure: failure.trap(Stopped) and None)

    def log(failure: Failure) -> None:
        error = failure.value
        _log.warn(
            "the answer {sent!r} to {message_id!r} was not sent: {reason}",
            sent=(message.message_id or getattr(error, "message_id", None) or "")[:100],
            message_id=answered.message_id[:100],
            # Our own errors never quote the message; of others only the type is safe.
            reason=str(error) if isinstance(error, FCMError) else type(error).__name__,
        )

    sender.send(message).addCallback(outcome).addErrback(log)


@implementer(IUpstreamHandler)
class JSONLines:
    """
    Writes each message as one line of JSON, see L{asJSON}.

    A message counts as handled when its line has been given to the operating
    system.  While that is impossible (the reader of the pipe is gone or reads
    no more, the disk is full) the messages stay with the connection server.
    """

    def __init__(self, output: RawIOBase, ready: Callable[[float], bool] = lambda patience: True) -> None:
        """
        @param output: unbuffered, so that what has been written is out.
        @param ready: waits at most so many seconds for the output to take
            more, and says whether it does; so that a reader that has stopped
            reading does not stop everything else.
        """
        self._output = output
        self._ready = ready
        self._stalled = False
        # What is left of a line that was begun, and whose line it is; and
        # whose lines were ended while others were being handled.
        self._rest = b""
        self._begun: UpstreamMessage | None = None
        self._ended: set[tuple[str, str]] = set()

    def messageReceived(self, message: UpstreamMessage) -> None:
        """
        Write a line.

        @raise HandlerUnavailable: if it cannot be written now.
        """
        if self._rest:
            self._push()
            assert self._begun is not None
            self._ended.add(self._begun.key)
        if self._ended and message.key in self._ended:
            self._ended.remove(message.key)
            return
        line = self._rest = asJSON(message) + b"\n"
        self._begun = message
        try:
            self._push()
        finally:
            if self._rest is line:
                # Nothing of it is out, so it need not be the next.
                self._rest = b""

    def _push(self) -> None:
        """
        Write what is left of a line.

        @raise HandlerUnavailable: if that is impossible now.
        """
        try:
            while self._rest:
                if not self._ready(0.0 if self._stalled else PATIENCE):
                    self._stalled = True
                    raise HandlerUnavailable("the reader of the output does not read")
                written = self._output.write(self._rest[:_CHUNK])
                if not written:
                    raise HandlerUnavailable("the output takes no more just now")
                self._rest = self._rest[written:]
                self._stalled = False
        except OSError as error:
            where = getattr(self._output, "name", None)
            what = where if isinstance(where, str) else "the output"
            raise HandlerUnavailable(f"{what} cannot be written: {error.strerror}") from error


class AppendedFile(RawIOBase):
    """
    A file that lines are appended to, as an output for L{JSONLines}.

    @ivar name: its path.

    It may be rotated: when the path names another file, or none, the next line
    begins in a new one.  A line that has been begun is ended where it is.
    """

    def __init__(self, path: str) -> None:
        """
        Open the file; make it, readable by its owner alone, if there is none.

        @raise OSError: if that is impossible, or if it is not a regular file.
        """
        super().__init__()
        self.name = path
        self._descriptor = -1
        self._identity = (-1, -1)
        self._midLine = False
        self._open()

    def _open(self) -> None:
        """
        Open what the path names now.
        """
        # O_NONBLOCK, so that a named pipe is refused below, not waited for.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(self.name, flags, 0o600)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(0, "not a regular file", self.name)
            if status.st_size and os.pread(descriptor, 1, status.st_size - 1) != b"\n":
                # Somebody died in the midst of a line; its message comes again.
                os.write(descriptor, b"\n")
        except OSError:
            os.close(descriptor)
            raise
        self.close()
        self._descriptor = descriptor
        self._identity = (status.st_dev, status.st_ino)

    def _isCurrent(self) -> bool:
        """
        Whether the path still names the file that is open.
        """
        try:
            status = os.stat(self.name)
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """
        Append some bytes.

        @return: how many it took.
        """
        if not self._midLine and not self._isCurrent():
            self._open()
        written = os.write(self._descriptor, data)
        self._midLine = not data[:written].endswith(b"\n")
        return written

    def close(self) -> None:
        """
        Close the file.
        """
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@implementer(IUpstreamHandler)
class Echo:
    """
    Answers each message by sending its data back to the device that it came
    from: the least that a two-way handler does, and the pattern for others.

    FCM reserves some keys of downstream data, which devices may well use
    upstream; they are left out of the answer.
    """

    def __init__(self, sender: IDownstreamSender) -> None:
        """
        @param sender: what the app server gives to a callable that it makes
            its handler with, as in C{AppServer(endpoint, credentials, Echo)}.
        """
        self._sender = sender

    def messageReceived(self, message: UpstreamMessage) -> None:
        """
        Send the answer.

        Returning at once has the message acknowledged.  Returning what C{send}
        returns would have its ACK wait for another one, that of the answer,
        and an answer that is refused would have the message handled again.
        """
        data = {key: value for key, value in message.data.items() if not isReserved(key)}
        sendAndForget(self._sender, DownstreamMessage(to=message.from_, data=data), message)
