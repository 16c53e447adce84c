"""Second moments of a matrix's inputs: what squared errors of its columns, and products of them, cost."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_ROWS_AT_ONCE = 2048


def second_moments(inputs: Floats, weights: Floats | None = None) -> Doubles:
    """The sum of the products of inputs `(rows, columns)` with each other, `(columns, columns)`; rows have weights."""
    columns = inputs.shape[1]
    total = np.zeros((columns, columns))
    for first in range(0, len(inputs), _ROWS_AT_ONCE):
        some = inputs[first : first + _ROWS_AT_ONCE]
        other = some if weights is None else some * weights[first : first + _ROWS_AT_ONCE, None]
        total += other.T @ some
    return total


def blended(own: Doubles, count: float, prior: Doubles, prior_count: float) -> Doubles:
    """The mean of `own`, a sum over `count` inputs, with as many of mean `prior` as a guess is worth."""
    mixed: Doubles = (own + prior_count * prior) / max(count + prior_count, 1)
    return mixed
