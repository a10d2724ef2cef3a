"""
The command C{fcmxmpp}: looks into a store, and puts right what went wrong.  It
works while a service is using the store, and while none is.

Exit status: 0 for done, 1 for nothing matched, refused or failed, 2 for wrong
options, 130 for Ctrl-C.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime, timezone
from functools import partial
from io import TextIOWrapper
from typing import IO, Any, TypeVar, cast

import click

from fcmxmpp import __version__
from fcmxmpp.errors import StoreUnavailable
from fcmxmpp.store import browse
from fcmxmpp.store.browse import INBOX, OUTBOX, Box, Done, Entry, Which
from fcmxmpp.store.database import explain, parseStore
from fcmxmpp.tables import printable, table


__all__ = ["main", "program"]

_T = TypeVar("_T", str | None, tuple[str, ...])

#: Rows of a table, unless told otherwise.
LIMIT = 100
#: The columns that may be cut.
_TEXTS = ("MESSAGE_ID", "FROM", "TO", "REASON")
#: From how many messages on it is worth a progress bar.
MANY = 1000
#: 9999-12-31 00:00 UTC: a day before the last, for all time zones.
_LAST = 253_402_214_400.0

# What is written.


def _when(seconds: float, zone: timezone | None = None) -> datetime:
    """
    A time that a store has.  A damaged one may have what no calendar has.
    """
    return datetime.fromtimestamp(min(max(seconds, 0.0), _LAST), zone)


def _iso(seconds: float | None) -> str | None:
    """
    A time for programs.
    """
    if seconds is None:
        return None
    return _when(seconds, timezone.utc).isoformat(timespec="milliseconds")[:-6] + "Z"


def _local(seconds: float | None, now: float) -> str:
    """
    A time for people: this year's without the year.
    """
    if seconds is None:
        return ""
    when = _when(seconds)
    return when.strftime("%m-%d %H:%M" if when.year == _when(now).year else "%Y-%m-%d")


def _record(box: Box, entry: Entry, withBody: bool) -> dict[str, Any]:
    """
    A message for programs.
    """
    isInbox = box is INBOX
    record: dict[str, Any] = {
        "number": entry.number,
        "state": entry.state,
        "message_id": entry.message_id,
        "from" if isInbox else "to": entry.peer,
        "arrived" if isInbox else "since": _iso(entry.since),
        "tries": entry.tries,
        "put_aside" if isInbox else "settled": _iso(entry.ended),
    }
    if not isInbox:
        record["reported"] = _iso(entry.reported)
    record["reason"] = entry.reason
    if not withBody:
        return record
    if entry.outcome is not None:
        record["outcome"] = json.loads(entry.outcome)
        # It is what "settled" says.
        record["outcome"].pop("at", None)
    wrong = browse.malformed(box, entry.body)
    if wrong is None:
        record["message"] = json.loads(entry.body)
    else:
        record["malformed"] = wrong
        record["text"] = entry.body.decode(errors="backslashreplace")
    return record


def _write(text: str) -> None:
    """
    One or more lines on standard output.
    """
    sys.stdout.write(text + "\n")


def _row(entry: Entry, now: float) -> list[str]:
    """
    A message for people.
    """
    peer = entry.peer
    if len(peer) > 20:
        peer = f"{peer[:8]}…{peer[-8:]}"
    tries = "" if entry.tries is None else str(entry.tries)
    ended = _local(entry.ended, now)
    since = _local(entry.since, now)
    return [str(entry.number), entry.state, entry.message_id, peer, since, tries, ended, entry.reason or ""]


def _many(count: int, noun: str) -> str:
    """
    So many of something.
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _complain(text: str) -> None:
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


# Opening a store.


class _Program(click.Group):
    """
    The command as a whole.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """
        Run it.
        """
        # Where not every character can be written, better its number than a traceback.
        cast(TextIOWrapper, sys.stdout).reconfigure(errors="backslashreplace")
        try:
            try:
                result = super().invoke(ctx)
            except (click.ClickException, click.exceptions.Exit):
                sys.stdout.flush()
                raise
            sys.stdout.flush()
        except (KeyboardInterrupt, click.Abort):
            # Also Ctrl-C, or the end of the input, where a question was asked.
            ctx.exit(130)
        return result


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
    try:
        with closing(browse.openStore(path)) as connection:
            yield connection, path
    except (sqlite3.Error, StoreUnavailable) as error:
        raise click.ClickException(printable(f"cannot use the store {path}: {explain(error)}")) from None


# Which messages.


#: Seconds in the units of a time span.
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def _duration(_: click.Context, option: click.Parameter, value: str | None) -> float | None:
    """
    A time span in seconds.
    """
    if value is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}[smhdw]", value) is None:
        raise click.BadParameter("say a number and a unit: 90s, 30m, 2h, 7d or 4w", param=option)
    return float(int(value[:-1]) * _UNITS[value[-1]])


def _text(_: click.Context, option: click.Parameter, value: _T) -> _T:
    """
    See to it that a text, or each of several, can be looked for: half a
    character is in no database.
    """
    try:
        "".join(value or "").encode()
    except UnicodeEncodeError:
        raise click.BadParameter("it is not UTF-8", param=option) from None
    return value


def _which(
    states: tuple[str, ...], reason: str | None, older_than: float | None, newer_than: float | None
) -> Which:
    """
    What the filters say.
    """
    now = time.time()
    return Which(
        states=states,
        reason=reason,
        before=None if older_than is None else now - older_than,
        after=None if newer_than is None else now - newer_than,
    )


def _states(box: Box, state: str) -> tuple[str, ...]:
    """
    What --state says.
    """
    return box.states if state == "all" else (state,)


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
            _complain(f"{name} means several messages: name one by its number, with --by number: {which}")
        else:
            _complain(f"{name}: there is no such message in the {box.table}")
    return list(found.values()), good


# The subcommands.


def _list(
    box: Box,
    store: str | None,
    state: str,
    limit: int | None,
    asJSON: bool,
    reason: str | None,
    older_than: float | None,
    newer_than: float | None,
) -> None:
    """
    fcmxmpp inbox|outbox list
    """
    which = _which(_states(box, state), reason, older_than, newer_than)
    with _opened(store) as (connection, _), browse.snapshot(connection):
        if asJSON:
            for entry in browse.entries(connection, box, which, limit=limit, newestFirst=True):
                _write(json.dumps(_record(box, entry, withBody=False)))
            return
        counts = browse.counts(connection, box, which)
        shown = list(browse.entries(connection, box, which, limit=limit or LIMIT, newestFirst=True))
    now = time.time()
    if box is INBOX:
        heads = ["NUMBER", "STATE", "MESSAGE_ID", "FROM", "ARRIVED", "TRIES", "PUT ASIDE", "REASON"]
    else:
        heads = ["NUMBER", "STATE", "MESSAGE_ID", "TO", "SINCE", "TRIES", "SETTLED", "REASON"]
    if shown:
        # Nothing is cut where it is not a terminal that it goes to.
        room = shutil.get_terminal_size((sys.maxsize, 0)).columns
        for line in table(heads, [_row(entry, now) for entry in shown], _TEXTS, room):
            _write(line)
    more = sum(counts.values()) - len(shown)
    if more > 0:
        _write(f"... and {more} older ones: --limit {more + len(shown)} shows all")
    summary = {each: f"{counts.get(each, 0)} {each}" for each in reversed(which.states)}
    if "dead" in summary:
        summary["dead"] = _many(counts.get("dead", 0), "dead letter")
    _write(", ".join(summary.values()))


def _show(box: Box, store: str | None, names: tuple[str, ...], by: str | None, asJSON: bool) -> None:
    """
    fcmxmpp inbox|outbox show
    """
    missing = False
    with _opened(store) as (connection, _), browse.snapshot(connection):
        found = browse.find(connection, box, names, by)
        for name in names:
            for entry in found[name]:
                record = _record(box, entry, withBody=True)
                if asJSON:
                    _write(json.dumps(record))
                else:
                    _write(printable(json.dumps(record, indent=2, ensure_ascii=False), keep="\n"))
            if not found[name]:
                missing = True
                _complain(f"{name}: there is no such message in the {box.table}")
    if missing:
        raise click.exceptions.Exit(1)


def _retry(
    box: Box,
    store: str | None,
    names: tuple[str, ...],
    by: str | None,
    everything: bool,
    reason: str | None,
    older_than: float | None,
    newer_than: float | None,
) -> None:
    """
    fcmxmpp inbox|outbox retry
    """
    _checkChoice(names, everything, reason, older_than, newer_than)
    good = True
    with _opened(store) as (connection, _):
        if everything:
            which = _which((box.failed,), reason, older_than, newer_than)
            chosen = browse.numbers(connection, box, which)
        else:
            found, good = _named(connection, box, names, by)
            chosen = [entry.number for entry in found]
        done = _inSteps("retrying", chosen, lambda some: browse.retry(connection, box, some, time.time()))
    _report("retried", done, everything, good)


def _drop(
    box: Box,
    store: str | None,
    names: tuple[str, ...],
    by: str | None,
    everything: bool,
    reason: str | None,
    older_than: float | None,
    newer_than: float | None,
    yes: bool,
    force: bool = False,
) -> None:
    """
    fcmxmpp inbox|outbox drop
    """
    _checkChoice(names, everything, reason, older_than, newer_than)
    mayAsk = sys.stdin.isatty()
    if everything and not yes and not mayAsk:
        raise click.UsageError("--all needs --yes where nobody can be asked")
    states = (box.failed, "unreported") if force else (box.failed,)
    good = True
    with _opened(store) as (connection, path), ExitStack() as held:
        if everything:
            chosen = browse.numbers(connection, box, _which(states, reason, older_than, newer_than))
            if chosen and not yes and not click.confirm(f"Drop {_many(len(chosen), 'message')}?", err=True):
                raise click.exceptions.Exit(1)
        else:
            found, good = _named(connection, box, names, by)
            chosen = [entry.number for entry in found]
            waiting = any(entry.state == "waiting" for entry in found)
            if waiting and held.enter_context(browse.unused(path)):
                states = (*states, "waiting")
        done = _inSteps("dropping", chosen, lambda some: browse.drop(connection, box, some, states))
    _report("dropped", done, everything, good)


def _checkChoice(names: tuple[str, ...], everything: bool, *filters: object) -> None:
    """
    Some by name, or all that the filters leave.
    """
    if everything and names:
        raise click.UsageError("name messages, or say --all")
    if not everything and not names:
        raise click.UsageError("which messages? Name them, or say --all")
    if not everything and any(each is not None for each in filters):
        raise click.UsageError("--reason, --older-than and --newer-than go with --all")


def _inSteps(what: str, chosen: Sequence[int], change: Any) -> Done:
    """
    Change messages, some at a time.
    """
    result = Done(0, [])
    with _progress(what, len(chosen)) as bar:
        for start in range(0, len(chosen), browse.AT_ONCE):
            some = chosen[start : start + browse.AT_ONCE]
            done: Done = change(some)
            result.count += done.count
            result.refused += done.refused
            bar.update(len(some))
    return result


def _report(what: str, done: Done, everything: bool, good: bool) -> None:
    """
    Tell what came of a change.
    """
    if everything:
        # As many lines as there are reasons, not as many as messages.
        for why, count in Counter(why for _, _, why in done.refused).items():
            _complain(f"{_many(count, 'message')} not {what}: {why}")
    else:
        good = good and not done.refused
        for number, message_id, why in done.refused:
            _complain(f"{number} ({message_id}) not {what}: {why}")
    _write(f"{_many(done.count, 'message')} {what}")
    if not good or not done.count:
        raise click.exceptions.Exit(1)


def _export(
    box: Box,
    store: str | None,
    output: str,
    state: str,
    reason: str | None,
    older_than: float | None,
    newer_than: float | None,
) -> None:
    """
    fcmxmpp inbox|outbox export
    """
    which = _which(_states(box, state), reason, older_than, newer_than)
    with _opened(store) as (connection, path), browse.snapshot(connection):
        total = sum(browse.counts(connection, box, which).values())
        found = browse.entries(connection, box, which, withBody=True)
        if output == "-":
            _exportTo(sys.stdout, box, found, total)
            return
        # Before it is resolved: there is no way back to what /dev/stdout may be.
        if os.path.exists(output) and not os.path.isfile(output):
            raise click.ClickException(f"not a file: {output}")
        output = os.path.realpath(output)
        if output in {os.path.realpath(path) + suffix for suffix in ("", "-wal", "-shm", ".lock")}:
            raise click.ClickException("that is the store itself: name another file")
        try:
            with _replacing(output) as file:
                _exportTo(file, box, found, total)
        except OSError as error:
            raise click.ClickException(f"cannot write {output}: {error.strerror or error}") from None
    _complain(f"{_many(total, 'message')} in {output}")


def _exportTo(file: IO[str], box: Box, found: Iterable[Entry], total: int) -> None:
    """
    Write messages, each in a line.
    """
    with _progress("exporting", total) as bar:
        for entry in found:
            file.write(json.dumps(_record(box, entry, withBody=True)) + "\n")
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


# The command line.


def _store() -> click.Option:
    """
    Which store.
    """
    return click.Option(
        ["--store"],
        metavar="sqlite:PATH",
        envvar="FCM_STORE",
        show_envvar=True,
        help="The store, as for twistd fcm-xmpp.",
    )


def _state(box: Box) -> click.Option:
    """
    In which state.
    """
    return click.Option(
        ["--state"],
        type=click.Choice([*box.states, "all"]),
        default="all",
        show_default=True,
        help="Only messages in this state.",
    )


def _filters() -> list[click.Parameter]:
    """
    Put aside when, and why.
    """
    return [
        click.Option(
            ["--reason"],
            callback=_text,
            metavar="TEXT",
            help="Only those with this text in their reason; small and capital letters are the same.",
        ),
        click.Option(
            ["--older-than"],
            callback=_duration,
            metavar="DURATION",
            help="Only those put aside or settled (if not yet: arrived or sent) longer ago than this: "
            "90s, 30m, 2h, 7d, 4w.",
        ),
        click.Option(
            ["--newer-than"],
            callback=_duration,
            metavar="DURATION",
            help="Only those less long ago than this.",
        ),
    ]


def _names(required: bool) -> list[click.Parameter]:
    """
    Messages by name.
    """
    return [
        click.Argument(
            ["names"], callback=_text, nargs=-1, required=required, metavar="NUMBER|MESSAGE_ID..."
        ),
        click.Option(
            ["--by"],
            type=click.Choice(["number", "message_id"]),
            help="What the names are. Without this, digits are tried as both.",
        ),
    ]


_JSON = "One JSON object a line, for programs: times in UTC, tokens in full."

_LIST = """List messages, newest first.

A table has the NUMBER that names a message, and when and why it was put aside
or failed. Tokens are shortened; what is in the messages is not shown. Without
--limit a table ends after 100 rows, and --json does not end before the last."""

_SHOW = """Show everything about messages, as JSON.

That is their contents and registration tokens, too. If a message_id is that of
several messages, all are shown."""

_EXPORT = """Write messages as JSON lines, oldest first.

Their contents and registration tokens are in there, too. All are as they were
when this began. While it runs, a service that uses the store keeps aside what
it writes: send a lot to a file, not to a pager."""

#: What is said of each box: itself, its retry, its drop.
_HELP = {
    "inbox": (
        """Messages from devices.

They are waiting to be handled, or have been put aside as dead letters.""",
        """Have dead letters handled again, as if they were new.

Each gets a new number at the end of the inbox, and all its tries. A service
that is running takes it from there. What cannot be decoded is refused: it never
will be.""",
        """Delete dead letters.

A message that is waiting can be named, too, but only while no service uses the
store. What was dropped is not handled if the connection server delivers it
again.""",
    ),
    "outbox": (
        """Messages to devices.

They are waiting to be sent; or have an outcome that the application has not been
told yet (unreported); or have failed. What was accepted and reported is not kept.""",
        """Send failed messages again, as if they were new.

Each gets a new number at the end of the outbox, and its time_to_live counts
from now. A service that is running takes it from there. Refused is what has not
been reported to the application yet, and what would be the second message
waiting with its message_id.""",
        """Delete failed messages.

A message that is waiting can be named, too, but only while no service uses the
store: it is not sent then, and nobody is told. An outcome that the application
has not been told yet is refused without --force.""",
    ),
}


def _examples(*lines: str) -> str:
    """
    The end of a help text.
    """
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def _group(box: Box) -> click.Group:
    """
    The subcommands for a box.
    """
    name, failed = box.table, box.failed
    reason = "ValueError" if box is INBOX else "Expired"
    about, retry, drop = _HELP[name]

    def command(
        verb: str, does: Callable[..., None], help: str, params: list[click.Parameter], *examples: str
    ) -> click.Command:
        """
        One of them.
        """
        return click.Command(
            verb,
            callback=partial(does, box),
            params=[*params, _store()],
            help=help,
            short_help=help.partition("\n")[0],
            epilog=_examples(*(f"fcmxmpp {name} {verb} {each}" for each in examples)),
        )

    everything = click.Option(["--all", "everything"], is_flag=True, help=f"All that are {failed}.")
    asJSON = click.Option(["--json", "asJSON"], is_flag=True, help=_JSON)
    dropping: list[click.Parameter] = [
        click.Option(["--yes"], is_flag=True, help="Do not ask whether --all is meant.")
    ]
    if box is OUTBOX:
        dropping.append(
            click.Option(["--force"], is_flag=True, help="Also outcomes that have not been reported.")
        )
    limit = click.Option(
        ["--limit"], type=click.IntRange(min=1), metavar="ROWS", help="No more rows than this."
    )
    output = click.Option(
        ["--output"],
        metavar="FILE",
        default="-",
        help="Write this file, which only you can read, instead of standard output.",
    )
    return click.Group(
        name,
        help=about,
        epilog=_examples(
            f"fcmxmpp {name} list --store sqlite:/var/lib/fcm-xmpp/store.db",
            f"fcmxmpp {name} show 17",
            f"fcmxmpp {name} retry --all --newer-than 2h",
        ),
        commands=[
            command(
                "list",
                _list,
                _LIST,
                [_state(box), limit, asJSON, *_filters()],
                f"--state {failed}",
                f"--state {failed} --reason {reason} --newer-than 2h",
                "--json | jq -r .message_id",
            ),
            command(
                "show", _show, _SHOW, [*_names(True), asJSON], "17", "m-1 m-2", "--json 17 | jq .message"
            ),
            command(
                "retry",
                _retry,
                retry,
                [*_names(False), everything, *_filters()],
                "17 18",
                f"--all --reason {reason}",
                "--all --older-than 30m --newer-than 7d",
            ),
            command(
                "drop",
                _drop,
                drop,
                [*_names(False), everything, *_filters(), *dropping],
                "17 18",
                "--all --yes --older-than 4w",
            ),
            command(
                "export",
                _export,
                _EXPORT,
                [output, _state(box), *_filters()],
                f"--state {failed} --output {failed}.jsonl",
                "| gzip > all.jsonl.gz",
            ),
        ],
    )


program = _Program(
    "fcmxmpp",
    help="""Look into the store of an fcm-xmpp service, and put right what went wrong.

This works while the service is running, and while it is not. The store is named
by --store at the end of each subcommand, or by FCM_STORE in the environment.""",
    epilog=_examples(
        "export FCM_STORE=sqlite:/var/lib/fcm-xmpp/store.db",
        "fcmxmpp inbox list",
        "fcmxmpp inbox retry --all --reason ValueError",
        "fcmxmpp outbox list --state failed",
        "fcmxmpp outbox --help",
    ),
    commands=[_group(INBOX), _group(OUTBOX)],
    context_settings={"help_option_names": ["-h", "--help"]},
)
click.version_option(__version__, prog_name="fcmxmpp")(program)


def main() -> None:
    """
    What the console script C{fcmxmpp} runs.
    """
    # Whoever has closed these has no questions, and wants no answers.
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115  # for as long as the process lives
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        _complain("Error: standard output is closed: send it to a file, or to /dev/null")
        sys.exit(1)
    try:
        program.main(prog_name="fcmxmpp")
    except OSError as error:
        # All else has been dealt with. click has done so where "| head" has seen enough.
        _complain(f"Error: standard output: {error.strerror or error}")
        # What is left to be written is not to be tried again at the very end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
