"""Checkpoints of other kinds: quantised, wrapped, incomplete by their index. Errors name what is there."""

from __future__ import annotations

import pytest

from edgemoe.architectures import checkpoint_shapes, mixtral, model_spec, resolve
from edgemoe.architectures.resolution import checkpoint_shapes as table_shapes
from edgemoe.architectures.resolution import resolve_tensors
from edgemoe.architectures.table import layer_rows
from edgemoe.errors import SourceError
from tests.support.checkpoints import SMALL_MIXTRAL
from tests.support.every_case import every_case

SHAPES = checkpoint_shapes(SMALL_MIXTRAL)
QUERY = "model.layers.0.self_attn.q_proj"


def refusal(shapes: dict[str, tuple[int, ...]], unlisted: dict[str, str] | None = None) -> SourceError:
    with pytest.raises(SourceError) as caught:
        resolve(SMALL_MIXTRAL, shapes, unlisted or {})
    assert caught.value.hint
    return caught.value


@every_case(
    ("prefix", "words"),
    [
        ("module.", "DataParallel"),
        ("_orig_mod.", "torch.compile"),
        ("_orig_mod.module.", "torch.compile"),
        ("base_model.model.", "peft"),
        ("language_model.", "images and text"),
        ("anything.", "another module"),
    ],
)
def test_names_with_a_prefix_are_named(prefix: str, words: str) -> None:
    problem = refusal({prefix + name: shape for name, shape in SHAPES.items()})
    assert problem.message.startswith("model.embed_tokens.weight: missing")
    assert f"found {prefix}model.embed_tokens.weight: names begin with {prefix!r}" in problem.message
    assert words in problem.message


def test_names_without_their_prefix_are_named() -> None:
    problem = refusal({name.removeprefix("model."): shape for name, shape in SHAPES.items()})
    assert "found embed_tokens.weight, without the prefix 'model.'" in problem.message


def test_a_model_within_another_is_named() -> None:
    problem = refusal({name.replace("model.", "model.language_model."): shape for name, shape in SHAPES.items()})
    assert "found model.language_model.embed_tokens.weight" in problem.message


def test_a_missing_head_has_nothing_in_its_place() -> None:
    problem = refusal({name: shape for name, shape in SHAPES.items() if name != "lm_head.weight"})
    assert problem.message.startswith("lm_head.weight: missing; its config asks for")


def test_an_adapters_tensors_are_named() -> None:
    problem = refusal({"base_model.x.q_proj.lora_A.weight": (8, 64)})
    assert "found the matrices of a LoRA adapter" in problem.message
    beside = {f"{QUERY}.lora_{half}.default.weight": (8, 64) for half in "AB"}
    problem = refusal(SHAPES | beside)
    assert problem.message.startswith(f"{QUERY}.lora_A.default.weight: expected weights of a whole model, found the")
    assert "2 of the names are like this" in problem.message
    assert "merge_and_unload" in problem.hint


def test_a_tensor_that_the_index_leaves_out_is_named_with_its_shard() -> None:
    name = f"{QUERY}.weight"
    problem = refusal({k: v for k, v in SHAPES.items() if k != name}, {name: "model-00002-of-00003.safetensors"})
    assert f"{name}: missing; the index leaves it out, but model-00002-of-00003.safetensors has it" in problem.message
    assert "weight_map" in problem.hint


@every_case(
    ("method", "names"),
    [
        ("GPTQ", ["qweight", "qzeros", "scales", "g_idx"]),
        ("GPTQ or AWQ", ["qweight", "qzeros", "scales"]),
        ("bitsandbytes", ["weight", "weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"]),
        ("bitsandbytes", ["weight", "SCB", "weight_format"]),
        ("FP8", ["weight", "weight_scale_inv"]),
        ("FP8", ["weight", "weight_scale", "input_scale"]),
        ("compressed-tensors", ["weight_packed", "weight_scale", "weight_shape"]),
        ("MLX", ["weight", "scales", "biases"]),
    ],
)
def test_quantised_leftovers_are_called_quantised(method: str, names: list[str]) -> None:
    """Names as gptqmodel, AutoAWQ, bitsandbytes, transformers' FP8, compressed-tensors and mlx-lm write them."""
    shapes = {name: shape for name, shape in SHAPES.items() if name != f"{QUERY}.weight"}
    problem = refusal(shapes | {f"{QUERY}.{name}": (4,) for name in names})
    assert f"expected unquantised weights, found quantised ones ({method})" in problem.message
    assert "unquantised version" in problem.hint


@pytest.mark.parametrize("key", ["quantization_config", "quantization", "compression_config"])
def test_how_weights_are_written_is_nothing_of_the_model(key: str) -> None:
    assert model_spec(SMALL_MIXTRAL | {key: {"quant_method": "gptq", "bits": 4}}) == model_spec(SMALL_MIXTRAL)


def test_quantised_tensors_that_a_family_lists_are_located_and_no_others() -> None:
    """As those of gpt-oss, whose pairs of codes and scales a source joins under the name of the codes."""
    names = "experts.{expert}.gate experts.{expert}.up"
    table = tuple(row for row in mixtral.TENSORS if "{expert}" not in row.internal[0]) + layer_rows(
        (names, "mlp.experts.gate_up_proj_blocks", ("experts", "2*expert_width", "model")),
        ("experts.{expert}.down", "mlp.experts.down_proj_blocks", ("experts", "model", "expert_width")),
    )
    spec = model_spec(SMALL_MIXTRAL)
    shapes = table_shapes(spec, table, stacked=True)
    found = resolve_tensors(spec, table, shapes)
    assert found["layers.1.experts.2.down"].tensor == "model.layers.1.mlp.experts.down_proj_blocks"
    for other in ("model.layers.0.mlp.experts.down_proj_scales", "model.layers.x.mlp.experts.down_proj_blocks"):
        with pytest.raises(SourceError, match=rf"{other}: expected unquantised weights.*MXFP4"):
            resolve_tensors(spec, table, shapes | {other: (4,)})
    codes, scales = (f"model.layers.0.mlp.experts.down_proj_{half}" for half in ("blocks", "scales"))
    left = {name: shape for name, shape in shapes.items() if name != codes} | {scales: (4, 64, 3)}
    with pytest.raises(SourceError, match=f"{codes}: missing; {scales} has its scales"):
        resolve_tensors(spec, table, left)
