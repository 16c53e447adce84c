"""Reads what families with Mamba-2 layers have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping

from edgemoe.architectures.config import DAMAGED, LARGEST_WIDTH, ConfigReader, unsupported
from edgemoe.errors import SourceError
from edgemoe.kernels.state_operations import MOST_TAPS
from edgemoe.model.blocks import Mamba2

_TYPES = {"mamba": "linear_attention", "attention": "full_attention"}
"""Words for types of layers in older files, each with the newer one."""
MAMBA_KEYS = (
    "mamba_chunk_size",
    "mamba_conv_bias",
    "mamba_hidden_act",
    "mamba_proj_bias",
    "time_step_limit",
    "time_step_min",
    "time_step_max",
    "time_step_floor",
)
"""Keys of Mamba layers that change nothing in a model without any."""
LAYER_TYPES = (*_TYPES, *_TYPES.values())


def newer_type(kind: str) -> str:
    """The newer word for a type of layer."""
    return _TYPES.get(kind, kind)


def read_mamba2(
    reader: ConfigReader, heads_key: str, width: int, groups_key: str, state_key: str, length_key: str, bias_key: str
) -> Mamba2:
    """A Mamba-2 mixer of heads of a width; the keys are those of the family. Raises SourceError."""
    mamba = Mamba2(
        heads=reader.integer(heads_key, maximum=LARGEST_WIDTH, default=128),
        head_dim=width,
        groups=reader.integer(groups_key, maximum=LARGEST_WIDTH),
        state_size=reader.integer(state_key, maximum=LARGEST_WIDTH),
        length=reader.integer(length_key, minimum=2, maximum=MOST_TAPS, default=4),
        conv_bias=reader.flag(bias_key, True),
    )
    if mamba.heads % mamba.groups:
        raise SourceError(
            f"config.json: {heads_key} is {mamba.heads}; expected a multiple of {groups_key}, which is {mamba.groups}.",
            DAMAGED,
        )
    if mamba.channels > LARGEST_WIDTH:
        raise SourceError(
            f"config.json: {mamba.channels} channels of a Mamba layer; expected at most {LARGEST_WIDTH}.", DAMAGED
        )
    reader.require("mamba_hidden_act", "silu", "swish")
    reader.require("mamba_proj_bias", False)
    _refuse_time_limits(reader)
    return mamba


def _refuse_time_limits(reader: ConfigReader) -> None:
    """Refuse limits of the step that could bind: of `softplus`, which is above 0, those from 0 to infinity do not.

    `time_step_min` and `time_step_max` say where training began. In Nemotron-H transformers 5 holds steps of prompts
    above `time_step_min`, but not those of single tokens; the published code does neither.
    """
    reader.skip(
        "time_step_min", "time_step_max", "time_step_floor", "mamba_dt_min", "mamba_dt_max", "mamba_dt_init_floor"
    )
    for name in ("time_step_limit", "mamba_dt_limit"):
        limits = reader.sequence(name)
        if limits and not (len(limits) == 2 and limits[0] == 0 and _infinite(limits[1])):
            raise unsupported(name, [_plain(limit) for limit in limits], "steps from 0 to infinity")


def _plain(limit: object) -> object:
    """A number as JSON has it, or as newer programs write one that JSON lacks."""
    return float(limit["__float__"]) if isinstance(limit, Mapping) and limit.get("__float__") == "Infinity" else limit


def _infinite(limit: object) -> bool:
    return limit is None or (isinstance(_plain(limit), float) and math.isinf(float(str(_plain(limit)))))
