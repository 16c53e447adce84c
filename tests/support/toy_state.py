"""Sequences without a model, whose state of every kind is made of the ids of their tokens."""

from __future__ import annotations

from collections.abc import Sequence as ListOf

import numpy as np

from edgemoe.engine.batch import Piece, Rows, cut
from edgemoe.engine.fixed_state import FixedState
from edgemoe.engine.pages import PageGroup
from edgemoe.engine.sequence import Sequence, Sequences
from edgemoe.engine.workspace import pool_pages
from edgemoe.kernels.operations import PAGE_TOKENS
from edgemoe.model.graph import Window

NEEDED = 3
"""Positions before a token that it needs from the ring."""


class Toy:
    """Pages of ids, and perhaps windows of them; as fixed state a ring of the last ids and perhaps a running sum.

    What a token needs is looked at when it is run, as the kernels would, and nothing else.
    """

    def __init__(
        self,
        rows: int,
        pages: int,
        undo: int,
        snapshots: int = 0,
        chunk: int = 50,
        recurrent: bool = False,
        windows: ListOf[int] = (),
        keeps_prefixes: bool = True,
    ) -> None:
        """Fixed state is there where it has `snapshots`."""
        self.recurrent, self.chunk = recurrent, chunk
        self.groups = []
        for window in (None, *(Window(size, undo) for size in windows)):
            count = pool_pages(window, chunk, pages * PAGE_TOKENS, rows)
            table = np.zeros((rows, pages), np.int32)
            self.groups.append(PageGroup(table, count, window, [np.full((count, PAGE_TOKENS), -1.0)]))
        self.ring = np.full((rows, NEEDED + undo, 1), -1.0, np.float32)
        self.sums = np.full((rows, 1), np.nan, np.float32)
        values = [(self.ring, undo), *([(self.sums, 0)] if recurrent else [])]
        fixed = FixedState(values, snapshots) if snapshots else None
        self.fixed = fixed
        self.sequences = Sequences(self.groups, 100, keeps_prefixes, fixed)
        self.runs = 0
        """Tokens that were run, those included that were run again."""

    def append(self, sequence: Sequence, ids: np.ndarray, fail_after: int | None = None) -> None:
        """Run tokens as the engine does; the run with the number `fail_after` fails when it has changed the state."""
        self.step({sequence: ids}, fail_after)

    def step(self, batch: dict[Sequence, np.ndarray], fail_after: int | None = None) -> None:
        """Run tokens of several sequences together."""
        nowhere = np.empty((0, 1), np.float32)
        positions = {sequence: sequence.position for sequence in batch}
        for sequence, ids in batch.items():
            sequence.reserve(len(ids))
        batches = [
            [Piece(sequence, np.array(sequence.ids[sequence.resumes_at :], np.int64), nowhere)]
            for sequence in batch
            if sequence.behind
        ]
        batches.append([Piece(sequence, ids, nowhere) for sequence, ids in batch.items()])
        number = 0
        for pieces in batches:
            if pieces is batches[-1]:
                for piece in pieces:
                    piece.sequence.mark(len(piece.token_ids))
            for run in cut(pieces, self.chunk):
                for rows in run:
                    if self.sequences.forgetful:
                        rows.piece.sequence.begin_run(rows.count)
                for rows in run:
                    self._run(rows)
                number += 1
                if number == fail_after:
                    for sequence, position in positions.items():
                        sequence.give_up(position)
                    return
                for rows in run:
                    rows.piece.sequence.end_run(rows.token_ids)

    def _run(self, rows: Rows) -> None:
        sequence = rows.piece.sequence
        row, first = sequence.row, sequence.resumes_at
        text = np.array([*sequence.ids[:first], *rows.token_ids])
        for position, token in enumerate(rows.token_ids.tolist(), first):
            for group in self.groups:
                page = group.table[row, position // PAGE_TOKENS]
                group.arrays[0][page, position % PAGE_TOKENS] = token
                begin = 0 if group.window is None else max(0, position - group.window.size + 1)
                assert (self.held(sequence, group, begin, position + 1) == text[begin : position + 1]).all()
            self.runs += 1
            if self.fixed is None:
                continue
            begin = max(0, position - NEEDED)
            before = [int(self.ring[row, p % self.ring.shape[1], 0]) for p in range(begin, position)]
            assert before == text[begin:position].tolist()
            assert position == 0 or not self.recurrent or self.sums[row] == text[:position].sum()
            self.ring[row, position % self.ring.shape[1]] = token
            self.sums[row] = (self.sums[row] if position else 0) + token

    def held(self, sequence: Sequence, group: PageGroup, begin: int, end: int) -> np.ndarray:
        """The ids in a sequence's pages."""
        pages = group.table[sequence.row, begin // PAGE_TOKENS : -(-end // PAGE_TOKENS)]
        assert (pages >= 0).all()
        first = begin % PAGE_TOKENS
        return group.arrays[0][pages].reshape(-1)[first : first + end - begin]

    def check(self, sequence: Sequence) -> None:
        """The state is that of its tokens: the next one finds what it needs."""
        assert self.held(sequence, self.groups[0], 0, sequence.position).tolist() == sequence.ids
        self.append(sequence, np.array([7]))
        sequence.rewind(sequence.position - 1)
