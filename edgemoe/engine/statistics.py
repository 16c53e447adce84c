"""Counters of an engine."""

from __future__ import annotations

from dataclasses import dataclass

from edgemoe.kernels.paging import CacheStatistics


@dataclass(frozen=True)
class EngineStatistics:
    """Counters since the engine was opened."""

    tokens: int
    cache: CacheStatistics

    @property
    def expert_hits(self) -> int:
        return self.cache.hits

    @property
    def expert_misses(self) -> int:
        return self.cache.misses

    @property
    def expert_drops(self) -> int:
        """Experts that the router chose, that were absent, and that were left out (`LossySettings.drop_cold`)."""
        return self.cache.dropped

    @property
    def experts_from_base(self) -> int:
        """Missed experts that were computed from their bases alone (`LossySettings.on_miss`)."""
        return self.cache.from_base

    @property
    def disk_bytes(self) -> int:
        """Bytes of experts read from disk for tokens (not those loaded at the start)."""
        return self.cache.read_bytes
