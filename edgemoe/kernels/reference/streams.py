"""The reference of the operations on several residual streams."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgemoe.kernels import stream_operations as sm
from edgemoe.kernels.operations import Floats
from edgemoe.kernels.reference.common import Doubles, sigmoid, single, softmax
from edgemoe.kernels.stepwise import means


def stream_shares(
    numbers: Floats, base: Floats, scales: Floats, count: int, epsilon: float, iterations: int
) -> tuple[Doubles, Doubles, Doubles]:
    """`pre` and `post` `(T, n)`, and `mix` `(T, n, n)`: see `sm.CollapseStreams`; the last two empty for `n` numbers."""
    tokens, exact = len(numbers), numbers.astype(np.float64)
    tiny = float(np.float32(epsilon))
    pre = sigmoid(exact[:, :count] * scales[0] + base[:count]) + tiny
    if numbers.shape[1] == count:
        return pre, np.zeros((tokens, 0)), np.zeros((tokens, 0, 0))
    post = 2 * sigmoid(exact[:, count : 2 * count] * scales[1] + base[count : 2 * count])
    mix = softmax((exact[:, 2 * count :] * scales[2] + base[2 * count :]).reshape(tokens, count, count)) + tiny
    mix /= mix.sum(axis=1, keepdims=True) + tiny
    for _ in range(iterations - 1):
        mix /= mix.sum(axis=2, keepdims=True) + tiny
        mix /= mix.sum(axis=1, keepdims=True) + tiny
    return pre, post, mix


@means(sm.CollapseStreams)
def _collapse_streams(kernels: Any, o: sm.CollapseStreams, tokens: int) -> None:
    pre, post, mix = stream_shares(o.numbers[:tokens], o.base, o.scales, o.count, o.epsilon, o.iterations)
    streams = o.streams[:tokens].reshape(tokens, o.count, -1).astype(np.float64)
    o.output[:tokens] = single(np.matmul(pre[:, None], streams)[:, 0])
    if o.joining is not None:
        o.joining[:tokens] = single(np.concatenate([post, mix.reshape(tokens, -1)], axis=1))


@means(sm.JoinStreams)
def _join_streams(kernels: Any, o: sm.JoinStreams, tokens: int) -> None:
    n, result = o.count, o.result[:tokens, None].astype(np.float64)
    if o.joining is None:
        o.streams[:tokens] = np.repeat(o.result[:tokens, None], n, axis=1).reshape(tokens, -1)
        return
    joining = o.joining[:tokens].astype(np.float64)
    post, mix = joining[:, :n, None], joining[:, n:].reshape(tokens, n, n)
    streams = o.streams[:tokens].reshape(tokens, n, -1).astype(np.float64)
    o.streams[:tokens] = single(post * result + np.matmul(mix.swapaxes(1, 2), streams)).reshape(tokens, -1)
