"""Which expert leaves when a slot is wanted: the policies of the expert cache.

A policy sees accesses and answers with victims; it knows nothing of bytes, slots or files, so the policy
that runs is also the policy that a replay of recorded routing can simulate.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

ExpertKey = tuple[int, int]
"""(layer, expert)"""


class Policy(Protocol):
    """Orders the experts in the cache by how soon they should leave."""

    name: str

    def insert(self, key: ExpertKey) -> None:
        """An expert that was not in the cache now is."""

    def touch(self, key: ExpertKey) -> None:
        """An expert in the cache was used."""

    def remove(self, key: ExpertKey) -> None:
        """An expert left the cache."""

    def victim(self, may_leave: Callable[[ExpertKey], bool]) -> ExpertKey | None:
        """The expert that should leave first among those that may, or None where none may."""


class LeastRecentlyUsed:
    """The expert whose last use is longest ago leaves first."""

    name = "lru"

    def __init__(self) -> None:
        self._order: OrderedDict[ExpertKey, None] = OrderedDict()

    def insert(self, key: ExpertKey) -> None:
        self._order[key] = None

    def touch(self, key: ExpertKey) -> None:
        self._order.move_to_end(key)

    def remove(self, key: ExpertKey) -> None:
        del self._order[key]

    def victim(self, may_leave: Callable[[ExpertKey], bool]) -> ExpertKey | None:
        return next((key for key in self._order if may_leave(key)), None)
