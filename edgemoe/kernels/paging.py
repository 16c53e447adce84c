"""The parts that pagers share, whether they run in Python (`ExpertCache`) or in C: phases, counters, records.

Letters: `L` layers, `E` experts of the layer that has most.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.operations import Floats, Integers
from edgemoe.kernels.pages import PAGE_BYTES, round_up

RECORD = np.dtype(
    [
        ("offset", np.int64),
        ("length", np.int64),
        ("crc32c", np.int64),
        ("descriptor", np.int32),
        ("part_count", np.int32),
        ("parts", np.int64),
        ("places", np.int64),
    ]
)
"""Where an expert's record lies: bytes in an open file, and their expected checksum, negative where it is not known.

A record in parts has the addresses of arrays of `PART` and `PLACE` (`kernels/landing.py`) instead.
"""

Records = npt.NDArray[np.void]
"""The place of every expert's record, `(L, E)` of `RECORD`. An expert that a layer lacks has `length` 0."""


@dataclass(frozen=True)
class RowFile:
    """Rows of one length that follow one another in an open file, some to a page, which is read as a whole."""

    descriptor: int
    offset: int
    """The place of the first row, a multiple of 4096."""
    row_bytes: int
    per_page: int
    """How many rows a page has: together a multiple of 4096 bytes."""
    crc32c: npt.NDArray[np.uint32]
    """The checksum of each row."""

    @property
    def page_bytes(self) -> int:
        return self.row_bytes * self.per_page

    @property
    def pages(self) -> int:
        return -(-len(self.crc32c) // self.per_page)

    def read_bytes(self, page: int) -> int:
        """The bytes that the read of a page has: whole pages of 4096, of the last one those with rows."""
        left = len(self.crc32c) * self.row_bytes - page * self.page_bytes
        return min(self.page_bytes, round_up(left, PAGE_BYTES))


MOST_WARM_READS = 2048
"""The most reads of a warm start; the reader has room for more requests than these."""


PROMPT, DECODE, VERIFY = 0, 1, 2
"""Phases: tokens of a prompt, generated ones, and guessed ones that are verified."""


class Pager(Protocol):
    """The expert cache as a kernel in Python asks it (`ExpertCache`); kernels in C ask the pager in C."""

    wait_ns: int
    """Time for which it has waited for reads so far."""

    def fetch(self, layer: int, experts: Integers, weights: Floats | None, drop_cold: float, from_base: bool) -> None:
        """Begin a use of the experts that tokens are routed to, `(T, K)`: see `expert_operations.Fetch`."""

    def landings(self, layer: int) -> Generator[tuple[int, int], None, None]:
        """Yield each expert of the use with its slot, once its record is there. Raises ReadError naming the expert."""

    def left_out(self, layer: int) -> Sequence[int]:
        """The experts that the use leaves out."""

    def set_aside(self, layer: int) -> Sequence[int]:
        """The experts that are computed from their bases."""

    def prefetch(self, layer: int, experts: Sequence[int]) -> None:
        """Begin to read experts that a layer will probably use; demand reads go first."""


class _Count:
    """A counter of `CacheStatistics`: one element of its array."""

    def __init__(self, place: int) -> None:
        self._place = place

    def __get__(self, statistics: CacheStatistics, owner: type) -> int:
        return int(statistics.counts[self._place])

    def __set__(self, statistics: CacheStatistics, value: int) -> None:
        statistics.counts[self._place] = value


class CacheStatistics:
    """Counters since the cache was made. A hit is an expert that was loaded when the router chose it."""

    hits = _Count(0)
    misses = _Count(1)
    late_prefetches = _Count(2)
    """Misses whose prefetched read had begun but not ended."""
    demand_bytes = _Count(3)
    prefetched_bytes = _Count(4)
    prefetched_reads = _Count(5)
    useful_prefetches = _Count(6)
    """Prefetched reads whose expert was used before it left."""
    guessable_uses = _Count(7)
    """Routed experts for which a guess had been made."""
    guessed_uses = _Count(8)
    """Guessable uses that the guess had named: recall = guessed_uses / guessable_uses."""
    warm_bytes = _Count(9)
    """Bytes of experts read at the start from the last session's hot list; neither demand nor prefetched reads."""
    dropped = _Count(10)
    """Routed experts that were absent and not read because their weight was small (a lossy setting)."""

    from_base = _Count(11)
    """Misses that were computed from their bases, without waiting (a lossy setting)."""

    def __init__(self) -> None:
        self.counts: npt.NDArray[np.int64] = np.zeros(12, np.int64)
        """The counters in the order of `em_pager_counters`: a pager in C counts here."""

    @property
    def read_bytes(self) -> int:
        return self.demand_bytes + self.prefetched_bytes
