"""Forced routing: an engine asks for the experts of a trace, resident or streaming, and for no others."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.opening import open_engine
from edgemoe.engine.phase import DECODE, PROMPT
from edgemoe.errors import UsageError
from edgemoe.lab.forced_routing import ForcedRouting
from edgemoe.lab.recorder import recording
from edgemoe.lab.trace import Trace, TraceShape, read_trace
from tests.support.checkpoints import write_checkpoint
from tests.support.engines import engine_with_slots
from tests.support.traces import made_up_trace

CONFIG = {
    "model_type": "olmoe", "vocab_size": 97, "hidden_size": 64, "intermediate_size": 40, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 4, "num_experts": 8, "num_experts_per_tok": 3,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
}  # fmt: skip
EXPERTS = 24
SHAPE = TraceShape("other-moe", "olmoe", 3, 8, 2, (4096,) * 3, (100,) * 3)
IDS = np.random.default_rng(3).integers(0, 97, 40)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forced")
    write_checkpoint(folder / "source", CONFIG)
    return convert_checkpoint(str(folder / "source"), folder / "some-moe", experts="q4", dense="q8")


@pytest.mark.parametrize("kernels", ["native", "jit", "reference"])
@pytest.mark.parametrize("slots", [3, 9, EXPERTS])
def test_the_engine_does_what_the_trace_says(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slots: int, kernels: str
) -> None:
    """Ten generated tokens are asked for where four were recorded, and a prompt longer than the recorded one."""
    monkeypatch.setenv("EDGEMOE_KERNELS", kernels)
    trace = made_up_trace(SHAPE, tokens=7, prompt_tokens=3)
    with engine_with_slots(store, slots, routing=ForcedRouting(trace)) as engine:
        assert engine.spec.most_top_k == 2
        with recording(engine, tmp_path / "t"):
            engine.turn.begin()
            engine.forward(IDS[:5])
            engine.turn.begin_decoding()
            for token in IDS[:10]:
                engine.forward([token])
        statistics = engine.statistics
    assert statistics.cache.prefetched_reads == 0
    done = read_trace(tmp_path / "t")
    assert done.shape.experts_used == 2
    for phase, recorded, count in ((PROMPT, range(3), 5), (DECODE, range(3, 7), 10)):
        steps = sorted(set(done.step[done.phase == phase].tolist()))
        assert len(steps) == count
        for number, step in enumerate(steps):
            ours = done.select(done.step == step)
            theirs = trace.select(trace.step == recorded[number % len(recorded)])
            np.testing.assert_array_equal(ours.keys, theirs.keys)
            np.testing.assert_array_equal(ours.weight, theirs.weight)


@pytest.mark.parametrize("slots", [3, 9])
def test_streamed_equals_resident_to_the_bit(store: Path, slots: int) -> None:
    results = []
    for count in (slots, EXPERTS):
        with engine_with_slots(store, count, routing=ForcedRouting(made_up_trace(SHAPE, tokens=20))) as engine:
            logits = [engine.forward(IDS[:9])]
            engine.turn.begin_decoding()
            logits += [engine.forward([token]) for token in IDS[:6]]
            results.append(np.stack(logits))
    np.testing.assert_array_equal(*results)


def test_its_own_trace_gives_the_same_answer(store: Path, tmp_path: Path) -> None:
    """Forcing a model's own recorded routing upon it changes no bit."""
    results = []
    for turn in range(2):
        routing = ForcedRouting(read_trace(tmp_path / "t")) if turn else None
        with (
            engine_with_slots(store, 10, routing=routing) as engine,
            recording(engine, tmp_path / f"{'t' * (turn + 1)}"),
        ):
            logits = [engine.forward(IDS[:9])]
            engine.turn.begin_decoding()
            logits += [engine.forward([token]) for token in IDS[:6]]
            results.append(np.stack(logits))
    np.testing.assert_array_equal(*results)


def test_the_accesses_can_be_had_in_their_order(store: Path, tmp_path: Path) -> None:
    forced = ForcedRouting(made_up_trace(SHAPE, tokens=7, prompt_tokens=3))
    assert (forced.steps(PROMPT), forced.steps(DECODE)) == (3, 4)
    with engine_with_slots(store, 6, routing=forced) as engine, recording(engine, tmp_path / "t"):
        engine.forward(IDS[:4])
        engine.turn.begin_decoding()
        for token in IDS[:6]:
            engine.forward([token])
    assert (forced.taken(PROMPT), forced.taken(DECODE)) == (4, 6)
    done = read_trace(tmp_path / "t")
    np.testing.assert_array_equal(done.keys[done.phase == DECODE], forced.keys(DECODE, 0, 6).reshape(-1))
    prompt = forced.keys(PROMPT, 0, 4).transpose(1, 0, 2)  # layer by layer
    np.testing.assert_array_equal(done.keys[done.phase == PROMPT], prompt.reshape(-1))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"layers": 2, "expert_bytes": (1, 1), "dense_bytes": (1, 1)},
         "expected 3 layers, 3 of them with 8 experts, found 2 layers, 2 of them with 8 experts"),
        ({"experts": 9}, "expected 3 layers, 3 of them with 8 experts, found 3 layers, 3 of them with 9 experts"),
    ],
)  # fmt: skip
def test_a_trace_of_another_shape_is_refused(store: Path, changed: dict[str, object], says: str) -> None:
    trace = made_up_trace(dataclasses.replace(SHAPE, **changed))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=f"route.csv: .*{says}") as told:
        open_engine(store, routing=ForcedRouting(trace, "route.csv"))
    assert "other-moe" in told.value.hint


def test_more_experts_than_the_model_uses(store: Path) -> None:
    """A trace decides how many, up or down."""
    routing = ForcedRouting(made_up_trace(dataclasses.replace(SHAPE, experts_used=7)))
    with engine_with_slots(store, 10, routing=routing) as engine:
        assert np.isfinite(engine.forward(IDS[:5])).all()


def cut(trace: Trace, rows: int) -> Trace:
    return trace.select(slice(0, rows))


def test_a_recording_that_was_cut_short_ends_with_its_last_whole_token() -> None:
    trace = made_up_trace(SHAPE, tokens=7, prompt_tokens=3)
    assert ForcedRouting(cut(trace, len(trace) - 1)).steps(DECODE) == 3
    assert ForcedRouting(cut(trace, len(trace) - 6)).steps(DECODE) == 3
    assert ForcedRouting(cut(trace, len(trace) - 7)).steps(DECODE) == 2


def test_layers_that_a_prompt_left_to_its_last_token_ask_for_that_token_s_experts() -> None:
    trace = made_up_trace(SHAPE, tokens=7, prompt_tokens=3)
    whole = ForcedRouting(trace).keys(PROMPT, 0, 3)
    left_out = (trace.phase == PROMPT) & (trace.layer == 2) & (trace.step < 2)
    forced = ForcedRouting(trace.select(~left_out))
    assert forced.steps(PROMPT) == 3
    keys = forced.keys(PROMPT, 0, 3)
    np.testing.assert_array_equal(keys[:, :2], whole[:, :2])
    np.testing.assert_array_equal(keys[:, 2], whole[[2, 2, 2], 2])
    np.testing.assert_array_equal(forced.keys(DECODE, 0, 4), ForcedRouting(trace).keys(DECODE, 0, 4))


def test_a_layer_that_lacks_where_no_later_token_has_it_is_told() -> None:
    trace = made_up_trace(SHAPE, tokens=7, prompt_tokens=3)
    with pytest.raises(UsageError, match="3 of its 7 tokens lack some of the 6 rows"):
        ForcedRouting(trace.select((trace.phase != PROMPT) | (trace.layer != 2)))


@pytest.mark.parametrize("recall", [0.0, 0.6, 1.0])
def test_guesses_are_made_up_of_the_recall_that_is_asked_for(store: Path, recall: float) -> None:
    forced = ForcedRouting(made_up_trace(SHAPE, tokens=60, prompt_tokens=3), recall=recall)
    with engine_with_slots(store, EXPERTS - 2, routing=forced, prefetch="on") as engine:
        engine.turn.begin_decoding()
        named = 0
        for token in range(40):
            engine.forward([token])
            for routing in engine.routing:
                assert routing is not None
                assert len(set(routing.guess[0].tolist())) == 2
                named += len(set(routing.guess[0].tolist()) & set(routing.experts[0].tolist()))
        cache = engine.statistics.cache
    assert named / (40 * 3 * 2) == pytest.approx(recall, abs=0.1)
    assert cache.guessable_uses == 40 * 2 * 2
    assert cache.guessed_uses / cache.guessable_uses == pytest.approx(recall, abs=0.12)
    assert cache.prefetched_reads > 0


def test_guesses_differ_where_few_experts_are_left_to_guess_wrong(store: Path) -> None:
    shape = dataclasses.replace(SHAPE, experts_used=6)
    forced = ForcedRouting(made_up_trace(shape, tokens=30, prompt_tokens=3), recall=0.2)
    with engine_with_slots(store, EXPERTS - 2, routing=forced, prefetch="on") as engine:
        engine.turn.begin_decoding()
        for token in range(20):
            engine.forward([token])
            for routing in engine.routing:
                assert routing is not None
                assert len(set(routing.guess[0].tolist())) == 6


@pytest.mark.parametrize("slots", [6, EXPERTS])
def test_sequences_that_decode_together_take_parts_of_the_trace(store: Path, slots: int) -> None:
    forced = ForcedRouting(made_up_trace(SHAPE, tokens=15, prompt_tokens=3), recall=1.0)
    with engine_with_slots(store, slots, routing=forced, prefetch="on", sequences=3) as engine:
        for already in (0, 2):
            forced.spread(3)
            sequences = [engine.sequence, engine.sequences.open(), engine.sequences.open()]
            for sequence in sequences:
                sequence.turn.begin_decoding()
            for step in range(2):
                engine.step({sequence: [step] for sequence in sequences})
                for number in range(3):
                    expected = forced.keys(DECODE, already + step + 4 * number, 1)[0]
                    for layer, routing in enumerate(engine.routing):
                        assert routing is not None
                        np.testing.assert_array_equal(routing.experts[number] + 8 * layer, expected[layer])
                        np.testing.assert_array_equal(np.sort(routing.guess[number]), np.sort(routing.experts[number]))
            for sequence in reversed(sequences[1:]):
                engine.sequences.close(sequence)
        cache = engine.statistics.cache
    assert forced.taken(DECODE) == 4
    assert cache.guessed_uses == cache.guessable_uses
    assert (cache.prefetched_reads > 0) == (slots < EXPERTS)


def test_a_recording_of_several_sequences_is_refused(store: Path, tmp_path: Path) -> None:
    with engine_with_slots(store, EXPERTS, sequences=2) as engine, recording(engine, tmp_path / "t"):
        other = engine.sequences.open()
        with pytest.raises(UsageError, match="holds one sequence"):
            engine.step({engine.sequence: [1], other: [2]})
        engine.step({other: [2]})


def test_a_recall_that_is_none_is_refused() -> None:
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="`recall`: expected 0 to 100 %"):
            ForcedRouting(made_up_trace(SHAPE, tokens=7, prompt_tokens=3), recall=wrong)


def test_a_trace_without_a_prompt_takes_generated_tokens_for_it() -> None:
    trace = made_up_trace(SHAPE, tokens=7, prompt_tokens=0)
    forced = ForcedRouting(trace)
    np.testing.assert_array_equal(forced.keys(PROMPT, 0, 3), forced.keys(DECODE, 0, 3))


def test_traces_that_cannot_be_forced_upon_a_model() -> None:
    trace = made_up_trace(SHAPE, tokens=7, prompt_tokens=3)
    middle = np.arange(len(trace)) != 25
    twice = dataclasses.replace(trace, expert=np.zeros_like(trace.expert))
    slots = dataclasses.replace(trace, slot=np.zeros_like(trace.slot))
    for wrong, says in (
        (cut(trace, 0), "no rows"),
        (trace.select(trace.phase == PROMPT), "no generated tokens"),
        (trace.select(middle), "1 of its 7 tokens lack some of the 6 rows"),
        (twice, "the same expert twice"),
        (slots, "the same layer and slot"),
    ):
        with pytest.raises(UsageError, match=says):
            ForcedRouting(wrong)
