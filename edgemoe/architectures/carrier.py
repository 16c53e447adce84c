"""Carriers: small language models of edgemoe's own, with the body of Llama, that differ in their FFNs alone.

`ffn` in their config says which. Of each the fields of the config, and the tensors within `model.layers.N.mlp`:

`dense`: `hidden_act` (silu), `intermediate_size`; `gate_proj.weight`, `up_proj.weight` and `down_proj.weight`.

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

from edgemoe.architectures.config import DAMAGED, LARGEST_WIDTH, ConfigReader, unsupported
from edgemoe.architectures.frame import pair_layers, read_attention, read_frame, read_layer_count
from edgemoe.architectures.table import DENSE_FFN, FRAME, layer_rows
from edgemoe.errors import SourceError
from edgemoe.kernels import operations as op
from edgemoe.kernels.neuron_operations import MOST_NEURONS, MOST_RETRIEVED, Scoring
from edgemoe.model.blocks import Body, GatedFfn, Peer
from edgemoe.model.spec import ModelSpec

_PLAIN = {
    "gelu": op.GELU,
    "relu": op.RELU,
    "silu": op.Activation("silu", gated=False),
    "gelu_pytorch_tanh": op.Activation("gelu_tanh", gated=False),
}
"""Activations of FFNs without a gate, by the names that transformers gives them."""

_KEYS = layer_rows(
    ("first_keys second_keys", "mlp.keys", ("retrieval_heads", "keys", "2", "key_dim")),
)
_PEER = layer_rows(
    ("first_query second_query", "mlp.to_queries.weight", ("queries", "model")),
    ("first_query_bias second_query_bias", "mlp.to_queries.bias", ("queries",)),
    ("neurons.down", "mlp.weight_down_embed.weight", ("neurons", "model")),
    ("neurons.up", "mlp.weight_up_embed.weight", ("neurons", "model")),
) + tuple(replace(row, interleaved=True, row_width="key_dim") for row in _KEYS)

TENSORS = FRAME + DENSE_FFN + _PEER


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    kind = reader.value("ffn")
    if not isinstance(kind, str) or kind not in _FFNS:
        raise unsupported("ffn", kind, " or ".join(f'"{name}"' for name in _FFNS))
    frame = read_frame(reader, "edgemoe_carrier", activations=("silu",) if kind == "dense" else tuple(_PLAIN))
    attention, ffn = read_attention(reader, frame), _FFNS[kind](reader, frame.hidden_size)
    count = read_layer_count(reader, ffn)
    return replace(frame, layers=pair_layers([attention] * count, [ffn] * count))


def _read_dense(reader: ConfigReader, hidden_size: int) -> Body:
    return GatedFfn(reader.integer("intermediate_size", maximum=LARGEST_WIDTH))


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


_FFNS: Mapping[str, Callable[[ConfigReader, int], Body]] = {"dense": _read_dense, "peer": _read_peer}
