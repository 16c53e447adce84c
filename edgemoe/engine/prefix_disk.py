"""Files of kept prefixes: pages of keys and values, and snapshots, which outlive the process that computed them.

Each file holds one of these and is named by the hash of all tokens up to its end, in a folder that is named by the
program: the model, the settings that bits depend on, and the code that computes them. So a file is used only where
computing the same tokens again would give the same bits; its checksum says that they are those that were written. Files
are written whole or not at all, and are for their owner alone, since prompts can be guessed from them.

All folders together stay within a size: the files that were used least recently make way. Of one text the end makes way
before the beginning, without which it could not be used. No method raises for a file: where one is damaged, or cannot
be written, that is told once and tokens are computed as if there were none.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgemoe.engine.pages import PREFIX_HASH_BYTES, PrefixHash
from edgemoe.errors import UsageError
from edgemoe.io.checksum import crc32c

Arrays = Sequence[npt.NDArray[Any]]
Kind = Literal["page", "state"]

HEADER = struct.Struct(f"<8s{PREFIX_HASH_BYTES}s{PREFIX_HASH_BYTES}sQII")
"""Mark, program, prefix, bytes and CRC-32C of the contents, and the CRC-32C of the fields before it."""
MARK = b"edgemoe\1"
AT_ONCE = 512
"""Buffers that one call of the system takes at most; POSIX systems allow 1024."""
ABANDONED_SECONDS = 600
"""The age of a file that another process may still be writing at most."""
STEP_NS = 1000
"""How much less recent each page of a text counts than the one before it."""


class PrefixDisk:
    """The files of one program, within the bytes that all programs share."""

    def __init__(self, folder: Path, program: bytes, most_bytes: int) -> None:
        """`folder` has the folders of all programs. Raises UsageError where it cannot be used."""
        self._program = program
        self._most_bytes = most_bytes
        self._root = folder
        self._folder = folder / program.hex()
        self.tell: Callable[[str], None] = lambda text: None
        """Called at most once for damaged files, and once where none can be written."""
        self._told: set[str] = set()
        self.writable = True
        """Whether files are still written: not after the system has refused one."""
        self.read_bytes = 0
        """Bytes of the files that were used."""
        self._make_folders()
        self._files = {path: (size, stamp) for path, size, stamp in self._scan()}

    @property
    def held_bytes(self) -> int:
        """The bytes of all files, as far as this process knows."""
        return sum(size for size, _ in self._files.values())

    def has(self, kind: Kind, prefix: PrefixHash) -> bool:
        """Whether there is a file."""
        return self._path(kind, prefix).is_file()

    def read(self, kind: Kind, prefix: PrefixHash, arrays: Arrays) -> bool:
        """Fill arrays from a file; False, with contents undefined, where there is none that is as it was written."""
        path = self._path(kind, prefix)
        try:
            with path.open("rb", buffering=0) as file:
                header = file.read(HEADER.size)
                intact = self._fits(header, prefix, arrays) and _fill(file.fileno(), arrays) and not file.read(1)
        except FileNotFoundError:
            return False
        except OSError:
            intact = False
        if intact and HEADER.unpack(header)[4] == _checksum(arrays):
            self.read_bytes += HEADER.size + _size(arrays)
            return True
        self._remove(path)
        self._tell_once("damaged", f"{path}: a kept prefix was damaged; it is removed, and its tokens are run again")
        return False

    def write(self, kind: Kind, prefix: PrefixHash, number: int, arrays: Arrays) -> None:
        """Write a file, unless it is there, or would take the place of files that were used after it.

        `number` is that of the text's pages before the place to which it belongs.
        """
        path, size, stamp = self._path(kind, prefix), HEADER.size + _size(arrays), self._stamp(number)
        if not self.writable or path.exists() or not self._make_room(size, stamp):
            return
        fields = HEADER.pack(MARK, self._program, prefix, _size(arrays), _checksum(arrays), 0)
        header = fields[:-4] + struct.pack("<I", crc32c(fields[:-4]))
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            try:
                file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                try:
                    _pour(file, [np.frombuffer(header, np.uint8), *arrays])
                finally:
                    os.close(file)
                os.utime(temporary, ns=(stamp, stamp))
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            self.writable = False
            self._tell_once("full", f"{self._root}: no more prefixes are kept here: {error.strerror}")
            return
        self._files[path] = size, stamp

    def used(self, kind: Kind, prefix: PrefixHash, number: int) -> None:
        """Note that a file was used, so that it stays longer than others."""
        path, stamp = self._path(kind, prefix), self._stamp(number)
        if path in self._files:
            with contextlib.suppress(OSError):
                os.utime(path, ns=(stamp, stamp))
                self._files[path] = self._files[path][0], stamp

    def _stamp(self, number: int) -> int:
        return time.time_ns() - number * STEP_NS

    def _path(self, kind: Kind, prefix: PrefixHash) -> Path:
        return self._folder / f"{prefix.hex()}.{kind}"

    def _make_folders(self) -> None:
        way_out = "Remove it, or name another cache folder (EDGEMOE_CACHE_DIR)."
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self._root, self._folder):
                if folder.stat().st_mode & 0o077:
                    folder.chmod(0o700)
        except OSError as error:
            raise UsageError(f"{self._folder}: prefixes cannot be kept here: {error.strerror}.", way_out) from None

    def _scan(self) -> Iterator[tuple[Path, int, int]]:
        """All files of prefixes, with their bytes and when they were used; what a process left half written goes."""
        for path in self._root.glob("*/*"):
            with contextlib.suppress(OSError):
                found = path.stat()
                if path.name.startswith("."):
                    if time.time() - found.st_mtime > ABANDONED_SECONDS:
                        path.unlink()
                elif path.suffix in (".page", ".state"):
                    yield path, found.st_size, found.st_mtime_ns

    def _make_room(self, size: int, stamp: int) -> bool:
        """Remove files until another of this size fits; False where it would have to be one that was used later."""
        too_many = self.held_bytes + size - self._most_bytes
        if too_many <= 0:
            return True
        leaving = []
        for path in sorted(self._files, key=lambda path: self._files[path][1]):
            if self._files[path][1] >= stamp:
                break
            leaving.append(path)
            too_many -= self._files[path][0]
            if too_many <= 0:
                for one in leaving:
                    self._remove(one)
                return True
        return False

    def _remove(self, path: Path) -> None:
        self._files.pop(path, None)
        with contextlib.suppress(OSError):
            path.unlink()

    def _fits(self, header: bytes, prefix: PrefixHash, arrays: Arrays) -> bool:
        if len(header) != HEADER.size:
            return False
        mark, program, named, size, _, crc = HEADER.unpack(header)
        wanted = (MARK, self._program, prefix, _size(arrays), crc32c(header[:-4]))
        return (mark, program, named, size, crc) == wanted

    def _tell_once(self, what: str, text: str) -> None:
        if what not in self._told:
            self._told.add(what)
            self.tell(text)


def _size(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays)


def _checksum(arrays: Arrays) -> int:
    crc = 0
    for array in arrays:
        crc = crc32c(array, crc)
    return crc


def _bytes(arrays: Arrays) -> list[memoryview]:
    return [memoryview(array.reshape(-1).view(np.uint8).data) for array in arrays if array.nbytes]


def _fill(file: int, arrays: Arrays) -> bool:
    """Read a file on into arrays; False where it ends before these are full."""
    return _all(_bytes(arrays), lambda buffers: os.readv(file, buffers))


def _pour(file: int, arrays: Arrays) -> None:
    """Write arrays to a file."""
    _all(_bytes(arrays), lambda buffers: os.writev(file, buffers))


def _all(buffers: list[memoryview], move: Callable[[list[memoryview]], int]) -> bool:
    """Move the bytes of all buffers, in order, by calls that may move fewer; False where one moves none."""
    first = 0
    while first < len(buffers):
        moved = move(buffers[first : first + AT_ONCE])
        if not moved:
            return False
        while first < len(buffers) and moved >= len(buffers[first]):
            moved -= len(buffers[first])
            first += 1
        if moved:
            buffers[first] = buffers[first][moved:]
    return True
