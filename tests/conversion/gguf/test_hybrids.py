"""GGUF files of families with Kimi Delta Attention or lightning attention: written, read back as the same model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest

from edgemoe.conversion.forecast import forecast_store
from edgemoe.conversion.gguf.export import export_gguf
from edgemoe.conversion.gguf.source import GgufSource
from edgemoe.errors import SourceError, StoreError
from tests.support.gguf_round_trip import Exported, assert_same_model, rewritten
from tests.support.hybrid_models import SMALL_HYBRID
from tests.support.pairs import some


@pytest.mark.parametrize("name", some(SMALL_HYBRID))
def test_a_file_is_the_same_model(name: str, exported: Exported, tmp_path: Path) -> None:
    store, path = exported(name)
    assert_same_model(store, path, SMALL_HYBRID[name], tmp_path)


def test_a_file_has_the_shapes_of_llama_cpp(exported: Exported) -> None:
    """Taps have a dimension of one, rates a row for each head; Ling's rates have no sign."""
    shapes, rates = {}, {}
    for name in ("kimi_linear", "bailing_hybrid"):
        _, path = exported(name)
        tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        shapes[name] = {own: tuple(tensor.shape[::-1].tolist()) for own, tensor in tensors.items()}
        rates[name] = tensors["blk.0.ssm_a"].data
    kimi, ling = shapes["kimi_linear"], shapes["bailing_hybrid"]
    assert kimi["blk.0.ssm_conv1d_q.weight"] == ling["blk.0.ssm_conv1d_v.weight"] == (128, 1, 4)
    assert kimi["blk.0.ssm_a"] == ling["blk.0.ssm_a"] == (4, 1)
    assert (kimi["blk.0.ssm_f_a.weight"], kimi["blk.0.ssm_f_b.weight"]) == ((32, 64), (128, 32))
    assert ling["blk.0.ssm_f_a.weight"] == ling["blk.0.ssm_g_a.weight"] == (128, 64)
    assert (kimi["blk.2.attn_k_b.weight"], ling["blk.1.attn_gate.weight"]) == ((4, 64, 32), (4, 64))
    assert (rates["kimi_linear"] < 0).all()
    assert (rates["bailing_hybrid"] > 0).all()


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("kimi_linear", {"q_lora_rank": 32}, "kimi-linear has no queries of latents"),
        ("kimi_linear", {"norm_topk_prob": False}, "no weights of experts that are not normalised"),
        ("kimi_linear", {"rms_norm_eps": 1e-2}, "no epsilon of 1e-06 for norms of latents beside 0.01 for others"),
        ("kimi_linear", {"num_experts": 8, "num_shared_experts": 0}, "no shared experts but ungated ones"),
        ("bailing_hybrid", {"kda_safe_gate": False}, "bailingmoe3 has no decays without a bound"),
        ("bailing_hybrid", {"layer_types": ["full_attention"] * 4}, "of one kind of Kimi Delta Attention"),
        ("minimax", {"mlp_beta_factor": 0.5}, "minimax-01 has no residuals but of normalised rows, with one factor"),
        ("minimax", {"mlp_alpha_factor": 2.5}, "no residuals but of normalised rows, with one factor"),
        ("minimax", {"layer_types": ["linear_attention"] * 4}, "no models without softmax attention"),
        ("minimax", {"rms_norm_eps": 1e-2}, "no epsilon of 1e-06 for norms of lightning attention beside 0.01"),
        ("minimax", {"vocab_size": 200_100, "hidden_size": 8}, "no vocabularies beyond 200032 ids"),
    ],
    ids=str,
)
def test_what_llama_cpp_cannot_run_is_refused(name: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    """Before any weight is read: the store is planned only."""
    (tmp_path / "config.json").write_text(json.dumps(SMALL_HYBRID[name] | changes))
    store = forecast_store(str(tmp_path)).store
    with pytest.raises(StoreError, match=words):
        export_gguf(store, tmp_path / "model.gguf", name="test", tokenizer=False)
    assert not list(tmp_path.glob("model.gguf*"))


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("kimi_linear", {"attention.head_count_kv": [0, 0, 1]}, "head_count_kv: expected a whole number for each"),
        (
            "kimi_linear",
            {"attention.key_length_mla": 16},
            "key_length_mla: expected more than 16, the rotated channels",
        ),
        ("kimi_linear", {"expert_gating_func": 1}, "expert_gating_func: expected 2 .sigmoid., found 1"),
        ("kimi_linear", {"expert_weights_norm": False}, "expert_weights_norm: expected true, or no such key"),
        ("bailing_hybrid", {"kda.safe_gate": False}, "kda.safe_gate: expected true, or no such key"),
        ("minimax", {"attention.recurrent_layers": [True, False]}, "recurrent_layers: expected a flag for each of 4"),
        ("minimax", {"residual_scale": 2}, "residual_scale: expected a number above 0"),
    ],
    ids=str,
)
def test_keys_that_contradict_the_architecture_are_refused_by_name(
    name: str, changes: dict[str, Any], words: str, exported: Exported, tmp_path: Path
) -> None:
    _, path = exported(name)
    architecture = {"kimi_linear": "kimi-linear", "bailing_hybrid": "bailingmoe3", "minimax": "minimax-01"}[name]
    renamed = {f"{architecture}.{key}": value for key, value in changes.items()}
    changed = rewritten(path, tmp_path / "changed.gguf", renamed)
    with pytest.raises(SourceError, match=words):
        GgufSource(changed)
