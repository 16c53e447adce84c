"""Expert files and the portable reader; the native reader is held to the same in tests/kernels/native."""

import os
from pathlib import Path

import numpy as np
import pytest

from edgemoe.errors import BudgetError, KernelError, MachineError, ReadError
from edgemoe.io import reads
from edgemoe.io.checksum import crc32c
from edgemoe.io.reads import ExpertFiles, ThreadedReader, open_reader
from edgemoe.process import Limit
from tests.support.every_case import every_case
from tests.support.few_threads import few_threads
from tests.support.submit_one import submit_one

PAGE = 4096


@pytest.fixture
def record_file(tmp_path: Path) -> tuple[Path, np.ndarray]:
    contents = np.random.default_rng(3).integers(0, 255, 16 * PAGE).astype(np.uint8)
    path = tmp_path / "experts-00000.safetensors"
    path.write_bytes(contents.tobytes())
    return path, contents


def page_aligned(pages: int) -> np.ndarray:
    import mmap

    return np.frombuffer(mmap.mmap(-1, pages * PAGE), np.uint8).reshape(pages, PAGE)


@pytest.mark.parametrize("direct", [True, False])
def test_records_arrive_where_they_should(record_file: tuple[Path, np.ndarray], direct: bool) -> None:
    path, contents = record_file
    files, arena = ExpertFiles([path, path], direct), page_aligned(16)
    reader = ThreadedReader(arena, threads=3)
    order = np.random.default_rng(1).permutation(16)
    tickets = [
        submit_one(reader, files.descriptor(path), int(page) * PAGE, PAGE, arena.ctypes.data + i * PAGE, i % 2 == 0)
        for i, page in enumerate(order)
    ]
    for ticket in tickets:
        reader.wait(ticket, 10)
        reader.release(ticket)
    reader.close()
    files.close()
    assert np.array_equal(arena, contents.reshape(16, PAGE)[order])


def test_fewer_threads_read_as_well_and_none_is_told(
    record_file: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, contents = record_file
    files, arena = ExpertFiles([path]), page_aligned(1)
    few_threads(monkeypatch, 1)
    reader = ThreadedReader(arena, threads=8)
    reader.wait(submit_one(reader, files.descriptor(path), 3 * PAGE, PAGE, arena.ctypes.data, True), 10)
    assert np.array_equal(arena[0], contents[3 * PAGE : 4 * PAGE])
    with pytest.raises(MachineError, match="refuses to start another thread"):
        ThreadedReader(arena, threads=8)
    reader.close()
    files.close()


@every_case(("left", "threads"), [(None, 8), (100, 8), (9, 4), (1, 1), (0, 1)])
def test_readers_leave_threads_for_others(left: int | None, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(reads, "thread_limit", lambda: None if left is None else Limit(left, None))
    monkeypatch.setattr("edgemoe.kernels.native.reader.NativeReader", lambda count, *rest: asked.append(count))
    open_reader(page_aligned(1), 8)
    assert asked == [threads]


def test_a_reader_without_memory_for_staging_is_refused_at_once() -> None:
    """Found at the first read instead, the thread would end, and whoever waits for it would wait in vain."""
    with pytest.raises(BudgetError, match="bytes of memory cannot be had"):
        ThreadedReader(page_aligned(1), 1, staging_bytes=1 << 62)


def test_a_short_file_and_a_dead_descriptor_are_told(record_file: tuple[Path, np.ndarray]) -> None:
    path, _ = record_file
    arena = page_aligned(32)
    reader = ThreadedReader(arena, threads=1)
    descriptor = os.open(path, os.O_RDONLY)
    short = submit_one(reader, descriptor, 10 * PAGE, 20 * PAGE, arena.ctypes.data, True)
    with pytest.raises(ReadError, match=f"ended after {6 * PAGE} of {20 * PAGE} bytes"):
        reader.wait(short, 10)
    os.close(descriptor)
    dead = submit_one(reader, descriptor, 0, PAGE, arena.ctypes.data, True)
    with pytest.raises(ReadError, match="failed"):
        reader.wait(dead, 10)
    reader.close()


def test_what_is_not_what_was_written_is_told(record_file: tuple[Path, np.ndarray]) -> None:
    path, contents = record_file
    arena = page_aligned(32)
    reader = ThreadedReader(arena, threads=1)
    descriptor = os.open(path, os.O_RDONLY)
    page = contents[PAGE : 2 * PAGE]
    crc = crc32c(page)
    for expected, good in ((crc, True), (None, True), (crc ^ 1, False)):
        ticket = submit_one(reader, descriptor, PAGE, PAGE, arena.ctypes.data, True, expected)
        if good:
            reader.wait(ticket, 60)
        else:
            with pytest.raises(ReadError, match="not what was written"):
                reader.wait(ticket, 60)
        reader.release(ticket)
    reader.close()
    os.close(descriptor)


def test_a_read_that_stalls_times_out_and_demand_goes_first(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    stalled = os.open(fifo, os.O_RDWR)
    arena = page_aligned(4)
    reader = ThreadedReader(arena, threads=1)
    # preadv fails at once on a pipe, so the stall is made by a lock that the thread needs.
    with reader._change:
        prefetched = submit_one(reader, stalled, 0, PAGE, arena.ctypes.data, False)
        demanded = submit_one(reader, stalled, 0, PAGE, arena.ctypes.data, True)
        with pytest.raises(ReadError, match="did not end within"):
            reader.wait(demanded, 0.05)
    for ticket in (demanded, prefetched):
        with pytest.raises(ReadError, match="failed"):
            reader.wait(ticket, 10)
    reader.close()
    os.close(stalled)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="experts-00009"):
        ExpertFiles([tmp_path / "experts-00009.safetensors"])


def test_without_the_native_library_the_portable_reader_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgemoe.kernels.native import reader as native_reader

    def missing() -> None:
        raise KernelError("The native library is not there.")

    monkeypatch.setattr(native_reader, "load_library", missing)
    reader = open_reader(page_aligned(1), 2)
    assert isinstance(reader, ThreadedReader)
    reader.close()
