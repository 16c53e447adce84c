"""Mamba-2: a selective state space whose heads each decay by one number for each token (Dao and Gu 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgemoe.kernels import operations as op
from edgemoe.kernels import state_operations as so
from edgemoe.kernels.formats import PANEL_ROWS
from edgemoe.model.blocks.body import RoutedExperts, Shapes
from edgemoe.model.builder import Builder
from edgemoe.model.graph import Part


@dataclass(frozen=True)
class Mamba2:
    """`out (norm(scan(silu(conv(in x))) * silu(gate x)))`, with a norm over each group of heads.

    A causal convolution over `length` tokens, each channel by itself, mixes what `in` holds one after the other: the
    inputs of `heads` heads of width `head_dim`, then `B` and `C` of `groups` groups of width `state_size`.
    `so.SelectiveScan` has the recurrence. A sequence keeps the last inputs of the convolution, and for each head a
    matrix `(state_size, head_dim)`. Every token overwrites the matrices, so that a sequence goes back by snapshots
    alone.
    """

    kind: ClassVar[str] = "mamba2"
    norm_name: ClassVar[str] = "mamba_norm"
    norm_part: ClassVar[Part] = "mixer"

    heads: int
    head_dim: int
    groups: int
    state_size: int
    length: int
    conv_bias: bool = True

    @property
    def routed(self) -> RoutedExperts | None:
        return None

    @property
    def inner(self) -> int:
        """The width of all heads together."""
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        """The channels of the convolution: inputs, `B` and `C`."""
        return self.inner + 2 * self.groups * self.state_size

    def check(self) -> None:
        if self.heads % self.groups:
            raise ValueError(f"{self.heads} heads in {self.groups} groups")
        if not 2 <= self.length <= so.MOST_TAPS:
            raise ValueError(f"a convolution over {self.length} tokens: expected 2 to {so.MOST_TAPS}")

    def tensors(self, hidden_size: int) -> Shapes:
        D, H, C = hidden_size, self.heads, self.channels
        shapes: dict[str, tuple[int, ...]] = {
            "mamba_gate": (self.inner, D),
            "mamba_in": (C, D),
            "mamba_step": (H, D),
            "mamba_step_bias": (H,),
            "mamba_rate": (H,),
            "mamba_skip": (H,),
            "mamba_taps": (C * self.length,),
            "mamba_group_norm": (self.inner,),
            "mamba_out": (D, self.inner),
        }
        return shapes | ({"mamba_taps_bias": (C,)} if self.conv_bias else {})

    def sizes(self) -> Mapping[str, int]:
        return {
            "mamba_inner": self.inner,
            "mamba_channels": self.channels,
            "mamba_heads": self.heads,
            "mamba_groups": self.groups,
            "mamba_group": self.inner // self.groups,
            "taps": self.length,
        }

    def with_top_k(self, top_k: int) -> Mamba2:
        return self

    def emit(self, build: Builder, source: op.Floats) -> None:
        D, H, G, C, inner = build.hidden_size, self.heads, self.groups, self.channels, self.inner
        widths = {"mamba_gate": inner, "mamba_in": C, "mamba_step": H}
        gate, inputs, step = (build.rows(name, width) for name, width in widths.items())
        parts = (
            op.LinearPart(build.matrix(name, width, D), None, output)
            for (name, width), output in zip(widths.items(), (gate, inputs, step), strict=True)
        )
        build.add(op.Linear(source, tuple(parts)))
        places, mixed = build.places(), build.rows("mamba_mixed", C)
        taps = build.vector("mamba_taps", C * self.length)
        bias = build.vector("mamba_taps_bias", C) if self.conv_bias else None
        earlier = build.fixed_state("inputs", self.length - 1, C)
        build.add(so.ShortConv(inputs, taps, bias, *places, earlier, mixed, parts=1))
        step_bias, rate, skip = (build.vector(f"mamba_{name}", H) for name in ("step_bias", "rate", "skip"))
        # Columns of inputs in whole panels, as the scan keeps them.
        states = build.fixed_state("states", H, -(-self.head_dim // PANEL_ROWS) * PANEL_ROWS, self.state_size)
        output = build.rows("mamba_output", inner)
        build.add(so.SelectiveScan(mixed, step, step_bias, rate, skip, G, *places, states, output))
        build.add(op.Gate(gate, output, "silu"))
        norm = build.vector("mamba_group_norm", inner)
        build.add(op.RmsNorm(output, norm, build.epsilon, output, heads=G, own_weights=G))
        build.deliver(output, "mamba_out")

    def emit_guess(self, build: Builder, source: op.Floats) -> None:
        raise AssertionError("a recurrent layer has no routing to guess")
