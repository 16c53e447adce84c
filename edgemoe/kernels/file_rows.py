"""Rows of a matrix as GGUF files have them: decodes them from bytes to numbers, and encodes them.

`row_types.py` says where the numbers of a block stand.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Union

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.blocks import Blocks
from edgemoe.kernels.formats import FORMATS, WHOLE_ROW
from edgemoe.kernels.grid_rows import decode_grid_rows, encode_grid_rows
from edgemoe.kernels.row_types import ROW_TYPES, TYPE_NAMES, Plane, RowType

Rows = Union[npt.NDArray[np.float32], Blocks]
Bytes = npt.NDArray[np.uint8]

_MOST_E4M3 = 0x7E
"""The largest factor of NVFP4. ggml writes no other byte, and its programs do not agree about what one would mean."""


def decode_rows(data: Bytes, type_name: str) -> Rows:
    """Decode bytes `(rows, row_bytes)` to `(rows, columns)`: Blocks for a block type, else float32.

    A factor of NVFP4 that is no positive number becomes NaN.
    """
    if type_name == "F32":
        return data.view("<f4").astype(np.float32, copy=False)
    if type_name == "I32":  # numbers of experts, which a float holds exactly
        return data.view("<i4").astype(np.float32)
    if type_name == "F16":
        return data.view("<f2").astype(np.float32)
    if type_name == "BF16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    kind = ROW_TYPES[type_name]
    fmt, rows = FORMATS[kind.twin], len(data)
    blocks = data.reshape(rows, -1, kind.bytes)
    if fmt.grid != "none":
        return decode_grid_rows(blocks, kind.twin)
    codes: npt.NDArray[Any] = _codes(blocks, kind).reshape(rows, -1)
    if fmt.name == "q8":
        codes = codes.view(np.int8)
    factors, offsets = _factors(blocks, kind)
    if fmt.factor == "e4m3":
        assert factors is not None
        factors = np.where(factors > _MOST_E4M3, np.uint8(0xFF), factors)
        return Blocks(fmt, codes, np.ones((rows, 1), np.float32), None, factors.reshape(rows, -1))
    if fmt.scale == "e8m0":
        return Blocks(fmt, codes, np.ascontiguousarray(blocks[:, :, kind.scale]))
    minimums = _halves(blocks, kind.minimum) if fmt.has_minimums else None
    numbers = (None if array is None else array.reshape(rows, -1) for array in (factors, offsets))
    return Blocks(fmt, codes, _halves(blocks, kind.scale), minimums, *numbers)


def encode_rows(blocks: Blocks) -> Bytes:
    """Encode to bytes `(rows, row_bytes)` of the tensor type in `TYPE_NAMES`: the inverse of `decode_rows`.

    The columns of a quantised format must be whole blocks, and the float32 scales of nv4 be 1.
    """
    rows = len(blocks.values)
    if blocks.scales is None:
        dtype = {"f16": "<f2", "bf16": "<u2"}.get(blocks.format.name, "<f4")
        return np.ascontiguousarray(blocks.values, dtype).view(np.uint8)
    if blocks.format.grid != "none":
        return encode_grid_rows(blocks)
    kind = ROW_TYPES[TYPE_NAMES[blocks.format.name]]
    codes = np.ascontiguousarray(blocks.values).view(np.uint8).reshape(rows, -1, kind.columns)
    data = np.zeros((rows, codes.shape[1], kind.bytes), np.uint8)
    low = 0
    for plane in kind.planes:
        size = kind.columns * plane.bits // 8
        data[:, :, plane.at : plane.at + size] = _joined(codes >> np.uint8(low) & _mask(plane), plane)
        low += plane.bits
    _put_factors(data, kind, blocks)
    for numbers, at in ((blocks.scales, kind.scale), (blocks.minimums, kind.minimum)):
        if numbers is not None and blocks.format.scale != "f32":
            own = np.ascontiguousarray(numbers).view(np.uint8).reshape(rows, codes.shape[1], -1)
            data[:, :, at : at + own.shape[2]] = own
    return data.reshape(rows, -1)


def scaled(rows: Blocks, scale: float) -> Blocks:
    """Rows as they are, or with this scale if theirs are those of whole rows (NVFP4), which stand elsewhere."""
    if rows.format.scale_columns != WHOLE_ROW:
        return rows
    return replace(rows, scales=np.full((len(rows.values), 1), scale, np.float32))


def _halves(blocks: Bytes, at: int) -> npt.NDArray[np.float16]:
    halves: npt.NDArray[np.float16] = np.ascontiguousarray(blocks[:, :, at : at + 2]).view("<f2")
    return halves.reshape(len(blocks), -1)


# ---- codes -------------------------------------------------------------------------------------------------------


def _mask(plane: Plane) -> np.uint8:
    return np.uint8((1 << plane.bits) - 1)


def _codes(blocks: Bytes, kind: RowType) -> Bytes:
    """The codes `(rows, blocks, columns)`."""
    if not kind.planes:
        return _threes(blocks)
    codes: Bytes = np.zeros((*blocks.shape[:2], kind.columns), np.uint8)
    low = 0
    for plane in kind.planes:
        size = kind.columns * plane.bits // 8
        codes |= _parted(blocks[:, :, plane.at : plane.at + size], plane) << low
        low += plane.bits
    return codes


def _parted(data: Bytes, plane: Plane) -> Bytes:
    """The bits of codes `(rows, blocks, columns)` that a plane's bytes hold."""
    if plane.bits == 8:
        return data
    runs = data.reshape(*data.shape[:2], -1, 1, plane.run)
    shifts = np.arange(0, 8, plane.bits, dtype=np.uint8)[:, None]
    parted: Bytes = runs >> shifts & _mask(plane)
    return parted.reshape(*data.shape[:2], -1)


def _joined(codes: Bytes, plane: Plane) -> Bytes:
    """The inverse of `_parted`."""
    if plane.bits == 8:
        return codes
    shifts = np.arange(0, 8, plane.bits, dtype=np.uint8)[:, None]
    runs = codes.reshape(*codes.shape[:2], -1, len(shifts), plane.run) << shifts
    joined: Bytes = np.bitwise_or.reduce(runs, axis=3).reshape(*codes.shape[:2], -1)
    return joined


def _threes(blocks: Bytes) -> Bytes:
    """The codes of TQ1_0, of three values: a byte is a fraction of 256, whose digits to the base 3 are five codes.

    The last four bytes have four.
    """
    pieces = []
    for first, end, digits in ((0, 32, 5), (32, 48, 5), (48, 52, 4)):
        powers = 3 ** np.arange(digits, dtype=np.uint8)[:, None]
        fractions: Bytes = blocks[:, :, None, first:end] * powers
        pieces.append((fractions.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(*blocks.shape[:2], -1))
    return np.concatenate(pieces, axis=2)


# ---- factors -----------------------------------------------------------------------------------------------------


def _factors(blocks: Bytes, kind: RowType) -> tuple[npt.NDArray[Any] | None, npt.NDArray[np.uint8] | None]:
    """The factors and the offsets `(rows, blocks, number)` of blocks; None where the type has none."""
    if kind.factors == "none":
        return None, None
    fmt = FORMATS[kind.twin]
    count = kind.columns // fmt.factor_columns
    data = blocks[:, :, kind.factors_at : kind.factors_at + count]
    if kind.factors == "bytes":
        return (data if fmt.factor == "e4m3" else data.view(np.int8)), None
    if kind.factors == "nibbles":
        nibbles = _parted(data, Plane(0, 4, 1))
        return nibbles[:, :, ::2], nibbles[:, :, 1::2]
    if kind.factors == "pairs":
        first, second, third = np.split(blocks[:, :, kind.factors_at : kind.factors_at + 12], 3, axis=2)
        factors = np.concatenate([first & 63, third & 15 | first >> 2 & 48], axis=2)
        return factors.view(np.int8), np.concatenate([second & 63, third >> 4 | second >> 2 & 48], axis=2)
    low, high = _low_and_high(kind)
    sizes = count // 2, count // 4
    places = (slice(plane.at, plane.at + size) for plane, size in zip((low, high), sizes, strict=True))
    nibbles, twos = (blocks[:, :, place] for place in places)
    return (_parted(nibbles, low) | _parted(twos, high) << 4).view(np.int8) - np.int8(32), None


def _low_and_high(kind: RowType) -> tuple[Plane, Plane]:
    """The planes of factors of 6 bits: their low nibbles, and the two bits above those."""
    at = kind.factors_at
    if kind.factors == "sixteen":
        return Plane(at, 4, 8), Plane(at + 8, 2, 4)
    return Plane(at + 2, 4, 1), Plane(at, 2, 1)


def _put_factors(data: Bytes, kind: RowType, blocks: Blocks) -> None:
    """Write factors and offsets into blocks `(rows, blocks, bytes)`."""
    if kind.factors == "none":
        return
    shape = (*data.shape[:2], -1)
    assert blocks.factors is not None
    factors = np.ascontiguousarray(blocks.factors).view(np.uint8).reshape(shape)
    pieces: tuple[tuple[int, Bytes], ...]
    if kind.factors == "bytes":
        pieces = ((kind.factors_at, factors),)
    elif kind.factors == "nibbles":
        assert blocks.offsets is not None
        pieces = ((kind.factors_at, factors | blocks.offsets.reshape(shape) << 4),)
    elif kind.factors == "pairs":
        assert blocks.offsets is not None
        offsets = blocks.offsets.reshape(shape)
        first, second = (numbers[:, :, :4] | numbers[:, :, 4:] >> 4 << 6 for numbers in (factors, offsets))
        third = factors[:, :, 4:] & 15 | offsets[:, :, 4:] << 4
        pieces = ((kind.factors_at, np.concatenate([first, second, third], axis=2)),)
    else:
        own, (low, high) = factors + np.uint8(32), _low_and_high(kind)
        pieces = ((low.at, _joined(own & np.uint8(15), low)), (high.at, _joined(own >> np.uint8(4), high)))
    for at, piece in pieces:
        data[:, :, at : at + piece.shape[2]] = piece
