"""
Tests for L{fcmxmpp.tables}.
"""

from __future__ import annotations

import sys

from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.tables import printable, table


class PrintableTests(SynchronousTestCase):
    """
    L{printable}.
    """

    def test_harmless(self) -> None:
        """
        A text of any language is left as it is.
        """
        self.assertEqual("plain, «ñ» 漢字", printable("plain, «ñ» 漢字"))

    def test_harmful(self) -> None:
        """
        What moves the cursor, changes colours or the direction of writing is
        escaped as in JSON; the character to keep is kept.
        """
        self.assertEqual(
            "\\u001b[31m\\n\\u009b\\u202e😀\\udbff\\udfff",
            printable("\x1b[31m\n\x9b\u202e😀\U0010ffff"),
        )
        self.assertEqual("a\nb\\t", printable("a\nb\t", keep="\n"))


class TableTests(SynchronousTestCase):
    """
    L{table}.
    """

    def lines(self, *rows: list[str], room: int = sys.maxsize) -> list[str]:
        """
        A table of three columns.
        """
        return list(table(["ONE", "TWO", "THREE"], rows, ["TWO", "THREE"], room))

    def test_aligned(self) -> None:
        """
        Columns are aligned, no line ends with blanks, and a column with
        nothing in it is left out.
        """
        self.assertEqual(
            ["ONE  THREE", "1    a", "200", "3    bcdefghijkl"],
            self.lines(["1", "", "a"], ["200", "", ""], ["3", "", "bcdefghijkl"]),
        )

    def test_narrow(self) -> None:
        """
        In a narrow terminal the widest cells are cut, and no line is longer
        than the terminal is wide.
        """
        lines = self.lines(["1", "b" * 50, "c" * 12], room=30)
        self.assertEqual(f"1    {'b' * 10}…  {'c' * 12}", lines[1])
        self.assertEqual(30, max(map(len, lines)))

    def test_tooNarrow(self) -> None:
        """
        Of a text seven columns are left however narrow it is, and what is no
        text is not cut.
        """
        self.assertEqual(
            "123456789  bbbbbb…  cccccc…", self.lines(["123456789", "b" * 50, "c" * 9], room=3)[1]
        )
        self.assertEqual("123456789", self.lines(["123456789", "", ""], room=3)[1])

    def test_wide(self) -> None:
        """
        Characters that take two columns count twice, those that combine with
        others not at all.
        """
        self.assertEqual(["TWO      THREE", "漢字漢…  x"], self.lines(["", "漢字漢字漢", "x"], room=3))
        self.assertEqual(["ONE  TWO", "e\u0301    x"], self.lines(["e\u0301", "x", ""]))

    def test_piled(self) -> None:
        """
        A cell is not buried under characters that take no room; those that a
        language needs are left.
        """
        self.assertEqual("e" + "\u0301" * 5 + "…", self.lines(["", "e" + "\u0301" * 5000, ""])[1])
        self.assertEqual("e\u0302\u0301", self.lines(["", "e\u0302\u0301", ""])[1])

    def test_escaped(self) -> None:
        """
        No cell ends its line.
        """
        self.assertEqual("a\\nb", self.lines(["a\nb", "", ""])[1])
