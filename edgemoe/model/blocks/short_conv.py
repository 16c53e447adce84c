"""A gated short convolution: each channel is a sum over the last few tokens, between two gates (LFM2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgemoe.kernels import operations as op
from edgemoe.kernels import state_operations as so
from edgemoe.model.blocks.body import RoutedExperts, Shapes
from edgemoe.model.builder import Builder
from edgemoe.model.graph import Part


@dataclass(frozen=True)
class ShortConv:
    """`out (C * conv(B * x))`, where `[B, C, x]` are the thirds of `in` times the input.

    The convolution is causal, over `length` tokens and each channel by itself, without an activation. A sequence keeps
    `B * x` of its last tokens, in a ring.
    """

    kind: ClassVar[str] = "short_conv"
    norm_name: ClassVar[str] = "conv_norm"
    norm_part: ClassVar[Part] = "mixer"

    length: int
    bias: bool = False
    """Whether both projections and the convolution have biases."""

    @property
    def routed(self) -> RoutedExperts | None:
        return None

    def check(self) -> None:
        if not 2 <= self.length <= so.MOST_TAPS:
            raise ValueError(f"a convolution over {self.length} tokens: expected 2 to {so.MOST_TAPS}")

    def tensors(self, hidden_size: int) -> Shapes:
        D = hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "conv_in": (3 * D, D),
            "conv_taps": (D * self.length,),
            "conv_out": (D, D),
        }
        if self.bias:
            shapes |= {"conv_in_bias": (3 * D,), "conv_taps_bias": (D,), "conv_out_bias": (D,)}
        return shapes

    def sizes(self) -> Mapping[str, int]:
        return {"taps": self.length}

    def with_top_k(self, top_k: int) -> ShortConv:
        return self

    def emit(self, build: Builder, source: op.Floats) -> None:
        D, undo = build.hidden_size, build.options.undo_tokens
        gates = build.linear(source, "conv_in", build.rows("gates", 3 * D), bias=self.bias)
        taps = build.vector("conv_taps", D * self.length)
        bias = build.vector("conv_taps_bias", D) if self.bias else None
        positions, sequences = build.places()
        inputs = build.fixed_state("inputs", self.length - 1 + undo, D, undo=undo)
        convolved = build.rows("convolved", D)
        build.add(so.ShortConv(gates, taps, bias, positions, sequences, inputs, convolved))
        build.deliver(convolved, "conv_out", self.bias)

    def emit_guess(self, build: Builder, source: op.Floats) -> None:
        raise AssertionError("a convolution has no routing to guess")
