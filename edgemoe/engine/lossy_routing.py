"""Applies lossy settings between the routing of a layer and its streamed experts (see `lossy.py`).

Letters: `T` tokens of this run, `E` experts of a layer, `K` experts used per token, `D` model width.

Invariants:
- An expert counts as in RAM when it has a slot, though its read may still be under way: leaving it out would save no
  read.
- The rows of a dropped expert are zeros, and its weight is zero: values that an earlier layer left there, even NaN,
  have no effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from edgemoe.engine.decoder import Decoder, LayerRouting
from edgemoe.engine.lossy import LossySettings
from edgemoe.experts.cache import Cache
from edgemoe.kernels import operations as op


class LossyRouting:
    """Applies the settings to one decoder and cache."""

    def __init__(self, settings: LossySettings, decoder: Decoder, cache: Cache) -> None:
        self._threshold = settings.drop_cold
        self._cache = cache
        self._tables = {n: r.in_memory for n, r in enumerate(decoder.routing) if r is not None}
        self._outputs: Mapping[int, op.Floats] = {
            number: experts.output
            for number, layer in enumerate(decoder.layers)
            for experts in layer.experts
            if isinstance(experts, op.Experts)
        }

    def before_routing(self, layer: int | None, tokens: int) -> None:
        """Mark the experts of a layer that are in RAM, before the program runs that computes its routing."""
        table = None if layer is None else self._tables[layer]
        if layer is None or table is None:
            return
        if tokens == 1:
            table[:] = [self._cache.holds(layer, expert) for expert in range(len(table))]
        else:
            table.fill(0)

    def without_cold(self, layer: int, routing: LayerRouting, tokens: int, wanted: Sequence[int]) -> list[int]:
        """The wanted experts without those that are dropped, whose weights and rows are set to zero."""
        if self._threshold <= 0:
            return list(wanted)
        cold = [expert for expert in wanted if not self._cache.holds(layer, expert)]
        dropped = droppable(routing.experts[:tokens], routing.weights[:tokens], cold, self._threshold)
        if not dropped:
            return list(wanted)
        places = np.isin(routing.experts[:tokens], dropped)
        routing.weights[:tokens][places] = 0
        self._outputs[layer][:tokens][places] = 0
        self._cache.statistics.dropped += len(dropped)
        return [expert for expert in wanted if expert not in dropped]


def droppable(experts: op.Integers, weights: op.Floats, cold: Sequence[int], threshold: float) -> list[int]:
    """Select the `cold` experts whose share of the weights is below the threshold for every token that uses them.

    Shapes: experts and weights `(T, K)`. Shares are float64; a weight that is not a number keeps its expert.
    """
    if not cold:
        return []
    exact = weights.astype(np.float64)
    small: npt.NDArray[np.bool_] = exact < threshold * exact.sum(axis=1, keepdims=True)
    if not small.any():
        return []
    kept = set(experts[~small].tolist())
    return [expert for expert in cold if expert not in kept]
