"""Long reads on threads: all of it arrives, and what goes wrong is told with its place in the file."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from edgemoe.io import bulk, direct
from edgemoe.io.bulk import BulkRead, Span
from tests.support.few_threads import few_threads

SIZE = 40 * 4096 + 123


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "PIECE_BYTES", 3 * 4096)
    monkeypatch.setattr(bulk, "PIECE_BYTES_LEAST", 4096)


@pytest.fixture
def files(tmp_path: Path) -> list[tuple[Path, bytes]]:
    made = []
    for name in ("a", "b"):
        content = os.urandom(SIZE)
        (tmp_path / name).write_bytes(content)
        made.append((tmp_path / name, content))
    return made


def test_spans_of_several_files_arrive(files: list[tuple[Path, bytes]]) -> None:
    wanted = [(files[0], 0, SIZE), (files[1], 4096, 5 * 4096), (files[1], 8 * 4096, SIZE - 8 * 4096)]
    memories = [direct.allocate_pages(41 * 4096) for _ in wanted]
    spans = [
        Span(file[0], offset, size, memoryview(memory))
        for (file, offset, size), memory in zip(wanted, memories, strict=True)
    ]
    BulkRead(spans).wait()
    for ((_, content), offset, size), memory in zip(wanted, memories, strict=True):
        assert memory[:size] == content[offset : offset + size]


@pytest.mark.parametrize("left", [0, 1])
def test_spans_arrive_where_the_system_starts_few_threads_or_none(
    files: list[tuple[Path, bytes]], left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []
    close = direct.PageFile.close
    monkeypatch.setattr(direct.PageFile, "close", lambda file: closed.append(file.path) or close(file))
    few_threads(monkeypatch, left)
    memories = [direct.allocate_pages(41 * 4096) for _ in files]
    BulkRead([Span(file[0], 0, SIZE, memoryview(memory)) for file, memory in zip(files, memories, strict=True)]).wait()
    for (_, content), memory in zip(files, memories, strict=True):
        assert memory[:SIZE] == content
    assert sorted(closed) == [path for path, _ in files]


def test_what_is_finished_is_there_and_is_finished_once(files: list[tuple[Path, bytes]]) -> None:
    path, content = files[0]
    memories = [direct.allocate_pages(41 * 4096) for _ in range(3)]
    whole = []

    def finishing(memory: mmap.mmap) -> Callable[[], None]:
        return lambda: whole.append(memory[:SIZE] == content)

    BulkRead([Span(path, 0, SIZE, memoryview(memory), finishing(memory)) for memory in memories]).wait()
    assert whole == [True] * 3


def test_of_several_failures_the_first_span_is_told(files: list[tuple[Path, bytes]]) -> None:
    both = threading.Barrier(2)

    def failing(what: str) -> Callable[[], None]:
        def refuse() -> None:
            both.wait()  # until the other one fails too
            raise ValueError(what)

        return refuse

    memories = [direct.allocate_pages(4096) for _ in range(2)]
    spans = [
        Span(files[0][0], 0, 4096, memoryview(memory), failing(what))
        for memory, what in zip(memories, ["first", "second"], strict=True)
    ]
    reading = BulkRead(spans)
    for thread in reading._threads:
        thread.join()
    with pytest.raises(ValueError, match="first"):
        reading.wait()


def test_nothing_to_read() -> None:
    BulkRead(()).wait()


def test_an_end_in_the_middle_is_told_with_its_place(files: list[tuple[Path, bytes]]) -> None:
    os.truncate(files[0][0], 20 * 4096 + 7)
    reading = BulkRead([Span(files[0][0], 4096, SIZE - 4096, memoryview(direct.allocate_pages(41 * 4096)))])
    with pytest.raises(direct.PageReadError) as caught:
        reading.wait()
    # the piece after the one that it ends in may have failed too, never one before it
    assert 20 * 4096 + 7 <= caught.value.offset < 20 * 4096 + 7 + 2 * bulk.PIECE_BYTES
    assert caught.value.reason is None


def test_a_file_that_is_missing_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        BulkRead([Span(tmp_path / "missing", 0, 1, memoryview(direct.allocate_pages(4096)))])


def test_a_disk_that_stalls_is_given_up(files: list[tuple[Path, bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(direct.PageFile, "read", lambda *arguments: go_on.wait())
    reading = BulkRead([Span(files[0][0], 0, SIZE, memoryview(direct.allocate_pages(41 * 4096)))], stall_seconds=0.05)
    try:
        with pytest.raises(direct.PageReadError, match="no read ended within"):
            reading.wait()
        reading.close()  # does not wait for what hangs
    finally:
        go_on.set()


def test_what_is_given_up_is_read_no_further(files: list[tuple[Path, bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()
    calls = []

    def read(*arguments: object) -> None:
        calls.append(arguments)
        begun.release()
        go_on.wait()

    monkeypatch.setattr(direct.PageFile, "read", read)
    reading = BulkRead([Span(files[0][0], 0, SIZE, memoryview(direct.allocate_pages(41 * 4096)))])
    for _ in range(bulk.THREADS):
        begun.acquire()
    threading.Timer(0.05, go_on.set).start()
    reading.close()
    assert len(calls) == bulk.THREADS


def test_what_is_cached_is_one_call_a_thread(files: list[tuple[Path, bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it goes on while another thread keeps Python's lock."""
    monkeypatch.setattr(bulk, "PIECE_BYTES", 1 << 20)
    path, content = files[0]
    memory = direct.allocate_pages(41 * 4096)
    real, asked = os.preadv, []

    def read(descriptor: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        asked.append((threading.current_thread() is threading.main_thread(), offset, len(buffers[0])))
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", read)
    monkeypatch.setattr(direct, "open_direct", lambda p, wanted: (os.open(p, os.O_RDONLY), True))
    monkeypatch.setattr(direct, "can_probe_page_cache", lambda path: True)
    monkeypatch.setattr(direct, "cached_bytes", lambda file, offset, size: size)
    BulkRead([Span(path, 0, SIZE, memoryview(memory))]).wait()
    assert memory[:SIZE] == content
    assert sorted(asked) == [(False, 0, 21 * 4096), (False, 21 * 4096, SIZE - 21 * 4096)]


def test_a_finish_that_takes_long_is_told_as_a_stall(files: list[tuple[Path, bytes]]) -> None:
    go_on = threading.Event()
    spans = [Span(files[0][0], 0, 4096, memoryview(direct.allocate_pages(4096)), lambda: go_on.wait() and None)]
    reading = BulkRead(spans, stall_seconds=0.05)
    try:
        with pytest.raises(direct.PageReadError, match="no read ended within"):
            reading.wait()
    finally:
        go_on.set()
