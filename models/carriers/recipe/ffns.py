"""The four FFNs that carriers differ in. Letters: `T` tokens, `D` hidden size, `W` neurons, `E` experts, `K` chosen
ones.

Each takes rows (T, D) and gives rows (T, D). `losses` of a module are the weighted terms that its last forward pass
adds to the loss in training, `loads` the shares of tokens that its experts took, and `seen` figures for the log. A
neuron of a gated FFN has three rows of `D` weights (gate, up, down), one of FFF and PEER has two.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK = 256
"""Tokens whose rows are gathered at once."""


def matrix(*shape: int, deviation: float = 0.02) -> nn.Parameter:
    """Weights drawn from a normal distribution."""
    return nn.Parameter(torch.randn(*shape) * deviation)


class Ffn(nn.Module):
    """An FFN of any kind: its losses, and what was seen of its use."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Tensor] = []
        self.seen: dict[str, float] = {}
        self.loads: Tensor | None = None
        self.progress = 0.0

    def reads(self) -> dict[str, int]:
        """Neurons and weights of the layer, and how many of them a token reads."""
        raise NotImplementedError


class Dense(Ffn):
    """SwiGLU: every neuron for every token."""

    def __init__(self, size: int, settings: dict, down_deviation: float) -> None:
        super().__init__()
        width = settings["intermediate_size"]
        self.gate_proj, self.up_proj = (nn.Linear(size, width, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(width, size, bias=False)
        for linear, deviation in ((self.gate_proj, 0.02), (self.up_proj, 0.02), (self.down_proj, down_deviation)):
            nn.init.normal_(linear.weight, std=deviation)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))

    def reads(self) -> dict[str, int]:
        width, size = self.gate_proj.weight.shape
        return {"neurons": width, "neurons_read": width, "weights": 3 * width * size, "weights_read": 3 * width * size}


class Moe(Ffn):
    """Top-k experts of SwiGLU, weighed by a softmax over the chosen logits (Shazeer et al. 2017).

    In training the logits get noise of a learned size, and the balance loss is `E` times the sum over experts of the
    share of tokens and the mean probability (Fedus et al. 2021); both are settings, and neither is there in
    inference.
    """

    def __init__(self, size: int, settings: dict, down_deviation: float) -> None:
        super().__init__()
        self.top_k, self.balance = settings["top_k"], settings["balance"]
        self.gate = nn.Linear(size, settings["num_experts"], bias=False)
        nn.init.normal_(self.gate.weight, std=0.02)
        self.gate_noise = nn.Parameter(torch.zeros_like(self.gate.weight)) if settings["noise"] else None
        self.experts = nn.ModuleList(Dense(size, settings, down_deviation) for _ in range(settings["num_experts"]))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.gate(x)
        noisy = logits
        if self.training and self.gate_noise is not None:
            noisy = logits + torch.randn_like(logits) * F.softplus(F.linear(x, self.gate_noise))
        kept, chosen = noisy.topk(self.top_k, dim=-1)
        weights = kept.softmax(dim=-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows, place = torch.where(chosen == number)
            if len(rows):
                out = out.index_add(0, rows, expert(x[rows]) * weights[rows, place].unsqueeze(1))
        experts = len(self.experts)
        self.loads = torch.bincount(chosen.flatten(), minlength=experts) / chosen.numel()
        even = self.loads * experts
        self.seen = {"load_most": float(even.max()), "load_least": float(even.min())}
        if self.training and self.balance:
            share = experts * (self.loads * noisy.softmax(dim=-1).mean(dim=0)).sum()
            self.losses.append(self.balance * share)
            self.seen["balance"] = float(share.detach())
        return out

    def reads(self) -> dict[str, int]:
        one, experts = self.experts[0].reads(), len(self.experts)
        router = self.gate.weight.numel()
        return {
            "neurons": experts * one["neurons"],
            "neurons_read": self.top_k * one["neurons"],
            "weights": experts * one["weights"] + router,
            "weights_read": self.top_k * one["weights"] + router,
        }


class FastFeedForward(Ffn):
    """A binary tree over leaves (Belcak and Wattenhofer 2023); names and shapes are those of the package
    fastfeedforward.

    In training every leaf runs, weighed by the product of the sigmoids on its way; the hardening loss, the mean
    entropy of the decisions, drives these to 0 and 1. In inference a token goes right at a node iff its logit is 0 or
    more, and one leaf runs. Leaves have no bias of the output, which the package adds in training and leaves out in
    inference.
    """

    def __init__(self, size: int, settings: dict, down_deviation: float) -> None:
        super().__init__()
        self.depth, width = settings["depth"], settings["leaf_width"]
        leaves = 2**self.depth
        self.hardening = settings["hardening"]
        self.node_weights = matrix(leaves - 1, size, deviation=1 / math.sqrt(size))
        self.node_biases = nn.Parameter(torch.zeros(leaves - 1, 1))
        self.w1s = matrix(leaves, size, width, deviation=1 / math.sqrt(size))
        self.b1s = nn.Parameter(torch.zeros(leaves, width))
        self.w2s = matrix(leaves, width, size, deviation=down_deviation)
        self.soft = False

    def forward(self, x: Tensor) -> Tensor:
        logits = F.linear(x, self.node_weights, self.node_biases[:, 0])
        right = torch.sigmoid(logits) if self.training or self.soft else (logits >= 0).to(x.dtype)
        mixture = torch.ones(len(x), 1)
        for level in range(self.depth):
            first = 2**level - 1
            here = right[:, first : first + 2**level]
            mixture = torch.stack([mixture * (1 - here), mixture * here], dim=2).flatten(1)
        leaves, size, width = self.w1s.shape
        inner = F.relu(x @ self.w1s.transpose(0, 1).reshape(size, -1) + self.b1s.flatten())
        inner = inner.view(-1, leaves, width) * mixture.unsqueeze(2)
        self.loads = F.one_hot(mixture.argmax(dim=1), leaves).float().mean(dim=0)
        self.seen = {"leaf_most": float(self.loads.max()) * leaves}
        if self.training:
            entropy = F.binary_cross_entropy_with_logits(logits, right, reduction="mean")
            self.losses.append(self.hardening * self.progress * entropy)
            self.seen["entropy"] = float(entropy.detach())
        return inner.flatten(1) @ self.w2s.flatten(0, 1)

    def reads(self) -> dict[str, int]:
        leaves, size, width = self.w1s.shape
        neuron = 2 * size + 1
        return {
            "neurons": leaves * width + leaves - 1,
            "neurons_read": width + self.depth,
            "weights": leaves * width * neuron + (leaves - 1) * (size + 1),
            "weights_read": width * neuron + self.depth * (size + 1),
        }


class Scores(torch.autograd.Function):
    """Products of each token with the rows that it chose: (T, D), (T, K), (N, D) give (T, K).

    Gathered rows live for a chunk of tokens only. The gradient of the tokens is a weighted sum of rows, which is what
    an embedding bag computes, and that of the rows is the bag's gradient.
    """

    @staticmethod
    def forward(ctx, x: Tensor, chosen: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(x, chosen, rows)
        parts = zip(x.split(CHUNK), chosen.split(CHUNK), strict=True)
        return torch.cat([torch.bmm(rows[index], part.unsqueeze(2))[:, :, 0] for part, index in parts])

    @staticmethod
    def backward(ctx, slope: Tensor) -> tuple[Tensor, None, Tensor]:
        x, chosen, rows = ctx.saved_tensors
        with torch.enable_grad():
            leaf = rows.detach().requires_grad_()
            bag = F.embedding_bag(chosen, leaf, per_sample_weights=slope.contiguous(), mode="sum")
            (of_rows,) = torch.autograd.grad(bag, leaf, x)
        return bag.detach(), None, of_rows


class Peer(Ffn):
    """Experts of one neuron each, found by product keys (He 2024); names and shapes are those of peer-pytorch.

    A head's query has two halves, each of which chooses `top_k` of sqrt(N) keys; of the sums of all pairs the best
    `top_k` are the experts, weighed by a softmax. Queries pass a batch normalisation in training (Lample et al.
    2019), which an export folds into their weights and a bias.
    """

    def __init__(self, size: int, settings: dict, down_deviation: float) -> None:
        super().__init__()
        self.heads, self.top_k, key = settings["heads"], settings["top_k"], settings["key_size"]
        experts = settings["num_experts"]
        self.side = math.isqrt(experts)
        if self.side**2 != experts:
            raise ValueError(f"num_experts: expected a square, found {experts}: say {self.side**2}.")
        self.to_queries = nn.Linear(size, 2 * self.heads * key, bias=False)
        nn.init.normal_(self.to_queries.weight, std=0.02)
        self.query_norm = nn.BatchNorm1d(2 * self.heads * key)
        self.keys = matrix(self.heads, self.side, 2, key, deviation=1 / math.sqrt(key))
        self.weight_down_embed = nn.Embedding(experts, size)
        self.weight_up_embed = nn.Embedding(experts, size)
        nn.init.normal_(self.weight_down_embed.weight, std=1 / math.sqrt(size))
        nn.init.normal_(self.weight_up_embed.weight, std=down_deviation)

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Experts of each token and their weights, both (T, heads, top_k)."""
        queries = self.query_norm(self.to_queries(x)).view(len(x), 2, self.heads, -1)
        found = torch.einsum("tphd,hkpd->pthk", queries, self.keys)
        scores, index = found.topk(self.top_k, dim=-1)
        sums = (scores[0].unsqueeze(3) + scores[1].unsqueeze(2)).flatten(2)
        pairs = (index[0].unsqueeze(3) * self.side + index[1].unsqueeze(2)).flatten(2)
        best, place = sums.topk(self.top_k, dim=-1)
        return pairs.gather(2, place), best.softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        chosen, weights = (part.flatten(1) for part in self.choose(x))
        inner = F.gelu(Scores.apply(x, chosen, self.weight_down_embed.weight)) * weights
        experts = self.side**2
        self.loads = torch.bincount(chosen.flatten(), minlength=experts) / chosen.numel()
        self.seen = {"experts_used": float((self.loads > 0).float().mean())}
        return F.embedding_bag(chosen, self.weight_up_embed.weight, per_sample_weights=inner, mode="sum")

    def reads(self) -> dict[str, int]:
        experts, size = self.weight_down_embed.weight.shape
        search = self.to_queries.weight.numel() + self.keys.numel()
        read = self.heads * self.top_k
        return {
            "neurons": experts,
            "neurons_read": read,
            "weights": 2 * experts * size + search,
            "weights_read": 2 * read * size + search,
        }


FFNS: dict[str, type[Ffn]] = {"dense": Dense, "moe": Moe, "fff": FastFeedForward, "peer": Peer}
