"""Tables of the trellis formats, for weights that are distributed normally: `(V, 2, 16)`, A and B of each weight."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def _tables(*numbers: tuple[int, ...]) -> npt.NDArray[np.int8]:
    return np.array(numbers, np.int8).reshape(-1, 2, 16)


_N2 = (
    (15, -13, -5, 4, -5, 2, 5, -12, -17, 18, 10, 3, 1, 8, -10, -4),
    (10, 5, -14, 1, -1, -2, 0, 0, 4, -3, 5, -1, 11, -7, 5, -9),
)
_N3 = (
    (3, 6, -1, -4, 16, -9, 9, -17, -2, 9, 20, -6, 1, 4, -10, -17),
    (4, -7, 7, 1, -14, -2, -1, 6, 4, 2, -7, -2, -7, 2, 9, 2),
)

NORMAL_TABLES = {
    "n4": _tables(*_N2),
    "n3": _tables(*_N3),
    "n2": _tables(*_N2),
    "n15": _tables(*_N3 * 2),
    "n1": _tables(*_N2),
    "n075": _tables(*_N3 * 4),
}
"""By the name of the format."""

NORMAL_DEVIATIONS = {"n4": 11.0, "n3": 10.3, "n2": 11.0, "n15": 11.0, "n1": 11.0, "n075": 11.0}
"""The standard deviation of the weights that the tables stand for, in their steps."""
