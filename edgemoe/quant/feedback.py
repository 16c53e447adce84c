"""Quantises weights to trellis formats with error feedback: later columns make up for the errors of earlier ones.

What counts is the error of a matrix's results, `e H e^T` for the errors `e` of a row and the second moments `H` of its
inputs. With `H = M M^T`, `M` upper triangular, that is the squared length of `e M`, whose entry for a column depends on
the errors of this column and of those before it: each column is chosen so that it cancels what those left (GPTQ:
Frantar et al. 2022, arXiv 2210.17323; as a factor of `H` itself: QuIP, Chee et al. 2023, arXiv 2307.13304).

In a trellis a column has no choice of its own, so the unit is what a chain has of a block: 8 steps. Its path is
searched for the targets that cancel best, and into the next blocks, whose steps are then searched again. Within a
unit errors do not feed back, but count by what they cost there. Scales are chosen for 256 columns at a time, for their
targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgemoe.errors import EdgemoeError
from edgemoe.kernels.panel_sizes import GROUP_COLUMNS
from edgemoe.kernels.trellis import BLOCK_STEPS, CHAINS, SCALE_COLUMNS, Bytes, Trellis, Values, window_values
from edgemoe.kernels.trellis_search import Levels
from edgemoe.quant.trellis import (
    Floats,
    Halves,
    Search,
    TrellisRows,
    implementation,
    mean_one,
    path_gains,
    quantise_rows,
)

Doubles = npt.NDArray[np.float64]

_UNUSED = 1e-6
"""The second moment of columns that no input ever uses, in those of the mean column."""

_BLOCKS_AHEAD = {"n3": 2, "n2": 2, "n1": 3}
"""How many blocks a search goes beyond the one whose codes are kept, by format; else 1.

With as many, independent inputs have 1 to 4 % more error than by searches of whole rows; with one, n2 and n1 have 7 %.
"""
_PASSES = 1
"""Searches for a path before scales are chosen: a second one changes the error by less than a hundredth."""
_SMALLEST_HALF = 16
_ROWS_AT_ONCE = 256
"""Rows whose targets for 256 columns stay in a processor's cache."""


@dataclass(frozen=True, eq=False)
class Feedback:
    """How errors of the columns of a matrix feed back, in one format: the factor `M` of its inputs' second moments."""

    trellis: Trellis
    order: npt.NDArray[np.int64]
    """Columns unit by unit: those of a block's first chain, of its second, and so on, block by block."""
    factor: Floats
    """`M`, in this order."""
    importance: Floats
    """The costs of squared errors of columns, with those of earlier units made up for, in the order of the matrix."""
    inverses: tuple[Floats, ...]
    """Inverses of the parts of `M` for 256 columns and the blocks after them that a search goes through."""

    @classmethod
    def of(cls, moments: Doubles, trellis: Trellis, damping: float) -> Feedback:
        """The feedback for second moments `(columns, columns)`, to whose diagonal `damping` times its mean is added.

        More is added where they are still singular. Raises EdgemoeError for moments that are none.
        """
        columns = len(moments)
        if moments.shape != (columns, columns) or not np.isfinite(moments).all():
            raise EdgemoeError("the second moments of inputs: expected a square matrix of numbers, found others.")
        mean = float(np.trace(moments)) / columns
        padded = trellis.padded(columns)
        whole = np.zeros((padded, padded))
        whole[:columns, :columns] = moments if mean > 0 else np.eye(columns)
        diagonal = np.einsum("ii->i", whole)
        diagonal[:columns] += damping * (mean if mean > 0 else 1)
        diagonal[columns:] = _UNUSED * diagonal[:columns].mean()
        by_block = np.arange(padded).reshape(-1, BLOCK_STEPS * trellis.step_weights, CHAINS)
        order = np.ascontiguousarray(by_block.transpose(0, 2, 1)).reshape(-1)
        factor = _upper_factor(np.ascontiguousarray(whole[np.ix_(order, order)]))
        unit = BLOCK_STEPS * trellis.step_weights
        importance = np.empty(padded)
        for first in range(0, padded, unit):
            own = factor[first : first + unit, first : first + unit]
            importance[order[first : first + unit]] = np.square(own).sum(axis=1)
        windows = (factor[first:end, first:end] for first, _, end in _windows(padded, trellis))
        inverses = tuple(_upper_inverse(window).astype(np.float32) for window in windows)
        return cls(trellis, order, factor.astype(np.float32), importance.astype(np.float32), inverses)


def _ahead(trellis: Trellis) -> int:
    """The columns that a search goes beyond the block whose codes are kept."""
    return _BLOCKS_AHEAD.get(trellis.name, 1) * trellis.block_columns


def _windows(columns: int, trellis: Trellis) -> Iterator[tuple[int, int, int]]:
    """Yield the first of each 256 columns, their end, and the end of what searches for them go through."""
    for first in range(0, columns, SCALE_COLUMNS):
        end = min(first + SCALE_COLUMNS, columns)
        yield first, end, min(end + _ahead(trellis), columns)


def _upper_inverse(matrix: Doubles) -> Doubles:
    """The inverse of an upper triangular matrix, half by half."""
    half = len(matrix) // 2
    if half < _SMALLEST_HALF:
        return np.linalg.inv(matrix).astype(np.float64)
    inverse = np.zeros_like(matrix)
    inverse[:half, :half], inverse[half:, half:] = (
        _upper_inverse(part) for part in (matrix[:half, :half], matrix[half:, half:])
    )
    inverse[:half, half:] = -inverse[:half, :half] @ matrix[:half, half:] @ inverse[half:, half:]
    return inverse


def _upper_factor(moments: Doubles) -> Doubles:
    """The upper triangular `M` with `M M^T` equal to the moments, or to them and a multiple of the identity."""
    mean = float(np.trace(moments)) / len(moments)
    added = 0.0
    while True:
        try:
            turned = np.linalg.cholesky(moments[::-1, ::-1] + added * mean * np.eye(len(moments)))
        except np.linalg.LinAlgError:
            added = max(1e-6, 10 * added)
            continue
        return np.ascontiguousarray(turned[::-1, ::-1])


def quantise_with_feedback(
    weights: Floats,
    tables: Values,
    deviation: float,
    feedback: Feedback,
    search: Search | None = None,
) -> TrellisRows:
    """Quantise finite weights `(rows, columns)` as `quantise_rows` does, with feedback of errors."""
    parts = [
        _Rows(
            weights[first : first + _ROWS_AT_ONCE], tables, deviation, feedback, search or implementation()
        ).quantised()
        for first in range(0, len(weights), _ROWS_AT_ONCE)
    ]
    codes, scales, factors = zip(*parts, strict=True)
    return TrellisRows(
        np.concatenate(codes), np.concatenate(scales), None if factors[0] is None else np.concatenate(factors)
    )


class _Rows:
    """Rows that are being quantised."""

    def __init__(self, weights: Floats, tables: Values, deviation: float, feedback: Feedback, search: Search) -> None:
        self._feedback = feedback
        self._trellis = trellis = feedback.trellis
        self._tables, self._deviation, self._search = tables, deviation, search
        rows, self._columns = weights.shape
        padded = len(feedback.order)
        self._weights = np.zeros((rows, padded), np.float32)
        self._weights[:, : self._columns] = weights
        self._errors = np.zeros((rows, padded), np.float32)
        """Errors of columns that are done, in the order of units."""
        self._values = window_values(tables, trellis).astype(np.float32)
        self._levels = Levels.of(window_values(tables, trellis), trellis)
        self._states = np.zeros((rows, CHAINS), np.uint8)
        self._codes = np.empty((rows, trellis.code_count(self._columns)), np.uint8)
        self._unit = BLOCK_STEPS * trellis.step_weights

    def quantised(self) -> TrellisRows:
        trellis, columns = self._trellis, self._columns
        whole = None
        if not trellis.has_factors:
            own = self._feedback.importance[:columns]
            whole = quantise_rows(self._weights[:, :columns], trellis, self._tables, self._deviation, own, self._search)
        scales: list[Halves] = []
        factors: list[Bytes] = []
        for number in range(len(self._feedback.inverses)):
            found = self._window(number, None if whole is None else whole.scales)
            scales.append(found[0])
            if found[1] is not None:
                factors.append(found[1])
        if whole is not None:
            return TrellisRows(self._codes, whole.scales, None)
        count = trellis.factor_count(columns)
        return TrellisRows(self._codes, np.concatenate(scales, 1), np.concatenate(factors, 1)[:, :count].copy())

    def _window(self, number: int, row_scales: Halves | None) -> tuple[Halves, Bytes | None]:
        """Quantise 256 columns, or the last ones; returns their scales and factors."""
        trellis, order, inverse = self._trellis, self._feedback.order, self._feedback.inverses[number]
        first = number * SCALE_COLUMNS
        end, ahead = min(first + SCALE_COLUMNS, len(order)), first + len(inverse)
        factor = self._feedback.factor[first:ahead, first:ahead]
        targets = self._weights[:, order[first:ahead]]
        if first:
            targets += (self._errors[:, :first] @ self._feedback.factor[:first, first:ahead]) @ inverse
        natural = np.empty_like(targets)
        natural[:, order[first:ahead] - first] = targets
        scales, factors, steps = self._scales(natural, first, end, row_scales)
        importance = mean_one(self._feedback.importance[first:ahead], ahead - first)
        by_group = importance.reshape(-1, GROUP_COLUMNS)
        gains = path_gains(steps, by_group.sum(axis=1).astype(float), by_group.max(axis=1).astype(float), self._levels)
        inverses = np.divide(1, steps, out=np.zeros_like(steps), where=steps > 0).astype(np.float32)
        steps = steps.astype(np.float32)
        for block in range(0, end - first, trellis.block_columns):
            behind = min(block + trellis.block_columns + _ahead(trellis), ahead - first)
            columns, groups = slice(block, behind), slice(block // GROUP_COLUMNS, behind // GROUP_COLUMNS)
            lefts = []
            for chain in range(CHAINS):
                here = slice(block + chain * self._unit, block + (chain + 1) * self._unit)
                codes = self._path(
                    targets[:, columns], chain, inverses[:, groups], gains[:, groups], importance[columns]
                )
                values = self._take(codes, (first + block) // trellis.step_weights, chain)
                own = order[first + here.start : first + here.stop] - first
                values *= steps[:, own // GROUP_COLUMNS]
                lefts.append((targets[:, here] - values) @ factor[here, here])
                targets[:, here.stop : behind] -= lefts[-1] @ inverse[here, here.stop : behind]
                self._errors[:, first + here.start : first + here.stop] = self._weights[:, own + first] - values
            done = slice(block, block + trellis.block_columns)
            targets[:, behind:] -= np.concatenate(lefts, axis=1) @ inverse[done, behind:]
        return scales, factors

    def _scales(
        self, targets: Floats, first: int, end: int, row_scales: Halves | None
    ) -> tuple[Halves, Bytes | None, Doubles]:
        """The scales and factors of columns up to `end`, and the steps of groups, those of later blocks about."""
        groups = targets.shape[1] // GROUP_COLUMNS
        if row_scales is not None:
            own = np.where(np.isfinite(row_scales), row_scales, np.float16(0)).astype(np.float64)
            return row_scales, None, np.repeat(own, groups, axis=1)
        count = min(end, self._columns) - first
        importance = self._feedback.importance[first : first + count]
        _, scales, factors = quantise_rows(
            targets[:, :count], self._trellis, self._tables, self._deviation, importance, self._search, _PASSES
        )
        assert factors is not None
        steps = np.sqrt(np.square(targets, dtype=np.float64).reshape(len(targets), groups, -1).mean(axis=2))
        steps /= self._deviation
        known = factors.shape[1]
        steps[:, :known] = np.where(np.isfinite(scales), scales, np.float16(0)).astype(np.float64) * (factors + 1.0)
        return scales, factors, steps

    def _path(self, targets: Floats, chain: int, inverses: Floats, gains: Floats, importance: Floats) -> Bytes:
        """The codes `(rows, 8)` of a chain in a block: of the cheapest path through this block and those after it."""
        block, unit = self._trellis.block_columns, self._unit
        weights = np.zeros(targets.shape, np.float32)
        for start in range(0, targets.shape[1], block):
            own = start + chain * unit
            weights[:, start + chain : start + block : CHAINS] = targets[:, own : own + unit]
        found = self._search(self._levels, weights, inverses, gains, importance, self._states, chain)
        return found[:, chain : BLOCK_STEPS * CHAINS : CHAINS]

    def _take(self, codes: Bytes, first_code: int, chain: int) -> Floats:
        """Append the codes of a unit to a chain; returns its values `(rows, columns of the unit)`."""
        trellis = self._trellis
        shifts = np.arange(BLOCK_STEPS - 1, -1, -1) * trellis.step_bits
        stream = self._states[:, chain].astype(np.int64) << BLOCK_STEPS * trellis.step_bits
        stream |= (codes.astype(np.int64) << shifts).sum(axis=1)
        windows = stream[:, None] >> shifts & (1 << trellis.window_bits) - 1
        self._states[:, chain] = stream & (1 << trellis.state_bits) - 1
        self._codes[:, first_code + chain : first_code + BLOCK_STEPS * CHAINS : CHAINS] = codes
        values: Floats = self._values[windows].reshape(len(codes), -1)
        return values
