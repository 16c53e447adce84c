"""Jamba in GGUF files (`jamba`): what they say, and what llama.cpp assumes where they do not; names; the way back.

Sources: src/models/jamba.cpp and conversion/jamba.py in llama.cpp (2026).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgemoe.conversion.gguf.file import GgufTensor
from edgemoe.conversion.gguf.keys import Metadata
from edgemoe.conversion.gguf.layers import attention_of, plain_scale
from edgemoe.conversion.gguf.package import GGUFWriter
from edgemoe.conversion.gguf.windowed_metadata import write_frame
from edgemoe.model.blocks import Attention, GatedFfn, Mamba, Moe
from edgemoe.model.spec import LayerSpec, ModelSpec

ARCHITECTURE = "jamba"


def jamba_config(
    metadata: Metadata, tensors: Mapping[str, GgufTensor], config: Mapping[str, Any], kv_heads: Sequence[int]
) -> dict[str, Any]:
    """The keys of a checkpoint's config beyond those that all architectures have; `kv_heads` of each layer."""
    layers, width, inner = len(kv_heads), config["hidden_size"], metadata.count("ssm.inner_size")
    if inner % width:
        raise metadata.wrong("ssm.inner_size", f"a multiple of the width, {width}", inner)
    attention = _turn([count > 0 for count in kv_heads])
    if attention is None:
        raise metadata.wrong("attention.head_count_kv", "attention in one of every so many layers", list(kv_heads))
    routed = [f"blk.{layer}.ffn_gate_inp.weight" in tensors for layer in range(layers)]
    experts = _turn(routed)
    if experts is None:
        raise metadata.wrong("expert_count", "experts in one of every so many layers", f"in {sum(routed)} of {layers}")
    count = metadata.count("expert_count", 0, minimum=0)
    used = metadata.count("expert_used_count", 0, minimum=0)
    return {
        "attn_layer_offset": attention[0],
        "attn_layer_period": attention[1],
        "expert_layer_offset": experts[0],
        "expert_layer_period": experts[1],
        "intermediate_size": metadata.count("feed_forward_length"),
        "mamba_conv_bias": any(name.endswith(".ssm_conv1d.bias") for name in tensors),
        "mamba_d_conv": metadata.count("ssm.conv_kernel"),
        "mamba_d_state": metadata.count("ssm.state_size"),
        "mamba_dt_rank": metadata.count("ssm.time_step_rank"),
        "mamba_expand": inner // width,
        "num_experts": count if any(routed) else 1,
        "num_experts_per_tok": used if any(routed) else None,
        "num_key_value_heads": max(kv_heads) or config["num_attention_heads"],
    }


def _turn(chosen: Sequence[bool]) -> tuple[int, int] | None:
    """The first of the layers that are chosen and after how many comes the next; None where they have no period."""
    numbers = [number for number, own in enumerate(chosen) if own]
    first = numbers[0] if numbers else len(chosen)
    period = numbers[1] - first if len(numbers) > 1 else len(chosen) + 1
    return (first, period) if numbers == list(range(first, len(chosen), period)) and first < period else None


def jamba_problems(spec: ModelSpec) -> Iterator[str]:
    """Yield what stands in the way of writing the model at all."""
    bodies = [block.body for layer in spec.layers for block in layer.blocks]
    if any(layer != LayerSpec.of(*(block.body for block in layer.blocks)) for layer in spec.layers):
        yield "blocks but with a norm before each, and plainly added"
    if not {type(body) for body in bodies} <= {Attention, Mamba, Moe, GatedFfn}:
        yield "layers but of Mamba-1 or attention, then FFNs"
    mamba = {body for body in bodies if isinstance(body, Mamba)}
    if len(mamba) != 1 or not attention_of(spec):
        yield "models but with layers of both Mamba-1 and attention"
    if not all(body.conv_bias for body in mamba):
        yield "convolutions of Mamba-1 without a bias"
    if {body.inner for body in mamba} != {2 * spec.hidden_size}:
        yield "layers of Mamba-1 but of twice the model's width"
    if any(own.heads * own.head_dim != spec.hidden_size or not plain_scale(own) for own in attention_of(spec)):
        yield "heads that are not together as wide as the model"


def write_jamba(writer: GGUFWriter, spec: ModelSpec) -> None:
    """Write all keys of the model itself. The spec must have passed `jamba_problems`."""
    bodies = [block.body for layer in spec.layers for block in layer.blocks]
    mamba = next(body for body in bodies if isinstance(body, Mamba))
    ffn = next(body for body in bodies if isinstance(body, (Moe, GatedFfn)))
    moe = next((body for body in bodies if isinstance(body, Moe)), None)
    attention = attention_of(spec)[0]
    mixers = (layer.blocks[0].body for layer in spec.layers)
    write_frame(writer, spec)
    writer.add_feed_forward_length(ffn.intermediate_size)
    writer.add_head_count(attention.heads)
    writer.add_head_count_kv([mixer.kv_heads if isinstance(mixer, Attention) else 0 for mixer in mixers])
    writer.add_ssm_conv_kernel(mamba.length)
    writer.add_ssm_inner_size(mamba.inner)
    writer.add_ssm_state_size(mamba.state_size)
    writer.add_ssm_time_step_rank(mamba.step_rank)
    if moe is not None:
        writer.add_expert_count(moe.num_experts)
        writer.add_expert_used_count(moe.top_k)
