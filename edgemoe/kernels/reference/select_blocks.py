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


@means(so.SelectBlocks, "", _choose_scratch)
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
        o.chosen[t] = _chosen(o, t, block)


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


def block_scores(o: so.SelectBlocks, t: int, complete: int) -> Doubles:
    """The scores of row `t` for the first `complete` blocks."""
    blocks = o.block_keys.shape[2]
    held = o.pages[o.sequences[t], : -(-complete // blocks)]
    keys = cache_elements(o.block_keys, held)[0, :complete]
    queries = o.query[t].astype(np.float64).reshape(-1, keys.shape[1])
    scores: Doubles = np.maximum(queries @ keys.T, 0).sum(axis=0)
    return scores


def _chosen(o: so.SelectBlocks, t: int, block: int) -> Integers:
    end = int(o.positions[t]) + 1
    complete, blocks = end // block, o.block_keys.shape[2]
    seen: npt.NDArray[np.bool_] = np.zeros(o.pages.shape[1] * blocks, np.bool_)
    seen[: -(-end // block)] = True
    if complete > o.kept:
        scores = block_scores(o, t, complete)
        o.scores[t].reshape(-1)[:complete] = scores
        seen[np.argsort(-scores, kind="stable")[o.kept :]] = False
    bits = seen.reshape(-1, blocks).astype(np.uint32) << np.arange(blocks, dtype=np.uint32)
    words: Integers = bits.sum(axis=1, dtype=np.uint32).view(np.int32)
    return words
