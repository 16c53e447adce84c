"""Whole runs: cuts, repetition and threads change no bit, and memory stays within the announced scratch."""

from __future__ import annotations

import functools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemoe.errors import KernelError
from edgemoe.kernels import block_operations as bo
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.kernels import sinkhorn_operations as sk
from edgemoe.kernels import state_operations as so
from edgemoe.kernels.backend import Backend, Pause, Program
from edgemoe.kernels.formats import PANEL_ROWS, panel_count
from edgemoe.kernels.operations import PAGE_TOKENS
from tests.kernels.builders import (
    CLAMPED,
    FORMAT_NAMES,
    aligned,
    aligned_copy,
    cache_arrays,
    empty_cache,
    few_examples,
    format_names,
    numbers,
    places,
    random_biases,
    random_ffn,
    random_matrix,
    random_plain_ffn,
    seeds,
)
from tests.kernels.conftest import BACKENDS, make_backend
from tests.kernels.test_products import Ffn, pack_experts
from tests.support.every_case import every_case
from tests.support.pairs import default_pairs

VOCABULARY, WIDTH, HEADS, KV_HEADS, HEAD_WIDTH, EXPERTS, PER_TOKEN, FFN_WIDTH = 50, 72, 4, 2, 24, 5, 2, 40
CONTEXT, PAGES = 80, 2
IN_ORDER = np.arange(PAGES)
DELTA_VALUES = 20
CHANNELS = 2 * HEAD_WIDTH + 2 * DELTA_VALUES
"""A delta rule of two heads that share keys, which are as wide as a head of attention."""
LATENT, ROTARY = 40, HEAD_WIDTH
"""Channels of a latent row without and with positions: in 8 bits a group has elements of both."""
STREAMS, RATE = 2, 4
"""Residual streams that are balanced; tokens of a block that becomes one row."""
CACHE_FORMAT = {name: ("f16", "q8")[at % 2] for at, name in enumerate(FORMAT_NAMES)} | {"f32": "f32", "f16": "f16"}
"""Which format of cache goes with weights of a format, so that every one has its turn."""


class TinyWeights:
    """Weights of one format, which a `TinyLayer` reads.

    The seed chooses whether heads have sinks, the activation and biases of FFNs, and the length of the convolution.
    """

    def __init__(self, format_name: str, seed: int) -> None:
        random = np.random.default_rng(seed)
        query_width, kv_width = HEADS * HEAD_WIDTH, KV_HEADS * HEAD_WIDTH

        def matrix(rows: int, columns: int) -> op.Matrix:
            return random_matrix(format_name, rows, columns, random)

        def vector(length: int) -> op.Floats:
            return numbers("normal", (length,), random)

        def ffn() -> Ffn:
            matrices = random_ffn(format_name, WIDTH, FFN_WIDTH, random)
            return (*matrices, random_biases(WIDTH, FFN_WIDTH, random)) if seed // 2 % 2 else matrices

        self.embedding, self.mixed = matrix(VOCABULARY, WIDTH), matrix(WIDTH, query_width)
        self.first_norm, self.second_norm = vector(WIDTH), vector(WIDTH)
        self.query, self.keys, self.values, self.gates, self.convolved, self.router = (
            (matrix(rows, WIDTH), vector(rows)) for rows in (query_width, kv_width, kv_width, 3 * WIDTH, WIDTH, EXPERTS)
        )
        self.delta = [(matrix(rows, WIDTH), vector(rows)) for rows in (CHANNELS, 2, 2, 2 * DELTA_VALUES)]
        self.kernel, self.decay_bias, self.rate = vector(CHANNELS * 4), vector(2), -np.abs(vector(2))
        self.scan_skip, self.scan_norm = vector(2), vector(2 * DELTA_VALUES)
        self.channel_rates, self.channel_skip = -np.abs(vector(WIDTH * ROTARY)), vector(WIDTH)
        latent_rows = LATENT, ROTARY, HEADS * HEAD_WIDTH, HEADS * ROTARY
        self.latent = [(matrix(rows, WIDTH), vector(rows)) for rows in latent_rows]
        self.key_up, self.value_up = matrix(HEADS * LATENT, HEAD_WIDTH), matrix(HEADS * HEAD_WIDTH, LATENT)
        self.delta_norm, self.delta_out = vector(DELTA_VALUES), matrix(WIDTH, 2 * DELTA_VALUES)
        self.slots = aligned_copy(np.arange(EXPERTS, dtype=np.int32))
        self.arena, self.layouts = pack_experts([ffn() for _ in self.slots], self.slots)
        self.gate_up, self.down, *self.biases = ffn()
        self.plain_up, self.plain_down = random_plain_ffn(format_name, WIDTH, FFN_WIDTH, random)
        plain_biases = random_biases(WIDTH, FFN_WIDTH, random, gated=False)
        self.plain_biases = plain_biases if seed // 2 % 2 else None
        self.plain_activation = op.RELU if seed // 4 % 2 else op.RELU2
        self.activation = CLAMPED if seed // 4 % 2 else op.SILU
        angles = random.random((CONTEXT, HEAD_WIDTH // 2)) * 7
        self.tables = [aligned_copy(table(angles).astype(np.float32)) for table in (np.cos, np.sin)]
        self.sinks = vector(HEADS) if seed % 2 else None
        self.length = 2 + seed % 3
        self.taps, added = vector(WIDTH * self.length), vector(WIDTH)
        self.added = added if seed % 2 else None
        stream_numbers = STREAMS, STREAMS * (1 + STREAMS)
        self.streams = [(matrix(rows, WIDTH), vector(rows)) for rows in stream_numbers]
        self.shares, self.joins = (vector(STREAMS), vector(1)), (vector(stream_numbers[1]), vector(2))
        of_blocks = 2 * HEAD_WIDTH, 2 * HEAD_WIDTH, HEAD_WIDTH, HEADS
        self.blocks = [(matrix(rows, WIDTH), vector(rows)) for rows in of_blocks]
        self.block_bias, self.block_norm = vector(RATE * 2 * HEAD_WIDTH), vector(HEAD_WIDTH)
        self.table = aligned_copy(random.integers(0, EXPERTS, VOCABULARY * PER_TOKEN).astype(np.float32))


known_weights = functools.lru_cache(maxsize=16)(TinyWeights)
"""They take longer to make than to use, and no operation writes to them."""


class TinyLayer:
    """One decoder layer of every kind of operation, with its buffers."""

    def __init__(
        self, format_name: str, tokens: int, seed: int, sequences: int = 1, pages: np.ndarray = IN_ORDER
    ) -> None:
        """`pages` numbers the pages of all sequences. The seed chooses a window, and the length of the ring too."""
        query_width, kv_width = HEADS * HEAD_WIDTH, KV_HEADS * HEAD_WIDTH
        own = known_weights(format_name, seed)

        def buffer(*shape: int) -> op.Floats:
            return aligned((tokens, *shape), np.float32)

        self.ids = aligned((tokens,), np.int32)
        self.residual, normed, mixed = buffer(WIDTH), buffer(WIDTH), buffer(query_width)
        query, keys, values = buffer(query_width), buffer(kv_width), buffer(kv_width)
        logits, self.weights = buffer(EXPERTS), buffer(PER_TOKEN)
        self.chosen = aligned((tokens, PER_TOKEN), np.int32)
        routed, shared, plain = buffer(PER_TOKEN, WIDTH), buffer(WIDTH), buffer(WIDTH)
        table = aligned_copy(pages.astype(np.int32).reshape(sequences, PAGES))
        self.places = places(tokens)._replace(pages=table)
        cache_shape = (table.max() + 1, KV_HEADS, PAGE_TOKENS, HEAD_WIDTH)
        self.caches = [empty_cache(CACHE_FORMAT[format_name], cache_shape) for _ in range(2)]
        gates, convolved = buffer(3 * WIDTH), buffer(WIDTH)
        self.ring = aligned((sequences, own.length - 1 + seed % 2 * 5, WIDTH), np.float32)
        joined, spread, over = buffer(CHANNELS), buffer(CHANNELS), buffer(2 * DELTA_VALUES)
        strength, decay, self.gate = buffer(2), buffer(2), buffer(2 * DELTA_VALUES)
        self.spread_ring = aligned((sequences, 3, CHANNELS), np.float32)
        latent, rotary = buffer(LATENT), buffer(ROTARY)
        nope, query_rotary = buffer(query_width), buffer(HEADS * ROTARY)
        absorbed, gathered = buffer(HEADS * (LATENT + ROTARY)), buffer(HEADS * LATENT)
        self.latents = empty_cache(CACHE_FORMAT[format_name], (table.max() + 1, 1, PAGE_TOKENS, LATENT + ROTARY))
        self.delta_states = aligned((sequences, 2, 2 * PANEL_ROWS, HEAD_WIDTH), np.float32)
        self.scan_states = aligned((sequences, 2, 2 * PANEL_ROWS, HEAD_WIDTH), np.float32)
        streams, collapsed, shares, joining = (
            buffer(width) for width in (STREAMS * WIDTH, WIDTH, STREAMS, STREAMS * (1 + STREAMS))
        )
        block_values, block_gates, single, index = (
            buffer(width) for width in (2 * HEAD_WIDTH, 2 * HEAD_WIDTH, HEAD_WIDTH, HEADS)
        )
        self.block_ring = aligned((sequences, 2 * RATE - 1 + seed % 2 * 5, 4 * HEAD_WIDTH), np.float32)
        block_shape = (table.max() + 1, 1, PAGE_TOKENS // RATE, HEAD_WIDTH)
        self.compressed = empty_cache(CACHE_FORMAT[format_name], block_shape)
        self.singles = empty_cache(CACHE_FORMAT[format_name], (table.max() + 1, 1, PAGE_TOKENS, HEAD_WIDTH))
        scores = aligned((3, PAGES, PAGE_TOKENS // RATE), np.float32)
        seen, named = aligned((tokens, PAGES), np.int32), aligned((tokens, PER_TOKEN), np.int32)
        named_weights = buffer(PER_TOKEN)
        self.channel_states = aligned((sequences, panel_count(WIDTH) * PANEL_ROWS, ROTARY), np.float32)
        rings = self.ring, self.spread_ring, self.block_ring
        self.states = *rings, self.delta_states, self.scan_states, self.channel_states
        for state in self.states:
            state.fill(np.nan)  # what is there before the first tokens is never read
        projections = [
            op.LinearPart(*own.query, query), op.LinearPart(*own.keys, keys), op.LinearPart(*own.values, values),
        ]  # fmt: skip
        delta = [
            op.LinearPart(*weights, output)
            for weights, output in zip(own.delta, (joined, strength, decay, self.gate), strict=True)
        ]
        self.operations: list[op.Operation] = [
            op.Embed(self.ids, own.embedding, 1.3, self.residual),
            op.RmsNorm(self.residual, own.first_norm, 1e-5, normed),
            op.Linear(normed, tuple(projections)),
            op.Clip(query, 1.5),
            op.Rope(query, HEADS, self.places.positions, *own.tables, seed % 2 == 1),
            op.Rope(keys, KV_HEADS, self.places.positions, *own.tables, seed % 2 == 1),
            so.StoreKv(keys, values, *self.places, *self.caches),
            so.Attention(query, *self.places, *self.caches, 0.2, mixed, (0, 5, 40)[seed % 3], own.sinks),
            op.Linear(mixed, (op.LinearPart(own.mixed, None, self.residual),), 0.5, True),
            op.Linear(
                normed,
                tuple(
                    op.LinearPart(*weights, output)
                    for weights, output in zip(own.latent, (latent, rotary, nope, query_rotary), strict=True)
                ),
            ),
            op.Rope(query_rotary, HEADS, self.places.positions, *own.tables),
            so.StoreLatent(latent, rotary, *self.places, self.latents),
            op.HeadLinear(nope, own.key_up, query_rotary, HEADS, absorbed),
            so.Attention(absorbed, *self.places, self.latents, None, 0.2, gathered),
            op.HeadLinear(gathered, own.value_up, None, HEADS, mixed),
            op.Linear(mixed, (op.LinearPart(own.mixed, None, self.residual),), 0.5, True),
            op.Linear(normed, (op.LinearPart(*own.gates, gates),)),
            so.ShortConv(gates, own.taps, own.added, *self.places[:2], self.ring, convolved),
            op.Linear(convolved, (op.LinearPart(*own.convolved, self.residual),), 0.5, True),
            op.Linear(normed, tuple(delta)),
            so.ShortConv(joined, own.kernel, None, *self.places[:2], self.spread_ring, spread, 1),
            so.DeltaRule(
                *(spread, strength, decay, own.decay_bias, own.rate, 1e-6, 1),
                *(*self.places[:2], self.delta_states, over),
            ),
            op.RmsNorm(over, own.delta_norm, 1e-5, over, 2, self.gate),
            op.Linear(over, (op.LinearPart(own.delta_out, None, self.residual),), 0.5, True),
            # The same rows in another order: inputs of two heads, then what they share.
            so.SelectiveScan(
                *(spread, decay, own.decay_bias, own.rate, own.scan_skip, 1),
                *(*self.places[:2], self.scan_states, over),
            ),
            op.Gate(self.gate, over, "silu"),
            op.RmsNorm(over, own.scan_norm, 1e-5, over, 2, own_weights=2),
            op.Linear(over, (op.LinearPart(own.delta_out, None, self.residual),), 0.5, True),
            so.ChannelScan(
                *(convolved, normed, rotary, rotary, own.channel_rates, own.channel_skip),
                *(*self.places[:2], self.channel_states, shared),
            ),
            op.Mix(self.residual, shared, 0.5, None, None, None, self.residual),
            op.Embed(self.ids, own.embedding, 1.3, streams, STREAMS),
            op.Linear(
                normed,
                tuple(
                    op.LinearPart(*weights, output)
                    for weights, output in zip(own.streams, (shares, joining), strict=True)
                ),
            ),
            sk.BalanceStreams(joining, *own.joins, 1e-3, 3, STREAMS),
            sk.CollapseStreams(streams, shares, *own.shares, 1e-3, STREAMS, collapsed),
            sk.JoinStreams(collapsed, joining, STREAMS, streams),
            sk.CollapseStreams(streams, shares, *own.shares, 1e-3, STREAMS, collapsed),
            op.Mix(self.residual, collapsed, 0.5, None, None, None, self.residual),
            op.Linear(
                normed,
                tuple(
                    op.LinearPart(*weights, output)
                    for weights, output in zip(own.blocks, (block_values, block_gates, single, index), strict=True)
                ),
            ),
            bo.Compress(
                *(block_values, block_gates, own.block_bias, own.block_norm, 1e-5, *own.tables, RATE, 2),
                *(*self.places, self.block_ring, self.compressed),
            ),
            so.StoreLatent(single, None, *self.places, self.singles),
            bo.ChooseBlocks(query, *self.places, self.compressed, RATE, 0.2, 3, scores, seen, index),
            bo.CompressedAttention(
                *(query, *self.places, self.singles, self.places.pages, self.compressed, RATE, 0.2),
                *((5, 40)[seed % 2], mixed, own.sinks, seen if seed % 3 else None),
            ),
            op.Linear(mixed, (op.LinearPart(own.mixed, None, self.residual),), 0.5, True),
            op.RmsNorm(self.residual, own.second_norm, 1e-5, normed),
            op.Linear(normed, (op.LinearPart(*own.router, logits),)),
            ex.TableRoute(self.ids, own.table, logits, EXPERTS, 1e-20, 1.5, named, named_weights),
            ex.Route(logits, True, self.chosen, self.weights),
            op.GatedFfn(normed, own.gate_up, own.down, shared, own.activation, *own.biases),
            op.PlainFfn(shared, own.plain_up, own.plain_down, plain, own.plain_activation, own.plain_biases),
            ex.Experts(normed, self.chosen, own.slots, own.arena, *own.layouts, routed, None, own.activation),
            ex.Combine(self.residual, 0.7, routed, self.weights, plain, None),
            ex.Combine(self.residual, 0.1, routed, named_weights, None, None),
        ]


def run_layer(backend: Backend, format_name: str, seed: int, ids: np.ndarray, cuts: list[int]) -> dict[str, np.ndarray]:
    """All that a new layer leaves for `ids`, run in pieces that end at `cuts`."""
    layer = TinyLayer(format_name, len(ids), seed)
    return run_tokens(layer, backend.program(layer.operations), ids, cuts)


def run_tokens(layer: TinyLayer, program: Program, ids: np.ndarray, cuts: list[int]) -> dict[str, np.ndarray]:
    """All that a layer leaves for `ids`, from position 0 on, run in pieces that end at `cuts`."""
    results: dict[str, list[np.ndarray]] = {"residual": [], "chosen": [], "weights": []}
    for start, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        layer.ids[: end - start] = ids[start:end]
        layer.places.positions[: end - start] = np.arange(start, end)
        program.run(end - start)
        for name, pieces in results.items():
            pieces.append(getattr(layer, name)[: end - start].copy())
    found = {name: np.concatenate(pieces) for name, pieces in results.items()}
    cached = [array for cache in (*layer.caches, layer.latents, layer.compressed) for array in cache_arrays(cache)]
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


@pytest.mark.parametrize(
    ("any_backend", "format_name"),
    default_pairs(["native", "jit", "reference"], FORMAT_NAMES, every=5),
    indirect=["any_backend"],
)
def test_token_by_token_changes_no_bit(any_backend: Backend, format_name: str) -> None:
    tokens = np.arange(11, dtype=np.int32)
    whole = run_layer(any_backend, format_name, 7, tokens, [])  # with sinks, biases and a clamped activation
    assert_same_bits(run_layer(any_backend, format_name, 7, tokens, list(range(1, 11))), whole)


def test_pauses_change_no_bit_and_may_end_a_run(any_backend: Backend) -> None:
    left: list[np.ndarray] = []
    shares: list[float] = []

    def run(pause: Pause | None) -> None:
        layer = TinyLayer("q8", 8, 3)
        left.append(layer.residual)
        any_backend.program(layer.operations).run(8, pause)

    def leave(share: float) -> None:
        shares.append(share)
        raise TimeoutError

    run(None)
    run(shares.append)
    np.testing.assert_array_equal(left[1], left[0])
    assert 0 < shares[0] < shares[1] < shares[-1] == 1
    whole = len(shares)
    with pytest.raises(TimeoutError):
        run(leave)
    assert whole < len(shares) < 2 * whole


@every_case("tokens", [0, -1, 9])
def test_runs_beyond_the_buffers_are_refused(any_backend: Backend, tokens: int) -> None:
    program = any_backend.program(TinyLayer("f32", 8, 0).operations)
    with pytest.raises(KernelError, match="buffers hold 1 to 8"):
        program.run(tokens)


@every_case(("tokens", "position"), [(1, -1), (1, CONTEXT), (8, CONTEXT - 7), (1, 2**31 - 1)])
def test_positions_beyond_the_context_are_refused(any_backend: Backend, tokens: int, position: int) -> None:
    layer = TinyLayer("f32", 8, 0)
    program = any_backend.program(layer.operations)
    layer.places.positions[:tokens] = position + np.arange(tokens)
    with pytest.raises(KernelError, match="position"):
        program.run(tokens)


PLACE_FAULTS = {
    "a sequence below 0": ("sequences", 1, -1),
    "a sequence beyond the table": ("sequences", 7, 1),
    "a position below 0": ("positions", 3, -5),
    "a position beyond the table": ("positions", 7, PAGES * PAGE_TOKENS),
    "no page": ("pages", (0, 1), -1),
    "a page beyond the cache": ("pages", (0, 1), PAGES),
}


@every_case("kind", [so.StoreKv, so.Attention, so.ShortConv, so.DeltaRule, so.SelectiveScan, so.ChannelScan])
def test_rows_without_a_place_are_refused(any_backend: Backend, kind: type) -> None:
    """And nothing is written, not even for the rows before."""
    for fault in PLACE_FAULTS:
        if kind in (so.StoreKv, so.Attention) or ("page" not in fault and "position beyond" not in fault):
            refuse_rows(any_backend, fault, kind)


def refuse_rows(any_backend: Backend, fault: str, kind: type) -> None:
    layer = TinyLayer("f16", 8, 0)
    layer.places.positions[:] = np.arange(60, 68)
    operation = next(o for o in layer.operations if isinstance(o, kind))
    program = any_backend.program([operation])
    states = {
        so.StoreKv: layer.caches,
        so.ShortConv: [layer.ring],
        so.DeltaRule: [layer.delta_states],
        so.SelectiveScan: [layer.scan_states],
        so.ChannelScan: [layer.channel_states],
    }
    written = states.get(kind) or [operation.output]
    for array in written:
        array[:] = 7
    name, index, wrong = PLACE_FAULTS[fault]
    getattr(layer.places, name)[index] = wrong
    with pytest.raises(KernelError, match=r"page|position|sequence"):
        program.run(8)
    assert all((array == 7).all() for array in written)
    if name == "pages":  # not in need of it
        layer.places.positions[:] = np.arange(8)
        program.run(8)


def test_an_earlier_page_that_is_missing_is_refused(any_backend: Backend) -> None:
    """Attention reads it; keys and values of a later position can be stored without it."""
    layer = TinyLayer("f16", 8, 0)
    layer.places.positions[:] = np.arange(64, 72)
    layer.places.pages[0, 0] = -1
    store, attention = layer.operations[6:8]
    any_backend.program([store]).run(8)
    with pytest.raises(KernelError, match="page"):
        any_backend.program([attention]).run(8)


class Company:
    """Sequences of tokens that one layer runs together: which rows of which sequence, and in which pages."""

    def __init__(self, random: np.random.Generator, format_name: str, count: int, seed: int) -> None:
        lengths = random.integers(1, CONTEXT + 1, count)
        self.ids = [random.integers(0, VOCABULARY, length).astype(np.int32) for length in lengths]
        self.layer = TinyLayer(format_name, 24, seed, sequences=count, pages=random.permutation(count * PAGES))

    def run(self, backend: Backend, random: np.random.Generator) -> list[dict[str, np.ndarray]]:
        """Run all tokens, some rows of some sequences at a time in any order; each sequence's results."""
        layer = self.layer
        program = backend.program(layer.operations)
        done = [0] * len(self.ids)
        results: list[dict[str, list[np.ndarray]]] = [{"residual": [], "chosen": [], "weights": []} for _ in self.ids]
        while any(done[s] < len(ids) for s, ids in enumerate(self.ids)):
            waiting = [s for s, ids in enumerate(self.ids) for _ in range(done[s], len(ids))]
            if random.integers(2):
                random.shuffle(waiting)
            rows = waiting[: random.integers(1, 25)]
            for t, sequence in enumerate(rows):
                layer.ids[t] = self.ids[sequence][done[sequence]]
                layer.places.positions[t], layer.places.sequences[t] = done[sequence], sequence
                done[sequence] += 1
            program.run(len(rows))
            for t, sequence in enumerate(rows):
                for name, pieces in results[sequence].items():
                    pieces.append(getattr(layer, name)[t].copy())
        return [{name: np.stack(pieces) for name, pieces in own.items()} for own in results]


@few_examples
@given(format_names, st.integers(2, 4), seeds)
def test_company_changes_no_bit(any_backend: Backend, format_name: str, count: int, seed: int) -> None:
    """Rows of several sequences in one run, in scattered pages, have the bits of each sequence alone."""
    random = np.random.default_rng(seed)
    if any_backend.name != "native":  # others take seconds where many formats have no loops of their own
        count = 2
    company = Company(random, format_name, count, seed)
    layer = TinyLayer(format_name, CONTEXT, seed)  # one for all, since it takes longer to make than to run
    program = any_backend.program(layer.operations)
    for ids, together in zip(company.ids, company.run(any_backend, random), strict=True):
        assert_same_bits(together, run_tokens(layer, program, ids, []))


def test_shared_pages_change_no_bit(any_backend: Backend) -> None:
    """Two sequences that begin alike go on apart from one page of both."""
    random = np.random.default_rng(8)
    first = random.integers(0, VOCABULARY, CONTEXT).astype(np.int32)
    second = first.copy()
    second[PAGE_TOKENS:] = random.integers(0, VOCABULARY, CONTEXT - PAGE_TOKENS)
    layer = TinyLayer("q8", CONTEXT, 5, sequences=2, pages=np.array([3, 1, 3, 0]))
    program = any_backend.program(layer.operations)
    layer.ids[:] = first
    program.run(PAGE_TOKENS)
    for state in layer.states:
        state[1] = state[0]
    tail = np.arange(PAGE_TOKENS, CONTEXT)
    layer.places.positions[: len(tail)] = tail
    for sequence, ids in enumerate((first, second)):
        layer.ids[: len(tail)], layer.places.sequences[: len(tail)] = ids[tail], sequence
        program.run(len(tail))
    alone = run_layer(any_backend, "q8", 5, second, [])
    assert layer.residual[: len(tail)].tobytes() == alone["residual"][tail].tobytes()


def test_an_unknown_operation_is_refused(any_backend: Backend) -> None:
    with pytest.raises(KernelError, match="str"):
        any_backend.program(["attention"])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("kind", "format_name"),
    default_pairs([name for name in BACKENDS if not name.endswith("threads")], FORMAT_NAMES, every=7),
)
def test_threads_change_no_bit(kind: str, format_name: str) -> None:
    tokens = np.arange(23, dtype=np.int32)
    results = []
    for name in (kind, f"{kind} 3 threads"):
        backend = make_backend(name)
        results.append(run_layer(backend, format_name, 4, tokens, [20]))
        backend.close()
    assert_same_bits(*results)


@pytest.mark.parametrize(
    ("name", "format_name"), default_pairs(["reference", "jit", "jit 3 threads"], FORMAT_NAMES, every=6)
)
def test_scratch_stays_within_what_is_announced(name: str, format_name: str) -> None:
    backend = make_backend(name)
    layer = TinyLayer(format_name, 40, 0)
    program = backend.program(layer.operations)
    program.run(40)  # compiles
    layer.places.positions[:] = np.arange(CONTEXT - 40, CONTEXT)
    tracemalloc.start()
    program.run(40)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= backend.scratch_bytes(layer.operations)
    backend.close()
