"""Each limit of a machine is reported by itself, with the way to remove it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgemoe.bench import checkup as module
from edgemoe.bench.checkup import checkup
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import MachineError
from edgemoe.kernels.select import KernelChoice
from edgemoe.paths import CACHE_VARIABLE
from edgemoe.process import ControlGroup, Limit
from edgemoe.session.model import load
from tests.support.homes import without_home

GROUP = ControlGroup(Path("/groups/a"), 2)
Patch = Callable[[str, Any], None]


@pytest.fixture
def patch(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Patch:
    """Puts a machine without limits in place of this one, and then one limit."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))

    def set_one(name: str, value: Any) -> None:
        monkeypatch.setattr(module, name, value)

    set_one("memory_limit", lambda: Limit(1 << 40, None))
    set_one("processor_quota", lambda: None)
    set_one("thread_limit", lambda: None)
    set_one("user_thread_limit", lambda: None)
    set_one("physical_cores", lambda: 1)
    set_one("grants_direct", lambda folder: True)
    set_one("_reads_directly", lambda store: True)
    set_one("describe_backend", lambda: KernelChoice("native", "generic", 1, "the best"))
    return set_one


def test_a_machine_without_limits_has_none(patch: Patch, store: Path) -> None:
    found = checkup(store)
    assert found["limits"] == []
    assert found["memory_limit"] == {"bytes": 1 << 40, "control_group": None}
    assert found["page_bytes"] >= 4096
    assert set(found["folders"]) == {"cache", "state", "hub"}


def refuse() -> None:
    raise MachineError("A pool cannot be made.", "Allow more.")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        (
            "memory_limit",
            lambda: Limit(1 << 30, GROUP),
            "Memory: the control group /groups/a is limited to 1.00 GiB of",
        ),
        (
            "processor_quota",
            lambda: Limit(0.5, GROUP),
            "Processors: the control group /groups/a is limited to 0.5 of 1.",
        ),
        ("physical_cores", lambda: 999, "of 999. The program that started it set this: taskset"),
        (
            "select_backend",
            lambda *threads: refuse(),
            "Threads: too few may be started. A pool cannot be made. Allow more.",
        ),
        (
            "describe_backend",
            lambda: KernelChoice("jit", "-", 1, "no library"),
            "Kernels: the portable ones are in use, which are slower (no library). Install a C compiler,",
        ),
        (
            "describe_backend",
            lambda: KernelChoice("jit", "-", 1, "EDGEMOE_KERNELS=jit asks for it"),
            "(EDGEMOE_KERNELS=jit asks for it). Unset EDGEMOE_KERNELS.",
        ),
        ("_reads_directly", lambda store: False, "Disk: experts are read by plain reads"),
        ("cache_folder", lambda: None, "Cache folder: there is none: no folder"),
        ("cache_folder", lambda: Path("/dev/null/x"), "Cache folder: /dev/null/x: not writable"),
    ],
)
def test_each_limit_is_told_with_the_way_out(patch: Patch, store: Path, name: str, value: Any, told: str) -> None:
    patch(name, value)
    (limit,) = checkup(store)["limits"]
    assert told in limit


def test_a_model_that_does_not_fit_is_told(patch: Patch, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemoe.engine.budget.memory_limit", lambda: Limit(1 << 20, GROUP))
    found = checkup(store)
    assert "needs at least" in found["model"]["problem"]
    (limit,) = found["limits"]
    assert limit.startswith("Model: it cannot run here. This model needs at least")


def test_experts_that_do_not_all_fit_are_told(patch: Patch, store: Path) -> None:
    plan = module.plan_memory
    patch("plan_memory", lambda *arguments: replace(plan(*arguments), slots=3))
    (limit,) = checkup(store)["limits"]
    assert limit.startswith("Model: 3 of its 8 experts fit in memory")
    assert "edgemoe plan shows" in limit


def test_a_user_without_a_home_has_a_machine_and_answers(
    patch: Patch, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_home(monkeypatch)
    for variable in (CACHE_VARIABLE, "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    found = checkup(store)
    assert found["folders"]["cache"]["path"] is found["folders"]["state"]["path"] is None
    (limit,) = found["limits"]
    assert "Set EDGEMOE_CACHE_DIR to a folder of yours" in limit
    with load(store, EngineOptions(ram="floor", threads=1)) as model:  # which would look for a hot list
        assert len(model.generate([1, 2], max_tokens=2).token_ids) > 0


def test_how_the_cache_folder_is_read(patch: Patch, store: Path, tmp_path: Path) -> None:
    patch("grants_direct", lambda folder: folder != tmp_path)  # the nearest folder that there is
    cache = checkup(store)["folders"]["cache"]
    assert (cache["path"], cache["direct_reads"], cache["problem"]) == (str(tmp_path / "cache"), False, None)
    assert "refuses direct I/O" in cache["reads"]

    def unwritable(folder: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    patch("grants_direct", unwritable)
    assert checkup(store)["folders"]["cache"]["problem"] == "not writable (Permission denied)"
