"""Reads the dense model out of its GGUF: float32 tensors for torch, raw blocks for the export.

Letters: ``D`` model width, ``F`` FFN width, ``H`` query heads, ``G`` key/value heads, ``V``
vocabulary. GGUF files of the llama family store the rows of the query and key projections
interleaved (pairs of one rotation side by side); `unpermute` brings back the halves layout that
transformers uses.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch


@dataclass(frozen=True)
class DenseConfig:
    """The shape of the dense model, from the GGUF's own metadata."""

    layers: int
    width: int
    ffn_width: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    context: int
    rope_theta: float
    norm_epsilon: float


class DenseSource:
    """One GGUF file of architecture ``llama`` with tied embeddings and no biases."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.reader = gguf.GGUFReader(str(path))
        self.tensors = {tensor.name: tensor for tensor in self.reader.tensors}
        if self.field("general.architecture") != "llama" or "output.weight" in self.tensors:
            raise ValueError(f"{path}: expected a llama GGUF with tied embeddings")
        heads = int(self.field("llama.attention.head_count"))
        width = int(self.field("llama.embedding_length"))
        self.config = DenseConfig(
            layers=int(self.field("llama.block_count")),
            width=width,
            ffn_width=int(self.field("llama.feed_forward_length")),
            heads=heads,
            kv_heads=int(self.field("llama.attention.head_count_kv")),
            head_width=width // heads,
            vocabulary=int(self.field("llama.vocab_size")),
            context=int(self.field("llama.context_length")),
            rope_theta=float(self.field("llama.rope.freq_base")),
            norm_epsilon=round(float(self.field("llama.attention.layer_norm_rms_epsilon")), 9),
        )

    def field(self, name: str):
        """The value of one metadata key."""
        return self.reader.fields[name].contents()

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor in float32, in GGUF row order."""
        source = self.tensors[name]
        values = gguf.dequantize(source.data, source.tensor_type)
        return torch.from_numpy(np.array(values, dtype=np.float32))

    def weights(self) -> dict[str, torch.Tensor]:
        """All tensors by their GGUF names in float32, with q and k in the halves layout."""
        config = self.config
        out = {name: self.tensor(name) for name in self.tensors}
        for layer in range(config.layers):
            for part, heads in (("attn_q", config.heads), ("attn_k", config.kv_heads)):
                name = f"blk.{layer}.{part}.weight"
                out[name] = unpermute(out[name], heads)
        return out


def unpermute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows ``(heads, half, 2)`` of a GGUF projection to ``(heads, 2, half)``."""
    rows, columns = weight.shape
    paired = weight.reshape(heads, rows // heads // 2, 2, columns)
    return paired.transpose(1, 2).reshape(rows, columns).contiguous()
