"""Every family through the whole way: checkpoint, f32 store, engine; against the golden logits and against itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.engine import Engine
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from tests.architectures.harness import relative_error
from tests.golden.cases import CASES, PROMPT_TOKENS

GOLDEN = Path(__file__).parent.parent / "golden"
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Makes the f32 store of a golden checkpoint, once for all tests of this module."""
    folder = tmp_path_factory.mktemp("stores")

    def make(name: str) -> Path:
        if not (folder / name).exists():
            convert_checkpoint(str(GOLDEN / name), folder / name, experts="f32", dense="f32")
        return folder / name

    return make


def golden(name: str):
    return np.load(GOLDEN / name / "golden.npz")


def run(engine: Engine, pieces: list[np.ndarray]) -> np.ndarray:
    """Logits after each token of the pieces, each given in one call, from an empty context."""
    engine.rewind(0)
    return np.concatenate([engine.forward(piece, all_logits=True) for piece in pieces])


@pytest.mark.parametrize("kernels", ["native", "jit"])
@pytest.mark.parametrize("name", CASES)
def test_the_engine_agrees_with_the_golden_logits(name, kernels, store, monkeypatch):
    monkeypatch.setenv("EDGEMOE_KERNELS", kernels)
    data = golden(name)
    with open_engine(store(name), EngineOptions(threads=1, context_length=PROMPT_TOKENS)) as engine:
        assert engine.backend.name == kernels
        logits = run(engine, [data["ids"]])
    assert relative_error(logits[data["positions"]], data["logits"]) < TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_how_ids_are_grouped_in_calls_never_changes_a_bit(name, store):
    ids = golden(name)["ids"]
    with open_engine(store(name), EngineOptions(threads=1, context_length=PROMPT_TOKENS)) as engine:
        whole = run(engine, [ids])
        np.testing.assert_array_equal(run(engine, np.split(ids, [1, 2, 9, 10, 130, 137, 259])), whole)
        for tokens in (1, 17, 128, 299):
            engine.rewind(0)
            np.testing.assert_array_equal(engine.forward(ids[:tokens]), whole[tokens - 1])
            np.testing.assert_array_equal(engine.forward(ids[tokens : tokens + 1]), whole[tokens])


@pytest.mark.parametrize("name", CASES)
def test_paging_and_threads_never_change_a_bit(name, store):
    ids = golden(name)["ids"][:60]
    pieces = [ids[:50], *np.split(ids[50:], 10)]
    with open_engine(store(name), EngineOptions(threads=1, context_length=PROMPT_TOKENS)) as engine:
        assert engine.memory.all_resident
        resident = run(engine, pieces)
    with open_engine(store(name), EngineOptions("floor", threads=3, context_length=PROMPT_TOKENS)) as engine:
        fits = engine.spec.total_experts <= engine.memory.slots
        assert engine.memory.all_resident == fits
        np.testing.assert_array_equal(run(engine, pieces), resident)
        assert (engine.statistics.disk_bytes > 0) == (not fits)
