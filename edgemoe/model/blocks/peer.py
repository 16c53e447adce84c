"""PEER: an FFN of up to a million experts that are single neurons, retrieved by product keys (He 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgemoe.kernels import neuron_operations as no
from edgemoe.kernels import operations as op
from edgemoe.model.blocks.body import RoutedExperts, Shapes, check_activation
from edgemoe.model.builder import Builder
from edgemoe.model.graph import Part

HALVES = ("first", "second")
"""The halves of queries and keys."""


@dataclass(frozen=True)
class Peer:
    """`sum over heads and experts of weight * activation(u . x) * v`, where `u` and `v` are those of one expert.

    Each head has a query, in two halves, and a list of keys for each half. A half of the query meets the keys of its
    list; an expert's score is the sum of those of its two keys (`no.RetrieveByKeys`). The experts are rows of a table
    that all heads share, and stay on disk where memory is short.
    """

    kind: ClassVar[str] = "peer"
    norm_name: ClassVar[str] = "ffn_norm"
    norm_part: ClassVar[Part] = "router"

    num_experts: int
    heads: int
    top_k: int
    """How many experts each head retrieves."""
    key_dim: int
    """The width of a key, and of each half of a query."""
    scoring: no.Scoring = "softmax"
    activation: op.Activation = op.GELU
    query_bias: bool = False
    """Whether queries have a bias, as a batch norm leaves it that is folded into their weights."""

    @property
    def routed(self) -> RoutedExperts | None:
        return None

    @property
    def keys(self) -> int:
        """How many keys there are for each half."""
        return math.isqrt(self.num_experts)

    def check(self) -> None:
        check_activation(self.activation)
        if self.activation.gated:
            raise ValueError("experts of one neuron need an activation without a gate")
        if self.keys**2 != self.num_experts:
            raise ValueError(f"product keys of {self.num_experts} experts: expected a square")
        if self.num_experts > no.MOST_NEURONS:
            raise ValueError(f"{self.num_experts} experts: expected at most {no.MOST_NEURONS}")
        most = min(self.keys, no.MOST_RETRIEVED)
        if self.top_k > most:
            raise ValueError(f"a head that retrieves {self.top_k} experts: expected at most {most}")

    def tensors(self, hidden_size: int) -> Shapes:
        D, E, W = hidden_size, self.num_experts, self.heads * self.key_dim
        shapes: dict[str, tuple[int, ...]] = {}
        for half in HALVES:
            shapes |= {f"{half}_query": (W, D)} | ({f"{half}_query_bias": (W,)} if self.query_bias else {})
            shapes[f"{half}_keys"] = (self.heads * self.keys, self.key_dim)
        return shapes | {"neurons.down": (E, D), "neurons.up": (E, D)}

    def sizes(self) -> Mapping[str, int]:
        return {
            "neurons": self.num_experts,
            "queries": 2 * self.heads * self.key_dim,
            "retrieval_heads": self.heads,
            "keys": self.keys,
            "key_dim": self.key_dim,
            "retrieved": self.heads * self.top_k,
        }

    def with_top_k(self, top_k: int) -> Peer:
        return self

    def emit(self, build: Builder, source: op.Floats) -> None:
        chosen = self.heads * self.top_k
        with build.doing("router", "beside"):
            queries = [build.rows(f"{half}_query", self.heads * self.key_dim) for half in HALVES]
            build.add(op.Linear(source, tuple(map(self._query, [build] * 2, HALVES, queries))))
            first, second = (build.rows(f"{half}_scores", self.heads * self.keys) for half in HALVES)
            for half, query, output in zip(HALVES, queries, (first, second), strict=True):
                keys = build.matrix(f"{half}_keys", self.heads * self.keys, self.key_dim)
                build.add(op.HeadLinear(query, keys, None, self.heads, output))
            experts, weights = build.row_numbers("retrieved", chosen), build.rows("retrieved_weights", chosen)
            build.add(no.RetrieveByKeys(first, second, self.heads, experts, weights, self.scoring))
        with build.doing("experts", "combine"):
            build.deliver_neurons(source, experts, weights, self.num_experts, self.activation)

    def _query(self, build: Builder, half: str, output: op.Floats) -> op.LinearPart:
        """The product that gives one half of all heads' queries."""
        name, width = f"{half}_query", self.heads * self.key_dim
        bias = build.vector(f"{name}_bias", width) if self.query_bias else None
        return op.LinearPart(build.matrix(name, width, build.hidden_size), bias, output)

    def emit_guess(self, build: Builder, source: op.Floats) -> None:
        raise AssertionError("retrieval by keys has no routing to guess")
