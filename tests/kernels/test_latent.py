"""The operations of latent attention: rows that are keys and values at once, and matrices of single heads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemoe.errors import KernelError
from edgemoe.kernels import operations as op
from edgemoe.kernels import state_operations as so
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.blocks import join_blocks, pack
from edgemoe.kernels.formats import GROUP_COLUMNS, Matrix
from edgemoe.kernels.native.library import available_isas
from edgemoe.kernels.operations import PAGE_TOKENS
from edgemoe.kernels.reference.attention import cache_elements
from edgemoe.kernels.reference.backend import REFERENCE
from tests.kernels import tolerance
from tests.kernels.builders import (
    CACHE_FORMATS,
    FORMAT_NAMES,
    aligned,
    aligned_copy,
    cache_arrays,
    cache_formats,
    empty_cache,
    few_examples,
    fill_cache,
    format_names,
    kinds,
    numbers,
    places,
    random_blocks,
    seeds,
    token_counts,
)
from tests.kernels.conftest import make_backend
from tests.kernels.test_layers import mixed_places
from tests.support.pairs import some


def head_linear(
    format_name: str, tokens: int, heads: int, rows: int, columns: int, passed: int, seed: int, kind: str = "normal"
) -> tuple[op.HeadLinear, list[Matrix]]:
    """The operation, and the matrix of each head by itself."""
    random = np.random.default_rng(seed)
    blocks = [random_blocks(format_name, rows, columns, random) for _ in range(heads)]
    own = [Matrix(aligned_copy(pack(one)), one.format, rows, columns) for one in blocks]

    whole = join_blocks(blocks)
    operation = op.HeadLinear(
        numbers(kind, (tokens, heads * columns), random),
        Matrix(aligned_copy(pack(whole)), whole.format, heads * rows, columns),
        numbers("normal", (tokens, heads * passed), random) if passed else None,
        heads,
        aligned((tokens, heads * (rows + passed)), np.float32),
    )
    return operation, own


@few_examples
@given(
    format_names,
    token_counts,
    st.integers(1, 5),
    st.sampled_from([1, 7, 16, 20, 32, 48, 100]),
    st.sampled_from([1, 12, 32, 40, 128]),
    st.sampled_from([0, 1, 8]),
    kinds,
    seeds,
)
def test_head_linear(
    any_backend: Backend,
    format_name: str,
    tokens: int,
    heads: int,
    rows: int,
    columns: int,
    passed: int,
    kind: str,
    seed: int,
) -> None:
    """Each head is as its own matrix makes it, wherever that begins in a panel; what passes stays as it is."""
    operation, own = head_linear(format_name, tokens, heads, rows, columns, passed, seed, kind)
    any_backend.program([operation]).run(tokens)
    output = operation.output.reshape(tokens, heads, -1)
    inputs = operation.input.reshape(tokens, heads, -1)
    for head, matrix in enumerate(own):
        values = np.ascontiguousarray(inputs[:, head])
        found = np.ascontiguousarray(output[:, head, :rows])
        tolerance.assert_within(found, REFERENCE.matmul(values, matrix), tolerance.product(values, matrix))
    if operation.passed is not None:
        np.testing.assert_array_equal(output[:, :, rows:], operation.passed.reshape(tokens, heads, -1))


@pytest.mark.parametrize("threads", ["", " 3 threads"])
@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("format_name", some(FORMAT_NAMES))
def test_heads_have_the_same_bits_on_every_instruction_set_and_in_all_cuts(
    isa: str, threads: str, format_name: str
) -> None:
    operation, _ = head_linear(format_name, 70, 3, 40, 96, 8, seed=1)
    backend = make_backend("native generic")
    backend.program([operation]).run(70)
    backend.close()
    expected = operation.output.copy()
    backend = make_backend(f"native {isa}{threads}")
    backend.program([operation]).run(70)
    assert operation.output.tobytes() == expected.tobytes()
    for row in (0, 33, 69):
        names = ("input", "passed", "output")
        one = replace(operation, **{name: aligned_copy(getattr(operation, name)[row : row + 1]) for name in names})
        backend.program([one]).run(1)
        assert one.output.tobytes() == expected[row].tobytes()
    backend.close()


def test_heads_of_another_width_are_refused(any_backend: Backend) -> None:
    operation, _ = head_linear("f32", 2, 3, 16, 8, 4, seed=0)
    wrong = replace(operation, output=aligned((2, 3 * 21), np.float32))
    with pytest.raises(KernelError, match="output: expected heads of 20 channels, found 21"):
        any_backend.program([wrong])


def store(tokens: int, widths: tuple[int, int], format_name: str, seed: int, position: int = 0) -> so.StoreLatent:
    random = np.random.default_rng(seed)
    latent, rotary = (numbers("normal", (tokens, width), random) if width else None for width in widths)
    assert latent is not None
    where = mixed_places(random, tokens, position)
    cache = empty_cache(format_name, (where.pages.max() + 2, 1, PAGE_TOKENS, sum(widths)))
    for array in cache_arrays(cache):
        array[...] = 7
    return so.StoreLatent(latent, rotary, *where, cache)


@few_examples
@given(st.sampled_from([(32, 8), (20, 12), (512, 64), (1, 2), (250, 30), (64, 0)]), token_counts, cache_formats, seeds)
def test_store_latent(any_backend: Backend, widths: tuple[int, int], tokens: int, format_name: str, seed: int) -> None:
    """Both parts are one row, whose groups in 8 bits may have elements of both."""
    operation = store(tokens, widths, format_name, seed, position=60)
    any_backend.program([operation]).run(tokens)
    parts = [operation.latent] if operation.rotary is None else [operation.latent, operation.rotary]
    rows = np.concatenate(parts, axis=1)[:, None]
    dtype = CACHE_FORMATS[format_name]
    stored = REFERENCE.quantise_cache_rows(rows) if dtype is None else [rows.astype(dtype)]
    for array, here in zip(cache_arrays(operation.latent_cache), stored, strict=True):
        expected = np.full(array.shape, 7, array.dtype)
        for t in range(tokens):
            page = operation.pages[operation.sequences[t], operation.positions[t] // PAGE_TOKENS]
            expected[page, :, operation.positions[t] % PAGE_TOKENS] = here[t]
        assert array.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("name", "index", "wrong"),
    [("sequences", 3, -1), ("sequences", 7, 9), ("positions", 3, -5), ("positions", 7, 999), ("pages", (0, 0), -1)],
)
def test_latent_rows_without_a_place_are_refused(any_backend: Backend, name: str, index: object, wrong: int) -> None:
    operation = store(8, (32, 8), "f16", 0)
    operation.sequences.fill(0)
    operation.positions[:] = range(8)
    getattr(operation, name)[index] = wrong
    with pytest.raises(KernelError, match=r"page|position|sequence"):
        any_backend.program([operation]).run(8)
    assert (operation.latent_cache == 7).all()


def test_latent_rows_of_another_width_are_refused(any_backend: Backend) -> None:
    operation = store(2, (32, 8), "f16", 0)
    with pytest.raises(KernelError, match="latent_cache: expected rows of 41, found 40"):
        any_backend.program([replace(operation, rotary=aligned((2, 9), np.float32))])


@few_examples
@given(
    st.sampled_from([1, 3, 4, 9, 16]),
    st.sampled_from([(40, 32), (16, 16), (96, 64), (20, 12), (576, 512), (97, 33)]),
    token_counts,
    st.integers(0, 130),
    cache_formats,
    seeds,
)
def test_attention_over_keys_whose_beginning_is_the_value(
    backend: Backend, heads: int, widths: tuple[int, int], tokens: int, position: int, format_name: str, seed: int
) -> None:
    random = np.random.default_rng(seed)
    width, value_width = widths
    query = numbers("normal", (tokens, heads * width), random)
    where = mixed_places(random, tokens, position)
    seen = np.zeros((where.pages.max() + 2, PAGE_TOKENS), np.bool_)
    for sequence, last in zip(where.sequences, where.positions, strict=True):
        for c in range(last + 1):
            seen[where.pages[sequence, c // PAGE_TOKENS], c % PAGE_TOKENS] = True
    elements = random.standard_normal((len(seen), 1, PAGE_TOKENS, width))
    elements.transpose(0, 2, 1, 3)[~seen] = np.nan  # what no row may look at
    keys = empty_cache(format_name, elements.shape)
    fill_cache(keys, elements)
    scale = width**-0.5
    output = aligned((tokens, heads * value_width), np.float32)
    backend.program([so.Attention(query, *where, keys, None, scale, output)]).run(tokens)
    rows = query.reshape(tokens, heads, width)
    expected = REFERENCE.attention(rows, *where, keys, keys, scale)[:, :, :value_width]
    for t in range(tokens):
        held = where.pages[where.sequences[t], : where.positions[t] // PAGE_TOKENS + 1]
        own = cache_elements(keys, held)[:, : where.positions[t] + 1]
        bound = tolerance.attention(rows[t], own, own[:, :, :value_width], scale)
        found = output.reshape(tokens, heads, value_width)[t]
        tolerance.assert_within(found, np.ascontiguousarray(expected[t]), bound)


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("format_name", CACHE_FORMATS)
def test_attention_over_keys_alone_has_the_bits_of_attention_over_both(isa: str, format_name: str) -> None:
    """As if values had a cache of their own, to which the beginnings of the keys were copied."""
    random = np.random.default_rng(4)
    width, value_width, tokens = 96, 64, 70
    query = numbers("normal", (tokens, 5 * width), random)
    where = places(tokens, 30)
    keys, values = (empty_cache(format_name, (2, 1, PAGE_TOKENS, own)) for own in (width, value_width))
    fill_cache(keys, random.standard_normal((2, 1, PAGE_TOKENS, width)))
    for whole, part in zip(cache_arrays(keys), cache_arrays(values), strict=True):
        part[...] = whole[..., : part.shape[-1]]
    assert value_width % GROUP_COLUMNS == 0
    outputs = [aligned((tokens, 5 * value_width), np.float32) for _ in range(2)]
    backend = make_backend(f"native {isa}")
    for cache, output in zip((values, None), outputs, strict=True):
        backend.program([so.Attention(query, *where, keys, cache, 0.1, output)]).run(tokens)
    backend.close()
    assert outputs[0].tobytes() == outputs[1].tobytes()


def test_values_wider_than_keys_are_refused(any_backend: Backend) -> None:
    cache = empty_cache("f16", (1, 1, PAGE_TOKENS, 16))
    query, output = (aligned((1, 2 * width), np.float32) for width in (16, 17))
    with pytest.raises(KernelError, match="output: expected values of at most 16 channels, found 17"):
        any_backend.program([so.Attention(query, *places(1), cache, None, 1.0, output)])
