"""Figures measured several times: their median, and how far they lie apart."""

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
        """At least one sample."""
        values = list(samples)
        return cls(statistics.median(values), min(values), max(values), values)

    def over(self, other: Spread) -> Spread:
        """Sample by sample, this over the other: samples of one moment are compared with one another only."""
        return Spread.of(mine / theirs for mine, theirs in zip(self.samples, other.samples, strict=True))
