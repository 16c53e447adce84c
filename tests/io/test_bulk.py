"""Long reads by reader threads: all of it arrives and is verified, and what goes wrong is told with its place."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgemoe.errors import MachineError, ReadError
from edgemoe.io import bulk, direct
from edgemoe.io.bulk import BulkRead, OpenReader, Span, SpanAlteredError
from edgemoe.io.checksum import crc32c
from edgemoe.io.reads import RecordReader, ThreadedReader, open_reader
from edgemoe.kernels.reads import RecordRead
from tests.support.examples import examples

SYNCHRONISES = True

PAGE = 4096
SIZE = 40 * PAGE + 123


def open_portable(arena: np.ndarray, threads: int, capacity: int, piece_bytes: int) -> RecordReader:
    return ThreadedReader(arena, threads)


def open_nothing(arena: np.ndarray, threads: int, capacity: int, piece_bytes: int) -> RecordReader:
    raise MachineError("There is no thread.")


READERS = {"native": open_reader, "portable": open_portable, "no thread": open_nothing}


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest) -> OpenReader:
    return READERS[request.param]


@pytest.fixture
def files(tmp_path: Path) -> list[tuple[Path, bytes]]:
    made = []
    for name in ("a", "b"):
        content = os.urandom(SIZE)
        (tmp_path / name).write_bytes(content)
        made.append((tmp_path / name, content))
    return made


def memory_of(pages: int) -> np.ndarray:
    return np.frombuffer(direct.allocate_pages(pages * PAGE), np.uint8)


def spans_of(path: Path, content: bytes, sizes: Sequence[int], offset: int = 0) -> list[Span]:
    """Spans without gaps, from `offset` on, that lie in memory as in the file."""
    spans = []
    for size in sizes:
        spans.append(Span(path, offset, size, offset, crc32c(content[offset : offset + size])))
        offset += size
    return spans


@pytest.mark.parametrize("past_the_cache", [True, False])
def test_spans_of_several_files_arrive(
    files: list[tuple[Path, bytes]], reader: OpenReader, past_the_cache: bool
) -> None:
    (one, first), (other, second) = files
    memory = memory_of(100)
    spans = [
        *spans_of(one, first, [PAGE, 2 * PAGE, 100, 5000, 77, SIZE - 3 * PAGE - 5177]),
        Span(other, PAGE, 5 * PAGE, 50 * PAGE, crc32c(second[PAGE : 6 * PAGE])),
        Span(other, 8 * PAGE + 64, 1000, 60 * PAGE + 8, None),
    ]
    reading = BulkRead(memory, past_the_cache, open_reader=reader)
    reading.begin(spans)
    reading.wait()
    reading.begin([Span(one, 7, 3, 70 * PAGE)])  # once more with the same reader
    reading.wait()
    reading.close()
    assert memory[:SIZE].tobytes() == first
    assert memory[50 * PAGE : 55 * PAGE].tobytes() == second[PAGE : 6 * PAGE]
    assert memory[60 * PAGE + 8 :][:1000].tobytes() == second[8 * PAGE + 64 :][:1000]
    assert memory[70 * PAGE :][:3].tobytes() == first[7:10]
    assert not memory[41 * PAGE : 50 * PAGE].any()  # nothing is written elsewhere


class TellsCached(direct.PageFile):
    """A file of which the page cache has `pages`, counted from its beginning."""

    pages = 0
    forgotten: list[tuple[int, int]] = []  # noqa: RUF012 - of the class, as files are opened in `BulkRead`

    def cached_bytes(self, offset: int, size: int) -> int:
        return max(0, min(size, self.pages * PAGE - offset))

    def forget(self, begin: int, end: int) -> None:
        self.forgotten.append((begin, end))


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[bool, RecordRead]]]:
    """The requests of each plan, with whether they are direct reads, which every file grants."""
    asked: list[tuple[bool, RecordRead]] = []
    plan = BulkRead._plan

    def planned(self: BulkRead, file: direct.PageFile, spans: Sequence[Span]) -> bulk._Run:
        run = plan(self, file, spans)
        asked.extend((request.descriptor != file.plain, request) for request in run.requests)
        return run

    monkeypatch.setattr(BulkRead, "_plan", planned)
    monkeypatch.setattr(bulk, "PageFile", TellsCached)
    monkeypatch.setattr(direct, "open_direct", lambda path, wanted: (os.open(path, os.O_RDONLY), wanted))
    TellsCached.forgotten.clear()
    yield asked
    TellsCached.pages = 0


@given(st.integers(0, 42), st.lists(st.integers(1, 9000), min_size=1, max_size=12), st.integers(0, 9000), st.booleans())
@settings(
    max_examples=examples(100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # fmt: skip
def test_the_page_cache_is_asked_and_direct_reads_are_whole_pages(
    tmp_path: Path,
    requests: list[tuple[bool, RecordRead]],
    pages: int,
    sizes: list[int],
    offset: int,
    past_the_cache: bool,
) -> None:
    path, content = tmp_path / "file", np.random.default_rng(1).bytes(SIZE)
    path.write_bytes(content)
    TellsCached.pages = pages
    requests.clear()
    TellsCached.forgotten.clear()
    memory = memory_of(41)
    spans = spans_of(path, content, sizes, offset)
    spans = [span for span in spans if span.end <= SIZE]
    reading = BulkRead(memory, past_the_cache, open_reader=open_nothing)
    reading.begin(spans)
    reading.wait()
    reading.close()
    end = spans[-1].end if spans else offset
    assert memory[offset:end].tobytes() == content[offset:end]
    covered = offset
    for is_direct, request in requests:
        assert request.offset == covered  # nothing twice, nothing left out
        covered += request.length
        assert request.address - memory.ctypes.data == request.offset
        if is_direct:
            assert not request.offset % PAGE
            assert not request.length % PAGE
            assert request.offset >= pages * PAGE
        else:  # it is in the cache, or dropped afterwards
            beyond = max(request.offset, pages * PAGE)
            assert beyond >= covered or (beyond, covered) in TellsCached.forgotten or not past_the_cache
        assert past_the_cache or not is_direct
    assert covered == end
    assert all(begin >= min(pages * PAGE, end) or not past_the_cache for begin, _ in TellsCached.forgotten)


def test_a_span_that_was_altered_is_told_wherever_it_is_verified(
    files: list[tuple[Path, bytes]], reader: OpenReader
) -> None:
    path, content = files[0]
    for sizes in ([PAGE, 3 * PAGE, PAGE], [100, 5000, 300]):
        spans = spans_of(path, content, sizes)
        altered = bytearray(content)
        altered[sizes[0] + 10] ^= 4
        path.write_bytes(altered)
        for past_the_cache in (True, False):
            reading = BulkRead(memory_of(41), past_the_cache, open_reader=reader)
            reading.begin(spans)
            with pytest.raises(SpanAlteredError) as caught:
                reading.wait()
            assert (caught.value.path, caught.value.offset) == (path, sizes[0])


def test_of_several_failures_the_first_is_told(files: list[tuple[Path, bytes]], reader: OpenReader) -> None:
    path = files[0][0]
    wrong = [Span(path, PAGE * number, PAGE, PAGE * number, 1) for number in range(5)]
    reading = BulkRead(memory_of(5), open_reader=reader)
    reading.begin(wrong)
    with pytest.raises(SpanAlteredError) as caught:
        reading.wait()
    assert caught.value.offset == 0
    reading.close()


def test_nothing_to_read() -> None:
    reading = BulkRead(np.zeros(0, np.uint8))
    reading.begin(())
    reading.wait()
    reading.close()


def test_an_end_in_the_middle_is_told_with_its_place(files: list[tuple[Path, bytes]], reader: OpenReader) -> None:
    path, content = files[0]
    for sizes in ([SIZE - PAGE], [PAGE] * 39, [5000] * 30):
        spans = spans_of(path, content, sizes, PAGE)
        os.truncate(path, 20 * PAGE + 7)
        reading = BulkRead(memory_of(41), open_reader=reader)
        reading.begin(spans)
        with pytest.raises(direct.PageReadError) as caught:
            reading.wait()
        assert (caught.value.offset, caught.value.reason) == (20 * PAGE + 7, None)
        path.write_bytes(content)


def test_a_file_that_is_missing_is_told_at_once(tmp_path: Path) -> None:
    reading = BulkRead(memory_of(1))
    with pytest.raises(FileNotFoundError):
        reading.begin([Span(tmp_path / "missing", 0, 1, 0)])
    reading.close()


class HangingReader(ThreadedReader):
    """Its reads never end, and closing it would wait for them."""

    abandoned = False

    def __init__(self, arena: np.ndarray) -> None:
        super().__init__(arena, 1)

    def wait(self, ticket: int, timeout_seconds: float | None = None) -> None:
        assert timeout_seconds is not None
        self.waited_seconds = timeout_seconds
        raise ReadError("It did not end.")

    def done(self, ticket: int) -> bool:
        return False

    def close(self) -> None:
        assert self.abandoned

    def abandon(self) -> None:
        self.abandoned = True
        super().abandon()


@pytest.mark.parametrize(("size", "share"), [(40 * PAGE, 1), (2 * bulk.RUN_BYTES, 2)])
def test_a_disk_that_stalls_is_given_up(
    files: list[tuple[Path, bytes]], requests: list[tuple[bool, RecordRead]], size: int, share: int
) -> None:
    path, memory = files[0][0], memory_of(41)
    hanging = HangingReader(memory)
    os.truncate(path, size)
    reading = BulkRead(memory, True, 7, lambda *arguments: hanging)
    reading.begin([Span(path, 0, size, 0)])
    with pytest.raises(direct.PageReadError, match="no read ended within 7 s") as caught:
        reading.wait()
    assert caught.value.path == path
    assert hanging.abandoned
    assert hanging.waited_seconds == 7 * share
    reading.close()  # does not wait for what hangs
    assert any(memory is kept for _, kept, _ in bulk._abandoned)  # type: ignore[misc]
    bulk._abandoned.clear()


def test_what_is_given_up_is_read_no_further(files: list[tuple[Path, bytes]], reader: OpenReader) -> None:
    reading = BulkRead(memory_of(41), open_reader=reader)
    reading.begin(spans_of(*files[0], [PAGE] * 40))
    reading.close()
    reading.wait()  # nothing is left to wait for
    reading.close()


def test_a_direct_read_that_is_refused_midway_is_tried_plainly(
    files: list[tuple[Path, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems refuse only some direct reads: here every one, by a descriptor that cannot be read."""
    path, content = files[0]
    monkeypatch.setattr(direct, "open_direct", lambda p, wanted: (os.open(p, os.O_WRONLY), True))
    monkeypatch.setattr(direct, "can_probe_page_cache", lambda p: False)
    for name in ("native", "portable"):
        memory = memory_of(41)
        reading = BulkRead(memory, open_reader=READERS[name])
        reading.begin(spans_of(path, content, [SIZE - 5000, 5000]))
        reading.wait()
        reading.close()
        assert memory[:SIZE].tobytes() == content


def test_requests_are_as_long_as_spans_follow_and_threads_share_them(tmp_path: Path) -> None:
    def span(name: str, offset: int, place: int, size: int = 10) -> Span:
        return Span(tmp_path / name, offset, size, place)

    apart = [span("a", 0, 0), span("a", 10, 10), span("a", 20, 30), span("b", 30, 40), span("b", 50, 50)]
    assert [len(run) for run in bulk._runs(apart)] == [2, 1, 1, 1]
    assert [*bulk._runs(())] == []
    for count, size, lengths in (
        (4, 1 << 18, [4]),  # the shortest request
        (10, 1 << 20, [5, 5]),  # a half for each thread
        (300, 1 << 20, [64, 64, 64, 64, 44]),  # the longest request
        (3, 1 << 27, [1, 1, 1]),  # spans are not divided
    ):
        row = [span("a", number * size, number * size, size) for number in range(count)]
        assert [len(run) for run in bulk._runs(row)] == lengths


def test_a_read_that_is_dropped_waits_for_its_threads(files: list[tuple[Path, bytes]]) -> None:
    closed: list[bool] = []

    class Closing(ThreadedReader):
        def close(self) -> None:
            super().close()
            closed.append(True)

    reading: BulkRead | None = BulkRead(memory_of(41), open_reader=lambda arena, *numbers: Closing(arena, 1))
    assert reading is not None
    reading.begin(spans_of(*files[0], [SIZE]))
    del reading
    assert closed == [True]
