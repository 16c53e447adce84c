"""Makes one expert of several: a record whose weights are the weighted means of theirs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgemoe.analysis.matrices import expert_parts, height_of, part_rows
from edgemoe.conversion.calibration.weights import Bytes
from edgemoe.conversion.encoding import encode
from edgemoe.errors import UsageError
from edgemoe.kernels.formats import panel_count
from edgemoe.model.planes import is_base
from edgemoe.store.layouts import RecordLayout
from edgemoe.store.reader import Store
from edgemoe.store.records import record_name


def check_merging(store: Store, layer: int) -> None:
    """Raise UsageError for a layer whose experts do not become one."""
    layouts = store.layouts_of_layers[layer]
    check_widths(layouts, layer)
    planes = any(is_base(tensor.name) for tensor in store.manifest.dense)
    if planes or any(layout.matrices.varying for layout in layouts):
        found = "a base and a residual" if planes else "the code sub1"
        raise UsageError(
            f"`merge`: expected experts in one plane of a format that holds means, found {found}.",
            "Use `prune`, or convert the checkpoint with another format of `experts`.",
        )


def check_widths(layouts: Sequence[RecordLayout], layer: int) -> None:
    """Raise UsageError for experts of unlike widths, which have no mean."""
    widths = sorted({layout.intermediate_size for layout in layouts})
    if len(widths) > 1:
        found = " and ".join(map(str, widths))
        raise UsageError(
            f"`merge`: expected experts of one width in layer {layer}, found widths of {found}.",
            "Use `prune`.",
        )


def merged_record(
    store: Store, layer: int, members: Sequence[int], records: Sequence[Bytes], weights: Sequence[float]
) -> Bytes:
    """The record of the mean of some experts, in the layout of the first one."""
    layouts = store.record_layouts[layer]
    assert layouts is not None
    own = [layouts.layout(expert) for expert in members]
    data = np.zeros(len(records[0]), np.uint8)
    for part in expert_parts(own[0]):
        height = height_of(own[0], part)
        each = [
            part_rows(one.gated, one.weights(record), part, 0, height) for one, record in zip(own, records, strict=True)
        ]
        mean = np.average(np.stack(each), axis=0, weights=weights)
        encoded = encode(mean.astype(np.float32), own[0].format_of(part), f"{record_name(layer, members[0])}.{part}")
        begin, (first, stride) = own[0].begin_of(part), own[0].panels_of(part)
        data[begin : begin + encoded.head.size] = encoded.head
        panels = encoded.data.reshape(panel_count(height), -1)
        for number, panel in enumerate(panels):
            data[first + number * stride :][: panel.size] = panel
    if own[0].biases_offset:
        biases = [
            record[layout.biases_offset :][: layout.bias_bytes].view(np.float32)
            for layout, record in zip(own, records, strict=True)
        ]
        mean_bias = np.average(np.stack(biases), axis=0, weights=weights).astype(np.float32)
        data[own[0].biases_offset :][: own[0].bias_bytes] = mean_bias.view(np.uint8)
    return data
