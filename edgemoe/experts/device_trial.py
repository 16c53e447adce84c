"""Decides by trial how many of the experts in device slots the device computes: none, half of a token's, or all.

No rule holds for every card, processor and model: what the device does beside the processor is free only if it ends in
time. So tokens are timed in turn, as for prefetch (`prefetch.py`): first without device slots and with them, then, if
they pay, with half of them and with all. Experts are copied to the device from the start until a first verdict, so that
a trial finds them there, and later while slots are used.
"""

from __future__ import annotations

from edgemoe.experts.prefetch import PrefetchTrial
from edgemoe.kernels.backend import ExpertTier

HALF = 0.5


class DeviceTrial:
    """The settings of device slots for runs of one number of tokens."""

    def __init__(self) -> None:
        """Has not tried anything yet: the processor computes all, while slots are filled."""
        self.use, self.all = PrefetchTrial(), PrefetchTrial()
        """Whether the device computes any expert, and whether then all that it has."""
        self._tried = False

    def set(self, tier: ExpertTier) -> None:
        """Give a tier the settings for the next run."""
        self._tried = self._tried or self.use.trying
        tier.share = (1.0 if self.all.open or self.use.trying else HALF) if self.use.open else 0.0
        tier.fills = self.use.open or self.use.trying or not self._tried

    def trials(self) -> list[PrefetchTrial]:
        """Return the trials that take the time of the next token (`prefetch.record_in_turn`)."""
        return [self.use, self.all] if self.use.verdict else [self.use]
