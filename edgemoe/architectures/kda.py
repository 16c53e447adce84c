"""Kimi Delta Attention in checkpoints: the places of its tensors, and its widths."""

from __future__ import annotations

from dataclasses import replace

from edgemoe.architectures.config import DAMAGED, LARGEST_WIDTH
from edgemoe.architectures.table import Row, layer_rows
from edgemoe.errors import SourceError
from edgemoe.kernels.state_operations import MOST_TAPS
from edgemoe.model.blocks import GatedDelta


def kda_rows(mixer: str, rates: tuple[str, ...]) -> tuple[Row, ...]:
    """The rows of a mixer under the name that checkpoints have for it; without its projections of decays and gate.

    `rates` is the shape of the logarithms of its rates. Only GGUF files have the rates themselves, with or without
    their sign.
    """
    (logarithms, signed, unsigned) = layer_rows(
        ("delta_rate", f"{mixer}.A_log", rates),
        ("delta_rate", f"{mixer}.rate", ("delta_heads",)),
        ("delta_rate", f"{mixer}.rate_without_sign", ("delta_heads",)),
    )
    lines = layer_rows(
        ("delta_norm", "input_layernorm.weight", ("model",)),
        ("delta_query", f"{mixer}.q_proj.weight", ("delta_keys", "model")),
        ("delta_key", f"{mixer}.k_proj.weight", ("delta_keys", "model")),
        ("delta_value", f"{mixer}.v_proj.weight", ("delta_values", "model")),
        ("delta_query_taps", f"{mixer}.q_conv1d.weight", ("delta_keys", "one", "taps")),
        ("delta_key_taps", f"{mixer}.k_conv1d.weight", ("delta_keys", "one", "taps")),
        ("delta_value_taps", f"{mixer}.v_conv1d.weight", ("delta_values", "one", "taps")),
        ("delta_decay_bias", f"{mixer}.dt_bias", ("delta_decays",)),
        ("delta_strength", f"{mixer}.b_proj.weight", ("delta_heads", "model")),
        ("delta_head_norm", f"{mixer}.o_norm.weight", ("delta_value_dim",)),
        ("delta_out", f"{mixer}.o_proj.weight", ("model", "delta_values")),
    )
    return (*lines, replace(logarithms, change="minus_exp"), signed, replace(unsigned, change="minus"))


def checked_kda(heads: int, width: int, length: int, rank: int = 0, bound: float = 0.0) -> GatedDelta:
    """A mixer whose keys and values have as many heads of one width. Raises SourceError."""
    if heads * width > LARGEST_WIDTH:
        raise SourceError(
            f"config.json: {heads} heads of width {width} in a linear layer; expected {LARGEST_WIDTH} values at most.",
            DAMAGED,
        )
    if not 2 <= length <= MOST_TAPS:
        raise SourceError(
            f"config.json: a convolution over {length} tokens in a linear layer; expected 2 to {MOST_TAPS}.", DAMAGED
        )
    return GatedDelta(
        heads,
        heads,
        width,
        width,
        length,
        apart=True,
        decay_per="channel",
        decay_rank=rank,
        decay_bound=bound,
        gate_rank=rank,
        gating="sigmoid",
    )
