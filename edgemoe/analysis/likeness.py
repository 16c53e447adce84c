"""How alike the experts of a layer are: by their matrices, by what they compute, and neuron by neuron.

Letters as in `text_pass.py`. Similarities are cosines. Those of matrices compare number with number, so that two
experts with the same neurons in another order are not alike by them: `Neurons.best_match` asks for that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgemoe.analysis.text_pass import SLICE_BYTES, Floats, LayerPass
from edgemoe.kernels.formats import PANEL_ROWS

Doubles = npt.NDArray[np.float64]

MOST_EXPERTS = 8
"""How many of a layer's experts, the most used ones, are looked at neuron by neuron."""
MOST_NEURONS = 512
"""How many neurons of an expert look for their like in another one."""
DRAWN = 64
"""How many vectors drawn at random look for their like."""
AT_WORK = 0.9
"""The share of what an expert gives that the neurons at work make."""


def matrix_cosines(layer: LayerPass, part: str) -> Doubles:
    """The cosine of each two experts' `gate`, `up` or `down`, as one long vector `(E, E)`."""
    total, height = layer.num_experts, layer.height(part)
    width = layer.rows(0, part, 0, PANEL_ROWS).shape[1]
    step = max(1, SLICE_BYTES // (4 * total * width * PANEL_ROWS)) * PANEL_ROWS
    products = np.zeros((total, total))
    for start in range(0, height, step):
        some = [layer.rows(expert, part, start, min(start + step, height)).reshape(-1) for expert in range(total)]
        rows = np.stack(some)
        products += rows @ rows.T
    return cosines(products)


def cosines(products: Doubles) -> Doubles:
    """The cosine of each two vectors, from their inner products; 0 with a vector of zeros."""
    lengths = np.sqrt(np.maximum(np.diagonal(products), 0))
    lengths = np.where(lengths > 0, lengths, np.inf)
    found: Doubles = products / lengths / lengths[:, None]
    return found


def pairs(matrix: Doubles) -> Doubles:
    """The numbers of each two different experts, once."""
    return matrix[np.triu_indices(len(matrix), 1)]


@dataclass(frozen=True)
class Outputs:
    """The outputs of all experts of a layer for the same tokens."""

    cosines: Doubles
    """The cosine of what each two experts make of a token, its mean over tokens `(E, E)`."""
    means: Doubles
    """The mean of what each expert gives `(E, W)`."""
    norms: Floats
    """The norm of what each expert gives to each token `(n, E)`."""


def all_outputs(layer: LayerPass, tokens: npt.NDArray[np.int64]) -> Outputs:
    """Run every expert on these tokens."""
    total = layer.num_experts
    likeness, means, norms = np.zeros((total, total)), np.zeros((total, layer.inputs.shape[1])), []
    for _, output in layer.outputs(tokens):
        means += output.sum(axis=0, dtype=np.float64)
        length = np.linalg.norm(output, axis=2)
        norms.append(length)
        output /= np.where(length > 0, length, np.inf)[:, :, None]
        likeness += np.matmul(output, output.transpose(0, 2, 1)).sum(axis=0, dtype=np.float64)
    return Outputs(likeness / len(tokens), means / len(tokens), np.concatenate(norms))


@dataclass(frozen=True)
class Neurons:
    """The experts of a layer, neuron by neuron: each neuron is an expert of its own, of width 1."""

    best_match: float
    """The cosine of a neuron's input weights with the likest ones of another expert, its mean."""
    chance_match: float
    """The same of vectors drawn at random, of as many numbers and as many to choose from."""
    at_work: float
    """The share of an expert's neurons that make 90 % of the sum of `|h| * |column of down|`: its mean over tokens."""
    idle: float
    """The share of neurons that are at work for no token that was looked at."""


def neurons(layer: LayerPass, most_tokens: int) -> Neurons | None:
    """Look at the most used experts' neurons; None where no two experts got a token."""
    counts = layer.counts
    experts = [int(one) for one in np.argsort(-counts, kind="stable")[:MOST_EXPERTS] if counts[one]]
    if len(experts) < 2:
        return None
    part, working, idle = layer.parts[0], [], []
    before: Floats | None = None
    matches = []
    for expert in experts:
        places = np.flatnonzero((layer.chosen == expert).any(axis=1))[:most_tokens]
        columns = np.linalg.norm(layer.matrix(expert, "down"), axis=0)
        at_work = _at_work(np.abs(layer.hidden(expert, layer.inputs[places])) * columns)
        working.append(at_work.mean())
        idle.append(1 - at_work.any(axis=0).mean())
        own = layer.matrix(expert, part)
        own = own / np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-30)
        if before is not None:
            matches.append((before[:MOST_NEURONS] @ own.T).max(axis=1).mean())
        before = own
    assert before is not None
    drawn = np.random.default_rng(0).standard_normal((len(before) + DRAWN, before.shape[1]), np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    chance = (drawn[:DRAWN] @ drawn[DRAWN:].T).max(axis=1).mean()
    return Neurons(float(np.mean(matches)), float(chance), float(np.mean(working)), float(np.mean(idle)))


def _at_work(shares: Floats) -> npt.NDArray[np.bool_]:
    """The fewest neurons that make `AT_WORK` of a token's sum `(n, F)`."""
    order = np.argsort(-shares, axis=1)
    summed = np.cumsum(np.take_along_axis(shares, order, axis=1), axis=1, dtype=np.float64)
    needed = np.concatenate([np.zeros((len(shares), 1)), summed[:, :-1]], axis=1) < AT_WORK * summed[:, -1:]
    found = np.zeros(shares.shape, np.bool_)
    np.put_along_axis(found, order, needed, axis=1)
    return found
