"""Opens the expert cache of a model: the pager in C where the kernels are in C too, else the cache in Python."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgemoe.experts.cache import Cache, ExpertCache
from edgemoe.experts.policy import make_policy, policy_numbers
from edgemoe.experts.slots import READ_TIMEOUT_SECONDS
from edgemoe.io.reads import ExpertFiles, RecordReader
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.paging import RECORD, Records
from edgemoe.store.reader import Store

PYTHON_SLOT_BYTES, PYTHON_EXPERT_BYTES = 320, 16
"""Bytes of the objects and arrays that `ExpertCache` and a policy have at most for a slot and for an expert."""


def open_cache(
    arena: npt.NDArray[np.uint8],
    experts_per_layer: Sequence[int],
    store: Store,
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
        records = record_table(store, files)
        return NativePager(arena, records, reader, policy_numbers(policy, len(arena)), READ_TIMEOUT_SECONDS)
    experts = max(experts_per_layer)
    order = make_policy(policy, len(arena), len(experts_per_layer) * experts)
    return ExpertCache(arena, experts_per_layer, store, files, reader, order)


def cache_bytes(slots: int, layers: int, experts: int, backend: Backend) -> int:
    """The bytes that the cache of a model takes besides the slots themselves; `experts` of the layer that has most."""
    if backend.name == "native":
        from edgemoe.kernels.native.pager import NativePager

        return NativePager.planned_bytes(slots, layers, experts)
    return slots * PYTHON_SLOT_BYTES + layers * experts * PYTHON_EXPERT_BYTES


def record_table(store: Store, files: ExpertFiles) -> Records:
    """The places of all records, as the pager in C takes them."""
    table = store.manifest.records
    counts = np.diff(table.first)
    places = np.zeros((table.layers, counts.max(initial=0)), RECORD)
    layers = np.repeat(np.arange(table.layers), counts)
    rows = layers, np.arange(len(table)) - table.first[layers]
    places["offset"][rows], places["length"][rows] = table.offset, table.length
    places["crc32c"][rows] = -1 if table.crc32c is None else table.crc32c
    places["descriptor"][rows] = np.array([files.descriptor(path) for path in store.expert_paths])[table.file]
    return places
