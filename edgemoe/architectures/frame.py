"""Reads the parts of a `config.json` that several families share: widths and head, attention, experts, layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal

from edgemoe.architectures import config as limits
from edgemoe.architectures.config import DAMAGED, ConfigReader, unsupported
from edgemoe.architectures.positions import read_rope
from edgemoe.errors import SourceError
from edgemoe.model.blocks import Attention, Body, GatedFfn, Moe, RouterSpec, SharedExpert
from edgemoe.model.spec import LayerSpec, ModelSpec

COUNT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Names of the number of routed experts; a config with several must have one number in all of them."""


def read_frame(
    reader: ConfigReader,
    family: str,
    *,
    epsilon_key: str = "rms_norm_eps",
    default_epsilon: float | None = None,
    tied: bool = False,
    layer_types: Collection[str] = ("full_attention",),
    windows: bool = False,
    own_code: str = "",
    activations: Collection[str] = ("silu", "swish"),
) -> ModelSpec:
    """A `ModelSpec` without its layers. Raises SourceError.

    `tied` says whether the embedding is the head unless the config does; `layer_types`: what the config's list of that
    name may hold. With `windows` the family reads the windows of its layers itself (`read_windows`); else they are
    refused. `own_code` is the class of which published checkpoints bring their own code, whose computation the family
    has; any other code is refused. `activations` are those that the family knows by `hidden_act`.
    """
    if own_code:
        check_own_code(reader, own_code)
    reader.require("hidden_act", *activations, default=next(iter(activations)))
    max_positions = reader.integer("max_position_embeddings", "model_max_length", maximum=limits.LARGEST_POSITIONS)
    for kind in reader.sequence("layer_types"):
        if kind not in layer_types:
            raise unsupported("layer_types", kind, " or ".join(f'"{name}"' for name in layer_types))
    if not windows:
        _refuse_sliding_window(reader, max_positions)
    return ModelSpec(
        family=family,
        vocab_size=reader.integer("vocab_size", maximum=limits.LARGEST_VOCABULARY),
        hidden_size=reader.integer("hidden_size", maximum=limits.LARGEST_WIDTH),
        layers=(),
        norm_epsilon=reader.number(epsilon_key, default_epsilon, maximum=1.0),
        max_positions=max_positions,
        tied_embeddings=reader.flag("tie_word_embeddings", tied),
    )


def check_own_code(reader: ConfigReader, name: str) -> None:
    """Refuse a checkpoint that brings code of its own, unless it is that of the class `name`. Raises SourceError."""
    code = reader.value("auto_map")
    model = code.get("AutoModelForCausalLM", code) if isinstance(code, Mapping) else code
    if model and not (isinstance(model, str) and model.rpartition(".")[2] == name):
        raise unsupported("auto_map", model, f"code of {name}")


def _refuse_sliding_window(reader: ConfigReader, max_positions: int) -> None:
    """Refuse a window shorter than the context; one that is off, or at least as long as the context, has no effect."""
    window = reader.value("sliding_window")
    reader.skip("max_window_layers")  # selects the layers that a window would apply to
    switched_off = not reader.flag("use_sliding_window", window is not None)
    if window is None or switched_off:
        return
    if isinstance(window, bool) or not isinstance(window, int) or window < max_positions:
        raise unsupported("sliding_window", window, f"attention over the whole context of {max_positions}")


def read_windows(
    reader: ConfigReader, count: int, default_types: Sequence[str], default_window: int | None = None
) -> tuple[int, ...]:
    """The window of each of `count` layers, 0 without one: by `layer_types`, or by `default_types` in turn.

    `read_frame` has checked the types. Raises SourceError where `sliding_window` is missing though a layer has one.
    """
    types = read_layer_types(reader, count, default_types)
    window = read_window(reader, types, default_window)
    return tuple(window if kind == "sliding_attention" else 0 for kind in types)


def read_layer_types(reader: ConfigReader, count: int, default_types: Sequence[str]) -> Sequence[str]:
    """The type of each of `count` layers: by `layer_types`, or by `default_types` in turn. Raises SourceError."""
    listed = reader.sequence("layer_types")
    if listed and len(listed) != count:
        raise SourceError(f"config.json: layer_types lists {len(listed)} layers; expected {count}.", DAMAGED)
    return listed or [default_types[number % len(default_types)] for number in range(count)]


def read_window(reader: ConfigReader, types: Collection[str], default: int | None = None) -> int:
    """The window of the layers that have one among layers of these types; 0 without any. Raises SourceError."""
    if "sliding_attention" not in types:
        reader.skip("sliding_window")
        return 0
    return reader.integer("sliding_window", maximum=limits.LARGEST_POSITIONS, default=default)


def read_overrides(reader: ConfigReader) -> Mapping[int, Any]:
    """The settings of layers that differ from the others, by `per_layer_config`. Raises SourceError.

    Its keys are their numbers, which transformers writes with as many digits as the last one has.
    """
    found = reader.value("per_layer_config")
    found = {} if found is None else found
    if not isinstance(found, Mapping) or not all(re.fullmatch(r"[0-9]{1,6}", str(number)) for number in found):
        raise unsupported("per_layer_config", found, "an object whose keys are numbers of layers")
    overrides = {int(number): settings for number, settings in found.items()}
    if len(overrides) < len(found):
        raise SourceError("config.json: per_layer_config has a layer twice; expected each once.", DAMAGED)
    return overrides


def read_attention(
    reader: ConfigReader,
    frame: ModelSpec,
    *,
    default_theta: float = 10_000.0,
    bias_key: str | None = None,
    bias_default: bool = False,
    bias_on_output: bool = True,
    kv_heads_required: bool = False,
    partial: float | None = None,
    scale: float | None = None,
    qk_norm: Literal["none", "head", "full"] = "none",
    default_head_dim: int = 0,
    layer_type: str = "",
    theta_key: str = "rope_theta",
    fixed_alpha: bool = False,
) -> Attention:
    """Heads, biases, positions and scale (from the root of the head width unless `scale` is given). Raises SourceError.

    `bias_key` is the family's key for biases on query, key and value; without it they are refused. `partial` is the
    part of each head that a family rotates unless the config says otherwise; without it any part but 1 is refused.
    Without `default_head_dim` a config that does not say how wide heads are means heads together as wide as the model.
    With a `layer_type` the positions are those of this type of layer (`positions.read_rope`).
    `fixed_alpha`: see `read_rope`.
    """
    heads = reader.integer("num_attention_heads", maximum=limits.LARGEST_WIDTH)
    kv_heads = reader.integer(
        "num_key_value_heads", maximum=limits.LARGEST_WIDTH, default=None if kv_heads_required else heads
    )
    if heads % kv_heads:
        raise SourceError(
            f"config.json: num_attention_heads is {heads}; expected a multiple of num_key_value_heads, which is "
            f"{kv_heads}.",
            DAMAGED,
        )
    head_dim = reader.integer("head_dim", maximum=limits.LARGEST_WIDTH, default=default_head_dim)
    if not head_dim:
        if frame.hidden_size % heads:
            raise SourceError(
                f"config.json: hidden_size is {frame.hidden_size}; without head_dim, expected a multiple of "
                f"num_attention_heads, which is {heads}.",
                DAMAGED,
            )
        head_dim = frame.hidden_size // heads
    if head_dim % 2:
        raise SourceError(
            f"config.json: heads are {head_dim} wide; expected an even width, as positions rotate pairs.", DAMAGED
        )
    if heads * head_dim > limits.LARGEST_WIDTH:
        raise SourceError(
            f"config.json: {heads} heads of width {head_dim}; expected {limits.LARGEST_WIDTH} values at most.",
            DAMAGED,
        )
    if bias_key != "attention_bias":
        reader.require("attention_bias", False)
    bias = bias_key is not None and reader.flag(bias_key, bias_default)
    return Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5 if scale is None else scale,
        rope=read_rope(
            reader,
            head_dim,
            default_theta,
            frame.max_positions,
            partial,
            fixed_alpha,
            layer_type,
            theta_key,
        ),
        qkv_bias=bias,
        output_bias=bias and bias_on_output,
        qk_norm=qk_norm,
    )


def read_experts(
    reader: ConfigReader,
    *,
    width_key: str,
    router: RouterSpec,
    count_key: str = "num_experts",
    top_k_key: str = "num_experts_per_tok",
    shared_width: int = 0,
    shared_gate: bool = False,
) -> Moe:
    """Routed experts. The count is `count_key` or one of `COUNT_KEYS`, by which programs rename it."""
    experts = reader.integer(count_key, *COUNT_KEYS, maximum=limits.LARGEST_EXPERTS)
    chosen = reader.integer(top_k_key, "num_experts_per_token", maximum=limits.LARGEST_EXPERTS)
    if chosen > experts:
        raise SourceError(
            f"config.json: {top_k_key} is {chosen}; expected at most the number of experts, {experts}.", DAMAGED
        )
    try:
        router.check(experts, chosen)
    except ValueError as error:
        raise SourceError(f"config.json: {error}.", DAMAGED) from None
    return Moe(
        num_experts=experts,
        top_k=chosen,
        intermediate_size=reader.integer(width_key, maximum=limits.LARGEST_WIDTH),
        router=router,
        shared=SharedExpert(shared_width, shared_gate) if shared_width else None,
    )


def read_sigmoid_router(
    reader: ConfigReader, *, normalise: bool = True, scale: float = 1.0, other_methods: Collection[str] = ()
) -> RouterSpec:
    """A router by sigmoid with a bias for the choice alone, groups and a scale (DeepSeek-V3). Raises SourceError.

    `normalise` and `scale` hold unless the config says otherwise. With one of the `other_methods` it has no such bias.
    """
    normalise = reader.flag("norm_topk_prob", normalise, "moe_renormalize")
    groups, kept_groups = read_groups(reader)
    for name in ("scoring_func", "score_function", "moe_router_activation_func"):
        reader.require(name, "sigmoid", "noaux_tc", default="sigmoid")
    reader.require("topk_method", "noaux_tc", *other_methods, default="noaux_tc")
    return RouterSpec(
        normalise=normalise,
        score="sigmoid",
        choice_bias=reader.value("topk_method") in (None, "noaux_tc"),
        groups=groups,
        kept_groups=kept_groups,
        epsilon=1e-20 if normalise else 0.0,
        scale=reader.number("routed_scaling_factor", scale),
    )


def read_groups(reader: ConfigReader) -> tuple[int, int]:
    """How many groups the experts are in, and how many of them a router keeps. Raises SourceError."""
    groups = reader.integer("n_group", "num_expert_group", maximum=limits.LARGEST_EXPERTS, default=1)
    kept_groups = reader.integer("topk_group", maximum=limits.LARGEST_EXPERTS, default=1)
    return (1, 1) if kept_groups == groups else (groups, kept_groups)  # all are kept, as without groups


def read_shared_width(reader: ConfigReader, count_key: str, default: int = 1) -> int:
    """The width of the FFN that shared experts are together: their number is `count_key`, or has another usual name."""
    names = (count_key, "n_shared_experts", "num_shared_experts")
    count = reader.integer(*names, minimum=0, maximum=limits.LARGEST_EXPERTS, default=default)
    return min(count * reader.integer("moe_intermediate_size", maximum=limits.LARGEST_WIDTH), limits.LARGEST_WIDTH)


def read_layer_count(reader: ConfigReader, ffn: Body) -> int:
    """The number of layers; refused where they have too many experts in all. Raises SourceError."""
    count = reader.integer("num_hidden_layers", maximum=limits.LARGEST_LAYERS)
    if ffn.routed is not None and count * ffn.routed.num_experts > limits.LARGEST_TOTAL_EXPERTS:
        raise SourceError(
            f"config.json: {count} layers of {ffn.routed.num_experts} experts; expected at most "
            f"{limits.LARGEST_TOTAL_EXPERTS} experts in all.",
            DAMAGED,
        )
    return count


def read_layers(
    reader: ConfigReader,
    attention: Body,
    ffn: Moe | GatedFfn,
    dense: GatedFfn | None = None,
    dense_layers: Callable[[ConfigReader, int], Collection[int]] = lambda reader, count: (),
    others: Mapping[str, Body] = MappingProxyType({}),
    default_types: Sequence[str] = (),
) -> tuple[LayerSpec, ...]:
    """The layers, all alike but those that `dense_layers` names, which have `dense` in the place of `ffn`, and those of
    `layer_types` that `others` has a body for, in the place of attention. A config without `layer_types` means
    `default_types` in turn, if there are some.
    """
    count = read_layer_count(reader, ffn)
    layer_types = reader.sequence("layer_types")
    if default_types and not layer_types:
        layer_types = [default_types[number % len(default_types)] for number in range(count)]
    if layer_types and len(layer_types) != count:
        raise SourceError(f"config.json: layer_types lists {len(layer_types)} layers; expected {count}.", DAMAGED)
    if others and not layer_types:
        raise SourceError(f"config.json: layer_types is missing; expected the kinds of {count} layers.", DAMAGED)
    mixers = [others.get(kind, attention) for kind in layer_types] or [attention] * count
    dense_at = () if dense is None else dense_layers(reader, count)
    ffns: list[Body] = [dense if dense is not None and number in dense_at else ffn for number in range(count)]
    return pair_layers(mixers, ffns)


def pair_layers(mixers: Sequence[Body], ffns: Sequence[Body]) -> tuple[LayerSpec, ...]:
    """Layers of a mixer and an FFN each; equal layers are one object."""
    made = {pair: LayerSpec.of(*pair) for pair in zip(mixers, ffns, strict=True)}
    return tuple(made[pair] for pair in zip(mixers, ffns, strict=True))


def normed_around(layers: Sequence[LayerSpec]) -> tuple[LayerSpec, ...]:
    """The same layers with a norm after each block too, before its result joins the stream."""
    made = {layer: LayerSpec(tuple(replace(block, post_norm=True) for block in layer.blocks)) for layer in layers}
    return tuple(made[layer] for layer in layers)


def leading_dense_layers(
    reader: ConfigReader, count: int, *, key: str = "first_k_dense_replace", default: int | None = None
) -> Collection[int]:
    """The dense layers by a key (that of the DeepSeek and GLM families): as many as it says, from the first on."""
    leading = reader.integer(key, minimum=0, maximum=limits.LARGEST_LAYERS, default=default)
    if leading > count:
        raise SourceError(f"config.json: {key} is {leading}; expected at most the number of layers, {count}.", DAMAGED)
    return range(leading)


def read_ffn_types(reader: ConfigReader, count: int, default_leading: int = 0) -> Collection[int]:
    """The dense layers by `mlp_layer_types`, a word for each layer; without it the leading ones. Raises SourceError."""
    types = reader.sequence("mlp_layer_types")
    if types and len(types) != count:
        raise SourceError(f"config.json: mlp_layer_types lists {len(types)} layers; expected {count}.", DAMAGED)
    for kind in types:
        if kind not in ("dense", "sparse"):
            raise unsupported("mlp_layer_types", kind, '"dense" or "sparse"')
    return {number for number, kind in enumerate(types) if kind == "dense"} if types else range(default_leading)


def listed_dense_layers(reader: ConfigReader, count: int) -> Collection[int]:
    """The dense layers by the keys of the Qwen families: those listed, and all but every so-manieth."""
    step = reader.integer("decoder_sparse_step", maximum=limits.LARGEST_LAYERS, default=1)
    listed = reader.sequence("mlp_only_layers")
    for number in listed:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < count:
            raise SourceError(
                f"config.json: mlp_only_layers holds {limits.show(number)}; expected layers from 0 to {count - 1}.",
                DAMAGED,
            )
    return {number for number in range(count) if number in listed or (number + 1) % step}
