"""Figures of a trace that do not depend on a cache: how often experts are used, and how often again by the next token.

Letters: `L` layers, `E` experts of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgemoe.engine.phase import DECODE
from edgemoe.lab.trace import Trace


@dataclass(frozen=True)
class Routing:
    """Figures of the routing in a trace."""

    prompt_tokens: int
    decode_tokens: int
    uses: npt.NDArray[np.int64]
    """The number of uses of each expert, `(L, E)`."""
    distinct_experts: int
    distinct_per_layer: tuple[int, ...]
    """The number of different experts that each layer used; only layers with routed experts."""
    repeat_recall: float | None
    """Share of generated tokens' experts that the token before used in the same layer; None without such tokens."""


def read_routing(trace: Trace) -> Routing:
    """The figures of a trace that has rows."""
    shape, decode = trace.shape, trace.phase == DECODE
    uses = np.bincount(trace.keys, minlength=shape.keys).reshape(shape.layers, shape.experts)
    routed = uses.any(axis=1)
    distinct = (uses > 0).sum(axis=1)
    return Routing(
        prompt_tokens=trace.select(~decode).tokens,
        decode_tokens=trace.select(decode).tokens,
        uses=uses,
        distinct_experts=int(distinct.sum()),
        distinct_per_layer=tuple(map(int, distinct[routed])),
        repeat_recall=_repeat_recall(trace),
    )


def _repeat_recall(trace: Trace) -> float | None:
    """See `Routing`. The first generated token follows its prompt's last one; a turn's first token follows none."""
    by_place = np.lexsort((trace.step, trace.keys, trace.turn))
    turn, key, step, phase = (column[by_place] for column in (trace.turn, trace.keys, trace.step, trace.phase))
    repeats = np.zeros(len(trace), np.bool_)
    repeats[1:] = (turn[1:] == turn[:-1]) & (key[1:] == key[:-1]) & (step[1:] == step[:-1] + 1)
    follows = (phase == DECODE) & (step > 0)
    return float(repeats[follows].mean()) if follows.any() else None
