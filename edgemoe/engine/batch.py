"""A batch: tokens of one or several sequences that are run together, and the runs into which it is cut.

What a token's row gives depends on its own sequence alone, so neither the company in a batch nor the cut changes a bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgemoe.engine.phase import PROMPT
from edgemoe.engine.sequence import Sequence as TokenSequence
from edgemoe.kernels.operations import Floats


@dataclass(frozen=True, eq=False)
class Piece:
    """Tokens that one sequence appends."""

    sequence: TokenSequence
    token_ids: npt.NDArray[np.int64]
    logits: Floats
    """Where the logits go: `(1, V)`, after the last token, or `(T, V)`, after each."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Consecutive rows of a run that belong to one piece: its tokens `first` to `first + count`."""

    piece: Piece
    row: int
    first: int
    count: int

    @property
    def token_ids(self) -> npt.NDArray[np.int64]:
        return self.piece.token_ids[self.first : self.first + self.count]

    def wanted(self) -> tuple[range, Floats]:
        """The rows whose logits are wanted, and where these go."""
        piece, end = self.piece, self.first + self.count
        if len(piece.logits) == len(piece.token_ids):
            return range(self.row, self.row + self.count), piece.logits[self.first : end]
        last = end == len(piece.token_ids)
        return range(self.row + self.count - last, self.row + self.count), piece.logits[: int(last)]


def cut(pieces: Sequence[Piece], most_rows: int) -> Iterator[list[Rows]]:
    """Cut the tokens of all pieces, in order, into runs of at most `most_rows` rows."""
    run: list[Rows] = []
    row = 0
    for piece in pieces:
        first = 0
        while first < len(piece.token_ids):
            count = min(len(piece.token_ids) - first, most_rows - row)
            run.append(Rows(piece, row, first, count))
            first, row = first + count, row + count
            if row == most_rows:
                yield run
                run, row = [], 0
    if run:
        yield run


def phase_of(pieces: Sequence[Piece]) -> int:
    """The phase of a run: that of a prompt if any of its tokens is one, since prompts use most experts once."""
    phases = {piece.sequence.turn.phase for piece in pieces}
    return PROMPT if PROMPT in phases else max(phases)
