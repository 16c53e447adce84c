"""Planes of experts: a base of each expert that is always in RAM, and the residual, its record, which is paged.

A weight is the sum of both planes' numbers, so a model with both is as exact as one format of their bits together
(successive refinement costs next to nothing). The bases of a layer are two matrices among the dense weights, in which
each expert has whole panels, one expert after the other: `gate_up`, panels of gate and up in turn, or `up` where
experts have no gate; and `down`.
"""

from __future__ import annotations

from edgemoe.kernels.formats import PANEL_ROWS, panel_count

_BASES = ".bases."


def is_base(name: str) -> bool:
    """Whether a dense matrix has base planes of experts."""
    return _BASES in name


def base_name(layer: int, part: str, gated: bool) -> str:
    """The name of the matrix that has the base of `gate`, `up` or `down` of a layer's experts."""
    return f"layers.{layer}{_BASES}{part if part == 'down' or not gated else 'gate_up'}"


def base_shape(part: str, experts: int, intermediate_size: int, width: int, gated: bool) -> tuple[int, int]:
    """The shape of that matrix, of experts that read and write rows of `width`."""
    if part == "down":
        return experts * panel_count(width) * PANEL_ROWS, intermediate_size
    return experts * panel_count(intermediate_size) * PANEL_ROWS * (2 if gated else 1), width
