"""State that is written once: the keys and values that sequences keep of their inputs, in a model with an encoder.

They lie in pages like those of tokens (`pages.py`), with a pool and a table of their own. No token of the sequence
changes them, so it can be rewound to any position; forks share them, and the last holder gives them back. Every
sequence has room for an input as long as the context.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgemoe.engine.pages import PREFIX_HASH_BYTES, HeldPages, PageGroup, PrefixHash
from edgemoe.errors import UsageError
from edgemoe.kernels.operations import PAGE_TOKENS, Integers


@dataclass(eq=False)
class Inputs:
    """The inputs of all sequences of one engine."""

    group: PageGroup
    lengths: Integers
    """The number of tokens of each sequence's input, `(S,)`; 0 where it has none."""


class HeldInput:
    """The input of one sequence."""

    def __init__(self, inputs: Inputs, row: int) -> None:
        self._held = HeldPages(inputs.group, row)
        self._lengths = inputs.lengths
        self._row = row
        self.digest: PrefixHash = b""
        """The hash of the input's tokens, on which everything that follows depends."""

    def begin(self, token_ids: npt.NDArray[np.integer]) -> None:
        """Make room for an input in place of the one before; the engine writes it."""
        self.release()
        while self._held.end * PAGE_TOKENS < len(token_ids):
            self._held.append(self._held.pool.take())
        self._lengths[self._row] = len(token_ids)
        ids = np.asarray(token_ids, np.int32)
        self.digest = hashlib.blake2b(ids.tobytes(), digest_size=PREFIX_HASH_BYTES, person=b"input").digest()

    def share(self, other: HeldInput) -> None:
        """Let another sequence, which has none, keep the same input."""
        other._held.share(0, self._held.pages)
        other._lengths[other._row] = self._lengths[self._row]
        other.digest = self.digest

    def release(self) -> None:
        """Give the pages back."""
        self._held.share(0, ())
        self._lengths[self._row] = 0
        self.digest = b""

    def require(self) -> None:
        """Raise UsageError for a sequence without an input."""
        if not self.digest:
            raise UsageError(
                "This model reads an input before it writes, and the sequence has none.",
                "Give it one first, with `Engine.encode`.",
            )
