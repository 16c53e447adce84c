"""The reference of the choice of blocks that attention sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.kernels import state_operations as so
from edgemoe.kernels.definition import Sizes
from edgemoe.kernels.operations import PAGE_TOKENS, Floats, Integers, QuantisedCache
from edgemoe.kernels.reference.attention import cache_elements, check_pages, quantise_cache_rows
from edgemoe.kernels.reference.common import Doubles, check_each, single
from edgemoe.kernels.reference.layers import rms_norm, rope, segments
from edgemoe.kernels.stepwise import StepwiseBackend, means


def _choose_scratch(kernels: StepwiseBackend, o: so.SelectBlocks, sizes: Sizes) -> int:
    pages, blocks, width = (sizes.letters[letter] for letter in ("P", "B", "W"))
    return kernels.store_scratch_bytes(sizes.rows, 1, width) * 6 + 8 * pages * blocks * (width + 4 * sizes.letters["H"])


@means(so.SelectBlocks, "select_blocks", _choose_scratch)
def _select_blocks(kernels: Any, o: so.SelectBlocks, tokens: int) -> None:
    positions, sequences = o.positions[:tokens], o.sequences[:tokens]
    check_each("sequence", sequences, len(o.inputs))
    check_pages(positions, sequences, o.pages, o.block_keys.shape[0], window=0)
    check_each("position", positions, len(o.cosine))
    block, ring = PAGE_TOKENS // o.block_keys.shape[2], o.inputs.shape[1]
    for rows in segments(positions, sequences):
        inputs, first = o.inputs[sequences[rows[0]]], int(positions[rows[0]])
        before = np.arange(first - block + 1, first)
        earlier = np.where(before[:, None] >= 0, inputs[before % ring], np.float32(0))
        held = np.concatenate([earlier, o.keys[rows]])
        for place, row in enumerate(rows):
            if (positions[row] + 1) % block == 0:
                _store_key(o, held[place : place + block], int(positions[row]) - block + 1, o.pages[sequences[row]])
        kept = slice(-min(len(rows), ring), None)
        inputs[positions[rows[kept]] % ring] = o.keys[rows[kept]]
    for t in range(tokens):
        o.chosen[t] = _chosen(kernels, o, t, block)


def _store_key(o: so.SelectBlocks, rows: Floats, first: int, pages: Integers) -> None:
    """Write the key of a block whose first token stands at `first`, from its tokens' rows."""
    mean = single(rows.astype(np.float64).mean(axis=0))
    normed = rms_norm(mean[None], o.norm, o.epsilon)
    key = rope(normed[:, None], o.cosine[first : first + 1], o.sine[first : first + 1])[0]
    page, place = pages[first // PAGE_TOKENS], first % PAGE_TOKENS // (PAGE_TOKENS // o.block_keys.shape[2])
    if isinstance(o.block_keys, QuantisedCache):
        o.block_keys.values[page, :, place], o.block_keys.scales[page, :, place] = quantise_cache_rows(key)
    else:
        o.block_keys[page, :, place] = key


def block_scores(query: Floats, keys: Floats) -> Doubles:
    """The scores of blocks with these keys `(n, W)` for queries `(H, W)`, `(n,)`."""
    scores: Doubles = np.maximum(query.astype(np.float64) @ keys.astype(np.float64).T, 0).sum(axis=0)
    return scores


def select_blocks(query: Floats, keys: Floats, kept: int) -> npt.NDArray[np.bool_]:
    """Which of the blocks with these keys `(n, W)` have the largest scores for queries `(H, W)`, `(n,)`."""
    seen = np.ones(len(keys), np.bool_)
    seen[np.argsort(-block_scores(query, keys), kind="stable")[kept:]] = False
    return seen


def complete_keys(o: so.SelectBlocks, t: int) -> Floats:
    """The keys of the blocks that are complete at row `t`, `(n, W)`."""
    blocks = o.block_keys.shape[2]
    complete = (int(o.positions[t]) + 1) * blocks // PAGE_TOKENS
    held = o.pages[o.sequences[t], : -(-complete // blocks)]
    return single(cache_elements(o.block_keys, held)[0, :complete])


def _chosen(kernels: Any, o: so.SelectBlocks, t: int, block: int) -> Integers:
    end = int(o.positions[t]) + 1
    complete, blocks = end // block, o.block_keys.shape[2]
    seen: npt.NDArray[np.bool_] = np.zeros(o.pages.shape[1] * blocks, np.bool_)
    seen[: -(-end // block)] = True
    if complete > o.kept:
        keys = complete_keys(o, t)
        seen[:complete] = kernels.select_blocks(o.query[t].reshape(-1, keys.shape[1]), keys, o.kept)
    bits = seen.reshape(-1, blocks).astype(np.uint32) << np.arange(blocks, dtype=np.uint32)
    words: Integers = bits.sum(axis=1, dtype=np.uint32).view(np.int32)
    return words
