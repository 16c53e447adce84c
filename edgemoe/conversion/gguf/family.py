"""The record of one architecture of GGUF files; `families.py` has those of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgemoe.model.blocks import RouterSpec

SOFTMAX_ROUTER = RouterSpec(normalise=False)
SIGMOID_ROUTER = RouterSpec(normalise=True, score="sigmoid", choice_bias=True)
"""DeepSeek-V3's: experts are weighed by sigmoids and chosen with a bias."""


@dataclass(frozen=True)
class Family:
    """One GGUF architecture: its names in checkpoints, and what llama.cpp's loader of it has keys for or assumes.

    `{expert}` and `{matrix}` are placeholders. The fields from `routing` on say nothing of the architectures in
    `windowed.py` and `latent.py`: the exporter reads a file of those back instead.
    """

    model_type: str
    interleaved_rotation: bool
    router: str = ""
    expert: str = ""
    """Name of one matrix of one expert; without `{expert}`, of one for all experts, gate and up fused (E, 2F, D)."""
    shared: str = ""
    partial_rotation: bool = False
    """Whether the file may say that only the first channels of each head are rotated."""
    leading_dense: bool = False
    """Whether the file may say that the first layers are dense."""
    matrices: Mapping[str, str] = field(default_factory=dict)
    """Checkpoint names of an expert's matrices: gate, up, down (or gate_up and down)."""
    own_names: Mapping[str, str] = field(default_factory=dict)
    """Checkpoint names that are not those of the other architectures, by the name in the model or layer of the file."""
    convolutions: bool = False
    """Whether layers without key heads are convolutions."""
    taps: tuple[str, str] = ("", "")
    """The names in the file and in the checkpoint of a convolution's taps, a row for each channel; checkpoints have a
    dimension of one in the middle."""
    flat: frozenset[str] = frozenset()
    """Names in the file of vectors that are matrices there."""
    linear_layers: bool = False
    """Whether most layers are of Gated DeltaNet."""
    heads_in_turn: bool = False
    """Whether heads of values lie in turn in the file (`Turns`)."""
    value_width: bool = False
    """Whether the file may say that values have another width than keys."""
    own_divisors: bool = False
    """Whether divisors of frequencies are of layers that see all tokens alone, and mean what `windowed.py` reads."""
    longrope: bool = False
    """Whether its files have divisors of LongRoPE, which its config's function reads."""
    read_only: bool = False
    """Whether its files are only read: llama.cpp runs another model (`expressible.py`)."""
    routing: RouterSpec = SOFTMAX_ROUTER
    """Its router but for the numbers that its files say."""
    routing_words: str = " of the logits"
    """Words of messages for what its softmax takes."""
    plain_weights: bool = False
    """Whether weights by sigmoids are always normalised and not scaled, and a shared expert is never there."""
    grouped: bool = False
    """Whether experts that sigmoids weigh may be in groups, and their weights need not be normalised."""
    several_shared: Literal["", "always", "maybe"] = ""
    """Whether layers have shared experts, ungated and as wide together as several of the others."""
    shared_keys: Literal["width", "count", "both"] = "width"
    """Keys of its files for shared experts: their width, their count, or both."""
    width_keys: Literal["one", "two", "twice"] = "one"
    """Keys for the width of experts: that of dense layers ("one"), another beside it ("two"), or it stands in both."""
    dense_anywhere: bool = False
    """Whether any layer may be dense."""
    qk_norm: tuple[str, ...] = ("none",)
    """The norms of queries and keys (`Attention.qk_norm`) that it may have."""
    norm_after_rope: bool = False
    """Whether these come after the rotation."""
    qkv_bias: bool = False
    """Whether query, key and value may have biases."""
    output_bias: bool = False
    """Whether the attention's output may have one."""
    full_width: bool = False
    """Whether its heads must be together as wide as the model."""
    multi_head: bool = False
    """Whether it has as many heads of keys and values as of queries."""
    neighbours: bool = False
    """Whether it rotates neighbouring channels of models that do so too."""
    multipliers: bool = False
    """Whether it has multipliers on embedding, attention, residual and logits."""
    never_tied: bool = False
    """Whether its head must be a matrix of its own."""
    layer_norm: bool = False
    """Whether its norms are LayerNorm without biases."""
    clipped: bool = False
    """Whether query, key and value are within limits."""
    layers: str = "model.layers.{layer}."
    """The text that precedes the names of a layer's tensors in checkpoints."""
