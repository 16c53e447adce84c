"""The operations on several residual streams, compiled by Numba.

Letters as in `operations.py`, meanings as in `reference`. Each token is computed alone.
"""

from __future__ import annotations

import math

import numpy as np

from edgemoe.kernels.jit.compile import jit
from edgemoe.kernels.operations import Floats

_ONE, _TWO = np.float32(1), np.float32(2)


@jit
def read_streams(streams: Floats, shares: Floats, output: Floats) -> None:
    """Streams and shares `(T, count, D)`, output `(T, D)`."""
    tokens, count, width = streams.shape
    for t in range(tokens):
        for c in range(width):
            total = np.float32(0)
            for s in range(count):
                total += streams[t, s, c] / (_ONE + np.float32(math.exp(-shares[t, s, c])))
            output[t, c] = total / np.float32(count)


@jit
def write_streams(streams: Floats, shares: Floats, result: Floats, output: Floats) -> None:
    """Streams and output `(T, count, D)`, shares `(T, count)`, result `(T, D)`."""
    tokens, count, width = streams.shape
    for t in range(tokens):
        for s in range(count):
            factor = _TWO / (_ONE + np.float32(math.exp(-shares[t, s])))
            for c in range(width):
                output[t, s, c] = streams[t, s, c] + factor * result[t, c]


@jit
def gate_by_agreement(key: Floats, query: Floats, value: Floats, least: float, output: Floats) -> None:
    """Key, query and output `(T, count, D)`, value `(T, D)`."""
    tokens, count, width = key.shape
    for t in range(tokens):
        for s in range(count):
            total = 0.0
            for c in range(width):
                total += np.float64(key[t, s, c]) * np.float64(query[t, s, c])
            agreement = total / math.sqrt(width)
            rooted = math.sqrt(max(abs(agreement), least))
            if agreement == 0:
                rooted = 0.0
            elif agreement < 0:
                rooted = -rooted
            factor = np.float32(1 / (1 + math.exp(-rooted)))
            for c in range(width):
                output[t, s, c] = factor * value[t, c]
