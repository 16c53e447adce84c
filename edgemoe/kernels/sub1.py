"""sub1: the lossless code of ternary matrices, well below a bit for a weight where most weights are zero.

A weight is a trit, -1, 0 or 1; in place of -1 and 1 each row has two levels of its own, `minus` and `plus`. Rows lie in
panels of 16 and columns in groups of 32, as in every format (`formats.py`), but panels differ in length. A group of a
panel is cut into 64 *blocks* of 8 trits: block j is that of row j // 4, and its trit q that of column j % 4 + 4q, so
that a block is what a lane of kernels holds of a group.

    matrix  = "sub1" | u32 rows | u32 columns | u32 bytes of a level | starts | panels | 64 zero bytes
    starts  = u32 for each panel and one more: where it begins, and where the last one ends, from the first byte
    panel   = 16 minus levels | 16 plus levels | classes | A | B | C | S
    classes = for each group u64 low | u64 high; bit j of both is the class of block j: its non-zeros, 3 for 3 and more
    A       = 4 bits for each block of class 1: position (3 bits), whether it is plus (1)
    B       = 7 bits for each block of class 2: position of the first (3), whether it is plus (1), distance of the
              second, less 1 (2), whether that is plus (1); the second lies at (first + distance) % 8
    C       = a byte for each block of class 3: bit q tells whether trit q is a non-zero
    S       = for each non-zero of these blocks, a bit that tells whether it is plus

Numbers are little-endian, bits go from the lowest to the highest, blocks group by group, and A, B and S each fill up
their last byte. All lengths follow from the classes and C, so a panel has no others, and its end, which `starts` has
too, is the one thing to check: whatever else the bits are, they mean some matrix. Levels are float16 where that
holds all of them exactly, and float32 else. Kernels may read 64 bytes beyond a stream.

Of independent trits, 88.5 % of them zeros, a weight takes 0.68 bits and its share of levels and starts; their entropy
is 0.63. Signs are incompressible, so what this code saves is on places; see docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.errors import EdgemoeError
from edgemoe.kernels.formats import GROUP_COLUMNS, PANEL_ROWS, group_count, panel_count

MAGIC = b"sub1"
HEADER_BYTES = 16
TAIL_BYTES = 64
BLOCKS, BLOCK_TRITS = 64, 8
"""Blocks of a group of a panel, and trits of a block."""

LEVEL_DTYPES: dict[int, Any] = {2: np.float16, 4: np.float32}
"""The types of levels by their bytes."""

_CLASS_BYTES = 16
_MOST_BYTES = 1 << 32
_WAY_OUT = "Were the bytes altered or cut? Encode the matrix again."
_NON_ZEROS = np.array([byte.bit_count() for byte in range(256)], np.uint8)

Trits = npt.NDArray[np.int8]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Header:
    """The numbers that a matrix begins with."""

    rows: int
    columns: int
    level_bytes: int

    @property
    def panels(self) -> int:
        return panel_count(self.rows)

    @property
    def first_panel(self) -> int:
        """The byte at which the first panel begins."""
        return HEADER_BYTES + 4 * (self.panels + 1)

    @property
    def streams(self) -> int:
        """Bytes of a panel before its streams: levels and classes."""
        return 2 * PANEL_ROWS * self.level_bytes + group_count(self.columns) * _CLASS_BYTES

    def to_bytes(self) -> bytes:
        return MAGIC + np.array([self.rows, self.columns, self.level_bytes], "<u4").tobytes()


def pack_trits(
    trits: Trits, levels: npt.NDArray[np.float32], pack: Callable[..., Sequence[bytes]] | None = None
) -> Bytes:
    """Encode trits `(rows, columns)` of -1, 0 and 1 with the levels `(rows, 2)`, minus and plus, of each row.

    `pack` makes panels, by default `pack_panels`. Raises EdgemoeError where a level is not finite, or the matrix takes
    4 GiB.
    """
    if not np.isfinite(levels).all():
        row, which = np.argwhere(~np.isfinite(levels))[0]
        name = ("minus", "plus")[which]
        raise EdgemoeError(
            f"Row {row}: expected levels that are finite numbers, found {levels[row, which]} for {name}.",
            "Was the checkpoint damaged? Download it again.",
        )
    with np.errstate(over="ignore"):
        halves = levels.astype(np.float16)
    level_bytes = 2 if np.array_equal(halves, levels) else 4
    rows, columns = trits.shape
    return join_panels(rows, columns, level_bytes, (pack or pack_panels)(trits, levels, level_bytes))


def pack_panels(trits: Trits, levels: npt.NDArray[np.float32], level_bytes: int) -> list[bytes]:
    """The panels of a matrix, or of rows of one from a panel's first row on, with levels of that many bytes."""
    of_panels = levels_of_panels(levels, level_bytes)
    return [
        _pack_panel(trits[first : first + PANEL_ROWS], of_panels[first // PANEL_ROWS])
        for first in range(0, len(trits), PANEL_ROWS)
    ]


def levels_of_panels(levels: npt.NDArray[np.float32], level_bytes: int) -> npt.NDArray[Any]:
    """The levels of rows `(rows, 2)` as panels begin with them: 16 of minus, then 16 of plus `(panels, 2, 16)`."""
    stored = np.zeros((panel_count(len(levels)) * PANEL_ROWS, 2), LEVEL_DTYPES[level_bytes])
    stored[: len(levels)] = levels
    return np.ascontiguousarray(stored.reshape(-1, PANEL_ROWS, 2).transpose(0, 2, 1))


def joined_bytes(lengths: Sequence[int]) -> int:
    """The bytes of a matrix of panels of these lengths."""
    return HEADER_BYTES + 4 * (len(lengths) + 1) + sum(lengths) + TAIL_BYTES


def join_panels(rows: int, columns: int, level_bytes: int, panels: Sequence[bytes]) -> Bytes:
    """The matrix of all its panels. Raises EdgemoeError where it takes 4 GiB."""
    header = Header(rows, columns, level_bytes)
    starts = header.first_panel + np.cumsum([0, *(len(panel) for panel in panels)], dtype=np.int64)
    if starts[-1] + TAIL_BYTES >= _MOST_BYTES:
        raise EdgemoeError(f"A matrix of {rows} x {columns}: expected less than 4 GiB, found {starts[-1]} bytes.")
    data = header.to_bytes() + starts.astype("<u4").tobytes() + b"".join(panels) + bytes(TAIL_BYTES)
    return np.frombuffer(data, np.uint8)


def _pack_panel(trits: Trits, levels: npt.NDArray[np.floating[Any]]) -> bytes:
    rows, columns = trits.shape
    groups = group_count(columns)
    padded = np.zeros((PANEL_ROWS, groups * GROUP_COLUMNS), np.int8)
    padded[:rows, :columns] = trits
    # (row, group, q, c) to (group, row, c, q)
    blocks = padded.reshape(PANEL_ROWS, groups, BLOCK_TRITS, 4).transpose(1, 0, 3, 2).reshape(-1, BLOCK_TRITS)
    non_zero, plus = blocks != 0, blocks > 0
    counts = non_zero.sum(axis=1)
    classes = np.minimum(counts, 3).reshape(groups, BLOCKS)
    planes = np.concatenate([_bits(classes & 1), _bits(classes >> 1)], axis=1)
    one, two, more = non_zero[counts == 1], non_zero[counts == 2], non_zero[counts > 2]
    first = two.argmax(axis=1)
    second = BLOCK_TRITS - 1 - two[:, ::-1].argmax(axis=1)
    both = plus[counts == 2]
    first_plus, second_plus = (np.take_along_axis(both, at[:, None], 1)[:, 0] for at in (first, second))
    far = second - first > 4  # then the way from the second to the first, over the end, is the shorter one
    first, second = np.where(far, second, first), np.where(far, first, second)
    first_plus, second_plus = np.where(far, second_plus, first_plus), np.where(far, first_plus, second_plus)
    pairs = first | first_plus << 3 | ((second - first) % 8 - 1) << 4 | second_plus << 6
    streams = (
        _pack_fields(one.argmax(axis=1) | plus[counts == 1].any(axis=1) << 3, 4),
        _pack_fields(pairs, 7),
        _bits(more),
        _bits(plus[counts > 2][more]),
    )
    return b"".join(np.ascontiguousarray(part).tobytes() for part in (levels, planes, *streams))


def _bits(values: npt.NDArray[Any]) -> Bytes:
    return np.packbits(values, axis=-1, bitorder="little")


def _pack_fields(values: npt.NDArray[np.integer[Any]], width: int) -> Bytes:
    """Numbers below 256 as a stream of fields of `width` bits."""
    each = np.unpackbits(values.astype(np.uint8)[:, None], axis=1, count=width, bitorder="little")
    return _bits(each.reshape(-1))


def read_header(data: Bytes) -> Header:
    """The header of a matrix. Raises EdgemoeError where these bytes are no matrix of this code."""
    if len(data) < HEADER_BYTES or data[:4].tobytes() != MAGIC:
        raise EdgemoeError(f"Expected a matrix that begins with {MAGIC!r}, found {data[:4].tobytes()!r}.", _WAY_OUT)
    rows, columns, level_bytes = (int(number) for number in data[4:HEADER_BYTES].view("<u4"))
    if not (0 < rows < 1 << 31 and 0 < columns < 1 << 31 and level_bytes in LEVEL_DTYPES):
        raise EdgemoeError(
            "Expected rows and columns of a matrix, and levels of 2 or 4 bytes,"
            f" found {rows}, {columns} and {level_bytes}.",
            _WAY_OUT,
        )
    header = Header(rows, columns, level_bytes)
    if len(data) < header.first_panel + TAIL_BYTES:
        raise EdgemoeError(
            f"Expected where {header.panels} panels begin, found {len(data)} bytes in all.",
            _WAY_OUT,
        )
    return header


def panel_starts(data: Bytes, header: Header) -> npt.NDArray[np.int64]:
    """Where each panel begins, and where the last one ends.

    Raises EdgemoeError where panels overlap, leave gaps, or lie outside the data.
    """
    starts = data[HEADER_BYTES : header.first_panel].view("<u4").astype(np.int64)
    lengths = np.diff(starts)
    if starts[0] != header.first_panel or (lengths < header.streams).any() or starts[-1] > len(data) - TAIL_BYTES:
        raise EdgemoeError(
            f"Expected panels of {header.streams} bytes or more between byte {header.first_panel} and byte"
            f" {len(data) - TAIL_BYTES}, found them from byte {starts[0]} to byte {starts[-1]}, of {lengths.min()}"
            " bytes or more.",
            _WAY_OUT,
        )
    return starts


def fault(data: Bytes, rows: int, columns: int) -> str | None:
    """Describe the first fault of a matrix; None if kernels, which trust sizes and places of panels, may read it."""
    try:
        header = read_header(data)
        panel_starts(data, header)
    except EdgemoeError as problem:
        return problem.message
    if (header.rows, header.columns) != (rows, columns):
        return f"Expected {rows} rows and {columns} columns, found {header.rows} and {header.columns}."
    return None


def panels_fault(data: Bytes, rows: int, columns: int) -> str | None:
    """As `fault`, and of panels whose length is not what their classes say, or whose levels are not finite."""
    found = fault(data, rows, columns)
    if found is not None:
        return found
    header = read_header(data)
    starts = panel_starts(data, header)
    for number in range(header.panels):
        panel = data[starts[number] : starts[number + 1]]
        end, levels = _panel_end(panel, header), panel[: 2 * PANEL_ROWS * header.level_bytes]
        if end != len(panel):
            return f"Panel {number}: expected {end} bytes by its classes, found {len(panel)}."
        if not np.isfinite(levels.view(LEVEL_DTYPES[header.level_bytes])).all():
            return f"Panel {number}: expected levels that are finite numbers, found others."
    return None


def _panel_end(data: Bytes, header: Header) -> int:
    """Where a panel ends by its classes and masks."""
    classes = data[2 * PANEL_ROWS * header.level_bytes : header.streams].reshape(-1, 2, BLOCKS // 8)
    low, high = classes[:, 0], classes[:, 1]
    ones, twos, mores = (int(_NON_ZEROS[own].sum()) for own in (low & ~high, high & ~low, low & high))
    masks_at = header.streams - (-4 * ones // 8) - (-7 * twos // 8)
    signs = int(_NON_ZEROS[data[masks_at : masks_at + mores]].sum())
    return masks_at + mores - (-signs // 8)


def matrix_bytes(data: Bytes) -> int:
    """The bytes of a matrix, where data goes on behind it. Raises EdgemoeError where that is no such matrix."""
    return int(panel_starts(data, read_header(data))[-1]) + TAIL_BYTES


def unpack_trits(data: Bytes, panels: slice = slice(None)) -> tuple[Trits, npt.NDArray[np.float32]]:
    """The inverse of `pack_trits`, or its rows in some panels; data may go on behind the matrix.

    Raises EdgemoeError where a panel has another length than its classes say.
    """
    header = read_header(data)
    starts = panel_starts(data, header)
    chosen = range(header.panels)[panels]
    trits = np.empty((len(chosen) * PANEL_ROWS, header.columns), np.int8)
    levels = np.empty((len(chosen) * PANEL_ROWS, 2), np.float32)
    for number, panel in enumerate(chosen):
        rows = slice(number * PANEL_ROWS, (number + 1) * PANEL_ROWS)
        trits[rows], levels[rows] = _unpack_panel(data[starts[panel] : starts[panel + 1]], header, panel)
    rows_left = header.rows - chosen.start * PANEL_ROWS
    return trits[:rows_left], levels[:rows_left]


def weights_of(trits: Trits, levels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The weights `(rows, columns)` of trits and of the levels of their rows."""
    return np.where(trits > 0, levels[:, 1:], np.where(trits < 0, levels[:, :1], np.float32(0)))


def _unpack_panel(data: Bytes, header: Header, panel: int) -> tuple[Trits, npt.NDArray[np.float32]]:
    groups = group_count(header.columns)
    level_end = 2 * PANEL_ROWS * header.level_bytes
    levels = data[:level_end].view(LEVEL_DTYPES[header.level_bytes]).reshape(2, PANEL_ROWS).T
    planes = np.unpackbits(data[level_end : header.streams].reshape(groups, 2, BLOCKS // 8), axis=2, bitorder="little")
    classes = (planes[:, 0] | planes[:, 1] << 1).reshape(-1)
    ones, twos, mores = ((classes == number).nonzero()[0] for number in (1, 2, 3))
    cuts = header.streams + np.cumsum([-(-4 * len(ones) // 8), -(-7 * len(twos) // 8), len(mores)])
    masks = data[cuts[1] : cuts[2]]
    signs = int(_NON_ZEROS[masks].sum())
    end = int(cuts[2]) - (-signs // 8)
    if end != len(data):
        raise EdgemoeError(
            f"Panel {panel}: expected {end} bytes by its classes, found {len(data)}.",
            _WAY_OUT,
        )
    blocks = np.zeros((groups * BLOCKS, BLOCK_TRITS), np.int8)
    single = _unpack_fields(data[header.streams : cuts[0]], 4, len(ones))
    blocks[ones, single & 7] = _signs(single >> 3)
    pairs = _unpack_fields(data[cuts[0] : cuts[1]], 7, len(twos))
    blocks[twos, pairs & 7] = _signs(pairs >> 3 & 1)
    blocks[twos, ((pairs & 7) + (pairs >> 4 & 3) + 1) & 7] = _signs(pairs >> 6)
    own = np.zeros((len(mores), BLOCK_TRITS), np.int8)
    non_zero = np.unpackbits(masks[:, None], axis=1, bitorder="little").astype(bool)
    own[non_zero] = _signs(np.unpackbits(data[cuts[2] : end], count=signs, bitorder="little"))
    blocks[mores] = own
    padded = blocks.reshape(groups, PANEL_ROWS, 4, BLOCK_TRITS).transpose(1, 0, 3, 2).reshape(PANEL_ROWS, -1)
    return padded[:, : header.columns], levels


def _unpack_fields(stream: Bytes, width: int, count: int) -> Bytes:
    each = np.unpackbits(stream, count=count * width, bitorder="little").reshape(count, width)
    return np.packbits(each, axis=1, bitorder="little").reshape(count)


def _signs(plus: npt.NDArray[np.integer[Any]]) -> Trits:
    return np.where(plus != 0, np.int8(1), np.int8(-1))
