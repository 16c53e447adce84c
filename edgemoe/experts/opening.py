"""Opens the expert cache of a model: the pager in C where the kernels are in C too, else the cache in Python."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgemoe.experts.cache import READ_TIMEOUT_SECONDS, Cache, ExpertCache, RecordTable
from edgemoe.experts.policy import make_policy, policy_numbers
from edgemoe.io.reads import ExpertFiles, RecordReader
from edgemoe.kernels.operations import Backend
from edgemoe.kernels.paging import RECORD, Records


def open_cache(
    arena: npt.NDArray[np.uint8],
    experts_per_layer: Sequence[int],
    table: RecordTable,
    files: ExpertFiles,
    reader: RecordReader,
    policy: str,
    backend: Backend,
) -> Cache:
    """The cache of a model; `experts_per_layer` is 0 for a layer without routed experts.

    `policy` is the name of one, with its settings. Raises UsageError for an unknown one.
    """
    if backend.name == "native":
        from edgemoe.kernels.native.pager import NativePager
        from edgemoe.kernels.native.reader import NativeReader

        assert isinstance(reader, NativeReader)  # the library that has the kernels has it too
        records = record_table(table, files, experts_per_layer)
        return NativePager(arena, records, reader, policy_numbers(policy, len(arena)), READ_TIMEOUT_SECONDS)
    experts = max(experts_per_layer)
    order = make_policy(policy, len(arena), len(experts_per_layer) * experts)
    return ExpertCache(arena, experts_per_layer, table, files, reader, order)


def record_table(table: RecordTable, files: ExpertFiles, experts_per_layer: Sequence[int]) -> Records:
    """The places of all records, as the pager in C takes them."""
    records = np.zeros((len(experts_per_layer), max(experts_per_layer)), RECORD)
    for layer, experts in enumerate(experts_per_layer):
        found = [table.record(layer, expert) for expert in range(experts)]
        records[layer, :experts] = [
            (r.offset, r.length, -1 if r.crc32c is None else r.crc32c, files.descriptor(r.path), 0) for r in found
        ]
    return records
