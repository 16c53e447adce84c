"""What the system says of this process and its memory.

On Linux its own files are read, since psutil takes as long to import as all the weights of a small model to read;
elsewhere psutil is asked.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

CONTROL_GROUPS = Path("/sys/fs/cgroup")

CPU_FOLDER = Path("/sys/devices/system/cpu")


def peak_rss_bytes() -> int:
    """The most memory that this process has held at once, as the system counts it."""
    try:
        # getrusage would also count what a large parent held when it forked this process.
        return _kib_entry("/proc/self/status", "VmHWM:")
    except (OSError, IndexError, ValueError):  # not Linux
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak << 10  # macOS counts bytes, others KiB


def rss_bytes() -> int:
    """The memory that this process holds now."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):  # not Linux
        import psutil

        return int(psutil.Process().memory_info().rss)


def available_memory_bytes() -> int:
    """The memory that processes can still have without swapping, as the system estimates it."""
    try:
        return _kib_entry("/proc/meminfo", "MemAvailable:")
    except (OSError, IndexError, ValueError):  # not Linux
        import psutil

        return int(psutil.virtual_memory().available)


def total_memory_bytes() -> int:
    """The memory of this machine."""
    try:
        return _kib_entry("/proc/meminfo", "MemTotal:")
    except (OSError, IndexError, ValueError):  # not Linux
        import psutil

        return int(psutil.virtual_memory().total)


def physical_cores(folder: Path = CPU_FOLDER) -> int | None:
    """Cores of the machine, each counted once whatever its threads; None where the system does not say."""
    try:
        shared = {path.read_text() for path in folder.glob("cpu[0-9]*/topology/thread_siblings_list")}
    except OSError:
        shared = set()
    if shared:
        return len(shared)
    import psutil

    cores: int | None = psutil.cpu_count(logical=False)
    return cores


def major_faults() -> int:
    """How often this process had to wait for a page to come from a disk, so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


class ControlGroup(NamedTuple):
    """A folder that stands for a control group, and which version of the interface it speaks."""

    folder: Path
    version: int


def memory_groups(root: Path = CONTROL_GROUPS, own: Path = Path("/proc/self/cgroup")) -> list[ControlGroup]:
    """The control groups that may limit this process's memory, its own first, then those above it.

    Empty where the system has none. Source: the kernel's documentation, cgroup-v1/memory and cgroup-v2.
    """
    groups = [ControlGroup(root, 2), ControlGroup(root / "memory", 1)]
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    inner = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount, version = (root / "memory", 1) if controllers else (root, 2)
        parts = Path(path.lstrip("/")).parts
        if ".." in parts:  # of a group that this namespace does not show
            continue
        inner += [ControlGroup(mount.joinpath(*parts[:depth]), version) for depth in range(len(parts), 0, -1)]
    return [group for group in inner + groups if group.folder.is_dir()]


def _kib_entry(file: str, name: str) -> int:
    """An entry of one of Linux's tables, in bytes."""
    text = Path(file).read_text(encoding="ascii", errors="replace")
    return int(text.partition(name)[2].split()[0]) << 10
