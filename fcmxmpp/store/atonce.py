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


__all__ = ["OFTEN", "AtOnce"]

#: After how many operations something is swept; a step of it takes away as many mails.
OFTEN = 100


class AtOnce:
    """
    What a L{GroupCommit<fcmxmpp.store.groupcommit.GroupCommit>} is to a file.

    @ivar close: forgets everything.
    """

    def __init__(self, sweep: Callable[[sqlite3.Connection], object] | None = None) -> None:
        """
        @param sweep: takes away a little of what is of no use any more; called now
            and then, in a transaction of its own.
        """
        # It ends with whoever has it, in whichever thread Python finds that out.
        self._connection = sqlite3.connect(
            ":memory:", isolation_level=None, cached_statements=256, check_same_thread=False
        )
        self.close = weakref.finalize(self, self._connection.close)
        makeTables(self._connection)
        self._sweep = sweep
        self._count = 0

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
        self._count += 1
        if self._sweep is not None and self._count % OFTEN == 0:
            with transaction(self._connection):
                self._sweep(self._connection)
        with transaction(self._connection):
            (result,) = work(self._connection, [argument])
        return fail(result) if isinstance(result, FCMError) else succeed(result)
