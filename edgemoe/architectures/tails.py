"""Tensors of a checkpoint that are parts of others, as a family says and the source that joins them shows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tail:
    """A tensor whose rows, or columns, follow those of another one, as if the checkpoint had both as one."""

    tensor: str
    columns: bool = False
    """Whether its columns follow, not its rows."""
    factor: float = 1.0
    """Factor of its numbers."""
