"""Backends that promise the same bits, as one: what runs, runs on each of them, and every byte must agree.

A test of such a backend compares with the reference once, whatever the number of instruction sets and threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from edgemoe.errors import EdgemoeError
from edgemoe.kernels.backend import Backend, Pause, Program, ProgramTimes
from edgemoe.kernels.operations import Operation

Result = TypeVar("Result")


class AgreeingBackends:
    """A backend whose programs run on all members, of which the first is asked for what may differ."""

    growth_bytes = 0
    scratch_grows_with_context = False
    device = None

    def __init__(self, members: Mapping[str, Backend]) -> None:
        self._members = members
        first = next(iter(members.values()))
        self.name, self.isa, self.threads = first.name, first.isa, first.threads

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """The kinds of operations that all members run as the reference does."""
        (fallbacks,) = {member.fallbacks for member in self._members.values()}
        return fallbacks

    def program(self, operations: Sequence[Operation]) -> Program:
        """Bind the operations for each member; all bind them, or all refuse them with the same error."""
        programs = _agreed({name: partial(member.program, operations) for name, member in self._members.items()})
        return _AgreeingPrograms(dict(zip(self._members, programs, strict=True)), operations)

    def scratch_bytes(self, operations: Sequence[Operation]) -> int:
        """Return the most that a member allocates."""
        return max(_agreed({name: partial(one.scratch_bytes, operations) for name, one in self._members.items()}))

    def close(self) -> None:
        for member in self._members.values():
            member.close()


class _AgreeingPrograms:
    """The same operations bound by each member, to the same buffers."""

    def __init__(self, programs: Mapping[str, Program], operations: Sequence[Operation]) -> None:
        self._programs = programs
        # Packed weights are bytes: no operation writes them, and they are the largest part of most programs.
        self._buffers = [array for array in _arrays(operations) if array.dtype != np.uint8]

    def run(self, tokens: int, pause: Pause | None = None) -> None:
        """Run each member's program on the buffers as they are now; each must leave what the first leaves."""
        before = [buffer.copy() for buffer in self._buffers]
        left: list[list[Any]] = []

        def run(program: Program) -> None:
            if left:
                for buffer, content in zip(self._buffers, before, strict=True):
                    buffer[...] = content
            try:
                program.run(tokens, pause)
            finally:
                left.append([buffer.copy() for buffer in self._buffers])

        try:
            _agreed({name: partial(run, program) for name, program in self._programs.items()})
        finally:
            first = next(iter(self._programs))
            for name, own in zip(self._programs, left, strict=False):
                for number, (found, expected) in enumerate(zip(own, left[0], strict=True)):
                    assert _same(found, expected), f"{name} leaves other numbers in array {number} than {first}"

    def time_runs(self, on: bool) -> None:
        for program in self._programs.values():
            program.time_runs(on)

    def times(self) -> ProgramTimes:
        """Return the first member's times."""
        return next(iter(self._programs.values())).times()


def _agreed(calls: Mapping[str, Callable[[], Result]]) -> list[Result]:
    """All results; or the error of all of them, which must be the same."""
    results: list[Result] = []
    errors: dict[str, EdgemoeError] = {}
    for name, call in calls.items():
        try:
            results.append(call())
        except EdgemoeError as error:
            errors[name] = error
    if errors:
        assert not results, f"only {', '.join(errors)} of {', '.join(calls)} refused it: {next(iter(errors.values()))}"
        assert len({(type(error), str(error)) for error in errors.values()}) == 1, errors
        raise next(iter(errors.values()))
    return results


def _arrays(value: object) -> Iterator[np.ndarray[Any, Any]]:
    """All arrays of operations, those of structs within them too."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, (tuple, list)):
        for member in value:
            yield from _arrays(member)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _arrays(getattr(value, field.name))


def _same(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> bool:
    """Whether all bytes agree, but those of what is no number."""
    if found.tobytes() == expected.tobytes():
        return True
    if not np.issubdtype(found.dtype, np.floating):
        return False
    numbers = ~np.isnan(expected)
    return np.array_equal(np.isnan(found), ~numbers) and found[numbers].tobytes() == expected[numbers].tobytes()
