"""
What every store has to do, as tests: whoever writes one lets these run against
it, too.  They are exported by L{fcmxmpp.testing}::

    class MyInboxTests(InboxContract, TestCase):
        def openStore(self):
            ...

C{TestCase} is that of C{twisted.trial.unittest}; the tests are coroutines, so
that they suit a store in memory as well as one with threads or sockets.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, gatherResults, maybeDeferred
from zope.interface.verify import verifyObject

from fcmxmpp.entries import DeadLetter, InboxEntry, OutboxEntry, Outcome, SettledEntry
from fcmxmpp.errors import AckTimedOut, Expired, FCMError, Nacked, NotSendable, StillUnanswered
from fcmxmpp.interfaces import IEntrusted, IInbox, IOutbox, IStore
from fcmxmpp.messages import (
    RECEIPT_SENDER,
    Ack,
    DownstreamMessage,
    Notification,
    Receipt,
    ReceiptData,
    UpstreamMessage,
)
from fcmxmpp.payload import encode


__all__ = ["EntrustedContract", "InboxContract", "OutboxContract", "StoreContract"]

#: Text of all sorts: other scripts, beyond the BMP, composed of several code
#: points, with a meaning in SQL, JSON or XML, and control characters.
_TEXTS = (
    "",
    "Grüße, 世界, שלום",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0010fffd",
    "e\u0301 \u2028 \ufeff " + chr(0xFFFE) + chr(0xFFFF),
    "'; DROP TABLE inbox; -- \"\\%_?:1",
    "<a>&amp;</a>]]>",
    # Not written out: the documentation would quote them.
    "".join(map(chr, (0x00, 0x01, 0x09, 0x0A, 0x0D, 0x1F, 0x7F, 0x85))),
)
#: As large as the wire allows, of what has a longer form elsewhere.
_LARGE = ">" * 60_000
#: More than any batch, chunk or page holds.
_MANY = 1100


def _upstream(message_id: str, from_: str = "tok-A", **data: str) -> UpstreamMessage:
    """
    A message of a device.
    """
    return UpstreamMessage(from_=from_, message_id=message_id, data=data)


def _allUpstream() -> list[UpstreamMessage | Receipt]:
    """
    Upstream messages and receipts of all sorts.
    """
    messages: list[UpstreamMessage | Receipt] = [
        _upstream(f"m-{number} {text}", f"tok {text}", key=text, **{text: "value"})
        for number, text in enumerate(_TEXTS)
    ]
    messages.append(_upstream("none"))
    messages.append(_upstream("large", large=_LARGE))
    messages.append(_upstream("confusing", message_type="receipt", **{"from": "somebody"}))
    messages.append(
        UpstreamMessage(from_="t", message_id="full", category="org.example", time_to_live=0, data={"a": "b"})
    )
    messages.append(
        Receipt(
            from_=RECEIPT_SENDER,
            message_id="dr2:short",
            data=ReceiptData(message_status="MESSAGE_SENT_TO_DEVICE", original_message_id="short"),
        )
    )
    messages.append(
        Receipt(
            from_=RECEIPT_SENDER,
            message_id=f"dr2:{_TEXTS[2]}",
            category="org.example",
            time_to_live=60,
            data=ReceiptData(
                message_status="MESSAGE_SENT_TO_DEVICE",
                original_message_id=_TEXTS[2],
                device_registration_id=_TEXTS[1],
                message_sent_timestamp="1430277821658",
            ),
        )
    )
    return messages


def _downstream(message_id: str, **fields: Any) -> DownstreamMessage:
    """
    A message for a device.
    """
    return DownstreamMessage(to="tok-A", message_id=message_id, **fields)


def _allDownstream() -> list[DownstreamMessage]:
    """
    Downstream messages of all sorts.
    """
    messages = [
        _downstream(f"m-{number} {text}", data={"key": text, text: "value"})
        for number, text in enumerate(_TEXTS)
    ]
    messages.append(_downstream("large", data={"large": _LARGE[:4000]}))
    messages.append(DownstreamMessage(condition="'a' in topics && !('b' in topics)", message_id="condition"))
    messages.append(
        DownstreamMessage(
            to="/topics/news",
            message_id="full",
            collapse_key="key",
            priority="high",
            content_available=True,
            mutable_content=True,
            delay_while_idle=True,
            time_to_live=0,
            delivery_receipt_requested=True,
            dry_run=True,
            notification=Notification(title=_TEXTS[2], sound={"critical": 1, "volume": 0.5, "name": "a"}),
        )
    )
    return messages


def _accepted(entry: OutboxEntry) -> Outcome:
    """
    The outcome of a message that was accepted.
    """
    message = entry.message
    return Outcome(message=message, ack=Ack(message_id=message.message_id or ""), tries=1, at=entry.since)


def _failed(entry: OutboxEntry) -> Outcome:
    """
    The outcome of a message that was refused.
    """
    error = Nacked("DEVICE_UNREGISTERED", entry.message.message_id or "")
    return Outcome(message=entry.message, error=error, tries=1, at=entry.since)


def _facts(outcome: Outcome) -> tuple[object, ...]:
    """
    All that is in an outcome, in a form that can be compared.
    """
    error = None if outcome.error is None else (type(outcome.error), str(outcome.error), vars(outcome.error))
    return (outcome.message, outcome.ack, error, outcome.tries, outcome.at)


class StoreContract:
    """
    What the contracts have in common.
    """

    # Of the test case that this is mixed into.
    addCleanup: Any
    assertEqual: Any
    assertFailure: Any
    assertGreater: Any
    assertIs: Any
    assertIsInstance: Any
    assertIsNone: Any
    assertIsNotNone: Any
    assertTrue: Any

    _opened: IStore | None = None

    def openStore(self) -> Awaitable[IStore]:
        """
        Open the store, with what was in it when it was closed last; at first
        it is empty.

        @return: fires with the store, started.  The tests stop it.
        """
        raise NotImplementedError(f"{type(self).__name__} has to say how to open its store")

    async def _open(self) -> Any:
        """
        The store, for the first time.
        """
        self.addCleanup(lambda: Deferred.fromCoroutine(self._close()))
        return await self._reopened()

    async def _reopened(self) -> Any:
        """
        The store, after it was closed.
        """
        await self._close()
        self._opened = await self.openStore()
        return self._opened

    async def _close(self) -> None:
        """
        Close the store, if it is open.
        """
        store, self._opened = self._opened, None
        if store is not None:
            await maybeDeferred(store.stopService)

    async def _all(self, load: Any) -> list[Any]:
        """
        All entries, page by page.
        """
        found: list[Any] = []
        while page := await load(found[-1].number if found else 0, 500):
            found += page
        return found

    async def _messages(self, load: Any) -> list[Any]:
        """
        The messages of all entries.
        """
        return [entry.message for entry in await self._all(load)]

    async def _checkPages(self, load: Any, numbers: list[int]) -> None:
        """
        What is loaded is what was asked for.

        @param numbers: of five entries, in their order.
        """

        async def loaded(after: int, limit: int) -> list[int]:
            return [entry.number for entry in await load(after, limit)]

        self.assertEqual(5, len(numbers))
        self.assertEqual(sorted(set(numbers)), numbers)
        self.assertGreater(numbers[0], 0)
        self.assertEqual(numbers, await loaded(0, 100))
        self.assertEqual(numbers, await loaded(0, 5))
        self.assertEqual(numbers[:2], await loaded(0, 2))
        self.assertEqual(numbers[2:3], await loaded(numbers[1], 1))
        self.assertEqual(numbers[2:], await loaded(numbers[1], 100))
        self.assertEqual([], await loaded(numbers[4], 100))
        # Several at once do not mix.
        pages = await gatherResults([load(0, 1), load(numbers[3], 9), load(numbers[0], 2)])
        self.assertEqual(
            [numbers[:1], numbers[4:], numbers[1:3]], [[entry.number for entry in page] for page in pages]
        )


class InboxContract(StoreContract):
    """
    What an L{IInbox} has to do.
    """

    def deadLetters(self, store: Any) -> Awaitable[list[DeadLetter]]:
        """
        What is kept of the messages that were put aside, in that order; the
        application has no call for that.  Numbers do not matter.

        @param store: as L{openStore} gave it, and not stopped.
        """
        raise NotImplementedError(f"{type(self).__name__} has to say how to read dead letters")

    async def _letters(self, store: Any) -> list[DeadLetter]:
        """
        The same, without numbers.
        """
        return [
            DeadLetter(
                from_=letter.from_,
                message_id=letter.message_id,
                body=letter.body,
                reason=letter.reason,
                tries=letter.tries,
            )
            for letter in await self.deadLetters(store)
        ]

    async def test_interfaces(self) -> None:
        """
        The store provides L{IStore}, and its inbox L{IInbox}.
        """
        store = await self._open()
        self.assertTrue(verifyObject(IStore, store))
        self.assertTrue(verifyObject(IInbox, store.inbox))

    async def test_add(self) -> None:
        """
        A message that is added becomes an entry, that nobody has tried yet.
        """
        store = await self._open()
        entry = await store.inbox.add(_upstream("m-1", a="b"))
        self.assertIsInstance(entry, InboxEntry)
        self.assertEqual(_upstream("m-1", a="b"), entry.message)
        self.assertEqual(0, entry.tries)
        self.assertIsInstance(entry.arrived, float)
        self.assertEqual([entry], await store.inbox.load(0, 10))

    async def test_addLasts(self) -> None:
        """
        Entries are the same after the store was closed and opened again, be
        they messages or receipts, whatever they contain.
        """
        store = await self._open()
        entries = await gatherResults([store.inbox.add(message) for message in _allUpstream()])
        self.assertEqual(_allUpstream(), [entry.message for entry in entries])
        self.assertEqual(entries, await self._all(store.inbox.load))
        store = await self._reopened()
        self.assertEqual(entries, await self._all(store.inbox.load))
        for message in _allUpstream():
            self.assertIs(True, await store.inbox.isKnown(message.key))
            self.assertIsNone(await store.inbox.add(message))

    async def test_addTwice(self) -> None:
        """
        A message that has been added is not added again, whatever is in it the
        second time, and neither after the store was opened again.
        """
        store = await self._open()
        entry = await store.inbox.add(_upstream("m-1", a="b"))
        self.assertIsNone(await store.inbox.add(_upstream("m-1", a="b")))
        self.assertIsNone(await store.inbox.add(_upstream("m-1", a="c")))
        store = await self._reopened()
        self.assertIsNone(await store.inbox.add(_upstream("m-1")))
        self.assertEqual([entry], await store.inbox.load(0, 10))

    async def test_addTwiceAtOnce(self) -> None:
        """
        Of several calls for one message that are under way at once the first
        one adds it, and no other one does.
        """
        store = await self._open()
        ids = ["m-1", "m-2", "m-1", "m-1", "m-3", "m-2"]
        entries = await gatherResults([store.inbox.add(_upstream(each)) for each in ids])
        self.assertEqual(
            ["m-1", "m-2", None, None, "m-3", None],
            [None if entry is None else entry.message.message_id for entry in entries],
        )
        self.assertEqual([e for e in entries if e is not None], await store.inbox.load(0, 10))

    async def test_key(self) -> None:
        """
        A message is known by its C{from} and its C{message_id} together, and
        not by what they are when written one behind the other.
        """
        store = await self._open()
        keys = [("ab", "c"), ("a", "bc"), ("a", "c"), ("ab", "bc"), ("A", "c"), ("a", "c "), ("a", "c\x00")]
        for from_, message_id in keys:
            self.assertIs(False, await store.inbox.isKnown((from_, message_id)))
            self.assertIsNotNone(await store.inbox.add(_upstream(message_id, from_)))
        self.assertEqual(keys, [message.key for message in await self._messages(store.inbox.load)])

    async def test_order(self) -> None:
        """
        Entries have rising numbers, and are loaded in the order of arrival,
        however many came at once.
        """
        store = await self._open()
        messages = [_upstream(f"m-{number}") for number in range(_MANY)]
        entries = await gatherResults([store.inbox.add(message) for message in messages])
        self.assertEqual(messages, [entry.message for entry in entries])
        numbers = [entry.number for entry in entries]
        self.assertEqual(sorted(set(numbers)), numbers)
        store = await self._reopened()
        self.assertEqual(entries, await self._all(store.inbox.load))
        await gatherResults([store.inbox.handled(number) for number in numbers])
        self.assertEqual([], await store.inbox.load(0, 10))

    async def test_load(self) -> None:
        """
        No more is loaded than was asked for, and only what comes after.
        """
        store = await self._open()
        self.assertEqual([], await store.inbox.load(0, 10))
        numbers = [(await store.inbox.add(_upstream(f"m-{each}"))).number for each in range(5)]
        await self._checkPages(store.inbox.load, numbers)

    async def test_numbers(self) -> None:
        """
        No number is given twice: not after all entries were handled or put
        aside, and not after the store was opened again.
        """
        store = await self._open()
        last = 0
        for turn in range(3):
            entries = [await store.inbox.add(_upstream(f"m-{turn}-{each}")) for each in range(3)]
            self.assertGreater(entries[0].number, last)
            for entry in entries[:2]:
                await store.inbox.handled(entry.number)
            letter = DeadLetter(
                number=entries[2].number, from_="tok-A", message_id=f"m-{turn}-2", body=b"{}", reason="r"
            )
            self.assertIs(True, await store.inbox.putAside(letter))
            # Not an entry before: it may take a number nevertheless.
            other = DeadLetter(from_="tok-A", message_id=f"x-{turn}", body=b"{}", reason="r")
            self.assertIs(True, await store.inbox.putAside(other))
            self.assertEqual([], await store.inbox.load(0, 10))
            last = entries[2].number
            if turn:
                store = await self._reopened()

    async def test_tried(self) -> None:
        """
        How often the handler has failed on an entry is known after the store
        was opened again, too.
        """
        store = await self._open()
        numbers = [(await store.inbox.add(_upstream(f"m-{each}"))).number for each in range(3)]
        await gatherResults([store.inbox.tried(numbers[0], 1), store.inbox.tried(numbers[2], 1)])
        await gatherResults([store.inbox.tried(numbers[2], tries) for tries in (2, 3)])
        self.assertEqual([1, 0, 3], [entry.tries for entry in await store.inbox.load(0, 10)])
        store = await self._reopened()
        self.assertEqual([1, 0, 3], [entry.tries for entry in await store.inbox.load(0, 10)])
        # There is no such entry (any more).
        await store.inbox.handled(numbers[0])
        await store.inbox.tried(numbers[0], 2)
        self.assertEqual(numbers[1:], [entry.number for entry in await store.inbox.load(0, 10)])

    async def test_handled(self) -> None:
        """
        What was handled is gone, and nothing else; it is still known, and not
        added again, also after the store was opened again.
        """
        store = await self._open()
        entries = [await store.inbox.add(_upstream(f"m-{each}")) for each in range(4)]
        await gatherResults([store.inbox.handled(entries[each].number) for each in (1, 3)])
        for _ in range(2):
            self.assertEqual([entries[0], entries[2]], await store.inbox.load(0, 10))
            self.assertIs(True, await store.inbox.isKnown(("tok-A", "m-1")))
            self.assertIsNone(await store.inbox.add(_upstream("m-1")))
            # Once more does no harm.
            await store.inbox.handled(entries[1].number)
            store = await self._reopened()

    async def test_isKnown(self) -> None:
        """
        Known is what was added, remembered or put aside, and nothing else.
        """
        store = await self._open()
        await store.inbox.add(_upstream("added"))
        await store.inbox.remember(("tok-A", "remembered"))
        letter = DeadLetter(from_="tok-A", message_id="aside", body=b"{}", reason="r")
        await store.inbox.putAside(letter)
        ids = ["added", "unknown", "remembered", "aside", "added"]
        for _ in range(2):
            known = await gatherResults([store.inbox.isKnown(("tok-A", each)) for each in ids])
            self.assertEqual([True, False, True, True, True], known)
            self.assertIs(False, await store.inbox.isKnown(("tok-B", "added")))
            store = await self._reopened()
        # Asking makes nothing known.
        self.assertIsNotNone(await store.inbox.add(_upstream("unknown")))

    async def test_remember(self) -> None:
        """
        What is remembered is never an entry, and is not added afterwards; what
        is an entry already stays one.
        """
        store = await self._open()
        entry = await store.inbox.add(_upstream("m-1"))
        keys = [("tok-A", "m-2"), ("tok-A", "m-1"), ("tok-A", "m-2")]
        await gatherResults([store.inbox.remember(key) for key in keys])
        await store.inbox.remember(("tok-A", "m-2"))
        for _ in range(2):
            self.assertIsNone(await store.inbox.add(_upstream("m-2")))
            self.assertEqual([entry], await store.inbox.load(0, 10))
            store = await self._reopened()

    async def test_putAsideEntry(self) -> None:
        """
        An entry that is put aside is a dead letter with reason and tries, and
        no entry any more; neither is it one again when it is tried or handled
        or put aside once more.
        """
        store = await self._open()
        first = await store.inbox.add(_upstream("m-1", a=_TEXTS[2]))
        second = await store.inbox.add(_upstream("m-2"))
        letter = DeadLetter(
            number=first.number,
            from_="tok-A",
            message_id="m-1",
            body=encode(first.message),
            reason="it failed 3 times",
            tries=3,
        )
        self.assertIs(True, await store.inbox.putAside(letter))
        self.assertIs(False, await store.inbox.putAside(letter))
        await store.inbox.tried(first.number, 9)
        await store.inbox.handled(first.number)
        for _ in range(2):
            self.assertEqual([second], await store.inbox.load(0, 10))
            self.assertIs(True, await store.inbox.isKnown(("tok-A", "m-1")))
            self.assertIsNone(await store.inbox.add(_upstream("m-1")))
            (kept,) = await self._letters(store)
            self.assertEqual(("tok-A", "m-1"), (kept.from_, kept.message_id))
            self.assertEqual(("it failed 3 times", 3), (kept.reason, kept.tries))
            self.assertEqual(json.loads(letter.body), json.loads(kept.body))
            store = await self._reopened()

    async def test_putAsideOther(self) -> None:
        """
        What was never an entry is kept byte for byte, however malformed it is,
        and is known from then on.
        """
        store = await self._open()
        letters = [
            DeadLetter(
                from_=f"tok {text}", message_id=f"m {text}", body=f'{{"broken": {text}'.encode(), reason=text
            )
            for text in (*_TEXTS, _LARGE[:1000])
        ]
        done = await gatherResults([store.inbox.putAside(letter) for letter in letters])
        self.assertEqual([True] * len(letters), done)
        for _ in range(2):
            self.assertEqual(letters, await self._letters(store))
            self.assertEqual([], await store.inbox.load(0, 10))
            for letter in letters:
                self.assertIsNone(await store.inbox.add(_upstream(letter.message_id, letter.from_)))
            store = await self._reopened()

    async def test_putAsideKnown(self) -> None:
        """
        What is no entry and known already is not put aside: it was handled,
        is to be handled or is a dead letter.
        """
        store = await self._open()
        entry = await store.inbox.add(_upstream("added"))
        gone = await store.inbox.add(_upstream("handled"))
        await store.inbox.handled(gone.number)
        await store.inbox.remember(("tok-A", "remembered"))
        for message_id, number in (
            ("added", None),
            ("handled", None),
            ("handled", gone.number),
            ("remembered", None),
        ):
            letter = DeadLetter(number=number, from_="tok-A", message_id=message_id, body=b"{}", reason="r")
            self.assertIs(False, await store.inbox.putAside(letter))
        self.assertEqual([], await self._letters(store))
        self.assertEqual([entry], await store.inbox.load(0, 10))

    async def test_putAsideTwiceAtOnce(self) -> None:
        """
        Of several calls for one message that are under way at once the first
        one puts it aside, and no other one does.
        """
        store = await self._open()
        letter = DeadLetter(from_="tok-A", message_id="m-1", body=b"{", reason="r")
        other = DeadLetter(from_="tok-A", message_id="m-2", body=b"{", reason="r")
        done = await gatherResults([store.inbox.putAside(each) for each in (letter, letter, other, letter)])
        self.assertEqual([True, False, True, False], done)
        self.assertEqual([letter, other], await self._letters(store))


class OutboxContract(StoreContract):
    """
    What an L{IOutbox} has to do.
    """

    def keptOutcomes(self, store: Any) -> Awaitable[list[Outcome]]:
        """
        What is kept of the messages that failed, once that is reported, in the
        order of sending; the application has no call for that.

        @param store: as L{openStore} gave it, and not stopped.
        """
        raise NotImplementedError(f"{type(self).__name__} has to say how to read outcomes")

    async def _kept(self, store: Any) -> list[str | None]:
        """
        The C{message_id} of each.
        """
        return [outcome.message.message_id for outcome in await self.keptOutcomes(store)]

    async def _unreported(self, store: Any) -> list[str | None]:
        """
        The C{message_id} of each that is yet to be reported.
        """
        return [entry.outcome.message.message_id for entry in await self._all(store.outbox.unreported)]

    async def _fill(self, store: Any, count: int) -> list[OutboxEntry]:
        """
        Entries C{m-0}, C{m-1} and so on.
        """
        return await gatherResults([store.outbox.add(_downstream(f"m-{each}")) for each in range(count)])

    async def test_interfaces(self) -> None:
        """
        The store provides L{IStore}, and its outbox L{IOutbox}.
        """
        store = await self._open()
        self.assertTrue(verifyObject(IStore, store))
        self.assertTrue(verifyObject(IOutbox, store.outbox))

    async def test_add(self) -> None:
        """
        A message that is added becomes an entry that has no outcome.
        """
        store = await self._open()
        self.assertEqual(0, await store.outbox.count())
        entry = await store.outbox.add(_downstream("m-1"))
        self.assertIsInstance(entry, OutboxEntry)
        self.assertEqual(_downstream("m-1"), entry.message)
        self.assertIsInstance(entry.since, float)
        self.assertEqual([entry], await store.outbox.load(0, 10))
        self.assertEqual([], await store.outbox.unreported(0, 10))
        self.assertEqual(1, await store.outbox.count())

    async def test_addLasts(self) -> None:
        """
        Entries are the same after the store was closed and opened again,
        whatever they contain.
        """
        store = await self._open()
        entries = await gatherResults([store.outbox.add(message) for message in _allDownstream()])
        self.assertEqual(_allDownstream(), [entry.message for entry in entries])
        store = await self._reopened()
        self.assertEqual(entries, await self._all(store.outbox.load))
        self.assertEqual(len(entries), await store.outbox.count())

    async def test_order(self) -> None:
        """
        Entries have rising numbers, and are loaded in the order of sending,
        however many came at once; as many are settled and reported at once.
        """
        store = await self._open()
        entries = await self._fill(store, _MANY)
        self.assertEqual([f"m-{each}" for each in range(_MANY)], [e.message.message_id for e in entries])
        numbers = [entry.number for entry in entries]
        self.assertEqual(sorted(set(numbers)), numbers)
        store = await self._reopened()
        self.assertEqual(entries, await self._all(store.outbox.load))
        self.assertEqual([_MANY] * 2, await gatherResults([store.outbox.count(), store.outbox.count()]))
        outbox = store.outbox
        await gatherResults([outbox.settle(e.number, _accepted(e), True) for e in reversed(entries)])
        self.assertEqual(numbers, [entry.number for entry in await self._all(outbox.unreported)])
        await gatherResults([outbox.reported(number) for number in numbers])
        self.assertEqual([], await outbox.unreported(0, 10))

    async def test_load(self) -> None:
        """
        No more is loaded than was asked for, and only what comes after.
        """
        store = await self._open()
        self.assertEqual([], await store.outbox.load(0, 10))
        await self._checkPages(store.outbox.load, [entry.number for entry in await self._fill(store, 5)])

    async def test_numbers(self) -> None:
        """
        No number is given twice: not after all entries were withdrawn or
        settled, and not after the store was opened again.
        """
        store = await self._open()
        last = 0
        for turn in range(3):
            entries = await self._fill(store, 3)
            self.assertGreater(entries[0].number, last)
            last = entries[2].number
            await store.outbox.settle(entries[0].number, _accepted(entries[0]), False)
            await store.outbox.settle(entries[1].number, _accepted(entries[1]), True)
            await store.outbox.reported(entries[1].number)
            await store.outbox.withdraw(last)
            self.assertEqual(0, await store.outbox.count())
            if turn:
                store = await self._reopened()

    async def test_stillUnanswered(self) -> None:
        """
        While a message has no outcome its C{message_id} cannot be used again,
        not even for another device, nor after the store was opened again.
        """
        store = await self._open()
        entry = await store.outbox.add(_downstream("m-1"))
        for _ in range(2):
            await self.assertFailure(store.outbox.add(_downstream("m-1")), StillUnanswered)
            other = DownstreamMessage(to="tok-B", message_id="m-1")
            await self.assertFailure(store.outbox.add(other), StillUnanswered)
            self.assertEqual([entry], await store.outbox.load(0, 10))
            self.assertEqual(1, await store.outbox.count())
            store = await self._reopened()
        # It is no prefix that is compared, and no other case.
        for message_id in ("m-", "M-1", "m-1 ", "m-1\x00"):
            await store.outbox.add(_downstream(message_id))

    async def test_stillUnansweredAtOnce(self) -> None:
        """
        Of several calls for one C{message_id} that are under way at once the
        first one succeeds, and the others fail alone.
        """
        store = await self._open()
        ids = ["m-1", "m-2", "m-1", "m-3", "m-1", "m-2"]
        results = await DeferredList([store.outbox.add(_downstream(i)) for i in ids], consumeErrors=True)
        self.assertEqual([True, True, False, True, False, False], [success for success, _ in results])
        for success, result in results:
            if not success:
                self.assertIsInstance(result.value, StillUnanswered)
        self.assertEqual(
            ["m-1", "m-2", "m-3"], [each.message_id for each in await self._messages(store.outbox.load)]
        )

    async def test_useAgain(self) -> None:
        """
        Once a message has an outcome, or was withdrawn, its C{message_id} can
        be used again, whether or not the outcome was reported; what is kept of
        the earlier message is not touched by that.
        """
        store = await self._open()
        outbox = store.outbox
        first = await outbox.add(_downstream("m-1"))
        await outbox.settle(first.number, _failed(first), True)
        second = await outbox.add(_downstream("m-1", collapse_key="2"))
        await outbox.settle(second.number, _failed(second), False)
        third = await outbox.add(_downstream("m-1", collapse_key="3"))
        await outbox.withdraw(third.number)
        fourth = await outbox.add(_downstream("m-1", collapse_key="4"))
        await outbox.settle(fourth.number, _accepted(fourth), False)
        fifth = await outbox.add(_downstream("m-1", collapse_key="5"))
        for _ in range(2):
            self.assertEqual([fifth], await store.outbox.load(0, 10))
            unreported = await store.outbox.unreported(0, 10)
            self.assertEqual([first.message], [entry.outcome.message for entry in unreported])
            kept = await self.keptOutcomes(store)
            self.assertEqual([second.message], [outcome.message for outcome in kept])
            store = await self._reopened()

    async def test_withdraw(self) -> None:
        """
        What is withdrawn is gone, and nothing else; what has an outcome is not
        withdrawn any more.
        """
        store = await self._open()
        entries = await self._fill(store, 5)
        await store.outbox.settle(entries[4].number, _accepted(entries[4]), True)
        await gatherResults([store.outbox.withdraw(entries[each].number) for each in (0, 2, 4)])
        await store.outbox.withdraw(entries[0].number)
        for _ in range(2):
            self.assertEqual([entries[1], entries[3]], await store.outbox.load(0, 10))
            self.assertEqual(2, await store.outbox.count())
            self.assertEqual(["m-4"], await self._unreported(store))
            store = await self._reopened()
        self.assertEqual([], await self._kept(store))

    async def test_settleReported(self) -> None:
        """
        An outcome that is to be reported is there until it is; then an
        accepted message is forgotten and one that failed is kept.
        """
        store = await self._open()
        entries = await self._fill(store, 3)
        await store.outbox.settle(entries[0].number, _accepted(entries[0]), True)
        await store.outbox.settle(entries[1].number, _failed(entries[1]), True)
        for _ in range(2):
            self.assertEqual([entries[2]], await store.outbox.load(0, 10))
            self.assertEqual(1, await store.outbox.count())
            found = await store.outbox.unreported(0, 10)
            self.assertEqual([SettledEntry] * 2, [type(entry) for entry in found])
            self.assertEqual([entry.number for entry in entries[:2]], [entry.number for entry in found])
            self.assertEqual([], await self._kept(store))
            store = await self._reopened()
        await gatherResults([store.outbox.reported(entry.number) for entry in entries[:2]])
        for _ in range(2):
            self.assertEqual([], await store.outbox.unreported(0, 10))
            (kept,) = await self.keptOutcomes(store)
            self.assertEqual(_facts(_failed(entries[1])), _facts(kept))
            self.assertEqual([entries[2]], await store.outbox.load(0, 10))
            # Once more does no harm.
            await gatherResults([store.outbox.reported(entry.number) for entry in entries[:2]])
            store = await self._reopened()

    async def test_settleUnreported(self) -> None:
        """
        An outcome that nobody wants to hear is not among those to be reported;
        an accepted message is forgotten, and one that failed is kept.
        """
        store = await self._open()
        entries = await self._fill(store, 3)
        await gatherResults(
            [
                store.outbox.settle(entries[0].number, _accepted(entries[0]), False),
                store.outbox.settle(entries[1].number, _failed(entries[1]), False),
            ]
        )
        for _ in range(2):
            self.assertEqual([entries[2]], await store.outbox.load(0, 10))
            self.assertEqual([], await store.outbox.unreported(0, 10))
            self.assertEqual(["m-1"], await self._kept(store))
            store = await self._reopened()

    async def test_settleOnce(self) -> None:
        """
        The first outcome of a message stands, one behind the other as well as
        at once; a message that was withdrawn gets none.
        """
        store = await self._open()
        entries = await self._fill(store, 4)
        outbox = store.outbox
        await outbox.withdraw(entries[3].number)
        await outbox.settle(entries[3].number, _failed(entries[3]), True)
        await outbox.settle(entries[0].number, _failed(entries[0]), True)
        await outbox.settle(entries[0].number, _accepted(entries[0]), False)
        await gatherResults(
            [
                outbox.settle(entries[1].number, _failed(entries[1]), True),
                outbox.settle(entries[1].number, _accepted(entries[1]), False),
                outbox.settle(entries[2].number, _accepted(entries[2]), True),
                outbox.settle(entries[2].number, _failed(entries[2]), False),
            ]
        )
        found = await outbox.unreported(0, 10)
        self.assertEqual([entry.number for entry in entries[:3]], [entry.number for entry in found])
        self.assertEqual([True, True, False], [entry.outcome.error is not None for entry in found])
        self.assertEqual([], await self._kept(store))

    async def test_reportedUnsettled(self) -> None:
        """
        A message that has no outcome is not forgotten because somebody says
        that it was reported.
        """
        store = await self._open()
        (entry,) = await self._fill(store, 1)
        await store.outbox.reported(entry.number)
        self.assertEqual([entry], await store.outbox.load(0, 10))
        await store.outbox.settle(entry.number, _accepted(entry), True)
        self.assertEqual(["m-0"], await self._unreported(store))

    async def test_unreported(self) -> None:
        """
        What is to be reported is loaded in the order of sending, whatever the
        order of the outcomes; no more than was asked for, and only what comes
        after.
        """
        store = await self._open()
        entries = await self._fill(store, 7)
        for place in (4, 0, 5, 1, 2):
            entry = entries[place]
            outcome = (_failed if place % 2 else _accepted)(entry)
            await store.outbox.settle(entry.number, outcome, True)
        numbers = [entries[place].number for place in (0, 1, 2, 4, 5)]
        await self._checkPages(store.outbox.unreported, numbers)
        store = await self._reopened()
        await self._checkPages(store.outbox.unreported, numbers)

    async def test_outcomes(self) -> None:
        """
        Outcomes of every sort are the same after the store was opened again,
        both those that are yet to be reported and those that are kept.
        """
        store = await self._open()
        errors: list[FCMError] = [
            Nacked("DEVICE_UNREGISTERED", "m"),
            Nacked("SERVICE_UNAVAILABLE", "m", "newer token"),
            Nacked("A_NEW_CODE", "m", _TEXTS[2]),
            Expired("its time_to_live ran out"),
            Expired("its time_to_live ran out", "newer token"),
            AckTimedOut("there was no answer"),
            NotSendable("data", "must not be so large"),
        ]
        acks = [
            Ack(message_id="m"),
            Ack(message_id="m", from_="tok-A", registration_id=_TEXTS[2]),
            Ack(message_id="m", success=1, failure=2, failed_registration_ids=["a", _TEXTS[1]]),
        ]
        expected = []
        for report in (True, False):
            for number, error in enumerate(errors):
                message = _downstream("m", collapse_key=f"{report} {number}")
                entry = await store.outbox.add(message)
                outcome = Outcome(message=message, error=error, tries=number, at=entry.since + number / 4)
                await store.outbox.settle(entry.number, outcome, report)
                expected.append(_facts(outcome))
        kept = expected[len(errors) :]
        del expected[len(errors) :]
        for ack in acks:
            entry = await store.outbox.add(_downstream("m"))
            outcome = Outcome(message=entry.message, ack=ack, tries=1, at=entry.since)
            await store.outbox.settle(entry.number, outcome, True)
            expected.append(_facts(outcome))
        for _ in range(2):
            found = await store.outbox.unreported(0, 100)
            self.assertEqual(expected, [_facts(entry.outcome) for entry in found])
            self.assertEqual(kept, [_facts(outcome) for outcome in await self.keptOutcomes(store)])
            store = await self._reopened()


class EntrustedContract(StoreContract):
    """
    What an L{IEntrusted} has to do.
    """

    async def test_interfaces(self) -> None:
        """
        The store provides L{IStore}, and what it has for connection servers
        L{IEntrusted}.
        """
        store = await self._open()
        self.assertTrue(verifyObject(IStore, store))
        self.assertTrue(verifyObject(IEntrusted, store.entrusted))

    async def test_addLasts(self) -> None:
        """
        Entries are the same after the store was opened again, be they messages
        or receipts, whatever they contain.
        """
        store = await self._open()
        messages = _allUpstream()
        entries = await gatherResults(
            [store.entrusted.add(f"{n}", message, 1700000000.5 + n) for n, message in enumerate(messages)]
        )
        self.assertEqual(messages, [entry.message for entry in entries])
        self.assertEqual([f"{n}" for n in range(len(messages))], [entry.senderID for entry in entries])
        self.assertEqual([1700000000.5 + n for n in range(len(messages))], [e.expires for e in entries])
        self.assertEqual(entries, await self._all(store.entrusted.load))
        store = await self._reopened()
        self.assertEqual(entries, await self._all(store.entrusted.load))

    async def test_uploads(self) -> None:
        """
        What a device sends again is known, also when it is gone, and when both
        come at once.
        """
        store = await self._open()
        upload = bytes(range(16))
        entry, again = await gatherResults(
            [store.entrusted.add("1", _upstream("m-1"), 9.0, upload) for _ in range(2)]
        )
        self.assertIsNone(again)
        self.assertIsNotNone(await store.entrusted.add("1", _upstream("m-1"), 9.0, bytes(16)))
        await store.entrusted.remove(entry.number)
        store = await self._reopened()
        self.assertIsNone(await store.entrusted.add("1", _upstream("m-1"), 9.0, upload))
        self.assertEqual(1, len(await store.entrusted.load(0, 10)))

    async def test_senders(self) -> None:
        """
        Messages for different app servers are different ones.
        """
        store = await self._open()
        entries = [await store.entrusted.add(each, _upstream("m-1"), 9.0) for each in ("1", "2")]
        self.assertEqual(entries, await store.entrusted.load(0, 10))

    async def test_load(self) -> None:
        """
        No more is loaded than was asked for, and only what comes after.
        """
        store = await self._open()
        self.assertEqual([], await store.entrusted.load(0, 10))
        numbers = [(await store.entrusted.add("1", _upstream(f"m-{n}"), 9.0)).number for n in range(5)]
        await self._checkPages(store.entrusted.load, numbers)

    async def test_order(self) -> None:
        """
        Entries have rising numbers, and are loaded in the order of arrival,
        however many came at once.
        """
        store = await self._open()
        messages = [_upstream(f"m-{number}") for number in range(_MANY)]
        entries = await gatherResults([store.entrusted.add("1", message, 9.0) for message in messages])
        self.assertEqual(messages, [entry.message for entry in entries])
        numbers = [entry.number for entry in entries]
        self.assertEqual(sorted(set(numbers)), numbers)
        store = await self._reopened()
        self.assertEqual(entries, await self._all(store.entrusted.load))
        await gatherResults([store.entrusted.remove(number) for number in numbers])
        self.assertEqual([], await store.entrusted.load(0, 10))

    async def test_remove(self) -> None:
        """
        What is removed is gone, and nothing else.
        """
        store = await self._open()
        entries = [await store.entrusted.add("1", _upstream(f"m-{n}"), 9.0) for n in range(4)]
        await gatherResults([store.entrusted.remove(entries[each].number) for each in (1, 3)])
        await store.entrusted.remove(entries[1].number)
        for _ in range(2):
            self.assertEqual([entries[0], entries[2]], await store.entrusted.load(0, 10))
            store = await self._reopened()

    async def test_numbers(self) -> None:
        """
        No number is given twice: not after everything was removed, and not
        after the store was opened again.
        """
        store = await self._open()
        last = 0
        for turn in range(3):
            entries = [await store.entrusted.add("1", _upstream(f"m-{n}"), 9.0) for n in range(3)]
            self.assertGreater(entries[0].number, last)
            last = entries[2].number
            await gatherResults([store.entrusted.remove(entry.number) for entry in entries])
            if turn:
                store = await self._reopened()
