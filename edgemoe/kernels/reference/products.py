"""The reference of the operations that multiply by a packed matrix, or look up its rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.kernels import operations as op
from edgemoe.kernels import sub1
from edgemoe.kernels.blocks import dequantise, unpack
from edgemoe.kernels.definition import Sizes
from edgemoe.kernels.formats import GROUP_COLUMNS, PANEL_ROWS, Matrix, group_count, panel_count
from edgemoe.kernels.operations import Floats, Integers
from edgemoe.kernels.reference.common import Doubles, sigmoid, single
from edgemoe.kernels.stepwise import StepwiseBackend, means

SMALLEST_ACTIVATION = np.float32(1e-35)
"""A group of activations whose largest magnitude lies below this is all zeros, scale included.

It keeps 127 / magnitude finite, and the scale out of float32's denormals.
"""

PANELS_AT_ONCE = 64
"""Panels of a matrix that are unpacked at a time, to bound memory."""


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
    products = np.empty((len(values), matrix.rows), np.float64)
    for first in range(0, panel_count(matrix.rows), PANELS_AT_ONCE):
        rows = slice(first * PANEL_ROWS, min(matrix.rows, (first + PANELS_AT_ONCE) * PANEL_ROWS))
        weights = weights_of_panels(matrix, first, first + PANELS_AT_ONCE)
        # A stack of matrix-vector products: in one matrix product a token's rounding depends on the number of tokens.
        products[:, rows] = np.matmul(weights.astype(np.float64), inputs[:, :, None])[:, :, 0]
    return single(products)


def weights_of_panels(matrix: Matrix, first: int, end: int) -> Floats:
    """The weights of the panels from `first` to `end`, or to the last one."""
    if matrix.format.varying:
        return sub1.weights_of(*sub1.unpack_trits(matrix.data, slice(first, end)))
    some = matrix.of_panels(first, end)
    return dequantise(unpack(some.data, some.format, some.rows, some.columns))


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


def _head_linear_scratch(kernels: StepwiseBackend, o: op.HeadLinear, sizes: Sizes) -> int:
    rows, columns = sizes.letters["N"], sizes.letters["M"]
    return kernels.product_scratch_bytes(sizes.rows, rows + 2 * PANEL_ROWS, columns) + 4 * sizes.rows * columns


@means(op.HeadLinear, "matmul", _head_linear_scratch)
def _head_linear(kernels: Any, o: op.HeadLinear, tokens: int) -> None:
    heads, rows = o.heads, o.matrix.rows // o.heads
    inputs, outputs = (values[:tokens].reshape(tokens, heads, -1) for values in (o.input, o.output))
    for head in range(heads):
        # The panels that hold the head's rows, of which the first and the last may hold rows of its neighbours too.
        first, end = head * rows // PANEL_ROWS, panel_count((head + 1) * rows)
        own = o.matrix.of_panels(first, end)
        start = head * rows - first * PANEL_ROWS
        product = kernels.matmul(np.ascontiguousarray(inputs[:, head]), own)
        outputs[:, head, :rows] = product[:, start : start + rows]
    if o.passed is not None:
        outputs[:, :, rows:] = o.passed[:tokens].reshape(tokens, heads, -1)


def embed(ids: Integers, matrix: Matrix, scale: float) -> Floats:
    """Look up rows of the embedding: `(T,)` to `(T, D)`."""
    rows = [weights_of_panels(matrix, i // PANEL_ROWS, i // PANEL_ROWS + 1)[i % PANEL_ROWS] for i in ids.tolist()]
    return np.stack(rows) * np.float32(scale)


@means(op.Embed, "embed")
def _embed(kernels: Any, o: op.Embed, tokens: int) -> None:
    o.output[:tokens] = np.tile(kernels.embed(o.ids[:tokens], o.matrix, o.scale), o.copies)


def gated_ffn(
    values: Floats,
    gate_up: Matrix,
    down: Matrix,
    biases: op.FfnBiases | None = None,
    activation: op.Activation = op.SILU,
    up_apart: Matrix | None = None,
    beneath: tuple[Matrix, Matrix] | None = None,
) -> Floats:
    """`down (activation(gate x, up x))`, each product plus its bias: `(T, D)` to `(T, D)`.

    `gate_up` has panels of both in turn, or is gate alone beside `up_apart`.
    Gate, up and hidden values are rounded to float32, since the next product quantises from float32; a bias is added
    to the rounded product, in float32. `beneath` are base planes of both matrices, whose products are added.
    """
    if up_apart is None:
        both = _summed(values, gate_up, beneath, 0).reshape(len(values), -1, 2, PANEL_ROWS)
        gate, up = (both[:, :, half].reshape(len(values), -1)[:, : down.columns] for half in (0, 1))
    else:
        gate, up = matmul(values, gate_up), matmul(values, up_apart)
    if biases is not None:
        assert biases.gate is not None
        gate, up = gate + biases.gate, up + biases.up
    output = _summed(activate(gate, up, activation), down, beneath, 1)
    return output if biases is None else output + biases.down


def plain_ffn(
    values: Floats,
    up: Matrix,
    down: Matrix,
    biases: op.FfnBiases | None = None,
    activation: op.Activation = op.RELU,
    beneath: tuple[Matrix, Matrix] | None = None,
) -> Floats:
    """`down (activation(up x))`, each product plus its bias, rounded as in `gated_ffn`: `(T, D)` to `(T, D)`."""
    products = _summed(values, up, beneath, 0)
    if biases is not None:
        products = products + biases.up
    output = _summed(activate(products, np.ones_like(products), activation), down, beneath, 1)
    return output if biases is None else output + biases.down


def _summed(values: Floats, matrix: Matrix, beneath: tuple[Matrix, Matrix] | None, which: int) -> Floats:
    """The product with a matrix, added in float32 to that with its base plane."""
    products = matmul(values, matrix)
    return products if beneath is None else matmul(values, beneath[which]) + products


def normal_share(numbers: Doubles) -> Doubles:
    """`x * Phi(x)` of each number `x`, where `Phi` is the normal distribution: GELU (Hendrycks and Gimpel 2016)."""
    distance = np.abs(numbers)
    tails = np.array([math.erfc(x / math.sqrt(2)) / 2 for x in distance.reshape(-1).tolist()]).reshape(numbers.shape)
    with np.errstate(invalid="ignore"):  # infinity times 0, which is left out
        return np.maximum(numbers, 0) - np.where(tails == 0, 0.0, distance * tails)


def activate(gate: Floats, up: Floats, activation: op.Activation) -> Floats:
    """The hidden values `(T, F)` of an FFN, from its two products: see `op.Activation`."""
    g, u = gate.astype(np.float64), up.astype(np.float64)
    if activation.function in ("relu", "relu2"):
        g = np.maximum(g, 0)
        return single((g if activation.function == "relu" else np.square(g)) * u)
    if activation.function == "gelu":
        return single(normal_share(g) * u)
    if activation.function == "gelu_tanh":
        return single(g * sigmoid(g * (op.GELU_LINEAR + op.GELU_CUBIC * np.square(g))) * u)
    if activation.function == "capped_silu":
        limit = float(np.float32(activation.limit))
        return single(np.minimum(g * sigmoid(g), limit) * np.clip(u, -limit, limit))
    if activation.limit is not None:
        limit = float(np.float32(activation.limit))
        g, u = np.minimum(g, limit), np.clip(u, -limit, limit)
    return single(g * sigmoid(float(np.float32(activation.alpha)) * g) * (u + np.float32(activation.offset or 0)))


def _ffn_scratch(kernels: StepwiseBackend, o: op.GatedFfn | op.PlainFfn, sizes: Sizes) -> int:
    return kernels.ffn_scratch_bytes(sizes.rows, sizes.letters["D"], sizes.letters["F"])


@means(op.GatedFfn, "gated_ffn", _ffn_scratch)
def _gated_ffn(kernels: Any, o: op.GatedFfn, tokens: int) -> None:
    first, apart = (o.gate_up, ()) if o.apart is None else (o.apart.gate, (o.apart.up,))
    o.output[:tokens] = kernels.gated_ffn(o.input[:tokens], first, o.down, o.biases, o.activation, *apart)


@means(op.PlainFfn, "plain_ffn", _ffn_scratch)
def _plain_ffn(kernels: Any, o: op.PlainFfn, tokens: int) -> None:
    o.output[:tokens] = kernels.plain_ffn(o.input[:tokens], o.up, o.down, o.biases, o.activation)
