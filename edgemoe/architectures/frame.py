"""Reads the parts of a `config.json` that several families share: widths and head, attention, experts, layers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from edgemoe.architectures import config as limits
from edgemoe.architectures.config import DAMAGED, ConfigReader, unsupported
from edgemoe.architectures.positions import read_rope
from edgemoe.errors import SourceError
from edgemoe.model.blocks import Attention, Body, GatedFfn, Moe, RouterSpec, SharedExpert
from edgemoe.model.spec import LayerSpec, ModelSpec


def read_frame(
    reader: ConfigReader,
    family: str,
    *,
    epsilon_key: str = "rms_norm_eps",
    tied: bool = False,
    layer_types: Collection[str] = ("full_attention",),
    windows: bool = False,
) -> ModelSpec:
    """A `ModelSpec` without its layers. Raises SourceError.

    `tied` says whether the embedding is the head unless the config does; `layer_types`: what the config's list of that
    name may hold. With `windows` the family reads the windows of its layers itself (`read_windows`); else they are
    refused.
    """
    reader.require("hidden_act", "silu", "swish", default="silu")
    max_positions = reader.integer("max_position_embeddings", maximum=limits.LARGEST_POSITIONS)
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
        norm_epsilon=reader.number(epsilon_key, maximum=1.0),
        max_positions=max_positions,
        tied_embeddings=reader.flag("tie_word_embeddings", tied),
    )


def _refuse_sliding_window(reader: ConfigReader, max_positions: int) -> None:
    """Refuse a window shorter than the context; one that is off, or at least as long as the context, has no effect."""
    window = reader.value("sliding_window")
    reader.value("max_window_layers")  # selects the layers that a window would apply to
    switched_off = not reader.flag("use_sliding_window", window is not None)
    if window is None or switched_off:
        return
    if isinstance(window, bool) or not isinstance(window, int) or window < max_positions:
        raise unsupported("sliding_window", window, f"attention over the whole context of {max_positions}")


def read_windows(reader: ConfigReader, count: int, default_types: Sequence[str]) -> tuple[int, ...]:
    """The window of each of `count` layers, 0 without one: by `layer_types`, or by `default_types` in turn.

    `read_frame` has checked the types. Raises SourceError where `sliding_window` is missing though a layer has one.
    """
    listed = reader.sequence("layer_types")
    types = listed or [default_types[number % len(default_types)] for number in range(count)]
    if "sliding_attention" not in types:
        reader.value("sliding_window")
        return (0,) * count
    window = reader.integer("sliding_window", maximum=limits.LARGEST_POSITIONS)
    return tuple(window if kind == "sliding_attention" else 0 for kind in types)


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
) -> Attention:
    """Heads, biases, positions and scale (from the root of the head width unless `scale` is given). Raises SourceError.

    `bias_key` is the family's key for biases on query, key and value; without it they are refused. `partial` is the
    part of each head that a family rotates unless the config says otherwise; without it any part but 1 is refused.
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
    head_dim = reader.integer("head_dim", maximum=limits.LARGEST_WIDTH, default=0)
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
        rope=read_rope(reader, head_dim, default_theta, frame.max_positions, partial),
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
    shared_width: int = 0,
    shared_gate: bool = False,
) -> Moe:
    """Routed experts. The count is `count_key` or `num_local_experts` (newer files rename one to the other)."""
    experts = reader.integer(count_key, "num_local_experts", maximum=limits.LARGEST_EXPERTS)
    chosen = reader.integer("num_experts_per_tok", maximum=limits.LARGEST_EXPERTS)
    if chosen > experts:
        raise SourceError(
            f"config.json: num_experts_per_tok is {chosen}; expected at most the number of experts, {experts}.", DAMAGED
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


def read_layers(
    reader: ConfigReader,
    attention: Attention,
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
    count = reader.integer("num_hidden_layers", maximum=limits.LARGEST_LAYERS)
    if ffn.routed is not None and count * ffn.routed.num_experts > limits.LARGEST_TOTAL_EXPERTS:
        raise SourceError(
            f"config.json: {count} layers of {ffn.routed.num_experts} experts; expected at most "
            f"{limits.LARGEST_TOTAL_EXPERTS} experts in all.",
            DAMAGED,
        )
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
    made = {pair: LayerSpec.of(*pair) for pair in zip(mixers, ffns, strict=True)}  # equal layers are one object
    return tuple(made[pair] for pair in zip(mixers, ffns, strict=True))


def leading_dense_layers(
    reader: ConfigReader, count: int, *, key: str = "first_k_dense_replace", default: int | None = None
) -> Collection[int]:
    """The dense layers by a key (that of the DeepSeek and GLM families): as many as it says, from the first on."""
    leading = reader.integer(key, minimum=0, maximum=limits.LARGEST_LAYERS, default=default)
    if leading > count:
        raise SourceError(f"config.json: {key} is {leading}; expected at most the number of layers, {count}.", DAMAGED)
    return range(leading)


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
