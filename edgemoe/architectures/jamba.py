"""Jamba: Mamba-1 in most layers, attention without positions in the others, experts in every second one."""

from __future__ import annotations

from dataclasses import replace

from edgemoe.architectures.config import DAMAGED, LARGEST_EXPERTS, LARGEST_LAYERS, LARGEST_WIDTH, ConfigReader
from edgemoe.architectures.frame import (
    COUNT_KEYS,
    pair_layers,
    read_attention,
    read_experts,
    read_frame,
    read_layer_count,
)
from edgemoe.architectures.table import Row, layer_rows, rows
from edgemoe.errors import SourceError
from edgemoe.kernels.state_operations import MOST_TAPS, WIDEST_KEYS
from edgemoe.model.blocks import Body, GatedFfn, Mamba, Moe, RouterSpec
from edgemoe.model.spec import ModelSpec

RATE = "mamba.rate"
"""The name of rates in place of `mamba.A_log`, which only GGUF files have."""
_EXPERT = "feed_forward.experts.{expert}."
_RATES = Row(
    ("layers.{layer}.mamba_rate",),
    "model.layers.{layer}.mamba.A_log",
    ("mamba_inner", "mamba_state"),
    as_vector=True,
    change="minus_exp",
)
TENSORS = (
    rows(
        ("embedding", "model.embed_tokens.weight", ("vocabulary", "model")),
        ("final_norm", "model.final_layernorm.weight", ("model",)),
        ("head", "lm_head.weight", ("vocabulary", "model")),
    )
    + layer_rows(
        *((f"{mixer}_norm", "input_layernorm.weight", ("model",)) for mixer in ("mamba", "attention")),
        ("query", "self_attn.q_proj.weight", ("query", "model")),
        ("key", "self_attn.k_proj.weight", ("key_value", "model")),
        ("value", "self_attn.v_proj.weight", ("value", "model")),
        ("output", "self_attn.o_proj.weight", ("model", "attended")),
        ("mamba_in mamba_gate", "mamba.in_proj.weight", ("2*mamba_inner", "model")),
        ("mamba_taps", "mamba.conv1d.weight", ("mamba_inner", "one", "taps")),
        ("mamba_taps_bias", "mamba.conv1d.bias", ("mamba_inner",)),
        (
            "mamba_step_latent mamba_write mamba_read",
            "mamba.x_proj.weight",
            ("mamba_rank+mamba_state+mamba_state", "mamba_inner"),
        ),
        ("mamba_step_norm", "mamba.dt_layernorm.weight", ("mamba_rank",)),
        ("mamba_write_norm", "mamba.b_layernorm.weight", ("mamba_state",)),
        ("mamba_read_norm", "mamba.c_layernorm.weight", ("mamba_state",)),
        ("mamba_step", "mamba.dt_proj.weight", ("mamba_inner", "mamba_rank")),
        ("mamba_step_bias", "mamba.dt_proj.bias", ("mamba_inner",)),
        ("mamba_skip", "mamba.D", ("mamba_inner",)),
        ("mamba_out", "mamba.out_proj.weight", ("model", "mamba_inner")),
        ("ffn_norm", "pre_ff_layernorm.weight", ("model",)),
        ("ffn.gate", "feed_forward.gate_proj.weight", ("ffn_width", "model")),
        ("ffn.up", "feed_forward.up_proj.weight", ("ffn_width", "model")),
        ("ffn.down", "feed_forward.down_proj.weight", ("model", "ffn_width")),
        ("router", "feed_forward.router.weight", ("experts", "model")),
        ("experts.{expert}.gate", _EXPERT + "gate_proj.weight", ("expert_width", "model")),
        ("experts.{expert}.up", _EXPERT + "up_proj.weight", ("expert_width", "model")),
        ("experts.{expert}.down", _EXPERT + "down_proj.weight", ("model", "expert_width")),
        (
            "experts.{expert}.gate experts.{expert}.up",
            "feed_forward.experts.gate_up_proj",
            ("experts", "2*expert_width", "model"),
        ),
        ("experts.{expert}.down", "feed_forward.experts.down_proj", ("experts", "model", "expert_width")),
    )
    + (_RATES, replace(_RATES, source=f"model.layers.{{layer}}.{RATE}", change="none"))
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    frame = read_frame(reader, "jamba", own_code="JambaForCausalLM")
    reader.skip("rope_theta", "rope_parameters", "rope_scaling")  # attention has no positions
    reader.skip("num_logits_to_keep", "use_mamba_kernels", "use_mambapy", "use_associative_scan")
    attention = replace(read_attention(reader, frame, kv_heads_required=True), rope=None)
    dense = GatedFfn(reader.integer("intermediate_size", maximum=LARGEST_WIDTH))
    sparse: Moe | GatedFfn = dense
    if reader.integer(*COUNT_KEYS, maximum=LARGEST_EXPERTS) > 1:
        sparse = read_experts(reader, width_key="intermediate_size", router=RouterSpec(normalise=False))
    else:
        reader.skip("num_experts_per_tok")
    mamba, layers = _read_mamba(reader, frame.hidden_size), range(read_layer_count(reader, sparse))
    attends, routes = (_read_period(reader, kind, *turn) for kind, turn in {"attn": (8, 4), "expert": (2, 1)}.items())
    mixers: list[Body] = [attention if number in attends else mamba for number in layers]
    return replace(frame, layers=pair_layers(mixers, [sparse if number in routes else dense for number in layers]))


def _read_period(reader: ConfigReader, kind: str, default_period: int, default_offset: int) -> range:
    """The numbers of the layers of a kind: one in every period, from an offset on. Raises SourceError."""
    period = reader.integer(f"{kind}_layer_period", maximum=LARGEST_LAYERS, default=default_period)
    key = f"{kind}_layer_offset"
    offset = reader.integer(key, minimum=0, maximum=LARGEST_LAYERS, default=default_offset)
    if offset >= period:
        raise SourceError(
            f"config.json: {key} is {offset}; expected less than {kind}_layer_period, which is {period}.", DAMAGED
        )
    return range(offset, LARGEST_LAYERS, period)


def _read_mamba(reader: ConfigReader, hidden_size: int) -> Mamba:
    inner = reader.integer("mamba_expand", maximum=LARGEST_WIDTH, default=2) * hidden_size
    if inner > LARGEST_WIDTH:
        raise SourceError(f"config.json: {inner} channels of a Mamba layer; expected at most {LARGEST_WIDTH}.", DAMAGED)
    reader.require("mamba_proj_bias", False)
    rank = -(-hidden_size // 16)
    if reader.value("mamba_dt_rank") != "auto":
        rank = reader.integer("mamba_dt_rank", maximum=LARGEST_WIDTH, default=rank)
    return Mamba(
        inner=inner,
        state_size=reader.integer("mamba_d_state", maximum=WIDEST_KEYS, default=16),
        step_rank=rank,
        length=reader.integer("mamba_d_conv", minimum=2, maximum=MOST_TAPS, default=4),
        conv_bias=reader.flag("mamba_conv_bias", True),
    )
