"""Traces as files: what is written comes back, what is damaged is told, what a full disk or a crash leaves is whole."""

from __future__ import annotations

import copy
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgemoe.errors import TraceError, UsageError
from edgemoe.lab import trace as trace_module
from edgemoe.lab import trace_binary, trace_csv
from edgemoe.lab.trace import (
    FORMATS,
    Trace,
    TraceFormat,
    TraceShape,
    TraceWriter,
    format_of,
    read_trace,
    write_trace,
)
from edgemoe.lab.trace_rows import COLUMNS, bounds
from tests.support.examples import examples
from tests.support.shared_data import shared_file
from tests.support.traces import SHAPE, made_up_trace, same_rows

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


@given(traces(), st.sampled_from(FORMATS))
@settings(max_examples=examples(50), deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_was_written_comes_back(tmp_path_factory: pytest.TempPathFactory, trace: Trace, form: TraceFormat) -> None:
    path = tmp_path_factory.mktemp("trace") / "t"
    write_trace(path, trace, form)
    back = read_trace(path)
    assert same_rows(back, trace)
    if form == "binary":
        assert back.shape == trace.shape
    else:  # in a line of text white space is one space
        assert back.shape.model == " ".join(trace.shape.model.split())
        assert back.shape.expert_bytes == trace.shape.expert_bytes


@pytest.mark.parametrize("form", FORMATS)
def test_a_trace_written_piece_by_piece_is_whole_after_every_flush(tmp_path: Path, form: TraceFormat) -> None:
    trace, path = made_up_trace(tokens=30), tmp_path / "t"
    with TraceWriter(path, trace.shape, form) as writer:
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
    monkeypatch.setattr(trace_binary, "MOST_BLOCK_ROWS", 10)
    trace = made_up_trace(tokens=9)
    with TraceWriter(tmp_path / "t", trace.shape, "binary") as writer:
        writer.write(trace)
    assert (tmp_path / "t").read_bytes().count(b"ROWS") == -(-len(trace) // 10)
    assert same_rows(read_trace(tmp_path / "t"), trace)


def test_csv_read_in_small_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = made_up_trace(tokens=9)
    write_trace(tmp_path / "t.csv", trace)
    text = (tmp_path / "t.csv").read_bytes()
    (tmp_path / "dos.csv").write_bytes(text.replace(b"\n", b"\r\n"))
    for size in (1, 40, 1000):
        monkeypatch.setattr(trace_csv, "BLOCK_BYTES", size)
        assert same_rows(read_trace(tmp_path / "t.csv"), trace)
        assert same_rows(read_trace(tmp_path / "dos.csv"), trace)


def test_the_format_goes_by_name_when_written_and_by_content_when_read(tmp_path: Path) -> None:
    assert [format_of(name) for name in ("a.csv", "a.CSV", "a.trace", "a")] == ["csv", "csv", "binary", "binary"]
    assert format_of("a.csv", "binary") == "binary"
    with pytest.raises(UsageError, match="expected csv or binary, found xml"):
        format_of("a", "xml")
    trace = made_up_trace()
    write_trace(tmp_path / "a.csv", trace, "binary")
    write_trace(tmp_path / "b.trace", trace, "csv")
    assert (tmp_path / "a.csv").read_bytes().startswith(trace_binary.MAGIC)
    assert same_rows(read_trace(tmp_path / "a.csv"), read_trace(tmp_path / "b.trace"))


@pytest.mark.parametrize(
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
        (b"\n0,0,1,0,0,", b"\n0,0,-1,0,0,", "line 9: step: expected a whole number, found '-1'"),
        (b"\n0,0,1,0,0,", b"\n0,0,1.5,0,0,", "line 9: step: expected a whole number, found '1.5'"),
        (b"\n0,0,1,0,0,", b"\n9999999999,0,1,0,0,", "line 9: turn: expected a whole number below 2147483648"),
        (b"\n0,0,1,0,0,", b"\n0,0,1,0,", "line 9: expected 9 values, found 8"),
        (b"\n0,0,1,0,0,", b"\n0,0,1,0,0,0,", "line 9: expected 9 values, found 10"),
        (b"\n0,0,1,0,0,", b"\n\n0,0,1,0,0,", "line 9: expected 9 values, found 1"),
        (b"\n0,0,1,0,0,", b"\n0,0,1,0,,", "line 9: slot: expected a whole number, found ''"),
        (b"\n0,0,1,0,0,", b"\n#\n0,0,1,0,0,", "line 9: expected 9 values, found 1"),
        (b",0.5,", b",nan,", "line 7: weight: expected a number, found 'nan'"),
        (b",0.5,", b",1e39,", "line 7: weight: expected a number that float32 can hold, found 1e\\+39"),
        (b",0.5,", b",0.5.5,", "line 7: weight: expected a number, found '0.5.5'"),
        (b",0.5,", b", 0.5,", "line 7: weight: expected a number, found ' 0.5'"),
        (b",0.5,", b"," + b"5" * 5000 + b",", "line 7: weight: expected a number"),
        (b",0.5,", b"," + b"5" * 3_000_000 + b",", "line 7: expected at most 4096 bytes"),
        (b"", b"\xff\xfe", "line 1: expected UTF-8"),
    ],
)  # fmt: skip
def test_csv_that_is_wrong_is_told_with_its_line(tmp_path: Path, before: bytes, after: bytes, says: str) -> None:
    trace, path = made_up_trace(), tmp_path / "t.csv"
    write_trace(path, trace)
    text = path.read_bytes()
    assert before in text
    path.write_bytes(text.replace(before, after, 1))
    with pytest.raises(TraceError, match=says) as told:
        read_trace(path)
    assert str(path) in told.value.message


@given(st.binary(max_size=60), st.integers(0, 400), st.integers(0, 30), st.booleans())
@settings(max_examples=examples(150), deadline=None)
def test_the_two_ways_through_csv_agree(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, at: int, cut: int, alphabet: bool
) -> None:
    """Whatever is put into the rows, the error names a line that is wrong, and only lines without fault are taken."""
    path = tmp_path_factory.mktemp("trace") / "t.csv"
    write_trace(path, made_up_trace())
    text = path.read_bytes()
    head = text.index(b"residency,expert_bytes\n") + 23
    if alphabet:
        data = bytes(b"0123456789.,-e\n"[byte % 15] for byte in data)
    at = head + at % (len(text) - head)
    path.write_bytes(text[:at] + data + text[at + cut :])
    lines = path.read_bytes()[head:].replace(b"\r\n", b"\n").split(b"\n")
    faults = [trace_csv._line_fault(SHAPE, line) for line in lines[:-1]]
    first = next((number for number, fault in enumerate(faults) if fault), None)
    try:
        trace = read_trace(path)
    except TraceError as error:
        if first is None:
            assert "the last line has no end" in error.message
            assert lines[-1]
        else:
            assert f"line {first + 7}: {faults[first]}" in error.message
    else:
        assert first is None
        assert len(trace) == len(lines) - 1


def binary_blocks(path: Path) -> list[tuple[int, int]]:
    """Begin and end of each block of a trace."""
    data = path.read_bytes()
    position = 20 + struct.unpack_from("<I", data, 12)[0]
    blocks = []
    while data[position : position + 4] == b"ROWS":
        end = position + 16 + struct.unpack_from("<I", data, position + 8)[0]
        blocks.append((position, end))
        position = end
    return blocks


def binary_trace(path: Path) -> Trace:
    """A trace of three blocks."""
    trace = made_up_trace(tokens=9)
    with TraceWriter(path, trace.shape, "binary") as writer:
        for first in (0, 20, 40):
            writer.write(trace.select(slice(first, first + 20 if first < 40 else None)))
            writer.flush()
    return trace


def test_a_binary_trace_that_is_cut_short_anywhere_is_told_and_what_is_whole_can_be_had(tmp_path: Path) -> None:
    path = tmp_path / "t"
    trace = binary_trace(path)
    data, blocks = path.read_bytes(), binary_blocks(path)
    for size in range(0, len(data), 2):
        path.write_bytes(data[:size])
        with pytest.raises(TraceError) as told:
            read_trace(path)
        assert str(path) in told.value.message
        if size < blocks[0][0]:  # nothing to be kept
            with pytest.raises(TraceError):
                read_trace(path, whole_blocks_only=True)
        else:
            whole = sum(end <= size for _, end in blocks)
            kept = read_trace(path, whole_blocks_only=True)
            assert same_rows(kept, trace.select(slice(0, (0, 20, 40, len(trace))[whole])))
            assert "edgemoe trace" in told.value.hint


def test_a_binary_trace_that_is_altered_anywhere_is_told(tmp_path: Path) -> None:
    path = tmp_path / "t"
    binary_trace(path)
    data = path.read_bytes()
    for place in range(0, len(data), 3):
        altered = bytearray(data)
        altered[place] ^= 1 << place % 8
        path.write_bytes(altered)
        with pytest.raises(TraceError):
            read_trace(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(TraceError, match="nothing after the end mark"):
        read_trace(path)


def test_binary_blocks_that_are_missing_repeated_or_moved_are_told(tmp_path: Path) -> None:
    path = tmp_path / "t"
    binary_trace(path)
    data = path.read_bytes()
    (one, two), (_, three), _ = binary_blocks(path)
    head, first, second, rest = data[:one], data[one:two], data[two:three], data[three:]
    for wrong in (head + second + rest, head + first + first + second + rest, head + second + first + rest):
        path.write_bytes(wrong)
        with pytest.raises(TraceError, match=r"block \d: its checksum is wrong"):
            read_trace(path)


@given(st.binary(max_size=200), st.booleans())
@settings(deadline=None)
def test_what_is_no_trace_is_one_error(tmp_path_factory: pytest.TempPathFactory, data: bytes, magic: bool) -> None:
    path = tmp_path_factory.mktemp("trace") / "t"
    path.write_bytes((trace_binary.MAGIC if magic else b"") + data)
    with pytest.raises(TraceError) as told:
        read_trace(path)
    assert str(path) in told.value.message


def test_a_binary_header_or_row_out_of_range_is_told_though_its_checksum_holds(tmp_path: Path) -> None:
    trace, path = made_up_trace(), tmp_path / "t"
    columns = dict(zip(COLUMNS, trace.columns, strict=True))
    wrong = Trace(trace.shape, **{**columns, "expert": np.where(np.arange(len(trace)) == 4, 99, trace.expert)})  # type: ignore[arg-type]
    write_trace(path, wrong, "binary")
    with pytest.raises(TraceError, match="block 1, row 5: expert: expected a whole number below 8, found 99"):
        read_trace(path)
    no_experts = copy.copy(trace.shape)
    object.__setattr__(no_experts, "experts", 0)
    write_trace(path, made_up_trace(no_experts, tokens=0), "binary")
    with pytest.raises(TraceError, match="header: expected experts from 1"):
        read_trace(path)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("room", [0, 1, 30, 10_000])
def test_a_full_disk_costs_only_what_is_written_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: TraceFormat, room: int
) -> None:
    """The system takes `room` bytes of the second block, and then no more, save in space that the file has."""
    trace, path = made_up_trace(tokens=40), tmp_path / "t"
    writer = TraceWriter(path, trace.shape, form)
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


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("when", ["before", "midway", "after"])
def test_an_interrupt_of_a_write_costs_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: TraceFormat, when: str
) -> None:
    trace, path = made_up_trace(tokens=40), tmp_path / "t"
    really, interrupts = os.write, [when]

    def write(descriptor: int, data: memoryview) -> int:
        if not interrupts:
            return really(descriptor, data)
        interrupts.clear()
        if when != "before":
            really(descriptor, data[: len(data) // 2] if when == "midway" else data)
        raise KeyboardInterrupt

    with TraceWriter(path, trace.shape, form) as writer:
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
    for place in (tmp_path, tmp_path / "none" / "t.csv", fifo, "/dev/null"):
        with pytest.raises(TraceError, match="the trace cannot be written"):
            TraceWriter(place, SHAPE)
    for place in (tmp_path, tmp_path / "none", "/dev/null"):
        with pytest.raises(TraceError, match=str(place)):
            read_trace(place)


@pytest.mark.parametrize(
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
    write_trace(tmp_path / "again.csv", trace)
    assert (tmp_path / "again.csv").read_bytes() == path.read_bytes()
    write_trace(tmp_path / "again", trace)
    assert same_rows(read_trace(tmp_path / "again"), trace)
    assert (tmp_path / "again").stat().st_size < path.stat().st_size / 5
