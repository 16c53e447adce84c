"""Facts that the system reports about this process."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from edgemoe import process
from edgemoe.errors import MachineError
from edgemoe.process import ControlGroup
from tests.support.control_groups import mounted, write_groups, write_proc
from tests.support.every_case import every_case
from tests.support.few_threads import few_threads


def test_peak_memory_is_of_this_process_and_not_of_the_one_that_began_it() -> None:
    parent = """
import subprocess, sys
held = bytearray(200 << 20)
program = "from edgemoe.process import peak_rss_bytes; print(peak_rss_bytes())"
print(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
"""
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True)
    assert 1 << 20 < int(done.stdout) < 150 << 20


def test_memory_is_what_psutil_says() -> None:
    assert process.rss_bytes() == pytest.approx(psutil.Process().memory_info().rss, rel=0.1)
    assert process.total_memory_bytes() == psutil.virtual_memory().total
    assert process.available_memory_bytes() == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_without_proc_psutil_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object, **options: object) -> str:
        raise FileNotFoundError

    expected = process.rss_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", missing)
        found = process.rss_bytes(), process.available_memory_bytes(), process.peak_rss_bytes()
        total = process.total_memory_bytes()
    assert found[0] == pytest.approx(expected, rel=0.1)
    assert 0 < found[1] < total
    assert found[2] >= 0.9 * expected


def test_a_core_with_two_threads_is_one_core(tmp_path: Path) -> None:
    for number, siblings in enumerate(["0,4", "1,5", "0,4", "1,5", "2-3"]):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
    (tmp_path / "cpufreq" / "topology").mkdir(parents=True)
    assert process.physical_cores(tmp_path) == 3
    assert process.physical_cores(tmp_path / "missing") == psutil.cpu_count(logical=False)


def test_control_groups_of_this_process_come_before_those_above(tmp_path: Path) -> None:
    root = write_groups(tmp_path / "groups", {"a.slice/b.scope/x": "", "memory/jobs/7/x": "", "cpu/jobs/x": ""})
    proc = write_proc(
        tmp_path,
        ["6:cpu,cpuacct:/jobs", "5:memory:/jobs/7", "3:cpuset:/jobs", "0::/a.slice/b.scope"],
        [
            mounted(root / "memory", "cgroup", "memory"),
            mounted(root / "cpu", "cgroup", "cpu,cpuacct"),
            mounted(root, "cgroup2"),
        ],
    )
    version2 = [ControlGroup(folder, 2) for folder in (root / "a.slice/b.scope", root / "a.slice", root)]
    assert process.control_groups("memory", proc) == [
        *(ControlGroup(root / "memory" / name, 1) for name in ("jobs/7", "jobs", "")),
        *version2,
    ]
    assert process.control_groups("cpu", proc) == [
        *(ControlGroup(root / "cpu" / name, 1) for name in ("jobs", "")),
        *version2,
    ]
    assert process.control_groups("pids", proc) == version2
    assert process.control_groups("memory", tmp_path / "none") == []


@every_case(
    ("own", "first", "inner"),
    [
        ("/docker/1", "/docker/1", ["."]),  # a container that sees its own group only, under its full name
        ("/docker/1/jobs", "/docker/1", ["jobs", "."]),
        ("/", "/", ["."]),  # a container whose names begin at its own group
        ("/../../elsewhere", "/", ["."]),  # of a namespace that shows no more
        ("/else", "/docker/1", ["."]),
    ],
)
def test_a_container_sees_a_part_of_the_hierarchy(tmp_path: Path, own: str, first: str, inner: list[str]) -> None:
    root = write_groups(tmp_path / "white space", {"jobs/x": "", "elsewhere/x": "", "else/x": ""})
    escaped = Path(str(root).replace(" ", "\\040"))
    proc = write_proc(tmp_path, [f"0::{own}"], [mounted(escaped, "cgroup2", first=first)])
    assert process.control_groups("cpu", proc) == [ControlGroup(root / name, 2) for name in inner]


VERSION_2 = (["0::/a/b"], "cgroup2", "")
VERSION_1 = (["3:cpu,cpuacct:/a/b", "2:memory:/a/b", "1:pids:/a/b"], "cgroup", "cpu,cpuacct,memory,pids")

Interface = tuple[list[str], str, str]


def in_groups(folder: Path, interface: Interface, files: dict[str, str]) -> Path:
    """Write /proc for a process in control group /a/b, with these files of the group and of the groups above."""
    own, kind, controllers = interface
    root = write_groups(folder / "groups", {"a/b/cgroup.procs": "", **files})
    return write_proc(folder, own, [mounted(root, kind, controllers)])


@every_case(
    ("interface", "files", "quota"),
    [
        (VERSION_2, {"cpu.max": "150000 100000"}, 1.5),
        (VERSION_2, {"a/cpu.max": "100000 100000"}, 1.0),
        (VERSION_2, {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000", "cpu.max": "400000 100000"}, 0.5),
        (VERSION_2, {"a/b/cpu.max": "max 100000"}, None),
        (VERSION_2, {"a/b/cpu.max": "nonsense", "a/cpu.max": "1 0"}, None),
        (VERSION_2, {}, None),
        (VERSION_1, {"a/cpu.cfs_quota_us": "100000", "a/cpu.cfs_period_us": "100000"}, 1.0),
        (
            VERSION_1,
            {
                "a/b/cpu.cfs_quota_us": "-1",
                "a/b/cpu.cfs_period_us": "100000",
                "cpu.cfs_quota_us": "400000",
                "cpu.cfs_period_us": "100000",
            },
            4.0,
        ),
        (VERSION_1, {"a/b/cpu.cfs_quota_us": "-1", "a/b/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_the_least_quota_of_a_group_and_those_above_counts(
    tmp_path: Path, interface: Interface, files: dict[str, str], quota: float | None
) -> None:
    found = process.processor_quota(in_groups(tmp_path, interface, files))
    assert (found.amount if found else None) == quota


@pytest.mark.parametrize(("interface", "file"), [(VERSION_2, "memory.max"), (VERSION_1, "memory.limit_in_bytes")])
def test_a_machine_is_no_larger_than_a_control_group_above(tmp_path: Path, interface: Interface, file: str) -> None:
    proc = in_groups(tmp_path, interface, {f"a/{file}": f"{1 << 20}"})
    limit = process.memory_limit(proc)
    assert limit.amount == 1 << 20
    assert limit.group is not None
    assert limit.group.folder == tmp_path / "groups/a"
    in_groups(tmp_path, interface, {f"a/{file}": "max"})
    assert process.memory_limit(proc) == (psutil.virtual_memory().total, None)


@pytest.mark.parametrize(
    ("interface", "names", "cache_key"),
    [
        (VERSION_2, ("memory.max", "memory.current"), "inactive_file"),
        (VERSION_1, ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file"),
    ],
)
def test_a_container_s_limit_counts_but_not_the_file_pages_that_give_way(
    tmp_path: Path, interface: Interface, names: tuple[str, str], cache_key: str
) -> None:
    def available(limit: str, usage: int, cache: int) -> int:
        statistics = f"anon 5\n{cache_key} {cache}\nactive_file 7"
        files = dict(zip(names, (limit, f"{usage}"), strict=True)) | {"memory.stat": statistics}
        return process.available_bytes(
            in_groups(tmp_path, interface, {f"a/b/{name}": text for name, text in files.items()})
        )

    limit = f"{50 << 20}"
    held = available(limit, 50 << 20, 0)  # what this process holds itself
    assert available(limit, 40 << 20, 0) - held == pytest.approx(10 << 20, abs=1 << 20)
    assert available(limit, 50 << 20, 30 << 20) - held == pytest.approx(30 << 20, abs=1 << 20)
    assert available("max", 50 << 20, 0) > held + (30 << 20)


@pytest.mark.parametrize("interface", [VERSION_1, VERSION_2])
def test_the_threads_that_groups_leave_room_for(tmp_path: Path, interface: Interface) -> None:
    proc = in_groups(tmp_path, interface, {"a/b/pids.max": "max", "a/b/pids.current": "3"})
    assert process.thread_limit(proc) is None
    in_groups(tmp_path, interface, {"a/pids.max": "20", "a/pids.current": "5", "pids.max": "90", "pids.current": "80"})
    limit = process.thread_limit(proc)
    assert limit is not None
    assert limit.amount == 10
    assert limit.group is not None
    assert limit.group.folder == tmp_path / "groups"


def test_without_proc_and_without_psutil_one_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where /proc is an empty folder: psutil finds there as little as we do."""

    def missing(*arguments: object, **options: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(psutil, "Process", missing)
    monkeypatch.setattr(psutil, "virtual_memory", missing)
    monkeypatch.setattr(psutil, "cpu_count", missing)
    for ask in (process.rss_bytes, process.total_memory_bytes, process.available_memory_bytes, process.available_bytes):
        with pytest.raises(MachineError, match="expected its process files under /proc"):
            ask()
    assert process.physical_cores(Path("/missing")) is None


@every_case("left", [0, 1, 2, 3])
def test_as_many_threads_are_started_as_the_system_allows(left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    few_threads(monkeypatch, left)
    threads = process.start_threads(2, lambda: None)
    assert len(threads) == min(left, 2)
    for thread in threads:
        thread.join()


def test_why_no_thread_is_started_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    group = ControlGroup(Path("/groups/a"), 2)
    monkeypatch.setattr(process, "thread_limit", lambda: process.Limit(0, group))
    monkeypatch.setattr(process, "user_thread_limit", lambda: 100)
    assert str(process.no_threads("A pool cannot be made")) == (
        "A pool cannot be made: the system refuses to start another thread or process; its user may have 100 in all"
        " (ulimit -u) and the control group /groups/a allows 0 more (pids.max). Allow more (a container has an option"
        " for it), or end other programs."
    )
