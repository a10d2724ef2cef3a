"""
How fast, how lean and how reliable the app server takes upstream messages.

Runs C{twistd fcm-xmpp} with its default handler, as a process of its own,
against a load generator in this process that plays the connection server: it
does the login and the window and nothing else, so that it keeps ahead of the
app server.  Checks that every message was handled exactly once and in order,
and was acknowledged on the stream that brought it; prints one line of JSON; the
exit status is 1 if anything was lost, doubled or out of order.

Linux only, because it reads C{/proc}.  See README.md for what the figures mean.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import re
import sys
import tempfile
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from statistics import quantiles
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.endpoints import SSL4ServerEndpoint
from twisted.internet.error import ProcessDone
from twisted.internet.protocol import Factory, ProcessProtocol, Protocol, connectionDone
from twisted.internet.ssl import PrivateCertificate
from twisted.internet.task import react
from twisted.python.failure import Failure

from fcmxmpp.delivery import POLICIES
from fcmxmpp.store.database import connect


SENDER = "123456789"
DEVICES = [b"device-%02d" % number for number in range(100)]
#: An app server that held a connection for 60 seconds forgets earlier losses.
STABLE = 61.0
#: From when a cut is due to when it is made, at most, in seconds: about as long
#: as a window of messages takes, so that it falls anywhere in one.
SOON = 0.002

_HEADER = (
    b'<stream:stream from="gcm.googleapis.com" id="0123456789ABCDEF" version="1.0" '
    b'xmlns:stream="http://etherx.jabber.org/streams" xmlns="jabber:client"><stream:features>%b'
    b"</stream:features>"
)
_BOUND = (
    b'<iq type="result" id="%b"><bind xmlns="urn:ietf:params:xml:ns:xmpp-bind"><jid>'
    b"123456789@gcm.googleapis.com/benchmark</jid></bind></iq>"
)
#: What the app server says while it logs in, and what the answer is.
_LOGIN = (
    (
        re.compile(rb"<stream:stream [^>]*>"),
        _HEADER
        % b'<mechanisms xmlns="urn:ietf:params:xml:ns:xmpp-sasl"><mechanism>PLAIN</mechanism></mechanisms>',
    ),
    (re.compile(rb"<auth [^>]*>[^<]+</auth>"), b'<success xmlns="urn:ietf:params:xml:ns:xmpp-sasl"/>'),
    (
        re.compile(rb"<stream:stream [^>]*>"),
        _HEADER % b'<bind xmlns="urn:ietf:params:xml:ns:xmpp-bind"/>',
    ),
    (re.compile(rb"""<iq [^>]*id=['"]([^'"]+)['"].*?</iq>"""), _BOUND),
)
_ACK = re.compile(rb'>\{"to":"([^"]+)","message_id":"(\d+)","message_type":"ack"\}<')
_STANZA = (
    b'<message to="123456789@gcm.googleapis.com" from="devices@gcm.googleapis.com" type="normal">'
    b'<gcm xmlns="google:mobile:data">{"data":{"text":"%b"},"time_to_live":86400,"from":"%b",'
    b'"message_id":"%08d","category":"org.example.app"}</gcm></message>'
)
_BARE = len(_STANZA % (b"", DEVICES[0], 0))


class AppServerEnded(Exception):
    """
    The app server's process ended before it was stopped.
    """


class AppServer(ProcessProtocol):
    """
    The process to be measured, C{twistd fcm-xmpp}.

    @ivar lines: the file that its handler writes.
    @ivar log: its log.
    @ivar errors: the file that has its standard error.
    @ivar store: the file of its store, if it has one.
    @ivar ended: fires when it has ended, with whether that was in order.
    """

    def __init__(self, directory: Path, messages: int) -> None:
        """
        @param directory: an empty one, for all files.
        @param messages: how many there will be.
        """
        self._directory = directory
        self.lines, self.log, self.errors = (directory / name for name in ("lines", "log", "errors"))
        self.store = directory / "store.sqlite"
        self._milestones = {0, messages // 10, messages // 2, messages}
        #: At the first message and at the last ACK: the time, the CPU time of
        #: this process, and that of the app server.
        self.points: list[tuple[float, float, float]] = []
        #: Memory in kilobytes, at the first message and at each milestone.
        self.rss: list[int] = []
        self.peak = 0
        self.ended: Deferred[bool] = Deferred()

    def start(
        self, reactor: Any, port: int, certificate: PrivateCertificate, options: argparse.Namespace
    ) -> None:
        """
        Run it.

        @param port: where the connection server listens.
        """
        trustRoots, key = self._directory / "certs", self._directory / "key"
        trustRoots.mkdir()
        (trustRoots / "generator.pem").write_bytes(certificate.dumpPEM())
        key.write_text("benchmark-server-key\n")
        profile, store = options.profile, self.store
        command = [
            *(str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=", f"--logfile={self.log}"),
            *(["--profiler=cprofile", "--savestats", f"--profile={profile}"] if profile else []),
        ]
        environment = dict(os.environ)
        endpoint = f"tls:localhost:{port}:trustRoots={trustRoots}"
        if options.commit_per_message or options.switch_interval:
            # There is no option for that.
            command += ["-y", str(Path(__file__).with_name("upstream_app.py"))]
            environment["UPSTREAM"] = json.dumps(
                {
                    "endpoint": endpoint,
                    "sender_id": SENDER,
                    "server_key_file": str(key),
                    "store": str(store),
                    "ack": options.ack,
                    "commit_per_message": options.commit_per_message,
                    "switch_interval": options.switch_interval,
                }
            )
        else:
            command += ["fcm-xmpp", f"--endpoint={endpoint}", f"--sender-id={SENDER}"]
            command += [f"--server-key-file={key}"]
            command += [f"--store=sqlite:{store}"] if options.store else []
            command += [f"--ack={options.ack}"] if options.ack else []
        with self.lines.open("wb") as lines, self.errors.open("wb") as errors:
            files = {1: lines.fileno(), 2: errors.fileno()}
            reactor.spawnProcess(self, command[0], command, env=environment, childFDs=files)

    def processEnded(self, reason: Failure) -> None:
        """
        It is gone.
        """
        self.ended.callback(reason.check(ProcessDone) is not None)

    async def stop(self) -> bool:
        """
        Stop it, if it is still there.

        @return: whether it ended in order.
        """
        if not self.ended.called:
            self.transport.signalProcess("TERM")
        return await self.ended

    def reached(self, acked: int) -> None:
        """
        So many messages have been acknowledged; read the meters if it is time.
        """
        if acked not in self._milestones:
            return
        pid = self.transport.pid
        if acked == 0 or acked == max(self._milestones):
            # What /proc/PID/stat has in ticks of 10 ms, to the nanosecond: that
            # is how Linux makes the number of a process's clock.
            self.points.append((time.monotonic(), time.process_time(), time.clock_gettime(~pid << 3 | 2)))
        status = Path(f"/proc/{pid}/status").read_text()
        self.rss.append(int(status.partition("VmRSS:")[2].split()[0]))
        self.peak = int(status.partition("VmHWM:")[2].split()[0])

    def handled(self) -> int:
        """
        How many messages it has handled.
        """
        return self.lines.read_bytes().count(b"\n")

    def _inbox(self) -> set[int]:
        """
        What has been acknowledged, and would be handled after a new start.
        """
        if not self.store.exists():
            return set()
        with closing(connect(str(self.store))) as connection:
            rows = connection.execute("SELECT message_id FROM inbox WHERE reason IS NULL").fetchall()
        return {int(message_id) for (message_id,) in rows}

    def verdict(self, messages: int) -> dict[str, int]:
        """
        Compare what was handled with what was sent.
        """
        left = self._inbox()
        numbers = [int(json.loads(line)["message_id"]) for line in self.lines.read_bytes().splitlines()]
        return {
            "lost": len(set(range(messages)) - set(numbers) - left),
            "left_in_inbox": len(left),
            "handled_twice": len(numbers) - len(set(numbers)),
            "out_of_order": sum(this > following for this, following in pairwise(numbers)),
        }


class Generator(Factory):
    """
    All the messages, on one stream after the other.

    @ivar done: fires when every message has been acknowledged.
    @ivar acked: how many have been.
    @ivar waited: seconds from sending to ACK, of each; for a message that was
        delivered again, from when it was first sent.
    @ivar redelivered: how many were sent again after a cut.
    @ivar repeated: how many of these had been handled, so that only the ACK
        was lost.
    @ivar strayAcks: ACKs for what was not unanswered on the stream.
    """

    noisy = False

    def __init__(self, reactor: Any, options: argparse.Namespace, app: AppServer) -> None:
        self._reactor = reactor
        self._options = options
        self._app = app
        self._random = random.Random(options.seed)
        self._padding = b"x" * (options.size - _BARE)
        #: After how many ACKs the connection is cut.
        self._cutsDue = sorted(self._random.choices(range(1, options.messages), k=options.cuts))
        self._cutIsSet = False
        self._holding = False
        self._stream: Stream | None = None
        self._since = 0.0
        self._sent = 0
        #: When each unanswered message was first sent, in order.
        self._unanswered: dict[int, float] = {}
        self.done: Deferred[None] = Deferred()
        self.acked = 0
        self.waited: list[float] = []
        self.cuts = 0
        self.redelivered = 0
        self.repeated = 0
        self.strayAcks = 0

    def buildProtocol(self, addr: object) -> Stream:
        """
        The app server has connected.
        """
        return Stream(self)

    def ready(self, stream: Stream) -> None:
        """
        The app server is logged in.
        """
        self._stream = stream
        self._since = time.monotonic()
        if self._unanswered:
            self.redelivered += len(self._unanswered)
            # It logs in only when it is done with the stream before.
            self.repeated += max(0, self._app.handled() - self.acked)
        if not self._sent:
            self._app.reached(0)
        stream.transport.write(b"".join(map(self._stanza, self._unanswered)))
        self._fill()

    def _stanza(self, number: int) -> bytes:
        """
        A message.
        """
        return _STANZA % (self._padding, DEVICES[number % len(DEVICES)], number)

    def _fill(self) -> None:
        """
        Send what there is room for, but keep the last message for after the
        last cut.
        """
        last = self._options.messages - (1 if self._cutsDue or self._cutIsSet else 0)
        room = self._options.window - len(self._unanswered)
        if self._cutIsSet:
            # Not always in the midst of a full window.
            room = self._random.randint(0, room)
        numbers = range(self._sent, min(self._sent + room, last))
        if self._stream is not None and numbers and not self._holding:
            self._sent = numbers.stop
            self._unanswered.update(dict.fromkeys(numbers, time.monotonic()))
            self._stream.transport.write(b"".join(map(self._stanza, numbers)))

    def acknowledged(self, acks: list[tuple[bytes, bytes]]) -> None:
        """
        ACKs came.
        """
        now = time.monotonic()
        for to, text in acks:
            number = int(text)
            since = self._unanswered.pop(number, None)
            if since is None or to != DEVICES[number % len(DEVICES)]:
                self.strayAcks += 1
                continue
            self.waited.append(now - since)
            self.acked += 1
            self._app.reached(self.acked)
        if self._cutsDue and self.acked >= self._cutsDue[0] and not self._cutIsSet:
            self._setCut()
        self._fill()
        if self.acked == self._options.messages and not self.done.called:
            self.done.callback(None)

    def _setCut(self) -> None:
        """
        Cut the connection soon; now and then only after it has been stable.
        """
        del self._cutsDue[0]
        self._cutIsSet = True
        every = self._options.stable_every
        if every and (self.cuts + 1) % every == 0:
            self._holding = True
            self._reactor.callLater(max(0.0, self._since + STABLE - time.monotonic()), self._release)
        else:
            self._reactor.callLater(self._random.uniform(0.0, SOON), self._cut)

    def _release(self) -> None:
        """
        The connection has been stable: go on, and cut it soon.
        """
        self._holding = False
        self._fill()
        self._reactor.callLater(self._random.uniform(0.0, SOON), self._cut)

    def _cut(self) -> None:
        """
        Break the connection.
        """
        self._cutIsSet = False
        if self._stream is not None:
            self.cuts += 1
            self._stream.transport.abortConnection()

    def lost(self, stream: Stream) -> None:
        """
        A stream is gone.
        """
        if self._stream is stream:
            self._stream = None

    def appServerEnded(self, inOrder: bool) -> bool:
        """
        The app server's process is gone; too early, if there is more to do.
        """
        if not self.done.called:
            self.done.errback(AppServerEnded())
        return inOrder


class Stream(Protocol):
    """
    One connection of the app server.
    """

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._step = 0
        self._rest = b""

    def dataReceived(self, data: bytes) -> None:
        """
        The app server says something.
        """
        data = self._rest + data
        if self._step < len(_LOGIN):
            self._rest = data
            self._login()
            return
        whole = data.rfind(b"</message>") + len(b"</message>")
        if whole < len(b"</message>"):
            self._rest = data
            return
        self._rest = data[whole:]
        acks = _ACK.findall(data, 0, whole)
        if len(acks) != data.count(b"</message>", 0, whole):
            raise ValueError("the app server sent a message that is no ACK")
        self._generator.acknowledged(acks)

    def _login(self) -> None:
        """
        Answer the next step of the login, if it is here.
        """
        pattern, answer = _LOGIN[self._step]
        found = pattern.search(self._rest)
        if found is None:
            return
        self._rest = self._rest[found.end() :]
        self._step += 1
        self.transport.write(answer % found.groups() if found.groups() else answer)
        if self._step == len(_LOGIN):
            self._generator.ready(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        The connection is gone.
        """
        self._generator.lost(self)


def selfSigned() -> PrivateCertificate:
    """
    A certificate for localhost.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fcmxmpp benchmark")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return PrivateCertificate.loadPEM(private + certificate.public_bytes(Encoding.PEM))


async def measure(reactor: Any, options: argparse.Namespace, app: AppServer) -> dict[str, Any]:
    """
    Do one run.

    @return: the figures.
    """
    certificate = selfSigned()
    generator = Generator(reactor, options, app)
    endpoint = SSL4ServerEndpoint(reactor, 0, certificate.options(), interface="127.0.0.1")
    port = await endpoint.listen(generator)
    app.start(reactor, port.getHost().port, certificate, options)
    app.ended.addCallback(generator.appServerEnded)
    generator.done.addTimeout(options.deadline, reactor)
    try:
        await generator.done
    finally:
        inOrder = await app.stop()
        await port.stopListening()
    (begin, ownBegin, cpuBegin), (end, ownEnd, cpuEnd) = app.points
    seconds, count = end - begin, options.messages
    percentiles = quantiles(generator.waited, n=100)
    return {
        "messages": count,
        "size": options.size,
        "window": options.window,
        "seconds": round(seconds, 3),
        "messages_per_s": round(count / seconds),
        "cpu_us_per_message": round((cpuEnd - cpuBegin) / count * 1e6, 2),
        "cpu_share": round((cpuEnd - cpuBegin) / seconds, 2),
        "generator_cpu_us_per_message": round((ownEnd - ownBegin) / count * 1e6, 2),
        "p50_ms": round(percentiles[49] * 1e3, 2),
        "p99_ms": round(percentiles[98] * 1e3, 2),
        "peak_rss_kb": app.peak,
        "rss_kb": app.rss[1:],
        **app.verdict(count),
        "stray_acks": generator.strayAcks,
        "cuts": generator.cuts,
        "redelivered": generator.redelivered,
        "redelivered_after_handling": generator.repeated,
        "clean_exit": inOrder,
    }


def parseOptions(arguments: list[str]) -> argparse.Namespace:
    """
    Read the command line.
    """
    parser = argparse.ArgumentParser(description="Measures the app server with upstream messages.")
    parser.add_argument("--messages", type=int, default=20_000, help="how many; 10 or more [%(default)s]")
    parser.add_argument("--size", type=int, default=300, help="bytes of a stanza [%(default)s]")
    parser.add_argument("--window", type=int, default=100, help="unanswered messages [%(default)s]")
    parser.add_argument("--cuts", type=int, default=0, help="how often to cut the connection [%(default)s]")
    parser.add_argument("--seed", type=int, default=1, help="chooses the moments of the cuts [%(default)s]")
    parser.add_argument(
        "--stable-every",
        type=int,
        default=7,
        metavar="N",
        help="before every Nth cut hold the connection for a minute, so that the app server's back-off "
        "begins anew; 0 is never [%(default)s]",
    )
    parser.add_argument("--deadline", type=float, default=1200.0, help="seconds for all [%(default)s]")
    parser.add_argument("--profile", metavar="FILE", help="write a cProfile of the app server")
    parser.add_argument("--ack", choices=POLICIES, help="when it acknowledges [its own default]")
    parser.add_argument("--store", action="store_true", help="give it a store, in a temporary directory")
    parser.add_argument(
        "--commit-per-message", action="store_true", help="a store without group commit, to compare with"
    )
    parser.add_argument(
        "--switch-interval", type=float, metavar="S", help="a store, and the interpreter's switch interval"
    )
    parser.add_argument(
        "--directory", help="where to make the temporary directory, for the disk to be measured"
    )
    options = parser.parse_args(arguments)
    if options.messages < 10 or not 0 < options.window <= 100 or options.size < _BARE:
        parser.error(f"10 messages or more, of {_BARE} bytes or more, with a window of 1 to 100")
    return options


async def runOnce(reactor: Any, options: argparse.Namespace) -> dict[str, Any]:
    """
    Do one run.

    @return: the figures.
    @raise SystemExit: if it does not come to its end.
    """
    with tempfile.TemporaryDirectory(prefix="fcmxmpp-benchmark-", dir=options.directory) as directory:
        app = AppServer(Path(directory), options.messages)
        try:
            return await measure(reactor, options, app)
        except (TimeoutError, AppServerEnded) as error:
            for file in (app.errors, app.log):
                text = file.read_text() if file.exists() else ""
                sys.stderr.writelines(text.splitlines(keepends=True)[-20:])
            raise SystemExit(f"{type(error).__name__}: not every message was acknowledged") from None


def isWrong(figures: dict[str, Any]) -> bool:
    """
    Whether anything was lost, doubled or out of order.
    """
    wrong = ("lost", "handled_twice", "out_of_order", "stray_acks")
    return any(figures[name] for name in wrong) or not figures["clean_exit"]


async def run(reactor: Any, options: argparse.Namespace) -> None:
    """
    Do one run, and print what came of it.

    @raise SystemExit: if anything is wrong.
    """
    figures = await runOnce(reactor, options)
    print(json.dumps(figures))
    if isWrong(figures):
        raise SystemExit(1)


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(run(reactor, parseOptions(sys.argv[1:]))))
