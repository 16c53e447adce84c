"""Traces as files: what is written comes back, what is damaged is told, what a full disk or a crash leaves is whole."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgemoe.errors import TraceError, UsageError
from edgemoe.lab import trace as trace_module
from edgemoe.lab import trace_blocks, trace_csv
from edgemoe.lab.trace import Trace, TraceShape, TraceWriter, check_trace_name, read_trace, write_trace
from edgemoe.lab.trace_rows import COLUMNS, bounds
from tests.support.every_case import every_case
from tests.support.examples import examples
from tests.support.shared_data import shared_file
from tests.support.traces import SHAPE, made_up_trace, same_rows, write_csv

shapes = st.builds(
    lambda layers, experts, used, sizes, name: TraceShape(
        name, "family", layers, experts, min(experts, used), (sizes,) * layers, (sizes + 1,) * layers
    ),
    st.integers(1, 5), st.integers(1, 300), st.integers(1, 9), st.integers(0, 2**52), st.text("aé #=.", max_size=9),
)  # fmt: skip


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    shape = draw(shapes)
    weights = st.floats(width=32, allow_nan=False, allow_infinity=False)
    values = [weights if name == "weight" else st.integers(0, bounds(shape)[name] - 1) for name in COLUMNS]
    rows: list[tuple[Any, ...]] = draw(st.lists(st.tuples(*values), max_size=8))
    columns = zip(*rows, strict=True) if rows else [()] * len(COLUMNS)
    return Trace(shape, *(np.array(column, kind) for column, kind in zip(columns, COLUMNS.values(), strict=True)))


@given(traces())
@settings(max_examples=examples(50), deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_was_written_comes_back(tmp_path_factory: pytest.TempPathFactory, trace: Trace) -> None:
    folder = tmp_path_factory.mktemp("trace")
    write_trace(folder / "t", trace)
    back = read_trace(folder / "t")
    assert same_rows(back, trace)
    assert back.shape == trace.shape
    write_csv(folder / "t.csv", trace)
    back = read_trace(folder / "t.csv")
    assert same_rows(back, trace)
    assert back.shape.expert_bytes == trace.shape.expert_bytes


def test_a_trace_written_piece_by_piece_is_whole_after_every_flush(tmp_path: Path) -> None:
    trace, path = made_up_trace(tokens=30), tmp_path / "t"
    with TraceWriter(path, trace.shape) as writer:
        assert len(read_trace(path)) == 0
        for first in range(0, len(trace), 7):
            writer.write(trace.select(slice(first, first + 7)))
            writer.flush()
            assert same_rows(read_trace(path), trace.select(slice(0, first + 7)))
            assert writer.file_bytes == path.stat().st_size
    assert same_rows(read_trace(path), trace)


def test_rows_wait_only_so_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, path = made_up_trace(tokens=4), tmp_path / "t"
    with TraceWriter(path, trace.shape) as writer:
        writer.write(trace)
        assert len(read_trace(path)) == 0
        monkeypatch.setattr(trace_module, "BUFFERED_SECONDS", 0.0)
        writer.write(trace)
        assert len(read_trace(path)) == 2 * len(trace)
        monkeypatch.setattr(trace_module, "BUFFERED_SECONDS", 1e9)
        monkeypatch.setattr(trace_module, "BUFFERED_ROWS", 2 * len(trace))
        writer.write(trace)
        assert len(read_trace(path)) == 2 * len(trace)
        writer.write(trace)
        assert len(read_trace(path)) == 4 * len(trace)


def test_large_blocks_are_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_blocks, "MOST_BLOCK_ROWS", 10)
    trace = made_up_trace(tokens=9)
    with TraceWriter(tmp_path / "t", trace.shape) as writer:
        writer.write(trace)
    assert len(members(tmp_path / "t")) == 1 + -(-len(trace) // 10) + 1
    assert same_rows(read_trace(tmp_path / "t"), trace)


def test_csv_read_in_small_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = made_up_trace(tokens=9)
    write_csv(tmp_path / "t.csv", trace)
    text = (tmp_path / "t.csv").read_bytes()
    (tmp_path / "dos.csv").write_bytes(text.replace(b"\n", b"\r\n"))
    for size in (1, 40, 1000):
        monkeypatch.setattr(trace_csv, "BLOCK_BYTES", size)
        assert same_rows(read_trace(tmp_path / "t.csv"), trace)
        assert same_rows(read_trace(tmp_path / "dos.csv"), trace)


def test_the_form_goes_by_content_and_no_trace_is_named_csv(tmp_path: Path) -> None:
    trace = made_up_trace()
    write_trace(tmp_path / "b.trace", trace)
    (tmp_path / "b.trace").rename(tmp_path / "b.csv")
    assert same_rows(read_trace(tmp_path / "b.csv"), trace)
    check_trace_name("csv")
    for name in ("a.csv", "a.CSV"):
        with pytest.raises(UsageError, match=f"{name}: expected a name that does not end in .csv") as told:
            write_trace(tmp_path / name, trace)
        assert "a.trace" in told.value.hint
        assert not (tmp_path / name).exists()


def test_the_binary_form_of_the_first_version_is_named(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"\x8eEMTRACE" + bytes(100))
    with pytest.raises(TraceError, match=r"the binary form of edgemoe 0\.1\.0") as told:
        read_trace(tmp_path / "t")
    assert "CSV" in told.value.hint


@every_case(
    ("before", "after", "says"),
    [
        (b"# route_trace v1", b"# route_trace v2", "line 1: expected '# route_trace v1'"),
        (b"n_layer=3", b"n_layer=4", "line 6: the header above: expected expert_bytes of 4 layers, found 3"),
        (b"n_expert=8", b"n_expert=1", "line 6: the header above: expected experts used from 1 to 1, found 2"),
        (b"n_expert=8", b"n_experts=8", "line 6: the header has no line"),
        (b"# layer=1", b"# layer=2", "line 4: expected layer=1, found layer=2"),
        (b"turn,phase", b"phase,turn", "line 6: expected 'turn,phase,"),
        (b"\n0,0,1,0,0,", b"\n0,0,1,9,0,", "line 9: layer: expected a whole number below 3, found 9"),
        (b"\n0,0,1,0,0,", b"\n0,2,1,0,0,", "line 9: phase: expected a whole number below 2, found 2"),
        (b"\n0,0,1,0,0,", b"\n0,0,-1,0,0,", "line 9: step: expected a whole number below 2147483648, found -1"),
        (b"\n0,0,1,0,0,", b"\n0,0,1.5,0,0,", "line 9: step: expected a whole number below 2147483648, found 1.5"),
        (b"\n0,0,1,0,0,", b"\n0,0,nan,0,0,", "line 9: step: expected a whole number below 2147483648, found nan"),
        (b"\n0,0,1,0,0,", b"\n9999999999,0,1,0,0,", "line 9: turn: expected a whole number below 2147483648"),
        (b"\n0,0,1,0,0,", b"\n0,0,1,0,", "line 9: expected numbers for turn,.*, found '0,0,1,0,"),
        (b"\n0,0,1,0,0,", b"\n0,0,1,0,0,0,", "line 9: expected numbers for turn,"),
        (b"\n0,0,1,0,0,", b"\n\n0,0,1,0,0,", "line 9: expected numbers for turn,.*, found ''"),
        (b"\n0,0,1,0,0,", b"\n0,0,1,0,,", "line 9: expected numbers for turn,"),
        (b"\n0,0,1,0,0,", b"\n#\n0,0,1,0,0,", "line 9: expected numbers for turn,.*, found '#'"),
        (b",0.5,", b",nan,", "line 7: weight: expected a number that float32 can hold, found nan"),
        (b",0.5,", b",1e39,", "line 7: weight: expected a number that float32 can hold, found 1e\\+39"),
        (b",0.5,", b",0.5.5,", "line 7: expected numbers for turn,"),
        (b",0.5,", b",0.5\r,", "line 7: expected numbers for turn,"),
        (b",0.5,", b",\xff,", "line 7: expected numbers for turn,"),
        (b",0.5,", b"," + b"5" * 4000 + b",", "line 7: weight: expected a number that float32 can hold, found inf"),
        (b",0.5,", b"," + b"5" * 5000 + b",", "line 7: expected at most 4096 bytes"),
        (b",0.5,", b"," + b"5" * 3_000_000 + b",", "line 7: expected at most 4096 bytes"),
        (b"", b"\xff\xfe", "line 1: expected UTF-8"),
    ],
)  # fmt: skip
def test_csv_that_is_wrong_is_told_with_its_line(tmp_path: Path, before: bytes, after: bytes, says: str) -> None:
    trace, path = made_up_trace(), tmp_path / "t.csv"
    write_csv(path, trace)
    text = path.read_bytes()
    assert before in text
    path.write_bytes(text.replace(before, after, 1))
    with pytest.raises(TraceError, match=says) as told:
        read_trace(path)
    assert str(path) in told.value.message


@given(st.binary(max_size=60), st.integers(0, 400), st.integers(0, 30), st.booleans())
@settings(max_examples=examples(150), deadline=None)
def test_csv_rows_with_anything_among_them(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, at: int, cut: int, alphabet: bool
) -> None:
    """Whatever is put into the rows is one error of its line, or numbers that Python reads in the same way."""
    path = tmp_path_factory.mktemp("trace") / "t.csv"
    write_csv(path, made_up_trace())
    text = path.read_bytes()
    head = text.index(b"residency,expert_bytes\n") + 23
    if alphabet:
        data = bytes(b"0123456789.,-e\n"[byte % 15] for byte in data)
    at = head + at % (len(text) - head)
    path.write_bytes(text[:at] + data + text[at + cut :])
    lines = path.read_bytes()[head:].replace(b"\r\n", b"\n").split(b"\n")
    try:
        trace = read_trace(path)
    except TraceError as error:
        assert str(path) in error.message
        if "the last line has no end" in error.message:
            assert lines[-1]
        else:
            number = int(error.message.partition("line ")[2].partition(":")[0])
            path.write_bytes(text[:head] + b"".join(line + b"\n" for line in lines[: number - 7]))
            assert len(read_trace(path)) == number - 7
    else:
        assert lines[-1] == b""
        # As text: a number may have any white space about it, and bytes have less of that than text.
        rows = [[float(cell) for cell in line.decode().split(",")] for line in lines[:-1]]
        assert [*zip(*(column.tolist() for column in trace.columns), strict=True)] == [
            (*row[:6], float(np.float32(row[6])), *row[7:]) for row in rows
        ]


def members(path: Path) -> list[bytes]:
    """The gzip members of a file, as they stand there."""
    data, found = path.read_bytes(), []
    while data:
        inflater = zlib.decompressobj(31)
        inflater.decompress(data)
        assert inflater.eof
        found.append(data[: len(data) - len(inflater.unused_data)])
        data = inflater.unused_data
    return found


def trace_of_three_blocks(path: Path) -> Trace:
    trace = made_up_trace(tokens=9)
    with TraceWriter(path, trace.shape) as writer:
        for first in (0, 20, 40):
            writer.write(trace.select(slice(first, first + 20 if first < 40 else None)))
            writer.flush()
    return trace


def test_a_trace_that_is_cut_short_anywhere_is_told_and_what_is_whole_can_be_had(tmp_path: Path) -> None:
    path = tmp_path / "t"
    trace = trace_of_three_blocks(path)
    data, ends = path.read_bytes(), np.cumsum([len(member) for member in members(path)])
    for size in {*range(0, len(data), 7), *ends[:-1].tolist()}:
        path.write_bytes(data[:size])
        with pytest.raises(TraceError) as told:
            read_trace(path)
        assert str(path) in told.value.message
        if size < ends[0]:  # nothing to be kept
            with pytest.raises(TraceError):
                read_trace(path, whole_blocks_only=True)
        else:
            whole = sum(end <= size for end in ends[1:4])
            kept = read_trace(path, whole_blocks_only=True)
            assert same_rows(kept, trace.select(slice(0, (0, 20, 40, len(trace))[whole])))
            assert "edgemoe trace" in told.value.hint


def test_a_trace_that_is_altered_anywhere_is_told(tmp_path: Path) -> None:
    """But for what says nothing of the data: a gzip header's time, system and way of compression, and unused bits."""
    path = tmp_path / "t"
    trace = trace_of_three_blocks(path)
    data, told = path.read_bytes(), 0
    for place in range(0, len(data), 3):
        altered = bytearray(data)
        altered[place] ^= 1 << place % 8
        path.write_bytes(altered)
        try:
            assert same_rows(read_trace(path), trace)
        except TraceError:
            told += 1
    assert told > 0.95 * len(data) / 3
    path.write_bytes(data + b"\0")
    with pytest.raises(TraceError, match="block 6: it is"):
        read_trace(path)


def test_blocks_that_are_missing_repeated_or_moved_are_told(tmp_path: Path) -> None:
    path = tmp_path / "t"
    trace_of_three_blocks(path)
    head, one, two, three, end = members(path)
    for wrong in (
        [head, two, three, end],
        [head, one, one, two, three, end],
        [head, two, one, three, end],
        [head, one, two, end],
        [head, one, two, three, head],
        [head, one, two, three, end, end],
        [one, two, three, end],
        [head, one, two, three],
        [end],
    ):
        path.write_bytes(b"".join(wrong))
        with pytest.raises(TraceError, match=r"block \d: .*expected"):
            read_trace(path)


@every_case(
    ("arrays", "says"),
    [
        ({"first_row": np.zeros(1)}, r"first_row: expected 0, the number of rows before it, found \[0\.\]"),
        ({"first_row": np.zeros(2, np.int64)}, "first_row: expected 0"),
        ({"turn": None}, "turn: expected one row of int32, found none"),
        ({"turn": np.zeros(4, np.int64)}, "turn: expected one row of int32, found int64"),
        ({"turn": np.zeros((2, 2), np.int32)}, r"turn: expected one row of int32, found int32 of shape \(2, 2\)"),
        ({"turn": np.zeros(5, np.int32)}, r"expected columns of 1 to 65536 rows, found \[4, 5\]"),
        ({name: np.zeros(0, kind) for name, kind in COLUMNS.items()}, r"columns of 1 to 65536 rows, found \[0\]"),
        ({"expert": np.array([0, 1, 2, 8], np.int32)}, "row 4: expert: expected a whole number below 8, found 8"),
        ({"slot": np.array([0, -1, 2, 2], np.int32)}, "row 2: slot: expected a whole number below 2, found -1"),
        ({"weight": np.array([0, 1, np.nan, 0], np.float32)}, "row 3: weight: expected a number that float32 can hold"),
        ({"residency": np.array([0, 1, 0, 2], np.uint8).view(np.bool_)}, "row 4: residency: expected .* below 2"),
    ],
)  # fmt: skip
def test_arrays_that_are_no_rows_are_told_though_their_checksum_holds(
    tmp_path: Path, arrays: dict[str, Any], says: str
) -> None:
    path = tmp_path / "t"
    write_trace(path, made_up_trace(tokens=0))
    head, end = members(path)
    block = {"first_row": np.zeros(1, np.int64), **{name: np.zeros(4, kind) for name, kind in COLUMNS.items()}}
    block = {name: array for name, array in {**block, **arrays}.items() if array is not None}
    path.write_bytes(head + trace_blocks._member(block) + end)
    with pytest.raises(TraceError, match=f"block 2: .*{says}"):
        read_trace(path)


@every_case(
    ("arrays", "says"),
    [
        ({"counts": np.array([3, 0, 2])}, "expected experts from 1"),
        ({"counts": np.array([3, 8])}, "counts: expected layers, experts and experts used"),
        ({"counts": None}, "counts: expected one row of int64, found none"),
        ({"model": np.array([255], np.uint8)}, "invalid start byte"),
        ({"dense_bytes": np.zeros(2, np.int64)}, "expected dense_bytes of 3 layers, found 2"),
    ],
)  # fmt: skip
def test_a_shape_that_is_none_is_told_though_its_checksum_holds(
    tmp_path: Path, arrays: dict[str, Any], says: str
) -> None:
    block = {
        "model": np.zeros(1, np.uint8), "architecture": np.zeros(1, np.uint8), "counts": np.array([3, 8, 2]),
        "expert_bytes": np.zeros(3, np.int64), "dense_bytes": np.zeros(3, np.int64),
    }  # fmt: skip
    block = {name: array for name, array in {**block, **arrays}.items() if array is not None}
    (tmp_path / "t").write_bytes(trace_blocks._member(block))
    with pytest.raises(TraceError, match=f"block 1: expected a model's shape: .*{says}"):
        read_trace(tmp_path / "t")


def test_a_block_that_would_fill_the_memory_is_refused_before_it_does(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(gzip.compress(bytes(64 << 20)))
    with pytest.raises(TraceError, match="block 1: expected fewer than 4194304 bytes"):
        read_trace(tmp_path / "t")


@given(st.binary(max_size=200), st.sampled_from(["plain", "gzip", "safetensors"]))
@settings(deadline=None)
def test_what_is_no_trace_is_one_error(tmp_path_factory: pytest.TempPathFactory, data: bytes, inside: str) -> None:
    path = tmp_path_factory.mktemp("trace") / "t"
    if inside == "safetensors":
        data = len(data).to_bytes(8, "little") + data
    path.write_bytes(data if inside == "plain" else gzip.compress(data))
    with pytest.raises(TraceError) as told:
        read_trace(path)
    assert str(path) in told.value.message


@every_case("room", [0, 1, 30, 10_000])
def test_a_full_disk_costs_only_what_is_written_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """The system takes `room` bytes of the second block, and then no more, save in space that the file has."""
    trace, path = made_up_trace(tokens=40), tmp_path / "t"
    writer = TraceWriter(path, trace.shape)
    writer.write(trace.select(slice(0, 50)))
    writer.flush()
    kept, limit = path.read_bytes(), writer.file_bytes + room
    really = os.write

    def write(descriptor: int, data: memoryview) -> int:
        taken = min(len(data), limit - os.lseek(descriptor, 0, os.SEEK_CUR))
        if taken <= 0:
            raise OSError(28, "No space left on device")
        return really(descriptor, data[:taken])

    monkeypatch.setattr(trace_module.os, "write", write)
    writer.write(trace.select(slice(50, None)))
    if room == 10_000:
        writer.close()
        assert same_rows(read_trace(path), trace)
        return
    with pytest.raises(TraceError, match=r"No space left on device.*50 rows before it are there"):
        writer.close()
    assert path.read_bytes() == kept
    assert same_rows(read_trace(path), trace.select(slice(0, 50)))
    with pytest.raises(TraceError, match="closed"):
        writer.write(trace)
    writer.close()


@pytest.mark.parametrize("when", ["before", "midway", "after"])
def test_an_interrupt_of_a_write_costs_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    trace, path = made_up_trace(tokens=40), tmp_path / "t"
    really, interrupts = os.write, [when]

    def write(descriptor: int, data: memoryview) -> int:
        if not interrupts:
            return really(descriptor, data)
        interrupts.clear()
        if when != "before":
            really(descriptor, data[: len(data) // 2] if when == "midway" else data)
        raise KeyboardInterrupt

    with TraceWriter(path, trace.shape) as writer:
        writer.write(trace.select(slice(0, 20)))
        writer.flush()
        writer.write(trace.select(slice(20, 50)))
        monkeypatch.setattr(trace_module.os, "write", write)
        with pytest.raises(KeyboardInterrupt):
            writer.flush()
        assert same_rows(read_trace(path), trace.select(slice(0, 20)))
        writer.write(trace.select(slice(50, None)))
    assert same_rows(read_trace(path), trace)
    assert writer.rows == len(trace)


def test_a_place_that_cannot_be_written_or_read_is_told(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for place in (tmp_path, tmp_path / "none" / "t", fifo, "/dev/null"):
        with pytest.raises(TraceError, match="the trace cannot be written"):
            TraceWriter(place, SHAPE)
    for place in (tmp_path, tmp_path / "none", "/dev/null"):
        with pytest.raises(TraceError, match=str(place)):
            read_trace(place)


@every_case(
    "numbers",
    [
        {"layers": 0}, {"experts": 0}, {"experts_used": 9}, {"experts_used": True}, {"expert_bytes": (1, 2)},
        {"dense_bytes": (1, 2, -3)}, {"layers": 1 << 20}, {"expert_bytes": (1, 2, 1 << 60)}, {"experts": 2.0},
    ],
)  # fmt: skip
def test_shapes_that_no_model_has(numbers: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        TraceShape(**{**vars(SHAPE), **numbers})


def test_what_a_trace_says_of_itself() -> None:
    trace = made_up_trace(tokens=5)
    assert len(trace) == 5 * 3 * 2
    assert trace.tokens == 5
    assert trace.keys.tolist() == [layer * 8 + expert for layer, expert in zip(trace.layer, trace.expert, strict=True)]
    assert trace.keys.max() < trace.shape.keys == 24
    distinct = [len({e for at, e in zip(trace.layer, trace.expert, strict=True) if at == layer}) for layer in range(3)]
    assert trace.distinct_experts().tolist() == distinct
    assert made_up_trace(tokens=0).tokens == 0


@pytest.mark.parametrize(("name", "rows", "tokens"), [("qwen3-30b-a3b", 44766, 156), ("gemma-4-26b-a4b", 28260, 157)])
def test_recorded_traces_of_others(tmp_path: Path, name: str, rows: int, tokens: int) -> None:
    path = shared_file(f"traces/{name}.csv")
    trace = read_trace(path)
    assert (len(trace), trace.tokens, trace.shape.experts_used) == (rows, tokens, 6)
    write_csv(tmp_path / "again.csv", trace)
    assert (tmp_path / "again.csv").read_bytes() == path.read_bytes()
    write_trace(tmp_path / "again", trace)
    assert same_rows(read_trace(tmp_path / "again"), trace)
    assert (tmp_path / "again").stat().st_size < path.stat().st_size / 5
