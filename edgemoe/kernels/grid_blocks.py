"""The layout of formats whose codes choose entries of a grid, and the way in and out of it.

A code is the number of an entry: 8 neighbouring weights of a row, of IQ3 4. A weight's value is the entry's number with
a sign of its own; for IQ1, whose entries have signs, it is the number (-8, 0 or 8), with 1 added or subtracted for all
8 weights alike. The payload of a group (16 rows x 32 columns) is lines of 64 bytes, and then bytes of high bits. Code n
of row r has in a line byte r // 8 * 32 + n * 8 + r % 8; signs and the codes of IQ1 have byte r * 4 + n:

                 line 0    line 1     line 2   after the lines
    iq2xxs       codes n   signs n    -        -
    iq2xs        codes n   signs n    -        -
    iq2s         codes n   signs n    -        a byte of each row: bits 8 and 9 of code n, from bit 2n on
    iq3xxs       codes n   codes 4+n  signs n  -
    iq3s         codes n   codes 4+n  signs n  a byte of each row: bit 8 of code n in bit n
    iq1s, iq1m   codes n   -          -        16 bytes of 8 rows: bits 8 to 10 in byte p % 16, from bit
                                               p // 16 * 4 on, where p is r % 8 * 4 + n

Bit i of the byte `signs n` is set where the weight of column 8n + i is negative. In iq2xxs, iq2xs and iq3xxs an even
number of 8 weights is negative, so that bit 7 follows from the others, and has something else: in iq2xs bit 8 of the
code whose byte lies at the same place of line 0, in the others bit n of the factor. The fourth bit of code n in IQ1 is
in iq1m set where its weights have 1 subtracted; in iq1s those of the codes 0 to 2 are bits of the factor, and that of
code 3 says it for the whole group.

A factor k stands for (2k + 1) times the format's unit (`Format.factor_unit`). `pairs` are sections of their own after
the scales: factor i of a row in the low (i even) or high nibble of byte i // 2. The scale of iq1m is one with its
factors: four 16-bit words for 256 columns, which lie as scales do; word w has the factors 4w to 4w + 3 in its bits 0 to
11, and bits 4w to 4w + 3 of the float16 scale above them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.formats import GROUP_COLUMNS, PANEL_ROWS, Format, group_count
from edgemoe.kernels.grids import GRIDS

Bytes = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]

PARITY_FORMATS = ("iq2xxs", "iq2xs", "iq3xxs")
"""Formats in which an even number of 8 weights is negative."""

_WORDS = 4
"""Words of 256 columns in iq1m."""


def encode(values: npt.NDArray[np.int8], fmt: Format) -> tuple[Array, Array]:
    """The codes of rows, and a byte for each 8 columns: signs or, of IQ1, 1 where 1 is subtracted.

    `(rows, columns)` to `(rows, codes)` and `(rows, columns / 8)`, rounded up. Raises ValueError for values that no
    codes stand for.
    """
    grid = GRIDS[fmt.grid]
    rows, columns = values.shape
    if fmt.grid == "iq1":
        marks = (values[:, ::8] % 8 == 7).astype(np.uint8)
        if fmt.name == "iq1s":
            marks = np.repeat(marks[:, ::4], 4, axis=1)[:, : marks.shape[1]]
        sizes: Array = (values - 1 + 2 * np.repeat(marks, 8, axis=1)[:, :columns]).astype(np.int16)
    else:
        sizes = np.abs(values.astype(np.int16))
        marks = np.packbits(values < 0, axis=1, bitorder="little")
    levels = np.full(256, 255, np.uint8)
    levels[np.array(grid.levels) & 255] = np.arange(len(grid.levels))
    numbers = levels[sizes & 255]
    whole = columns // grid.columns * grid.columns
    if (numbers == 255).any():
        raise ValueError(f"a value that {fmt.name} does not have")
    codes = grid.indices(numbers[:, :whole].reshape(rows, -1, grid.columns))
    if whole < columns:
        codes = np.concatenate([codes, grid.indices(numbers[:, None, whole:])], axis=1)
    if (decode(codes, marks, fmt)[:, :columns] != values).any():
        raise ValueError(f"values that are no entry of the grid of {fmt.name}")
    return codes, marks


def decode(codes: Array, marks: Array, fmt: Format) -> npt.NDArray[np.int8]:
    """The values of codes, with a byte for each 8 columns as `encode` gives it: `(rows, columns)`."""
    grid = GRIDS[fmt.grid]
    values = grid.entries[codes].reshape(len(codes), codes.shape[1] * grid.columns)
    each = np.repeat(marks, 8, axis=1)[:, : values.shape[1]]
    if fmt.grid == "iq1":
        return values + np.int8(1) - np.int8(2) * each.astype(np.int8)
    if fmt.name in PARITY_FORMATS:
        each = np.repeat(_whole_signs(marks), 8, axis=1)[:, : values.shape[1]]
    shifts = np.arange(each.shape[1], dtype=np.uint8) % 8
    negative = (each >> shifts & 1).astype(bool)
    return np.where(negative, -values, values)


def _whole_signs(bytes_: Array) -> Array:
    """Bytes of signs whose bit 7 is made to follow from the others."""
    parity = bytes_ & np.uint8(127)
    for shift in (4, 2, 1):
        parity = parity ^ parity >> np.uint8(shift)
    return (bytes_ & np.uint8(127)) | (parity & np.uint8(1)) << np.uint8(7)


def pack_rows(values: npt.NDArray[np.int8], scales: Array, factors: Array, fmt: Format) -> list[Bytes]:
    """The sections of panels, each `(panels, bytes)`: of rows that are whole panels, of any number of columns."""
    rows, columns = values.shape
    groups, panels = group_count(columns), rows // PANEL_ROWS
    codes, marks = encode(values, fmt)
    codes = _padded(codes, groups * GROUP_COLUMNS // GRIDS[fmt.grid].columns).reshape(rows, groups, -1)
    marks = _padded(marks, groups * 4).reshape(rows, groups, 4)
    own = factors.reshape(rows, groups, -1).astype(np.uint16)
    low = (codes & 255).astype(np.uint8)
    lines = [_panelwise(low[:, :, n : n + 4], panels) for n in range(0, codes.shape[2], 4)]
    after: Bytes | None = None
    tops: Array
    if fmt.grid == "iq1":
        tops = marks.astype(np.uint16)
        if fmt.name == "iq1s":
            tops = np.concatenate([own >> np.arange(3, dtype=np.uint16) & 1, tops[:, :, 3:]], axis=2)
            tops[:, :, 3] = marks[:, :, 0]
        after = _gathered(codes >> 8 | tops << 3)
    else:
        signs: Array = _panelwise(marks, panels)
        if fmt.name in PARITY_FORMATS:
            tops = codes >> 8 if fmt.name == "iq2xs" else own >> np.arange(4, dtype=np.uint16) & 1
            others = _panelwise((tops << 7).astype(np.uint8), panels)
            signs = (signs & 127) | (_by_code(others) if fmt.name == "iq2xs" else others)
        lines = [_by_code(line) for line in lines] + [signs]
        if fmt.high_bytes:
            shifts = np.arange(codes.shape[2], dtype=np.uint16) * np.uint16(8 // codes.shape[2])
            high = np.bitwise_or.reduce((codes >> 8) << shifts, axis=2).astype(np.uint8)
            after = _panelwise(high[:, :, None], panels)
    payload = np.concatenate(lines if after is None else [*lines, after], axis=2)
    sections = [payload.reshape(panels, -1)]
    if fmt.scale == "words":
        words = join_words(scales, _padded(factors, scales.shape[1] * 16))
        return [*sections, _columnwise(words, panels)]
    sections.append(_columnwise(scales, panels))
    if fmt.factor == "pairs":
        even = _padded(factors, -(-factors.shape[1] // 2) * 2)
        sections.append(_columnwise(even[:, ::2] | even[:, 1::2] << 4, panels))
    return sections


def unpack_rows(panels: Bytes, fmt: Format, columns: int) -> tuple[npt.NDArray[np.int8], Array, Bytes]:
    """The values, scales and factors of panels `(panels, panel bytes)`: the inverse of `pack_rows`."""
    groups, rows = group_count(columns), len(panels) * PANEL_ROWS
    cut = groups * fmt.payload_bytes
    payload = panels[:, :cut].reshape(len(panels), groups, -1)
    per_row = GROUP_COLUMNS // GRIDS[fmt.grid].columns

    def line(number: int, by_code: bool) -> Bytes:
        part = payload[:, :, number * 64 : number * 64 + 64]
        if by_code:
            part = part.reshape(-1, groups, 2, 4, 8).transpose(0, 1, 2, 4, 3)
        return part.reshape(-1, groups, PANEL_ROWS, 4).transpose(0, 2, 1, 3).reshape(rows, groups, 4)

    code_lines = [line(n, fmt.grid != "iq1") for n in range(per_row // 4)]
    codes: npt.NDArray[np.uint16] = np.concatenate(code_lines, axis=2).astype(np.uint16)
    after = payload[:, :, fmt.bits * 64 :]
    inner: Array = np.zeros((rows, groups, 0), np.uint16)
    if fmt.grid == "iq1":
        nibbles = _scattered(after)
        codes |= (nibbles & 7) << 8
        marks = (nibbles >> 3).astype(np.uint8)
        if fmt.name == "iq1s":
            inner = np.bitwise_or.reduce(nibbles[:, :, :3] >> 3 << np.arange(3, dtype=np.uint16), axis=2)
            marks = np.repeat(marks[:, :, 3:], 4, axis=2)
    else:
        marks = line(fmt.bits - 1, False)
        if fmt.high_bytes:
            high = after.reshape(-1, groups, PANEL_ROWS, 1).transpose(0, 2, 1, 3).reshape(rows, groups, 1)
            shift = 8 // per_row
            shifts = np.arange(per_row, dtype=np.uint16) * np.uint16(shift)
            codes |= (high.astype(np.uint16) >> shifts & ((1 << shift) - 1)) << 8
        if fmt.name == "iq2xs":
            codes |= (line(1, True).astype(np.uint16) >> 7) << 8
        elif fmt.factor == "inner":
            inner = np.bitwise_or.reduce((marks >> 7).astype(np.uint16) << np.arange(4, dtype=np.uint16), axis=2)
    values = decode(codes.reshape(rows, -1), marks.reshape(rows, -1), fmt)[:, :columns]

    def numbers(count: int, dtype: Any) -> Array:
        nonlocal cut
        start, cut = cut, cut + count * PANEL_ROWS * np.dtype(dtype).itemsize
        section = np.ascontiguousarray(panels[:, start:cut]).view(dtype)
        columnwise: Array = section.reshape(len(panels), count, PANEL_ROWS).transpose(0, 2, 1)
        return columnwise.reshape(rows, count)

    scales, factors = fmt.scale_count(columns), fmt.factor_count(columns)
    if fmt.scale == "words":
        words = numbers(scales * _WORDS, np.uint16)
        halves, own = part_words(words)
        return values, halves, own[:, :factors]
    found = numbers(scales, np.float16)
    if fmt.factor == "pairs":
        pairs = numbers(-(-factors // 2), np.uint8)
        both = np.stack([pairs & 15, pairs >> 4], axis=2).reshape(rows, -1)
        return values, found, np.ascontiguousarray(both[:, :factors])
    return values, found, inner.reshape(rows, -1).astype(np.uint8)


def _gathered(nibbles: Array) -> Array:
    """IQ1's nibbles `(rows, groups, 4)` as the bytes after the lines, `(panels, groups, 32)`."""
    rows, groups, _ = nibbles.shape
    sides = nibbles.reshape(-1, 2, 8, groups, 4).transpose(0, 3, 1, 2, 4)
    halves: Array = sides.reshape(-1, groups, 2, 2, 16).astype(np.uint8)
    both: Array = halves[:, :, :, 0] | halves[:, :, :, 1] << 4
    return both.reshape(rows // PANEL_ROWS, groups, 32)


def _scattered(after: Bytes) -> npt.NDArray[np.uint16]:
    """The inverse of `_gathered`."""
    panels, groups, _ = after.shape
    sides = after.reshape(panels, groups, 2, 16)
    halves = np.stack([sides & 15, sides >> 4], axis=3).reshape(panels, groups, 2, 8, 4)
    return halves.transpose(0, 2, 3, 1, 4).reshape(panels * PANEL_ROWS, groups, 4).astype(np.uint16)


def _by_code(line: Bytes) -> Bytes:
    """A line `(panels, groups, 64)` with the codes of 8 rows side by side."""
    panels, groups, _ = line.shape
    turned = line.reshape(panels, groups, 2, 8, 4).transpose(0, 1, 2, 4, 3)
    return np.ascontiguousarray(turned).reshape(panels, groups, 64)


def join_words(scales: Array, factors: Array) -> Array:
    """The words of iq1m `(rows, 4 * scales)` of float16 scales and sixteen factors for each."""
    words: npt.NDArray[np.uint16] = np.bitwise_or.reduce(
        factors.reshape(len(factors), -1, 4).astype(np.uint16) << np.arange(0, 12, 3, dtype=np.uint16), axis=2
    )
    bits = np.ascontiguousarray(scales).view(np.uint16)
    for word in range(_WORDS):
        words[:, word::_WORDS] |= (bits >> 4 * word & 15) << 12
    return words


def part_words(words: npt.NDArray[np.uint16]) -> tuple[npt.NDArray[np.float16], Bytes]:
    """The inverse of `join_words`."""
    factors = (words[:, :, None] >> np.arange(0, 12, 3, dtype=np.uint16) & 7).reshape(len(words), -1)
    bits = np.zeros((len(words), words.shape[1] // _WORDS), np.uint16)
    for word in range(_WORDS):
        bits |= (words[:, word::_WORDS] >> 12) << np.uint16(4 * word)
    return bits.view(np.float16), factors.astype(np.uint8)


def _padded(array: Array, columns: int) -> Array:
    return np.pad(array, ((0, 0), (0, columns - array.shape[1])))


def _panelwise(line: Array, panels: int) -> Bytes:
    """Bytes `(rows, groups, bytes)` as `(panels, groups, 16 * bytes)`."""
    rows = line.reshape(panels, PANEL_ROWS, *line.shape[1:]).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(rows).reshape(panels, line.shape[1], -1)


def _columnwise(numbers: Array, panels: int) -> Bytes:
    rows = numbers.reshape(panels, PANEL_ROWS, -1).transpose(0, 2, 1)
    return np.ascontiguousarray(rows).reshape(panels, -1).view(np.uint8)
