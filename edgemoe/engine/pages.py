"""The pages of keys and values: 64 positions each, shared by sequences that begin alike.

Layers that need the same pages of a sequence form a group, with one pool of pages and one table of who has which: the
layers that see the whole context, and for each window those with it. A sequence gives back the pages of a window
that lie wholly before what the window shows (`HeldPages.release_before`).

A page is exactly one block of the attention kernels, so paging changes no bit. Sequences share a page while they agree
on its tokens; one that goes on elsewhere gets a copy of a page that it shares and has not filled (copy on write). A
full page of the whole context is found again by the hash of all tokens up to its end, even after the last sequence that
used it was closed, until its memory is needed: that is the prefix cache, which may have a second tier on disk
(`prefix_tier.py`). Pages of windows are found by snapshots
(`snapshots.py`).

Invariants: a page is free, or kept for its hash alone, or used by as many sequences and snapshots as its count says. A
used page is never given out, and a kept one only when no free page is left, the one that was released first before the
others.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.errors import UsageError
from edgemoe.kernels.operations import PAGE_TOKENS, Cache, Integers, QuantisedCache
from edgemoe.model.graph import Window

PREFIX_HASH_BYTES = 16
PrefixHash = bytes
"""The digest of all tokens up to the end of a page; a pool is one engine's, so model and format are the same."""


def prefix_hash(before: PrefixHash, token_ids: Sequence[int] | npt.NDArray[np.integer]) -> PrefixHash:
    """The hash of a prefix that ends with a page of these tokens, from the hash of what comes before the page."""
    return hashlib.blake2b(
        np.asarray(token_ids, np.int32).tobytes(), digest_size=PREFIX_HASH_BYTES, key=before
    ).digest()


def prefix_hashes(token_ids: npt.NDArray[np.integer]) -> list[PrefixHash]:
    """The hashes of the full pages of a text, in order."""
    hashes, before = [], b""
    for first in range(0, len(token_ids) - PAGE_TOKENS + 1, PAGE_TOKENS):
        before = prefix_hash(before, token_ids[first : first + PAGE_TOKENS])
        hashes.append(before)
    return hashes


class PagePool:
    """Gives out pages by number; the arrays of keys and values are indexed by these numbers."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self._free = list(range(pages - 1, -1, -1))
        self._uses = [0] * pages
        self._hash_of: dict[int, PrefixHash] = {}
        self._page_of: dict[PrefixHash, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """How many pages can be taken now: those that are free, and those that only the prefix cache keeps."""
        return len(self._free) + len(self._kept)

    def take(self) -> int:
        """Take a page for one user; its contents are undefined. Raises UsageError where all are in use."""
        if self._free:
            page = self._free.pop()
        elif self._kept:
            page, _ = self._kept.popitem(last=False)
            self._forget(page)
        else:
            raise UsageError(
                f"All {self.pages * PAGE_TOKENS} positions of the KV cache are in use.",
                "Close a sequence, or give more memory (`ram`) for longer contexts.",
            )
        self._uses[page] = 1
        return page

    def share(self, page: int) -> None:
        """Count one more user of a page."""
        self._kept.pop(page, None)
        self._uses[page] += 1

    def is_shared(self, page: int) -> bool:
        """Whether the page has more than one user, so that none of them may write to it."""
        return self._uses[page] > 1

    def release(self, page: int) -> None:
        """Count one user less. A page without users is kept if it has a hash, else free."""
        self._uses[page] -= 1
        if self._uses[page]:
            return
        if page in self._hash_of:
            self._kept[page] = None
        else:
            self._free.append(page)

    def name(self, page: int, prefix: PrefixHash) -> None:
        """Let a full page be found by its prefix. A prefix that another page has already keeps that page."""
        if prefix not in self._page_of:
            self._page_of[prefix] = page
            self._hash_of[page] = prefix

    def find(self, prefix: PrefixHash) -> int | None:
        """The page with this prefix; None if there is none. The caller shares it before it takes another page."""
        return self._page_of.get(prefix)

    def unname(self, page: int) -> None:
        """Forget the prefix of a page that a sequence is about to write to again."""
        self._forget(page)

    def _forget(self, page: int) -> None:
        prefix = self._hash_of.pop(page, None)
        if prefix is not None:
            del self._page_of[prefix]


@dataclass(eq=False)
class PageGroup:
    """Layers that need the same pages of a sequence."""

    table: Integers
    """The page of each 64 positions of a sequence, `(S, P)`; -1 where it has none."""
    pages: int
    window: Window | None = None
    """The window of these layers; None: they see the whole context."""
    arrays: list[Cache] = field(default_factory=list)
    """The keys and values of all layers, indexed by page."""
    forget_copies: Callable[[Sequence[npt.NDArray[Any]]], None] = lambda arrays: None
    """The backend's (`Backend.forget_copies`)."""

    def __post_init__(self) -> None:
        self.pool = PagePool(self.pages)
        self.table.fill(-1)

    def first_needed(self, position: int) -> int:
        """The number of the first page that the token at a position sees, of those that lie before it."""
        return 0 if self.window is None else max(0, position - self.window.size + 1) // PAGE_TOKENS

    def arrays_of(self, page: int) -> list[npt.NDArray[Any]]:
        """The keys and values of one page, of each layer in turn."""
        return [
            array[page]
            for cache in self.arrays
            for array in ((cache.values, cache.scales) if isinstance(cache, QuantisedCache) else (cache,))
        ]

    def arrays_to_fill(self, page: int) -> list[npt.NDArray[Any]]:
        """The same for a caller who will write to them."""
        arrays = self.arrays_of(page)
        self.forget_copies(arrays)
        return arrays

    def copy(self, source: int, destination: int) -> None:
        """Copy the keys and values of one page to another, in every layer."""
        for to, values in zip(self.arrays_to_fill(destination), self.arrays_of(source), strict=True):
            to[...] = values


class HeldPages:
    """The pages that one sequence holds in a group: those with the numbers from `first` to `end`, without gaps."""

    def __init__(self, group: PageGroup, row: int) -> None:
        self.group = group
        self.pool = group.pool
        self.pages: list[int] = []
        self.first = 0
        self.end = 0
        self._table = group.table[row]

    def append(self, page: int) -> None:
        """Hold one page more, which was taken or shared for this sequence."""
        self._table[self.end] = page
        self.pages.append(page)
        self.end += 1

    def between(self, number: int, end: int) -> list[int]:
        """The pages from a number to another one, all of which it holds."""
        assert self.first <= number <= end <= self.end
        return self.pages[number - self.first : end - self.first]

    def share(self, first: int, pages: Sequence[int]) -> None:
        """Hold pages from number `first` on in place of all that were held, together with their other holders."""
        for page in pages:
            self.pool.share(page)
        self.release_from(0)
        self.first = self.end = first
        for page in pages:
            self.append(page)

    def own(self, number: int) -> None:
        """Hold a copy of a page in place of the page, which another sequence or a snapshot holds too."""
        page, own = self.pages[number - self.first], self.pool.take()
        self.group.copy(page, own)
        self.pool.release(page)
        self.pages[number - self.first] = self._table[number] = own

    def release_from(self, number: int) -> None:
        """Give back the pages from a number on."""
        if number >= self.end:
            return
        kept = max(0, number - self.first)
        for page in reversed(self.pages[kept:]):
            self.pool.release(page)
        del self.pages[kept:]
        self._table[self.first + kept : self.end] = -1
        self.end = self.first + kept

    def release_before(self, number: int) -> None:
        """Give back the pages before a number."""
        if number <= self.first:
            return
        count = number - self.first
        for page in self.pages[:count]:
            self.pool.release(page)
        del self.pages[:count]
        self._table[self.first : number] = -1
        self.first = number
