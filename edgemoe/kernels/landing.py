"""Landing: how the parts of an expert's record, as a file has them, become the bytes that kernels read.

A record that edgemoe wrote lands as it is. One of a GGUF file lies in parts: gate, up and down (and their biases) are
three places of it, and each is rows of floats or blocks (`file_rows.py`). The thread that reads a part also lands it:
in C (`native/src/landing.c`), or here, which says what that means. All weights are kept exactly.

A part lands in steps of whole panels, from a staging buffer that each reader thread has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.blocks import Blocks, float_blocks, pack
from edgemoe.kernels.file_rows import decode_rows, scaled
from edgemoe.kernels.formats import FORMATS, PANEL_ROWS, panel_count
from edgemoe.kernels.pages import PAGE_BYTES, round_up
from edgemoe.kernels.row_types import ROW_TYPES, row_bytes

_TYPES = tuple(ROW_TYPES)
"""The types of rows that land, by their numbers in C (`em_rows`)."""

VECTOR, PANELS = 0, 1
"""`em_landing`: a vector becomes float32, filled up to a multiple of 16 elements; a matrix becomes panels."""

STAGING_BYTES = 512 << 10
"""The buffer from which a thread lands, unless a panel needs more: what it reads stays in its cache until it has
landed, and the buffers of all threads fill huge pages. A disk of a virtual machine may take requests of a few hundred
pieces of memory in all at a time, and a read into a huge page is one piece."""

PART = np.dtype(
    [
        ("bytes", np.int64),
        ("place", np.int64),
        ("panel_stride", np.int64),
        ("landing", np.int32),
        ("type", np.int32),
        ("format", np.int32),
        ("rows", np.int32),
        ("columns", np.int32),
        ("reserved", np.int32),
    ]
)
"""`em_part`: a part's bytes in the file, and its place, sizes and format in the slot."""

PLACE = np.dtype([("offset", np.int64), ("modified_ns", np.int64), ("descriptor", np.int32), ("scale", np.float32)])
"""`em_place`: where a part lies, in an open file whose time of modification has a mark (`time_mark`) that is compared,
unless it is negative; and what multiplies all blocks of a type whose scale is that of a whole row (NVFP4)."""

Parts = npt.NDArray[np.void]
Places = npt.NDArray[np.void]
_FORMAT_NAMES = {fmt.code: fmt.name for fmt in FORMATS.values()}


def time_mark(modified_ns: int) -> int:
    """The low 63 bits of a time of modification, as `PLACE` has it: times before 1970 and beyond int64 exist too."""
    return modified_ns & (1 << 63) - 1


class Step(NamedTuple):
    """The bytes of a part that land in one go: where they begin in it, and their number."""

    begin: int
    bytes: int


def part_of_matrix(
    row_type: str, fmt: str, rows: int, columns: int, place: int, panel_stride: int
) -> npt.NDArray[np.void]:
    """The element of `PART` for a matrix of rows that becomes panels of a format with that type's weights."""
    assert fmt == ROW_TYPES[row_type].twin
    size = rows * row_bytes(row_type, columns)
    fields = (size, place, panel_stride, PANELS, _TYPES.index(row_type), FORMATS[fmt].code, rows, columns, 0)
    return np.array([fields], PART)


def part_of_vector(row_type: str, elements: int, place: int) -> npt.NDArray[np.void]:
    """The element of `PART` for a vector of floats."""
    size = row_bytes(row_type, elements)
    return np.array([(size, place, 0, VECTOR, _TYPES.index(row_type), FORMATS["f32"].code, elements, 1, 0)], PART)


def staging_bytes(parts: Parts) -> int:
    """Bytes of the buffer that each reader thread needs to land these parts; 0 for none."""
    units = [_unit_bytes(part) for part in parts]
    if not units:
        return 0
    return max(STAGING_BYTES, _with_pages(max(units)))


def row_staging_bytes(row_type: str, columns: int) -> int:
    """Bytes of a buffer from which the rows of one panel land."""
    return _with_pages(PANEL_ROWS * row_bytes(row_type, columns))


def steps(part: np.void, room: int) -> Iterator[Step]:
    """Yield the steps in which a part lands from a staging buffer of `room` bytes."""
    unit, size = _unit_bytes(part), int(part["bytes"])
    step = max(1, (room - 2 * PAGE_BYTES) // unit) * unit
    for begin in range(0, size, step):
        yield Step(begin, min(step, size - begin))


def land(
    part: np.void, begin: int, data: npt.NDArray[np.uint8], slot: npt.NDArray[np.uint8], scale: float = 1.0
) -> bool:
    """Land the bytes of one step of a part, which begin at its byte `begin`, in a slot; `scale` is that of its place.

    Returns whether all its weights are finite.
    """
    row_type, fmt = _TYPES[part["type"]], FORMATS[_FORMAT_NAMES[int(part["format"])]]
    place, unit = int(part["place"]), _unit_bytes(part)
    number = begin // unit  # of the first panel, or of the first 16 elements
    if part["landing"] == VECTOR:
        values = decode_rows(data.reshape(1, -1), row_type)
        assert not isinstance(values, Blocks)
        padded = np.zeros(panel_count(values.size) * PANEL_ROWS, np.float32)
        padded[: values.size] = values[0]
        first = place + 4 * PANEL_ROWS * number
        slot[first : first + padded.nbytes] = padded.view(np.uint8)
        return bool(np.isfinite(values).all())
    rows = decode_rows(data.reshape(-1, row_bytes(row_type, int(part["columns"]))), row_type)
    if isinstance(rows, Blocks):
        blocks = scaled(rows, scale)
        finite = blocks.finite
    else:
        finite = bool(np.isfinite(rows).all())
        with np.errstate(invalid="ignore"):
            blocks = float_blocks(rows, fmt)
    panel_bytes, stride = fmt.panel_bytes(int(part["columns"])), int(part["panel_stride"])
    for offset, panel in enumerate(pack(blocks).reshape(-1, panel_bytes)):
        first = place + (number + offset) * stride
        slot[first : first + panel_bytes] = panel
    return finite


def _unit_bytes(part: np.void) -> int:
    """Bytes of what lands by itself: the rows of a panel, or 16 elements of a vector."""
    columns = int(part["columns"])
    return PANEL_ROWS * row_bytes(_TYPES[part["type"]], columns)


def _with_pages(size: int) -> int:
    """The most bytes of whole pages around so many bytes of a file."""
    return round_up(size, PAGE_BYTES) + 2 * PAGE_BYTES
