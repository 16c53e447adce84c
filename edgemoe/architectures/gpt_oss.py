"""gpt-oss: sinks, a window in every second layer, biases everywhere, and experts with a clamped activation.

Experts have three layouts: matrices in 4 bits (MXFP4) whose rows of gate and up take turns, as published; transposed
matrices of floats whose columns do, as transformers saves them; and separate matrices, as a GGUF holds them.
"""

from __future__ import annotations

from dataclasses import replace

from edgemoe.architectures.config import DAMAGED, LARGEST_EXPERTS, LARGEST_POSITIONS, ConfigReader
from edgemoe.architectures.frame import read_attention, read_experts, read_frame, read_layers, read_windows
from edgemoe.architectures.positions import SMALLEST_NUMBER
from edgemoe.architectures.table import FRAME, SEPARATE_EXPERTS, Row, layer_rows
from edgemoe.architectures.windows import WINDOWED
from edgemoe.errors import SourceError
from edgemoe.kernels.operations import Activation
from edgemoe.model.blocks import RouterSpec
from edgemoe.model.rope import RopeSpec
from edgemoe.model.spec import LayerSpec, ModelSpec

_GATE_UP = ("experts.{expert}.gate experts.{expert}.up", "experts.{expert}.gate_bias experts.{expert}.up_bias")


def _interleaved(rows: tuple[Row, ...], transposed: bool = False) -> tuple[Row, ...]:
    return tuple(replace(row, interleaved=len(row.internal) > 1, transposed=transposed) for row in rows)


_SEPARATE_BIASES = layer_rows(
    ("experts.{expert}.gate_bias", "mlp.experts.{expert}.gate_proj.bias", ("expert_width",)),
    ("experts.{expert}.up_bias", "mlp.experts.{expert}.up_proj.bias", ("expert_width",)),
    ("experts.{expert}.down_bias", "mlp.experts.{expert}.down_proj.bias", ("model",)),
)
_STACKED_BIASES = _interleaved(
    layer_rows(
        (_GATE_UP[1], "mlp.experts.gate_up_proj_bias", ("experts", "2*expert_width")),
        ("experts.{expert}.down_bias", "mlp.experts.down_proj_bias", ("experts", "model")),
    )
)
_MXFP4_EXPERTS = _interleaved(
    layer_rows(
        (_GATE_UP[0], "mlp.experts.gate_up_proj_blocks", ("experts", "2*expert_width", "model")),
        ("experts.{expert}.down", "mlp.experts.down_proj_blocks", ("experts", "model", "expert_width")),
    )
)
_TRANSPOSED_EXPERTS = _interleaved(
    layer_rows(
        (_GATE_UP[0], "mlp.experts.gate_up_proj", ("experts", "model", "2*expert_width")),
        ("experts.{expert}.down", "mlp.experts.down_proj", ("experts", "expert_width", "model")),
    ),
    transposed=True,
)

TENSORS = (
    FRAME
    + layer_rows(
        ("sinks", "self_attn.sinks", ("heads",)),
        ("router", "mlp.router.weight", ("experts", "model")),
        ("router_bias", "mlp.router.bias", ("experts",)),
    )
    + SEPARATE_EXPERTS
    + _SEPARATE_BIASES
    + _TRANSPOSED_EXPERTS
    + _MXFP4_EXPERTS
    + _STACKED_BIASES
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    frame = read_frame(reader, "gpt_oss", layer_types=WINDOWED, windows=True)
    for name in ("head_dim", "num_key_value_heads"):  # their defaults differ between programs
        reader.integer(name, maximum=LARGEST_POSITIONS)
    if reader.value("rope_scaling") is None and reader.value("rope_parameters") is None:
        raise SourceError("config.json: rope_parameters is missing; expected an object.", DAMAGED)
    attention = read_attention(
        reader, frame, default_theta=150_000.0, bias_key="attention_bias", bias_default=True, kv_heads_required=True
    )
    if attention.rope is not None:
        _check_context(reader, attention.rope)
    reader.integer("num_experts_per_tok", "experts_per_token", maximum=LARGEST_EXPERTS)
    moe = replace(
        read_experts(reader, width_key="intermediate_size", router=RouterSpec(normalise=True, logit_bias=True)),
        activation=Activation(
            "clamped_silu",
            alpha=reader.number("swiglu_alpha", 1.702, above=SMALLEST_NUMBER),
            limit=reader.number("swiglu_limit", 7.0, above=SMALLEST_NUMBER),
            offset=1.0,
        ),
        bias=True,
    )
    attention = replace(attention, sinks=True)
    count = len(read_layers(reader, attention, moe))
    windows = read_windows(reader, count, WINDOWED)
    kinds = {window: LayerSpec.of(replace(attention, window=window), moe) for window in set(windows)}
    return replace(frame, layers=tuple(kinds[window] for window in windows))


def _check_context(reader: ConfigReader, rope: RopeSpec) -> None:
    """Refuse an `initial_context_length` that contradicts the positions, of which it is another name."""
    original = rope.parameters.get("original_max_position_embeddings")
    found = reader.integer("initial_context_length", maximum=LARGEST_POSITIONS, default=0)
    if found and original is not None and found != original:
        raise SourceError(
            f"config.json: initial_context_length is {found}, but original_max_position_embeddings {original:g}; they"
            " are names of one thing and must agree.",
            DAMAGED,
        )
