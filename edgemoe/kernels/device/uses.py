"""Finds what operations use of arrays without a row for each token: pages of the KV cache, slots of experts, tables.

The device has copies of these, and its kernels check nothing. So before a run the host looks which units it uses, a
page or a slot each, and whether positions, sequences and ids are as they must be. Where they are not, the processor has
to say what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import numpy as np

from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.kernels import state_operations as st

NONE = np.zeros(0, np.int32)


class Use(NamedTuple):
    """Units of arrays that a run uses."""

    key: Hashable
    """Uses of one key have the same units."""
    find: Callable[[int], op.Integers | None]
    """Returns the units of a run of so many tokens, each once; None where something is not as it must be."""
    arrays: tuple[Any, ...] = ()
    """Arrays of units."""
    writes: bool = False
    repeatable: bool = True
    """Whether an operation that has run leaves the same when it runs again."""
    ranges: tuple[tuple[op.Integers, int, int], ...] = ()
    """Rows with the least of their numbers and the end of these, which are to be looked at where the host made them."""


LEAVE_SOME = (ex.Experts, ex.TableRoute)
"""Operations that may leave numbers of their results as they were."""


def uses_of(operation: op.Operation) -> Iterator[Use]:
    """Yield what an operation uses."""
    if type(operation) in _USES:
        yield _USES[type(operation)](operation)


def _key(kind: str, *members: Any) -> Hashable:
    """Return a key by the identities of arrays, and by numbers."""
    places = (m.__array_interface__["data"][0] if isinstance(m, np.ndarray) else m for m in members)
    return (kind, *places)


def _parts(cache: op.Cache | None) -> tuple[Any, ...]:
    if cache is None:
        return ()
    return (cache.values, cache.scales) if isinstance(cache, op.QuantisedCache) else (cache,)


def within(numbers: Any, least: int, end: int) -> bool:
    """Whether all numbers are in a range."""
    return bool(((numbers >= least) & (numbers < end)).all())


def _below(numbers: Any, end: int) -> bool:
    return within(numbers, 0, end)


def _by_position(o: op.Rope | op.ScaleByPosition) -> Use:
    table = o.cosine if isinstance(o, op.Rope) else o.factors
    context = table.shape[0]
    return Use(
        _key("positions", o.positions, context),
        lambda tokens: NONE if _below(o.positions[:tokens], context) else None,
    )


def _pages_of_rows(o: Any, tokens: int) -> op.Integers | None:
    """Return the pages of the positions of rows."""
    positions, sequences = o.positions[:tokens], o.sequences[:tokens]
    if not _below(sequences, o.pages.shape[0]) or not _below(positions, o.pages.shape[1] * op.PAGE_TOKENS):
        return None
    return np.unique(o.pages[sequences, positions // op.PAGE_TOKENS])


def _stored(o: st.StoreKv | st.StoreLatent) -> Use:
    caches = (o.key_cache, o.value_cache) if isinstance(o, st.StoreKv) else (o.latent_cache,)
    count = caches[0].shape[0]

    def find(tokens: int) -> op.Integers | None:
        pages = _pages_of_rows(o, tokens)
        return pages if pages is not None and _below(pages, count) else None

    arrays = tuple(part for cache in caches for part in _parts(cache))
    return Use(_key("stored", o.positions, o.sequences, o.pages, count), find, arrays, writes=True)


def _seen_pages(o: st.Attention, tokens: int) -> op.Integers | None:
    """Return the pages of the positions that rows see."""
    table, positions, sequences = o.pages, o.positions[:tokens], o.sequences[:tokens]
    if not _below(sequences, table.shape[0]) or (positions < 0).any():
        return None
    end = positions.astype(np.int64) + 1 if o.lengths is None else o.lengths[sequences]
    last = (end - 1) // op.PAGE_TOKENS
    if (end < 1).any() or (last >= table.shape[1]).any():
        return None
    first = np.zeros_like(last)
    if o.window:
        first = positions - positions % o.window if o.chunked else np.maximum(0, positions - o.window + 1)
        first = first // op.PAGE_TOKENS
    changes = np.zeros((table.shape[0], table.shape[1] + 1), np.int32)
    np.add.at(changes, (sequences, first), 1)
    np.add.at(changes, (sequences, last + 1), -1)
    return np.unique(table[np.cumsum(changes, axis=1)[:, :-1] > 0])


def _attended(o: st.Attention) -> Use:
    count, arrays = o.key_cache.shape[0], (*_parts(o.key_cache), *_parts(o.value_cache))
    heads = o.query.shape[1] // o.key_cache.shape[3]

    def find(tokens: int) -> op.Integers | None:
        pages = _seen_pages(o, tokens)
        if pages is None or not _below(pages, count):
            return None
        if o.factors is not None and not _below(o.positions[:tokens], o.factors.shape[0]):
            return None
        if o.bias is not None and not _below(o.bias.bucket_of, o.bias.table.shape[0] // heads):
            return None
        return pages

    own = (o.window, o.chunked, count, o.lengths, o.factors, None if o.bias is None else o.bias.table)
    return Use(_key("attended", o.positions, o.sequences, o.pages, *own), find, arrays)


def _looked_up(o: ex.TableRoute) -> Use:
    def find(tokens: int) -> op.Integers | None:
        ids, table = o.ids[:tokens], o.table.reshape(-1, o.experts.shape[1])
        return NONE if _below(ids, len(table)) and _below(table[ids], o.num_experts) else None

    return Use(_key("looked up", o.ids, o.table), find)


def _slots(o: ex.Experts) -> Use:
    def find(tokens: int) -> op.Integers | None:
        slots = np.unique(o.slots[o.slots >= 0])
        known = (o.layout_of < len(o.layouts)).all() and _below(slots, o.arena.shape[0])
        return slots if known else None

    return Use(_key("slots", o.slots, o.arena), find, (o.arena,), ranges=((o.experts, -1, o.slots.shape[0]),))


def _of_sequences(o: st.ShortConv | st.DeltaRule | st.SelectiveScan | st.ChannelScan) -> Use:
    states = o.inputs if isinstance(o, st.ShortConv) else o.states
    count = states.shape[0]

    def find(tokens: int) -> op.Integers | None:
        sequences, positions = o.sequences[:tokens], o.positions[:tokens]
        return np.unique(sequences) if _below(sequences, count) and (positions >= 0).all() else None

    key = _key("sequences", o.positions, o.sequences, count)
    return Use(key, find, (states,), writes=True, repeatable=False)


_USES: dict[type[op.Operation], Callable[[Any], Use]] = {
    op.Rope: _by_position,
    op.ScaleByPosition: _by_position,
    st.StoreKv: _stored,
    st.StoreLatent: _stored,
    st.Attention: _attended,
    st.ShortConv: _of_sequences,
    st.DeltaRule: _of_sequences,
    st.SelectiveScan: _of_sequences,
    st.ChannelScan: _of_sequences,
    ex.TableRoute: _looked_up,
    ex.Experts: _slots,
}
