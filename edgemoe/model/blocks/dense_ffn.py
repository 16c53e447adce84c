"""Dense feed-forward networks: with a gate, such as SwiGLU (Shazeer 2020), or of two matrices (Vaswani et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgemoe.kernels import operations as op
from edgemoe.model.blocks.body import Body, RoutedExperts, Shapes, check_activation, ffn_tensors
from edgemoe.model.builder import Builder
from edgemoe.model.graph import Part


@dataclass(frozen=True)
class _DenseFfn:
    """Both kinds; whether there is a gate follows from the activation."""

    kind: ClassVar[str]
    norm_name: ClassVar[str] = "ffn_norm"
    norm_part: ClassVar[Part] = "dense_ffn"

    intermediate_size: int
    activation: op.Activation = op.SILU
    bias: bool = False
    """Whether the matrices have biases."""

    @property
    def routed(self) -> RoutedExperts | None:
        return None

    def tensors(self, hidden_size: int) -> Shapes:
        return ffn_tensors("ffn", self.intermediate_size, hidden_size, self.bias, gated=self.activation.gated)

    def sizes(self) -> Mapping[str, int]:
        return {"ffn_width": self.intermediate_size}

    def with_top_k(self, top_k: int) -> Body:
        return self

    def check(self) -> None:
        check_activation(self.activation)

    def emit(self, build: Builder, source: op.Floats) -> None:
        with build.doing("dense_ffn", "beside"):
            output = build.ffn(source, "ffn", self.intermediate_size, self.activation, self.bias)
        with build.doing("combine", "combine"):
            build.deliver_sum(None, None, output)

    def emit_guess(self, build: Builder, source: op.Floats) -> None:
        raise AssertionError("a dense FFN has no routing to guess")


@dataclass(frozen=True)
class GatedFfn(_DenseFfn):
    """`down (activation(gate x, up x))`, for every token."""

    kind: ClassVar[str] = "gated_ffn"

    def check(self) -> None:
        super().check()
        if not self.activation.gated:
            raise ValueError("a gated FFN needs the activation of one")


@dataclass(frozen=True)
class PlainFfn(_DenseFfn):
    """`down (activation(up x))`, for every token: two matrices."""

    kind: ClassVar[str] = "plain_ffn"

    activation: op.Activation = op.RELU

    def check(self) -> None:
        super().check()
        if self.activation.gated:
            raise ValueError("an FFN without a gate needs an activation that takes none")
