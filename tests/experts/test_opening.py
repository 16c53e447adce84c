"""The bytes that a cache takes besides its slots, as the memory plan counts them before there is one."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgemoe.experts.cache import ExpertCache
from edgemoe.experts.opening import cache_bytes
from edgemoe.experts.policy import make_policy, policy_numbers
from edgemoe.kernels.native.library import load_library
from edgemoe.kernels.native.pager import NativePager
from edgemoe.kernels.native.reader import NativeReader
from edgemoe.kernels.paging import RECORD
from tests.support.paired_caches import FakeFiles, FakeTable
from tests.support.pairs import some
from tests.support.slow_reader import SteppedReader

LAYERS, EXPERTS = 12, 64


@pytest.mark.parametrize("slots", [3, 200, 700])
def test_the_pager_in_c_has_the_arrays_that_were_planned(slots: int) -> None:
    reader = NativeReader(1, 64, 4096)
    records = np.zeros((LAYERS, EXPERTS), RECORD)
    arena = np.zeros((slots, 64), np.uint8)
    pager = NativePager(arena, records, reader, policy_numbers("lruf", slots), 60)
    arrays = (pager.residency, pager.loaded_when_asked, pager.tickets, records)
    in_c = load_library().em_pager_bytes(slots, LAYERS, EXPERTS)
    assert in_c >= LAYERS * EXPERTS * 8 + slots * 24  # its policy's history, and what it knows of a slot
    planned = cache_bytes(slots, LAYERS, EXPERTS, SimpleNamespace(name="native"))  # type: ignore[arg-type]
    assert planned == sum(array.nbytes for array in arrays) + in_c
    reader.close()


@pytest.mark.parametrize("slots", some([200, 700]))
def test_the_cache_in_python_takes_no_more_than_was_planned(slots: int) -> None:
    arena = np.zeros((slots, 64), np.uint8)
    reader: Any = SteppedReader(arena, np.zeros(LAYERS * EXPERTS * 64, np.uint8), set())
    reader.ends_all = True
    tracemalloc.start(8)
    policy = make_policy("lruf", slots, LAYERS * EXPERTS)
    cache = ExpertCache(arena, [EXPERTS] * LAYERS, FakeTable(EXPERTS, 64), FakeFiles(), reader, policy)
    cache.warm([(layer, expert) for expert in range(EXPERTS) for layer in range(LAYERS)])
    for layer in range(LAYERS):
        cache.prefetch(layer, range(20))
    of_cache = tracemalloc.Filter(True, "*/edgemoe/experts/*", all_frames=True)
    of_fakes = tracemalloc.Filter(False, "*/tests/support/*", all_frames=True)
    traces = tracemalloc.take_snapshot().filter_traces([of_cache, of_fakes]).traces
    taken = sum(trace.size for trace in traces)
    tracemalloc.stop()
    assert taken > slots * 100
    assert taken <= cache_bytes(slots, LAYERS, EXPERTS, SimpleNamespace(name="jit"))  # type: ignore[arg-type]
