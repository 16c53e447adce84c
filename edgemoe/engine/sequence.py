"""A sequence: the ids of its tokens, its place in a conversation, and what it keeps of them.

Sequences of one engine share pools of pages (`pages.py`). A page in which two sequences agree is one page, and whoever
would write to a page that another sequence uses gets a copy of it first.

Keys and values of the whole context lie in pages, which can be cut anywhere. Two kinds of state cannot, where a model
has them: layers with a window give their pages back, and fixed state (`fixed_state.py`) changes with every token. A
sequence that is rewound further than it can undo goes back to the newest snapshot of its text (`snapshots.py`), and the
tokens between are `behind` until the engine has run them again.

Invariants: a sequence of `n` tokens has pages of the whole context for at least `n` positions, each listed in its row
of the page table. A full page is named by the hash of all tokens up to its end, and stays as it is while it has a name.
The fixed state is that after `n - behind` tokens, and between steps the pages of a window end there; they begin with
the first position that is seen by the token at the position to which the sequence can go back on its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence as ListOf

import numpy as np
import numpy.typing as npt

from edgemoe.engine.fixed_state import FixedState
from edgemoe.engine.inputs import HeldInput, Inputs
from edgemoe.engine.pages import PREFIX_HASH_BYTES, HeldPages, PageGroup, PrefixHash, prefix_hash, prefix_hashes
from edgemoe.engine.phase import DECODE, VERIFY, Turn
from edgemoe.engine.prefix_disk import PrefixDisk
from edgemoe.engine.prefix_tier import PrefixTier
from edgemoe.engine.snapshots import Snapshots
from edgemoe.engine.token_ids import TokenIds, check_ids
from edgemoe.errors import UsageError
from edgemoe.kernels.operations import PAGE_TOKENS


class Sequence:
    """One stream of tokens; make one with `Sequences.open`."""

    def __init__(
        self,
        row: int,
        groups: ListOf[PageGroup],
        keeps_prefixes: bool,
        snapshots: Snapshots | None = None,
        inputs: Inputs | None = None,
        tier: PrefixTier | None = None,
    ) -> None:
        """`row`: its row of the page tables; `groups`: the whole context first, then windows; `snapshots`: what
        sequences go back to, where the model has state that cannot be cut anywhere; `inputs`: where it has an encoder;
        `tier`: where prefixes are kept on disk too.
        """
        self.ids: list[int] = []
        """Its tokens, whose keys and values are there (state that cannot be cut lacks those that are `behind`)."""
        self.turn = Turn()
        self.row = row
        self.whole = HeldPages(groups[0], row)
        """Its pages of the whole context."""
        self.windowed = [HeldPages(group, row) for group in groups[1:]]
        """Its pages of each window."""
        self.input = None if inputs is None else HeldInput(inputs, row)
        """State of its input, in a model with an encoder; None in any other."""
        self._keeps_prefixes = keeps_prefixes
        self._hashes: list[PrefixHash] = []  # of the full pages
        self._snapshots = snapshots
        self._tier = tier
        self._lost_before = 0  # the sequence can go back to this position on its own, and no further
        self._running = 0  # tokens of a run that has begun and is not noted yet
        self._mark: tuple[int, int] | None = None  # the slot of a copy of the fixed state, and its position
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
        running all tokens. A model with state that cannot be cut needs a snapshot at the end of the prefix too.
        """
        assert not self.ids
        hashes = prefix_hashes(token_ids[:-1])
        if self._tier is not None:
            self._tier.bring(hashes)
        pages: list[int] = []
        for prefix in hashes:
            page = self.whole.pool.find(prefix)
            if page is None:
                break
            pages.append(page)
        del hashes[len(pages) :]
        if self._snapshots is not None:
            self._lost_before = self._snapshots.restore(hashes, len(hashes), self.row, self.windowed)
            del pages[self._lost_before // PAGE_TOKENS :]
        self.whole.share(0, pages)
        self._hashes = hashes[: len(pages)]
        self.ids = token_ids[: len(pages) * PAGE_TOKENS].tolist()
        return len(self.ids)

    def reserve(self, tokens: int) -> None:
        """Make room in the whole context for `tokens` more tokens, in pages that no other sequence uses.

        Tokens that are run again write the same bits to their pages, which therefore stay shared; except where bits do
        not follow from the tokens alone. Raises UsageError where the pool has too few; then nothing has changed.
        """
        whole, pool = self.whole, self.whole.pool
        end = -(-(len(self.ids) + tokens) // PAGE_TOKENS)
        changed = (len(self.ids) if self._keeps_prefixes else self.resumes_at) // PAGE_TOKENS
        shared = [n for n in range(changed, whole.end) if pool.is_shared(whole.pages[n])]
        if max(0, end - whole.end) + len(shared) > pool.available:
            raise UsageError(
                f"All {pool.pages * PAGE_TOKENS} positions of the KV cache are in use.",
                "Close a sequence, or give more memory (`ram`) or fewer `sequences` for longer contexts.",
            )
        for number in shared:
            whole.own(number)
        if len(self.ids) % PAGE_TOKENS:
            pool.unname(whole.pages[-1])
        while whole.end < end:
            whole.append(pool.take())

    def mark(self, tokens: int) -> None:
        """Begin a step of `tokens` tokens: where some of them may be taken back, keep the fixed state of now.

        It is kept until the next step begins, and only where it could not be taken back otherwise.
        """
        snapshots = self._snapshots
        if snapshots is None or snapshots.fixed is None:
            return
        self._unmark(snapshots)
        if self.turn.phase == VERIFY and snapshots.undo < tokens:
            slot = snapshots.take_slot()
            snapshots.fixed.save(slot, self.row, len(self.ids))
            self._mark = slot, len(self.ids)

    def _unmark(self, snapshots: Snapshots) -> None:
        if self._mark is not None:
            snapshots.give_back_slot(self._mark[0])
            self._mark = None

    def begin_run(self, tokens: int) -> None:
        """Make room in the windows for the next `tokens` tokens, which are about to be run (again, if it is behind).

        Only these, since the windows' pools have room for one run. Models without state that cannot be cut need not
        call it.
        """
        assert self._snapshots is not None
        self._running = tokens
        partial, end = self.resumes_at % PAGE_TOKENS, -(-(self.resumes_at + tokens) // PAGE_TOKENS)
        for held in self.windowed:
            pool = held.pool
            if partial and pool.is_shared(held.pages[-1]):
                self._snapshots.make_room(pool)
                if pool.is_shared(held.pages[-1]):  # not only with a snapshot that has made way
                    held.own(held.end - 1)
            while held.end < end:
                self._snapshots.make_room(pool)
                held.append(pool.take())

    def end_run(self, token_ids: npt.NDArray[np.integer]) -> None:
        """Note tokens that were run, for which room was made; name the pages that they have filled."""
        if self.behind:
            self.behind -= len(token_ids)
        else:
            self.ids.extend(token_ids.tolist())
            for number in range(len(self._hashes), len(self.ids) // PAGE_TOKENS):
                self._hashes.append(self._hash_of(number))
                if self._keeps_prefixes:
                    self.whole.pool.name(self.whole.pages[number], self._hashes[-1])
                if self._tier is not None:
                    self._tier.note("page", self._hashes[-1], number)
        if self._snapshots is not None:
            self._note_state(self._snapshots, len(token_ids))

    def stop_within(self, tokens: int) -> int:
        """The number of the next `tokens` tokens after which a run has to end for a snapshot of fixed state; 0: none.

        It ends with the last page that they fill, unless the state can be taken back to that place afterwards.
        """
        if self._snapshots is None or self._snapshots.fixed is None:
            return 0
        end = self.resumes_at + tokens
        place = end // PAGE_TOKENS * PAGE_TOKENS
        return 0 if end - place <= self._snapshots.undo else max(0, place - self.resumes_at)

    def rewind(self, position: int) -> None:
        """Forget every token from `position` on. Raises UsageError for a position that is not among its tokens.

        Tokens that are `behind` afterwards are run again, when the next ones are.
        """
        if type(position) is bool or not isinstance(position, (int, np.integer)) or not 0 <= position <= len(self.ids):
            raise UsageError(
                f"Cannot rewind to position {position}: there are {len(self.ids)} tokens.",
                f"Give a whole number from 0 to {len(self.ids)}.",
            )
        self._go_back(int(position))

    def give_up(self, position: int) -> None:
        """Go back to the position at which a step began that has failed somewhere.

        Nobody knows how far the run came that failed: fixed state is taken to have passed all of its tokens.
        """
        if self._running and self._snapshots is not None and self._snapshots.fixed is not None:
            passed = self.resumes_at + self._running
            self._lost_before = max(self._lost_before, passed - self._snapshots.undo)
        self._running = 0
        self._go_back(position)

    def fork(self, other: Sequence) -> None:
        """Let an empty sequence continue where this one stands, with the same pages until one of them goes on."""
        assert not other.ids
        for held, others in zip((self.whole, *self.windowed), (other.whole, *other.windowed), strict=True):
            others.share(held.first, held.pages)
        other.ids = list(self.ids)
        other._hashes = list(self._hashes)
        other._lost_before, other.behind = self._lost_before, self.behind
        if self.input is not None and other.input is not None:
            self.input.share(other.input)
        if self._snapshots is not None and self._snapshots.fixed is not None:
            self._snapshots.fixed.copy(self.row, other.row)

    def release(self) -> None:
        """Give back all pages; those that are full and named stay findable until they are needed."""
        for held in (self.whole, *self.windowed):
            held.share(0, ())
        if self.input is not None:
            self.input.release()
        if self._snapshots is not None:
            self._unmark(self._snapshots)
        self.ids.clear()
        self._hashes.clear()

    def _go_back(self, position: int) -> None:
        """Forget every token from `position` on, and every page that was reserved for more."""
        if self._snapshots is not None:
            self.behind = position - self._take_back(self._snapshots, min(position, self.resumes_at))
        del self.ids[position:]
        del self._hashes[position // PAGE_TOKENS :]
        self.whole.release_from(-(-position // PAGE_TOKENS))

    def _take_back(self, snapshots: Snapshots, position: int) -> int:
        """Take state that cannot be cut to `position` or, where that is lost, to the newest snapshot before it.

        Returns where it stands then. With no snapshot that is 0, where no state is needed.
        """
        if position < self._lost_before:
            newest = snapshots.newest(self._hashes, position // PAGE_TOKENS) * PAGE_TOKENS
            if self._mark is not None and newest < self._mark[1] <= position and snapshots.fixed is not None:
                slot, position = self._mark
                snapshots.fixed.load(slot, self.row, position)
            else:
                position = snapshots.restore(self._hashes, position // PAGE_TOKENS, self.row, self.windowed)
            self._lost_before = position
        if self._mark is not None and position < self._mark[1]:
            self._unmark(snapshots)
        for held in self.windowed:
            held.release_from(-(-position // PAGE_TOKENS))
        return position

    def _note_state(self, snapshots: Snapshots, tokens: int) -> None:
        """Note that state which cannot be cut has passed `tokens` tokens: keep a snapshot, and forget what is old.

        The snapshot's place is the end of the last page that the tokens have filled.
        """
        self._running = 0
        end = self.resumes_at
        self._lost_before = max(self._lost_before, end - snapshots.undo)
        pages = end // PAGE_TOKENS
        place = pages * PAGE_TOKENS
        lost = snapshots.fixed is not None and place < self._lost_before
        if end - tokens < place and not lost:
            snapshots.keep(self._hashes[:pages], self.row, self.windowed, min(self.turn.phase, DECODE))
            if self._tier is not None:
                self._tier.note("state", self._hashes[pages - 1], pages)
        earliest = self._lost_before if self._mark is None else min(self._lost_before, self._mark[1])
        for held in self.windowed:
            held.release_before(held.group.first_needed(earliest))

    def _hash_of(self, number: int) -> PrefixHash:
        """The hash of the tokens up to the end of a page, from that of the page before it.

        Where bits do not follow from tokens alone it is a name that only this sequence and its forks know.
        """
        if not self._keeps_prefixes:
            return os.urandom(PREFIX_HASH_BYTES)
        part = self.ids[number * PAGE_TOKENS : (number + 1) * PAGE_TOKENS]
        before = b"" if self.input is None else self.input.digest
        return prefix_hash(self._hashes[number - 1] if number else before, part)


class Sequences:
    """Opens and closes the sequences of one engine, which share pools of pages."""

    def __init__(
        self,
        groups: ListOf[PageGroup],
        vocab_size: int,
        keeps_prefixes: bool,
        fixed: FixedState | None = None,
        inputs: Inputs | None = None,
    ) -> None:
        """`groups`: the pages of layers that see the whole context, then those of each window; `fixed`: the fixed
        state, where the model has some; `inputs`: what sequences keep of theirs, where it has an encoder.

        With `keeps_prefixes` full pages are found again by the tokens up to their end: their contents must depend on
        these tokens alone.
        """
        self._groups = groups
        self._vocab_size = vocab_size
        self._keeps_prefixes = keeps_prefixes
        self._snapshots = None if len(groups) == 1 and fixed is None else Snapshots(groups[1:], fixed)
        self._inputs = inputs
        self.tier: PrefixTier | None = None
        """The prefixes on disk, where some are kept."""
        self._open: set[Sequence] = set()
        self.most = len(groups[0].table)
        """How many sequences may be open at a time."""
        self._free_rows = list(range(self.most - 1, -1, -1))

    @property
    def forgetful(self) -> bool:
        """Whether sequences have state that cannot be cut anywhere, so that each run must be announced to them."""
        return self._snapshots is not None

    def open(self, token_ids: TokenIds | None = None) -> Sequence:
        """Open a sequence; with `token_ids`, one that begins with the longest kept prefix of these tokens.

        The caller runs the tokens from the new sequence's `position` on. Raises UsageError where as many sequences are
        open as there is room for, for ids outside the vocabulary, and for ids of a model with an encoder, whose tokens
        depend on an input too.
        """
        ids = None if token_ids is None else check_ids(token_ids, self._vocab_size)
        if ids is not None and self._inputs is not None:
            raise UsageError(
                "This model reads an input before it writes, so tokens alone have no kept prefix.",
                "Open a sequence without tokens, and give it an input with `Engine.encode`.",
            )
        if not self._free_rows:
            raise UsageError(
                f"{self.most} sequences are open, which is all there is room for.",
                "Close one, or open the model with a larger number of `sequences`.",
            )
        row = self._free_rows.pop()
        sequence = Sequence(row, self._groups, self._keeps_prefixes, self._snapshots, self._inputs, self.tier)
        self._open.add(sequence)
        if ids is not None:
            sequence.adopt(ids)
        return sequence

    def keep_on_disk(self, disk: PrefixDisk) -> None:
        """Keep the prefixes of sequences that are opened from now on in files too."""
        self.tier = PrefixTier(disk, self._groups[0], self._snapshots)

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
        for group in self._groups:
            group.arrays.clear()
        if self._inputs is not None:
            self._inputs.group.arrays.clear()
        if self._snapshots is not None:
            self._snapshots.release()
