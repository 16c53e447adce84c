"""Native reads: right bytes, clear errors, no ticket that outlives its request."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemoe.errors import ReadError
from edgemoe.io.checksum import crc32c
from edgemoe.kernels.native.reader import NativeReader
from tests.support.examples import examples
from tests.support.submit_one import submit_one

FILE_BYTES = 1 << 16
PAGE = 4096


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    data = np.random.default_rng(0).bytes(FILE_BYTES)
    path = tmp_path_factory.mktemp("reader") / "content"
    path.write_bytes(data)
    return path, data


@pytest.fixture(scope="module")
def descriptor(content: tuple[Path, bytes]) -> Iterator[int]:
    number = os.open(content[0], os.O_RDONLY)
    yield number
    os.close(number)


@pytest.fixture(scope="module")
def reader() -> Iterator[NativeReader]:
    made = NativeReader(threads=3, capacity=64)
    yield made
    made.close()


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


spans = st.integers(0, FILE_BYTES - 1).flatmap(
    lambda offset: st.tuples(st.just(offset), st.integers(1, FILE_BYTES - offset), st.booleans(), st.booleans())
)


@settings(max_examples=examples(40), deadline=None)
@given(requests=st.lists(spans, min_size=1, max_size=30))
def test_reads_are_right(
    reader: NativeReader,
    descriptor: int,
    content: tuple[Path, bytes],
    requests: list[tuple[int, int, bool, bool]],
) -> None:
    places = [np.zeros(length, np.uint8) for _, length, _, _ in requests]
    tickets = []
    for place, (offset, length, demand, promote) in zip(places, requests, strict=True):
        tickets.append(submit_one(reader, descriptor, offset, length, address(place), demand))
        if promote:
            reader.promote(tickets[-1])
    for ticket, place, (offset, length, _, _) in zip(tickets, places, requests, strict=True):
        reader.wait(ticket, 60)
        assert reader.done(ticket)
        assert not reader.cancel(ticket)
        assert place.tobytes() == content[1][offset : offset + length]
        reader.release(ticket)
    assert len(set(tickets)) == len(tickets)


def test_direct_reads(reader: NativeReader, content: tuple[Path, bytes]) -> None:
    try:
        direct = os.open(content[0], os.O_RDONLY | os.O_DIRECT)
    except (AttributeError, OSError) as error:
        pytest.skip(f"no direct reads here: {error}")
    memory = mmap.mmap(-1, 2 * PAGE)
    place = np.frombuffer(memory, np.uint8)
    ticket = submit_one(reader, direct, 3 * PAGE, 2 * PAGE, address(place), True)
    reader.wait(ticket, 60)
    reader.release(ticket)
    assert place.tobytes() == content[1][3 * PAGE : 5 * PAGE]
    ticket = submit_one(reader, direct, FILE_BYTES - PAGE, 2 * PAGE, address(place), True)
    with pytest.raises(ReadError, match=f"ended after {PAGE} bytes"):
        reader.wait(ticket, 60)
    reader.release(ticket)
    os.close(direct)


def test_failures_say_why(reader: NativeReader, descriptor: int, tmp_path: Path) -> None:
    place = np.zeros(100, np.uint8)
    folder = os.open(tmp_path, os.O_RDONLY)
    for number, offset, expected in (
        (-1, 0, os.strerror(errno.EBADF)),
        (folder, 0, os.strerror(errno.EISDIR)),
        (descriptor, FILE_BYTES - 30, "ended after 30 bytes"),
        (descriptor, 2 * FILE_BYTES, "ended after 0 bytes"),
    ):
        ticket = submit_one(reader, number, offset, 100, address(place), True)
        with pytest.raises(ReadError, match=expected):
            reader.wait(ticket, 60)
        assert reader.done(ticket)
        reader.release(ticket)
    os.close(folder)


@pytest.mark.parametrize("piece_bytes", [4096, 5000, 1 << 20])
def test_what_is_not_what_was_written_is_told(content: tuple[Path, bytes], descriptor: int, piece_bytes: int) -> None:
    reader = NativeReader(threads=3, capacity=8, piece_bytes=piece_bytes)
    place = np.zeros(20_000, np.uint8)
    right = crc32c(content[1][300:20_300])
    for expected, good in ((right, True), (None, True), (right ^ 1, False), (0, False)):
        ticket = submit_one(reader, descriptor, 300, 20_000, address(place), True, expected)
        if good:
            reader.wait(ticket, 60)
        else:
            with pytest.raises(ReadError, match="not what was written"):
                reader.wait(ticket, 60)
        reader.release(ticket)
    reader.close()


def test_used_up_and_unknown_tickets_are_refused(reader: NativeReader, descriptor: int) -> None:
    place = np.zeros(10, np.uint8)
    old = submit_one(reader, descriptor, 0, 10, address(place), True)
    reader.wait(old)
    reader.release(old)
    new = submit_one(reader, descriptor, 0, 10, address(place), True)  # in the same place of the table
    for ticket in (old, 12345, -1):
        for use in (reader.wait, reader.done, reader.promote, reader.cancel, reader.release):
            with pytest.raises(ReadError, match="no such request"):
                use(ticket)
    reader.wait(new)
    reader.release(new)


def test_a_full_reader_says_so(descriptor: int) -> None:
    reader = NativeReader(threads=1, capacity=2)
    place = np.zeros(10, np.uint8)
    tickets = [submit_one(reader, descriptor, 0, 10, address(place), False) for _ in range(2)]
    with pytest.raises(ReadError, match="too many requests"):
        submit_one(reader, descriptor, 0, 10, address(place), True)
    reader.wait(tickets[0])
    reader.release(tickets[0])
    submit_one(reader, descriptor, 0, 10, address(place), True)
    reader.close()


def test_bad_requests_and_readers_are_refused(reader: NativeReader, descriptor: int) -> None:
    place = np.zeros(10, np.uint8)
    for offset, length, destination in ((-1, 1, address(place)), (0, 0, address(place)), (0, 1, 0)):
        with pytest.raises(ReadError, match="out of range"):
            submit_one(reader, descriptor, offset, length, destination, True)
    for threads, capacity in ((0, 1), (65, 1), (1, 0)):
        with pytest.raises(ReadError, match="could not be made"):
            NativeReader(threads, capacity)


def test_a_closed_reader_says_so(descriptor: int) -> None:
    reader = NativeReader(threads=2, capacity=16)
    place = np.zeros(FILE_BYTES, np.uint8)
    tickets = [submit_one(reader, descriptor, 0, FILE_BYTES, address(place), False) for _ in range(16)]
    reader.close()  # with requests still queued
    reader.close()
    with pytest.raises(ReadError, match="closed"):
        reader.wait(tickets[0])
    with pytest.raises(ReadError, match="closed"):
        submit_one(reader, descriptor, 0, 1, address(place), True)
