"""QMoE's code for ternary matrices, from its description (arXiv 2310.16795), with which sub1 is compared.

A dictionary of 2^16 sequences of up to 14 pairs of trits, the most probable ones of independent trits; tests of its
own take a smaller one, which is made faster. A row is cut, from the left, into the longest sequences that the
dictionary has, each a number of 16 bits. A row has a start of 4 bytes in the stream, and two levels of 2 bytes.
"""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

ENTRIES, MOST_PAIRS, PAIRS = 1 << 16, 14, 9
ROOT = -1


class PairDictionary:
    """The dictionary for trits of which a share of `zeros` is 0, and the others are -1 or 1 alike."""

    def __init__(self, zeros: float = 0.885, entries: int = ENTRIES) -> None:
        of_trit = np.array([(1 - zeros) / 2, zeros, (1 - zeros) / 2])
        of_pair = np.log(np.outer(of_trit, of_trit)).reshape(-1).tolist()
        self.longer = np.full((entries + 1, PAIRS), -1, np.int32)
        """The number of each entry with a pair more; -1 where there is none. The last row is that of nothing."""
        self.sequences: list[tuple[int, ...]] = []
        candidates: list[tuple[float, int, int, tuple[int, ...]]] = []
        made = 0

        def extend(node: int, loss: float, sequence: tuple[int, ...]) -> None:
            nonlocal made
            for pair, chance in enumerate(of_pair):
                made += 1
                heapq.heappush(candidates, (loss - chance, made, node, (*sequence, pair)))

        extend(ROOT, 0.0, ())
        while len(self.sequences) < entries:
            loss, _, node, sequence = heapq.heappop(candidates)
            number = len(self.sequences)
            self.longer[node, sequence[-1]] = number
            self.sequences.append(sequence)
            if len(sequence) < MOST_PAIRS:
                extend(number, loss, sequence)

    def encode(self, trits: npt.NDArray[np.int8]) -> list[npt.NDArray[np.uint16]]:
        """The codes of each row, which has an even number of columns."""
        pairs = (trits[:, ::2] + 1) * 3 + trits[:, 1::2] + 1
        node = np.full(len(trits), ROOT, np.int32)
        codes = np.full(pairs.shape, ROOT, np.int32)  # where a sequence ends
        for column in range(pairs.shape[1]):
            longer = self.longer[node, pairs[:, column]]
            ends = longer < 0
            if column:
                codes[ends, column - 1] = node[ends]
            node = np.where(ends, self.longer[ROOT, pairs[:, column]], longer)
        codes[:, -1] = node
        return [row[row >= 0].astype(np.uint16) for row in codes]

    def decode(self, codes: list[npt.NDArray[np.uint16]]) -> npt.NDArray[np.int8]:
        rows = [[pair for code in row.tolist() for pair in self.sequences[code]] for row in codes]
        pairs = np.array(rows)
        return np.stack([pairs // 3 - 1, pairs % 3 - 1], axis=2).reshape(len(rows), -1).astype(np.int8)


def encoded_bytes(codes: list[npt.NDArray[np.uint16]]) -> int:
    """Bytes of all codes, with the starts and levels of rows."""
    return sum(row.nbytes for row in codes) + 4 * (len(codes) + 1) + 4 * len(codes)
