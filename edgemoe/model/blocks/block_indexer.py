"""A choice of the earlier tokens that attention sees, block by block."""

from __future__ import annotations

from dataclasses import dataclass

from edgemoe.kernels import block_operations as bo
from edgemoe.kernels import operations as op
from edgemoe.model.blocks.body import Shapes
from edgemoe.model.builder import Builder
from edgemoe.model.rope import RopeSpec


@dataclass(frozen=True)
class BlockIndexer:
    """A choice of earlier tokens, block by block, by heads of its own (`bo.ChooseBlocks`): Qwen3.8's QSA."""

    heads: int
    head_dim: int
    block: int
    """The tokens of a block."""
    kept: int
    """The most complete blocks that a token sees."""

    def check(self, rotated: int) -> None:
        """Raise ValueError for sizes that contradict one another, or the channels that positions rotate."""
        if self.block < 2 or op.PAGE_TOKENS % self.block:
            raise ValueError(f"blocks of {self.block} tokens: expected a divisor of {op.PAGE_TOKENS}")
        if not rotated <= self.head_dim <= bo.WIDEST_BLOCK_KEY:
            expected = f"{rotated} to {bo.WIDEST_BLOCK_KEY}"
            raise ValueError(f"heads of width {self.head_dim} that choose blocks: expected {expected}")

    def tensors(self, hidden_size: int) -> Shapes:
        """Its tensors within the layer."""
        W = self.head_dim
        return {
            "index_query": (self.heads * W, hidden_size),
            "index_key": (W, hidden_size),
            "index_query_norm": (W,),
            "index_key_norm": (W,),
        }

    def emit(self, build: Builder, source: op.Floats, rope: RopeSpec) -> op.Integers:
        """Add the choice; returns the bits of the blocks that each token sees."""
        H, W = self.heads, self.head_dim
        query, key = build.rows("index_query", H * W), build.rows("index_key", W)
        parts = (
            op.LinearPart(build.matrix(name, width, build.hidden_size), None, output)
            for name, width, output in (("index_query", H * W, query), ("index_key", W, key))
        )
        build.add(op.Linear(source, tuple(parts)))
        build.rms_norm(query, "index_query_norm", W, query, heads=H)
        tables, places = build.rope_tables(rope), build.places()
        build.add(op.Rope(query, H, places[0], *tables))
        inputs = build.fixed_state("index_inputs", self.block - 1, W)
        keys = build.state("index_keys", "N", 1, bo.blocks_of_page(self.block), W)
        norm = build.vector("index_key_norm", W), build.epsilon
        build.add(bo.StoreBlockKeys(key, *norm, *tables, self.block, *places, build.pages(), inputs, keys))
        return build.choose_blocks(query, keys, self.block, 1.0, self.kept, own=True)
