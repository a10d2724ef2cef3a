"""
Whether anything is lost when processes are killed.

Runs an app server and a connection server, each as a process of its own with a
store in SQLite (C{crash_processes.py}), over TLS on loopback, with messages in
both directions all the time.  Kills them with SIGKILL, again and again, at
moments that a seed chooses, and starts them again at once on the same stores.
In the end it has them be quiet, waits until all is settled, and compares what
they have noted; prints one line of JSON; the exit status is 1 unless all that
was promised was kept.

See README.md for what the figures mean.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from crash_checks import compare, failures, holds, left, lines
from OpenSSL.crypto import FILETYPE_PEM
from upstream import selfSigned


#: Who is killed, in turn: an app server that starts anew does not back off.
TURNS = ("server", "app", "server", "app", "both")
#: Seconds of running until a process is killed, at least and at most.
GAP = (0.2, 2.0)
#: One kill in so many comes while a process starts, after so many seconds at
#: most.
EARLY, SOON = 5, 1.0
#: Seconds between looks.
LOOK = 0.05


class Broken(Exception):
    """
    The run did not come to its end.
    """


class Process:
    """
    One of the two processes, in all its lives.

    @ivar name: C{"app"} or C{"server"}.
    """

    def __init__(self, name: str, directory: Path, settings: dict[str, Any]) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        self._settings = settings
        self._lives = 0
        self._running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """
        Begin a life.
        """
        self._lives += 1
        settings = {**self._settings, "life": f"{self.name}-{self._lives}"}
        command = [sys.executable, str(Path(__file__).with_name("crash_processes.py")), self.name]
        with self.log.open("ab") as log:
            self._running = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "CRASH": json.dumps(settings)},
            )

    def check(self) -> None:
        """
        See to it that it is alive.
        """
        assert self._running is not None
        status = self._running.poll()
        if status is not None:
            raise Broken(f"the {self.name} process ended by itself, with status {status}")

    def kill(self) -> None:
        """
        End it at once.
        """
        self.check()
        self._end(signal.SIGKILL, -signal.SIGKILL)

    def stop(self, patience: float) -> None:
        """
        Have it end in order.
        """
        self.check()
        self._end(signal.SIGTERM, 0, patience)

    def _end(self, signalNumber: int, expected: int, patience: float = 60.0) -> None:
        """
        Send a signal, and wait for the end.
        """
        assert self._running is not None
        self._running.send_signal(signalNumber)
        try:
            status = self._running.wait(patience)
        except subprocess.TimeoutExpired:
            raise Broken(f"the {self.name} process does not end") from None
        if status != expected:
            raise Broken(f"the {self.name} process ended with status {status}")

    def abandon(self) -> None:
        """
        See to it that it is gone.
        """
        if self._running is not None and self._running.poll() is None:
            self._running.kill()
            self._running.wait()


class Crash:
    """
    One run.

    @ivar kills: how often who was killed.
    """

    def __init__(self, options: argparse.Namespace, directory: Path) -> None:
        self._options = options
        self._directory = directory
        self._random = random.Random(options.seed)
        certificate = selfSigned()
        trustRoots = directory / "certs"
        trustRoots.mkdir()
        (trustRoots / "server.pem").write_bytes(certificate.dumpPEM())
        both = directory / "certificate-and-key.pem"
        both.touch(0o600)
        both.write_bytes(certificate.privateKey.dump(FILETYPE_PEM) + certificate.dumpPEM())
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        settings = {
            "directory": str(directory),
            "certificate": str(both),
            "port": port,
            "endpoint": f"tls:localhost:{port}:trustRoots={trustRoots}",
            "senderID": "123456789",
            "serverKey": "crash-server-key",
        }
        self.processes = [Process(name, directory, settings) for name in ("server", "app")]
        self.kills = Counter(dict.fromkeys([*TURNS, "early"], 0))

    def run(self) -> dict[str, Any]:
        """
        Do it.

        @return: the figures.
        @raise Broken: if that is impossible.
        """
        begin = time.monotonic()
        try:
            before = self._logins()
            for process in self.processes:
                process.start()
            for number in range(self._options.kills):
                self._wait(number, before)
                before = self._kill(TURNS[number % len(TURNS)])
            self._up(before)
            killing = time.monotonic() - begin
            (self._directory / "quiet").touch()
            self._settle()
            # The app server first: its last ACKs go to the other one.
            for process in reversed(self.processes):
                process.stop(self._options.deadline)
        finally:
            for process in self.processes:
                process.abandon()
        return {
            "seed": self._options.seed,
            "kills": dict(self.kills),
            **compare(self._directory),
            "left_in_stores": left(self._directory),
            "failures_logged": failures(self._directory),
            "killing_seconds": round(killing, 1),
            "seconds": round(time.monotonic() - begin, 1),
        }

    def _logins(self) -> int:
        """
        How often an app server has logged in.
        """
        return len(lines(self._directory, "logins"))

    def _up(self, before: int) -> None:
        """
        Wait until messages go to and fro again.

        @param before: how many logins there were before.
        """
        deadline = time.monotonic() + self._options.deadline
        while self._logins() <= before:
            self._look(deadline, "the app server does not log in")

    def _look(self, deadline: float, otherwise: str) -> None:
        """
        Wait a little.
        """
        for process in self.processes:
            process.check()
        if time.monotonic() > deadline:
            raise Broken(otherwise)
        time.sleep(LOOK)

    def _wait(self, number: int, before: int) -> None:
        """
        Wait until it is time for the next kill.
        """
        if number % EARLY == EARLY - 1:
            self.kills["early"] += 1
            time.sleep(self._random.uniform(0.0, SOON))
        else:
            self._up(before)
            time.sleep(self._random.uniform(*GAP))

    def _kill(self, who: str) -> int:
        """
        Kill one of them, or both, and start it again.

        @return: how many logins there were before.
        """
        self.kills[who] += 1
        chosen = [process for process in self.processes if who in (process.name, "both")]
        for process in chosen:
            process.kill()
        before = self._logins()
        for process in chosen:
            process.start()
        return before

    def _settle(self) -> None:
        """
        Wait until everything has come to its end; or, if something does not,
        until the time is over: the figures will tell.
        """
        deadline = time.monotonic() + self._options.deadline
        while time.monotonic() < deadline:
            self._look(deadline + 60.0, "")
            if len(lines(self._directory, "silent")) < len(self.processes):
                continue
            now = compare(self._directory)
            if now["upstream_lost"] == now["downstream_lost"] == 0 and not left(self._directory):
                return
            time.sleep(0.5)


def parseOptions(arguments: list[str]) -> argparse.Namespace:
    """
    Read the command line.
    """
    parser = argparse.ArgumentParser(description="Sees whether anything is lost when processes are killed.")
    add = parser.add_argument
    add("--kills", type=int, default=50, help="how many moments to kill at [%(default)s]")
    add("--seed", type=int, default=1, help="chooses the moments [%(default)s]")
    add("--keep", type=Path, metavar="DIR", help="an empty directory for the files, which stay there")
    add("--deadline", type=float, default=120.0, help="seconds for each start and for the end [%(default)s]")
    options = parser.parse_args(arguments)
    if options.kills < 1:
        parser.error("there has to be a kill")
    return options


def main(options: argparse.Namespace) -> int:
    """
    Do one run, and print what came of it.

    @return: the exit status.
    """
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
        if any(options.keep.iterdir()):
            print(f"{options.keep} is not empty", file=sys.stderr)
            return 1
        return _runIn(options.keep, options)
    with tempfile.TemporaryDirectory(prefix="fcmxmpp-crash-") as directory:
        return _runIn(Path(directory), options)


def _runIn(directory: Path, options: argparse.Namespace) -> int:
    """
    See L{main}.
    """
    try:
        figures = Crash(options, directory).run()
    except Broken as error:
        print(error, file=sys.stderr)
    else:
        print(json.dumps(figures))
        if holds(figures):
            return 0
    for log in sorted(directory.glob("*.log")):
        print(f"the end of {log.name}:", *log.read_text().splitlines()[-20:], sep="\n", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(parseOptions(sys.argv[1:])))
