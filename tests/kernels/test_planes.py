"""Experts of two planes: the base that all have in RAM, and the residual in their records."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from edgemoe.errors import KernelError
from edgemoe.experts.cache import ExpertCache
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.formats import Matrix, panel_count
from edgemoe.kernels.native.backend import NativeBackend
from edgemoe.kernels.native.pager import NativePager
from edgemoe.kernels.paging import DECODE, PROMPT
from edgemoe.kernels.reference.backend import ReferenceBackend
from tests.kernels.builders import aligned, aligned_copy, numbers, random_ffn, random_plain_ffn
from tests.kernels.test_paging import EXPERTS, LAYERS, USED, Setting, draw, native_cache, python_cache
from tests.kernels.test_products import Ffn, pack_experts
from tests.support.every_case import every_case
from tests.support.paired_caches import SteppedSource
from tests.support.slow_reader import SteppedReader

WIDTH, FFN_WIDTH = 40, 24
PLAIN, GATED = op.RELU, op.SILU


def stacked(ffns: list[Ffn]) -> ex.ExpertBases:
    """The bases of experts, one after the other."""

    def whole(matrices: list[Matrix]) -> Matrix:
        data = np.concatenate(
            [matrices[0].data[: matrices[0].format.head_bytes], *(m.panels.reshape(-1) for m in matrices)]
        )
        rows = 16 * sum(panel_count(matrix.rows) for matrix in matrices)
        return Matrix(aligned_copy(data), matrices[0].format, rows, matrices[0].columns)

    return ex.ExpertBases(whole([first for first, *_ in ffns]), whole([down for _, down, *_ in ffns]))


def zeros(ffn: Ffn) -> Ffn:
    """The FFN with weights of 0: only the tables of a trellis stay."""
    made = []
    for matrix in ffn[:2]:
        data = matrix.data.copy()
        data[matrix.format.head_bytes :] = 0
        made.append(Matrix(aligned_copy(data), matrix.format, matrix.rows, matrix.columns))
    return made[0], made[1]


@every_case(("base", "residual"), [("q4", "q8"), ("n1", "n3"), ("n075", "q3k")])
@pytest.mark.parametrize("activation", [GATED, PLAIN], ids=["gated", "plain"])
def test_both_planes_are_summed(backend: Backend, base: str, residual: str, activation: op.Activation) -> None:
    """Beside weights of 0 each plane gives what it gives alone, bit for bit; both give what the reference's give."""
    random = np.random.default_rng(1)
    make, tokens = random_ffn if activation.gated else random_plain_ffn, 3
    lower = [make(base, WIDTH, FFN_WIDTH, random) for _ in range(3)]
    upper = [make(residual, WIDTH, FFN_WIDTH, random) for _ in range(3)]
    values = numbers("normal", (tokens, WIDTH), random)
    chosen = aligned_copy(np.array([random.permutation(3)[:2] for _ in range(tokens)], np.int32))

    def run(by: Backend, below: list[Ffn] | None, records: list[Ffn]) -> np.ndarray:
        slots, output = aligned_copy(np.arange(3, dtype=np.int32)), aligned((tokens, 2, WIDTH), np.float32)
        arena, layouts = pack_experts(records, slots)
        bases = None if below is None else stacked(below)
        by.program([ex.Experts(values, chosen, slots, arena, *layouts, output, None, activation, bases)]).run(tokens)
        return output

    np.testing.assert_array_equal(run(backend, lower, list(map(zeros, upper))), run(backend, None, lower))
    np.testing.assert_array_equal(run(backend, list(map(zeros, lower)), upper), run(backend, None, upper))
    expected = run(ReferenceBackend(), lower, upper)
    np.testing.assert_allclose(run(backend, lower, upper), expected, rtol=0, atol=0.02 * np.abs(expected).max())


def test_planes_that_do_not_fit_are_refused(backend: Backend) -> None:
    random = np.random.default_rng(2)
    ffns = [random_ffn("q4", WIDTH, FFN_WIDTH, random) for _ in range(2)]
    slots, values = aligned_copy(np.arange(2, dtype=np.int32)), numbers("normal", (1, WIDTH), random)
    arena, layouts = pack_experts(ffns, slots)
    chosen, output = aligned_copy(np.array([[0]], np.int32)), aligned((1, 1, WIDTH), np.float32)
    floats = random_ffn("f16", WIDTH, FFN_WIDTH, random)
    for bases, message in (
        (stacked(ffns[:1]), "128 rows"),
        (stacked([floats, floats]), "quantised planes"),
        (stacked([random_ffn("q4", WIDTH, 2 * FFN_WIDTH, random) for _ in range(2)]), "rows"),
    ):
        operation = ex.Experts(values, chosen, slots, arena, *layouts, output, None, GATED, bases)
        with pytest.raises(KernelError, match=message):
            backend.program([operation]).run(1)


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    random = np.random.default_rng(3)
    order = aligned_copy(np.arange(LAYERS * EXPERTS, dtype=np.int32))
    disk, layouts = pack_experts([random_ffn("q8", WIDTH, FFN_WIDTH, random) for _ in order], order)
    return Setting(layouts, disk, os.open(os.devnull, os.O_RDONLY), numbers("normal", (5, WIDTH), random))


@pytest.mark.parametrize("slots", [1, 4, 12])
def test_experts_that_are_missed_are_computed_from_their_bases_and_read_behind(setting: Setting, slots: int) -> None:
    """Kernels in C with the pager in C do as those in Python; a prompt waits for records, a token takes bases."""
    random = np.random.default_rng(slots)
    bases = [[random_ffn("q4", WIDTH, FFN_WIDTH, random) for _ in range(EXPERTS)] for _ in range(LAYERS)]
    arenas = [aligned((slots, setting.disk.shape[1]), np.uint8) for _ in range(2)]
    readers = [SteppedReader(arena, setting.disk.reshape(-1), set()) for arena in arenas]
    source = SteppedSource(readers[1])
    caches: tuple[ExpertCache, NativePager] = (
        python_cache(setting, arenas[0], readers[0]),
        native_cache(setting, arenas[1], source),
    )
    for reader in readers:
        reader.ends_all = True
    experts, outputs, programs = [], [], []
    for backend, cache, arena in zip((ReferenceBackend(), NativeBackend(1)), caches, arenas, strict=True):
        own = [aligned((5, USED), np.int32) for _ in range(LAYERS)]
        out = [aligned((5, USED, WIDTH), np.float32) for _ in range(LAYERS)]
        operations: list[op.Operation] = []
        for layer in range(LAYERS):
            here, slot_of = ex.Paged(cache, layer), cache.residency[layer]
            planes = stacked(bases[layer])
            operations += [
                ex.Fetch(own[layer], None, 0.0, here, from_base=True),
                ex.Experts(
                    *(setting.values, own[layer], slot_of, arena, *setting.layouts_of(layer), out[layer], here),
                    bases=planes,
                ),
            ]
        experts.append(own)
        outputs.append(out)
        programs.append(backend.program(operations))
    alone = 0
    for step in range(16):
        tokens, phase = (5, PROMPT) if step % 8 == 0 else (1 + step % 2, DECODE)
        chosen = [draw(random, tokens) for _ in range(LAYERS)]
        before = [cache.statistics.from_base for cache in caches]
        loaded = [cache.all_loaded() for cache in caches]
        for own, program, cache in zip(experts, programs, caches, strict=True):
            cache.phase = phase
            for layer in range(LAYERS):
                own[layer][:tokens] = chosen[layer]
            program.run(tokens)
        assert not source.errors, source.errors
        np.testing.assert_array_equal(caches[0].residency, caches[1].residency)
        np.testing.assert_array_equal(caches[0].statistics.counts, caches[1].statistics.counts)
        np.testing.assert_array_equal(caches[0].all_loaded(), caches[1].all_loaded())
        for layer in range(LAYERS):
            pair = [out[layer][:tokens] for out in outputs]
            np.testing.assert_allclose(*pair, rtol=0, atol=0.02 * np.abs(pair[0]).max())
        if phase == PROMPT:
            assert [cache.statistics.from_base for cache in caches] == before
        else:
            missed = [e for e in set(chosen[0].reshape(-1).tolist()) - {-1} if not loaded[0][0, e]]
            for expert in missed:
                rows, ranks = np.nonzero(chosen[0] == expert)
                first, down = bases[0][expert]
                expected = ReferenceBackend().gated_ffn(setting.values[rows], first, down)
                found = outputs[1][0][rows, ranks]
                np.testing.assert_allclose(found, expected, rtol=0, atol=0.02 * np.abs(expected).max())
                alone += 1
        if step % 3 == 0:
            for reader in readers:
                reader.choose = lambda tickets: tickets[: slots // 2 + 1]
                reader.finish_some()
    assert alone > 10
    assert caches[1].statistics.from_base < caches[1].statistics.misses
    os.close(setting.file)
