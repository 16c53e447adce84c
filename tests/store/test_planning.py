"""Where things lie in a planned store: pages, alignment, and files of a bounded size."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemoe.kernels.formats import FORMATS, Format
from edgemoe.store.layouts import RecordLayout, packed_layout
from edgemoe.store.manifest import Checksums, Manifest
from edgemoe.store.manifest_parser import parse_manifest
from edgemoe.store.planning import SMALL_FILE_BYTES, plan_store
from edgemoe.store.writer import with_checksums
from tests.support.every_case import every_case
from tests.support.examples import examples

Q4, Q8, F32 = FORMATS["q4"], FORMATS["q8"], FORMATS["f32"]
RESIDENT: list[tuple[str, Format | None, int, int]] = [("final_norm", None, 40, 1), ("embedding", Q8, 100, 40)]


def _plan(experts: list[list[RecordLayout]], **options: Any) -> Manifest:
    return plan_store({"layers": [{}] * len(experts)}, RESIDENT, experts, **options)


def test_matrices_come_before_vectors_and_begin_at_64_bytes_of_the_data() -> None:
    manifest = _plan([[]])
    assert [tensor.name for tensor in manifest.dense] == ["embedding", "final_norm"]
    start = manifest.dense[0].offset
    assert start % 4096 == 0
    assert all((tensor.offset - start) % 64 == 0 for tensor in manifest.dense if tensor.format)
    assert manifest.dense_file.bytes == manifest.dense[1].offset + 160
    assert manifest.expert_files == ()


def test_down_lies_right_behind_gate_and_up() -> None:
    layout = packed_layout(64, 40, Q4, Q8).matrices
    assert layout.down_offset == 2 * Q4.matrix_bytes(40, 64)
    assert layout.down_offset % 64 == 0


def test_files_of_a_small_store_stay_small_enough_for_source_hosts() -> None:
    manifest = _plan([[packed_layout(4096, 2048, Q4, Q4)] * 16] * 2)
    assert len(manifest.expert_files) > 2
    assert all(file.bytes <= SMALL_FILE_BYTES for file in manifest.expert_files)


def test_files_of_a_large_store_are_large() -> None:
    manifest = _plan([[packed_layout(4096, 14336, Q4, Q4)] * 128])
    assert {file.bytes > SMALL_FILE_BYTES for file in manifest.expert_files[:-1]} == {True}
    assert all(file.bytes <= 4_000_000_000 for file in manifest.expert_files)


def test_a_record_larger_than_the_limit_gets_a_file_of_its_own() -> None:
    manifest = _plan([[packed_layout(640, 400, F32, F32)] * 3], file_limit_bytes=8192)
    assert len(manifest.expert_files) == 3


_LAYOUTS = st.builds(
    packed_layout,
    st.integers(1, 100),
    st.integers(1, 100),
    st.sampled_from(list(FORMATS.values())),
    st.sampled_from(list(FORMATS.values())),
    st.booleans(),
    st.booleans(),
)
_LAYERS = st.just([]) | st.lists(_LAYOUTS, min_size=1, max_size=2).flatmap(
    lambda some: st.lists(st.sampled_from(some), min_size=1, max_size=40)
)


@settings(max_examples=examples(40), deadline=None)
@given(st.lists(_LAYERS, min_size=1, max_size=4), st.integers(8192, 200_000), st.integers(0, (1 << 32) - 1))
def test_any_plan_is_a_manifest_without_gaps(experts: list[list[RecordLayout]], limit: int, crc: int) -> None:
    manifest = _plan(experts, file_limit_bytes=limit)
    ends = [len(header) for header in manifest.expert_headers()]
    records = list(manifest.records)
    assert [(record.layer, record.expert) for record in records] == [
        (layer, expert) for layer, layouts in enumerate(experts) for expert in range(len(layouts))
    ]
    for record in records:
        assert manifest.layouts[record.layout] == experts[record.layer][record.expert]
        assert record.offset == ends[record.file]
        assert record.offset % 4096 == record.length % 4096 == 0
        ends[record.file] += record.length
    assert ends == [file.bytes for file in manifest.expert_files]
    assert all(file.bytes <= limit or _records_in(manifest, n) == 1 for n, file in enumerate(manifest.expert_files))
    names = {tensor.name for tensor in manifest.dense} | {record.name for record in records}
    finished = with_checksums(manifest, dict.fromkeys(names, Checksums("0" * 64, crc)))
    assert finished.checked_when_read
    assert not manifest.checked_when_read
    assert finished.files == manifest.files
    assert parse_manifest(finished.to_bytes(), lambda file: finished.records.to_bytes()) == finished


def _records_in(manifest: Manifest, file: int) -> int:
    return int(np.sum(manifest.records.file == file))


@every_case("width", [1, 15, 16, 17, 33])
def test_a_record_holds_its_matrices_and_less_than_a_page_more(width: int) -> None:
    layout = packed_layout(70, width, Q4, Q8)
    used = layout.matrices.down_offset + Q8.matrix_bytes(70, width)
    assert used <= layout.slot_bytes < used + 4096
    assert used == layout.weight_bytes
    assert layout.fault() is None
