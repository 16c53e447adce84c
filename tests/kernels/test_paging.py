"""Operations that ask the expert cache: experts that land while they run give what resident experts give.

And kernels in C, with the pager in C, leave the same experts in the same slots as those in Python.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edgemoe.errors import KernelError, ReadError
from edgemoe.experts.cache import ExpertCache
from edgemoe.experts.policy import make_policy, policy_numbers
from edgemoe.io.reads import ThreadedReader
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.kernels.backend import Backend, Program
from edgemoe.kernels.native.backend import NativeBackend
from edgemoe.kernels.native.pager import NativePager
from edgemoe.kernels.native.reader import NativeReader
from edgemoe.kernels.paging import DECODE, PROMPT, RECORD
from edgemoe.kernels.reference.backend import ReferenceBackend
from tests.kernels.builders import aligned, aligned_copy, numbers, random_ffn
from tests.kernels.test_products import pack_experts
from tests.support.paired_caches import FakeFiles, FakeTable, SteppedSource
from tests.support.pairs import default_pairs, some
from tests.support.slow_reader import SteppedReader

WIDTH, FFN_WIDTH, LAYERS, EXPERTS, USED, TOKENS = 40, 24, 2, 8, 3, 5


@dataclass
class Setting:
    """The experts of two layers, on disk, and an input."""

    layouts: ex.RecordLayouts  # of all of them, layer by layer
    disk: np.ndarray  # (layers * experts, record bytes)
    file: int
    values: np.ndarray

    def layouts_of(self, layer: int) -> ex.RecordLayouts:
        """The layouts of the experts of a layer, which have formats of their own."""
        return ex.RecordLayouts(
            self.layouts.layouts, self.layouts.layout_of[layer * EXPERTS : (layer + 1) * EXPERTS].copy()
        )

    def resident(self, backend: Backend, layer: int, chosen: np.ndarray) -> np.ndarray:
        """The output of experts that are all in RAM."""
        arena = aligned_copy(self.disk[layer * EXPERTS : (layer + 1) * EXPERTS])
        slots, output = aligned_copy(np.arange(EXPERTS, dtype=np.int32)), aligned((TOKENS, USED, WIDTH), np.float32)
        operation = ex.Experts(self.values, chosen, slots, arena, *self.layouts_of(layer), output)
        backend.program([operation]).run(len(chosen))
        return output


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    random = np.random.default_rng(3)
    order = aligned_copy(np.arange(LAYERS * EXPERTS, dtype=np.int32))
    formats = ["q4", "q8", "f16", "q4"]
    ffns = [random_ffn(formats[number % 4], WIDTH, FFN_WIDTH, random) for number in order]
    disk, layouts = pack_experts(ffns, order)
    (tmp_path / "records").write_bytes(disk.tobytes())
    file = os.open(tmp_path / "records", os.O_RDONLY)
    yield Setting(layouts, disk, file, numbers("normal", (TOKENS, WIDTH), random))
    os.close(file)


class File(FakeFiles):
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def descriptor(self, path: Path) -> int:
        return self._descriptor


Cache = ExpertCache | NativePager


def records(record_bytes: int, descriptor: int) -> np.ndarray:
    made = np.zeros((LAYERS, EXPERTS), RECORD)
    made["offset"] = np.arange(LAYERS * EXPERTS).reshape(LAYERS, EXPERTS) * record_bytes
    made["length"], made["crc32c"], made["descriptor"] = record_bytes, -1, descriptor
    return made


def python_cache(setting: Setting, arena: np.ndarray, reader: object) -> ExpertCache:
    table = FakeTable(EXPERTS, arena.shape[1])
    policy = make_policy("lru", len(arena), LAYERS * EXPERTS)
    return ExpertCache(arena, [EXPERTS] * LAYERS, table, File(setting.file), reader, policy)


def native_cache(setting: Setting, arena: np.ndarray, reader: object) -> NativePager:
    return NativePager(arena, records(arena.shape[1], setting.file), reader, policy_numbers("lru", len(arena)), 60)


@dataclass
class Paged:
    """A program of the operations that ask a cache, over both layers, and its buffers."""

    cache: Cache
    program: Program
    experts: list[np.ndarray]
    weights: list[np.ndarray]
    outputs: list[np.ndarray]
    guess: np.ndarray


def paged(setting: Setting, backend: Backend, cache: Cache, arena: np.ndarray, drop_cold: float = 0.0) -> Paged:
    experts = [aligned((TOKENS, USED), np.int32) for _ in range(LAYERS)]
    weights = [aligned((TOKENS, USED), np.float32) for _ in range(LAYERS)]
    outputs = [aligned((TOKENS, USED, WIDTH), np.float32) for _ in range(LAYERS)]
    guess = aligned((TOKENS, USED), np.int32)
    operations: list[op.Operation] = []
    for layer in range(LAYERS):
        here = ex.Paged(cache, layer)
        slots = cache.residency[layer]
        weighed = weights[layer] if drop_cold else None
        operations += [
            ex.Fetch(experts[layer], weighed, drop_cold, here),
            *([ex.Prefetch(guess, ex.Paged(cache, layer + 1))] if layer + 1 < LAYERS else []),
            ex.Experts(setting.values, experts[layer], slots, arena, *setting.layouts_of(layer), outputs[layer], here),
        ]
    return Paged(cache, backend.program(operations), experts, weights, outputs, guess)


def draw(random: np.random.Generator, tokens: int) -> np.ndarray:
    chosen = np.array([random.permutation(EXPERTS)[:USED] for _ in range(tokens)], np.int32)
    return np.where(random.random(chosen.shape) < 0.1, np.int32(-1), chosen)  # some are of no expert


@pytest.mark.parametrize("slots", some([2, 1, 5, LAYERS * EXPERTS]))
def test_records_may_land_while_experts_run(lone_backend: Backend, setting: Setting, slots: int) -> None:
    arena = aligned((slots, setting.disk.shape[1]), np.uint8)
    native = isinstance(lone_backend, NativeBackend)
    reader = NativeReader(2, 64, 4096) if native else ThreadedReader(arena, 2)
    cache = (native_cache if native else python_cache)(setting, arena, reader)
    whole = paged(setting, lone_backend, cache, arena)
    whole.program.time_runs(True)
    random = np.random.default_rng(slots)
    for tokens, phase in ((TOKENS, PROMPT), (1, DECODE), (1, DECODE), (2, DECODE), (TOKENS, PROMPT)):
        cache.phase = phase
        for layer in range(LAYERS):
            whole.experts[layer][:tokens] = draw(random, tokens)
        whole.guess[:tokens] = whole.experts[1][:tokens]
        whole.program.run(tokens)
        for layer in range(LAYERS):
            expected = setting.resident(lone_backend, layer, aligned_copy(whole.experts[layer][:tokens]))
            np.testing.assert_array_equal(whole.outputs[layer][:tokens], expected[:tokens])
    times = whole.program.times()
    assert (times.disk_ns <= times.operations_ns).all()
    assert (times.disk_ns >= 0).all()
    assert cache.statistics.misses > 0
    reader.close()


@pytest.mark.parametrize(("drop_cold", "slots"), default_pairs([0.0, 0.3], [1, 3, 4, 7, 12]))
def test_kernels_in_c_and_in_python_leave_the_same_experts_in_the_same_slots(
    setting: Setting, slots: int, drop_cold: float
) -> None:
    arenas = [aligned((slots, setting.disk.shape[1]), np.uint8) for _ in range(2)]
    readers = [SteppedReader(arena, setting.disk.reshape(-1), set()) for arena in arenas]
    backends = ReferenceBackend(), NativeBackend(1)
    for reader in readers:
        reader.ends_all = True
    source = SteppedSource(readers[1])
    caches = python_cache(setting, arenas[0], readers[0]), native_cache(setting, arenas[1], source)
    both = [paged(setting, *one, drop_cold) for one in zip(backends, caches, arenas, strict=True)]
    random = np.random.default_rng(slots)
    for cache in caches:
        cache.notes_residency = True
        cache.warm([(1, 3), (0, 2), (1, 5)])
    for step in range(30):
        tokens, phase = (TOKENS, PROMPT) if step % 9 == 0 else (1 + step % 2, DECODE)
        chosen = [draw(random, tokens) for _ in range(LAYERS)]
        weights = [random.random((tokens, USED)).astype(np.float32) for _ in range(LAYERS)]
        guess = np.where(random.random((tokens, USED)) < 0.7, chosen[1], draw(random, tokens))  # rows name some twice
        for one, cache in zip(both, caches, strict=True):
            cache.phase = phase
            one.guess[:tokens] = guess
            for layer in range(LAYERS):
                one.experts[layer][:tokens], one.weights[layer][:tokens] = chosen[layer], weights[layer]
            one.program.run(tokens)
        assert not source.errors, source.errors
        np.testing.assert_array_equal(caches[0].residency, caches[1].residency)
        np.testing.assert_array_equal(caches[0].statistics.counts, caches[1].statistics.counts)
        np.testing.assert_array_equal(caches[0].loaded_when_asked, caches[1].loaded_when_asked)
        np.testing.assert_array_equal(*(np.stack(one.weights) for one in both))
        for layer in range(LAYERS):
            outputs = [one.outputs[layer][:tokens] for one in both]
            np.testing.assert_array_equal(outputs[0] == 0, outputs[1] == 0)
            np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-4)
    statistics = caches[1].statistics
    assert statistics.misses > 0
    assert (statistics.dropped > 0) == (drop_cold > 0)
    assert (statistics.useful_prefetches > 0) >= (slots > 2 * USED)
    for backend in backends:
        backend.close()


def test_a_failed_read_names_layer_and_expert_and_the_next_is_right(lone_backend: Backend, setting: Setting) -> None:
    arena = aligned((4, setting.disk.shape[1]), np.uint8)
    native = isinstance(lone_backend, NativeBackend)
    reader = NativeReader(2, 64, 4096) if native else ThreadedReader(arena, 2)
    cache = (native_cache if native else python_cache)(setting, arena, reader)
    whole = paged(setting, lone_backend, cache, arena)
    for layer in range(LAYERS):
        whole.experts[layer][0] = [5, 2, 6]
    whole.guess[0] = [5, 2, 6]
    good = os.dup(setting.file)
    os.ftruncate(os.open(f"/proc/self/fd/{setting.file}", os.O_WRONLY), 6 * setting.disk.shape[1])
    with pytest.raises(ReadError, match=r"^Layer 0, expert 6: .*(ended after|cut short)"):
        whole.program.run(1)
    assert cache.residency[0, 6] < 0
    os.pwrite(os.open(f"/proc/self/fd/{good}", os.O_WRONLY), setting.disk.tobytes(), 0)
    whole.program.run(1)
    expected = setting.resident(lone_backend, 1, aligned_copy(whole.experts[1][:1]))
    np.testing.assert_array_equal(whole.outputs[1][0], expected[0])
    reader.close()
    os.close(good)


def test_experts_that_were_not_fetched_are_refused(lone_backend: Backend, setting: Setting) -> None:
    arena = aligned((4, setting.disk.shape[1]), np.uint8)
    native = isinstance(lone_backend, NativeBackend)
    reader = NativeReader(1, 64, 4096) if native else ThreadedReader(arena, 1)
    cache = (native_cache if native else python_cache)(setting, arena, reader)
    output, chosen = aligned((TOKENS, USED, WIDTH), np.float32), aligned((TOKENS, USED), np.int32)
    chosen[0] = [0, 1, 2]
    layer = ex.Paged(cache, 1)
    experts = ex.Experts(setting.values, chosen, cache.residency[1], arena, *setting.layouts_of(1), output, layer)
    with pytest.raises(KernelError):
        lone_backend.program([experts]).run(1)
    reader.close()


def test_native_kernels_refuse_another_pager(setting: Setting) -> None:
    backend, arena = NativeBackend(1), aligned((4, setting.disk.shape[1]), np.uint8)
    reader = ThreadedReader(arena, 1)
    with pytest.raises(KernelError, match=r"paged\.pager: expected a native pager, found ExpertCache"):
        paged(setting, backend, python_cache(setting, arena, reader), arena)
    reader.close()
    backend.close()
