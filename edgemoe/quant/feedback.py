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

from dataclasses import dataclass

import numpy as np

from edgemoe.errors import EdgemoeError
from edgemoe.kernels.panel_sizes import GROUP_COLUMNS
from edgemoe.kernels.trellis import CHAINS, SCALE_COLUMNS, Bytes, Trellis, Values, window_values
from edgemoe.kernels.trellis_search import FedColumns, Levels
from edgemoe.quant.factors import Doubles, Floats, lower_factor, lower_inverse
from edgemoe.quant.trellis import (
    PASSES,
    Halves,
    Searches,
    TrellisRows,
    implementation,
    mean_one,
    path_gains,
    quantise_rows,
)

_UNUSED = 1e-6
"""The second moment of columns that no input ever uses, in those of the mean column."""

_BLOCKS_AHEAD = {"n3": 2, "n2": 2, "n1": 3}
"""How many blocks a search goes beyond the one whose codes are kept, by format; else 1.

With as many, independent inputs have 1 to 4 % more error than by searches of whole rows; with one, n2 and n1 have 7 %.
"""
_PASSES = 1
"""Searches for a path before scales are chosen: a second one changes the error by less than a hundredth."""
_ROWS_AT_ONCE = 256
"""Rows whose targets for 256 columns stay in a processor's cache."""


@dataclass(frozen=True, eq=False)
class Feedback:
    """How errors of the columns of a matrix feed back, in one format, by the factor `M` of its inputs' second moments.

    `M` is of the columns unit by unit: those of a block's first chain, of its second, and so on, block by block.
    """

    trellis: Trellis
    factors: Floats
    """The parts of `M` for the columns of one unit, `(units, columns of a unit, as many)`."""
    inverse: Floats
    """The inverse of `M`, with its rows and columns in the order of the matrix, `(padded columns, padded columns)`."""
    importance: Floats
    """The costs of squared errors of columns, with those of earlier units made up for."""

    @classmethod
    def of(cls, moments: Doubles, trellis: Trellis, damping: float) -> Feedback:
        """The feedback for second moments `(columns, columns)`, to whose diagonal `damping` times its mean is added.

        More is added where they are still singular. Raises EdgemoeError for moments that are none.
        """
        columns = len(moments)
        if moments.shape != (columns, columns) or not np.isfinite(moments).all():
            raise EdgemoeError("the second moments of inputs: expected a square matrix of numbers, found others.")
        mean = float(np.trace(moments)) / columns
        padded, unit = trellis.padded(columns), trellis.unit_columns
        whole = np.zeros((padded, padded))
        whole[:columns, :columns] = moments if mean > 0 else np.eye(columns)
        diagonal = np.einsum("ii->i", whole)
        diagonal[:columns] += damping * (mean if mean > 0 else 1)
        diagonal[columns:] = _UNUSED * diagonal[:columns].mean()
        # Last column first: the lower triangular factor is the upper one of columns in their order, turned round.
        shape = (-1, unit, CHAINS)
        order = np.arange(padded).reshape(shape).transpose(0, 2, 1).reshape(-1)[::-1]
        factor = lower_factor(whole[order[:, None], order])
        del whole
        units = padded // unit
        parts = factor.reshape(units, unit, units, unit)[np.arange(units), :, np.arange(units)][::-1, ::-1, ::-1]
        importance = np.empty(padded, np.float32)
        importance[order[::-1]] = np.square(parts).sum(axis=2).reshape(-1)
        inverse = np.empty((padded, padded), np.float32)
        inverse[order[:, None], order] = lower_inverse(factor.astype(np.float32))
        return cls(trellis, np.ascontiguousarray(parts, np.float32), inverse, importance)


def quantise_with_feedback(
    weights: Floats,
    tables: Values,
    deviation: float,
    feedback: Feedback,
    searches: Searches | None = None,
) -> TrellisRows:
    """Quantise finite weights `(rows, columns)` as `quantise_rows` does, with feedback of errors."""
    found = searches or implementation()
    parts = [
        _Rows(weights[first : first + _ROWS_AT_ONCE], tables, deviation, feedback, found).quantised()
        for first in range(0, len(weights), _ROWS_AT_ONCE)
    ]
    codes, scales, factors = zip(*parts, strict=True)
    return TrellisRows(
        np.concatenate(codes), np.concatenate(scales), None if factors[0] is None else np.concatenate(factors)
    )


class _Rows:
    """Rows that are being quantised."""

    def __init__(
        self, weights: Floats, tables: Values, deviation: float, feedback: Feedback, searches: Searches
    ) -> None:
        self._feedback = feedback
        self._trellis = trellis = feedback.trellis
        self._tables, self._deviation, self._searches = tables, deviation, searches
        rows, self._columns = weights.shape
        self._targets = np.zeros((rows, len(feedback.inverse)), np.float32)
        """The weights, with what makes up for the errors of columns that are done."""
        self._targets[:, : self._columns] = weights
        self._levels = Levels.of(window_values(tables, trellis), trellis)
        self._states = np.zeros((rows, CHAINS), np.uint8)

    def quantised(self) -> TrellisRows:
        columns, whole = self._columns, None
        if not self._trellis.has_factors:
            whole = self._quantised(self._targets[:, :columns], slice(columns)).scales
        windows = [self._window(first, whole) for first in range(0, self._targets.shape[1], SCALE_COLUMNS)]
        codes = np.concatenate([window.codes for window in windows], axis=1)
        if whole is not None:
            return TrellisRows(codes, whole, None)
        factors = np.concatenate([window.factors for window in windows if window.factors is not None], axis=1)
        return TrellisRows(codes, np.concatenate([window.scales for window in windows], axis=1), factors)

    def _quantised(self, targets: Floats, columns: slice, passes: int = PASSES) -> TrellisRows:
        importance = self._feedback.importance[columns]
        search = self._searches.search
        return quantise_rows(targets, self._trellis, self._tables, self._deviation, importance, search, passes)

    def _window(self, first: int, row_scales: Halves | None) -> TrellisRows:
        """Quantise 256 columns, or the last ones."""
        trellis, feedback, targets = self._trellis, self._feedback, self._targets
        end = min(first + SCALE_COLUMNS, targets.shape[1])
        ahead = _BLOCKS_AHEAD.get(trellis.name, 1) * trellis.block_columns
        behind = min(end + ahead, targets.shape[1])
        scales, factors, steps = self._scales(first, end, behind, row_scales)
        importance = mean_one(feedback.importance[first:behind], behind - first)
        by_group = importance.reshape(-1, GROUP_COLUMNS)
        gains = path_gains(steps, by_group.sum(axis=1).astype(float), by_group.max(axis=1).astype(float), self._levels)
        fed = FedColumns(
            targets[:, first:behind],
            np.divide(1, steps, out=np.zeros_like(steps), where=steps > 0).astype(np.float32),
            gains,
            steps.astype(np.float32),
            importance,
            feedback.factors[first // trellis.unit_columns : end // trellis.unit_columns],
            feedback.inverse[first:end, first:behind],
            ahead,
        )
        codes, rests = self._searches.feed_back(self._levels, fed, self._states)
        targets[:, end:] -= rests @ feedback.inverse[first:end, end:]
        return TrellisRows(codes, scales, factors)

    def _scales(
        self, first: int, end: int, behind: int, row_scales: Halves | None
    ) -> tuple[Halves, Bytes | None, Doubles]:
        """The scales and factors of columns up to `end`, and the steps of groups, those of later blocks about."""
        groups = (behind - first) // GROUP_COLUMNS
        if row_scales is not None:
            own = np.where(np.isfinite(row_scales), row_scales, np.float16(0)).astype(np.float64)
            return row_scales, None, np.repeat(own, groups, axis=1)
        columns = slice(first, min(end, self._columns))
        _, scales, factors = self._quantised(self._targets[:, columns], columns, _PASSES)
        assert factors is not None
        known = factors.shape[1]
        later = self._targets[:, first + known * GROUP_COLUMNS : behind].reshape(len(factors), -1, GROUP_COLUMNS)
        steps = np.empty((len(factors), groups))
        steps[:, :known] = np.where(np.isfinite(scales), scales, np.float16(0)).astype(np.float64) * (factors + 1.0)
        steps[:, known:] = np.sqrt(np.square(later, dtype=np.float64).mean(axis=2)) / self._deviation
        return scales, factors, steps
