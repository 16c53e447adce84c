"""Which rows of a table a token has by the tokens before it: each n-gram is hashed to a row for each of some heads.

Source: `Qwen4ExpTextNGramEmbedding` of transformers. Products and their exclusive or are of signed 64 bits, and wrap.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgemoe.model.plain import ZERO_ALLOWED

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_PRIME = 10007
MOST_HEADS = 64
"""The most rows of a token."""


@dataclass(frozen=True)
class NgramRows:
    """The rule of one table: `heads` rows for every n-gram that ends with a token, of 2 tokens up to `longest`.

    Each head has a prime number of rows, the next one above that of the head before it; those of further tables follow
    on. A text's tokens before its first, and those up to the last end token before this one, count as end tokens.
    """

    longest: int
    heads: int
    least_rows: int
    """The least number of rows of a head."""
    multiple: int
    """The number of which the table's rows are a multiple."""
    number: int = field(metadata=ZERO_ALLOWED)
    """The number of this table among those of the model."""
    seed: int = field(metadata=ZERO_ALLOWED)
    vocab_size: int
    end_token: int = field(metadata=ZERO_ALLOWED)

    def check(self) -> None:
        """Raise ValueError for numbers that contradict one another."""
        if self.longest < 2 or self.count > MOST_HEADS:
            raise ValueError(f"{self.count} rows for n-grams of up to {self.longest} tokens")
        if self.number * self.count > 1 << 8:
            raise ValueError(f"the table of number {self.number}")

    @property
    def count(self) -> int:
        """The number of a token's rows."""
        return (self.longest - 1) * self.heads

    @property
    def look_back(self) -> int:
        """The number of earlier tokens that a token's rows depend on."""
        return self.longest - 1

    @functools.cached_property
    def multipliers(self) -> tuple[int, ...]:
        """The factor of a token by how many tokens before the last it stands: odd numbers from a hash of the seed."""
        half = max(1, ((1 << 63) - 1) // self.vocab_size // 2)
        base = self.seed + _PRIME * self.number
        return tuple(2 * (_split_mix((base + _GAMMA * (n + 1)) & _MASK) % half) + 1 for n in range(self.longest))

    @functools.cached_property
    def rows_of_heads(self) -> tuple[int, ...]:
        """The number of rows of each head."""
        found, number = [], self.least_rows - 1
        for _ in range((self.number + 1) * self.count):
            number += 1
            while not _is_prime(number):
                number += 1
            found.append(number)
        return tuple(found[-self.count :])

    @functools.cached_property
    def total_rows(self) -> int:
        """The rows of the table."""
        return -(-sum(self.rows_of_heads) // self.multiple) * self.multiple

    def of(self, ids: npt.NDArray[np.integer], before: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """The rows of tokens, `(T, count)`; `before`: all that came before them, or the last `look_back` of these."""
        filled = np.full(self.look_back, self.end_token, np.int64)
        filled[len(filled) - min(len(before), len(filled)) :] = before[max(0, len(before) - len(filled)) :]
        history = np.concatenate([filled, ids]).astype(np.int64)
        places = np.arange(self.look_back, len(history))
        # The place after the last end token before each one.
        ends = np.where(history == self.end_token, np.arange(1, len(history) + 1), 0)
        begins = np.concatenate([[0], np.maximum.accumulate(ends)[:-1]])[places]
        rows = np.empty((len(ids), self.count), np.int64)
        sizes = np.array(self.rows_of_heads, np.int64).reshape(-1, self.heads)
        offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).reshape(sizes.shape)
        mixed = history[places] * np.int64(self.multipliers[0])
        for back in range(1, self.longest):
            token = np.where(places - back >= begins, history[places - back], self.end_token)
            mixed ^= token * np.int64(self.multipliers[back])
            head = slice((back - 1) * self.heads, back * self.heads)
            rows[:, head] = mixed[:, None] % sizes[back - 1] + offsets[back - 1]
        return rows


def _split_mix(value: int) -> int:
    """SplitMix64 (Steele et al. 2014)."""
    value = (value + _GAMMA) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _is_prime(number: int) -> bool:
    if number % 2 == 0:
        return number == 2
    return number > 2 and all(number % divisor for divisor in range(3, math.isqrt(number) + 1, 2))
