"""Compressed attention: blocks of tokens that become rows, and attention over these and a window."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgemoe.errors import KernelError
from edgemoe.kernels import block_operations as bo
from edgemoe.kernels import state_operations as so
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.block_operations import blocks_of_page
from edgemoe.kernels.operations import PAGE_TOKENS
from edgemoe.kernels.reference.backend import REFERENCE
from tests.kernels import tolerance
from tests.kernels.builders import (
    aligned,
    aligned_copy,
    cache_arrays,
    cache_formats,
    empty_cache,
    few_examples,
    fill_cache,
    numbers,
    seeds,
)
from tests.kernels.conftest import make_backend
from tests.kernels.test_layers import mixed_places
from tests.support.every_case import every_case

rates = st.sampled_from([1, 4, 16, 64, 128])
CONTEXT = 512


def compress(
    tokens: int, rate: int, parts: int, width: int, position: int, format_name: str, seed: int, undo: int = 3
) -> bo.Compress:
    """The operation on rows of some sequences, which go on from about a position; earlier ones are in the ring."""
    random = np.random.default_rng(seed)
    where = mixed_places(random, tokens, position)
    cache = empty_cache(format_name, (int(where.pages.max()) + 2, 1, blocks_of_page(rate), width))
    angles = random.random((CONTEXT, max(1, width // 4))) * 7
    return bo.Compress(
        numbers("normal", (tokens, parts * width), random),
        numbers("normal", (tokens, parts * width), random) * np.float32(3),
        numbers("normal", (rate * parts * width,), random),
        numbers("normal", (width,), random),
        1e-3,
        *(aligned_copy(table(angles).astype(np.float32)) for table in (np.cos, np.sin)),
        rate,
        parts,
        *where,
        numbers("normal", (len(where.pages), max(1, rate * parts - 1 + undo), 2 * parts * width), random),
        cache,
    )


def by_hand(o: bo.Compress) -> dict[tuple[int, int], np.ndarray]:
    """The row of each block that ends in the run, by its page and its place there, in float64."""
    width = o.norm.size
    tokens: dict[tuple[int, int], np.ndarray] = {}
    for s, ring in enumerate(o.inputs):
        own = o.positions[o.sequences == s]
        for p in range(max(0, int(own.min()) - len(ring)), int(own.min())) if len(own) else ():
            tokens[s, p] = ring[p % len(ring)].astype(np.float64)
    bias = o.bias.reshape(o.rate, -1).astype(np.float64)
    found = {}
    for t, (p, s) in enumerate(zip(o.positions.tolist(), o.sequences.tolist(), strict=True)):
        tokens[s, p] = np.concatenate([o.values[t], np.float32(o.gates[t] + bias[p % o.rate].astype(np.float32))])
        if p % o.rate < o.rate - 1:
            continue
        some = [tokens[s, q].reshape(2, o.parts, width)[:, -1] for q in range(p - o.rate + 1, p + 1)]
        if o.parts == 2:
            some += [tokens[s, q].reshape(2, 2, width)[:, 0] for q in range(max(0, p - 2 * o.rate + 1), p - o.rate + 1)]
        values, gates = (np.array([pair[i] for pair in some]) for i in (0, 1))
        shares = np.exp(gates - gates.max(axis=0))
        row = (shares * values).sum(axis=0) / shares.sum(axis=0)
        row = row / np.sqrt(np.mean(row**2) + o.epsilon) * o.norm
        half, first = o.cosine.shape[1], p - o.rate + 1
        a, b = row[width - 2 * half :: 2].copy(), row[width - 2 * half + 1 :: 2].copy()
        row[width - 2 * half :: 2] = a * o.cosine[first] - b * o.sine[first]
        row[width - 2 * half + 1 :: 2] = b * o.cosine[first] + a * o.sine[first]
        found[int(o.pages[s, p // PAGE_TOKENS]), p % PAGE_TOKENS // o.rate] = row
    return found


@few_examples
@given(
    st.integers(1, 150),
    rates,
    st.sampled_from([1, 2]),
    st.sampled_from([4, 20, 64, 65, 130]),
    st.integers(0, 140),
    st.integers(0, 70),
    seeds,
)
def test_blocks_become_rows(
    any_backend: Backend, tokens: int, rate: int, parts: int, width: int, position: int, undo: int, seed: int
) -> None:
    o = compress(tokens, rate, parts, width, position, "f32", seed, undo)
    expected = by_hand(o)
    rows = np.concatenate([o.values, o.gates + o.bias.reshape(rate, -1)[o.positions % rate]], axis=1)
    ring = o.inputs.copy()
    for t, (p, s) in enumerate(zip(o.positions.tolist(), o.sequences.tolist(), strict=True)):
        ring[s, p % ring.shape[1]] = rows[t]
    any_backend.program([o]).run(tokens)
    assert o.inputs.tobytes() == ring.tobytes()
    cache = np.asarray(o.compressed)
    for (page, place), row in expected.items():
        scale = np.abs(row).max() + np.abs(o.norm).max()
        np.testing.assert_allclose(cache[page, 0, place], row, rtol=0, atol=1e-5 * scale * 4)
        cache[page, 0, place] = 0
    assert not cache.any(), "nothing else is written"


@few_examples
@given(st.integers(2, 150), rates, st.sampled_from([1, 2]), st.integers(0, 140), cache_formats, st.data(), seeds)
def test_cuts_and_company_change_no_bit_of_a_row(
    any_backend: Backend,
    tokens: int,
    rate: int,
    parts: int,
    position: int,
    format_name: str,
    data: st.DataObject,
    seed: int,
) -> None:
    """A run in two parts, and each sequence by itself, leave the same cache and ring."""
    whole = compress(tokens, rate, parts, 36, position, format_name, seed)
    at = data.draw(st.integers(1, tokens - 1))
    cuts = [np.arange(at), np.arange(at, tokens)]
    alone = [np.flatnonzero(whole.sequences == s) for s in np.unique(whole.sequences)]
    left = []
    inputs = whole.inputs.copy()
    names = ("values", "gates", "positions", "sequences")
    for parts_of_run in ([np.arange(tokens)], cuts, alone):
        cache = empty_cache(format_name, whole.compressed.shape)
        again = replace(whole, inputs=aligned_copy(inputs), compressed=cache)
        for rows in parts_of_run:
            o = replace(again, **{name: aligned_copy(getattr(again, name)[rows]) for name in names})
            any_backend.program([o]).run(len(rows))
        left.append(again.inputs.tobytes() + b"".join(array.tobytes() for array in cache_arrays(cache)))
    assert left[0] == left[1] == left[2]


def attention(
    tokens: int,
    heads: int,
    width: int,
    rate: int,
    window: int,
    position: int,
    format_name: str,
    seed: int,
    choosing: bool = False,
) -> bo.CompressedAttention:
    random = np.random.default_rng(seed)
    where = mixed_places(random, tokens, position)
    pages = int(where.pages.max()) + 2
    kept = empty_cache(format_name, (pages, 1, PAGE_TOKENS, width))
    fill_cache(kept, random.standard_normal((pages, 1, PAGE_TOKENS, width)))
    compressed = empty_cache(format_name, (pages + 1, 1, blocks_of_page(rate), width))
    fill_cache(compressed, random.standard_normal((pages + 1, 1, blocks_of_page(rate), width)))
    return bo.CompressedAttention(
        numbers("normal", (tokens, heads * width), random),
        *where,
        kept,
        aligned_copy((where.pages + 1).astype(np.int32)),
        compressed,
        rate,
        width**-0.5,
        window,
        aligned((tokens, heads * width), np.float32),
        numbers("normal", (heads,), random) if seed % 2 else None,
        chosen_blocks(random, where.pages.shape[1], tokens) if choosing else None,
    )


def chosen_blocks(random: np.random.Generator, pages: int, tokens: int) -> np.ndarray:
    """Random bits for the blocks of each page; none of some pages."""
    bits = random.integers(-(1 << 31), 1 << 31, (tokens, pages)).astype(np.int32)
    return aligned_copy(bits * (random.random(bits.shape) < 0.7).astype(np.int32))


def sees(o: bo.CompressedAttention, t: int, block: int) -> bool:
    """Whether the row sees a block that ends no later than itself."""
    if o.chosen is None:
        return True
    page, place = divmod(block, o.compressed.shape[2])
    return bool(int(o.chosen[t, page]) >> place & 1)


@few_examples
@given(
    st.sampled_from([1, 3, 4, 16, 33]),
    st.sampled_from([16, 20, 64, 300]),
    st.integers(1, 70),
    rates,
    st.sampled_from([1, 8, 64, 128]),
    st.integers(0, 300),
    cache_formats,
    st.booleans(),
    seeds,
)
def test_compressed_attention(
    any_backend: Backend,
    heads: int,
    width: int,
    tokens: int,
    rate: int,
    window: int,
    position: int,
    format_name: str,
    choosing: bool,
    seed: int,
) -> None:
    """As attention over one list of keys: those of the window, and the compressed ones, or those that are chosen."""
    o = attention(tokens, heads, width, rate, window, position, format_name, seed, choosing and rate > 1)
    any_backend.program([o]).run(tokens)
    elements = [
        array.astype(np.float64) if isinstance(array, np.ndarray) else dequantised(array)
        for array in (o.window_cache, o.compressed)
    ]
    query, output = (rows.reshape(tokens, heads, width) for rows in (o.query, o.output))
    for t in {0, tokens // 2, tokens - 1}:
        p, s = int(o.positions[t]), int(o.sequences[t])
        keys = [elements[0][o.window_pages[s, q // 64], 0, q % 64] for q in range(max(0, p - window + 1), p + 1)]
        for block in range((p + 1) // rate):
            end = (block + 1) * rate - 1
            if not sees(o, t, block):
                continue
            keys.append(elements[1][o.pages[s, end // 64], 0, end % 64 // rate])
        own = np.array(keys)
        scores = query[t].astype(np.float64) @ own.T * o.scale
        if o.sinks is not None:
            scores = np.concatenate([scores, o.sinks[:, None].astype(np.float64)], axis=1)
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares = (shares / shares.sum(axis=1, keepdims=True))[:, : len(own)]
        bound = tolerance.attention(query[t], own[None], own[None], o.scale, o.sinks)
        found = np.ascontiguousarray(output[t])
        tolerance.assert_within(found, (shares @ own).astype(np.float32), bound)


def dequantised(cache: so.Cache) -> np.ndarray:
    values = np.asarray(cache.values, np.float64)  # type: ignore[union-attr]
    scales = np.repeat(cache.scales.astype(np.float64), 32, axis=-1)  # type: ignore[union-attr]
    return values * scales[..., : values.shape[-1]]


@every_case(("rate", "choosing"), [(4, False), (4, True), (128, False)])
def test_cuts_and_company_change_no_bit_of_compressed_attention(rate: int, choosing: bool) -> None:
    whole = attention(90, 16, 64, rate, 32, 250, "f16", 5, choosing)
    backend = make_backend("native generic")
    backend.program([whole]).run(90)
    expected = whole.output.copy()
    for row in range(0, 90, 7):
        names = ("query", "positions", "sequences", "output", *["chosen"] * choosing)
        one = replace(whole, **{name: aligned_copy(getattr(whole, name)[row : row + 1]) for name in names})
        backend.program([one]).run(1)
        assert one.output.tobytes() == expected[row].tobytes()
    backend.close()


def choice(
    tokens: int, heads: int, width: int, rate: int, position: int, most: int, format_name: str, seed: int
) -> bo.ChooseBlocks:
    random = np.random.default_rng(seed)
    where = mixed_places(random, tokens, position)
    pages = int(where.pages.max()) + 2
    keys = empty_cache(format_name, (pages, 1, blocks_of_page(rate), width))
    fill_cache(keys, random.standard_normal((pages, 1, blocks_of_page(rate), width)))
    return bo.ChooseBlocks(
        numbers("normal", (tokens, heads * width), random),
        *where,
        keys,
        rate,
        width**-0.5,
        most,
        aligned((int(random.integers(1, 5)), where.pages.shape[1], blocks_of_page(rate)), np.float32),
        aligned((tokens, where.pages.shape[1]), np.int32),
        numbers("normal", (tokens, heads), random),
    )


@few_examples
@example(heads=1, width=8, tokens=3, rate=128, position=277, most=1, own=True, format_name="f32", seed=1)
@given(
    st.sampled_from([1, 3, 32, 40]),
    st.sampled_from([8, 20, 64]),
    st.integers(1, 40),
    st.sampled_from([2, 4, 16, 64, 128]),
    st.integers(0, 500),
    st.sampled_from([1, 2, 7, 30, 1000]),
    st.booleans(),
    cache_formats,
    seeds,
)
def test_blocks_are_chosen(
    any_backend: Backend,
    heads: int,
    width: int,
    tokens: int,
    rate: int,
    position: int,
    most: int,
    own: bool,
    format_name: str,
    seed: int,
) -> None:
    """As many as may be, and no other block has a larger score than one of them; a row's own one besides, or not."""
    o = replace(choice(tokens, heads, width, rate, position, most, format_name, seed), own=own)
    any_backend.program([o]).run(tokens)
    elements = o.keys.astype(np.float64) if isinstance(o.keys, np.ndarray) else dequantised(o.keys)
    blocks = elements.shape[2]
    for t in range(tokens):
        count, pages = (int(o.positions[t]) + 1) // rate, o.pages[int(o.sequences[t])]
        ends = [(block + 1) * rate - 1 for block in range(count)]
        keys = np.array([elements[pages[end // 64], 0, end % 64 // rate] for end in ends]).reshape(count, width)
        products = o.query[t].reshape(heads, width).astype(np.float64) @ keys.T * o.scale
        scores = o.shares[t].astype(np.float64) @ np.maximum(products, 0)
        taken = np.array([int(o.chosen[t, b // blocks]) >> b % blocks & 1 for b in range(count)], bool)
        assert taken.sum() == min(most, count)
        of_its_own = int(o.chosen[t, count // blocks]) >> count % blocks & 1
        assert of_its_own == (own and (o.positions[t] + 1) % rate != 0)
        if 0 < most < count:
            assert scores[taken].min() >= scores[~taken].max() - 1e-4


def test_of_equal_blocks_the_earlier_ones_are_chosen(any_backend: Backend) -> None:
    """Scores of 0, which products below 0 have, are equal too, whatever the sign of their zero."""
    o = choice(3, 2, 8, 4, 200, 5, "f32", 0)
    o.query[...] = -1
    np.asarray(o.keys)[...] = 1
    o.shares[...] = [[1, -1], [-1, 1], [1, 1]]
    any_backend.program([o]).run(3)
    assert (o.chosen[:, 0] == 0b11111).all()
    assert not o.chosen[:, 1].any()


@pytest.mark.parametrize(
    ("name", "wrong"), [("sequences", -1), ("sequences", 9), ("positions", -5), ("positions", 999)]
)
def test_rows_without_a_place_are_refused(any_backend: Backend, name: str, wrong: int) -> None:
    for o in (
        compress(8, 4, 1, 16, 9, "f16", 0),
        attention(8, 2, 16, 4, 8, 9, "f16", 0),
        choice(8, 2, 16, 4, 9, 2, "f16", 0),
    ):
        getattr(o, name)[3] = wrong
        with pytest.raises(KernelError, match=r"page|position|sequence"):
            any_backend.program([o]).run(8)


@pytest.mark.parametrize("table", ["pages", "window_pages"])
def test_pages_that_are_not_there_are_refused(any_backend: Backend, table: str) -> None:
    o = attention(8, 2, 16, 4, 8, 100, "f16", 0)
    getattr(o, table).fill(-1)
    with pytest.raises(KernelError, match=r"page|position"):
        any_backend.program([o]).run(8)


def test_other_rates_are_refused(any_backend: Backend) -> None:
    o = compress(4, 4, 1, 16, 0, "f16", 0)
    with pytest.raises(KernelError, match="rate: expected a divisor or a multiple of 64, found 5"):
        any_backend.program([replace(o, rate=5, bias=np.ones(80, np.float32))])
    with pytest.raises(KernelError, match="compressed: expected 4 rows of a page, found 16"):
        any_backend.program([replace(o, rate=16, bias=np.ones(256, np.float32))])
    with pytest.raises(KernelError, match="inputs: expected a ring of at least 3, found 2"):
        any_backend.program([replace(o, inputs=o.inputs[:, :2].copy())])
    with pytest.raises(KernelError, match="keys: expected a power of 2 up to 32 blocks of a page, found 64"):
        any_backend.program([choice(1, 1, 8, 1, 0, 1, "f16", 0)])
    with pytest.raises(KernelError, match="parts: expected 1 or 2, found 3"):
        any_backend.program([compress(4, 4, 3, 16, 0, "f16", 0)])


def test_the_reference_runs_it_for_backends_without_a_kernel() -> None:
    assert {"Compress", "CompressedAttention"} <= set(make_backend("jit").fallbacks)
    assert not REFERENCE.fallbacks
