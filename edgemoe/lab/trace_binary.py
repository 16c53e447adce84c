"""Traces in edgemoe's own compact format: blocks of columns, deflated, each with a checksum.

    header   MAGIC (8 bytes) | version u32 | bytes u32 | checksum u32 | JSON: the fields of TraceShape
    block    "ROWS" | rows u32 | bytes u32 | checksum u32 | deflated columns       (any number of blocks)
    end      "END." | rows u64 | checksum u32                                      (nothing follows)

Numbers are little endian. The columns of a block follow each other in the order of `DISK_TYPES`; of each the first
byte of all rows comes first, then the second byte of all rows, and so on, which deflates to about 5 bytes a row.

A checksum is the CRC-32 of its part of the file (a header's JSON; a block without its checksum; "END." and the rows),
continued from the checksum before it: so it detects not only an altered block but also one that is missing, repeated or
in another place. A writer replaces the end by the next block and a new end in one write, so that the file is whole
after every block.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from edgemoe.lab.trace_rows import COLUMNS, Trace, TraceShape, bounds, value_fault

MAGIC = b"\x8eEMTRACE"
VERSION = 1
HEADER = struct.Struct("<8sIII")
BLOCK = struct.Struct("<4sIII")
END = struct.Struct("<4sQI")
HEADER_LIMIT_BYTES = 16 << 20
MOST_BLOCK_ROWS = 1 << 16
DEFLATE_LEVEL = 1
"""Compression level; higher levels take three times as long and save a tenth."""

DISK_TYPES: Mapping[str, str] = {
    "turn": "<u4", "phase": "u1", "step": "<u4", "layer": "<u2", "slot": "<u2", "expert": "<u4", "weight": "<f4",
    "residency": "u1", "expert_bytes": "<u8",
}  # fmt: skip
ROW_BYTES = sum(np.dtype(kind).itemsize for kind in DISK_TYPES.values())


class BinaryFaultError(Exception):
    """An error that says what is wrong with a file, and where."""


class BinaryReader:
    """Reads a file from its beginning: `shape` first, then `parts`."""

    def __init__(self, file: BinaryIO) -> None:
        """Reads the header. Raises BinaryFaultError."""
        self._file = file
        self._checksum = 0
        self.shape = self._read_shape()

    def parts(self) -> Iterator[list[npt.NDArray[np.generic]]]:
        """The columns of the rows, block by block; ends at the end mark. Raises BinaryFaultError."""
        number = rows = 0
        while True:
            number += 1
            tag = self._file.read(4)
            if tag == b"END.":
                self._check_end(tag, rows)
                return
            if tag != b"ROWS":
                what = "found the end of the file" if len(tag) < 4 else f"found {tag!r}"
                raise BinaryFaultError(f"block {number}: expected 'ROWS' or 'END.', {what}")
            part = self._read_block(number, tag)
            rows += len(part[0])
            yield part

    def _read_shape(self) -> TraceShape:
        head = self._file.read(HEADER.size)
        if len(head) < HEADER.size:
            raise BinaryFaultError(f"header: expected {HEADER.size} bytes, found {len(head)}")
        _, version, size, checksum = HEADER.unpack(head)
        if version != VERSION:
            raise BinaryFaultError(f"expected version {VERSION} of the format, found {version}")
        if size > HEADER_LIMIT_BYTES:
            raise BinaryFaultError(f"header: expected at most {HEADER_LIMIT_BYTES} bytes, found {size}")
        text = self._file.read(size)
        self._checksum = zlib.crc32(text)
        if len(text) < size or checksum != self._checksum:
            raise BinaryFaultError("header: its checksum is wrong")
        try:
            return _shape_from_json(json.loads(text))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise BinaryFaultError(f"header: {error}") from None

    def _read_block(self, number: int, tag: bytes) -> list[npt.NDArray[np.generic]]:
        head = tag + self._file.read(BLOCK.size - 4)
        if len(head) < BLOCK.size:
            raise BinaryFaultError(f"block {number}: it is cut short")
        _, rows, size, checksum = BLOCK.unpack(head)
        # deflated data is never much longer than the plain data
        if not 0 < rows <= MOST_BLOCK_ROWS or size > rows * ROW_BYTES + 1024:
            raise BinaryFaultError(
                f"block {number}: expected up to {MOST_BLOCK_ROWS} rows, found {rows} in {size} bytes"
            )
        payload = self._file.read(size)
        if len(payload) < size:
            raise BinaryFaultError(f"block {number}: it is cut short")
        self._checksum = zlib.crc32(payload, zlib.crc32(head[:12], self._checksum))
        if checksum != self._checksum:
            raise BinaryFaultError(f"block {number}: its checksum is wrong")
        return self._columns(number, rows, payload)

    def _columns(self, number: int, rows: int, payload: bytes) -> list[npt.NDArray[np.generic]]:
        inflater = zlib.decompressobj()
        try:
            data = inflater.decompress(payload, rows * ROW_BYTES + 1)
        except zlib.error as error:
            raise BinaryFaultError(f"block {number}: {error}") from None
        if len(data) != rows * ROW_BYTES or not inflater.eof:
            raise BinaryFaultError(f"block {number}: expected {rows * ROW_BYTES} bytes of columns, found others")
        result: list[npt.NDArray[np.generic]] = []
        limits, position = bounds(self.shape), 0
        for name, kind in COLUMNS.items():
            disk = np.dtype(DISK_TYPES[name])
            planes = np.frombuffer(data, np.uint8, rows * disk.itemsize, position).reshape(disk.itemsize, rows)
            position += rows * disk.itemsize
            values = np.ascontiguousarray(planes.T).view(disk).reshape(rows)
            wrong = ~np.isfinite(values) if name == "weight" else values >= limits[name]
            if wrong.any():
                fault = value_fault(self.shape, name, float(values[wrong][0]))
                raise BinaryFaultError(f"block {number}, row {int(np.argmax(wrong)) + 1}: {fault}")
            result.append(values.astype(kind))
        return result

    def _check_end(self, tag: bytes, rows: int) -> None:
        end = tag + self._file.read(END.size - 4)
        if len(end) < END.size:
            raise BinaryFaultError("the end mark is cut short")
        _, promised, checksum = END.unpack(end)
        if checksum != zlib.crc32(end[:12], self._checksum) or promised != rows:
            raise BinaryFaultError(f"the end mark is wrong: found {rows} rows before it")
        if self._file.read(1):
            raise BinaryFaultError("expected nothing after the end mark, found more bytes")


def _shape_from_json(data: Any) -> TraceShape:
    if not isinstance(data, dict):
        raise ValueError("expected a JSON object")
    model, architecture = data["model"], data["architecture"]
    if not isinstance(model, str) or not isinstance(architecture, str):
        raise ValueError("expected texts for model and architecture")
    sizes = [tuple(data[name]) for name in ("expert_bytes", "dense_bytes")]
    return TraceShape(model, architecture, data["layers"], data["experts"], data["experts_used"], *sizes)


class BinaryWriter:
    """Encodes rows as bytes of the file, one block after another."""

    def __init__(self) -> None:
        self._checksum = 0
        self._rows = 0

    def header(self, shape: TraceShape) -> bytes:
        """Everything before the first block."""
        text = json.dumps(asdict(shape), separators=(",", ":")).encode()
        self._checksum = zlib.crc32(text)
        return HEADER.pack(MAGIC, VERSION, len(text), self._checksum) + text

    def block(self, rows: Trace) -> bytes:
        """Encode rows as blocks."""
        return b"".join(
            self._block(rows.select(slice(first, first + MOST_BLOCK_ROWS)))
            for first in range(0, len(rows), MOST_BLOCK_ROWS)
        )

    def end(self) -> bytes:
        """The end of the file, after the blocks so far."""
        mark = END.pack(b"END.", self._rows, 0)[:12]
        return mark + struct.pack("<I", zlib.crc32(mark, self._checksum))

    def _block(self, rows: Trace) -> bytes:
        planes = []
        for name, column in zip(COLUMNS, rows.columns, strict=True):
            disk = np.dtype(DISK_TYPES[name])
            values = np.ascontiguousarray(column.astype(disk)).view(np.uint8).reshape(len(rows), disk.itemsize)
            planes.append(values.T.tobytes())
        payload = zlib.compress(b"".join(planes), DEFLATE_LEVEL)
        head = struct.pack("<4sII", b"ROWS", len(rows), len(payload))
        self._checksum = zlib.crc32(payload, zlib.crc32(head, self._checksum))
        self._rows += len(rows)
        return head + struct.pack("<I", self._checksum) + payload
