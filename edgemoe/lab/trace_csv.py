"""Reads traces as CSV, the form that other engines write; NumPy parses the rows.

# route_trace v1
# model=NAME arch=NAME n_layer=L n_expert=E n_expert_used=K
# layer=0 expert_bytes=BYTES dense_bytes=BYTES            (a line for each layer)
turn,phase,step,layer,slot,expert,weight,residency,expert_bytes
0,0,0,0,0,49,0.221297,0,3059712                           (a line for each row)
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from edgemoe.lab.trace_rows import COLUMNS, TraceShape, find_fault

FIRST_LINE = "# route_trace v1"
COLUMN_LINE = ",".join(COLUMNS)
BLOCK_BYTES = 1 << 20
LINE_LIMIT_BYTES = 4096

MODEL_LINE = re.compile(r"# model=(.*) arch=(\S*) n_layer=(\d{1,9}) n_expert=(\d{1,9}) n_expert_used=(\d{1,9})\s*")
LAYER_LINE = re.compile(r"# layer=(\d{1,9}) expert_bytes=(\d{1,16}) dense_bytes=(\d{1,16})\s*")


class CsvFaultError(Exception):
    """An error that says what is wrong with a file, and in which line."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(f"line {line}: {what}")


class CsvReader:
    """Reads a file from its beginning: `shape` first, then `parts`."""

    def __init__(self, file: BinaryIO) -> None:
        """Reads the header. Raises CsvFaultError."""
        self._file = file
        self._line = 0
        self.cut_short = False
        """Whether the last line had no newline, and was left out."""
        self.shape = self._read_shape()

    def parts(self) -> Iterator[list[npt.NDArray[np.generic]]]:
        """The columns of the rows, block by block. Raises CsvFaultError."""
        rest = b""
        while data := self._file.read(BLOCK_BYTES):
            *lines, rest = (rest + data).replace(b"\r\n", b"\n").split(b"\n")
            if max(map(len, [*lines, rest])) > LINE_LIMIT_BYTES:
                first = next(number for number, line in enumerate([*lines, rest], 1) if len(line) > LINE_LIMIT_BYTES)
                raise CsvFaultError(self._line + first, f"expected at most {LINE_LIMIT_BYTES} bytes, found more")
            if lines:
                yield self._parse([line.decode("ascii", "replace") for line in lines])
        self.cut_short = bool(rest)

    def _read_line(self) -> str:
        self._line += 1
        line = self._file.readline(LINE_LIMIT_BYTES)
        if not line.endswith(b"\n"):
            raise CsvFaultError(self._line, "expected a whole line of the header, found its end or a line too long")
        try:
            return line.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            raise CsvFaultError(self._line, "expected UTF-8 text, found other bytes") from None

    def _read_shape(self) -> TraceShape:
        if (line := self._read_line()) != FIRST_LINE:
            raise CsvFaultError(self._line, f"expected '{FIRST_LINE}', found '{line[:80]}'")
        model = None
        sizes: list[tuple[int, int]] = []
        while (line := self._read_line()).startswith("#"):
            if match := MODEL_LINE.fullmatch(line):
                model = match
            elif match := LAYER_LINE.fullmatch(line):
                if int(match[1]) != len(sizes):
                    raise CsvFaultError(self._line, f"expected layer={len(sizes)}, found layer={match[1]}")
                sizes.append((int(match[2]), int(match[3])))
        if line != COLUMN_LINE:
            raise CsvFaultError(self._line, f"expected '{COLUMN_LINE}', found '{line[:80]}'")
        if model is None:
            raise CsvFaultError(self._line, "the header has no line '# model=... arch=... n_layer=... n_expert=...'")
        try:
            layers, experts, experts_used = map(int, model.groups()[2:])
            expert_bytes, dense_bytes = tuple(expert for expert, _ in sizes), tuple(dense for _, dense in sizes)
            return TraceShape(model[1], model[2], layers, experts, experts_used, expert_bytes, dense_bytes)
        except ValueError as error:
            raise CsvFaultError(self._line, f"the header above: {error}") from None

    def _parse(self, lines: Sequence[str]) -> list[npt.NDArray[np.generic]]:
        try:
            columns = _numbers(lines)
        except ValueError:
            raise self._first_fault(lines) from None
        if fault := find_fault(self.shape, columns):
            raise CsvFaultError(self._line + fault[0] + 1, fault[1])
        self._line += len(lines)
        return [column.astype(kind) for column, kind in zip(columns, COLUMNS.values(), strict=True)]

    def _first_fault(self, lines: Sequence[str]) -> CsvFaultError:
        """The error of the first line that is invalid by itself."""
        for number, line in enumerate(lines, self._line + 1):
            try:
                fault = find_fault(self.shape, _numbers([line]))
            except ValueError:
                return CsvFaultError(number, f"expected numbers for {COLUMN_LINE}, found '{line[:80]}'")
            if fault:
                return CsvFaultError(number, fault[1])
        return CsvFaultError(self._line + 1, f"expected {len(lines)} lines of numbers from here on, found others")


def _numbers(lines: Sequence[str]) -> Sequence[npt.NDArray[np.float64]]:
    """The columns of lines of text as float64, which holds every whole number that a trace may have.

    Raises ValueError for a line that does not have as many numbers as there are columns.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of lines that are all blank; among others NumPy skips them
        try:
            table = np.loadtxt(lines, np.float64, comments=None, delimiter=",", ndmin=2)
        except UserWarning as warning:
            raise ValueError(warning) from None
    if table.shape != (len(lines), len(COLUMNS)):
        raise ValueError(f"expected {len(lines)} lines of {len(COLUMNS)} numbers, found {table.shape}")
    return list(table.T)
