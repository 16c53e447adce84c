"""The rows of a trace that one run of an engine gives, made from the buffers that it has filled.

Letters: `T` tokens computed together, `K` experts used for each token, `E` experts of a layer.

Invariant: reading the buffers changes nothing that a run needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.engine.batch import Rows
from edgemoe.engine.decoder import LayerRouting
from edgemoe.lab.trace_rows import Trace, TraceShape


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


class RunRows:
    """Reads the routing of an engine's latest run as rows of a trace."""

    def __init__(self, shape: TraceShape, routing: Sequence[LayerRouting | None], drops_cold: bool = False) -> None:
        """`drops_cold`: experts that are not in RAM and have zero weight have been dropped, and count no bytes."""
        self.shape = shape
        self.routing = [(layer, one) for layer, one in enumerate(routing) if one is not None]
        """The layers with routed experts, with their numbers."""
        self._drops_cold = drops_cold
        sizes = [len(one.experts[0]) for _, one in self.routing]
        self._layers = np.repeat([layer for layer, _ in self.routing], sizes).astype(np.int32)
        self._slots = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
        self._bytes = np.array(shape.expert_bytes, np.int64)[self._layers]
        # A token that is decoded alone costs one call for all layers: between two tokens the weights drive everything
        # of Python's out of the processor's caches.
        self._experts, firsts = _in_one([one.experts for _, one in self.routing])
        self._first_experts = np.repeat(firsts, sizes) + self._slots
        self._weights, firsts = _in_one([one.weights for _, one in self.routing])
        self._first_weights = np.repeat(firsts, sizes) + self._slots
        self._residency, firsts = _in_one([one.residency for _, one in self.routing])
        self._residency_starts = np.repeat(firsts, sizes)

    def read(self, tokens: RunTokens) -> Iterator[Trace]:
        """The rows of the latest run, in the order of a trace: one token's at once, or layer by layer.

        A choice of no expert, which asks for nothing, is a row whose expert is negative.
        """
        count = len(tokens.step)
        if count == 1:
            yield self._one_token(tokens)
        else:  # a layer at a time: there may be a hundred thousand rows in all
            for layer, routing in self.routing:
                yield self._several_tokens(layer, routing, tokens, count)

    def of_one_token(
        self,
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """The routing of a run of one token, in all layers: experts, weights, whether each was in RAM, or was read."""
        experts = self._experts.take(self._first_experts)
        weights = self._weights.take(self._first_weights)
        residency = self._residency.take(self._residency_starts + experts, mode="wrap")  # of no expert it says nothing
        return experts, weights, residency, ~residency & (weights != 0) if self._drops_cold else ~residency

    def _one_token(self, tokens: RunTokens) -> Trace:
        experts, weights, residency, read = self.of_one_token()
        rows = len(experts)
        return Trace(
            self.shape,
            np.repeat(tokens.turn, rows),
            np.repeat(tokens.phase, rows),
            np.repeat(tokens.step, rows),
            self._layers,
            self._slots,
            experts,
            weights,
            residency,
            self._bytes * read,
        )

    def _several_tokens(self, layer: int, routing: LayerRouting, tokens: RunTokens, count: int) -> Trace:
        used = routing.experts.shape[1]
        experts = routing.experts[:count].reshape(-1)
        weights = routing.weights[:count].reshape(-1)
        residency = routing.residency[experts]
        read = ~residency
        if self._drops_cold:  # an expert with a weight for some token was read
            read &= np.isin(experts, experts[weights != 0])
        sizes = np.zeros(len(experts), np.int64)
        first_of_each = np.unique(experts, return_index=True)[1]
        sizes[first_of_each] = self.shape.expert_bytes[layer] * read[first_of_each]
        return Trace(
            self.shape,
            np.repeat(tokens.turn, used),
            np.repeat(tokens.phase, used),
            np.repeat(tokens.step, used),
            np.full(len(experts), layer, np.int32),
            np.tile(np.arange(used, dtype=np.int32), count),
            experts.copy(),
            weights.copy(),
            residency,
            sizes,
        )


def _in_one(arrays: Sequence[npt.NDArray[Any]]) -> tuple[npt.NDArray[Any], list[int]]:
    """The array in which several lie side by side, flat, and where each of them begins."""
    base = arrays[0].base
    assert isinstance(base, np.ndarray)
    assert all(one.base is base for one in arrays), "an engine keeps the routing of all layers side by side"
    start = base.__array_interface__["data"][0]
    return base.reshape(-1), [(one.__array_interface__["data"][0] - start) // base.itemsize for one in arrays]
