"""Times one token of a PEER layer: edgemoe's operations against the package peer-pytorch on torch, in turn.

    python native/benchmarks/peer_decode.py [--rounds 7] [--experts 1048576] [--width 1024] [--dense q8]

Needs torch and peer-pytorch (the extra `oracle`). All experts are in memory, in float16 here and in float32 there;
queries and keys are in the format of `--dense`. Each round times both for about a second, on the same number of
threads; the medians of rounds and the quotient of each are printed, and of processor time likewise.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from edgemoe.io.direct import allocate_pages
from edgemoe.kernels import neuron_operations as no
from edgemoe.kernels import operations as op
from edgemoe.kernels.blocks import pack_panels
from edgemoe.kernels.formats import FORMATS, Matrix
from edgemoe.kernels.native.backend import NativeBackend
from edgemoe.quant.quantise import quantise

HEADS, TOP_K, KEY_DIM, TOKENS = 8, 16, 128, 64


def ours(experts: int, width: int, dense: str, threads: int, rows: op.Floats) -> Callable[[int], None]:
    """Returns what runs one token of `rows`, by its number."""
    random, keys, fmt = np.random.default_rng(1), int(experts**0.5), FORMATS[dense]

    def matrix(height: int, columns: int) -> Matrix:
        weights = random.standard_normal((height, columns), np.float32) / np.float32(columns**0.5)
        packed = pack_panels(quantise(weights, fmt))
        memory = np.frombuffer(allocate_pages(packed.nbytes), np.uint8)[: packed.nbytes]
        memory[:] = packed.reshape(-1).view(np.uint8)
        return Matrix(memory, fmt, height, columns)

    page = 4 * width
    arena: Any = np.frombuffer(allocate_pages(experts * page), np.uint8).reshape(experts, page)
    for first in range(0, experts, 1 << 14):
        drawn = random.standard_normal((min(1 << 14, experts - first), 2 * width), np.float32) / np.float32(width**0.5)
        arena[first : first + len(drawn)] = drawn.astype(np.float16).view(np.uint8)
    source, output = np.zeros((1, width), np.float32), np.zeros((1, width), np.float32)
    queries = [np.zeros((1, HEADS * KEY_DIM), np.float32) for _ in range(2)]
    scores = [np.zeros((1, HEADS * keys), np.float32) for _ in range(2)]
    chosen, weights = np.zeros((1, HEADS * TOP_K), np.int32), np.zeros((1, HEADS * TOP_K), np.float32)
    parts = tuple(op.LinearPart(matrix(HEADS * KEY_DIM, width), None, query) for query in queries)
    table = np.arange(experts, dtype=np.int32), no.NeuronLayout("f16", page, 1)
    program = NativeBackend(threads).program(
        [
            op.Linear(source, parts),
            *(
                op.HeadLinear(query, matrix(HEADS * keys, KEY_DIM), None, HEADS, score)
                for query, score in zip(queries, scores, strict=True)
            ),
            no.RetrieveByKeys(*scores, HEADS, chosen, weights),
            no.Neurons(source, chosen, weights, arena, *table, 0, experts, op.GELU, output, accumulate=False),
        ]
    )

    def run(token: int) -> None:
        source[0] = rows[token]
        program.run(1)

    return run


def theirs(experts: int, width: int, threads: int, rows: op.Floats) -> Callable[[int], None]:
    """As `ours`, with peer-pytorch."""
    try:
        import torch
        from PEER_pytorch import PEER
    except ImportError as error:
        raise SystemExit(f"{error}: install the extra `oracle`, which has torch and peer-pytorch.") from error

    torch.set_num_threads(threads)
    torch.manual_seed(1)
    sizes = {"heads": HEADS, "num_experts": experts, "num_experts_per_head": TOP_K, "dim_key": KEY_DIM}
    layer = PEER(width, non_competing_scores=False, **sizes).eval()
    inputs = torch.from_numpy(rows)[:, None, None, :]

    def run(token: int) -> None:
        with torch.inference_mode():
            layer(inputs[token])

    return run


def timed(run: Callable[[int], None], seconds: float) -> tuple[float, float]:
    """Wall and processor seconds of a token, over about so many seconds."""
    count, began, used = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        run(count % TOKENS)
        count += 1
    return (time.perf_counter() - began) / count, (time.process_time() - used) / count


def main() -> None:
    """Prints the times and their quotients."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--experts", type=int, default=1 << 20)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--dense", default="q8")
    parser.add_argument("--threads", type=int, default=2)
    settings = parser.parse_args()
    rows = np.random.default_rng(0).standard_normal((TOKENS, settings.width)).astype(np.float32)
    sides = {
        "edgemoe": ours(settings.experts, settings.width, settings.dense, settings.threads, rows),
        "peer-pytorch": theirs(settings.experts, settings.width, settings.threads, rows),
    }
    for run in sides.values():
        timed(run, 0.5)
    rounds = [{name: timed(run, 1.0) for name, run in sides.items()} for _ in range(settings.rounds)]
    for what, index in (("wall", 0), ("processor", 1)):
        medians = {name: statistics.median(one[name][index] for one in rounds) for name in sides}
        quotients = sorted(one["peer-pytorch"][index] / one["edgemoe"][index] for one in rounds)
        print(
            f"{what}: " + ", ".join(f"{name} {1e3 * value:.3f} ms" for name, value in medians.items()),
            f"per token; x {statistics.median(quotients):.2f} ({quotients[0]:.2f} to {quotients[-1]:.2f})",
        )


if __name__ == "__main__":
    main()
