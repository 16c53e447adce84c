"""What a trace says of routing, whatever the cache: which experts are used, and how often the same again.

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
    """Figures of a trace."""

    prompt_tokens: int
    decode_tokens: int
    uses: npt.NDArray[np.int64]
    """How often each expert was used, `(L, E)`."""
    distinct_experts: int
    distinct_per_layer: tuple[int, ...]
    """Different experts that each layer used; only layers that were routed."""
    repeat_recall: float | None
    """Of the experts of generated tokens, the share that the token before used in the same layer; None without any."""


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
    """See `Routing`. The first generated token follows the last one of its prompt; a turn's first token none."""
    by_place = np.lexsort((trace.step, trace.keys, trace.turn))
    turn, key, step, phase = (column[by_place] for column in (trace.turn, trace.keys, trace.step, trace.phase))
    repeats = np.zeros(len(trace), np.bool_)
    repeats[1:] = (turn[1:] == turn[:-1]) & (key[1:] == key[:-1]) & (step[1:] == step[:-1] + 1)
    follows = (phase == DECODE) & (step > 0)
    return float(repeats[follows].mean()) if follows.any() else None
