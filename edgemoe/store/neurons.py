"""The neurons of all layers in a store: rows of a table that stays on disk, in pages that are read by themselves.

A neuron is its input weights, then its output weights, in float16 or float32, filled up to a whole number of groups; it
has a checksum of its own, as a panel of any table does (`TABLE_CHECKSUMS`). So its bytes are those of one panel of a
matrix of 16 rows for each neuron, and places, sizes and checksums are those of such a matrix. The tables of all layers
lie one after the other, so that neurons of all layers number through. Where 4096 bytes hold several neurons, or a
neuron needs no whole number of pages, a page has as many as fill whole pages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgemoe.errors import StoreError
from edgemoe.kernels.formats import PANEL_ROWS, Format, panel_count
from edgemoe.kernels.neuron_operations import NeuronLayout
from edgemoe.kernels.pages import PAGE_BYTES
from edgemoe.store.manifest import DenseTensor
from edgemoe.store.manifest_parser import DAMAGED_HINT

NEURONS = ".neurons."
"""The mark of the names of the two matrices that neurons are made of, `X.neurons.down` and `X.neurons.up`."""
TABLE = ".row_table.neurons"
"""The end of the name of the table that has both."""


def is_neurons(name: str) -> bool:
    """Whether a matrix of the model is one of the two of a layer's neurons."""
    return NEURONS in name


def table_name(name: str) -> str:
    """The name of the table that holds such a matrix."""
    return name.partition(NEURONS)[0] + TABLE


def table_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """The shape of the table, as a matrix in panels, given that of one of the two matrices."""
    count, width = shape
    return count * PANEL_ROWS, -(-2 * width // PANEL_ROWS)


def row_bytes(fmt: Format, width: int) -> int:
    """Bytes from one neuron to the next, of neurons whose two vectors are `width` wide."""
    return fmt.panel_bytes(table_shape((1, width))[1])


@dataclass(frozen=True)
class NeuronTable:
    """The neurons of all layers."""

    layout: NeuronLayout
    offset: int
    """The place of the first neuron in the dense file."""
    first: Mapping[int, int]
    """The number of the first neuron of each layer that has some."""
    count: int
    tensors: Sequence[DenseTensor]
    checksums_begin: int
    """The place of the first neuron's checksum among those of all tables."""

    @property
    def bytes_read(self) -> int:
        """Bytes of a neuron that kernels read, without those that fill it up."""
        tensor = self.tensors[0]
        assert tensor.format is not None
        return PANEL_ROWS * tensor.columns * tensor.format.bits // 8

    @property
    def page_bytes(self) -> int:
        return self.layout.neuron_bytes * self.layout.neurons_per_page

    @property
    def pages(self) -> int:
        return -(-self.count // self.layout.neurons_per_page)

    def name(self, neuron: int) -> str:
        """The name of a neuron, for errors."""
        layer = max((layer for layer, first in self.first.items() if first <= neuron), key=self.first.__getitem__)
        return f"Layer {layer}, expert {neuron - self.first[layer]}"


def neuron_table(tensors: Sequence[DenseTensor]) -> NeuronTable | None:
    """The table of neurons among the tables of a store; None where there is none."""
    found = [tensor for tensor in tensors if tensor.name.endswith(TABLE)]
    if not found:
        return None
    fmt, columns = found[0].format, found[0].columns
    assert fmt is not None
    end = found[0].offset
    for tensor in found:
        if (tensor.format, tensor.columns, tensor.offset) != (fmt, columns, end) or fmt.name not in ("f16", "f32"):
            raise StoreError(
                f"{tensor.name}: expected neurons of one format and width, which follow one another.", DAMAGED_HINT
            )
        end += tensor.bytes
    size = fmt.panel_bytes(columns)
    per_page = math.lcm(size, PAGE_BYTES) // size
    first, count = {}, 0
    for tensor in found:
        first[int(tensor.name.split(".")[1])] = count
        count += panel_count(tensor.rows)
    layout = NeuronLayout("f32" if fmt.name == "f32" else "f16", size, per_page)
    before = sum(panel_count(tensor.rows) for tensor in tensors[: list(tensors).index(found[0])])
    return NeuronTable(layout, found[0].offset, first, count, found, before)
