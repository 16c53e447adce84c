"""The one decoder: interprets a ModelSpec as lists of operations, bound to weights and buffers.

A token's path: embedding; then in each layer norm, attention, residual, norm, FFN, residual; then norm and
head. An MoE layer's FFN is router, experts, and a sum in router order. Because experts may have to be read first, the
program of a token is split where a layer's routing is known (`stepper.py`). A layer's operations, in this order:

    attend   attention, and the routing of an MoE layer
    predict  only on demand: the guess at the next layer's routing
    beside   the FFN without routed experts: the shared expert, or a dense FFN
    experts  the routed experts: those in RAM first, the others as their records land
    combine  the sum, added to the residual stream

Where all experts are resident no operation waits for the disk, and one program holds the whole token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgemoe.engine.ledger import Part
from edgemoe.engine.workspace import KvCache, Workspace, take
from edgemoe.experts.embedding_rows import EmbeddingRows
from edgemoe.kernels import operations as op
from edgemoe.kernels.formats import Matrix
from edgemoe.model.spec import AttentionSpec, DenseFfnSpec, LayerSpec, ModelSpec, MoeSpec

Weights = Mapping[str, "Matrix | op.Floats"]


@dataclass(frozen=True, eq=False)
class LayerRouting:
    """The output of one layer's router for the tokens of the latest run, and the slots of its experts."""

    experts: op.Integers  # (T, K)
    weights: op.Floats  # (T, K)
    predicted: op.Integers  # (1, K): the guess at this layer's routing, made one layer earlier
    predicted_weights: op.Floats  # (1, K)
    slots: op.Integers  # (E,): slot of each expert, or -1
    residency: npt.NDArray[np.bool_]  # (E,): whether each requested expert was in RAM; kept only while recording
    in_memory: op.Integers | None  # (E,): experts that cache-aware routing prefers; None without it


@dataclass(frozen=True, eq=False)
class LayerOperations:
    """The operations of one layer; `experts` is empty in a dense layer."""

    attend: list[op.Operation]
    beside: list[op.Operation]
    predict: list[op.Operation]
    experts: list[op.Operation]
    combine: list[op.Operation]


class Decoder:
    """The operations of a whole model, layer by layer."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        workspace: Workspace,
        kv_cache: KvCache,
        arena: npt.NDArray[np.uint8],
        expert_layouts: Sequence[op.ExpertLayout | None],
        arrivals: op.Arrivals | None = None,
        forced_routing: bool = False,
        forced_guesses: bool = False,
        cache_aware_routing: float = 0.0,
        embedding_rows: EmbeddingRows | None = None,
    ) -> None:
        """`weights` has all matrices and vectors of the model, except an embedding that `embedding_rows` reads.

        `arrivals`: given where records may still be being read when the experts of a layer are run.

        With `forced_routing` the caller fills `routing` before each step, in place of the routers. No guesses are made
        then unless `forced_guesses` is set; the caller fills those too.
        With `cache_aware_routing` above 0 experts marked in `LayerRouting.in_memory` get that bonus.
        """
        self.spec = spec
        self._weights = weights
        self._space = workspace
        self._kv_cache = kv_cache
        self._arena = arena
        self._layouts = expert_layouts
        self._arrivals = arrivals
        self._forced_routing = forced_routing
        self._forced_guesses = forced_guesses
        self._bonus = cache_aware_routing
        self._parts: dict[op.Operation, Part] = {}
        tokens = len(workspace.ids)
        self.routing = [
            _allocate_routing(layer.ffn, tokens, cache_aware_routing > 0) if isinstance(layer.ffn, MoeSpec) else None
            for layer in spec.layers
        ]
        if embedding_rows is None:
            embed = op.Embed(workspace.ids, self._matrix("embedding"), spec.embedding_scale, workspace.residual)
        else:
            rows = embedding_rows
            embed = op.Embed(rows.ids, rows.matrix, spec.embedding_scale, rows.rows)
        self.embed = self._part("embedding", embed)
        """Embeds all tokens of a step or, with `EmbeddingRows`, only the batch of rows just read."""
        self.begin = self.embed if embedding_rows is None else []
        """Operations at the start of a step; empty if `EmbeddingRows` fills the residual stream before it."""
        self.layers = [self._layer(number, layer) for number, layer in enumerate(spec.layers)]
        head = self._matrix("embedding" if spec.tied_embeddings else "head")
        normed = np.zeros_like(workspace.head_input)
        self.head = self._part(
            "head",
            op.RmsNorm(workspace.head_input, self._vector("final_norm"), spec.norm_epsilon, normed),
            op.Linear(normed, (op.LinearPart(head, None, workspace.logits),), scale=spec.logit_scale),
        )

    def part_of(self, operation: op.Operation) -> Part:
        """The part of the work, for the ledger, to which one of these operations belongs."""
        return self._parts[operation]

    def slot_tables(self) -> list[op.Integers | None]:
        """Each layer's table from expert to slot, which the caller fills in."""
        return [None if routing is None else routing.slots for routing in self.routing]

    def whole(self) -> list[op.Operation]:
        """Every operation of a step up to the head, for a model whose experts are all resident."""
        operations = list(self.begin)
        for layer in self.layers:
            operations += layer.attend + layer.beside + layer.experts + layer.combine
        return operations

    def _part(self, part: Part, *operations: op.Operation) -> list[op.Operation]:
        """Return the operations as a list, after registering them as this part of the work."""
        self._parts.update(dict.fromkeys(operations, part))
        return list(operations)

    def _layer(self, number: int, layer: LayerSpec) -> LayerOperations:
        space, prefix = self._space, f"layers.{number}."
        attend = self._part("attention", *self._attention(number, layer.attention))
        norm = self._norm(prefix + "ffn_norm", space.residual, space.normed)
        if isinstance(layer.ffn, DenseFfnSpec):
            attend += self._part("dense_ffn", norm)
            beside = self._part("dense_ffn", self._gated_ffn(prefix + "ffn"))
            return LayerOperations(attend, beside, [], [], self._combine(None, None, True, False))
        moe, routing = layer.ffn, self.routing[number]
        assert routing is not None
        logits = take(space.router_logits, len(space.ids), moe.experts)
        chosen = _allocate_routing(moe, len(space.ids)) if self._forced_routing else routing
        attend += self._part(
            "router",
            norm,
            self._product(prefix + "router", space.normed, logits),
            op.Route(logits, moe.renormalise, chosen.experts, chosen.weights, routing.in_memory, self._bonus),
        )
        beside = []
        if moe.shared_width:
            beside += self._part("shared_expert", self._gated_ffn(prefix + "shared"))
        if moe.shared_gate:
            gate = self._product(prefix + "shared_gate", space.normed, space.shared_gate)
            beside += self._part("shared_expert", gate)
        layout = self._layouts[number]
        assert layout is not None
        routed = take(space.routed, len(space.ids), moe.experts_per_token, self.spec.model_width)
        experts = op.Experts(space.normed, routing.experts, routing.slots, self._arena, layout, routed, self._arrivals)
        return LayerOperations(
            attend,
            beside,
            self._part("prediction", *self._prediction(number + 1)),
            self._part("experts", experts),
            self._combine(routed, routing.weights, bool(moe.shared_width), moe.shared_gate),
        )

    def _attention(self, number: int, a: AttentionSpec) -> list[op.Operation]:
        space, prefix, tokens = self._space, f"layers.{number}.", len(self._space.ids)
        query = take(space.query, tokens, a.query_heads * a.head_width)
        key = take(space.key, tokens, a.kv_heads * a.head_width)
        value = take(space.value, tokens, a.kv_heads * a.head_width)
        attended = take(space.attended, tokens, a.query_heads * a.head_width)
        parts = tuple(
            op.LinearPart(
                self._matrix(prefix + name), self._vector(f"{prefix}{name}_bias") if a.qkv_bias else None, output
            )
            for name, output in (("query", query), ("key", key), ("value", value))
        )
        operations: list[op.Operation] = [
            self._norm(prefix + "attention_norm", space.residual, space.normed),
            op.Linear(space.normed, parts),
        ]
        if a.qk_norm != "none":
            per_head = a.qk_norm == "head"
            operations += [
                self._norm(prefix + "query_norm", query, query, a.query_heads if per_head else 1),
                self._norm(prefix + "key_norm", key, key, a.kv_heads if per_head else 1),
            ]
        cosine, sine = self._kv_cache.rope[a.head_width]
        keys, values = self._kv_cache.keys[number], self._kv_cache.values[number]
        bias = self._vector(prefix + "output_bias") if a.output_bias else None
        return [
            *operations,
            op.Rope(query, a.query_heads, cosine, sine),
            op.Rope(key, a.kv_heads, cosine, sine),
            op.StoreKv(key, value, keys, values),
            op.Attention(query, keys, values, a.scale, attended),
            op.Linear(
                attended,
                (op.LinearPart(self._matrix(prefix + "output"), bias, space.residual),),
                scale=self.spec.residual_scale,
                accumulate=True,
            ),
        ]

    def _prediction(self, number: int) -> list[op.Operation]:
        """Guess a layer's routing from the residual stream one layer earlier (one token only)."""
        routing = self.routing[number] if number < len(self.routing) else None
        if routing is None or (self._forced_routing and not self._forced_guesses):
            return []
        space, prefix = self._space, f"layers.{number}."
        logits = take(space.predicted_logits, 1, len(routing.slots))
        moe = self.spec.layers[number].ffn
        assert isinstance(moe, MoeSpec)
        guessed = _allocate_routing(moe, 1) if self._forced_routing else routing
        return [
            self._norm(prefix + "ffn_norm", space.residual[:1], space.predicted_input),
            self._product(prefix + "router", space.predicted_input, logits),
            op.Route(logits, moe.renormalise, guessed.predicted, guessed.predicted_weights),
        ]

    def _gated_ffn(self, prefix: str) -> op.GatedFfn:
        gate_up, down = self._matrix(prefix + ".gate_up"), self._matrix(prefix + ".down")
        return op.GatedFfn(self._space.normed, gate_up, down, self._space.ffn_output)

    def _combine(
        self, routed: op.Floats | None, weights: op.Floats | None, shared: bool, shared_gate: bool
    ) -> list[op.Operation]:
        space = self._space
        shared_output, gate = space.ffn_output if shared else None, space.shared_gate if shared_gate else None
        scale = self.spec.residual_scale
        return self._part("combine", op.Combine(space.residual, scale, routed, weights, shared_output, gate))

    def _norm(self, name: str, source: op.Floats, output: op.Floats, heads: int = 1) -> op.RmsNorm:
        return op.RmsNorm(source, self._vector(name), self.spec.norm_epsilon, output, heads)

    def _product(self, name: str, source: op.Floats, output: op.Floats) -> op.Linear:
        return op.Linear(source, (op.LinearPart(self._matrix(name), None, output),))

    def _matrix(self, name: str) -> Matrix:
        weight = self._weights[name]
        assert isinstance(weight, Matrix), name
        return weight

    def _vector(self, name: str) -> op.Floats:
        weight = self._weights[name]
        assert not isinstance(weight, Matrix), name
        return weight


def _allocate_routing(moe: MoeSpec, tokens: int, cache_aware: bool = False) -> LayerRouting:
    used = moe.experts_per_token
    return LayerRouting(
        experts=np.zeros((tokens, used), np.int32),
        weights=np.zeros((tokens, used), np.float32),
        predicted=np.zeros((1, used), np.int32),
        predicted_weights=np.zeros((1, used), np.float32),
        slots=np.full(moe.experts, -1, np.int32),
        residency=np.ones(moe.experts, np.bool_),
        in_memory=np.zeros(moe.experts, np.int32) if cache_aware else None,
    )
