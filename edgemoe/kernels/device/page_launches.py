"""Operations by positions as launches: rotations, and those on the pages of the KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgemoe.kernels import operations as op
from edgemoe.kernels import state_operations as st
from edgemoe.kernels.device.places import Memory, float32, optional
from edgemoe.kernels.device.runtime import Launch, Place
from edgemoe.kernels.formats import group_count

SCORES_BYTES = 1 << 24
"""The most bytes of scores that attention has at a time, unless one page for each row takes more."""


def rope(o: op.Rope, memory: Memory) -> list[Launch]:
    """Return the launch of a rotation."""
    width, half = o.values.shape[1] // o.heads, o.cosine.shape[1]
    places = (memory.place(one) for one in (o.values, o.positions, o.cosine, o.sine))
    first = width - 2 * half if o.last else 0
    numbers = (o.heads, width, half, first, int(o.neighbours), -1.0 if o.back else 1.0)
    return [Launch("rope", (*places, *numbers), o.heads * half)]


def scale_by_position(o: op.ScaleByPosition, memory: Memory) -> list[Launch]:
    """Return the launch of factors by position."""
    places = (memory.place(one) for one in (o.values, o.positions, o.factors))
    return [Launch("scale_by_position", (*places, o.values.shape[1]), o.values.shape[1])]


def _cache_format(cache: op.Cache) -> str:
    if isinstance(cache, op.QuantisedCache):
        return "q8"
    return "f16" if cache.dtype.itemsize == 2 else "f32"


def _cache_places(cache: op.Cache, memory: Memory) -> tuple[Place, Place | None]:
    """Return the places of a cache's elements and of its scales."""
    if isinstance(cache, op.QuantisedCache):
        return memory.place(cache.values), memory.place(cache.scales)
    return memory.place(cache), None


def _store(o: Any, given: Sequence[Any], cache: op.Cache, memory: Memory) -> Launch:
    """Return the launch that writes rows to a cache, whose first columns are of one array and the others of another."""
    heads, width = cache.shape[1], cache.shape[3]
    first, rest = (*given, None)[:2]
    places = (memory.place(first), optional(rest, memory), memory.place(o.positions), memory.place(o.sequences))
    numbers = (heads, first.shape[1] // heads, width, o.pages.shape[1])
    arguments = (*places, memory.place(o.pages), *_cache_places(cache, memory), *numbers)
    return Launch(f"store_{_cache_format(cache)}", arguments, heads * group_count(width))


def store_kv(o: st.StoreKv, memory: Memory) -> list[Launch]:
    """Return the launches that write keys and values."""
    return [_store(o, [o.keys], o.key_cache, memory), _store(o, [o.values], o.value_cache, memory)]


def store_latent(o: st.StoreLatent, memory: Memory) -> list[Launch]:
    """Return the launch that writes rows of a latent and what was rotated."""
    return [_store(o, [o.latent, o.rotary], o.latent_cache, memory)]


def attention(o: st.Attention, memory: Memory) -> list[Launch]:
    """Return three launches for each run of pages: scores, weights, and the mixture of values."""
    kv_heads, width = o.key_cache.shape[1], o.key_cache.shape[3]
    heads, table_pages, kind = o.query.shape[1] // width, o.pages.shape[1], _cache_format(o.key_cache)
    value_width = o.output.shape[1] // heads
    seen = min(table_pages, (o.window + op.PAGE_TOKENS - 2) // op.PAGE_TOKENS + 1) if o.window else table_pages
    pages = max(1, min(seen, SCORES_BYTES // (4 * op.PAGE_TOKENS * heads * memory.tokens)))
    scores, decays = memory.scratch(4 * op.PAGE_TOKENS * heads * pages), memory.scratch(4 * heads * pages)
    states = memory.scratch(8 * heads)
    rows, table = (memory.place(o.positions), memory.place(o.sequences)), memory.place(o.pages)
    sights = (optional(o.lengths, memory), optional(o.chosen, memory))
    keys = _cache_places(o.key_cache, memory)
    own = o.key_cache if o.value_cache is None else o.value_cache
    values = _cache_places(own, memory)
    bias: tuple[Place | None, ...] = (None, None)
    if o.bias is not None:
        bias = (memory.place(o.bias.table), memory.place(o.bias.bucket_of))
    distances = 0 if o.bias is None else o.bias.bucket_of.shape[0]
    bit_keys = 0 if o.chosen is None else op.PAGE_TOKENS // o.page_blocks
    sight_numbers = (o.window, int(o.chunked), int(o.lengths is not None), bit_keys)
    factors, sinks, output = optional(o.factors, memory), optional(o.sinks, memory), memory.place(o.output)
    launches = []
    for first in range(0, seen, pages):
        run = (*sight_numbers, first, pages)
        of_scores = (memory.place(o.query), *rows, table, *sights, *keys, factors, *bias, scores)
        sizes = (heads, kv_heads, width, table_pages, *run, int(factors is not None), distances)
        numbers = (*sizes, float32(o.scale), float32(o.cap))
        launches.append(Launch(f"attention_scores_{kind}", (*of_scores, *numbers), heads * pages * op.PAGE_TOKENS))
        of_weights = (*rows, *sights, sinks, scores, decays, states, heads, table_pages, *run)
        launches.append(Launch("attention_weights", (*of_weights, int(sinks is not None)), heads))
        of_mixture = (*rows, table, *sights, *values, scores, decays, states, output)
        sizes = (heads, kv_heads, value_width, own.shape[3], table_pages, *run, int(first + pages >= seen))
        launches.append(Launch(f"attention_mixture_{kind}", (*of_mixture, *sizes), heads * value_width))
    return launches
