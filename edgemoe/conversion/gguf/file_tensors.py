"""The tensors of a GGUF that a store is exported to: their names in llama.cpp, their shapes and the order of rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgemoe.conversion.formats import expert_of
from edgemoe.conversion.gguf.compressed_tensors import ARCHITECTURE as COMPRESSED
from edgemoe.conversion.gguf.compressed_tensors import FILE_NAMES, TABLE, compressed_rows
from edgemoe.conversion.gguf.families import ARCHITECTURES, FAMILY, INTERLEAVED
from edgemoe.conversion.gguf.gated_tensors import ARCHITECTURE as GATED
from edgemoe.conversion.gguf.gated_tensors import FILE_NAMES as GATED_FILE_NAMES
from edgemoe.conversion.gguf.kda import KDA, KIMI, LING
from edgemoe.conversion.gguf.layers import attention_and_ffn, mixer_of
from edgemoe.conversion.gguf.linear import LinearOrders, Turns, linear_orders
from edgemoe.conversion.gguf.mamba_tensors import mamba_rows
from edgemoe.conversion.gguf.package import MODEL_TENSOR, TENSOR_NAMES
from edgemoe.conversion.gguf.scales import SCALED_TYPE, matrix_scale
from edgemoe.conversion.places import Place, tensor_places
from edgemoe.errors import StoreError
from edgemoe.kernels.row_types import TYPE_NAMES, block_columns, row_bytes
from edgemoe.model.blocks import GatedDelta, LatentAttention, Lightning
from edgemoe.model.spec import ModelSpec
from edgemoe.store.reader import Store

NAMES = {
    "embedding": MODEL_TENSOR.TOKEN_EMBD,
    "final_norm": MODEL_TENSOR.OUTPUT_NORM,
    "head": MODEL_TENSOR.OUTPUT,
    "attention_norm": MODEL_TENSOR.ATTN_NORM,
    "query": MODEL_TENSOR.ATTN_Q,
    "key": MODEL_TENSOR.ATTN_K,
    "value": MODEL_TENSOR.ATTN_V,
    "output": MODEL_TENSOR.ATTN_OUT,
    "output_gate": MODEL_TENSOR.ATTN_GATE,
    "post_attention_norm": MODEL_TENSOR.ATTN_POST_NORM,
    "post_ffn_norm": MODEL_TENSOR.FFN_POST_NORM,
    "query_norm": MODEL_TENSOR.ATTN_Q_NORM,
    "key_norm": MODEL_TENSOR.ATTN_K_NORM,
    "query_rotary": MODEL_TENSOR.ATTN_Q,
    "query_latent": MODEL_TENSOR.ATTN_Q_A,
    "query_latent_norm": MODEL_TENSOR.ATTN_Q_A_NORM,
    "latent": MODEL_TENSOR.ATTN_KV_A_MQA,
    "key_rotary": MODEL_TENSOR.ATTN_KV_A_MQA,
    "latent_norm": MODEL_TENSOR.ATTN_KV_A_NORM,
    "key_up": MODEL_TENSOR.ATTN_K_B,
    "value_up": MODEL_TENSOR.ATTN_V_B,
    "conv_norm": MODEL_TENSOR.ATTN_NORM,
    "conv_in": MODEL_TENSOR.SHORTCONV_INPROJ,
    "conv_taps": MODEL_TENSOR.SHORTCONV_CONV,
    "conv_out": MODEL_TENSOR.SHORTCONV_OUTPROJ,
    "delta_norm": MODEL_TENSOR.ATTN_NORM,
    "delta_in": MODEL_TENSOR.ATTN_QKV,
    "delta_gate": MODEL_TENSOR.ATTN_GATE,
    "delta_strength": MODEL_TENSOR.SSM_BETA,
    "delta_decay": MODEL_TENSOR.SSM_ALPHA,
    "delta_taps": MODEL_TENSOR.SSM_CONV1D,
    "delta_head_norm": MODEL_TENSOR.SSM_NORM,
    "delta_out": MODEL_TENSOR.SSM_OUT,
    "mamba_norm": MODEL_TENSOR.ATTN_NORM,
    "mamba_gate": MODEL_TENSOR.SSM_IN,
    "mamba_in": MODEL_TENSOR.SSM_IN,
    "mamba_step": MODEL_TENSOR.SSM_IN,
    "mamba_taps": MODEL_TENSOR.SSM_CONV1D,
    "mamba_group_norm": MODEL_TENSOR.SSM_NORM,
    "mamba_out": MODEL_TENSOR.SSM_OUT,
    "lightning_norm": MODEL_TENSOR.ATTN_NORM,
    "lightning_in": MODEL_TENSOR.ATTN_QKV,
    "lightning_gate": MODEL_TENSOR.ATTN_GATE,
    "lightning_head_norm": MODEL_TENSOR.ATTN_NORM_2,
    "lightning_out": MODEL_TENSOR.ATTN_OUT,
    "ffn_norm": MODEL_TENSOR.FFN_NORM,
    "sinks": MODEL_TENSOR.ATTN_SINKS,
    "router": MODEL_TENSOR.FFN_GATE_INP,
    "router_choice": MODEL_TENSOR.FFN_EXP_PROBS_B,
    "experts.gate": MODEL_TENSOR.FFN_GATE_EXP,
    "experts.up": MODEL_TENSOR.FFN_UP_EXP,
    "experts.down": MODEL_TENSOR.FFN_DOWN_EXP,
    "shared.gate": MODEL_TENSOR.FFN_GATE_SHEXP,
    "shared.up": MODEL_TENSOR.FFN_UP_SHEXP,
    "shared.down": MODEL_TENSOR.FFN_DOWN_SHEXP,
    "shared_gate": MODEL_TENSOR.FFN_GATE_INP_SHEXP,
    "ffn.gate": MODEL_TENSOR.FFN_GATE,
    "ffn.up": MODEL_TENSOR.FFN_UP,
    "ffn.down": MODEL_TENSOR.FFN_DOWN,
}
"""GGUF names by the names within our model or layer; a bias is named like its matrix."""

_POST_NORM = {"ffn_norm": MODEL_TENSOR.ATTN_POST_NORM}
_GATED_QUERY = {"output_gate": MODEL_TENSOR.ATTN_Q}
"""Query and gate of each head in turn."""
_OF_KDA = {
    "delta_query": MODEL_TENSOR.ATTN_Q,
    "delta_key": MODEL_TENSOR.ATTN_K,
    "delta_value": MODEL_TENSOR.ATTN_V,
    "delta_query_taps": MODEL_TENSOR.SSM_CONV1D_Q,
    "delta_key_taps": MODEL_TENSOR.SSM_CONV1D_K,
    "delta_value_taps": MODEL_TENSOR.SSM_CONV1D_V,
    "delta_out": MODEL_TENSOR.ATTN_OUT,
}
_OTHER_NAMES = dict.fromkeys(("glm4moe", "gpt-oss"), _POST_NORM) | {
    KIMI: _OF_KDA
    | {
        "delta_decays_latent": MODEL_TENSOR.SSM_F_A,
        "delta_decays": MODEL_TENSOR.SSM_F_B,
        "delta_gate_latent": MODEL_TENSOR.SSM_G_A,
        "delta_gate": MODEL_TENSOR.SSM_G_B,
    },
    LING: _OF_KDA | {"delta_decays": MODEL_TENSOR.SSM_F_A, "delta_gate": MODEL_TENSOR.SSM_G_A},
    "bailingmoe2": dict.fromkeys(("query", "key", "value"), MODEL_TENSOR.ATTN_QKV),
    "arctic": {
        "dense.ffn.gate": MODEL_TENSOR.FFN_GATE,
        "dense.ffn.up": MODEL_TENSOR.FFN_UP,
        "dense.ffn.down": MODEL_TENSOR.FFN_DOWN,
        "dense.ffn_norm": MODEL_TENSOR.FFN_NORM,
        "ffn_norm": MODEL_TENSOR.FFN_NORM_EXP,
    },
    "dbrx": dict.fromkeys(("query", "key", "value"), MODEL_TENSOR.ATTN_QKV) | {"ffn_norm": MODEL_TENSOR.ATTN_OUT_NORM},
    "gemma4": {
        "dense.ffn.gate": MODEL_TENSOR.FFN_GATE,
        "dense.ffn.up": MODEL_TENSOR.FFN_UP,
        "dense.ffn.down": MODEL_TENSOR.FFN_DOWN,
        "dense.ffn_norm": MODEL_TENSOR.FFN_NORM,
        "dense.post_ffn_norm": MODEL_TENSOR.FFN_POST_NORM_1,
        "dense.ffn_sum_norm": MODEL_TENSOR.FFN_POST_NORM,
        "dense.ffn_factor": MODEL_TENSOR.LAYER_OUT_SCALE,
        "experts_norm": MODEL_TENSOR.FFN_PRE_NORM_2,
        "post_ffn_norm": MODEL_TENSOR.FFN_POST_NORM_2,
        "router_norm": MODEL_TENSOR.FFN_GATE_INP,
        "router_expert_scales": MODEL_TENSOR.FFN_DOWN_EXP,
    },
    "jamba": {
        **dict.fromkeys(("mamba_step_latent", "mamba_write", "mamba_read"), MODEL_TENSOR.SSM_X),
        "mamba_step": MODEL_TENSOR.SSM_DT,
        "mamba_step_norm": MODEL_TENSOR.SSM_DT_NORM,
        "mamba_write_norm": MODEL_TENSOR.SSM_B_NORM,
        "mamba_read_norm": MODEL_TENSOR.SSM_C_NORM,
    },
    "lfm2moe": {"final_norm": MODEL_TENSOR.TOKEN_EMBD_NORM},
    "nemotron_h_moe": {"ffn_norm": MODEL_TENSOR.ATTN_NORM},
    "qwen35moe": _POST_NORM | _GATED_QUERY,
    GATED: _GATED_QUERY,
    "qwen3next": _POST_NORM
    | _GATED_QUERY
    | dict.fromkeys(("delta_strength", "delta_decay"), MODEL_TENSOR.SSM_BETA_ALPHA),
}
"""Where an architecture has names of its own."""

_RANKED_QUERY = dict.fromkeys(("query", "query_rotary"), MODEL_TENSOR.ATTN_Q_B)
"""The names of queries that are made of a latent."""

_WHOLE_NAMES = {
    "delta_decay_bias": "blk.{bid}.ssm_dt.bias",
    "delta_rate": "blk.{bid}.ssm_a",
    "mamba_step_bias": "blk.{bid}.ssm_dt.bias",
    "mamba_rate": "blk.{bid}.ssm_a",
    "mamba_skip": "blk.{bid}.ssm_d",
    "latent_in": "blk.{bid}.ffn_latent_down.weight",
    "latent_out": "blk.{bid}.ffn_latent_up.weight",
}
"""Names in the file that do not follow from a name above."""
_WHOLE_OF_ARCHITECTURE = {COMPRESSED: FILE_NAMES, GATED: _WHOLE_NAMES | GATED_FILE_NAMES}
"""The same where an architecture has names of its own."""

_WITHOUT_SUFFIX = {("hy_v3", "router_choice_bias")}
"""Vectors whose names in a file of an architecture do not end in .weight or .bias."""

_SCALES = frozenset({"router_norm", "router_expert_scales"})
"""Vectors that are named after the matrix whose input or output they scale."""


@dataclass
class FileTensor:
    """A tensor of the file: a tensor of the store, or several, whose rows follow one another, or the same matrix of
    all experts of a layer.

    With `head_dim` the rows of each head are reordered from two halves to interleaved pairs. With `blocks`, tensors of
    the store take turns: a block of the first, one of the second, the next of the first. With `turns`, heads of values
    are put in turn. With `heads`, the rows of each head are a matrix by itself.
    """

    type: str
    """The name of its type in GGUF."""
    dimensions: int
    """Number of dimensions of the tensor at one of its places; a `stacked` one has one more, for the experts."""
    stacked: bool
    head_dim: int | None
    rows: int = 0
    """Rows of the matrix that a vector of the store becomes in the file (taps of convolutions); 0: it stays one."""
    turns: Turns | None = None
    """From the order of the file to that of the store."""
    heads: int = 0
    in_planes: bool = False
    """Whether such a matrix has a dimension of one in the middle."""
    negative: bool = False
    """Whether the file has its numbers with the other sign."""
    places: list[Place] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    """How many rows a block of each of its places has."""
    scales: list[float] = field(default_factory=list)
    """The number that multiplies the matrix at each place, for types that leave that open; a tensor without places is
    these."""

    @property
    def shape(self) -> tuple[int, ...]:
        if not self.places:
            return (len(self.scales),)
        place = self.places[0]
        if self.blocks:
            return (sum(one.rows for one in self.places), place.columns)
        if self.heads:
            return (self.heads, place.rows // self.heads, place.columns)
        if self.rows and self.in_planes:
            return (self.rows, 1, place.rows // self.rows)
        if self.rows:
            return (self.rows, place.rows // self.rows)
        rows = place.rows if self.stacked else sum(part.rows for part in self.places)
        own = (rows * place.columns,) if self.dimensions == 1 else (rows, place.columns)
        return (len(self.places), *own) if self.stacked else own

    @property
    def bytes(self) -> int:
        """Size in the file in bytes, without the padding before the next tensor."""
        if self.type == "I32":
            return 4 * math.prod(self.shape)
        return math.prod(self.shape[:-1]) * row_bytes(self.type, self.shape[-1])


def kda_rows(mixer: GatedDelta) -> Mapping[str, int]:
    """The rows that vectors of a layer of Kimi Delta Attention have in the file, by their names in the model."""
    keys, values = mixer.key_heads * mixer.key_dim, mixer.heads * mixer.value_dim
    return {
        "delta_query_taps": keys,
        "delta_key_taps": keys,
        "delta_value_taps": values,
        "delta_rate": mixer.heads,
    }


def _type_name(name: str, place: Place) -> str:
    """The type of the tensor that holds a matrix or vector of a store. Raises StoreError where there is none."""
    if place.format is None:
        return "F32"
    if place.format.name not in TYPE_NAMES:
        raise StoreError(
            f"{name}: expected a format that GGUF has a type for, found {place.format.name}.",
            "Convert the checkpoint again with this part in q8, or in f32, which loses nothing.",
        )
    return TYPE_NAMES[place.format.name]


def file_tensors(store: Store, spec: ModelSpec) -> dict[str, FileTensor]:
    """The tensors of the file by name, in order. Raises StoreError for a tensor that the format cannot hold."""
    architecture = ARCHITECTURES[spec.family]
    family = FAMILY[architecture]
    interleaved, names = architecture in INTERLEAVED, NAMES | _OTHER_NAMES.get(architecture, {})
    if any(name.endswith(".query_latent") for name in spec.dense_tensors()):
        names |= _RANKED_QUERY
    head_dim = attention_and_ffn(spec)[0].head_dim if interleaved else None
    whole_names = _WHOLE_OF_ARCHITECTURE.get(architecture, _WHOLE_NAMES)
    shapes = spec.tensors()
    tensors: dict[str, FileTensor] = {}
    for name, place in tensor_places(store.manifest, shapes).items():
        layer, _, own = name.removeprefix("layers.").partition(".") if name.startswith("layers.") else ("", "", name)
        expert = expert_of(name)
        stem = (f"experts.{expert[2]}" if expert else own).removesuffix("_bias")
        suffix = "bias" if own.endswith("_bias") else "scale" if own in _SCALES else "weight"
        kind = _type_name(name, place)
        unit = block_columns(kind)
        if place.columns % unit:
            raise StoreError(
                f"{name}: expected a multiple of {unit} columns, as blocks of {kind} have, found {place.columns}.",
                "Convert the checkpoint again with this part in f16 or f32.",
            )
        whole = whole_names.get(own.partition(".")[0]) or f"{TENSOR_NAMES[names[stem]]}.{suffix}"
        if (architecture, own) in _WITHOUT_SUFFIX:
            whole = TENSOR_NAMES[names[stem]]
        target = whole.format(bid=layer)
        kind = "I32" if own == TABLE else kind
        dimensions = 1 if stem == "shared_gate" else len(shapes[name])
        rotated = head_dim if stem in ("query", "key") else None
        orders, body = LinearOrders({}, {}, {}), mixer_of(spec.layers[int(layer)]) if layer else None
        if body is not None and family.linear_layers:
            orders = linear_orders(body, family.heads_in_turn)
        heads = 0
        if isinstance(body, LatentAttention):
            orders = LinearOrders({"query": body.nope_dim, "query_rotary": body.rotary_dim}, {}, {})
            heads = body.heads if own in ("key_up", "value_up") else 0
        turns = orders.turns.get(own)
        if isinstance(body, Lightning) and own == "lightning_in":  # in a file by heads: query, key and value of each
            turns = Turns(body.heads, 3 * body.heads, 0, body.head_dim)
        if turns is not None and turns.columns and turns.width % unit:
            raise StoreError(
                f"{name}: expected heads of a multiple of {unit} values, whose blocks of {kind} can be put in another"
                f" order; found {turns.width}.",
                "Convert the checkpoint again with this part in f16 or f32.",
            )
        rows = orders.channels.get(own, spec.hidden_size if stem == "conv_taps" else 0)
        rows = mamba_rows(body).get(own, rows) if body is not None else rows
        rows = spec.stream_count * spec.hidden_size if own == "table_taps" else rows
        rows = kda_rows(body).get(own, rows) if architecture in KDA and isinstance(body, GatedDelta) else rows
        if architecture == COMPRESSED and layer:
            rows = compressed_rows(spec.layers[int(layer)], spec.vocab_size).get(own, 0)
        made = FileTensor(kind, dimensions, expert is not None, rotated, rows, turns, heads)
        made.in_planes = own.endswith("_taps") and architecture in KDA
        made.negative = architecture == LING and own == "delta_rate"
        tensor = tensors.setdefault(target, made)
        if tensor.type != kind:
            raise StoreError(
                f"{name}: expected the format of the layer's other experts, as a GGUF holds them in one tensor;"
                f" found {tensor.type} and {kind}.",
                "Convert the checkpoint again with one format for all experts.",
            )
        tensor.places.append(place)
        if kind == SCALED_TYPE:
            tensor.scales.append(matrix_scale(store, name, place))
        if own in orders.blocks:
            tensor.blocks.append(orders.blocks[own])
    for target, tensor in list(tensors.items()):
        if any(scale != 1 for scale in tensor.scales):
            beside = target.removesuffix("weight") + "scale"
            tensors[beside] = FileTensor("F32", 1, False, None, scales=tensor.scales)
    return tensors
