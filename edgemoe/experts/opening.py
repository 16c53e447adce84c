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
from edgemoe.kernels.landing import PLACE
from edgemoe.kernels.paging import RECORD, Records
from edgemoe.store.reader import Store

READER_THREADS = 8
"""Threads that read experts while tokens are computed."""
PYTHON_SLOT_BYTES, PYTHON_EXPERT_BYTES = 320, 16
"""Bytes of the objects and arrays that `ExpertCache` and a policy have at most for a slot and for an expert."""
PYTHON_STAGING = 16
"""How many times its staging buffer a reader thread needs that lands records in Python: arrays of all steps between."""


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
        records, pointed_to = record_table(store, files)
        numbers = policy_numbers(policy, len(arena))
        return NativePager(arena, records, reader, numbers, READ_TIMEOUT_SECONDS, pointed_to)
    experts = max(experts_per_layer)
    order = make_policy(policy, len(arena), len(experts_per_layer) * experts)
    return ExpertCache(arena, experts_per_layer, store, files, reader, order)


def cache_bytes(slots: int, layers: int, experts: int, backend: Backend, parts: int = 0) -> int:
    """The bytes that the cache of a model takes besides the slots themselves; `experts` of the layer that has most.

    `parts` of a record at most; 0 where records land as they are.
    """
    if backend.name == "native":
        from edgemoe.kernels.native.pager import NativePager

        return NativePager.planned_bytes(slots, layers, experts, parts)
    return slots * PYTHON_SLOT_BYTES + layers * experts * PYTHON_EXPERT_BYTES


def thread_staging_bytes(staging_bytes: int, backend: Backend) -> int:
    """The memory with which one reader thread lands records in parts, given its staging buffer's size."""
    return staging_bytes if backend.name == "native" else staging_bytes * PYTHON_STAGING


def record_table(store: Store, files: ExpertFiles) -> tuple[Records, object]:
    """The places of all records, as the pager in C takes them, and the arrays that those in parts point to."""
    table = store.manifest.records
    counts = np.diff(table.first)
    places = np.zeros((table.layers, counts.max(initial=0)), RECORD)
    layers = np.repeat(np.arange(table.layers), counts)
    rows = layers, np.arange(len(table)) - table.first[layers]
    places["offset"][rows], places["length"][rows] = table.offset, table.length
    places["crc32c"][rows] = -1 if table.crc32c is None else table.crc32c
    descriptors = np.array([files.descriptor(path) for path in store.expert_paths], np.int32)
    places["descriptor"][rows] = descriptors[table.file]
    if table.places is None:
        return places, None
    of_parts = np.zeros(len(table.places.file), PLACE)
    of_parts["offset"], of_parts["descriptor"] = table.places.offset, descriptors[table.places.file]
    of_parts["modified_ns"] = np.array([store.modified_ns(file) for file in range(len(descriptors))])[table.places.file]
    of_parts["scale"] = table.places.scale
    layouts = [layout.parts for layout in store.manifest.layouts]
    places["part_count"][rows] = np.diff(table.places.first)
    places["parts"][rows] = np.array([parts.ctypes.data for parts in layouts])[table.layout]
    places["places"][rows] = of_parts.ctypes.data + table.places.first[:-1] * PLACE.itemsize
    return places, (layouts, of_parts)
