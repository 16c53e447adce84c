"""The choice of blocks of earlier tokens, and attention to them: every backend against the definition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemoe.errors import KernelError
from edgemoe.kernels import block_operations as bo
from edgemoe.kernels import state_operations as so
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.native.library import available_isas
from edgemoe.kernels.operations import PAGE_TOKENS
from edgemoe.kernels.reference.attention import chosen_positions
from edgemoe.kernels.reference.backend import REFERENCE
from edgemoe.kernels.reference.block_choice import block_rows, block_scores
from tests.kernels import tolerance
from tests.kernels.builders import (
    aligned,
    aligned_copy,
    cache_arrays,
    empty_cache,
    few_examples,
    fill_cache,
    numbers,
    places,
    seeds,
)
from tests.kernels.conftest import make_backend
from tests.support.every_case import every_case

CONTEXT = 5 * PAGE_TOKENS


def choice(
    tokens: int, heads: int, width: int, block: int, kept: int, cache: str, random: np.random.Generator, start: int = 0
) -> tuple[bo.StoreBlockKeys, bo.ChooseBlocks]:
    """The keys of blocks and a choice among them, on rows that follow `start` earlier ones of the same sequence."""
    where = places(tokens, start, CONTEXT // PAGE_TOKENS)
    angles, blocks = random.random((CONTEXT, width // 4)) * 7, PAGE_TOKENS // block
    held = empty_cache(cache, (where.pages.max() + 1, 1, blocks, width))
    fill_cache(held, random.standard_normal(held.shape))
    keys = bo.StoreBlockKeys(
        numbers("normal", (tokens, width), random),
        numbers("normal", (width,), random),
        1e-6,
        *(aligned_copy(table(angles).astype(np.float32)) for table in (np.cos, np.sin)),
        block,
        *where,
        numbers("normal", (1, block - 1 + int(random.integers(0, 3)), width), random),
        held,
    )
    choose = bo.ChooseBlocks(
        numbers("normal", (tokens, heads * width), random),
        *where,
        held,
        block,
        1.0,
        kept,
        aligned((int(random.integers(1, 5)), where.pages.shape[1], blocks), np.float32),
        aligned((tokens, where.pages.shape[1]), np.int32),
        own=True,
    )
    return keys, choose


@few_examples
@given(
    st.integers(1, 130),
    st.integers(1, 40),
    st.sampled_from([4, 12, 32, 40]),
    st.sampled_from([2, 4, 8, 64]),
    st.integers(1, 40),
    st.sampled_from(["f32", "f16", "q8"]),
    st.integers(0, 150),
    seeds,
)
def test_blocks_are_chosen_by_means_of_their_tokens(
    any_backend: Backend, tokens: int, heads: int, width: int, block: int, kept: int, cache: str, start: int, seed: int
) -> None:
    keys, choose = choice(tokens, heads, width, block, kept, cache, np.random.default_rng(seed), start)
    other = replace(keys, inputs=aligned_copy(keys.inputs), block_keys=empty_cache(cache, keys.block_keys.shape))
    for mine, theirs in zip(cache_arrays(keys.block_keys), cache_arrays(other.block_keys), strict=True):
        theirs[...] = mine
    any_backend.program([keys, choose]).run(tokens)
    REFERENCE.program([other]).run(tokens)
    np.testing.assert_array_equal(keys.inputs, other.inputs)
    error = {"f32": 1e-5, "f16": 1e-2, "q8": 5e-2}[cache]  # rounding may tip a number of the cache over
    if cache != "q8":
        for mine, theirs in zip(cache_arrays(keys.block_keys), cache_arrays(other.block_keys), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=error, atol=error)
    for t in range(tokens):
        end = int(choose.positions[t]) + 1
        seen = chosen_positions(choose.chosen[t], PAGE_TOKENS // block, CONTEXT)
        complete = end // block
        assert not seen[-(-end // block) * block :].any()
        assert seen[complete * block : end].all()
        blocks = seen[: complete * block : block]
        assert blocks.sum() == min(complete, kept)
        if complete > kept:
            written = block_rows(choose.keys, choose.pages[0], complete, block)  # what it left itself
            scores = block_scores(choose.query[t].reshape(heads, width), None, written, 1.0)
            slack = 1e-5 * (1 + np.abs(scores).max())
            assert scores[blocks].min() >= scores[~blocks].max() - slack


def test_of_equal_scores_the_first_are_kept(any_backend: Backend) -> None:
    keys, choose = choice(128, 2, 8, 4, 3, "f32", np.random.default_rng(1))
    choose.query[:] = 0
    any_backend.program([keys, choose]).run(128)
    np.testing.assert_array_equal(choose.chosen[127], [7, 0, 0, 0, 0])
    np.testing.assert_array_equal(choose.chosen[126], [7, 1 << 15, 0, 0, 0])  # its own block is not complete


@every_case("cache", ["f32", "f16", "q8"])
@every_case("threads", ["", " 3 threads"])
@every_case("isa", available_isas())
def test_the_bits_are_the_same_on_every_instruction_set(isa: str, threads: str, cache: str) -> None:
    found = []
    for name in ("native generic", f"native {isa}{threads}"):
        keys, choose = choice(150, 4, 40, 4, 9, cache, np.random.default_rng(2), 130)
        backend = make_backend(name)
        backend.program([keys, choose]).run(150)
        backend.close()
        kept = [keys.inputs, choose.chosen, *cache_arrays(keys.block_keys)]
        found.append(b"".join(array.tobytes() for array in kept))
    assert found[0] == found[1]


def test_cuts_change_no_bit(any_backend: Backend) -> None:
    whole, parts = (choice(150, 3, 20, 8, 5, "f16", np.random.default_rng(3)) for _ in range(2))
    any_backend.program(whole).run(150)
    places_of_rows = ("positions", "sequences")
    for first, end in ((0, 5), (5, 64), (64, 71), (71, 150)):
        keys, choose = (
            replace(part, **{name: aligned_copy(getattr(part, name)[first:end]) for name in (*names, *places_of_rows)})
            for part, names in zip(parts, (("keys",), ("query", "chosen")), strict=True)
        )
        any_backend.program([keys, choose]).run(end - first)
        np.testing.assert_array_equal(choose.chosen, whole[1].chosen[first:end])
    np.testing.assert_array_equal(parts[0].block_keys, whole[0].block_keys)


@every_case("at_once", [1, 3, 16, 150])
def test_the_number_of_rows_scored_together_changes_no_bit(any_backend: Backend, at_once: int) -> None:
    keys, choose = choice(150, 3, 20, 4, 5, "f16", np.random.default_rng(5))
    other = replace(
        choose,
        scores=aligned((at_once, *choose.scores.shape[1:]), np.float32),
        chosen=aligned(choose.chosen.shape, np.int32),
    )
    any_backend.program([keys, choose, other]).run(150)
    assert choose.chosen.any()
    np.testing.assert_array_equal(other.chosen, choose.chosen)


@few_examples
@given(st.integers(1, 90), st.sampled_from([1, 4, 16, 32]), st.sampled_from(["f32", "f16", "q8"]), seeds)
def test_attention_to_chosen_blocks(backend: Backend, tokens: int, blocks: int, cache: str, seed: int) -> None:
    """Against attention to all of these positions alone, and, where all are chosen, to the same bits."""
    random = np.random.default_rng(seed)
    start, G, H, W = int(random.integers(0, 120)), 2, 6, 24
    where = places(tokens, start, CONTEXT // PAGE_TOKENS)
    caches = [empty_cache(cache, (where.pages.max() + 1, G, PAGE_TOKENS, W)) for _ in range(2)]
    for one in caches:
        fill_cache(one, random.standard_normal(one.shape))
    query, output = numbers("normal", (tokens, H * W), random), aligned((tokens, H * W), np.float32)
    bits = random.integers(0, 1 << blocks, where.pages.shape[1] * tokens).astype(np.uint32).view(np.int32)
    chosen = aligned_copy(bits.reshape(tokens, -1))
    for t, position in enumerate(where.positions.tolist()):  # its own block is always among them
        chosen[t, position // PAGE_TOKENS] |= np.uint32(1 << position % PAGE_TOKENS * blocks // PAGE_TOKENS).view(
            np.int32
        )
    attention = so.Attention(query, *where, *caches, 0.3, output, chosen=chosen, page_blocks=blocks)
    backend.program([attention]).run(tokens)
    heads = query.reshape(tokens, H, W)
    expected = REFERENCE.attention(heads, *where, *caches, 0.3, chosen=chosen, page_blocks=blocks).reshape(tokens, -1)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=tolerance.UNIT * 200)
    every = np.full_like(chosen, -1)
    backend.program([replace(attention, chosen=every)]).run(tokens)
    plain = aligned(output.shape, np.float32)
    backend.program([so.Attention(query, *where, *caches, 0.3, plain)]).run(tokens)
    assert output.tobytes() == plain.tobytes()


@every_case(
    ("change", "words"),
    [
        ({"inputs": np.zeros((1, 2, 8), np.float32)}, "inputs: expected a ring of at least 3"),
        ({"rate": 5}, "rate: expected a divisor or a multiple of 64, found 5"),
        ({"rate": 8}, "block_keys: expected 8 rows of a page, found 16"),
        ({name: np.ones((CONTEXT, 5), np.float32) for name in ("cosine", "sine")}, "cosine: expected at most 4"),
    ],
)
def test_keys_that_are_refused(any_backend: Backend, change: dict[str, object], words: str) -> None:
    keys, _ = choice(4, 2, 8, 4, 3, "f32", np.random.default_rng(4))
    with pytest.raises(KernelError, match=words):
        any_backend.program([replace(keys, **change)])


def test_keys_wider_than_any_are_refused(any_backend: Backend) -> None:
    keys, _ = choice(1, 1, bo.WIDEST_BLOCK_KEY + 4, 4, 3, "f32", np.random.default_rng(4))
    with pytest.raises(KernelError, match="keys: expected at most 1024 channels, found 1028"):
        any_backend.program([keys])


def test_a_choice_of_no_block_is_refused(any_backend: Backend) -> None:
    _, choose = choice(4, 2, 8, 4, 3, "f32", np.random.default_rng(4))
    with pytest.raises(KernelError, match="most: expected 1 to"):
        any_backend.program([replace(choose, most=0)])


@every_case(("name", "wrong"), [("sequences", -1), ("sequences", 9), ("positions", -5), ("positions", CONTEXT)])
def test_rows_without_a_place_are_refused(any_backend: Backend, name: str, wrong: int) -> None:
    for operation in choice(8, 2, 8, 16, 3, "f32", np.random.default_rng(4)):
        getattr(operation, name)[3] = wrong
        with pytest.raises(KernelError, match=r"page|position|sequence"):
            any_backend.program([operation]).run(8)


def test_blocks_beside_a_window_are_refused(backend: Backend) -> None:
    where = places(1)
    caches = [empty_cache("f32", (1, 1, PAGE_TOKENS, 8)) for _ in range(2)]
    rows, chosen = np.zeros((1, 8), np.float32), np.ones((1, where.pages.shape[1]), np.int32)
    attention = so.Attention(rows, *where, *caches, 1.0, rows.copy(), window=3, chosen=chosen, page_blocks=16)
    with pytest.raises(KernelError, match="chosen: expected none with a window"):
        backend.program([attention])
