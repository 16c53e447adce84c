"""A dense feed-forward network with a gate, such as SwiGLU (Shazeer 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgemoe.kernels import operations as op
from edgemoe.model.blocks.body import RoutedExperts, Shapes, check_activation, ffn_tensors
from edgemoe.model.builder import Builder
from edgemoe.model.graph import Part


@dataclass(frozen=True)
class GatedFfn:
    """`down (activation(gate x, up x))`, for every token."""

    kind: ClassVar[str] = "gated_ffn"
    norm_name: ClassVar[str] = "ffn_norm"
    norm_part: ClassVar[Part] = "dense_ffn"

    intermediate_size: int
    activation: op.Activation = op.SILU
    bias: bool = False
    """Whether gate, up and down have biases."""

    @property
    def routed(self) -> RoutedExperts | None:
        return None

    def check(self) -> None:
        check_activation(self.activation)
        if not self.activation.gated:
            raise ValueError("a gated FFN needs the activation of one")

    def tensors(self, hidden_size: int) -> Shapes:
        return ffn_tensors("ffn", self.intermediate_size, hidden_size, self.bias)

    def sizes(self) -> Mapping[str, int]:
        return {"ffn_width": self.intermediate_size}

    def with_top_k(self, top_k: int) -> GatedFfn:
        return self

    def emit(self, build: Builder, source: op.Floats) -> None:
        with build.doing("dense_ffn", "beside"):
            output = build.ffn(source, "ffn", self.intermediate_size, self.activation, self.bias)
        with build.doing("combine", "combine"):
            build.deliver_sum(None, None, output)

    def emit_guess(self, build: Builder, source: op.Floats) -> None:
        raise AssertionError("a dense FFN has no routing to guess")
