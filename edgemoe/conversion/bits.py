"""Chooses the formats of experts for a wanted number of bits for a weight: those of least error that fit.

Gate and up of the layers between the first and the last with experts have one format, down of these another, and all of
the first and of the last layer one each. Every choice is tried. The error of a format is the relative one that it has
on normal weights, squared, which is what trained weights come near to; those of down and of the end layers weigh more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from edgemoe.conversion.expert_formats import ENDS
from edgemoe.conversion.formats import expert_of
from edgemoe.errors import UsageError
from edgemoe.kernels.formats import FORMATS

ERRORS = {"n075": 0.638, "n1": 0.535, "n15": 0.385, "n2": 0.269, "n3": 0.1435, "n4": 0.076}
"""Relative errors on normal weights, root mean square, measured (`tests/quant/test_trellis.py`); fewest bits first."""

DOWN_WEIGHT = 2.0
"""The weight of down's errors: its columns are hidden values, of which few are large."""
END_WEIGHT = 2.0
"""The weight of errors in the first and the last layer."""


@dataclass(frozen=True)
class _Group:
    """Matrices that get one format."""

    key: str
    weights: int
    bytes: Mapping[str, int]
    """By the names of formats."""
    cost: float
    """The weight of a squared error."""


def formats_for(bits: float, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The formats of experts, as `ExpertFormats` reads them, of at most this many bits for a weight.

    `shapes` are those of all tensors of the model. Raises UsageError for a number that no choice reaches.
    """
    groups = list(_groups(shapes))
    if not groups:
        raise UsageError(
            "`bits`: expected a model with routed experts, found one without.", "Name a format, such as `dense=n4`."
        )
    total = sum(group.weights for group in groups)
    least, most = (8 * sum(group.bytes[name] for group in groups) / total for name in ("n075", "n4"))
    if not least <= bits < math.inf:
        raise UsageError(
            f"`bits`: expected a number from {_rounded_up(least)}, the fewest that this model's experts can have in"
            f" n075, to about {most:.2f} (n4); found {bits:g}.",
            "For ternary weights there is `experts=sub1`.",
        )

    def error(names: Iterable[str]) -> float:
        pairs = zip(groups, names, strict=True)
        return sum(group.cost * group.weights * ERRORS[name] ** 2 for group, name in pairs)

    def fits(names: Iterable[str]) -> bool:
        return 8 * sum(group.bytes[name] for group, name in zip(groups, names, strict=True)) <= bits * total

    best = min((names for names in itertools.product(ERRORS, repeat=len(groups)) if fits(names)), key=error)
    chosen = dict(zip((group.key for group in groups), best, strict=True))
    if len(set(best)) == 1:
        return best[0]
    return ",".join([chosen.pop("", best[0]), *(f"{key}={name}" for key, name in chosen.items())])


def _groups(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[_Group]:
    members: dict[str, list[tuple[int, int]]] = {}
    experts = {name: found for name in shapes if (found := expert_of(name)) and len(shapes[name]) == 2}
    layers = sorted({layer for layer, _, _ in experts.values()})
    ends = dict(zip((layers[-1], layers[0]), reversed(ENDS), strict=False)) if layers else {}
    for name, (layer, _, part) in experts.items():
        key = ends.get(layer, "down" if part == "down" else "")
        rows, columns = shapes[name]
        members.setdefault(key, []).append((rows, columns))
    for key in sorted(members):
        sizes = members[key]
        stored = {name: sum(FORMATS[name].matrix_bytes(*size) for size in sizes) for name in ERRORS}
        cost = {"": 1.0, "down": DOWN_WEIGHT}.get(key, END_WEIGHT)
        yield _Group(key, sum(rows * columns for rows, columns in sizes), stored, cost)


def _rounded_up(number: float) -> float:
    return math.ceil(number * 100) / 100
