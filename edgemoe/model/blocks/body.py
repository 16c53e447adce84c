"""The interface of a kind of block: what a file in this folder implements, and all that others may ask of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from edgemoe.kernels import operations as op
from edgemoe.kernels.definition import Misfit
from edgemoe.model.builder import Builder
from edgemoe.model.graph import Part

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class RoutedExperts:
    """The routed experts of a layer, which are paged: how many there are, how many a token uses, and their sizes."""

    num_experts: int
    top_k: int
    intermediate_size: int
    bias: bool = False
    """Whether gate, up and down of each expert have biases."""
    gated: bool = True
    """Whether each expert has a gate."""
    latent: int = 0
    """The width of the rows that experts read and write; 0: as wide as the model."""
    by_token: bool = False
    """Whether a table names the experts of each token, whatever the stream says."""
    by_levels: bool = False
    """Whether a router of several levels chooses them, whose sizes fix their number."""
    passing: int = 0
    """How many further choices the router has, which are of no expert."""
    early: bool = False
    """Whether a layer's stream chooses them as the layer begins, so that they are read while all else is computed."""

    @property
    def mean_top_k(self) -> float:
        """How many experts a token uses on average, if all choices are alike."""
        return self.top_k * self.num_experts / (self.num_experts + self.passing)

    def width(self, hidden_size: int) -> int:
        """The width of the rows that experts read and write."""
        return self.latent or hidden_size

    def tensors(self, hidden_size: int) -> Shapes:
        """The names of all experts' tensors within a layer, with their shapes."""
        shapes: dict[str, tuple[int, ...]] = {}
        for expert in range(self.num_experts):
            shapes |= self._ffn(f"experts.{expert}", hidden_size)
        return shapes

    def stacked(self, hidden_size: int) -> Shapes:
        """The same tensors with all experts in one, `(num_experts, rows, columns)`, as a paper names them."""
        shapes = self._ffn("experts", hidden_size)
        return {name: (self.num_experts, *shape) for name, shape in shapes.items()}

    def _ffn(self, name: str, hidden_size: int) -> Shapes:
        return ffn_tensors(name, self.intermediate_size, self.width(hidden_size), self.bias, self.gated)


def ffn_tensors(name: str, intermediate_size: int, hidden_size: int, bias: bool = False, gated: bool = True) -> Shapes:
    """The matrices of an FFN, three or, without a gate, two, and their biases if it has some."""
    shapes: dict[str, tuple[int, ...]] = {f"{name}.gate": (intermediate_size, hidden_size)} if gated else {}
    shapes |= {f"{name}.up": (intermediate_size, hidden_size), f"{name}.down": (hidden_size, intermediate_size)}
    if bias:
        shapes |= {f"{matrix}_bias": shape[:1] for matrix, shape in list(shapes.items())}
    return shapes


def check_activation(activation: op.Activation) -> None:
    """Raise ValueError for an activation whose numbers contradict its function."""
    try:
        activation.check()
    except Misfit as misfit:
        raise ValueError(f"activation: {misfit.field}: expected {misfit.expected}, found {misfit.found}") from None


class Body(Protocol):
    """The computation of a block, between its input norm and the residual stream."""

    kind: ClassVar[str]
    """The name of the kind in stores."""
    norm_name: ClassVar[str]
    """The name of the block's input norm among the layer's tensors; the block's other vectors are named after it."""
    norm_part: ClassVar[Part]
    """The part of the work to which the block's norms belong."""

    @property
    def routed(self) -> RoutedExperts | None:
        """The routed experts; None for a body without any."""

    def check(self) -> None:
        """Raise ValueError for sizes or numbers that contradict one another."""

    def tensors(self, hidden_size: int) -> Shapes:
        """The names of its dense tensors within a layer, with their shapes; those of `routed` are not among them.

        Matrices are `(rows, columns)` = (output, input). `X.gate`, `X.up` and `X.down` are the matrices of an FFN;
        the store keeps gate and up of one format as one matrix, `X.gate_up`. The bias of a matrix `X` is
        `X_bias`.
        """

    def sizes(self) -> Mapping[str, int]:
        """The values of the symbols that checkpoints' tables (`architectures/table.py`) use for its shapes."""

    def with_top_k(self, top_k: int) -> Body:
        """The same body with another number of experts for each token; a body without routed experts is unchanged."""

    def emit(self, build: Builder, source: op.Floats) -> None:
        """Add the operations that read the normalised stream `source` `(T, D)`.

        The last of them is `Builder.deliver` or `Builder.deliver_sum`, which know where the result goes.
        """

    def emit_guess(self, build: Builder, source: op.Floats) -> None:
        """Add the operations that guess this body's routing from rows of an earlier layer's stream."""
