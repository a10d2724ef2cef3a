"""
The README tells the truth: its examples run, its commands are run.
"""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

import fcmxmpp.testing
from fcmxmpp import errors
from fcmxmpp.devicecache import DeviceCache
from fcmxmpp.devicecommand import device
from fcmxmpp.interfaces import IDownstreamSender
from fcmxmpp.messages import Ack, DownstreamMessage
from fcmxmpp.senderscommand import senders
from fcmxmpp.server.registry import Registry
from fcmxmpp.server.senders import readSenders
from fcmxmpp.serveroptions import ServerOptions
from fcmxmpp.store.memory import MemoryStore
from fcmxmpp.tap import Options
from tests.checkout import CHECKOUT


README = (CHECKOUT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """
    The fenced blocks of one language.
    """
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


class PythonTests(SynchronousTestCase):
    """
    The README's Python.
    """

    def run_(self) -> dict[str, Any]:
        """
        Run all of it, in order.

        @return: what it defines.
        """
        namespace: dict[str, Any] = {}
        for piece in blocks("python"):
            exec(compile(piece, "README.md", "exec"), namespace)
        pair = namespace["pair"]
        self.assertIsInstance(pair, fcmxmpp.testing.ConnectedPair)
        self.addCleanup(pair.stop)
        return namespace

    def test_handlerAndItsTest(self) -> None:
        """
        The handler and the sending of the README pass the test of the README.
        """
        self.assertEqual(5, len(blocks("python")))
        self.run_()

    def test_plain(self) -> None:
        """
        The plain handler sees the message, which is acknowledged at once.
        """
        handler = self.run_()["Plain"](None)
        pair = fcmxmpp.testing.connectedPair(handler)
        self.addCleanup(pair.stop)
        pair.device.send("m-1", {"op": "ping"})
        pair.pump()
        self.assertEqual(([("tok-A", "m-1", {"op": "ping"})], ["m-1"]), (handler.seen, pair.device.delivered))

    def test_withDeferred(self) -> None:
        """
        The message of the handler with the Deferred is acknowledged when that
        fires.
        """
        inserted: Deferred[None] = Deferred()
        handler = self.run_()["WithDeferred"](lambda *row: inserted)
        pair = fcmxmpp.testing.connectedPair(handler)
        self.addCleanup(pair.stop)
        pair.device.send("m-1", {})
        pair.pump()
        self.assertEqual([], pair.device.delivered)
        inserted.callback(None)
        pair.pump()
        self.assertEqual(["m-1"], pair.device.delivered)

    def test_remind(self) -> None:
        """
        Every outcome of a message leads to what the README's table says.
        """
        remind = self.run_()["remind"]
        tokens = {"ann": "old"}

        def outcome(result: Deferred[Ack]) -> tuple[Any, dict[str, str]]:
            class Sender:
                def send(self, message: DownstreamMessage) -> Deferred[Ack]:
                    return result

            tokens["ann"] = "old"
            return self.successResultOf(Deferred.fromCoroutine(remind(Sender(), tokens, "ann"))), tokens

        self.assertEqual(("accepted", {"ann": "old"}), outcome(succeed(Ack(message_id="d"))))
        renewed = succeed(Ack(message_id="d", registration_id="new"))
        self.assertEqual(("accepted", {"ann": "new"}), outcome(renewed))
        gone = fail(errors.Nacked("BAD_REGISTRATION", "d"))
        self.assertEqual(("BAD_REGISTRATION", {}), outcome(gone))
        self.assertEqual(("INVALID_JSON", {"ann": "old"}), outcome(fail(errors.Nacked("INVALID_JSON", "d"))))
        for error in (
            errors.Expired,
            errors.AckTimedOut,
            errors.QueueFull,
            errors.Stopped,
            errors.StoreUnavailable,
        ):
            self.assertEqual((error.__name__, {"ann": "old"}), outcome(fail(error("why"))))

    def test_errorsAreListed(self) -> None:
        """
        The table of errors has every error that C{send} may fail with.
        """
        documented = IDownstreamSender["send"].__doc__.partition("Fails with")[2]
        for name in re.findall(r"fcmxmpp\.errors\.(\w+)", documented):
            self.assertRegex(README, rf"(?m)^\| `{name}`")

    def test_withOutcomes(self) -> None:
        """
        The handler of outcomes is told what became of each message, with a
        store.
        """
        made: list[Any] = []

        def make(sender: Any) -> Any:
            made.append(namespace["WithOutcomes"](sender))
            return made[0]

        namespace = self.run_()
        clock = Clock()
        pair = fcmxmpp.testing.connectedPair(make, store=MemoryStore(clock.seconds), clock=clock)
        self.addCleanup(pair.stop)
        for to, message_id in (("tok-A", "d-1"), ("nobody", "d-2")):
            self.successResultOf(pair.appServer.send(DownstreamMessage(to=to, message_id=message_id)))
        pair.advance(2)
        self.assertEqual((["d-1"], [("d-2", "Nacked")]), (made[0].accepted, made[0].failed))

    def test_device(self) -> None:
        """
        The device of the README is one, and keeps what it cannot send yet.
        """
        directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, directory)
        namespace = self.run_()
        namespace["DeviceCache"] = lambda name: DeviceCache(str(directory / name))
        device = namespace["makeDevice"](MemoryReactorClock(), None)
        self.addCleanup(device.stopService)
        sent = namespace["report"](device, "21")
        self.assertNoResult(sent)
        self.assertEqual(1, device.unsent)

    def test_untestedHandlerIsNoticed(self) -> None:
        """
        The test of the README fails for a handler that does nothing.
        """
        handler, sending, _, _, check = blocks("python")
        namespace: dict[str, Any] = {}
        exec(compile(sending, "README.md", "exec"), namespace)
        exec(compile(handler.replace("self.sender.send(", "self.other("), "README.md", "exec"), namespace)
        namespace["Inbox"].other = lambda self, message: self.sender.send
        namespace["Inbox"].messageReceived = lambda self, message: None
        with self.assertRaises((AssertionError, IndexError)):
            exec(compile(check, "README.md", "exec"), namespace)


class CommandTests(SynchronousTestCase):
    """
    The README's commands.
    """

    def test_everyCommandIsRun(self) -> None:
        """
        Each command of the README is run by CI, or by the test that is named
        here; a new one has to be added here, with what runs it.
        """
        runBy = {
            "make demo": ".ci/run",
            "make test": ".ci/run",
            "twistd -n fcm-xmpp --embedded": "tests/test_commandline.py",
            "twistd -n -y tap/fcm-xmpp.tac": "tests/test_launchers.py",
        }
        commands = [" ".join(block.replace("\\\n", " ").split()) for block in blocks("sh")]
        real = [command for command in commands if "push.example.org" in command]
        self.assertEqual(1, len(real))
        # Run, word by word, by test_commandline.WebhookTests.test_README.
        real += [command for command in commands if "send.sock" in command]
        self.assertEqual(3, len(real))
        # Run, word by word, by test_commandline.StoreTests.test_README.
        stored = [command for command in commands if "fcm.db" in command]
        self.assertEqual(2, len(stored))
        real += stored
        # Run, with other ports, by test_device_peers.ReadmeTests.
        tried = [command for command in commands if "trial" in command or "$DEVICE" in command]
        self.assertEqual(3, len(tried))
        real += tried
        # Its options are tried below, and those of senders by test_senders.
        earnest = [command for command in commands if "senders.toml" in command]
        self.assertEqual(1, len(earnest))
        real += earnest
        # Takes minutes and all of the machine, so it is for people; its target at least is there.
        self.assertRegex((CHECKOUT / "Makefile").read_text(encoding="utf-8"), r"(?m)^bench:")
        real.append("make bench")
        self.assertEqual(sorted(runBy), sorted(set(commands) - set(real)))
        for command, where in runBy.items():
            text = (CHECKOUT / where).read_text(encoding="utf-8")
            self.assertIn(command.split()[-1].removeprefix("tap/"), text, f"{command} is not run by {where}")

    def test_realCommand(self) -> None:
        """
        The command that logs in somewhere is made of options that exist, and
        test_commandline.py runs the same options against a server of its own.
        """
        (command,) = [block for block in blocks("sh") if "push.example.org" in block]
        words = shlex.split(command.replace("\\\n", " "))
        self.assertEqual(["twistd", "-n", "fcm-xmpp"], words[:3])
        directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, directory)
        (directory / "key.txt").write_text("EXAMPLE-SERVER-KEY\n")
        options = Options()
        options.environ = {}
        options.parseOptions([str(directory / w) if w == "key.txt" else w for w in words[3:]])
        self.assertEqual("myapp.fcm.Inbox", options.settings.handler)
        self.assertEqual("123456789", options.settings.senderID)

    def test_connectionServerInEarnest(self) -> None:
        """
        The commands for a connection server in earnest are made of options that
        exist, and the one makes what the other reads.
        """
        (block,) = [block for block in blocks("sh") if "senders.toml" in block]
        first, second = block.replace("\\\n", " ").strip().splitlines()
        directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, directory)
        file = str(directory / "senders.toml")
        words = [file if word == "senders.toml" else word for word in shlex.split(first.partition(">")[0])]
        self.assertEqual(["fcmxmpp", "senders"], words[:2])
        result = CliRunner().invoke(senders, words[2:])
        self.assertEqual(0, result.exit_code, result.output)
        words = [file if word == "senders.toml" else word for word in shlex.split(second)]
        self.assertEqual(["twistd", "-n", "fcm-connection-server"], words[:3])
        options = ServerOptions()
        options.environ = {}
        options.parseOptions(words[3:])
        key = result.stdout.strip()
        self.assertTrue(Registry(readSenders(Path(file).read_text())).mayLogIn("123456789", key))
        self.assertEqual("ssl:443:privateKey=key.pem:certKey=cert.pem", options.settings.http)

    def test_optionsExist(self) -> None:
        """
        Every option that the README names is one.
        """
        known = {f"--{parameter[0]}" for parameter in Options.optParameters + Options.optFlags}
        # These two are twistd's.
        known |= {"--help", "--pidfile"}
        # And this is curl's.
        known |= {"--unix-socket"}
        # These are the command fcmxmpp's; tests/test_commandline.py runs it with them.
        known |= {"--all", "--json", "--state"}
        known |= {f"--{each[0]}" for each in ServerOptions.optParameters + ServerOptions.optFlags}
        # These are the device's and the senders file's.
        known |= {
            option
            for group in (device, senders)
            for command in group.commands.values()
            for parameter in command.params
            for option in parameter.opts
        }
        named = set(re.findall(r"--[a-z][a-z-]+", README))
        self.assertEqual(set(), named - known)
        self.assertTrue(named)

    def test_linksExist(self) -> None:
        """
        Every file that the README links to is there.
        """
        links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
        self.assertTrue(links)
        for link in links:
            self.assertTrue((CHECKOUT / link).exists(), link)
