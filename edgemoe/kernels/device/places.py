"""Writes what launches of an operation have in common: where its arrays lie, and numbers as kernels take them."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from edgemoe.kernels import operations as op
from edgemoe.kernels.device.runtime import Launch, Place
from edgemoe.kernels.formats import GROUP_COLUMNS, group_count

LANES = 8
FUNCTIONS = ("silu", "clamped_silu", "gelu_tanh", "relu", "relu2", "capped_silu")
"""The activations in the order of their numbers in ffn.c."""
GROUP_BYTES = 16
"""Size of a `group` in dialect.h."""


class Memory(Protocol):
    """Where the arrays of an operation lie on the device."""

    tokens: int
    """The longest run."""
    count: op.Integers
    """The number of tokens of the run, which kernels can read."""

    def place(self, array: Any) -> Place:
        """Return the place of an array of the operation, or of the data of a matrix."""

    def scratch(self, bytes_per_token: int) -> Place:
        """Return memory for the operation alone, with whatever in it."""


def optional(array: Any, memory: Memory) -> Place | None:
    """Return the place of an array that may be missing."""
    return None if array is None else memory.place(array)


def float32(number: float) -> float:
    """Return a number as C has it."""
    return float(np.float32(number))


def quantised(given: Place, columns: int, rows: int, memory: Memory) -> tuple[Launch, tuple[Place, Place]]:
    """Return the launch that quantises so many rows of each token, and the places of their values and groups."""
    groups = rows * group_count(columns)
    places = memory.scratch(groups * GROUP_COLUMNS), memory.scratch(groups * GROUP_BYTES)
    return Launch("quantise", (given, *places, columns, group_count(columns)), groups), places
