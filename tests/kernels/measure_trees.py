"""Measures trees of depth 11 against a dense FFN of as many neurons, and against fastfeedforward on torch.

`python -m tests.kernels.measure_trees [ROUNDS [WIDTH]]`. One token at a time, a new random row each time, so that
another path is read; turns of all of them in each round, by processor time of all threads. A call from Python takes as
long as some trees, so a program has `LAYERS` operations, as a model's has. Without torch and the package there is no
comparison with them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from edgemoe.kernels import operations as op
from edgemoe.kernels import tree_operations as tr
from edgemoe.kernels.native.backend import NativeBackend
from tests.kernels.builders import aligned, aligned_copy, random_matrix
from tests.kernels.test_trees import Trees, whole

DEPTH, LAYERS, THREADS = 11, 16, 2
DENSE_TOKENS, TREE_TOKENS, TORCH_TOKENS = 2, 100, 50


def seconds(turn: Callable[[], None], tokens: int) -> float:
    """Processor seconds of a token."""
    before = time.process_time()
    for _ in range(tokens):
        turn()
    return (time.process_time() - before) / tokens


def native(backend: NativeBackend, operation: op.PlainFfn | tr.TreeFfn) -> Callable[[], None]:
    """A turn of an operation on new rows, one after the other."""
    random, width = np.random.default_rng(1), operation.input.shape[1]
    layers = [replace(operation, input=aligned((1, width), np.float32)) for _ in range(LAYERS)]
    program, rows = backend.program(layers), random.standard_normal((509, width), np.float32)
    number = iter(range(1 << 60))

    def turn() -> None:
        for layer in layers:
            layer.input[0] = rows[next(number) % len(rows)]
        program.run(1)

    return turn


def dense(width: int) -> op.PlainFfn:
    """A dense FFN of as many neurons as a tree of nodes has."""
    random, neurons = np.random.default_rng(2), tr.node_count(DEPTH, 0)
    up, down = random_matrix("f16", neurons, width, random), random_matrix("f16", width, neurons, random)
    return op.PlainFfn(aligned((1, width), np.float32), up, down, aligned((1, width), np.float32))


def torch_and_twin(width: int) -> tuple[Callable[[], None], tr.TreeFfn]:
    """A turn of the package's model with leaves of one neuron, and the same model as an operation."""
    import fastfeedforward
    import torch

    torch.set_num_threads(THREADS)
    model = fastfeedforward.FFF(width, 1, width, DEPTH).eval()
    weights = {name: value.detach().numpy() for name, value in model.named_parameters() if name != "depth"}
    rows, number = torch.randn(512, 1, width), iter(range(1 << 60))

    def turn() -> None:
        with torch.no_grad():
            model(rows[next(number) % 512])

    twin = tr.TreeFfn(
        aligned((1, width), np.float32),
        whole(weights["node_weights"], "f32")[0],
        aligned_copy(weights["node_biases"].reshape(-1)),
        whole(weights["w1s"].reshape(-1, width), "f32")[0],
        aligned_copy(weights["b1s"].reshape(-1)),
        whole(weights["w2s"].reshape(-1, width), "f32")[0],
        None,
        *(1, DEPTH, 1, aligned((1, width), np.float32)),
    )
    return turn, twin


def main(rounds: int, width: int) -> None:
    """Print the medians of all rounds, and their ratios."""
    backend = NativeBackend(THREADS)
    tree = Trees(width, DEPTH, 0, 1, 0, fmt="f16").operation
    turns = {"dense": (native(backend, dense(width)), DENSE_TOKENS), "tree": (native(backend, tree), TREE_TOKENS)}
    try:
        torch_turn, twin = torch_and_twin(width)
    except ImportError as error:
        print(f"{error}: nothing is compared with fastfeedforward; install the extra `oracle` for that.")
    else:
        turns |= {"fastfeedforward": (torch_turn, TORCH_TOKENS), "its twin": (native(backend, twin), TREE_TOKENS)}
    found: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, (turn, tokens) in turns.items():
            found[name].append(seconds(turn, tokens) / (1 if name == "fastfeedforward" else LAYERS))
    medians = {name: float(np.median(values)) for name, values in found.items()}
    for name, value in medians.items():
        print(f"{name}: {1e6 * value:.1f} us of processor time a token, {width} wide")
    neurons = tr.node_count(DEPTH, 0) / (DEPTH + 1)
    gain = medians["dense"] / medians["tree"]
    print(
        f"tree: {gain:.0f} x the dense FFN's speed, {gain / neurons:.2f} of the ratio of neurons read ({neurons:.0f})"
    )
    if "its twin" in medians:
        print(f"against fastfeedforward: {medians['fastfeedforward'] / medians['its twin']:.0f} x")
    backend.close()


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    main(*numbers, *(9, 1024)[len(numbers) :])
