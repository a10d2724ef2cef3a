"""
Tests for L{fcmxmpp.window}.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.window import Queue, Window


#: Few, so that the same key comes up again and again.
keys = st.integers(0, 9)
#: These machines are simple, and each run of theirs is long.
ENOUGH = settings(max_examples=50)


class WindowTests(SynchronousTestCase):
    """
    L{Window} in the order of a stream's life.
    """

    def setUp(self) -> None:
        """
        A window of three, with two messages in it.
        """
        self.window: Window[str, str] = Window(3)
        self.window.add("a", "message a")
        self.window.add("b", "message b")

    def test_room(self) -> None:
        """
        Its room is what its size leaves.
        """
        self.assertEqual((self.window.size, len(self.window.unanswered), self.window.room), (3, 2, 1))

    def test_empty(self) -> None:
        """
        A new one has all of its room, and nobody in it.
        """
        window: Window[str, str] = Window(100)
        self.assertEqual((len(window.unanswered), window.room, window.clear()), (0, 100, []))

    def test_contains(self) -> None:
        """
        It knows who is in it.
        """
        self.assertIn("a", self.window.unanswered)
        self.assertNotIn("message a", self.window.unanswered)
        self.assertNotIn("c", self.window.unanswered)

    def test_full(self) -> None:
        """
        It takes as many as its size and not one more, and what it refuses
        leaves no trace.
        """
        self.window.add("c", "message c")
        error = self.assertRaises(ValueError, self.window.add, "d", "message d")
        self.assertEqual(str(error), "the window is full")
        self.assertNotIn("d", self.window.unanswered)

    def test_twice(self) -> None:
        """
        It refuses a key that is unanswered, and keeps the first message.
        """
        error = self.assertRaises(ValueError, self.window.add, "a", "another a")
        self.assertEqual(str(error), "this key is unanswered already")
        self.assertEqual(self.window.answer("a"), "message a")

    def test_answer(self) -> None:
        """
        An answer gives the message back, whatever its place, and frees it.
        """
        self.assertEqual(self.window.answer("b"), "message b")
        self.assertEqual((self.window.room, "b" in self.window.unanswered), (2, False))

    def test_answerTwice(self) -> None:
        """
        A second answer answers nothing.
        """
        self.window.answer("a")
        self.assertIsNone(self.window.answer("a"))
        self.assertEqual(self.window.room, 2)

    def test_again(self) -> None:
        """
        Once answered a key may be used again, and counts as sent just now.
        """
        self.window.answer("a")
        self.window.add("a", "another a")
        self.assertEqual(self.window.clear(), ["message b", "another a"])

    def test_clear(self) -> None:
        """
        Giving up gives back all in the order they were sent, once.
        """
        self.assertEqual(self.window.clear(), ["message a", "message b"])
        self.assertEqual((self.window.clear(), self.window.room), ([], 3))


class QueueTests(SynchronousTestCase):
    """
    L{Queue} in front of streams that come and go.
    """

    def setUp(self) -> None:
        """
        A queue for three, with two messages in it.
        """
        self.queue: Queue[str, str] = Queue(3)
        self.queue.append("a", "message a")
        self.queue.append("b", "message b")

    def test_empty(self) -> None:
        """
        From an empty one nothing can be taken, in any way.
        """
        queue: Queue[str, str] = Queue(3)
        self.assertEqual(
            (len(queue), queue.take(), queue.clear()),
            (0, None, []),
        )

    def test_firstInFirstOut(self) -> None:
        """
        Messages leave in the order they came.
        """
        self.assertEqual([self.queue.take(), self.queue.take()], ["message a", "message b"])

    def test_full(self) -> None:
        """
        It takes as many as its limit and not one more, and says so before.
        """
        self.assertFalse(self.queue.full)
        self.queue.append("c", "message c")
        self.assertTrue(self.queue.full)
        error = self.assertRaises(ValueError, self.queue.append, "d", "message d")
        self.assertEqual(str(error), "the queue is full")
        self.assertEqual(self.queue.clear(), ["message a", "message b", "message c"])

    def test_twice(self) -> None:
        """
        It refuses a key that waits already, and keeps the first message.
        """
        error = self.assertRaises(ValueError, self.queue.append, "a", "another a")
        self.assertEqual(str(error), "this key waits already")
        self.assertEqual(self.queue.take(), "message a")

    def test_giveBack(self) -> None:
        """
        What is given back goes before all the others, in its own order.
        """
        self.queue.giveBack([("y", "message y"), ("z", "message z")])
        self.assertEqual(self.queue.clear(), ["message y", "message z", "message a", "message b"])

    def test_giveBackIterator(self) -> None:
        """
        It may be given as an iterator.
        """
        self.queue.giveBack(iter([("y", "message y"), ("z", "message z")]))
        self.assertEqual(self.queue.clear(), ["message y", "message z", "message a", "message b"])

    def test_giveBackOverLimit(self) -> None:
        """
        What is given back is taken over the limit, and until the queue is
        below that again nothing else is.
        """
        self.queue.giveBack([(key, key) for key in "vwxyz"])
        self.assertEqual((len(self.queue), self.queue.full), (7, True))
        self.assertRaises(ValueError, self.queue.append, "c", "message c")
        for _ in range(5):
            self.queue.take()
        self.queue.append("c", "message c")
        self.assertEqual(self.queue.clear(), ["message a", "message b", "message c"])

    def test_giveBackNothing(self) -> None:
        """
        Giving back nothing changes nothing.
        """
        self.queue.giveBack([])
        self.assertEqual(self.queue.clear(), ["message a", "message b"])

    def test_clear(self) -> None:
        """
        Everything can be taken out at once, in order.
        """
        self.assertEqual(self.queue.clear(), ["message a", "message b"])
        self.assertEqual(len(self.queue), 0)


class WindowMachine(RuleBasedStateMachine):
    """
    A L{Window} next to a plain list that does the same.
    """

    @initialize(size=st.integers(0, 5))
    def start(self, size: int) -> None:
        """
        Any size will do.
        """
        self.size = size
        self.window: Window[int, int] = Window(size)
        self.model: list[tuple[int, int]] = []
        self.count = 0

    @rule(key=keys)
    def add(self, key: int) -> None:
        """
        A message is sent, in vain if there is no room or its key is taken.
        """
        self.count += 1
        try:
            self.window.add(key, self.count)
        except ValueError:
            assert len(self.model) == self.size or key in dict(self.model)
        else:
            self.model.append((key, self.count))

    @rule(key=keys)
    def answer(self, key: int) -> None:
        """
        An answer comes, perhaps for nothing.
        """
        expected = dict(self.model).get(key)
        self.model = [pair for pair in self.model if pair[0] != key]
        assert self.window.answer(key) == expected

    @rule()
    def clear(self) -> None:
        """
        The stream is lost.
        """
        expected = [item for _, item in self.model]
        self.model = []
        assert self.window.clear() == expected

    @invariant()
    def same(self) -> None:
        """
        Both agree, and neither is above the window.
        """
        assert (
            len(self.window.unanswered) == len(self.model) == len({key for key, _ in self.model}) <= self.size
        )
        assert self.window.room == self.size - len(self.model)
        assert [key for key in range(10) if key in self.window.unanswered] == sorted(
            key for key, _ in self.model
        )


class QueueMachine(RuleBasedStateMachine):
    """
    A L{Queue} next to a plain list that does the same.
    """

    @initialize(limit=st.integers(0, 5))
    def start(self, limit: int) -> None:
        """
        Any limit will do.
        """
        self.limit = limit
        self.queue: Queue[int, int] = Queue(limit)
        self.model: list[tuple[int, int]] = []
        self.count = 0

    @rule(key=keys)
    def append(self, key: int) -> None:
        """
        A message comes, in vain if there is no place or its key is taken.
        """
        self.count += 1
        try:
            self.queue.append(key, self.count)
        except ValueError:
            assert len(self.model) >= self.limit or key in dict(self.model)
        else:
            self.model.append((key, self.count))

    @rule(given=st.lists(keys, unique=True))
    def giveBack(self, given: list[int]) -> None:
        """
        A stream gives messages back; one that waits already is moved.
        """
        pairs = [(key, -key) for key in given]
        self.model = pairs + [pair for pair in self.model if pair[0] not in given]
        self.queue.giveBack(pairs)

    @rule()
    def take(self) -> None:
        """
        A stream has room.
        """
        expected = self.model.pop(0)[1] if self.model else None
        assert self.queue.take() == expected

    @rule()
    def clear(self) -> None:
        """
        The service stops.
        """
        expected = [item for _, item in self.model]
        self.model = []
        assert self.queue.clear() == expected

    @invariant()
    def same(self) -> None:
        """
        Both agree on everything that can be seen from outside.
        """
        assert len(self.queue) == len(self.model)
        assert self.queue.full is (len(self.model) >= self.limit)


class ModelTests(SynchronousTestCase):
    """
    Both behave as plain lists would, whatever happens in whatever order.
    """

    def test_window(self) -> None:
        """
        L{Window} agrees with a list.
        """
        run_state_machine_as_test(WindowMachine, settings=ENOUGH)

    def test_queue(self) -> None:
        """
        L{Queue} agrees with a list.
        """
        run_state_machine_as_test(QueueMachine, settings=ENOUGH)
