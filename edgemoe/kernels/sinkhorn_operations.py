"""The operations on several residual streams whose mixture is balanced (Sinkhorn and Knopp 1967).

They are those of manifold-constrained hyper-connections (Xie et al. 2025, arXiv 2512.24880), as DeepSeek-V4 has them.
Defined as those of `operations.py` are, and with its letters and invariants; `n` is the number of streams, of which a
row holds one after the other.
"""

# Annotations are evaluated here, not left as text, as in `operations.py`.

import math
from dataclasses import dataclass
from typing import Annotated

from edgemoe.kernels.definition import Sizes, require
from edgemoe.kernels.marks import IN_PLACE, NUMBER, output, rows, size, weight
from edgemoe.kernels.operations import Floats, Operation
from edgemoe.kernels.stream_operations import MOST_STREAMS


def _check(count: int, epsilon: float = 0.0) -> None:
    """Check the number of streams, and what is added to shares and sums."""
    require(count <= MOST_STREAMS, "count", f"at most {MOST_STREAMS} streams", count)
    require(0 <= epsilon < math.inf, "epsilon", "0 or a number above it", epsilon)


@dataclass(frozen=True, eq=False, repr=False)
class CollapseStreams(Operation, code=44):
    """A token's streams become the row that a block reads: `output = sum over i of share[i] * streams[i]`.

    `share[i] = sigmoid(scale * numbers[i] + base[i]) + epsilon`. The sum runs in the order of the streams.
    """

    streams: Annotated[Floats, rows("n*D")]
    numbers: Annotated[Floats, rows("n")]
    base: Annotated[Floats, weight("n")]
    scale: Annotated[Floats, weight("1")]
    epsilon: float
    count: Annotated[int, size("n")]
    output: Annotated[Floats, rows("D"), output(apart_from="streams")]

    def check(self, sizes: Sizes) -> None:
        _check(self.count, self.epsilon)


@dataclass(frozen=True, eq=False, repr=False)
class BalanceStreams(Operation, code=49):
    """Finds, in place, how a block's result joins the streams: `[post | mix]`, which `JoinStreams` takes.

    The first `n` numbers of a row become `post = 2 * sigmoid(scales[0] * number + base)`. The other `n * n` become the
    share of stream `i` that goes on in stream `j`: `mix[i, j] = softmax over j of (scales[1] * number + base) +
    epsilon`, whose columns are divided by their sums plus `epsilon`, and then, `iterations - 1` times, its rows and its
    columns once more. So both sum to nearly 1.
    """

    numbers: Annotated[Floats, rows("J"), IN_PLACE]
    base: Annotated[Floats, weight("J")]
    scales: Annotated[Floats, weight("2")]
    epsilon: float
    iterations: Annotated[int, NUMBER]  # 1 or more
    count: Annotated[int, size("n")]

    def check(self, sizes: Sizes) -> None:
        _check(self.count, self.epsilon)
        _check_joining("numbers", self.count, sizes)
        require(self.iterations >= 1, "iterations", "1 or more", self.iterations)


@dataclass(frozen=True, eq=False, repr=False)
class JoinStreams(Operation, code=45):
    """A block's result joins a token's streams: `streams[j] = post[j] * result + sum over i of mix[i, j] * streams[i]`.

    `joining` has `[post | mix]` of each row. The sum runs in this order.
    """

    result: Annotated[Floats, rows("D")]
    joining: Annotated[Floats, rows("J")]
    count: Annotated[int, size("n")]
    streams: Annotated[Floats, rows("n*D"), IN_PLACE]

    def check(self, sizes: Sizes) -> None:
        _check(self.count)
        _check_joining("joining", self.count, sizes)


def _check_joining(field: str, count: int, sizes: Sizes) -> None:
    """Check that a row has a number for each stream and for each pair of them."""
    wanted = count * (1 + count)
    require(sizes.letters["J"] == wanted, field, f"{wanted} columns", sizes.letters["J"])
