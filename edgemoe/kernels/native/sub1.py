"""The code sub1 by the native library: trits to panels and back, as `kernels/sub1.py` says."""

from __future__ import annotations

import ctypes
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.formats import panel_count
from edgemoe.kernels.native.library import Status, load_library
from edgemoe.kernels.sub1 import Bytes, Trits, levels_of_panels


class NativeSub1:
    """Encoder, decoder and check. Raises KernelError without the library."""

    def __init__(self) -> None:
        self._library = load_library()

    def panel_lengths(self, trits: Trits, level_bytes: int) -> list[int]:
        """The bytes of each panel, without its streams being written."""
        return self._pack(trits, None, level_bytes, None)

    def pack_panels(self, trits: Trits, levels: npt.NDArray[np.float32], level_bytes: int) -> list[bytes]:
        """As `sub1.pack_panels`. Releases the GIL."""
        rows, columns = trits.shape
        most = panel_count(rows) * self._library.em_sub1_panel_bytes(columns, level_bytes)
        out = np.empty(most, np.uint8)
        lengths = self._pack(trits, levels_of_panels(levels, level_bytes), level_bytes, out)
        ends = np.cumsum([0, *lengths]).tolist()
        return [out[start:end].tobytes() for start, end in pairwise(ends)]

    def _pack(
        self, trits: Trits, levels: npt.NDArray[np.generic] | None, level_bytes: int, out: Bytes | None
    ) -> list[int]:
        rows, columns = trits.shape
        own = np.ascontiguousarray(trits)
        ends = np.empty(panel_count(rows), np.uint64)
        status = self._library.em_sub1_pack(
            own.ctypes.data,
            rows,
            columns,
            None if levels is None else levels.ctypes.data,
            level_bytes,
            None if out is None else out.ctypes.data,
            ends.ctypes.data,
        )
        assert status == Status.OK, status
        starts = [0, *ends.tolist()]
        return [end - start for start, end in pairwise(starts)]

    def unpack(self, data: Bytes, rows: int, columns: int) -> tuple[Trits, npt.NDArray[np.float32]] | None:
        """The trits and levels of a matrix of this shape; None where these bytes are none."""
        trits, levels = np.empty((rows, columns), np.int8), np.empty((rows, 2), np.float32)
        own = np.ascontiguousarray(data)
        given = own.ctypes.data, own.size, rows, columns, trits.ctypes.data, levels.ctypes.data
        return (trits, levels) if self._library.em_sub1_unpack(*given) == Status.OK else None

    def is_sound(self, data: Bytes, rows: int, columns: int) -> bool:
        """Whether these bytes begin with a whole matrix of this shape."""
        used = ctypes.c_uint64()
        own = np.ascontiguousarray(data)
        status: int = self._library.em_sub1_check(own.ctypes.data, own.size, rows, columns, ctypes.byref(used))
        return status == Status.OK
