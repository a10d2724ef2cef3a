"""
Tests for L{fcmxmpp.command}, and so for L{fcmxmpp.subcommands} and
L{fcmxmpp.records}, which are not called by anybody else.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from fcmxmpp import __version__
from fcmxmpp.command import program
from fcmxmpp.devicecommand import device as deviceCommand
from fcmxmpp.errors import Expired, Nacked
from fcmxmpp.messages import DownstreamMessage
from fcmxmpp.server.registry import Registry
from fcmxmpp.server.senders import readSenders
from fcmxmpp.store import browse, inbox
from fcmxmpp.store.database import lock
from fcmxmpp.store.sqlite import SQLiteStore
from fcmxmpp.tap import Options
from tests.checkout import CHECKOUT
from tests.stores import Filler, newStore


#: 152 characters, as tokens have.
TOKEN = "dQw4w9WgXcQ:APA91b" + "F" * 126 + "bQ2kL0_x"


def run(store: Filler | None, line: str, **environ: str) -> Result:
    """
    Run a command, on a terminal of 80 columns.

    @param line: what is typed after C{fcmxmpp}.
    """
    environment: dict[str, str | None] = {"FCM_STORE": None, "COLUMNS": "80"}
    if store is not None:
        environment["FCM_STORE"] = f"sqlite:{store.path}"
    return CliRunner().invoke(
        program, shlex.split(line), prog_name="fcmxmpp", env=environment | environ, catch_exceptions=False
    )


class CommandTestCase(SynchronousTestCase):
    """
    With a store.
    """

    def setUp(self) -> None:
        self.store = newStore(self)

    def run_(self, line: str, status: int = 0, err: str = "", **environ: str) -> str:
        """
        Run a command.

        @param err: all that it is to write to standard error.
        @return: its standard output.
        """
        result = run(self.store, line, **environ)
        self.assertEqual((status, err), (result.exit_code, result.stderr), result.output)
        return result.stdout

    def objects(self, line: str) -> list[dict[str, Any]]:
        """
        Run a command that writes JSON lines.
        """
        return [json.loads(each) for each in self.run_(line).splitlines()]

    def inbox(self) -> list[tuple[int, str, str]]:
        """
        What is in the inbox, in short, the oldest first.
        """
        return [(e["number"], e["message_id"], e["state"]) for e in self.objects("inbox list --json")[::-1]]

    def outbox(self) -> list[tuple[int, str, str]]:
        """
        The same for the outbox.
        """
        return [(e["number"], e["message_id"], e["state"]) for e in self.objects("outbox list --json")[::-1]]


class StoreTests(SynchronousTestCase):
    """
    Which store it is.
    """

    def refused(self, line: str, **environ: str) -> str:
        """
        Run a command that does not get to a store.

        @return: the one line that it writes.
        """
        result = run(None, line, **environ)
        self.assertEqual((1, "", 1), (result.exit_code, result.stdout, result.stderr.count("\n")))
        return result.stderr

    def test_none(self) -> None:
        """
        Without a store the command says how to name one.
        """
        expected = "Error: which store? Give --store sqlite:PATH, or set FCM_STORE\n"
        for line in ("inbox list", "outbox show 1", "inbox retry 1", "outbox drop 1", "inbox export"):
            self.assertEqual(expected, self.refused(line))
        self.assertEqual(expected, self.refused("inbox list", FCM_STORE=""))

    def test_wrong(self) -> None:
        """
        What is no store is refused in one line, and no file is made.
        """
        self.assertEqual(
            "Error: a store has to be sqlite:PATH: see --store and FCM_STORE\n",
            self.refused("inbox list", FCM_STORE="store.db"),
        )
        path = newStore(self).path + "2"
        self.assertEqual(
            f"Error: cannot use the store {path}: there is no such file\n",
            self.refused(f"inbox list --store sqlite:{path}"),
        )
        self.assertFalse(os.path.exists(path))
        # Still one line, whatever the name is.
        self.assertIn(
            "nowhere\\n\\u001b[2J:", self.refused("inbox list", FCM_STORE="sqlite:nowhere\n\x1b[2J")
        )

    def test_damaged(self) -> None:
        """
        A store that turns out to be damaged is one line, too.
        """
        store = newStore(self)
        with open(store.path, "r+b") as file:
            file.truncate(6000)
        self.assertIn("the file is damaged", self.refused(f"inbox list --store sqlite:{store.path}"))

    def test_option(self) -> None:
        """
        The option is stronger than the environment.
        """
        store = newStore(self)
        result = run(None, f"inbox list --store sqlite:{store.path}", FCM_STORE="sqlite:/nowhere")
        self.assertEqual((0, "0 dead letters, 0 waiting\n"), (result.exit_code, result.output))


class ListTests(CommandTestCase):
    """
    C{list}.
    """

    def test_inbox(self) -> None:
        """
        A table has the newest on top, shortened tokens and nothing of what is
        in messages; it is as wide as the terminal.
        """
        now = time.time()
        when = time.strftime("%m-%d %H:%M", time.localtime(now - 1))
        self.store.arrived("m-1", at=0.0)
        self.store.dead("m-2", reason="the handler failed with ValueError", from_=TOKEN, at=now - 1)
        out = self.run_("inbox list", COLUMNS="80")
        self.assertEqual(
            [
                "NUMBER  STATE    MESSAGE…  FROM       ARRIVED      TRIES  PUT ASIDE    REASON",
                f"2       dead     m-2       dQw4w9Wg…  {when}  3      {when}  the hand…",
                "1       waiting  m-1       tok-A      1970-01-01   0",
                "1 dead letter, 1 waiting",
            ],
            out.splitlines(),
        )
        self.assertNotIn("ping", out)

    def test_outbox(self) -> None:
        """
        The outbox has the same, and three states.
        """
        self.store.sent("d-1", to="/topics")
        self.store.settled("d-2", None, report=True)
        self.store.settled("d-3", Nacked("BAD_REQUEST", "d-3"))
        self.assertEqual(
            [
                "NUMBER  STATE       MESSAGE_ID  TO       SINCE       TRIES  SETTLED     REASON",
                "3       failed      d-3         tok-A    1970-01-01  2      1970-01-01  Nacked: BAD_REQUEST",
                "2       unreported  d-2         tok-A    1970-01-01  2      1970-01-01",
                "1       waiting     d-1         /topics  1970-01-01",
                "1 failed, 1 unreported, 1 waiting",
            ],
            self.run_("outbox list", COLUMNS="200").splitlines(),
        )

    def test_state(self) -> None:
        """
        Only what is in one state is shown and counted.
        """
        self.store.arrived("m-1")
        self.store.dead("m-2")
        self.store.dead("m-3")
        self.assertEqual("2 dead letters", self.run_("inbox list --state dead").splitlines()[-1])
        lines = self.run_("inbox list --state waiting").splitlines()
        self.assertEqual("1 waiting", lines[-1])
        # Nothing of a dead letter, so no columns for it either.
        self.assertNotIn("REASON", lines[0])

    def test_limit(self) -> None:
        """
        A table ends after a hundred rows, or where it is told to, and says
        how to see the rest.  JSON does not end by itself.
        """
        for number in range(103):
            self.store.arrived(f"m-{number}")
        lines = self.run_("inbox list").splitlines()
        self.assertEqual(
            ["... and 3 older ones: --limit 103 shows all", "0 dead letters, 103 waiting"], lines[101:]
        )
        self.assertEqual(105, len(self.run_("inbox list --limit 103").splitlines()))
        self.assertEqual(103, len(self.objects("inbox list --json")))
        self.assertEqual(103, len(self.objects(f"inbox list --json --limit {10**30}")))
        self.assertEqual([103, 102], [each["number"] for each in self.objects("inbox list --json --limit 2")])

    def test_JSON(self) -> None:
        """
        For programs everything but the contents is there in full.
        """
        self.store.dead("m-\n\u2028é", from_=TOKEN, at=1.25)
        out = self.run_("inbox list --json")
        self.assertTrue(out.isascii())
        self.assertEqual(
            {
                "number": 1,
                "state": "dead",
                "message_id": "m-\n\u2028é",
                "from": TOKEN,
                "arrived": "1970-01-01T00:00:01.250Z",
                "tries": 3,
                "put_aside": "1970-01-01T00:00:02.250Z",
                "reason": "ValueError",
            },
            json.loads(out),
        )
        self.store.settled("d-1", Expired("over"), at=1.0)
        self.assertEqual(
            [
                {
                    "number": 1,
                    "state": "failed",
                    "message_id": "d-1",
                    "to": "tok-A",
                    "since": "1970-01-01T00:00:01.000Z",
                    "tries": 2,
                    "settled": "1970-01-01T00:00:02.000Z",
                    "reported": "1970-01-01T00:00:02.000Z",
                    "reason": "Expired: over",
                }
            ],
            self.objects("outbox list --json"),
        )

    def test_harmless(self) -> None:
        """
        What a device calls its message does nothing to the terminal.
        """
        self.store.arrived("m\x1b[2J\n")
        self.assertIn("m\\u001b[2J\\n", self.run_("inbox list", COLUMNS="200"))

    def test_filters(self) -> None:
        """
        The filters look at the reason, and at the time it was put aside.
        """
        now = time.time()
        self.store.dead("m-1", reason="KeyError", at=now - 3 * 3600)
        self.store.dead("m-2", reason="ValueError", at=now - 3 * 60)

        def listed(options: str) -> list[str]:
            return [each["message_id"] for each in self.objects(f"inbox list --json {options}")]

        self.assertEqual(["m-1"], listed("--reason keyerror"))
        for span in ("90s", "2m", "0h"):
            self.assertIn("m-2", listed(f"--older-than {span}"))
        self.assertEqual(["m-1"], listed("--older-than 2h"))
        self.assertEqual(["m-2"], listed("--newer-than 2h"))
        self.assertEqual(["m-2", "m-1"], listed("--newer-than 7d"))
        self.assertEqual(["m-2", "m-1"], listed("--newer-than 1w"))
        self.assertEqual([], listed("--older-than 1d"))


class ShowTests(CommandTestCase):
    """
    C{show}.
    """

    def test_everything(self) -> None:
        """
        All that is known is shown, the message itself included, in JSON for
        people; what could harm a terminal is escaped, and it is JSON still.
        """
        self.store.settled("d-\x9bé", Nacked("NEW_CODE", "d-1", "tok-B"), report=True)
        out = self.run_("outbox show 1")
        self.assertIn('  "message_id": "d-\\u009bé",\n', out)
        self.assertEqual(
            {
                "number": 1,
                "state": "unreported",
                "message_id": "d-\x9bé",
                "to": "tok-A",
                "since": "1970-01-01T00:16:40.000Z",
                "tries": 2,
                "settled": "1970-01-01T00:16:41.000Z",
                "reported": None,
                "reason": "Nacked: NEW_CODE",
                "outcome": {
                    "tries": 2,
                    "error": "Nacked",
                    "code": "NEW_CODE",
                    "text": "unknown error code",
                    "registration_id": "tok-B",
                },
                "message": {"to": "tok-A", "message_id": "d-\x9bé", "data": {"op": "pong"}},
            },
            json.loads(out),
        )
        self.assertEqual([json.loads(out)], self.objects("outbox show --json 1"))

    def test_several(self) -> None:
        """
        All that names fit is shown; what fits nothing is told, and the exit
        status says so, too.
        """
        self.store.arrived("m-1")
        self.store.arrived("m-1", from_="tok-B")
        self.store.arrived("1")
        result = run(self.store, "inbox show --json m-1 nowhere 1")
        self.assertEqual(1, result.exit_code)
        self.assertEqual("nowhere: there is no such message in the inbox\n", result.stderr)
        self.assertEqual([1, 2, 1, 3], [json.loads(line)["number"] for line in result.stdout.splitlines()])
        self.assertEqual(
            [3], [each["number"] for each in self.objects("inbox show --json --by message_id 1")]
        )

    def test_undecodable(self) -> None:
        """
        What cannot be decoded is shown as the text that it is, with what is
        wrong.
        """
        self.store.dead("m-1", body=b'{"message_id":"m-1","data":"\xff')
        (shown,) = self.objects("inbox show --json m-1")
        self.assertEqual(
            ('{"message_id":"m-1","data":"\\xff', "Not Unicode"), (shown["text"], shown["malformed"])
        )
        self.assertNotIn("message", shown)

    def test_notUTF8(self) -> None:
        """
        A name that is not UTF-8 is a wrong option and no traceback.
        """
        result = CliRunner().invoke(
            program, ["inbox", "show", "m-\udcff"], env={"FCM_STORE": "sqlite:/nowhere"}
        )
        self.assertEqual(2, result.exit_code)
        self.assertIn("it is not UTF-8", result.stderr)


class OddTests(CommandTestCase):
    """
    What no service writes, but a damaged file may have, or one in which
    somebody has mended something by hand.
    """

    def odd(self, table: str, **values: object) -> None:
        """
        Change all rows of a table.
        """
        columns = ", ".join(f"{name} = ?" for name in values)
        with closing(self.store.connect()) as connection:
            connection.execute(f"UPDATE {table} SET {columns}", tuple(values.values()))

    def test_texts(self) -> None:
        """
        A text that is not UTF-8, or of another type, is shown as well as it
        can be, and can be exported and dropped.
        """
        self.store.dead("m-1")
        bad = b"m-\xff"
        self.odd("inbox", message_id=bad, from_=b"tok-\x00", reason=bad)
        shown = {"message_id": "m-\ufffd", "from": "tok-\0", "reason": "m-\ufffd"}
        for line in ("list --json", "show --json 1", "export"):
            (entry,) = self.objects(f"inbox {line}")
            self.assertEqual(shown, {name: entry[name] for name in shown}, line)
        self.assertIn("m-\ufffd", self.run_("inbox list"))
        self.assertEqual("1 message dropped\n", self.run_("inbox drop 1"))

    def test_body(self) -> None:
        """
        A message that was mended by hand can be handled again, although the
        C{sqlite3} program writes a text where we write bytes.
        """
        self.store.dead("m-1")
        (entry,) = self.objects("inbox show --json 1")
        self.odd("inbox", body=json.dumps(entry["message"] | {"category": "mended"}))
        (entry,) = self.objects("inbox show --json 1")
        self.assertEqual("mended", entry["message"]["category"])
        self.assertEqual("1 message retried\n", self.run_("inbox retry 1"))
        with closing(self.store.connect()) as connection:
            ((loaded,),) = inbox.load(connection, [(0, 10)])
        self.assertEqual("mended", getattr(loaded.message, "category", None))

    def test_times(self) -> None:
        """
        A time that no calendar has is the last or the first that one has.
        """
        self.store.dead("m-1")
        for arrived, put_aside in ((1e300, -1e300), (float("inf"), "never")):
            self.odd("inbox", arrived=arrived, put_aside=put_aside, tries="many")
            (entry,) = self.objects("inbox list --json")
            self.assertEqual(
                ("9999-12-31T00:00:00.000Z", "1970-01-01T00:00:00.000Z", 0),
                (entry["arrived"], entry["put_aside"], entry["tries"]),
            )
            self.assertIn("9999-12-3", self.run_("inbox list"))

    def test_outcome(self) -> None:
        """
        A message whose outcome cannot be read has failed, and is dropped or
        retried like others.
        """
        self.store.settled("d-1", Expired("over"))
        for outcome in (b"", b"{", b"[]", b"\xff", "1", b'{"error"\xff:1}'):
            self.odd("outbox", outcome=outcome)
            (entry,) = self.objects("outbox list --json --reason over")
            self.assertEqual(
                ("failed", 2, "Expired: over"), (entry["state"], entry["tries"], entry["reason"])
            )
            (entry,) = self.objects("outbox show --json 1")
            self.assertEqual({"error": "unreadable outcome"}, entry["outcome"])
            self.assertEqual("d-1", self.objects("outbox export")[0]["message_id"])
        self.assertEqual("1 message retried\n", self.run_("outbox retry 1"))
        self.assertEqual([(2, "d-1", "waiting")], self.outbox())


class RetryTests(CommandTestCase):
    """
    C{retry}.
    """

    def test_named(self) -> None:
        """
        What is named is at the end again, and waiting.
        """
        self.store.dead("m-1")
        self.store.dead("m-2")
        self.store.dead("m-3")
        self.assertEqual("2 messages retried\n", self.run_("inbox retry 1 m-2 1"))
        self.assertEqual([(3, "m-3", "dead"), (4, "m-1", "waiting"), (5, "m-2", "waiting")], self.inbox())

    def test_refused(self) -> None:
        """
        What is refused is told line by line, the rest is done.
        """
        self.store.dead("m-1")
        self.store.arrived("m-2")
        self.store.dead("m-3\n", body=b"{}")
        err = (
            "nobody: there is no such message in the inbox\n"
            "2 (m-2) not retried: it is waiting already\n"
            "3 (m-3\\n) not retried: it can never be decoded (Object missing required field `...`)\n"
        )
        result = run(self.store, "inbox retry nobody 1 2 3")
        self.assertEqual((1, "1 message retried\n"), (result.exit_code, result.stdout))
        self.assertEqual(err.splitlines()[:2], result.stderr.splitlines()[:2])
        self.assertRegex(
            result.stderr.splitlines()[2], r"^3 \(m-3\\n\) not retried: it can never be decoded \("
        )
        self.assertEqual([(2, "m-2", "waiting"), (3, "m-3\n", "dead"), (4, "m-1", "waiting")], self.inbox())

    def test_doubt(self) -> None:
        """
        A name that fits several messages changes none of them, until it is
        said what it is.
        """
        self.store.dead("m-1")
        self.store.dead("m-1", from_="tok-B")
        self.store.dead("1")
        doubt = "{} means several messages: name one by its number, with --by number: {}\n"
        nothing = "0 messages retried\n"
        self.assertEqual(nothing, self.run_("inbox retry m-1", 1, doubt.format("m-1", "1, 2")))
        self.assertEqual(nothing, self.run_("inbox retry 1", 1, doubt.format("1", "1, 3")))
        self.run_("inbox retry --by number 1")
        self.run_("inbox retry --by message_id 1")
        self.assertEqual([(2, "m-1", "dead"), (4, "m-1", "waiting"), (5, "1", "waiting")], self.inbox())

    def test_all(self) -> None:
        """
        All that the filters leave is retried; what is refused is counted, and
        what waits is not spoken of.
        """
        self.store.arrived("m-1")
        self.store.dead("m-2", reason="KeyError")
        self.store.dead("m-3")
        self.store.dead("m-4", reason="bad", body=b"{")
        self.store.dead("m-5", reason="bad", body=b"{")
        self.assertEqual("1 message retried\n", self.run_("inbox retry --all --reason key"))
        err = "2 messages not retried: it can never be decoded (Input data was truncated)\n"
        self.assertEqual("1 message retried\n", self.run_("inbox retry --all", 0, err))
        self.assertEqual("0 messages retried\n", self.run_("inbox retry --all", 1, err))
        self.assertEqual("0 messages retried\n", self.run_("inbox retry --all --newer-than 2h", 1))
        states = [
            ("m-1", "waiting"),
            ("m-4", "dead"),
            ("m-5", "dead"),
            ("m-2", "waiting"),
            ("m-3", "waiting"),
        ]
        self.assertEqual(states, [(message_id, state) for _, message_id, state in self.inbox()])

    def test_failsHalfway(self) -> None:
        """
        When the store fails in the midst, it is told how far that came.
        """
        self.patch(browse, "AT_ONCE", 2)
        for number in range(5):
            self.store.dead(f"m-{number}")
        with closing(self.store.connect()) as connection:
            connection.execute(
                "CREATE TRIGGER t BEFORE DELETE ON inbox WHEN old.number = 4 "
                "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
            )
        err = f"Error: cannot use the store {self.store.path}: the disk is full: make room\n"
        self.run_("inbox retry --all", 1, f"ended early: 2 messages retried\n{err}")
        self.assertEqual(["dead"] * 3 + ["waiting"] * 2, [state for _, _, state in self.inbox()])
        self.run_("inbox drop --all --yes", 1, err)

    def test_inSteps(self) -> None:
        """
        Many are retried in several transactions, all of them once.
        """
        self.patch(browse, "AT_ONCE", 2)
        for number in range(5):
            self.store.dead(f"m-{number}")
        sizes: list[int] = []
        retry = browse.retry

        def counted(connection: Any, box: Any, chosen: Any, now: float) -> browse.Done:
            sizes.append(len(chosen))
            return retry(connection, box, chosen, now)

        self.patch(browse, "retry", counted)
        self.assertEqual("5 messages retried\n", self.run_("inbox retry --all"))
        self.assertEqual([2, 2, 1], sizes)
        self.assertEqual([(6 + each, f"m-{each}", "waiting") for each in range(5)], self.inbox())

    def test_outbox(self) -> None:
        """
        A failed message is sent again from now on; a second one with its
        message_id is refused.
        """
        self.store.settled("d-1", Expired("over"))
        self.store.settled("d-1", Expired("over"))
        before = time.time()
        err = "1 message not retried: another message with its message_id is waiting\n"
        self.assertEqual("1 message retried\n", self.run_("outbox retry --all", 0, err))
        self.assertEqual([(2, "d-1", "failed"), (3, "d-1", "waiting")], self.outbox())
        with closing(self.store.connect()) as connection:
            (entry,) = browse.find(connection, browse.OUTBOX, ["3"])["3"]
        self.assertTrue(before <= entry.since <= time.time())

    def test_choice(self) -> None:
        """
        Names or --all, not both, not neither; filters go with --all.
        """
        for line in ("retry", "retry 1 --all", "retry 1 --reason x", "retry 1 --newer-than 2h", "drop"):
            result = run(self.store, f"inbox {line}")
            self.assertEqual(2, result.exit_code, line)
            self.assertIn("--all", result.stderr)

    def test_durations(self) -> None:
        """
        What is no time span is a wrong option.
        """
        for wrong in ("2", "h", "2 h", "2y", "-2h", "1.5h", "٢h", "2h\n"):
            result = run(self.store, f"inbox retry --all --older-than={shlex.quote(wrong)}")
            self.assertEqual(2, result.exit_code, wrong)
            self.assertIn("say a number and a unit: 90s, 30m, 2h, 7d or 4w", result.stderr)


class DropTests(CommandTestCase):
    """
    C{drop}.
    """

    def test_named(self) -> None:
        """
        What is named is gone.
        """
        self.store.dead("m-1")
        self.store.dead("m-2")
        self.assertEqual("1 message dropped\n", self.run_("inbox drop m-1"))
        self.assertEqual([(2, "m-2", "dead")], self.inbox())

    def test_waiting(self) -> None:
        """
        What waits is dropped when no service has the store, and only then.
        """
        self.store.arrived("m-1")
        self.store.dead("m-2")
        descriptor = lock(self.store.path)
        err = (
            "1 (m-1) not dropped: it is waiting, and a service that uses this store may have it: "
            "stop that first\n"
        )
        self.assertEqual("1 message dropped\n", self.run_("inbox drop 1 2", 1, err))
        os.close(descriptor)
        self.assertEqual("1 message dropped\n", self.run_("inbox drop 1"))
        self.assertEqual([], self.inbox())
        # Given back.
        os.close(lock(self.store.path))

    def test_all(self) -> None:
        """
        All that failed is dropped; what waits or is unreported is not meant.
        """
        self.store.sent("d-1")
        self.store.settled("d-2", None, report=True)
        self.store.settled("d-3", Expired("over"))
        self.store.settled("d-4", Nacked("BAD_REQUEST", "d-4"))
        self.assertEqual("1 message dropped\n", self.run_("outbox drop --all --yes --reason bad_request"))
        self.assertEqual("1 message dropped\n", self.run_("outbox drop --all --yes"))
        self.assertEqual([(1, "d-1", "waiting"), (2, "d-2", "unreported")], self.outbox())
        self.assertEqual("0 messages dropped\n", self.run_("outbox drop --all --yes", 1))
        self.assertEqual("1 message dropped\n", self.run_("outbox drop --all --yes --force"))
        self.assertEqual([(1, "d-1", "waiting")], self.outbox())

    def test_unreported(self) -> None:
        """
        What the application has not been told yet is dropped by force only.
        """
        self.store.settled("d-1", None, report=True)
        err = "1 (d-1) not dropped: its outcome has not been reported yet: let it be, or say --force\n"
        self.assertEqual("0 messages dropped\n", self.run_("outbox drop d-1", 1, err))
        self.assertEqual("1 message dropped\n", self.run_("outbox drop d-1 --force"))

    def test_nobodyToAsk(self) -> None:
        """
        Without --yes all are dropped only if somebody can be asked.
        """
        self.store.dead("m-1")
        result = run(self.store, "inbox drop --all")
        self.assertEqual(2, result.exit_code)
        self.assertIn("--all needs --yes", result.stderr)
        self.assertEqual([(1, "m-1", "dead")], self.inbox())


class ExportTests(CommandTestCase):
    """
    C{export}.
    """

    def setUp(self) -> None:
        super().setUp()
        self.directory = os.path.dirname(self.store.path)
        self.output = os.path.join(self.directory, "out.jsonl")

    def test_standardOutput(self) -> None:
        """
        Each message is one line with all that show shows, the oldest first.
        """
        self.store.arrived("m-1")
        self.store.dead("m-2")
        exported = self.objects("inbox export")
        self.assertEqual(self.objects("inbox show --json m-1 m-2"), exported)
        self.assertEqual([2], [each["number"] for each in self.objects("inbox export --state dead")])
        self.assertEqual([], self.objects("outbox export"))

    def test_file(self) -> None:
        """
        A file is replaced as a whole, and is for its owner only.
        """
        self.store.dead("m-1")
        with open(self.output, "w") as file:
            file.write("what was there before, and is longer" * 100)
        os.chmod(self.output, 0o644)
        link = os.path.join(self.directory, "link")
        os.symlink(self.output, link)
        self.assertEqual("", self.run_(f"inbox export --output {link}", 0, f"1 message in {self.output}\n"))
        self.assertTrue(os.path.islink(link))
        self.assertEqual(0o600, stat.S_IMODE(os.stat(self.output).st_mode))
        with open(self.output) as file:
            self.assertEqual(self.objects("inbox show --json 1"), [json.loads(line) for line in file])

    def test_fails(self) -> None:
        """
        When it fails the old file is still there, and nothing else.
        """
        self.store.dead("m-1")
        with open(self.output, "w") as file:
            file.write("old")

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        self.patch(os, "fsync", full)
        before = sorted(os.listdir(self.directory))
        err = f"Error: cannot write {self.output}: No space left on device\n"
        self.run_(f"inbox export --output {self.output}", 1, err)
        with open(self.output) as file:
            self.assertEqual("old", file.read())
        self.assertEqual(before, sorted(os.listdir(self.directory)))

    def test_nowhere(self) -> None:
        """
        A file that cannot be written is one line; so is what is no file, and
        the store itself, which is left as it is.
        """
        for device in ("/dev/null", "/dev/stdout"):
            if not os.path.isfile(device):
                self.run_(f"inbox export --output {device}", 1, f"Error: not a file: {device}\n")
        for suffix in ("", "-wal", ".lock"):
            err = "Error: that is the store itself: name another file\n"
            self.run_(f"inbox export --output {self.store.path}{suffix}", 1, err)
        output = f"{self.directory}/nowhere/file"
        err = f"Error: cannot write {output}: No such file or directory\n"
        self.run_(f"inbox export --output {output}", 1, err)


class RunningTests(TestCase):
    """
    While a service has the store.
    """

    def setUp(self) -> None:
        from twisted.internet import reactor  # noqa: TID251

        self.filler = newStore(self)
        self.store = SQLiteStore(self.filler.path, reactor)
        self.store.startService()
        self.addCleanup(self.store.stopService)

    def run_(self, line: str) -> str:
        """
        Run a command that succeeds.
        """
        result = run(self.filler, line)
        self.assertEqual((0, ""), (result.exit_code, result.stderr))
        return result.stdout

    async def test_inbox(self) -> None:
        """
        What is retried is the next thing that the service finds, and what the
        service does next gets a greater number.
        """
        number = self.filler.dead("m-1")
        last = self.filler.arrived("m-2")
        self.assertIn("m-1", self.run_("inbox list"))
        self.assertEqual("1 message retried\n", self.run_(f"inbox retry {number}"))
        (entry,) = await self.store.inbox.load(last, 10)
        self.assertEqual(("m-1", 0), (entry.message.message_id, entry.tries))
        self.assertEqual([], await self.store.inbox.load(entry.number, 10))
        await self.store.inbox.handled(entry.number)
        self.assertNotIn("m-1", self.run_("inbox list"))

    async def test_outbox(self) -> None:
        """
        A message that is sent again is the next that the service finds, and
        its message_id is taken.
        """
        # Just now: the service sweeps away what is old.
        self.filler.settled("d-1", Expired("over"), at=time.time())
        entry = await self.store.outbox.add(DownstreamMessage(to="tok-A", message_id="d-2"))
        self.assertEqual("1 message retried\n", self.run_("outbox retry d-1"))
        (again,) = await self.store.outbox.load(entry.number, 10)
        self.assertEqual("d-1", again.message.message_id)
        refused: Deferred[Any] = self.store.outbox.add(DownstreamMessage(to="tok-A", message_id="d-1"))
        error = await self.assertFailure(refused, Exception)
        self.assertIn("message_id", str(error))

    async def test_waiting(self) -> None:
        """
        What the service may have in its hands is not dropped.
        """
        number = self.filler.arrived("m-1")
        result = run(self.filler, f"inbox drop {number}")
        self.assertEqual((1, "0 messages dropped\n"), (result.exit_code, result.stdout))
        self.assertEqual(1, len(await self.store.inbox.load(0, 10)))


class HelpTests(SynchronousTestCase):
    """
    C{--help} and C{--version}.
    """

    def test_version(self) -> None:
        """
        The version is that of the package.
        """
        self.assertEqual(f"fcmxmpp, version {__version__}\n", run(None, "--version").output)

    def test_examples(self) -> None:
        """
        Every level has help with examples, which are as good as their word:
        their options exist.
        """
        boxes = ("inbox", "outbox")
        lines = [""] + [
            f"{box} {verb}" for box in boxes for verb in ("", "list", "show", "retry", "drop", "export")
        ]
        seen = set()
        for line in lines:
            result = run(None, f"{line} --help")
            self.assertEqual(0, result.exit_code)
            self.assertTrue(all(len(each) <= 80 for each in result.output.splitlines()), result.output)
            _, _, examples = result.output.partition("  Examples:\n")
            commands = re.findall(r"^    fcmxmpp (.*)$", examples, re.MULTILINE)
            self.assertTrue(commands, line)
            for command in commands:
                self.assertTrue(command.startswith(line))
                command = command.partition("|")[0]
                if "--store" not in command and "--help" not in command:
                    command += " --store nowhere"
                seen.add(command)
                # All is well with it but for the store.
                result = run(None, command)
                expected = (0, "Usage:") if "--help" in command else (1, "Error: ")
                self.assertEqual(
                    expected, (result.exit_code, result.output[: len(expected[1])]), result.output
                )
        self.assertGreater(len(seen), 20)

    def test_wrongOptions(self) -> None:
        """
        What is no option, no state or no subcommand has the exit status 2.
        """
        for line in (
            "inbox look",
            "inbox list --state failed",
            "inbox list --limit 0",
            "outbox show",
            "--what",
        ):
            self.assertEqual(2, run(None, line).exit_code, line)
        # There is nothing to be reported there.
        self.assertEqual(2, run(None, "inbox drop 1 --force").exit_code)


class PageTests(SynchronousTestCase):
    """
    docs/command.md.
    """

    page = (CHECKOUT / "docs" / "command.md").read_text(encoding="utf-8")

    def test_examples(self) -> None:
        """
        Its commands do what it says, in the order that it has them in, and
        its table is what is written.
        """
        store = newStore(self)
        now = time.time()
        store.dead("m-1", reason="the handler failed 3 times, last: builtins.KeyError", at=now)
        store.dead("m-2", reason="the handler failed 3 times, last: myapp.Broken", at=now, from_=TOKEN)
        store.arrived("m-3", from_="tok-C", at=now)
        store.dead("m-4", at=now - 30 * 86_400)
        self.assertEqual("1 message dropped\n", run(store, "inbox drop 4").output)
        store.settled("d-1", Expired("over"), at=now)
        blocks = re.findall(r"^```(.*)\n((?:.*\n)*?)```", self.page, re.MULTILINE)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(os.path.dirname(store.path))

        commands = [line for language, block in blocks if language == "sh" for line in block.splitlines()]
        export, *commands = commands
        self.assertRegex(export, "^export FCM_STORE=sqlite:/")
        (table,) = [block for language, block in blocks if not language]
        results = {}
        for command in commands:
            self.assertTrue(command.startswith("fcmxmpp "))
            if command.startswith("fcmxmpp device "):
                # Needs a connection server; test_device_peers.py has one.
                continue
            command, _, output = command.partition(" >")
            if "--older-than" in command:
                store.dead("m-5", body=b"{", at=now - 30 * 86_400)
            result = run(store, command.removeprefix("fcmxmpp "), COLUMNS="140")
            self.assertEqual(0, result.exit_code, result.output)
            results[command.removeprefix("fcmxmpp ")] = result.output
            if output:
                Path(output).write_text(result.stdout)

        def masked(text: str) -> str:
            return re.sub("[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}", "MM-DD hh:mm", text)

        self.assertEqual(masked(table), masked(results["inbox list"]))
        self.assertIn('"reason": "the handler failed 3 times, last: myapp.Broken"', results["inbox show 2"])
        self.assertEqual("1 message retried\n", results["inbox retry 2"])
        self.assertEqual(
            "1 message retried\n", results["inbox retry --all --reason keyerror --newer-than 7d"]
        )
        self.assertEqual("1 message dropped\n", results["inbox drop --all --yes --older-than 4w"])
        self.assertEqual("1 message retried\n", results["outbox retry d-1"])
        registry = Registry(readSenders(Path("senders.toml").read_text()))
        self.assertEqual(
            [False, True],
            [
                registry.mayLogIn("123456789", Path(name).read_text().strip())
                for name in ("server-key.txt", "new-key.txt")
            ],
        )
        self.assertEqual(12, len(results))

    def test_optionsExist(self) -> None:
        """
        Every option that it names is one.
        """
        known = {"--help", "--version"}
        for box in [*program.commands.values(), deviceCommand]:
            for command in box.commands.values():  # type: ignore[attr-defined]
                known |= {option for parameter in command.params for option in parameter.opts}
        known |= {f"--{parameter[0]}" for parameter in Options.optParameters}
        self.assertEqual(set(), set(re.findall(r"--[a-z][a-z-]+", self.page)) - known)

    def test_logLines(self) -> None:
        """
        Every line of the log that it explains is one that we write.
        """
        said = []
        for path in sorted((CHECKOUT / "fcmxmpp").rglob("*.py")):
            # Texts that go over several lines of the source are one.
            said.append(re.sub(r'"\n\s*f?"', "", path.read_text(encoding="utf-8")))
        # What is said of the handler is said of its outcomes, too.
        source = "".join(said).replace("the {what} ", "the handler ")
        lines = re.findall(r"^\| `(.*?)` \|", self.page, re.MULTILINE)
        self.assertEqual(12, len(lines))
        for line in lines:
            for piece in filter(None, re.split("[ :]*…[ :]*", line)):
                self.assertIn(piece, source, line)
