"""A sequence: the ids of its tokens, its place in a conversation, and the pages that hold its keys and values.

Sequences of one engine share a pool of pages (`pages.py`). A page in which two sequences agree is one page, and whoever
would write to a page that another sequence uses gets a copy of it first.

Invariants: a sequence of `n` tokens has pages for at least `n` positions, each listed in its row of the page table. A
full page is named by the hash of all tokens up to its end, and stays as it is while it has a name.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edgemoe.engine.pages import PagePool, PrefixHash, prefix_hash
from edgemoe.engine.phase import Turn
from edgemoe.engine.token_ids import TokenIds, check_ids
from edgemoe.errors import UsageError
from edgemoe.kernels.operations import PAGE_TOKENS, Cache, Integers, QuantisedCache

CopyPage = Callable[[int, int], None]
"""Copies the keys and values of one page to another, in every layer."""


class Sequence:
    """One stream of tokens; make one with `Sequences.open`."""

    def __init__(self, pool: PagePool, row: int, table: Integers, copy_page: CopyPage, keeps_prefixes: bool) -> None:
        """`table` is the row of the page table, `(P,)`, whose number is `row`."""
        self.ids: list[int] = []
        """The tokens whose keys and values are there."""
        self.turn = Turn()
        self.row = row
        self._pool = pool
        self._table = table
        self._copy_page = copy_page
        self._keeps_prefixes = keeps_prefixes
        self._pages: list[int] = []
        self._hashes: list[PrefixHash] = []  # of the full pages

    @property
    def position(self) -> int:
        """The number of its tokens, and the position of the next one."""
        return len(self.ids)

    def adopt(self, token_ids: npt.NDArray[np.integer]) -> int:
        """Begin an empty sequence with the longest kept prefix of these tokens; returns how many tokens that is.

        At least the last token is left to be run, since its logits are not kept. The result is the same to the bit as
        running all tokens.
        """
        assert not self.ids
        found: PrefixHash = b""
        for first in range(0, len(token_ids) - 1 - PAGE_TOKENS + 1, PAGE_TOKENS):
            part = token_ids[first : first + PAGE_TOKENS]
            found = prefix_hash(found, part)
            page = self._pool.find(found)
            if page is None:
                break
            self._pool.share(page)
            self._append(page)
            self._hashes.append(found)
            self.ids.extend(part.tolist())
        return len(self.ids)

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` more tokens, in pages that no other sequence uses.

        Raises UsageError where the pool has too few; then nothing has changed.
        """
        end = -(-(len(self.ids) + tokens) // PAGE_TOKENS)
        number, within = divmod(len(self.ids), PAGE_TOKENS)
        copies = within > 0 and self._pool.is_shared(self._pages[number])
        if max(0, end - len(self._pages)) + copies > self._pool.available:
            raise UsageError(
                f"All {self._pool.pages * PAGE_TOKENS} positions of the KV cache are in use.",
                "Close a sequence, or give more memory (`ram`) or fewer `sequences` for longer contexts.",
            )
        if copies:
            shared, own = self._pages[number], self._pool.take()
            self._copy_page(shared, own)
            self._pool.release(shared)
            self._pages[number] = self._table[number] = own
        elif within:
            self._pool.unname(self._pages[number])
        while len(self._pages) < end:
            self._append(self._pool.take())

    def extend(self, token_ids: npt.NDArray[np.integer]) -> None:
        """Note tokens that were run, for which room was reserved; name the pages that they have filled."""
        self.ids.extend(token_ids.tolist())
        if not self._keeps_prefixes:
            return
        for number in range(len(self._hashes), len(self.ids) // PAGE_TOKENS):
            before = self._hashes[-1] if self._hashes else b""
            part = self.ids[number * PAGE_TOKENS : (number + 1) * PAGE_TOKENS]
            self._hashes.append(prefix_hash(before, part))
            self._pool.name(self._pages[number], self._hashes[-1])

    def rewind(self, position: int) -> None:
        """Forget every token from `position` on. Raises UsageError for a position that is not among its tokens."""
        if not 0 <= position <= len(self.ids):
            raise UsageError(f"Cannot rewind to position {position}: there are {len(self.ids)} tokens.")
        del self.ids[position:]
        del self._hashes[position // PAGE_TOKENS :]
        self._release_from(-(-position // PAGE_TOKENS))

    def release_reserved(self) -> None:
        """Give back the pages that were reserved for tokens which were not run."""
        self._release_from(-(-len(self.ids) // PAGE_TOKENS))

    def fork(self, other: Sequence) -> None:
        """Let an empty sequence continue where this one stands, with the same pages until one of them goes on."""
        assert not other.ids
        self.release_reserved()
        for page in self._pages:
            self._pool.share(page)
            other._append(page)
        other.ids = list(self.ids)
        other._hashes = list(self._hashes)

    def release(self) -> None:
        """Give back all pages; those that are full and named stay findable until they are needed."""
        self._release_from(0)
        self.ids.clear()
        self._hashes.clear()

    def _append(self, page: int) -> None:
        self._table[len(self._pages)] = page
        self._pages.append(page)

    def _release_from(self, number: int) -> None:
        for page in reversed(self._pages[number:]):
            self._pool.release(page)
        self._table[number : len(self._pages)] = -1
        del self._pages[number:]


class Sequences:
    """Opens and closes the sequences of one engine, which share a pool of pages."""

    def __init__(self, table: Integers, state: list[Cache], vocab_size: int, keeps_prefixes: bool) -> None:
        """`table`: the page table `(S, P)`; `state`: the arrays of all layers that are indexed by page.

        With `keeps_prefixes` full pages are found again by the tokens up to their end: their contents must depend on
        these tokens alone.
        """
        self._table = table
        self._state = state
        self._vocab_size = vocab_size
        self._keeps_prefixes = keeps_prefixes
        self._pool = PagePool(table.size)
        self._open: set[Sequence] = set()
        self._free_rows = list(range(len(table) - 1, -1, -1))
        table.fill(-1)

    @property
    def most(self) -> int:
        """How many sequences may be open at a time."""
        return len(self._table)

    def open(self, token_ids: TokenIds | None = None) -> Sequence:
        """Open a sequence; with `token_ids`, one that begins with the longest kept prefix of these tokens.

        The caller runs the tokens from the new sequence's `position` on. Raises UsageError where as many sequences are
        open as there is room for, and for ids outside the vocabulary.
        """
        ids = None if token_ids is None else check_ids(token_ids, self._vocab_size)
        if not self._free_rows:
            raise UsageError(
                f"{self.most} sequences are open, which is all there is room for.",
                "Close one, or open the model with a larger number of `sequences`.",
            )
        row = self._free_rows.pop()
        sequence = Sequence(self._pool, row, self._table[row], self._copy_page, self._keeps_prefixes)
        self._open.add(sequence)
        if ids is not None:
            sequence.adopt(ids)
        return sequence

    def check(self, sequence: Sequence) -> None:
        """Raise UsageError unless the sequence is open here."""
        if sequence not in self._open:
            raise UsageError("The sequence is closed, or belongs to another model.", "Open one with this model.")

    def fork(self, sequence: Sequence) -> Sequence:
        """Open a sequence that continues where another one stands; they share memory until one of them goes on.

        Raises UsageError as `open`, and for a closed sequence.
        """
        self.check(sequence)
        other = self.open()
        sequence.fork(other)
        return other

    def close(self, sequence: Sequence) -> None:
        """Close a sequence; the prefixes of its tokens are kept until their memory is needed.

        Raises UsageError for a closed sequence.
        """
        self.check(sequence)
        sequence.release()
        self._open.remove(sequence)
        self._free_rows.append(sequence.row)

    def release(self) -> None:
        """Forget the arrays of all layers, when the engine is closed."""
        self._state.clear()

    def _copy_page(self, source: int, destination: int) -> None:
        for cache in self._state:
            for array in (cache.values, cache.scales) if isinstance(cache, QuantisedCache) else (cache,):
                array[destination] = array[source]
