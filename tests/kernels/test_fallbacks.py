"""An operation that a backend has no kernel for runs as the reference does, within the same program."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pytest

from edgemoe.errors import KernelError
from edgemoe.kernels import operations as op
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.marks import OUTPUT, rows
from edgemoe.kernels.native.backend import NativeBackend, NativeProgram
from edgemoe.kernels.stepwise import MEANINGS, means
from tests.kernels.builders import aligned, numbers
from tests.kernels.planned import planned
from tests.kernels.test_runs import TinyLayer

TOKENS, WIDTH = 4, 24


@dataclass(frozen=True, eq=False)
class Doubled(op.Operation):
    """`output = 2 * input`: all that is written for a new operation, but its kernels."""

    input: Annotated[op.Floats, rows("D")]
    output: Annotated[op.Floats, rows("D"), OUTPUT]


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    @means(Doubled)
    def step(kernels: Any, o: Doubled, tokens: int) -> None:
        o.output[:tokens] = 2 * o.input[:tokens]

    yield
    del MEANINGS[Doubled]


def floats(*shape: int) -> op.Floats:
    return aligned(shape, np.float32)


class Chain:
    """Norm, doubling, norm, doubling twice, norm: each from the buffer of the one before."""

    def __init__(self, rows: int = TOKENS) -> None:
        random = np.random.default_rng(0)
        self.buffers = [numbers("normal", (TOKENS, WIDTH), random)] + [floats(TOKENS, WIDTH) for _ in range(6)]
        self.buffers[2] = self.buffers[2][:rows]
        weights = [numbers("normal", (WIDTH,), random) for _ in range(6)]
        kinds = (op.RmsNorm, Doubled, op.RmsNorm, Doubled, Doubled, op.RmsNorm)
        self.operations: list[op.Operation] = [
            Doubled(source, target) if kind is Doubled else op.RmsNorm(source, weight, 1e-5, target)
            for kind, source, target, weight in zip(kinds, self.buffers, self.buffers[1:], weights, strict=False)
        ]


def test_what_has_no_kernel_runs_as_the_reference_does(any_backend: Backend) -> None:
    together, apart = Chain(), Chain()
    any_backend.program(together.operations).run(TOKENS)
    for operation in apart.operations:
        if isinstance(operation, Doubled):
            operation.output[:] = operation.input + operation.input
        else:
            any_backend.program([operation]).run(TOKENS)
    assert [b.tobytes() for b in together.buffers] == [b.tobytes() for b in apart.buffers]
    assert together.buffers[-1].any()


OF_THE_REFERENCE = (
    "BalanceStreams",
    "BatchNorm",
    "CollapseStreams",
    "Collect",
    "Compress",
    "CompressedAttention",
    "Dispatch",
    "Entmax",
    "JoinStreams",
    "LeastWeight",
    "LevelRoute",
    "Neurons",
    "PairProducts",
    "RetrieveByKeys",
    "SlotLogits",
    "StoreBlockKeys",
    "TableRoute",
    "TreeFfn",
)
"""Operations that Numba does not compile: those of DeepSeek-V4 and of PEER, which are far too large for that backend,
keys of blocks, of which there is one for several tokens, those of mixtures, which NumPy computes for all rows at once,
and trees and levels of routers, whose reference reads few rows."""


def test_backends_say_what_they_have_no_kernel_for(any_backend: Backend) -> None:
    of_jit = OF_THE_REFERENCE if any_backend.name == "jit" else ()
    assert any_backend.fallbacks == (() if any_backend.name == "reference" else tuple(sorted((*of_jit, "Doubled"))))


def test_every_operation_of_a_mixed_program_is_timed(any_backend: Backend) -> None:
    chain = Chain()
    program = any_backend.program(chain.operations)
    program.time_runs(True)
    program.run(TOKENS)
    times = program.times()
    assert len(times.operations_ns) == len(times.waited_ns) == len(times.disk_ns) == len(chain.operations)
    assert (times.operations_ns > 0).all()
    assert times.operations_ns.sum() <= times.elapsed_ns
    program.time_runs(False)
    program.run(TOKENS)
    assert program.times().elapsed_ns == 0


def test_a_run_that_does_not_fit_all_begins_none(any_backend: Backend) -> None:
    """The second operation has room for fewer rows than the first, which has a kernel."""
    chain = Chain(rows=TOKENS - 1)
    program = any_backend.program(chain.operations)
    for tokens in (TOKENS, 0, -1):
        with pytest.raises(KernelError):
            program.run(tokens)
    assert not chain.buffers[1].any()
    program.run(TOKENS - 1)
    assert chain.buffers[1].any()


def test_errors_count_the_operations_of_the_whole_list(any_backend: Backend) -> None:
    chain = Chain()
    ids = np.zeros(TOKENS, np.int32)
    broken = [*chain.operations, Doubled(floats(TOKENS, 3), floats(TOKENS, 4))]
    with pytest.raises(KernelError, match=r"operation 6 \(Doubled\): output: expected shape \(T, 3\)"):
        any_backend.program(broken)
    embed = TinyLayer("q4", TOKENS, 0).operations[0]
    assert isinstance(embed, op.Embed)
    program = any_backend.program([*chain.operations, op.Embed(ids, embed.matrix, 1.0, embed.output)])
    ids[0] = 10_000
    if any_backend.name == "native":
        with pytest.raises(KernelError, match=r"operation 6 \(Embed\): a token id"):
            program.run(TOKENS)
        strided = op.RmsNorm(floats(TOKENS, 2 * WIDTH)[:, ::2], floats(WIDTH), 1e-5, floats(TOKENS, WIDTH))
        with pytest.raises(KernelError, match=r"operation 6 \(RmsNorm\): input: expected a C-contiguous"):
            any_backend.program([*chain.operations, strided])
    with pytest.raises(KernelError, match=r"operation 6 \(str\): no backend knows"):
        any_backend.program([*chain.operations, "attention"])  # type: ignore[list-item]


def test_scratch_is_that_of_both(any_backend: Backend) -> None:
    layer = TinyLayer("q4", 40, 0)
    wide = Doubled(floats(40, 5000), floats(40, 5000))
    alone = any_backend.scratch_bytes(layer.operations)
    both = any_backend.scratch_bytes([planned(o) for o in [*layer.operations, wide]])
    temporaries = 5 * 8 * 40 * 5000  # of the reference, as `@means` has them where nothing else is said
    assert both >= temporaries + (alone if any_backend.name == "native" else 0)


def test_programs_without_fallbacks_are_one_call() -> None:
    backend = NativeBackend(1)
    assert isinstance(backend.program(TinyLayer("q4", 4, 0).operations), NativeProgram)
    assert not isinstance(backend.program(Chain().operations), NativeProgram)
    backend.close()
