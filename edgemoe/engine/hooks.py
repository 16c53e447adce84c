"""The hooks of an engine: a source of routing in the routers' place, its observer, and takers of hidden states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from edgemoe.engine.batch import Rows
from edgemoe.engine.decoder import LayerRouting
from edgemoe.kernels.operations import Floats
from edgemoe.model.spec import ModelSpec

HiddenTaker = Callable[[int, Floats], None]
"""A function that is given a position and the residual stream after all layers, of the token there and of those that
follow `(n, D)`; the rows are overwritten once it returns."""


class RoutingSource(Protocol):
    """Chooses the experts of each token in place of the routers."""

    @property
    def recall(self) -> float | None:
        """The share of the next layer's experts that its guesses name; None: it makes no guesses."""

    def apply_to(self, spec: ModelSpec) -> ModelSpec:
        """The model with this source's number of experts per token. Raises UsageError for another shape."""

    def put(self, routing: Sequence[LayerRouting | None], run: Sequence[Rows]) -> None:
        """Write the choice for the tokens of a run into the `LayerRouting` of each layer, row by row."""


class RoutingObserver(Protocol):
    """Receives the routing of each run after it was computed."""

    one_sequence: bool
    """Whether it can observe no run of several sequences."""
    drafts: bool
    """Whether it can observe tokens that may be taken back."""

    def step(self, run: Sequence[Rows]) -> None:
        """Called when a run has ended, whose rows still lie in `LayerRouting`; turns have not yet gone on."""
