"""A compact decoder for training: the frozen dense model plus trainable routed experts.

Letters: ``B`` rows, ``T`` tokens of a row, ``S`` keys, ``N`` = B*T, ``D`` model width, ``F`` expert
width, ``E`` experts, ``K`` experts per token, ``V`` vocabulary.

The dense weights are buffers and never change. With ``routed=False`` the forward pass is the dense
model itself, which makes the teacher free of memory. Attention is restricted to a segment id, so
that several texts can share a row.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from gguf_source import DenseSource
from torch import nn

# An expert's tokens are filled up to a multiple of this: matrix libraries prepare code for every new shape.
PIECE = 32


@dataclass
class RouterTrace:
    """What the routers of one forward pass did; one entry per layer."""

    mean_probability: list[torch.Tensor] = field(default_factory=list)
    loads: list[torch.Tensor] = field(default_factory=list)
    chosen: list[torch.Tensor] = field(default_factory=list)
    inputs: list[torch.Tensor] = field(default_factory=list)


@dataclass
class Pass:
    """How to run one forward pass."""

    routed: bool = True
    noise: float = 0.0
    trace: RouterTrace | None = None
    keep_inputs: bool = False
    keep_chosen: bool = False


class Layer(nn.Module):
    """One decoder layer: attention, whole FFN as the shared expert, routed experts beside it."""

    def __init__(self, weights: dict[str, torch.Tensor], index: int, shape: dict) -> None:
        super().__init__()
        self.heads, self.kv_heads = shape["heads"], shape["kv_heads"]
        self.epsilon, self.top_k = shape["epsilon"], shape["top_k"]

        def take(name: str) -> torch.Tensor:
            return weights[f"blk.{index}.{name}.weight"]

        def buffer(name: str, value: torch.Tensor) -> None:
            self.register_buffer(name, value, persistent=False)

        buffer("attention_norm", take("attn_norm"))
        buffer("ffn_norm", take("ffn_norm"))
        buffer("qkv", torch.cat([take("attn_q"), take("attn_k"), take("attn_v")]))
        buffer("output", take("attn_output"))
        buffer("shared_gate_up", torch.cat([take("ffn_gate"), take("ffn_up")]))
        buffer("shared_down", take("ffn_down"))
        experts, width, inner = shape["experts"], self.output.shape[0], shape["expert_width"]
        self.router = nn.Parameter(torch.zeros(experts, width))
        self.gate_up = nn.Parameter(torch.zeros(experts, 2 * inner, width))
        self.down = nn.Parameter(torch.zeros(experts, width, inner))

    def attention(self, x: torch.Tensor, rope, mask: torch.Tensor, cache) -> torch.Tensor:
        """Grouped-query attention; ``cache`` is a list [keys, values] that grows, or None."""
        batch, length, width = x.shape
        head = width // self.heads
        qkv = F.linear(x, self.qkv).view(batch, length, -1, head).transpose(1, 2)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        q, k = rotate(q, rope), rotate(k, rope)
        if cache is not None:
            if cache:
                k, v = torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)
            cache[:] = [k, v]
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return F.linear(mixed.transpose(1, 2).reshape(batch, length, width), self.output)

    def experts(self, x: torch.Tensor, how: Pass) -> torch.Tensor:
        """Routed experts on ``x`` (N, D): tokens are sorted by expert, one product per expert."""
        with torch.autocast("cpu", enabled=False):  # routing is as it will be when the model runs: float32
            logits = F.linear(x, self.router)
        if how.noise > 0:
            noisy = logits + how.noise * torch.randn_like(logits)
        else:
            noisy = logits
        top, chosen = noisy.topk(self.top_k, dim=-1)
        weight = top.softmax(dim=-1)
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        token = order // self.top_k
        loads = flat.bincount(minlength=self.router.shape[0])
        sizes = (loads + PIECE - 1) // PIECE * PIECE
        starts, filled = sizes.cumsum(0) - sizes, loads.cumsum(0) - loads
        place = torch.arange(len(flat)) + (starts - filled)[flat[order]]
        source = torch.zeros(int(sizes.sum()), dtype=torch.long).index_copy(0, place, token)
        pieces = x.index_select(0, source).split(sizes.tolist())
        done = []
        for rows, gate_up, down in zip(pieces, self.gate_up.unbind(0), self.down.unbind(0), strict=True):
            done.append(F.linear(gated(F.linear(rows, gate_up)), down))
        out = torch.cat(done).index_select(0, place) * weight.flatten()[order].unsqueeze(1)
        if how.trace is not None:
            how.trace.mean_probability.append(logits.softmax(dim=-1).mean(dim=0))
            how.trace.loads.append(loads)
            if how.keep_chosen:
                how.trace.chosen.append(chosen)
        return torch.zeros_like(x).index_add(0, token, out)

    def forward(self, x: torch.Tensor, rope, mask: torch.Tensor, cache, how: Pass) -> torch.Tensor:
        x = x + self.attention(rms_norm(x, self.attention_norm, self.epsilon), rope, mask, cache)
        normed = rms_norm(x, self.ffn_norm, self.epsilon)
        if how.trace is not None and how.keep_inputs:
            how.trace.inputs.append(normed)
        ffn = F.linear(gated(F.linear(normed, self.shared_gate_up)), self.shared_down)
        if how.routed:
            rows = normed.reshape(-1, normed.shape[-1])
            ffn = ffn + self.experts(rows, how).view_as(ffn)
        return x + ffn


class Decoder(nn.Module):
    """The upcycled model; ``forward`` gives final hidden states, ``logits`` the vocabulary's."""

    def __init__(self, source: DenseSource, experts: int, experts_per_token: int, expert_width: int) -> None:
        super().__init__()
        self.dense_config = config = source.config
        weights = source.weights()
        shape = {
            "heads": config.heads,
            "kv_heads": config.kv_heads,
            "epsilon": config.norm_epsilon,
            "experts": experts,
            "top_k": experts_per_token,
            "expert_width": expert_width,
        }
        self.register_buffer("embedding", weights["token_embd.weight"], persistent=False)
        self.register_buffer("final_norm", weights["output_norm.weight"], persistent=False)
        self.layers = nn.ModuleList(Layer(weights, i, shape) for i in range(config.layers))

    @torch.no_grad()
    def copy_neurons(self, seed: int) -> None:
        """Experts start as copies of random neurons of the dense FFN, with down = 0."""
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers:
            inner = layer.gate_up.shape[1] // 2
            gate, up = layer.shared_gate_up.chunk(2)
            for expert in range(layer.gate_up.shape[0]):
                rows = torch.randperm(gate.shape[0], generator=generator)[:inner]
                layer.gate_up[expert, :inner] = gate[rows]
                layer.gate_up[expert, inner:] = up[rows]
            layer.down.zero_()

    def cast_frozen_matrices(self, dtype: torch.dtype) -> None:
        """Keeps the dense matrices in ``dtype``, so that autocast need not convert them at every use."""
        for layer in self.layers:
            for name in ("qkv", "output", "shared_gate_up", "shared_down"):
                setattr(layer, name, getattr(layer, name).to(dtype))

    def forward(
        self,
        ids: torch.Tensor,
        how: Pass,
        mask: torch.Tensor | None = None,
        cache: list[list] | None = None,
    ) -> torch.Tensor:
        """Hidden states (B, T, D) after the final norm; ``mask`` (B, 1, T, S): True is seen."""
        length = ids.shape[1]
        past = cache[0][0].shape[2] if cache and cache[0] else 0
        if mask is None:
            mask = torch.ones(length, past + length, dtype=torch.bool).tril(past)
        rope = rope_table(past, length, self.dense_config)
        x = F.embedding(ids, self.embedding)
        for index, layer in enumerate(self.layers):
            x = layer(x, rope, mask, cache[index] if cache is not None else None, how)
        return rms_norm(x, self.final_norm, self.dense_config.norm_epsilon)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Vocabulary logits of final hidden states (tied embeddings)."""
        return F.linear(hidden, self.embedding)


def segment_mask(segments: torch.Tensor) -> torch.Tensor:
    """Causal mask (B, 1, T, T) that keeps each token inside its own segment."""
    length = segments.shape[1]
    same = segments.unsqueeze(1) == segments.unsqueeze(2)
    return (same & torch.ones(length, length, dtype=torch.bool).tril()).unsqueeze(1)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Root-mean-square normalisation over the last dimension."""
    return F.rms_norm(x, (x.shape[-1],), weight, epsilon)


def gated(gate_up: torch.Tensor) -> torch.Tensor:
    """SiLU(gate) * up of a fused projection."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def rope_table(start: int, length: int, config) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (T, head width) for positions ``start .. start + length``."""
    half = config.head_width // 2
    frequency = config.rope_theta ** (-torch.arange(half, dtype=torch.float32) / half)
    angle = torch.arange(start, start + length, dtype=torch.float32).outer(frequency)
    angle = torch.cat([angle, angle], dim=1)
    return angle.cos(), angle.sin()


def rotate(x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary position embedding, halves layout."""
    cos, sin = rope
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-high, low], dim=-1) * sin
