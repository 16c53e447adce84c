"""The KV cache and attention, compiled by Numba.

Letters as in `operations.py`, meanings as in `reference/attention.py`. Each token is computed alone.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.formats import GROUP_COLUMNS
from edgemoe.kernels.jit.compile import jit
from edgemoe.kernels.jit.numbers import float_to_half, half_to_float
from edgemoe.kernels.operations import PAGE_TOKENS, Cache, Floats, Integers, QuantisedCache

POSITIONS_AT_ONCE = 16
"""Positions whose scores are computed together, in the innermost loop, which vectorises."""

WIDTH_AT_ONCE = 8
"""Elements of a head that are summed apart before the sum is added to a position's score."""

_ZERO, _ONE = np.float32(0), np.float32(1)
_LARGEST = np.float32(127)

Bytes8 = npt.NDArray[np.int8]
HalfBits = npt.NDArray[np.uint16]
Rows = npt.NDArray[np.intp]


@jit
def quantise_cache_rows(rows: Floats, values: Bytes8, scales: HalfBits) -> None:
    """Same as `reference.quantise_cache_rows`: rows and values `(T, G, W)`, scales `(T, G, groups)`."""
    tokens, kv_heads, width = rows.shape
    for t in range(tokens):
        for head in range(kv_heads):
            row = rows[t, head]
            for g in range(scales.shape[2]):
                start = g * GROUP_COLUMNS
                end = min(start + GROUP_COLUMNS, width)
                largest = _ZERO
                for i in range(start, end):
                    magnitude = abs(row[i])
                    if magnitude > largest or magnitude != magnitude:  # a NaN replaces any number and is never replaced
                        largest = magnitude
                bits = float_to_half(largest / _LARGEST)
                finite = bits < np.uint16(0x7C00)
                scales[t, head, g] = bits if finite else np.uint16(0x7E00)
                scale = half_to_float(bits)
                inverse = _ONE / scale if finite and scale > _ZERO else _ZERO
                for i in range(start, end):
                    rounded = np.rint(row[i] * inverse) if finite else _ZERO
                    values[t, head, i] = np.int8(max(-_LARGEST, min(_LARGEST, rounded)))


@jit
def float_caches(
    key_cache: Floats, value_cache: Floats, pages: Integers, head: int, keys: Floats, values: Floats
) -> None:
    """Copy one head's pages to keys `(length / 16, W, 16)`, 16 positions side by side, and values `(length, W)`.

    In the keys W is padded to a multiple of 8, with the zeros that are there before.
    """
    for c in range(len(values)):
        page, place = pages[c // PAGE_TOKENS], c % PAGE_TOKENS
        block, lane = c // POSITIONS_AT_ONCE, c % POSITIONS_AT_ONCE
        for i in range(key_cache.shape[3]):
            keys[block, i, lane] = key_cache[page, head, place, i]
        for i in range(value_cache.shape[3]):
            values[c, i] = value_cache[page, head, place, i]


@jit
def half_caches_to_float(
    key_bits: HalfBits, value_bits: HalfBits, pages: Integers, head: int, keys: Floats, values: Floats
) -> None:
    """Same as `float_caches`, from float16 caches."""
    width = key_bits.shape[3]
    converted = np.empty(width, np.float32)
    for c in range(len(values)):
        page, place = pages[c // PAGE_TOKENS], c % PAGE_TOKENS
        bits, row = value_bits[page, head, place], values[c]
        for i in range(len(row)):
            row[i] = half_to_float(bits[i])
        bits = key_bits[page, head, place]
        for i in range(width):
            converted[i] = half_to_float(bits[i])
        block, lane = c // POSITIONS_AT_ONCE, c % POSITIONS_AT_ONCE
        for i in range(width):
            keys[block, i, lane] = converted[i]


@jit
def quantised_caches_to_float(
    key_cache: Bytes8,
    key_scales: HalfBits,
    value_cache: Bytes8,
    value_scales: HalfBits,
    pages: Integers,
    head: int,
    keys: Floats,
    values: Floats,
) -> None:
    """Same as `float_caches`, from int8 with a float16 scale for each group of 32 `(N, G, 64, groups)`."""
    for c in range(len(values)):
        page, place = pages[c // PAGE_TOKENS], c % PAGE_TOKENS
        block, lane = c // POSITIONS_AT_ONCE, c % POSITIONS_AT_ONCE
        key_row, value_row = key_cache[page, head, place], value_cache[page, head, place]
        for g in range(key_scales.shape[3]):
            key_scale = half_to_float(key_scales[page, head, place, g])
            for i in range(g * GROUP_COLUMNS, min((g + 1) * GROUP_COLUMNS, len(key_row))):
                keys[block, i, lane] = np.float32(key_row[i]) * key_scale
        for g in range(value_scales.shape[3]):
            value_scale = half_to_float(value_scales[page, head, place, g])
            for i in range(g * GROUP_COLUMNS, min((g + 1) * GROUP_COLUMNS, len(value_row))):
                values[c, i] = np.float32(value_row[i]) * value_scale


@jit
def block_scores(query: Floats, shares: Floats, keys: Floats, scale: float, scores: Floats) -> None:
    """The scores of blocks with keys `(n, W)` for queries `(H, W)`: see `block_operations.ChooseBlocks`."""
    heads, width = query.shape
    factor = np.float32(scale)
    for n in range(len(keys)):
        scores[n] = _ZERO
        for head in range(heads):
            total = _ZERO
            for i in range(width):
                total += query[head, i] * keys[n, i]
            scores[n] += shares[head] * max(total * factor, _ZERO)


@jit
def _block_scores(query: Floats, keys: Floats, scores: Floats) -> None:
    """Dot products of a query `(W,)` with 16 positions' keys `(W, 16)`; W is a multiple of 8."""
    for lane in range(POSITIONS_AT_ONCE):
        scores[lane] = _ZERO
    for start in range(0, len(query), WIDTH_AT_ONCE):
        x, rows = query[start : start + WIDTH_AT_ONCE], keys[start : start + WIDTH_AT_ONCE]
        for lane in range(POSITIONS_AT_ONCE):
            total = _ZERO
            for i in range(WIDTH_AT_ONCE):
                total += x[i] * rows[i, lane]
            scores[lane] += total


@jit
def _add_four(shares: Floats, values: Floats, output: Floats) -> None:
    """Adds four positions' values `(4, W)`, each times its share."""
    a, b, c, d = shares[0], shares[1], shares[2], shares[3]
    first, second, third, fourth = values[0], values[1], values[2], values[3]
    for i in range(len(output)):
        output[i] = output[i] + a * first[i] + b * second[i] + c * third[i] + d * fourth[i]


@jit
def attend(
    query: Floats,
    rows: Rows,
    positions: Integers,
    ends: Integers,
    group: int,
    keys: Floats,
    values: Floats,
    begin: int,
    scale: float,
    window: int,
    chunked: bool,
    cap: float,
    sinks: Floats | None,
    bias: Floats | None,
    chosen: Integers | None,
    page_blocks: int,
    factors: Floats | None,
    scores: Floats,
    output: Floats,
) -> None:
    """Attention of the query heads of one `group`, which share a key/value head.

    Query `(T, G, H / G, W)`, output `(T, G, H / G, Wv)`, sinks `(G, H / G)`, bias by distance `(G, H / G, R)`. `rows`
    are those of the sequence that the keys and values belong to, in the layout of `float_caches` from position `begin`
    on; `ends` are those of the positions that they see, of which `chosen` `(T, P)` may leave some out. `factors` are
    those of the rows `(T,)`. `scores` is scratch of their length.
    """
    heads, width = query.shape[2:]
    value_width = output.shape[3]
    x = np.zeros(keys.shape[1], np.float32)
    for t in rows:
        seen = ends[t] - begin
        first = max(0, seen - window) if window else 0
        if chunked:
            first = positions[t] - positions[t] % window - begin
        for head in range(heads):
            for i in range(width):
                x[i] = query[t, group, head, i] * np.float32(scale)
            for start in range(first // POSITIONS_AT_ONCE * POSITIONS_AT_ONCE, seen, POSITIONS_AT_ONCE):
                _block_scores(x, keys[start // POSITIONS_AT_ONCE], scores[start : start + POSITIONS_AT_ONCE])
            if cap > 0:
                for c in range(first, seen):
                    scores[c] = cap * math.tanh(scores[c] / cap)
            if factors is not None:
                for c in range(first, seen):
                    scores[c] *= factors[t]
            if bias is not None:
                reach = bias.shape[2] // 2
                for c in range(first, seen):
                    distance = max(-reach, min(reach, c + begin - positions[t]))
                    scores[c] += bias[group, head, distance + reach]
            if chosen is not None:
                for c in range(first, seen):
                    page, block = (c + begin) // PAGE_TOKENS, (c + begin) % PAGE_TOKENS * page_blocks // PAGE_TOKENS
                    if not (chosen[t, page] >> block) & 1:
                        scores[c] = -np.inf
            largest = scores[first]
            for c in range(first, seen):
                largest = max(largest, scores[c])
            total = 0.0
            if sinks is not None:
                largest = max(largest, sinks[group, head])
                total = math.exp(sinks[group, head] - largest)
            for c in range(first, seen):
                scores[c] = math.exp(scores[c] - largest)
                total += scores[c]
            share = np.float32(1.0 / total)
            for c in range(first, seen):
                scores[c] *= share
            result = output[t, group, head]
            for i in range(value_width):
                result[i] = _ZERO
            in_fours = first + (seen - first) // 4 * 4
            for start in range(first, in_fours, 4):
                _add_four(scores[start : start + 4], values[start : start + 4], result)
            for c in range(in_fours, seen):
                for i in range(value_width):
                    result[i] += scores[c] * values[c, i]


def cached_floats(
    key_cache: Cache, value_cache: Cache, pages: Integers, head: int, keys: Floats, values: Floats
) -> None:
    """Convert pages of a key/value head to the layouts that `attend` reads."""
    if isinstance(key_cache, QuantisedCache) or isinstance(value_cache, QuantisedCache):
        assert isinstance(key_cache, QuantisedCache)
        assert isinstance(value_cache, QuantisedCache)
        key_scales, value_scales = key_cache.scales.view(np.uint16), value_cache.scales.view(np.uint16)
        quantised_caches_to_float(
            key_cache.values, key_scales, value_cache.values, value_scales, pages, head, keys, values
        )
    elif key_cache.dtype == np.float16:
        key_bits, value_bits = key_cache.view(np.uint16), value_cache.view(np.uint16)
        half_caches_to_float(key_bits, value_bits, pages, head, keys, values)
    else:
        float_caches(key_cache, value_cache, pages, head, keys, values)
