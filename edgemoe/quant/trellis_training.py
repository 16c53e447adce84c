"""Trains the tables of a trellis format on weights that are distributed normally, and prints them.

    python -m edgemoe.quant.trellis_training n2

Starting from random tables, two steps take turns: the cheapest paths of some weights for the tables, and the tables of
least squared error for the paths. Of several starts the best is rounded to whole numbers. The same seed gives the same
tables. `kernels/trellis_tables.py` has the results.
"""

from __future__ import annotations

import argparse

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.native.trellis import NativeTrellisSearch
from edgemoe.kernels.panel_sizes import GROUP_COLUMNS
from edgemoe.kernels.trellis import (
    CHAINS,
    LARGEST_VALUE,
    TRELLISES,
    Bytes,
    Trellis,
    Values,
    stream_windows,
    window_values,
)
from edgemoe.kernels.trellis_search import Levels

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

STARTS, FIRST_ROUNDS, LAST_ROUNDS = 24, 30, 150
FIRST_SHAPE, LAST_SHAPE = (64, 1024), (512, 1024)
_DEVIATION = 10.0
"""The standard deviation of weights, in steps, while tables are not rounded: the search takes targets up to 128."""
_FRACTIONS = np.arange(0.7, 1.001, 0.01)
"""Parts of the largest value that a table is rounded to."""


def train(trellis: Trellis, seed: int = 1, starts: int = STARTS) -> tuple[Values, float, float]:
    """Return tables, the standard deviation of the weights that they are for, and their error, scales' aside."""
    random = np.random.default_rng(seed)
    trained = []
    for _ in range(starts):
        tables = random.standard_normal((trellis.step_weights, 2, 16)) * [[[0.9], [0.45]]] * _DEVIATION
        error = 0.0
        for _ in range(FIRST_ROUNDS):
            tables, error = _improve(tables, _weights(random, FIRST_SHAPE, trellis), trellis)
        trained.append((error, tables))
    tables = min(trained, key=lambda one: one[0])[1]
    for _ in range(LAST_ROUNDS):
        tables, _ = _improve(tables, _weights(random, LAST_SHAPE, trellis), trellis)
    return _round(tables, _weights(random, LAST_SHAPE, trellis), trellis)


def _weights(random: np.random.Generator, shape: tuple[int, int], trellis: Trellis) -> Floats:
    rows, columns = shape
    values = random.standard_normal((rows, trellis.padded(columns))) * _DEVIATION
    return values.astype(np.float32)


def _paths(tables: Doubles, weights: Floats, trellis: Trellis) -> Bytes:
    """The windows of the cheapest paths, `(rows, codes)`."""
    levels = Levels.of(window_values(tables, trellis), trellis)
    ones = np.ones((len(weights), weights.shape[1] // GROUP_COLUMNS), np.float32)
    gains = ones * np.float32(levels.dearest / 2**14)
    codes = NativeTrellisSearch().search(levels, weights, ones, gains, np.ones(weights.shape[1], np.float32))
    return stream_windows(codes, trellis)


def _improve(tables: Doubles, weights: Floats, trellis: Trellis) -> tuple[Doubles, float]:
    """The tables of least squared error for the paths that are cheapest with these, and the error before."""
    windows = _paths(tables, weights, trellis).reshape(-1)
    by_step = weights.reshape(len(weights), -1, trellis.step_weights, CHAINS).transpose(2, 0, 1, 3)
    counts = np.bincount(windows, minlength=1 << trellis.window_bits).astype(np.float64)
    numbers = np.arange(len(counts))
    last, before = numbers & 15, numbers >> trellis.step_bits * trellis.lag
    design = np.zeros((len(counts), 32))
    design[numbers, last ^ before] += 1
    design[numbers, 16 + before] += 1
    better, squares = tables.copy(), 0.0
    old = window_values(tables, trellis)
    for v in range(trellis.step_weights):
        own = by_step[v].reshape(-1).astype(np.float64)
        squares += float(np.square(own - old[windows, v]).sum())
        sums = np.bincount(windows, weights=own, minlength=len(counts))
        # The two tables have one number too many: of all solutions the smallest is taken.
        found = np.linalg.lstsq(design * np.sqrt(counts)[:, None], sums / np.sqrt(np.maximum(counts, 1)), rcond=1e-9)[0]
        better[v] = found.reshape(2, 16)
    return better, float(np.sqrt(squares / np.square(weights, dtype=np.float64).sum()))


def _round(tables: Doubles, weights: Floats, trellis: Trellis) -> tuple[Values, float, float]:
    """The best of tables rounded at several scales, all of whose values fit."""
    largest = np.abs(tables[:, 0, :, None] + tables[:, 1, None, :]).max()
    offers = []
    for fraction in _FRACTIONS:
        unit = LARGEST_VALUE * fraction / largest
        rounded = np.rint(tables * unit)
        if np.abs(rounded[:, 0, :, None] + rounded[:, 1, None, :]).max() > LARGEST_VALUE:
            continue
        windows = _paths(rounded / unit, weights, trellis)
        values = window_values(rounded / unit, trellis)[windows]
        by_step = weights.reshape(len(weights), -1, trellis.step_weights, CHAINS).transpose(0, 1, 3, 2)
        error = by_step - values.reshape(by_step.shape)
        offers.append((float(np.sqrt(np.square(error).mean() / np.square(weights).mean())), unit, rounded))
    least, unit, rounded = min(offers, key=lambda one: one[0])
    return rounded.astype(np.int8), unit * _DEVIATION, least


def main() -> None:
    """Train the tables of the format that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("format", choices=TRELLISES)
    parser.add_argument("seed", type=int, nargs="?", default=1)
    options = parser.parse_args()
    tables, deviation, error = train(TRELLISES[options.format], options.seed)
    print(f"{options.format}: deviation {deviation:.1f}, relative error {error:.4f}")
    for numbers in tables.reshape(-1, 16).tolist():
        print(f"    {tuple(numbers)},")


if __name__ == "__main__":
    main()
