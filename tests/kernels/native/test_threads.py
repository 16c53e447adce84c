"""Threads and instruction sets change no bit, and runs from several Python threads do not mix."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from edgemoe.errors import KernelError
from edgemoe.kernels.formats import FORMATS
from edgemoe.kernels.native.backend import NativeBackend
from edgemoe.kernels.native.library import available_isas
from tests.kernels.test_runs import TinyLayer, assert_same_bits, run_layer

TOKENS = np.arange(37, dtype=np.int32)


@pytest.mark.parametrize("format_name", FORMATS)
def test_threads_and_isas_change_no_bit(format_name: str) -> None:
    expected = None
    for isa in available_isas():
        for threads in (1, 2, 3, 7):
            backend = NativeBackend(threads, isa)
            found = run_layer(backend, format_name, 11, TOKENS, [36])
            backend.close()
            expected = expected or found
            assert_same_bits(found, expected)
    assert expected is not None
    assert np.isfinite(expected["residual"]).all()


def test_the_best_isa_is_the_default() -> None:
    backend = NativeBackend(1)
    assert backend.isa == available_isas()[0]
    assert available_isas()[-1] == "generic"
    backend.close()


def test_backends_run_side_by_side() -> None:
    """Each with its pool and scratch, from Python threads of their own."""
    backends = [NativeBackend(2) for _ in range(3)]
    expected = run_layer(backends[0], "q4", 5, TOKENS, [])
    found: dict[int, list[dict[str, np.ndarray]]] = {}

    def work(number: int) -> None:
        found[number] = [run_layer(backends[number], "q4", 5, TOKENS, []) for _ in range(5)]

    workers = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for backend in backends:
        backend.close()
    assert sorted(found) == [0, 1, 2]
    for results in found.values():
        for result in results:
            assert_same_bits(result, expected)


def test_one_backend_takes_one_run_at_a_time() -> None:
    """With two threads on one backend each run is either right or refused as busy, never wrong."""
    backend = NativeBackend(2)
    layers = [TinyLayer("q8", len(TOKENS), 6) for _ in range(2)]
    programs = [backend.program(layer.operations) for layer in layers]
    for layer in layers:
        layer.ids[:] = TOKENS
    programs[0].run(len(TOKENS))
    expected = layers[0].residual.copy()
    outcomes: list[str] = []

    def work(number: int) -> None:
        for _ in range(30):
            try:
                programs[number].run(len(TOKENS))
            except KernelError as error:
                outcomes.append(error.message)
            else:
                outcomes.append("right" if np.array_equal(layers[number].residual, expected) else "wrong")

    workers = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    backend.close()
    assert len(outcomes) == 60
    assert "right" in outcomes
    assert all(outcome == "right" or "already in use" in outcome for outcome in outcomes)
