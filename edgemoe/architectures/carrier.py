"""Carriers: small language models of edgemoe's own, with the body of Llama, that differ in their FFNs alone.

`ffn` in their config says which. Of each the fields of the config, and the tensors within `model.layers.N.mlp`:

`fff`: trees (`blocks/fast_feedforward.py`). `depth`, `leaf_width`, `hidden_act` and, where there are several, `trees`;
`leaf_output_bias` (false). `node_weights (nodes, D)`, `node_biases (nodes, 1)`, `w1s (leaves, D, leaf_width)`, `b1s
(leaves, leaf_width)`, `w2s (leaves, leaf_width, D)` and `b2s (leaves, D)`, as the package fastfeedforward has them.
Without a `leaf_width` nodes add to the output, as UltraFastBERT's do, and the tensors are `node_weights`, `node_biases`
and `node_outputs (nodes, D)`. An `intermediate_size` is the number of all neurons that add to the output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from edgemoe.architectures.config import DAMAGED, LARGEST_WIDTH, ConfigReader, unsupported
from edgemoe.architectures.frame import pair_layers, read_attention, read_frame, read_layer_count
from edgemoe.architectures.table import FRAME, Row, layer_rows
from edgemoe.errors import SourceError
from edgemoe.kernels import operations as op
from edgemoe.kernels.tree_operations import MOST_DEPTH
from edgemoe.model.blocks import Body, FastFeedforward
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


TENSORS = (
    *FRAME,
    _whole("tree_nodes", "node_weights", "tree_nodes", "model"),
    _vector("tree_node_bias", "node_biases", "tree_nodes", "one"),
    _whole("tree_leaf_in", "w1s", "tree_leaves", "model", "leaf_width", transposed=True),
    _vector("tree_leaf_bias", "b1s", "tree_leaves", "leaf_width"),
    _whole("tree_leaf_out", "w2s", "tree_leaves", "leaf_width", "model"),
    _vector("tree_output_bias", "b2s", "tree_leaves", "model"),
    _whole("tree_node_out", "node_outputs", "tree_nodes", "model"),
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    kind = reader.value("ffn")
    if not isinstance(kind, str) or kind not in _FFNS:
        raise unsupported("ffn", kind, " or ".join(f'"{name}"' for name in _FFNS))
    frame = read_frame(reader, "edgemoe_carrier", activations=tuple(_PLAIN))
    attention, ffn = read_attention(reader, frame), _FFNS[kind](reader, frame.hidden_size)
    count = read_layer_count(reader, ffn)
    return replace(frame, layers=pair_layers([attention] * count, [ffn] * count))


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


_FFNS: Mapping[str, Callable[[ConfigReader, int], Body]] = {"fff": _read_trees}
