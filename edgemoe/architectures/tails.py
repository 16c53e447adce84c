"""Tensors of a checkpoint that are parts of others, as a family says and the source that joins them shows."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Tail:
    """A tensor whose rows, or columns, follow those of another one, as if the checkpoint had both as one."""

    tensor: str
    columns: bool = False
    """Whether its columns follow, not its rows."""
    factor: float = 1.0
    """Factor of its numbers."""


_OF_RANK = re.compile(r"(.+)-TP-(\d{3})")


def rank_name(name: str, rank: int) -> str:
    """The name of the part of a tensor that a tensor-parallel rank has; the first part is called as the tensor is."""
    return f"{name}-TP-{rank:03d}" if rank else name


def rank_of(name: str) -> tuple[str, int]:
    """The tensor whose part has this name, and the rank that has it."""
    found = _OF_RANK.fullmatch(name)
    return (found[1], int(found[2])) if found else (name, 0)
