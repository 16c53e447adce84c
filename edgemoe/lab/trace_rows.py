"""A trace of routing in memory: one row for each expert that a router chose, and the shape of the model.

Letters: `N` rows, `L` layers, `E` experts of a layer, `K` experts used for each token.

Invariant: columns of one trace are of one length, with values within the bounds of `bounds`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

COLUMNS: Mapping[str, type[np.generic]] = {
    "turn": np.int32,
    "phase": np.uint8,
    "step": np.int32,
    "layer": np.int32,
    "slot": np.int32,
    "expert": np.int32,
    "weight": np.float32,
    "residency": np.bool_,
    "expert_bytes": np.int64,
}
"""The columns of a trace, in the order of its files, with their types in memory."""

MOST_COUNT = 2**31
"""Numbers of turns, steps, layers and experts are below this."""
MOST_BYTES = 2**53
"""Sizes in bytes are below this, so that a float64 holds them."""
MOST_LAYERS, MOST_USED = 2**16, 2**16


@dataclass(frozen=True)
class TraceShape:
    """The shape of the model whose routing a trace holds. Raises ValueError for numbers that no model can have."""

    model: str
    architecture: str
    layers: int
    experts: int
    """Routed experts of a layer (of the one that has most)."""
    experts_used: int
    """Experts used for each token (in the layer that uses most)."""
    expert_bytes: tuple[int, ...]
    """Bytes of one expert, `(L,)`; 0 in a layer without experts."""
    dense_bytes: tuple[int, ...]
    """Bytes of the weights that every token needs in a layer, `(L,)`."""

    def __post_init__(self) -> None:
        _require("layers", self.layers, 1, MOST_LAYERS)
        _require("experts", self.experts, 1, MOST_COUNT)
        _require("experts used", self.experts_used, 1, min(self.experts + 1, MOST_USED))
        for name, sizes in (("expert_bytes", self.expert_bytes), ("dense_bytes", self.dense_bytes)):
            if len(sizes) != self.layers:
                raise ValueError(f"expected {name} of {self.layers} layers, found {len(sizes)}")
            for size in sizes:
                _require(name, size, 0, MOST_BYTES)

    @property
    def keys(self) -> int:
        """The number of experts of all layers; `Trace.keys` are below it."""
        return self.layers * self.experts

    def __str__(self) -> str:
        return f"{self.layers} layers of {self.experts} experts, {self.experts_used} used"


def _require(name: str, value: int, least: int, most: int) -> None:
    if type(value) is not int or not least <= value < most:
        raise ValueError(f"expected {name} from {least} to {most - 1}, found {value!r}")


@dataclass(frozen=True, eq=False)
class Trace:
    """Recorded routing: each column `(N,)`, one row for every expert of every token in every layer.

    Rows are in the order in which the engine requested experts: layer by layer, and within a layer token by token, for
    the tokens that were computed together (a piece of a prompt, or one generated token).
    """

    shape: TraceShape
    turn: npt.NDArray[np.int32]
    """The number of the turn, a prompt with its answer, from 0."""
    phase: npt.NDArray[np.uint8]
    """PROMPT or DECODE."""
    step: npt.NDArray[np.int32]
    """The token's number within the turn; runs on from the prompt's tokens to the generated ones."""
    layer: npt.NDArray[np.int32]
    slot: npt.NDArray[np.int32]
    """The expert's rank in the router's choice, below `experts_used`."""
    expert: npt.NDArray[np.int32]
    weight: npt.NDArray[np.float32]
    residency: npt.NDArray[np.bool_]
    """Whether the expert was in memory when the router chose it."""
    expert_bytes: npt.NDArray[np.int64]
    """Bytes read for this row; 0 where the expert was in memory, or was read for an earlier row."""

    def __len__(self) -> int:
        return len(self.turn)

    @property
    def keys(self) -> npt.NDArray[np.int64]:
        """The experts in order of access: `layer * experts + expert`, `(N,)`."""
        return self.layer.astype(np.int64) * self.shape.experts + self.expert

    @property
    def columns(self) -> tuple[npt.NDArray[np.generic], ...]:
        """The columns in the order of `COLUMNS`."""
        return tuple(getattr(self, name) for name in COLUMNS)

    @property
    def tokens(self) -> int:
        """The number of tokens: changes of turn or step in the first layer that has rows."""
        first = self.layer == self.layer.min() if len(self) else np.zeros(0, np.bool_)
        places = self.turn[first].astype(np.int64) * MOST_COUNT + self.step[first]
        return len(np.unique(places))

    def select(self, rows: slice | npt.NDArray[np.bool_]) -> Trace:
        """Some of the rows: a slice, or those where a mask is true."""
        return _trace(self.shape, [column[rows] for column in self.columns])

    def distinct_experts(self) -> npt.NDArray[np.int64]:
        """The number of different experts that each layer used, `(L,)`."""
        used = np.unique(self.keys) // self.shape.experts
        return np.bincount(used, minlength=self.shape.layers)


assert tuple(field.name for field in fields(Trace))[1:] == tuple(COLUMNS)


def bounds(shape: TraceShape) -> dict[str, int]:
    """The exclusive upper bound of each integer column; all values are 0 or more."""
    return {
        "turn": MOST_COUNT,
        "phase": 2,
        "step": MOST_COUNT,
        "layer": shape.layers,
        "slot": shape.experts_used,
        "expert": shape.experts,
        "residency": 2,
        "expert_bytes": MOST_BYTES,
    }


def find_fault(shape: TraceShape, columns: Sequence[npt.NDArray[Any]]) -> tuple[int, str] | None:
    """The first row that holds an invalid value, and a description of its fault; None where all values are valid."""
    found, limits = [], bounds(shape)
    for (name, kind), values in zip(COLUMNS.items(), columns, strict=True):
        with np.errstate(over="ignore", invalid="ignore"):
            as_kept = values.astype(kind)
        if name == "weight":
            good, expected = np.isfinite(as_kept), "a number that float32 can hold"
        else:
            good = (values >= 0) & (values < limits[name]) & (values == as_kept)
            expected = f"a whole number below {limits[name]}"
        if not good.all():
            row = int(np.argmin(good))
            found.append((row, f"{name}: expected {expected}, found {values[row]:.9g}"))
    return min(found, default=None)


def join(shape: TraceShape, parts: Sequence[Sequence[npt.NDArray[Any]]]) -> Trace:
    """Join the columns of several parts, in their order, to one trace."""
    columns: list[npt.NDArray[Any]] = []
    for place, kind in enumerate(COLUMNS.values()):
        pieces = [part[place] for part in parts]
        columns.append(np.concatenate(pieces) if pieces else np.zeros(0, kind))
    return _trace(shape, columns)


def _trace(shape: TraceShape, columns: Sequence[npt.NDArray[Any]]) -> Trace:
    return Trace(shape, *columns)
