"""The fixed state of sequences: what a layer keeps of a sequence whatever the number of its tokens.

Examples are the last inputs of a convolution, and the matrix of a recurrent layer. A sequence has one row of it, which
every token changes, so that it can go back by few tokens only: as many as all its values can undo. A value that can
undo is a ring of inputs with `undo` places more than the next token needs: to go back, nothing is copied, since the
earlier inputs still lie there. A value that every token overwrites can undo 0 tokens.

For more there are snapshots: a bounded number of copies of the state at ends of pages. A snapshot holds what the next
token needs and no more. It is named by the hash of all tokens up to its place, as a page is, so that every sequence
that begins with these tokens finds it. The one that was used least recently makes way for a new one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edgemoe.engine.pages import PrefixHash
from edgemoe.kernels.operations import PAGE_TOKENS, Floats


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
    """The fixed state of all sequences of one engine, by rows, and its snapshots."""

    def __init__(self, values: Sequence[tuple[Floats, int]], snapshots: int) -> None:
        """`values`: of each value its array `(S, extent, ...)`, and how many tokens it can take back (`Value.undo`)."""
        self._values = [
            FixedValue(rows, undo, np.zeros((snapshots, rows.shape[1] - undo, *rows.shape[2:]), rows.dtype))
            for rows, undo in values
        ]
        self.undo = min(value.undo for value in self._values)
        """How many of its latest tokens a sequence can take back without a snapshot."""
        self._slot_of: OrderedDict[PrefixHash, int] = OrderedDict()  # the least recently used first
        self._free = list(range(snapshots - 1, -1, -1))

    def newest(self, prefixes: Sequence[PrefixHash]) -> int:
        """The number of pages, which have these hashes, before the newest snapshot among them; 0: there is none."""
        return next((n for n in range(len(prefixes), 0, -1) if prefixes[n - 1] in self._slot_of), 0)

    def keep(self, prefix: PrefixHash, row: int, position: int) -> None:
        """Take a snapshot of a row, whose sequence stands at `position` or at most `undo` tokens further."""
        slot = self._slot_of.pop(prefix, None)
        if slot is None:
            slot = self._free.pop() if self._free else self._slot_of.popitem(last=False)[1]
            for value in self._values:
                value.snapshots[slot] = value.rows[row, value.places(position)]
        self._slot_of[prefix] = slot

    def restore(self, prefixes: Sequence[PrefixHash], row: int) -> int:
        """Copy to a row the newest snapshot of a sequence whose pages have these hashes; returns its position.

        The position is 0 where there is no snapshot: at position 0 no state is needed.
        """
        pages = self.newest(prefixes)
        if pages:
            self._slot_of.move_to_end(prefixes[pages - 1])
            slot = self._slot_of[prefixes[pages - 1]]
            for value in self._values:
                value.rows[row, value.places(pages * PAGE_TOKENS)] = value.snapshots[slot]
        return pages * PAGE_TOKENS

    def copy(self, source: int, destination: int) -> None:
        """Copy one row to another."""
        for value in self._values:
            value.rows[destination] = value.rows[source]

    def release(self) -> None:
        """Forget all arrays, when the engine is closed."""
        self._values.clear()
