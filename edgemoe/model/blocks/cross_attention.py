"""Cross-attention: tokens of a decoder attend to the result of an encoder (Vaswani et al. 2017)."""

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
class CrossAttention:
    """Attention over all of a sequence's input. Its keys and values are computed once, at the encoder's end."""

    kind: ClassVar[str] = "cross_attention"
    norm_name: ClassVar[str] = "cross_attention_norm"
    norm_part: ClassVar[Part] = "attention"

    heads: int
    head_dim: int
    scale: float

    @property
    def routed(self) -> RoutedExperts | None:
        return None

    def check(self) -> None:
        pass

    def tensors(self, hidden_size: int) -> Shapes:
        inner = self.heads * self.head_dim
        matrices = dict.fromkeys(("cross_query", "cross_key", "cross_value"), (inner, hidden_size))
        return {**matrices, "cross_output": (hidden_size, inner)}

    def sizes(self) -> Mapping[str, int]:
        return {"cross": self.heads * self.head_dim}

    def with_top_k(self, top_k: int) -> CrossAttention:
        return self

    def emit(self, build: Builder, source: op.Floats) -> None:
        H, W, D = self.heads, self.head_dim, build.hidden_size
        with build.once() as once:
            pages, lengths = build.input_places()
            keys = build.written_once("cross_keys", "N", H, op.PAGE_TOKENS, W)
            values = build.written_once("cross_values", "N", H, op.PAGE_TOKENS, W)
            key, value = once.rows("cross_key", H * W), once.rows("cross_value", H * W)
            parts = (
                op.LinearPart(once.matrix(name, H * W, D), None, output)
                for name, output in (("cross_key", key), ("cross_value", value))
            )
            once.add(op.Linear(once.residual, tuple(parts)))
            once.add(so.StoreKv(key, value, *once.places(), pages, keys, values))
        query = build.linear(source, "cross_query", build.rows("cross_query", H * W))
        attended = build.rows("cross_attended", H * W)
        where = *build.places(), pages
        build.add(so.Attention(query, *where, keys, values, self.scale, attended, lengths=lengths))
        build.deliver(attended, "cross_output")

    def emit_guess(self, build: Builder, source: op.Floats) -> None:
        raise AssertionError("attention has no routing to guess")
