"""Nemotron-H (Nemotron 3): layers of one block each, which is Mamba-2, attention without positions, an MLP or experts
without gates, all with squared ReLU; experts may read and write narrower, latent rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgemoe.architectures import config as limits
from edgemoe.architectures.config import DAMAGED, LARGEST_WIDTH, ConfigReader
from edgemoe.architectures.frame import COUNT_KEYS, read_attention, read_experts, read_frame, read_sigmoid_router
from edgemoe.architectures.mamba import LAYER_TYPES, MAMBA_KEYS, newer_type, read_mamba2
from edgemoe.architectures.table import Row, rows
from edgemoe.errors import SourceError
from edgemoe.kernels.operations import RELU2
from edgemoe.model.blocks import Body, Moe, PlainFfn, SharedExpert
from edgemoe.model.spec import LayerSpec, ModelSpec

_PATTERN = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
"""The letters of `hybrid_override_pattern`."""
RATE = "mixer.rate"
"""The name of rates in place of `mixer.A_log`, which only GGUF files have."""


def _tensors(model: str, embedding: str) -> tuple[Row, ...]:
    """The rows under the name that a program has for all but the head."""
    top = rows(
        ("embedding", f"{model}.{embedding}.weight", ("vocabulary", "model")),
        ("final_norm", f"{model}.norm_f.weight", ("model",)),
    )
    lines = rows(
        *((f"{block}_norm", "norm.weight", ("model",)) for block in ("mamba", "attention", "ffn")),
        ("mamba_gate mamba_in mamba_step", "mixer.in_proj.weight", ("mamba_inner+mamba_channels+mamba_heads", "model")),
        ("mamba_taps", "mixer.conv1d.weight", ("mamba_channels", "one", "taps")),
        ("mamba_taps_bias", "mixer.conv1d.bias", ("mamba_channels",)),
        ("mamba_step_bias", "mixer.dt_bias", ("mamba_heads",)),
        ("mamba_skip", "mixer.D", ("mamba_heads",)),
        ("mamba_group_norm", "mixer.norm.weight", ("mamba_inner",)),
        ("mamba_out", "mixer.out_proj.weight", ("model", "mamba_inner")),
        ("query", "mixer.q_proj.weight", ("query", "model")),
        ("key", "mixer.k_proj.weight", ("key_value", "model")),
        ("value", "mixer.v_proj.weight", ("value", "model")),
        ("output", "mixer.o_proj.weight", ("model", "attended")),
        ("ffn.up", "mixer.up_proj.weight", ("ffn_width", "model")),
        ("ffn.down", "mixer.down_proj.weight", ("model", "ffn_width")),
        ("router", "mixer.gate.weight", ("experts", "model")),
        ("router_choice_bias", "mixer.gate.e_score_correction_bias", ("experts",)),
        ("latent_in", "mixer.fc1_latent_proj.weight", ("expert_model", "model")),
        ("latent_out", "mixer.fc2_latent_proj.weight", ("model", "expert_model")),
        ("experts.{expert}.up", "mixer.experts.{expert}.up_proj.weight", ("expert_width", "expert_model")),
        ("experts.{expert}.down", "mixer.experts.{expert}.down_proj.weight", ("expert_model", "expert_width")),
        ("experts.{expert}.up", "mixer.experts.up_proj", ("experts", "expert_width", "expert_model")),
        ("experts.{expert}.down", "mixer.experts.down_proj", ("experts", "expert_model", "expert_width")),
        ("shared.up", "mixer.shared_experts.up_proj.weight", ("shared_width", "model")),
        ("shared.down", "mixer.shared_experts.down_proj.weight", ("model", "shared_width")),
        internal="layers.{layer}.",
        source=f"{model}.layers.{{layer}}.",
    )
    rate = Row(("layers.{layer}.mamba_rate",), f"{model}.layers.{{layer}}.mixer.A_log", ("mamba_heads",))
    return (*top, *lines, replace(rate, change="minus_exp"), replace(rate, source=f"{model}.layers.{{layer}}.{RATE}"))


TENSORS = (
    _tensors("backbone", "embeddings")
    + _tensors("model", "embeddings")
    + rows(("head", "lm_head.weight", ("vocabulary", "model")))
)
"""Newer programs call `model` in memory what files call `backbone`."""


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    types = _read_types(reader)
    frame = read_frame(
        reader,
        "nemotron_h",
        epsilon_key="layer_norm_epsilon",
        layer_types=(*LAYER_TYPES, "mlp", "moe"),
        own_code="NemotronHForCausalLM",
    )
    reader.skip("norm_eps")  # repeats `layer_norm_epsilon`, which is the one that is used
    reader.require("use_bias", False)
    reader.require("mlp_hidden_act", "relu2")
    bodies = {kind: _read_body(reader, frame, kind) for kind in dict.fromkeys(types)}
    _skip_absent(reader, bodies)
    layers = {kind: LayerSpec.of(body) for kind, body in bodies.items()}
    return replace(frame, layers=tuple(layers[kind] for kind in types))


def _read_types(reader: ConfigReader) -> Sequence[str]:
    """The type of each layer, from a list or from a letter for each layer. Raises SourceError."""
    found: dict[str, list[str]] = {}
    for name in ("layers_block_type", "layer_types"):
        if listed := reader.sequence(name):
            found[name] = [newer_type(kind) if isinstance(kind, str) else "" for kind in listed]
    pattern = reader.value("hybrid_override_pattern")
    if pattern is not None:
        found["hybrid_override_pattern"] = [_PATTERN.get(letter, "") for letter in str(pattern)]
    if not found:
        raise SourceError("config.json: hybrid_override_pattern is missing; expected the kinds of layers.", DAMAGED)
    for name, types in found.items():
        count = reader.integer("num_hidden_layers", maximum=limits.LARGEST_LAYERS, default=len(types))
        if len(types) != count or len(types) > limits.LARGEST_LAYERS:
            raise SourceError(f"config.json: {name} lists {len(types)} layers; expected {count}.", DAMAGED)
        if unknown := set(types) - set(_PATTERN.values()):
            raise SourceError(
                f"config.json: {name} has {len(unknown)} kinds of layers that edgemoe does not know; expected"
                f" {', '.join(_PATTERN.values())} ({', '.join(_PATTERN)}).",
                DAMAGED,
            )
    if len(set(map(tuple, found.values()))) > 1:
        raise SourceError(f"config.json: {' and '.join(found)} list other layers; they must agree.", DAMAGED)
    return next(iter(found.values()))


def _read_body(reader: ConfigReader, frame: ModelSpec, kind: str) -> Body:
    if kind == "linear_attention":
        width = reader.integer("mamba_head_dim", maximum=LARGEST_WIDTH, default=64)
        keys = ("n_groups", "ssm_state_size", "conv_kernel", "use_conv_bias")
        return read_mamba2(reader, "mamba_num_heads", width, *keys)
    if kind == "full_attention":
        attention = read_attention(reader, frame, kv_heads_required=True, default_head_dim=128)
        return replace(attention, rope=None)
    if kind == "mlp":
        return PlainFfn(reader.integer("intermediate_size", maximum=LARGEST_WIDTH), RELU2)
    return _read_moe(reader)


def _read_moe(reader: ConfigReader) -> Moe:
    reader.require("n_shared_experts", 1)
    width = reader.integer("moe_shared_expert_intermediate_size", maximum=LARGEST_WIDTH)
    moe = read_experts(
        reader,
        width_key="moe_intermediate_size",
        router=read_sigmoid_router(reader),
        count_key="n_routed_experts",
    )
    latent = reader.integer("moe_latent_size", maximum=LARGEST_WIDTH, default=0)
    return replace(moe, activation=RELU2, shared=SharedExpert(width, activation=RELU2), latent=latent)


def _skip_absent(reader: ConfigReader, bodies: Mapping[str, Body]) -> None:
    """Take note of the keys of kinds of layers that the model does not have, and of those that change nothing."""
    of_kinds = {
        "linear_attention": (
            *("mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size", "conv_kernel", "use_conv_bias"),
            *MAMBA_KEYS,
        ),
        "full_attention": ("num_attention_heads", "num_key_value_heads", "head_dim", "rope_theta"),
        "mlp": ("intermediate_size",),
        "moe": (
            *(*COUNT_KEYS, "n_shared_experts", "moe_intermediate_size", "moe_latent_size"),
            *("moe_shared_expert_intermediate_size", "num_experts_per_tok", "norm_topk_prob", "routed_scaling_factor"),
            *("n_group", "topk_group"),
        ),
    }
    for kind, names in of_kinds.items():
        if kind not in bodies:
            reader.skip(*names)
    # Attention has no positions; chunks, caches and the width's factor are another program's affair.
    reader.skip("rope_theta", "rope_parameters", "rope_scaling", "partial_rotary_factor", "chunk_size", "expand")
    reader.skip("mamba_ssm_cache_dtype", "use_mamba_kernels", "num_logits_to_keep", "rescale_prenorm_residual")
    reader.skip("residual_in_fp32", "moe_shared_expert_overlap", "mtp_layers_block_type", "mtp_hybrid_override_pattern")
    reader.skip("num_nextn_predict_layers")
