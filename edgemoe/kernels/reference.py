"""Reference implementation of each operation in NumPy; every other backend is tested against it.

Letters as in `operations.py`. Every function returns new float32 arrays. Between its inputs and its
result each works in float64, so the result counts as the exact value, and a backend's distance from it
is that backend's own rounding. Rounding that *is* part of the definition is done here too: activations
multiplied by quantised weights become int8 in groups of 32, and hidden values of an FFN become float32.

Beside the functions of an operation stands the step that applies them to its buffers, which `@means` registers. Steps
call the functions through `kernels`: another backend has functions of the same names, or runs these.

Inputs are finite. Each token is computed alone, so a run cut in two gives the same bits.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.errors import KernelError
from edgemoe.kernels import operations as op
from edgemoe.kernels.definition import HINT, LARGEST_EXTENT, Sizes
from edgemoe.kernels.formats import (
    GROUP_COLUMNS,
    PANEL_ROWS,
    Matrix,
    dequantise,
    group_count,
    panel_count,
    unpack,
)
from edgemoe.kernels.operations import PAGE_TOKENS, Cache, Floats, Integers, QuantisedCache
from edgemoe.kernels.stepwise import StepwiseBackend, means

SMALLEST_ACTIVATION = np.float32(1e-35)
"""A group of activations whose largest magnitude lies below this is all zeros, scale included.

It keeps 127 / magnitude finite, and the scale out of float32's denormals.
"""

_PANELS_AT_ONCE = 64
"""Panels of a matrix that are unpacked at a time, to bound memory."""

Doubles = npt.NDArray[np.float64]


def quantise_activations(values: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """Round each group of 32 activations to int8: `(T, columns)` to `(T, groups, 32)`, scales `(T, groups)`.

    In float32: scale = largest magnitude / 127; value = round half to even of x * (127 / largest magnitude).
    A group whose largest magnitude is below `SMALLEST_ACTIVATION` becomes zeros.
    """
    tokens, columns = values.shape
    groups = group_count(columns)
    padded = np.zeros((tokens, groups * GROUP_COLUMNS), np.float32)
    padded[:, :columns] = values
    grouped = padded.reshape(tokens, groups, GROUP_COLUMNS)
    largest = np.abs(grouped).max(axis=2)
    largest[largest < SMALLEST_ACTIVATION] = 0
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    return np.rint(grouped * inverse[:, :, None]).astype(np.int8), largest / np.float32(127)


def matmul(values: Floats, matrix: Matrix) -> Floats:
    """`(T, columns)` times the transpose of `(rows, columns)`: `(T, rows)`.

    For quantised weights, activations are first rounded by `quantise_activations`.
    """
    inputs: Doubles = values.astype(np.float64)
    if matrix.format.quantised:
        integers, scales = quantise_activations(values)
        grouped = integers * scales.astype(np.float64)[:, :, None]
        inputs = grouped.reshape(len(values), -1)[:, : matrix.columns]
    panel_bytes = matrix.format.panel_bytes(matrix.columns)
    products = np.empty((len(values), matrix.rows), np.float64)
    for first in range(0, panel_count(matrix.rows), _PANELS_AT_ONCE):
        rows = slice(first * PANEL_ROWS, min(matrix.rows, (first + _PANELS_AT_ONCE) * PANEL_ROWS))
        packed = matrix.data[first * panel_bytes : (first + _PANELS_AT_ONCE) * panel_bytes]
        blocks = unpack(packed, matrix.format, rows.stop - rows.start, matrix.columns)
        # A stack of matrix-vector products: in one matrix product a token's rounding depends on the number of tokens.
        products[:, rows] = np.matmul(dequantise(blocks).astype(np.float64), inputs[:, :, None])[:, :, 0]
    return _single(products)


def _single(values: Doubles) -> Floats:
    """Round to the nearest float32; values beyond its range become infinite."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _linear_scratch(kernels: StepwiseBackend, o: op.Linear, sizes: Sizes) -> int:
    matrices = (part.matrix for part in o.parts)
    return max(kernels.product_scratch_bytes(sizes.rows, matrix.rows, matrix.columns) for matrix in matrices)


@means(op.Linear, "matmul", _linear_scratch)
def _linear(kernels: Any, o: op.Linear, tokens: int) -> None:
    for part in o.parts:
        product = kernels.matmul(o.input[:tokens], part.matrix)
        if part.bias is not None:
            product += part.bias
        product *= np.float32(o.scale)
        if o.accumulate:
            part.output[:tokens] += product
        else:
            part.output[:tokens] = product


def embed(ids: Integers, matrix: Matrix, scale: float) -> Floats:
    """Look up rows of the embedding: `(T,)` to `(T, D)`."""
    panel_bytes = matrix.format.panel_bytes(matrix.columns)
    panels = matrix.data.reshape(panel_count(matrix.rows), panel_bytes)
    rows = [
        dequantise(unpack(panels[i // PANEL_ROWS], matrix.format, PANEL_ROWS, matrix.columns))[i % PANEL_ROWS]
        for i in ids.tolist()
    ]
    return np.stack(rows) * np.float32(scale)


@means(op.Embed, "embed")
def _embed(kernels: Any, o: op.Embed, tokens: int) -> None:
    o.output[:tokens] = kernels.embed(o.ids[:tokens], o.matrix, o.scale)


def rms_norm(values: Floats, weight: Floats, epsilon: float) -> Floats:
    """Root-mean-square norm over the last axis (Zhang and Sennrich 2019)."""
    exact = values.astype(np.float64)
    mean_square = np.mean(np.square(exact), axis=-1, keepdims=True)
    return _single(exact / np.sqrt(mean_square + epsilon) * weight)


@means(op.RmsNorm, "rms_norm")
def _rms_norm(kernels: Any, o: op.RmsNorm, tokens: int) -> None:
    heads = o.input[:tokens].reshape(tokens, o.heads, -1)
    o.output[:tokens] = kernels.rms_norm(heads, o.weight, o.epsilon).reshape(tokens, -1)


def rope(values: Floats, cosine: Floats, sine: Floats) -> Floats:
    """Rotary positions (Su et al. 2021), halves form: values `(T, heads, W)`, tables `(T, R / 2)`; R is at most W."""
    half = cosine.shape[1]
    exact = values.astype(np.float64)
    first, second, rest = exact[:, :, :half], exact[:, :, half : 2 * half], exact[:, :, 2 * half :]
    cosine, sine = cosine[:, None, :], sine[:, None, :]
    return _single(np.concatenate([first * cosine - second * sine, second * cosine + first * sine, rest], axis=2))


@means(op.Rope, "rope")
def _rope(kernels: Any, o: op.Rope, tokens: int) -> None:
    positions = o.positions[:tokens]
    _check_each("position", positions, len(o.cosine))
    heads = o.values[:tokens].reshape(tokens, o.heads, -1)
    o.values[:tokens] = kernels.rope(heads, o.cosine[positions], o.sine[positions]).reshape(tokens, -1)


def quantise_cache_rows(rows: Floats) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]:
    """Quantise keys or values for a `QuantisedCache`: `(..., W)` to int8 `(..., W)`, scales `(..., groups of 32)`.

    In float32: scale = largest magnitude / 127, rounded to float16; value = round half to even of x * (1 / scale),
    at most 127 in magnitude. A group whose scale float16 cannot represent (numbers beyond 8.3 million, or not finite)
    becomes zeros with a NaN scale; a group whose scale rounds to zero becomes zeros.
    """
    columns = rows.shape[-1]
    groups = group_count(columns)
    grouped = np.zeros((*rows.shape[:-1], groups * GROUP_COLUMNS), np.float32)
    grouped[..., :columns] = rows
    grouped = grouped.reshape(*rows.shape[:-1], groups, GROUP_COLUMNS)
    with np.errstate(over="ignore"):
        scales = (np.abs(grouped).max(axis=-1) / np.float32(127)).astype(np.float16)
    finite = np.isfinite(scales)
    scales[~finite] = np.nan
    grouped[~finite] = 0
    inverse = np.zeros(scales.shape, np.float32)
    np.divide(np.float32(1), scales.astype(np.float32), out=inverse, where=finite & (scales > 0))
    values = np.clip(np.rint(grouped * inverse[..., None]), -127, 127)
    return values.astype(np.int8).reshape(*rows.shape[:-1], -1)[..., :columns], scales


def _store_scratch(kernels: StepwiseBackend, o: op.StoreKv, sizes: Sizes) -> int:
    return kernels.store_scratch_bytes(sizes.rows, sizes.letters["G"], max(sizes.letters["W"], sizes.letters["Wv"]))


@means(op.StoreKv, "quantise_cache_rows", _store_scratch)
def _store_kv(kernels: Any, o: op.StoreKv, tokens: int) -> None:
    positions, sequences = o.positions[:tokens], o.sequences[:tokens]
    _check_pages(positions, sequences, o.pages, o.key_cache.shape[0], window=1)
    pages, places = o.pages[sequences, positions // PAGE_TOKENS], positions % PAGE_TOKENS
    for source, cache in ((o.keys, o.key_cache), (o.values, o.value_cache)):
        rows = source[:tokens].reshape(tokens, cache.shape[1], cache.shape[3])
        if isinstance(cache, QuantisedCache):
            cache.values[pages, :, places], cache.scales[pages, :, places] = kernels.quantise_cache_rows(rows)
        else:
            cache[pages, :, places] = rows


def _check_each(what: str, numbers: Integers, limit: int) -> None:
    """Raise KernelError unless each row's number is at least 0 and below a limit."""
    wrong = np.flatnonzero((numbers < 0) | (numbers >= limit))
    if len(wrong):
        found = f"found {numbers[wrong[0]]} in row {wrong[0]}"
        raise KernelError(f"{what}s of a run: expected 0 to {limit - 1}, {found}.", HINT)


def _first_seen(position: int, window: int) -> int:
    """The first position that the token at a position sees; a window of 0 is none."""
    return max(0, position - window + 1) if window else 0


def _check_pages(positions: Integers, sequences: Integers, pages: Integers, page_count: int, window: int) -> None:
    """Raise KernelError unless each row's sequence and position exist, and the pages of the positions that it sees."""
    _check_each("sequence", sequences, len(pages))
    _check_each("position", positions, pages.shape[1] * PAGE_TOKENS)
    for sequence, position in zip(sequences.tolist(), positions.tolist(), strict=True):
        first, last = _first_seen(position, window) // PAGE_TOKENS, position // PAGE_TOKENS
        _check_each("page", pages[sequence, first : last + 1], page_count)


def cache_elements(cache: Cache, pages: Integers) -> Doubles:
    """Return the elements of some pages, one after the other: `(G, 64 * pages, W)`."""
    _, kv_heads, _, width = cache.shape
    elements = np.empty((kv_heads, len(pages) * PAGE_TOKENS, width), np.float64)
    for block, page in enumerate(pages.tolist()):
        here = elements[:, block * PAGE_TOKENS : (block + 1) * PAGE_TOKENS]
        if isinstance(cache, QuantisedCache):
            here[:] = np.repeat(cache.scales[page].astype(np.float64), GROUP_COLUMNS, axis=2)[:, :, :width]
            here *= cache.values[page]
        else:
            here[:] = cache[page]
    return elements


def attention(
    query: Floats,
    positions: Integers,
    sequences: Integers,
    pages: Integers,
    key_cache: Cache,
    value_cache: Cache,
    scale: float,
    window: int = 0,
    sinks: Floats | None = None,
) -> Floats:
    """Causal grouped-query attention: query `(T, H, W)`, caches `(N, G, 64, W)` and `(N, G, 64, Wv)`; `(T, H, Wv)`.

    Query head `h` reads key/value head `h // (H / G)`. A sink is the logit of a key whose value is zero (Xiao et al.
    2023, arXiv 2309.17453; as gpt-oss has it, learnt for each head).
    """
    tokens, heads, width = query.shape
    kv_heads, value_width = key_cache.shape[1], value_cache.shape[3]
    grouped = query.astype(np.float64).reshape(tokens, kv_heads, heads // kv_heads, width)
    output = np.empty((tokens, kv_heads, heads // kv_heads, value_width), np.float64)
    for sequence in np.unique(sequences):
        rows = np.flatnonzero(sequences == sequence)
        begin = _first_seen(int(positions[rows].min()), window) // PAGE_TOKENS
        held = pages[sequence, begin : positions[rows].max() // PAGE_TOKENS + 1]
        keys, values = (cache_elements(cache, held) for cache in (key_cache, value_cache))
        for t in rows:
            first = _first_seen(int(positions[t]), window)
            seen = slice(first - begin * PAGE_TOKENS, int(positions[t]) + 1 - begin * PAGE_TOKENS)
            scores = grouped[t] @ keys[:, seen].transpose(0, 2, 1) * scale
            if sinks is not None:
                own = sinks.astype(np.float64).reshape(kv_heads, -1, 1)
                scores = np.concatenate([scores, own], axis=2)
            output[t] = softmax(scores)[:, :, : seen.stop - seen.start] @ values[:, seen]
        del keys, values  # before those of the next sequence
    return _single(output.reshape(tokens, heads, value_width))


def _attention_scratch(kernels: StepwiseBackend, o: op.Attention, sizes: Sizes) -> int:
    heads, kv_heads, pages = (sizes.letters[letter] for letter in "HGP")
    width = max(sizes.letters["W"], sizes.letters["Wv"])
    return kernels.attention_scratch_bytes(sizes.rows, heads, kv_heads, width, pages * PAGE_TOKENS)


@means(op.Attention, "attention", _attention_scratch)
def _attention(kernels: Any, o: op.Attention, tokens: int) -> None:
    positions, sequences = o.positions[:tokens], o.sequences[:tokens]
    _check_pages(positions, sequences, o.pages, o.key_cache.shape[0], o.window)
    heads = o.query[:tokens].reshape(tokens, -1, o.key_cache.shape[3])
    where = (positions, sequences, o.pages)
    seen = kernels.attention(heads, *where, o.key_cache, o.value_cache, o.scale, o.window, o.sinks)
    o.output[:tokens] = seen.reshape(tokens, -1)


def short_conv(gates: Floats, taps: Floats, bias: Floats | None, earlier: Floats) -> tuple[Floats, Floats]:
    """Convolve neighbouring rows of one sequence: gates `(T, 3D)`, taps `(D, length)`; output and `u`, `(T, D)`.

    `earlier` is `u` of the `length - 1` positions before the first row.
    """
    before, between, values = np.split(gates, 3, axis=1)
    added = before * values
    inputs = np.concatenate([earlier, added]).astype(np.float64)
    sums = np.zeros(added.shape) if bias is None else np.tile(bias.astype(np.float64), (len(added), 1))
    for tap in range(taps.shape[1]):
        sums += taps[:, tap] * inputs[tap : tap + len(added)]
    return _single(between * sums), added


def _short_conv_scratch(kernels: StepwiseBackend, o: op.ShortConv, sizes: Sizes) -> int:
    return kernels.element_scratch_bytes * (sizes.rows + sizes.letters["length"]) * 3 * sizes.letters["D"]


@means(op.ShortConv, "short_conv", _short_conv_scratch)
def _short_conv(kernels: Any, o: op.ShortConv, tokens: int) -> None:
    positions, sequences = o.positions[:tokens], o.sequences[:tokens]
    _check_each("sequence", sequences, len(o.inputs))
    _check_each("position", positions, LARGEST_EXTENT)
    taps, ring = o.taps.reshape(o.output.shape[1], -1), o.inputs.shape[1]
    breaks = np.flatnonzero((np.diff(positions) != 1) | (np.diff(sequences) != 0)) + 1
    for rows in np.split(np.arange(tokens), breaks):
        inputs, first = o.inputs[sequences[rows[0]]], int(positions[rows[0]])
        before = np.arange(first - taps.shape[1] + 1, first)
        earlier = np.where(before[:, None] >= 0, inputs[before % ring], np.float32(0))
        o.output[rows], added = kernels.short_conv(o.gates[rows], taps, o.bias, earlier)
        kept = slice(-min(len(rows), ring), None)
        inputs[positions[rows[kept]] % ring] = added[kept]


def softmax(values: Doubles) -> Doubles:
    """Softmax over the last axis."""
    exponentials = np.exp(values - values.max(axis=-1, keepdims=True))
    result: Doubles = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return result


def route(
    logits: Floats,
    count: int,
    renormalise: bool,
    in_memory: Integers | None = None,
    bonus: float = 0.0,
    score: op.Score = "softmax",
    choice_bias: Floats | None = None,
    groups: int = 1,
    kept_groups: int = 1,
    epsilon: float = 0.0,
    scale: float = 1.0,
) -> tuple[Integers, Floats]:
    """Experts `(T, K)` of largest choice score, the lower number on a tie, and their weights `(T, K)`: see `op.Route`.

    With `in_memory` `(E,)` all but the first are chosen with a bonus for experts that are in memory.
    """
    choices = choice_scores(logits, score, choice_bias, groups, kept_groups)
    chosen = np.argsort(-choices, axis=1, kind="stable")
    if in_memory is not None:
        raised = np.take_along_axis(_raised_scores(choices, in_memory, bonus, groups), chosen, axis=1)
        raised[:, 0] = np.inf
        # `chosen` is in order of scores; a stable sort keeps those that were raised to the same in that order
        ranks = np.sort(np.argsort(-raised, axis=1, kind="stable")[:, :count], axis=1)
        chosen = np.take_along_axis(chosen, ranks, axis=1)
    chosen = chosen[:, :count]
    exact = logits.astype(np.float64)
    if score == "sigmoid":
        weights = _sigmoid(np.take_along_axis(exact, chosen, axis=1))
        if renormalise:
            with np.errstate(invalid="ignore"):  # 0 / 0 without an epsilon
                weights /= weights.sum(axis=1, keepdims=True) + np.float32(epsilon)
    elif renormalise:
        weights = softmax(np.take_along_axis(exact, chosen, axis=1))
    else:
        weights = np.take_along_axis(softmax(exact), chosen, axis=1)
    return chosen.astype(np.int32), _single(weights * np.float32(scale))


def choice_scores(
    logits: Floats, score: op.Score, choice_bias: Floats | None, groups: int = 1, kept_groups: int = 1
) -> Floats:
    """The scores `(T, E)` by which experts are chosen; -infinity for those of groups that are not kept."""
    choices = logits
    if score == "sigmoid" or choice_bias is not None:
        exact = logits.astype(np.float64)
        choices = _single(_sigmoid(exact) if score == "sigmoid" else softmax(exact))
    if choice_bias is not None:
        choices = choices + choice_bias
    if groups == 1:
        return choices
    grouped = choices.reshape(len(choices), groups, -1)
    best = -np.sort(-grouped, axis=2)
    order = np.argsort(-(best[:, :, 0] + best[:, :, 1]), axis=1, kind="stable")
    kept = np.full(grouped.shape, -np.inf, np.float32)
    for group in order[:, :kept_groups].T:
        kept[np.arange(len(kept)), group] = grouped[np.arange(len(kept)), group]
    return kept.reshape(choices.shape)


def _raised_scores(choices: Floats, in_memory: Integers, bonus: float, groups: int) -> Floats:
    """Choice scores `(T, E)` with the bonus of experts that are in memory, every step in float32."""
    smallest = choices if groups == 1 else np.where(choices == -np.inf, np.float32(np.inf), choices)
    with np.errstate(over="ignore", invalid="ignore"):
        reach = choices.max(axis=1, keepdims=True) - smallest.min(axis=1, keepdims=True)
        reach[~np.isfinite(reach)] = 0
        return np.where(in_memory != 0, choices + np.float32(bonus) * reach, choices)


@means(op.Route, "route")
def _route(kernels: Any, o: op.Route, tokens: int) -> None:
    in_memory = None if o.slots is None else (o.slots >= 0).astype(np.int32)
    choice = o.score, o.choice_bias, o.groups, o.kept_groups
    chosen = kernels.route(
        o.logits[:tokens], o.experts.shape[1], o.renormalise, in_memory, o.bonus, *choice, o.epsilon, o.scale
    )
    o.experts[:tokens], o.weights[:tokens] = chosen


def gated_ffn(
    values: Floats,
    gate_up: Matrix,
    down: Matrix,
    biases: op.FfnBiases | None = None,
    activation: op.Activation = op.SILU,
) -> Floats:
    """`down (activation(gate x, up x))`, each product plus its bias: `(T, D)` to `(T, D)`.

    Gate, up and hidden values are rounded to float32, since the next product quantises from float32; a bias is added
    to the rounded product, in float32.
    """
    both = matmul(values, gate_up).reshape(len(values), -1, 2, PANEL_ROWS)
    gate, up = (both[:, :, half].reshape(len(values), -1)[:, : down.columns] for half in (0, 1))
    if biases is not None:
        gate, up = gate + biases.gate, up + biases.up
    output = matmul(activate(gate, up, activation), down)
    return output if biases is None else output + biases.down


def activate(gate: Floats, up: Floats, activation: op.Activation) -> Floats:
    """The hidden values `(T, F)` of an FFN, from its two products: see `op.Activation`."""
    g, u = gate.astype(np.float64), up.astype(np.float64)
    if activation.limit is not None:
        limit = float(np.float32(activation.limit))
        g, u = np.minimum(g, limit), np.clip(u, -limit, limit)
    return _single(g * _sigmoid(float(np.float32(activation.alpha)) * g) * (u + np.float32(activation.offset or 0)))


def _sigmoid(values: Doubles) -> Doubles:
    with np.errstate(over="ignore"):  # exp may be infinite; the sigmoid is then 0, as it should be
        result: Doubles = 1 / (1 + np.exp(-values))
        return result


def _gated_ffn_scratch(kernels: StepwiseBackend, o: op.GatedFfn, sizes: Sizes) -> int:
    return kernels.ffn_scratch_bytes(sizes.rows, sizes.letters["D"], sizes.letters["F"])


@means(op.GatedFfn, "gated_ffn", _gated_ffn_scratch)
def _gated_ffn(kernels: Any, o: op.GatedFfn, tokens: int) -> None:
    o.output[:tokens] = kernels.gated_ffn(o.input[:tokens], o.gate_up, o.down, o.biases, o.activation)


def _experts_scratch(kernels: StepwiseBackend, o: op.Experts, sizes: Sizes) -> int:
    used, width = (sizes.letters[letter] for letter in "KD")
    return kernels.experts_scratch_bytes(sizes.rows, used, width, o.layouts[0].intermediate_size)


@means(op.Fetch, None)
def _fetch(kernels: Any, o: op.Fetch, tokens: int) -> int:
    if o.paged is None:
        return 0
    pager: op.Pager = o.paged.pager
    waited_ns = pager.wait_ns
    pager.fetch(o.paged.layer, o.experts[:tokens], None if o.weights is None else o.weights[:tokens], o.drop_cold)
    return pager.wait_ns - waited_ns


@means(op.Prefetch, None)
def _prefetch(kernels: Any, o: op.Prefetch, tokens: int) -> int:
    if o.paged is None:
        return 0
    pager: op.Pager = o.paged.pager
    waited_ns = pager.wait_ns
    pager.prefetch(o.paged.layer, list(dict.fromkeys(o.experts[:tokens].reshape(-1).tolist())))
    return pager.wait_ns - waited_ns


@means(op.Experts, "gated_ffn", _experts_scratch)
def _experts(kernels: Any, o: op.Experts, tokens: int) -> int:
    chosen = o.experts[:tokens]
    if o.paged is None:
        here = ((int(expert), int(o.slots[expert])) for expert in np.unique(chosen) if o.slots[expert] >= 0)
        _run_experts(kernels, o, chosen, here)
        return 0
    pager: op.Pager = o.paged.pager
    waited_ns = pager.wait_ns
    o.output[:tokens][np.isin(chosen, pager.left_out(o.paged.layer))] = 0
    with contextlib.closing(pager.landings(o.paged.layer)) as landings:  # so that a run that fails ends the use
        _run_experts(kernels, o, chosen, landings)
    return pager.wait_ns - waited_ns


def _run_experts(kernels: Any, o: op.Experts, chosen: Integers, experts: Iterable[tuple[int, int]]) -> None:
    """Compute experts, each in its slot, for the tokens that chose them."""
    for expert, slot in experts:
        rows, ranks = np.nonzero(chosen == expert)
        o.output[rows, ranks] = kernels.gated_ffn(o.input[rows], *o.weights(expert, slot), o.activation)


def combine(routed: Floats | None, weights: Floats | None, shared: Floats | None, shared_gate: Floats | None) -> Floats:
    """The output of an MoE block: routed `(T, K, D)`, weights `(T, K)`, shared `(T, D)`, gate `(T, 1)`."""
    total: Doubles | None = None
    if routed is not None and weights is not None:
        exact = weights.astype(np.float64)
        for k in range(routed.shape[1]):
            term = exact[:, k, None] * routed[:, k]
            total = term if total is None else total + term
    if shared is not None:
        gate = 1.0 if shared_gate is None else _sigmoid(shared_gate.astype(np.float64))
        term = gate * shared.astype(np.float64)
        total = term if total is None else total + term
    assert total is not None  # `Combine` has one of the terms at least
    return _single(total)


@means(op.Combine, "combine", lambda kernels, o, sizes: kernels.element_scratch_bytes * math.prod(o.output.shape))
def _combine(kernels: Any, o: op.Combine, tokens: int) -> None:
    parts = (o.routed, o.weights, o.shared, o.shared_gate)
    total = kernels.combine(*(None if part is None else part[:tokens] for part in parts))
    total *= np.float32(o.scale)
    if o.accumulate:
        o.output[:tokens] += total
    else:
        o.output[:tokens] = total


def mix(
    base: Floats, result: Floats, scale: float, keep: Floats | None, share: Floats | None, shift: Floats | None
) -> Floats:
    """The stream after a block: base and result `(T, D)`, factors and shift `(D,)`."""
    added = float(np.float32(scale)) * result.astype(np.float64) * (1.0 if share is None else share)
    return _single(
        base.astype(np.float64) * (1.0 if keep is None else keep) + added + (0.0 if shift is None else shift)
    )


@means(op.Mix, "mix", lambda kernels, o, sizes: kernels.element_scratch_bytes * math.prod(o.output.shape))
def _mix(kernels: Any, o: op.Mix, tokens: int) -> None:
    o.output[:tokens] = kernels.mix(o.base[:tokens], o.result[:tokens], o.scale, o.keep, o.share, o.shift)


class ReferenceBackend(StepwiseBackend):
    """The reference as a backend: slow, and correct by definition."""

    name = "reference"
    element_scratch_bytes = 40  # five float64 arrays
    matmul = staticmethod(matmul)
    embed = staticmethod(embed)
    rms_norm = staticmethod(rms_norm)
    rope = staticmethod(rope)
    quantise_cache_rows = staticmethod(quantise_cache_rows)
    attention = staticmethod(attention)
    short_conv = staticmethod(short_conv)
    route = staticmethod(route)
    gated_ffn = staticmethod(gated_ffn)
    combine = staticmethod(combine)
    mix = staticmethod(mix)

    def kernels_for(self, kind: type[op.Operation]) -> StepwiseBackend:
        return self

    def product_scratch_bytes(self, tokens: int, rows: int, columns: int) -> int:
        """Temporaries of one `matmul`, its result included."""
        unpacked = min(rows, _PANELS_AT_ONCE * PANEL_ROWS) * (columns + GROUP_COLUMNS) * 24
        return unpacked + tokens * (rows * 16 + columns * 32)

    def attention_scratch_bytes(self, tokens: int, heads: int, kv_heads: int, width: int, context_length: int) -> int:
        """Temporaries of one `attention` at the end of the context, its result included."""
        caches = 2 * 8 * kv_heads * (context_length + PAGE_TOKENS) * group_count(width) * GROUP_COLUMNS
        scores = 4 * 8 * heads * context_length
        return caches + scores + 5 * 8 * tokens * heads * width


REFERENCE = ReferenceBackend()
"""The one that runs what another backend has no function for."""
