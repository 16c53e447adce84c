"""GGUF files of models that llama.cpp has, and runs as others: they are read, and no store becomes one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgemoe.architectures import model_spec
from edgemoe.conversion.gguf.source import GgufSource
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import SourceError
from edgemoe.model.rope import LogTemperature
from tests.support.checkpoints import write_checkpoint
from tests.support.every_case import every_case
from tests.support.gguf_files import write_gguf

_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 50_000.0,
    "tie_word_embeddings": False,
    "vocab_size": 404,
}
GROK_1 = _COMMON | {
    "model_type": "grok-1",
    "attn_output_multiplier": 0.08838834764831845,
    "embedding_multiplier_scale": 78.38367176906169,
    "max_attn_value": 30.0,
    "num_experts": 5,
    "output_multiplier_scale": 0.5773502691896257,
    "rope_theta": 10_000.0,
}
GROK_2 = _COMMON | {
    "model_type": "git",
    "architectures": ["Grok1ForCausalLM"],
    "attn_logit_softcapping": 2.5,
    "attn_temperature_len": 20,
    "embedding_multiplier_scale": 12.5,
    "final_logit_softcapping": 4.0,
    "head_dim": 24,
    "moe_intermediate_size": 32,
    "num_local_experts": 5,
    "output_multiplier_scale": 0.5,
    "residual_moe": True,
    "router_logit_softcapping": 3.0,
}
PHI = _COMMON | {
    "model_type": "phimoe",
    "attention_bias": True,
    "lm_head_bias": True,
    "num_local_experts": 5,
    "original_max_position_embeddings": 64,
    "rope_scaling": {
        "long_factor": [1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0],
        "long_mscale": 1.243163121016122,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0, 1.0, 1.125, 1.25, 1.25, 1.5, 1.5, 1.75],
        "short_mscale": 1.243163121016122,
        "type": "longrope",
    },
    "router_jitter_noise": 0.01,
}
CONFIGS = {"Grok-1": GROK_1, "Grok-2": GROK_2, "Phi": PHI}
METADATA: dict[str, dict[str, Any]] = {
    "Grok-1": {"attn_logit_softcapping": 30.0, "router_logit_softcapping": 30.0},
    "Grok-2": {
        "attention.output_scale": 24**-0.5,
        "attention.temperature_length": 20,
        "attn_logit_softcapping": 2.5,
        "embedding_scale": 12.5,
        "expert_feed_forward_length": 32,
        "final_logit_softcapping": 4.0,
        "logit_scale": 0.5,
        "rope.scaling.factor": 16.0,
        "rope.scaling.original_context_length": 64,
        "rope.scaling.type": "yarn",
        "rope.scaling.yarn_attn_factor": 1.0,
        "rope.scaling.yarn_beta_fast": 8.0,
        "rope.scaling.yarn_beta_slow": 1.0,
        "rope.scaling.yarn_ext_factor": 1.0,
        "router_logit_softcapping": 3.0,
    },
    "Phi": {
        "attention.sliding_window": 512,
        "rope.scaling.attn_factor": 1.19,
        "rope.scaling.original_context_length": 64,
    },
}
"""Keys that llama.cpp's converter writes beside those that all have; of Grok-1 an older file's, but for caps."""
IDS = np.random.default_rng(5).integers(0, 404, 90)
_OF_GROK_1 = {
    ".attn.": ".self_attn.",
    ".scale": ".weight",
    ".moe_block.": ".block_sparse_moe.",
    ".linear_v.": ".w3.",
    ".linear_1.": ".w2.",
    ".linear.": ".w1.",
}
"""Its names, and those that the package `gguf` knows."""


def written(path: Path, name: str, tensors: Mapping[str, np.ndarray[Any, Any]], **changes: Any) -> Path:
    """The GGUF of a checkpoint."""
    config, found = dict(CONFIGS[name]), {}
    if name == "Grok-1":
        for own, values in tensors.items():
            for theirs, known in _OF_GROK_1.items():
                own = own.replace(theirs, known)
            found[own] = values
    elif name == "Phi":
        factors = {
            f"rope_factors_{kind}.weight": config["rope_scaling"][f"{kind}_factor"] for kind in ("short", "long")
        }
        found = dict(tensors) | {own: np.array(values, np.float32) for own, values in factors.items()}
    else:
        found = dict(tensors)
    return write_gguf(path, config, found, metadata=METADATA[name] | changes, stacked=name != "Grok-1")


def checkpoint(folder: Path, name: str) -> dict[str, np.ndarray[Any, Any]]:
    write_checkpoint(folder, CONFIGS[name], dtype="F32")
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_is_the_model_of_its_checkpoint(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / "model.gguf", name, checkpoint(tmp_path / "source", name))
    found, expected = model_spec(GgufSource(path).config), model_spec(CONFIGS[name])
    assert found.family == expected.family
    assert found.tensors() == expected.tensors()
    logits = []
    for number, source in enumerate((tmp_path / "source", path)):
        store = convert_checkpoint(str(source), tmp_path / f"store{number}", experts="f32", dense="f32")
        with open_engine(store, EngineOptions(threads=1, context_length=len(IDS))) as engine:
            logits.append(engine.forward(IDS, all_logits=True))
    assert np.isfinite(logits[0]).all()
    np.testing.assert_array_equal(*logits)


@every_case(
    ("name", "key", "value", "words"),
    [
        ("Grok-2", "rope.scaling.type", "linear", r"grok\.rope\.scaling\.type: expected yarn, or no such key"),
        ("Grok-2", "attention.output_scale", 0.5, r"grok\.attention\.output_scale: expected 0\.204124, found 0\.5"),
        ("Grok-2", "logit_scale", None, r"grok\.logit_scale is missing"),
        ("Grok-2", "attention.temperature_length", 1, r"grok\.attention\.temperature_length is 1"),
        ("Grok-1", "attention.temperature_length", 1024, r"temperature_length: expected no such key"),
        ("Phi", "rope.scaling.original_context_length", None, r"original_context_length: expected a whole number"),
        ("Phi", "attention.sliding_window", 100, r"phimoe\.attention\.sliding_window is 100"),
    ],
)
def test_what_is_not_of_the_model_is_refused(name: str, key: str, value: Any, words: str, tmp_path: Path) -> None:
    path = written(tmp_path / "model.gguf", name, checkpoint(tmp_path / "source", name), **{key: value})
    with pytest.raises(SourceError, match=words):
        GgufSource(path)


def test_divisors_of_another_count_are_refused(tmp_path: Path) -> None:
    tensors = checkpoint(tmp_path / "source", "Phi") | {"rope_factors_long.weight": np.ones(7, np.float32)}
    config = PHI | {"rope_scaling": None}
    path = write_gguf(tmp_path / "model.gguf", config, tensors, metadata=METADATA["Phi"])
    with pytest.raises(SourceError, match=r"rope_factors_long\.weight: expected 8 F32 values, found \(7,\) of F32"):
        GgufSource(path)


def test_a_file_without_divisors_has_plain_positions(tmp_path: Path) -> None:
    tensors = checkpoint(tmp_path / "source", "Phi")
    path = write_gguf(tmp_path / "model.gguf", PHI | {"rope_scaling": None}, tensors, metadata=METADATA["Phi"])
    assert model_spec(GgufSource(path).config).layers[0].blocks[0].body.rope.scaling == "none"


def test_yarn_of_grok_2_is_none_and_its_scores_grow(tmp_path: Path) -> None:
    path = written(tmp_path / "model.gguf", "Grok-2", checkpoint(tmp_path / "source", "Grok-2"))
    attention = model_spec(GgufSource(path).config).layers[0].blocks[0].body
    assert attention.rope.scaling == "none"
    assert attention.score_temperature == LogTemperature(20)
