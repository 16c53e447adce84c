"""The reference of the operations on several residual streams."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgemoe.kernels import stream_operations as sm
from edgemoe.kernels.operations import Floats
from edgemoe.kernels.reference.common import sigmoid, single
from edgemoe.kernels.stepwise import means


def read_streams(streams: Floats, shares: Floats) -> Floats:
    """Streams and shares `(T, count, D)`; their mix `(T, D)`."""
    return single(np.mean(sigmoid(shares.astype(np.float64)) * streams, axis=1))


@means(sm.ReadStreams, "read_streams")
def _read_streams(kernels: Any, o: sm.ReadStreams, tokens: int) -> None:
    shape = (tokens, -1, o.output.shape[1])
    o.output[:tokens] = kernels.read_streams(o.streams[:tokens].reshape(shape), o.shares[:tokens].reshape(shape))


def write_streams(streams: Floats, shares: Floats, result: Floats) -> Floats:
    """Streams `(T, count, D)` with a result `(T, D)` added by shares `(T, count)`."""
    factors = 2 * sigmoid(shares.astype(np.float64))
    return single(streams + factors[:, :, None] * result[:, None, :])


@means(sm.WriteStreams, "write_streams")
def _write_streams(kernels: Any, o: sm.WriteStreams, tokens: int) -> None:
    streams = o.streams[:tokens].reshape(tokens, o.shares.shape[1], -1)
    changed = kernels.write_streams(streams, o.shares[:tokens], o.result[:tokens])
    o.streams[:tokens] = changed.reshape(tokens, -1)


def gate_by_agreement(key: Floats, query: Floats, value: Floats, least: float) -> Floats:
    """Key and query `(T, count, D)`, value `(T, D)`; a share of the value for each stream, `(T, count, D)`."""
    agreement = np.einsum("tsd,tsd->ts", key.astype(np.float64), query.astype(np.float64)) / math.sqrt(key.shape[2])
    rooted = np.sign(agreement) * np.sqrt(np.maximum(np.abs(agreement), np.float32(least)))
    return single(sigmoid(rooted)[:, :, None] * value[:, None, :])


@means(sm.GateByAgreement, "gate_by_agreement")
def _gate_by_agreement(kernels: Any, o: sm.GateByAgreement, tokens: int) -> None:
    shape = (tokens, -1, o.value.shape[1])
    key, query = (rows[:tokens].reshape(shape) for rows in (o.key, o.query))
    o.output[:tokens] = kernels.gate_by_agreement(key, query, o.value[:tokens], o.least).reshape(tokens, -1)
