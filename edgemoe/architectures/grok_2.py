"""Grok-2: Grok-1 with a dense FFN beside the experts, and scores that grow with positions once a cap has bounded them.

Both read the same rows, and their sum is multiplied by the root of a half. Logits of router and head have caps too.
Its config calls itself `git`, the model type of another model, so the class that it names is what tells them apart.

Source: the model that xAI's checkpoint is run with, `grok.py` of SGLang (Apache License 2.0). GELU is the form by tanh,
as that file says and as Grok-1's code has it; SGLang's kernels for CUDA take the one by erf, which differs by less than
5e-4. Experts lie as eight tensor-parallel ranks had them: gate and up by rows, down by columns (`tail_of`).
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

from edgemoe.architectures.config import LARGEST_POSITIONS, LARGEST_WIDTH, ConfigReader, unsupported
from edgemoe.architectures.frame import normed_around, read_attention, read_experts, read_frame, read_layers
from edgemoe.architectures.mixtral import TENSORS as _MIXTRAL
from edgemoe.architectures.table import layer_rows, shared_rows
from edgemoe.architectures.tails import Tail, rank_name, rank_of
from edgemoe.kernels.operations import GELU_TANH
from edgemoe.model.blocks import RouterSpec, SharedExpert
from edgemoe.model.rope import LogTemperature
from edgemoe.model.spec import ModelSpec

_NORMS = layer_rows(
    ("attention_norm", "pre_attn_norm.weight", ("model",)),
    ("post_attention_norm", "post_attn_norm.weight", ("model",)),
    ("ffn_norm", "pre_moe_norm.weight", ("model",)),
    ("post_ffn_norm", "post_moe_norm.weight", ("model",)),
)
TENSORS = _NORMS + shared_rows("mlp") + _MIXTRAL
_CLASS = "Grok1ForCausalLM"
_EXPERT = re.compile(r"model\.layers\.\d{1,6}\.block_sparse_moe\.experts\.\d{1,6}\.w([123])\.weight")
_OF_OTHER_ROPES = (
    "attn_factor",
    "beta_fast",
    "beta_slow",
    "extrapolation_factor",
    "original_max_position_embeddings",
    "scaling_factor",
)
"""Numbers of the rules that stretch positions; with `original` they are those of `rope_theta`, and none is read."""


def tail_of(name: str) -> Tail | None:
    """The part of an expert's tensor that the next rank has."""
    whole, rank = rank_of(name)
    found = _EXPERT.fullmatch(whole)
    return Tail(rank_name(whole, rank + 1), columns=found[1] == "2") if found else None


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    classes = ", ".join(map(str, reader.sequence("architectures")))
    if classes != _CLASS:
        raise unsupported("architectures", classes or None, f'"{_CLASS}", as Grok-2 has it, where model_type is "git"')
    frame = read_frame(reader, "grok-2")
    reader.require("rope_type", "original", default="original")
    reader.require("rope_rotate_half_dims", False)
    reader.require("attn_logit_softcapping_method", "tanh", default="tanh")
    reader.require("sliding_window_size", -1)
    reader.require("global_attn_every_n", 1)
    reader.skip(*_OF_OTHER_ROPES)
    attention = replace(
        read_attention(reader, frame, default_head_dim=128),
        score_cap=reader.number("attn_logit_softcapping", 30.0),
        score_temperature=_temperature(reader),
    )
    router = RouterSpec(normalise=False, logit_cap=reader.number("router_logit_softcapping", 30.0))
    moe = replace(read_experts(reader, width_key="moe_intermediate_size", router=router), activation=GELU_TANH)
    width = reader.integer("intermediate_size", maximum=LARGEST_WIDTH)
    if reader.flag("residual_moe", False):
        moe = replace(moe, shared=SharedExpert(width, activation=GELU_TANH), scale=math.sqrt(0.5))
    return replace(
        frame,
        layers=normed_around(read_layers(reader, attention, moe)),
        embedding_scale=reader.number("embedding_multiplier_scale"),
        logit_scale=reader.number("output_multiplier_scale"),
        logit_cap=reader.number("final_logit_softcapping", 0.0),
    )


def _temperature(reader: ConfigReader) -> LogTemperature | None:
    """The growth of scores; absent or -1: there is none."""
    if reader.value("attn_temperature_len") in (None, -1):
        return None
    return LogTemperature(reader.integer("attn_temperature_len", minimum=2, maximum=LARGEST_POSITIONS))
