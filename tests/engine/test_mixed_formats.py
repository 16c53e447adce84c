"""Experts of one layer whose records have unlike formats and lengths: the same bits under every budget, and alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgemoe.conversion.formats import FormatChoice
from edgemoe.conversion.gguf.export import export_gguf
from edgemoe.conversion.pipeline import convert_source
from edgemoe.errors import StoreError
from edgemoe.store.reader import Store
from tests.support.engines import engine_with_slots
from tests.support.quantised_source import QuantisedSource

IDS = [7, 3, 99, 12, 5, 64, 1, 2, 88, 41, 17]


def store_of(folder: Path, dtype_of_expert: Callable[[int, int, str], str], **options: str) -> Store:
    """A store whose experts come with blocks of the types that `dtype_of_expert` gives for layer, number and matrix."""

    def dtype_of(name: str) -> str:
        if ".experts." not in name:
            return "Q8_0"
        _, _, layer, _, _, expert, matrix, _ = name.split(".")
        return dtype_of_expert(int(layer), int(expert), matrix)

    return Store.open(
        convert_source(lambda downloads: QuantisedSource(dtype_of), folder, choice=FormatChoice(**options))
    )


def mixed(layer: int, expert: int, matrix: str) -> str:
    """Four of the sixteen combinations of four formats in a layer, and others in the next."""
    return ["Q4_0", "Q8_0", "Q4_1", "MXFP4"][(layer + expert + (expert // 2 if matrix == "w2" else 0)) % 4]


def logits(store: Store, slots: int, threads: int = 1, together: int = len(IDS), **options: str) -> np.ndarray:
    found = []
    with engine_with_slots(store.path, slots, threads, warm_start=False, **options) as engine:
        for start in range(0, len(IDS), together):
            found.append(engine.forward(IDS[start : start + together], all_logits=True))
    return np.concatenate(found)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return store_of(tmp_path_factory.mktemp("mixed") / "store", mixed)


def test_records_differ_within_a_layer(store: Store) -> None:
    assert [len(layouts) for layouts in store.layouts_of_layers] == [4, 4]
    assert len({store.record(0, expert).length for expert in range(4)}) > 1
    assert store.record_bytes == max(store.record(layer, expert).length for layer in range(2) for expert in range(4))


@pytest.mark.parametrize(("slots", "threads", "together"), [(8, 3, 11), (8, 1, 1), (4, 1, 11), (4, 3, 1), (5, 1, 3)])
def test_any_budget_threads_and_cut_give_the_same_bits(store: Store, slots: int, threads: int, together: int) -> None:
    expected = logits(store, 8)
    assert np.isfinite(expected).all()
    assert np.array_equal(logits(store, slots, threads, together), expected)


def test_other_backends_agree(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = logits(store, 8)
    for backend in ("reference", "jit"):
        monkeypatch.setenv("EDGEMOE_KERNELS", backend)
        np.testing.assert_allclose(logits(store, 4), expected, atol=1e-3)


def test_blocks_of_four_bits_give_the_bits_of_the_same_blocks_in_eight(tmp_path: Path) -> None:
    """q8 holds what q4 holds, so a layer that mixes both is worth the same as one that has q8 only."""

    def every_other(layer: int, expert: int, matrix: str) -> str:
        return ["Q4_0", "Q8_0"][(layer + expert) % 2]

    some = store_of(tmp_path / "some", every_other)
    wide = store_of(tmp_path / "wide", every_other, experts="q8")
    assert {len(layouts) for layouts in some.layouts_of_layers} == {2}
    assert {len(layouts) for layouts in wide.layouts_of_layers} == {1}
    assert np.array_equal(logits(some, 4), logits(wide, 8))


def test_a_gguf_cannot_hold_them(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"experts\.\d\.gate: expected the format of the layer's other experts"):
        export_gguf(store, tmp_path / "mixed.gguf", name="mixed", tokenizer=False)
