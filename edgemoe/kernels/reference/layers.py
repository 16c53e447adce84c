"""The reference of the operations on rows of activations: norms, rotary positions, gates, convolution, mixing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgemoe.kernels import operations as op
from edgemoe.kernels.definition import LARGEST_EXTENT, Sizes
from edgemoe.kernels.operations import Floats
from edgemoe.kernels.reference.common import check_each, sigmoid, single
from edgemoe.kernels.stepwise import StepwiseBackend, means


def rms_norm(values: Floats, weight: Floats, epsilon: float) -> Floats:
    """Root-mean-square norm over the last axis (Zhang and Sennrich 2019)."""
    exact = values.astype(np.float64)
    mean_square = np.mean(np.square(exact), axis=-1, keepdims=True)
    return single(exact / np.sqrt(mean_square + epsilon) * weight)


@means(op.RmsNorm, "rms_norm")
def _rms_norm(kernels: Any, o: op.RmsNorm, tokens: int) -> None:
    heads = o.input[:tokens].reshape(tokens, o.heads, -1)
    o.output[:tokens] = kernels.rms_norm(heads, o.weight, o.epsilon).reshape(tokens, -1)


def layer_norm(values: Floats, weight: Floats, epsilon: float) -> Floats:
    """Layer norm over the last axis, without a bias (Ba, Kiros and Hinton 2016)."""
    exact = values.astype(np.float64)
    centred = exact - exact.mean(axis=-1, keepdims=True)
    return single(centred / np.sqrt(np.mean(np.square(centred), axis=-1, keepdims=True) + epsilon) * weight)


@means(op.LayerNorm, "layer_norm")
def _layer_norm(kernels: Any, o: op.LayerNorm, tokens: int) -> None:
    o.output[:tokens] = kernels.layer_norm(o.input[:tokens], o.weight, o.epsilon)


def rope(values: Floats, cosine: Floats, sine: Floats, neighbours: bool = False) -> Floats:
    """Rotary positions (Su et al. 2021): values `(T, heads, W)`, tables `(T, R / 2)`; R is at most W."""
    rotated = 2 * cosine.shape[1]
    exact = values.astype(np.float64)
    parts = (slice(0, rotated, 2), slice(1, rotated, 2)) if neighbours else np.split(np.arange(rotated), 2)
    first, second = (exact[:, :, part] for part in parts)
    cosine, sine = cosine[:, None, :], sine[:, None, :]
    turned = exact.copy()
    turned[:, :, parts[0]] = first * cosine - second * sine
    turned[:, :, parts[1]] = second * cosine + first * sine
    return single(turned)


@means(op.Rope, "rope")
def _rope(kernels: Any, o: op.Rope, tokens: int) -> None:
    positions = o.positions[:tokens]
    check_each("position", positions, len(o.cosine))
    heads = o.values[:tokens].reshape(tokens, o.heads, -1)
    turned = kernels.rope(heads, o.cosine[positions], o.sine[positions], o.neighbours)
    o.values[:tokens] = turned.reshape(tokens, -1)


def clip(values: Floats, limit: float) -> Floats:
    """Each number held to `-limit .. limit`; NaNs stay."""
    held: Floats = np.clip(values, np.float32(-limit), np.float32(limit))
    return held


@means(op.Clip, "clip")
def _clip(kernels: Any, o: op.Clip, tokens: int) -> None:
    o.values[:tokens] = kernels.clip(o.values[:tokens], o.limit)


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
    return single(between * sums), added


def _short_conv_scratch(kernels: StepwiseBackend, o: op.ShortConv, sizes: Sizes) -> int:
    return kernels.element_scratch_bytes * (sizes.rows + sizes.letters["length"]) * 3 * sizes.letters["D"]


@means(op.ShortConv, "short_conv", _short_conv_scratch)
def _short_conv(kernels: Any, o: op.ShortConv, tokens: int) -> None:
    positions, sequences = o.positions[:tokens], o.sequences[:tokens]
    check_each("sequence", sequences, len(o.inputs))
    check_each("position", positions, LARGEST_EXTENT)
    taps, ring = o.taps.reshape(o.output.shape[1], -1), o.inputs.shape[1]
    breaks = np.flatnonzero((np.diff(positions) != 1) | (np.diff(sequences) != 0)) + 1
    for rows in np.split(np.arange(tokens), breaks):
        inputs, first = o.inputs[sequences[rows[0]]], int(positions[rows[0]])
        before = np.arange(first - taps.shape[1] + 1, first)
        earlier = np.where(before[:, None] >= 0, inputs[before % ring], np.float32(0))
        o.output[rows], added = kernels.short_conv(o.gates[rows], taps, o.bias, earlier)
        kept = slice(-min(len(rows), ring), None)
        inputs[positions[rows[kept]] % ring] = added[kept]


def gate(values: Floats, numbers: Floats, gating: op.GateFunction) -> Floats:
    """Values `(T, runs, width)`, each run times the sigmoid or softplus of its own of the numbers `(T, runs)`."""
    exact = numbers.astype(np.float64)
    factors = sigmoid(exact) if gating == "sigmoid" else np.logaddexp(0, exact)
    return single(values * factors[:, :, None])


@means(op.Gate, "gate")
def _gate(kernels: Any, o: op.Gate, tokens: int) -> None:
    runs = o.values[:tokens].reshape(tokens, o.gate.shape[1], -1)
    o.values[:tokens] = kernels.gate(runs, o.gate[:tokens], o.gating).reshape(tokens, -1)


def soft_cap(values: Floats, limit: float) -> Floats:
    """The numbers `(T, M)` within the limit: see `op.SoftCap`."""
    return single(float(np.float32(limit)) * np.tanh(values.astype(np.float64) / float(np.float32(limit))))


@means(op.SoftCap, "soft_cap")
def _soft_cap(kernels: Any, o: op.SoftCap, tokens: int) -> None:
    o.values[:tokens] = kernels.soft_cap(o.values[:tokens], o.limit)


def mix(
    base: Floats, result: Floats, scale: float, keep: Floats | None, share: Floats | None, shift: Floats | None
) -> Floats:
    """The stream after a block: base and result `(T, D)`, factors and shift `(D,)`."""
    added = float(np.float32(scale)) * result.astype(np.float64) * (1.0 if share is None else share)
    return single(base.astype(np.float64) * (1.0 if keep is None else keep) + added + (0.0 if shift is None else shift))


@means(op.Mix, "mix", lambda kernels, o, sizes: kernels.element_scratch_bytes * math.prod(o.output.shape))
def _mix(kernels: Any, o: op.Mix, tokens: int) -> None:
    o.output[:tokens] = kernels.mix(o.base[:tokens], o.result[:tokens], o.scale, o.keep, o.share, o.shift)
