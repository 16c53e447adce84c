"""Locates each tensor of a model in a store by its own name, also gate and up, and each matrix of an expert."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from edgemoe.conversion.formats import expert_of
from edgemoe.kernels.expert_operations import ExpertLayout
from edgemoe.kernels.formats import PANEL_ROWS, Format, panel_count
from edgemoe.model.planes import base_name
from edgemoe.store.manifest import Manifest
from edgemoe.store.neurons import is_neurons, row_bytes, table_name
from edgemoe.store.records import record_name

SLICE_WEIGHTS = 1 << 20
"""Weights that are read and encoded at once."""


@dataclass(frozen=True)
class Place:
    """A tensor in a file of a store: panels of `format`, or (None) float32 elements.

    `part` is the record or dense tensor that it is part of, the unit of checksums.
    """

    part: str
    file: str
    offset: int
    rows: int
    columns: int
    format: Format | None
    panel_stride: int
    """Bytes from one panel to the next: gate and up are interleaved."""
    head_offset: int = 0
    """Where the head of its matrix begins, if its format has one; gate and up share it."""
    row_by_row: bool = False
    """Whether its rows lie one by one, `panel_stride` apart, as neurons do, and not in panels."""
    share_bytes: int = 0
    """The share, by weights, of a matrix in a record whose length varies; `offset` is then the record's."""

    @property
    def varying(self) -> bool:
        """Whether panels differ in length, so that a record is written as a whole."""
        return self.format is not None and self.format.varying

    @property
    def panel_rows(self) -> int:
        """How many rows of the tensor follow one another in the file."""
        return 1 if self.row_by_row else PANEL_ROWS

    @property
    def panel_bytes(self) -> int:
        if self.format is None:
            return 0
        return self.columns * self.format.bits // 8 if self.row_by_row else self.format.panel_bytes(self.columns)

    @property
    def stored_bytes(self) -> int:
        if self.varying:
            return self.share_bytes
        return -(-self.rows // self.panel_rows) * self.panel_bytes if self.format else 4 * self.rows

    def row_slices(self, multiple: int = PANEL_ROWS) -> Iterator[tuple[int, int]]:
        """Yield row ranges of about `SLICE_WEIGHTS` weights, in steps of a multiple of `multiple` rows."""
        step = max(multiple, SLICE_WEIGHTS // self.columns // multiple * multiple)
        for start in range(0, self.rows, step):
            yield start, min(start + step, self.rows)


def part_ranges(manifest: Manifest) -> dict[str, tuple[str, int, int]]:
    """File, offset and bytes of each part of a store: every dense tensor, and every expert's record."""
    ranges = {t.name: (manifest.dense_file.name, t.offset, t.bytes) for t in manifest.dense}
    for record in manifest.records:
        ranges[record.name] = (manifest.expert_files[record.file].name, record.offset, record.length)
    return ranges


def tensor_places(manifest: Manifest, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Place]:
    """Locate the tensors of a model; `shapes` are the names and shapes from `ModelSpec.tensors`."""
    ranges = part_ranges(manifest)
    formats = {tensor.name: tensor.format for tensor in manifest.dense}
    places = {}
    for name, shape in shapes.items():
        if is_neurons(name):
            places[name] = _neuron_place(name, shape, manifest)
            continue
        expert, last = expert_of(name), name.rpartition(".")[2]
        part = record_name(expert[0], expert[1]) if expert else name
        if part not in ranges:  # gate and up are one matrix
            part = f"{name.removesuffix(last)}gate_up"
        file, offset, length = ranges[part]
        layout = _layout_of(manifest, expert[0], expert[1]) if expert else None
        columns = shape[1] if len(shape) == 2 else 1
        if layout is None:
            fmt = formats[part]
            panel_bytes = fmt.panel_bytes(columns) if fmt else 0
            head_offset, offset, stride = offset, offset + (fmt.head_bytes if fmt else 0), panel_bytes
            if part != name:  # gate and up, panel by panel in turn
                offset, stride = offset + panel_bytes * (last == "up"), 2 * panel_bytes
        elif len(shape) == 1:
            fmt, stride = None, 0
            offset += layout.bias_offsets()[last.removesuffix("_bias")]
            head_offset = offset
        elif layout.format_of(last).varying:
            share = length // (3 if layout.gated else 2)
            places[name] = Place(part, file, offset, shape[0], columns, layout.format_of(last), 0, share_bytes=share)
            continue
        else:
            fmt = layout.format_of(last)
            head_offset = offset + layout.begin_of(last)
            place, stride = layout.panels_of(last)
            offset += place
        places[name] = Place(part, file, offset, shape[0], columns, fmt, stride, head_offset)
    return places


def _neuron_place(name: str, shape: tuple[int, ...], manifest: Manifest) -> Place:
    """Locate the input or the output weights of a layer's neurons, which lie in turn."""
    table = next(tensor for tensor in manifest.dense if tensor.name == table_name(name))
    (count, width), fmt = shape, table.format
    assert fmt is not None
    offset = table.offset + width * fmt.bits // 8 * name.endswith(".up")
    file, stride = manifest.dense_file.name, row_bytes(fmt, width)
    return Place(table.name, file, offset, count, width, fmt, stride, row_by_row=True)


def base_place(manifest: Manifest, layer: int, expert: int, part: str) -> Place:
    """Locate the base plane of one matrix of an expert, whose panels lie among those of the layer's other experts."""
    layout = _layout_of(manifest, layer, expert)
    name = base_name(layer, part, layout.gated)
    whole = next(tensor for tensor in manifest.dense if tensor.name == name)
    assert whole.format is not None
    panel_bytes = whole.format.panel_bytes(whole.columns)
    panels = panel_count(whole.rows) // manifest.records.count(layer)
    in_turn = layout.gated and part != "down"
    offset = whole.offset + whole.format.head_bytes + panel_bytes * (expert * panels + (in_turn and part == "up"))
    rows = layout.hidden_size if part == "down" else layout.intermediate_size
    stride = panel_bytes * (2 if in_turn else 1)
    file = manifest.dense_file.name
    return Place(name, file, offset, rows, whole.columns, whole.format, stride, whole.offset)


def _layout_of(manifest: Manifest, layer: int, expert: int) -> ExpertLayout:
    row = manifest.records.row(layer, expert)
    assert row is not None
    return manifest.layouts[int(manifest.records.layout[row])].matrices
