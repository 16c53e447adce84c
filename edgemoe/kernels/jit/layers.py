"""Norms, rotary positions, convolution, activations, gates and mixing, compiled by Numba.

Letters as in `operations.py`, meanings as in `reference`. Each token is computed alone.
"""

from __future__ import annotations

import math

import numpy as np

from edgemoe.kernels.formats import PANEL_ROWS
from edgemoe.kernels.jit.compile import jit
from edgemoe.kernels.operations import GELU_CUBIC, GELU_LINEAR, Floats

_ZERO = np.float32(0)
_ONE = np.float32(1)
_GELU_LINEAR, _GELU_CUBIC = np.float32(GELU_LINEAR), np.float32(GELU_CUBIC)


@jit
def rms_norm(values: Floats, weight: Floats | None, epsilon: float, gate: Floats | None, output: Floats) -> None:
    """Root-mean-square norm: values, gate and output `(runs, width)`, weight `(1 or heads, width)`, used in turn."""
    runs, width = values.shape
    for run in range(runs):
        squares = 0.0
        for c in range(width):
            squares += np.float64(values[run, c]) * np.float64(values[run, c])
        factor = np.float32(1.0 / math.sqrt(squares / width + epsilon))
        for c in range(width):
            normed = values[run, c] * factor
            output[run, c] = normed if weight is None else normed * weight[run % len(weight), c]
            if gate is not None:
                x = gate[run, c]
                output[run, c] *= x / (_ONE + np.float32(math.exp(-x)))


@jit
def layer_norm(values: Floats, weight: Floats, epsilon: float, bias: Floats | None, output: Floats) -> None:
    """Layer norm: values and output `(T, D)`, weight and bias `(D,)`."""
    tokens, width = values.shape
    for t in range(tokens):
        total, squares = 0.0, 0.0
        for c in range(width):
            total += np.float64(values[t, c])
        mean = total / width
        for c in range(width):
            squares += (values[t, c] - mean) ** 2
        factor = 1.0 / math.sqrt(squares / width + epsilon)
        for c in range(width):
            output[t, c] = np.float32((values[t, c] - mean) * factor) * weight[c]
            if bias is not None:
                output[t, c] += bias[c]


@jit
def soft_cap(values: Floats, limit: np.float32, output: Floats) -> None:
    """Values and output `(T, M)`: see `operations.SoftCap`."""
    for t in range(len(values)):
        for c in range(values.shape[1]):
            output[t, c] = limit * np.float32(math.tanh(values[t, c] / limit))


@jit
def rope(values: Floats, cosine: Floats, sine: Floats, neighbours: bool, start: int, output: Floats) -> None:
    """Rotary positions: values and output `(T, heads, W)`, tables `(T, R / 2)`; the R channels from `start` on turn."""
    tokens, heads, width = values.shape
    half = cosine.shape[1]
    for t in range(tokens):
        for head in range(heads):
            for i in range(width):
                if i < start or i >= start + 2 * half:
                    output[t, head, i] = values[t, head, i]
            for i in range(half):
                first, second = (2 * i, 2 * i + 1) if neighbours else (i, half + i)
                a, b = values[t, head, start + first], values[t, head, start + second]
                output[t, head, start + first] = a * cosine[t, i] - b * sine[t, i]
                output[t, head, start + second] = b * cosine[t, i] + a * sine[t, i]


@jit
def clip(values: Floats, limit: np.float32, output: Floats) -> None:
    """Hold each number of `(T, N)` to `-limit .. limit`; NaNs stay."""
    for t in range(len(values)):
        for i in range(values.shape[1]):
            value = values[t, i]
            output[t, i] = limit if value > limit else -limit if value < -limit else value


@jit
def short_conv(
    values: Floats, taps: Floats, bias: Floats | None, dilation: int, inputs: Floats, output: Floats
) -> None:
    """Fill in `inputs` behind its first `(length - 1) * dilation` rows, and convolve them."""
    width, length = taps.shape
    gated = values.shape[1] > width
    for t in range(len(values)):
        added, sums, row = inputs[t + (length - 1) * dilation], output[t], values[t]
        for i in range(width):
            added[i] = row[i] * row[2 * width + i] if gated else row[i]
            total = np.float32(0) if bias is None else bias[i]
            for tap in range(length):
                total += taps[i, tap] * inputs[t + tap * dilation, i]
            sums[i] = row[width + i] * total if gated else total / (_ONE + np.float32(math.exp(-total)))


@jit
def delta_rule(
    query: Floats, key: Floats, value: Floats, decay: Floats, strength: Floats, state: Floats, output: Floats
) -> None:
    """The rows of a segment, with query and key of unit length; see `reference.delta_rule`.

    Each row of a state that has a decay of its own is decayed as it is read; else their sum is.
    """
    tokens, heads, width = key.shape
    values, by_channel = value.shape[2], decay.shape[2] > 1
    for h in range(heads):
        for t in range(tokens):
            kept, errors, sums = state[h], np.zeros(values, np.float32), np.zeros(values, np.float32)
            for i in range(width):
                k = key[t, h, i] * decay[t, h, i] if by_channel else key[t, h, i]
                for c in range(values):
                    errors[c] += k * kept[i, c]
            of_sum = _ONE if by_channel else decay[t, h, 0]
            for c in range(values):
                errors[c] = strength[t, h] * (value[t, h, c] - of_sum * errors[c])
            for i in range(width):
                k, q, factor = key[t, h, i], query[t, h, i], decay[t, h, i if by_channel else 0]
                for c in range(values):
                    kept[i, c] = factor * kept[i, c] + k * errors[c]
                    sums[c] += q * kept[i, c]
            output[t, h] = sums


@jit
def selective_scan(
    value: Floats,
    keys: Floats,
    queries: Floats,
    step: Floats,
    decay: Floats,
    skip: Floats,
    state: Floats,
    output: Floats,
) -> None:
    """The rows of a segment, with the decay of each head; see `reference.selective_scan`."""
    tokens, heads, width = keys.shape
    values = value.shape[2]
    for h in range(heads):
        for t in range(tokens):
            kept, added, sums = state[h], step[t, h] * value[t, h], np.zeros(values, np.float32)
            for i in range(width):
                k, q = keys[t, h, i], queries[t, h, i]
                for c in range(values):
                    kept[i, c] = decay[t, h] * kept[i, c] + k * added[c]
                    sums[c] += q * kept[i, c]
            for c in range(values):
                output[t, h, c] = sums[c] + skip[h] * value[t, h, c]


@jit
def channel_scan(
    value: Floats,
    keys: Floats,
    queries: Floats,
    step: Floats,
    rate: Floats,
    skip: Floats,
    state: Floats,
    output: Floats,
) -> None:
    """The rows of a segment; see `reference.channel_scan`."""
    tokens, channels = value.shape
    for t in range(tokens):
        sums = np.zeros(channels, np.float32)
        for i in range(keys.shape[1]):
            k, q = keys[t, i], queries[t, i]
            for c in range(channels):
                decay = np.float32(math.exp(rate[i, c] * step[t, c]))
                state[i, c] = decay * state[i, c] + k * (step[t, c] * value[t, c])
                sums[c] += q * state[i, c]
        for c in range(channels):
            output[t, c] = sums[c] + skip[c] * value[t, c]


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
def capped_gate(gate_up: Floats, limit: np.float32, hidden: Floats) -> None:
    """As `gate`, of `capped_silu`: see `operations.Activation`."""
    tokens, width = hidden.shape
    for t in range(tokens):
        for column in range(width):
            at = column // PANEL_ROWS * (2 * PANEL_ROWS) + column % PANEL_ROWS
            g, u = gate_up[t, at], gate_up[t, at + PANEL_ROWS]
            g = g / (_ONE + np.float32(math.exp(-g)))
            g = limit if limit < g else g  # a NaN stays one
            u = limit if limit < u else u
            u = -limit if u < -limit else u
            hidden[t, column] = g * u


@jit
def gelu_gate(gate_up: Floats, hidden: Floats) -> None:
    """As `gate`, of `gelu_tanh`: see `operations.Activation`."""
    tokens, width = hidden.shape
    for t in range(tokens):
        for column in range(width):
            at = column // PANEL_ROWS * (2 * PANEL_ROWS) + column % PANEL_ROWS
            g = gate_up[t, at]
            x = g * (g * g * _GELU_CUBIC + _GELU_LINEAR)
            hidden[t, column] = g / (_ONE + np.float32(math.exp(-x))) * gate_up[t, at + PANEL_ROWS]


@jit
def normal_gate(gate_up: Floats, hidden: Floats) -> None:
    """As `gate`, of `gelu`: see `operations.Activation`."""
    tokens, width = hidden.shape
    for t in range(tokens):
        for column in range(width):
            at = column // PANEL_ROWS * (2 * PANEL_ROWS) + column % PANEL_ROWS
            g = gate_up[t, at]
            share = np.float32(0.5 * math.erfc(-g * math.sqrt(0.5)))
            hidden[t, column] = (g * share if g > np.float32(-16) else _ZERO * share) * gate_up[t, at + PANEL_ROWS]


@jit
def relu_gate(gate_up: Floats, squared: bool, hidden: Floats) -> None:
    """As `gate`, of `relu` or, `squared`, of `relu2`: see `operations.Activation`."""
    tokens, width = hidden.shape
    for t in range(tokens):
        for column in range(width):
            at = column // PANEL_ROWS * (2 * PANEL_ROWS) + column % PANEL_ROWS
            g = gate_up[t, at]
            g = _ZERO if g < _ZERO else g  # a NaN stays one
            hidden[t, column] = (g * g if squared else g) * gate_up[t, at + PANEL_ROWS]


@jit
def put_in_turn(products: Floats, start: int, gate_up: Floats) -> None:
    """Puts the products `(T, F)` of one matrix where gate's (`start` 0) or up's (16) are in a `gate_up` product."""
    for t in range(len(products)):
        for column in range(products.shape[1]):
            gate_up[t, column // PANEL_ROWS * (2 * PANEL_ROWS) + column % PANEL_ROWS + start] = products[t, column]


@jit
def add_gate_up_biases(gate_up: Floats, gate: Floats, up: Floats) -> None:
    """Adds the biases `(F,)` of gate and up to a `gate_up` product `(T, 2 * F rounded up to 16)`, in place."""
    for t in range(len(gate_up)):
        for column in range(len(gate)):
            at = column // PANEL_ROWS * (2 * PANEL_ROWS) + column % PANEL_ROWS
            gate_up[t, at] += gate[column]
            gate_up[t, at + PANEL_ROWS] += up[column]


@jit
def gate_runs(values: Floats, numbers: Floats, softplus: bool, identity: bool, silu: bool, output: Floats) -> None:
    """Values and output `(T, runs, width)`, numbers `(T, runs)`: each run times a function of its number."""
    tokens, runs, width = values.shape
    for t in range(tokens):
        for n in range(runs):
            g = numbers[t, n]
            power = np.float32(math.exp(-abs(g) if softplus else -g))
            factor = (g if silu else _ONE) / (_ONE + power)
            if softplus:
                factor = max(g, np.float32(0)) + np.float32(math.log1p(power))
            elif identity:
                factor = g
            for i in range(width):
                output[t, n, i] = values[t, n, i] * factor


@jit
def mix(
    base: Floats,
    result: Floats,
    scale: np.float32,
    keep: Floats | None,
    share: Floats | None,
    shift: Floats | None,
    factor: Floats | None,
    output: Floats,
) -> None:
    """The stream after a block: base, result and output `(T, D)`, `keep`, `share` and `shift` `(D,)`, factor `(1,)`."""
    for t in range(len(base)):
        for c in range(base.shape[1]):
            kept = base[t, c] if keep is None else keep[c] * base[t, c]
            added = scale * result[t, c]
            if share is not None:
                added *= share[c]
            total = kept + added
            if shift is not None:
                total += shift[c]
            output[t, c] = total if factor is None else total * factor[0]
