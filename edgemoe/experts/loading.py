"""Loading every expert at the start, where the budget has room for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgemoe.errors import ReadError
from edgemoe.experts.cache import READ_TIMEOUT_SECONDS, RecordTable
from edgemoe.experts.reads import ExpertFiles, RecordReader

READS_AHEAD = 16


def load_all_experts(
    arena: npt.NDArray[np.uint8],
    slot_tables: Sequence[npt.NDArray[np.int32] | None],
    table: RecordTable,
    files: ExpertFiles,
    reader: RecordReader,
) -> None:
    """Read all experts, in the order of the file, and enter their slots in the layers' tables `(E,)`.

    Raises ReadError naming the layer and expert.
    """
    waiting: list[tuple[int, int, int]] = []

    def settle() -> None:
        ticket, layer, expert = waiting.pop(0)
        try:
            reader.wait(ticket, READ_TIMEOUT_SECONDS)
        except ReadError as error:
            raise ReadError(f"Layer {layer}, expert {expert}: {error.message}", error.hint) from error
        reader.release(ticket)

    slot = 0
    for layer, slots in enumerate(slot_tables):
        for expert in range(0 if slots is None else len(slots)):
            record = table.record(layer, expert)
            address = arena.ctypes.data + slot * arena.shape[1]
            descriptor = files.descriptor(record.path)
            ticket = reader.submit(
                descriptor, record.offset, record.length, address, True, record.crc32c, record.sha256
            )
            waiting.append((ticket, layer, expert))
            if slots is not None:
                slots[expert] = slot
            slot += 1
            if len(waiting) >= READS_AHEAD:
                settle()
    while waiting:
        settle()
