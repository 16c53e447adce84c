"""A dense feed-forward network with a gate: SwiGLU (Shazeer 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgemoe.kernels import operations as op
from edgemoe.model.blocks.body import RoutedExperts, Shapes, gated_ffn_tensors
from edgemoe.model.graph import Builder, Part


@dataclass(frozen=True)
class GatedFfn:
    """`down (silu(gate x) * (up x))`, for every token."""

    kind: ClassVar[str] = "gated_ffn"
    norm_name: ClassVar[str] = "ffn_norm"
    norm_part: ClassVar[Part] = "dense_ffn"

    intermediate_size: int

    @property
    def routed(self) -> RoutedExperts | None:
        return None

    def check(self) -> None:
        """Nothing can contradict a single size."""

    def tensors(self, hidden_size: int) -> Shapes:
        return gated_ffn_tensors("ffn", self.intermediate_size, hidden_size)

    def sizes(self) -> Mapping[str, int]:
        return {"ffn_width": self.intermediate_size}

    def with_top_k(self, top_k: int) -> GatedFfn:
        return self

    def emit(self, build: Builder, source: op.Floats) -> None:
        with build.doing("dense_ffn", "beside"):
            output = build.gated_ffn(source, "ffn", self.intermediate_size)
        with build.doing("combine", "combine"):
            build.deliver_sum(None, None, output)

    def emit_guess(self, build: Builder, source: op.Floats) -> None:
        raise AssertionError("a dense FFN has no routing to guess")
