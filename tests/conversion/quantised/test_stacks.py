"""Experts of a layer in one quantised tensor: of MLX, whose stacks replace a family's own tensors, and of FP8."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgemoe.architectures import checkpoint_shapes, resolve
from edgemoe.conversion.quantised.source import shown_dtypes, with_blocks
from edgemoe.conversion.source import TensorInfo
from edgemoe.errors import SourceError
from edgemoe.kernels.file_rows import Rows
from tests.conversion.quantised.schemes import CASES
from tests.conversion.test_gpt_oss import CONFIG as GPT_OSS
from tests.support.bytes_source import BytesSource
from tests.support.checkpoints import SMALL_MIXTRAL, SMALL_QWEN
from tests.support.quantised_writers import Writer, fp8, mlx, mlx_mxfp4
from tests.support.real_numbers import real_numbers

MIXTRAL = {**SMALL_MIXTRAL, "quantization": {"group_size": 32, "bits": 4}}
STACK = "model.layers.1.block_sparse_moe.switch_mlp."


def stacked(writer: Writer, shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of stacks of these shapes, and what each stack means."""
    arrays, meant = {}, {}
    for stem, shape in shapes.items():
        tensors, meant[stem] = writer(shape, np.random.default_rng(len(meant)))
        arrays |= {stem + end: values for end, values in tensors.items()}
    return arrays, meant


def test_a_stack_of_mlx_is_shown_as_the_experts_of_the_family() -> None:
    sizes = {"gate_proj": (4, 72, 64), "up_proj": (4, 72, 64), "down_proj": (4, 64, 96)}
    arrays, meant = stacked(mlx(4, 32), {STACK + part: shape for part, shape in sizes.items()})
    source = BytesSource(arrays, MIXTRAL)
    shown = with_blocks(source)
    for part, name in (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")):
        for expert in range(4):
            own = f"model.layers.1.block_sparse_moe.experts.{expert}.{name}.weight"
            assert shown.tensors()[own] == TensorInfo(sizes[part][1:], "q4m", "all")
            found = real_numbers(shown.read_rows(own, None, 7, 40))
            np.testing.assert_array_equal(found, meant[STACK + part][expert, 7:40])
    assert len(shown.tensors()) == 12
    assert shown_dtypes(MIXTRAL, arrays) == dict.fromkeys(shown.tensors(), "q4m")


def test_a_stack_of_floats_is_shown_so_too_and_modules_have_bits_of_their_own() -> None:
    gate = "model.layers.0.block_sparse_moe.gate"
    config = {**SMALL_MIXTRAL, "quantization": {"group_size": 32, "bits": 4, gate: {"group_size": 64, "bits": 8}}}
    router, meant = stacked(mlx(8, 64), {gate: (4, 64)})
    floats = np.random.default_rng(1).standard_normal((4, 72, 64)).astype(np.float32)
    shown = with_blocks(BytesSource({**router, f"{STACK}up_proj.weight": floats}, config))
    assert shown.tensors()[f"{gate}.weight"].dtype == "q8m"
    np.testing.assert_array_equal(real_numbers(shown.read_rows(f"{gate}.weight", None, 0, 4)), meant[gate])
    rows = shown.read_rows("model.layers.1.block_sparse_moe.experts.2.w3.weight", None, 3, 9)
    np.testing.assert_array_equal(np.asarray(rows), floats[2, 3:9])


def test_gpt_oss_of_mlx_has_all_tensors_of_the_model() -> None:
    """MLX cuts what the family keeps as one: gate and up, with biases for each."""
    config = {**GPT_OSS, "quantization": CASES["mlx, mxfp4"].settings}
    experts, layers = config["num_local_experts"], config["num_hidden_layers"]
    arrays: dict[str, Any] = {}
    for name, shape in checkpoint_shapes(config).items():
        if ".mlp.experts." not in name:
            arrays[name] = np.zeros(shape, np.float32)
    biases = {}
    for layer in range(layers):
        for part, shape in (("gate", (96, 64)), ("up", (96, 64)), ("down", (64, 96))):
            stem = f"model.layers.{layer}.mlp.experts.{part}_proj"
            arrays |= stacked(mlx_mxfp4, {stem: (experts, *shape)})[0]
            biases[stem] = np.random.default_rng(layer).standard_normal((experts, shape[0])).astype(np.float32)
            arrays[f"{stem}.bias"] = biases[stem]
    shown = with_blocks(BytesSource(arrays, config))
    places = resolve(config, {name: info.shape for name, info in shown.tensors().items()})
    place = places["layers.1.experts.2.up_bias"]
    rows: Rows = shown.read_rows(place.tensor, place.index, 0, 96)
    np.testing.assert_array_equal(np.asarray(rows), biases["model.layers.1.mlp.experts.up_proj"][2])


def test_a_family_whose_norms_mlx_changes_is_refused() -> None:
    arrays, _ = stacked(mlx(4, 32), {"model.layers.0.linear_attn.out_proj": (64, 64)})
    config = {**SMALL_QWEN, "quantization": {"group_size": 32, "bits": 4}}
    with pytest.raises(SourceError, match=r"quantization \(mlx\): .*found qwen3_5_moe_text, whose norms are distances"):
        with_blocks(BytesSource(arrays, config))


def test_a_stack_of_other_experts_than_the_config_has_is_refused() -> None:
    arrays, _ = stacked(mlx(4, 32), {STACK + "up_proj": (3, 72, 64)})
    with pytest.raises(SourceError, match=r"all: .*\.up_proj\.weight: expected 4 experts .*found \(3, 72, 64\)"):
        with_blocks(BytesSource(arrays, MIXTRAL))


@pytest.mark.parametrize("kind", ["block", "channel", "tensor"])
def test_a_stack_of_fp8_is_read_across_its_matrices(kind: str) -> None:
    codes, scales, meant = [], [], []
    for seed in range(3):
        tensors, numbers = fp8(kind, "_scale_inv")((144, 192), np.random.default_rng(seed))
        codes.append(tensors[".weight"])
        scales.append(tensors["_scale_inv"])
        meant.append(numbers)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    arrays = {name: np.stack(codes), f"{name}_scale_inv": np.stack(scales)}
    shown = with_blocks(BytesSource(arrays, {"quantization_config": {"quant_method": "fp8"}}, {name: "F8_E4M3"}))
    assert shown.tensors()[name] == TensorInfo((3, 144, 192), "f8", "all")
    for index, start, stop in ((0, 0, 144), (1, 120, 135), (2, 143, 144)):
        found = real_numbers(shown.read_rows(name, index, start, stop))
        np.testing.assert_array_equal(found, meant[index][start:stop])
