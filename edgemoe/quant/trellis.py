"""Quantises weights to trellis formats: the cheapest path for given scales, and the best scales for given paths, in turn.

The path is that of least squared error, each column's errors weighted by its importance (`trellis_search.py`). Scales
are of least squared error too, after rounding: for each 256 columns the best of a few is taken, with the factors that
it gives. Everything is computed in one written order, so that codes do not depend on the processor.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgemoe.errors import EdgemoeError, KernelError
from edgemoe.kernels import trellis_search
from edgemoe.kernels.trellis import (
    GROUP_COLUMNS,
    LARGEST_FACTOR,
    SCALE_COLUMNS,
    Bytes,
    Trellis,
    Values,
    decode,
    window_values,
)
from edgemoe.kernels.trellis_search import Levels
from edgemoe.kernels.trellis_tables import NORMAL_DEVIATIONS, NORMAL_TABLES

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Halves = npt.NDArray[np.float16]
Search = Callable[[Levels, Floats, Floats, Floats, Floats], Bytes]

_PASSES = 2
"""Searches for the path, each followed by one for scales. A third lowers the error by less than 0.5 %."""

_STARTS = np.array([10, 11.5, 13, 14.5, 16, 17])
"""What the largest group scale of 256 columns is in steps of a candidate for their float16 scale."""

_BLOCK_GROUPS = SCALE_COLUMNS // GROUP_COLUMNS

_DEAREST_AT_MEAN = 2.0**14
_LARGEST_PENALTY = 64.0
"""Of a weight, in penalties of the row's mean weight, before the others' lose digits."""


class TrellisRows(NamedTuple):
    """Rows in a trellis format; `kernels/trellis.py` says what these numbers mean."""

    codes: Bytes
    scales: Halves
    factors: Bytes | None


def quantise_rows(
    weights: Floats, trellis: Trellis, importance: Floats | None = None, tables: Values | None = None
) -> TrellisRows:
    """Quantise finite weights `(rows, columns)`; importance `(columns,)` multiplies the squared errors of columns.

    Scales beyond float16 become infinite.
    """
    rows, columns = weights.shape
    padded = trellis.padded(columns)
    chosen = NORMAL_TABLES[trellis.name] if tables is None else tables
    levels = Levels.of(window_values(chosen, trellis), trellis)
    own: Floats = np.zeros(padded, np.float32)
    own[:columns] = _mean_one(importance, columns)
    values: Floats = np.zeros((rows, padded), np.float32)
    values[:, :columns] = weights
    # Sums of squares neither overflow nor vanish where the largest weight of a row is about 1.
    exponents = np.frexp(np.abs(values).max(axis=1, initial=0))[1]
    values = np.ldexp(values, -exponents[:, None])
    deviation = NORMAL_DEVIATIONS[trellis.name]
    if tables is not None:
        deviation = float(np.sqrt(np.square(levels.levels[0][levels.numbers[:, 0]]).mean()))
    by_group = own.reshape(-1, GROUP_COLUMNS)
    mass = by_group.sum(axis=1).astype(np.float64)
    energies = _group_sums(np.square(values), own)
    wanted = np.sqrt(energies / np.where(mass > 0, mass, 1)) / deviation
    certainty: Doubles = np.broadcast_to(mass, energies.shape)
    peaks = by_group.max(axis=1).astype(np.float64)
    codes = np.empty((rows, 0), np.uint8)
    scales, factors = _choose_scales(wanted, certainty, exponents, trellis)
    for _ in range(_PASSES):
        steps = _steps(scales, factors, exponents, wanted.shape[1])
        with np.errstate(divide="ignore"):
            inverses = np.where(steps > 0, 1 / steps, 0).astype(np.float32)
        codes = _implementation()(levels, values, inverses, _gains(steps, mass, peaks, levels), own)
        found = decode(codes, chosen, trellis).astype(np.float32)
        certainty = _group_sums(np.square(found), own)
        wanted = _group_sums(values * found, own) / np.where(certainty > 0, certainty, 1)
        scales, factors = _choose_scales(wanted, certainty, exponents, trellis)
    if factors is not None:
        factors = np.ascontiguousarray(factors[:, : trellis.factor_count(columns)])
    return TrellisRows(codes, scales, factors)


def _mean_one(importance: Floats | None, columns: int) -> Floats:
    """The importance of columns, of mean 1: all are alike where none is given, or all are 0."""
    if importance is None:
        return np.ones(columns, np.float32)
    if importance.shape != (columns,):
        raise EdgemoeError(f"expected the importance of {columns} columns, found that of {importance.shape}.")
    if not (np.isfinite(importance).all() and (importance >= 0).all()):
        raise EdgemoeError("the importance of columns: expected finite numbers of at least 0, found others.")
    mean = importance.astype(np.float64).mean()
    if mean == 0:
        return np.ones(columns, np.float32)
    return (importance / mean).astype(np.float32)


def _group_sums(values: Floats, importance: Floats) -> Doubles:
    """The sums of each group, weighted: `(rows, columns)` to `(rows, groups)`."""
    weighted = (values * importance).reshape(len(values), -1, GROUP_COLUMNS)
    return weighted.sum(axis=2).astype(np.float64)


def _choose_scales(
    wanted: Doubles, certainty: Doubles, exponents: npt.NDArray[np.int32], trellis: Trellis
) -> tuple[Halves, Bytes | None]:
    """The scales and factors that come closest to the wanted steps of groups `(rows, groups)` of weights times 2**-e.

    `certainty` is what squared differences cost.
    """
    rows, groups = wanted.shape
    if not trellis.has_factors:
        total = certainty.sum(axis=1)
        mean = (wanted * certainty).sum(axis=1) / np.where(total > 0, total, 1)
        return _to_halves(mean[:, None], exponents), None
    blocks = -(-groups // _BLOCK_GROUPS)
    missing = ((0, 0), (0, blocks * _BLOCK_GROUPS - groups))
    steps = np.pad(np.maximum(wanted, 0), missing).reshape(rows, blocks, 1, _BLOCK_GROUPS)
    cost = np.pad(certainty, missing).reshape(steps.shape)
    offers = steps.max(axis=3) / _STARTS
    counts = _counts(steps, offers)
    squares = (cost * counts * counts).sum(axis=3)
    offers = (cost * counts * steps).sum(axis=3) / np.where(squares > 0, squares, 1)
    halves = _to_halves(offers.reshape(rows, -1), exponents).reshape(offers.shape)
    kept = _scaled(halves.reshape(rows, -1), exponents).reshape(offers.shape)
    counts = _counts(steps, kept)
    best = (cost * (steps - kept[..., None] * counts) ** 2).sum(axis=3).argmin(axis=2)[..., None]
    scales = np.take_along_axis(halves, best, axis=2)[..., 0]
    chosen = np.take_along_axis(counts, best[..., None], axis=2)
    return scales, (chosen.reshape(rows, -1)[:, :groups] - 1).astype(np.uint8)


def _counts(steps: Doubles, offers: Doubles) -> Doubles:
    """The numbers from 1 to 16 that make offers `(..., offers)` come closest to the steps `(..., 1, groups)`."""
    some = np.where((offers > 0) & np.isfinite(offers), offers, 1)[..., None]
    return np.clip(np.rint(steps / some), 1, LARGEST_FACTOR + 1)


def _to_halves(steps: Doubles, exponents: npt.NDArray[np.int32]) -> Halves:
    with np.errstate(over="ignore"):
        return np.ldexp(np.maximum(steps, 0), exponents[:, None]).astype(np.float16)


def _scaled(scales: Halves, exponents: npt.NDArray[np.int32]) -> Doubles:
    return np.ldexp(scales.astype(np.float64), -exponents[:, None])


def _steps(scales: Halves, factors: Bytes | None, exponents: npt.NDArray[np.int32], groups: int) -> Doubles:
    """The steps of groups `(rows, groups)` that scales and factors give; 0 for those beyond float16."""
    own = _scaled(np.where(np.isfinite(scales), scales, np.float16(0)), exponents)
    if factors is None:
        return np.repeat(own, groups, axis=1)
    steps: Doubles = np.repeat(own, _BLOCK_GROUPS, axis=1)[:, :groups] * (factors + 1.0)
    return steps


def _gains(steps: Doubles, mass: Doubles, peaks: Doubles, levels: Levels) -> Floats:
    """What an error of one step costs in each group: as many units as leave room for the dearest weight of the row."""
    squares = steps * steps
    mean = (squares * mass).sum(axis=1) / max(mass.sum(), 1)
    unit = np.maximum(mean, (squares * peaks).max(axis=1) / _LARGEST_PENALTY)
    gains: Floats = (squares * (levels.dearest / _DEAREST_AT_MEAN / np.where(unit > 0, unit, 1))[:, None]).astype(
        np.float32
    )
    return gains


@functools.cache
def _implementation() -> Search:
    try:
        from edgemoe.kernels.native.trellis import NativeTrellisSearch

        return NativeTrellisSearch().search
    except KernelError:
        return trellis_search.search
