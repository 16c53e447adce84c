"""Writes a model's metadata for llama.cpp's loader of its architecture, and refuses what the keys cannot express.

Where a loader has no key for a property, it assumes one fixed value: a model that differs would load there and compute
something else. So such a model is refused here, and the error names the property.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edgemoe.conversion.gguf.names import FAMILIES
from edgemoe.conversion.gguf.package import ExpertGatingFuncType, GGUFWriter
from edgemoe.conversion.gguf.windowed import WINDOWED
from edgemoe.conversion.gguf.windowed_metadata import attention_of, write_rope, write_windowed
from edgemoe.errors import StoreError
from edgemoe.kernels.operations import SILU, Activation
from edgemoe.model.blocks import Attention, Body, GatedDelta, GatedFfn, Moe, OutputGate, RouterSpec, ShortConv
from edgemoe.model.rope import RopeSpec, rope_frequencies
from edgemoe.model.spec import LayerSpec, ModelSpec

ARCHITECTURES = {family.model_type: name.partition(" ")[0] for name, family in FAMILIES.items()} | {
    "bailing_moe": "bailingmoe2",
    "granitemoeshared": "granitemoe",
    "sarvam_moe": "bailingmoe2",
    "solar_open": "glm4moe",
}
"""GGUF architecture of each family, by `model_type`."""

INTERLEAVED = frozenset(ARCHITECTURES[family.model_type] for family in FAMILIES.values() if family.interleaved_rotation)
"""Architectures that rotate neighbouring pairs: their rows of query and key are in the order of `pairs_order`."""

FAMILY = {name.partition(" ")[0]: family for name, family in FAMILIES.items()}
"""By architecture."""

NEIGHBOURS = frozenset({"ernie4_5-moe"})
"""Architectures that rotate neighbouring channels of models that do so too."""

_SIGMOID = frozenset({"bailingmoe2", "dots1", "glm4moe", "hy_v3"})
_SIGMOID_ROUTER = RouterSpec(normalise=True, score="sigmoid", choice_bias=True)
"""Architectures whose experts are weighed by sigmoids and chosen with a bias, and their router but for its numbers."""
_GROUPED = frozenset({"bailingmoe2", "dots1", "glm4moe"})
"""Architectures among them whose experts may be in groups, and whose weights need not be normalised."""

_NORMALISED_SIGMOID = frozenset({"lfm2moe", "minimax-m2"})
"""Architectures with such a router whose weights are normalised and not scaled, and without a shared expert."""

_SOFTMAX_ROUTERS = {
    "ernie4_5-moe": (RouterSpec(True, choice_bias=True, least_sum=1e-12), " with a bias for the choice"),
    "gpt-oss": (RouterSpec(True, logit_bias=True), " of the logits, which have biases"),
}
"""The routers of other architectures that are not just softmax of the logits, with the words for them."""

_RENORMALISE = frozenset(
    {"llama", "ernie4_5-moe", "gpt-oss", "granitemoe", "hunyuan-moe", "qwen35moe", "qwen3moe", "qwen3next"}
)
"""Architectures that normalise the weights of a token's experts to sum to one; the others do not."""

_SHARED_ALWAYS = frozenset({"bailingmoe2", "deepseek", "dots1", "glm4moe", "hunyuan-moe", "hy_v3"})
"""Architectures whose layers always have shared experts, as wide together as several of the others."""
_QKV_BIAS = frozenset(
    {"llama", "deepseek", "glm4moe", "gpt-oss", "granitemoe", "hunyuan-moe", "hy_v3", "minimax-m2", "qwen2moe"}
)
_OUTPUT_BIAS = frozenset({"llama", "gpt-oss", "granitemoe"})
_QK_NORM = {
    "bailingmoe2": ("head",),
    "dots1": ("head",),
    "glm4moe": ("none", "head"),
    "hunyuan-moe": ("head",),
    "hy_v3": ("head",),
    "lfm2moe": ("head",),
    "minimax-m2": ("full",),
    "olmoe": ("full",),
    "qwen35moe": ("head",),
    "qwen3moe": ("head",),
    "qwen3next": ("head",),
}
"""The norms of queries and keys (`Attention.qk_norm`) of the architectures that have some."""
_QK_NORM_WORDS = {
    "none": "attention without norms of queries and keys",
    "head": "norms of each head's queries and keys",
    "full": "norms of whole queries and keys",
}
_HUNYUAN, _HY3, _ERNIE, _LING, _DEEPSEEK = "hunyuan-moe", "hy_v3", "ernie4_5-moe", "bailingmoe2", "deepseek"
_GPT_OSS = "gpt-oss"
"""The one architecture with windows, sinks, biases of experts and of the router, and the clamped activation: it always
has them, with windows in every second layer, from the first on."""
_CLAMPED = Activation("clamped_silu", alpha=1.702, limit=7.0, offset=1.0)
"""Its activation; the numbers stand in llama.cpp, not in the file."""
_SCALED = frozenset({"granitemoe"})
"""Architectures with multipliers on embedding, attention, residual and logits."""
_NEVER_TIED = frozenset({"bailingmoe2", "deepseek", "dots1", "gpt-oss", "minimax-m2", "olmoe", "qwen2moe"})
_NO_HEAD_DIM = frozenset({"bailingmoe2", "deepseek", "olmoe", "qwen2moe"})
"""Architectures whose heads must be together as wide as the model."""
_MULTI_HEAD = frozenset({"dots1", "olmoe"})
"""Architectures with as many heads of keys and values as of queries."""
_EXPERT_WIDTH = frozenset(
    {"bailingmoe2", "deepseek", "dots1", "ernie4_5-moe", "glm4moe", "hy_v3", "lfm2moe", "qwen2moe", "qwen3moe"}
)
"""Architectures with a key for the width of experts beside that of dense layers."""
_EXPERT_WIDTH_TWICE = frozenset({"gpt-oss", "hunyuan-moe", "minimax-m2"})
"""Architectures with both keys for the width of experts."""

NO_GGUF = "Use the store with edgemoe; no GGUF of this model is possible."


def check_expressible(spec: ModelSpec) -> None:
    """Raises StoreError if llama.cpp would compute something else, or cannot load the model at all."""
    if spec.family not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise StoreError(
            f"this model cannot be a GGUF: expected a family that llama.cpp has, one of {known};"
            f" found {spec.family[:80]}.",
            NO_GGUF,
        )
    problem = next(_problems(spec), None)
    if problem:
        raise StoreError(
            f"this model cannot be a GGUF: llama.cpp's {ARCHITECTURES[spec.family]} has no {problem}.",
            NO_GGUF,
        )


def _problems(spec: ModelSpec) -> Iterator[str]:
    architecture = ARCHITECTURES[spec.family]
    if architecture in WINDOWED:
        if not spec.routed:
            yield "models without routed experts"
        if all(own.rope is None for own in attention_of(spec)):
            yield "attention without rotary positions"
        if architecture == "mellum" and len({own.rope.theta for own in attention_of(spec) if own.rope}) > 1:
            yield "another theta within windows"
        if any(own.qkv_bias or own.output_bias for own in attention_of(spec)):
            yield "biases of attention"
        return
    if not all(map(_has_two_plain_blocks, spec.layers)):
        yield (
            "layers but of attention, a convolution or Gated DeltaNet, then an FFN, each with a norm before it and"
            " plainly added"
        )
        return
    if not any(isinstance(mixer, Attention) for mixer in mixers(spec)):
        yield "models without attention"
        return
    yield from _window_problems(architecture, spec)
    spec = replace(spec, layers=tuple(map(_without_window, spec.layers)))
    attention, ffn = attention_and_ffn(spec)
    ffns = {number: layer.blocks[1].body for number, layer in enumerate(spec.layers)}
    dense = _dense_layers(spec)
    alike = (
        [mixer for mixer in mixers(spec) if isinstance(mixer, Attention)],
        [body for number, body in ffns.items() if number in dense],
        [body for number, body in ffns.items() if number not in dense],
    )
    convolutions = {mixer for mixer in mixers(spec) if isinstance(mixer, ShortConv)}
    if any(body != bodies[0] for bodies in alike for body in bodies) or len(convolutions) > 1:
        yield "layers of several kinds"
    if bool(convolutions) != FAMILY[architecture].convolutions:
        yield f"models with{'out' * (not convolutions)} convolutions"
    yield from _linear_problems(FAMILY[architecture].linear_layers, spec, attention)
    if any(convolution.bias for convolution in convolutions):
        yield "biases on convolutions"
    rope = attention.rope
    if rope is None:
        yield "attention without rotary positions"
        return
    if (rope.pairing == "neighbours") != (architecture in NEIGHBOURS):
        yield f"rotation of {rope.pairing}"
    yield from _attention_problems(architecture, attention)
    for body in dict.fromkeys(layer.blocks[-1].body for layer in spec.layers):
        yield from _ffn_problems(architecture, body)
    if isinstance(ffn, GatedFfn) and spec.family != "llama":
        yield "dense layers"
    if isinstance(ffn, Moe):
        yield from _moe_problems(architecture, ffn)
    if rope.rotated != attention.head_dim and not FAMILY[architecture].partial_rotation:
        yield "rotation of a part of each head"
    multipliers = (spec.embedding_scale, spec.residual_scale, spec.logit_scale)
    if architecture not in _SCALED and (any(m != 1 for m in multipliers) or not _plain_scale(attention)):
        yield "multipliers on embedding, attention, residual or logits"
    if architecture in _NEVER_TIED and spec.tied_embeddings:
        yield "head that is the embedding"
    if architecture in _NO_HEAD_DIM and attention.heads * attention.head_dim != spec.hidden_size:
        yield "heads that are not together as wide as the model"
    if architecture in _MULTI_HEAD and attention.kv_heads != attention.heads:
        yield "grouped-query attention"
    if rope.scaling == "yarn" and not _plain_yarn(rope, truncated=architecture != _GPT_OSS):
        yield "YaRN with unusual parameters (usual: 32, 1, the attention factor from the scaling factor)"


def _linear_problems(expected: bool, spec: ModelSpec, attention: Attention) -> Iterator[str]:
    linear = list(dict.fromkeys(mixer for mixer in mixers(spec) if isinstance(mixer, GatedDelta)))
    if bool(linear) != expected:
        yield f"models with{'out' * (not linear)} layers of Gated DeltaNet"
    if attention.output_gate != (OutputGate("channel") if expected else None):
        yield f"attention with{'out' * (attention.output_gate is None)} a gate of its output, or with another gate"
    if not linear or not expected:
        return
    if len(linear) > 1:
        yield "layers of several kinds"
    if linear[0].key_dim != linear[0].value_dim:
        yield "keys of another width than values in layers of Gated DeltaNet"
    interval = _attention_interval(spec)
    if any(isinstance(mixer, Attention) != ((n + 1) % interval == 0) for n, mixer in enumerate(mixers(spec))):
        yield "attention but in every so-manieth layer"
    if any(isinstance(ffn, Moe) and not (ffn.shared and ffn.shared.gate) for ffn in _ffns(spec)):
        yield "models without a gated shared expert"


def _attention_interval(spec: ModelSpec) -> int:
    """The number of the first layer with attention, counted from 1."""
    return next(n for n, mixer in enumerate(mixers(spec), 1) if isinstance(mixer, Attention))


def _ffns(spec: ModelSpec) -> list[Body]:
    return [layer.blocks[-1].body for layer in spec.layers]


def _window_problems(architecture: str, spec: ModelSpec) -> Iterator[str]:
    windows = [mixer.window for mixer in mixers(spec) if isinstance(mixer, Attention)]
    if architecture != _GPT_OSS:
        if any(windows):
            yield "attention within a window"
    elif not windows[0] or windows != [windows[0] * (number % 2 == 0) for number in range(len(windows))]:
        yield "windows but one for every second layer, from the first on"


def _attention_problems(architecture: str, attention: Attention) -> Iterator[str]:
    if attention.qkv_bias and architecture not in _QKV_BIAS:
        yield "biases on query, key and value"
    if attention.output_bias and architecture not in _OUTPUT_BIAS:
        yield "bias on the attention's output"
    if attention.qk_norm not in _QK_NORM.get(architecture, ("none",)):
        yield _QK_NORM_WORDS[attention.qk_norm]
    if attention.norm_after_rope != (architecture == _HUNYUAN):
        yield f"norms of queries and keys {'after' if attention.norm_after_rope else 'before'} the rotation"
    if attention.clip:
        yield "limits on query, key and value"
    if attention.sinks and architecture != _GPT_OSS:
        yield "sinks of attention"
    if attention.value_dim not in (None, attention.head_dim):
        yield "values of another width than keys"
    if architecture == _GPT_OSS:
        if not attention.qkv_bias or not attention.output_bias:
            yield "attention without biases"
        if not attention.sinks:
            yield "attention without sinks"


def _ffn_problems(architecture: str, body: Body) -> Iterator[str]:
    own = [body] if isinstance(body, (GatedFfn, Moe)) else []
    for ffn in [*own, *(one.shared for one in own if isinstance(one, Moe) and one.shared)]:
        wanted = _CLAMPED if architecture == _GPT_OSS else SILU
        if ffn.activation != wanted:
            numbers = f" of {wanted.alpha:g} and limit {wanted.limit:g}" if wanted.limit else ""
            yield f"activation but {wanted.function}{numbers}"
        if ffn.bias != (architecture == _GPT_OSS):
            yield "biases in FFNs" if ffn.bias else "FFNs without biases"


def _has_two_plain_blocks(layer: LayerSpec) -> bool:
    """Whether a layer mixes tokens, then has an FFN, without norms after blocks, parallel ones or other residuals."""
    bodies = tuple(block.body for block in layer.blocks)
    if layer != LayerSpec.of(*bodies) or len(bodies) != 2:
        return False
    return isinstance(bodies[0], (Attention, GatedDelta, ShortConv)) and isinstance(bodies[1], (GatedFfn, Moe))


def _without_window(layer: LayerSpec) -> LayerSpec:
    """The same layer with attention to all earlier tokens."""
    blocks = (
        replace(block, body=replace(block.body, window=0)) if isinstance(block.body, Attention) else block
        for block in layer.blocks
    )
    return LayerSpec(tuple(blocks))


def _moe_problems(architecture: str, ffn: Moe) -> Iterator[str]:
    router = ffn.router
    if architecture in _NORMALISED_SIGMOID:
        if replace(router, epsilon=0.0) != _SIGMOID_ROUTER:
            yield "routers but by sigmoid with a bias for the choice, normalised and not scaled"
        if ffn.shared is not None:
            yield "shared experts"
    elif architecture in _SIGMOID:
        if replace(router, normalise=True, groups=1, kept_groups=1, epsilon=0.0, scale=1.0) != _SIGMOID_ROUTER:
            yield "routers but by sigmoid with a bias for the choice"
        if architecture not in _GROUPED and (router.groups > 1 or not router.normalise):
            yield "groups of experts, or weights that are not normalised"
        if router.groups > 1 and router.kept_groups == router.groups:
            yield "groups of experts that are all kept"
    elif replace(router, normalise=True) != _SOFTMAX_ROUTERS.get(architecture, (RouterSpec(True), ""))[0]:
        yield f"routers but by softmax{_SOFTMAX_ROUTERS.get(architecture, (None, ' of the logits'))[1]}"
    elif router.normalise != (architecture in _RENORMALISE):
        yield f"experts whose weights are {'' if router.normalise else 'not '}renormalised"
    several = ffn.shared is None or (not ffn.shared.gate and ffn.shared.intermediate_size % ffn.intermediate_size == 0)
    if architecture in _SHARED_ALWAYS and (ffn.shared is None or not several):
        yield "shared experts but ungated ones of the width of the routed experts"
    if architecture == _ERNIE and not several:
        yield "shared experts but ungated ones of the width of the routed experts"
    if architecture == _HUNYUAN and ffn.shared and ffn.shared.intermediate_size != ffn.intermediate_size:
        yield "shared experts of another width than the routed ones"


def _plain_scale(attention: Attention) -> bool:
    return math.isclose(attention.scale, attention.head_dim**-0.5, rel_tol=1e-6)


def _plain_yarn(rope: RopeSpec, truncated: bool) -> bool:
    p = rope.parameters
    usual_gain = 0.1 * math.log(p["factor"]) + 1 if p["factor"] > 1 else 1.0
    usual = (p["beta_fast"], p["beta_slow"], p["truncate"]) == (32, 1, truncated)
    return usual and math.isclose(p["attention_factor"], usual_gain, rel_tol=1e-6)


def write_metadata(writer: GGUFWriter, spec: ModelSpec) -> None:
    """Write all keys of the model itself. The spec must have passed `check_expressible`."""
    if ARCHITECTURES[spec.family] in WINDOWED:
        write_windowed(writer, ARCHITECTURES[spec.family], spec)
        return
    attention, ffn = attention_and_ffn(spec)
    convolution = next((mixer for mixer in mixers(spec) if isinstance(mixer, ShortConv)), None)
    architecture, dense = ARCHITECTURES[spec.family], _dense_layers(spec)
    writer.add_block_count(len(spec.layers))
    if FAMILY[architecture].leading_dense:
        writer.add_leading_dense_block_count(_leading(dense))
    if architecture == _ERNIE:
        writer.add_interleave_moe_layer_step(1)
    writer.add_context_length(spec.max_positions)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_vocab_size(spec.vocab_size)
    writer.add_head_count(attention.heads)
    if convolution is None:
        writer.add_head_count_kv(attention.kv_heads)
    else:
        of_layers = (mixer.kv_heads if isinstance(mixer, Attention) else 0 for mixer in mixers(spec))
        writer.add_head_count_kv(list(of_layers))
        writer.add_shortconv_l_cache(convolution.length)
    linear = next((mixer for mixer in mixers(spec) if isinstance(mixer, GatedDelta)), None)
    if linear is not None:
        _write_linear(writer, spec, linear)
    writer.add_key_length(attention.head_dim)
    writer.add_value_length(attention.head_dim)
    writer.add_layer_norm_rms_eps(spec.norm_epsilon)
    if attention.window:
        writer.add_sliding_window(attention.window)
    if isinstance(ffn, Moe):
        _write_experts(writer, architecture, ffn, spec.layers[min(dense)].blocks[1].body if dense else None)
    else:
        writer.add_feed_forward_length(ffn.intermediate_size)
    if architecture in _SCALED:
        writer.add_embedding_scale(spec.embedding_scale)
        writer.add_residual_scale(spec.residual_scale)
        writer.add_logit_scale(1 / spec.logit_scale)  # llama.cpp divides by it
        if not _plain_scale(attention):
            writer.add_attention_scale(attention.scale)
    write_rope(writer, _rope(spec))


def _write_linear(writer: GGUFWriter, spec: ModelSpec, linear: GatedDelta) -> None:
    writer.add_ssm_conv_kernel(linear.length)
    writer.add_ssm_state_size(linear.key_dim)
    writer.add_ssm_group_count(linear.key_heads)
    writer.add_ssm_time_step_rank(linear.heads)
    writer.add_ssm_inner_size(linear.heads * linear.value_dim)
    writer.add_full_attention_interval(_attention_interval(spec))
    if FAMILY[ARCHITECTURES[spec.family]].heads_in_turn:
        # Pairs of channels by what they rotate by in an image, which the loader insists on; text has one position.
        pairs = _rope(spec).rotated // 2
        writer.add_rope_dimension_sections([-(-pairs // 3), -(-(pairs - 1) // 3), pairs // 3, 0])


def _write_experts(writer: GGUFWriter, architecture: str, ffn: Moe, dense: Body | None) -> None:
    writer.add_expert_count(ffn.num_experts)
    writer.add_expert_used_count(ffn.top_k)
    if architecture in _EXPERT_WIDTH:
        # Width of dense layers; where such a model has none, the total width of one token's experts.
        width = dense.intermediate_size if isinstance(dense, GatedFfn) else ffn.top_k * ffn.intermediate_size
        writer.add_feed_forward_length(width)
        writer.add_expert_feed_forward_length(ffn.intermediate_size)
    else:
        writer.add_feed_forward_length(ffn.intermediate_size)
        if architecture in _EXPERT_WIDTH_TWICE:
            writer.add_expert_feed_forward_length(ffn.intermediate_size)
    if architecture in _NORMALISED_SIGMOID:
        writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
    elif architecture in _SIGMOID:
        _write_sigmoid_router(writer, ffn.router)
    elif architecture == _DEEPSEEK:
        writer.add_expert_weights_scale(ffn.router.scale)
    if ffn.shared is not None:
        _write_shared_experts(writer, architecture, ffn.shared.intermediate_size, ffn.intermediate_size)


def _write_shared_experts(writer: GGUFWriter, architecture: str, width: int, expert_width: int) -> None:
    """Write how many shared experts there are, or their width: loaders multiply both where they know both."""
    if architecture in ("deepseek", "dots1", "glm4moe"):
        writer.add_expert_shared_count(width // expert_width)
        return
    writer.add_expert_shared_feed_forward_length(width)
    if architecture in (_LING, _HUNYUAN):
        writer.add_expert_shared_count(1)


def _write_sigmoid_router(writer: GGUFWriter, router: RouterSpec) -> None:
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
    writer.add_expert_weights_norm(router.normalise)
    writer.add_expert_weights_scale(router.scale)
    writer.add_expert_group_count(router.groups)
    writer.add_expert_group_used_count(router.kept_groups)


def _rope(spec: ModelSpec) -> RopeSpec:
    """The rotary positions of a model that a GGUF can hold: of all its attention, or of the layers without a window."""
    ropes = [own for own in attention_of(spec) if own.rope is not None]
    rope = min(ropes, key=lambda own: own.window > 0).rope
    assert rope is not None  # `check_expressible` has seen to it
    return rope


def remarks(spec: ModelSpec) -> Iterator[str]:
    """Yield what llama.cpp computes a little differently, though no key of the file could say it."""
    if FAMILY[ARCHITECTURES[spec.family]].linear_layers:
        yield (
            "llama.cpp divides queries and keys of Gated DeltaNet by their lengths, to which the model adds a little"
            " first: results differ a little where these are short, as in every GGUF of it."
        )
    if _rope(spec).parameters.get("truncate") == 0:
        yield (
            "llama.cpp rounds the ends of YaRN's ramp to whole pairs, which this model does not: positions differ a"
            " little there, as in every GGUF of it."
        )


def frequency_divisors(spec: ModelSpec) -> npt.NDArray[np.float32] | None:
    """Divisor of each pair's frequency, `(rotated // 2,)`: the form of two rules in a GGUF, llama3 and proportional."""
    rope = _rope(spec)
    if rope.scaling == "proportional":
        divisors = np.full(rope.rotated // 2, 1e30, np.float32)
        divisors[: int(rope.parameters["pairs"])] = rope.parameters["factor"]
        return divisors
    if rope.scaling != "llama3":
        return None
    return rope_frequencies(RopeSpec(rope.theta, rope.rotated)) / rope_frequencies(rope)


def _dense_layers(spec: ModelSpec) -> set[int]:
    """The dense layers of a model with experts that a file of its architecture may have: those that come first, or any
    (Hy3).
    """
    dense = {number for number, layer in enumerate(spec.layers) if not layer.routed}
    architecture = ARCHITECTURES[spec.family]
    if len(dense) == len(spec.layers):
        return set()
    if architecture == _HY3:
        return dense
    if not FAMILY[architecture].leading_dense:
        return set()
    return {number for number in dense if number < _leading(dense)}


def _leading(dense: set[int]) -> int:
    return next(number for number in range(len(dense) + 1) if number not in dense)


def mixers(spec: ModelSpec) -> list[Body]:
    """The first of the two bodies that each layer has in every architecture here."""
    return [layer.blocks[0].body for layer in spec.layers]


def attention_and_ffn(spec: ModelSpec) -> tuple[Attention, GatedFfn | Moe]:
    """The attention of the first layer that has some, and the FFN of the last layer with experts, else of the last."""
    attention = next(mixer for mixer in mixers(spec) if isinstance(mixer, Attention))
    last = next((layer for layer in reversed(spec.layers) if layer.routed), spec.layers[-1])
    _, ffn = (block.body for block in last.blocks)
    assert isinstance(ffn, (GatedFfn, Moe))
    return attention, ffn
