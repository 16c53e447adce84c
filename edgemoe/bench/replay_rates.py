"""The rates for which a replay estimates speeds: as given, or measured here in a few seconds."""

from __future__ import annotations

from pathlib import Path

from edgemoe.bench.rates import measure_folder_disk, measure_memory
from edgemoe.bench.speed import MachineRates
from edgemoe.errors import EdgemoeError
from edgemoe.kernels.select import describe_backend


def find_rates(
    record_bytes: int, disk_bytes_per_s: float | None, memory_bytes_per_s: float | None
) -> tuple[MachineRates | None, str]:
    """Rates for expert records of a size, and where they come from; None, and the reason, if they cannot be measured.

    The disk's rate is measured on a file that is written into the current folder and removed.
    """
    disk, memory, basis = disk_bytes_per_s, memory_bytes_per_s, []
    try:
        if memory is None:
            kernels = describe_backend(None)
            memory = measure_memory(kernels).bytes_per_s
            basis.append(f"memory measured with {kernels.threads} threads")
        else:
            basis.append("memory as given")
        if disk is None:
            rate = measure_folder_disk(Path.cwd(), record_bytes)
            disk = rate.bytes_per_s
            how = "direct reads" if rate.direct else "reads through the page cache, which may be faster than the disk"
            basis.append(f"disk measured in {Path.cwd()} ({how})")
        else:
            basis.append("disk as given")
    except OSError as error:
        return None, f"the disk of {Path.cwd()} cannot be measured ({error.strerror or error}): give `disk_rate`"
    except EdgemoeError as error:
        return None, f"{error.message} Give `disk_rate` and `memory_rate`."
    return MachineRates(memory, disk), "; ".join(basis)
