"""
What the connection server costs, and whether that grows with the connections:
messages from devices to an app server and back, with 1 to 1,000 devices.

    python benchmarks/devices.py                 the table and the plots, in C{benchmarks/results}
    python benchmarks/devices.py --json          print the figures, and write nothing
    python benchmarks/devices.py --devices 5000  the same for so many, once

C{twistd fcm-connection-server} with a store in a file is a process of its own;
C{devices_load.py} is all the devices and the app server, in this one, over TLS on
loopback.  Devices have checked in and are registered before: their identities are
written into the store beforehand.  The exit status is 1 if a message was lost or
came twice.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import re
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from secrets import token_urlsafe
from ssl import SSLContext, create_default_context
from typing import Any

from bench import RESULTS, commit, machine
from devices_load import AppServer, Device, Loop, Told, Traffic, logIn
from figures import Histogram, Spread, linePlots, number, percentile, spread, table
from running import HERE, Failed

from fcmxmpp.mcs.frames import Tag, encodeFrame
from fcmxmpp.mcs.stanzas import uploadStanza
from fcmxmpp.messages import UpstreamMessage
from fcmxmpp.registrations import Application, Identity
from fcmxmpp.stanza import serverStanza
from fcmxmpp.store.database import connect, transaction
from fcmxmpp.store.registrations import checkIn, register


SENDER = "123456789"
APP = "org.example.app"
CONNECTIONS = (1, 10, 100, 1000)
#: Bytes of a stanza, if the token were as short as that of the other benchmarks.
SIZE = 300
SHORT = "device-07"
DIRECTIONS = ("upstream", "downstream")
_OF_CONNECTIONS = (
    "kib_per_idle_device",
    "kib_per_device_at_the_end",
    "logins_per_s",
    "cpu_us_per_login",
)


@dataclass(frozen=True)
class Direction:
    """
    What came of the messages in one direction.

    @ivar cpu: of the server for one message, in microseconds.
    @ivar store: of these, what the store's thread took.
    @ivar atOnce: how many messages a device sent, or acknowledged, in one write.
    @ivar rate: messages a second.
    @ivar loadBusy: the share of the time in which the load worked.
    @ivar waits: seconds from sending to the end, in ascending order.
    """

    cpu: float
    store: float
    atOnce: float
    rate: float
    loadBusy: float
    waits: list[float]


@dataclass(frozen=True)
class Run:
    """
    What came of one run.

    @ivar logins: a second.
    @ivar loginCPU: of the server for one login, in microseconds.
    @ivar idle: KiB that a device takes that is connected and does nothing.
        This, and what is above, is of all devices but the first.
    @ivar used: the same after all messages.
    """

    logins: float
    loginCPU: float
    idle: float
    used: float
    directions: dict[str, Direction]


@dataclass(frozen=True)
class Meters:
    """
    Clocks, read at one moment.

    @ivar load: seconds of CPU time of this process.
    @ivar server: of the connection server.
    @ivar main: of its main thread.
    """

    now: float
    load: float
    server: float
    main: float

    @classmethod
    def read(cls, pid: int) -> Meters:
        """
        Read them.
        """
        # How Linux makes the number of a process's clock.
        server = time.clock_gettime(~pid << 3 | 2)
        main = int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9
        return cls(time.monotonic(), time.process_time(), server, main)


def residentKiB(pid: int) -> int:
    """
    How much memory of a process is resident.
    """
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])


def registered(path: Path, count: int) -> list[tuple[Identity, str]]:
    """
    Make a store with devices.

    @return: who they are, and their tokens.
    """
    application = Application(category=APP, senderID=SENDER)
    now = time.time()
    made = []
    with closing(connect(str(path))) as connection, transaction(connection):
        for each in range(1, count + 1):
            (identity,) = checkIn(connection, [(None, Identity(each, each), now)])
            # As long as in real life.
            token = f"{token_urlsafe(16)}:APA91b{token_urlsafe(100)}"
            register(connection, [(identity, application, token, now)])
            made.append((identity, token))
    return made


def frames(total: int) -> list[bytes]:
    """
    Messages of devices.
    """
    bare = UpstreamMessage(
        data={"text": ""}, time_to_live=3600, from_=SHORT, message_id="u-00000000", category=APP
    )
    data = {"text": "x" * (SIZE - len(serverStanza(bare, f"{SENDER}@gcm.googleapis.com")))}
    now = time.time()
    return [
        encodeFrame(
            Tag.DATA_MESSAGE_STANZA,
            uploadStanza(
                f"u-{each:08d}", f"{SENDER}@gcm.googleapis.com", APP, data, 3600, str(each), now
            ).SerializeToString(),
        )
        for each in range(total)
    ]


def stanza(token: bytes, each: int, text: bytes) -> bytes:
    """
    A message for a device.

    @param text: is put behind its number, by which the device knows it.
    """
    return (
        b'<message id="d-%08d"><gcm xmlns="google:mobile:data">{"to":"%b","message_id":"d-%08d",'
        b'"data":{"text":"#%08d%b"}}</gcm></message>'
    ) % (each, token, each, each, text)


class Server:
    """
    A connection server, as a process of its own.

    @ivar pid: of the process.
    @ivar ports: by who connects to them.
    @ivar context: for TLS, in which it is trusted.
    @ivar login: an app server's, in base64.
    """

    def __init__(self, directory: Path, profile: Path | None, stack: ExitStack) -> None:
        """
        @param profile: where to write a cProfile of its main thread.
        """
        self._store = directory / "server.db"
        log = directory / "log"
        command = [
            str(Path(sys.executable).with_name("twistd")),
            *("-n", "--pidfile=", f"--logfile={log}"),
            *(["--profiler=cprofile", "--savestats", f"--profile={profile.resolve()}"] if profile else []),
            *("fcm-connection-server", "--self-signed=trial", "--store=sqlite:server.db"),
            *("--xmpp=tls:0:interface=127.0.0.1", "--devices=tls:0:interface=127.0.0.1"),
        ]
        self._process = stack.enter_context(
            subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join([str(HERE.parent), *filter(None, sys.path)]),
                },
                cwd=directory,
            )
        )
        stack.callback(self._process.kill)
        self.pid = self._process.pid
        until = time.monotonic() + 30
        self.ports: dict[str, int] = {}
        while len(self.ports) < 2:
            if time.monotonic() > until or self._process.poll() is not None:
                raise Failed("the connection server does not start")
            time.sleep(0.05)
            text = log.read_text() if log.exists() else ""
            found = re.findall("(app servers|devices) connect to port ([0-9]+)", text)
            self.ports = {name: int(port) for name, port in found}
        self.context: SSLContext = create_default_context(cafile=directory / "trial" / "certs" / "ca.pem")
        key = (directory / "trial" / "server-key.txt").read_text().strip()
        self.login = b64encode(f"\0{SENDER}\0{key}".encode())

    def left(self) -> int:
        """
        How many messages are in its store.
        """
        with closing(sqlite3.connect(self._store)) as connection:
            query = "SELECT (SELECT count(*) FROM entrusted) + (SELECT count(*) FROM mail)"
            count: int = connection.execute(query).fetchone()[0]
            return count

    def stop(self) -> None:
        """
        End it.

        @raise Failed: if it does not end as it should.
        """
        self._process.terminate()
        try:
            status = self._process.wait(30)
        except subprocess.TimeoutExpired:
            raise Failed("the connection server does not end") from None
        if status:
            raise Failed(f"the connection server ended with {status}")


def direction(pid: int, loop: Loop, traffic: Traffic) -> Direction:
    """
    Have messages sent in one direction, until all have come to their end.
    """
    traffic.begin()
    loop.run(lambda: traffic.isWarm, traffic)
    before, done, writes = Meters.read(pid), traffic.done, loop.fromDevices
    loop.run(lambda: traffic.isOver, traffic)
    after, done, writes = Meters.read(pid), traffic.done - done, loop.fromDevices - writes
    server, seconds = after.server - before.server, after.now - before.now
    return Direction(
        cpu=server / done * 1e6,
        store=(server - (after.main - before.main)) / done * 1e6,
        atOnce=done / writes,
        rate=done / seconds,
        loadBusy=(after.load - before.load) / seconds,
        waits=sorted(traffic.waits),
    )


def run(count: int, options: argparse.Namespace) -> Run:
    """
    Do one run with so many devices.

    @raise Failed: if it does not come to its end, or something was lost or came
        twice.
    """
    with tempfile.TemporaryDirectory(prefix="fcmxmpp-bench-") as name, ExitStack() as stack:
        directory = Path(name)
        known = registered(directory / "server.db", count)
        try:
            return _withServer(Server(directory, options.profile, stack), known, options, stack)
        except (Failed, OSError) as error:
            log = directory / "log"
            told = log.read_text(errors="replace").splitlines()[-12:] if log.exists() else []
            raise Failed("\n".join([str(error), *told])) from None


def _withServer(
    server: Server, known: Sequence[tuple[Identity, str]], options: argparse.Namespace, stack: ExitStack
) -> Run:
    """
    Do one run, with a server.
    """
    loop, pid, count = Loop(options.deadline), server.pid, len(known)
    warm = options.messages // 3
    stack.callback(loop.close)
    messages = frames(options.messages + warm)
    text = b"x" * (SIZE - len(stanza(SHORT.encode(), 0, b"")))
    tokens = [token.encode() for _, token in known]
    talking = min(count, options.talking or count)
    traffic = partial(Traffic, len(messages), warm, talking, each=options.each, window=options.window)
    up = traffic(send=lambda device, each: devices[device].upload(each, messages[each]))
    down = traffic(send=lambda device, each: app.write(stanza(tokens[device], each, text)))
    devices: list[Device] = []
    told = Told(up.stored, up.received, down.stored, down.received)
    app: AppServer = AppServer(loop, server.ports["app servers"], server.context, server.login, told)
    loop.run(lambda: app.isReady, "the app server logs in")
    makers = [
        partial(Device, loop, server.ports["devices"], server.context, identity, told)
        for identity, _ in known
    ]
    # What the first one takes is what the others have no need of any more.
    devices += logIn(loop, makers[:1])
    before, resident = Meters.read(pid), residentKiB(pid)
    devices += logIn(loop, makers[1:])
    after, idle = Meters.read(pid), residentKiB(pid)
    # Nothing of this is garbage before the end.
    gc.collect()
    gc.disable()
    try:
        directions = {
            name: direction(pid, loop, each)
            for name, each in (("upstream", up), ("downstream", down))
            if name in options.only
        }
    finally:
        gc.enable()
    used = residentKiB(pid)
    # What devices and app servers have acknowledged is forgotten a little later.
    loop.run(lambda: not server.left(), "nothing is left in the store")
    loop.close()
    server.stop()
    if up.twice or down.twice:
        raise Failed(f"{up.twice} messages came twice upstream, {down.twice} downstream")
    others = max(1, count - 1)
    return Run(
        logins=others / (after.now - before.now),
        loginCPU=(after.server - before.server) / others * 1e6,
        idle=(idle - resident) / others,
        used=(used - resident) / others,
        directions=directions,
    )


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """
    What came of the rounds with one number of devices, as it is shown and written as
    JSON.
    """
    found: dict[str, Any] = {
        "logins_per_s": Spread.of([each.logins for each in runs]).__dict__,
        "cpu_us_per_login": Spread.of([each.loginCPU for each in runs]).__dict__,
        "kib_per_idle_device": Spread.of([each.idle for each in runs]).__dict__,
        "kib_per_device_at_the_end": Spread.of([each.used for each in runs]).__dict__,
    }
    for name in runs[0].directions:
        each = [run.directions[name] for run in runs]
        waits: Histogram = [(wait, 1) for wait in sorted(chain.from_iterable(one.waits for one in each))]
        found[name] = {
            "cpu_us": Spread.of([one.cpu for one in each]).__dict__,
            "store_us": Spread.of([one.store for one in each]).__dict__,
            "at_once": Spread.of([one.atOnce for one in each]).__dict__,
            "rate": Spread.of([one.rate for one in each]).__dict__,
            "p50_ms": percentile(waits, 0.5) * 1e3,
            "p99_ms": percentile(waits, 0.99) * 1e3,
            "load_busy": max(one.loadBusy for one in each),
        }
    return found


def report(found: Mapping[int, dict[str, Any]], names: Sequence[str], facts: Sequence[str]) -> str:
    """
    All figures, in Markdown.
    """
    text = "# The connection server\n\n" + "".join(f"{fact}  \n" for fact in facts)
    for name in names:
        rows = [
            [
                f"{count:,}",
                spread(Spread(**each[name]["cpu_us"])),
                *(number(each[name][key]["middle"]) for key in ("store_us", "at_once", "rate")),
                number(each[name]["p50_ms"]),
                number(each[name]["p99_ms"]),
                f"{each[name]['load_busy']:.0%}",
            ]
            for count, each in found.items()
        ]
        headings = [
            *("connections", "CPU, µs per message", "of it the store's thread", "messages at once"),
            *("messages/s", "p50, ms", "p99", "load busy"),
        ]
        text += f"\n## {name.capitalize()}\n\n{table(headings, rows)}"
    rows = [
        [f"{count:,}", *(spread(Spread(**each[key])) for key in _OF_CONNECTIONS)]
        for count, each in found.items()
        # The first one is not counted.
        if count > 1
    ]
    if rows:
        headings = [
            "connections",
            "KiB for each, idle",
            "KiB after the messages",
            "logins/s",
            "CPU, µs per login",
        ]
        text += f"\n## Connections\n\n{table(headings, rows)}"
    return text


def parseOptions(arguments: Sequence[str]) -> argparse.Namespace:
    """
    Read the command line.
    """
    parser = argparse.ArgumentParser(description="Measures what the connection server costs.")
    parser.add_argument(
        "--connections",
        type=int,
        action="append",
        metavar="N",
        help=f"how many devices there are; may be given again {list(CONNECTIONS)}",
    )
    parser.add_argument("--messages", type=int, default=25_000, metavar="N", help="that count [%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="[%(default)s]")
    parser.add_argument(
        "--only", choices=DIRECTIONS, action="append", help="messages in this direction; may be given again"
    )
    parser.add_argument(
        "--talking", type=int, metavar="N", help="how many devices have messages; the others are idle [all]"
    )
    parser.add_argument(
        "--each", type=int, default=10, metavar="N", help="messages of one device under way [%(default)s]"
    )
    parser.add_argument(
        "--window", type=int, default=100, metavar="N", help="of all devices together [%(default)s]"
    )
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="write a cProfile of the server, of the last run"
    )
    parser.add_argument(
        "--deadline", type=float, default=120.0, metavar="S", help="for each step of a run [%(default)s]"
    )
    parser.add_argument(
        "--devices", type=int, metavar="N", help="one round with so many, and print the figures"
    )
    parser.add_argument("--json", action="store_true", help="print the figures, and write no file")
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory to write to [%(default)s]")
    options = parser.parse_args(arguments)
    if options.devices is not None:
        options.connections, options.rounds, options.json = [options.devices], 1, True
    options.connections = sorted(set(options.connections or CONNECTIONS))
    options.only = [name for name in DIRECTIONS if name in (options.only or DIRECTIONS)]
    if min(*options.connections, options.talking or 1) < 1 or options.messages < 100 or options.rounds < 1:
        parser.error("1 connection or more, 100 messages or more, in one round or more")
    if not (0 < options.each <= 100 and 0 < options.window <= 100):
        # Beyond that a connection server waits, and an app server is a bad one.
        parser.error("1 to 100 messages under way")
    return options


def main(arguments: Sequence[str]) -> None:
    """
    Measure, and write down what came of it.

    @raise SystemExit: if a run fails.
    """
    options = parseOptions(arguments)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, max(options.connections) + 1000)), hard))
    runs: dict[int, list[Run]] = {}
    try:
        for turn in range(1, options.rounds + 1):
            for count in options.connections:
                done = run(count, options)
                runs.setdefault(count, []).append(done)
                told = ", ".join(f"{name} {each.cpu:.1f} µs" for name, each in done.directions.items())
                print(f"{turn}/{options.rounds} {count:,} connections: {told}", file=sys.stderr, flush=True)
    except Failed as error:
        raise SystemExit(str(error)) from None
    found = {count: summary(each) for count, each in runs.items()}
    day = datetime.date.today().isoformat()
    if options.json:
        print(json.dumps({"date": day, "commit": commit(), "machine": machine(), "connections": found}))
        return
    facts = [
        f"{day}, commit {commit()}, {options.rounds} rounds of {options.messages:,} messages each way: the "
        "median, and the least and the most.",
        machine(),
    ]
    text = report(found, options.only, facts)
    plots = {
        f"{name}, by connections": [
            (f"{count:,}", Spread(**each[name]["cpu_us"])) for count, each in found.items()
        ]
        for name in options.only
    }
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "devices.md").write_text(text)
    (options.results / "devices.svg").write_text(
        linePlots("The connection server: CPU time per message", f"{day}; with a store", plots, "µs", True)
    )
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
