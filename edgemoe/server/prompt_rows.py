"""How many rows of prompts a step may have while answers are being written beside them.

A long step lets answers stall, and a short one reads the weights, and most experts, for few tokens. So steps have as
many rows as take at most half a second, by what steps have taken so far; or, where even the shortest takes longer than
that (experts come from a disk), as many as take at most twice as long as that.
"""

from __future__ import annotations

TARGET_SECONDS = 0.5
FEWEST_ROWS = 32
SLOWDOWN = 2.0
WEIGHT = 0.5
"""The weight of the latest step in the mean."""


class PromptRows:
    """Times of steps by their number of rows, in powers of two, and the number that follows from them."""

    def __init__(self, most_rows: int) -> None:
        self._sizes = [most_rows]
        while self._sizes[0] // 2 >= FEWEST_ROWS:
            self._sizes.insert(0, self._sizes[0] // 2)
        self._seconds: dict[int, float] = {}

    def rows(self) -> int:
        """The largest number of rows whose time is acceptable, or may be as far as is known."""
        least = self._sizes[0]
        if least not in self._seconds:
            return least
        limit_s = max(TARGET_SECONDS, SLOWDOWN * self._seconds[least])
        best, expected_s = least, self._seconds[least]
        for size in self._sizes[1:]:
            expected_s = self._seconds.get(size, 2 * expected_s)  # twice the rows take at most twice the time
            if expected_s > limit_s:
                break
            best = size
        return best

    def ran(self, rows: int, seconds: float) -> None:
        """Note a step; only full ones count."""
        if rows in self._sizes:
            before = self._seconds.get(rows, seconds)
            self._seconds[rows] = before + WEIGHT * (seconds - before)
