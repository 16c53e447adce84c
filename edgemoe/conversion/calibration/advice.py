"""Says what a person may do about a loss that was measured: the next better formats, and what they take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgemoe.conversion.bits import NAMES
from edgemoe.conversion.calibration.matrices import is_calibrated
from edgemoe.conversion.calibration.measuring import Loss
from edgemoe.conversion.places import Place
from edgemoe.conversion.plan import Plan
from edgemoe.kernels.formats import FORMATS, Format, panel_count
from edgemoe.sizes import format_size

MUCH_NATS = 0.1
"""A divergence from which on a better format is recommended: at as much, about a sixth of likeliest tokens change."""
LOW_BITS = 2.1
"""Below so many bits for a weight small models lose most of what they know."""

_BETTER = [FORMATS[name] for name in (*NAMES, "q8")]
"""The formats that are recommended, each better than those before it, and than sub1 of as many bytes."""


def advice(plan: Plan, loss: Loss) -> Iterator[str]:
    """Yield a sentence where a loss is large, which names the formats in place of those that lost it."""
    used: dict[str, list[Place]] = {}
    for piece in plan.pieces:
        if is_calibrated(piece) and not piece.repeats:
            assert piece.place.format is not None
            used.setdefault(piece.place.format.name, []).append(piece.place)
    if loss.divergence.nats.mean < MUCH_NATS or not used:
        return
    names, more, low = [], 0, False
    for name, places in sorted(used.items()):
        now = sum(place.stored_bytes for place in places)
        better = next((fmt for fmt in _BETTER if _bytes(places, fmt) > now), _BETTER[-1])
        names.append(f"{better.name} in place of {name}")
        more += _bytes(places, better) - now
        low = low or 8 * now < LOW_BITS * sum(place.rows * place.columns for place in places)
    why = "Below about two bits small models lose most of what they know. " if low else ""
    yield f"That is much. {why}The next better choice is {' and '.join(names)}: about {format_size(more)} more."


def _bytes(places: Sequence[Place], fmt: Format) -> int:
    """The bytes of panels that matrices have in a format."""
    return sum(panel_count(place.rows) * fmt.panel_bytes(place.columns) for place in places)
