"""Models whose matrices have trellises: the same bits under every budget, cut and instruction set, and alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgemoe.conversion.gguf.export import export_gguf
from edgemoe.conversion.synthetic import synthesise
from edgemoe.errors import StoreError
from edgemoe.kernels.native.library import available_isas
from edgemoe.kernels.trellis import unpack_tables
from edgemoe.store.reader import Store
from edgemoe.store.verification import verify_store
from tests.support.engines import engine_with_slots

IDS = [7, 3, 99, 12, 5, 64, 1, 2, 88, 41, 17]


def logits(store: Store, slots: int, threads: int = 1, together: int = len(IDS)) -> np.ndarray:
    found = []
    with engine_with_slots(store.path, slots, threads, warm_start=False) as engine:
        for start in range(0, len(IDS), together):
            found.append(engine.forward(IDS[start : start + together], all_logits=True))
    return np.concatenate(found)


PAIRS = [
    pytest.param(("n075", "n2")),
    *(pytest.param(pair, marks=pytest.mark.slow) for pair in (("n3", "n15"), ("n1", "n4"))),
]


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    experts, dense = request.param
    folder = tmp_path_factory.mktemp("trellis") / "store"
    return Store.open(synthesise("tiny", folder, layers=1, experts=experts, dense=dense))


def test_a_store_is_as_it_was_written(store: Store) -> None:
    assert verify_store(store) == []
    layout = store.layouts_of_layers[0][0].matrices
    assert layout.up_format.trellis is not None
    with (store.path / store.manifest.expert_files[0].name).open("rb") as file:
        for record in store.manifest.records:
            file.seek(record.offset)
            head = np.frombuffer(file.read(layout.up_format.head_bytes), np.uint8)
            assert unpack_tables(head, layout.up_format.trellis).any()


def test_rows_that_are_only_looked_up_have_the_default_format(store: Store) -> None:
    assert store.embedding is not None
    assert store.embedding.format is not None
    assert store.embedding.format.name == "q8"


@pytest.mark.parametrize(("slots", "threads", "together"), [(16, 3, 1), (9, 1, 11), (8, 2, 3)])
def test_any_budget_threads_and_cut_give_the_same_bits(store: Store, slots: int, threads: int, together: int) -> None:
    expected = logits(store, 16)
    assert np.isfinite(expected).all()
    assert np.array_equal(logits(store, slots, threads, together), expected)


def test_instruction_sets_agree_to_the_bit_and_backends_nearly(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = logits(store, 16)
    for backend in ("reference", "jit"):
        monkeypatch.setenv("EDGEMOE_KERNELS", backend)
        # an activation between two int8 values becomes the one or the other
        np.testing.assert_allclose(logits(store, 16), expected, rtol=0, atol=0.1)
    monkeypatch.delenv("EDGEMOE_KERNELS")
    for isa in available_isas():
        monkeypatch.setenv("EDGEMOE_ISA", isa)
        assert np.array_equal(logits(store, 16), expected)


def test_a_gguf_cannot_hold_them(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="expected a format that GGUF has a type for, found n"):
        export_gguf(store, tmp_path / "trellis.gguf", name="trellis", tokenizer=False)
