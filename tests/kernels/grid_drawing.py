"""The bytes of formats with a grid, number by number, as the docstring of `grid_blocks.py` draws them."""

from __future__ import annotations

import functools

import numpy as np

from edgemoe.kernels.blocks import Blocks
from edgemoe.kernels.formats import group_count, panel_count
from edgemoe.kernels.grids import GRIDS


@functools.cache
def entries_by_start(name: str, count: int) -> dict[tuple[int, ...], int]:
    """The first entry that begins with each `count` values that some entry begins with."""
    starts = [tuple(entry[:count]) for entry in GRIDS[name].entries.tolist()]
    return {start: n for n, start in reversed([*enumerate(starts)])}


def entry_of(values: list[int], name: str) -> tuple[int, int]:
    """The entry that 8 or 4 values are, the first of those that begin with fewer, and their marks."""
    mark = int(name == "iq1" and values[0] % 8 == 7)
    wanted = tuple(value + 2 * mark - 1 if name == "iq1" else abs(value) for value in values)
    code = entries_by_start(name, len(values))[wanted]
    signs = sum((value < 0) << i for i, value in enumerate(values))
    return code, mark if name == "iq1" else signs


def packed_grid_slowly(blocks: Blocks) -> bytes:
    fmt = blocks.format
    rows, columns = blocks.values.shape
    grid, groups, whole = GRIDS[fmt.grid], group_count(columns), bytearray()
    per_factor = fmt.factor_columns
    scales, factors = np.asarray(blocks.scales), np.asarray(blocks.factors)
    for panel in range(panel_count(rows)):
        body = bytearray()
        for g in range(groups):
            payload, after = bytearray(64 * fmt.bits), bytearray(16 * fmt.high_bytes)
            for r in range(16):
                row = panel * 16 + r
                inside = row < rows
                factor = int(factors[row, g * 32 // per_factor]) if inside else 0
                marks = []
                for n in range(32 // grid.columns):
                    first = g * 32 + n * grid.columns
                    values = blocks.values[row, first : min(first + grid.columns, columns)].tolist() if inside else []
                    code, mark = entry_of(values, fmt.grid) if values else (0, 0)
                    marks.append(mark)
                    place = n // 4 * 64 + r // 8 * 32 + n % 4 * 8 + r % 8
                    if fmt.grid == "iq1":
                        payload[r * 4 + n] = code & 255
                        top = mark
                        if fmt.name == "iq1s":
                            top = marks[0] if n == 3 else factor >> n & 1
                        p = r % 8 * 4 + n
                        after[r // 8 * 16 + p % 16] |= (code >> 8 | top << 3) << p // 16 * 4
                        continue
                    payload[place] = code & 255
                    if fmt.name == "iq2xs":
                        payload[64 + place] |= code >> 8 << 7
                    elif fmt.high_bytes:
                        after[r] |= code >> 8 << n * (2 if fmt.name == "iq2s" else 1)
                for n in range(4 * (fmt.grid != "iq1")):
                    signs = marks[n] if grid.columns == 8 else marks[2 * n] | marks[2 * n + 1] << 4
                    if fmt.name not in ("iq2s", "iq3s"):  # which have an even number of them
                        signs = signs & 127 | (factor >> n & 1 if fmt.factor == "inner" else 0) << 7
                    payload[(fmt.bits - 1) * 64 + r * 4 + n] |= signs
            body += payload + after
        whole += _numbers(body, scales, factors, fmt.name, panel)
    return bytes(whole)


def _numbers(body: bytearray, scales: np.ndarray, factors: np.ndarray, name: str, panel: int) -> bytearray:
    def rows_of(numbers: np.ndarray, column: int) -> list[int]:
        own = numbers.view(np.uint16) if numbers.dtype == np.float16 else numbers
        rows = range(panel * 16, panel * 16 + 16)
        return [int(own[row, column]) if row < len(own) and column < own.shape[1] else 0 for row in rows]

    for block in range(scales.shape[1]):
        halves = rows_of(scales, block)
        if name != "iq1m":
            body += np.array(halves, "<u2").tobytes()
            continue
        for word in range(4):
            threes = [rows_of(factors, block * 16 + word * 4 + i) for i in range(4)]
            words = [
                sum(three[r] << 3 * i for i, three in enumerate(threes)) | (halves[r] >> 4 * word & 15) << 12
                for r in range(16)
            ]
            body += np.array(words, "<u2").tobytes()
    if name in ("iq2xs", "iq2s", "iq3s"):
        for pair in range(0, factors.shape[1], 2):
            low, high = rows_of(factors, pair), rows_of(factors, pair + 1)
            body += bytes(one | other << 4 for one, other in zip(low, high, strict=True))
    return body + bytes(-len(body) % 64)
