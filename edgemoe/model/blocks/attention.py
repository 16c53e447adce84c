"""Attention with grouped queries: several query heads share a head of keys and values (Ainslie et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from edgemoe.kernels import operations as op
from edgemoe.kernels import state_operations as so
from edgemoe.model.blocks.block_indexer import BlockIndexer
from edgemoe.model.blocks.body import RoutedExperts, Shapes
from edgemoe.model.builder import Builder
from edgemoe.model.graph import Part
from edgemoe.model.plain import ZERO_ALLOWED
from edgemoe.model.relative import RelativeBias
from edgemoe.model.rope import LogTemperature, RopeSpec, Temperature


@dataclass(frozen=True)
class OutputGate:
    """A gate of what attention gives: a projection of the block's input, whose numbers become factors."""

    per: Literal["head", "channel"]
    """Whether a head has one number, or each of its channels."""
    gating: op.GateFunction = "sigmoid"


@dataclass(frozen=True)
class Attention:
    """Attention over earlier tokens, or over all of an encoder's input.

    `qk_norm`: none, over each head (Qwen3), the same without weights (Llama 4), or over the projection (OLMoE).
    """

    kind: ClassVar[str] = "attention"
    norm_name: ClassVar[str] = "attention_norm"
    norm_part: ClassVar[Part] = "attention"

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: RopeSpec | None
    """Rotary positions; None: a token's position changes nothing but what it sees (NoPE, Kazemnejad et al. 2023)."""
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: Literal["none", "head", "unweighted", "full"] = "none"
    window: int = field(default=0, metadata=ZERO_ALLOWED)
    """How many tokens a token sees, itself included; 0: all earlier ones."""
    chunked: bool = False
    """Whether windows begin at multiples of `window`: a token sees its own up to itself (Llama 4)."""
    sinks: bool = False
    """Whether each head has a learnt logit that takes a share of its softmax and adds nothing (gpt-oss)."""
    value_dim: int | None = None
    """Width of a head's values, where it is not `head_dim`."""
    value_norm: bool = False
    """Whether the values of each head are divided by their root mean square (Gemma 4)."""
    values_from_keys: bool = False
    """Whether the values are the projection that becomes the keys, before norm and rotation (Gemma 4)."""
    output_gate: OutputGate | None = None
    """The gate between attention and its last projection (Qiu et al. 2025)."""
    output_scale: float = 1.0
    """Factor of the result: in place of one on the values, which are summed linearly (MiMo-V2)."""
    norm_after_rope: bool = False
    """Whether the norms of queries and keys follow the rotation (Hunyuan)."""
    clip: float = field(default=0.0, metadata=ZERO_ALLOWED)
    """Largest magnitude of an element of query, key and value before the rotation (OLMoE); 0: any."""
    causal: bool = True
    """Whether a token sees itself and earlier tokens alone. In an encoder it sees the whole input."""
    relative_bias: RelativeBias | None = None
    """The buckets of distances by which each head has a number that is added to its scores (T5)."""
    temperature: Temperature | None = None
    """The factor by which queries grow with their position (Llama 4)."""
    score_cap: float = field(default=0.0, metadata=ZERO_ALLOWED)
    """The bound that scores are brought within, smoothly (Grok-1); 0: they stay as they are."""
    score_temperature: LogTemperature | None = None
    """The factor by which scores, so bounded, grow with the position of the token that sees (Grok-2)."""
    indexer: BlockIndexer | None = None
    """The choice of the earlier tokens that a token sees; None: all of them."""

    @property
    def routed(self) -> RoutedExperts | None:
        return None

    def check(self) -> None:
        if self.head_dim % 2 or self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads and {self.kv_heads} key heads of width {self.head_dim}")
        if self.rope is not None:
            self.rope.check(self.head_dim)
        if self.values_from_keys and not (self.value_norm and self.value_dim in (None, self.head_dim)):
            raise ValueError("values from the projection of keys that have another width, or no norm of their own")
        if self.output_bias and self.output_scale != 1:
            raise ValueError("a factor of the result, which would scale its bias too")
        if self.chunked and not self.window:
            raise ValueError("chunks of no width")
        if self.norm_after_rope and self.qk_norm == "none":
            raise ValueError("norms after the rotation, and no norms")
        if not self.causal and self.window:
            raise ValueError("a window in an encoder")
        if self.score_temperature is not None:
            self.score_temperature.check()
        if self.relative_bias is not None:
            self.relative_bias.check(self.causal)
        if self.indexer is not None:
            if self.rope is None or self.rope.pairing != "halves" or self.window or self.sinks or not self.causal:
                raise ValueError("a choice of blocks without positions of halves, or with a window or sinks")
            self.indexer.check(self.rope.rotated)

    def tensors(self, hidden_size: int) -> Shapes:
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        value_dim = self.value_dim or self.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "query": (query, hidden_size),
            "key": (key, hidden_size),
            "value": (self.kv_heads * value_dim, hidden_size),
            "output": (hidden_size, self.heads * value_dim),
        }
        if self.qkv_bias:
            shapes |= {"query_bias": (query,), "key_bias": (key,), "value_bias": (self.kv_heads * value_dim,)}
        if self.values_from_keys:
            shapes = {name: shape for name, shape in shapes.items() if name not in ("value", "value_bias")}
        if self.output_bias:
            shapes["output_bias"] = (hidden_size,)
        if self.qk_norm in ("head", "full"):
            whole = self.qk_norm == "full"
            shapes |= {
                "query_norm": (query if whole else self.head_dim,),
                "key_norm": (key if whole else self.head_dim,),
            }
        if self.sinks:
            shapes["sinks"] = (self.heads,)
        if self.output_gate is not None:
            shapes["output_gate"] = (self._gates, hidden_size)
        if self.relative_bias is not None:
            shapes["relative_bias"] = (self.relative_bias.buckets * self.heads,)
        return shapes | (dict(self.indexer.tensors(hidden_size)) if self.indexer else {})

    @property
    def _gates(self) -> int:
        """The numbers of the gate of a token."""
        per_channel = self.output_gate is not None and self.output_gate.per == "channel"
        return self.heads * (self.value_dim or self.head_dim) if per_channel else self.heads

    def sizes(self) -> Mapping[str, int]:
        return {
            "heads": self.heads,
            "query": self.heads * self.head_dim,
            "key_value": self.kv_heads * self.head_dim,
            "head_dim": self.head_dim,
            "value": 0 if self.values_from_keys else self.kv_heads * (self.value_dim or self.head_dim),
            "attended": self.heads * (self.value_dim or self.head_dim),
            "output_gate": self._gates,
            "buckets": self.relative_bias.buckets if self.relative_bias else 0,
            "index_query": self.indexer.heads * self.indexer.head_dim if self.indexer else 0,
            "index_key": self.indexer.head_dim if self.indexer else 0,
        }

    def with_top_k(self, top_k: int) -> Attention:
        return self

    def emit(self, build: Builder, source: op.Floats) -> None:
        H, G, W, Wv = self.heads, self.kv_heads, self.head_dim, self.value_dim or self.head_dim
        widths = {"query": H * W, "key": G * W, "value": G * Wv}
        query, key, value = (build.rows(name, width) for name, width in widths.items())
        parts = [
            op.LinearPart(
                build.matrix(name, width, build.hidden_size),
                build.vector(f"{name}_bias", width) if self.qkv_bias else None,
                output,
            )
            for (name, width), output in zip(widths.items(), (query, key, value), strict=True)
            if name != "value" or not self.values_from_keys
        ]
        gate = None
        if self.output_gate is not None:
            gate = build.rows("output_gate", self._gates)
            parts.append(op.LinearPart(build.matrix("output_gate", self._gates, build.hidden_size), None, gate))
        build.add(op.Linear(source, tuple(parts)))
        if self.value_norm:
            build.add(op.RmsNorm(key if self.values_from_keys else value, None, build.epsilon, value, G))
        if not self.norm_after_rope:
            self._emit_norms(build, query, key)
        for clipped in (query, key, value) if self.clip else ():
            build.add(op.Clip(clipped, self.clip))
        places = build.places()
        if self.rope is not None:
            cosine, sine = build.rope_tables(self.rope)
            neighbours = self.rope.pairing == "neighbours"
            build.add(op.Rope(query, H, places[0], cosine, sine, neighbours))
            build.add(op.Rope(key, G, places[0], cosine, sine, neighbours))
        if self.norm_after_rope:
            self._emit_norms(build, query, key)
        if self.temperature is not None:
            build.add(op.ScaleByPosition(query, places[0], build.temperatures(self.temperature)))
        lengths = None
        if self.causal:
            pages = build.pages(self.window)
            keys = build.state("keys", "N", G, op.PAGE_TOKENS, W, window=self.window)
            values = build.state("values", "N", G, op.PAGE_TOKENS, Wv, window=self.window)
        else:
            keys, values = build.whole_input("keys", G, W), build.whole_input("values", G, Wv)
            pages, (_, lengths) = build.encoder_pages(), build.input_places()
        build.add(so.StoreKv(key, value, *places, pages, keys, values))
        indexer, chosen = self.indexer, None
        if indexer is not None and self.rope is not None:
            chosen = indexer.emit(build, source, self.rope)
        attended = build.rows("attended", H * Wv)
        sinks = build.vector("sinks", H) if self.sinks else None
        relative, bias = self.relative_bias, None
        if relative is not None:
            bias = build.distance_bias("relative_bias", relative, H, self.causal)
        build.add(
            so.Attention(
                *(query, *places, pages, keys, values, self.scale, attended, self.window),
                sinks,
                chunked=self.chunked,
                cap=self.score_cap,
                lengths=lengths,
                bias=bias,
                chosen=chosen,
                page_blocks=op.PAGE_TOKENS // indexer.block if indexer else 1,
                factors=build.temperatures(self.score_temperature) if self.score_temperature else None,
            )
        )
        if self.output_gate is not None and gate is not None:
            build.add(op.Gate(gate, attended, self.output_gate.gating))
        build.deliver(attended, "output", self.output_bias, self.output_scale)

    def _emit_norms(self, build: Builder, query: op.Floats, key: op.Floats) -> None:
        for rows, name, heads in ((query, "query_norm", self.heads), (key, "key_norm", self.kv_heads)):
            if self.qk_norm == "head":
                build.rms_norm(rows, name, self.head_dim, rows, heads=heads)
            elif self.qk_norm == "unweighted":
                build.add(op.RmsNorm(rows, None, build.epsilon, rows, heads))
            elif self.qk_norm == "full":
                build.rms_norm(rows, name, heads * self.head_dim, rows)

    def emit_guess(self, build: Builder, source: op.Floats) -> None:
        raise AssertionError("attention has no routing to guess")
