"""Whether reading ahead pays: predicted reads are kept up only while enough of them are used."""

from __future__ import annotations

WINDOW_READS = 64
LEAST_USEFUL_SHARE = 0.4
PAUSE_PREDICTIONS = 512


class PredictionSwitch:
    """Closes when under 40 % of the last 64 predicted reads were used; tries again 512 predictions later."""

    def __init__(self) -> None:
        self._outcomes: list[bool] = []
        self._pause_left = 0

    @property
    def open(self) -> bool:
        """Whether predicted reads may be made now."""
        return self._pause_left == 0

    def tick(self) -> None:
        """One layer's prediction was made, whether or not reads may follow from it."""
        self._pause_left = max(0, self._pause_left - 1)

    def record(self, useful: bool) -> None:
        """A predicted read was used, or its expert left the cache without having been used."""
        self._outcomes.append(useful)
        if len(self._outcomes) >= WINDOW_READS:
            if sum(self._outcomes) < LEAST_USEFUL_SHARE * len(self._outcomes):
                self._pause_left = PAUSE_PREDICTIONS
            self._outcomes.clear()
