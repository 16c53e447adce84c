"""Experts that join late, beside choices of no expert (LongCat-Flash): streamed and recorded as they are resident."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.engine import Engine
from edgemoe.engine.lossy import EXACT, LossySettings
from edgemoe.engine.opening import open_engine
from edgemoe.errors import UsageError
from edgemoe.lab.forced_routing import ForcedRouting
from edgemoe.lab.recorder import recording
from edgemoe.lab.trace import read_trace
from tests.support.checkpoints import SMALL_LONGCAT, make_routers_decided, write_checkpoint
from tests.support.engines import engine_with_slots
from tests.support.traces import made_up_trace

LAYERS, EXPERTS, PASSING, USED = 4, 10, 5, 4
IDS = np.random.default_rng(6).integers(0, 193, 30)


def store_in(folder: Path, bias: float = 0.0) -> Path:
    """A store whose choices of no expert have a bias for the choice."""
    write_checkpoint(folder / "source", SMALL_LONGCAT, dtype="F32")
    make_routers_decided(folder / "source" / "model.safetensors")
    tensors = load_file(folder / "source" / "model.safetensors")
    for name, values in tensors.items():
        if name.endswith("e_score_correction_bias"):
            values[:EXPERTS], values[EXPERTS:] = 0, bias
    save_file(tensors, folder / "source" / "model.safetensors", {"format": "pt"})
    return convert_checkpoint(str(folder / "source"), folder / "store", experts="f32", dense="f32")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_in(tmp_path_factory.mktemp("late"))


def talk(engine: Engine) -> np.ndarray:
    logits = [engine.forward(IDS[:14])]
    engine.turn.begin_decoding()
    return np.stack(logits + [engine.forward([token]) for token in IDS[14:]])


def run(store: Path, slots: int, lossy: LossySettings = EXACT, prefetch: str = "off") -> np.ndarray:
    with engine_with_slots(store, slots, lossy=lossy, prefetch=prefetch) as engine:
        return talk(engine)


def test_neither_slots_nor_guesses_change_a_bit(store: Path) -> None:
    resident = run(store, LAYERS * EXPERTS)
    for slots, prefetch in ((1, "off"), (6, "on"), (17, "auto")):
        np.testing.assert_array_equal(run(store, slots, prefetch=prefetch), resident)
    lossy = LossySettings(cache_aware_routing=0.3, drop_cold=0.3)
    np.testing.assert_array_equal(run(store, LAYERS * EXPERTS, lossy), resident)
    assert np.isfinite(run(store, 6, lossy)).all()


def test_choices_of_no_expert_are_neither_counted_nor_recorded(store: Path, tmp_path: Path) -> None:
    with engine_with_slots(store, 6) as engine, recording(engine, tmp_path / "trace") as recorder:
        said = 0
        for token in IDS[:9]:
            engine.forward([token])
            for layer in engine.routing:
                assert layer is not None
                assert layer.experts[0].min() >= -1
                said += int((layer.experts[0] >= 0).sum())
        assert 0 < said < 9 * LAYERS * USED
        assert engine.expert_uses.sum() == said
    trace = read_trace(tmp_path / "trace")
    assert (len(trace), recorder.summary()["uses"]) == (said, said)
    assert trace.expert.min() >= 0
    with pytest.raises(UsageError, match="choices of no expert, of which a trace has no rows"):
        open_engine(store, routing=ForcedRouting(made_up_trace(trace.shape)))


def test_tokens_that_use_no_expert_read_nothing(tmp_path: Path) -> None:
    """With a bias each token makes all its choices among those of no expert."""
    store = store_in(tmp_path, 5.0)
    with engine_with_slots(store, 2) as engine:
        logits = talk(engine)
        statistics = engine.statistics
        assert (statistics.expert_misses, statistics.expert_hits, statistics.cache.read_bytes) == (0, 0, 0)
        assert not engine.expert_uses.any()
    np.testing.assert_array_equal(logits, run(store, LAYERS * EXPERTS))
