"""Traces of routing as files: the reader detects their format; the writer keeps them valid after every block.

`Trace` holds one in memory (`trace_rows.py`); the two formats are CSV (`trace_csv.py`) and a compact binary one
(`trace_binary.py`).

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
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from edgemoe.engine.phase import DECODE, PROMPT
from edgemoe.errors import TraceError, UsageError
from edgemoe.lab.trace_binary import MAGIC, BinaryFaultError, BinaryReader, BinaryWriter
from edgemoe.lab.trace_csv import CsvFaultError, CsvReader, CsvWriter
from edgemoe.lab.trace_rows import Trace, TraceShape, join

__all__ = [
    "DECODE",
    "FORMATS",
    "PROMPT",
    "Trace",
    "TraceFormat",
    "TraceShape",
    "TraceWriter",
    "format_of",
    "read_trace",
]

TraceFormat = Literal["csv", "binary"]
FORMATS: tuple[TraceFormat, ...] = ("csv", "binary")

BUFFERED_ROWS = 8192
BUFFERED_SECONDS = 1.0
"""Rows are buffered up to `BUFFERED_ROWS` or for this long: a crash loses no more than these."""


def read_trace(path: Path | str, whole_blocks_only: bool = False) -> Trace:
    """Read the trace in a file of either format.

    With `whole_blocks_only` an end that a crash has cut short (a partial line, block or end mark) is left out instead
    of raising an error. Raises TraceError, naming the file and the line or block, where the file is missing, of an
    unknown format, cut short, altered, or holds values out of range.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise TraceError(f"{path}: expected a trace, found what is no file.", _WAY_OUT)
            begin = file.read(len(MAGIC))
            file.seek(0)
            if begin == MAGIC:
                return _read_binary(file, whole_blocks_only)
            return _read_csv(file, whole_blocks_only)
    except _CutShortError as fault:
        raise TraceError(
            f"{path}: {fault}.",
            "Was its recording or its copy cut short? The command edgemoe trace can keep what is whole of it:"
            f" `from={path}`, with another file for `out`.",
        ) from None
    except (BinaryFaultError, CsvFaultError) as fault:
        raise TraceError(f"{path}: {fault}.", _WAY_OUT) from None
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror or error}).", _WAY_OUT) from None


_WAY_OUT = "Give a file that edgemoe trace wrote, or a CSV of the same columns."


class _CutShortError(Exception):
    """The end of a file is missing or damaged; the part before it is whole."""


def _read_binary(file: BinaryIO, whole_blocks_only: bool) -> Trace:
    reader = BinaryReader(file)
    parts: list[list[npt.NDArray[np.generic]]] = []
    try:
        parts.extend(reader.parts())
    except BinaryFaultError as fault:
        if not whole_blocks_only:
            raise _CutShortError(fault) from None
    return join(reader.shape, parts)


def _read_csv(file: BinaryIO, whole_blocks_only: bool) -> Trace:
    reader = CsvReader(file)
    parts = list(reader.parts())
    if reader.cut_short and not whole_blocks_only:
        raise _CutShortError("the last line has no end")
    return join(reader.shape, parts)


def format_of(path: Path | str, name: str | None = None) -> TraceFormat:
    """The format of a trace to be written: the named one, or CSV for a file name that ends in .csv, else binary.

    Raises UsageError for an unknown format.
    """
    if name is None:
        return "csv" if Path(path).suffix.lower() == ".csv" else "binary"
    for known in FORMATS:
        if name == known:
            return known
    raise UsageError(f"`format`: expected {' or '.join(FORMATS)}, found {name}.", "Leave it out to go by the name.")


class TraceWriter:
    """Writes a trace row by row, buffering few rows in memory. A context manager.

    After an error no more rows can be written; the rows written before stay a whole trace. Rows that an interrupt
    (Ctrl-C) kept from being written are written by the next `flush` or `close`.
    """

    def __init__(self, path: Path | str, shape: TraceShape, format_name: TraceFormat | None = None) -> None:
        """Creates the file, replacing an existing one. Raises TraceError where it cannot be written."""
        self.path = Path(path)
        self.shape = shape
        self.rows = 0
        """Rows written, including buffered ones."""
        self.file_bytes = 0
        self._writer = CsvWriter() if format_of(path, format_name) == "csv" else BinaryWriter()
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
            self._append(self._writer.block(join(self.shape, self._waiting)))
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


def write_trace(path: Path | str, trace: Trace, format_name: TraceFormat | None = None) -> None:
    """Write a whole trace. Raises TraceError where the file cannot be written."""
    with TraceWriter(path, trace.shape, format_name) as writer:
        for first in range(0, len(trace), BUFFERED_ROWS):
            writer.write(trace.select(slice(first, first + BUFFERED_ROWS)))


def _write_at(descriptor: int, position: int, data: bytes) -> None:
    os.lseek(descriptor, position, os.SEEK_SET)
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
