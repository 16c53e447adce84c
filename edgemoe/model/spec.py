"""The specification of a model as data: everything that the decoder needs, independent of the checkpoint's format.

A family (`edgemoe/architectures`) makes a `ModelSpec` from a checkpoint's config; the store carries it as
JSON; the one decoder (`decoder.py`) interprets it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class RopeSpec:
    """Rotary positions. `scaling` names the rule (`none`, `linear`, `llama3`, `yarn`); `parameters` has its numbers."""

    theta: float
    scaling: Literal["none", "linear", "llama3", "yarn"] = "none"
    parameters: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AttentionSpec:
    """Grouped-query attention. `qk_norm`: none, over each head (Qwen3), or over the whole projection (OLMoE)."""

    query_heads: int
    kv_heads: int
    head_width: int
    scale: float
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: Literal["none", "head", "full"] = "none"


@dataclass(frozen=True)
class MoeSpec:
    """Routed experts of one layer, with an optional shared expert that every token uses."""

    experts: int
    experts_per_token: int
    width: int
    renormalise: bool
    """Whether the weights of the chosen experts are made to sum to one."""
    shared_width: int = 0
    shared_gate: bool = False
    """Whether the shared expert is multiplied by `sigmoid(w x)` (Qwen2-MoE)."""


@dataclass(frozen=True)
class DenseFfnSpec:
    """A plain SwiGLU feed-forward layer."""

    width: int


@dataclass(frozen=True)
class LayerSpec:
    """A layer is a mixer and an FFN."""

    attention: AttentionSpec
    ffn: MoeSpec | DenseFfnSpec


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only language model: pre-norm (RMSNorm) layers between an embedding and a head."""

    family: str
    vocabulary: int
    model_width: int
    layers: tuple[LayerSpec, ...]
    norm_epsilon: float
    rope: RopeSpec
    max_positions: int
    tied_embeddings: bool
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    """Factor on the logits (Granite divides by `logits_scaling`: this is its inverse)."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; each FFN has a field that names its kind."""
        data = asdict(self)
        for layer, plain in zip(self.layers, data["layers"], strict=True):
            plain["ffn"]["kind"] = "moe" if isinstance(layer.ffn, MoeSpec) else "dense"
        data["layers"] = list(data["layers"])
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelSpec:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError for data of another form."""
        layers = []
        for plain in data["layers"]:
            ffn = dict(plain["ffn"])
            kind = {"moe": MoeSpec, "dense": DenseFfnSpec}[ffn.pop("kind")]
            layers.append(LayerSpec(AttentionSpec(**plain["attention"]), kind(**ffn)))
        rest = {name: value for name, value in data.items() if name not in ("layers", "rope")}
        return cls(layers=tuple(layers), rope=RopeSpec(**data["rope"]), **rest)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the model, by its internal name, with its shape.

        Matrices are `(rows, columns)` = (output, input). Names with `.experts.N.` belong to a routed expert.
        """
        width = self.model_width
        shapes: dict[str, tuple[int, ...]] = {"embedding": (self.vocabulary, width), "final_norm": (width,)}
        if not self.tied_embeddings:
            shapes["head"] = (self.vocabulary, width)
        for number, layer in enumerate(self.layers):
            prefix = f"layers.{number}."
            shapes |= {prefix + name: shape for name, shape in _layer_tensors(layer, width).items()}
        return shapes


def _layer_tensors(layer: LayerSpec, width: int) -> dict[str, tuple[int, ...]]:
    a = layer.attention
    query, key_value = a.query_heads * a.head_width, a.kv_heads * a.head_width
    shapes: dict[str, tuple[int, ...]] = {
        "attention_norm": (width,),
        "query": (query, width),
        "key": (key_value, width),
        "value": (key_value, width),
        "output": (width, query),
        "ffn_norm": (width,),
    }
    if a.qkv_bias:
        shapes |= {"query_bias": (query,), "key_bias": (key_value,), "value_bias": (key_value,)}
    if a.output_bias:
        shapes["output_bias"] = (width,)
    if a.qk_norm == "head":
        shapes |= {"query_norm": (a.head_width,), "key_norm": (a.head_width,)}
    elif a.qk_norm == "full":
        shapes |= {"query_norm": (query,), "key_norm": (key_value,)}
    if isinstance(layer.ffn, DenseFfnSpec):
        return shapes | _ffn_tensors("ffn", layer.ffn.width, width)
    shapes["router"] = (layer.ffn.experts, width)
    for expert in range(layer.ffn.experts):
        shapes |= _ffn_tensors(f"experts.{expert}", layer.ffn.width, width)
    if layer.ffn.shared_width:
        shapes |= _ffn_tensors("shared", layer.ffn.shared_width, width)
        if layer.ffn.shared_gate:
            shapes["shared_gate"] = (1, width)
    return shapes


def _ffn_tensors(prefix: str, ffn_width: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.gate": (ffn_width, width),
        f"{prefix}.up": (ffn_width, width),
        f"{prefix}.down": (width, ffn_width),
    }
