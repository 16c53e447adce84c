"""The reference of the operations on the KV cache: keys and values enter it, and attention reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.kernels import state_operations as so
from edgemoe.kernels.definition import LARGEST_EXTENT, Sizes
from edgemoe.kernels.formats import GROUP_COLUMNS, group_count
from edgemoe.kernels.operations import PAGE_TOKENS, Cache, Floats, Integers, QuantisedCache
from edgemoe.kernels.reference.common import Doubles, check_each, single, softmax
from edgemoe.kernels.stepwise import StepwiseBackend, means


def quantise_cache_rows(rows: Floats) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]:
    """Quantise keys or values for a `QuantisedCache`: `(..., W)` to int8 `(..., W)`, scales `(..., groups of 32)`.

    In float32: scale = largest magnitude / 127, rounded to float16; value = round half to even of x * (1 / scale),
    at most 127 in magnitude. A group whose scale float16 cannot represent (numbers beyond 8.3 million, or not finite)
    becomes zeros with a NaN scale; a group whose scale rounds to zero becomes zeros.
    """
    columns = rows.shape[-1]
    groups = group_count(columns)
    grouped = np.zeros((*rows.shape[:-1], groups * GROUP_COLUMNS), np.float32)
    grouped[..., :columns] = rows
    grouped = grouped.reshape(*rows.shape[:-1], groups, GROUP_COLUMNS)
    with np.errstate(over="ignore"):
        scales = (np.abs(grouped).max(axis=-1) / np.float32(127)).astype(np.float16)
    finite = np.isfinite(scales)
    scales[~finite] = np.nan
    grouped[~finite] = 0
    inverse = np.zeros(scales.shape, np.float32)
    np.divide(np.float32(1), scales.astype(np.float32), out=inverse, where=finite & (scales > 0))
    values = np.clip(np.rint(grouped * inverse[..., None]), -127, 127)
    return values.astype(np.int8).reshape(*rows.shape[:-1], -1)[..., :columns], scales


def _store_scratch(kernels: StepwiseBackend, o: so.StoreKv, sizes: Sizes) -> int:
    return kernels.store_scratch_bytes(sizes.rows, sizes.letters["G"], max(sizes.letters["W"], sizes.letters["Wv"]))


@means(so.StoreKv, "quantise_cache_rows", _store_scratch)
def _store_kv(kernels: Any, o: so.StoreKv, tokens: int) -> None:
    positions, sequences = o.positions[:tokens], o.sequences[:tokens]
    check_pages(positions, sequences, o.pages, o.key_cache.shape[0], window=1)
    pages, places = o.pages[sequences, positions // PAGE_TOKENS], positions % PAGE_TOKENS
    for source, cache in ((o.keys, o.key_cache), (o.values, o.value_cache)):
        rows = source[:tokens].reshape(tokens, cache.shape[1], cache.shape[3])
        if isinstance(cache, QuantisedCache):
            cache.values[pages, :, places], cache.scales[pages, :, places] = kernels.quantise_cache_rows(rows)
        else:
            cache[pages, :, places] = rows


def _store_latent_scratch(kernels: StepwiseBackend, o: so.StoreLatent, sizes: Sizes) -> int:
    return 2 * kernels.store_scratch_bytes(sizes.rows, 1, sizes.letters["W"])


@means(so.StoreLatent, "quantise_cache_rows", _store_latent_scratch)
def _store_latent(kernels: Any, o: so.StoreLatent, tokens: int) -> None:
    positions, sequences, cache = o.positions[:tokens], o.sequences[:tokens], o.latent_cache
    check_pages(positions, sequences, o.pages, cache.shape[0], window=1)
    pages, places = o.pages[sequences, positions // PAGE_TOKENS], positions % PAGE_TOKENS
    parts = [o.latent[:tokens]] if o.rotary is None else [o.latent[:tokens], o.rotary[:tokens]]
    rows = np.concatenate(parts, axis=1)[:, None]
    if isinstance(cache, QuantisedCache):
        cache.values[pages, :, places], cache.scales[pages, :, places] = kernels.quantise_cache_rows(rows)
    else:
        cache[pages, :, places] = rows


def first_seen(position: int, window: int, chunked: bool) -> int:
    """The first position that the token at a position sees; a window of 0 is none."""
    if not window:
        return 0
    return position - position % window if chunked else max(0, position - window + 1)


def seen_ends(positions: Integers, sequences: Integers, lengths: Integers | None) -> Integers:
    """The end of the positions that each row sees: behind its own one, or as `lengths` says."""
    return positions + 1 if lengths is None else lengths[sequences]


def check_pages(
    positions: Integers,
    sequences: Integers,
    pages: Integers,
    page_count: int,
    window: int,
    chunked: bool = False,
    lengths: Integers | None = None,
) -> None:
    """Raise KernelError unless each row's sequence and position exist, and the pages of the positions that it sees."""
    check_each("sequence", sequences, len(pages))
    check_each("position", positions, LARGEST_EXTENT)
    ends = seen_ends(positions, sequences, lengths)
    check_each("position", ends - 1, pages.shape[1] * PAGE_TOKENS)
    seen = (
        (sequence, first_seen(end - 1, window, chunked) // PAGE_TOKENS, (end - 1) // PAGE_TOKENS)
        for sequence, end in zip(sequences.tolist(), ends.tolist(), strict=True)
    )
    for sequence, first, last in dict.fromkeys(seen):  # most rows see the pages that the row before sees
        check_each("page", pages[sequence, first : last + 1], page_count)


def cache_elements(cache: Cache, pages: Integers) -> Doubles:
    """Return the elements of some pages, one after the other: `(G, rows of a page * pages, W)`."""
    _, kv_heads, length, width = cache.shape
    elements = np.empty((kv_heads, len(pages) * length, width), np.float64)
    for block, page in enumerate(pages.tolist()):
        here = elements[:, block * length : (block + 1) * length]
        if isinstance(cache, QuantisedCache):
            here[:] = np.repeat(cache.scales[page].astype(np.float64), GROUP_COLUMNS, axis=2)[:, :, :width]
            here *= cache.values[page]
        else:
            here[:] = cache[page]
    return elements


def attention(
    query: Floats,
    positions: Integers,
    sequences: Integers,
    pages: Integers,
    key_cache: Cache,
    value_cache: Cache,
    scale: float,
    window: int = 0,
    sinks: Floats | None = None,
    chunked: bool = False,
    cap: float = 0.0,
    lengths: Integers | None = None,
    bias: so.DistanceBias | None = None,
    chosen: Integers | None = None,
    page_blocks: int = 1,
    factors: Floats | None = None,
) -> Floats:
    """Causal grouped-query attention: query `(T, H, W)`, caches `(N, G, 64, W)` and `(N, G, 64, Wv)`; `(T, H, Wv)`.

    Query head `h` reads key/value head `h // (H / G)`. A sink is the logit of a key whose value is zero (Xiao et al.
    2023, arXiv 2309.17453; as gpt-oss has it, learnt for each head). With `lengths` attention is not causal. A bias is
    that of T5 (Raffel et al. 2020). `factors` are those of the rows, `(T,)`.
    """
    tokens, heads, width = query.shape
    kv_heads, value_width = key_cache.shape[1], value_cache.shape[3]
    grouped = query.astype(np.float64).reshape(tokens, kv_heads, heads // kv_heads, width)
    output = np.empty((tokens, kv_heads, heads // kv_heads, value_width), np.float64)
    ends = seen_ends(positions, sequences, lengths)
    for sequence in np.unique(sequences):
        rows = np.flatnonzero(sequences == sequence)
        begin = first_seen(int(ends[rows].min()) - 1, window, chunked) // PAGE_TOKENS
        held = pages[sequence, begin : (ends[rows].max() - 1) // PAGE_TOKENS + 1]
        keys, values = (cache_elements(cache, held) for cache in (key_cache, value_cache))
        for t in rows:
            first = first_seen(int(ends[t]) - 1, window, chunked)
            seen = slice(first - begin * PAGE_TOKENS, int(ends[t]) - begin * PAGE_TOKENS)
            scores = grouped[t] @ keys[:, seen].transpose(0, 2, 1) * scale
            if cap:
                scores = cap * np.tanh(scores / cap)
            if factors is not None:
                scores *= float(factors[t])
            if bias is not None:
                scores += bias_by_distance(bias, heads, int(positions[t]), first, int(ends[t])).reshape(scores.shape)
            if chosen is not None:
                scores[:, :, ~chosen_positions(chosen[t], page_blocks, int(ends[t]))] = -np.inf
            if sinks is not None:
                own = sinks.astype(np.float64).reshape(kv_heads, -1, 1)
                scores = np.concatenate([scores, own], axis=2)
            output[t] = softmax(scores)[:, :, : seen.stop - seen.start] @ values[:, seen]
        del keys, values  # before those of the next sequence
    return single(output.reshape(tokens, heads, value_width))


def chosen_positions(bits: Integers, page_blocks: int, end: int) -> npt.NDArray[np.bool_]:
    """Which positions up to `end` are of blocks whose bit is 1, of the pages' bits `(P,)`."""
    blocks = bits.view(np.uint32)[:, None] >> np.arange(page_blocks, dtype=np.uint32) & 1
    return np.repeat(blocks.reshape(-1).astype(np.bool_), PAGE_TOKENS // page_blocks)[:end]


def bias_by_distance(bias: so.DistanceBias, heads: int, position: int, first: int, end: int) -> Floats:
    """Return what a bias adds to a query's scores with keys from `first` to `end`, `(H, end - first)`."""
    reach = len(bias.bucket_of) // 2
    distances = np.clip(np.arange(first, end) - position, -reach, reach)
    found: Floats = bias.table.reshape(-1, heads)[bias.bucket_of[distances + reach]].T
    return found


def check_buckets(bias: so.DistanceBias, heads: int) -> None:
    """Raise KernelError for a bucket that the table does not have."""
    check_each("bucket", bias.bucket_of, bias.table.size // heads)


def _attention_scratch(kernels: StepwiseBackend, o: so.Attention, sizes: Sizes) -> int:
    heads, kv_heads, pages = (sizes.letters[letter] for letter in "HGP")
    width = max(sizes.letters["W"], sizes.letters["Wv"])
    return kernels.attention_scratch_bytes(sizes.rows, heads, kv_heads, width, pages * PAGE_TOKENS)


@means(so.Attention, "attention", _attention_scratch)
def _attention(kernels: Any, o: so.Attention, tokens: int) -> None:
    positions, sequences = o.positions[:tokens], o.sequences[:tokens]
    check_pages(positions, sequences, o.pages, o.key_cache.shape[0], o.window, o.chunked, o.lengths)
    heads = o.query[:tokens].reshape(tokens, -1, o.key_cache.shape[3])
    if o.bias is not None:
        check_buckets(o.bias, heads.shape[1])
    where = (positions, sequences, o.pages)
    factors = None
    if o.factors is not None:
        check_each("position", positions, len(o.factors))
        factors = o.factors[positions]
    values = o.key_cache if o.value_cache is None else o.value_cache
    chosen = None if o.chosen is None else o.chosen[:tokens]
    shape = o.scale, o.window, o.sinks, o.chunked, o.cap, o.lengths, o.bias, chosen, o.page_blocks, factors
    seen = kernels.attention(heads, *where, o.key_cache, values, *shape)
    value_width = o.output.shape[1] // heads.shape[1]
    o.output[:tokens] = seen[:, :, :value_width].reshape(tokens, -1)
