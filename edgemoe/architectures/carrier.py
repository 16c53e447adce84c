"""Carriers: small language models of edgemoe's own, with the body of Llama, that differ in their FFNs alone.

`ffn` in their config says which. Of each the fields of the config, and the tensors within `model.layers.N.mlp`:

`dense`: `hidden_act` (silu), `intermediate_size`; `gate_proj.weight`, `up_proj.weight` and `down_proj.weight`.

`fff`: trees (`blocks/fast_feedforward.py`). `depth`, `leaf_width`, `hidden_act` and, where there are several, `trees`;
`leaf_output_bias` (false). `node_weights (nodes, D)`, `node_biases (nodes, 1)`, `w1s (leaves, D, leaf_width)`, `b1s
(leaves, leaf_width)`, `w2s (leaves, leaf_width, D)` and `b2s (leaves, D)`, as the package fastfeedforward has them.
Without a `leaf_width` nodes add to the output, as UltraFastBERT's do, and the tensors are `node_weights`, `node_biases`
and `node_outputs (nodes, D)`. An `intermediate_size` is the number of all neurons that add to the output.

`moe`: experts of SwiGLU. `moe_intermediate_size`, `num_experts`, `num_experts_per_tok`, `norm_topk_prob` (true);
`gate.weight (num_experts, D)` and `experts.E.gate_proj.weight`, `up_proj.weight` and `down_proj.weight`. A
hierarchical router has `levels`, their sizes, and `level_top_k`, a token's choices at each level; the products are the
numbers of experts, which the config need not repeat. `gate.weight` has the rows of all levels, one level after the
other: those of groups, then those of the members of the first group, of the second, and so on.

`peer`: experts of one neuron (`blocks/peer.py`). `hidden_act` (gelu), `num_experts`, a square, `peer_heads`,
`num_experts_per_head`, `dim_key`; `peer_scoring` (softmax) and `query_bias` (true). `to_queries.weight (2 * heads *
dim_key, D)`, halves before heads, and `to_queries.bias`, `keys (heads, sqrt(num_experts), 2, dim_key)`, and the input
and output weights `weight_down_embed.weight` and `weight_up_embed.weight (num_experts, D)`, as the package peer-pytorch
has them. A batch norm of queries is part of their weights and bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import get_args

from edgemoe.architectures.config import DAMAGED, LARGEST_EXPERTS, LARGEST_WIDTH, ConfigReader, show, unsupported
from edgemoe.architectures.frame import pair_layers, read_attention, read_experts, read_frame, read_layer_count
from edgemoe.architectures.table import DENSE_FFN, FRAME, SEPARATE_EXPERTS, Row, layer_rows
from edgemoe.errors import SourceError
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.kernels.neuron_operations import MOST_NEURONS, MOST_RETRIEVED, Scoring
from edgemoe.kernels.tree_operations import MOST_DEPTH
from edgemoe.model.blocks import Body, FastFeedforward, GatedFfn, Moe, Peer, RouterSpec
from edgemoe.model.spec import ModelSpec

_PLAIN = {
    "gelu": op.GELU,
    "relu": op.RELU,
    "silu": op.Activation("silu", gated=False),
    "gelu_pytorch_tanh": op.Activation("gelu_tanh", gated=False),
}
"""Activations of FFNs without a gate, by the names that transformers gives them."""

_MOST_NUMBERS = 1 << 34
"""The most numbers of one matrix of trees."""


def _whole(internal: str, source: str, *shape: str, transposed: bool = False) -> Row:
    """A matrix whose rows, as wide as the model, are read one by one."""
    (row,) = layer_rows((internal, f"mlp.{source}", shape))
    return replace(row, whole_rows="model", transposed=transposed)


def _vector(internal: str, source: str, *shape: str) -> Row:
    (row,) = layer_rows((internal, f"mlp.{source}", shape))
    return replace(row, as_vector=True)


_TREES = (
    _whole("tree_nodes", "node_weights", "tree_nodes", "model"),
    _vector("tree_node_bias", "node_biases", "tree_nodes", "one"),
    _whole("tree_leaf_in", "w1s", "tree_leaves", "model", "leaf_width", transposed=True),
    _vector("tree_leaf_bias", "b1s", "tree_leaves", "leaf_width"),
    _whole("tree_leaf_out", "w2s", "tree_leaves", "leaf_width", "model"),
    _vector("tree_output_bias", "b2s", "tree_leaves", "model"),
    _whole("tree_node_out", "node_outputs", "tree_nodes", "model"),
)
_EXPERTS = layer_rows(("router", "mlp.gate.weight", ("router_logits", "model"))) + SEPARATE_EXPERTS
_KEYS = layer_rows(
    ("first_keys second_keys", "mlp.keys", ("retrieval_heads", "keys", "2", "key_dim")),
)
_PEER = layer_rows(
    ("first_query second_query", "mlp.to_queries.weight", ("queries", "model")),
    ("first_query_bias second_query_bias", "mlp.to_queries.bias", ("queries",)),
    ("neurons.down", "mlp.weight_down_embed.weight", ("neurons", "model")),
    ("neurons.up", "mlp.weight_up_embed.weight", ("neurons", "model")),
) + tuple(replace(row, interleaved=True, row_width="key_dim") for row in _KEYS)

TENSORS = FRAME + DENSE_FFN + _TREES + _EXPERTS + _PEER


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    kind = reader.value("ffn")
    if not isinstance(kind, str) or kind not in _FFNS:
        raise unsupported("ffn", kind, " or ".join(f'"{name}"' for name in _FFNS))
    gated = kind in ("dense", "moe")
    frame = read_frame(reader, "edgemoe_carrier", activations=("silu",) if gated else tuple(_PLAIN))
    attention, ffn = read_attention(reader, frame), _FFNS[kind](reader, frame.hidden_size)
    count = read_layer_count(reader, ffn)
    return replace(frame, layers=pair_layers([attention] * count, [ffn] * count))


def _read_dense(reader: ConfigReader, hidden_size: int) -> Body:
    return GatedFfn(reader.integer("intermediate_size", maximum=LARGEST_WIDTH))


def _read_trees(reader: ConfigReader, hidden_size: int) -> Body:
    body = FastFeedforward(
        depth=reader.integer("depth", maximum=MOST_DEPTH),
        leaf_width=reader.integer("leaf_width", minimum=0, maximum=LARGEST_WIDTH, default=0),
        trees=reader.integer("trees", maximum=LARGEST_WIDTH, default=1),
        activation=_PLAIN[reader.value("hidden_act") or "gelu"],
        output_bias=reader.flag("leaf_output_bias", False),
    )
    if body.neurons * hidden_size > _MOST_NUMBERS:
        raise SourceError(
            f"config.json: depth is {body.depth}; expected fewer than the {body.neurons} neurons that it means.",
            DAMAGED,
        )
    neurons = reader.integer("intermediate_size", maximum=_MOST_NUMBERS, default=body.neurons)
    if neurons != body.neurons:
        of_leaves = f"{body.trees << body.depth} leaves of {body.leaf_width}"
        raise SourceError(
            f"config.json: depth is {body.depth}; expected a tree that the {neurons} neurons of intermediate_size"
            f" allow, found {of_leaves if body.leaf_width else f'{body.neurons} nodes'}.",
            DAMAGED,
        )
    return body


def _read_moe(reader: ConfigReader, hidden_size: int) -> Body:
    width, normalise = "moe_intermediate_size", reader.flag("norm_topk_prob", True)
    sizes, chosen = (_read_numbers(reader, key) for key in ("levels", "level_top_k"))
    if not sizes and not chosen:
        return read_experts(reader, width_key=width, router=RouterSpec(normalise))
    if len(sizes) != len(chosen) or len(sizes) > ex.MOST_LEVELS:
        raise SourceError(
            f"config.json: level_top_k has {len(chosen)} numbers; expected one for each of 1 to {ex.MOST_LEVELS}"
            f" levels, found {len(sizes)}.",
            DAMAGED,
        )
    levels = tuple(map(ex.Level, sizes, chosen))
    for level in levels:
        if level.top_k > level.size:
            raise SourceError(
                f"config.json: level_top_k is {level.top_k} at a level of {level.size}; expected at most its size.",
                DAMAGED,
            )
    experts = reader.integer("num_experts", maximum=LARGEST_EXPERTS, default=min(math.prod(sizes), LARGEST_EXPERTS))
    if experts != math.prod(sizes):
        raise SourceError(
            f"config.json: levels of {' x '.join(map(str, sizes))}; expected them to make the {experts} of"
            " num_experts.",
            DAMAGED,
        )
    top_k = reader.integer("num_experts_per_tok", maximum=LARGEST_EXPERTS, default=math.prod(chosen))
    if top_k != math.prod(chosen):
        raise SourceError(
            f"config.json: level_top_k of {' x '.join(map(str, chosen))}; expected them to make the {top_k} of"
            " num_experts_per_tok.",
            DAMAGED,
        )
    return Moe(experts, top_k, reader.integer(width, maximum=LARGEST_WIDTH), RouterSpec(normalise, levels=levels))


def _read_numbers(reader: ConfigReader, key: str) -> list[int]:
    """The list of whole numbers from 1 on under a key; empty if the key is absent."""
    numbers = list(reader.sequence(key))
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= LARGEST_EXPERTS:
            raise SourceError(
                f"config.json: {key} holds {show(number)}; expected whole numbers from 1 to {LARGEST_EXPERTS}.", DAMAGED
            )
    return numbers


def _read_peer(reader: ConfigReader, hidden_size: int) -> Body:
    experts = reader.integer("num_experts", maximum=MOST_NEURONS)
    keys = math.isqrt(experts)
    if keys**2 != experts:
        raise SourceError(
            f"config.json: num_experts is {experts}; expected a square, as an expert has a pair of keys, such as"
            f" {keys**2} or {(keys + 1) ** 2}.",
            DAMAGED,
        )
    top_k = reader.integer("num_experts_per_head", maximum=LARGEST_WIDTH)
    if top_k > min(keys, MOST_RETRIEVED):
        raise SourceError(
            f"config.json: num_experts_per_head is {top_k}; expected at most {min(keys, MOST_RETRIEVED)}, as there are"
            f" {keys} keys for each half of a query.",
            DAMAGED,
        )
    scoring = get_args(Scoring)
    reader.require("peer_scoring", *scoring, default="softmax")
    return Peer(
        num_experts=experts,
        heads=reader.integer("peer_heads", maximum=LARGEST_WIDTH),
        top_k=top_k,
        key_dim=reader.integer("dim_key", maximum=LARGEST_WIDTH),
        scoring=reader.value("peer_scoring") or "softmax",
        activation=_PLAIN[reader.value("hidden_act") or "gelu"],
        query_bias=reader.flag("query_bias", True),
    )


_FFNS: Mapping[str, Callable[[ConfigReader, int], Body]] = {
    "dense": _read_dense,
    "fff": _read_trees,
    "moe": _read_moe,
    "peer": _read_peer,
}
