"""The record table of a store: the place, layout and checksums of every expert's record, as arrays.

Letters: `N` records, `L` layers. Rows go layer by layer, and within a layer expert by expert, so that the row of an
expert follows from its layer and number. Records lie in the files in the same order, without overlapping.

On disk the table is a safetensors file of one tensor for each column. The library reads and writes it: the format has
names, types and shapes, every other binary file of a store is safetensors too, and of a million rows (60 MB) the
library makes arrays in 0.1 s. The manifest has the SHA-256 of the whole file, which is compared before it is parsed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.pages import PAGE_BYTES
from edgemoe.store.layouts import RecordLayout

RECORDS_NAME = "records.safetensors"
MAX_RECORDS = 1 << 24
MAX_FILE_BYTES = 1 << 50

_COLUMNS: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
    "file": (np.int32, ()),
    "offset": (np.int64, ()),
    "length": (np.int64, ()),
    "layout": (np.int32, ()),
    "crc32c": (np.uint32, ()),
    "sha256": (np.uint8, (32,)),
}
"""The type of each column, and the shape of one row."""

ROW_BYTES = sum(np.dtype(kind).itemsize * math.prod(shape) for kind, shape in _COLUMNS.values())
MAX_HEADER_BYTES = 4096
"""The most bytes that the header of a table's file takes."""


@dataclass(frozen=True, eq=False)
class PartPlaces:
    """Where the parts of all records lie, `M` in all, in the order of rows and of each layout's parts."""

    first: npt.NDArray[np.int64]
    """Number of each record's first part `(N + 1,)`; the last element is `M`."""
    file: npt.NDArray[np.int32]
    """Number of the expert file that holds the part `(M,)`."""
    offset: npt.NDArray[np.int64]
    """Byte of the file at which the part begins `(M,)`."""
    scale: npt.NDArray[np.float32]
    """The number that multiplies all blocks of the part, where its type leaves that open (NVFP4) `(M,)`."""


class Record(NamedTuple):
    """One row of a record table, for work that visits all records."""

    layer: int
    expert: int
    file: int
    offset: int
    length: int
    layout: int

    @property
    def name(self) -> str:
        return record_name(self.layer, self.expert)


@dataclass(frozen=True, eq=False)
class RecordTable:
    """The records of a store. Every array is contiguous and cannot be written to."""

    first: npt.NDArray[np.int64]
    """Row of each layer's first expert `(L + 1,)`; the last element is `N`. A dense layer has no rows."""
    file: npt.NDArray[np.int32]
    """Number of the expert file that holds the record `(N,)`."""
    offset: npt.NDArray[np.int64]
    """Byte of the file at which the record begins `(N,)`, a multiple of 4096."""
    length: npt.NDArray[np.int64]
    """Bytes of the record in the file `(N,)`, a multiple of 4096."""
    layout: npt.NDArray[np.int32]
    """Number of the record's layout `(N,)`."""
    sha256: npt.NDArray[np.uint8]
    """`(N, 32)`."""
    crc32c: npt.NDArray[np.uint32] | None
    """`(N,)`; None in stores made before CRC-32C was recorded, and for a GGUF file."""
    places: PartPlaces | None = None
    """For records that lie in parts, whose `file` and `offset` are those of the first part."""

    def __post_init__(self) -> None:
        for array in (self.first, self.file, self.offset, self.length, self.layout, self.sha256, self.crc32c):
            if array is not None:
                assert array.flags.c_contiguous
                array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.file)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RecordTable):
            return NotImplemented
        return np.array_equal(self.first, other.first) and all(
            _same(getattr(self, name), getattr(other, name)) for name in _COLUMNS
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def layers(self) -> int:
        return len(self.first) - 1

    def count(self, layer: int) -> int:
        """The number of experts in a layer; 0 for a dense one."""
        return int(self.first[layer + 1] - self.first[layer])

    def rows(self, layer: int) -> slice:
        """The rows of a layer's experts."""
        return slice(int(self.first[layer]), int(self.first[layer + 1]))

    def row(self, layer: int, expert: int) -> int | None:
        """The row of an expert; None for an unknown layer or expert."""
        if not 0 <= layer < self.layers or not 0 <= expert < self.count(layer):
            return None
        return int(self.first[layer]) + expert

    def name(self, row: int) -> str:
        """The name of the record in a row."""
        layer = int(np.searchsorted(self.first, row, side="right")) - 1
        return record_name(layer, row - int(self.first[layer]))

    def layouts_of(self, layer: int) -> npt.NDArray[np.int32]:
        """The numbers of the layouts that occur in a layer, ascending."""
        return np.flatnonzero(np.bincount(self.layout[self.rows(layer)])).astype(np.int32)

    def mean_bytes(self, layer: int) -> int:
        """The mean length of a layer's records in bytes; 0 for a dense layer."""
        return int(self.length[self.rows(layer)].mean()) if self.count(layer) else 0

    def __iter__(self) -> Iterator[Record]:
        """Yield all records in the order of rows."""
        columns = zip(self.file.tolist(), self.offset.tolist(), self.length.tolist(), self.layout.tolist(), strict=True)
        for layer in range(self.layers):
            for expert in range(self.count(layer)):
                yield Record(layer, expert, *next(columns))

    def to_bytes(self) -> bytes:
        """The table's file. The table must have CRC-32C checksums."""
        import safetensors.numpy  # here, since only stores that are written or have experts need it

        assert self.crc32c is not None
        return safetensors.numpy.save({name: getattr(self, name) for name in _COLUMNS})

    def fault(self, layouts: Sequence[RecordLayout], file_bytes: Sequence[int]) -> str | None:
        """Describe the first fault of a table from a file; None if every record has a place of its own in a file.

        `file_bytes` are the sizes of the expert files. The layouts must be free of faults.
        """
        row = _first((self.file < 0) | (self.file >= len(file_bytes)))
        if row is not None:
            return f"{self.name(row)}: expected one of {len(file_bytes)} files, found file {self.file[row]}."
        row = _first((self.layout < 0) | (self.layout >= len(layouts)))
        if row is not None:
            return f"{self.name(row)}: expected one of {len(layouts)} layouts, found layout {self.layout[row]}."
        row = _first((self.offset < PAGE_BYTES) | (self.offset > MAX_FILE_BYTES) | (self.offset % PAGE_BYTES != 0))
        if row is not None:
            return (
                f"{self.name(row)}: expected to begin at a multiple of {PAGE_BYTES} bytes behind the file's header,"
                f" found byte {self.offset[row]}."
            )
        expected = np.array([layout.slot_bytes for layout in layouts], np.int64)[self.layout]
        varying = np.array([layout.matrices.varying for layout in layouts], np.bool_)[self.layout]
        row = _first(
            varying & ((self.length < PAGE_BYTES) | (self.length > expected) | (self.length % PAGE_BYTES != 0))
        )
        if row is not None:
            return (
                f"{self.name(row)}: expected up to the {expected[row]} bytes of its layout, found {self.length[row]}."
            )
        row = _first(~varying & (self.length != expected))
        if row is not None:
            return f"{self.name(row)}: expected the {expected[row]} bytes of its layout, found {self.length[row]}."
        ends = self.offset + self.length
        sizes = np.array(file_bytes, np.int64)[self.file]
        row = _first(ends > sizes)
        if row is not None:
            return f"{self.name(row)}: ends at byte {ends[row]}, past the end of its file at {sizes[row]}."
        same_file = self.file[1:] == self.file[:-1]
        row = _first((self.file[1:] < self.file[:-1]) | (same_file & (self.offset[1:] < self.offset[:-1])))
        if row is not None:
            return f"{self.name(row + 1)}: out of order, it lies before {self.name(row)}."
        row = _first(same_file & (self.offset[1:] < ends[:-1]))
        if row is not None:
            return (
                f"{self.name(row + 1)}: begins at byte {self.offset[row + 1]}, within {self.name(row)}, which ends at"
                f" byte {ends[row]}."
            )
        return None


def record_name(layer: int, expert: int) -> str:
    """The name of an expert's record in its safetensors file, and in messages."""
    return f"layers.{layer}.experts.{expert}"


def first_rows(counts: Sequence[int]) -> npt.NDArray[np.int64]:
    """The row of each layer's first expert, from the number of experts in each layer; then the number of all rows."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.array(counts, np.int64), dtype=np.int64)])


def parse_records(data: bytes, counts: Sequence[int]) -> RecordTable:
    """The table in a file of `RecordTable.to_bytes`, for layers with these numbers of experts.

    Raises ValueError where the file has other columns, types or numbers of rows, or is not safetensors at all.
    """
    import safetensors.numpy

    first = first_rows(counts)
    try:
        found = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError) as problem:  # KeyError: a type that NumPy does not have
        raise ValueError(f"not a safetensors file of numbers ({problem})") from None
    if found.keys() != _COLUMNS.keys():
        raise ValueError(f"expected the columns {', '.join(_COLUMNS)}, found {', '.join(sorted(found))[:80]}")
    for name, (kind, row_shape) in _COLUMNS.items():
        column, shape = found[name], (int(first[-1]), *row_shape)
        if column.dtype != kind or column.shape != shape:
            raise ValueError(
                f"expected the column {name} as {kind.__name__} {shape}, found {column.dtype} {column.shape}"
            )
    columns: dict[str, Any] = dict(found)
    return RecordTable(first=first, **columns)


def _same(one: npt.NDArray[Any] | None, other: npt.NDArray[Any] | None) -> bool:
    return one is other if one is None or other is None else np.array_equal(one, other)


def _first(faults: npt.NDArray[np.bool_]) -> int | None:
    """The first row that has a fault."""
    return int(np.argmax(faults)) if faults.any() else None
