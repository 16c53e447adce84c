"""Every scheme of quantised checkpoints: what its config says, how it is written, and the format that keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support import quantised_writers as write
from tests.support.quantised_writers import Writer


@dataclass(frozen=True)
class Case:
    """A scheme with a writer of its matrices."""

    settings: Mapping[str, Any]
    writer: Writer
    format: str
    dtypes: Mapping[str, str] = field(default_factory=dict)
    """Dtypes of tensors, by the ends of their names, that NumPy has no name for."""
    shown: str = ".weight"
    key: str = "quantization_config"


def compressed(name: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights}
    return {"quant_method": "compressed-tensors", "format": name, "config_groups": {"group_0": group}}


def whole(bits: int, group: int | None, symmetric: bool = True, name: str = "pack-quantized") -> dict[str, Any]:
    strategy = {"strategy": "channel", "group_size": None} if group is None else {"group_size": group}
    return compressed(name, num_bits=bits, type="int", symmetric=symmetric, **strategy)


def gptq(bits: int, group: int, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": True, **more}


E4M3, E8M0 = {".weight": "F8_E4M3"}, {".scale": "F8_E8M0"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": False}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
NVFP4_DTYPES = {".weight_scale": "F8_E4M3"}

CASES: dict[str, Case] = {
    "mxfp4 of compressed-tensors": Case(compressed("mxfp4-pack-quantized"), write.mxfp4(), "m4"),
    "mxfp4 of deepseek": Case({"quant_method": "fp8"}, write.mxfp4(".weight", ".scale", True), "m4", E8M0),
    "int4 in 32": Case(whole(4, 32), write.packed(4, 32), "q4"),
    "int4 in 64": Case(whole(4, 64), write.packed(4, 64), "q4"),
    "int4 in 128": Case(whole(4, 128), write.packed(4, 128), "q4"),
    "int4 in rows": Case(whole(4, None), write.packed(4, None), "q4"),
    "int4 with zero points": Case(whole(4, 32, False), write.packed(4, 32, False), "q4z"),
    "int2": Case(whole(2, 32), write.packed(2, 32), "q4"),
    "int8": Case(whole(8, 64), write.packed(8, 64), "q8"),
    "int8 in bytes": Case(whole(8, None, name="int-quantized"), write.packed(8, None, integers=True), "q8"),
    "gptq": Case(gptq(4, 32), write.gptq(4, 32), "q4"),
    "gptq in 128, ordered": Case(gptq(4, 128), write.gptq(4, 128, order="identity"), "q4"),
    "gptq in rows": Case(gptq(4, -1, desc_act=True), write.gptq(4, None, order="identity"), "q4"),
    "gptq with zero points": Case(gptq(4, 64, sym=False), write.gptq(4, 64, False), "q4z"),
    "gptq_v2": Case(gptq(4, 32, checkpoint_format="gptq_v2"), write.gptq(4, 32, version=2), "q4"),
    "gptq_v2 with zero points": Case(
        gptq(4, 32, checkpoint_format="gptq_v2", sym=False), write.gptq(4, 32, False, 2), "q4z"
    ),
    "gptq, 2 bits": Case(gptq(2, 32), write.gptq(2, 32), "q4"),
    "gptq, 3 bits": Case(gptq(3, 32), write.gptq(3, 32), "q4"),
    "gptq, 3 bits with zero points": Case(gptq(3, 32, sym=False), write.gptq(3, 32, False), "q4z"),
    "gptq, 8 bits": Case(gptq(8, 32), write.gptq(8, 32), "q8"),
    "awq": Case(AWQ, write.awq(32), "q4z"),
    "auto-round of gptq": Case({**ROUND, "packing_format": "auto_round:auto_gptq"}, write.gptq(4, 32, False), "q4z"),
    "auto-round of awq": Case({**ROUND, "packing_format": "auto_round:auto_awq"}, write.awq(32), "q4z"),
    "mlx, 4 bits": Case({"group_size": 64, "bits": 4}, write.mlx(4, 64), "q4m", key="quantization"),
    "mlx, 4 bits of halves": Case({"group_size": 32, "bits": 4}, write.mlx(4, 32, True), "q4m", key="quantization"),
    "mlx, 2 bits": Case({"group_size": 32, "bits": 2}, write.mlx(2, 32), "q4m", key="quantization"),
    "mlx, 3 bits": Case({"group_size": 64, "bits": 3}, write.mlx(3, 64), "q4m", key="quantization"),
    "mlx, 5 bits": Case({"group_size": 32, "bits": 5}, write.mlx(5, 32), "q5m", key="quantization"),
    "mlx, 6 bits": Case({"group_size": 32, "bits": 6}, write.mlx(6, 32), "q8m", key="quantization"),
    "mlx, 8 bits": Case({"group_size": 64, "bits": 8}, write.mlx(8, 64), "q8m", key="quantization"),
    "mlx, mxfp4": Case({"group_size": 32, "bits": 4, "mode": "mxfp4"}, write.mlx_mxfp4, "m4", key="quantization"),
    "mlx, mxfp8": Case({"group_size": 32, "bits": 8, "mode": "mxfp8"}, write.mlx_mxfp8, "m8", key="quantization"),
    "mlx, nvfp4": Case({"group_size": 16, "bits": 4, "mode": "nvfp4"}, write.mlx_nvfp4, "nv4", key="quantization"),
    "fp8 in blocks": Case(FP8, write.fp8("block", ".weight_scale_inv"), "f8", E4M3),
    "fp8 in blocks, bfloat16": Case(FP8, write.fp8("block", ".weight_scale_inv", "bfloat16"), "f8", E4M3),
    "fp8 of deepseek": Case(FP8, write.fp8("block", ".scale", "e8m0"), "f8", {**E4M3, **E8M0}),
    "fp8 of compressed-tensors": Case(compressed("float-quantized"), write.fp8("channel", ".weight_scale"), "f8", E4M3),
    "fp8 of modelopt": Case({"quant_method": "modelopt"}, write.fp8("tensor", ".weight_scale"), "f8", E4M3),
    "fp8 of fbgemm": Case({"quant_method": "fbgemm_fp8"}, write.fp8("channel", ".weight_scale"), "f8", E4M3),
    "fp8 in groups": Case(
        compressed("naive-quantized", group_size=128), write.fp8("block", ".weight_scale", block=(1, 128)), "f8", E4M3
    ),
    "mxfp8": Case({"quant_method": "mxfp8"}, write.fp8("block", ".weight_scale", "e8m0", (1, 32)), "m8", E4M3),
    "nvfp4 of modelopt": Case(MODELOPT, write.nvfp4(exact=False), "nv4", NVFP4_DTYPES),
    "nvfp4 of compressed-tensors": Case(
        compressed("nvfp4-pack-quantized"), write.nvfp4(divides=True), "nv4", NVFP4_DTYPES
    ),
}
