"""The two hooks of an engine: a source that replaces the routers' choice, and an observer of routing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from edgemoe.engine.batch import Rows
from edgemoe.engine.decoder import LayerRouting
from edgemoe.model.spec import ModelSpec


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
