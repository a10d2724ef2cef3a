"""
C{fcmxmpp} as a process of its own, at a terminal and in pipes.
"""

from __future__ import annotations

import os
import pty
import select
import shlex
import signal
import subprocess
import sys
import tempfile
from contextlib import closing

from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp import __version__
from fcmxmpp.store.database import transaction
from tests.checkout import childEnvironment, script
from tests.stores import newStore


COMMAND = [sys.executable, "-m", "fcmxmpp.command"]
#: Seconds that a process may take.
PATIENCE = 30.0


class ProcessTests(SynchronousTestCase):
    """
    The command as people run it.
    """

    def setUp(self) -> None:
        self.store = newStore(self)
        self.environment = childEnvironment(FCM_STORE=f"sqlite:{self.store.path}", COLUMNS="80", TERM="xterm")
        # What is written at the very end can fail, too.
        self.environment.pop("PYTHONUNBUFFERED", None)

    def shell(self, line: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
        """
        Run a line in a shell in which C{fcmxmpp} is the command.
        """
        return subprocess.run(
            ["bash", "-c", f'fcmxmpp() {{ {shlex.join(COMMAND)} "$@"; }}; {line}'],
            env=self.environment | environ,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )

    def many(self, count: int) -> None:
        """
        So many dead letters, faster than one by one.
        """
        self.store.dead("m-1")
        with closing(self.store.connect()) as connection, transaction(connection):
            connection.execute(
                "WITH RECURSIVE c(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM c WHERE n < ?) "
                "INSERT INTO inbox (from_, message_id, body, arrived, tries, reason, put_aside) "
                "SELECT from_, 'm-' || n, body, arrived, tries, reason, put_aside FROM inbox, c",
                (count,),
            )

    def atTerminal(self, *arguments: str, typed: bytes = b"") -> tuple[int, bytes, bytes]:
        """
        Run a command with standard input and error at a terminal.

        @param typed: what is typed as soon as a question is asked.
        @return: exit status, standard output, and what the terminal shows.
        """
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)
        # A file, because nobody reads a pipe while the terminal is read.
        descriptor, name = tempfile.mkstemp(dir=os.path.dirname(self.store.path))
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            env=self.environment,
            stdin=slave,
            stdout=descriptor,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        os.close(descriptor)
        shown = b""
        while True:
            self.assertTrue(select.select([master], [], [], PATIENCE)[0], shown)
            try:
                shown += os.read(master, 65_536)
            except OSError:
                # Nobody has the terminal any more.
                break
            if typed and b"? [y/N]:" in shown:
                os.write(master, typed)
                typed = b""
        status = process.wait(PATIENCE)
        with open(name, "rb") as output:
            # Some versions of click write a blank for a question.
            return status, output.read().lstrip(b" "), shown

    def left(self) -> int:
        """
        How many dead letters there are.
        """
        with closing(self.store.connect()) as connection:
            count: int = connection.execute("SELECT count(*) FROM inbox WHERE reason IS NOT NULL").fetchone()[
                0
            ]
        return count

    def test_installed(self) -> None:
        """
        Where the package is installed, the console script is the command.
        """
        path = script("fcmxmpp")
        command = [path] if os.path.exists(path) else COMMAND
        out = subprocess.run(
            [*command, "--version"], env=self.environment, capture_output=True, timeout=PATIENCE, check=True
        ).stdout
        self.assertEqual(f"fcmxmpp, version {__version__}\n".encode(), out)

    def test_light(self) -> None:
        """
        The command starts without Twisted, and so without a reactor.
        """
        program = "import sys, fcmxmpp.command; sys.exit('twisted' in sys.modules)"
        subprocess.run([sys.executable, "-c", program], env=self.environment, timeout=PATIENCE, check=True)

    def test_noTraceback(self) -> None:
        """
        A store that is not there is one line and exit status 1.
        """
        result = self.shell("fcmxmpp inbox list", FCM_STORE="sqlite:/nowhere/store.db")
        self.assertEqual(
            (1, b"", b"Error: cannot use the store /nowhere/store.db: there is no such file\n"),
            (result.returncode, result.stdout, result.stderr),
        )

    def test_directoryIsGone(self) -> None:
        """
        A relative path leads nowhere in a directory that has been deleted.
        """
        gone = os.path.join(os.path.dirname(self.store.path), "gone")
        for arguments, expected in (
            ("list --store sqlite:store.db", "use the store sqlite:store.db: No such file or directory"),
            ("export --output out.jsonl", "write out.jsonl: No such file or directory"),
        ):
            # bash complains of the directory, too.
            result = self.shell(
                f"mkdir {gone}; cd {gone}; rmdir {gone}; {shlex.join(COMMAND)} inbox {arguments}"
            )
            self.assertEqual(1, result.returncode)
            self.assertIn(f"Error: cannot {expected}\n".encode(), result.stderr)

    def test_brokenPipe(self) -> None:
        """
        Nothing is said when somebody has read enough.
        """
        self.many(5000)
        for line in ("list --json", "export"):
            result = self.shell(f"fcmxmpp inbox {line} | head -n 1")
            self.assertEqual((1, b""), (result.stdout.count(b"\n"), result.stderr))

    def test_fullDisk(self) -> None:
        """
        Where the output has no room that is one line, whatever is written, and
        whatever else is wrong.
        """
        self.store.dead("m-1")
        full = b"Error: standard output: No space left on device\n"
        missing = b"9: there is no such message in the inbox\n"
        for line, expected in (
            ("inbox list", full),
            ("inbox retry 9", missing + full),
            ("inbox show 1 9", missing + full),
            ("--help", full),
            ("inbox drop --help", full),
            ("--version", full),
        ):
            result = self.shell(f"fcmxmpp {line} > /dev/full")
            self.assertEqual((1, expected), (result.returncode, result.stderr), line)

    def test_closed(self) -> None:
        """
        Without a standard output nothing is done, and that is one line; the
        other two can be done without.
        """
        self.store.dead("m-1")
        for line in ("inbox list", "inbox retry --all", "inbox drop --all --yes", "--help"):
            result = self.shell(f"fcmxmpp {line} >&-")
            self.assertEqual(
                (1, b"Error: standard output is closed: send it to a file, or to /dev/null\n"),
                (result.returncode, result.stderr),
            )
        self.assertEqual(1, self.left())
        output = os.path.join(os.path.dirname(self.store.path), "out.jsonl")
        result = self.shell(f"fcmxmpp inbox export --output {output} 2>&-")
        self.assertEqual((0, b""), (result.returncode, result.stdout))
        with open(output) as file:
            self.assertIn("m-1", file.read())
        result = self.shell("fcmxmpp inbox drop --all <&-")
        self.assertEqual(2, result.returncode)
        self.assertIn(b"--all needs --yes", result.stderr)
        result = self.shell("fcmxmpp inbox drop --all --yes <&- 2>&-")
        self.assertEqual((0, b"1 message dropped\n"), (result.returncode, result.stdout))
        result = self.shell("fcmxmpp inbox list <&- >&- 2>&-")
        self.assertEqual((1, b"", b""), (result.returncode, result.stdout, result.stderr))

    def test_otherEncoding(self) -> None:
        """
        What the terminal's encoding lacks is escaped.
        """
        self.store.arrived("m-\u6f22")
        result = self.shell("fcmxmpp inbox show 1", PYTHONIOENCODING="ascii")
        self.assertEqual((0, b""), (result.returncode, result.stderr))
        self.assertIn(rb'"message_id": "m-\u6f22"', result.stdout)

    def interrupted(self, number: signal.Signals) -> tuple[int, bytes]:
        """
        Send a signal to a command in the midst of its work.

        @return: exit status, and standard error.
        """
        self.many(5000)
        read, write = os.pipe()
        # More than a pipe holds, so it cannot have ended before it is interrupted.
        process = subprocess.Popen(
            [*COMMAND, "inbox", "list", "--json"],
            env=self.environment,
            stdout=write,
            stderr=subprocess.PIPE,
        )
        os.close(write)
        with open(read, "rb", buffering=0) as output:
            # It has begun.
            self.assertEqual(b"{", output.read(1))
            process.send_signal(number)
            output.readall()
        _, err = process.communicate(timeout=PATIENCE)
        return process.returncode, err

    def test_interrupted(self) -> None:
        """
        Ctrl-C ends it with exit status 130, without a word.
        """
        self.assertEqual((130, b""), self.interrupted(signal.SIGINT))

    def test_terminated(self) -> None:
        """
        So do other signals, with their own status: it has the time to take away
        the half of a file that it was writing.
        """
        self.assertEqual((143, b""), self.interrupted(signal.SIGTERM))

    def test_hungUp(self) -> None:
        """
        So does the end of the terminal, unless C{nohup} says otherwise.
        """
        self.assertEqual((129, b""), self.interrupted(signal.SIGHUP))

    def test_nohup(self) -> None:
        """
        What was started to outlive the terminal does.
        """
        # A child has it from its parent.
        self.addCleanup(signal.signal, signal.SIGHUP, signal.signal(signal.SIGHUP, signal.SIG_IGN))
        self.assertEqual((0, b""), self.interrupted(signal.SIGHUP))

    def test_asked(self) -> None:
        """
        At a terminal it is asked whether all are meant, and only a yes is one.
        """
        self.store.dead("m-1")
        self.store.dead("m-2")
        status, out, shown = self.atTerminal("inbox", "drop", "--all", typed=b"\n")
        self.assertEqual((1, b""), (status, out))
        self.assertIn(b"Drop 2 messages? [y/N]:", shown)
        self.assertEqual(2, self.left())
        # The end of the input.
        status, out, shown = self.atTerminal("inbox", "drop", "--all", typed=b"\x04")
        self.assertEqual((130, b"", 2), (status, out, self.left()))
        self.assertNotIn(b"Abort", shown)
        status, out, _ = self.atTerminal("inbox", "drop", "--all", typed=b"y\n")
        self.assertEqual((0, b"2 messages dropped\n", 0), (status, out, self.left()))

    def test_progress(self) -> None:
        """
        At a terminal what takes a while has a progress bar, and what does not
        has none.
        """
        self.many(1200)
        for arguments, what in (
            (("export",), b"exporting"),
            (("retry", "--all", "--reason", "nothing like that"), b""),
            (("drop", "--all", "--yes"), b"dropping"),
        ):
            _, _, shown = self.atTerminal("inbox", *arguments)
            if what:
                self.assertIn(what, shown)
                self.assertIn(b"100%", shown)
            else:
                self.assertEqual(b"", shown)
        self.assertEqual(0, self.left())
        self.assertEqual(b"", self.shell("fcmxmpp inbox export").stderr)
