"""The operation that sends a row down binary trees: a feed-forward layer of which a token reads one path alone.

Defined as those of `operations.py` are, and with its letters and invariants.
"""

# Annotations are evaluated here, not left as text, as in `operations.py`.

from dataclasses import dataclass
from typing import Annotated

from edgemoe.kernels.definition import Misfit, Sizes, require
from edgemoe.kernels.formats import Matrix, whole_rows_shape
from edgemoe.kernels.marks import NUMBER, matrix, output, rows, weight
from edgemoe.kernels.operations import RELU, Activation, Floats, Operation, check_activation, members_of

MOST_DEPTH = 24
"""The most levels of a tree above its leaves."""

OF_LEAVES = ("leaf_in", "leaf_bias", "output_bias")
"""The weights that only trees whose nodes add nothing have."""


@dataclass(frozen=True, eq=False, repr=False)
class TreeFfn(Operation, code=53):
    """A row goes down each of `trees` binary trees; the `output` is the sum of what one path through each of them adds.

    A tree has its nodes level by level: below node `n` stand `2 n + 1` (left) and `2 n + 2` (right). The number of a
    node is `z = node . input + node_bias`, and the path begins at node 0.

    With a `leaf_width` of `w` the path goes right where `z >= 0`, and after `depth` nodes it ends in one of the tree's
    `2^depth` leaves, which adds `activation(leaf_in input + leaf_bias) leaf_out + output_bias`: `w` rows of `leaf_in`
    and of `out` belong to each leaf. Biases of leaves may be absent (Fast Feedforward Networks, Belcak and Wattenhofer
    2023, arXiv 2308.14711).

    Without one (0) each of the `depth + 1` nodes of the path adds `activation(z) out`, with a row of `out` for each
    node, and the path goes right where `z > 0` (UltraFastBERT, Belcak and Wattenhofer 2023, arXiv 2311.10770).

    Sums run along the path, in the order of neurons; the trees come one after the other. Matrices have their rows whole
    (`formats.whole_rows_shape`), and no others of these are read.
    """

    input: Annotated[Floats, rows("D")]
    nodes: Annotated[Matrix, matrix("node_panels", "32")]
    node_bias: Annotated[Floats, weight("node_count")]
    leaf_in: Annotated[Matrix | None, matrix("in_panels", "32")]
    leaf_bias: Annotated[Floats | None, weight("leaf_neurons")]
    out: Annotated[Matrix, matrix("out_panels", "32")]
    output_bias: Annotated[Floats | None, weight("output_numbers")]
    trees: Annotated[int, NUMBER]  # 1 or more
    depth: Annotated[int, NUMBER]
    leaf_width: Annotated[int, NUMBER]  # 0: nodes add to the output
    output: Annotated[Floats, rows("D"), output(apart_from="input")]
    activation: Activation = RELU

    @property
    def nodes_of_tree(self) -> int:
        """The number of nodes of a tree."""
        return node_count(self.depth, self.leaf_width)

    def check(self, sizes: Sizes) -> None:
        check_activation(self.activation, gated=False)
        require(self.trees >= 1, "trees", "1 or more", self.trees)
        require(self.leaf_width >= 0, "leaf_width", "0 or more", self.leaf_width)
        require(0 <= self.depth <= MOST_DEPTH, "depth", f"0 to {MOST_DEPTH}", self.depth)
        nodes, leaves, width = self.trees * self.nodes_of_tree, self.trees << self.depth, sizes.letters["D"]
        require(nodes > 0, "depth", "1 or more", self.depth)
        neurons = leaves * self.leaf_width if self.leaf_width else nodes
        held = {"nodes": nodes, "leaf_in": neurons, "out": neurons}
        lengths = {"node_bias": nodes, "leaf_bias": neurons, "output_bias": leaves * width}
        for field, member in members_of(self):
            name = field.name
            if not self.leaf_width and name in OF_LEAVES:
                raise Misfit(name, "none without leaves", "one")
            if name in held:
                expected = whole_rows_shape(held[name], width)
                require(member.shape == expected, name, f"{held[name]} whole rows, shape {expected}", member.shape)
                require(member.format.name in ("f32", "f16"), name, "a matrix in f32 or f16", member.format.name)
            elif name in lengths:
                require(member.shape == (lengths[name],), name, f"{lengths[name]} numbers", member.shape[0])
        require(not self.leaf_width or self.leaf_in is not None, "leaf_in", "a matrix, with leaves", None)

    def share_read(self, name: str) -> float:
        """Return the share of a weight, by the name of its field, that a token reads."""
        walked = self.depth + (not self.leaf_width)
        of_nodes = not self.leaf_width or name in ("nodes", "node_bias")
        return walked / self.nodes_of_tree if of_nodes else 1 / (1 << self.depth)

    def weight_bytes(self) -> int:
        named = ((field.name, member.nbytes) for field, member in members_of(self) if field.mark.is_weight)
        return sum(round(size * self.share_read(name)) for name, size in named)


def node_count(depth: int, leaf_width: int) -> int:
    """The number of nodes of a tree above its leaves, or with those in their place."""
    return (1 << depth if leaf_width else 2 << depth) - 1
