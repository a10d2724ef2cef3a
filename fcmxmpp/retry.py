"""
How long to wait before the next try.

Pure functions: the clock and the randomness are the caller's.
"""

from __future__ import annotations


__all__ = ["LOGIN_REFUSED_DELAY", "backoff", "failuresAfter", "loginDelay"]

#: Seconds between tries once a login has been refused several times.
LOGIN_REFUSED_DELAY = 300.0
#: How many times a refused login is tried again at shorter intervals.
_LOGIN_TRIES = 3


def backoff(failures: int, jitter: float, *, first: float = 1.0, most: float = 60.0) -> float:
    """
    Exponential back-off with jitter.

    @param failures: how many tries have failed in a row, at least 1.
    @param jitter: random, 0 to 1; it takes off up to half of the delay, so
        that a thousand clients do not come back in the same instant.
    @param first: the longest delay after the first failure, in seconds.
    @param most: the longest delay ever, in seconds.
    @return: seconds.
    """
    # Past 2**32 the delay is at its most anyway; the cap keeps floats sane.
    full = min(most, first * 2.0 ** min(failures - 1, 32))
    return full * (1.0 - jitter / 2.0)


def failuresAfter(failures: int, connectedFor: float, stableAfter: float = 60.0) -> int:
    """
    How many failures in a row there are now that a connection has been lost.

    A connection that held for a while wipes the slate clean, so that its loss
    is followed by a try at once; one that breaks as soon as it is made counts
    as one more failure.

    @param failures: how many there were before this connection.
    @param connectedFor: seconds from its login to its loss.
    @param stableAfter: from how many seconds on it was a stable one.
    """
    return 0 if connectedFor >= stableAfter else failures + 1


def loginDelay(refusals: int, jitter: float) -> float:
    """
    The delay after a refused login: three spaced tries, because a server that
    has too many connections may refuse a good key; then every five minutes.

    @param refusals: how many logins have been refused in a row, at least 1.
    @param jitter: random, 0 to 1.
    @return: seconds.
    """
    if refusals < _LOGIN_TRIES:
        return backoff(refusals, jitter, first=10.0)
    return LOGIN_REFUSED_DELAY
