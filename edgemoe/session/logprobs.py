"""Logarithms of probabilities: what the model itself says of a token, before any setting of sampling acts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class TokenLogprobs:
    """The likeliest tokens at one place of an answer, and the chosen one."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens with their logarithms, in falling order (the lower id first on a tie)."""


class LogprobReader:
    """Reads the logarithms of one place: made from the logits before they are changed, asked once a token is chosen."""

    def __init__(self, logits: npt.NDArray[np.float32], top: int) -> None:
        """`top`: how many of the likeliest tokens are named. Shapes: logits `(V,)`."""
        self._logits = logits.astype(np.float64)
        highest = self._logits.max()
        self._logits -= highest + np.log(np.exp(self._logits - highest).sum())
        self._top = top

    def of(self, token: int) -> TokenLogprobs:
        """The logarithms, where this token is the chosen one."""
        top: tuple[tuple[int, float], ...] = ()
        if self._top:
            count = min(self._top, len(self._logits))
            least = np.partition(self._logits, len(self._logits) - count)[len(self._logits) - count]
            likely = np.flatnonzero(self._logits >= least)
            likely = likely[np.argsort(-self._logits[likely], kind="stable")][:count]
            top = tuple((int(one), float(self._logits[one])) for one in likely)
        return TokenLogprobs(token, float(self._logits[token]), top)
