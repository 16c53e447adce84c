"""Quantises the matrices of an expert to sub1 by their inputs, within the bytes that the plan has for its record."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgemoe.conversion.encoding import Encoded, check_finite, check_levels, encode_trits, lengths_of_trits
from edgemoe.errors import EdgemoeError, SourceError
from edgemoe.kernels.expert_operations import MATRIX_ALIGNMENT_BYTES
from edgemoe.kernels.formats import panel_count
from edgemoe.kernels.pages import round_up
from edgemoe.kernels.sub1 import joined_bytes, weights_of
from edgemoe.quant.ternary import ColumnFeedback, fit, least_bytes

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

DAMPING = 0.1


def quantised(
    matrices: Sequence[tuple[str, Floats]], moments: Doubles, room: int, fitted: bool, feedback: bool
) -> list[tuple[Encoded, Floats]]:
    """Matrices of one input, with their tensors' names, encoded in `room` bytes at most, and the weights of that.

    `fitted`: their levels are chosen for the room. Raises SourceError, naming the tensor.
    """
    for what, values in matrices:
        check_finite(values, what)
    own = moments if feedback else np.diag(np.diagonal(moments))
    try:
        found = fit([values for _, values in matrices], ColumnFeedback.of(own, DAMPING), room, fitted)
    except EdgemoeError as problem:
        raise SourceError(f"{matrices[0][0]}: {problem.message}", problem.hint) from None
    results = []
    for (what, values), (trits, levels) in zip(matrices, found, strict=True):
        check_levels(levels, values, what)
        results.append((encode_trits(trits, levels, values), weights_of(trits, levels)))
    return results


def first_room(record_bytes: int, first: Sequence[tuple[int, int]], down: tuple[int, int]) -> int:
    """The bytes of a record for the matrix of gate and up, by the rows and columns of all: its share of the weights."""
    least = [_least(first), _least([down])]
    weights = [sum(rows * columns for rows, columns in shapes) for shapes in (first, [down])]
    left = record_bytes - MATRIX_ALIGNMENT_BYTES - sum(least)
    return least[0] + left * weights[0] // sum(weights)


def room_beside(record_bytes: int, tensor: str, down: Floats) -> int:
    """The bytes of a record for the matrix of gate and up, if down takes what it does where each weight is rounded.

    Raises SourceError, naming the tensor.
    """
    left = record_bytes - joined_bytes(lengths_of_trits(down, tensor))
    return left // MATRIX_ALIGNMENT_BYTES * MATRIX_ALIGNMENT_BYTES


def down_room(record_bytes: int, first: Sequence[Encoded]) -> int:
    """The bytes that the matrix of gate and up leaves of a record."""
    return record_bytes - round_up(
        joined_bytes([len(panel) for encoded in first for panel in encoded.panels]), MATRIX_ALIGNMENT_BYTES
    )


def _least(shapes: Sequence[tuple[int, int]]) -> int:
    return least_bytes(sum(panel_count(rows) for rows, _ in shapes), shapes[0][1])
