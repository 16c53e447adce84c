"""The formats that llama.cpp's quantiser gives the matrices of a model in its named mixes, such as Q4_K_M.

Source: llama.cpp, src/llama-quant.cpp (`llama_tensor_get_type_impl`, `tensor_type_fallback`), without an importance
matrix. Rules for single architectures are left out.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgemoe.errors import UsageError
from edgemoe.kernels.formats import FORMATS, Format
from edgemoe.kernels.row_types import ROW_TYPES, TYPE_NAMES
from edgemoe.model.spec import ModelSpec

MIXES = {"q2_k": "q2k", "q3_k_m": "q3k", "q4_k_m": "q4k", "q5_k_m": "q5k", "q6_k": "q6k", "iq4_xs": "iq4xs"}
"""The names of the mixes, each with the format of most matrices."""

_NARROWER = {"q2k": "q4", "q3k": "q4", "q4k": "q5", "q5k": "q5m", "q6k": "q8", "iq4xs": "iq4nl"}
"""The format of a matrix whose columns are no whole blocks of 256."""

_ATTENTION = {"q2_k": "q3k", "q3_k_m": "q4k"}
"""The format of attention's output where it differs from most."""


def check_mix(mix: str, experts: str | None, dense: str | None, head: str | None) -> None:
    """Raise UsageError for an unknown mix, or for formats beside one."""
    if mix not in MIXES:
        raise UsageError(f"`mix`: expected one of {', '.join(MIXES)}, found {mix!r}.")
    for parameter, value in (("experts", experts), ("dense", dense), ("head", head)):
        if value is not None:
            raise UsageError(f"`{parameter}`: expected no format beside `mix={mix}`, which names all of them.")


def mix_formats(mix: str, spec: ModelSpec, formats: Mapping[str, Format | None]) -> dict[str, Format | None]:
    """The formats of the tensors of a model, where those given say which of them stay vectors and float32."""
    names, layers = spec.tensors(), len(spec.layers)
    values = [name for name in names if name.endswith((".value", ".delta_in"))]
    num_experts, queries = spec.most_experts, _queries_for_each_key(spec)
    found: dict[str, Format | None] = {}
    for name, fmt in formats.items():
        if fmt is None or fmt.name == "f32":
            found[name] = fmt
            continue
        chosen = MIXES[mix]
        layer = int(name.split(".")[1]) if name.startswith("layers.") else 0
        if name == ("head" if "head" in names else "embedding"):
            chosen = "q6k"
        elif name.endswith((".value", ".delta_in")):
            chosen = _of_values(mix, queries, values.index(name), len(values))
            chosen = "q8" if num_experts == 8 else chosen
        elif name.endswith(".key") and num_experts == 8:
            chosen = "q8"
        elif name.endswith(".down"):
            chosen = _of_down(mix, layer, layers)
        elif name.endswith(".output"):
            of_few = "q5k" if mix in ("q2_k", "q3_k_m", "q4_k_m", "iq4_xs") else chosen
            chosen = of_few if num_experts == 8 else _ATTENTION.get(mix, chosen)
        if names[name][-1] % ROW_TYPES[TYPE_NAMES[chosen]].columns:
            chosen = _NARROWER[chosen]
        found[name] = FORMATS[chosen]
    return found


def _more_bits(number: int, count: int) -> bool:
    """Whether a mix spends more on a layer: the first and last eighth, and every third between them."""
    return number < count // 8 or number >= 7 * count // 8 or (number - count // 8) % 3 == 2


def _queries_for_each_key(spec: ModelSpec) -> int:
    sizes = [layer.sizes for layer in spec.layers]
    return max((own["query"] // own["key_value"] for own in sizes if own.get("key_value")), default=1)


def _of_values(mix: str, queries: int, number: int, count: int) -> str:
    """The format of attention's values, or of a linear layer's inputs."""
    if mix == "q2_k":
        return "q4k" if queries >= 4 else "q3k"
    if mix == "q3_k_m":
        return "q5k" if number < 2 else "q4k"
    if mix == "iq4_xs":
        return "q5k" if queries >= 4 else "iq4xs"
    return "q6k" if mix == "q6_k" or _more_bits(number, count) else MIXES[mix]


def _of_down(mix: str, layer: int, layers: int) -> str:
    """The format of the second matrix of an FFN."""
    if mix == "q2_k":
        return "q3k"
    if mix == "q3_k_m":
        return "q5k" if layer < layers // 16 else "q4k"
    if mix == "iq4_xs":
        return "q5k" if layer < layers // 8 else "iq4xs"
    return "q6k" if mix == "q6_k" or _more_bits(layer, layers) else MIXES[mix]
