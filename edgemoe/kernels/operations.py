"""The operations that make up a decoder, and the interface of a kernel backend.

A decoder describes its work once, as a list of operations bound to their buffers. A backend turns
such a list into a `Program`; after that a step of the model is `program.run(tokens, position)`, which
for the native backend is one call into C for the whole list. `reference.py` defines the result of each
operation, and every other backend is tested against it.

Letters: `T` tokens of this run (at most the buffers' first dimension), `D` model width, `H` query
heads, `G` key/value heads, `W` head width, `E` experts, `K` experts used per token, `F` FFN width,
`C` context length, `V` vocabulary.

Invariants:
- Buffers are C-contiguous; activations are float32. A run touches only the first `T` rows of each.
- The token in row `t` stands at position `position + t` of the sequence.
- Each token's result depends on other rows of the same run only through the KV cache, so neither the way a
  prompt is cut into runs nor the number of threads changes a single bit of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Union

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.formats import PANEL_ROWS, Format, Matrix, panel_count

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]
Nanoseconds = npt.NDArray[np.int64]
Tickets = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class QuantisedCache:
    """Keys or values in 8 bits: element `[g, c, i]` is `values[g, c, i] * scales[g, c, i // 32]`, a float32 exactly.

    `reference.quantise_cache_rows` makes the values and scales.
    """

    values: npt.NDArray[np.int8]  # (G, C, W)
    scales: npt.NDArray[np.float16]  # (G, C, groups of W): a row's last group may have fewer than 32 elements

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes


Cache = Union[npt.NDArray[np.floating], QuantisedCache]
"""Keys or values of one layer, `(G, C, W)`: float16, float32, or 8 bits."""


@dataclass(frozen=True, eq=False)
class Embed:
    """`output[t] = scale * matrix[ids[t]]`."""

    ids: Integers  # (T,)
    matrix: Matrix  # (V, D)
    scale: float
    output: Floats  # (T, D)


@dataclass(frozen=True, eq=False)
class RmsNorm:
    """`output = input / rms(input) * weight`, over each of `heads` runs of the row; may be in place."""

    input: Floats  # (T, heads * width)
    weight: Floats  # (width,)
    epsilon: float
    output: Floats  # (T, heads * width)
    heads: int = 1


@dataclass(frozen=True, eq=False)
class LinearPart:
    """One of the matrices that share an input, with the buffer for its product."""

    matrix: Matrix  # (rows, columns)
    bias: Floats | None  # (rows,)
    output: Floats  # (T, rows)


@dataclass(frozen=True, eq=False)
class Linear:
    """For each part `output = scale * (matrix input + bias)`, or `output += ...` if `accumulate`."""

    input: Floats  # (T, columns)
    parts: tuple[LinearPart, ...]  # 1 to 4
    scale: float = 1.0
    accumulate: bool = False


@dataclass(frozen=True, eq=False)
class Rope:
    """Rotates each head in place: `(a, b) -> (a cos - b sin, b cos + a sin)`, `a`, `b` its two halves."""

    values: Floats  # (T, heads * W)
    heads: int
    cosine: Floats  # (C, W / 2), row = position
    sine: Floats  # (C, W / 2)


@dataclass(frozen=True, eq=False)
class StoreKv:
    """Writes the keys and values of this run's tokens to the cache, at their positions."""

    keys: Floats  # (T, G * W)
    values: Floats  # (T, G * W)
    key_cache: Cache  # (G, C, W)
    value_cache: Cache  # (G, C, W), of the key cache's kind


@dataclass(frozen=True, eq=False)
class Attention:
    """Causal attention over the cache: token `t` sees positions `0 .. position + t`."""

    query: Floats  # (T, H * W)
    key_cache: Cache  # (G, C, W)
    value_cache: Cache  # (G, C, W)
    scale: float
    output: Floats  # (T, H * W)


@dataclass(frozen=True, eq=False)
class Route:
    """The `K` experts of largest logit (the lower number on a tie), in falling order, and their weights.

    Weights are softmax over all logits; with `renormalise` they are softmax over the chosen `K`.

    With `in_memory` the expert of largest logit is still chosen, and the other `K - 1` by largest score (on a tie
    by larger logit, then the lower number). The score is `logit + bonus * (largest logit - smallest)` where `in_memory`
    is not 0, else the logit; it is computed in float32, without the bonus for a token whose range is not finite. The
    chosen experts are still listed in falling order of their logits, and weighted by their logits, not their scores.
    The caller changes `in_memory` between runs.
    Source of the idea: cache-conditional experts (Skliar et al. 2024, arXiv 2412.00099).
    """

    logits: Floats  # (T, E)
    renormalise: bool
    experts: Integers  # (T, K)
    weights: Floats  # (T, K)
    in_memory: Integers | None = None  # (E,)
    bonus: float = 0.0  # 0 to 1


@dataclass(frozen=True, eq=False)
class GatedFfn:
    """`output = down (silu(gate input) * (up input))`."""

    input: Floats  # (T, D)
    gate_up: Matrix  # (2 * F rounded up to 16, D), gate and up panels interleaved
    down: Matrix  # (D, F)
    output: Floats  # (T, D)


@dataclass(frozen=True)
class ExpertLayout:
    """Where an expert's matrices lie in its record: `gate_up` at 0, `down` at `down_offset`."""

    model_width: int
    ffn_width: int
    gate_up_format: Format
    down_format: Format
    down_offset: int  # bytes, a multiple of 64

    @property
    def gate_up_rows(self) -> int:
        """Rows of `gate_up`: gate's and up's, each rounded up to whole panels."""
        return 2 * PANEL_ROWS * panel_count(self.ffn_width)

    @property
    def gate_up_bytes(self) -> int:
        return self.gate_up_format.matrix_bytes(self.gate_up_rows, self.model_width)

    @property
    def down_bytes(self) -> int:
        return self.down_format.matrix_bytes(self.model_width, self.ffn_width)


class AwaitedReads(Protocol):
    """The part of a reader that an operation needs in order to wait for reads."""

    def done(self, ticket: int) -> bool: ...
    def wait(self, ticket: int, timeout_seconds: float | None = None) -> None: ...
    def release(self, ticket: int) -> None: ...


@dataclass(frozen=True, eq=False)
class Arrivals:
    """Records that may still be on their way into the arena when an operation begins."""

    reader: AwaitedReads
    tickets: Tickets  # (slot count,): ticket of the pending read into each slot, or -1 if the record is in memory
    timeout_seconds: float
    """How long to wait for the next record to arrive."""


@dataclass(frozen=True, eq=False)
class Experts:
    """`output[t, k] = expert experts[t, k] (input[t])` for experts whose `slots[e] >= 0`.

    Output rows of other experts are left unchanged. The caller changes `slots` between runs. Each token's results go
    to rows of their own, so the order in which experts arrive does not affect the result. With `arrivals`, experts
    whose records are in memory are computed first, the others as their reads finish; the ticket of a record that the
    run waited for is released and becomes -1. A run raises ReadError if a read fails or takes too long, and leaves
    the tickets of unused records unchanged.
    """

    input: Floats  # (T, D)
    experts: Integers  # (T, K)
    slots: Integers  # (E,): index of the expert's record in the arena, or -1
    arena: Bytes  # (slot count, slot bytes); slots are 4096-byte aligned
    layout: ExpertLayout
    output: Floats  # (T, K, D)
    arrivals: Arrivals | None = None


@dataclass(frozen=True, eq=False)
class Combine:
    """`residual[t] += scale * (sum_k weights[t, k] * routed[t, k] + sigmoid(shared_gate[t]) * shared[t])`.

    The sum runs in router order. `routed` or `shared` may be None, not both; that term is then absent. Without
    `shared_gate` the factor of `shared` is 1.
    """

    residual: Floats  # (T, D)
    scale: float
    routed: Floats | None  # (T, K, D)
    weights: Floats | None  # (T, K)
    shared: Floats | None  # (T, D)
    shared_gate: Floats | None  # (T, 1)


Operation = Union[Embed, RmsNorm, Linear, Rope, StoreKv, Attention, Route, GatedFfn, Experts, Combine]


@dataclass(frozen=True, eq=False)
class ProgramTimes:
    """Time spent in the runs of a program since timing was switched on."""

    elapsed_ns: int
    """Total of whole runs, measured by the backend: slightly more than the sum over operations."""
    operations_ns: Nanoseconds  # (operations,)
    waited_ns: Nanoseconds  # (operations,)
    """The part of `operations_ns` spent waking worker threads and waiting for them; 0 if it cannot be measured."""
    disk_ns: Nanoseconds  # (operations,)
    """The part of `operations_ns` spent blocked on expert reads."""


class Program(Protocol):
    """A list of operations, bound to buffers and ready to run."""

    def run(self, tokens: int, position: int) -> None:
        """Run every operation in order for `tokens` tokens, the first at `position`."""

    def time_runs(self, on: bool) -> None:
        """Start timing each operation of every run, from zero; or stop timing."""

    def times(self) -> ProgramTimes:
        """Return the times of all runs since `time_runs(True)`."""


@dataclass(frozen=True)
class StepSizes:
    """The largest sizes of any operation of a step; a backend computes its scratch from them before buffers exist.

    Widths and counts of parts that a model lacks (experts, dense or shared FFNs) are 0.
    """

    tokens: int
    context_length: int
    model_width: int
    query_heads: int
    kv_heads: int
    head_width: int
    ffn_width: int
    """The largest width of the dense and shared FFNs."""
    experts: int
    experts_per_token: int
    expert_width: int
    vocabulary: int
    head_tokens: int
    """Tokens whose logits are computed together."""


class Backend(Protocol):
    """One implementation of all operations."""

    name: str
    """`reference`, `jit` or `native`."""
    isa: str
    """The instruction set in use, such as `avx2`; `-` where it does not apply."""
    threads: int
    growth_bytes: int
    """Memory that the backend will still allocate besides buffers and scratch, such as that of a compiler."""

    def step_scratch_bytes(self, sizes: StepSizes) -> int:
        """Return an upper bound on `scratch_bytes` of any program of a step of these sizes."""

    def program(self, operations: Sequence[Operation]) -> Program:
        """Check and bind a list of operations. Raises KernelError for an operation that the backend cannot run."""

    def can_await(self, reader: AwaitedReads) -> bool:
        """Whether `Experts` can await the reads of this reader (`Arrivals`)."""

    def scratch_bytes(self, operations: Sequence[Operation]) -> int:
        """Bytes that `program` will allocate for these operations besides their buffers."""

    def close(self) -> None:
        """Stop the threads and free what the backend holds."""
