"""
Whether nothing is lost when connections come and go under load.

Runs an app server of several links, as a process of its own (C{soak_app.py}),
against our connection server in this process: both directions at once, over
real sockets, while one connection after the other is drained and now and then
one is cut.  Checks that every message of a device was handled exactly once and
the device told so, that every C{send()} was settled exactly once and with an
ACK, that every downstream message reached its device, and that nothing is left
open; prints one line of JSON; the exit status is 1 unless all of it holds.

Linux only, because it reads C{/proc}.  See README.md for what the figures mean.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from math import ceil
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, TimeoutError, gatherResults
from twisted.internet.endpoints import SSL4ServerEndpoint
from twisted.internet.error import ProcessDone
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater, react
from twisted.python.failure import Failure
from upstream import selfSigned

from fcmxmpp.messages import WINDOW, Ack, DownstreamMessage, Nack, Receipt, UpstreamMessage
from fcmxmpp.server.registry import Registry
from fcmxmpp.server.service import ConnectionServer
from fcmxmpp.server.simulated import DeliveryFailed, SimulatedDevice
from fcmxmpp.server.stream import ServerStream
from fcmxmpp.session import Phase


SENDER = "123456789"
SERVER_KEY = "soak-server-key"
DEVICES = [f"device-{number:02d}" for number in range(20)]
#: What is in each message, and in the last.
TEXT, STOP = "x" * 200, "stop"
#: Seconds that the connection server takes for an answer, so that streams are
#: drained and cut with answers under way.
ANSWER_AFTER = 0.01
#: How long a stream that is drained stays open, as a part of the time until
#: the next is.
GRACE = 0.75
#: How many handled messages the app server remembers: few, so that its memory
#: has stopped growing after some seconds.
REMEMBERED = 5_000
#: Pauses shorter than this are not kept, in seconds.
SHORT = 0.001
#: For how long after a drain or a cut a pause counts as its own, in seconds.
AFTERMATH = 0.25


class Pauses:
    """
    The times between one message and the next.
    """

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._pauses: list[tuple[float, float]] = []

    def progress(self) -> None:
        """
        A message came through.
        """
        now = time.monotonic()
        if now - self._last > SHORT:
            self._pauses.append((self._last, now))
        self._last = now

    def longest(self, begin: float, end: float, causes: dict[str, list[float]]) -> dict[str, float]:
        """
        The longest pause between two moments, by the cause, in milliseconds.

        @param causes: when each happened.  A pause goes by the first that fits.
        """
        longest = dict.fromkeys([*causes, "neither"], 0.0)
        for since, until in self._pauses:
            if since < begin or until > end:
                continue
            cause = next(
                (
                    name
                    for name, moments in causes.items()
                    if any(since - AFTERMATH <= moment <= until for moment in moments)
                ),
                "neither",
            )
            longest[cause] = max(longest[cause], round((until - since) * 1e3, 1))
        return longest


class Server(ConnectionServer):
    """
    The connection server, watched.

    @ivar complete: fires when so many streams are logged in as there are links.
    @ivar upstream: the pauses between ACKs of the app server.
    @ivar downstream: the pauses between answers to it.
    @ivar mostUnanswered: on one stream, at any time.
    """

    def __init__(self, reactor: Any, links: int) -> None:
        super().__init__(Registry({SENDER: SERVER_KEY}), reactor)
        self._links = links
        self.script.delay(ANSWER_AFTER)
        # Those that are logged in, the oldest first.
        self._streams: list[ServerStream] = []
        self.complete: Deferred[None] = Deferred()
        self.upstream, self.downstream = Pauses(), Pauses()
        self.mostUnanswered = 0

    def ready(self, stream: ServerStream) -> None:
        """
        A stream is logged in.
        """
        self._streams.append(stream)
        if len(self._streams) == self._links and not self.complete.called:
            self.complete.callback(None)
        super().ready(stream)

    def lost(self, stream: ServerStream, unanswered: list[UpstreamMessage | Receipt]) -> None:
        """
        A stream is gone.
        """
        self._streams.remove(stream)
        super().lost(stream, unanswered)

    def acknowledged(self, stream: ServerStream, message: UpstreamMessage | Receipt) -> None:
        """
        The app server acknowledged a message.
        """
        self.upstream.progress()
        super().acknowledged(stream, message)

    def accept(self, stream: ServerStream, message: DownstreamMessage) -> None:
        """
        The app server sent a message.
        """
        super().accept(stream, message)
        assert stream.session is not None
        self.mostUnanswered = max(self.mostUnanswered, stream.session.owed)

    def answer(self, stream: ServerStream, answer: Ack | Nack) -> None:
        """
        Answer it, if its stream is still there.
        """
        if stream in self._streams:
            self.downstream.progress()
        super().answer(stream, answer)

    def oldest(self) -> ServerStream | None:
        """
        The stream that has been logged in the longest and is not drained yet.
        """
        return next((s for s in self._streams if s.session and s.session.phase is Phase.OPEN), None)


class Phone(SimulatedDevice):
    """
    A device that counts instead of keeping what it receives.

    @ivar counts: how often each message came, by its C{message_id}.
    @ivar sent: the C{message_id} of each message that it has sent.
    """

    def __init__(self, server: ConnectionServer, token: str) -> None:
        super().__init__(server, SENDER, token)
        self.token = token
        self.counts: Counter[str] = Counter()
        self.sent: list[str] = []

    def messageReceived(self, message: DownstreamMessage) -> None:
        """
        The app server has sent a message.
        """
        self.counts[message.message_id or ""] += 1

    def say(self, message_id: str, text: str) -> Deferred[None]:
        """
        Send a message.
        """
        self.sent.append(message_id)
        return self.send(message_id, {"text": text})

    async def talk(self, until: float) -> None:
        """
        Send a message, wait until it is delivered, send the next.
        """
        while time.monotonic() < until:
            try:
                await self.say(str(len(self.sent)), TEXT)
            except DeliveryFailed:
                # It is not told that it was delivered, and that is seen.
                return


class Application(ProcessProtocol):
    """
    The process that is tested.

    @ivar directory: where its files are.
    @ivar ended: fires when it has ended, with whether that was in order.
    """

    def __init__(self, directory: Path) -> None:
        """
        @param directory: an empty one.
        """
        self.directory = directory
        self.ended: Deferred[bool] = Deferred()

    def start(self, reactor: Any, options: argparse.Namespace, endpoint: str) -> None:
        """
        Run it.

        @param endpoint: where the connection server listens.
        """
        settings = {
            "directory": str(self.directory),
            "endpoint": endpoint,
            "senderID": SENDER,
            "serverKey": SERVER_KEY,
            "links": options.links,
            "devices": DEVICES,
            "outstanding": options.outstanding,
            "text": TEXT,
            "stop": STOP,
            "remembered": REMEMBERED,
            "seed": options.seed,
        }
        command = [
            *(str(Path(sys.executable).with_name("twistd")), "-n", "--no_save", "--pidfile="),
            *(f"--logfile={self.directory / 'log'}", "-y", str(Path(__file__).with_name("soak_app.py"))),
        ]
        environment = {**os.environ, "SOAK": json.dumps(settings)}
        with (self.directory / "errors").open("wb") as errors:
            files = {1: errors.fileno(), 2: errors.fileno()}
            reactor.spawnProcess(self, command[0], command, env=environment, childFDs=files)

    def processEnded(self, reason: Failure) -> None:
        """
        It is gone.
        """
        self.ended.callback(reason.check(ProcessDone) is not None)

    def rss(self) -> int:
        """
        How much memory it has, in kilobytes.
        """
        status = Path(f"/proc/{self.transport.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])

    def lines(self, name: str) -> Counter[str]:
        """
        How often each line is in one of its files.
        """
        return Counter((self.directory / name).read_text().splitlines())

    def counts(self) -> Counter[str]:
        """
        What it counted; nothing if it did not come to its end.
        """
        file = self.directory / "counts"
        return Counter(json.loads(file.read_text()) if file.exists() else {})


class Soak:
    """
    One run.

    @ivar isComplete: whether it came to the end of its time.
    """

    def __init__(self, reactor: Any, options: argparse.Namespace, application: Application) -> None:
        self._reactor = reactor
        self._options = options
        self._application = application
        self._random = random.Random(options.seed)
        self._server = Server(reactor, options.links)
        self._phones = [Phone(self._server, token) for token in DEVICES]
        self._begin = self._end = 0.0
        self._counted = (0, 0)
        self._rss: list[int] = []
        self.isComplete = False
        # When a stream was drained, or closed after that; and cut.
        self._drainsAndCloses: list[float] = []
        self._cuts: list[float] = []
        self._drained = self._cutWhileDraining = 0
        self._inOrder = False

    async def run(self) -> None:
        """
        Do it, until the application has ended.
        """
        certificate = selfSigned()
        trustRoots = self._application.directory / "certs"
        trustRoots.mkdir()
        (trustRoots / "server.pem").write_bytes(certificate.dumpPEM())
        self._server.startService()
        endpoint = SSL4ServerEndpoint(self._reactor, 0, certificate.options(), interface="127.0.0.1")
        port = await endpoint.listen(self._server.factory)
        description = f"tls:localhost:{port.getHost().port}:trustRoots={trustRoots}"
        self._application.start(self._reactor, self._options, description)
        measuring = Deferred.fromCoroutine(self._measure())

        def noMore(inOrder: bool) -> bool:
            # If it ends too early, there is nothing to wait for.
            measuring.cancel()
            return inOrder

        self._application.ended.addCallback(noMore)
        measuring.addTimeout(self._options.seconds + self._options.deadline, self._reactor)
        patience = 0.0
        try:
            await measuring
            patience = self._options.deadline
        except (TimeoutError, CancelledError):
            # The figures will tell.
            pass
        finally:
            calls = [
                self._reactor.callLater(patience + seconds, self._application.transport.signalProcess, name)
                for seconds, name in ((0.0, "TERM"), (30.0, "KILL"))
                if not self._application.ended.called
            ]
            self._inOrder = await self._application.ended
            for call in calls:
                if call.active():
                    call.cancel()
            await port.stopListening()
            await self._server.stopService()

    async def _measure(self) -> None:
        """
        Have both sides talk for some time, with drains and cuts, and then have
        the application end.
        """
        await self._server.complete
        self._begin = begin = time.monotonic()
        seconds = self._options.seconds
        every = self._options.drain_every
        for number in range(1, ceil(seconds / every)):
            self._reactor.callLater(number * every, self._drain)
        every = self._options.cut_every
        for number in range(1, ceil(seconds / every)):
            # Not always together with a drain.
            self._reactor.callLater(number * every + self._random.uniform(0.0, every / 5), self._cut)
        talking = gatherResults(
            [
                Deferred.fromCoroutine(self._phones[number % len(self._phones)].talk(begin + seconds))
                for number in range(self._options.outstanding)
            ],
            consumeErrors=True,
        )
        for part in (0.25, 0.5, 1.0):
            await deferLater(self._reactor, max(0.0, begin + part * seconds - time.monotonic()))
            self._rss.append(self._application.rss())
        self._end = time.monotonic()
        self.isComplete = True
        self._counted = (self._server.statistics.acknowledged, self._server.statistics.accepted)
        await talking
        await self._phones[0].say("stop", STOP)

    def _drain(self) -> None:
        """
        Drain the stream that has been there the longest: the links in turn.
        """
        stream = self._server.oldest()
        if stream is not None:
            grace = self._options.drain_every * GRACE
            self._drained += 1
            self._drainsAndCloses += [time.monotonic(), time.monotonic() + grace]
            self._server.drain(grace, [stream])

    def _cut(self) -> None:
        """
        Cut any connection.
        """
        streams = self._server.streams()
        if streams:
            stream = self._random.choice(streams)
            assert stream.session is not None
            self._cuts.append(time.monotonic())
            self._cutWhileDraining += stream.session.phase is Phase.DRAINING
            stream.abort()

    def figures(self) -> dict[str, Any]:
        """
        What came of it.
        """
        application, server = self._application, self._server
        counts = application.counts()
        handled = application.lines("handled")
        sent = {f"{phone.token} {name}" for phone in self._phones for name in phone.sent}
        outcomes = application.lines("outcomes")
        settled = Counter(line.partition(" ")[0] for line in outcomes.elements())
        accepted = {line.partition(" ")[0] for line in outcomes if line.endswith(" accepted")}
        received = sum((phone.counts for phone in self._phones), Counter())
        told = [len(phone.delivered) for phone in self._phones]
        toldOnce = [len(set(phone.delivered)) for phone in self._phones]
        causes = {"cut": self._cuts, "drain": self._drainsAndCloses}
        seconds = self._end - self._begin
        upstream, downstream = self._counted
        return {
            "seconds": round(seconds, 3),
            "links": self._options.links,
            "drains": self._drained,
            "cuts": len(self._cuts),
            "cuts_while_draining": self._cutWhileDraining,
            "upstream": len(sent),
            "upstream_per_s": round(upstream / seconds),
            "lost": len(sent - set(handled)),
            "handled_twice": handled.total() - len(handled),
            "not_told_delivered": len(sent) - sum(toldOnce),
            "told_twice": sum(told) - sum(toldOnce),
            "redelivered": server.statistics.redelivered,
            "redelivered_while_or_after_handling": counts["Repeated"],
            "handlers_failed": counts["HandlingFailed"],
            "downstream": counts["sends"],
            "downstream_per_s": round(downstream / seconds),
            "unsettled": counts["sends"] - len(settled),
            "settled_twice": settled.total() - len(settled),
            "not_accepted": len(set(settled) - accepted),
            "never_received": len(accepted - set(received)),
            "resent": counts["resent"],
            "received_again": received.total() - len(received),
            "most_unanswered": server.mostUnanswered,
            "stanza_errors": counts["stanzaErrors"],
            "failures_logged": counts["failuresLogged"],
            "sockets_left": counts["socketsLeft"],
            "timers_left": counts["timersLeft"],
            "rss_kb": self._rss,
            "longest_pause_upstream_ms": server.upstream.longest(self._begin, self._end, causes),
            "longest_pause_downstream_ms": server.downstream.longest(self._begin, self._end, causes),
            "clean_exit": self._inOrder and "timersLeft" in counts,
        }


#: What has to be 0.
WRONG = (
    *("lost", "handled_twice", "not_told_delivered", "told_twice"),
    *("unsettled", "settled_twice", "not_accepted", "never_received"),
    *("stanza_errors", "failures_logged", "sockets_left", "timers_left"),
)


def holds(figures: dict[str, Any], growth: int) -> bool:
    """
    Whether all is as it has to be.

    @param growth: how many kilobytes more the app server may have in the end
        than after a quarter of the time.
    """
    return (
        figures["clean_exit"]
        and not any(figures[name] for name in WRONG)
        and figures["most_unanswered"] <= WINDOW
        and figures["rss_kb"][-1] - figures["rss_kb"][0] <= growth
    )


def parseOptions(arguments: list[str]) -> argparse.Namespace:
    """
    Read the command line.
    """
    parser = argparse.ArgumentParser(description="Sees whether anything is lost as connections come and go.")
    add = parser.add_argument
    add("--seconds", type=float, default=60.0, help="for how long [%(default)s]")
    add("--links", type=int, default=4, help="of the app server [%(default)s]")
    add("--drain-every", type=float, default=2.0, metavar="SECONDS", help="one link [%(default)s]")
    add("--cut-every", type=float, default=5.0, metavar="SECONDS", help="one connection [%(default)s]")
    add("--outstanding", type=int, default=500, help="messages, each way; windows take 100 [%(default)s]")
    add("--seed", type=int, default=1, help="chooses what to cut and which handlers fail [%(default)s]")
    add("--deadline", type=float, default=120.0, help="more seconds for all of it [%(default)s]")
    add(
        "--growth", type=int, default=4096, metavar="KB", help="of memory after a quarter of it [%(default)s]"
    )
    options = parser.parse_args(arguments)
    amounts = (options.seconds, options.links, options.drain_every, options.cut_every, options.outstanding)
    if min(amounts) <= 0:
        parser.error("everything has to be more than 0")
    return options


async def run(reactor: Any, options: argparse.Namespace) -> None:
    """
    Do one run, and print what came of it.

    @raise SystemExit: if anything is wrong.
    """
    with tempfile.TemporaryDirectory(prefix="fcmxmpp-soak-") as directory:
        application = Application(Path(directory))
        soak = Soak(reactor, options, application)
        await soak.run()
        figures = soak.figures() if soak.isComplete else None
        if figures is None or not holds(figures, options.growth):
            for file in ("errors", "log"):
                path = application.directory / file
                text = path.read_text() if path.exists() else ""
                sys.stderr.writelines(text.splitlines(keepends=True)[-20:])
    if figures is None:
        raise SystemExit("the app server did not log in, or did not last")
    print(json.dumps(figures))
    if not holds(figures, options.growth):
        raise SystemExit(1)


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(run(reactor, parseOptions(sys.argv[1:]))))
