"""The operations on several residual streams: models with hyper-connections (Zhu et al. 2024) keep some beside another.

Defined as those of `operations.py` are, and with its letters and invariants. A row holds the streams of its token one
after the other.
"""

# Annotations are evaluated here, not left as text, as in `operations.py`.

import math
from dataclasses import dataclass
from typing import Annotated

from edgemoe.kernels.definition import Sizes, require
from edgemoe.kernels.marks import IN_PLACE, output, rows
from edgemoe.kernels.operations import Floats, Operation

MOST_STREAMS = 16
"""The most residual streams of a token."""


@dataclass(frozen=True, eq=False, repr=False)
class ReadStreams(Operation, code=40):
    """Mixes the streams to one row: `output = mean over s of sigmoid(shares[s]) * streams[s]`, channel by channel.

    The sum runs in the order of the streams.
    """

    streams: Annotated[Floats, rows("count*D")]
    shares: Annotated[Floats, rows("count*D")]
    output: Annotated[Floats, rows("D"), output(apart_from="streams")]


@dataclass(frozen=True, eq=False, repr=False)
class WriteStreams(Operation, code=41):
    """Adds a block's result to every stream in place: `streams[s] += 2 * sigmoid(shares[s]) * result`."""

    shares: Annotated[Floats, rows("count")]
    result: Annotated[Floats, rows("D")]
    streams: Annotated[Floats, rows("count*D"), IN_PLACE]


@dataclass(frozen=True, eq=False, repr=False)
class GateByAgreement(Operation, code=42):
    """Gives every stream a share of one value, by how far a key of its own agrees with its query.

    `output[s] = sigmoid(sign(d) * sqrt(max(|d|, least))) * value`, where `d` is the sum of `key[s] *
    query[s]` over the channels, divided by the root of their number; 0 has the sign 0 (Qwen3.8).
    """

    key: Annotated[Floats, rows("count*D")]
    query: Annotated[Floats, rows("count*D")]
    value: Annotated[Floats, rows("D")]
    least: float
    output: Annotated[Floats, rows("count*D"), output(apart_from="value")]

    def check(self, sizes: Sizes) -> None:
        require(0 < self.least < math.inf, "least", "a number above 0", self.least)
