"""The choice of a backend: the environment may lower it, and wrong values are named."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest

from edgemoe.errors import KernelError, UsageError
from edgemoe.kernels import select
from edgemoe.kernels.native import library
from edgemoe.process import Limit, control_groups
from tests.support.every_case import every_case


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(select.KERNELS_VARIABLE, raising=False)
    monkeypatch.delenv(select.ISA_VARIABLE, raising=False)


@pytest.mark.parametrize("kernels", select.BACKENDS)
def test_the_environment_chooses_a_backend(monkeypatch: pytest.MonkeyPatch, kernels: str) -> None:
    monkeypatch.setenv(select.KERNELS_VARIABLE, kernels)
    choice = select.describe_backend(2)
    backend = select.select_backend(2)
    assert (choice.backend, choice.isa) == (backend.name, backend.isa) == (kernels, backend.isa)
    assert choice.threads == backend.threads == (1 if kernels == "reference" else 2)
    backend.close()


def test_native_at_its_best_is_the_default() -> None:
    choice = select.describe_backend()
    assert (choice.backend, choice.isa) == ("native", library.available_isas()[0])
    assert choice.threads == select.default_threads()
    assert "best" in choice.reason


def test_the_isa_is_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(select.ISA_VARIABLE, "generic")
    backend = select.select_backend(1)
    assert backend.isa == "generic"
    assert "EDGEMOE_ISA=generic" in select.describe_backend(1).reason
    backend.close()


def test_the_isa_is_never_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "available_isas", lambda: ("generic",))
    monkeypatch.setenv(select.ISA_VARIABLE, "avx2")
    choice = select.describe_backend(1)
    assert (choice.backend, choice.isa) == ("native", "generic")
    assert "EDGEMOE_ISA=avx2 is not offered" in choice.reason


@pytest.mark.parametrize("kernels", [None, "native"])
def test_without_the_library_jit_is_taken_and_the_reason_given(
    monkeypatch: pytest.MonkeyPatch, kernels: str | None
) -> None:
    def missing() -> tuple[str, ...]:
        raise KernelError("The native kernel library is not there.")

    monkeypatch.setattr(library, "available_isas", missing)
    if kernels:
        monkeypatch.setenv(select.KERNELS_VARIABLE, kernels)
    choice = select.describe_backend(3)
    assert (choice.backend, choice.isa, choice.threads) == ("jit", "-", 3)
    assert "The native kernel library is not there." in choice.reason


@pytest.mark.parametrize(
    ("variable", "valid"), [(select.KERNELS_VARIABLE, select.BACKENDS), (select.ISA_VARIABLE, select.ISAS)]
)
def test_wrong_values_are_named(monkeypatch: pytest.MonkeyPatch, variable: str, valid: tuple[str, ...]) -> None:
    monkeypatch.setenv(variable, "fastest")
    with pytest.raises(UsageError) as error:
        select.select_backend()
    assert f"{variable}=fastest" in error.value.message
    assert all(value in error.value.message for value in valid)


@pytest.mark.parametrize("threads", [0, -1, 257])
def test_impossible_thread_counts_are_usage_errors(threads: int) -> None:
    with pytest.raises(UsageError, match=f"{threads} threads: expected 1 to 256"):
        select.select_backend(threads)


@every_case(("quota", "threads"), [(1.5, 2), (0.5, 1), (1.0, 1), (4.0, 4), (1000.0, 8), (None, 8)])
def test_a_quota_of_processor_time_bounds_the_default(
    quota: float | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "physical_cores", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(select, "processor_quota", lambda: None if quota is None else Limit(quota, None))
    select.default_threads.cache_clear()
    try:
        assert select.default_threads() == threads
    finally:
        select.default_threads.cache_clear()


@pytest.mark.slow
def test_a_quota_of_a_group_below_the_root_bounds_the_default() -> None:
    """Live, in a group within a group of which the outer one has half a processor."""
    above = next(iter(control_groups("cpu")), None)
    if above is None:
        pytest.skip("this system has no control groups for processors")
    outer = above.folder / f"edgemoe-test-{os.getpid()}"
    inner = outer / "inner"
    code = "from edgemoe.kernels.select import default_threads; print(default_threads())"
    try:
        inner.mkdir(parents=True)
        quota = "cpu.cfs_quota_us" if above.version == 1 else "cpu.max"
        if not (outer / quota).exists():
            pytest.skip("no group here may limit processors")
        (outer / quota).write_text("50000")
        enter = [
            "/bin/sh",
            "-c",
            'echo $$ > "$0" && exec "$@"',
            str(inner / "cgroup.procs"),
            sys.executable,
            "-c",
            code,
        ]
        found = subprocess.run(enter, capture_output=True, text=True, check=False)
    except PermissionError as error:
        pytest.skip(f"no control group can be made here: {error}")
    finally:
        for folder in (inner, outer):
            with contextlib.suppress(OSError):
                folder.rmdir()
    assert found.stdout.strip() == "1", found.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs processor affinity")
def test_affinity_bounds_the_default() -> None:
    one = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, [{one}]); "
        "from edgemoe.kernels.select import default_threads; print(default_threads())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "1"


def test_the_native_way_imports_no_numba() -> None:
    code = (
        "import sys; from edgemoe.kernels.select import select_backend; "
        "assert select_backend(1).name == 'native'; print('numba' in sys.modules)"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("EDGEMOE_")}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.strip() == "False"
