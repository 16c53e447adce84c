"""Writes a model's metadata for llama.cpp's loader of its architecture."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from edgemoe.conversion.gguf.compressed import write_compressed
from edgemoe.conversion.gguf.compressed_tensors import ARCHITECTURE as COMPRESSED
from edgemoe.conversion.gguf.families import ARCHITECTURES, FAMILY
from edgemoe.conversion.gguf.family import Family
from edgemoe.conversion.gguf.gated import gated_remark, write_gated
from edgemoe.conversion.gguf.gated_tensors import ARCHITECTURE as GATED
from edgemoe.conversion.gguf.kda import KDA, kda_remark, write_kda
from edgemoe.conversion.gguf.latent import LATENT, latent_remarks, write_latent
from edgemoe.conversion.gguf.layers import (
    attention_and_ffn,
    attention_interval,
    attention_of,
    dense_layers,
    has_rope,
    leading_of,
    mixers,
    plain_scale,
    rope_of,
)
from edgemoe.conversion.gguf.lightning import ARCHITECTURE as LIGHTNING
from edgemoe.conversion.gguf.lightning import write_lightning
from edgemoe.conversion.gguf.mamba import MAMBA
from edgemoe.conversion.gguf.mamba_metadata import write_mamba
from edgemoe.conversion.gguf.package import ExpertGatingFuncType, GGUFWriter
from edgemoe.conversion.gguf.windowed import WINDOWED
from edgemoe.conversion.gguf.windowed_metadata import write_rope, write_windowed
from edgemoe.model.blocks import Attention, Body, GatedDelta, GatedFfn, Moe, RouterSpec, ShortConv
from edgemoe.model.rope import RopeSpec, rope_frequencies
from edgemoe.model.spec import ModelSpec

_DEEPSEEK, _ERNIE = "deepseek", "ernie4_5-moe"


def write_metadata(writer: GGUFWriter, spec: ModelSpec) -> None:
    """Write all keys of the model itself. The spec must have passed `check_expressible`."""
    if ARCHITECTURES[spec.family] in WINDOWED:
        write_windowed(writer, ARCHITECTURES[spec.family], spec)
        return
    if ARCHITECTURES[spec.family] in MAMBA:
        write_mamba(writer, ARCHITECTURES[spec.family], spec)
        return
    if ARCHITECTURES[spec.family] in LATENT:
        write_latent(writer, spec)
        return
    if ARCHITECTURES[spec.family] in KDA:
        write_kda(writer, ARCHITECTURES[spec.family], spec)
        return
    if ARCHITECTURES[spec.family] == LIGHTNING:
        write_lightning(writer, spec)
        return
    if ARCHITECTURES[spec.family] == COMPRESSED:
        write_compressed(writer, spec)
        return
    attention, ffn = attention_and_ffn(spec)
    convolution = next((mixer for mixer in mixers(spec) if isinstance(mixer, ShortConv)), None)
    architecture, dense = ARCHITECTURES[spec.family], dense_layers(spec)
    family = FAMILY[architecture]
    writer.add_block_count(len(spec.layers))
    if family.leading_dense:
        writer.add_leading_dense_block_count(leading_of(dense))
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
    if family.layer_norm:
        writer.add_layer_norm_eps(spec.norm_epsilon)
    else:
        writer.add_layer_norm_rms_eps(spec.norm_epsilon)
    if family.clipped:
        writer.add_clamp_kqv(attention.clip)
    if attention.window:
        writer.add_sliding_window(attention.window)
    if isinstance(ffn, Moe):
        _write_experts(writer, architecture, ffn, spec.layers[min(dense)].blocks[1].body if dense else None)
    else:
        writer.add_feed_forward_length(ffn.intermediate_size)
    if family.multipliers:
        writer.add_embedding_scale(spec.embedding_scale)
        writer.add_residual_scale(spec.residual_scale)
        writer.add_logit_scale(1 / spec.logit_scale)  # llama.cpp divides by it
        if not plain_scale(attention):
            writer.add_attention_scale(attention.scale)
    if architecture == GATED:
        write_gated(writer, spec)
    write_rope(writer, rope_of(spec))


def _write_linear(writer: GGUFWriter, spec: ModelSpec, linear: GatedDelta) -> None:
    writer.add_ssm_conv_kernel(linear.length)
    writer.add_ssm_state_size(linear.key_dim)
    writer.add_ssm_group_count(linear.key_heads)
    writer.add_ssm_time_step_rank(linear.heads)
    writer.add_ssm_inner_size(linear.heads * linear.value_dim)
    writer.add_full_attention_interval(attention_interval(spec))
    if FAMILY[ARCHITECTURES[spec.family]].heads_in_turn:
        # Pairs of channels by what they rotate by in an image, which the loader insists on; text has one position.
        pairs = rope_of(spec).rotated // 2
        writer.add_rope_dimension_sections([-(-pairs // 3), -(-(pairs - 1) // 3), pairs // 3, 0])


def _write_experts(writer: GGUFWriter, architecture: str, ffn: Moe, dense: Body | None) -> None:
    family = FAMILY[architecture]
    writer.add_expert_count(ffn.num_experts)
    writer.add_expert_used_count(ffn.top_k)
    if family.width_keys == "two":
        # Width of dense layers; where such a model has none, the total width of one token's experts.
        width = dense.intermediate_size if isinstance(dense, GatedFfn) else ffn.top_k * ffn.intermediate_size
        writer.add_feed_forward_length(width)
        writer.add_expert_feed_forward_length(ffn.intermediate_size)
    else:
        writer.add_feed_forward_length(ffn.intermediate_size)
        if family.width_keys == "twice":
            writer.add_expert_feed_forward_length(ffn.intermediate_size)
    if family.plain_weights:
        writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
    elif family.routing.score == "sigmoid":
        _write_sigmoid_router(writer, ffn.router)
    elif architecture == _DEEPSEEK:
        writer.add_expert_weights_scale(ffn.router.scale)
    if ffn.shared is not None:
        _write_shared_experts(writer, family, ffn.shared.intermediate_size, ffn.intermediate_size)


def _write_shared_experts(writer: GGUFWriter, family: Family, width: int, expert_width: int) -> None:
    """Write how many shared experts there are, or their width: loaders multiply both where they know both."""
    if family.shared_keys == "count":
        writer.add_expert_shared_count(width // expert_width)
        return
    writer.add_expert_shared_feed_forward_length(width)
    if family.shared_keys == "both":
        writer.add_expert_shared_count(1)


def _write_sigmoid_router(writer: GGUFWriter, router: RouterSpec) -> None:
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
    writer.add_expert_weights_norm(router.normalise)
    writer.add_expert_weights_scale(router.scale)
    writer.add_expert_group_count(router.groups)
    writer.add_expert_group_used_count(router.kept_groups)


def remarks(spec: ModelSpec) -> Iterator[str]:
    """Yield what llama.cpp computes a little differently, though no key of the file could say it."""
    if FAMILY[ARCHITECTURES[spec.family]].linear_layers:
        yield (
            "llama.cpp divides queries and keys of Gated DeltaNet by their lengths, to which the model adds a little"
            " first: results differ a little where these are short, as in every GGUF of it."
        )
    if ARCHITECTURES[spec.family] == GATED:
        yield gated_remark(spec)
    if ARCHITECTURES[spec.family] in LATENT:
        yield from latent_remarks(spec)
    if ARCHITECTURES[spec.family] in KDA:
        yield from kda_remark(spec)
    if has_rope(spec) and rope_of(spec).parameters.get("truncate") == 0:
        yield (
            "llama.cpp rounds the ends of YaRN's ramp to whole pairs, which this model does not: positions differ a"
            " little there, as in every GGUF of it."
        )


def frequency_divisors(spec: ModelSpec) -> npt.NDArray[np.float32] | None:
    """Divisor of each pair's frequency, `(rotated // 2,)`: the form of two rules in a GGUF, llama3 and proportional."""
    if not has_rope(spec):
        return None
    rope = rope_of(spec)
    if rope.scaling == "proportional":
        divisors = np.full(rope.rotated // 2, 1e30, np.float32)
        divisors[: int(rope.parameters["pairs"])] = rope.parameters["factor"]
        return divisors
    if rope.scaling != "llama3":
        return None
    divisors = rope_frequencies(RopeSpec(rope.theta, rope.rotated)) / rope_frequencies(rope)
    widest = max(own.rope.rotated for own in attention_of(spec) if own.rope is not None)
    if FAMILY[ARCHITECTURES[spec.family]].own_divisors:  # as many as the layer with most pairs has
        divisors = np.append(divisors, np.ones(widest // 2 - len(divisors), np.float32))
    return divisors
