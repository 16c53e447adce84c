"""The reference of compressed attention: blocks of tokens that become rows, and attention over these and a window."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.kernels import block_operations as bo
from edgemoe.kernels.definition import Sizes
from edgemoe.kernels.operations import PAGE_TOKENS, Floats, Integers, QuantisedCache
from edgemoe.kernels.reference.attention import cache_elements, check_pages, first_seen, quantise_cache_rows
from edgemoe.kernels.reference.block_choice import block_rows
from edgemoe.kernels.reference.common import Doubles, check_each, single, softmax
from edgemoe.kernels.reference.layers import rms_norm, rope, segments
from edgemoe.kernels.stepwise import StepwiseBackend, means


def _compress_scratch(kernels: StepwiseBackend, o: bo.Compress, sizes: Sizes) -> int:
    tokens = sizes.rows + o.rate * o.parts
    return kernels.element_scratch_bytes * tokens * 3 * o.parts * sizes.letters["W"]


@means(bo.Compress, scratch=_compress_scratch)
def _compress(kernels: Any, o: bo.Compress, tokens: int) -> None:
    positions, sequences = o.positions[:tokens], o.sequences[:tokens]
    check_pages(positions, sequences, o.pages, o.compressed.shape[0], window=1)
    check_each("position", positions, len(o.cosine))
    width, ring = o.norm.size, o.inputs.shape[1]
    bias = o.bias.reshape(o.rate, -1)
    rows = np.concatenate([o.values[:tokens], o.gates[:tokens] + bias[positions % o.rate]], axis=1)
    for segment in segments(positions, sequences):
        inputs, first = o.inputs[sequences[segment[0]]], int(positions[segment[0]])
        start = max(0, first - o.rate * o.parts + 1)
        known = np.concatenate([inputs[np.arange(start, first) % ring], rows[segment]])
        ends = [t for t in segment.tolist() if positions[t] % o.rate == o.rate - 1]
        for t in ends:
            row = _compressed_row(known, int(positions[t]), start, o.rate, o.parts, width)
            _store(o, t, row)
        kept = slice(-min(len(segment), ring), None)
        inputs[positions[segment[kept]] % ring] = rows[segment[kept]]


def _compressed_row(known: Floats, position: int, start: int, rate: int, parts: int, width: int) -> Doubles:
    """The weighed mean `(W,)` of the block that ends at a position; `known` has the tokens from `start` on."""
    values, gates = np.split(known.astype(np.float64), 2, axis=1)
    own = slice(position - rate + 1 - start, position + 1 - start)
    before = slice(max(0, position - 2 * rate + 1 - start), position - rate + 1 - start)
    some = [(own, slice(-width, None))] if parts == 1 else [(before, slice(0, width)), (own, slice(-width, None))]
    chosen_values, chosen_gates = (np.concatenate([array[place] for place in some]) for array in (values, gates))
    mean: Doubles = (softmax(chosen_gates.T) * chosen_values.T).sum(axis=1)
    return mean


def _store(o: bo.Compress, t: int, row: Doubles) -> None:
    """Normalise, rotate and store what the block becomes that ends at row `t` of a run."""
    position, rotated = int(o.positions[t]), 2 * o.cosine.shape[1]
    normed = rms_norm(single(row), o.norm, o.epsilon)
    turn = position - o.rate + 1
    turned = rope(normed[None, None], o.cosine[turn][None], o.sine[turn][None], neighbours=True, last=True)[0]
    assert rotated <= len(normed)
    page, place = o.pages[o.sequences[t], position // PAGE_TOKENS], position % PAGE_TOKENS // o.rate
    if isinstance(o.compressed, QuantisedCache):
        o.compressed.values[page, :, place], o.compressed.scales[page, :, place] = quantise_cache_rows(turned)
    else:
        o.compressed[page, :, place] = turned


def _bits(chosen: Integers, blocks: int, count: int) -> npt.NDArray[np.bool_]:
    """Whether each of the first `count` blocks is chosen by the bits of a row, of which a page has so many blocks."""
    pages, places = np.divmod(np.arange(count), blocks)
    return (chosen.view(np.uint32)[pages] >> places.astype(np.uint32) & 1).astype(np.bool_)


def _attention_scratch(kernels: StepwiseBackend, o: bo.CompressedAttention, sizes: Sizes) -> int:
    heads, width, pages = (sizes.letters[letter] for letter in "HWP")
    return 2 * kernels.attention_scratch_bytes(sizes.rows, heads, 1, width, pages * PAGE_TOKENS)


@means(bo.CompressedAttention, scratch=_attention_scratch)
def _compressed_attention(kernels: Any, o: bo.CompressedAttention, tokens: int) -> None:
    positions, sequences = o.positions[:tokens], o.sequences[:tokens]
    check_pages(positions, sequences, o.window_pages, o.window_cache.shape[0], o.window)
    width = o.window_cache.shape[3]
    query = o.query[:tokens].reshape(tokens, -1, width).astype(np.float64)
    output = np.empty(query.shape)
    for t in range(tokens):
        sequence, position = int(sequences[t]), int(positions[t])
        first = first_seen(position, o.window, chunked=False)
        held = o.window_pages[sequence, first // PAGE_TOKENS : position // PAGE_TOKENS + 1]
        begin = first % PAGE_TOKENS
        rows = [cache_elements(o.window_cache, held)[0, begin : begin + position - first + 1]]
        count = (position + 1) // o.rate
        history = block_rows(o.compressed, o.pages[sequence], count, o.rate)
        if o.chosen is not None:
            history = history[_bits(o.chosen[t], o.compressed.shape[2], count)]
        rows.append(history)
        keys = np.concatenate(rows)
        scores = query[t] @ keys.T * o.scale
        if o.sinks is not None:
            scores = np.concatenate([scores, o.sinks.astype(np.float64)[:, None]], axis=1)
        output[t] = softmax(scores)[:, : len(keys)] @ keys
    o.output[:tokens] = single(output).reshape(tokens, -1)
