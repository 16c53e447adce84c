"""How far two next-token distributions diverge, summed over positions.

Letters: `T` positions, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

ROWS_AT_ONCE = 16
"""Positions whose distributions are held in float64 at a time."""

Logits = npt.NDArray[np.float32]


class Divergence:
    """Running means over the positions added so far."""

    def __init__(self) -> None:
        self.positions = 0
        self._divergence_nats = 0.0
        self._top_changed = 0
        self._losses_nats = np.zeros(2)
        self._followed = 0

    def add(self, exact: Logits, lossy: Logits, following: Sequence[int]) -> None:
        """Add positions: both models' logits `(T, V)`, and the ids that follow in the text (empty: no losses)."""
        for start in range(0, len(exact), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            p, q = _log_softmax(exact[rows]), _log_softmax(lossy[rows])
            self.positions += len(p)
            self._divergence_nats += float((np.exp(p) * (p - q)).sum())
            self._top_changed += int((p.argmax(axis=1) != q.argmax(axis=1)).sum())
            ids = list(following[rows])
            here = np.arange(len(ids))
            self._losses_nats -= [p[here, ids].sum(), q[here, ids].sum()]
            self._followed += len(ids)

    @property
    def mean_nats(self) -> float:
        """Mean KL divergence of the second from the first."""
        return self._divergence_nats / self.positions

    @property
    def top_changed(self) -> float:
        """Share of positions whose most likely token differs."""
        return self._top_changed / self.positions

    @property
    def losses_nats(self) -> tuple[float, float] | None:
        """Mean loss of the ids that followed, exact and lossy; None if none were given."""
        if not self._followed:
            return None
        exact, lossy = (self._losses_nats / self._followed).tolist()
        return exact, lossy


def _log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
