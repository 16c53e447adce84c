"""The reference of the operations on rows: norms, rotary positions, gates, convolution, delta rule, mixing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.kernels import operations as op
from edgemoe.kernels import state_operations as so
from edgemoe.kernels.definition import LARGEST_EXTENT, Sizes
from edgemoe.kernels.formats import PANEL_ROWS
from edgemoe.kernels.operations import Floats, Integers
from edgemoe.kernels.reference.common import check_each, sigmoid, silu, single
from edgemoe.kernels.stepwise import StepwiseBackend, means


def rms_norm(values: Floats, weight: Floats | None, epsilon: float, gate: Floats | None = None) -> Floats:
    """Root-mean-square norm over the last axis (Zhang and Sennrich 2019), times the SiLU of a gate if there is one.

    The weight is `(W,)`, or `(heads, W)` for values `(T, heads, W)` whose runs have weights of their own.
    """
    exact = values.astype(np.float64)
    mean_square = np.mean(np.square(exact), axis=-1, keepdims=True)
    normed = exact / np.sqrt(mean_square + epsilon) * (1.0 if weight is None else weight)
    return single(normed if gate is None else normed * silu(gate.astype(np.float64)))


@means(op.RmsNorm, "rms_norm")
def _rms_norm(kernels: Any, o: op.RmsNorm, tokens: int) -> None:
    heads = o.input[:tokens].reshape(tokens, o.heads, -1)
    gate = None if o.gate is None else o.gate[:tokens].reshape(heads.shape)
    weight = o.weight if o.weight is None or o.own_weights == 1 else o.weight.reshape(o.heads, -1)
    o.output[:tokens] = kernels.rms_norm(heads, weight, o.epsilon, gate).reshape(tokens, -1)


def layer_norm(values: Floats, weight: Floats, epsilon: float, bias: Floats | None = None) -> Floats:
    """Layer norm over the last axis (Ba, Kiros and Hinton 2016)."""
    exact = values.astype(np.float64)
    centred = exact - exact.mean(axis=-1, keepdims=True)
    normed = centred / np.sqrt(np.mean(np.square(centred), axis=-1, keepdims=True) + epsilon) * weight
    return single(normed if bias is None else normed + bias)


@means(op.LayerNorm, "layer_norm")
def _layer_norm(kernels: Any, o: op.LayerNorm, tokens: int) -> None:
    o.output[:tokens] = kernels.layer_norm(o.input[:tokens], o.weight, o.epsilon, o.bias)


def rope(
    values: Floats, cosine: Floats, sine: Floats, neighbours: bool = False, last: bool = False, back: bool = False
) -> Floats:
    """Rotary positions (Su et al. 2021): values `(T, heads, W)`, tables `(T, R / 2)`; R is at most W."""
    rotated = 2 * cosine.shape[1]
    exact = values.astype(np.float64)
    turning = np.arange(rotated) + (values.shape[2] - rotated if last else 0)
    parts = (turning[::2], turning[1::2]) if neighbours else np.split(turning, 2)
    if back:
        sine = -sine
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
    turned = kernels.rope(heads, o.cosine[positions], o.sine[positions], o.neighbours, o.last, o.back)
    o.values[:tokens] = turned.reshape(tokens, -1)


def scale_by_position(values: Floats, factors: Floats) -> Floats:
    """Rows `(T, M)`, each times its own factor `(T,)`."""
    scaled: Floats = values * factors[:, None]
    return scaled


@means(op.ScaleByPosition, "scale_by_position")
def _scale_by_position(kernels: Any, o: op.ScaleByPosition, tokens: int) -> None:
    positions = o.positions[:tokens]
    check_each("position", positions, len(o.factors))
    o.values[:tokens] = kernels.scale_by_position(o.values[:tokens], o.factors[positions])


def clip(values: Floats, limit: float) -> Floats:
    """Each number held to `-limit .. limit`; NaNs stay."""
    held: Floats = np.clip(values, np.float32(-limit), np.float32(limit))
    return held


@means(op.Clip, "clip")
def _clip(kernels: Any, o: op.Clip, tokens: int) -> None:
    o.values[:tokens] = kernels.clip(o.values[:tokens], o.limit)


def short_conv(
    values: Floats, taps: Floats, bias: Floats | None, earlier: Floats, dilation: int = 1
) -> tuple[Floats, Floats]:
    """Convolve neighbouring rows of one sequence: values `(T, 3D)` or `(T, D)`, taps `(D, length)`.

    `earlier` is `u` of the `(length - 1) * dilation` positions before the first row. Returns the output and `u`,
    `(T, D)`.
    """
    before, between, inputs = np.split(values, 3, axis=1) if values.shape[1] > len(taps) else (None, None, values)
    added = inputs if before is None else before * inputs
    exact = np.concatenate([earlier, added]).astype(np.float64)
    sums = np.zeros(added.shape) if bias is None else np.tile(bias.astype(np.float64), (len(added), 1))
    for tap in range(taps.shape[1]):
        sums += taps[:, tap] * exact[tap * dilation : tap * dilation + len(added)]
    return single(silu(sums) if between is None else between * sums), added


def segments(positions: Integers, sequences: Integers) -> list[npt.NDArray[np.int64]]:
    """The rows of a run in segments: rows next to one another, of neighbouring positions of one sequence."""
    breaks = np.flatnonzero((np.diff(positions) != 1) | (np.diff(sequences) != 0)) + 1
    return np.split(np.arange(len(positions)), breaks)


def _short_conv_scratch(kernels: StepwiseBackend, o: so.ShortConv, sizes: Sizes) -> int:
    return kernels.element_scratch_bytes * (sizes.rows + sizes.letters["length"] * o.dilation) * 3 * sizes.letters["D"]


@means(so.ShortConv, "short_conv", _short_conv_scratch)
def _short_conv(kernels: Any, o: so.ShortConv, tokens: int) -> None:
    positions, sequences = o.positions[:tokens], o.sequences[:tokens]
    check_each("sequence", sequences, len(o.inputs))
    check_each("position", positions, LARGEST_EXTENT)
    taps, ring = o.taps.reshape(o.output.shape[1], -1), o.inputs.shape[1]
    for rows in segments(positions, sequences):
        inputs, first = o.inputs[sequences[rows[0]]], int(positions[rows[0]])
        before = np.arange(first - (taps.shape[1] - 1) * o.dilation, first)
        earlier = np.where(before[:, None] >= 0, inputs[before % ring], np.float32(0))
        o.output[rows], added = kernels.short_conv(o.input[rows], taps, o.bias, earlier, o.dilation)
        kept = slice(-min(len(rows), ring), None)
        inputs[positions[rows[kept]] % ring] = added[kept]


def gate(values: Floats, numbers: Floats, gating: op.GateFunction) -> Floats:
    """Values `(T, runs, width)`, each run times what the gating makes of its own of the numbers `(T, runs)`."""
    exact = numbers.astype(np.float64)
    return single(values * _factors(exact, gating)[:, :, None])


def _factors(numbers: npt.NDArray[np.float64], gating: op.GateFunction) -> npt.NDArray[np.float64]:
    if gating == "softplus":
        return np.logaddexp(0, numbers)
    if gating == "identity":
        return numbers
    return sigmoid(numbers) if gating == "sigmoid" else silu(numbers)


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


def delta_rule(
    query: Floats, key: Floats, value: Floats, decay: Floats, strength: Floats, epsilon: float, state: Floats
) -> Floats:
    """The rows of a segment: query and key `(T, H, W)`, value `(T, H, Wv)`, decay `(T, H, 1 or W)`, strength `(T, H)`.

    `state (H, W, Wv)` is rounded to float32 after each row, so that cuts of a segment change no bit.
    """
    queries, keys, values = (array.astype(np.float64) for array in (query, key, value))
    queries /= np.sqrt(np.square(queries).sum(axis=-1, keepdims=True) + epsilon) * math.sqrt(query.shape[-1])
    keys /= np.sqrt(np.square(keys).sum(axis=-1, keepdims=True) + epsilon)
    output = np.empty(value.shape, np.float64)
    for t in range(len(values)):
        decayed = state * decay[t, :, :, None].astype(np.float64)
        error = values[t] - np.matmul(keys[t][:, None, :], decayed)[:, 0]
        correction = error * strength[t, :, None].astype(np.float64)
        state[...] = single(decayed + keys[t][:, :, None] * correction[:, None, :])
        output[t] = np.matmul(queries[t][:, None, :], state.astype(np.float64))[:, 0]
    return single(output)


def _delta_rule_scratch(kernels: StepwiseBackend, o: so.DeltaRule, sizes: Sizes) -> int:
    H, G, W, Wv = (sizes.letters[letter] for letter in ("H", "G", "W", "Wv"))
    of_row = H * Wv + 2 * G * W + 2 * H
    elements = math.prod(o.states.shape[1:]) + sizes.rows * (of_row + 2 * sizes.letters["decays"])
    return kernels.element_scratch_bytes * elements * -(-H // G)


@means(so.DeltaRule, "delta_rule", _delta_rule_scratch)
def _delta_rule(kernels: Any, o: so.DeltaRule, tokens: int) -> None:
    positions, sequences = o.positions[:tokens], o.sequences[:tokens]
    check_each("sequence", sequences, len(o.states))
    check_each("position", positions, LARGEST_EXTENT)
    _, H, _, W = o.states.shape
    G, Wv = o.key_heads, o.output.shape[1] // H
    if o.keys is not None and o.values is not None:
        queries, keys, values = o.mixed[:tokens], o.keys[:tokens], o.values[:tokens]
    else:
        queries, keys, values = np.split(o.mixed[:tokens], [G * W, 2 * G * W], axis=1)
    of_head = np.arange(H) % G if o.in_turn else np.arange(H) // (H // G)
    query, key = (heads.reshape(tokens, G, W)[:, of_head] for heads in (queries, keys))
    value = values.reshape(tokens, H, Wv)
    inputs = (o.decay_input[:tokens].astype(np.float64) + o.decay_bias).reshape(tokens, H, -1)
    rate = o.rate[:, None].astype(np.float64)
    exponents = o.lower_bound * sigmoid(-rate * inputs) if o.lower_bound else rate * np.logaddexp(0, inputs)
    decay = single(np.exp(exponents))
    strength = single(sigmoid(o.strength[:tokens].astype(np.float64)))
    for rows in segments(positions, sequences):
        parts = (array[rows] for array in (query, key, value, decay, strength))
        with _states(o.states[sequences[rows[0]]], Wv, fresh=positions[rows[0]] == 0) as state:
            o.output[rows] = kernels.delta_rule(*parts, o.epsilon, state).reshape(len(rows), -1)


@contextmanager
def _states(kept: Floats, width: int, fresh: bool) -> Iterator[Floats]:
    """The matrices `(H, W, Wv)` of a sequence, which are kept in panels `(H, Wv rounded up, W)`; empty if `fresh`."""
    heads, columns, keys = kept.shape
    panels = kept.reshape(heads, columns // PANEL_ROWS, keys, PANEL_ROWS)
    if fresh:
        panels[...] = 0
    state = panels.swapaxes(1, 2).reshape(heads, keys, columns)[:, :, :width].copy()
    yield state
    padded = np.zeros((heads, keys, columns), np.float32)
    padded[:, :, :width] = state
    panels[...] = padded.reshape(heads, keys, -1, PANEL_ROWS).swapaxes(1, 2)


def selective_scan(
    value: Floats, keys: Floats, queries: Floats, step: Floats, rate: Floats, skip: Floats, state: Floats
) -> Floats:
    """The rows of a segment: value `(T, H, Wv)`, keys (`B`) and queries (`C`) `(T, H, W)`, step (`dt`) `(T, H)`.

    `state (H, W, Wv)` is rounded to float32 after each row, so that cuts of a segment change no bit.
    """
    exact = value.astype(np.float64)
    added = exact * step[:, :, None]
    decay = np.exp(rate * step.astype(np.float64))
    output = np.empty(value.shape, np.float64)
    for t in range(len(value)):
        state[...] = single(decay[t, :, None, None] * state + keys[t][:, :, None] * added[t][:, None, :])
        output[t] = np.matmul(queries[t][:, None, :].astype(np.float64), state.astype(np.float64))[:, 0]
    return single(output + skip[:, None] * exact)


def _selective_scan_scratch(kernels: StepwiseBackend, o: so.SelectiveScan, sizes: Sizes) -> int:
    elements = math.prod(o.states.shape[1:]) + sizes.rows * (math.prod(o.mixed.shape[1:]) + 4 * sizes.letters["H"])
    return kernels.element_scratch_bytes * elements * -(-sizes.letters["H"] // sizes.letters["G"])


@means(so.SelectiveScan, "selective_scan", _selective_scan_scratch)
def _selective_scan(kernels: Any, o: so.SelectiveScan, tokens: int) -> None:
    positions, sequences = o.positions[:tokens], o.sequences[:tokens]
    check_each("sequence", sequences, len(o.states))
    check_each("position", positions, LARGEST_EXTENT)
    (_, H, _, W), G = o.states.shape, o.groups
    Wv = o.output.shape[1] // H
    if o.step is None or o.step_bias is None:
        queries, keys, values = np.split(o.mixed[:tokens], [G * W, 2 * G * W], axis=1)
        step = np.ones((tokens, H), np.float32)
    else:
        values, keys, queries = np.split(o.mixed[:tokens], [H * Wv, H * Wv + G * W], axis=1)
        step = single(np.logaddexp(0, o.step[:tokens].astype(np.float64) + o.step_bias))
    value = values.reshape(tokens, H, Wv)
    key, query = (np.repeat(part.reshape(tokens, G, W), H // G, axis=1) for part in (keys, queries))
    skip = np.zeros(H, np.float32) if o.skip is None else o.skip
    for rows in segments(positions, sequences):
        parts = (array[rows] for array in (value, key, query, step))
        with _states(o.states[sequences[rows[0]]], Wv, fresh=positions[rows[0]] == 0) as state:
            o.output[rows] = kernels.selective_scan(*parts, o.rate, skip, state).reshape(len(rows), -1)


def channel_scan(
    value: Floats, keys: Floats, queries: Floats, step: Floats, rate: Floats, skip: Floats, state: Floats
) -> Floats:
    """The rows of a segment: value and step (`dt`) `(T, I)`, keys (`B`) and queries (`C`) `(T, W)`, rate `(W, I)`.

    `state (W, I)` is rounded to float32 after each row, so that cuts of a segment change no bit.
    """
    exact = value.astype(np.float64)
    output = np.empty(value.shape, np.float64)
    for t in range(len(value)):
        decay = np.exp(rate * step[t].astype(np.float64))
        state[...] = single(decay * state + keys[t][:, None] * (step[t] * exact[t]))
        output[t] = queries[t].astype(np.float64) @ state
    return single(output + skip * exact)


def _channel_scan_scratch(kernels: StepwiseBackend, o: so.ChannelScan, sizes: Sizes) -> int:
    channels, width = sizes.letters["I"], sizes.letters["W"]
    return kernels.element_scratch_bytes * (3 * channels * width + sizes.rows * (4 * channels + 2 * width))


@means(so.ChannelScan, "channel_scan", _channel_scan_scratch)
def _channel_scan(kernels: Any, o: so.ChannelScan, tokens: int) -> None:
    positions, sequences = o.positions[:tokens], o.sequences[:tokens]
    check_each("sequence", sequences, len(o.states))
    check_each("position", positions, LARGEST_EXTENT)
    channels = o.output.shape[1]
    step = single(np.logaddexp(0, o.step[:tokens].astype(np.float64)))
    rate = np.ascontiguousarray(o.rate.reshape(channels, -1).T)
    for rows in segments(positions, sequences):
        parts = o.input[rows], o.keys[rows], o.queries[rows], step[rows], rate, o.skip
        with _states(o.states[sequences[rows[0]]][None], channels, fresh=positions[rows[0]] == 0) as state:
            o.output[rows] = kernels.channel_scan(*parts, state[0])


def mix(
    base: Floats,
    result: Floats,
    scale: float,
    keep: Floats | None,
    share: Floats | None,
    shift: Floats | None,
    factor: Floats | None,
) -> Floats:
    """The stream after a block: base and result `(T, D)`, `keep`, `share` and `shift` `(D,)`, factor `(1,)`."""
    added = float(np.float32(scale)) * result.astype(np.float64) * (1.0 if share is None else share)
    total = base.astype(np.float64) * (1.0 if keep is None else keep) + added + (0.0 if shift is None else shift)
    return single(total if factor is None else total * factor)


@means(op.Mix, "mix", lambda kernels, o, sizes: kernels.element_scratch_bytes * math.prod(o.output.shape))
def _mix(kernels: Any, o: op.Mix, tokens: int) -> None:
    o.output[:tokens] = kernels.mix(o.base[:tokens], o.result[:tokens], o.scale, o.keep, o.share, o.shift, o.factor)
