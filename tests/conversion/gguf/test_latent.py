"""GGUF files of models with latent attention: newer and older ones, what they leave out, and what cannot be one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from edgemoe.architectures import model_spec
from edgemoe.conversion.gguf.export import export_gguf
from edgemoe.conversion.gguf.expressible import check_expressible
from edgemoe.conversion.gguf.metadata import remarks
from edgemoe.conversion.gguf.source import GgufSource
from edgemoe.conversion.opening import open_source
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.errors import SourceError, StoreError
from edgemoe.kernels.blocks import Blocks, dequantise
from edgemoe.model.blocks import LatentAttention
from edgemoe.model.spec import ModelSpec
from edgemoe.store.reader import Store
from tests.architectures.published import DEEPSEEK_V2, DEEPSEEK_V3, MISTRAL_SMALL_4, MOONLIGHT_16B_A3B
from tests.conversion.gguf.test_source import CONFIGS, model_rows
from tests.support.checkpoints import read_tensors, write_checkpoint
from tests.support.gguf_files import expansion_of_heads, write_gguf
from tests.support.indexed_models import INDEXED, write_indexed
from tests.support.stores import store_weights

V2, V3, MISTRAL = CONFIGS["deepseek_v2"], CONFIGS["deepseek_v3"], CONFIGS["mistral4"]
OLDER = {"attention.key_length_mla": None, "attention.value_length_mla": None, "attention.head_count_kv": 4} | {
    "attention.key_length": 48,
    "attention.value_length": 24,
}
"""The heads that older files have: those of the keys and values that latents are expanded to."""


@pytest.fixture(scope="module", params=[V2, V3], ids=["deepseek_v2", "deepseek_v3"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("latent") / "checkpoint"
    write_checkpoint(folder, request.param, dtype="F32")
    return folder, request.param


def whole(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors with those of the expansion as older files have them: one, under its name in GGUF files."""
    renamed = {}
    for name, values in tensors.items():
        layer = name.split(".")[2] if ".layers." in name else ""
        renamed[f"blk.{layer}.attn_kv_b.weight" if "kv_b_proj" in name else name] = values
    return renamed


def parts(config: dict[str, Any], tensors: dict[str, np.ndarray], flat: bool) -> dict[str, np.ndarray]:
    """The two parts of the expansion that a file has; `flat`: the matrices of all heads in one of two dimensions."""
    found = {}
    for name, values in tensors.items():
        if "kv_b_proj" in name:
            found |= expansion_of_heads(config, f"blk.{name.split('.')[2]}.", values)
    return {name: values.reshape(-1, values.shape[-1]) if flat else values for name, values in found.items()}


@pytest.mark.parametrize("repeated", [False, True], ids=["whole alone", "beside its parts"])
def test_an_older_file_is_the_same_model(
    checkpoint: tuple[Path, dict[str, Any]], repeated: bool, tmp_path: Path
) -> None:
    folder, config = checkpoint
    tensors = read_tensors(folder)
    older = whole(tensors) | (parts(config, tensors, flat=True) if repeated else {})
    source = GgufSource(write_gguf(tmp_path / "m.gguf", config, older, metadata=OLDER))
    assert model_spec(source.config) == model_spec(config)
    expected = model_rows(open_source(str(folder)))
    found = model_rows(source)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize(("start", "stop"), [(0, 256), (0, 64), (3, 70), (63, 65), (200, 256)])
def test_any_rows_of_the_transposed_part_are_those_of_the_whole(
    checkpoint: tuple[Path, dict[str, Any]], start: int, stop: int
) -> None:
    folder, config = checkpoint
    source = open_source(str(folder))
    expected = np.concatenate(
        [
            head[: config["qk_nope_head_dim"]].T
            for head in np.split(read_tensors(folder)["model.layers.1.self_attn.kv_b_proj.weight"], 4)
        ]
    )
    rows = model_rows(source, start, stop)["layers.1.key_up"]
    np.testing.assert_array_equal(rows, expected[start:stop])


def test_blocks_of_the_parts_carry_over_and_those_of_the_whole_are_transposed_as_floats(
    checkpoint: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, config = checkpoint
    tensors, kinds = read_tensors(folder), {"_exps": "F32", ".": "Q8_0"}
    newer = GgufSource(write_gguf(tmp_path / "new.gguf", config, tensors, kinds=kinds))
    rows = model_rows(newer)
    assert isinstance(rows["layers.1.key_up"], Blocks)
    assert isinstance(rows["layers.1.value_up"], Blocks)
    path = write_gguf(tmp_path / "old.gguf", config, whole(tensors), metadata=OLDER, kinds=kinds)
    old = model_rows(GgufSource(path))
    assert isinstance(old["layers.1.value_up"], Blocks)
    stored = gguf.dequantize(
        next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.1.attn_kv_b.weight").data,
        gguf.GGMLQuantizationType.Q8_0,
    )
    turned = np.concatenate([head[: config["qk_nope_head_dim"]].T for head in np.split(stored, 4)])
    np.testing.assert_array_equal(old["layers.1.key_up"], turned)
    # In a store it has the format that was asked for; where the file's own is kept, floats, which nothing rounds.
    kept = Store.open(convert_checkpoint(str(path), tmp_path / "kept", dense="keep"))
    weights = store_weights(kept)
    np.testing.assert_array_equal(weights["layers.1.key_up"], turned)
    np.testing.assert_array_equal(weights["layers.1.value_up"], dequantise(old["layers.1.value_up"]))
    formats = {tensor.name: tensor.format for tensor in kept.manifest.dense}
    assert [formats[f"layers.1.{name}"].name for name in ("key_up", "value_up")] == ["f32", "q8"]


def spec_of(config: dict[str, Any], tensors: dict[str, np.ndarray], path: Path, **metadata: Any) -> ModelSpec:
    return model_spec(GgufSource(write_gguf(path, config, tensors, metadata=metadata)).config)


def test_a_file_without_a_gating_function_means_what_its_model_has(tmp_path: Path) -> None:
    """A bias for the choice is V3's; else it is softmax, which V2's files left out, but for GLM-4.7-Flash."""
    gating: dict[str, Any] = {"expert_gating_func": None}
    for name in ("deepseek_v2", "deepseek_v3"):
        write_checkpoint(tmp_path / name, CONFIGS[name], dtype="F32")
        tensors = read_tensors(tmp_path / name)
        assert spec_of(CONFIGS[name], tensors, tmp_path / f"{name}.gguf", **gating) == model_spec(CONFIGS[name])
    flash = V2 | {"num_hidden_layers": 47, "vocab_size": 154_880, "hidden_size": 4, "num_attention_heads": 1}
    flash |= {"num_key_value_heads": 1, "n_routed_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 4}
    write_checkpoint(tmp_path / "flash", flash, dtype="BF16")
    found = spec_of(flash, read_tensors(tmp_path / "flash"), tmp_path / "flash.gguf", **gating)
    assert found.layers[1].blocks[1].body.router.score == "sigmoid"


def test_a_file_of_v2_that_does_not_speak_of_groups_has_its_own(tmp_path: Path) -> None:
    large = V2 | {"n_routed_experts": 160, "num_hidden_layers": 2, "moe_intermediate_size": 32}
    write_checkpoint(tmp_path / "large", large, dtype="F32")
    found = spec_of(large, read_tensors(tmp_path / "large"), tmp_path / "large.gguf")
    router = found.layers[1].blocks[1].body.router
    assert (router.groups, router.kept_groups, router.group_best) == (8, 3, 1)


@pytest.mark.parametrize(
    ("config", "metadata", "message"),
    [
        (V3, {"expert_gating_func": 3}, r"expert_gating_func: expected 1 \(softmax\) or 2 \(sigmoid\), found 3"),
        (V3, {"expert_gating_func": 1, "expert_weights_norm": True}, "weights_norm: expected false with softmax"),
        (V3, {"attention.key_length_mla": 16}, "key_length_mla: expected more than 16, the rotated channels, found 16"),
        (V3, {"attention.kv_lora_rank": None}, "kv_lora_rank: expected a whole number above 0, found none"),
        (V3, {"attention.kv_lora_rank": 1 << 19}, r"4 heads make \d+ values"),
        (V3, {"attention.temperature_scale": 0.1}, "temperature_scale: expected no such key, found 0.1"),
        (MISTRAL, {"expert_gating_func": 2}, r"expert_gating_func: expected 1 \(softmax\), found 2"),
        (MISTRAL, {"attention.temperature_length": 17}, "temperature_length: expected 16, the context before it was"),
        (MISTRAL, {"rope.scaling.type": "none"}, "rope.scaling.type: expected yarn, found 'none'"),
    ],
)
def test_files_of_other_models_are_refused_by_name(
    config: dict[str, Any], metadata: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "checkpoint", config, dtype="F32")
    path = write_gguf(tmp_path / "m.gguf", config, read_tensors(tmp_path / "checkpoint"), metadata=metadata)
    with pytest.raises(SourceError, match=message):
        GgufSource(path)


def test_a_file_that_does_not_say_how_queries_grow_is_told(tmp_path: Path) -> None:
    """llama.cpp's converter leaves it out, and its graph then has queries that stay as they are."""
    write_checkpoint(tmp_path / "checkpoint", MISTRAL, dtype="F32")
    tensors = read_tensors(tmp_path / "checkpoint")
    assert not GgufSource(write_gguf(tmp_path / "whole.gguf", MISTRAL, tensors)).notices()
    without = dict.fromkeys(("attention.temperature_scale", "attention.temperature_length"))
    source = GgufSource(write_gguf(tmp_path / "m.gguf", MISTRAL, tensors, metadata=without))
    assert "answers are worse beyond the first 16 tokens" in "".join(source.notices())
    attention = model_spec(source.config).layers[0].blocks[0].body
    assert isinstance(attention, LatentAttention)
    assert attention.temperature is None


@pytest.mark.parametrize("family", INDEXED)
def test_a_file_with_an_indexer_is_the_model_as_far_as_it_chooses_all(family: str, tmp_path: Path) -> None:
    """The layer that predicts further tokens is left out too."""
    config = INDEXED[family]
    metadata = {"attention.indexer.types": [True, False, True], "block_count": 4, "nextn_predict_layers": 1}
    further = {"blk.3.nextn.eh_proj.weight": np.zeros((64, 128)), "blk.3.attn_norm.weight": np.zeros(64)}
    source = GgufSource(write_indexed(tmp_path / "a", config, metadata=metadata, others=further))
    spec = model_spec(source.config)
    assert spec == model_spec(config)
    assert (spec.max_positions, spec.positions_limit) == (96, "indexer")
    store = convert_checkpoint(str(tmp_path / "a" / "model.gguf"), tmp_path / "store", experts="f32", dense="f32")
    weights = store_weights(Store.open(store))
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "a" / "model.gguf").tensors}
    np.testing.assert_array_equal(weights["layers.2.query_latent"], tensors["blk.2.attn_q_a.weight"])
    assert not any("indexer" in name for name in weights)
    told: list[str] = []
    exported = export_gguf(Store.open(store), tmp_path / "m.gguf", name="x", tokenizer=False, notice=told.append)
    (text,) = told
    assert text.startswith("The file holds the model up to 96 tokens, as many as its indexer chooses")
    fields = gguf.GGUFReader(exported).fields
    assert fields["general.architecture"].contents() == "deepseek2"
    assert fields["deepseek2.context_length"].contents() == 96
    assert not any("indexer" in name for name in fields)
    back = model_spec(GgufSource(exported).config)
    assert replace(back, family=family, positions_limit="indexer") == spec
    again = convert_checkpoint(str(exported), tmp_path / "again", experts="f32", dense="f32")
    for name, values in store_weights(Store.open(again)).items():
        np.testing.assert_array_equal(values, weights[name], err_msg=name)
    with pytest.raises(SourceError, match=r"expert_gating_func: expected 2 \(sigmoid\), found 1"):
        GgufSource(write_indexed(tmp_path / "b", config, metadata={"expert_gating_func": 1}))


def changed(spec: ModelSpec, **changes: Any) -> ModelSpec:
    """The same model with other latent attention in all layers."""
    layers = []
    for layer in spec.layers:
        attention, ffn = layer.blocks
        layers.append(replace(layer, blocks=(replace(attention, body=replace(attention.body, **changes)), ffn)))
    return replace(spec, layers=tuple(layers))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (model_spec(DEEPSEEK_V2), "groups of experts that their best one is worth"),
        (model_spec(DEEPSEEK_V3 | {"rope_interleave": False}), "rotation of halves"),
        (
            model_spec(DEEPSEEK_V3 | {"rope_scaling": {"type": "yarn", "factor": 4}}),
            "YaRN with a factor of the rotation",
        ),
        (model_spec(DEEPSEEK_V3 | {"rms_norm_eps": 1e-2}), "epsilon of 1e-06 for norms of latents beside 0.01"),
        (model_spec(DEEPSEEK_V3 | {"n_shared_experts": 0}), "shared experts but ungated ones"),
        (model_spec(DEEPSEEK_V3 | {"first_k_dense_replace": 61}), "models without routed experts"),
    ],
)
def test_models_that_llama_cpp_has_not_are_refused_by_name(spec: ModelSpec, message: str) -> None:
    with pytest.raises(StoreError, match=f"llama.cpp's deepseek2 has no {message}"):
        check_expressible(spec)


def test_an_epsilon_that_llama_cpp_does_not_have_apart_is_told() -> None:
    spec = model_spec(MOONLIGHT_16B_A3B)
    check_expressible(spec)
    (text,) = remarks(spec)
    assert "1e-05, for those of latents too, whose own is 1e-06" in text
    assert not list(remarks(model_spec(DEEPSEEK_V3)))


def test_the_published_model_with_queries_that_grow_can_be_a_file() -> None:
    spec = model_spec(MISTRAL_SMALL_4)
    check_expressible(spec)
    assert not list(remarks(spec))


def test_a_scale_that_no_key_says_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", V2, dtype="F32", side_files={"README.md": b""})
    store = Store.open(convert_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "store"))
    other = changed(model_spec(V2), scale=0.3)
    store = Store(store.path, replace(store.manifest, model=other.to_json()))
    with pytest.raises(StoreError, match="this model cannot be a GGUF"):
        export_gguf(store, tmp_path / "m.gguf", name="x")
    assert not (tmp_path / "m.gguf").exists()
