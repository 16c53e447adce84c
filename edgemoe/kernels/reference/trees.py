"""The reference of the operation that sends rows down binary trees."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.kernels import tree_operations as tr
from edgemoe.kernels.definition import Sizes
from edgemoe.kernels.formats import Matrix
from edgemoe.kernels.operations import Floats
from edgemoe.kernels.reference.common import Doubles, single
from edgemoe.kernels.reference.products import activate
from edgemoe.kernels.stepwise import StepwiseBackend, means


def whole_rows(matrix: Matrix, width: int, wanted: npt.NDArray[np.int64]) -> Doubles:
    """The rows of these numbers, `(..., width)`, of a matrix that has its rows whole."""
    stored = matrix.data.view(np.float16 if matrix.format.name == "f16" else np.float32)
    found: Doubles = stored[wanted[..., None] * width + np.arange(width)].astype(np.float64)
    return found


def tree_ffn(o: tr.TreeFfn, values: Floats) -> Floats:
    """The sum of what the paths of rows `(T, D)` add: see `tr.TreeFfn`. The numbers of nodes are rounded to float32."""
    exact, width, per_tree = values.astype(np.float64), values.shape[1], o.nodes_of_tree
    total = np.zeros_like(exact)
    for tree in range(o.trees):
        place = np.zeros(len(values), np.int64)
        for _ in range(o.depth + (not o.leaf_width)):
            node = tree * per_tree + place
            # A stack of dots: in one product a row's rounding depends on the number of rows.
            dots = np.matmul(whole_rows(o.nodes, width, node)[:, None], exact[:, :, None])[:, 0, 0]
            numbers = single(dots) + o.node_bias[node]
            if not o.leaf_width:
                total += _activated(o, numbers)[:, None] * whole_rows(o.out, width, node)
            place = 2 * place + 1 + (numbers >= 0 if o.leaf_width else numbers > 0)
        if o.leaf_width:
            leaf = (tree << o.depth) + place - per_tree
            for row in range(len(values)):
                total[row] += _leaf(o, int(leaf[row]), exact[row])
    return single(total)


def _activated(o: tr.TreeFfn, numbers: Floats) -> Doubles:
    return activate(numbers, np.ones_like(numbers), o.activation).astype(np.float64)


def _leaf(o: tr.TreeFfn, leaf: int, row: Doubles) -> Doubles:
    """The rows that a leaf adds to the output of a row, `(D,)`."""
    neurons, width = np.arange(leaf * o.leaf_width, (leaf + 1) * o.leaf_width), len(row)
    assert o.leaf_in is not None
    numbers = single(whole_rows(o.leaf_in, width, neurons) @ row)
    if o.leaf_bias is not None:
        numbers = numbers + o.leaf_bias[neurons]
    added = _activated(o, numbers) @ whole_rows(o.out, width, neurons)
    return added if o.output_bias is None else added + o.output_bias.reshape(-1, width)[leaf]


def _scratch(kernels: StepwiseBackend, o: tr.TreeFfn, sizes: Sizes) -> int:
    """Rows of nodes and of a leaf, with the places of their numbers."""
    return sizes.letters["D"] * (8 * 8 * sizes.rows + 5 * 8 * o.leaf_width)


@means(tr.TreeFfn, scratch=_scratch)
def _tree_ffn(kernels: Any, o: tr.TreeFfn, tokens: int) -> None:
    o.output[:tokens] = tree_ffn(o, o.input[:tokens])
