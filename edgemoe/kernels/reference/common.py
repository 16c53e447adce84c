"""Functions in float64, and the check of numbers of a run, which the references of several families share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgemoe.errors import KernelError
from edgemoe.kernels.definition import HINT
from edgemoe.kernels.operations import Floats, Integers

Doubles = npt.NDArray[np.float64]


def single(values: Doubles) -> Floats:
    """Round to the nearest float32; values beyond its range become infinite."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def softmax(values: Doubles) -> Doubles:
    """Softmax over the last axis."""
    exponentials = np.exp(values - values.max(axis=-1, keepdims=True))
    result: Doubles = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return result


def sigmoid(values: Doubles) -> Doubles:
    """Return the sigmoid of each number."""
    with np.errstate(over="ignore"):  # exp may be infinite; the sigmoid is then 0, as it should be
        result: Doubles = 1 / (1 + np.exp(-values))
        return result


def silu(values: Doubles) -> Doubles:
    """Return each number times its sigmoid."""
    return values * sigmoid(values)


def check_each(what: str, numbers: Integers, limit: int) -> None:
    """Raise KernelError unless each row's number is at least 0 and below a limit."""
    wrong = np.flatnonzero((numbers < 0) | (numbers >= limit))
    if len(wrong):
        found = f"found {numbers[wrong[0]]} in row {wrong[0]}"
        raise KernelError(f"{what}s of a run: expected 0 to {limit - 1}, {found}.", HINT)
