"""The reference of the choice of blocks that attention sees, and of keys that are means of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.kernels import block_operations as bo
from edgemoe.kernels.definition import Sizes
from edgemoe.kernels.operations import PAGE_TOKENS, Cache, Floats, Integers, QuantisedCache
from edgemoe.kernels.reference.attention import cache_elements, check_pages, quantise_cache_rows
from edgemoe.kernels.reference.common import Doubles, check_each, single
from edgemoe.kernels.reference.layers import rms_norm, rope, segments
from edgemoe.kernels.stepwise import StepwiseBackend, means


def _keys_scratch(kernels: StepwiseBackend, o: bo.StoreBlockKeys, sizes: Sizes) -> int:
    return kernels.element_scratch_bytes * (sizes.rows + 4 * o.rate) * sizes.letters["W"]


@means(bo.StoreBlockKeys, scratch=_keys_scratch)
def _store_block_keys(kernels: Any, o: bo.StoreBlockKeys, tokens: int) -> None:
    positions, sequences = o.positions[:tokens], o.sequences[:tokens]
    check_each("sequence", sequences, len(o.inputs))
    check_pages(positions, sequences, o.pages, o.block_keys.shape[0], window=1)
    check_each("position", positions, len(o.cosine))
    ring = o.inputs.shape[1]
    for rows in segments(positions, sequences):
        inputs, first = o.inputs[sequences[rows[0]]], int(positions[rows[0]])
        before = np.arange(first - o.rate + 1, first)
        earlier = np.where(before[:, None] >= 0, inputs[before % ring], np.float32(0))
        held = np.concatenate([earlier, o.keys[rows]])
        for place, row in enumerate(rows):
            if (positions[row] + 1) % o.rate == 0:
                _store_key(o, held[place : place + o.rate], int(positions[row]), o.pages[sequences[row]])
        kept = slice(-min(len(rows), ring), None)
        inputs[positions[rows[kept]] % ring] = o.keys[rows[kept]]


def _store_key(o: bo.StoreBlockKeys, rows: Floats, last: int, pages: Integers) -> None:
    """Write the key of a block whose last token stands at `last`, from its tokens' rows."""
    mean = single(rows.astype(np.float64).mean(axis=0))
    normed, turn = rms_norm(mean[None], o.norm, o.epsilon), slice(last - o.rate + 1, last - o.rate + 2)
    key = rope(normed[:, None], o.cosine[turn], o.sine[turn])[0]
    page, place = pages[last // PAGE_TOKENS], last % PAGE_TOKENS // o.rate
    if isinstance(o.block_keys, QuantisedCache):
        o.block_keys.values[page, :, place], o.block_keys.scales[page, :, place] = quantise_cache_rows(key)
    else:
        o.block_keys[page, :, place] = key


def block_rows(cache: Cache, pages: Integers, count: int, rate: int) -> Doubles:
    """Return the rows `(count, W)` of the first blocks of `rate` tokens of the sequence that has these pages."""
    if not count:
        return np.zeros((0, cache.shape[3]))
    numbers = pages[np.unique(((np.arange(count) + 1) * rate - 1) // PAGE_TOKENS)]
    check_each("page", numbers, cache.shape[0])
    return cache_elements(cache, numbers)[0, :count]


def block_scores(query: Floats, shares: Floats | None, keys: Doubles, scale: float) -> Doubles:
    """Return the scores `(n,)` of blocks with keys `(n, W)` for queries `(H, W)` with shares `(H,)`."""
    agreement = np.maximum(query.astype(np.float64) @ keys.T * scale, 0)
    scores: Doubles = agreement.sum(axis=0) if shares is None else shares.astype(np.float64) @ agreement
    return scores


def best_blocks(query: Floats, shares: Floats | None, keys: Doubles, scale: float, most: int) -> npt.NDArray[np.int64]:
    """Return the numbers of the `most` blocks of largest score: see `block_scores`."""
    return np.argsort(-block_scores(query, shares, keys, scale), kind="stable")[:most]


def _choose_scratch(kernels: StepwiseBackend, o: bo.ChooseBlocks, sizes: Sizes) -> int:
    pages, blocks, width = (sizes.letters[letter] for letter in ("P", "B", "W"))
    return 8 * pages * blocks * (3 * width + 4 * sizes.letters["H"] + 16)


@means(bo.ChooseBlocks, "best_blocks", _choose_scratch)
def _choose_blocks(kernels: Any, o: bo.ChooseBlocks, tokens: int) -> None:
    blocks, width = o.keys.shape[2:]
    check_pages(o.positions[:tokens], o.sequences[:tokens], o.pages, o.keys.shape[0], window=0)
    for t in range(tokens):
        end = int(o.positions[t]) + 1
        complete = end // o.rate
        seen = -(-end // o.rate) if o.own else complete
        bits: npt.NDArray[np.bool_] = np.zeros(-(-seen // blocks) * blocks, np.bool_)
        bits[complete:seen] = True
        if complete <= o.most:
            bits[:complete] = True
        else:
            keys = block_rows(o.keys, o.pages[int(o.sequences[t])], complete, o.rate)
            shares = None if o.shares is None else o.shares[t]
            bits[kernels.best_blocks(o.query[t].reshape(-1, width), shares, keys, o.scale, o.most)] = True
        words = (bits.reshape(-1, blocks).astype(np.uint32) << np.arange(blocks, dtype=np.uint32)).sum(axis=1)
        o.chosen[t, : len(words)] = words.astype(np.uint32).view(np.int32)
