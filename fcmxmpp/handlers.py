"""
Application handlers that are ready to use.
"""

from __future__ import annotations

from collections.abc import Callable
from io import RawIOBase

import msgspec
from zope.interface import implementer

from fcmxmpp.errors import HandlerUnavailable
from fcmxmpp.interfaces import IUpstreamHandler
from fcmxmpp.messages import UpstreamMessage


__all__ = ["JSONLines"]


#: Seconds that a reader of the output may take to read on.
PATIENCE = 0.5
#: Bytes that go into a pipe at once, or not at all.
_CHUNK = 4096


@implementer(IUpstreamHandler)
class JSONLines:
    """
    Writes each message as one line of JSON, an object with C{message_id},
    C{from}, C{category}, C{data} and C{time_to_live}.

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
        self._encode = msgspec.json.Encoder().encode
        self._stalled = False
        # What is left of a line that was begun, and whose line it is; and
        # whose lines were ended while others were being handled.
        self._rest = b""
        self._begun: tuple[str, str] | None = None
        self._ended: set[tuple[str, str]] = set()

    def messageReceived(self, message: UpstreamMessage) -> None:
        """
        Write a line.

        @raise HandlerUnavailable: if it cannot be written now.
        """
        if self._rest:
            self._push()
            assert self._begun is not None
            self._ended.add(self._begun)
        if message.key in self._ended:
            self._ended.remove(message.key)
            return
        line = self._rest = (
            self._encode(
                {
                    "message_id": message.message_id,
                    "from": message.from_,
                    "category": message.category,
                    "data": message.data,
                    "time_to_live": message.time_to_live,
                }
            )
            + b"\n"
        )
        self._begun = message.key
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
            raise HandlerUnavailable(f"the output cannot be written: {error.strerror}") from error
