"""Figures measured several times: their median, and their spread."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """The samples of one figure, in the order in which they were taken."""

    median: float
    min: float
    max: float
    samples: Sequence[float]

    @classmethod
    def of(cls, samples: Iterable[float]) -> Spread:
        """Collect samples; at least one is needed."""
        values = list(samples)
        return cls(statistics.median(values), min(values), max(values), values)

    def over(self, other: Spread) -> Spread:
        """The ratio to another spread, sample by sample: only samples of the same moment are compared."""
        return Spread.of(mine / theirs for mine, theirs in zip(self.samples, other.samples, strict=True))
