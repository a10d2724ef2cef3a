"""
What grows: whether a message costs more the more there is of something, and
how much memory each of something takes.

    python benchmarks/growth.py              the plot and a table, in C{benchmarks/results}
    python benchmarks/growth.py --json       print the figures, and write nothing

CPU time is that of our app server as a process of its own, upstream, with a
do-nothing handler, as in C{bench.py}; memory is counted by C{tracemalloc} in an
app server without sockets, and of a link by what the process needs more.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import NOTHING, RESULTS, commit, machine
from cost import LoggedIn, upstreamStanza
from figures import Spread, linePlots, number, spread, table
from running import Failed, Load, Subject, measure, twistd


#: Of how many of something memory is counted.
MANY = 5000
#: How many links take the memory that is compared with that of one.
LINKS = 65
OURS = Subject("ours", "fcmxmpp", twistd(NOTHING))


def waiting(most: int, *options: str) -> Subject:
    """
    An app server that keeps so many messages waiting.
    """
    command = twistd("--handler=applications.Waiting", *options)
    return Subject("waiting", "fcmxmpp", command, settings={"waiting": most})


def series(messages: int) -> dict[str, list[tuple[str, Subject, Load]]]:
    """
    What is plotted: by the name of what grows, its value with the run for it.

    @param messages: of a run.
    """
    load = Load(up=2 * messages, warm=messages)
    # A hundred links, because a link never has more than a hundred unanswered.
    many = Load(up=20_000 + 2 * messages, warm=15_000, links=100)
    return {
        "unanswered messages on the link": [
            (str(window), OURS, replace(load, window=window)) for window in (10, 25, 50, 100)
        ],
        "links": [(str(links), OURS, replace(load, links=links)) for links in (1, 2, 4, 8)],
        "messages remembered before": [
            (f"{before:,}", OURS, replace(load, warm=before, up=before + messages))
            for before in (1000, 10_000, 50_000, 100_000)
        ],
        "open handlers, --ack received": [
            (f"{most:,}", waiting(most, "--ack=received"), load) for most in (1, 100, 900)
        ],
        "open handlers, 100 links": [(f"{most:,}", waiting(most), many) for most in (1, 100, 9000)],
    }


def held(make: Callable[[], Any], add: Callable[[Any, range], None]) -> float:
    """
    How many bytes one more of something holds.

    @param make: makes what they are added to.
    @param add: adds those of these numbers.
    """
    container = make()
    add(container, range(MANY))
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        # Doubled, so that tables that grow by doubling have their share.
        add(container, range(MANY, 2 * MANY - 100))
        gc.collect()
        return (tracemalloc.get_traced_memory()[0] - before) / (MANY - 100)
    finally:
        tracemalloc.stop()


def memory() -> dict[str, float]:
    """
    What one of each takes, in bytes.
    """
    from twisted.internet.defer import Deferred

    from fcmxmpp.messages import DownstreamMessage

    def receive(joined: LoggedIn, numbers: range) -> None:
        for n in numbers:
            joined.hear(upstreamStanza(n))
        joined.said()

    def send(joined: LoggedIn, numbers: range) -> None:
        for n in numbers:
            message = DownstreamMessage(to=f"device-{n % 100:02d}", message_id=f"{n:08d}", data={"n": str(n)})
            joined.service.send(message)
        joined.said()

    return {
        "a message remembered, for de-duplication": held(LoggedIn, receive),
        "a message of 300 bytes that its handler has not handled": held(
            lambda: LoggedIn(lambda message: Deferred()), receive
        ),
        "a small downstream message that waits for room": held(LoggedIn, send),
    }


def linkMemory(messages: int) -> float:
    """
    What a link takes, TLS included, in bytes.
    """
    one, many = (measure(OURS, Load(up=messages, links=links)).memory for links in (1, LINKS))
    return (many - one) / (LINKS - 1) * 2**20


def main(arguments: Sequence[str]) -> None:
    """
    Measure, and write down what came of it.

    @raise SystemExit: if a run fails.
    """
    parser = argparse.ArgumentParser(description="Measures what grows.")
    parser.add_argument("--messages", type=int, default=12_000, metavar="N", help="of a run [%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="[%(default)s]")
    parser.add_argument("--json", action="store_true", help="print the figures, and write no file")
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory to write to [%(default)s]")
    options = parser.parse_args(arguments)
    wanted = series(options.messages)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in wanted}
    try:
        for turn in range(1, options.rounds + 1):
            for name, points in wanted.items():
                for value, subject, load in points:
                    cpu = measure(subject, load).cpu
                    found[name].setdefault(value, []).append(cpu)
                    print(
                        f"{turn}/{options.rounds} {name}, {value}: {cpu:.1f} µs", file=sys.stderr, flush=True
                    )
        bytesOf = {**memory(), "a link, TLS included": linkMemory(options.messages)}
    except Failed as error:
        raise SystemExit(str(error)) from None
    day = datetime.date.today().isoformat()
    if options.json:
        print(json.dumps({"date": day, "machine": machine(), "cpu_us": found, "bytes": bytesOf}))
        return
    rounds = f"{options.rounds} rounds of {options.messages:,} messages"
    text = f"# What grows\n\n{day}, commit {commit()}, {rounds}: the median, and the least and the most.  \n"
    text += f"{machine()}\n\nCPU time of the app server, µs per message upstream with its ACK:\n\n"
    text += table(
        ["", "how many", "µs"],
        (
            [name, value, spread(Spread.of(cpu))]
            for name, values in found.items()
            for value, cpu in values.items()
        ),
    )
    text += "\nMemory:\n\n" + table(["", "bytes"], ([name, number(value)] for name, value in bytesOf.items()))
    plots = {
        name: [(value, Spread.of(cpu).middle) for value, cpu in values.items()]
        for name, values in found.items()
    }
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "growth.md").write_text(text)
    (options.results / "growth.svg").write_text(
        linePlots("What grows: CPU time per message", f"{day}; upstream with its ACK", plots, "µs")
    )
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
