"""The formats of a store's matrices where they differ: by kind of matrix, layer and expert."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from edgemoe.store.layouts import BIASES
from edgemoe.store.manifest import Manifest

_LAYER = re.compile(r"layers\.(\d+)\.(.+)")


def mixtures(manifest: Manifest) -> dict[str, dict[str, list[int]]]:
    """The layers that have each format, for each kind of matrix of which there are several formats.

    Where experts of a layer differ, it stands with each of their formats.
    """
    found: dict[str, dict[str, set[int]]] = {}

    def note(kind: str, fmt: str, layer: int) -> None:
        found.setdefault(kind, {}).setdefault(fmt, set()).add(layer)

    for tensor in manifest.dense:
        match = _LAYER.fullmatch(tensor.name)
        if match and tensor.format is not None:
            note(match[2], tensor.format.name, int(match[1]))
    for layer in range(manifest.records.layers):
        for number in manifest.records.layouts_of(layer):
            for section in manifest.layouts[number].sections:
                if section.name != BIASES:
                    note(f"experts.{section.name}", section.format.name, layer)
    return {
        kind: {fmt: sorted(layers) for fmt, layers in formats.items()}
        for kind, formats in found.items()
        if len(formats) > 1
    }


def expert_mixtures(manifest: Manifest) -> dict[int, dict[str, int]]:
    """How many experts have each layout, for the layers in which they differ: by the formats of their matrices."""
    found = {}
    for layer in range(manifest.records.layers):
        counts = np.bincount(manifest.records.layout[manifest.records.rows(layer)])
        numbers = np.flatnonzero(counts)
        if len(numbers) > 1:
            found[layer] = {_named(manifest, int(number)): int(counts[number]) for number in numbers}
    return found


def ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers with runs of them joined: `0-3, 5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _named(manifest: Manifest, layout: int) -> str:
    sections = manifest.layouts[layout].sections
    return ", ".join(f"{section.name} {section.format.name}" for section in sections if section.name != BIASES)
