"""The pages of keys and values: 64 positions each, shared by sequences that begin alike.

A page is exactly one block of the attention kernels, so paging changes no bit. Sequences share a page while they agree
on its tokens; one that goes on elsewhere gets a copy of a page that it shares and has not filled (copy on write). A
full page is found again by the hash of all tokens up to its end, even after the last sequence that used it was closed,
until its memory is needed: that is the prefix cache.

Invariants: a page is free, or kept for its hash alone, or used by as many sequences as its count says. A used page is
never given out, and a kept one only when no free page is left, the one that was released first before the others.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgemoe.errors import UsageError
from edgemoe.kernels.operations import PAGE_TOKENS

PrefixHash = bytes
"""The digest of all tokens up to the end of a page; a pool is one engine's, so model and format are the same."""


def prefix_hash(before: PrefixHash, token_ids: Sequence[int] | npt.NDArray[np.integer]) -> PrefixHash:
    """The hash of a prefix that ends with a page of these tokens, from the hash of what comes before the page."""
    return hashlib.blake2b(np.asarray(token_ids, np.int32).tobytes(), digest_size=16, key=before).digest()


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
        """Take a page for one sequence; its contents are undefined. Raises UsageError where all are in use."""
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
        """Count one more sequence that uses a page."""
        self._kept.pop(page, None)
        self._uses[page] += 1

    def is_shared(self, page: int) -> bool:
        """Whether more than one sequence uses the page, so that none of them may write to it."""
        return self._uses[page] > 1

    def release(self, page: int) -> None:
        """Count one sequence less. A page without sequences is kept if it has a hash, else free."""
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
