"""
Processes that tests start, and read until they have said what is expected.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import time
from pathlib import Path
from typing import Any


__all__ = ["PATIENCE", "Child"]

#: Seconds that a process may take for what it is waited for.
PATIENCE = 30.0


class Child:
    """
    A process.

    @ivar out: what it has written to standard output, as far as it was read.
    @ivar err: the same for standard error.
    """

    def __init__(self, command: list[str], directory: Path, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._read = {"out": b"", "err": b""}
        self._selector = selectors.DefaultSelector()
        for name, stream in self._streams().items():
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, selectors.EVENT_READ, name)

    def _streams(self) -> dict[str, Any]:
        """
        Its standard streams, by name.
        """
        return {"out": self.process.stdout, "err": self.process.stderr}

    @property
    def out(self) -> str:
        """
        See the class.
        """
        return self._read["out"].decode()

    @property
    def err(self) -> str:
        """
        See the class.
        """
        return self._read["err"].decode()

    def tail(self) -> str:
        """
        The last that it wrote.
        """
        return f"out: {self.out[-1000:]}\nerr: {self.err[-2000:]}"

    def closeOutput(self) -> None:
        """
        Read its standard output no more.
        """
        stream = self._streams()["out"]
        self._selector.unregister(stream)
        stream.close()

    def _step(self, deadline: float) -> bool:
        """
        Read what there is, or wait for it.

        @return: whether there may be more.
        """
        if not self._selector.get_map():
            return False
        ready = self._selector.select(max(0.0, deadline - time.monotonic()))
        if not ready:
            raise AssertionError(f"waited too long; {self.tail()}")
        for key, _ in ready:
            data = os.read(key.fd, 65536)
            self._read[key.data] += data
            if not data:
                self._selector.unregister(key.fileobj)
        return True

    def until(self, pattern: str | re.Pattern[str], name: str = "err") -> re.Match[str]:
        """
        Read until this is found.

        @return: where it was found.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            found = re.search(pattern, self._read[name].decode())
            if found is not None:
                return found
            if not self._step(deadline):
                raise AssertionError(f"it ended without {pattern!r}; {self.tail()}")

    def end(self) -> int:
        """
        Read everything, and wait for the end.

        @return: the exit status.
        """
        deadline = time.monotonic() + PATIENCE
        while self._step(deadline):
            pass
        return self.process.wait(PATIENCE)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """
        Send a signal, and wait for the end.
        """
        self.process.send_signal(number)
        return self.end()

    def running(self) -> bool:
        """
        Whether it still runs.
        """
        return self.process.poll() is None

    def cleanUp(self) -> None:
        """
        See to it that nothing is left.
        """
        if self.running():
            self.process.kill()
            self.process.wait()
        self._selector.close()
        for stream in self._streams().values():
            stream.close()
