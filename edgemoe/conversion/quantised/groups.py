"""Groups in the config of compressed-tensors: each says how the weights of modules, or of a kind of them, are kept."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from edgemoe.conversion.quantised.form import Settings


def weights_of(settings: Settings, stem: str) -> Mapping[str, Any]:
    """The settings of a module's weights: of the group that names it, else of the one of all linear modules."""
    of_all: Mapping[str, Any] = {}
    for group in _groups(settings):
        weights, targets = group.get("weights"), group.get("targets")
        if isinstance(weights, Mapping) and isinstance(targets, list):
            if any(_names(target, stem) for target in targets):
                return weights
            of_all = weights if "Linear" in targets or not of_all else of_all
    return of_all


def formats_of(settings: Settings) -> set[str]:
    """The formats of all weights and of groups of them."""
    names = (settings.get("format"), *(group.get("format") for group in _groups(settings)))
    return {name for name in names if isinstance(name, str)}


def _groups(settings: Settings) -> Iterator[Mapping[str, Any]]:
    groups = settings.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        if isinstance(group, Mapping):
            yield group


def _names(target: object, stem: str) -> bool:
    """Whether a target is a module, or a pattern (`re:...`) of modules, that this stem is of."""
    if not isinstance(target, str) or not target.startswith("re:"):
        return target == stem
    try:
        return re.match(target[3:], stem) is not None
    except re.error:
        return False
