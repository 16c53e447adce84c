"""The schemes of quantisation that config.json may name, and the forms of tensors that each of them has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgemoe.architectures.config import QUANTISED
from edgemoe.conversion.quantised import awq, bitsandbytes, fp8, gptq, mlx, mxfp4, nvfp4, packed
from edgemoe.conversion.quantised.form import Form, Settings
from edgemoe.conversion.quantised.groups import formats_of
from edgemoe.conversion.quantised.raw import UNQUANTISED
from edgemoe.errors import SourceError

_UNDECLARED = (mxfp4.GPT_OSS, mxfp4.COMPRESSED, nvfp4.MODELOPT, fp8.INVERSE)
"""Forms whose tensors alone say all about them."""
_COMPRESSED = {
    "mxfp4-pack-quantized": (mxfp4.COMPRESSED,),
    "pack-quantized": (packed.PACKED,),
    "int-quantized": (packed.BYTES,),
    "float-quantized": (fp8.PLAIN,),
    "naive-quantized": (fp8.PLAIN, packed.BYTES),
    "mxfp8-quantized": (fp8.PLAIN,),
    "nvfp4-pack-quantized": (nvfp4.COMPRESSED,),
}
_MODELOPT = ("NVFP4", "FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "MXFP8", "MIXED_PRECISION")
"""Algorithms of modelopt whose tensors have one of the forms that are read."""


@dataclass(frozen=True)
class Scheme:
    """The way in which a checkpoint is quantised: the forms that its matrices may have, with settings."""

    forms: tuple[Form, ...]
    settings: Settings
    declared: str = ""
    """The key of config.json that says so, with the method; empty without one."""
    of_mlx: bool = False
    """Whether MLX wrote it, which keeps the experts of a layer in one tensor, whatever the family does."""

    def dtype(self, name: str) -> str:
        """The dtype that a tensor of the model is shown with, where nothing is known of the checkpoint's tensors."""
        return self.forms[0].dtype(name, self.settings)


def scheme_of(config: Mapping[str, Any]) -> Scheme:
    """The scheme of a checkpoint. Raises SourceError for one that edgemoe does not read, which it names."""
    for holder in (one for one in (config, config.get("text_config")) if isinstance(one, Mapping)):
        for key in ("quantization", *QUANTISED):  # MLX's own key first: its copy of the other may be another program's
            value = holder.get(key)
            if isinstance(value, Mapping) and value:
                scheme = _declared(key, value)
                fp4 = (mxfp4.DEEPSEEK,) if holder.get("expert_dtype") == "fp4" else ()
                return replace(scheme, forms=(*fp4, *scheme.forms))
    return Scheme(_UNDECLARED, {})


def _declared(key: str, value: Mapping[str, Any]) -> Scheme:
    method = value.get("quant_method")
    if method is None and "group_size" in value and "bits" in value:
        method = "mlx"
    make = _METHODS.get(method) if isinstance(method, str) else None
    if make is None:
        raise refused_config(key, value, "quantised ones")
    forms = make(key, value)
    return Scheme(forms, value, f"{key} ({method})", method == "mlx")


def refused_config(key: str, value: Mapping[str, Any], what: str) -> SourceError:
    """The error for a config.json whose key declares weights that edgemoe does not read."""
    method = value.get("quant_method") or value.get("quant_algo")
    details = [f"{method:.40}" if isinstance(method, str) else "by an unknown method"]
    bits = value.get("bits")
    if isinstance(bits, int) and not isinstance(bits, bool) and 0 < bits < 64:
        details.append(f"{bits} bits")
    return SourceError(
        f"config.json: {key}: expected weights that edgemoe reads, found {what} ({', '.join(details)}).", UNQUANTISED
    )


def _compressed(key: str, value: Settings) -> tuple[Form, ...]:
    names = formats_of(value) - {"mixed-precision", "dense"}
    unknown = sorted(names - _COMPRESSED.keys())
    if unknown or not names:
        raise refused_config(key, value, f"the format {unknown[0]!r:.40}" if unknown else "no format")
    return tuple(form for name in sorted(names) for form in _COMPRESSED[name])


def _gptq(key: str, value: Settings) -> tuple[Form, ...]:
    if value.get("checkpoint_format") not in (None, "gptq", "gptq_v2"):
        raise refused_config(key, value, f"checkpoint_format {value['checkpoint_format']!r:.40}")
    grouped = value.get("group_size") not in (None, -1)
    if value.get("desc_act") is True and grouped and not value.get("static_groups"):
        raise refused_config(key, value, "an activation order (desc_act), which puts columns of a group apart")
    overrides = value.get("dynamic")
    if isinstance(overrides, Mapping) and any(not str(name).startswith("-:") for name in overrides):
        raise refused_config(key, value, "modules with settings of their own (dynamic)")
    return (gptq.GPTQ,)


def _awq(key: str, value: Settings) -> tuple[Form, ...]:
    version = value.get("version", "gemm")
    if not isinstance(version, str) or version.lower() != "gemm":
        raise refused_config(key, value, f"version {version!r:.40}, where it reads gemm alone")
    if value.get("zero_point", True) is not True:
        raise refused_config(key, value, "no zero points (zero_point)")
    return (awq.AWQ,)


def _auto_round(key: str, value: Settings) -> tuple[Form, ...]:
    packing = value.get("packing_format", value.get("backend"))
    extra = value.get("extra_config")
    for own in extra.values() if isinstance(extra, Mapping) else ():
        if isinstance(own, Mapping) and own.get("bits", 16) not in (16, 32, value.get("bits")):
            raise refused_config(key, value, "modules with bits of their own (extra_config)")
    kind = packing.split(":")[1:2] if isinstance(packing, str) else []
    if kind in (["auto_gptq"], ["gptq"]):
        return (gptq.GPTQ,)
    if kind in (["auto_awq"], ["awq"]):
        return (awq.AWQ,)
    raise refused_config(key, value, f"packing_format {packing!r:.40}, where it reads auto_gptq and auto_awq")


def _modelopt(key: str, value: Settings) -> tuple[Form, ...]:
    algorithm = value.get("quant_algo")
    if algorithm is not None and algorithm not in _MODELOPT:
        raise refused_config(key, value, f"quant_algo {algorithm!r:.40}")
    return (nvfp4.MODELOPT, fp8.PLAIN)


def _bitsandbytes(key: str, value: Settings) -> tuple[Form, ...]:
    if value.get("load_in_8bit") or value.get("_load_in_8bit"):
        raise refused_config(key, value, "8 bits (load_in_8bit), where it reads 4 bits alone")
    return (bitsandbytes.BITSANDBYTES,)


_METHODS: Mapping[str, Callable[[str, Settings], tuple[Form, ...]]] = {
    "mxfp4": lambda *_: (mxfp4.GPT_OSS,),
    "compressed-tensors": _compressed,
    "gptq": _gptq,
    "awq": _awq,
    "auto-round": _auto_round,
    "intel/auto-round": _auto_round,
    "mlx": lambda *_: (mlx.MLX,),
    "fp8": lambda *_: (fp8.INVERSE, fp8.STACKED_INVERSE, fp8.DEEPSEEK, mxfp4.DEEPSEEK),
    "mxfp8": lambda *_: (fp8.PLAIN, fp8.STACKED, fp8.INVERSE, fp8.STACKED_INVERSE),
    "fbgemm_fp8": lambda *_: (fp8.PLAIN,),
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
    "bitsandbytes": _bitsandbytes,
}
