"""Relative positions as buckets: keys at like distances from a query get the same number added to their scores (T5).

Source: Raffel et al. 2020 (arXiv 1910.10683), with the buckets of its published code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class RelativeBias:
    """Half of the buckets hold one distance each, the other half longer and longer runs of them."""

    buckets: int
    max_distance: int
    """From this distance on all keys are in one bucket."""

    def check(self, causal: bool) -> None:
        """Raise ValueError for numbers that contradict one another; `causal`: whether only earlier keys are seen."""
        exact = self.exact(causal)
        if self.buckets % 4 or not exact < self.max_distance:
            raise ValueError(f"relative positions in {self.buckets} buckets up to a distance of {self.max_distance}")

    def exact(self, causal: bool) -> int:
        """How many buckets hold one distance each, on each side that is seen."""
        return self.buckets // (2 if causal else 4)


def bucket_table(bias: RelativeBias, causal: bool) -> npt.NDArray[np.int32]:
    """The bucket of every distance from `-max_distance` (an earlier key) to `max_distance`, in order.

    Where attention is causal all later keys have bucket 0, since none is seen. Else they have the second half of the
    buckets. Every step is rounded to float32, as where models are trained: longer runs of distances begin where that
    rounding says.
    """
    distances = np.arange(-bias.max_distance, bias.max_distance + 1)
    far = np.maximum(-distances, 0) if causal else np.abs(distances)
    exact = bias.exact(causal)
    with np.errstate(divide="ignore"):
        shares = far.astype(np.float32) / np.float32(exact)
        logarithms = np.log(shares.astype(np.float64)).astype(np.float32)
    ratios = logarithms / np.float32(math.log(bias.max_distance / exact)) * np.float32(exact)
    longer = exact + np.where(far < exact, 0, ratios).astype(np.int64)
    found = np.where(far < exact, far, np.minimum(longer, 2 * exact - 1))
    if not causal:
        found = found + np.where(distances > 0, 2 * exact, 0)
    return found.astype(np.int32)
