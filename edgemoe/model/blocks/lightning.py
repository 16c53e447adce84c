"""Lightning attention: linear attention whose heads forget at fixed rates (Qin et al. 2024, as MiniMax-01 has it)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgemoe.kernels import operations as op
from edgemoe.kernels import state_operations as so
from edgemoe.kernels.formats import PANEL_ROWS
from edgemoe.model.blocks.body import RoutedExperts, Shapes
from edgemoe.model.builder import Builder
from edgemoe.model.graph import Part

NORM_EPSILON = 1e-6
"""The epsilon of the norm over all heads, which is not that of the stream's norms."""


@dataclass(frozen=True)
class Lightning:
    """`out (norm(scan(silu(in x))) * sigmoid(gate x))`, with a norm over all heads together.

    `in` holds queries, keys and values one after the other, `heads` heads of `head_dim` channels each.
    `so.SelectiveScan` has the recurrence, without steps. Head `h` of `H`, from 0 on, decays by
    `exp(-slope * 2^(-8 (h + 1) / H))` with each token. A sequence keeps a matrix for each head, which every token
    overwrites, so that it goes back by snapshots alone.
    """

    kind: ClassVar[str] = "lightning"
    norm_name: ClassVar[str] = "lightning_norm"
    norm_part: ClassVar[Part] = "mixer"

    heads: int
    head_dim: int
    slope: float
    """The factor of the rates of all heads, which falls from layer to layer."""

    @property
    def routed(self) -> RoutedExperts | None:
        return None

    @property
    def inner(self) -> int:
        """The width of all heads together."""
        return self.heads * self.head_dim

    def check(self) -> None:
        pass

    def tensors(self, hidden_size: int) -> Shapes:
        return {
            "lightning_in": (3 * self.inner, hidden_size),
            "lightning_gate": (self.inner, hidden_size),
            "lightning_head_norm": (self.inner,),
            "lightning_out": (hidden_size, self.inner),
        }

    def sizes(self) -> Mapping[str, int]:
        return {"lightning_inner": self.inner, "lightning_head_dim": self.head_dim}

    def with_top_k(self, top_k: int) -> Lightning:
        return self

    def emit(self, build: Builder, source: op.Floats) -> None:
        H, W, D, inner = self.heads, self.head_dim, build.hidden_size, self.inner
        mixed, gate = build.rows("lightning_in", 3 * inner), build.rows("lightning_gate", inner)
        parts = (
            op.LinearPart(build.matrix("lightning_in", 3 * inner, D), None, mixed),
            op.LinearPart(build.matrix("lightning_gate", inner, D), None, gate),
        )
        build.add(op.Linear(source, parts))
        build.add(op.Gate(mixed, mixed, "sigmoid"))  # x * sigmoid(x), which is silu
        rates = build.numbers(*(-self.slope * 2.0 ** (-8.0 * (head + 1) / H) for head in range(H)))
        # Columns of values in whole panels, as the scan keeps them.
        states = build.fixed_state("states", H, -(-W // PANEL_ROWS) * PANEL_ROWS, W)
        output = build.rows("lightning_output", inner)
        build.add(so.SelectiveScan(mixed, None, None, rates, None, H, *build.places(), states, output))
        build.add(op.RmsNorm(output, build.vector("lightning_head_norm", inner), NORM_EPSILON, output))
        build.add(op.Gate(gate, output, "sigmoid"))
        build.deliver(output, "lightning_out")

    def emit_guess(self, build: Builder, source: op.Floats) -> None:
        raise AssertionError("a recurrent layer has no routing to guess")
