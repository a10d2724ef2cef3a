"""
Other people's libraries as subjects: slixmpp from PyPI, and node-xcs from npm.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from running import BUILD, HERE, Place, Subject, program


#: The release of node-xcs that the figures are of.
NODE_XCS_VERSION = "0.1.8"


def _slixmppMissing() -> str | None:
    """
    Why slixmpp cannot run here.
    """
    return None if find_spec("slixmpp") else "slixmpp is not installed: pip install slixmpp"


@cache
def _nodeMissing() -> str | None:
    """
    Why node-xcs cannot run here; installs it, if that has not been done.
    """
    for name in ("node", "npm"):
        if shutil.which(name) is None:
            return f"{name} is not installed"
    directory = _nodeDirectory()
    if (directory / "node_modules" / "node-xcs").exists():
        return None
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "package.json").write_text('{"private": true}\n')
    done = subprocess.run(
        ["npm", "install", "--no-fund", "--no-audit", "--loglevel=error", f"node-xcs@{NODE_XCS_VERSION}"],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    last = (done.stderr.strip() or "no reason given").splitlines()[-1]
    return f"npm could not install it: {last}" if done.returncode else None


def _nodeDirectory() -> Path:
    """
    Where node-xcs is installed.
    """
    return BUILD / "node"


def _node(place: Place) -> Sequence[str]:
    """
    The command of the program on node-xcs.
    """
    # Without it Node.js knows only its own authorities.
    authority = place.authorities / "generator.pem"
    return [
        *("env", f"NODE_EXTRA_CA_CERTS={authority}", f"NODE_PATH={_nodeDirectory() / 'node_modules'}"),
        *("node", "--no-deprecation", str(HERE / "subjects" / "node_xcs.js")),
    ]


SLIXMPP = Subject(
    "slixmpp", "slixmpp (Python)", program("slixmpp_app"), kind="other", missing=_slixmppMissing
)
NODE_XCS = Subject("node-xcs", "node-xcs (JavaScript)", _node, kind="other", missing=_nodeMissing)
