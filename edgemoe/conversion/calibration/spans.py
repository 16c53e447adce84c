"""Makes of a text what an encoder reads and what its decoder writes, as such models were trained.

Spans of the text are left out, each with a mark in its place, and the decoder writes every mark with what it stands for
(Raffel et al. 2019, arXiv 1910.10683, section 3.1.4): 15 % of all tokens, in spans of 3 on average. T5 and Switch
Transformers have such marks. Without marks the first half of the text is read, and the second half is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]

LEFT_OUT = 0.15
SPAN_TOKENS = 3


def longest_text(most_tokens: int, marks: int) -> int:
    """The tokens of text of which an encoder reads at most so many tokens, with at most so many marks."""
    if not marks:
        return most_tokens
    length = 2
    while True:
        left_out, spans = _counts(length + 1)
        if length + 1 - left_out + spans > most_tokens or spans > marks:
            return length
        length += 1


def sides(rows: Ids, marks: Sequence[int], seed: int) -> tuple[Ids, Ids]:
    """The tokens that are read and those that are written, for rows of text of one length `(rows, tokens)`.

    Spans are drawn, row after row: those of the first rows do not depend on how many follow.
    """
    if not marks:
        half = rows.shape[1] // 2
        return rows[:, :half], rows[:, half:]
    random = np.random.default_rng(seed)
    left_out, spans = _counts(rows.shape[1])
    read, written = [], []
    for row in rows:
        kept, gone = (_parts(random, total, spans) for total in (rows.shape[1] - left_out, left_out))
        pieces = np.split(row, np.stack([kept, gone], axis=1).reshape(-1).cumsum()[:-1])
        read.append(_joined(pieces[::2], marks, mark_first=False))
        written.append(_joined(pieces[1::2], marks, mark_first=True))
    widths = rows.shape[1] - left_out + spans, left_out + spans
    return _stacked(read, widths[0]), _stacked(written, widths[1])


def _counts(tokens: int) -> tuple[int, int]:
    """How many tokens of a text are left out, and in how many spans."""
    left_out = max(1, round(tokens * LEFT_OUT))
    return left_out, max(1, round(left_out / SPAN_TOKENS))


def _parts(random: np.random.Generator, total: int, parts: int) -> Ids:
    """Draw so many lengths, each of 1 or more, that have this sum."""
    ends = np.sort(random.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(ends, prepend=0, append=total).astype(np.int32)


def _stacked(rows: Sequence[Ids], width: int) -> Ids:
    return np.concatenate([np.empty(0, np.int32), *rows]).reshape(-1, width)


def _joined(pieces: Sequence[Ids], marks: Sequence[int], mark_first: bool) -> Ids:
    """The pieces, each with its mark before it or behind it."""

    def parts() -> Iterator[Ids]:
        for piece, mark in zip(pieces, marks[: len(pieces)], strict=True):
            both = np.array([mark], np.int32), piece
            yield from both if mark_first else both[::-1]

    return np.concatenate(list(parts()))
