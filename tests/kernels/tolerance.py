"""How far a backend's results may lie from the reference's: the only place that says so.

The reference stands for the exact value, so each bound is what float32 arithmetic can lose, term by term:
every product and every addition rounds by at most `UNIT` of its result, and a sum of `n` terms in any order
by at most `n * UNIT` of the sum of its terms' magnitudes. A bound is an array of the result's shape.

- f32 and f16 weights are exact in float32; a product rounds once per column.
- q8, q4, q4m and m4: activations are the reference's int8, bit for bit; products within a group are integers, and
  exact; only the groups' results are rounded. A zero point or minimum may be taken out of the sum, so its terms
  count on their own.
- An FFN's hidden values become int8: one that lies nearer to a rounding boundary than its own error may go the
  other way, by one step. The bound allows it exactly there.
- exp is held to `EXPONENTIAL`, a few units in the last place.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.blocks import dequantise, unpack
from edgemoe.kernels.formats import GROUP_COLUMNS, PANEL_ROWS, Matrix, group_count
from edgemoe.kernels.operations import GELU_CUBIC, GELU_LINEAR, SILU, Activation, FfnBiases
from edgemoe.kernels.reference.products import matmul, normal_share, quantise_activations

UNIT = 2.0**-24
EXPONENTIAL = 8 * UNIT
UNDERFLOW = 1e-36
"""Below this a float32 is about to run out of digits (the smallest with all of them is 1.2e-38)."""

Doubles = npt.NDArray[np.float64]


def assert_within(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32], bound: Doubles) -> None:
    """Raises AssertionError where a result is further than its bound from the reference's, or not finite."""
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    # The reference's own last step rounds to float32.
    allowed = bound + UNIT * np.abs(expected.astype(np.float64)) + UNDERFLOW
    distance = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    worst = np.unravel_index(np.argmax(distance / allowed), found.shape)
    assert distance[worst] <= allowed[worst], (
        f"at {tuple(int(i) for i in worst)}: expected {expected[worst]!r}, found {found[worst]!r}, "
        f"{distance[worst] / allowed[worst]:.3g} times the bound of {allowed[worst]:.3g}"
    )


def product(values: npt.NDArray[np.float32], matrix: Matrix) -> Doubles:
    """Bound of `matmul`: `(T, rows)`."""
    inputs = np.abs(values.astype(np.float64))
    if matrix.format.quantised:
        integers, scales = quantise_activations(values)
        grouped = np.abs(integers * scales.astype(np.float64)[:, :, None])
        inputs = grouped.reshape(len(values), -1)[:, : matrix.columns]
    return _rounding(inputs, matrix)


def _rounding(inputs: Doubles, matrix: Matrix) -> Doubles:
    """Bound the rounding error of products with inputs of these magnitudes: `(T, columns)` to `(T, rows)`."""
    dots = group_count(matrix.columns) * GROUP_COLUMNS // matrix.format.factor_columns
    roundings = 3 * (dots + 3) if matrix.format.quantised else matrix.columns + group_count(matrix.columns) + 2
    return roundings * UNIT * (inputs @ _weight_terms(matrix).T)


def _weight_terms(matrix: Matrix) -> Doubles:
    """Magnitudes of weights, with zero points, minimums and offsets counted apart."""
    blocks = unpack(matrix.data, matrix.format, matrix.rows, matrix.columns)
    fmt = blocks.format
    if blocks.scales is None:
        return np.abs(blocks.values.astype(np.float64))
    if not (fmt.zero or fmt.has_minimums or fmt.has_offsets):
        return np.abs(dequantise(blocks).astype(np.float64))

    def spread(numbers: npt.NDArray[np.generic], share: int) -> Doubles:
        return np.repeat(np.abs(numbers.astype(np.float64)), share, axis=1)[:, : matrix.columns]

    factors = spread(blocks.scales, fmt.scale_columns)
    offsets = factors if blocks.minimums is None else spread(blocks.minimums, fmt.scale_columns)
    if blocks.factors is not None:
        factors = factors * spread(blocks.factors, fmt.factor_columns)
    terms = factors * (np.abs(blocks.values.astype(np.float64)) + fmt.zero)
    if blocks.offsets is not None:
        return terms + offsets * spread(blocks.offsets, fmt.factor_columns)
    return terms if blocks.minimums is None else terms + offsets


def linear(
    bound: Doubles,
    product: npt.NDArray[np.float32],
    bias: npt.NDArray[np.float32] | None,
    scale: float,
    before: npt.NDArray[np.float32] | None,
) -> Doubles:
    """Bound of `before + scale * (product + bias)`, given the bound of the product."""
    magnitude = np.abs(product.astype(np.float64)) + (0 if bias is None else np.abs(bias.astype(np.float64)))
    result = (bound + 4 * UNIT * magnitude) * abs(scale)
    return result if before is None else result + UNIT * np.abs(before.astype(np.float64))


def gated_ffn(
    values: npt.NDArray[np.float32],
    gate_up: Matrix,
    down: Matrix,
    biases: FfnBiases | None = None,
    activation: Activation = SILU,
    up_apart: Matrix | None = None,
) -> Doubles:
    """Bound of `gated_ffn` or, of an activation that takes no gate, of `plain_ffn`: `(T, D)`."""
    hidden, slack = _hidden(values, gate_up, down.columns, biases, activation, up_apart)
    weights = np.abs(dequantise(unpack(down.data, down.format, down.rows, down.columns)).astype(np.float64))
    if down.format.quantised:
        slack = _requantised(hidden, slack)
    # What the slack brings is rounded too, by a weight of zero as well, whose zero point is taken out of the sum.
    bound = product(hidden, down) * 2 + slack @ weights.T + _rounding(slack, down)
    return bound if biases is None else linear(bound, matmul(hidden, down), biases.down, 1.0, None)


def _hidden(
    values: npt.NDArray[np.float32],
    gate_up: Matrix,
    width: int,
    biases: FfnBiases | None,
    activation: Activation,
    up_apart: Matrix | None,
) -> tuple[npt.NDArray[np.float32], Doubles]:
    """The hidden values `(T, F)` of an FFN, and their bound."""

    def halves(both: npt.NDArray[np.floating]) -> list[Doubles]:
        panels = both.astype(np.float64).reshape(len(values), -1, 2, PANEL_ROWS)
        return [panels[:, :, half].reshape(len(values), -1)[:, :width] for half in (0, 1)]

    if up_apart is not None:
        gate, up = (matmul(values, matrix).astype(np.float64) for matrix in (gate_up, up_apart))
        gate_slack, up_slack = (product(values, matrix) for matrix in (gate_up, up_apart))
    elif activation.gated:
        gate, up = halves(matmul(values, gate_up))
        gate_slack, up_slack = halves(product(values, gate_up))
    else:
        gate, gate_slack = matmul(values, gate_up).astype(np.float64), product(values, gate_up)
        up, up_slack = np.ones_like(gate), np.zeros_like(gate)
    if biases is not None:
        gate = gate + (biases.gate if activation.gated else biases.up)
        gate_slack = gate_slack + UNIT * np.abs(gate)
        if activation.gated:
            up = up + biases.up
            up_slack = up_slack + UNIT * np.abs(up)
    if activation.limit is not None:  # what is clamped is no further apart than before
        gate = gate if activation.function == "capped_silu" else np.minimum(gate, activation.limit)
        up = np.clip(up, -activation.limit, activation.limit)
    up = up + (activation.offset or 0)
    up_slack = up_slack + UNIT * np.abs(up)
    argument = activation.alpha * gate
    if activation.function == "gelu_tanh":
        argument = gate * (GELU_LINEAR + GELU_CUBIC * np.square(gate))
    with np.errstate(over="ignore"):
        share = 1 / (1 + np.exp(-argument))
    gated = gate * share
    # The slope of either function is at most 1.13. exp's argument is rounded, in silu once, which its slope turns into
    # |gate| units; in gelu_tanh up to five times.
    rounded = EXPONENTIAL + 4 * UNIT + 5 * UNIT * np.abs(argument) * (1 - share) * (activation.function == "gelu_tanh")
    gated_slack = 1.13 * (gate_slack + UNIT * np.abs(gate)) + np.abs(gated) * rounded
    if activation.function == "capped_silu":
        gated = np.minimum(gated, activation.limit)
    if activation.function in ("relu", "relu2"):
        gated, gated_slack = np.maximum(gate, 0), gate_slack
        if activation.function == "relu2":
            gated, gated_slack = gated * gated, (2 * gated + gate_slack) * gate_slack + UNIT * gated * gated
    if activation.function == "gelu":
        gated = normal_share(gate)
        tail = np.maximum(gate, 0) - gated  # which a polynomial and exp's argument round
        gated_slack = 1.13 * gate_slack + UNIT * np.abs(gate) + tail * (EXPONENTIAL + UNIT * (12 + 4 * np.square(gate)))
    hidden = gated * up
    slack = gated_slack * (np.abs(up) + up_slack) + np.abs(gated) * (up_slack + UNIT * np.abs(up))
    return hidden.astype(np.float32), slack + 4 * UNIT * np.abs(hidden) + UNDERFLOW


def _requantised(hidden: npt.NDArray[np.float32], slack: Doubles) -> Doubles:
    """How far the int8 form of hidden values may differ between two roundings of them: `(T, F)`."""
    tokens, width = hidden.shape
    padded = np.zeros((2, tokens, group_count(width) * GROUP_COLUMNS))
    padded[0, :, :width], padded[1, :, :width] = np.abs(hidden), slack
    magnitude, error = padded.reshape(2, tokens, -1, GROUP_COLUMNS)
    largest = magnitude.max(axis=2, keepdims=True)
    doubt = error.max(axis=2, keepdims=True)
    step = largest / 127
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = doubt / largest + 4 * UNIT
        place = magnitude / step
        flips = np.abs(place - np.floor(place) - 0.5) <= error / step + place * relative
        result = np.where(flips, step, 0) + magnitude * relative + step * relative
    # A group that may as well be zeros differs by all it holds.
    result = np.where(largest > 1e6 * UNDERFLOW + 2 * doubt, result, magnitude + largest + doubt)
    return result.reshape(tokens, -1)[:, :width]


def rms_norm(expected: npt.NDArray[np.float32], width: int) -> Doubles:
    """Bound of `rms_norm`, of the result's shape: the sum of squares, then five roundings."""
    return (width + 10) * UNIT * np.abs(expected.astype(np.float64))


def rope(values: npt.NDArray[np.float32], cosine: npt.NDArray[np.float32], sine: npt.NDArray[np.float32]) -> Doubles:
    """Bound of `rope`: values `(T, heads, W)`; two products and their sum, and nothing for what is not rotated."""
    exact = np.abs(values.astype(np.float64))
    half = cosine.shape[1]
    first, second, rest = exact[:, :, :half], exact[:, :, half : 2 * half], exact[:, :, 2 * half :]
    c, s = np.abs(cosine)[:, None, :], np.abs(sine)[:, None, :]
    return 2 * UNIT * np.concatenate([first * c + second * s, second * c + first * s, 0 * rest], axis=2)


def attention(
    query: npt.NDArray[np.float32],
    keys: npt.NDArray[np.floating],
    values: npt.NDArray[np.floating],
    scale: float,
    sinks: npt.NDArray[np.float32] | None = None,
    cap: float = 0.0,
    factor: float = 1.0,
) -> Doubles:
    """Bound of `attention` for one row: query `(H, W)`, what it sees `(G, C, W or Wv)`; returns `(H, Wv)`."""
    heads, width = query.shape
    group, seen = heads // len(keys), keys.shape[1]
    result = np.empty((heads, values.shape[2]))
    for head in range(heads):
        k = keys[head // group].astype(np.float64)
        v = np.abs(values[head // group].astype(np.float64))
        q = query[head].astype(np.float64)
        scores = k @ q * scale
        if cap:
            scores = cap * np.tanh(scores / cap)
        scores *= factor
        logits = scores if sinks is None else np.append(scores, sinks[head])
        shares = np.exp(scores - logits.max())
        shares /= np.exp(logits - logits.max()).sum()
        score_slack = (width + 6) * UNIT * (np.abs(k) @ np.abs(q) * abs(scale)).max() + UNDERFLOW
        score_slack += 2 * EXPONENTIAL * cap  # a cap makes no difference larger
        score_slack = score_slack * factor + UNIT * np.abs(scores).max()
        # An error of the scores turns into a relative one of their exponentials, above and below the line.
        relative = np.expm1(2 * score_slack) + 2 * EXPONENTIAL + 2 * (seen + 8) * UNIT
        # Exponentials too small for float32 come out as zero or lose digits.
        result[head] = relative * (shares @ v) + v.sum(axis=0) * UNDERFLOW
    return result


def route(expected: npt.NDArray[np.float32], experts: int) -> Doubles:
    """Bound of the routing weights: exponentials and their sum."""
    return (2 * EXPONENTIAL + (experts + 4) * UNIT) * np.abs(expected.astype(np.float64))


def combine(terms: Doubles, count: int) -> Doubles:
    """Bound of the residual, where `terms` is the sum of the magnitudes of all `count` things added to it."""
    return (EXPONENTIAL + (count + 6) * UNIT) * terms
