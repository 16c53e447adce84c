"""Experts whose records land while the operation runs give what those give that are there, on every backend."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edgemoe.errors import KernelError, ReadError
from edgemoe.io.reads import RecordReader, ThreadedReader
from edgemoe.kernels import operations as op
from edgemoe.kernels.native.backend import NativeBackend
from edgemoe.kernels.native.reader import NativeReader
from edgemoe.kernels.operations import Backend
from tests.kernels.builders import aligned, aligned_copy, numbers, random_ffn
from tests.kernels.test_products import pack_experts
from tests.support.submit_one import submit_one

WIDTH, FFN_WIDTH, EXPERTS, USED, TOKENS = 40, 24, 6, 3, 4


@dataclass
class Setting:
    """Experts in the arena, as a file, and what they give."""

    layouts: op.RecordLayouts
    arena: np.ndarray
    file: int
    chosen: np.ndarray
    slots: np.ndarray
    values: np.ndarray

    def operation(self, reader: RecordReader | None, tickets: np.ndarray | None) -> op.Experts:
        arrivals = None if reader is None or tickets is None else op.Arrivals(reader, tickets, 10.0)
        output = aligned((TOKENS, USED, WIDTH), np.float32)
        return op.Experts(self.values, self.chosen, self.slots, self.arena, *self.layouts, output, arrivals)


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    random = np.random.default_rng(3)
    slots = aligned_copy(random.permutation(EXPERTS).astype(np.int32))
    arena, layouts = pack_experts([random_ffn("q4", WIDTH, FFN_WIDTH, random) for _ in slots], slots)
    (tmp_path / "arena").write_bytes(arena.tobytes())
    chosen = aligned_copy(np.array([random.permutation(EXPERTS)[:USED] for _ in range(TOKENS)], np.int32))
    file = os.open(tmp_path / "arena", os.O_RDONLY)
    yield Setting(layouts, arena, file, chosen, slots, numbers("normal", (TOKENS, WIDTH), random))
    os.close(file)


MakeReader = Callable[[np.ndarray], RecordReader]


def readers_for(backend: Backend) -> list[MakeReader]:
    """Each reader that the backend can await."""
    native: MakeReader = lambda arena: NativeReader(2, 64, 4096)  # noqa: E731
    portable: MakeReader = lambda arena: ThreadedReader(arena, 2)  # noqa: E731
    return [native] if isinstance(backend, NativeBackend) else [native, portable]


def submit(reader: RecordReader, setting: Setting, slot: int) -> int:
    slot_bytes = setting.arena.shape[1]
    address = setting.arena.ctypes.data + slot * slot_bytes
    return submit_one(reader, setting.file, slot * slot_bytes, slot_bytes, address, True)


@pytest.mark.parametrize("seed", range(4))
def test_records_may_land_while_experts_run(any_backend: Backend, setting: Setting, seed: int) -> None:
    there = setting.operation(None, None)
    any_backend.program([there]).run(TOKENS, 0)
    for make_reader in readers_for(any_backend):
        setting.arena[:] = 0xEE
        check_landing(any_backend, make_reader(setting.arena), setting, seed, there.output)


def check_landing(
    any_backend: Backend, reader: RecordReader, setting: Setting, seed: int, expected: np.ndarray
) -> None:
    assert any_backend.can_await(reader)
    tickets = np.full(len(setting.arena), -1, np.int64)
    for slot in np.random.default_rng(seed).permutation(len(setting.arena)):
        tickets[slot] = submit(reader, setting, int(slot))
    landing = setting.operation(reader, tickets)
    program = any_backend.program([landing])
    program.time_runs(True)
    program.run(TOKENS, 0)
    np.testing.assert_array_equal(landing.output, expected)
    used = np.unique(setting.slots[setting.chosen])
    assert (tickets[used] == -1).all()
    times = program.times()
    assert 0 <= times.disk_ns[0] <= times.operations_ns[0]
    reader.close()


def test_a_failed_read_ends_the_run_and_keeps_its_ticket(any_backend: Backend, setting: Setting) -> None:
    for make_reader in readers_for(any_backend):
        check_failure(any_backend, make_reader(setting.arena), setting)


def check_failure(any_backend: Backend, reader: RecordReader, setting: Setting) -> None:
    tickets = np.full(len(setting.arena), -1, np.int64)
    failing = int(setting.slots[setting.chosen[0, 0]])
    slot_bytes = setting.arena.shape[1]
    beyond = (len(setting.arena) + 5) * slot_bytes
    address = setting.arena.ctypes.data + failing * slot_bytes
    tickets[failing] = submit_one(reader, setting.file, beyond, slot_bytes, address, True)
    program = any_backend.program([setting.operation(reader, tickets)])
    with pytest.raises(ReadError):
        program.run(TOKENS, 0)
    assert tickets[failing] >= 0
    with pytest.raises(ReadError, match=r"ended after|cut short"):
        reader.wait(int(tickets[failing]), 0)
    reader.close()


def test_native_kernels_refuse_another_reader(setting: Setting) -> None:
    backend = NativeBackend(1)
    reader = ThreadedReader(setting.arena, 1)
    assert not backend.can_await(reader)
    with pytest.raises(KernelError, match=r"arrivals\.reader: expected a native reader, found ThreadedReader"):
        backend.program([setting.operation(reader, np.full(len(setting.arena), -1, np.int64))])
    reader.close()
    backend.close()
