"""Translates a GGUF's metadata to the `config` of a checkpoint: the keys that all architectures have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgemoe.architectures import model_spec
from edgemoe.architectures.config import LARGEST_LAYERS
from edgemoe.conversion.gguf.compressed import compressed_config
from edgemoe.conversion.gguf.compressed_tensors import ARCHITECTURE as COMPRESSED
from edgemoe.conversion.gguf.divisors import llama3_scaling
from edgemoe.conversion.gguf.families import FAMILIES
from edgemoe.conversion.gguf.family_config import family_config
from edgemoe.conversion.gguf.file import GgufTensor
from edgemoe.conversion.gguf.kda import KDA
from edgemoe.conversion.gguf.keys import Metadata
from edgemoe.conversion.gguf.latent import LATENT, latent_config
from edgemoe.conversion.gguf.lightning import ARCHITECTURE as LIGHTNING
from edgemoe.conversion.gguf.lightning import lightning_config
from edgemoe.conversion.gguf.mamba import MAMBA
from edgemoe.conversion.gguf.names import ROPE_FACTORS
from edgemoe.conversion.gguf.windowed import WINDOWED, part_of
from edgemoe.errors import SourceError

_HYBRID = {**MAMBA, **KDA, COMPRESSED: compressed_config, LIGHTNING: lightning_config}
"""Architectures that read the number of heads of keys and the widths of FFNs themselves."""


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
    factors = None if family.own_divisors else tensors.get(ROPE_FACTORS)
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
    elif metadata.architecture in LATENT:
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
    factor = metadata.value("rope.scaling.factor")
    original = metadata.value("rope.scaling.original_context_length")
    # Files of programs older than the type mean a linear factor, if any (llama.cpp's load_hparams).
    stretched = factor not in (None, 0, 1) and not factors
    kind = metadata.value("rope.scaling.type", "linear" if stretched and original is None else "none")
    if kind == "none" and stretched and metadata.value("rope.scaling.type") is None:
        raise metadata.wrong("rope.scaling.type", "linear or yarn beside a factor", None)
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
    return llama3_scaling(metadata, rotated, theta, factors)
