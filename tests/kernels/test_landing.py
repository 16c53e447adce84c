"""Parts of records land as conversion would have written them: every type, odd sizes, both readers, any threads.

That includes what goes wrong: a file that ends early or changes, and numbers that are not finite.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemoe.conversion.encoding import encode
from edgemoe.errors import ReadError
from edgemoe.io.checksum import crc32c
from edgemoe.io.reads import RecordReader, ThreadedReader
from edgemoe.kernels.blocks import Blocks
from edgemoe.kernels.file_rows import decode_rows, scaled
from edgemoe.kernels.formats import FORMATS, PANEL_ROWS, panel_count
from edgemoe.kernels.landing import (
    PLACE,
    land,
    part_of_matrix,
    part_of_vector,
    staging_bytes,
    steps,
    time_mark,
)
from edgemoe.kernels.native.reader import NativeReader
from edgemoe.kernels.reads import RecordRead
from edgemoe.kernels.row_types import ROW_TYPES, row_bytes
from tests.support.every_case import every_case
from tests.support.examples import examples
from tests.support.file_blocks import random_rows, scale_places
from tests.support.submit_one import submit_one

PAIRS = [(row_type, kind.twin) for row_type, kind in ROW_TYPES.items()]
SLOT_BYTES = 1 << 20
PAGE = 4096

MakeReader = Callable[[np.ndarray, int, int], RecordReader]
READERS: dict[str, MakeReader] = {
    "native": lambda arena, threads, staging: NativeReader(threads, 16, PAGE, staging),
    "python": ThreadedReader,
}


def written(row_type: str, fmt: str, data: np.ndarray, scale: float = 1) -> np.ndarray:
    """The panels that conversion writes for these rows, `(panels, panel bytes)`."""
    rows = decode_rows(data, row_type)
    encoded = encode(scaled(rows, scale) if isinstance(rows, Blocks) else rows, FORMATS[fmt], "a tensor").data
    return encoded.reshape(panel_count(len(data)), -1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("landing")


def place_at(descriptor: int, offset: int, modified_ns: int = -1, scale: float = 1) -> tuple[int, int, int, float]:
    return offset, modified_ns, descriptor, scale


def read_parts(
    reader: RecordReader, slot: np.ndarray, parts: np.ndarray, places: np.ndarray, crc: int | None = None
) -> None:
    read = RecordRead(-1, 0, int(parts["bytes"].sum()), slot.ctypes.data, crc, parts, places)
    [ticket] = reader.submit([read], demand=True)
    del read  # whoever asks may forget what was asked
    try:
        reader.wait(ticket, 60)
    finally:
        reader.release(ticket)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=examples(25), deadline=None)
@given(
    pair=st.sampled_from(PAIRS),
    rows=st.integers(1, 70),
    groups=st.integers(1, 4),
    odd=st.integers(0, 31),
    offsets=st.tuples(st.integers(0, 2 * PAGE), st.integers(0, 2 * PAGE), st.integers(0, 2 * PAGE)),
    threads=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_parts_land_as_conversion_writes_them(
    folder: Path,
    name: str,
    pair: tuple[str, str],
    rows: int,
    groups: int,
    odd: int,
    offsets: tuple[int, int, int],
    threads: int,
    seed: int,
) -> None:
    row_type, fmt = pair
    random = np.random.default_rng(seed)
    kind = ROW_TYPES[row_type]
    columns = 32 * groups - odd if kind.is_float else groups * kind.columns
    gate, up = (random_rows(row_type, rows, columns, random) for _ in range(2))
    bias = random_rows("BF16", 1, rows, random)
    content, starts = bytearray(), []
    for data, gap in zip((gate, up, bias), offsets, strict=True):
        content += random.bytes(gap)
        starts.append(len(content))
        content += data.tobytes()
    path = folder / name
    path.write_bytes(content)
    descriptor = os.open(path, os.O_RDONLY)
    panel_bytes = FORMATS[fmt].panel_bytes(columns)
    bias_at = 2 * panel_count(rows) * panel_bytes
    parts = np.concatenate(
        [
            part_of_matrix(row_type, fmt, rows, columns, 0, 2 * panel_bytes),
            part_of_matrix(row_type, fmt, rows, columns, panel_bytes, 2 * panel_bytes),
            part_of_vector("BF16", rows, bias_at),
        ]
    )
    scales = (0.75, -3, 1)
    modified_ns = path.stat().st_mtime_ns
    found = zip(starts, scales, strict=True)
    places = np.array([place_at(descriptor, start, modified_ns, scale) for start, scale in found], PLACE)
    slot = np.full(SLOT_BYTES, 0xA5, np.uint8)
    room = max(3 * PAGE, 2 * PAGE + -(-PANEL_ROWS * row_bytes(row_type, columns) // PAGE) * PAGE)
    reader = READERS[name](slot, threads, room)
    try:
        crc = crc32c(b"".join(data.tobytes() for data in (gate, up, bias)))
        read_parts(reader, slot, parts, places, crc)
        with pytest.raises(ReadError, match="not what was written"):
            read_parts(reader, slot, parts, places, crc ^ 1)
    finally:
        reader.close()
        os.close(descriptor)
    expected = np.full(SLOT_BYTES, 0xA5, np.uint8)
    panels = expected[:bias_at].reshape(-1, 2, panel_bytes)
    for number, data in enumerate((gate, up)):
        panels[:, number] = written(row_type, fmt, data, scales[number])
    padded = np.zeros(PANEL_ROWS * panel_count(rows), np.float32)
    padded[:rows] = encode(decode_rows(bias, "BF16"), None, "a bias").data.view(np.float32)
    expected[bias_at : bias_at + padded.nbytes] = padded.view(np.uint8)
    np.testing.assert_array_equal(slot, expected)


def test_a_part_lands_in_steps_of_whole_panels() -> None:
    part = part_of_matrix("Q4_0", "q4", 100, 64, 0, FORMATS["q4"].panel_bytes(64))[0]
    found = list(steps(part, 2 * PAGE + 2 * 16 * 36 + 5))
    assert [step.begin for step in found] == [0, 1152, 2304, 3456]
    assert sum(step.bytes for step in found) == 3600 == part["bytes"]
    assert staging_bytes(np.array([part])) == 512 << 10
    wide = part_of_matrix("F32", "f32", 16, 1 << 15, 0, FORMATS["f32"].panel_bytes(1 << 15))
    assert staging_bytes(wide) == (2 << 20) + 2 * PAGE  # the rows of one panel
    assert staging_bytes(wide[:0]) == 0


@pytest.fixture
def q4(tmp_path: Path) -> Iterator[tuple[Path, int, np.ndarray]]:
    """A file of rows of Q4_0, open; and the part that they are."""
    data = random_rows("Q4_0", 40, 64, np.random.default_rng(1))
    path = tmp_path / "rows"
    path.write_bytes(b"..." + data.tobytes())
    descriptor = os.open(path, os.O_RDONLY)
    yield path, descriptor, part_of_matrix("Q4_0", "q4", 40, 64, 0, FORMATS["q4"].panel_bytes(64))
    os.close(descriptor)


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_ends_early_or_changes(name: str, q4: tuple[Path, int, np.ndarray]) -> None:
    path, descriptor, parts = q4
    slot = np.zeros(SLOT_BYTES, np.uint8)
    reader = READERS[name](slot, 2, 3 * PAGE)
    places = np.array([place_at(descriptor, 3, path.stat().st_mtime_ns)], PLACE)
    read_parts(reader, slot, parts, places)
    os.utime(path, ns=(0, 10**18))
    with pytest.raises(ReadError, match="its file was changed while it was open"):
        read_parts(reader, slot, parts, places)
    os.truncate(path, 500)
    with pytest.raises(ReadError, match="497"):
        read_parts(reader, slot, parts, np.array([place_at(descriptor, 3)], PLACE))
    with pytest.raises(ReadError, match=r"Bad file descriptor"):
        read_parts(reader, slot, parts, np.array([place_at(-1, 3)], PLACE))
    reader.close()


@pytest.mark.parametrize("name", READERS)
def test_a_reader_keeps_the_places_of_parts_until_the_ticket_is_released(
    name: str, q4: tuple[Path, int, np.ndarray]
) -> None:
    _, descriptor, parts = q4
    slot = np.zeros(SLOT_BYTES, np.uint8)
    reader = READERS[name](slot, 1, 3 * PAGE)
    places = np.array([place_at(descriptor, 3)], PLACE)
    held = weakref.ref(places)
    length = int(parts["bytes"].sum())
    [ticket] = reader.submit([RecordRead(-1, 0, length, slot.ctypes.data, None, parts, places)], demand=True)
    del places
    assert held() is not None
    reader.wait(ticket, 60)
    reader.release(ticket)
    reader.wait(submit_one(reader, descriptor, 0, PAGE // 4, slot.ctypes.data, True), 60)  # the thread has moved on
    assert held() is None
    reader.close()


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("seconds", [-(10**9), 10**10])
def test_times_before_1970_and_beyond_64_bits_are_compared(
    name: str, seconds: int, q4: tuple[Path, int, np.ndarray]
) -> None:
    path, descriptor, parts = q4
    os.utime(path, (seconds, seconds))
    modified_ns = path.stat().st_mtime_ns  # a file system may have a nearer end of time
    slot = np.zeros(SLOT_BYTES, np.uint8)
    reader = READERS[name](slot, 1, 3 * PAGE)
    places = np.array([place_at(descriptor, 3, time_mark(modified_ns))], PLACE)
    read_parts(reader, slot, parts, places)
    os.utime(path, ns=(0, modified_ns + 1000 if seconds < 0 else 10**18))
    with pytest.raises(ReadError, match="its file was changed while it was open"):
        read_parts(reader, slot, parts, places)
    reader.close()


@every_case("name", READERS)
@every_case(
    ("row_type", "place", "number"),
    [
        *((kind.name, at, [1, 0x7C]) for kind in ROW_TYPES.values() if not kind.is_float for at in scale_places(kind)),
        *(("MXFP4", 0, [255]), ("BF16", 0, [0x80, 0xFF])),
        *(("NVFP4", 3, [0x7F]), ("NVFP4", 0, [0x81])),
    ],
)
def test_numbers_that_are_not_finite(name: str, row_type: str, place: int, number: list[int], tmp_path: Path) -> None:
    columns = max(64, ROW_TYPES[row_type].columns)
    data = random_rows(row_type, 20, columns, np.random.default_rng(2))
    data[17, place : place + len(number)] = number
    (tmp_path / "rows").write_bytes(data.tobytes())
    fmt = ROW_TYPES[row_type].twin
    parts = part_of_matrix(row_type, fmt, 20, columns, 0, FORMATS[fmt].panel_bytes(columns))
    descriptor, slot = os.open(tmp_path / "rows", os.O_RDONLY), np.zeros(SLOT_BYTES, np.uint8)
    reader = READERS[name](slot, 1, 3 * PAGE)
    with pytest.raises(ReadError, match=r"infinite or not a number.* Download it again"):
        read_parts(reader, slot, parts, np.array([place_at(descriptor, 0)], PLACE))
    reader.close()
    os.close(descriptor)


def test_weights_of_mxfp4_beyond_float32_are_not_finite() -> None:
    part = part_of_matrix("MXFP4", "m4", 1, 32, 0, FORMATS["m4"].panel_bytes(32))[0]
    slot = np.zeros(SLOT_BYTES, np.uint8)
    block = np.zeros(17, np.uint8)
    for scale, code, finite in ((253, 5, True), (253, 6, False), (254, 3, True), (254, 4, False), (252, 7, True)):
        block[0], block[5] = scale, code << 4
        assert land(part, 0, block, slot) == finite
