"""The machine that measurements were made on."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgemoe.process import total_memory_bytes


def describe_machine() -> dict[str, Any]:
    """Processor, cores, caches, memory and system."""
    return {
        "python": platform.python_version(),
        "python_keeps_bytecode": not sys.dont_write_bytecode,
        "system": platform.platform(terse=True),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "last_level_cache_bytes": last_level_cache_bytes(),
        "memory_bytes": total_memory_bytes(),
    }


def processor_name() -> str:
    """The processor's own name."""
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def last_level_cache_bytes(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int | None:
    """Size of the largest cache that the system reports (a virtual machine may report one shared by many)."""
    sizes = []
    for file in folder.glob("index*/size"):
        text = file.read_text().strip()
        unit = {"K": 10, "M": 20, "G": 30}.get(text[-1:], 0)
        digits = text[:-1] if unit else text
        if digits.isdigit():
            sizes.append(int(digits) << unit)
    return max(sizes, default=None)
