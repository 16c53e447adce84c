"""The reference of the operations of `neuron_operations.py`: retrieval by keys, and the sum of neurons."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.kernels import neuron_operations as no
from edgemoe.kernels.operations import Activation, Floats, Integers
from edgemoe.kernels.reference.common import check_each, sigmoid, single, softmax
from edgemoe.kernels.reference.products import activate
from edgemoe.kernels.stepwise import means


def _largest(scores: Floats, count: int) -> Integers:
    """The places of the `count` largest scores of each row, largest first, the lower place on a tie; a NaN is least."""
    ranked = np.where(np.isnan(scores), -np.inf, scores)
    # Numbers go before a NaN that is as low as they are.
    order = np.lexsort((np.broadcast_to(np.arange(scores.shape[-1]), scores.shape), np.isnan(scores), -ranked), axis=-1)
    return order[..., :count].astype(np.int32)


def retrieve_by_keys(
    first: Floats, second: Floats, heads: int, count: int, scoring: no.Scoring
) -> tuple[Integers, Floats]:
    """Experts `(T, H * J)` and their weights, from scores of halves `(T, H * N)`: see `no.RetrieveByKeys`."""
    halves = [scores.reshape(len(scores), heads, -1) for scores in (first, second)]
    keys = halves[0].shape[-1]
    best = [_largest(scores, count) for scores in halves]
    found = [np.take_along_axis(scores, own, axis=-1) for scores, own in zip(halves, best, strict=True)]
    numbers = best[0][..., :, None] * np.int32(keys) + best[1][..., None, :]
    with np.errstate(invalid="ignore", over="ignore"):  # infinity less infinity
        sums = (found[0][..., :, None] + found[1][..., None, :]).reshape(len(first), heads, -1)
    numbers = numbers.reshape(sums.shape)
    by_number = np.argsort(numbers, axis=-1)
    chosen = np.take_along_axis(by_number, _largest(np.take_along_axis(sums, by_number, axis=-1), count), axis=-1)
    experts = np.take_along_axis(numbers, chosen, axis=-1)
    exact = np.take_along_axis(sums, chosen, axis=-1).astype(np.float64)
    if scoring == "relu":
        exact = np.where(exact < 0, 0.0, exact)
    else:
        exact = softmax(exact) if scoring == "softmax" else sigmoid(exact)
    return experts.reshape(len(first), -1), single(exact).reshape(len(first), -1)


@means(no.RetrieveByKeys, "")
def _retrieve_by_keys(kernels: Any, o: no.RetrieveByKeys, tokens: int) -> None:
    count = o.experts.shape[1] // o.heads
    o.experts[:tokens], o.weights[:tokens] = retrieve_by_keys(
        o.first[:tokens], o.second[:tokens], o.heads, count, o.scoring
    )


def sum_neurons(
    values: Floats,
    incoming: npt.NDArray[np.floating],
    outgoing: npt.NDArray[np.floating],
    weights: Floats,
    activation: Activation,
) -> Floats:
    """The sum for one token `(D,)`, of weights `(K,)` and of the neurons' input and output weights `(K, D)`."""
    products = single(incoming.astype(np.float64) @ values.astype(np.float64))
    answers = activate(products, np.ones_like(products), activation).astype(np.float64) * weights
    return single(answers @ outgoing.astype(np.float64))


@means(no.Neurons, "")
def _neurons(kernels: Any, o: no.Neurons, tokens: int) -> int:
    layout, width, waited_ns = o.layout, o.input.shape[1], 0
    check_each("expert", o.experts[:tokens].reshape(-1), o.count)
    kind = np.float32 if layout.element == "f32" else np.float16
    for t in range(tokens):
        wanted = o.first + o.experts[t].astype(np.int64)
        if o.paged is not None:
            waited_ns += o.paged.pager.fetch(wanted)
        pages, within = np.divmod(wanted, layout.neurons_per_page)
        starts = within * layout.neuron_bytes
        neurons = np.stack(
            [
                o.arena[slot, start : start + 2 * width * np.dtype(kind).itemsize].view(kind)
                for slot, start in zip(o.slots[pages].tolist(), starts.tolist(), strict=True)
            ]
        )
        total = sum_neurons(o.input[t], neurons[:, :width], neurons[:, width:], o.weights[t], o.activation)
        total *= np.float32(o.scale)
        o.output[t] = o.output[t] + total if o.accumulate else total
    return waited_ns
