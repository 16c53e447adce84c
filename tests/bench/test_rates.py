"""Read rates: what a pass counts, how many readers it takes, and that nothing is left behind."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgemoe.bench import rates
from edgemoe.bench.rates import (
    DiskRates,
    ReadPlace,
    measure_disk,
    measure_folder_disk,
    measure_memory,
    measure_store_disk,
    probe_places,
    store_places,
)
from edgemoe.errors import ReadError, UsageError
from edgemoe.kernels.reads import RecordRead
from edgemoe.kernels.select import KernelChoice
from edgemoe.store.reader import Store

READ_S = {2: 0.001, 4: 0.001, 8: 0.004}
"""Seconds of a read in the disk that is made up here, by its number of readers: four are best."""


class MadeUpDisk:
    """A reader whose reads take known times of a clock of its own, `threads` at once."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.opened: list[int] = []
        self.lengths: set[int] = set()
        self.in_flight = self.most_in_flight = 0

    def clock(self) -> SimpleNamespace:
        return SimpleNamespace(perf_counter=lambda: self.now_s)

    def open(self, arena: np.ndarray, threads: int) -> "MadeUpDisk":
        self.opened.append(threads)
        self.threads_free_s = [self.now_s] * threads
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
        thread = min(range(len(self.threads_free_s)), key=self.threads_free_s.__getitem__)
        end_s = max(self.now_s, self.threads_free_s[thread]) + READ_S[len(self.threads_free_s)]
        self.threads_free_s[thread] = end_s
        self.ends_s.append(end_s)
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
    monkeypatch.setattr(rates, "open_reader", made_up.open)
    monkeypatch.setattr(rates, "time", made_up.clock())
    return made_up


@pytest.fixture
def place(tmp_path: Path) -> Callable[[int], ReadPlace]:
    def make(length: int) -> ReadPlace:
        path = tmp_path / "records"
        path.write_bytes(bytes(8192))
        return ReadPlace(path, 4096, length)

    return make


def test_the_rate_is_what_the_best_number_of_readers_gets(disk: MadeUpDisk, place: Callable[[int], ReadPlace]) -> None:
    with DiskRates([place(1 << 20)]) as measure:
        first, second = measure(), measure()
    assert disk.opened == [2, 4, 8, 4, 4]
    assert first.readers == second.readers == 4
    assert first.read_bytes == 1 << 20
    assert first.bytes_per_s == pytest.approx(4 * (1 << 20) / 0.001, rel=0.02)
    assert disk.most_in_flight == 16


def test_a_pass_takes_its_time_and_no_more(disk: MadeUpDisk, place: Callable[[int], ReadPlace]) -> None:
    measure_disk([place(1 << 20)])
    passes = len(disk.opened)
    assert passes == 3 + rates.DISK_PASSES
    assert disk.now_s - 100 == pytest.approx(passes * rates.PASS_SECONDS, rel=0.1)


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
    assert max(sizes) <= rates.BUFFERS_BYTES


def test_the_middle_pass_is_told(monkeypatch: pytest.MonkeyPatch, place: Callable[[int], ReadPlace]) -> None:
    passes = iter([2.0, 9.0, 4.0, 7.0, 5.0, 6.0])
    monkeypatch.setattr(DiskRates, "_pass", lambda self, readers: next(passes))
    rate = measure_disk([place(4096)])
    assert (rate.bytes_per_s, rate.readers) == (6.0, 4)


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
    assert measure_folder_disk(tmp_path, 5 << 20).read_bytes == rates.READ_BYTES_MAX
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
