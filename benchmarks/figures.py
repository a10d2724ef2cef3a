"""
From what was measured to what is shown: percentiles, medians, a table in
Markdown, and pictures in SVG.  Pure functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain
from math import ceil, log10
from statistics import median


#: A histogram: for each bucket the first value beyond it, and how many there are.
Histogram = Sequence[tuple[float, int]]


def percentile(histogram: Histogram, share: float) -> float:
    """
    The least value that this share of all is not above; by the upper bound of
    its bucket.

    @param histogram: in ascending order.
    """
    wanted = ceil(sum(count for _, count in histogram) * share)
    found = 0
    for bound, count in histogram:
        found += count
        if found >= wanted:
            return bound
    raise ValueError("an empty histogram has no percentiles")


def merge(histograms: Iterable[Histogram]) -> Histogram:
    """
    Several histograms as one.
    """
    merged: dict[float, int] = {}
    for histogram in histograms:
        for bound, count in histogram:
            merged[bound] = merged.get(bound, 0) + count
    return sorted(merged.items())


@dataclass(frozen=True)
class Spread:
    """
    What came of several rounds.
    """

    middle: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """
        The median, and the extremes.
        """
        return cls(median(values), min(values), max(values))


def number(value: float) -> str:
    """
    Three digits of a number, or all before the point.
    """
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(value: Spread) -> str:
    """
    A median with its extremes.
    """
    return f"{number(value.middle)} ({number(value.least)}-{number(value.most)})"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """
    A table in Markdown; all columns but the first to the right.
    """
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# Pictures.  The text takes the colour of the page around it where the page is
# dark, because an SVG that is shown by <img> knows that much.

_STYLE = (
    "<style>text{font:13px system-ui,sans-serif;fill:#1f2328}.title{font-weight:600;font-size:15px}"
    ".faint{fill:#59636e;font-size:12px}.line{stroke:#8c959f;stroke-width:1;fill:none}"
    ".ours{fill:#0969da}.floor{fill:#afb8c1}.other{fill:#d4843e}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.faint{fill:#9198a1}.floor{fill:#656c76}"
    ".ours{fill:#4493f8}.line{stroke:#656c76}}</style>"
)


def _svg(width: int, height: int, title: str, body: Iterable[str]) -> str:
    """
    A whole picture.
    """
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img">\n<title>{escape(title)}</title>\n{_STYLE}\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


@dataclass(frozen=True)
class Bar:
    """
    One bar of a chart.

    @ivar kind: C{"ours"}, C{"floor"} or C{"other"}.
    """

    name: str
    value: Spread
    kind: str


def barChart(title: str, note: str, groups: Mapping[str, Sequence[Bar]]) -> str:
    """
    Groups of horizontal bars, each group to a scale of its own; the shorter
    the better, so ours are easy to compare with the floor and the others.
    """
    width, left, right, step = 760, 190, 110, 24
    body = [f'<text class="title" x="16" y="26">{escape(title)}</text>']
    body.append(f'<text class="faint" x="16" y="45">{escape(note)}</text>')
    y = 62
    for heading, bars in groups.items():
        most = max(bar.value.most for bar in bars)
        scale = (width - left - right) / most
        body.append(f'<text x="16" y="{y + 16}" font-weight="600">{escape(heading)}</text>')
        y += 26
        for bar in bars:
            length, low, high = (
                round(value * scale, 1) for value in (bar.value.middle, bar.value.least, bar.value.most)
            )
            middle = y + step / 2 - 1
            body += [
                f'<text x="{left - 10}" y="{y + 15}" text-anchor="end">{escape(bar.name)}</text>',
                f'<rect class="{bar.kind}" x="{left}" y="{y + 2}" width="{length}" height="{step - 6}"/>',
                f'<path class="line" d="M{left + low} {middle}H{left + high}"/>',
                f'<text x="{left + max(length, high) + 8}" y="{y + 15}">{number(bar.value.middle)}</text>',
            ]
            y += step
        y += 10
    return _svg(width, y + 6, title, body)


def _ticks(most: float) -> list[float]:
    """
    Three to six round numbers from 0 to a bit above.
    """
    power = 10.0 ** int(log10(most)) if most >= 1 else 0.1
    step = next(s * power / 10 for s in (1, 2, 2.5, 5, 10, 20, 50) if s * power / 10 * 5 >= most)
    return [step * i for i in range(ceil(most / step) + 1)]


def _places(labels: Sequence[str], width: float, logarithmic: bool) -> list[float]:
    """
    Where on an x axis so wide the values of these labels are.
    """
    if not logarithmic or len(labels) < 2:
        return [(place + 0.5) * width / len(labels) for place in range(len(labels))]
    powers = [log10(float(label.replace(",", ""))) for label in labels]
    # As far from the edges as if they were at even distances.
    edge = width / 2 / len(labels)
    scale = (width - 2 * edge) / ((max(powers) - min(powers)) or 1)
    return [edge + (power - min(powers)) * scale for power in powers]


def linePlots(
    title: str,
    note: str,
    plots: Mapping[str, Sequence[tuple[str, float | Spread]]],
    unit: str,
    logarithmic: bool = False,
) -> str:
    """
    Small plots side by side, two in a row, all to the same scale; the values
    on the x axis are names, at even distances.  A point that is a L{Spread} has
    a line from the least to the most.

    @param logarithmic: whether the names are numbers above 0, and their logarithms
        say where on the axis they are.
    """
    width, plotWidth, plotHeight = 760, 280, 130
    spreads = {
        name: [value if isinstance(value, Spread) else Spread(value, value, value) for _, value in points]
        for name, points in plots.items()
    }
    everything = list(chain.from_iterable(spreads.values()))
    # The number above a line that goes to the top would stand in the name of its plot.
    room = 1.15 if any(each.most > each.middle for each in everything) else 1.0
    ticks = _ticks(room * max(each.most for each in everything))
    body = [f'<text class="title" x="16" y="26">{escape(title)}</text>']
    body.append(f'<text class="faint" x="16" y="45">{escape(note)}</text>')
    for index, (name, points) in enumerate(plots.items()):
        left, top = 60 + index % 2 * 360, 90 + index // 2 * 210
        bottom = top + plotHeight
        body.append(f'<text x="{left}" y="{top - 14}" font-weight="600">{escape(name)}</text>')
        for tick in ticks:
            y = round(bottom - tick / ticks[-1] * plotHeight, 1)
            body.append(f'<path class="line" stroke-opacity=".4" d="M{left} {y}h{plotWidth}"/>')
            body.append(f'<text class="faint" x="{left - 8}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
        labels = [label for label, _ in points]
        xs = [round(left + place, 1) for place in _places(labels, plotWidth, logarithmic)]
        least, middle, most = (
            [round(bottom - value / ticks[-1] * plotHeight, 1) for value in values]
            for values in zip(*((each.least, each.middle, each.most) for each in spreads[name]), strict=True)
        )
        body.append(
            '<polyline fill="none" stroke="#4493f8" stroke-width="2" points="'
            + " ".join(f"{x},{y}" for x, y in zip(xs, middle, strict=True))
            + '"/>'
        )
        values = [number(each.middle) for each in spreads[name]]
        for x, low, y, high, label, value in zip(xs, least, middle, most, labels, values, strict=True):
            if low != high:
                body.append(f'<path class="line" d="M{x} {low}V{high}"/>')
            body.append(f'<circle class="ours" cx="{x}" cy="{y}" r="3.5"/>')
            body.append(f'<text class="faint" x="{x}" y="{high - 8}" text-anchor="middle">{value}</text>')
            body.append(
                f'<text class="faint" x="{x}" y="{bottom + 18}" text-anchor="middle">{escape(label)}</text>'
            )
    rows = ceil(len(plots) / 2)
    body.append(f'<text class="faint" x="16" y="{60}">{escape(unit)}</text>')
    return _svg(width, 70 + rows * 210, title, body)
