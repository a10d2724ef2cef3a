"""
Files that are there as a whole, or not at all, and why one is not.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


__all__ = ["replaceFile", "why"]


def replaceFile(path: Path, content: bytes, mode: int = 0o600, owner: tuple[int, int] | None = None) -> None:
    """
    Write a file in the place of another, so that whoever reads it, even after a
    crash, finds the one or the other, and that nobody ever can who may not.

    @param mode: its permissions.
    @param owner: the numbers of the user and the group that it is to belong to.
    @raise OSError: if that is impossible; all is as it was then.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            if owner is not None and owner != (os.geteuid(), os.getegid()):
                os.fchown(file.fileno(), *owner)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    # The name, too, is to be there after a crash.
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def why(error: Exception) -> str:
    """
    What went wrong with a file, in few words.
    """
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
