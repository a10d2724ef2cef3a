"""
Application handlers that are ready to use.
"""

from __future__ import annotations

from io import RawIOBase

import msgspec
from zope.interface import implementer

from fcmxmpp.errors import HandlerUnavailable
from fcmxmpp.interfaces import IUpstreamHandler
from fcmxmpp.messages import UpstreamMessage


__all__ = ["JSONLines"]


@implementer(IUpstreamHandler)
class JSONLines:
    """
    Writes each message as one line of JSON, an object with C{message_id},
    C{from}, C{category}, C{data} and C{time_to_live}.

    A message counts as handled when its line has been given to the operating
    system.  While that is impossible (the reader of the pipe is gone, the disk
    is full) the messages stay with the connection server.
    """

    def __init__(self, output: RawIOBase) -> None:
        """
        @param output: unbuffered, so that what has been written is out.
        """
        self._output = output
        self._encode = msgspec.json.Encoder().encode
        self._torn = False

    def messageReceived(self, message: UpstreamMessage) -> None:
        """
        Write a line.

        @raise HandlerUnavailable: if it cannot be written now.
        """
        line = self._encode(
            {
                "message_id": message.message_id,
                "from": message.from_,
                "category": message.category,
                "data": message.data,
                "time_to_live": message.time_to_live,
            }
        )
        # The part of a line that an earlier failure left behind gets a line
        # of its own.
        rest = memoryview(b"\n" + line + b"\n" if self._torn else line + b"\n")
        try:
            while rest:
                written = self._output.write(rest)
                if not written:
                    raise HandlerUnavailable("the output takes no more just now")
                self._torn = True
                rest = rest[written:]
        except OSError as error:
            raise HandlerUnavailable(f"the output cannot be written: {error.strerror}") from error
        self._torn = False
