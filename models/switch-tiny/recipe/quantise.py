"""Rounds the experts of a Switch checkpoint to ternary weights as QMoE does, with data and without; see README.md.

`python quantise.py TEXT CHECKPOINT FOLDER`: writes the checkpoints FOLDER/nearest and FOLDER/gptq, whose experts are
ternary, so that `edgemoe convert --experts sub1` loses nothing, and prints the losses of all three as a table.

A row has the levels 0, the smallest and the largest weight of the original row (QMoE: Frantar and Alistarh 2023, arXiv
2310.16795), rounded to float16. With data the columns of a matrix are rounded one after the other, and what each leaves
is made up for by those after it (GPTQ: Frantar et al. 2022, arXiv 2210.17323), by the second moments of the tokens that
come to that expert. Layers go in the order of the run, each on the outputs of those that are rounded already.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from spans import halves, held_out, pairs
from torch import Tensor, nn
from train import Model, loss_on

CALIBRATION_BATCHES, BATCH = 16, 8
DAMPING, LEAST_DAMPING = 0.1, 1e-6


def levels_of(weights: Tensor) -> Tensor:
    """The minus and plus level of each row `(rows, 2)`."""
    low, high = weights.amin(1).clamp(max=0), weights.amax(1).clamp(min=0)
    return torch.stack([low, high], 1).half().float()


def nearest(column: Tensor, levels: Tensor) -> Tensor:
    """The nearest of a row's levels and 0."""
    low, high = levels[:, 0], levels[:, 1]
    zero = torch.zeros_like(column)
    return torch.where(column > high / 2, high, torch.where(column < low / 2, low, zero))


def with_feedback(weights: Tensor, moments: Tensor, count: int) -> Tensor:
    """Ternary weights of least squared error of the outputs, or the nearest where no token came to the expert."""
    levels, own = levels_of(weights), weights.clone()
    diagonal = torch.eye(len(moments))
    hessian = moments / max(count, 1) if count else diagonal
    hessian = hessian + diagonal * max(DAMPING * float(hessian.diagonal().mean()), LEAST_DAMPING)
    factor, failed = torch.linalg.cholesky_ex(torch.linalg.inv(hessian.double()))
    upper = diagonal if failed else factor.T.float()
    rounded = torch.empty_like(own)
    for i in range(own.shape[1]):
        rounded[:, i] = nearest(own[:, i], levels)
        error = (own[:, i] - rounded[:, i]) / upper[i, i]
        own[:, i + 1 :] -= error[:, None] * upper[i, i + 1 :]
    return rounded


def matrices(layer: nn.Module) -> list[nn.Linear]:
    """The matrices of all experts of a layer."""
    return [one for expert in layer.values() for one in (expert.wi, expert.wo)]


def round_layers(model: Model, batches: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Round all experts, layer by layer; by the nearest level without batches."""
    layers = [m for m in model.modules() if type(m).__name__ == "SwitchTransformersExperts"]
    for layer in layers:
        moments = {one: torch.zeros(one.in_features, one.in_features) for one in matrices(layer)}
        counts = dict.fromkeys(moments, 0)

        def note(one: nn.Linear, given: tuple[Tensor], _: Tensor, to: dict = moments, seen: dict = counts) -> None:
            rows = given[0].reshape(-1, one.in_features)
            to[one] += rows.T @ rows
            seen[one] += len(rows)

        hooks = [one.register_forward_hook(note) for one in moments]
        if batches:
            loss_on(model, batches)
        for hook in hooks:
            hook.remove()
        for one in moments:
            one.weight.data = with_feedback(one.weight.data, moments[one], counts[one])


def shares(model: Model) -> float:
    """The share of zeros among the weights of experts."""
    layers = [m for m in model.modules() if type(m).__name__ == "SwitchTransformersExperts"]
    weights = [one.weight for layer in layers for one in matrices(layer)]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("text", "checkpoint", "folder"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    text, end = halves(options.text)
    tests = list(held_out(end, 16, BATCH))
    random = np.random.default_rng(2)
    calibration = [pairs(text, random, BATCH) for _ in range(CALIBRATION_BATCHES)]
    for name, batches in (("floats", None), ("nearest", []), ("gptq", calibration)):
        model = Model.from_pretrained(options.checkpoint, dtype=torch.float32)
        model.eval()
        if batches is not None:
            with torch.no_grad():
                round_layers(model, batches)
            model.save_pretrained(options.folder / name)
        found = {"experts": name, "loss": round(loss_on(model, tests), 4), "zeros": round(shares(model), 4)}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
