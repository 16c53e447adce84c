"""The search for codes of trellis formats by the native library."""

from __future__ import annotations

import ctypes

import numpy as np

from edgemoe.kernels.native.library import available_isas, load_library
from edgemoe.kernels.native.structures import TrellisStruct
from edgemoe.kernels.panel_sizes import GROUP_COLUMNS
from edgemoe.kernels.trellis import CHAINS, Bytes
from edgemoe.kernels.trellis_search import Floats, Levels


class NativeTrellisSearch:
    """The search with the kernels of one instruction set, by default the best available. Raises KernelError."""

    def __init__(self, isa: str | None = None) -> None:
        self._library = load_library()
        self._kernels = self._library.em_kernels_for((isa or available_isas()[0]).encode())

    def search(
        self,
        levels: Levels,
        weights: Floats,
        inverses: Floats,
        gains: Floats,
        importance: Floats,
        starts: Bytes | None = None,
        chain: int | None = None,
    ) -> Bytes:
        """Find the codes that `trellis_search.search` finds. Releases the GIL."""
        trellis = levels.trellis
        rows, columns = weights.shape
        assert columns == trellis.padded(columns), columns
        assert inverses.shape == gains.shape == (rows, columns // GROUP_COLUMNS), inverses.shape
        assert importance.shape == (columns,), importance.shape
        assert levels.numbers.shape == (1 << trellis.window_bits, trellis.step_weights), levels.numbers.shape
        assert levels.levels.shape[1] > levels.numbers.max(), levels.levels.shape
        arrays = [np.ascontiguousarray(array, np.float32) for array in (weights, inverses, gains, importance)]
        kept = np.ascontiguousarray(levels.levels, np.float32), np.ascontiguousarray(levels.numbers)
        struct = TrellisStruct(
            trellis.step_bits,
            trellis.step_weights,
            trellis.lag,
            kept[0].shape[1],
            kept[0].ctypes.data,
            kept[1].ctypes.data,
            levels.dearest,
        )
        assert starts is None or (starts.shape == (rows, CHAINS) and starts.flags.c_contiguous), starts.shape
        shape = (rows, columns // trellis.step_weights)
        codes = np.empty(shape, np.uint8) if chain is None else np.zeros(shape, np.uint8)
        scratch = np.empty(self._library.em_trellis_scratch_bytes(ctypes.byref(struct), columns), np.uint8)
        status = self._library.em_trellis_search(
            self._kernels,
            ctypes.byref(struct),
            *(array.ctypes.data for array in arrays),
            rows,
            columns,
            None if starts is None else starts.ctypes.data,
            -1 if chain is None else chain,
            codes.ctypes.data,
            scratch.ctypes.data,
        )
        assert status == 0, status
        return codes
