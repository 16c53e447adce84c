"""Configs of Phi-3.5-MoE's GGUF files, which llama.cpp runs as another model: see `expressible.py`.

Files have LongRoPE's divisors as tensors. They lack its gains, in whose place the converter writes a factor that the
model does not have, and the distance within which its router counts experts; these are the published model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgemoe.conversion.gguf.file import GgufTensor
from edgemoe.conversion.gguf.keys import Metadata
from edgemoe.conversion.gguf.names import LONG_FACTORS, SHORT_FACTORS, TAKE_ANOTHER
from edgemoe.errors import SourceError

_GAIN, _JITTER = 1.243163121016122, 0.01


def phimoe_config(metadata: Metadata, tensors: Mapping[str, GgufTensor]) -> dict[str, Any]:
    """The keys of Phi-3.5-MoE; without divisors positions are plain ones. Raises SourceError."""
    metadata.value("rope.scaling.attn_factor")
    config: dict[str, Any] = {
        "lm_head_bias": "output.bias" in tensors,
        "num_local_experts": metadata.count("expert_count"),
        "router_jitter_noise": _JITTER,
    }
    if SHORT_FACTORS not in tensors and LONG_FACTORS not in tensors:
        return config
    original = metadata.count("rope.scaling.original_context_length")
    head_dim = metadata.count("embedding_length") // metadata.count("attention.head_count")
    pairs = metadata.count("rope.dimension_count", head_dim) // 2
    return config | {
        "original_max_position_embeddings": original,
        "rope_scaling": {
            "long_factor": _divisors(metadata, tensors, LONG_FACTORS, pairs),
            "long_mscale": _GAIN,
            "original_max_position_embeddings": original,
            "rope_type": "longrope",
            "short_factor": _divisors(metadata, tensors, SHORT_FACTORS, pairs),
            "short_mscale": _GAIN,
        },
    }


def _divisors(metadata: Metadata, tensors: Mapping[str, GgufTensor], name: str, pairs: int) -> list[float]:
    found = tensors.get(name)
    if found is None or found.shape != (pairs,) or found.type_name != "F32":
        what = "none" if found is None else f"{found.shape} of {found.type_name}"
        raise SourceError(f"{metadata.path}: {name}: expected {pairs} F32 values, found {what}.", TAKE_ANOTHER)
    values: list[float] = found.read(0, 1).view("<f4")[0].tolist()
    return values
