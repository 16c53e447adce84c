"""Traces of routing as files: they are written as blocks of arrays, and read from those or from other engines' CSV.

`Trace` holds one in memory (`trace_rows.py`). `trace_blocks.py` has the form that is written, `trace_csv.py` the reader
of CSV.

Invariant of a file that is being written: between two writes it is a whole trace of all rows written so far. A write
that fails (a full disk) is undone; `read_trace` detects a partial write after a crash, and can leave it out.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from copy import copy
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from edgemoe.engine.phase import DECODE, PROMPT
from edgemoe.errors import TraceError, UsageError
from edgemoe.lab.trace_blocks import MAGIC, BlockFaultError, BlockReader, BlockWriter
from edgemoe.lab.trace_csv import CsvFaultError, CsvReader
from edgemoe.lab.trace_rows import Trace, TraceShape, join

__all__ = [
    "DECODE",
    "PROMPT",
    "Trace",
    "TraceShape",
    "TraceWriter",
    "check_trace_name",
    "read_trace",
]

OLD_MAGIC = b"\x8eEMTRACE"
"""The first bytes of a trace in the binary form of edgemoe 0.1.0."""
BUFFERED_ROWS = 8192
BUFFERED_SECONDS = 1.0
"""Rows are buffered up to `BUFFERED_ROWS` or for this long: a crash loses no more than these."""


def read_trace(path: Path | str, whole_blocks_only: bool = False) -> Trace:
    """Read the trace in a file of blocks or of CSV.

    With `whole_blocks_only` an end that a crash has cut short (a partial line or block) is left out instead of
    raising an error. Raises TraceError, naming the file and the line or block, where the file is missing, of an
    unknown format, cut short, altered, or holds values out of range.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise TraceError(f"{path}: expected a trace file, found a directory or a device.", _WAY_OUT)
            begin = file.read(len(OLD_MAGIC))
            file.seek(0)
            if begin == OLD_MAGIC:
                raise TraceError(
                    f"{path}: this is the binary form of edgemoe 0.1.0, which is no longer read.",
                    f"Write it as CSV, which is read, with edgemoe trace of that version: `from={path}`, and a name in"
                    " .csv for `out`.",
                )
            if begin.startswith(MAGIC):
                return _read_blocks(file, whole_blocks_only)
            return _read_csv(file, whole_blocks_only)
    except _CutShortError as fault:
        raise TraceError(
            f"{path}: {fault}.",
            "Was its recording or its copy cut short? The command edgemoe trace can keep the intact part:"
            f" `from={path}`, with another file for `out`.",
        ) from None
    except (BlockFaultError, CsvFaultError) as fault:
        raise TraceError(f"{path}: {fault}.", _WAY_OUT) from None
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror or error}).", _WAY_OUT) from None


_WAY_OUT = "Give a file that edgemoe trace wrote, or a CSV of the same columns."


class _CutShortError(Exception):
    """The end of a file is missing or damaged; the part before it is whole."""


def _read_blocks(file: BinaryIO, whole_blocks_only: bool) -> Trace:
    reader = BlockReader(file)
    parts: list[list[npt.NDArray[np.generic]]] = []
    try:
        parts.extend(reader.parts())
    except BlockFaultError as fault:
        if not whole_blocks_only:
            raise _CutShortError(fault) from None
    return join(reader.shape, parts)


def _read_csv(file: BinaryIO, whole_blocks_only: bool) -> Trace:
    reader = CsvReader(file)
    parts = list(reader.parts())
    if reader.cut_short and not whole_blocks_only:
        raise _CutShortError("the last line has no end")
    return join(reader.shape, parts)


def check_trace_name(path: Path | str) -> None:
    """Raise UsageError for a name that promises another form than the one that traces are written in."""
    if Path(path).suffix.lower() == ".csv":
        raise UsageError(
            f"{path}: expected a name that does not end in .csv, for a trace is written as gzip of safetensors.",
            f"Name it {Path(path).with_suffix('.trace')}, for example.",
        )


class TraceWriter:
    """Writes a trace row by row, buffering few rows in memory. A context manager.

    After an error no more rows can be written; the rows written before stay a whole trace. Rows that an interrupt
    (Ctrl-C) kept from being written are written by the next `flush` or `close`.
    """

    def __init__(self, path: Path | str, shape: TraceShape) -> None:
        """Creates the file, replacing an existing one.

        Raises TraceError where it cannot be written, and UsageError for a name in .csv.
        """
        check_trace_name(path)
        self.path = Path(path)
        self.shape = shape
        self.rows = 0
        """Rows written, including buffered ones."""
        self.file_bytes = 0
        self._writer = BlockWriter()
        self._waiting: list[tuple[npt.NDArray[np.generic], ...]] = []
        self._waiting_rows = 0
        self._descriptor = -1
        self._end = b""
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                raise OSError(0, "it is no file")
            os.ftruncate(self._descriptor, 0)
            self._append(self._writer.header(shape))
        except OSError as error:
            self._release()
            raise self._error(error) from None
        self._written_at_s = time.monotonic()

    def write(self, rows: Trace) -> None:
        """Append rows (of this writer's shape). Raises TraceError where the file cannot take them."""
        if self._descriptor < 0:
            raise TraceError(f"{self.path}: the trace is closed.")
        self._waiting.append(rows.columns)
        self._waiting_rows += len(rows)
        self.rows += len(rows)
        if self._waiting_rows >= BUFFERED_ROWS or time.monotonic() - self._written_at_s >= BUFFERED_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the buffered rows. Raises TraceError, and closes the file, where they cannot be written."""
        if not self._waiting_rows or self._descriptor < 0:
            return
        encoder, file_bytes = copy(self._writer), self.file_bytes
        try:
            self._append(self._writer.blocks(join(self.shape, self._waiting)))
        except OSError as error:
            self.rows -= self._waiting_rows
            self._release()
            raise self._error(error) from None
        finally:
            if self.file_bytes > file_bytes:
                self._waiting, self._waiting_rows = [], 0
            else:  # interrupted: they stay buffered, for `close`
                self._writer = encoder
        self._written_at_s = time.monotonic()

    def close(self) -> None:
        """Write the buffered rows and close the file. Closing twice is harmless. Raises TraceError as `flush`."""
        try:
            self.flush()
        finally:
            self._release()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        with contextlib.suppress(TraceError):  # the first error is more helpful
            self.close()

    def _append(self, data: bytes) -> None:
        """Replace the old end by data and a new end, or leave the file as it was."""
        position = self.file_bytes - len(self._end)
        end = self._writer.end()
        try:
            _write_at(self._descriptor, position, data + end)
        except BaseException:
            # the old end lies within the file's present size, so that it can be restored on a full disk
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self.file_bytes)
                _write_at(self._descriptor, position, self._end)
            raise
        self._end = end
        self.file_bytes = position + len(data) + len(end)

    def _release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _error(self, error: OSError) -> TraceError:
        kept = f" {self.rows} rows before it are there." if self.rows else ""
        return TraceError(
            f"{self.path}: the trace cannot be written ({error.strerror or error}).{kept}",
            "Choose a place that is yours, with space on its disk.",
        )


def write_trace(path: Path | str, trace: Trace) -> None:
    """Write a whole trace. Raises the errors of TraceWriter."""
    with TraceWriter(path, trace.shape) as writer:
        for first in range(0, len(trace), BUFFERED_ROWS):
            writer.write(trace.select(slice(first, first + BUFFERED_ROWS)))


def _write_at(descriptor: int, position: int, data: bytes) -> None:
    os.lseek(descriptor, position, os.SEEK_SET)
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
