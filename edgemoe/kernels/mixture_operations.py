"""The operations of mixtures that no router routes: slots that every token mixes into, and factorised experts.

Defined as those of `operations.py` are, and with its letters and invariants. Slots are those of Soft MoE (Puigcerver et
al. 2023, arXiv 2308.00951); their operations mix the rows of a run, which are those of one sequence, from its first one
on. The others are those of muMoE (Oldfield et al. 2024, arXiv 2402.12550).
"""

# Annotations are evaluated here, not left as text, as in `operations.py`.

import math
from dataclasses import dataclass
from typing import Annotated

from edgemoe.kernels.definition import Sizes, require
from edgemoe.kernels.formats import Matrix
from edgemoe.kernels.marks import IN_PLACE, NUMBER, buffer, matrix, output, rows, size, weight
from edgemoe.kernels.operations import (
    RELU,
    Activation,
    FfnBiases,
    Floats,
    Operation,
    check_activation,
    check_biases,
)

LEAST_LENGTH = 1e-12
"""The least number that a vector is divided by, in the place of its length."""


@dataclass(frozen=True, eq=False, repr=False)
class Entmax(Operation, code=56):
    """Turns each row into its 1.5-entmax, in place (Peters, Niculae and Martins 2019, arXiv 1905.05702).

    `output = max(z / 2 - tau, 0) ^ 2`, where `tau` is the number with which the row sums to 1. Most of a row may become
    exactly 0.
    """

    values: Annotated[Floats, rows("E"), IN_PLACE]


@dataclass(frozen=True, eq=False, repr=False)
class BatchNorm(Operation, code=57):
    """`(value - mean) / sqrt(variance + epsilon)`, in place, by the means and variances of training."""

    values: Annotated[Floats, rows("M"), IN_PLACE]
    mean: Annotated[Floats, weight("M")]
    variance: Annotated[Floats, weight("M")]
    epsilon: float

    def check(self, sizes: Sizes) -> None:
        require(0 < self.epsilon < math.inf, "epsilon", "a number above 0", self.epsilon)


@dataclass(frozen=True, eq=False, repr=False)
class PairProducts(Operation, code=58):
    """`output = left right` for each of the `count` pairs of matrices of a row, `(height, inner)` and `(inner, width)`.

    With matrices of one number it is the product of two rows, element by element.
    """

    left: Annotated[Floats, rows("count*height*inner")]
    right: Annotated[Floats, rows("count*inner*width")]
    count: Annotated[int, size("count")]
    inner: Annotated[int, size("inner")]
    output: Annotated[Floats, rows("count*height*width"), output(apart_from="left")]


@dataclass(frozen=True, eq=False, repr=False)
class SlotLogits(Operation, code=59):
    """`logits[t, s] = factor * scale * input[t] . (gain * slots[s])`, a logit for each slot.

    With `unit_slots` each row of `slots` is divided by its length first, and with `unit_input` so is the input; a
    length below `LEAST_LENGTH` counts as that. Without `gain` or `scale` these are 1.
    """

    input: Annotated[Floats, rows("D")]
    slots: Annotated[Floats, weight("S*D")]
    gain: Annotated[Floats | None, weight("D")]
    scale: Annotated[Floats | None, weight("1")]
    factor: float
    logits: Annotated[Floats, rows("S"), output(apart_from="input")]
    unit_slots: bool = False
    unit_input: bool = False


@dataclass(frozen=True, eq=False, repr=False)
class Dispatch(Operation, code=60):
    """`slots[s] = sum over t of softmax over t (logits[t, s]) * input[t]`: each slot is a mean of all rows."""

    logits: Annotated[Floats, rows("S")]
    input: Annotated[Floats, rows("D")]
    slots: Annotated[Floats, buffer("S", "D"), output(apart_from="input")]


@dataclass(frozen=True, eq=False, repr=False)
class SlotFfn(Operation, code=61):
    """`output[s] = down (activation(up slots[s]))` for `count` slots from `first` on: one expert's, with its biases."""

    slots: Annotated[Floats, buffer("S", "D")]
    first: Annotated[int, NUMBER]
    count: Annotated[int, NUMBER]
    up: Annotated[Matrix, matrix("F", "D")]
    down: Annotated[Matrix, matrix("D", "F")]
    output: Annotated[Floats, buffer("S", "D"), output(apart_from="slots")]
    activation: Activation = RELU
    biases: FfnBiases | None = None

    def check(self, sizes: Sizes) -> None:
        check_activation(self.activation, gated=False)
        check_biases(self.biases, gated=False)
        slots = sizes.letters["S"]
        require(0 <= self.first < slots, "first", f"0 to {slots - 1}", self.first)
        require(1 <= self.count <= slots - self.first, "count", f"1 to {slots - self.first}", self.count)


@dataclass(frozen=True, eq=False, repr=False)
class Collect(Operation, code=62):
    """`output[t] = sum over s of softmax over s (logits[t, s]) * values[s]`: each row is a mean over all slots."""

    logits: Annotated[Floats, rows("S")]
    values: Annotated[Floats, buffer("S", "D")]
    output: Annotated[Floats, rows("D"), output(apart_from="values")]
