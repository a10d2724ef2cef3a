"""
Tests for L{fcmxmpp.retry}.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.retry import (
    LOGIN_REFUSED_DELAY,
    STABLE,
    backoff,
    failuresAfter,
    loginDelay,
    nackDelay,
    rateDelay,
    reconnectDelay,
)


#: How many tries have failed in a row.
failures = st.integers(1, 10**6)
#: What the caller's source of randomness gives.
jitters = st.floats(0, 1)


class BackoffTests(SynchronousTestCase):
    """
    L{backoff} doubles, spreads and ends.
    """

    def test_doubles(self) -> None:
        """
        Without jitter the delay doubles from one second to a minute.
        """
        self.assertEqual([backoff(n, 0.0) for n in range(1, 9)], [1, 2, 4, 8, 16, 32, 60, 60])

    def test_firstAndMost(self) -> None:
        """
        The caller sets where it begins and where it ends.
        """
        self.assertEqual([backoff(n, 0.0, first=3.0, most=10.0) for n in range(1, 5)], [3, 6, 10, 10])

    def test_fullJitterHalves(self) -> None:
        """
        The greatest jitter takes off half of the delay, at its end as well.
        """
        self.assertEqual([backoff(n, 1.0) for n in (1, 2, 3, 20)], [0.5, 1, 2, 30])

    def test_jitterIsLinear(self) -> None:
        """
        Delays are spread evenly over the half that jitter may take.
        """
        self.assertEqual([backoff(3, jitter) for jitter in (0.25, 0.5, 0.75)], [3.5, 3.0, 2.5])

    def test_smallFirstReachesMost(self) -> None:
        """
        However short the first delay is, in the long run it is at its most
        or at 2**32 times the first.
        """
        self.assertEqual(backoff(40, 0.0, first=0.001), 60.0)
        self.assertEqual(backoff(10**6, 0.0, first=2.0**-32), 1.0)

    @given(failures, jitters, st.floats(1e-3, 1e3), st.floats(1e-3, 1e6))
    def test_bounds(self, count: int, jitter: float, first: float, most: float) -> None:
        """
        The delay is never over its most nor, but for jitter, under its first.
        """
        delay = backoff(count, jitter, first=first, most=most)
        self.assertLessEqual(delay, most)
        self.assertGreaterEqual(delay, min(first, most) / 2)

    @given(failures, jitters)
    def test_neverShrinks(self, count: int, jitter: float) -> None:
        """
        One more failure never makes the delay shorter.
        """
        self.assertGreaterEqual(backoff(count + 1, jitter), backoff(count, jitter))


class FailuresAfterTests(SynchronousTestCase):
    """
    L{failuresAfter} forgives those that held for a while.
    """

    @given(st.integers(0, 10**6), st.floats(60, 1e9))
    def test_stable(self, count: int, connectedFor: float) -> None:
        """
        A connection that held for a minute or more wipes the slate clean.
        """
        self.assertEqual(failuresAfter(count, connectedFor), 0)

    @given(st.integers(0, 10**6), st.floats(0, 60, exclude_max=True))
    def test_unstable(self, count: int, connectedFor: float) -> None:
        """
        A connection that broke earlier counts as one more failure.
        """
        self.assertEqual(failuresAfter(count, connectedFor), count + 1)

    def test_default(self) -> None:
        """
        Unless the caller says otherwise, a minute makes it a stable one.
        """
        self.assertEqual(STABLE, 60.0)
        self.assertEqual((failuresAfter(3, STABLE - 0.1), failuresAfter(3, STABLE)), (4, 0))

    def test_stableAfter(self) -> None:
        """
        The caller sets how long is long enough.
        """
        self.assertEqual(failuresAfter(3, 9.9, stableAfter=10.0), 4)
        self.assertEqual(failuresAfter(3, 10.0, stableAfter=10.0), 0)


class ReconnectDelayTests(SynchronousTestCase):
    """
    L{reconnectDelay} loses no time, unless there is something the matter.
    """

    def test_delays(self) -> None:
        """
        The first try is made at once; those after it wait, from one second
        to a minute.
        """
        delays = [reconnectDelay(n, 0.0) for n in range(1, 10)]
        self.assertEqual(delays, [0, 1, 2, 4, 8, 16, 32, 60, 60])

    def test_stable(self) -> None:
        """
        After a stable connection, which leaves no failure, the first try is
        made at once as well.
        """
        self.assertEqual(reconnectDelay(failuresAfter(7, STABLE), 0.0), 0.0)

    def test_jitter(self) -> None:
        """
        Jitter takes off up to half, and leaves the first try where it is.
        """
        self.assertEqual([reconnectDelay(n, 1.0) for n in (0, 1, 2, 3, 20)], [0, 0, 0.5, 1, 30])

    @given(st.integers(2, 10**6), jitters)
    def test_bounds(self, count: int, jitter: float) -> None:
        """
        From the second try on there is always a pause, never one of over a
        minute.
        """
        self.assertTrue(0.5 <= reconnectDelay(count, jitter) <= 60.0)


class NackDelayTests(SynchronousTestCase):
    """
    L{nackDelay} begins at a second, as the protocol wants it, and doubles.
    """

    def test_delays(self) -> None:
        """
        Without jitter it doubles from two seconds to a minute, with the
        greatest from one to half a minute.
        """
        self.assertEqual([nackDelay(n, 0.0) for n in range(1, 8)], [2, 4, 8, 16, 32, 60, 60])
        self.assertEqual([nackDelay(n, 1.0) for n in range(1, 8)], [1, 2, 4, 8, 16, 30, 30])

    @given(failures, jitters)
    def test_bounds(self, count: int, jitter: float) -> None:
        """
        It is never under a second nor over a minute.
        """
        self.assertTrue(1.0 <= nackDelay(count, jitter) <= 60.0)


class RateDelayTests(SynchronousTestCase):
    """
    L{rateDelay} lets a device or topic rest.
    """

    def test_delays(self) -> None:
        """
        Without jitter it doubles from twenty seconds to ten minutes, with
        the greatest from ten seconds to five minutes.
        """
        self.assertEqual([rateDelay(n, 0.0) for n in range(1, 8)], [20, 40, 80, 160, 320, 600, 600])
        self.assertEqual([rateDelay(n, 1.0) for n in range(1, 8)], [10, 20, 40, 80, 160, 300, 300])

    @given(failures, jitters)
    def test_slowerThanNack(self, count: int, jitter: float) -> None:
        """
        It is always longer than the delay of a message that was merely not
        taken, and never over ten minutes.
        """
        self.assertTrue(nackDelay(count, jitter) < rateDelay(count, jitter) <= 600.0)


class LoginDelayTests(SynchronousTestCase):
    """
    L{loginDelay} neither spins nor gives up.
    """

    def test_threeSpacedTries(self) -> None:
        """
        Three tries are spaced by ten and twenty seconds; all others follow
        after five minutes.
        """
        self.assertEqual([loginDelay(n, 0.0) for n in range(1, 6)], [10, 20, 300, 300, 300])

    def test_jitter(self) -> None:
        """
        Jitter takes off up to half of the short delays and nothing of the
        long one.
        """
        self.assertEqual([loginDelay(n, 1.0) for n in (1, 2, 3)], [5, 10, 300])

    @given(failures, jitters)
    def test_bounds(self, refusals: int, jitter: float) -> None:
        """
        There is always a pause of some seconds, never one of over five
        minutes.
        """
        delay = loginDelay(refusals, jitter)
        self.assertGreaterEqual(delay, 5.0)
        self.assertLessEqual(delay, LOGIN_REFUSED_DELAY)
