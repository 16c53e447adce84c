"""Snapshots: places in a text to which sequences can go back, though some of their state cannot be cut anywhere.

Pages of the whole context are kept for every position. Layers with a window give their pages back, and fixed state
(`fixed_state.py`) changes with every token; so a sequence goes back by few tokens on its own. A snapshot holds what the
next token after its place needs of both: the pages that the windows show there, which it shares with sequences, and a
copy of the fixed state. Places are ends of pages. A snapshot is named by the hash of all tokens up to its place, as a
page is, so that every sequence that begins with these tokens finds it; where bits do not follow from tokens alone, only
the sequence that took it and its forks do.

The memory plan bounds the pages and the copies that there are for snapshots. Where there is no room for another, that
which is worth least makes way. Without a snapshot the tokens from the one before it in the text would have to be run
again: these it saves. It is worth `WORTH` times their number, less the tokens that were run since its last use (as in
GreedyDual, Young 1994). So the longer ago a text was run, the further apart are its snapshots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from edgemoe.engine.fixed_state import FixedState
from edgemoe.engine.pages import HeldPages, PageGroup, PagePool, PrefixHash
from edgemoe.engine.phase import PROMPT
from edgemoe.kernels.operations import PAGE_TOKENS

WORTH = 8
"""How many tokens a snapshot outlives for each that it saves: to go back by `n` tokens runs about `n / WORTH` again."""


@dataclass(eq=False)
class Snapshot:
    """The state that a sequence needs to go on from one place, as far as it cannot be cut."""

    pages: list[list[int]]
    """For each group of layers with a window, the pages that the next token sees."""
    slot: int
    """The number of the copy of the fixed state."""
    before: PrefixHash | None
    """The snapshot before it in the text; None if there was none."""
    saves: int
    """How many tokens lie between that snapshot, or the beginning of the text, and this one."""
    phase: int
    used: int
    """When it was last used, on the clock of `Snapshots`."""


class Snapshots:
    """The snapshots of all sequences of one engine."""

    def __init__(self, windowed: Sequence[PageGroup], fixed: FixedState | None) -> None:
        """`windowed`: the groups of layers with windows; `fixed`: the fixed state, where the model has some."""
        self.fixed = fixed
        undo = [] if fixed is None else [fixed.undo]
        self.undo = min([*undo, *(group.window.undo for group in windowed if group.window is not None)])
        """How many of its latest tokens a sequence can take back without a snapshot."""
        self._windowed = windowed
        self._widest = max((group.window.size for group in windowed if group.window is not None), default=0)
        self._most = sum(group.pages for group in windowed) if fixed is None else fixed.snapshots
        """How many snapshots there may be."""
        self._free = [] if fixed is None else list(range(self._most - 1, -1, -1))
        self._kept: dict[PrefixHash, Snapshot] = {}
        self._clock = 0  # tokens between all places and those before them: about the tokens that were run

    def newest(self, prefixes: Sequence[PrefixHash], pages: int) -> int:
        """The number of pages before the newest snapshot of a text, of which the first `pages` count; 0: there is none.

        The pages have these hashes.
        """
        return next((n for n in range(pages, 0, -1) if prefixes[n - 1] in self._kept), 0)

    def keep(self, prefixes: Sequence[PrefixHash], row: int, held: Sequence[HeldPages], phase: int) -> None:
        """Take a snapshot at the end of pages with these hashes, which the sequence of a row has just filled.

        The sequence may have gone on since, if its fixed state can be taken back. It holds the pages `held` of each
        window. Where windows of neighbouring places would overlap, the later one replaces the earlier one of the same
        phase, so that many tokens that are generated one by one leave no more than a window's pages for each window.
        """
        prefix, end = prefixes[-1], len(prefixes) * PAGE_TOKENS
        if prefix in self._kept:
            self._use(prefix)
            return
        earlier = self.newest(prefixes, len(prefixes) - 1)
        self._clock += end - earlier * PAGE_TOKENS
        if earlier:
            last = self._kept[prefixes[earlier - 1]]
            if last.phase == phase and end - earlier * PAGE_TOKENS + last.saves <= self._widest:
                self._drop(prefixes[earlier - 1])
        slot = self.take_slot()
        if self.fixed is not None:
            self.fixed.save(slot, row, end)
        pages = [one.between(one.group.first_needed(end), len(prefixes)) for one in held]
        for group, shared in zip(self._windowed, pages, strict=True):
            for page in shared:
                group.pool.share(page)
        self._add(prefixes, pages, slot, phase)

    def has(self, prefix: PrefixHash) -> bool:
        """Whether there is a snapshot of this name."""
        return prefix in self._kept

    def arrays_of(self, prefix: PrefixHash) -> list[npt.NDArray[Any]] | None:
        """All contents of a snapshot, to be kept elsewhere; None where there is none of this name."""
        snapshot = self._kept.get(prefix)
        return None if snapshot is None else self._contents(snapshot.pages, snapshot.slot)

    def admit(self, prefixes: Sequence[PrefixHash], read: Callable[[Sequence[npt.NDArray[Any]]], bool]) -> bool:
        """Take a snapshot at the end of pages with these hashes from elsewhere, by a function that fills its arrays.

        False where there is no room for it, or the function could not do that.
        """
        slot = self.take_slot()
        pages: list[list[int]] = [[] for _ in self._windowed]
        wanted = [len(prefixes) - group.first_needed(len(prefixes) * PAGE_TOKENS) for group in self._windowed]
        for group, some, count in zip(self._windowed, pages, wanted, strict=True):
            while len(some) < count:
                self.make_room(group.pool)
                if not group.pool.available:
                    break
                some.append(group.pool.take())
        if [*map(len, pages)] != wanted or not read(self._contents(pages, slot, to_fill=True)):
            self._give_back(pages, slot)
            return False
        self._add(prefixes, pages, slot, PROMPT)
        return True

    def restore(self, prefixes: Sequence[PrefixHash], pages: int, row: int, held: Sequence[HeldPages]) -> int:
        """Take a sequence's state to the newest snapshot of its text, as `newest` finds it; returns its position.

        The position is 0 where there is no snapshot: at position 0 no state is needed.
        """
        end = self.newest(prefixes, pages)
        if not end:
            for one in held:
                one.share(0, ())
            return 0
        snapshot = self._use(prefixes[end - 1])
        position = end * PAGE_TOKENS
        if self.fixed is not None:
            self.fixed.load(snapshot.slot, row, position)
        for one, shared in zip(held, snapshot.pages, strict=True):
            one.share(end - len(shared), shared)
        return position

    def make_room(self, pool: PagePool) -> None:
        """Drop snapshots until the pool of a window has a page to give, or no snapshot is left."""
        while not pool.available and self._kept:
            self._drop_least()

    def release(self) -> None:
        """Forget all arrays, when the engine is closed."""
        if self.fixed is not None:
            self.fixed.release()

    def _use(self, prefix: PrefixHash) -> Snapshot:
        snapshot = self._kept[prefix] = self._kept.pop(prefix)  # of equals the one used last stays
        snapshot.used = self._clock
        return snapshot

    def _drop_least(self) -> None:
        """Drop the snapshot that is worth least."""
        self._drop(min(self._kept, key=lambda prefix: self._kept[prefix].used + WORTH * self._kept[prefix].saves))

    def _drop(self, prefix: PrefixHash) -> None:
        gone = self._kept.pop(prefix)
        for other in self._kept.values():
            if other.before == prefix:
                other.before, other.saves = gone.before, other.saves + gone.saves
        self._give_back(gone.pages, gone.slot)

    def take_slot(self) -> int:
        """Make room for one snapshot more; returns its slot for the fixed state.

        Every sequence may hold one slot for itself: there are `LEAST_SNAPSHOTS` for each (`workspace.py`).
        """
        # Pools do not bound the snapshots of windows of one token, which hold no pages.
        if len(self._kept) == self._most or (self.fixed is not None and not self._free):
            self._drop_least()
        return -1 if self.fixed is None else self._free.pop()

    def give_back_slot(self, slot: int) -> None:
        """Let a slot be taken by others."""
        if self.fixed is not None:
            self._free.append(slot)

    def _give_back(self, pages: Sequence[Sequence[int]], slot: int) -> None:
        self.give_back_slot(slot)
        for group, some in zip(self._windowed, pages, strict=True):
            for page in some:
                group.pool.release(page)

    def _add(self, prefixes: Sequence[PrefixHash], pages: list[list[int]], slot: int, phase: int) -> None:
        """Add a snapshot at the end of pages with these hashes."""
        earlier = self.newest(prefixes, len(prefixes) - 1)
        before, saves = prefixes[earlier - 1] if earlier else None, (len(prefixes) - earlier) * PAGE_TOKENS
        self._kept[prefixes[-1]] = Snapshot(pages, slot, before, saves, phase, self._clock)

    def _contents(self, pages: Sequence[Sequence[int]], slot: int, to_fill: bool = False) -> list[npt.NDArray[Any]]:
        """The pages of each window, and the copy of the fixed state; the caller writes to them where that is said."""
        arrays = [
            array
            for group, some in zip(self._windowed, pages, strict=True)
            for page in some
            for array in (group.arrays_to_fill(page) if to_fill else group.arrays_of(page))
        ]
        return arrays if self.fixed is None else [*arrays, *self.fixed.copies(slot)]
