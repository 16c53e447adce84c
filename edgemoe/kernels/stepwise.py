"""Runs a list of operations one by one in Python, for the backends whose kernels are Python functions."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from edgemoe.errors import KernelError
from edgemoe.kernels import operations as op
from edgemoe.kernels.formats import GROUP_COLUMNS, PANEL_ROWS, Matrix, group_count, panel_count

_NO_LIMIT = 2**31 - 1

_HINT = "This is a fault in how the model was put together; please report it."

_PYTHON_OBJECTS_BYTES = 1 << 16
"""Memory that the interpreter and NumPy take for a step besides arrays."""


class StepwiseBackend(ABC):
    """Base of the `reference` and `jit` backends, which implement the functions of `reference.py`."""

    name: str
    isa = "-"
    threads = 1
    growth_bytes = 0
    matmul: Callable[..., Any]
    embed: Callable[..., Any]
    rms_norm: Callable[..., Any]
    rope: Callable[..., Any]
    quantise_cache_rows: Callable[..., Any]
    attention: Callable[..., Any]
    route: Callable[..., Any]
    gated_ffn: Callable[..., Any]
    combine: Callable[..., Any]

    element_scratch_bytes: int
    """Bytes of temporaries of an operation without a matrix, for each number of its output."""

    def program(self, operations: Sequence[op.Operation]) -> StepwiseProgram:
        return StepwiseProgram(self, operations)

    def can_await(self, reader: op.AwaitedReads) -> bool:
        """Always true: `Experts` waits through the reader's Python methods."""
        return True

    @abstractmethod
    def product_scratch_bytes(self, tokens: int, rows: int, columns: int) -> int:
        """Bytes of temporaries of one `matmul`, its result included."""

    @abstractmethod
    def attention_scratch_bytes(self, tokens: int, heads: int, kv_heads: int, width: int, context_length: int) -> int:
        """Bytes of temporaries of one `attention` at the end of the context, its result included."""

    def step_scratch_bytes(self, sizes: op.StepSizes) -> int:
        """Return an upper bound on `scratch_bytes` of any program of a step of these sizes."""
        s, query_width = sizes, sizes.query_heads * sizes.head_width
        widest = max(query_width, s.model_width, s.experts)
        return _PYTHON_OBJECTS_BYTES + max(
            s.tokens * widest * self.element_scratch_bytes,
            self.product_scratch_bytes(s.tokens, widest, max(query_width, s.model_width)),
            self.product_scratch_bytes(s.head_tokens, s.vocabulary, s.model_width),
            self._store_scratch_bytes(s.tokens, s.kv_heads, s.head_width),
            self.attention_scratch_bytes(s.tokens, s.query_heads, s.kv_heads, s.head_width, s.context_length),
            self._ffn_scratch_bytes(s.tokens, s.model_width, s.ffn_width),
            self._experts_scratch_bytes(s.tokens, s.experts_per_token, s.model_width, s.expert_width),
        )

    def scratch_bytes(self, operations: Sequence[op.Operation]) -> int:
        """Return the largest scratch of any one operation: temporaries are freed when their operation ends."""
        return _PYTHON_OBJECTS_BYTES + max((self._scratch_bytes(operation) for operation in operations), default=0)

    def _scratch_bytes(self, operation: op.Operation) -> int:
        if isinstance(operation, op.Linear):
            tokens = len(operation.input)
            matrices = (part.matrix for part in operation.parts)
            return max(self.product_scratch_bytes(tokens, matrix.rows, matrix.columns) for matrix in matrices)
        if isinstance(operation, op.GatedFfn):
            return self._ffn_scratch_bytes(len(operation.input), operation.down.rows, operation.down.columns)
        if isinstance(operation, op.Experts):
            layout, (tokens, used) = operation.layout, operation.experts.shape
            return self._experts_scratch_bytes(tokens, used, layout.model_width, layout.ffn_width)
        if isinstance(operation, op.Attention):
            kv_heads, context_length, width = operation.key_cache.shape
            tokens, query_width = operation.query.shape
            return self.attention_scratch_bytes(tokens, query_width // width, kv_heads, width, context_length)
        if isinstance(operation, op.StoreKv):
            kv_heads, _, width = operation.key_cache.shape
            return self._store_scratch_bytes(len(operation.keys), kv_heads, width)
        rows = operation.output if isinstance(operation, op.Embed) else _rows(operation)
        return rows.size * self.element_scratch_bytes

    def _store_scratch_bytes(self, tokens: int, kv_heads: int, width: int) -> int:
        """Bytes of temporaries of `StoreKv`; an 8-bit cache pads rows to whole groups."""
        return tokens * kv_heads * group_count(width) * GROUP_COLUMNS * self.element_scratch_bytes

    def _ffn_scratch_bytes(self, tokens: int, model_width: int, ffn_width: int) -> int:
        gate_up_rows = 2 * PANEL_ROWS * panel_count(ffn_width)
        hidden = tokens * gate_up_rows * self.element_scratch_bytes
        gate_up = self.product_scratch_bytes(tokens, gate_up_rows, model_width)
        return hidden + max(gate_up, self.product_scratch_bytes(tokens, model_width, ffn_width))

    def _experts_scratch_bytes(self, tokens: int, used: int, model_width: int, ffn_width: int) -> int:
        gathered = tokens * (4 * model_width + 3 * 4 * used + 16)
        return gathered + self._ffn_scratch_bytes(tokens, model_width, ffn_width)

    def close(self) -> None:  # noqa: B027 - nothing to stop unless a backend has threads
        """Stop the backend's threads, if it has any."""


class StepwiseProgram:
    """Runs a list of operations, each as one call of the backend's function of that name."""

    def __init__(self, backend: StepwiseBackend, operations: Sequence[op.Operation]) -> None:
        for operation in operations:
            if type(operation) not in _STEPS:
                raise KernelError(f"the {backend.name} backend knows no operation {type(operation).__name__}.", _HINT)
        self._steps = [(_STEPS[type(operation)], operation) for operation in operations]
        self._kernels = backend
        self._tokens_max = min((len(_rows(operation)) for operation in operations), default=_NO_LIMIT)
        self._positions = min((_positions(operation) for operation in operations), default=_NO_LIMIT)
        self._timed = False
        self._elapsed_ns = 0
        self._operations_ns = np.zeros(len(self._steps), np.int64)
        self._disk_ns = np.zeros(len(self._steps), np.int64)

    def run(self, tokens: int, position: int) -> None:
        """Raises KernelError if the buffers are too short for these tokens at this position."""
        if not 1 <= tokens <= self._tokens_max:
            raise KernelError(f"{tokens} tokens in a run; its buffers hold 1 to {self._tokens_max}.", _HINT)
        if not 0 <= position <= self._positions - tokens:
            raise KernelError(f"{tokens} tokens at position {position}; there are {self._positions} positions.", _HINT)
        if self._timed:
            self._run_timed(tokens, position)
            return
        for step, operation in self._steps:
            step(self._kernels, operation, tokens, position)

    def time_runs(self, on: bool) -> None:
        """Start timing each operation of every run, from zero; or stop timing."""
        self._timed = on
        self._elapsed_ns = 0
        self._operations_ns[:] = 0
        self._disk_ns[:] = 0

    def times(self) -> op.ProgramTimes:
        """Return the times. `waited_ns` is 0: a Python kernel does not report how long it waits for its threads."""
        waited_ns = np.zeros_like(self._operations_ns)
        return op.ProgramTimes(self._elapsed_ns, self._operations_ns.copy(), waited_ns, self._disk_ns.copy())

    def _run_timed(self, tokens: int, position: int) -> None:
        start = before = time.perf_counter_ns()
        try:
            for number, (step, operation) in enumerate(self._steps):
                disk_ns = step(self._kernels, operation, tokens, position)
                now = time.perf_counter_ns()
                self._operations_ns[number] += now - before
                self._disk_ns[number] += disk_ns or 0
                before = now
        finally:
            self._elapsed_ns += time.perf_counter_ns() - start


def _rows(operation: op.Operation) -> op.Floats | op.Integers:
    """Return the buffer `(T, ...)` of the operation whose length limits the tokens of a run."""
    names = {
        op.Embed: "ids",
        op.Rope: "values",
        op.StoreKv: "keys",
        op.Attention: "query",
        op.Route: "logits",
        op.Combine: "residual",
    }
    rows: op.Floats | op.Integers = getattr(operation, names.get(type(operation), "input"))
    return rows


def _positions(operation: op.Operation) -> int:
    """Return the number of positions of a sequence that the operation has room for."""
    if isinstance(operation, op.Rope):
        return len(operation.cosine)
    if isinstance(operation, (op.StoreKv, op.Attention)):
        return int(operation.key_cache.shape[1])
    return _NO_LIMIT


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
        rows = source[:tokens].reshape(tokens, groups, width).transpose(1, 0, 2)
        if isinstance(cache, op.QuantisedCache):
            cache.values[:, here], cache.scales[:, here] = kernels.quantise_cache_rows(rows)
        else:
            cache[:, here] = rows


def _attention(kernels: StepwiseBackend, o: op.Attention, tokens: int, position: int) -> None:
    heads = o.query[:tokens].reshape(tokens, -1, o.key_cache.shape[2])
    seen = kernels.attention(heads, o.key_cache, o.value_cache, position, o.scale)
    o.output[:tokens] = seen.reshape(tokens, -1)


def _route(kernels: StepwiseBackend, o: op.Route, tokens: int, position: int) -> None:
    chosen = kernels.route(o.logits[:tokens], o.experts.shape[1], o.renormalise, o.in_memory, o.bonus)
    o.experts[:tokens], o.weights[:tokens] = chosen


def _gated_ffn(kernels: StepwiseBackend, o: op.GatedFfn, tokens: int, position: int) -> None:
    o.output[:tokens] = kernels.gated_ffn(o.input[:tokens], o.gate_up, o.down)


def _experts(kernels: StepwiseBackend, o: op.Experts, tokens: int, position: int) -> int:
    """Returns the nanoseconds for which it waited for records."""
    chosen = o.experts[:tokens]
    here = [(int(expert), int(o.slots[expert])) for expert in np.unique(chosen) if o.slots[expert] >= 0]
    disk_ns = 0
    for expert, slot, waited_ns in _as_they_land(here, o.arrivals):
        rows, ranks = np.nonzero(chosen == expert)
        gate_up, down = expert_matrices(o.arena[slot], o.layout)
        o.output[rows, ranks] = kernels.gated_ffn(o.input[rows], gate_up, down)
        disk_ns += waited_ns
    return disk_ns


def _as_they_land(experts: list[tuple[int, int]], arrivals: op.Arrivals | None) -> Iterator[tuple[int, int, int]]:
    """Yield (expert, slot, nanoseconds waited): experts whose records are in memory first, then the others."""
    if arrivals is None:
        yield from ((expert, slot, 0) for expert, slot in experts)
        return
    reader, tickets = arrivals.reader, arrivals.tickets
    while experts:
        landed = [pair for pair in experts if tickets[pair[1]] < 0 or reader.done(int(tickets[pair[1]]))]
        for expert, slot in landed or experts[:1]:
            began_ns = time.perf_counter_ns()
            ticket = int(tickets[slot])
            if ticket >= 0:
                reader.wait(ticket, arrivals.timeout_seconds)
                tickets[slot] = -1
                reader.release(ticket)
            yield expert, slot, time.perf_counter_ns() - began_ns
            experts = [pair for pair in experts if pair[0] != expert]


def expert_matrices(record: op.Bytes, layout: op.ExpertLayout) -> tuple[Matrix, Matrix]:
    """Return the `gate_up` and `down` matrices of an expert's record, as views."""
    down = record[layout.down_offset : layout.down_offset + layout.down_bytes]
    return (
        Matrix(record[: layout.gate_up_bytes], layout.gate_up_format, layout.gate_up_rows, layout.model_width),
        Matrix(down, layout.down_format, layout.model_width, layout.ffn_width),
    )


def _combine(kernels: StepwiseBackend, o: op.Combine, tokens: int, position: int) -> None:
    parts = (o.routed, o.weights, o.shared, o.shared_gate)
    total = kernels.combine(*(None if part is None else part[:tokens] for part in parts))
    o.residual[:tokens] += np.float32(o.scale) * total


_STEPS: dict[type, Callable[[StepwiseBackend, Any, int, int], int | None]] = {
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
