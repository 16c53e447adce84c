"""The binding of the pager in C, and what it refuses; tests/experts/test_cache.py holds it to the cache in Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgemoe.errors import KernelError, ReadError
from edgemoe.kernels.native.pager import NativePager
from edgemoe.kernels.native.reader import NativeReader
from edgemoe.kernels.paging import RECORD, Records

LAYERS, EXPERTS, BYTES = 2, 3, 64
LRU = (0, 0.0, 0.0)


def records_in(descriptor: int) -> Records:
    records = np.zeros((LAYERS, EXPERTS), RECORD)
    records["offset"] = np.arange(LAYERS * EXPERTS).reshape(LAYERS, EXPERTS) * BYTES
    records["length"], records["crc32c"], records["descriptor"] = BYTES, -1, descriptor
    return records


def test_records_come_from_their_file_and_a_closed_reader_is_an_error(tmp_path: Path) -> None:
    content = np.random.default_rng(1).integers(0, 255, LAYERS * EXPERTS * BYTES).astype(np.uint8)
    (tmp_path / "records").write_bytes(content.tobytes())
    arena, reader = np.zeros((2, BYTES), np.uint8), NativeReader(1, 16)
    with (tmp_path / "records").open("rb") as file:
        pager = NativePager(arena, records_in(file.fileno()), reader, LRU, 60)
        pager.warm([(1, 2)])
        slot = int(pager.residency[1, 2])
        reader.wait(int(pager.tickets[slot]), 60)
    assert np.array_equal(arena[slot], content.reshape(-1, BYTES)[EXPERTS + 2])
    assert np.argwhere(pager.all_loaded()).tolist() == [[1, 2]]
    reader.close()
    for use in (lambda: pager.warm([(0, 1)]), pager.all_loaded, lambda: pager.address):
        with pytest.raises(ReadError, match="closed"):
            use()
    with pytest.raises(ReadError, match="closed"):
        NativePager(arena, records_in(0), reader, LRU, 60)


def test_bad_input_is_refused() -> None:
    reader = NativeReader(1, 16)
    pager = NativePager(np.zeros((2, BYTES), np.uint8), records_in(0), reader, LRU, 60)
    with pytest.raises(KernelError, match="expert number"):
        pager.warm([(LAYERS, 0)])
    with pytest.raises(KernelError, match="out of range"):
        pager.phase = 3
    assert pager.phase == 0
    assert pager.statistics.warm_bytes == 0
    reader.close()


def test_what_does_not_fit_together_is_refused() -> None:
    reader, records = NativeReader(1, 16), records_in(0)
    small, arena = np.zeros((2, BYTES - 1), np.uint8), np.zeros((2, BYTES), np.uint8)
    with pytest.raises(KernelError, match="2 slots of 63 bytes for 2 layers of 3 experts could not be made"):
        NativePager(small, records, reader, LRU, 60)
    with pytest.raises(KernelError, match="out of range"):
        NativePager(arena, records, reader, (3, 0.0, 0.0), 60)  # a policy that knows the future
    with pytest.raises(KernelError, match="contiguous"):
        NativePager(arena, records[:, ::2], reader, LRU, 60)
    reader.close()
