"""Translates a GGUF's metadata to the `config` of a checkpoint: the keys that all architectures have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgemoe.architectures import model_spec
from edgemoe.architectures.config import LARGEST_LAYERS
from edgemoe.conversion.gguf.families import FAMILIES
from edgemoe.conversion.gguf.family_config import family_config
from edgemoe.conversion.gguf.file import GgufTensor
from edgemoe.conversion.gguf.kda import KDA
from edgemoe.conversion.gguf.keys import Metadata
from edgemoe.conversion.gguf.latent import ARCHITECTURE as LATENT
from edgemoe.conversion.gguf.latent import latent_config
from edgemoe.conversion.gguf.lightning import ARCHITECTURE as LIGHTNING
from edgemoe.conversion.gguf.lightning import lightning_config
from edgemoe.conversion.gguf.mamba import MAMBA
from edgemoe.conversion.gguf.names import ROPE_FACTORS, TAKE_ANOTHER
from edgemoe.conversion.gguf.windowed import WINDOWED, part_of
from edgemoe.errors import SourceError

_HYBRID = {**MAMBA, **KDA, LIGHTNING: lightning_config}
"""Architectures of which some layers alone have heads of keys, and that read the widths of FFNs themselves."""


def checkpoint_config(metadata: Metadata, tensors: Mapping[str, GgufTensor]) -> dict[str, Any]:
    """Build the config of this model's checkpoint from the metadata and the tensors present."""
    windowed, hybrid = metadata.architecture in WINDOWED, metadata.architecture in _HYBRID
    count_heads = metadata.most if windowed else metadata.count
    heads = count_heads("attention.head_count")
    width = metadata.count("embedding_length")
    head_dim = metadata.count("attention.key_length", width // heads or None)
    family = FAMILIES[metadata.architecture]
    rotated = metadata.count("rope.dimension_count", head_dim)
    whole = {} if family.value_width else {"attention.value_length": metadata.count("attention.value_length", head_dim)}
    for key, found in (whole if family.partial_rotation else whole | {"rope.dimension_count": rotated}).items():
        if found != head_dim:
            raise metadata.wrong(key, f"{head_dim}, the width of a head", found)
    further = metadata.count("nextn_predict_layers", 0, minimum=0)
    layers = metadata.count("block_count")
    if layers > LARGEST_LAYERS:  # before anything is listed layer by layer
        raise metadata.wrong("block_count", f"at most {LARGEST_LAYERS}", layers)
    if further >= layers:
        raise metadata.wrong("nextn_predict_layers", f"fewer than all {layers} layers", further)
    embedding = tensors.get("token_embd.weight")
    config = {
        "model_type": family.model_type,
        "vocab_size": embedding.shape[0] if embedding else metadata.count("vocab_size"),
        "hidden_size": width,
        "intermediate_size": 1
        if hybrid
        else metadata.count("feed_forward_length", 1 if family.linear_layers else None),
        "num_hidden_layers": layers - further,
        "num_attention_heads": heads,
        "num_key_value_heads": heads
        if family.convolutions or hybrid
        else count_heads("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": metadata.count("context_length"),
        "rms_norm_eps": metadata.value("attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.value("rope.freq_base", 10_000.0),
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    if family.partial_rotation:
        config["partial_rotary_factor"] = part_of(rotated, head_dim)
    factors = None if family.proportional else tensors.get(ROPE_FACTORS)
    scaling = _rope_scaling(metadata, rotated, config["rope_theta"], factors)
    window = metadata.value("attention.sliding_window", 0)
    if metadata.architecture == "gpt-oss":
        scaling = scaling or {"rope_type": "default"}  # its configs always say
    config |= {"rope_scaling": scaling} if scaling else {}
    config |= {"sliding_window": window} if window else {}
    if windowed:
        config |= WINDOWED[metadata.architecture](metadata, tensors, config)
    elif hybrid:
        config |= _HYBRID[metadata.architecture](metadata, tensors, config)
    elif metadata.architecture == LATENT:
        config |= latent_config(metadata, tensors, config)
    else:
        config |= family_config(metadata, tensors, head_dim)
    metadata.finish()
    try:
        model_spec(config)
    except SourceError as error:
        raise metadata.translated(error) from None
    return config


def _rope_scaling(metadata: Metadata, rotated: int, theta: Any, factors: GgufTensor | None) -> dict[str, Any] | None:
    kind = metadata.value("rope.scaling.type", "none")
    factor = metadata.value("rope.scaling.factor")
    original = metadata.value("rope.scaling.original_context_length")
    if kind == "linear" and not factors:
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn" and not factors:
        betas = {
            name: value
            for name in ("beta_fast", "beta_slow")
            if (value := metadata.value(f"rope.scaling.yarn_{name}")) is not None
        }
        # Files do not say whether the ends of the ramp are rounded; those of gpt-oss never are.
        rounded = {"truncate": False} if metadata.architecture == "gpt-oss" else {}
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **betas, **rounded}
    if kind != "none":
        raise metadata.wrong("rope.scaling.type", "none, linear or yarn", kind)
    if factors is None:
        return None
    return _llama3_scaling(metadata, rotated, theta, factors)


def _llama3_scaling(metadata: Metadata, rotated: int, theta: Any, factors: GgufTensor) -> dict[str, Any] | None:
    """Reconstruct the `llama3` rule from its effect, the only form in which the file stores it.

    The file divides each frequency by a factor: 1 for short wavelengths, `factor` for long ones, a blend in between.
    The bounds of the blend must be those of published models (1, 4 and 8192, or none at 8192); others are refused.
    """
    if factors.shape != (rotated // 2,) or factors.type_name != "F32":
        raise SourceError(
            f"{factors.path}: {ROPE_FACTORS}: expected {rotated // 2} F32 values, "
            f"found {factors.shape} of {factors.type_name}.",
            TAKE_ANOTHER,
        )
    found = factors.read(0, 1).view("<f4")[0].astype(np.float64)
    factor = float(found.max())
    if factor == 1.0 and found.min() == 1.0:
        return None
    low, original = 1.0, 8192
    if not isinstance(theta, float):
        raise metadata.wrong("rope.freq_base", "a number", theta)
    with np.errstate(all="ignore"):
        wavelengths = 2 * np.pi * theta ** (np.arange(0, rotated, 2) / rotated)
        blend = np.clip((original / wavelengths - low) / (4.0 - low), 0.0, 1.0)
        expected = {4.0: 1 / ((1 - blend) / factor + blend), low: np.where(wavelengths > original / low, factor, 1)}
    # Llama 4 has no blend: the upper bound of short wavelengths is the lower one of long ones.
    high = next((high for high, divisors in expected.items() if np.allclose(found, divisors, rtol=1e-4)), None)
    if high is None:
        raise SourceError(
            f"{factors.path}: {ROPE_FACTORS}: expected the factors of the llama3 rule (1, 4 or 1, 8192), found others.",
            TAKE_ANOTHER,
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
