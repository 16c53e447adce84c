"""Lossy settings: off they change no bit, on they do what a simulation in NumPy does, and nothing unsound is taken."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine import loaded as loaded_module
from edgemoe.engine.decoder import Decoder
from edgemoe.engine.engine import Engine
from edgemoe.engine.lossy import EXACT, LossySettings
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import UsageError
from edgemoe.experts.cache import droppable
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels.backend import Backend
from tests.engine.test_engine import CONFIG
from tests.support.checkpoints import make_routers_decided, write_checkpoint
from tests.support.engines import engine_with_slots
from tests.support.every_case import every_case
from tests.support.pairs import default_pairs

LAYERS, EXPERTS, USED = 4, 10, 3
ALL = LAYERS * EXPERTS
IDS = np.random.default_rng(6).integers(0, 193, 44)
PROMPT_TOKENS = 12
SETTINGS = [
    LossySettings(cache_aware_routing=0.15),
    LossySettings(cache_aware_routing=1.0),
    LossySettings(drop_cold=0.3),
    LossySettings(drop_cold=1.0),
    LossySettings(experts_per_token=2),
    LossySettings(cache_aware_routing=0.3, drop_cold=0.32, experts_per_token=3),
    LossySettings(drop_cold=0.5, experts_per_token=1),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lossy")
    write_checkpoint(folder / "source", CONFIG, dtype="F32")
    make_routers_decided(folder / "source" / "model.safetensors")
    return convert_checkpoint(str(folder / "source"), folder / "store", experts="f32", dense="f32")


def run(store: Path, slots: int, lossy: LossySettings = EXACT, prefetch: str = "off") -> np.ndarray:
    with engine_with_slots(store, slots, lossy=lossy, prefetch=prefetch) as engine:
        return np.stack(forward_all(engine))


def forward_all(engine: Engine, before_each: Callable[[], None] = lambda: None) -> list[np.ndarray]:
    """The logits after the prompt and after each of the tokens that follow."""
    before_each()
    logits = [engine.forward(IDS[:PROMPT_TOKENS])]
    engine.turn.begin_decoding()
    for token in IDS[PROMPT_TOKENS:]:
        before_each()
        logits.append(engine.forward([token]))
    return logits


@pytest.fixture(scope="module")
def exact(store: Path) -> np.ndarray:
    return run(store, ALL)


class Simulation:
    """The settings in NumPy, around the operations of a resident decoder; its cache is a list in order of use."""

    def __init__(self, decoder: Decoder, backend: Backend, slots: int, lossy: LossySettings) -> None:
        self.decoder, self.slots, self.lossy = decoder, slots, lossy
        self.order: OrderedDict[tuple[int, int], None] = OrderedDict()
        self.hits = self.misses = self.dropped = 0
        self.embed = backend.program(decoder.embed)
        self.parts = []
        for layer in decoder.layers:
            route = layer.attend[-1]
            assert isinstance(route, ex.Route)
            before, after = layer.attend[:-1], layer.beside + layer.experts
            self.parts.append((backend.program(before), route, backend.program(after), backend.program(layer.combine)))

    def step(self, tokens: int) -> None:
        self.embed.run(tokens)
        for layer, (before, route, experts, combine) in enumerate(self.parts):
            before.run(tokens)
            for token in range(tokens):
                chosen = self.choose(layer, route.logits[token].astype(np.float64), bonus=tokens == 1)
                shares = np.exp(route.logits[token][chosen].astype(np.float64))
                route.experts[token], route.weights[token] = chosen, shares / shares.sum()
            self.look_up(layer, route.experts[:tokens], route.weights[:tokens])
            experts.run(tokens)
            combine.run(tokens)

    def choose(self, layer: int, logits: np.ndarray, bonus: bool) -> list[int]:
        scores = logits.copy()
        if bonus:
            here = [expert for expert in range(EXPERTS) if (layer, expert) in self.order]
            scores[here] += self.lossy.cache_aware_routing * (logits.max() - logits.min())
        best = int(logits.argmax())
        others = sorted((e for e in range(EXPERTS) if e != best), key=lambda e: -scores[e])
        count = self.lossy.experts_per_token or USED
        return sorted([best, *others[: count - 1]], key=lambda e: -logits[e])

    def look_up(self, layer: int, experts: np.ndarray, weights: np.ndarray) -> None:
        wanted = experts[0].tolist() if len(experts) == 1 else sorted(set(experts.reshape(-1).tolist()))
        absent = [expert for expert in wanted if (layer, expert) not in self.order]
        shares = weights / weights.sum(axis=1, keepdims=True)
        for expert in list(absent):
            if shares[experts == expert].max() < self.lossy.drop_cold:
                weights[experts == expert] = 0
                absent.remove(expert)
                wanted.remove(expert)
                self.dropped += 1
        self.hits += len(wanted) - len(absent)
        self.misses += len(absent)
        if len(experts) > 1 and len(wanted) * LAYERS > self.slots:  # a prompt that passes through
            for expert in absent:
                if len(self.order) == self.slots:
                    del self.order[next(key for key in self.order if key[0] != layer or key[1] not in wanted)]
                self.order[layer, expert] = None
                self.order.move_to_end((layer, expert), last=False)
            return
        for expert in [e for e in wanted if e not in absent] + absent:
            self.order[layer, expert] = None
            self.order.move_to_end((layer, expert))
        while len(self.order) > self.slots:
            self.order.popitem(last=False)


@pytest.mark.parametrize(("lossy", "slots"), default_pairs(SETTINGS, [10, 25]), ids=str)
def test_the_effect_is_that_of_a_simulation(
    store: Path, exact: np.ndarray, lossy: LossySettings, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoders: list[Decoder] = []

    class KeptDecoder(Decoder):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            decoders.append(self)

    with engine_with_slots(store, slots, lossy=lossy, prefetch="off") as engine:
        expected_lossy = engine.lossy
        got = forward_all(engine)
        statistics = engine.statistics.cache
    assert expected_lossy == lossy
    monkeypatch.setattr(loaded_module, "Decoder", KeptDecoder)
    with engine_with_slots(store, ALL, lossy=LossySettings(experts_per_token=lossy.experts_per_token)) as resident:
        simulation = Simulation(decoders[0], resident.backend, slots, lossy)
        expected = []
        sequence = resident.sequence
        for ids in (IDS[:PROMPT_TOKENS], *IDS[PROMPT_TOKENS:, None]):
            resident._space.ids[: len(ids)] = ids
            resident._space.positions[: len(ids)] = sequence.position + np.arange(len(ids))
            sequence.reserve(len(ids))
            simulation.step(len(ids))
            sequence.end_run(ids)
            logits = np.empty((1, 193), np.float32)
            resident._loaded.logits([(range(len(ids) - 1, len(ids)), logits)])
            expected.append(logits[0])
    error, effect = np.abs(np.stack(got) - np.stack(expected)).max(), np.abs(np.stack(got) - exact).max()
    assert error < effect / 100
    counts = (statistics.hits, statistics.misses, statistics.dropped)
    assert counts == (simulation.hits, simulation.misses, simulation.dropped)
    assert (statistics.dropped > 0) == (lossy.drop_cold > 0 and lossy.experts_per_token != 1)


@pytest.mark.parametrize(
    ("slots", "lossy"), default_pairs([1, 2, 10, ALL], [EXACT, LossySettings(experts_per_token=USED)])
)
def test_off_changes_no_bit(store: Path, exact: np.ndarray, slots: int, lossy: LossySettings) -> None:
    np.testing.assert_array_equal(run(store, slots, lossy, prefetch="on"), exact)


@pytest.mark.parametrize("lossy", [LossySettings(cache_aware_routing=1), LossySettings(drop_cold=1)])
def test_nothing_changes_where_all_experts_are_in_memory(store: Path, exact: np.ndarray, lossy: LossySettings) -> None:
    np.testing.assert_array_equal(run(store, ALL, lossy), exact)
    with engine_with_slots(store, ALL, lossy=lossy) as engine:
        assert not engine.lossy.on
        assert engine.statistics.cache.dropped == 0


@pytest.mark.parametrize("slots", [1, 3, 10])
def test_what_was_dropped_leaves_no_trace_of_what_lay_there(store: Path, slots: int) -> None:
    lossy = LossySettings(cache_aware_routing=0.2, drop_cold=1.0)
    expected = run(store, slots, lossy)
    with engine_with_slots(store, slots, lossy=lossy, prefetch="off") as engine:
        got = forward_all(engine, lambda: engine._space._memory.view(np.float32).fill(np.nan))
        assert engine.statistics.cache.dropped > 0
    np.testing.assert_array_equal(np.stack(got), expected)
    assert np.isfinite(expected).all()


@pytest.mark.parametrize(("slots", "prefetch"), default_pairs([1, 3, 10], ["on", "off"]))
def test_all_at_once_with_prediction_and_few_slots(store: Path, slots: int, prefetch: str) -> None:
    got = run(store, slots, LossySettings(cache_aware_routing=0.5, drop_cold=0.35), prefetch)
    assert np.isfinite(got).all()


def test_what_can_be_dropped() -> None:
    experts = np.array([[4, 1, 2], [1, 3, 4]], np.int32)
    weights = np.array([[0.5, 0.375, 0.125], [0.3125, 0.125, 0.0625]], np.float32)  # the second sum is a half
    assert droppable(experts, weights, [1, 2, 3, 4], 0.26) == [2, 3]
    assert droppable(experts, weights, [1, 4], 0.26) == []  # each is much to one of the tokens
    assert droppable(experts, weights, [2], 0.125) == []
    assert droppable(experts, weights, [], 1.0) == []
    assert droppable(experts[:1, :1], weights[:1, :1], [4], 1.0) == []  # all of a token's weight
    assert droppable(experts, weights, [1, 2, 3, 4], 1.0) == [1, 2, 3, 4]
    weights[0, 2] = np.nan
    assert droppable(experts, weights, [2, 3], 1.0) == [3]


@every_case("value", [-0.1, 1.1, float("nan"), float("inf"), "0.5", None, True])
@every_case("name", ["cache_aware_routing", "drop_cold"])
def test_shares_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=r"expected a number from 0 \(off\) to 1, found"):
        LossySettings(**{name: value})  # type: ignore[arg-type]


@every_case("value", [0, -1, 1.0, True, "2"])
def test_numbers_of_experts_that_are_none_are_refused(value: object) -> None:
    with pytest.raises(UsageError, match="`experts_per_token`: expected a whole number of 1 or more"):
        LossySettings(experts_per_token=value)  # type: ignore[arg-type]


def test_more_experts_than_the_model_uses_are_refused(store: Path) -> None:
    with pytest.raises(UsageError, match="`experts_per_token`: expected 1 to 3, the model's own number, found 4"):
        open_engine(store, EngineOptions(lossy=LossySettings(experts_per_token=4)))


def test_fewer_experts_are_renormalised_as_the_router_does(store: Path) -> None:
    with engine_with_slots(store, ALL, lossy=LossySettings(experts_per_token=1)) as engine:
        engine.forward(IDS)
        for layer, routing in zip(engine.spec.layers, engine.routing, strict=True):
            assert layer.routed is not None
            assert layer.routed.top_k == 1
            assert routing is not None
            np.testing.assert_array_equal(routing.weights[: len(IDS)], 1)  # this family renormalises
        assert engine.expert_uses.sum() == LAYERS * len(IDS)


def test_settings_as_text_and_json() -> None:
    lossy = LossySettings(0.05, 0.1, 2)
    assert lossy.describe() == "cache-aware routing 0.05, drop cold 0.1, 2 experts per token"
    assert LossySettings.from_json(lossy.to_json()) == lossy
    assert lossy.on
    assert lossy.effective(all_resident=True) == LossySettings(experts_per_token=2)
    assert not EXACT.on
    assert EXACT.describe() == ""
