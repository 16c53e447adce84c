"""Switch Transformers of transformers, each of whose FFNs is another mixture: the mathematics of papers in torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import normalize, relu

from tests.golden.cases import Case

FAMILY = "edgemoe_mixture"


class Expert(nn.Module):
    """Two matrices with ReLU between them."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.wi = nn.Linear(config["d_model"], config["d_ff"], bias=config["expert_bias"])
        self.wo = nn.Linear(config["d_ff"], config["d_model"], bias=config["expert_bias"])

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(relu(self.wi(x)))


class Mixture(nn.Module):
    """Experts and a matrix of logits; `weights` says what each expert's output counts in each row `(T, E)`."""

    def __init__(self, config: dict[str, Any], side: str) -> None:
        super().__init__()
        self.config, self.side, self.count = config, side, config["num_experts"]
        self.gate = nn.Linear(config["d_model"], self.count, bias=False)
        self.experts = nn.ModuleDict({f"expert_{n}": Expert(config) for n in range(self.count)})

    def weights(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights(x[0])
        return sum(weights[:, n, None] * self.experts[f"expert_{n}"](x) for n in range(self.count))


class SoftGates(Mixture):
    def weights(self, x: Tensor) -> Tensor:
        return self.gate(x).softmax(-1)


class NoisyTopK(Mixture):
    def weights(self, x: Tensor) -> Tensor:
        logits = self.gate(x)
        kept = logits.topk(self.config["noisy_topk"]["k"]).indices
        return torch.full_like(logits, -torch.inf).scatter(1, kept, logits.gather(1, kept)).softmax(-1)


class GShard(Mixture):
    def weights(self, x: Tensor) -> Tensor:
        """Algorithm 1 of the paper, token after token; a decoder's tokens, written one by one, find all places free."""
        own = self.config["gshard"]
        shares = self.gate(x).softmax(-1)
        best = shares.topk(2)
        normed = best.values / best.values.sum(-1, keepdim=True)
        capacity = len(x)
        if self.side == "encoder":
            even = int(len(x) * own["capacity_factor_eval"] / self.count)
            capacity = max(own["min_expert_capacity"], min(len(x), even))
        taken, weights = [0] * self.count, torch.zeros_like(shares)
        for rank in range(2):
            for token in range(len(x)):
                expert, weight = int(best.indices[token, rank]), normed[token, rank]
                if rank and weight <= own["second_threshold_eval"]:
                    continue
                if taken[expert] < capacity:
                    taken[expert] += 1
                    weights[token, expert] = weight
        return weights


class SoftSlots(nn.Module):
    def __init__(self, config: dict[str, Any], side: str) -> None:
        super().__init__()
        self.count, self.slots = config["num_experts"], config["soft_moe"]["num_slots"]
        self.slot_embeds = nn.Parameter(torch.empty(self.count, self.slots, config["d_model"]))
        self.slot_scale = nn.Parameter(torch.empty(1))
        self.experts = nn.ModuleDict({f"expert_{n}": Expert(config) for n in range(self.count)})

    def forward(self, x: Tensor) -> Tensor:
        vectors = normalize(self.slot_embeds.flatten(0, 1), dim=-1)
        logits = self.slot_scale * normalize(x[0], dim=-1) @ vectors.T
        slots = (logits.softmax(0).T @ x[0]).unflatten(0, (self.count, self.slots))
        results = torch.cat([self.experts[f"expert_{n}"](slots[n]) for n in range(self.count)])
        return (logits.softmax(1) @ results)[None]


def entmax15(values: Tensor) -> Tensor:
    """The 1.5-entmax of rows, whose threshold is found by halves."""
    halves = ((values - values.amax(-1, keepdim=True)) / 2).double()
    low, high = torch.full_like(halves[..., :1], -1), torch.zeros_like(halves[..., :1])
    for _ in range(60):
        middle = (low + high) / 2
        above = (halves - middle).clamp(min=0).square().sum(-1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (halves - low).clamp(min=0).square().float()


class Factors(nn.Module):
    """A ring of three tensors; experts' biases are those of the input's."""

    def __init__(self, config: dict[str, Any], side: str) -> None:
        super().__init__()
        width, experts = config["d_model"], config["num_experts"]
        self.first, self.second, self.third = config["multilinear"]["ranks"]
        self.gate = nn.Linear(width, experts, bias=False)
        self.norm = nn.BatchNorm1d(experts, affine=False)
        self.expert_factor = nn.Linear(experts, self.first * self.second, bias=False)
        self.input_factor = nn.Linear(width, self.second * self.third)
        self.output_factor = nn.Linear(self.first * self.third, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        shares = entmax15(self.norm(self.gate(x[0])))
        left = self.expert_factor(shares).unflatten(1, (self.first, self.second))
        right = self.input_factor(x[0]).unflatten(1, (self.second, self.third))
        return self.output_factor((left @ right).flatten(1))[None]


KINDS = {
    "gshard": GShard,
    "multilinear": Factors,
    "noisy_topk": NoisyTopK,
    "soft_gates": SoftGates,
    "soft_moe": SoftSlots,
}
_OF_SWITCH = (
    *("d_model", "d_kv", "d_ff", "num_heads", "num_layers", "num_decoder_layers", "vocab_size", "num_experts"),
    *("decoder_start_token_id", "tie_word_embeddings", "relative_attention_num_buckets"),
)


def make_model(case: Case) -> Any:
    """A model with random weights that bfloat16 holds exactly, in float32."""
    torch.set_num_threads(1)
    given = {key: case.config[key] for key in _OF_SWITCH if key in case.config}
    sparse = dict.fromkeys(("num_sparse_encoder_layers", "num_sparse_decoder_layers"), 0)
    config = transformers.SwitchTransformersConfig(**given, **sparse)
    config._attn_implementation = "eager"
    model = transformers.SwitchTransformersForConditionalGeneration(config).float().eval()
    for side in ("encoder", "decoder"):
        kinds = case.config[f"{side}_ffns"]
        for number, block in enumerate(getattr(model, side).block):
            kind = kinds[number % len(kinds)]
            if kind != "dense":
                block.layer[-1].mlp = KINDS[kind](case.config, side).eval()
    random = torch.Generator().manual_seed(case.seed)
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            values = torch.randn(tensor.shape, generator=random)
            if name.endswith("running_var"):
                values = 0.5 + values.abs()
            elif "layer_norm" in name:
                values = 1 + 0.2 * values
            elif name.endswith("slot_scale"):
                values = 8 + values
            elif name.endswith(("bias", "running_mean")):
                values = 0.3 * values
            elif name.endswith("num_batches_tracked"):
                continue
            elif "shared" in name or "embed_tokens" in name:
                values = 0.25 * values
            else:
                values = values * (2.0 if name.endswith("gate.weight") else 1.0) / tensor.shape[-1] ** 0.5
            tensor.data.copy_(values.bfloat16().float())
    return model


def save(model: Any, case: Case, folder: Path) -> None:
    """Write a checkpoint in the names of edgemoe's own format."""
    state = {name: tensor.detach().bfloat16() for name, tensor in model.state_dict().items()}
    copies = ("embed_tokens.weight", "num_batches_tracked", *["lm_head.weight"] * case.config["tie_word_embeddings"])
    kept = {name: tensor.contiguous() for name, tensor in state.items() if not name.endswith(copies)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(kept, folder / "model.safetensors")
    config = {"model_type": FAMILY, "is_encoder_decoder": True, **case.config}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
