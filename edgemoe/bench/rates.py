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
from collections import deque
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
from edgemoe.io.direct import allocate_pages
from edgemoe.io.reads import ExpertFiles, open_reader
from edgemoe.kernels.landing import STAGING_BYTES
from edgemoe.kernels.pages import PAGE_BYTES, round_up
from edgemoe.kernels.reads import PIECE_BYTES, RecordRead
from edgemoe.kernels.select import KernelChoice
from edgemoe.store.reader import Store

PIECES_PER_READER = 2
"""Pieces of records that are asked for at once, for each reader thread, so that it has its next one when one ends."""
LEAST_READS = 2
"""The fewest records that are asked for at once: threads that have no piece of the first one left take the next."""
READ_BYTES_MAX = 32 << 20
"""A longer record is read in parts of this size, so that memory is bounded."""
BUFFERS_BYTES = LEAST_READS * READ_BYTES_MAX
PASS_SECONDS = 0.35
DISK_PASSES = 5
PROBE_BYTES = 128 << 20
"""Size of the file that is written if there is no store to read from."""
WRITE_BYTES = 1 << 24
READ_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class ReadPlace:
    """A range of a file, in whole pages, for one read."""

    path: Path
    offset: int
    length: int


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
        self._places = [part for place in places for part in _parts(place)]
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
        pieces = READER_THREADS * PIECES_PER_READER
        in_flight = max(LEAST_READS, min(pieces, -(-pieces * self._piece_bytes // self._read_bytes)))
        arena = np.frombuffer(allocate_pages(in_flight * self._read_bytes), np.uint8)
        arena[::PAGE_BYTES] = 1  # writing allocates the pages, which the first reads would otherwise wait for
        free = [arena.ctypes.data + number * self._read_bytes for number in range(in_flight)]
        waiting: deque[tuple[int, int]] = deque()  # (ticket, address), the oldest first
        reader, read_bytes = open_reader(arena, READER_THREADS, piece_bytes=self._piece_bytes), 0
        try:
            began_s = time.perf_counter()
            while True:
                while free and (not read_bytes or time.perf_counter() - began_s < PASS_SECONDS):
                    place, address = self._random.choice(self._places), free.pop()
                    descriptor = self._files.descriptor(place.path)
                    read = RecordRead(descriptor, place.offset, place.length, address)
                    waiting.append((reader.submit([read], demand=True)[0], address))
                    read_bytes += place.length
                if not waiting:
                    return read_bytes / (time.perf_counter() - began_s)
                ticket, address = waiting.popleft()
                reader.wait(ticket, READ_TIMEOUT_SECONDS)
                reader.release(ticket)
                free.append(address)
        finally:
            reader.close()  # first, since its threads may still be reading into the arena

    def close(self) -> None:
        """Close the files. Closing twice is harmless."""
        self._files.close()

    def __enter__(self) -> DiskRates:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def store_places(store: Store) -> list[ReadPlace]:
    """Places of all expert records of a store, or of the whole pages around each part of one."""
    paths, records = store.expert_paths, store.manifest.records
    if records.places is None:
        return [ReadPlace(paths[record.file], record.offset, record.length) for record in records]
    places = records.places
    sizes = np.concatenate([store.manifest.layouts[number].parts["bytes"] for number in records.layout])
    found = []
    for file, offset, size in zip(places.file.tolist(), places.offset.tolist(), sizes.tolist(), strict=True):
        first = offset // PAGE_BYTES * PAGE_BYTES
        last = min(
            round_up(offset + size, PAGE_BYTES), store.manifest.expert_files[file].bytes // PAGE_BYTES * PAGE_BYTES
        )
        found.append(ReadPlace(paths[file], first, last - first))
    return [place for place in found if place.length > 0]


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


def piece_bytes_of(store: Store) -> int:
    """How many bytes of a store's records a reader thread reads at a time."""
    return STAGING_BYTES if store.staging_bytes else PIECE_BYTES


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


def _parts(place: ReadPlace) -> Iterator[ReadPlace]:
    for start in range(0, place.length, READ_BYTES_MAX):
        yield ReadPlace(place.path, place.offset + start, min(READ_BYTES_MAX, place.length - start))
