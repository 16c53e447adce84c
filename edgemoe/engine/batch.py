"""A batch: tokens of one or several sequences that are run together, and the runs into which it is cut.

What a token's row gives depends on its own sequence alone, so neither the company in a batch nor the cut changes a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgemoe.engine.phase import PROMPT
from edgemoe.engine.sequence import Sequence as TokenSequence
from edgemoe.kernels.operations import Floats

Take = Callable[[Floats], None]
"""A function that is given the logits of some rows, `(n, V)`, which are overwritten once it returns."""


@dataclass(eq=False, slots=True)
class Piece:
    """Tokens that one sequence appends, or runs again."""

    sequence: TokenSequence
    token_ids: npt.NDArray[np.int64]
    logits: Floats
    """Where the logits go: `(1, V)`, after the last token, or `(T, V)`, after each, or `(0, V)`: nowhere."""
    take: Take | None = None
    """A function for the logits after each token from `first_taken` on, in order, a few rows at a time."""
    first_taken: int = 0
    hidden: Floats | None = None
    """The hidden state of the token before each token `(T, D)`, for an MTP head."""


@dataclass(eq=False, slots=True)
class Rows:
    """Consecutive rows of a run that belong to one piece: its tokens `first` to `first + count`."""

    piece: Piece
    row: int
    first: int
    count: int

    @property
    def end(self) -> int:
        """How many tokens of the piece have been run with these rows."""
        return self.first + self.count

    @property
    def token_ids(self) -> npt.NDArray[np.int64]:
        return self.piece.token_ids[self.first : self.end]

    def wanted(self) -> tuple[range, Floats]:
        """The rows whose logits are wanted, and where these go."""
        piece = self.piece
        if len(piece.logits) == len(piece.token_ids):
            return range(self.row, self.row + self.count), piece.logits[self.first : self.end]
        last = len(piece.logits) if self.end == len(piece.token_ids) else 0
        return range(self.row + self.count - last, self.row + self.count), piece.logits[:last]

    def taken(self) -> range:
        """The rows whose logits `take` gets."""
        return range(self.row + max(0, self.piece.first_taken - self.first), self.row + self.count)


def cut(pieces: Sequence[Piece], most_rows: int) -> Iterator[list[Rows]]:
    """Cut the tokens of all pieces, in order, into runs of at most `most_rows` rows.

    A run ends too where a sequence has to take a snapshot in the middle of its tokens.
    """
    run: list[Rows] = []
    row = 0
    for piece in pieces:
        first, stop = 0, piece.sequence.stop_within(len(piece.token_ids))
        while first < len(piece.token_ids):
            end = stop if first < stop else len(piece.token_ids)
            count = min(end - first, most_rows - row)
            run.append(Rows(piece, row, first, count))
            first, row = first + count, row + count
            if row == most_rows or first == stop:
                yield run
                run, row = [], 0
    if run:
        yield run


def phase_of(pieces: Sequence[Piece]) -> int:
    """The phase of a run: that of a prompt if any of its tokens is one, since prompts use most experts once."""
    phases = {piece.sequence.turn.phase for piece in pieces}
    return PROMPT if PROMPT in phases else max(phases)
