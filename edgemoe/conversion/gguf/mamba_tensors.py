"""Layers of Mamba-2 in GGUF files: their names and shapes. Source: llama.cpp, conversion/mamba.py and nemotron.py."""

from __future__ import annotations

from collections.abc import Mapping

from edgemoe.model.blocks import Body, Mamba2


def mamba_names(mixer: str) -> dict[str, str]:
    """The names in checkpoints of the tensors of such a layer, by those in the file; `mixer` precedes the former."""
    return {
        "ssm_in.weight": f"{mixer}.in_proj.weight",
        "ssm_conv1d.bias": f"{mixer}.conv1d.bias",
        "ssm_dt.bias": f"{mixer}.dt_bias",
        "ssm_a": f"{mixer}.rate",
        "ssm_d": f"{mixer}.D",
        "ssm_norm.weight": f"{mixer}.norm.weight",
        "ssm_out.weight": f"{mixer}.out_proj.weight",
    }


MAMBA_FLAT = frozenset({"ssm_a", "ssm_d", "ssm_norm.weight"})
"""Vectors of checkpoints that have a row for each head, or for each group, in the file."""


def mamba_rows(mixer: Body) -> Mapping[str, int]:
    """The rows that vectors of a layer with this mixer have in the file, by their names in the model."""
    if not isinstance(mixer, Mamba2):
        return {}
    return {
        "mamba_taps": mixer.channels,
        "mamba_rate": mixer.heads,
        "mamba_skip": mixer.heads,
        "mamba_group_norm": mixer.groups,
    }
