"""Attention over latent rows: all heads share one compressed key, whose beginning is the value (DeepSeek-V2, 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.kernels import state_operations as so
from edgemoe.model.blocks.attention import OutputGate
from edgemoe.model.blocks.body import RoutedExperts, Shapes
from edgemoe.model.builder import Builder, row_size
from edgemoe.model.graph import Part
from edgemoe.model.plain import ZERO_ALLOWED
from edgemoe.model.rope import RopeSpec, Temperature


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2: arXiv 2405.04434), in the one form whose sums no cut changes.

    A sequence keeps `[c | k]` of each token: the normalised latent `c` of `latent_dim` channels, and `k`, the
    `rotary_dim` rotated channels that all heads share. A head's query of `nope_dim` channels without positions goes
    through the transpose of the matrix that would make its keys of `c` (`key_up`), so that its scores are products with
    the rows themselves; what it gathers of `c` becomes its values of `value_dim` channels (`value_up`).
    """

    kind: ClassVar[str] = "latent_attention"
    norm_name: ClassVar[str] = "attention_norm"
    norm_part: ClassVar[Part] = "attention"

    heads: int
    latent_dim: int
    nope_dim: int
    rotary_dim: int
    value_dim: int
    scale: float
    rope: RopeSpec | None
    """Rotary positions of `rotary_dim` channels; None: these are as wide, and not rotated (Kimi-Linear)."""
    query_rank: int = field(default=0, metadata=ZERO_ALLOWED)
    """Channels of the latent that queries are made of; 0: they are made of the stream itself."""
    latent_epsilon: float = 1e-6
    """The epsilon of the norms of the latents, which most families have apart from that of the stream's norms."""
    temperature: Temperature | None = None
    """How queries grow with their position."""
    output_gate: OutputGate | None = None
    """The gate between attention and its last projection, of which each head has one number."""
    query_scale: float = 1.0
    """Factor of queries that are made of a latent (LongCat-Flash)."""
    latent_scale: float = 1.0
    """Factor of the latent that is kept, once it is normalised (LongCat-Flash)."""

    @property
    def routed(self) -> RoutedExperts | None:
        return None

    def check(self) -> None:
        if self.rope is not None:
            self.rope.check(self.rotary_dim)
            if self.rope.rotated != self.rotary_dim:
                raise ValueError(f"{self.rope.rotated} of {self.rotary_dim} channels with positions are rotated")
        if self.output_gate is not None and self.output_gate.per != "head":
            raise ValueError("a gate of latent attention that is not one of its heads")
        if self.query_scale != 1 and not self.query_rank:
            raise ValueError("a factor of queries that are made of the stream itself")

    def tensors(self, hidden_size: int) -> Shapes:
        H, r, R = self.heads, self.latent_dim, self.rotary_dim
        source = self.query_rank or hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "latent": (r, hidden_size),
            "key_rotary": (R, hidden_size),
            "latent_norm": (r,),
            "query": (H * self.nope_dim, source),
            "query_rotary": (H * R, source),
            "key_up": (H * r, self.nope_dim),
            "value_up": (H * self.value_dim, r),
            "output": (hidden_size, H * self.value_dim),
        }
        if self.query_rank:
            shapes |= {"query_latent": (self.query_rank, hidden_size), "query_latent_norm": (self.query_rank,)}
        if self.output_gate is not None:
            shapes["output_gate"] = (H, hidden_size)
        return shapes

    def sizes(self) -> Mapping[str, int]:
        H = self.heads
        return {
            "heads": H,
            "latent": self.latent_dim,
            "rotary_dim": self.rotary_dim,
            "query_rank": self.query_rank,
            "nope_dim": self.nope_dim,
            "head_values": self.value_dim,
            "plain_queries": 0 if self.query_rank else H * (self.nope_dim + self.rotary_dim),
            "latent_queries": H * (self.nope_dim + self.rotary_dim) if self.query_rank else 0,
            "expanded": H * (self.nope_dim + self.value_dim),
            "absorbed": H * self.latent_dim,
            "attended": H * self.value_dim,
            "output_gate": H if self.output_gate else 0,
        }

    def with_top_k(self, top_k: int) -> LatentAttention:
        return self

    def emit(self, build: Builder, source: op.Floats) -> None:
        H, r, R, D = self.heads, self.latent_dim, self.rotary_dim, build.hidden_size
        query, query_rotary = build.rows("query", H * self.nope_dim), build.rows("query_rotary", H * R)
        latent, key_rotary = build.rows("latent", r), build.rows("key_rotary", R)
        of_query = {"query": query, "query_rotary": query_rotary}
        of_stream = {"latent": latent, "key_rotary": key_rotary}
        if self.query_rank:
            query_latent = build.rows("query_latent", self.query_rank)
            self._emit_linear(build, source, D, of_stream | {"query_latent": query_latent})
            self._emit_norm(build, query_latent, "query_latent_norm", self.query_rank)
            self._emit_linear(build, query_latent, self.query_rank, of_query, self.query_scale)
        else:
            self._emit_linear(build, source, D, of_stream | of_query)
        self._emit_norm(build, latent, "latent_norm", r)
        if self.latent_scale != 1:
            scaled = build.rows("scaled_latent", r)
            build.add(ex.Combine(scaled, self.latent_scale, None, None, latent, None, accumulate=False))
            latent = scaled
        places, pages = build.places(), build.pages()
        if self.rope is not None:
            cosine, sine = build.rope_tables(self.rope)
            neighbours = self.rope.pairing == "neighbours"
            build.add(op.Rope(query_rotary, H, places[0], cosine, sine, neighbours))
            build.add(op.Rope(key_rotary, 1, places[0], cosine, sine, neighbours))
        if self.temperature is not None:
            factors = build.temperatures(self.temperature)
            build.add(op.ScaleByPosition(query, places[0], factors))
            build.add(op.ScaleByPosition(query_rotary, places[0], factors))
        latents = build.state("latents", "N", 1, op.PAGE_TOKENS, r + R)
        build.add(so.StoreLatent(latent, key_rotary, *places, pages, latents))
        absorbed = build.rows("absorbed", H * (r + R))
        key_up, value_up = build.matrix("key_up", H * r, self.nope_dim), build.matrix("value_up", H * self.value_dim, r)
        build.add(op.HeadLinear(query, key_up, query_rotary, H, absorbed))
        gathered = build.rows("gathered", H * r)
        build.add(so.Attention(absorbed, *places, pages, latents, None, self.scale, gathered))
        attended = build.rows("attended", H * self.value_dim)
        build.add(op.HeadLinear(gathered, value_up, None, H, attended))
        if self.output_gate is not None:
            gate = build.linear(source, "output_gate", build.rows("output_gate", H))
            build.add(op.Gate(gate, attended, self.output_gate.gating))
        build.deliver(attended, "output")

    def _emit_norm(self, build: Builder, rows: op.Floats, name: str, size: int) -> None:
        build.add(op.RmsNorm(rows, build.vector(name, size), self.latent_epsilon, rows))

    def _emit_linear(
        self,
        build: Builder,
        source: op.Floats,
        columns: int,
        outputs: Mapping[str, op.Floats],
        scale: float = 1.0,
    ) -> None:
        """Multiply rows by the matrices of these names; an output is as wide as its matrix has rows."""
        parts = (
            op.LinearPart(build.matrix(name, row_size(output), columns), None, output)
            for name, output in outputs.items()
        )
        build.add(op.Linear(source, tuple(parts), scale=scale))

    def emit_guess(self, build: Builder, source: op.Floats) -> None:
        raise AssertionError("attention has no routing to guess")
