"""Settings of a calibration: the tokens of a text, in windows, and how far errors are fed back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgemoe.conversion.calibration.spans import longest_text, sides
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


class TextTokens(NamedTuple):
    """The tokens of a text."""

    ids: npt.NDArray[np.int32]
    head: tuple[int, ...] = ()
    """Tokens that stand before every text."""
    tail: tuple[int, ...] = ()
    """Tokens that stand behind every text."""
    marks: tuple[int, ...] = ()
    """Tokens that stand for spans which are left out of a text."""


Tokenise = Callable[[Mapping[str, bytes], int, str, int], TextTokens]
"""Given small files by their names, a model's vocabulary, a text, and how many tokens are wanted: its first tokens.
Raises UsageError where the model has no tokenizer."""


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
    inputs: Windows | None = None
    """The windows that an encoder reads, for a model that has one: these here are what its decoder writes."""
    added: int = 0
    """How many tokens of each window, and of what an encoder reads for it, are not the text's, besides the heads."""

    @classmethod
    def of(
        cls,
        calibration: Calibration,
        files: Mapping[str, bytes],
        vocab_size: int,
        longest: int,
        start_token: int | None = None,
    ) -> Windows:
        """The windows for a model that takes `longest` tokens at most. Raises UsageError for a text that is short.

        Those held out follow, in the text, what calibrates. With an encoder the model has a `start_token`, with which
        its decoder begins.
        """
        tokens, held = calibration.tokens, calibration.held_out
        text = calibration.tokenise(files, vocab_size, calibration.text, tokens + held)
        ids, head = text.ids, text.head
        if len(ids) < LEAST_TOKENS:
            raise UsageError(
                f"`calibrate`: expected a text of at least {LEAST_TOKENS} tokens, found {len(ids)} in"
                f" {calibration.name}.",
                "Give some pages of text of the kind that the model is for.",
            )
        held = min(held, max(len(ids) // 8, len(ids) - tokens))
        held = held if len(ids) - held >= min(FEW_TOKENS, tokens) else 0
        calibrating = ids[: min(tokens, len(ids) - held)]
        parts = [ids[len(ids) - held :], calibrating]
        if start_token is not None:
            return cls._of_both_sides(text, parts, min(CONTEXT, longest), start_token)
        rows = _rows(parts, min(CONTEXT - len(head), longest - len(head), len(calibrating)))
        return cls(_behind(head, np.concatenate(rows)), len(head), len(rows[0]))

    @classmethod
    def _of_both_sides(
        cls, text: TextTokens, parts: list[npt.NDArray[np.int32]], most_tokens: int, start_token: int
    ) -> Windows:
        """The windows for a model with an encoder, of a part that is held out and of one that calibrates."""
        room = longest_text(most_tokens - len(text.head) - len(text.tail), len(text.marks))
        rows = _rows(parts, min(room, len(parts[1])))
        read, written = (
            np.concatenate(side)
            for side in zip(*(sides(own, text.marks, seed) for seed, own in enumerate(rows)), strict=True)
        )
        tail = np.broadcast_to(np.array(text.tail, np.int32), (len(read), len(text.tail)))
        inputs = cls(_behind(text.head, np.concatenate([read, tail], axis=1)), len(text.head), len(rows[0]))
        added = read.shape[1] + written.shape[1] - rows[1].shape[1] + len(text.tail)
        return cls(_behind((start_token,), written), 1, len(rows[0]), inputs, added)

    def first(self, count: int) -> Windows:
        """The first windows alone."""
        inputs = None if self.inputs is None else self.inputs.first(count)
        return replace(self, ids=self.ids[:count], held=min(self.held, count), inputs=inputs)

    def held_out(self) -> Windows:
        """The windows that are held out alone."""
        return self.first(self.held)

    @property
    def longest(self) -> int:
        """The tokens of a window, or of what an encoder reads for it, if those are more."""
        own = int(self.ids.shape[1])
        return own if self.inputs is None else max(own, self.inputs.longest)

    def notices(self) -> list[str]:
        """A sentence where there are few tokens."""
        both = [self] if self.inputs is None else [self, self.inputs]
        count = (sum(one.ids.shape[1] - one.head for one in both) - self.added) * (len(self.ids) - self.held)
        if count >= FEW_TOKENS:
            return []
        return [f"The text for calibration has only {count} tokens: with {FEW_TOKENS} or more the result is better."]


def _rows(parts: list[npt.NDArray[np.int32]], length: int) -> list[npt.NDArray[np.int32]]:
    """The parts of a text in rows of one length; what is left of each is not used."""
    return [part[: len(part) // length * length].reshape(-1, length) for part in parts]


def _behind(head: tuple[int, ...], rows: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Rows with some tokens before each."""
    before = np.broadcast_to(np.array(head, np.int32), (len(rows), len(head)))
    return np.ascontiguousarray(np.concatenate([before, rows], axis=1), np.int32)
