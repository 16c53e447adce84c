"""Sizes in bytes as people write and read them."""

from __future__ import annotations

import re

from edgemoe.errors import UsageError

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS |= {_letter: 1 << 10 * _power, f"{_letter}ib": 1 << 10 * _power, f"{_letter}b": 10 ** (3 * _power)}


def parse_size(text: str) -> int:
    """Bytes of a size such as `512MiB`, `6GiB`, `6GB`, `1.5g` or `1000000`. Raises UsageError."""
    match = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _UNITS:
        raise UsageError(
            f"'{text}' is not a size.", "Write a number and a unit, such as 512MiB or 6GiB (also: floor, auto)."
        )
    return int(float(match[1]) * _UNITS[match[2].lower()])


def format_size(size_bytes: float) -> str:
    """A size for people, such as `1.25 GiB`."""
    for unit in ("bytes", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit != "MiB" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.2f} GiB"
