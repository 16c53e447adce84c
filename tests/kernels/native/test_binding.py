"""The binding refuses wrong buffers, and its errors name the operation and the buffer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from edgemoe.errors import KernelError
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.kernels import state_operations as so
from edgemoe.kernels.formats import FORMATS, Matrix
from edgemoe.kernels.native import library, structures
from edgemoe.kernels.native.backend import NativeBackend
from tests.kernels.builders import aligned, empty_cache, places, random_ffn, random_matrix
from tests.kernels.test_products import pack_experts
from tests.support.every_case import every_case

TOKENS, WIDTH = 3, 40


@pytest.fixture(scope="module")
def backend() -> Iterator[NativeBackend]:
    made = NativeBackend(2)
    yield made
    made.close()


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def floats(*shape: int) -> op.Floats:
    return aligned(shape, np.float32)


def good_linear() -> op.Linear:
    matrix = random_matrix("q4", 20, WIDTH, np.random.default_rng(0))
    return op.Linear(floats(TOKENS, WIDTH), (op.LinearPart(matrix, floats(20), floats(TOKENS, 20)),))


def with_part(linear: op.Linear, **changes: object) -> op.Linear:
    return replace(linear, parts=(replace(linear.parts[0], **changes),))


def unaligned(matrix: Matrix) -> Matrix:
    memory = aligned((len(matrix.data) + 64,), np.uint8)
    return replace(matrix, data=memory[4 : 4 + len(matrix.data)])


def read_only(array: op.Floats) -> op.Floats:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


LINEAR_FAULTS: dict[str, tuple[Callable[[op.Linear], op.Linear], str]] = {
    "width": (lambda o: replace(o, input=floats(TOKENS, WIDTH + 1)), "parts[0].matrix"),
    "float64": (lambda o: replace(o, input=np.zeros((TOKENS, WIDTH))), "input"),
    "list": (lambda o: replace(o, input=[[0.0] * WIDTH] * TOKENS), "input"),
    "strided": (lambda o: replace(o, input=floats(TOKENS, 2 * WIDTH)[:, ::2]), "input"),
    "fortran": (lambda o: replace(o, input=np.asfortranarray(floats(TOKENS, WIDTH))), "input"),
    "no rows": (lambda o: replace(o, input=floats(0, WIDTH)), "input"),
    "no parts": (lambda o: replace(o, parts=()), "parts"),
    "five parts": (lambda o: replace(o, parts=o.parts * 5), "parts"),
    "bias": (lambda o: with_part(o, bias=floats(19)), "parts[0].bias"),
    "output": (lambda o: with_part(o, output=floats(TOKENS, 19)), "parts[0].output"),
    "read-only output": (lambda o: with_part(o, output=read_only(o.parts[0].output)), "parts[0].output"),
    "short matrix": (
        lambda o: with_part(o, matrix=replace(o.parts[0].matrix, data=o.parts[0].matrix.data[:-64])),
        "parts[0].matrix",
    ),
    "other format": (
        lambda o: with_part(o, matrix=replace(o.parts[0].matrix, format=FORMATS["q8"])),
        "parts[0].matrix",
    ),
    "unaligned matrix": (lambda o: with_part(o, matrix=unaligned(o.parts[0].matrix)), "parts[0].matrix"),
}


@every_case("fault", LINEAR_FAULTS)
def test_a_faulty_linear_is_named(backend: NativeBackend, fault: str) -> None:
    change, buffer = LINEAR_FAULTS[fault]
    good = good_linear()
    backend.program([good]).run(TOKENS)
    with pytest.raises(KernelError) as error:
        backend.program([good, change(good)])
    assert error.value.message.startswith(f"operation 1 (Linear): {buffer}: expected ")
    assert "found" in error.value.message


def test_output_in_the_place_of_its_input_is_refused(backend: NativeBackend, random: np.random.Generator) -> None:
    matrix = random_matrix("f32", WIDTH, WIDTH, random)
    values = floats(TOKENS, WIDTH)
    caches = [floats(1, 1, 64, WIDTH), floats(1, 1, 64, WIDTH)]
    for operation in (
        op.Linear(values, (op.LinearPart(matrix, None, values),)),
        so.Attention(values, *places(TOKENS), *caches, 1.0, values),
        op.GatedFfn(values, *random_ffn("q4", WIDTH, 16, random), values),
    ):
        with pytest.raises(KernelError, match="memory apart from"):
            backend.program([operation])
    backend.program([op.RmsNorm(values, floats(WIDTH), 1e-5, values)]).run(TOKENS)


def test_faulty_experts_are_named(backend: NativeBackend, random: np.random.Generator) -> None:
    slots = np.arange(2, dtype=np.int32)
    arena, layouts = pack_experts([random_ffn("q4", WIDTH, 24, random) for _ in slots], slots)
    chosen = np.zeros((TOKENS, 1), np.int32)
    (layout,) = layouts.layouts
    layout_of = layouts.layout_of.copy()
    good = ex.Experts(floats(TOKENS, WIDTH), chosen, slots, arena, layouts.layouts, layout_of, floats(TOKENS, 1, WIDTH))
    program = backend.program([good])
    program.run(TOKENS)
    faults = {
        "arena": replace(good, arena=arena.reshape(-1)),
        "slots": replace(good, slots=slots.astype(np.int64)),
        "experts": replace(good, experts=chosen.astype(np.uint32)),
        "output": replace(good, output=floats(TOKENS, 2, WIDTH)),
        r"layouts\[0\].down_offset": replace(good, layouts=(replace(layout, down_offset=layout.down_offset - 64),)),
        "slots of at least": replace(good, layouts=(replace(layout, down_offset=arena.shape[1]),)),
        "layout_of: expected uint8": replace(good, layout_of=layout_of.astype(np.int8)),
    }
    for buffer, faulty in faults.items():
        with pytest.raises(KernelError, match=buffer):
            backend.program([faulty])
    for wrong in (-2, 2):
        chosen[1] = wrong
        with pytest.raises(KernelError, match=r"operation 0 \(Experts\).*expert number, its slot"):
            program.run(TOKENS)
    chosen[1], slots[0] = 0, 2
    with pytest.raises(KernelError, match="out of range"):
        program.run(TOKENS)
    slots[0], layout_of[0] = 0, 1
    with pytest.raises(KernelError, match="its layout is out of range"):
        program.run(TOKENS)


def test_an_arena_without_slots_is_fine(backend: NativeBackend, random: np.random.Generator) -> None:
    """A model whose experts are all elsewhere: every slot is -1, and the output is left as it was."""
    full, layouts = pack_experts([random_ffn("q4", WIDTH, 24, random)], np.zeros(1, np.int32))
    empty = np.zeros(full.shape[1] + 1, np.uint8)[1:][:0].reshape(0, full.shape[1])
    output = floats(TOKENS, 1, WIDTH)
    output[:] = 3
    chosen, slots = np.zeros((TOKENS, 1), np.int32), np.full(1, -1, np.int32)
    backend.program([ex.Experts(floats(TOKENS, WIDTH), chosen, slots, empty, *layouts, output)]).run(TOKENS)
    assert (output == 3).all()


def test_faulty_caches_are_named(backend: NativeBackend) -> None:
    shape = (1, 2, 64, 20)
    keys, query = floats(*shape), floats(TOKENS, WIDTH)
    quantised = empty_cache("q8", shape)
    for values, caches in (
        (query, (quantised, keys)),
        (query, (keys, quantised)),
        (query, (quantised, replace(quantised, scales=quantised.scales[..., :0]))),
        (query, (replace(quantised, values=keys), quantised)),
        (floats(TOKENS, 50), (quantised, quantised)),
        (query, (keys, floats(1, 2, 64, 10))),
        (query, (keys, keys.astype(np.float16))),
        (query, (keys.astype(np.float64), keys.astype(np.float64))),
        (floats(TOKENS, 50), (keys, keys.copy())),
    ):
        with pytest.raises(KernelError, match=r"operation 0 \(Attention\)"):
            backend.program([so.Attention(values, *places(TOKENS), *caches, 1.0, np.zeros_like(values))])


def test_faulty_combine_and_route_are_named(backend: NativeBackend) -> None:
    residual = floats(TOKENS, WIDTH)
    routed, weights = floats(TOKENS, 2, WIDTH), floats(TOKENS, 2)
    shared, gate = floats(TOKENS, WIDTH), floats(TOKENS, 1)
    for parts in ((None, None, None, None), (None, weights, shared, None), (routed, weights, None, gate)):
        with pytest.raises(KernelError, match=r"operation 0 \(Combine\)"):
            backend.program([ex.Combine(residual, 1.0, *parts)])
    with pytest.raises(KernelError, match="at most 3 per token"):
        backend.program([ex.Route(floats(TOKENS, 3), True, np.zeros((TOKENS, 4), np.int32), floats(TOKENS, 4))])
    chosen = np.zeros((TOKENS, 2), np.int32)
    for table, bonus, message in (
        (np.zeros(4, np.int32), 0.5, r"slots: expected shape \(3,\)"),
        (np.zeros(3, np.int64), 0.5, "slots: expected int32"),
        (np.zeros(3, np.int32), 1.5, "bonus: expected 0 to 1"),
        (np.zeros(3, np.int32), float("nan"), "bonus: expected 0 to 1"),
    ):
        with pytest.raises(KernelError, match=message):
            backend.program([ex.Route(floats(TOKENS, 3), True, chosen, floats(TOKENS, 2), table, bonus)])


def test_runs_outside_their_buffers_are_refused(backend: NativeBackend, random: np.random.Generator) -> None:
    ids = np.zeros(TOKENS, np.int32)
    table = random_matrix("q8", 10, WIDTH, random)
    tables = floats(8, 10), floats(8, 10)
    values = floats(TOKENS + 2, WIDTH)
    positions = np.arange(8 - TOKENS, 8, dtype=np.int32)
    program = backend.program([op.Embed(ids, table, 1.0, values), op.Rope(values, 2, positions, *tables)])
    program.run(TOKENS)
    for tokens in (0, -1, TOKENS + 1):
        with pytest.raises(KernelError, match=f"buffers hold 1 to {TOKENS}"):
            program.run(tokens)
    for wrong in (8, 2**31 - 1, -1):
        positions[1] = wrong
        with pytest.raises(
            KernelError, match=r"operation 1 \(Rope\): a row's position, sequence or page does not exist"
        ):
            program.run(TOKENS)
    positions[1] = 0
    for wrong in (10, -1):
        ids[TOKENS - 1] = wrong
        with pytest.raises(KernelError, match=r"operation 0 \(Embed\): a token id is outside"):
            program.run(TOKENS)
    program.run(TOKENS - 1)


def test_an_unknown_operation_is_refused(backend: NativeBackend) -> None:
    with pytest.raises(KernelError, match=r"operation 0 \(int\)"):
        backend.program([3])  # type: ignore[list-item]


def test_programs_keep_their_buffers_and_share_scratch(backend: NativeBackend, random: np.random.Generator) -> None:
    """A small program made before a large one, whose scratch replaces the shared one, still runs right."""
    small = good_linear()
    values = random.standard_normal((TOKENS, WIDTH)).astype(np.float32)
    small.input[:] = values
    program = backend.program([small])
    program.run(TOKENS)
    expected, output = small.parts[0].output.copy(), small.parts[0].output
    del small
    wide = random_matrix("q4", 16, 4096, random)
    large = op.Linear(floats(500, 4096), (op.LinearPart(wide, None, floats(500, 16)),))
    assert backend.scratch_bytes([large]) > 500 * 4096
    backend.program([large]).run(500)
    output[:] = 0
    program.run(TOKENS)
    assert np.array_equal(output, expected)


def test_a_closed_backend_says_so() -> None:
    backend = NativeBackend(2)
    program = backend.program([good_linear()])
    backend.close()
    backend.close()
    with pytest.raises(KernelError, match="closed"):
        program.run(TOKENS)
    with pytest.raises(KernelError, match="closed"):
        backend.program([good_linear()])


def test_impossible_backends_are_refused() -> None:
    with pytest.raises(KernelError, match=r"mmx.*generic"):
        NativeBackend(1, "mmx")
    for threads in (0, 257):
        with pytest.raises(KernelError, match=f"{threads} threads"):
            NativeBackend(threads)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told(backend: NativeBackend) -> None:
    program = backend.program([good_linear()])
    child = os.fork()
    if child == 0:
        try:
            program.run(TOKENS)
        except KernelError as error:
            os._exit(0 if "fork" in error.message else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structures, "ABI_VERSION", structures.ABI_VERSION + 1)
    with pytest.raises(KernelError, match="interface version") as error:
        library.load_library.__wrapped__()
    assert "EDGEMOE_KERNELS=jit" in error.value.hint


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "FILE_NAME", "libnowhere.so")
    with pytest.raises(KernelError, match=r"libnowhere\.so"):
        library.load_library.__wrapped__()


def test_memory_is_read_to_the_last_line(backend: NativeBackend, random: np.random.Generator) -> None:
    memory = aligned(((1 << 20) + 192,), np.uint8)
    memory[:] = random.integers(0, 256, memory.size, np.uint8)
    elapsed_ns, total = backend.read_memory(memory)
    assert elapsed_ns > 0
    assert total == int(memory.view(np.uint64)[::8].sum())
    for wrong in (memory[:100], memory[8:72]):
        with pytest.raises(KernelError, match="out of range"):
            backend.read_memory(wrong)
