"""Refuses models that a GGUF cannot express for llama.cpp's loader of their architecture.

Where a loader has no key for a property, it assumes one fixed value: a model that differs would load there and compute
something else. So such a model is refused here, and the error names the property.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from edgemoe.conversion.gguf.compressed import compressed_problems
from edgemoe.conversion.gguf.compressed_tensors import ARCHITECTURE as COMPRESSED
from edgemoe.conversion.gguf.families import ARCHITECTURES, FAMILY
from edgemoe.conversion.gguf.gated import gated_problems, without_additions
from edgemoe.conversion.gguf.gated_tensors import ARCHITECTURE as GATED
from edgemoe.conversion.gguf.kda import KDA, kda_problems
from edgemoe.conversion.gguf.latent import LATENT, latent_problems
from edgemoe.conversion.gguf.layers import (
    attention_and_ffn,
    attention_interval,
    attention_of,
    dense_layers,
    mixers,
    plain_scale,
)
from edgemoe.conversion.gguf.lightning import ARCHITECTURE as LIGHTNING
from edgemoe.conversion.gguf.lightning import lightning_problems
from edgemoe.conversion.gguf.mamba import MAMBA
from edgemoe.conversion.gguf.mamba_metadata import mamba_problems
from edgemoe.conversion.gguf.windowed import WINDOWED
from edgemoe.errors import StoreError
from edgemoe.kernels.operations import SILU, Activation
from edgemoe.model.blocks import Attention, Body, GatedDelta, GatedFfn, Moe, OutputGate, ShortConv
from edgemoe.model.rope import RopeSpec
from edgemoe.model.spec import LayerSpec, ModelSpec

_QK_NORM_WORDS = {
    "none": "attention without norms of queries and keys",
    "head": "norms of each head's queries and keys",
    "unweighted": "norms of each head's queries and keys without weights",
    "full": "norms of whole queries and keys",
}
_COHERE, _HUNYUAN, _MELLUM = "cohere2moe", "hunyuan-moe", "mellum"
_AVERAGE = 0.5
"""The factor of the sum of routed and shared experts in files of Command A+."""
_GPT_OSS = "gpt-oss"
"""The one architecture with windows, sinks, biases of experts and of the router, and the clamped activation: it always
has them, with windows in every second layer, from the first on."""
_CLAMPED = Activation("clamped_silu", alpha=1.702, limit=7.0, offset=1.0)
"""Its activation; the numbers stand in llama.cpp, not in the file."""

_COMPUTED_OTHERWISE = {
    "grove_moe": "adjugate experts of what the others give, in place of what they read",
    "grok-1": "weights of a token's experts divided by their sum",
    "grok-2": "weights of a token's experts divided by their sum, and scores that do not grow with positions",
    "phimoe": "root-mean-square norms and weights of experts by softmax, in place of layer norms and SparseMixer",
}
"""Families that llama.cpp has, and runs as another model."""
NO_GGUF = "Use the store with edgemoe; no GGUF of this model is possible."


def check_expressible(spec: ModelSpec) -> None:
    """Raises StoreError if llama.cpp would compute something else, or cannot load the model at all."""
    if spec.family in _COMPUTED_OTHERWISE:
        otherwise = _COMPUTED_OTHERWISE[spec.family]
        raise StoreError(f"this model cannot be a GGUF: llama.cpp's {spec.family} computes {otherwise}.", NO_GGUF)
    if spec.family not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise StoreError(
            f"this model cannot be a GGUF: expected a family that edgemoe writes for llama.cpp, one of {known};"
            f" found {spec.family[:80]}.",
            "Use the store with edgemoe; llama.cpp's own program may make a GGUF of the checkpoint.",
        )
    problem = next(_problems(spec), None)
    if problem:
        raise StoreError(
            f"this model cannot be a GGUF: llama.cpp's {ARCHITECTURES[spec.family]} has no {problem}.",
            NO_GGUF,
        )


def _problems(spec: ModelSpec) -> Iterator[str]:
    architecture = ARCHITECTURES[spec.family]
    if architecture in LATENT:
        yield from latent_problems(spec)
        return
    if architecture in WINDOWED:
        if not spec.routed:
            yield "models without routed experts"
        if all(own.rope is None for own in attention_of(spec)):
            yield "attention without rotary positions"
        if architecture == _MELLUM and len({own.rope.theta for own in attention_of(spec) if own.rope}) > 1:
            yield "another theta within windows"
        if architecture == _COHERE:
            yield from _cohere_problems(spec)
        widths = {own.heads * own.head_dim for own in attention_of(spec)}
        if FAMILY[architecture].full_width and widths != {spec.hidden_size}:
            yield "heads that are not together as wide as the model"
        if any(own.qkv_bias or own.output_bias for own in attention_of(spec)):
            yield "biases of attention"
        return
    if architecture in MAMBA:
        yield from mamba_problems(architecture, spec)
        return
    if architecture in KDA:
        yield from kda_problems(architecture, spec)
        return
    if architecture == LIGHTNING:
        yield from lightning_problems(spec)
        return
    if architecture == COMPRESSED:
        yield from compressed_problems(spec)
        return
    if architecture == GATED:
        yield from gated_problems(spec)
        spec = without_additions(spec)
    if not all(map(_has_two_plain_blocks, spec.layers)):
        yield (
            "layers but of attention, a convolution or Gated DeltaNet, then an FFN, each with a norm before it and"
            " plainly added"
        )
        return
    if not any(isinstance(mixer, Attention) for mixer in mixers(spec)):
        yield "models without attention"
        return
    family = FAMILY[architecture]
    if (spec.norm == "layer") != family.layer_norm:
        yield f"norms of the kind {spec.norm}"
    yield from _window_problems(architecture, spec)
    spec = replace(spec, layers=tuple(map(_without_window, spec.layers)))
    attention, ffn = attention_and_ffn(spec)
    ffns = {number: layer.blocks[1].body for number, layer in enumerate(spec.layers)}
    dense = dense_layers(spec)
    alike = (
        [mixer for mixer in mixers(spec) if isinstance(mixer, Attention)],
        [body for number, body in ffns.items() if number in dense],
        [body for number, body in ffns.items() if number not in dense],
    )
    convolutions = {mixer for mixer in mixers(spec) if isinstance(mixer, ShortConv)}
    if any(body != bodies[0] for bodies in alike for body in bodies) or len(convolutions) > 1:
        yield "layers of several kinds"
    if bool(convolutions) != family.convolutions:
        yield f"models with{'out' * (not convolutions)} convolutions"
    yield from _linear_problems(family.linear_layers, spec, attention)
    if any(convolution.bias for convolution in convolutions):
        yield "biases on convolutions"
    rope = attention.rope
    if rope is None:
        yield "attention without rotary positions"
        return
    if (rope.pairing == "neighbours") != family.neighbours:
        yield f"rotation of {rope.pairing}"
    yield from _attention_problems(architecture, attention)
    for body in dict.fromkeys(layer.blocks[-1].body for layer in spec.layers):
        yield from _ffn_problems(architecture, body)
    if isinstance(ffn, GatedFfn) and spec.family != "llama":
        yield "dense layers"
    if isinstance(ffn, Moe):
        yield from _moe_problems(architecture, ffn)
    if rope.rotated != attention.head_dim and not family.partial_rotation:
        yield "rotation of a part of each head"
    multipliers = (spec.embedding_scale, spec.residual_scale, spec.logit_scale)
    if not family.multipliers and (any(m != 1 for m in multipliers) or not plain_scale(attention)):
        yield "multipliers on embedding, attention, residual or logits"
    if family.never_tied and spec.tied_embeddings:
        yield "head that is the embedding"
    if family.full_width and attention.heads * attention.head_dim != spec.hidden_size:
        yield "heads that are not together as wide as the model"
    if family.multi_head and attention.kv_heads != attention.heads:
        yield "grouped-query attention"
    if rope.scaling == "yarn" and not _plain_yarn(rope, truncated=architecture != _GPT_OSS):
        yield "YaRN with unusual parameters (usual: 32, 1, the attention factor from the scaling factor)"


def _cohere_problems(spec: ModelSpec) -> Iterator[str]:
    if not any(own.window for own in attention_of(spec)):
        yield "models without windows"
    if any(isinstance(ffn, Moe) and ffn.shared is not None and ffn.scale != _AVERAGE for ffn in _ffns(spec)):
        yield "sums of routed and shared experts, which it averages"


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
    interval = attention_interval(spec)
    if any(isinstance(mixer, Attention) != ((n + 1) % interval == 0) for n, mixer in enumerate(mixers(spec))):
        yield "attention but in every so-manieth layer"
    if any(isinstance(ffn, Moe) and not (ffn.shared and ffn.shared.gate) for ffn in _ffns(spec)):
        yield "models without a gated shared expert"


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
    family = FAMILY[architecture]
    if attention.qkv_bias and not family.qkv_bias:
        yield "biases on query, key and value"
    if attention.output_bias and not family.output_bias:
        yield "bias on the attention's output"
    if attention.qk_norm not in family.qk_norm:
        yield _QK_NORM_WORDS[attention.qk_norm]
    if attention.norm_after_rope != family.norm_after_rope:
        yield f"norms of queries and keys {'after' if attention.norm_after_rope else 'before'} the rotation"
    if attention.clip and not family.clipped:
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
    router, family = ffn.router, FAMILY[architecture]
    if family.plain_weights:
        if replace(router, epsilon=0.0) != family.routing:
            yield "routers but by sigmoid with a bias for the choice, normalised and not scaled"
        if ffn.shared is not None:
            yield "shared experts"
    elif family.routing.score == "sigmoid":
        if replace(router, normalise=True, groups=1, kept_groups=1, epsilon=0.0, scale=1.0) != family.routing:
            yield "routers but by sigmoid with a bias for the choice"
        if not family.grouped and (router.groups > 1 or not router.normalise):
            yield "groups of experts, or weights that are not normalised"
        if router.groups > 1 and router.kept_groups == router.groups:
            yield "groups of experts that are all kept"
    elif replace(router, normalise=family.routing.normalise) != family.routing:
        yield f"routers but by softmax{family.routing_words}"
    elif router.normalise != family.routing.normalise:
        yield f"experts whose weights are {'' if router.normalise else 'not '}renormalised"
    several = ffn.shared is None or (not ffn.shared.gate and ffn.shared.intermediate_size % ffn.intermediate_size == 0)
    missing = ffn.shared is None and family.several_shared == "always"
    if family.several_shared and (missing or not several):
        yield "shared experts but ungated ones of the width of the routed experts"
    if architecture == _HUNYUAN and ffn.shared and ffn.shared.intermediate_size != ffn.intermediate_size:
        yield "shared experts of another width than the routed ones"


def _plain_yarn(rope: RopeSpec, truncated: bool) -> bool:
    p = rope.parameters
    usual_gain = 0.1 * math.log(p["factor"]) + 1 if p["factor"] > 1 else 1.0
    usual = (p["beta_fast"], p["beta_slow"], p["truncate"]) == (32, 1, truncated)
    return usual and math.isclose(p["attention_factor"], usual_gain, rel_tol=1e-6)
