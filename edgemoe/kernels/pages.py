"""The page: the unit in which files are laid out and read directly."""

from __future__ import annotations

PAGE_BYTES = 4096


def round_up(value: int, multiple: int) -> int:
    """The least multiple of `multiple` that is not below `value`."""
    return -(-value // multiple) * multiple
