"""The formats of routed experts as a user writes them: one for all, or others for a matrix, or for the ends of a model.

`n2,down=n3,first=n4` is n2, but n3 for the second matrix of each expert, and n4 for all of the first layer that has
experts. `n2,7=n3,7.down=n4` names a layer by its number, from 0.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from edgemoe.errors import UsageError
from edgemoe.kernels.formats import SUB1

PARTS = ("gate", "up", "down")
ENDS = ("first", "last")
_LAYER = re.compile(r"(0|[1-9][0-9]{0,3})(?:\.(gate|up|down))?")


@dataclass(frozen=True)
class ExpertFormats:
    """The names of formats by what they are for."""

    all: str
    others: tuple[tuple[str, str], ...] = ()
    """Exceptions, each with its format: parts of experts, the first or the last layer that has experts, or one by its
    number, and parts of its experts."""

    @classmethod
    def parse(cls, text: str, names: Collection[str]) -> ExpertFormats:
        """Parse a user's text. Raises UsageError for one that is not of these names and keys."""
        first, *rest = text.split(",")
        others: dict[str, str] = {}
        for item in rest:
            key, equals, name = item.partition("=")
            known = key in (*PARTS, *ENDS) or _LAYER.fullmatch(key)
            if not equals or not known or key in others:
                raise UsageError(
                    f"`experts`: expected a format, then once each of {', '.join((*PARTS, *ENDS))}, or layers by their"
                    f" numbers, with their own, such as n2,down=n3,7.down=n4; found {item!r} in {text!r}."
                )
            others[key] = name
        for name in (first, *others.values()):
            if name not in names:
                raise UsageError(f"`experts`: expected one of {', '.join(names)}, found {name!r}.")
            if name == SUB1.name and others:
                raise UsageError(
                    f"`experts`: {SUB1.name} is for all matrices of all experts, found it in {text!r}.",
                    "Give it alone, or another format in its place.",
                )
        return cls(first, tuple(others.items()))

    def check(self, layers: Collection[int]) -> None:
        """Raises UsageError for a layer that is not among `layers`, which have experts."""
        for key, _ in self.others:
            match = _LAYER.fullmatch(key)
            if match is not None and int(match[1]) not in layers:
                raise UsageError(
                    f"`experts`: expected layers with experts ({min(layers)} to {max(layers)}), found {key}."
                    if layers
                    else f"`experts`: expected no layer, as the model has no experts; found {key}."
                )

    def of(self, part: str, layer: int, layers: Iterable[int]) -> str:
        """The format of an expert's gate, up or down in a layer, of all `layers` that have experts.

        What names the layer by its number comes first, then the ends, then parts.
        """
        others, with_experts = dict(self.others), list(layers)
        ends = (key for key, end in zip(ENDS, (with_experts[0], with_experts[-1]), strict=True) if layer == end)
        for key in (f"{layer}.{part}", str(layer), *ends, part):
            if key in others:
                return others[key]
        return self.all
