"""Settings of a calibration: the tokens of a text, in windows, and how far errors are fed back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgemoe.errors import UsageError

CONTEXT = 512
LEAST_TOKENS = 64
"""Fewer tokens than this say nothing about any matrix."""
FEW_TOKENS = 4096
"""With fewer tokens than this a notice says so."""

CALIBRATION = "calibration"
"""The entry of a store's provenance that says what it was calibrated with."""
BITS = "bits"
"""The entry that says how many bits for a weight its experts were to have."""

Tokenise = Callable[[Mapping[str, bytes], int, str, int], tuple[npt.NDArray[np.int32], tuple[int, ...]]]
"""Given small files by their names, a model's vocabulary, a text, and how many tokens are wanted: the ids of its first
tokens, and those that stand before every text. Raises UsageError where the model has no tokenizer."""


@dataclass(frozen=True)
class Calibration:
    """How weights in formats with a trellis, or in sub1, are calibrated."""

    text: str
    name: str
    """The text's name, for messages."""
    tokenise: Tokenise
    tokens: int = 16384
    """How many of its tokens are used; all, where there are fewer."""
    feedback: bool = True
    """Whether errors are fed back; if not, columns are weighted by their importance alone."""
    bits: float | None = None
    """The most bits for a weight of experts in sub1; None: as many as those that are rounded have."""
    held_out: int = 2048
    """How many tokens after them the finished store is compared with its source on; of a shorter text an eighth of all,
    if that leaves enough for calibration, else none."""

    def described(self) -> str:
        """Return what a store says that it was calibrated with."""
        digest = hashlib.sha256(self.text.encode()).hexdigest()[:16]
        how = "error feedback" if self.feedback else "importance"
        return f"{how}, {self.tokens} tokens of {self.name} ({digest})"


@dataclass(frozen=True, eq=False)
class Windows:
    """The tokens of a text in windows, each of which the model reads from its beginning."""

    ids: npt.NDArray[np.int32]
    """`(windows, tokens)`"""
    head: int
    """How many tokens of each window stand before every text: these count for nothing."""
    held: int = 0
    """How many of the first windows are held out: they calibrate nothing."""

    @classmethod
    def of(cls, calibration: Calibration, files: Mapping[str, bytes], vocab_size: int, longest: int) -> Windows:
        """The windows for a model that takes `longest` tokens at most. Raises UsageError for a text that is short.

        Those held out follow, in the text, what calibrates.
        """
        tokens, held = calibration.tokens, calibration.held_out
        ids, head = calibration.tokenise(files, vocab_size, calibration.text, tokens + held)
        if len(ids) < LEAST_TOKENS:
            raise UsageError(
                f"`calibrate`: expected a text of at least {LEAST_TOKENS} tokens, found {len(ids)} in"
                f" {calibration.name}.",
                "Give some pages of text of the kind that the model is for.",
            )
        held = min(held, max(len(ids) // 8, len(ids) - tokens))
        held = held if len(ids) - held >= min(FEW_TOKENS, tokens) else 0
        calibrating = ids[: min(tokens, len(ids) - held)]
        room = min(CONTEXT, longest, len(calibrating) + len(head)) - len(head)
        parts = [ids[len(ids) - held :], calibrating]
        counts = [len(part) // room for part in parts]
        rows = np.concatenate([part[: n * room].reshape(n, room) for part, n in zip(parts, counts, strict=True)])
        before = np.broadcast_to(np.array(head, np.int32), (len(rows), len(head)))
        return cls(np.ascontiguousarray(np.concatenate([before, rows], axis=1), np.int32), len(head), counts[0])

    def held_out(self) -> Windows:
        """The windows that are held out alone."""
        return Windows(self.ids[: self.held], self.head, self.held)

    def notices(self) -> list[str]:
        """A sentence where there are few tokens."""
        count = (self.ids.shape[1] - self.head) * (len(self.ids) - self.held)
        if count >= FEW_TOKENS:
            return []
        return [f"The text for calibration has only {count} tokens: with {FEW_TOKENS} or more the result is better."]
