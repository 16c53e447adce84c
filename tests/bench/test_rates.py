"""Read rates: what a pass counts, that it keeps the readers busy, and that nothing is left behind."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgemoe.bench import rates
from edgemoe.bench.rates import (
    DiskRates,
    measure_disk,
    measure_folder_disk,
    measure_memory,
    measure_store_disk,
    probe_places,
)
from edgemoe.errors import ReadError, UsageError
from edgemoe.experts import read_rate
from edgemoe.experts.opening import READER_THREADS
from edgemoe.experts.read_rate import ReadPlace, store_places
from edgemoe.kernels.reads import RecordRead
from edgemoe.kernels.select import KernelChoice
from edgemoe.store.reader import Store

PIECE_S = 0.001
"""Seconds that a thread takes for a piece in the disk that is made up here."""


class MadeUpDisk:
    """A reader whose threads take a known time of a clock of its own for each piece, the earliest requests first."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.opened: list[int] = []
        self.lengths: set[int] = set()
        self.in_flight = self.most_in_flight = 0

    def clock(self) -> SimpleNamespace:
        return SimpleNamespace(perf_counter=lambda: self.now_s)

    def open(self, arena: np.ndarray, threads: int, piece_bytes: int) -> "MadeUpDisk":
        self.opened.append(threads)
        self.piece_bytes = piece_bytes
        self.threads_free_s = [self.now_s] * threads
        self.idle_s = 0.0
        self.ends_s: list[float] = []
        self.first, self.last = arena.ctypes.data, arena.ctypes.data + arena.nbytes
        return self

    def submit(self, reads: Sequence[RecordRead], demand: bool) -> list[int]:
        assert demand
        return [self.submit_one(read) for read in reads]

    def submit_one(self, read: RecordRead) -> int:
        assert read.offset % 4096 == 0
        assert self.first <= read.address
        assert read.address + read.length <= self.last
        self.lengths.add(read.length)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        ends_s = []
        for _ in range(0, read.length, self.piece_bytes):
            thread = min(range(len(self.threads_free_s)), key=self.threads_free_s.__getitem__)
            self.idle_s += max(0.0, self.now_s - self.threads_free_s[thread])
            self.threads_free_s[thread] = max(self.now_s, self.threads_free_s[thread]) + PIECE_S
            ends_s.append(self.threads_free_s[thread])
        self.ends_s.append(max(ends_s))
        return len(self.ends_s) - 1

    def wait(self, ticket: int, timeout_seconds: float | None = None) -> None:
        assert timeout_seconds
        self.now_s = max(self.now_s, self.ends_s[ticket])

    def release(self, ticket: int) -> None:
        self.in_flight -= 1

    def close(self) -> None:
        assert self.in_flight == 0


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> MadeUpDisk:
    made_up = MadeUpDisk()
    monkeypatch.setattr(read_rate, "open_reader", made_up.open)
    monkeypatch.setattr(read_rate, "time", made_up.clock())
    return made_up


@pytest.fixture
def place(tmp_path: Path) -> Callable[[int], ReadPlace]:
    def make(length: int) -> ReadPlace:
        path = tmp_path / "records"
        path.write_bytes(bytes(8192))
        return ReadPlace(path, 4096, length)

    return make


@pytest.mark.parametrize(("record_bytes", "piece_bytes", "in_flight"), [
    (4096, 1 << 20, 16), (1 << 20, 1 << 20, 16), (2 << 20, 1 << 20, 8), (12 << 20, 1 << 20, 2), (2 << 20, 1 << 18, 2),
])  # fmt: skip
def test_the_rate_is_that_of_busy_readers(
    disk: MadeUpDisk, place: Callable[[int], ReadPlace], record_bytes: int, piece_bytes: int, in_flight: int
) -> None:
    with DiskRates([place(record_bytes)], piece_bytes=piece_bytes) as measure:
        first, second = measure(), measure()
    assert disk.opened == [READER_THREADS, READER_THREADS]
    assert first.readers == second.readers == READER_THREADS
    assert first.read_bytes == record_bytes
    assert first.bytes_per_s == pytest.approx(READER_THREADS * min(piece_bytes, record_bytes) / PIECE_S, rel=0.04)
    assert disk.idle_s <= 0.01 * READER_THREADS * rates.PASS_SECONDS
    assert disk.most_in_flight == in_flight


def test_a_pass_takes_its_time_and_no_more(disk: MadeUpDisk, place: Callable[[int], ReadPlace]) -> None:
    measure_disk([place(1 << 20)])
    assert len(disk.opened) == rates.DISK_PASSES
    assert disk.now_s - 100 == pytest.approx(rates.DISK_PASSES * rates.PASS_SECONDS, rel=0.1)


def test_long_records_are_read_in_parts_so_that_memory_is_bounded(
    disk: MadeUpDisk, place: Callable[[int], ReadPlace], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    allocate = rates.allocate_pages

    def allocate_noted(size: int) -> object:
        sizes.append(size)
        return allocate(size)

    monkeypatch.setattr(rates, "allocate_pages", allocate_noted)
    with DiskRates([place((99 << 20) + 4096)]) as measure:
        assert measure().read_bytes == rates.READ_BYTES_MAX
    assert disk.lengths == {rates.READ_BYTES_MAX, (3 << 20) + 4096}
    assert disk.most_in_flight == 2
    assert max(sizes) <= rates.BUFFERS_BYTES


def test_the_middle_pass_is_told(monkeypatch: pytest.MonkeyPatch, place: Callable[[int], ReadPlace]) -> None:
    passes = iter([2.0, 9.0, 4.0, 7.0, 5.0])
    monkeypatch.setattr(DiskRates, "_pass", lambda self: next(passes))
    assert measure_disk([place(4096)]).bytes_per_s == 5.0


def test_records_of_a_store_are_read(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "PASS_SECONDS", 0.01)
    opened = Store.open(store)
    places = store_places(opened)
    assert len(places) == 8  # four experts in each of two layers
    assert {place.length for place in places} == {opened.record_bytes}
    rate = measure_store_disk(opened)
    assert rate.bytes_per_s > 0
    assert rate.read_bytes == opened.record_bytes


def test_a_folder_is_measured_by_a_file_that_goes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "PASS_SECONDS", 0.01)
    monkeypatch.setattr(rates, "PROBE_BYTES", 1 << 20)
    with probe_places(tmp_path, 100_000) as places:
        assert {place.length for place in places} == {102_400}
        assert len(places) == 10
        (file,) = tmp_path.iterdir()
        assert file.stat().st_size == 10 * 102_400
    assert list(tmp_path.iterdir()) == []
    assert measure_folder_disk(tmp_path, 5 << 20).read_bytes == 5 << 20
    assert list(tmp_path.iterdir()) == []


def test_plain_reads_are_told_from_direct_ones(
    place: Callable[[int], ReadPlace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "PASS_SECONDS", 0.01)
    with DiskRates([place(4096)], direct=False) as measure:
        assert not measure.direct
        assert not measure().direct


def test_what_cannot_be_read_is_told(tmp_path: Path, place: Callable[[int], ReadPlace]) -> None:
    with pytest.raises(UsageError, match="no expert records"):
        DiskRates([])
    with pytest.raises(ReadError, match="cannot be opened"):
        DiskRates([ReadPlace(tmp_path / "none", 0, 4096)])
    beyond = ReadPlace(place(4096).path, 1 << 20, 4096)
    with DiskRates([beyond]) as measure, pytest.raises(ReadError):
        measure()


@pytest.mark.parametrize("backend", ["native", "jit"])
def test_memory_has_a_rate_with_any_kernels(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "BUFFER_BYTES", 4 << 20)
    rate = measure_memory(KernelChoice(backend, "generic", 2, ""))
    assert rate.bytes_per_s > 0
    assert rate.buffer_bytes == 4 << 20
