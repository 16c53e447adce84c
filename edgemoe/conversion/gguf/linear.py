"""Layers of Gated DeltaNet in GGUF files: their names, and the order of rows and columns of heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgemoe.architectures.qwen3_next import RATE
from edgemoe.architectures.table import SUM_SUFFIX
from edgemoe.model.blocks import Attention, Body, GatedDelta

LINEAR_NAMES = {
    "output_norm.weight": "model.norm" + SUM_SUFFIX,
    "attn_norm.weight": "input_layernorm" + SUM_SUFFIX,
    "post_attention_norm.weight": "post_attention_layernorm" + SUM_SUFFIX,
    "attn_q_norm.weight": "self_attn.q_norm" + SUM_SUFFIX,
    "attn_k_norm.weight": "self_attn.k_norm" + SUM_SUFFIX,
    "nextn.enorm.weight": "enorm" + SUM_SUFFIX,
    "nextn.hnorm.weight": "hnorm" + SUM_SUFFIX,
    "nextn.shared_head_norm.weight": "shared_head.norm" + SUM_SUFFIX,
    "attn_qkv.weight": "linear_attn.in_proj_qkv.weight",
    "attn_gate.weight": "linear_attn.in_proj_z.weight",
    "ssm_in.weight": "linear_attn.in_proj_qkvz.weight",
    "ssm_ba.weight": "linear_attn.in_proj_ba.weight",
    "ssm_beta.weight": "linear_attn.in_proj_b.weight",
    "ssm_alpha.weight": "linear_attn.in_proj_a.weight",
    "ssm_dt.bias": "linear_attn.dt_bias",
    "ssm_a": RATE,
    "ssm_norm.weight": "linear_attn.norm.weight",
    "ssm_out.weight": "linear_attn.out_proj.weight",
}
"""Only older files have `ssm_in`. Source: llama.cpp, conversion/qwen.py, src/models/qwen3next.cpp and qwen35moe.cpp."""
LINEAR_TAPS = ("ssm_conv1d.weight", "linear_attn.conv1d.weight")
"""The names of the taps of its convolution, in files and in checkpoints."""


@dataclass(frozen=True)
class Turns:
    """Heads of values that lie in turn: the first of each key head, then the second of each, and so on.

    Checkpoints have those of a key head together. Source: llama.cpp's conversion/qwen.py, for Qwen3.5.
    """

    key_heads: int
    heads: int
    first: int
    """How many rows, or columns, stand before those of the heads."""
    width: int
    """Rows or columns of a head."""
    columns: bool = False
    """Whether the columns of a matrix are heads of values, not its rows."""

    def places(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """For rows or columns of a checkpoint, the corresponding ones of the file."""
        own = np.arange(start, stop)
        head, within = np.divmod(own - self.first, self.width)
        key_head, number = np.divmod(head, self.heads // self.key_heads)
        return np.where(own < self.first, own, self.first + (number * self.key_heads + key_head) * self.width + within)

    def back(self) -> Turns:
        """The other way round: from a file to a checkpoint."""
        return replace(self, key_heads=self.heads // self.key_heads)


OF_LINEAR = {
    "delta_in": "attn_qkv.weight",
    "delta_gate": "attn_gate.weight",
    "delta_strength": "ssm_beta.weight",
    "delta_decay": "ssm_alpha.weight",
    "delta_decay_bias": "ssm_dt.bias",
    "delta_rate": "ssm_a",
    "delta_taps": "ssm_conv1d.weight",
    "delta_out": "ssm_out.weight",
}
"""The tensors of a linear layer that have heads of values, by their names in the model."""


def turns_of(mixer: GatedDelta) -> dict[str, Turns]:
    """The order of the heads in each tensor of a linear layer that has some, by its name in the model."""
    before = 2 * mixer.key_heads * mixer.key_dim
    turns = Turns(mixer.key_heads, mixer.heads, 0, mixer.value_dim)
    return dict.fromkeys(OF_LINEAR, replace(turns, width=1)) | {
        "delta_in": replace(turns, first=before),
        "delta_gate": turns,
        "delta_taps": replace(turns, first=before * mixer.length, width=mixer.value_dim * mixer.length),
        "delta_out": replace(turns, columns=True),
    }


class LinearOrders(NamedTuple):
    """How tensors of a layer lie in the file where its architecture has layers of Gated DeltaNet, by their names."""

    blocks: Mapping[str, int]
    """Rows of each of two tensors that take turns in one tensor of the file."""
    turns: Mapping[str, Turns]
    """From the order of the file to that of the store."""
    channels: Mapping[str, int]
    """Rows of the matrix that a vector becomes."""


def linear_orders(mixer: Body, heads_in_turn: bool) -> LinearOrders:
    """The orders of the tensors of a layer with this mixer, in an architecture that has linear layers."""
    if isinstance(mixer, Attention):
        return LinearOrders(dict.fromkeys(("query", "output_gate"), mixer.head_dim), {}, {})
    if not isinstance(mixer, GatedDelta):
        return LinearOrders({}, {}, {})
    channels = {"delta_taps": mixer.channels}
    if mixer.in_turn:
        return LinearOrders({}, {}, channels)
    if not heads_in_turn:
        group = mixer.heads // mixer.key_heads
        return LinearOrders(dict.fromkeys(("delta_strength", "delta_decay"), group), {}, channels)
    turns = {name: one.back() for name, one in turns_of(mixer).items()}
    return LinearOrders({}, turns, channels)
