"""The operations without packed matrices, compiled by Numba.

Letters as in `operations.py`, meanings as in `reference.py`. Each token is computed alone.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.formats import GROUP_COLUMNS, PANEL_ROWS
from edgemoe.kernels.jit.compile import jit
from edgemoe.kernels.jit.numbers import float_to_half, half_to_float
from edgemoe.kernels.operations import PAGE_TOKENS, Floats, Integers

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
def rms_norm(values: Floats, weight: Floats, epsilon: float, output: Floats) -> None:
    """Root-mean-square norm: values and output `(runs, width)`, weight `(width,)`."""
    runs, width = values.shape
    for run in range(runs):
        squares = 0.0
        for c in range(width):
            squares += np.float64(values[run, c]) * np.float64(values[run, c])
        factor = np.float32(1.0 / math.sqrt(squares / width + epsilon))
        for c in range(width):
            output[run, c] = values[run, c] * factor * weight[c]


@jit
def rope(values: Floats, cosine: Floats, sine: Floats, output: Floats) -> None:
    """Rotary positions: values and output `(T, heads, W)`, tables `(T, R / 2)`; channels from R on stay as they are."""
    tokens, heads, width = values.shape
    half = cosine.shape[1]
    for t in range(tokens):
        for head in range(heads):
            for i in range(half):
                a, b = values[t, head, i], values[t, head, half + i]
                output[t, head, i] = a * cosine[t, i] - b * sine[t, i]
                output[t, head, half + i] = b * cosine[t, i] + a * sine[t, i]
            for i in range(2 * half, width):
                output[t, head, i] = values[t, head, i]


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
    group: int,
    keys: Floats,
    values: Floats,
    begin: int,
    scale: float,
    window: int,
    sinks: Floats | None,
    scores: Floats,
    output: Floats,
) -> None:
    """Attention of the query heads of one `group`, which share a key/value head.

    Query `(T, G, H / G, W)`, output `(T, G, H / G, Wv)`, sinks `(G, H / G)`. `rows` are those of the sequence that the
    keys and values belong to, in the layout of `float_caches` from position `begin` on; `scores` is scratch of their
    length.
    """
    heads, width = query.shape[2:]
    value_width = output.shape[3]
    x = np.zeros(keys.shape[1], np.float32)
    for t in rows:
        seen = positions[t] + 1 - begin
        first = max(0, seen - window) if window else 0
        for head in range(heads):
            for i in range(width):
                x[i] = query[t, group, head, i] * np.float32(scale)
            for start in range(first // POSITIONS_AT_ONCE * POSITIONS_AT_ONCE, seen, POSITIONS_AT_ONCE):
                _block_scores(x, keys[start // POSITIONS_AT_ONCE], scores[start : start + POSITIONS_AT_ONCE])
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


@jit
def short_conv(gates: Floats, taps: Floats, bias: Floats | None, inputs: Floats, output: Floats) -> None:
    """Fill in `inputs` behind its first `length - 1` rows, and convolve them; see `reference.short_conv`."""
    width, length = taps.shape
    for t in range(len(gates)):
        added, sums, row = inputs[t + length - 1], output[t], gates[t]
        for i in range(width):
            added[i] = row[i] * row[2 * width + i]
            total = np.float32(0) if bias is None else bias[i]
            for tap in range(length):
                total += taps[i, tap] * inputs[t + tap, i]
            sums[i] = row[width + i] * total


@jit
def _list_largest(values: Floats, left: npt.NDArray[np.bool_], chosen: Integers) -> None:
    """The experts of largest value among those `left` (they no longer are), the lower number on a tie, `(K,)`."""
    for k in range(len(chosen)):
        best = -1
        for expert in range(len(values)):
            if left[expert] and (best < 0 or values[expert] > values[best]):
                best = expert
        left[best] = False
        chosen[k] = best


@jit
def choice_scores(
    logits: Floats, sigmoid: bool, choice_bias: Floats | None, groups: int, kept_groups: int, scores: Floats
) -> None:
    """Compute the scores `(T, E)` by which experts are chosen; -infinity for those of groups that are not kept."""
    tokens, count = logits.shape
    size = count // groups
    for t in range(tokens):
        row, own = logits[t], scores[t]
        largest, total = np.float64(row.max()), 0.0
        if not sigmoid and choice_bias is not None:
            for expert in range(count):
                total += math.exp(np.float64(row[expert]) - largest)
        for expert in range(count):
            own[expert] = row[expert]
            if sigmoid:
                own[expert] = 1.0 / (1.0 + math.exp(-np.float64(row[expert])))
            elif choice_bias is not None:
                own[expert] = math.exp(np.float64(row[expert]) - largest) / total
            if choice_bias is not None:
                own[expert] += choice_bias[expert]
        if groups == 1:
            continue
        sums = np.empty(groups, np.float32)
        for group in range(groups):
            first, second = -np.inf, -np.inf
            for value in own[group * size : (group + 1) * size]:
                if value > first:
                    first, second = value, first
                elif value > second:
                    second = value
            sums[group] = np.float32(first) + np.float32(second)
        dropped = np.ones(groups, np.bool_)
        _list_largest(sums, dropped, np.empty(kept_groups, np.int32))
        for expert in range(count):
            if dropped[expert // size]:
                own[expert] = -np.inf


@jit
def choose(scores: Floats, experts: Integers) -> None:
    """Choose the `K` experts of largest choice score: scores `(T, E)` to experts `(T, K)`."""
    for t in range(len(experts)):
        _list_largest(scores[t], np.ones(scores.shape[1], np.bool_), experts[t])


@jit
def choose_with_bonus(choices: Floats, in_memory: Integers, bonus: np.float32, groups: int, experts: Integers) -> None:
    """Same as `choose`, but scores of experts in memory `(E,)` rise by `bonus` times the token's range of scores."""
    count = choices.shape[1]
    scores = np.empty(count, np.float32)
    for t in range(len(experts)):
        row = choices[t]
        smallest = row.min()
        if groups > 1:
            smallest = np.float32(np.inf)
            for expert in range(count):
                if row[expert] != -np.inf and row[expert] < smallest:
                    smallest = row[expert]
        reach = row.max() - smallest
        if not np.isfinite(reach):
            reach = _ZERO
        first = 0
        for expert in range(count):
            scores[expert] = row[expert] + bonus * reach if in_memory[expert] != 0 else row[expert]
            if row[expert] > row[first]:
                first = expert
        taken = np.zeros(count, np.bool_)
        taken[first] = True
        for _ in range(experts.shape[1] - 1):
            best = -1
            for expert in range(count):
                if not taken[expert] and (
                    best < 0
                    or scores[expert] > scores[best]
                    or (scores[expert] == scores[best] and row[expert] > row[best])
                ):
                    best = expert
            taken[best] = True
        _list_largest(row, taken, experts[t])


@jit
def weigh_by_sigmoid(logits: Floats, renormalise: bool, epsilon: float, experts: Integers, weights: Floats) -> None:
    """Compute the weights `(T, K)` of the chosen experts from the sigmoids of their logits `(T, E)`."""
    tokens, count = experts.shape
    shares = np.empty(count)
    for t in range(tokens):
        total = 0.0
        for k in range(count):
            shares[k] = 1.0 / (1.0 + math.exp(-np.float64(logits[t, experts[t, k]])))
            total += shares[k]
        for k in range(count):
            weights[t, k] = np.float64(shares[k]) / (total + epsilon) if renormalise else shares[k]


@jit
def weigh_by_softmax(logits: Floats, renormalise: bool, experts: Integers, weights: Floats) -> None:
    """Compute the weights `(T, K)` of the chosen experts by softmax of their logits, or of all logits `(T, E)`."""
    tokens, count = experts.shape
    for t in range(tokens):
        taken = np.zeros(logits.shape[1], np.bool_)
        for k in range(count):
            taken[experts[t, k]] = True
        largest = -np.inf
        for expert in range(logits.shape[1]):
            if (taken[expert] or not renormalise) and logits[t, expert] > largest:
                largest = np.float64(logits[t, expert])
        total = 0.0
        for expert in range(logits.shape[1]):
            if taken[expert] or not renormalise:
                total += math.exp(np.float64(logits[t, expert]) - largest)
        for k in range(count):
            weights[t, k] = math.exp(np.float64(logits[t, experts[t, k]]) - largest) / total


@jit
def gate(gate_up: Floats, hidden: Floats) -> None:
    """`silu(gate) * up` from a `gate_up` product `(T, 2 * F rounded up to 16)`, panels interleaved; to `(T, F)`."""
    tokens, width = hidden.shape
    for t in range(tokens):
        for column in range(width):
            at = column // PANEL_ROWS * (2 * PANEL_ROWS) + column % PANEL_ROWS
            x = gate_up[t, at]
            hidden[t, column] = x / (_ONE + np.float32(math.exp(-x))) * gate_up[t, at + PANEL_ROWS]


@jit
def clamped_gate(gate_up: Floats, alpha: np.float32, limit: np.float32, offset: np.float32, hidden: Floats) -> None:
    """As `gate`, of `clamped_silu`: see `operations.Activation`."""
    tokens, width = hidden.shape
    for t in range(tokens):
        for column in range(width):
            at = column // PANEL_ROWS * (2 * PANEL_ROWS) + column % PANEL_ROWS
            g, u = gate_up[t, at], gate_up[t, at + PANEL_ROWS]
            g = limit if limit < g else g  # a NaN stays one
            u = limit if limit < u else u
            u = -limit if u < -limit else u
            hidden[t, column] = g / (_ONE + np.float32(math.exp(-(alpha * g)))) * (u + offset)


@jit
def add_gate_up_biases(gate_up: Floats, gate: Floats, up: Floats) -> None:
    """Adds the biases `(F,)` of gate and up to a `gate_up` product `(T, 2 * F rounded up to 16)`, in place."""
    for t in range(len(gate_up)):
        for column in range(len(gate)):
            at = column // PANEL_ROWS * (2 * PANEL_ROWS) + column % PANEL_ROWS
            gate_up[t, at] += gate[column]
            gate_up[t, at + PANEL_ROWS] += up[column]


@jit
def add_routed(routed: Floats, weights: Floats, total: Floats) -> None:
    """Adds the weighted outputs `(T, K, D)` of each token's experts, in router order, to `(T, D)`."""
    tokens, count, width = routed.shape
    for t in range(tokens):
        for k in range(count):
            for c in range(width):
                total[t, c] += weights[t, k] * routed[t, k, c]


@jit
def add_shared(shared: Floats, shared_gate: Floats | None, total: Floats) -> None:
    """Adds the shared expert's outputs `(T, D)`, times the sigmoid of their gate `(T, 1)` where there is one."""
    for t in range(len(shared)):
        factor = _ONE
        if shared_gate is not None:
            factor = _ONE / (_ONE + np.float32(math.exp(-shared_gate[t, 0])))
        for c in range(shared.shape[1]):
            total[t, c] += factor * shared[t, c]


@jit
def mix(
    base: Floats,
    result: Floats,
    scale: np.float32,
    keep: Floats | None,
    share: Floats | None,
    shift: Floats | None,
    output: Floats,
) -> None:
    """The stream after a block: base, result and output `(T, D)`, factors and shift `(D,)`."""
    for t in range(len(base)):
        for c in range(base.shape[1]):
            kept = base[t, c] if keep is None else keep[c] * base[t, c]
            added = scale * result[t, c]
            if share is not None:
                added *= share[c]
            total = kept + added
            output[t, c] = total if shift is None else total + shift[c]
