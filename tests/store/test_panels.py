"""Panels of a matrix on disk: where each lies, and that its checksums are those of a matrix that is whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.errors import StoreError
from edgemoe.io.checksum import crc32c
from edgemoe.store.panels import PIECE_PANELS, Panels
from edgemoe.store.reader import Store
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint
from tests.support.stores import flip_bit, small_store, version_1

VOCABULARY = 16 * (2 * PIECE_PANELS + 1) + 5


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Its embedding is more than two pieces long."""
    write_checkpoint(tmp_path / "checkpoint", {**SMALL_MIXTRAL, "vocab_size": VOCABULARY})
    return Store.open(convert_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "store"))


def embedding(store: Store) -> Panels:
    assert store.embedding is not None
    return Panels(store.dense_path, store.embedding)


@pytest.mark.parametrize("dense", ["f32", "f16", "q8", "q4", "q4m", "m4"])
def test_a_panel_lies_within_its_pages(tmp_path: Path, dense: str) -> None:
    store = small_store(tmp_path, dense=dense)
    content, panels = store.dense_path.read_bytes(), embedding(store)
    data = store.load_dense()["embedding"].data  # type: ignore[union-attr]
    for panel in range(panels.count):
        first, end = panels.pages(panel)
        assert first % 4096 == end % 4096 == 0
        assert end - first <= panels.landing_bytes
        expected = data[panel * panels.panel_bytes :][: panels.panel_bytes].tobytes()
        assert content[first:end][panels.within_pages(panel)] == expected


def test_checksums_are_those_of_the_panels(store: Store) -> None:
    content, panels = store.dense_path.read_bytes(), embedding(store)
    found = panels.checksums(direct=True)
    assert len(found) == panels.count == -(-VOCABULARY // 16)
    for panel, checksum in enumerate(found):
        first, end = panels.pages(panel)
        assert checksum == crc32c(content[first:end][panels.within_pages(panel)])


def test_a_matrix_that_is_not_what_was_written(store: Store) -> None:
    panels = embedding(store)
    flip_bit(store.dense_path, panels.tensor.offset + panels.tensor.bytes - 1)
    with pytest.raises(StoreError, match="embedding at byte 4096 is not what was written"):
        panels.checksums(direct=True)


def test_without_fast_checksums_nothing_is_held_against_it(store: Store) -> None:
    panels = embedding(version_1(store.path, fast_checksums=False))
    flip_bit(store.dense_path, panels.tensor.offset)
    assert len(panels.checksums(direct=True)) == panels.count


def test_a_file_that_ends_early_or_is_gone(store: Store) -> None:
    panels = embedding(store)
    whole = store.dense_path.read_bytes()
    store.dense_path.write_bytes(whole[: panels.tensor.offset + 100])
    with pytest.raises(StoreError, match="ends at byte"):
        panels.checksums(direct=True)
    store.dense_path.unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        panels.checksums(direct=True)
