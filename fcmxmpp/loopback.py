"""
What is on this machine itself, and so needs no protection on the way.
"""

from __future__ import annotations

from ipaddress import ip_address


__all__ = ["isLoopback"]


def isLoopback(host: str) -> bool:
    """
    Whether a host is this machine.

    @param host: a name or an address; one of IPv6 with or without brackets.
    """
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
