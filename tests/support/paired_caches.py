"""The expert cache in Python and the pager in C, driven together over two stepped readers, and held to each other."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgemoe.errors import ReadError
from edgemoe.experts.cache import ExpertCache
from edgemoe.experts.policy import make_policy, policy_numbers
from edgemoe.experts.slots import READ_TIMEOUT_SECONDS
from edgemoe.kernels.native import structures as st
from edgemoe.kernels.native.library import Status, load_library
from edgemoe.kernels.native.pager import NativePager
from edgemoe.kernels.paging import RECORD
from edgemoe.kernels.reads import RecordRead
from tests.support.slow_reader import SteppedReader


class FakeRecord(NamedTuple):
    path: Path
    offset: int
    length: int
    crc32c: int | None
    parts: None = None
    places: tuple[()] = ()


class FakeTable:
    """Records of equal length, one after the other in one file."""

    def __init__(self, experts: int, record_bytes: int) -> None:
        self.experts, self.record_bytes = experts, record_bytes

    def record(self, layer: int, expert: int) -> FakeRecord:
        offset = (layer * self.experts + expert) * self.record_bytes
        return FakeRecord(Path("experts"), offset, self.record_bytes, None)


class FakeFiles:
    def descriptor(self, path: Path) -> int:
        return 0


class SteppedSource:
    """A stepped reader as C code reads from it. What goes wrong in a callback is kept in `errors`: C cannot raise."""

    closed = False

    def __init__(self, reader: SteppedReader) -> None:
        self.errors: list[BaseException] = []
        self._reader = reader
        int32, int64, pointer = ctypes.c_int32, ctypes.c_int64, ctypes.POINTER
        no_wait: list[Any] = [int64]
        kinds: dict[str, tuple[Callable[..., int], list[Any]]] = {
            "submit": (self._submit, [pointer(st.ReadStruct), int32, int32, pointer(int64)]),
            "wait": (self._wait, [int64, int64, pointer(int64)]),
            "wait_any": (self._wait_any, [pointer(int64), int32, int64]),
            "done": (lambda ticket: int(reader.done(ticket)), no_wait),
            "promote": (lambda ticket: self._do(reader.promote, ticket), no_wait),
            "cancel": (lambda ticket: Status.OK if reader.cancel(ticket) else Status.BUSY, no_wait),
            "release": (lambda ticket: self._do(reader.release, ticket), no_wait),
        }
        self._kept = {
            name: ctypes.CFUNCTYPE(int32, ctypes.c_void_p, *arguments)(self._guarded(call))
            for name, (call, arguments) in kinds.items()
        }

    def source(self) -> st.SourceStruct:
        return st.SourceStruct(None, **{n: ctypes.cast(call, ctypes.c_void_p).value for n, call in self._kept.items()})

    def read_error(self, status: int, detail: int) -> ReadError:
        return ReadError("the disk said no" if status == Status.READ_FAILED else "not finished in time")

    def _guarded(self, call: Callable[..., int]) -> Callable[..., int]:
        def guarded(context: object, *arguments: Any) -> int:
            try:
                return int(call(*arguments))
            except BaseException as error:
                self.errors.append(error)
                return int(Status.BAD_TICKET)

        return guarded

    def _do(self, call: Callable[[int], None], ticket: int) -> int:
        call(ticket)
        return Status.OK

    def _submit(self, reads: Any, count: int, demand: int, tickets: Any) -> int:
        asked = [RecordRead(r.descriptor, r.offset, r.length, r.destination) for r in reads[:count]]
        for place, ticket in enumerate(self._reader.submit(asked, bool(demand))):
            tickets[place] = ticket
        return Status.OK

    def _wait(self, ticket: int, timeout_us: int, detail: Any) -> int:
        try:
            self._reader.wait(ticket, timeout_us / 1e6)
        except ReadError as error:
            return Status.READ_FAILED if "disk" in error.message else Status.TIMEOUT
        return Status.OK

    def _wait_any(self, tickets: Any, count: int, timeout_us: int) -> int:
        self._reader.wait_any(tickets[:count])
        return Status.OK


class DrivenPager:
    """The pager in C, driven use by use as its operations drive it; it has the methods of `ExpertCache`."""

    def __init__(self, pager: NativePager) -> None:
        self.pager = pager
        self.tickets, self.residency, self.statistics = pager.tickets, pager.residency, pager.statistics
        self._library = load_library()

    def stream(self, layer: int, experts: Sequence[int], scan: bool = False) -> Generator[dict[int, int], None, None]:
        asked = np.array(experts, np.int32)
        address = self.pager.address
        self._check(self._library.em_pager_request(address, layer, asked.ctypes.data, len(asked), scan))
        wave, count = ctypes.POINTER(ctypes.c_int32)(), ctypes.c_int32()
        try:
            while True:
                self._check(self._library.em_pager_wave(address, ctypes.byref(wave), ctypes.byref(count)))
                if not count.value:
                    return
                yield {expert: int(self.residency[layer, expert]) for expert in wave[: count.value]}
        finally:
            self._library.em_pager_end(address)

    def failure(self, wave: Mapping[int, int], error: ReadError) -> ReadError:
        return self.pager.failure(self._library.em_pager_blame(self.pager.address)) or error

    def prefetch(self, layer: int, experts: Sequence[int]) -> None:
        asked = np.array(experts, np.int32)
        self._check(self._library.em_pager_prefetch(self.pager.address, layer, asked.ctypes.data, len(asked)))

    def warm(self, experts: Sequence[tuple[int, int]]) -> None:
        self.pager.warm(experts)

    def give_up(self, layer: int, expert: int) -> None:
        self.pager.give_up(layer, expert)

    def all_loaded(self) -> np.ndarray:
        return self.pager.all_loaded()

    def _check(self, status: int) -> None:
        if status != Status.OK:
            raise self.pager.failure(status) or AssertionError(f"status {status}")


class PairedCaches:
    """Does everything with both caches, and asserts that they agree. `await_wave` waits for reads, as kernels do."""

    def __init__(self, slots: int, layers: int, experts: int, disk: np.ndarray, policy: str) -> None:
        record_bytes = len(disk) // (layers * experts)
        self.failing: set[int] = set()
        self.arenas = [np.zeros((slots, record_bytes), np.uint8) for _ in range(2)]
        self.readers = [SteppedReader(arena, disk, self.failing) for arena in self.arenas]
        self.choose: Callable[[list[int]], list[int]] = lambda tickets: tickets[:1]
        self.readers[0].choose = self._choose
        self.readers[1].choose = lambda tickets: self._chosen
        table, order = FakeTable(experts, record_bytes), make_policy(policy, slots, layers * experts)
        self.python = ExpertCache(self.arenas[0], [experts] * layers, table, FakeFiles(), self.readers[0], order)
        records = np.zeros((layers, experts), RECORD)
        records["offset"] = np.arange(layers * experts).reshape(layers, experts) * record_bytes
        records["length"], records["crc32c"] = record_bytes, -1
        self._source = SteppedSource(self.readers[1])
        numbers = policy_numbers(policy, slots)
        self.native = DrivenPager(NativePager(self.arenas[1], records, self._source, numbers, READ_TIMEOUT_SECONDS))

    @property
    def caches(self) -> tuple[ExpertCache, DrivenPager]:
        return self.python, self.native

    def stream(self, layer: int, experts: Sequence[int], scan: bool = False) -> Generator[dict[int, int], None, None]:
        """Yield the waves of both caches, which must be the same, as are their errors."""
        streams = [cache.stream(layer, experts, scan) for cache in self.caches]
        try:
            while True:
                wave = self._agreed([lambda one=one: next(one, None) for one in streams])
                if wave is None:
                    return
                yield wave
        finally:
            for one in streams:
                one.close()
            self.compare()

    def await_wave(self, wave: dict[int, int]) -> None:
        """Await the reads of a wave and release their tickets, as kernels do. Raises the error that names a failure."""
        failures = [await_wave(cache, reader, wave) for cache, reader in zip(self.caches, self.readers, strict=True)]
        assert str(failures[0]) == str(failures[1])
        if failures[0] is not None:
            named = [cache.failure(wave, failures[0]) for cache in self.caches]
            assert str(named[0]) == str(named[1])
            raise named[0]

    def prefetch(self, layer: int, experts: Sequence[int]) -> None:
        self._agreed([lambda cache=cache: cache.prefetch(layer, experts) for cache in self.caches])

    def warm(self, experts: Sequence[tuple[int, int]]) -> None:
        self._agreed([lambda cache=cache: cache.warm(experts) for cache in self.caches])

    def give_up(self, layer: int, expert: int) -> None:
        self._agreed([lambda cache=cache: cache.give_up(layer, expert) for cache in self.caches])

    def finish_some(self) -> None:
        """End the same reads in both readers."""
        for reader in self.readers:
            reader.finish_some()

    def compare(self) -> None:
        """Assert that both hold the same experts in the same slots, read the same, and have counted the same."""
        assert not self._source.errors
        assert np.array_equal(self.python.residency, self.native.residency)
        assert np.array_equal(self.python.tickets, self.native.tickets)
        assert np.array_equal(self.python.statistics.counts, self.native.statistics.counts)
        assert np.array_equal(self.python.all_loaded(), self.native.all_loaded())
        assert self.readers[0].state() == self.readers[1].state()
        assert np.array_equal(*self.arenas)

    def _choose(self, tickets: list[int]) -> list[int]:
        self._chosen = self.choose(tickets)
        return self._chosen

    def _agreed(self, calls: Sequence[Callable[[], Any]]) -> Any:
        outcomes = [_outcome(call) for call in calls]
        assert not self._source.errors, self._source.errors
        assert outcomes[0][0] == outcomes[1][0]
        assert str(outcomes[0][1]) == str(outcomes[1][1])
        self.compare()
        result, error = outcomes[0]
        if error is not None:
            raise error
        return result


def await_wave(cache: ExpertCache | DrivenPager, reader: SteppedReader, wave: dict[int, int]) -> ReadError | None:
    """Await the reads of a wave and release their tickets; returns the error of the first one that failed."""
    for slot in wave.values():
        ticket = int(cache.tickets[slot])
        if ticket >= 0:
            try:
                reader.wait(ticket)
            except ReadError as error:
                return error
            cache.tickets[slot] = -1
            reader.release(ticket)
    return None


def _outcome(call: Callable[[], Any]) -> tuple[Any, ReadError | None]:
    try:
        return call(), None
    except ReadError as error:
        return None, error
