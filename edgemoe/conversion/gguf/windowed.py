"""Configs of GGUF architectures with windows: what files say, and what llama.cpp assumes where they do not.

Each function gives the keys of a checkpoint's config that its architecture has beyond those that all have. Sources: the
files of these architectures in llama.cpp, src/models (2026).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgemoe.conversion.gguf.divisors import llama3_scaling
from edgemoe.conversion.gguf.file import GgufTensor
from edgemoe.conversion.gguf.keys import SIGMOID, SOFTMAX, Metadata
from edgemoe.conversion.gguf.names import ROPE_FACTORS, TAKE_ANOTHER
from edgemoe.errors import SourceError

STANDING = 1e29
"""A divisor of a frequency from which on a pair does not turn; llama.cpp's converter writes 1e30."""


def _afmoe(metadata: Metadata, tensors: Mapping[str, GgufTensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Trinity: every fourth layer sees the whole context; the embedding is always scaled."""
    _refuse_rules(metadata, config, "llama3")
    _require_sigmoid(metadata)
    _require_normalised(metadata, default=False)
    return _experts(metadata) | {
        "global_attn_every_n_layers": 4,
        "mup_enabled": True,
        "num_dense_layers": metadata.count("leading_dense_block_count", 0, minimum=0),
        "num_shared_experts": _shared_count(metadata),
        "route_scale": metadata.value("expert_weights_scale") or 1.0,
        "sliding_window": metadata.count("attention.sliding_window"),
    }


def _arctic(metadata: Metadata, tensors: Mapping[str, GgufTensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Arctic: a dense FFN beside the experts of every layer, as wide as the model."""
    _require_normalised(metadata, default=True)
    width = config["intermediate_size"]
    if metadata.value("expert_feed_forward_length", width) != width:
        raise metadata.wrong("expert_feed_forward_length", f"{width}", metadata.value("expert_feed_forward_length"))
    return {
        "moe_layer_frequency": 1,
        "num_experts_per_tok": metadata.count("expert_used_count"),
        "num_local_experts": metadata.count("expert_count"),
        "parallel_attn_mlp_res": True,
    }


def _cohere(metadata: Metadata, tensors: Mapping[str, GgufTensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Command A+: the first of every four layers sees the whole context, unless the file lists them. The file has the
    epsilon of one of two norms; what experts and shared experts give is averaged.
    """
    gating, normalised = metadata.value("expert_gating_func") or SIGMOID, metadata.flag("expert_weights_norm", False)
    if gating not in (SOFTMAX, SIGMOID):
        raise metadata.wrong("expert_gating_func", f"{SOFTMAX} (softmax) or {SIGMOID} (sigmoid)", gating)
    if gating == SOFTMAX and not normalised:
        raise metadata.wrong("expert_weights_norm", "true with softmax", normalised)
    theta, rms = config["rope_theta"], config["rms_norm_eps"] or None
    if metadata.value("rope.freq_base_swa", theta) != theta:
        raise metadata.wrong("rope.freq_base_swa", f"{theta}, or no such key", metadata.value("rope.freq_base_swa"))
    layers, dense = config["num_hidden_layers"], metadata.count("leading_dense_block_count", minimum=0)
    return {
        "expert_selection_fn": "softmax" if gating == SOFTMAX else "sigmoid",
        "first_k_dense_replace": dense,
        "intermediate_size": metadata.count("expert_feed_forward_length", config["intermediate_size"]),
        "layer_norm_eps": (metadata.value if rms else metadata.number)("attention.layer_norm_epsilon"),
        "layer_types": _types(metadata, layers, whole_first=True),
        "logit_scale": metadata.number("logit_scale"),
        "norm_topk_prob": bool(normalised),
        "num_experts": metadata.count("expert_count"),
        "num_experts_per_tok": metadata.count("expert_used_count"),
        "num_shared_experts": _shared_count(metadata),
        "prefix_dense_intermediate_size": config["intermediate_size"],
        "rms_norm_eps": rms,
        "shared_expert_combination_strategy": "average",
        "sliding_window": metadata.count("attention.sliding_window"),
    }


def _exaone(metadata: Metadata, tensors: Mapping[str, GgufTensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """K-EXAONE: every fourth layer sees the whole context, unless the file lists them."""
    _require_sigmoid(metadata)
    return _experts(metadata) | {
        "first_k_dense_replace": metadata.count("leading_dense_block_count", 0, minimum=0),
        "layer_types": _types(metadata, config["num_hidden_layers"], whole_first=False),
        "n_group": metadata.count("expert_group_count", 0, minimum=0) or 1,
        "norm_topk_prob": metadata.flag("expert_weights_norm", False),
        "num_shared_experts": _shared_count(metadata),
        "routed_scaling_factor": metadata.value("expert_weights_scale") or 1.0,
        "sliding_window": metadata.count("attention.sliding_window"),
        "topk_group": metadata.count("expert_group_used_count", 0, minimum=0) or 1,
    }


def _mellum(metadata: Metadata, tensors: Mapping[str, GgufTensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Mellum 2: weights of experts are always normalised, and layers with a window have plain positions."""
    _require_normalised(metadata, default=True)
    window = metadata.value("attention.sliding_window", 0)
    types = _types(metadata, config["num_hidden_layers"], whole_first=False) if window else None
    return _experts(metadata) | _positions_by_type(metadata, config) | {"layer_types": types, "norm_topk_prob": True}


def _laguna(metadata: Metadata, tensors: Mapping[str, GgufTensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Laguna: the first of every four layers sees the whole context; the shape of a gate says what it is for."""
    _require_sigmoid(metadata, absent=True)
    _require_normalised(metadata, default=False)
    layers, window = config["num_hidden_layers"], metadata.value("attention.sliding_window", 0)
    dense = metadata.count("leading_dense_block_count", 0, minimum=0)
    gate, heads = tensors.get("blk.0.attn_gate.weight"), metadata.value("attention.head_count")
    first = heads[0] if isinstance(heads, list) else heads
    found = _experts(metadata) | _positions_by_type(metadata, config)
    return found | {
        "gating": "per-head" if gate is None or gate.shape[0] == first else "per-element",
        "layer_types": _types(metadata, layers, whole_first=True) if window else None,
        "mlp_layer_types": ["dense" if number < dense else "sparse" for number in range(layers)],
        "moe_routed_scaling_factor": metadata.value("expert_weights_scale") or 1.0,
        "num_attention_heads_per_layer": heads if isinstance(heads, list) else None,
        "shared_expert_intermediate_size": metadata.count("expert_shared_feed_forward_length"),
    }


def _mimo(metadata: Metadata, tensors: Mapping[str, GgufTensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """MiMo-V2-Flash: key heads are listed by layer, and layers without a router are dense."""
    layers = config["num_hidden_layers"]
    metadata.value("leading_dense_block_count")  # the tensors say more
    _refuse_rules(metadata, config, "linear", "yarn")
    _require_sigmoid(metadata, absent=True)
    _require_normalised(metadata, default=True)
    types = _types(metadata, layers, whole_first=True)
    whole, within = _heads_by_type(metadata, types)
    sinks = {types[number] for number in range(layers) if f"blk.{number}.attn_sinks.weight" in tensors}
    return (
        _experts(metadata, key="n_routed_experts")
        | _positions_by_type(metadata, config)
        | {
            "add_full_attention_sink_bias": "full_attention" in sinks,
            "add_swa_attention_sink_bias": "sliding_attention" in sinks,
            "attention_value_scale": metadata.value("attention.value_scale") or 1.0,
            "layer_types": types,
            "mlp_layer_types": [
                "sparse" if f"blk.{number}.ffn_gate_inp.weight" in tensors else "dense" for number in range(layers)
            ],
            "num_key_value_heads": whole,
            "routed_scaling_factor": metadata.value("expert_weights_scale") or 1.0,
            "sliding_window": metadata.count("attention.sliding_window"),
            "swa_num_key_value_heads": within,
            "v_head_dim": metadata.count("attention.value_length", config["head_dim"]),
        }
    )


def _gemma(metadata: Metadata, tensors: Mapping[str, GgufTensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Gemma 4: heads of layers with a window have keys of their own, and layers whose values are keys no matrix."""
    layers, width = config["num_hidden_layers"], config["head_dim"]
    for key in ("attention.shared_kv_layers", "embedding_length_per_layer_input"):
        if metadata.value(key, 0) != 0:
            raise metadata.wrong(key, "0", metadata.value(key))
    _refuse_rules(metadata, config, "linear", "yarn", "llama3")
    _require_normalised(metadata, default=True)
    types = _types(metadata, layers, whole_first=False)
    if types[-1] != "full_attention":
        raise metadata.wrong("attention.sliding_window_pattern", "a last layer without a window", types[-1])
    own = metadata.count("attention.key_length_swa")
    for key in ("attention.value_length_swa", "rope.dimension_count_swa"):
        if metadata.value(key, own) != own:
            raise metadata.wrong(key, f"{own}, the width of a head", metadata.value(key))
    whole, within = _heads_by_type(metadata, types)
    last = f"blk.{layers - 1}.attn_v.weight"
    return {
        "attention_k_eq_v": True,
        "enable_moe_block": True,
        "final_logit_softcapping": metadata.value("final_logit_softcapping") or None,
        "global_head_dim": width,
        "head_dim": own,
        "hidden_act": None,
        "hidden_size_per_layer_input": 0,
        "layer_types": types,
        "moe_intermediate_size": metadata.count("expert_feed_forward_length"),
        "num_experts": metadata.count("expert_count"),
        "num_global_key_value_heads": whole,
        "num_key_value_heads": within,
        "rope_parameters": {
            "full_attention": {"rope_theta": config["rope_theta"], **_turning(tensors, width)},
            "sliding_attention": {"rope_type": "default", "rope_theta": metadata.value("rope.freq_base_swa", 10_000.0)},
        },
        "rope_theta": None,
        "sliding_window": metadata.count("attention.sliding_window"),
        "top_k_experts": metadata.count("expert_used_count"),
    } | ({"attention_k_eq_v": False} if last in tensors else {})


def _llama4(metadata: Metadata, tensors: Mapping[str, GgufTensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Llama 4: chunks, temperatures and layers without positions are those of the published models; a window of 0 is
    that of small models without chunks, all of whose layers have positions. 128 experts are Maverick's, without norms.
    """
    layers, width = config["num_hidden_layers"], metadata.count("expert_feed_forward_length")
    _require_sigmoid(metadata, absent=True)
    if metadata.value("expert_weights_norm", False) is not False:
        raise metadata.wrong("expert_weights_norm", "false, or no such key", True)
    for key, found in (("expert_shared_count", 1), ("expert_shared_feed_forward_length", width)):
        if metadata.value(key, found) != found:
            raise metadata.wrong(key, f"{found}, or no such key", metadata.value(key))
    chunked = metadata.value("attention.sliding_window") != 0
    experts = metadata.count("expert_count")
    return {
        "attention_chunk_size": _LLAMA4_CHUNK if chunked else None,
        "interleave_moe_layer_step": metadata.count("interleave_moe_layer_step"),
        "intermediate_size": width,
        "intermediate_size_mlp": config["intermediate_size"],
        "layer_types": [
            "chunked_attention" if kind == "sliding_attention" else "full_attention"
            for kind in _types(metadata, layers, whole_first=False)
        ]
        if chunked
        else None,
        "no_rope_layers": None if chunked else [1] * layers,
        "num_experts_per_tok": metadata.count("expert_used_count"),
        "num_local_experts": experts,
        "sliding_window": None,
        "use_qk_norm": experts != _WITHOUT_NORMS,
    }


_LLAMA4_CHUNK, _WITHOUT_NORMS = 8192, 128


def _smallthinker(metadata: Metadata, tensors: Mapping[str, GgufTensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """SmallThinker: with a window the first of every four layers has neither the window nor positions; without one all
    layers have positions. llama.cpp's window is that of the published models, whatever the file says.
    """
    _refuse_rules(metadata, config, "linear", "yarn", "llama3")
    _require_normalised(metadata, default=True)
    layers, window = config["num_hidden_layers"], metadata.value("attention.sliding_window", 0)
    if window not in (0, _SMALLTHINKER_WINDOW):
        raise metadata.wrong("attention.sliding_window", f"{_SMALLTHINKER_WINDOW}, or no such key", window)
    for key, found in (("attention.sliding_window_pattern", 4), ("rope.freq_base_swa", config["rope_theta"])):
        if metadata.value(key, found) != found:
            raise metadata.wrong(key, f"{found}, or no such key", metadata.value(key))
    gating = metadata.value("expert_gating_func")
    if gating not in (SOFTMAX, SIGMOID):
        raise metadata.wrong("expert_gating_func", f"{SOFTMAX} (softmax) or {SIGMOID} (sigmoid)", gating)
    within = [int(window > 0 and number % 4 > 0) for number in range(layers)]
    return {
        "hidden_act": None,
        "intermediate_size": None,
        "moe_ffn_hidden_size": metadata.count("expert_feed_forward_length", config["intermediate_size"]),
        "moe_num_active_primary_experts": metadata.count("expert_used_count"),
        "moe_num_primary_experts": metadata.count("expert_count"),
        "moe_primary_router_apply_softmax": gating == SOFTMAX,
        "rope_layout": within if window else None,
        "sliding_window_layout": within,
    }


_SMALLTHINKER_WINDOW = 4096


def _step(metadata: Metadata, tensors: Mapping[str, GgufTensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Step 3.5: layers that see the whole context rotate half of each head, the others all of it; heads, limits and
    windows are listed by layer, and layers without a router are dense. Divisors of frequencies are those of the
    published models, and 1 for the pairs that only layers with a window have.
    """
    _refuse_rules(metadata, config, "linear", "yarn")
    _require_sigmoid(metadata, absent=True)
    _require_normalised(metadata, default=False)
    metadata.value("leading_dense_block_count")  # the tensors say more
    layers, width, theta = config["num_hidden_layers"], config["head_dim"], config["rope_theta"]
    types = _types(metadata, layers, whole_first=True)
    heads, kv_heads = (_heads_by_type(metadata, types, f"attention.{key}") for key in ("head_count", "head_count_kv"))
    factors, rotated = tensors.get(ROPE_FACTORS), width // 2
    pairs = width // 2 if "sliding_attention" in types else rotated // 2
    rule = llama3_scaling(metadata, rotated, theta, factors, ((32.0, 131_072),), pairs) if factors else None
    limits = {
        name: _by_layer(metadata, key, layers)
        for name, key in (("swiglu_limits", "swiglu_clamp_exp"), ("swiglu_limits_shared", "swiglu_clamp_shexp"))
    }
    sparse = (str(number) for number in range(layers) if f"blk.{number}.ffn_gate_inp.weight" in tensors)
    return limits | {
        "attention_other_setting": {"num_attention_groups": kv_heads[1], "num_attention_heads": heads[1]},
        "layer_types": types,
        "moe_intermediate_size": metadata.count("expert_feed_forward_length"),
        "moe_layers_enum": ",".join(sparse),
        "moe_num_experts": metadata.count("expert_count"),
        "moe_router_scaling_factor": metadata.value("expert_weights_scale") or 1.0,
        "moe_top_k": metadata.count("expert_used_count"),
        "num_attention_heads": heads[0],
        "num_key_value_heads": kv_heads[0],
        "rope_parameters": {
            "full_attention": {"rope_theta": theta, "partial_rotary_factor": 0.5, **(rule or {})},
            "sliding_attention": {"rope_theta": metadata.value("rope.freq_base_swa", theta)},
        },
        "rope_theta": None,
        "share_expert_dim": metadata.count("expert_shared_feed_forward_length"),
        "sliding_window": metadata.count("attention.sliding_window"),
        "use_moe_router_bias": any(name.endswith(".exp_probs_b.bias") for name in tensors),
    }


def _by_layer(metadata: Metadata, key: str, layers: int) -> list[Any]:
    """A number for each layer that runs, by a list or one for all; 0 without the key. Raises SourceError."""
    found = metadata.value(key, 0.0)
    numbers = found[:layers] if isinstance(found, list) else [found] * layers
    if len(numbers) < layers or not all(type(number) in (int, float) for number in numbers):
        raise metadata.wrong(key, f"a number for each of {layers} layers", found)
    return numbers


def _turning(tensors: Mapping[str, GgufTensor], width: int) -> dict[str, Any]:
    """How many pairs of a head turn: the others have a divisor that leaves nothing of their frequency."""
    factors, path = tensors.get(ROPE_FACTORS), next(iter(tensors.values())).path
    if factors is None or factors.shape != (width // 2,) or factors.type_name != "F32":
        shape = f"{factors.shape} of {factors.type_name}" if factors else "none"
        raise SourceError(f"{path}: {ROPE_FACTORS}: expected {width // 2} F32 values, found {shape}.", TAKE_ANOTHER)
    found = factors.read(0, 1).view("<f4")[0]
    pairs = int((found < STANDING).sum())
    if not pairs or (found[:pairs] != found[0]).any() or not (found[pairs:] >= STANDING).all():
        raise SourceError(
            f"{path}: {ROPE_FACTORS}: expected one divisor for the first pairs, and pairs that stand after them.",
            TAKE_ANOTHER,
        )
    partial = {"partial_rotary_factor": part_of(2 * pairs, width), "factor": float(found[0])}
    return {"rope_type": "proportional", **partial}


def _heads_by_type(metadata: Metadata, types: Sequence[str], key: str = "attention.head_count_kv") -> tuple[int, int]:
    """The number of key heads of layers without a window, and of those with one. Raises SourceError."""
    found = metadata.value(key)
    kv_heads = found if isinstance(found, list) else [found] * len(types)
    by_type = {kind: {count for count, own in zip(kv_heads, types, strict=False) if own == kind} for kind in types}
    if len(kv_heads) < len(types) or any(len(counts) != 1 for counts in by_type.values()):
        raise metadata.wrong(key, f"a number for each of {len(types)} layers, one for each type", found)
    whole, within = (by_type.get(kind) for kind in ("full_attention", "sliding_attention"))
    return min(whole or within or {1}), min(within or whole or {1})


WINDOWED: dict[str, Callable[[Metadata, Mapping[str, GgufTensor], Mapping[str, Any]], dict[str, Any]]] = {
    "afmoe": _afmoe,
    "arctic": _arctic,
    "cohere2moe": _cohere,
    "exaone-moe": _exaone,
    "gemma4": _gemma,
    "laguna": _laguna,
    "llama4": _llama4,
    "mellum": _mellum,
    "mimo2": _mimo,
    "smallthinker": _smallthinker,
    "step35": _step,
}
"""By the name of the architecture; the last argument is the config as far as it is the same for all."""


def _experts(metadata: Metadata, key: str = "num_experts") -> dict[str, Any]:
    return {
        key: metadata.count("expert_count"),
        "moe_intermediate_size": metadata.count("expert_feed_forward_length"),
        "num_experts_per_tok": metadata.count("expert_used_count"),
    }


def _shared_count(metadata: Metadata) -> int:
    """How many shared experts there are, each as wide as a routed one."""
    count = metadata.count("expert_shared_count", 0, minimum=0)
    key, whole = "expert_shared_feed_forward_length", count * metadata.count("expert_feed_forward_length")
    if metadata.value(key, whole) != whole:
        raise metadata.wrong(key, f"{whole}, that of {count} experts", metadata.value(key))
    return count


def _types(metadata: Metadata, layers: int, whole_first: bool) -> Sequence[str]:
    """The type of each layer: by a list, or by a number of layers of which the first or the last sees everything."""
    key = "attention.sliding_window_pattern"
    found = metadata.value(key, 4)
    if isinstance(found, bool) or (
        isinstance(found, list) and len(found) >= layers
    ):  # of equal values, only one is left
        flags = [found] * layers if isinstance(found, bool) else found[:layers]
        if all(flag in (0, 1) for flag in flags):
            return ["sliding_attention" if flag else "full_attention" for flag in flags]
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise metadata.wrong(key, f"a flag for each of {layers} layers, or a number of layers", found)
    whole = 0 if whole_first else found - 1
    return ["full_attention" if number % found == whole else "sliding_attention" for number in range(layers)]


def _positions_by_type(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Positions for each type of layer: a rule stretches those of layers that see the whole context alone."""
    theta, head_dim = config["rope_theta"], config["head_dim"]
    whole = dict(config.get("rope_scaling") or {"rope_type": "default"})
    _refuse_rules(metadata, config, "llama3")
    within = metadata.value("rope.freq_base_swa", theta)
    partial = config.get("partial_rotary_factor")
    parts: dict[str, Any] = {}
    if partial is not None:
        rotated = metadata.count("rope.dimension_count_swa", metadata.count("rope.dimension_count", head_dim))
        parts = {"full_attention": partial, "sliding_attention": part_of(rotated, head_dim)}
    positions = {
        "full_attention": whole | {"rope_theta": theta},
        "sliding_attention": {"rope_type": "default", "rope_theta": within},
    }
    for kind, part in parts.items():
        positions[kind]["partial_rotary_factor"] = part
    return {"partial_rotary_factor": None, "rope_parameters": positions, "rope_scaling": None, "rope_theta": None}


def _refuse_rules(metadata: Metadata, config: Mapping[str, Any], *rules: str) -> None:
    """Refuse rules of positions that llama.cpp does not follow for this architecture."""
    rule = (config.get("rope_scaling") or {}).get("rope_type")
    if rule in rules:
        raise metadata.wrong("rope.scaling.type", f"not {rule}, which llama.cpp does not follow here", rule)


def part_of(rotated: int, head_dim: int) -> float:
    """The factor of which the whole part of `factor * head_dim` is `rotated`."""
    factor = rotated / head_dim
    return factor if int(head_dim * factor) == rotated else math.nextafter(factor, math.inf)


def _require_sigmoid(metadata: Metadata, absent: bool = False) -> None:
    found = metadata.value("expert_gating_func", 0)
    if found != SIGMOID and not (absent and not found):
        raise metadata.wrong("expert_gating_func", f"{SIGMOID} (sigmoid)", found)


def _require_normalised(metadata: Metadata, default: bool) -> None:
    if metadata.value("expert_weights_norm", default) is not True:
        raise metadata.wrong("expert_weights_norm", "true", metadata.value("expert_weights_norm", default))
