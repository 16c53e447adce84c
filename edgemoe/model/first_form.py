"""Reads descriptions of models as stores of edgemoe 0.1 carry them: every layer has one attention and one FFN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_RENAMED = {"vocabulary": "vocab_size", "model_width": "hidden_size"}
_ATTENTION = {"query_heads": "heads", "head_width": "head_dim"}
_MOE = {"experts": "num_experts", "experts_per_token": "top_k", "width": "intermediate_size"}


def current_form(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The description in the form that `ModelSpec.from_json` reads; data in that form are returned as they are.

    Raises KeyError, TypeError, ValueError or AttributeError for data of neither form.
    """
    if "model_width" not in data:
        return data
    current = {_RENAMED.get(name, name): value for name, value in data.items() if name != "rope"}
    current["layers"] = [_layer(plain, data["rope"]) for plain in data["layers"]]
    return current


def _layer(plain: Mapping[str, Any], rope: Mapping[str, Any]) -> dict[str, Any]:
    attention = {"kind": "attention", **_renamed(plain["attention"], _ATTENTION)}
    attention["rope"] = {**rope, "rotated": attention["head_dim"]}
    ffn = dict(plain["ffn"])
    kind = ffn.pop("kind")
    if kind == "dense":
        body = {"kind": "gated_ffn", "intermediate_size": ffn.pop("width"), **ffn}
    elif kind == "moe":
        shared_width, gate = ffn.pop("shared_width", 0), ffn.pop("shared_gate", False)
        if gate and not shared_width:
            raise ValueError("the gate of a shared expert that there is not")
        router = {"normalise": ffn.pop("renormalise")}
        body = {"kind": "moe", **_renamed(ffn, _MOE), "router": router}
        if shared_width:
            body["shared"] = {"intermediate_size": shared_width, "gate": gate}
    else:
        raise ValueError(f"ffn.kind is {str(kind)[:80]!r}")
    return {"blocks": [{"body": attention}, {"body": body}]}


def _renamed(plain: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in plain.items()}
