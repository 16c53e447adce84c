"""GGUF files of families with Mamba layers: written, read back as the same model, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest

from edgemoe.conversion.forecast import forecast_store
from edgemoe.conversion.gguf.export import export_gguf
from edgemoe.conversion.gguf.source import GgufSource
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.errors import SourceError, StoreError
from tests.support.gguf_round_trip import Exported, assert_same_model, rewritten
from tests.support.mamba_models import SMALL_MAMBA
from tests.support.pairs import some


@pytest.mark.parametrize("name", some(SMALL_MAMBA))
def test_a_file_is_the_same_model(name: str, exported: Exported, tmp_path: Path) -> None:
    store, path = exported(name)
    assert_same_model(store, path, SMALL_MAMBA[name], tmp_path)


def test_a_file_has_the_shapes_of_llama_cpp(exported: Exported) -> None:
    """Rates and skips have a row for each head, norms one for each group; the parts of a projection lie together."""
    _, path = exported("nemotron_h")
    shapes = {tensor.name: tuple(tensor.shape[::-1].tolist()) for tensor in gguf.GGUFReader(path).tensors}
    assert shapes["blk.0.ssm_in.weight"] == (128 + 192 + 4, 64)
    assert shapes["blk.0.ssm_conv1d.weight"] == (192, 4)
    assert shapes["blk.0.ssm_a"] == shapes["blk.0.ssm_d"] == (4, 1)
    assert shapes["blk.0.ssm_norm.weight"] == (2, 64)
    assert shapes["blk.1.ffn_up_exps.weight"] == (8, 32, 96)
    assert shapes["blk.1.ffn_latent_down.weight"] == (96, 64)
    assert "blk.1.ffn_gate_exps.weight" not in shapes


def test_a_file_of_jamba_has_the_shapes_of_llama_cpp(exported: Exported) -> None:
    """Rates have a row for each channel; what is made of the convolved channels lies in one matrix."""
    _, path = exported("jamba")
    shapes = {tensor.name: tuple(tensor.shape[::-1].tolist()) for tensor in gguf.GGUFReader(path).tensors}
    assert shapes["blk.0.ssm_in.weight"] == (256, 64)
    assert shapes["blk.0.ssm_conv1d.weight"] == (128, 3)
    assert shapes["blk.0.ssm_x.weight"] == (32 + 16 + 16, 128)
    assert shapes["blk.0.ssm_dt.weight"] == (128, 32)
    assert (shapes["blk.0.ssm_a"], shapes["blk.0.ssm_d"]) == ((128, 16), (128,))
    assert [shapes[f"blk.0.ssm_{part}_norm.weight"] for part in ("dt", "b", "c")] == [(32,), (16,), (16,)]
    assert shapes["blk.1.ffn_up_exps.weight"] == (8, 96, 64)
    assert shapes["blk.2.ffn_up.weight"] == (96, 64)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("jamba", {"mamba_conv_bias": False}, "no convolutions of Mamba-1 without a bias"),
        ("jamba", {"mamba_expand": 1}, "no layers of Mamba-1 but of twice the model's"),
        ("jamba", {"head_dim": 32}, "no heads that are not together as wide as the model"),
        ("jamba", {"attn_layer_period": 1, "attn_layer_offset": 0}, "no models but with layers of both Mamba-1 and"),
        ("nemotron_h", {"use_conv_bias": False}, "no convolutions of Mamba-2 without a bias"),
        ("nemotron_h", {"layers_block_type": ["moe", "full_attention"] * 2 + ["moe"]}, "no models without Mamba-2"),
        ("nemotron_h", {"layers_block_type": ["moe", "linear_attention"] * 2 + ["moe"]}, "no models without attention"),
        (
            "nemotron_h",
            {
                "layers_block_type": ["moe", "linear_attention", "full_attention", "mlp", "moe"],
                "intermediate_size": 32,
            },
            "no FFNs without experts",
        ),
        ("granitemoehybrid", {"mamba_expand": 1, "mamba_d_head": 16}, "no layers of Mamba-2 but of twice the model's"),
        ("granitemoehybrid", {"layer_types": ["full_attention"] * 3}, "no models without Mamba-2"),
    ],
    ids=str,
)
def test_what_llama_cpp_cannot_run_is_refused(name: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    """Before any weight is read: the store is planned only."""
    (tmp_path / "config.json").write_text(json.dumps(SMALL_MAMBA[name] | changes))
    store = forecast_store(str(tmp_path)).store
    with pytest.raises(StoreError, match=words):
        export_gguf(store, tmp_path / "model.gguf", name="test", tokenizer=False)
    assert not list(tmp_path.glob("model.gguf*"))


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("nemotron_h", {"attention.head_count_kv": [0, 0, 2, 0]}, "head_count_kv: expected a whole number for each"),
        ("nemotron_h", {"attention.head_count_kv": [0, 0, 2, 0, 4]}, "head_count_kv: expected one number, or 0"),
        ("nemotron_h", {"ssm.inner_size": 127}, "ssm.inner_size: expected a multiple of 4, the number of heads"),
        ("nemotron_h", {"expert_gating_func": 1}, "expert_gating_func: expected 2 .sigmoid., found 1"),
        ("granitemoehybrid", {"ssm.inner_size": 96}, "ssm.inner_size: expected a multiple of 4 heads and of the width"),
        ("jamba", {"ssm.inner_size": 96}, "ssm.inner_size: expected a multiple of the width, 64, found 96"),
        ("jamba", {"attention.head_count_kv": [0, 2, 2, 0, 2]}, "head_count_kv: expected attention in one of every"),
        ("granitemoehybrid", {"ssm.group_count": 3}, "ssm.time_step_rank is 4; expected a multiple of .*group_count"),
    ],
    ids=str,
)
def test_keys_that_contradict_the_architecture_are_refused_by_name(
    name: str, changes: dict[str, Any], words: str, exported: Exported, tmp_path: Path
) -> None:
    _, path = exported(name)
    architecture = {"nemotron_h": "nemotron_h_moe", "granitemoehybrid": "granitehybrid"}.get(name, name)
    renamed = {f"{architecture}.{key}": value for key, value in changes.items()}
    changed = rewritten(path, tmp_path / "changed.gguf", renamed)
    with pytest.raises(SourceError, match=words):
        GgufSource(changed)


def test_experts_with_gates_are_no_nemotron(exported: Exported, tmp_path: Path) -> None:
    """A tensor without a place in the family is told as left over."""
    _, path = exported("nemotron_h")
    reader = gguf.GGUFReader(path)
    changed = rewritten(path, tmp_path / "changed.gguf", {})
    data = changed.read_bytes()
    assert any(tensor.name == "blk.1.ffn_up_exps.weight" for tensor in reader.tensors)
    changed.write_bytes(data.replace(b"blk.1.ffn_down_exps.weight", b"blk.1.ffn_gate_exps.weight"))
    with pytest.raises(SourceError, match=r"experts\.0\.down_proj\.weight: missing"):
        convert_checkpoint(str(changed), tmp_path / "none", experts="keep", dense="keep")
