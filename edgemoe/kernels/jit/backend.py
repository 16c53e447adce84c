"""The `jit` backend: the operations of `reference`, compiled by Numba, which read packed matrices in place."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.expert_operations import Choice, Score
from edgemoe.kernels.formats import GROUP_COLUMNS, PANEL_ROWS, Matrix, group_count, panel_count
from edgemoe.kernels.jit import attention, experts, layers, products, streams
from edgemoe.kernels.operations import (
    PAGE_TOKENS,
    RELU,
    SILU,
    Activation,
    Cache,
    FfnBiases,
    Floats,
    GateFunction,
    Integers,
    Operation,
)
from edgemoe.kernels.reference.attention import seen_ends
from edgemoe.kernels.reference.backend import REFERENCE
from edgemoe.kernels.reference.common import Doubles
from edgemoe.kernels.state_operations import DistanceBias
from edgemoe.kernels.stepwise import MEANINGS, StepwiseBackend

_WORTH_A_THREAD = 1 << 20
"""Multiplications that take much longer than handing work to a thread (some tens of microseconds)."""

_Panels = Callable[[int, int], None]


class JitBackend(StepwiseBackend):
    """Numba kernels; `threads` share the rows of a product and the heads of attention, never a sum."""

    name = "jit"
    growth_bytes = 112 << 20  # LLVM takes about 100 MB to compile, and half of that to load cached machine code
    element_scratch_bytes = 8  # the result, and one temporary that a step computes from it

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, "edgemoe-jit") if threads > 1 else None

    def kernels_for(self, kind: type[Operation]) -> StepwiseBackend:
        """Itself, where it has the function of that operation; else the reference."""
        function = MEANINGS[kind].function
        return self if function is None or (function and hasattr(self, function)) else REFERENCE

    def close(self) -> None:
        """Stop the threads; a program that runs after this uses the caller's thread only."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _share(self, items: int, multiplications: int, work: _Panels) -> None:
        """Run `work(first, last)` over all `items`: one part a thread, but fewer parts if there is little work."""
        parts = min(self.threads, items, max(1, multiplications // _WORTH_A_THREAD))
        if self._pool is None or parts == 1:
            work(0, items)
            return
        bounds = [items * part // parts for part in range(parts + 1)]
        pending = [self._pool.submit(work, bounds[part], bounds[part + 1]) for part in range(parts)]
        for part in pending:
            part.result()

    def product_scratch_bytes(self, tokens: int, rows: int, columns: int) -> int:
        """Bytes of temporaries of one `matmul`, its result included."""
        groups = group_count(columns)
        activations = tokens * groups * (GROUP_COLUMNS + 2) * 4
        panel = groups * GROUP_COLUMNS * PANEL_ROWS * 4  # at most: one panel's float16 weights or scales as float32
        return tokens * rows * 4 + activations + self.threads * panel

    def attention_scratch_bytes(self, tokens: int, heads: int, kv_heads: int, width: int, context_length: int) -> int:
        """Bytes of temporaries of one `attention` at the end of the context, its result included."""
        head = (2 * width + attention.WIDTH_AT_ONCE) * (context_length + PAGE_TOKENS) * 4
        return tokens * heads * width * 4 + min(self.threads, kv_heads) * head

    def matmul(self, values: Floats, matrix: Matrix) -> Floats:
        """`(T, columns)` times the transpose of `(rows, columns)`: `(T, rows)`; of some formats the reference's."""
        if not products.takes(matrix.format):
            return REFERENCE.matmul(values, matrix)
        output = np.empty((len(values), matrix.rows), np.float32)
        multiplications = len(values) * matrix.rows * matrix.columns
        self._share(panel_count(matrix.rows), multiplications, products.product(values, matrix, output))
        return output

    def embed(self, ids: Integers, matrix: Matrix, scale: float) -> Floats:
        """Look up rows of the embedding: `(T,)` to `(T, D)`."""
        if not products.takes(matrix.format):
            return REFERENCE.embed(ids, matrix, scale)
        output = np.empty((len(ids), matrix.columns), np.float32)
        look_up = products.embed_quantised if matrix.format.quantised else products.embed_floats
        look_up(ids, products.panels_of(matrix), scale, output)
        return output

    def rms_norm(self, values: Floats, weight: Floats | None, epsilon: float, gate: Floats | None = None) -> Floats:
        """Root-mean-square norm over the last axis, times the SiLU of a gate if there is one."""
        output = np.empty(values.shape, np.float32)
        width = values.shape[-1]
        gates = None if gate is None else gate.reshape(-1, width)
        weights = None if weight is None else weight.reshape(-1, width)
        layers.rms_norm(values.reshape(-1, width), weights, epsilon, gates, output.reshape(-1, width))
        return output

    def layer_norm(self, values: Floats, weight: Floats, epsilon: float, bias: Floats | None = None) -> Floats:
        """Layer norm over the last axis: `(T, D)`."""
        output = np.empty(values.shape, np.float32)
        layers.layer_norm(values, weight, epsilon, bias, output)
        return output

    def soft_cap(self, values: Floats, limit: float) -> Floats:
        """The numbers `(T, M)` within the limit: see `op.SoftCap`."""
        output = np.empty(values.shape, np.float32)
        layers.soft_cap(values, np.float32(limit), output)
        return output

    def rope(
        self,
        values: Floats,
        cosine: Floats,
        sine: Floats,
        neighbours: bool = False,
        last: bool = False,
        back: bool = False,
    ) -> Floats:
        """Rotary positions: values `(T, heads, W)`, tables `(T, R / 2)`."""
        output = np.empty(values.shape, np.float32)
        start = values.shape[2] - 2 * cosine.shape[1] if last else 0
        layers.rope(values, cosine, -sine if back else sine, neighbours, start, output)
        return output

    def scale_by_position(self, values: Floats, factors: Floats) -> Floats:
        """Multiply rows `(T, M)` by their own factors `(T,)`."""
        scaled: Floats = values * factors[:, None]
        return scaled

    def clip(self, values: Floats, limit: float) -> Floats:
        """Hold each number of `(T, N)` to `-limit .. limit`."""
        output = np.empty(values.shape, np.float32)
        layers.clip(values, np.float32(limit), output)
        return output

    def quantise_cache_rows(self, rows: Floats) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]:
        """Quantise keys or values `(T, G, W)` for a `QuantisedCache`: values `(T, G, W)`, scales `(T, G, groups)`."""
        values = np.empty(rows.shape, np.int8)
        scales = np.empty((*rows.shape[:2], group_count(rows.shape[2])), np.float16)
        attention.quantise_cache_rows(rows, values, scales.view(np.uint16))
        return values, scales

    def attention(
        self,
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
        bias: DistanceBias | None = None,
        chosen: Integers | None = None,
        page_blocks: int = 1,
        factors: Floats | None = None,
    ) -> Floats:
        """Grouped-query attention: query `(T, H, W)`, caches `(N, G, 64, W or Wv)`; returns `(T, H, Wv)`."""
        tokens, heads, width = query.shape
        kv_heads, value_width = key_cache.shape[1], value_cache.shape[3]
        queries = query.reshape(tokens, kv_heads, -1, width)
        output = np.empty((*queries.shape[:3], value_width), np.float32)
        own_sinks = None if sinks is None else sinks.reshape(kv_heads, -1)
        together = [np.flatnonzero(sequences == sequence) for sequence in np.unique(sequences)]
        ends = seen_ends(positions, sequences, lengths)
        reach = window or int(ends.max())
        first_pages = [max(0, int(ends[rows].min()) - reach) // PAGE_TOKENS for rows in together]
        end_pages = [(int(ends[rows].max()) - 1) // PAGE_TOKENS + 1 for rows in together]
        # What a bias adds by distance, (G, H / G, R).
        added = None if bias is None else bias.table.reshape(-1, heads)[bias.bucket_of].T
        added = None if added is None else np.ascontiguousarray(added).reshape(*queries.shape[1:3], -1)
        longest = max(end - first for first, end in zip(first_pages, end_pages, strict=True)) * PAGE_TOKENS

        def work(first: int, last: int) -> None:
            padded_width = -(-width // attention.WIDTH_AT_ONCE) * attention.WIDTH_AT_ONCE
            keys = np.zeros(
                (longest // attention.POSITIONS_AT_ONCE, padded_width, attention.POSITIONS_AT_ONCE), np.float32
            )
            values = np.empty((longest, value_width), np.float32)
            scores = np.empty(longest, np.float32)
            for rows, first_page, end_page in zip(together, first_pages, end_pages, strict=True):
                held = pages[sequences[rows[0]], first_page:end_page]
                begin, length = first_page * PAGE_TOKENS, len(held) * PAGE_TOKENS
                for g in range(first, last):
                    attention.cached_floats(key_cache, value_cache, held, g, keys, values[:length])
                    seen = begin, scale, window, chunked, cap, own_sinks, added, chosen, page_blocks, factors
                    attention.attend(queries, rows, positions, ends, g, keys, values, *seen, scores, output)

        self._share(kv_heads, 2 * heads * width * int(ends.sum()), work)
        return output.reshape(tokens, heads, value_width)

    def short_conv(
        self, values: Floats, taps: Floats, bias: Floats | None, earlier: Floats, dilation: int = 1
    ) -> tuple[Floats, Floats]:
        """Convolve neighbouring rows of one sequence: values `(T, 3D)` or `(T, D)`; the output and `u`, `(T, D)`."""
        width, before = len(taps), len(earlier)
        inputs = np.empty((before + len(values), width), np.float32)
        inputs[:before] = earlier
        output = np.empty((len(values), width), np.float32)
        layers.short_conv(values, taps, bias, dilation, inputs, output)
        return output, inputs[before:]

    def delta_rule(
        self,
        query: Floats,
        key: Floats,
        value: Floats,
        decay: Floats,
        strength: Floats,
        epsilon: float,
        state: Floats,
    ) -> Floats:
        """The rows of a segment: query and key `(T, H, W)`, value `(T, H, Wv)`; changes `state (H, W, Wv)`."""
        lengths = [np.sqrt(np.square(heads).sum(axis=-1, keepdims=True) + epsilon) for heads in (query, key)]
        queries = (query / lengths[0] / np.sqrt(query.shape[-1])).astype(np.float32)
        keys = (key / lengths[1]).astype(np.float32)
        output = np.empty(value.shape, np.float32)
        layers.delta_rule(queries, keys, np.ascontiguousarray(value), decay, strength, state, output)
        return output

    def selective_scan(
        self, value: Floats, keys: Floats, queries: Floats, step: Floats, rate: Floats, skip: Floats, state: Floats
    ) -> Floats:
        """The rows of a segment: value `(T, H, Wv)`, keys and queries `(T, H, W)`; changes `state (H, W, Wv)`."""
        output = np.empty(value.shape, np.float32)
        decay = np.exp(rate * step)
        layers.selective_scan(np.ascontiguousarray(value), keys, queries, step, decay, skip, state, output)
        return output

    def channel_scan(
        self, value: Floats, keys: Floats, queries: Floats, step: Floats, rate: Floats, skip: Floats, state: Floats
    ) -> Floats:
        """The rows of a segment: value and step `(T, I)`, keys and queries `(T, W)`; changes `state (W, I)`."""
        output = np.empty(value.shape, np.float32)
        layers.channel_scan(value, keys, queries, step, rate, skip, state, output)
        return output

    def best_blocks(
        self, query: Floats, shares: Floats | None, keys: Doubles, scale: float, most: int
    ) -> npt.NDArray[np.int64]:
        """Return the numbers of the `most` blocks of largest score, of keys `(n, W)` for queries `(H, W)`."""
        scores = np.empty(len(keys), np.float32)
        weights = np.ones(len(query), np.float32) if shares is None else shares
        attention.block_scores(np.ascontiguousarray(query), weights, keys.astype(np.float32), scale, scores)
        return np.argsort(-scores, kind="stable")[:most]

    def read_streams(self, values: Floats, shares: Floats) -> Floats:
        """Streams and shares `(T, count, D)`; their mix `(T, D)`."""
        output = np.empty((len(values), values.shape[2]), np.float32)
        streams.read_streams(values, shares, output)
        return output

    def write_streams(self, values: Floats, shares: Floats, result: Floats) -> Floats:
        """Streams `(T, count, D)` with a result `(T, D)` added by shares `(T, count)`."""
        output = np.empty(values.shape, np.float32)
        streams.write_streams(values, shares, result, output)
        return output

    def gate_by_agreement(self, key: Floats, query: Floats, value: Floats, least: float) -> Floats:
        """Key and query `(T, count, D)`, value `(T, D)`; a share of the value for each stream, `(T, count, D)`."""
        output = np.empty(key.shape, np.float32)
        streams.gate_by_agreement(key, query, value, least, output)
        return output

    def within_capacity(
        self, chosen: Integers, weights: Floats, num_experts: int, capacity: int, by_rank: bool
    ) -> Floats:
        """The weights `(T, K)` of choices, 0 beyond the capacity of their experts: see `ex.Capacity`."""
        output = weights.copy()
        experts.hold_to_capacity(chosen, capacity, np.zeros(num_experts, np.int32), by_rank, output)
        return output

    def route(
        self,
        logits: Floats,
        count: int,
        renormalise: bool,
        in_memory: Integers | None = None,
        bonus: float = 0.0,
        score: Score = "softmax",
        choice_bias: Floats | None = None,
        groups: int = 1,
        kept_groups: int = 1,
        epsilon: float = 0.0,
        scale: float = 1.0,
        least_sum: float = 0.0,
        choose_by: Choice = "score",
        expert_scales: Floats | None = None,
        group_best: int = 2,
        jitter: float = 0.0,
    ) -> tuple[Integers, Floats]:
        """Experts `(T, K)` of largest choice score, the lower number on a tie, and their weights `(T, K)`."""
        if score == "sqrt_softplus":
            choosing = choice_bias, groups, kept_groups, epsilon, scale, least_sum, choose_by, expert_scales, group_best
            return REFERENCE.route(logits, count, renormalise, in_memory, bonus, score, *choosing, jitter)
        chosen = np.empty((len(logits), count), np.int32)
        weights = np.empty((len(logits), count), np.float32)
        choices, sigmoid = logits, score == "sigmoid"
        if sigmoid or choice_bias is not None or groups > 1:
            choices = np.empty_like(logits)
            by_logit = choose_by == "logit"
            grouping = groups, kept_groups, group_best
            experts.choice_scores(logits, sigmoid, by_logit, choice_bias, *grouping, choices)
        if in_memory is None:
            experts.choose(choices, chosen)
        else:
            experts.choose_with_bonus(choices, in_memory, np.float32(bonus), groups, chosen)
        if sigmoid:
            experts.weigh_by_sigmoid(logits, renormalise, epsilon, chosen, weights)
        elif score == "sparsemixer":
            experts.weigh_by_sparsemixer(logits, np.float32(2) * np.float32(jitter), chosen, weights)
        else:
            experts.weigh_by_softmax(logits, renormalise, least_sum, chosen, weights)
        if scale != 1:
            weights *= np.float32(scale)
        if expert_scales is not None:
            weights *= expert_scales[chosen]
        return chosen, weights

    def gated_ffn(
        self,
        values: Floats,
        gate_up: Matrix,
        down: Matrix,
        biases: FfnBiases | None = None,
        activation: Activation = SILU,
        up_apart: Matrix | None = None,
        beneath: tuple[Matrix, Matrix] | None = None,
    ) -> Floats:
        """`down (activation(gate x, up x))`, each product plus its bias: `(T, D)` to `(T, D)`."""
        if up_apart is None:
            products = self._summed(values, gate_up, beneath, 0)
        else:
            products = np.empty((len(values), panel_count(down.columns) * 2 * PANEL_ROWS), np.float32)
            layers.put_in_turn(self.matmul(values, gate_up), 0, products)
            layers.put_in_turn(self.matmul(values, up_apart), PANEL_ROWS, products)
        if biases is not None:
            assert biases.gate is not None
            layers.add_gate_up_biases(products, biases.gate, biases.up)
        return self._down(products, down, biases, activation, beneath)

    def plain_ffn(
        self,
        values: Floats,
        up: Matrix,
        down: Matrix,
        biases: FfnBiases | None = None,
        activation: Activation = RELU,
        beneath: tuple[Matrix, Matrix] | None = None,
    ) -> Floats:
        """`down (activation(up x))`, each product plus its bias: `(T, D)` to `(T, D)`."""
        products = self._summed(values, up, beneath, 0)
        if biases is not None:
            products += biases.up
        both = np.ones((len(values), panel_count(up.rows) * 2 * PANEL_ROWS), np.float32)
        layers.put_in_turn(products, 0, both)
        return self._down(both, down, biases, activation, beneath)

    def _summed(self, values: Floats, matrix: Matrix, beneath: tuple[Matrix, Matrix] | None, which: int) -> Floats:
        """The product with a matrix, added to that with its base plane."""
        products = self.matmul(values, matrix)
        if beneath is not None:
            products += self.matmul(values, beneath[which])
        return products

    def _down(
        self,
        products: Floats,
        down: Matrix,
        biases: FfnBiases | None,
        activation: Activation,
        beneath: tuple[Matrix, Matrix] | None,
    ) -> Floats:
        """Apply the activation to a product of gate and up, and multiply by `down`."""
        hidden = np.empty((len(products), down.columns), np.float32)
        if activation.function == "silu":
            layers.gate(products, hidden)
        elif activation.function == "gelu_tanh":
            layers.gelu_gate(products, hidden)
        elif activation.function == "gelu":
            layers.normal_gate(products, hidden)
        elif activation.function in ("relu", "relu2"):
            layers.relu_gate(products, activation.function == "relu2", hidden)
        elif activation.function == "capped_silu":
            layers.capped_gate(products, np.float32(activation.limit), hidden)
        else:
            assert activation.limit is not None
            alpha, limit, offset = (np.float32(n) for n in (activation.alpha, activation.limit, activation.offset or 0))
            layers.clamped_gate(products, alpha, limit, offset, hidden)
        output = self._summed(hidden, down, beneath, 1)
        if biases is not None:
            output += biases.down
        return output

    def combine(
        self, routed: Floats | None, weights: Floats | None, shared: Floats | None, shared_gate: Floats | None
    ) -> Floats:
        """The output of an MoE block: routed `(T, K, D)`, weights `(T, K)`, shared `(T, D)`, gate `(T, 1)`."""
        some = routed[:, 0] if routed is not None else shared
        assert some is not None
        total = np.zeros(some.shape, np.float32)
        if routed is not None:
            experts.add_routed(routed, weights, total)
        if shared is not None:
            experts.add_shared(shared, shared_gate, total)
        return total

    def gate(self, values: Floats, numbers: Floats, gating: GateFunction) -> Floats:
        """Values `(T, runs, width)`, each run times what the gating makes of its own of the numbers `(T, runs)`."""
        output = np.empty(values.shape, np.float32)
        layers.gate_runs(values, numbers, gating == "softplus", gating == "identity", gating == "silu", output)
        return output

    def mix(
        self,
        base: Floats,
        result: Floats,
        scale: float,
        keep: Floats | None,
        share: Floats | None,
        shift: Floats | None,
        factor: Floats | None,
    ) -> Floats:
        """The stream after a block: base and result `(T, D)`, `keep`, `share` and `shift` `(D,)`, factor `(1,)`."""
        output = np.empty(base.shape, np.float32)
        layers.mix(base, result, np.float32(scale), keep, share, shift, factor, output)
        return output
