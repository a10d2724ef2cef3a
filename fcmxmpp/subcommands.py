"""
What the subcommands of C{fcmxmpp} do: L{fcmxmpp.command} says how they are
called.

Each is given the box that it is about, and C{store}, what was given for
C{--store}.  All that can be wrong with the world is one line on standard error.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import IO, Any

import click
from msgspec import structs

from fcmxmpp.errors import StoreUnavailable
from fcmxmpp.records import TEXTS, heads, record, row
from fcmxmpp.store import browse
from fcmxmpp.store.browse import Box, Done, Entry, Which
from fcmxmpp.store.database import explain, parseStore
from fcmxmpp.tables import printable, table


__all__ = ["complain", "dropMessages", "exportMessages", "listMessages", "retryMessages", "showMessages"]

#: Rows of a table, unless told otherwise.
LIMIT = 100
#: From how many messages on it is worth a progress bar.
MANY = 1000


def listMessages(box: Box, store: str | None, which: Which, limit: int | None, asJSON: bool) -> None:
    """
    fcmxmpp inbox|outbox list
    """
    with _opened(store) as (connection, _), browse.snapshot(connection):
        if asJSON:
            for entry in browse.entries(connection, box, which, limit=limit, newestFirst=True):
                _write(json.dumps(record(box, entry, withBody=False)))
            return
        counts = browse.counts(connection, box, which)
        shown = list(browse.entries(connection, box, which, limit=limit or LIMIT, newestFirst=True))
    now = time.time()
    if shown:
        # Nothing is cut where it is not a terminal that it goes to.
        room = shutil.get_terminal_size((sys.maxsize, 0)).columns
        for line in table(heads(box), [row(entry, now) for entry in shown], TEXTS, room):
            _write(line)
    more = sum(counts.values()) - len(shown)
    if more > 0:
        _write(f"... and {more} older ones: --limit {more + len(shown)} shows all")
    summary = {each: f"{counts.get(each, 0)} {each}" for each in reversed(which.states)}
    if "dead" in summary:
        summary["dead"] = _many(counts.get("dead", 0), "dead letter")
    _write(", ".join(summary.values()))


def showMessages(box: Box, store: str | None, names: tuple[str, ...], by: str | None, asJSON: bool) -> None:
    """
    fcmxmpp inbox|outbox show
    """
    missing = False
    with _opened(store) as (connection, _), browse.snapshot(connection):
        found = browse.find(connection, box, names, by)
        for name in names:
            for entry in found[name]:
                shown = record(box, entry, withBody=True)
                if asJSON:
                    _write(json.dumps(shown))
                else:
                    _write(printable(json.dumps(shown, indent=2, ensure_ascii=False), keep="\n"))
            if not found[name]:
                missing = True
                complain(f"{name}: there is no such message in the {box.table}")
    if missing:
        raise click.exceptions.Exit(1)


def retryMessages(
    box: Box, store: str | None, which: Which, names: tuple[str, ...], by: str | None, everything: bool
) -> None:
    """
    fcmxmpp inbox|outbox retry
    """
    _checkChoice(names, everything, which)
    good = True
    with _opened(store) as (connection, _):
        if everything:
            chosen = browse.numbers(connection, box, which)
        else:
            found, good = _named(connection, box, names, by)
            chosen = [entry.number for entry in found]
        done = _inSteps(
            "retrying", "retried", chosen, lambda some: browse.retry(connection, box, some, time.time())
        )
    _report("retried", done, everything, good)


def dropMessages(
    box: Box,
    store: str | None,
    which: Which,
    names: tuple[str, ...],
    by: str | None,
    everything: bool,
    yes: bool,
    force: bool = False,
) -> None:
    """
    fcmxmpp inbox|outbox drop
    """
    _checkChoice(names, everything, which)
    mayAsk = sys.stdin.isatty()
    if everything and not yes and not mayAsk:
        raise click.UsageError("--all needs --yes where nobody can be asked")
    states = (box.failed, "unreported") if force else (box.failed,)
    good = True
    with _opened(store) as (connection, path), ExitStack() as held:
        if everything:
            chosen = browse.numbers(connection, box, structs.replace(which, states=states))
            if chosen and not yes and not click.confirm(f"Drop {_many(len(chosen), 'message')}?", err=True):
                raise click.exceptions.Exit(1)
        else:
            found, good = _named(connection, box, names, by)
            chosen = [entry.number for entry in found]
            waiting = any(entry.state == "waiting" for entry in found)
            if waiting and held.enter_context(browse.unused(path)):
                states = (*states, "waiting")
        done = _inSteps(
            "dropping", "dropped", chosen, lambda some: browse.drop(connection, box, some, states)
        )
    _report("dropped", done, everything, good)


def _checkChoice(names: tuple[str, ...], everything: bool, which: Which) -> None:
    """
    Some by name, or all that the filters leave.
    """
    if everything and names:
        raise click.UsageError("name messages, or say --all")
    if not everything and not names:
        raise click.UsageError("which messages? Name them, or say --all")
    if not everything and which != Which(states=which.states):
        raise click.UsageError("--reason, --older-than and --newer-than go with --all")


def _inSteps(doing: str, did: str, chosen: Sequence[int], change: Callable[[Sequence[int]], Done]) -> Done:
    """
    Change messages, some at a time.
    """
    result = Done(0, [])
    try:
        with _progress(doing, len(chosen)) as bar:
            for start in range(0, len(chosen), browse.AT_ONCE):
                some = chosen[start : start + browse.AT_ONCE]
                done = change(some)
                result.count += done.count
                result.refused += done.refused
                bar.update(len(some))
    except BaseException:
        # Ctrl-C included.
        if result.count:
            complain(f"ended early: {_many(result.count, 'message')} {did}")
        raise
    return result


def _report(what: str, done: Done, everything: bool, good: bool) -> None:
    """
    Tell what came of a change.
    """
    if everything:
        # As many lines as there are reasons, not as many as messages.
        for why, count in Counter(why for _, _, why in done.refused).items():
            complain(f"{_many(count, 'message')} not {what}: {why}")
    else:
        good = good and not done.refused
        for number, message_id, why in done.refused:
            complain(f"{number} ({message_id}) not {what}: {why}")
    _write(f"{_many(done.count, 'message')} {what}")
    if not good or not done.count:
        raise click.exceptions.Exit(1)


def exportMessages(box: Box, store: str | None, which: Which, output: str) -> None:
    """
    fcmxmpp inbox|outbox export
    """
    with _opened(store) as (connection, path), browse.snapshot(connection):
        total = sum(browse.counts(connection, box, which).values())
        found = browse.entries(connection, box, which, withBody=True)
        if output == "-":
            _exportTo(sys.stdout, box, found, total)
            return
        # Before it is resolved: there is no way back to what /dev/stdout may be.
        if os.path.exists(output) and not os.path.isfile(output):
            raise click.ClickException(f"not a file: {output}")
        try:
            output = os.path.realpath(output)
            if output in {os.path.realpath(path) + suffix for suffix in ("", "-wal", "-shm", ".lock")}:
                raise click.ClickException("that is the store itself: name another file")
            with _replacing(output) as file:
                _exportTo(file, box, found, total)
        except OSError as error:
            raise click.ClickException(f"cannot write {output}: {error.strerror or error}") from None
    complain(f"{_many(total, 'message')} in {output}")


def _exportTo(file: IO[str], box: Box, found: Iterable[Entry], total: int) -> None:
    """
    Write messages, each in a line.
    """
    with _progress("exporting", total) as bar:
        for entry in found:
            file.write(json.dumps(record(box, entry, withBody=True)) + "\n")
            bar.update(1)


@contextmanager
def _replacing(path: str) -> Iterator[IO[str]]:
    """
    A file that is there as a whole, or not at all; for its owner's eyes.
    """
    # NamedTemporaryFile makes it 0600.
    with tempfile.NamedTemporaryFile(
        "w", dir=os.path.dirname(path), prefix=".fcmxmpp-", encoding="ascii", delete=False
    ) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.rename(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


# Which store, and which messages.


@contextmanager
def _opened(description: str | None) -> Iterator[tuple[sqlite3.Connection, str]]:
    """
    The store that was named, and its path.
    """
    if not description:
        raise click.ClickException("which store? Give --store sqlite:PATH, or set FCM_STORE")
    try:
        path = parseStore(description)
    except ValueError as error:
        raise click.ClickException(f"{error}: see --store and FCM_STORE") from None
    except OSError as error:
        # Relative to a directory that is gone.
        raise click.ClickException(f"cannot use the store {description}: {error.strerror}") from None
    try:
        with closing(browse.openStore(path)) as connection:
            yield connection, path
    except (sqlite3.Error, StoreUnavailable) as error:
        raise click.ClickException(printable(f"cannot use the store {path}: {explain(error)}")) from None


def _named(
    connection: sqlite3.Connection, box: Box, names: Iterable[str], by: str | None
) -> tuple[list[Entry], bool]:
    """
    The one message that each name means.

    @return: them, and whether each name means one; what is wrong is told.
    """
    found: dict[int, Entry] = {}
    good = True
    for name, meant in browse.find(connection, box, names, by).items():
        if len(meant) == 1:
            found[meant[0].number] = meant[0]
            continue
        good = False
        if meant:
            which = ", ".join(str(entry.number) for entry in meant)
            complain(f"{name} means several messages: name one by its number, with --by number: {which}")
        else:
            complain(f"{name}: there is no such message in the {box.table}")
    return list(found.values()), good


# What is written, besides messages.


def _write(text: str) -> None:
    """
    One or more lines on standard output.
    """
    sys.stdout.write(text + "\n")


def _many(count: int, noun: str) -> str:
    """
    So many of something.
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def complain(text: str) -> None:
    """
    One line on standard error.
    """
    click.echo(printable(text), err=True)


@contextmanager
def _progress(what: str, length: int) -> Iterator[Any]:
    """
    A progress bar on standard error, if that is a terminal and it will take a
    while.
    """
    hidden = length < MANY or not sys.stderr.isatty()
    with click.progressbar(
        length=length, label=what, file=sys.stderr, hidden=hidden, update_min_steps=100
    ) as bar:
        yield bar
