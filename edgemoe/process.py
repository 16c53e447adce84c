"""Queries the system for this process and its limits: memory, processors, threads, control groups.

On Linux the files in /proc and /sys are read, since importing psutil takes as long as reading all the weights of a
small model; on other systems psutil is used.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edgemoe.errors import MachineError

PROC = Path("/proc")
OWN_PROC = PROC / "self"

# Files of a control group, by interface version. Source: the kernel's documentation, cgroup-v1 and cgroup-v2.
MEMORY_LIMIT_FILES = {1: "memory.limit_in_bytes", 2: "memory.max"}
MEMORY_USAGE_FILES = {1: "memory.usage_in_bytes", 2: "memory.current"}
MEMORY_CACHE_KEYS = {1: "total_inactive_file", 2: "inactive_file"}
QUOTA_FILES = {1: "cpu.cfs_quota_us", 2: "cpu.max"}
PERIOD_FILES = {1: "cpu.cfs_period_us", 2: "cpu.max"}

CPU_FOLDER = Path("/sys/devices/system/cpu")


def peak_rss_bytes() -> int:
    """The peak resident memory of this process, as the system counts it."""
    try:
        # getrusage would also count what a large parent held when it forked this process.
        return _kib_entry("/proc/self/status", "VmHWM:")
    except (OSError, IndexError, ValueError):  # not Linux
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak << 10  # macOS counts bytes, others KiB


def rss_bytes() -> int:
    """The resident memory of this process now."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):  # not Linux
        return _ask_psutil("what memory this process holds", lambda psutil: psutil.Process().memory_info().rss)


def available_memory_bytes() -> int:
    """The memory that processes can still allocate without swapping, as the system estimates it."""
    try:
        return _kib_entry("/proc/meminfo", "MemAvailable:")
    except (OSError, IndexError, ValueError):  # not Linux
        return _ask_psutil("what memory is free", lambda psutil: psutil.virtual_memory().available)


def total_memory_bytes() -> int:
    """The total memory of this machine."""
    try:
        return _kib_entry("/proc/meminfo", "MemTotal:")
    except (OSError, IndexError, ValueError):  # not Linux
        return _ask_psutil("what memory it has", lambda psutil: psutil.virtual_memory().total)


def physical_cores(folder: Path = CPU_FOLDER) -> int | None:
    """Physical cores of the machine, not counting hardware threads; None where the system does not report them."""
    try:
        shared = {path.read_text() for path in folder.glob("cpu[0-9]*/topology/thread_siblings_list")}
    except OSError:
        shared = set()
    if shared:
        return len(shared)
    try:
        import psutil

        cores: int | None = psutil.cpu_count(logical=False)
    except OSError:  # without /proc
        return None
    return cores


def usable_processors() -> int:
    """Logical processors on which this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def major_faults() -> int:
    """The number of major page faults of this process so far: waits for a page to be read from disk."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


class ControlGroup(NamedTuple):
    """The folder of a control group, and the version of its interface."""

    folder: Path
    version: int

    def read(self, names: Mapping[int, str]) -> str:
        """The text of one of its files, whose name depends on the version. Raises OSError for a missing file."""
        return (self.folder / names[self.version]).read_text(encoding="ascii", errors="replace")


class Limit(NamedTuple):
    """The limit of a resource for this process, and the control group that sets it; None for the machine itself."""

    amount: float
    group: ControlGroup | None


def control_groups(controller: str, proc: Path = OWN_PROC) -> list[ControlGroup]:
    """The control groups by which `controller` (memory, cpu, pids) may limit this process: its own, then those above.

    `cgroup` names the process's group in each hierarchy, `mountinfo` the folder that shows a hierarchy, and the group
    at which that folder begins: a container often sees only its own. Empty on a system without control groups. Source:
    the manual pages cgroups(7) and proc_pid_mountinfo(5).
    """
    own: dict[int, str] = {}
    for line in _lines(proc / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            own[2] = path
        elif controller in controllers.split(","):
            own[1] = path
    groups = []
    for line in _lines(proc / "mountinfo"):
        place, _, kind = line.partition(" - ")
        system, _, options = kind.split(" ", 2)
        if system not in ("cgroup", "cgroup2") or (system == "cgroup" and controller not in options.split(",")):
            continue
        version = 2 if system == "cgroup2" else 1
        first, mount = map(_unescaped, place.split(" ")[3:5])
        groups += [ControlGroup(folder, version) for folder in _up_to_mount(own.get(version, "/"), first, Path(mount))]
    return [group for group in dict.fromkeys(groups) if group.folder.is_dir()]


def _up_to_mount(own: str, first: str, mount: Path) -> list[Path]:
    """Folders of a group and of all above it, in a mount that begins at group `first`."""
    parts, above = Path(own).parts, Path(first).parts
    inner = parts[len(above) :] if parts[: len(above)] == above else ()  # else the mount does not show it
    if ".." in inner:
        inner = ()
    return [mount.joinpath(*inner[:depth]) for depth in range(len(inner), -1, -1)]


def _unescaped(field: str) -> str:
    """Decode a path of mountinfo, where white space is escaped in octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []


def memory_limit(proc: Path = OWN_PROC) -> Limit:
    """The total memory of this machine, or the lower limit that a control group sets for this process, in bytes."""
    least = Limit(total_memory_bytes(), None)
    for group in control_groups("memory", proc):
        with contextlib.suppress(OSError, ValueError):  # the topmost group has no limit; others may have "max"
            least = min(least, Limit(int(group.read(MEMORY_LIMIT_FILES)), group), key=lambda limit: limit.amount)
    return least


def available_bytes(proc: Path = OWN_PROC) -> int:
    """Memory that this process could use: what it holds, plus what the system and its control groups have left."""
    used = rss_bytes()
    available = available_memory_bytes() + used
    for group in control_groups("memory", proc):
        with contextlib.suppress(OSError, ValueError):  # likewise
            left = int(group.read(MEMORY_LIMIT_FILES)) - int(group.read(MEMORY_USAGE_FILES))
            key = f"{MEMORY_CACHE_KEYS[group.version]} "
            statistics = (group.folder / "memory.stat").read_text(encoding="ascii", errors="replace").splitlines()
            # Inactive file pages count as usage but can be reclaimed: reading a model fills the cache with them.
            cache = sum(int(line.split()[1]) for line in statistics if line.startswith(key))
            available = min(available, left + cache + used)
    return max(available, 0)


def processor_quota(proc: Path = OWN_PROC) -> Limit | None:
    """Processors whose time this process may use, on average; None where no control group limits it."""
    quotas = []
    for group in control_groups("cpu", proc):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # "max", or -1 in version 1: no quota
            quota, period = map(int, (group.read(QUOTA_FILES) + " " + group.read(PERIOD_FILES)).split()[:2])
            if quota > 0:
                quotas.append(Limit(quota / period, group))
    return min(quotas, key=lambda limit: limit.amount, default=None)


def thread_limit(proc: Path = OWN_PROC) -> Limit | None:
    """Threads and processes that control groups still allow to be started; None without a limit."""
    limits = []
    for group in control_groups("pids", proc):
        with contextlib.suppress(OSError, ValueError):  # "max"
            most, there = ((group.folder / name).read_text(encoding="ascii") for name in ("pids.max", "pids.current"))
            limits.append(Limit(max(int(most) - int(there), 0), group))
    return min(limits, key=lambda limit: limit.amount, default=None)


def user_thread_limit() -> int | None:
    """Threads and processes that the user of this process may have at once (`ulimit -u`); None without a limit.

    Root has none. Source: the manual page setrlimit(2), RLIMIT_NPROC.
    """
    import resource

    most = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    return None if most == resource.RLIM_INFINITY or os.geteuid() == 0 else most


def start_threads(count: int, work: Callable[[], None]) -> list[threading.Thread]:
    """Start up to `count` daemon threads that do `work`: as many as the system allows, perhaps none."""
    threads: list[threading.Thread] = []
    with contextlib.suppress(RuntimeError):  # Python's only sign of a refused thread
        for _ in range(count):
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            threads.append(thread)
    return threads


def no_threads(what: str) -> MachineError:
    """The error for `what`, a failure to start a thread or process, with the limits that apply."""
    limits = []
    if (user := user_thread_limit()) is not None:
        limits.append(f"its user may have {user} in all (ulimit -u)")
    if (group := thread_limit()) is not None and group.group is not None:
        limits.append(f"the control group {group.group.folder} allows {group.amount:.0f} more (pids.max)")
    found = f"; {' and '.join(limits)}" if limits else ""
    return MachineError(
        f"{what}: the system refuses to start another thread or process{found}.",
        "Allow more (a container has an option for it), or end other programs.",
    )


def _ask_psutil(question: str, ask: Callable[[Any], int]) -> int:
    try:
        import psutil

        return ask(psutil)
    except Exception as error:  # the system's, or psutil's own
        raise MachineError(
            f"This system does not say {question}: expected its process files under {PROC}, found none to read.",
            f"Mount them (mount -t proc proc {PROC}); a sandbox or container has an option for that.",
        ) from error


def _kib_entry(file: str, name: str) -> int:
    """An entry of a table in Linux's /proc, in bytes."""
    text = Path(file).read_text(encoding="ascii", errors="replace")
    return int(text.partition(name)[2].split()[0]) << 10
