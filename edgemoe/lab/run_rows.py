"""The rows of a trace that one run of an engine gives, made from the buffers that it has filled.

Letters: `T` tokens computed together, `N` rows.

Invariant: reading the buffers changes nothing that a run needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.engine.batch import Rows
from edgemoe.engine.decoder import LayerRouting
from edgemoe.lab.trace_rows import Trace, TraceShape

ROWS_AT_ONCE = 1 << 13
"""Rows that are read together: a long prompt has a hundred thousand in all."""
DECODED_TOKENS = 64
"""Where the rows lie is kept for runs of up to so many tokens."""


@dataclass(frozen=True)
class RunTokens:
    """The tokens of a run, one after another, each column `(T,)`."""

    turn: npt.NDArray[np.int32]
    phase: npt.NDArray[np.uint8]
    step: npt.NDArray[np.int32]

    @classmethod
    def of(cls, run: Sequence[Rows], first_turn: int = 0) -> RunTokens:
        """The tokens of a run whose turns have not yet gone on; turns are counted from `first_turn`."""
        turns = [rows.piece.sequence.turn for rows in run]
        counts = [rows.count for rows in run]
        steps = [np.arange(turn.step, turn.step + count) for turn, count in zip(turns, counts, strict=True)]
        return cls(
            np.repeat([turn.number - first_turn for turn in turns], counts).astype(np.int32),
            np.repeat([turn.phase for turn in turns], counts).astype(np.uint8),
            np.concatenate(steps).astype(np.int32),
        )


@dataclass(frozen=True, eq=False)
class _Places:
    """Where rows lie in an engine's buffers of routing, each column `(N,)`: layer by layer, then token by token."""

    layer: npt.NDArray[np.int32]
    token: npt.NDArray[np.int64]
    slot: npt.NDArray[np.int32]
    experts: npt.NDArray[np.int64]
    weights: npt.NDArray[np.int64]
    residency: npt.NDArray[np.int64]
    """Where the first expert of the row's layer stands."""


_Columns = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]


class RunRows:
    """Reads the routing of an engine's latest run as rows of a trace."""

    def __init__(self, shape: TraceShape, routing: Sequence[LayerRouting | None], drops_cold: bool = False) -> None:
        """`drops_cold`: experts that are not in RAM and have zero weight have been dropped, and count no bytes."""
        self.shape = shape
        self.routing = [(layer, one) for layer, one in enumerate(routing) if one is not None]
        """The layers with routed experts, with their numbers."""
        self._drops_cold = drops_cold
        self._layers = np.array([layer for layer, _ in self.routing], np.int32)
        self._used = np.array([one.experts.shape[1] for _, one in self.routing])
        self._bytes = np.array(shape.expert_bytes, np.int64)
        # Tokens that are decoded cost one call for all layers: between two steps the weights drive everything of
        # Python's out of the processor's caches.
        self._experts, self._first_experts = _in_one([one.experts for _, one in self.routing])
        self._weights, self._first_weights = _in_one([one.weights for _, one in self.routing])
        self._residency, self._first_residency = _in_one([one.residency for _, one in self.routing])
        self._decoded: dict[int, list[_Places]] = {}

    def read(self, tokens: RunTokens) -> Iterator[Trace]:
        """The rows of the latest run, in the order of a trace: all at once, or a few layers at a time if they are many.

        A choice of no expert, which asks for nothing, is a row whose expert is negative.
        """
        count = len(tokens.step)
        for places in self._places(count):
            experts, weights, residency, read = self._columns(places, count)
            yield Trace(
                self.shape,
                tokens.turn[places.token],
                tokens.phase[places.token],
                tokens.step[places.token],
                places.layer,
                places.slot,
                experts,
                weights,
                residency,
                self._bytes[places.layer] * read,
            )

    def columns(self, count: int) -> Iterator[_Columns]:
        """The routing of a run of so many tokens, as many rows at once as `read` gives.

        Experts, weights, whether each expert was in RAM when the router chose it, and whether it was read for this row.
        """
        for places in self._places(count):
            yield self._columns(places, count)

    def _columns(self, places: _Places, count: int) -> _Columns:
        experts = self._experts.take(places.experts)
        weights = self._weights.take(places.weights)
        residency = self._residency.take(places.residency + experts, mode="wrap")  # of no expert it says nothing
        read = ~residency
        if count == 1:
            if self._drops_cold:
                read &= weights != 0
        elif read.any():
            layer_experts = (places.layer.astype(np.int64) << 32) + experts
            if self._drops_cold:  # an expert with a weight for some token was read
                read &= np.isin(layer_experts, layer_experts[weights != 0])
            first = np.zeros(len(read), np.bool_)
            first[np.unique(layer_experts, return_index=True)[1]] = True
            read &= first
        return experts, weights, residency, read

    def _places(self, count: int) -> Iterable[_Places]:
        """Where the rows of a run of so many tokens lie, in portions of about `ROWS_AT_ONCE` rows."""
        if count > DECODED_TOKENS:
            return self._portions(count)
        if count not in self._decoded:
            self._decoded[count] = list(self._portions(count))
        return self._decoded[count]

    def _portions(self, count: int) -> Iterator[_Places]:
        layers = max(1, ROWS_AT_ONCE // (count * int(self._used.max())))
        for first in range(0, len(self._used), layers):
            yield self._places_of(count, slice(first, first + layers))

    def _places_of(self, count: int, layers: slice) -> _Places:
        used = self._used[layers]
        rows = count * used
        in_layer = np.arange(rows.sum()) - np.repeat(rows.cumsum() - rows, rows)
        used_of_row = np.repeat(used, rows)
        return _Places(
            np.repeat(self._layers[layers], rows),
            in_layer // used_of_row,
            (in_layer % used_of_row).astype(np.int32),
            np.repeat(self._first_experts[layers], rows) + in_layer,
            np.repeat(self._first_weights[layers], rows) + in_layer,
            np.repeat(self._first_residency[layers], rows),
        )


def _in_one(arrays: Sequence[npt.NDArray[Any]]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """The array in which several lie side by side, flat, and where each of them begins."""
    base = arrays[0].base
    assert isinstance(base, np.ndarray)
    assert all(one.base is base and one.flags.c_contiguous for one in arrays), "an engine keeps them side by side"
    start = base.__array_interface__["data"][0]
    firsts = [(one.__array_interface__["data"][0] - start) // base.itemsize for one in arrays]
    return base.reshape(-1), np.array(firsts)
