"""Memory limits: what is written to which interface (made-up folders have their place), and, where it may be, live."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgemoe.bench import control_group
from edgemoe.bench.control_group import GroupUsage, MemoryGroup
from edgemoe.errors import UsageError
from edgemoe.process import ControlGroup

MIB = 1 << 20
FILES = {1: ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"], 2: ["memory.max", "memory.swap.max"]}


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which new folders have the files of a control group, as the kernel makes them."""
    folder = tmp_path / "group"
    folder.mkdir()
    make = Path.mkdir

    def mkdir(path: Path, *arguments: object, **options: object) -> None:
        make(path, *arguments, **options)
        if path.parent == folder:
            for name in ("cgroup.procs", *FILES[1], *FILES[2]):
                (path / name).write_text("")

    def rmdir(path: Path) -> None:
        for file in path.iterdir():
            file.unlink()
        remove(path)

    remove = Path.rmdir
    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(Path, "rmdir", rmdir)
    return folder


@pytest.mark.parametrize("version", [1, 2])
def test_a_group_has_its_limit_and_no_swap(parent: Path, version: int) -> None:
    with MemoryGroup("x", 64 * MIB, [ControlGroup(parent, version)]) as group:
        (folder,) = parent.iterdir()
        assert folder.name == f"edgemoe-bench-{os.getpid()}-x"
        limit, swap = ((folder / name).read_text() for name in FILES[version])
        assert limit == str(64 * MIB)
        assert swap == (limit if version == 1 else "0")
        assert all((folder / name).read_text() == "" for name in FILES[3 - version])
        entered = subprocess.run(
            group.command(["/bin/echo", "a b", "$HOME"]), capture_output=True, text=True, check=True
        )
        assert entered.stdout == "a b $HOME\n"
        assert (folder / "cgroup.procs").read_text().strip().isdigit()
    assert list(parent.iterdir()) == []


def test_what_a_group_says_of_itself(parent: Path) -> None:
    with MemoryGroup("x", 64 * MIB, [ControlGroup(parent, 2)]) as group:
        assert group.usage() == GroupUsage(64 * MIB, None, None, None)
        (folder,) = parent.iterdir()
        (folder / "memory.peak").write_text("1000\n")
        (folder / "memory.stat").write_text("anon 5\nfile_mapped 6\nfile 700\n")
        (folder / "memory.events").write_text("low 0\nmax 3\noom 1\n")
        assert group.usage() == GroupUsage(64 * MIB, 1000, 700, 3)
    with MemoryGroup("x", 64 * MIB, [ControlGroup(parent, 1)]) as group:
        (folder,) = parent.iterdir()
        (folder / "memory.max_usage_in_bytes").write_text("2000\n")
        (folder / "memory.stat").write_text("cache 800\nrss 5\n")
        (folder / "memory.failcnt").write_text("9\n")
        assert group.usage() == GroupUsage(64 * MIB, 2000, 800, 9)


def test_the_nearest_group_that_lets_us_is_taken(parent: Path, tmp_path: Path) -> None:
    plain = tmp_path / "no interface"  # where the memory controller is not on, its files are missing
    plain.mkdir()
    with MemoryGroup("x", 64 * MIB, [ControlGroup(plain, 2), ControlGroup(parent, 1)]):
        assert list(plain.iterdir()) == []
        assert len(list(parent.iterdir())) == 1


def test_why_no_group_can_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"no memory control groups\. This needs root") as told:
        MemoryGroup("x", 64 * MIB, [])
    assert "systemd-run" in told.value.hint
    monkeypatch.setattr(control_group, "END_SECONDS", 0.0)
    nowhere = ControlGroup(tmp_path / "none", 2)
    with pytest.raises(UsageError, match=r"no control group can be created here \(.*none: No such file or directory\)"):
        MemoryGroup("x", 64 * MIB, [nowhere])
    with pytest.raises(UsageError, match=r"1\.0 MiB: expected 16\.0 MiB or more"):
        MemoryGroup("x", MIB, [])


def test_a_group_that_no_process_may_enter_is_none(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise subprocess.CalledProcessError(1, "sh")

    monkeypatch.setattr("edgemoe.bench.control_group.subprocess.run", refused)
    with pytest.raises(UsageError, match="no process may enter it"):
        MemoryGroup("x", 64 * MIB, [ControlGroup(parent, 2)])
    assert list(parent.iterdir()) == []


@pytest.fixture
def live() -> Iterator[MemoryGroup]:
    try:
        group = MemoryGroup("test", 64 * MIB)
    except UsageError as error:
        pytest.skip(f"not here: {error}")
    with group:
        yield group


def test_a_process_gets_so_much_and_no_more(live: MemoryGroup) -> None:
    def take(size_bytes: int) -> int:
        command = [sys.executable, "-S", "-c", f"bytearray({size_bytes})[::4096] = b'x' * ({size_bytes} // 4096)"]
        return subprocess.run(live.command(command), check=False).returncode

    assert take(24 * MIB) == 0
    peak = live.usage().peak_bytes
    assert peak is None or 24 * MIB < peak <= 64 * MIB
    assert take(96 * MIB) == -9
    folder = live._folder
    live.close()
    assert not folder.exists()
