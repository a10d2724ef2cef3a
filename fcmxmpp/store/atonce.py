"""
A database in memory, on which everything is done at once: for stores that last
no longer than the process.
"""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed

from fcmxmpp.errors import FCMError
from fcmxmpp.store.database import makeTables, transaction


__all__ = ["AtOnce"]


class AtOnce:
    """
    What a L{GroupCommit<fcmxmpp.store.groupcommit.GroupCommit>} is to a file.

    @ivar close: forgets everything.
    """

    def __init__(self) -> None:
        # It ends with whoever has it, in whichever thread Python finds that out.
        self._connection = sqlite3.connect(
            ":memory:", isolation_level=None, cached_statements=256, check_same_thread=False
        )
        self.close = weakref.finalize(self, self._connection.close)
        makeTables(self._connection)

    def do(
        self,
        work: Callable[[sqlite3.Connection, Sequence[Any]], Sequence[Any]],
        argument: Any,
        urgent: bool = True,
    ) -> Deferred[Any]:
        """
        Do something.

        @return: has fired.
        """
        with transaction(self._connection):
            (result,) = work(self._connection, [argument])
        return fail(result) if isinstance(result, FCMError) else succeed(result)
