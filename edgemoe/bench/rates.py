"""How fast this machine reads: its memory, and experts from a disk, the way the engine reads them.

The disk is measured with direct reads of whole expert records, at random places, through the engine's own reader: as
many threads, which share out records in pieces of the same size, and as many records at once as keep all of them busy.
So the page cache plays no part; a cache in the disk or in a virtual machine's host does. A pass takes a fraction of a
second, and its buffers at most `BUFFERS_BYTES`.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np

from edgemoe.bench.roofline import BUFFER_BYTES, PASSES, ReadRate, ReadRates, allocate_buffer
from edgemoe.errors import UsageError
from edgemoe.experts.opening import READER_THREADS
from edgemoe.experts.read_rate import (
    LEAST_READS,
    ReadPlace,
    piece_bytes_of,
    read_rate,
    reads_at_once,
    store_places,
)
from edgemoe.io.direct import allocate_pages
from edgemoe.io.reads import ExpertFiles
from edgemoe.kernels.pages import PAGE_BYTES, round_up
from edgemoe.kernels.reads import PIECE_BYTES
from edgemoe.kernels.select import KernelChoice
from edgemoe.store.reader import Store

READ_BYTES_MAX = 32 << 20
"""A longer record is read in parts of this size, so that memory is bounded."""
BUFFERS_BYTES = LEAST_READS * READ_BYTES_MAX
PASS_SECONDS = 0.35
DISK_PASSES = 5
PROBE_BYTES = 128 << 20
"""Size of the file that is written if there is no store to read from."""
WRITE_BYTES = 1 << 24


@dataclass(frozen=True)
class DiskRate:
    """The rate of one pass over a disk, or of the median of several passes."""

    bytes_per_s: float
    read_bytes: int
    """Size of each read (the largest, if records differ)."""
    readers: int
    direct: bool
    """Whether reads bypassed the page cache; if not, the rate may be the page cache's."""


class DiskRates:
    """Measures the rate of the same records repeatedly; no threads run in between. A context manager."""

    def __init__(
        self, places: Sequence[ReadPlace], direct: bool = True, piece_bytes: int = PIECE_BYTES, seed: int = 0
    ) -> None:
        """`piece_bytes` are as many as a reader thread reads at a time.

        Raises UsageError if there is nothing to read, ReadError if a file cannot be opened.
        """
        self._places = [part for place in places for part in place.cut(READ_BYTES_MAX)]
        if not self._places:
            raise UsageError("There are no expert records to read: the disk's rate cannot be measured.")
        self._random = random.Random(seed)
        self._read_bytes = max(place.length for place in self._places)
        self._piece_bytes = piece_bytes
        self._files = ExpertFiles((place.path for place in places), direct)

    @property
    def direct(self) -> bool:
        """Whether reads bypass the page cache."""
        return self._files.direct

    def __call__(self) -> DiskRate:
        """Measure one pass. Raises ReadError if a read fails or does not end."""
        return DiskRate(self._pass(), self._read_bytes, READER_THREADS, self._files.direct)

    def _pass(self) -> float:
        """Bytes per second of random records, for `PASS_SECONDS`."""
        reads = reads_at_once(self._read_bytes, self._piece_bytes)
        memory = np.frombuffer(allocate_pages(reads * self._read_bytes), np.uint8)
        return read_rate(self._files, self._places, memory, self._piece_bytes, PASS_SECONDS, self._random)

    def close(self) -> None:
        """Close the files. Closing twice is harmless."""
        self._files.close()

    def __enter__(self) -> DiskRates:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def file_places(paths: Iterable[Path], record_bytes: int) -> list[ReadPlace]:
    """Places for as many records of a size as fit in whole files, whatever the files hold. Raises OSError."""
    length = round_up(record_bytes, PAGE_BYTES)
    return [
        ReadPlace(path, number * length, length) for path in paths for number in range(path.stat().st_size // length)
    ]


@contextmanager
def probe_places(folder: Path, record_bytes: int) -> Iterator[list[ReadPlace]]:
    """Places for records of a size in a temporary file in the folder. Raises OSError."""
    length = round_up(record_bytes, PAGE_BYTES)
    count = max(1, PROBE_BYTES // length)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".edgemoe-probe-") as file:
        left = count * length
        while left:
            left -= file.write(os.urandom(min(left, WRITE_BYTES)))  # a disk may compress what repeats
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        yield [ReadPlace(Path(file.name), number * length, length) for number in range(count)]


def measure_disk(places: Sequence[ReadPlace], piece_bytes: int = PIECE_BYTES) -> DiskRate:
    """The median of several passes; takes about two seconds. Raises ReadError and UsageError as `DiskRates`."""
    with DiskRates(places, piece_bytes=piece_bytes) as rates:
        passes = [rates() for _ in range(DISK_PASSES)]
    return replace(passes[0], bytes_per_s=statistics.median(one.bytes_per_s for one in passes))


def measure_store_disk(store: Store) -> DiskRate:
    """Rate at which experts of a store are read from its disk."""
    return measure_disk(store_places(store), piece_bytes_of(store))


def measure_folder_disk(folder: Path, record_bytes: int) -> DiskRate:
    """Rate at which records of a size would be read from a folder's disk. Raises OSError if it is not writable."""
    with probe_places(folder, record_bytes) as places:
        return measure_disk(places)


def measure_memory(kernels: KernelChoice) -> ReadRate:
    """Rate at which all threads together read memory; without native kernels measured in NumPy, about 4/5 of it.

    Raises EdgemoeError if almost no memory is free.
    """
    if kernels.backend == "native":
        with ReadRates(kernels) as read_rates:
            return read_rates()
    words = allocate_buffer(BUFFER_BYTES).view(np.uint64)
    parts = np.array_split(words, kernels.threads)
    with ThreadPoolExecutor(kernels.threads) as pool:
        fastest_s = min(_timed(pool, parts) for _ in range(PASSES))
    return ReadRate(words.nbytes / fastest_s, words.nbytes)


def _timed(pool: ThreadPoolExecutor, parts: Sequence[np.ndarray[tuple[int, ...], np.dtype[np.uint64]]]) -> float:
    began_s = time.perf_counter()
    for done in [pool.submit(np.bitwise_or.reduce, part) for part in parts]:
        done.result()
    return time.perf_counter() - began_s
