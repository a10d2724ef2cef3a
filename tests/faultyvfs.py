"""
A file system for SQLite that keeps a record of what is written and synchronised,
and fails when it is told to.

It stands below SQLite: what SQLite does with a file goes by way of the
functions of a C{sqlite3_vfs} (https://www.sqlite.org/vfs.html).  This one is the
default one of the very library that Python's sqlite3 module uses, except that
writing, truncating and synchronising files call us first.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import os
import random
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_int64, c_void_p
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


__all__ = [
    "FULL",
    "IOERR_FSYNC",
    "IOERR_TRUNCATE",
    "IOERR_WRITE",
    "READONLY",
    "FaultyVFS",
    "Operation",
    "PowerCut",
    "unavailable",
]

#: What a file system may answer (https://www.sqlite.org/rescode.html).
OK = 0
READONLY = 8
FULL = 13
IOERR_WRITE = 10 | 3 << 8
IOERR_FSYNC = 10 | 4 << 8
IOERR_TRUNCATE = 10 | 6 << 8

_Open = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, POINTER(c_int))
_Write = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_Truncate = CFUNCTYPE(c_int, c_void_p, c_int64)
_Sync = CFUNCTYPE(c_int, c_void_p, c_int)


class _Methods(ctypes.Structure):
    """
    C{sqlite3_io_methods}: what can be done with an open file.
    """

    _fields_ = (
        ("iVersion", c_int),
        ("xClose", c_void_p),
        ("xRead", c_void_p),
        ("xWrite", _Write),
        ("xTruncate", _Truncate),
        ("xSync", _Sync),
        # 13 more, of which none is ours to change.
        ("others", c_void_p * 13),
    )


class _File(ctypes.Structure):
    """
    C{sqlite3_file}: an open file, as far as it is anybody's business.
    """

    _fields_ = (("pMethods", POINTER(_Methods)),)


class _VFS(ctypes.Structure):
    """
    C{sqlite3_vfs}.
    """

    _fields_ = (
        ("iVersion", c_int),
        ("szOsFile", c_int),
        ("mxPathname", c_int),
        ("pNext", c_void_p),
        ("zName", c_char_p),
        ("pAppData", c_void_p),
        ("xOpen", _Open),
        # 15 more.
        ("others", c_void_p * 15),
    )


def _library() -> Any:
    """
    SQLite itself, with what is needed here.
    """
    library = ctypes.CDLL(_sqlite3.__file__)
    library.sqlite3_vfs_find.restype = POINTER(_VFS)
    library.sqlite3_vfs_find.argtypes = [c_char_p]
    library.sqlite3_vfs_register.argtypes = [POINTER(_VFS), c_int]
    library.sqlite3_vfs_unregister.argtypes = [POINTER(_VFS)]
    return library


def unavailable() -> str | None:
    """
    Why this cannot be used here; None if it can.
    """
    try:
        library = _library()
    except (AttributeError, OSError) as error:
        return f"SQLite cannot be reached from here: {error}"
    return (
        None if library.sqlite3_vfs_find(None).contents.iVersion == 3 else "SQLite's file system is unknown"
    )


@dataclass(frozen=True)
class Operation:
    """
    Something that was done with a file.

    @ivar path: of the file.
    @ivar kind: C{"write"}, C{"truncate"} or C{"sync"}.
    @ivar offset: where it was written, or what size it was cut to.
    @ivar data: what was written.
    """

    path: str
    kind: str
    offset: int = 0
    data: bytes = b""


#: What C holds pointers to has to stay where it is.
_kept: list[object] = []


class FaultyVFS:
    """
    The file system, while it is installed.

    @ivar operations: what was done, in order; what failed is not in it.
    @ivar failures: how often something failed because it was told to.
    """

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.failures = 0
        self._fault: Callable[[str, str], int] = lambda kind, path: OK
        self._paths: dict[int, str] = {}
        self._ours: dict[int, Any] = {}
        self._library = _library()
        self._original = self._library.sqlite3_vfs_find(None)
        self._openOriginal = self._original.contents.xOpen
        vfs = _VFS.from_buffer_copy(self._original.contents)
        vfs.zName = b"faulty-%d" % id(self)
        vfs.pNext = None
        vfs.xOpen = _Open(self._open)
        self._vfs = ctypes.pointer(vfs)
        _kept.append((self, vfs))

    def install(self) -> None:
        """
        Have everything use this that is opened from now on.
        """
        self._library.sqlite3_vfs_register(self._vfs, 1)

    def uninstall(self) -> None:
        """
        Have nothing use it that is opened from now on.
        """
        self._library.sqlite3_vfs_unregister(self._vfs)
        self._library.sqlite3_vfs_register(self._original, 1)

    def fail(self, code: int, *kinds: str, suffix: str = "", times: int | None = None) -> None:
        """
        Fail from now on.

        @param kinds: of the operations that fail.
        @param suffix: of the files that they fail for: C{"-wal"} is the log.
        @param times: how many of them fail; all, by default.
        """
        left = [times]

        def fault(kind: str, path: str) -> int:
            if kind not in kinds or not path.endswith(suffix) or left[0] == 0:
                return OK
            if left[0] is not None:
                left[0] -= 1
            self.failures += 1
            return code

        self._fault = fault

    def heal(self) -> None:
        """
        Fail no more.
        """
        self._fault = lambda kind, path: OK

    def _open(self, _: int, name: int | None, file: int, flags: int, outFlags: Any) -> int:
        """
        Open a file, and have ourselves called for it.
        """
        code: int = self._openOriginal(ctypes.cast(self._original, c_void_p), name, file, flags, outFlags)
        opened = _File.from_address(file)
        if code == OK and name:
            self._paths[file] = os.fsdecode(ctypes.string_at(name))
            theirs = ctypes.addressof(opened.pMethods.contents)
            if theirs not in self._ours:
                self._ours[theirs] = self._replaced(opened.pMethods.contents)
            opened.pMethods = ctypes.pointer(self._ours[theirs])
        return code

    def _replaced(self, theirs: _Methods) -> _Methods:
        """
        The functions of a file, with our own where we want to know.
        """
        ours = _Methods.from_buffer_copy(theirs)
        write, truncate, sync = theirs.xWrite, theirs.xTruncate, theirs.xSync

        def done(file: int, operation: Operation, really: Callable[[], int]) -> int:
            code = self._fault(operation.kind, operation.path) or really()
            if code == OK:
                self.operations.append(operation)
            return code

        def xWrite(file: int, data: int, size: int, offset: int) -> int:
            operation = Operation(self._paths[file], "write", offset, ctypes.string_at(data, size))
            return done(file, operation, lambda: write(file, data, size, offset))

        def xTruncate(file: int, size: int) -> int:
            return done(file, Operation(self._paths[file], "truncate", size), lambda: truncate(file, size))

        def xSync(file: int, flags: int) -> int:
            return done(file, Operation(self._paths[file], "sync"), lambda: sync(file, flags))

        ours.xWrite, ours.xTruncate, ours.xSync = _Write(xWrite), _Truncate(xTruncate), _Sync(xSync)
        return ours


def _apply(image: bytearray, operation: Operation) -> None:
    """
    Do what was done.
    """
    end = operation.offset + len(operation.data)
    if operation.kind == "truncate":
        del image[operation.offset :]
    if len(image) < end:
        image.extend(bytes(end - len(image)))
    image[operation.offset : end] = operation.data


@dataclass
class _Disk:
    """
    One file.

    @ivar image: what is in it for sure.
    @ivar pending: what has been done to it since it was synchronised last.
    """

    image: bytearray = field(default_factory=bytearray)
    pending: list[Operation] = field(default_factory=list)


class PowerCut:
    """
    What a power cut leaves of files: all that was done before their last
    synchronisation, and of what came later nobody knows what; what is written
    last may be written in part, in sectors.

    @ivar at: how many operations were done before it.
    """

    SECTOR = 512

    def __init__(self, operations: list[Operation], before: dict[str, bytes], chance: random.Random) -> None:
        """
        @param operations: what was done.
        @param before: what was in the files before that.
        """
        self._operations = operations
        self._chance = chance
        self._disks = {path: _Disk(bytearray(content)) for path, content in before.items()}
        self.at = 0

    def advance(self, to: int) -> None:
        """
        Let the power last until so many operations were done.
        """
        for operation in self._operations[self.at : to]:
            disk = self._disks.setdefault(operation.path, _Disk())
            if operation.kind == "sync":
                for each in disk.pending:
                    _apply(disk.image, each)
                disk.pending.clear()
            else:
                disk.pending.append(operation)
        self.at = to

    def leave(self, directory: str) -> None:
        """
        Write to a directory what is left.
        """
        for path, disk in self._disks.items():
            image = bytearray(disk.image)
            # At times all or nothing, as well as anything in between.
            likely = self._chance.choice((0.0, 0.5, 0.9, 1.0))
            survivors = [each for each in disk.pending if self._chance.random() < likely]
            torn = self._chance.randrange(len(survivors)) if survivors else None
            for place, operation in enumerate(survivors):
                _apply(image, self._torn(operation) if place == torn else operation)
            Path(directory, os.path.basename(path)).write_bytes(image)

    def _torn(self, operation: Operation) -> Operation:
        """
        What is left of a write: some sectors from its beginning or its end.
        """
        first = operation.offset // self.SECTOR + 1
        borders = range(first * self.SECTOR, operation.offset + len(operation.data), self.SECTOR)
        if not borders:
            return operation
        border = self._chance.choice(borders)
        cut = border - operation.offset
        if self._chance.random() < 0.5:
            return Operation(operation.path, "write", operation.offset, operation.data[:cut])
        return Operation(operation.path, "write", border, operation.data[cut:])
