"""Attention over a window and over compressed rows of all that came before, with one key for all heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from edgemoe.kernels import block_operations as bo
from edgemoe.kernels import operations as op
from edgemoe.kernels import state_operations as so
from edgemoe.kernels.block_operations import blocks_of_page
from edgemoe.model.blocks.body import RoutedExperts, Shapes
from edgemoe.model.builder import Builder, row_size
from edgemoe.model.graph import Part
from edgemoe.model.plain import ZERO_ALLOWED
from edgemoe.model.rope import RopeSpec


@dataclass(frozen=True)
class BlockIndex:
    """Chooses the blocks that a token sees, by queries of its own and a key of each block (DeepSeek-V4)."""

    heads: int
    head_dim: int
    most: int
    """How many blocks a token sees at most."""


@dataclass(frozen=True)
class CompressedAttention:
    """All heads share one normalised row of `head_dim` channels for each token, which is its key and its value.

    Queries are made of a latent and normalised, head by head. The last channels of queries and rows are rotated; those
    of what a head gathers are rotated back by its own position, so that values too count from there. Heads in `groups`
    go through a matrix of their group each, and all of these through `output`.

    A token sees the rows of its `window`. With a `rate` it also sees one row for each whole block of `rate` tokens
    (`bo.Compress`), of which a sequence keeps pages for its whole context; with an `overlap` such a row is made of the
    block before too. The last tokens of an unfinished block lie in a ring. With an `index` it sees only the blocks
    whose keys, which are made in the same way, agree best with queries made of the same latent (`bo.ChooseBlocks`).
    Source: DeepSeek-V4 (2026).
    """

    kind: ClassVar[str] = "compressed_attention"
    norm_name: ClassVar[str] = "attention_norm"
    norm_part: ClassVar[Part] = "attention"

    heads: int
    head_dim: int
    query_rank: int
    groups: int
    group_rank: int
    window: int
    rope: RopeSpec
    rate: int = field(default=0, metadata=ZERO_ALLOWED)
    """The tokens of a block; 0: it sees its window alone."""
    overlap: bool = False
    index: BlockIndex | None = None

    @property
    def routed(self) -> RoutedExperts | None:
        return None

    @property
    def _parts(self) -> int:
        """How many rows of values and gates a token has for the blocks that it is part of."""
        return 2 if self.overlap else 1

    def check(self) -> None:
        self.rope.check(self.head_dim)
        if self.heads % self.groups:
            raise ValueError(f"{self.heads} heads in {self.groups} groups")
        if self.rate and (op.PAGE_TOKENS % self.rate and self.rate % op.PAGE_TOKENS):
            raise ValueError(f"blocks of {self.rate} tokens: expected a divisor or a multiple of {op.PAGE_TOKENS}")
        if self.rate * self._parts > bo.LONGEST_BLOCK:
            raise ValueError(f"rows of {self.rate * self._parts} tokens: expected at most {bo.LONGEST_BLOCK}")
        if not self.rate and (self.overlap or self.index):
            raise ValueError("blocks that overlap or are chosen, of no tokens")
        if self.index is not None:
            self.rope.check(self.index.head_dim)
            if blocks_of_page(self.rate) > so.MOST_BITS:
                raise ValueError(f"a choice among blocks of {self.rate} token")

    def tensors(self, hidden_size: int) -> Shapes:
        H, W, D = self.heads, self.head_dim, hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "query_latent": (self.query_rank, D),
            "query_latent_norm": (self.query_rank,),
            "query": (H * W, self.query_rank),
            "key": (W, D),
            "key_norm": (W,),
            "sinks": (H,),
            "group_output": (self.groups * self.group_rank, H // self.groups * W),
            "output": (D, self.groups * self.group_rank),
        }
        if self.rate:
            shapes |= self._compressor("compress", W, D)
        if self.index is not None:
            own = self.index
            shapes |= self._compressor("index", own.head_dim, D)
            shapes |= {"index_query": (own.heads * own.head_dim, self.query_rank), "index_heads": (own.heads, D)}
        return shapes

    def _compressor(self, stem: str, row_width: int, hidden_size: int) -> Shapes:
        """The tensors that make rows of whole blocks."""
        width = self._parts * row_width
        return {
            f"{stem}_values": (width, hidden_size),
            f"{stem}_gates": (width, hidden_size),
            f"{stem}_bias": (self.rate * width,),
            f"{stem}_norm": (row_width,),
        }

    def sizes(self) -> Mapping[str, int]:
        return {
            "heads": self.heads,
            "head_dim": self.head_dim,
            "query_rank": self.query_rank,
            "query": self.heads * self.head_dim,
            "of_group": self.heads // self.groups * self.head_dim,
            "grouped": self.groups * self.group_rank,
            "rate": self.rate,
            "compressed": self._parts * self.head_dim if self.rate else 0,
            "index_heads": self.index.heads if self.index else 0,
            "index_dim": self.index.head_dim if self.index else 0,
            "index_query": self.index.heads * self.index.head_dim if self.index else 0,
            "indexed": self._parts * self.index.head_dim if self.index else 0,
        }

    def with_top_k(self, top_k: int) -> CompressedAttention:
        return self

    def emit(self, build: Builder, source: op.Floats) -> None:
        H, W, D = self.heads, self.head_dim, build.hidden_size
        widths = {"query_latent": self.query_rank, "key": W}
        if self.rate:
            widths |= {"compress_values": self._parts * W, "compress_gates": self._parts * W}
        rows = {name: build.rows(name, width) for name, width in widths.items()}
        parts = (op.LinearPart(build.matrix(name, widths[name], D), None, output) for name, output in rows.items())
        build.add(op.Linear(source, tuple(parts)))
        latent, key = rows["query_latent"], rows["key"]
        build.rms_norm(latent, "query_latent_norm", self.query_rank, latent)
        query = build.linear(latent, "query", build.rows("query", H * W))
        build.add(op.RmsNorm(query, None, build.epsilon, query, H))
        build.rms_norm(key, "key_norm", W, key)
        places, tables = build.places(), build.rope_tables(self.rope)
        build.add(op.Rope(query, H, places[0], *tables, neighbours=True, last=True))
        build.add(op.Rope(key, 1, places[0], *tables, neighbours=True, last=True))
        pages, scale = build.pages(self.window), W**-0.5
        keys = build.state("keys", "N", 1, op.PAGE_TOKENS, W, window=self.window)
        build.add(so.StoreLatent(key, None, *places, pages, keys))
        attended, sinks = build.rows("attended", H * W), build.vector("sinks", H)
        if self.rate:
            chosen = self._choose(build, source, latent) if self.index else None
            compressed = self._compress(build, "compress", rows["compress_values"], rows["compress_gates"])
            whole, seen = (*places, pages, keys, build.pages()), (scale, self.window, attended, sinks, chosen)
            build.add(bo.CompressedAttention(query, *whole, compressed, self.rate, *seen))
        else:
            build.add(so.Attention(query, *places, pages, keys, None, scale, attended, self.window, sinks))
        build.add(op.Rope(attended, H, places[0], *tables, neighbours=True, last=True, back=True))
        grouped = build.rows("grouped", self.groups * self.group_rank)
        matrix = build.matrix("group_output", self.groups * self.group_rank, H // self.groups * W)
        build.add(op.HeadLinear(attended, matrix, None, self.groups, grouped))
        build.deliver(grouped, "output")

    def _compress(self, build: Builder, stem: str, values: op.Floats, gates: op.Floats) -> op.Cache:
        """Add what makes rows of whole blocks; returns their pages."""
        width, undo = row_size(values), build.options.undo_tokens
        row_width = width // self._parts
        bias, norm = build.vector(f"{stem}_bias", self.rate * width), build.vector(f"{stem}_norm", row_width)
        inputs = build.fixed_state(f"{stem}_inputs", self.rate * self._parts - 1 + undo, 2 * width, undo=undo)
        compressed = build.state(f"{stem}ed_rows", "N", 1, blocks_of_page(self.rate), row_width)
        cosine, sine = build.rope_tables(self.rope)
        rule = build.epsilon, cosine, sine, self.rate, self._parts
        build.add(bo.Compress(values, gates, bias, norm, *rule, *build.places(), build.pages(), inputs, compressed))
        return compressed

    def _choose(self, build: Builder, source: op.Floats, latent: op.Floats) -> op.Integers:
        """Add what chooses the blocks that each token sees; returns their bits."""
        assert self.index is not None
        H, W, D, places = self.index.heads, self.index.head_dim, build.hidden_size, build.places()
        widths = {"index_values": self._parts * W, "index_gates": self._parts * W, "index_heads": H}
        rows = {name: build.rows(name, width) for name, width in widths.items()}
        parts = (op.LinearPart(build.matrix(name, widths[name], D), None, output) for name, output in rows.items())
        build.add(op.Linear(source, tuple(parts)))
        query = build.linear(latent, "index_query", build.rows("index_query", H * W))
        build.add(op.Rope(query, H, places[0], *build.rope_tables(self.rope), neighbours=True, last=True))
        keys = self._compress(build, "index", rows["index_values"], rows["index_gates"])
        return build.choose_blocks(query, keys, self.rate, (H * W) ** -0.5, self.index.most, rows["index_heads"])

    def emit_guess(self, build: Builder, source: op.Floats) -> None:
        raise AssertionError("attention has no routing to guess")
