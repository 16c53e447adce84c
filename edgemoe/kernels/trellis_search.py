"""The search for the codes of given weights: the cheapest path through a trellis (Viterbi), in NumPy.

`native/kernels/trellis/search.h` is the same in C and finds the same codes: costs are whole numbers, and of equal costs
the path with the lower oldest bits is taken; `feed.h` beside it feeds errors back as here. Here a step of all chains of
all rows is one pass of NumPy: some fifty times slower, for machines without the native library.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.panel_sizes import GROUP_COLUMNS
from edgemoe.kernels.trellis import BLOCK_STEPS, CHAINS, Bytes, Trellis

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
) -> Bytes:
    """Find the codes `(rows, codes)` with the smallest sum of gain * importance * (weight * inverse - level)**2.

    Weights `(rows, padded columns)`, inverses and gains `(rows, padded columns / 32)`, importance `(padded columns,)`.
    Starts `(rows, 4)` are the states of chains before the first step, 0 without them.
    """
    codes = np.empty((len(weights), weights.shape[1] // levels.trellis.step_weights), np.uint8)
    if starts is None:
        starts = np.zeros((len(weights), CHAINS), np.uint8)
    for first in range(0, len(weights), _ROWS_AT_ONCE):
        some = slice(first, first + _ROWS_AT_ONCE)
        targets = weights[some] * np.repeat(inverses[some], GROUP_COLUMNS, axis=1)
        penalties = np.repeat(gains[some], GROUP_COLUMNS, axis=1) * importance
        codes[some] = _search(levels, targets, penalties, starts[some])
    return codes


@dataclass(frozen=True, eq=False)
class FedColumns:
    """Columns of rows whose errors feed back, in whole blocks: the first get codes, others are searched with them.

    A unit is what a chain has of a block: 8 steps.
    """

    targets: Floats
    """`(rows, columns)`"""
    inverses: Floats
    """`(rows, columns / 32)`: what makes steps of targets."""
    gains: Floats
    """`(rows, columns / 32)`: the costs of squared errors of a step, times the importance."""
    steps: Floats
    """`(rows, columns / 32)`: what a level of 1 is worth."""
    importance: Floats
    """`(columns,)`"""
    factors: Floats
    """`(units kept, columns of a unit, as many)`: what is left of a unit's errors by its columns; upper triangular."""
    rates: Floats
    """`(columns kept, columns)`: what a rest takes from later targets."""
    ahead: int
    """The columns that a search goes beyond its block, if there are as many."""


def feed_back(levels: Levels, fed: FedColumns, states: Bytes) -> tuple[Bytes, Floats]:
    """The codes and the rests of errors `(rows, columns kept)`, unit by unit.

    Each unit is on the cheapest path for the targets that the units before it left. `states` `(rows, 4)` are those of
    chains before these columns, and become those after them.
    """
    trellis, count = levels.trellis, len(fed.rates)
    targets, unit, width = fed.targets.copy(), trellis.unit_columns, trellis.block_columns
    values = np.stack([own[numbers] for own, numbers in zip(levels.levels, levels.numbers.T, strict=True)], axis=1)
    codes = np.empty((len(targets), count // trellis.step_weights), np.uint8)
    rests = np.empty((len(targets), count), np.float32)
    for block, chain in np.ndindex(count // width, CHAINS):
        first, own = block * width, block * width + chain + CHAINS * np.arange(unit)
        end = min(first + width + fed.ahead, targets.shape[1])
        columns, groups = slice(first, end), slice(first // GROUP_COLUMNS, end // GROUP_COLUMNS)
        numbers = fed.inverses[:, groups], fed.gains[:, groups]
        found = search(levels, targets[:, columns], *numbers, fed.importance[columns], states)
        found = found[:, chain : BLOCK_STEPS * CHAINS : CHAINS]
        start = first // trellis.step_weights + chain
        codes[:, start : start + BLOCK_STEPS * CHAINS : CHAINS] = found
        chosen = values[_windows(found, states, chain, trellis)].reshape(len(found), -1)
        errors = targets[:, own] - chosen * fed.steps[:, own // GROUP_COLUMNS]
        factors = fed.factors[block * CHAINS + chain]
        left = errors[:, :1] * factors[0]
        for i in range(1, unit):
            left[:, i:] += errors[:, i : i + 1] * factors[i, i:]
        rests[:, own] = left
        later = np.arange(first, targets.shape[1])
        later = later[(later % CHAINS > chain) | (later >= first + width)]
        for i, rates in enumerate(fed.rates[own]):
            targets[:, later] -= left[:, i : i + 1] * rates[later]
    return codes, rests


def _windows(codes: Bytes, states: Bytes, chain: int, trellis: Trellis) -> npt.NDArray[np.int64]:
    """The windows `(rows, 8)` of codes that are appended to a chain, whose states become those after them."""
    shifts = np.arange(BLOCK_STEPS - 1, -1, -1) * trellis.step_bits
    stream = states[:, chain].astype(np.int64) << BLOCK_STEPS * trellis.step_bits
    stream |= (codes.astype(np.int64) << shifts).sum(axis=1)
    states[:, chain] = stream & (1 << trellis.state_bits) - 1
    found: npt.NDArray[np.int64] = stream[:, None] >> shifts & (1 << trellis.window_bits) - 1
    return found


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
