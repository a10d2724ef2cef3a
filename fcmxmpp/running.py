"""
What both programs do as processes: their log, their end and its exit status.
"""

from __future__ import annotations

import atexit
import gc
import os
import shlex
import signal
import sys
from collections.abc import Callable
from typing import Any, TextIO

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from fcmxmpp.errors import StoreUnavailable
from fcmxmpp.store.sqlite import SQLiteStore


if sys.platform == "win32":
    resource = None
else:
    import resource


__all__ = [
    "ExitStatus",
    "Interpreter",
    "Listener",
    "OpenFiles",
    "ProcessStore",
    "printError",
    "printLine",
    "standard",
    "tellNoStart",
]

_log = Logger()

#: Seconds after which a thread that has the interpreter gives it to another one
#: that wants it.  A busy reactor keeps the store's thread waiting for that long at
#: each statement; Python's own are 5 ms.
SWITCH_INTERVAL = 0.0005
#: When Python looks for cycles.  A message makes no cycle, but objects that live
#: as long as it is under way; by Python's own (700, 10, 10) those of 100 messages
#: are looked through over and over, and everything with them every few seconds,
#: for 20 to 50 ms.
GC_THRESHOLDS = (10_000, 20, 20)


def standard(name: str) -> TextIO:
    """
    A standard stream as the process got it: twistd puts its log in place of
    C{sys.stdout} and C{sys.stderr}.
    """
    stream: TextIO = getattr(sys, f"__{name}__")
    return stream


def tellNoStart(why: str, program: str, alsoPrint: bool) -> None:
    """
    Say why the process ends before it has begun.
    """
    _log.critical("{why}", why=why)
    if alsoPrint:
        printError(f"twistd {program}: {why}")


def printLine(line: str) -> None:
    """
    Print a line for people.
    """
    output = standard("stdout")
    output.write(line + "\n")
    output.flush()


def printError(line: str) -> None:
    """
    Print a line for people, where the log would be if it did not go elsewhere.
    """
    error = standard("stderr")
    error.write(line + "\n")
    error.flush()


class ProcessStore(SQLiteStore):
    """
    The store, for a process that is to end if it has none.
    """

    def __init__(
        self,
        path: str,
        reactor: Any,
        keep: float,
        program: str,
        alsoPrint: bool,
        daemon: bool,
        look: str | None = None,
    ) -> None:
        """
        @param program: whose store it is.
        @param alsoPrint: whether to print what is wrong, because the log goes
            elsewhere.
        @param daemon: whether twistd puts the process into the background.
        @param look: the command that looks into it, if there is one.
        """
        self._description = f"sqlite:{path}"
        self._look = look
        self._program = program
        self._alsoPrint = alsoPrint
        self._daemon = daemon
        super().__init__(path, reactor, keep)

    def startService(self) -> None:
        """
        Open the store: not before, because only now twistd has become the user
        that it is to run as.

        @raise SystemExit: if that is impossible.
        @raise StoreUnavailable: the same for a daemon: who has started it waits
            until its twistd has told how that went, and so would for ever.
        """
        try:
            self.claim()
        except StoreUnavailable as error:
            tellNoStart(f"--store {self._description}: {error}", self._program, self._alsoPrint)
            if self._daemon:
                raise
            raise SystemExit(1) from None
        super().startService()
        path = self._description.removeprefix("sqlite:")
        if self._look is None:
            _log.info("the store is {path}", path=path)
        else:
            _log.info(
                "the store is {path}; to look into it: {look} --store {description}",
                path=path,
                look=self._look,
                description=shlex.quote(self._description),
            )


class Listener(Service):
    """
    A port, for a process that is to end if it cannot be had.

    @ivar address: where it listens; None before that.
    """

    address: Any = None

    def __init__(
        self,
        endpoint: IStreamServerEndpoint,
        factory: IProtocolFactory,
        option: str,
        program: str,
        alsoPrint: bool,
        daemon: bool,
    ) -> None:
        """
        @param option: what to say of it, such as C{--http tcp:80}.
        @param program: whose port it is.
        @param alsoPrint: whether to print what is wrong, because the log goes
            elsewhere.
        @param daemon: whether twistd puts the process into the background.
        """
        self._endpoint = endpoint
        self._factory = factory
        self._option = option
        self._program = program
        self._alsoPrint = alsoPrint
        self._daemon = daemon
        self._port: IListeningPort | None = None

    def privilegedStartService(self) -> None:
        """
        Listen, while ports below 1024 can be had.

        @raise SystemExit: if that is impossible.
        @raise Exception: the same for a daemon: who has started it waits until
            its twistd has told how that went, and so would for ever.
        """
        super().privilegedStartService()
        failures: list[Failure] = []
        self._endpoint.listen(self._factory).addCallbacks(self._listens, failures.append)
        # Ports of this machine are open, or not, at once.
        if failures:
            error: Any = failures[0].value
            cause = getattr(error, "socketError", error)
            why = getattr(cause, "strerror", None) or str(cause)
            tellNoStart(f"{self._option}: cannot listen: {why}", self._program, self._alsoPrint)
            if self._daemon:
                raise error
            raise SystemExit(1) from None

    def startService(self) -> None:
        """
        Listen, if it does not yet.
        """
        super().startService()
        if self._port is None:
            self.privilegedStartService()

    def _listens(self, port: IListeningPort) -> None:
        """
        The port is open.
        """
        self._port = port
        self.address = port.getHost()

    def stopService(self) -> Deferred[Any]:
        """
        Close the port; connections stay.
        """
        super().stopService()
        port, self._port = self._port, None
        return succeed(None) if port is None else maybeDeferred(port.stopListening)


class Interpreter(Service):
    """
    Python, as it suits a process that does nothing else.
    """

    def __init__(self) -> None:
        self._before = (sys.getswitchinterval(), gc.get_threshold())

    def startService(self) -> None:
        """
        Set what is for the whole process.
        """
        super().startService()
        sys.setswitchinterval(SWITCH_INTERVAL)
        gc.set_threshold(*GC_THRESHOLDS)
        # What is there now stays, and need not be looked at again.
        gc.collect()
        gc.freeze()

    def stopService(self) -> None:
        """
        Set it back: what comes after this is not ours.
        """
        super().stopService()
        switchInterval, thresholds = self._before
        sys.setswitchinterval(switchInterval)
        gc.set_threshold(*thresholds)
        gc.unfreeze()


class OpenFiles(Service):
    """
    Lets the process have as many connections as it may: each is an open file, and
    what a process may have without asking is often 1024.
    """

    #: Nobody needs more; and some programs are slow where the limit is very high.
    MOST = 200_000
    #: What is worth a warning.
    FEW = 4096

    def __init__(self) -> None:
        self._before: tuple[int, int] | None = None

    def startService(self) -> None:
        """
        Ask for them.
        """
        super().startService()
        if resource is None:
            return
        soft, hard = self._before = resource.getrlimit(resource.RLIMIT_NOFILE)
        may = self.MOST if hard == resource.RLIM_INFINITY else min(self.MOST, hard)
        if soft != resource.RLIM_INFINITY and soft < may:
            resource.setrlimit(resource.RLIMIT_NOFILE, (may, hard))
        if may < self.FEW:
            _log.warn(
                "there can be no more than {count} connections: LimitNOFILE= of systemd, or ulimit -Hn, is "
                "in the way",
                count=may,
            )

    def stopService(self) -> None:
        """
        Set it back: what comes after this is not ours.
        """
        super().stopService()
        if resource is not None and self._before is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, self._before)


class ExitStatus(Service):
    """
    Ends the process in order, with the exit status that fits.

    Twisted ends a process that got SIGTERM or SIGINT by that same signal once
    everything is closed; a clean stop is meant to be the exit status 0.
    """

    def __init__(self, reactor: Any, grace: float) -> None:
        """
        @param grace: how long the stop may take, to be told.
        """
        self._reactor = reactor
        self._grace = grace
        self._stopping = False
        self.status = 0

    def startService(self) -> None:
        """
        Take over the signals, as soon as Twisted has set its own handlers.
        """
        super().startService()
        self._reactor.callWhenRunning(self._takeSignals)

    def _takeSignals(self) -> None:
        """
        Stop at SIGTERM and SIGINT.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda got, _: self._reactor.callFromThread(self._signalled, got))

    def _signalled(self, number: int) -> None:
        """
        Somebody wants us to stop.
        """
        name = signal.Signals(number).name
        if self._stopping:
            _log.info("got {name}: stopping already", name=name)
        else:
            _log.info(
                "got {name}: stopping; what is under way gets up to {grace:g} s", name=name, grace=self._grace
            )
            self.end(0)

    def end(self, status: int) -> None:
        """
        Stop, once.
        """
        if self._stopping:
            return
        self._stopping = True
        self.status = status
        if status:
            # twistd itself always ends with 0.  Registered late, and so run
            # first; the other exit handlers would find nothing else to do.
            atexit.register(_exitWith, status)
        self._reactor.stop()


def _exitWith(status: int, leave: Callable[[int], object] = os._exit) -> None:
    """
    Leave with an exit status, at the very end.
    """
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            stream.flush()
    leave(status)
