"""Step 3.5 and 3.7: numbers of heads and positions by the type of layer, a sigmoid gate of each head, norms whose
weights are distances from 1, a sigmoid router with a bias for the choice, a shared expert, limits on SwiGLU by layer.

The text part of a model for images too (`step3p7`): its config stands in `text_config`. Its vision tower is left out,
as are the layers that predict further tokens, which per-layer lists of published configs count.

Source: `modeling_step3p5.py` of stepfun-ai/Step-3.5-Flash, and transformers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from edgemoe.architectures import config as limits
from edgemoe.architectures.config import DAMAGED, LARGEST_WIDTH, ConfigReader, checked_number, show, unsupported
from edgemoe.architectures.frame import (
    check_own_code,
    pair_layers,
    read_attention,
    read_experts,
    read_frame,
    read_layer_count,
    read_overrides,
    read_window,
)
from edgemoe.architectures.table import DENSE_FFN, FRAME, FUSED_EXPERTS, layer_rows, rows, shared_rows, sums_with_one
from edgemoe.architectures.windows import WINDOWED
from edgemoe.errors import SourceError
from edgemoe.kernels.operations import SILU, Activation
from edgemoe.model.blocks import Attention, Body, GatedFfn, OutputGate, RouterSpec
from edgemoe.model.spec import ModelSpec

_NORMS = rows(("final_norm", "model.norm.weight", ("model",))) + layer_rows(
    ("attention_norm", "input_layernorm.weight", ("model",)),
    ("ffn_norm", "post_attention_layernorm.weight", ("model",)),
    ("query_norm", "self_attn.q_norm.weight", ("head_dim",)),
    ("key_norm", "self_attn.k_norm.weight", ("head_dim",)),
)
_FILES = (
    tuple(row for row in FRAME if "norm" not in row.source)
    + sums_with_one(_NORMS)
    + layer_rows(
        ("output_gate", "self_attn.g_proj.weight", ("output_gate", "model")),
        ("router", "moe.gate.weight", ("experts", "model")),
        ("router_choice_bias", "moe.router_bias", ("experts",)),
        ("experts.{expert}.gate", "moe.gate_proj.weight", ("experts", "expert_width", "model")),
        ("experts.{expert}.up", "moe.up_proj.weight", ("experts", "expert_width", "model")),
        ("experts.{expert}.down", "moe.down_proj.weight", ("experts", "model", "expert_width")),
    )
    + shared_rows("share_expert", "mlp.shared_experts")
    + DENSE_FFN
)
_NEWER = FUSED_EXPERTS + layer_rows(
    ("router", "mlp.gate.weight", ("experts", "model")),
    ("router_choice_bias", "mlp.gate.e_score_correction_bias", ("experts",)),
)
TENSORS = _FILES + tuple(
    replace(row, source=row.source.replace("model.", "model.language_model.", 1))
    for row in _FILES + _NEWER
    if row.source.startswith("model.")
)
"""The names of files, then those that newer programs use while they run."""

_OF_IMAGES = ("vision_config", "image_token_id", "image_token_len", "patch_token_len", "understand_projector_stride")
_NOT_READ = ("max_seq_len", "moe_layer_offset", "mtp_layer_types", "mtp_mlp_layer_types", "need_fp32_gate")
"""Keys that say nothing of what is computed here: the router's product has float32 everywhere."""
_TOP_K = ("moe_top_k", "num_experts_per_tok")


class _Layers(NamedTuple):
    """Reads lists with an entry for each layer, and for each that predicts further tokens if the config has some."""

    reader: ConfigReader
    running: int
    further: int

    def listed(self, name: str) -> Sequence[Any]:
        """The entries of the layers that run; none if there is no such list. Raises SourceError."""
        found = self.reader.sequence(name)
        if found and len(found) not in (self.running, self.running + self.further):
            expected = f"expected {self.running}" + f" or {self.running + self.further}" * (self.further > 0)
            raise SourceError(f"config.json: {name} lists {len(found)} layers; {expected}.", DAMAGED)
        return found[: self.running]

    def activations(self, name: str) -> Sequence[Activation]:
        """SwiGLU within a limit, or without one where the list has 0 or null."""
        bounds = (0 if limit is None else limit for limit in self.listed(name) or [None] * self.running)
        return [
            Activation("capped_silu", limit=checked_number(name, bound)) if bound != 0 else SILU for bound in bounds
        ]

    def of_type(self, name: str, kind: str, types: Sequence[str]) -> Any:
        """The value that all layers of a type have, by a list or one for all; None without either."""
        value = self.reader.value(name)
        if not isinstance(value, (list, tuple)):
            return value
        found = [own for own, type_ in zip(self.listed(name), types, strict=False) if type_ == kind]
        if any(own != found[0] for own in found):
            raise unsupported(name, value, f"one value for all layers of {kind}")
        return found[0] if found else None


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes, or its `text_config`. Raises SourceError."""
    text = reader.text_config("step3p5") or reader
    if text is not reader:
        check_own_code(reader, "Step3p7ForConditionalGeneration")
        reader.skip("projector_bias", *_OF_IMAGES)
    tied = reader.flag("tie_word_embeddings", False)
    frame = read_frame(
        text,
        reader.value("model_type"),
        default_epsilon=1e-5,
        tied=tied,
        layer_types=WINDOWED,
        windows=True,
        own_code="Step3p5ForCausalLM",
    )
    _require_known(text)
    text.integer(*_TOP_K, maximum=limits.LARGEST_EXPERTS)
    moe = read_experts(
        text,
        width_key="moe_intermediate_size",
        count_key="moe_num_experts",
        top_k_key=next(name for name in _TOP_K if text.value(name) is not None),
        router=RouterSpec(
            True,
            score="sigmoid",
            choice_bias=text.flag("use_moe_router_bias", True),
            epsilon=1e-20,
            scale=text.number("moe_router_scaling_factor", 1.0),
        ),
        shared_width=text.integer("share_expert_dim", "share_expert_dims", maximum=LARGEST_WIDTH),
    )
    count = read_layer_count(text, moe)
    further = text.integer("num_nextn_predict_layers", minimum=0, maximum=limits.LARGEST_LAYERS, default=0)
    layers = _Layers(text, count, further)
    types = layers.listed("layer_types") or ["full_attention"] * count
    of_type = {kind: _attention(layers, frame, kind, types) for kind in dict.fromkeys(types)}
    dense_width, sparse = text.integer("intermediate_size", maximum=LARGEST_WIDTH), _sparse_layers(layers)
    assert moe.shared is not None
    ffns: list[Body] = [
        replace(moe, activation=own, shared=replace(moe.shared, activation=shared))
        if number in sparse
        else GatedFfn(dense_width, shared)
        for number, (own, shared) in enumerate(
            zip(layers.activations("swiglu_limits"), layers.activations("swiglu_limits_shared"), strict=True)
        )
    ]
    return replace(frame, layers=pair_layers([of_type[kind] for kind in types], ffns))


def _require_known(reader: ConfigReader) -> None:
    """Refuse what the published code has keys for and edgemoe does not implement. Raises SourceError."""
    reader.skip(*_NOT_READ)
    for name in ("norm_expert_weight", "use_head_wise_attn_gate", "use_moe", "use_qk_norm", "zero_centered"):
        reader.require(name, True)
    for name in ("attention_bias", "sink", "use_bidirectional_attention"):
        reader.require(name, False)
    reader.require("gating", True, "per-head")
    reader.require("moe_router_activation", "sigmoid")
    reader.require("att_impl_type", "GQA")
    reader.require("moe_every_n_layer", 1)
    if not all(reader.sequence("use_rope_layers")):
        raise unsupported("use_rope_layers", False, "positions in all layers (true)")
    if list(reader.sequence("yarn_only_types")) not in ([], ["full_attention"]):
        raise unsupported("yarn_only_types", reader.value("yarn_only_types"), 'the type "full_attention"')


def _sparse_layers(layers: _Layers) -> Collection[int]:
    """The layers with experts. Programs differ in what a config means that names none, so it must name them."""
    kinds, numbers = layers.listed("mlp_layer_types"), layers.reader.value("moe_layers_enum")
    if kinds:
        for kind in kinds:
            if kind not in ("dense", "sparse"):
                raise unsupported("mlp_layer_types", kind, '"dense" or "sparse"')
        return {number for number, kind in enumerate(kinds) if kind == "sparse"}
    if isinstance(numbers, str):
        numbers = [int(part) if re.fullmatch(r"\s*[0-9]{1,6}\s*", part) else part for part in numbers.split(",")]
    if not isinstance(numbers, (list, tuple)) or not all(type(number) is int and number >= 0 for number in numbers):
        found = layers.reader.value("moe_layers_enum")
        found = "missing" if found is None else show(found)
        raise SourceError(f"config.json: moe_layers_enum is {found}; expected the numbers of layers.", DAMAGED)
    return {number for number in numbers if number < layers.running}


def _attention(layers: _Layers, frame: ModelSpec, kind: str, types: Sequence[str]) -> Attention:
    """The attention of one type of layer. Raises SourceError."""
    reader, whole = layers.reader, kind == "full_attention"
    heads = reader.integer("num_attention_heads", maximum=LARGEST_WIDTH)
    kv_heads = reader.integer("num_attention_groups", "num_key_value_heads", maximum=LARGEST_WIDTH)
    head_dim = reader.integer("head_dim", maximum=LARGEST_WIDTH, default=128)
    other = reader.inner("attention_other_setting") or ConfigReader({})
    other.require("attention_type", "sliding_attention")
    for name in ("head_dim", "true_head_dim"):
        other.require(name, head_dim)
    within = other.integer("num_attention_heads", maximum=LARGEST_WIDTH, default=heads)
    within = reader.integer("num_sliding_attention_heads", maximum=LARGEST_WIDTH, default=within)
    kv_within = other.integer("num_attention_groups", maximum=LARGEST_WIDTH, default=kv_heads)
    overrides = {n: {"num_attention_heads": within} for n, own in enumerate(types) if own == "sliding_attention"}
    if (found := read_overrides(reader)) not in ({}, overrides):  # transformers writes them again
        raise unsupported("per_layer_config", found, "settings by the type of layer")
    positions = reader.value("rope_parameters")
    by_type = isinstance(positions, Mapping) and any(isinstance(inner, Mapping) for inner in positions.values())
    theta, partial = (layers.of_type(name, kind, types) for name in ("rope_theta", "partial_rotary_factors"))
    scaling = reader.value("rope_scaling")
    own = ConfigReader(
        {
            "num_attention_heads": heads if whole else within,
            "num_key_value_heads": kv_heads if whole else kv_within,
            "head_dim": head_dim,
            # A rule that is not given by type is that of layers without a window.
            "rope_parameters": positions if by_type or whole else None,
            "rope_scaling": scaling if whole else None,
            "rope_theta": None if by_type else theta,
            "partial_rotary_factor": None if by_type else partial,
        }
    )
    scale = reader.number("query_pre_attn_scalar", float(head_dim)) ** -0.5
    attention = read_attention(own, frame, partial=1.0, scale=scale, qk_norm="head", layer_type=kind)
    window = read_window(reader, types)
    return replace(attention, output_gate=OutputGate("head"), window=0 if whole else window)
