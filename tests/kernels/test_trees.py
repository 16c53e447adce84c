"""Rows that go down trees: every backend against all paths at once, on all instruction sets with the same bits."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemoe.errors import KernelError
from edgemoe.kernels import tree_operations as tr
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.formats import FORMATS, Matrix, whole_rows_shape
from edgemoe.kernels.operations import GELU, RELU, SILU, Activation
from tests.kernels.builders import aligned, aligned_copy, few_examples, numbers, random_matrix, seeds, token_counts

PLAIN_SILU = Activation("silu", gated=False)
ACTIVATIONS = {
    RELU: lambda x: np.maximum(x, 0),
    GELU: lambda x: x * np.vectorize(math.erfc)(-x / math.sqrt(2)) / 2,
    PLAIN_SILU: lambda x: x / (1 + np.exp(-x)),
}
widths = st.sampled_from([1, 7, 8, 16, 33, 64, 200])


def whole(rows: np.ndarray, format_name: str) -> tuple[Matrix, np.ndarray]:
    """A matrix that has these rows whole, and what is left of their numbers in its format."""
    stored = rows.astype(np.float16 if format_name == "f16" else np.float32)
    shape = whole_rows_shape(*rows.shape)
    data = aligned((shape[0] * shape[1] * stored.itemsize,), np.uint8)
    data[: stored.nbytes] = stored.reshape(-1).view(np.uint8)
    return Matrix(data, FORMATS[format_name], *shape), stored.astype(np.float64)


class Trees:
    """Random trees, and a row's output as the sum of all neurons, times 1 where the path leads, times 0 elsewhere."""

    def __init__(self, width: int, depth: int, leaf: int, trees: int, seed: int, **options: Any) -> None:
        fmt, biases = options.get("fmt", "f32"), options.get("biases", True)
        self.random = random = np.random.default_rng(seed)
        self.depth, self.leaf, self.trees, self.width = depth, leaf, trees, width
        per_tree = tr.node_count(depth, leaf)
        nodes, leaves = trees * per_tree, trees * 2**depth
        neurons = leaves * leaf if leaf else nodes

        def matrix(count: int) -> tuple[Matrix, np.ndarray]:
            return whole(random.standard_normal((count, width)) / np.sqrt(width), fmt)

        def vector(count: int) -> np.ndarray:
            return numbers("normal", (count,), random)

        nodes_in, self.nodes = matrix(nodes)
        leaf_in, self.leaf_in = matrix(neurons) if leaf else (None, None)
        out, self.out = matrix(neurons)
        leaf_bias, output_bias = (vector(neurons), vector(leaves * width)) if leaf and biases else (None, None)
        self.activation = options.get("activation", RELU)
        self.operation = tr.TreeFfn(
            *(aligned((1, width), np.float32), nodes_in, vector(nodes), leaf_in, leaf_bias, out, output_bias),
            *(trees, depth, leaf, aligned((1, width), np.float32), self.activation),
        )

    def with_rows(self, tokens: int) -> tr.TreeFfn:
        """The operation on some random rows."""
        rows = numbers("normal", (tokens, self.width), self.random)
        return replace(self.operation, input=rows, output=aligned(rows.shape, np.float32))

    def expected(self, o: tr.TreeFfn) -> tuple[np.ndarray, np.ndarray]:
        """The outputs of rows, and how near to 0 the number of any node on their paths is."""
        act, x = ACTIVATIONS[self.activation], o.input.astype(np.float64)
        logits = (x @ self.nodes.T + o.node_bias).reshape(len(x), self.trees, -1)
        right = logits >= 0
        reached = np.ones((len(x), self.trees, 1), bool)
        margins, shares = np.full(len(x), np.inf), []
        for level in range(self.depth + (not self.leaf)):
            here = slice(2**level - 1, 2 ** (level + 1) - 1)
            margins = np.minimum(margins, np.where(reached, np.abs(logits[:, :, here]), np.inf).min(axis=(1, 2)))
            shares.append(reached)
            sides = [reached & ~right[:, :, here], reached & right[:, :, here]]
            reached = np.stack(sides, axis=3).reshape(len(x), self.trees, -1)
        if not self.leaf:
            hidden = act(logits) * np.concatenate(shares, axis=2)
            return hidden.reshape(len(x), -1) @ self.out, margins
        assert self.leaf_in is not None
        inner = x @ self.leaf_in.T + (0 if o.leaf_bias is None else o.leaf_bias)
        chosen = reached.reshape(len(x), -1)
        output = (act(inner) * np.repeat(chosen, self.leaf, axis=1)) @ self.out
        if o.output_bias is not None:
            output = output + chosen @ o.output_bias.reshape(-1, self.width)
        return output, margins


@few_examples
@given(
    tokens=token_counts,
    width=widths,
    depth=st.integers(1, 6),
    leaf=st.sampled_from([0, 0, 1, 3, 8, 65]),
    trees=st.integers(1, 3),
    fmt=st.sampled_from(["f32", "f16"]),
    biases=st.booleans(),
    activation=st.sampled_from(list(ACTIVATIONS)),
    seed=seeds,
)
def test_one_path_has_the_output_of_all_neurons_where_only_that_path_counts(
    any_backend: Backend, tokens: int, width: int, depth: int, leaf: int, trees: int, seed: int, **options: Any
) -> None:
    made = Trees(width, depth, leaf, trees, seed, **options)
    o = made.with_rows(tokens)
    any_backend.program([o]).run(tokens)
    expected, margins = made.expected(o)
    clear = margins > 1e-5
    scale = np.abs(expected).max(initial=1.0)
    np.testing.assert_allclose(o.output[clear], expected[clear], atol=2e-6 * scale * (depth + leaf + 1), rtol=0)


def test_a_row_has_the_same_bits_in_any_company(any_backend: Backend) -> None:
    for leaf in (0, 9):
        made = Trees(72, 5, leaf, 2, 7, fmt="f16")
        o = made.with_rows(40)
        any_backend.program([o]).run(40)
        together = o.output.copy()
        for first, end in ((0, 1), (1, 20), (20, 40)):
            part = replace(o, input=o.input[first:end], output=aligned((end - first, 72), np.float32))
            any_backend.program([part]).run(end - first)
            np.testing.assert_array_equal(part.output, together[first:end])


def test_a_number_of_zero_goes_right_to_leaves_and_left_among_nodes(any_backend: Backend) -> None:
    """As the package of the first paper has it, and as the code of the second."""
    for leaf, side in ((1, 1), (0, 0)):
        made = Trees(8, 1, leaf, 1, 3, biases=False)
        rows = np.eye(len(made.out), 8)
        out, _ = whole(rows, "f32")
        ones = whole(np.ones((2, 8)), "f32")[0] if leaf else None
        o = replace(made.with_rows(1), leaf_in=ones, out=out, input=aligned_copy(np.ones((1, 8), np.float32)))
        nodes = np.ones((len(made.nodes), 8))
        nodes[0] = 0  # a number of exactly 0 at the root; beneath it, and in leaves, 8
        o = replace(o, nodes=whole(nodes, "f32")[0], node_bias=np.zeros_like(o.node_bias))
        any_backend.program([o]).run(1)
        assert np.flatnonzero(o.output[0]).tolist() == ([side] if leaf else [1 + side])


def test_only_the_rows_of_the_path_are_read(any_backend: Backend) -> None:
    """All that a row does not need may be garbage."""
    made = Trees(24, 4, 3, 1, 5)
    o = made.with_rows(1)
    any_backend.program([o]).run(1)
    expected = o.output.copy()
    place, path = 0, []
    logits = o.input.astype(np.float64) @ made.nodes.T + o.node_bias
    for _ in range(4):
        path.append(place)
        place = 2 * place + (2 if logits[0, place] >= 0 else 1)
    leaf = place - 15
    kept = {"nodes": path, "leaf_in": range(3 * leaf, 3 * leaf + 3), "out": range(3 * leaf, 3 * leaf + 3)}
    for name, rows in kept.items():
        matrix = getattr(o, name)
        numbers_of = matrix.data.view(np.float32)
        garbage = np.full_like(numbers_of, np.nan)
        for row in rows:
            garbage[24 * row : 24 * row + 24] = numbers_of[24 * row : 24 * row + 24]
        numbers_of[:] = garbage
    any_backend.program([o]).run(1)
    np.testing.assert_array_equal(o.output, expected)
    assert o.share_read("nodes") == 4 / 15
    assert o.share_read("out") == 1 / 16
    read = (o.nodes.nbytes + o.node_bias.nbytes) * 4 / 15 + (o.out.nbytes * 2 + o.leaf_bias.nbytes) / 16
    assert o.weight_bytes() == pytest.approx(read + o.output_bias.nbytes / 16, abs=4)


def test_trees_of_other_sizes_are_refused(any_backend: Backend) -> None:
    leaves, nodes = Trees(8, 2, 3, 1, 0).operation, Trees(8, 2, 0, 1, 0).operation
    wide = Trees(300, 3, 3, 1, 0).operation
    quantised = random_matrix("q8", *wide.nodes.shape, np.random.default_rng(0))
    for wrong, message in (
        (replace(leaves, depth=3), "node_bias: expected 7 numbers, found 3"),
        (replace(wide, depth=4), r"nodes: expected 15 whole rows, shape \(144, 32\), found \(80, 32\)"),
        (replace(leaves, depth=25), "depth: expected 0 to 24, found 25"),
        (replace(leaves, depth=0), "depth: expected 1 or more, found 0"),
        (replace(leaves, trees=0), "trees: expected 1 or more, found 0"),
        (replace(leaves, leaf_width=-1), "leaf_width: expected 0 or more, found -1"),
        (replace(leaves, leaf_in=None), "leaf_in: expected a matrix, with leaves, found None"),
        (replace(nodes, leaf_in=nodes.out), "leaf_in: expected none without leaves, found one"),
        (replace(wide, nodes=quantised), "nodes: expected a matrix in f32 or f16, found q8"),
        (replace(leaves, activation=SILU), "activation.gated: expected False, found True"),
    ):
        with pytest.raises(KernelError, match=message):
            any_backend.program([wrong])
