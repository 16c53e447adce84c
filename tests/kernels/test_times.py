"""Programs that are timed: each operation once, in every backend, and nothing when nobody asks."""

from __future__ import annotations

import pytest

from edgemoe.kernels.backend import Backend
from tests.kernels.conftest import make_backend
from tests.kernels.test_runs import TinyLayer

TOKENS = 5


def test_every_operation_is_timed(lone_backend: Backend) -> None:
    layer = TinyLayer("q4", TOKENS, 0)
    program = lone_backend.program(layer.operations)
    program.run(TOKENS)
    untimed = program.times()
    assert untimed.elapsed_ns == untimed.operations_ns.sum() == untimed.waited_ns.sum() == 0
    program.time_runs(True)
    before = 0
    for _ in range(2):
        program.run(TOKENS)
        times = program.times()
        assert len(times.operations_ns) == len(times.waited_ns) == len(layer.operations)
        assert (times.operations_ns > 0).all()
        assert (times.waited_ns <= times.operations_ns).all()
        assert before < times.operations_ns.sum() <= times.elapsed_ns
        before = times.elapsed_ns
    assert (untimed.operations_ns == 0).all()  # a reading stays what it was
    program.time_runs(False)
    program.run(TOKENS)
    assert program.times().elapsed_ns == 0


@pytest.mark.parametrize(("threads", "waits"), [("", False), (" 3 threads", True)])
def test_native_programs_tell_waiting_from_work(threads: str, waits: bool) -> None:
    backend = make_backend("native generic" + threads)
    layer = TinyLayer("q4", 40, 0)
    program = backend.program(layer.operations)
    program.time_runs(True)
    program.run(40)
    assert (program.times().waited_ns.sum() > 0) == waits
    backend.close()
