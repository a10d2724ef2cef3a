"""
A database in memory, on which everything is done at once: for stores that last
no longer than the process.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed

from fcmxmpp.errors import FCMError
from fcmxmpp.store.database import makeTables, transaction


__all__ = ["AtOnce"]


class AtOnce:
    """
    What a L{GroupCommit<fcmxmpp.store.groupcommit.GroupCommit>} is to a file.
    """

    def __init__(self) -> None:
        self._connection = sqlite3.connect(":memory:", isolation_level=None, cached_statements=256)
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

    def close(self) -> None:
        """
        Forget everything.
        """
        self._connection.close()
