"""Records of experts in the code sub1: their lengths, which follow from their trits, and their bytes.

A plan says where every record lies, so their lengths come first: the experts are read twice, and the first time their
classes are counted, which says the lengths. They are encoded once. Calibrated, they get the same room, or the number of
bits that a user asks for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from edgemoe.architectures import SourceSlice
from edgemoe.conversion.encoding import lengths_of_trits
from edgemoe.conversion.places import SLICE_WEIGHTS
from edgemoe.conversion.source import Source, read_slice
from edgemoe.errors import SourceError, UsageError
from edgemoe.kernels.expert_operations import MATRIX_ALIGNMENT_BYTES
from edgemoe.kernels.formats import PANEL_ROWS, SUB1, panel_count
from edgemoe.kernels.pages import PAGE_BYTES, round_up
from edgemoe.kernels.sub1 import join_panels, joined_bytes
from edgemoe.model.blocks.body import RoutedExperts
from edgemoe.model.spec import ModelSpec
from edgemoe.quant.sub1 import LEVEL_BYTES
from edgemoe.quant.ternary import least_bytes

MEASURING_THREADS = 2
MOST_BITS = 1.5
"""The most bits for a weight that a user can ask for: formats with a trellis have less error with as many."""

T = TypeVar("T")

Panels = Mapping[str, Sequence[bytes]]
"""The panels of gate, if there is one, up and down."""


def measure_records(source: Source, spec: ModelSpec, places: Mapping[str, SourceSlice]) -> list[int]:
    """The bytes of every expert's record, layer by layer. Raises SourceError."""
    experts = [(number, expert) for number, routed in _routed(spec) for expert in range(routed.num_experts)]

    def length(which: tuple[int, int]) -> int:
        names = [f"layers.{which[0]}.experts.{which[1]}.{part}" for part in ("gate", "up", "down")]
        found = {name.rpartition(".")[2]: places[name] for name in names if name in places}
        return _record_bytes({part: _lengths(source, place) for part, place in found.items()})

    with ThreadPoolExecutor(MEASURING_THREADS, "edgemoe-measure") as pool:
        return list(pool.map(length, experts))


def _routed(spec: ModelSpec) -> Iterator[tuple[int, RoutedExperts]]:
    """Yield the layers that have experts, by their numbers. Raises SourceError for experts with biases."""
    for number, routed in spec.routed.items():
        if routed.bias:
            raise SourceError(
                f"Layer {number}: expected experts without biases, as records in {SUB1.name} have none; found some.",
                "Convert it with another format of `experts`.",
            )
        yield number, routed


def _lengths(source: Source, place: SourceSlice) -> list[int]:
    """The lengths of the panels of a matrix of the checkpoint, a few rows at a time."""
    lengths: list[int] = []
    columns = source.tensors()[place.tensor].shape[-1]
    step = max(PANEL_ROWS, SLICE_WEIGHTS // columns // PANEL_ROWS * PANEL_ROWS)
    for start in range(0, place.rows, step):
        rows = read_slice(source, place, start, min(start + step, place.rows))
        lengths += lengths_of_trits(rows, place.tensor)
    return lengths


def _matrices(panels: Mapping[str, Sequence[T]]) -> Iterator[Sequence[T]]:
    """Yield the panels of gate and up, in turn, or those of up, and those of down; or their lengths."""
    gate, up = panels.get("gate"), panels["up"]
    yield up if gate is None else [panel for pair in zip(gate, up, strict=True) for panel in pair]
    yield panels["down"]


def _record_bytes(lengths: Mapping[str, Sequence[int]]) -> int:
    """The bytes of a record of panels of these lengths."""
    first, second = (joined_bytes(matrix) for matrix in _matrices(lengths))
    return round_up(round_up(first, MATRIX_ALIGNMENT_BYTES) + second, PAGE_BYTES)


def sized_records(spec: ModelSpec, bits: float) -> list[int]:
    """The bytes of every expert's record, layer by layer, with at most `bits` for a weight.

    Raises UsageError for a number that cannot be, and SourceError.
    """
    lengths: list[int] = []
    for number, routed in _routed(spec):
        D, F = routed.width(spec.hidden_size), routed.intermediate_size
        parts = 2 if routed.gated else 1
        first, down = least_bytes(parts * panel_count(F), D), least_bytes(panel_count(D), F)
        least = round_up(round_up(first, MATRIX_ALIGNMENT_BYTES) + down, PAGE_BYTES)
        weights = (parts + 1) * D * F
        length = int(bits * weights / 8) // PAGE_BYTES * PAGE_BYTES if 0 < bits <= MOST_BITS else 0
        fewest = math.ceil(800 * least / weights) / 100
        if fewest > MOST_BITS:
            raise UsageError(
                f"`bits`: the experts of layer {number} are so small that {SUB1.name} takes {fewest:.2f} bits or more"
                f" for a weight, with the levels of rows and whole pages; expected at most {MOST_BITS}.",
                "Leave `bits` out, or leave `experts` out: then they have the formats of least error.",
            )
        if length < least:
            span = f"{fewest:.2f}, the fewest that this model's experts can have"
            raise UsageError(
                f"`bits`: expected a number from {span} in {SUB1.name}, to {MOST_BITS}; found {bits:g}.",
                "For more bits leave `experts` out: then they have the formats of least error.",
            )
        lengths += [length] * routed.num_experts
    return lengths


def join_record(panels: Panels, hidden_size: int, intermediate_size: int, size: int = 0) -> npt.NDArray[np.uint8]:
    """The record of these panels, filled up with zeros to `size` bytes."""
    first, second = _matrices(panels)
    rows = 2 * PANEL_ROWS * panel_count(intermediate_size) if "gate" in panels else intermediate_size
    up = join_panels(rows, hidden_size, LEVEL_BYTES, first)
    down = join_panels(hidden_size, intermediate_size, LEVEL_BYTES, second)
    lengths = {name: [len(panel) for panel in of_matrix] for name, of_matrix in panels.items()}
    record = np.zeros(max(size, _record_bytes(lengths)), np.uint8)
    record[: len(up)] = up
    start = round_up(len(up), MATRIX_ALIGNMENT_BYTES)
    record[start : start + len(down)] = down
    return record
