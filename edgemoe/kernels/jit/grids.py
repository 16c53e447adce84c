"""Panels of formats whose codes choose entries of a grid, compiled by Numba; `grid_blocks.py` shows the byte layout."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.formats import GROUP_COLUMNS, PANEL_ROWS, Format
from edgemoe.kernels.grid_blocks import PARITY_FORMATS
from edgemoe.kernels.grids import GRIDS
from edgemoe.kernels.jit.compile import jit
from edgemoe.kernels.jit.numbers import half_to_float
from edgemoe.kernels.operations import Floats

Bytes = npt.NDArray[np.uint8]

ZERO = 128
"""Values have this added, which makes them unsigned bytes."""

_LINE_BYTES = 4 * PANEL_ROWS
_SUPER_GROUPS = 8  # share the words of iq1m
_NO_HIGH, _TOPS, _BITS, _NIBBLES = range(4)
_INNER, _PAIRS, _WORDS = range(3)


class GridPlaces(NamedTuple):
    """The places of codes, signs and factors in the payload of a group, and in the sections behind."""

    entries: npt.NDArray[np.int8]
    """The grid `(entries, columns of an entry)`; without any for other formats."""
    lines: int
    payload_bytes: int
    high: int
    """Where codes have more than 8 bits: in the top bits of signs, in bytes of each row, or in IQ1's nibbles."""
    has_parity: bool
    """Whether bit 7 of signs follows from the others."""
    is_iq1: bool
    one_mark: bool
    """Whether a group's last nibble says for all its weights whether 1 is subtracted."""
    factor: int
    unit: np.float32


def places_of(fmt: Format) -> GridPlaces:
    """The places of a format; those of one without a grid have no entries."""
    entries = np.empty((0, 8), np.int8) if fmt.grid == "none" else GRIDS[fmt.grid].entries
    high = _TOPS if fmt.name == "iq2xs" else _NIBBLES if fmt.grid == "iq1" else _BITS if fmt.high_bytes else _NO_HIGH
    factor = _WORDS if fmt.scale == "words" else _PAIRS if fmt.factor == "pairs" else _INNER
    return GridPlaces(
        entries,
        fmt.bits,
        fmt.payload_bytes,
        high,
        fmt.name in PARITY_FORMATS,
        fmt.grid == "iq1",
        fmt.name == "iq1s",
        factor,
        np.float32(fmt.factor_unit),
    )


@jit
def _nibble(after: Bytes, r: int, n: int) -> np.int64:
    """IQ1's nibble for code n of a row, from the bytes behind the line."""
    p = r % 8 * 4 + n
    return np.int64(after[r // 8 * 16 + p % 16]) >> p // 16 * 4 & 15


@jit
def _code(payload: Bytes, places: GridPlaces, r: int, n: int) -> np.int64:
    """Code n of a row of a group."""
    at = r // 8 * 32 + n % 4 * 8 + r % 8
    after = payload[places.lines * _LINE_BYTES :]
    if places.high == _NIBBLES:
        return np.int64(payload[r * 4 + n]) | (_nibble(after, r, n) & 7) << 8
    code = np.int64(payload[n // 4 * _LINE_BYTES + at])
    if places.high == _TOPS:
        code |= np.int64(payload[_LINE_BYTES + at]) >> 7 << 8
    elif places.high == _BITS:
        bits = places.entries.shape[1] // 4
        code |= (np.int64(after[r]) >> bits * n & ((1 << bits) - 1)) << 8
    return code


@jit
def unpack_group(payload: Bytes, places: GridPlaces, values: Bytes) -> None:
    """The values of a group, `ZERO` added: column c of row r is byte `c // 4 * 64 + r * 4 + c % 4`."""
    each = places.entries.shape[1]
    after = payload[places.lines * _LINE_BYTES :]
    signs = payload[(places.lines - 1) * _LINE_BYTES :]
    for r in range(PANEL_ROWS):
        for n in range(GROUP_COLUMNS // each):
            entry = places.entries[_code(payload, places, r, n)]
            block = n * each // 8
            added, marks = np.int64(ZERO), np.int64(0)
            if places.is_iq1:
                added += 1 - 2 * (_nibble(after, r, 3 if places.one_mark else n) >> 3)
            else:
                marks = np.int64(signs[r * 4 + block])
                if places.has_parity:
                    marks &= 127
                    own = marks ^ marks >> 4
                    marks |= (0x6996 >> (own & 15) & 1) << 7  # bit i of the number is the parity of i
            for i in range(each):
                c = n * each + i
                value = np.int64(entry[i])
                values[c // 4 * _LINE_BYTES + r * 4 + c % 4] = added + (-value if marks >> c % 8 & 1 else value)


@jit
def _word(scales: Bytes, g: int, w: int, r: int) -> np.int64:
    """Word w of iq1m for the columns that group g is among."""
    at = g // _SUPER_GROUPS * 8 * PANEL_ROWS + w * 2 * PANEL_ROWS + 2 * r
    return np.int64(scales[at]) | np.int64(scales[at + 1]) << 8


@jit
def load_factors(panel: Bytes, scales_at: int, factors_at: int, places: GridPlaces, factors: Floats) -> None:
    """Compute scale times factor for each part of each group, exactly: `(groups, parts, 16)`."""
    groups, parts = factors.shape[:2]
    scales = panel[scales_at:]
    for g in range(groups):
        payload = panel[g * places.payload_bytes :]
        signs, after = payload[(places.lines - 1) * _LINE_BYTES :], payload[places.lines * _LINE_BYTES :]
        for r in range(PANEL_ROWS):
            bits = np.int64(0)
            if places.factor == _WORDS:
                for w in range(4):
                    bits |= _word(scales, g, w, r) >> 12 << 4 * w
            else:
                at = g // _SUPER_GROUPS * 2 * PANEL_ROWS + 2 * r
                bits = np.int64(scales[at]) | np.int64(scales[at + 1]) << 8
            scale = half_to_float(np.uint16(bits)) * places.unit
            for part in range(parts):
                own, k = g * parts + part, np.int64(0)
                if places.factor == _WORDS:
                    k = _word(scales, g, own % 16 // 4, r) >> 3 * (own % 4) & 7
                elif places.factor == _PAIRS:
                    k = np.int64(panel[factors_at + own // 2 * PANEL_ROWS + r]) >> own % 2 * 4 & 15
                elif places.is_iq1:
                    for n in range(3):
                        k |= _nibble(after, r, n) >> 3 << n
                else:
                    for n in range(4):
                        k |= np.int64(signs[r * 4 + n]) >> 7 << n
                factors[g, part, r] = scale * np.float32(2 * k + 1)
