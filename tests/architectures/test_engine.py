"""Every family through the whole way: checkpoint, f32 store, engine; against the golden logits and against itself."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
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


class Resident:
    """The f32 store of a golden checkpoint, and an engine of it with all experts in memory and one thread."""

    def __init__(self, name: str, folder: Path) -> None:
        self.golden = np.load(GOLDEN / name / "golden.npz")
        self.ids = self.golden["ids"]
        self.store = convert_checkpoint(str(GOLDEN / name), folder / name, experts="f32", dense="f32")
        self.engine = open_engine(self.store, EngineOptions(threads=1, context_length=PROMPT_TOKENS))

    @functools.cached_property
    def whole(self) -> np.ndarray:
        """Logits after each token, all of which one call was given."""
        return run(self.engine, [self.ids])


@pytest.fixture(scope="module", params=CASES)
def resident(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Resident]:
    """One for each family, which all tests of it share: to open an engine costs more than to run it."""
    opened = Resident(request.param, tmp_path_factory.mktemp("stores"))
    with opened.engine:
        yield opened


def run(engine: Engine, pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Logits after each token of the pieces, each given in one call, from an empty context."""
    engine.rewind(0)
    return np.concatenate([engine.forward(piece, all_logits=True) for piece in pieces])


def assert_golden(logits: np.ndarray, golden: np.lib.npyio.NpzFile) -> None:
    assert relative_error(logits[golden["positions"]], golden["logits"]) < TOLERANCE


def test_the_engine_agrees_with_the_golden_logits(resident: Resident) -> None:
    assert resident.engine.backend.name == "native"
    assert_golden(resident.whole, resident.golden)


def test_so_it_does_on_kernels_in_numba(resident: Resident, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMOE_KERNELS", "jit")
    with open_engine(resident.store, EngineOptions(threads=1, context_length=PROMPT_TOKENS)) as engine:
        assert engine.backend.name == "jit"
        assert_golden(run(engine, [resident.ids]), resident.golden)


def test_how_ids_are_grouped_in_calls_never_changes_a_bit(resident: Resident) -> None:
    ids, engine = resident.ids, resident.engine
    np.testing.assert_array_equal(run(engine, np.split(ids, [1, 2, 9, 10, 130, 137, 259])), resident.whole)
    for tokens in (1, 17, 128, 299):
        engine.rewind(0)
        np.testing.assert_array_equal(engine.forward(ids[:tokens]), resident.whole[tokens - 1])
        np.testing.assert_array_equal(engine.forward(ids[tokens : tokens + 1]), resident.whole[tokens])


def test_paging_and_threads_never_change_a_bit(resident: Resident) -> None:
    pieces = [resident.ids[:50], *np.split(resident.ids[50:60], 10)]
    assert resident.engine.memory.all_resident
    with open_engine(resident.store, EngineOptions("floor", threads=3, context_length=PROMPT_TOKENS)) as engine:
        fits = engine.spec.total_experts <= engine.memory.slots
        assert engine.memory.all_resident == fits
        np.testing.assert_array_equal(run(engine, pieces), run(resident.engine, pieces))
        assert (engine.statistics.disk_bytes > 0) == (not fits)
