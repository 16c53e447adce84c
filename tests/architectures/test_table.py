"""The tables of tensors: a checkpoint holds each tensor once, in its shape, and nothing else."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from edgemoe.architectures import FAMILIES, SourceSlice, model_spec, resolve, unused_tensors
from edgemoe.architectures.resolution import resolve_tensors
from edgemoe.architectures.table import Runs
from edgemoe.architectures.unused import FURTHER_TOKENS, TIED_HEAD
from edgemoe.errors import SourceError
from tests.architectures.harness import load_checkpoint
from tests.architectures.published import GRANITE_1B_A400M, MIXTRAL_8X7B, OLMOE_1B_7B, QWEN3_30B_A3B
from tests.golden.cases import CASES
from tests.support.every_case import every_case

LEFT_OUT = re.compile(
    r"visual|vision|multi_modal|mm_projector|\.indexer\.(?!index_qk_proj|[qk]_layernorm)|layer_multipliers|ngram_heads_"
    r"|slope_rate|(query|key|diagonal)_decay"
)
LEFT_OUT_OF = {
    "deepseek_v4": re.compile("(?!)"),  # its indexer is run
    "deepseek_v4_fused": re.compile("(?!)"),
    "longcat_flash": re.compile(r"experts\.(8|9|1\d)\."),
}
"""The same of models that leave out something else: choices of no expert."""
GOLDEN = Path(__file__).parent.parent / "golden"


@functools.cache
def checkpoint(name: str):
    """Config and shapes of a golden checkpoint."""
    config, tensors = load_checkpoint(GOLDEN / name)
    return config, {tensor: values.shape for tensor, values in tensors.items()}


def refusal(config, shapes) -> str:
    with pytest.raises(SourceError) as caught:
        resolve(config, shapes)
    assert caught.value.hint
    return caught.value.message


@every_case("name", CASES)
def test_every_element_of_a_checkpoint_is_used_exactly_once(name):
    config, shapes = checkpoint(name)
    places = resolve(config, shapes)
    wanted = model_spec(config).tensors()
    assert list(places) == list(wanted)
    assert {name: place.rows for name, place in places.items()} == {name: shape[0] for name, shape in wanted.items()}
    taken = [
        (place.tensor, place.index, row)
        for place in places.values()
        for run in place.places(0, place.row_stop if place.whole_rows else place.rows)
        for row in run
    ]
    assert len(taken) == len(set(taken))
    held, unused = 0, unused_tensors(config, shapes)
    assert {tensor for tensor in shapes if LEFT_OUT_OF.get(name, LEFT_OUT).search(tensor)} == unused.keys()
    for tensor, shape in shapes.items():
        if tensor in unused:
            continue
        one = next(place for place in places.values() if place.tensor == tensor)
        experts, own = (1, shape) if one.index is None else (shape[0], shape[1:])
        if one.height:
            experts, own = shape[0] // one.height, (one.height, shape[1])
        if one.whole_rows:
            held += math.prod(shape) // one.whole_rows
            continue
        held += experts * (math.prod(own) if len(own) > 2 or one.as_vector else own[-1 if one.transposed else 0])
    assert len(taken) == held


def assert_missed_and_held_to_its_shape(name: str, tensors: Iterable[str], other_dimensions: bool) -> None:
    """`other_dimensions`: whether a tensor of one dimension more is tried too."""
    config, shapes = checkpoint(name)
    spec, table = model_spec(config), FAMILIES[config["model_type"]].TENSORS

    def refusal(held) -> str:
        with pytest.raises(SourceError) as caught:
            resolve_tensors(spec, table, held)  # `resolve` would read the config each time
        assert caught.value.hint
        return caught.value.message

    left_out = LEFT_OUT_OF.get(name, LEFT_OUT)
    alike = Counter(kind(tensor) for tensor in shapes if not left_out.search(tensor))
    for tensor in tensors:
        shape = shapes[tensor]
        without = {other: s for other, s in shapes.items() if other != tensor}
        # Of a row that only one layer has, nothing says in which layout it should have been.
        assert f"{tensor}: missing" in refusal(without) or alike[kind(tensor)] == 1, tensor
        longer = (shape[0] + 1, *shape[1:])
        message = refusal(shapes | {tensor: longer})
        assert message.startswith(f"{tensor}: expected (")
        assert f"found {longer}" in message
        assert str(shape) in message
        if other_dimensions:
            assert f"found {(*shape, 1)}" in refusal(shapes | {tensor: (*shape, 1)}), tensor


def kind(tensor: str) -> str:
    """The name without the numbers of layer and expert."""
    return re.sub(r"\.\d+\.", ".N.", tensor)


def tensors_tried(name: str) -> list[str]:
    """All tensors that are used, those of two experts of each layer, which say as much as seventy."""
    repeated, left_out = re.compile(r"experts\.([2-9]|\d\d)\."), LEFT_OUT_OF.get(name, LEFT_OUT)
    return [tensor for tensor in checkpoint(name)[1] if not repeated.search(tensor) and not left_out.search(tensor)]


@every_case("name", ["mixtral", "gpt_oss", "qwen3_next", "nemotron_h", "dbrx"])
def test_a_tensor_of_each_kind_is_missed_and_held_to_its_shape(name):
    """The last layer and expert that has one, in a few families with tables of unlike forms."""
    of_each_kind = {kind(tensor): tensor for tensor in tensors_tried(name)}.values()
    assert_missed_and_held_to_its_shape(name, of_each_kind, other_dimensions=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_each_tensor_of_a_checkpoint_is_missed_and_held_to_its_shape(name):
    tensors = tensors_tried(name)
    of_each_kind = {kind(tensor): tensor for tensor in tensors}.values()  # a line gives them one number of dimensions
    assert_missed_and_held_to_its_shape(name, of_each_kind, other_dimensions=True)
    assert_missed_and_held_to_its_shape(name, [*{*tensors} - {*of_each_kind}], other_dimensions=False)


def test_matrices_of_choices_of_no_expert_are_left_out_in_either_layout():
    config, shapes = checkpoint("longcat_flash")
    separate = unused_tensors(config, shapes)
    assert len(separate) == 2 * 4 * 2  # gate and up
    assert all("of no expert" in reason for reason in separate.values())
    stacked = {name: shape for name, shape in shapes.items() if ".experts." not in name}
    for layer in range(2):
        stacked[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = (12, 40, 36)
        stacked[f"model.layers.{layer}.mlp.experts.down_proj"] = (8, 36, 20)
    places = resolve(config, stacked)
    assert places["layers.1.experts.7.up"].index == 7
    assert "layers.1.experts.8.up" not in places
    assert "missing" in refusal(config, {name: s for name, s in shapes.items() if ".experts.7.gate" not in name})


def test_rows_that_repeat_a_pattern_of_blocks():
    """Query and gate of each head in turn; query, key, value and gate of each key head."""
    places = resolve(*checkpoint("qwen3_next"))
    query = places["layers.3.query"]
    assert query.runs == (Runs(0, 16, 32, 4),)
    assert list(query.places(20, 50)) == [range(36, 48), range(64, 80), range(96, 98)]
    assert places["layers.3.output_gate"].runs == (Runs(16, 16, 32, 4),)
    fused = places["layers.0.delta_in"]
    assert fused.runs == (Runs(0, 12, 104, 2), Runs(12, 12, 104, 2), Runs(24, 40, 104, 2))
    assert list(fused.places(0, fused.rows)) == [
        *(range(0, 12), range(104, 116), range(12, 24), range(116, 128), range(24, 64), range(128, 168))
    ]
    assert places["layers.0.delta_gate"].runs == (Runs(64, 40, 104, 2),)
    assert places["layers.0.delta_decay"].runs == (Runs(2, 2, 4, 2),)
    changes = {name.rpartition(".")[2]: place.change for name, place in places.items() if place.change != "none"}
    norms = ("final_norm", "attention_norm", "delta_norm", "ffn_norm", "query_norm", "key_norm")
    assert changes == {"delta_rate": "minus_exp"} | dict.fromkeys(norms, "plus_one")


def test_where_the_halves_of_a_fused_tensor_lie():
    places = resolve(*checkpoint("granitemoeshared_fused"))
    source = "model.layers.1.block_sparse_moe.experts.gate_up_proj"
    assert places["layers.1.experts.2.gate"] == SourceSlice(source, 2, 0, 16)
    assert places["layers.1.experts.2.up"] == SourceSlice(source, 2, 16, 32)
    shared = "model.layers.0.shared_mlp.input_linear.weight"
    assert places["layers.0.shared.up"] == SourceSlice(shared, None, 15, 30)
    assert places["final_norm"] == SourceSlice("model.norm.weight", None, 0, 34)


def test_where_the_matrices_of_experts_lie_one_below_the_other():
    places = resolve(*checkpoint("dbrx"))
    source = "transformer.blocks.1.ffn.experts.mlp."
    assert places["layers.1.experts.2.gate"] == SourceSlice(f"{source}w1", None, 40, 60)
    assert places["layers.1.experts.5.up"] == SourceSlice(f"{source}v1", None, 100, 120)
    assert places["layers.1.experts.2.down"] == SourceSlice(f"{source}w2", 2, 0, 24, transposed=True, height=20)
    fused = "transformer.blocks.0.norm_attn_norm.attn.Wqkv.weight"
    assert places["layers.0.key"] == SourceSlice(fused, None, 24, 36)


def test_where_the_columns_of_a_transposed_tensor_lie():
    places = resolve(*checkpoint("gpt_oss"))
    source = "model.layers.1.mlp.experts.gate_up_proj"
    assert places["layers.1.experts.2.gate"] == SourceSlice(source, 2, 0, 40, 2, transposed=True)
    assert places["layers.1.experts.2.up"] == SourceSlice(source, 2, 1, 40, 2, transposed=True)
    assert places["layers.1.experts.2.up_bias"] == SourceSlice(f"{source}_bias", 2, 1, 40, 2)
    source = "language_model.model.layers.1.feed_forward.experts.gate_up_proj"
    halves = resolve(*checkpoint("llama4"))
    assert halves["layers.1.experts.2.gate"] == SourceSlice(source, 2, 0, 20, transposed=True)
    assert halves["layers.1.experts.2.up"] == SourceSlice(source, 2, 20, 40, transposed=True)
    down = "model.layers.1.mlp.experts.down_proj"
    assert places["layers.1.experts.5.down"] == SourceSlice(down, 5, 0, 32, transposed=True)
    assert places["layers.1.experts.5.down_bias"] == SourceSlice(f"{down}_bias", 5, 0, 32)
    assert places["layers.0.sinks"] == SourceSlice("model.layers.0.self_attn.sinks", None, 0, 4)


def test_the_names_of_mixtral():
    places = resolve(*checkpoint("mixtral"))
    expert = "model.layers.1.block_sparse_moe.experts.3"
    assert places["layers.1.experts.3.gate"] == SourceSlice(f"{expert}.w1.weight", None, 0, 40)
    assert places["layers.1.experts.3.up"] == SourceSlice(f"{expert}.w3.weight", None, 0, 40)
    assert places["layers.1.experts.3.down"] == SourceSlice(f"{expert}.w2.weight", None, 0, 48)


def test_what_is_left_over_is_refused():
    config, shapes = checkpoint("mixtral")
    extra = {"model.layers.2.input_layernorm.weight": (48,), "model.layers.0.self_attn.q_proj.bias": (48,)}
    assert "model.layers.0.self_attn.q_proj.bias: not expected (and 1 more)" in refusal(config, shapes | extra)


def test_the_same_tensor_in_two_layouts_is_refused():
    config, shapes = checkpoint("mixtral")
    twice = {"model.layers.0.mlp.gate.weight": (4, 48)}
    assert "model.layers.0.mlp.gate.weight: not expected" in refusal(config, shapes | twice)


def test_what_a_checkpoint_may_carry_for_nothing_is_listed_with_its_reason():
    config, shapes = checkpoint("granitemoe")
    extra = {
        "lm_head.weight": shapes["model.embed_tokens.weight"],
        "model.layers.1.self_attn.rotary_emb.inv_freq": (4,),
        "model.rotary_emb.inv_freq": (4,),
    }
    assert resolve(config, shapes | extra) == resolve(config, shapes)
    listed = unused_tensors(config, shapes | extra)
    assert listed.keys() == extra.keys()
    assert listed["lm_head.weight"] == TIED_HEAD


def test_layers_that_predict_further_tokens_are_left_out():
    config, shapes = checkpoint("glm4_moe")
    own = {f"model.layers.3.{name}.weight": (32,) for name in ("eh_proj", "enorm", "hnorm", "self_attn.q_proj")}
    assert resolve(config, shapes | own) == resolve(config, shapes)
    assert unused_tensors(config, shapes | own) == dict.fromkeys(own, FURTHER_TOKENS)
    # A layer is no such layer by its number alone, nor one that the config counts.
    del own["model.layers.3.eh_proj.weight"]
    assert "model.layers.3.enorm.weight: not expected (and 2 more)" in refusal(config, shapes | own)
    assert "eh_proj.weight: not expected" in refusal(config, shapes | {"model.layers.2.eh_proj.weight": (32, 64)})


def test_layers_that_predict_further_tokens_may_have_names_of_their_own():
    config, shapes = checkpoint("ernie4_5_moe")
    names = ("mtp_block.0.self_attn.q_proj", "mtp_emb_norm.0", "mtp_hidden_norm.0", "mtp_linear_proj.0", "mtp.norm")
    own = {f"model.{name}.weight": (32,) for name in names} | {"mtp.fc.weight": (32, 64)}
    assert resolve(config, shapes | own) == resolve(config, shapes)
    assert unused_tensors(config, shapes | own) == dict.fromkeys(own, FURTHER_TOKENS)
    assert "model.mtp: not expected" in refusal(config, shapes | {"model.mtp": (32,)})


def test_where_the_unequal_parts_of_a_tensor_lie():
    places = resolve(*checkpoint("sarvam_moe"))
    source = "model.layers.1.attention.query_key_value"
    for kind in ("weight", "bias"):
        suffix = "_bias" if kind == "bias" else ""
        assert places[f"layers.1.query{suffix}"] == SourceSlice(f"{source}.{kind}", None, 0, 48)
        assert places[f"layers.1.key{suffix}"] == SourceSlice(f"{source}.{kind}", None, 48, 64)
        assert places[f"layers.1.value{suffix}"] == SourceSlice(f"{source}.{kind}", None, 64, 80)


def test_where_a_vector_lies_that_is_a_row():
    places = resolve(*checkpoint("ernie4_5_moe"))
    source = "model.layers.1.mlp.moe_statics.e_score_correction_bias"
    assert places["layers.1.router_choice_bias"] == SourceSlice(source, None, 0, 8, as_vector=True)


def test_a_head_that_is_not_tied_is_needed():
    config, shapes = checkpoint("mixtral")
    assert "lm_head.weight: missing" in refusal(config, {n: s for n, s in shapes.items() if n != "lm_head.weight"})
    assert unused_tensors(config, shapes) == {}


def test_a_missing_shard_is_one_message():
    config, shapes = checkpoint("qwen2_moe")
    message = refusal(config, {name: shape for name, shape in shapes.items() if ".layers.2." not in name})
    assert "model.layers.2.input_layernorm.weight: missing (and " in message


@pytest.mark.parametrize(
    ("config", "tensors"), [(MIXTRAL_8X7B, 995), (QWEN3_30B_A3B, 18867), (OLMOE_1B_7B, 3219), (GRANITE_1B_A400M, 218)]
)
def test_published_checkpoints_have_their_number_of_tensors(config, tensors):
    shapes = published_shapes(config)
    assert len(shapes) == tensors
    resolve(config, shapes)


def published_shapes(config) -> dict[str, tuple[int, ...]]:
    """Names and shapes as those checkpoints have them, written out by hand."""
    D, F, E = config["hidden_size"], config.get("moe_intermediate_size", config["intermediate_size"]), 0
    E = config.get("num_experts") or config["num_local_experts"]
    width = config.get("head_dim") or D // config["num_attention_heads"]
    Q, G = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], D)}
    shapes["model.norm.weight"] = (D,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], D)
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        shapes |= {p + "input_layernorm.weight": (D,), p + "post_attention_layernorm.weight": (D,)}
        shapes |= {p + "self_attn.q_proj.weight": (Q, D), p + "self_attn.o_proj.weight": (D, Q)}
        shapes |= {p + "self_attn.k_proj.weight": (G, D), p + "self_attn.v_proj.weight": (G, D)}
        family = config["model_type"]
        if family == "granitemoe":
            shapes[p + "block_sparse_moe.input_linear.weight"] = (E, 2 * F, D)
            shapes[p + "block_sparse_moe.output_linear.weight"] = (E, D, F)
            shapes[p + "block_sparse_moe.router.layer.weight"] = (E, D)
            continue
        if family != "mixtral":
            norm = {"qwen3_moe": (width, width), "olmoe": (Q, G)}[family]
            shapes |= {p + "self_attn.q_norm.weight": norm[:1], p + "self_attn.k_norm.weight": norm[1:]}
        block, names = (
            ("block_sparse_moe", "w1 w3 w2") if family == "mixtral" else ("mlp", "gate_proj up_proj down_proj")
        )
        shapes[f"{p}{block}.gate.weight"] = (E, D)
        for expert in range(E):
            for name, shape in zip(names.split(), ((F, D), (F, D), (D, F)), strict=True):
                shapes[f"{p}{block}.experts.{expert}.{name}.weight"] = shape
    return shapes


@every_case("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_a_table_names_each_source_once(family):
    sources = [(row.source, row.internal) for row in family.TENSORS]  # a norm may be of one block or of another
    assert len(sources) == len(set(sources))
