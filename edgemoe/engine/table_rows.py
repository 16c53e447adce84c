"""Rows of tables on disk, which tokens have by their ids and those of the tokens before: they are read before a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgemoe.experts.disk_rows import TABLE_BATCH, DiskRows
from edgemoe.kernels.backend import Program
from edgemoe.kernels.formats import PANEL_ROWS
from edgemoe.kernels.operations import Floats
from edgemoe.model.graph import RowTable
from edgemoe.store.panels import Panels
from edgemoe.store.reader import Store


class TableRows:
    """The rows that the tokens of a run have of one table."""

    def __init__(self, table: RowTable, rows: DiskRows, output: Floats) -> None:
        """`output` receives the rows of each token, one after the other, `(T, width)`."""
        self._rule = table.rule
        self.rows = rows
        self._output = output
        self._numbers = np.zeros((len(output), table.rule.count), np.int64)

    def name(self, row: int, token_ids: npt.NDArray[np.int64], ids: Sequence[int], end: int) -> None:
        """Note which rows the tokens have that stand in a run from `row` on, after the first `end` of `ids`."""
        before = np.array(ids[max(0, end - self._rule.look_back) : end], np.int64)
        self._numbers[row : row + len(token_ids)] = self._rule.of(token_ids, before)

    def read(self, tokens: int, program: Program) -> None:
        """Read the rows of a run's tokens. Raises ReadError."""
        numbers = self._numbers[:tokens].reshape(-1)
        self.rows.write(numbers, program, self._output[:tokens].reshape(len(numbers), -1))


def open_tables(tables: Sequence[tuple[RowTable, Floats]], store: Store, direct: bool) -> list[TableRows]:
    """Open tables of a store for reading, each with the array for its rows. Raises StoreError, ReadError, BudgetError.

    The caller closes the `rows` of each.
    """
    if not tables:
        return []
    checksums = store.read_table_checksums()
    of_part, first = {}, 0
    for tensor in store.tables:
        panels = Panels(store.dense_path, tensor)
        of_part[tensor.name] = panels, checksums[first : first + panels.count]
        first += panels.count
    opened: list[TableRows] = []
    try:
        for table, output in tables:
            parts = [of_part[name] for name in table.names]
            named = f"Rows of the table of layer {table.layer}, {{}} to {{}}"

            def name(row: int, text: str = named) -> str:
                return text.format(row, row + PANEL_ROWS - 1)

            known = np.concatenate([of_panels for _, of_panels in parts])
            rows = DiskRows([panels for panels, _ in parts], known, direct, TABLE_BATCH, name)
            opened.append(TableRows(table, rows, output))
    except BaseException:
        for one in opened:
            one.rows.close()
        raise
    return opened
