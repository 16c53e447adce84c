"""Traces as edgemoe writes them: gzip members, each of which holds one block of arrays as safetensors.

    first block    the shape: `model` and `architecture` (UTF-8), `counts` (layers, experts, experts used),
                   `expert_bytes`, `dense_bytes`
    other blocks   `first_row` (the number of rows before the block), and the columns of `COLUMNS`, `(N,)` each
    last block     `rows` (the number of all rows)

Both libraries check what they read: gzip has a CRC-32 of each member, safetensors the bounds of each array.
`first_row` detects a block that is missing, repeated or in another place, and the last block a file that was cut
between two blocks.

Why not .npz: a zip file has its directory at its end, so that a crash in the middle of a write loses every block. In a
gzip file whatever comes before a damaged member stays readable. Why not one safetensors file: its header is at the
beginning, and has the sizes of everything that follows.

A row takes about 5 bytes, most of them for its weight.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from edgemoe.lab.trace_rows import COLUMNS, Trace, TraceShape, find_fault

MAGIC = b"\x1f\x8b"
"""The first bytes of every gzip file."""
GZIP_WINDOW_BITS = 31
"""Makes zlib expect a gzip header, and the largest window."""
LEVEL = 4
"""Compression level; level 6 takes twice as long and saves a twentieth."""
MOST_BLOCK_ROWS = 1 << 16
MOST_BLOCK_BYTES = 4 << 20
"""Inflated blocks are smaller than this, with the most rows or the most layers."""
CHUNK_BYTES = 1 << 18

Arrays = Mapping[str, npt.NDArray[np.generic]]


class BlockFaultError(Exception):
    """An error that says what is wrong with a file, and in which block."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(f"block {number}: {what}")


class BlockReader:
    """Reads a file from its beginning: `shape` first, then `parts`."""

    def __init__(self, file: BinaryIO) -> None:
        """Reads the first block. Raises BlockFaultError."""
        self._number = 0
        self._blocks = self._members(file)
        block = next(self._blocks, None)
        if block is None:
            raise BlockFaultError(1, "expected a model's shape, found the end of the file")
        try:
            self.shape = _shape(block)
        except ValueError as error:
            raise self._fault(f"expected a model's shape: {error}") from None

    def parts(self) -> Iterator[list[npt.NDArray[np.generic]]]:
        """The columns of the rows, block by block, up to the last block. Raises BlockFaultError."""
        rows = 0
        for block in self._blocks:
            if "rows" in block:
                self._expect_number(block, "rows", rows)
                if next(self._blocks, None) is not None:
                    raise self._fault("expected nothing after the block that ends the trace")
                return
            self._expect_number(block, "first_row", rows)
            columns = self._columns(block)
            rows += len(columns[0])
            yield columns
        raise BlockFaultError(self._number + 1, "expected the block that ends the trace, found the end of the file")

    def _members(self, file: BinaryIO) -> Iterator[Arrays]:
        """The arrays of one gzip member after another, each checked against its checksum."""
        data = b""
        while data := data or file.read(CHUNK_BYTES):
            self._number += 1
            inflater, block = zlib.decompressobj(GZIP_WINDOW_BITS), bytearray()
            try:
                while not inflater.eof:
                    if not data:
                        raise self._fault("it is cut short")
                    block += inflater.decompress(data, MOST_BLOCK_BYTES - len(block))
                    if len(block) == MOST_BLOCK_BYTES:
                        raise self._fault(f"expected fewer than {MOST_BLOCK_BYTES} bytes in it, found more")
                    data = inflater.unused_data if inflater.eof else file.read(CHUNK_BYTES)
                arrays = load(bytes(block))
            except zlib.error as error:
                raise self._fault(f"it is damaged ({error})") from None
            except (SafetensorError, KeyError, ValueError, TypeError) as error:
                raise self._fault(f"expected arrays as safetensors ({error})") from None
            yield arrays

    def _expect_number(self, block: Arrays, name: str, rows: int) -> None:
        found = block.get(name)
        if found is None or found.dtype != np.int64 or found.tolist() != [rows]:
            raise self._fault(f"{name}: expected {rows}, the number of rows before it, found {found}")

    def _columns(self, block: Arrays) -> list[npt.NDArray[np.generic]]:
        try:
            columns = [_array(block, name, kind) for name, kind in COLUMNS.items()]
        except ValueError as error:
            raise self._fault(str(error)) from None
        counts = {len(column) for column in columns}
        if len(counts) != 1 or not 0 < min(counts) <= MOST_BLOCK_ROWS:
            raise self._fault(f"expected columns of 1 to {MOST_BLOCK_ROWS} rows, found {sorted(counts)}")
        # as bytes, because NumPy takes every value of a bool's byte for true or false
        numbers = [column.view(np.uint8) if column.dtype == np.bool_ else column for column in columns]
        if fault := find_fault(self.shape, numbers):
            raise self._fault(f"row {fault[0] + 1}: {fault[1]}")
        return columns

    def _fault(self, what: str) -> BlockFaultError:
        return BlockFaultError(self._number, what)


def _shape(block: Arrays) -> TraceShape:
    """The model's shape from the first block. Raises ValueError for arrays that do not hold one."""
    counts = _array(block, "counts", np.int64).tolist()
    if len(counts) != 3:
        raise ValueError(f"counts: expected layers, experts and experts used, found {counts}")
    model, architecture = (_array(block, name, np.uint8).tobytes().decode() for name in ("model", "architecture"))
    expert_bytes, dense_bytes = (_array(block, name, np.int64).tolist() for name in ("expert_bytes", "dense_bytes"))
    layers, experts, experts_used = counts
    return TraceShape(model, architecture, layers, experts, experts_used, tuple(expert_bytes), tuple(dense_bytes))


def _array(block: Arrays, name: str, kind: type[np.generic]) -> npt.NDArray[np.generic]:
    """One array of a block, `(N,)`. Raises ValueError where it is missing or of another type or shape."""
    array = block.get(name)
    if array is None or array.dtype != kind or array.ndim != 1:
        found = "none" if array is None else f"{array.dtype} of shape {array.shape}"
        raise ValueError(f"{name}: expected one row of {np.dtype(kind)}, found {found}")
    return array


class BlockWriter:
    """Encodes rows as bytes of the file, one block after another."""

    def __init__(self) -> None:
        self._rows = 0

    def header(self, shape: TraceShape) -> bytes:
        """The first block."""
        return _member(
            {
                "model": np.frombuffer(shape.model.encode(), np.uint8),
                "architecture": np.frombuffer(shape.architecture.encode(), np.uint8),
                "counts": np.array([shape.layers, shape.experts, shape.experts_used], np.int64),
                "expert_bytes": np.array(shape.expert_bytes, np.int64),
                "dense_bytes": np.array(shape.dense_bytes, np.int64),
            }
        )

    def blocks(self, rows: Trace) -> bytes:
        """Encode rows as blocks."""
        parts = [rows.select(slice(first, first + MOST_BLOCK_ROWS)) for first in range(0, len(rows), MOST_BLOCK_ROWS)]
        return b"".join(map(self._block, parts))

    def end(self) -> bytes:
        """The last block, after the rows so far."""
        return _member({"rows": np.array([self._rows], np.int64)})

    def _block(self, rows: Trace) -> bytes:
        first_row = np.array([self._rows], np.int64)
        self._rows += len(rows)
        return _member({"first_row": first_row, **dict(zip(COLUMNS, rows.columns, strict=True))})


def _member(arrays: Arrays) -> bytes:
    return gzip.compress(save(dict(arrays)), LEVEL, mtime=0)
