"""A store as a GGUF: what other programs read there is what the store holds, and it comes back to the bit."""

from __future__ import annotations

import errno
import json
import re
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import edgemoe
from edgemoe.architectures import model_spec
from edgemoe.conversion import places
from edgemoe.conversion.forecast import forecast_store
from edgemoe.conversion.gguf import export as gguf_export
from edgemoe.conversion.gguf.export import export_gguf
from edgemoe.conversion.gguf.expressible import check_expressible
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.conversion.synthetic import synthesise
from edgemoe.errors import StoreError, UsageError
from edgemoe.kernels.formats import FORMATS
from edgemoe.kernels.operations import Activation
from edgemoe.model.blocks import Attention, Moe, RouterSpec, SharedExpert
from edgemoe.model.rope import RopeSpec
from edgemoe.model.spec import Block, LayerSpec, Residual
from edgemoe.store.reader import Store
from tests.conversion.gguf.test_source import CONFIGS
from tests.support.checkpoints import read_tensors, write_checkpoint
from tests.support.every_case import every_case
from tests.support.gguf_files import gguf_tensors
from tests.support.pairs import some
from tests.support.stores import store_weights

MULTI_HEAD = {"num_key_value_heads": 4}
EXPRESSIBLE = CONFIGS | {
    "dots1": CONFIGS["dots1"] | MULTI_HEAD,
    "ernie4_5_moe": CONFIGS["ernie4_5_moe"] | {"moe_layer_interval": 1},
    "olmoe": CONFIGS["olmoe"] | MULTI_HEAD,
    "one expert": CONFIGS["mixtral"] | {"num_local_experts": 1, "num_experts_per_tok": 1},
    "llama3 positions": CONFIGS["llama"]
    | {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    },
    "linear positions": CONFIGS["llama"] | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "yarn positions": CONFIGS["qwen3_moe"]
    | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
}


def make_store(folder: Path, config: dict[str, Any], experts: str = "q4", dense: str = "q8") -> Store:
    """A store of random weights without a tokenizer."""
    write_checkpoint(folder / "checkpoint", config, dtype="F32", side_files={"README.md": b""})
    return Store.open(convert_checkpoint(str(folder / "checkpoint"), folder / "store", experts=experts, dense=dense))


def weights_files(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.glob("*.safetensors")}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(synthesise("tiny", tmp_path_factory.mktemp("synth") / "tiny"))


@pytest.mark.parametrize("name", some(EXPRESSIBLE))
def test_names_shapes_and_row_orders_are_those_that_converters_write(name: str, tmp_path: Path) -> None:
    store = make_store(tmp_path, EXPRESSIBLE[name], "f32", "f32")
    path = export_gguf(store, tmp_path / "m.gguf", name="x")
    found = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    divisors = found.pop("rope_freqs.weight", None)
    expected = gguf_tensors(EXPRESSIBLE[name], read_tensors(tmp_path / "checkpoint"))
    assert found.keys() == expected.keys()
    for tensor, values in expected.items():
        np.testing.assert_array_equal(found[tensor], values, err_msg=tensor)
    assert (divisors is not None) == (name == "llama3 positions")


@pytest.mark.parametrize(
    "name",
    # What is written is what converters write, which is read as the same model: a few show both at once.
    some(EXPRESSIBLE),
)
def test_the_store_comes_back_from_the_file_to_the_bit(name: str, tmp_path: Path) -> None:
    formats = list(FORMATS)
    number = list(EXPRESSIBLE).index(name)
    options = {"experts": formats[number % 6], "dense": formats[(number * 2 + 1) % 6]}
    store = make_store(tmp_path, EXPRESSIBLE[name], **options)
    path = export_gguf(store, tmp_path / "m.gguf", name="x")
    back = Store.open(convert_checkpoint(str(path), tmp_path / "back", **options))
    assert back.model == store.model
    assert weights_files(back.path) == weights_files(store.path)


@pytest.mark.parametrize("dense", ["q4", "q4m", "q8", "m4"])
def test_blocks_are_what_the_formats_own_package_reads(dense: str, tmp_path: Path) -> None:
    experts = {"q4": "q4m", "q4m": "q8", "q8": "m4", "m4": "q4"}[dense]
    store = make_store(tmp_path, CONFIGS["qwen2_moe"], experts, dense)
    reader = gguf.GGUFReader(export_gguf(store, tmp_path / "m.gguf", name="x"))
    found = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    weights = store_weights(store)
    np.testing.assert_array_equal(found["token_embd.weight"], weights["embedding"])
    np.testing.assert_array_equal(found["blk.1.attn_q.weight"], weights["layers.1.query"])
    np.testing.assert_array_equal(found["blk.0.ffn_gate_inp_shexp.weight"], weights["layers.0.shared_gate"][0])
    for part in ("gate", "up", "down"):
        stacked = [weights[f"layers.1.experts.{expert}.{part}"] for expert in range(5)]
        np.testing.assert_array_equal(found[f"blk.1.ffn_{part}_exps.weight"], np.stack(stacked))


@pytest.mark.slow
def test_random_weights_give_the_same_logits_after_the_way_there_and_back(tiny: Store, tmp_path: Path) -> None:
    path = export_gguf(tiny, tmp_path / "tiny.gguf", name="tiny")
    back = convert_checkpoint(str(path), tmp_path / "back")
    assert weights_files(back) == weights_files(tiny.path)
    ids = [5, 17, 400, 3]
    with edgemoe.load(tiny.path, threads=1) as model, edgemoe.load(back, threads=1) as other:
        np.testing.assert_array_equal(model.logits(ids), other.logits(ids))
    config = json.loads((back / "config.json").read_text())
    assert (config["norm_topk_prob"], config["num_experts"]) == (False, 16)
    assert not (back / "tokenizer.json").exists()
    fields = gguf.GGUFReader(path).fields
    assert fields["tokenizer.ggml.model"].contents() == "none"
    assert fields["olmoe.vocab_size"].contents() == 512
    assert fields["general.name"].contents() == "tiny"


@pytest.mark.slow
def test_memory_depends_on_no_tensor(tiny: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "SLICE_WEIGHTS", 1 << 12)
    export_gguf(tiny, tmp_path / "first.gguf", name="x")
    tracemalloc.start()
    path = export_gguf(tiny, tmp_path / "m.gguf", name="x")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < path.stat().st_size / 4
    monkeypatch.undo()
    assert path.read_bytes() == export_gguf(tiny, tmp_path / "n.gguf", name="x").read_bytes()


def test_progress_grows_to_the_whole(tiny: Store, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    export_gguf(tiny, tmp_path / "m.gguf", name="x", progress=lambda *moment: seen.append(moment))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


@every_case(
    ("config", "what"),
    [
        (CONFIGS["olmoe"], "grouped-query attention"),
        (CONFIGS["olmoe"] | MULTI_HEAD | {"norm_topk_prob": True}, "experts whose weights are renormalised"),
        (CONFIGS["qwen3_moe"] | {"norm_topk_prob": False}, "experts whose weights are not renormalised"),
        (CONFIGS["qwen3_moe"] | {"attention_bias": True}, "biases on query, key and value"),
        (CONFIGS["qwen2_moe"] | {"mlp_only_layers": [1]}, "layers of several kinds"),
        (CONFIGS["glm4_moe"] | {"n_shared_experts": 0}, "shared experts but ungated ones"),
        (CONFIGS["glm4_moe"] | {"first_k_dense_replace": 3}, "dense layers"),
        (CONFIGS["bailing_moe_v2"] | {"use_qkv_bias": True}, "biases on query, key and value"),
        (CONFIGS["bailing_moe_v2"] | {"head_dim": 24}, "heads that are not together as wide as the model"),
        (CONFIGS["deepseek"] | {"norm_topk_prob": True}, "experts whose weights are renormalised"),
        (CONFIGS["deepseek"] | {"moe_layer_freq": 2, "num_hidden_layers": 4}, "layers of several kinds"),
        (CONFIGS["deepseek"] | {"n_shared_experts": None}, "shared experts but ungated ones"),
        (CONFIGS["dots1"], "grouped-query attention"),
        (CONFIGS["dots1"] | MULTI_HEAD | {"sliding_window": 32, "max_window_layers": 1}, "attention within a window"),
        (CONFIGS["dots1"] | MULTI_HEAD | {"tie_word_embeddings": True}, "head that is the embedding"),
        (CONFIGS["ernie4_5_moe"], "layers of several kinds"),
        (
            CONFIGS["ernie4_5_moe"] | {"moe_layer_interval": 1, "moe_norm_min": 0.1},
            "routers but by softmax with a bias for the choice",
        ),
        (CONFIGS["ernie4_5_moe"] | {"moe_layer_start_index": 0, "moe_layer_end_index": 2}, "layers of several kinds"),
        (CONFIGS["hunyuan_v1_moe"] | {"moe_topk": [2, 3]}, "layers of several kinds"),
        (CONFIGS["hunyuan_v1_moe"] | {"attention_bias": True}, "bias on the attention's output"),
        (CONFIGS["minimax_m2"] | {"tie_word_embeddings": True}, "head that is the embedding"),
        (CONFIGS["olmoe"] | MULTI_HEAD | {"clip_qkv": 2.0}, "limits on query, key and value"),
        (CONFIGS["qwen2_moe"] | {"mlp_only_layers": [0, 1]}, "dense layers"),
        (CONFIGS["lfm2_moe"] | {"conv_bias": True}, "biases on convolutions"),
        (CONFIGS["lfm2_moe"] | {"layer_types": ["conv"] * 4}, "models without attention"),
        (
            CONFIGS["qwen3_5_moe"] | {"layer_types": ["full_attention"] * 4},
            "models without layers of Gated DeltaNet",
        ),
        (
            CONFIGS["qwen3_next"] | {"linear_value_head_dim": 16},
            "keys of another width than values in layers of Gated DeltaNet",
        ),
        (
            CONFIGS["qwen3_next"]
            | {"layer_types": ["linear_attention", "full_attention", "full_attention", "linear_attention"]},
            "attention but in every so-manieth layer",
        ),
        (CONFIGS["qwen3_next"] | {"mlp_only_layers": [1]}, "layers of several kinds"),
        (CONFIGS["qwen3_next"] | {"norm_topk_prob": False}, "experts whose weights are not renormalised"),
        (CONFIGS["lfm2_moe"] | {"layer_types": ["full_attention"] * 4}, "models without convolutions"),
        *(
            (CONFIGS["lfm2_moe"] | changes, "routers but by sigmoid .* normalised and not scaled")
            for changes in ({"routed_scaling_factor": 2.0}, {"norm_topk_prob": False}, {"use_expert_bias": False})
        ),
        (CONFIGS["qwen2_moe"] | {"tie_word_embeddings": True}, "head that is the embedding"),
        (CONFIGS["qwen2_moe"] | {"head_dim": 32}, "heads that are not together as wide as the model"),
        (
            CONFIGS["llama"] | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0}},
            "YaRN with unusual parameters",
        ),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(config: dict[str, Any], what: str, tmp_path: Path) -> None:
    """Before any weight is read: the store is planned only."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    store = forecast_store(str(tmp_path)).store
    with pytest.raises(StoreError, match=what):
        export_gguf(store, tmp_path / "m.gguf", name="x")
    assert not list(tmp_path.glob("m.gguf*"))


@every_case(
    ("name", "changes", "what"),
    [
        ("glm4_moe", {"score": "softmax", "epsilon": 0.0}, "routers but by sigmoid with a bias for the choice"),
        ("glm4_moe", {"choice_bias": False}, "routers but by sigmoid with a bias for the choice"),
        ("glm4_moe", {"kept_groups": 3}, "groups of experts that are all kept"),
        ("qwen3_moe", {"score": "sigmoid"}, "routers but by softmax of the logits"),
        ("mixtral", {"scale": 2.0}, "routers but by softmax of the logits"),
    ],
)
def test_routers_that_an_architecture_does_not_have_are_refused(name: str, changes: dict[str, Any], what: str) -> None:
    spec = model_spec(EXPRESSIBLE[name])
    check_expressible(spec)
    last = spec.layers[-1]
    attention, moe = last.blocks
    assert isinstance(moe.body, Moe)
    body = replace(moe.body, router=replace(moe.body.router, **changes))
    altered = LayerSpec((attention, replace(moe, body=body)))
    layers = tuple(altered if layer == last else layer for layer in spec.layers)
    with pytest.raises(StoreError, match=what):
        check_expressible(replace(spec, layers=layers))


CLAMPED = Activation("clamped_silu", 1.702, 7.0, 1.0)


@every_case(
    ("name", "attention", "moe", "what"),
    [
        ("qwen3_moe", {"window": 64}, {}, "qwen3moe has no attention within a window"),
        ("qwen3_moe", {"sinks": True}, {}, "sinks of attention"),
        ("qwen3_moe", {"value_dim": 16}, {}, "values of another width than keys"),
        ("gpt_oss", {"value_dim": 16}, {}, "values of another width than keys"),
        ("qwen3_moe", {}, {"activation": CLAMPED}, "activation but silu"),
        ("mixtral", {}, {"bias": True}, "biases in FFNs"),
        ("glm4_moe", {}, {"shared": SharedExpert(64, bias=True)}, "biases in FFNs"),
        ("glm4_moe", {}, {"shared": SharedExpert(64, activation=CLAMPED)}, "activation but silu"),
        ("qwen3_moe", {"qk_norm": "none"}, {}, "qwen3moe has no attention without norms of queries and keys"),
        ("glm4_moe", {"qk_norm": "full"}, {}, "glm4moe has no norms of whole queries and keys"),
        ("mixtral", {"qk_norm": "head"}, {}, "llama has no norms of each head's queries and keys"),
        ("qwen3_moe", {"rope": None}, {}, "qwen3moe has no attention without rotary positions"),
        ("qwen3_moe", {"norm_after_rope": True}, {}, "norms of queries and keys after the rotation"),
        ("hunyuan_v1_moe", {"norm_after_rope": False}, {}, "norms of queries and keys before the rotation"),
        ("qwen3_moe", {"rope": RopeSpec(1e4, 32, pairing="neighbours")}, {}, "qwen3moe has no rotation of neighbours"),
        ("ernie4_5_moe", {"rope": RopeSpec(1e4, 16)}, {}, "rotation of halves"),
        ("hunyuan_v1_moe", {}, {"shared": SharedExpert(192)}, "shared experts of another width"),
        ("hunyuan_v1_moe", {}, {"shared": None}, "shared experts but ungated ones"),
        ("ernie4_5_moe", {}, {"shared": SharedExpert(40)}, "shared experts but ungated ones"),
        (
            "hy_v3",
            {},
            {"router": RouterSpec(False, score="sigmoid", choice_bias=True)},
            "groups of experts, or weights",
        ),
        ("gpt_oss", {"sinks": False}, {}, "gpt-oss has no attention without sinks"),
        ("gpt_oss", {"qkv_bias": False}, {}, "attention without biases"),
        ("gpt_oss", {"output_bias": False}, {}, "attention without biases"),
        ("gpt_oss", {"window": 0}, {}, "windows but one for every second layer"),
        ("gpt_oss", {"window": 37}, {}, "windows but one for every second layer"),
        ("gpt_oss", {}, {"bias": False}, "FFNs without biases"),
        (
            "gpt_oss",
            {},
            {"activation": replace(CLAMPED, limit=5.0)},
            "activation but clamped_silu of 1.702 and limit 7",
        ),
        ("gpt_oss", {}, {"activation": Activation()}, "activation but clamped_silu of 1.702 and limit 7"),
    ],
)
def test_attention_and_experts_that_an_architecture_does_not_have_are_refused(
    name: str, attention: dict[str, Any], moe: dict[str, Any], what: str
) -> None:
    spec = model_spec(EXPRESSIBLE[name])
    check_expressible(spec)

    def altered(layer: LayerSpec) -> LayerSpec:
        first, last = layer.blocks
        changed = replace(first, body=replace(first.body, **attention))
        return LayerSpec((changed, replace(last, body=replace(last.body, **moe)) if layer.routed else last))

    with pytest.raises(StoreError, match=what):
        check_expressible(replace(spec, layers=tuple(map(altered, spec.layers))))


@every_case(
    "changes",
    [
        {"parallel": True},
        {"post_norm": True},
        {"input_norm": False},
        {"prefix": "second."},
        {"residual": Residual("normed")},
        {"residual": Residual(keep=True)},
    ],
)
def test_blocks_that_join_the_stream_in_other_ways_are_refused(changes: dict[str, Any]) -> None:
    spec = model_spec(EXPRESSIBLE["qwen3_moe"])
    attention, moe = spec.layers[0].blocks
    layer = LayerSpec((attention, replace(moe, **changes)))
    with pytest.raises(
        StoreError, match="qwen3moe has no layers but of attention, a convolution or Gated DeltaNet, then an FFN"
    ):
        check_expressible(replace(spec, layers=(layer,)))


@every_case("bodies", [(), (0,), (1,), (1, 0), (0, 0), (0, 1, 1)])
def test_layers_of_other_blocks_are_refused(bodies: tuple[int, ...]) -> None:
    spec = model_spec(EXPRESSIBLE["qwen3_moe"])
    layer = LayerSpec(tuple(spec.layers[0].blocks[number] for number in bodies))
    with pytest.raises(
        StoreError, match="has no layers but of attention, a convolution or Gated DeltaNet, then an FFN"
    ):
        check_expressible(replace(spec, layers=(layer,)))


def test_a_router_of_gpt_oss_has_biases() -> None:
    spec = model_spec(EXPRESSIBLE["gpt_oss"])
    attention, moe = spec.layers[1].blocks
    other = LayerSpec((attention, replace(moe, body=replace(moe.body, router=RouterSpec(True)))))
    with pytest.raises(StoreError, match="layers of several kinds"):
        check_expressible(replace(spec, layers=(spec.layers[0], other, spec.layers[2])))
    sliding = LayerSpec((spec.layers[0].blocks[0], other.blocks[1]))
    with pytest.raises(StoreError, match="routers but by softmax of the logits, which have biases"):
        check_expressible(replace(spec, layers=(sliding, other, sliding)))


def test_a_difference_that_no_key_could_say_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    export_gguf(make_store(tmp_path, CONFIGS["gpt_oss"]), tmp_path / "m.gguf", name="x", notice=told.append)
    assert len(told) == 1
    assert "rounds the ends of YaRN's ramp" in told[0]


def test_layers_of_glm_are_dense_at_the_beginning_only() -> None:
    spec = model_spec(EXPRESSIBLE["glm4_moe"])
    dense, sparse, _ = spec.layers
    with pytest.raises(StoreError, match="layers of several kinds"):
        check_expressible(replace(spec, layers=(dense, sparse, dense, sparse)))
    attention = dense.blocks[0].body
    assert isinstance(attention, Attention)
    other = LayerSpec((Block(replace(attention, qk_norm="none")), dense.blocks[1]))
    with pytest.raises(StoreError, match="layers of several kinds"):
        check_expressible(replace(spec, layers=(other, sparse)))


def test_rotation_of_a_part_of_each_head_is_refused_where_there_is_no_key_for_it() -> None:
    spec = model_spec(EXPRESSIBLE["qwen3_moe"])
    attention, moe = spec.layers[0].blocks
    assert isinstance(attention.body, Attention)
    rope = replace(attention.body.rope, rotated=16)
    layer = LayerSpec((Block(replace(attention.body, rope=rope)), moe))
    with pytest.raises(StoreError, match="rotation of a part of each head"):
        check_expressible(replace(spec, layers=(layer,)))


LLAMA3 = EXPRESSIBLE["llama3 positions"]["rope_scaling"]


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({}, None),
        ({"rope_scaling": LLAMA3}, None),
        # The factors in a file tell these three numbers only where they are the usual ones.
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 3.0}}, r"cannot convert this file back \(rope_freqs\.weight: "),
        ({"rope_theta": 12345.678901}, "would convert this file to another model"),  # not a float32
    ],
)
def test_a_file_that_would_not_come_back_is_told_before_its_weights_are_written(
    config: dict[str, Any], what: str | None, tmp_path: Path
) -> None:
    store = make_store(tmp_path, CONFIGS["llama"] | config)
    events: list[str] = []
    path = export_gguf(
        store, tmp_path / "m.gguf", name="x", progress=lambda *moment: events.append("-"), notice=events.append
    )
    told = [event for event in events if event != "-"]
    assert events[: len(told)] == told
    assert len(told) == (what is not None)
    if what is not None:
        assert re.search(what, told[0])
        assert str(path.parent) not in told[0]
    # What was looked at has left no trace in the file.
    assert path.read_bytes() == export_gguf(store, tmp_path / "n.gguf", name="x").read_bytes()
    assert gguf.GGUFReader(path).tensors


def test_columns_that_fill_no_block_are_refused_by_name(tmp_path: Path) -> None:
    store = make_store(tmp_path, CONFIGS["mixtral"] | {"intermediate_size": 72})
    with pytest.raises(StoreError, match=r"layers\.0\.experts\.0\.down: expected a multiple of 32 .* found 72"):
        export_gguf(store, tmp_path / "m.gguf", name="x")


def test_what_stands_at_the_destination_is_not_lost(tiny: Store, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"mine")
    with pytest.raises(UsageError, match="a file of that name exists") as caught:
        export_gguf(tiny, path, name="x")
    assert "`force`" in caught.value.hint
    assert path.read_bytes() == b"mine"
    export_gguf(tiny, path, name="x", force=True)
    assert path.read_bytes()[:4] == b"GGUF"
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(UsageError, match="a folder of that name exists"):
        export_gguf(tiny, tmp_path / "folder.gguf", name="x", force=True)
    for name in ("model.bin", "gguf", "a\0.gguf"):
        with pytest.raises(UsageError, match=r"expected a name that ends in \.gguf"):
            export_gguf(tiny, tmp_path / name, name="x")
    with pytest.raises(StoreError, match="cannot be written"):
        export_gguf(tiny, tmp_path / "missing" / "m.gguf", name="x")


@pytest.mark.parametrize(
    ("call", "problem", "raised", "message"),
    [
        ("fsync", OSError(errno.ENOSPC, "No space left on device"), StoreError, r"m\.gguf: the disk is full"),
        ("fsync", OSError(errno.EIO, "Input/output error"), StoreError, r"m\.gguf: cannot be written \(Input/output"),
        ("pread", OSError(errno.EIO, "Input/output error"), StoreError, r"safetensors: cannot be read \(Input/output"),
        ("pread", KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_a_file_that_is_not_finished_is_not_there(
    tiny: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    problem: BaseException,
    raised: type[BaseException],
    message: str | None,
) -> None:
    def fail(*arguments: object) -> None:
        raise problem

    monkeypatch.setattr(gguf_export.os, call, fail)
    with pytest.raises(raised, match=message):
        export_gguf(tiny, tmp_path / "m.gguf", name="x")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_told_before_anything_is_written(
    tiny: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = gguf_export.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(gguf_export.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StoreError, match=r"it takes 0\.01 GB, and 0\.00 GB are free"):
        export_gguf(tiny, tmp_path / "m.gguf", name="x")
    assert list(tmp_path.iterdir()) == []


def test_a_store_cut_short_meanwhile_is_told(tmp_path: Path) -> None:
    store = make_store(tmp_path, CONFIGS["mixtral"])
    path = store.path / "experts-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-20_000])
    with pytest.raises(StoreError, match=r"expected \d+ bytes at \d+, found \d+"):
        export_gguf(store, tmp_path / "m.gguf", name="x")
    assert not list(tmp_path.glob("m.gguf*"))


@pytest.mark.parametrize("family", ["x", "flex_olmo"])
def test_a_family_that_llama_cpp_does_not_have_is_refused(tiny: Store, tmp_path: Path, family: str) -> None:
    model = {**tiny.model, "family": family}
    other = Store(tiny.path, tiny.manifest.__class__(**{**vars(tiny.manifest), "model": model}))
    with pytest.raises(
        StoreError, match=f"expected a family that edgemoe writes for llama.cpp, one of .*glm4_moe, .*; found {family}"
    ):
        export_gguf(other, tmp_path / "m.gguf", name="x")
