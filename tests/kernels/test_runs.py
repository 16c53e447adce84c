"""Whole runs: cuts, repetition and threads change no bit, and memory stays within the announced scratch."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemoe.errors import KernelError
from edgemoe.kernels import operations as op
from edgemoe.kernels.operations import Backend
from tests.kernels.builders import (
    FORMAT_NAMES,
    aligned,
    aligned_copy,
    cache_arrays,
    empty_cache,
    few_examples,
    format_names,
    numbers,
    random_ffn,
    random_matrix,
    seeds,
)
from tests.kernels.conftest import BACKENDS, make_backend
from tests.kernels.test_products import pack_experts

VOCABULARY, WIDTH, HEADS, KV_HEADS, HEAD_WIDTH, EXPERTS, PER_TOKEN, FFN_WIDTH = 50, 72, 4, 2, 24, 5, 2, 40
CONTEXT = 64
CACHE_FORMAT = {"f32": "f32", "f16": "f16", "q8": "q8", "q4": "f16", "q4m": "q8"}
"""Which format of cache goes with weights of a format, so that every one has its turn."""


class TinyLayer:
    """One decoder layer of every kind of operation, with its buffers."""

    def __init__(self, format_name: str, tokens: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        query_width, kv_width = HEADS * HEAD_WIDTH, KV_HEADS * HEAD_WIDTH

        def matrix(rows: int, columns: int) -> op.Matrix:
            return random_matrix(format_name, rows, columns, random)

        def buffer(*shape: int) -> op.Floats:
            return aligned((tokens, *shape), np.float32)

        def part(rows: int, output: op.Floats) -> op.LinearPart:
            return op.LinearPart(matrix(rows, WIDTH), numbers("normal", (rows,), random), output)

        def norm(values: op.Floats, output: op.Floats) -> op.RmsNorm:
            return op.RmsNorm(values, numbers("normal", (WIDTH,), random), 1e-5, output)

        self.ids = aligned((tokens,), np.int32)
        self.residual, normed, mixed = buffer(WIDTH), buffer(WIDTH), buffer(query_width)
        query, keys, values = buffer(query_width), buffer(kv_width), buffer(kv_width)
        logits, self.weights = buffer(EXPERTS), buffer(PER_TOKEN)
        self.chosen = aligned((tokens, PER_TOKEN), np.int32)
        routed, shared = buffer(PER_TOKEN, WIDTH), buffer(WIDTH)
        self.caches = [empty_cache(CACHE_FORMAT[format_name], (KV_HEADS, CONTEXT, HEAD_WIDTH)) for _ in range(2)]
        slots = aligned_copy(np.arange(EXPERTS, dtype=np.int32))
        arena, layouts = pack_experts([random_ffn(format_name, WIDTH, FFN_WIDTH, random) for _ in slots], slots)
        angles = random.random((CONTEXT, HEAD_WIDTH // 2)) * 7
        tables = [aligned_copy(table(angles).astype(np.float32)) for table in (np.cos, np.sin)]
        self.operations: list[op.Operation] = [
            op.Embed(self.ids, matrix(VOCABULARY, WIDTH), 1.3, self.residual),
            norm(self.residual, normed),
            op.Linear(normed, (part(query_width, query), part(kv_width, keys), part(kv_width, values))),
            op.Rope(query, HEADS, *tables),
            op.Rope(keys, KV_HEADS, *tables),
            op.StoreKv(keys, values, *self.caches),
            op.Attention(query, *self.caches, 0.2, mixed),
            op.Linear(mixed, (op.LinearPart(matrix(WIDTH, query_width), None, self.residual),), 0.5, True),
            norm(self.residual, normed),
            op.Linear(normed, (part(EXPERTS, logits),)),
            op.Route(logits, True, self.chosen, self.weights),
            op.GatedFfn(normed, *random_ffn(format_name, WIDTH, FFN_WIDTH, random), shared),
            op.Experts(normed, self.chosen, slots, arena, *layouts, routed),
            op.Combine(self.residual, 0.7, routed, self.weights, shared, None),
        ]


def run_layer(backend: Backend, format_name: str, seed: int, ids: np.ndarray, cuts: list[int]) -> dict[str, np.ndarray]:
    """All that a layer leaves for `ids`, run in pieces that end at `cuts`."""
    layer = TinyLayer(format_name, len(ids), seed)
    program = backend.program(layer.operations)
    results: dict[str, list[np.ndarray]] = {"residual": [], "chosen": [], "weights": []}
    for start, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        layer.ids[: end - start] = ids[start:end]
        program.run(end - start, start)
        for name, pieces in results.items():
            pieces.append(getattr(layer, name)[: end - start].copy())
    found = {name: np.concatenate(pieces) for name, pieces in results.items()}
    cached = [array for cache in layer.caches for array in cache_arrays(cache)]
    return found | {f"cache array {number}": array for number, array in enumerate(cached)}


def assert_same_bits(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    for name in one:
        assert one[name].tobytes() == other[name].tobytes(), name


@few_examples
@given(format_names, st.lists(st.integers(0, VOCABULARY - 1), min_size=2, max_size=40), st.data(), seeds)
def test_cuts_change_no_bit(
    any_backend: Backend, format_name: str, ids: list[int], data: st.DataObject, seed: int
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(ids) - 1), min_size=1, max_size=4)))
    tokens = np.array(ids, np.int32)
    whole = run_layer(any_backend, format_name, seed, tokens, [])
    assert_same_bits(run_layer(any_backend, format_name, seed, tokens, cuts), whole)


@pytest.mark.parametrize("format_name", FORMAT_NAMES)
def test_token_by_token_changes_no_bit(any_backend: Backend, format_name: str) -> None:
    tokens = np.arange(19, dtype=np.int32)
    whole = run_layer(any_backend, format_name, 3, tokens, [])
    assert_same_bits(run_layer(any_backend, format_name, 3, tokens, list(range(1, 19))), whole)


@pytest.mark.parametrize(
    ("tokens", "position"), [(0, 0), (-1, 0), (9, 0), (1, -1), (1, CONTEXT), (8, CONTEXT - 7), (2, 2**31 - 2)]
)
def test_runs_beyond_the_buffers_are_refused(any_backend: Backend, tokens: int, position: int) -> None:
    layer = TinyLayer("f32", 8, 0)
    program = any_backend.program(layer.operations)
    with pytest.raises(KernelError):
        program.run(tokens, position)


def test_an_unknown_operation_is_refused(any_backend: Backend) -> None:
    with pytest.raises(KernelError, match="str"):
        any_backend.program(["attention"])  # type: ignore[list-item]


@pytest.mark.parametrize("kind", [name for name in BACKENDS if not name.endswith("threads")])
@pytest.mark.parametrize("format_name", FORMAT_NAMES)
def test_threads_change_no_bit(kind: str, format_name: str) -> None:
    tokens = np.arange(23, dtype=np.int32)
    results = []
    for name in (kind, f"{kind} 3 threads"):
        backend = make_backend(name)
        results.append(run_layer(backend, format_name, 4, tokens, [20]))
        backend.close()
    assert_same_bits(*results)


@pytest.mark.parametrize("name", ["reference", "jit", "jit 3 threads"])
@pytest.mark.parametrize("format_name", FORMAT_NAMES)
def test_scratch_stays_within_what_is_announced(name: str, format_name: str) -> None:
    backend = make_backend(name)
    layer = TinyLayer(format_name, 40, 0)
    program = backend.program(layer.operations)
    program.run(40, 0)  # compiles
    tracemalloc.start()
    program.run(40, CONTEXT - 40)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= backend.scratch_bytes(layer.operations)
    backend.close()
