"""Replay: the published hit rates of real traces, and its figures against plain simulations of small ones."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemoe.engine.phase import DECODE, PROMPT
from edgemoe.errors import TraceError, UsageError
from edgemoe.experts.policy import KINDS, make_policy
from edgemoe.lab.replay import Replay, simulate
from edgemoe.lab.trace import Trace, read_trace
from edgemoe.lab.trace_figures import read_routing
from tests.experts.test_policy import InterpretedCache
from tests.lab.traces import make_shape, make_trace, random_trace
from tests.support.every_case import every_case
from tests.support.examples import examples
from tests.support.shared_data import shared_file

PUBLISHED = {
    "qwen3-30b-a3b": {"lru": (0.528, 0.727, 0.841, 0.910), "belady": (0.740, 0.859, 0.903, 0.917)},
    "gemma-4-26b-a4b": {"lru": (0.529, 0.718, 0.821, 0.911), "belady": (0.736, 0.848, 0.896, 0.916)},
}
CAPACITIES = (10, 20, 30, 50)


@pytest.mark.parametrize("name", PUBLISHED)
def test_real_traces_give_the_published_hit_rates(name: str) -> None:
    replay = Replay(read_trace(shared_file(f"traces/{name}.csv")))
    for policy, expected in PUBLISHED[name].items():
        found = [round(replay.run(policy, capacity).hit_rate, 3) for capacity in CAPACITIES]
        assert found == list(expected), policy


@pytest.mark.parametrize("policy", ["lru", "lfu", "lruf"])
def test_a_real_trace_takes_the_same_way_compiled_and_interpreted(policy: str) -> None:
    trace = read_trace(shared_file("traces/gemma-4-26b-a4b.csv"))
    trace = trace.select(slice(0, 12000))
    begins = np.ones(len(trace), np.bool_)
    begins[1:] = (trace.step[1:] != trace.step[:-1]) | (trace.layer[1:] != trace.layer[:-1])
    slots, keys = 400, trace.shape.keys
    done = simulate(policy, slots, keys, trace.keys, begins, keep_victims=True)
    cache = InterpretedCache(make_policy(policy, slots, keys), slots, pins=True)
    expected = [cache.access(int(key), bool(new)) for key, new in zip(trace.keys, begins, strict=True)]
    assert done.victims.tolist() == [victim for _, victim in expected]
    assert (done.victims >= 0).sum() > 1000


def lru_hits(trace: Trace, slots: int) -> np.ndarray:
    """By the definition, one access after the other."""
    held: OrderedDict[int, None] = OrderedDict()
    hits = []
    for key in trace.keys.tolist():
        hits.append(key in held)
        held[key] = None
        held.move_to_end(key)
        if len(held) > slots:
            held.popitem(last=False)
    return np.array(hits)


@given(
    layers=st.integers(1, 4),
    experts=st.integers(2, 8),
    used=st.integers(1, 2),
    prompt=st.integers(0, 4),
    decode=st.integers(0, 6),
    turns=st.integers(1, 3),
    percent=st.sampled_from([12.5, 25, 33.3, 50, 75, 100]),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_figures_are_those_of_a_plain_simulation(
    layers: int, experts: int, used: int, prompt: int, decode: int, turns: int, percent: float, seed: int
) -> None:
    trace = random_trace(make_shape(layers, experts, used), prompt, decode, turns, seed)
    if not len(trace):
        return
    replay = Replay(trace)
    assert replay.total_experts == layers * experts
    assert replay.cycle_experts == layers * used
    slots = round(percent * layers * experts / 100 + 1e-9)
    if slots < used:  # then a token's experts of a layer push each other out in an order of their own
        return
    result = replay.run("lru", percent)
    hits, decoding = lru_hits(trace, slots), trace.phase == DECODE
    assert (result.slots, result.budget_bytes) == (slots, slots * (1000 + layers - 1))
    assert (result.prompt_hits, result.decode_hits) == (hits[~decoding].sum(), hits[decoding].sum())
    assert (result.prompt_uses, result.decode_uses) == ((~decoding).sum(), decoding.sum())
    assert result.hit_rate == pytest.approx(hits.mean())
    missed = 1000 + trace.layer[~hits & decoding].astype(int)
    assert replay.routing.decode_tokens == turns * decode
    if decode:
        assert result.bytes_per_decode_token == pytest.approx(missed.sum() / (turns * decode))
        assert result.decode_hit_rate == pytest.approx(hits[decoding].mean())
    else:
        assert result.bytes_per_decode_token is None
        assert result.decode_hit_rate is None
    assert result.resident.shape == (layers, experts)
    assert result.resident.sum() == min(slots, len(np.unique(trace.keys)))


@every_case("policy", KINDS)
def test_with_room_for_all_each_expert_is_read_once(policy: str) -> None:
    trace = random_trace(make_shape(3, 6, 2), 5, 20)
    result = Replay(trace).run(policy, 100)
    assert result.prompt_hits + result.decode_hits == len(trace) - trace.distinct_experts().sum()
    assert np.array_equal(result.resident, read_routing(trace).uses > 0)


def test_below_a_tokens_cycle_lru_hits_nothing() -> None:
    trace = random_trace(make_shape(8, 16, 2), 0, 30)
    replay = Replay(trace)
    assert replay.cycle_percent == 12.5
    below = replay.run("lru", 100 * (replay.cycle_experts - replay.shape.experts_used) / replay.total_experts)
    assert below.decode_hits == 0
    assert replay.run("lfu", 10).decode_hits > 0


def test_layers_without_experts_do_not_count() -> None:
    shape = make_shape(3, 4, 1)
    shape = type(shape)(shape.model, shape.architecture, 3, 4, 1, (0, 1000, 1000), shape.dense_bytes)
    replay = Replay(make_trace(shape, [(0, DECODE, 0, 1, 2), (0, DECODE, 0, 2, 3)]))
    assert (replay.total_experts, replay.cycle_experts, replay.slots(50)) == (8, 2, 4)


@every_case("percent", [0, -1, 100.001, float("nan"), float("inf")])
def test_a_capacity_that_is_no_share_is_refused(percent: float) -> None:
    replay = Replay(random_trace(make_shape(2, 4, 1), 1, 1))
    with pytest.raises(UsageError, match="expected more than 0 % and at most 100 %"):
        replay.run("lru", percent)


def test_a_capacity_of_no_slot_is_refused() -> None:
    replay = Replay(random_trace(make_shape(2, 4, 1), 1, 1))
    with pytest.raises(UsageError, match=r"1 % of 8 experts is not one slot\. A token uses 2: 25 %"):
        replay.run("lru", 1)


def test_a_trace_without_rows_is_refused() -> None:
    with pytest.raises(TraceError, match="no rows"):
        Replay(make_trace(make_shape(2, 4, 1), []))


def test_routing_counts_uses_and_repeats() -> None:
    rows = [
        *((0, PROMPT, step, layer, expert) for layer in (0, 1) for step, expert in ((0, 1), (1, 2))),
        (0, DECODE, 2, 0, 2),  # as the prompt's last token
        (0, DECODE, 2, 1, 3),
        (0, DECODE, 3, 0, 2),  # again
        (0, DECODE, 3, 1, 2),  # as in layer 0, and as two tokens before: no repeat
        (1, DECODE, 0, 0, 2),  # nothing is before the first token of a turn
        (1, DECODE, 0, 1, 2),
    ]
    routing = read_routing(make_trace(make_shape(2, 4, 1), rows))
    assert (routing.prompt_tokens, routing.decode_tokens) == (2, 3)
    assert routing.uses.tolist() == [[0, 1, 4, 0], [0, 1, 3, 1]]
    assert (routing.distinct_experts, routing.distinct_per_layer) == (5, (2, 3))
    assert routing.repeat_recall == pytest.approx(2 / 4)
    assert read_routing(make_trace(make_shape(2, 4, 1), rows[:4])).repeat_recall is None


@given(st.integers(1, 12), st.integers(0, 99), st.sampled_from(["lru", "lfu"]))
@settings(deadline=None, max_examples=examples(30))
def test_accesses_asked_for_at_once_are_used_first_where_they_are_there(slots: int, seed: int, policy: str) -> None:
    """By the definition: what of a token's experts in a layer is there is used, and stays while the others come."""
    trace = random_trace(make_shape(2, 8, 3), 0, 12, seed=seed)
    begins = np.arange(len(trace)) % 3 == 0
    done = simulate(policy, slots, trace.shape.keys, trace.keys, begins, at_once=True)
    chosen, held = make_policy(policy, slots, trace.shape.keys), dict[int, int]()
    hits = np.zeros(len(trace), np.bool_)
    for first in range(0, len(trace), 3):
        asked = trace.keys[first : first + 3].tolist()
        there = [key for key in asked if key in held]
        pinned = np.zeros(slots, np.bool_)
        for key in there:
            hits[first + asked.index(key)] = True
            pinned[held[key]] = True
            chosen.use(key, held[key])
        for key in (key for key in asked if key not in there):
            slot = len(held) if len(held) < slots else chosen.victim(~pinned)
            if slot < 0:
                pinned[:] = False
                slot = chosen.victim(~pinned)
            held = {other: its for other, its in held.items() if its != slot}
            held[key] = slot
            pinned[slot] = True
            chosen.use(key, slot)
    assert done.hits.tolist() == hits.tolist()


def test_the_optimum_is_not_asked_at_once() -> None:
    with pytest.raises(UsageError, match="one access after the other"):
        simulate("belady", 2, 4, np.zeros(3, np.int64), np.ones(3, np.bool_), at_once=True)
