"""
What the options of both programs have in common.

A setting comes from its option, else from the environment, else from the
configuration file, else it has a default.  Whatever is wrong is told in one
line, with the exit status 1.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from twisted.python import usage

from fcmxmpp import __version__
from fcmxmpp.files import why
from fcmxmpp.store.database import parseStore


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


__all__ = ["SettingsOptions", "die", "firstLine"]


class SettingsOptions(usage.Options):
    """
    Options that may stand in the environment and in a file, too.

    @cvar program: the name of the program that they are for.
    """

    program = ""

    optParameters: list[list[Any]]
    optFlags: list[list[Any]]

    #: Where to look for what no option says.
    environ: Mapping[str, str] = os.environ

    #: What is in the configuration file.
    _file: dict[str, str]

    def parseOptions(self, options: Any = None) -> None:
        """
        Read the options.

        @raise SystemExit: if anything is wrong with them.  A C{UsageError}
            would have twistd print its whole manual.
        """
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            die(str(error), self.program)

    def opt_version(self) -> NoReturn:
        """
        Display the version and exit.
        """
        print(f"fcmxmpp {__version__}")  # noqa: T201  # what the option is for
        raise SystemExit(0)

    def parseArgs(self, *arguments: str) -> None:
        """
        There are only options.
        """
        if arguments:
            raise usage.UsageError(
                f"unexpected argument {arguments[0]!r}: there are only options, see --help"
            )

    def _store(self) -> str | None:
        """
        The file of the store.
        """
        description = self._value("store", "FCM_STORE")
        if description is None:
            return None
        try:
            return parseStore(description)
        except ValueError as error:
            raise usage.UsageError(f"--store: {error}") from None

    def _token(self, name: str, what: str) -> str | None:
        """
        The token in the file that a setting names.
        """
        path = self._value(name)
        if path is None:
            return None
        token = firstLine(path, what)
        if not re.fullmatch("[!-~]+", token):
            raise usage.UsageError(f"the {what} may only have ASCII letters, digits and signs: {path}")
        return token

    def _readConfig(self, path: str | None) -> dict[str, str]:
        """
        Read the configuration file.
        """
        if path is None:
            return {}
        try:
            with open(path, "rb") as file:
                values = tomllib.load(file)
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise usage.UsageError(f"cannot read --config: {why(error)}: {path}") from None
        known = {name for name, *_ in self.optParameters if name != "config"}
        flags = {name for name, *_ in self.optFlags}
        settings = {}
        for name, value in values.items():
            if name not in known | flags:
                raise usage.UsageError(f"unknown setting {name!r} in {path}")
            if name in flags and not isinstance(value, bool):
                raise usage.UsageError(f"{name} has to be true or false in {path}")
            if name in known and (isinstance(value, bool) or not isinstance(value, (str, int, float))):
                raise usage.UsageError(f"{name} has to be a string or a number in {path}")
            settings[name] = str(value)
        return settings

    def _value(self, name: str, variable: str | None = None) -> str | None:
        """
        A setting: option, environment, file.
        """
        if self[name] is not None:
            return str(self[name])
        if variable is not None and self.environ.get(variable):
            return self.environ[variable]
        return self._file.get(name)

    def _flag(self, name: str) -> bool:
        """
        A setting that is on or off.
        """
        return bool(self[name]) or self._file.get(name) == "True"

    def _number(self, name: str, default: float) -> float:
        """
        A setting that is a number.
        """
        value = self._value(name)
        if value is None:
            return default
        try:
            number = float(value)
        except ValueError:
            raise usage.UsageError(f"--{name} has to be a number") from None
        if not number < float("inf"):
            raise usage.UsageError(f"--{name} has to be a number")
        return number

    def _whole(self, name: str, default: int, most: int | None = None) -> int:
        """
        A setting that is a whole number, 1 or more.
        """
        number = self._number(name, default)
        if number < 1 or number != int(number) or (most is not None and number > most):
            raise usage.UsageError(
                f"--{name} has to be a whole number, 1 {f'to {most}' if most else 'or more'}"
            )
        return int(number)

    def _isDaemon(self) -> bool:
        """
        Whether twistd puts the process into the background.
        """
        # "twist" and Windows know no daemon.
        parent: Any = self.parent or {}
        return "nodaemon" in parent and not (parent["nodaemon"] or parent.get("debug"))

    def _chooseLog(self, log: str) -> bool:
        """
        Keep the log off the standard output, which is for what the program has
        to say: where twistd would write it there, have it on standard error.

        @param log: which log that is, of L{fcmxmpp.tap}.
        @return: whether the log goes where nobody looks at it right now.
        """
        parent = self.parent
        if parent is None or self._isDaemon():
            return False
        if parent.get("logger") or parent.get("logfile") or parent.get("syslog"):
            return True
        parent["logger"] = f"fcmxmpp.tap.{log}"
        return False


def die(message: str, program: str = "fcm-xmpp") -> NoReturn:
    """
    End with one line and the exit status 1.
    """
    raise SystemExit(f"twistd {program}: " + " ".join(message.split()))


def firstLine(path: str, what: str) -> str:
    """
    What is in the first line of a file.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise usage.UsageError(f"cannot read the {what}: {why(error)}: {path}") from None
    if not lines or not lines[0].strip():
        raise usage.UsageError(f"the first line of the {what} file is empty: {path}")
    return lines[0].strip()
