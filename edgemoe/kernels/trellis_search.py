"""The search for the codes of given weights: the cheapest path through a trellis (Viterbi), in NumPy.

`native/kernels/trellis/search.h` is the same in C and finds the same codes: costs are whole numbers, and of equal costs
the path with the lower oldest bits is taken. Here a step of all chains of all rows is one pass of NumPy: some fifty
times slower, for machines without the native library.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.panel_sizes import GROUP_COLUMNS
from edgemoe.kernels.trellis import CHAINS, Bytes, Trellis

Floats = npt.NDArray[np.float32]

FARTHEST = np.float32(128)
"""Targets further from 0 than this count as this far (`EM_TRELLIS_FARTHEST`)."""

_NEVER = 1 << 30
_ROWS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Levels:
    """The numbers that weights can be in one matrix."""

    trellis: Trellis
    levels: Floats
    """`(V, levels)`, ascending, at most 256 of them."""
    numbers: Bytes
    """`(windows, V)`: which of them each window stands for."""

    @classmethod
    def of(cls, values: npt.NDArray[np.generic], trellis: Trellis) -> Levels:
        """The levels of the values of all windows, `(windows, V)`."""
        found = [np.unique(column, return_inverse=True) for column in values.astype(np.float32).T]
        count = max(len(levels) for levels, _ in found)
        levels = np.stack([np.pad(own, (0, count - len(own)), mode="edge") for own, _ in found])
        return cls(trellis, levels, np.stack([numbers for _, numbers in found], axis=1).astype(np.uint8))

    @property
    def dearest(self) -> float:
        """The most that a weight may cost, so that no sum of costs overflows (`em_trellis.dearest`)."""
        room = 26 if self.trellis.step_bits == 1 else 28
        return float(2 ** (room - self.trellis.step_bits) // self.trellis.step_weights)


def search(
    levels: Levels,
    weights: Floats,
    inverses: Floats,
    gains: Floats,
    importance: Floats,
    starts: Bytes | None = None,
    chain: int | None = None,
) -> Bytes:
    """Find the codes `(rows, codes)` with the smallest sum of gain * importance * (weight * inverse - level)**2.

    Weights `(rows, padded columns)`, inverses and gains `(rows, padded columns / 32)`, importance `(padded columns,)`.
    Starts `(rows, 4)` are the states of chains before the first step, 0 without them. Codes of others than `chain`, if
    that is given, are 0.
    """
    codes = np.empty((len(weights), weights.shape[1] // levels.trellis.step_weights), np.uint8)
    if starts is None:
        starts = np.zeros((len(weights), CHAINS), np.uint8)
    for first in range(0, len(weights), _ROWS_AT_ONCE):
        some = slice(first, first + _ROWS_AT_ONCE)
        targets = weights[some] * np.repeat(inverses[some], GROUP_COLUMNS, axis=1)
        penalties = np.repeat(gains[some], GROUP_COLUMNS, axis=1) * importance
        codes[some] = _search(levels, targets, penalties, starts[some])
    if chain is not None:
        codes *= np.arange(codes.shape[1]) % CHAINS == chain
    return codes


def _search(levels: Levels, targets: Floats, penalties: Floats, starts: Bytes) -> Bytes:
    trellis = levels.trellis
    k, kept_bits = trellis.step_bits, trellis.state_bits - trellis.step_bits
    states = np.arange(1 << trellis.state_bits)
    rows, steps = len(targets), targets.shape[1] // (CHAINS * trellis.step_weights)
    by_step = (rows, steps, trellis.step_weights, CHAINS)
    targets, penalties = targets.reshape(by_step), penalties.reshape(by_step)
    metrics = np.where(states == starts[:, :, None], np.int32(0), np.int32(_NEVER))
    metrics += (states >> kept_bits).astype(np.int32)
    # A window is a way into a state: for each state its ways, by the oldest bits.
    windows = (np.arange(1 << k)[None, :] << trellis.state_bits) + states[:, None]
    ways = np.empty((steps, rows, CHAINS, len(states)), np.uint8)
    for step in range(steps):
        costs = np.zeros((rows, CHAINS, len(states), 1 << k), np.int32)
        for v in range(trellis.step_weights):
            costs += _costs(levels, v, targets[:, step, v], penalties[:, step, v])[..., levels.numbers[windows, v]]
        best = (costs + metrics[..., windows >> k]).min(axis=-1)
        ways[step] = best & ((1 << k) - 1)
        metrics = best - ways[step] - metrics[..., :1] + (states >> kept_bits).astype(np.int32)
    codes = np.empty((rows, steps, CHAINS), np.uint8)
    state = (metrics >> k).argmin(axis=-1)
    for step in range(steps - 1, -1, -1):
        codes[:, step] = state & ((1 << k) - 1)
        way = np.take_along_axis(ways[step], state[..., None], axis=-1)[..., 0].astype(np.int64)
        state = way << kept_bits | state >> k
    return codes.reshape(rows, -1)


def _costs(levels: Levels, v: int, targets: Floats, penalties: Floats) -> npt.NDArray[np.int32]:
    """The cost of each level beyond that of the nearest number within their range: `(..., levels)`, for `(...)`."""
    own = levels.levels[v]
    targets = np.clip(targets, -FARTHEST, FARTHEST)
    nearest = np.clip(targets, own[0], own[-1])
    linear = penalties * (targets * np.float32(-2))
    constant = penalties * ((targets * np.float32(2) - nearest) * nearest)
    costs = (penalties[..., None] * own + linear[..., None]) * own + constant[..., None]
    whole: npt.NDArray[np.int32] = np.minimum(costs, np.float32(levels.dearest)).astype(np.int32)
    whole <<= levels.trellis.step_bits
    return whole
