"""The router's choices in an answer, folded to a grid that fits a screen.

Letters: `L` layers with routed experts, `E` experts, `R` rows and `C` columns of the grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class HeatMap:
    """A grid of layers down and experts across, neighbours folded together where there are too many.

    heat: how much each cell was used, `(R, C)`, 0 to 1, where 1 is the most used cell of its row.
    resident: the share of each cell's experts that is in memory now, `(R, C)`, 0 to 1.
    """

    heat: npt.NDArray[np.float64]
    resident: npt.NDArray[np.float64]
    layers: int
    experts: int


def fold(
    uses: npt.NDArray[np.int64], resident: npt.NDArray[np.bool_], most_rows: int, most_columns: int
) -> HeatMap | None:
    """The map of an answer's expert uses; None if no expert was used. Shapes: both `(layers, E)`."""
    import numpy as np

    routed = uses.sum(axis=1) > 0
    if not routed.any():
        return None
    uses, resident = uses[routed], resident[routed]
    rows, columns = min(len(uses), most_rows), min(uses.shape[1], most_columns)
    row_starts = [row * len(uses) // rows for row in range(rows)]
    column_starts = [column * uses.shape[1] // columns for column in range(columns)]

    def folded(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
        by_row = np.add.reduceat(values.astype(np.float64), row_starts, axis=0)
        return np.asarray(np.add.reduceat(by_row, column_starts, axis=1))

    counts, members = folded(uses), folded(np.ones_like(uses))
    heat = counts / members
    heat /= heat.max(axis=1, keepdims=True)
    return HeatMap(heat, folded(resident) / members, len(uses), uses.shape[1])
