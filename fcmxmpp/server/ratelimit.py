"""
How often one address may ask for something.
"""

from __future__ import annotations

from collections import OrderedDict
from ipaddress import IPv6Address, ip_address


__all__ = ["RateLimit", "networkOf"]


def networkOf(address: str) -> str:
    """
    What counts as one client: an IPv4 address, or the 64 bits of an IPv6 address
    that one household has.
    """
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return f"{int(parsed) >> 64:x}::/64"


class RateLimit:
    """
    A bucket of permissions for each address, which fills up evenly.
    """

    #: How many addresses are remembered; the one that has been silent for longest
    #: is forgotten, as its bucket is likely to be full again.
    ADDRESSES = 10_000

    def __init__(self, rate: float, burst: float) -> None:
        """
        @param rate: permissions a second.
        @param burst: how many there may be in a bucket.
        """
        self._rate = rate
        self._burst = burst
        # What is in each, and when that was so.
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, address: str, now: float) -> float:
        """
        Ask for a permission.

        @return: 0.0 for yes; otherwise after how many seconds to ask again.
        """
        network = networkOf(address)
        left, since = self._buckets.pop(network, (self._burst, now))
        left = min(self._burst, left + max(0.0, now - since) * self._rate)
        allowed = left >= 1
        self._buckets[network] = (left - 1 if allowed else left, now)
        if len(self._buckets) > self.ADDRESSES:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self._rate
