"""The formats of routed experts as a user writes them: one for all, or others for a matrix, or for the ends of a model.

`n2,down=n3,first=n4` is n2, but n3 for the second matrix of each expert, and n4 for all of the first layer that has
experts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from edgemoe.errors import UsageError
from edgemoe.kernels.formats import SUB1

PARTS = ("gate", "up", "down")
ENDS = ("first", "last")


@dataclass(frozen=True)
class ExpertFormats:
    """The names of formats by what they are for."""

    all: str
    others: tuple[tuple[str, str], ...] = ()
    """Exceptions, each with its format: parts of experts, or the first or the last layer that has experts."""

    @classmethod
    def parse(cls, text: str, names: Collection[str]) -> ExpertFormats:
        """Parse a user's text. Raises UsageError for one that is not of these names and keys."""
        first, *rest = text.split(",")
        others: dict[str, str] = {}
        for item in rest:
            key, equals, name = item.partition("=")
            if not equals or key not in (*PARTS, *ENDS) or key in others:
                raise UsageError(
                    f"`experts`: expected a format, then once each of {', '.join((*PARTS, *ENDS))} with its own, such"
                    f" as n2,down=n3; found {item!r} in {text!r}."
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

    def of(self, part: str, layer: int, layers: Iterable[int]) -> str:
        """The format of an expert's gate, up or down in a layer, of all `layers` that have experts."""
        others, with_experts = dict(self.others), list(layers)
        for key, end in zip(ENDS, (with_experts[0], with_experts[-1]), strict=True):
            if key in others and layer == end:
                return others[key]
        return others.get(part, self.all)
