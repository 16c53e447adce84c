"""Layers of Mamba in GGUF files: their names and shapes.

Source: llama.cpp, conversion/mamba.py, nemotron.py and jamba.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgemoe.model.blocks import Body, Mamba, Mamba2


def mamba_names(mixer: str) -> dict[str, str]:
    """The checkpoint names of the tensors of a layer of Mamba-2, by those in the file; `mixer` precedes the former."""
    return {
        "ssm_in.weight": f"{mixer}.in_proj.weight",
        "ssm_conv1d.bias": f"{mixer}.conv1d.bias",
        "ssm_dt.bias": f"{mixer}.dt_bias",
        "ssm_a": f"{mixer}.rate",
        "ssm_d": f"{mixer}.D",
        "ssm_norm.weight": f"{mixer}.norm.weight",
        "ssm_out.weight": f"{mixer}.out_proj.weight",
    }


JAMBA_NAMES = {
    "output_norm.weight": "model.final_layernorm.weight",
    "ffn_norm.weight": "pre_ff_layernorm.weight",
    **{f"ffn_{matrix}.weight": f"feed_forward.{matrix}_proj.weight" for matrix in ("gate", "up", "down")},
    "ssm_in.weight": "mamba.in_proj.weight",
    "ssm_conv1d.bias": "mamba.conv1d.bias",
    "ssm_x.weight": "mamba.x_proj.weight",
    "ssm_dt.weight": "mamba.dt_proj.weight",
    "ssm_dt.bias": "mamba.dt_proj.bias",
    "ssm_dt_norm.weight": "mamba.dt_layernorm.weight",
    "ssm_b_norm.weight": "mamba.b_layernorm.weight",
    "ssm_c_norm.weight": "mamba.c_layernorm.weight",
    "ssm_a": "mamba.rate",
    "ssm_d": "mamba.D",
    "ssm_out.weight": "mamba.out_proj.weight",
}
"""The same of Jamba, whose Mamba-1 has matrices and norms of its own."""
MAMBA_FLAT = frozenset({"ssm_a", "ssm_d", "ssm_norm.weight"})
"""Vectors of checkpoints that have a row for each head, or for each group, in the file."""


def mamba_rows(mixer: Body) -> Mapping[str, int]:
    """The rows that vectors of a layer with this mixer have in the file, by their names in the model."""
    if isinstance(mixer, Mamba):
        return {"mamba_taps": mixer.inner, "mamba_rate": mixer.inner}
    if not isinstance(mixer, Mamba2):
        return {}
    return {
        "mamba_taps": mixer.channels,
        "mamba_rate": mixer.heads,
        "mamba_skip": mixer.heads,
        "mamba_group_norm": mixer.groups,
    }
