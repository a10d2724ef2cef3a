"""
One run of the load generator against one subject.

Builds what is written in C, starts the generator and the subject as processes
of their own, reads the meters, and checks that every message was answered.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from select import select
from typing import Any

from figures import Histogram
from OpenSSL.crypto import FILETYPE_PEM
from upstream import SENDER, selfSigned


HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build" / "bench"
#: Bytes of a downstream stanza beside the text in it.
BARE = 122
#: How many messages a downstream subject sends beyond what is measured, so
#: that it is as busy at the end as before.
MORE = 300

_INSTALL = "apt-get install gcc libssl-dev, or the like"


class Failed(Exception):
    """
    A run did not come to its end, or something was lost or doubled in it.
    """


@dataclass(frozen=True)
class Load:
    """
    What a subject has to do.

    @ivar up: how many messages it gets, those of the warm-up included.
    @ivar down: how many it sends.
    @ivar warm: after how many of them measuring begins.
    @ivar size: bytes of a stanza (before quotes are written as C{&quot;}).
    @ivar window: how many may be unanswered on a link.
    @ivar rate: messages a second in the open loop; 0 is the closed loop.
    @ivar apart: whether each stanza is a TLS record of its own.
    @ivar echoed: whether it sends an answer to each message, so that both have
        to end.
    """

    up: int = 0
    down: int = 0
    warm: int = 0
    size: int = 300
    window: int = 100
    links: int = 1
    rate: float = 0.0
    quoted: bool = False
    apart: bool = False
    echoed: bool = False

    def arguments(self) -> list[str]:
        """
        The same for the generator.
        """
        values = {name: getattr(self, name) for name in ("up", "down", "warm", "size", "window", "links")}
        flags = {
            "quoted": self.quoted,
            "coalesced": not self.apart,
            "end-at-first": bool(self.up and self.down and not self.echoed),
        }
        return [
            *(f"--{name}={value}" for name, value in values.items()),
            *([f"--rate={self.rate}"] if self.rate else []),
            *(f"--{name}" for name, on in flags.items() if on),
        ]


@dataclass(frozen=True)
class Place:
    """
    Where a subject runs, and what it connects to.
    """

    directory: Path
    port: int
    load: Load

    @property
    def authorities(self) -> Path:
        """
        A directory with the generator's certificate.
        """
        return self.directory / "authorities"

    @property
    def key(self) -> Path:
        """
        A file with a server key.
        """
        return self.directory / "key"

    @property
    def report(self) -> Path:
        """
        The file that a subject writes when all that it sent is answered.
        """
        return self.directory / "report"


#: The command of a subject.
Command = Callable[[Place], Sequence[str]]


@dataclass(frozen=True)
class Subject:
    """
    What is measured.

    @ivar name: on the command line.
    @ivar title: in tables and pictures.
    @ivar kind: C{"ours"}, C{"floor"} or C{"other"}.
    @ivar missing: says why it cannot run here; None if it can.
    @ivar reports: whether it tells what became of what it sent.
    @ivar settings: more for L{subjects.common.orders}.
    """

    name: str
    title: str
    command: Command
    kind: str = "ours"
    missing: Callable[[], str | None] = lambda: None
    reports: bool = True
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Figures:
    """
    What came of one run.

    @ivar cpu: of the subject for one message, in microseconds.
    @ivar generatorBusy: the share of the time in which the generator worked.
    @ivar memory: the most that was resident, in MB.
    @ivar waits: seconds from sending to the answer.
    @ivar pause: the longest time without an answer while there was one to
        come, in seconds.
    """

    cpu: float
    rate: float
    generatorBusy: float
    memory: float
    waits: Histogram
    pause: float


@cache
def build(name: str) -> Path:
    """
    Compile one of our programs in C, if that has not been done.

    @raise SystemExit: if that cannot be done here.
    """
    source, program = HERE / f"{name}.c", BUILD / name
    if program.exists() and program.stat().st_mtime > source.stat().st_mtime:
        return program
    compiler = shlex.split(os.environ.get("CC", "gcc"))
    if shutil.which(compiler[0]) is None:
        raise SystemExit(
            f"{compiler[0]} is missing, which builds {source.name}: apt-get install gcc libssl-dev"
        )
    BUILD.mkdir(parents=True, exist_ok=True)
    command = [*compiler, "-O2", "-Wall", "-Wextra", "-o", str(program), str(source), "-lssl", "-lcrypto"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and "openssl/" in done.stderr:
        raise SystemExit(
            "OpenSSL's headers are missing, which the load generator needs: apt-get install libssl-dev"
        )
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)}\n{done.stderr}")
    return program


@cache
def certificate() -> tuple[bytes, bytes]:
    """
    The generator's certificate and its key; one for all runs.
    """
    made = selfSigned()
    return made.dumpPEM(), made.privateKey.dump(FILETYPE_PEM)


def memoryOf(pid: int) -> float:
    """
    The most memory that a process has had resident, in MB.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measure(subject: Subject, load: Load, deadline: float = 120.0) -> Figures:
    """
    Do one run.

    @raise Failed: if it does not come to its end, or something was lost or
        doubled.
    """
    with tempfile.TemporaryDirectory(prefix="fcmxmpp-bench-") as name, ExitStack() as stack:
        directory = Path(name)
        (directory / "authorities").mkdir()
        public, private = certificate()
        (directory / "authorities" / "generator.pem").write_bytes(public)
        (directory / "private").write_bytes(private)
        (directory / "key").write_text("benchmark-server-key\n")
        generator = stack.enter_context(
            subprocess.Popen(
                [
                    str(build("generator")),
                    f"--certificate={directory / 'authorities' / 'generator.pem'}",
                    f"--key={directory / 'private'}",
                    *load.arguments(),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stack.enter_context((directory / "generator.errors").open("wb")),
                text=True,
            )
        )
        stack.callback(generator.kill)
        try:
            return _withGenerator(subject, load, generator, directory, deadline, stack)
        except Failed as error:
            told = [error.args[0]]
            for log in ("generator.errors", "errors", "log"):
                if (directory / log).exists():
                    told += (directory / log).read_text(errors="replace").splitlines()[-12:]
            raise Failed("\n".join(told)) from None


def _next(
    generator: subprocess.Popen[str], event: str, until: float, subject: subprocess.Popen[bytes] | None = None
) -> str:
    """
    Wait for the generator to say this.

    @param until: by the monotonic clock.
    @param subject: which has to be there all the while.
    """
    assert generator.stdout is not None
    # It says one line at a time and then waits, so none is hidden in a buffer.
    while not select([generator.stdout], [], [], 0.1)[0]:
        if subject is not None and subject.poll() is not None:
            raise Failed(f"the subject ended before {event!r}, with {subject.returncode}")
        if time.monotonic() > until:
            raise Failed(f"the generator did not come to {event!r} in time")
    line = generator.stdout.readline()
    if not line.startswith(event):
        raise Failed(f"the generator did not come to {event!r}")
    return line


def _withGenerator(
    subject: Subject,
    load: Load,
    generator: subprocess.Popen[str],
    directory: Path,
    deadline: float,
    stack: ExitStack,
) -> Figures:
    """
    Do one run, with a generator.
    """
    assert generator.stdin is not None and generator.stdout is not None
    until = time.monotonic() + deadline
    place = Place(directory, int(_next(generator, "port", until).split()[1]), load)
    toSend = load.down + MORE if load.down and not load.echoed else 0
    wanted = {
        "port": place.port,
        "authorities": str(place.authorities),
        "up": load.up,
        "down": toSend,
        "links": load.links,
        "text": "x" * max(0, load.size - BARE),
        "report": str(place.report),
        **subject.settings,
    }
    path = os.pathsep.join([str(HERE.parent), str(HERE / "subjects"), *filter(None, sys.path)])
    process = stack.enter_context(
        subprocess.Popen(
            list(subject.command(place)),
            stdin=subprocess.DEVNULL,
            stdout=stack.enter_context((directory / "output").open("wb")),
            stderr=stack.enter_context((directory / "errors").open("wb")),
            env={**os.environ, "BENCHMARK": json.dumps(wanted), "PYTHONPATH": path},
            cwd=directory,
        )
    )
    stack.callback(process.kill)
    _next(generator, "ready", until, process)
    generator.stdin.write(f"go {process.pid}\n")
    generator.stdin.flush()
    _next(generator, "done", until, process)
    memory = memoryOf(process.pid)
    report = _report(place.report, until) if toSend and subject.reports else None
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        raise Failed("the subject does not end") from None
    generator.stdin.close()
    found = json.loads(generator.stdout.readline())
    _check(found, report, load)
    count = found["up"] + found["down"]
    waits: Histogram = [(bound / 1e9, times) for bound, times in found["histogram"]]
    if report is not None and not load.up:
        waits = [(wait, 1) for wait in sorted(report["waits"])]
    return Figures(
        cpu=found["subject_cpu"] / count * 1e6,
        rate=count / found["seconds"],
        generatorBusy=found["generator_cpu"] / found["seconds"],
        memory=memory,
        waits=waits,
        pause=found["longest_pause"],
    )


def _report(file: Path, until: float) -> dict[str, Any]:
    """
    What a subject says of what it sent; it is done in a moment.
    """
    while not file.exists():
        if time.monotonic() > until:
            raise Failed("not everything that the subject sent was answered")
        time.sleep(0.02)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def _check(found: dict[str, Any], report: dict[str, Any] | None, load: Load) -> None:
    """
    See whether every message was answered, once and rightly.

    @raise Failed: if not.
    """
    wrong = [name for name in ("stray_acks", "received_twice") if found[name]]
    if found["sent"] != found["acked"]:
        wrong.append(f"{found['sent'] - found['acked']} messages were not acknowledged")
    if report is not None and (report["failed"] or report["answered"] != load.down + MORE):
        wrong.append(f"{report['failed']} of {report['answered']} failed")
    if report is not None and found["received"] != load.down + MORE:
        wrong.append(f"{found['received']} messages came")
    if wrong:
        raise Failed(", ".join(wrong))


def twistd(*options: str) -> Command:
    """
    Our app server with these options; C{{directory}} in them is the place's.
    """

    def command(place: Place) -> list[str]:
        return [
            str(Path(sys.executable).with_name("twistd")),
            *("-n", "--pidfile=", f"--logfile={place.directory / 'log'}", "fcm-xmpp"),
            f"--endpoint=tls:localhost:{place.port}:trustRoots={place.authorities}",
            *(f"--sender-id={SENDER}", f"--server-key-file={place.key}"),
            *([f"--connections={place.load.links}"] if place.load.links > 1 else []),
            *(option.format(directory=place.directory) for option in options),
        ]

    return command


def program(name: str) -> Command:
    """
    A program in Python of C{subjects}.
    """
    return lambda _: [sys.executable, str(HERE / "subjects" / f"{name}.py")]


def raw(place: Place) -> list[str]:
    """
    The raw client.
    """
    toSend = place.load.down + MORE if place.load.down else 0
    return [str(build("rawclient")), str(place.port), str(toSend), str(place.load.size)]
