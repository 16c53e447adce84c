"""MiniMax-Text-01 and MiniMax-M1: lightning attention in most layers, softmax attention in the others.

Each block's result joins the rows that it read, which are normalised, and both have factors. Experts as Mixtral has
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgemoe.architectures.config import DAMAGED, LARGEST_WIDTH, ConfigReader, unsupported
from edgemoe.architectures.frame import read_experts, read_frame, read_layer_count
from edgemoe.architectures.minimax_m2 import read_partly_rotated
from edgemoe.architectures.mixtral import TENSORS as _MIXTRAL
from edgemoe.architectures.table import Row, layer_rows
from edgemoe.errors import SourceError
from edgemoe.model.blocks import Body, Lightning, RouterSpec
from edgemoe.model.spec import Block, LayerSpec, ModelSpec, Residual

_MIXERS = ("linear_attention", "full_attention")
_CODE = {"minimax": "", "minimax_m1": "MiniMaxM1ForCausalLM", "minimax_text_01": "MiniMaxText01ForCausalLM"}
"""The class of the published code of each `model_type`; transformers has the first one."""
_IN = "layers.{layer}.lightning_in"

TENSORS = (
    _MIXTRAL
    + layer_rows(
        ("lightning_norm", "input_layernorm.weight", ("model",)),
        ("lightning_gate", "self_attn.output_gate.weight", ("lightning_inner", "model")),
        ("lightning_head_norm", "self_attn.norm.weight", ("lightning_inner",)),
        ("lightning_out", "self_attn.out_proj.weight", ("model", "lightning_inner")),
        ("lightning_out", "self_attn.o_proj.weight", ("model", "lightning_inner")),  # only from GGUF files
    )
    + (
        Row(
            (_IN,),
            "model.layers.{layer}.self_attn.qkv_proj.weight",
            ("3*lightning_inner", "model"),
            blocks=((_IN, "lightning_head_dim"),) * 3,
        ),
    )
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    family = str(reader.value("model_type"))
    frame = read_frame(reader, family, own_code=_CODE[family], layer_types=_MIXERS)
    attention = read_partly_rotated(reader, frame, theta=1e6)
    moe = read_experts(
        reader, width_key="intermediate_size", count_key="num_local_experts", router=RouterSpec(normalise=True)
    )
    # Published code keeps the residual from before the norm unless this says otherwise; transformers never does.
    reader.require("postnorm", True, default=family == "minimax")
    reader.require("shared_intermediate_size", 0)
    reader.skip("shared_moe_mode", "block_size")  # of shared experts, and of blocks that change no result
    count = read_layer_count(reader, moe)
    residuals = {
        kind: Residual("normed", base_scale=_factor(reader, kind, "alpha"), result_scale=_factor(reader, kind, "beta"))
        for kind in ("linear_attn", "full_attn", "mlp")
    }
    layers = []
    for number, kind in enumerate(_read_types(reader, count, family)):
        linear = kind == "linear_attention"
        slope = 1 - number / (count - 1 + 1e-5) + 1e-5
        mixer: Body = Lightning(attention.heads, attention.head_dim, slope) if linear else attention
        around = Block(mixer, residual=residuals["linear_attn" if linear else "full_attn"])
        layers.append(LayerSpec((around, Block(moe, residual=residuals["mlp"]))))
    if 3 * attention.heads * attention.head_dim > LARGEST_WIDTH:
        raise SourceError(
            f"config.json: {attention.heads} heads of width {attention.head_dim} make"
            f" {3 * attention.heads * attention.head_dim} queries, keys and values; expected {LARGEST_WIDTH} at most.",
            DAMAGED,
        )
    return replace(frame, layers=tuple(layers))


def _factor(reader: ConfigReader, kind: str, name: str) -> float:
    """A factor by its newer key, or by the one in published files; 1 without both. Raises SourceError."""
    newer = f"{kind}_{name}_factor"
    older = f"layernorm_{kind.replace('attn', 'attention')}_{name}"
    found = [reader.number(key) for key in (newer, older) if reader.value(key) is not None]
    if len(set(found)) > 1:
        raise SourceError(
            f"config.json: {newer} is {found[0]:g} and {older} is {found[1]:g}; they are names of one thing and must"
            " agree.",
            DAMAGED,
        )
    return found[0] if found else 1.0


def _read_types(reader: ConfigReader, count: int, family: str) -> Sequence[str]:
    """The type of each layer: by its word, by a number in published files, or of transformers in turn.

    Raises SourceError.
    """
    words, numbers = reader.sequence("layer_types"), reader.sequence("attn_type_list")
    for name, listed in (("layer_types", words), ("attn_type_list", numbers)):
        if listed and len(listed) != count:
            raise SourceError(f"config.json: {name} lists {len(listed)} layers; expected {count}.", DAMAGED)
    if any(type(number) is not int or number not in (0, 1) for number in numbers):
        raise unsupported("attn_type_list", numbers, "0 (lightning attention) or 1 (softmax attention) for each layer")
    types = [_MIXERS[number] for number in numbers]
    if types and words and list(words) != types:
        raise SourceError("config.json: layer_types and attn_type_list list other layers; they must agree.", DAMAGED)
    if not (words or types) and family != "minimax":
        raise SourceError(f"config.json: attn_type_list is missing; expected the kinds of {count} layers.", DAMAGED)
    return words or types or [_MIXERS[(number + 1) % 2] for number in range(count)]
