"""What each operation means, in NumPy: the contract that every other backend is held to.

Letters as in `operations.py`. Every function returns new arrays. Products with quantised weights are
taken on activations quantised to int8 in groups of 32; the integer sums are exact.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.formats import GROUP_COLUMNS, PANEL_ROWS, Matrix, dequantise, group_count, panel_count, unpack
from edgemoe.kernels.operations import Cache, Floats, Integers
from edgemoe.kernels.stepwise import StepwiseBackend


def quantise_activations(values: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """Round each group of 32 activations to int8: `(T, columns)` to `(T, groups, 32)` and scales `(T, groups)`.

    scale = largest magnitude / 127; value = round half to even of x * (127 / largest magnitude).
    """
    tokens, columns = values.shape
    groups = group_count(columns)
    padded = np.zeros((tokens, groups * GROUP_COLUMNS), np.float32)
    padded[:, :columns] = values
    grouped = padded.reshape(tokens, groups, GROUP_COLUMNS)
    largest = np.abs(grouped).max(axis=2)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    return np.rint(grouped * inverse[:, :, None]).astype(np.int8), largest / np.float32(127)


def matmul(values: Floats, matrix: Matrix) -> Floats:
    """`(T, columns)` times the transpose of `(rows, columns)`: `(T, rows)`."""
    blocks = unpack(matrix.data, matrix.format, matrix.rows, matrix.columns)
    if not matrix.format.quantised:
        return values @ dequantise(blocks).T
    assert blocks.scales is not None
    quantised, scales = quantise_activations(values)
    zero_point = 8 if matrix.format.name == "q4" else 0
    groups = group_count(matrix.columns)
    weights = np.zeros((matrix.rows, groups * GROUP_COLUMNS), np.float32)
    weights[:, : matrix.columns] = blocks.values.astype(np.float32) - zero_point
    # Integers below 2**24 are exact in float32, and float32 has a fast matrix product.
    dots = np.einsum("tgc,rgc->trg", quantised.astype(np.float32), weights.reshape(-1, groups, GROUP_COLUMNS), optimize=True)
    product = (dots * blocks.scales.astype(np.float32)[None] * scales[:, None]).sum(axis=2)
    if blocks.minimums is not None:
        sums = quantised.astype(np.float32).sum(axis=2) * scales
        product = product + sums @ blocks.minimums.astype(np.float32).T
    return product.astype(np.float32)


def embed(ids: Integers, matrix: Matrix, scale: float) -> Floats:
    """Rows of the embedding: `(T,)` to `(T, D)`."""
    panel_bytes = matrix.format.panel_bytes(matrix.columns)
    panels = matrix.data.reshape(panel_count(matrix.rows), panel_bytes)
    rows = [
        dequantise(unpack(panels[i // PANEL_ROWS], matrix.format, PANEL_ROWS, matrix.columns))[i % PANEL_ROWS]
        for i in ids.tolist()
    ]
    return np.stack(rows) * np.float32(scale)


def rms_norm(values: Floats, weight: Floats, epsilon: float) -> Floats:
    """Root-mean-square norm over the last axis (Zhang and Sennrich 2019)."""
    mean_square = np.mean(np.square(values), axis=-1, keepdims=True, dtype=np.float32)
    normed: Floats = values * (np.float32(1) / np.sqrt(mean_square + np.float32(epsilon))) * weight
    return normed


def rope(values: Floats, cosine: Floats, sine: Floats) -> Floats:
    """Rotary positions (Su et al. 2021), halves form: values `(T, heads, W)`, tables `(T, W / 2)`."""
    half = values.shape[2] // 2
    first, second = values[:, :, :half], values[:, :, half:]
    cosine, sine = cosine[:, None, :], sine[:, None, :]
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=2)


def attention(query: Floats, key_cache: Cache, value_cache: Cache, position: int, scale: float) -> Floats:
    """Causal grouped-query attention: query `(T, H, W)`, caches `(G, C, W)`; returns `(T, H, W)`."""
    tokens, heads, _ = query.shape
    group = heads // key_cache.shape[0]
    length = position + tokens
    keys = np.repeat(key_cache[:, :length].astype(np.float32), group, axis=0)
    values = np.repeat(value_cache[:, :length].astype(np.float32), group, axis=0)
    scores = np.einsum("thw,hcw->htc", query, keys, optimize=True) * np.float32(scale)
    future = np.arange(length)[None, :] > position + np.arange(tokens)[:, None]
    scores[:, future] = -np.inf
    return np.einsum("htc,hcw->thw", softmax(scores), values, optimize=True)


def softmax(values: Floats) -> Floats:
    """Softmax over the last axis."""
    exponentials = np.exp(values - values.max(axis=-1, keepdims=True))
    result: Floats = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return result


def route(logits: Floats, count: int, renormalise: bool) -> tuple[Integers, Floats]:
    """Experts `(T, K)` of largest logit, the lower number on a tie, and their weights `(T, K)`."""
    chosen = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    if renormalise:
        weights = softmax(np.take_along_axis(logits, chosen, axis=1))
    else:
        weights = np.take_along_axis(softmax(logits), chosen, axis=1)
    return chosen.astype(np.int32), weights


def gated_ffn(values: Floats, gate_up: Matrix, down: Matrix) -> Floats:
    """SwiGLU (Shazeer 2020): `down (silu(gate x) * (up x))`, `(T, D)` to `(T, D)`."""
    both = matmul(values, gate_up).reshape(len(values), -1, 2, PANEL_ROWS)
    width = down.columns
    gate = both[:, :, 0].reshape(len(values), -1)[:, :width]
    up = both[:, :, 1].reshape(len(values), -1)[:, :width]
    with np.errstate(over="ignore"):  # exp(-gate) may be infinite; silu is then 0, as it should be
        hidden = gate / (np.float32(1) + np.exp(-gate)) * up
    return matmul(hidden, down)


def combine(routed: Floats | None, weights: Floats | None, shared: Floats | None, shared_gate: Floats | None) -> Floats | float:
    """The output of an MoE block: routed `(T, K, D)`, weights `(T, K)`, shared `(T, D)`, gate `(T, 1)`."""
    total: Floats | float = 0.0
    if routed is not None and weights is not None:
        total = weights[:, 0, None] * routed[:, 0]
        for k in range(1, routed.shape[1]):
            total = total + weights[:, k, None] * routed[:, k]
    if shared is not None:
        with np.errstate(over="ignore"):
            gate = 1 if shared_gate is None else np.float32(1) / (np.float32(1) + np.exp(-shared_gate))
        total = total + gate * shared
    return total


class ReferenceBackend(StepwiseBackend):
    """The reference as a backend: slow, and right by definition."""

    name = "reference"
    matmul = staticmethod(matmul)
    embed = staticmethod(embed)
    rms_norm = staticmethod(rms_norm)
    rope = staticmethod(rope)
    attention = staticmethod(attention)
    route = staticmethod(route)
    gated_ffn = staticmethod(gated_ffn)
    combine = staticmethod(combine)
