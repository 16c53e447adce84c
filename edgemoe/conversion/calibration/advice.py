"""Says what a person may do about a loss that was measured: the next better formats, and what they take."""

from __future__ import annotations

from collections.abc import Iterator

from edgemoe.conversion.calibration.measuring import Loss
from edgemoe.conversion.plan import Plan
from edgemoe.kernels.formats import FORMATS
from edgemoe.kernels.trellis import TRELLISES
from edgemoe.sizes import format_size

MUCH_NATS = 0.1
"""A divergence from which on a better format is recommended: at as much, about a sixth of likeliest tokens change."""
LOW_BITS = 2.1
"""Below so many bits for a weight small models lose most of what they know."""

_BETTER = {**dict(zip([*TRELLISES][1:], TRELLISES)), "n4": "q8"}  # noqa: B905 (the second is one longer)


def advice(plan: Plan, loss: Loss) -> Iterator[str]:
    """Yield a sentence where a loss is large, which names the formats in place of those that lost it."""
    used = {
        fmt.name: fmt for piece in plan.pieces if (fmt := piece.place.format) is not None and fmt.trellis is not None
    }
    if loss.divergence.nats.mean < MUCH_NATS or not used:
        return
    more = sum(
        FORMATS[_BETTER[fmt.name]].matrix_bytes(piece.place.rows, piece.place.columns)
        - fmt.matrix_bytes(piece.place.rows, piece.place.columns)
        for piece in plan.pieces
        if (fmt := piece.place.format) is not None and fmt.name in used
    )
    names = " and ".join(f"{_BETTER[name]} in place of {name}" for name in TRELLISES if name in used)
    low = min(fmt.bits_per_weight for fmt in used.values()) < LOW_BITS
    why = "Below about two bits small models lose most of what they know. " if low else ""
    yield f"That is much. {why}The next better choice is {names}: about {format_size(more)} more."
