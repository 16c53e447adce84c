"""Measures the progress of a conversion."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

REPORT_INTERVAL_S = 0.1
_LEAST_TIME_FOR_RATE_S = 0.5


@dataclass(frozen=True)
class Progress:
    """Progress of a conversion. Bytes are those of the store, of which `resumed_bytes` were there at the start."""

    shard: str
    """The part of the checkpoint that is being read, or the layer."""
    done_bytes: int
    total_bytes: int
    resumed_bytes: int
    bytes_per_second: float | None
    """The mean rate of this run; None before there is one."""
    seconds_left: float | None
    """An estimate from that rate."""
    comparing: bool = False
    """Whether all is written and a text goes through the checkpoint, whose bytes these are, to compare the two."""


@dataclass(frozen=True)
class Download:
    """Progress of the download of one file."""

    name: str
    done_bytes: int
    """Bytes on this disk, including those of an earlier run."""
    total_bytes: int | None
    """Size of the file; None if the hub does not give it."""
    rest_bytes: int = 0
    """Bytes of further files that are to be downloaded after it."""
    checking: bool = False
    """Whether it is there and being checked, of which `done_bytes` are done."""


Callback = Callable[[Progress], None]
DownloadCallback = Callable[[Download], None]
NoticeCallback = Callable[[str], None]
"""Takes a paragraph that a person should read."""


class ProgressMeter:
    """Counts bytes, and calls back a few times a second."""

    def __init__(
        self, callback: Callback | None, total_bytes: int, resumed_bytes: int, comparing: bool = False
    ) -> None:
        self._callback = callback
        self._comparing = comparing
        self._total_bytes = total_bytes
        self._resumed_bytes = resumed_bytes
        self._done_bytes = resumed_bytes
        self._began_s = time.monotonic()
        self._reported_s = float("-inf")

    def again(self) -> ProgressMeter:
        """A meter that goes on from here, and measures its rate anew."""
        return ProgressMeter(self._callback, self._total_bytes, self._done_bytes)

    def advance(self, shard: str, done_bytes: int) -> None:
        """Count bytes that are done."""
        self._done_bytes += done_bytes
        now = time.monotonic()
        if self._callback is None or (
            now - self._reported_s < REPORT_INTERVAL_S and self._done_bytes < self._total_bytes
        ):
            return
        self._reported_s = now
        elapsed = now - self._began_s
        fresh = self._done_bytes - self._resumed_bytes
        rate = fresh / elapsed if elapsed > _LEAST_TIME_FOR_RATE_S and fresh else None
        left = (self._total_bytes - self._done_bytes) / rate if rate else None
        of_bytes = self._done_bytes, self._total_bytes, self._resumed_bytes
        self._callback(Progress(shard, *of_bytes, rate, left, self._comparing))
