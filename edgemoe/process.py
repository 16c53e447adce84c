"""What the system says of this process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

CONTROL_GROUPS = Path("/sys/fs/cgroup")


def peak_rss_bytes() -> int:
    """The most memory that this process has held at once, as the system counts it."""
    try:
        # getrusage would also count what a large parent held when it forked this process.
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.partition("VmHWM:")[2].split()[0]) << 10
    except (OSError, IndexError, ValueError):  # not Linux
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak << 10  # macOS counts bytes, others KiB


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
