"""
What a message costs: our app server, the floor under it, and its peers, side
by side.

Runs every subject in turn, in several rounds, so that whatever else the machine
does falls on all of them; shows medians with the least and the most.  Writes a
table and a picture to C{benchmarks/results}.

    python benchmarks/bench.py               the short set, which is C{make bench}
    python benchmarks/bench.py --all         for a release
    python benchmarks/bench.py --only NAME   what has this in its name; see --list

Linux only.  README.md says what the figures mean.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from figures import Bar, Spread, barChart, merge, number, percentile, spread, table
from peers import NODE_XCS, SLIXMPP
from running import HERE, Failed, Figures, Load, Subject, measure, program, raw, twistd


RESULTS = HERE / "results"

RAW = Subject("raw", "raw client in C", raw, kind="other", reports=False)
FLOOR = Subject("floor", "Twisted floor", program("floor"), kind="floor")
NAIVE = Subject("naive", "naive wokkel handler", program("naive"), kind="other")
NOTHING = "--handler=applications.nothing"
SENDING = "--handler=applications.Sending"
OURS = Subject("ours", "fcmxmpp", twistd(NOTHING))
SENDER = Subject("ours", "fcmxmpp", twistd(SENDING))
PEERS = (NODE_XCS, NAIVE, SLIXMPP)
STORE = "--store=sqlite:{directory}/store.sqlite"


@dataclass(frozen=True)
class Case:
    """
    One line of the table.

    @ivar group: the name of what is asked of all that are compared with it.
    @ivar short: whether it belongs to the short set.
    @ivar half: whether it is done at half of the rate that this subject had
        with the load of this group.
    @ivar minutes: how long it takes then, in the one round that it gets; 0 for
        as many messages as the load has, in each round.
    """

    group: str
    subject: Subject
    load: Load
    short: bool = True
    half: str | None = None
    minutes: float = 0

    @property
    def name(self) -> str:
        """
        For the command line.
        """
        return f"{self.group}/{self.subject.name}"


#: What is done with each, and its heading.
GROUPS = {
    "up-300": "Upstream with its ACK, 300 bytes",
    "up-300-quot": "Upstream with its ACK, 300 bytes, quotes as &quot;",
    "up-4k": "Upstream with its ACK, 4 KB",
    "down-300": "Downstream with its ACK, 300 bytes",
    "down-4k": "Downstream with its ACK, 4 KB",
    "settings": "Upstream, 300 bytes, other settings of fcmxmpp",
    "records": "Upstream, 300 bytes, a TLS record for each stanza",
    "both-300": "Upstream and downstream at once, 300 bytes",
    "both-4k": "Upstream and downstream at once, 4 KB",
    "half": "Upstream, 300 bytes, at a fixed rate: half of the most",
    "half-4k": "Upstream, 4 KB, at a fixed rate: half of the most",
    "steady": "Upstream, 300 bytes, half of the most for many minutes",
    "generator": "What the load generator sustains: a client that does nothing",
}


def cases(messages: int, minutes: float) -> list[Case]:
    """
    All there are, in the order of the table.

    @param messages: of a run.
    @param minutes: how long the steady one takes.
    """
    # As many again, so that compilers at run time have done their work.
    warm = messages
    up = Load(up=messages + warm, warm=warm)
    down = Load(down=messages + warm, warm=warm)
    both = Load(up=messages + warm, down=messages + warm, warm=warm)
    found = []
    for group, load, short in (
        ("up-300", up, True),
        ("up-300-quot", replace(up, quoted=True), True),
        ("up-4k", replace(up, size=4096), True),
        ("down-300", down, True),
        ("down-4k", replace(down, size=4096), True),
    ):
        ours = OURS if load.up else SENDER
        # slixmpp is far behind; once in the short set is enough.
        found += [
            Case(group, s, load, short and (s is not SLIXMPP or group == "up-300"))
            for s in (FLOOR, ours, *PEERS)
        ]
    echo = replace(both, echoed=True)
    for name, title, options, load, short in (
        ("default handler, lines to a file", "jsonlines", (), up, True),
        ("handler with async def", "async", ("--handler=applications.coroutine",), up, True),
        ("handler echo, two messages each", "echo", ("--handler=echo",), echo, True),
        ("--ack received", "received", (NOTHING, "--ack=received"), up, True),
        ("--ordered", "ordered", (NOTHING, "--ordered"), up, True),
        ("--store", "store", (NOTHING, STORE), up, True),
        ("--store --ack handled", "store-handled", (NOTHING, STORE, "--ack=handled"), up, False),
        ("--connections 4", "4-links", (NOTHING,), replace(up, links=4), True),
        ("--connections 4 --store", "4-links-store", (NOTHING, STORE), replace(up, links=4), True),
        ("downstream, --connections 4", "down-4-links", (SENDING,), replace(down, links=4), False),
        ("downstream, --store", "down-store", (f"{SENDING}Stored", STORE), down, False),
    ):
        found.append(Case("settings", Subject(title, name, twistd(*options)), load, short))
    found += [Case("records", s, replace(up, apart=True), s is OURS) for s in (FLOOR, OURS, *PEERS)]
    found.append(Case("both-300", SENDER, both))
    found.append(Case("both-4k", SENDER, replace(both, size=4096), short=False))
    found.append(Case("half", OURS, up, half="up-300"))
    found.append(Case("half-4k", OURS, replace(up, size=4096), short=False, half="up-4k"))
    found.append(Case("steady", OURS, up, short=False, half="up-300", minutes=minutes))
    many = Load(up=messages * 10, warm=messages)
    found.append(Case("generator", RAW, many))
    found.append(
        Case("generator", replace(RAW, name="raw-down"), Load(down=messages * 10, warm=messages), False)
    )
    return found


def machine() -> str:
    """
    Where this runs, and on what.
    """
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    packages = ", ".join(f"{name} {version(name)}" for name in ("Twisted", "wokkel", "msgspec", "pyOpenSSL"))
    return (
        f"{cpu}, {os.cpu_count()} CPUs, Linux {platform.release()}, {platform.python_implementation()} "
        f"{platform.python_version()}, {packages}"
    )


def commit() -> str:
    """
    Of which state of the source these are the figures.
    """
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def _waited(runs: Sequence[Figures], share: float) -> float | None:
    """
    A percentile of all rounds together, in milliseconds.
    """
    waits = merge(run.waits for run in runs)
    return percentile(waits, share) * 1e3 if waits else None


def summary(case: Case, runs: Sequence[Figures]) -> dict[str, Any]:
    """
    What came of the rounds of a case, as it is shown and written as JSON.
    """
    return {
        "name": case.name,
        "group": case.group,
        "title": case.subject.title,
        "kind": case.subject.kind,
        "rounds": len(runs),
        "cpu_us": Spread.of([run.cpu for run in runs]).__dict__,
        "rate": Spread.of([run.rate for run in runs]).__dict__,
        "p50_ms": _waited(runs, 0.5),
        "p99_ms": _waited(runs, 0.99),
        "p999_ms": _waited(runs, 0.999),
        "pause_ms": max(run.pause for run in runs) * 1e3,
        "memory_mb": max(run.memory for run in runs),
        "generator_busy": max(run.generatorBusy for run in runs),
    }


def report(found: Sequence[dict[str, Any]], facts: Sequence[str]) -> str:
    """
    All figures, in Markdown.
    """
    text = "# Figures\n\n" + "".join(f"{fact}  \n" for fact in facts)
    headings = [
        *("", "CPU, µs per message", "messages/s", "p50, ms", "p99", "p99.9"),
        *("longest pause, ms", "memory, MB", "generator busy"),
    ]
    for group, heading in GROUPS.items():
        rows = [
            [
                row["title"],
                spread(Spread(**row["cpu_us"])),
                number(row["rate"]["middle"]),
                *(("" if row[key] is None else number(row[key])) for key in ("p50_ms", "p99_ms", "p999_ms")),
                number(row["pause_ms"]),
                number(row["memory_mb"]),
                f"{row['generator_busy']:.0%}",
            ]
            for row in found
            if row["group"] == group
        ]
        if rows:
            text += f"\n## {heading.replace('&', '&amp;')}\n\n{table(headings, rows)}"
    return text


def picture(found: Sequence[dict[str, Any]], note: str) -> str:
    """
    The comparison at a glance.
    """
    groups = {
        heading: [
            Bar(row["title"], Spread(**row["cpu_us"]), row["kind"]) for row in found if row["group"] == group
        ]
        for group, heading in list(GROUPS.items())[:5]
    }
    return barChart(
        "CPU time per message, µs: less is better",
        note,
        {heading: bars for heading, bars in groups.items() if bars},
    )


def rounds(chosen: Sequence[Case], count: int, say: Any) -> dict[str, list[Figures]]:
    """
    Run all of them, so many times.
    """
    runs: dict[str, list[Figures]] = {case.name: [] for case in chosen}
    for turn in range(1, count + 1):
        for case in chosen:
            if case.minutes and turn > 1:
                # Once is long enough.
                continue
            load = case.load
            if case.half is not None:
                most = runs.get(f"{case.half}/{case.subject.name}") or [measure(case.subject, load)]
                load = replace(load, rate=most[-1].rate / 2)
            if case.minutes:
                load = replace(load, up=load.warm + int(load.rate * case.minutes * 60))
            figures = measure(case.subject, load, deadline=120 + case.minutes * 60)
            runs[case.name].append(figures)
            say(f"{turn}/{count} {case.name}: {figures.cpu:.1f} µs, {figures.rate:,.0f}/s")
    return runs


def choose(options: argparse.Namespace) -> list[Case]:
    """
    Which cases are to be run; says why others are not.

    @raise SystemExit: if there are none.
    """
    everything = cases(options.messages, options.minutes)
    if options.only:
        chosen = [case for case in everything if any(part in case.name for part in options.only)]
    else:
        chosen = [case for case in everything if case.short or options.all]
    missing = {case.subject.name: why for case in chosen if (why := case.subject.missing())}
    for name, why in missing.items():
        print(f"{name} is left out: {why}", file=sys.stderr)
    chosen = [case for case in chosen if case.subject.name not in missing]
    if not chosen:
        raise SystemExit("nothing to run; --list says what there is")
    return chosen


def parseOptions(arguments: Sequence[str]) -> argparse.Namespace:
    """
    Read the command line.
    """
    parser = argparse.ArgumentParser(description="Measures what a message costs.")
    parser.add_argument("--all", action="store_true", help="the long set, for releases")
    parser.add_argument("--only", action="append", metavar="NAME", help="what has this in its name")
    parser.add_argument("--list", action="store_true", help="show all names")
    parser.add_argument("--messages", type=int, metavar="N", help="of a run [12000, or 60000 with --all]")
    parser.add_argument("--rounds", type=int, metavar="N", help="[3, or 7 with --all]")
    parser.add_argument("--minutes", type=float, default=10, metavar="N", help="of the steady run [10]")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, and write no file")
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory to write to [%(default)s]")
    options = parser.parse_args(arguments)
    options.messages = options.messages or (60_000 if options.all else 12_000)
    options.rounds = options.rounds or (7 if options.all else 3)
    if options.messages < 100 or options.rounds < 1 or options.minutes <= 0:
        parser.error("100 messages or more, in one round or more")
    return options


def main(arguments: Sequence[str]) -> None:
    """
    Run what is wanted, and write down what came of it.

    @raise SystemExit: if a run fails.
    """
    options = parseOptions(arguments)
    if options.list:
        for case in cases(options.messages, options.minutes):
            print(f"{case.name:28}{'' if case.short else 'long set':10}{case.subject.title}")
        return
    chosen = choose(options)
    try:
        runs = rounds(chosen, options.rounds, lambda line: print(line, file=sys.stderr, flush=True))
    except Failed as error:
        raise SystemExit(str(error)) from None
    found = [summary(case, runs[case.name]) for case in chosen]
    day = datetime.date.today().isoformat()
    if options.json:
        print(json.dumps({"date": day, "commit": commit(), "machine": machine(), "cases": found}))
        return
    facts = [
        f"{day}, commit {commit()}, {options.rounds} rounds of {options.messages:,} messages: the median, "
        "and the least and the most.",
        machine(),
    ]
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "figures.md").write_text(report(found, facts))
    if not options.only:
        (options.results / "cpu.svg").write_text(
            picture(found, f"{day}; window 100, TLS on loopback, one core")
        )
    print(report(found, facts))


if __name__ == "__main__":
    main(sys.argv[1:])
