"""
What C{crash.py} checks, by what the processes have noted in their files.
"""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any


#: What is still to be done in a store.
LEFT = {
    "app.sqlite": (
        "SELECT count(*) FROM inbox",
        "SELECT count(*) FROM outbox WHERE reported IS NULL",
    ),
    "server.sqlite": ("SELECT count(*) FROM entrusted",),
}


def lines(directory: Path, name: str) -> list[tuple[str, ...]]:
    """
    What the processes have noted in one of their files: the life, and then the
    rest.
    """
    path = directory / name
    return [tuple(line.split()) for line in path.read_text().splitlines()] if path.exists() else []


def byLife(noted: list[tuple[str, ...]], width: int) -> dict[tuple[str, ...], Counter[str]]:
    """
    How often each thing was noted, in which life.

    @param width: how many fields after the life name the thing.
    """
    found: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for life, *fields in noted:
        found[tuple(fields[:width])][life] += 1
    return found


def left(directory: Path) -> int:
    """
    How much is left in the stores.
    """
    total = 0
    for name, statements in LEFT.items():
        with closing(sqlite3.connect(directory / name)) as connection:
            total += sum(connection.execute(statement).fetchone()[0] for statement in statements)
    return total


def failures(directory: Path) -> int:
    """
    How many tracebacks are in the logs.
    """
    return sum(log.read_text().count("Traceback (most recent call last)") for log in directory.glob("*.log"))


def compare(directory: Path) -> dict[str, Any]:
    """
    Compare what was promised with what came of it.
    """
    stored = {line[1:] for line in lines(directory, "stored")}
    handled = byLife(lines(directory, "handled"), 2)
    sent = {line[1:2] for line in lines(directory, "sent")}
    outcomes = byLife(lines(directory, "outcomes"), 1)
    results: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for _, message_id, result in lines(directory, "outcomes"):
        results[(message_id,)].add(result)
    accepted = {message_id for message_id, known in results.items() if "accepted" in known}
    received = Counter(line[2:3] for line in lines(directory, "received"))
    return {
        "upstream_stored": len(stored),
        "upstream_handled": len(handled),
        "upstream_handled_twice": sum(len(lives) - 1 for lives in handled.values()),
        "upstream_sent_again": len(lines(directory, "again")),
        "upstream_failed": len(lines(directory, "failed")),
        "upstream_lost": len(stored - handled.keys()),
        "upstream_handled_twice_in_one_life": sum(lives.total() - len(lives) for lives in handled.values()),
        "downstream_stored": len(sent),
        "downstream_outcomes": len(outcomes),
        "downstream_refused": len(outcomes) - len(accepted),
        "downstream_reported_twice": sum(len(lives) - 1 for lives in outcomes.values()),
        "downstream_received_again": received.total() - len(received),
        "downstream_not_sent": len(lines(directory, "unsent")),
        "downstream_lost": len(sent - outcomes.keys()),
        "downstream_reported_twice_in_one_life": sum(
            lives.total() - len(lives) for lives in outcomes.values()
        ),
        "downstream_outcomes_differ": sum(len(known) > 1 for known in results.values()),
        "downstream_never_received": len(accepted - received.keys()),
    }


#: What has to be 0.
WRONG = (
    "upstream_lost",
    "upstream_handled_twice_in_one_life",
    "downstream_lost",
    "downstream_reported_twice_in_one_life",
    "downstream_outcomes_differ",
    "downstream_never_received",
    "left_in_stores",
    "failures_logged",
)


def holds(figures: dict[str, Any]) -> bool:
    """
    Whether all that was promised was kept.
    """
    return not any(figures[name] for name in WRONG)
