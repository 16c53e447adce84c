"""Latent attention in GGUF files: the keys of llama.cpp's deepseek2, which has DeepSeek-V2, V3 and their like; of
mistral4, which is that graph with queries that grow with their position; and of deepseek32 and glm-dsa, whose indexers
choose the tokens that are seen. These two are read alone: stores have no indexers, and as far as those would choose all
tokens, the same model is written as deepseek2.

The model of a file of deepseek2 follows from its gating function: softmax is V2's, sigmoid V3's. Since 2025 files have
the two parts of `kv_b_proj` apart, and heads as attention over the latents sees them; older ones have it whole, and the
heads of keys and values that it makes. Sources: llama.cpp, src/models (deepseek2, deepseek32, glm-dsa) and conversion
(2026).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgemoe.conversion.gguf.family_config import expert_width
from edgemoe.conversion.gguf.file import GgufTensor
from edgemoe.conversion.gguf.keys import SIGMOID, SOFTMAX, Metadata
from edgemoe.conversion.gguf.package import ExpertGatingFuncType, GGUFWriter
from edgemoe.conversion.gguf.windowed_metadata import write_frame, write_rope
from edgemoe.kernels.operations import SILU
from edgemoe.model.blocks import GatedFfn, LatentAttention, Moe
from edgemoe.model.spec import LayerSpec, ModelSpec

_MISTRAL = "mistral4"
_INDEXED = {"deepseek32": "deepseek_v32", "glm-dsa": "glm_moe_dsa"}
"""Models with an indexer, by their architecture."""
LATENT = frozenset({"deepseek2", _MISTRAL, *_INDEXED})
"""The architectures whose keys are read here, and written but for those with an indexer."""
_GLM_FLASH = {"block_count": (47, 48), "vocab_size": (154_880,)}
"""llama.cpp knows GLM-4.7-Flash by these, whose first files do not say that its gating function is a sigmoid."""
_V2_EXPERTS, _V2_GROUPS, _V2_KEPT = 160, 8, 3
"""DeepSeek-V2's, whose files before 2026 do not say that it has groups; Lite has fewer experts, and none."""
LARGEST_DIFFERENCE = 1e-4
"""How far the epsilon of the latents may be from that of other norms, which llama.cpp takes for both."""


def latent_config(metadata: Metadata, tensors: Mapping[str, GgufTensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Give the keys of the config that models with latent attention have beyond those that all have."""
    rotated = metadata.count("rope.dimension_count")
    key_length = metadata.count("attention.key_length_mla", metadata.count("attention.key_length"))
    if key_length <= rotated:
        raise metadata.wrong("attention.key_length_mla", f"more than {rotated}, the rotated channels", key_length)
    mistral = metadata.architecture == _MISTRAL
    sigmoid = _is_sigmoid(metadata, tensors)
    experts = metadata.count("expert_count")
    found: dict[str, Any] = {
        "model_type": "deepseek_v3" if sigmoid else "deepseek_v2",
        "head_dim": None,
        "num_key_value_heads": None,
        "partial_rotary_factor": None,
        "kv_lora_rank": metadata.count("attention.kv_lora_rank"),
        "q_lora_rank": metadata.count("attention.q_lora_rank", 0, minimum=0) or None,
        "qk_nope_head_dim": key_length - rotated,
        "qk_rope_head_dim": rotated,
        "v_head_dim": metadata.count("attention.value_length_mla", metadata.count("attention.value_length")),
        "first_k_dense_replace": metadata.count("leading_dense_block_count", 0, minimum=0),
        "moe_intermediate_size": expert_width(metadata, tensors, "expert_feed_forward_length", "exps"),
        "n_routed_experts": experts,
        "n_shared_experts": metadata.count("expert_shared_count", 1),
        "num_experts_per_tok": metadata.count("expert_used_count"),
        "routed_scaling_factor": metadata.value("expert_weights_scale") or 1.0,
    }
    if mistral:
        found["model_type"] = _MISTRAL
    if metadata.architecture in _INDEXED:
        found["model_type"] = _INDEXED[metadata.architecture]
        found["index_topk"] = metadata.count("attention.indexer.top_k")
        for key in ("head_count", "key_length", "types"):  # of what is left out
            metadata.value(f"attention.indexer.{key}")
    normalised = metadata.flag("expert_weights_norm", False)
    if not sigmoid and normalised and not mistral:
        raise metadata.wrong("expert_weights_norm", "false with softmax", normalised)
    groups = {
        "n_group": metadata.count("expert_group_count", 0, minimum=0) or 1,
        "topk_group": metadata.count("expert_group_used_count", 0, minimum=0) or 1,
    }
    if found["model_type"] == "deepseek_v2" and groups["n_group"] == 1 and experts == _V2_EXPERTS:
        groups = {"n_group": _V2_GROUPS, "topk_group": _V2_KEPT}
    if sigmoid or mistral:
        found["norm_topk_prob"] = normalised
    else:
        found["topk_method"] = "group_limited_greedy" if groups["n_group"] > 1 else "greedy"
    return found | groups | (_growing_positions if mistral else _positions)(metadata, config)


def _is_sigmoid(metadata: Metadata, tensors: Mapping[str, GgufTensor]) -> bool:
    gating = metadata.value("expert_gating_func", 0)
    if metadata.architecture in _INDEXED:
        if gating not in (0, SIGMOID):
            raise metadata.wrong("expert_gating_func", f"{SIGMOID} (sigmoid)", gating)
        return True
    if metadata.architecture == _MISTRAL:
        if gating not in (0, SOFTMAX):
            raise metadata.wrong("expert_gating_func", f"{SOFTMAX} (softmax)", gating)
        return False
    if gating not in (0, SOFTMAX, SIGMOID):
        raise metadata.wrong("expert_gating_func", f"{SOFTMAX} (softmax) or {SIGMOID} (sigmoid)", gating)
    if gating:
        return bool(gating == SIGMOID)
    if any(name.endswith(".exp_probs_b.bias") for name in tensors):
        return True
    embedding = tensors.get("token_embd.weight")
    found = {"block_count": metadata.value("block_count"), "vocab_size": embedding.shape[0] if embedding else 0}
    return all(value in _GLM_FLASH[key] for key, value in found.items())


def _positions(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Give YaRN's factor of the scores; that of the rotation is always 1."""
    multiplier = metadata.value("rope.scaling.yarn_log_multiplier", 0.0)
    scaling = config.get("rope_scaling")
    if not scaling or scaling["rope_type"] != "yarn":
        return {}
    if not isinstance(multiplier, float):
        raise metadata.wrong("rope.scaling.yarn_log_multiplier", "a number", multiplier)
    if not multiplier:
        return {"rope_scaling": scaling | {"attention_factor": 1.0}}
    weight = round(10 * multiplier, 9)
    return {"rope_scaling": scaling | {"mscale": weight, "mscale_all_dim": weight}}


def _growing_positions(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Give positions with the factor of queries, which grows by steps of the context before it was stretched."""
    found = _positions(metadata, config)
    if "rope_scaling" not in found:
        raise metadata.wrong("rope.scaling.type", "yarn", metadata.value("rope.scaling.type"))
    scale = metadata.value("attention.temperature_scale", 0.0)
    if not scale:
        return found
    key, original = "attention.temperature_length", found["rope_scaling"]["original_max_position_embeddings"]
    if metadata.value(key, original) != original:
        raise metadata.wrong(key, f"{original}, the context before it was stretched", metadata.value(key))
    return {"rope_scaling": found["rope_scaling"] | {"llama_4_scaling_beta": scale}}


def latent_notices(metadata: Metadata, path: Path) -> Iterator[str]:
    """Yield a paragraph about what a file does not say of queries, which llama.cpp's converter leaves out."""
    key = "attention.temperature_scale"
    if metadata.architecture == _MISTRAL and not metadata.value(key, 0.0):
        yield (
            f"{path}: {_MISTRAL}.{key} is missing; expected by how much queries grow with their position. They do not"
            " grow, as llama.cpp runs this file: where those of the model do, its answers are worse beyond the first"
            f" {metadata.value('rope.scaling.original_context_length')} tokens. Take another GGUF of this model."
        )


# ---- the way back ------------------------------------------------------------------------------------------------


def latent_of(spec: ModelSpec) -> list[LatentAttention]:
    """The latent attention of every layer."""
    return [block.body for layer in spec.layers for block in layer.blocks if isinstance(block.body, LatentAttention)]


def latent_problems(spec: ModelSpec) -> Iterator[str]:
    """Yield what llama.cpp has not. The exporter reads the file back too, which finds whatever else is missing."""
    latents, ffns = latent_of(spec), [layer.blocks[-1].body for layer in spec.layers]
    plain = all(len(layer.blocks) == 2 and layer == LayerSpec.of(*_bodies(layer)) for layer in spec.layers)
    if not plain or len(latents) != len(ffns) or any(one != latents[0] for one in latents):
        yield "layers but of latent attention, the same in all, then an FFN, each with a norm before it"
        return
    if not spec.routed:
        yield "models without routed experts"
        return
    own, rope = latents[0], latents[0].rope
    if rope is None:
        yield "attention without rotary positions"
        return
    if rope.pairing != "neighbours":
        yield f"rotation of {rope.pairing}"
    if rope.scaling == "yarn" and not math.isclose(rope.parameters["attention_factor"], 1.0):
        yield "YaRN with a factor of the rotation"
    if abs(own.latent_epsilon - spec.norm_epsilon) > LARGEST_DIFFERENCE:
        yield f"epsilon of {own.latent_epsilon:g} for norms of latents beside {spec.norm_epsilon:g} for others"
    for ffn in dict.fromkeys(ffns):
        if isinstance(ffn, Moe):
            yield from _moe_problems(ffn)
        elif not isinstance(ffn, GatedFfn) or ffn.activation != SILU or ffn.bias:
            yield "dense layers but with SiLU and without biases"


def _bodies(layer: LayerSpec) -> tuple[Any, ...]:
    return tuple(block.body for block in layer.blocks)


def _moe_problems(moe: Moe) -> Iterator[str]:
    if moe.router.groups > 1 and moe.router.group_best == 1:
        yield "groups of experts that their best one is worth"
    if moe.shared is None or moe.shared.intermediate_size % moe.intermediate_size:
        yield "shared experts but ungated ones of the width of the routed experts"


def latent_remarks(spec: ModelSpec) -> Iterator[str]:
    """Say what llama.cpp computes a little differently, or beyond some number of tokens."""
    own = latent_of(spec)[0].latent_epsilon
    if own != spec.norm_epsilon:
        yield (
            f"llama.cpp takes the epsilon of other norms, {spec.norm_epsilon:g}, for those of latents too, whose own is"
            f" {own:g}: results differ a little, as in every GGUF of it."
        )
    if spec.positions_limit == "indexer":
        yield (
            f"The file holds the model up to {spec.max_positions:,} tokens, as many as its indexer chooses, which"
            " stores leave out: in a longer context llama.cpp would run another model from it, in which every token"
            " sees all before it."
        )


def write_latent(writer: GGUFWriter, spec: ModelSpec) -> None:
    """Write all keys of the model itself."""
    own = latent_of(spec)[0]
    ffns = [layer.blocks[-1].body for layer in spec.layers]
    moe = next(ffn for ffn in ffns if isinstance(ffn, Moe))
    dense = next(
        (ffn.intermediate_size for ffn in ffns if isinstance(ffn, GatedFfn)), moe.top_k * moe.intermediate_size
    )
    assert moe.shared is not None  # `latent_problems` has seen to it
    router, sigmoid = moe.router, moe.router.score == "sigmoid"
    write_frame(writer, spec)
    writer.add_head_count(own.heads)
    writer.add_head_count_kv(1)
    writer.add_q_lora_rank(own.query_rank)
    writer.add_kv_lora_rank(own.latent_dim)
    writer.add_key_length(own.latent_dim + own.rotary_dim)
    writer.add_value_length(own.latent_dim)
    writer.add_key_length_mla(own.nope_dim + own.rotary_dim)
    writer.add_value_length_mla(own.value_dim)
    writer.add_feed_forward_length(dense)
    writer.add_leading_dense_block_count(next(n for n, ffn in enumerate(ffns) if isinstance(ffn, Moe)))
    writer.add_expert_count(moe.num_experts)
    writer.add_expert_used_count(moe.top_k)
    writer.add_expert_feed_forward_length(moe.intermediate_size)
    writer.add_expert_shared_count(moe.shared.intermediate_size // moe.intermediate_size)
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID if sigmoid else ExpertGatingFuncType.SOFTMAX)
    writer.add_expert_weights_norm(router.normalise)
    writer.add_expert_weights_scale(router.scale)
    if router.groups > 1:
        writer.add_expert_group_count(router.groups)
        writer.add_expert_group_used_count(router.kept_groups)
    assert own.rope is not None
    write_rope(writer, own.rope)
    if own.rope.scaling == "yarn":
        writer.add_rope_scaling_yarn_log_mul(0.1 * _score_weight(own))
    if own.temperature is not None:
        writer.add_attn_temperature_scale(own.temperature.scale)
        writer.add_attn_temperature_length(own.temperature.period)


def _score_weight(own: LatentAttention) -> float:
    """The `mscale_all_dim` that the scale of the scores comes from."""
    gain = math.sqrt(own.scale * math.sqrt(own.nope_dim + own.rotary_dim))
    factor = own.rope.parameters["factor"] if own.rope else 1.0
    return round((gain - 1) / (0.1 * math.log(factor)), 9) if factor > 1 else 0.0
