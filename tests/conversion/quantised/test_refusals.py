"""Schemes that are not read, and tensors that contradict their config, are one error that names tensor and file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgemoe.conversion.encoding import encode
from edgemoe.conversion.quantised.schemes import scheme_of
from edgemoe.conversion.quantised.source import with_blocks
from edgemoe.errors import SourceError
from edgemoe.kernels.formats import FORMATS
from tests.conversion.quantised.schemes import AWQ, CASES, FP8, MODELOPT, NF4, ROUND, compressed, gptq, whole
from tests.support import quantised_writers as write
from tests.support.bytes_source import BytesSource
from tests.support.checkpoints import SMALL_MIXTRAL
from tests.support.every_case import every_case

STEM = "model.layers.0.mlp.experts.1.up_proj"


@every_case(
    ("value", "words"),
    [
        ({"quant_method": "quark"}, "quantised ones (quark)"),
        ({"quant_method": ["x"]}, "(by an unknown method)"),
        ({"quant_method": "aqlm", "bits": 2}, "(aqlm, 2 bits)"),
        (gptq(4, 128, desc_act=True), "an activation order (desc_act)"),
        (gptq(4, 128, checkpoint_format="marlin"), "checkpoint_format 'marlin'"),
        (gptq(4, 128, dynamic={"+:.*down.*": {"bits": 8}}), "settings of their own (dynamic)"),
        ({**AWQ, "version": "gemv"}, "version 'gemv', where it reads gemm alone"),
        ({**AWQ, "zero_point": False}, "no zero points"),
        ({**ROUND, "packing_format": "auto_round:gptqmodel"}, "packing_format 'auto_round:gptqmodel'"),
        ({**ROUND, "packing_format": "auto_round"}, "packing_format 'auto_round'"),
        ({**ROUND, "packing_format": "auto_round:auto_awq", "extra_config": {"x": {"bits": 8}}}, "bits of their own"),
        (compressed("marlin-24"), "the format 'marlin-24'"),
        (compressed("dense"), "no format"),
        ({**NF4, "load_in_4bit": False, "load_in_8bit": True}, "8 bits (load_in_8bit)"),
        ({**MODELOPT, "quant_algo": "W4A8_AWQ"}, "quant_algo 'W4A8_AWQ'"),
    ],
)
def test_schemes_that_are_not_read_are_named(value: Any, words: str) -> None:
    for config in ({"quantization_config": value}, {"text_config": {"quantization_config": value}}):
        with pytest.raises(
            SourceError, match=r"config\.json: quantization_config: expected weights that edge"
        ) as caught:
            scheme_of(config)
        assert words in caught.value.message
        assert "unquantised version" in caught.value.hint


@pytest.mark.parametrize(
    "value",
    [
        gptq(4, 128, desc_act=False, dynamic={"-:.*gate.*": {}}),
        gptq(4, -1, desc_act=True),
        gptq(4, 128, desc_act=True, static_groups=True),
        {**ROUND, "packing_format": "auto_round:auto_awq", "extra_config": {"lm_head": {"bits": 16}}},
        {**ROUND, "quant_method": "intel/auto-round", "backend": "auto_round:gptq:exllamav2"},
        {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": {
            "a": {"format": "pack-quantized"}, "b": {"format": "float-quantized"}}},
    ],
)  # fmt: skip
def test_what_only_looks_like_those_is_read(value: Any) -> None:
    assert scheme_of({"quantization_config": value}).forms


Tensors = dict[str, np.ndarray[Any, Any]]


def altered(end: str, change: Callable[[np.ndarray[Any, Any]], Any]) -> Callable[[Tensors], None]:
    def alter(tensors: Tensors) -> None:
        tensors[end] = np.asarray(change(tensors[end]))

    return alter


def without(end: str) -> Callable[[Tensors], None]:
    def alter(tensors: Tensors) -> None:
        del tensors[end]

    return alter


def with_value(end: str, place: Any, value: Any) -> Callable[[Tensors], None]:
    def alter(tensors: Tensors) -> None:
        tensors[end] = tensors[end].copy()
        tensors[end][place] = value

    return alter


def read(name: str, alter: Callable[[Tensors], None], settings: Any = None) -> None:
    """Show a matrix of 48 x 192 of a scheme whose tensors are altered, and encode all of it."""
    case = CASES[name]
    tensors, _ = case.writer((48, 192), np.random.default_rng(1))
    alter(tensors)
    arrays = {STEM + end: values for end, values in tensors.items()}
    dtypes = {STEM + end: dtype for end, dtype in case.dtypes.items() if end in tensors}
    shown = with_blocks(BytesSource(arrays, {**SMALL_MIXTRAL, case.key: settings or case.settings}, dtypes))
    encode(shown.read_rows(f"{STEM}.weight", None, 0, 48), FORMATS[case.format], f"{STEM}.weight")


@every_case(
    ("name", "alter", "words"),
    [
        ("mxfp4 of compressed-tensors", without(".weight_scale"), "_scale: missing; .*_packed has codes of MXFP4"),
        ("mxfp4 of compressed-tensors", altered(".weight_scale", lambda s: s[:, :3]), "all: .*_scale: expected a sc"),
        ("mxfp4 of compressed-tensors", with_value(".weight_scale", (3, 1), 255), "found NaN"),
        ("int4 in 32", altered(".weight_scale", lambda s: s[:40]), r"all: .*_scale: .*\(48, 6\).*found \(40, 6\)"),
        ("int4 in 32", altered(".weight_scale", lambda s: s[:, :4]), "expected groups of 32 columns.*found 4 groups"),
        ("int4 with zero points", without(".weight_zero_point"), "zero points if, and only if"),
        ("int4 with zero points", altered(".weight_zero_point", lambda z: z[:5]), r"_zero_point: .*found \(5, 6\)"),
        ("int4 in 32", with_value(".weight_scale", (3, 1), 0x7FC0), "expected finite numbers, found nan"),
        ("gptq", without(".qzeros"), r"\.qzeros: missing; .*\.qweight has codes of GPTQ"),
        ("gptq", altered(".qzeros", lambda z: z + 1), "the zero point 8 alone, as config.json says"),
        ("gptq", altered(".scales", lambda s: s[:, :40]), r"\.scales: expected .*\(6, 48\).*found \(6, 40\)"),
        ("gptq", altered(".qzeros", lambda z: z.astype(np.float32)), r"\.qzeros: expected GPTQ with I32.*found F32"),
        ("gptq in 128, ordered", with_value(".g_idx", 0, 1), "an activation order .*g_idx is shuffled"),
        ("gptq in 128, ordered", altered(".g_idx", lambda g: g[:100]), r"\.g_idx: expected .*\(192,\).*found \(100,\)"),
        ("gptq with zero points", altered(".qzeros", lambda z: z | 15), "zero points that all programs read alike"),
        ("awq", altered(".qzeros", lambda z: z[:, :5]), r"\.qzeros: expected .*\(6, 6\).*found \(6, 5\)"),
        ("awq", altered(".qweight", lambda w: w[0]), r"\.qweight: expected two dimensions.*found \(6,\)"),
        ("mlx, 5 bits", without(".biases"), r"\.scales: expected biases, as mode affine has"),
        ("mlx, 5 bits", altered(".biases", lambda b: b[:, :2]), r"\.biases: expected .*\(48, 6\).*found \(48, 2\)"),
        ("mlx, 5 bits", without(".scales"), r"\.scales: missing; .*\.weight has codes of MLX"),
        ("fp8 in blocks", altered(".weight_scale_inv", lambda s: s[:, [0] * 3]), "one scale for all, for each row"),
        ("fp8 in blocks", with_value(".weight", (47, 3), 0x7F), "expected finite numbers, found nan"),
        ("fp8 in blocks", with_value(".weight_scale_inv", (0, 0), np.inf), "expected finite numbers, found inf"),
        ("fp8 in blocks", without(".weight_scale_inv"), r"\.weight_scale_inv: missing; .*codes of FP8"),
        ("mxfp8", with_value(".weight_scale", (3, 1), 255), "found NaN"),
        ("nvfp4 of modelopt", altered(".weight_scale_2", lambda s: np.full_like(s, 3e38)), "found (-?inf|nan)"),
        ("fp8 in blocks", altered(".weight_scale_inv", lambda s: np.full_like(s, 3e38)), "found -?inf"),
        ("nvfp4 of modelopt", with_value(".weight_scale", (3, 1), 0x7F), "expected finite numbers, found nan"),
        ("nvfp4 of modelopt", altered(".weight_scale_2", lambda _: np.zeros(3, np.float32)), "one scale for each ma"),
        ("nvfp4 of modelopt", altered(".weight", lambda w: w[:, :90]), r"\.weight: expected a shape of \(48, 96\)"),
        ("nvfp4 of compressed-tensors", altered(".weight_global_scale", lambda s: s * 0), "finite numbers, found inf"),
    ],
)  # fmt: skip
def test_tensors_that_contradict_each_other_are_named_with_their_file(
    name: str, alter: Callable[[Tensors], None], words: str
) -> None:
    with pytest.raises(SourceError, match=words) as caught:
        read(name, alter)
    assert STEM in caught.value.message
    assert caught.value.hint


@every_case(
    ("name", "settings", "words"),
    [
        ("int4 in 32", whole(4, 64), "expected groups of 64 columns.*found 6 groups for 192"),
        ("int4 in 32", whole(3, 32), "codes of 2 or 4 or 8 bits.*found bits 3"),
        ("int4 in 32", whole(4, 32, False), "zero points if, and only if"),
        ("int8", whole(8, 64, False), "zero points if, and only if"),
        ("gptq", gptq(8, 32), r"(groups of 32|shape)"),
        ("gptq", gptq(5, 32), "found bits 5"),
        ("gptq, 8 bits", gptq(8, 32, sym=False), "expected GPTQ with symmetric codes of 8 bits"),
        ("awq", {**AWQ, "bits": 8}, "found bits 8"),
        ("mlx, 5 bits", {"group_size": 32, "bits": 7}, "found bits 7"),
        ("mlx, 5 bits", {"group_size": 32, "bits": [5]}, r"found bits \[5\]"),
        ("gptq", {**gptq(4, 32), "bits": 4.0}, r"found bits 4\.0"),
        ("mlx, 5 bits", {"group_size": 64, "bits": 5}, "expected groups of 64 columns"),
        ("mlx, 5 bits", {"group_size": 32, "bits": 5, "mode": "mxfp4"}, "no biases, as mode mxfp4 has"),
        ("mlx, mxfp4", {"group_size": 32, "bits": 8, "mode": "mxfp8"}, r"\.weight: expected a shape of"),
        ("mlx, mxfp4", {"group_size": 32, "bits": 4, "mode": "int4"}, "mode affine, mxfp4, mxfp8 or nvfp4"),
        ("fp8 in blocks", {**FP8, "weight_block_size": [64, 96]}, "blocks of a multiple of 128 columns"),
        ("fp8 in blocks", {**FP8, "weight_block_size": [0, 128]}, "blocks of whole numbers"),
    ],
)
def test_a_config_that_contradicts_its_tensors_is_refused(name: str, settings: Any, words: str) -> None:
    with pytest.raises(SourceError, match=words) as caught:
        read(name, lambda _: None, settings)
    assert STEM in caught.value.message


def test_groups_that_blocks_of_32_do_not_follow_are_refused() -> None:
    tensors, _ = write.packed(4, 48)((48, 192), np.random.default_rng(1))
    arrays = {STEM + end: values for end, values in tensors.items()}
    with pytest.raises(SourceError, match=r"groups of a multiple of 32 columns.*found groups of 48"):
        with_blocks(BytesSource(arrays, {"quantization_config": whole(4, 48)}))


def test_a_config_without_any_tensor_of_its_scheme_is_refused() -> None:
    arrays = {f"{STEM}.weight": np.zeros((4, 32), np.float32)}
    with pytest.raises(SourceError, match=r"quantization_config \(gptq\): expected tensors of GPTQ.*found none"):
        with_blocks(BytesSource(arrays, {"quantization_config": gptq(4, 32)}))


@every_case("content", [b"{", b"[]", b'{"shape": [4, 4], "blocksize": 64}', b'{"shape": [48, 192], "blocksize": 0}'])
def test_a_state_of_bitsandbytes_that_contradicts_its_matrix_is_refused(content: bytes) -> None:
    from edgemoe.conversion.quantised.bitsandbytes import BITSANDBYTES
    from edgemoe.conversion.quantised.form import parts_of
    from edgemoe.conversion.quantised.raw import Raw

    tensors, _ = write.bitsandbytes("nf4", True)((48, 192), np.random.default_rng(1))
    tensors[".weight.quant_state.bitsandbytes__nf4"] = np.frombuffer(content, np.uint8)
    source = BytesSource({STEM + end: values for end, values in tensors.items()}, {})
    name = f"{STEM}.weight"
    parts = parts_of((BITSANDBYTES,), name, source.tensors(), NF4, {name: (48, 192)})
    assert parts is not None
    with pytest.raises(SourceError, match=r"quant_state\.bitsandbytes__nf4: expected JSON with the shape \(48, 192\)"):
        parts.form.open(parts).read(Raw(source), 0, 4)
