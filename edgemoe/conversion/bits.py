"""Chooses the formats of experts for a wanted number of bits for a weight: those of least measured error that fit.

Gate and up of a layer's experts have one format, and down has one. All begin with the fewest bits, and then, as long as
there is room, the matrices whose error falls most for each byte get a better one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from edgemoe.conversion.formats import expert_of
from edgemoe.errors import UsageError
from edgemoe.kernels.formats import FORMATS

NAMES = ("n075", "n1", "n15", "n2", "n3", "n4")
"""The formats that are chosen from, fewest bits first."""

Key = tuple[int, str]
"""A layer, and `down` or, for gate and up together, nothing."""
Errors = Mapping[Key, Mapping[str, float]]
"""The costs of formats in each place, by their names; the sum is to be small."""


@dataclass(frozen=True)
class _Group:
    """Matrices that get one format."""

    weights: int
    bytes: Mapping[str, int]
    """By the names of formats."""


def formats_for(bits: float, shapes: Mapping[str, tuple[int, ...]], measure: Callable[[], Errors]) -> str:
    """The formats of experts, as `ExpertFormats` reads them, of at most this many bits for a weight on average.

    `shapes` are those of all tensors of the model. `measure` is called where some choice reaches that number. Raises
    UsageError where none does, and what `measure` raises.
    """
    groups = _groups(shapes)
    if not groups:
        raise UsageError(
            "`bits`: expected a model with routed experts, found one without.", "Name a format, such as `dense=n4`."
        )
    total = sum(group.weights for group in groups.values())
    least, most = (8 * sum(group.bytes[name] for group in groups.values()) / total for name in (NAMES[0], NAMES[-1]))
    if not least <= bits <= _rounded_up(most, 10):
        raise UsageError(
            f"`bits`: expected a number from {_rounded_up(least)} to {_rounded_up(most, 10)}, which the experts of this"
            f" model have in {NAMES[0]} and in {NAMES[-1]}; found {bits:g}.",
            "For more name a format, such as `experts=q8`; for ternary weights there is `experts=sub1`.",
        )
    return _text(_chosen(groups, measure(), bits * total / 8))


def _chosen(groups: Mapping[Key, _Group], errors: Errors, room: float) -> dict[Key, str]:
    """The format of each group, of at most `room` bytes together."""
    chosen = dict.fromkeys(groups, NAMES[0])
    room -= sum(group.bytes[NAMES[0]] for group in groups.values())

    def steps() -> Iterator[tuple[float, int, Key, str]]:
        """Yield what each better format of each group saves for a byte, and the bytes that it takes."""
        for key, group in groups.items():
            now = chosen[key]
            for name in NAMES[NAMES.index(now) + 1 :]:
                more = group.bytes[name] - group.bytes[now]
                if more <= room:
                    yield (errors[key][now] - errors[key][name]) / max(more, 1), more, key, name

    while (best := max(steps(), default=None, key=lambda step: step[0])) is not None and best[0] > 0:
        room -= best[1]
        chosen[best[2]] = best[3]
    return chosen


def _text(chosen: Mapping[Key, str]) -> str:
    """The choice as a user may write it: what most layers have, then the layers that have others."""
    layers = sorted({layer for layer, _ in chosen})
    usual = {part: Counter(chosen[layer, part] for layer in layers).most_common(1)[0][0] for part in ("", "down")}
    items = [usual[""]]
    if usual["down"] != usual[""]:
        items.append(f"down={usual['down']}")
    for layer in layers:
        first, down = chosen[layer, ""], chosen[layer, "down"]
        if first != usual[""]:
            items.append(f"{layer}={first}")
        if down != (usual["down"] if first == usual[""] else first):
            items.append(f"{layer}.down={down}")
    return ",".join(items)


def _groups(shapes: Mapping[str, tuple[int, ...]]) -> dict[Key, _Group]:
    members: dict[Key, list[tuple[int, int]]] = {}
    for name, shape in shapes.items():
        if (found := expert_of(name)) and len(shape) == 2:
            members.setdefault((found[0], "down" if found[2] == "down" else ""), []).append((shape[0], shape[1]))
    return {
        key: _Group(
            sum(rows * columns for rows, columns in sizes),
            {name: sum(FORMATS[name].matrix_bytes(*size) for size in sizes) for name in NAMES},
        )
        for key, sizes in sorted(members.items())
    }


def _rounded_up(number: float, parts: int = 100) -> float:
    return math.ceil(number * parts) / parts
