"""
How many devices a connection server can have: memory for each that is idle,
logins a second, messages a second and CPU time for each, upstream and downstream.

    python benchmarks/devices.py [--devices 5000] [--messages 20000]

C{twistd fcm-connection-server} is a process of its own; the devices and the app
server are in this one, over TLS on loopback.  Devices have checked in and are
registered before: their identities are written into the store beforehand.  One
line of JSON tells the figures; the exit status is 1 if a message was lost or
came twice.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults
from twisted.internet.endpoints import SSL4ClientEndpoint, TCP4ClientEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.protocol import Protocol
from twisted.internet.ssl import Certificate, CertificateOptions, optionsForClientTLS
from twisted.internet.task import react
from zope.interface import implementer

from fcmxmpp.appserver import AppServer
from fcmxmpp.connection import Credentials
from fcmxmpp.interfaces import IUpstreamHandler
from fcmxmpp.mcs.devicesession import DeviceSession, LoggedIn, Received, UploadsAcknowledged, Write
from fcmxmpp.mcs.stanzas import uploadStanza
from fcmxmpp.messages import DownstreamMessage, UpstreamMessage
from fcmxmpp.registrations import Application, Identity
from fcmxmpp.store.database import connect, transaction
from fcmxmpp.store.registrations import checkIn, register
from fcmxmpp.store.sqlite import SQLiteStore


SENDER = "123456789"
APP = "org.example.app"
DATA = {"op": "status", "text": "x" * 150}
TICK = os.sysconf("SC_CLK_TCK")


class Device(Protocol):
    """
    A device that only counts.
    """

    def __init__(self, bench: Bench, identity: Identity) -> None:
        self._bench = bench
        self._session = DeviceSession(identity, "bench-1", [], time.time(), 3600.0)
        self.ready: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        """
        There is a connection.
        """
        self._carryOut(self._session.start())

    def dataReceived(self, data: bytes) -> None:
        """
        Some bytes came.
        """
        self._carryOut(self._session.receive(data, time.time()))

    def _carryOut(self, outputs: list[Any]) -> None:
        """
        Do what the session wants done.
        """
        for output in outputs:
            if isinstance(output, Write):
                self.transport.write(output.data)  # type: ignore[union-attr]  # connected
            elif isinstance(output, LoggedIn):
                self.ready.callback(None)
            elif isinstance(output, UploadsAcknowledged):
                self._bench.stored(len(output.handles))
            elif isinstance(output, Received):
                self._bench.received(output.stanza.persistent_id)
                self._carryOut(self._session.processed(output.streamID, True, time.time()))

    def send(self, number: int) -> None:
        """
        Send a message.
        """
        stanza = uploadStanza(
            f"u-{number}", f"{SENDER}@gcm.googleapis.com", APP, DATA, 3600, str(number), time.time()
        )
        self._carryOut(self._session.upload(number, stanza.SerializeToString(), time.time()))


@implementer(IUpstreamHandler)
class Bench:
    """
    One run.
    """

    def __init__(self, reactor: Any, options: argparse.Namespace) -> None:
        self._reactor = reactor
        self._options = options
        self._directory = Path(tempfile.mkdtemp(prefix="fcmxmpp-bench-"))
        self._left = 0
        self._done: Deferred[None] = Deferred()
        self._seen: set[str] = set()
        self._twice = 0
        self._storedCount = 0

    # What is counted.

    def messageReceived(self, message: UpstreamMessage) -> None:
        """
        The app server has got a message.
        """
        self.received(message.message_id)

    def received(self, name: str) -> None:
        """
        Something has arrived.
        """
        if name in self._seen:
            self._twice += 1
            return
        self._seen.add(name)
        self._left -= 1
        if not self._left:
            self._done.callback(None)

    def stored(self, count: int) -> None:
        """
        Devices were told that messages are stored.
        """
        self._storedCount += count

    # The server.

    def _register(self, path: str, count: int) -> list[tuple[Identity, str]]:
        """
        Write devices into a store.
        """
        store = SQLiteStore(path, self._reactor)
        made = []
        connection = connect(path)
        application = Application(category=APP, senderID=SENDER)
        now = time.time()
        with transaction(connection):
            for number in range(1, count + 1):
                (identity,) = checkIn(connection, [(None, Identity(number, number), now)])
                token = store.registrations._newToken()
                register(connection, [(identity, application, token, now)])
                made.append((identity, token))
        connection.close()
        return made

    def _start(self) -> tuple[subprocess.Popen[bytes], dict[str, int]]:
        """
        Start the server.
        """
        log = self._directory / "log"
        command = [
            str(Path(sys.executable).parent / "twistd"),
            "-n",
            "--pidfile=",
            "--logfile=" + str(log),
            "fcm-connection-server",
            "--self-signed=trial",
            "--xmpp=tls:0:interface=127.0.0.1",
            "--devices=tls:0:interface=127.0.0.1",
            "--store=sqlite:server.db",
        ]
        process = subprocess.Popen(command, cwd=self._directory, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 30
        while time.monotonic() < until:
            text = log.read_text() if log.exists() else ""
            ports = dict(re.findall("(app servers|devices) connect to port ([0-9]+)", text))
            if len(ports) == 2:
                return process, {name: int(port) for name, port in ports.items()}
            time.sleep(0.05)
        raise SystemExit(f"the connection server does not start: see {log}")

    def _cpu(self, pid: int) -> float:
        """
        Seconds of CPU time that the server has used.
        """
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def _memory(self, pid: int) -> float:
        """
        KiB that the server has in memory.
        """
        return float(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])  # type: ignore[index]

    async def _phase(self, pid: int, count: int, begin: Any) -> dict[str, float]:
        """
        Have messages sent, and wait until all have arrived.
        """
        self._left, self._done, self._seen = count, Deferred(), set()
        cpu, began = self._cpu(pid), time.monotonic()
        begin()
        await self._done.addTimeout(300, self._reactor)
        seconds = time.monotonic() - began
        return {
            "messages_per_second": round(count / seconds),
            "cpu_us_per_message": round((self._cpu(pid) - cpu) / count * 1e6, 1),
        }

    async def run(self) -> dict[str, Any]:
        """
        Measure.
        """
        count, messages = self._options.devices, self._options.messages
        registered = self._register(str(self._directory / "server.db"), count)
        process, ports = self._start()
        try:
            return await self._measure(process.pid, ports, registered, messages)
        finally:
            process.terminate()
            process.wait()
            shutil.rmtree(self._directory)

    async def _measure(
        self, pid: int, ports: dict[str, int], registered: list[tuple[Identity, str]], messages: int
    ) -> dict[str, Any]:
        """
        See L{run}.
        """
        count = len(registered)
        authority = (self._directory / "trial" / "certs" / "ca.pem").read_bytes()
        trusting = optionsForClientTLS("localhost", trustRoot=Certificate.loadPEM(authority))
        key = (self._directory / "trial" / "server-key.txt").read_text().strip()
        server = AppServer(
            wrapClientTLS(trusting, TCP4ClientEndpoint(self._reactor, "127.0.0.1", ports["app servers"])),
            Credentials(SENDER, key),
            self,
            clock=self._reactor,
            connections=2,
        )
        server.startService()
        # Without a look at the certificate: this is about the other end.
        endpoint = SSL4ClientEndpoint(self._reactor, "127.0.0.1", ports["devices"], CertificateOptions())
        idle, cpu, began = self._memory(pid), self._cpu(pid), time.monotonic()
        devices: list[Device] = []
        atOnce = DeferredSemaphore(50)

        async def connectOne(identity: Identity) -> None:
            device = Device(self, identity)
            devices.append(device)
            await connectProtocol(endpoint, device)
            await device.ready

        await gatherResults(
            [atOnce.run(lambda each=each: Deferred.fromCoroutine(connectOne(each))) for each, _ in registered]
        )
        seconds = time.monotonic() - began
        result: dict[str, Any] = {
            "devices": count,
            "logins_per_second": round(count / seconds),
            "cpu_us_per_login": round((self._cpu(pid) - cpu) / count * 1e6),
            "kib_per_idle_device": round((self._memory(pid) - idle) / count, 1),
        }

        def up() -> None:
            for number in range(messages):
                devices[number % count].send(number)

        result["upstream"] = await self._phase(pid, messages, up)

        async def downTo(token: str, number: int, window: DeferredSemaphore) -> None:
            await window.run(
                server.send,
                DownstreamMessage(to=token, message_id=f"d-{number}", data=DATA, time_to_live=3600),
            )

        def down() -> None:
            window = DeferredSemaphore(1000)
            for number in range(messages):
                Deferred.fromCoroutine(downTo(registered[number % count][1], number, window))

        result["downstream"] = await self._phase(pid, messages, down)
        result["kib_per_device_at_the_end"] = round((self._memory(pid) - idle) / count, 1)
        result["stored"] = self._storedCount
        result["twice"] = self._twice
        await server.stopService()
        return result


async def main(reactor: Any, options: argparse.Namespace) -> None:
    """
    Measure, and print.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, options.devices + 1000)), hard))
    result = await Bench(reactor, options).run()
    print(json.dumps(result))
    if result["twice"] or result["stored"] != options.messages:
        raise SystemExit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--devices", type=int, default=5000, help="how many are connected")
    parser.add_argument("--messages", type=int, default=20_000, help="how many go each way")
    arguments = parser.parse_args()
    react(lambda reactor: Deferred.fromCoroutine(main(reactor, arguments)))
