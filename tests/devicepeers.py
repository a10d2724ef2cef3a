"""
A connection server and an app server as processes of their own, and device
clients that nobody here wrote, as further ones.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from threading import Event, Lock, Thread
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.checkout import childEnvironment, script
from tests.children import PATIENCE, Child


__all__ = ["CHROMIUM", "PEERS", "Chromium", "Relay", "Servers", "skipUnless"]

#: Debian's.
CHROMIUM = "/usr/bin/chromium"
PEERS = Path(__file__).parent / "peers"


def skipUnless(case: SynchronousTestCase, isThere: bool, what: str) -> None:
    """
    Skip a test for which something is missing on this machine, but never in CI.
    """
    if isThere:
        return
    if os.environ.get("CI") == "true":
        case.fail(f"{what} is missing, and .ci/run installs it")
    raise case.skipTest(f"{what} is not there")  # type: ignore[misc]  # raises itself


class Servers:
    """
    C{twistd fcm-connection-server} and C{twistd fcm-xmpp}, in a directory.

    @ivar directory: theirs.
    @ivar connectionServer: the process.
    @ivar appServer: the process; its standard output has each message as a line.
    @ivar ports: of the connection server: C{xmpp}, C{devices} and C{http}.
    @ivar http: where devices check in and register: a URL.
    @ivar senderID: whose app server it is.
    """

    senderID = "123456789"

    def __init__(self, case: SynchronousTestCase) -> None:
        self.directory = Path(tempfile.mkdtemp()).resolve()
        case.addCleanup(shutil.rmtree, self.directory)
        self._case = case
        path = childEnvironment().get("PYTHONPATH", "")
        self._environment = childEnvironment(PYTHONPATH=os.pathsep.join([str(PEERS), *filter(None, [path])]))
        self.ports: dict[str, int] = {}
        self.startConnectionServer()
        self.startAppServer()

    def _twistd(self, *arguments: str) -> Child:
        """
        Start one.
        """
        child = Child([script("twistd"), "-n", "--pidfile=", *arguments], self.directory, self._environment)
        self._case.addCleanup(child.cleanUp)
        return child

    def startConnectionServer(self) -> None:
        """
        Start the connection server, where it was before.
        """
        options = []
        for name in ("xmpp", "devices", "http"):
            kind = "tcp" if name == "http" else "tls"
            options += [f"--{name}", f"{kind}:{self.ports.get(name, 0)}:interface=127.0.0.1"]
        self.connectionServer = self._twistd(
            "fcm-connection-server",
            "--self-signed",
            "trial",
            "--receipts",
            "--store",
            "sqlite:server.db",
            *options,
        )
        for name, who in (
            ("xmpp", "app servers"),
            ("devices", "devices"),
            ("http", "check-ins and registrations"),
        ):
            self.ports[name] = int(self.connectionServer.until(f"{who} connect to port ([0-9]+)")[1])

    def startAppServer(self) -> None:
        """
        Start an app server, and wait until it is logged in.
        """
        self.appServer = self._twistd(
            "fcm-xmpp",
            "--endpoint",
            f"tls:localhost:{self.ports['xmpp']}:trustRoots=trial/certs",
            "--sender-id",
            self.senderID,
            "--server-key-file",
            "trial/server-key.txt",
            "--store",
            "sqlite:app.db",
            "--send-api",
            "unix:send.sock",
            "--handler",
            "printing_handler.Printing",
        )
        self._seen = 0
        self.appServer.until("is logged in\n")
        self.appServer.until("the send API listens on")

    @property
    def http(self) -> str:
        """
        See the class.
        """
        return f"http://127.0.0.1:{self.ports['http']}"

    def received(self) -> dict[str, Any]:
        """
        What the app server's handler has printed next.
        """
        self.appServer.until(rf"(?:[^\n]*\n){{{self._seen + 1}}}", "out")
        line = self.appServer.out.splitlines()[self._seen]
        self._seen += 1
        message: dict[str, Any] = json.loads(line)
        return message

    def send(self, **message: Any) -> tuple[int, dict[str, Any]]:
        """
        Have the app server send a message.

        @return: the status of the answer, and what it says.
        """
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self.directory / "send.sock"))
        try:
            connection.request(
                "POST",
                "/send",
                json.dumps(message),
                {"Content-Type": "application/json", "Host": "localhost"},
            )
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def stop(self) -> None:
        """
        End both in order.
        """
        self._case.assertEqual(0, self.appServer.stop(), self.appServer.tail())
        self._case.assertEqual(0, self.connectionServer.stop(), self.connectionServer.tail())


class Relay:
    """
    Stands between a device and the connection server, as a network does.

    @ivar port: where the device connects.
    """

    def __init__(self, case: SynchronousTestCase, port: int) -> None:
        """
        @param port: where the server listens.
        """
        self._server = port
        self._lock = Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._isMute = Event()
        self._isShut = Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._threads = [Thread(target=self._accept, daemon=True)]
        self._threads[0].start()
        case.addCleanup(self._close)

    def _accept(self) -> None:
        """
        Connect who comes.
        """
        while True:
            try:
                device, _ = self._listening.accept()
            except OSError:
                return
            if self._isShut.is_set():
                device.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._server))
            except OSError:
                device.close()
                continue
            with self._lock:
                self._pairs.append((device, server))
            for source, sink, isMuted in ((device, server, False), (server, device, True)):
                thread = Thread(target=self._carry, args=(source, sink, isMuted), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _carry(self, source: socket.socket, sink: socket.socket, isMuted: bool) -> None:
        """
        Carry bytes one way.
        """
        try:
            while data := source.recv(65536):
                if not (isMuted and self._isMute.is_set()):
                    sink.sendall(data)
        except OSError:
            pass
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def mute(self) -> None:
        """
        Lose what the server says from now on.
        """
        self._isMute.set()

    def shut(self) -> None:
        """
        Break all connections, and let nobody through.
        """
        self._isShut.set()
        self.cut()

    def open(self) -> None:
        """
        Let everybody through again.
        """
        self._isShut.clear()

    def cut(self) -> None:
        """
        Break all connections; new ones are as good as ever, unless this is shut.
        """
        with self._lock:
            pairs, self._pairs = self._pairs, []
        self._isMute.clear()
        for pair in pairs:
            for each in pair:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()

    def _close(self) -> None:
        """
        End everything.
        """
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.cut()
        for thread in self._threads:
            thread.join()


class Chromium:
    """
    Debian's Chromium without a window, with an extension that uses
    C{chrome.gcm}.
    """

    def __init__(self, case: SynchronousTestCase, http: str, port: int) -> None:
        """
        @param http: where to check in and register: a URL.
        @param port: of what leads to the connection server.
        """
        self._case = case
        self._events: Queue[dict[str, Any]] = Queue()
        self._kept: list[dict[str, Any]] = []
        self.orders: Queue[dict[str, Any]] = Queue()
        self._directory = Path(tempfile.mkdtemp()).resolve()
        case.addCleanup(shutil.rmtree, self._directory)
        control = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        control.daemon_threads = True
        thread = Thread(target=control.serve_forever, daemon=True)
        thread.start()
        case.addCleanup(thread.join)
        case.addCleanup(control.server_close)
        case.addCleanup(control.shutdown)
        extension = self._directory / "extension"
        shutil.copytree(PEERS / "chromium", extension)
        worker = extension / "worker.js"
        worker.write_text(
            worker.read_text().replace("CONTROL", f"http://127.0.0.1:{control.server_address[1]}")
        )
        self._command = [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            f"--user-data-dir={self._directory / 'profile'}",
            f"--load-extension={extension}",
            "--disable-features=DisableLoadExtensionCommandLineSwitch",
            # Nothing is looked for anywhere else.
            "--host-resolver-rules=MAP * 127.0.0.1",
            f"--gcm-checkin-url={http}/checkin",
            f"--gcm-registration-url={http}/c2dm/register3",
            f"--gcm-mcs-endpoint=https://localhost:{port}",
            "--ignore-certificate-errors",
            "about:blank",
        ]
        self._process: subprocess.Popen[bytes] | None = None
        case.addCleanup(self.kill)
        self.start()

    def start(self) -> None:
        """
        Start it, with what it knew when it was killed.
        """
        self._log: list[bytes] = []
        self._process = subprocess.Popen(
            self._command,
            env=os.environ | {"HOME": str(self._directory)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reading = Thread(target=self._read, args=(self._process.stdout, self._log), daemon=True)
        self._reading.start()

    @staticmethod
    def _read(output: Any, log: list[bytes]) -> None:
        """
        Read what it and all its children write, until the last of them is gone.
        """
        with output:
            log.extend(output)

    def quit(self) -> None:
        """
        Have it end in order: only then it is sure to know what it has told, and
        was told, a moment ago.
        """
        assert self._process is not None
        self._process.terminate()
        self._process.wait(PATIENCE)
        self.kill()

    def kill(self) -> None:
        """
        End it and all its children at once, unless that is done.
        """
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._reading.join(PATIENCE)
        self._case.assertFalse(self._reading.is_alive(), "some process of Chromium's lives on")
        # Whoever still waits for an order of the dead is not to get one of the living.
        waiting, self.orders = self.orders, Queue()
        waiting.put({})

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        """
        What the extension talks to.
        """
        events, chromium = self._events, self

        class Handler(BaseHTTPRequestHandler):
            """
            Takes events, and gives orders.
            """

            def _answer(self, value: Any) -> None:
                """
                Answer in JSON.
                """
                body = json.dumps(value).encode()
                # It may have been killed.
                with suppress(ConnectionError):
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def do_POST(self) -> None:
                """
                Something happened.
                """
                events.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self._answer({})

            def do_GET(self) -> None:
                """
                What is to be done; nothing, after a while, because Chromium ends
                workers that wait for long.
                """
                try:
                    self._answer(chromium.orders.get(timeout=5))
                except Empty:
                    self._answer({})

            def log_message(self, format: str, *arguments: Any) -> None:
                """
                Log nothing.
                """

        return Handler

    def order(self, **order: Any) -> None:
        """
        Have the extension do something.
        """
        self.orders.put(order)

    def until(self, event: str) -> dict[str, Any]:
        """
        Wait for an event; others are kept.
        """
        for number, one in enumerate(self._kept):
            if one["event"] == event:
                return self._kept.pop(number)
        while True:
            try:
                one = self._events.get(timeout=PATIENCE)
            except Empty:
                log = b"".join(self._log).decode(errors="replace")
                raise AssertionError(
                    f"no {event!r} came, but {self._kept}; Chromium says: {log[-3000:]}"
                ) from None
            if one["event"] == event:
                return one
            self._kept.append(one)

    def unexpected(self) -> list[dict[str, Any]]:
        """
        What has happened that nobody has waited for.
        """
        while not self._events.empty():
            self._kept.append(self._events.get())
        return self._kept
