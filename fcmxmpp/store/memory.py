"""
A store in memory: the reference for what a store does, and of use in tests.

It outlasts the app server that uses it, but not the process.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

from msgspec import structs
from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from fcmxmpp.entries import (
    DeadLetter,
    EntrustedEntry,
    InboxEntry,
    OutboxEntry,
    Outcome,
    SettledEntry,
    UnreadableEntry,
)
from fcmxmpp.errors import StillUnanswered
from fcmxmpp.interfaces import IEntrusted, IInbox, IOutbox, IStore
from fcmxmpp.messages import DownstreamMessage, Receipt, UpstreamMessage
from fcmxmpp.store.atonce import AtOnce
from fcmxmpp.store.mailboxes import SQLMailboxes
from fcmxmpp.store.registrations import SQLRegistrations
from fcmxmpp.store.sqlite import sweepDevices


__all__ = ["MemoryEntrusted", "MemoryInbox", "MemoryOutbox", "MemoryStore"]

_E = TypeVar("_E", InboxEntry, OutboxEntry, SettledEntry, EntrustedEntry)


class _Known:
    """
    What is known for a while.
    """

    def __init__(self, seconds: Callable[[], float], keep: float) -> None:
        self._seconds = seconds
        self._keep = keep
        # Since when; the oldest first.
        self._known: dict[Hashable, float] = {}

    def learn(self, key: Hashable) -> bool:
        """
        Know something from now on.

        @return: whether it was not known.
        """
        now = self._seconds()
        while self._known:
            old = next(iter(self._known))
            if self._known[old] > now - self._keep:
                break
            del self._known[old]
        if key in self._known:
            return False
        self._known[key] = now
        return True

    def isKnown(self, key: Hashable) -> bool:
        """
        Whether something is known.
        """
        since = self._known.get(key)
        return since is not None and since > self._seconds() - self._keep


@implementer(IInbox)
class MemoryInbox:
    """
    An inbox in memory.

    @ivar deadLetters: what was put aside, in order.
    """

    def __init__(self, seconds: Callable[[], float], keep: float) -> None:
        self._seconds = seconds
        self._count = 0
        self._entries: dict[int, InboxEntry] = {}
        self._known = _Known(seconds, keep)
        self.deadLetters: list[DeadLetter] = []

    def add(self, message: UpstreamMessage | Receipt) -> Deferred[InboxEntry | None]:
        """
        See L{IInbox.add}.
        """
        if not self._known.learn(message.key):
            return succeed(None)
        self._count += 1
        entry = InboxEntry(number=self._count, message=message, arrived=self._seconds())
        self._entries[entry.number] = entry
        return succeed(entry)

    def load(self, after: int, limit: int) -> Deferred[list[InboxEntry | UnreadableEntry]]:
        """
        See L{IInbox.load}.
        """
        return succeed([*_after(self._entries.values(), after, limit)])

    def tried(self, number: int, tries: int) -> Deferred[None]:
        """
        See L{IInbox.tried}.
        """
        if number in self._entries:
            self._entries[number] = structs.replace(self._entries[number], tries=tries)
        return succeed(None)

    def handled(self, number: int) -> Deferred[None]:
        """
        See L{IInbox.handled}.
        """
        self._entries.pop(number, None)
        return succeed(None)

    def isKnown(self, key: tuple[str, str]) -> Deferred[bool]:
        """
        See L{IInbox.isKnown}.
        """
        return succeed(self._known.isKnown(key))

    def remember(self, key: tuple[str, str]) -> Deferred[None]:
        """
        See L{IInbox.remember}.
        """
        self._known.learn(key)
        return succeed(None)

    def putAside(self, letter: DeadLetter) -> Deferred[bool]:
        """
        See L{IInbox.putAside}.
        """
        entry = None if letter.number is None else self._entries.pop(letter.number, None)
        isNew = self._known.learn((letter.from_, letter.message_id))
        if entry is None and not isNew:
            return succeed(False)
        self.deadLetters.append(letter)
        return succeed(True)

    def retry(self, message: UpstreamMessage | Receipt) -> None:
        """
        Have a dead letter handled again, as C{fcmxmpp inbox retry} does.
        """
        self.deadLetters = [
            letter for letter in self.deadLetters if (letter.from_, letter.message_id) != message.key
        ]
        self._count += 1
        self._entries[self._count] = InboxEntry(number=self._count, message=message, arrived=self._seconds())


@implementer(IOutbox)
class MemoryOutbox:
    """
    An outbox in memory.

    @ivar failed: the outcomes of those that were not accepted, once they are
        reported.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._count = 0
        self._entries: dict[int, OutboxEntry] = {}
        self._settled: dict[int, SettledEntry] = {}
        self._ids: set[str | None] = set()
        self.failed: list[Outcome] = []

    def add(self, message: DownstreamMessage) -> Deferred[OutboxEntry]:
        """
        See L{IOutbox.add}.
        """
        if message.message_id in self._ids:
            return fail(StillUnanswered())
        self._count += 1
        entry = OutboxEntry(number=self._count, message=message, since=self._seconds())
        self._entries[entry.number] = entry
        self._ids.add(message.message_id)
        return succeed(entry)

    def load(self, after: int, limit: int) -> Deferred[list[OutboxEntry | UnreadableEntry]]:
        """
        See L{IOutbox.load}.
        """
        return succeed([*_after(self._entries.values(), after, limit)])

    def count(self) -> Deferred[int]:
        """
        See L{IOutbox.count}.
        """
        return succeed(len(self._entries))

    def withdraw(self, number: int) -> Deferred[None]:
        """
        See L{IOutbox.withdraw}.
        """
        entry = self._entries.pop(number, None)
        if entry is not None:
            self._ids.discard(entry.message.message_id)
        return succeed(None)

    def settle(self, number: int, outcome: Outcome, report: bool) -> Deferred[None]:
        """
        See L{IOutbox.settle}.
        """
        if number in self._entries:
            self._ids.discard(self._entries.pop(number).message.message_id)
            self._settled[number] = SettledEntry(number=number, outcome=outcome)
            if not report:
                return self.reported(number)
        return succeed(None)

    def unreported(self, after: int, limit: int) -> Deferred[list[SettledEntry]]:
        """
        See L{IOutbox.unreported}.
        """
        entries = sorted(self._settled.values(), key=lambda entry: entry.number)
        return succeed(_after(entries, after, limit))

    def reported(self, number: int) -> Deferred[None]:
        """
        See L{IOutbox.reported}.
        """
        entry = self._settled.pop(number, None)
        if entry is not None and entry.outcome.error is not None:
            self.failed.append(entry.outcome)
        return succeed(None)


@implementer(IEntrusted)
class MemoryEntrusted:
    """
    What devices have entrusted to a connection server, in memory.
    """

    def __init__(self, seconds: Callable[[], float], keep: float) -> None:
        self._count = 0
        self._entries: dict[int, EntrustedEntry] = {}
        self._uploads = _Known(seconds, keep)

    def add(
        self, senderID: str, message: UpstreamMessage | Receipt, expires: float, upload: bytes | None = None
    ) -> Deferred[EntrustedEntry | None]:
        """
        See L{IEntrusted.add}.
        """
        if upload is not None and not self._uploads.learn(upload):
            return succeed(None)
        self._count += 1
        entry = EntrustedEntry(number=self._count, senderID=senderID, message=message, expires=expires)
        self._entries[entry.number] = entry
        return succeed(entry)

    def load(self, after: int, limit: int) -> Deferred[list[EntrustedEntry | UnreadableEntry]]:
        """
        See L{IEntrusted.load}.
        """
        return succeed([*_after(self._entries.values(), after, limit)])

    def remove(self, number: int) -> Deferred[None]:
        """
        See L{IEntrusted.remove}.
        """
        self._entries.pop(number, None)
        return succeed(None)


def _after(entries: Iterable[_E], after: int, limit: int) -> list[_E]:
    """
    The first entries behind a number.
    """
    return [entry for entry in entries if entry.number > after][:limit]


@implementer(IStore)
class MemoryStore(Service):
    """
    A store in memory.

    @ivar inbox: an L{IInbox}.
    @ivar outbox: an L{IOutbox}.
    @ivar entrusted: an L{IEntrusted}.
    @ivar registrations: an L{IRegistrations<fcmxmpp.interfaces.IRegistrations>}.
    @ivar mailboxes: an L{IMailboxes<fcmxmpp.interfaces.IMailboxes>}.
    """

    def __init__(self, seconds: Callable[[], float], keep: float = 48 * 3600.0) -> None:
        """
        @param seconds: the time, in seconds since 1970.
        @param keep: for how many seconds a message is known.
        """
        self.inbox = MemoryInbox(seconds, keep)
        self.outbox = MemoryOutbox(seconds)
        self.entrusted = MemoryEntrusted(seconds, keep)
        # Here SQL is the reference: what it does at once, in memory, it does in a file.
        commits = AtOnce(lambda connection: sweepDevices(connection, [seconds()]))
        self.registrations = SQLRegistrations(commits, seconds)
        self.mailboxes = SQLMailboxes(commits, seconds)
