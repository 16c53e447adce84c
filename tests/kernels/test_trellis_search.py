"""The search for codes: no cheaper path exists, and all implementations find the same one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgemoe.kernels.native.library import available_isas
from edgemoe.kernels.native.trellis import NativeTrellisSearch
from edgemoe.kernels.trellis import CHAINS, GROUP_COLUMNS, TRELLISES, decode, stream_windows, window_values
from edgemoe.kernels.trellis_search import FedColumns, Levels, feed_back, search
from edgemoe.kernels.trellis_tables import NORMAL_TABLES

every_trellis = pytest.mark.parametrize("name", TRELLISES)


class Case:
    """Weights in steps of one, with what the search needs to know of them."""

    def __init__(self, name: str, rows: int, columns: int, spread: float = 1.0) -> None:
        """`spread` is the standard deviation of the logarithm of penalties."""
        self.trellis = TRELLISES[name]
        self.tables = NORMAL_TABLES[name]
        self.levels = Levels.of(window_values(self.tables, self.trellis), self.trellis)
        random = np.random.default_rng(rows + columns)
        columns = self.trellis.padded(columns)
        groups = (rows, columns // GROUP_COLUMNS)
        scales = np.exp(random.standard_normal(groups)).astype(np.float32)
        self.weights = 10 * random.standard_normal((rows, columns)).astype(np.float32)
        self.weights *= np.repeat(scales, GROUP_COLUMNS, axis=1)
        self.inverses = 1 / scales
        gains = np.exp(spread * random.standard_normal(groups)) * self.levels.dearest / 2**14
        self.gains = gains.astype(np.float32)
        self.importance = np.exp(spread * random.standard_normal(columns)).astype(np.float32)

    @property
    def arguments(self) -> tuple[Levels, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return self.levels, self.weights, self.inverses, self.gains, self.importance

    def costs(self, codes: np.ndarray) -> np.ndarray:
        """The cost of each weight's error, `(rows, columns)`."""
        found = decode(codes, self.tables, self.trellis)
        targets = self.weights * np.repeat(self.inverses, GROUP_COLUMNS, axis=1).astype(np.float64)
        return np.repeat(self.gains, GROUP_COLUMNS, axis=1) * self.importance * (found - targets) ** 2


@every_trellis
def test_every_implementation_finds_the_same_codes(name: str) -> None:
    case = Case(name, 19, 150, spread=2)
    case.weights[3] = 0
    case.weights[4] *= 1e6  # beyond all levels
    case.weights[5, ::7] = 1e30
    case.gains[6] = 0
    case.gains[7] *= 1e6  # as dear as can be
    case.importance[40:60] = 0
    expected = search(*case.arguments)
    for isa in available_isas():
        assert np.array_equal(NativeTrellisSearch(isa).search(*case.arguments), expected), isa


@pytest.mark.parametrize("name", ["n2", "n1"])
def test_no_path_is_cheaper(name: str) -> None:
    """Every path of eight steps is tried, in both chains of two rows that are compared."""
    case = Case(name, 2, 32)
    found = NativeTrellisSearch().search(*case.arguments)
    paths = np.array(list(itertools.product(range(1 << case.trellis.step_bits), repeat=8)), np.uint8)
    codes = np.repeat(paths, CHAINS, axis=1)
    values = decode(codes, case.tables, case.trellis).astype(np.float64)
    own = case.costs(found)
    for row, chain in ((0, 1), (1, 3)):
        targets = case.weights[row, chain::CHAINS] * case.inverses[row, 0]
        penalties = case.gains[row, 0] * case.importance[chain::CHAINS]
        costs = ((values[:, chain::CHAINS] - targets) ** 2 * penalties).sum(axis=1)
        assert own[row, chain::CHAINS].sum() <= costs.min() + 8  # each cost is rounded down


@every_trellis
def test_no_other_code_makes_a_path_cheaper(name: str) -> None:
    case = Case(name, 3, 128)
    codes = NativeTrellisSearch().search(*case.arguments)
    least = case.costs(codes).sum(axis=1)
    random = np.random.default_rng(9)
    for place in random.integers(0, codes.shape[1], 10):
        for code in range(1 << case.trellis.step_bits):
            changed = codes.copy()
            changed[:, place] = code
            # Costs are rounded down, and none counts as more than the dearest.
            assert (case.costs(changed).sum(axis=1) >= least - 256).all()


@every_trellis
def test_the_numbers_of_levels_are_those_of_windows(name: str) -> None:
    trellis = TRELLISES[name]
    values = window_values(NORMAL_TABLES[name], trellis)
    levels = Levels.of(values, trellis)
    assert (np.diff(levels.levels, axis=1) >= 0).all()
    for v in range(trellis.step_weights):
        assert np.array_equal(levels.levels[v][levels.numbers[:, v]], values[:, v])


@every_trellis
def test_every_implementation_feeds_errors_back_alike(name: str) -> None:
    trellis = TRELLISES[name]
    case, random = Case(name, 17, 4 * trellis.block_columns), np.random.default_rng(3)
    columns, unit, kept = case.weights.shape[1], trellis.unit_columns, 2 * trellis.block_columns
    states = random.integers(0, 1 << trellis.state_bits, (17, CHAINS)).astype(np.uint8)
    wide = random.standard_normal((columns, columns + 5)).astype(np.float32) / 10
    factors = random.standard_normal((kept // unit, unit, unit)).astype(np.float32)
    numbers = (case.inverses, case.gains, (1 / case.inverses).astype(np.float32), case.importance)
    fed = FedColumns(case.weights, *numbers, factors, wide[:kept, :columns], trellis.block_columns)
    after = states.copy()
    codes, rests = feed_back(case.levels, fed, after)
    assert not np.array_equal(codes, search(*case.arguments, states)[:, : codes.shape[1]])
    for isa in available_isas():
        own = states.copy()
        found = NativeTrellisSearch(isa).feed_back(case.levels, fed, own)
        assert np.array_equal(found[0], codes), isa
        assert np.array_equal(found[1], rests), isa
        assert np.array_equal(own, after), isa


@every_trellis
def test_a_path_cut_in_two_costs_what_it_would_as_one(name: str) -> None:
    """The codes of a second half, from the states that the first half of the cheapest path ends in, are its own."""
    case = Case(name, 9, 2 * TRELLISES[name].block_columns)
    levels, weights, inverses, gains, importance = case.arguments
    whole = search(*case.arguments)
    half, groups, codes = weights.shape[1] // 2, inverses.shape[1] // 2, whole.shape[1] // 2
    windows = stream_windows(whole, case.trellis)[:, codes - CHAINS : codes]
    starts = windows & np.uint8((1 << case.trellis.state_bits) - 1)
    rest = (weights[:, half:], inverses[:, groups:], gains[:, groups:], importance[half:])
    assert np.array_equal(search(levels, *rest, starts), whole[:, codes:])
