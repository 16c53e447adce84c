"""The second tier of the prefix cache: brings prefixes from disk to RAM before a sequence looks for them, and saves new
ones when there is time.

Pages and snapshots in RAM are the first tier (`pages.py`, `snapshots.py`), within the memory budget. What is brought is
put there under its name, and from then on is like what was computed in this process.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from edgemoe.engine.pages import PageGroup, PrefixHash, prefix_hashes
from edgemoe.engine.prefix_disk import Kind, PrefixDisk
from edgemoe.engine.snapshots import Snapshots
from edgemoe.engine.token_ids import TokenIds
from edgemoe.kernels.operations import PAGE_TOKENS

MOST_UNSAVED = 1 << 14
"""How many pages and snapshots are noted at most, where there is no time to save them: the oldest are forgotten."""


class PrefixTier:
    """Moves the prefixes of one engine between RAM and disk."""

    def __init__(self, disk: PrefixDisk, whole: PageGroup, snapshots: Snapshots | None) -> None:
        """`whole`: the pages of the whole context; `snapshots`: where the model has state that cannot be cut."""
        self.disk = disk
        self._whole = whole
        self._snapshots = snapshots
        self._unsaved: dict[tuple[Kind, PrefixHash], int] = {}

    @property
    def unsaved(self) -> bool:
        """Whether something may be saved."""
        return bool(self._unsaved) and self.disk.writable

    def note(self, kind: Kind, prefix: PrefixHash, number: int) -> None:
        """Note a page or a snapshot that was made, before which a text has `number` pages."""
        self._unsaved[kind, prefix] = number
        if len(self._unsaved) > MOST_UNSAVED:
            del self._unsaved[next(iter(self._unsaved))]

    def reach(self, prefixes: Sequence[PrefixHash]) -> int:
        """The number of pages of a text, which have these hashes, that a sequence can begin with."""
        find, pages, most = self._whole.pool.find, 0, min(len(prefixes), self._whole.table.shape[1])
        while pages < most and (find(prefixes[pages]) is not None or self.disk.has("page", prefixes[pages])):
            pages += 1
        if self._snapshots is None:
            return pages
        known = self._snapshots
        has = (n for n in range(pages, 0, -1) if known.has(prefixes[n - 1]) or self.disk.has("state", prefixes[n - 1]))
        return next(has, 0)

    def kept(self, token_ids: TokenIds) -> int:
        """How many of these tokens a new sequence would begin with."""
        return self.reach(prefix_hashes(np.asarray(token_ids[:-1]))) * PAGE_TOKENS

    def bring(self, prefixes: Sequence[PrefixHash]) -> None:
        """Bring to RAM what a text has on disk, as far as there is room for its pages."""
        pool, held = self._whole.pool, []
        wanted = self.reach(prefixes)
        for number, prefix in enumerate(prefixes[:wanted]):
            page = pool.find(prefix)
            if page is not None:
                pool.share(page)
            elif not pool.available:
                break
            else:
                page = pool.take()
                if not self.disk.read("page", prefix, self._whole.arrays_to_fill(page)):
                    pool.release(page)
                    break
                pool.name(page, prefix)
            held.append(page)
            self.disk.used("page", prefix, number)
        reached = len(held)
        while self._snapshots is not None and reached and not self._bring_state(self._snapshots, prefixes[:reached]):
            reached -= 1
        for page in reversed(held):
            pool.release(page)

    def _bring_state(self, snapshots: Snapshots, prefixes: Sequence[PrefixHash]) -> bool:
        """Bring the snapshot at the end of these pages; False where there is none."""
        prefix = prefixes[-1]
        self.disk.used("state", prefix, len(prefixes))
        if snapshots.has(prefix):
            return True
        if not self.disk.has("state", prefix):
            return False
        return snapshots.admit(prefixes, lambda arrays: self.disk.read("state", prefix, arrays))

    def save_one(self) -> None:
        """Save the next page or snapshot that was noted, if RAM still has it."""
        (kind, prefix), number = next(iter(self._unsaved.items()))
        del self._unsaved[kind, prefix]
        if kind == "page":
            page = self._whole.pool.find(prefix)
            arrays = None if page is None else self._whole.arrays_of(page)
        else:
            assert self._snapshots is not None
            arrays = self._snapshots.arrays_of(prefix)
        if arrays is not None:
            self.disk.write(kind, prefix, number, arrays)

    def save(self, seconds: float) -> None:
        """Save what was noted, for at most some seconds."""
        end_s = time.monotonic() + seconds
        while self.unsaved and time.monotonic() < end_s:
            self.save_one()
