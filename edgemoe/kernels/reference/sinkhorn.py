"""The reference of the operations on several residual streams whose mixture is balanced."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgemoe.kernels import sinkhorn_operations as sk
from edgemoe.kernels.operations import Floats
from edgemoe.kernels.reference.common import Doubles, sigmoid, single, softmax
from edgemoe.kernels.stepwise import means


def shares_of_streams(numbers: Floats, base: Floats, scale: Floats, epsilon: float) -> Doubles:
    """The share `(T, n)` that a block reads of each stream: see `sk.CollapseStreams`."""
    return sigmoid(numbers.astype(np.float64) * scale + base) + float(np.float32(epsilon))


def balance(
    numbers: Floats, base: Floats, scales: Floats, count: int, epsilon: float, iterations: int
) -> tuple[Doubles, Doubles]:
    """The share of a block's result for each stream `(T, n)`, and the mixture `(T, n, n)`: see `sk.BalanceStreams`."""
    exact, tiny = numbers.astype(np.float64), float(np.float32(epsilon))
    post = 2 * sigmoid(exact[:, :count] * scales[0] + base[:count])
    mix = softmax((exact[:, count:] * scales[1] + base[count:]).reshape(-1, count, count)) + tiny
    mix /= mix.sum(axis=1, keepdims=True) + tiny
    for _ in range(iterations - 1):
        mix /= mix.sum(axis=2, keepdims=True) + tiny
        mix /= mix.sum(axis=1, keepdims=True) + tiny
    return post, mix


@means(sk.CollapseStreams)
def _collapse_streams(kernels: Any, o: sk.CollapseStreams, tokens: int) -> None:
    shares = shares_of_streams(o.numbers[:tokens], o.base, o.scale, o.epsilon)
    streams = o.streams[:tokens].reshape(tokens, o.count, -1).astype(np.float64)
    o.output[:tokens] = single(np.matmul(shares[:, None], streams)[:, 0])


@means(sk.BalanceStreams)
def _balance_streams(kernels: Any, o: sk.BalanceStreams, tokens: int) -> None:
    post, mix = balance(o.numbers[:tokens], o.base, o.scales, o.count, o.epsilon, o.iterations)
    o.numbers[:tokens] = single(np.concatenate([post, mix.reshape(tokens, -1)], axis=1))


@means(sk.JoinStreams)
def _join_streams(kernels: Any, o: sk.JoinStreams, tokens: int) -> None:
    n, joining = o.count, o.joining[:tokens].astype(np.float64)
    post, mix = joining[:, :n, None], joining[:, n:].reshape(tokens, n, n)
    streams = o.streams[:tokens].reshape(tokens, n, -1).astype(np.float64)
    added = post * o.result[:tokens, None]
    o.streams[:tokens] = single(added + np.matmul(mix.swapaxes(1, 2), streams)).reshape(tokens, -1)
