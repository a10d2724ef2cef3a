"""
Whether a message has become dearer, by counting and not by the clock.

An app server in this process, with a do-nothing handler and everything else as
shipped, is given a fixed series of bytes: no sockets, no TLS, no time.  Counted
are, for one message with its ACK,

  - the calls and the bytecodes of Python, which are the same each time;
  - the instructions of the processor, with C{perf} or C{valgrind} where there
    is one that works, as a multiple of what expat and msgspec alone need for
    the same bytes: so the figure hardly depends on how Python was built.

    python benchmarks/cost.py             compare with cost.json; 1 is the exit status for dearer
    python benchmarks/cost.py --record    write cost.json, for this version of Python

C{.ci/run} calls it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any


HERE = Path(__file__).resolve().parent
RECORD = HERE / "cost.json"
#: By how much a count may be above the recorded one.  It is the same each time;
#: the rest is for other versions of what we stand on.
TOLERANCE = 0.03
#: The same for instructions, where addresses and builds of Python play a part.
INSTRUCTIONS_TOLERANCE = 0.04
#: How many messages are counted in Python, and how many before that.
COUNTED, WARM = 500, 300
#: How many for the instructions.
MANY = 4000
#: How many come in one read.
TOGETHER = 10
WINDOW = 100
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
DEPENDENCIES = ("Twisted", "wokkel", "msgspec", "zope.interface")

_UPSTREAM = (
    b'<message to="123456789@gcm.googleapis.com" from="devices@gcm.googleapis.com" type="normal">'
    b'<gcm xmlns="google:mobile:data">{"data":{"text":"%b"},"time_to_live":86400,"from":"device-%02d",'
    b'"message_id":"%08d","category":"org.example.app"}</gcm></message>'
)
_ACK = (
    b'<message><data:gcm xmlns:data="google:mobile:data">{"from":"device-%02d","message_id":"%08d",'
    b'"message_type":"ack"}</data:gcm></message>'
)
_HEADER = (
    b'<stream:stream from="gcm.googleapis.com" id="0123456789ABCDEF" version="1.0" '
    b'xmlns:stream="http://etherx.jabber.org/streams" xmlns="jabber:client"><stream:features>%b'
    b"</stream:features>"
)
#: What the app server is told, in turn, until it is logged in.
_LOGIN = (
    _HEADER
    % b'<mechanisms xmlns="urn:ietf:params:xml:ns:xmpp-sasl"><mechanism>PLAIN</mechanism></mechanisms>',
    b'<success xmlns="urn:ietf:params:xml:ns:xmpp-sasl"/>',
    _HEADER % b'<bind xmlns="urn:ietf:params:xml:ns:xmpp-bind"/>',
    b'<iq type="result" id="%b"><bind xmlns="urn:ietf:params:xml:ns:xmpp-bind"><jid>'
    b"123456789@gcm.googleapis.com/cost</jid></bind></iq>",
)
_PADDING = b"x" * 84

#: Has one more batch of messages done.
Scenario = Callable[[], None]


class LoggedIn:
    """
    An app server that is logged in, without a socket.

    @ivar service: the app server.
    @ivar clock: its time.
    """

    def __init__(self, messageReceived: Callable[[Any], Any] = lambda message: None) -> None:
        """
        @param messageReceived: the handler.
        """
        # Not at the top, so that the floor is measured without them.
        from twisted.internet.defer import succeed
        from twisted.internet.task import Clock
        from twisted.internet.testing import StringTransport
        from zope.interface import implementer

        from fcmxmpp.appserver import AppServer
        from fcmxmpp.connection import Credentials
        from fcmxmpp.interfaces import IUpstreamHandler

        class Transport(StringTransport):
            def setTcpNoDelay(self, enabled: bool) -> None:
                pass

            def setTcpKeepAlive(self, enabled: bool) -> None:
                pass

        class Endpoint:
            def connect(self, factory: Any) -> Any:
                self.protocol = factory.buildProtocol(None)
                self.protocol.makeConnection(transport)
                return succeed(self.protocol)

        @implementer(IUpstreamHandler)
        class Handler:
            pass

        handler: Any = Handler()
        handler.messageReceived = messageReceived
        self.clock, endpoint = Clock(), Endpoint()
        self._transport = transport = Transport()
        self.service = AppServer(
            endpoint,  # type: ignore[arg-type]
            Credentials("123456789", "cost"),
            handler,
            clock=self.clock,
            random=lambda: 0.5,
        )
        self.service.startService()
        self._protocol = endpoint.protocol
        for answer in _LOGIN:
            said = self.said()
            if b"%b" in answer:
                found = re.search(rb"""id=['"]([^'"]+)""", said)
                assert found is not None, said
                answer %= found.group(1)
            self.hear(answer)
        self.said()

    def hear(self, data: bytes) -> None:
        """
        Bytes come, and a moment passes.
        """
        self._protocol.dataReceived(data)
        self.clock.advance(0.001)

    def said(self) -> bytes:
        """
        What was written since this was called last.
        """
        value: bytes = self._transport.value()
        self._transport.clear()
        return value


def upstreamStanza(number: int) -> bytes:
    """
    A message from a device, 300 bytes.
    """
    return _UPSTREAM % (_PADDING, number % 100, number)


def appServer() -> tuple[Scenario, Scenario]:
    """
    An app server, logged in.

    @return: what gives it ten upstream messages, and what acknowledges ten of
        its own so that it sends ten more.
    """
    from fcmxmpp.messages import DownstreamMessage

    joined = LoggedIn()

    def exchange(data: bytes, expected: bytes) -> None:
        joined.hear(data)
        count = joined.said().count(expected)
        if count != TOGETHER:
            raise AssertionError(f"{count} times {expected!r} in an exchange, and not {TOGETHER}")

    received = 0

    def upstream() -> None:
        nonlocal received
        numbers = range(received, received + TOGETHER)
        received += TOGETHER
        exchange(b"".join(map(upstreamStanza, numbers)), b'"message_type":"ack"')

    sent = accepted = 0
    payload = {"text": "x" * 200}

    def send(_: object = None) -> None:
        nonlocal sent
        message = DownstreamMessage(to=f"device-{sent % 100:02d}", message_id=f"{sent:08d}", data=payload)
        sent += 1
        joined.service.send(message).addCallback(send)

    def downstream() -> None:
        nonlocal accepted
        if not sent:
            for _ in range(WINDOW):
                send()
            joined.said()
        numbers = range(accepted, accepted + TOGETHER)
        accepted += TOGETHER
        exchange(b"".join(_ACK % (n % 100, n) for n in numbers), b'"data":{"text"')

    return upstream, downstream


def floor() -> tuple[Scenario, Scenario]:
    """
    The same with expat and msgspec alone.
    """
    import pyexpat

    import msgspec

    class Upstream(msgspec.Struct):
        message_id: str
        category: str
        data: dict[str, str]
        time_to_live: int
        from_: str = msgspec.field(name="from")

    class Ack(msgspec.Struct):
        message_id: str
        message_type: str
        from_: str = msgspec.field(name="from")

    class Downstream(msgspec.Struct):
        to: str
        message_id: str
        data: dict[str, str]

    number = 0
    payload = {"text": "x" * 200}
    upstreamOf = msgspec.json.Decoder(Upstream).decode
    ackOf = msgspec.json.Decoder(Ack).decode
    encode = msgspec.json.Encoder().encode

    def parsing(answer: Callable[[str], bytes], stanza: Callable[[int], bytes]) -> Scenario:
        answers: list[bytes] = []
        parser = pyexpat.ParserCreate()
        parser.buffer_text = True
        parser.CharacterDataHandler = lambda text: answers.append(answer(text))
        # For every element, as an element stream has it.
        parser.StartElementHandler = lambda name, attributes: None
        parser.EndElementHandler = lambda name: None
        parser.Parse(b"<stream>")

        def exchange() -> None:
            nonlocal number
            parser.Parse(b"".join(map(stanza, range(number, number + TOGETHER))))
            number += TOGETHER
            if len(b"".join(answers)) < TOGETHER or len(answers) != TOGETHER:
                raise AssertionError("not every message was answered")
            answers.clear()

        return exchange

    def acknowledge(text: str) -> bytes:
        message = upstreamOf(text)
        return b'<message><gcm xmlns="google:mobile:data">{"to":"%b","message_id":"%b"}</gcm></message>' % (
            message.from_.encode(),
            message.message_id.encode(),
        )

    def sendNext(text: str) -> bytes:
        ack = ackOf(text)
        message = Downstream(ack.from_, ack.message_id, payload)
        return b'<message><gcm xmlns="google:mobile:data">%b</gcm></message>' % encode(message)

    return (
        parsing(acknowledge, upstreamStanza),
        parsing(sendNext, lambda n: _ACK % (n % 100, n)),
    )


def run(scenario: Scenario, messages: int) -> None:
    """
    Have so many messages done.
    """
    for _ in range(messages // TOGETHER):
        scenario()


class Count:
    """
    Counts what Python does.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.bytecodes = 0

    def of(self, scenario: Scenario) -> dict[str, float]:
        """
        Count a batch of messages after the other.

        @return: for each message.
        """
        self.calls = self.bytecodes = 0
        sys.setprofile(self._called)
        sys.settrace(self._entered)
        try:
            run(scenario, COUNTED)
        finally:
            sys.settrace(None)
            sys.setprofile(None)
        return {"calls": self.calls / COUNTED, "bytecodes": self.bytecodes / COUNTED}

    def _called(self, frame: FrameType, event: str, argument: object) -> None:
        """
        A function was called, in Python or in C, or returned.
        """
        if event in ("call", "c_call"):
            self.calls += 1

    def _entered(self, frame: FrameType, event: str, argument: object) -> Any:
        """
        A frame begins.
        """
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._stepped

    def _stepped(self, frame: FrameType, event: str, argument: object) -> Any:
        """
        A bytecode is about to be run.
        """
        if event == "opcode":
            self.bytecodes += 1
        return self._stepped


def counts() -> dict[str, dict[str, float]]:
    """
    Count calls and bytecodes.

    @raise SystemExit: if a message is dearer the more there were before it.
    """
    gc.disable()
    found = {}
    for name, scenario in zip(("upstream", "downstream"), appServer(), strict=True):
        run(scenario, WARM)
        count = Count()
        first, second = count.of(scenario), count.of(scenario)
        for what, value in second.items():
            if value > first[what] * 1.01:
                raise SystemExit(f"{name}: {what} grow with the number of messages: {first}, {second}")
        found[name] = second
    return found


def _meter() -> tuple[str, list[str]] | None:
    """
    What counts instructions here: its name, and how a command is begun; None
    if there is nothing.
    """
    perf = ["perf", "stat", "-x,", "-e", "instructions:u"]
    if shutil.which("perf"):
        tried = subprocess.run([*perf, "true"], capture_output=True, text=True, check=False)
        if re.search(r"^\d+,", tried.stderr, re.MULTILINE):
            return "perf", perf
    if shutil.which("valgrind"):
        return "valgrind", [
            "valgrind",
            "--tool=cachegrind",
            "--cache-sim=no",
            "--cachegrind-out-file=/dev/null",
        ]
    return None


def _instructionsOf(prefix: Sequence[str], scenario: str, messages: int) -> int:
    """
    How many instructions a process takes that does nothing else.
    """
    command = [
        *prefix,
        sys.executable,
        str(Path(__file__)),
        f"--scenario={scenario}",
        f"--messages={messages}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"I\s+refs:\s+([\d,]+)|^(\d+),", done.stderr, re.MULTILINE)
    if done.returncode or found is None:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return int((found.group(1) or found.group(2)).replace(",", ""))


def instructions(prefix: Sequence[str]) -> float:
    """
    How many times the instructions of the floor the app server takes, upstream
    and downstream together.
    """
    wanted = [("ours", MANY), ("ours", 0), ("floor", MANY), ("floor", 0)]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        ours, oursIdle, least, leastIdle = pool.map(lambda pair: _instructionsOf(prefix, *pair), wanted)
    return (ours - oursIdle) / (least - leastIdle)


def compare(
    found: dict[str, dict[str, float]], recorded: dict[str, dict[str, float]]
) -> tuple[list[str], list[str]]:
    """
    Compare figures.

    @return: a line for each, and those that say what is dearer.
    """
    lines, dearer = [], []
    for name, values in found.items():
        for what, value in values.items():
            before = recorded.get(name, {}).get(what)
            if before is None:
                lines.append(f"{name}, {what}: {value:.2f}, nothing recorded")
                continue
            change = value / before - 1
            tolerance = INSTRUCTIONS_TOLERANCE if name == "instructions" else TOLERANCE
            line = f"{name}, {what}: {value:.2f}, recorded {before:.2f}, {change:+.1%}"
            if change > tolerance:
                line += f": dearer by more than {tolerance:.0%}"
                dearer.append(line)
            elif change < -tolerance:
                line += ": cheaper; renew the record with --record"
            lines.append(line)
    return lines, dearer


def scenarioAlone(name: str, messages: int) -> None:
    """
    What is run under the meter of instructions.
    """
    gc.disable()
    for scenario in appServer() if name == "ours" else floor():
        run(scenario, WARM + messages)


def main(arguments: Sequence[str]) -> None:
    """
    Count, and compare or record.

    @raise SystemExit: if a message has become dearer.
    """
    parser = argparse.ArgumentParser(description="Counts what a message costs.")
    parser.add_argument("--record", action="store_true", help="write the figures to cost.json")
    parser.add_argument("--no-instructions", action="store_true", help="without perf and valgrind")
    parser.add_argument("--scenario", choices=("ours", "floor"), help=argparse.SUPPRESS)
    parser.add_argument("--messages", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"})
    if options.scenario:
        scenarioAlone(options.scenario, options.messages)
        return
    found = counts()
    meter = None if options.no_instructions else _meter()
    if meter is None:
        print("instructions: not counted; that takes perf or valgrind")
    else:
        found["instructions"] = {"times the floor": instructions(meter[1])}
    versions = {name: version(name) for name in DEPENDENCIES}
    # Another compiler makes other instructions of the same code.
    versions["build of Python"] = " ".join(sys.version.split())
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if options.record:
        record[PYTHON] = {"versions": versions, "figures": found}
        RECORD.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    recorded = record.get(PYTHON)
    if recorded is None:
        print(f"Nothing is recorded for Python {PYTHON}, so nothing is compared; --record does that.")
        recorded = {"versions": versions, "figures": {}}
    others = {name for name, old in recorded["versions"].items() if old != versions.get(name)}
    if others == {"build of Python"}:
        print("The record is of another build of Python, so instructions are not compared.")
        recorded["figures"].pop("instructions", None)
    lines, dearer = compare(found, recorded["figures"])
    print("\n".join(lines))
    if others - {"build of Python"}:
        # It may be theirs what is dearer, and is for whoever renews the record to see.
        print(f"The record is of other versions of {', '.join(sorted(others))}: nothing fails for it.")
    elif dearer:
        raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
