"""
C{fcmxmpp senders}: who may log in to a connection server.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click
import tomlkit

from fcmxmpp.files import replaceFile, why
from fcmxmpp.server.senders import hashKey, readSenders


__all__ = ["senders"]

_HINT = "a running connection server reads the file again at SIGHUP"


def _file() -> click.Option:
    """
    Which file.
    """
    return click.Option(
        ["--senders", "path"],
        metavar="FILE",
        required=True,
        envvar="FCM_SENDERS",
        show_envvar=True,
        help="The senders file, as for twistd fcm-connection-server.",
    )


@contextmanager
def _changing(path: str) -> Iterator[Any]:
    """
    The senders file as a document, which is written when nothing goes wrong:
    at once, or not at all.
    """
    # Where a link leads: the link is to stay one.
    target = Path(path).resolve()
    try:
        # Beside the file: that is replaced by another one.
        descriptor = os.open(f"{target}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            text = target.read_bytes().decode() if target.exists() else ""
            readSenders(text)
            document = tomlkit.parse(text)
            yield document
            result = tomlkit.dumps(document)
            # There are ways to write TOML that tomlkit changes for the worse.
            if readSenders(result) != readSenders(_plainly(document)):
                raise ValueError("it is written in a way that this cannot change: use tables [senders.ID]")
            _replace(target, result.encode())
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{path}: {why(error)}") from None


def _plainly(document: Any) -> str:
    """
    A document, written anew.
    """
    return tomlkit.dumps(document.unwrap())


def _replace(target: Path, content: bytes) -> None:
    """
    Write a file that only its owner can read, or who could before.
    """
    if not target.exists():
        replaceFile(target, content)
        return
    status = target.stat()
    replaceFile(target, content, status.st_mode & 0o777, (status.st_uid, status.st_gid))


def _senderID(_: click.Context, option: click.Parameter, value: str) -> str:
    """
    See to it that this is a sender ID.
    """
    if not (value.isascii() and value.isdigit() and len(value) <= 20):
        raise click.BadParameter("a sender ID has 1 to 20 decimal digits", param=option)
    return value


def _id() -> click.Argument:
    """
    Which sender.
    """
    return click.Argument(["sender_id"], callback=_senderID, metavar="SENDER_ID")


def _add(sender_id: str, path: str, key_file: str | None, name: str | None) -> None:
    """
    See C{fcmxmpp senders add}.
    """
    key = secrets.token_urlsafe(32)
    if key_file is not None:
        try:
            lines = Path(key_file).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise click.ClickException(f"{key_file}: {why(error)}") from None
        key = lines[0].strip() if lines else ""
    try:
        hashed = str(hashKey(key, secrets.token_bytes))
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    with _changing(path) as document:
        table = document.setdefault("senders", tomlkit.table(True))
        if sender_id not in table:
            table[sender_id] = tomlkit.table()
            table[sender_id]["added"] = datetime.now(timezone.utc).replace(microsecond=0)
        sender = table[sender_id]
        if name is not None:
            sender["name"] = name
        keys = sender.setdefault("keys", tomlkit.array())
        keys.append(hashed)
        count = len(keys)
    if key_file is None:
        click.echo(key)
    click.echo(f"Sender {sender_id} has {count} key{'s' if count > 1 else ''} now; {_HINT}.", err=True)


def _list(path: str, asJSON: bool) -> None:
    """
    See C{fcmxmpp senders list}.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        readSenders(text)
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{path}: {why(error)}") from None
    table: Any = tomlkit.parse(text).unwrap().get("senders", {})
    rows = [
        {
            "sender_id": senderID,
            "name": sender.get("name"),
            "keys": len(sender["keys"]),
            "added": sender["added"].isoformat() if hasattr(sender.get("added"), "isoformat") else None,
        }
        for senderID, sender in table.items()
    ]
    if asJSON:
        for row in rows:
            click.echo(json.dumps(row))
        return
    for row in rows:
        words = (f"{row['keys']} keys" if row["keys"] != 1 else "1 key", row["added"], row["name"])
        click.echo("  ".join([row["sender_id"], *filter(None, words)]))


def _remove(sender_id: str, path: str, number: int | None) -> None:
    """
    See C{fcmxmpp senders remove}.
    """
    with _changing(path) as document:
        table = document.get("senders", {})
        if sender_id not in table:
            raise click.ClickException(f"{path}: there is no sender {sender_id}")
        keys = table[sender_id]["keys"]
        if number is None:
            del table[sender_id]
            what = f"Sender {sender_id} is gone"
        elif number > len(keys):
            raise click.ClickException(f"{path}: sender {sender_id} has {len(keys)} keys, the oldest is 1")
        elif len(keys) == 1:
            raise click.ClickException(f"that is the only key of sender {sender_id}: remove the sender")
        else:
            del keys[number - 1]
            what = f"Sender {sender_id} has {len(keys)} keys left"
    click.echo(f"{what}; {_HINT}.", err=True)


def _command(
    name: str, does: Callable[..., None], help: str, params: list[click.Parameter], *examples: str
) -> click.Command:
    """
    A subcommand.
    """
    lines = "\n".join(f"  fcmxmpp senders {name} {each}" for each in examples)
    return click.Command(
        name,
        callback=does,
        params=[*params, _file()],
        help=help,
        short_help=help.partition("\n")[0],
        epilog=f"\b\nExamples:\n{lines}",
    )


senders = click.Group(
    "senders",
    help="""Sender IDs and their keys, for a connection server.

Keys are kept as salted digests: nobody can read them from the file.""",
    commands=[
        _command(
            "add",
            _add,
            """Add a sender, or another key for one.

The new key is printed, and cannot be printed again. To replace a key, add one,
give it to the app servers, and remove the old one.""",
            [
                _id(),
                click.Option(
                    ["--key-file"],
                    metavar="FILE",
                    help="Take the key in the first line of this file instead of a new one.",
                ),
                click.Option(["--name"], help="What people call the sender."),
            ],
            "123456789 --senders senders.toml >key.txt",
            "123456789 --key-file old-key.txt --senders senders.toml",
        ),
        _command(
            "list",
            _list,
            "List senders.",
            [click.Option(["--json", "asJSON"], is_flag=True, help="One JSON object a line.")],
            "--senders senders.toml",
        ),
        _command(
            "remove",
            _remove,
            """Remove a sender, or one of its keys.

At SIGHUP the connections of a sender that is gone are closed.""",
            [
                _id(),
                click.Option(
                    ["--key", "number"],
                    type=click.IntRange(min=1),
                    metavar="NUMBER",
                    help="Only this key, counted from the oldest, which is 1.",
                ),
            ],
            "123456789 --key 1 --senders senders.toml",
        ),
    ],
)
