"""Every family through the whole way: checkpoint, f32 store, engine; against the golden logits and against itself."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edgemoe.architectures import FAMILIES
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.engine import Engine
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from tests.architectures.harness import relative_error
from tests.golden.cases import CASES, PROMPT_TOKENS
from tests.golden.covering import COVERING, GOLDEN, covering_models, golden_configs

TOLERANCE = 1e-4


def f32_store(name: str, folder: Path) -> Path:
    return convert_checkpoint(str(GOLDEN / name), folder / name, experts="f32", dense="f32")


class Resident:
    """The f32 store of a golden checkpoint, and an engine of it with all experts in memory and one thread."""

    def __init__(self, name: str, folder: Path) -> None:
        self.golden = np.load(GOLDEN / name / "golden.npz")
        self.ids = self.golden["ids"]
        self.store = f32_store(name, folder)
        self.engine = open_engine(self.store, EngineOptions(threads=1, context_length=PROMPT_TOKENS))

    @functools.cached_property
    def whole(self) -> np.ndarray:
        """Logits after each token, all of which one call was given."""
        return run(self.engine, self.ids)


def run(engine: Engine, ids: np.ndarray, ends: Sequence[int] = ()) -> np.ndarray:
    """Logits after each token, in calls that end at `ends`, from an empty context."""
    engine.rewind(0)
    return np.concatenate([engine.forward(piece, all_logits=True) for piece in np.split(ids, ends)])


def assert_golden(logits: np.ndarray, golden: np.lib.npyio.NpzFile) -> None:
    assert relative_error(logits[golden["positions"]], golden["logits"]) < TOLERANCE


FIRST_OF_FAMILIES = {FAMILIES[config["model_type"]]: name for name, config in reversed(golden_configs().items())}
DEFAULT = {*FIRST_OF_FAMILIES.values(), *COVERING}
EACH_FAMILY = [pytest.param(name, marks=[] if name in DEFAULT else pytest.mark.slow) for name in CASES]
"""All models. The first of a family and those that have forms of their own are default tests, the others slow ones."""


@pytest.mark.parametrize("name", EACH_FAMILY)
def test_the_engine_agrees_with_the_golden_logits_however_ids_are_grouped_in_calls(name: str, tmp_path: Path) -> None:
    resident = Resident(name, tmp_path)
    with resident.engine as engine:
        assert engine.backend.name == "native"
        assert engine.memory.all_resident
        assert_golden(resident.whole, resident.golden)
        np.testing.assert_array_equal(run(engine, resident.ids, [1, 2, 9, 10, 130, 137, 259]), resident.whole)
        if name in COVERING:
            last_logits_are_those_of_all(engine, resident)
    if name in COVERING:
        paging_and_threads_change_no_bit(resident)


def last_logits_are_those_of_all(engine: Engine, resident: Resident) -> None:
    engine.rewind(0)
    for piece in np.split(resident.ids, [1, 17, 18, 128, 129, 299]):
        last = engine.forward(piece)
        np.testing.assert_array_equal(last, resident.whole[engine.position - 1])


def paging_and_threads_change_no_bit(resident: Resident) -> None:
    options = EngineOptions("floor", threads=3, context_length=PROMPT_TOKENS)
    with open_engine(resident.store, options) as engine:
        fits = engine.spec.total_experts <= engine.memory.slots
        assert engine.memory.all_resident == fits
        np.testing.assert_array_equal(run(engine, resident.ids[:60], [*range(50, 60)]), resident.whole[:60])
        assert (engine.statistics.disk_bytes > 0) == (not fits)


@pytest.mark.slow
@pytest.mark.parametrize("name", covering_models())
def test_kernels_in_numba_agree(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden, store = np.load(GOLDEN / name / "golden.npz"), f32_store(name, tmp_path)
    monkeypatch.setenv("EDGEMOE_KERNELS", "jit")
    with open_engine(store, EngineOptions(threads=1, context_length=PROMPT_TOKENS)) as engine:
        assert engine.backend.name == "jit"
        assert_golden(run(engine, golden["ids"]), golden)
