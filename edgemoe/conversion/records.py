"""Records of experts in the code sub1: their lengths, which are known once they are encoded, and their bytes.

A plan says where every record lies, so their lengths come first: the experts are encoded twice, and the first time only
lengths are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from edgemoe.architectures import SourceSlice
from edgemoe.conversion.encoding import LEVEL_BYTES, encode
from edgemoe.conversion.places import SLICE_WEIGHTS
from edgemoe.conversion.source import Source, read_slice
from edgemoe.errors import SourceError
from edgemoe.kernels.expert_operations import MATRIX_ALIGNMENT_BYTES
from edgemoe.kernels.formats import PANEL_ROWS, SUB1, panel_count
from edgemoe.kernels.pages import PAGE_BYTES, round_up
from edgemoe.kernels.sub1 import join_panels, joined_bytes
from edgemoe.model.spec import ModelSpec

MEASURING_THREADS = 2

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
        return record_bytes({part: _encoded(source, place) for part, place in found.items()})

    with ThreadPoolExecutor(MEASURING_THREADS, "edgemoe-measure") as pool:
        return list(pool.map(length, experts))


def _encoded(source: Source, place: SourceSlice) -> list[bytes]:
    """The panels of a matrix of the checkpoint, a few rows at a time."""
    panels: list[bytes] = []
    columns = source.tensors()[place.tensor].shape[-1]
    step = max(PANEL_ROWS, SLICE_WEIGHTS // columns // PANEL_ROWS * PANEL_ROWS)
    for start in range(0, place.rows, step):
        rows = read_slice(source, place, start, min(start + step, place.rows))
        panels += encode(rows, SUB1, place.tensor).panels
    return panels


def _matrices(panels: Panels) -> Iterator[Sequence[bytes]]:
    """Yield the panels of gate and up, in turn, or those of up, and those of down."""
    gate, up = panels.get("gate"), panels["up"]
    yield up if gate is None else [panel for pair in zip(gate, up, strict=True) for panel in pair]
    yield panels["down"]


def record_bytes(panels: Panels) -> int:
    """The bytes of a record of these panels."""
    first, second = (joined_bytes(matrix) for matrix in _matrices(panels))
    return round_up(round_up(first, MATRIX_ALIGNMENT_BYTES) + second, PAGE_BYTES)


def join_record(panels: Panels, hidden_size: int, intermediate_size: int) -> npt.NDArray[np.uint8]:
    """The record of these panels."""
    first, second = _matrices(panels)
    rows = 2 * PANEL_ROWS * panel_count(intermediate_size) if "gate" in panels else intermediate_size
    up = join_panels(rows, hidden_size, LEVEL_BYTES, first)
    down = join_panels(hidden_size, intermediate_size, LEVEL_BYTES, second)
    record = np.zeros(record_bytes(panels), np.uint8)
    record[: len(up)] = up
    start = round_up(len(up), MATRIX_ALIGNMENT_BYTES)
    record[start : start + len(down)] = down
    return record
