"""Reads layers of which some see a window of the text only: their types, and the attention of each type."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from edgemoe.architectures.config import ConfigReader
from edgemoe.architectures.frame import pair_layers, read_window
from edgemoe.model.blocks import Attention, Body, GatedFfn, Moe
from edgemoe.model.spec import LayerSpec

WINDOWED = ("sliding_attention", "full_attention")
"""The types of layers of families with windows."""


def read_windowed_layers(
    reader: ConfigReader,
    types: Sequence[str],
    of_type: Callable[[str], Attention],
    ffn: Moe | GatedFfn,
    dense: GatedFfn | None = None,
    dense_layers: Collection[int] = (),
    default_window: int | None = None,
) -> tuple[LayerSpec, ...]:
    """Layers of these types, whose attention `of_type` gives, within a window where the type has one.

    Layers named by `dense_layers` have `dense` in the place of `ffn`.
    """
    window = read_window(reader, types, default_window)
    attention = {
        kind: replace(of_type(kind), window=window if kind == "sliding_attention" else 0) for kind in sorted(set(types))
    }
    ffns: list[Body] = [dense if dense is not None and number in dense_layers else ffn for number in range(len(types))]
    return pair_layers([attention[kind] for kind in types], ffns)
