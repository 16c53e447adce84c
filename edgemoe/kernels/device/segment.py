"""A run of operations that follow one another on a device: what it copies there, launches, and copies back.

The arrays with a row for each token lie on the device as they do on the host, overlaps included, so that an array that
takes the place of another there does so on the device too. Weights are copied once, and stay as long as a program has
them; so do pages of the KV cache, of which those that the device wrote are copied back. Tables of integers, which the
host changes between runs, are copied for each.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgemoe.kernels import operations as op
from edgemoe.kernels.backend import Nanoseconds
from edgemoe.kernels.device.lowering import lower
from edgemoe.kernels.device.memory import DeviceMemory, Key, Mirror, Resident, address_of, key_of
from edgemoe.kernels.device.runtime import Launch, Place
from edgemoe.kernels.device.uses import LEAVE_SOME, Use, uses_of, within

ALIGNMENT_BYTES = 64


class _Copy(NamedTuple):
    """Rows of an array, on the host and on the device."""

    host: op.Bytes
    row_bytes: int
    place: Place


class Segment:
    """Operations, bound to their arrays."""

    def __init__(self, operations: Sequence[op.Operation], memory: DeviceMemory, tokens_max: int) -> None:
        """`tokens_max` is the longest run."""
        self._memory = memory
        self.tokens = tokens_max
        self.count = np.zeros(1, np.int32)
        self._resident: dict[Key, Resident] = {}
        self._not_copied: list[Resident] = []
        self._tables: dict[Key, Resident] = {}
        self._uses: dict[Hashable, tuple[Use, dict[int, Mirror]]] = {}
        self._written: list[tuple[Mirror, op.Integers]] = []
        """The mirrors that the latest run writes, and which of their units."""
        self._ranges: list[tuple[op.Integers, int, int]] = []
        self._uploads: dict[tuple[int, int], _Copy] = {}
        self._downloads: dict[tuple[int, int], _Copy] = {}
        rows = [member for o in operations for field, member in op.members_of(o) if field.mark.per_row]
        self._spans, self._end = spans_of(rows)
        self._scratch_end = self._end
        self._launches: list[list[Launch]] = []
        for operation in operations:
            self._next_scratch = self._end
            self._note_uses(operation)
            self._note_copies(operation)
            self._launches.append(lower(operation, self))
        memory.reserve(max(1, self._scratch_end))  # before weights and mirrors, which would leave no room for it
        for resident in self._resident.values():
            memory.make_room(resident)

    def place(self, array: Any) -> Place:
        """Return the place of an array of one of its operations."""
        address = address_of(array)
        for begin, end, at in self._spans:
            if begin <= address < end:
                return Place(self._memory.shared, at + address - begin)
        key = key_of(array)
        if array is self.count:
            self._note_table(array)
        elif key not in self._resident:
            self._resident[key] = self._memory.resident(array)
            self._not_copied.append(self._resident[key])
        return Place(self._resident[key].block, 0)

    def scratch(self, bytes_per_token: int) -> Place:
        """Return memory that the operation which is lowered has for itself."""
        at = self._next_scratch
        self._next_scratch = aligned(at + self.tokens * bytes_per_token)
        self._scratch_end = max(self._scratch_end, self._next_scratch)
        return Place(self._memory.shared, at)

    def run(self, tokens: int, operations_ns: Nanoseconds | None = None) -> bool:
        """Copy inputs, launch, and copy results. The host's arrays change last, so an error leaves them as they were,
        except pages, to which the processor writes the same again.

        Return whether it did: not where a position, a sequence or an id is not as it must be. With `operations_ns` the
        time of each operation is added to it, and the device is waited for after each.
        """
        if not self.begin(tokens, operations_ns):
            return False
        before = time.perf_counter_ns()
        self.end(tokens)
        if operations_ns is not None:
            operations_ns[-1] += time.perf_counter_ns() - before
        return True

    def begin(self, tokens: int, operations_ns: Nanoseconds | None = None) -> bool:
        """Copy inputs and launch, as `run`; `end` waits for the results. Return whether it did."""
        runtime, before = self._memory.runtime, time.perf_counter_ns()
        written: list[tuple[Mirror, op.Integers]] = []
        for use, mirrors in self._uses.values():
            units = use.find(tokens)
            if units is None:
                return False
            for mirror in mirrors.values():
                mirror.bring(runtime, units)
                if use.writes:
                    written.append((mirror, units))
        if not all(within(rows[:tokens], least, end) for rows, least, end in self._ranges):
            return False
        while self._not_copied:
            self._not_copied[-1].copy(runtime)
            self._not_copied.pop()
        self.count[0] = tokens
        for table in self._tables.values():
            if not table.shared:
                runtime.upload(Place(table.block, 0), table.bytes)
        for copy in self._uploads.values():
            runtime.upload(copy.place, copy.host[: tokens * copy.row_bytes])
        for number, launches in enumerate(self._launches):
            for launch in launches:
                runtime.launch(launch.kernel, launch.arguments, launch.items * (1 if launch.once else tokens))
            if operations_ns is not None:
                runtime.finish()
                now = time.perf_counter_ns()
                operations_ns[number] += now - before
                before = now
        self._written = written
        return True

    def end(self, tokens: int) -> None:
        """Copy the results of a run that has begun."""
        runtime = self._memory.runtime
        rows = [(copy.place, tokens * copy.row_bytes) for copy in self._downloads.values()]
        once = [part for mirror, units in self._written if not mirror.repeatable for part in mirror.parts(units)]
        results = [*runtime.download_all([*rows, *(part for _, part in once)])]
        pages = [part for mirror, units in self._written if mirror.repeatable for part in mirror.parts(units)]
        copies = runtime.download_all([part for _, part in pages])  # not all at once, as there may be many
        for (host, _), result in zip(pages, copies, strict=True):
            host[:] = result
        for copy, result in zip(self._downloads.values(), results, strict=False):
            copy.host[: result.size] = result
        for (host, _), result in zip(once, results[len(rows) :], strict=True):
            host[:] = result

    def _note_uses(self, operation: op.Operation) -> None:
        """Note the mirrors and the tables of an operation, and numbers of the host that are to be looked at."""
        for use in uses_of(operation):
            mirrors = self._uses.setdefault(use.key, (use, {}))[1]
            for array in use.arrays:
                mirror = self._memory.mirror(array, use.repeatable)
                mirrors[address_of(array)] = self._resident[key_of(array)] = mirror
            self._ranges += [one for one in use.ranges if self._key(one[0]) not in self._downloads]
        for field, array in op.members_of(operation):
            mark = field.mark
            if mark.kind == "buffer" and not (mark.per_row or mark.is_weight) and array.dtype.kind in "iu":
                self._note_table(array)

    def _note_table(self, array: op.Integers) -> None:
        key = key_of(array)
        if key not in self._resident:
            self._resident[key] = self._tables[key] = self._memory.resident(array)

    @staticmethod
    def _key(array: Any) -> tuple[int, int]:
        """Return the address and the bytes of a row of an array."""
        return address_of(array), array.nbytes // array.shape[0]

    def _note_copies(self, operation: op.Operation) -> None:
        """Note what an operation reads that no operation before it wrote, and what it writes."""
        rows = [(field.role, array) for field, array in op.members_of(operation) if field.mark.per_row]
        written = set(self._downloads)
        for role, array in rows:
            key = self._key(array)
            copy = _Copy(array.reshape(-1).view(np.uint8), key[1], self.place(array))
            adds = role.adds or (role.adds_if and getattr(operation, role.adds_if))
            if (role.reads or adds or isinstance(operation, LEAVE_SOME)) and key not in written:
                self._uploads.setdefault(key, copy)
            if role.writes:
                self._downloads.setdefault(key, copy)


def aligned(size: int) -> int:
    """Return the next multiple of the alignment."""
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def spans_of(arrays: Sequence[Any]) -> tuple[list[tuple[int, int, int]], int]:
    """Join arrays that overlap: begin and end of each span on the host, its place in a block; and the block's end."""
    ranges = sorted({(address_of(array), address_of(array) + array.nbytes) for array in arrays})
    joined: list[list[int]] = []
    for begin, end in ranges:
        if joined and begin < joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([begin, end])
    spans, at = [], 0
    for begin, end in joined:
        at = aligned(at) + begin % ALIGNMENT_BYTES  # as aligned as on the host
        spans.append((begin, end, at))
        at += end - begin
    return spans, aligned(at)
