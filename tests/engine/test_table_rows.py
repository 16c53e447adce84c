"""Tables of rows on disk: the same answers however they are read, and faults that are told and leave nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.opening import model_sizes, open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import ReadError, StoreError
from edgemoe.experts import disk_rows
from edgemoe.experts.disk_rows import table_bytes
from edgemoe.io import reads
from edgemoe.io.checksum import crc32c
from edgemoe.kernels.pages import PAGE_BYTES
from edgemoe.model.description import store_spec
from edgemoe.store.manifest import TABLE_CHECKSUMS
from edgemoe.store.panels import Panels
from edgemoe.store.reader import Store
from edgemoe.store.verification import verify_store
from tests.support.checkpoints import SMALL_QWEN4, write_checkpoint
from tests.support.engines import engine_with_slots
from tests.support.stores import flip_bit

EXPERTS = 40
IDS = np.random.default_rng(5).integers(0, SMALL_QWEN4["vocab_size"], 90)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    write_checkpoint(folder / "source", SMALL_QWEN4)
    return convert_checkpoint(str(folder / "source"), folder / "store", experts="q4", dense="q8")


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(made, tmp_path / "store")


def test_tables_lie_first_with_a_checksum_for_each_panel(made: Path) -> None:
    opened = Store.open(made)
    names = [tensor.name for tensor in opened.manifest.dense]
    assert names[:7] == [*(f"layers.{n}.row_table.{part}" for n in (0, 2) for part in range(3)), TABLE_CHECKSUMS]
    assert names[7] == "embedding"
    assert opened.embedding is not None
    assert opened.embedding.offset % PAGE_BYTES == 0
    content, found = opened.dense_path.read_bytes(), []
    for table in opened.tables:
        panels = Panels(opened.dense_path, table)
        for panel in range(panels.count):
            first, end = panels.pages(panel)
            found.append(crc32c(content[first:end][panels.within_pages(panel)]))
    assert opened.read_table_checksums().tolist() == found
    assert not any(name in opened.load_dense() for name in names[:7])


def test_neither_the_place_of_the_embedding_nor_a_restart_changes_an_answer(made: Path) -> None:
    with engine_with_slots(made, EXPERTS) as engine:
        expected = engine.forward(IDS, all_logits=True)
        assert engine._loaded.waited_ns > 0
    with engine_with_slots(made, 6, embedding_resident=False, threads=2, chunk_tokens=16) as engine:
        found = [engine.forward(IDS[:50], all_logits=True), *([engine.forward([token])] for token in IDS[50:])]
        np.testing.assert_array_equal(np.concatenate(found), expected)
        engine.rewind(33)  # to a snapshot before it: tokens are run again, whose n-grams begin before them
        np.testing.assert_array_equal(engine.forward(IDS[33:], all_logits=True), expected[33:])


@pytest.mark.parametrize("kernels", ["jit", "reference"])
def test_portable_kernels_and_readers(made: Path, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_with_slots(made, EXPERTS) as engine:
        expected = engine.forward(IDS[:40])
    monkeypatch.setenv("EDGEMOE_KERNELS", kernels)
    monkeypatch.setattr(disk_rows, "open_reader", reads.ThreadedReader)
    with engine_with_slots(made, EXPERTS, direct_reads=False) as engine:
        assert engine.backend.name == kernels
        np.testing.assert_allclose(engine.forward(IDS[:40]), expected, atol=2e-2)


def test_what_reading_them_takes_is_planned(made: Path) -> None:
    opened = Store.open(made)
    panels = sum(Panels(opened.dense_path, table).count for table in opened.tables)
    assert table_bytes(opened) > 4 * panels
    assert model_sizes(opened, store_spec(opened)).dense_bytes == opened.dense_bytes() + table_bytes(opened)


def test_damage_is_told_by_verify_and_by_the_row_that_meets_it(store: Path) -> None:
    opened = Store.open(store)
    content = opened.dense_path.read_bytes()
    with engine_with_slots(store, EXPERTS) as engine:
        expected = engine.forward(IDS, all_logits=True)
        engine.rewind(0)
        for table in opened.tables[3:]:
            for panel in range(Panels(opened.dense_path, table).count):
                flip_bit(opened.dense_path, table.offset + panel * Panels(opened.dense_path, table).panel_bytes + 5)
        for _ in range(2):
            with pytest.raises(ReadError, match=r"^Rows of the table of layer 2, \d+ to \d+: what was read is not"):
                engine.forward(IDS)
            assert engine.position == 0
        assert "row_table" in " ".join(map(str, verify_store(opened)))
        with opened.dense_path.open("r+b") as file:
            file.write(content)
        np.testing.assert_array_equal(engine.forward(IDS, all_logits=True), expected)


def test_damaged_checksums_are_told_as_the_model_is_opened(store: Path) -> None:
    opened = Store.open(store)
    (place,) = (tensor for tensor in opened.manifest.dense if tensor.name == TABLE_CHECKSUMS)
    flip_bit(opened.dense_path, place.offset + 9)
    with pytest.raises(StoreError, match=f"{TABLE_CHECKSUMS} at byte {place.offset} is not what was written"):
        open_engine(store, EngineOptions(threads=1))
