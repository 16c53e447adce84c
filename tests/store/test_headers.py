"""Safetensors headers: ours are what the library reads, and damaged ones are refused with SourceError alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgemoe.errors import SourceError, StoreError
from edgemoe.store.headers import build_header, parse_json, read_header
from tests.support.every_case import every_case
from tests.support.examples import examples


def test_a_built_header_is_padded_to_a_page_and_read_by_the_library(tmp_path: Path) -> None:
    data = np.arange(12, dtype=np.float32)
    header = build_header([("a", "U8", (5,), 5), ("b", "F32", (3, 4), 48)])
    path = tmp_path / "x.safetensors"
    path.write_bytes(header + b"hello" + data.tobytes())
    assert len(header) % 4096 == 0
    with safetensors.safe_open(path, "np") as file:
        assert bytes(file.get_tensor("a")) == b"hello"
        assert np.array_equal(file.get_tensor("b"), data.reshape(3, 4))
    found = read_header(path, StoreError, "")
    assert [(t.dtype, t.shape, t.offset, t.bytes) for t in found.values()] == [
        ("U8", (5,), len(header), 5),
        ("F32", (3, 4), len(header) + 5, 48),
    ]


def test_a_header_longer_than_a_page_ends_at_a_page_too() -> None:
    assert len(build_header((f"tensor{i}", "U8", (1,), 1) for i in range(200))) in range(8192, 1 << 20, 4096)


def _file(path: Path, header: object, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def _entry(start: int, stop: int, shape: list[int] | None = None) -> dict[str, object]:
    return {"dtype": "U8", "shape": [stop - start] if shape is None else shape, "data_offsets": [start, stop]}


@every_case(
    ("header", "data", "message"),
    [
        ({"a": _entry(0, 4)}, b"abc", "expected .* bytes by its header, found"),
        ({"a": _entry(0, 4)}, b"abcde", "expected .* bytes by its header, found"),
        ({"a": _entry(0, 4), "b": _entry(2, 4)}, b"abcd", "begins at byte"),
        ({"a": _entry(0, 2), "b": _entry(3, 4)}, b"abcd", "begins at byte"),
        ({"a": _entry(0, 4, [5])}, b"abcd", "not of the safetensors format"),
        ({"a": {"dtype": "U8", "shape": [4], "data_offsets": [4, 0]}}, b"abcd", "not of the safetensors format"),
        ({"a": 3}, b"", "not of the safetensors format"),
        ([], b"", "not a table"),
        (b"{", b"", "not JSON"),
        (b"[" * 100_000, b"", "not JSON"),
    ],
)
def test_damaged_headers_are_refused(tmp_path: Path, header: object, data: bytes, message: str) -> None:
    path = _file(tmp_path / "shard.safetensors", header, data)
    with pytest.raises(SourceError, match=rf"^shard\.safetensors: .*{message}"):
        read_header(path, SourceError, "")


def test_a_header_length_beyond_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard.safetensors"
    for content in (b"", b"\x01", (1 << 60).to_bytes(8, "little"), (1 << 20).to_bytes(8, "little") + b"{}"):
        path.write_bytes(content)
        with pytest.raises(SourceError, match="expected a safetensors header"):
            read_header(path, SourceError, "")


def test_not_a_number_is_not_json() -> None:
    with pytest.raises(ValueError, match="not JSON"):
        parse_json('{"a": NaN}')


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(60))
@given(st.data())
def test_mutated_headers_are_read_or_refused_and_nothing_else(tmp_path: Path, data: st.DataObject) -> None:
    good = build_header([("a", "U8", (5,), 5), ("b", "F32", (3, 4), 48)]).rstrip() + bytes(53)
    content = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.safetensors"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        found = read_header(path, SourceError, "")
    except SourceError:
        return
    assert all(t.offset >= 0 and t.offset + t.bytes <= path.stat().st_size for t in found.values())
