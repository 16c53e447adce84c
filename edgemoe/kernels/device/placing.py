"""Chooses the operations that a device runs, and says what they take there before any array exists.

A device's budget may have room for a part of a model. Operations get it in their order, those of experts after all
others, as a token reads only a few of the experts, but all of every other weight. From the first operation on whose
weights have no room, the processor runs the rest of a program, so that what the device does is in one piece. Pages of
keys and values, fixed state and slots of experts are mirrored whole or not at all; an operation whose mirrors have no
room runs on the processor, and those around it on the device.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgemoe.kernels import operations as op
from edgemoe.kernels.definition import Field
from edgemoe.kernels.device.device_slots import can_have_slots, slot_count
from edgemoe.kernels.device.lowering import can_run, lower
from edgemoe.kernels.device.memory import Key, key_of
from edgemoe.kernels.device.runtime import Block, Place
from edgemoe.kernels.device.segment import ALIGNMENT_BYTES, aligned, spans_of
from edgemoe.kernels.device.staging import half_bytes
from edgemoe.kernels.device.uses import uses_of
from edgemoe.kernels.expert_operations import Experts, Fetch
from edgemoe.kernels.formats import Matrix


class PlannedUse(NamedTuple):
    """Memory and operations of programs on a device."""

    weight_bytes: int
    state_bytes: int
    """Mirrors of pages, fixed state and slots of experts."""
    activation_bytes: int
    """An upper bound."""
    on_device: int
    """How many operations it runs."""
    others: int
    """How many it could run, if it had room for them."""
    staging_bytes: int = 0
    """The buffers through which the experts among those pass for long chunks of a prompt (`staging.py`)."""
    slots: int = 0
    """How many device slots there are room for, at least, for experts that it runs in part (`device_slots.py`)."""
    slot_experts: int = 0
    """How many experts may lie in them."""


class Placing:
    """The places of operations, program after program."""

    def __init__(
        self,
        most_bytes: int | None,
        used_bytes: int = 0,
        activation_bytes: int = 0,
        known: Collection[Key] = (),
        without_experts: bool = False,
    ) -> None:
        """`used_bytes` of the budget are taken: for activations, for arrays of known keys, and for others."""
        self._without_experts = without_experts
        self.left_bytes = None if most_bytes is None else most_bytes - used_bytes
        self._known = set(known)
        self.activation_bytes = activation_bytes
        self.weight_bytes = self.state_bytes = 0

    def choose(self, operations: Sequence[op.Operation], most_row_bytes: int | None = None) -> list[op.Operation]:
        """Return the operations of a program that the device runs.

        Their arrays may be placeholders, if `most_row_bytes` says what all those with a row for each token take.
        """
        able, chosen = sorted(filter(can_run, operations), key=_reads_some), []
        if most_row_bytes is None:
            activations = spans_of(_rows(able))[1] + _scratch_bytes(able)
        else:
            activations = planned_bytes(able, most_row_bytes)
        more = max(0, activations - self.activation_bytes)
        for operation in able:
            if self._without_experts and _reads_some(operation):
                continue
            mirrors = _sizes(array for use in uses_of(operation) for array in use.arrays)
            lasting = _sizes(array for _, array in lasting_arrays(operation))
            of_mirrors = sum(size for key, size in mirrors.items() if key not in self._known)
            of_weights = sum(size for key, size in lasting.items() if key not in self._known) - of_mirrors
            if self.left_bytes is not None:
                if more + of_weights > self.left_bytes:
                    break
                if more + of_weights + of_mirrors > self.left_bytes:
                    continue
                self.left_bytes -= more + of_weights + of_mirrors
            self.activation_bytes += more
            more = 0
            self._known |= lasting.keys()
            self.weight_bytes += of_weights
            self.state_bytes += of_mirrors
            chosen.append(operation)
        return chosen


def planned_use(
    programs: Sequence[Sequence[op.Operation]],
    most_bytes: int | None,
    most_row_bytes: int,
    without_experts: bool = False,
) -> PlannedUse:
    """Return what programs would have on a device with such a budget, in the order in which they are bound.

    Their arrays may be placeholders; those with a row for each token take at most `most_row_bytes`, as many of them
    share memory. With `without_experts` the processor runs the routed experts.
    """
    placing = Placing(most_bytes, without_experts=without_experts)
    chosen = {one for operations in programs for one in placing.choose(operations, most_row_bytes)}
    operations = list(itertools.chain.from_iterable(programs))
    others = [one for one in operations if one not in chosen]
    use = PlannedUse(
        placing.weight_bytes, placing.state_bytes, placing.activation_bytes, len(chosen), sum(map(can_run, others))
    )
    left = placing.left_bytes
    if most_bytes is None or left is None:
        return use
    streamed = [one for one in others if isinstance(one, Experts) and can_run(one)]
    if streamed and placing.activation_bytes:
        largest = max(one.slots.shape[0] * one.arena.shape[1] for one in streamed)
        staging = 2 * half_bytes(largest, max(one.arena.shape[1] for one in streamed), left)
        use, left = use._replace(staging_bytes=staging), left - staging
    split = [one for one in others if isinstance(one, Experts) and can_have_slots(one)]
    if not split or any(isinstance(one, Fetch) and (one.drop_cold or one.from_base) for one in operations):
        return use
    return use._replace(
        slots=slot_count(split, left, most_bytes), slot_experts=sum(one.slots.shape[0] for one in split)
    )


def planned_bytes(operations: Sequence[op.Operation], most_row_bytes: int | None = None) -> int:
    """Return bytes that suffice for the activations of operations, whose arrays may be placeholders.

    Arrays that several operations have, or that overlap, count each time, up to `most_row_bytes`.
    """
    row_bytes = sum(aligned(array.nbytes) + ALIGNMENT_BYTES for array in _rows(operations))
    if most_row_bytes is not None:
        row_bytes = min(row_bytes, most_row_bytes)
    return row_bytes + _scratch_bytes(operations) + ALIGNMENT_BYTES


def _rows(operations: Sequence[op.Operation]) -> list[Any]:
    return [member for o in operations for field, member in op.members_of(o) if field.mark.per_row]


def _scratch_bytes(operations: Sequence[op.Operation]) -> int:
    """Return the scratch of the operation that has most."""
    largest = 0
    for operation in operations:
        planner = _Planner(operation.measure().rows)
        lower(operation, planner)
        largest = max(largest, planner.bytes)
    return largest


def streams(operation: op.Operation) -> bool:
    """Whether an operation that has no room on the device is one whose weights can pass through it."""
    return _reads_some(operation) and can_run(operation)


def _reads_some(operation: op.Operation) -> bool:
    return isinstance(operation, Experts)


def _sizes(arrays: Iterator[Any]) -> dict[Key, int]:
    return {key_of(array): array.nbytes for array in arrays}


def lasting_arrays(operation: op.Operation) -> Iterator[tuple[Field, Any]]:
    """Yield the arrays of an operation that have no row for each token, with their fields: weights, tables, state."""
    for field, member in op.members_of(operation):
        if field.mark.per_row:
            continue
        if isinstance(member, op.QuantisedCache):
            yield from ((field, part) for part in (member.values, member.scales))
        elif isinstance(member, Matrix) and isinstance(member.data, np.ndarray):
            yield field, member.data
        else:
            yield field, member


class _Planner:
    """The memory of operations whose arrays may be placeholders: it counts the scratch of one of them."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.count = np.zeros(1, np.int32)
        self.bytes = 0

    def place(self, array: Any) -> Place:
        return Place(Block(None), 0)

    def scratch(self, bytes_per_token: int) -> Place:
        self.bytes += aligned(self.tokens * bytes_per_token)
        return Place(Block(None), 0)
