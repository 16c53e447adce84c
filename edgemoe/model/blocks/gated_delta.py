"""Gated DeltaNet: linear attention whose state of fixed size each token decays and corrects (Yang et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from edgemoe.kernels import operations as op
from edgemoe.kernels import state_operations as so
from edgemoe.kernels.formats import PANEL_ROWS
from edgemoe.model.blocks.body import RoutedExperts, Shapes
from edgemoe.model.builder import Builder
from edgemoe.model.graph import Part

LENGTH_EPSILON = 1e-6
"""The number that is added to the squared lengths of queries and keys before they are brought to unit length."""


@dataclass(frozen=True)
class GatedDelta:
    """`out (norm(delta(silu(conv(in x)))) * gating(gate x))`, with a norm over each head.

    A causal convolution over `length` tokens, each channel by itself, mixes queries, keys and values, which `in` holds
    one after the other: `key_heads` heads of queries and of keys of width `key_dim`, `heads` heads of values of width
    `value_dim`. `so.DeltaRule` has the rule. A sequence keeps the last inputs of the convolution and for each head a
    matrix `(key_dim, value_dim)`. Every token overwrites the matrices, so that a sequence goes back by snapshots alone.
    """

    kind: ClassVar[str] = "gated_delta"
    norm_name: ClassVar[str] = "delta_norm"
    norm_part: ClassVar[Part] = "mixer"

    key_heads: int
    heads: int
    key_dim: int
    value_dim: int
    length: int
    gating: Literal["silu", "sigmoid"] = "silu"

    @property
    def routed(self) -> RoutedExperts | None:
        return None

    @property
    def channels(self) -> int:
        """The channels of the convolution: queries, keys and values."""
        return 2 * self.key_heads * self.key_dim + self.heads * self.value_dim

    def check(self) -> None:
        if self.heads % self.key_heads:
            raise ValueError(f"{self.heads} heads that share {self.key_heads} heads of keys")
        if self.key_dim > so.WIDEST_KEYS:
            raise ValueError(f"keys of {self.key_dim} channels: expected at most {so.WIDEST_KEYS}")
        if not 2 <= self.length <= so.MOST_TAPS:
            raise ValueError(f"a convolution over {self.length} tokens: expected 2 to {so.MOST_TAPS}")

    def tensors(self, hidden_size: int) -> Shapes:
        D, H, V = hidden_size, self.heads, self.heads * self.value_dim
        return {
            "delta_in": (self.channels, D),
            "delta_gate": (V, D),
            "delta_strength": (H, D),
            "delta_decay": (H, D),
            "delta_decay_bias": (H,),
            "delta_rate": (H,),
            "delta_taps": (self.channels * self.length,),
            "delta_head_norm": (self.value_dim,),
            "delta_out": (D, V),
        }

    def sizes(self) -> Mapping[str, int]:
        return {
            "delta_channels": self.channels,
            "delta_heads": self.heads,
            "delta_key_dim": self.key_dim,
            "delta_value_dim": self.value_dim,
            "delta_values": self.heads * self.value_dim,
            "delta_group": self.heads // self.key_heads,
            "delta_group_values": self.heads // self.key_heads * self.value_dim,
            "delta_all": self.channels + self.heads * self.value_dim,
            "taps": self.length,
        }

    def with_top_k(self, top_k: int) -> GatedDelta:
        return self

    def emit(self, build: Builder, source: op.Floats) -> None:
        D, H, W, Wv, C = build.hidden_size, self.heads, self.key_dim, self.value_dim, self.channels
        widths = {"delta_in": C, "delta_gate": H * Wv, "delta_strength": H, "delta_decay": H}
        inputs, gate, strength, decay = (build.rows(name, width) for name, width in widths.items())
        parts = (
            op.LinearPart(build.matrix(name, width, D), None, output)
            for (name, width), output in zip(widths.items(), (inputs, gate, strength, decay), strict=True)
        )
        build.add(op.Linear(source, tuple(parts)))
        places, mixed = build.places(), build.rows("delta_mixed", C)
        taps = build.vector("delta_taps", C * self.length)
        earlier = build.fixed_state("inputs", self.length - 1, C)
        build.add(so.ShortConv(inputs, taps, None, *places, earlier, mixed, parts=1))
        bias, rate = build.vector("delta_decay_bias", H), build.vector("delta_rate", H)
        # Columns of values in whole panels, as the rule keeps them.
        states = build.fixed_state("states", H, -(-Wv // PANEL_ROWS) * PANEL_ROWS, W)
        output = build.rows("delta_output", H * Wv)
        build.add(
            so.DeltaRule(mixed, strength, decay, bias, rate, LENGTH_EPSILON, self.key_heads, *places, states, output)
        )
        norm = build.vector("delta_head_norm", Wv)
        of_norm = gate if self.gating == "silu" else None  # a norm has a gate of this kind alone
        build.add(op.RmsNorm(output, norm, build.epsilon, output, heads=H, gate=of_norm))
        if of_norm is None:
            build.add(op.Gate(gate, output, self.gating))
        build.deliver(output, "delta_out")

    def emit_guess(self, build: Builder, source: op.Floats) -> None:
        raise AssertionError("a recurrent layer has no routing to guess")
