"""How fast a disk reads expert records: whole ones at random places, by the threads and in the pieces of the engine."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgemoe.experts.opening import READER_THREADS
from edgemoe.io.reads import ExpertFiles, open_reader
from edgemoe.kernels.landing import STAGING_BYTES
from edgemoe.kernels.pages import PAGE_BYTES, round_up
from edgemoe.kernels.reads import PIECE_BYTES, RecordRead
from edgemoe.store.neurons import NeuronTable
from edgemoe.store.reader import Store

PIECES_PER_READER = 2
"""Pieces of records that are asked for at once, for each reader thread, so that it has its next one when one ends."""
LEAST_READS = 2
"""The fewest records that are asked for at once: threads that have no piece of the first one left take the next."""
READ_TIMEOUT_SECONDS = 60.0
MOST_PLACES = 1 << 16
"""The most places of neurons among which reads are drawn, about."""


@dataclass(frozen=True)
class ReadPlace:
    """A range of a file, in whole pages, for one read."""

    path: Path
    offset: int
    length: int

    def cut(self, most_bytes: int) -> Iterator[ReadPlace]:
        """Yield its parts of at most so many bytes, a multiple of a page."""
        for start in range(0, self.length, most_bytes):
            yield ReadPlace(self.path, self.offset + start, min(most_bytes, self.length - start))


def store_places(store: Store) -> list[ReadPlace]:
    """Places of all expert records of a store, of the whole pages around each part of one, or of pages of neurons."""
    if store.neurons is not None:
        return _neuron_places(store.dense_path, store.neurons)
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


def _neuron_places(path: Path, table: NeuronTable) -> list[ReadPlace]:
    """Places of whole pages of neurons, about `MOST_PLACES` of them, throughout the table."""
    whole = table.count // table.layout.neurons_per_page
    pages = range(0, whole, whole // MOST_PLACES + 1)
    return [ReadPlace(path, table.offset + page * table.page_bytes, table.page_bytes) for page in pages]


def piece_bytes_of(store: Store) -> int:
    """How many bytes of a store's records a reader thread reads at a time."""
    return STAGING_BYTES if store.staging_bytes else PIECE_BYTES


def reads_at_once(read_bytes: int, piece_bytes: int) -> int:
    """How many reads of a size keep all reader threads busy."""
    pieces = READER_THREADS * PIECES_PER_READER
    return max(LEAST_READS, min(pieces, -(-pieces * piece_bytes // read_bytes)))


def read_rate(
    files: ExpertFiles,
    places: Sequence[ReadPlace],
    memory: npt.NDArray[np.uint8],
    piece_bytes: int,
    seconds: float,
    chosen: random.Random,
) -> float:
    """Bytes per second of reads of random places, for `seconds` and until the last one has ended.

    `memory`, which begins at a page, has room for one of the places at least; no thread touches it afterwards. Raises
    ReadError if a read fails or does not end.
    """
    most = max(place.length for place in places)
    slots = min(reads_at_once(most, piece_bytes), memory.nbytes // most)
    memory[: slots * most : PAGE_BYTES] = 1  # allocates the pages, for which the first reads would wait otherwise
    free = [memory.ctypes.data + number * most for number in range(slots)]
    waiting: deque[tuple[int, int]] = deque()  # (ticket, address), the oldest first
    reader, read_bytes = open_reader(memory, READER_THREADS, piece_bytes=piece_bytes), 0
    try:
        began_s = time.perf_counter()
        while True:
            while free and (not read_bytes or time.perf_counter() - began_s < seconds):
                place, address = chosen.choice(places), free.pop()
                read = RecordRead(files.descriptor(place.path), place.offset, place.length, address)
                waiting.append((reader.submit([read], demand=True)[0], address))
                read_bytes += place.length
            if not waiting:
                return read_bytes / (time.perf_counter() - began_s)
            ticket, address = waiting.popleft()
            reader.wait(ticket, READ_TIMEOUT_SECONDS)
            reader.release(ticket)
            free.append(address)
    finally:
        reader.close()  # its threads may still be reading into the memory
