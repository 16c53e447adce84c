"""Measures the upcycled model beside the dense one, on held-out text and fixed prompts.

Everything is returned as one dictionary of numbers and texts: perplexity by domain, divergence on
held-out conversations, what the routers do (use, specialisation, reuse, replay through an LRU
cache, how well the next layer's router predicts), and small sums.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from answers import complete
from batches import load_chats, load_texts
from decoder import Decoder, Pass, RouterTrace
from prompts import sums
from tokens import conversation

ROWS = 3  # rows of held-out text per domain


@torch.no_grad()
def text_loss(model: Decoder, ids: torch.Tensor, how: Pass) -> float:
    """Mean next-token loss over rows (B, T)."""
    total = 0.0
    for row in ids.split(1):
        logits = model.logits(model(row, how))[0]
        total += F.cross_entropy(logits[:-1], row[0, 1:]).item()
    return total / len(ids)


@torch.no_grad()
def next_layer_recall(model: Decoder, trace: RouterTrace, rows: int) -> list[float]:
    """Share of a layer's experts that its router names on the input of the layer before."""
    layers = len(model.layers)
    hits = np.zeros(layers - 1)
    for row in range(rows):
        for index in range(layers - 1):
            x = trace.inputs[row * layers + index][0]
            layer = model.layers[index + 1]
            guess = F.linear(x, layer.router).topk(layer.top_k, dim=-1).indices
            real = trace.chosen[row * layers + index + 1]
            hits[index] += (guess.unsqueeze(2) == real.unsqueeze(1)).any(dim=1).float().mean()
    return (hits / rows).tolist()


def lru_hit_rate(chosen: np.ndarray, capacity: int) -> float:
    """Hits of a cache of ``capacity`` experts over (tokens, layers, K), all layers sharing it."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits, asked = 0, 0
    for token in chosen:
        for layer, experts in enumerate(token):
            for expert in experts:
                key = layer * 4096 + int(expert)
                asked += 1
                if key in cache:
                    hits += 1
                    cache.move_to_end(key)
                else:
                    cache[key] = None
                    if len(cache) > capacity:
                        cache.popitem(last=False)
    return hits / asked


def reuse(chosen: np.ndarray) -> float:
    """Share of the experts of a token that the next token of the text uses too."""
    before, after = chosen[:-1, :, :, None], chosen[1:, :, None, :]
    return float((before == after).any(axis=3).mean())


def specialisation(counts: np.ndarray) -> dict:
    """Use and mutual information from counts (domains, layers, E)."""
    share = counts / counts.sum(axis=2, keepdims=True)  # expert given domain
    overall = share.mean(axis=0)  # every domain counts alike
    ratio = np.where(share > 0, share / np.maximum(overall, 1e-12), 1.0)
    information = (share * np.log(ratio)).sum(axis=2).mean(axis=0)
    entropy = -(overall * np.log(np.maximum(overall, 1e-12))).sum(axis=1)
    return {
        "mutual_information_nats": float(information.mean()),
        "mutual_information_at_most": math.log(counts.shape[0]),
        "unused_experts": int((overall == 0).sum()),
        "least_share_of_even": float(overall.min() * counts.shape[2]),
        "largest_share_of_even": float(overall.max() * counts.shape[2]),
        "effective_experts": float(np.exp(entropy).mean()),
    }


@torch.no_grad()
def evaluate_texts(model: Decoder, work: Path, settings: dict) -> dict:
    """Perplexities and routing on the held-out text of each domain."""
    length = settings["evaluation"]["row_tokens"]
    layers, experts = len(model.layers), settings["model"]["experts"]
    capacity = round(settings["evaluation"]["cache_fraction"] * layers * experts)
    domains, counts, repeats, hits, recalls = {}, [], [], [], []
    for name, tokens in load_texts(work / "tokens", "held_out").items():
        count = min(ROWS, len(tokens) // length)
        ids = torch.from_numpy(tokens[: count * length].astype(np.int64)).view(count, length)
        trace = RouterTrace()
        how = Pass(trace=trace, keep_inputs=True, keep_chosen=True)
        upcycled = text_loss(model, ids, how)
        dense = text_loss(model, ids, Pass(routed=False))
        recalls.append(next_layer_recall(model, trace, count))
        chosen = torch.stack(trace.chosen).view(count, layers, length, -1).numpy()
        chosen = chosen.transpose(0, 2, 1, 3)  # rows, tokens, layers, K
        counts.append(
            np.stack([np.bincount(x.ravel(), minlength=experts) for x in
                      chosen.transpose(2, 0, 1, 3)])
        )  # fmt: skip
        repeats.append(np.mean([reuse(row) for row in chosen]))
        hits.append(lru_hit_rate(chosen.reshape(count * length, layers, -1), capacity))
        domains[name] = {
            "tokens": count * (length - 1),
            "dense": math.exp(dense),
            "upcycled": math.exp(upcycled),
            "reuse": float(repeats[-1]),
            "lru_hits": float(hits[-1]),
        }
    routing = specialisation(np.stack(counts).astype(float))
    routing |= {
        "reuse_next_token": float(np.mean(repeats)),
        "reuse_by_chance": settings["model"]["experts_per_token"] / experts,
        "lru_slots": capacity,
        "lru_hit_rate": float(np.mean(hits)),
        "next_layer_recall": float(np.mean(recalls)),
    }
    return {"domains": domains, "routing": routing}


@torch.no_grad()
def evaluate_chat(model: Decoder, tokenizer, work: Path) -> dict:
    """Divergence from the dense model on held-out conversations, over the assistant's tokens."""
    divergence, losses, count = 0.0, [0.0, 0.0], 0
    chats = load_chats(work / "answers.jsonl", tokenizer, held_out=True)
    for ids, written in chats:
        row = torch.tensor([ids[:512]])
        mark = torch.tensor(written[1:512])
        logs = [
            model.logits(model(row, Pass(routed=routed)))[0, :-1].log_softmax(dim=-1)[mark] for routed in (False, True)
        ]
        divergence += (logs[0].exp() * (logs[0] - logs[1])).sum().item()
        for which, log in enumerate(logs):
            losses[which] -= log.gather(1, row[0, 1:][mark].unsqueeze(1)).sum().item()
        count += int(mark.sum())
    return {
        "conversations": len(chats),
        "tokens": count,
        "divergence_nats": divergence / count,
        "dense_loss": losses[0] / count,
        "upcycled_loss": losses[1] / count,
    }


def greedy(model: Decoder, tokenizer, asked: list[str], limit: int, routed: bool) -> list[str]:
    """Greedy answers, with the template's default system prompt."""
    prompts = [conversation(tokenizer, [("user", ask)], open_answer=True)[0] for ask in asked]
    done = complete(model, prompts, limit, Pass(routed=routed), [0.0] * len(prompts))
    return [tokenizer.decode(ids) for ids in done]


def evaluate_sums(model: Decoder, tokenizer, seed: int) -> dict:
    """Share of right answers to small sums, and to two-digit sums that were never trained on."""
    trained = {tuple(map(int, re.findall(r"\d+", ask))) for ask, _ in sums(seed, 900)}
    rng = np.random.default_rng(7)
    small = [(a, b) for a in range(1, 11) for b in range(1, 11)][::2]
    large: list[tuple[int, int]] = []
    while len(large) < 50:
        pair = tuple(int(x) for x in rng.integers(10, 50, 2))
        if pair not in trained and pair not in large:
            large.append(pair)
    out = {}
    for name, pairs in (("small", small), ("two_digit_unseen", large)):
        asked = [f"What is {a} + {b}?" for a, b in pairs]
        for which, routed in (("dense", False), ("upcycled", True)):
            answers = greedy(model, tokenizer, asked, 16, routed)
            right = [re.findall(r"\d+", text)[-1:] == [str(a + b)] for text, (a, b) in zip(answers, pairs, strict=True)]
            out[f"{name}_{which}"] = sum(right) / len(right)
    return out


def evaluate(model: Decoder, tokenizer, work: Path, settings: dict) -> dict:
    """All measurements."""
    results = evaluate_texts(model, work, settings)
    results["chat"] = evaluate_chat(model, tokenizer, work)
    results["sums"] = evaluate_sums(model, tokenizer, settings["data"]["seed"])
    return results
