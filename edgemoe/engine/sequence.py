"""A sequence: the ids of its tokens, its place in a conversation, and what it keeps of them.

Sequences of one engine share a pool of pages (`pages.py`). A page in which two sequences agree is one page, and whoever
would write to a page that another sequence uses gets a copy of it first.

Keys and values lie in pages, which can be cut anywhere. Fixed state (`fixed_state.py`), where a model has some, cannot:
a sequence that is rewound further than it can undo goes back to its newest snapshot, and the tokens between are
`behind` until the engine has run them again.

Invariants: a sequence of `n` tokens has pages for at least `n` positions, each listed in its row of the page table. A
full page is named by the hash of all tokens up to its end, and stays as it is while it has a name. The fixed state is
that after `n - behind` tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edgemoe.engine.fixed_state import FixedState
from edgemoe.engine.pages import PagePool, PrefixHash, prefix_hash
from edgemoe.engine.phase import Turn
from edgemoe.engine.token_ids import TokenIds, check_ids
from edgemoe.errors import UsageError
from edgemoe.kernels.operations import PAGE_TOKENS, Cache, Integers, QuantisedCache

CopyPage = Callable[[int, int], None]
"""Copies the keys and values of one page to another, in every layer."""


class Sequence:
    """One stream of tokens; make one with `Sequences.open`."""

    def __init__(
        self,
        pool: PagePool,
        row: int,
        table: Integers,
        copy_page: CopyPage,
        keeps_prefixes: bool,
        fixed: FixedState | None = None,
    ) -> None:
        """`table` is the row of the page table, `(P,)`, whose number is `row`; `fixed`: the fixed state of all rows."""
        self.ids: list[int] = []
        """Its tokens, whose keys and values are there (fixed state lacks those that are `behind`)."""
        self.turn = Turn()
        self.row = row
        self._pool = pool
        self._table = table
        self._copy_page = copy_page
        self._keeps_prefixes = keeps_prefixes
        self._pages: list[int] = []
        self._hashes: list[PrefixHash] = []  # of the full pages
        self._fixed = fixed
        self._lost_before = 0  # the fixed state can be taken back by itself to this position, and no further
        self.behind = 0
        """How many of its last tokens have to be run again before others follow."""

    @property
    def position(self) -> int:
        """The number of its tokens, and the position of the next one."""
        return len(self.ids)

    @property
    def resumes_at(self) -> int:
        """The position of the token that has to be run next."""
        return len(self.ids) - self.behind

    def adopt(self, token_ids: npt.NDArray[np.integer]) -> int:
        """Begin an empty sequence with the longest kept prefix of these tokens; returns how many tokens that is.

        At least the last token is left to be run, since its logits are not kept. The result is the same to the bit as
        running all tokens. A model with fixed state needs a snapshot at the end of the prefix too.
        """
        assert not self.ids
        found, pages, hashes = b"", [], []
        for first in range(0, len(token_ids) - 1 - PAGE_TOKENS + 1, PAGE_TOKENS):
            found = prefix_hash(found, token_ids[first : first + PAGE_TOKENS])
            page = self._pool.find(found)
            if page is None:
                break
            pages.append(page)
            hashes.append(found)
        if self._fixed is not None:
            self._lost_before = self._fixed.restore(hashes, self.row)
            del pages[self._lost_before // PAGE_TOKENS :]
        for page in pages:
            self._pool.share(page)
            self._append(page)
        self._hashes = hashes[: len(pages)]
        self.ids = token_ids[: len(pages) * PAGE_TOKENS].tolist()
        return len(self.ids)

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` more tokens, in pages that no other sequence uses.

        Tokens that are run again write the same bits to their pages, which therefore stay shared; except where bits do
        not follow from the tokens alone. Raises UsageError where the pool has too few; then nothing has changed.
        """
        end = -(-(len(self.ids) + tokens) // PAGE_TOKENS)
        changed = (len(self.ids) if self._keeps_prefixes else self.resumes_at) // PAGE_TOKENS
        shared = [n for n in range(changed, len(self._pages)) if self._pool.is_shared(self._pages[n])]
        if max(0, end - len(self._pages)) + len(shared) > self._pool.available:
            raise UsageError(
                f"All {self._pool.pages * PAGE_TOKENS} positions of the KV cache are in use.",
                "Close a sequence, or give more memory (`ram`) or fewer `sequences` for longer contexts.",
            )
        for number in shared:
            page, own = self._pages[number], self._pool.take()
            self._copy_page(page, own)
            self._pool.release(page)
            self._pages[number] = self._table[number] = own
        if len(self.ids) % PAGE_TOKENS:
            self._pool.unname(self._pages[-1])
        while len(self._pages) < end:
            self._append(self._pool.take())

    def extend(self, token_ids: npt.NDArray[np.integer]) -> None:
        """Note tokens that were run, for which room was reserved; name the pages that they have filled."""
        before = len(self.ids)
        self.ids.extend(token_ids.tolist())
        if self._keeps_prefixes:
            for number in range(len(self._hashes), len(self.ids) // PAGE_TOKENS):
                self._hashes.append(self._hash_of(number, self._hashes, self.ids))
                self._pool.name(self._pages[number], self._hashes[-1])
        if self._fixed is not None:
            self._note_state(self._fixed, before, len(self.ids), self._hashes)

    def catch_up(self) -> None:
        """Note that the tokens which were `behind` have been run again."""
        assert self._fixed is not None
        before, self.behind = self.resumes_at, 0
        self._note_state(self._fixed, before, len(self.ids), self._hashes)

    def stop_within(self, tokens: int) -> int:
        """The number of the next `tokens` tokens after which a run has to end for a snapshot (`keep_state`); 0: none.

        It ends with the last page that they fill, unless the state can be taken back to that place afterwards.
        """
        end = self.resumes_at + tokens
        place = end // PAGE_TOKENS * PAGE_TOKENS
        if self._fixed is None or not self._keeps_prefixes or end - place <= self._fixed.undo:
            return 0
        return max(0, place - self.resumes_at)

    def keep_state(self, token_ids: npt.NDArray[np.integer]) -> None:
        """Take a snapshot where `stop_within` said, after these tokens, which have been run and are not noted yet."""
        assert self._fixed is not None
        ids = [*self.ids[: self.resumes_at], *token_ids.tolist()]
        hashes = self._hashes[: self.resumes_at // PAGE_TOKENS]
        while len(hashes) < len(ids) // PAGE_TOKENS:
            hashes.append(self._hash_of(len(hashes), hashes, ids))
        self._fixed.keep(hashes[-1], self.row, len(ids))

    def rewind(self, position: int) -> None:
        """Forget every token from `position` on. Raises UsageError for a position that is not among its tokens.

        Tokens that are `behind` afterwards are run again, when the next ones are.
        """
        if type(position) is bool or not isinstance(position, (int, np.integer)) or not 0 <= position <= len(self.ids):
            raise UsageError(
                f"Cannot rewind to position {position}: there are {len(self.ids)} tokens.",
                f"Give a whole number from 0 to {len(self.ids)}.",
            )
        if self._fixed is not None:
            stands = self.resumes_at
            self.behind = position - (stands if stands <= position else self._take_back(self._fixed, position))
        del self.ids[position:]
        del self._hashes[position // PAGE_TOKENS :]
        self._release_from(-(-position // PAGE_TOKENS))

    def release_reserved(self) -> None:
        """Give back the pages that were reserved for tokens which were not run."""
        self._release_from(-(-len(self.ids) // PAGE_TOKENS))

    def give_up(self, tokens: int) -> None:
        """Give back the pages that were reserved for `tokens` tokens, whose run has failed somewhere.

        With 0 nothing was run. Otherwise nobody knows how far the run came: the fixed state is taken to have passed all
        of its tokens, and goes back from there to a place from which it is known.
        """
        self.release_reserved()
        if self._fixed is not None and tokens:
            self._lost_before = max(self._lost_before, len(self.ids) + tokens - self._fixed.undo)
            self.behind = len(self.ids) - self._take_back(self._fixed, self.resumes_at)

    def fork(self, other: Sequence) -> None:
        """Let an empty sequence continue where this one stands, with the same pages until one of them goes on."""
        assert not other.ids
        self.release_reserved()
        for page in self._pages:
            self._pool.share(page)
            other._append(page)
        other.ids = list(self.ids)
        other._hashes = list(self._hashes)
        if self._fixed is not None:
            self._fixed.copy(self.row, other.row)
            other._lost_before, other.behind = self._lost_before, self.behind

    def release(self) -> None:
        """Give back all pages; those that are full and named stay findable until they are needed."""
        self._release_from(0)
        self.ids.clear()
        self._hashes.clear()

    def _take_back(self, fixed: FixedState, position: int) -> int:
        """Take the fixed state back to `position` or, where that is lost, to the newest snapshot before; returns where.

        With no snapshot that is 0, where no state is needed.
        """
        if position < self._lost_before:
            position = fixed.restore(self._hashes[: position // PAGE_TOKENS], self.row)
            self._lost_before = position
        return position

    def _note_state(self, fixed: FixedState, before: int, end: int, hashes: list[PrefixHash]) -> None:
        """Note that the fixed state went from position `before` to `end`; keep a snapshot at the last page's end."""
        self._lost_before = max(self._lost_before, end - fixed.undo)
        pages = end // PAGE_TOKENS
        if self._keeps_prefixes and max(before + 1, self._lost_before) <= pages * PAGE_TOKENS:
            fixed.keep(hashes[pages - 1], self.row, pages * PAGE_TOKENS)

    @staticmethod
    def _hash_of(number: int, before: list[PrefixHash], ids: list[int]) -> PrefixHash:
        """The hash of the tokens up to the end of a page, from those of the pages before it."""
        part = ids[number * PAGE_TOKENS : (number + 1) * PAGE_TOKENS]
        return prefix_hash(before[number - 1] if number else b"", part)

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

    def __init__(
        self,
        table: Integers,
        state: list[Cache],
        vocab_size: int,
        keeps_prefixes: bool,
        fixed: FixedState | None = None,
    ) -> None:
        """`table`: the page table `(S, P)`; `state`: the arrays of all layers that are indexed by page; `fixed`: the
        fixed state, where the model has some.

        With `keeps_prefixes` full pages are found again by the tokens up to their end: their contents must depend on
        these tokens alone.
        """
        self._table = table
        self._state = state
        self._fixed = fixed
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
        sequence = Sequence(self._pool, row, self._table[row], self._copy_page, self._keeps_prefixes, self._fixed)
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
        if self._fixed is not None:
            self._fixed.release()

    def _copy_page(self, source: int, destination: int) -> None:
        for cache in self._state:
            for array in (cache.values, cache.scales) if isinstance(cache, QuantisedCache) else (cache,):
                array[destination] = array[source]
