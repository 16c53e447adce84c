"""Memory control groups: each measured engine gets a fixed amount of memory, page cache included.

Each worker has a group of its own, so that no worker pays for pages that another one has brought into the cache. The
kernel charges a page to the group that touched it first: measured files are dropped from the page cache before,
since no group would pay for pages that an earlier process left there.

A group is made below this process's own, or below the nearest ancestor that permits it. Both versions of the
interface are supported: cgroup v1 (`memory.limit_in_bytes`) and v2 (`memory.max`).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from edgemoe.errors import UsageError
from edgemoe.process import MEMORY_LIMIT_FILES, ControlGroup, control_groups
from edgemoe.sizes import format_size

LEAST_LIMIT_BYTES = 16 << 20
"""Below this limit not even an interpreter starts."""
END_SECONDS = 2.0
"""How long to wait for the end of a group's last process."""
HINT = (
    "This needs root or a delegated group: run it with sudo, or, where systemd runs, with"
    " systemd-run --user --scope -p Delegate=yes edgemoe bench ..."
)
_JOIN = 'echo $$ > "$0" && exec "$@"'
"""A shell that enters a group and then executes the command, so that the group pays for all that it allocates."""


@dataclass(frozen=True)
class GroupUsage:
    """Memory that the processes of a group have taken; None where this kernel does not report it."""

    limit_bytes: int
    peak_bytes: int | None
    """The peak: memory, page cache, and the kernel's own allocations for them."""
    cache_bytes: int | None
    """Page cache, now."""
    refusals: int | None
    """How often the limit was reached, so that the kernel had to reclaim pages."""


class MemoryGroup:
    """A group with a limit, for the commands that are started in it. A context manager that removes it."""

    def __init__(self, name: str, limit_bytes: int, parents: Sequence[ControlGroup] | None = None) -> None:
        """Raises UsageError if no group can be made, or for a limit that is too small."""
        if limit_bytes < LEAST_LIMIT_BYTES:
            raise UsageError(
                f"A limit of {format_size(limit_bytes)}: expected {format_size(LEAST_LIMIT_BYTES)} or more.",
                "Give `limit` the memory that a whole engine must fit in, such as 2GiB.",
            )
        self.limit_bytes = limit_bytes
        reasons = []
        for parent in control_groups("memory") if parents is None else parents:
            self._folder = parent.folder / f"edgemoe-bench-{os.getpid()}-{name}"
            self._version = parent.version
            try:
                self._make()
            except (OSError, subprocess.CalledProcessError) as error:
                reasons.append(f"{parent.folder}: {getattr(error, 'strerror', None) or 'no process may enter it'}")
                self.close()
            else:
                return
        why = f" ({'; '.join(reasons)})" if reasons else ": this system has no memory control groups"
        raise UsageError(f"`limit`: no control group can be created here{why}.", HINT)

    def command(self, command: Sequence[str]) -> list[str]:
        """The command that runs another one in the group."""
        return ["/bin/sh", "-c", _JOIN, str(self._folder / "cgroup.procs"), *command]

    def usage(self) -> GroupUsage:
        """Memory that the group has taken by now."""
        if self._version == 1:
            cache, peak = self._statistic("memory.stat", "cache"), self._number("memory.max_usage_in_bytes")
            return GroupUsage(self.limit_bytes, peak, cache, self._number("memory.failcnt"))
        cache, peak = self._statistic("memory.stat", "file"), self._number("memory.peak")
        return GroupUsage(self.limit_bytes, peak, cache, self._statistic("memory.events", "max"))

    def close(self) -> None:
        """Remove the group, once its processes have ended. Closing twice is harmless."""
        deadline_s = time.monotonic() + END_SECONDS
        while self._folder.exists():
            with contextlib.suppress(OSError):  # a killed process may not have ended yet
                self._folder.rmdir()
                return
            if time.monotonic() > deadline_s:
                return
            time.sleep(0.01)

    def __enter__(self) -> MemoryGroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _make(self) -> None:
        """Make the group, set its limit, and see that a process can enter it."""
        self._folder.mkdir()
        swap = "memory.memsw.limit_in_bytes" if self._version == 1 else "memory.swap.max"
        self._write(MEMORY_LIMIT_FILES[self._version], self.limit_bytes)
        if (self._folder / swap).exists():  # v1 limits memory and swap together, v2 swap alone
            self._write(swap, self.limit_bytes if self._version == 1 else 0)
        subprocess.run(self.command(["true"]), check=True, stderr=subprocess.DEVNULL)

    def _write(self, name: str, value: int) -> None:
        # opened without O_CREAT: where the interface lacks a file, that is an error and not a new file
        descriptor = os.open(self._folder / name, os.O_WRONLY)
        try:
            os.write(descriptor, str(value).encode())
        finally:
            os.close(descriptor)

    def _number(self, name: str) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            return int((self._folder / name).read_text())
        return None

    def _statistic(self, name: str, key: str) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            for line in (self._folder / name).read_text().splitlines():
                found, _, value = line.partition(" ")
                if found == key:
                    return int(value)
        return None
