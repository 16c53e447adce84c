"""Multilinear mixtures: all experts are linear, and their weights are one factorised tensor (Oldfield et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from edgemoe.kernels import mixture_operations as mx
from edgemoe.kernels import operations as op
from edgemoe.model.blocks.body import RoutedExperts, Shapes
from edgemoe.model.builder import Builder
from edgemoe.model.graph import Part

NORM_EPSILON = 1e-5
LARGEST_RANK = 1 << 14


@dataclass(frozen=True)
class Multilinear:
    """`y = sum over n of a[n] * (W[n] x + b[n])`, where `a` is the 1.5-entmax of the normalised logits of experts `n`.

    No expert's matrix is ever made: with `cp` factors it is `output ((expert a) * (input x + bias))`, of one rank, and
    with a `ring` of tensors the rows between are two matrices, `(ranks[0], ranks[1])` and `(ranks[1], ranks[2])`, whose
    product `output` multiplies. So a token reads all weights, and none is paged. Source: Oldfield et al. 2024 (arXiv
    2402.12550).
    """

    kind: ClassVar[str] = "multilinear"
    norm_name: ClassVar[str] = "ffn_norm"
    norm_part: ClassVar[Part] = "dense_ffn"

    num_experts: int
    form: Literal["cp", "ring"]
    ranks: tuple[int, ...]
    """One rank of `cp`, three of a `ring`."""
    gate_norm: Literal["none", "layer", "batch"] = "none"
    """The norm of logits: over a token's own, or by the means and variances of training."""
    bias: bool = True
    """Whether experts have biases."""

    @property
    def routed(self) -> RoutedExperts | None:
        return None

    @property
    def widths(self) -> tuple[int, int, int]:
        """The widths of the rows that follow from the experts' shares, from the input, and from both."""
        if self.form == "cp":
            return self.ranks * 3  # type: ignore[return-value]  # of one rank
        first, second, third = self.ranks
        return first * second, second * third, first * third

    def check(self) -> None:
        wanted = 1 if self.form == "cp" else 3
        if len(self.ranks) != wanted:
            raise ValueError(f"{len(self.ranks)} ranks of factors in the form {self.form}: expected {wanted}")
        if max(self.widths) > LARGEST_RANK:
            raise ValueError(f"rows of {max(self.widths)} factors: expected at most {LARGEST_RANK}")

    def tensors(self, hidden_size: int) -> Shapes:
        E, D, (of_experts, of_input, of_both) = self.num_experts, hidden_size, self.widths
        shapes: dict[str, tuple[int, ...]] = {"router": (E, D)}
        if self.gate_norm == "batch":
            shapes |= {"router_mean": (E,), "router_variance": (E,)}
        shapes |= {"expert_factor": (of_experts, E), "input_factor": (of_input, D)}
        if self.bias:
            shapes["input_factor_bias"] = (of_input,)
        return shapes | {"output_factor": (D, of_both)}

    def sizes(self) -> Mapping[str, int]:
        of_experts, of_input, of_both = self.widths
        return {
            "experts": self.num_experts,
            "expert_factors": of_experts,
            "input_factors": of_input,
            "output_factors": of_both,
        }

    def with_top_k(self, top_k: int) -> Multilinear:
        return self

    def emit(self, build: Builder, source: op.Floats) -> None:
        E, (of_experts, of_input, of_both) = self.num_experts, self.widths
        with build.doing("dense_ffn", "beside"):
            shares = build.linear(source, "router", build.rows("router_logits", E))
            if self.gate_norm == "layer":
                build.add(op.LayerNorm(shares, build.numbers(*[1.0] * E), NORM_EPSILON, shares))
            if self.gate_norm == "batch":
                mean, variance = (build.vector(f"router_{name}", E) for name in ("mean", "variance"))
                build.add(mx.BatchNorm(shares, mean, variance, NORM_EPSILON))
            build.add(mx.Entmax(shares))
            left = build.linear(shares, "expert_factor", build.rows("expert_factors", of_experts))
            right = build.linear(source, "input_factor", build.rows("input_factors", of_input), bias=self.bias)
            count, inner = (self.ranks[0], 1) if self.form == "cp" else (1, self.ranks[1])
            both = build.rows("factors", of_both)
            build.add(mx.PairProducts(left, right, count, inner, both))
        with build.doing("combine", "combine"):
            build.deliver(both, "output_factor")

    def emit_guess(self, build: Builder, source: op.Floats) -> None:
        raise AssertionError("a mixture of all experts has no routing to guess")
