"""The carrier: a small Llama whose FFN is a setting. Reads config.toml, builds models and loads their weights."""

from __future__ import annotations

import math
from pathlib import Path

import tomllib
import torch
import torch.nn.functional as F
from ffns import FFNS, Ffn
from torch import Tensor, nn

HERE = Path(__file__).parent


def load_settings(path: Path | None = None) -> dict:
    """All tables of config.toml, or of another file of the same form."""
    return tomllib.loads((path or HERE / "config.toml").read_text(encoding="utf-8"))


class RMSNorm(nn.Module):
    """The root mean square of a row becomes 1, times a weight."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, self.epsilon)


def rotary_tables(length: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines (length, head_dim) of positions, the halves of a head rotated together."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies).repeat(1, 2)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rows (B, H, T, head_dim) at their positions."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-high, low], dim=-1) * sin


class Attention(nn.Module):
    """Causal attention, several query heads to a key head."""

    def __init__(self, body: dict, out_deviation: float) -> None:
        super().__init__()
        size, self.heads, self.kv_heads = body["hidden_size"], body["heads"], body["kv_heads"]
        self.head_dim = size // self.heads
        self.q_proj = nn.Linear(size, size, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(size, self.kv_heads * self.head_dim, bias=False) for _ in range(2))
        self.o_proj = nn.Linear(size, size, bias=False)
        for linear in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.normal_(linear.weight, std=0.02)
        nn.init.normal_(self.o_proj.weight, std=out_deviation)

    def forward(self, x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        batch, length, size = x.shape
        shape = (batch, length, -1, self.head_dim)
        q, k, v = (proj(x).view(shape).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, *tables), rotate(k, *tables)
        k, v = (part.repeat_interleave(self.heads // self.kv_heads, dim=1) for part in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, size))


class Layer(nn.Module):
    """Attention and the FFN, each behind a norm and added to the residual stream."""

    def __init__(self, body: dict, variant: dict) -> None:
        super().__init__()
        size, epsilon = body["hidden_size"], body["norm_epsilon"]
        deviation = 0.02 / math.sqrt(2 * body["layers"])
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(size, epsilon), RMSNorm(size, epsilon)
        self.self_attn = Attention(body, deviation)
        self.mlp = FFNS[variant["ffn"]](size, variant, deviation)

    def forward(self, x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), tables)
        return x + self.mlp(self.post_attention_layernorm(x).flatten(0, 1)).view_as(x)


class Carrier(nn.Module):
    """The whole model: ids (B, T) to logits (B, T, vocab_size), the embedding being the head too."""

    def __init__(self, body: dict, variant: dict) -> None:
        super().__init__()
        self.body, self.variant = body, variant
        self.embed_tokens = nn.Embedding(body["vocab_size"], body["hidden_size"])
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.layers = nn.ModuleList(Layer(body, variant) for _ in range(body["layers"]))
        self.norm = RMSNorm(body["hidden_size"], body["norm_epsilon"])
        self.tables = rotary_tables(body["context"], body["hidden_size"] // body["heads"], body["rope_theta"])

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        tables = tuple(table[: ids.shape[1]] for table in self.tables)
        for layer in self.layers:
            x = layer(x, tables)
        return F.linear(self.norm(x), self.embed_tokens.weight)

    def ffns(self) -> list[Ffn]:
        """The FFN of each layer."""
        return [layer.mlp for layer in self.layers]

    def begin_step(self, progress: float) -> None:
        """Empties the FFNs' losses; ``progress`` from 0 to 1 is the share of the hardening loss that counts."""
        for ffn in self.ffns():
            ffn.losses.clear()
            ffn.progress = progress

    def extra_loss(self) -> Tensor:
        """The sum of all that the FFNs of all layers add to the loss."""
        terms = [term for ffn in self.ffns() for term in ffn.losses]
        return torch.stack(terms).sum() if terms else torch.zeros(())


def build(settings: dict, name: str) -> Carrier:
    """The carrier of a variant with fresh weights, which follow from the seed and the variant alone."""
    variants = settings["variants"]
    if name not in variants:
        raise SystemExit(f"No variant {name}. config.toml has {', '.join(variants)}.")
    torch.manual_seed(settings["training"]["seed"])
    return Carrier(settings["body"], variants[name])


def load(settings: dict, name: str, work: Path) -> Carrier:
    """The carrier of a variant as its last checkpoint in the work folder has it, ready for inference."""
    path = work / name / "last.pt"
    if not path.exists():
        raise SystemExit(f"{path} is missing: run train.py {name} first.")
    model = build(settings, name)
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["model"])
    return model.eval()
