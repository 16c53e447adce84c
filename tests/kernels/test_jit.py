"""Tests for the jit backend only: when it is imported, where it may write, and the bits of its numbers."""

from __future__ import annotations

import errno
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given

from edgemoe.errors import KernelError
from edgemoe.kernels.formats import GROUP_COLUMNS, group_count
from edgemoe.kernels.jit import JitBackend, products
from edgemoe.kernels.jit import numbers as jit_numbers
from edgemoe.kernels.jit.compile import jit, report_compilation
from edgemoe.kernels.reference.products import quantise_activations
from tests.kernels.builders import column_counts, few_examples, kinds, numbers, random_matrix, seeds, token_counts
from tests.support.homes import without_home


def test_numba_and_what_a_device_needs_are_imported_only_where_asked_for() -> None:
    code = """
import sys
import edgemoe.kernels.formats, edgemoe.kernels.operations, edgemoe.kernels.reference, edgemoe.kernels.select
import edgemoe.kernels.native.backend, edgemoe.quant.quantise
print([name for name in ("numba", "edgemoe.kernels.jit", "edgemoe.kernels.device") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_without_numba_one_error_says_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)  # an import of it then fails as where it is not installed
    monkeypatch.delitem(sys.modules, "edgemoe.kernels.jit.compile")
    with pytest.raises(KernelError, match=r"Numba cannot be imported .*quantising weights") as told:
        importlib.import_module("edgemoe.kernels.jit.compile")
    assert "musl" in told.value.hint


def test_it_compiles_where_no_machine_code_can_be_kept() -> None:
    # Numba refuses to keep code of a function without a file in the same way as one beside which it cannot write.
    namespace: dict[str, Any] = {}
    exec("def double(number):\n    return 2 * number", namespace)
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(namespace["double"])
    assert jit(namespace["double"])(21) == 42


def test_no_folder_is_made_for_a_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba takes its cache from `os.path.expanduser("~/.cache")`, which leaves an unknown home as it is."""
    without_home(monkeypatch)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("numba.config.CACHE_DIR", "")
    (tmp_path / "module.py").write_text("def double(number):\n    return 2 * number\n")
    namespace: dict[str, Any] = {}
    exec(compile((tmp_path / "module.py").read_text(), tmp_path / "module.py", "exec"), namespace)

    def refused(*arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "as of a package that belongs to another user")

    monkeypatch.setattr("os.access", lambda path, mode: False)
    monkeypatch.setattr("numba.core.caching.tempfile.TemporaryFile", refused)
    assert jit(namespace["double"])(21) == 42
    assert [path.name for path in tmp_path.iterdir()] == ["module.py"]


@pytest.mark.slow  # within one process `test_kept_code_that_is_damaged_or_cannot_be_kept_is_compiled_again` shows it
def test_compiling_is_told_once_but_not_code_that_was_kept(tmp_path: Path) -> None:
    module = tmp_path / "kernels.py"
    module.write_text(
        "from edgemoe.kernels.jit.compile import report_compilation, jit\n\n\n"
        "@jit\ndef double(number):\n    return 2 * number\n\n\n"
        "with report_compilation(lambda kept: print('compiling', kept)):\n    print(double(21), double(0.5))\n"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    outputs = []
    for _ in range(2):
        command = [sys.executable, str(module)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        outputs.append(done.stdout + done.stderr)
    assert outputs == ["compiling True\n42 1.0\n", "42 1.0\n"]


@pytest.mark.slow
def test_what_calls_code_of_another_file_follows_its_changes(tmp_path: Path) -> None:
    callee, caller = tmp_path / "callee.py", tmp_path / "caller.py"
    caller.write_text(
        "import callee\nfrom edgemoe.kernels.jit.compile import report_compilation, jit, jit_calling\n\n"
        "changed = jit(callee.changed)\n\n\n"
        "@jit_calling(callee.__file__)\ndef twice(number):\n    return changed(changed(number))\n\n\n"
        "with report_compilation(lambda kept: print('compiling', kept)):\n    print(twice(5))\n"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    outputs = []
    for text in ("number + 1", "number + 1", "number * 10"):
        source = f"def changed(number):\n    return {text}\n"
        if not callee.exists() or callee.read_text() != source:
            callee.write_text(source)
        command = [sys.executable, str(caller)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        outputs.append(done.stdout + done.stderr)
    assert outputs == ["compiling True\n7\n", "7\n", "compiling True\n500\n"]


def test_kept_code_that_is_damaged_or_cannot_be_kept_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kept_kernels.py").write_text(
        "from edgemoe.kernels.jit.compile import jit\n\n\ndef double(number):\n    return 2 * number\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path / "cache"))
    from kept_kernels import double

    def told() -> list[bool]:
        kept: list[bool] = []
        with report_compilation(kept.append):
            assert jit(double)(21) == 42
        return kept

    assert told() == [True]
    assert told() == []
    for cut_bytes in (0, 20):
        for kind in ("*.nbi", "*.nbc"):
            for path in (tmp_path / "cache").rglob(kind):
                path.write_bytes(path.read_bytes()[:cut_bytes])
            assert told() == [True]
            assert told() == []

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", full)
    for path in (tmp_path / "cache").rglob("*.nb?"):
        path.unlink()
    assert told() == told() == [True]


def test_compiling_for_this_process_alone_is_told_as_such() -> None:
    namespace: dict[str, Any] = {}
    exec("def double(number):\n    return 2 * number", namespace)
    told: list[bool] = []
    with report_compilation(told.append):
        assert jit(namespace["double"])(21) == 42
    assert told == [False]


@jit
def _convert(bits: np.ndarray, floats: np.ndarray) -> None:
    for i in range(len(bits)):
        floats[i] = jit_numbers.half_to_float(bits[i])


def test_every_half_becomes_the_float_it_is() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    found = np.empty(1 << 16, np.float32)
    _convert(bits, found)
    expected = bits.view(np.float16).astype(np.float32)
    nan = np.isnan(expected)
    assert np.isnan(found[nan]).all()
    assert np.array_equal(found[~nan].view(np.uint32), expected[~nan].view(np.uint32))


def test_every_scale_of_m4_is_halved_to_the_float_it_is() -> None:
    found = np.array([jit_numbers.halved_scale(np.uint8(e)) for e in range(255)], np.float64)
    assert np.array_equal(found, 2.0 ** (np.arange(255) - 128.0))


@jit
def _convert_back(floats: np.ndarray, bits: np.ndarray) -> None:
    for i in range(len(floats)):
        bits[i] = jit_numbers.float_to_half(floats[i])


def test_every_float_becomes_the_nearest_half() -> None:
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (halves[:-1] + halves[1:]) / 2
    beside = [np.nextafter(between, np.float32(direction)) for direction in (0, np.inf)]
    edges = np.array([65519.99, 65520.0, 65536.0, 1e30, np.inf, 1e-40, 2.0**-25, np.nan], np.float32)
    magnitudes = np.concatenate([halves, between, *beside, edges])
    values = np.concatenate([magnitudes, -magnitudes[:-1]])
    found = np.empty(len(values), np.uint16)
    _convert_back(values, found)
    with np.errstate(over="ignore"):
        assert np.array_equal(found, values.astype(np.float16).view(np.uint16))


@few_examples
@given(column_counts, token_counts, kinds, seeds)
def test_activations_become_the_reference_s_int8(columns: int, tokens: int, kind: str, seed: int) -> None:
    values = numbers(kind, (tokens, columns), np.random.default_rng(seed))
    groups = group_count(columns)
    integers = np.full((tokens, groups * GROUP_COLUMNS), 99, np.int32)
    scales, sums = np.empty((tokens, groups), np.float32), np.empty((tokens, groups, 2), np.int32)
    products.quantise_activations(values, integers, scales, sums)
    expected_integers, expected_scales = quantise_activations(values)
    assert np.array_equal(integers.reshape(expected_integers.shape), expected_integers)
    assert np.array_equal(scales, expected_scales)
    halves = expected_integers.reshape(tokens, groups, 2, GROUP_COLUMNS // 2)
    assert np.array_equal(sums, halves.sum(axis=3, dtype=np.int32))


def test_a_closed_backend_gives_the_same_bits_without_its_threads() -> None:
    random = np.random.default_rng(8)
    matrix, values = random_matrix("q4", 100, 64, random), numbers("normal", (3, 64), random)
    backend = JitBackend(2)
    before = backend.matmul(values, matrix)
    backend.close()
    backend.close()
    assert backend.matmul(values, matrix).tobytes() == before.tobytes()
