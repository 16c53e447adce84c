"""Chooses one of the devices of a kind, by its number or by letters of its name."""

from __future__ import annotations

from collections.abc import Sequence

from edgemoe.kernels.device.runtime import DeviceError


def choose(kind: str, names: Sequence[str], which: str, texts: Sequence[str] | None = None) -> int:
    """Return the number of the device that was asked for; without `which` the first.

    Letters are looked for in the names, or in `texts`, which say more. Raises DeviceError unless there is such a
    device, and only one.
    """
    if not names:
        raise DeviceError(f"There is no {kind} device here.", "Install the driver of one, or go without.")
    listed = "; ".join(f"{number} {name}" for number, name in enumerate(names))
    if not which:
        return 0
    if which.isdecimal():
        if int(which) < len(names):
            return int(which)
        found = []
    else:
        found = [number for number, text in enumerate(texts or names) if which.lower() in text.lower()]
    if len(found) == 1:
        return found[0]
    problem = "is the name of several" if found else "is not one that is here"
    raise DeviceError(f"The {kind} device {which} {problem}: {listed}.", "Ask for one by its number.")
