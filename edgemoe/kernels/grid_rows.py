"""Rows of GGUF's IQ1, IQ2 and IQ3 types: blocks of 256 columns, whose codes choose entries of a grid (`grids.py`).

A block is these fields, in this order, with numbers for each 32 columns in parentheses; d is the float16 scale:

    IQ2_XXS   d, (4 codes, a 32-bit word: 7 signs for each code, then 4 bits of the factor)
    IQ2_XS    d, 32 words: code in 9 bits, 7 signs; (2 nibbles of factors)
    IQ2_S     d, 32 low bytes of codes, 32 bytes of signs, (a byte: the high bits of 4 codes), (2 nibbles of factors)
    IQ3_XXS   d, 64 codes, (a word as in IQ2_XXS)
    IQ3_S     d, 64 low bytes of codes, (a byte: the high bits of 8 codes), 32 bytes of signs, (a nibble of the factor)
    IQ1_S     d, 32 low bytes of codes, (a 16-bit word: the high bits of 4 codes, 3 bits of the factor, a mark)
    IQ1_M     32 low bytes of codes, 32 nibbles: the high bits of a code, a mark; 4 words with factors and d as in iq1m

Seven signs have an eighth, which makes the number of negative weights even. Layouts: ggml (MIT licence).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.blocks import Blocks
from edgemoe.kernels.formats import FORMATS
from edgemoe.kernels.grid_blocks import decode, encode, join_words, part_words

Bytes = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]


def decode_grid_rows(blocks: Bytes, twin: str) -> Blocks:
    """Decode blocks `(rows, blocks, bytes)` of the type whose twin this is."""
    fmt, rows = FORMATS[twin], len(blocks)

    def field(first: int, end: int, dtype: str = "u1") -> Array:
        return np.ascontiguousarray(blocks[:, :, first:end]).view("<" + dtype)

    scales = field(0, 2, "f2")
    codes: Array
    factors: Array
    if twin == "iq2xxs":
        pairs = field(2, 66, "u4").reshape(*blocks.shape[:2], 8, 2)
        codes = np.ascontiguousarray(pairs[..., 0]).view(np.uint8)
        marks, factors = _seven_signs(pairs[..., 1])
    elif twin == "iq2xs":
        words = field(2, 66, "u2")
        codes, marks, factors = words & 511, words >> 9, _nibbles(field(66, 74))
    elif twin == "iq2s":
        codes = field(2, 34) | _parts(field(66, 74), 2) << 8
        marks, factors = field(34, 66), _nibbles(field(74, 82))
    elif twin == "iq3xxs":
        codes = field(2, 66)
        marks, factors = _seven_signs(field(66, 98, "u4"))
    elif twin == "iq3s":
        codes = field(2, 66) | _parts(field(66, 74), 1) << 8
        marks, factors = field(74, 106), _nibbles(field(106, 110))
    elif twin == "iq1s":
        words = field(34, 50, "u2")
        codes = field(2, 34) | (words[..., None] >> np.arange(0, 12, 3, dtype=np.uint16) & 7).reshape(rows, -1, 32) << 8
        marks, factors = np.repeat(words >> 15, 4, axis=2), words >> 12 & 7
    else:
        nibbles = _nibbles(field(32, 48))
        codes, marks = field(0, 32) | (nibbles & 7).astype(np.uint16) << 8, nibbles >> 3
        scales, factors = part_words(field(48, 56, "u2").reshape(rows, -1))
    values = decode(codes.reshape(rows, -1).astype(np.uint16), marks.reshape(rows, -1).astype(np.uint8), fmt)
    return Blocks(fmt, values, scales.reshape(rows, -1), None, factors.reshape(rows, -1).astype(np.uint8))


def encode_grid_rows(rows: Blocks) -> Bytes:
    """Encode to bytes `(rows, row bytes)`: the inverse of `decode_grid_rows`."""
    fmt, count = rows.format, len(rows.values)
    assert rows.scales is not None
    assert rows.factors is not None
    codes, marks = (array.reshape(count, rows.scales.shape[1], -1) for array in encode(np.asarray(rows.values), fmt))
    factors = rows.factors.reshape(*codes.shape[:2], -1).astype(np.uint32)
    low, high = (codes & 255).astype(np.uint8), (codes >> 8).astype(np.uint8)
    fields: list[Array] = [np.ascontiguousarray(rows.scales[:, :, None])]
    if fmt.name == "iq2xxs":
        pairs = np.stack([np.ascontiguousarray(low).view("<u4"), _with_seven_signs(marks, factors)], axis=3)
        fields.append(pairs.reshape(*codes.shape[:2], -1))
    elif fmt.name == "iq2xs":
        fields += [codes | (marks & 127).astype(np.uint16) << 9, _paired(factors)]
    elif fmt.name == "iq2s":
        fields += [low, marks, _joined(high, 2), _paired(factors)]
    elif fmt.name == "iq3xxs":
        fields += [low, _with_seven_signs(marks, factors)]
    elif fmt.name == "iq3s":
        fields += [low, _joined(high, 1), marks, _paired(factors)]
    elif fmt.name == "iq1s":
        threes = high.reshape(*codes.shape[:2], 8, 4).astype(np.uint16) << np.arange(0, 12, 3, dtype=np.uint16)
        words = np.bitwise_or.reduce(threes, axis=3) | factors.astype(np.uint16) << 12
        fields += [low, words | marks[:, :, ::4].astype(np.uint16) << 15]
    else:
        words = join_words(np.ascontiguousarray(rows.scales), rows.factors)
        fields = [low, _paired(high | marks << 3), words.reshape(*codes.shape[:2], 4)]
    return np.concatenate([field.view(np.uint8) for field in fields], axis=2).reshape(count, -1)


def _seven_signs(words: Array) -> tuple[Array, Array]:
    """Four bytes of seven signs for each 32-bit word, and the factors above them."""
    signs = words[..., None] >> np.arange(0, 28, 7, dtype=np.uint32) & 127
    return signs.reshape(*words.shape[:2], -1), words >> 28


def _with_seven_signs(marks: Array, factors: Array) -> Array:
    signs = (marks & 127).reshape(*factors.shape, 4).astype(np.uint32) << np.arange(0, 28, 7, dtype=np.uint32)
    words: Array = np.bitwise_or.reduce(signs, axis=3) | factors << 28
    return words.astype("<u4")


def _parts(data: Bytes, bits: int) -> npt.NDArray[np.uint16]:
    """Fields of some bits of bytes, the lowest first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint16)
    fields: npt.NDArray[np.uint16] = data[..., None].astype(np.uint16) >> shifts & np.uint16((1 << bits) - 1)
    return fields.reshape(*data.shape[:2], -1)


def _joined(fields: Array, bits: int) -> Bytes:
    """The inverse of `_parts`."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    apart = fields.astype(np.uint8).reshape(*fields.shape[:2], -1, len(shifts)) << shifts
    joined: Bytes = np.bitwise_or.reduce(apart, axis=3)
    return joined


def _nibbles(data: Bytes) -> npt.NDArray[np.uint16]:
    return _parts(data, 4)


def _paired(nibbles: Array) -> Bytes:
    return _joined(nibbles, 4)
