"""
Where the files are that are not in the package: the README, the launchers.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


__all__ = ["CHECKOUT", "childEnvironment", "script"]

#: The checkout; named by the environment where the tests run from a copy.
CHECKOUT = Path(os.environ.get("FCMXMPP_CHECKOUT") or Path(__file__).parent.parent)


def script(name: str) -> str:
    """
    The path of a program that was installed with this interpreter.
    """
    return str(Path(sys.executable).parent / name)


def childEnvironment(**more: str) -> dict[str, str]:
    """
    The environment for a child process: it imports what is imported here, and
    knows no setting of ours.
    """
    import fcmxmpp

    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("FCM_") and name != "CREDENTIALS_DIRECTORY"
    }
    # Only where it is not installed; a checkout must not hide an installed wheel.
    root = str(Path(fcmxmpp.__file__).parent.parent)
    if "site-packages" not in root:
        environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [environment.get("PYTHONPATH")])])
    return environment | more
