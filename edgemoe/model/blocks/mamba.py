"""Mamba-1: a selective state space whose channels keep some numbers each, which decay at rates of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgemoe.kernels import operations as op
from edgemoe.kernels import state_operations as so
from edgemoe.kernels.formats import PANEL_ROWS, panel_count
from edgemoe.model.blocks.body import RoutedExperts, Shapes
from edgemoe.model.builder import Builder
from edgemoe.model.graph import Part


@dataclass(frozen=True)
class Mamba:
    """`out (scan(x, dt, B, C) * silu(gate u))` with `x = silu(conv(in u))` (Gu and Dao 2023), as Jamba has it.

    A causal convolution over `length` tokens, each of the `inner` channels by itself, makes `x`. Three matrices give of
    it `dt`, through a latent of `step_rank` channels, and `B` and `C` of `state_size` numbers; each is normalised.
    `so.ChannelScan` has the recurrence. A sequence keeps the last inputs of the convolution, and `state_size` numbers
    of each channel. Every token overwrites these, so that a sequence goes back by snapshots alone.
    """

    kind: ClassVar[str] = "mamba"
    norm_name: ClassVar[str] = "mamba_norm"
    norm_part: ClassVar[Part] = "mixer"

    inner: int
    state_size: int
    step_rank: int
    length: int
    conv_bias: bool = True

    @property
    def routed(self) -> RoutedExperts | None:
        return None

    def check(self) -> None:
        if not 2 <= self.length <= so.MOST_TAPS:
            raise ValueError(f"a convolution over {self.length} tokens: expected 2 to {so.MOST_TAPS}")
        if self.state_size > so.WIDEST_KEYS:
            raise ValueError(f"{self.state_size} numbers of each channel: expected at most {so.WIDEST_KEYS}")

    def tensors(self, hidden_size: int) -> Shapes:
        inner = self.inner
        shapes: dict[str, tuple[int, ...]] = {
            "mamba_in": (inner, hidden_size),
            "mamba_gate": (inner, hidden_size),
            "mamba_taps": (inner * self.length,),
            "mamba_step_latent": (self.step_rank, inner),
            "mamba_write": (self.state_size, inner),
            "mamba_read": (self.state_size, inner),
            "mamba_step_norm": (self.step_rank,),
            "mamba_write_norm": (self.state_size,),
            "mamba_read_norm": (self.state_size,),
            "mamba_step": (inner, self.step_rank),
            "mamba_step_bias": (inner,),
            "mamba_rate": (inner * self.state_size,),
            "mamba_skip": (inner,),
            "mamba_out": (hidden_size, inner),
        }
        return shapes | ({"mamba_taps_bias": (inner,)} if self.conv_bias else {})

    def sizes(self) -> Mapping[str, int]:
        return {
            "mamba_inner": self.inner,
            "mamba_state": self.state_size,
            "mamba_rank": self.step_rank,
            "taps": self.length,
        }

    def with_top_k(self, top_k: int) -> Mamba:
        return self

    def emit(self, build: Builder, source: op.Floats) -> None:
        inner, W = self.inner, self.state_size
        inputs, gate = self._linear(build, source, build.hidden_size, {"mamba_in": inner, "mamba_gate": inner})
        places, mixed = build.places(), build.rows("mamba_mixed", inner)
        taps = build.vector("mamba_taps", inner * self.length)
        bias = build.vector("mamba_taps_bias", inner) if self.conv_bias else None
        earlier = build.fixed_state("inputs", self.length - 1, inner)
        build.add(so.ShortConv(inputs, taps, bias, *places, earlier, mixed, parts=1))
        widths = {"mamba_step_latent": self.step_rank, "mamba_write": W, "mamba_read": W}
        latent, keys, queries = self._linear(build, mixed, inner, widths)
        for rows, name in ((latent, "step"), (keys, "write"), (queries, "read")):
            build.rms_norm(rows, f"mamba_{name}_norm", rows.shape[1], rows)
        step = build.linear(latent, "mamba_step", build.rows("mamba_step", inner), bias=True)
        rate, skip = build.vector("mamba_rate", inner * W), build.vector("mamba_skip", inner)
        # Channels in whole panels, as the scan keeps them.
        states = build.fixed_state("states", panel_count(inner) * PANEL_ROWS, W)
        output = build.rows("mamba_output", inner)
        build.add(so.ChannelScan(mixed, step, keys, queries, rate, skip, *places, states, output))
        build.add(op.Gate(gate, output, "silu"))
        build.deliver(output, "mamba_out")

    def _linear(
        self, build: Builder, source: op.Floats, columns: int, widths: Mapping[str, int]
    ) -> tuple[op.Floats, ...]:
        """Multiply rows by the matrices of these names and numbers of rows; returns the products."""
        outputs = tuple(build.rows(name, width) for name, width in widths.items())
        parts = (
            op.LinearPart(build.matrix(name, width, columns), None, output)
            for (name, width), output in zip(widths.items(), outputs, strict=True)
        )
        build.add(op.Linear(source, tuple(parts)))
        return outputs

    def emit_guess(self, build: Builder, source: op.Floats) -> None:
        raise AssertionError("a recurrent layer has no routing to guess")
