"""MTP heads: the block that some checkpoints have after their last layer, which predicts a token after the next one.

In all of them the block's input is `W [norm(embedding of a token) ; norm(hidden state of the token before)]`, the
hidden state is what the model's head reads (after the final norm), and a norm and the model's own head follow. So a
head is a model of one layer, one of those that the model has too, with two matrices behind the embedding. DeepSeek, GLM
and others number the block as a further layer; Qwen names it `mtp`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from edgemoe.architectures.table import SUM_SUFFIX, Row, rows, sums_with_one
from edgemoe.model.spec import ModelSpec

MODEL_TYPE = "mtp"
"""The family of a head's config, which no checkpoint has: `of` is the config of the model."""

_NORMS = rows(
    ("token_norm", "inputs.token_norm.weight", ("model",)), ("hidden_norm", "inputs.hidden_norm.weight", ("model",))
)
_MATRICES = rows(
    ("token_in", "inputs.token_in.weight", ("model", "model")),
    ("hidden_in", "inputs.hidden_in.weight", ("model", "model")),
)
HALVES = {"inputs.token_in.weight": 0, "inputs.hidden_in.weight": 1}
"""The matrices that are halves of one in checkpoints, by their place among its columns."""

_NUMBERED = {
    "enorm.weight": "inputs.token_norm.weight",
    "hnorm.weight": "inputs.hidden_norm.weight",
    "shared_head.norm.weight": "model.norm.weight",
    "final_layernorm.weight": "model.norm.weight",
}
_NAMED = {
    "pre_fc_norm_embedding.weight": "inputs.token_norm.weight",
    "pre_fc_norm_hidden.weight": "inputs.hidden_norm.weight",
    "norm.weight": "model.norm.weight",
}
_COPIES = ("embed_tokens.weight", "shared_head.head.weight")
"""Copies of the model's embedding and head."""


def config_of(config: Mapping[str, Any], layer: int) -> dict[str, Any]:
    """The config of a model's head, whose block is as that layer of the model."""
    return {"model_type": MODEL_TYPE, "of": config, "layer": layer}


def head_of(spec: ModelSpec, layer: int) -> ModelSpec:
    """The head of a model, whose block is as that layer of the model."""
    return replace(spec, family=MODEL_TYPE, layers=(spec.layers[layer],), mtp=True)


def table_of(own: tuple[Row, ...]) -> tuple[Row, ...]:
    """The table of a family's heads."""
    from_one = any(row.change == "plus_one" for row in own)
    return own + (sums_with_one(_NORMS) if from_one else _NORMS) + _MATRICES


def head_names(spec: ModelSpec, names: Iterable[str]) -> tuple[dict[str, str], str | None]:
    """The tensors of the first head in a checkpoint, by their names in `table_of`; and its matrix on both inputs.

    That matrix is None where the checkpoint has no head.
    """
    numbered = re.compile(rf"(?:.+\.)?layers\.{len(spec.layers)}\.(.+)")
    found: dict[str, str] = {}
    both = None
    for name in names:
        if match := numbered.fullmatch(name):
            rest, plain, matrix = match[1], _NUMBERED, "eh_proj.weight"
        elif match := re.fullmatch(r"(?:model\.)?mtp\.(.+)", name):
            rest, plain, matrix = match[1], _NAMED, "fc.weight"
        else:
            continue
        with_one = rest.endswith(SUM_SUFFIX)
        usual = rest.removesuffix(SUM_SUFFIX) + ".weight" if with_one else rest
        if rest == matrix:
            both = name
        elif usual in plain:
            own = plain[usual]
            found[own.removesuffix(".weight") + SUM_SUFFIX if with_one else own] = name
        elif rest not in _COPIES:
            rest = re.sub(r"^layers\.0\.", "", rest)
            if not rest.startswith("layers."):  # of a second block
                found[f"model.layers.0.{rest}"] = name
    return found, both
