"""
What the SQLite store costs: see README.md for what the figures mean.

  - C{known}: adding and looking up with many rows that are remembered, compared
    with few;
  - C{sweep}: whether taking away what is too old keeps messages waiting;
  - C{commit}: group commit compared with a commit for each message;
  - C{upstream}: the whole app server without a store, with one, and with a
    commit for each message.

Each does one run and prints one line of JSON.  The store is used through its
public interface, with its real thread and a real file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

# Beside this one.
import upstream
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.task import react

from fcmxmpp.messages import UpstreamMessage
from fcmxmpp.running import SWITCH_INTERVAL
from fcmxmpp.store.database import connect
from fcmxmpp.store.groupcommit import MOST
from fcmxmpp.store.inbox import digest
from fcmxmpp.store.sqlite import KEEP, SQLiteStore


DEVICES = [f"device-{number:02}" for number in range(100)]
DATA = {"text": "x" * 150}

_Operation = Callable[[int], Deferred[Any]]


def key(number: int) -> tuple[str, str]:
    """
    What a message is known by, of those that C{fill} makes.
    """
    return DEVICES[number % len(DEVICES)], f"known-{number}"


def copy(filled: Path, path: Path) -> None:
    """
    Copy a store that was filled.
    """
    for suffix in ("-wal", "-shm"):
        # Of a run that was broken off: it would be taken for the copy's.
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    shutil.copyfile(filled, path)


def fill(path: Path, rows: int, at: Callable[[int], float]) -> None:
    """
    Make a store that remembers so many messages, as if they had come one by
    one: so the index is in random order, and its pages are not all full.

    @param at: when each of them came.
    """
    if path.exists():
        return
    begun = path.with_suffix(".begun")
    connect(str(begun)).close()
    with closing(sqlite3.connect(begun, isolation_level=None)) as connection:
        for pragma in (
            "journal_mode = DELETE",
            "journal_mode = OFF",
            "synchronous = OFF",
            "cache_size = -4194304",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO known (digest, at) VALUES (?, ?)",
            ((digest(key(number)), at(number)) for number in range(rows)),
        )
        connection.execute("COMMIT")
    begun.rename(path)
    os.sync()


class Timed:
    """
    A connection that takes the time of each transaction.

    @ivar transactions: of each, the seconds from its begin to its commit, the
        seconds of the sweep's statements in it, and those of the commit.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._began = self._sweeping = 0.0
        self.transactions: list[tuple[float, float, float]] = []

    def __getattr__(self, name: str) -> Any:
        """
        All the rest is the connection's.
        """
        return getattr(self._connection, name)

    def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
        """
        See L{sqlite3.Connection.execute}.
        """
        began = time.perf_counter()
        if statement.startswith("BEGIN"):
            self._began, self._sweeping = began, 0.0
        cursor = self._connection.execute(statement, *arguments)
        ended = time.perf_counter()
        if statement.startswith("COMMIT"):
            self.transactions.append((began - self._began, self._sweeping, ended - began))
        elif any(part in statement for part in ("OFFSET", "at < ?", "reported < ?")):
            self._sweeping += ended - began
        return cursor


class Store:
    """
    A store that runs, and how to measure it.

    @ivar inbox: its inbox.
    @ivar commits: how many transactions there were.
    """

    def __init__(self, reactor: Any, path: Path, most: int = MOST, sweeps: bool = False) -> None:
        before = set(threading.enumerate())
        self._store = SQLiteStore(str(path), reactor, most=most)
        self._timed: list[Timed] = []
        # Nobody else has a reason to look at single statements, or not to sweep.
        self._store.commits._connect = lambda: self._open(path)
        self._store.startService()
        if not sweeps and self._store._next is not None:
            self._store._next.cancel()
            self._store._next = None
        (thread,) = set(threading.enumerate()) - before
        assert thread.ident is not None
        self._clock = time.pthread_getcpuclockid(thread.ident)
        self._number = 0
        self._handled: Deferred[None] = succeed(None)
        self.inbox = self._store.inbox
        self.stop = self._store.stopService

    def _open(self, path: Path) -> Timed:
        """
        Open the file, in the thread.
        """
        self._timed.append(Timed(connect(str(path))))
        return self._timed[-1]

    def forget(self) -> None:
        """
        Transactions count from now on.
        """
        for timed in self._timed:
            timed.transactions.clear()

    @property
    def transactions(self) -> list[tuple[float, float, float]]:
        """
        See L{Timed}.
        """
        return [each for timed in self._timed for each in timed.transactions]

    def cpu(self) -> float:
        """
        Seconds of CPU time that its thread has had.
        """
        return time.clock_gettime(self._clock)

    def message(self) -> UpstreamMessage:
        """
        One that is new.
        """
        self._number += 1
        name = f"{os.getpid()}-{id(self)}-{self._number}-{time.time_ns()}"
        return UpstreamMessage(
            from_=DEVICES[self._number % len(DEVICES)], category="org.example.app", message_id=name, data=DATA
        )

    async def addAndHandle(self, number: int) -> None:
        """
        Take over a message, and be done with it; nobody waits for that.
        """
        entry = await self.inbox.add(self.message())
        assert entry is not None
        self._handled = self.inbox.handled(entry.number)

    async def measure(
        self, operation: Callable[[int], Any], numbers: Sequence[int], inFlight: int
    ) -> dict[str, float]:
        """
        Do something many times, so many at a time.

        @return: the figures, of one operation.
        """
        waited: list[float] = []
        todo: Iterator[int] = iter(numbers)

        async def work() -> None:
            for number in todo:
                began = time.perf_counter()
                await operation(number)
                waited.append(time.perf_counter() - began)

        self.forget()
        began, cpu, processCPU = time.perf_counter(), self.cpu(), time.process_time()
        await gatherResults([Deferred.fromCoroutine(work()) for _ in range(inFlight)])
        # Of the last one, which is not before those of the others.
        await self._handled
        count = len(waited)
        return {
            "wall_us": (time.perf_counter() - began) / count * 1e6,
            "thread_cpu_us": (self.cpu() - cpu) / count * 1e6,
            "process_cpu_us": (time.process_time() - processCPU) / count * 1e6,
            **inMilliseconds("", waited),
        }


def inMilliseconds(name: str, seconds: Sequence[float]) -> dict[str, float]:
    """
    How times are distributed.
    """
    ordered = sorted(seconds)
    places = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {
        f"{name}{place}_ms": ordered[min(len(ordered) - 1, int(part * len(ordered)))] * 1e3
        if ordered
        else 0.0
        for place, part in places.items()
    }


def rounded(figures: Any) -> Any:
    """
    Figures that can be read.
    """
    if isinstance(figures, dict):
        return {name: rounded(value) for name, value in figures.items()}
    return round(figures, 3) if isinstance(figures, float) else figures


async def known(reactor: Any, options: argparse.Namespace) -> dict[str, Any]:
    """
    The cost of a message with few and with many rows that are remembered.
    """
    now = time.time()
    sizes = options.rows
    stores = {}
    began = time.perf_counter()
    for size in sizes:
        filled = options.directory / f"known-{size}.filled"
        # The last of them a second ago, the first almost long enough for the sweep.
        fill(filled, size, lambda number, size=size: now - 1 - 0.5 * KEEP * (1 - number / size))
        path = options.directory / f"known-{size}.sqlite"
        copy(filled, path)
        stores[size] = Store(reactor, path)
    seconds = time.perf_counter() - began
    os.sync()
    results: dict[int, dict[str, list[dict[str, float]]]] = {
        size: {"add": [], "known": [], "unknown": []} for size in sizes
    }
    count = options.messages
    for turn in range(options.rounds + 1):
        for size, store in stores.items():
            # Anywhere in the table, and never the same twice in a run.
            step = max(1, size // (count * (options.rounds + 1)))
            some = [(turn + number * (options.rounds + 1)) * step % size for number in range(count)]
            figures = {
                "add": await store.measure(store.addAndHandle, range(count), options.in_flight),
                "known": await store.measure(
                    lambda n, s=store: s.inbox.isKnown(key(n)), some, options.in_flight
                ),
                "unknown": await store.measure(
                    lambda n, s=store: s.inbox.isKnown(("nobody", str(n))), some, options.in_flight
                ),
            }
            if turn:
                # The first is to warm up.
                for name, figure in figures.items():
                    results[size][name].append(figure)
    for store in stores.values():
        await store.stop()
    medians = {
        size: {
            name: {figure: median(each[figure] for each in runs) for figure in runs[0]}
            for name, runs in operations.items()
        }
        for size, operations in results.items()
    }
    least, most = results[min(sizes)], results[max(sizes)]
    ratios = {
        name: {
            figure: median(
                few[figure] and many[figure] / few[figure]
                for few, many in zip(least[name], most[name], strict=True)
            )
            for figure in least[name][0]
        }
        for name in least
    }
    return {
        "in_flight": options.in_flight,
        "messages": count,
        "rounds": options.rounds,
        "fill_seconds": seconds,
        "sizes": medians,
        "file_mb": {
            size: (options.directory / f"known-{size}.sqlite").stat().st_size / 1e6 for size in sizes
        },
        "ratios": ratios,
        "holds": all(each[name] <= 3 for each in ratios.values() for name in ("wall_us", "thread_cpu_us")),
    }


async def sweep(reactor: Any, options: argparse.Namespace) -> dict[str, Any]:
    """
    How long messages wait while what is too old is taken away, and otherwise.
    """
    (size,) = options.rows
    path = options.directory / "sweep.sqlite"
    filled = options.directory / f"sweep-{size}.filled"
    fill(filled, size, lambda number: 1e9 + number / size)
    copy(filled, path)
    os.sync()
    parts = {}
    for name, sweeps in (("without", False), ("with", True)):
        store = Store(reactor, path, sweeps=sweeps)
        until = time.perf_counter() + options.seconds

        def numbers(until: float = until) -> Iterator[int]:
            number = 0
            while time.perf_counter() < until:
                yield number
                number += 1

        figures = await store.measure(store.addAndHandle, numbers(), options.in_flight)  # type: ignore[arg-type]
        transactions = store.transactions
        await store.stop()
        with closing(connect(str(path))) as connection:
            (left,) = connection.execute("SELECT count(*) FROM known WHERE at < 1.1e9").fetchone()
        sweeping = [each for each in transactions if each[1]]
        others = [each for each in transactions if not each[1]]
        parts[name] = {
            **figures,
            "rows_swept": size - left,
            "steps": len(sweeping),
            **inMilliseconds("step_", [step for _, step, _ in sweeping]),
            **inMilliseconds("commit_with_step_", [commit for _, _, commit in sweeping]),
            **inMilliseconds("commit_", [commit for _, _, commit in others]),
            **inMilliseconds("transaction_with_step_", [work + commit for work, _, commit in sweeping]),
            **inMilliseconds("transaction_", [work + commit for work, _, commit in others]),
        }
    return {"rows": size, "in_flight": options.in_flight, "seconds": options.seconds, **parts}


async def commit(reactor: Any, options: argparse.Namespace) -> dict[str, Any]:
    """
    Group commit, and a commit for each message.
    """
    results: dict[str, dict[int, dict[str, float]]] = {"group": {}, "each": {}}
    for inFlight in options.in_flight:
        for name, most in (("group", MOST), ("each", 1)):
            path = options.directory / f"commit-{name}-{inFlight}.sqlite"
            store = Store(reactor, path, most=most)
            await store.measure(lambda _, s=store: s.inbox.add(s.message()), range(inFlight), inFlight)
            # No more of the slow ones than are needed.
            count = (
                min(options.messages, max(10 * inFlight, 1000))
                if most == 1 or inFlight == 1
                else options.messages
            )
            figures = await store.measure(lambda _, s=store: s.inbox.add(s.message()), range(count), inFlight)
            transactions = store.transactions
            await store.stop()
            results[name][inFlight] = {
                **figures,
                "adds_per_s": 1e6 / figures["wall_us"],
                "commits_per_s": len(transactions) * 1e6 / figures["wall_us"] / count,
                "adds_per_commit": count / len(transactions),
                **inMilliseconds("commit_", [seconds for _, _, seconds in transactions]),
            }
    return {
        "messages": options.messages,
        **inMilliseconds("fsync_", _fsyncs(options.directory)),
        **results,
        "ratios": {
            inFlight: results["group"][inFlight]["adds_per_s"] / results["each"][inFlight]["adds_per_s"]
            for inFlight in options.in_flight
        },
    }


async def wholeAppServer(reactor: Any, options: argparse.Namespace) -> dict[str, Any]:
    """
    The app server without a store, with one, and with a commit for each
    message, in turn.
    """
    directory = f"--directory={options.directory}"
    # No more of the slow ones than are needed.
    few = max(10, options.messages // 10)
    ways = {
        "no_store": ["--messages", str(options.messages)],
        "no_store_received": ["--messages", str(options.messages), "--ack=received"],
        "store": ["--messages", str(options.messages), "--store"],
        "store_handled": ["--messages", str(options.messages), "--store", "--ack=handled"],
        "commit_per_message": ["--messages", str(few), "--commit-per-message"],
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, arguments in ways.items():
            figures = await upstream.runOnce(reactor, upstream.parseOptions([directory, *arguments]))
            if upstream.isWrong(figures):
                raise SystemExit(f"{name}: {figures}")
            runs[name].append(figures)
    shown = ("messages_per_s", "cpu_us_per_message", "p50_ms", "p99_ms")
    medians = {
        name: {figure: median(each[figure] for each in figures) for figure in shown}
        for name, figures in runs.items()
    }
    return {
        "messages": options.messages,
        "rounds": options.rounds,
        **medians,
        "all_messages_per_s": {
            name: [each["messages_per_s"] for each in each_] for name, each_ in runs.items()
        },
        "ratios": {
            name: figures["messages_per_s"] / medians["no_store"]["messages_per_s"]
            for name, figures in medians.items()
        },
        "holds": 2 * medians["store"]["messages_per_s"] >= medians["no_store"]["messages_per_s"],
    }


def _fsyncs(directory: Path) -> list[float]:
    """
    The seconds that the disk takes to synchronise a page.
    """
    waited = []
    with (directory / "fsync").open("wb", buffering=0) as file:
        for _ in range(200):
            file.write(os.urandom(4096))
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            waited.append(time.perf_counter() - began)
    return waited


def numbers(text: str) -> list[int]:
    """
    Numbers with commas between them.
    """
    return [int(number) for number in text.split(",")]


def parseOptions(arguments: list[str]) -> argparse.Namespace:
    """
    Read the command line.
    """
    parser = argparse.ArgumentParser(description="Measures the SQLite store.")
    parser.add_argument(
        "--directory",
        type=Path,
        help="on the disk to be measured; filled files stay there and are used again [a temporary one]",
    )
    parser.add_argument("--deadline", type=float, default=3600.0, help="seconds for all [%(default)s]")
    commands = parser.add_subparsers(required=True, metavar="known | sweep | commit | upstream")
    command = commands.add_parser("known", help="with few and with many messages remembered")
    command.add_argument("--rows", type=numbers, default=[10_000, 10_000_000], help="[10000,10000000]")
    command.add_argument("--messages", type=int, default=1000, help="in each round [%(default)s]")
    command.add_argument("--rounds", type=int, default=5, help="[%(default)s]")
    command.add_argument("--in-flight", type=int, default=100, help="[%(default)s]")
    command.set_defaults(measure=known)
    command = commands.add_parser("sweep", help="while old rows are taken away, and not")
    command.add_argument("--rows", type=numbers, default=[1_000_000], help="[1000000]")
    command.add_argument("--seconds", type=float, default=20.0, help="of each [%(default)s]")
    command.add_argument("--in-flight", type=int, default=100, help="[%(default)s]")
    command.set_defaults(measure=sweep)
    command = commands.add_parser("commit", help="group commit and a commit for each message")
    command.add_argument("--messages", type=int, default=20_000, help="[%(default)s]")
    command.add_argument("--in-flight", type=numbers, default=[1, 10, 100, 1000], help="[1,10,100,1000]")
    command.set_defaults(measure=commit)
    command = commands.add_parser("upstream", help="the whole app server, with and without")
    command.add_argument("--messages", type=int, default=20_000, help="in each run [%(default)s]")
    command.add_argument("--rounds", type=int, default=5, help="[%(default)s]")
    command.set_defaults(measure=wholeAppServer)
    return parser.parse_args(arguments)


async def run(reactor: Any, options: argparse.Namespace) -> None:
    """
    Do one run, and print what came of it.
    """
    # As in the app server.
    sys.setswitchinterval(SWITCH_INTERVAL)
    with tempfile.TemporaryDirectory(prefix="fcmxmpp-benchmark-", dir=options.directory) as directory:
        if options.directory is None:
            options.directory = Path(directory)
        figures = await Deferred.fromCoroutine(options.measure(reactor, options)).addTimeout(
            options.deadline, reactor
        )
    print(json.dumps({**rounded(figures), "load": os.getloadavg()[0]}))


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(run(reactor, parseOptions(sys.argv[1:]))))
