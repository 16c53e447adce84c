"""The two places where a laboratory may attach to an engine: routing can be taken from elsewhere, and watched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from edgemoe.engine.decoder import LayerRouting
from edgemoe.engine.phase import Turn
from edgemoe.model.spec import ModelSpec


class RoutingSource(Protocol):
    """Says which experts each token uses, in place of the routers."""

    @property
    def recall(self) -> float | None:
        """The share of the experts to come that its guesses name; None: it guesses nothing."""

    def apply_to(self, spec: ModelSpec) -> ModelSpec:
        """The model with as many experts used for each token as here. Raises UsageError for another shape."""

    def put(self, routing: Sequence[LayerRouting | None], phase: int, tokens: int) -> None:
        """Write the choice for the next tokens of a phase to where the routing of each layer is expected."""


class RoutingObserver(Protocol):
    """Sees the routing of each step after it was computed."""

    def step(self, turn: Turn, tokens: int) -> None:
        """A step of this many tokens has ended; `turn.step` is the first one's number."""
