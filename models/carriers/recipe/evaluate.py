"""Measures trained carriers: `python evaluate.py VARIANT --work FOLDER`; writes VARIANT/results.json in the work
folder.

Perplexity and bits of a byte on held-out text by domain (and on the text of ``--text``), as inference has it, FFF's
also with soft decisions; neurons and weights that a token reads; how evenly experts are used on the held-out text.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from carrier import Carrier, load, load_settings
from ffns import FastFeedForward
from texts import load_held_out
from tokenizers import Tokenizer

ROWS = 8
"""Rows that run at once."""


def rows_of(text: str, tokenizer: Tokenizer, length: int) -> np.ndarray:
    """A text as rows (rows, length + 1), its end cut off."""
    ids = np.array(tokenizer.encode(text).ids, np.int64)
    count = (len(ids) - 1) // length
    if count < 1:
        raise SystemExit(f"The text has {len(ids)} tokens: expected {length + 1} or more.")
    return np.stack([ids[i * length : (i + 1) * length + 1] for i in range(count)])


class Loads:
    """The shares of tokens that experts take, summed over batches; nothing for an FFN without experts."""

    def __init__(self) -> None:
        self.sums: list[torch.Tensor] = []
        self.tokens = 0

    def add(self, model: Carrier, tokens: int) -> None:
        found = [ffn.loads for ffn in model.ffns()]
        if any(load is None for load in found):
            return
        own = [load * tokens for load in found]
        self.sums = [a + b for a, b in zip(self.sums, own, strict=True)] if self.sums else own
        self.tokens += tokens

    def figures(self) -> dict[str, float]:
        """How even use is, the mean over layers (of shares of an even share: 1 for each expert)."""
        if not self.sums:
            return {}
        even = torch.stack(self.sums) / self.tokens * len(self.sums[0])
        share = even / even.shape[1]
        entropy = -(share * share.clamp(min=1e-30).log()).sum(dim=1)
        return {
            "experts": even.shape[1],
            "variation": float(even.std(dim=1, unbiased=False).mean()),
            "most": float(even.amax(dim=1).mean()),
            "least": float(even.amin(dim=1).mean()),
            "unused": float((even == 0).float().mean()),
            "effective_share": float(entropy.exp().mean() / even.shape[1]),
        }


@torch.no_grad()
def nats(model: Carrier, rows: np.ndarray, loads: Loads | None = None) -> float:
    """The sum over all tokens of minus their log probability."""
    total = 0.0
    for part in torch.from_numpy(rows).split(ROWS):
        logits = model(part[:, :-1]).flatten(0, 1)
        total += F.cross_entropy(logits, part[:, 1:].flatten(), reduction="sum").item()
        if loads is not None:
            loads.add(model, part[:, 1:].numel())
    return total


def told(total: float, tokens: int, size: int) -> dict[str, float]:
    """The figures of a text of ``tokens`` tokens and ``size`` bytes."""
    return {"tokens": tokens, "perplexity": math.exp(total / tokens), "bits_per_byte": total / math.log(2) / size}


def evaluate(model: Carrier, domains: dict[str, np.ndarray], tokenizer: Tokenizer) -> dict:
    """All figures on the held-out text."""

    def size(rows: np.ndarray) -> int:
        return len(tokenizer.decode(rows[:, 1:].flatten().tolist(), skip_special_tokens=False).encode())

    loads, found = Loads(), {}
    sums = {name: nats(model, rows, loads) for name, rows in domains.items()}
    counts = {name: rows[:, 1:].size for name, rows in domains.items()}
    sizes = {name: size(rows) for name, rows in domains.items()}
    found["domains"] = {name: told(sums[name], counts[name], sizes[name]) for name in domains}
    tokens, whole = sum(counts.values()), sum(sizes.values())
    found["held_out"] = told(sum(sums.values()), tokens, whole)
    trees = [ffn for ffn in model.ffns() if isinstance(ffn, FastFeedForward)]
    if trees:
        for tree in trees:
            tree.soft = True
        found["soft"] = told(sum(nats(model, rows) for rows in domains.values()), tokens, whole)
        for tree in trees:
            tree.soft = False
    reads = [ffn.reads() for ffn in model.ffns()]
    found["parameters"] = sum(value.numel() for value in model.parameters())
    found["ffn"] = {name: sum(one[name] for one in reads) for name in reads[0]}
    found["balance"] = loads.figures()
    return found


def measure(name: str, work: Path, settings: dict, text: Path | None = None) -> dict:
    """Evaluate a trained variant, on ``text`` too, and write its results.json."""
    length = settings["body"]["context"]
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    model = load(settings, name, work)
    results = {"variant": name, **evaluate(model, load_held_out(work, length), tokenizer)}
    if text:
        rows = rows_of(text.read_text(encoding="utf-8"), tokenizer, length)
        size = len(tokenizer.decode(rows[:, 1:].flatten().tolist()).encode())
        results["text"] = {"name": text.name, **told(nats(model, rows), rows[:, 1:].size, size)}
    (work / name / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def main() -> None:
    """Measure trained variants."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("variants", nargs="+", metavar="VARIANT")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--settings", type=Path, help="another file in the place of config.toml")
    parser.add_argument("--text", type=Path, help="another text to measure on, such as WikiText-103's test split")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.variants:
        results = measure(name, args.work, load_settings(args.settings), args.text)
        print(name, json.dumps(results["held_out"]), flush=True)


if __name__ == "__main__":
    main()
