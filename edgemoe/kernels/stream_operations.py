"""The operations on several residual streams: what a block reads of them, and how its result joins them.

Defined as those of `operations.py` are, and with its letters and invariants; `n` is the number of streams.
"""

# Annotations are evaluated here, not left as text, as in `operations.py`.

import math
from dataclasses import dataclass
from typing import Annotated

from edgemoe.kernels.definition import Sizes, require
from edgemoe.kernels.marks import IN_PLACE, NUMBER, OUTPUT, output, rows, size, weight
from edgemoe.kernels.operations import Floats, Operation

MOST_STREAMS = 16
"""The most residual streams of a token."""


@dataclass(frozen=True, eq=False, repr=False)
class CollapseStreams(Operation, code=44):
    """A token's streams become the row that a block reads: `output = sum over i of pre[i] * streams[i]`.

    The first `n` of a row's `numbers`, which are products with the streams, give `pre = sigmoid(scales[0] * number +
    base) + epsilon`. With `joining` there are `n * (2 + n)` numbers, and the others say how the block's result joins the
    streams (`JoinStreams`): `post = 2 * sigmoid(scales[1] * number + base)` of each stream, and a matrix of which
    streams go on in which, `mix[i, j] = softmax over j of (scales[2] * number + base) + epsilon`. Its columns are
    divided by their sums plus `epsilon`, and then, `iterations - 1` times, its rows and its columns once more, so that
    both sum to nearly 1 (Sinkhorn and Knopp 1967). Source: manifold-constrained hyper-connections (Xie et al. 2025,
    arXiv 2512.24880), as DeepSeek-V4 has them.
    """

    streams: Annotated[Floats, rows("n*D")]
    numbers: Annotated[Floats, rows("M")]
    base: Annotated[Floats, weight("M")]
    scales: Annotated[Floats, weight("parts")]
    epsilon: float
    iterations: Annotated[int, NUMBER]  # 1 or more
    count: Annotated[int, size("n")]
    joining: Annotated[Floats | None, rows("J"), OUTPUT]  # [post | mix]
    output: Annotated[Floats, rows("D"), output(apart_from="streams")]

    def check(self, sizes: Sizes) -> None:
        n, joins = self.count, self.joining is not None
        require(n <= MOST_STREAMS, "count", f"at most {MOST_STREAMS} streams", n)
        numbers, parts = (n * (2 + n), 3) if joins else (n, 1)
        require(sizes.letters["M"] == numbers, "numbers", f"{numbers} columns", sizes.letters["M"])
        require(sizes.letters["parts"] == parts, "scales", f"{parts} numbers", sizes.letters["parts"])
        require(not joins or sizes.letters["J"] == n * (1 + n), "joining", f"{n * (1 + n)} columns", sizes.letters.get("J"))
        require(self.iterations >= 1, "iterations", "1 or more", self.iterations)
        require(0 <= self.epsilon < math.inf, "epsilon", "0 or a number above it", self.epsilon)


@dataclass(frozen=True, eq=False, repr=False)
class JoinStreams(Operation, code=45):
    """A block's result joins a token's streams: `streams[j] = post[j] * result + sum over i of mix[i, j] * streams[i]`.

    `joining` has `[post | mix]`, as `CollapseStreams` writes it. Without it every stream becomes the result.
    """

    result: Annotated[Floats, rows("D")]
    joining: Annotated[Floats | None, rows("J")]
    count: Annotated[int, size("n")]
    streams: Annotated[Floats, rows("n*D"), IN_PLACE]

    def check(self, sizes: Sizes) -> None:
        n = self.count
        require(n <= MOST_STREAMS, "count", f"at most {MOST_STREAMS} streams", n)
        found = sizes.letters.get("J", n * (1 + n))
        require(found == n * (1 + n), "joining", f"{n * (1 + n)} columns", found)
