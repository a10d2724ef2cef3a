"""
Tests for L{fcmxmpp.condition}.
"""

from __future__ import annotations

import re
from collections.abc import Container
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.condition import MAX_TOPICS, Condition, parse
from fcmxmpp.errors import NotSendable


#: What an error says that was wanted.
OPERAND = "'NAME' in topics or an opening parenthesis"
OPERATOR = "&&, || or the end"
INNER_OPERATOR = "&&, || or a closing parenthesis"

#: Conditions that are none: what must stand where instead.
BROKEN = [
    ("", OPERAND, 1),
    ("   ", OPERAND, 4),
    ("a", OPERAND, 1),
    ("'a'", OPERAND, 1),
    ("'a' in topic", OPERAND, 1),
    ("'a' intopics", OPERAND, 1),
    ('"a" in topics', OPERAND, 1),
    ("'' in topics", OPERAND, 1),
    ("'a b' in topics", OPERAND, 1),
    ("'é' in topics", OPERAND, 1),
    ("'/topics/a' in topics", OPERAND, 1),
    ("'a' in topic\u017f", OPERAND, 1),
    ("\xa0'a' in topics", OPERAND, 1),
    (f"'{'a' * 901}' in topics", OPERAND, 1),
    ("&& 'a' in topics", OPERAND, 1),
    ("()", OPERAND, 2),
    ("!'a' in topics", OPERAND, 1),
    ("!!('a' in topics)", OPERAND, 1),
    ("! ", OPERAND, 1),
    ("'a' in topics &&", OPERAND, 17),
    ("'a' in topics && || 'b' in topics", OPERAND, 18),
    ("('a' in topics && )", OPERAND, 19),
    ("'a' in topics & 'b' in topics", OPERATOR, 15),
    ("'a' in topics and 'b' in topics", OPERATOR, 15),
    ("'a' in topics 'b' in topics", OPERATOR, 15),
    ("'a' in topicsX", OPERATOR, 14),
    ("'a' in topics ('b' in topics)", OPERATOR, 15),
    ("'a' in topics !('b' in topics)", OPERATOR, 15),
    ("'a' in topics)", OPERATOR, 14),
    ("('a' in topics) )", OPERATOR, 17),
    ("('a' in topics", INNER_OPERATOR, 15),
    ("(('a' in topics) ; ", INNER_OPERATOR, 18),
]


def rejection(text: str) -> NotSendable:
    """
    The error with which a text is refused.
    """
    try:
        parse(text)
    except NotSendable as error:
        return error
    raise AssertionError("it was taken")


def subsets(topics: tuple[str, ...]) -> list[set[str]]:
    """
    All sets of some of these topics.
    """
    return [set(some) for size in range(len(topics) + 1) for some in combinations(topics, size)]


class MeaningTests(SynchronousTestCase):
    """
    Whom a condition is for.
    """

    def assertMeans(self, text: str, *expected: str) -> None:
        """
        Of all devices that have some of the topics a, b and c, the condition
        is for these and for no other.
        """
        condition = parse(text)
        found = ["".join(sorted(some)) for some in subsets(("a", "b", "c")) if condition.matches(some)]
        self.assertEqual(sorted(expected), sorted(found), text)

    def test_topic(self) -> None:
        """
        One topic: whoever has it, whatever else they have.
        """
        self.assertMeans("'a' in topics", "a", "ab", "ac", "abc")

    def test_and(self) -> None:
        """
        C{&&} wants both.
        """
        self.assertMeans("'a' in topics && 'b' in topics", "ab", "abc")

    def test_or(self) -> None:
        """
        C{||} wants one of the two, or both.
        """
        self.assertMeans("'a' in topics || 'b' in topics", "a", "b", "ab", "ac", "bc", "abc")

    def test_not(self) -> None:
        """
        C{!(...)} wants that it does not hold; those without any topic count.
        """
        self.assertMeans("!('a' in topics)", "", "b", "c", "bc")
        self.assertMeans("'b' in topics && ! ('a' in topics || 'c' in topics)", "b")

    def test_parentheses(self) -> None:
        """
        The example of Google's documentation.
        """
        self.assertMeans("'a' in topics && ('b' in topics || 'c' in topics)", "ab", "ac", "abc")

    def test_leftToRight(self) -> None:
        """
        Without parentheses the operators hold from left to right, either way
        round: C{&&} does not go first.
        """
        self.assertMeans("'a' in topics || 'b' in topics && 'c' in topics", "ac", "bc", "abc")
        self.assertMeans("'a' in topics && 'b' in topics || 'c' in topics", "ab", "c", "ac", "bc", "abc")

    def test_sameTopicTwice(self) -> None:
        """
        A topic may be named again; it is the same one.
        """
        self.assertMeans("'a' in topics && !('A' in topics)")

    def test_anyCase(self) -> None:
        """
        The case of letters is of no account; the topics of the device come in
        lower case.
        """
        condition = parse("'News' IN Topics")
        self.assertEqual(condition.topics, ("news",))
        self.assertTrue(condition.matches({"news"}))

    def test_anyContainer(self) -> None:
        """
        C{matches} asks for the topics of the condition, and for nothing else.
        """
        asked = []

        class Topics(Container[str]):
            """
            A container that notes what is asked.
            """

            def __contains__(self, topic: object) -> bool:
                """
                Has everything.
                """
                asked.append(topic)
                return True

        self.assertTrue(parse("'a' in topics && 'b' in topics && 'a' in topics").matches(Topics()))
        self.assertEqual(asked, ["a", "b"])

    def test_value(self) -> None:
        """
        Conditions that say the same of the same topics are equal, and serve
        as keys.
        """
        one = parse("!('a' in topics || 'b' in topics)")
        other = parse("(!('a' in topics)) && !('b' in topics)")
        self.assertEqual(one, other)
        self.assertEqual(len({one, other, parse("'a' in topics")}), 2)


class GrammarTests(SynchronousTestCase):
    """
    What is a condition, and what is none.
    """

    def test_spaces(self) -> None:
        """
        White space may be anywhere but in a word, and need not be where the
        text is clear without.
        """
        for text in (
            "'a'in topics&&('b'in topics)",
            " 'a'  in\ttopics\n&& ( 'b' in topics ) ",
        ):
            self.assertEqual(parse(text), parse("'a' in topics && 'b' in topics"), text)

    def test_names(self) -> None:
        """
        A name has 1 to 900 of the characters that topics may have.
        """
        for name in ("a", "a" * 900, "abcxyzabcxyz0189-_.~%"):
            self.assertEqual(parse(f"'{name}' in topics").topics, (name,))

    def test_broken(self) -> None:
        """
        What is no condition is refused, with what must stand where.
        """
        for text, wanted, position in BROKEN:
            error = rejection(text)
            self.assertEqual(error.field, "condition")
            self.assertEqual(error.reason, f"must have {wanted} at character {position}", text)

    def test_mostTopics(self) -> None:
        """
        Five topics are taken, each of them told from the others.
        """
        names = tuple(f"t{number}" for number in range(MAX_TOPICS))
        condition = parse(" && ".join(f"'{name}' in topics" for name in names))
        self.assertEqual(condition.topics, names)
        self.assertEqual([some for some in subsets(names) if condition.matches(some)], [set(names)])

    def test_tooManyTopics(self) -> None:
        """
        A sixth is not.
        """
        error = rejection(" || ".join(f"'t{number}' in topics" for number in range(6)))
        self.assertEqual((error.field, error.reason), ("condition", "must not name more than 5 topics"))

    def test_longestTopics(self) -> None:
        """
        Five topics of the longest names are not too long.
        """
        text = " && ".join(f"('{letter * 900}' in topics)" for letter in "abcde")
        self.assertEqual(len(parse(text).topics), 5)

    def test_tooLong(self) -> None:
        """
        A text is bounded, whatever it says.
        """
        text = "'a' in topics"
        self.assertEqual(parse(text.rjust(8192)), parse(text))
        self.assertEqual(rejection(text.rjust(8193)).reason, "must not have more than 8192 characters")

    def test_deep(self) -> None:
        """
        Parentheses may be nested as deeply as the length allows, and what is
        nested more deeply is refused like anything else.
        """
        text = f"{'(' * 4000}'a' in topics{')' * 4000}"
        self.assertEqual(parse(text), parse("'a' in topics"))
        text = f"{'!(' * 2001}'a' in topics{')' * 2001}"
        self.assertEqual(parse(text), parse("!('a' in topics)"))
        rejection("(" * 8192)
        rejection("(" * 10_000)


class _Topic:
    """
    One topic, as the tests make it up.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        """
        As it stands in a condition.
        """
        return f"'{self.name}' in topics"

    def holds(self, topics: set[str]) -> bool:
        """
        Whether a device has it.
        """
        return self.name.lower() in topics


class _Chain:
    """
    Something in parentheses, operators from left to right, likewise.
    """

    def __init__(self, inverted: bool, first: _Term, rest: list[tuple[str, _Term]]) -> None:
        self.inverted = inverted
        self.first = first
        self.rest = rest

    def __str__(self) -> str:
        """
        As it stands in a condition.
        """
        rest = "".join(f" {sign} {term}" for sign, term in self.rest)
        return f"{'!' * self.inverted}({self.first}{rest})"

    def holds(self, topics: set[str]) -> bool:
        """
        Whether it is for a device.
        """
        value = self.first.holds(topics)
        for sign, term in self.rest:
            value = value and term.holds(topics) if sign == "&&" else value or term.holds(topics)
        return value != self.inverted


_Term = _Topic | _Chain
NAMES = ("a", "B", "c-1", "%7E", "x.y")
SIGNS = st.sampled_from(["&&", "||"])
terms: st.SearchStrategy[_Term] = st.recursive(
    st.sampled_from(NAMES).map(_Topic),
    lambda inner: st.builds(_Chain, st.booleans(), inner, st.lists(st.tuples(SIGNS, inner), max_size=3)),
    max_leaves=20,
)


def isCondition(text: str) -> bool:
    """
    Whether a text follows the grammar, found out in another way: every part
    that is complete is replaced by a C{T}, until nothing more can be.
    """
    before, text = None, re.sub(r"\s+", "", re.sub(r"'[ab]' in topics", "T", text))
    while text != before:
        before, text = text, re.sub(r"T(&&|\|\|)T|!?\(T\)", "T", text)
    return text == "T"


class PropertyTests(SynchronousTestCase):
    """
    The same of whatever there is.
    """

    @given(terms, st.lists(st.tuples(SIGNS, terms), max_size=3))
    def test_agrees(self, first: _Term, rest: list[tuple[str, _Term]]) -> None:
        """
        What was written down is read as it was meant, for every device.
        """
        whole = _Chain(False, first, rest)
        text = str(whole)[1:-1]
        condition = parse(text)
        self.assertTrue(all(f"'{topic}'" in text.lower() for topic in condition.topics))
        for topics in subsets(tuple(name.lower() for name in NAMES)):
            self.assertEqual(whole.holds(topics), condition.matches(topics), text)

    @given(st.lists(st.sampled_from(["'a' in topics", "'b' in topics", "&&", "||", "!", "(", ")"])))
    def test_grammar(self, words: list[str]) -> None:
        """
        Of texts made of the words of conditions, those are taken that follow
        the grammar, and no others.
        """
        text = " ".join(words)
        try:
            self.assertIsInstance(parse(text), Condition)
            taken = True
        except NotSendable:
            taken = False
        self.assertEqual(taken, isCondition(text), text)

    @given(
        st.text(st.characters())
        | st.lists(st.sampled_from(["'", "a", "in", "topics", " ", "&", "|", "!", "(", ")", "\ud800"])).map(
            "".join
        )
    )
    def test_total(self, text: str) -> None:
        """
        Whatever the text, it is read or refused, at a character that is in
        it or just behind it.
        """
        try:
            parse(text)
        except NotSendable as error:
            position = int(error.reason.rpartition(" ")[2])
            self.assertTrue(1 <= position <= len(text) + 1, error.reason)

    @given(st.sampled_from(["", "(", "'a' in topics ", "'a' in topics && "]), st.text(" '&|!()"))
    def test_quotesNothing(self, before: str, behind: str) -> None:
        """
        No error quotes the text: it may be logged.
        """
        error = rejection(f"{before}c0ffee-5ecret{behind}")
        self.assertNotIn("5ecret", str(error))
