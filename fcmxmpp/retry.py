"""
How long to wait before the next try.

Pure functions: the clock and the randomness are the caller's.
"""

from __future__ import annotations


__all__ = [
    "LOGIN_REFUSED_DELAY",
    "STABLE",
    "backoff",
    "failuresAfter",
    "loginDelay",
    "nackDelay",
    "rateDelay",
    "reconnectDelay",
]

#: From how many seconds on a connection was a stable one.
STABLE = 60.0
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


def failuresAfter(failures: int, connectedFor: float, stableAfter: float = STABLE) -> int:
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


def reconnectDelay(failures: int, jitter: float) -> float:
    """
    The delay after a connection was lost: none at first, then back-off.

    @param failures: how many were lost in a row, this one included.
    @param jitter: random, 0 to 1.
    @return: seconds.
    """
    return backoff(failures - 1, jitter) if failures > 1 else 0.0


def nackDelay(tries: int, jitter: float) -> float:
    """
    The delay before a message goes out again that the connection server could
    not take just now: at least a second, doubled each time.

    @param tries: how often it has been refused, at least 1.
    @param jitter: random, 0 to 1.
    @return: seconds.
    """
    return backoff(tries, jitter, first=2.0)


def rateDelay(refusals: int, jitter: float) -> float:
    """
    The delay before anything goes out again to a device or topic that got too
    much.

    @param refusals: how often it has been told in a row, at least 1.
    @param jitter: random, 0 to 1.
    @return: seconds.
    """
    return backoff(refusals, jitter, first=20.0, most=600.0)


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
