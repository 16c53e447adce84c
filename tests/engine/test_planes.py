"""Experts with a base that stays in RAM and a residual that is paged: exact with both, lossy with the base alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgemoe.bench.plan import Planner
from edgemoe.conversion.encoding import encode_planes
from edgemoe.conversion.formats import FormatChoice
from edgemoe.conversion.gguf.export import export_gguf
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.conversion.synthetic import SyntheticSource
from edgemoe.engine.lossy import LossySettings
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import SourceError, StoreError, UsageError
from edgemoe.kernels.blocks import Blocks, dequantise, unpack
from edgemoe.kernels.formats import FORMATS
from edgemoe.kernels.select import select_backend
from edgemoe.model.description import store_spec
from edgemoe.store.reader import Store
from edgemoe.store.verification import verify_store
from tests.support.checkpoints import write_checkpoint
from tests.support.engines import engine_with_slots
from tests.support.small_engine import CONFIG, EXPERTS, PROMPT, answer

FROM_BASE = LossySettings(on_miss="base")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planes") / "source"
    write_checkpoint(folder, CONFIG | {"intermediate_size": 72}, shards=2, dtype="F32")
    return folder


@pytest.fixture(scope="module")
def store(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_checkpoint(str(checkpoint), tmp_path_factory.mktemp("stored") / "store", experts="n1+n3")


def test_a_store_has_bases_beside_its_residuals(store: Path) -> None:
    opened = Store.open(store)
    assert verify_store(opened) == []
    assert {section.format.name for section in opened.manifest.layouts[0].sections} == {"n3"}
    statistics = opened.manifest.quantisation
    assert statistics["bases"]["formats"] == ["n1"]
    assert statistics["experts"]["relative_error"] < 0.12 < 0.4 < statistics["bases"]["relative_error"] < 0.65


@pytest.mark.parametrize(
    ("kernels", "slots", "threads"), [("reference", 3, 1), ("native", 3, 1), ("native", EXPERTS - 1, 2)]
)
def test_streamed_equals_resident_to_the_bit(
    store: Path, kernels: str, slots: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEMOE_KERNELS", kernels)
    with engine_with_slots(store, EXPERTS) as engine:
        expected = engine.forward(PROMPT, all_logits=True)
        tokens = answer(engine, 6)
    with engine_with_slots(store, slots, threads=threads) as engine:
        np.testing.assert_array_equal(engine.forward(PROMPT, all_logits=True), expected)
        assert answer(engine, 6) == tokens


def test_kernels_agree_on_both_planes(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = []
    for kernels in ("reference", "native"):
        monkeypatch.setenv("EDGEMOE_KERNELS", kernels)
        with engine_with_slots(store, EXPERTS) as engine:
            logits.append(engine.forward(PROMPT, all_logits=True))
    np.testing.assert_allclose(*logits, rtol=0, atol=0.02 * np.abs(logits[0]).max())


@pytest.mark.parametrize("kernels", ["reference", "native"])
def test_a_prompt_is_exact_and_tokens_do_not_wait(store: Path, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMOE_KERNELS", kernels)
    with engine_with_slots(store, EXPERTS) as engine:
        exact = [engine.forward(PROMPT)]
        engine.turn.begin_decoding()
        exact += [engine.forward([token]) for token in range(8)]
    with engine_with_slots(store, 6, lossy=FROM_BASE, prefetch="off") as engine:
        assert engine.lossy.on
        np.testing.assert_array_equal(engine.forward(PROMPT), exact[0])
        assert engine.statistics.experts_from_base == 0
        engine.turn.begin_decoding()
        misses = engine.statistics.expert_misses
        found = [engine.forward([token]) for token in range(8)]
        statistics = engine.statistics
    assert 0 < statistics.experts_from_base <= statistics.expert_misses - misses
    errors = [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(found, exact[1:], strict=True)]
    assert 0 < max(errors) < 1
    with engine_with_slots(store, EXPERTS, lossy=FROM_BASE) as engine:  # all residuals are in RAM
        assert not engine.lossy.on
        np.testing.assert_array_equal(engine.forward(PROMPT), exact[0])


def test_planes_hold_what_rounding_leaves(checkpoint: Path) -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal((32, 256)).astype(np.float32)
    n2, n3 = FORMATS["n2"], FORMATS["n3"]
    found = encode_planes(values, n2, n3, "w")
    assert found.base is not None

    def weights(data: np.ndarray, head: np.ndarray, name: str) -> np.ndarray:
        return dequantise(unpack(np.concatenate([head, data]), FORMATS[name], *values.shape))

    lower = weights(found.base.data, found.base.head, "n2")
    both = lower + weights(found.data, found.head, "n3")
    total = float(np.square(values, dtype=np.float64).sum())
    for part, left in ((found.base, values - lower), (found, values - both)):
        assert part.squared_error == pytest.approx(float(np.square(left, dtype=np.float64).sum()), rel=1e-5)
        assert part.squared_weight == pytest.approx(total)
    assert found.squared_error < 0.003 * total < 0.06 * total < found.base.squared_error
    with pytest.raises(SourceError, match="expected finite numbers, found nan"):
        encode_planes(np.full((16, 32), np.nan, np.float32), n2, n3, "w")


@pytest.mark.parametrize("experts", ["n1+", "+n1", "f16+n3", "n1+n2+n3", "sub1+n3", "n1+sub1"])
def test_other_pairs_are_refused(checkpoint: Path, tmp_path: Path, experts: str) -> None:
    with pytest.raises(UsageError, match=r"`experts`: expected a base and a residual of .*n075"):
        convert_checkpoint(str(checkpoint), tmp_path / "store", experts=experts)


def test_stores_without_bases_cannot_compute_from_them(checkpoint: Path, tmp_path: Path) -> None:
    plain = convert_checkpoint(str(checkpoint), tmp_path / "plain", experts="q8")
    with pytest.raises(UsageError, match="`on_miss=base`: expected experts with a base"):
        open_engine(plain, EngineOptions(lossy=FROM_BASE))
    with pytest.raises(UsageError, match="`on_miss`: expected wait or base, found 'guess'"):
        LossySettings(on_miss="guess")


def test_export_refuses_planes(store: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="a base and a residual"):
        export_gguf(Store.open(store), tmp_path / "model.gguf", name="planes")


def test_plans_know_from_which_budget_on_bases_pay(store: Path) -> None:
    opened = Store.open(store)
    backend = select_backend(1)
    planner = Planner(opened, store_spec(opened), backend)
    memory = planner.memory("floor")
    pays = planner.base_pays_bytes(memory)
    backend.close()
    assert pays is not None
    assert pays - memory.planned_bytes == (10 - memory.slots) * memory.slot_bytes  # of 24 experts


def test_random_weights_of_two_planes_are_drawn_and_not_rounded() -> None:
    source = SyntheticSource("olmoe-1b-7b", 0, FormatChoice("n075+n3", "q8"), layers=1)
    name = "model.layers.0.mlp.experts.3.up_proj.weight"
    rows = source.read_rows(name, None, 16, 48)
    assert isinstance(rows, Blocks)
    assert rows.base is not None
    found = encode_planes(rows, FORMATS["n075"], FORMATS["n3"], name)
    assert found.base is not None
    assert (found.squared_error, found.base.squared_weight) == (0, found.squared_weight)
    assert 0.6 < np.sqrt(found.base.squared_error / found.squared_weight) < 0.68
    again = source.read_rows(name, None, 32, 48)
    np.testing.assert_array_equal(again.values, rows.values[16:])
