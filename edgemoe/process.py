"""What the system says of this process."""

from __future__ import annotations

import sys
from pathlib import Path


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
