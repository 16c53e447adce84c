"""Faults under the running engine: no wrong token, one error that names layer and expert, no hang.

And the right answer once the fault is gone.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine import budget, memory
from edgemoe.engine.engine import Engine
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import BudgetError, ReadError, StoreError, UsageError
from edgemoe.experts import opening
from edgemoe.experts import slots as slots_module
from edgemoe.io import reads
from edgemoe.io.direct import allocate_pages
from edgemoe.kernels.native.reader import NativeReader
from edgemoe.process import ControlGroup, Limit, rss_bytes
from edgemoe.store.reader import Store
from tests.support.checkpoints import write_checkpoint
from tests.support.engines import engine_with_slots, use_portable_reader
from tests.support.pairs import some
from tests.support.small_engine import CONFIG, EXPERTS, SLOTS, answer
from tests.support.stores import flip_bit, version_1
from tests.support.submit_one import submit_one

NAMED = r"^Layer \d, expert \d: "


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    return shutil.copytree(made, tmp_path / "store")


def let_reads_end(engine: Engine) -> None:
    """So that none that began while the fault was there is met after it was mended."""
    for ticket in engine._loaded._stepper._cache.tickets:
        if ticket >= 0:
            with contextlib.suppress(ReadError):
                engine._loaded._reader.wait(int(ticket), 60)


def right_after_all(engine: Engine, expected: list[int]) -> bool:
    engine.rewind(0)
    return answer(engine, 25) == expected


@pytest.mark.parametrize("at", some(["first", "last", "padding"]))
def test_a_flipped_bit_is_never_computed_with(store: Path, expected: list[int], reader: str, at: str) -> None:
    damaged = Store.open(store)
    # in every layer, so that one of them is met early; experts 2 and 5 of each stay whole
    places = [damaged.record(layer, expert) for layer in range(3) for expert in (0, 1, 3, 4, 6, 7)]
    layout = damaged.layouts_of_layers[0][0].matrices
    used = layout.down_offset + layout.down_bytes
    offsets = {"first": 0, "last": used - 1, "padding": places[0].length - 1}
    for place in places:
        flip_bit(place.path, place.offset + offsets[at], 3)
    with engine_with_slots(store, SLOTS) as engine:
        tokens: list[int] = []
        with pytest.raises(ReadError, match=NAMED + "what was read is not what was written"):
            answer(engine, 25, tokens)
        assert tokens == expected[: len(tokens)]
        let_reads_end(engine)
        for place in places:
            flip_bit(place.path, place.offset + offsets[at], 3)
        assert right_after_all(engine, expected)


def test_a_flipped_bit_is_found_where_all_experts_are_loaded(store: Path, reader: str) -> None:
    place = Store.open(store).record(1, 6)
    flip_bit(place.path, place.offset + 100)
    with pytest.raises(ReadError, match=r"Layer 1, expert 6: .*not what was written"):
        engine_with_slots(store, EXPERTS)


def test_without_fast_checksums_a_store_runs_as_before(store: Path, expected: list[int]) -> None:
    version_1(store, fast_checksums=False)
    for slots in (SLOTS, EXPERTS):
        with engine_with_slots(store, slots) as engine:
            assert answer(engine, 25) == expected


def break_descriptor(engine: Engine) -> Callable[[], None]:
    """Reads from the expert files fail from now on; returns what mends them."""
    descriptors = list(engine._loaded._files._descriptors.values())
    kept = [os.dup(descriptor) for descriptor in descriptors]
    write_only = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(write_only, descriptor)
    os.close(write_only)

    def mend() -> None:
        for good, descriptor in zip(kept, descriptors, strict=True):
            os.dup2(good, descriptor)
            os.close(good)

    return mend


@pytest.mark.parametrize("prefetch", some(["on", "off"]))
def test_reads_that_fail(store: Path, expected: list[int], reader: str, prefetch: str) -> None:
    with engine_with_slots(store, SLOTS, prefetch=prefetch) as engine:
        answer(engine, 3)
        mend = break_descriptor(engine)
        for _ in range(3):
            engine.rewind(0)
            with pytest.raises(ReadError, match=NAMED):
                answer(engine, 25)
        let_reads_end(engine)
        mend()
        assert right_after_all(engine, expected)


def test_a_file_cut_short_and_made_whole_again(store: Path, expected: list[int], reader: str) -> None:
    (path,) = store.glob("experts-*")
    content = path.read_bytes()
    with engine_with_slots(store, SLOTS) as engine:
        os.truncate(path, 3 * 4096)
        with pytest.raises(ReadError, match=NAMED + ".*(ended after|not what was written)"):
            answer(engine, 25)
        let_reads_end(engine)
        with path.open("r+b") as file:
            file.write(content)
        assert right_after_all(engine, expected)


def test_a_store_that_is_written_over_in_place(store: Path, tmp_path: Path, expected: list[int], reader: str) -> None:
    """Another conversion into the same files: the same sizes, other weights."""
    write_checkpoint(tmp_path / "other", CONFIG, seed=1)
    other = convert_checkpoint(str(tmp_path / "other"), tmp_path / "other_store")
    (path,) = store.glob("experts-*")
    with engine_with_slots(store, SLOTS) as engine:
        tokens = answer(engine, 2)
        with path.open("r+b") as file:
            file.write((other / path.name).read_bytes())
        engine.rewind(0)
        with pytest.raises(ReadError, match=NAMED + "what was read is not what was written"):
            answer(engine, 25)
        assert tokens == expected[:2]


def test_a_store_that_another_one_is_renamed_over(store: Path, tmp_path: Path, expected: list[int]) -> None:
    """Open files stay what they were."""
    with engine_with_slots(store, SLOTS) as engine:
        answer(engine, 2)
        (path,) = store.glob("experts-*")
        (tmp_path / "new").write_bytes(bytes(path.stat().st_size))
        (tmp_path / "new").replace(path)
        assert right_after_all(engine, expected)
    with engine_with_slots(store, SLOTS) as engine, pytest.raises(ReadError, match=NAMED):
        answer(engine, 25)


@dataclass
class Stall:
    """While `on`, no read ends."""

    on: bool = False
    go_on: threading.Event = None  # type: ignore[assignment]


@pytest.fixture
def stall(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stall]:
    """The portable reader on a disk that can be made to stall."""
    made = Stall(go_on=threading.Event())
    fill = reads._fill

    def slow_fill(read: reads._Read, staging: memoryview) -> reads.Failure | None:
        if made.on:
            made.go_on.wait()
        return fill(read, staging)

    use_portable_reader(monkeypatch)
    monkeypatch.setattr(reads, "_fill", slow_fill)
    yield made
    made.go_on.set()


@pytest.mark.parametrize("prefetch", ["on", "off"])
def test_reads_that_stall(
    store: Path, expected: list[int], stall: Stall, prefetch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine_with_slots(store, SLOTS, prefetch=prefetch) as engine:
        tokens = answer(engine, 2)
        engine.rewind(0)
        stall.on = True
        with monkeypatch.context() as impatient:
            impatient.setattr(slots_module, "READ_TIMEOUT_SECONDS", 0.2)
            with pytest.raises(ReadError, match=NAMED + ".*did not end within"):
                answer(engine, 25)
        stall.on = False
        stall.go_on.set()
        assert right_after_all(engine, expected)
        assert tokens == expected[:2]


def test_native_reads_that_stall(store: Path, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader has gigabytes to read before what the kernels await, and these are not patient."""
    monkeypatch.setattr(opening, "READ_TIMEOUT_SECONDS", 0.2)
    megabytes = allocate_pages(64 << 20)
    place = np.frombuffer(megabytes, np.uint8)
    with engine_with_slots(store, SLOTS) as engine, Path("/dev/zero").open("rb") as zeros:
        reader = engine._loaded._reader
        assert isinstance(reader, NativeReader)
        before = [submit_one(reader, zeros.fileno(), 0, len(place), place.ctypes.data, True) for _ in range(100)]
        tokens: list[int] = []
        with pytest.raises(ReadError, match=NAMED + ".*did not end within"):
            answer(engine, 25, tokens)
        assert tokens == []
        for ticket in before:
            reader.wait(ticket, 60)
            reader.release(ticket)
        assert right_after_all(engine, expected)


@pytest.mark.parametrize("ram", [0, "0", "0MiB", -1])
def test_a_budget_of_nothing(store: Path, ram: str | int) -> None:
    with pytest.raises(UsageError, match="cannot be met"):
        open_engine(store, EngineOptions(ram))


def test_a_budget_below_the_floor(store: Path) -> None:
    with pytest.raises(BudgetError, match=r"needs at least .*`ram=floor`") as refused:
        open_engine(store, EngineOptions("1MiB"))
    assert "the budget is 1.0 MiB" in str(refused.value)


def test_a_budget_above_the_machine(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = rss_bytes()  # the system may take some of it back in between
    monkeypatch.setattr(memory, "rss_bytes", lambda: held)
    with open_engine(store, EngineOptions("1000TiB")) as engine:  # of which this model takes little
        planned, floor = engine.memory.planned_bytes, engine.memory.floor_bytes
    monkeypatch.setattr(budget, "memory_limit", lambda: Limit((planned + floor) // 2, None))
    with pytest.raises(BudgetError, match=r"would take [\d.]+ MiB; this machine has [\d.]+ MiB in all"):
        open_engine(store, EngineOptions("1000TiB"))


@pytest.mark.parametrize("ram", [None, "floor", "1000TiB"])
def test_a_machine_below_the_floor_is_told_before_anything_large_is_read(
    ram: str | None, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*arguments: object) -> None:
        raise AssertionError("something was read")

    monkeypatch.setattr(Store, "begin_dense", read)
    group = ControlGroup(Path("/groups/a"), 2)
    monkeypatch.setattr(budget, "memory_limit", lambda: Limit(1 << 20, group))
    expected = r"needs at least [\d.]+ MiB of memory; its control group /groups/a may have 1\.0 MiB in all\. Raise"
    with pytest.raises(BudgetError) as refused:
        open_engine(store, EngineOptions(ram), meanwhile=lambda: read())
    assert re.search(expected, str(refused.value))


def test_a_resident_file_that_was_altered(store: Path) -> None:
    tensor = Store.open(store).manifest.dense[0]
    flip_bit(store / "resident.safetensors", tensor.offset + 5)
    with pytest.raises(StoreError, match=f"{tensor.name} at byte {tensor.offset} is not what was written"):
        open_engine(store, EngineOptions("floor"))
