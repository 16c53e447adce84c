"""Writes the metadata of the architectures of `mamba.py`.

As for those with windows, the exporter reads what was written, and refuses the model if another one comes out.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgemoe.conversion.gguf.jamba import ARCHITECTURE as JAMBA
from edgemoe.conversion.gguf.jamba import jamba_problems, write_jamba
from edgemoe.conversion.gguf.layers import attention_of, plain_scale
from edgemoe.conversion.gguf.package import ExpertGatingFuncType, GGUFWriter
from edgemoe.conversion.gguf.windowed_metadata import write_frame, write_rope
from edgemoe.model.blocks import Attention, GatedFfn, Mamba2, Moe
from edgemoe.model.spec import LayerSpec, ModelSpec

_NEMOTRON = "nemotron_h_moe"


def mamba_problems(architecture: str, spec: ModelSpec) -> Iterator[str]:
    """Yield what stands in the way of writing the model at all."""
    if architecture == JAMBA:
        yield from jamba_problems(spec)
        return
    bodies = {block.body for layer in spec.layers for block in layer.blocks}
    if any(layer != LayerSpec.of(*(block.body for block in layer.blocks)) for layer in spec.layers):
        yield "blocks but with a norm before each, and plainly added"
    kinds = {Attention, Mamba2, Moe} if architecture == _NEMOTRON else {Attention, Mamba2, Moe, GatedFfn}
    if not {type(body) for body in bodies} <= kinds:
        yield "FFNs without experts" if architecture == _NEMOTRON else "layers but of Mamba-2 or attention, then FFNs"
    for kind, words in ((Mamba2, "Mamba-2"), (Attention, "attention")):
        if not any(isinstance(body, kind) for body in bodies):
            yield f"models without {words}"
    if any(isinstance(body, Mamba2) and not body.conv_bias for body in bodies):
        yield "convolutions of Mamba-2 without a bias"
    if architecture == _NEMOTRON and not spec.routed:
        yield "models without experts"
    if len(attention_kinds := set(attention_of(spec))) > 1 or any(own.output_gate for own in attention_kinds):
        yield "attention of several kinds, or with a gate"
    inner = {body.inner for body in bodies if isinstance(body, Mamba2)}
    if architecture != _NEMOTRON and inner != {2 * spec.hidden_size}:
        yield "layers of Mamba-2 but of twice the model's width"


def write_mamba(writer: GGUFWriter, architecture: str, spec: ModelSpec) -> None:
    """Write all keys of the model itself."""
    if architecture == JAMBA:
        write_jamba(writer, spec)
        return
    bodies = [[block.body for block in layer.blocks] for layer in spec.layers]
    flat = [body for layer in bodies for body in layer]
    mamba = next(body for body in flat if isinstance(body, Mamba2))
    attention = attention_of(spec)[0]
    moe = next((body for body in flat if isinstance(body, Moe)), None)
    write_frame(writer, spec)
    writer.add_head_count(attention.heads)
    attends = (any(isinstance(body, Attention) for body in layer) for layer in bodies)
    writer.add_head_count_kv([attention.kv_heads if own else 0 for own in attends])
    writer.add_key_length(attention.head_dim)
    writer.add_value_length(attention.head_dim)
    writer.add_ssm_conv_kernel(mamba.length)
    writer.add_ssm_inner_size(mamba.inner)
    writer.add_ssm_state_size(mamba.state_size)
    writer.add_ssm_time_step_rank(mamba.heads)
    writer.add_ssm_group_count(mamba.groups)
    if moe is not None:
        writer.add_expert_count(moe.num_experts)
        writer.add_expert_used_count(moe.top_k)
        if moe.shared is not None:
            writer.add_expert_shared_feed_forward_length(moe.shared.intermediate_size)
    if architecture == _NEMOTRON:
        assert moe is not None  # `mamba_problems` has seen to it
        routed = (any(isinstance(body, Moe) for body in layer) for layer in bodies)
        writer.add_feed_forward_length([moe.intermediate_size if own else 0 for own in routed])
        writer.add_layer_norm_eps(spec.norm_epsilon)  # some loaders insist on it, though no norm uses it
        _write_nemotron(writer, moe)
        return
    dense = next((body for body in flat if isinstance(body, GatedFfn)), None)
    writer.add_feed_forward_length(moe.intermediate_size if moe else dense.intermediate_size if dense else 0)
    writer.add_embedding_scale(spec.embedding_scale)
    writer.add_residual_scale(spec.residual_scale)
    writer.add_logit_scale(1 / spec.logit_scale)  # llama.cpp divides by it
    if not plain_scale(attention):
        writer.add_attention_scale(attention.scale)
    writer.add_rope_scaling_finetuned(attention.rope is not None)
    if attention.rope is not None:
        write_rope(writer, attention.rope)


def _write_nemotron(writer: GGUFWriter, moe: Moe) -> None:
    writer.add_expert_feed_forward_length(moe.intermediate_size)
    writer.add_expert_shared_count(1)
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
    writer.add_expert_weights_norm(moe.router.normalise)
    writer.add_expert_weights_scale(moe.router.scale)
    writer.add_expert_group_count(moe.router.groups)
    writer.add_expert_group_used_count(moe.router.kept_groups)
    if moe.latent:
        writer.add_uint32(f"{_NEMOTRON}.moe_latent_size", moe.latent)
