"""
What the benchmarks show is what they measured: C{benchmarks/figures.py}.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree.ElementTree import Element, fromstring

from twisted.trial.unittest import SynchronousTestCase


# The wheel is tested with a copy of the tests; benchmarks are only in the checkout.
BENCHMARKS = Path(os.environ.get("FCMXMPP_CHECKOUT", Path(__file__).resolve().parent.parent), "benchmarks")


def load() -> ModuleType:
    """
    The module, which is in no package.
    """
    name = "benchmarks_figures"
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / "figures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look for it there.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


figures: Any = load()


class HistogramTests(SynchronousTestCase):
    """
    Tests for C{percentile} and C{merge}.
    """

    def test_percentile(self) -> None:
        """
        It is the bound of the first bucket with which the share is reached,
        and not of the one after it.
        """
        histogram = [(1.0, 50), (2.0, 49), (3.0, 1)]
        found = [figures.percentile(histogram, share) for share in (0.25, 0.5, 0.51, 0.99, 0.991, 1.0)]
        self.assertEqual([1.0, 1.0, 2.0, 2.0, 3.0, 3.0], found)

    def test_fewValues(self) -> None:
        """
        With less than a hundred values the 99th percentile is the largest, and
        the one value of a histogram is all its percentiles.
        """
        self.assertEqual(5.0, figures.percentile([(1.0, 10), (5.0, 1)], 0.99))
        self.assertEqual([7.0] * 3, [figures.percentile([(7.0, 1)], share) for share in (0.01, 0.5, 0.999)])

    def test_emptyBuckets(self) -> None:
        """
        A bucket with nothing in it is nobody's percentile.
        """
        self.assertEqual(3.0, figures.percentile([(1.0, 1), (2.0, 0), (3.0, 1)], 0.75))

    def test_nothing(self) -> None:
        """
        Without values there is no percentile, and it does not invent one.
        """
        self.assertRaises(ValueError, figures.percentile, [], 0.5)

    def test_merge(self) -> None:
        """
        Equal buckets are added up, all others kept, in ascending order, also
        where the histograms have it otherwise among them.
        """
        first, second = [(2.0, 1), (8.0, 3)], [(1.0, 5), (2.0, 2)]
        self.assertEqual([(1.0, 5), (2.0, 3), (8.0, 3)], figures.merge([first, second]))
        self.assertEqual([(2.0, 1), (8.0, 3)], first)

    def test_mergeNothing(self) -> None:
        """
        Nothing merged is nothing, which is false: so no percentile is asked of
        it.
        """
        self.assertFalse(figures.merge([]))
        self.assertFalse(figures.merge([[], []]))


class TextTests(SynchronousTestCase):
    """
    Tests for C{Spread} and what is written of it.
    """

    def test_spread(self) -> None:
        """
        It is the median and not the mean, with both extremes, in whatever
        order the rounds came.
        """
        self.assertEqual(figures.Spread(2, 1, 30), figures.Spread.of([30, 1, 2]))
        self.assertEqual(figures.Spread(1.5, 1, 2), figures.Spread.of([2, 1]))

    def test_number(self) -> None:
        """
        Three digits, but never less than all before the point.
        """
        found = [figures.number(value) for value in (0.1234, 1.5, 12.34, 123.4, 123456.7)]
        self.assertEqual(["0.12", "1.50", "12.3", "123", "123,457"], found)

    def test_writtenSpread(self) -> None:
        """
        The median comes first, then least and most.
        """
        self.assertEqual("10.4 (9.87-120)", figures.spread(figures.Spread(10.4, 9.87, 120)))

    def test_table(self) -> None:
        """
        It is a table as GitHub wants it: a line to separate the heading, with
        as many columns, numbers to the right.
        """
        expected = "| name | a | b |\n| --- | ---: | ---: |\n| one | 1 | 2 |\n| two | 3 | 4 |\n"
        self.assertEqual(
            expected, figures.table(["name", "a", "b"], iter([["one", "1", "2"], ["two", "3", "4"]]))
        )


class PictureTests(SynchronousTestCase):
    """
    What the pictures have in common.
    """

    hostile = "a < b & \"c\" 'd' </text>"

    def drawn(self, text: str) -> Element:
        """
        Read a picture; each thing in it has to be within its edges.
        """
        root = fromstring(text)
        self.assertEqual("{http://www.w3.org/2000/svg}svg", root.tag)
        width, height = int(root.attrib["width"]), int(root.attrib["height"])
        self.assertEqual(f"0 0 {width} {height}", root.attrib["viewBox"])
        for element in root.iter():
            for names, edge in ((("x", "cx"), width), (("y", "cy"), height)):
                for name in names:
                    place = float(element.get(name, 0))
                    self.assertTrue(0 <= place <= edge, f"{element.tag} at {name}={place} of {edge}")
        return root

    def all_(self, root: Element, name: str) -> list[Element]:
        """
        All elements of a name, in order.
        """
        return list(root.iter(f"{{http://www.w3.org/2000/svg}}{name}"))

    def texts(self, root: Element) -> list[str]:
        """
        All that is written in it.
        """
        return [element.text or "" for element in self.all_(root, "text")]


class BarChartTests(PictureTests):
    """
    Tests for C{barChart}.
    """

    def bar(self, name: str, middle: float, least: float, most: float, kind: str = "other") -> Any:
        """
        A bar.
        """
        return figures.Bar(name, figures.Spread(middle, least, most), kind)

    def test_everythingIsThere(self) -> None:
        """
        Title, note, each group's heading and each bar with its name and its
        value are there, once and in order, coloured by their kinds; the title
        is for those who hear it, too.
        """
        groups = {
            "first": [self.bar("floor", 5, 4, 6, "floor"), self.bar("we", 10, 9, 20, "ours")],
            "second": [self.bar("they", 40, 38, 41)],
        }
        root = self.drawn(figures.barChart("Cost", "a note", groups))
        self.assertEqual(["Cost"], [element.text for element in self.all_(root, "title")])
        written = ["Cost", "a note", "first", "floor", "5.00", "we", "10.0", "second", "they", "40.0"]
        self.assertEqual(written, self.texts(root))
        self.assertEqual(["floor", "ours", "other"], [e.get("class") for e in self.all_(root, "rect")])
        self.assertEqual(3, len(self.all_(root, "path")))

    def test_lengths(self) -> None:
        """
        Within a group a bar is as long as its median is large, the line on it
        goes from the least to the most, and the longest line has the same
        length in each group: each has a scale of its own.
        """
        groups = {
            "small": [self.bar("a", 1, 0.5, 2), self.bar("b", 2, 1, 4)],
            "large": [self.bar("c", 100, 50, 400)],
        }
        root = self.drawn(figures.barChart("", "", groups))
        bars = self.all_(root, "rect")
        a, b, c = (float(bar.attrib["width"]) for bar in bars)
        self.assertAlmostEqual(2 * a, b, delta=0.2)
        self.assertAlmostEqual(a, c, delta=0.2)
        left = float(bars[0].attrib["x"])
        lines = []
        for path in self.all_(root, "path"):
            begin, _, end = path.attrib["d"].removeprefix("M").partition("H")
            lines.append((float(begin.split()[0]) - left, float(end) - left))
        for (least, most), expected in zip(
            lines, ((a / 2, 2 * a), (b / 2, 2 * b), (c / 2, 4 * c)), strict=True
        ):
            self.assertAlmostEqual(expected[0], least, delta=0.3)
            self.assertAlmostEqual(expected[1], most, delta=0.3)
        self.assertEqual(lines[1][1], lines[2][1])

    def test_nothingOverlaps(self) -> None:
        """
        Each bar is below the one before it.
        """
        bars = [self.bar(f"{n}", n + 1, n + 1, n + 1) for n in range(20)]
        root = self.drawn(figures.barChart("", "", {"one": bars, "two": bars}))
        places = [(float(e.attrib["y"]), float(e.attrib["height"])) for e in self.all_(root, "rect")]
        self.assertEqual(40, len(places))
        for (above, height), (below, _) in pairwise(places):
            self.assertLessEqual(above + height, below)

    def test_escaped(self) -> None:
        """
        Whatever is in a title, a note, a heading or a name is text and not
        XML.
        """
        hostile = self.hostile
        root = self.drawn(figures.barChart(hostile, hostile, {hostile: [self.bar(hostile, 1, 1, 1)]}))
        self.assertEqual([hostile], [element.text for element in self.all_(root, "title")])
        self.assertEqual([hostile] * 4 + ["1.00"], self.texts(root))


class LinePlotsTests(PictureTests):
    """
    Tests for C{linePlots}.
    """

    def test_everythingIsThere(self) -> None:
        """
        Each plot has its name, a line through all its points, and at each
        point its value and its label.
        """
        plots = {
            "links": [("1", 10.0), ("2", 11.0), ("4", 12.5)],
            "open": [("1", 9.0), ("9,000", 8.0)],
            "third": [("x", 1.0)],
        }
        root = self.drawn(figures.linePlots("Growth", "a note", plots, "µs"))
        texts = self.texts(root)
        for text in (
            "Growth",
            "a note",
            "µs",
            "links",
            "open",
            "third",
            "10.0",
            "11.0",
            "12.5",
            "4",
            "9,000",
            "x",
        ):
            self.assertIn(text, texts)
        self.assertEqual(6, len(self.all_(root, "circle")))
        lines = [len(line.attrib["points"].split()) for line in self.all_(root, "polyline")]
        self.assertEqual([3, 2, 1], lines)
        self.assertEqual(["Growth"], [element.text for element in self.all_(root, "title")])

    def test_sameScale(self) -> None:
        """
        Equal values are at the same height of neighbouring plots, a larger one
        is higher, and the points of a plot go to the right.
        """
        plots = {"a": [("1", 10.0), ("2", 20.0), ("3", 10.0)], "b": [("1", 20.0)]}
        root = self.drawn(figures.linePlots("", "", plots, ""))
        places = [(float(e.attrib["cx"]), float(e.attrib["cy"])) for e in self.all_(root, "circle")]
        (x1, y1), (x2, y2), (x3, y3), (_, y4) = places
        self.assertTrue(x1 < x2 < x3)
        self.assertEqual((y1, y2), (y3, y4))
        self.assertLess(y2, y1)

    def test_spread(self) -> None:
        """
        A point that is a median has a line from the least to the most, none of
        which is beyond the axis; one that is always the same has none.
        """
        points = [("1", figures.Spread(10, 5, 40)), ("2", figures.Spread(20, 20, 20)), ("3", 10.0)]
        root = self.drawn(figures.linePlots("", "", {"a": points}, ""))
        (line,) = [e for e in self.all_(root, "path") if "V" in e.attrib["d"]]
        x, low, high = (float(each) for each in line.attrib["d"][1:].replace("V", " ").split())
        first, second, third = self.all_(root, "circle")
        self.assertEqual(float(first.attrib["cx"]), x)
        self.assertEqual(first.attrib["cy"], third.attrib["cy"])
        middle, twice = (float(each.attrib["cy"]) for each in (first, second))
        # To a tenth of a pixel each.
        self.assertLess(abs((low - middle) - (middle - twice) / 2), 0.3)
        self.assertLess(abs((middle - high) - (middle - twice) * 3), 0.5)
        self.assertGreaterEqual(high, 90)
        values = [e for e in self.all_(root, "text") if e.text == "10.0"]
        self.assertLess(float(values[0].attrib["y"]), high)

    def test_logarithmic(self) -> None:
        """
        On a logarithmic axis equal ratios are equal distances, whatever is
        between them; a single point is in the middle.
        """
        points = [(name, 1.0) for name in ("1", "10", "1,000", "100,000")]
        root = self.drawn(figures.linePlots("", "", {"a": points, "b": points[2:3]}, "", True))
        one, ten, thousand, most, alone = (float(e.attrib["cx"]) for e in self.all_(root, "circle"))
        self.assertLess(abs(2 * (ten - one) - (thousand - ten)), 0.4)
        self.assertLess(abs((thousand - ten) - (most - thousand)), 0.3)
        self.assertEqual(200 + 360, alone)

    def test_ticks(self) -> None:
        """
        Whatever the largest value, the axis begins with 0, has three to six
        ticks at even distances, and ends above the value, but not far above.
        """
        for most in (0.07, 0.3, 1.0, 1.1, 2.6, 7.0, 10.0, 26.5, 99.0, 100.0, 101.0, 12345.0):
            root = self.drawn(figures.linePlots("", "", {"": [("here", most)]}, ""))
            ticks = [float(e.text or "") for e in self.all_(root, "text") if e.get("text-anchor") == "end"]
            self.assertTrue(3 <= len(ticks) <= 6, (most, ticks))
            for n, tick in enumerate(ticks):
                self.assertAlmostEqual(ticks[1] * n, tick)
            self.assertTrue(most <= ticks[-1] <= 2 * most, (most, ticks))

    def test_escaped(self) -> None:
        """
        Whatever is in a title, a note, a name, a label or the unit is text and
        not XML.
        """
        hostile = self.hostile
        root = self.drawn(figures.linePlots(hostile, hostile, {hostile: [(hostile, 1.0)]}, hostile))
        self.assertEqual([hostile], [element.text for element in self.all_(root, "title")])
        self.assertEqual(5, self.texts(root).count(hostile))
