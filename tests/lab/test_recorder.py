"""Recording: a trace holds what the routers said and what was in memory, and costs no answer a bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.engine import Engine
from edgemoe.engine.lossy import LossySettings
from edgemoe.engine.phase import DECODE, PROMPT, Turn
from edgemoe.errors import TraceError, UsageError
from edgemoe.lab import trace as trace_module
from edgemoe.lab.recorder import recording, trace_shape
from edgemoe.lab.trace import Trace, read_trace
from edgemoe.model.description import store_spec
from edgemoe.store.reader import Store
from tests.support.checkpoints import write_checkpoint
from tests.support.engines import engine_with_slots
from tests.support.traces import same_rows

CONFIG = {
    "model_type": "qwen3_moe",
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 10,
    "num_experts_per_tok": 3,
    "norm_topk_prob": True,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "mlp_only_layers": [1],
    "decoder_sparse_step": 1,
}
MOE_LAYERS, EXPERTS = [0, 2, 3], 30
PROMPT_IDS = np.random.default_rng(3).integers(0, 97, 20)
NEXT_IDS = np.random.default_rng(4).integers(0, 97, 15)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers of routed experts, and a dense one between them."""
    folder = tmp_path_factory.mktemp("recorder")
    write_checkpoint(folder / "source", CONFIG)
    return convert_checkpoint(str(folder / "source"), folder / "some-moe", experts="q4", dense="q8")


def talk(engine: Engine) -> np.ndarray:
    """Two turns: a prompt and generated tokens, and a prompt that keeps some of what is held."""
    logits = []
    for keep, prompt in ((0, PROMPT_IDS), (12, NEXT_IDS)):
        engine.rewind(keep)
        engine.turn.begin()
        engine.forward(prompt[:1])  # a prompt's piece of one token is no generated token
        logits.append(engine.forward(prompt[1:]))
        engine.turn.begin_decoding()
        logits += [engine.forward([token]) for token in NEXT_IDS[:7]]
    return np.stack(logits)


def record(store: Path, path: Path, slots: int, **options: Any) -> tuple[Trace, np.ndarray, Engine]:
    with engine_with_slots(store, slots, **options) as engine, recording(engine, path) as recorder:
        logits = talk(engine)
        assert recorder.failure is None
    assert sum(recorder.tokens.values()) == 49
    return read_trace(path), logits, engine


def test_a_trace_holds_what_the_routers_say(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held against the reference's NumPy, run token by token."""
    trace, _, _ = record(store, tmp_path / "t", 8)
    monkeypatch.setenv("EDGEMOE_KERNELS", "reference")
    place = 0
    with engine_with_slots(store, EXPERTS) as engine:
        for turn, keep, prompt in ((0, 0, PROMPT_IDS), (1, 12, NEXT_IDS)):
            engine.rewind(keep)
            for step, token in enumerate([*prompt, *NEXT_IDS[:7]]):
                engine.forward([token])
                rows = trace.select((trace.turn == turn) & (trace.step == step))
                assert set(rows.phase.tolist()) == {PROMPT if step < len(prompt) else DECODE}
                assert rows.layer.tolist() == np.repeat(MOE_LAYERS, 3).tolist()
                assert rows.slot.tolist() == [0, 1, 2] * 3
                for layer in MOE_LAYERS:
                    said = engine.routing[layer]
                    assert said is not None
                    assert rows.expert[rows.layer == layer].tolist() == said.experts[0].tolist()
                    np.testing.assert_allclose(rows.weight[rows.layer == layer], said.weights[0], rtol=0.05)
                place += len(rows)
    assert place == len(trace) == 49 * 9


def test_rows_are_in_the_order_in_which_experts_are_asked_for(store: Path, tmp_path: Path) -> None:
    trace, _, _ = record(store, tmp_path / "t", 8)
    second_piece = trace.select((trace.turn == 0) & (trace.phase == PROMPT) & (trace.step > 0))
    order = list(zip(second_piece.layer, second_piece.step, second_piece.slot, strict=True))
    assert order == sorted(order)
    decoded = trace.select((trace.turn == 1) & (trace.phase == DECODE))
    order = list(zip(decoded.step, decoded.layer, decoded.slot, strict=True))
    assert order == sorted(order)
    assert trace.turn.tolist() == sorted(trace.turn)


def test_streamed_and_resident_traces_differ_in_residency_only(store: Path, tmp_path: Path) -> None:
    resident, logits, _ = record(store, tmp_path / "t", EXPERTS)
    assert resident.residency.all()
    assert not resident.expert_bytes.any()
    for slots, prefetch in ((3, "on"), (11, "off")):
        streamed, streamed_logits, _ = record(store, tmp_path / f"{slots}-t", slots, prefetch=prefetch)
        np.testing.assert_array_equal(streamed_logits, logits)
        assert not streamed.residency.all()
        for one, other in zip(streamed.columns[:-2], resident.columns[:-2], strict=True):
            np.testing.assert_array_equal(one, other)


def test_residency_and_bytes_are_what_the_cache_counts(store: Path, tmp_path: Path) -> None:
    trace, _, engine = record(store, tmp_path / "t", 11, prefetch="off")
    decoded = trace.phase == DECODE
    asked = [tuple(row) for row in np.stack((trace.turn, trace.layer, trace.expert), 1)[~decoded].tolist()]
    assert len(asked) > len(set(asked))  # a prompt asks for some experts more than once, and the cache sees it once
    statistics = engine.statistics
    assert int(trace.expert_bytes.sum()) == statistics.disk_bytes
    assert np.count_nonzero(trace.expert_bytes) == statistics.expert_misses
    assert 0 < np.count_nonzero(trace.residency & decoded) < np.count_nonzero(decoded)
    np.testing.assert_array_equal((trace.expert_bytes > 0)[decoded], ~trace.residency[decoded])


def test_experts_that_were_dropped_cost_no_bytes(store: Path, tmp_path: Path) -> None:
    trace, _, engine = record(store, tmp_path / "t", 11, prefetch="off", lossy=LossySettings(drop_cold=0.33))
    statistics = engine.statistics
    assert statistics.expert_drops > 0
    assert int(trace.expert_bytes.sum()) == statistics.disk_bytes
    decoded = trace.phase == DECODE
    dropped = decoded & ~trace.residency & (trace.expert_bytes == 0)
    assert dropped.any()
    assert not trace.weight[dropped].any()


def test_recording_changes_no_bit_and_ends_where_it_ends(store: Path, tmp_path: Path) -> None:
    with engine_with_slots(store, 5) as engine:
        expected = talk(engine)
    with engine_with_slots(store, 5) as engine:
        talk(engine)
        engine.rewind(0)
        with recording(engine, tmp_path / "t"):
            np.testing.assert_array_equal(talk(engine), expected)
        assert engine.recorder is None
        talk(engine)
    trace = read_trace(tmp_path / "t")
    assert trace.tokens == 49
    assert set(trace.turn.tolist()) == {0, 1}  # counted from where recording began


def test_a_failing_disk_ends_the_recording_and_nothing_else(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_module, "BUFFERED_ROWS", 50)
    monkeypatch.setattr(trace_module, "BUFFERED_SECONDS", 1e9)
    whole, expected, _ = record(store, tmp_path / "whole", 6)
    really, told = trace_module._write_at, []
    monkeypatch.setattr(trace_module, "BUFFERED_ROWS", 50)

    def write_at(descriptor: int, position: int, data: bytes) -> None:
        if position + len(data) > 1600:
            raise OSError(28, "No space left on device")
        really(descriptor, position, data)

    monkeypatch.setattr(trace_module, "_write_at", write_at)
    with engine_with_slots(store, 6) as engine, recording(engine, tmp_path / "t", failed=told.append) as recorder:
        np.testing.assert_array_equal(talk(engine), expected)
    assert [type(error) for error in told] == [TraceError]
    assert recorder.failure is told[0]
    kept = read_trace(tmp_path / "t")
    assert 0 < len(kept) < len(whole)
    assert same_rows(kept, whole.select(slice(0, len(kept))))


def test_an_error_in_a_step_leaves_a_whole_trace(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(tokens: int, phase: int, pause: object = None) -> None:
        raise KeyboardInterrupt

    with engine_with_slots(store, 6) as engine:
        with pytest.raises(KeyboardInterrupt), recording(engine, tmp_path / "t"):  # noqa: PT012 - as it happens
            engine.forward(PROMPT_IDS)
            monkeypatch.setattr(engine._loaded._stepper, "step", interrupted)
            engine.forward([1])
        assert read_trace(tmp_path / "t").tokens == len(PROMPT_IDS)
        assert engine.recorder is None


def test_the_shape_that_a_trace_tells(store: Path, tmp_path: Path) -> None:
    trace, _, engine = record(store, tmp_path / "t", 6)
    shape = trace.shape
    assert (shape.model, shape.architecture, shape.layers, shape.experts, shape.experts_used) == (
        "some-moe", "qwen3_moe", 4, 10, 3,
    )  # fmt: skip
    record_bytes = engine.store.record_bytes
    assert shape.expert_bytes == (record_bytes, 0, record_bytes, record_bytes)
    in_layers = sum(tensor.bytes for tensor in engine.store.manifest.dense if tensor.name.startswith("layers."))
    assert sum(shape.dense_bytes) == in_layers
    assert shape.dense_bytes[1] > shape.dense_bytes[0] == shape.dense_bytes[2] > 0  # the dense layer's FFN


def test_a_model_without_experts_has_nothing_to_record(tmp_path: Path) -> None:
    config = {
        "model_type": "llama", "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    write_checkpoint(tmp_path / "source", config)
    store = Store.open(convert_checkpoint(str(tmp_path / "source"), tmp_path / "dense"))
    with pytest.raises(UsageError, match="no routed experts"):
        trace_shape(store, store_spec(store))


def test_turns_and_steps() -> None:
    turn = Turn()
    turn.begin()
    assert (turn.number, turn.phase, turn.step) == (0, PROMPT, 0)
    turn.step += 5
    turn.begin_decoding()
    turn.step += 2
    assert (turn.number, turn.phase, turn.step) == (0, DECODE, 7)
    turn.begin()
    turn.begin()
    assert (turn.number, turn.phase, turn.step) == (1, PROMPT, 0)
