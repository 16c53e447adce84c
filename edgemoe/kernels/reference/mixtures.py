"""The reference of the operations of `mixture_operations.py`: slots of Soft MoE, factors of multilinear mixtures."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgemoe.kernels import mixture_operations as mx
from edgemoe.kernels.definition import Sizes
from edgemoe.kernels.operations import Floats
from edgemoe.kernels.reference.common import Doubles, single, softmax
from edgemoe.kernels.stepwise import StepwiseBackend, means


def entmax(values: Floats) -> Floats:
    """The 1.5-entmax of each row `(T, E)`: see `mx.Entmax`.

    Of the largest `k` numbers `tau` follows from their mean and variance; it is that of the most numbers which all lie
    above it.
    """
    halves = (values.astype(np.float64) - values.max(axis=1, keepdims=True)) / 2
    largest = -np.sort(-halves, axis=1)
    counts = np.arange(1, values.shape[1] + 1)
    mean = np.cumsum(largest, axis=1) / counts
    spread = np.cumsum(np.square(largest), axis=1) - counts * np.square(mean)
    bounds = mean - np.sqrt(np.maximum((1 - spread) / counts, 0))
    kept = (bounds <= largest).sum(axis=1, keepdims=True)
    tau = np.take_along_axis(bounds, kept - 1, axis=1)
    return single(np.square(np.maximum(halves - tau, 0)))


@means(mx.Entmax)
def _entmax(kernels: Any, o: mx.Entmax, tokens: int) -> None:
    o.values[:tokens] = entmax(o.values[:tokens])


@means(mx.BatchNorm)
def _batch_norm(kernels: Any, o: mx.BatchNorm, tokens: int) -> None:
    exact = o.values[:tokens].astype(np.float64)
    o.values[:tokens] = single((exact - o.mean) / np.sqrt(o.variance.astype(np.float64) + np.float32(o.epsilon)))


@means(mx.PairProducts)
def _pair_products(kernels: Any, o: mx.PairProducts, tokens: int) -> None:
    left = o.left[:tokens].reshape(tokens, o.count, -1, o.inner).astype(np.float64)
    right = o.right[:tokens].reshape(tokens, o.count, o.inner, -1).astype(np.float64)
    o.output[:tokens] = single(np.matmul(left, right)).reshape(tokens, -1)


def unit(vectors: Doubles) -> Doubles:
    """Divide each row by its length, or by `LEAST_LENGTH` where it is shorter."""
    lengths = np.sqrt(np.square(vectors).sum(axis=-1, keepdims=True))
    result: Doubles = vectors / np.maximum(lengths, np.float32(mx.LEAST_LENGTH))
    return result


def slot_logits(o: mx.SlotLogits, values: Floats) -> Floats:
    """The logits `(T, S)` of rows `(T, D)`: see `mx.SlotLogits`."""
    inputs, slots = values.astype(np.float64), o.slots.reshape(-1, values.shape[1]).astype(np.float64)
    slots = unit(slots) if o.unit_slots else slots
    slots = slots if o.gain is None else slots * o.gain
    inputs = unit(inputs) if o.unit_input else inputs
    factor = np.float64(np.float32(o.factor)) * (1 if o.scale is None else o.scale[0])
    return single(factor * np.matmul(slots, inputs[:, :, None])[:, :, 0])


def _slot_logits_scratch(kernels: StepwiseBackend, o: mx.SlotLogits, sizes: Sizes) -> int:
    S, D = sizes.letters["S"], sizes.letters["D"]
    return 24 * (S * D + sizes.rows * (S + D))


@means(mx.SlotLogits, scratch=_slot_logits_scratch)
def _slot_logits(kernels: Any, o: mx.SlotLogits, tokens: int) -> None:
    o.logits[:tokens] = slot_logits(o, o.input[:tokens])


def _slots_scratch(kernels: StepwiseBackend, o: mx.Dispatch | mx.Collect, sizes: Sizes) -> int:
    S, D = sizes.letters["S"], sizes.letters["D"]
    return 16 * (sizes.rows * (S + D) + S * D)


@means(mx.Dispatch, scratch=_slots_scratch)
def _dispatch(kernels: Any, o: mx.Dispatch, tokens: int) -> None:
    shares = softmax(o.logits[:tokens].T.astype(np.float64))
    o.slots[:] = single(shares @ o.input[:tokens].astype(np.float64))


def _slot_ffn_scratch(kernels: StepwiseBackend, o: mx.SlotFfn, sizes: Sizes) -> int:
    return kernels.ffn_scratch_bytes(o.count, sizes.letters["D"], sizes.letters["F"])


@means(mx.SlotFfn, "plain_ffn", _slot_ffn_scratch)
def _slot_ffn(kernels: Any, o: mx.SlotFfn, tokens: int) -> None:
    own = slice(o.first, o.first + o.count)
    o.output[own] = kernels.plain_ffn(o.slots[own], o.up, o.down, o.biases, o.activation)


@means(mx.Collect, scratch=_slots_scratch)
def _collect(kernels: Any, o: mx.Collect, tokens: int) -> None:
    shares = softmax(o.logits[:tokens].astype(np.float64))
    o.output[:tokens] = single(shares @ o.values.astype(np.float64))
