"""Records of experts in the code sub1: their lengths, which follow from their trits, and their bytes.

A plan says where every record lies, so their lengths come first: the experts are read twice, and the first time their
classes are counted, which says the lengths. They are encoded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from edgemoe.architectures import SourceSlice
from edgemoe.conversion.encoding import LEVEL_BYTES, lengths_of_trits
from edgemoe.conversion.places import SLICE_WEIGHTS
from edgemoe.conversion.source import Source, read_slice
from edgemoe.errors import SourceError
from edgemoe.kernels.expert_operations import MATRIX_ALIGNMENT_BYTES
from edgemoe.kernels.formats import PANEL_ROWS, SUB1, panel_count
from edgemoe.kernels.pages import PAGE_BYTES, round_up
from edgemoe.kernels.sub1 import join_panels, joined_bytes
from edgemoe.model.spec import ModelSpec

MEASURING_THREADS = 2

T = TypeVar("T")

Panels = Mapping[str, Sequence[bytes]]
"""The panels of gate, if there is one, up and down."""


def measure_records(source: Source, spec: ModelSpec, places: Mapping[str, SourceSlice]) -> list[int]:
    """The bytes of every expert's record, layer by layer. Raises SourceError."""
    experts = []
    for number, layer in enumerate(spec.layers):
        if layer.routed is not None and layer.routed.bias:
            raise SourceError(
                f"Layer {number}: expected experts without biases, as records in {SUB1.name} have none; found some.",
                "Convert it with another format of `experts`.",
            )
        experts += [(number, expert) for expert in range(layer.routed.num_experts if layer.routed else 0)]

    def length(which: tuple[int, int]) -> int:
        names = [f"layers.{which[0]}.experts.{which[1]}.{part}" for part in ("gate", "up", "down")]
        found = {name.rpartition(".")[2]: places[name] for name in names if name in places}
        return _record_bytes({part: _lengths(source, place) for part, place in found.items()})

    with ThreadPoolExecutor(MEASURING_THREADS, "edgemoe-measure") as pool:
        return list(pool.map(length, experts))


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


def join_record(panels: Panels, hidden_size: int, intermediate_size: int) -> npt.NDArray[np.uint8]:
    """The record of these panels."""
    first, second = _matrices(panels)
    rows = 2 * PANEL_ROWS * panel_count(intermediate_size) if "gate" in panels else intermediate_size
    up = join_panels(rows, hidden_size, LEVEL_BYTES, first)
    down = join_panels(hidden_size, intermediate_size, LEVEL_BYTES, second)
    lengths = {name: [len(panel) for panel in of_matrix] for name, of_matrix in panels.items()}
    record = np.zeros(_record_bytes(lengths), np.uint8)
    record[: len(up)] = up
    start = round_up(len(up), MATRIX_ALIGNMENT_BYTES)
    record[start : start + len(down)] = down
    return record
