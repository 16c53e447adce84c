"""Traces as CSV, a format that other engines write too; NumPy reads it in blocks.

    # route_trace v1
    # model=NAME arch=NAME n_layer=L n_expert=E n_expert_used=K
    # layer=0 expert_bytes=BYTES dense_bytes=BYTES            (a line for each layer)
    turn,phase,step,layer,slot,expert,weight,residency,expert_bytes
    0,0,0,0,0,49,0.221297,0,3059712                           (a line for each row)

A weight is written with enough digits to restore the same float32.

Invariant: the fast parser of a block and the slow one (`_line_fault`, which describes the fault of a line) refuse the
same lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NoReturn

import numpy as np
import numpy.typing as npt

from edgemoe.lab.trace_rows import COLUMNS, Trace, TraceShape, bounds, value_fault

FIRST_LINE = "# route_trace v1"
COLUMN_LINE = ",".join(COLUMNS)
BLOCK_BYTES = 1 << 20
LINE_LIMIT_BYTES = 4096

MODEL_LINE = re.compile(r"# model=(.*) arch=(\S*) n_layer=(\d{1,9}) n_expert=(\d{1,9}) n_expert_used=(\d{1,9})\s*")
LAYER_LINE = re.compile(r"# layer=(\d{1,9}) expert_bytes=(\d{1,16}) dense_bytes=(\d{1,16})\s*")

MOST_DIGITS, MOST_WEIGHT_BYTES = 16, 32
WHOLE_NUMBER = re.compile(rb"[0-9]{1,%d}" % MOST_DIGITS)
NUMBER = re.compile(rb"(?=.{1,%d}$)[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?" % MOST_WEIGHT_BYTES, re.ASCII)

_NUMBER_BYTES = np.zeros(256, np.bool_)
_NUMBER_BYTES[np.frombuffer(b"0123456789.+-eE", np.uint8)] = True

Bytes = npt.NDArray[np.uint8]


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
            end = data.rfind(b"\n") + 1
            if not end and len(rest) + len(data) > LINE_LIMIT_BYTES:
                raise CsvFaultError(self._line + 1, f"expected at most {LINE_LIMIT_BYTES} bytes, found more")
            if end:
                block, rest = rest + data[:end], data[end:]
                yield self._parse(block.replace(b"\r\n", b"\n"))
            else:
                rest += data
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

    def _parse(self, block: bytes) -> list[npt.NDArray[np.generic]]:
        characters = np.frombuffer(block, np.uint8)
        breaks = np.flatnonzero((characters == ord(",")) | (characters == ord("\n")))
        lines = int(np.count_nonzero(characters == ord("\n")))
        if (
            len(breaks) != lines * len(COLUMNS)
            or not (characters[breaks[len(COLUMNS) - 1 :: len(COLUMNS)]] == 10).all()
        ):
            self._refuse(block)
        starts = np.concatenate(([0], breaks[:-1] + 1)).reshape(lines, len(COLUMNS))
        lengths = breaks.reshape(lines, len(COLUMNS)) - starts
        limits = bounds(self.shape)
        result = []
        for place, (name, kind) in enumerate(COLUMNS.items()):
            cells, begins = lengths[:, place], starts[:, place]
            column: npt.NDArray[Any] | None
            if name == "weight":
                column = _numbers(characters, begins, cells)
            else:
                column = _whole_numbers(characters, begins, cells, limits[name])
            if column is None:
                self._refuse(block)
            result.append(column.astype(kind))
        self._line += lines
        return result

    def _refuse(self, block: bytes) -> NoReturn:
        """Find the first invalid line of a block, and raise CsvFaultError for it."""
        lines = block[:-1].split(b"\n")
        for number, line in enumerate(lines, self._line + 1):
            if fault := _line_fault(self.shape, line):
                raise CsvFaultError(number, fault)
        raise CsvFaultError(self._line + 1, f"or one of the {len(lines) - 1} after it is not of the format")


def _whole_numbers(
    characters: Bytes, begins: npt.NDArray[np.intp], lengths: npt.NDArray[np.intp], bound: int
) -> npt.NDArray[np.int64] | None:
    """Parse unsigned integers of given begins and lengths; None if one is malformed or not below `bound`."""
    most = int(lengths.max())
    if int(lengths.min()) < 1 or most > MOST_DIGITS:
        return None
    values = np.zeros(len(begins), np.int64)
    for place in range(most):
        going_on = lengths > place
        digits = characters[np.where(going_on, begins + place, 0)] - np.uint8(ord("0"))  # lower characters wrap around
        if (digits[going_on] > 9).any():
            return None
        values = np.where(going_on, values * 10 + digits, values)
    return values if int(values.max()) < bound else None


def _numbers(
    characters: Bytes, begins: npt.NDArray[np.intp], lengths: npt.NDArray[np.intp]
) -> npt.NDArray[np.float32] | None:
    """Parse decimal numbers of given begins and lengths; None if one is malformed or beyond float32."""
    width = int(lengths.max())
    if not 1 <= width <= MOST_WEIGHT_BYTES:
        return None
    places = begins[:, None] + np.arange(width)
    cells = characters[np.minimum(places, len(characters) - 1)]
    inside = np.arange(width) < lengths[:, None]
    if not _NUMBER_BYTES[cells[inside]].all():
        return None
    text = np.where(inside, cells, np.uint8(0)).view(f"S{width}").reshape(-1)
    try:
        with np.errstate(over="ignore"):
            values = text.astype(np.float64).astype(np.float32)
    except ValueError:
        return None
    return values if np.isfinite(values).all() else None


def _line_fault(shape: TraceShape, line: bytes) -> str | None:
    """Describe the fault of a line; None for a valid line."""
    cells = line.split(b",")
    if len(cells) != len(COLUMNS):
        return f"expected {len(COLUMNS)} values, found {len(cells)}"
    for name, cell in zip(COLUMNS, cells, strict=True):
        form, expected = (NUMBER, "a number") if name == "weight" else (WHOLE_NUMBER, "a whole number")
        if not form.fullmatch(cell):
            return f"{name}: expected {expected}, found {cell[:40].decode('ascii', 'replace')!r}"
        if fault := value_fault(shape, name, float(cell)):
            return fault
    return None


class CsvWriter:
    """Encodes rows as bytes of the file."""

    def header(self, shape: TraceShape) -> bytes:
        """Everything before the first row."""
        model, architecture = _in_one_line(shape.model), re.sub(r"\s", "_", _in_one_line(shape.architecture))
        lines = [
            FIRST_LINE,
            f"# model={model} arch={architecture} n_layer={shape.layers} n_expert={shape.experts}"
            f" n_expert_used={shape.experts_used}",
        ]
        for layer, (expert, dense) in enumerate(zip(shape.expert_bytes, shape.dense_bytes, strict=True)):
            lines.append(f"# layer={layer} expert_bytes={expert} dense_bytes={dense}")
        return ("\n".join([*lines, COLUMN_LINE]) + "\n").encode()

    def block(self, rows: Trace) -> bytes:
        """Encode rows as lines."""
        columns = [
            column.astype(np.str_).tolist() if name == "weight" else column.astype(np.int64).tolist()
            for name, column in zip(COLUMNS, rows.columns, strict=True)
        ]
        line = ",".join("%s" for _ in COLUMNS)
        return "".join(line % values + "\n" for values in zip(*columns, strict=True)).encode()

    def end(self) -> bytes:
        """The end of the file, which is empty: a CSV file is whole after every line."""
        return b""


def _in_one_line(text: str) -> str:
    return " ".join(text.split())[:1000]
