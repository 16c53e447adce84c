"""The fixed state of sequences: what a layer keeps of a sequence whatever the number of its tokens.

Examples are the last inputs of a convolution, and the matrix of a recurrent layer. A sequence has one row of it, which
every token changes, so that it can go back by few tokens only: as many as all its values can undo. A value that can
undo is a ring of inputs with `undo` places more than the next token needs: to go back, nothing is copied, since the
earlier inputs still lie there. A value that every token overwrites can undo 0 tokens.

For more there are copies in snapshots (`snapshots.py`): of what the next token needs and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.operations import Floats


class FixedValue(NamedTuple):
    """The fixed state of one value of the graph (`Value.undo`)."""

    rows: Floats  # (S, extent, ...)
    undo: int
    snapshots: Floats  # (snapshots, extent - undo, ...)

    def places(self, position: int) -> slice | list[int]:
        """The places in a row that the token at `position` needs: in a ring, those of the positions before it."""
        extent = self.rows.shape[1]
        return [p % extent for p in range(position - extent + self.undo, position)] if self.undo else slice(None)


class FixedState:
    """The fixed state of all sequences of one engine, by rows, and room for copies of it."""

    def __init__(self, values: Sequence[tuple[Floats, int]], snapshots: int) -> None:
        """`values`: of each value its array `(S, extent, ...)`, and how many tokens it can take back (`Value.undo`)."""
        self._values = [
            FixedValue(rows, undo, np.zeros((snapshots, rows.shape[1] - undo, *rows.shape[2:]), rows.dtype))
            for rows, undo in values
        ]
        self.undo = min(value.undo for value in self._values)
        """How many of its latest tokens a sequence can take back without a snapshot."""
        self.forget_copies: Callable[[Sequence[npt.NDArray[Any]]], None] = lambda arrays: None
        """The backend's (`Backend.forget_copies`)."""
        self.snapshots = snapshots
        """How many copies there is room for."""

    def save(self, slot: int, row: int, position: int) -> None:
        """Copy a row, whose sequence stands at `position` or at most `undo` tokens further, to a slot for copies."""
        for value in self._values:
            value.snapshots[slot] = value.rows[row, value.places(position)]

    def load(self, slot: int, row: int, position: int) -> None:
        """Copy back to a row what was saved at a position."""
        for value in self._values:
            self.forget_copies([value.rows[row]])
            value.rows[row, value.places(position)] = value.snapshots[slot]

    def copies(self, slot: int) -> list[npt.NDArray[Any]]:
        """All that a slot for copies has."""
        return [value.snapshots[slot] for value in self._values]

    def copy(self, source: int, destination: int) -> None:
        """Copy one row to another."""
        for value in self._values:
            self.forget_copies([value.rows[destination]])
            value.rows[destination] = value.rows[source]

    def release(self) -> None:
        """Forget all arrays, when the engine is closed."""
        self._values.clear()
