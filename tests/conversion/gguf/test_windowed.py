"""GGUF files of families with windows: written, read back as the same model, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgemoe.conversion.forecast import forecast_store
from edgemoe.conversion.gguf.export import export_gguf
from edgemoe.conversion.gguf.source import GgufSource
from edgemoe.errors import SourceError, StoreError
from tests.support.every_case import every_case
from tests.support.gguf_round_trip import Exported, assert_same_model, rewritten
from tests.support.pairs import some
from tests.support.windowed_models import SMALL_MODELS

GOLDEN = Path(__file__).parents[2] / "golden"
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize("family", some(SMALL_MODELS))
def test_a_file_is_the_same_model(family: str, exported: Exported, tmp_path: Path) -> None:
    store, path = exported(family)
    assert_same_model(store, path, SMALL_MODELS[family], tmp_path)


@every_case(
    ("family", "changes"),
    [
        ("afmoe", {"mup_enabled": False}),
        ("afmoe", {"layer_types": ["full_attention", *["sliding_attention"] * 3]}),
        ("afmoe", {"rope_scaling": _LLAMA3}),
        ("cohere2_moe", {"shared_expert_combination_strategy": "sum"}),
        ("cohere2_moe", {"layer_types": ["full_attention"] * 4}),
        ("cohere2_moe", {"mlp_layer_types": ["sparse", "dense", "sparse", "sparse"], "first_k_dense_replace": None}),
        ("cohere2_moe", {"prefix_dense_sliding_window_pattern": 2}),
        ("cohere2_moe", {"attention_bias": True}),
        ("exaone_moe", {"mlp_layer_types": ["sparse", "dense", "sparse", "sparse"], "first_k_dense_replace": None}),
        ("gemma4", {"attention_bias": True}),
        ("arctic", {"head_dim": 32}),
        ("arctic", {"parallel_attn_mlp_res": False}),
        ("dbrx", {"attn_config": {"kv_n_heads": 2}, "ffn_config": {"moe_normalize_expert_weights": None}}),
        ("llama4", {"attention_chunk_size": 4096}),
        ("llama4", {"attn_scale": 0.2}),
        ("llama4", {"moe_layers": [0, 3]}),
        ("llama4", {"use_qk_norm": False}),
        ("llama4", {"attention_bias": True}),
        ("laguna", {"moe_router_logit_softcapping": 2.0}),
        ("laguna", {"layer_types": ["full_attention", "sliding_attention"] * 2}),
        ("mellum", {"norm_topk_prob": False}),
        (
            "mellum",
            {"rope_parameters": {"full_attention": {"rope_theta": 5e5}, "sliding_attention": {"rope_theta": 1e4}}},
        ),
        ("mimo_v2_flash", {"attention_bias": True}),
        ("step3p5", {"partial_rotary_factors": [0.25, 1.0, 1.0, 1.0]}),
        ("step3p5", {"partial_rotary_factors": None}),
        ("step3p5", {"rope_scaling": _LLAMA3}),
        ("smallthinker", {"sliding_window_size": 1024}),
        ("smallthinker", {"rope_layout": [1] * 5}),
        ("smallthinker without windows", {"rope_layout": [0, 1, 1, 1, 0]}),
    ],
    ids=str,
)
def test_what_llama_cpp_would_run_otherwise_is_refused(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """Before any weight is read: the store is planned only."""
    (tmp_path / "config.json").write_text(json.dumps(SMALL_MODELS[family] | changes))
    store = forecast_store(str(tmp_path)).store
    with pytest.raises(StoreError, match="this model cannot be a GGUF"):
        export_gguf(store, tmp_path / "model.gguf", name="test", tokenizer=False)
    assert not list(tmp_path.glob("model.gguf*"))


@every_case(
    ("name", "words"),
    [
        ("phimoe", r"phimoe computes root-mean-square norms"),
        ("grok_1", r"grok-1 computes weights of a token's experts divided by their sum"),
        ("grok_2", r"grok-2 computes weights of a token's experts divided by their sum, and scores that do not grow"),
    ],
)
def test_a_family_that_llama_cpp_runs_as_another_model_is_refused(name: str, words: str, tmp_path: Path) -> None:
    store = forecast_store(str(GOLDEN / name)).store
    with pytest.raises(StoreError, match=rf"llama\.cpp's {words}"):
        export_gguf(store, tmp_path / "model.gguf", name="test", tokenizer=False)


@every_case(
    ("family", "changes", "words"),
    [
        ("afmoe", {"afmoe.expert_gating_func": 1}, "expert_gating_func: expected 2 .sigmoid., found 1"),
        ("afmoe", {"afmoe.expert_weights_norm": False}, "expert_weights_norm: expected true, found False"),
        ("cohere2_moe", {"cohere2moe.expert_gating_func": 3}, "expert_gating_func: expected 1 .softmax. or 2"),
        ("cohere2_moe", {"cohere2moe.expert_weights_norm": False}, "expert_weights_norm: expected true with softmax"),
        ("cohere2_moe", {"cohere2moe.rope.freq_base_swa": 5}, "rope.freq_base_swa: expected 10000.0, or no such key"),
        ("cohere2_moe", {"cohere2moe.logit_scale": True}, "logit_scale: expected a number, found True"),
        ("cohere2_moe", {"cohere2moe.expert_shared_count": 3}, "expert_shared_feed_forward_length: expected 288, that"),
        ("cohere2_moe", {"cohere2moe.expert_weights_scale": 2}, "expert_weights_scale: expected 0.0 or 1.0, found 2"),
        ("exaone_moe", {"exaone-moe.attention.sliding_window_pattern": 0}, "sliding_window_pattern: expected a flag"),
        ("gemma4", {"gemma4.attention.shared_kv_layers": 2}, "shared_kv_layers: expected 0, found 2"),
        ("gemma4", {"gemma4.expert_gating_func": 2}, "expert_gating_func: expected 0 or 1, found 2"),
        ("gemma4", {"gemma4.attention.head_count_kv": [2, 2, 1, 1]}, "head_count_kv: expected a number for each"),
        ("gemma4", {"gemma4.attention.value_length_swa": 16}, "value_length_swa: expected 32, the width of a head"),
        (
            "gemma4",
            {"gemma4.attention.key_length": 32, "gemma4.attention.value_length": 32},
            "dimension_count: expected",
        ),
        ("arctic", {"arctic.expert_feed_forward_length": 5}, "expert_feed_forward_length: expected 96, found 5"),
        ("arctic", {"arctic.expert_weights_norm": False}, "expert_weights_norm: expected true, found False"),
        ("dbrx", {"dbrx.expert_weights_norm": False}, "expert_weights_norm: expected true"),
        ("dbrx", {"dbrx.expert_feed_forward_length": 5}, "expert_feed_forward_length: expected 96, found 5"),
        ("dbrx", {"dbrx.attention.head_count_kv": 3}, "attention.head_count is 4, dbrx.attention.head_count_kv 3"),
        ("llama4", {"llama4.expert_gating_func": 1}, "expert_gating_func: expected 2 .sigmoid., found 1"),
        ("llama4", {"llama4.expert_weights_norm": True}, "expert_weights_norm: expected false"),
        ("llama4", {"llama4.expert_shared_count": 2}, "expert_shared_count: expected 1"),
        ("llama4", {"llama4.expert_used_count": 2}, "expert_used_count is 2"),
        ("laguna", {"laguna.attention.head_count": [4, 6, 6, 0]}, "head_count: expected whole numbers above 0"),
        ("mellum", {"mellum.rope.dimension_count": 16}, "rope.dimension_count: expected 32"),
        ("mimo_v2_flash", {"mimo2.attention.head_count_kv": [1, 2, 4, 4]}, "head_count_kv: expected a number for each"),
        ("mimo_v2_flash", {"mimo2.rope.scaling.type": "yarn"}, "rope.scaling.type: expected not yarn"),
        ("step3p5", {"step35.swiglu_clamp_exp": [0.0, 1.0]}, "swiglu_clamp_exp: expected a number for each of 4"),
        ("step3p5", {"step35.attention.head_count": [4, 4, 6, 6]}, "attention.head_count: expected a number for each"),
        ("step3p5", {"step35.rope.dimension_count": 16}, "rope.dimension_count: expected 32"),
        ("step3p5", {"step35.rope.freq_base": 10000}, "rope.freq_base: expected a number"),
        ("smallthinker", {"smallthinker.attention.sliding_window": 64}, "sliding_window: expected 4096, or no such"),
        ("smallthinker", {"smallthinker.expert_gating_func": 0}, "expert_gating_func: expected 1 .softmax. or 2"),
        ("smallthinker", {"smallthinker.rope.freq_base_swa": 10000}, "rope.freq_base_swa: expected 1500000.0, or no"),
        ("smallthinker", {"smallthinker.expert_used_count": 9}, "expert_used_count is 9"),
    ],
    ids=str,
)
def test_keys_that_contradict_the_architecture_are_refused_by_name(
    family: str, changes: dict[str, Any], words: str, exported: Exported, tmp_path: Path
) -> None:
    _, path = exported(family)
    changed = rewritten(path, tmp_path / "changed.gguf", changes)
    with pytest.raises(SourceError, match=words):
        GgufSource(changed)
