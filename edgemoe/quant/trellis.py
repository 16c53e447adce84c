"""Quantises weights to trellis formats: the cheapest path for given scales and the best scales for given paths in turn.

The path is that of least squared error, each column's errors weighted by its importance (`trellis_search.py`). Scales
are of least squared error too, after rounding: for each 256 columns the best of a few is taken, with the factors that
it gives. Everything is computed in one written order, so that codes do not depend on the processor.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from edgemoe.errors import EdgemoeError, KernelError
from edgemoe.kernels import trellis_search
from edgemoe.kernels.panel_sizes import GROUP_COLUMNS
from edgemoe.kernels.trellis import SCALE_COLUMNS, Bytes, Trellis, Values, window_values
from edgemoe.kernels.trellis_search import FedColumns, Levels

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Halves = npt.NDArray[np.float16]
Search = Callable[..., Bytes]
"""`trellis_search.search`, or a function that finds the same."""


class Searches(Protocol):
    """The functions of `trellis_search`, or others that find the same."""

    @property
    def search(self) -> Search: ...

    @property
    def feed_back(self) -> Callable[[Levels, FedColumns, Bytes], tuple[Bytes, Floats]]: ...


PASSES = 2
"""Searches for the path, each followed by one for scales. A third lowers the error by 0.3 to 0.7 %."""

_STARTS = np.array([10, 11.5, 13, 14.5, 16, 17])
"""The largest group scale of 256 columns, in candidates for their float16 scale."""

_BLOCK_GROUPS = SCALE_COLUMNS // GROUP_COLUMNS

_DEVIATION_TO_MAGNITUDE = np.sqrt(np.pi / 2)
"""The standard deviation of normal weights in units of their mean magnitude."""

_SMALLEST_EXPONENT = -100
"""The smallest that a row is scaled by: smaller weights have no float16 scale."""

_DEAREST_AT_MEAN = 2.0**14
_LARGEST_PENALTY = 64.0
"""The largest of a weight, in penalties of the row's mean weight, before the others' lose digits."""


class TrellisRows(NamedTuple):
    """Rows in a trellis format; `kernels/trellis.py` says what these numbers mean."""

    codes: Bytes
    scales: Halves
    factors: Bytes | None


def quantise_rows(
    weights: Floats,
    trellis: Trellis,
    tables: Values,
    deviation: float,
    importance: Floats | None = None,
    search: Search | None = None,
    passes: int = PASSES,
) -> TrellisRows:
    """Quantise finite weights `(rows, columns)`; importance `(columns,)` multiplies the squared errors of columns.

    Tables are for normal weights whose standard deviation in steps is `deviation`. `search` finds paths; by default the
    native library's does. Scales beyond float16 become infinite. Raises EdgemoeError for an importance that is not
    finite or below 0.
    """
    rows, columns = weights.shape
    from edgemoe.quant import trellis_scales as loops  # imports Numba, which only conversion needs

    padded = trellis.padded(columns)
    of_windows = window_values(tables, trellis)
    levels = Levels.of(of_windows, trellis)
    own: Floats = np.zeros(padded, np.float32)
    own[:columns] = mean_one(importance, columns)
    by_group = own.reshape(-1, GROUP_COLUMNS)
    mass, peaks = by_group.sum(axis=1).astype(np.float64), by_group.max(axis=1).astype(np.float64)
    # The largest weight of a row is made about 1, so that sums of squares neither overflow nor vanish.
    exponents = np.maximum(np.frexp(np.abs(weights).max(axis=1, initial=0))[1], _SMALLEST_EXPONENT)
    values: Floats = np.zeros((rows, padded), np.float32)
    np.multiply(weights, np.ldexp(np.float32(1), -exponents)[:, None], out=values[:, :columns])
    products, squares = (np.empty((rows, len(mass))) for _ in range(2))
    loops.sizes(values, own, products, squares)
    # The standard deviation, if weights are normal; larger where some lie far out, whose errors would be largest.
    spread = squares / np.where(products > 0, products * _DEVIATION_TO_MAGNITUDE, 1)
    wanted, certainty = spread / deviation, np.broadcast_to(mass, spread.shape)
    codes = np.empty((rows, 0), np.uint8)
    scales, factors = _choose_scales(wanted, certainty, exponents, trellis)
    for _ in range(passes):
        steps = _steps(scales, factors, exponents, len(mass))
        inverses = np.divide(1, steps, out=np.zeros_like(steps), where=steps > 0).astype(np.float32)
        gains = path_gains(steps, mass, peaks, levels)
        codes = (search or implementation().search)(levels, values, inverses, gains, own)
        loops.fits(values, codes, of_windows.astype(np.float32), own, trellis.step_bits, products, squares)
        wanted, certainty = products / np.where(squares > 0, squares, 1), squares
        scales, factors = _choose_scales(wanted, certainty, exponents, trellis)
    if factors is not None:
        factors = np.ascontiguousarray(factors[:, : trellis.factor_count(columns)])
    return TrellisRows(codes, scales, factors)


def mean_one(importance: Floats | None, columns: int) -> Floats:
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
    relative: Floats = (importance / mean).astype(np.float32)
    return relative


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
    from edgemoe.quant import trellis_scales as loops

    blocks = -(-groups // _BLOCK_GROUPS)
    missing = ((0, 0), (0, blocks * _BLOCK_GROUPS - groups))
    steps = np.pad(np.maximum(wanted, 0), missing).reshape(-1, _BLOCK_GROUPS)
    costs = np.pad(certainty, missing).reshape(steps.shape)
    offers = np.empty((len(steps), len(_STARTS)))
    loops.offer(steps, costs, _STARTS, offers)
    halves = _to_halves(offers.reshape(rows, -1), exponents)
    kept = _scaled(halves, exponents).reshape(offers.shape)
    chosen, factors = np.empty(len(steps), np.int64), np.empty(steps.shape, np.uint8)
    loops.choose(steps, costs, kept, chosen, factors)
    scales = halves.reshape(offers.shape)[np.arange(len(steps)), chosen]
    return scales.reshape(rows, blocks), factors.reshape(rows, -1)[:, :groups]


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


def path_gains(steps: Doubles, mass: Doubles, peaks: Doubles, levels: Levels) -> Floats:
    """The cost of an error of one step in each group: as many units as leave room for the dearest weight of the row."""
    squares = steps * steps
    mean = (squares * mass).sum(axis=1) / max(mass.sum(), 1)
    unit = np.maximum(mean, (squares * peaks).max(axis=1) / _LARGEST_PENALTY)
    gains: Floats = (squares * (levels.dearest / _DEAREST_AT_MEAN / np.where(unit > 0, unit, 1))[:, None]).astype(
        np.float32
    )
    return gains


@functools.cache
def implementation() -> Searches:
    """The native library's searches, or NumPy's where there is none."""
    try:
        from edgemoe.kernels.native.trellis import NativeTrellisSearch

        return NativeTrellisSearch()
    except KernelError:
        return trellis_search
