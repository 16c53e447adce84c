"""The record table: bad tables and layouts are refused with one clear error, and large ones open fast."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgemoe.errors import StoreError
from edgemoe.kernels.formats import FORMATS, SUB1
from edgemoe.model.description import store_spec
from edgemoe.store.layouts import RecordLayout, Section, packed_layout
from edgemoe.store.manifest import MANIFEST_NAME, Manifest, with_record_file
from edgemoe.store.planning import plan_store
from edgemoe.store.reader import Store
from edgemoe.store.records import RECORDS_NAME, RecordTable, parse_records
from edgemoe.store.verification import verify_store
from edgemoe.store.writer import StoreWriter, with_checksums
from tests.support.examples import examples
from tests.support.mutants import mutants, overwrite
from tests.support.stores import edit_manifest, edit_records, put_records, small_store

Columns = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return small_store(tmp_path_factory.mktemp("made"))


@pytest.fixture
def folder(made: Store, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    return shutil.copytree(made.path, tmp_path / "store")


def test_the_table_has_a_row_for_each_expert(made: Store) -> None:
    records = made.manifest.records
    columns = safetensors.numpy.load_file(made.path / RECORDS_NAME)
    assert set(columns) == {"file", "offset", "length", "layout", "crc32c", "sha256"}
    assert len(records) == 8
    assert [records.count(layer) for layer in range(records.layers)] == [4, 4]
    assert [record.name for record in records] == [f"layers.{n}.experts.{e}" for n in range(2) for e in range(4)]
    assert [records.name(row) for row in range(8)] == [record.name for record in records]
    for name, column in columns.items():
        assert np.array_equal(getattr(records, name), column)
    assert parse_records(records.to_bytes(), [4, 4]) == records


def test_the_arrays_are_plain_and_cannot_be_written_to(made: Store) -> None:
    """Kernels will read them as they are."""
    records = made.manifest.records
    for array in (records.first, records.file, records.offset, records.length, records.layout, records.crc32c):
        assert array is not None
        assert array.flags.c_contiguous
        assert array.dtype.isnative
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_tables_differ_by_any_element(made: Store) -> None:
    records = made.manifest.records
    for name in ("file", "offset", "length", "layout", "crc32c", "sha256"):
        column = getattr(records, name).copy()
        assert replace(records, **{name: column}) == records
        other = column.copy()
        other[-1] += 1
        assert replace(records, **{name: other}) != records
    assert replace(records, crc32c=None) != records
    assert replace(records, crc32c=None) == replace(records, crc32c=None)


# Bad input: tables.


def refused(folder: Path, message: str) -> None:
    """Opening ends in one error, and no file of weights is read for it."""
    for path in [path for path in folder.iterdir() if path.name.startswith(("resident", "experts"))]:
        path.unlink()
    with pytest.raises(StoreError, match=message):
        Store.open(folder)


def test_a_table_that_was_cut_short_is_refused(folder: Path) -> None:
    path = folder / RECORDS_NAME
    size = path.stat().st_size
    os.truncate(path, size - 1)
    refused(folder, rf"records\.safetensors: expected {size} bytes, found {size - 1}")


@pytest.mark.parametrize(
    "change", [lambda size: size + 1, lambda size: size - 60, lambda size: 1 << 49, lambda size: 0]
)
def test_a_manifest_that_names_another_size_of_the_table_is_refused(folder: Path, change: Callable[[int], int]) -> None:
    edit_manifest(folder, lambda data: (t := data["experts"]["table"]).update(bytes=change(t["bytes"])))
    refused(folder, r"expected \d+ bytes, found|table\.bytes: expected a header and 60 bytes for each of 8 records")


def test_an_altered_table_is_refused(folder: Path) -> None:
    content = bytearray((folder / RECORDS_NAME).read_bytes())
    content[-1] ^= 1
    (folder / RECORDS_NAME).write_bytes(content)
    refused(folder, r"records\.safetensors: is not what was written \(its checksum differs\)")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["file"].__setitem__(2, 1), r"layers\.0\.experts\.2: expected one of 1 files, found file 1"),
        (lambda c: c["file"].__setitem__(2, -1), r"layers\.0\.experts\.2: expected one of 1 files, found file -1"),
        (lambda c: c["layout"].__setitem__(4, 1), r"layers\.1\.experts\.0: expected one of 1 layouts, found layout 1"),
        (lambda c: c["layout"].__setitem__(4, -7), r"layers\.1\.experts\.0: .* found layout -7"),
        (lambda c: c["offset"].__setitem__(1, 4097), r"layers\.0\.experts\.1: expected to begin .* found byte 4097"),
        (lambda c: c["offset"].__setitem__(0, 0), r"layers\.0\.experts\.0: .* behind the file's header, found byte 0"),
        (lambda c: c["offset"].__setitem__(7, -4096), r"layers\.1\.experts\.3: .* found byte -4096"),
        (lambda c: c["offset"].__setitem__(7, 1 << 62), r"layers\.1\.experts\.3: .* found byte 4611686018427387904"),
        (lambda c: c["length"].__setitem__(3, 4096), r"layers\.0\.experts\.3: .* bytes of its layout, found 4096"),
        (lambda c: c["length"].__setitem__(3, -1), r"layers\.0\.experts\.3: .* bytes of its layout, found -1"),
        (lambda c: c["length"].__setitem__(3, 1 << 62), r"layers\.0\.experts\.3: .* bytes of its layout"),
        (lambda c: c["offset"].__setitem__(7, 1 << 40), r"layers\.1\.experts\.3: ends at byte \d+, past the end"),
        (lambda c: c["offset"].__iadd__(4096), r"layers\.1\.experts\.3: ends at byte \d+, past the end"),
        (
            lambda c: c["offset"].__setitem__([2, 3], c["offset"][[3, 2]]),
            r"layers\.0\.experts\.3: out of order, it lies before layers\.0\.experts\.2",
        ),
        (
            lambda c: c["offset"].__setitem__(5, c["offset"][4] + 4096),
            r"layers\.1\.experts\.1: begins at byte \d+, within layers\.1\.experts\.0, which ends at byte \d+",
        ),
        (lambda c: c["offset"].__setitem__(5, c["offset"][4]), r"layers\.1\.experts\.1: begins .* within layers\.1"),
        (lambda c: c.pop("length"), r"expected the columns file, offset, .*, found crc32c, file, "),
        (lambda c: c.update(more=np.zeros(8)), r"expected the columns .* found crc32c, file, layout, length, more"),
        (lambda c: c.update(offset=c["offset"].astype(np.int32)), r"column offset as int64 \(8,\), found int32"),
        (lambda c: c.update(sha256=c["sha256"].reshape(-1)), r"column sha256 as uint8 \(8, 32\), found uint8 \(256,\)"),
        (lambda c: c.update({k: v[:-1] for k, v in c.items()}), r"column file as int32 \(8,\), found int32 \(7,\)"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_refused(folder: Path, change: Callable[[Columns], object], message: str) -> None:
    edit_records(folder, change)
    refused(folder, message)


def test_records_of_several_files_lie_in_the_order_of_files(tmp_path: Path) -> None:
    manifest = _planned([[packed_layout(64, 40, FORMATS["q4"], FORMATS["q4"])] * 4] * 2, file_limit_bytes=20_000)
    assert len(manifest.expert_files) > 2
    sizes = [file.bytes for file in manifest.expert_files]
    records = manifest.records
    assert records.fault(manifest.layouts, sizes) is None
    swapped = replace(records, file=records.file[::-1].copy(), offset=records.offset[::-1].copy())
    assert "out of order, it lies before layers.0.experts.0" in str(swapped.fault(manifest.layouts, sizes))


def test_what_is_not_safetensors_is_refused(folder: Path) -> None:
    size = (folder / RECORDS_NAME).stat().st_size
    for content in (bytes(size), b"\xff" * size, (size - 8).to_bytes(8, "little") + b"[" * (size - 8)):
        put_records(folder, content)
        refused(folder, r"records\.safetensors: not a safetensors file")


# Bad input: counts and layouts.


def _sections(data: dict[str, Any]) -> list[dict[str, Any]]:
    sections: list[dict[str, Any]] = data["experts"]["layouts"][0]["sections"]
    return sections


def _biases(offset: int, format_name: str = "f32") -> dict[str, Any]:
    return {"name": "biases", "format": format_name, "offset": offset}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["experts"]["counts"].append(0), r"an entry for each layer of the model \(2\), found 3"),
        (lambda d: d["experts"]["counts"].__setitem__(0, 5), r"column file as int32 \(9,\), found int32 \(8,\)"),
        (lambda d: d["experts"]["counts"].__setitem__(0, 99), "expected a header and 60 bytes for each of 103 records"),
        (lambda d: d["experts"]["counts"].__setitem__(0, -1), r"counts\[0\]: expected a whole number"),
        (lambda d: d["experts"]["counts"].__setitem__(0, 1 << 24), "expected at most 16777216 records"),
        (lambda d: d["experts"].update(counts=[0, 0]), "names a table, though no layer has experts"),
        (lambda d: d["experts"].update(table=None), r"experts\.table: expected a table"),
        (lambda d: d["experts"].update(layouts=[]), r"layers\.0\.experts\.0: expected one of 0 layouts"),
        (lambda d: d["experts"]["layouts"][0].update(landing="decoded"), r"landing: expected 'as is', found 'decoded'"),
        (lambda d: d["experts"]["layouts"][0].update(slot_bytes=4095), "expected a length that is a multiple of 4096"),
        (lambda d: d["experts"]["layouts"][0].update(slot_bytes=4096), "section .* beyond the record's 4096 bytes"),
        (
            lambda d: d["experts"]["layouts"][0].update(slot_bytes=1 << 30),
            r"layers\.0\.experts\.0: expected the 107374",
        ),
        (lambda d: _sections(d)[1].update(offset=64), "section down begins at byte 64, within gate_up, which ends at"),
        (lambda d: _sections(d)[1].update(offset=0), "section down begins at byte 0, within gate_up, which ends at"),
        (lambda d: _sections(d)[1].update(offset=1 << 20), "section down ends at byte .*, beyond the record's"),
        (lambda d: _sections(d)[1].update(offset=8001), "section down: expected at a multiple of 64 bytes, found at"),
        (lambda d: _sections(d)[0].update(offset=64), "section gate_up: expected at byte 0, found at byte 64"),
        (lambda d: _sections(d)[0].update(format="q7"), "is an unknown format 'q7'"),
        (
            lambda d: _sections(d)[0].update(name="gate"),
            "sections gate_up, down or gate, up, down or up, down, with or without biases, found gate, down",
        ),
        (lambda d: _sections(d).append(_sections(d)[0] | {"name": "up"}), "or without biases, found gate_up, down, up"),
        (lambda d: _sections(d).append(_sections(d)[0]), "with or without biases, found gate_up, down, g"),
        (lambda d: _sections(d).clear(), "with or without biases, found none"),
        (lambda d: _sections(d).append(_biases(0)), "section biases begins at byte 0, within gate_up"),
        (lambda d: _sections(d).append(_biases(64)), "section down begins at byte|section biases begins at byte 64"),
        (lambda d: _sections(d).append(_biases(1 << 20)), "section biases ends at byte .*, beyond the record's"),
        (lambda d: _sections(d).append(_biases(1 << 20, "f16")), "section biases: expected the format f32, found f16"),
    ],
)
def test_wrong_counts_and_layouts_are_refused(folder: Path, change: Callable[[Any], object], message: str) -> None:
    edit_manifest(folder, change)
    refused(folder, message)


def test_layouts_of_other_widths_than_the_model_s_are_refused(folder: Path) -> None:
    """A smaller matrix in a record of the same length."""
    edit_manifest(folder, lambda data: data["experts"]["layouts"][0].update(intermediate_size=71))
    with pytest.raises(StoreError, match=r"layer 0: expected experts of .* \(4, 64, 72\), found \(4, 64, 71\)"):
        store_spec(Store.open(folder))


def test_biases_of_experts_that_the_model_does_not_have_are_refused(folder: Path) -> None:
    """The record has room for them behind its matrices."""
    layout = json.loads((folder / MANIFEST_NAME).read_text())["experts"]["layouts"][0]
    offset = layout["slot_bytes"] - 4 * (80 + 80 + 64)
    edit_manifest(folder, lambda data: _sections(data).append(_biases(offset)))
    with pytest.raises(StoreError, match=r"layer 0: expected experts without biases, found some with"):
        store_spec(Store.open(folder))


def test_a_layout_with_biases_survives_the_manifest(tmp_path: Path) -> None:
    plain, biased = (packed_layout(64, 40, FORMATS["q4"], FORMATS["q8"], bias) for bias in (False, True))
    store = _written(tmp_path, [[plain, biased, biased]])
    assert store.layouts_of_layers == ((plain, biased),)
    assert biased.matrices == replace(plain.matrices, biases_offset=plain.weight_bytes)
    assert biased.weight_bytes - plain.weight_bytes == 4 * (48 + 48 + 64)
    assert store.manifest.mean_expert_bytes(0) == (plain.weight_bytes + 2 * biased.weight_bytes) // 3


@pytest.mark.parametrize("bias", [False, True])
def test_a_layout_without_a_gate_survives_the_manifest(tmp_path: Path, bias: bool) -> None:
    q4, q8 = FORMATS["q4"], FORMATS["q8"]
    layout = packed_layout(64, 40, q4, q8, bias, gated=False)
    store = _written(tmp_path, [[layout, layout]])
    assert store.layouts_of_layers == ((layout,),)
    assert [section.name for section in layout.sections] == ["up", "down", *["biases"] * bias]
    matrices = q4.matrix_bytes(40, 64) + q8.matrix_bytes(64, 40)
    assert layout.weight_bytes == matrices + 4 * (48 + 64) * bias
    assert layout.matrices.bias_bytes == 4 * (48 + 64) * bias
    assert layout.fault() is None


def test_a_layout_with_gate_and_up_apart_survives_the_manifest(tmp_path: Path) -> None:
    q4, q8 = FORMATS["q4"], FORMATS["q8"]
    layout = packed_layout(64, 40, q8, q8, True, gate_format=q4)
    store = _written(tmp_path, [[layout, layout]])
    assert store.layouts_of_layers == ((layout,),)
    assert [section.name for section in layout.sections] == ["gate", "up", "down", "biases"]
    matrices = q4.matrix_bytes(40, 64) + q8.matrix_bytes(40, 64) + q8.matrix_bytes(64, 40)
    assert layout.weight_bytes == matrices + 4 * (48 + 48 + 64)
    assert layout.fault() is None
    gate, up, *others = layout.sections
    overlapping = replace(layout, sections=(gate, replace(up, offset=64), *others))
    assert overlapping.fault() == f"section up begins at byte 64, within gate, which ends at {q4.matrix_bytes(40, 64)}."
    later = replace(layout, sections=(replace(gate, offset=64), up, *others))
    assert later.fault() == "section gate: expected at byte 0, found at byte 64."


def test_a_layout_in_sub1_is_one_that_conversion_writes() -> None:
    q4, q8 = FORMATS["q4"], FORMATS["q8"]
    for up, down, gate in ((SUB1, SUB1, None), (SUB1, q4, None), (q4, SUB1, None), (q4, SUB1, q8)):
        layout = packed_layout(64, 40, up, down, gate_format=gate, longest=8192)
        assert layout.fault() is None
        assert layout.matrices.varying
        assert layout.slot_bytes == layout.weight_bytes == 8192
        moved = replace(layout, sections=(*layout.sections[:-1], replace(layout.sections[-1], offset=4096)))
        assert "down at byte 4096." in (moved.fault() or "")
        biased = replace(layout, sections=(*layout.sections, Section("biases", FORMATS["f32"], 4096)))
        assert "biases at byte 4096." in (biased.fault() or "")
    for up, gate in ((SUB1, q4), (q4, SUB1)):
        fault = packed_layout(64, 40, up, q4, gate_format=gate, longest=8192).fault()
        assert fault == f"expected gate and up in one format, found {gate.name} and {up.name}."


def test_experts_without_the_gate_of_the_model_s_are_refused(folder: Path) -> None:
    edit_manifest(folder, lambda data: _sections(data)[0].update(name="up"))
    with pytest.raises(StoreError, match=r"layer 0: expected experts with a gate, found some without"):
        store_spec(Store.open(folder))


def test_a_layer_of_unlike_records_has_several_layouts(tmp_path: Path) -> None:
    q4, q8 = (packed_layout(64, 40, FORMATS[name], FORMATS["q8"]) for name in ("q4", "q8"))
    store = _written(tmp_path, [[q4, q8, q8, q4], [q8]])
    assert verify_store(store) == []
    assert store.layouts_of_layers == ((q4, q8), (q8,))
    assert store.record_bytes == q8.slot_bytes
    assert [store.record(0, expert).length for expert in range(4)] == [layout.slot_bytes for layout in (q4, q8, q8, q4)]
    assert store.manifest.mean_expert_bytes(0) == (q4.weight_bytes + q8.weight_bytes) // 2
    assert store.manifest.records.mean_bytes(0) == (q4.slot_bytes + q8.slot_bytes) // 2
    first, second = store.record_layouts
    assert first is not None
    assert second is not None
    assert first.layouts == (q4.matrices, q8.matrices)
    assert first.layout_of.tolist() == [0, 1, 1, 0]
    assert (second.layouts, second.layout_of.tolist()) == ((q8.matrices,), [0])


def test_a_layer_of_more_layouts_than_kernels_take_is_refused(tmp_path: Path) -> None:
    many = [packed_layout(64, 40, one, other) for one in FORMATS.values() for other in FORMATS.values()]
    assert _written(tmp_path / "some", [many[:16]]).record_layouts[0] is not None
    with pytest.raises(StoreError, match="at most 16 layouts of expert records in a layer, found 17 in layer 0"):
        _ = _written(tmp_path / "many", [many[:17]]).record_layouts


# Fuzzing.


def _fuzz_tables(folder: Path, count: int, seed: int) -> int:
    """Opens a store with altered tables for which the manifest vouches; returns how many were refused."""
    whole, manifest = (folder / RECORDS_NAME).read_bytes(), (folder / MANIFEST_NAME).read_bytes()
    sizes = {path: path.stat().st_size for path in folder.iterdir()}
    refusals = 0
    for what, content in mutants(whole, count, seed):
        put_records(folder, content)
        try:
            store = Store.open(folder)
        except StoreError as error:
            assert RECORDS_NAME in str(error) or "experts.table" in str(error), what
            refusals += 1
        else:
            for record in store.manifest.records:
                place = store.record(record.layer, record.expert)
                assert place.offset + place.length <= sizes[place.path], what
        overwrite(folder / MANIFEST_NAME, manifest)
    overwrite(folder / RECORDS_NAME, whole)
    return refusals


def test_some_altered_tables_open_with_every_record_in_its_file_or_are_refused(folder: Path) -> None:
    assert _fuzz_tables(folder, 160, seed=1) > 80


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_altered_tables_open_with_every_record_in_its_file_or_are_refused(folder: Path) -> None:
    assert _fuzz_tables(folder, 8_000, seed=2) > 4_000


_INTEGERS = st.one_of(
    st.integers(-2, 5), st.integers(-(1 << 31), (1 << 31) - 1), st.integers(-(1 << 63), (1 << 63) - 1)
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(100), deadline=None)
@given(st.data())
def test_any_numbers_in_a_table_are_a_place_within_a_file_or_a_fault(made: Store, data: st.DataObject) -> None:
    records, sizes = made.manifest.records, [file.bytes for file in made.manifest.expert_files]
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(["file", "offset", "length", "layout"]))
        column = getattr(records, name).copy()
        pages = data.draw(st.booleans()) and name in ("offset", "length")
        value = data.draw(_INTEGERS) if not pages else data.draw(st.integers(-1, 200)) * 4096
        limits = np.iinfo(column.dtype)
        column[data.draw(st.integers(0, len(column) - 1))] = min(max(value, limits.min), limits.max)
        records = replace(records, **{name: column})
    if records.fault(made.manifest.layouts, sizes) is None:
        taken: list[tuple[int, int, int]] = []
        for record in records:
            assert record.length == made.manifest.layouts[record.layout].slot_bytes
            assert 4096 <= record.offset < record.offset + record.length <= sizes[record.file]
            taken.append((record.file, record.offset, record.offset + record.length))
        assert taken == sorted(taken)
        assert all(one[0] != other[0] or one[2] <= other[1] for one, other in itertools.pairwise(taken))


@settings(max_examples=examples(100), deadline=None)
@given(
    st.lists(st.builds(Section, st.sampled_from(["gate_up", "down", "x"]), st.sampled_from(list(FORMATS.values())),
                       st.integers(0, 300).map(lambda n: n * 32)), max_size=3),
    st.integers(1, 70), st.integers(1, 70), st.integers(0, 40).map(lambda n: n * 2048),
)  # fmt: skip
def test_any_layout_has_its_matrices_apart_within_the_record_or_a_fault(
    sections: list[Section], hidden_size: int, intermediate_size: int, slot_bytes: int
) -> None:
    layout = RecordLayout(hidden_size, intermediate_size, tuple(sections), slot_bytes)
    if layout.fault() is None:
        matrices = layout.matrices
        assert matrices.gate_up_bytes <= matrices.down_offset
        assert matrices.down_offset % 64 == slot_bytes % 4096 == 0
        assert matrices.down_offset + matrices.down_bytes <= slot_bytes


# Speed, and what a large store costs to open.

_Q4 = FORMATS["q4"]


def _planned(experts: list[list[RecordLayout]], **options: Any) -> Manifest:
    resident: list[Any] = [("final_norm", None, 64, 1), ("embedding", FORMATS["q8"], 100, 64)]
    return plan_store({"layers": [{}] * len(experts)}, resident, experts, **options)


def _written(folder: Path, experts: list[list[RecordLayout]]) -> Store:
    """A store of zeros with these records, whose checksums hold."""
    plan = _planned(experts)
    with StoreWriter(folder, plan) as writer:
        ranges = [(t.name, plan.dense_file.name, t.offset, t.bytes) for t in plan.dense]
        ranges += [(r.name, plan.expert_files[r.file].name, r.offset, r.length) for r in plan.records]
        found = {name: writer.checksums(*place) for name, *place in ranges}
        writer.finish(with_checksums(plan, found), {})
    return Store.open(folder)


def _large_store(folder: Path, layers: int, experts: int) -> Path:
    """A store with empty files (holes) and a table of this size, as far as opening it is concerned."""
    layout = packed_layout(32, 16, _Q4, _Q4)
    count = layers * experts
    small = _planned([[layout]])
    size = layout.slot_bytes
    file = replace(small.expert_files[0], bytes=(count + 1) * size)
    records = RecordTable(
        first=np.arange(0, count + 1, experts),
        file=np.zeros(count, np.int32),
        offset=np.arange(1, count + 1) * size,
        length=np.full(count, size),
        layout=np.zeros(count, np.int32),
        sha256=np.random.default_rng(0).integers(0, 256, (count, 32), np.uint8),
        crc32c=np.arange(count, dtype=np.uint32),
    )
    manifest = with_record_file(replace(small, model={"layers": [{}] * layers}, expert_files=(file,), records=records))
    manifest = replace(manifest, dense=tuple(replace(t, sha256="0" * 64, crc32c=0) for t in manifest.dense))
    folder.mkdir()
    for entry in (manifest.dense_file, file):
        (folder / entry.name).touch()
        os.truncate(folder / entry.name, entry.bytes)
    (folder / RECORDS_NAME).write_bytes(records.to_bytes())
    (folder / MANIFEST_NAME).write_bytes(manifest.to_bytes())
    return folder


def _seconds_to_open(folder: Path) -> float:
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        store = Store.open(folder)
        assert store.record_bytes
        last = store.manifest.records.layers - 1
        assert store.record(last, store.manifest.records.count(last) - 1).length == store.record_bytes
        seconds.append(time.perf_counter() - began)
    return min(seconds)


@pytest.mark.slow
@pytest.mark.alone
def test_a_store_of_48_layers_of_512_experts_opens_within_half_a_second(tmp_path: Path) -> None:
    """Measured: 0.02 s."""
    assert _seconds_to_open(_large_store(tmp_path / "store", 48, 512)) < 0.5


@pytest.mark.slow
@pytest.mark.alone
def test_a_store_of_a_million_records_opens_within_a_second(tmp_path: Path) -> None:
    """Measured: 0.3 s."""
    assert _seconds_to_open(_large_store(tmp_path / "store", 1000, 1000)) < 1
