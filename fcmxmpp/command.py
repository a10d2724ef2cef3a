"""
The command C{fcmxmpp}: looks into a store, and puts right what went wrong, while
a service is using the store, and while none is; says who may log in to a
connection server; is a device.

Exit status: 0 for done, 1 for nothing matched, refused or failed, 2 for wrong
options, 130 for Ctrl-C, and likewise for other signals.

This is how it is called; L{fcmxmpp.subcommands} is what it does with stores,
L{fcmxmpp.senderscommand} and L{fcmxmpp.devicecommand} do the rest.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from io import TextIOWrapper
from typing import Any, TypeVar, cast

import click

from fcmxmpp import __version__
from fcmxmpp.senderscommand import senders
from fcmxmpp.store.browse import INBOX, OUTBOX, Box, Which
from fcmxmpp.subcommands import (
    complain,
    dropMessages,
    exportMessages,
    listMessages,
    retryMessages,
    showMessages,
)


__all__ = ["main", "program"]

_T = TypeVar("_T", str | None, tuple[str, ...])

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


def _choosing(box: Box, does: Callable[..., None]) -> Callable[..., None]:
    """
    Have a subcommand get its filters as one L{Which}.
    """

    def run(
        reason: str | None,
        older_than: float | None,
        newer_than: float | None,
        state: str = box.failed,
        **others: Any,
    ) -> None:
        now = time.time()
        which = Which(
            states=box.states if state == "all" else (state,),
            reason=reason,
            before=None if older_than is None else now - older_than,
            after=None if newer_than is None else now - newer_than,
        )
        does(box, which=which, **others)

    return run


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
            callback=does,
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
                _choosing(box, listMessages),
                _LIST,
                [_state(box), limit, asJSON, *_filters()],
                f"--state {failed}",
                f"--state {failed} --reason {reason} --newer-than 2h",
                "--json | jq -r .message_id",
            ),
            command(
                "show",
                partial(showMessages, box),
                _SHOW,
                [*_names(True), asJSON],
                "17",
                "m-1 m-2",
                "--json 17 | jq .message",
            ),
            command(
                "retry",
                _choosing(box, retryMessages),
                retry,
                [*_names(False), everything, *_filters()],
                "17 18",
                f"--all --reason {reason}",
                "--all --older-than 30m --newer-than 7d",
            ),
            command(
                "drop",
                _choosing(box, dropMessages),
                drop,
                [*_names(False), everything, *_filters(), *dropping],
                "17 18",
                "--all --yes --older-than 4w",
            ),
            command(
                "export",
                _choosing(box, exportMessages),
                _EXPORT,
                [output, _state(box), *_filters()],
                f"--state {failed} --output {failed}.jsonl",
                "| gzip > all.jsonl.gz",
            ),
        ],
    )


class _Program(click.Group):
    """
    The command as a whole.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """
        The names of the subcommands.
        """
        return sorted([*super().list_commands(ctx), "device"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """
        A subcommand.
        """
        if cmd_name == "device":
            # Who looks into a store has no need of HTTP and TLS, and would wait for it.
            from fcmxmpp.devicecommand import device

            return device
        return super().get_command(ctx, cmd_name)

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


program = _Program(
    "fcmxmpp",
    help="""Look into the store of an fcm-xmpp service, and put right what went wrong; say
who may log in to a connection server; be a device.

Looking into a store works while the service is running, and while it is not. It
is named by --store at the end of each subcommand, or by FCM_STORE in the
environment.""",
    epilog=_examples(
        "export FCM_STORE=sqlite:/var/lib/fcm-xmpp/store.db",
        "fcmxmpp inbox list",
        "fcmxmpp inbox retry --all --reason ValueError",
        "fcmxmpp outbox list --state failed",
        "fcmxmpp outbox --help",
    ),
    commands=[_group(INBOX), _group(OUTBOX), senders],
    context_settings={"help_option_names": ["-h", "--help"]},
)
click.version_option(__version__, prog_name="fcmxmpp")(program)


def _terminated(number: int, _: object) -> None:
    """
    End as by Ctrl-C, instead of at once: a file that is half written is full of
    tokens.
    """
    sys.exit(128 + number)


def main() -> None:
    """
    What the console script C{fcmxmpp} runs.
    """
    # Whoever has closed these has no questions, and wants no answers.
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115  # for as long as the process lives
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        complain("Error: standard output is closed: send it to a file, or to /dev/null")
        sys.exit(1)
    for number in (signal.SIGHUP, signal.SIGTERM):
        # Not what nohup has said is to be ignored.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _terminated)
    try:
        program.main(prog_name="fcmxmpp")
    except OSError as error:
        # All else has been dealt with. click has done so where "| head" has seen enough.
        complain(f"Error: standard output: {error.strerror or error}")
        # What is left to be written is not to be tried again at the very end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
