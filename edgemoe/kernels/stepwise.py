"""Runs a list of operations one by one in Python, for the backends whose kernels are Python functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgemoe.kernels import operations as op
from edgemoe.kernels.formats import PANEL_ROWS, Matrix, panel_count


class StepwiseBackend:
    """Base of the `reference` and `jit` backends, which give the functions of `reference.py`."""

    name: str
    isa = "-"
    threads = 1
    matmul: Callable[..., Any]
    embed: Callable[..., Any]
    rms_norm: Callable[..., Any]
    rope: Callable[..., Any]
    attention: Callable[..., Any]
    route: Callable[..., Any]
    gated_ffn: Callable[..., Any]
    combine: Callable[..., Any]

    def program(self, operations: Sequence[op.Operation]) -> StepwiseProgram:
        return StepwiseProgram(self, operations)

    def scratch_bytes(self, operations: Sequence[op.Operation]) -> int:
        """The largest temporary of one operation: a linear layer's products, or an expert's hidden values."""
        largest = 0
        for operation in operations:
            if isinstance(operation, op.Linear):
                largest = max(largest, sum(part.output.nbytes for part in operation.parts))
            elif isinstance(operation, (op.GatedFfn, op.Experts)):
                if isinstance(operation, op.GatedFfn):
                    width = operation.down.columns
                else:
                    width = operation.layout.ffn_width
                largest = max(largest, len(operation.input) * (4 * width * 4 + operation.input.shape[1] * 8))
        return largest

    def close(self) -> None:
        pass


class StepwiseProgram:
    """The operations of one list, each a call of the backend's function of that name."""

    def __init__(self, backend: StepwiseBackend, operations: Sequence[op.Operation]) -> None:
        self._steps = [(_STEPS[type(operation)], operation) for operation in operations]
        self._kernels = backend

    def run(self, tokens: int, position: int) -> None:
        for step, operation in self._steps:
            step(self._kernels, operation, tokens, position)


def _embed(kernels: StepwiseBackend, o: op.Embed, tokens: int, position: int) -> None:
    o.output[:tokens] = kernels.embed(o.ids[:tokens], o.matrix, o.scale)


def _rms_norm(kernels: StepwiseBackend, o: op.RmsNorm, tokens: int, position: int) -> None:
    heads = o.input[:tokens].reshape(tokens, o.heads, -1)
    o.output[:tokens] = kernels.rms_norm(heads, o.weight, o.epsilon).reshape(tokens, -1)


def _linear(kernels: StepwiseBackend, o: op.Linear, tokens: int, position: int) -> None:
    for part in o.parts:
        product = kernels.matmul(o.input[:tokens], part.matrix)
        if part.bias is not None:
            product += part.bias
        product *= np.float32(o.scale)
        if o.accumulate:
            part.output[:tokens] += product
        else:
            part.output[:tokens] = product


def _rope(kernels: StepwiseBackend, o: op.Rope, tokens: int, position: int) -> None:
    here = slice(position, position + tokens)
    heads = o.values[:tokens].reshape(tokens, o.heads, -1)
    o.values[:tokens] = kernels.rope(heads, o.cosine[here], o.sine[here]).reshape(tokens, -1)


def _store_kv(kernels: StepwiseBackend, o: op.StoreKv, tokens: int, position: int) -> None:
    groups, _, width = o.key_cache.shape
    here = slice(position, position + tokens)
    for source, cache in ((o.keys, o.key_cache), (o.values, o.value_cache)):
        cache[:, here] = source[:tokens].reshape(tokens, groups, width).transpose(1, 0, 2)


def _attention(kernels: StepwiseBackend, o: op.Attention, tokens: int, position: int) -> None:
    heads = o.query[:tokens].reshape(tokens, -1, o.key_cache.shape[2])
    seen = kernels.attention(heads, o.key_cache, o.value_cache, position, o.scale)
    o.output[:tokens] = seen.reshape(tokens, -1)


def _route(kernels: StepwiseBackend, o: op.Route, tokens: int, position: int) -> None:
    chosen = kernels.route(o.logits[:tokens], o.experts.shape[1], o.renormalise)
    o.experts[:tokens], o.weights[:tokens] = chosen


def _gated_ffn(kernels: StepwiseBackend, o: op.GatedFfn, tokens: int, position: int) -> None:
    o.output[:tokens] = kernels.gated_ffn(o.input[:tokens], o.gate_up, o.down)


def _experts(kernels: StepwiseBackend, o: op.Experts, tokens: int, position: int) -> None:
    chosen = o.experts[:tokens]
    for expert in np.unique(chosen):
        slot = o.slots[expert]
        if slot >= 0:
            rows, ranks = np.nonzero(chosen == expert)
            gate_up, down = expert_matrices(o.arena[slot], o.layout)
            o.output[rows, ranks] = kernels.gated_ffn(o.input[rows], gate_up, down)


def expert_matrices(record: op.Bytes, layout: op.ExpertLayout) -> tuple[Matrix, Matrix]:
    """The `gate_up` and `down` matrices in an expert's record, without a copy."""
    padded_rows = 2 * PANEL_ROWS * panel_count(layout.ffn_width)
    gate_up_bytes = layout.gate_up_format.matrix_bytes(padded_rows, layout.model_width)
    down_bytes = layout.down_format.matrix_bytes(layout.model_width, layout.ffn_width)
    down = record[layout.down_offset : layout.down_offset + down_bytes]
    return (
        Matrix(record[:gate_up_bytes], layout.gate_up_format, padded_rows, layout.model_width),
        Matrix(down, layout.down_format, layout.model_width, layout.ffn_width),
    )


def _combine(kernels: StepwiseBackend, o: op.Combine, tokens: int, position: int) -> None:
    parts = (o.routed, o.weights, o.shared, o.shared_gate)
    total = kernels.combine(*(None if part is None else part[:tokens] for part in parts))
    o.residual[:tokens] += np.float32(o.scale) * total


_STEPS: dict[type, Callable[[StepwiseBackend, Any, int, int], None]] = {
    op.Embed: _embed,
    op.RmsNorm: _rms_norm,
    op.Linear: _linear,
    op.Rope: _rope,
    op.StoreKv: _store_kv,
    op.Attention: _attention,
    op.Route: _route,
    op.GatedFfn: _gated_ffn,
    op.Experts: _experts,
    op.Combine: _combine,
}
