"""Families with an encoder against the logits that transformers gave, whole, in cuts and token by token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemoe.architectures import model_spec
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.engine import Engine
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import SourceError
from tests.architectures.harness import Reference, load_checkpoint, load_reference, relative_error
from tests.golden.cases import ENCODER_CASES, INPUT_TOKENS

NAMES = [pytest.param(name, marks=pytest.mark.slow if name == "edgemoe_mixture" else ()) for name in ENCODER_CASES]
GOLDEN = Path(__file__).parent.parent / "golden"
TOLERANCE = 1e-4


def golden_of(name: str) -> Any:
    return np.load(GOLDEN / name / "golden.npz")


@pytest.mark.parametrize("name", NAMES)
def test_logits_agree_with_the_golden_ones(name: str) -> None:
    golden, model = golden_of(name), load_reference(GOLDEN / name)
    model.encode(golden["input"])
    whole = model.logits(golden["ids"])
    assert relative_error(whole, golden["logits"]) < TOLERANCE
    for chunk_tokens in (1, 7):
        np.testing.assert_array_equal(model.logits(golden["ids"][:40], chunk_tokens=chunk_tokens), whole[:40])


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"expert_capacity": 25},
        {"expert_capacity": 200},
        {"relative_attention_max_distance": 120},
        {"tie_word_embeddings": False},
        {"layer_norm_epsilon": 1e-2},
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "encoder.block.1.layer.1.mlp.router.classifier.bias",
        "encoder.final_layer_norm.weight",
        "decoder.block.2.layer.1.EncDecAttention.k.weight",
    ],
    ids=str,
)
def test_each_part_of_switch_transformers_shows(change: dict[str, Any] | str) -> None:
    """Every number of its config, and every kind of tensor, which a name stands for, changes the logits."""
    golden, (config, tensors) = golden_of("switch_transformers"), load_checkpoint(GOLDEN / "switch_transformers")
    if isinstance(change, str):
        tensors = tensors | {change: tensors[change] * 0.5}
    else:
        config = config | change
        if "tie_word_embeddings" in change:
            tensors = tensors | {"lm_head.weight": tensors["shared.weight"]}
    model = Reference(config, tensors)
    model.encode(golden["input"])
    found = model.logits(golden["ids"])
    assert relative_error(found, golden["logits"]) > 10 * TOLERANCE
    if change == {"tie_word_embeddings": False}:  # nothing but the scale of the tied head
        np.testing.assert_allclose(found * 40**-0.5, golden["logits"], atol=1e-5)


@pytest.fixture(scope="module", params=NAMES)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders") / request.param
    return convert_checkpoint(str(GOLDEN / request.param), folder, experts="f32", dense="f32")


@pytest.fixture(scope="module")
def engine(store: Path) -> Iterator[Engine]:
    with open_engine(store, EngineOptions(threads=1, context_length=INPUT_TOKENS)) as opened:
        yield opened


def answer(engine: Engine, golden: Any, cuts: list[int]) -> np.ndarray:
    """Logits after each token of the text, given in calls that end at `cuts`, after the input."""
    engine.rewind(0)
    engine.encode(golden["input"])
    return np.concatenate([engine.forward(part, all_logits=True) for part in np.split(golden["ids"], cuts)])


def test_the_engine_agrees_with_the_golden_logits_in_any_cut(store: Path, engine: Engine) -> None:
    golden = golden_of(store.name)
    assert engine.backend.name == "native"
    whole = answer(engine, golden, [])
    assert relative_error(whole, golden["logits"]) < TOLERANCE
    np.testing.assert_array_equal(answer(engine, golden, [1, 2, 9, 70, 128]), whole)
    np.testing.assert_array_equal(answer(engine, golden, list(range(1, 150))), whole)


def test_paging_threads_and_kernels(store: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = golden_of(store.name)
    whole = answer(engine, golden, [])
    with open_engine(store, EngineOptions("floor", threads=3, context_length=INPUT_TOKENS)) as other:
        assert not other.memory.all_resident
        np.testing.assert_array_equal(answer(other, golden, [60, 61, 62]), whole)
        assert other.statistics.disk_bytes > 0
    monkeypatch.setenv("EDGEMOE_KERNELS", "jit")
    with open_engine(store, EngineOptions(threads=1, context_length=INPUT_TOKENS)) as other:
        assert other.backend.name == "jit"
        assert relative_error(answer(other, golden, []), golden["logits"]) < TOLERANCE


SMALL = {**ENCODER_CASES["switch_transformers"].config, "model_type": "switch_transformers"}


def test_layers_with_experts_follow_the_step_of_transformers() -> None:
    def sparse(layers: int, count: int) -> list[int]:
        spec = model_spec(SMALL | {"num_layers": layers, "num_sparse_encoder_layers": count})
        return [number for number in spec.routed if number < layers]

    assert sparse(12, 6) == [1, 3, 5, 7, 9, 11]
    assert sparse(12, 3) == [1, 5, 9]
    assert sparse(4, 4) == [0, 1, 2, 3]
    assert sparse(5, 3) == [0, 1, 2, 3, 4]  # 5 // 3 is 1
    assert sparse(4, 0) == [1]  # an oddity of the class
    assert sparse(1, 0) == [0]
    assert sparse(2, 5) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dense_act_fn": "gated-gelu"}, 'dense_act_fn is .* implements "relu" only'),
        ({"feed_forward_proj": "gated-gelu"}, "feed_forward_proj"),
        ({"router_dtype": "bfloat16"}, "router_dtype"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder is false"),
        ({"d_kv": 15}, "heads of width 15; expected an even width"),
        ({"relative_attention_num_buckets": 30}, "30 buckets .* expected a multiple of 4"),
        ({"relative_attention_max_distance": 16}, "up to a distance of 16"),
        ({"expert_capacity": 0}, "expert_capacity is 0"),
        ({"decoder_start_token_id": 96}, "decoder_start_token_id is 96"),
        ({"num_experts": 60_000}, "7 layers of 60000 experts"),
        ({"attention_temperature": 2}, "attention_temperature"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        model_spec(SMALL | change)


def test_old_and_new_spellings_mean_the_same() -> None:
    renamed = {"hidden_size": SMALL["d_model"], "num_hidden_layers": 4, "num_attention_heads": 3}
    old = {key: value for key, value in SMALL.items() if key not in ("d_model", "num_layers", "num_heads")} | renamed
    extra = {"encoder_sparse_step": 9, "feed_forward_proj": "relu", "n_positions": 512, "is_gated_act": False}
    assert model_spec(old | extra) == model_spec(SMALL)
    assert model_spec(SMALL | {"num_decoder_layers": None}).encoder_layers == 4
