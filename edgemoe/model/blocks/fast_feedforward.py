"""Fast feedforward networks: binary trees, down which a token takes one path (Belcak and Wattenhofer 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from edgemoe.kernels import operations as op
from edgemoe.kernels import tree_operations as tr
from edgemoe.kernels.formats import Matrix, whole_rows_shape
from edgemoe.model.blocks.body import RoutedExperts, Shapes, check_activation
from edgemoe.model.builder import Builder
from edgemoe.model.graph import Part
from edgemoe.model.plain import ZERO_ALLOWED


@dataclass(frozen=True)
class FastFeedforward:
    """Neurons in the leaves of trees, or in their nodes, of which a row meets one path; `tr.TreeFfn` says how."""

    kind: ClassVar[str] = "fast_feedforward"
    norm_name: ClassVar[str] = "ffn_norm"
    norm_part: ClassVar[Part] = "dense_ffn"

    depth: int
    """The decisions from the root to a leaf: a tree has `2^depth` leaves."""
    leaf_width: int = field(default=0, metadata=ZERO_ALLOWED)
    """The neurons of a leaf; 0: there are no leaves, and each of the `depth + 1` nodes of a path is a neuron."""
    trees: int = 1
    """How many trees there are, whose outputs are summed."""
    activation: op.Activation = op.RELU
    leaf_bias: bool = True
    """Whether neurons of leaves have biases."""
    output_bias: bool = False
    """Whether what a leaf adds has a bias of its own."""

    @property
    def routed(self) -> RoutedExperts | None:
        return None

    @property
    def neurons(self) -> int:
        """All neurons that add to the output."""
        return self.trees * (self.leaf_width << self.depth or tr.node_count(self.depth, 0))

    @property
    def neurons_read(self) -> int:
        """The neurons that add to the output of a token."""
        return self.trees * (self.leaf_width or self.depth + 1)

    @property
    def _nodes(self) -> int:
        return self.trees * tr.node_count(self.depth, self.leaf_width)

    @property
    def _out(self) -> str:
        """The name of the matrix with the rows that are added to the output."""
        return "tree_leaf_out" if self.leaf_width else "tree_node_out"

    def check(self) -> None:
        check_activation(self.activation)
        if self.activation.gated:
            raise ValueError("trees of neurons without a gate need an activation that takes none")
        if self.depth > tr.MOST_DEPTH:
            raise ValueError(f"a tree of {self.depth} levels: expected at most {tr.MOST_DEPTH}")
        if self.output_bias and not self.leaf_width:
            raise ValueError("biases of what leaves add, and no leaves")

    def tensors(self, hidden_size: int) -> Shapes:
        D, rows = hidden_size, {"tree_nodes": self._nodes, self._out: self.neurons}
        vectors = {"tree_node_bias": self._nodes}
        if self.leaf_width:
            rows["tree_leaf_in"] = self.neurons
            vectors |= {"tree_leaf_bias": self.neurons} if self.leaf_bias else {}
            vectors |= {"tree_output_bias": (self.trees << self.depth) * D} if self.output_bias else {}
        shapes: dict[str, tuple[int, ...]] = {name: whole_rows_shape(count, D) for name, count in rows.items()}
        return shapes | {name: (count,) for name, count in vectors.items()}

    def sizes(self) -> Mapping[str, int]:
        return {
            "tree_nodes": self._nodes,
            "tree_leaves": self.trees << self.depth if self.leaf_width else 0,
            "leaf_width": self.leaf_width,
            "tree_neurons": self.neurons,
            "tree_neurons_read": self.neurons_read,
        }

    def with_top_k(self, top_k: int) -> FastFeedforward:
        return self

    def emit(self, build: Builder, source: op.Floats) -> None:
        shapes = self.tensors(build.hidden_size)

        def matrix(name: str) -> Matrix:
            rows, columns = shapes[name]
            return build.matrix(name, rows, columns)

        def vector(name: str) -> op.Floats | None:
            return build.vector(name, shapes[name][0]) if name in shapes else None

        with build.doing("dense_ffn", "beside"):
            output = build.rows("tree_output", build.hidden_size)
            build.add(
                tr.TreeFfn(
                    source,
                    matrix("tree_nodes"),
                    build.vector("tree_node_bias", self._nodes),
                    matrix("tree_leaf_in") if self.leaf_width else None,
                    vector("tree_leaf_bias"),
                    matrix(self._out),
                    vector("tree_output_bias"),
                    *(self.trees, self.depth, self.leaf_width),
                    output,
                    self.activation,
                )
            )
        with build.doing("combine", "combine"):
            build.deliver_sum(None, None, output)

    def emit_guess(self, build: Builder, source: op.Floats) -> None:
        raise AssertionError("a tree has no routing to guess")
