"""
Tests for L{fcmxmpp.lanes}.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.lanes import Lanes


class LanesTests(SynchronousTestCase):
    """
    L{Lanes} gives each lane's items their turn, one at a time and in order.
    """

    def givenOut(self, lanes: Lanes[str]) -> list[str]:
        """
        All whose turn has come, given out.
        """
        out = []
        while (item := lanes.next()) is not None:
            out.append(item)
        return out

    def test_nothing(self) -> None:
        """
        Where nothing has entered, it is nobody's turn.
        """
        lanes: Lanes[str] = Lanes()
        self.assertEqual((None, [], 0), (lanes.next(), lanes.waiting(), len(lanes)))

    def test_oneAtATime(self) -> None:
        """
        The first of a lane has its turn, which is given out once; the next has
        it when the first has left.
        """
        lanes: Lanes[str] = Lanes()
        for item in ("a1", "a2", "a3"):
            lanes.enter("a", item)
        self.assertEqual((["a1"], ["a2", "a3"]), (self.givenOut(lanes), lanes.waiting()))
        lanes.leave("a", "a1")
        self.assertEqual((["a2"], ["a3"]), (self.givenOut(lanes), lanes.waiting()))

    def test_lanesAreIndependent(self) -> None:
        """
        Each lane has somebody whose turn it is; the lanes come in the order in
        which those turns have come.
        """
        lanes: Lanes[str] = Lanes()
        for item in ("b1", "a1", "b2", "a2", "c1"):
            lanes.enter(item[0], item)
        self.assertEqual(["b1", "a1", "c1"], self.givenOut(lanes))
        lanes.leave("a", "a1")
        lanes.leave("b", "b1")
        self.assertEqual(["a2", "b2"], self.givenOut(lanes))

    def test_leaveWhileWaiting(self) -> None:
        """
        Who leaves while it waits makes it nobody's turn, and is never given
        out.
        """
        lanes: Lanes[str] = Lanes()
        for item in ("a1", "a2", "a3"):
            lanes.enter("a", item)
        self.assertEqual(["a1"], self.givenOut(lanes))
        lanes.leave("a", "a2")
        self.assertEqual(([], ["a3"]), (self.givenOut(lanes), lanes.waiting()))
        lanes.leave("a", "a1")
        self.assertEqual(["a3"], self.givenOut(lanes))

    def test_leaveBeforeGivenOut(self) -> None:
        """
        Who leaves when its turn has come but has not been given out yet makes
        it the turn of the next, once.
        """
        lanes: Lanes[str] = Lanes()
        for item in ("a1", "a2", "b1"):
            lanes.enter(item[0], item)
        self.assertEqual(["a1", "a2", "b1"], lanes.waiting())
        lanes.leave("a", "a1")
        lanes.leave("b", "b1")
        self.assertEqual(["a2"], self.givenOut(lanes))

    def test_empty(self) -> None:
        """
        A lane that everybody has left is gone, and is as new when it is used
        again.
        """
        lanes: Lanes[str] = Lanes()
        lanes.enter("a", "a1")
        self.givenOut(lanes)
        self.assertEqual(1, len(lanes))
        lanes.leave("a", "a1")
        self.assertEqual(0, len(lanes))
        lanes.enter("a", "a2")
        self.assertEqual(["a2"], self.givenOut(lanes))

    def test_unknown(self) -> None:
        """
        Who is not in a lane cannot leave it.
        """
        lanes: Lanes[str] = Lanes()
        self.assertRaises(KeyError, lanes.leave, "a", "a1")
        lanes.enter("a", "a1")
        self.assertRaises(ValueError, lanes.leave, "a", "a2")

    @given(st.lists(st.tuples(st.sampled_from(("enter", "next", "leave")), st.integers(0, 50)), max_size=60))
    def test_anyOrder(self, steps: list[tuple[str, int]]) -> None:
        """
        Whatever enters and leaves when: an item is given out once, when it is
        the first of its lane, and in the end every item that has not left
        before its turn has been given out.
        """
        lanes: Lanes[tuple[str, int]] = Lanes()
        model: dict[str, list[tuple[str, int]]] = {"a": [], "b": [], "c": []}
        out: list[tuple[str, int]] = []

        def leave(lane: str, item: tuple[str, int]) -> None:
            lanes.leave(lane, item)
            model[lane].remove(item)

        def due() -> set[tuple[str, int]]:
            return {items[0] for items in model.values() if items and items[0] not in out}

        for number, (step, chosen) in enumerate(steps):
            inside = [item for items in model.values() for item in items]
            if step == "enter":
                item = ("abc"[chosen % 3], number)
                lanes.enter(item[0], item)
                model[item[0]].append(item)
            elif step == "leave" and inside:
                item = inside[chosen % len(inside)]
                leave(item[0], item)
            elif step == "next":
                turn = lanes.next()
                self.assertEqual(bool(due()), turn is not None)
                if turn is not None:
                    self.assertIn(turn, due())
                    out.append(turn)
            inside = [item for items in model.values() for item in items]
            self.assertEqual([item for item in inside if item not in out], sorted(lanes.waiting()))
            self.assertEqual(len([items for items in model.values() if items]), len(lanes))
        while len(lanes):
            while (turn := lanes.next()) is not None:
                self.assertNotIn(turn, out)
                out.append(turn)
            for items in model.values():
                if items:
                    self.assertIn(items[0], out)
                    leave(items[0][0], items[0])
        self.assertEqual([[], [], []], list(model.values()))
