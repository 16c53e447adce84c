"""Threads and instruction sets change no bit, and runs from several Python threads do not mix."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from edgemoe.errors import KernelError
from edgemoe.kernels import operations as op
from edgemoe.kernels import state_operations as so
from edgemoe.kernels.formats import FORMATS
from edgemoe.kernels.native.backend import NativeBackend
from edgemoe.kernels.native.library import available_isas
from edgemoe.kernels.operations import PAGE_TOKENS
from tests.kernels.builders import CACHE_FORMATS, aligned, empty_cache, fill_cache, numbers, places, random_matrix
from tests.kernels.test_runs import TinyLayer, assert_same_bits, run_layer
from tests.support.pairs import some

TOKENS = np.arange(37, dtype=np.int32)


@pytest.mark.parametrize("format_name", some(FORMATS))
def test_threads_and_isas_change_no_bit(format_name: str) -> None:
    expected = None
    for number, isa in enumerate(available_isas()):
        for threads in (1, 2, 3, 7) if number == 0 else (1, 3):
            backend = NativeBackend(threads, isa)
            found = run_layer(backend, format_name, 11, TOKENS, [36])
            backend.close()
            expected = expected or found
            assert_same_bits(found, expected)
    assert expected is not None
    assert np.isfinite(expected["residual"]).all()


@pytest.mark.parametrize("format_name", some(FORMATS))
def test_rows_of_many_groups_have_the_same_bits_in_company_and_alone(format_name: str) -> None:
    """There are more groups, rows and panels than kernels take at a time, and an odd number of each is left."""
    random = np.random.default_rng(3)
    tokens, rows, columns = 37, 16 * 18 + 3, 32 * 33 + 1
    matrix = random_matrix(format_name, rows, columns, random)
    values = numbers("normal", (tokens, columns), random)
    expected = None
    for isa in available_isas():
        for threads in (1, 3):
            backend = NativeBackend(threads, isa)
            for at_once, until in ((tokens, tokens), (2, 11), (1, 5)):
                source, output = aligned((at_once, columns), np.float32), aligned((at_once, rows), np.float32)
                program = backend.program([op.Linear(source, (op.LinearPart(matrix, None, output),))])
                parts = []
                for first in range(0, until, at_once):
                    now = min(at_once, until - first)
                    source[:now] = values[first : first + now]
                    program.run(now)
                    parts.append(output[:now].copy())
                found = np.concatenate(parts)
                expected = found if expected is None else expected
                np.testing.assert_array_equal(found, expected[:until])
            backend.close()
    assert expected is not None
    assert np.isfinite(expected).all()


@pytest.mark.parametrize(
    ("group", "width", "value_width"), [(1, 256, 40), (3, 264, 40), (4, 40, 264), (7, 24, 24), (33, 8, 31)]
)
@pytest.mark.parametrize("format_name", CACHE_FORMATS)
def test_attention_has_the_same_bits_in_company_and_alone(
    format_name: str, group: int, width: int, value_width: int
) -> None:
    """Heads are narrow enough to be copied or too wide, and a tile holds rows of all heads of a group or of some."""
    random = np.random.default_rng(group)
    tokens, heads = 21, 2 * group
    query = numbers("normal", (tokens, heads * width), random)
    where = places(tokens, 90)
    caches = []
    for own_width in (width, value_width):
        elements = random.standard_normal((where.pages.size, 2, PAGE_TOKENS, own_width))
        caches.append(empty_cache(format_name, elements.shape))
        fill_cache(caches[-1], elements)
    expected: dict[int, np.ndarray] = {}
    for isa in available_isas():
        for threads, at_once in ((1, 1), (3, tokens)):
            backend = NativeBackend(threads, isa)
            for window in (0, 50):
                source, output = (aligned((at_once, heads * each), np.float32) for each in (width, value_width))
                positions, sequences = (aligned((at_once,), np.int32) for _ in range(2))
                rows = positions, sequences, where.pages
                program = backend.program([so.Attention(source, *rows, *caches, width**-0.5, output, window)])
                found = []
                for first in range(0, tokens, at_once):
                    here = slice(first, first + at_once)
                    source[:], positions[:] = query[here], where.positions[here]
                    program.run(at_once)
                    found.append(output.copy())
                np.testing.assert_array_equal(np.concatenate(found), expected.setdefault(window, np.concatenate(found)))
            backend.close()
    assert all(np.isfinite(one).all() for one in expected.values())


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
